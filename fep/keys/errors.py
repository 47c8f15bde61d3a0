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
"""How long the monitor, or the poll of a token, may take to report what a call has felt."""


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


CKR_OK: Final = 0
CKR_PIN_INCORRECT: Final = 0xA0
CKR_PIN_INVALID: Final = 0xA1
CKR_PIN_LEN_RANGE: Final = 0xA2
CKR_PIN_LOCKED: Final = 0xA4
CKR_TOKEN_NOT_PRESENT: Final = 0xE0
CKR_TOKEN_NOT_RECOGNIZED: Final = 0xE1
CKR_USER_ALREADY_LOGGED_IN: Final = 0x100

TOKEN_GONE: Final = {
    0x03: "CKR_SLOT_ID_INVALID",
    0x30: "CKR_DEVICE_ERROR",
    0x32: "CKR_DEVICE_REMOVED",
    0x60: "CKR_KEY_HANDLE_INVALID",
    0x82: "CKR_OBJECT_HANDLE_INVALID",
    0xB0: "CKR_SESSION_CLOSED",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    CKR_TOKEN_NOT_PRESENT: "CKR_TOKEN_NOT_PRESENT",
    CKR_TOKEN_NOT_RECOGNIZED: "CKR_TOKEN_NOT_RECOGNIZED",
    CKR_USER_ALREADY_LOGGED_IN: "CKR_USER_ALREADY_LOGGED_IN",
    0x101: "CKR_USER_NOT_LOGGED_IN",
}
"""Answers of a token that is gone, or not in the state we left it in."""
LIBRARY_GONE: Final = {
    0x05: "CKR_GENERAL_ERROR",
    0x06: "CKR_FUNCTION_FAILED",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
}
"""Answers of a library that has lost what is below it: pcscd, a driver, a network."""
_RETURN_VALUES: Final = {
    **TOKEN_GONE,
    **LIBRARY_GONE,
    0x02: "CKR_HOST_MEMORY",
    0x07: "CKR_ARGUMENTS_BAD",
    0x0A: "CKR_CANT_LOCK",
    0x21: "CKR_DATA_LEN_RANGE",
    0x31: "CKR_DEVICE_MEMORY",
    0x50: "CKR_FUNCTION_CANCELED",
    0x54: "CKR_FUNCTION_NOT_SUPPORTED",
    0x63: "CKR_KEY_TYPE_INCONSISTENT",
    0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x70: "CKR_MECHANISM_INVALID",
    0x90: "CKR_OPERATION_ACTIVE",
    0x91: "CKR_OPERATION_NOT_INITIALIZED",
    CKR_PIN_INCORRECT: "CKR_PIN_INCORRECT",
    CKR_PIN_INVALID: "CKR_PIN_INVALID",
    CKR_PIN_LEN_RANGE: "CKR_PIN_LEN_RANGE",
    0xA3: "CKR_PIN_EXPIRED",
    CKR_PIN_LOCKED: "CKR_PIN_LOCKED",
    0xB1: "CKR_SESSION_COUNT",
    0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x104: "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
    0x105: "CKR_USER_TOO_MANY_TYPES",
    0x150: "CKR_BUFFER_TOO_SMALL",
}
"""Names of what libraries answer in a slot's life (PKCS#11 2.40, section 5.1), for people."""


class CryptokiError(DeviceError):
    """A PKCS#11 call failed with ``number`` (a CKR value)."""

    def __init__(self, call: str, number: int) -> None:
        name = _RETURN_VALUES.get(number, "an answer of the maker's own")
        super().__init__(f"{call}: {name} (0x{number:X})")
        self.number = number

    @property
    def grace_seconds(self) -> float:
        """Return for how long the fault may last before it is worth an alarm."""
        is_gone = self.number in TOKEN_GONE or self.number in LIBRARY_GONE
        return SETTLING_SECONDS_MAX if is_gone else 0.0


class TokenAbsentError(DeviceError):
    """The bound token is in no slot of its library: it went, and the next poll will say so."""

    @property
    def grace_seconds(self) -> float:
        """Return for how long the fault may last before it is worth an alarm."""
        return SETTLING_SECONDS_MAX


class PinWithheldError(DeviceError):
    """The PIN that belongs to a signature was not sent, since a wrong one would block the token."""


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
    """The library of the configured backend can't be loaded or does not start."""
