from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi import ADAPTER
from bank_adapters.pingan_b2bi.replies import Meaning, meaning
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.card import Codes
from fep.domain.ids import ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Direction,
    Operation,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
    StatementQuery,
)
from tests.bank_adapters.pingan_b2bi.samples import (
    INSIDE,
    LINES,
    ORDER,
    PACKETS,
    PAYEE,
    PAYEE_NAME,
    PAYER,
    QUERY,
    REF,
    TODAY,
    answer,
    codec,
    leaves,
    reply_to,
    result,
)

ASK = BalanceQuery(PAYER)
CODES = ADAPTER.card.codes
TRADES: dict[str, Operation] = {"4004": ORDER, "4001": ASK, "4005": QUERY, "4013": LINES}
OPERATIONS = list(TRADES.values())


def outcome(operation: Operation, data: bytes) -> Outcome:
    return codec().outcome(operation, reply_to(data))


def taken(operation: Operation, data: bytes) -> Accepted:
    found = outcome(operation, data)
    assert isinstance(found, Accepted), found
    return found


# --- the document's packets


def test_an_interbank_payment_is_accepted_and_not_final() -> None:
    found = taken(ORDER, PACKETS["4004 answer"])
    wanted = PaymentReceipt(REF, ORDER.amount, "9900002601050000000001", fee=Cny(400))
    assert found == Accepted(wanted, "000000", "交易受理成功", final=False)


def test_a_balance_is_read() -> None:
    found = taken(ASK, PACKETS["4001 answer"])
    wanted = Balance(
        account=PAYER,
        available=Cny(125000037),
        book=Cny(125000037),
        as_of=dt.datetime(2026, 1, 5, 1, 1, tzinfo=dt.UTC),
        held=Cny(0),
        status="A",
    )
    assert (found.result, found.final) == (wanted, True)


def test_a_payment_that_succeeded_is_read() -> None:
    found = taken(QUERY, PACKETS["4005 answer"])
    assert found.result == PaymentStatus(
        PaymentState.SUCCEEDED,
        "20",
        "000000:转账交易成功; 交易成功",
        "9900002601050000000001",
        TODAY,
        Cny(400),
    )


def test_a_statement_is_read_and_its_fee_row_marked() -> None:
    found = taken(LINES, PACKETS["4013 answer"])
    payment = StatementEntry(
        bank_ref="9900002601050000000001",
        booked_at=dt.datetime(2026, 1, 5, 1, 2, 2, tzinfo=dt.UTC),
        direction=Direction.DEBIT,
        amount=Cny(100050),
        counterparty_account=PAYEE,
        counterparty_name=PAYEE_NAME,
        purpose="货款",
    )
    fee = attrs.evolve(
        payment,
        amount=Cny(400),
        counterparty_account="",
        counterparty_name="",
        purpose="",
        fee=True,
    )
    assert found.result == Statement((payment, fee), cursor="")


def test_the_documents_errors_mean_what_it_says() -> None:
    errors: dict[str, tuple[Operation, Outcome]] = {
        "4004 error GW3002 (bank)": (ORDER, Unclear("GW3002", "通讯故障")),
        "4001 error AFE003 (local front end)": (
            ASK,
            Unclear("AFE003", "通讯异常-发送报文至后台服务"),
        ),
        "4013 error YQ9971 (bank)": (
            LINES,
            Rejected("YQ9971", "交易请求频率过高,请稍后再试", Refusal.THROTTLED),
        ),
        "4004 error MA4045 (bank)": (ORDER, Unclear("MA4045", "重复的第三方流水号或凭证号")),
    }
    for name, (operation, wanted) in errors.items():
        assert outcome(operation, PACKETS[name]) == wanted


# --- codes by the card


REFUSED: dict[Meaning, object] = {
    Meaning.REFUSED: Refusal.BUSINESS,
    Meaning.PERMISSION: Refusal.PERMISSION,
    Meaning.THROTTLED: Refusal.THROTTLED,
}
NO_RECORD: dict[str, object] = {
    "4001": Refusal.BUSINESS,
    "4004": Unclear,
    "4005": PaymentState.NO_RECORD,
    "4013": Statement,
}


