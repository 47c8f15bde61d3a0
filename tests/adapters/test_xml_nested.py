"""Rows with elements in elements are cut out of a page, and what is read is what the parser says."""

from __future__ import annotations

import random
import re
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

from bank_adapters.iso20022 import facts, messages
from bank_adapters.iso20022.messages import Message
from fep.adapters import xml
from fep.domain.errors import RemoteProtocolError

PLAIN: Final = xml.Plain("Ntry", attribute="Ccy", never="RtrInf")
ROW: Final = (
    '<Ntry><Amt Ccy="CNY">{n}.00</Amt><CdtDbtInd>DBIT</CdtDbtInd><Sts><Cd>BOOK</Cd></Sts>'
    "<BookgDt><Dt>2026-01-05</Dt></BookgDt><AcctSvcrRef>B{n}</AcctSvcrRef><NtryDtls><TxDtls>"
    "<Refs><EndToEndId>F{n}</EndToEndId></Refs><RltdPties><Cdtr><Pty><Nm>云阶示例</Nm></Pty></Cdtr>"
    "<CdtrAcct><Id><Othr><Id>99990000000202</Id></Othr></Id></CdtrAcct></RltdPties>"
    "<RmtInf><Ustrd>货款</Ustrd></RmtInf></TxDtls></NtryDtls></Ntry>"
)
OTHER: Final = (
    '<Ntry><NtryRef>N{n}</NtryRef><Amt Ccy="CNY">2.5</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts>BOOK</Sts>'
    "<BookgDt><DtTm>2026-01-05T09:01:00+08:00</DtTm></BookgDt><NtryDtls><TxDtls><RltdPties><Dbtr>"
    "<Nm>江枫样例</Nm></Dbtr></RltdPties></TxDtls></NtryDtls><AddtlNtryInf>x</AddtlNtryInf></Ntry>"
)
HEAD: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Document xmlns="urn:x"><BkToCstmrStmt><GrpHdr>'
    "<CreDtTm>2026-01-05T09:01:00</CreDtTm></GrpHdr><Stmt><Id>1</Id><FrToDt>"
    "<FrDtTm>2026-01-05T00:00:00</FrDtTm><ToDtTm>2026-01-05T23:59:59</ToDtTm></FrToDt>"
    "<Acct><Id><Othr><Id>99990000000101</Id></Othr></Id></Acct>"
)
TAIL: Final = "</Stmt></BkToCstmrStmt></Document>"
COUNT: Final = xml.ROWS_MIN + 2


def page(rows: list[str], head: str = HEAD, tail: str = TAIL) -> bytes:
    return (head + "".join(rows) + tail).encode("utf-8", "surrogatepass")


def rows_of(row: str = ROW, count: int = COUNT) -> list[str]:
    return [row.replace("{n}", str(number + 1)) for number in range(count)]


def leaf(element: etree._Element) -> str:
    return (element.text or "").strip() if not len(element) else ""


def said(data: bytes, *, fast: bool) -> Any:
    """Return what a page says, read by one of the two ways, or how it is refused."""
    try:
        slow = Message(*messages._body(messages.parse(data))) if not fast else None
        message = messages.read(data) if slow is None else slow
        whole = [(one.tag, leaf(one), dict(one.attrib)) for one in message.body.iter()]
        return message.kind, list(facts.reports(message)), facts.references(message.body), whole
    except (RemoteProtocolError, ValueError) as error:
        return type(error), str(error)


def cut(data: bytes) -> int:
    """Return how many rows are cut out."""
    found = xml.read_nested(data.strip(), PLAIN)
    return 0 if found is None else len(found.rows)


def agrees(data: bytes) -> Any:
    wanted = said(data, fast=False)
    assert said(data, fast=True) == wanted
    return wanted


def test_rows_are_cut_out_and_say_what_they_said() -> None:
    data = page(rows_of())
    assert cut(data) == COUNT
    _, [report], *_ = agrees(data)
    assert [one.reference for one in report.lines] == [f"F{n + 1}" for n in range(COUNT)]
    assert {one.counterparty for one in report.lines} == {"99990000000202"}
    assert messages.read(data).lean is not None


def test_rows_of_several_shapes_are_cut_out() -> None:
    mixed = [row for pair in zip(rows_of(), rows_of(OTHER), strict=True) for row in pair]
    data = page(mixed)
    assert cut(data) == 2 * COUNT
    _, [report], *_ = agrees(data)
    assert [one.bank_ref for one in report.lines[:3]] == ["B1", "N1", "B2"]


def test_a_page_of_few_rows_is_read_by_the_parser() -> None:
    data = page(rows_of(count=xml.ROWS_MIN - 1))
    assert xml.read_nested(data, PLAIN) is None
    agrees(data)


