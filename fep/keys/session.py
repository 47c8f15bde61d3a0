"""One inserted card from connect to disconnect: identify, present the PIN, sign until it goes.

Owned by the slot's task: it starts one session per insertion in a nursery of its own and cancels
it when the card goes. A session changes the slot's state only while its card is the slot's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from functools import partial
from typing import Any, Final, TypeVar, assert_never

import outcome
import structlog
import trio

from fep.domain.errors import FepError
from fep.keys.blocking import GRACE_SECONDS, call
from fep.keys.config import SlotConfig, TokenBinding
from fep.keys.credentials import identity, read_secret
from fep.keys.device import (
    Identity,
    KeyDevice,
    PinNotAcceptedError,
    SoftwareDevice,
)
from fep.keys.errors import (
    CARD_GONE,
    LIBRARY_GONE,
    SERVICE_GONE,
    TOKEN_GONE,
    AlgorithmUnavailableError,
    CryptokiError,
    DeviceError,
    KeyBusyError,
    KeyFileError,
    PcscError,
    PinBlockedError,
    PinRefusedError,
    PinWithheldError,
    SignOutcomeUnknownError,
    SlotGoneError,
    StatusWordError,
    TokenAbsentError,
    WrongCardError,
)
from fep.keys.pcsc import PcscCard
from fep.keys.pin import Bar, Blocked, Pin, Send, Withhold, decide, parse_pin
from fep.keys.piv import NOT_FOUND, SUSPECT_WORDS, PinAccepted, PinRefused
from fep.keys.routing import Insertion
from fep.keys.slot import SignRequest, Slot, UnlockRequest
from fep.keys.state import SlotEvent, SlotState
from fep.keys.store import lift_bar, load_bar, save_bar
from fep.keys.token import Pkcs11Device

log = structlog.get_logger()

T = TypeVar("T")

RETRY_FIRST_SECONDS: Final = 0.05
RETRY_SECONDS_MAX: Final = 1.0
CREDENTIAL_CHECK_SECONDS: Final = 1.0
"""How often a slot that waits for its PIN looks whether the PIN's file was changed."""


class _Next(Enum):
    """What follows when the card was let go of."""

    AGAIN = auto()
    """Connect and identify it anew."""
    REST = auto()
    """Leave it alone until it is taken out: the wrong card, or a blocked one."""


class _CameLateError(Exception):
    """The call of a stuck slot is back, with whatever result: connect anew."""


def make_device(config: SlotConfig, insertion: Insertion) -> KeyDevice:
    """Return the configured backend's device, not yet opened."""
    match config.backend:
        case "pcsc":
            return PcscCard(insertion.reader, config.key_reference)
        case "software":
            return SoftwareDevice(config)
        case "pkcs11":
            return Pkcs11Device(config)
        case _:
            assert_never(config.backend)


async def serve_card(slot: Slot, insertion: Insertion) -> None:
    """Make the slot serve this insertion until cancelled; faults are tried again with a back-off.

    The slot is IDENTIFYING when this begins.
    """
    pause = RETRY_FIRST_SECONDS
    while True:
        session = _Session(slot, insertion)
        try:
            async with session.opened():
                following = await session.serve()
        except _CameLateError:
            following = _Next.AGAIN
        except DeviceError as error:
            await session.enter(SlotEvent.FAULT, str(error), error)
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            await session.enter(SlotEvent.RETRIED)
            continue
        if following is _Next.REST:
            await trio.sleep_forever()
        pause = RETRY_FIRST_SECONDS


