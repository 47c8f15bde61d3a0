"""The daemon's parts that pooling needs, put together in one process over simulated banks.

Real are the store, the task engine with its lanes, the links and the banks on loopback. The key
slot is a gate that a test opens and closes: the banks' own front ends sign here, so nothing else is
asked of it. The banks and their book outlive the daemon, which a test starts over the same store.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import sqlalchemy as sa
import trio

from bank_adapters.cmb_xml.config import CmbXmlOptions
from bank_adapters.pingan_b2bi.config import PinganOptions
from fep.adapters import registry
from fep.adapters.api import BankProfile
from fep.adapters.card import override
from fep.adapters.host import BookAccount, Fault, Faults, HostProfile
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account
from fep.domain.clock import Clock, SystemClock
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId, client_ref
from fep.domain.ids import Sequence as Numbers
from fep.domain.money import Cny
from fep.domain.order import Kind, parse_body
from fep.keys.config import SecretRef, SlotConfig
from fep.keys.service import Slot
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import Link, run_link
from fep.pooling.config import Excess, MemberConfig, PoolConfig, RuleConfig
from fep.pooling.service import PoolService
from fep.sandbox.book import SqliteBook
from fep.sandbox.host import MEMORY, run_host
from fep.store.database import Done, Store, Work
from fep.store.schema import task
from fep.tasks.config import TasksConfig
from fep.tasks.lane import LaneParts
from fep.tasks.service import TaskService
from fep.tasks.task import Submission

WAIT_SECONDS_MAX = 30.0
ENTERPRISE = "E0001"
ERP = ClientName("erp-1")
PINGAN, CMB = BankName("pingan"), BankName("cmb")
ADAPTERS = {PINGAN: "pingan_b2bi", CMB: "cmb_xml"}
OPTIONS: Mapping[BankName, Any] = {
    PINGAN: PinganOptions(corp_code="00102079900001234000"),
    CMB: CmbXmlOptions(login_name="FEP01", branch="75", payee_address_default="广东省深圳市"),
}
CODES = {PINGAN: ("307584007998", "平安银行"), CMB: ("308584000013", "招商银行")}
CARD = {
    "throttle": {"submit_gap_s": 0.0, "query_gap_s": 0.0, "concurrent_max": 0},
    "inquiry": {
        "cool_down_s": 0.05,
        "accepted_interval_s": 0.05,
        "backoff_factor": 1.0,
        "interval_max_s": 0.05,
        "no_record": "after",
        "no_record_after_s": 0.05,
    },
}
"""The simulated banks book at once and forget nothing."""


def number(bank: BankName, place: int) -> AccountNumber:
    """Return the number of an account of the scene."""
    prefix = {PINGAN: "990000000001", CMB: "9999000000101"}[bank]
    return AccountNumber(f"{prefix}{place:02d}")


TARGET = number(PINGAN, 0)


def account(bank: BankName, place: int) -> Account:
    """Return an approved account."""
    code, title = CODES[bank]
    name = f"江枫样例制造有限公司{bank}{place:02d}"
    return Account(number(bank, place), bank, name, code, title)


def pool(
    *members: AccountNumber,
    name: str = "main",
    threshold: str = "100.00",
    rule: RuleConfig | None = None,
    schedule: str = "",
    target: AccountNumber = TARGET,
) -> PoolConfig:
    """Return a pool whose members all have the same threshold and rule."""
    made = tuple(MemberConfig(one, Cny.parse(threshold), rule=rule or Excess()) for one in members)
    return PoolConfig(name, target, made, schedule)


class Gate:
    """A key slot that a test opens and closes."""

    def __init__(self, bank: BankName) -> None:
        self.config = SlotConfig(
            name=cast("Any", f"ukey-{bank}"),
            backend="software",
            key=SecretRef(file=Path("none.pem")),
        )
        self._open = trio.Event()
        self._closed = trio.Event()
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def open(self) -> None:
        self._open.set()
        self._closed = trio.Event()

    def close(self) -> None:
        self._closed.set()
        self._open = trio.Event()

    async def wait_open(self) -> None:
        await self._open.wait()

    async def wait_closed(self) -> None:
        await self._closed.wait()


class WallClock:
    """A wall clock that a test sets."""

    def __init__(self, shanghai: str) -> None:
        self.set(shanghai)

    def set(self, shanghai: str) -> None:
        self._now = dt.datetime.fromisoformat(f"{shanghai}+08:00").astimezone(dt.UTC)

    def now(self) -> dt.datetime:
        return self._now


class ShiftedClock:
    """A clock that goes as the machine's does, and that a test puts forward."""

    def __init__(self) -> None:
        self.by = dt.timedelta()

    def now(self) -> dt.datetime:
        return SystemClock().now() + self.by


