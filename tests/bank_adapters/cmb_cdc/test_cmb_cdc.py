"""CMB CloudDC: texts byte for byte, two levels of status, the cursor, and the bank's own faults."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_adapters.cmb_cdc import ADAPTER
from bank_adapters.cmb_cdc import host as cmb_cdc_host
from bank_adapters.cmb_cdc.codec import CmbCdcCodec
from bank_adapters.cmb_cdc.config import CARD, CmbCdcOptions
from bank_adapters.cmb_cdc.decoder import DECODER
from bank_adapters.cmb_cdc.host import BANK_KEY, FAULTS, HOST, SM4_KEY, USER_KEY
from bank_adapters.cmb_cdc.messages import (
    GATEWAY,
    PLACEHOLDER,
    REQUEST,
    RESPONSE,
    TIME_DIGITS,
    Message,
    Row,
    Secrets,
    decode,
    hide,
    reveal,
    text_to_sign,
    user_mark,
)
from bank_adapters.cmb_cdc.requests import Cursor, cursor_text, read_cursor
from fep.adapters.api import (
    Accepted,
    BankProfile,
    Context,
    LookupCodec,
    Outcome,
    Rejected,
    Reply,
    Unclear,
)
from fep.adapters.card import NoRecord, override
from fep.adapters.decode import lines
from fep.adapters.host import BookAccount, Fault, Faults, HostProfile
from fep.crypto import sm4
from fep.crypto.sm2 import Sm2PrivateKey
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import BodyError, ConfigError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import AccountNumber, BankName, Sequence, TaskId, client_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    Operation,
    Payee,
    PaymentOrder,
    PaymentState,
    PaymentStatus,
    ReturnedPayments,
    ReturnedQuery,
    Statement,
    StatementQuery,
    StatusQuery,
)
from fep.wire.http import response_bytes
from tests.bank_adapters.book import MemoryBook

CMB = BankName("cmb")
USER = "N009999999"
OURS, PAYEE = AccountNumber("999900000010101"), AccountNumber("999900000010202")
HOLDERS = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, 123_000, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = client_ref("E0001", TaskId("T1"))
ORDER = PaymentOrder(OURS, Payee(PAYEE, HOLDERS[PAYEE]), Cny(100_050), purpose="货款")
STATUS = StatusQuery(REF, ORDER, DAY)
BANK_POINT = Sm2PrivateKey.parse(BANK_KEY.encode()).point.hex()
OURS_SIDE = Secrets.parse(USER_KEY, BANK_POINT, SM4_KEY)
BANK_SIDE = Secrets.parse(BANK_KEY, Sm2PrivateKey.parse(USER_KEY.encode()).point.hex(), SM4_KEY)
NUMBERS = Sequence()


class _Clock:
    def now(self) -> dt.datetime:
        return NOW


def codec(**options: Any) -> CmbCdcCodec:
    given: dict[str, Any] = {"user_id": USER, "bank_public_key": BANK_POINT, "branch": "75"}
    accounts = {one: Account(one, CMB, name, "308584000013") for one, name in HOLDERS.items()}
    secrets = {"sign_key": USER_KEY, "sm4_key": SM4_KEY}
    profile = BankProfile(
        CMB,
        CARD,
        CmbCdcOptions(**(given | options)),
        "1",
        accounts,
        "127.0.0.1:1",
        secrets,
    )
    made = ADAPTER.open(profile)
    assert isinstance(made, CmbCdcCodec)
    return made


@contextmanager
def bank(*faults: str) -> Iterator[MemoryBook]:
    book = MemoryBook(*(BookAccount(CMB, one, name, Cny(900_000)) for one, name in HOLDERS.items()))
    chance = dict.fromkeys(faults, 1.0)
    _open.append(HOST.open(HostProfile(CMB, book, _Clock(), Faults(chance, random.Random(1)))))
    try:
        yield book
    finally:
        _open.pop()


_open: list[object] = []


def ask(operation: Operation, number: int = 1) -> tuple[Outcome, Reply]:
    one = codec()
    paying = isinstance(operation, PaymentOrder)
    reference = client_ref("E0001", TaskId(f"T{number}")) if paying else None
    draft = one.prepare(operation, Context(NOW, NUMBERS.next(NOW), reference))
    answers = _open[-1].receive_data(one.seal(draft, None))  # type: ignore[attr-defined]
    [reply] = one.framer().receive_data(b"".join(answer.data for answer in answers))
    return one.outcome(operation, reply), reply


# -- byte for byte ---------------------------------------------------------------------------------

AT = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI)
BALANCE_ASKED = Message(
    "NTQADINF",
    "20260105090100123000001",
    {"ntqadinfx": ({"accnbr": "999900000010101", "bbknbr": "99"},)},
    {"userid": USER},
)
PAYMENT_ASKED = Message(
    "BB1PAYOP",
    "20260105090200123000002",
    {
        "bb1paybmx1": ({"busCod": "N02030", "busMod": "00001"},),
        "bb1payopx1": (
            {
                "dbtAcc": "999900000010101",
                "crtAcc": "99990000000000202",
                "crtNam": "云阶示例贸易有限公司",
                "crtBnk": "兴业银行",
                "brdNbr": "309391000011",
                "ccyNbr": "10",
                "trsAmt": "1000.50",
                "bnkFlg": "N",
                "nusAge": "货款",
                "yurRef": "FEP20260105000000001",
            },
        ),
    },
    {"userid": USER},
)


@pytest.mark.parametrize(
    ("message", "at", "size", "digest"),
    [
        (BALANCE_ASKED, AT, 237, "d43ca7bf41d9e103"),
        (PAYMENT_ASKED, AT + dt.timedelta(minutes=1), 491, "815ac114cbccec2b"),
    ],
)
def test_texts_to_sign_are_these_bytes(
    message: Message, at: dt.datetime, size: int, digest: str
) -> None:
    text = text_to_sign(message, REQUEST, at)
    assert len(text) == size
    assert hashlib.sha256(text).hexdigest()[:16] == digest


def test_a_hidden_text_is_these_bytes() -> None:
    text = text_to_sign(BALANCE_ASKED, REQUEST, AT)
    assert user_mark(USER) == b"N009999999000000"
    data = base64.b64encode(sm4.encrypt(SM4_KEY.encode(), user_mark(USER), text))
    assert len(data) == 320
    assert data.startswith(b"kztWIPdYCILByawQ7B/sygaOu4/QpdUc")
    assert hashlib.sha256(data).hexdigest()[:16] == "d1a9fdb02816abec"
    assert sm4.sm3(text).hex().startswith("80134765b5dc8250")


def test_what_the_codec_prepares_is_the_text_of_the_vector() -> None:
    one = codec(branch="99")
    draft = one.prepare(BalanceQuery(OURS), Context(NOW, "20260105090100000001"))
    assert draft.correlation == "20260105090100123000001"
    assert draft.content.text == text_to_sign(BALANCE_ASKED, REQUEST, AT)


# -- signed and hidden -----------------------------------------------------------------------------


def test_only_the_other_side_s_signature_and_our_key_are_taken() -> None:
    text = text_to_sign(BALANCE_ASKED, RESPONSE, NOW)
    hidden = hide(text, BANK_SIDE, USER)
    assert decode(reveal(hidden, OURS_SIDE, USER)) == decode(
        reveal(hidden, OURS_SIDE, USER).replace(b" ", b"")
    )
    for wrong in (
        hide(text, attrs.evolve(BANK_SIDE, own=OURS_SIDE.own), USER),
        base64.b64encode(sm4.encrypt(SM4_KEY.encode(), user_mark(USER), text)),
        hidden[:-4],
        hidden[:8] + b"AAAA" + hidden[12:],
        b"",
        b"!",
    ):
        with pytest.raises(RemoteProtocolError):
            reveal(wrong, OURS_SIDE, USER)
    with pytest.raises(RemoteProtocolError, match="SM4"):
        reveal(hidden, attrs.evolve(OURS_SIDE, hidden_by=b"x" * 16), USER)


def test_one_changed_character_of_a_text_is_noticed() -> None:
    mark = user_mark(USER)
    whole = sm4.decrypt(
        SM4_KEY.encode(),
        mark,
        base64.b64decode(hide(text_to_sign(PAYMENT_ASKED, RESPONSE, NOW), BANK_SIDE, USER)),
    )
    changed = whole.replace(b"1000.50", b"1000.51")
    assert changed != whole
    with pytest.raises(RemoteProtocolError, match="signed"):
        reveal(base64.b64encode(sm4.encrypt(SM4_KEY.encode(), mark, changed)), OURS_SIDE, USER)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_body_is_a_reply_that_proves_nothing(body: bytes) -> None:
    one = codec()
    for data in (body, base64.b64encode(body), hide(body, BANK_SIDE, USER)):
        [reply] = one.framer().receive_data(response_bytes(200, data, "text/plain"))
        for operation in (ORDER, STATUS, BalanceQuery(OURS)):
            assert isinstance(one.outcome(operation, reply), Unclear)
        assert not one.alive(reply)
        assert one.payment_ref(reply) == ""


# -- what the answers mean -------------------------------------------------------------------------


def reply_of(function: str, code: str = "SUC0000", **tables: tuple[Row, ...]) -> Reply:
    head = {"resultcode": code, "resultmsg": "", "userid": USER}
    number = f"20260105090100123{REF}"
    text = text_to_sign(Message(function, number, tables, head), RESPONSE, NOW)
    data = response_bytes(200, hide(text, BANK_SIDE, USER), "text/plain")
    [reply] = codec().framer().receive_data(data)
    return reply


def paid(code: str, state: str = "", flag: str = "") -> Reply:
    row = {"errCod": code, "reqSts": state, "rtnFlg": flag, "reqNbr": "0099000001"}
    return reply_of("BB1PAYOP", bb1payopz1=(row,))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (paid("SUC0000", "AUT"), Accepted),
        (paid("SUC0000", "NTE"), Accepted),
        (paid("SUC0000", "FIN", "S"), Accepted),
        (paid("SUC0000", "FIN", "F"), Rejected),
        (paid("SUC0000", "FIN", "B"), Unclear),
        (paid("SUC0000", "WRF"), Unclear),
        (paid("SUC0000"), Unclear),
        (paid("CSAC054", "FIN", "F"), Rejected),
        (paid("CSAC054"), Rejected),
        (paid("CSAC054", "BNK"), Unclear),
        (paid("SIM0003"), Unclear),
        (paid("XXX0001", "FIN", "F"), Unclear),
        (paid("NCB4241", "FIN", "F"), Unclear),
        (reply_of("BB1PAYOP", "CSAC054"), Unclear),
        (reply_of("BB1PAYOP"), Unclear),
        (reply_of("BB1PAYQR"), Unclear),
    ],
)
def test_what_an_answer_to_a_payment_means(reply: Reply, kind: type[Outcome]) -> None:
    found = codec().outcome(ORDER, reply)
    assert isinstance(found, kind)
    finished = isinstance(found, Accepted) and found.final
    assert finished == (found.code == "FIN+S")


def told(state: str, flag: str = "", **more: str) -> Reply:
    row = {"reqSts": state, "rtnFlg": flag, "yurRef": REF, "reqNbr": "0099000001", **more}
    return reply_of("BB1PAYQR", bb1payqrz1=(row,))


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (told("FIN", "S"), PaymentState.SUCCEEDED),
        (told("FIN", "B", rtnNar="账号户名不符"), PaymentState.RETURNED),
        (told("FIN", "R"), PaymentState.REJECTED),
        (told("FIN", "M"), PaymentState.UNKNOWN),
        (told("WRF"), PaymentState.UNKNOWN),
        (told("BNK", "F"), PaymentState.PROCESSING),
        (told("FIN", "S", trsAmt="1000.50"), PaymentState.SUCCEEDED),
        (told("FIN", "S", trsAmt="1000.51"), PaymentState.UNKNOWN),
        (told("FIN", "S", crtAcc="1"), PaymentState.UNKNOWN),
        (told("FIN", "S", dbtAcc="1"), PaymentState.UNKNOWN),
        (reply_of("BB1PAYQR", bb1payqrz1=()), PaymentState.NO_RECORD),
    ],
)
def test_what_a_status_means(reply: Reply, state: PaymentState) -> None:
    found = codec().outcome(STATUS, reply)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    assert found.result.state is state


def body_of(function: str, body: dict[str, Any]) -> Reply:
    """Return an answer with any body."""
    head = {"resultcode": "SUC0000", "funcode": function, "reqid": f"20260105090100123{REF}"}
    text = orjson.dumps(
        {
            "response": {"body": body, "head": head},
            "signature": {"sigdat": PLACEHOLDER, "sigtim": "20260105090101"},
        }
    )
    data = response_bytes(200, hide(text, BANK_SIDE, USER), "text/plain")
    [reply] = codec().framer().receive_data(data)
    return reply


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"bb1payqrz1": None},
        {"bb1payqrz1": [1]},
        {"bb1payqrz1": "none"},
        {"BB1PAYQRZ1": []},
        {"bb1payqrz1": [{"yurRef": REF, "reqSts": "FIN", "rtnFlg": "S", "trsAmt": 1000.5}]},
        {"bb1payqrz1": [{"yurRef": REF, "reqSts": "FIN", "rtnFlg": "S", "trsAmt": True}]},
        {"bb1payqrz1": [{"yurRef": REF, "reqSts": "FIN", "rtnFlg": "S", "trsAmt": ["1.00"]}]},
    ],
)
def test_a_status_that_can_not_be_taken_as_it_is_says_nothing(body: dict[str, Any]) -> None:
    found = codec().outcome(STATUS, body_of("BB1PAYQR", body))
    assert isinstance(found, Unclear)
    assert found.code == "UNREADABLE"


def test_that_the_bank_does_not_find_a_payment_never_closes_it() -> None:
    """What an answer without a row means is not known of this bank."""
    assert codec().profile.card.inquiry.no_record is NoRecord.NEVER


def test_a_page_of_a_statement_does_not_begin_where_it_did() -> None:
    rows = ({"acctNbr": OURS, "expectNextSequence": "201", "transDate": "20260105"},)
    again = reply_of(
        "trsQryByBreakPoint",
        TRANSQUERYBYBREAKPOINT_Y1=rows,
        TRANSQUERYBYBREAKPOINT_Z1=({"ctnFlag": "Y", "queryAcctNbr": OURS},),
        TRANSQUERYBYBREAKPOINT_Z2=(line(),),
    )
    first = StatementQuery(OURS, DAY, DAY)
    page = codec().outcome(first, again)
    assert isinstance(page, Accepted)
    assert isinstance(page.result, Statement)
    second = attrs.evolve(first, cursor=page.result.cursor)
    assert isinstance(codec().outcome(second, again), Unclear)
    nothing = reply_of("trsQryByBreakPoint")
    assert isinstance(codec().outcome(first, nothing), Unclear)
    counted = ({"debitNums": "1", "creditNums": "0", "ctnFlag": "N"},)
    lost = reply_of("trsQryByBreakPoint", TRANSQUERYBYBREAKPOINT_Z1=counted)
    assert isinstance(codec().outcome(first, lost), Unclear)
    none = ({"debitNums": "0", "creditNums": "0", "ctnFlag": "N"},)
    empty = reply_of("trsQryByBreakPoint", TRANSQUERYBYBREAKPOINT_Z1=none)
    assert isinstance(codec().outcome(first, empty), Accepted)


def test_a_reference_that_only_begins_alike_is_not_ours() -> None:
    reply = told("FIN", "S", yurRef=f"{REF}1")
    assert isinstance(codec().outcome(STATUS, reply), Unclear)


def line(**changes: str) -> Row:
    row = {"transAmount": "-10.00", "loanCode": "D", "transDate": "20260105", "transTime": "090205"}
    return row | changes


@pytest.mark.parametrize(
    "row",
    [
        line(loanCode="C"),
        line(transAmount="0.00"),
        line(transAmount="10.00"),
        line(transAmount="x"),
        line(currencyNbr="32"),
        line(transDate=""),
        line(transDate="20261305"),
    ],
)
def test_a_line_that_can_t_be_read_spoils_the_answer(row: Row) -> None:
    reply = reply_of("trsQryByBreakPoint", TRANSQUERYBYBREAKPOINT_Z2=(line(), row))
    assert isinstance(codec().outcome(StatementQuery(OURS, DAY, DAY), reply), Unclear)


def test_the_bank_s_cursor_rows_go_back_unchanged() -> None:
    rows = ({"acctNbr": OURS, "expectNextSequence": "201", "transDate": "20260105"},)
    reply = reply_of(
        "trsQryByBreakPoint",
        TRANSQUERYBYBREAKPOINT_Y1=rows,
        TRANSQUERYBYBREAKPOINT_Z1=({"ctnFlag": "Y", "queryAcctNbr": OURS},),
        TRANSQUERYBYBREAKPOINT_Z2=(line(),),
    )
    query = StatementQuery(OURS, DAY, DAY)
    found = codec().outcome(query, reply)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Statement)
    draft = codec().prepare(
        attrs.evolve(query, cursor=found.result.cursor), Context(NOW, NUMBERS.next(NOW))
    )
    _, sent = decode(draft.content.text)
    assert sent.rows("TRANSQUERYBYBREAKPOINT_Y1") == rows
    assert sent.rows("TRANSQUERYBYBREAKPOINT_X1")[0]["queryAcctNbr"] == OURS


@given(st.text(max_size=60))
def test_any_cursor_is_ours_or_refused(text: str) -> None:
    try:
        cursor = read_cursor(text)
    except BodyError:
        return
    assert read_cursor(cursor_text(cursor)) == cursor


def test_a_cursor_is_bounded() -> None:
    with pytest.raises(ValueError, match="too large"):
        cursor_text(Cursor("1", ({"x": "y" * 5000},)))


# -- what is refused before sending ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (attrs.evolve(ORDER, purpose="a & b"), "& < >"),
        (attrs.evolve(ORDER, purpose="货 款"), "blank"),
        (attrs.evolve(ORDER, payee=Payee(PAYEE, "云阶 有限公司")), "payee.name has a blank"),
        (attrs.evolve(ORDER, purpose="货" * 32), "64 bytes"),
        (attrs.evolve(ORDER, payer=AccountNumber("1")), "no approved account"),
        (
            attrs.evolve(ORDER, payee=Payee(AccountNumber("9"), "甲", "309391000011")),
            "bank_name is missing",
        ),
    ],
)
def test_what_this_bank_can_t_carry(order: PaymentOrder, says: str) -> None:
    with pytest.raises(BodyError, match=says):
        codec().prepare(order, Context(NOW, NUMBERS.next(NOW), REF))


def test_blanks_are_let_in_by_an_option() -> None:
    order = attrs.evolve(ORDER, purpose="货 款")
    draft = codec(blanks=True).prepare(order, Context(NOW, NUMBERS.next(NOW), REF))
    assert "货 款".encode() in draft.content.text


def test_a_payment_needs_its_reference_and_no_key_slot() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare(ORDER, Context(NOW, NUMBERS.next(NOW)))
    draft = codec().prepare(ORDER, Context(NOW, NUMBERS.next(NOW), REF))
    assert draft.to_sign is None
    with pytest.raises(LocalProtocolError):
        codec().seal(draft, b"signature")


def test_an_answer_to_a_payment_bears_it_by_its_number() -> None:
    with bank():
        found, reply = ask(ORDER)
    assert isinstance(found, Accepted)
    assert reply.correlation[TIME_DIGITS:] == REF
    assert codec().payment_ref(reply) == REF


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        ({"sign_key": "x", "sm4_key": SM4_KEY}, "sign_key"),
        ({"sign_key": USER_KEY, "sm4_key": "short"}, "sm4_key"),
    ],
)
def test_a_secret_that_is_no_key_is_a_fault_of_the_configuration(
    secrets: dict[str, str], says: str
) -> None:
    profile = attrs.evolve(codec().profile, secrets=secrets)
    with pytest.raises(ConfigError, match=says) as caught:
        ADAPTER.open(profile)
    assert not any(value in str(caught.value) for value in secrets.values() if len(value) > 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"signing": {"by": "slot"}},
        {"signing": {"algorithm": "rsa_sha256"}},
        {"transport": {"protocol": "tcp"}},
    ],
)
def test_a_card_of_another_kind_of_bank_is_a_fault(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ADAPTER.open(attrs.evolve(codec().profile, card=override(CARD, changes)))


@pytest.mark.parametrize("point", ["", "04", "zz", "04" + "11" * 64])
def test_the_bank_s_key_is_a_point_of_the_curve(point: str) -> None:
    with pytest.raises(ValueError, match="bank_public_key"):
        codec(bank_public_key=point)


# -- the simulated bank's own faults ---------------------------------------------------------------


@pytest.mark.parametrize("fault", ["gateway_error", "clock_refused", "wrong_signature"])
def test_what_the_gateway_does_leaves_a_payment_open(fault: str) -> None:
    with bank(fault) as book:
        found, reply = ask(ORDER)
        assert isinstance(found, Unclear)
        assert not codec().alive(reply)
        assert (reply.code == GATEWAY) == (fault != "wrong_signature")
        assert (book.payment(CMB, REF) is not None) == (fault == "wrong_signature")


def test_a_real_clock_that_is_off_is_refused_before_booking() -> None:
    with bank() as book:
        one = codec()
        late = NOW - dt.timedelta(hours=2)
        draft = one.prepare(ORDER, Context(late, NUMBERS.next(late), REF))
        [answer] = _open[-1].receive_data(one.seal(draft, None))  # type: ignore[attr-defined]
        [reply] = one.framer().receive_data(answer.data)
        assert reply.code == GATEWAY
        assert "time" in reply.message
        assert book.payment(CMB, REF) is None


def test_a_request_of_another_key_is_not_booked() -> None:
    other = Sm2PrivateKey.from_number(bytes(31) + b"\x09")
    with bank() as book:
        one = codec()
        assert one.secrets is not None
        one = attrs.evolve(one, secrets=attrs.evolve(one.secrets, own=other))
        draft = one.prepare(ORDER, Context(NOW, NUMBERS.next(NOW), REF))
        [answer] = _open[-1].receive_data(one.seal(draft, None))  # type: ignore[attr-defined]
        assert b"not signed" in answer.data
        assert book.payment(CMB, REF) is None


def test_trailing_blanks_change_nothing() -> None:
    with bank("trailing_blanks"):
        assert isinstance(ask(ORDER)[0], Accepted)
        found, _ = ask(STATUS)
        assert isinstance(found, Accepted)
        assert found.result.state is PaymentState.SUCCEEDED  # type: ignore[union-attr]
        assert isinstance(ask(BalanceQuery(OURS))[0], Accepted)


def test_wrf_proves_nothing() -> None:
    with bank("suspicious"):
        ask(ORDER)
        found, _ = ask(STATUS)
        assert isinstance(found, Accepted)
        assert found.result.state is PaymentState.UNKNOWN  # type: ignore[union-attr]


def test_a_lost_cursor_is_no_end_of_the_statement() -> None:
    small = attrs.evolve(ORDER, amount=Cny(100))
    with bank("cursor_lost"):
        for number in range(201):
            ask(small, number)
        found, _ = ask(StatementQuery(OURS, DAY, DAY))
        assert isinstance(found, Unclear)
        assert "where they begin" in found.message


def test_a_day_s_summary_names_no_payment() -> None:
    with bank("day_summary"):
        for number in (1, 2):
            ask(ORDER, number)
        found, _ = ask(StatementQuery(OURS, DAY, DAY))
        assert isinstance(found, Accepted)
        assert isinstance(found.result, Statement)
        [entry] = found.result.entries
        assert entry.amount == Cny(200_100)
        assert (entry.client_ref, entry.counterparty_account) == ("", "")


def test_each_fault_is_on_the_bank_s_page_and_common_ones_keep_their_names() -> None:
    assert HOST.faults == FAULTS  # type: ignore[attr-defined]
    assert not set(FAULTS) & set(Fault)


# -- decoding --------------------------------------------------------------------------------------


def test_texts_in_clear_are_decoded_among_rubbish() -> None:
    asked = text_to_sign(BALANCE_ASKED, REQUEST, AT)
    answer = text_to_sign(
        Message("NTQADINF", "1", {"x": ({"a": '"{}'},)}, {"resultcode": "SUC0000"}), RESPONSE, AT
    )
    found = list(lines("cmb_cdc", DECODER, b"rubbish" + asked + b'{"request":{' + answer))
    assert [one.get("trade", "garbage") for one in found] == [
        "garbage",
        "NTQADINF",
        "garbage",
        "NTQADINF",
    ]
    assert found[1]["reference"] == BALANCE_ASKED.number
    assert found[3]["code"] == "SUC0000"
    assert found[3]["fields"]["x"] == [{"a": '"{}'}]


# -- payments that came back -----------------------------------------------------------------------

CAME_BACK = ReturnedQuery(OURS, DAY, DAY)


def look_up(lookup: ReturnedQuery) -> Outcome:
    one = codec()
    draft = one.prepare_lookup(lookup, Context(NOW, NUMBERS.next(NOW), None))
    answers = _open[-1].receive_data(one.seal(draft, None))  # type: ignore[attr-defined]
    [reply] = one.framer().receive_data(b"".join(answer.data for answer in answers))
    return one.looked_up(lookup, reply)


def came_back(outcome: Outcome) -> ReturnedPayments:
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, ReturnedPayments)
    return outcome.result


def test_payments_that_came_back_are_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmb_cdc_host, "RETURNED_ROWS_MAX", 2)
    assert isinstance(codec(), LookupCodec)
    with bank("returned") as book:
        assert came_back(look_up(CAME_BACK)) == ReturnedPayments(())
        for number in range(3):
            ask(attrs.evolve(ORDER, amount=Cny(100 + number)), number)
        book.take_back(CMB, NOW + dt.timedelta(days=1))
        asked = attrs.evolve(CAME_BACK, last_day=BusinessDate(DAY + dt.timedelta(days=2)))
        first = came_back(look_up(asked))
        last = came_back(look_up(attrs.evolve(asked, cursor=first.cursor)))
    assert (len(first.entries), len(last.entries), last.cursor) == (2, 1, "")
    found = first.entries + last.entries
    assert {one.amount.fen for one in found} == {100, 101, 102}
    assert {one.client_ref for one in found} == {
        client_ref("E0001", TaskId(f"T{number}")) for number in range(3)
    }
    assert {(one.payee_account, one.submitted_on) for one in found} == {(PAYEE, DAY)}
    assert all(one.returned_on and one.reason and one.bank_ref for one in found)


ROW = {"yurRef": REF, "reqNbr": "0099", "trsAmt": "1.00"}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (reply_of("BB1PAYQB", bb1payqbz1=(ROW,)), Accepted),
        (reply_of("BB1PAYQB", bb1payqbz1=()), Accepted),
        (reply_of("BB1PAYQB"), Unclear),
        (reply_of("BB1PAYQB", bb1payqbz1=(ROW | {"trsAmt": "x"},)), Unclear),
        (reply_of("BB1PAYQB", bb1payqbz1=(ROW | {"rtnDat": "2026"},)), Unclear),
        (reply_of("BB1PAYQB", bb1payqby1=({"ctnKey": "3"},)), Unclear),
        (reply_of("BB1PAYQB", bb1payqby1=({"ctnKey": ""}, {"ctnKey": "3"})), Unclear),
        (reply_of("BB1PAYQR", bb1payqbz1=(ROW,)), Unclear),
        (reply_of("BB1PAYQB", "ZZZ9999"), Unclear),
    ],
)
def test_what_an_answer_to_a_list_means(reply: Reply, kind: type[Outcome]) -> None:
    assert isinstance(codec().looked_up(CAME_BACK, reply), kind)


def test_a_list_that_goes_on_where_it_was_has_no_end() -> None:
    again = reply_of("BB1PAYQB", bb1payqbz1=(ROW,), bb1payqby1=({"ctnKey": "3"},))
    assert came_back(codec().looked_up(CAME_BACK, again)).cursor == "3"
    assert isinstance(codec().looked_up(attrs.evolve(CAME_BACK, cursor="3"), again), Unclear)


def test_only_lists_of_our_accounts_are_asked_for() -> None:
    for lookup in (attrs.evolve(CAME_BACK, account=AccountNumber("1")), BankCodeQuery("308", "")):
        with pytest.raises(BodyError):
            codec().prepare_lookup(lookup, Context(NOW, NUMBERS.next(NOW), None))
