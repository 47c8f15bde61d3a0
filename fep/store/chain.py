"""The hash chain over the event log: a link covers what one commit added, and the link before it.

A link's digest is the SHA-256 of the digest before it and of the canonical lines of its events, in
order. It is made from the rows themselves, in the commit that adds them: who changes, removes, adds
or swaps a row later must make anew every link from there to the end, and the last one is also known
outside of the file (the log, backups).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
import sqlalchemy as sa

from fep.domain.clock import to_text
from fep.store.schema import task_event

LINE: Final = (
    "format('%s %s %s %s %s %s %s %s:%s %s:%s', seq, task_seq, at, event, state, configuration,"
    " digest, length(cause), cause, length(detail), detail)"
)
"""One event as text, the same on SQLite and PostgreSQL.

Only the last two may hold a blank or a line's end, so they say how long they are: no two different
rows, and no two different sequences of rows, have the same text (``fep verify-store`` refuses a
blank in the others).
"""

ARCHIVED, RESTORED, RELEASED = "archived", "restored", "released"
"""Events of task 0, the store itself."""
MISSING_TOLD_MAX: Final = 100_000
RUNS_TOLD_MAX: Final = 8
"""Of places in one message."""

_SINCE: Final = (
    "SELECT (SELECT seq FROM event_link ORDER BY seq DESC LIMIT 1),"
    " (SELECT digest FROM event_link ORDER BY seq DESC LIMIT 1),"
    " min(seq), max(seq), max(at), {joined} FROM task_event WHERE seq > coalesce("
    "(SELECT last_event FROM event_link ORDER BY seq DESC LIMIT 1), 0)"
)
"""What no link covers yet, in one row: Python's lock is not fought for at each event."""
_INSERT: Final = (
    "INSERT INTO event_link (seq, first_event, last_event, digest, at)"
    " VALUES ({mark}, {mark}, {mark}, {mark}, {mark})"
)
_STATEMENTS: Final = {
    dialect: (_SINCE.format(joined=joined), _INSERT.format(mark=mark))
    for dialect, joined, mark in (
        # SQLite goes through a range of the primary key in its order.
        ("sqlite", f"group_concat({LINE}, char(10))", "?"),
        ("postgresql", f"string_agg({LINE}, chr(10) ORDER BY seq)", "%s"),
    )
}


@attrs.frozen
class Link:
    """One link. To have seen the last one is to be able to prove all that was before it."""

    seq: int = 0
    first_event: int = 0
    last_event: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}" if self.seq else "0"


@attrs.frozen
class Fault:
    """A place where the chain does not hold."""

    link: int
    """The first link that does not fit; one above the last for events after it."""
    message: str
    lacks_events: bool = False
    """True where events are not there that may be elsewhere."""


def mark_told(place: int, taken_at: str, link: str) -> str:
    """Return what the event ``restored`` tells of a mark that holds payments back (``detail``)."""
    return f"mark {place} of {taken_at}, link {link}"


def released_told(who: str, evidence: str) -> str:
    """Return what the event ``released`` tells (``cause``)."""
    return f"{who} released payments after a restore: {evidence}"


def link_digest(before: str, lines: Iterable[str]) -> str:
    """Return the digest of a link over these lines, after the digest before it."""
    return hashlib.sha256("\n".join((before, *lines)).encode()).hexdigest()


def extend(connection: sa.Connection) -> Link | None:
    """Cover the events that no link covers yet, in the caller's transaction.

    Returns the link, None when there are no such events.
    """
    since, insert = _STATEMENTS[connection.dialect.name]
    # The driver's own connection: this is part of every commit, and needs no more.
    driver: Any = connection.connection.dbapi_connection
    last, before, first_event, last_event, at, text = driver.execute(since).fetchone()
    if first_event is None:
        return None
    link = Link((last or 0) + 1, first_event, last_event, link_digest(before or "", (text,)))
    driver.execute(insert, (link.seq, link.first_event, link.last_event, link.digest, at))
    return link


