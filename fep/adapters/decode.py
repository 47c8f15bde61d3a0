"""Captured bytes as frames that people can read (``fep decode``, 报文解码).

An adapter's ``decoder`` says where its next frame is and what is in one; this file does what is the
same for all: what stands between frames is garbage (with offset and length), secrets are masked,
nothing raises, and the work is bounded whatever the bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol

import attrs

from fep.domain.account import mask
from fep.domain.errors import FepError

INPUT_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of one capture; what is behind that is told as not looked at."""
LOOKS_MAX: Final = 16
"""The bytes of a capture are read so often at most, where frames are found that are none."""
SHOWN_BYTES: Final = 48
"""Of garbage."""
BLANK: Final = b" \t\r\n\0"
"""Between two frames it is no garbage."""
MASKED: Final = "***"
_SECRET: Final = re.compile(
    r"password|passwd|userpass|pwd|pin|token|secret|sign|cert", re.IGNORECASE
)
_ACCOUNT: Final = re.compile(r"acc|act(?:ac)?n|acct|card|iban", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?=.*[0-9]{4})[0-9A-Za-z]{9,40}")
_DECLARATION: Final = re.compile(rb"<\?xml[^<>]{0,200}\?>\s{0,64}\Z")

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of an HTTP message."""
_HTTP: Final = re.compile(
    rb"(?:POST|GET) [\x21-\x7e]{1,4096} HTTP/1\.[01]\r\n|HTTP/1\.[01] [0-9]{3}[^\r\n]{0,200}\r\n"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_HEAD_END: Final = b"\r\n\r\n"
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"

Fields = Mapping[str, Any]


class Role(StrEnum):
    """Who sent a frame."""

    REQUEST = "request"
    ANSWER = "answer"


@attrs.frozen
class Frame:
    """One frame that was understood; texts are as they stand, numbers too."""

    role: Role
    trade: str
    code: str = ""
    """The bank's return code; empty in a request."""
    message: str = ""
    reference: str = ""
    """What the answer is matched with its request by."""
    fields: Fields = attrs.field(factory=dict, repr=False)


class Decoder(Protocol):
    """An adapter's half of ``fep decode``; knows no configuration and keeps nothing."""

    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        """Return begin and end of what may be the next whole frame, at or behind an offset."""
        ...

    def describe(self, frame: bytes) -> Frame:
        """Return what a frame says.

        Raises:
            FepError, ValueError: it is none.
        """
        ...


def lines(protocol: str, decoder: Decoder, data: bytes) -> Iterator[dict[str, Any]]:
    """Yield a JSON value for each frame, and for all that stands between; never raises.

    Args:
        protocol: the adapter's name.
        decoder: the adapter's.
        data: the capture, in any pieces put together.
    """
    at = since = 0
    end = min(len(data), INPUT_BYTES_MAX)
    budget = LOOKS_MAX * max(end, 1)
    why = ""
    while at < end:
        found = decoder.find(data, at) if budget > 0 else None
        if found is None or found[1] > end:
            break
        begin, after = found
        assert at <= begin < after
        budget -= after - at
        try:
            frame = decoder.describe(data[begin:after])
        except (FepError, ValueError) as error:
            # It may be one that was cut, with a good one inside.
            at, why = begin + 1, str(error)[:200]
            continue
        if data[since:begin].strip(BLANK):
            yield _garbage(protocol, data, since, begin, why)
        yield {
            "protocol": protocol,
            "role": frame.role.value,
            "trade": frame.trade,
            "code": frame.code,
            "message": frame.message,
            "reference": frame.reference,
            "fields": masked(frame.fields),
            "offset": begin,
            "length": after - begin,
        }
        at = since = after
        why = ""
    if data[since:].strip(BLANK):
        yield _garbage(protocol, data, since, len(data), why)


def _garbage(protocol: str, data: bytes, begin: int, end: int, why: str) -> dict[str, Any]:
    # A frame that was cut may hold a password: nothing of text is shown but how it begins.
    shown = data[begin : min(end, begin + SHOWN_BYTES)]
    value = {
        "protocol": protocol,
        "garbage": {"offset": begin, "length": end - begin, "begins": shown.hex(" ", 4)},
    }
    return value | ({"reason": why} if why else {})


def masked(value: Any, name: str = "") -> Any:  # noqa: ANN401 - any JSON value
    """Return a value whose members of a secret name, and theirs, are masked."""
    if isinstance(value, Mapping):
        return {str(key): masked(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [masked(one, name) for one in value]
    return MASKED if value and _SECRET.search(name) else value


def without_accounts(values: Sequence[Any]) -> list[Any]:
    """Return JSON values with account numbers masked too: for what leaves the enterprise.

    A number is an account's by its member's name, or by the name of what it stands in; once known,
    it is masked wherever it stands in any of the values, also inside a longer text.
    """
    known = sorted(set(_accounts(values, inside=False)), key=len, reverse=True)
    if not known:
        return list(values)
    pattern = re.compile("|".join(map(re.escape, known)))
    return [_replaced(one, pattern) for one in values]


def _accounts(value: Any, *, inside: bool) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _accounts(one, inside=inside or bool(_ACCOUNT.search(str(key))))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _accounts(one, inside=inside)
    elif inside and isinstance(value, str) and _NUMBER.fullmatch(value):
        yield value


def _replaced(value: Any, pattern: re.Pattern[str]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return {key: _replaced(one, pattern) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, pattern) for one in value]
    return pattern.sub(lambda found: mask(found[0]), value) if isinstance(value, str) else value


def xml_bounds(data: bytes, at: int, root: bytes) -> tuple[int, int] | None:
    """Return the bounds of the next whole XML message of a root element, with its declaration.

    It is looked for from its end, so that one that was cut does not swallow the next.
    """
    while (end := data.find(b"</" + root + b">", at)) >= 0:
        after = end + len(root) + 3
        begin = max(data.rfind(b"<" + root + mark, at, end) for mark in (b">", b" "))
        if begin < 0:
            at = after
            continue
        if declared := _DECLARATION.search(data, max(at, begin - 256), begin):
            begin = declared.start()
        return begin, after
    return None


def http_bounds(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
    """Return the bounds of the next whole HTTP message that begins in front of a limit."""
    for begun in _HTTP.finditer(data, at, limit):
        head = data.find(_HEAD_END, begun.end() - 2, begun.end() + HEAD_BYTES_MAX)
        if head < 0:
            continue
        body = head + len(_HEAD_END)
        length = _LENGTH.search(data, begun.start(), head + 2)
        if length is not None:
            end = body + int(length[1])
        elif (last := data.find(_LAST_CHUNK, head, head + BODY_BYTES_MAX)) >= 0:
            end = last + len(_LAST_CHUNK)
        else:
            end = body
        if end <= len(data):
            return begun.start(), end
    return None
