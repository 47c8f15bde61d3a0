"""What each code, state and line means; what is on no list proves nothing."""

from __future__ import annotations

import datetime as dt
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cib_fox import replies
from bank_adapters.cib_fox.config import CARD
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.meaning import payment_state
from fep.domain.clock import SHANGHAI
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    Direction,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
    Urgency,
)
from fep.wire.http import response_bytes
from tests.bank_adapters.cib_fox.samples import (
    BALANCE,
    DAY,
    ORDER,
    REFERENCE,
    SAMPLES,
    STATEMENT,
    STATUS,
    codec,
    context,
    reply,
)

OPERATIONS: dict[str, Operation] = {
    "balance_answer": BALANCE,
    "transfer_pending": ORDER,
    "status_answer": STATUS,
    "statement_answer": STATEMENT,
}
LISTED_STATES = frozenset().union(*attrs.astuple(CARD.states))
LISTED_CODES = frozenset().union(*attrs.astuple(CARD.codes))
WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", max_size=8)


def outcome(operation: Operation, answer: Reply) -> Outcome:
    return replies.outcome(CARD, operation, answer)


def changed(name: str, *changes: tuple[str, str]) -> Reply:
    """Return the reply of a sample in which texts are replaced."""
    xml = SAMPLES[name].xml
    for before, after in changes:
        assert before in xml, before
        xml = xml.replace(before, after)
    return reply(xml)


def state(name: str, code: str, *changes: tuple[str, str]) -> Outcome:
    before = {"transfer_pending": "PENDING", "status_answer": "PAYOUT"}[name]
    swap = (f"<XFERPRCCODE>{before}<", f"<XFERPRCCODE>{code}<")
    return outcome(OPERATIONS[name], changed(name, swap, *changes))


def status(code: str, *changes: tuple[str, str]) -> PaymentStatus:
    found = state("status_answer", code, *changes)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    return found.result


def trade_code(name: str, code: str) -> Reply:
    """Return the reply of a sample whose trade is answered with another CODE."""
    first, second = SAMPLES[name].xml.split("</SIGNONMSGSRSV1>")
    second = second.replace("<STATUS><CODE>0<", f"<STATUS><CODE>{code}<", 1)
    return reply(f"{first}</SIGNONMSGSRSV1>{second}")


def refused_code(code: str) -> Reply:
    return changed("transfer_refused", ("<CODE>2002<", f"<CODE>{code}<"))


# -- the samples ----------------------------------------------------------------------------------


def test_a_balance() -> None:
    found = outcome(BALANCE, reply(SAMPLES["balance_answer"].data))
    assert isinstance(found, Accepted)
    assert found.result == Balance(
        account=BALANCE.account,
        available=Cny.parse("1249000.37"),
        book=Cny.parse("1250000.37"),
        as_of=dt.datetime(2026, 1, 5, 9, 1, 1, tzinfo=SHANGHAI),
        status="active",
    )


def test_a_payment_that_the_bank_does_not_know_the_end_of() -> None:
    answer = reply(SAMPLES["transfer_pending"].data)
    assert outcome(ORDER, answer) == Unclear("PENDING", "指令状态未知")
    assert (answer.correlation, answer.trade, answer.code) == (REFERENCE, "XFERTRN", "0")
    assert replies.payment_ref(answer) == REFERENCE


def test_a_payment_that_is_done() -> None:
    found = state("transfer_pending", "PAYOUT")
    assert found == Accepted(
        PaymentReceipt(REFERENCE, ORDER.amount, "009900000001", booked_on=DAY),
        "PAYOUT",
        "指令状态未知",
    )


