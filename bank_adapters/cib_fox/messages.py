"""The envelope ``FOX``: a sign-on part in every message, and at most one trade in a second part.

XML in GBK (CIB interface document V4.0.4). The order of the nodes matters, and the characters
``<``, ``>`` and ``&`` can't stand in a value, escaped or not. Requests are written strictly;
answers are read leniently: GB18030, any order, nodes missing, empty or unknown, blanks at the ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import BodyError, RemoteProtocolError

TYPE: Final = "application/x-fox"
ROOT: Final = "FOX"
SIGN_ON: Final = "SON"
"""Trade of a message that is a sign-on alone."""
PASSWORD_NODE: Final = "USERPASS"  # noqa: S105 - the node's name
ATTRIBUTE: Final = "@"
"""Begins the name of an attribute among an element's nodes."""
FORBIDDEN: Final = "<>&"
_ASKS, _ANSWERS = "RQ", "RS"

_HEAD: Final = '<?xml version="1.0" encoding="GBK"?>'
_FIRST, _SECOND = "SIGNONMSGS", "SECURITIES_MSGS"
"""How the two parts begin: the document itself ends them now with ``RSV1``, now with ``V1``."""
_TRADE: Final = re.compile(rb"<SECURITIES_MSGSRQV1>.*</SECURITIES_MSGSRQV1>", re.DOTALL)
_PASSWORD: Final = re.compile(rb"(?<=<USERPASS>)[^<]+(?=</USERPASS>)")
_SAFE: Final = str.maketrans({"<": "＜", ">": "＞", "&": "＆"})

Fields = Mapping[str, "Value"]
"""Nodes by name in their order; attributes under ``@NAME``, a text beside them under ``""``."""
Value = str | Fields | tuple["str | Fields", ...]
"""A text, nodes again, or a tuple of what stands there several times."""


@attrs.frozen
class Message:
    """One message."""

    sign_on: Fields = attrs.field(repr=False)
    """What stands in SONRQ or SONRS; not shown: the password is among it."""
    trade: str = SIGN_ON
    """Such as ``XFERTRN``, without its RQ or RS; ``SON`` where there is no second part."""
    body: Fields = attrs.field(factory=dict, repr=False)
    """What stands in the trade, TRNUID first."""
    is_answer: bool = False

    @property
    def number(self) -> str:
        """TRNUID of the trade, empty in a sign-on alone."""
        return text(self.body, "TRNUID")


def encode(message: Message, *, strict: bool = True) -> bytes:
    """Return the message's XML.

    Args:
        message: its values in the order of its nodes.
        strict: False for the simulated bank's answers, whose texts are bent to what can be written.

    Raises:
        BodyError: a value that GBK, or this bank, can't take; the message names its node.
    """
    way = _ANSWERS if message.is_answer else _ASKS
    write = _Writer(strict=strict)
    whole = f"{_HEAD}<{ROOT}>"
    signed = f"<SON{way}>{write.inner(message.sign_on)}</SON{way}>"
    whole += f"<{_FIRST}{way}V1>{signed}</{_FIRST}{way}V1>"
    if message.trade != SIGN_ON:
        name = message.trade + way
        inner = write.inner(message.body)
        whole += f"<{_SECOND}{way}V1><{name}>{inner}</{name}></{_SECOND}{way}V1>"
    return f"{whole}</{ROOT}>".encode("gbk" if strict else "gb18030")


@attrs.frozen
class _Writer:
    strict: bool

    def inner(self, fields: Fields) -> str:
        """Return an element's nodes."""
        return "".join(
            self._element(name, value)
            for name, values in fields.items()
            if name and not name.startswith(ATTRIBUTE)
            for value in (values if isinstance(values, tuple) else (values,))
        )

    def _element(self, name: str, value: str | Fields) -> str:
        if isinstance(value, str):
            return f"<{name}>{self._text(name, value)}</{name}>"
        attributes = "".join(
            f' {key[1:]}="{self._text(key[1:], one)}"'
            for key, one in value.items()
            if key.startswith(ATTRIBUTE) and isinstance(one, str)
        )
        return f"<{name}{attributes}>{self.inner(value)}</{name}>"

    def _text(self, name: str, value: str) -> str:
        if not self.strict:
            return xml.replaced(value.translate(_SAFE), "?")
        if wrong := fault(value):
            msg = f"{name} {wrong}"
            raise BodyError(msg)
        return value


