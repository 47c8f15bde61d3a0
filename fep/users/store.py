"""The SQL of the console's users and their sessions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import attrs
import sqlalchemy as sa

from fep.domain.clock import from_text, to_text
from fep.store.schema import console_session, console_user

USERS_MAX: Final = 1000
SESSIONS_OF_ONE_MAX: Final = 16
"""The oldest makes room for the next."""


@attrs.frozen
class User:
    """One row."""

    name: str
    role: str
    password: str = attrs.field(repr=False)
    totp: str = attrs.field(repr=False)
    totp_step: int
    disabled: bool


@attrs.frozen
class SessionRow:
    """Who is logged in, and since when."""

    digest: str
    name: str
    role: str
    has_totp: bool
    created_at: dt.datetime
    seen_at: dt.datetime
    origin: str


def user(connection: sa.Connection, name: str) -> User | None:
    """Return a user, None when there is none of this name."""
    row = connection.execute(sa.select(console_user).where(console_user.c.name == name)).first()
    if row is None:
        return None
    return User(row.name, row.role, row.password, row.totp, row.totp_step, bool(row.disabled))


def users(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return all users as they are shown, by name."""
    counted = (
        sa.select(console_session.c.name, sa.func.count().label("sessions"))
        .group_by(console_session.c.name)
        .subquery()
    )
    query = (
        sa.select(console_user, counted.c.sessions)
        .outerjoin(counted, counted.c.name == console_user.c.name)
        .order_by(console_user.c.name)
        .limit(USERS_MAX)
    )
    return [
        {
            "name": row.name,
            "role": row.role,
            "disabled": bool(row.disabled),
            "totp": bool(row.totp),
            "created_at": row.created_at,
            "changed_at": row.changed_at,
            "sessions": row.sessions or 0,
        }
        for row in connection.execute(query)
    ]


def add(connection: sa.Connection, name: str, role: str, password: str, at: dt.datetime) -> str:
    """Add a user; returns why not, empty when it was done."""
    count = connection.execute(sa.select(sa.func.count()).select_from(console_user)).scalar_one()
    if user(connection, name) is not None:
        return f"there is a user {name!r} already"
    if count >= USERS_MAX:
        return f"there are {USERS_MAX} users, and no room for another"
    now = to_text(at)
    row = sa.insert(console_user).values(
        name=name, role=role, password=password, created_at=now, changed_at=now
    )
    connection.execute(row)
    return ""


def change(
    connection: sa.Connection, name: str, values: Mapping[str, Any], at: dt.datetime
) -> bool:
    """Change a user; False when there is none of this name."""
    given = {**values, "changed_at": to_text(at)}
    row = sa.update(console_user).where(console_user.c.name == name).values(given)
    return connection.execute(row).rowcount == 1


def use_step(connection: sa.Connection, name: str, step: int) -> bool:
    """Note a one-time code as used; False when it was used before."""
    row = (
        sa.update(console_user)
        .where(console_user.c.name == name, console_user.c.totp_step < step)
        .values(totp_step=step)
    )
    return connection.execute(row).rowcount == 1


def open_session(
    connection: sa.Connection, digest: str, name: str, origin: str, at: dt.datetime
) -> None:
    """Add a session; of too many of one user the oldest go."""
    mine = console_session.c.name == name
    newest = (
        sa.select(console_session.c.digest)
        .where(mine)
        .order_by(console_session.c.created_at.desc())
        .limit(SESSIONS_OF_ONE_MAX - 1)
    )
    connection.execute(
        sa.delete(console_session).where(mine, console_session.c.digest.not_in(newest))
    )
    now = to_text(at)
    row = {"digest": digest, "name": name, "created_at": now, "seen_at": now, "origin": origin}
    connection.execute(sa.insert(console_session).values(row))


def end_session(connection: sa.Connection, digest: str) -> None:
    """End one session."""
    connection.execute(sa.delete(console_session).where(console_session.c.digest == digest))


def end_sessions(connection: sa.Connection, name: str, but: str = "") -> int:
    """End all sessions of a user, but perhaps one; returns how many they were."""
    mine = (console_session.c.name == name, console_session.c.digest != but)
    return connection.execute(sa.delete(console_session).where(*mine)).rowcount


def end_old_sessions(connection: sa.Connection, began: dt.datetime, seen: dt.datetime) -> None:
    """End what began before one moment, or was last seen before another."""
    old = sa.or_(
        console_session.c.created_at < to_text(began), console_session.c.seen_at < to_text(seen)
    )
    connection.execute(sa.delete(console_session).where(old))


def see(connection: sa.Connection, digest: str, at: dt.datetime) -> None:
    """Note that a session is used."""
    row = sa.update(console_session).where(console_session.c.digest == digest)
    connection.execute(row.values(seen_at=to_text(at)))


def session(connection: sa.Connection, digest: str) -> SessionRow | None:
    """Return a session of a user who may still log in."""
    query = (
        sa.select(console_session, console_user.c.role, console_user.c.totp)
        .join(console_user, console_user.c.name == console_session.c.name)
        .where(console_session.c.digest == digest, console_user.c.disabled == 0)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return SessionRow(
        row.digest,
        row.name,
        row.role,
        bool(row.totp),
        from_text(row.created_at),
        from_text(row.seen_at),
        row.origin,
    )
