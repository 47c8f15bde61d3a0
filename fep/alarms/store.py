"""The SQL of alarms."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from fep.alarms.state import Alarm, AlarmKind, AlarmState
from fep.domain.clock import from_text, to_text
from fep.store.schema import alarm


def _text(moment: dt.datetime | None) -> str | None:
    return None if moment is None else to_text(moment)


def _moment(text: str | None) -> dt.datetime | None:
    return None if text is None else from_text(text)


def row_of(one: Alarm) -> dict[str, Any]:
    """Return the row of an alarm; taken at once, since the alarm may change before the commit."""
    return {
        "id": one.id,
        "kind": one.kind.value,
        "subject": one.subject,
        "state": one.state.value,
        "cause": one.cause,
        "count": one.count,
        "raised_at": to_text(one.raised_at),
        "last_at": to_text(one.last_at),
        "acknowledged_at": _text(one.acknowledged_at),
        "acknowledged_by": one.acknowledged_by,
        "cleared_at": _text(one.cleared_at),
    }


def put(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Insert the row or overwrite the one with its id."""
    connection.execute(sa.delete(alarm).where(alarm.c.id == row["id"]))
    connection.execute(sa.insert(alarm).values(**row))


def _alarm(row: Any) -> Alarm:  # noqa: ANN401 - a row is untyped by nature
    return Alarm(
        id=row.id,
        kind=AlarmKind(row.kind),
        subject=row.subject,
        cause=row.cause,
        raised_at=from_text(row.raised_at),
        last_at=from_text(row.last_at),
        state=AlarmState(row.state),
        count=row.count,
        acknowledged_at=_moment(row.acknowledged_at),
        acknowledged_by=row.acknowledged_by or "",
        cleared_at=_moment(row.cleared_at),
    )


def active(connection: sa.Connection, scope: str = "") -> list[Alarm]:
    """Return the alarms that are not cleared, oldest first.

    Args:
        connection: a reader's.
        scope: only those whose id begins so.
    """
    rows = connection.execute(
        sa.select(alarm)
        .where(
            alarm.c.state != AlarmState.CLEARED.value,
            alarm.c.id.startswith(scope, autoescape=True),
        )
        .order_by(alarm.c.raised_at)
    )
    return [_alarm(row) for row in rows]


def recent(connection: sa.Connection, limit: int) -> list[Alarm]:
    """Return the newest alarms, cleared ones too."""
    rows = connection.execute(sa.select(alarm).order_by(alarm.c.raised_at.desc()).limit(limit))
    return [_alarm(row) for row in rows]