def test_more_shapes_than_are_kept_are_read_by_the_parser() -> None:
    rows = [ROW.replace("{n}", "1").replace("Refs", f"R{n}") for n in range(xml.SHAPES_MAX + 5)]
    data = page(rows)
    assert cut(data) == xml.SHAPES_MAX
    agrees(data)


def test_flat_reading_cuts_no_nested_row() -> None:
    text = page(rows_of()).decode().partition("\n")[2]
    document = xml.read(text, "Ntry")
    found = list(document.root.iter("{urn:x}Ntry"))
    assert len(found) == COUNT
    assert [document.row(one) for one in found] == [None] * COUNT


DEEP: Final = "".join(f"<a{n}>" for n in range(20)) + "".join(
    f"</a{n}>" for n in reversed(range(20))
)
LONG: Final = "x" * (xml.VALUE_CHARS_MAX + 1)

# What is changed in a row, and whether such a row is still cut out.
CHANGES: Final[dict[str, tuple[str, str, bool]]] = {
    "nothing": ("<Cd>", "<Cd>", True),
    "an attribute twice": ('<Amt Ccy="CNY">', '<Amt Ccy="CNY" Ccy="CNY">', False),
    "a second attribute": ('<Amt Ccy="CNY">', '<Amt Ccy="CNY" x="y">', False),
    "another attribute": ('<Amt Ccy="CNY">', '<Amt Cur="CNY">', False),
    "an attribute in small letters": ('"CNY"', '"cny"', False),
    "an attribute with blanks": ('"CNY"', '" CNY "', False),
    "an attribute in single quotes": ('"CNY"', "'CNY'", False),
    "an attribute of a reference": ('"CNY"', '"&#67;NY"', False),
    "an attribute that is empty": ('"CNY"', '""', True),
    "no attribute": (' Ccy="CNY"', "", True),
    "an attribute elsewhere": ("<Cd>", '<Cd Ccy="USD">', True),
    "an attribute of a row": ("<Ntry>", '<Ntry Ccy="CNY">', False),
    "another namespace": ("<NtryDtls>", '<NtryDtls xmlns="u">', False),
    "another namespace in capitals": ("<NtryDtls>", '<NtryDtls xmlns="U">', False),
    "a prefix": ("<Cd>BOOK</Cd>", "<n:Cd>BOOK</n:Cd>", False),
    "a prefix that is declared": ("<Cd>BOOK</Cd>", '<n:Cd xmlns:n="u">BOOK</n:Cd>', False),
    "a container twice": ("<TxDtls>", "<TxDtls></TxDtls><TxDtls>", False),
    "details twice": ("<NtryDtls>", "<NtryDtls></NtryDtls><NtryDtls>", False),
    "a field twice": ("<Cd>BOOK</Cd>", "<Cd>PDNG</Cd><Cd>BOOK</Cd>", False),
    "two texts": ("<Ustrd>", "<Ustrd>a</Ustrd><Ustrd>", False),
    "a return": ("<RmtInf>", "<RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf><RmtInf>", False),
    "an empty return": ("<RmtInf>", "<RtrInf/><RmtInf>", False),
    "an escape": ("货款", "a&amp;b", False),
    "a reference": ("货款", "&#36135;", False),
    "a carriage return by reference": ("货款", "a&#13;", False),
    "an entity nobody knows": ("货款", "&e;", False),
    "a section of characters": ("货款", "<![CDATA[<x>]]>", False),
    "a section that ends a row": ("货款", "<![CDATA[</Ntry><Ntry>]]>", False),
    "a section's end": ("货款", "]]>", False),
    "a larger-than": ("货款", "a>b", False),
    "a comment": ("货款", "货<!-- x -->款", False),
    "a comment with a row": ("<NtryDtls>", f"<!-- {ROW} --><NtryDtls>", False),
    "an instruction": ("货款", "货<?x y?>款", False),
    "blanks between": ("><", ">\n\t <", True),
    "line ends of two": ("><", ">\r\n<", True),
    "a line end in a text": ("货款", "货\r\n款", True),
    "blanks around a text": ("货款", " \n货款\t ", True),
    "only blanks": ("货款", "  ", True),
    "a wide blank": ("货款", "\u3000", True),
    "blanks in a tag": ("<Cd>", "<Cd >", False),
    "blanks in an end": ("</Cd>", "</Cd >", False),
    "a line end in a tag": ("<Amt ", "<Amt\n", False),
    "an element that ends itself": ("<Ustrd>货款</Ustrd>", "<Ustrd/>", True),
    "one that ends itself with a blank": ("<Ustrd>货款</Ustrd>", "<Ustrd />", False),
    "an empty element": ("货款", "", True),
    "an empty element of a row's name": ("<RmtInf>", "<Ntry/><RmtInf>", True),
    "a row in a row": ("<RmtInf>", "<Ntry></Ntry><RmtInf>", False),
    "text between": ("<RmtInf>", "x<RmtInf>", False),
    "text behind": ("</RmtInf>", "x</RmtInf>", False),
    "text behind the last": ("</TxDtls>", "x</TxDtls>", False),
    "text in a container": ("<RmtInf>", "<RmtInf>x", False),
    "text at the end": ("</Ntry>", "x</Ntry>", False),
    "ends crossed": ("</Pty></Cdtr>", "</Cdtr></Pty>", False),
    "an end too many": ("<RmtInf>", "</RmtInf><RmtInf>", False),
    "an end too few": ("</RmtInf>", "", False),
    "an end of another name": ("</Ustrd>", "</Ustrx>", False),
    "a name with a dot": ("Ustrd>", "Us.t-r_d>", True),
    "a name of Chinese": ("Ustrd>", "摘要>", False),
    "a name that is none": ("<Ustrd>货款</Ustrd>", "<1>x</1>", False),
    "too deep": ("<RmtInf>", f"{DEEP}<RmtInf>", False),
    "a long text": ("货款", LONG, False),
    "a control character": ("货款", "a\x01", False),
    "a NUL": ("货款", "a\0", False),
    "no character": ("货款", "a\uffff", False),
    "half a character": ("货款", "a\ud800", False),
    "a wide character": ("货款", "\U0001f600", True),
    "a mark": ("<RmtInf>", '<x fep-row="0"/><RmtInf>', False),
    "a row with a mark": ("<Ntry>", '<Ntry fep-row="0">', False),
    "a mark in a text": ("货款", "fep-row", False),
    "a document type": ("<RmtInf>", "<!DOCTYPE a><RmtInf>", False),
    "no side": ("<CdtDbtInd>DBIT</CdtDbtInd>", "", True),
    "a wrong side": ("DBIT", "X", True),
    "a wrong amount": (".00</Amt>", ".001</Amt>", True),
    "an empty amount": ("{n}.00</Amt>", "</Amt>", True),
    "no date": ("2026-01-05", "x", True),
    "a date of blanks": ("2026-01-05", " ", True),
    "a value date": ("BookgDt>", "ValDt>", True),
    "both dates": ("<BookgDt>", "<ValDt><Dt>2026-01-06</Dt></ValDt><BookgDt>", True),
    "a date without a choice": ("<Dt>2026-01-05</Dt>", "2026-01-05", True),
    "a state without a choice": ("<Cd>BOOK</Cd>", "BOOK", True),
    "an own side": ("<TxDtls>", "<TxDtls><CdtDbtInd>CRDT</CdtDbtInd>", True),
    "no transaction": ("TxDtls>", "Other>", True),
    "an account by IBAN": ("<Othr><Id>99990000000202</Id></Othr>", "<IBAN>X1</IBAN>", True),
    "a reversal": ("<Sts>", "<RvslInd>true</RvslInd><Sts>", True),
    "the family of returns": (
        "<NtryDtls>",
        "<BkTxCd><Domn><Fmly><SubFmlyCd>RRTN</SubFmlyCd></Fmly></Domn></BkTxCd><NtryDtls>",
        True,
    ),
    "a batch": ("<TxDtls>", "<Btch><PmtInfId>P1</PmtInfId></Btch><TxDtls>", True),
    "ids beside": ("<Refs>", "<Refs><MsgId>M</MsgId><InstrId>I</InstrId>", True),
    "not provided": ("F{n}", "NOTPROVIDED", True),
}
WHOLE: Final = {
    *("a section of characters", "a section that ends a row", "a comment", "a comment with a row"),
    *(
        "an instruction",
        "a NUL",
        "half a character",
        "a mark",
        "a mark in a text",
        "a row with a mark",
    ),
    "a document type",
}
"""After these no row of the page is cut out: a row need not be one."""
BROKEN: Final = {"a row in a row", "an end too many", "an end too few", "an end of another name"}
UNREAD: Final = {
    *("an attribute twice", "a prefix", "an entity nobody knows", "ends crossed"),
    *("a name that is none", "a section's end", "a control character", "no character"),
}
"""After these the page is no XML, and read by the parser for its words on that."""


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_one_row_or_all_says_what_the_parser_says(name: str) -> None:
    old, new, is_cut = CHANGES[name]
    assert old in ROW
    changed = ROW.replace(old, new) if old != "<Cd>" else ROW.replace(old, new, 1)
    if name == "an end too many":
        changed = ROW.replace(old, new, 1)
    everywhere = page(rows_of(changed))
    agrees(everywhere)
    one = rows_of()
    one[5] = changed.replace("{n}", "6")
    agrees(page(one))
    agrees(page([*one, *rows_of(OTHER), *rows_of(changed)]))
    if name in WHOLE | BROKEN | UNREAD:
        return
    assert cut(everywhere) == (COUNT if is_cut else 0), name
    assert cut(page(one)) == (COUNT if is_cut or "\r" in new else COUNT - 1)