def expected(kind: Meaning, trade: str) -> object:
    if kind is Meaning.NO_RECORD:
        return NO_RECORD[trade]
    if kind is Meaning.THROTTLED and trade == "4004":
        return Unclear
    return REFUSED.get(kind, Unclear)


CASES = [
    (kind, code)
    for kind in Meaning
    if kind is not Meaning.OK
    for code in sorted(getattr(CODES, kind.value))
]


def seen(found: Outcome) -> object:
    match found:
        case Rejected():
            return found.why
        case Accepted(result=PaymentStatus() as status):
            return status.state
        case Accepted():
            return type(found.result)
        case _:
            return type(found)


@pytest.mark.parametrize("trade", TRADES)
@pytest.mark.parametrize(("kind", "code"), CASES, ids=[code for _, code in CASES])
def test_every_code_of_the_card_means_what_its_list_says(
    kind: Meaning, code: str, trade: str
) -> None:
    operation = TRADES[trade]
    assert meaning(CODES, code) is kind
    found = outcome(operation, answer(trade, code))
    assert seen(found) == expected(kind, trade)
    assert found.code == code


DOCUMENT = {
    Meaning.OK: "000000",
    Meaning.UNCLEAR: "GW3002 AFE004 E00006 YQ9999 EBLN00 EB1051 SE3001 AFE001 AFE002 E00007 E00008"
    " YQ9976 YQ9989 ERR957 AFE003 MA9112 SC6011 E00001 E90004",
    Meaning.DUPLICATE: "MA4045 YQ9962",
    Meaning.NO_RECORD: "MA0103 YQ9996 ES0200 ERR020",
    Meaning.THROTTLED: "YQ9971",
    Meaning.REFUSED: "YQ9982 2778 YQ9993 YQ0000 CD5250 YQ9984 YQ9974 YQ9975 YQ9978 YQ9977"
    " YQ9966 YQ9969",
    Meaning.PERMISSION: "YQ9990 YQ9986 YQ9983 YQ9988 YQ9981 YQ9980 YQ9985 YQ9963 YQ9964",
}


def test_the_cards_codes_are_those_of_the_document() -> None:
    assert {kind: getattr(CODES, kind.value) for kind in Meaning} == {
        kind: frozenset(codes.split()) for kind, codes in DOCUMENT.items()
    }


@given(st.text("ABCDEFGHQYEM0123456789", max_size=6), st.sampled_from(OPERATIONS))
def test_a_code_that_is_not_on_the_card_is_unclear(code: str, operation: Operation) -> None:
    if not any(code in getattr(CODES, kind.value) for kind in Meaning):
        assert isinstance(outcome(operation, answer("4004", code)), Unclear)


def test_a_code_in_two_lists_is_unclear() -> None:
    both = Codes(ok=frozenset({"000000"}), refused=frozenset({"000000"}))
    assert meaning(both, "000000") is Meaning.UNCLEAR


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", ["000000", "YQ9982", "MA0103"])
def test_a_body_that_is_not_xml_is_unclear_whatever_the_code(
    operation: Operation, code: str
) -> None:
    found = outcome(operation, answer("4004", code, "<Result>"))
    assert isinstance(found, Unclear)
    assert found.code == code


@pytest.mark.parametrize("trade", TRADES)
def test_good_code_without_body_is_unclear_where_something_had_to_be_said(trade: str) -> None:
    found = outcome(TRADES[trade], answer(trade))
    if trade == "4005":
        assert seen(found) is PaymentState.UNKNOWN
    else:
        assert isinstance(found, Unclear)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_answer_to_another_trade_is_unclear(operation: Operation) -> None:
    found = outcome(operation, answer("S001", xml=result(ThirdVoucher=REF, EndFlag="Y")))
    assert isinstance(found, Unclear)
    assert found.code == "REPLY_MISMATCH"


# --- 4004


def paid(**members: str) -> bytes:
    given = {"ThirdVoucher": REF, "FrontLogNo": "1" * 22, "TranAmount": "1000.5", "UnionFlag": "1"}
    done = {"hostFlowNo": "2" * 22, "hostTxDate": "20260105"}
    return answer("4004", xml=result(**given | done | members))


