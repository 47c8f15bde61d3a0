"""Counts of what the lanes did since the process began, for screens and the page of metrics. Pure.

What the state of the queue tells at any moment is not counted here: how many wait, and how long.
"""

from __future__ import annotations

from enum import StrEnum

from fep.domain.histogram import REQUEST_SECONDS, TASK_SECONDS, Histogram
from fep.domain.ids import BankName, TaskId
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    BatchQuery,
    Kind,
    Lookup,
    Operation,
    ReturnedQuery,
    StatementQuery,
)
from fep.tasks.state import State


class Exchange(StrEnum):
    """How a request to a bank ended; whether the answer says yes is another matter."""

    ANSWERED = "answered"
    NO_ANSWER = "no_answer"
    """The time for it passed."""
    LOST = "lost"
    """The connection ended after the first byte."""
    NOT_SENT = "not_sent"


class Figures:
    """Owned by the task service; they outlive a bank's lane."""

    def __init__(self) -> None:
        self.admitted = 0
        self.ended: dict[tuple[BankName, Kind, State], Histogram] = {}
        """Seconds from submission to the end."""
        self.exchanges: dict[tuple[BankName, str, Exchange], Histogram] = {}
        """Seconds of requests, by what was asked."""

    def note_end(self, bank: BankName, kind: Kind, state: State, seconds: float) -> None:
        """Count a task that is at its end; one that comes back later counts a second time."""
        key = bank, kind, state
        found = self.ended.get(key)
        if found is None:
            found = self.ended[key] = Histogram(TASK_SECONDS)
        found.observe(max(seconds, 0.0))

    def note_exchange(
        self, bank: BankName, asked: str, how: Exchange, seconds: float, task: TaskId | None
    ) -> None:
        """Count a request to a bank."""
        key = bank, asked, how
        found = self.exchanges.get(key)
        if found is None:
            found = self.exchanges[key] = Histogram(REQUEST_SECONDS)
        found.observe(seconds, task or "")

    def ended_of(self, bank: BankName) -> int:
        """Return how many tasks of a bank came to their end."""
        return sum(one.count for key, one in self.ended.items() if key[0] == bank)


def asked_by(operation: Operation | Lookup | BatchQuery) -> str:
    """Return the kind of task that asks a bank so; a payment's own is its task's kind."""
    match operation:
        case BalanceQuery():
            return Kind.BALANCE.value
        case StatementQuery():
            return Kind.STATEMENT.value
        case ReturnedQuery():
            return Kind.RETURNED_PAYMENTS.value
        case BankCodeQuery():
            return Kind.BANK_CODE_LOOKUP.value
        case _:
            return Kind.TRANSFER_STATUS.value
