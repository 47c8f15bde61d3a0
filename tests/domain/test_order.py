"""A body that exists is valid: any JSON value gives a body or a reason, and nothing else."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, ClientRef, TaskId
from fep.domain.money import ZERO, Cny
from fep.domain.order import (
    MOVES_MONEY,
    NAME_CHARS_MAX,
    PURPOSE_CHARS_MAX,
    STATEMENT_DAYS_MAX,
    Balance,
    BalanceQuery,
    BankCodeQuery,
    BatchOrder,
    Body,
    Direction,
    Kind,
    Payee,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    ReturnedQuery,
    Statement,
    StatementEntry,
    StatementQuery,
    Sweep,
    TransferStatusRequest,
    Urgency,
    body_params,
    parse_body,
    result_value,
    total,
)

NOON = dt.datetime(2026, 1, 5, 4, tzinfo=dt.UTC)
PARSED = (
    Kind.BALANCE,
    Kind.TRANSFER,
    Kind.BATCH_TRANSFER,
    Kind.TRANSFER_STATUS,
    Kind.STATEMENT,
    Kind.RETURNED_PAYMENTS,
    Kind.BANK_CODE_LOOKUP,
    Kind.POOL_SWEEP,
)
ERROR_CHARS_MAX = 200
"""A reason goes into a result line and the store: it must not be as long as what was sent."""


def transfer(**changes: Any) -> dict[str, Any]:
    params: dict[str, Any] = {
        "payer": {"account": "99000000000101"},
        "payee": {"account": "99000000000202", "name": "云阶示例贸易有限公司"},
        "amount": "0.29",
        "currency": "CNY",
    }
    params.update(changes)
    return {name: value for name, value in params.items() if value is not ...}


def payee(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"account": "99000000000202", "name": "云阶示例贸易有限公司"}
    given.update(changes)
    return transfer(payee={name: value for name, value in given.items() if value is not ...})


def refused(kind: Kind, params: Any) -> str:
    with pytest.raises(BodyError) as caught:
        parse_body(kind, params)
    assert len(str(caught.value)) <= ERROR_CHARS_MAX
    str(caught.value).encode()  # it is stored and sent: no half character may be in it
    return str(caught.value)


# -- what is taken ---------------------------------------------------------------------------------

ACCOUNTS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z-]{0,34}", fullmatch=True).map(AccountNumber)
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "), max_size=30
)
NAMES = TEXTS.filter(lambda text: bool(text.strip()))
DAYS = st.dates(dt.date(2000, 1, 1), dt.date(2100, 1, 1)).map(BusinessDate)


@st.composite
def payments(draw: st.DrawFn) -> PaymentOrder:
    payer, other = draw(st.lists(ACCOUNTS, min_size=2, max_size=2, unique=True))
    return PaymentOrder(
        payer=payer,
        payee=Payee(
            account=other,
            name=draw(NAMES),
            bank_code=draw(st.just("") | st.from_regex(r"[0-9]{12}", fullmatch=True)),
            bank_name=draw(TEXTS),
            kind=draw(st.sampled_from(["corporate", "personal"])),
        ),
        amount=Cny(draw(st.integers(1, 10**15 - 1))),
        purpose=draw(TEXTS),
        urgency=draw(st.sampled_from(Urgency)),
    )


@st.composite
def sweeps(draw: st.DrawFn) -> PaymentOrder:
    payer, payee = draw(st.lists(ACCOUNTS, min_size=2, max_size=2, unique=True))
    amount = Cny(draw(st.integers(1, 10**15 - 1)))
    return PaymentOrder(payer, Payee(payee, ""), amount, sweep=draw(st.sampled_from(Sweep)))


@st.composite
def statements(draw: st.DrawFn) -> StatementQuery:
    first = draw(DAYS)
    span = dt.timedelta(days=draw(st.integers(0, STATEMENT_DAYS_MAX - 1)))
    return StatementQuery(draw(ACCOUNTS), first, BusinessDate(first + span))


BODIES: dict[Kind, st.SearchStrategy[Body]] = {
    Kind.BALANCE: ACCOUNTS.map(BalanceQuery),
    Kind.TRANSFER: payments(),
    Kind.BATCH_TRANSFER: payments().map(lambda one: BatchOrder((one, one))),
    Kind.TRANSFER_STATUS: st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}", fullmatch=True).map(
        lambda text: TransferStatusRequest(TaskId(text))
    ),
    Kind.STATEMENT: statements(),
    Kind.RETURNED_PAYMENTS: st.builds(
        lambda account, first, days: ReturnedQuery(
            account, first, BusinessDate(first + dt.timedelta(days=days))
        ),
        ACCOUNTS,
        DAYS,
        st.integers(0, 29),
    ),
    Kind.POOL_SWEEP: sweeps(),
    Kind.BANK_CODE_LOOKUP: st.builds(
        BankCodeQuery, st.from_regex(r"[0-9]{3}", fullmatch=True), TEXTS
    ),
}


@given(data=st.data(), kind=st.sampled_from(PARSED))
def test_a_printed_body_is_parsed_back_equal(data: st.DataObject, kind: Kind) -> None:
    body = data.draw(BODIES[kind])
    printed = body_params(body)
    assert parse_body(kind, printed) == body
    assert parse_body(kind, json.loads(json.dumps(printed))) == body


# -- what is refused -------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "payer",
        "payee",
        "amount",
        "currency",
        "account",
        "name",
        "kind",
        "bank_code",
        "bank_name",
        "purpose",
        "urgency",
        "task_id",
        "from",
        "to",
        "CNY",
        "0.29",
        "2026-01-05",
        "normal",
        "99000000000101",
        "99000000000202",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(st.characters(), max_size=4), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(kind=st.sampled_from(Kind), params=JSON)
@example(kind=Kind.TRANSFER, params={"\ud800" * 500: 1})
@example(kind=Kind.BALANCE, params={"x" * 100_000: 1})
def test_any_value_gives_a_body_or_a_reason(kind: Kind, params: Any) -> None:
    try:
        body = parse_body(kind, params)
    except BodyError:
        refused(kind, params)
    else:
        assert parse_body(kind, body_params(body)) == body


@given(data=st.data(), junk=JSON)
def test_a_transfer_with_one_member_spoilt_is_valid_or_refused(
    data: st.DataObject, junk: Any
) -> None:
    params = body_params(data.draw(payments()))
    where = data.draw(st.sampled_from(["payer", "payee", "amount", "currency", "purpose", "x"]))
    inner = params.get(where)
    if isinstance(inner, dict) and data.draw(st.booleans()):
        inner[data.draw(st.sampled_from(["account", "name", "kind", "bank_code", "y"]))] = junk
    else:
        params[where] = junk
    try:
        body = parse_body(Kind.TRANSFER, params)
    except BodyError:
        return
    assert isinstance(body, PaymentOrder)
    assert body.amount > ZERO
    assert body.payer != body.payee.account


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in PARSED])
def test_a_kind_without_parameters_yet_is_refused(kind: Kind) -> None:
    assert kind.value in refused(kind, {})


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (None, "params must be an object"),
        ([], "params must be an object"),
        (transfer(payer=...), "params.payer is missing"),
        (transfer(amount=...), "params.amount is missing"),
        (transfer(currency=...), "params.currency is missing"),
        (transfer(fee="0.01"), "params.fee is not a known member"),
        (transfer(payer="99000000000101"), "payer must be an object"),
        (transfer(payer={"account": "1", "name": "x"}), "payer.name is not a known member"),
        (transfer(payer={"account": 1}), "payer.account must be printable text"),
        (payee(account=...), "payee.account is missing"),
        (payee(name=...), "payee.name is missing"),
        (payee(city="深圳"), "payee.city is not a known member"),
        (payee(account="99000000000101"), "payer.account and payee.account are the same"),
        (transfer(currency="USD"), "currency must be 'CNY'"),
        (transfer(currency=None), "currency must be 'CNY'"),
        (transfer(urgency="now"), "urgency must be"),
        (transfer(urgency=["normal"]), "urgency must be"),
        (payee(kind="private"), "payee.kind must be"),
        (payee(kind={}), "payee.kind must be"),
    ],
)
def test_a_transfer_names_what_is_wrong(params: Any, reason: str) -> None:
    assert refused(Kind.TRANSFER, params).startswith(reason)


@pytest.mark.parametrize(
    "amount",
    [
        *[
            "0.00",
            "-0.00",
            "-0.01",
            "-1.00",
            "1.234",
            "1",
            "1.0",
            "1e2",
            "NaN",
            "１.00",
            "1,000.00",
            "10000000000000.00",
        ],
        *("", "0" * 20 + ".00", 1, 1.5, None, True, ["1.00"], {"yuan": 1}),
    ],
)
def test_an_amount_that_is_not_one_is_refused(amount: Any) -> None:
    assert refused(Kind.TRANSFER, transfer(amount=amount)).startswith("amount")


def test_the_smallest_and_the_largest_amount_are_taken() -> None:
    for text in ("0.01", "9999999999999.99"):
        body = parse_body(Kind.TRANSFER, transfer(amount=text))
        assert isinstance(body, PaymentOrder)
        assert str(body.amount) == text


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "a\rb",
        "a\tb",
        "a\x00b",
        "a\x1bb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "a\u202eb",
        "a\ud800b",
        "\udfff",
        "\ufeffa",
        1,
        None,
        ["a"],
    ],
)
def test_control_characters_and_half_characters_are_refused(text: Any) -> None:
    for params in (
        transfer(purpose=text),
        payee(name=text),
        payee(bank_name=text),
        payee(bank_code=text),
        payee(account=text),
        transfer(payer={"account": text}),
    ):
        refused(Kind.TRANSFER, params)


def test_texts_have_a_limit() -> None:
    parse_body(Kind.TRANSFER, transfer(purpose="资" * PURPOSE_CHARS_MAX))
    parse_body(Kind.TRANSFER, payee(name="名" * NAME_CHARS_MAX, bank_name="行" * NAME_CHARS_MAX))
    assert "at most 30" in refused(Kind.TRANSFER, transfer(purpose="资" * (PURPOSE_CHARS_MAX + 1)))
    for member in ("name", "bank_name"):
        reason = refused(Kind.TRANSFER, payee(**{member: "名" * (NAME_CHARS_MAX + 1)}))
        assert reason.startswith(f"payee.{member} ")
    for blank in ("", " ", "   "):
        assert refused(Kind.TRANSFER, payee(name=blank)) == "payee.name must not be empty"


@pytest.mark.parametrize("code", ["1", "30758400799", "3075840079988", "30758400799a", "３" * 12])
def test_a_bank_code_is_twelve_digits_or_left_out(code: str) -> None:
    assert refused(Kind.TRANSFER, payee(bank_code=code)).startswith("payee.bank_code")
    parse_body(Kind.TRANSFER, payee(bank_code=""))


@pytest.mark.parametrize(
    "day",
    [
        *["2026-1-5", "20260105", "2026-W02-1", "2026-02-30", "05.01.2026", "2026-01-05T00:00:00"],
        *("", "２０２６-01-05", " 2026-01-05", "2026-01-05\n", 20260105, None),
    ],
)
def test_a_day_is_written_one_way(day: Any) -> None:
    params = {"account": "1", "from": day, "to": "2026-01-05"}
    assert refused(Kind.STATEMENT, params).startswith("from must be")


def test_a_statement_has_an_order_and_a_span() -> None:
    def ask(first: str, last: str) -> Any:
        return {"account": "1", "from": first, "to": last}

    assert isinstance(parse_body(Kind.STATEMENT, ask("2026-01-05", "2026-01-05")), StatementQuery)
    parse_body(Kind.STATEMENT, ask("2026-01-01", "2026-04-10"))
    assert "100 days" in refused(Kind.STATEMENT, ask("2026-01-01", "2026-04-11"))
    assert "before" in refused(Kind.STATEMENT, ask("2026-01-05", "2026-01-04"))


SWEEP = {
    "parent": {"account": "99000000000101"},
    "child": {"account": "99000000000202"},
    "direction": "up",
    "amount": "0.29",
    "currency": "CNY",
}


def test_a_sweep_moves_from_child_to_parent_or_back() -> None:
    up, down = (parse_body(Kind.POOL_SWEEP, SWEEP | {"direction": way}) for way in ("up", "down"))
    assert isinstance(up, PaymentOrder)
    assert isinstance(down, PaymentOrder)
    assert (up.payer, up.payee.account) == ("99000000000202", "99000000000101")
    assert (down.payer, down.payee.account) == (up.payee.account, up.payer)
    assert up.amount == down.amount == Cny(29)
    bare = {name: value for name, value in SWEEP.items() if name != "currency"}
    assert parse_body(Kind.POOL_SWEEP, bare) == up


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"direction": "sideways"}, "direction must be"),
        ({"direction": ["up"]}, "direction must be"),
        ({"child": {"account": "99000000000101"}}, "the same"),
        ({"child": {"account": "99000000000202", "name": "x"}}, r"child\.name is not"),
        ({"parent": "99000000000101"}, "parent must be an object"),
        ({"currency": "USD"}, "currency"),
        ({"amount": "0.00"}, "amount"),
        ({"purpose": "x"}, r"params\.purpose"),
    ],
)
def test_what_is_no_sweep_is_refused(changes: dict[str, Any], says: str) -> None:
    assert re.search(says, refused(Kind.POOL_SWEEP, SWEEP | changes))


def test_a_status_asks_for_a_task_id() -> None:
    assert parse_body(Kind.TRANSFER_STATUS, {"task_id": "T-1"}) == TransferStatusRequest(
        TaskId("T-1")
    )
    for bad in ("", "a b", "9" * 65, 7):
        refused(Kind.TRANSFER_STATUS, {"task_id": bad})


def test_what_would_pay_twice_is_told_apart() -> None:
    assert {Kind.TRANSFER, Kind.BATCH_TRANSFER, Kind.POOL_SWEEP} == MOVES_MONEY


# -- results ---------------------------------------------------------------------------------------


def test_results_are_told_in_the_protocol_s_words() -> None:
    balance = Balance(AccountNumber("1"), Cny(29), Cny(-1), NOON)
    assert result_value(balance) == {
        "account": "1",
        "currency": "CNY",
        "available": "0.29",
        "book": "-0.01",
        "as_of": "2026-01-05T04:00:00.000+00:00",
    }
    full = Balance(AccountNumber("1"), Cny(29), Cny(30), NOON, held=Cny(1), status="A")
    assert result_value(full).items() >= {"held": "0.01", "status": "A"}.items()
    receipt = PaymentReceipt(ClientRef("F1"), Cny(29), "B1", fee=Cny(5))
    assert result_value(receipt) == {
        "bank_ref": "B1",
        "client_ref": "F1",
        "amount": "0.29",
        "currency": "CNY",
        "fee": "0.05",
    }
    booked = PaymentReceipt(ClientRef("F1"), Cny(1), booked_on=BusinessDate(dt.date(2026, 1, 5)))
    assert result_value(booked)["booked_on"] == "2026-01-05"


def test_a_returned_payment_says_so_and_no_other_does() -> None:
    for state in PaymentState:
        value = result_value(PaymentStatus(state, bank_ref="B1"))
        assert value["state"] == state.value
        assert value["bank_ref"] == "B1"
        assert value.get("returned", False) is (state is PaymentState.RETURNED)
    assert "bank_ref" not in result_value(PaymentStatus(PaymentState.UNKNOWN))


def the_line(value: dict[str, Any]) -> dict[str, Any]:
    (line,) = value["entries"]
    assert isinstance(line, dict)
    return line


def test_a_statement_is_complete_only_at_its_end() -> None:
    entry = StatementEntry("B1", NOON, Direction.DEBIT, Cny(29), "2", "云阶示例贸易有限公司")
    value = result_value(Statement((entry,)))
    assert value["complete"] is True
    line = the_line(value)
    assert line == {
        "bank_ref": "B1",
        "booked_at": "2026-01-05T04:00:00.000+00:00",
        "direction": "debit",
        "amount": "0.29",
        "counterparty": {"account": "2", "name": "云阶示例贸易有限公司"},
        "purpose": "",
    }
    rich = StatementEntry(
        "B1",
        NOON,
        Direction.CREDIT,
        Cny(1),
        client_ref="F1",
        balance_after=Cny(-5),
        fee=True,
        reversal=True,
    )
    value = result_value(Statement((rich,), cursor="2"))
    assert value["complete"] is False
    line = the_line(value)
    expected = {"client_ref": "F1", "balance_after": "-0.05", "fee": True, "reversal": True}
    assert line.items() >= expected.items()


def test_a_total_of_nothing_is_zero() -> None:
    assert total([]) == ZERO
    assert total([Cny(1), Cny(-3)]) == Cny(-2)