@pytest.mark.parametrize("name", sorted(WHOLE | UNREAD))
def test_where_rows_may_be_none_nothing_is_cut_out(name: str) -> None:
    old, new, _ = CHANGES[name]
    rows = rows_of()
    rows[5] = rows[5].replace(old, new, 1)
    assert rows[5] != rows_of()[5]
    assert messages_lean(page(rows)) is None


def messages_lean(data: bytes) -> object:
    try:
        return messages.read(data).lean
    except RemoteProtocolError:
        return None


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("<Document><BkToCstmrStmt><Stmt>", TAIL),
        (HEAD.replace("FrToDt", "Other"), TAIL),
        (HEAD.replace("<Stmt>", "<Other>"), TAIL.replace("Stmt>", "Other>", 1)),
        (HEAD.replace("<Stmt>", "<Stmt><In>"), f"</In>{TAIL}"),
        (HEAD.replace("BkToCstmrStmt", "BkToCstmrAcctRpt").replace("Stmt>", "Rpt>"), ""),
        (HEAD, "</Stmt>"),
        (HEAD, f"{TAIL}x"),
        (HEAD.replace("UTF-8", "GBK"), TAIL),
        (HEAD.replace("1.0", "1.1"), TAIL),
        (HEAD.replace('"', "'"), TAIL),
        (f"\ufeff{HEAD}", TAIL),
        (f" \n{HEAD}", f"{TAIL}\n"),
        (HEAD.replace("<Id>1", '<Id a="<Ntry>">1'), TAIL),
        (HEAD.replace("<Id>1", '<Id a=">x</">1'), TAIL),
        (HEAD.replace("<Document", "<n:Document").replace("xmlns", "xmlns:n"), "</Stmt>"),
        (HEAD, f"{TAIL[:7]}<Stmt>{''.join(rows_of())}{TAIL}"),
    ],
)
def test_what_stands_around_the_rows_says_what_the_parser_says(head: str, tail: str) -> None:
    agrees(page(rows_of(), head, tail))


