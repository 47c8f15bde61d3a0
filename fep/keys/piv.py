"""The PIV card's commands, sans-I/O: conversations that yield a command and get its answer.

A conversation is a generator: it yields command APDUs and is sent response APDUs (data and status
word), and returns what was asked for. Who drives it owns the card. NIST SP 800-73-4 part 2 (card
commands), part 1 (objects), SP 800-78-4 table 6-2 (algorithm identifiers); ISO 7816-4 for chaining
and GET RESPONSE.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import Final, TypeVar

import attrs

from fep.keys.config import KeyReference
from fep.keys.errors import CardDataError, StatusWordError

T = TypeVar("T")
Conversation = Generator[bytes, bytes, T]

BODY_BYTES_MAX: Final = 255
"""Data of one short APDU; a longer body is chained."""
RESPONSE_BYTES_MAX: Final = 16384
RESPONSE_PARTS_MAX: Final = 128
CERTIFICATE_BYTES_MAX: Final = 16384
GUID_BYTES: Final = 16
LENGTH_BYTES_MAX: Final = 3
PIN_CHARS_MIN: Final = 6
PIN_CHARS_MAX: Final = 8
PIN_TRIES_LEFT_MIN: Final = 2
"""With fewer tries left no PIN is sent by itself."""

OK: Final = 0x9000
BLOCKED: Final = 0x6983
NOT_SATISFIED: Final = 0x6982
NOT_SELECTED: Final = 0x6D00
NOT_FOUND: Final = 0x6A82
SUSPECT_WORDS: Final = frozenset({NOT_SATISFIED, NOT_SELECTED})
"""Answers of a card that is not in the state we left it in: a swap or a foreign reset."""

_MORE: Final = 0x6100
_TRIES_LEFT: Final = 0x63C0
_WORD_BYTES: Final = 2
_LONG_LENGTH: Final = 0x80
_LONG_TAG: Final = 0x1F

_APPLICATION: Final = bytes.fromhex("A000000308000010000100")
_CHUID: Final = bytes.fromhex("5FC102")
_CERTIFICATES: Final[dict[KeyReference, bytes]] = {
    "9A": bytes.fromhex("5FC105"),
    "9C": bytes.fromhex("5FC10A"),
    "9D": bytes.fromhex("5FC10B"),
    "9E": bytes.fromhex("5FC101"),
}
_RSA: Final = {2048: 0x07, 3072: 0x05, 4096: 0x16}
_P256: Final = 0x11
_GZIP_WINDOW: Final = 31


@attrs.frozen
class PinCounter:
    """What the card says of its PIN without a try being spent."""

    tries: int | None
    """Tries left; None when none is spent, or the PIN is verified already, which restores all."""
    exact: bool = True
    """False of a token, whose flags tell only of none, one, or "not all" (2: at least so many, as
    far as the token says it), and which may not tell of a spent try at all."""


@attrs.frozen
class PinAccepted:
    """The PIN is right; the counter is restored."""


@attrs.frozen
class PinRefused:
    """The PIN is wrong."""

    tries: int | None
    """Tries left, 0 means blocked; None when that is not told."""


PinAnswer = PinAccepted | PinRefused


def algorithm_id(rsa_bits: int | None) -> int:
    """Return the card's algorithm identifier: of RSA with so many bits, or of P-256 for None.

    Raises:
        CardDataError: PIV has no such key.
    """
    if rsa_bits is None:
        return _P256
    if rsa_bits not in _RSA:
        msg = f"RSA keys of {rsa_bits} bits can't be used over PIV"
        raise CardDataError(msg)
    return _RSA[rsa_bits]


def header(command: bytes) -> str:
    """Return the four header bytes in hex, all of a command that a log may show."""
    return command[:4].hex(" ").upper()


def transmit(
    instruction: int, p1: int, p2: int, body: bytes = b"", *, answer: bool = True
) -> Conversation[tuple[bytes, int]]:
    """Send one command, chained when its body is long; return its whole answer and status word."""
    *heads, tail = _pieces(body)
    for piece in heads:
        reply = yield bytes((0x10, instruction, p1, p2, len(piece))) + piece
        data, word = _split(reply)
        if word != OK:
            return data, word
    command = bytes((0x00, instruction, p1, p2))
    if tail:
        command += bytes((len(tail),)) + tail
    data, word = _split((yield command + b"\0" if answer else command))
    collected = bytearray(data)
    parts = 0
    while word & 0xFF00 == _MORE:
        parts += 1
        if parts > RESPONSE_PARTS_MAX or len(collected) > RESPONSE_BYTES_MAX:
            raise CardDataError("the card's answer does not end")
        data, word = _split((yield bytes((0x00, 0xC0, 0x00, 0x00, word & 0xFF))))
        collected += data
    return bytes(collected), word


def select() -> Conversation[None]:
    """Select the PIV application.

    Raises:
        StatusWordError: there is none on this card.
    """
    _, word = yield from transmit(0xA4, 0x04, 0x00, _APPLICATION)
    if word != OK:
        raise StatusWordError("SELECT", word)


def read_guid() -> Conversation[str]:
    """Return the card's GUID (tag 34 of the CHUID) as 32 hexadecimal digits.

    Raises:
        StatusWordError, CardDataError: there is none.
    """
    chuid = yield from _object("CHUID", _CHUID)
    guid = find(chuid, 0x34)
    if guid is None or len(guid) != GUID_BYTES:
        raise CardDataError("the CHUID has no GUID of 16 bytes")
    return guid.hex()


def read_certificate(reference: KeyReference) -> Conversation[bytes]:
    """Return the DER of a key's certificate.

    Raises:
        StatusWordError, CardDataError: there is none that can be read.
    """
    content = yield from _object(f"certificate {reference}", _CERTIFICATES[reference])
    der = find(content, 0x70)
    if not der:
        msg = f"there is no certificate of key {reference}"
        raise CardDataError(msg)
    if (find(content, 0x71) or b"\0")[0] & 1:
        der = _inflate(der)
    return der


def pin_counter() -> Conversation[PinCounter]:
    """Return how many tries are left; an empty VERIFY spends none.

    Raises:
        StatusWordError: an answer that says neither.
    """
    _, word = yield from transmit(0x20, 0x00, 0x80, answer=False)
    if word == OK:
        return PinCounter(None)
    if word == BLOCKED:
        return PinCounter(0)
    if word & 0xFFF0 == _TRIES_LEFT:
        return PinCounter(word & 0x0F)
    raise StatusWordError("VERIFY (counter)", word)


def verify_pin(pin: str) -> Conversation[PinAnswer]:
    """Send the PIN once.

    Args:
        pin: 6 to 8 ASCII characters.

    Raises:
        StatusWordError: an answer that says neither yes nor no.
    """
    body = pin.encode("ascii").ljust(PIN_CHARS_MAX, b"\xff")
    _, word = yield from transmit(0x20, 0x00, 0x80, body, answer=False)
    if word == OK:
        return PinAccepted()
    if word == BLOCKED:
        return PinRefused(0)
    if word & 0xFFF0 == _TRIES_LEFT:
        return PinRefused(word & 0x0F)
    raise StatusWordError("VERIFY", word)


def sign(reference: KeyReference, algorithm: int, block: bytes) -> Conversation[bytes]:
    """Return what the key makes of the block: a padded RSA block, or the hash for P-256.

    Raises:
        StatusWordError, CardDataError: no signature.
    """
    body = tlv(0x7C, tlv(0x82, b"") + tlv(0x81, block))
    data, word = yield from transmit(0x87, algorithm, int(reference, 16), body)
    if word != OK:
        raise StatusWordError("GENERAL AUTHENTICATE", word)
    template = find(data, 0x7C)
    signature = find(template, 0x82) if template is not None else None
    if not signature:
        raise CardDataError("the card's answer holds no signature")
    return signature


def tlv(tag: int, value: bytes) -> bytes:
    """Return one BER-TLV element; the tag as its own bytes (0x7C, 0x5FC102)."""
    size = len(value)
    if size < _LONG_LENGTH:
        length = bytes((size,))
    elif size <= 0xFF:
        length = bytes((0x81, size))
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big") + length + value


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, value) of each element, in order.

    Raises:
        CardDataError: the data end inside an element, or a length takes more than three bytes.
    """
    at = 0
    while at < len(data):
        start = at
        at += 1
        if data[start] & _LONG_TAG == _LONG_TAG:
            while at < len(data) and data[at] & 0x80:
                at += 1
            at += 1
        tag = int.from_bytes(data[start:at], "big")
        if at >= len(data):
            raise CardDataError("a TLV element has no length")
        size = data[at]
        at += 1
        if size >= _LONG_LENGTH:
            width = size - _LONG_LENGTH
            if not 1 <= width <= LENGTH_BYTES_MAX or at + width > len(data):
                raise CardDataError("a TLV length can't be read")
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if at + size > len(data):
            raise CardDataError("a TLV element is longer than its data")
        yield tag, data[at : at + size]
        at += size


