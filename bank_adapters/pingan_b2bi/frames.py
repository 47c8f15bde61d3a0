"""Cuts and builds B2Bi packets: a 222-byte header, the body, a signature, attachments.

Every length counts bytes. The header's layout was read off 139 real packets, the attachments'
off a public integration only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from fep.domain.errors import LocalProtocolError, RemoteProtocolError

FIELDS: Final = (
    ("msg_type", 4),
    ("target_sys", 2),
    ("charset", 2),
    ("protocol", 2),
    ("corp_code", 20),
    ("body_len", 10),
    ("trade_code", 6),
    ("operator", 5),
    ("serv_type", 2),
    ("date", 8),
    ("time", 6),
    ("seq", 20),
    ("ret_code", 6),
    ("ret_msg", 100),
    ("cont_flag", 1),
    ("req_times", 3),
    ("sign_flag", 1),
    ("sign_pkt", 1),
    ("sign_alg", 12),
    ("sign_len", 10),
    ("attach", 1),
)
"""Header fields in wire order with their sizes in bytes."""

ATTACHMENT_FIELDS: Final = (
    ("file_name", 240),
    ("charset", 2),
    ("fetch", 1),
    ("sign_flag", 1),
    ("sign_pkt", 1),
    ("sign_alg", 12),
    ("sign_len", 10),
    ("content_len", 10),
)
"""Fields of the header that precedes each attachment."""

DEFAULTS: Final[Mapping[str, str]] = {
    "msg_type": "A001",
    "target_sys": "01",
    "charset": "01",
    "protocol": "01",
    "operator": "00000",
    "serv_type": "01",
    "cont_flag": "0",
    "req_times": "000",
    "sign_flag": "0",
    "sign_pkt": "1",
    "sign_len": f"{0:>10}",
    "attach": "0",
}
"""What an unsigned request carries where nothing else is said."""

HEADER_BYTES: Final = sum(size for _, size in FIELDS)
ATTACHMENT_HEADER_BYTES: Final = sum(size for _, size in ATTACHMENT_FIELDS)
MAGIC: Final = b"A001"
_NUMBER: Final = re.compile(rb"[0-9]*")


def _places(fields: tuple[tuple[str, int], ...]) -> dict[str, slice]:
    places, at = {}, 0
    for name, size in fields:
        places[name] = slice(at, at + size)
        at += size
    return places


PLACES: Final = _places(FIELDS)
_ATTACHMENT_PLACES: Final = _places(ATTACHMENT_FIELDS)


def _number(cell: bytes, name: str) -> int:
    """Return a numeric cell of any padding; four forms of zero were seen, blank is one of them."""
    digits = cell.strip()
    if not _NUMBER.fullmatch(digits):
        msg = f"header field {name} is not a number: {cell[:20]!r}"
        raise RemoteProtocolError(msg)
    return int(digits or b"0")


@attrs.frozen
class Header:
    """The 222 bytes as they stand on the wire."""

    raw: bytes = attrs.field(repr=False)

    def cell(self, name: str) -> bytes:
        """Return a field's bytes with their padding."""
        return self.raw[PLACES[name]]

    def text(self, name: str) -> str:
        """Return a field without padding; the bytes are cut out before they are decoded."""
        cell = self.cell(name)
        # Nearly every one is ASCII, whose own codec is several times as quick.
        charset = "ascii" if cell.isascii() else "gb18030"
        return cell.decode(charset, "replace").strip()

    def number(self, name: str) -> int:
        """Return a numeric field.

        Raises:
            RemoteProtocolError: it is not a number.
        """
        return _number(self.cell(name), name)

    @property
    def message(self) -> str:
        """The bank's text: behind a colon, and at byte 100 it may end inside a character."""
        return self.text("ret_msg").removeprefix(":").rstrip("\ufffd").strip()


@attrs.frozen
class Attachment:
    """One file that came with a packet."""

    name: str
    content: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False, default=b"")


@attrs.frozen
class Packet:
    """One whole packet, request or answer."""

    header: Header
    body: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False)
    attachments: tuple[Attachment, ...]
    raw: bytes = attrs.field(repr=False)


def encode(
    cells: Mapping[str, str | bytes],
    body: bytes = b"",
    signature: bytes = b"",
    attachments: Sequence[Attachment] = (),
) -> bytes:
    """Return a packet's bytes: ``DEFAULTS`` with the given header cells laid over them.

    Args:
        cells: header fields by name; bytes go out as they are, text in GBK; blanks fill the end.
        body: the encoded XML; ``body_len`` counts it alone.
        signature: raw bytes that follow the body; ``sign_len`` is filled in where there are any.
        attachments: files that follow all that, at most nine.

    Raises:
        LocalProtocolError: a cell is longer than its field, or there are too many files.
    """
    header = bytearray(_TEMPLATE)
    _lay(header, cells)
    given: dict[str, str | bytes] = {"body_len": f"{len(body):010d}"}
    if signature:
        given["sign_len"] = f"{len(signature):>10}"
    if attachments:
        given["attach"] = str(len(attachments))
    _lay(header, given)
    return b"".join((header, body, signature, *map(_attachment_bytes, attachments)))


