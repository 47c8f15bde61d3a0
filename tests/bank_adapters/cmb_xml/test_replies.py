"""What the bank's answers mean."""

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cmb_xml.config import CARD
from bank_adapters.cmb_xml.messages import Block, Message, encode
from bank_adapters.cmb_xml.requests import function_of
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Unclear
from fep.adapters.card import States
from fep.adapters.meaning import payment_state
from fep.domain.clock import BusinessDate
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    Direction,
    Operation,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
)
from tests.bank_adapters.cmb_xml.samples import (
    BALANCE,
    DAY,
    ORDER,
    PAYER,
    REFERENCE,
    SAMPLES,
    SEQUENCE,
    STATEMENT,
    STATUS,
    STRANGER,
    codec,
    reply,
)

FUNCTIONS: dict[str, Operation] = {
    "GetAccInfo": BALANCE,
    "NTQRYSTY": STATUS,
    "GetTransInfo": STATEMENT,
}
OPERATIONS: list[Operation] = [ORDER, *FUNCTIONS.values()]
ALL_CODES = sorted(frozenset().union(*attrs.astuple(CARD.codes)))
ALL_STATES = sorted(frozenset().union(*attrs.astuple(CARD.states)))
TEXT = st.text(st.sampled_from("0123456789.-SFINCBDUTE+*货"), max_size=12)


def _outcome(
    operation: Operation, *rows: Block, code: str = "0", function: str | None = None
) -> Outcome:
    name = function or function_of(operation)
    info = {"FUNNAM": name, "RETCOD": code, "ERRMSG": "文本", "FEPCORRID": SEQUENCE}
    return codec().outcome(operation, reply(encode(Message(info, rows), "gb18030")))


def _paid(errcod: str, state: str = "", **more: str) -> Outcome:
    reqsts, _, flag = state.partition("+")
    fields = {"ERRCOD": errcod, "ERRTXT": "原因", "REQNBR": "0099000001", "YURREF": REFERENCE}
    return _outcome(ORDER, Block("NTQPAYRQZ", fields | {"REQSTS": reqsts, "RTNFLG": flag} | more))


def _found(state: str, **more: str) -> PaymentStatus:
    reqsts, _, flag = state.partition("+")
    fields = {"YURREF": REFERENCE, "REQSTS": reqsts, "RTNFLG": flag, "REQNBR": "0099000001"}
    return _status(_outcome(STATUS, Block("NTSTLLSTZ", fields | more)))


def _status(outcome: Outcome) -> PaymentStatus:
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, PaymentStatus)
    return outcome.result


# The samples.


def test_the_balance_sample() -> None:
    outcome = codec().outcome(BALANCE, reply(SAMPLES["balance_answer"].data))
    balance = Balance(
        account=PAYER,
        available=Cny.parse("1249000.37"),
        book=Cny.parse("1250000.37"),
        held=Cny.parse("1000.00"),
        # The sample's number, 20260105000123, is its time in Shanghai.
        as_of=dt.datetime(2026, 1, 4, 16, 1, 23, tzinfo=dt.UTC),
        status="active",
    )
    assert outcome == Accepted(balance, "0")


def test_the_payment_sample_is_taken_but_not_final() -> None:
    outcome = codec().outcome(ORDER, reply(SAMPLES["payment_answer"].data))
    receipt = PaymentReceipt(REFERENCE, ORDER.amount, "0099000001")
    assert outcome == Accepted(receipt, "NTE", final=False)


def test_the_duplicate_sample_says_nothing_of_the_first_payment() -> None:
    outcome = codec().outcome(ORDER, reply(SAMPLES["duplicate_answer"].data))
    assert outcome == Unclear("NCB4241", "业务参考号重复")


def test_the_status_sample() -> None:
    outcome = codec().outcome(STATUS, reply(SAMPLES["status_answer"].data))
    status = PaymentStatus(PaymentState.SUCCEEDED, "FIN+S", bank_ref="0099000001", booked_on=DAY)
    assert outcome == Accepted(status, "FIN+S")


def test_the_statement_sample() -> None:
    outcome = codec().outcome(STATEMENT, reply(SAMPLES["statement_answer"].data))
    entry = StatementEntry(
        bank_ref="AP990001",
        booked_at=dt.datetime(2026, 1, 5, 1, 2, 5, tzinfo=dt.UTC),
        direction=Direction.DEBIT,
        amount=Cny.parse("1000.50"),
        counterparty_account=STRANGER,
        counterparty_name="云阶示例贸易有限公司",
        client_ref=REFERENCE,
        balance_after=Cny.parse("1248999.87"),
        purpose="货款",
    )
    assert outcome == Accepted(Statement((entry,)), "0")


