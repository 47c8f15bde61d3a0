"""CIB's simulated bank: what it checks, what it stores, and each of its faults by name."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cib_fox.host import HOST, PENDING_SECONDS, ROWS_PER_PAGE
from bank_adapters.cib_fox.messages import (
    TYPE,
    Fields,
    Message,
    Value,
    decode,
    encode,
    part,
    rows,
    text,
)
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.host import HIDDEN_SECONDS_MAX, BookAccount, Faults, HostProfile, own_faults
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Direction,
    Operation,
    Payee,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
    StatusQuery,
)
from fep.tasks.matching import Absent, Found, Payment, Returns, find_payment
from fep.wire.http import request_bytes
from tests.bank_adapters.book import MemoryBook
from tests.bank_adapters.cib_fox.samples import (
    ABROAD,
    BALANCE,
    CIB,
    DAY,
    NOW,
    ORDER,
    OTHER,
    PAYER,
    REFERENCE,
    SAMPLES,
    SISTER,
    STATEMENT,
    STATUS,
    body_of,
    codec,
    context,
)

OPENING = Cny(100_000_000)
HOME = attrs.evolve(ORDER, payee=Payee(SISTER, "江枫样例销售有限公司"))


@attrs.define
class StepClock:
    moment: dt.datetime = NOW

    def now(self) -> dt.datetime:
        return self.moment


class Bank:
    """A codec and its simulated bank; ``faults`` and ``clock`` may be set at any time."""

    def __init__(self, **chance: float) -> None:
        self.chance: dict[str, float] = dict(
            Faults.parse(
                ",".join(f"{name}={one}" for name, one in chance.items()), 0, own_faults(HOST)
            ).chance
        )
        self.clock = StepClock()
        self.book = MemoryBook(
            BookAccount(CIB, PAYER, "江枫样例制造有限公司", OPENING),
            BookAccount(CIB, SISTER, "江枫样例销售有限公司", Cny(0)),
            BookAccount(OTHER, ABROAD, "江枫样例投资有限公司", Cny(0)),
            BookAccount(OTHER, ORDER.payee.account, ORDER.payee.name, Cny(0)),
        )
        faults = Faults(self.chance, random.Random(1))
        self.profile = HostProfile(CIB, self.book, self.clock, faults)
        self.codec = codec()
        self.number = 0

    def request(self, operation: Operation, reference: ClientRef = REFERENCE) -> bytes:
        self.number += 1
        asked = attrs.evolve(context(f"Q{self.number}"), client_ref=reference, now=self.clock.now())
        return self.codec.seal(self.codec.prepare(operation, asked), None)

    def reply(self, request: bytes) -> Reply:
        answers = HOST.open(self.profile).receive_data(request)
        [found] = self.codec.framer().receive_data(b"".join(one.data for one in answers))
        return found

    def ask(self, operation: Operation, reference: ClientRef = REFERENCE) -> Outcome:
        return self.codec.outcome(operation, self.reply(self.request(operation, reference)))

    def state(self, query: StatusQuery = STATUS) -> PaymentState:
        found = self.ask(query)
        assert isinstance(found, Accepted)
        assert isinstance(found.result, PaymentStatus)
        return found.result.state

    def raw(self, trade: str, body: Fields, **head: str) -> Reply:
        sign_on = decode(SAMPLES["probe"].data).sign_on
        message = Message({**sign_on, **head}, trade, body)
        return self.reply(request_bytes("h:1", "/", encode(message), TYPE))

    def lines(self, span: dict[str, Value], **more: Value) -> Reply:
        asked: Fields = {"ACCTFROM": {"ACCTID": PAYER}, "INCTRAN": span, **more}
        return self.raw("SCUSTSTMTTRN", {"TRNUID": "Q", "SCUSTSTMTRQ": asked})


def statement_of(bank: Bank) -> tuple[list[StatementEntry], int]:
    entries: list[StatementEntry] = []
    query, pages = STATEMENT, 0
    while True:
        found = bank.ask(query)
        assert isinstance(found, Accepted)
        assert isinstance(found.result, Statement)
        entries += found.result.entries
        pages += 1
        if not found.result.cursor:
            return entries, pages
        query = attrs.evolve(query, cursor=found.result.cursor)


# -- the bank's own behaviour ---------------------------------------------------------------------


def test_a_known_number_is_answered_with_its_stored_result_and_nothing_is_executed() -> None:
    bank = Bank()
    request = bank.request(ORDER)
    first, again = bank.reply(request), bank.reply(request)
    assert first.raw == again.raw
    told = bank.codec.outcome(ORDER, again)
    assert isinstance(told, Accepted)
    assert told.final
    assert isinstance(told.result, PaymentReceipt)
    assert told.result.client_ref == REFERENCE
    assert bank.book.moved == 1
    # The bank looks at the number alone: another payment of it gets the first one's result.
    other = attrs.evolve(ORDER, amount=Cny(1))
    assert bank.ask(other) == Unclear(
        "MISMATCH", "the bank's payment of this TRNUID has another amount"
    )
    assert bank.book.moved == 1


def test_a_number_that_never_arrived_is_executed_when_it_comes() -> None:
    bank = Bank(silent_before_booking=1.0)
    request = bank.request(ORDER)
    assert HOST.open(bank.profile).receive_data(request) == []
    assert bank.state() is PaymentState.NO_RECORD
    bank.chance.clear()
    bank.reply(request)
    assert bank.state() is PaymentState.SUCCEEDED
    assert bank.book.moved == 1


def test_a_payment_that_fails_is_refused_by_its_state_again_and_again() -> None:
    bank = Bank()
    poor = attrs.evolve(ORDER, amount=OPENING + Cny(1))
    for _ in range(2):
        assert bank.ask(poor) == Rejected("FAIL", "not enough money")
    assert bank.state(attrs.evolve(STATUS, order=poor)) is PaymentState.REJECTED
    assert bank.book.moved == 0


def test_a_name_that_is_not_the_accounts_is_refused_before_there_is_an_order() -> None:
    bank = Bank()
    wrong = attrs.evolve(HOME, payee=Payee(SISTER, "别人的公司"))
    answer = bank.reply(bank.request(wrong))
    assert bank.codec.outcome(wrong, answer) == Rejected("2002", "账号与核心户名不符")
    assert isinstance(answer.content, Message)
    assert "XFERRS" not in answer.content.body
    assert bank.state() is PaymentState.NO_RECORD
    assert isinstance(bank.ask(HOME), Accepted)


def test_a_statement_has_pages_of_a_hundred_lines() -> None:
    bank = Bank()
    assert statement_of(bank) == ([], 1), "6421"
    assert bank.reply(bank.request(STATEMENT)).code == "6421"
    for number in range(2 * ROWS_PER_PAGE + 1):
        order = attrs.evolve(ORDER, amount=Cny(100 + number))
        bank.ask(order, ClientRef(f"F{number:06d}"))
    entries, pages = statement_of(bank)
    assert [one.amount.fen for one in entries] == [100 + n for n in range(2 * ROWS_PER_PAGE + 1)]
    assert pages == 3
    assert isinstance(bank.ask(attrs.evolve(STATEMENT, cursor="4")), Accepted), "behind the end"


def test_what_comes_back_is_a_negative_line_and_a_refund_of_the_payments_own_number() -> None:
    bank = Bank(returned=1.0)
    told = bank.ask(ORDER)
    assert isinstance(told, Accepted)
    assert isinstance(told.result, PaymentReceipt)
    bank.clock.moment += dt.timedelta(minutes=2)
    entries, _ = statement_of(bank)
    assert [(one.direction, one.reversal) for one in entries] == [
        (Direction.DEBIT, False),
        (Direction.CREDIT, True),
    ]
    assert {one.bank_ref for one in entries} == {told.result.bank_ref}
    payment = Payment(
        REFERENCE, PAYER, ORDER.payee.account, ORDER.amount, NOW, told.result.bank_ref
    )
    returns = Returns.among(entries)
    assert returns.find(payment) == Found(entries[1], "its reference on a line that takes it back")
    assert returns.find(attrs.evolve(payment, bank_ref="other")) == Absent()
    assert isinstance(find_payment(payment, entries, ()), Found)
    # The bank has no state for it.
    assert bank.state() is PaymentState.SUCCEEDED
    span: dict[str, Value] = {"DTSTART": f"{DAY}", "DTEND": f"{DAY}", "PAGE": "1"}
    refunds = bank.lines(span, SELTYPE="3").content
    assert isinstance(refunds, Message)
    [line] = rows(part(refunds.body, "SCUSTSTMTRS", "TRANLIST"), "STMTTRN")
    assert (text(line, "TRNTYPE"), text(line, "TRNAMT")) == ("DEBIT", "-1000.50")


def test_a_statement_can_be_of_one_side_or_without_lines() -> None:
    bank = Bank()
    bank.ask(ORDER)
    span: dict[str, Value] = {"DTSTART": f"{DAY}", "DTEND": f"{DAY}", "PAGE": "1"}
    assert bank.lines({**span, "TRNTYPE": "0"}).code == "0"
    assert bank.lines({**span, "TRNTYPE": "1"}).code == "6421"
    body: Fields = {"TRNUID": "Q", "SCUSTSTMTRQ": {"ACCTFROM": {"ACCTID": PAYER}}}
    alone = bank.raw("SCUSTSTMTTRN", body)
    assert isinstance(alone.content, Message)
    told = part(alone.content.body, "SCUSTSTMTRS")
    assert "TRANLIST" not in told
    assert text(told, "LEDGERBAL", "BALAMT") == str(OPENING - ORDER.amount)


def test_the_balance_is_the_books() -> None:
    bank = Bank()
    bank.ask(ORDER)
    found = bank.ask(BALANCE)
    assert isinstance(found, Accepted)
    assert getattr(found.result, "available", None) == OPENING - ORDER.amount
    assert bank.book.total() == OPENING


# -- faults ---------------------------------------------------------------------------------------


def test_pending_is_told_for_a_quarter_of_an_hour_and_then_what_the_book_has() -> None:
    bank = Bank(pending=1.0)
    assert bank.ask(ORDER) == Unclear("PENDING", "指令状态未知")
    assert bank.book.moved == 1
    bank.clock.moment += dt.timedelta(seconds=PENDING_SECONDS - 1)
    assert bank.state() is PaymentState.UNKNOWN
    bank.clock.moment += dt.timedelta(seconds=1)
    assert bank.state() is PaymentState.SUCCEEDED


def test_a_numeric_state_proves_nothing_and_the_query_tells() -> None:
    bank = Bank(odd_state=1.0)
    assert bank.ask(ORDER) == Unclear("50006", "主机处理异常")
    assert bank.book.moved == 1
    assert bank.state() is PaymentState.SUCCEEDED


def test_a_payment_that_is_there_and_not_found() -> None:
    bank = Bank(not_found=1.0)
    bank.ask(ORDER)
    assert bank.state() is PaymentState.NO_RECORD
    bank.clock.moment += dt.timedelta(seconds=HIDDEN_SECONDS_MAX)
    assert bank.state() is PaymentState.SUCCEEDED, "by now it is found"


@pytest.mark.parametrize("operation", [ORDER, STATUS, BALANCE, STATEMENT])
def test_a_refused_sign_on_has_no_second_part_and_does_nothing(operation: Operation) -> None:
    bank = Bank(sign_on_refused=1.0)
    answer = bank.reply(bank.request(operation))
    assert answer.content == attrs.evolve(answer.content, trade="SON", body={})
    assert bank.codec.locks_out(answer)
    found = bank.codec.outcome(operation, answer)
    assert isinstance(found, Rejected)
    assert found.why is Refusal.PERMISSION
    assert bank.book.payments == {}


@pytest.mark.parametrize(
    ("head", "code"),
    [({"USERID": ""}, "2000"), ({"USERPASS": ""}, "15500"), ({"USERPASS": "x" * 31}, "15500")],
)
def test_a_sign_on_is_checked(head: dict[str, str], code: str) -> None:
    answer = Bank().raw("CURRACCTQUERYTRN", {"TRNUID": "Q", "RQBODY": {"ACCTID": PAYER}}, **head)
    assert (answer.code, answer.trade) == (code, "SON")


@pytest.mark.parametrize(
    ("fault", "booked"),
    [
        ("silent_before_booking", 0),
        ("close_before_booking", 0),
        ("exit_before_booking", 0),
        ("silent_after_booking", 1),
        ("close_after_booking", 1),
        ("exit_after_booking", 1),
    ],
)
def test_faults_without_an_answer(fault: str, booked: int) -> None:
    bank = Bank(**{fault: 1.0})
    answers = HOST.open(bank.profile).receive_data(bank.request(ORDER))
    assert not any(one.data for one in answers)
    how = fault.partition("_")[0]
    assert [(one.close, one.exit) for one in answers] == {
        "silent": [],
        "close": [(True, False)],
        "exit": [(False, True)],
    }[how]
    assert bank.book.moved == booked


def test_landed_late_throttled_and_unsure() -> None:
    bank = Bank(landed=1.0)
    told = bank.ask(ORDER)
    assert isinstance(told, Accepted)
    assert (told.code, told.final) == ("WAIT_FOR_AUDIT", False)
    assert bank.state() is PaymentState.PROCESSING
    bank = Bank(throttled=1.0)
    found = bank.ask(BALANCE)
    assert isinstance(found, Rejected)
    assert found.why is Refusal.THROTTLED
    bank = Bank(unknown_after_booking=1.0)
    assert bank.ask(ORDER) == Unclear("SIM9", "与主机通讯超时")
    assert bank.state() is PaymentState.SUCCEEDED
    bank = Bank(delayed=1.0)
    [answer] = HOST.open(bank.profile).receive_data(bank.request(BALANCE))
    assert answer.delay_s > 0


# -- what it checks -------------------------------------------------------------------------------


def order_body(**changes: Any) -> dict[str, Any]:
    """Return the nodes of the sample's transfer, some of XFERINFO changed (None: left out)."""
    message = decode(SAMPLES["transfer_request"].data)
    info = {**part(message.body, "XFERRQ", "XFERINFO"), **changes}
    kept = {name: value for name, value in info.items() if value is not None}
    return {"TRNUID": REFERENCE, "XFERRQ": {"XFERINFO": kept}}


