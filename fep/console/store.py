"""What the pages read from the store beside the protocol's methods: pictures, bodies, balances."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
import orjson
import sqlalchemy as sa

from fep.domain.clock import from_text, to_text
from fep.domain.order import Kind
from fep.store.schema import payment, resolution, task, task_event
from fep.tasks.state import Event, State

EVENTS_LOOKED_AT: Final = 6000
"""The newest, for how long banks take."""
PAYMENTS_LOOKED_AT: Final = 200_000
"""The newest, for today's flows."""
BALANCES_LOOKED_AT: Final = 4000
"""The newest answers of each bank."""
LATENCIES_MAX: Final = 500
"""Of each bank, the newest."""
FLOWS_MAX: Final = 2000
BODIES_AT_ONCE: Final = 500

_ANSWERS: Final = (Event.BANK_DONE.value, Event.BANK_REFUSED.value, Event.BANK_ACCEPTED.value)


@attrs.frozen
class Flow:
    """What went today from a bank's accounts to one account."""

    bank: str
    payee: str
    fen: int
    payments: int


@attrs.frozen
class Balance:
    """What a bank last said of an account."""

    available: str
    book: str
    held: str
    as_of: str
    task_id: str


def latencies(connection: sa.Connection) -> dict[str, list[float]]:
    """Return by bank how many seconds its newest answers took, newest first."""
    last = connection.execute(sa.select(sa.func.max(task_event.c.seq))).scalar() or 0
    query = (
        sa.select(task_event.c.task_seq, task_event.c.event, task_event.c.at)
        .where(
            task_event.c.seq > last - EVENTS_LOOKED_AT,
            task_event.c.event.in_([Event.SEND_BEGUN.value, *_ANSWERS]),
        )
        .order_by(task_event.c.seq)
    )
    begun: dict[int, str] = {}
    took: list[tuple[int, float]] = []
    for seq, event, at in connection.execute(query):
        if event == Event.SEND_BEGUN.value:
            begun[seq] = at
        elif (since := begun.pop(seq, None)) is not None:
            took.append((seq, (from_text(at) - from_text(since)).total_seconds()))
    banks = _banks_of(connection, [seq for seq, _ in took])
    found: dict[str, list[float]] = {}
    for seq, seconds in reversed(took):
        of_bank = found.setdefault(banks.get(seq, "?"), [])
        if len(of_bank) < LATENCIES_MAX:
            of_bank.append(seconds)
    return found


def _banks_of(connection: sa.Connection, seqs: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for at in range(0, len(seqs), BODIES_AT_ONCE):
        some = task.c.seq.in_(seqs[at : at + BODIES_AT_ONCE])
        rows = connection.execute(sa.select(task.c.seq, task.c.bank).where(some))
        found |= {row[0]: row[1] for row in rows}
    return found


def flows(connection: sa.Connection, since: dt.datetime) -> list[Flow]:
    """Return what payments moved since a moment, the largest first."""
    last = connection.execute(sa.select(sa.func.max(payment.c.task_seq))).scalar() or 0
    total = sa.func.sum(payment.c.amount_fen)
    query = (
        sa.select(payment.c.bank, payment.c.payee, total, sa.func.count())
        .join(task, task.c.seq == payment.c.task_seq)
        .where(
            payment.c.task_seq > last - PAYMENTS_LOOKED_AT,
            payment.c.sent_at >= to_text(since),
            task.c.state == State.SUCCEEDED.value,
        )
        .group_by(payment.c.bank, payment.c.payee)
        .order_by(total.desc())
        .limit(FLOWS_MAX)
    )
    return [Flow(row[0], row[1], int(row[2]), row[3]) for row in connection.execute(query)]


def bodies(connection: sa.Connection, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the parameters of tasks, of those whose body is here."""
    wanted = list(ids)
    found: dict[str, dict[str, Any]] = {}
    for at in range(0, len(wanted), BODIES_AT_ONCE):
        query = sa.select(task.c.task_id, task.c.body).where(
            task.c.task_id.in_(wanted[at : at + BODIES_AT_ONCE]), task.c.body.is_not(None)
        )
        for task_id, body in connection.execute(query):
            found[task_id] = orjson.loads(body)["params"]
    return found


def proposal(connection: sa.Connection, task_id: str) -> dict[str, str] | None:
    """Return what a person proposed for a task, None when nobody did."""
    query = (
        sa.select(resolution)
        .join(task, task.c.seq == resolution.c.task_seq)
        .where(task.c.task_id == task_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return {
        "outcome": row.outcome,
        "evidence": row.evidence,
        "by": row.proposed_by,
        "at": row.proposed_at,
    }


def balances(connection: sa.Connection, banks: Iterable[str]) -> dict[str, Balance]:
    """Return by account what its bank last said, as far as that is not long ago."""
    found: dict[str, Balance] = {}
    for bank in banks:
        query = (
            sa.select(task.c.task_id, task.c.result)
            .where(
                task.c.bank == bank,
                task.c.state == State.SUCCEEDED.value,
                task.c.kind == Kind.BALANCE.value,
                task.c.result.is_not(None),
            )
            .order_by(task.c.seq.desc())
            .limit(BALANCES_LOOKED_AT)
        )
        for task_id, result in connection.execute(query):
            said = orjson.loads(result)
            account = str(said.get("account", ""))
            if account not in found:
                found[account] = Balance(
                    str(said.get("available", "")),
                    str(said.get("book", "")),
                    str(said.get("held", "")),
                    str(said.get("as_of", "")),
                    task_id,
                )
    return found
