"""The task service with its real surroundings: SQLite, a key, links, simulated banks on loopback.

``World`` is what lives longer than the daemon: the banks, their book, the disk. ``Fep`` is one life
of the daemon on it; leaving it is an end without warning.
"""

from __future__ import annotations

import datetime as dt
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fep.adapters import registry
from fep.adapters.api import BankCodec, BankProfile
from fep.adapters.card import override
from fep.adapters.host import (
    Answer,
    BankHost,
    BookAccount,
    Fault,
    Faults,
    HostConnection,
    HostProfile,
)
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account
from fep.domain.clock import Clock, SystemClock
from fep.domain.ids import (
    AccountNumber,
    BankName,
    ClientName,
    SlotName,
    TaskId,
    client_ref,
)
from fep.domain.ids import Sequence as Numbers
from fep.domain.money import Cny
from fep.domain.order import Kind
from fep.keys.config import SecretRef, SlotConfig
from fep.keys.routing import Insertion, View
from fep.keys.service import KeyRing, Slot, run_slot
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import Link, run_link
from fep.sandbox.book import SqliteBook
from fep.sandbox.host import run_host
from fep.store.database import READERS_MAX, Store, StoreFullError
from fep.tasks.config import TasksConfig
from fep.tasks.lane import Lane, LaneParts
from fep.tasks.mailbox import Mailbox
from fep.tasks.service import TaskService
from fep.tasks.state import State
from fep.tasks.task import Admitted, Delivery, Fetch, Submission, Task
from fep.tasks.task import Answer as SubmitAnswer
from tests.keys.files import certificate_of, ec_key, pem_of, write_private

WAIT_SECONDS_MAX = 20.0
ENTERPRISE = "E0001"
PINGAN, CMB, CCB = BankName("pingan"), BankName("cmb"), BankName("ccb")
ERP = ClientName("erp-1")
OTHER = ClientName("erp-2")

PAYER = AccountNumber("99000000000101")
PAYEE = AccountNumber("99000000000102")
CMB_PAYER = AccountNumber("9999000000201")
CMB_PAYEE = AccountNumber("9999000000202")
CCB_PAYER = AccountNumber("99990000000000000301")
CCB_PAYEE = AccountNumber("99990000000000000302")
STRANGER = AccountNumber("6222000000009999")

ACCOUNTS = {
    one.number: one
    for one in (
        Account(PAYER, PINGAN, "江枫样例制造有限公司", "307584007998", "平安银行"),
        Account(PAYEE, PINGAN, "云阶示例贸易有限公司", "307584007998", "平安银行"),
        Account(CMB_PAYER, CMB, "江枫样例制造有限公司", "308584000013", "招商银行"),
        Account(CMB_PAYEE, CMB, "云阶示例贸易有限公司", "308584000013", "招商银行"),
        Account(CCB_PAYER, CCB, "江枫样例制造有限公司", "105100000017", "建设银行"),
        Account(CCB_PAYEE, CCB, "云阶示例贸易有限公司", "105100000017", "建设银行"),
    )
}
OPENING = Cny(100_000_000)
OPTIONS = {
    PINGAN: ("pingan_b2bi", {"corp_code": "00102079900001234000"}),
    CMB: (
        "cmb_xml",
        {"login_name": "FEP01", "branch": "75", "payee_address_default": "广东省深圳市"},
    ),
    CCB: ("ccb_wlpt", {"customer_id": "105999900000001", "user_id": "FEP001"}),
}
CARD: dict[str, Any] = {
    "signing": {"by": "slot", "algorithm": "ecdsa_sha256"},
    "throttle": {"submit_gap_s": 0.0, "query_gap_s": 0.0, "concurrent_max": 0},
    "inquiry": {
        "cool_down_s": 0.05,
        "accepted_interval_s": 0.05,
        "backoff_factor": 1.5,
        "interval_max_s": 0.2,
        "horizon_s": 600.0,
        "no_record": "after",
        "no_record_after_s": 0.3,
    },
    "batch": {"poll_s": 0.05},
}
"""The simulated banks book at once and forget nothing, so waits of minutes become fractions."""


def balance(account: str = PAYER) -> dict[str, Any]:
    """Return the body of a balance query, as a client gives it."""
    return {"kind": "balance", "params": {"account": account}}


