"""A ring of slots with the real store and alarms, and how tests wait for what it does."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock, SystemClock
from fep.domain.ids import SlotName
from fep.keys.config import CardBinding, KeyReference, SecretRef, SlotConfig
from fep.keys.service import KeyRing, Slot, run_monitor, run_slot
from fep.keys.state import SlotState
from fep.sandbox.ukey.rig import UkeyCard
from fep.store.database import Store

PIN = "123456"
WAIT_SECONDS_MAX = 10.0


async def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS_MAX) -> float:
    """Wait until it holds; return the seconds that took."""
    started = trio.current_time()
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.001)
    return trio.current_time() - started


@attrs.frozen
class FixedClock:
    """Always the same moment."""

    moment: dt.datetime

    def now(self) -> dt.datetime:
        return self.moment


@attrs.define
class Bench:
    """A running ring."""

    ring: KeyRing
    alarms: Alarms
    store: Store
    nursery: trio.Nursery

    def slot(self, index: int = 0) -> Slot:
        return list(self.ring.slots.values())[index]

    def has(self, kind: AlarmKind, subject: str) -> bool:
        return any(a.kind is kind and a.subject == subject for a in self.alarms.active())

    def cause(self, kind: AlarmKind, subject: str) -> str:
        return next(
            a.cause for a in self.alarms.active() if a.kind is kind and a.subject == subject
        )

    def kinds(self, subject: str) -> set[AlarmKind]:
        return {a.kind for a in self.alarms.active() if a.subject == subject}

    async def state(self, state: SlotState, index: int = 0) -> Slot:
        slot = self.slot(index)
        try:
            await until(lambda: slot.state is state)
        except trio.TooSlowError:
            msg = f"{slot.name} is {slot.state.value} ({slot.detail}), not {state.value}"
            raise AssertionError(msg) from None
        return slot

    async def ready(self) -> None:
        for index in range(len(self.ring.slots)):
            await self.state(SlotState.READY, index)


@asynccontextmanager
async def ring_of(
    directory: Path, configs: Sequence[SlotConfig], clock: Clock | None = None
) -> AsyncIterator[Bench]:
    """Run a ring over a store in the directory until the block ends."""
    clock = clock or SystemClock()
    store = Store.at(directory / "fep.db")
    async with trio.open_nursery() as outer:
        await outer.start(lambda task_status: store.run(task_status=task_status))
        alarms = Alarms(store, clock)
        await alarms.load()
        ring = KeyRing(configs, alarms, clock, store)
        async with trio.open_nursery() as nursery:
            for slot in ring.slots.values():
                await nursery.start(_start_slot, slot)
            if ring.needs_monitor:
                await nursery.start(_start_monitor, ring)
            yield Bench(ring, alarms, store, nursery)
            nursery.cancel_scope.cancel()
        outer.cancel_scope.cancel()


async def _start_slot(slot: Slot, *, task_status: trio.TaskStatus[None]) -> None:
    await run_slot(slot, task_status=task_status)


async def _start_monitor(ring: KeyRing, *, task_status: trio.TaskStatus[None]) -> None:
    await run_monitor(ring, task_status=task_status)


def pin_file(directory: Path, pin: str = PIN, name: str = "pin") -> SecretRef:
    """Write a PIN to a file only its owner can read."""
    path = directory / name
    path.write_text(f"{pin}\n")
    path.chmod(0o600)
    return SecretRef(file=path)


def card_slot(
    card: UkeyCard,
    pin: SecretRef | None,
    reference: KeyReference = "9C",
    deadline_s: float = 10.0,
) -> SlotConfig:
    """Return the configuration of a slot bound to a card of the rig."""
    return SlotConfig(
        name=SlotName(f"ukey-{card.number}"),
        backend="pcsc",
        card=CardBinding(card.guid, card.certificate_sha256(reference)),
        pin=pin,
        key_reference=reference,
        sign_deadline_s=deadline_s,
    )