def _attachment_bytes(one: Attachment) -> bytes:
    header = bytearray(b" " * ATTACHMENT_HEADER_BYTES)
    cells: dict[str, str | bytes] = {
        "file_name": one.name,
        "charset": "01",
        "fetch": "0",
        "sign_flag": "1" if one.signature else "0",
        "sign_pkt": "1",
        "sign_len": f"{len(one.signature):>10}",
        "content_len": f"{len(one.content):>10}",
    }
    _lay(header, cells, _ATTACHMENT_PLACES)
    return b"".join((header, one.content, one.signature))


def _lay(
    header: bytearray,
    cells: Mapping[str, str | bytes],
    places: Mapping[str, slice] = PLACES,
) -> None:
    for name, value in cells.items():
        place = places[name]
        cell = value.encode("gbk") if isinstance(value, str) else value
        size = place.stop - place.start
        if len(cell) > size:
            msg = f"header field {name} holds {size} bytes, not {len(cell)}"
            raise LocalProtocolError(msg)
        header[place] = cell.ljust(size)


_TEMPLATE: Final = bytearray(b" " * HEADER_BYTES)
"""A header with the defaults and nothing else: each packet lays its own cells over it."""
_lay(_TEMPLATE, DEFAULTS)


class Cutter:
    """Cuts one connection's bytes into packets; holds at most one frame and the last chunk."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._need = HEADER_BYTES
        self._fault = ""

    @property
    def needs(self) -> int:
        """How many bytes of the packet that has begun are needed at least."""
        return self._need

    def receive_data(self, data: bytes) -> list[Packet]:
        """Return the packets these bytes complete; a fault behind them is raised by the next call.

        Raises:
            RemoteProtocolError: not a B2Bi stream, or a frame above the limit; it stays so.
        """
        self._check()
        self._buffer += data
        packets: list[Packet] = []
        try:
            while (packet := self._next()) is not None:
                packets.append(packet)
        except RemoteProtocolError as error:
            self._fault = str(error)
            self._buffer.clear()
            if not packets:
                raise
        return packets

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a packet, or was broken before.
        """
        self._check()
        if self._buffer:
            msg = f"the stream ended after {len(self._buffer)} of at least {self._need} bytes"
            raise RemoteProtocolError(msg)

    def _check(self) -> None:
        if self._fault:
            raise RemoteProtocolError(self._fault)

    def _next(self) -> Packet | None:
        start = bytes(self._buffer[: len(MAGIC)])
        if not MAGIC.startswith(start):
            msg = f"a packet starts with {MAGIC!r}, this one with {start!r}"
            raise RemoteProtocolError(msg)
        if len(self._buffer) < self._need:
            return None
        packet = self._cut()
        if packet is not None:
            del self._buffer[: len(packet.raw)]
            self._need = HEADER_BYTES
        return packet

    def _cut(self) -> Packet | None:
        header = Header(bytes(self._buffer[:HEADER_BYTES]))
        body_end = HEADER_BYTES + header.number("body_len")
        end = body_end + header.number("sign_len")
        if not self._has(end):
            return None
        signature_end = end
        attachments = []
        for _ in range(header.number("attach")):
            found = self._attachment(end)
            if found is None:
                return None
            attachment, end = found
            attachments.append(attachment)
        raw = bytes(self._buffer[:end])
        body, signature = raw[HEADER_BYTES:body_end], raw[body_end:signature_end]
        return Packet(header, body, signature, tuple(attachments), raw)

    def _attachment(self, start: int) -> tuple[Attachment, int] | None:
        """Return the attachment that starts there and its end, None until all of it is here."""
        content_at = start + ATTACHMENT_HEADER_BYTES
        if not self._has(content_at):
            return None
        cells = bytes(self._buffer[start:content_at])
        content_end = content_at + _number(cells[_ATTACHMENT_PLACES["content_len"]], "content_len")
        end = content_end + _number(cells[_ATTACHMENT_PLACES["sign_len"]], "sign_len")
        if not self._has(end):
            return None
        name = cells[_ATTACHMENT_PLACES["file_name"]].decode("gb18030", "replace").strip()
        content = bytes(self._buffer[content_at:content_end])
        return Attachment(name, content, bytes(self._buffer[content_end:end])), end

    def _has(self, end: int) -> bool:
        """Say whether this many bytes are here; if not, look again only when they are."""
        if end > self._frame_bytes_max:
            msg = f"a packet of {end} bytes is above the limit of {self._frame_bytes_max}"
            raise RemoteProtocolError(msg)
        self._need = end
        return len(self._buffer) >= end
