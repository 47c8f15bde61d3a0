from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi import bodies
from bank_adapters.pingan_b2bi.bodies import UnreadableError

GBK_TEXT = st.text(st.characters(codec="gbk", exclude_categories=["Cc", "Cs"]), max_size=20)
NAMES = st.sampled_from(["Account", "Balance", "AcctNo", "Purpose", "Fee1"])
LEAVES = st.dictionaries(NAMES, GBK_TEXT, max_size=5)


@given(LEAVES, st.lists(st.dictionaries(NAMES, GBK_TEXT, min_size=1), max_size=3), st.booleans())
def test_reads_what_it_writes(
    members: dict[str, str],
    rows: list[dict[str, str]],
    ours: bool,
) -> None:
    declaration = bodies.REQUEST_DECLARATION if ours else bodies.ANSWER_DECLARATION
    text = bodies.write(declaration, members.items(), [row.items() for row in rows])
    found = bodies.read(bodies.decode(text.encode("gbk"), "01"))
    assert found.values == {name: value.strip() for name, value in members.items()}
    wanted = [{name: value.strip() for name, value in row.items()} for row in rows]
    assert [row.values for row in found.rows] == wanted


@given(st.binary(max_size=300), st.sampled_from(["01", "02", "03", ""]))
def test_any_bytes_are_fields_or_unreadable(body: bytes, charset: str) -> None:
    try:
        found = bodies.read(bodies.decode(b"<Result>" + body + b"</Result>", charset))
        bodies.read(bodies.decode(body, charset))
    except UnreadableError:
        return
    assert isinstance(found.values, dict)


@pytest.mark.parametrize("text", ["", "  \n", '<?xml version="1.0" encoding="GBK"?>\n'])
def test_an_empty_body_says_nothing(text: str) -> None:
    assert bodies.read(text) == bodies.NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "<Result>",
        "plain text",
        "<Result><A></B></Result>",
        "<Result>&unknown;</Result>",
        '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]><Result><A>&a;</A></Result>',
        '<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Result><A>&b;</A></Result>',
        "<!DOCTYPE Result><Result/>",
        "<a>" * 300 + "</a>" * 300,
    ],
)
def test_what_is_not_plain_xml_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableError):
        bodies.read(bodies.ANSWER_DECLARATION + text)


def test_missing_empty_extra_and_reordered_elements_are_all_read() -> None:
    text = (
        '<?xml version="1.0" encoding="GBK"?>\n<Result><!-- x --><New a="1">n </New>\n'
        "<Balance>12.00  </Balance><Status/><list><A>1</A></list><list/><list><A>2</A></list>"
        "</Result>"
    )
    found = bodies.read(text)
    assert (found.get("Balance"), found.get("Status"), found.get("Gone")) == ("12.00", "", "")
    assert [row.get("A") for row in found.rows] == ["1", "2"]


def test_an_element_that_says_two_things_is_unreadable_and_the_others_are_not() -> None:
    found = bodies.read("<Result><A>1</A><Stt>20</Stt><Stt>30</Stt><A>1</A></Result>")
    assert found.get("A") == "1"
    with pytest.raises(UnreadableError, match="Stt"):
        found.get("Stt")


def test_a_control_character_does_not_spoil_the_page() -> None:
    assert bodies.read("<Result><A>x\x02y</A></Result>").get("A") == "x\ufffdy"


def test_text_cut_inside_a_character_is_replaced_and_characters_beyond_gbk_are_read() -> None:
    assert bodies.decode("货款".encode("gbk")[:3], "01") == "货\ufffd"
    assert bodies.decode("䶮".encode("gb18030"), "01") == "䶮"
    assert bodies.decode("货".encode(), "02") == "货"
