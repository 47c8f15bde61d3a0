"""The frame: a cipher flag, six characters of length, then that many bytes of XML in GBK.

The length counts bytes, stands on the left and is filled up with blanks. Requests are strict GBK;
answers are read leniently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lxml import etree

from fep.adapters import xml
from fep.domain.errors import BodyError, LocalProtocolError, RemoteProtocolError

PLAIN: Final = b"0"
HEADER_BYTES: Final = 7
LENGTH_DIGITS: Final = 6
BLOCKS: Final = frozenset({"Cmp", "Corp", "Cme"})
_HEAD: Final = '<?xml version="1.0" encoding="GBK"?>'

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


def pack(body: bytes) -> bytes:
    """Return the frame that carries this XML.

    Raises:
        LocalProtocolError: it is longer than six digits can say.
    """
    if len(body) >= 10**LENGTH_DIGITS:
        msg = f"{len(body)} bytes of XML fit no frame"
        raise LocalProtocolError(msg)
    return PLAIN + str(len(body)).encode("ascii").ljust(LENGTH_DIGITS) + body


def encode(message: Message, errors: str = "strict") -> bytes:
    """Return a message's XML.

    Raises:
        BodyError: a character is not in GBK, or can't stand in XML.
    """
    text = f"{_HEAD}<ap>{xml.elements(message)}</ap>"
    if errors == "strict":
        xml.check_characters(text)
    try:
        return text.encode("gbk", errors)
    except UnicodeEncodeError as error:
        msg = f"character {text[error.start]!r} is not in GBK, which this bank speaks"
        raise BodyError(msg) from error


def decode(data: bytes) -> Message:
    """Return the message in these bytes.

    Raises:
        RemoteProtocolError: not well-formed, another root, or a DOCTYPE.
    """
    root = xml.parse(xml.text_of(data, xml.GBK))
    if root.tag != "ap":
        msg = "the message is no ap"
        raise RemoteProtocolError(msg)
    return {
        child.tag: _leaves(child) if child.tag in BLOCKS else child.text or "" for child in root
    }


def _leaves(element: etree._Element) -> dict[str, str]:
    # Not stripped: RespPrvData has fields at fixed places.
    return {child.tag: child.text or "" for child in element}


def text(message: Message, name: str) -> str:
    """Return an element's text without blanks around it, empty where it is missing."""
    value = message.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def block(message: Message, name: str) -> Mapping[str, str]:
    """Return a block, empty where it is missing."""
    value = message.get(name, {})
    return value if isinstance(value, Mapping) else {}
