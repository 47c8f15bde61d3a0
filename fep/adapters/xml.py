"""XML of banks: the one parser, the rows of a page, and how a request's values are written.

Nothing that a message names is fetched, expanded or followed. A document type is refused before
anything is parsed, and length, elements and depth have bounds.

Rows of a statement page look alike, and to read each of their fields as an element costs more than
all the rest. So ``read`` makes a pattern of the first row. What the pattern fits is cut out, and
the parser gets an empty element with a mark in its place. A row that differs in any way, such as by
an escaped character, stays for the parser: it is read more slowly and means the same.

Rows with elements in elements come in several shapes. ``read_nested`` takes the texts out of each,
and looks up what is left, its shape, among those it has seen: one is checked tag by tag, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
from lxml import etree

from fep.domain.errors import BodyError, RemoteProtocolError

GBK: Final = "gb18030"
"""GBK is read as its superset: banks send more than they declare."""
UTF8: Final = "utf-8"
CHARS_MAX: Final = 64 * 1024 * 1024
TAGS_MAX: Final = 4_000_000
"""Begins and ends of elements in one message: an element takes memory however short it is."""
ROWS_MIN: Final = 16
"""Rows from which on a pattern is worth making."""
ROW_CHARS_MAX: Final = 16 * 1024
ROW_FIELDS_MAX: Final = 100

_DECLARATION: Final = re.compile(r"\s*<\?xml[^>]*\?>")
_DOCTYPE: Final = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_DOCTYPE_BYTES: Final = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MARK: Final = "fep-row"
"""The attribute of an element that stands for a row; no message has it."""
_NAME: Final = "[A-Za-z_][A-Za-z0-9_.-]*"
_BLANK: Final = "[ \t\n]*"
_TEXT: Final = "[^<>&\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]*"
"""What stands for itself in XML: no escape, no line end that is turned, nothing illegal."""
_EMPTY: Final = re.compile(f"<({_NAME}){_BLANK}/>")
_FIELD: Final = re.compile(f"{_BLANK}<({_NAME})>[^<>]*</\\1>")

Nodes = Mapping[str, Any]
"""Elements to write, in their order: text, or elements again."""


# -- reading --------------------------------------------------------------------------------------


def text_of(data: bytes, charset: str) -> str:
    """Return a message's text, what can't be decoded replaced, without its declaration.

    A bank's declaration is not asked: it names less than the bank sends, or something else.
    """
    if charset == GBK:
        # Most of what banks send is GBK indeed, which is decoded a fifth faster.
        try:
            return bare(data.decode("gbk"))
        except UnicodeDecodeError:
            pass
    return bare(data.decode(charset, errors="replace"))


def bare(text: str) -> str:
    """Return a message's text without its declaration and what stands around it."""
    text = text.lstrip("\ufeff").strip(" \t\r\n\0")
    found = _DECLARATION.match(text)
    return text[found.end() :] if found else text


def parse(text: str) -> etree._Element:
    """Return the root of a message; characters that XML can't have are replaced.

    Raises:
        RemoteProtocolError: not well-formed, a document type, or more than the bounds.
    """
    _check(text)
    return _parsed(text)


def parse_declared(data: bytes) -> etree._Element:
    """Return the root of a message that is in the encoding that it declares.

    Raises:
        RemoteProtocolError: as of ``parse``, and for a NUL.
    """
    _check_size(len(data), data.count(b"<"))
    # The declaration of an encoding in which `<!` is written otherwise ends in a NUL or an error.
    if b"\0" in data or (b"<!" in data and _DOCTYPE_BYTES.search(data)):
        msg = "the message has a document type or NUL bytes, which no bank sends"
        raise RemoteProtocolError(msg)
    return _tree(data, None)


_NO_DOCTYPE: Final = "the message has a document type, which no bank sends"


def _check_size(chars: int, tags: int) -> None:
    if chars > CHARS_MAX or tags > TAGS_MAX:
        msg = f"the message has more than {CHARS_MAX} characters or {TAGS_MAX} tags"
        raise RemoteProtocolError(msg)


