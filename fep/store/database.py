"""The database: one writer that commits in groups, so that one sync pays for many changes.

What waits while a sync runs is the next group: no timer, no added delay when idle. Each piece of
work runs in a savepoint of its own, so a failing one does not sink its group. A failed sync is
fail-stop: what the disk holds then is not known to us, so the daemon ends and reads it afresh. A
full disk, or another program that holds the file, refuses the group's work, keeps what was there,
and recovers.
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
from fep.store import chain, files, schema

log = structlog.get_logger()

GROUP_WORK_MAX: Final = 512
WAITING_WORK_MAX: Final = 8192
READERS_MAX: Final = 2
BUSY_TIMEOUT_MS: Final = 5000
"""How long another program, such as a backup, may hold the file before work is refused."""
HEAD_SECONDS: Final = 3600.0
"""So often the log is told the head of the chain, if there is a new one."""
CLOSE_SECONDS_MAX: Final = 30.0
COMMIT_SECONDS_MAX: Final = 60.0
"""A thread in a commit can't be abandoned: these bound nothing but what waits beside it."""


class StoreFailedError(FepError):
    """The disk or the database failed in a commit: nothing more is written by this process."""

    code = "STORE_FAILED"


class StoreFullError(FepError):
    """The disk is full: this work was not done, and nothing that was stored is lost."""

    code = "STORE_FULL"


class StoreBusyError(FepError):
    """More work waits than memory holds, or another program holds the file; ask again later."""

    code = "STORE_BUSY"


