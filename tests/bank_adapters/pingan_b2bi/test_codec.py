from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi import ADAPTER
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.frames import HEADER_BYTES, Header
from fep.adapters.api import Context, Draft
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from fep.domain.order import BalanceQuery, Operation
from tests.bank_adapters.pingan_b2bi.samples import (
    LINES,
    NOW,
    ORDER,
    PACKETS,
    PAYER,
    QUERY,
    REF,
    TODAY,
    answer,
    codec,
    context,
    profile,
    reply_to,
)

SLOT = {"signing": {"by": "slot"}}


def at(hour: int, minute: int, second: int = 0) -> dt.datetime:
    return dt.datetime(2026, 1, 5, hour, minute, second, tzinfo=SHANGHAI).astimezone(dt.UTC)


@pytest.mark.req("FEP-05")
@pytest.mark.parametrize(
    ("name", "operation", "now", "number"),
    [
        ("S001 request", None, at(9, 0), 1),
        ("4001 request", BalanceQuery(PAYER), at(9, 1), 2),
        ("4004 request", ORDER, at(9, 2), 3),
        ("4005 request", QUERY, at(9, 18), 4),
        ("4013 request", LINES, at(17, 30), 5),
    ],
)
def test_requests_are_those_of_the_document_byte_for_byte(
    name: str, operation: Operation | None, now: dt.datetime, number: int
) -> None:
    one = codec()
    ctx = context(number, now)
    draft = one.probe(ctx) if operation is None else one.prepare(operation, ctx)
    assert one.seal(draft, None) == PACKETS[name]
    assert (draft.correlation, draft.trade) == (ctx.sequence, name[:4])
    assert draft.to_sign is None


def test_every_answer_of_the_document_is_read() -> None:
    read = {name: reply_to(packet) for name, packet in PACKETS.items() if "request" not in name}
    assert [reply.code for reply in read.values()] == ["000000"] * 5 + [
        "GW3002",
        "AFE003",
        "YQ9971",
        "MA4045",
    ]
    for name, reply in read.items():
        assert reply.trade == name[:4]
        assert reply.raw == PACKETS[name]
        assert reply.content is not None
    local = read["4001 error AFE003 (local front end)"]
    assert (local.correlation, local.message) == (
        "20260105090600000007",
        "通讯异常-发送报文至后台服务",
    )


def test_an_answer_is_recognised_by_its_sequence_whatever_its_serv_type() -> None:
    for serv_type in ("01", "02"):
        reply = reply_to(answer("4004", "AFE003", seq="77", serv_type=serv_type))
        assert (reply.correlation, reply.code) == ("77", "AFE003")


def test_a_frame_whose_body_is_not_xml_is_a_reply_without_content() -> None:
    reply = reply_to(answer("4004", xml="<Result><A>"))
    assert (reply.correlation, reply.code, reply.content) == ("1", "000000", None)


@given(st.lists(st.binary(max_size=400), max_size=6))
def test_any_bytes_give_replies_or_a_protocol_error(pieces: list[bytes]) -> None:
    framer = codec().framer()
    try:
        for piece in [b"A001", *pieces]:
            framer.receive_data(piece)
        framer.receive_eof()
    except RemoteProtocolError:
        return


def test_the_frame_limit_is_the_cards() -> None:
    small = codec({"limits": {"frame_bytes_max": 300}})
    with pytest.raises(RemoteProtocolError, match="300"):
        small.framer().receive_data(PACKETS["4001 answer"])


def test_only_payments_are_signed_and_only_where_the_slot_signs() -> None:
    signing = codec(SLOT)
    payment = signing.prepare(ORDER, context())
    plain = codec().prepare(ORDER, context())
    assert payment.to_sign == codec().seal(plain, None)[HEADER_BYTES:]
    others: list[Operation] = [BalanceQuery(PAYER), QUERY, LINES]
    assert all(signing.prepare(one, context()).to_sign is None for one in others)
    assert signing.probe(context()).to_sign is None
    assert signing.logon(context()) is None