def test_a_payment_inside_the_bank_is_final() -> None:
    found = taken(INSIDE, paid())
    assert found.final
    assert found.result == PaymentReceipt(REF, ORDER.amount, "1" * 22, booked_on=TODAY)


@pytest.mark.parametrize("members", [{"hostFlowNo": ""}, {"UnionFlag": "0"}])
def test_a_payment_inside_the_bank_that_landed_is_not_final(members: dict[str, str]) -> None:
    assert not taken(INSIDE, paid(**members)).final


def test_an_interbank_payment_is_never_final() -> None:
    assert not taken(ORDER, paid()).final


@pytest.mark.parametrize(
    "members",
    [{"TranAmount": "1000.51"}, {"TranAmount": "x"}, {"ThirdVoucher": ""}],
)
def test_a_receipt_that_contradicts_the_order_is_unclear(members: dict[str, str]) -> None:
    assert isinstance(outcome(INSIDE, paid(**members)), Unclear)


def test_an_element_that_says_two_things_makes_a_payment_unclear() -> None:
    twice = result(leaves(hostFlowNo="1") + leaves(hostFlowNo="2"), ThirdVoucher=REF)
    assert isinstance(outcome(INSIDE, answer("4004", xml=twice)), Unclear)


def test_a_strange_fee_changes_nothing() -> None:
    found = taken(INSIDE, paid(Fee1="free"))
    assert found.final
    assert isinstance(found.result, PaymentReceipt)
    assert found.result.fee is None


# --- 4005


def state(**members: str) -> object:
    return seen(outcome(QUERY, answer("4005", xml=result(OrigThirdVoucher=REF, **members))))


@pytest.mark.parametrize(
    ("stt", "back", "wanted"),
    [
        ("20", "0", PaymentState.SUCCEEDED),
        ("20", "", PaymentState.SUCCEEDED),
        ("30", "0", PaymentState.REJECTED),
        ("11", "0", PaymentState.PROCESSING),
        ("40", "0", PaymentState.PROCESSING),
        ("99", "0", PaymentState.UNKNOWN),
        ("21", "0", PaymentState.UNKNOWN),
        ("", "", PaymentState.UNKNOWN),
        ("20", "1", PaymentState.RETURNED),
        ("30", "1", PaymentState.RETURNED),
    ],
)
def test_stt_and_is_back_say_the_state(stt: str, back: str, wanted: PaymentState) -> None:
    assert state(Stt=stt, IsBack=back) is wanted


def test_the_text_decides_nothing() -> None:
    assert state(Stt="11", Yhcljg="000000:转账交易成功") is PaymentState.PROCESSING
    assert state(Stt="20", Yhcljg="MA9112:转账失败") is PaymentState.SUCCEEDED


@pytest.mark.parametrize("members", [{"OrigThirdVoucher": "OTHER"}, {"TranAmount": "1.00"}])
def test_the_state_of_another_payment_is_unclear(members: dict[str, str]) -> None:
    found = outcome(QUERY, answer("4005", xml=result(**{"Stt": "20"} | members)))
    assert isinstance(found, Unclear)
    assert found.code == "REPLY_MISMATCH"


def test_two_different_states_are_unclear() -> None:
    twice = result(leaves(Stt="20") + leaves(Stt="30"), OrigThirdVoucher=REF)
    assert isinstance(outcome(QUERY, answer("4005", xml=twice)), Unclear)


def test_a_day_that_is_no_day_is_left_out() -> None:
    xml = result(OrigThirdVoucher=REF, Stt="20", AccountDate="00010100")
    found = taken(QUERY, answer("4005", xml=xml)).result
    assert isinstance(found, PaymentStatus)
    assert found.booked_on is None


# --- 4001

MONEY = {"Account": PAYER, "CcyCode": "RMB", "Balance": "12", "TotalAmount": "13.5"}


def test_a_balance_may_lack_what_may_be_empty() -> None:
    found = taken(ASK, answer("4001", xml=result(**MONEY))).result
    assert isinstance(found, Balance)
    assert (found.available, found.book, found.held) == (Cny(1200), Cny(1350), None)


