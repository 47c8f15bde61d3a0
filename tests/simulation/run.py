"""One run: the daemon lives, is killed and lives again among foul banks, clients and keys; then all
is calm, and what must hold of every task and every fen is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import socket
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import structlog
import trio
import trio.testing

from fep.adapters.host import BookAccount, BookedState
from fep.client.conversation import CallError, DisconnectedError, TaskResult
from fep.client.trio_client import Client
from fep.control.commands import Role, Services
from fep.control.postman import Postman
from fep.control.session import Peer, Session
from fep.daemon.app import Daemon, Outside
from fep.daemon.config import Config
from fep.daemon.replay import Difference, opened
from fep.daemon.verify import verify
from fep.domain.ids import BankName, ClientName, TaskId, client_ref, row_ref
from fep.keys.routing import Insertion, View
from fep.links.config import LinkConfig
from fep.logs import Followers
from fep.sandbox.book import SqliteBook
from fep.store import schema
from fep.store.database import Store
from fep.store.files import STORE_FILE
from fep.tasks.state import FINAL, State
from tests.simulation.banks import AGAIN, FOULEST, Bank, Mischief
from tests.simulation.machine import (
    Disk,
    DrawnPace,
    SimClock,
    Threads,
    TrueClock,
    deterministic,
    socket_pair,
    trio_stream,
)
from tests.simulation.setting import ENTERPRISE, HORIZON_SECONDS, WATCH_SECONDS, Setting, drawn

COMMIT: Final = Store._commit_patiently.__name__
"""What the writer thread runs."""
FOUL_SECONDS: Final = 600.0
"""How long everything may go wrong."""
CALM_SECONDS_MAX: Final = 3 * HORIZON_SECONDS
TASKS_PER_CLIENT: Final = 10
ROWS_MAX: Final = 4
"""Of a batch."""
BOOKED_ONCE: Final = frozenset({State.SUCCEEDED, State.RETURNED})
DAY_SECONDS: Final = 86_400.0
STEPS: Final = (0.0, 1.0, 60.0, 3600.0, DAY_SECONDS, DAY_SECONDS)
"""By how many seconds at most the wall clock is set."""
WATCHED_TO_THE_END: Final = 0.1
"""Share of the runs that go on until nothing is watched any more."""


@attrs.define
class Report:
    """What a run was, and what was wrong with it."""

    seed: int
    tasks: int = 0
    crashes: int = 0
    torn: int = 0
    unknowns: int = 0
    returned: int = 0
    """Payments that the banks took back."""
    steps: int = 0
    """Times that the daemon's wall clock was set."""
    seconds: float = 0.0
    """Virtual time."""
    violations: list[str] = attrs.Factory(list)
    digest: str = ""
    """Of everything that was logged, in order: the same seed gives the same digest."""


class _Trace:
    """Takes the place of the log: counts what matters and digests all of it."""

    IDS: Final = ("alarm_id", "session", "ts", "head")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lines: list[str] = []
        self.crashes: list[str] = []
        self.is_dead: Callable[[], bool] = lambda: False
        """While true, the daemon that speaks was killed: it may read what is there no more."""
        self._hash = hashlib.sha256()

    def __call__(self, _logger: object, method: str, record: Any) -> Any:
        event = str(record.get("event"))
        self.counts[event] = self.counts.get(event, 0) + 1
        is_defect = method == "exception" or event in ("lane.crashed", "connection.crashed")
        if is_defect and not self.is_dead():
            self.crashes.append(f"{event}: {record.get('lane', '')} {_exception()}")
        if event == "task.left_open" and record.get("state") == "unknown":
            self.counts["unknown"] = self.counts.get("unknown", 0) + 1
        shown = sorted((k, str(v)) for k, v in record.items() if k not in self.IDS)
        line = f"{trio.current_time():.6f} {shown}"
        self.lines.append(line)
        self._hash.update(line.encode())
        raise structlog.DropEvent

    def digest(self) -> str:
        return self._hash.hexdigest()


