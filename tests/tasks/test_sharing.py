"""The queue of one machine among several, on a real PostgreSQL; whole daemons are in the system's.

No bank runs: what the machines tell each other, and what is theirs, is looked at alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from fep.alarms.service import Alarms
from fep.domain.ids import Sequence, TaskId
from fep.domain.order import Kind
from fep.machines.service import Machines, new_me
from fep.sandbox.postgres import PostgresServer
from fep.store.database import Store
from fep.store.postgres import Postgres
from fep.tasks.config import TasksConfig
from fep.tasks.service import TaskService
from fep.tasks.sharing import Sharing
from fep.tasks.task import Fetch
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

    async def until(self, condition: Callable[[], Any]) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not condition():
                await self.store.read(lambda c: c.exec_driver_sql("SELECT 1").scalar())


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
