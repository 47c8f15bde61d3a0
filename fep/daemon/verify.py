"""Reads a whole store and says whether it is sound: the file, the hash chain, and what must hold.

Nothing is written, and a running daemon does not notice: one read transaction sees one moment. The
archives beside the store are read with it, since the chain covers what they hold.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import sqlalchemy as sa

from fep.daemon.invariants import (
    BatchRows,
    EventRow,
    ItemRow,
    MarkRow,
    MessageRow,
    PaymentRow,
    TaskRow,
    alarm_faults,
    event_faults,
    item_faults,
    left_faults,
    mark_faults,
    notice_faults,
    payment_faults,
    rows_faults,
    task_faults,
)
from fep.domain.errors import FepError
from fep.store import audit, chain, files, schema

if TYPE_CHECKING:
    from fep.store.postgres import Postgres

STORE_EVENTS: Final = frozenset({chain.ARCHIVED, chain.RESTORED, chain.RELEASED, audit.ACT})
FINDINGS_MAX: Final = 50
"""Of one check; what comes after them is counted."""
SQLITE_FAULTS_MAX: Final = 20
TELL_ROWS: Final = 2000
"""Progress is told so often, in rows."""
TASKS_AT_ONCE: Final = 100
"""So many bodies are taken from an archive with one query; a batch's may be long."""

_Found = TypeVar("_Found")


class UnreadableStoreError(FepError):
    """There is no store at this place, or another release's."""

    code = "STORE_UNREADABLE"


