"""The SQL of alarms."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from fep.alarms.outgoing import Notice, NoticeState, What
from fep.alarms.state import About, Alarm, AlarmKind, AlarmState, kinds_about
from fep.domain.clock import from_text, to_text
from fep.store.schema import alarm, alarm_notice, task


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


def recent(connection: sa.Connection, limit: int, client: str | None = None) -> list[Alarm]:
    """Return the newest alarms, cleared ones too; with a client those that concern it."""
    query = sa.select(alarm).order_by(alarm.c.raised_at.desc()).limit(limit)
    if client is not None:
        query = query.where(_concerns(client))
    return [_alarm(row) for row in connection.execute(query)]


def _concerns(client: str) -> sa.ColumnElement[bool]:
    """Return the condition that says what ``Alarm.concerns`` does."""
    subject = alarm.c.subject
    own = sa.exists().where(task.c.task_id == subject, task.c.client + "" == client)
    return sa.or_(
        alarm.c.kind.in_(kinds_about(About.DAEMON)),
        sa.and_(alarm.c.kind.in_(kinds_about(About.CLIENT)), subject == client),
        sa.and_(alarm.c.kind.in_(kinds_about(About.TASK)), own),
    )


def notice_row(one: Notice) -> dict[str, Any]:
    """Return the row of a notice; taken at once, since it may change before the commit."""
    return {
        "id": one.id,
        "channel": one.channel,
        "alarm_id": one.alarm_id,
        "what": one.what.value,
        "kind": one.kind.value,
        "subject": one.subject,
        "cause": one.cause,
        "count": one.count,
        "raised_at": to_text(one.raised_at),
        "noted_at": to_text(one.noted_at),
        "state": one.state.value,
        "ended_at": _text(one.ended_at),
        "reason": one.reason,
    }


def put_notices(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows or overwrite those with their ids."""
    for row in rows:
        connection.execute(sa.delete(alarm_notice).where(alarm_notice.c.id == row["id"]))
    if rows:
        connection.execute(sa.insert(alarm_notice), list(rows))


def put_with_notices(
    connection: sa.Connection, row: dict[str, Any], notices: Sequence[dict[str, Any]]
) -> None:
    """Write an alarm and what is to be told of it: both or neither."""
    put(connection, row)
    put_notices(connection, notices)


def waiting_notices(connection: sa.Connection, scope: str = "") -> list[Notice]:
    """Return the notices that no receiver has, oldest first.

    Args:
        connection: a reader's.
        scope: only those whose id begins so.
    """
    rows = connection.execute(
        sa.select(alarm_notice)
        .where(
            alarm_notice.c.state == NoticeState.WAITING.value,
            alarm_notice.c.id.startswith(scope, autoescape=True),
        )
        .order_by(alarm_notice.c.noted_at)
    )
    return [_notice(row) for row in rows]


def last_noted(connection: sa.Connection) -> dict[str, dict[str, dt.datetime]]:
    """Return by channel and alarm in force when it was last noted."""
    in_force = sa.select(alarm.c.id).where(alarm.c.state != AlarmState.CLEARED.value)
    rows = connection.execute(
        sa.select(
            alarm_notice.c.channel,
            alarm_notice.c.alarm_id,
            sa.func.max(alarm_notice.c.noted_at).label("at"),
        )
        .where(alarm_notice.c.alarm_id.in_(in_force))
        .group_by(alarm_notice.c.channel, alarm_notice.c.alarm_id)
    )
    found: dict[str, dict[str, dt.datetime]] = {}
    for row in rows:
        found.setdefault(row.channel, {})[row.alarm_id] = from_text(row.at)
    return found


def forget_notices(connection: sa.Connection, before: dt.datetime, scope: str, most: int) -> int:
    """Remove notices that ended before a moment, so many at once; returns how many there were."""
    old = (
        sa.select(alarm_notice.c.id)
        .where(
            alarm_notice.c.state != NoticeState.WAITING.value,
            alarm_notice.c.noted_at < to_text(before),
            alarm_notice.c.id.startswith(scope, autoescape=True),
            # As long as it is in force, what was told of an alarm says when to tell it again.
            alarm_notice.c.alarm_id.not_in(
                sa.select(alarm.c.id).where(alarm.c.state != AlarmState.CLEARED.value)
            ),
        )
        .limit(most)
    )
    ids = list(connection.execute(old).scalars())
    connection.execute(sa.delete(alarm_notice).where(alarm_notice.c.id.in_(ids)))
    return len(ids)


def _notice(row: Any) -> Notice:  # noqa: ANN401 - a row is untyped by nature
    return Notice(
        id=row.id,
        channel=row.channel,
        alarm_id=row.alarm_id,
        what=What(row.what),
        kind=AlarmKind(row.kind),
        subject=row.subject,
        cause=row.cause,
        count=row.count,
        raised_at=from_text(row.raised_at),
        noted_at=from_text(row.noted_at),
        state=NoticeState(row.state),
        ended_at=_moment(row.ended_at),
        reason=row.reason,
    )
