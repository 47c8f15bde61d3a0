"""Moves tasks that are over into yearly files, beside a running daemon, and reads them there.

A task's row stays in the store, without its body and result: its id is known for ever by the same
unique index, at no cost to who submits. So does what payments are searched by (``payment``):
without it a line of a statement could be taken for another payment. Everything else goes to
``archive-YYYY.sqlite``, a store of the same tables, with a chain of its own: there a link covers
one task. The move is made in batches, each copied and synced, read back and compared, and only then
taken out of the store, which notes the archive's last link in its own chain. Killed anywhere, the
next run goes on.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import sqlalchemy as sa

from fep.domain.clock import from_text, to_shanghai, to_text
from fep.domain.errors import FepError
from fep.store import chain, files, schema
from fep.store.schema import event_link, message, payment, resolution, task, task_event

BATCH_TASKS_MAX: Final = 100
BATCH_BYTES_MAX: Final = 2_000_000
"""Of bodies, results and messages: so much is moved while the store's writer waits."""
PAUSE_SECONDS_MIN, PAUSE_FACTOR = 0.02, 4
"""Between two batches, in times of the last one: the daemon has four fifths of the time at least.
"""
MESSAGE_COLUMNS: Final = [column for column in message.c if column.name != "seq"]
"""An archive numbers its messages anew: numbers of removed ones are given again."""
LEFT_IN_STORE: Final = {"body": None, "result": None}


class ArchiveHeldError(FepError):
    """What was moved is safe, and part of it still in the file beside the archive."""

    code = "ARCHIVE_HELD"


class ArchiveConflictError(FepError):
    """An archive does not fit the store; nothing was removed from either."""

    code = "ARCHIVE_CONFLICT"


@attrs.frozen
class Candidate:
    """A task that may be moved."""

    seq: int
    year: str
    """Of its end, in Shanghai."""
    size: int


@attrs.frozen
class Rows:
    """All that is stored of some tasks, in a form that two files can be compared in."""

    tasks: list[tuple[Any, ...]]
    events: list[tuple[Any, ...]]
    messages: list[tuple[Any, ...]]
    resolutions: list[tuple[Any, ...]]


@attrs.frozen
class Over:
    """Which tasks are over."""

    states: Sequence[str]
    """The final ones."""
    acknowledged: int
    """``delivery`` of a task whose client has the result."""
    before: dt.datetime
    """They must have ended before this moment."""
    watched_state: str
    watched_kinds: Sequence[str]
    """A success of these may still come back (退票)."""
    watched_before: dt.datetime
    """They must have ended before this moment too."""


def candidates(connection: sa.Connection, over: Over, after: int) -> list[Candidate]:
    """Return the next tasks that may be moved, behind the place ``after``: one batch at most."""
    bytes_sent = (
        sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(message.c.bytes)), 0))
        .where(message.c.task_seq == task.c.seq)
        .scalar_subquery()
    )
    size = (
        sa.func.coalesce(sa.func.length(task.c.body), 0)
        + sa.func.coalesce(sa.func.length(task.c.result), 0)
        + bytes_sent
    )
    query = (
        sa.select(task.c.seq, task.c.updated_at, size)
        .where(task.c.seq > after, *_are_over(over))
        .order_by(task.c.seq)
        .limit(BATCH_TASKS_MAX)
    )
    found: list[Candidate] = []
    total = 0
    for seq, ended_at, length in connection.execute(query):
        total += length
        if found and total > BATCH_BYTES_MAX:
            break
        found.append(Candidate(seq, _year_of(ended_at), length))
    return found


def _are_over(over: Over) -> list[sa.ColumnElement[bool]]:
    return [
        task.c.archived.is_(None),
        task.c.state.in_(over.states),
        task.c.delivery == over.acknowledged,
        task.c.updated_at < to_text(over.before),
        sa.not_(
            sa.exists().where(payment.c.task_seq == task.c.seq, payment.c.watched_s.is_not(None))
        ),
        sa.or_(
            task.c.state != over.watched_state,
            task.c.kind.not_in(over.watched_kinds),
            task.c.updated_at < to_text(over.watched_before),
        ),
    ]


def _year_of(ended_at: str) -> str:
    return f"{to_shanghai(from_text(ended_at)):%Y}"


