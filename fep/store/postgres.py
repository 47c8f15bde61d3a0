"""PostgreSQL as the store of several front-end machines (共享库): one writes at a time.

The writer's transaction holds one lock of the whole store from its beginning to its commit, as it
does with SQLite's file. So groups of all machines have one order: a place in the queue, and the
number of an event, given later is greater; two machines never cross, and what a group has read it
can rely on until its commit. Reads wait for nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import psycopg.types.string
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from fep.domain.errors import ConfigError
from fep.store.dialect import BUSY_TIMEOUT_MS, NotYetError, Trouble, origin

SERVER_VERSION_MIN: Final = 150_000
CONNECT_SECONDS_MAX: Final = 10
STALLED_WRITER_MS: Final = 3000
"""A machine that stops in the middle of a group holds up all others; so long, then it is cut off.

Less than the others wait for their turn, so that they are held up and not refused.
"""
CHANNEL: Final = "fep"
WRITE_LOCK: Final = 0x46_45_50  # the letters FEP
"""Advisory lock of this database; whoever writes holds it."""
OPTIONS: Final = (
    ("synchronous_commit", "on"),
    ("lock_timeout", str(BUSY_TIMEOUT_MS)),
    ("TimeZone", "UTC"),
    ("client_min_messages", "warning"),
    # The server finds a machine that vanished, and lets go of its locks, in about 25 seconds.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
)
ARGUMENTS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS_MAX,
    "client_encoding": "UTF8",
    "options": " ".join(f"-c {name}={value}" for name, value in OPTIONS),
    # And so do we.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

_AGAIN: Final = frozenset({"40001", "40P01"})
"""Serialization failure, deadlock: another program's doing, since machines don't cross."""
_BUSY: Final = frozenset({"55P03", "57014", "53000", "53200", "53300", "53400"})
"""Lock not to be had, cancelled by an administrator, short of memory or connections."""
_FULL: Final = "53100"
_FATAL: Final = ("08", "57", "58", "F0", "XX")
"""Classes: connection, shutdown, I/O, files, data that are corrupted."""


class Postgres:
    """A PostgreSQL server, 15 or later, that several machines share.

    Args:
        url: ``postgresql+psycopg://user@host:port/database``, without a password.
        password: None where the server trusts the peer, or ``.pgpass`` has it.
        machine: the number of this front-end machine; another one with it is kept out.
    """

    name = "postgresql"
    is_shared = True
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, psycopg.Error)
    # One message to the server: the lock costs no round trip of its own.
    begin = (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
        f" SELECT pg_advisory_xact_lock({WRITE_LOCK})"
    )
    full = "the database's disk is full; free space, nothing stored is lost"
    busy = "another program holds the database; end it, nothing stored is lost"

    def __init__(self, url: str | sa.URL, password: str | None = None, machine: str = "") -> None:
        self._url = url
        self._machine = machine
        self.scope = f"{machine}/"
        self._count = itertools.count()
        self._arguments = ARGUMENTS | {"application_name": f"fep {machine}"}
        if password is not None:
            self._arguments["password"] = password

    @property
    def address(self) -> str:
        """The database's address as ``pg_dump`` and ``psql`` take it, without a password."""
        url = sa.make_url(self._url).set(drivername="postgresql", password=None)
        return url.render_as_string()

    def engine(self, connections_max: int) -> sa.Engine:
        """Return an engine; an idle connection that was lost is made anew when it is wanted."""
        engine = sa.create_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.QueuePool,
            pool_size=connections_max,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args=self._arguments,
        )
        sa.event.listen(engine, "connect", _prepare_connection)
        return engine

    def check(self, connection: sa.Connection) -> None:
        """Look whether a commit on this server is on disk, and prepare the writer's connection.

        Raises:
            ConfigError: it is not, or the server can't hold what we store.
            NotYetError: another process of this machine's number writes still.
        """
        for name, good, why in (
            ("fsync", "on", "a commit is not on disk"),
            ("full_page_writes", "on", "a power cut may tear a page"),
            ("synchronous_commit", "on", "a commit is not on disk"),
            ("server_encoding", "UTF8", "it can't hold Chinese text"),
            ("transaction_read_only", "off", "it is a standby, or read-only"),
        ):
            found = connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            if found != good:
                msg = f"the database has {name} = {found}: {why}; it must be {good}"
                raise ConfigError(msg)
        version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        if version < SERVER_VERSION_MIN:
            msg = f"PostgreSQL 15 or later is needed; the server is {version // 10_000}"
            raise ConfigError(msg)
        connection.exec_driver_sql(f"SET idle_in_transaction_session_timeout = {STALLED_WRITER_MS}")
        # Held as long as this connection: who gets it knows that the last group of the process
        # before is stored, or never will be.
        mine = connection.exec_driver_sql(
            "SELECT pg_try_advisory_lock(%s::int, hashtext(%s))", (WRITE_LOCK, self._machine)
        )
        if not mine.scalar_one():
            msg = (
                f"another process writes to this store as machine {self._machine!r}; "
                "end it, or give each machine a fep_number of its own"
            )
            raise NotYetError(msg)

    def begin_read(self, connection: sa.Connection) -> None:
        """Begin a transaction that sees one moment and can't write."""
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def execute(self, raw: psycopg.Connection[Any], *statements: str) -> None:
        """Run statements, all in one message to the server."""
        raw.execute("; ".join(statements).encode(), prepare=False)

    def wait_at_most(self, raw: psycopg.Connection[Any], milliseconds: int) -> None:
        """Do nothing: the server's own limits hold."""

    def commit(self, raw: psycopg.Connection[Any]) -> None:
        """Sync.

        Raises:
            psycopg.OperationalError: the server rolled back instead, which it says only here.
        """
        done = raw.execute(b"COMMIT", prepare=False).statusmessage
        if done != "COMMIT":
            msg = f"COMMIT was answered with {done}"
            raise psycopg.OperationalError(msg)

    def publish(self, raw: psycopg.Connection[Any], notes: Sequence[str]) -> None:
        """Have all machines that listen told of these when the transaction is stored."""
        raw.execute(
            "SELECT pg_notify(%s, note) FROM unnest(%s::text[]) note", (CHANNEL, list(notes))
        )

    def listen(self, raw: psycopg.Connection[Any]) -> None:
        """Let a connection hear what is published from now on."""
        raw.execute(f"LISTEN {CHANNEL}".encode())

    def heard(self, raw: psycopg.Connection[Any]) -> list[str]:
        """Return what a connection has heard since it was asked last; does not wait.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        raw.pgconn.consume_input()
        notes = []
        while (note := raw.pgconn.notifies()) is not None:
            notes.append(note.extra.decode("utf-8"))
        return notes

    def changes(self, _raw: psycopg.Connection[Any]) -> int:
        """Return a greater number each time: the server does not count, so all may have changed."""
        return next(self._count)

    def in_transaction(self, raw: psycopg.Connection[Any]) -> bool:
        """Say whether a transaction is open on a connection; a broken one has none."""
        return raw.info.transaction_status in (
            TransactionStatus.ACTIVE,
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        )

    def trouble(self, error: Exception) -> Trouble:
        """Return what an error means, by its SQLSTATE."""
        own = origin(error)
        state: str | None = getattr(own, "sqlstate", None)
        if state is None:
            lost = (psycopg.OperationalError, psycopg.InterfaceError)
            return Trouble.FATAL if isinstance(own, lost) else Trouble.WORK
        if state == _FULL:
            return Trouble.FULL
        if state in _AGAIN:
            return Trouble.AGAIN
        if state in _BUSY:
            return Trouble.BUSY
        return Trouble.FATAL if state.startswith(_FATAL) else Trouble.WORK

    def told(self, error: Exception) -> str:
        """Return the server's first line and code; its details may hold values."""
        own = origin(error)
        if isinstance(own, psycopg.Error) and own.diag.message_primary:
            return f"{own.diag.message_primary} ({own.sqlstate})"
        lines = str(own).strip().splitlines()
        return f"{lines[0] if lines else 'no reason given'} ({type(own).__name__})"

    def version(self, connection: sa.Connection) -> int:
        """Return the version of the tables, 0 when there are none."""
        if connection.exec_driver_sql("SELECT to_regclass('store_version')").scalar_one() is None:
            return 0
        return int(connection.exec_driver_sql("SELECT version FROM store_version").scalar_one())

    def begin_migration(self, connection: sa.Connection) -> None:
        """Begin as a writer does: of machines that start together, one makes the tables."""
        raw: Any = connection.connection.dbapi_connection
        self.execute(raw, self.begin)

    def set_version(self, connection: sa.Connection, version: int) -> None:
        """Write it into the table that holds nothing else."""
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS store_version (version int)")
        connection.exec_driver_sql("DELETE FROM store_version")
        connection.exec_driver_sql(f"INSERT INTO store_version VALUES ({version})")  # noqa: S608


class _Text(psycopg.types.string.StrDumper):
    """Text without the character NUL, which PostgreSQL has not: a bank's words may hold it."""

    def dump(self, obj: str) -> Any:  # noqa: ANN401 - the driver's buffer
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


def _prepare_connection(raw: psycopg.Connection[Any], _record: object) -> None:
    raw.adapters.register_dumper(str, _Text)
