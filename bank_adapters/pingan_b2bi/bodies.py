"""Reads and writes the XML bodies: ``<Result>`` with leaves and, in lists, rows of leaves.

Bank text is decoded as GB18030 (a superset of GBK) with replacement, because a bank may cut a
message inside a two-byte character; the declaration is cut off, because it would lie about text
that is decoded already. Nothing is required of an answer here but that it is XML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.errors import RemoteProtocolError

REQUEST_DECLARATION: Final = '<?xml version="1.0" encoding="GBK"?>'
ANSWER_DECLARATION: Final = '<?xml version="1.0" encoding="GBK" ?>'
"""Banks write a blank before ``?>``, requests do not."""

_ILLEGAL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_UTF8: Final = "02"

Members = Iterable[tuple[str, str]]


class UnreadableError(Exception):
    """A body, or one element of it, that can't be understood; never leaves the adapter."""


@attrs.frozen
class Fields:
    """The leaves of an element, stripped, and its rows."""

    values: Mapping[str, str]
    rows: tuple[Fields, ...] = ()
    contradictory: frozenset[str] = frozenset()
    """Leaves that stand there twice with different text."""

    def get(self, name: str) -> str:
        """Return a leaf's text, empty where it is missing.

        Raises:
            UnreadableError: it stands there twice and says two things.
        """
        if name in self.contradictory:
            msg = f"{name} stands there twice and differs"
            raise UnreadableError(msg)
        return self.values.get(name, "")


NOTHING: Final = Fields({})
"""What a header-only answer says."""


def is_printable_in_xml(text: str) -> bool:
    """Say whether XML 1.0 can carry every character."""
    return not _ILLEGAL.search(text)


def write(
    declaration: str, members: Members, rows: Iterable[Members] = (), row_name: str = "list"
) -> str:
    """Return a body's text without line breaks; rows become elements of one name at the end."""
    lists = "".join(f"<{row_name}>{_leaves(row)}</{row_name}>" for row in rows)
    return f"{declaration}<Result>{_leaves(members)}{lists}</Result>"


def _leaves(members: Members) -> str:
    return "".join(f"<{name}>{html.escape(text, quote=False)}</{name}>" for name, text in members)


def decode(body: bytes, charset: str) -> str:
    """Return the text of a body by its header's charset, bad bytes replaced."""
    return body.decode(xml.UTF8 if charset == _UTF8 else xml.GBK, "replace")


def read(text: str) -> Fields:
    """Return what a body says; an empty one says nothing.

    Raises:
        UnreadableError: it is not well-formed XML, or has a document type.
    """
    content = xml.bare(text)
    if not content:
        return NOTHING
    try:
        document = xml.read(content, "list")
    except RemoteProtocolError as error:
        raise UnreadableError(str(error)) from error
    leaves: list[etree._Element] = []
    rows: list[Fields] = []
    for child in document.root:
        if (row := document.row(child)) is not None:
            rows.append(Fields(row))
        elif len(child):
            rows.append(_fields(child))
        else:
            leaves.append(child)
    return _fields(leaves, tuple(rows))


def _fields(elements: Iterable[etree._Element], rows: tuple[Fields, ...] = ()) -> Fields:
    values: dict[str, str] = {}
    contradictory = set()
    for element in elements:
        # The tag without its namespace; comments and the like, whose tag is no text, are gone.
        name = element.tag.rpartition("}")[2]
        text = (element.text or "").strip()
        if values.setdefault(name, text) != text:
            contradictory.add(name)
    return Fields(values, rows, frozenset(contradictory))