def move(
    store: sa.Connection,
    directory: Path,
    over: Over,
    now: dt.datetime,
    who: str,
    tell: Callable[[str, int], None],
) -> dict[str, int]:
    """Move the tasks that are over, batch by batch; returns how many went to which year.

    Args:
        store: the store, open for writing; the daemon may run.
        directory: where the archives are.
        over: which tasks.
        now: the present moment.
        who: who does it; the store's chain says so.
        tell: called with a year and how many tasks have gone there, after each batch.

    Raises:
        ArchiveConflictError: an archive does not fit the store.
        ArchiveHeldError: another program reads an archive, which is not one file yet.
        sqlalchemy.exc.DBAPIError: a file can't be read or written, or the daemon holds the store.
    """
    moved: dict[str, int] = {}
    after = 0
    with ExitStack() as stack:
        opened: dict[str, sa.Connection] = {}
        # Those of years that nothing goes to any more, too: an update, or what was cut off.
        for year, path in files.archives(directory).items():
            if not _is_settled(store, path):
                opened[year] = stack.enter_context(_opened(directory, year))
                remove_left_over(store, opened[year], year)
        while batch := candidates(store, over, after):
            after = batch[-1].seq
            for year in sorted({one.year for one in batch}):
                if year not in opened:
                    opened[year] = stack.enter_context(_opened(directory, year))
                    remove_left_over(store, opened[year], year)
                places = [one.seq for one in batch if one.year == year]
                if _move_batch(store, opened[year], year, places, over, now, who):
                    moved[year] = moved.get(year, 0) + len(places)
                    tell(year, moved[year])
    return moved


def _is_settled(store: sa.Connection, path: Path) -> bool:
    """Say whether an archive is one file of this release, and has nothing that the store has.

    One without a task is not: it may have been left when it was being made.
    """
    if path.with_name(f"{path.name}-wal").exists():
        return False
    with files.reading(path) as archive:
        if schema.version_of(archive) != schema.VERSION:
            return False
        place, _ = _last_task(archive)
    moved = store.execute(sa.select(task.c.archived).where(task.c.seq == place)).scalar()
    return moved is not None


@contextmanager
def _opened(directory: Path, year: str) -> Iterator[sa.Connection]:
    path = directory / files.archive_name(year)
    # Killed before this, an earlier one left it root's; what SQLite puts beside it is as it is.
    path.touch(mode=0o644)
    files.give_to_owner(path, directory)
    files.sync_directory(directory)
    # While it is written who reads it sees whole commits; at the end it is one file, to be carried.
    with files.writing(path) as archive:
        schema.migrate(archive)
        yield archive
        try:
            archive.exec_driver_sql("PRAGMA journal_mode=DELETE")
        except sa.exc.DBAPIError as error:
            msg = (
                f"another program reads {path.name}: what was moved is safe, and part of it is in"
                f" {path.name}-wal yet; run fep archive again before the file is copied"
            )
            raise ArchiveHeldError(msg) from error


def _move_batch(
    store: sa.Connection,
    archive: sa.Connection,
    year: str,
    places: Sequence[int],
    over: Over,
    now: dt.datetime,
    who: str,
) -> bool:
    """Copy, compare, then remove; False if a task has changed meanwhile and all of them stay.

    They stay until the next run.
    """
    rows = read_rows(store, places)
    copy_in(archive, rows, year)
    if read_rows(archive, places) != rows:
        msg = f"{files.archive_name(year)} does not give back what was written to it"
        raise ArchiveConflictError(msg)
    began = time.monotonic()
    is_moved = take_out(store, rows, year, over, chain.head(archive), now, who)
    if not is_moved:
        remove_left_over(store, archive, year)
    # The daemon's writer waits while this one has its place: let it go first for a while.
    time.sleep(max(PAUSE_SECONDS_MIN, PAUSE_FACTOR * (time.monotonic() - began)))
    return is_moved


