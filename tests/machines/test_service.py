"""Two machines in one process on a real PostgreSQL, each with a steady clock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import orjson
import pytest
import sqlalchemy as sa
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock, steady_seconds
from fep.domain.errors import ConfigError, FepError
from fep.machines.service import (
    DefectElsewhereError,
    GuardedStore,
    Machines,
    NoAnswerError,
    PlaceLostError,
    RefusedElsewhereError,
    Tenure,
    new_me,
)
from fep.sandbox.postgres import PostgresServer
from fep.store import database as groups
from fep.store import schema
from fep.store.database import Store, StoreFailedError
from fep.store.postgres import WRITE_LOCK, Postgres

pytestmark = pytest.mark.req("FEP-22", "FEP-25")

BANK = "bank:pingan"
LEASE_S = 30.0
WAIT_SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
CANCEL_WAITING = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'relation'"""


@attrs.define
class Clock:
    """A steady clock that can be set ahead: a machine that stood still finds its own so."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return steady_seconds() + self.ahead_s


@attrs.define
class Node:
    """One machine."""

    store: Store
    machines: Machines
    alarms: Alarms
    clock: Clock
    key: bool = True

    async def win(self) -> Tenure:
        with trio.fail_after(WAIT_SECONDS_MAX):
            return await self.machines.win(BANK, lambda: self.key)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not condition():
                await self.store.read(lambda c: c.exec_driver_sql("SELECT 1").scalar())


@attrs.define
class Base:
    """A database, and machines on it."""

    server: PostgresServer
    url: str

    @asynccontextmanager
    async def node(
        self, number: str, enterprise: str = "E0001", before: str = ""
    ) -> AsyncIterator[Node]:
        store = Store(Postgres(self.url, self.server.password, number))
        alarms = Alarms(store, SystemClock())
        clock = Clock()
        me = new_me(number, enterprise, "1.0", LEASE_S)
        node = Node(store, Machines(store, alarms, me, before, clock), alarms, clock)
        async with trio.open_nursery() as outer:
            await outer.start(store.run)
            async with trio.open_nursery() as inner:
                await inner.start(node.machines.run)
                yield node
                inner.cancel_scope.cancel()
            outer.cancel_scope.cancel()

    def sql(self, statement: str, *values: Any) -> None:
        with self.server.connect(self.url.rpartition("/")[2]) as connection:
            connection.execute(statement.encode(), values)


@pytest.fixture
def base(postgres: PostgresServer, database: str) -> Base:
    return Base(postgres, database)


def put(bank: str) -> Any:
    return lambda c: c.execute(sa.insert(schema.lane).values(bank=bank, drained=0))


def banks(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(schema.lane.c.bank)).scalars())


async def test_one_holds_a_place_and_another_has_it_when_it_is_given_up(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:
        held = await one.win()
        assert one.machines.may_begin(BANK)
        assert not other.machines.may_begin(BANK)
        won: list[Tenure] = []

        async def wait() -> None:
            won.append(await other.win())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await one.until(lambda: BANK in {w for m in one.machines.others() for w in m.said.fit})
            assert won == []
            await one.machines.give_up(held)
        assert other.machines.may_begin(BANK)
        assert not one.machines.may_begin(BANK)
        assert won[0].lease.fence == held.lease.fence + 1
        await one.until(lambda: (m := one.machines.holder(BANK)) is not None and m.number != "")


async def test_who_is_taken_over_writes_nothing_more(base: Base) -> None:
    """The database's clock was set ahead, or the holder stood still: it does not know yet."""
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:
        held = await one.win()
        guarded = GuardedStore(one.store, one.machines, BANK)
        await guarded.write(put("mine"))
        base.sql("UPDATE place SET until_at = clock_timestamp()")
        # Not taken by another yet, and still not its own any more.
        with pytest.raises(PlaceLostError, match="the lease has run out"):
            await guarded.write(put("late"))
        base.sql(
            "UPDATE place SET instance = %s, holder = 'FEP-02', fence = fence + 1,"
            " until_at = clock_timestamp() + interval '1 min'",
            other.machines.me.instance,
        )
        with pytest.raises(PlaceLostError):
            await guarded.write(put("later"))
        with trio.fail_after(WAIT_SECONDS_MAX):
            one.machines.changed()
            await held.over.wait()
        assert held.is_lost
        assert not one.machines.may_begin(BANK)
        # Known by now: it does not even ask the database.
        with pytest.raises(PlaceLostError, match="another machine serves"):
            guarded.submit(put("never"), lambda *_: None)
        assert await one.store.read(banks) == {"mine"}


