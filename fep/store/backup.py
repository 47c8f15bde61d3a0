"""Copies the store while the daemon runs, and puts a copy back in its place.

A copy bears a mark in itself (``restored``): wherever it is put, the daemon that opens it knows
that payments may have been sent which this file does not know, and sends none until a person has
looked. So it does not matter how the file came back.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from fep.domain.clock import to_text
from fep.domain.errors import FepError
from fep.store import chain, files, schema
from fep.store.schema import restored, task_event

PAGES_AT_ONCE: Final = 2048
NEVER: Final = "1970-01-01T00:00:00.000+00:00"

Check = Callable[[Path], object]
"""Raises when a file is not sound."""
Tell = Callable[[int, int], None]
"""Told how many pages are copied, and of how many."""


class BackupRefusedError(FepError):
    """A copy can't be made or put there; nothing was changed."""

    code = "BACKUP_REFUSED"


def back_up(
    source: Path, target: Path, now: dt.datetime, check: Check, tell: Tell, *, replace: bool = False
) -> None:
    """Copy a store as it is at one moment; the copy appears under its name when it is sound.

    Args:
        source: the store; the daemon may be writing to it.
        target: the copy's file.
        now: the present moment.
        check: looks at the copy before it has its name.
        tell: told how far it is.
        replace: put it in the place of a file that is there.

    Raises:
        BackupRefusedError: a file is there, or no folder for it.
        sqlalchemy.exc.DBAPIError, sqlite3.Error, OSError: a file can't be read or written.
        FepError: the copy is not sound, by ``check``.
    """
    if target.exists() and not replace:
        msg = f"{target} is there already; give another name, or --force"
        raise BackupRefusedError(msg)
    if not target.parent.is_dir():
        msg = f"{target.parent} is no folder"
        raise BackupRefusedError(msg)
    beside = target.parent.samefile(source.parent)
    if (beside and files.is_own(target.name)) or (target.exists() and target.samefile(source)):
        msg = f"{target} is the store itself, or a file that belongs to it: give another name"
        raise BackupRefusedError(msg)
    # In the same folder, so that it gets its name in one step.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        copy(source, unfinished, tell)
        with files.writing(unfinished, alone=True) as connection:
            _mark(connection, now)
        _finish(unfinished)
        check(unfinished)
        unfinished.replace(target)
        files.sync_directory(target.parent)
    finally:
        _remove(unfinished)


def restore(source: Path, directory: Path, now: dt.datetime, check: Check, tell: Tell) -> Path:
    """Put a copy in the place of the store; returns under which name the former store is kept.

    The caller holds the state directory: no daemon runs, and none starts.

    Raises:
        BackupRefusedError: there is no such copy, or it is no store.
        NewerStoreError: a newer release wrote it.
        sqlalchemy.exc.DBAPIError, sqlite3.Error, OSError: a file can't be read or written.
        FepError: the copy is not sound, by ``check``.
    """
    if source.is_dir():
        raise BackupRefusedError(files.told_of_folder(source))
    if not source.is_file():
        msg = f"there is no file {source}"
        raise BackupRefusedError(msg)
    place = directory / files.STORE_FILE
    unfinished = directory / f".{files.STORE_FILE}.part"
    try:
        _remove(unfinished)
        _check_store(source)
        copy(source, unfinished, tell)
        with files.writing(unfinished, alone=True) as connection:
            schema.migrate(connection)
            with files.transaction(connection):
                mark_restored(connection, now)
        _finish(unfinished)
        check(unfinished)
        files.give_to_owner(unfinished, directory)
        former = _exchange(unfinished, place, now)
    finally:
        _remove(unfinished)
    return former


def _check_store(path: Path) -> None:
    """Refuse what has no tables of ours: an empty file is a database, too."""
    try:
        with files.reading(path) as connection:
            version = schema.version_of(connection)
    except sa.exc.DBAPIError as error:
        msg = f"{path} is no store: {error.orig}"
        raise BackupRefusedError(msg) from error
    if not version:
        msg = f"{path} is no store: it has no tables"
        raise BackupRefusedError(msg)


