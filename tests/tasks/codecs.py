"""Banks that answer otherwise than the simulated ones: a real codec with other outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs

from fep.adapters.api import Accepted, BankCodec, Outcome, Refusal, Rejected, Reply, Unclear
from fep.domain.order import (
    Operation,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementQuery,
    StatusQuery,
)
from tests.tasks.bench import Codec

Change = Callable[[Operation, Reply, Outcome], Outcome]


class _Changed:
    def __init__(self, inner: BankCodec, change: Change) -> None:
        self._inner = inner
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        return self._change(operation, reply, self._inner.outcome(operation, reply))


def changed(change: Change) -> Codec:
    """Return what makes a codec whose outcomes are changed."""
    return lambda inner: cast("BankCodec", _Changed(inner, change))


def mute(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
    """A bank whose status query never tells anything."""
    return Unclear("MUTE", "") if isinstance(operation, StatusQuery) else outcome


def nameless(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
    """A bank whose statement bears no references."""
    match outcome:
        case Accepted(result=Statement(entries=entries, cursor=cursor)):
            bare = tuple(attrs.evolve(one, bank_ref="", client_ref="") for one in entries)
            return attrs.evolve(outcome, result=Statement(bare, cursor))
        case _:
            return outcome


def no_statements(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
    """A bank that does not let this enterprise have statements."""
    if isinstance(operation, StatementQuery):
        return Rejected("YQ9990", "not enabled", Refusal.PERMISSION)
    return outcome


def says(*states: PaymentState) -> Change:
    """A bank whose status query says these things in turn, the last for ever."""
    left = list(states)

    def change(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        if not isinstance(operation, StatusQuery):
            return outcome
        return Accepted(PaymentStatus(left.pop(0) if len(left) > 1 else left[0]))

    return change
