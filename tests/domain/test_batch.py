"""A batch that exists is of rows that are valid each; its rows' references are theirs alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.errors import BodyError
from fep.domain.ids import (
    BATCH_ROWS_MAX,
    CLIENT_REF_CHARS,
    ClientRef,
    TaskId,
    batch_refs,
    client_ref,
    is_ref_of,
    row_ref,
    short_ref,
)
from fep.domain.money import FEN_MAX, Cny
from fep.domain.order import (
    NAME_CHARS_MAX,
    PURPOSE_CHARS_MAX,
    ROW_MESSAGE_CHARS_MAX,
    BatchOrder,
    BatchReceipt,
    BatchStatus,
    Kind,
    PaymentState,
    PaymentStatus,
    body_params,
    parse_body,
    result_value,
)

PAYER = "99000000000101"
LINE_BYTES_MAX = 1024 * 1024
ROW: dict[str, Any] = {"payee": {"account": "99000000000102", "name": "云阶示例"}, "amount": "1.00"}


def batch(*rows: Any, **changes: Any) -> dict[str, Any]:
    return {"payer": {"account": PAYER}, "rows": list(rows)} | changes


def parsed(params: Any) -> BatchOrder:
    body = parse_body(Kind.BATCH_TRANSFER, params)
    assert isinstance(body, BatchOrder)
    return body


TEXTS = st.text("abc江枫", min_size=1, max_size=5)
ROWS = st.fixed_dictionaries(
    {
        "payee": st.fixed_dictionaries(
            {"account": st.text("123456789", min_size=1, max_size=13), "name": TEXTS},
            optional={"bank_code": st.just("308584000013"), "kind": st.just("personal")},
        ),
        "amount": st.integers(1, 10**9).map(lambda fen: str(Cny(fen))),
    },
    optional={"purpose": TEXTS, "urgency": st.sampled_from(["normal", "urgent"])},
)


@given(st.lists(ROWS, min_size=1, max_size=8))
def test_what_is_read_is_what_was_written(rows: list[dict[str, Any]]) -> None:
    order = parsed(batch(*rows))
    again = json.loads(json.dumps(body_params(order)))
    assert parsed(again) == order
    assert order.payer == PAYER
    assert order.amount == Cny(sum(Cny.parse(one["amount"]).fen for one in rows))
    # Each row is what a transfer of the same members is.
    for row, one in zip(order.rows, rows, strict=True):
        single = {"payer": {"account": PAYER}, "currency": "CNY", **one}
        assert parse_body(Kind.TRANSFER, single) == row


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (batch(), "rows must be a list of 1 to 500 payments"),
        (batch(rows={}), "rows must be a list"),
        (batch(*[ROW] * (BATCH_ROWS_MAX + 1)), "rows must be a list of 1 to 500"),
        (batch(ROW, currency="USD"), "currency must be 'CNY'"),
        (batch(ROW, amount="1.00"), "params.amount is not a known member"),
        (batch(ROW, 7), "rows[1] must be an object"),
        (batch(ROW, ROW | {"payer": PAYER}), "rows[1].payer is not a known member"),
        (batch(ROW, {"amount": "1.00"}), "rows[1].payee is missing"),
        (
            batch(ROW | {"payee": {"account": "?", "name": "x"}}),
            "rows[0].payee.account: an account",
        ),
        (batch(ROW | {"payee": {"account": "1", "name": " "}}), "rows[0].payee.name must not"),
        (batch(ROW | {"amount": "0.00"}), "rows[0].amount must be above 0.00"),
        (batch(ROW | {"amount": 1}), "rows[0].amount must be text in quotes"),
        (batch(ROW | {"purpose": "x" * 31}), "rows[0].purpose must be printable text"),
        (batch(ROW | {"urgency": "now"}), "rows[0].urgency must be"),
        (
            batch(ROW, ROW | {"payee": {"account": PAYER, "name": "x"}}),
            "payer.account and rows[1].payee.account are the same",
        ),
        (batch(*[ROW | {"amount": str(Cny(FEN_MAX - 1))}] * 2), "rows must come to at most"),
    ],
)
def test_what_is_wrong_is_told_with_its_row(params: Any, reason: str) -> None:
    with pytest.raises(BodyError) as caught:
        parsed(params)
    assert reason in str(caught.value)
    assert len(str(caught.value)) <= 200


@given(st.data())
def test_any_junk_in_a_row_is_a_body_or_a_reason(data: st.DataObject) -> None:
    junk = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
            max_leaves=5,
        )
    )
    where = data.draw(st.sampled_from(["payee", "amount", "purpose", "urgency", "x", None]))
    row = junk if where is None else ROW | {where: junk}
    try:
        order = parsed(batch(ROW, row))
    except BodyError:
        return
    assert all(one.amount.fen > 0 and one.payee.account != PAYER for one in order.rows)


def test_the_largest_batch_and_its_result_fit_one_line() -> None:
    name, purpose = "江" * NAME_CHARS_MAX, "款" * PURPOSE_CHARS_MAX
    payee = {"account": "9" * 35, "name": name, "bank_name": name, "bank_code": "308584000013"}
    row = {"payee": payee, "amount": "19999999999.99", "purpose": purpose, "urgency": "urgent"}
    params = batch(*[row] * BATCH_ROWS_MAX)
    assert len(json.dumps(params, ensure_ascii=False).encode()) < LINE_BYTES_MAX / 2
    status = PaymentStatus(PaymentState.REJECTED, "C" * 7, "拒" * 1000, "9" * 32, fee=Cny(1))
    reference = client_ref("E", TaskId("T"))
    rows = dict.fromkeys(range(BATCH_ROWS_MAX), status)
    value = result_value(BatchReceipt(reference, parsed(params), rows))
    assert len(json.dumps(value, ensure_ascii=False).encode()) < LINE_BYTES_MAX / 2
    assert value["rejected"] == BATCH_ROWS_MAX
    assert ROW_MESSAGE_CHARS_MAX < 1000


def test_a_result_counts_its_rows_and_what_was_paid() -> None:
    order = parsed(batch(*[ROW | {"amount": f"{yuan}.00"} for yuan in (1, 2, 4, 8)]))
    states = ("succeeded", "rejected", "returned", "succeeded")
    rows = {at: PaymentStatus(PaymentState(one)) for at, one in enumerate(states)}
    value = result_value(BatchReceipt(client_ref("E", TaskId("T")), order, rows, "R"))
    sums = ("succeeded", "rejected", "returned", "amount_succeeded", "bank_ref")
    assert [value[name] for name in sums] == [2, 1, 1, "9.00", "R"]
    told = result_value(BatchStatus(rows))["rows"]
    assert isinstance(told, list)
    assert [one["state"] for one in told] == list(states)


# -- references -------------------------------------------------------------------------------

TASKS = st.text("abcdefgh0123456789-", min_size=1, max_size=20).map(TaskId)


@given(TASKS, TASKS, st.integers(0, BATCH_ROWS_MAX - 1), st.integers(0, BATCH_ROWS_MAX - 1))
def test_a_row_s_reference_is_its_own(one: TaskId, other: TaskId, row: int, place: int) -> None:
    batch_ref, single = client_ref("E", one), client_ref("E", other)
    mine = row_ref(batch_ref, row)
    assert mine == row_ref(batch_ref, row)
    assert len(mine) == CLIENT_REF_CHARS
    assert mine.isalnum()
    assert mine.isupper()
    assert (mine == row_ref(single, place)) == ((one, row) == (other, place))
    assert mine not in {single, batch_ref, short_ref("E", other, 16)}
    refs = batch_refs(mine)
    assert refs is not None
    assert (refs[0] <= single <= refs[1]) == (one == other)
    assert is_ref_of(mine, batch_ref)
    assert is_ref_of(mine, single) == (one == other)
    assert is_ref_of(single, batch_ref) == (one == other)


@pytest.mark.parametrize("text", ["", "F" + "0" * 19, "B", "B" + "0" * 20, "2" * 20])
def test_what_is_no_row_s_reference_names_no_batch(text: str) -> None:
    assert batch_refs(text) is None
    assert is_ref_of(text, ClientRef("F" + "1" * 19)) is False