def _exception() -> str:
    return traceback.format_exc(limit=-12)


class FinanceSystem:
    """One outside finance system: its tasks, and what it knows of them over all connections."""

    def __init__(self, name: str, run: Run, rng: random.Random) -> None:
        self.name = name
        self._run = run
        self._rng = rng
        self.work: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        """Ids whose submit was answered: they must never be lost."""
        self.refused: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.results: dict[str, TaskResult] = {}
        self.told: list[TaskResult] = []

    def make_work(self) -> None:
        """Draw the tasks."""
        accounts = self._run.setting.accounts
        count = TASKS_PER_CLIENT if self._run.foulest else self._rng.randint(1, TASKS_PER_CLIENT)
        for number in range(count):
            payer = self._rng.choice(accounts)
            payee = self._rng.choice([one for one in accounts if one is not payer])
            kind = self._rng.choice(
                ("transfer", "transfer", "batch_transfer", "balance", "statement")
            )
            if kind == "batch_transfer" and not self._run.setting.has_batches(payer.bank):
                kind = "transfer"
            if kind == "transfer":
                params: dict[str, Any] = {"payer": {"account": payer.number}, "currency": "CNY"}
                params |= self._payment(payee)
            elif kind == "batch_transfer":
                others = [one for one in accounts if one is not payer]
                rows = [
                    self._payment(self._rng.choice(others))
                    for _ in range(self._rng.randint(1, ROWS_MAX))
                ]
                params = {"payer": {"account": payer.number}, "rows": rows}
            elif kind == "balance":
                params = {"account": payer.number}
            else:
                params = {"account": payer.number, "from": "2026-01-05", "to": "2026-01-05"}
            self.work[f"{self.name}-{number}"] = {
                "bank": payer.bank,
                "kind": kind,
                "body": {"kind": kind, "params": params},
                "at": self._rng.random() * FOUL_SECONDS * 0.8,
                "inline": self._rng.random() < 0.4,
            }

    def _payment(self, payee: BookAccount) -> dict[str, Any]:
        """Draw a payment to an account, as a transfer and a row of a batch have it."""
        to = {"account": payee.number, "name": payee.name, "bank_name": "样例银行"}
        amount = f"{self._rng.randint(1, 90_000)}.{self._rng.randint(0, 99):02d}"
        if self._rng.random() < 0.9:
            to["bank_code"] = "307584007998" if "pingan" in payee.bank else "308584000013"
        return {"payee": to, "amount": amount}

    async def fetch(self, task_id: str, _attempt: int) -> dict[str, Any] | None:
        """Give a body, mostly, sometime."""
        if self._run.foul:
            await trio.sleep(self._rng.random() * self._rng.choice((0.1, 1.0, 90.0)))
            if self._rng.random() < 0.1:
                return None
        one = self.work.get(task_id)
        if one is None:
            return None
        body: dict[str, Any] = one["body"]
        return body

    async def result(self, result: TaskResult) -> None:
        """Keep a result; acknowledging it happens when this returns."""
        if self._run.foul and self._rng.random() < 0.3:
            await trio.sleep(self._rng.random() * 5.0)
        self.told.append(result)
        self.results[result.task_id] = result

    async def run(self) -> None:
        """Connect, work, vanish, come back, for ever."""
        while True:
            with trio.CancelScope() as scope:
                if self._run.foul and self._rng.random() < 0.5:
                    scope.deadline = trio.current_time() + self._rng.uniform(1.0, 200.0)
                client = Client(
                    "unix:none",
                    self.name,
                    fetch=self.fetch,
                    result=self.result,
                    clock=self._run.true_clock,
                    connect=self._run.connect_client(self.name, Role.FINANCE),
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.run)
                    for task_id in self.work:
                        if task_id not in self.acknowledged and task_id not in self.refused:
                            nursery.start_soon(self._submit, client, task_id)
            await trio.sleep(self._rng.uniform(0.0, 20.0) if self._run.foul else 0.1)

    async def _submit(self, client: Client, task_id: str) -> None:
        one = self.work[task_id]
        await trio.sleep(max(0.0, one["at"] - trio.current_time()))
        body = one["body"] if one["inline"] else None
        try:
            for _ in range(self._rng.choice((1, 1, 2))):
                await client.submit(task_id, one["bank"], one["kind"], body)
                self.acknowledged.add(task_id)
            if self._rng.random() < 0.05:
                # Once the call has left, only the answer tells, and it may be lost.
                self.cancelled.add(task_id)
                await client.call("task.cancel", {"task_id": task_id})
        except CallError as error:
            if task_id not in self.acknowledged:
                if error.code in ("SHUTTING_DOWN", "QUEUE_FULL", "STORE_FULL"):
                    return
                self.refused[task_id] = error.code
        except DisconnectedError:
            pass