async def test_a_machine_that_stood_still_begins_nothing_before_it_has_asked(base: Base) -> None:
    async with base.node("FEP-01") as one:
        held = await one.win()
        assert one.machines.may_begin(BANK)
        with base.server.connect(base.url.rpartition("/")[2]) as foreign:
            # It can't ask: nothing that it has asked before may count from now.
            foreign.execute("SELECT pg_advisory_lock(%s)", (WRITE_LOCK,))
            one.clock.ahead_s = LEASE_S * 0.95
            assert not one.machines.may_begin(BANK), "the margin"
            assert not held.is_lost
            one.clock.ahead_s = LEASE_S * 1.5
            assert not one.machines.may_begin(BANK)
            with trio.fail_after(WAIT_SECONDS_MAX):
                await held.over.wait()
        assert held.is_lost


async def test_a_database_that_does_not_answer_is_an_alarm_until_it_does(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "STALLED_SECONDS", 0.3)
    async with base.node("FEP-01") as one:
        with base.server.connect(base.url.rpartition("/")[2]) as foreign:
            foreign.execute("SELECT pg_advisory_lock(%s)", (WRITE_LOCK,))
            one.machines.changed()
            with trio.fail_after(WAIT_SECONDS_MAX):
                while not one.alarms.active():
                    await trio.sleep(POLL_SECONDS)
            assert [a.kind for a in one.alarms.active()] == [AlarmKind.STORE_DOWN]
        with trio.fail_after(WAIT_SECONDS_MAX):
            while one.alarms.active():
                await trio.sleep(POLL_SECONDS)


async def test_a_key_that_goes_lets_the_bank_go_to_who_has_it(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:
        held = await one.win()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.win)
            one.key = False
            with trio.fail_after(WAIT_SECONDS_MAX):
                await held.over.wait()
            assert not held.is_lost, "left in order"
            await one.machines.give_up(held)
        assert other.machines.may_begin(BANK)


async def test_a_silent_machine_is_told_of_until_it_is_back_or_taken_off_the_list(
    base: Base,
) -> None:
    async with base.node("FEP-01") as one:

        def told() -> set[str]:
            assert {a.kind for a in one.alarms.active()} <= {AlarmKind.MACHINE_LOST}
            return {alarm.subject for alarm in one.alarms.active()}

        async with base.node("FEP-02"):
            await one.until(lambda: [m.number for m in one.machines.others()] == ["FEP-02"])
        await one.until(lambda: one.machines.others() == [])
        assert told() == set(), "it left in order"
        for number in ("FEP-02", "FEP-03"):
            base.sql("DELETE FROM machine WHERE number = %s", number)
            base.sql(
                "INSERT INTO machine VALUES (%s, 'x', 'E0001', '1',"
                ' \'{"fit":[],"clients":{},"open":{}}\', clock_timestamp(), false)',
                number,
            )
        one.machines.changed()
        await one.until(lambda: told() == {"FEP-02", "FEP-03"})
        async with base.node("FEP-02"):
            await one.until(lambda: told() == {"FEP-03"})
            base.sql("DELETE FROM machine WHERE number = 'FEP-03'")
            one.machines.changed()
            await one.until(lambda: told() == set())