def payee(**changes: str | None) -> dict[str, Any]:
    message = decode(SAMPLES["transfer_request"].data)
    told = {**part(message.body, "XFERRQ", "XFERINFO", "ACCTTO"), **changes}
    return {name: value for name, value in told.items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"TRNAMT": "0.00"},
        {"TRNAMT": "-1.00"},
        {"TRNAMT": "12.5"},
        {"TRNAMT": None},
        {"PURPOSE": ""},
        {"ACCTFROM": {"ACCTID": ""}},
        {"ACCTTO": payee(BANKDESC="")},
        {"ACCTTO": payee(BANKDESC="兴业银行深圳分行")},
        {"ACCTTO": payee(**{"@INTERBANK": "X"})},
        {"ACCTTO": payee(**{"@LOCAL": None})},
        {"ACCTTO": payee(NAME="")},
        {"ACCTTO": payee(ACCTID="账号")},
        {"ACCTTO": None},
    ],
)
def test_a_payment_is_checked_before_it_is_booked(changes: dict[str, Any]) -> None:
    bank = Bank()
    assert bank.raw("XFERTRN", order_body(**changes)).code == "SIM1"
    assert bank.book.payments == {}


def test_an_empty_optional_node_is_refused_where_the_bank_refuses_it() -> None:
    bank = Bank()
    info = order_body()["XFERRQ"]["XFERINFO"]
    ends = {name: info[name] for name in ("PURPOSE", "MEMO")}
    begins = {name: value for name, value in info.items() if name not in ends}
    for bad in (
        {**begins, "PMTMODE": "", **ends},
        {**begins, "PMTMODE": "FAST", **ends},
        {**begins, "PURPOSE": "x", "DTDUE": "", "MEMO": ""},
    ):
        body: dict[str, Any] = {"TRNUID": REFERENCE, "XFERRQ": {"XFERINFO": bad}}
        assert bank.raw("XFERTRN", body).code == "SIM1"
    big = {**begins, "TRNAMT": "50000.01", "PMTMODE": "SUPER", **ends}
    body = {"TRNUID": REFERENCE, "XFERRQ": {"XFERINFO": big}}
    assert bank.raw("XFERTRN", body).code == "SIM1"
    body = {"TRNUID": REFERENCE, "XFERRQ": {"XFERINFO": {**big, "TRNAMT": "50000.00"}}}
    assert bank.raw("XFERTRN", body).code == "0"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<CHEQUENUM></CHEQUENUM><TRNAMT>1000.50</TRNAMT>", "<TRNAMT>1.00</TRNAMT><CHEQUENUM/>"),
        ("<CID>9999000001</CID><USERID>fepuser</USERID>", "<USERID>u</USERID><CID>1</CID>"),
        ("<PURPOSE>", "<NEWNODE/><PURPOSE>"),
        ("<PURPOSE>", "<MEMO>a</MEMO><PURPOSE>"),
        ("货款", "货&amp;款"),
        ("货款", "货&lt;款"),
        ("RQ", "RS"),
        ("<FOX>", "<FOX><!DOCTYPE a>"),
        ("FOX>", "BAR>"),
    ],
)
def test_a_message_that_is_not_as_the_document_wants_it_is_no_message(
    before: str, after: str
) -> None:
    bank = Bank()
    xml = SAMPLES["transfer_request"].xml
    assert before in xml
    data = xml.replace(before, after).encode("gbk")
    assert bank.reply(request_bytes("h:1", "/", data, TYPE)).code == "HTTP400"
    good = SAMPLES["transfer_request"].data
    assert bank.reply(request_bytes("h:1", "/", good, "text/xml")).code == "HTTP400"
    assert bank.book.payments == {}
    assert bank.reply(request_bytes("h:1", "/", good, TYPE)).code == "0"