class CutStore(Store):
    """A store at whose n-th change somebody dies: before it is on disk, or right after."""

    cut_at = 0
    """Which change; 0 = none."""
    of = ""
    """Count the changes of this package only; empty = all."""
    after = False
    dying: Callable[[], None] = staticmethod(lambda: None)
    count = 0

    def submit(self, work: Work, done: Done) -> None:
        counts = getattr(work, "func", work).__module__.startswith(self.of)
        self.count += counts
        if self.count != self.cut_at or not counts:
            super().submit(work, done)
        elif self.after:
            super().submit(work, lambda _result, _error: self.dying())
        else:
            self.dying()


async def until(holds: Callable[[], Any], what: str = "") -> None:
    """Wait until a condition holds, on the real clock."""
    limit = time.monotonic() + WAIT_SECONDS_MAX
    while not holds():
        assert time.monotonic() < limit, what or "it did not come to pass"
        await trio.sleep(0.002)


@attrs.define(eq=False)
class Daemon:
    """One life of the front-end processor, as far as pooling goes."""

    store: CutStore
    alarms: Alarms
    tasks: TaskService
    pools: PoolService
    pooling: trio.CancelScope
    """Of the pooling service alone, as its supervisor would end it."""
    nursery: trio.Nursery

    async def finished(self, round_id: str) -> dict[str, Any]:
        """Wait for the end of a round and return it."""
        limit = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            found = await self.pools.round(round_id)
            if found["state"] == "finished":
                return found
            assert time.monotonic() < limit, found
            await trio.sleep(0.002)

    async def run_round(self, name: str = "main") -> dict[str, Any]:
        """Run a round by hand to its end."""
        started = await self.pools.start_round(name, "operator op")
        return await self.finished(started["round_id"])

    async def items(self, round_id: str) -> dict[str, dict[str, Any]]:
        """Return a round's items by account."""
        found = await self.pools.round(round_id)
        return {item["account"]: item for item in found["items"]}

    async def until_items(self, round_id: str, *states: str) -> None:
        """Wait until every item of a round is in one of these states."""
        limit = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            items = await self.items(round_id)
            if all(item["state"] in states for item in items.values()):
                return
            assert time.monotonic() < limit, items
            await trio.sleep(0.002)

    async def submit(self, task_id: str, bank: BankName, body: Any) -> Any:
        """Submit a transfer as the finance system, with its body."""
        order = parse_body(Kind.TRANSFER, body)
        answers: list[Any] = []
        one = Submission(TaskId(task_id), bank, Kind.TRANSFER, body=order)
        self.tasks.submit(ERP, [one], answers.extend)
        await until(lambda: answers)
        return answers[0]

    async def task_states(self, kind: Kind | None = None) -> dict[str, str]:
        """Return the state of every task on disk."""
        query = sa.select(task.c.task_id, task.c.state)
        if kind is not None:
            query = query.where(task.c.kind == kind.value)
        rows = await self.store.read(lambda c: c.execute(query).all())
        return {row[0]: row[1] for row in rows}

    async def until_task(self, task_id: str, *states: str) -> None:
        """Wait until a task is in one of these states on disk."""
        limit = time.monotonic() + WAIT_SECONDS_MAX
        while (await self.task_states()).get(task_id) not in states:
            assert time.monotonic() < limit, f"{task_id} never was {states}"
            await trio.sleep(0.002)

    def blocked(self) -> list[str]:
        """Return the causes of POOL_BLOCKED that are active."""
        return self.causes(AlarmKind.POOL_BLOCKED)

    def causes(self, kind: AlarmKind) -> list[str]:
        """Return the causes of a kind's alarms that are active."""
        return [alarm.cause for alarm in self.alarms.active() if alarm.kind is kind]

    def end(self) -> None:
        """Die, from anywhere."""
        self.nursery.cancel_scope.cancel()