class _Session:
    """The card while it is connected."""

    def __init__(self, slot: Slot, insertion: Insertion) -> None:
        self._slot = slot
        self._insertion = insertion
        self._device = make_device(slot.config, insertion)
        self._lost = False
        self._wants_pin = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold the card; let go of it with a reset, also when cancelled."""
        try:
            await self._call(self._open)
            yield
        finally:
            if not self._lost:
                with trio.CancelScope(shield=True, relative_deadline=GRACE_SECONDS):
                    await call(self._slot.close_devices, self._slot.limiter)

    def _open(self) -> None:
        """Open the device; one whose turn to be closed did not come is closed first."""
        self._slot.close_devices()
        self._slot.unclosed.append(self._device)
        self._device.open()

    async def serve(self) -> _Next:
        """Identify the card, present its PIN, then do what is asked, until something ends that."""
        following = await self._identify()
        while following is None:
            if self._slot.is_open:
                following = await self._answer()
            else:
                following = await self._present_pin()
        return following

    async def enter(
        self, event: SlotEvent, detail: str = "", fault: DeviceError | None = None
    ) -> None:
        """Change the slot's state, unless this session was cancelled by its card's removal.

        The slot's task enters REMOVED and cancels in one go, so that being cancelled and no
        longer being the slot's card are the same.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._slot.enter(event, detail, fault)

    async def _call(self, work: Callable[[], T]) -> T:
        """Return what the work returns in the slot's thread.

        Raises:
            _CameLateError: the deadline passed; the slot was STUCK until the call was back.
        """
        result = await call(
            partial(self._guarded, work),
            self._slot.limiter,
            overdue=self._overdue,
            overdue_seconds=self._slot.config.sign_deadline_s,
            abandon=self._abandon,
        )
        if self._slot.state is SlotState.STUCK:
            await self.enter(SlotEvent.RETURNED, "the card call is back")
            raise _CameLateError
        return result.unwrap()

    def _guarded(self, work: Callable[[], T]) -> outcome.Maybe[T]:
        """Run in the slot's thread; a device nobody waits for any more closes itself."""
        result = outcome.capture(work)
        if self._lost:
            self._slot.close_devices()
        return result

    def _overdue(self) -> None:
        if self._slot.view.card == self._insertion:
            self._device.forsaken = True
            seconds = self._slot.config.sign_deadline_s
            self._slot.enter(SlotEvent.OVERDUE, f"a card call takes more than {seconds:g} s")

    def _abandon(self) -> None:
        self._device.forsaken = self._lost = True
        log.error("key.call_abandoned", slot=self._slot.name, reader=self._insertion.reader)

    async def _identify(self) -> _Next | None:
        try:
            found = await self._call(self._device.identify)
        except StatusWordError as error:
            if error.word != NOT_FOUND:
                raise
            await self.enter(SlotEvent.WRONG_CARD, str(error))
            return _Next.REST
        wrong = _mismatch(self._slot.config, found, self._insertion)
        if not wrong:
            self._slot.identified(found.certificate)
            self._wants_pin = found.wants_pin
            return None
        await self.enter(SlotEvent.WRONG_CARD, wrong)
        if self._slot.config.backend == "pcsc" and found.guid != self._insertion.guid:
            # Not even the card it was routed by: it was exchanged between two looks.
            with suppress(trio.WouldBlock):
                self._slot.doubts.send_nowait(self._insertion)
        return _Next.REST

    async def _present_pin(self) -> _Next | None:
        """Pass when the card is ready to sign; else wait for a person, or for another card."""
        slot = self._slot
        if not self._wants_pin:
            await self._grant()
            return None
        while True:
            # Seen before it is read: a file changed in between is another one in the end.
            known = await self._in_thread(partial(_source, slot.config))
            counter = await self._call(self._device.pin_counter)
            offered = await self._offered_pin()
            bar = await slot.store.read(partial(load_bar, slot=slot.stored_as))
            decision = decide(counter, slot.pin, offered, bar)
            match decision:
                case Blocked():
                    return await self._blocked()
                case Withhold(reason, refused):
                    if refused and isinstance(offered, Pin):
                        await self._remember(Bar(offered.source, None))
                    await self.enter(SlotEvent.PIN_NEEDED, reason)
                case Send(pin, record):
                    following = await self._send_pin(pin, counter.tries, record=record)
                    if following is not None or slot.is_open:
                        return following
                case _:
                    assert_never(decision)
            following = await self._wait_for_pin(known)
            if following is not None or slot.is_open:
                return following

    async def _send_pin(self, pin: Pin, tries: int | None, *, record: bool) -> _Next | None:
        slot = self._slot
        if record and not await self._remember(Bar(pin.source, tries or 0)):
            await self.enter(
                SlotEvent.PIN_NEEDED, "the store can't record the attempt; nothing was sent"
            )
            return None
        try:
            answer = await self._call(partial(self._device.verify_pin, pin.text))
        except DeviceError as error:
            log.error("key.pin_unanswered", slot=slot.name, reason=str(error))
            raise
        match answer:
            case PinAccepted():
                slot.pin = pin
                if record:
                    await self._remember(None)
                await self._grant()
                return None
            case PinRefused(left):
                return await self._refused(pin, left)
            case _:
                assert_never(answer)

    async def _refused(self, pin: Pin, tries: int | None) -> _Next | None:
        """Bar the PIN for good; it is not sent again by itself."""
        log.error("key.pin_refused", slot=self._slot.name, tries=tries)
        self._slot.pin = None
        if pin.source:
            await self._remember(Bar(pin.source, None))
        if tries == 0:
            return await self._blocked()
        await self.enter(SlotEvent.PIN_NEEDED, _refusal(tries))
        return None

    async def _blocked(self) -> _Next:
        detail = "the PIN is blocked; unblock it with the bank's tool and insert the key again"
        await self.enter(SlotEvent.PIN_BLOCKED, detail)
        return _Next.REST

    async def _grant(self) -> None:
        """Let the slot sign.

        Raises:
            DeviceError: there is something wrong with its key.
        """
        await self._call(self._device.prepare)
        identifying = self._slot.state is SlotState.IDENTIFYING
        await self.enter(SlotEvent.IDENTIFIED if identifying else SlotEvent.UNLOCKED)

    async def _wait_for_pin(self, known: str) -> _Next | None:
        """Serve unlock requests; return when one succeeded or the PIN's file is another one.

        A file counts as another one when two looks agree: half of a PIN must not be sent.
        """
        slot = self._slot
        last = known
        while True:
            request = None
            with trio.move_on_after(CREDENTIAL_CHECK_SECONDS):
                request = await slot.take()
            if request is None:
                now = await self._in_thread(partial(_source, slot.config))
                if now == last != known:
                    return None
                last = now
                continue
            assert isinstance(request, UnlockRequest)
            try:
                following = await self._unlock(request)
            finally:
                slot.finish()
            if following is not None or slot.is_open:
                return following

    async def _unlock(self, request: UnlockRequest) -> _Next | None:
        slot = self._slot
        try:
            answer = await self._call(partial(self._device.verify_pin, request.pin))
        except DeviceError as error:
            request.fail(SlotGoneError(str(error)))
            raise
        match answer:
            case PinAccepted():
                slot.pin = Pin(request.pin, "")
                offered = await self._offered_pin()
                if isinstance(offered, Pin) and offered.text == request.pin:
                    # The file holds the right PIN by now, so it may be sent at the next start.
                    await self._remember(None)
                try:
                    await self._grant()
                except DeviceError as error:
                    request.fail(SlotGoneError(f"the PIN was accepted, but {error}"))
                    raise
                request.succeed()
                return None
            case PinRefused(left):
                refusal = PinBlockedError if left == 0 else PinRefusedError
                request.fail(refusal(_refusal(left)))
                return await self._refused(Pin(request.pin, ""), left)
            case _:
                assert_never(answer)

    async def _answer(self) -> _Next | None:
        """Serve one request of a slot that is READY."""
        request = await self._slot.take()
        assert isinstance(request, SignRequest)
        try:
            if trio.current_time() > request.expires_at:
                request.fail(KeyBusyError("its turn did not come in time; nothing was signed"))
                return None
            return await self._sign(request)
        finally:
            self._slot.finish()

    async def _sign(self, request: SignRequest) -> _Next | None:
        slot = self._slot
        pin = slot.pin.text if slot.pin else None
        await self.enter(SlotEvent.SIGN_STARTED)
        work = partial(self._device.sign, request.algorithm, request.data, pin)
        try:
            signature = await self._call(work)
        except AlgorithmUnavailableError as error:
            request.fail(error)
        except PinNotAcceptedError as error:
            request.fail(PinRefusedError(_refusal(error.tries)))
            assert slot.pin is not None
            return await self._refused(slot.pin, error.tries)
        except SignOutcomeUnknownError as error:
            request.fail(error)
            await self.enter(SlotEvent.SUSPECTED, str(error))
            return _Next.AGAIN
        except WrongCardError as error:
            request.fail(error)
            await self.enter(SlotEvent.WRONG_CARD, str(error))
            return _Next.REST
        except DeviceError as error:
            request.fail(SlotGoneError(f"nothing was signed: {error}"))
            if not _is_suspect(error):
                raise
            await self.enter(SlotEvent.SUSPECTED, str(error))
            return _Next.AGAIN
        else:
            request.succeed(signature)
        await self.enter(SlotEvent.SIGN_ENDED)
        return None

    async def _offered_pin(self) -> Pin | str:
        """Return the configured PIN, or why there is none to send."""
        return await self._in_thread(partial(_read_pin, self._slot.config))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._slot.limiter)

    async def _remember(self, bar: Bar | None) -> bool:
        """Store it (None: forget); say whether that worked."""
        slot = self._slot
        work: Callable[[Any], None] = (
            partial(lift_bar, slot=slot.stored_as)
            if bar is None
            else partial(save_bar, slot=slot.stored_as, bar=bar, at=slot.clock.now())
        )
        try:
            await slot.store.write(work)
        except FepError as error:
            log.warning("key.bar_unsaved", slot=slot.name, reason=str(error))
            return False
        return True


