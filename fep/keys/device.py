"""A key as its slot's thread sees it: blocking calls, one at a time, the same for every backend."""

from __future__ import annotations

import os
from typing import Final, Protocol

import attrs

from fep.adapters.card import SignAlgorithm
from fep.keys.config import SlotConfig
from fep.keys.credentials import read_beside, read_secret
from fep.keys.piv import PinAnswer, PinCounter
from fep.keys.signatures import Certificate
from fep.keys.software import SoftwareKey, load_key


class PinNotAcceptedError(Exception):
    """The PIN that belongs to a signature was refused; nothing was signed."""

    def __init__(self, tries: int | None) -> None:
        super().__init__("not accepted")
        self.tries: Final = tries


@attrs.frozen
class Identity:
    """Who a key says it is."""

    guid: str
    """Of the card; of a token its serial; empty for a key in software."""
    certificate: Certificate | None
    """None for a software key without one, and for a token that carries none."""
    wants_pin: bool
    """False for a key that signs for everybody, such as PIV's 9E (card authentication)."""


class Closable(Protocol):
    """What a slot's thread has to let go of."""

    def close(self) -> None:
        """Let go of it; raises nothing, may be called again."""
        ...


class KeyDevice(Closable, Protocol):
    """One opened key.

    Every call may raise ``DeviceError``. ``forsaken`` is set by the slot when it gives up on a
    running call: the device then sends no further command and closes itself when the call is back.
    """

    forsaken: bool

    def open(self) -> None:
        """Take hold of the key; nobody else can use it until :meth:`close`."""
        ...

    def identify(self) -> Identity:
        """Return who it is, read anew."""
        ...

    def pin_counter(self) -> PinCounter:
        """Return the tries left, spending none."""
        ...

    def verify_pin(self, pin: str) -> PinAnswer:
        """Send the PIN once."""
        ...

    def prepare(self) -> None:
        """Make ready to sign, now that the PIN was accepted, where one is wanted."""
        ...

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:
        """Return a signature that verifies against the identified key.

        Args:
            algorithm: how to sign.
            data: what to sign, whole.
            pin: the accepted PIN, for a key that wants it again for each signature.

        Raises:
            PinNotAcceptedError: the PIN this key wants before each signature was refused.
            SignOutcomeUnknownError: the line broke inside the signature.
            WrongCardError: the signature is not the identified key's.
            AlgorithmUnavailableError: this kind of key can't sign so.
        """
        ...


class SoftwareDevice:
    """A key file."""

    def __init__(self, config: SlotConfig) -> None:
        assert config.key is not None
        self._reference = config.key
        self._user_id = config.sm2_user_id.encode()
        self._key: SoftwareKey | None = None
        self.forsaken = False

    def open(self) -> None:
        """Read the key file."""
        secret = read_secret(self._reference, os.environ)
        certificate = read_beside(self._reference, os.environ, ".crt")
        self._key = load_key(secret.content, certificate, self._user_id)

    def identify(self) -> Identity:
        """Return the certificate beside the key file, if any."""
        assert self._key is not None
        return Identity("", self._key.certificate, wants_pin=False)

    def pin_counter(self) -> PinCounter:
        """Say that no PIN is needed."""
        return PinCounter(None)

    def verify_pin(self, pin: str) -> PinAnswer:
        """Never called: a software slot has no PIN."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Nothing is left to do."""

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:  # noqa: ARG002
        """Return the signature; that of a key in memory needs no second look."""
        assert self._key is not None
        return self._key.sign(algorithm, data)

    def close(self) -> None:
        """Forget the key."""
        self._key = None
