"""The blocking PC/SC calls, through pyscard's low-level module only, and the PIV card over them.

pyscard's own monitors die for good when pcscd restarts, hence ``smartcard.scard`` alone. pcsc-lite
serialises the calls on one context, so each card has a context of its own. ``PCSCLITE_CSOCK_NAME``
is read at the process's first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from smartcard import scard

from fep.adapters.card import SignAlgorithm
from fep.keys.config import KeyReference
from fep.keys.device import Identity, PinNotAcceptedError
from fep.keys.errors import (
    NO_READERS,
    CardDataError,
    PcscError,
    SignOutcomeUnknownError,
    StatusWordError,
    WrongCardError,
)
from fep.keys.piv import (
    Conversation,
    PinAccepted,
    PinAnswer,
    PinCounter,
    algorithm_id,
    header,
    pin_counter,
    read_certificate,
    read_guid,
    select,
    sign,
    verify_pin,
)
from fep.keys.readers import Result
from fep.keys.routing import Foreign, Known, Look, Unreadable
from fep.keys.signatures import (
    CardKey,
    card_block,
    check_algorithm,
    fingerprint,
    parse_certificate,
    verifies,
)

T = TypeVar("T")

_SHORT_BYTES: Final = 5
"""Header and Lc."""
_FOR_EVER: Final = 0xFFFFFFFF
_KEY_REFERENCES: Final[tuple[KeyReference, ...]] = ("9A", "9C", "9D", "9E")


def _check(call: str, result: int) -> None:
    number = result & 0xFFFFFFFF
    if number:
        raise PcscError(call, number)


def establish() -> Any:  # noqa: ANN401 - an opaque handle
    """Return a new context.

    Raises:
        PcscError: pcscd does not answer.
    """
    result, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
    _check("SCardEstablishContext", result)
    return context


def release(context: Any) -> None:  # noqa: ANN401
    """Give a context up; a dead one is no error."""
    scard.SCardReleaseContext(context)


def list_readers(context: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the readers, none included."""
    result, names = scard.SCardListReaders(context, [])
    if result & 0xFFFFFFFF == NO_READERS:
        return []
    _check("SCardListReaders", result)
    return list(names)


def wait_change(context: Any, query: Sequence[tuple[str, int]]) -> list[Result]:  # noqa: ANN401
    """Return the new states as soon as one differs from the query; waits for ever.

    Raises:
        PcscError: cancelled, the list of readers changed, or pcscd went.
    """
    result, states = scard.SCardGetStatusChange(context, _FOR_EVER, list(query))
    _check("SCardGetStatusChange", result)
    return list(states)


def cancel(context: Any) -> None:  # noqa: ANN401
    """Stop a wait on the context; one that has not begun yet is not stopped."""
    scard.SCardCancel(context)


class PcscCard:
    """A PIV card in a reader, held exclusively.

    In shared mode another program on this machine could sign with our verified PIN; closing resets
    the card for the same reason.
    """

    def __init__(self, reader: str, reference: KeyReference) -> None:
        self.forsaken = False
        self._reader = reader
        self._reference: Final = reference
        self._context: Any = None
        self._card: Any = None
        self._protocol = 0
        self._key: CardKey | None = None

    def open(self) -> None:
        """Connect exclusively and select the PIV application."""
        self._context = establish()
        result, card, protocol = scard.SCardConnect(
            self._context,
            self._reader,
            scard.SCARD_SHARE_EXCLUSIVE,
            scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1,
        )
        _check("SCardConnect", result)
        self._card, self._protocol = card, protocol
        self.run(select())

    def identify(self) -> Identity:
        """Return the card's GUID and the certificate of its key."""
        guid = self.run(read_guid())
        certificate = parse_certificate(self.run(read_certificate(self._reference)))
        self._key = certificate.card_key
        return Identity(guid, certificate, wants_pin=self._reference != "9E")

    def pin_counter(self) -> PinCounter:
        """Return the tries left, spending none."""
        return self.run(pin_counter())

    def verify_pin(self, pin: str) -> PinAnswer:
        """Send the PIN once."""
        return self.run(verify_pin(pin))

    def prepare(self) -> None:
        """Nothing is left to do: a card finds its key by the reference."""

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:
        """Return a signature that verifies against the certificate; see ``KeyDevice``.

        Key 9C uses the verified PIN up with each signature, so it is sent anew.
        """
        assert self._key is not None
        key = self._key
        check_algorithm(key, algorithm)
        if pin is not None and self._reference == "9C":
            answer = self.run(verify_pin(pin))
            if not isinstance(answer, PinAccepted):
                raise PinNotAcceptedError(answer.tries)
        rsa_bits = key.key_size if algorithm is SignAlgorithm.RSA_SHA256 else None
        try:
            signature = self.run(
                sign(self._reference, algorithm_id(rsa_bits), card_block(key, data))
            )
        except PcscError as error:
            msg = f"the line to the card broke inside the signature ({error})"
            raise SignOutcomeUnknownError(msg) from error
        if not verifies(key, algorithm, data, signature):
            raise WrongCardError("the signature is not that of the bound certificate's key")
        return signature

    def close(self, *, reset: bool = True) -> None:
        """Disconnect and release the context; raises nothing, may be called again."""
        card, context = self._card, self._context
        self._card = self._context = self._key = None
        if card is not None:
            how = scard.SCARD_RESET_CARD if reset else scard.SCARD_LEAVE_CARD
            scard.SCardDisconnect(card, how)
        if context is not None:
            release(context)

    def run(self, conversation: Conversation[T]) -> T:
        """Carry a conversation with the card to its end and return its result."""
        try:
            command = next(conversation)
            while True:
                command = conversation.send(self._transmit(command))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _transmit(self, command: bytes) -> bytes:
        if self.forsaken:
            raise CardDataError("the slot gave up on this call")
        protocol = scard.SCARD_PCI_T1
        if self._protocol == scard.SCARD_PROTOCOL_T0:
            protocol = scard.SCARD_PCI_T0
            # T=0 has no Le beside a body: the card answers 61xx and GET RESPONSE follows.
            if len(command) > _SHORT_BYTES and len(command) == command[4] + _SHORT_BYTES + 1:
                command = command[:-1]
        result, reply = scard.SCardTransmit(self._card, protocol, list(command))
        _check(f"SCardTransmit {header(command)}", result)
        return bytes(reply)


def look(reader: str, *, known: frozenset[str]) -> Look:
    """Say whose card is in the reader; the card is left as it was.

    Args:
        reader: name of the reader.
        known: GUIDs for which nothing further is read.
    """
    card = PcscCard(reader, "9C")
    try:
        card.open()
        guid = card.run(read_guid())
        if guid in known:
            return Known(guid)
        return Known(guid, frozenset(_fingerprints(card)))
    except (StatusWordError, CardDataError) as error:
        return Foreign(str(error))
    except PcscError as error:
        return Unreadable(str(error), error.grace_seconds)
    finally:
        card.close(reset=False)


def _fingerprints(card: PcscCard) -> list[str]:
    found: list[str] = []
    for reference in _KEY_REFERENCES:
        try:
            found.append(fingerprint(card.run(read_certificate(reference))))
        except (StatusWordError, CardDataError):
            continue
    return found