def _exchange(new: Path, place: Path, now: dt.datetime) -> Path:
    """Put the new file where the old one is, and keep that under another name.

    The old file's write-ahead log must not meet the new file, so several names change. While they
    do a flag keeps the daemon from starting; after a crash in between ``fep restore`` is run again.
    The flag says under which name the old file goes: its log must go with it then.
    """
    flag = place.with_name(files.RESTORING_FILE)
    if begun := _begun(flag, place):
        former = begun
    else:
        former = _free(place.with_name(f"{place.name}.before-{now:%Y%m%dT%H%M%SZ}"))
        flag.write_text(former.name, "utf-8")
        files.sync_file(flag)
    files.give_to_owner(flag, place.parent)
    files.sync_directory(place.parent)
    for end in ("", *files.SIDE_FILES):
        old = place.with_name(place.name + end)
        if old.exists():
            old.rename(former.with_name(former.name + end))
    files.sync_directory(place.parent)
    new.replace(place)
    files.sync_directory(place.parent)
    flag.unlink()
    files.sync_directory(place.parent)
    return former


def _free(wanted: Path) -> Path:
    """Return the first of this name, ``NAME-2``, ``NAME-3``, … under which nothing is kept yet.

    A side file that was left under a name would meet the file that gets it.
    """
    names = itertools.chain([wanted.name], (f"{wanted.name}-{n}" for n in itertools.count(2)))
    ends = ("", *files.SIDE_FILES)
    return next(
        wanted.with_name(name)
        for name in names
        if not any(os.path.lexists(wanted.with_name(name + end)) for end in ends)
    )


def _begun(flag: Path, place: Path) -> Path | None:
    """Return the name under which a restore that was cut off has begun to keep the old file.

    None where there was none, or the new file is in its place already.
    """
    try:
        name = flag.read_text("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if not name.startswith(f"{place.name}.before-") or "/" in name:
        return None
    former = place.with_name(name)
    return None if former.exists() and place.exists() else former


def copy(source: Path, target: Path, tell: Tell) -> None:
    """Copy a store, page by page, as it is at one moment; the writer does not wait."""
    with files.reading(source) as there, files.writing(target, alone=True) as here:
        # From here on the reader sees one moment, whatever the daemon commits meanwhile.
        schema.version_of(there)
        there.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        there_driver: Any = there.connection.dbapi_connection
        here_driver: Any = here.connection.dbapi_connection
        assert isinstance(there_driver, sqlite3.Connection)
        there_driver.backup(
            here_driver,
            pages=PAGES_AT_ONCE,
            progress=lambda _status, left, total: tell(total - left, total),
            sleep=0.0,
        )


def _mark(connection: sa.Connection, now: dt.datetime) -> None:
    with files.transaction(connection):
        connection.execute(
            sa.insert(restored).values(taken_at=to_text(now), link=str(chain.head(connection)))
        )


def mark_restored(connection: sa.Connection, now: dt.datetime) -> None:
    """Note in a store, in the caller's transaction, that it is a copy: no payment leaves then."""
    held = sa.update(restored).where(restored.c.released_at.is_(None))
    if not connection.execute(held.values(restored_at=to_text(now))).rowcount:
        # A copy made by other means: it knows nothing that is later than its last event.
        last = connection.execute(sa.select(sa.func.max(task_event.c.at))).scalar()
        connection.execute(
            sa.insert(restored).values(
                taken_at=last or NEVER, link=str(chain.head(connection)), restored_at=to_text(now)
            )
        )
    _note_marks(connection, now)


def _note_marks(connection: sa.Connection, now: dt.datetime) -> None:
    """Tell the chain which marks hold payments back, so that one taken away is missed."""
    columns = (restored.c.seq, restored.c.taken_at, restored.c.link)
    held = sa.select(*columns).where(restored.c.released_at.is_(None)).order_by(restored.c.seq)
    for place, taken_at, link in connection.execute(held).all():
        cause = f"a copy of {taken_at} was put back: no payment leaves"
        told = chain.mark_told(place, taken_at, link)
        chain.note(connection, chain.RESTORED, cause, now, detail=told)
    chain.extend(connection)


def _finish(path: Path) -> None:
    files.sync_file(path)
    path.chmod(0o600)


def _remove(path: Path) -> None:
    for end in ("", *files.SIDE_FILES):
        path.with_name(path.name + end).unlink(missing_ok=True)
