"""The envelope FOX: byte for byte as in the reference, and lenient where the bank writes."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cib_fox.messages import (
    SIGN_ON,
    Message,
    decode,
    encode,
    fault,
    mask_password,
    part,
    rows,
    signed_part,
    text,
)
from fep.adapters.api import Context
from fep.domain.errors import BodyError, RemoteProtocolError
from fep.domain.order import Operation
from tests.bank_adapters.cib_fox.samples import (
    BALANCE,
    ORDER,
    PASSWORD,
    SAMPLES,
    STATEMENT,
    STATUS,
    body_of,
    codec,
    context,
)

ANSWER = (
    "<FOX><SIGNONMSGSRSV1><SONRS><STATUS><CODE>0</CODE></STATUS></SONRS></SIGNONMSGSRSV1>{}</FOX>"
)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_those_of_the_reference(name: str) -> None:
    sample = SAMPLES[name]
    assert len(sample.data) == sample.size
    assert hashlib.sha256(sample.data).hexdigest()[:16] == sample.sha256


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_read_and_printed_again(name: str) -> None:
    message = decode(SAMPLES[name].data)
    assert message.is_answer == (
        "answer" in SAMPLES[name].title or "refused" in name or "pending" in name
    )
    assert encode(message) == SAMPLES[name].data


@pytest.mark.parametrize(
    ("name", "operation", "asked"),
    [
        ("balance_request", BALANCE, context()),
        ("transfer_request", ORDER, context("any")),
        ("status_request", STATUS, context("FEP20260105000003")),
        ("statement_request", STATEMENT, context("FEP20260105000004")),
    ],
)
def test_requests_are_byte_for_byte_the_samples(
    name: str, operation: Operation, asked: Context
) -> None:
    one = codec()
    request = one.seal(one.prepare(operation, asked), None)
    assert request.startswith(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8007\r\n")
    assert body_of(request) == SAMPLES[name].data


def test_the_heartbeat_is_the_sign_on_alone() -> None:
    one = codec()
    draft = one.probe(context("any", seconds=-60))
    assert draft.trade == SIGN_ON
    assert body_of(one.seal(draft, None)) == SAMPLES["probe"].data


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        ("", "well-formed"),
        ("<FOX>", "well-formed"),
        ("<FOX/>", "neither"),
        ("<BAR><SIGNONMSGSRSV1/></BAR>", "no FOX"),
        ("<FOX><SIGNONMSGSRSV1/></FOX>", "0 elements"),
        ("<!DOCTYPE FOX><FOX/>", "document type"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><FOX>&x;</FOX>', "document type"),
        (
            ANSWER.format("<SECURITIES_MSGSRSV1><XFERTRNRS/><XFERTRNRS/></SECURITIES_MSGSRSV1>"),
            "2 elements",
        ),
    ],
)
def test_what_is_no_message_is_told(xml: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        decode(xml.encode())


def test_both_forms_of_the_parts_names_are_read() -> None:
    for end in ("RSV1", "V1", "RSV2"):
        xml = SAMPLES["status_answer"].xml.replace("RSV1>", f"{end}>")
        message = decode(xml.encode("gbk"))
        assert (message.trade, message.number, message.is_answer) == (
            "XFERINQTRN",
            "FEP20260105000003",
            True,
        )


def test_answers_are_read_leniently() -> None:
    xml = (
        '\ufeff<?xml version="1.0" encoding="GB2312"?>\r\n<FOX><NEW/><SECURITIES_MSGSRSV1>\n<ATRNRS>'
        '<NEW><DEEP a="1">x</DEEP></NEW><TRNUID> T1  </TRNUID><C>一</C><C>二</C><!-- -->'
        '<L MORE="Y"><R><A>1</A></R><R/></L></ATRNRS></SECURITIES_MSGSRSV1></FOX>\0'
    )
    message = decode(xml.encode("gb18030"))
    assert (message.sign_on, message.trade, message.number) == ({}, "ATRN", "T1")
    assert text(message.body, "NEW", "DEEP") == "x"
    assert text(message.body, "NO", "SUCH") == ""
    assert text(part(message.body, "L"), "@MORE") == "Y"
    assert rows(part(message.body, "L"), "R") == ({"A": "1"}, {})
    assert rows(message.body, "NONE") == ()
    with pytest.raises(ValueError, match="C stands there 2 times"):
        text(message.body, "C")


def test_a_character_cut_in_half_is_replaced() -> None:
    data = SAMPLES["transfer_refused"].data.replace("不符".encode("gbk"), "不符".encode("gbk")[:-1])
    assert "\ufffd" in text(decode(data).body, "STATUS", "MESSAGE")


@pytest.mark.parametrize("held", ["<", ">", "&", "&amp;", "a\nb", "\x00", "😀", "ß€\u200b"])
def test_what_can_not_be_written_names_its_node(held: str) -> None:
    with pytest.raises(BodyError, match=r"^MEMO "):
        encode(Message({}, "XFERTRN", {"TRNUID": "1", "INFO": {"MEMO": held}}))
    with pytest.raises(BodyError, match=r"^LOCAL "):
        encode(Message({}, "XFERTRN", {"TRNUID": "1", "INFO": {"@LOCAL": held, "A": ""}}))


def test_lengths_are_counted_in_bytes_of_gbk() -> None:
    assert fault("云" * 25, 50) == ""
    assert "52 bytes" in fault("云" * 26, 50)


def test_the_simulated_bank_bends_what_it_can_not_write() -> None:
    message = Message({}, "ATRN", {"TRNUID": "1", "NAME": "A<B>&\x01😀"}, is_answer=True)
    assert text(decode(encode(message, strict=False)).body, "NAME") == "A＜B＞＆?😀"


def test_a_key_signs_the_trade_and_not_the_password() -> None:
    data = SAMPLES["transfer_request"].data
    signed = signed_part(data)
    assert signed.startswith(b"<SECURITIES_MSGSRQV1><XFERTRNRQ>")
    assert data.endswith(signed + b"</FOX>")
    assert PASSWORD.encode() not in signed
    assert signed_part(SAMPLES["probe"].data) == b""


def test_a_masked_request_is_as_long_and_has_no_password() -> None:
    data = SAMPLES["transfer_request"].data.replace(b"*" * 8, "秘密pass!".encode("gbk"))
    masked = mask_password(data)
    assert len(masked) == len(data)
    assert "秘密".encode("gbk") not in masked
    assert b"pass!" not in masked
    assert decode(masked).body == decode(data).body


NAMES = st.text("ABCDEFGH", min_size=1, max_size=6).map(lambda name: f"X{name}")
TEXTS = st.text(st.sampled_from("ab1-|.:云 阶"), max_size=8).map(str.strip)
TREES = st.recursive(
    TEXTS, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4), max_leaves=12
)


@given(sign_on=st.dictionaries(NAMES, TREES, max_size=3), body=st.dictionaries(NAMES, TREES))
def test_what_is_printed_is_read_back(sign_on: dict[str, object], body: dict[str, object]) -> None:
    message = Message(sign_on, "ATRN", {"TRNUID": "T", **body})  # type: ignore[arg-type, dict-item]
    assert decode(encode(message)) == message


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_typed_error(data: bytes) -> None:
    for one in (data, b"<FOX>" + data + b"</FOX>", SAMPLES["status_answer"].data[:200] + data):
        with suppress(RemoteProtocolError):
            decode(one)