def remove_left_over(store: sa.Connection, archive: sa.Connection, year: str) -> None:
    """Take out of an archive what was copied and, by a crash, never removed from the store.

    Also what the store has whole again because an older one was restored. Such tasks are the last
    of the archive's chain.

    Raises:
        ArchiveConflictError: the archive has tasks that the store does not know, or knows of one
            what befell it later than all that the store knows.
    """
    while True:
        with files.transaction(archive):
            place, task_id = _last_task(archive)
            if place is None:
                return
            row = store.execute(
                sa.select(task.c.task_id, task.c.archived, task.c.state, task.c.updated_at).where(
                    task.c.seq == place
                )
            ).first()
            if row is None or row.task_id != task_id:
                msg = (
                    f"{files.archive_name(year)} has task {task_id}, which this store does not"
                    " know: it belongs to another or a newer store; nothing was removed"
                )
                raise ArchiveConflictError(msg)
            if row.archived is not None:
                return
            known = archive.execute(
                sa.select(task.c.state, task.c.updated_at).where(task.c.seq == place)
            ).one()
            # A batch comes back row by row, and is in the same state after each.
            if known.updated_at > row.updated_at:
                name = files.archive_name(year)
                msg = (
                    f"{name} knows that task {task_id} is {known.state}, and in this older store"
                    f" it is {row.state}: bring it to its end first,"
                    " as fepctl restored shows; if it is at its end, have its client submit a"
                    " transfer_status of it, so that its bank tells here what came back (退票), or"
                    f" put back the copy of {name} that was made with this store; nothing was"
                    " removed"
                )
                raise ArchiveConflictError(msg)
            for table in (task_event, message, resolution):
                archive.execute(sa.delete(table).where(table.c.task_seq == place))
            archive.execute(sa.delete(task).where(task.c.seq == place))
            archive.execute(
                sa.delete(event_link).where(event_link.c.seq == chain.head(archive).seq)
            )


def _last_task(archive: sa.Connection) -> tuple[int | None, str]:
    last = sa.select(event_link.c.first_event).order_by(event_link.c.seq.desc()).limit(1)
    row = archive.execute(
        sa.select(task.c.seq, task.c.task_id)
        .join(task_event, task_event.c.task_seq == task.c.seq)
        .where(task_event.c.seq == last.scalar_subquery())
    ).first()
    return (None, "") if row is None else (row[0], row[1])


def read_rows(connection: sa.Connection, places: Sequence[int]) -> Rows:
    """Return all that is stored of these tasks, but for the year of their archive."""
    own = [column for column in task.c if column.name != "archived"]

    def rows(columns: Sequence[Any], place: Any, order: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401
        query = sa.select(*columns).where(place.in_(places)).order_by(*order)
        return [tuple(row) for row in connection.execute(query)]

    return Rows(
        rows(own, task.c.seq, [task.c.seq]),
        rows(list(task_event.c), task_event.c.task_seq, [task_event.c.seq]),
        rows(MESSAGE_COLUMNS, message.c.task_seq, [message.c.task_seq, message.c.seq]),
        rows(list(resolution.c), resolution.c.task_seq, [resolution.c.task_seq]),
    )


def copy_in(archive: sa.Connection, rows: Rows, year: str) -> None:
    """Write tasks into their archive, each with its link, in one transaction; synced at return."""
    names = [column.name for column in task.c if column.name != "archived"]
    with files.transaction(archive):
        _insert(archive, task, [*names, "archived"], [(*row, year) for row in rows.tasks])
        _insert(archive, task_event, task_event.c.keys(), rows.events)
        _insert(archive, message, [column.name for column in MESSAGE_COLUMNS], rows.messages)
        _insert(archive, resolution, resolution.c.keys(), rows.resolutions)
        for place in (row[0] for row in rows.tasks):
            chain.extend_by_task(archive, place)


def _insert(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], rows: list[tuple[Any, ...]]
) -> None:
    if rows:
        connection.execute(sa.insert(table), [dict(zip(names, row, strict=True)) for row in rows])


def take_out(
    store: sa.Connection,
    rows: Rows,
    year: str,
    over: Over,
    head: chain.Link,
    now: dt.datetime,
    who: str,
) -> bool:
    """Leave of these tasks what the store keeps for ever; False if one has changed meanwhile.

    One short transaction. The store's chain notes the archive's last link.
    """
    places = [row[0] for row in rows.tasks]
    with files.transaction(store):
        # One may have come back before its rows were read: they are the same, and it is owed.
        if read_rows(store, places) != rows or not _end_in(store, places, over, year):
            return False
        chain.note(
            store,
            chain.ARCHIVED,
            f"{who} moved {len(places)} tasks to {files.archive_name(year)}, link {head.seq}",
            now,
            digest=head.digest,
            detail=files.archive_name(year),
        )
        for table in (task_event, message, resolution):
            store.execute(sa.delete(table).where(table.c.task_seq.in_(places)))
        store.execute(
            sa.update(task).where(task.c.seq.in_(places)).values(archived=year, **LEFT_IN_STORE)
        )
        chain.extend(store)
    return True


def _end_in(store: sa.Connection, places: Sequence[int], over: Over, year: str) -> bool:
    """Say whether all of these tasks are over, and ended in this year."""
    query = sa.select(task.c.updated_at).where(task.c.seq.in_(places), *_are_over(over))
    ended = [_year_of(at) for at in store.execute(query).scalars()]
    return ended == [year] * len(places)
