"""The envelope CMBSDKPGK."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cmb_xml.messages import (
    Block,
    Message,
    add_signature,
    decode,
    encode,
    take_signature,
)
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from tests.bank_adapters.cmb_xml.samples import SAMPLES

GBK = st.text(
    st.one_of(
        st.sampled_from("货款江枫样例 &<>\"'];"),
        st.characters(codec="gbk", exclude_categories=["Cc", "Cs"]),
    ),
    max_size=20,
).map(str.rstrip)
TAGS = st.from_regex(r"[A-Z]{6}", fullmatch=True)
FIELDS = st.dictionaries(TAGS, GBK, max_size=5)
MESSAGES = st.builds(
    Message, FIELDS, st.lists(st.builds(Block, TAGS, FIELDS), max_size=4).map(tuple)
)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_what_was_recorded(name: str) -> None:
    sample = SAMPLES[name]
    assert len(sample.data) == sample.size
    assert hashlib.sha256(sample.data).hexdigest()[:16] == sample.sha256


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read_and_written_back_byte_for_byte(name: str) -> None:
    message = decode(SAMPLES[name].data)
    assert message.function in SAMPLES[name].title or name == "error_answer"
    assert message.info["FEPCORRID"] == "20260105000123"
    assert encode(message) == SAMPLES[name].data


@given(MESSAGES)
def test_what_is_written_is_read_back(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_their_fault(data: bytes) -> None:
    try:
        decode(data)
    except RemoteProtocolError:
        return


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_samples_give_a_message_or_their_fault(name: str, data: st.DataObject) -> None:
    xml = bytearray(SAMPLES[name].data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(xml) - 1))
        xml[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    try:
        message = decode(bytes(xml))
    except RemoteProtocolError:
        return
    assert all(value == value.rstrip() for value in message.info.values())


def test_only_ampersand_and_less_than_are_escaped() -> None:
    xml = encode(Message({"ERRMSG": """a&b<c>d"e'"""}))
    assert b"""<ERRMSG>a&amp;b&lt;c>d"e'</ERRMSG>""" in xml


def test_what_xml_forbids_in_text_is_escaped_too() -> None:
    message = Message({"ERRMSG": "  a]]>b"})
    assert decode(encode(message)) == message


def test_a_character_gbk_lacks_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError, match="gbk"):
        encode(Message({"ERRMSG": "\U00020000"}))


def test_the_form_does_not_matter_when_reading() -> None:
    loose = (
        "\ufeff  <?xml version='1.0' encoding = 'UTF-8' ?>\r\n<CMBSDKPGK>\n <!-- x --><?p q?>"
        "<NTQPAYRQZ a='1'><YURREF>A1   </YURREF><ERRTXT/><NEWFLD>1</NEWFLD><B><C>2</C></B>"
        "<ERRCOD><![CDATA[SUC0000]]></ERRCOD></NTQPAYRQZ>text"
        "<INFO><RETCOD>0 </RETCOD><ERRMSG></ERRMSG></INFO></CMBSDKPGK> \0\0"
    )
    message = decode(loose.encode("gb18030"))
    assert message.info == {"RETCOD": "0", "ERRMSG": ""}
    row = {"YURREF": "A1", "ERRTXT": "", "NEWFLD": "1", "B": "", "ERRCOD": "SUC0000"}
    assert message.rows("NTQPAYRQZ") == [row]
    assert message.function == ""


def test_gb18030_beyond_gbk_and_half_characters_are_read() -> None:
    head, tail = b"<CMBSDKPGK><INFO><ERRMSG>", b" </ERRMSG></INFO></CMBSDKPGK>"
    assert decode(head + "\U00020000".encode("gb18030") + tail).info["ERRMSG"] == "\U00020000"
    half = decode(head + "货款".encode("gb18030")[:3] + tail).info["ERRMSG"]
    assert half.startswith("货")
    assert "\ufffd" in half
    assert decode(head + b"a\x01b" + tail).info["ERRMSG"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        ("", "well-formed"),
        ("<CMBSDKPGK><INFO>", "well-formed"),
        ("<OTHER><INFO/></OTHER>", "no CMBSDKPGK"),
        ("<CMBSDKPGK><X/></CMBSDKPGK>", "no INFO"),
        (
            '<!DOCTYPE a SYSTEM "file:///etc/hostname"><CMBSDKPGK><INFO/></CMBSDKPGK>',
            "document type",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b "boom">]><CMBSDKPGK><INFO><A>&b;</A></INFO></CMBSDKPGK>',
            "document type",
        ),
        ("<CMBSDKPGK><INFO><A>&b;</A></INFO></CMBSDKPGK>", "well-formed"),
        ("<CMBSDKPGK>" + "<a>" * 300 + "</a>" * 300 + "<INFO/></CMBSDKPGK>", "well-formed"),
    ],
)
def test_what_is_no_message_is_their_fault(xml: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        decode(xml.encode("gbk"))


@given(st.binary(min_size=1, max_size=300))
def test_the_signature_goes_in_last_and_comes_out_whole(signature: bytes) -> None:
    xml = SAMPLES["payment_request"].data
    text = signature.hex()
    signed = add_signature(xml, text)
    assert b"</FEPSIGNATURE></INFO><SDKPAYRQX>" in signed
    assert list(decode(signed).info)[-1] == "FEPSIGNATURE"
    assert take_signature(signed) == (xml, text)
    assert take_signature(xml) == (xml, "")
