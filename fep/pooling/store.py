"""The SQL of pooling rounds: each step is on disk before anything follows from it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from fep.domain.clock import from_text, to_text
from fep.domain.ids import AccountNumber, BankName, TaskId
from fep.domain.money import Cny
from fep.pooling.plan import Item, ItemState, Round, RoundState
from fep.store.schema import pool_item, pool_round


def insert(connection: sa.Connection, new: Round) -> bool:
    """Store a new round with its items; False when its key is there already (run once only).

    The id is made of the moment alone, which a clock set back can bring again.
    """
    known = connection.execute(
        sa.select(pool_round.c.round_id).where(
            sa.or_(pool_round.c.key == new.key, pool_round.c.round_id == new.round_id)
        )
    ).first()
    if known is not None:
        return False
    connection.execute(
        sa.insert(pool_round).values(
            round_id=new.round_id,
            pool=new.pool,
            key=new.key,
            state=new.state.value,
            started_at=to_text(new.started_at),
            plan_only=int(new.plan_only),
            note=new.note,
        )
    )
    if new.items:
        connection.execute(
            sa.insert(pool_item),
            [
                {
                    "round_id": new.round_id,
                    "account": item.account,
                    "bank": item.bank,
                    "place": place,
                    "balance_task": item.balance_task,
                    "sweep_task": item.sweep_task,
                    "threshold_fen": item.threshold.fen,
                    "rule": item.rule,
                    "reason": item.reason,
                    "state": item.state.value,
                }
                for place, item in enumerate(new.items)
            ],
        )
    return True


def begun_after(connection: sa.Connection, moment: dt.datetime) -> list[str]:
    """Return the rounds that began after a moment, and have the key of their planned time still."""
    rows = connection.execute(
        sa.select(pool_round.c.round_id).where(
            pool_round.c.started_at > to_text(moment),
            pool_round.c.key != pool_round.c.round_id,
        )
    )
    return [str(row[0]) for row in rows]


def free_keys(connection: sa.Connection, moment: dt.datetime) -> None:
    """Let the rounds that began after a moment stand for no planned time, by keys of their own."""
    connection.execute(
        sa.update(pool_round)
        .where(pool_round.c.started_at > to_text(moment))
        .values(key=pool_round.c.round_id)
    )


def update(connection: sa.Connection, round_id: str, items: Iterable[Item]) -> None:
    """Store the present state of items."""
    rows = [
        {
            "b_round": round_id,
            "b_account": item.account,
            "threshold_fen": item.threshold.fen,
            "rule": item.rule,
            "state": item.state.value,
            "balance_fen": None if item.balance is None else item.balance.fen,
            "amount_fen": None if item.amount is None else item.amount.fen,
            "reason": item.reason,
            "working": item.working,
        }
        for item in items
    ]
    if rows:
        connection.execute(
            sa.update(pool_item)
            .where(
                pool_item.c.round_id == sa.bindparam("b_round"),
                pool_item.c.account == sa.bindparam("b_account"),
            )
            .values(
                {
                    name: sa.bindparam(name)
                    for name in (
                        "threshold_fen",
                        "rule",
                        "state",
                        "balance_fen",
                        "amount_fen",
                        "reason",
                        "working",
                    )
                }
            ),
            rows,
        )


def finish(connection: sa.Connection, done: Round) -> None:
    """Store the end of a round."""
    assert done.finished_at is not None
    connection.execute(
        sa.update(pool_round)
        .where(pool_round.c.round_id == done.round_id)
        .values(state=done.state.value, finished_at=to_text(done.finished_at))
    )


def _item(row: Any) -> Item:  # noqa: ANN401 - a row is untyped by nature
    return Item(
        account=AccountNumber(row.account),
        bank=BankName(row.bank),
        balance_task=TaskId(row.balance_task),
        sweep_task=TaskId(row.sweep_task),
        threshold=Cny(row.threshold_fen),
        state=ItemState(row.state),
        balance=None if row.balance_fen is None else Cny(row.balance_fen),
        amount=None if row.amount_fen is None else Cny(row.amount_fen),
        reason=row.reason,
        rule=row.rule,
        working=row.working,
    )


def _round(connection: sa.Connection, row: Any) -> Round:  # noqa: ANN401
    items = connection.execute(
        sa.select(pool_item).where(pool_item.c.round_id == row.round_id).order_by(pool_item.c.place)
    )
    return Round(
        round_id=row.round_id,
        pool=row.pool,
        key=row.key,
        started_at=from_text(row.started_at),
        plan_only=bool(row.plan_only),
        note=row.note,
        items=[_item(item) for item in items],
        state=RoundState(row.state),
        finished_at=None if row.finished_at is None else from_text(row.finished_at),
    )


def running(connection: sa.Connection) -> list[Round]:
    """Return the rounds that are not finished, oldest first."""
    rows = connection.execute(
        sa.select(pool_round)
        .where(pool_round.c.state == RoundState.RUNNING.value)
        .order_by(pool_round.c.started_at)
    ).all()
    return [_round(connection, row) for row in rows]


def one(connection: sa.Connection, round_id: str) -> Round | None:
    """Return a round, None when there is none."""
    row = connection.execute(sa.select(pool_round).where(pool_round.c.round_id == round_id)).first()
    return None if row is None else _round(connection, row)


def of_task(connection: sa.Connection, task_id: str) -> str | None:
    """Return the round a task belongs to."""
    found = connection.execute(
        sa.select(pool_item.c.round_id).where(
            sa.or_(pool_item.c.balance_task == task_id, pool_item.c.sweep_task == task_id)
        )
    ).first()
    return None if found is None else str(found[0])


def latest(connection: sa.Connection, pool: str) -> Round | None:
    """Return a pool's newest round that moved money or would have, None when it never ran."""
    row = connection.execute(
        sa.select(pool_round)
        .where(pool_round.c.pool == pool, pool_round.c.plan_only == 0)
        .order_by(pool_round.c.started_at.desc())
        .limit(1)
    ).first()
    return None if row is None else _round(connection, row)