def find(data: bytes, tag: int) -> bytes | None:
    """Return the first element's value with the tag, or None.

    Raises:
        CardDataError: not TLV up to there.
    """
    return next((value for found, value in elements(data) if found == tag), None)


def _pieces(body: bytes) -> list[bytes]:
    starts = range(0, max(len(body), 1), BODY_BYTES_MAX)
    return [body[start : start + BODY_BYTES_MAX] for start in starts]


def _split(reply: bytes) -> tuple[bytes, int]:
    if len(reply) < _WORD_BYTES:
        raise CardDataError("an answer has no status word")
    return reply[:-2], int.from_bytes(reply[-2:], "big")


def _object(what: str, tag: bytes) -> Conversation[bytes]:
    data, word = yield from transmit(0xCB, 0x3F, 0xFF, tlv(0x5C, tag))
    if word != OK:
        msg = f"GET DATA {what}"
        raise StatusWordError(msg, word)
    content = find(data, 0x53)
    if content is None:
        msg = f"{what}: the answer holds no object"
        raise CardDataError(msg)
    return content


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflater.decompress(data, CERTIFICATE_BYTES_MAX)
    except zlib.error as error:
        raise CardDataError("the compressed certificate can't be read") from error
    if not inflater.eof:
        raise CardDataError("the compressed certificate is too long or cut")
    return plain
