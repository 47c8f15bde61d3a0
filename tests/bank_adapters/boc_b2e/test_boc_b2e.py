"""BOC's two levels of status, its session, and what is refused; the rest is the conformance suite's."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest

from bank_adapters.boc_b2e import ADAPTER
from bank_adapters.boc_b2e.codec import UNANSWERED_MAX, BocB2eCodec
from bank_adapters.boc_b2e.config import CARD, BocB2eOptions
from bank_adapters.boc_b2e.messages import TYPE, Message, encode
from fep.adapters.api import Accepted, BankProfile, Context, Outcome, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, override
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import BodyError, ConfigError, LocalProtocolError
from fep.domain.ids import AccountNumber, BankName, TaskId, client_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    Operation,
    Payee,
    PaymentOrder,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementQuery,
    StatusQuery,
)
from fep.wire.http import RequestReader, response_bytes

BOC = BankName("boc")
OURS, PAYEE = AccountNumber("99990000000000000101"), AccountNumber("99990000000000000202")
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = client_ref("E0001", TaskId("T1"))
ORDER = PaymentOrder(OURS, Payee(PAYEE, "云阶示例贸易有限公司"), Cny(100_050), purpose="货款")
STATUS = StatusQuery(REF, ORDER, DAY)


def codec(card: BehaviourCard = CARD) -> BocB2eCodec:
    names = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
    accounts = {
        number: Account(number, BOC, name, "104100000004") for number, name in names.items()
    }
    options = BocB2eOptions(terminal_id="E1", customer_id="C1", operator_id="O1")
    made = ADAPTER.open(
        BankProfile(BOC, card, options, "1", accounts, "127.0.0.1:1", {"password": "not-for-logs"})
    )
    assert isinstance(made, BocB2eCodec)
    return made


def reply_of(trade: str, outer: str, *items: dict[str, object]) -> Reply:
    message = Message({"trnid": REF}, trade, {"rspcod": outer, "rspmsg": ""}, items)  # type: ignore[arg-type]
    [reply] = codec().framer().receive_data(response_bytes(200, encode(message, "rs"), TYPE))
    return reply


def item(code: str, **more: str) -> dict[str, object]:
    return {"status": {"rspcod": code, "rspmsg": ""}, "insid": REF, **more}


@pytest.mark.parametrize(
    ("outer", "inner", "state"),
    [
        ("B001", item("B001"), PaymentState.SUCCEEDED),
        ("B001", item("B054"), PaymentState.PROCESSING),
        ("B001", item("SIM-F"), PaymentState.REJECTED),
        ("B001", item("SIM-T"), PaymentState.RETURNED),
        ("B001", item("B002"), PaymentState.UNKNOWN),
        ("B001", item(""), PaymentState.UNKNOWN),
        ("B001", item("B001", trnamt="1000.5"), PaymentState.SUCCEEDED),
        ("B001", item("B001", trnamt="1000.51"), PaymentState.UNKNOWN),
        ("SIM5", item("B001"), PaymentState.NO_RECORD),
    ],
)
def test_the_items_status_counts_and_not_the_querys(
    outer: str, inner: dict[str, object], state: PaymentState
) -> None:
    told = codec().outcome(STATUS, reply_of("b2e0007", outer, inner))
    assert isinstance(told, Accepted)
    assert isinstance(told.result, PaymentStatus)
    assert told.result.state is state


@pytest.mark.parametrize(
    ("operation", "reply", "kind"),
    [
        (ORDER, reply_of("b2e0009", "B001", item("B001")), Accepted),
        (ORDER, reply_of("b2e0009", "B001", item("SIM1")), Rejected),
        (ORDER, reply_of("b2e0009", "B001", item("B999")), Unclear),
        (ORDER, reply_of("b2e0009", "B001"), Unclear),
        (ORDER, reply_of("b2e0009", "1033"), Unclear),
        (ORDER, reply_of("b2e0009", "B107"), Unclear),
        (ORDER, reply_of("b2e0007", "B001", item("B001")), Unclear),
        (STATUS, reply_of("b2e0007", "B001", item("B001"), item("B001")), Unclear),
        (STATUS, reply_of("b2e0007", "B001", item("B001") | {"insid": "F"}), Unclear),
        (BalanceQuery(OURS), reply_of("b2e0005", "B001", {"account": {"actacn": "1"}}), Unclear),
        (StatementQuery(OURS, DAY, DAY), reply_of("b2e0035", "B001"), Unclear),
    ],
)
def test_what_an_answer_means(operation: Operation, reply: Reply, kind: type[Outcome]) -> None:
    found = codec().outcome(operation, reply)
    assert isinstance(found, kind)
    assert not (isinstance(found, Accepted) and found.final), "b2e0009 only takes over"


def test_a_session_is_signed_on_once_and_its_token_is_in_every_request() -> None:
    one = codec()
    assert not one.is_signed_on
    draft = one.logon(Context(NOW, "1"))
    assert draft is not None
    assert "not-for-logs" not in repr((draft, one))
    assert b"<oprpwd>not-for-logs</oprpwd>" in one.seal(draft, None)
    assert not one.alive(reply_of("b2e0001", "B001", {"serverdt": "x"})), "there is no token"
    told = reply_of("b2e0001", "B001", {"token": "TOKEN-1"})
    assert one.alive(told)
    one.signed_on(told)
    assert one.logon(Context(NOW, "2")) is None
    payment = one.prepare(ORDER, Context(NOW, "3", REF))
    [request] = RequestReader(10**6).receive_data(one.seal(payment, b"signature"))
    assert b"<token>TOKEN-1</token>" in request.body
    assert b"<signature>c2lnbmF0dXJl</signature>" in request.body
    assert not one.signed_off(reply_of("b2e0005", "B001"))
    assert one.signed_off(reply_of("b2e0005", "B107"))
    assert one.logon(Context(NOW, "4")) is not None


def test_a_late_answer_to_the_token_before_takes_nothing_away() -> None:
    one = codec()
    first = one.prepare(BalanceQuery(OURS), Context(NOW, "1"))
    second = one.prepare(BalanceQuery(OURS), Context(NOW, "2"))
    one.signed_on(reply_of("b2e0001", "B001", {"token": "TOKEN-1"}))
    for draft in (first, second):
        one.seal(draft, None)
    ended = reply_of("b2e0005", "B107")
    assert one.signed_off(attrs.evolve(ended, correlation="1"))
    # While nobody is signed on, another answer says the same.
    assert one.signed_off(attrs.evolve(ended, correlation="0"))
    one.signed_on(reply_of("b2e0001", "B001", {"token": "TOKEN-2"}))
    assert not one.signed_off(attrs.evolve(ended, correlation="2"))
    assert b"<token>TOKEN-2</token>" in one.seal(first, None)
    assert one.signed_off(attrs.evolve(ended, correlation="1"))
    # What is not answered is not remembered for ever.
    for number in range(UNANSWERED_MAX + 9):
        one.seal(one.prepare(BalanceQuery(OURS), Context(NOW, f"x{number}")), None)
    assert len(one._borne) == UNANSWERED_MAX


LINE = {"trndat": "20260105090100", "dircod": "D", "trnamt": "1.00", "trncur": "CNY"}


def page(code: str, total: str, *lines: dict[str, str]) -> Reply:
    message = Message({}, "b2e0035", {"rspcod": code}, lines, {"totnum": total})
    [reply] = codec().framer().receive_data(response_bytes(200, encode(message, "rs"), TYPE))
    return reply


@pytest.mark.parametrize(
    ("reply", "cursor"),
    [
        (page("B002", "3", LINE, LINE), "3"),
        (page("B001", "2", LINE, LINE), ""),
        # Whichever says that there is more is believed.
        (page("B002", "2", LINE, LINE), "3"),
        (page("B001", "3", LINE, LINE), "3"),
        (page("B002", "2"), None),
        (page("B003", "2", LINE, LINE), None),
    ],
)
def test_a_page_of_a_statement_says_whether_more_follow(reply: Reply, cursor: str | None) -> None:
    found = codec().outcome(StatementQuery(OURS, DAY, DAY), reply)
    if cursor is None:
        assert isinstance(found, Unclear)
        return
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Statement)
    assert (len(found.result.entries), found.result.cursor) == (2, cursor)


def test_ok_and_more_proves_nothing_of_anything_but_a_statement() -> None:
    for operation, trade in (
        (ORDER, "b2e0009"),
        (STATUS, "b2e0007"),
        (BalanceQuery(OURS), "b2e0005"),
    ):
        assert isinstance(
            codec().outcome(operation, reply_of(trade, "B002", item("B001"))), Unclear
        )


def test_what_is_refused_before_sending() -> None:
    one = codec()
    with pytest.raises(BodyError, match=r"payee\.name"):
        one.prepare(attrs.evolve(ORDER, payee=Payee(PAYEE, "\x0b")), Context(NOW, "1", REF))
    stranger = Payee(AccountNumber("6222000000009999"), "外行示例公司")
    with pytest.raises(BodyError, match="bank_name"):
        one.prepare(attrs.evolve(ORDER, payee=stranger), Context(NOW, "1", REF))
    with pytest.raises(LocalProtocolError):
        one.prepare(ORDER, Context(NOW, "1"))
    for wrong in ({"signing": {"by": "front_end"}}, {"transport": {"protocol": "tcp"}}):
        with pytest.raises(ConfigError):
            codec(override(CARD, wrong))