class Run:
    """The whole of one run."""

    def __init__(self, seed: int, root: Path, *, foulest: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.setting: Setting = drawn(self.rng)
        self.clock = SimClock()
        self.true_clock = TrueClock()
        self.foulest = foulest
        self.foul = True
        self.report = Report(seed)
        self.trace = _Trace()
        self.trace.is_dead = self._is_dead
        self._disk = Disk(root, self._fork())
        self._book = SqliteBook(Path(":memory:"))
        self._threads = Threads(self._fork(), after_work=self._after_work)
        self._threads.before_work = self._before_work
        self._banks = {
            name: Bank(
                BankName(name),
                adapter,
                self._book,
                self.true_clock,
                self._fork(),
                self.setting.certificates,
            )
            for name, adapter in self.setting.adapters.items()
        }
        self._clients = [
            FinanceSystem(f"erp-{number}", self, self._fork())
            for number in range(self.rng.randint(1, 2))
        ]
        self._services: Services | None = None
        self._guard: Any = None
        self._sessions: trio.Nursery | None = None
        self._postman = Postman()
        self._daemon: Daemon | None = None
        self._life: trio.CancelScope | None = None
        self._crash_in_commit = False
        self._fell = False
        """Nothing that could be checked is there any more."""
        self._crashed = trio.Event()
        self._before: dict[str, bytes | None] = {}
        self._sockets: list[Any] = []

    def _fork(self) -> random.Random:
        """Return a source of its own, so that one actor's draws do not move another's."""
        return random.Random(self.rng.getrandbits(64))

    # -- the machine --------------------------------------------------------------------------

    def _before_work(self, work: Callable[..., Any]) -> None:
        if self._crash_in_commit and getattr(work, "__name__", "") == COMMIT:
            self._before = self._disk.content()

    async def _after_work(self, work: Callable[..., Any]) -> None:
        if self._before and getattr(work, "__name__", "") == COMMIT:
            self._crash_in_commit = False
            before, self._before = self._before, {}
            self._disk.crash_in_commit(before)
            self._die()
            with trio.CancelScope(shield=True, relative_deadline=1.0):
                await self._crashed.wait()

    def _open_store(self, config: Config) -> Store:
        return Store.at(config.state_dir / "fep.sqlite", DrawnPace(self._fork(), self._is_patient))

    def _is_patient(self) -> bool:
        """Say whether the next commit is the writer thread's: only there a crash is inside one."""
        return self._crash_in_commit

    async def _connect_bank(self, config: LinkConfig) -> Any:
        sock = await self._banks[config.bank].connect()
        self._sockets.append(sock)
        return sock

    async def _faces(
        self,
        _config: Any,
        services: Services,
        guard: Any,
        *,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._services, self._guard, self._sessions = services, guard, nursery
            self._postman = Postman()
            await nursery.start(self._postman.run)
            task_status.started(["simulated"])
            try:
                await trio.sleep_forever()
            finally:
                self._sessions = None

    def connect_client(self, name: str, role: Role) -> Callable[[], Awaitable[trio.abc.Stream]]:
        """Return what opens a stream to the daemon as it is at that moment."""

        async def connect() -> trio.abc.Stream:
            await trio.sleep(0.01)
            if self._sessions is None:
                raise ConnectionRefusedError(111, "refused")
            ours, theirs = socket_pair()
            self._sockets.append(theirs)
            proven = ClientName(name)
            peer = (
                Peer(None, {proven: role}, None, None, "simulated")
                if role is Role.FINANCE
                else Peer(role, {}, proven, None, "simulated")
            )
            services = self._services
            assert services is not None

            async def handle(stream: trio.SocketStream) -> None:
                session = Session(stream, peer, services, 30.0, postman=self._postman)
                if await session.open():
                    await session.run()

            self._sessions.start_soon(self._guard(handle), trio_stream(theirs))
            return trio_stream(ours)

        return connect

    # -- lives of the daemon ------------------------------------------------------------------

    async def _live(self) -> None:
        """Run the daemon, kill it, run it again, until the run is over."""
        while True:
            self._crashed = trio.Event()
            config = attrs.evolve(self.setting.config, state_dir=self._disk.directory)
            outside = Outside(self._open_store, self._connect_bank, self._faces, self._fork())
            self._daemon = Daemon(config, self.clock, Followers(), outside)
            self._sockets = []
            try:
                with trio.CancelScope() as self._life:
                    await self._daemon.run()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the run's finding
                # What a killed daemon says in dying, nobody hears.
                if not self._crashed.is_set():
                    lines = traceback.format_exception(error, limit=-4)
                    self.report.violations.append(f"the daemon fell: {''.join(lines)}")
                    self._fell = True
                    return
            self._daemon = None
            if not self._crashed.is_set():
                self.report.violations.append("the daemon ended by itself")
                self._fell = True
                return
            await trio.sleep(self.rng.uniform(0.1, 30.0))

    def _is_dead(self) -> bool:
        return self._crashed.is_set()

    def _die(self) -> None:
        """Kill the daemon at this very moment: nothing of it reaches the world any more."""
        self.report.crashes += 1
        self._cut_off()

    async def _end(self) -> None:
        """Kill the daemon before the rest ends: what it says in dying is not the run's finding.

        A lane that is between two reads finds its store ended already, as after any kill.
        """
        if not self._is_dead():
            self._cut_off()
        while self._daemon is not None:
            await trio.sleep(0.01)

    def _cut_off(self) -> None:
        self._sessions = None
        for sock in self._sockets:
            # The peer reads what left before, then the end. What comes after fails.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        assert self._life is not None
        self._life.cancel()
        self._crashed.set()

    async def _kill_now_and_then(self) -> None:
        """Kill at drawn moments, and just when a payment has reached a bank."""
        rng = self._fork()
        kills = 8 if self.foulest else rng.choice((0, 1, 2, 4, 6))
        share = 1.0 if self.foulest else rng.random()
        """Of the kills that wait for a payment."""
        for _ in range(kills):
            await trio.sleep(rng.uniform(0.0, FOUL_SECONDS / kills))
            if rng.random() < share:
                await self._next_payment()
                await trio.sleep(rng.choice((0.0, 0.02, 0.1, 10.0)) * rng.random())
            for _ in range(rng.randrange(80)):
                await trio.lowlevel.checkpoint()
            if not self.foul:
                return
            if self._daemon is None or self._crashed.is_set():
                continue
            if rng.random() < 0.4:
                self._crash_in_commit = True
            else:
                self._disk.crash()
                self._die()

    async def _next_payment(self) -> None:
        came = trio.Event()
        for bank in self._banks.values():
            bank.on_payment = came.set
        with trio.move_on_after(FOUL_SECONDS / 4):
            await came.wait()

    # -- keys, pools, clocks ------------------------------------------------------------------

    async def _step_the_clock(self) -> None:
        """Set the daemon's wall clock forward and back, by up to a day."""
        rng = self._fork()
        steps = 30 if self.foulest else rng.choice((0, 0, 1, 2, 5, 10))
        # A day's step lets expire what waits, and nothing is paid that could go wrong.
        sizes = [size for size in STEPS if size < DAY_SECONDS or not self.foulest]
        for _ in range(steps):
            await trio.sleep(rng.uniform(0.0, 2 * FOUL_SECONDS / steps))
            if not self.foul:
                return
            size = rng.choice(sizes)
            self.clock.step_s = rng.uniform(-size, size)
            self.report.steps += 1

    async def _pull_keys(self) -> None:
        rng = self._fork()
        number = 1
        while self.foul:
            await trio.sleep(rng.uniform(10.0, 300.0))
            if self._daemon is None or not self.foul:
                continue
            slot = rng.choice(list(self._daemon.ring.slots.values()))
            slot.post(View(service=True, readers=True, card=None, settled=True))
            await trio.sleep(rng.choice((0.0, 0.01, 1.0, 60.0)) * rng.random())
            number += 1
            there = Insertion("software", number, "")
            slot.post(View(service=True, readers=True, card=there, settled=True))

    async def _run_pools(self) -> None:
        rng = self._fork()
        for _ in range(rng.choice((0, 1, 1, 2))):
            await trio.sleep(rng.uniform(0.0, FOUL_SECONDS / 2))
            if self._services is not None and self._sessions is not None:
                try:
                    await self._services.pools.start_round("main", "the simulation")
                except Exception as error:  # a refusal, or the daemon died under us
                    if type(error).__name__ not in ("PoolRefusedError", "StoreFailedError"):
                        raise

    # -- the run ------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Live through it, and return what was."""
        self._book.open_accounts(self.setting.accounts, self.clock.now())
        async with trio.open_nursery() as nursery:
            for bank in self._banks.values():
                bank.misbehave(FOULEST if self.foulest else Mischief.drawn(self.rng))
                await nursery.start(bank.run)
            for client in self._clients:
                client.make_work()
                nursery.start_soon(client.run)
            nursery.start_soon(self._live)
            nursery.start_soon(self._kill_now_and_then)
            nursery.start_soon(self._pull_keys)
            nursery.start_soon(self._run_pools)
            nursery.start_soon(self._step_the_clock)
            await trio.sleep(FOUL_SECONDS)
            self._be_calm()
            await self._settle()
            to_the_end = self.rng.random() < WATCHED_TO_THE_END
            if not self._fell:
                if to_the_end:
                    await self._watch_to_the_end()
                await self._check()
                await self._end()
            nursery.cancel_scope.cancel()
        self.report.seconds = trio.current_time()
        self.report.torn = self._disk.torn
        self.report.unknowns = self.trace.counts.get("unknown", 0)
        self.report.violations += [f"defect: {one}" for one in self.trace.crashes]
        self.report.digest = self.trace.digest()
        self._book.close()
        return self.report

    def _be_calm(self) -> None:
        self.foul = False
        self._crash_in_commit = False
        # An operator has seen it. A bank does not tell a statement of tomorrow.
        self.clock.step_s = 0.0
        for bank in self._banks.values():
            bank.misbehave(Mischief())
        if self._daemon is not None:
            for slot in self._daemon.ring.slots.values():
                there = Insertion("software", 1_000_000, "")
                slot.post(View(service=True, readers=True, card=there, settled=True))

    async def _settle(self) -> None:
        """Wait until every task is at its end and told, or too long."""
        until = trio.current_time() + CALM_SECONDS_MAX
        while trio.current_time() < until:
            await trio.sleep(30.0)
            if self._daemon is None or self._sessions is None:
                continue
            status = self._services.tasks.status() if self._services is not None else None
            if (
                status is not None
                and status["open"] == 0
                and self._all_told()
                and await self._all_returns_known()
            ):
                return

    def _all_told(self) -> bool:
        return all(
            task_id in client.refused or task_id in client.results or task_id in client.cancelled
            for client in self._clients
            for task_id in client.work
        )

    def _returned(self) -> set[str]:
        """Return the references of what the banks took back."""
        return {
            payment.client_ref.partition(AGAIN)[0]
            for payment in self._book.payments()
            if payment.state is BookedState.RETURNED
        }

    async def _all_returns_known(self) -> bool:
        assert self._services is not None
        rows = await self._services.tasks.store.read(_every_task)
        known = {
            reference
            for task_id, _, state, result in rows
            for reference in _with(State.RETURNED, task_id, state.value, result)
        }
        told = {
            reference
            for client in self._clients
            for task_id, result in client.results.items()
            for reference in _with(State.RETURNED, task_id, result.state, result.result)
        }
        ours = {
            reference
            for client in self._clients
            for task_id, one in client.work.items()
            for reference in _references(task_id, one["body"]["params"].get("rows"))
        }
        coming_back = self._returned()
        return coming_back <= known and coming_back & ours <= told

    async def _watch_to_the_end(self) -> None:
        """Go on until every success was watched for its time; then nothing is watched."""
        await trio.sleep(WATCH_SECONDS + 3600.0)
        assert self._services is not None
        left = await self._services.tasks.store.read(_watched)
        if left:
            self.report.violations.append(f"{left} payments are watched for ever")

    def _replayed(self) -> list[Difference]:
        """Return what the same adapters make of the kept bytes that was not noted with them."""
        with ExitStack() as stack:
            made = opened(stack, self.setting.config, self._disk.directory / STORE_FILE)
            made.all(None, _silent, _silent)
        return made.report.differences

    async def _check(self) -> None:
        faults = self.report.violations
        assert self._daemon is not None
        store = self._services.tasks.store if self._services is not None else None
        assert store is not None
        rows = await store.read(_every_task)
        self.report.tasks = len(rows)
        faults += self._book.check()
        looked = verify(self._disk.directory / STORE_FILE, enterprise=ENTERPRISE)
        faults += [f"the store is not sound: {one}" for one in looked.findings]
        faults += [f"read otherwise than it was: {one}" for one in self._replayed()]
        booked: dict[str, int] = {}
        returned = self._returned()
        self.report.returned = len(returned)
        for payment in self._book.payments():
            if payment.state in (BookedState.DONE, BookedState.RETURNED):
                first = payment.client_ref.partition(AGAIN)[0]
                booked[first] = booked.get(first, 0) + 1
        bodies = {
            name: one["body"] for client in self._clients for name, one in client.work.items()
        }
        for task_id, kind, state, result in rows:
            if state not in FINAL:
                faults.append(f"{task_id} is stuck in {state.value}")
            if kind not in ("transfer", "batch_transfer"):
                continue
            sent = bodies[task_id]["params"].get("rows") if task_id in bodies else None
            ends = _states(task_id, state.value, result)
            for reference in _references(task_id, sent):
                # A batch that never left tells of no row.
                told = State(ends.get(reference, state.value))
                if state in BOOKED_ONCE and reference not in ends:
                    faults.append(f"{task_id} is {state.value} and tells not of {reference}")
                times = booked.pop(reference, 0)
                if times != int(told in BOOKED_ONCE):
                    faults.append(f"{task_id} is {told.value} and was booked {times} times")
                if (reference in returned) != (told is State.RETURNED):
                    came = "came back" if reference in returned else "never came back"
                    faults.append(f"{task_id} is {told.value} and {came}")
        faults += [f"payment {reference} has no task" for reference in booked]
        faults += [
            f"sweep {one} came back and pooling does not know" for one in await store.read(_unheard)
        ]
        states = {task_id: state for task_id, _, state, _ in rows}
        for client in self._clients:
            for task_id in client.acknowledged:
                if task_id not in states:
                    faults.append(f"{task_id} was acknowledged and is lost")
                elif task_id not in client.results:
                    if states[task_id] is not State.CANCELLED:
                        faults.append(f"{task_id} is {states[task_id].value} and was never told")
                elif client.results[task_id].state != states[task_id].value:
                    faults.append(
                        f"{task_id} was told as {client.results[task_id].state} and is"
                        f" {states[task_id].value}"
                    )


def _silent(*_: object) -> None:
    pass


def _references(task_id: str, rows: list[Any] | None) -> list[str]:
    """Return the references that a task's money moves under at the bank."""
    reference = client_ref(ENTERPRISE, TaskId(task_id))
    return [reference] if rows is None else [row_ref(reference, at) for at in range(len(rows))]


def _states(task_id: str, state: str, result: Any) -> dict[str, str]:
    """Return by reference what a task's state and result tell of each of its payments."""
    rows = (result or {}).get("rows")
    if rows is None:
        return {client_ref(ENTERPRISE, TaskId(task_id)): state}
    return {row["client_ref"]: row["state"] for row in rows}


def _with(wanted: State, task_id: str, state: str, result: Any) -> list[str]:
    """Return the references of a task's payments that are told as being in a state."""
    states = _states(task_id, state, result)
    return [reference for reference, one in states.items() if one == wanted.value]


def _every_task(connection: Any) -> list[tuple[str, str, State, Any]]:
    import sqlalchemy as sa  # noqa: PLC0415

    table = schema.task
    columns = (table.c.task_id, table.c.kind, table.c.state, table.c.result)
    return [
        (row[0], row[1], State(row[2]), row[3] and orjson.loads(row[3]))
        for row in connection.execute(sa.select(*columns))
    ]


def _watched(connection: Any) -> int:
    import sqlalchemy as sa  # noqa: PLC0415

    table = schema.payment
    query = sa.select(sa.func.count()).where(table.c.watched_s.is_not(None))
    return int(connection.execute(query.select_from(table)).scalar_one())


def _unheard(connection: Any) -> list[str]:
    """Return the sweeps that came back and are something else in their rounds."""
    import sqlalchemy as sa  # noqa: PLC0415

    task, item = schema.task, schema.pool_item
    query = (
        sa.select(task.c.task_id)
        .join(item, item.c.sweep_task == task.c.task_id)
        .where(task.c.state == State.RETURNED.value, item.c.state != "returned")
    )
    return [row[0] for row in connection.execute(query)]


def simulate(seed: int, *, foulest: bool = False) -> tuple[Report, list[str]]:
    """Run one seed; returns the report and the whole trace.

    Args:
        seed: everything follows from it.
        foulest: all banks are as bad as can be and forget references, and each of many kills comes
            just when a payment has reached a bank; else that is drawn, too.
    """
    root = Path(tempfile.mkdtemp(prefix=f"fep-sim-{seed}-", dir=_memory()))
    run = Run(seed, root, foulest=foulest)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, run.trace],
        cache_logger_on_first_use=False,
    )
    try:
        with deterministic(seed), run._threads.installed():
            report = trio.run(run.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        structlog.reset_defaults()
        shutil.rmtree(root)
    return report, run.trace.lines


def report_of(seed: int) -> Report:
    """Return the report of one seed; one that could not be ended is a violation, too."""
    try:
        return simulate(seed)[0]
    except Exception as error:  # noqa: BLE001 - whatever it is, the other seeds go on
        lines = traceback.format_exception(error, limit=-4)
        return Report(seed, violations=[f"the run fell: {''.join(lines)}"])


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