def transfer(
    amount: str = "12.50",
    payer: AccountNumber = PAYER,
    payee: AccountNumber = PAYEE,
    **more: Any,
) -> dict[str, Any]:
    """Return the body of a payment, as a client gives it."""
    stranger = Account(payee, BankName("-"), "外行示例公司", "308584000013", "招商银行")
    to = ACCOUNTS.get(payee, stranger)
    return {
        "kind": "transfer",
        "params": {
            "payer": {"account": payer},
            "payee": {
                "account": payee,
                "name": to.name,
                "bank_code": to.bank_code,
                "bank_name": to.bank_title,
            },
            "amount": amount,
            "currency": "CNY",
            **more,
        },
    }


def money(bank: BankName, amount: str = "12.50") -> dict[str, Any]:
    """Return the body of a payment inside one bank."""
    payer, payee = (PAYER, PAYEE) if bank == PINGAN else (CMB_PAYER, CMB_PAYEE)
    return transfer(amount, payer, payee)


def batch(
    bank: BankName, *amounts: str, payees: Sequence[tuple[AccountNumber, str]] = ()
) -> dict[str, Any]:
    """Return the body of a batch inside one bank, a row an amount; each payee with its name."""
    payer, payee = (PAYER, PAYEE) if bank == PINGAN else (CMB_PAYER, CMB_PAYEE)
    to = payees or [(payee, ACCOUNTS[payee].name)] * len(amounts)
    code = ACCOUNTS[payee].bank_code
    rows = [
        {"payee": {"account": one, "name": name, "bank_code": code}, "amount": amount}
        for amount, (one, name) in zip(amounts, to, strict=True)
    ]
    params = {"payer": {"account": payer}, "rows": rows}
    return {"kind": "batch_transfer", "params": params}


async def until(holds: Callable[[], object], what: str = "") -> None:
    """Wait until a condition of the memory holds."""
    try:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not holds():
                await trio.sleep(0.002)
    except trio.TooSlowError:
        raise AssertionError(what or "it never came to be") from None


Codec = Callable[[BankCodec], BankCodec]


def same(codec: BankCodec) -> BankCodec:
    return codec


class MovedClock:
    """The machine's clock, which a test can set."""

    def __init__(self) -> None:
        self.moved = dt.timedelta()

    def now(self) -> dt.datetime:
        return SystemClock().now() + self.moved


class WatchedHost:
    """A simulated bank that tells a test what arrives before it looks at it, and can be held."""

    def __init__(self, inner: BankHost) -> None:
        self._inner = inner
        self.name = inner.name
        self.on_data: Callable[[bytes], None] = lambda _data: None
        self.changes: Callable[[list[Answer]], list[Answer]] = lambda answers: answers

    def open(self, profile: HostProfile) -> HostConnection:
        return _WatchedConnection(self._inner.open(profile), self)


class _WatchedConnection:
    def __init__(self, inner: HostConnection, host: WatchedHost) -> None:
        self._inner = inner
        self._host = host

    def receive_data(self, data: bytes) -> list[Answer]:
        self._host.on_data(data)
        return self._host.changes(self._inner.receive_data(data))


@attrs.define
class SimulatedBank:
    """One bank that runs."""

    name: BankName
    host: WatchedHost
    profile: HostProfile
    faults: dict[Fault, float]
    address: tuple[str, int] = ("127.0.0.1", 0)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.scope = nursery.cancel_scope
            self.address = await nursery.start(run_host, self.host, self.profile, self.address)
            task_status.started()

    def stop(self) -> None:
        """End it with all its connections."""
        self.scope.cancel()