def test_the_error_sample_leaves_a_payment_unclear() -> None:
    outcome = codec().outcome(ORDER, reply(SAMPLES["error_answer"].data))
    assert outcome == Unclear("-1", "操作超时")


# The card.


@pytest.mark.parametrize("code", [code for code in ALL_CODES if code not in {"0", "SUC0000"}])
def test_every_code_but_zero_leaves_a_payment_unclear(code: str) -> None:
    row = Block("NTQPAYRQZ", {"ERRCOD": "SUC0000", "REQSTS": "FIN", "RTNFLG": "F"})
    assert _outcome(ORDER, row, code=code) == Unclear(code, "文本")


@pytest.mark.parametrize("code", [*ALL_CODES, "XYZ9999", ""])
def test_every_code_of_a_failed_row(code: str) -> None:
    outcome = _paid(code, "FIN+F")
    if code in CARD.codes.permission:
        assert outcome == Rejected(code, "原因", Refusal.PERMISSION)
    elif code in CARD.codes.refused:
        assert outcome == Rejected(code, "原因")
    elif code in CARD.codes.ok:
        assert outcome == Rejected("FIN+F", "原因")
    else:
        assert outcome == Unclear(code, "原因")


@pytest.mark.parametrize("code", [*ALL_CODES, "XYZ9999"])
@pytest.mark.parametrize("operation", FUNCTIONS.values(), ids=FUNCTIONS)
def test_every_code_of_a_query(operation: Operation, code: str) -> None:
    outcome = _outcome(operation, code=code)
    codes = CARD.codes
    if code in codes.throttled:
        assert outcome == Rejected(code, "文本", Refusal.THROTTLED)
    elif code in codes.permission:
        assert outcome == Rejected(code, "文本", Refusal.PERMISSION)
    elif code in codes.refused:
        assert outcome == Rejected(code, "文本", Refusal.BUSINESS)
    elif code in codes.ok:
        assert outcome.code not in {"-1", "-2"}
        assert not isinstance(outcome, Rejected)
    else:
        assert outcome == Unclear(code, "文本")


STATE_TABLE = {
    "FIN+S": PaymentState.SUCCEEDED,
    "FIN+F": PaymentState.REJECTED,
    "FIN+R": PaymentState.REJECTED,
    "FIN+C": PaymentState.REJECTED,
    "FIN+D": PaymentState.REJECTED,
    "FIN+B": PaymentState.RETURNED,
    "FIN+T": PaymentState.RETURNED,
    "FIN+U": PaymentState.PROCESSING,
    "FIN+M": PaymentState.UNKNOWN,
    "FIN+V": PaymentState.UNKNOWN,
    "WRF": PaymentState.UNKNOWN,
} | dict.fromkeys(["NTE", "BNK", "OPR", "WCF", "ACK", "APD", "AUT", "APW"], PaymentState.PROCESSING)


def test_the_table_has_the_cards_states() -> None:
    assert sorted(STATE_TABLE) == ALL_STATES


@pytest.mark.parametrize(("state", "meaning"), STATE_TABLE.items())
def test_every_state_of_a_status_row(state: str, meaning: PaymentState) -> None:
    found = _found(state)
    assert (found.state, found.code, found.bank_ref) == (meaning, state, "0099000001")


@pytest.mark.parametrize("state", ["", "FIN", "FIN+", "FIN+X", "XYZ", "SUC"])
def test_an_unlisted_state_is_unknown(state: str) -> None:
    assert _found(state).state is PaymentState.UNKNOWN
    assert isinstance(_paid("SUC0000", state), Unclear)


@pytest.mark.parametrize(("state", "meaning"), STATE_TABLE.items())
def test_every_state_of_a_payments_row(state: str, meaning: PaymentState) -> None:
    outcome = _paid("SUC0000", state)
    match meaning:
        case PaymentState.SUCCEEDED:
            assert isinstance(outcome, Accepted)
            assert outcome.final
        case PaymentState.PROCESSING:
            assert isinstance(outcome, Accepted)
            assert not outcome.final
        case PaymentState.REJECTED:
            assert outcome == Rejected(state, "原因")
        case _:
            assert outcome == Unclear(state, "原因")