FATAL: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What no work can be blamed for, even where SQLite would go on with the next statement."""

Work = Callable[[sa.Connection], Any]
Done = Callable[[Any, Exception | None], None]
"""Called in the trio thread after the commit with (result, None) or (None, error)."""


@attrs.define(eq=False)
class _Item:
    work: Work
    done: Done
    result: Any = None
    error: Exception | None = None


def _refusal(error: Exception) -> FepError | None:
    """Return what to tell the submitters when nothing was lost, None when the store has failed."""
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return StoreFullError("the disk is full; free space, nothing stored is lost")
        case sqlite3.SQLITE_BUSY:
            return StoreBusyError("another program holds the store; end it, nothing stored is lost")
        case _:
            return None


def _code(error: Exception) -> int | None:
    """Return SQLite's primary result code, None of what is no error of the database."""
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code: int | None = getattr(origin, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


class Store:
    """Owns the database file; everybody else hands it functions that take a connection.

    Start :meth:`run` in the daemon's nursery; it is ``started()`` when the schema is current. It
    ends when cancelled, after the work that was accepted is committed, and raises
    ``StoreFailedError`` when a commit fails for any reason but a full or busy disk. It runs once.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self._engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.QueuePool,
            pool_size=READERS_MAX + 1,
            connect_args={"check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", _prepare_connection)
        self._waiting: deque[_Item] = deque()
        self._committed: deque[list[_Item]] = deque()
        """Groups that are on disk and not answered yet."""
        self._defect: Exception | None = None
        self._wake = trio.Event()
        self._writer_limiter = trio.CapacityLimiter(1)
        self._reader_limiter = trio.CapacityLimiter(READERS_MAX)
        self._connection: sa.Connection | None = None
        self._head = self._noted = chain.Link()
        self._note_head_at = 0.0
        self._full = False
        self._wrote = False
        """Whether the last group changed anything."""
        self._opened = False
        self._failed = False
        self._closed = False

    @classmethod
    def at(cls, path: Path) -> Store:
        """Return the store of an SQLite file, made when it is not there."""
        return cls(sa.URL.create("sqlite", database=str(path)))

    @property
    def directory(self) -> Path | None:
        """Where the file and its archives are; None of a store that is no file."""
        database = self._engine.url.database
        return Path(database).parent if database else None

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
        self._check_open()
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
        """Run queries in a reader thread and return their result.

        They see committed data only, and all of them the same moment. They can't write.

        Raises:
            StoreFailedError: the store has ended.
            sqlalchemy.exc.DBAPIError: the file can't be read.
            Exception: whatever the work itself raised.
        """

        def run() -> Any:  # noqa: ANN401
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA query_only=ON")
                connection.exec_driver_sql("BEGIN")
                try:
                    return work(connection)
                finally:
                    if _in_transaction(connection):
                        connection.exec_driver_sql("ROLLBACK")

        self._check_open()
        return await trio.to_thread.run_sync(run, limiter=self._reader_limiter)

    async def read_archive(self, year: str, work: Callable[[sa.Connection], Any]) -> Any:  # noqa: ANN401
        """Run queries on the archive of a year in a reader thread; None when it can't be read.

        It may have been carried away, or be of an older release until ``fep archive`` is run.
        """
        directory = self.directory
        if directory is None:
            return None
        path = directory / files.archive_name(year)

        def run() -> Any:  # noqa: ANN401
            try:
                with files.reading(path) as connection:
                    return work(connection)
            except sa.exc.DBAPIError:
                return None

        return await trio.to_thread.run_sync(run, limiter=self._reader_limiter)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit group after group until cancelled; then commit what was accepted, and close.

        Raises:
            NewerStoreError: a newer release wrote the file.
            StoreFailedError: it can't be opened, or a commit failed.
        """
        try:
            await self._start()
            task_status.started()
            while True:
                if self._defect is not None:
                    raise self._defect
                if not self._waiting:
                    self._wake = trio.Event()
                    await self._wake.wait()
                # The commit is shielded: under load this is where a cancellation is seen.
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._commit_group()
        finally:
            self._closed = True
            with trio.CancelScope(shield=True, relative_deadline=CLOSE_SECONDS_MAX):
                await self._finish()

    async def _start(self) -> None:
        try:
            await trio.to_thread.run_sync(self._open, limiter=self._writer_limiter)
        except FepError as failure:
            self._fail([], failure)
            raise
        self._opened = True
        self._note_head()

    async def _finish(self) -> None:
        """Commit what was accepted, and close; nothing more is accepted, so this ends."""
        if not self._opened and not self._failed:
            self._fail([], StoreFailedError("the store ended before it began"))
        try:
            while self._waiting:
                await self._commit_group()
        finally:
            self._answer_committed()
            self._note_head()
            # Its caller has the shield and its deadline.
            await trio.to_thread.run_sync(self._close, limiter=self._writer_limiter)  # noqa: ASYNC102

    def _check_open(self) -> None:
        if self._failed or self._closed:
            msg = "the store has ended; restart the service"
            raise StoreFailedError(msg)

    def _fail(self, group: list[_Item], failure: FepError) -> None:
        """Tell everybody who waits that nothing more is written."""
        self._failed = True
        log.error("store.failed", reason=str(failure))
        group.extend(self._waiting)
        self._waiting.clear()
        for item in group:
            item.result, item.error = None, failure
        self._committed.append(group)
        self._answer_committed()

    async def _commit_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(GROUP_WORK_MAX, len(self._waiting)))]
        # A commit can't be abandoned half-way: the shield lasts one sync.
        with trio.CancelScope(shield=True, relative_deadline=COMMIT_SECONDS_MAX):
            try:
                await trio.to_thread.run_sync(self._commit, group, limiter=self._writer_limiter)
            except StoreFailedError as failure:
                self._fail(group, failure)
                raise
        if all(isinstance(item.error, StoreBusyError) for item in group):
            log.warning("store.held", refused=len(group))
        else:
            full = any(isinstance(item.error, StoreFullError) for item in group)
            if full or self._wrote:
                # A commit of nothing says nothing of the disk.
                self._note_full(full=full)
        if trio.current_time() >= self._note_head_at:
            self._note_head()
        self._committed.append(group)
        if self._waiting:
            # The next group's sync runs while this one's submitters are answered.
            trio.lowlevel.current_trio_token().run_sync_soon(self._answer_committed)
        else:
            self._answer_committed()

    def _answer_committed(self) -> None:
        """Answer the groups that are on disk, oldest first.

        A defect in one answer is raised by ``run``; the others have theirs all the same.
        """
        while self._committed:
            for item in self._committed.popleft():
                try:
                    item.done(item.result, item.error)
                except Exception as error:  # noqa: BLE001 - a defect: raised by ``run``
                    self._defect = error
                    self._wake.set()

    def _note_head(self) -> None:
        """Have the log know the head of the chain: outside of the file that it proves."""
        if self._head != self._noted:
            self._noted = self._head
            log.info("chain.noted", head=str(self._head))
        self._note_head_at = trio.current_time() + HEAD_SECONDS

    def _note_full(self, *, full: bool) -> None:
        if full and not self._full:
            log.error("store.filled")
        elif self._full and not full:
            log.info("store.recovered")
        self._full = full

    def _open(self) -> None:
        try:
            self._connection = self._engine.connect()
            # A reader may have been here before the start: a pooled connection keeps its pragmas.
            self._connection.exec_driver_sql("PRAGMA query_only=OFF")
            schema.migrate(self._connection)
            self._head = chain.head(self._connection)
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            msg = f"the store can't be opened: {_told(error)}"
            raise StoreFailedError(msg) from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    def _commit(self, group: list[_Item]) -> None:
        """Run one group in one transaction (writer thread).

        Raises:
            StoreFailedError: what of the group is on disk is not known.
        """
        connection = self._connection
        assert connection is not None
        raw = _raw(connection)
        changes = raw.total_changes
        try:
            raw.execute("BEGIN IMMEDIATE")
            for item in group:
                _run_in_savepoint(connection, raw, item)
            head = chain.extend(connection)
            raw.execute("COMMIT")
            self._head = head or self._head
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            if _in_transaction(connection):
                with suppress(sa.exc.DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
            refusal = _refusal(error)
            if refusal is None:
                raise StoreFailedError(_told(error)) from error
            for item in group:
                item.result, item.error = None, refusal
        self._wrote = raw.total_changes > changes


def _run_in_savepoint(connection: sa.Connection, raw: sqlite3.Connection, item: _Item) -> None:
    """Do one piece of work; what it raises is kept for its submitter, and the group lives on.

    Raises:
        sqlite3.Error, sqlalchemy.exc.DBAPIError: the database rolled the whole group back (full
            disk, I/O error), or is broken.
    """
    raw.execute("SAVEPOINT work")
    try:
        item.result = item.work(connection)
    except Exception as error:  # belongs to its submitter: see above
        if _code(error) in FATAL or (_code(error) and not _in_transaction(connection)):
            raise
        if _in_transaction(connection):
            raw.execute("ROLLBACK TO work")
        # SQLite may undo only the one statement that found the disk full.
        item.error = _refusal(error) or error
    # Fails when the group's transaction is gone, whatever the work made of that.
    raw.execute("RELEASE work")


def _told(error: Exception) -> str:
    """Return SQLite's own words, without the statement and its values."""
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return f"{origin} ({getattr(origin, 'sqlite_errorname', type(origin).__name__)})"


def _raw(connection: sa.Connection) -> sqlite3.Connection:
    """Return the driver's own connection: a statement without a row needs no more."""
    raw: Any = connection.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _in_transaction(connection: sa.Connection) -> bool:
    return _raw(connection).in_transaction


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