class World:
    """What outlives the daemon."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.nursery = nursery
        now = SystemClock().now()
        self.key = ec_key()
        self.certificate = x509.load_der_x509_certificate(certificate_of(self.key, now))
        write_private(path / "key.pem", pem_of(self.key))
        (path / "key.crt").write_bytes(self.certificate.public_bytes(Encoding.DER))
        self.book = SqliteBook.create(
            path / "book.db",
            [BookAccount(one.bank, one.number, one.name, OPENING) for one in ACCOUNTS.values()],
            now,
        )
        self.banks: dict[BankName, SimulatedBank] = {}

    async def start_bank(self, name: BankName) -> SimulatedBank:
        """Start a bank, at its old address if it ran before."""
        bank = self.banks.get(name)
        if bank is None:
            faults: dict[Fault, float] = {}
            profile = HostProfile(
                name,
                self.book,
                SystemClock(),
                Faults(faults, random.Random(5)),
                (self.certificate,),
            )
            host = WatchedHost(registry.host(OPTIONS[name][0]))
            bank = self.banks[name] = SimulatedBank(name, host, profile, faults)
        await self.nursery.start(bank.run)
        return bank

    @property
    def store_file(self) -> Path:
        return self.path / "fep.sqlite"

    def on_disk(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the store by a connection of its own: what is committed at this moment."""
        db = sqlite3.connect(f"file:{self.store_file}?mode=ro", uri=True)
        try:
            return db.execute(query, values).fetchall()
        finally:
            db.close()

    def booked(self, task_id: str) -> int:
        """Return how often money moved for a task."""
        return self.book.times_booked(client_ref(ENTERPRISE, TaskId(task_id)))

    async def until_booked(self, task_id: str) -> None:
        """Wait until the bank has moved a task's money."""
        await until(lambda: self.booked(task_id) == 1)

    @asynccontextmanager
    async def fep(
        self,
        *,
        banks: Sequence[BankName] = (PINGAN,),
        tasks: TasksConfig | None = None,
        card: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        workers: int = 4,
        reply_timeout_s: float = 5.0,
        codec: Codec = same,
        run: bool = True,
        system: str = "",
    ) -> AsyncIterator[Fep]:
        """Live one life of the daemon; ``run`` False starts no lanes and no links."""
        for bank in banks:
            if bank not in self.banks:
                await self.start_bank(bank)
        store = Store.at(self.store_file)
        async with trio.open_nursery() as outer:
            await outer.start(store.run)
            fep = Fep(self, store, clock or SystemClock(), tasks or TasksConfig())
            await fep.alarms.load()
            async with trio.open_nursery() as nursery:
                fep.nursery = nursery
                await nursery.start(run_slot, fep.slot)
                for bank in banks:
                    fep.make(bank, card, workers, reply_timeout_s, codec, system)
                await fep.service.load()
                await nursery.start(fep.service.run)
                await nursery.start(partial(fep.service.run_unmatched, fep.replies))
                if run:
                    for bank in banks:
                        await fep.start(bank)
                yield fep
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()


@attrs.define
class Unit:
    """One bank inside the daemon."""

    link: Link
    lane: Lane
    parts: LaneParts
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ended: trio.Event = attrs.Factory(trio.Event)


