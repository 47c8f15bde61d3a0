"""The daemon put together: what is started in which order, reloaded, and stopped.

Order of nurseries, from the outside: the store (ends last, so that what the lanes still have to
write is written); keys and banks; the control server (ends first, so that nobody is promised what
will not be done). One nursery a key slot, one a bank's connection.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import orjson
import structlog
import trio

from fep.adapters.card import Protocol
from fep.alarms.delivery import Delivery
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.control.audit import Audit
from fep.control.commands import ProtocolRefusal, Services, answer
from fep.control.config import ControlConfig
from fep.control.renewal import Renewals
from fep.control.service import Guard, run_control
from fep.daemon import config as configuration
from fep.daemon import notify
from fep.daemon.config import BankConfig, Config, ConfigFaultsError
from fep.daemon.difference import Difference, difference
from fep.daemon.settings import Settings, Site
from fep.daemon.store_section import database_of
from fep.daemon.supervisor import attempted, guarded, supervise
from fep.domain.account import Account
from fep.domain.clock import Clock
from fep.domain.errors import ConfigError, FepError
from fep.domain.ids import AccountNumber, BankName, Sequence
from fep.domain.words import counted
from fep.keys.service import KeyRing, Slot, run_monitor, run_slot
from fep.links.folder import FolderLink
from fep.links.mux import UnmatchedReply
from fep.links.pool import LinkPool
from fep.links.recorder import DIRECTORY as TAPE_DIRECTORY
from fep.links.recorder import Recorder
from fep.links.service import BankLink, Connect, Link, connect_tcp, run_link
from fep.logs import Followers
from fep.machines.service import GuardedStore, Machines, PlaceLostError, Tenure, new_me
from fep.machines.state import POOLING, bank_place
from fep.pooling.service import PoolService
from fep.store.database import Store, StoreBusyError, StoreFullError
from fep.store.files import LOCK_FILE, RESTORING_FILE, STORE_FILE
from fep.tasks.lane import Lane, LaneParts
from fep.tasks.service import TaskService
from fep.users.service import Users

if TYPE_CHECKING:
    from fep.traces.service import Tracer

log = structlog.get_logger()

UNMATCHED_WAITING_MAX: Final = 64
DRAIN_SECONDS_MAX: Final = 10.0
"""At a stop, requests in flight get this long to have their answers."""
APPLY_SECONDS_MAX: Final = 600.0
"""A configuration is taken into force by then; each bank that ends has ``DRAIN_SECONDS_MAX``."""
INSTANCE_FILE: Final = "fep.instance"
LEAVE_SECONDS_MAX: Final = 10.0
CLOSED_AFTER_SECONDS: Final = 5.0
"""At the start a shared database has this long before everybody is told that it is away."""

_LINKS: Final[Mapping[Protocol, Callable[..., BankLink]]] = {
    Protocol.TCP: Link,
    Protocol.HTTP: LinkPool,
    Protocol.FOLDER: FolderLink,
}

VERIFY_SECONDS_MAX: Final = 1800.0
VERIFY_CHARS_MAX: Final = 500


class NotVerifiedError(FepError):
    """The look at the store did not come to its end."""

    code = "NOT_VERIFIED"


def _set() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@attrs.define
class _Unit:
    """One running bank: its connection and its lane."""

    config: BankConfig
    link: BankLink
    scope: trio.CancelScope
    tape: Recorder | None = None
    ended: trio.Event = attrs.field(factory=_set)
    """Set while it does not run."""


Faces = Callable[..., Awaitable[None]]
"""As ``run_control``: started with (ControlConfig, Services, Guard), ``started()`` with the
addresses it listens on."""


def _store_of(config: Config) -> Store:
    """Return the store of the configuration, not opened yet.

    Raises:
        KeyFileError, ConfigError: the password of a shared one can't be read.
    """
    shared = config.store
    if shared is None:
        return Store.at(config.state_dir / STORE_FILE)
    return Store(database_of(shared, config.enterprise.fep_number), open_seconds_max=math.inf)


async def _run_faces(
    config: ControlConfig,
    services: Services,
    guard: Guard,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    inherited = notify.inherited_sockets().get("control", [])
    await run_control(config, services, guard, inherited, task_status=task_status)


@attrs.frozen
class Outside:
    """What of the daemon touches the machine; the simulation puts its own in place."""

    open_store: Callable[[Config], Store] = _store_of
    connect: Connect = connect_tcp
    faces: Faces = _run_faces
    rng: random.Random = attrs.field(factory=random.Random, repr=False)
    """Jitter of reconnects, and where the request numbers begin."""


class Daemon:
    """One front-end processor (企业端前置机).

    ``run`` is ``started()`` with the control addresses when everything listens; it ends when
    ``stop`` was called or the task is cancelled, and raises when the store fails.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        followers: Followers,
        outside: Outside | None = None,
    ) -> None:
        self.config = config
        self._outside = outside or Outside()
        self._clock = clock
        self._followers = followers
        self._accounts: dict[AccountNumber, Account] = dict(config.accounts)
        self._rng = self._outside.rng
        self._units: dict[BankName, _Unit] = {}
        self._ending: list[_Unit] = []
        """Taken out of force and not ended yet."""
        self.links: dict[BankName, BankLink] = {}
        self._stop = trio.Event()
        self._lanes_nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()
        self._began = config
        """What the process was started with: some of it only a start takes."""
        self._is_up = False

    # -- life ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin the orderly end."""
        self._stop.set()

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Live until stopped."""
        config = self.config
        with _telling_of(config.state_dir):
            config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(config):
            self._store = self._outside.open_store(config)
            self._assemble()
            async with trio.open_nursery() as nursery:
                # First of all and last: that the store does not answer is told too.
                await nursery.start(self.delivery.run)
                if self.machines is None:
                    await nursery.start(self._store.run)
                    await self._live(task_status)
                elif (status := await self._open_shared(nursery, task_status)) is not None:
                    await self._live_among_others(self.machines, status)
                nursery.cancel_scope.cancel()

    async def _open_shared(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[list[str]]
    ) -> trio.TaskStatus[list[str]] | None:
        """Start the store, however long its server does not answer.

        Returns:
            What is to be told once all is up; None when the daemon was stopped while it waited.
        """
        status: list[trio.TaskStatus[list[str]]] = [task_status]

        async def wait() -> None:
            # A server that drops what it is sent is given up late: the unit does not wait so long.
            with trio.move_on_after(CLOSED_AFTER_SECONDS):
                await self._store.went_away.wait()
            self.alarms.raise_alarm(AlarmKind.STORE_DOWN, "store", self._why_away())
            closed = attrs.evolve(self.services, closed=self._why_closed)
            faces = self._outside.faces
            addresses = await waiting.start(faces, self.config.control, closed, guarded)
            waiting.start_soon(notify.watchdog, self._healthy, self.status_line)
            # Up as far as it can be: who waits for us may ask us why.
            status.pop().started(addresses)

        async def obey() -> None:
            await self._stop.wait()
            waiting.cancel_scope.cancel()

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            waiting.start_soon(obey)
            await nursery.start(self._store.run)
            waiting.cancel_scope.cancel()
        later = status[0] if status else trio.TASK_STATUS_IGNORED
        if self._stop.is_set():
            later.started([])
            return None
        return later

    def _why_closed(self) -> str:
        return f"nothing is taken or sent: {self._why_away()}"

    def _why_away(self) -> str:
        return self._store.away or "the shared database has not answered yet"

    async def _live_among_others(
        self, machines: Machines, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        """Be one of the machines that share the store: they know of us before anything begins."""
        async with trio.open_nursery() as nursery:
            await nursery.start(machines.run)
            await self._live(task_status)
            nursery.cancel_scope.cancel()

    def _assemble(self) -> None:
        config, clock = self.config, self._clock
        self.alarms = Alarms(self._store, clock, config.alarms, self._rng)
        number = config.enterprise.fep_number
        self.delivery = Delivery(self.alarms, clock, number, self._supervised)
        self.ring = KeyRing(config.slots, self.alarms, clock, self._store)
        self._sequence = Sequence(self._rng.randrange(1_000_000))
        self.tasks = TaskService(
            store=self._store,
            alarms=self.alarms,
            clock=clock,
            sequence=self._sequence,
            config=config.tasks,
            enterprise=config.enterprise.id,
            accounts=self._accounts,
            configuration=config.digest,
        )
        self.tracer: Tracer | None = None
        if config.traces is not None:
            # Most daemons send none.
            from fep.traces.service import Tracer  # noqa: PLC0415

            who = config.enterprise
            self.tracer = Tracer(
                config.traces, who.id, who.fep_number, clock, self._store, self._slot_of
            )
            self.tasks.tracing = self.tracer
        self.machines: Machines | None = None
        guarded_store = None
        if config.store is not None:
            me = new_me(
                config.enterprise.fep_number,
                config.enterprise.id,
                version("fep"),
                config.store.lease_s,
            )
            before = _instance_before(config.state_dir / INSTANCE_FILE, me.instance)
            self.machines = Machines(self._store, self.alarms, me, before)
            self.tasks.share(self.machines)
            guarded_store = GuardedStore(self._store, self.machines, POOLING)
        self._unmatched, self._replies = trio.open_memory_channel[UnmatchedReply](
            UNMATCHED_WAITING_MAX
        )
        self.pools = PoolService(
            config.pools, self._accounts, self.tasks, self.alarms, clock, guarded_store
        )
        site = Site(
            path=config.path,
            # A store of its own has one machine, whatever number that bears.
            machine="" if config.store is None else config.enterprise.fep_number,
            in_force=lambda: self.config,
            slots=self.ring.slots.keys,
            links=self.links.values,
            difference=self._foretold,
            apply=self._apply,
            undo=self._undo,
            alarms=self.alarms,
        )
        self.settings = Settings(site, self._store, clock)
        self.services = Services(
            tasks=self.tasks,
            ring=self.ring,
            links=self.links,
            alarms=self.alarms,
            delivery=self.delivery,
            pools=self.pools,
            users=Users(self._store, clock, self._digest, config.console.sessions),
            audit=Audit(self._store, clock, self._digest),
            followers=self._followers,
            clock=clock,
            started_at=clock.now(),
            version=version("fep"),
            show_config=lambda: configuration.redacted(self.config),
            check_config=self._check_config,
            apply_config=self.apply,
            settings=self.settings,
            machines=self.machines,
            machine_name=config.enterprise.fep_number,
            renewals=Renewals(self.alarms, clock),
        )
        if self.machines is not None:
            self.machines.answer(partial(answer, self.services))

    async def _verify_store(self) -> dict[str, Any]:
        """Look at the whole store in a process of its own, which takes nothing from the banks.

        Raises:
            NotVerifiedError: there is no answer.
        """
        command = [sys.executable, "-m", "fep.daemon.main", "verify-store", "--json"]
        command += ["--config", str(self.config.path)]
        with trio.move_on_after(VERIFY_SECONDS_MAX):
            ended = await trio.run_process(
                ["nice", "-n", "10", *command],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            try:
                report: dict[str, Any] = orjson.loads(ended.stdout)
            except orjson.JSONDecodeError as error:
                told = ended.stderr.decode("utf-8", "replace").strip()[-VERIFY_CHARS_MAX:]
                raise NotVerifiedError(told or f"exit status {ended.returncode}") from error
            return report
        msg = f"not done within {VERIFY_SECONDS_MAX:g} s; run fep verify-store"
        raise NotVerifiedError(msg)

    def _digest(self) -> str:
        return self.tasks.configuration

    async def _live(self, task_status: trio.TaskStatus[list[str]]) -> None:
        await self.alarms.load()
        self.alarms.clear(AlarmKind.STORE_DOWN, "store")
        for bank in self.config.banks:
            self._make(bank)
        await self.tasks.load()
        async with trio.open_nursery() as lanes:
            self._lanes_nursery = lanes
            await lanes.start(self.tasks.run)
            await lanes.start(
                self._supervised, "answers", partial(self.tasks.run_unmatched, self._replies)
            )
            if self.tasks.sharing is not None:
                await lanes.start(self.tasks.sharing.run)
            if self.ring.needs_monitor:
                await lanes.start(self._supervised, "keys", partial(run_monitor, self.ring))
            for name, slot in self.ring.slots.items():
                await lanes.start(self._supervised, f"slot:{name}", partial(run_slot, slot))
            for bank in self.config.banks:
                if bank.name in self._units:
                    await lanes.start(self._run_unit, bank)
            if self.machines is None:
                await lanes.start(self._supervised, "pooling", self.pools.run)
            else:
                lanes.start_soon(partial(self._pool_in_turns, self.machines))
            await self._start_beside(lanes)
            async with trio.open_nursery() as faces:
                addresses = await faces.start(
                    self._outside.faces, self.config.control, self.services, guarded
                )
                faces.start_soon(notify.watchdog, self._healthy, self.status_line)
                await self._start_pages(faces)
                log.info(
                    "daemon.started",
                    version=self.services.version,
                    configuration=self.config.digest,
                    banks=len(self.config.banks),
                    slots=len(self.config.slots),
                    accounts=len(self._accounts),
                    addresses=addresses,
                )
                self._is_up = True
                task_status.started(addresses)
                await self._stop.wait()
                await self._wind_down()
                faces.cancel_scope.cancel()
            lanes.cancel_scope.cancel()
        log.info("daemon.stopped")

    async def _start_pages(self, faces: trio.Nursery) -> None:
        """Start what is served over HTTP; most daemons have none, and it takes time to load."""
        config = self._began
        if config.console.listen is not None:
            from fep.console.service import run_console  # noqa: PLC0415

            console = partial(
                run_console, config.console, self.services, guarded, self._verify_store
            )
            await faces.start(self._supervised, "console", console)
        if config.metrics.listen is not None:
            from fep.metrics.service import run_metrics  # noqa: PLC0415

            metrics = partial(run_metrics, config.metrics, self.services, guarded)
            await faces.start(self._supervised, "metrics", metrics)

    async def _start_beside(self, lanes: trio.Nursery) -> None:
        """Start what no task waits for."""
        await self.settings.load()
        await lanes.start(self._supervised, "settings", self.settings.run)
        if self.tracer is not None:
            await lanes.start(self._supervised, "traces", self.tracer.run)

    async def _wind_down(self) -> None:
        """Take nothing new, and let what is at the banks come home."""
        notify.notify("STOPPING=1")
        log.info("daemon.stopping", open=self.tasks.status()["open"])
        self.tasks.stop_accepting()
        for lane in self.tasks.lanes.values():
            lane.drain()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            for lane in list(self.tasks.lanes.values()):
                await lane.wait_idle()

    async def _supervised(
        self,
        name: str,
        lane: Callable[..., Awaitable[None]],
        leave: Callable[[], Awaitable[None]] | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await supervise(name, lane, self.alarms, leave=leave, task_status=task_status)

    # -- banks --------------------------------------------------------------------------------

    def _make(self, bank: BankConfig) -> None:
        """Make a bank's connection and lane, not started yet; none without a key slot here."""
        if bank.slot is None:
            assert self.tasks.sharing is not None
            self.tasks.sharing.know_foreign(bank.name, bank.adapter.capabilities)
            return
        codec = bank.adapter.open(bank.profile(self._accounts, bank.read_secrets()))
        tape, connect = None, self._outside.connect
        if bank.tape:
            directory = self._began.state_dir / TAPE_DIRECTORY
            tape = Recorder(directory, bank.name, bank.adapter.name, self._clock)
            connect = tape.tapped(connect)
        link: BankLink = _LINKS[bank.card.transport.protocol](
            bank.link,
            codec,
            self._sequence,
            self._clock,
            self.alarms,
            self._unmatched,
            random.Random(self._rng.random()),  # noqa: S311
            connect,
        )
        most = bank.card.throttle.concurrent_max
        self.tasks.add_lane(
            LaneParts(
                bank=bank.name,
                codec=codec,
                card=bank.card,
                capabilities=bank.adapter.capabilities,
                link=link,
                slot=self.ring.slots[bank.slot],
                workers=min(bank.workers, most) if most else bank.workers,
                reply_timeout_s=bank.link.reply_timeout_s,
                may_begin=(
                    None
                    if self.machines is None
                    else partial(self.machines.may_begin, bank_place(bank.name))
                ),
                system=bank.system(shared=self.machines is not None),
                **({} if tape is None else {"note_frame": tape.note_task}),
            )
        )
        self._units[bank.name] = _Unit(bank, link, trio.CancelScope(), tape)
        self.links[bank.name] = link

    async def _run_unit(
        self, bank: BankConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a bank's connection and lane until the bank is taken out of force."""
        unit = self._units[bank.name]
        unit.ended = trio.Event()
        assert bank.slot is not None
        slot = self.ring.slots[bank.slot]
        try:
            with unit.scope:
                async with trio.open_nursery() as nursery:
                    if unit.tape is not None:
                        await nursery.start(self._supervised, f"tape:{bank.name}", unit.tape.run)
                    if self.machines is not None:
                        task_status.started()
                        await self._serve_in_turns(self.machines, bank, unit, slot)
                    await nursery.start(
                        self._supervised, f"link:{bank.name}", partial(run_link, unit.link, slot)
                    )
                    lane = self.tasks.lanes[bank.name]
                    await nursery.start(self._supervised, f"bank:{bank.name}", lane.run, lane.leave)
                    task_status.started()
        finally:
            if unit.tape is not None:
                with trio.CancelScope(shield=True, relative_deadline=LEAVE_SECONDS_MAX):
                    await unit.tape.flush()
            unit.ended.set()

    async def _serve_in_turns(
        self, machines: Machines, bank: BankConfig, unit: _Unit, slot: Slot
    ) -> NoReturn:
        """Serve a bank whenever it is this machine's turn, until cancelled."""
        sharing = self.tasks.sharing
        assert sharing is not None
        while True:
            tenure = await machines.win(
                bank_place(bank.name), lambda: slot.is_open, lambda: unit.link.is_open
            )
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve, bank, unit, slot, tenure)
                    await tenure.over.wait()
                    if not tenure.is_lost:
                        # Left to another machine: what is at the bank may come home first.
                        await self._empty(self.tasks.lanes[bank.name])
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True, relative_deadline=LEAVE_SECONDS_MAX):
                    await machines.give_up(tenure)

    async def _serve(self, bank: BankConfig, unit: _Unit, slot: Slot, tenure: Tenure) -> None:
        """Run a bank's connection and lane while this machine holds its place."""
        sharing = self.tasks.sharing
        assert sharing is not None
        try:
            await sharing.take_bank(bank.name)
            lane = self.tasks.lanes[bank.name]
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    self._supervised, f"link:{bank.name}", partial(run_link, unit.link, slot)
                )
                run = partial(_while_held, tenure, lane.run)
                await nursery.start(self._supervised, f"bank:{bank.name}", run, lane.leave)
        finally:
            sharing.drop_bank(bank.name)

    async def _pool_in_turns(self, machines: Machines) -> NoReturn:
        """Run the pools whenever it is this machine's turn, until cancelled."""
        while True:
            tenure = await machines.win(POOLING, lambda: True)
            try:
                async with trio.open_nursery() as nursery:
                    run = partial(_while_held, tenure, self.pools.run)
                    nursery.start_soon(self._supervised, "pooling", run)
                    await tenure.over.wait()
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True, relative_deadline=LEAVE_SECONDS_MAX):
                    await machines.give_up(tenure)

    @staticmethod
    async def _empty(lane: Lane) -> None:
        """Let nothing new leave, and wait for the answers to what has left."""
        lane.drain()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            await lane.wait_idle()

    def _slot_of(self, name: BankName) -> str:
        unit = self._units.get(name)
        return "" if unit is None else unit.config.slot or ""

    async def _end_unit(self, name: BankName) -> None:
        """Take a bank out of force: nothing new leaves, answers come home, then it ends."""
        unit = self._units.pop(name)
        self._ending.append(unit)
        try:
            await self._empty(self.tasks.lanes[name])
        finally:
            # Also where that is cut off: another apply does not know it any more.
            unit.scope.cancel()
        await self._wait_ended()

    async def _wait_ended(self) -> None:
        while self._ending:
            await self._ending[0].ended.wait()
            del self._ending[0]

    # -- configuration ------------------------------------------------------------------------

    async def _check_config(self) -> list[str]:
        faults = await trio.to_thread.run_sync(configuration.check, self.config.path)
        return [str(fault) for fault in faults]

    async def apply(self, who: str) -> dict[str, Any]:
        """Take the file on disk into force, bank by bank; other banks do not notice.

        Raises:
            ProtocolRefusal: BAD_STATE, the file has faults (they are listed), or the daemon is not
                up yet; nothing was changed.
        """
        if self._lanes_nursery is None:
            raise ProtocolRefusal("BAD_STATE", "the daemon is still starting; nothing was changed")
        await self.services.renewals.look()
        applied = await self._apply(who)
        await self.settings.noted(self.config, who)
        return applied

    def _difference(self, new: Config) -> Difference:
        return difference(self._began, self.config, new, self.ring.slots, self._units)

    def _foretold(self, new: Config) -> dict[str, Any]:
        """Return what a configuration would change, and what is under way where it does."""
        found = self._difference(new)
        banks = self.tasks.status()["banks"]
        touched = (*found.changed, *found.removed)
        return found.value() | {
            "open": {one: banks[one]["open"] for one in touched if one in banks}
        }

    async def _apply(self, who: str) -> dict[str, Any]:
        return await self._apply_read(who, partial(configuration.load, self.config.path))

    async def _undo(self, who: str) -> dict[str, Any]:
        return await self._apply_read(who, lambda: self.config)

    async def _apply_read(self, who: str, read: Callable[[], Config]) -> dict[str, Any]:
        if not self._is_up or self._stop.is_set():
            doing = "stopping" if self._is_up else "still starting"
            raise ProtocolRefusal("BAD_STATE", f"the daemon is {doing}; nothing was changed")
        async with self._reloading:
            try:
                new = await trio.to_thread.run_sync(read)
            except ConfigFaultsError as error:
                log.error("config.refused", who=who, faults=len(error.faults))
                msg = f"{counted(len(error.faults), 'fault')}, nothing was changed:\n{error}"
                raise ProtocolRefusal("BAD_STATE", msg) from error
            applied: dict[str, Any] = {}

            async def take() -> None:
                applied.update(await self._take_into_force(new, who))

            # Half a change would leave a bank ended and not begun.
            why = f"not done within {APPLY_SECONDS_MAX:g} s"
            with trio.CancelScope(shield=True, relative_deadline=APPLY_SECONDS_MAX):
                try:
                    why = await attempted(f"apply by {who}", take)
                except (StoreBusyError, StoreFullError) as error:
                    why = str(error)
            if why:
                msg = f"not all of it is in force, an apply tries it again: {why}"
                raise ProtocolRefusal("BAD_STATE", msg)
            return applied

    async def _take_into_force(self, new: Config, who: str) -> dict[str, Any]:
        await self._wait_ended()
        found = self._difference(new)
        after = {bank.name: bank for bank in new.banks}
        _try_secrets(new, [after[name] for name in found.changed])
        self._accounts.clear()
        self._accounts.update(new.accounts)
        self.pools.configure(new.pools, self._accounts)
        await self.delivery.configure(new.alarms)
        for name in (*found.removed, *found.changed):
            if name in self._units:
                await self._end_unit(name)
        for name in (
            *found.removed,
            *(name for name in found.changed if after[name].slot is None),
        ):
            self.links.pop(name, None)
            if self.tasks.sharing is not None:
                self.tasks.sharing.forget_foreign(name)
            # Also where an earlier apply began with it: what was cut off then is finished now.
            await self.tasks.remove_lane(name)
        for name in found.changed:
            await self._begin_unit(after[name])
        self.config = new
        self.tasks.configuration = new.digest
        log.warning(
            "config.applied",
            who=who,
            configuration=new.digest,
            changed=list(found.changed),
            removed=list(found.removed),
            restart_needed=list(found.restart),
        )
        return {"configuration": new.digest, **found.value()}

    async def _begin_unit(self, bank: BankConfig) -> None:
        """Let a bank run as it is configured now; where that fails, the next apply begins it."""
        assert self._lanes_nursery is not None
        is_begun = False
        try:
            self._make(bank)
            if self._stop.is_set() and bank.name in self.tasks.lanes:
                self.tasks.lanes[bank.name].drain()
            await self.tasks.keep_drained()
            if bank.name in self._units:
                if self.tasks.sharing is not None:
                    self.tasks.sharing.forget_foreign(bank.name)
                await self._lanes_nursery.start(self._run_unit, bank)
            is_begun = True
        finally:
            if not is_begun:
                self._units.pop(bank.name, None)

    # -- health -------------------------------------------------------------------------------

    def _healthy(self) -> bool:
        return not (self._store.failed or self._store.stalled)

    def status_line(self) -> str:
        """Return the line that ``systemctl status`` shows."""
        if self._store.away:
            return self._why_closed()
        status = self.tasks.status()
        down = sorted(bank for bank, link in self.links.items() if not link.is_open)
        keys = sorted(name for name, slot in self.ring.slots.items() if not slot.is_open)
        parts = [f"{status['open']} tasks open", f"{len(self.alarms.active())} alarms"]
        if self.tasks.held_since is not None:
            parts.append("a backup was restored: payments are held")
        if down:
            parts.append(f"banks down: {', '.join(down)}")
        if keys:
            parts.append(f"keys not ready: {', '.join(keys)}")
        return "; ".join(parts)


