"""The database: one writer that commits in groups, so that one sync pays for many changes.

What waits while a sync runs is the next group: no timer, no added delay when idle. Each piece of
work runs in a savepoint of its own, so a failing one does not sink its group. A failed sync is
fail-stop: what the disk holds then is not known to us, so the daemon ends and reads it afresh. A
full disk refuses the group's work, keeps what was there, and recovers.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import sqlalchemy as sa
import structlog
import trio

from fep.domain.errors import FepError
from fep.store import schema

log = structlog.get_logger()

GROUP_WORK_MAX: Final = 512
WAITING_WORK_MAX: Final = 8192
READERS_MAX: Final = 2
BUSY_TIMEOUT_MS: Final = 5000


class StoreFailedError(FepError):
    """The disk or the database failed in a commit: nothing more is written by this process."""

    code = "STORE_FAILED"


class StoreFullError(FepError):
    """The disk is full: this work was not done, and nothing that was stored is lost."""

    code = "STORE_FULL"


class StoreBusyError(FepError):
    """More work waits than the store holds in memory; ask again later."""

    code = "STORE_BUSY"


Work = Callable[[sa.Connection], Any]
Done = Callable[[Any, Exception | None], None]
"""Called in the trio thread after the commit with (result, None) or (None, error)."""


@attrs.define(eq=False)
class _Item:
    work: Work
    done: Done
    result: Any = None
    error: Exception | None = None


def _is_full(error: BaseException) -> bool:
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return getattr(origin, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


class Store:
    """Owns the database file; everybody else hands it functions that take a connection.

    Start :meth:`run` in the daemon's nursery; it is ``started()`` when the schema is current. It
    ends when cancelled, after the work that was accepted is committed, and raises
    ``StoreFailedError`` when a commit fails for any reason but a full disk.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.QueuePool,
            pool_size=READERS_MAX + 1,
            connect_args={"check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", _prepare_connection)
        self._waiting: deque[_Item] = deque()
        self._wake = trio.Event()
        self._writer_limiter = trio.CapacityLimiter(1)
        self._reader_limiter = trio.CapacityLimiter(READERS_MAX)
        self._connection: sa.Connection | None = None
        self._full = False
        self._failed = False
        self._closed = False

    @classmethod
    def at(cls, path: Path) -> Store:
        """Return the store of an SQLite file, made when it is not there."""
        return cls(f"sqlite:///{path}")

    @property
    def failed(self) -> bool:
        """True after a commit that failed for good: this process must end."""
        return self._failed

    @property
    def full(self) -> bool:
        """True from a commit refused by a full disk until one that succeeds."""
        return self._full

    def submit(self, work: Work, done: Done) -> None:
        """Queue work for the next group; ``done`` is called after its commit.

        Raises:
            StoreBusyError: too much waits; nothing was queued.
            StoreFailedError: the store has ended.
        """
        if self._failed or self._closed:
            msg = "the store has ended; restart the service"
            raise StoreFailedError(msg)
        if len(self._waiting) >= WAITING_WORK_MAX:
            msg = f"{WAITING_WORK_MAX} changes wait for the disk; try again later"
            raise StoreBusyError(msg)
        self._waiting.append(_Item(work, done))
        self._wake.set()

    async def write(self, work: Callable[[sa.Connection], Any]) -> Any:  # noqa: ANN401
        """Run the work in the next group and return its result once it is on disk.

        A cancelled caller does not undo it: the work may still be committed.

        Raises:
            StoreFullError, StoreFailedError, StoreBusyError: nothing of this work is stored.
            Exception: whatever the work itself raised; its changes are rolled back.
        """
        finished = trio.Event()
        box: list[tuple[Any, Exception | None]] = []

        def done(result: Any, error: Exception | None) -> None:  # noqa: ANN401
            box.append((result, error))
            finished.set()

        self.submit(work, done)
        await finished.wait()
        result, error = box[0]
        if error is not None:
            raise error
        return result

    async def read(self, work: Callable[[sa.Connection], Any]) -> Any:  # noqa: ANN401
        """Run a query in a reader thread and return its result; it sees committed data only."""

        def run() -> Any:  # noqa: ANN401
            with self._engine.connect() as connection:
                return work(connection)

        return await trio.to_thread.run_sync(run, limiter=self._reader_limiter)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit group after group until cancelled; then commit what was accepted, and close."""
        self._connection = await trio.to_thread.run_sync(self._open, limiter=self._writer_limiter)
        task_status.started()
        try:
            while True:
                if not self._waiting:
                    self._wake = trio.Event()
                    await self._wake.wait()
                await self._commit_group()
        finally:
            self._closed = True
            # The accepted work is drained: one sync each, bounded by WAITING_WORK_MAX.
            with trio.CancelScope(shield=True, relative_deadline=CLOSE_SECONDS_MAX):
                while self._waiting and not self._failed:
                    await self._commit_group()
                await trio.to_thread.run_sync(self._close, limiter=self._writer_limiter)

    async def _commit_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(GROUP_WORK_MAX, len(self._waiting)))]
        # A commit can't be abandoned half-way: the shield lasts one sync.
        with trio.CancelScope(shield=True, relative_deadline=COMMIT_SECONDS_MAX):
            try:
                await trio.to_thread.run_sync(self._commit, group, limiter=self._writer_limiter)
            except StoreFailedError as failure:
                self._failed = True
                log.error("store.failed", reason=str(failure))
                group.extend(self._waiting)
                self._waiting.clear()
                for item in group:
                    item.error = failure
                _answer(group)
                raise
        full = any(isinstance(item.error, StoreFullError) for item in group)
        if full != self._full:
            self._full = full
            log.error("store.filled") if full else log.info("store.recovered")
        _answer(group)

    def _open(self) -> sa.Connection:
        connection = self._engine.connect()
        schema.migrate(connection)
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    def _commit(self, group: list[_Item]) -> None:
        """Run one group in one transaction (writer thread)."""
        connection = self._connection
        assert connection is not None
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            for item in group:
                connection.exec_driver_sql("SAVEPOINT work")
                try:
                    item.result = item.work(connection)
                except Exception as error:  # belongs to its submitter; the group lives on
                    if not _in_transaction(connection):
                        raise  # the database rolled everything back: full disk, I/O error
                    item.error = error
                    connection.exec_driver_sql("ROLLBACK TO work")
                connection.exec_driver_sql("RELEASE work")
            connection.exec_driver_sql("COMMIT")
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            if _in_transaction(connection):
                with suppress(sa.exc.DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
            if not _is_full(error):
                raise StoreFailedError(str(error)) from error
            refusal = StoreFullError("the disk is full; free space, nothing stored is lost")
            for item in group:
                item.result, item.error = None, refusal


def _answer(group: list[_Item]) -> None:
    for item in group:
        item.done(item.result, item.error)


def _in_transaction(connection: sa.Connection) -> bool:
    raw: Any = connection.connection.dbapi_connection
    return bool(raw.in_transaction)


def _prepare_connection(raw: sqlite3.Connection, _record: object) -> None:
    """Set what makes a commit durable: WAL with a sync at every commit."""
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
        "wal_autocheckpoint=4000",
    ):
        raw.execute(f"PRAGMA {pragma}")


CLOSE_SECONDS_MAX: Final = 30.0
COMMIT_SECONDS_MAX: Final = 60.0
"""trio threads can't be abandoned: this bounds nothing but a stuck disk's silence in the logs."""