def fault(value: str, bytes_max: int | None = None) -> str:
    """Return what keeps a value from standing in a node of so many bytes, empty if nothing."""
    if held := next((one for one in value if one in FORBIDDEN), ""):
        return f"holds {held!r}; this bank takes no < > & in a value, and has no way to write them"
    if not value.isprintable():
        return "must be printable text"
    try:
        size = len(value.encode("gbk"))
    except UnicodeEncodeError as error:
        return f"holds {value[error.start]!r}, which is not in GBK, which this bank speaks"
    if bytes_max is not None and size > bytes_max:
        return f"has {size} bytes in GBK; this bank takes at most {bytes_max}"
    return ""


def decode(data: bytes) -> Message:
    """Return the message in these bytes.

    Raises:
        RemoteProtocolError: not well-formed, another root, neither of the two parts, several
            trades, or a DOCTYPE.
    """
    document = xml.read(xml.text_of(data, xml.GBK), "STMTTRN")
    root = document.root
    if root.tag != ROOT:
        msg = f"the message is no {ROOT}"
        raise RemoteProtocolError(msg)
    first, second = _only(root, _FIRST), _only(root, _SECOND)
    if first is None and second is None:
        msg = "the message has neither a sign-on nor a trade"
        raise RemoteProtocolError(msg)
    signed = {} if first is None else _nodes(first, document)
    if second is None:
        assert first is not None
        return Message(signed, is_answer=first.tag.endswith(_ANSWERS))
    name = second.tag
    trade = name.removesuffix(_ASKS).removesuffix(_ANSWERS)
    return Message(signed, trade, _nodes(second, document), is_answer=name.endswith(_ANSWERS))


def _only(root: etree._Element, name: str) -> etree._Element | None:
    """Return the only element in the part that begins so, None where there is no such part."""
    parts = [child for child in root if child.tag.startswith(name)]
    found = [child for part in parts for child in part]
    if not parts:
        return None
    if len(found) != 1:
        msg = f"{len(found)} elements stand in {name}, not one"
        raise RemoteProtocolError(msg)
    return found[0]


def _nodes(element: etree._Element, document: xml.Document) -> dict[str, Value]:
    nodes: dict[str, Value] = {
        f"{ATTRIBUTE}{name!s}": str(value).strip() for name, value in element.attrib.items()
    }
    if nodes and element.text and element.text.strip():
        nodes[""] = element.text.strip()
    several: dict[str, list[str | Fields]] = {}
    for child in element:
        name: str = child.tag
        value = document.row(child) or _value(child, document)
        if name in several:
            several[name].append(value)
        elif name in nodes:
            first = nodes[name]
            assert not isinstance(first, tuple)
            several[name] = [first, value]
        else:
            nodes[name] = value
    return nodes | {name: tuple(values) for name, values in several.items()}


def _value(element: etree._Element, document: xml.Document) -> str | Fields:
    if len(element) or element.attrib:
        return _nodes(element, document)
    return (element.text or "").strip()


def text(fields: Fields, *names: str) -> str:
    """Return the text at the end of a path, empty where there is none.

    Raises:
        ValueError: one of these nodes stands there several times.
    """
    value: Value = fields
    for name in names:
        value = _node(value, name)
    if isinstance(value, Mapping):
        value = value.get("", "")
    assert isinstance(value, str)
    return value


def part(fields: Fields, *names: str) -> Fields:
    """Return the nodes at the end of a path, none where there is no such element.

    Raises:
        ValueError: one of these nodes stands there several times.
    """
    value: Value = fields
    for name in names:
        value = _node(value, name)
    return value if isinstance(value, Mapping) else {}


def _node(value: Value, name: str) -> str | Fields:
    found = value.get(name, "") if isinstance(value, Mapping) else ""
    if isinstance(found, tuple):
        msg = f"{name} stands there {len(found)} times"
        raise ValueError(msg)  # noqa: TRY004 - of the bank's message, not of a call
    return found


def rows(fields: Fields, name: str) -> tuple[Fields, ...]:
    """Return every element of a name, in order."""
    value = fields.get(name, ())
    found = value if isinstance(value, tuple) else (value,)
    return tuple({} if isinstance(one, str) else one for one in found)


def signed_part(data: bytes) -> bytes:
    """Return the bytes that a key of ours signs: the second part; the password is in the first."""
    found = _TRADE.search(data)
    return found[0] if found else b""


def mask_password(data: bytes) -> bytes:
    """Return bytes that hold a request, as many, with stars for the password."""
    return _PASSWORD.sub(lambda found: b"*" * len(found[0]), data)
