"""The one XML parser takes nothing that harms, and a page's rows are what the parser says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

import bank_adapters
import fep
from fep.adapters import registry, xml
from fep.domain.errors import BodyError, RemoteProtocolError
from tests.adapters.captures import decoder, exchanges

Parse = Callable[[str], etree._Element]

PARSERS: dict[str, Parse] = {
    "parse": xml.parse,
    "read": lambda text: xml.read(text, "row").root,
    "parse_declared": lambda text: xml.parse_declared(text.encode()),
}
"""Each way into the parser."""
BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
ROWS = "<row><A>1</A><B>x</B></row>" * xml.ROWS_MIN


@pytest.mark.parametrize("way", PARSERS)
@pytest.mark.parametrize(
    "head",
    [
        f'<!DOCTYPE a [<!ENTITY a0 "x">{BOMB}]>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "{file}">]>',
        '<!DOCTYPE a SYSTEM "{file}">',
        '<!DOCTYPE a PUBLIC "x" "http://127.0.0.1:1/x.dtd">',
        '<!DOCTYPE a [<!ENTITY % e SYSTEM "{file}"> %e;]>',
        "<!doctype a>",
        "<! DOCTYPE a>",
        "<!-- --><!DOCTYPE a>",
    ],
    ids=["bomb", "external", "dtd", "public", "parameter", "small", "blank", "behind-comment"],
)
def test_a_document_type_is_refused(way: str, head: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("<!ENTITY e 'secret'>")
    text = head.replace("{file}", file.as_uri()) + f"<a>&e;&a11;{ROWS}</a>"
    with pytest.raises(RemoteProtocolError, match="document type"):
        PARSERS[way](text)


@pytest.mark.parametrize("way", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "<a>",
        "<a>&e;</a>",
        "<a>&#0;</a>",
        "<a/><b/>",
        '<a b="<"/>',
        "<n:a/>",
        f"<a {ROWS}/>",
        f'<a b="{ROWS}"/>',
        f"<a>{ROWS}</b>",
        f"{ROWS}",
        "<a>" * 5000 + "</a>" * 5000,
        "<a>" * 300 + ROWS + "</a>" * 300,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_well_formed_or_too_deep_is_refused(way: str, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="well-formed"):
        PARSERS[way](text)


@pytest.mark.parametrize("way", PARSERS)
def test_instructions_and_comments_are_passed_over(way: str) -> None:
    text = '<?xml-stylesheet href="x"?><a><?b c?><!-- d --><e>f<?g h?>i</e></a>'
    root = PARSERS[way](text)
    assert [(one.tag, one.text) for one in root.iter()] == [("a", None), ("e", "fi")]


@pytest.mark.parametrize("way", PARSERS)
@pytest.mark.parametrize(("name", "least"), [("CHARS_MAX", 100), ("TAGS_MAX", 20)])
def test_there_is_a_bound(way: str, name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml, name, least)
    few = "<a>" + "<b/>" * 10 + "</a>"
    assert len(PARSERS[way](few)) == 10
    with pytest.raises(RemoteProtocolError, match="more than"):
        PARSERS[way](few.replace("<b/>", "<b/>    <b/>"))


ILLEGAL = "\0\x01\x08\x0b\x0c\x0e\x1f\ufffe\uffff\ud800\udfff"


@pytest.mark.parametrize("bad", ILLEGAL)
@pytest.mark.parametrize(
    "around", ["<a>{}</a>", "<a>x{}y</a>", '<a b="{}"/>', "<a><![CDATA[x{}]]></a>"]
)
def test_illegal_characters_are_replaced(bad: str, around: str) -> None:
    """They are looked for only when the parser complains: so it has to, about each, everywhere."""
    root = xml.parse(around.format(bad))
    told = root.text or root.attrib["b"]
    assert "\ufffd" in told
    assert bad not in told
    inside = around.format(bad).replace("a", "row")
    page = xml.read(f"<page>{ROWS}{inside}</page>", "row").root
    assert "\ufffd" in etree.tostring(page[-1], encoding="unicode")
    xml.parse(f"<a><!-- {bad} --><?b {bad}?></a>")
    with pytest.raises(RemoteProtocolError):
        xml.parse_declared(around.format(bad).encode("utf-8", "surrogatepass"))


def test_a_declared_encoding_hides_no_document_type() -> None:
    hidden = b'<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE a+AD4-<a/>'
    for data in (hidden, "<!DOCTYPE a><a/>".encode("utf-16"), "<!DOCTYPE a><a/>".encode("cp037")):
        with pytest.raises(RemoteProtocolError):
            xml.parse_declared(data)
    assert xml.parse_declared('<?xml version="1.0" encoding="GBK"?><a>钱</a>'.encode("gbk")).text


def test_text_is_read_leniently() -> None:
    declared = '<?xml version="1.0" encoding="GB2312"?>'
    data = b"\0 \n" + (declared + "<a>䶮").encode("gb18030") + "货".encode("gbk")[:1] + b"</a>\0\0"
    assert xml.text_of(data, xml.GBK).startswith("<a>䶮\ufffd")
    assert xml.text_of("\ufeff<a/>".encode(), xml.UTF8) == "<a/>"


# -- rows -----------------------------------------------------------------------------------------

FIELD = st.one_of(
    st.sampled_from(["1", "", " x ", "钱　", "a&amp;b", "&#13;", "\r\n", "\t\n", "]]>", "<C/>"]),
    st.text(max_size=3),
)
"""What may stand between a begin and an end."""


@st.composite
def pages(draw: st.DrawFn) -> str:
    """Return a page of rows that are mostly alike, now and then wrong in some place."""
    blank = draw(st.sampled_from(["", "\n", "\r\n", " \t"]))
    rows = []
    for _ in range(xml.ROWS_MIN):
        rows.append([f"<row>{blank}", "<A>1</A>", blank, "<B>x</B>", blank, "<C></C>", "</row>"])
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.sampled_from(rows))
        at = draw(st.integers(0, len(row) - 1))
        name = draw(st.sampled_from(["A", "B", "D", "row"]))
        piece = f"<{name}>{draw(FIELD)}</{name}>"
        row[at] = draw(
            st.sampled_from([piece, row[at] + piece, "", "<B/>", "<B />", '<B c="1"/>', "<row/>"])
            | st.sampled_from(["<!-- c -->", "<![CDATA[<row>]]>", "<?p?>", "</row>", "<row>", "x"])
            | st.just('<row fep-row="0"/>')
        )
    whole = ["<page>", *("".join(row) + blank for row in rows), "</page>"]
    at = draw(st.integers(0, len(whole)))
    whole.insert(at, draw(st.sampled_from(["", "<t>1</t>", "<row/>", "<", "&", '<u v="', "\x01"])))
    return "".join(whole)


def told(document: xml.Document) -> list[Any]:
    """Return all that an adapter could see, where rows are asked for first."""

    def of(element: etree._Element) -> Any:
        row = document.row(element)
        if row is not None:
            return [element.tag, {}, None, [[n, {}, t, []] for n, t in row.items()]]
        text = (element.text or "").strip() if not len(element) else None
        return [element.tag, dict(element.attrib), text, [of(one) for one in element]]

    return [of(document.root)]


@given(pages())
@example(f"<page>{ROWS}</page>")
@example(f"<page><row>{ROWS}</row></page>")
@example(f"<page><row><A>&lt;</A><B>y</B></row>{ROWS}</page>")
@example(f"<page>{ROWS}<t><![CDATA[<row><A>1</A><B>x</B></row>]]></t></page>")
@example(f"<page>{ROWS.replace('B>', 'A>')}</page>")
def test_rows_are_what_the_parser_says(page: str) -> None:
    try:
        wanted = told(xml.Document(xml.parse(page)))
    except RemoteProtocolError as error:
        with pytest.raises(RemoteProtocolError, match=re.escape(str(error))):
            xml.read(page, "row")
        return
    assert told(xml.read(page, "row")) == wanted


def test_rows_that_look_alike_are_cut_out() -> None:
    other = "<row><A>a&amp;b</A><B>y</B></row>"
    document = xml.read(f"<page>{ROWS}{other}{ROWS}</page>".replace("><", ">\r\n<"), "row")
    found = [document.row(one) for one in document.root]
    assert [one == {"A": "1", "B": "x"} for one in found].count(True) == 2 * xml.ROWS_MIN
    assert found[xml.ROWS_MIN] is None


# -- writing --------------------------------------------------------------------------------------


@given(st.text(max_size=20))
def test_what_is_written_is_read_back(value: str) -> None:
    try:
        xml.check_characters(value)
    except BodyError:
        return
    found = xml.parse(f"<a>{xml.elements({'b': {'c': value.replace(chr(13), '')}})}</a>")
    assert (found.findtext("b/c") or "") == value.replace("\r", "")


# -- every adapter --------------------------------------------------------------------------------


def test_every_adapter_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound that no message keeps, none can be read; JSON still can."""
    answers = {name: exchanges(name)[-1][-1] for name in registry.names()}
    monkeypatch.setattr(xml, "CHARS_MAX", 0)
    past, said = set(), set()
    for name, answer in answers.items():
        found = decoder(name).find(answer, 0)
        assert found is not None
        try:
            decoder(name).describe(answer[slice(*found)])
            past.add(name)
        except (RemoteProtocolError, ValueError) as error:
            said.add(str(error))
    assert past == {"cmb_cdc"}
    assert {"more than 0 characters" in one for one in said} == {True}


def test_nothing_else_parses_xml() -> None:
    own = re.compile(r"XMLParser|fromstring|iterparse|ElementTree|expat|minidom|\bsax\b|etree\.XML")
    found = {
        file.name
        for package in (fep, bank_adapters)
        for place in package.__path__
        for file in Path(place).rglob("*.py")
        if own.search(file.read_text())
    }
    assert found == {"xml.py"}
