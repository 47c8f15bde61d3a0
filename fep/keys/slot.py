"""One key slot: what the rest of the daemon asks of it, and what its own task tells it.

The task (``service.run_slot``) owns the card; this object owns the state, the requests that wait
and the alarms. Everything here happens between two awaits, in the trio thread.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import Final

import attrs
import structlog
import trio

from fep.adapters.card import SignAlgorithm
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import KeySlotError
from fep.domain.histogram import REQUEST_SECONDS, Histogram
from fep.domain.ids import SlotName
from fep.keys.config import SlotConfig
from fep.keys.device import Closable
from fep.keys.errors import (
    DeviceError,
    KeyBusyError,
    PinBlockedError,
    PinRequiredError,
    SignOutcomeUnknownError,
    SlotGoneError,
    WrongCardError,
)
from fep.keys.pin import Pin, parse_pin
from fep.keys.routing import ENDINGS, Insertion, View, change
from fep.keys.signatures import EXPIRING_DAYS, Certificate, days_left
from fep.keys.state import ALARM_OF, OPEN, SLOT_ALARMS, SlotEvent, SlotState, step
from fep.store.database import Store

log = structlog.get_logger()

REQUESTS_WAITING_MAX: Final = 64
VIEWS_WAITING_MAX: Final = 16


@attrs.frozen
class SlotSnapshot:
    """A slot at one moment, for the console and ``slot.list``."""

    name: SlotName
    backend: str
    state: SlotState
    reader: str
    generation: int
    guid: str
    """Of the bound card; of a bound token its serial; empty for a key in software."""
    certificate_sha256: str
    """Of the bound certificate, or of the one a software key brings; may be empty."""
    not_after: dt.datetime | None
    """When the certificate ends, aware, UTC; None while no key is identified."""
    detail: str


@attrs.define(eq=False)
class Request:
    """One thing asked of the card; answered exactly once."""

    _done: trio.Event = attrs.field(factory=trio.Event, init=False)
    _result: bytes = attrs.field(default=b"", init=False, repr=False)
    _error: KeySlotError | None = attrs.field(default=None, init=False)

    @property
    def answered(self) -> bool:
        """True once there is a result or an error."""
        return self._done.is_set()

    def succeed(self, result: bytes = b"") -> None:
        """Answer it, unless that has happened."""
        if not self.answered:
            self._result = result
            self._done.set()

    def fail(self, error: KeySlotError) -> None:
        """Answer it with an error, unless that has happened."""
        if not self.answered:
            self._error = error
            self._done.set()

    async def outcome(self) -> bytes:
        """Return the result once it is there, or raise the error."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


@attrs.define(eq=False)
class SignRequest(Request):
    """Sign these bytes; taken up before ``expires_at`` (trio time) or not at all."""

    algorithm: SignAlgorithm
    data: bytes = attrs.field(repr=False)
    expires_at: float


@attrs.define(eq=False)
class UnlockRequest(Request):
    """Send this PIN once."""

    pin: str = attrs.field(repr=False)


