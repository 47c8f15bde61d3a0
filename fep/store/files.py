"""The store's files in the state directory, and connections to them from outside of the daemon."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa

STORE_FILE: Final = "fep.sqlite"
LOCK_FILE: Final = "fep.lock"
"""Held by the one daemon of a state directory, and by who needs that none runs."""
RESTORING_FILE: Final = "fep.restoring"
"""There while ``fep restore`` changes files: the daemon does not start on half a restore."""
SIDE_FILES: Final = ("-wal", "-shm", "-journal")
"""SQLite's own beside a store's file. The first holds commits, the last what a cut-off commit is
undone with: they belong to that file alone."""
ARCHIVE: Final = re.compile(r"archive-(\d{4})\.sqlite")
BUSY_SECONDS: Final = 10.0
"""How long a command waits for the daemon's writer; the daemon's commits are short."""


def archive_name(year: str) -> str:
    """Return the file of a year's archived tasks."""
    return f"archive-{year}.sqlite"


def is_own(name: str) -> bool:
    """Say whether a file of this name in a state directory is the store's, or an archive."""
    own = {STORE_FILE, LOCK_FILE, RESTORING_FILE, *(STORE_FILE + end for end in SIDE_FILES)}
    return name in own or ARCHIVE.fullmatch(name) is not None


def told_of_folder(path: Path) -> str:
    """Return what is said of a folder where a file is asked for; SQLite says that a disk failed."""
    return f"{path} is a folder, not a store's file"


def archives(directory: Path) -> dict[str, Path]:
    """Return the archives of a state directory by year, in order."""
    found = ((ARCHIVE.fullmatch(path.name), path) for path in sorted(directory.iterdir()))
    return {match[1]: path for match, path in found if match}


@contextmanager
def reading(path: Path, *, any_text: bool = False) -> Iterator[sa.Connection]:
    """Open a store's file for reading: all queries of the block see the same moment.

    Args:
        path: the file.
        any_text: give a text that is not UTF-8 with marks in it, and raise nothing.

    Raises:
        sqlalchemy.exc.DBAPIError: it is not there, or no database.
    """
    with _opened(path, "ro") as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        if any_text:
            driver: Any = connection.connection.dbapi_connection
            driver.text_factory = _any_text
        connection.exec_driver_sql("BEGIN")
        yield connection


def _any_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@contextmanager
def writing(path: Path, *, alone: bool = False) -> Iterator[sa.Connection]:
    """Open a store's file beside the daemon; each change needs a transaction of its own.

    Args:
        path: the file; made when it is not there.
        alone: keep all of it in the one file, so that it can be carried about.

    Raises:
        sqlalchemy.exc.DBAPIError: it can't be opened, or is no database.
    """
    with _opened(path, "rwc") as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode={'DELETE' if alone else 'WAL'}")
        connection.exec_driver_sql("PRAGMA synchronous=FULL")
        yield connection


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sa.Connection]:
    address = f"file:{quote(str(path))}?mode={mode}"
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            address, uri=True, timeout=BUSY_SECONDS, check_same_thread=False
        ),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        try:
            yield connection
        finally:
            _roll_back(connection)


def _roll_back(connection: sa.Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    if driver.in_transaction:
        driver.execute("ROLLBACK")


@contextmanager
def transaction(connection: sa.Connection) -> Iterator[None]:
    """Hold the writer's place for the block; an exception undoes it whole."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    finally:
        _roll_back(connection)


def sync_directory(directory: Path) -> None:
    """Have the disk know the names in a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Have the disk know a file's content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_to_owner(path: Path, like: Path) -> None:
    """Let a file that root made belong to whom another belongs: the daemon must open it."""
    owner = like.stat()
    if os.geteuid() == 0:
        # Who owns the folder may have put a link there, to what is not his.
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
