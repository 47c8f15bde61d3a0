"""Runs the slots: one watcher of all readers, one task a slot, one nursery an inserted card.

Readers' events go monitor -> ring -> each slot's bounded channel -> the slot's task, in order. The
ring only does bookkeeping: it never waits for a slot, and a slot never waits for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn, assert_never

import attrs
import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import ConfigError
from fep.domain.ids import SlotName
from fep.keys.blocking import call
from fep.keys.config import SlotConfig, ring_faults
from fep.keys.monitor import watch_readers
from fep.keys.pcsc import look
from fep.keys.presence import watch_token
from fep.keys.readers import (
    Inserted,
    Mute,
    ReaderAdded,
    ReaderEvent,
    ReaderRemoved,
    Removed,
    ServiceDown,
    ServiceUp,
)
from fep.keys.routing import Insertion, Known, Look, Routing, Unreadable, View
from fep.keys.session import RETRY_FIRST_SECONDS, RETRY_SECONDS_MAX, serve_card
from fep.keys.slot import Slot, SlotSnapshot
from fep.keys.state import SlotState
from fep.store.database import Store

__all__ = ["KeyRing", "Slot", "SlotSnapshot", "run_monitor", "run_slot"]

log = structlog.get_logger()

QUIET_SECONDS: Final = 0.5
"""A freshly started pcscd lists its readers and cards one by one within this time."""
SCAN_SECONDS_MAX: Final = 1.8
"""After this long an absent key is an alarm, even if some card is still being read."""
LOOK_SECONDS_MAX: Final = 10.0
EXPIRY_CHECK_SECONDS: Final = 3600.0
EVENTS_WAITING_MAX: Final = 16
DOUBTS_WAITING_MAX: Final = 64

_SERVICE: Final = "pcscd"
"""Subject of the alarm that PC/SC is down."""


class KeyRing:
    """All slots, and what is known of the readers.

    Raises:
        ConfigError: two slots of one name or bound to one card.
    """

    def __init__(
        self, configs: Sequence[SlotConfig], alarms: Alarms, clock: Clock, store: Store
    ) -> None:
        faults = ring_faults(configs)
        if faults:
            raise ConfigError("; ".join(faults))
        doubts, self.doubted = trio.open_memory_channel[Insertion](DOUBTS_WAITING_MAX)
        self.slots: Mapping[SlotName, Slot] = {
            config.name: Slot(config, alarms, clock, store, doubts) for config in configs
        }
        self._bindings = {
            config.name: config.card
            for config in configs
            if config.backend == "pcsc" and config.card is not None
        }
        self.guids = frozenset(binding.guid for binding in self._bindings.values())
        self.routing = Routing(self._bindings)
        """Only the functions of this module write to it."""
        self.epoch = 0
        """Counts the starts of PC/SC."""
        self._alarms = alarms
        self._moved = trio.Event()
        self._wrong: Mapping[str, str] = {}
        self._faulty: Mapping[str, str] = {}
        for config in configs:
            if config.backend == "software":
                there = Insertion(config.backend, 1, "")
                self.slots[config.name].post(View(service=True, readers=True, card=there))

    @property
    def needs_monitor(self) -> bool:
        """True when some slot's key is on a card."""
        return bool(self._bindings)

    def take(self, event: ReaderEvent) -> None:
        """Do the bookkeeping of one event."""
        self.routing.apply(event)
        _log_event(event)
        match event:
            case ServiceUp():
                self.epoch += 1
                self._alarms.clear(AlarmKind.KEY_SERVICE_DOWN, _SERVICE)
            case ServiceDown(reason):
                self._alarms.raise_alarm(AlarmKind.KEY_SERVICE_DOWN, _SERVICE, reason)
            case _:
                pass

    def publish(self) -> None:
        """Hand every slot its view, and let the alarms of strange and faulty cards follow."""
        for name in self._bindings:
            self.slots[name].post(self.routing.view(name))
        wrong, faulty = self.routing.strangers(), self.routing.troubles()
        self._follow(AlarmKind.KEY_WRONG, self._wrong, wrong)
        self._follow(AlarmKind.KEY_FAULT, self._faulty, faulty)
        self._wrong, self._faulty = wrong, faulty
        self._moved.set()
        self._moved = trio.Event()

    def settle(self) -> None:
        """End the first scan: what was not found by now is missing.

        Alarms of readers that an earlier run of the daemon left standing are over, too.
        """
        self.routing.settle()
        self.publish()
        for kind, subjects in (
            (AlarmKind.KEY_WRONG, self._wrong),
            (AlarmKind.KEY_FAULT, self._faulty),
        ):
            for alarm in self._alarms.active():
                if alarm.kind is kind and not (
                    alarm.subject in subjects or alarm.subject in self.slots
                ):
                    self._alarms.clear(kind, alarm.subject)

    def lose(self) -> None:
        """Forget all readers: nobody watches them any more."""
        self.routing.apply(ServiceDown("not watched"))
        self.publish()

    async def wait_scanned(self) -> None:
        """Return when no card is left that was not looked at."""
        while self.routing.scanning:
            await self._moved.wait()

    def _follow(self, kind: AlarmKind, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        for reader in before.keys() - after.keys():
            self._alarms.clear(kind, reader)
        for reader, cause in after.items():
            if before.get(reader) != cause:
                log.warning("key.foreign_seen", reader=reader, alarm=kind.value, reason=cause)
                self._alarms.raise_alarm(kind, reader, cause)


Kicks = dict[str, trio.MemorySendChannel[None]]
"""Wakes the task that looks at one reader's cards."""


async def run_monitor(
    ring: KeyRing, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Watch all readers and route their cards to the slots, for ever; survives pcscd's restarts.

    Owns the PC/SC contexts of the watch and one short look at each inserted card. ``started()``
    when PC/SC answered for the first time or was found to be down. It ends only when cancelled;
    then every slot is told that it has no service.
    """
    report, reports = trio.open_memory_channel[list[ReaderEvent]](EVENTS_WAITING_MAX)
    kicks: Kicks = {}
    starting: trio.TaskStatus[None] | None = task_status
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_readers, report)
            nursery.start_soon(_take_doubts, ring, kicks)
            while True:
                for event in await reports.receive():
                    ring.take(event)
                    _start_work(ring, kicks, event, nursery)
                ring.publish()
                if starting is not None:
                    starting.started()
                    starting = None
    finally:
        ring.lose()


async def run_slot(
    slot: Slot, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Serve one slot for ever: a nursery for each insertion, the next only after the last ended.

    ``started()`` at once. It ends only when cancelled, within the grace of a card call that does
    not return, and leaves the slot in NO_SERVICE with every request answered. The token of a
    ``pkcs11`` slot is watched here, cards by :func:`run_monitor`.
    """
    views = slot.open_views()
    task_status.started()
    try:
        async with trio.open_nursery() as nursery:
            if slot.config.backend == "pkcs11":
                nursery.start_soon(watch_token, slot)
            else:
                # What an earlier run left standing of a slot that has another backend now.
                slot.library_answers()
            while True:
                slot.turn(await slot.next_view(views))
                while slot.state is SlotState.IDENTIFYING and slot.view.card is not None:
                    await _hold(slot, slot.view.card, views)
    finally:
        slot.reset()


async def _hold(slot: Slot, insertion: Insertion, views: trio.MemoryReceiveChannel[View]) -> None:
    """Serve one insertion until it is over; what is in the slot then comes into force last."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_card, slot, insertion)
        nursery.start_soon(_watch_expiry, slot)
        while True:
            view = await slot.next_view(views)
            if view.card != insertion:
                # The end of this card counts at once; a new one waits until the old is let go.
                slot.turn(attrs.evolve(view, card=None, mute_reader=""))
                nursery.cancel_scope.cancel()
                break
            slot.turn(view)
    slot.turn(view)


async def _watch_expiry(slot: Slot) -> NoReturn:
    while True:
        await trio.sleep(EXPIRY_CHECK_SECONDS)
        slot.check_expiry()


def _start_work(ring: KeyRing, kicks: Kicks, event: ReaderEvent, nursery: trio.Nursery) -> None:
    """Start, wake or end the tasks that an event concerns."""
    match event:
        case ServiceUp():
            nursery.start_soon(_settle, ring, ring.epoch)
        case ServiceDown():
            for kick in kicks.values():
                kick.close()
            kicks.clear()
        case ReaderAdded(reader):
            kicks[reader], kicked = trio.open_memory_channel[None](1)
            nursery.start_soon(_look_at_reader, ring, reader, kicked)
        case ReaderRemoved(reader):
            kicks.pop(reader).close()
        case Inserted(reader):
            _kick(kicks, reader)
        case Removed() | Mute():
            pass
        case _:
            assert_never(event)


def _kick(kicks: Kicks, reader: str) -> None:
    if reader in kicks:
        # One kick that waits stands for all.
        with suppress(trio.WouldBlock):
            kicks[reader].send_nowait(None)


async def _settle(ring: KeyRing, epoch: int) -> None:
    with trio.move_on_after(SCAN_SECONDS_MAX):
        await trio.sleep(QUIET_SECONDS)
        await ring.wait_scanned()
    if ring.epoch == epoch and ring.routing.service:
        ring.settle()


async def _take_doubts(ring: KeyRing, kicks: Kicks) -> None:
    async for insertion in ring.doubted:
        log.warning("key.doubted", reader=insertion.reader, guid=insertion.guid)
        ring.routing.doubt(insertion.reader, insertion.number)
        ring.publish()
        _kick(kicks, insertion.reader)


async def _look_at_reader(
    ring: KeyRing, reader: str, kicked: trio.MemoryReceiveChannel[None]
) -> None:
    """Say whose card is in the reader after each insertion, until the reader goes."""
    limiter = trio.CapacityLimiter(1)
    async for _ in kicked:
        pause = RETRY_FIRST_SECONDS
        since = trio.current_time()
        number = ring.routing.unidentified(reader)
        while number is not None:
            found = await _look(ring, reader, number, limiter)
            if isinstance(found, Unreadable):
                lasted = trio.current_time() - since
                found = attrs.evolve(found, alarming=lasted >= found.grace_seconds)
            ring.routing.looked(reader, number, found)
            if isinstance(found, Known):
                log.info("key.identified", reader=reader, guid=found.guid)
            ring.publish()
            if not isinstance(found, Unreadable):
                break
            with trio.move_on_after(pause), suppress(trio.EndOfChannel):
                # The removal or exchange of the card ends the pause early.
                await kicked.receive()
                since, pause = trio.current_time(), RETRY_FIRST_SECONDS / 2
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            number = ring.routing.unidentified(reader)


async def _look(ring: KeyRing, reader: str, number: int, limiter: trio.CapacityLimiter) -> Look:
    def overdue() -> None:
        reason = f"it has not answered for {LOOK_SECONDS_MAX:g} s"
        ring.routing.looked(reader, number, Unreadable(reason, 0.0, alarming=True))
        ring.publish()

    return await call(
        partial(look, reader, known=ring.guids),
        limiter,
        overdue=overdue,
        overdue_seconds=LOOK_SECONDS_MAX,
    )


def _log_event(event: ReaderEvent) -> None:
    match event:
        case ServiceUp():
            log.info("key.service_up")
        case ServiceDown(reason):
            log.error("key.service_down", reason=reason)
        case ReaderAdded(reader):
            log.info("key.reader_added", reader=reader)
        case ReaderRemoved(reader):
            log.warning("key.reader_removed", reader=reader)
        case Inserted(reader):
            log.info("key.inserted", reader=reader)
        case Removed(reader):
            log.info("key.removed", reader=reader)
        case Mute(reader):
            log.warning("key.mute_seen", reader=reader)
        case _:
            assert_never(event)