def kept_text(text: str) -> str:
    """Return an event's text as both databases keep it whole: a bank or a person may write a NUL.

    PostgreSQL has none, and SQLite's functions end a text there.
    """
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def note(
    connection: sa.Connection,
    event: str,
    cause: str,
    at: dt.datetime,
    *,
    configuration: str = "",
    digest: str = "",
    detail: str = "",
) -> None:
    """Record something that happened to the store itself."""
    connection.execute(
        sa.insert(task_event).values(
            task_seq=0,
            at=to_text(at),
            event=event,
            state="",
            cause=kept_text(cause),
            configuration=configuration,
            digest=digest,
            detail=kept_text(detail),
        )
    )


def extend_by_task(connection: sa.Connection, task_seq: int) -> None:
    """Cover one task's events with the next link: the chain of an archive."""
    query = f"SELECT seq, at, {LINE} FROM task_event WHERE task_seq = ? ORDER BY seq"  # noqa: S608
    rows = connection.exec_driver_sql(query, (task_seq,)).all()
    before = head(connection)
    digest = link_digest(before.digest, (row[2] for row in rows))
    values = (before.seq + 1, rows[0][0], rows[-1][0], digest, rows[-1][1])
    connection.exec_driver_sql(_STATEMENTS["sqlite"][1], values)


def head(connection: sa.Connection) -> Link:
    """Return the last link, one of number 0 when there is none."""
    return next(_links(connection, "ORDER BY seq DESC LIMIT 1"), Link())


def links(connection: sa.Connection) -> Iterator[Link]:
    """Yield the links in order."""
    return _links(connection, "ORDER BY seq")


def _links(connection: sa.Connection, order: str) -> Iterator[Link]:
    # As what they must be, whatever somebody wrote there.
    query = (
        "SELECT seq, CAST(first_event AS BIGINT), CAST(last_event AS BIGINT),"  # noqa: S608
        f" CAST(digest AS TEXT) FROM event_link {order}"
    )
    return (Link(*row) for row in connection.exec_driver_sql(query))


def lines(connection: sa.Connection) -> Iterator[tuple[int, int, str]]:
    """Yield the place, the task's place and the canonical line of each event, in order."""
    query = f"SELECT seq, task_seq, {LINE} FROM task_event ORDER BY seq"  # noqa: S608
    return ((row[0], row[1], row[2]) for row in connection.exec_driver_sql(query))


def faults(chain: Iterable[Link], events: Iterable[tuple[int, str]]) -> Iterator[Fault]:
    """Yield where the links do not fit each other or the events, in order; none when all is well.

    Args:
        chain: all links, in order.
        events: the place and the canonical line of each event, in order.
    """
    left = iter(events)
    event = next(left, None)
    before = Link()
    for one in chain:
        found: dict[int, str] = {}
        loose: list[int] = []
        while event is not None and event[0] <= one.last_event:
            if event[0] < one.first_event:
                loose.append(event[0])
            else:
                found[event[0]] = event[1]
            event = next(left, None)
        if loose:
            yield Fault(one.seq, f"no link covers {_named(loose)}")
        if one.seq != before.seq + 1:
            gone = _span(before.seq + 1, one.seq - 1, "link")
            yield Fault(before.seq + 1, f"{gone} missing before link {one.seq}")
        elif link_digest(before.digest, found.values()) != one.digest:
            missing = _missing(one, found)
            covered = _span(one.first_event, one.last_event, "event")
            told = (
                f"{_named(missing)} missing"
                if missing
                else f"what {covered} say is not what was written, or the link is not"
            )
            yield Fault(one.seq, f"link {one.seq} is broken: {told}", bool(missing))
        before = one
    after = [] if event is None else [event[0], *(one[0] for one in left)]
    if after:
        yield Fault(before.seq + 1, f"no link covers {_named(after)}")


def _missing(one: Link, found: Container[int]) -> list[int]:
    """Return the first events of a link that are not there."""
    covered = range(one.first_event, one.last_event + 1)
    gone = (seq for seq in covered if seq not in found)
    return list(itertools.islice(gone, MISSING_TOLD_MAX))


def _span(first: int, last: int, what: str) -> str:
    return f"{what} {first}" if first == last else f"{what}s {first}-{last}"


def _named(places: Sequence[int]) -> str:
    """Return the places as ``events 3, 7-9``, a few of them if they are many."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:RUNS_TOLD_MAX]]
    more = ", …" if len(runs) > RUNS_TOLD_MAX else ""
    return f"event{'s' if len(places) > 1 else ''} {', '.join(told)}{more}"
