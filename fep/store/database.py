"""The database: one writer that commits in groups, so that one sync pays for many changes.

What waits while a sync runs is the next group: no timer, no added delay when idle. A slow disk is
waited for in a thread; for a quick one the loop stands still, see ``fep/store/pace.py``. Each piece
of work runs in a savepoint of its own, so a failing one does not sink its group. A failed sync is
fail-stop: what the disk holds then is not known to us, so the daemon ends and reads it afresh. A
full disk, or another program that holds the file, refuses the group's work, keeps what was there,
and recovers.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, assert_never

import attrs
import sqlalchemy as sa
import structlog
import trio

from fep.domain.errors import FepError
from fep.domain.histogram import COMMIT_SECONDS, Histogram
from fep.store import chain, files, schema
from fep.store.dialect import BUSY_TIMEOUT_MS, Dialect, NotYetError, Sqlite, Trouble
from fep.store.pace import Pace

log = structlog.get_logger()

GROUP_WORK_MAX: Final = 512
WAITING_WORK_MAX: Final = 8192
OTHERS_TURNS_MAX: Final = 4
"""Turns of the loop that others get to join a group that is committed without a thread."""
READERS_MAX: Final = 2
OPEN_SECONDS_MAX: Final = 10.0
"""How long a server that does not answer is asked again at the start: it may be starting too."""
OPEN_RETRY_SECONDS: Final = 0.5
AWAY_NOTE_SECONDS: Final = 60.0
"""The log is told so often that it does not answer still."""
STALLED_SECONDS: Final = 10.0
"""A group that takes so long: the server of a shared store does not answer, and may never."""
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


Work = Callable[[sa.Connection], Any]
Done = Callable[[Any, Exception | None], None]
"""Called in the trio thread after the commit with (result, None) or (None, error)."""


NOTE_BYTES_MAX: Final = 7900
"""Of what :func:`tell` takes: the database carries no longer ones."""
_NOTES: Final = "fep.notes"
_SCRATCH: Final = "fep.scratch"


def tell(connection: sa.Connection, note: str) -> None:
    """Have every machine that listens told this, if and when this work is stored."""
    assert len(note.encode()) <= NOTE_BYTES_MAX
    connection.info[_NOTES].append(note)


def scratch(connection: sa.Connection) -> dict[str, Any]:
    """Return what the works of one group know together; empty when the group begins."""
    found: dict[str, Any] = connection.info[_SCRATCH]
    return found


@attrs.define(eq=False)
class _Item:
    work: Work
    done: Done
    result: Any = None
    error: Exception | None = None


class Store:
    """Owns the database file; everybody else hands it functions that take a connection.

    Start :meth:`run` in the daemon's nursery; it is ``started()`` when the schema is current. It
    ends when cancelled, after the work that was accepted is committed, and raises
    ``StoreFailedError`` when a commit fails for any reason but a full or busy disk. It runs once.

    Args:
        dialect: of the database.
        open_seconds_max: how long the server of a shared store is asked again at the start.
        pace: decides which commits are done without a thread.
    """

    def __init__(
        self,
        dialect: Dialect,
        open_seconds_max: float = OPEN_SECONDS_MAX,
        pace: Pace | None = None,
    ) -> None:
        self.dialect = dialect
        self.away = ""
        """Why the server of a shared store can't be used; empty once it is open."""
        self.went_away = trio.Event()
        """Set when it did not answer at the start."""
        self._open_seconds_max = open_seconds_max
        self._pace = Pace() if pace is None else pace
        self._is_patient = True
        """Whether a commit waits for another program that holds the file."""
        self._engine = dialect.engine(READERS_MAX + 2)
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
        self._began = math.inf
        """When the group that is being written began."""
        self._full = False
        self._wrote = False
        """Whether the last group changed anything."""
        self.commits = Histogram(COMMIT_SECONDS)
        """Seconds of each group, from its first work to its end on the disk."""
        self.works = 0
        """How many pieces of work those groups had."""
        self._opened = False
        self._failed = False
        self._closed = False

    @classmethod
    def at(cls, path: Path, pace: Pace | None = None) -> Store:
        """Return the store of an SQLite file, made when it is not there."""
        return cls(Sqlite(sa.URL.create("sqlite", database=str(path))), pace=pace)

    @property
    def is_shared(self) -> bool:
        """True where other machines may write to it too."""
        return self.dialect.is_shared

    @property
    def scope(self) -> str:
        """What stands before the names of this machine's own things; empty where all is its own."""
        return self.dialect.scope

    @property
    def directory(self) -> Path | None:
        """Where the file and its archives are; None of a store that is no file."""
        return None if self.path is None else self.path.parent

    @property
    def failed(self) -> bool:
        """True after a commit that failed for good: this process must end."""
        return self._failed

    @property
    def stalled(self) -> bool:
        """True while a group of a shared store waits for an answer that does not come."""
        return self.is_shared and trio.current_time() - self._began > STALLED_SECONDS

    @property
    def full(self) -> bool:
        """True from a commit refused by a full disk until one that succeeds."""
        return self._full

    @property
    def waiting(self) -> int:
        """How many pieces of work wait for the disk."""
        return len(self._waiting)

    @property
    def path(self) -> Path | None:
        """The file; None of a store that is none."""
        database = None if self.is_shared else self._engine.url.database
        return Path(database) if database else None

    def submit(self, work: Work, done: Done) -> None:
        """Queue work for the next group; ``done`` is called after its commit.

        Raises:
            StoreBusyError: too much waits, or the server does not answer; nothing was queued.
            StoreFailedError: the store has ended.
        """
        self._check_open()
        if len(self._waiting) >= WAITING_WORK_MAX:
            msg = f"{WAITING_WORK_MAX} changes wait for the disk; try again later"
            raise StoreBusyError(msg)
        if self.stalled:
            raise StoreBusyError("the shared database does not answer; try again later")
        self._waiting.append(_Item(work, done))
        self._wake.set()

    async def write(
        self,
        work: Callable[[sa.Connection], Any],
        known: Callable[[Any], None] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the work in the next group and return its result once it is on disk.

        A cancelled caller does not undo it: the work may still be committed. What must be known of
        it then is for ``known``, which is called with the result in that moment, whoever waits.

        Raises:
            StoreFullError, StoreFailedError, StoreBusyError: nothing of this work is stored.
            Exception: whatever the work itself raised; its changes are rolled back.
        """
        finished = trio.Event()
        box: list[tuple[Any, Exception | None]] = []

        def done(result: Any, error: Exception | None) -> None:  # noqa: ANN401
            box.append((result, error))
            finished.set()
            if known is not None and error is None:
                known(result)

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
            StoreBusyError, StoreFullError: the server of a shared store refuses it for the moment;
                ask again.
            StoreFailedError: the store has ended, or the server is lost, which ends it.
            sqlalchemy.exc.DBAPIError: the file can't be read.
            Exception: whatever the work itself raised.
        """

        def run() -> Any:  # noqa: ANN401
            with self._engine.connect() as connection:
                # Now: of a connection that was lost SQLAlchemy shows nothing any more.
                raw = _raw(connection)
                self.dialect.begin_read(connection)
                try:
                    return work(connection)
                finally:
                    if self.dialect.in_transaction(raw):
                        connection.exec_driver_sql("ROLLBACK")

        self._check_open()
        try:
            return await trio.to_thread.run_sync(run, limiter=self._reader_limiter)
        except sa.exc.DBAPIError as error:
            if not self.is_shared:
                raise
            match trouble := self.dialect.trouble(error):
                case Trouble.WORK:
                    raise
                case Trouble.FATAL:
                    # Who can't read can't write either, and will not find out where nothing is to
                    # write.
                    failure = StoreFailedError(self.dialect.told(error))
                    self._end(failure)
                    raise failure from error
                case Trouble.FULL:
                    refusal: FepError = StoreFullError(self.dialect.full)
                case Trouble.BUSY | Trouble.AGAIN:
                    refusal = StoreBusyError(self.dialect.busy)
                case _:
                    assert_never(trouble)
            log.warning("store.read_refused", reason=self.dialect.told(error))
            raise refusal from error

    async def listen(
        self,
        hear: Callable[[str], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Give ``hear`` what is told by any machine, in the order of commits, until cancelled.

        What was told before ``started()`` is stored by then: who reads after it misses nothing.

        Raises:
            StoreFailedError: the connection is lost, and what was told since with it.
        """

        def open_ear() -> sa.Connection:
            connection = self._engine.connect()
            self.dialect.listen(_raw(connection))
            return connection

        try:
            ear = await trio.to_thread.run_sync(open_ear)
            try:
                raw = _raw(ear)
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(raw.fileno())
                    for note in self.dialect.heard(raw):
                        hear(note)
            finally:
                # Not to be lent to anybody: it hears still.
                ear.invalidate()
                ear.close()
        except self.dialect.errors as error:
            raise StoreFailedError(self.dialect.told(error)) from error

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
                if self._is_quick:
                    await _let_others_come()
                await self._commit_group()
        finally:
            self._closed = True
            with trio.CancelScope(shield=True, relative_deadline=CLOSE_SECONDS_MAX):
                await self._finish()

    async def _start(self) -> None:
        patience = trio.current_time() + (self._open_seconds_max if self.is_shared else 0.0)
        note_at = 0.0
        while not self._opened:
            try:
                await trio.to_thread.run_sync(self._open, limiter=self._writer_limiter)
            except StoreFailedError as failure:
                if trio.current_time() >= patience:
                    self._fail([], failure)
                    raise
                if str(failure) != self.away or trio.current_time() >= note_at:
                    log.warning("store.unreachable", reason=str(failure))
                    note_at = trio.current_time() + AWAY_NOTE_SECONDS
                self.away = str(failure)
                self.went_away.set()
                await trio.sleep(OPEN_RETRY_SECONDS)
            except FepError as failure:
                self._fail([], failure)
                raise
            else:
                self._opened, self.away = True, ""
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

    @property
    def _is_quick(self) -> bool:
        """Whether the next group is committed without a thread: never where a server answers."""
        return not self.is_shared and self._pace.is_quick(time.perf_counter())

    async def _commit_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(GROUP_WORK_MAX, len(self._waiting)))]
        self._began = trio.current_time()
        try:
            if not (self._is_quick and self._commit_here(group)):
                # It can't be abandoned half-way: the shield lasts one sync.
                with trio.CancelScope(shield=True, relative_deadline=COMMIT_SECONDS_MAX):
                    await trio.to_thread.run_sync(
                        self._commit_patiently, group, limiter=self._writer_limiter
                    )
        except StoreFailedError as failure:
            self._fail(group, failure)
            raise
        self.commits.observe(trio.current_time() - self._began)
        self.works += len(group)
        self._began = math.inf
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
                    self._end(error)

    def _end(self, error: Exception) -> None:
        """Let ``run`` raise this."""
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
            connection = self._engine.connect()
            try:
                self.dialect.check(connection)
                schema.migrate(connection, dialect=self.dialect)
                self._head = chain.head(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        except self.dialect.errors as error:
            msg = f"the store can't be opened: {self.dialect.told(error)}"
            raise StoreFailedError(msg) from error
        except NotYetError as error:
            raise StoreFailedError(str(error)) from error

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(*self.dialect.errors):
                if self._failed:
                    # It may be lost in the middle of a command: nothing more is asked of it.
                    self._connection.invalidate()
                self._connection.close()
        self._engine.dispose()

    def _commit_here(self, group: list[_Item]) -> bool:
        """Run one group in this thread; False when another program holds the file: not done.

        Raises:
            StoreFailedError: as ``_commit``.
        """
        self._be_patient(patient=False)
        began, worked = time.perf_counter(), time.thread_time()
        self._commit(group)
        now = time.perf_counter()
        self._pace.note(now - began - (time.thread_time() - worked), now)
        return not all(isinstance(item.error, StoreBusyError) for item in group)

    def _commit_patiently(self, group: list[_Item]) -> None:
        """Run one group (writer thread), and wait for who holds the file; raises as ``_commit``."""
        self._be_patient(patient=True)
        self._commit(group)

    def _be_patient(self, *, patient: bool) -> None:
        if patient is not self._is_patient:
            self._is_patient = patient
            assert self._connection is not None
            self.dialect.wait_at_most(_raw(self._connection), BUSY_TIMEOUT_MS if patient else 0)

    def _commit(self, group: list[_Item]) -> None:
        """Run one group in one transaction.

        Raises:
            StoreFailedError: what of the group is on disk is not known.
        """
        refusal = self._try_commit(group)
        if refusal is Trouble.AGAIN:
            # Nothing of it is stored and nobody was answered: it may be done a second time.
            refusal = self._try_commit(group)
        match refusal:
            case None:
                return
            case Trouble.FULL:
                error: FepError = StoreFullError(self.dialect.full)
            case _:
                error = StoreBusyError(self.dialect.busy)
        for item in group:
            item.result, item.error = None, error

    def _try_commit(self, group: list[_Item]) -> Trouble | None:
        """Run one group in one transaction; return why nothing of it is stored, None if it is."""
        connection = self._connection
        assert connection is not None
        raw = _raw(connection)
        changes = self.dialect.changes(raw)
        notes: list[str] = []
        connection.info.update({_NOTES: notes, _SCRATCH: {}})
        try:
            self.dialect.execute(raw, self.dialect.begin, "SAVEPOINT work")
            for left, item in zip(range(len(group) - 1, -1, -1), group, strict=True):
                item.result = item.error = None
                self._run_in_savepoint(connection, raw, item)
                # Fails when the group's transaction is gone, whatever the work made of that.
                after = ("RELEASE work", "SAVEPOINT work") if left else ("RELEASE work",)
                self.dialect.execute(raw, *after)
            head = chain.extend(connection)
            if notes:
                self.dialect.publish(raw, notes)
            self.dialect.commit(raw)
            self._head = head or self._head
        except self.dialect.errors as error:
            if self.dialect.in_transaction(raw):
                with suppress(sa.exc.DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
            trouble = self.dialect.trouble(error)
            if trouble in (Trouble.FULL, Trouble.BUSY, Trouble.AGAIN):
                self._wrote = False
                return trouble
            raise StoreFailedError(self.dialect.told(error)) from error
        self._wrote = self.dialect.changes(raw) > changes
        return None

    def _run_in_savepoint(self, connection: sa.Connection, raw: Any, item: _Item) -> None:  # noqa: ANN401
        """Do one piece of work; what it raises is kept for its submitter, and the group lives on.

        Raises:
            sqlalchemy.exc.DBAPIError, the driver's errors: the database rolled the whole group back
                (full disk, I/O error), or is broken, or the group is to be done again.
        """
        notes: list[str] = connection.info[_NOTES]
        told = len(notes)
        try:
            item.result = item.work(connection)
        except Exception as error:  # belongs to its submitter: see above
            trouble = None
            if isinstance(error, self.dialect.errors):
                trouble = self.dialect.trouble(error)
            in_transaction = self.dialect.in_transaction(raw)
            if trouble in (Trouble.FATAL, Trouble.AGAIN) or (trouble and not in_transaction):
                raise
            if in_transaction:
                self.dialect.execute(raw, "ROLLBACK TO work")
            del notes[told:]
            # The database may undo only the one statement that found the disk full.
            match trouble:
                case Trouble.FULL:
                    item.error = StoreFullError(self.dialect.full)
                case Trouble.BUSY:
                    item.error = StoreBusyError(self.dialect.busy)
                case _:
                    item.error = error


async def _let_others_come() -> None:
    """Let who can run now do so first: what they submit joins the group that is begun next."""
    for _ in range(OTHERS_TURNS_MAX):
        await trio.lowlevel.checkpoint()
        if not trio.lowlevel.current_statistics().tasks_runnable:
            return


def _raw(connection: sa.Connection) -> Any:  # noqa: ANN401
    """Return the driver's own connection: a statement without a row needs no more."""
    return connection.connection.dbapi_connection