class Fep:
    """One life of the daemon, without its faces."""

    nursery: trio.Nursery

    def __init__(self, world: World, store: Store, clock: Clock, config: TasksConfig) -> None:
        self.world = world
        self.store = store
        self.clock = clock
        self.alarms = Alarms(store, clock)
        self.numbers = Numbers()
        key = SecretRef(file=world.path / "key.pem")
        self.ring = KeyRing(
            [SlotConfig(SlotName("ukey-1"), backend="software", key=key)],
            self.alarms,
            clock,
            store,
        )
        self.slot: Slot = self.ring.slots[SlotName("ukey-1")]
        self.accounts = dict(ACCOUNTS)
        self.service = TaskService(
            store=store,
            alarms=self.alarms,
            clock=clock,
            sequence=self.numbers,
            config=config,
            enterprise=ENTERPRISE,
            accounts=self.accounts,
            configuration="test",
        )
        self.unmatched, self.replies = trio.open_memory_channel[UnmatchedReply](16)
        self.units: dict[BankName, Unit] = {}
        self.clients: list[Finance] = []

    # -- banks --------------------------------------------------------------------------------

    def make(
        self,
        bank: BankName,
        card: Mapping[str, Any] | None = None,
        workers: int = 4,
        reply_timeout_s: float = 5.0,
        codec: Codec = same,
        system: str = "",
    ) -> Unit:
        """Make a bank's link and lane, as the daemon does."""
        name, options = OPTIONS[bank]
        adapter = registry.adapter(name)
        facts = override(override(adapter.card, CARD), card or {})
        profile = BankProfile(
            bank,
            facts,
            adapter.options_class(**options),
            "4012",
            self.accounts,
            secrets=dict.fromkeys(adapter.secret_names, "demo-only"),
        )
        speaks = codec(adapter.open(profile))
        host, port = self.world.banks[bank].address
        link = Link(
            LinkConfig(
                bank,
                host,
                port,
                reply_timeout_s=reply_timeout_s,
                backoff_first_s=0.01,
                backoff_max_s=0.05,
            ),
            speaks,
            self.numbers,
            self.clock,
            self.alarms,
            self.unmatched,
            random.Random(7),
        )
        parts = LaneParts(
            bank=bank,
            codec=speaks,
            card=facts,
            capabilities=adapter.capabilities,
            link=link,
            slot=self.slot,
            workers=workers,
            reply_timeout_s=reply_timeout_s,
            system=system,
        )
        unit = self.units[bank] = Unit(link, self.service.add_lane(parts), parts)
        return unit

    async def start(self, bank: BankName = PINGAN) -> None:
        """Start a bank's link and lane."""
        await self.nursery.start(self._run_unit, self.units[bank])

    async def _run_unit(self, unit: Unit, *, task_status: trio.TaskStatus[None]) -> None:
        with unit.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_link, unit.link, self.slot)
                await nursery.start(unit.lane.run)
                task_status.started()
        unit.ended.set()

    async def start_link(self, unit: Unit) -> None:
        """Start a link whose lane the test runs."""
        await self.nursery.start(run_link, unit.link, self.slot)

    async def end(self, bank: BankName = PINGAN) -> None:
        """Take a bank out of force at once."""
        self.units[bank].scope.cancel()
        await self.units[bank].ended.wait()

    @property
    def lane(self) -> Lane:
        return self.service.lanes[PINGAN]

    @property
    def link(self) -> Link:
        return self.units[PINGAN].link

    async def ready(self, bank: BankName = PINGAN) -> None:
        """Wait until the bank may be talked to."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self.slot.wait_open()
            await self.units[bank].link.wait_open()

    def take_key(self) -> None:
        """Take the key out."""
        self.slot.post(View(service=True, readers=True, card=None, settled=True))

    def give_key(self) -> None:
        """Put the key in again."""
        there = Insertion("software", 2, "")
        self.slot.post(View(service=True, readers=True, card=there, settled=True))

    # -- acts ---------------------------------------------------------------------------------

    def submission(
        self,
        task_id: str,
        kind: Kind = Kind.BALANCE,
        bank: BankName = PINGAN,
        body: dict[str, Any] | None = None,
        **more: Any,
    ) -> Submission:
        """Return a submission, with its body inline where one is given."""
        parsed = None
        if body is not None:
            kind = Kind(body["kind"])
            parsed = self.service.parse(bank, kind, body["params"])
        return Submission(TaskId(task_id), bank, kind, body=parsed, **more)

    async def admit(self, *submissions: Submission, client: ClientName = ERP) -> list[SubmitAnswer]:
        """Submit together, and return the answers."""
        finished = trio.Event()
        answers: list[SubmitAnswer] = []

        def done(given: list[SubmitAnswer]) -> None:
            answers.extend(given)
            finished.set()

        self.service.submit(client, submissions, done)
        with trio.fail_after(WAIT_SECONDS_MAX):
            await finished.wait()
        return answers

    async def submit(
        self,
        task_id: str,
        kind: Kind = Kind.BALANCE,
        bank: BankName = PINGAN,
        body: dict[str, Any] | None = None,
        client: ClientName = ERP,
        **more: Any,
    ) -> TaskId:
        """Submit one task that must be taken."""
        one = self.submission(task_id, kind, bank, body, **more)
        [answer] = await self.admit(one, client=client)
        assert isinstance(answer, Admitted), answer
        return answer.task_id

    async def admitted(self, task_id: str) -> Task:
        """Return an open task, submitted if it was not yet."""
        await self.submit(task_id)
        return self.task(task_id)

    def client(self, name: ClientName = ERP, **options: Any) -> Finance:
        """Connect a finance system that answers what it is asked."""
        made = Finance(self, name, **options)
        self.clients.append(made)
        self.nursery.start_soon(made.run)
        return made

    # -- looking ------------------------------------------------------------------------------

    def task(self, task_id: str) -> Task:
        """Return an open task as the memory holds it."""
        return self.service._open[TaskId(task_id)]

    async def get(self, task_id: str) -> dict[str, Any]:
        return await self.service.get(None, TaskId(task_id))

    async def becomes(self, task_id: str, *states: State) -> dict[str, Any]:
        """Wait until a task is in one of these states, on disk and in memory, and return it."""
        wanted = {state.value for state in states}
        found: dict[str, Any] = {}
        try:
            with trio.fail_after(WAIT_SECONDS_MAX):
                while (found := await self.get(task_id))["state"] not in wanted:
                    await trio.sleep(0.005)
        except trio.TooSlowError:
            msg = f"{task_id} is {found['state']}, not one of {sorted(wanted)}"
            raise AssertionError(msg) from None
        # Another connection sees a commit a moment before those who made it are told.
        await self.service.settled()
        return found

    async def events(self, task_id: str) -> list[str]:
        chain = (await self.service.why(None, TaskId(task_id)))["events"]
        return [event["event"] for event in chain]

    def alarm_kinds(self) -> set[AlarmKind]:
        return {alarm.kind for alarm in self.alarms.active()}

    async def inquired(self, task_id: str, times: int) -> None:
        """Wait until the bank was asked so often what became of a payment."""
        await until(lambda: self.task(task_id).inquiries >= times)

    def agrees(self) -> None:
        """Check that memory and disk tell the same of every task, and that nobody holds one."""
        stored = dict(self.world.on_disk("select task_id, state from task"))
        final = {"succeeded", "rejected", "returned", "cancelled", "expired", "failed"}
        kept = {task.task_id: task.state.value for task in self.service._open._tasks.values()}
        assert kept == {key: value for key, value in stored.items() if value not in final}
        held = {task.task_id for lane in self.service.lanes.values() for task in lane._in_hands}
        for task in self.service._open._tasks.values():
            assert not task.claimed or task.task_id in held, f"{task.task_id} is claimed by nobody"

    # -- the disk -----------------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait until all that was handed to the store is committed."""
        await self.store.write(lambda _connection: None)

    @asynccontextmanager
    async def held_readers(self) -> AsyncIterator[None]:
        """Keep all of the store's readers busy until the block ends."""
        gate = threading.Event()
        inside: list[sa.Connection] = []

        def hold(connection: sa.Connection) -> None:
            inside.append(connection)
            gate.wait(WAIT_SECONDS_MAX)

        for _ in range(READERS_MAX):
            self.nursery.start_soon(self.store.read, hold)
        await until(lambda: len(inside) == READERS_MAX)
        try:
            yield
        finally:
            gate.set()

    async def fill_disk(self) -> None:
        """Make the disk full, as SQLite sees it: not one more event fits."""
        await fill_disk(self.store)

    async def empty_disk(self) -> None:
        """Make room again."""
        await empty_disk(self.store)


