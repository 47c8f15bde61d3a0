"""The rounds on disk are what was stored, whatever came before, between and after."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fep.domain.ids import AccountNumber, BankName, TaskId
from fep.domain.money import Cny
from fep.pooling import plan, store
from fep.pooling.config import MemberConfig, PoolConfig
from fep.pooling.plan import ItemState, Round, RoundState
from fep.store import schema

NOW = dt.datetime(2026, 1, 5, 0, 30, tzinfo=dt.UTC)
PINGAN = BankName("pingan")
MEMBERS = tuple(
    MemberConfig(AccountNumber(f"990000000001{place:02d}"), Cny(10_000)) for place in range(1, 4)
)
BANKS = {member.account: PINGAN for member in MEMBERS}
POOLS = {name: PoolConfig(name, AccountNumber("9"), MEMBERS) for name in ("main", "other")}
FEN_MAX = 10**15 - 1


def begun(
    name: str = "main", key: str = "k", seconds: int = 0, *, plan_only: bool = False
) -> Round:
    now = NOW + dt.timedelta(seconds=seconds)
    pool = POOLS[name]
    return plan.new_round(pool, BANKS, frozenset(), key, now, plan_only=plan_only, note="n")


def copied(one: Round) -> Round:
    """Return the round as it is now: what is stored must not change with memory."""
    return attrs.evolve(one, items=[attrs.evolve(item) for item in one.items])


def opened(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
    return engine


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    """A connection to an empty store."""
    engine = opened(tmp_path / "fep.sqlite")
    with engine.connect() as made:
        yield made
    engine.dispose()


@pytest.mark.req("POOL-03")
def test_a_round_is_read_as_it_was_stored(connection: sa.Connection) -> None:
    one = begun()
    assert store.insert(connection, one)
    assert store.one(connection, one.round_id) == one
    assert store.running(connection) == [one]
    assert store.latest(connection, "main") == one
    assert store.latest(connection, "other") is None
    assert store.one(connection, "main-1") is None
    for item in one.items:
        assert store.of_task(connection, item.balance_task) == one.round_id
        assert store.of_task(connection, item.sweep_task) == one.round_id
    assert store.of_task(connection, "T-1") is None


@pytest.mark.req("POOL-06", "POOL-14")
@pytest.mark.parametrize(
    ("key", "seconds"), [("k", 1), ("other", 0)], ids=["the same time", "the same id"]
)
def test_a_round_runs_once(connection: sa.Connection, key: str, seconds: int) -> None:
    first = begun()
    assert store.insert(connection, first)
    stored = store.one(connection, first.round_id)
    assert not store.insert(connection, begun(key=key, seconds=seconds))
    assert store.one(connection, first.round_id) == stored
    assert len(store.running(connection)) == 1


@pytest.mark.req("POOL-14")
def test_a_round_that_began_after_a_moment_gives_up_its_key(connection: sa.Connection) -> None:
    for key, seconds in (("before", 0), ("at", 60), ("after", 61), ("late", 90_000)):
        assert store.insert(connection, begun(key=key, seconds=seconds))
    moment = NOW + dt.timedelta(seconds=60)
    late = [begun(seconds=seconds).round_id for seconds in (61, 90_000)]
    assert sorted(store.begun_after(connection, moment)) == late
    store.free_keys(connection, moment)
    assert store.begun_after(connection, moment) == []
    assert {one.key for one in store.running(connection)} == {"before", "at", *late}
    store.free_keys(connection, moment)
    for key, seconds, fresh in (("at", 100, False), ("after", 101, True), ("late", 102, True)):
        assert store.insert(connection, begun(key=key, seconds=seconds)) is fresh


def test_a_round_without_accounts_is_stored_too(connection: sa.Connection) -> None:
    empty = attrs.evolve(begun(), items=[])
    assert store.insert(connection, empty)
    assert store.one(connection, empty.round_id) == empty
    store.update(connection, empty.round_id, [])


@pytest.mark.req("POOL-06")
def test_every_member_of_an_item_is_stored(connection: sa.Connection) -> None:
    one = begun()
    store.insert(connection, one)
    item = one.items[1]
    item.state, item.reason, item.working = ItemState.FAILED, "余额不足", "judged 1"
    item.balance, item.amount = Cny(-FEN_MAX), Cny(FEN_MAX)
    item.threshold, item.rule = Cny(3), "tiered"
    store.update(connection, one.round_id, [item])
    assert store.one(connection, one.round_id) == one


def test_the_money_is_stored_as_whole_fen(connection: sa.Connection) -> None:
    one = begun()
    store.insert(connection, one)
    one.items[0].balance = one.items[0].amount = Cny(FEN_MAX)
    store.update(connection, one.round_id, one.items)
    rows = connection.exec_driver_sql(
        "select distinct typeof(amount_fen), typeof(balance_fen), typeof(threshold_fen)"
        " from pool_item where amount_fen is not null"
    ).all()
    assert [tuple(row) for row in rows] == [("integer", "integer", "integer")]


def test_an_update_touches_its_own_round_only(connection: sa.Connection) -> None:
    one, two = begun(key="1"), begun("other", key="2")
    store.insert(connection, one)
    store.insert(connection, two)
    one.items[0].state = ItemState.SWEPT
    store.update(connection, one.round_id, [one.items[0]])
    assert store.one(connection, two.round_id) == two


def test_a_plan_is_never_a_pool_s_latest_round(connection: sa.Connection) -> None:
    one = begun(key="1")
    store.insert(connection, one)
    store.insert(connection, begun(key="2", seconds=5, plan_only=True))
    assert store.latest(connection, "main") == one
    newer = begun(key="3", seconds=9)
    store.insert(connection, newer)
    assert store.latest(connection, "main") == newer


def test_a_round_that_has_no_end_is_not_finished(connection: sa.Connection) -> None:
    one = begun()
    store.insert(connection, one)
    with pytest.raises(AssertionError):
        store.finish(connection, one)
    assert store.running(connection) == [one]


class RoundsOnDisk(RuleBasedStateMachine):
    """The store against a dict; what is not committed when the process dies is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="fep-rounds-")
        self.engine = opened(Path(self.directory.name) / "fep.sqlite")
        self.connection = self.engine.connect()
        self.committed: dict[str, Round] = {}
        self.rounds: dict[str, Round] = {}
        self.seconds = 0

    @initialize()
    def begin(self) -> None:
        self.insert("main", 0, plan_only=False)

    @rule(name=st.sampled_from(sorted(POOLS)), key=st.integers(0, 6), plan_only=st.booleans())
    def insert(self, name: str, key: int, plan_only: bool) -> None:
        self.seconds += 1
        new = begun(name, f"{name}@{key}", self.seconds, plan_only=plan_only)
        known = any(one.key == new.key for one in self.rounds.values())
        assert store.insert(self.connection, new) is not known
        if not known:
            self.rounds[new.round_id] = new

    @precondition(lambda self: self.rounds)
    @rule(
        data=st.data(),
        state=st.sampled_from(ItemState),
        fen=st.none() | st.integers(-FEN_MAX, FEN_MAX),
    )
    def update(self, data: st.DataObject, state: ItemState, fen: int | None) -> None:
        one = self.rounds[data.draw(st.sampled_from(sorted(self.rounds)))]
        places = data.draw(st.sets(st.integers(0, 2), max_size=3))
        for place in places:
            item = one.items[place]
            item.state, item.reason = state, f"r{fen}"
            item.amount = item.balance = None if fen is None else Cny(fen)
        store.update(self.connection, one.round_id, [one.items[place] for place in places])

    @precondition(lambda self: self.rounds)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        one = self.rounds[data.draw(st.sampled_from(sorted(self.rounds)))]
        one.state = RoundState.FINISHED
        one.finished_at = NOW + dt.timedelta(seconds=self.seconds)
        store.finish(self.connection, one)

    @rule()
    def commit(self) -> None:
        self.connection.commit()
        self.committed = {name: copied(one) for name, one in self.rounds.items()}

    @rule()
    def die(self) -> None:
        """The process ends: what was not committed is gone."""
        self.connection.close()
        self.engine.dispose()
        self.engine = opened(Path(self.directory.name) / "fep.sqlite")
        self.connection = self.engine.connect()
        self.rounds = {name: copied(one) for name, one in self.committed.items()}

    @invariant()
    def what_is_read_is_what_was_stored(self) -> None:
        by_time: list[Any] = sorted(self.rounds.values(), key=lambda one: one.started_at)
        running = [one for one in by_time if one.state is RoundState.RUNNING]
        assert store.running(self.connection) == running
        for one in by_time:
            assert store.one(self.connection, one.round_id) == one
            assert store.of_task(self.connection, one.items[2].sweep_task) == one.round_id
        for name in POOLS:
            moving = [one for one in by_time if one.pool == name and not one.plan_only]
            assert store.latest(self.connection, name) == (moving[-1] if moving else None)
        assert store.of_task(self.connection, TaskId("no-such-task")) is None

    def teardown(self) -> None:
        self.connection.close()
        self.engine.dispose()
        self.directory.cleanup()


RoundsOnDisk.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
TestRoundsOnDisk = RoundsOnDisk.TestCase