def _check(text: str) -> None:
    _check_size(len(text), text.count("<"))
    if "<!" in text and _DOCTYPE.search(text):
        raise RemoteProtocolError(_NO_DOCTYPE)


def _parsed(text: str) -> etree._Element:
    try:
        return _tree(text.encode(UTF8, "surrogatepass"), UTF8)
    except RemoteProtocolError:
        # Looked for only now: the parser takes none of these characters, and few messages have one.
        clean = _NOT_XML.sub("\ufffd", text)
        if clean == text:
            raise
    return _tree(clean.encode(UTF8), UTF8)


def _tree(data: bytes, encoding: str | None) -> etree._Element:
    # A parser for each message: lxml's parsers keep state, and threads must not share it.
    parser = etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError, LookupError) as error:
        said = error.msg if isinstance(error, etree.XMLSyntaxError) else error
        msg = f"the message is not well-formed XML: {str(said)[:200]}"
        raise RemoteProtocolError(msg) from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise RemoteProtocolError(_NO_DOCTYPE)
    return root


# -- rows -----------------------------------------------------------------------------------------


class Row(dict[str, str]):
    """The fields of a row that was cut out: all of them are text, and none is there twice."""


@attrs.frozen
class Document:
    """A message whose rows may have been cut out of its tree; ask ``row`` before an element."""

    root: etree._Element
    _name: str = ""
    _rows: Sequence[Row] = ()

    def row(self, element: etree._Element) -> Row | None:
        """Return the fields of the row that an element stands for, None if it is one by itself."""
        if element.tag != self._name:
            return None
        mark = element.get(MARK)
        return None if mark is None else self._rows[int(mark)]


def read(text: str, name: str, trim: Callable[[str], str] = str.strip) -> Document:
    """Return a message; its rows are the elements of a name with fields of text in them alone.

    Args:
        text: the message.
        name: of a row.
        trim: what is done to a field's text.

    Raises:
        RemoteProtocolError: as of ``parse``.
    """
    _check(text)
    if (cut := _cut(text, name, trim)) is not None:
        try:
            return Document(_parsed(cut[0]), name, cut[1])
        except RemoteProtocolError:
            # What is wrong is told by the place where it stands in the whole.
            pass
    return Document(_parsed(text))


def _cut(text: str, name: str, trim: Callable[[str], str]) -> tuple[str, Sequence[Row]] | None:
    """Return a message with marks for its rows, and the rows; None if that can't be made."""
    # In a comment or a section of characters a row would be none.
    if text.count(f"</{name}>") < ROWS_MIN or "<!" in text or "<?" in text or MARK in text:
        return None
    if "\r" in text:
        # As a parser turns line ends, but for those that are written as an escape.
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "/>" in text:
        text = _EMPTY.sub(r"<\1></\1>", text)
    fields = _fields(text, name)
    if not fields:
        return None
    pieces = _pattern(name, fields).split(text)
    step = len(fields) + 1
    rows = [
        Row(zip(fields, map(trim, pieces[at : at + step - 1]), strict=False))
        for at in range(1, len(pieces), step)
    ]
    between = pieces[::step]
    rest = [part for at, one in enumerate(between) for part in (one, f'<{name} {MARK}="{at}"/>')]
    return "".join(rest[:-1]), rows


def _fields(text: str, name: str) -> list[str]:
    """Return the names of the first row's fields, none if no pattern can be made of it."""
    begin = text.find(f"<{name}>") + len(name) + 2
    end = text.find(f"</{name}>", begin)
    if begin < len(name) + 2 or not begin < end < begin + ROW_CHARS_MAX:
        return []
    fields: list[str] = []
    while (found := _FIELD.match(text, begin, end)) is not None:
        fields.append(found[1])
        begin = found.end()
    alike = len(fields) == len(set(fields)) <= ROW_FIELDS_MAX
    return fields if alike and not text[begin:end].strip(" \t\n") else []