@given(st.sampled_from([*ALL_STATES, ""]), st.sampled_from(sorted(CARD.codes.duplicate)))
def test_a_duplicate_is_unclear_whatever_its_state(state: str, code: str) -> None:
    assert _paid(code, state) == Unclear(code, "原因")


def test_the_result_flag_counts_only_when_finished() -> None:
    assert _found("NTE+F").state is PaymentState.PROCESSING
    outcome = _paid("SUC0000", "NTE+F")
    assert isinstance(outcome, Accepted)


@pytest.mark.parametrize("state", ["NTE", "FIN+S", "WRF"])
def test_a_refusing_code_beside_a_living_state_is_unclear(state: str) -> None:
    outcome = _paid("CSAC054", state)
    assert isinstance(outcome, Unclear)
    assert outcome.code == "CSAC054"


def test_a_refusing_code_needs_no_state() -> None:
    assert _paid("CSAB051") == Rejected("CSAB051", "原因")


def test_the_careful_reading_wins_when_a_state_is_listed_twice() -> None:
    both = frozenset({"FIN+S"})
    assert payment_state(States(final_ok=both, unknown=both), "FIN+S") is PaymentState.UNKNOWN
    assert payment_state(States(final_ok=both, final_bad=both), "FIN+S") is PaymentState.REJECTED


# Rows.


def test_a_payment_wants_exactly_one_row() -> None:
    row = Block("NTQPAYRQZ", {"ERRCOD": "SUC0000", "REQSTS": "NTE"})
    assert isinstance(_outcome(ORDER), Unclear)
    assert isinstance(_outcome(ORDER, row, row), Unclear)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_answer_to_another_function_is_unclear(operation: Operation) -> None:
    outcome = _outcome(operation, function="ListMode")
    assert isinstance(outcome, Unclear)
    assert outcome.code == "WRONG_FUNCTION"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_unreadable_frame_is_unclear(operation: Operation) -> None:
    outcome = codec().outcome(operation, reply(b"<CMBSDKPGK><INFO>"))
    assert isinstance(outcome, Unclear)
    assert outcome.code == "UNREADABLE"


def test_no_row_is_no_record() -> None:
    assert _status(_outcome(STATUS)) == PaymentStatus(PaymentState.NO_RECORD)


def test_only_rows_of_others_prove_nothing() -> None:
    for reference in ("FEP20260105000000002", ""):
        row = Block("NTSTLLSTZ", {"YURREF": reference, "REQSTS": "FIN", "RTNFLG": "F"})
        assert isinstance(_outcome(STATUS, row), Unclear)


def test_rows_of_others_do_not_count() -> None:
    other = Block("NTSTLLSTZ", {"YURREF": "X", "REQSTS": "FIN", "RTNFLG": "F"})
    ours = Block("NTSTLLSTZ", {"YURREF": REFERENCE + "  ", "REQSTS": "FIN", "RTNFLG": "S"})
    assert _status(_outcome(STATUS, other, ours)).state is PaymentState.SUCCEEDED


def test_rows_that_do_not_agree_are_unknown() -> None:
    rows = [
        Block("NTSTLLSTZ", {"YURREF": REFERENCE, "REQSTS": "FIN", "RTNFLG": flag}) for flag in "SF"
    ]
    assert _status(_outcome(STATUS, *rows)).state is PaymentState.UNKNOWN
    assert _status(_outcome(STATUS, rows[0], rows[0])).state is PaymentState.SUCCEEDED


@pytest.mark.parametrize(
    "fact",
    [{"TRSAMT": "1000.51"}, {"CRTACC": "1"}, {"DBTACC": "1"}],
    ids=lambda fact: next(iter(fact)),
)
def test_a_row_with_other_facts_is_not_our_payment(fact: dict[str, str]) -> None:
    for state in ("FIN+S", "FIN+F"):
        found = _found(state, **fact)
        assert (found.state, found.code) == (PaymentState.UNKNOWN, "MISMATCH")


def test_a_row_with_the_same_facts_is_ours_however_the_amount_is_written() -> None:
    found = _found("FIN+S", TRSAMT="1000.5", CRTACC=STRANGER, DBTACC=PAYER, OPRDAT="20260106")
    assert found.state is PaymentState.SUCCEEDED
    assert found.booked_on == BusinessDate(dt.date(2026, 1, 6))


