"""Rounds over real banks, lanes and store: what moves, what never does, and what a crash leaves."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fep.adapters.host import Fault
from fep.alarms.state import AlarmKind
from fep.domain.ids import AccountNumber, TaskId, parse_name
from fep.domain.money import Cny
from fep.domain.order import Kind
from fep.links.service import BankLink
from fep.pooling import plan
from fep.pooling.config import Fixed, PoolConfig
from fep.pooling.service import (
    BALANCE_AGE_SECONDS_MAX,
    BALANCE_SECONDS,
    BALANCE_SECONDS_EACH,
    CLIENT,
    KEYS_SECONDS_MAX,
    MISSED_SECONDS_MAX,
    SCHEDULE_LOOK_SECONDS,
    SUBMIT_RETRY_SECONDS,
    PoolRefusedError,
)
from fep.store.database import StoreFullError
from fep.tasks import store as task_store
from fep.tasks.service import TaskService
from fep.tasks.state import Event, State
from fep.tasks.task import Admitted, Submission
from tests.pooling.rig import (
    CMB,
    PINGAN,
    TARGET,
    WAIT_SECONDS_MAX,
    Daemon,
    Gate,
    WallClock,
    World,
    number,
    open_world,
    pool,
    until,
)

A, B, C = number(PINGAN, 1), number(CMB, 1), number(PINGAN, 2)
BALANCES: dict[AccountNumber, str] = {A: "1000.00", B: "500.29", C: "100.00"}
POOL = pool(A, B, C)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two banks; A and B hold more than the threshold of 100.00, C just as much."""
    async with open_world(tmp_path, BALANCES) as made:
        yield made


@pytest.fixture
def jumping() -> MockClock:
    """A trio clock that goes as real time does, and that a test may put forward."""
    return MockClock(rate=1.0)


# -- a round ---------------------------------------------------------------------------------------


