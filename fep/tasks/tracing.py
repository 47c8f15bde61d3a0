"""What the queue tells of a task for its trace, and who hears it when nobody does. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

import msgspec

from fep.tasks.figures import Exchange
from fep.tasks.task import Task


class Step(msgspec.Struct, frozen=True, gc=False):
    """One row of a task's chain of events."""

    at: str
    event: str
    state: str


class Tracing(Protocol):
    """Told in passing: it returns at once, never raises, and drops what it has no room for."""

    sent: int
    """Notes whose spans a receiver has taken."""
    dropped: int
    """Notes that were lost."""

    def signed(self, task: Task, code: str, seconds: float) -> None:
        """Note that its bank's slot signed, just now; a code says why it did not."""
        ...

    def asked(self, task: Task, asked: str, how: Exchange, seconds: float) -> None:
        """Note that a request to the bank ended, just now."""
        ...

    def ended(self, task: Task, bank_code: str, at: dt.datetime) -> None:
        """Note that a task is at its end, or came back after it."""
        ...


class NoTracing:
    """Nobody wants traces."""

    sent = dropped = 0

    def signed(self, task: Task, code: str, seconds: float) -> None:
        """Do nothing."""

    def asked(self, task: Task, asked: str, how: Exchange, seconds: float) -> None:
        """Do nothing."""

    def ended(self, task: Task, bank_code: str, at: dt.datetime) -> None:
        """Do nothing."""