@pytest.mark.parametrize(
    ("amount", "interbank", "final"),
    [
        ("1000.50", 'INTERBANK="N"', False),
        ("1000.50", "", False),
        ("50000.00", 'INTERBANK="N"', False),
        ("50000.01", 'INTERBANK="N"', True),
        ("1000.50", 'INTERBANK="Y"', True),
    ],
)
def test_what_may_have_gone_in_real_time_is_asked_after_even_if_it_is_told_as_done(
    amount: str, interbank: str, final: bool
) -> None:
    urgent = attrs.evolve(ORDER, urgency=Urgency.URGENT, amount=Cny.parse(amount))
    changes = [("PENDING", "PAYOUT"), ("1000.50", amount), ('INTERBANK="N"', interbank)]
    found = outcome(urgent, changed("transfer_pending", *changes))
    assert isinstance(found, Accepted)
    assert found.final is final


def test_a_payment_that_the_banks_checks_refuse() -> None:
    answer = reply(SAMPLES["transfer_refused"].data)
    assert outcome(ORDER, answer) == Rejected("2002", "账号与核心户名不符")


def test_a_status_that_is_done() -> None:
    assert status("PAYOUT") == PaymentStatus(
        PaymentState.SUCCEEDED, "PAYOUT", "交易成功", "009900000001", DAY
    )


def test_a_statement() -> None:
    found = outcome(STATEMENT, reply(SAMPLES["statement_answer"].data))
    assert isinstance(found, Accepted)
    entry = StatementEntry(
        bank_ref="9999AAAA",
        booked_at=dt.datetime(2026, 1, 5, 9, 2, 5, tzinfo=SHANGHAI),
        direction=Direction.DEBIT,
        amount=Cny.parse("1000.50"),
        counterparty_account="990000000000303",
        counterparty_name="云阶示例贸易有限公司",
        balance_after=Cny.parse("1248999.87"),
        purpose="货款",
    )
    assert found.result == Statement((entry,))


@pytest.mark.parametrize("operation", OPERATIONS.values())
def test_a_refused_sign_on_did_nothing_and_stops_the_bank(operation: Operation) -> None:
    answer = reply(SAMPLES["sign_on_refused"].data)
    told = "登录失败，请输入正确的用户名及密码"
    assert outcome(operation, answer) == Rejected("15500", told, Refusal.PERMISSION)
    assert codec().locks_out(answer)
    assert not codec().alive(answer)
    assert replies.payment_ref(answer) == ""


def test_what_is_no_refused_sign_on_does_not_stop_the_bank() -> None:
    other = changed("sign_on_refused", ("15500", "99999"))
    assert isinstance(outcome(ORDER, other), Unclear)
    good = changed("sign_on_refused", ("15500", "0"))
    assert isinstance(outcome(ORDER, good), Unclear), "the trade is missing"
    assert codec().alive(good)
    # With a second part nobody knows what the bank did.
    both = SAMPLES["transfer_pending"].xml.replace("<CODE>0<", "<CODE>15500<", 1)
    for answer in (other, good, reply(both), trade_code("balance_answer", "15500")):
        assert not codec().locks_out(answer)
    assert isinstance(outcome(ORDER, reply(both)), Unclear)
    request = reply(SAMPLES["probe"].data)
    assert not codec().locks_out(request)
    assert not codec().alive(request)


# -- codes and states -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CARD.codes.refused))
def test_a_refusing_code_refuses_only_before_there_is_an_order(code: str) -> None:
    assert isinstance(outcome(ORDER, refused_code(code)), Rejected)
    assert isinstance(outcome(ORDER, trade_code("transfer_pending", code)), Unclear)
    assert isinstance(outcome(BALANCE, trade_code("balance_answer", code)), Rejected)


@pytest.mark.parametrize("code", sorted(CARD.codes.permission | CARD.codes.throttled))
def test_permission_and_throttling(code: str) -> None:
    found = outcome(BALANCE, trade_code("balance_answer", code))
    assert isinstance(found, Rejected)
    is_throttled = code in CARD.codes.throttled
    assert found.why is (Refusal.THROTTLED if is_throttled else Refusal.PERMISSION)
    # Of a payment both may be said after it was taken.
    assert isinstance(outcome(ORDER, refused_code(code)), Unclear)


