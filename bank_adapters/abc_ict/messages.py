"""The frame: a cipher flag, six characters of length, then that many bytes of XML in GBK.

The length counts bytes, stands on the left and is filled up with blanks. Requests are strict GBK;
answers are read leniently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from lxml import etree

from fep.domain.errors import BodyError, LocalProtocolError, RemoteProtocolError

PLAIN: Final = b"0"
HEADER_BYTES: Final = 7
LENGTH_DIGITS: Final = 6
BLOCKS: Final = frozenset({"Cmp", "Corp", "Cme"})
_HEAD: Final = '<?xml version="1.0" encoding="GBK"?>'
_DECLARATION: Final = re.compile(r"\s*<\?xml[^>]*\?>")
_DOCTYPE: Final = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Message = Mapping[str, "str | Mapping[str, str]"]
"""The elements of ``ap``: text, or a block of texts."""


class FrameReader:
    """Cuts one connection's bytes into frames; holds less than one."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._fault = ""

    def receive_data(self, data: bytes) -> list[bytes]:
        """Return the XML of the frames completed by these bytes, in order.

        Raises:
            RemoteProtocolError: no header of a plain frame, or too large a length. Frames complete
                before the fault are returned first; then the next call raises.
        """
        if self._fault:
            raise RemoteProtocolError(self._fault)
        self._buffer += data
        found: list[bytes] = []
        while len(self._buffer) >= HEADER_BYTES:
            header = bytes(self._buffer[:HEADER_BYTES])
            digits = header[1:].rstrip(b" ")
            if (
                header[:1] != PLAIN
                or not digits.isdigit()
                or not 0 < int(digits) <= self._frame_bytes_max
            ):
                self._fault = f"{header!r} is no header of a plain frame"
                self._buffer.clear()
                break
            end = HEADER_BYTES + int(digits)
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[HEADER_BYTES:end]))
            del self._buffer[:end]
        if self._fault and not found:
            raise RemoteProtocolError(self._fault)
        return found

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        if self._fault or self._buffer:
            raise RemoteProtocolError(self._fault or "the stream ended inside a frame")


def pack(xml: bytes) -> bytes:
    """Return the frame that carries this XML.

    Raises:
        LocalProtocolError: it is longer than six digits can say.
    """
    if len(xml) >= 10**LENGTH_DIGITS:
        msg = f"{len(xml)} bytes of XML fit no frame"
        raise LocalProtocolError(msg)
    return PLAIN + str(len(xml)).encode("ascii").ljust(LENGTH_DIGITS) + xml


def encode(message: Message, errors: str = "strict") -> bytes:
    """Return a message's XML.

    Raises:
        BodyError: a character is not in GBK, or can't stand in XML.
    """
    text = f"{_HEAD}<ap>{_elements(message)}</ap>"
    if errors == "strict" and (wrong := _NOT_XML.search(text)):
        msg = f"character {wrong[0]!r} can't stand in XML"
        raise BodyError(msg)
    try:
        return text.encode("gbk", errors)
    except UnicodeEncodeError as error:
        msg = f"character {text[error.start]!r} is not in GBK, which this bank speaks"
        raise BodyError(msg) from error


def _elements(message: Message) -> str:
    return "".join(
        f"<{name}>{_escape(value) if isinstance(value, str) else _elements(value)}</{name}>"
        for name, value in message.items()
    )


def _escape(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def decode(xml: bytes) -> Message:
    """Return the message in these bytes.

    Raises:
        RemoteProtocolError: not well-formed, another root, or a DOCTYPE.
    """
    text = xml.decode("gb18030", errors="replace").lstrip("\ufeff").strip(" \t\r\n\0")
    text = _NOT_XML.sub("\ufffd", _DECLARATION.sub("", text, count=1))
    if _DOCTYPE.search(text):
        msg = "the message has a document type, which no bank sends"
        raise RemoteProtocolError(msg)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:
        msg = f"the message is not well-formed XML: {error.msg}"
        raise RemoteProtocolError(msg) from error
    if root.tag != "ap":
        msg = "the message is no ap"
        raise RemoteProtocolError(msg)
    return {
        child.tag: _leaves(child) if child.tag in BLOCKS else child.text or ""
        for child in root.iterchildren("*")
    }


def _leaves(element: etree._Element) -> dict[str, str]:
    # Not stripped: RespPrvData has fields at fixed places.
    return {child.tag: child.text or "" for child in element.iterchildren("*")}


def text(message: Message, name: str) -> str:
    """Return an element's text without blanks around it, empty where it is missing."""
    value = message.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def block(message: Message, name: str) -> Mapping[str, str]:
    """Return a block, empty where it is missing."""
    value = message.get(name, {})
    return value if isinstance(value, Mapping) else {}
