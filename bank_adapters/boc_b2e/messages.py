"""The envelope ``bocb2e``: a head, and one transaction ``trn-…-rq`` or ``trn-…-rs``.

XML in UTF-8. Requests are written strictly; answers are read leniently: any order, fields missing
or unknown, bad bytes replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import RemoteProtocolError

TYPE: Final = "text/xml; charset=UTF-8"
STATEMENT_ROW: Final = "b2e0035-rs"
_HEAD: Final = '<?xml version="1.0" encoding="UTF-8"?>'
_ROOT: Final = '<bocb2e version="120" security="true" locale="zh_CN">'
_SIGNED: Final = re.compile(rb"<trn-b2e[0-9]{4}-rq>.*</trn-b2e[0-9]{4}-rq>", re.DOTALL)
_SIGNATURE: Final = re.compile(rb"<signature>([^<]*)</signature>")

_TOKEN: Final = re.compile(rb"(?<=<token>)[^<]+(?=</token>)")

Fields = Mapping[str, "str | Fields"]
"""Elements by name: text, or elements again."""


@attrs.frozen
class Message:
    """One message."""

    head: Mapping[str, str] = attrs.field(repr=False)
    """Not shown: the token is among them."""
    trade: str
    """Such as ``b2e0009``."""
    status: Fields = attrs.field(factory=dict)
    """The outer status of an answer: rspcod and rspmsg."""
    items: tuple[Fields, ...] = attrs.field(repr=False, default=())
    """What stands in each ``b2e…-rq`` or ``b2e…-rs``; an answer's item has a status of its own."""
    fields: Fields = attrs.field(repr=False, factory=dict)
    """What stands beside them, such as the token of a sign-on."""

    @property
    def number(self) -> str:
        """The message's number, trnid."""
        return self.head.get("trnid", "")


def encode(message: Message, part: str = "rq", errors: str = "strict") -> bytes:
    """Return the message's XML.

    Raises:
        BodyError: a character that no XML, or no UTF-8, can carry.
    """
    status = f"<status>{xml.elements(message.status)}</status>" if message.status else ""
    name = f"{message.trade}-{part}"
    items = "".join(f"<{name}>{xml.elements(item)}</{name}>" for item in message.items)
    inner = f"<trn-{name}>{status}{xml.elements(message.fields)}{items}</trn-{name}>"
    text = f"{_HEAD}{_ROOT}<head>{xml.elements(message.head)}</head><trans>{inner}</trans></bocb2e>"
    if errors == "strict":
        xml.check_characters(text)
    return text.encode("utf-8", errors)


def mask_token(data: bytes) -> bytes:
    """Return bytes that hold a request, as many, with stars for the token."""
    return _TOKEN.sub(lambda found: b"*" * len(found[0]), data)


def take_token(data: bytes) -> str:
    """Return the token that a request bears, or the stars in its place."""
    found = _TOKEN.search(data)
    return "" if found is None else found[0].decode("utf-8", "replace")


def decode(data: bytes) -> Message:
    """Return the message in these bytes; blanks around every value are cut off.

    Raises:
        RemoteProtocolError: not well-formed, another root, no transaction, or a DOCTYPE.
    """
    document = xml.read(xml.text_of(data, xml.UTF8), STATEMENT_ROW)
    root = document.root
    head, trans = root.find("head"), root.find("trans")
    if root.tag != "bocb2e" or head is None or trans is None or not len(trans):
        msg = "the message is no bocb2e with head and transaction"
        raise RemoteProtocolError(msg)
    trn = trans[0]
    name = trn.tag.removeprefix("trn-")
    inside = [(child.tag, document.row(child) or _fields(child)) for child in trn]
    status = next((value for tag, value in inside if tag == "status"), "")
    items = tuple(value for tag, value in inside if tag == name and not isinstance(value, str))
    return Message(
        {tag: value for tag, value in _dict(head).items() if isinstance(value, str)},
        name.removesuffix("-rq").removesuffix("-rs"),
        status if not isinstance(status, str) else {},
        items,
        {tag: value for tag, value in inside if tag not in {"status", name}},
    )


def _fields(element: etree._Element) -> str | Fields:
    return _dict(element) if len(element) else (element.text or "").strip()


def _dict(element: etree._Element) -> dict[str, str | Fields]:
    return {child.tag: _fields(child) for child in element}


def text(fields: Fields, *names: str) -> str:
    """Return the text at the end of a path, empty where there is none."""
    value: str | Fields = fields
    for name in names:
        if isinstance(value, str):
            return ""
        value = value.get(name, "")
    return value if isinstance(value, str) else ""


def signed_part(data: bytes) -> bytes:
    """Return the bytes that the key signs: the transaction with its tags."""
    found = _SIGNED.search(data)
    return found[0] if found else b""


def add_signature(data: bytes, signature: bytes) -> bytes:
    """Return the request with its signature, base64, in the head's empty element."""
    return data.replace(b"<signature></signature>", b"<signature>" + signature + b"</signature>", 1)


def take_signature(data: bytes) -> bytes:
    """Return the signature as it stands, empty where there is none."""
    found = _SIGNATURE.search(data)
    return found[1] if found else b""