@given(code=WORDS.filter(lambda code: code not in LISTED_CODES))
def test_a_code_on_no_list_proves_nothing(code: str) -> None:
    for name, operation in OPERATIONS.items():
        assert isinstance(outcome(operation, trade_code(name, code)), Unclear)
    assert isinstance(outcome(ORDER, refused_code(code)), Unclear)


@pytest.mark.parametrize("code", sorted(CARD.states.final_ok))
def test_final_and_good(code: str) -> None:
    found = state("transfer_pending", code)
    assert isinstance(found, Accepted)
    assert found.final
    assert status(code).state is PaymentState.SUCCEEDED


@pytest.mark.parametrize("code", sorted(CARD.states.final_bad))
def test_final_and_bad(code: str) -> None:
    assert isinstance(state("transfer_pending", code), Rejected)
    assert status(code).state is PaymentState.REJECTED


@pytest.mark.parametrize("code", sorted(CARD.states.intermediate))
def test_under_way(code: str) -> None:
    found = state("transfer_pending", code)
    assert isinstance(found, Accepted)
    assert not found.final
    assert status(code).state is PaymentState.PROCESSING


@pytest.mark.parametrize(
    "code", [*sorted(CARD.states.unknown), "1", "50006", "51027", "", "payout"]
)
def test_unknown_to_the_bank_or_to_us(code: str) -> None:
    assert isinstance(state("transfer_pending", code), Unclear)
    assert status(code).state is PaymentState.UNKNOWN


@given(code=WORDS.filter(lambda code: code not in LISTED_STATES))
def test_a_state_on_no_list_proves_nothing(code: str) -> None:
    assert isinstance(state("transfer_pending", code), Unclear)
    assert status(code).state is PaymentState.UNKNOWN


@pytest.mark.parametrize("listed", ["unknown", "intermediate", "returned", "final_bad"])
def test_of_two_meanings_the_more_careful_one_counts(listed: str) -> None:
    states = attrs.evolve(CARD.states, **{listed: frozenset({"PAYOUT"})})
    assert payment_state(states, "PAYOUT") is not PaymentState.SUCCEEDED


def test_a_bank_that_has_no_such_payment_proves_nothing_by_that() -> None:
    xml = SAMPLES["status_answer"].xml
    begin, end = xml.index("<FROM>"), xml.index("</XFERLIST>")
    none = xml[:begin] + "<FROM>-1</FROM><TO>-1</TO>" + xml[end:]
    found = outcome(STATUS, reply(none))
    assert found == Accepted(PaymentStatus(PaymentState.NO_RECORD, "-1"), "-1", "")
    assert CARD.inquiry.no_record == "never"
    for odd in (none.replace("-1<", "1<"), xml.replace("<TO>009900000001<", "<TO>-1<")):
        assert isinstance(outcome(STATUS, reply(odd)), Unclear)
    code = trade_code("status_answer", "6421")
    assert isinstance(outcome(STATUS, code), Unclear), "6421 is of statements"


# -- facts ----------------------------------------------------------------------------------------