async def test_what_one_tells_all_others_hear_when_it_is_stored(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:
        heard: list[Any] = []
        own: list[Any] = []
        other.machines.hear("said", heard.extend)
        one.machines.hear("said", own.extend)
        items = [[number, "x" * 200] for number in range(100)]
        await one.store.write(partial(one.machines.tell_all, name="said", items=items))

        def fail(connection: sa.Connection) -> None:
            one.machines.tell_all(connection, "said", ["never"])
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await one.store.write(fail)
        await other.until(lambda: len(heard) == 100)
        assert heard == items
        assert own == []


async def test_one_asks_another_and_has_its_answer_or_refusal(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:

        async def answer(ask: Any) -> Any:
            if ask["method"] == "refuse":
                raise PlaceLostError("not now")
            return {"got": ask["method"]}

        other.machines.answer(answer)
        await one.until(lambda: bool(one.machines.others()))
        (to,) = one.machines.others()
        assert await one.machines.ask(to, {"method": "a" * 20_000}) == {"got": "a" * 20_000}
        with pytest.raises(RefusedElsewhereError, match="not now") as refused:
            await one.machines.ask(to, {"method": "refuse"})
        assert refused.value.code == PlaceLostError.code
        with trio.fail_after(WAIT_SECONDS_MAX):
            while await one.store.read(_letters):
                pass  # what was read is forgotten in a moment
    async with base.node("FEP-01") as one:
        # It has gone: nobody answers.
        with pytest.raises(NoAnswerError, match="gave no answer"), trio.fail_after(60):
            await one.machines.ask(to, {"method": "x"})


async def test_a_defect_in_what_another_asks_ends_that_request_alone(
    base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:

        async def answer(ask: Any) -> Any:
            return {"done": 1}[ask["method"]]

        other.machines.answer(answer)
        await one.until(lambda: bool(one.machines.others()))
        (to,) = one.machines.others()
        with pytest.raises(RefusedElsewhereError, match="machine FEP-02 failed in it") as refused:
            await one.machines.ask(to, {"method": "of a newer release"})
        assert refused.value.code == DefectElsewhereError.code
        assert await one.machines.ask(to, {"method": "done"}) == 1
        told = capsys.readouterr().out
        assert "machine.answer_crashed" in told
        assert "KeyError" in told


async def test_who_is_asked_and_has_no_store_any_more_ends(base: Base) -> None:
    async def live() -> None:
        async with base.node("FEP-01") as one, base.node("FEP-02") as other:

            async def answer(_ask: Any) -> Any:
                raise StoreFailedError("the disk is gone")

            other.machines.answer(answer)
            await one.until(lambda: bool(one.machines.others()))
            (to,) = one.machines.others()
            await one.machines.ask(to, {"method": "x"})

    with pytest.raises(BaseExceptionGroup) as failed:
        await live()
    assert isinstance(_one(failed.value), StoreFailedError)


async def test_a_letter_that_can_not_be_read_at_the_moment_is_read_later(base: Base) -> None:
    async with base.node("FEP-01") as one, base.node("FEP-02") as other:

        async def answer(ask: Any) -> Any:
            return ask["method"]

        other.machines.answer(answer)
        await one.until(lambda: bool(one.machines.others()))
        (to,) = one.machines.others()
        note = orjson.dumps({"from": "nobody", "name": "post", "value": to.instance}).decode()

        def refuse_one_read() -> None:
            name = base.url.rpartition("/")[2]
            with base.server.connect(name) as holder, holder.transaction():
                holder.execute("LOCK TABLE letter IN ACCESS EXCLUSIVE MODE")
                base.sql("SELECT pg_notify('fep', %s)", note)
                with base.server.connect(name) as watcher:
                    while not watcher.execute(CANCEL_WAITING).fetchall():
                        pass

        await trio.to_thread.run_sync(refuse_one_read)
        with trio.fail_after(WAIT_SECONDS_MAX):
            assert await one.machines.ask(to, {"method": "later"}) == "later"


def _letters(connection: sa.Connection) -> int:
    found: int = connection.execute(
        sa.select(sa.func.count()).select_from(schema.letter)
    ).scalar_one()
    return found


async def test_a_machine_of_another_enterprise_ends(base: Base) -> None:
    async with base.node("FEP-01"):
        with pytest.raises(BaseExceptionGroup) as failed:
            async with base.node("FEP-02", enterprise="E0002"):
                pass
        assert "belongs to enterprise 'E0001', and this is 'E0002'" in str(_one(failed.value))


async def test_a_machine_whose_number_another_process_took_ends(base: Base) -> None:
    async def live() -> None:
        async with base.node("FEP-01") as one:
            await one.win()
            base.sql("UPDATE machine SET instance = 'another'")
            one.machines.changed()
            await trio.sleep(WAIT_SECONDS_MAX)

    with pytest.raises(BaseExceptionGroup) as failed:
        await live()
    found = _one(failed.value)
    assert isinstance(found, ConfigError)
    assert "another process has become machine FEP-01" in str(found)


def _one(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    assert isinstance(group, FepError)
    return group
