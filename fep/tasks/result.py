"""What the end of a task is told as: the columns of its row, from the bank's words. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import orjson

from fep.adapters.api import Accepted, Outcome
from fep.domain.order import (
    OperationResult,
    Order,
    PaymentReceipt,
    PaymentStatus,
    result_value,
)
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
    if isinstance(said, PaymentStatus):
        columns["bank_code"] = outcome.code or said.code
        columns["bank_message"] = outcome.message or said.message
    if not REFUSALS.intersection(events):
        # A receipt beside "rejected" would be read as one.
        columns["result"] = orjson.dumps(result_value(_told(task, said)))
    if (reference := bank_ref_of(said)) and task.moves_money:
        columns["bank_ref"] = reference
    return columns


def bank_ref_of(result: OperationResult) -> str:
    """Return the bank's reference of a payment, empty for none."""
    return result.bank_ref if isinstance(result, PaymentReceipt | PaymentStatus) else ""


def _told(task: Task, result: OperationResult) -> OperationResult:
    """Return what the client is told: a payment's end is a receipt, however it was proved."""
    if isinstance(result, PaymentStatus) and isinstance(task.body, Order):
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