OTHERS = [
    ("<TRNAMT>1000.50<", "<TRNAMT>1000.51<"),
    ("<TRNAMT>1000.50<", "<TRNAMT>100050<"),
    ("<ACCTID>990000000000303<", "<ACCTID>990000000000304<"),
    ("<ACCTID>999900000000000101<", "<ACCTID>999900000000000102<"),
    ("<CURSYM>RMB<", "<CURSYM>USD<"),
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_payment_of_our_reference_proves_nothing(other: tuple[str, str]) -> None:
    """A known TRNUID is answered with the stored result, whoever's payment that was."""
    for code in ("PAYOUT", "FAIL", "PROCESSING"):
        found = state("transfer_pending", code, other)
        assert isinstance(found, Unclear)
        assert found.code == "MISMATCH"
        assert status(code, other).state is PaymentState.UNKNOWN


def test_facts_that_are_not_told_are_not_compared() -> None:
    for node in ("<TRNAMT>1000.50</TRNAMT>", "<CURSYM>RMB</CURSYM>"):
        assert status("PAYOUT", (node, "")).state is PaymentState.SUCCEEDED
        same = status("PAYOUT", (node, node.replace("1000.50", "1000.5 ").replace("RMB", "01")))
        assert same.state is PaymentState.SUCCEEDED


def test_two_references_in_one_answer_belong_to_nobody() -> None:
    other = ("<CLIENTREF>FEP20260105000000001<", "<CLIENTREF>FEP20260105000000009<")
    assert replies.payment_ref(changed("transfer_pending", other)) == "FEP20260105000000009"
    without = changed("transfer_pending", ("<CLIENTREF>FEP20260105000000001</CLIENTREF>", ""))
    assert replies.payment_ref(without) == REFERENCE
    twice = "<CLIENTREF>A</CLIENTREF></XFERRS>"
    assert replies.payment_ref(changed("transfer_pending", ("</XFERRS>", twice))) == ""
    row = ("<SRVRTID>", "<CLIENTREF>OTHER</CLIENTREF><SRVRTID>")
    assert isinstance(outcome(STATUS, changed("status_answer", row)), Unclear)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("balance_answer", "<ACCTID>999900000000000101<", "<ACCTID>999900000000000102<"),
        ("balance_answer", "<CURRENCY>01<", "<CURRENCY>14<"),
        ("balance_answer", "<AVAILBAL>1249000.37<", "<AVAILBAL>1,249,000.37<"),
        ("balance_answer", "<AVAILBAL>1249000.37</AVAILBAL>", ""),
        ("balance_answer", "<BALAMT>1250000.37<", "<BALAMT>NaN<"),
        ("balance_answer", "<DTSERVER>2026-01-05 09:01:01<", "<DTSERVER>2026-01-05<"),
        ("balance_answer", "<RSBODY>", "<RSBODY><AVAILBAL>0.01</AVAILBAL>"),
        ("transfer_pending", "<XFERPRCSTS>", "<XFERPRCSTS><XFERPRCCODE>PAYOUT</XFERPRCCODE>"),
        ("transfer_pending", "<TRNAMT>1000.50<", "<TRNAMT>1e3<"),
        ("status_answer", "<XFER>", "<XFER><SRVRTID>1</SRVRTID></XFER><XFER>"),
        ("statement_answer", ' MORE="N"', ""),
        ("statement_answer", ' MORE="N"', ' MORE="X"'),
        ("statement_answer", "<ACCTID>999900000000000101<", "<ACCTID>999900000000000102<"),
        ("statement_answer", "<CURDEF>RMB<", "<CURDEF>USD<"),
        ("statement_answer", "<CURRENCY>RMB<", "<CURRENCY>USD<"),
        ("statement_answer", "<TRNTYPE>DEBIT<", "<TRNTYPE>OTHER<"),
        ("statement_answer", "<TRNAMT>1000.50<", "<TRNAMT>0.00<"),
        ("statement_answer", "<TRNAMT>1000.50<", "<TRNAMT>--1.00<"),
        ("statement_answer", "<DTACCT>2026-01-05T09:02:05<", "<DTACCT>soon<"),
        ("statement_answer", "<DTACCT>", "<TRNTYPE>CREDIT</TRNTYPE><DTACCT>"),
    ],
)
def test_one_value_that_can_not_be_read_spoils_the_answer(
    name: str, before: str, after: str
) -> None:
    found = outcome(OPERATIONS[name], changed(name, (before, after)))
    assert isinstance(found, Unclear), found


def test_an_answer_to_something_else_proves_nothing() -> None:
    for name in SAMPLES:
        for of, operation in OPERATIONS.items():
            if of != name and not (name.startswith("transfer") and operation is ORDER):
                found = outcome(operation, reply(SAMPLES[name].data))
                expected = Rejected if name == "sign_on_refused" else Unclear
                assert isinstance(found, expected), (name, of)
    assert isinstance(outcome(ORDER, reply(b"garbage")), Unclear)
    assert outcome(ORDER, reply(SAMPLES["transfer_pending"].data, 502)).code == "HTTP502"
    empty = changed("transfer_refused", ("<CODE>2002<", "<CODE>0<"))
    assert outcome(ORDER, empty).code == "NO_XFERRS"