class World:
    """The simulated banks with their book and keys; the daemon comes and goes."""

    def __init__(self, directory: Path, balances: Mapping[AccountNumber, str]) -> None:
        self.directory = directory
        self.book = SqliteBook(MEMORY)
        self.accounts = {
            one.number: one
            for one in (account(bank, place) for bank in ADAPTERS for place in range(9))
        }
        self.banks: Sequence[BankName] = tuple(ADAPTERS)
        self.book.open_accounts(
            [
                BookAccount(
                    self.accounts[one].bank, one, self.accounts[one].name, Cny.parse(balance)
                )
                for one, balance in balances.items()
            ],
            SystemClock().now(),
        )
        self.held = self.book.held()
        self.chance: dict[BankName, dict[Fault, float]] = {bank: {} for bank in ADAPTERS}
        """What each bank does wrong from now on."""
        self.gates = {bank: Gate(bank) for bank in ADAPTERS}
        self.ports: dict[BankName, int] = {}
        self.queue_clock = ShiftedClock()
        """The queue's, which inquires at the banks by it; they have the machine's."""
        self.queue_max = 1000
        self.workers = 4

    def balance(self, one: AccountNumber) -> str:
        """Return what an account holds at its bank."""
        found = self.book.account(self.accounts[one].bank, one)
        assert found is not None
        return str(found.balance)

    def booked(self, task_id: str) -> int:
        """Return how often a task's payment was booked."""
        return self.book.times_booked(client_ref(ENTERPRISE, TaskId(task_id)))

    def payments(self) -> list[tuple[str, str, str]]:
        """Return all payments as payer, payee and amount."""
        return [(one.payer, one.payee, str(one.amount)) for one in self.book.payments()]

    def transfer(self, payer: AccountNumber, payee: AccountNumber, amount: str) -> dict[str, Any]:
        """Return the params of a payment between two accounts of the scene."""
        to = self.accounts[payee]
        return {
            "payer": {"account": payer},
            "payee": {
                "account": payee,
                "name": to.name,
                "bank_code": to.bank_code,
                "bank_name": to.bank_title,
            },
            "amount": amount,
            "currency": "CNY",
        }

    def check(self) -> None:
        """The book is whole, no fen was made or lost, and no reference was booked twice."""
        assert self.book.check() == []
        assert self.book.held() == self.held
        for payment in self.book.payments():
            assert self.book.times_booked(payment.client_ref) <= 1

    @asynccontextmanager
    async def banks_open(self) -> AsyncIterator[None]:
        """Let the simulated banks serve."""
        async with trio.open_nursery() as nursery:
            for bank, name in ADAPTERS.items():
                faults = Faults(self.chance[bank], random.Random(1))
                profile = HostProfile(bank, self.book, SystemClock(), faults)
                address: tuple[str, int] = await nursery.start(
                    run_host, registry.host(name), profile, ("127.0.0.1", 0)
                )
                self.ports[bank] = address[1]
            yield
            nursery.cancel_scope.cancel()
        self.book.close()

    @asynccontextmanager
    async def daemon(
        self,
        *pools: PoolConfig,
        clock: Clock | None = None,
        cut_at: int = 0,
        of: str = "",
        after: bool = False,
    ) -> AsyncIterator[Daemon]:
        """Start the daemon over the store; it dies when the block is left, or at a cut."""
        clock = clock or SystemClock()
        store = CutStore.at(self.directory / "fep.sqlite")
        assert isinstance(store, CutStore)
        async with trio.open_nursery() as outer:
            await outer.start(store.run)
            alarms = Alarms(store, SystemClock())
            sequence = Numbers()
            tasks = TaskService(
                store=store,
                alarms=alarms,
                clock=self.queue_clock,
                sequence=sequence,
                config=TasksConfig(queue_max=self.queue_max, fetch_timeout_s=5.0),
                enterprise=ENTERPRISE,
                accounts=self.accounts,
                configuration="c",
            )
            await alarms.load()
            links = [self._add_lane(tasks, alarms, sequence, bank) for bank in self.banks]
            pooling = PoolService(pools, self.accounts, tasks, alarms, clock)
            await tasks.load()
            async with trio.open_nursery() as nursery:
                daemon = Daemon(store, alarms, tasks, pooling, trio.CancelScope(), nursery)
                store.cut_at, store.of = cut_at, of
                store.after, store.dying = after, daemon.end
                await nursery.start(tasks.run)
                for bank, link in zip(self.banks, links, strict=True):
                    await nursery.start(run_link, link, self.gates[bank])
                    await nursery.start(tasks.lanes[bank].run)
                await nursery.start(self.pooling, daemon)
                # Whoever drives a daemon that dies dies with it.
                yield daemon
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()

    @staticmethod
    async def pooling(
        daemon: Daemon, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the pooling service until its scope is cancelled; it can be run again."""
        daemon.pooling = trio.CancelScope()
        with daemon.pooling:
            await daemon.pools.run(task_status=task_status)

    def _add_lane(
        self, tasks: TaskService, alarms: Alarms, sequence: Numbers, bank: BankName
    ) -> Link:
        adapter = registry.adapter(ADAPTERS[bank])
        card = override(adapter.card, CARD)
        codec = adapter.open(
            BankProfile(
                bank=bank,
                card=card,
                options=OPTIONS[bank],
                direct_connect_number="0755",
                accounts=self.accounts,
            )
        )
        # Long spans: a test may jump its clock, and no bank here goes silent of itself.
        config = LinkConfig(
            bank,
            "127.0.0.1",
            self.ports[bank],
            heartbeat_s=3600.0,
            logon_timeout_s=600.0,
            connect_timeout_s=600.0,
            backoff_first_s=0.01,
            backoff_max_s=0.05,
        )
        unmatched, _ = trio.open_memory_channel[UnmatchedReply](64)
        link = Link(config, codec, sequence, SystemClock(), alarms, unmatched, random.Random(1))
        tasks.add_lane(
            LaneParts(
                bank=bank,
                codec=codec,
                card=card,
                capabilities=adapter.capabilities,
                link=link,
                slot=cast("Slot", self.gates[bank]),
                workers=self.workers,
                reply_timeout_s=600.0,
            )
        )
        return link


@asynccontextmanager
async def open_world(
    directory: Path, balances: Mapping[AccountNumber, str]
) -> AsyncIterator[World]:
    """Open the banks with these balances; at the end the book must be whole."""
    world = World(directory, {TARGET: "0.00", **balances})
    async with world.banks_open():
        yield world
        world.check()
