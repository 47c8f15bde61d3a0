"""BER-TLV as cards use it (ISO 7816-4, 5.2.2): tags of any size, definite lengths only."""

from __future__ import annotations

from typing import Final

_LONG_FORM: Final = 0x80
"""Bit 8: of a length, its size follows; of a tag's later byte, one more follows."""
_LONG_TAG: Final = 0x1F
"""Low bits of a tag that goes on."""
_TAG_BYTES_MAX: Final = 3
_LENGTH_BYTES_MAX: Final = 3


def encode(tag: int, value: bytes) -> bytes:
    """Return one data object; ``tag`` is written as a number, e.g. ``0x5FC102``."""
    tag_bytes = tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")
    size = len(value)
    if size < _LONG_FORM:
        return tag_bytes + bytes([size]) + value
    size_bytes = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return tag_bytes + bytes([_LONG_FORM | len(size_bytes)]) + size_bytes + value


def decode(data: bytes) -> dict[int, bytes]:
    """Return the data objects in ``data``, by tag; of a repeated tag the last one counts.

    Raises:
        ValueError: the bytes are not a sequence of whole data objects.
    """
    objects: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        tag, position = _tag(data, position)
        size, position = _length(data, position)
        if position + size > len(data):
            msg = f"data object {tag:X} says {size} bytes, {len(data) - position} follow"
            raise ValueError(msg)
        objects[tag] = data[position : position + size]
        position += size
    return objects


def _tag(data: bytes, start: int) -> tuple[int, int]:
    position = start + 1
    if data[start] & _LONG_TAG == _LONG_TAG:
        while position < len(data) and data[position] & _LONG_FORM:
            position += 1
        position += 1
    if position > len(data) or position - start > _TAG_BYTES_MAX:
        msg = f"the tag at byte {start} is cut short or over {_TAG_BYTES_MAX} bytes"
        raise ValueError(msg)
    return int.from_bytes(data[start:position], "big"), position


def _length(data: bytes, start: int) -> tuple[int, int]:
    if start >= len(data):
        msg = "a length is missing at the end"
        raise ValueError(msg)
    first = data[start]
    if first < _LONG_FORM:
        return first, start + 1
    count = first & 0x7F
    end = start + 1 + count
    if not 1 <= count <= _LENGTH_BYTES_MAX or end > len(data):
        msg = f"the length at byte {start} is indefinite, cut short or too long"
        raise ValueError(msg)
    return int.from_bytes(data[start + 1 : end], "big"), end