def test_the_signature_follows_the_body_and_is_not_counted_in_it() -> None:
    one = codec(SLOT)
    draft = one.prepare(ORDER, context())
    assert draft.to_sign is not None
    packet = one.seal(draft, b"s" * 256)
    header = Header(packet[:HEADER_BYTES])
    assert packet[HEADER_BYTES:] == draft.to_sign + b"s" * 256
    assert header.number("body_len") == len(draft.to_sign)
    cells = [header.cell(name) for name in ("sign_flag", "sign_pkt", "sign_alg", "sign_len")]
    assert cells == [b"1", b"0", b"RSA-SHA256  ", b"       256"]


@pytest.mark.parametrize("signature", [None, b"", b"s" * 1025])
def test_a_payment_that_wants_a_signature_does_not_leave_without_one(
    signature: bytes | None,
) -> None:
    one = codec(SLOT)
    with pytest.raises(LocalProtocolError):
        one.seal(one.prepare(ORDER, context()), signature)


def test_what_is_not_ours_to_seal_is_refused() -> None:
    one = codec()
    with pytest.raises(LocalProtocolError):
        one.seal(one.prepare(ORDER, context()), b"s")
    with pytest.raises(LocalProtocolError):
        one.seal(attrs.evolve(one.probe(context()), content=b""), None)


def test_a_payment_without_reference_or_with_a_bad_sequence_is_a_defect_of_ours() -> None:
    with pytest.raises(LocalProtocolError, match="client_ref"):
        codec().prepare(ORDER, context(reference=None))
    with pytest.raises(LocalProtocolError, match="sequence"):
        codec().prepare(ORDER, Context(NOW, "2026 01", REF))


@pytest.mark.req("FEP-15")
def test_the_corp_code_is_the_direct_connect_number_unless_the_options_say_another() -> None:
    def corp_code(draft: Draft) -> str:
        return Header(codec().seal(draft, None)[:HEADER_BYTES]).text("corp_code")

    assert corp_code(codec().probe(context())) == "99990000000000000001"
    other = codec(options=PinganOptions(corp_code="42"))
    assert corp_code(other.probe(context())) == "42"


@pytest.mark.parametrize("number", ["", "9" * 21, "99 99", "企业"])
def test_a_corp_code_that_does_not_fit_is_a_fault_of_the_configuration(number: str) -> None:
    with pytest.raises(ConfigError, match="corp_code"):
        ADAPTER.open(attrs.evolve(profile(), direct_connect_number=number))


def test_a_sign_port_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="slot"):
        codec({"signing": {"by": "sign_port"}})


def test_alive_is_a_good_answer_only() -> None:
    assert codec().alive(reply_to(PACKETS["S001 answer"]))
    for code in ("AFE003", "YQ9990", "", "??????"):
        assert not codec().alive(reply_to(answer("S001", code)))


@given(st.integers(-250, 5), st.integers(0, 99), st.integers(1, 100))
def test_a_statement_is_split_without_gap_overlap_or_mixture(
    first: int, days: int, span: int
) -> None:
    start = BusinessDate(TODAY + dt.timedelta(days=first))
    end = BusinessDate(start + dt.timedelta(days=days))
    query = attrs.evolve(LINES, first_day=start, last_day=end)
    pieces = codec({"statement": {"span_days_max": span}}).split(query, TODAY)
    if start > TODAY:
        assert pieces == [query]
        return
    asked = [
        piece.first_day + dt.timedelta(days=one)
        for piece in pieces
        for one in range((piece.last_day - piece.first_day).days + 1)
    ]
    last = min(end, TODAY)
    assert asked == [start + dt.timedelta(days=one) for one in range((last - start).days + 1)]
    for piece in pieces:
        assert piece.first_day == piece.last_day == TODAY or piece.last_day < TODAY
        assert (piece.last_day - piece.first_day).days < span


def test_a_page_that_goes_on_is_not_split() -> None:
    query = attrs.evolve(LINES, cursor="4013/20260105/2/30/0/0")
    assert codec().split(query, TODAY) == [query]