@pytest.mark.parametrize(
    "members",
    [{"Account": "1"}, {"CcyCode": "USD"}, {"Balance": ""}, {"TotalAmount": "NaN"}],
)
def test_a_balance_of_something_else_is_unclear(members: dict[str, str]) -> None:
    assert isinstance(outcome(ASK, answer("4001", xml=result(**MONEY | members))), Unclear)


@pytest.mark.parametrize("date", ["00010101", "20261301", "        "])
def test_a_balance_without_a_time_is_unclear(date: str) -> None:
    assert isinstance(outcome(ASK, answer("4001", xml=result(**MONEY), date=date)), Unclear)


# --- 4008 and 4013

ROW = {
    "AcctDate": "20260104",
    "TxTime": "235959",
    "BussSeqNo": "77",
    "CcyCode": "RMB",
    "TranAmount": "5.00",
    "DcFlag": "C",
    "OutAcctNo": "42",
    "OutAcctName": "云阶示例贸易有限公司",
    "InAcctNo": PAYER,
}


def page(rows: int = 1, row: dict[str, str] | None = None, **members: str) -> bytes:
    given = {"AcctNo": PAYER, "EndFlag": "Y", "PageNo": "1", "PageSize": "30"} | members
    lists = f"<list>{leaves(**ROW | (row or {}))}</list>" * rows
    cells = {"cont_flag": members["cont_flag"]} if "cont_flag" in members else {}
    return answer("4013", xml=result(lists, **given), **cells)


def entries(data: bytes) -> tuple[StatementEntry, ...]:
    found = taken(LINES, data).result
    assert isinstance(found, Statement)
    return found.entries


def test_a_credit_comes_from_the_paying_side() -> None:
    (entry,) = entries(page())
    assert (entry.direction, entry.counterparty_account) == (Direction.CREDIT, "42")
    assert entry.booked_at == dt.datetime(2026, 1, 4, 15, 59, 59, tzinfo=dt.UTC)
    assert entry.balance_after is None


def test_a_negative_row_takes_an_earlier_one_back() -> None:
    (entry,) = entries(page(row={"TranAmount": "-5.00", "DcFlag": "D"}))
    assert (entry.amount, entry.reversal) == (Cny(500), True)
    # Money comes in: who adds the lines up is right only so.
    assert entry.direction is Direction.CREDIT


def test_the_old_versions_end_flag_is_read() -> None:
    assert len(entries(page(EndFlag="", IsEnded="Y"))) == 1


def test_pages_go_on_from_the_cursor_until_the_end() -> None:
    first = taken(LINES, page(EndFlag="N", PageSize="50")).result
    assert isinstance(first, Statement)
    assert first.cursor == "4013/20260105/2/50/0/0"
    following = attrs.evolve(LINES, cursor=first.cursor)
    assert isinstance(outcome(following, page()), Unclear)
    last = taken(following, page(PageNo="2")).result
    assert isinstance(last, Statement)
    assert last.cursor == ""


@pytest.mark.parametrize(
    "data",
    [
        page(row={"CcyCode": "USD"}),
        page(row={"DcFlag": "X"}),
        page(row={"TranAmount": ""}),
        page(row={"AcctDate": "2026010"}),
        page(row={"AcctDate": ""}),
        page(PageRecCount="2"),
        page(PageRecCount="two"),
        page(AcctNo="1"),
        page(EndFlag=""),
        page(rows=0, EndFlag="N"),
        page(PageSize="many"),
    ],
)
def test_a_page_that_is_not_whole_is_unclear(data: bytes) -> None:
    """A row that is lost in reading would be taken for a payment that never happened."""
    assert isinstance(outcome(LINES, data), Unclear)


def test_the_last_page_allowed_is_the_last() -> None:
    query = attrs.evolve(LINES, cursor="4013/20260105/10000/30/0/0")
    assert isinstance(outcome(query, page(EndFlag="N", PageNo="10000")), Unclear)


def test_a_foreign_cursor_is_unclear_and_raises_nothing() -> None:
    query = attrs.evolve(LINES, cursor="page 2")
    assert isinstance(outcome(query, page()), Unclear)


