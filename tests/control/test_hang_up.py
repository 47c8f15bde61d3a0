"""A client may hang up at any moment; its tasks are known as they are stored, and go on."""

from __future__ import annotations

import pytest

from fep.domain.ids import TaskId
from tests.control.conftest import Start
from tests.control.rig import Config, Rig, Wire
from tests.store.held import held


async def hang_up_while_changing(rig: Rig, wire: Wire, task_id: str) -> None:
    """Hang up when the task is being changed, and wait until the session is over."""
    task = rig.daemon.tasks._open[TaskId(task_id)]
    await rig.until(lambda: task.claimed, "the change under way")
    await wire.aclose()
    # One that waits for the disk notices it by what it must say, such as an event that it follows.
    await rig.finance()
    await rig.until(lambda: rig.logs.named("session.closed"), "the end of the session")


@pytest.mark.req("FEP-23", "FEP-25")
async def test_a_task_cancelled_by_a_client_that_hung_up_is_cancelled_once_and_for_all(
    start: Start,
) -> None:
    async with start() as rig:
        finance = await rig.finance()
        task = {"task_id": "T1", "bank": "pingan", "kind": "transfer", "body": rig.transfer()}
        assert (await finance.result("task.submit", task))["state"] == "queued"
        with held(rig.daemon._store):
            await finance.send(finance.request("task.cancel", {"task_id": "T1"}))
            await hang_up_while_changing(rig, finance, "T1")
        again = await rig.finance()
        await rig.until(lambda: rig.daemon.tasks.status()["open"] == 0, "no open task")
        found = await again.result("task.get", {"task_id": "T1"})
        assert found["state"] == "cancelled"


@pytest.mark.req("FEP-24", "FEP-25", "FEP-26")
async def test_a_body_given_by_a_client_that_hung_up_is_sent_once(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        person = await rig.admin("bob")
        await person.result("events.follow", {"prefix": "session."})
        await person.result("task.submit", {"task_id": "T1", "bank": "pingan", "kind": "transfer"})
        fetch = await person.take("task.fetch")
        with held(rig.daemon._store):
            await person.answer(fetch, rig.transfer())
            await hang_up_while_changing(rig, person, "T1")
        again = await rig.admin("bob")
        told = await again.take("task.result")
        assert (told["params"]["task_id"], told["params"]["state"]) == ("T1", "succeeded")
        assert [one for one in again.seen if one["method"] == "task.fetch"] == []
        await again.answer(told, {})


@pytest.mark.req("FEP-23")
async def test_a_full_queue_does_not_deny_the_task_that_is_in_it(start: Start) -> None:
    """A client that sends again what it got no answer to must not hear a refusal of it."""

    def small(config: Config) -> None:
        config["tasks"]["queue_max"] = 1

    async with start(change=small) as rig:
        finance = await rig.finance()
        task = {"task_id": "T1", "bank": "pingan", "kind": "transfer", "body": rig.transfer()}
        first = await finance.result("task.submit", task)
        assert first == {"task_id": "T1", "state": "queued", "known": False}
        assert await finance.refusal("task.submit", task | {"task_id": "T2"}) == "QUEUE_FULL"
        assert await finance.result("task.submit", task) == first | {"known": True}
        other = task | {"body": rig.transfer(fen=200)}
        assert await finance.refusal("task.submit", other) == "TASK_CONFLICT"
