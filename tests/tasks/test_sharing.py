"""The queue of one machine among several, on a real PostgreSQL; whole daemons are in the system's.

No bank runs: what the machines tell each other, and what is theirs, is looked at alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.ids import BankName, Sequence, TaskId
from fep.domain.order import Kind
from fep.machines.service import Machines, new_me
from fep.machines.state import bank_place
from fep.sandbox.postgres import PostgresServer
from fep.store.database import Store
from fep.store.postgres import Postgres
from fep.tasks.config import TasksConfig
from fep.tasks.service import TaskService
from fep.tasks.sharing import Sharing
from fep.tasks.task import Answer, Fetch, Submission
from tests.tasks.bench import CMB, ENTERPRISE, ERP, PINGAN, WAIT_SECONDS_MAX, MovedClock

pytestmark = pytest.mark.req("FEP-22", "FEP-25")

LEASE_S = 30.0


@attrs.define
class Node:
    """One machine, without lanes."""

    store: Store
    alarms: Alarms
    machines: Machines
    clock: MovedClock
    service: TaskService
    sharing: Sharing

    async def serve(self, bank: BankName) -> None:
        """Win a bank's place, and know its tasks."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self.machines.win(bank_place(bank), lambda: True)
            await self.sharing.take_bank(bank)

    async def submit(self, *task_ids: str) -> None:
        """Submit tasks, each named after its bank."""
        finished = trio.Event()
        answers: list[Answer] = []

        def done(given: list[Answer]) -> None:
            answers.extend(given)
            finished.set()

        wanted = [
            Submission(TaskId(one), BankName(one.partition("-")[0]), Kind.BALANCE)
            for one in task_ids
        ]
        self.service.submit(ERP, wanted, done)
        with trio.fail_after(WAIT_SECONDS_MAX):
            await finished.wait()
        assert [getattr(one, "known", one) for one in answers] == [False] * len(task_ids)

    async def state(self, task_id: str) -> str:
        """Return a task's state on disk."""
        found: str = (await self.service.get(None, TaskId(task_id)))["state"]
        return found

    async def becomes(self, task_id: str, state: str) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while await self.state(task_id) != state:
                pass

    async def until(self, condition: Callable[[], Any]) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not condition():
                await self.store.read(lambda c: c.exec_driver_sql("SELECT 1").scalar())

    def told_expired(self) -> list[str]:
        """Return what the alarms say of tasks that expired."""
        return [one.cause for one in self.alarms.active() if one.kind is AlarmKind.TASK_EXPIRED]

    def pass_days(self, days: int) -> None:
        """Let what waits come of age."""
        self.clock.moved += dt.timedelta(days=days)
        self.service._look.set()


@attrs.define
class Base:
    """A database, and machines on it."""

    server: PostgresServer
    url: str

    @asynccontextmanager
    async def node(self, number: str) -> AsyncIterator[Node]:
        store = Store(Postgres(self.url, self.server.password, number))
        clock = MovedClock()
        alarms = Alarms(store, clock)
        machines = Machines(store, alarms, new_me(number, ENTERPRISE, "1.0", LEASE_S))
        service = TaskService(
            store=store,
            alarms=alarms,
            clock=clock,
            sequence=Sequence(0),
            config=TasksConfig(),
            enterprise=ENTERPRISE,
            accounts={},
            configuration="test",
        )
        sharing = service.share(machines)
        for bank in (PINGAN, CMB):
            sharing.know_foreign(bank, frozenset({Kind.BALANCE}))
        async with trio.open_nursery() as outer:
            await outer.start(store.run)
            async with trio.open_nursery() as inner:
                await inner.start(machines.run)
                await service.load()
                await inner.start(service.run)
                await inner.start(sharing.run)
                yield Node(store, alarms, machines, clock, service, sharing)
                inner.cancel_scope.cancel()
            outer.cancel_scope.cancel()

    def take_away(self, bank: BankName) -> None:
        """Give a bank's place to a machine that is none, and tell nobody."""
        with self.server.connect(self.url.rpartition("/")[2]) as connection:
            connection.execute(
                "UPDATE place SET holder = 'FEP-09', instance = 'nobody', fence = fence + 1,"
                " until_at = clock_timestamp() + interval '1 h' WHERE what = %s",
                (bank_place(bank),),
            )


@pytest.fixture
def base(postgres: PostgresServer, database: str) -> Base:
    return Base(postgres, database)


async def test_what_others_asked_a_client_for_lapses_with_its_connection(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:
        first = one.service.attach(ERP)
        box = first.box

        async def offer(task_id: str) -> None:
            item = [one.machines.me.instance, ERP, task_id, 1, CMB]
            tell = partial(other.machines.tell_all, name="offered", items=[item])
            await other.store.write(tell)
            await one.until(lambda: task_id in box.fetches)

        await offer("cmb-1")
        assert first.draw() == ([Fetch(TaskId("cmb-1"), 1)], [])
        await offer("cmb-2")
        one.service.detach(first)
        second = one.service.attach(ERP)
        assert second.draw() == ([], [])
        # The offer has lapsed, and is made again.
        await offer("cmb-1")
        assert second.draw() == ([Fetch(TaskId("cmb-1"), 1)], [])


async def test_a_bank_that_was_lost_keeps_no_task_of_another_from_expiring(base: Base) -> None:
    async with base.node("FEP-01") as one:
        await one.serve(PINGAN)
        await one.serve(CMB)
        await one.submit("pingan-1", "cmb-1", "pingan-2", "cmb-2")
        base.take_away(PINGAN)
        one.pass_days(2)
        await one.becomes("cmb-1", "expired")
        await one.becomes("cmb-2", "expired")
        assert [await one.state(task) for task in ("pingan-1", "pingan-2")] == ["queued"] * 2
        # Those that another machine ends are told of there.
        await one.until(
            lambda: one.told_expired() == ["2 tasks expired unsent; the oldest is cmb-1"]
        )


async def test_a_task_that_was_forgotten_and_read_again_expires_as_what_it_is_now(
    base: Base,
) -> None:
    async with base.node("FEP-01") as one:
        await one.serve(PINGAN)
        await one.submit("pingan-1", "pingan-2")
        one.sharing.drop_bank(PINGAN)
        await one.sharing.take_bank(PINGAN)
        await one.service.cancel(None, TaskId("pingan-1"), "a person")
        one.pass_days(2)
        await one.becomes("pingan-2", "expired")
        assert await one.state("pingan-1") == "cancelled"
