"""Every configuration that was ever in force (配置版本): its text, who brought it, how it ended.

A version saved on the administrator's page is written down before the file is, so that a stop at
any moment leaves a file whose version is known; ``TRANSITIONS`` has what can become of it.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Final

import attrs
import sqlalchemy as sa

from fep.domain.clock import from_text, to_text
from fep.domain.errors import LocalProtocolError
from fep.store.schema import configuration, restored


class VersionState(StrEnum):
    """What became of a version."""

    BEGUN = "begun"
    """The file is about to be written."""
    UNCONFIRMED = "unconfirmed"
    """In force until its time is over, unless an administrator confirms it."""
    KEPT = "kept"
    """It was in force for good, or still is."""
    TAKEN_BACK = "taken_back"
    """Not confirmed in its time, or taken back by hand: the one before came back."""
    FAILED = "failed"
    """It could not be taken into force; the one before stayed."""


class VersionEvent(StrEnum):
    """What can happen to a version."""

    APPLIED = "applied"
    APPLIED_FOR_A_TIME = "applied_for_a_time"
    CONFIRMED = "confirmed"
    REPLACED = "replaced"
    """The file was changed by hand meanwhile."""
    RESTORED = "restored"
    """The store is a copy that was put back: what was decided since it was made is not in it."""
    TAKEN_BACK = "taken_back"
    REFUSED = "refused"


TRANSITIONS: Final[dict[VersionState, dict[VersionEvent, VersionState]]] = {
    VersionState.BEGUN: {
        VersionEvent.APPLIED: VersionState.KEPT,
        VersionEvent.APPLIED_FOR_A_TIME: VersionState.UNCONFIRMED,
        VersionEvent.REFUSED: VersionState.FAILED,
        # The store did not take the word that it was applied.
        VersionEvent.CONFIRMED: VersionState.KEPT,
        VersionEvent.REPLACED: VersionState.KEPT,
        VersionEvent.RESTORED: VersionState.KEPT,
        VersionEvent.TAKEN_BACK: VersionState.TAKEN_BACK,
    },
    VersionState.UNCONFIRMED: {
        VersionEvent.CONFIRMED: VersionState.KEPT,
        VersionEvent.REPLACED: VersionState.KEPT,
        VersionEvent.RESTORED: VersionState.KEPT,
        VersionEvent.TAKEN_BACK: VersionState.TAKEN_BACK,
    },
    VersionState.KEPT: {},
    VersionState.TAKEN_BACK: {},
    VersionState.FAILED: {},
}


class IllegalVersionError(LocalProtocolError):
    """An event came in a state without a row for it: a defect of ours."""

    code = "ILLEGAL_TRANSITION"


def step(state: VersionState, event: VersionEvent) -> VersionState:
    """Return the state that follows.

    Raises:
        IllegalVersionError: the table has no such row.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        msg = f"{event.value} can't happen to a version that is {state.value}"
        raise IllegalVersionError(msg) from None


@attrs.frozen
class Version:
    """One row, without its text."""

    number: int
    """From 1, of this machine."""
    digest: str
    at: dt.datetime
    who: str
    how: str
    """``start`` or ``file``: the file was there; ``page``: saved; ``rollback``: an earlier one."""
    note: str
    state: VersionState
    before: int | None
    """The version that was in force, and comes back when this one is taken back."""
    confirm_until: dt.datetime | None
    ended_by: str
    """Who confirmed it or took it back."""
    reason: str
    """Why it was taken back or failed."""

    def value(self) -> dict[str, Any]:
        """Return it as the protocol shows it."""
        shown: dict[str, Any] = {
            "version": self.number,
            "digest": self.digest,
            "at": to_text(self.at),
            "who": self.who,
            "how": self.how,
            "note": self.note,
            "state": self.state.value,
        }
        if self.confirm_until is not None:
            shown["confirm_until"] = to_text(self.confirm_until)
        if self.ended_by:
            shown["ended_by"] = self.ended_by
        if self.reason:
            shown["reason"] = self.reason
        return shown


_PLAIN: Final = [column for column in configuration.c if column.name != "text"]


def _version(row: Any) -> Version:  # noqa: ANN401 - a row is untyped by nature
    return Version(
        number=row.number,
        digest=row.digest,
        at=from_text(row.at),
        who=row.who,
        how=row.how,
        note=row.note,
        state=VersionState(row.state),
        before=row.before,
        confirm_until=None if row.confirm_until is None else from_text(row.confirm_until),
        ended_by=row.ended_by,
        reason=row.reason,
    )


def add(connection: sa.Connection, machine: str, version: Version, text: str) -> int:
    """Write a version down under the next number; returns it."""
    most = sa.select(sa.func.coalesce(sa.func.max(configuration.c.number), 0))
    last = connection.execute(most.where(configuration.c.machine == machine)).scalar_one()
    row = sa.insert(configuration).values(
        machine=machine,
        number=last + 1,
        digest=version.digest,
        at=to_text(version.at),
        who=version.who,
        how=version.how,
        note=version.note,
        state=version.state.value,
        before=version.before,
        confirm_until=None if version.confirm_until is None else to_text(version.confirm_until),
        text=version_bytes(text),
    )
    connection.execute(row)
    return int(last) + 1


def version_bytes(text: str) -> bytes:
    """Return a text as it is stored."""
    return text.encode("utf-8", "surrogatepass")


def end(
    connection: sa.Connection,
    machine: str,
    number: int,
    event: VersionEvent,
    *,
    by: str = "",
    reason: str = "",
) -> VersionState:
    """Note what happened to a version; returns its state.

    Raises:
        IllegalVersionError: it can't happen to it.
    """
    mine = _is(machine, number)
    state = connection.execute(sa.select(configuration.c.state).where(mine)).scalar_one()
    after = step(VersionState(state), event)
    values = {"state": after.value, "ended_by": by, "reason": reason}
    connection.execute(sa.update(configuration).where(mine).values(**values))
    return after


def newest(connection: sa.Connection, machine: str, *states: VersionState) -> Version | None:
    """Return the newest version of a machine, of those in one of the states."""
    among = [one.value for one in states or tuple(VersionState)]
    query = (
        sa.select(*_PLAIN)
        .where(configuration.c.machine == machine, configuration.c.state.in_(among))
        .order_by(configuration.c.number.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else _version(row)


def put_back_since(connection: sa.Connection, version: Version) -> bool:
    """Say whether this store is a copy that was made, or put back, after a version was begun."""
    begun = to_text(version.at)
    mark = sa.select(restored.c.seq).where(
        (restored.c.taken_at >= begun) | (restored.c.restored_at >= begun)
    )
    return connection.execute(mark.limit(1)).first() is not None


def page(connection: sa.Connection, machine: str, limit: int, before: int | None) -> list[Version]:
    """Return versions of a machine, newest first, below a number."""
    query = sa.select(*_PLAIN).where(configuration.c.machine == machine)
    if before is not None:
        query = query.where(configuration.c.number < before)
    rows = connection.execute(query.order_by(configuration.c.number.desc()).limit(limit))
    return [_version(row) for row in rows]


def read(connection: sa.Connection, machine: str, number: int) -> tuple[Version, str] | None:
    """Return a version and its text; None when the machine has none of this number."""
    row = connection.execute(sa.select(configuration).where(_is(machine, number))).first()
    if row is None:
        return None
    return _version(row), bytes(row.text).decode("utf-8", "surrogatepass")


def _is(machine: str, number: int) -> sa.ColumnElement[bool]:
    return (configuration.c.machine == machine) & (configuration.c.number == number)