@pytest.mark.parametrize(
    "span",
    [
        {"DTSTART": "2026-01-04", "DTEND": "2026-01-05", "PAGE": "1"},
        {"DTSTART": "2026-01-05", "DTEND": "2026-01-04", "PAGE": "1"},
        {"DTSTART": "20260105x", "DTEND": "2026-01-05", "PAGE": "1"},
        {"DTSTART": "2026-01-05", "DTEND": "2026-01-05", "PAGE": "0"},
        {"DTSTART": "2026-01-05", "DTEND": "2026-01-05", "PAGE": "-1"},
        {"DTSTART": "2026-01-05", "DTEND": "2026-01-05"},
    ],
)
def test_a_statements_span_is_checked(span: dict[str, Value]) -> None:
    assert Bank().lines(span).code == "SIM1"


def test_unknown_accounts_and_trades_are_refused() -> None:
    bank = Bank()
    stranger = AccountNumber("1")
    body: Fields = {"TRNUID": "Q", "RQBODY": {"ACCTID": stranger}}
    assert bank.raw("CURRACCTQUERYTRN", body).code == "SIM1"
    assert bank.raw("NOSUCHTRN", {"TRNUID": "Q"}).code == "SIM1"
    assert bank.raw("XFERINQTRN", {"TRNUID": "Q", "XFERINQRQ": {"CLIENTREF": ""}}).code == "SIM1"