def _try_secrets(new: Config, banks: Iterable[BankConfig]) -> None:
    """Make each bank's codec once with its secrets, before anything is ended for it.

    Raises:
        ProtocolRefusal: BAD_STATE, a secret is not there or is refused; nothing was changed.
    """
    for bank in banks:
        if bank.slot is None:
            continue
        try:
            bank.adapter.open(bank.profile(new.accounts, bank.read_secrets()))
        except (FepError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            msg = f"nothing was changed: bank {bank.name}: {error}"
            raise ProtocolRefusal("BAD_STATE", msg) from error


async def _while_held(
    tenure: Tenure,
    run: Callable[..., Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run something of a place; that another machine holds it by now is no defect, but its end."""
    try:
        await run(task_status=task_status)
    except* PlaceLostError:
        tenure.lose()
        await trio.sleep_forever()


def _instance_before(path: Path, instance: str) -> str:
    """Return the instance of this machine's last process, and note the present one's.

    That process is dead: its state directory is ours. Empty where there was none.
    """
    try:
        before = path.read_text("utf-8").strip()
    except FileNotFoundError:
        before = ""
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(instance)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return before


@contextmanager
def _telling_of(state_dir: Path) -> Iterator[None]:
    """Tell why the state directory can't be used.

    Raises:
        ConfigError: the block met the system's refusal.
    """
    try:
        yield
    except FileExistsError as error:
        msg = f"{state_dir}: the state directory can't be used: it is no folder"
        raise ConfigError(msg) from error
    except OSError as error:
        where = "" if error.filename in (None, str(state_dir)) else f" ({error.filename})"
        msg = f"{state_dir}: the state directory can't be used: {error.strerror}{where}"
        raise ConfigError(msg) from error


@contextmanager
def _only_one(config: Config) -> Iterator[None]:
    """Hold the state directory: two daemons on one store could both send.

    Raises:
        ConfigError: another daemon holds it, half a restore is in it, or it can't be written.
    """
    with _telling_of(config.state_dir):
        fd = os.open(config.state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{config.state_dir}: another daemon runs on this state directory; stop it first"
            raise ConfigError(msg) from error
        if (config.state_dir / RESTORING_FILE).exists():
            msg = f"{config.state_dir}: a restore did not come to its end; run fep restore again"
            raise ConfigError(msg)
        yield
    finally:
        os.close(fd)
