"""What differs between the databases: how a transaction is begun, and what an error means.

The statements themselves are the same on all of them. :class:`Sqlite` is the embedded default;
``fep/store/postgres.py`` is for several front-end machines that share one store, and is loaded only
where the configuration names it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Protocol

import sqlalchemy as sa

from fep.domain.errors import FepError

BUSY_TIMEOUT_MS: Final = 5000
"""How long another program, such as a backup, may hold what is to be written before it is refused.
"""
SQLITE_FATAL: Final = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
)
"""What no work can be blamed for, even where SQLite would go on with the next statement."""


class Trouble(Enum):
    """What an error means for the group in which it came."""

    WORK = "work"
    """The work's own fault, and its own alone."""
    FULL = "full"
    """The disk is full: the work is refused, nothing stored is lost."""
    BUSY = "busy"
    """Somebody else holds what it needs: the work is refused, nothing stored is lost."""
    AGAIN = "again"
    """It crossed another machine's: nothing of the group is stored, and done again it may pass."""
    FATAL = "fatal"
    """What of the group is stored is not known, or nothing can be stored any more."""


class NotYetError(FepError):
    """The database can't be used at this moment; it may be when it is asked again."""

    code = "STORE_NOT_YET"


class Dialect(Protocol):
    """One kind of database; the same object for all its connections."""

    name: str
    is_shared: bool
    """True where other machines may write to the same store."""
    scope: str
    """Before the names of what is this machine's own in it; empty where all is."""
    errors: tuple[type[Exception], ...]
    """What SQLAlchemy and the driver itself raise."""
    begin: str
    """Begins the writer's transaction."""
    full: str
    """What is told when the disk is full."""
    busy: str
    """What is told when somebody else holds the store."""

    def engine(self, connections_max: int) -> sa.Engine:
        """Return the engine; its connections are in autocommit mode, transactions are ours."""

    def check(self, connection: sa.Connection) -> None:
        """Look whether the database can be trusted, before the first work, on the writer's own.

        Raises:
            NotYetError: ask again.
            FepError: it can't be used, and why.
        """

    def begin_read(self, connection: sa.Connection) -> None:
        """Begin a transaction that sees one moment and can't write."""

    def execute(self, raw: Any, *statements: str) -> None:  # noqa: ANN401 - the driver's connection
        """Run statements without values and without rows."""

    def wait_at_most(self, raw: Any, milliseconds: int) -> None:  # noqa: ANN401
        """Let the writer wait so long for another program that holds what it needs."""

    def commit(self, raw: Any) -> None:  # noqa: ANN401
        """End the writer's transaction; it is on disk when this returns."""

    def publish(self, raw: Any, notes: Sequence[str]) -> None:  # noqa: ANN401
        """Have all machines that listen told of these when the transaction is stored."""

    def listen(self, raw: Any) -> None:  # noqa: ANN401
        """Let a connection hear what is published from now on."""

    def heard(self, raw: Any) -> list[str]:  # noqa: ANN401
        """Return what a connection has heard since it was asked last; does not wait."""

    def changes(self, raw: Any) -> int:  # noqa: ANN401
        """Return a number that grew if rows were changed since it was asked for."""

    def in_transaction(self, raw: Any) -> bool:  # noqa: ANN401
        """Say whether a transaction is open on a connection."""

    def trouble(self, error: Exception) -> Trouble:
        """Return what an error means."""

    def told(self, error: Exception) -> str:
        """Return the database's own words, without the statement and its values."""

    def version(self, connection: sa.Connection) -> int:
        """Return the version of the tables, 0 when there are none."""

    def begin_migration(self, connection: sa.Connection) -> None:
        """Begin a transaction in which nobody else can change the tables."""

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Note the version of the tables, in the transaction that made them so."""


def origin(error: Exception) -> BaseException | None:
    """Return the driver's own error."""
    return error.orig if isinstance(error, sa.exc.DBAPIError) else error