async def fill_disk(store: Store) -> None:
    """Make a store's disk full, as SQLite sees it: not one more event fits."""
    await store.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1"))
    filler = (
        "insert into task_event (task_seq, at, event, state, cause, configuration)"
        " values (0, '', '', '', ?, '')"
    )
    for size in (2000, 200, 1):
        row = ("x" * size,)
        with suppress(StoreFullError):
            while True:
                await store.write(partial(_execute, filler, row))


async def empty_disk(store: Store) -> None:
    """Make room again."""
    await store.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))


def _execute(statement: str, row: tuple[Any, ...], connection: sa.Connection) -> None:
    connection.exec_driver_sql(statement, row)


class Finance:
    """A finance system's connection: gives the bodies it has, acknowledges what it is told."""

    def __init__(
        self,
        fep: Fep,
        name: ClientName,
        *,
        bodies: Mapping[str, Any] | None = None,
        answers: bool = True,
        acknowledges: bool = True,
    ) -> None:
        self.fep = fep
        self.name = name
        self.bodies: dict[str, Any] = dict(bodies or {})
        self.answers = answers
        self.acknowledges = acknowledges
        self.asked: list[Fetch] = []
        self.told: list[Delivery] = []
        self.scope = trio.CancelScope()
        self.mailbox: Mailbox = fep.service.attach(name)

    async def run(self) -> None:
        try:
            with self.scope:
                while True:
                    await self._take()
        finally:
            self.fep.service.detach(self.mailbox)

    async def _take(self) -> None:
        bodies: list[tuple[TaskId, Any]] = []
        told: list[TaskId] = []
        for message in await self.fep.service.take(self.mailbox):
            if isinstance(message, Fetch):
                self.asked.append(message)
                if self.answers and message.task_id in self.bodies:
                    bodies.append((message.task_id, self.bodies[message.task_id]))
            else:
                self.told.append(message)
                told.append(message.task_id)
        if told and self.acknowledges:
            self.fep.service.acknowledge(self.name, told)
        if bodies:
            await self.fep.service.fetched(self.name, bodies)

    async def close(self) -> None:
        """End the connection."""
        self.scope.cancel()
        await until(lambda: self.mailbox not in self.mailbox.box.connections)

    async def result(self, task_id: str) -> Delivery:
        """Return the first result of a task, once it is told."""
        await until(lambda: any(one.task_id == task_id for one in self.told), f"{task_id} told")
        return next(one for one in self.told if one.task_id == task_id)

    def attempts(self, task_id: str) -> list[int]:
        """Return the attempts at asking for a task's body."""
        return [one.attempt for one in self.asked if one.task_id == task_id]


@asynccontextmanager
async def open_world(path: Path) -> AsyncIterator[World]:
    """Make a world, and end its banks at the end."""
    async with trio.open_nursery() as nursery:
        world = World(path, nursery)
        try:
            yield world
            assert world.book.check() == []
        finally:
            world.book.close()
            nursery.cancel_scope.cancel()
