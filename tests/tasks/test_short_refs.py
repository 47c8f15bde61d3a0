"""Banks that take only short numbers as a payment's reference: no two payments have the same one."""

from __future__ import annotations

from typing import Any

import pytest

from fep.adapters.host import Fault
from fep.domain import ids
from fep.domain.ids import ClientRef, TaskId, short_ref
from fep.tasks import service
from tests.tasks.bench import CCB, CCB_PAYEE, CCB_PAYER, ENTERPRISE, Fep, World, transfer, until


async def end_of(fep: Fep, task_id: str) -> dict[str, Any]:
    """Wait for a task's end, and return how it is then."""
    await until(lambda: fep.service.open_task(TaskId(task_id)) is None)
    return await fep.get(task_id)


def money(amount: str = "12.50") -> dict[str, object]:
    return transfer(amount, CCB_PAYER, CCB_PAYEE)


async def test_an_answer_that_is_lost_is_found_by_the_short_reference(world: World) -> None:
    async with world.fep(banks=[CCB], reply_timeout_s=0.3) as fep:
        await fep.ready(CCB)
        world.banks[CCB].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("T1", bank=CCB, body=money())
        assert (await end_of(fep, "T1"))["state"] == "succeeded"
        reference = short_ref(ENTERPRISE, TaskId("T1"), 16)
        assert (await fep.get("T1"))["client_ref"] == reference
        assert world.book.times_booked(reference) == 1
        assert "outcome_lost" in await fep.events("T1")


async def test_two_tasks_whose_references_meet_are_two_payments(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meeting(enterprise: str, task_id: TaskId, digits: int, attempt: int = 0) -> ClientRef:
        return ids.short_ref(enterprise, TaskId("X") if attempt == 0 else task_id, digits, attempt)

    monkeypatch.setattr(service, "short_ref", meeting)
    async with world.fep(banks=[CCB]) as fep:
        await fep.ready(CCB)
        fep.units[CCB].lane.drain()
        for number in range(4):
            await fep.submit(f"T{number}", bank=CCB, body=money(f"{number + 1}.00"))
        fep.units[CCB].lane.resume()
        found = set()
        for number in range(4):
            assert (await end_of(fep, f"T{number}"))["state"] == "succeeded"
            found.add((await fep.get(f"T{number}"))["client_ref"])
        # One of them may have the meeting one, or none: each saw another that would take it.
        assert len(found) == 4
        for reference in found:
            assert world.book.times_booked(reference) == 1


async def test_a_task_whose_references_are_all_taken_is_refused_and_not_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "short_ref", lambda *_: ClientRef("2000000000000000"))
    async with world.fep(banks=[CCB]) as fep:
        await fep.ready(CCB)
        await fep.submit("T1", bank=CCB, body=money())
        assert (await end_of(fep, "T1"))["state"] == "succeeded"
        await fep.submit("T2", bank=CCB, body=money("2.00"))
        refused = await end_of(fep, "T2")
        assert (refused["state"], refused["bank_code"]) == ("failed", "BAD_BODY")
        assert "taken by other payments" in refused["bank_message"]
        assert len(world.book.payments()) == 1
