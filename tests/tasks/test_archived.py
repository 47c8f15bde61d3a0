"""An archived task is still a task: known, shown, explained, and asked after."""

from __future__ import annotations

import datetime as dt

import pytest
import trio

from fep.daemon.verify import verify
from fep.domain.clock import SystemClock
from fep.domain.ids import TaskId
from fep.domain.order import Kind
from fep.store import archive, files
from fep.tasks.state import State
from fep.tasks.task import Admitted, Refused
from tests.store.test_archive import over
from tests.tasks.bench import ENTERPRISE, OTHER, World, balance, batch, money, until
from tests.tasks.bench import PINGAN as BANK

pytestmark = pytest.mark.req("FEP-23")

NO_WATCH = {"returned": {"watch_days": 0.0}}


def move(world: World) -> dict[str, int]:
    """Archive all that is over by now."""
    now = SystemClock().now()
    soon = now + dt.timedelta(days=1)
    with files.writing(world.store_file) as store:
        return archive.move(store, world.path, over(soon, soon), now, "a test", lambda *_: None)


async def test_an_archived_task_is_shown_and_explained_as_before(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client(bodies={"PAY": money(BANK)})
        await fep.ready()
        await fep.submit("PAY", Kind.TRANSFER)
        await fep.submit("ASK", body=balance())
        for name in ("PAY", "ASK"):
            await erp.result(name)
        await until(lambda: world.on_disk("select count(*) from task where delivery = 2") == [(2,)])
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
        erp = fep.client()
        await fep.ready()
        await fep.submit("PAY", body=batch(BANK, "1.00", "2.00"))
        await erp.result("PAY")
        await until(lambda: world.on_disk("select count(*) from task where delivery = 2") == [(1,)])
        assert await trio.to_thread.run_sync(move, world)
        await fep.submit("ASK", body={"kind": "transfer_status", "params": {"task_id": "PAY"}})
        told = await erp.result("ASK")
        assert told.state is State.SUCCEEDED
        assert [row["state"] for row in told.result["rows"]] == ["succeeded", "succeeded"]
        await fep.submit("NEXT", body=money(BANK))
        assert (await erp.result("NEXT")).state is State.SUCCEEDED


async def test_what_is_watched_is_not_archived(world: World) -> None:
    async with world.fep() as fep:
        erp = fep.client()
        await fep.ready()
        await fep.submit("PAY", body=money(BANK))
        await erp.result("PAY")
        await until(lambda: world.on_disk("select count(*) from task where delivery = 2") == [(1,)])
        assert await trio.to_thread.run_sync(move, world) == {}


async def test_an_archived_task_outlives_a_restart(world: World) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client()
        await fep.submit("ASK", body=balance())
        await erp.result("ASK")
        await until(lambda: world.on_disk("select count(*) from task where delivery = 2") == [(1,)])
    assert sum((await trio.to_thread.run_sync(move, world)).values()) == 1
    async with world.fep(card=NO_WATCH) as fep:
        assert (await fep.get("ASK"))["result"]["account"]
        task = await fep.admitted("NEXT")
        assert task.seq == 2