def test_texts_and_sizes_have_the_parsers_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = page(rows_of())
    for name, least in (("CHARS_MAX", len(data) - 1), ("TAGS_MAX", data.count(b"<") - 1)):
        with monkeypatch.context() as patched:
            patched.setattr(xml, name, least)
            assert xml.read_nested(data, PLAIN) is None
            assert agrees(data)[0] is RemoteProtocolError
    agrees(page(rows_of(ROW.replace("货款", "x" * 10_000_001)), HEAD))


PIECES = st.sampled_from(
    [
        *("<", ">", "/", "&", '"', "<Cd>", "</Cd>", "<Ntry>", "</Ntry>", "<Stmt>", "</Stmt>", "x"),
        *(" ", "\n", "\r", "<!--", "-->", "<![CDATA[", "]]>", "<?", "?>", "&amp;", "&#10;", "\0"),
        *('Ccy="USD"', "xmlns='u'", ">x</", "<a/>", "</TxDtls><TxDtls>", "fep-row", "\uffff", "江"),
        *("<RtrInf>", "</RtrInf>", "<Refs/>", "1", "DBIT", "\x1f", "\u2028", ROW, OTHER),
    ]
)


@given(st.data())
@example(None)
def test_whatever_is_changed_says_what_the_parser_says(data: st.DataObject | None) -> None:
    rows = rows_of() + rows_of(OTHER)
    if data is not None:
        rows = data.draw(st.permutations(rows))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(rows) - 1))
            row = rows[at] or "x"
            low = data.draw(st.integers(0, len(row)))
            high = data.draw(st.sampled_from([low, low, low + 1, low + 7, low + 30]))
            rows[at] = row[:low] + data.draw(PIECES) + row[high:]
    agrees(page(rows))


@pytest.mark.parametrize("seed", range(300))
def test_mutated_pages_say_what_the_parser_says(seed: int) -> None:
    rng = random.Random(seed)
    text = page(rows_of() + rows_of(OTHER)).decode()
    tags = sorted(set(re.findall("<[^>]*>", text)))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(text))
        match rng.randrange(4):
            case 0:
                text = text[:at] + text[at + rng.randrange(1, 40) :]
            case 1:
                text = text[:at] + rng.choice(tags) + text[at:]
            case 2:
                old, new = rng.choice(tags), rng.choice(tags)
                text = text.replace(old, new, rng.choice((1, -1)))
            case _:
                other = rng.randrange(len(text))
                text = text[:at] + text[other : other + 60] + text[at:]
    agrees(text.encode())
