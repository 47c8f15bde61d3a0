"""The envelope ``TX``: one XML message after the other on a TCP stream, without any length.

A message ends with ``</TX>``, over as many lines as it likes. That is found in the bytes: neither
byte of a GB18030 character is ``<``. Requests are one line of strict GB18030; answers are read
leniently: any order, fields missing or unknown, a character cut in half replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import RemoteProtocolError

END: Final = b"</TX>"
CHARSET: Final = xml.GBK
_HEAD: Final = '<?xml version="1.0" encoding="GB18030" standalone="yes"?>'
_TAIL: Final = frozenset({"SIGN_INFO", "SIGNCERT"})
"""They stand after TX_INFO."""
_SIGNATURE: Final = re.compile(rb"<SIGN_INFO>([^<]*)</SIGN_INFO>")
_PASSWORD: Final = re.compile(rb"(?<=<PASSWORD>)[^<]+(?=</PASSWORD>)")
_TX_INFO: Final = re.compile(rb"<TX_INFO>.*</TX_INFO>", re.DOTALL)
_BLANK: Final = b" \t\r\n\0"

Fields = Mapping[str, str]


@attrs.frozen
class Message:
    """One message: the envelope's own fields, those of ``TX_INFO``, and its rows."""

    head: Fields = attrs.field(repr=False)
    """Not shown: PASSWORD is among a request's."""
    fields: Fields = attrs.field(repr=False, factory=dict)
    rows: tuple[Fields, ...] = attrs.field(repr=False, default=())

    @property
    def trade(self) -> str:
        """The trade's number, TX_CODE."""
        return self.head.get("TX_CODE", "")

    @property
    def number(self) -> str:
        """The message's number, REQUEST_SN."""
        return self.head.get("REQUEST_SN", "")


class FrameReader:
    """Cuts one connection's bytes into messages; holds less than one."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._looked = 0
        self._fault = ""

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their message."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[bytes]:
        """Return the messages completed by these bytes, in order.

        Raises:
            RemoteProtocolError: too long, or no XML begins. Messages complete before the fault are
                returned first; then the next call raises.
        """
        if self._fault:
            raise RemoteProtocolError(self._fault)
        self._buffer += data
        found: list[bytes] = []
        while not self._fault:
            # Where the last look ended, less what may be the begin of an end.
            end = self._buffer.find(END, max(self._looked - len(END) + 1, 0))
            size = len(self._buffer) if end < 0 else end + len(END)
            if size > self._frame_bytes_max:
                self._fault = f"a message of more than {self._frame_bytes_max} bytes"
                break
            if (begin := self._buffer[:64].lstrip(_BLANK)) and not begin.startswith(b"<"):
                self._fault = "bytes that begin no XML"
                break
            if end < 0:
                self._looked = size
                break
            found.append(bytes(self._buffer[:size].lstrip(_BLANK)))
            del self._buffer[:size]
            self._looked = 0
        if self._fault:
            self._buffer.clear()
            if not found:
                raise RemoteProtocolError(self._fault)
        return found

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a message.
        """
        if self._fault or self._buffer.strip(_BLANK):
            raise RemoteProtocolError(self._fault or "the stream ended inside a message")


def encode(message: Message, errors: str = "strict") -> bytes:
    """Return the message's bytes; a request's fields stand before its rows.

    Raises:
        BodyError: a character that no XML can carry.
    """
    rows = "".join(f"<DETAILINFO>{xml.elements(row)}</DETAILINFO>" for row in message.rows)
    rows = f"<DETAILLIST>{rows}</DETAILLIST>" if rows else ""
    info = f"<TX_INFO>{xml.elements(message.fields)}{rows}</TX_INFO>"
    head = {name: value for name, value in message.head.items() if name not in _TAIL}
    tail = {name: value for name, value in message.head.items() if name in _TAIL}
    text = f"{_HEAD}<TX>{xml.elements(head)}{info}{xml.elements(tail)}</TX>"
    if errors == "strict":
        xml.check_characters(text)
    return text.encode(CHARSET, errors)


def decode(data: bytes) -> Message:
    """Return the message in these bytes; blanks around every value are cut off.

    Raises:
        RemoteProtocolError: not well-formed, another root, or a DOCTYPE.
    """
    document = xml.read(xml.text_of(data, CHARSET), "DETAILINFO")
    root = document.root
    if root.tag != "TX":
        msg = "the message is no TX"
        raise RemoteProtocolError(msg)
    info = root.find("TX_INFO")
    if info is None:
        return Message(_leaves(root))
    rows = tuple(
        document.row(row) or _leaves(row) for row in info.iterfind("DETAILLIST/DETAILINFO")
    )
    return Message(_leaves(root), _leaves(info), rows)


def _leaves(element: etree._Element) -> dict[str, str]:
    return {child.tag: (child.text or "").strip() for child in element if not len(child)}


def signed_part(data: bytes) -> bytes:
    """Return the bytes that SIGN_INFO signs: TX_INFO as it stands, with its tags."""
    found = _TX_INFO.search(data)
    return found[0] if found else b""


def add_signature(data: bytes, signature: str) -> bytes:
    """Return the request with its signature, base64, in the empty SIGN_INFO."""
    whole = b"<SIGN_INFO>" + signature.encode("ascii") + b"</SIGN_INFO>"
    return _SIGNATURE.sub(whole, data, count=1)


def mask_password(data: bytes) -> bytes:
    """Return bytes that hold a request, as many, with stars for the password."""
    return _PASSWORD.sub(lambda found: b"*" * len(found[0]), data)


def take_signature(data: bytes) -> str:
    """Return SIGN_INFO, empty where there is none."""
    found = _SIGNATURE.search(data)
    return found[1].decode("ascii", "replace") if found else ""
