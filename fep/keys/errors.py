"""What a key slot answers instead of a signature, and the faults of a card or of PC/SC below it."""

from __future__ import annotations

from typing import Final

from fep.domain.errors import FepError, KeySlotError


class SlotGoneError(KeySlotError):
    """The key is not there or not usable; nothing was signed."""

    code = "KEY_GONE"


class WrongCardError(KeySlotError):
    """The card or its key is not the bound one; no signature of it leaves the slot."""

    code = "WRONG_CARD"


class PinBlockedError(KeySlotError):
    """The card's PIN counter is at zero; unblock it with the bank's tool and insert it again."""

    code = "PIN_BLOCKED"


class PinRequiredError(KeySlotError):
    """The card is there, but no PIN may be sent to it by itself; a person must unlock the slot."""

    code = "PIN_REQUIRED"


class PinRefusedError(KeySlotError):
    """The card refused the PIN; it is not sent again."""

    code = "PIN_REFUSED"


class SignOutcomeUnknownError(KeySlotError):
    """The line to the card broke, or time ran out, inside a signature; no signature left the slot.

    For a key that counts its uses or confirms on a display one use may be gone.
    """

    code = "SIGN_OUTCOME_UNKNOWN"


class KeyBusyError(KeySlotError):
    """Too many requests wait for this key, or this one waited too long; nothing was signed."""

    code = "KEY_BUSY"


class AlgorithmUnavailableError(KeySlotError):
    """This key cannot sign with the wanted algorithm; the configuration of the bank is wrong."""

    code = "ALGORITHM_UNAVAILABLE"


class DeviceError(FepError):
    """Base of the faults a key device raises inside its thread; never leaves ``fep.keys``."""

    code = "KEY_FAULT"

    @property
    def grace_seconds(self) -> float:
        """Return for how long the fault may last before it is worth an alarm."""
        return 0.0


SHARING_VIOLATION: Final = 0x8010000B
UNKNOWN_READER: Final = 0x80100009
CANCELLED: Final = 0x80100002
NO_READERS: Final = 0x8010002E

CARD_GONE: Final = frozenset(
    {
        0x80100016,  # NOT_TRANSACTED: pulled inside an APDU
        0x80100069,  # REMOVED_CARD
        0x8010000C,  # NO_SMARTCARD
        0x80100017,  # READER_UNAVAILABLE
        UNKNOWN_READER,
        0x80100066,  # UNRESPONSIVE_CARD
        0x80100067,  # UNPOWERED_CARD
        0x80100068,  # RESET_CARD
    }
)
"""Codes that mostly come a moment before the monitor reports the removal."""
SERVICE_GONE: Final = frozenset(
    {
        0x80100013,  # COMM_ERROR
        0x8010001D,  # NO_SERVICE
        0x8010001E,  # SERVICE_STOPPED
        0x80100003,  # INVALID_HANDLE
        0x8010001F,  # UNEXPECTED
    }
)
SHARING_SECONDS_MAX: Final = 10.0
"""How long another program may hold a card before it is an alarm."""
SETTLING_SECONDS_MAX: Final = 1.0
"""How long the monitor may take to report what a card call has already felt."""


class PcscError(DeviceError):
    """A PC/SC call failed with ``number`` (an SCARD code, unsigned 32 bits)."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__(f"{call}: 0x{number:08X}")
        self.number = number

    @property
    def grace_seconds(self) -> float:
        """Return for how long the fault may last before it is worth an alarm."""
        if self.number == SHARING_VIOLATION:
            return SHARING_SECONDS_MAX
        return SETTLING_SECONDS_MAX if self.number in CARD_GONE | SERVICE_GONE else 0.0


class StatusWordError(DeviceError):
    """The card answered a command with ``word`` instead of 9000."""

    def __init__(self, command: str, word: int) -> None:
        super().__init__(f"{command}: the card answered {word:04X}")
        self.word = word


class CardDataError(DeviceError):
    """The card's data can't be read: bad TLV, too long, no certificate in it."""


class KeyFileError(DeviceError):
    """A key, PIN or certificate file is missing, too open or not what it should be."""


class BackendUnavailableError(DeviceError):
    """The configured backend is not part of this release."""
