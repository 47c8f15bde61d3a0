"""The wire tape (报文磁带): a bank's exact bytes with direction, time and task, as lines of JSON.

A file begins with a head and goes on with records, each a line; files of one tape may be put
together. What was read of one connection in one direction is one stream, however it came in pieces.
A line that was cut, as by a machine that lost power, is told and left out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import attrs
import orjson

from fep.adapters.decode import Decoder, lines

VERSION: Final = 1
HEAD: Final = b'{"tape":'
"""How a tape begins."""
_DIGEST_CHARS: Final = 32


class What(StrEnum):
    """What a record is of."""

    SENT = "sent"
    RECEIVED = "received"
    OPENED = "opened"
    CLOSED = "closed"
    TASK = "task"
    """Whose frame is sent next; a frame without one is the link's own, such as a heartbeat."""
    GAP = "gap"
    """Bytes that are not on the tape."""


@attrs.frozen
class Record:
    """One line of a tape."""

    what: What
    at: str
    """UTC, RFC 3339."""
    connection: str = ""
    """Unique over all processes that wrote the tape."""
    data: bytes = attrs.field(default=b"", repr=False)
    task: str = ""
    frame: str = ""
    """Of TASK: the frame's digest."""
    count: int = 0
    """Of GAP: how many bytes."""


def digest(frame: bytes) -> str:
    """Return what names a frame on a tape."""
    return hashlib.sha256(frame).hexdigest()[:_DIGEST_CHARS]


def head_line(bank: str, adapter: str) -> bytes:
    """Return the first line of a file."""
    return orjson.dumps({"tape": VERSION, "bank": bank, "adapter": adapter}) + b"\n"


def line(record: Record) -> bytes:
    """Return a record's line."""
    value: dict[str, Any] = {"at": record.at, "what": record.what.value}
    if record.connection:
        value["connection"] = record.connection
    if record.data:
        value["data"] = base64.b64encode(record.data).decode("ascii")
    more = {"task": record.task, "frame": record.frame, "count": record.count}
    value |= {name: one for name, one in more.items() if one}
    return orjson.dumps(value) + b"\n"


@attrs.define
class Tape:
    """What was read of one."""

    bank: str = ""
    adapter: str = ""
    records: list[Record] = attrs.Factory(list)
    left_out: int = 0
    """Lines that could not be read."""


def is_tape(data: bytes) -> bool:
    """Say whether these bytes are a tape, and not a bare capture."""
    return data.startswith(HEAD)


def read(data: bytes) -> Tape:
    """Return what a tape says; never raises."""
    tape = Tape()
    for text in data.splitlines():
        try:
            value = orjson.loads(text)
            if "tape" in value:
                tape.bank, tape.adapter = str(value["bank"]), str(value["adapter"])
            else:
                tape.records.append(_record(value))
        except (ValueError, TypeError, KeyError, binascii.Error):
            tape.left_out += 1
    return tape


def _record(value: Mapping[str, Any]) -> Record:
    texts = {name: value.get(name, "") for name in ("connection", "task", "frame")}
    count = value.get("count", 0)
    if not all(isinstance(one, str) for one in (*texts.values(), value["at"])):
        raise TypeError
    if not isinstance(count, int):
        raise TypeError
    data = base64.b64decode(value.get("data", ""), validate=True)
    return Record(What(value["what"]), value["at"], data=data, count=count, **texts)


@attrs.define
class _Stream:
    """What went one way on one connection."""

    what: What
    pieces: list[bytes] = attrs.Factory(list)
    ends: list[int] = attrs.Factory(list)
    """Where each piece ends in the stream."""
    places: list[int] = attrs.Factory(list)
    """Of each piece among the tape's records."""

    def add(self, data: bytes, place: int) -> None:
        self.pieces.append(data)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(data))
        self.places.append(place)

    def place(self, offset: int) -> int:
        """Return the record that has the byte before an offset."""
        return self.places[bisect_left(self.ends, offset)]


@attrs.frozen
class Shown:
    """One frame, or what is none, or another record."""

    value: dict[str, Any]
    """As JSON, with its time, direction and connection; a frame's with its task, or empty."""
    data: bytes = attrs.field(default=b"", repr=False)


def shown(tape: Tape, protocol: str, decoder: Decoder) -> list[Shown]:
    """Return each frame on a tape, and all that is none, in their order.

    A request's task is known by its bytes. An answer's is that of the request that it answers: the
    one of its reference, or else the oldest of its connection that is not answered yet.
    """
    owners = {one.frame: one.task for one in tape.records if one.what is What.TASK}
    found: list[tuple[int, Shown]] = []
    for connection, sides in _streams(tape.records).items():
        for stream in sides:
            data = b"".join(stream.pieces)
            for value in lines(protocol, decoder, data):
                place = value.get("garbage", value)
                end = place["offset"] + place["length"]
                number, frame = stream.place(end), data[place["offset"] : end]
                more = {
                    "at": tape.records[number].at,
                    "direction": stream.what.value,
                    "connection": connection,
                }
                if stream.what is What.SENT and "garbage" not in value:
                    more["task"] = owners.get(digest(frame), "")
                found.append((number, Shown(more | value, frame)))
    for number, one in enumerate(tape.records):
        if one.what in {What.OPENED, What.CLOSED, What.GAP}:
            event = {"at": one.at, "what": one.what.value, "connection": one.connection}
            found.append((number, Shown(event | ({"bytes": one.count} if one.count else {}))))
    found.sort(key=lambda one: one[0])
    ordered = [one for _, one in found]
    _name_answers(one.value for one in ordered)
    return ordered


def _streams(records: Iterable[Record]) -> dict[str, tuple[_Stream, _Stream]]:
    streams: dict[str, tuple[_Stream, _Stream]] = {}
    for place, one in enumerate(records):
        if one.what not in {What.SENT, What.RECEIVED}:
            continue
        sides = streams.get(one.connection)
        if sides is None:
            sides = streams[one.connection] = (_Stream(What.SENT), _Stream(What.RECEIVED))
        sides[one.what is What.RECEIVED].add(one.data, place)
    return streams


def _name_answers(values: Iterable[dict[str, Any]]) -> None:
    """Write into each answer whose it is."""
    asked: dict[str, dict[str, str]] = {}
    for value in values:
        if value.get("role") is None:
            continue
        waiting = asked.setdefault(value["connection"], {})
        if value["direction"] == What.SENT:
            waiting[value["reference"] or f"#{len(waiting)}"] = value.get("task", "")
        elif value["reference"] in waiting:
            value["task"] = waiting.pop(value["reference"])
        elif not value["reference"] and waiting:
            value["task"] = waiting.pop(next(iter(waiting)))
        else:
            value["task"] = ""
