"""A key as its slot's thread sees it: blocking calls, one at a time, the same for every backend."""

from __future__ import annotations

import os
from typing import Final, Protocol

import attrs

from fep.adapters.card import SignAlgorithm
from fep.keys.config import SlotConfig
from fep.keys.credentials import read_beside, read_secret
from fep.keys.errors import BackendUnavailableError
from fep.keys.piv import PinAnswer, PinCounter
from fep.keys.signatures import Certificate
from fep.keys.software import SoftwareKey, load_key


class PinNotAcceptedError(Exception):
    """The VERIFY that belongs to a signature was refused; nothing was signed."""

    def __init__(self, tries: int) -> None:
        super().__init__(f"{tries} tries left")
        self.tries: Final = tries


@attrs.frozen
class Identity:
    """Who a key says it is."""

    guid: str
    """Of the card; empty for a key that is no card."""
    certificate: Certificate | None
    """None only for a software key without one."""


class KeyDevice(Protocol):
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

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:
        """Return a signature that verifies against the identified key.

        Raises:
            PinNotAcceptedError: the PIN this key wants before each signature was refused.
            SignOutcomeUnknownError: the line broke inside the signature.
            WrongCardError: the signature is not the identified key's.
            AlgorithmUnavailableError: this kind of key can't sign so.
        """
        ...

    def close(self) -> None:
        """Let go of the key; raises nothing, may be called again."""
        ...


class SoftwareDevice:
    """A key file."""

    def __init__(self, config: SlotConfig) -> None:
        assert config.key is not None
        self._reference = config.key
        self._key: SoftwareKey | None = None
        self.forsaken = False

    def open(self) -> None:
        """Read the key file."""
        secret = read_secret(self._reference, os.environ)
        self._key = load_key(secret.content, read_beside(self._reference, os.environ, ".crt"))

    def identify(self) -> Identity:
        """Return the certificate beside the key file, if any."""
        assert self._key is not None
        return Identity("", self._key.certificate)

    def pin_counter(self) -> PinCounter:
        """Say that no PIN is needed."""
        return PinCounter(None)

    def verify_pin(self, pin: str) -> PinAnswer:
        """Never called: a software slot has no PIN."""
        raise NotImplementedError

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:  # noqa: ARG002
        """Return the signature; that of a key in memory needs no second look."""
        assert self._key is not None
        return self._key.sign(algorithm, data)

    def close(self) -> None:
        """Forget the key."""
        self._key = None


class Pkcs11Device:
    """The place of the PKCS#11 backend, so that its configuration is accepted already."""

    forsaken = False

    def open(self) -> None:
        """Say that it is not there yet."""
        raise BackendUnavailableError("the pkcs11 backend is not available in this release")

    def identify(self) -> Identity:
        """Never reached."""
        raise NotImplementedError

    def pin_counter(self) -> PinCounter:
        """Never reached."""
        raise NotImplementedError

    def verify_pin(self, pin: str) -> PinAnswer:
        """Never reached."""
        raise NotImplementedError

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:
        """Never reached."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to let go of."""