class Slot:
    """One configured slot; satisfies ``links.Gate``."""

    def __init__(
        self,
        config: SlotConfig,
        alarms: Alarms,
        clock: Clock,
        store: Store,
        doubts: trio.MemorySendChannel[Insertion],
    ) -> None:
        self.config = config
        self.store = store
        self.clock = clock
        self.doubts = doubts
        """Where the slot's task says that a card turned out to be another one."""
        self.limiter = trio.CapacityLimiter(1)
        """Of the slot's one thread; a call that never returns keeps it."""
        self.pin: Pin | None = None
        """The PIN that the bound card accepted last, in memory only."""
        self.unclosed: list[Closable] = []
        """What the slot's thread has to close, now or when a call that does not return is back."""
        self.state = SlotState.NO_SERVICE
        self.generation = 0
        """Counts the insertions of the slot's card since the daemon started."""
        self.detail = ""
        """Why the slot is in its state, in one English sentence; empty when there is nothing."""
        self.view = View()
        self.signatures = Histogram(REQUEST_SECONDS)
        """Seconds of those that were made, with their wait for the card."""
        self.refused = 0
        """How many that were asked for were not made."""
        self._alarms = alarms
        self._identified: Certificate | None = None
        self._edge = trio.Event()
        self._waiting: deque[Request] = deque()
        self._arrived = trio.Event()
        self._running: Request | None = None
        self._fault_since: float | None = None
        self._fault_grace = 0.0
        self._standing: tuple[AlarmKind | None, str] | None = None
        self._latest = View()
        self._views: trio.MemorySendChannel[View] | None = None
        self._resync = False

    # What everybody may ask.

    @property
    def name(self) -> SlotName:
        """The configured name."""
        return self.config.name

    @property
    def stored_as(self) -> SlotName:
        """Its name in the store, where another machine may have a slot of the same name."""
        return SlotName(f"{self.store.scope}{self.name}")

    @property
    def reader(self) -> str:
        """The reader the slot's card is in, or empty."""
        return self.view.card.reader if self.view.card is not None else self.view.mute_reader

    @property
    def certificate(self) -> bytes | None:
        """The DER of the identified key's certificate; None while there is none."""
        return self._identified.der if self._identified is not None else None

    @property
    def is_open(self) -> bool:
        """True while signatures may be asked for."""
        return self.state in OPEN

    def close_devices(self) -> None:
        """Close what was opened; blocking, for the slot's thread."""
        while self.unclosed:
            self.unclosed.pop().close()

    def library_failed(self, reason: str) -> None:
        """Raise the alarm that the library of the slot's token does not do its work."""
        self._alarms.raise_alarm(AlarmKind.KEY_SERVICE_DOWN, self.name, reason)

    def library_answers(self) -> None:
        """Clear that alarm."""
        self._alarms.clear(AlarmKind.KEY_SERVICE_DOWN, self.name)

    async def wait_open(self) -> None:
        """Return when the slot is open."""
        while not self.is_open:
            await self._edge.wait()

    async def wait_closed(self) -> None:
        """Return when the slot is not open."""
        while self.is_open:
            await self._edge.wait()

    async def sign(self, algorithm: SignAlgorithm, data: bytes) -> bytes:
        """Return the signature over the data, verified against the bound certificate.

        Requests are served in order. One whose caller is cancelled before its turn costs the card
        nothing; a running one is finished and its signature thrown away.

        Raises:
            SlotGoneError: the key is not there, or went before the turn came.
            PinRequiredError, PinBlockedError, WrongCardError: the slot's state, see there.
            SignOutcomeUnknownError: the line broke or the deadline passed inside the signature.
            AlgorithmUnavailableError: this key can't sign so.
            KeyBusyError: the queue is full, or the turn did not come in time.
        """
        began, made = trio.current_time(), False
        try:
            if not self.is_open:
                raise self._refusal()
            expires_at = began + self.config.sign_deadline_s
            signature = await self._ask(SignRequest(algorithm, data, expires_at))
            made = True
        finally:
            if made:
                self.signatures.observe(trio.current_time() - began)
            else:
                self.refused += 1
        return signature

    async def unlock(self, pin: str) -> None:
        """Send an operator's PIN to the waiting card once, also with one try left; never again.

        Raises:
            ValueError: not the form of a PIN; nothing was sent.
            PinRefusedError: the card refused it.
            PinBlockedError: the counter is at zero.
            SlotGoneError: the slot does not wait for a PIN, or the card went.
        """
        parse_pin(pin, self.config)
        if self.state is SlotState.PIN_BLOCKED:
            raise self._refusal()
        if self.state is not SlotState.PIN_REQUIRED:
            msg = f"slot {self.name} is {self.state.value}, it waits for no PIN"
            raise SlotGoneError(msg)
        await self._ask(UnlockRequest(pin))

    def snapshot(self) -> SlotSnapshot:
        """Return the slot as it is now."""
        found = self._identified
        return SlotSnapshot(
            name=self.name,
            backend=self.config.backend,
            state=self.state,
            reader=self.reader,
            generation=self.generation,
            guid=self.config.identity,
            certificate_sha256=self.config.bound_certificate or (found.sha256 if found else ""),
            not_after=found.not_after if found is not None else None,
            detail=self.detail or self.view.note,
        )

    # What the ring and the slot's own task tell it.

    def post(self, view: View) -> None:
        """Hand the slot a new view without ever waiting; the newest one is never lost."""
        if view == self._latest:
            return
        self._latest = view
        if self._views is None:
            return
        try:
            self._views.send_nowait(view)
        except trio.WouldBlock:
            # The mark stands for all that was dropped: each view is complete in itself.
            self._resync = True

    def open_views(self) -> trio.MemoryReceiveChannel[View]:
        """Return the ordered views from now on, beginning with the present one."""
        self._views, views = trio.open_memory_channel[View](VIEWS_WAITING_MAX)
        self._resync = False
        self._views.send_nowait(self._latest)
        return views

    async def next_view(self, views: trio.MemoryReceiveChannel[View]) -> View:
        """Return the next view, or after an overflow the newest one once the channel is empty."""
        if self._resync and views.statistics().current_buffer_used == 0:
            self._resync = False
            log.warning("slot.resynced", slot=self.name)
            return self._latest
        return await views.receive()

    def turn(self, view: View) -> None:
        """Take a new view and let what it means change the state."""
        for event in change(self.view, view):
            if event not in ENDINGS:
                self.view = view
            self.enter(event)
        self.view = view
        self.update_alarms()

    def enter(self, event: SlotEvent, detail: str = "", fault: DeviceError | None = None) -> None:
        """Let an event change the state, and do what the new state asks for."""
        before, was_open = self.state, self.is_open
        self.state = step(before, event)
        self.detail = detail
        if event is SlotEvent.INSERTED:
            self.generation += 1
        if event in {SlotEvent.REMOVED, SlotEvent.SERVICE_DOWN}:
            self._identified = None
        if self.state is SlotState.FAULT:
            if self._fault_since is None:
                self._fault_since = trio.current_time()
            self._fault_grace = fault.grace_seconds if fault is not None else 0.0
        elif self.state in ALARM_OF:
            self._fault_since = None
        if before not in OPEN or self.state not in OPEN:
            log.info(
                "slot.changed",
                slot=self.name,
                state=self.state.value,
                before=before.value,
                cause=event.value,
                reader=self.reader,
                generation=self.generation,
                detail=detail,
            )
        self._drop_requests(before)
        self.update_alarms()
        if was_open != self.is_open:
            self._edge.set()
            self._edge = trio.Event()

    def update_alarms(self) -> None:
        """Raise the alarm the state deserves and clear the others, once the state is settled."""
        if self.state not in ALARM_OF:
            return
        wanted = ALARM_OF[self.state]
        if wanted is AlarmKind.KEY_MISSING and not self.view.settled:
            return
        if self.state is SlotState.FAULT and not self._fault_is_old():
            return
        standing = (wanted, self._cause() if wanted is not None else "")
        if standing == self._standing:
            return
        self._standing = standing
        # The first time this also clears what an earlier run of the daemon left standing.
        for kind in SLOT_ALARMS:
            if kind is not wanted:
                self._alarms.clear(kind, self.name)
        if wanted is not None:
            self._alarms.raise_alarm(wanted, self.name, standing[1])

    def identified(self, certificate: Certificate | None) -> None:
        """Note whose key it is, and whether its certificate ends soon."""
        self._identified = certificate
        self.check_expiry()

    def check_expiry(self) -> None:
        """Raise or clear the alarm of a certificate that ends soon."""
        if self._identified is None:
            return
        days = days_left(self._identified, self.clock.now())
        if days >= EXPIRING_DAYS:
            self._alarms.clear(AlarmKind.KEY_EXPIRING, self.name)
            return
        ends = f"{self._identified.not_after:%Y-%m-%d}"
        cause = (
            f"the certificate of slot {self.name} ended on {ends}"
            if days < 0
            else f"the certificate of slot {self.name} ends on {ends}, in {days} days"
        )
        self._alarms.raise_alarm(AlarmKind.KEY_EXPIRING, self.name, cause)

    async def take(self) -> Request:
        """Return the next request that still waits for an answer; it is running from now on."""
        while True:
            if self._waiting:
                self._running = self._waiting.popleft()
                return self._running
            self._arrived = trio.Event()
            await self._arrived.wait()

    def finish(self) -> None:
        """Note that the running request is over; unanswered it has failed."""
        if self._running is not None:
            self._running.fail(SignOutcomeUnknownError(f"slot {self.name} did not finish it"))
            self._running = None

    def reset(self) -> None:
        """Begin anew: the slot's task ended, and the next one finds out what there is."""
        self._views = None
        self.view = View()
        if self.state is not SlotState.NO_SERVICE:
            self.enter(SlotEvent.SERVICE_DOWN, "the slot's task ended")
        self.finish()

    async def _ask(self, request: Request) -> bytes:
        if len(self._waiting) >= REQUESTS_WAITING_MAX:
            msg = f"{REQUESTS_WAITING_MAX} requests wait for the key of slot {self.name}"
            raise KeyBusyError(msg)
        self._waiting.append(request)
        self._arrived.set()
        try:
            return await request.outcome()
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    def _drop_requests(self, before: SlotState) -> None:
        """Fail what waits when the slot stops serving it; at once, not at the caller's deadline."""
        if before in OPEN and not self.is_open and self._running is not None:
            msg = f"slot {self.name} became {self.state.value} inside the signature"
            self._running.fail(SignOutcomeUnknownError(msg))
        same = before in OPEN and self.is_open
        if same or before is self.state:
            return
        refusal = self._refusal()
        while self._waiting:
            self._waiting.popleft().fail(refusal)

    def _refusal(self) -> KeySlotError:
        text = f"slot {self.name} is {self.state.value}"
        if why := self.detail or self.view.note:
            text = f"{text}: {why}"
        kinds: dict[SlotState, type[KeySlotError]] = {
            SlotState.WRONG_CARD: WrongCardError,
            SlotState.PIN_REQUIRED: PinRequiredError,
            SlotState.PIN_BLOCKED: PinBlockedError,
        }
        return kinds.get(self.state, SlotGoneError)(text)

    def _fault_is_old(self) -> bool:
        assert self._fault_since is not None
        return trio.current_time() - self._fault_since >= self._fault_grace

    def _cause(self) -> str:
        if self.detail:
            return self.detail
        if self.view.note:
            return self.view.note
        return f"the key {self.config.identity} of slot {self.name} is in no reader"
