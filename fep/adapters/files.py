"""What passes between the codec and the link of a bank that takes and gives files.

Such a bank answers nothing: a file is put where it fetches it, and its own files come when it
likes. So the link keeps what came, and answers a question from that. A ``Parcel`` is all that goes
either way, as bytes: a line of JSON, then the documents one behind the other.

- To the link with a document: put this file there. Answered with ``WRITTEN`` when it stands there
  for certain, which says nothing of the bank.
- To the link without one: what came that bears these marks? Answered with ``FOUND`` or ``NONE``.
- From the link unasked: what came of this payment (``trade`` is ``TOLD``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, runtime_checkable

import attrs

from fep.adapters.api import BankCodec, Reply
from fep.domain.errors import RemoteProtocolError

WRITTEN: Final = "WRITTEN"
FOUND: Final = "FOUND"
NONE: Final = "NONE"
TOLD: Final = "told"
HEAD_BYTES_MAX: Final = 64 * 1024
MARKS_MAX: Final = 200
DOCUMENTS_MAX: Final = 1000
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
_TEXTS: Final = ("trade", "correlation", "reference", "code", "message", "at")


@attrs.frozen
class Parcel:
    """One request to a folder link, or one answer of it."""

    trade: str
    correlation: str = ""
    reference: str = ""
    """Of the payment it is about, as the bank's files bear it; or empty."""
    code: str = ""
    """``WRITTEN``, ``FOUND`` or ``NONE``; empty in a request."""
    message: str = ""
    at: str = ""
    """When it was asked: RFC 3339."""
    names: tuple[str, ...] = ()
    """Of the files; one for each document."""
    marks: tuple[str, ...] = ()
    """Of a question: what came under any of these."""
    newest: int = 0
    """Of a question: so many documents at most under each mark, the latest; 0 = all."""
    documents: tuple[bytes, ...] = attrs.field(default=(), repr=False)


@attrs.frozen
class Contents:
    """What is in one file that came."""

    marks: frozenset[str] = frozenset()
    """What it is looked for by."""
    told: Mapping[str, str] = attrs.Factory(dict)
    """Marks of payments whose evidence is to be handed on at once, and their references."""
    part: Callable[[str], bytes] = attrs.field(default=lambda _mark: b"", repr=False, eq=False)
    """Returns what the file says under a mark, as a document that a codec reads like the whole."""


@runtime_checkable
class FileCodec(BankCodec, Protocol):
    """A codec of a bank that takes and gives files: its frames are parcels."""

    def contents(self, document: bytes) -> Contents:
        """Return what is in a file that came from the bank.

        Raises:
            RemoteProtocolError: it can't be read, or not yet to its end.
        """
        ...


def parcel_bytes(parcel: Parcel) -> bytes:
    """Return a parcel as it goes over."""
    head: dict[str, Any] = {
        name: value for name in _TEXTS if (value := getattr(parcel, name)) or name == "trade"
    }
    if parcel.marks:
        head |= {"marks": parcel.marks, "newest": parcel.newest}
    sizes = [len(one) for one in parcel.documents]
    if sizes:
        head["files"] = [
            {"name": name, "bytes": size} for name, size in zip(parcel.names, sizes, strict=True)
        ]
    line = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join((line, b"\n", *parcel.documents))


def read_parcel(data: bytes) -> Parcel:
    """Return the parcel that these bytes are.

    Raises:
        RemoteProtocolError: they are none, or more or less than one.
    """
    end = data.find(b"\n", 0, HEAD_BYTES_MAX)
    if end < 0:
        msg = "no parcel: its first line does not end"
        raise RemoteProtocolError(msg)
    parcel, sizes = _read_head(data[:end])
    if len(data) != end + 1 + sum(sizes):
        msg = "a parcel is longer or shorter than it says"
        raise RemoteProtocolError(msg)
    return _filled(parcel, sizes, data, end + 1)


def _filled(parcel: Parcel, sizes: list[int], data: bytes, at: int) -> Parcel:
    documents = []
    for size in sizes:
        documents.append(bytes(data[at : at + size]))
        at += size
    return attrs.evolve(parcel, documents=tuple(documents))


def _read_head(line: bytes) -> tuple[Parcel, list[int]]:
    """Return a parcel without its documents, and their sizes."""
    try:
        head = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = "no parcel: its first line is no JSON"
        raise RemoteProtocolError(msg) from error
    try:
        return _parcel(head)
    except (TypeError, KeyError, ValueError) as error:
        msg = f"no parcel: {error!r}"
        raise RemoteProtocolError(msg) from error


def _parcel(head: Any) -> tuple[Parcel, list[int]]:  # noqa: ANN401 - any JSON value
    if not isinstance(head, dict) or not isinstance(head.get("trade"), str):
        msg = "it has no trade"
        raise ValueError(msg)  # noqa: TRY004 - a value, not a call, is wrong
    texts: dict[str, Any] = {name: _text(head.get(name, "")) for name in _TEXTS}
    marks = tuple(_text(one) for one in head.get("marks", ()))
    newest, files = head.get("newest", 0), head.get("files", [])
    if len(marks) > MARKS_MAX or len(files) > DOCUMENTS_MAX or type(newest) is not int:
        msg = "it has too many marks or files"
        raise ValueError(msg)
    names, sizes = [], []
    for one in files:
        name, size = _text(one["name"]), one["bytes"]
        if not _NAME.fullmatch(name) or type(size) is not int or size < 0:
            msg = "it names a file that can't be"
            raise ValueError(msg)
        names.append(name)
        sizes.append(size)
    return Parcel(**texts, names=tuple(names), marks=marks, newest=newest), sizes


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = "a member is no text"
        raise TypeError(msg)
    return value


class ParcelFramer:
    """Cuts bytes into the replies of a folder link.

    Args:
        read: makes the reply of a parcel and its bytes; must not raise.
        bytes_max: bound of one parcel's documents together.
    """

    def __init__(self, read: Callable[[Parcel, bytes], Reply], bytes_max: int) -> None:
        self._read = read
        self._bytes_max = bytes_max
        self._held = bytearray()
        self._fault = ""

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their parcel."""
        return len(self._held)

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: no parcel or too large; raised by the call after the one that
                returned what was complete before it.
        """
        if self._fault:
            raise RemoteProtocolError(self._fault)
        self._held += data
        found: list[Reply] = []
        try:
            while (reply := self._next()) is not None:
                found.append(reply)
        except RemoteProtocolError as error:
            self._fault = str(error)
            self._held.clear()
            if not found:
                raise
        return found

    def _next(self) -> Reply | None:
        end = self._held.find(b"\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            if len(self._held) >= HEAD_BYTES_MAX:
                msg = "no parcel: its first line does not end"
                raise RemoteProtocolError(msg)
            return None
        parcel, sizes = _read_head(bytes(self._held[:end]))
        size = end + 1 + sum(sizes)
        if size > self._bytes_max:
            msg = f"a parcel of more than {self._bytes_max} bytes"
            raise RemoteProtocolError(msg)
        if len(self._held) < size:
            return None
        raw = bytes(self._held[:size])
        del self._held[:size]
        return self._read(_filled(parcel, sizes, raw, end + 1), raw)

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a parcel.
        """
        if self._fault or self._held:
            msg = self._fault or "the stream ended inside a parcel"
            raise RemoteProtocolError(msg)
