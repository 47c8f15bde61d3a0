"""Command APDUs and status words (ISO 7816-4): parsing, command chaining, GET RESPONSE."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Self

import attrs

CHAINING: Final = 0x10
"""Bit of CLA: more of this command follows (ISO 7816-4, 5.1.1)."""

CHAIN_BYTES_MAX: Final = 8192
"""Longest command body a chain may build up."""

HEADER_BYTES: Final = 4
"""CLA, INS, P1, P2."""

_EXTENDED_LENGTH_BYTES: Final = 3
"""A zero and two bytes of Lc or Le."""
_SHORT_LENGTH_LIMIT: Final = 0x100
_SHORT_RESPONSE_BYTES_MAX: Final = 256
_EXTENDED_RESPONSE_BYTES_MAX: Final = 65536


class Ins(IntEnum):
    """Instruction bytes: of ISO 7816-4 and SP 800-73-4, then Yubico's."""

    VERIFY = 0x20
    CHANGE_REFERENCE = 0x24
    RESET_RETRY_COUNTER = 0x2C
    GENERATE = 0x47
    GENERAL_AUTHENTICATE = 0x87
    SELECT = 0xA4
    GET_RESPONSE = 0xC0
    GET_DATA = 0xCB
    PUT_DATA = 0xDB
    GET_METADATA = 0xF7
    GET_SERIAL = 0xF8
    SET_TRIES = 0xFA
    RESET = 0xFB
    GET_VERSION = 0xFD
    IMPORT_KEY = 0xFE
    SET_MANAGEMENT_KEY = 0xFF


INS_WITH_SECRETS: Final = frozenset(
    {
        Ins.VERIFY,
        Ins.CHANGE_REFERENCE,
        Ins.RESET_RETRY_COUNTER,
        Ins.IMPORT_KEY,
        Ins.SET_MANAGEMENT_KEY,
    }
)
"""Commands whose body must not be shown anywhere."""


class StatusWord(IntEnum):
    """SW1-SW2 as the card sends it; 61xx and 63Cx carry a number in their last digits."""

    SUCCESS = 0x9000
    MORE_DATA = 0x6100
    TRIES_LEFT = 0x63C0
    WRONG_LENGTH = 0x6700
    SECURITY_NOT_SATISFIED = 0x6982
    BLOCKED = 0x6983
    CONDITIONS_NOT_SATISFIED = 0x6985
    WRONG_DATA = 0x6A80
    NOT_FOUND = 0x6A82
    NO_SPACE = 0x6A84
    WRONG_P1_P2 = 0x6A86
    REFERENCE_NOT_FOUND = 0x6A88
    INS_NOT_SUPPORTED = 0x6D00
    CLA_NOT_SUPPORTED = 0x6E00


class CardStatusError(Exception):
    """A command ends with a status word other than 9000 and no data."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X}")
        self.status = status


@attrs.frozen
class Command:
    """One command APDU, or the whole of a chained one."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes
    response_bytes_max: int
    """Le: how much the reader can take in one response."""

    @classmethod
    def parse(cls, apdu: bytes) -> Self:
        """Return the command in ``apdu``, short or extended.

        Raises:
            CardStatusError: 6700, no header or the lengths do not add up.
        """
        if len(apdu) < HEADER_BYTES:
            raise CardStatusError(StatusWord.WRONG_LENGTH)
        data, limit = _body(apdu[HEADER_BYTES:])
        return cls(apdu[0], apdu[1], apdu[2], apdu[3], data, limit)

    @property
    def is_chained(self) -> bool:
        """Say whether another piece of this command follows."""
        return bool(self.cla & CHAINING)

    def continues(self, first: Command) -> bool:
        """Say whether this is a further piece of the chain that ``first`` began."""
        return (self.ins, self.p1, self.p2) == (first.ins, first.p1, first.p2)


def _body(body: bytes) -> tuple[bytes, int]:
    """Return data and Le of what follows the header (ISO 7816-4, 5.1, cases 1 to 4)."""
    if len(body) <= 1:
        return b"", (body[0] if body else 0) or _SHORT_RESPONSE_BYTES_MAX
    if body[0] != 0:
        return _split(body[1:], body[0], 1, _SHORT_RESPONSE_BYTES_MAX)
    if len(body) == _EXTENDED_LENGTH_BYTES:
        return b"", int.from_bytes(body[1:], "big") or _EXTENDED_RESPONSE_BYTES_MAX
    size = int.from_bytes(body[1:_EXTENDED_LENGTH_BYTES], "big")
    if size == 0 or len(body) < _EXTENDED_LENGTH_BYTES:
        raise CardStatusError(StatusWord.WRONG_LENGTH)
    return _split(body[_EXTENDED_LENGTH_BYTES:], size, 2, _EXTENDED_RESPONSE_BYTES_MAX)


def _split(rest: bytes, size: int, le_bytes: int, default: int) -> tuple[bytes, int]:
    data, expected = rest[:size], rest[size:]
    if len(data) < size or len(expected) not in (0, le_bytes):
        raise CardStatusError(StatusWord.WRONG_LENGTH)
    return data, int.from_bytes(expected, "big") or default


@attrs.define
class Assembler:
    """Joins chained commands and hands out long responses in pieces.

    Responses longer than Le leave as 61xx pieces fetched by GET RESPONSE; any other command
    throws the rest away.
    """

    _first: Command | None = None
    _collected: bytearray = attrs.field(factory=bytearray)
    _pending: bytes = b""

    def reset(self) -> None:
        """Forget a half-built command and a half-read response."""
        self._first = None
        self._collected.clear()
        self._pending = b""

    def add(self, piece: Command) -> Command | None:
        """Return the whole command when ``piece`` completes it, None when more must follow.

        A command that does not belong to the open chain ends that chain and stands for itself.

        Raises:
            CardStatusError: 6700, the chain is longer than ``CHAIN_BYTES_MAX``.
        """
        self._pending = b""
        if self._first is not None and not piece.continues(self._first):
            self.reset()
        if len(self._collected) + len(piece.data) > CHAIN_BYTES_MAX:
            self.reset()
            raise CardStatusError(StatusWord.WRONG_LENGTH)
        if piece.is_chained:
            self._first = self._first or piece
            self._collected += piece.data
            return None
        whole = attrs.evolve(piece, data=bytes(self._collected) + piece.data)
        self.reset()
        return whole

    def respond(self, data: bytes, limit: int) -> bytes:
        """Return the response APDU for ``data``: all of it with 9000, or a piece with 61xx."""
        piece, self._pending = data[:limit], data[limit:]
        if not self._pending:
            return piece + status_bytes(StatusWord.SUCCESS)
        rest = len(self._pending)
        return piece + status_bytes(
            StatusWord.MORE_DATA | (rest if rest < _SHORT_LENGTH_LIMIT else 0)
        )

    def respond_rest(self, limit: int) -> bytes:
        """Return the next piece of a response that did not fit (GET RESPONSE).

        Raises:
            CardStatusError: 6985, nothing is left to fetch.
        """
        if not self._pending:
            raise CardStatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self.respond(self._pending, limit)


def status_bytes(status: int) -> bytes:
    """Return SW1 and SW2."""
    return status.to_bytes(2, "big")
