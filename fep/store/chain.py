"""The hash chain over the event log: a link covers what one commit added, and the link before it.

A link's digest is the SHA-256 of the digest before it and of the canonical lines of its events, in
order. It is made from the rows themselves, in the commit that adds them: who changes, removes, adds
or swaps a row later must make anew every link from there to the end, and the last one is also known
outside of the file (the log, backups).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import attrs
import sqlalchemy as sa

LINE: Final = (
    "format('%s %s %s %s %s %s %s %s:%s %s:%s', seq, task_seq, at, event, state, configuration,"
    " digest, length(cause), cause, length(detail), detail)"
)
"""One event as text, the same on SQLite and PostgreSQL.

Only the last two may hold a blank or a line's end, so they say how long they are: no two different
rows, and no two different sequences of rows, have the same text (``fep verify-store`` refuses a
blank in the others).
"""

_SINCE: Final = (
    "SELECT (SELECT seq FROM event_link ORDER BY seq DESC LIMIT 1),"
    " (SELECT digest FROM event_link ORDER BY seq DESC LIMIT 1),"
    " min(seq), max(seq), max(at), {joined} FROM (SELECT seq, at, " + LINE + " AS line"
    " FROM task_event WHERE seq > coalesce("
    "(SELECT last_event FROM event_link ORDER BY seq DESC LIMIT 1), 0) ORDER BY seq) AS fresh"
)
"""What no link covers yet, in one row: Python's lock is not fought for at each event."""
_INSERT: Final = (
    "INSERT INTO event_link (seq, first_event, last_event, digest, at)"
    " VALUES ({mark}, {mark}, {mark}, {mark}, {mark})"
)
_STATEMENTS: Final = {
    dialect: (_SINCE.format(joined=joined), _INSERT.format(mark=mark))
    for dialect, joined, mark in (
        ("sqlite", "group_concat(line, char(10))", "?"),
        ("postgresql", "string_agg(line, chr(10) ORDER BY seq)", "%s"),
    )
}


@attrs.frozen
class Head:
    """The last link: to have seen it is to be able to prove all that was before."""

    link: int = 0
    last_event: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.link}:{self.digest}" if self.link else "0"


def link_digest(before: str, lines: Iterable[str]) -> str:
    """Return the digest of a link over these lines, after the digest before it."""
    return hashlib.sha256("\n".join((before, *lines)).encode()).hexdigest()


def link(connection: sa.Connection) -> None:
    """Cover the events that no link covers yet, if there are any, in the caller's transaction."""
    since, insert = _STATEMENTS[connection.dialect.name]
    # The driver's own connection: this is part of every commit, and needs no more.
    driver: Any = connection.connection.dbapi_connection
    last, before, first_event, last_event, at, lines = driver.execute(since).fetchone()
    if first_event is not None:
        digest = link_digest(before or "", (lines,))
        driver.execute(insert, ((last or 0) + 1, first_event, last_event, digest, at))


def head(connection: sa.Connection) -> Head:
    """Return the last link, one of number 0 when there is none."""
    row = connection.exec_driver_sql(
        "SELECT seq, last_event, digest FROM event_link ORDER BY seq DESC LIMIT 1"
    ).first()
    return Head() if row is None else Head(row[0], row[1], row[2])
