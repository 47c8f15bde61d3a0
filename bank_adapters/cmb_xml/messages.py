"""The envelope ``CMBSDKPGK``: bytes of XML to a record of blocks and fields, and back.

Written strictly in GBK, with no escape but ``&amp;`` and ``&lt;`` (guide 4.3.1, message format).
Read leniently: GB18030, any order, fields missing, empty or unknown, blanks at the ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import LocalProtocolError, RemoteProtocolError

ROOT: Final = "CMBSDKPGK"
CORRELATION: Final = "FEPCORRID"
"""Our field in INFO: the bank echoes unknown INFO fields, and names of its own have 6 letters."""
SIGNATURE: Final = "FEPSIGNATURE"
"""Our signature in INFO, base64, over the XML's bytes without this element."""
DATA_XML: Final = "2"
"""DATTYP of XML messages."""

STATEMENT_ROW: Final = "NTQTSINFZ"
_HEAD: Final = b'<?xml version="1.0" encoding="GBK"?>'
_INFO_END: Final = b"</INFO>"
_SIGNATURE_ELEMENT: Final = re.compile(rb"<FEPSIGNATURE>([A-Za-z0-9+/=]*)</FEPSIGNATURE>")


@attrs.frozen
class Block:
    """One interface block, such as ``NTQPAYRQZ``; its fields by name, in the order written."""

    name: str
    fields: Mapping[str, str] = attrs.field(repr=False)


@attrs.frozen
class Message:
    """One message: the fields of INFO, then the blocks, which may repeat."""

    info: Mapping[str, str] = attrs.field(repr=False)
    blocks: tuple[Block, ...] = ()

    @property
    def function(self) -> str:
        """The function's name, FUNNAM."""
        return self.info.get("FUNNAM", "")

    def rows(self, name: str) -> list[Mapping[str, str]]:
        """Return the fields of every block of that name, in order."""
        return [block.fields for block in self.blocks if block.name == name]


def encode(message: Message, charset: str = "gbk", errors: str = "strict") -> bytes:
    """Return the XML's bytes; no blank, no line break, every element with its end tag.

    Args:
        message: what to write; the names of its blocks and fields must be XML names.
        charset: ``gbk`` for requests; the simulated bank answers in its superset ``gb18030``.
        errors: what to do about a character the charset lacks.

    Raises:
        LocalProtocolError: a value can't be written; requests are checked before.
    """
    text = f"<{ROOT}>{_element('INFO', message.info)}"
    text += "".join(_element(block.name, block.fields) for block in message.blocks)
    try:
        return _HEAD + f"{text}</{ROOT}>".encode(charset, errors)
    except UnicodeEncodeError as error:
        msg = f"character {error.object[error.start]!r} is not in {charset}"
        raise LocalProtocolError(msg) from error


def _element(name: str, fields: Mapping[str, str]) -> str:
    inner = "".join(f"<{tag}>{_escape(value)}</{tag}>" for tag, value in fields.items())
    return f"<{name}>{inner}</{name}>"


def _escape(value: str) -> str:
    # ">" goes unescaped but where XML forbids it; requests never hold that, echoes may.
    return value.replace("&", "&amp;").replace("<", "&lt;").replace("]]>", "]]&gt;")


def decode(data: bytes) -> Message:
    """Return the message in these bytes; trailing blanks of every value are cut off.

    The declaration is dropped, as its ``GBK`` is too narrow for what the bank sends, and a
    character cut in half is replaced, not refused.

    Raises:
        RemoteProtocolError: not well-formed, another root, no INFO, or a DOCTYPE.
    """
    document = xml.read(xml.text_of(data, xml.GBK), STATEMENT_ROW, str.rstrip)
    root = document.root
    if root.tag != ROOT:
        msg = f"the message is no {ROOT}"
        raise RemoteProtocolError(msg)
    blocks = [Block(child.tag, document.row(child) or _fields(child)) for child in root]
    info = next((block.fields for block in blocks if block.name == "INFO"), None)
    if info is None:
        msg = "the message has no INFO"
        raise RemoteProtocolError(msg)
    return Message(info, tuple(block for block in blocks if block.name != "INFO"))


def _fields(block: etree._Element) -> dict[str, str]:
    return {child.tag: (child.text or "").rstrip() for child in block}


def add_signature(data: bytes, signature: str) -> bytes:
    """Return the XML with the base64 signature as the last element of INFO."""
    # Byte 0x3C is never the second byte of a GBK character, so the first match is the real end.
    at = data.index(_INFO_END)
    return data[:at] + f"<{SIGNATURE}>{signature}</{SIGNATURE}>".encode("ascii") + data[at:]


def take_signature(data: bytes) -> tuple[bytes, str]:
    """Return the bytes that were signed, and the base64 signature, empty where there is none."""
    found = _SIGNATURE_ELEMENT.search(data)
    if found is None:
        return data, ""
    return data[: found.start()] + data[found.end() :], found[1].decode("ascii")