ROW = {"ACCNBR": PAYER, "AVLBLV": "1", "ONLBLV": "2.5", "CCYNBR": "10", "STSCOD": "B"}


def test_a_balance_with_the_least_fields() -> None:
    outcome = _outcome(BALANCE, Block("NTQACINFZ", ROW), Block("NTQACINFZ", {"ACCNBR": "1"}))
    assert isinstance(outcome, Accepted)
    balance = outcome.result
    assert isinstance(balance, Balance)
    assert (balance.available, balance.book, balance.held) == (Cny(100), Cny(250), None)
    assert balance.status == "frozen"


def test_a_quota_is_no_money() -> None:
    outcome = _outcome(BALANCE, Block("NTQACINFZ", ROW | {"INTCOD": "S"}))
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, Balance)
    assert outcome.result.status == "virtual"


@pytest.mark.parametrize(
    "change",
    [{"CCYNBR": "32"}, {"AVLBLV": ""}, {"ONLBLV": "1e5"}, {"ACCNBR": "1"}, {"HLDBLV": "-"}],
)
def test_a_balance_that_can_not_be_read_is_unclear(change: dict[str, str]) -> None:
    assert isinstance(_outcome(BALANCE, Block("NTQACINFZ", ROW | change)), Unclear)


def test_a_balance_without_a_time_is_unclear() -> None:
    info = {"FUNNAM": "GetAccInfo", "RETCOD": "0", "FEPCORRID": "77"}
    answer = reply(encode(Message(info, (Block("NTQACINFZ", ROW),))))
    assert isinstance(codec().outcome(BALANCE, answer), Unclear)


LINE = {"ETYDAT": "20260105", "AMTCDR": "C", "TRSAMTC": "3", "TRSAMTD": "", "REFNBR": "R1"}


def test_a_credit_line_with_the_least_fields() -> None:
    outcome = _outcome(STATEMENT, Block("NTQTSINFZ", LINE | {"NARYUR": "退款", "RSVFLG": "*"}))
    assert isinstance(outcome, Accepted)
    entry = StatementEntry(
        bank_ref="R1",
        booked_at=dt.datetime(2026, 1, 4, 16, 0, tzinfo=dt.UTC),
        direction=Direction.CREDIT,
        amount=Cny(300),
        purpose="退款",
        reversal=True,
    )
    assert outcome.result == Statement((entry,))


def test_no_lines_is_an_empty_statement() -> None:
    assert _outcome(STATEMENT) == Accepted(Statement(()), "0", "文本")


@pytest.mark.parametrize(
    "change",
    [
        {"AMTCDR": ""},
        {"AMTCDR": "D"},
        {"TRSAMTC": "-3"},
        {"TRSAMTC": "0.00"},
        {"ETYDAT": "2026-01-05"},
        {"ETYDAT": "20260230"},
        {"ETYTIM": "250000"},
        {"ETYTIM": "9"},
        {"TRSBLV": "?"},
        {"CCYNBR": "32"},
    ],
)
def test_one_line_that_can_not_be_read_spoils_the_statement(change: dict[str, str]) -> None:
    good = Block("NTQTSINFZ", LINE)
    outcome = _outcome(STATEMENT, good, Block("NTQTSINFZ", LINE | change))
    assert isinstance(outcome, Unclear)
    assert outcome.code == "UNREADABLE"


NAMES = ["NTQPAYRQZ", "NTSTLLSTZ", "NTQACINFZ", "NTQTSINFZ"]
FIELD_NAMES = sorted({*ROW, *LINE, "ERRCOD", "REQSTS", "RTNFLG", "YURREF", "TRSAMT", "ETYTIM"})
VALUES = st.one_of(TEXT, st.sampled_from([*ALL_CODES, *ALL_STATES, REFERENCE, PAYER, "FIN"]))
ROWS = st.lists(
    st.builds(Block, st.sampled_from(NAMES), st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES)),
    max_size=3,
)


@given(st.sampled_from(OPERATIONS), ROWS, st.sampled_from([*ALL_CODES, "", "?"]))
def test_no_content_makes_the_outcome_raise(
    operation: Operation, rows: list[Block], code: str
) -> None:
    outcome = _outcome(operation, *rows, code=code)
    if operation is ORDER and code not in CARD.codes.ok:
        assert isinstance(outcome, Unclear)
