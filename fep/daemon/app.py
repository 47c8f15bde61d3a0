"""The daemon put together: what is started in which order, reloaded, and stopped.

Order of nurseries, from the outside: the store (ends last, so that what the lanes still have to
write is written); keys and banks; the control server (ends first, so that nobody is promised what
will not be done). One nursery a key slot, one a bank's connection.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import attrs
import structlog
import trio

from fep.adapters.api import BankProfile
from fep.alarms.service import Alarms
from fep.control.commands import ProtocolRefusal, Services
from fep.control.config import ControlConfig
from fep.control.service import Guard, run_control
from fep.daemon import config as configuration
from fep.daemon import notify
from fep.daemon.config import BankConfig, Config, ConfigFaultsError
from fep.daemon.supervisor import guarded, supervise
from fep.domain.account import Account
from fep.domain.clock import Clock
from fep.domain.errors import ConfigError
from fep.domain.ids import AccountNumber, BankName, Sequence
from fep.keys.service import KeyRing, run_monitor, run_slot
from fep.links.mux import UnmatchedReply
from fep.links.service import Connect, Link, connect_tcp, run_link
from fep.logs import Followers
from fep.pooling.service import PoolService
from fep.store.database import Store
from fep.store.files import LOCK_FILE, RESTORING_FILE, STORE_FILE
from fep.tasks.lane import LaneParts
from fep.tasks.service import TaskService

log = structlog.get_logger()

UNMATCHED_WAITING_MAX: Final = 64
DRAIN_SECONDS_MAX: Final = 10.0
"""At a stop, requests in flight get this long to have their answers."""


@attrs.define
class _Unit:
    """One running bank: its connection and its lane."""

    config: BankConfig
    link: Link
    scope: trio.CancelScope
    ended: trio.Event


Faces = Callable[..., Awaitable[None]]
"""As ``run_control``: started with (ControlConfig, Services, Guard), ``started()`` with the
addresses it listens on."""


def _store_of(config: Config) -> Store:
    return Store.at(config.state_dir / STORE_FILE)


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
        self.links: dict[BankName, Link] = {}
        self._stop = trio.Event()
        self._lanes_nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()

    # -- life ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin the orderly end."""
        self._stop.set()

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Live until stopped."""
        config = self.config
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(config):
            self._store = self._outside.open_store(config)
            self._assemble()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._store.run)
                await self._live(task_status)
                nursery.cancel_scope.cancel()

    def _assemble(self) -> None:
        config, clock = self.config, self._clock
        self.alarms = Alarms(self._store, clock)
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
        self._unmatched, self._replies = trio.open_memory_channel[UnmatchedReply](
            UNMATCHED_WAITING_MAX
        )
        self.pools = PoolService(config.pools, self._accounts, self.tasks, self.alarms, clock)
        self.services = Services(
            tasks=self.tasks,
            ring=self.ring,
            links=self.links,
            alarms=self.alarms,
            pools=self.pools,
            followers=self._followers,
            clock=clock,
            started_at=clock.now(),
            version=version("fep"),
            show_config=lambda: configuration.redacted(self.config),
            check_config=self._check_config,
            apply_config=self.apply,
        )

    async def _live(self, task_status: trio.TaskStatus[list[str]]) -> None:
        await self.alarms.load()
        for bank in self.config.banks:
            self._make(bank)
        await self.tasks.load()
        async with trio.open_nursery() as lanes:
            self._lanes_nursery = lanes
            await lanes.start(self.tasks.run)
            await lanes.start(partial(self.tasks.run_unmatched, self._replies))
            if self.ring.needs_monitor:
                await lanes.start(self._supervised, "keys", partial(run_monitor, self.ring))
            for name, slot in self.ring.slots.items():
                await lanes.start(self._supervised, f"slot:{name}", partial(run_slot, slot))
            for bank in self.config.banks:
                await lanes.start(self._run_unit, bank)
            await lanes.start(self._supervised, "pooling", self.pools.run)
            async with trio.open_nursery() as faces:
                addresses = await faces.start(
                    self._outside.faces, self.config.control, self.services, guarded
                )
                faces.start_soon(notify.watchdog, self._healthy, self.status_line)
                log.info(
                    "daemon.started",
                    version=self.services.version,
                    configuration=self.config.digest,
                    banks=len(self.config.banks),
                    slots=len(self.config.slots),
                    accounts=len(self._accounts),
                    addresses=addresses,
                )
                task_status.started(addresses)
                await self._stop.wait()
                await self._wind_down()
                faces.cancel_scope.cancel()
            lanes.cancel_scope.cancel()
        log.info("daemon.stopped")

    async def _wind_down(self) -> None:
        """Take nothing new, and let what is at the banks come home."""
        notify.notify("STOPPING=1")
        log.info("daemon.stopping", open=self.tasks.status()["open"])
        self.tasks.stop_accepting()
        for lane in self.tasks.lanes.values():
            lane.drain()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            for lane in self.tasks.lanes.values():
                await lane.wait_idle()

    async def _supervised(
        self,
        name: str,
        lane: Callable[..., Any],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await supervise(name, lane, self.alarms, task_status=task_status)

    # -- banks --------------------------------------------------------------------------------

    def _make(self, bank: BankConfig) -> _Unit:
        """Make a bank's connection and lane, not started yet."""
        codec = bank.adapter.open(
            BankProfile(
                bank=bank.name,
                card=bank.card,
                options=bank.options,
                direct_connect_number=bank.direct_connect_number,
                accounts=self._accounts,
            )
        )
        link = Link(
            bank.link,
            codec,
            self._sequence,
            self._clock,
            self.alarms,
            self._unmatched,
            random.Random(self._rng.random()),  # noqa: S311
            self._outside.connect,
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
            )
        )
        unit = self._units[bank.name] = _Unit(bank, link, trio.CancelScope(), trio.Event())
        self.links[bank.name] = link
        return unit

    async def _run_unit(
        self, bank: BankConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a bank's connection and lane until the bank is taken out of force."""
        unit = self._units[bank.name]
        slot = self.ring.slots[bank.slot]
        lane = self.tasks.lanes[bank.name]
        try:
            with unit.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(
                        self._supervised, f"link:{bank.name}", partial(run_link, unit.link, slot)
                    )
                    await nursery.start(self._supervised, f"bank:{bank.name}", lane.run)
                    task_status.started()
        finally:
            unit.ended.set()

    async def _end_unit(self, name: BankName) -> None:
        """Take a bank out of force: nothing new leaves, answers come home, then it ends."""
        unit = self._units.pop(name)
        lane = self.tasks.lanes[name]
        lane.drain()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            await lane.wait_idle()
        unit.scope.cancel()
        await unit.ended.wait()

    # -- configuration ------------------------------------------------------------------------

    async def _check_config(self) -> list[str]:
        faults = await trio.to_thread.run_sync(configuration.check, self.config.path)
        return [str(fault) for fault in faults]

    async def apply(self, who: str) -> dict[str, Any]:
        """Take the file on disk into force, bank by bank; other banks do not notice.

        Raises:
            ProtocolRefusal: BAD_STATE, the file has faults (they are listed); nothing was changed.
        """
        async with self._reloading:
            try:
                new = await trio.to_thread.run_sync(configuration.load, self.config.path)
            except ConfigFaultsError as error:
                log.error("config.refused", who=who, faults=len(error.faults))
                msg = f"{len(error.faults)} faults, nothing was changed:\n{error}"
                raise ProtocolRefusal("BAD_STATE", msg) from error
            return await self._take_into_force(new, who)

    async def _take_into_force(self, new: Config, who: str) -> dict[str, Any]:
        old = self.config
        before = {bank.name: bank for bank in old.banks}
        after = {bank.name: bank for bank in new.banks}
        restart = [
            part
            for part, same in (
                ("slot", old.slots == new.slots),
                ("control", old.control == new.control),
                ("enterprise", old.enterprise == new.enterprise),
                ("state_dir", old.state_dir == new.state_dir),
                ("tasks", old.tasks == new.tasks),
            )
            if not same
        ]
        waiting = {name for name, bank in after.items() if bank.slot not in self.ring.slots}
        removed = sorted(before.keys() - after.keys())
        changed = sorted(
            name
            for name in after.keys() - waiting
            if name not in before or before[name].digest != after[name].digest
        )
        self._accounts.clear()
        self._accounts.update(new.accounts)
        self.pools.configure(new.pools, self._accounts)
        for name in (*removed, *changed):
            if name in self._units:
                await self._end_unit(name)
        for name in removed:
            self.links.pop(name, None)
            await self.tasks.remove_lane(name)
        assert self._lanes_nursery is not None
        for name in changed:
            self._make(after[name])
            await self.tasks.keep_drained()
            await self._lanes_nursery.start(self._run_unit, after[name])
        self.config = new
        self.tasks.configuration = new.digest
        log.warning(
            "config.applied",
            who=who,
            configuration=new.digest,
            changed=changed,
            removed=removed,
            restart_needed=restart,
        )
        return {
            "configuration": new.digest,
            "changed": changed,
            "removed": removed,
            "unchanged": sorted(after.keys() - set(changed) - waiting),
            "restart_needed": restart,
        }

    # -- health -------------------------------------------------------------------------------

    def _healthy(self) -> bool:
        return not self._store.failed

    def status_line(self) -> str:
        """Return the line that ``systemctl status`` shows."""
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


@contextmanager
def _only_one(config: Config) -> Iterator[None]:
    """Hold the state directory: two daemons on one store could both send.

    Raises:
        ConfigError: another daemon holds it, or half a restore is in it.
    """
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
