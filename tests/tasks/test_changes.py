"""Changes: what waits for the disk is one group, and each submitter's stands or falls alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from fep.domain.ids import BankName, ClientName, TaskId
from fep.domain.order import Kind
from fep.sandbox.postgres import PostgresServer
from fep.store.database import Store, StoreFailedError, Work
from fep.store.postgres import Postgres
from fep.tasks import store as rows
from fep.tasks.changes import Changes
from fep.tasks.state import Event, State
from fep.tasks.store import Bytes, Change, NewTask, StaleTaskError
from fep.tasks.task import Task
from tests.store.held import held

pytestmark = pytest.mark.req("FEP-23")

NOW = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
TASKS = 20
AT = rows.text_of(NOW)
WAIT_SECONDS_MAX = 20.0


def change(seq: int, before: State, after: State, event: Event, wire: bytes = b"") -> Change:
    given = Bytes(sent=True, correlation="c", data=wire) if wire else None
    return Change(seq, before, after, (event,), "test", NOW, wire=given)


def offer(seq: int) -> Change:
    return change(seq, State.QUEUED, State.OFFERED, Event.OFFERED)


class Desk:
    """The changes of twenty queued tasks, with what is told of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changes = Changes(store)
        self.told: dict[str, Exception | None] = {}

    def submit(
        self, name: str, *changes: Change, configuration: str = "c", also: Work | None = None
    ) -> None:
        self.changes.submit(changes, configuration, partial(self.done, name), also)

    def done(self, name: str, error: Exception | None) -> None:
        assert name not in self.told, "told twice"
        self.told[name] = error

    async def until_told(self, *names: str) -> list[Exception | None]:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not set(names) <= self.told.keys():
                await trio.sleep(0.002)
        return [self.told[name] for name in names]

    async def rows(self, query: str) -> list[Any]:
        found: list[Any] = await self.store.read(lambda c: c.exec_driver_sql(query).all())
        return found

    async def state(self, seq: int) -> object:
        [(state,)] = await self.rows(f"select state from task where seq = {seq}")
        return state


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Desk]:
    tasks = [
        NewTask(
            Task(
                seq,
                TaskId(f"T{seq}"),
                ClientName("erp-1"),
                BankName("pingan"),
                Kind.BALANCE,
                5,
                State.QUEUED,
                NOW,
                NOW,
            ),
            None,
        )
        for seq in range(1, TASKS + 1)
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await store.write(lambda c: rows.insert(c, tasks, "c"))
        yield Desk(store)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(Store.at(tmp_path / "fep.db")) as made:
        yield made


async def test_what_waits_for_the_disk_is_one_group(desk: Desk) -> None:
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        for seq in range(1, TASKS + 1):
            desk.submit(f"S{seq}", offer(seq))
        waiting = len(desk.store._waiting)
    assert waiting == 1, "one piece of work for all of them"
    assert await desk.until_told(*(f"S{seq}" for seq in range(1, TASKS + 1))) == [None] * TASKS
    assert list(desk.told) == [f"S{seq}" for seq in range(1, TASKS + 1)], "told in their order"
    assert await desk.rows("select state, count(*) from task group by state") == [
        ("offered", TASKS)
    ]


async def test_after_a_group_another_one_begins(desk: Desk) -> None:
    desk.submit("first", offer(1))
    await desk.until_told("first")
    desk.submit("second", offer(2))
    assert await desk.until_told("second") == [None]


async def test_one_that_is_stale_harms_nobody_else(desk: Desk) -> None:
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        desk.submit("good", offer(1))
        desk.submit("stale", change(2, State.FETCHED, State.SENDING, Event.SEND_BEGUN), offer(3))
        desk.submit("other", offer(4))
        desk.changes.acknowledge([("T5", "succeeded", AT)], partial(desk.done, "acknowledged"))
    good, stale, other, told = await desk.until_told("good", "stale", "other", "acknowledged")
    assert (good, other, told) == (None, None, None)
    assert isinstance(stale, StaleTaskError)
    assert [await desk.state(seq) for seq in (1, 2, 3, 4)] == [
        "offered",
        "queued",
        "queued",
        "offered",
    ], "all of a stale submitter's changes are left out"
    assert await desk.rows("select count(*) from task_event where event = 'offered'") == [(2,)]


async def test_a_stale_one_alone_is_told_so(desk: Desk) -> None:
    desk.submit("stale", change(1, State.SENDING, State.UNKNOWN, Event.OUTCOME_LOST))
    assert [type(one) for one in await desk.until_told("stale")] == [StaleTaskError]


async def test_two_changes_of_a_task_in_one_group_keep_their_order(desk: Desk) -> None:
    """As when what was being sent is taken back before its SENDING is on disk."""
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        desk.submit(
            "here",
            change(1, State.QUEUED, State.FETCHED, Event.BODY_TAKEN),
            change(2, State.QUEUED, State.FETCHED, Event.BODY_TAKEN),
        )
        desk.submit("sent", change(1, State.FETCHED, State.SENDING, Event.SEND_BEGUN, b"frame"))
        desk.submit("taken back", change(1, State.SENDING, State.FETCHED, Event.NOTHING_SENT))
    assert await desk.until_told("here", "sent", "taken back") == [None] * 3
    assert await desk.state(1) == "fetched"
    events = await desk.rows("select event from task_event where task_seq = 1 order by seq")
    assert [row[0] for row in events] == ["submitted", "body_taken", "send_begun", "nothing_sent"]
    assert await desk.rows("select task_seq, bytes from message") == [(1, b"frame")]


async def test_each_event_bears_the_configuration_it_happened_under(desk: Desk) -> None:
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        desk.submit("a", offer(1), configuration="old")
        desk.submit("b", offer(2), configuration="new")
        desk.submit("c", offer(3), configuration="new")
    assert await desk.until_told("a", "b", "c") == [None] * 3
    rows_found = await desk.rows(
        "select configuration, task_seq from task_event where event = 'offered' order by task_seq"
    )
    assert rows_found == [("old", 1), ("new", 2), ("new", 3)]


async def test_acknowledgements_join_and_count_for_the_state_that_was_told(desk: Desk) -> None:
    await desk.store.write(
        lambda c: c.exec_driver_sql("update task set state = 'succeeded', delivery = 1")
    )
    await desk.store.write(
        lambda c: c.exec_driver_sql("update task set state = 'returned' where seq = 2")
    )
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        for seq in range(1, 4):
            given = [(f"T{seq}", "succeeded", AT)]
            desk.changes.acknowledge(given, partial(desk.done, f"A{seq}"))
        waiting = len(desk.store._waiting)
    assert waiting == 1
    assert await desk.until_told("A1", "A2", "A3") == [None] * 3
    owed = await desk.rows("select seq, delivery from task where seq < 5 order by seq")
    assert owed == [(1, 2), (2, 1), (3, 2), (4, 1)]


async def test_an_answer_that_is_a_defect_keeps_nobody_elses(tmp_path: Path) -> None:
    class OursError(Exception):
        pass

    def wrong(_error: Exception | None) -> None:
        raise OursError

    store = Store.at(tmp_path / "fep.db")
    desk = Desk(store)
    with pytest.RaisesGroup(OursError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            with held(desk.store):
                await trio.testing.wait_all_tasks_blocked()
                for name in ("first", "second"):
                    given = [("T1", "succeeded", AT)]
                    desk.changes.acknowledge(given, partial(desk.done, name))
                    desk.changes.acknowledge([("T2", "succeeded", AT)], wrong)
            await trio.sleep_forever()
    assert desk.told == {"first": None, "second": None}


async def test_a_store_that_has_ended_refuses_at_once_and_tells_nobody(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "fep.db")
    desk = Desk(store)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()
    for name in ("a", "b"):
        with pytest.raises(StoreFailedError):
            desk.submit(name, offer(1))
    assert desk.told == {}


async def test_a_store_that_fails_tells_all_that_wait(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "fep.db")
    desk = Desk(store)

    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        raise OSError

    with pytest.RaisesGroup(StoreFailedError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            with held(desk.store):
                await trio.testing.wait_all_tasks_blocked()
                store.submit(broken, lambda _result, _error: None)
                desk.submit("a", offer(1))
                desk.submit("b", offer(2))
            await trio.sleep_forever()
    assert [type(one) for one in desk.told.values()] == [StoreFailedError] * 2


async def test_what_comes_while_a_group_is_done_again_is_told_when_it_is_on_disk(
    postgres: PostgresServer, database: str
) -> None:
    """The server takes back the first group, in which another one was put and queued."""
    store = Store(Postgres(database, postgres.password, "FEP-01"))
    async with opened(store) as desk:
        stored: dict[str, set[int]] = {}
        done = desk.done

        def noting(name: str, error: Exception | None) -> None:
            with postgres.connect(database.rpartition("/")[2]) as other:
                found = other.execute("select seq from task where state = 'offered'").fetchall()
            stored[name] = {seq for (seq,) in found}
            done(name, error)

        desk.done = noting  # type: ignore[method-assign]
        times = 0

        def later(_connection: sa.Connection) -> None:
            trio.from_thread.run_sync(desk.submit, "C", offer(3))

        def put() -> None:
            desk.submit("B", offer(2))
            # Behind B's group, in one transaction with it.
            store.submit(later, lambda _result, _error: None)

        def undone_once(connection: sa.Connection) -> None:
            nonlocal times
            times += 1
            if times == 1:
                trio.from_thread.run_sync(put)
                connection.exec_driver_sql(
                    "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"
                )

        desk.submit("A", offer(1), also=undone_once)
        assert await desk.until_told("A", "B", "C") == [None] * 3
        assert times == 2
        for seq, name in enumerate("ABC", 1):
            assert seq in stored[name], name