def _refusal(tries: int | None) -> str:
    left = "it does not say how many tries are left" if tries is None else f"{tries} tries left"
    return f"the card refused the PIN; {left}"


def _is_suspect(error: DeviceError) -> bool:
    """Say whether the fault means that the card is not in the state we left it in."""
    match error:
        case StatusWordError():
            return error.word in SUSPECT_WORDS
        case PcscError():
            return error.number in CARD_GONE | SERVICE_GONE
        case CryptokiError():
            return error.number in TOKEN_GONE or error.number in LIBRARY_GONE
        case _:
            return isinstance(error, TokenAbsentError | PinWithheldError)


def _mismatch(config: SlotConfig, found: Identity, insertion: Insertion) -> str:
    """Return in what the key differs from the bound one; empty when it is the bound one."""
    if config.token is not None:
        return _token_mismatch(config, config.token, found, insertion)
    bound = config.card
    if bound is None:
        return ""
    where = f"card {found.guid} in reader {insertion.reader}"
    certificate = found.certificate.sha256 if found.certificate is not None else ""
    if found.guid == bound.guid and certificate == bound.certificate_sha256:
        return ""
    if found.guid == bound.guid:
        return f"{where} has certificate {certificate}, not the bound one of slot {config.name}"
    if certificate == bound.certificate_sha256:
        return (
            f"{where} has the certificate of slot {config.name} under a new GUID "
            "(re-personalised); bind the slot to it anew if that is right"
        )
    return f"{where} is not the card of slot {config.name}"


def _token_mismatch(
    config: SlotConfig, bound: TokenBinding, found: Identity, insertion: Insertion
) -> str:
    """Return in what a token that bears the bound serial or label differs from the bound one."""
    certificate = found.certificate
    if certificate is not None and certificate.sha256 == bound.certificate_sha256:
        return ""
    has = "no certificate" if certificate is None else f"certificate {certificate.sha256}"
    where = f"token {found.guid} in slot {insertion.reader}"
    return f"{where} has {has}, not the bound one of slot {config.name}"


def _read_pin(config: SlotConfig) -> Pin | str:
    if config.pin is None:
        return "no PIN is configured; unlock the slot by hand"
    try:
        secret = read_secret(config.pin, os.environ)
        return Pin(parse_pin(secret.content.decode("ascii"), config), secret.identity)
    except KeyFileError as error:
        return str(error)
    except UnicodeDecodeError:
        return f"{config.pin} does not hold a PIN: it is not ASCII"
    except ValueError as error:
        return f"{config.pin} does not hold a PIN: {error}"


def _source(config: SlotConfig) -> str:
    """Return the identity of the PIN's file, or empty."""
    return identity(config.pin, os.environ) if config.pin is not None else ""