def _pattern(name: str, fields: Sequence[str]) -> re.Pattern[str]:
    inner = _BLANK.join(f"<{one}>({_TEXT})</{one}>" for one in map(re.escape, fields))
    # The library keeps patterns, and a bank has few shapes of rows.
    return re.compile(f"<{name}>{_BLANK}{inner}{_BLANK}</{name}>")


# -- rows with elements in elements ---------------------------------------------------------------

SHAPES_MAX: Final = 64
"""Of one message; rows of more are read by the parser."""
RECENT_MAX: Final = 4
"""Shapes that a row is compared with first."""
DEPTH_MAX: Final = 16
VALUE_CHARS_MAX: Final = 64 * 1024
"""A row with a longer text is left to the parser, which has a bound of its own."""
_UTF8_DECLARED: Final = re.compile(
    r"<\?xml version=\"1\.0\"(?: encoding=\"[Uu][Tt][Ff]-8\")?(?: standalone=\"(?:yes|no)\")? ?\?>"
)
_SLOT: Final = re.compile(">([^<]+)</")
_SLOT_MARK: Final = "\0"
_SHORT: Final = "[A-Za-z_][A-Za-z0-9_.-]{0,63}"
_PIECE: Final = re.compile(
    f'{_BLANK}<(?:(?P<end>/{_SHORT})|(?P<begin>{_SHORT})(?: (?P<key>{_SHORT})="(?P<value>[A-Z]*)")?'
    f"(?P<empty>/?))>(?P<slot>\0?)"
)
_TEXTS: Final = re.compile(_TEXT)


@attrs.frozen
class Shape:
    """What all rows have in common whose tags, attributes and blanks are the same."""

    pattern: re.Pattern[str] = attrs.field(repr=False)
    leaves: Mapping[str, int]
    """By path (``Refs/EndToEndId``): where its text is among a row's; of each there is one."""
    attributes: Mapping[str, str]
    """By path: the value of the attribute, where there is one."""
    blanks: Sequence[int]
    """Texts that stand behind an element's last one and must be blank."""


@attrs.frozen
class Shaped:
    """A row that was cut out."""

    shape: Shape
    texts: Sequence[str]
    """As they stand; blanks around them are not cut off."""


@attrs.frozen
class Nested:
    """A message from whose tree rows were cut out."""

    root: etree._Element
    rows: Sequence[Shaped]

    def row(self, element: etree._Element) -> Shaped | None:
        """Return the row that an element stands for, None if it is one by itself."""
        mark = element.get(MARK)
        return None if mark is None else self.rows[int(mark)]


@attrs.frozen
class Plain:
    """What may be cut out."""

    name: str
    """Of a row, which has no attributes."""
    attribute: str
    """The one that an element in a row may have, of capital letters."""
    never: str
    """A row with an element of this name stays."""


def read_nested(data: bytes, plain: Plain) -> Nested | None:
    """Return a message in UTF-8 without those of its rows that are well-formed by themselves.

    Where it is None, or a row was cut out that is none to the reader, ``parse_declared`` has to
    read it. The two see the same, and what one refuses the other does.

    Args:
        data: the message.
        plain: what may be cut out.
    """
    if len(data) > CHARS_MAX or data.count(b"<") > TAGS_MAX:
        return None
    try:
        text = data.decode(UTF8)
    except UnicodeDecodeError:
        return None
    declared = _UTF8_DECLARED.match(text)
    start = declared.end() if declared else 0
    name = plain.name
    begin, end = f"<{name}>", f"</{name}>"
    # In a comment or a section of characters a row would be none.
    if text.find("<!") >= 0 or text.find("<?", start) >= 0 or _SLOT_MARK in text or MARK in text:
        return None
    if "\r" in text:
        # As a parser turns line ends, but for those that are written as an escape.
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count(end) < ROWS_MIN:
        return None
    first, *parts = text[start:].split(begin)
    rows: list[Shaped] = []
    shapes = _Shapes(plain)
    kept = [first]
    for part in parts:
        inside, found, behind = part.partition(end)
        row = shapes.row(inside) if found else None
        if row is None:
            kept += (begin, part)
        else:
            kept.append(f'<{name} {MARK}="{len(rows)}"/>{behind}')
            rows.append(row)
    if not rows:
        return None
    try:
        return Nested(_tree("".join(kept).encode(UTF8), UTF8), rows)
    except RemoteProtocolError:
        # What is wrong is told by the place where it stands in the whole.
        return None


