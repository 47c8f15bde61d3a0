"""An archived task is still a task: known, shown, explained, and asked after."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
import trio

from fep.alarms.state import AlarmKind
from fep.daemon.verify import verify
from fep.domain.clock import SystemClock
from fep.domain.ids import TaskId
from fep.domain.order import Kind, PaymentState
from fep.links.mux import UnmatchedReply
from fep.store import archive, files
from fep.tasks import store
from fep.tasks.state import State
from fep.tasks.task import Admitted, Refused
from tests.store.test_archive import over
from tests.tasks.bench import ENTERPRISE, OTHER, Fep, Finance, World, balance, batch, money, until
from tests.tasks.bench import PINGAN as BANK
from tests.tasks.codecs import changed, says
from tests.tasks.test_proofs import ID, Tap, framed

pytestmark = pytest.mark.req("FEP-23")

NO_WATCH = {"returned": {"watch_days": 0.0}}


def move(world: World) -> dict[str, int]:
    """Archive all that is over by now."""
    now = SystemClock().now()
    soon = now + dt.timedelta(days=1)
    with files.writing(world.store_file) as store:
        return archive.move(store, world.path, over(soon, soon), now, "a test", lambda *_: None)


async def acknowledged(world: World, count: int = 1) -> None:
    """Wait until a client has taken the results of so many tasks."""
    taken = "select count(*) from task where delivery = 2"
    await until(lambda: world.on_disk(taken) == [(count,)])


async def paid(world: World, fep: Fep, body: dict[str, Any]) -> Finance:
    """Start, and let a client have the result of PAY."""
    client = fep.client()
    await fep.ready()
    await fep.submit("PAY", body=body)
    await client.result("PAY")
    await acknowledged(world)
    return client


async def test_an_archived_task_is_shown_and_explained_as_before(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client(bodies={"PAY": money(BANK)})
        await fep.ready()
        await fep.submit("PAY", Kind.TRANSFER)
        await fep.submit("ASK", body=balance())
        for name in ("PAY", "ASK"):
            await erp.result(name)
        await acknowledged(world, 2)
        before = {name: await fep.service.why(None, TaskId(name)) for name in ("PAY", "ASK")}
        year = f"{SystemClock().now().astimezone(dt.timezone(dt.timedelta(hours=8))):%Y}"
        assert await trio.to_thread.run_sync(move, world) == {year: 2}
        assert world.on_disk("select count(*) from task_event where task_seq > 0") == [(0,)]
        name = files.archive_name(year)
        for task in ("PAY", "ASK"):
            after = await fep.service.why(None, TaskId(task))
            assert after["task"].pop("archived") == name
            assert after == before[task]
        # The same id again, and what became of it.
        assert await fep.admit(fep.submission("PAY", body=money(BANK))) == [
            Admitted(TaskId("PAY"), State.SUCCEEDED, known=True)
        ]
        [answer] = await fep.admit(fep.submission("PAY", body=money(BANK)), client=OTHER)
        assert isinstance(answer, Refused)
        status = {"kind": "transfer_status", "params": {"task_id": "PAY"}}
        await fep.submit("STATUS", body=status)
        told = await erp.result("STATUS")
        assert (told.state, told.result["state"]) == (State.SUCCEEDED, "succeeded")
        # Its archive was carried away.
        (world.path / name).rename(world.path / "elsewhere")
        found = await fep.service.why(None, TaskId("PAY"))
        assert (found["task"]["state"], found["task"]["archived"]) == ("succeeded", name)
        assert (found["task"]["result"], found["events"]) == (None, [])
        (world.path / "elsewhere").rename(world.path / name)
        listed, _ = await fep.service.page(None, state=None, bank=None, limit=9, before=None)
        assert [(one["task_id"], one.get("archived")) for one in listed] == [
            ("STATUS", None),
            ("ASK", name),
            ("PAY", name),
        ]
    assert world.booked("PAY") == 1
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_a_batch_in_the_archive_is_asked_after_and_its_bank_goes_on(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = await paid(world, fep, batch(BANK, "1.00", "2.00"))
        assert await trio.to_thread.run_sync(move, world)
        await fep.submit("ASK", body={"kind": "transfer_status", "params": {"task_id": "PAY"}})
        told = await erp.result("ASK")
        assert told.state is State.SUCCEEDED
        assert [row["state"] for row in told.result["rows"]] == ["succeeded", "succeeded"]
        await fep.submit("NEXT", body=money(BANK))
        assert (await erp.result("NEXT")).state is State.SUCCEEDED


@pytest.mark.parametrize("moved_when", ["before", "in that moment"])
async def test_what_comes_back_from_the_archive_is_told_and_stays_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, moved_when: str
) -> None:
    codec = changed(says(PaymentState.RETURNED))
    async with world.fep(card=NO_WATCH, codec=codec) as fep:
        erp = await paid(world, fep, money(BANK))
        result_of = store.result_of

        def moving(connection: sa.Connection, task_id: str) -> dict[str, Any]:
            found = result_of(connection, task_id)
            connection.rollback()
            assert move(world)
            return found

        if moved_when == "before":
            assert await trio.to_thread.run_sync(move, world)
        else:
            monkeypatch.setattr(store, "result_of", moving)
        await fep.submit("ASK", body={"kind": "transfer_status", "params": {"task_id": "PAY"}})
        assert (await erp.result("ASK")).result["state"] == "returned"
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.EVIDENCE_CONFLICT]
        assert alarm.subject == "PAY"
        assert alarm.cause.startswith("it is archived as succeeded, and the bank's status query")
        assert (await fep.get("PAY"))["state"] == "succeeded"
        assert [one.state for one in erp.told if one.task_id == "PAY"] == [State.SUCCEEDED]
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_an_archived_batch_with_a_refused_row_is_compared_row_by_row(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = await paid(world, fep, batch(BANK, "1.00", "99999999.00"))
        assert await trio.to_thread.run_sync(move, world)
        await fep.submit("ASK", body={"kind": "transfer_status", "params": {"task_id": "PAY"}})
        await erp.result("ASK")
        assert AlarmKind.EVIDENCE_CONFLICT not in fep.alarm_kinds()
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_an_answer_to_what_is_archived_is_compared_with_it(world: World) -> None:
    codec = changed(says(PaymentState.RETURNED))
    async with world.fep(card=NO_WATCH, codec=codec) as fep:
        erp = fep.client()
        await fep.ready()
        tap = Tap(world, BANK, swallows=False)
        await fep.submit(ID, body=money(BANK))
        await erp.result(ID)
        await acknowledged(world)
        assert await trio.to_thread.run_sync(move, world)
        reply = framed(BANK, tap.answers[0])
        await fep.unmatched.send(UnmatchedReply(BANK, reply, told=True))
        await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
        kept = "select task_seq from message where bytes = ?"
        await until(lambda: world.on_disk(kept, reply.raw) == [(1,)])
        assert (await fep.get(ID))["state"] == "succeeded"
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_what_is_watched_is_not_archived(world: World) -> None:
    async with world.fep() as fep:
        await paid(world, fep, money(BANK))
        assert await trio.to_thread.run_sync(move, world) == {}


async def test_an_archived_task_outlives_a_restart(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client()
        await fep.submit("ASK", body=balance())
        await erp.result("ASK")
        await acknowledged(world)
    assert sum((await trio.to_thread.run_sync(move, world)).values()) == 1
    async with world.fep(card=NO_WATCH) as fep:
        assert (await fep.get("ASK"))["result"]["account"]
        task = await fep.admitted("NEXT")
        assert task.seq == 2
