"""What a client is told of the end of a task, from the bank's words."""

from __future__ import annotations

import datetime as dt

import pytest

from fep.adapters.api import Accepted
from fep.domain.ids import BankName, ClientName, TaskId
from fep.domain.order import Kind, PaymentState, PaymentStatus
from fep.tasks.result import end_columns
from fep.tasks.state import Event, State
from fep.tasks.task import Task

pytestmark = pytest.mark.req("FEP-25")

NOW = dt.datetime(2026, 3, 2, 2, 0, tzinfo=dt.UTC)
REFUSED = PaymentStatus(PaymentState.REJECTED, "30", "MA9112: the payee's name differs")
BARE = PaymentStatus(PaymentState.SUCCEEDED)


@pytest.mark.parametrize(
    ("status", "event", "told"),
    [
        (REFUSED, Event.PROVED_REFUSED, (REFUSED.code, REFUSED.message)),
        (BARE, Event.PROVED_DONE, ("000000", "交易受理成功")),
    ],
)
def test_a_payments_end_is_told_in_the_words_for_it_and_not_for_the_question(
    status: PaymentStatus, event: Event, told: tuple[str, str]
) -> None:
    """The question was answered well: its "000000" beside "rejected" would be of no use."""
    task = Task(
        1, TaskId("T1"), ClientName("erp"), BankName("one"), Kind.TRANSFER, 5, State.UNKNOWN,
        NOW, NOW,
    )  # fmt: skip
    columns = end_columns(task, [event], Accepted(status, "000000", "交易受理成功"))
    assert (columns["bank_code"], columns["bank_message"]) == told