@pytest.mark.req("POOL-01", "POOL-02", "POOL-05", "POOL-06", "POOL-07", "POOL-11", "DEC-b", "DEC-c")
async def test_a_round_moves_what_is_above_each_threshold(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        found = await daemon.run_round()
        assert found["states"] == {"swept": 2, "nothing": 1}
        assert (found["planned"], found["swept"]) == ("1300.29", "1300.29")
        items = await daemon.items(found["round_id"])
        assert [(items[one]["balance"], items[one]["amount"]) for one in (A, B, C)] == [
            ("1000.00", "900.00"),
            ("500.29", "400.29"),
            ("100.00", "0.00"),
        ]
        assert items[C]["reason"] == "AT_OR_BELOW_THRESHOLD"
    assert [world.balance(one) for one in (A, B, C, TARGET)] == [
        "100.00",
        "100.00",
        "100.00",
        "1300.29",
    ]
    assert sorted(world.payments()) == [(A, TARGET, "900.00"), (B, TARGET, "400.29")]


@pytest.mark.req("POOL-03", "POOL-08", "POOL-09", "POOL-10", "POOL-17")
async def test_every_step_is_a_task_whose_body_is_fetched_by_its_id(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        found = await daemon.run_round()
        items = await daemon.items(found["round_id"])
        expected = {items[one]["balance_task"]: "balance" for one in (A, B, C)}
        expected |= {items[one]["sweep_task"]: "transfer" for one in (A, B)}
        tasks, _ = await daemon.tasks.page(CLIENT, state=None, bank=None, limit=100, before=None)
        assert {task["task_id"]: task["kind"] for task in tasks} == expected
        for task in tasks:
            chain = (await daemon.tasks.why(CLIENT, task["task_id"]))["events"]
            events = [event["event"] for event in chain]
            assert events[:3] == ["submitted", "offered", "body_taken"]
            assert not chain[0].get("digest"), "the id alone was handed over"
        await until(
            lambda: not daemon.tasks.status()["banks"][PINGAN]["open"], "no task is left open"
        )


@pytest.mark.req("POOL-07", "DEC-c")
async def test_a_second_round_right_after_moves_nothing(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        await daemon.run_round()
        again = await daemon.run_round()
        assert again["states"] == {"nothing": 3}
    assert len(world.payments()) == 2


@pytest.mark.req("POOL-06")
async def test_a_plan_moves_nothing(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        planned = await daemon.pools.plan("main")
        assert (planned["state"], planned["plan_only"]) == ("finished", True)
        assert planned["states"] == {"planned": 2, "nothing": 1}
        assert (planned["planned"], planned["swept"]) == ("1300.29", "0.00")
        assert set(await daemon.task_states(Kind.TRANSFER)) == set()
        # Nothing of it comes to life later, not even over a restart.
        assert (await daemon.pools.overview())[0]["last_round"] is None
    async with world.daemon(POOL) as daemon:
        found = await daemon.run_round()
        assert found["planned"] == "1300.29"
    assert len(world.payments()) == 2


async def test_a_plan_is_made_beside_a_round_and_counts_what_that_one_moves(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        world.chance[PINGAN][Fault.LANDED] = 1.0
        started = await daemon.pools.start_round("main", "operator op")
        await daemon.until_items(started["round_id"], "sweeping", "swept", "nothing")
        await until(lambda: world.balance(B) == "100.00")
        planned = await daemon.pools.plan("main")
        assert planned["planned"] == "0.00"
        assert planned["states"] == {"nothing": 3}
        world.chance[PINGAN].clear()


@pytest.mark.req("POOL-06")
async def test_a_second_round_is_refused_while_one_runs(world: World) -> None:
    async with world.daemon(POOL, pool(A, name="other", target=C)) as daemon:
        world.chance[PINGAN][Fault.LANDED] = 1.0
        started = await daemon.pools.start_round("main", "operator op")
        with pytest.raises(PoolRefusedError, match="still running") as refused:
            await daemon.pools.start_round("main", "operator op")
        assert refused.value.code == "BAD_STATE"
        await daemon.until_items(started["round_id"], "sweeping", "swept", "nothing")
        with pytest.raises(PoolRefusedError, match=started["round_id"]):
            await daemon.pools.start_round("main", "operator op")
        shown = {one["pool"]: one["last_round"] for one in await daemon.pools.overview()}
        assert shown["main"]["round_id"] == started["round_id"]
        assert shown["other"] is None


async def test_what_there_is_not_is_not_found(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        for act in (daemon.pools.plan("mian"), daemon.pools.start_round("mian", "operator op")):
            with pytest.raises(PoolRefusedError, match="there are: main") as refused:
                await act
            assert refused.value.code == "NOT_FOUND"
        with pytest.raises(PoolRefusedError, match="no round") as refused:
            await daemon.pools.round("main-1")
        assert refused.value.code == "NOT_FOUND"


@pytest.mark.req("POOL-12", "POOL-13", "POOL-14", "POOL-18")
async def test_pools_are_shown_with_their_last_round_and_next_time(world: World) -> None:
    clock = WallClock("2026-01-05T12:00:00")
    scheduled = pool(A, B, C, schedule="08:30, 17:30")
    async with world.daemon(scheduled, clock=clock) as daemon:
        await daemon.run_round()
        (shown,) = await daemon.pools.overview()
        assert (shown["pool"], shown["target"], shown["members"]) == ("main", TARGET, 3)
        assert shown["next_at"] == "2026-01-05T09:30:00.000+00:00"
        assert shown["last_round"]["swept"] == "1300.29"
        assert "items" not in shown["last_round"]


@pytest.fixture
def slow() -> MockClock:
    """A trio clock on which two seconds are twenty: nothing is late on a busy machine."""
    return MockClock(rate=0.1)


@pytest.mark.req("POOL-16")
async def test_many_accounts_of_many_banks_are_asked_and_swept_at_once(
    tmp_path: Path, slow: MockClock
) -> None:
    """Every answer comes two seconds late: all balances are under way together, and all sweeps."""
    many = [number(bank, place) for bank in (PINGAN, CMB) for place in range(1, 9)]
    async with open_world(tmp_path, dict.fromkeys(many, "150.00")) as world:
        world.workers = 8
        async with world.daemon(pool(*many)) as daemon:
            links = [lane.parts.link for lane in daemon.tasks.lanes.values()]
            await until(lambda: all(link.is_open for link in links))
            for chances in world.chance.values():
                chances[Fault.DELAYED] = 1.0

            def under_way() -> int:
                return sum(link.snapshot().in_flight for link in links)

            started = await daemon.pools.start_round("main", "operator op")
            for step in ("asking", "sweeping"):
                await daemon.until_items(started["round_id"], step)
                await until(lambda: under_way() == len(many), step)
                await wait_all_tasks_blocked(0.05)  # each answer lies there for its two seconds
                slow.jump(2.0)
            for chances in world.chance.values():
                chances.clear()
            while (await daemon.pools.round(started["round_id"]))["state"] != "finished":
                slow.jump(2.0)
                await trio.sleep(0.002)
            assert (await daemon.pools.round(started["round_id"]))["swept"] == "800.00"


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.req("POOL-12", "POOL-13", "FEP-27", "FEP-28")
async def test_a_bank_without_its_key_is_an_alarm_and_the_others_go_on(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        world.gates[CMB].close()
        found = await daemon.run_round()
        items = await daemon.items(found["round_id"])
        assert [items[one]["state"] for one in (A, B, C)] == ["swept", "nothing", "nothing"]
        assert items[B]["reason"] == "NO_UKEY"
        assert daemon.blocked() == ["no ready UKey for: cmb"]
        assert world.balance(B) == "500.29"
        assert items[B]["balance_task"] not in await daemon.task_states()

        world.gates[CMB].open()
        found = await daemon.run_round()
        assert daemon.blocked() == []
        assert found["swept"] == "400.29"


@pytest.mark.req("FEP-27", "FEP-28")
async def test_without_any_key_no_round_begins(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        world.gates[CMB].close()
        world.gates[PINGAN].close()
        with pytest.raises(PoolRefusedError, match="insert the keys") as refused:
            await daemon.pools.start_round("main", "operator op")
        assert refused.value.code == "KEY_UNAVAILABLE"
        assert daemon.blocked() == ["no ready UKey for: cmb, pingan"]
        assert (await daemon.pools.overview())[0]["last_round"] is None
        # A plan says for each account why nothing would move.
        planned = await daemon.pools.plan("main")
        assert [item["reason"] for item in planned["items"]] == ["NO_UKEY"] * 3


async def test_a_key_pulled_in_mid_round_makes_its_accounts_wait(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
        started = await daemon.pools.start_round("main", "operator op")
        world.gates[CMB].close()
        await until(lambda: world.balance(A) == "100.00")
        items = await daemon.items(started["round_id"])
        assert items[B]["state"] in ("asking", "planned", "sweeping")
        world.gates[CMB].open()
        assert (await daemon.finished(started["round_id"]))["swept"] == "1300.29"


@pytest.mark.req("FEP-28")
@pytest.mark.parametrize("restart", [False, True])
async def test_the_alarm_of_a_pool_that_is_gone_ends(world: World, restart: bool) -> None:
    async with world.daemon(POOL) as daemon:
        world.gates[CMB].close()
        await daemon.pools.plan("main")
        assert daemon.blocked()
        if not restart:
            daemon.pools.configure([], world.accounts)
            assert not daemon.blocked()
            return
    async with world.daemon() as daemon:
        assert not daemon.blocked()


# -- what goes wrong at the bank -------------------------------------------------------------------


@pytest.mark.req("POOL-02", "POOL-06")
async def test_an_account_whose_balance_fails_holds_up_no_other(world: World) -> None:
    unknown = number(PINGAN, 5)  # approved, but its bank has no such account
    async with world.daemon(pool(A, unknown, B)) as daemon:
        found = await daemon.run_round()
        items = await daemon.items(found["round_id"])
        assert [items[one]["state"] for one in (A, unknown, B)] == ["swept", "failed", "swept"]
        assert items[unknown]["reason"] == "BALANCE_UNAVAILABLE"
        assert items[unknown]["amount"] is None
        assert items[unknown]["sweep_task"] not in await daemon.task_states()


@pytest.mark.req("POOL-06", "POOL-11")
async def test_a_sweep_the_bank_refuses_is_failed_with_its_words(world: World) -> None:
    strange = number(PINGAN, 5)  # approved, but its bank has no such account to credit
    async with world.daemon(pool(A, target=strange)) as daemon:
        found = await daemon.run_round()
        (item,) = found["items"]
        assert item["state"] == "failed"
        assert item["reason"]
        assert found["swept"] == "0.00"
    assert world.balance(A) == "1000.00"


@pytest.mark.req("POOL-11")
async def test_a_sweep_whose_answer_is_lost_is_neither_lost_nor_sent_again(world: World) -> None:
    for chances in world.chance.values():
        chances[Fault.CLOSE_AFTER_BOOKING] = 1.0
    async with world.daemon(POOL) as daemon:
        found = await daemon.run_round()
        assert found["states"] == {"swept": 2, "nothing": 1}
        items = await daemon.items(found["round_id"])
        assert [world.booked(items[one]["sweep_task"]) for one in (A, B)] == [1, 1]


@pytest.mark.req("POOL-11")
async def test_a_sweep_that_came_back_later_is_returned(world: World) -> None:
    """退票, found days after the round: the round that is over says so."""
    async with world.daemon(POOL) as daemon:
        found = await daemon.run_round()
        sweep = (await daemon.items(found["round_id"]))[A]["sweep_task"]
        await returned(daemon, sweep)
    async with world.daemon(POOL) as daemon:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (await daemon.items(found["round_id"]))[A]["state"] == "swept":
                await trio.sleep(0.002)
        items = await daemon.items(found["round_id"])
        assert [items[one]["state"] for one in (A, B, C)] == ["returned", "swept", "nothing"]
        after = await daemon.pools.round(found["round_id"])
        assert (after["state"], after["swept"]) == ("finished", "400.29")
        view = await daemon.tasks.get(CLIENT, TaskId(sweep))
        assert view["state"] == "returned"
        # The pool is not blocked by it, and nothing is sent again for it.
        assert (await daemon.run_round())["states"] == {"nothing": 3}


async def returned(daemon: Daemon, task_id: str) -> None:
    """Record what the watch over successes finds: the payment came back."""
    task = await daemon.store.read(lambda c: task_store.one(c, task_id))
    assert task is not None
    now = dt.datetime.now(dt.UTC)
    change = task_store.Change(
        task.seq,
        State.SUCCEEDED,
        State.RETURNED,
        (Event.PROVED_RETURNED,),
        "the bank's statement says: returned (退票)",
        now,
        {"delivery": task_store.OWED, "bank_code": "RJ01"},
    )
    await daemon.store.write(lambda c: task_store.apply(c, [change], "c"))


# -- no account is swept twice over ----------------------------------------------------------------


@pytest.mark.req("POOL-05", "DEC-b")
async def test_payments_under_way_are_taken_off_the_balance(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        world.chance[PINGAN][Fault.LANDED] = 1.0  # taken by the bank, not booked yet
        answer = await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "850.00"))
        assert isinstance(answer, Admitted)
        await daemon.until_task("PAY-1", "accepted")
        world.chance[PINGAN].clear()
        found = await daemon.run_round()
        items = await daemon.items(found["round_id"])
        assert (items[A]["balance"], items[A]["amount"]) == ("1000.00", "50.00")


@pytest.mark.req("POOL-05", "DEC-b")
async def test_a_payment_that_ends_while_the_balance_is_asked_is_taken_off(
    world: World, jumping: MockClock
) -> None:
    """The bank reads the balance, books a payment, answers the payment first: an old balance."""
    async with world.daemon(pool(A)) as daemon:
        lane = daemon.tasks.lanes[PINGAN]
        await until(lambda: lane.parts.link.is_open)
        world.chance[PINGAN][Fault.DELAYED] = 1.0
        started = await daemon.pools.start_round("main", "operator op")
        balance_task = started["items"][0]["balance_task"]
        await until(lambda: lane.in_flight == 1)
        await until(lambda: lane.parts.link.snapshot().in_flight == 1)
        await wait_all_tasks_blocked(0.05)  # the answer lies at the bank for its two seconds
        world.chance[PINGAN].clear()
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "850.00"))
        await daemon.until_task("PAY-1", "succeeded")
        assert (await daemon.task_states())[balance_task] not in ("succeeded", "failed")
        jumping.jump(2.0)
        found = await daemon.finished(started["round_id"])
        assert (found["items"][0]["balance"], found["items"][0]["amount"]) == ("1000.00", "50.00")
    assert world.balance(A) == "100.00"


@pytest.mark.req("POOL-05", "DEC-b")
async def test_two_pools_of_one_account_never_plan_with_the_same_money(world: World) -> None:
    """The configuration refuses such pools, but a reload in mid-round can still make them meet.

    Both balances are the same; the first sweep is an id in the queue, whose body shows no amount.
    """
    first = pool(A, rule=Fixed(Cny(80_000)))
    second = pool(A, name="second", rule=Fixed(Cny(80_000)))
    async with world.daemon(first, second) as daemon:
        one = await daemon.pools.start_round("main", "operator op")
        two = await daemon.pools.start_round("second", "operator op")
        done = [await daemon.finished(each["round_id"]) for each in (one, two)]
        assert sorted(each["items"][0]["amount"] for each in done) == ["200.00", "800.00"]
        assert [each["items"][0]["state"] for each in done] == ["swept", "swept"]
    assert world.balance(A) == "0.00"


def _in_flight(link: BankLink, number: int) -> bool:
    return link.snapshot().in_flight == number


NAMES = ("main", "second")


@attrs.define
class _Shared:
    """The tasks as pooling sees them where machines share a store: what was spent is in it."""

    tasks: TaskService

    @property
    def sharing(self) -> _Shared:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tasks, name)


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "on a shared store"])
async def test_a_round_knows_what_another_has_swept_since_its_balance_was_asked_for(
    world: World, jumping: MockClock, *, shares: bool
) -> None:
    """A pool is renamed in mid-round, and the second round's answer is older than the sweep."""
    pools = [pool(A, name=name, threshold="600.00", rule=Fixed(Cny(50_000))) for name in NAMES]
    async with world.daemon(pools[0]) as daemon:
        if shares:
            daemon.pools._tasks = cast("TaskService", _Shared(daemon.tasks))
        lane = daemon.tasks.lanes[PINGAN]
        await until(lambda: lane.parts.link.is_open)
        world.chance[PINGAN][Fault.DELAYED] = 1.0
        rounds = []
        for number, name in enumerate(NAMES, 1):
            daemon.pools.configure(pools, world.accounts)
            rounds.append((await daemon.pools.start_round(name, "operator op"))["round_id"])
            await until(partial(_in_flight, lane.parts.link, number))
            await wait_all_tasks_blocked(0.05)
            if name == NAMES[-1]:
                world.chance[PINGAN].clear()
            jumping.jump(1.0)
        found = []
        for round_id in rounds:
            found.append((await daemon.finished(round_id))["items"][0])
            jumping.jump(1.0)
        assert [one["state"] for one in found] == ["swept", "nothing"]
    assert world.balance(A) == "500.00"


# -- configuration in mid-round --------------------------------------------------------------------

GONE = {
    "the pool": (),
    "the member": (pool(B, C),),
    "the member, which is the target now": (pool(B, C, target=A),),
}


@pytest.mark.req("POOL-15")
@pytest.mark.parametrize("left", GONE.values(), ids=GONE.keys())
async def test_what_is_taken_out_of_the_configuration_moves_no_more(
    world: World, left: tuple[PoolConfig, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon(POOL) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        lane, real = daemon.tasks.lanes[PINGAN], plan.judge

        def judge(*given: Any) -> Any:
            # What only waits is not sent any more.
            lane.drain()
            return real(*given)

        monkeypatch.setattr(plan, "judge", judge)
        started = await daemon.pools.start_round("main", "operator op")
        await daemon.until_task(started["items"][0]["balance_task"], "succeeded")
        await until(lambda: "-s1" in "".join(list_ids(daemon)), "A's sweep waits as an id")
        daemon.pools.configure(left, world.accounts)
        lane.resume()
        found = await daemon.finished(started["round_id"])
        items = {item["account"]: item for item in found["items"]}
        assert items[A]["state"] == "failed"
        states = await daemon.task_states()
        assert states[items[A]["sweep_task"]] == "failed"
    assert A not in {payer for payer, _, _ in world.payments()}


def list_ids(daemon: Daemon) -> list[str]:
    """Return the ids of the open tasks of Ping An."""
    return [task.task_id for task in daemon.tasks.tasks_of(PINGAN)]


@pytest.mark.req("POOL-15")
async def test_a_balance_that_comes_for_an_account_taken_out_plans_nothing(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        for lane in daemon.tasks.lanes.values():
            lane.drain()
        started = await daemon.pools.start_round("main", "operator op")
        daemon.pools.configure([], world.accounts)
        for lane in daemon.tasks.lanes.values():
            lane.resume()
        found = await daemon.finished(started["round_id"])
        assert {(item["state"], item["reason"]) for item in found["items"]} == {
            ("failed", "NOT_CONFIGURED")
        }
    assert world.payments() == []


async def test_a_bank_that_is_gone_fails_its_accounts_and_the_round_ends(world: World) -> None:
    """Its ids can't be handed over any more; neither this round nor a later one hangs on that."""
    async with world.daemon(POOL) as daemon:
        for lane in daemon.tasks.lanes.values():
            lane.drain()
        daemon.store.cut_at, daemon.store.after = daemon.store.count + 1, True
        # Dies when the round is on disk, and before any id is.
        await daemon.pools.start_round("main", "operator op")
    world.banks = (PINGAN,)
    async with world.daemon(pool(A, C)) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await until(lambda: world.balance(A) == "100.00", "A waits for B's bank")
        (shown,) = await daemon.pools.overview()
        found = await daemon.finished(shown["last_round"]["round_id"])
        items = {item["account"]: item for item in found["items"]}
        assert items[B]["state"] == "failed"
        assert items[B]["reason"].startswith("UNKNOWN_BANK")
        assert (await daemon.run_round())["states"] == {"nothing": 2}
    assert world.balance(B) == "500.29"


@pytest.mark.req("POOL-11")
async def test_a_sweep_that_may_have_left_is_not_failed_when_its_bank_is_gone(world: World) -> None:
    world.chance[CMB][Fault.LANDED] = 1.0
    async with world.daemon(POOL) as daemon:
        started = await daemon.pools.start_round("main", "operator op")
        sweep = started["items"][1]["sweep_task"]
        await daemon.until_task(sweep, "accepted")
        await daemon.until_items(started["round_id"], "swept", "sweeping", "nothing")
    world.banks = (PINGAN,)
    async with world.daemon(pool(A, C)) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await daemon.pools.plan("main")
        items = await daemon.items(started["round_id"])
        assert items[B]["state"] == "sweeping", "only evidence closes it"


# -- the order of a round survives who gave it, the disk, and itself -------------------------------


@pytest.mark.parametrize("moment", range(6))
async def test_a_round_goes_on_when_who_ordered_it_hangs_up(world: World, moment: int) -> None:
    async with world.daemon(POOL) as daemon:
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.pools.start_round, "main", "operator op")
                for _ in range(moment):
                    await trio.lowlevel.checkpoint()
                caller.cancel()
        await until(lambda: world.balance(TARGET) == "1300.29", "the round hangs")
        (shown,) = await daemon.pools.overview()
        await daemon.finished(shown["last_round"]["round_id"])
        assert (await daemon.run_round())["states"] == {"nothing": 3}


async def test_a_full_disk_refuses_a_round_and_leaves_nothing_of_it(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        await fill(daemon)
        with pytest.raises(StoreFullError):
            await daemon.pools.start_round("main", "operator op")
        (shown,) = await daemon.pools.overview()
        assert shown["last_round"] is None
        await limit_pages(daemon, room=10_000)
        # The pool is not blocked by a round that is nowhere but in memory.
        assert (await daemon.run_round())["swept"] == "1300.29"


async def limit_pages(daemon: Daemon, room: int) -> None:
    """Let the store's file grow by so many pages and no more."""

    def work(connection: Any) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + room}").scalar_one()

    await daemon.store.write(work)


async def test_a_full_queue_of_our_own_ids_is_worked_off(world: World, jumping: MockClock) -> None:
    """B's question for its body waits while A's transfer is refused: both must go on."""
    world.queue_max = 1
    async with world.daemon(POOL) as daemon:
        daemon.tasks.lanes[CMB].drain()
        started = await daemon.pools.start_round("main", "operator op")
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (await daemon.items(started["round_id"]))[A]["state"] != "planned":
                await trio.sleep(0.002)
        await wait_all_tasks_blocked(0.05)  # A's transfer was refused
        daemon.tasks.lanes[CMB].resume()
        limit = trio.current_time() + 60 * SUBMIT_RETRY_SECONDS
        while (await daemon.pools.round(started["round_id"]))["state"] != "finished":
            assert trio.current_time() < limit, await daemon.pools.round(started["round_id"])
            await trio.sleep(0.05)
            jumping.jump(SUBMIT_RETRY_SECONDS)
        assert (await daemon.pools.round(started["round_id"]))["swept"] == "1300.29"


async def test_a_task_that_no_round_has_is_refused_at_once(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        answers: list[Any] = []
        alien = Submission(TaskId("alien-s1"), PINGAN, Kind.TRANSFER)
        daemon.tasks.submit(CLIENT, [alien], answers.extend)
        await daemon.until_task("alien-s1", "failed")
    assert world.payments() == []


@pytest.mark.req("POOL-15")
def test_no_session_can_answer_in_the_name_of_pooling() -> None:
    with pytest.raises(ValueError, match="client must be"):
        parse_name(CLIENT, "client")


@pytest.mark.parametrize("moment", ["asking", "planned", "sweeping", "swept"])
async def test_the_service_started_again_goes_on_where_it_stood(world: World, moment: str) -> None:
    """As its supervisor does after a defect: the same object runs anew in the same process."""
    async with world.daemon(POOL) as daemon:
        if moment == "sweeping":
            world.chance[PINGAN][Fault.LANDED] = 1.0
        started = await daemon.pools.start_round("main", "operator op")
        if moment != "asking":
            last = {"planned": ("planned", "sweeping", "swept", "nothing"), "sweeping": None}
            states = last.get(moment) or (moment, "swept", "nothing")
            await daemon.until_items(started["round_id"], *states)
        if moment == "sweeping":
            await until(lambda: world.book.payments(PINGAN))
        daemon.pooling.cancel()
        await until(lambda: CLIENT not in daemon.tasks.present)
        world.chance[PINGAN].clear()
        await daemon.nursery.start(world.pooling, daemon)
        if moment == "sweeping":
            items = await daemon.items(started["round_id"])
            assert items[A]["state"] == "sweeping"
            world.book.settle_landed(
                PINGAN, world.book.payments(PINGAN)[0].client_ref, dt.datetime.now(dt.UTC), ok=True
            )
        found = await daemon.finished(started["round_id"])
        assert found["states"] == {"swept": 2, "nothing": 1}
        # And the pool may have its next round.
        assert (await daemon.run_round())["states"] == {"nothing": 3}
    assert len(world.payments()) == 2


@pytest.mark.req("POOL-06", "POOL-11")
@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
async def test_the_service_started_again_believes_the_disk_and_not_its_memory(
    world: World, after: bool
) -> None:
    """It ends at each of its changes in turn, when memory is ahead of the disk or behind it."""
    moved = [A, B]
    for at in range(2, 30):
        async with world.daemon(pool(*moved)) as daemon:
            await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
            store = daemon.store
            store.count, store.of, store.cut_at, store.after = 0, "fep.pooling", at, after
            store.dying = lambda: daemon.pooling.cancel()  # noqa: PLW0108 - a new one each time
            started = await daemon.pools.start_round("main", "operator op")
            with trio.fail_after(WAIT_SECONDS_MAX):
                while (found := await daemon.pools.round(started["round_id"]))[
                    "state"
                ] == "running":
                    if daemon.pooling.cancel_called:
                        break
                    await trio.sleep(0.002)
            if not daemon.pooling.cancel_called:
                break
            await until(lambda: CLIENT not in daemon.tasks.present)
            await daemon.nursery.start(world.pooling, daemon)
            found = await daemon.finished(started["round_id"])
            assert found["states"] == {"swept": len(moved)}, at
            for item in found["items"]:
                assert world.booked(item["sweep_task"]) == 1
                back = world.transfer(TARGET, item["account"], item["amount"])
                await daemon.submit(f"BACK-{at}-{item['account']}", PINGAN, back)
                await daemon.until_task(f"BACK-{at}-{item['account']}", "succeeded")
    assert at > 4


async def test_a_lane_that_inquires_when_all_ends_ends_too(world: World) -> None:
    """The link refuses at once and without waiting: asking on and on would stop the whole loop."""
    async with world.daemon(POOL) as daemon:
        world.chance[PINGAN][Fault.LANDED] = 1.0
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "850.00"))
        await daemon.until_task("PAY-1", "accepted")
        lane = daemon.tasks.lanes[PINGAN]
        await until(lambda: lane.in_flight == 0)
        lane._inquiries.extend(daemon.tasks.tasks_of(PINGAN))
        lane._idle.unpark()
        daemon.end()


async def test_who_waits_for_a_plan_gets_it_when_the_service_starts_again(world: World) -> None:
    async with world.daemon(POOL) as daemon:
        for lane in daemon.tasks.lanes.values():
            lane.drain()
        plans: list[dict[str, Any]] = []

        async def ask() -> None:
            plans.append(await daemon.pools.plan("main"))

        daemon.nursery.start_soon(ask)
        await until(lambda: daemon.tasks.status()["open"] == 3)
        daemon.pooling.cancel()
        await until(lambda: CLIENT not in daemon.tasks.present)
        await daemon.nursery.start(world.pooling, daemon)
        for lane in daemon.tasks.lanes.values():
            lane.resume()
        await until(lambda: plans)
        assert (plans[0]["state"], plans[0]["planned"]) == ("finished", "1300.29")


# -- crashes ---------------------------------------------------------------------------------------


@pytest.mark.req("POOL-06", "POOL-11", "POOL-14")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("payer", "after"),
    [(A, False), (B, True)],
    ids=["before the commit, paid at once", "after the commit, paid later"],
)
@pytest.mark.parametrize("of", ["", "fep.pooling"], ids=["of the daemon", "of pooling"])
async def test_a_round_survives_the_end_of_the_process_at_every_change(
    tmp_path: Path, payer: AccountNumber, after: bool, of: str
) -> None:
    """Dies at the first change, at the second, and so on until a round needs no more changes.

    How the queue's changes fall between is chance: of pooling's own, counted alone, none is missed.
    """
    at, uncut = 0, False
    seen: set[str] = set()
    while True:
        at += 1
        directory = tmp_path / f"{at}"
        directory.mkdir()
        async with open_world(directory, {payer: "1000.00"}) as world:
            world.banks = (world.accounts[payer].bank,)
            async with world.daemon(pool(payer), cut_at=at, of=of, after=after) as daemon:
                await daemon.run_round()
                uncut = True
            if uncut:
                break
            # As the dead one left it: the next one goes on at once.
            with contextlib.closing(sqlite3.connect(directory / "fep.sqlite")) as db:
                seen |= {state for (state,) in db.execute("select state from pool_item")}
            async with world.daemon(pool(payer)) as daemon:
                (shown,) = await daemon.pools.overview()
                if shown["last_round"] is None:
                    found = await daemon.run_round()
                else:
                    found = await daemon.finished(shown["last_round"]["round_id"])
                (item,) = found["items"]
                swept = item["state"] == "swept"
                assert world.booked(item["sweep_task"]) == swept, (at, item)
                if not swept:
                    # Died before the first byte: the bank's "no record" closed it, by its card.
                    assert item["state"] == "failed", (at, item)
                    await daemon.run_round()
                assert (world.balance(payer), world.balance(TARGET)) == ("100.00", "900.00"), at
    if of:
        assert seen >= {"asking", "planned", "swept"}
    else:
        assert at > 10


# -- the schedule ----------------------------------------------------------------------------------

SCHEDULED = pool(A, schedule="08:30, 17:30")


async def rounds(daemon: Daemon, expected: int) -> None:
    """Wait for so many rounds, counted by their questions for A's balance; never for more."""
    limit = time.monotonic() + WAIT_SECONDS_MAX
    while (count := len(await daemon.task_states(Kind.BALANCE))) < expected:
        assert time.monotonic() < limit, f"{count} rounds, not {expected}"
        await trio.sleep(0.002)
    assert count == expected


async def looked(jumping: MockClock, daemon: Daemon, times: int = 2) -> None:
    """Let the schedule look again."""
    for _ in range(times):
        await wait_all_tasks_blocked(0.01)
        jumping.jump(SCHEDULE_LOOK_SECONDS)
    await wait_all_tasks_blocked(0.02)


@pytest.mark.req("POOL-13", "POOL-14", "POOL-18")
async def test_a_round_is_run_once_when_it_is_due_and_every_day_again(
    world: World, jumping: MockClock
) -> None:
    clock = WallClock("2026-01-05T08:29:59")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await looked(jumping, daemon)
        await rounds(daemon, 0)
        clock.set("2026-01-05T08:30:00")
        await looked(jumping, daemon)
        await until(lambda: world.balance(A) == "100.00")
        await rounds(daemon, 1)
        (shown,) = await daemon.pools.overview()
        assert shown["last_round"]["note"] == "schedule 08:30"
        for moment, count in (
            ("2026-01-05T08:30:20", 1),
            ("2026-01-05T17:29:59", 1),
            ("2026-01-05T17:30:19", 2),
            ("2026-01-06T00:00:00", 2),
            ("2026-01-06T08:30:05", 3),
        ):
            clock.set(moment)
            await looked(jumping, daemon)
            await rounds(daemon, count)


@pytest.mark.req("POOL-14")
async def test_a_clock_that_steps_makes_no_round_twice_and_none_hours_late(
    world: World, jumping: MockClock
) -> None:
    clock = WallClock("2026-01-05T08:30:10")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await looked(jumping, daemon)
        await rounds(daemon, 1)
        for moment in (
            "2026-01-05T08:29:00",  # set back over the due moment
            "2026-01-05T08:30:30",
            "2026-01-05T07:00:00",
            "2026-01-05T08:31:00",
            # The machine slept over 17:30 until late: such a round is not caught up.
            "2026-01-05T17:50:00",
        ):
            clock.set(moment)
            await looked(jumping, daemon)
            await rounds(daemon, 1)
        clock.set("2026-01-06T08:30:00")
        await looked(jumping, daemon)
        await rounds(daemon, 2)


@pytest.mark.req("POOL-14")
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("wrong", "right", "due"),
    [
        # A day ahead: the next day's round.
        ("2026-01-06T08:30:05", "2026-01-05T12:00:00", "2026-01-06T08:30:00"),
        # Eight hours ahead, as a clock that has Shanghai's time for UTC: the same day's second.
        ("2026-01-05T17:30:05", "2026-01-05T09:30:06", "2026-01-05T17:30:00"),
    ],
    ids=["a day", "eight hours"],
)
async def test_a_round_run_by_a_clock_that_was_ahead_is_not_taken_for_the_one_to_come(
    world: World,
    jumping: MockClock,
    wrong: str,
    right: str,
    due: str,
    *,
    restart: bool,
) -> None:
    clock = WallClock(wrong)
    async with AsyncExitStack() as lives:
        daemon = await lives.enter_async_context(world.daemon(SCHEDULED, clock=clock))
        await until(lambda: world.balance(A) == "100.00")
        await rounds(daemon, 1)
        await until(lambda: not daemon.pools._rounds)
        if restart:
            await lives.aclose()
        clock.set(right)
        if restart:
            daemon = await lives.enter_async_context(world.daemon(SCHEDULED, clock=clock))
            await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await looked(jumping, daemon)
        await rounds(daemon, 1)
        # What the account got meanwhile is what the second round moves, by its own balance.
        await daemon.submit("BACK-1", PINGAN, world.transfer(TARGET, A, "300.00"))
        await daemon.until_task("BACK-1", "succeeded")
        clock.set(due)
        await looked(jumping, daemon)
        await until(lambda: world.balance(A) == "100.00")
        await rounds(daemon, 2)
        assert len({(payer, amount) for payer, _, amount in world.payments()}) == 3
        await looked(jumping, daemon)
        await rounds(daemon, 2)


@pytest.mark.req("POOL-14")
async def test_a_round_that_still_runs_when_the_clock_is_set_right_is_not_the_one_to_come(
    world: World, jumping: MockClock
) -> None:
    world.chance[PINGAN][Fault.LANDED] = 1.0
    clock = WallClock("2026-01-06T08:30:05")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: world.book.payments(PINGAN))
        clock.set("2026-01-05T12:00:00")
        await looked(jumping, daemon)
        clock.set("2026-01-06T08:30:00")
        await looked(jumping, daemon)
        (cause,) = daemon.causes(AlarmKind.POOL_STALLED)
        assert "the round of 2026-01-06 08:30 did not begin" in cause
        await rounds(daemon, 1)
    assert len(world.payments()) == 1


@pytest.mark.req("POOL-14")
async def test_a_round_missed_by_a_stop_is_caught_up_once_if_it_is_not_too_late(
    world: World, jumping: MockClock
) -> None:
    due = "2026-01-05T08:30:00"
    late = dt.datetime.fromisoformat(due) + dt.timedelta(seconds=MISSED_SECONDS_MAX)
    clock = WallClock(late.isoformat())
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await looked(jumping, daemon)
        await rounds(daemon, 0)
    clock.set((late - dt.timedelta(seconds=1)).isoformat())
    for _ in range(2):
        async with world.daemon(SCHEDULED, clock=clock) as daemon:
            await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
            await looked(jumping, daemon)
            await until(lambda: world.balance(A) == "100.00")
            await rounds(daemon, 1)


@pytest.mark.req("POOL-14", "FEP-27")
async def test_a_round_caught_up_waits_until_the_keys_are_read(
    world: World, jumping: MockClock
) -> None:
    """A slot says that it has started before its card is known: no reason to leave its bank out."""
    world.gates[PINGAN].close()
    clock = WallClock("2026-01-05T08:31:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await wait_all_tasks_blocked(0.05)
        assert daemon.blocked() == []
        world.gates[PINGAN].open()
        await until(lambda: world.balance(A) == "100.00")
        assert daemon.blocked() == []


@pytest.mark.req("POOL-14", "FEP-28")
async def test_a_key_that_stays_away_is_an_alarm_all_the_same(
    world: World, jumping: MockClock
) -> None:
    world.gates[PINGAN].close()
    clock = WallClock("2026-01-05T08:31:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await wait_all_tasks_blocked(0.05)
        jumping.jump(KEYS_SECONDS_MAX)
        await until(daemon.blocked)
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (shown := (await daemon.pools.overview())[0]["last_round"]) is None:
                await trio.sleep(0.002)
        found = await daemon.finished(shown["round_id"])
        assert found["items"][0]["reason"] == "NO_UKEY"


@pytest.mark.req("POOL-14")
async def test_a_round_that_is_due_while_the_last_one_runs_is_left_out(
    world: World, jumping: MockClock
) -> None:
    world.chance[PINGAN][Fault.LANDED] = 1.0
    clock = WallClock("2026-01-05T08:30:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await until(lambda: world.book.payments(PINGAN))
        clock.set("2026-01-05T17:30:00")
        await looked(jumping, daemon)
        await rounds(daemon, 1)
    assert len(world.payments()) == 1


@pytest.mark.req("POOL-02", "POOL-14")
async def test_a_bank_that_is_drained_holds_up_no_other_account_and_no_later_round(
    world: World, jumping: MockClock
) -> None:
    clock = WallClock("2026-01-05T08:30:00")
    async with world.daemon(pool(A, B, schedule="08:30, 17:30"), clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
        daemon.tasks.lanes[CMB].drain()
        await until(lambda: world.balance(A) == "100.00")
        (shown,) = await daemon.pools.overview()
        first = shown["last_round"]
        await daemon.until_items(first["round_id"], "asking", "swept")
        world.queue_clock.by = dt.timedelta(seconds=BALANCE_SECONDS + 2 * BALANCE_SECONDS_EACH)
        await looked(jumping, daemon)
        asked = (await daemon.items(first["round_id"]))[B]["balance_task"]
        await daemon.until_task(asked, "expired")
        found = await daemon.finished(first["round_id"])
        left = next(item for item in found["items"] if item["account"] == B)
        assert (left["state"], left["reason"]) == ("failed", "BALANCE_UNAVAILABLE")
        clock.set("2026-01-05T17:30:00")
        await looked(jumping, daemon)
        await until(lambda: len(daemon.pools._rounds) == 1)
        (shown,) = await daemon.pools.overview()
        assert shown["last_round"]["note"] == "schedule 17:30"
        assert daemon.causes(AlarmKind.POOL_STALLED) == []
    assert world.balance(B) == "500.29"


@pytest.mark.req("POOL-02")
async def test_a_balance_that_comes_when_the_round_waits_no_more_moves_nothing(
    world: World, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has the question's body, so that it does not expire there, and its key is out."""
    real = plan.balance_body

    def body(item: plan.Item) -> dict[str, Any]:
        if item.account == B:
            world.gates[CMB].close()
        return real(item)

    monkeypatch.setattr(plan, "balance_body", body)
    async with world.daemon(pool(A, B)) as daemon:
        await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
        started = await daemon.pools.start_round("main", "operator op")
        round_id, balance_task = started["round_id"], started["items"][1]["balance_task"]
        await daemon.until_task(balance_task, "fetched")
        await until(lambda: world.balance(A) == "100.00")
        jumping.jump(BALANCE_SECONDS + 2 * BALANCE_SECONDS_EACH)
        await looked(jumping, daemon)
        found = await daemon.finished(round_id)
        left = found["items"][1]
        assert (left["state"], left["reason"]) == ("failed", "BALANCE_UNAVAILABLE")
        world.gates[CMB].open()
        await daemon.until_task(balance_task, "succeeded")
        await until(lambda: not daemon.tasks.box(CLIENT).told)
        assert (await daemon.pools.round(round_id)) == found
        assert left["sweep_task"] not in await daemon.task_states()
    assert world.balance(B) == "500.29"


def lose_the_key(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Take CMB's key out at a step of the plan for the account there.

    At ``sweep_body`` the queue has the sweep's body and waits; at ``judge`` it has only the id.
    """
    real = getattr(plan, step)

    def losing(item: plan.Item, *given: Any) -> Any:
        if item.account == B:
            world.gates[CMB].close()
        return real(item, *given)

    monkeypatch.setattr(plan, step, losing)


async def a_sweep_that_waits(daemon: Daemon) -> tuple[str, str]:
    """Start a round whose first sweep is done, and whose second has its body and can't be sent.

    Returns the ids of the round and of the second.
    """
    await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
    started = await daemon.pools.start_round("main", "operator op")
    first, second = (item["sweep_task"] for item in started["items"])
    await daemon.until_task(first, "succeeded")
    await daemon.until_task(second, "fetched")
    return started["round_id"], second


async def taken_back(daemon: Daemon, round_id: str, sweep_task: str) -> None:
    """Wait until the second sweep of a round was cancelled for its balance's age."""
    await daemon.until_task(sweep_task, "cancelled")
    found = await daemon.finished(round_id)
    assert [one["state"] for one in found["items"]] == ["swept", "failed"]
    assert found["items"][1]["reason"] == "BALANCE_TOO_OLD"


@pytest.mark.req("POOL-02")
async def test_a_sweep_that_the_queue_has_and_can_not_send_for_an_hour_is_taken_back(
    world: World, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go out when the bank is resumed, by a balance of long ago."""
    lose_the_key(world, monkeypatch, "sweep_body")
    clock = WallClock("2026-01-05T08:29:00")
    async with world.daemon(pool(A, B), clock=clock) as daemon:
        round_id, sweep_task = await a_sweep_that_waits(daemon)
        await looked(jumping, daemon)
        assert (await daemon.task_states())[sweep_task] == "fetched"
        clock.set("2026-01-05T09:29:30")
        await looked(jumping, daemon)
        await taken_back(daemon, round_id, sweep_task)
        world.gates[CMB].open()
        await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
    assert world.balance(B) == "500.29"


@pytest.mark.req("POOL-02")
async def test_a_sweep_that_waited_while_the_daemon_was_down_is_not_sent(
    world: World, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank's lane runs before pooling does, and sends at once what has its body."""
    lose_the_key(world, monkeypatch, "sweep_body")
    clock = WallClock("2026-01-05T08:29:00")
    async with world.daemon(pool(A, B), clock=clock) as daemon:
        round_id, sweep_task = await a_sweep_that_waits(daemon)
    world.queue_clock.by = dt.timedelta(hours=7)
    clock.set("2026-01-05T15:29:00")
    world.gates[CMB].open()
    async with world.daemon(pool(A, B), clock=clock) as daemon:
        await taken_back(daemon, round_id, sweep_task)
    assert world.balance(B) == "500.29"


@pytest.mark.req("POOL-02")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_sweep_whose_body_the_queue_has_is_not_sent_when_its_account_has_paid_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """Else the account falls below its threshold by what it paid while the key was away."""
    lose_the_key(world, monkeypatch, "sweep_body")
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(world.daemon(pool(A, B)))
        round_id, _sweep = await a_sweep_that_waits(daemon)
        await daemon.submit("PAY-1", CMB, world.transfer(B, A, "50.00"))
        if restarted:
            await stack.aclose()
            daemon = await stack.enter_async_context(world.daemon(pool(A, B)))
        world.gates[CMB].open()
        found = await daemon.finished(round_id)
        await daemon.until_task("PAY-1", "succeeded")
        assert [one["state"] for one in found["items"]] == ["swept", "failed"]
        assert found["items"][1]["reason"] == "PAID_MEANWHILE"
    assert world.balance(B) == "450.29"


@pytest.mark.req("POOL-02")
async def test_a_clock_set_back_makes_no_balance_younger_than_the_time_that_has_passed(
    world: World, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shanghai's time for UTC, set right: hours later both clocks show nearly the same again."""
    lose_the_key(world, monkeypatch, "sweep_body")
    clock = WallClock("2026-01-05T17:30:00")
    world.queue_clock.by = dt.timedelta(hours=8)
    async with world.daemon(pool(A, B), clock=clock) as daemon:
        round_id, sweep_task = await a_sweep_that_waits(daemon)
        jumping.jump(8 * 3600.0)
        await looked(jumping, daemon)
        await taken_back(daemon, round_id, sweep_task)
    assert world.balance(B) == "500.29"


@pytest.mark.req("POOL-02")
async def test_a_sweep_that_is_planned_and_can_not_be_asked_for_is_taken_back_too(
    world: World, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_key(world, monkeypatch, "judge")
    clock = WallClock("2026-01-05T08:29:00")
    async with world.daemon(pool(A, B), clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[CMB].parts.link.is_open)
        started = await daemon.pools.start_round("main", "operator op")
        sweep_task = started["items"][1]["sweep_task"]
        await daemon.until_task(started["items"][0]["sweep_task"], "succeeded")
        await daemon.until_task(sweep_task, "queued")
        clock.set("2026-01-05T09:29:30")
        await looked(jumping, daemon)
        await taken_back(daemon, started["round_id"], sweep_task)
    assert world.balance(B) == "500.29"


@pytest.mark.req("FEP-28")
async def test_the_alarm_of_a_missing_key_goes_when_the_key_is_in(
    world: World, jumping: MockClock
) -> None:
    async with world.daemon(POOL) as daemon:
        world.gates[CMB].close()
        await daemon.run_round()
        await looked(jumping, daemon)
        assert daemon.blocked() == ["no ready UKey for: cmb"]
        world.gates[CMB].open()
        await looked(jumping, daemon)
        assert daemon.blocked() == []


@pytest.mark.req("POOL-13")
async def test_a_round_that_fell_into_a_clock_that_was_ahead_is_caught_up(
    world: World, jumping: MockClock
) -> None:
    clock = WallClock("2026-01-05T08:20:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await looked(jumping, daemon)
        for shown in ("2026-01-05T09:50:00", "2026-01-05T08:40:00"):
            clock.set(shown)
            await looked(jumping, daemon)
        await rounds(daemon, 1)
        clock.set("2026-01-05T08:39:59")
        await looked(jumping, daemon)
        await rounds(daemon, 1)


@pytest.mark.req("POOL-14")
async def test_a_round_by_hand_that_has_just_begun_is_no_alarm_when_the_next_one_is_due(
    world: World, jumping: MockClock
) -> None:
    world.chance[PINGAN][Fault.LANDED] = 1.0
    clock = WallClock("2026-01-05T08:29:58")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await daemon.pools.start_round("main", "operator op")
        await until(lambda: world.book.payments(PINGAN))
        clock.set("2026-01-05T08:30:01")
        await looked(jumping, daemon)
        assert len(daemon.pools._rounds) == 1
        assert daemon.causes(AlarmKind.POOL_STALLED) == []


@pytest.mark.req("POOL-02")
async def test_a_bank_that_lets_itself_be_asked_seldom_is_waited_for_longer(world: World) -> None:
    async with world.daemon(pool(A, B)) as daemon:
        lane = daemon.tasks.lanes[CMB]
        slow = attrs.evolve(lane.parts.card.throttle, query_gap_s=100.0)
        card = attrs.evolve(lane.parts.card, throttle=slow)
        lane.parts = attrs.evolve(lane.parts, card=card)
        started = await daemon.pools.start_round("main", "operator op")
        one = daemon.pools._rounds[started["round_id"]]
        assert daemon.pools._balance_seconds(one) == BALANCE_SECONDS + BALANCE_SECONDS_EACH + 200.0


@pytest.mark.req("POOL-14", "FEP-28")
async def test_a_round_that_does_not_end_is_an_alarm_when_the_next_one_is_due(
    world: World, jumping: MockClock
) -> None:
    world.chance[PINGAN][Fault.LANDED] = 1.0
    clock = WallClock("2026-01-05T08:30:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: world.book.payments(PINGAN))
        await looked(jumping, daemon)
        assert daemon.causes(AlarmKind.POOL_STALLED) == []
    # A restart finds the round still running, and its own time is not the next one's.
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await looked(jumping, daemon)
        assert daemon.causes(AlarmKind.POOL_STALLED) == []
        clock.set("2026-01-05T17:30:00")
        await looked(jumping, daemon)
        (cause,) = daemon.causes(AlarmKind.POOL_STALLED)
        assert "waits for 1 of 1 accounts; the round of 2026-01-05 17:30 did not begin" in cause
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        assert daemon.causes(AlarmKind.POOL_STALLED) == [cause]
        (shown,) = await daemon.pools.overview()
        world.book.settle_landed(
            PINGAN, world.book.payments(PINGAN)[0].client_ref, dt.datetime.now(dt.UTC), ok=True
        )
        await daemon.finished(shown["last_round"]["round_id"])
        assert daemon.causes(AlarmKind.POOL_STALLED) == []


@pytest.mark.req("POOL-14")
async def test_a_full_disk_delays_a_scheduled_round(world: World, jumping: MockClock) -> None:
    clock = WallClock("2026-01-05T08:29:00")
    async with world.daemon(SCHEDULED, clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        await fill(daemon)
        clock.set("2026-01-05T08:30:00")
        await looked(jumping, daemon)
        await rounds(daemon, 0)
        await limit_pages(daemon, room=10_000)
        await looked(jumping, daemon)
        await until(lambda: world.balance(A) == "100.00")
        await rounds(daemon, 1)


async def fill(daemon: Daemon) -> None:
    """Fill the store's file to its last page, so that a round has no room."""
    await limit_pages(daemon, room=0)

    def work(connection: Any) -> None:
        connection.exec_driver_sql(
            "insert into pool_round (round_id, pool, key, state, started_at, note)"
            " select 'x' || count(*), 'x', 'x' || count(*), 'finished', '2026', hex(zeroblob(60))"
            " from pool_round"
        )

    with contextlib.suppress(StoreFullError):
        while True:
            await daemon.store.write(work)


# -- what waits before it leaves --------------------------------------------------------------


@pytest.fixture
def locked(world: World, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The key of the first bank, which goes out as soon as a balance has been judged."""
    real = plan.judge

    def judge(*given: Any) -> Any:
        world.gates[PINGAN].close()
        return real(*given)

    monkeypatch.setattr(plan, "judge", judge)
    return world.gates[PINGAN]


@pytest.mark.parametrize(("later", "left"), [("10:59:59", "100.00"), ("11:00:01", "1000.00")])
async def test_a_sweep_that_waits_too_long_for_a_key_is_left_to_the_next_round(
    world: World, locked: Gate, later: str, left: str
) -> None:
    clock = WallClock("2026-01-05T10:00:00")
    async with world.daemon(pool(A), clock=clock) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        round_id = (await daemon.pools.start_round("main", "op"))["round_id"]
        await daemon.until_items(round_id, "planned")
        clock.set(f"2026-01-05T{later}")
        locked.open()
        found = await daemon.finished(round_id)
        ended = {key: found["items"][0][key] for key in ("state", "reason")}
        if left == "100.00":
            assert ended["state"] == "swept"
        else:
            assert ended == {"state": "failed", "reason": "BALANCE_TOO_OLD"}
    assert world.balance(A) == left


async def test_a_sweep_is_not_sent_when_its_account_has_paid_meanwhile(
    world: World, locked: Gate
) -> None:
    async with world.daemon(pool(A)) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        round_id = (await daemon.pools.start_round("main", "op"))["round_id"]
        await daemon.until_items(round_id, "planned")
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "50.00"))
        locked.open()
        found = await daemon.finished(round_id)
        await daemon.until_task("PAY-1", "succeeded")
        assert found["items"][0]["state"] == "failed"
        assert found["items"][0]["reason"] == "PAID_MEANWHILE"
    assert world.balance(A) == "950.00"


# -- a balance that the last process did not judge, or judged -------------------------------------


async def told_to_nobody(daemon: Daemon, world: World, jumping: MockClock) -> str:
    """Have A's balance told when pooling has ended; return the round."""
    lane = daemon.tasks.lanes[PINGAN]
    await until(lambda: lane.parts.link.is_open)
    world.chance[PINGAN][Fault.DELAYED] = 1.0
    started = await daemon.pools.start_round("main", "operator op")
    await until(partial(_in_flight, lane.parts.link, 1))
    await wait_all_tasks_blocked(0.05)  # the answer lies at the bank for its two seconds
    world.chance[PINGAN].clear()
    daemon.pooling.cancel()
    await until(lambda: CLIENT not in daemon.tasks.present)
    jumping.jump(2.0)
    await daemon.until_task(started["items"][0]["balance_task"], "succeeded")
    return str(started["round_id"])


@pytest.mark.req("POOL-05", "POOL-11")
@pytest.mark.parametrize("seconds", [-330.0, -270.0, 0.0, 270.0, 330.0])
async def test_a_balance_told_long_before_a_restart_moves_nothing(
    world: World, jumping: MockClock, seconds: float
) -> None:
    """Nor one from the time to come: the clock was set back, and nobody knows how old it is."""
    async with world.daemon(pool(A)) as daemon:
        round_id = await told_to_nobody(daemon, world, jumping)
    world.queue_clock.by = dt.timedelta(seconds=seconds)
    async with world.daemon(pool(A)) as daemon:
        (item,) = (await daemon.finished(round_id))["items"]
        if abs(seconds) < BALANCE_AGE_SECONDS_MAX:
            assert (item["state"], item["amount"]) == ("swept", "900.00")
        else:
            assert (item["state"], item["reason"]) == ("failed", "BALANCE_TOO_OLD")
            assert item["sweep_task"] not in await daemon.task_states()
            assert (await daemon.run_round())["swept"] == "900.00"
    assert world.balance(A) == "100.00"


@pytest.mark.req("POOL-05", "POOL-11", "DEC-b")
@pytest.mark.parametrize("amount", ["850.00", "950.00"])
async def test_what_was_paid_before_a_restart_is_taken_off_a_balance_from_before_it(
    world: World, jumping: MockClock, amount: str
) -> None:
    async with world.daemon(pool(A)) as daemon:
        round_id = await told_to_nobody(daemon, world, jumping)
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, amount))
        await daemon.until_task("PAY-1", "succeeded")
    async with world.daemon(pool(A)) as daemon:
        (item,) = (await daemon.finished(round_id))["items"]
        swept = amount == "850.00"
        assert item["balance"] == "1000.00"
        assert item["amount"] == ("50.00" if swept else "0.00")
        assert item["state"] == ("swept" if swept else "nothing")
    assert world.balance(A) == ("100.00" if swept else "50.00")


@pytest.mark.req("POOL-05", "POOL-11", "DEC-b")
@pytest.mark.parametrize("paid", ["before", "after", "not"])
async def test_a_sweep_planned_before_a_restart_is_not_sent_when_its_account_has_paid(
    world: World, locked: Gate, paid: str
) -> None:
    async with world.daemon(pool(A)) as daemon:
        await until(lambda: daemon.tasks.lanes[PINGAN].parts.link.is_open)
        round_id = (await daemon.pools.start_round("main", "op"))["round_id"]
        await daemon.until_items(round_id, "planned")
        if paid == "before":
            await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "50.00"))
    async with world.daemon(pool(A)) as daemon:
        if paid == "after":
            await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "50.00"))
        locked.open()
        (item,) = (await daemon.finished(round_id))["items"]
        if paid == "not":
            assert item["state"] == "swept"
        else:
            assert (item["state"], item["reason"]) == ("failed", "PAID_MEANWHILE")
            await daemon.until_task("PAY-1", "succeeded")
    assert world.balance(A) == ("100.00" if paid == "not" else "950.00")


@pytest.mark.req("POOL-05", "POOL-11", "DEC-b")
async def test_a_payment_taken_off_when_its_balance_was_judged_stops_no_sweep_after_a_restart(
    world: World, jumping: MockClock, locked: Gate
) -> None:
    async with world.daemon(pool(A)) as daemon:
        world.chance[PINGAN][Fault.LANDED] = 1.0
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "50.00"))
        await daemon.until_task("PAY-1", "accepted")
        world.chance[PINGAN].clear()
        round_id = (await daemon.pools.start_round("main", "op"))["round_id"]
        await daemon.until_items(round_id, "planned")
    async with world.daemon(pool(A)) as daemon:
        locked.open()
        (item,) = (await daemon.finished(round_id))["items"]
        assert (item["state"], item["amount"]) == ("swept", "850.00")


async def test_what_was_spent_counts_from_the_earlier_of_two_questions(world: World) -> None:
    async with world.daemon(pool(A)) as daemon:
        asked = [(await daemon.pools.plan("main"))["items"][0]["balance_task"]]
        await daemon.submit("PAY-1", PINGAN, world.transfer(A, C, "850.00"))
        await daemon.until_task("PAY-1", "succeeded")
        asked.append((await daemon.pools.plan("main"))["items"][0]["balance_task"])
        for order in (asked, asked[::-1]):
            spent = await daemon.tasks.spent({TaskId(one): A for one in order}, CLIENT)
            assert spent == {A: Cny(85_000)}
        assert await daemon.tasks.spent({TaskId(asked[1]): A}, CLIENT) == {}
