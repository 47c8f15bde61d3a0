"""What the end of a task is told as: the columns of its row, from the bank's words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import orjson

from fep.adapters.api import Accepted, Outcome
from fep.domain.order import (
    BatchOrder,
    BatchReceipt,
    BatchStatus,
    OperationResult,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    batch_sums,
    result_value,
)
from fep.tasks.evidence import ended_rows
from fep.tasks.state import Event
from fep.tasks.task import Task

REFUSALS: Final = frozenset({Event.BANK_REFUSED, Event.PROVED_REFUSED})


def end_columns(task: Task, events: Collection[Event], outcome: Outcome) -> dict[str, Any]:
    """Return what a task's row says of its end.

    Args:
        task: the task.
        events: what brings it to its end.
        outcome: what the adapter made of the bank's answer.
    """
    columns: dict[str, Any] = {"bank_code": outcome.code, "bank_message": outcome.message}
    if not isinstance(outcome, Accepted):
        return columns
    said = outcome.result
    if isinstance(said, PaymentStatus) and (said.code or said.message):
        # What the bank says of the payment, not of the question for it.
        columns = {"bank_code": said.code, "bank_message": said.message}
    if isinstance(said, BatchStatus) or not REFUSALS.intersection(events):
        # A receipt beside "rejected" would be read as one; a batch says of each row what it is.
        columns["result"] = orjson.dumps(result_value(_told(task, said)))
    if (reference := bank_ref_of(said)) and task.moves_money:
        columns["bank_ref"] = reference
    return columns


def with_returned(
    task: Task, told: Mapping[str, Any], back: Mapping[int, PaymentStatus]
) -> tuple[dict[str, Any], list[int]]:
    """Return a batch's result with rows that came back, and which of them are new in it.

    Args:
        task: the batch.
        told: its result so far, empty where two persons brought it to its end.
        back: rows that came back.
    """
    assert isinstance(task.body, BatchOrder)
    assert task.client_ref is not None
    rows = {row["row"]: row for row in told.get("rows", ())}
    returned = PaymentState.RETURNED.value
    new = [at for at in sorted(back) if rows.get(at, {}).get("state") != returned]
    receipt = BatchReceipt(task.client_ref, task.body, {at: back[at] for at in new})
    value: dict[str, Any] = result_value(receipt)
    for row in value["rows"]:
        rows[row["row"]] = rows.get(row["row"], {}) | row
    every = [rows[at] for at in sorted(rows)]
    return value | dict(told) | {"rows": every} | batch_sums(every), new


def bank_ref_of(result: OperationResult) -> str:
    """Return the bank's reference of a payment, empty for none."""
    return result.bank_ref if isinstance(result, PaymentReceipt | PaymentStatus) else ""


def _told(task: Task, result: OperationResult) -> OperationResult:
    """Return what the client is told: a payment's end is a receipt, however it was proved."""
    if isinstance(result, BatchStatus) and isinstance(task.body, BatchOrder):
        assert task.client_ref is not None
        rows = ended_rows(result.rows)
        return BatchReceipt(task.client_ref, task.body, rows, task.bank_ref)
    if isinstance(result, PaymentStatus) and isinstance(task.body, PaymentOrder):
        assert task.client_ref is not None
        return PaymentReceipt(
            client_ref=task.client_ref,
            amount=task.body.amount,
            bank_ref=result.bank_ref or task.bank_ref,
            booked_on=result.booked_on,
            fee=result.fee,
            returned_on=result.returned_on,
        )
    return result