class _Shapes:
    """The shapes of one message's rows."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._known: dict[str, Shape | None] = {}
        self._recent: list[Shape] = []

    def row(self, inside: str) -> Shaped | None:
        """Return a row, None if it stays for the parser."""
        for at, shape in enumerate(self._recent):
            if (found := shape.pattern.fullmatch(inside)) is not None:
                if at:
                    self._recent.insert(0, self._recent.pop(at))
                return _checked(shape, found.groups(), inside)
        pieces = _SLOT.split(inside)
        bare_row = f">{_SLOT_MARK}</".join(pieces[::2])
        if bare_row not in self._known:
            if len(self._known) == SHAPES_MAX:
                return None
            self._known[bare_row] = _shape(bare_row, pieces[::2], self._plain)
        known = self._known[bare_row]
        if known is None:
            return None
        self._recent = [known, *self._recent[: RECENT_MAX - 1]]
        return _checked(known, pieces[1::2], inside)


def _checked(shape: Shape, texts: Sequence[str], inside: str) -> Shaped | None:
    if not _TEXTS.fullmatch("".join(texts)) or len(inside) > VALUE_CHARS_MAX:
        return None
    if any(texts[at].strip(" \t\n") for at in shape.blanks):
        return None
    return Shaped(shape, texts)


def _shape(bare_row: str, pieces: Sequence[str], plain: Plain) -> Shape | None:
    """Return the shape of a row whose texts are marks; None if not all of it is understood."""
    leaves: dict[str, int] = {}
    attributes: dict[str, str] = {}
    paths: set[str] = set()
    blanks: list[int] = []
    above: list[str] = []
    at = slots = 0
    is_open = False
    while (piece := _PIECE.match(bare_row, at)) is not None:
        begin, end, slot = piece["begin"], piece["end"], piece["slot"]
        if begin is not None:
            above.append(begin)
            path = "/".join(above)
            if path in paths or len(above) > DEPTH_MAX or begin == plain.never:
                return None
            paths.add(path)
            if piece["key"] is not None:
                if piece["key"] != plain.attribute:
                    return None
                attributes[path] = piece["value"]
            is_open = not piece["empty"]
            if not is_open:
                above.pop()
            elif slot:
                leaves[path] = slots
        elif not above or end != f"/{above.pop()}":
            return None
        else:
            is_open = False
        if slot and not is_open:
            blanks.append(slots)
        slots += len(slot)
        at = piece.end()
        if slot and not bare_row.startswith("</", at):
            return None
    if above or bare_row[at:].strip(" \t\n"):
        return None
    # Of the same row it takes the same texts as _SLOT, and only of rows that are alike.
    pattern = re.compile(">([^<]+)</".join(map(re.escape, pieces)))
    return Shape(pattern, leaves, attributes, blanks)


# -- writing --------------------------------------------------------------------------------------


def escaped(value: str) -> str:
    """Return a text as it stands in an element."""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def elements(nodes: Nodes) -> str:
    """Return elements with all that is in them."""
    return "".join(
        f"<{name}>{escaped(value) if isinstance(value, str) else elements(value)}</{name}>"
        for name, value in nodes.items()
    )


def check_characters(text: str) -> None:
    """Check that XML can carry each character.

    Raises:
        BodyError: it can't.
    """
    if wrong := _NOT_XML.search(text):
        msg = f"character {wrong[0]!r} can't stand in XML"
        raise BodyError(msg)


def replaced(text: str, by: str) -> str:
    """Return a text with something in place of each character that XML can't carry."""
    return _NOT_XML.sub(by, text)