@attrs.frozen
class Finding:
    """One thing that is wrong."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"


@attrs.define
class Check:
    """One kind of thing that was looked at."""

    name: str
    looked_at: int = 0
    wrong: int = 0


@attrs.define
class Report:
    """What was looked at, and what is wrong."""

    path: Path | str
    """The file, or the database's address."""
    head: chain.Link = attrs.Factory(chain.Link)
    checks: dict[str, Check] = attrs.Factory(dict)
    findings: list[Finding] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    """What is not wrong, and yet worth to be told."""
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """True when nothing is wrong."""
        return not any(check.wrong for check in self.checks.values())

    def value(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {
            "store": str(self.path),
            "sound": self.sound,
            "head": str(self.head),
            "checks": {
                one.name: {"looked_at": one.looked_at, "wrong": one.wrong}
                for one in self.checks.values()
            },
            "findings": [attrs.asdict(one) for one in self.findings],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }


Progress = Callable[[str, int, int], None]
"""Told what is being looked at, how much of it is done, and how much there is."""


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def verify(
    path: Path,
    *,
    archives: Path | None = None,
    are_whole: bool = True,
    full: bool = False,
    enterprise: str | None = None,
    head: str | None = None,
    progress: Progress = _silent,
) -> Report:
    """Return what is wrong with a store, or with an archive by itself.

    Args:
        path: the store's file, or an archive's by its name.
        archives: where its archives are, if not beside it.
        are_whole: whether archives that are not there are a fault; they are none of a copy's.
        full: look at every index too, which takes several times as long.
        enterprise: the enterprise's id, to compare payments' references with their task ids.
        head: a head of the chain that was seen before; it must still be in it.
        progress: told how far it is.

    Raises:
        UnreadableStoreError: no store is there, or it is another release's.
    """
    began = time.monotonic()
    report = Report(path)
    if path.is_dir():
        raise UnreadableStoreError(files.told_of_folder(path))
    with ExitStack() as stack:
        try:
            main = stack.enter_context(files.reading(path, any_text=True))
            version = schema.version_of(main)
        except sa.exc.DBAPIError as error:
            msg = f"{path} can't be read as a store: {error.orig}"
            raise UnreadableStoreError(msg) from error
        if version != schema.VERSION:
            msg = f"{path} has version {version}, this release reads {schema.VERSION}"
            raise UnreadableStoreError(msg)
        look = _Look(report, main, progress, enterprise)
        look.are_whole = are_whole
        alone = files.ARCHIVE.fullmatch(path.name)
        found = {} if alone else files.archives(archives or path.parent)
        for year, file in found.items():
            look.take_archive(year, stack.enter_context(files.reading(file, any_text=True)))
        try:
            if alone:
                look.run_archive(alone[1], full=full)
            else:
                look.run(full=full, head=head)
        except sa.exc.DBAPIError as error:
            look.find("file", path.name, f"can't be read to its end: {error.orig}")
    report.seconds = time.monotonic() - began
    return report


def verify_shared(
    database: Postgres,
    *,
    enterprise: str | None = None,
    head: str | None = None,
    progress: Progress = _silent,
) -> Report:
    """Return what is wrong with a store that several machines share; see :func:`verify`.

    Raises:
        UnreadableStoreError: the database can't be reached, or has another release's store.
    """
    began = time.monotonic()
    report = Report(database.address)
    report.notes.append("the server's own files are looked at by pg_amcheck, and not here")
    with reaching(database) as connection:
        database.begin_read(connection)
        # Row by row from the server; and no text of ours is taken for one with values in it.
        connection.execution_options(
            stream_results=True, max_row_buffer=TELL_ROWS, no_parameters=True
        )
        look = _Look(report, connection, progress, enterprise)
        look.run_shared(head=head)
    report.seconds = time.monotonic() - began
    return report


@contextmanager
def reaching(database: Postgres) -> Iterator[sa.Connection]:
    """Connect to a shared store of this release, outside of the daemon.

    Raises:
        UnreadableStoreError: the database can't be reached, or has another release's store.
    """
    engine = database.engine(1)
    try:
        with engine.connect() as connection:
            if (version := database.version(connection)) != schema.VERSION:
                msg = f"{database.address} has version {version}, this release {schema.VERSION}"
                raise UnreadableStoreError(msg)
            yield connection
            # What was not committed is not wanted.
            connection.invalidate()
    except database.errors as error:
        msg = f"{database.address}: {database.told(error)}"
        raise UnreadableStoreError(msg) from error
    finally:
        engine.dispose()


class _Look:
    """One look at a store."""

    def __init__(
        self, report: Report, main: sa.Connection, progress: Progress, enterprise: str | None
    ) -> None:
        self.report = report
        self.archives: dict[str, sa.Connection] = {}
        self._main = main
        self._progress = progress
        self._enterprise = enterprise
        self.are_whole = True
        """Whether an archive that is not there is a fault."""
        self._missing: set[str] = set()
        """Years of archives that hold something of this store and are not there, or not read."""
        self._older: set[str] = set()
        """Years of archives that an older release wrote."""
        self._left_over: dict[str, set[int]] = {}
        """Tasks in an archive that the store still has whole: an interrupted ``fep archive``."""

    def take_archive(self, year: str, connection: sa.Connection) -> None:
        """Let an archive be looked at too, if it can be read."""
        name = files.archive_name(year)
        try:
            version = schema.version_of(connection)
        except sa.exc.DBAPIError as error:
            self.find("archives", name, f"can't be read: {error.orig}")
            return
        match version:
            case 0:
                self.report.notes.append(f"{name} is empty: fep archive was interrupted")
            case schema.VERSION:
                self.archives[year] = connection
            case _ if version < schema.VERSION:
                self._older.add(year)
                told = f"has version {version}, not looked at; fep archive brings it up to date"
                self.report.notes.append(f"{name} {told}")
            case _:
                self.find("archives", name, f"has version {version}, of a newer release")

    def run(self, *, full: bool, head: str | None) -> None:
        """Look at everything."""
        self._look_at_file(self._main, Path(self.report.path).name, full=full)
        for year, connection in self.archives.items():
            self._look_at_file(connection, files.archive_name(year), full=full)
        self._look_at_archives()
        self._look_at_chain(head)
        self._look_at_tasks("tasks", self._main, "")
        for year, connection in self.archives.items():
            self._look_at_tasks(files.archive_name(year), connection, year)
            last = self._look_at_archive_chain(year, connection)
            if not self._left_over.get(year):
                self._compare_archive_head(files.archive_name(year), last)
        self._look_at_rows()

    def run_shared(self, *, head: str | None) -> None:
        """Look at everything but the files, which are the server's."""
        self._look_at_chain(head)
        self._look_at_tasks("tasks", self._main, "")
        self._look_at_rows()

    def _look_at_rows(self) -> None:
        self._look_at_references()
        self._look_at_payments()
        self._look_at_strays()
        self._look_at_marks()
        self._look_at_pools()
        self._look_at_alarms()

    def run_archive(self, year: str, *, full: bool) -> None:
        """Look at everything in an archive, the file that was given."""
        self._look_at_file(self._main, Path(self.report.path).name, full=full)
        self._look_at_tasks(files.archive_name(year), self._main, year)
        self.report.head = self._look_at_archive_chain(year, self._main)
        self._look_at_strays()

    # -- the parts ----------------------------------------------------------------------------

    def _look_at_file(self, connection: sa.Connection, name: str, *, full: bool) -> None:
        check = self._check("file")
        check.looked_at += 1
        self._progress(f"reading {name}", 0, 0)
        pragma = "integrity_check" if full else "quick_check"
        for (told,) in connection.exec_driver_sql(f"PRAGMA {pragma}({SQLITE_FAULTS_MAX})"):
            if told != "ok":
                self.find("file", name, str(told))

    def _look_at_archives(self) -> None:
        """Compare what the store and its archives know of each other."""
        self._check("archives").looked_at = len(self.archives)
        query = "SELECT archived, count(*) FROM task WHERE archived IS NOT NULL GROUP BY 1"
        known: dict[str, int] = dict(self._rows(query))
        for year, count in known.items():
            if year in self.archives:
                continue
            self._missing.add(year)
            name = files.archive_name(year)
            msg = f"is not here; {count} tasks and their events can't be looked at"
            if year in self._older:
                continue
            if self.are_whole:
                self.find("archives", name, msg)
            else:
                self.report.notes.append(f"{name} {msg}")
        for year, connection in self.archives.items():
            self._compare_archive(year, connection, known.get(year, 0))

    def _compare_archive(self, year: str, connection: sa.Connection, known: int) -> None:
        name, there = files.archive_name(year), 0
        ours = iter(self._rows(_IDENTITY))
        own: Any = next(ours, None)
        for row in connection.exec_driver_sql(_IDENTITY):
            while own is not None and own.seq < row.seq:
                own = next(ours, None)
            if own is None or own.seq != row.seq:
                self.find("archives", name, f"task {row.task_id} is not known to the store")
            elif own.archived is None:
                self._left_over.setdefault(year, set()).add(row.seq)
            elif own != row:
                self.find("archives", name, f"task {row.task_id} is another in the store")
            else:
                there += 1
        if there < known:
            self.find("archives", name, f"{known - there} of {known} tasks are missing")
        if left := self._left_over.get(year):
            self.report.notes.append(
                f"{name}: {len(left)} tasks are in the store too: fep archive was interrupted and"
                " goes on from there"
            )

    def _look_at_chain(self, head: str | None) -> None:
        check = self._check("chain")
        total = self._count(self._main, "event_link")
        known: set[str] = set()

        def links() -> Iterator[chain.Link]:
            for place, link in enumerate(chain.links(self._main)):
                if place % TELL_ROWS == 0:
                    self._progress("chain", place, total)
                known.add(str(link))
                self.report.head = link
                check.looked_at += 1
                yield link

        unseen = 0
        for fault in chain.faults(links(), self._all_lines()):
            if self._missing and fault.lacks_events:
                unseen += 1
            else:
                self.find("chain", f"link {fault.link}", fault.message)
        if unseen:
            self.report.notes.append(
                f"{unseen} links can't be checked without the archives that are not here"
            )
        if head is not None and head not in known and head != "0":
            msg = "is not in this chain: the store is older than that, or its history is another"
            self.find("chain", f"head {head}", msg)

    def _all_lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines of all events wherever they are, in order."""
        parts: list[Iterable[tuple[int, int, str]]] = [chain.lines(self._main)]
        for year, connection in self.archives.items():
            left = self._left_over.get(year, set())
            parts.append(row for row in chain.lines(connection) if row[1] not in left)
        before = 0
        for seq, _, line in heapq.merge(*parts, key=itemgetter(0)):
            if seq == before:
                self.find("chain", f"event {seq}", "is in an archive and in the store")
            else:
                yield seq, line
            before = seq

    def _look_at_tasks(self, name: str, connection: sa.Connection, year: str) -> None:
        check = self._check("tasks")
        total = self._count(connection, "task")
        skipped = self._left_over.get(year, set()) if year else set()
        events = _Grouped(_query(connection, _EVENTS), EventRow)
        messages = _Grouped(_query(connection, _MESSAGES), _message)
        for place, row in enumerate(_query(connection, _TASKS)):
            if place % TELL_ROWS == 0:
                self._progress(name, place, total)
            task = TaskRow(*row)
            own_events, own_messages = events.take(task.seq), messages.take(task.seq)
            if task.seq in skipped:
                continue
            check.looked_at += 1
            if not year and task.archived is not None:
                faults = left_faults(task, own_events, own_messages)
            else:
                faults = task_faults(task, own_events, own_messages, self._enterprise)
            for message in faults:
                self.find("tasks", task.task_id, message)

    def _look_at_archive_chain(self, year: str, connection: sa.Connection) -> chain.Link:
        """Return the head of an archive's own chain: a link covers a task there."""
        name = files.archive_name(year)
        check = self._check("archive chain")
        before, tasks = chain.Link(), 0
        for link in chain.links(connection):
            check.looked_at += 1
            found = connection.exec_driver_sql(
                f"SELECT seq, {chain.LINE} FROM task_event WHERE task_seq ="  # noqa: S608
                " (SELECT task_seq FROM task_event WHERE seq = ?) ORDER BY seq",
                (link.first_event,),
            ).all()
            lines = [row[1] for row in found]
            ends = (found[0][0], found[-1][0]) if found else (0, 0)
            if link.seq != before.seq + 1 or ends != (link.first_event, link.last_event):
                self.find("archive chain", name, f"link {link.seq} does not fit its task's events")
            elif chain.link_digest(before.digest, lines) != link.digest:
                told = f"link {link.seq} is broken: events {ends[0]}-{ends[1]} of one task"
                self.find("archive chain", name, told)
            before, tasks = link, tasks + 1
        if tasks != self._count(connection, "task"):
            self.find("archive chain", name, "there are tasks that no link covers")
        return before

    def _compare_archive_head(self, name: str, head: chain.Link) -> None:
        """The store's own chain has the archive's head."""
        noted = self._main.exec_driver_sql(
            "SELECT digest FROM task_event WHERE task_seq = 0 AND event = 'archived'"
            " AND detail = ? ORDER BY seq DESC LIMIT 1",
            (name,),
        ).scalar()
        if (noted or "") != head.digest:
            told = "its last link is not the one that the store noted"
            self.find("archive chain", name, told)

    def _look_at_references(self) -> None:
        check = self._check("references")
        count = self._main.exec_driver_sql("SELECT count(client_ref) FROM task").scalar_one()
        check.looked_at = int(count)
        for reference, count, first, last in self._rows(
            "SELECT client_ref, count(*), min(task_id), max(task_id) FROM task"
            " WHERE client_ref IS NOT NULL GROUP BY client_ref HAVING count(*) > 1"
        ):
            told = f"{count} tasks have it, such as {first} and {last}"
            self.find("references", reference, told)

    def _look_at_payments(self) -> None:
        check = self._check("payments")
        for row, body in self._with_bodies((one, one) for one in self._rows(_PAYMENTS)):
            check.looked_at += 1
            found = PaymentRow(
                row.seq, row.bank, row.payer, row.payee, row.amount_fen, row.is_watched,
                row.task_bank, row.kind, row.state, body,
            )  # fmt: skip
            for message in payment_faults(found):
                self.find("payments", row.task_id, message)
        for row, body in self._with_bodies((one, one) for one in self._rows(_NOT_SEARCHED)):
            if body is not None:
                self.find(
                    "payments", row.task_id, "it was sent, and no statement is searched for it"
                )
        batches = _batches(self._rows(_BATCH_ROWS))
        for (row, rows), body in self._with_bodies((one[0], one) for one in batches):
            for message in rows_faults(BatchRows(row.kind, body, row.client_ref, rows)):
                self.find("payments", row.task_id, message)
        for (task_id,) in self._rows(
            "SELECT task_id FROM task WHERE sent_at IS NOT NULL AND kind = 'batch_transfer' AND"
            " NOT EXISTS (SELECT 1 FROM payment_row WHERE task_seq = task.seq)"
            # Two persons may find one done that was held without its body: it has no payment.
            " AND (body IS NOT NULL OR EXISTS (SELECT 1 FROM payment WHERE task_seq = task.seq))"
        ):
            self.find("payments", task_id, "it was sent, and none of its rows is searched")
        for table in ("payment", "payment_row"):
            for (task_id,) in self._rows(
                f"SELECT DISTINCT t.task_id FROM {table} AS p JOIN task AS t ON t.seq = p.task_seq"  # noqa: S608
                " WHERE t.sent_at IS NULL OR t.sent_at <> p.sent_at ORDER BY t.task_id"
            ):
                self.find("payments", task_id, "it is searched as sent at another moment")

    def _look_at_strays(self) -> None:
        """Everything belongs to a task, or to the store itself."""
        check = self._check("strays")
        for table in ("task_event", "message", "resolution", "payment", "payment_row"):
            check.looked_at += self._count(self._main, table)
            for seq, count in self._rows(
                f"SELECT task_seq, count(*) FROM {table} WHERE task_seq <> 0 AND NOT EXISTS"  # noqa: S608
                " (SELECT 1 FROM task WHERE task.seq = task_seq) GROUP BY task_seq"
            ):
                self.find("strays", f"task number {seq}", f"has {count} of {table}, and no row")
        for row in self._rows(_EVENT_QUERY + _OF_STORE):
            event = EventRow(*row[1:])
            for message in event_faults(event):
                self.find("strays", "the store", message)
            if event.event not in STORE_EVENTS:
                self.find("strays", "the store", f"event {event.seq} is {event.event}")

    def _look_at_marks(self) -> None:
        """A copy that was put back sends nothing until a person has looked."""
        check = self._check("marks")
        marks = [MarkRow(*row) for row in self._rows(_MARKS)]
        check.looked_at = len(marks)
        own = (EventRow(*row[1:]) for row in self._rows(_EVENT_QUERY + _OF_STORE))
        events = [one for one in own if one.event in (chain.RESTORED, chain.RELEASED)]
        for message in mark_faults(marks, events):
            self.find("marks", "the store", message)

    def _look_at_pools(self) -> None:
        check = self._check("pools")
        for row, body in self._with_bodies((one, one) for one in self._rows(_ITEMS)):
            check.looked_at += 1
            item = ItemRow(*(*row[3:], body))
            for message in item_faults(item):
                self.find("pools", f"{item.round_id} {item.account}", message)

    def _look_at_alarms(self) -> None:
        check = self._check("alarms")
        active: set[tuple[str, str, str]] = set()
        for row in self._main.execute(sa.select(schema.alarm)):
            check.looked_at += 1
            for message in alarm_faults(row):
                self.find("alarms", row.id, message)
            if row.cleared_at is None:
                # On a shared store each machine has its own, whose ids begin with its number.
                one = (str(row.id).rpartition("/")[0], row.kind, row.subject)
                if one in active:
                    told = f"{row.kind} of {row.subject} is active twice"
                    self.find("alarms", row.id, told)
                active.add(one)
        for row in self._main.execute(sa.select(schema.alarm_notice)):
            check.looked_at += 1
            for message in notice_faults(row):
                self.find("alarms", row.id, message)

    # -- inside -------------------------------------------------------------------------------

    def _check(self, name: str) -> Check:
        return self.report.checks.setdefault(name, Check(name))

    def find(self, check: str, where: str, message: str) -> None:
        counted = self._check(check)
        counted.wrong += 1
        if counted.wrong <= FINDINGS_MAX:
            self.report.findings.append(Finding(check, where, message))

    def _with_bodies(
        self, found: Iterable[tuple[Any, _Found]]
    ) -> Iterator[tuple[_Found, bytes | None]]:
        """Yield what belongs to tasks with their bodies: of archived ones those in the archives.

        Args:
            found: each with a row that has ``seq``, ``archived`` and ``body`` of its task.
        """
        found = iter(found)
        while some := list(itertools.islice(found, TASKS_AT_ONCE)):
            archived: dict[str, set[int]] = {}
            for row, _ in some:
                if row.archived in self.archives:
                    archived.setdefault(row.archived, set()).add(row.seq)
            bodies: dict[int, bytes | None] = {}
            for year, places in archived.items():
                marks = ", ".join("?" * len(places))
                query = f"SELECT seq, CAST(body AS BLOB) FROM task WHERE seq IN ({marks})"  # noqa: S608
                rows = self.archives[year].exec_driver_sql(query, tuple(places))
                bodies.update((seq, body) for seq, body in rows)
            for row, one in some:
                yield one, row.body if row.archived is None else bodies.get(row.seq)

    def _rows(self, query: str) -> Iterator[Any]:
        return iter(_query(self._main, query))

    @staticmethod
    def _count(connection: sa.Connection, table: str) -> int:
        query = f"SELECT count(*) FROM {table}"  # noqa: S608 - our own tables' names
        return int(connection.exec_driver_sql(query).scalar_one())


_TASKS: Final = (
    "SELECT seq, task_id, client, bank, kind, state, submitted_at, updated_at, offers,"
    " CAST(body AS BLOB),"
    " body_digest, client_ref, sent_at, CAST(result AS BLOB), bank_code, bank_message, delivery,"
    " archived"
    " FROM task ORDER BY seq"
)
_IDENTITY: Final = (
    "SELECT seq, task_id, client, bank, kind, state, submitted_at, updated_at, offers,"
    " body_digest, client_ref, sent_at, delivery, archived FROM task ORDER BY seq"
)
"""What a task and its archived self have in common."""
_EVENT_QUERY: Final = (
    "SELECT task_seq, seq, at, event, state, cause, configuration, digest, detail FROM task_event"
)
_OF_STORE: Final = " WHERE task_seq = 0 ORDER BY seq"
_EVENTS: Final = _EVENT_QUERY + " WHERE task_seq > 0 ORDER BY task_seq, seq"
_MESSAGES: Final = (
    "SELECT CAST(task_seq AS BIGINT), direction, at, digest, CAST(bytes AS BLOB) FROM message"
    " WHERE task_seq > 0 ORDER BY task_seq, seq"
)
_MARKS: Final = (
    "SELECT seq, taken_at, link, restored_at, released_at, released_by, evidence FROM restored"
    " ORDER BY seq"
)
_PAYMENTS: Final = (
    "SELECT t.task_id, t.seq, p.bank, p.payer, p.payee, p.amount_fen,"
    " p.watched_s IS NOT NULL AS is_watched, t.bank AS task_bank, t.kind, t.state, t.archived,"
    " CAST(t.body AS BLOB) AS body FROM payment AS p JOIN task AS t ON t.seq = p.task_seq"
)
_NOT_SEARCHED: Final = (
    "SELECT task_id, seq, archived, CAST(body AS BLOB) AS body FROM task"
    " WHERE sent_at IS NOT NULL AND (body IS NOT NULL OR archived IS NOT NULL) AND NOT EXISTS"
    " (SELECT 1 FROM payment WHERE task_seq = task.seq)"
)
_BATCH_ROWS: Final = (
    "SELECT t.task_id, t.seq, t.kind, t.archived, CAST(t.body AS BLOB) AS body, t.client_ref,"
    " r.place, r.payer, r.payee, r.amount_fen, r.client_ref AS row_ref"
    " FROM payment_row AS r JOIN task AS t ON t.seq = r.task_seq ORDER BY r.task_seq, r.place"
)
_ITEMS: Final = (
    "SELECT t.seq, t.archived, CAST(t.body AS BLOB) AS body,"
    " i.round_id, r.state, r.plan_only, i.account, i.state, i.amount_fen, i.sweep_task,"
    " t.kind, t.state, t.delivery FROM pool_item AS i"
    " JOIN pool_round AS r ON r.round_id = i.round_id"
    " LEFT JOIN task AS t ON t.task_id = i.sweep_task"
)


def _query(connection: sa.Connection, query: str) -> Iterable[Any]:
    """Run one of our queries, in the words of either database."""
    if connection.dialect.name == "postgresql":
        query = query.replace(" AS BLOB)", " AS BYTEA)")
    return connection.exec_driver_sql(query)


def _batches(found: Iterable[Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the first row of each batch with what all of its rows are searched by.

    Each row has the whole body: no more than one is held.
    """
    for _, rows in itertools.groupby(found, key=attrgetter("seq")):
        first: Any = None
        told: list[Any] = []
        for row in rows:
            first = first or row
            told.append((row.place, row.payer, row.payee, row.amount_fen, row.row_ref))
        yield first, tuple(told)


def _message(direction: str, at: str, digest: str, data: bytes) -> MessageRow:
    return MessageRow(direction, at, digest, hashlib.sha256(data).hexdigest())


class _Grouped:
    """Rows in the order of their tasks, handed out task by task."""

    def __init__(self, rows: Iterable[Any], make: Callable[..., Any]) -> None:
        self._groups = itertools.groupby(rows, key=itemgetter(0))
        self._make = make
        self._next = next(self._groups, None)

    def take(self, seq: int) -> list[Any]:
        """Return the rows of a task; those of tasks that were passed over are left out."""
        while self._next is not None and self._next[0] < seq:
            self._next = next(self._groups, None)
        if self._next is None or self._next[0] != seq:
            return []
        found = [self._make(*row[1:]) for row in self._next[1]]
        self._next = next(self._groups, None)
        return found