def test_todays_trade_is_read() -> None:
    row = {
        "TranTime1": "090202",
        "BussSeqNo": "7",
        "SendAccount": PAYER,
        "TxAmount": "3",
        "AcctAccount": "42",
        "AcctName": "云阶示例贸易有限公司",
        "TxType": "D",
        "AbstractStr": "FEE",
        "Notes": "手续费",
        "Balance": "1.00",
    }
    members = {"PageNo": "0", "TranDate": "20260105", "EndFlag": "N", "JournalNo": "9"}
    xml = result(f"<list>{leaves(**row)}</list>", LogCount="11", **members)
    found = taken(LINES, answer("4008", xml=xml)).result
    assert isinstance(found, Statement)
    assert found.cursor == "4008/20260105/1/0/9/11"
    (entry,) = found.entries
    wanted = dt.datetime(2026, 1, 5, 1, 2, 2, tzinfo=dt.UTC)
    assert (entry.booked_at, entry.amount, entry.fee) == (wanted, Cny(300), True)
    assert (entry.counterparty_account, entry.balance_after) == ("42", Cny(100))
    stamped = answer("4008", xml=xml.replace("090202", "20260105090202"))
    again = taken(LINES, stamped).result
    assert isinstance(again, Statement)
    assert again.entries[0].booked_at == wanted
    wrong = answer("4008", xml=xml.replace("<JournalNo>9<", "<JournalNo>/<"))
    assert isinstance(outcome(LINES, wrong), Unclear)


# --- never raises

TEXT = st.one_of(
    st.sampled_from(["", "20", "Y", "N", "RMB", "D", "C", "1", REF, PAYER, "5.00", "20260105"]),
    st.text(st.characters(codec="gb18030", exclude_characters="<>&"), max_size=12),
)
TAGS = st.sampled_from(
    [
        "ThirdVoucher",
        "OrigThirdVoucher",
        "TranAmount",
        "hostFlowNo",
        "UnionFlag",
        "Stt",
        "IsBack",
        "AccountDate",
        "Fee",
        "EndFlag",
        "PageNo",
        "PageSize",
        "PageRecCount",
        "JournalNo",
        "LogCount",
        "TranDate",
        "TranTime1",
        "AcctDate",
        "TxTime",
        "DcFlag",
        "TxType",
        "TxAmount",
        "CcyCode",
        "Account",
        "AcctNo",
        "Balance",
        "TotalAmount",
        "HoldBalance",
    ]
)
LEAF = st.tuples(TAGS, TEXT).map(lambda leaf: f"<{leaf[0]}>{leaf[1]}</{leaf[0]}>")
INNER = st.lists(
    st.one_of(LEAF, st.lists(LEAF, max_size=6).map(lambda row: f"<list>{''.join(row)}</list>")),
    max_size=12,
)
QUERIES: list[Operation] = [
    *OPERATIONS,
    INSIDE,
    StatementQuery(PAYER, TODAY, TODAY, "4008/20260105/1/0/9/11"),
    StatementQuery(PAYER, TODAY, TODAY, "nonsense"),
]


@given(
    st.sampled_from(QUERIES),
    st.sampled_from(["4001", "4004", "4005", "4008", "4013", "S001", ""]),
    INNER,
    st.sampled_from(["000000", "MA0103", "YQ9971", ""]),
    st.text("0123456789 x", min_size=8, max_size=8),
)
def test_no_answer_makes_outcome_raise(
    operation: Operation, trade: str, inner: list[str], code: str, date: str
) -> None:
    found = outcome(operation, answer(trade, code, result("".join(inner)), date=date))
    assert isinstance(found, Accepted | Rejected | Unclear)


@pytest.mark.parametrize("content", [None, 1, "x", object()])
def test_a_content_that_is_not_ours_is_unclear(content: object) -> None:
    reply = Reply("1", "4004", "000000", "", b"", content)
    assert isinstance(codec().outcome(ORDER, reply), Unclear)


def test_a_blank_code_is_unclear_with_a_code_of_ours() -> None:
    assert outcome(ORDER, answer("4004", "")) == Unclear("BAD_REPLY", "说明")


def test_the_reference_of_a_receipt_is_the_banks_echo() -> None:
    found = taken(ORDER, paid(ThirdVoucher="OTHER")).result
    assert isinstance(found, PaymentReceipt)
    assert found.client_ref == ClientRef("OTHER")