def test_past_days_are_told_in_a_span() -> None:
    bank = Bank()
    bank.ask(ORDER)
    bank.clock.moment += dt.timedelta(days=3)
    last = BusinessDate(DAY + dt.timedelta(days=2))
    told = bank.lines({"DTSTART": f"{DAY}", "DTEND": f"{last}", "PAGE": "1"})
    assert told.code == "0"


@given(data=st.data())
def test_any_bytes_are_answered_or_hung_up_on(data: st.DataObject) -> None:
    bank = Bank()
    good = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))].data
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    raw = bytearray(good)
    for _ in range(rng.choice((1, 2, 9))):
        at = rng.randrange(len(raw))
        if rng.random() < 0.5:
            raw[at] = rng.randrange(256)
        else:
            del raw[at : at + rng.randrange(1, 40)]
    connection = HOST.open(bank.profile)
    assert connection.receive_data(request_bytes("h:1", "/", bytes(raw), TYPE)) is not None
    HOST.open(bank.profile).receive_data(data.draw(st.binary(max_size=200)))
    assert bank.book.total() == OPENING


def test_the_samples_of_the_reference_work_at_the_bank() -> None:
    bank = Bank()
    for name in ("probe", "balance_request", "transfer_request", "status_request"):
        assert bank.reply(request_bytes("h:1", "/", SAMPLES[name].data, TYPE)).code == "0"
    assert body_of(bank.request(ORDER)) == SAMPLES["transfer_request"].data