class Sqlite:
    """A file of this machine alone: WAL, with a sync at every commit."""

    name = "sqlite"
    is_shared = False
    scope = ""
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, sqlite3.Error)
    begin = "BEGIN IMMEDIATE"
    full = "the disk is full; free space, nothing stored is lost"
    busy = "another program holds the store; end it, nothing stored is lost"

    def __init__(self, url: str | sa.URL) -> None:
        self._url = url

    def engine(self, connections_max: int) -> sa.Engine:
        """Return an engine on the file, which is made when it is not there."""
        engine = sa.create_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.QueuePool,
            pool_size=connections_max,
            connect_args={"check_same_thread": False},
        )
        sa.event.listen(engine, "connect", _make_durable)
        return engine

    def check(self, connection: sa.Connection) -> None:
        """Look whether the file can be written: one of another owner's is opened all the same.

        What is no database says so at the first statement. A reader may have been here before the
        start: a pooled connection keeps its pragmas.
        """
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        # Who holds the file keeps nobody from the start, and it is not waited for.
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        try:
            self._write_nothing(connection)
        except sa.exc.DBAPIError as error:
            if self.trouble(error) is not Trouble.BUSY:
                raise
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")

    def _write_nothing(self, connection: sa.Connection) -> None:
        """Write what is there, and take it back: a transaction alone asks for no right to write."""
        connection.exec_driver_sql(self.begin)
        try:
            self.set_version(connection, self.version(connection))
        finally:
            with suppress(sa.exc.DBAPIError):
                connection.exec_driver_sql("ROLLBACK")

    def begin_read(self, connection: sa.Connection) -> None:
        """Begin a transaction that sees one moment and can't write."""
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("BEGIN")

    def execute(self, raw: sqlite3.Connection, *statements: str) -> None:
        """Run statements on the driver's own connection: without a row they need no more."""
        for statement in statements:
            raw.execute(statement)

    def wait_at_most(self, raw: sqlite3.Connection, milliseconds: int) -> None:
        """Set the busy time-out of a connection."""
        raw.execute(f"PRAGMA busy_timeout={milliseconds}")

    def commit(self, raw: sqlite3.Connection) -> None:
        """Sync."""
        raw.execute("COMMIT")

    def publish(self, raw: sqlite3.Connection, notes: Sequence[str]) -> None:
        """Do nothing: there is no other machine."""

    def listen(self, raw: sqlite3.Connection) -> None:
        """Do nothing: there is nobody to hear."""

    def heard(self, raw: sqlite3.Connection) -> list[str]:  # noqa: ARG002
        """Return nothing."""
        return []

    def changes(self, raw: sqlite3.Connection) -> int:
        """Return SQLite's own count of changed rows."""
        return raw.total_changes

    def in_transaction(self, raw: sqlite3.Connection) -> bool:
        """Say whether a transaction is open on a connection."""
        return raw.in_transaction

    def trouble(self, error: Exception) -> Trouble:
        """Return what an error means, by SQLite's primary result code."""
        code: int | None = getattr(origin(error), "sqlite_errorcode", None)
        match None if code is None else code & 0xFF:
            case sqlite3.SQLITE_FULL:
                return Trouble.FULL
            case sqlite3.SQLITE_BUSY:
                return Trouble.BUSY
            case found if found in SQLITE_FATAL:
                return Trouble.FATAL
            case _:
                return Trouble.WORK

    def told(self, error: Exception) -> str:
        """Return SQLite's own words."""
        own = origin(error)
        return f"{own} ({getattr(own, 'sqlite_errorname', type(own).__name__)})"

    def version(self, connection: sa.Connection) -> int:
        """Return what stands in the file's head."""
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())

    def begin_migration(self, connection: sa.Connection) -> None:
        """Begin; the file has one writer."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Write it into the file's head."""
        connection.exec_driver_sql(f"PRAGMA user_version={version}")


def _make_durable(raw: sqlite3.Connection, _record: object) -> None:
    """Set what makes a commit durable: WAL with a sync at every commit; nothing beside the file."""
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
        "wal_autocheckpoint=4000",
        # Accounts and amounts in a temporary file would outlive a kill.
        "temp_store=MEMORY",
    ):
        raw.execute(f"PRAGMA {pragma}")