# -- statements -----------------------------------------------------------------------------------


def lines(*changes: tuple[str, str], query: str = "") -> Statement:
    asked = attrs.evolve(STATEMENT, cursor=query)
    found = outcome(asked, changed("statement_answer", *changes))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Statement)
    return found.result


@pytest.mark.parametrize(
    ("kind", "amount", "direction", "reversal"),
    [
        ("DEBIT", "1000.50", Direction.DEBIT, False),
        ("CREDIT", "1000.50", Direction.CREDIT, False),
        ("DEBIT", "-1000.50", Direction.CREDIT, True),
        ("CREDIT", "-1000.5", Direction.DEBIT, True),
    ],
)
def test_a_negative_line_takes_an_earlier_one_back(
    kind: str, amount: str, direction: Direction, reversal: bool
) -> None:
    told = lines((">DEBIT<", f">{kind}<"), (">1000.50<", f">{amount}<"))
    [entry] = told.entries
    assert (entry.direction, entry.reversal) == (direction, reversal)
    assert entry.amount == Cny.parse("1000.50")


def test_pages_go_on_while_there_is_more() -> None:
    more = ('MORE="N"', 'MORE="Y"')
    assert lines().cursor == ""
    assert lines(more).cursor == "2"
    assert lines(more, query="2").cursor == "3"
    xml = SAMPLES["statement_answer"].xml.replace(*more)
    begin, end = xml.index("<STMTTRN>"), xml.index("</TRANLIST>")
    found = outcome(STATEMENT, reply(xml[:begin] + xml[end:]))
    assert isinstance(found, Unclear), "an empty page with more behind it never ends"


def test_no_lines_is_an_empty_statement() -> None:
    for code in sorted(CARD.codes.no_record):
        found = outcome(STATEMENT, trade_code("statement_answer", code))
        assert isinstance(found, Accepted)
        assert found.result == Statement(())


def test_a_line_without_a_server_id_has_its_row_id() -> None:
    [entry] = lines(("<SRVRTID>9999AAAA</SRVRTID>", "")).entries
    assert entry.bank_ref == "2026010599000000001000001"
    [entry] = lines(("汇款|货款", "利息")).entries
    assert entry.purpose == "利息"


# -- whatever comes -------------------------------------------------------------------------------


@given(data=st.data())
def test_any_change_of_an_answer_proves_nothing_wrong(data: st.DataObject) -> None:
    """Bytes of an answer are changed: nothing raises, and no payment is done that was not told so."""
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    raw = bytearray(SAMPLES[name].data)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(raw))
        match rng.randrange(3):
            case 0:
                raw[at] = rng.randrange(256)
            case 1:
                del raw[at : at + rng.randrange(1, 30)]
            case _:
                raw[at:at] = raw[at // 2 : at // 2 + 40]
    one = codec()
    [answer] = one.framer().receive_data(response_bytes(200, bytes(raw), "x/y"))
    one.alive(answer)
    one.locks_out(answer)
    one.payment_ref(answer)
    for operation in OPERATIONS.values():
        found = one.outcome(operation, answer)
        if isinstance(operation, PaymentOrder) and isinstance(found, Accepted):
            assert name == "transfer_pending"
            assert b">PAYOUT<" in raw or not found.final


def test_a_whole_exchange_is_correlated_by_its_number() -> None:
    one = codec()
    assert one.prepare(ORDER, context("x")).correlation == REFERENCE
    assert one.prepare(BALANCE, context("x")).correlation == "x"
    assert one.probe(context("y")).correlation == "y"
    assert reply(SAMPLES["sign_on_refused"].data).correlation == ""
