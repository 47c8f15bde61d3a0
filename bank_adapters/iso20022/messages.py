"""ISO 20022 documents: read leniently in any version, written strictly as pain.001.001.09.

Source: the message definitions of ISO 20022 (pain.001, pain.002, camt.052, camt.053, camt.054,
pacs.004). What comes need not be valid: elements may be missing, empty, more, in another order or
in another namespace; only what is looked for counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import RemoteProtocolError

TYPE: Final = "application/xml; charset=UTF-8"
HEAD: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
PREFIX: Final = "urn:iso:std:iso:20022:tech:xsd:"
PAIN_001: Final = "pain.001.001.09"
DOCUMENTS_MAX: Final = 5000
"""In one body or file, where several stand one behind the other."""

ROOTS: Final = {
    "CstmrCdtTrfInitn": "pain.001",
    "CstmrPmtStsRpt": "pain.002",
    "BkToCstmrAcctRpt": "camt.052",
    "BkToCstmrStmt": "camt.053",
    "BkToCstmrDbtCdtNtfctn": "camt.054",
    "PmtRtr": "pacs.004",
}
"""What a document is goes by the element in it: banks were seen to declare no or another namespace.
"""
REPORTS: Final = {"camt.052": "Rpt", "camt.053": "Stmt", "camt.054": "Ntfctn"}
ENTRY: Final = "Ntry"
_PLAIN: Final = xml.Plain(ENTRY, attribute="Ccy", never="RtrInf")
_DECLARED: Final = re.compile(rb"<\?xml\s[^>]{0,200}\?>")
_WIDE: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Unread:
    """A document of which only the rows were read so far."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    @cached_property
    def body(self) -> etree._Element:
        """The element in ``Document``, whole."""
        return _body(parse(self._document))[1]


@attrs.frozen
class Lean:
    """A report whose entries were cut out of it."""

    body: etree._Element = attrs.field(repr=False)
    nested: xml.Nested = attrs.field(repr=False)


@attrs.frozen(eq=False)
class Message:
    """One document."""

    kind: str
    """Such as ``pain.002``."""
    _body: etree._Element | Unread = attrs.field(repr=False)
    lean: Lean | None = attrs.field(default=None, repr=False)
    """What there is beside ``body`` of a long report."""

    @property
    def body(self) -> etree._Element:
        """The element in ``Document``; all names without their namespaces."""
        return self._body.body if isinstance(self._body, Unread) else self._body


def documents(data: bytes) -> Iterator[bytes]:
    """Yield the documents that stand one behind the other, cut at their XML declarations."""
    starts = [found.start() for found in _DECLARED.finditer(data)]
    if not starts or data[: starts[0]].strip(b" \t\r\n\xef\xbb\xbf"):
        starts.insert(0, 0)
    if len(starts) > DOCUMENTS_MAX:
        msg = f"more than {DOCUMENTS_MAX} documents at once"
        raise RemoteProtocolError(msg)
    for begin, end in zip(starts, [*starts[1:], len(data)], strict=True):
        if data[begin:end].strip():
            yield data[begin:end]


def parse(document: bytes) -> etree._Element:
    """Return the root of some XML, its names without their namespaces.

    Raises:
        RemoteProtocolError: not well-formed, or it has a document type.
    """
    data = document.strip(b" \t\r\n")
    if (encoding := _WIDE.get(data[:2])) is not None:
        data = data.decode(encoding, "replace").encode("utf-8")
        data = _DECLARED.sub(b"", data, count=1)
    return _plain(xml.parse_declared(data))


def _plain(root: etree._Element) -> etree._Element:
    for element in root.iter("*"):
        element.tag = element.tag.rpartition("}")[2]
    return root


def read(document: bytes) -> Message:
    """Return the message in a document.

    Raises:
        RemoteProtocolError: not well-formed, or none of the messages that are known.
    """
    if (lean := _lean(document)) is not None:
        kind, body = _body(lean.root)
        rows = sum(1 for one in body.iterfind(f"*/{ENTRY}[@{xml.MARK}]"))
        # An entry in another place is none.
        if kind in REPORTS and rows == len(lean.rows):
            return Message(kind, Unread(document), Lean(body, lean))
    return Message(*_body(parse(document)))


def _lean(document: bytes) -> xml.Nested | None:
    found = xml.read_nested(document.strip(b" \t\r\n"), _PLAIN)
    if found is not None:
        _plain(found.root)
    return found


def _body(root: etree._Element) -> tuple[str, etree._Element]:
    for body in (root, *root.iterchildren("*")):
        if kind := ROOTS.get(body.tag):
            return kind, body
    msg = f"no message that is known: {root.tag[:40]!r}"
    raise RemoteProtocolError(msg)


def text(element: etree._Element | None, *paths: str) -> str:
    """Return the first text that is there at one of these paths, without blanks around it."""
    if element is None:
        return ""
    for path in paths:
        found = element.findtext(path)
        if found and (stripped := found.strip()):
            return stripped
    return ""


def texts(element: etree._Element | None, path: str) -> str:
    """Return all texts that are there at a path, with a blank between them."""
    found = element.findall(path) if element is not None else []
    return " ".join(filter(None, ((one.text or "").strip() for one in found)))


def written(message: Message) -> bytes:
    """Return a message as a document again: what is kept of a larger one."""
    return (
        HEAD.encode()
        + b"<Document>"
        + etree.tostring(message.body, encoding="utf-8")
        + (b"</Document>")
    )


# -- printing -------------------------------------------------------------------------------------

Node = tuple[str, "str | list[Node]"]
"""An element: its name, and its text or what is in it."""


def element(name: str, inside: str | list[Node], attribute: str = "") -> str:
    """Return an element with its text escaped; one without anything in it is left out.

    Raises:
        BodyError: a character that no XML can carry.
    """
    if isinstance(inside, str):
        body = escaped(inside)
    else:
        body = "".join(element(*child) for child in inside)
    return f"<{name}{attribute}>{body}</{name}>" if body else ""


def escaped(value: str) -> str:
    """Return text as it stands in XML.

    Raises:
        BodyError: a character that no XML can carry.
    """
    xml.check_characters(value)
    return xml.escaped(value)


def yuan(name: str, amount: object) -> str:
    """Return an amount's element."""
    return element(name, str(amount), ' Ccy="CNY"')
