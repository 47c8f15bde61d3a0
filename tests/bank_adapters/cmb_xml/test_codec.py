"""The codec of one bank and the framer of one connection."""

import base64
import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cmb_xml.codec import CmbXmlFramer
from bank_adapters.cmb_xml.frames import LENGTH_BYTES, pack
from bank_adapters.cmb_xml.messages import Message, encode, take_signature
from fep.adapters.api import Reply
from fep.adapters.card import SignAlgorithm
from fep.domain.clock import BusinessDate
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.domain.order import Operation
from tests.bank_adapters.cmb_xml.samples import (
    BALANCE,
    CONTEXT,
    DAY,
    ORDER,
    SAMPLES,
    SEQUENCE,
    STATEMENT,
    STATUS,
    codec,
    reply,
)

CAP = 1024
ANSWERS = [sample.data for name, sample in SAMPLES.items() if "answer" in name]
BY_SLOT = {"signing": {"by": "slot", "algorithm": "ecdsa_sha256"}}
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([pack(xml) for xml in ANSWERS]),
        st.sampled_from([b"9       ", pack(b"<a>"), b"1024    ", b"1025    "]),
    ),
    max_size=6,
)


@given(st.lists(st.sampled_from(ANSWERS), max_size=4), st.lists(st.integers(0, 5000), max_size=9))
def test_any_split_gives_the_same_replies(answers: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(pack, answers))
    framer = codec().framer()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    got: list[Reply] = []
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007 - one edge is possible
        got += framer.receive_data(data[start:end])
    framer.receive_eof()
    assert [one.raw for one in got] == [pack(xml) for xml in answers]
    assert got == [reply(xml) for xml in answers]


@given(PIECES)
def test_garbage_gives_replies_or_an_error_in_bounded_memory(pieces: list[bytes]) -> None:
    framer = CmbXmlFramer(CAP)
    for piece in pieces:
        try:
            replies = framer.receive_data(piece)
        except RemoteProtocolError:
            replies = []
        assert framer.held_bytes < LENGTH_BYTES + CAP
        for one in replies:
            for operation in (ORDER, BALANCE, STATUS, STATEMENT):
                codec().outcome(operation, one)


def test_a_reply_bears_what_the_answer_echoes() -> None:
    answer = reply(SAMPLES["error_answer"].data)
    assert (answer.correlation, answer.trade) == (SEQUENCE, "DCPAYMNT")
    assert (answer.code, answer.message) == ("-1", "操作超时")


def test_an_answer_without_our_number_matches_nothing() -> None:
    xml = SAMPLES["payment_answer"].xml.replace("FEPCORRID", "OTHER")
    assert reply(xml).correlation == ""


def test_an_unreadable_frame_matches_nothing_and_the_stream_goes_on() -> None:
    good = SAMPLES["status_answer"].data
    bad, after = codec().framer().receive_data(pack(good[:-1]) + pack(good))
    assert (bad.correlation, bad.code, bad.raw) == ("", "UNREADABLE", pack(good[:-1]))
    assert after.correlation == SEQUENCE


def test_the_card_caps_the_frame() -> None:
    framer = codec(card={"limits": {"frame_bytes_max": 575}}).framer()
    with pytest.raises(RemoteProtocolError, match="larger than 575"):
        framer.receive_data(pack(SAMPLES["balance_answer"].data))


def test_there_is_no_logon() -> None:
    assert codec().logon(CONTEXT) is None


@pytest.mark.parametrize(
    ("function", "code", "alive"),
    [
        ("ListMode", "0", True),
        ("ListMode", "-5", True),
        ("ListMode", "-4", False),
        ("ListMode", "-1", False),
        ("ListMode", "", False),
        ("GetAccInfo", "0", False),
    ],
)
def test_alive(function: str, code: str, alive: bool) -> None:
    answer = reply(encode(Message({"FUNNAM": function, "RETCOD": code})))
    assert codec().alive(answer) is alive


# Signing.


def test_a_payment_is_signed_by_the_slot_when_the_card_says_so() -> None:
    bank = codec(card=BY_SLOT)
    draft = bank.prepare(ORDER, CONTEXT)
    assert draft.to_sign == SAMPLES["payment_request"].data
    assert draft.algorithm is SignAlgorithm.ECDSA_SHA256
    signature = bytes(range(256))
    sealed = bank.seal(draft, signature)
    xml = sealed[LENGTH_BYTES:]
    assert int(sealed[:LENGTH_BYTES]) == len(xml)
    assert take_signature(xml) == (draft.to_sign, base64.b64encode(signature).decode())
    assert b"</FEPCORRID><FEPSIGNATURE>" in xml
    assert b"</FEPSIGNATURE></INFO>" in xml


@pytest.mark.parametrize("operation", [BALANCE, STATUS, STATEMENT])
def test_queries_are_never_signed(operation: Operation) -> None:
    assert codec(card=BY_SLOT).prepare(operation, CONTEXT).to_sign is None
    assert codec(card=BY_SLOT).probe(CONTEXT).to_sign is None


def test_a_draft_and_its_signature_belong_together() -> None:
    for card, signature in (({}, b"1"), (BY_SLOT, None)):
        bank = codec(card=card)
        with pytest.raises(LocalProtocolError):
            bank.seal(bank.prepare(ORDER, CONTEXT), signature)


# Statements.


@given(st.integers(0, 400), st.integers(1, 100))
def test_a_statement_is_split_into_spans_without_gap_or_overlap(days: int, span: int) -> None:
    bank = codec(card={"statement": {"span_days_max": span}})
    query = attrs.evolve(STATEMENT, last_day=BusinessDate(DAY + dt.timedelta(days=days)))
    queries = bank.split(query, DAY)
    covered = [
        one.first_day + dt.timedelta(days=day)
        for one in queries
        for day in range((one.last_day - one.first_day).days + 1)
    ]
    assert covered == [DAY + dt.timedelta(days=day) for day in range(days + 1)]
    for one in queries:
        bank.prepare(one, CONTEXT)
