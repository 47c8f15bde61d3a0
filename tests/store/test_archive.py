"""Archiving moves what is over, loses nothing, forgets no id, and can be cut off anywhere."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import trio

from fep.daemon.verify import Report, verify
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, ClientName, TaskId
from fep.domain.order import MOVES_MONEY, Kind, parse_body
from fep.store import archive, chain, files, schema
from fep.store.archive import ArchiveConflictError, Over
from fep.tasks import store as rows
from fep.tasks.admission import Admission, Arrival
from fep.tasks.state import FINAL, Event, State
from fep.tasks.task import Admitted, Answer, Submission
from tests.store.made import BANK, BODIES, ENTERPRISE, EVERY, OLD, Made, make, opened, work_of

pytestmark = pytest.mark.req("FEP-23")

NOW = OLD + dt.timedelta(days=200)
MOVED_2025 = {
    "PAY-succeeded", "PAY-rejected", "PAY-returned", "PAY-cancelled", "PAY-expired", "PAY-failed",
    "ASK-succeeded", "ASK-rejected", "ASK-year", "BATCH-succeeded",
}  # fmt: skip
"""Of ``EVERY``: at their end, acknowledged, not watched, and older than the day that is given."""


def over(before: dt.datetime = NOW, watched_before: dt.datetime = NOW) -> Over:
    return Over(
        states=[state.value for state in FINAL],
        acknowledged=rows.ACKNOWLEDGED,
        before=before,
        watched_state=State.SUCCEEDED.value,
        watched_kinds=[kind.value for kind in MOVES_MONEY],
        watched_before=watched_before,
    )


def move(
    path: Path, which: Over | None = None, tell: Callable[[str, int], None] = lambda *_: None
) -> dict[str, int]:
    with files.writing(path) as store:
        return archive.move(store, path.parent, which or over(), NOW, "a test", tell)


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return list(db.iterdump())


def names(path: Path, where: str = "1") -> set[str]:
    return {row[0] for row in query(path, f"SELECT task_id FROM task WHERE {where}")}


def findings(path: Path, **options: Any) -> list[str]:
    report: Report = verify(path, enterprise=ENTERPRISE, **options)
    return [str(one) for one in report.findings]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "fep.sqlite", EVERY[:4], EVERY[4:9], EVERY[9:])


@pytest.fixture
def year(path: Path) -> Path:
    return path.with_name("archive-2025.sqlite")


def whole(path: Path) -> dict[str, Any]:
    """Return all there is of each task, wherever it is."""
    found: dict[str, Any] = {}
    for file in (path, *files.archives(path.parent).values()):
        with files.reading(file) as connection:
            if not schema.version_of(connection):
                continue  # It was being made.
            for seq, name in connection.exec_driver_sql("SELECT seq, task_id FROM task").all():
                view = rows.view(connection, name)
                assert view is not None
                view.pop("archived", None)
                kept = [(one.wire, one.at) for one in rows.kept_of(connection, seq)]
                entry = found.setdefault(name, [])
                if rows.why(connection, name):
                    body = str(rows.one(connection, name))
                    entry.append((body, view, rows.why(connection, name), kept))
    return found


# -- what moves -------------------------------------------------------------------------------


def test_what_is_over_moves_and_all_of_it_is_there(path: Path, year: Path) -> None:
    before = whole(path)
    assert move(path) == {"2025": len(MOVED_2025)}
    assert names(year) == MOVED_2025
    assert names(path) == {one.name for one in EVERY}, "the store knows every id"
    assert names(path, "archived = '2025'") == MOVED_2025
    assert whole(path) == before
    assert findings(path, full=True) == []
    left = (
        "SELECT count(*) FROM task_event JOIN task ON task.seq = task_seq WHERE archived NOT NULL"
    )
    assert query(path, left) == [(0,)]
    assert query(path, "SELECT count(*) FROM task WHERE archived NOT NULL AND body NOT NULL") == [
        (0,)
    ]


def test_a_year_is_that_of_the_end_in_shanghai(path: Path) -> None:
    move(path)
    assert query(path, "SELECT archived FROM task WHERE task_id = 'ASK-year'") == [("2025",)]
    assert sorted(files.archives(path.parent)) == ["2025"]
    late = over(OLD + dt.timedelta(days=400), OLD + dt.timedelta(days=400))
    assert move(path, late) == {"2025": 1}
    assert "PAY-new" in names(path.with_name("archive-2025.sqlite"))


def test_the_day_and_the_watch_keep_tasks_where_they_are(path: Path) -> None:
    assert move(path, over(before=OLD - dt.timedelta(days=90))) == {}
    moved = move(path, over(watched_before=OLD - dt.timedelta(days=90)))
    assert moved == {"2025": len(MOVED_2025) - 2}, "a success that may still come back stays"
    assert "PAY-succeeded" in names(path, "archived IS NULL")
    assert "PAY-returned" not in names(path, "archived IS NULL")


def test_a_second_run_changes_nothing(path: Path, year: Path) -> None:
    move(path)
    before = (
        year.read_bytes(),
        query(path, "SELECT * FROM task_event"),
        query(path, "SELECT * FROM task"),
    )
    assert move(path) == {}
    after = (
        year.read_bytes(),
        query(path, "SELECT * FROM task_event"),
        query(path, "SELECT * FROM task"),
    )
    assert before == after


def test_batches_are_bounded_and_each_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "BATCH_TASKS_MAX", 7)
    monkeypatch.setattr(archive, "PAUSE_SECONDS_MIN", 0.0)
    path = make(tmp_path / "fep.sqlite", [Made(f"T{n}", State.SUCCEEDED) for n in range(30)])
    told: list[tuple[str, int]] = []
    assert move(path, tell=lambda *one: told.append(one)) == {"2025": 30}
    assert told == [("2025", count) for count in (7, 14, 21, 28, 30)]
    assert findings(path) == []
    noted = query(path, "SELECT cause, digest, detail FROM task_event WHERE event = 'archived'")
    assert len(noted) == 5
    assert noted[-1][0] == "a test moved 2 tasks to archive-2025.sqlite, link 30"
    with files.reading(path.with_name("archive-2025.sqlite")) as connection:
        assert noted[-1][1] == chain.head(connection).digest


def test_a_batch_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "fep.sqlite", [Made(f"T{n}", State.SUCCEEDED) for n in range(9)])
    with files.reading(path) as connection:
        each = archive.candidates(connection, over(), 0)[0].size
        monkeypatch.setattr(archive, "BATCH_BYTES_MAX", 4 * each + each // 2)
        assert len(archive.candidates(connection, over(), 0)) == 4
        monkeypatch.setattr(archive, "BATCH_BYTES_MAX", 1)
        assert len(archive.candidates(connection, over(), 5)) == 1, "one that is too big goes alone"


def test_an_archive_stands_by_itself(path: Path, year: Path, tmp_path: Path) -> None:
    move(path)
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(year, alone)
    report = verify(alone / year.name, full=True, enterprise=ENTERPRISE)
    assert report.findings == []
    assert report.checks["tasks"].looked_at == report.checks["archive chain"].looked_at == 10
    assert query(alone / year.name, "PRAGMA journal_mode") == [("delete",)]


# -- ids are known for ever -------------------------------------------------------------------


async def admitted(path: Path, *submissions: Submission, client: str = "erp-1") -> list[Answer]:
    answers: list[Answer] = []
    async with opened(path) as store:
        admission = Admission(store, SystemClock(), 1e6, lambda _fresh: None, lambda: None)
        admission.begin_after(await store.read(rows.last_seq))
        done = trio.Event()

        def told(given: list[Answer]) -> None:
            answers.extend(given)
            done.set()

        refusals = [None] * len(submissions)
        admission.submit(Arrival(ClientName(client), submissions, refusals, told), "c")
        await done.wait()
    return answers


async def test_a_duplicate_of_an_archived_id_is_the_same_task(path: Path) -> None:
    await trio.to_thread.run_sync(move, path)
    paid = Submission(TaskId("PAY-succeeded"), BANK, Kind.TRANSFER)
    body = parse_body(Kind.TRANSFER, BODIES[Kind.TRANSFER])
    whole = Submission(TaskId("PAY-succeeded"), BANK, Kind.TRANSFER, body=body)
    fresh = Submission(TaskId("FRESH"), BANK, Kind.TRANSFER)
    before = query(path, "SELECT count(*) FROM task")[0][0]
    assert await admitted(path, paid, fresh, whole) == [
        Admitted(TaskId("PAY-succeeded"), State.SUCCEEDED, known=True),
        Admitted(TaskId("FRESH"), State.QUEUED, known=False),
        Admitted(TaskId("PAY-succeeded"), State.SUCCEEDED, known=True),
    ]
    assert query(path, "SELECT count(*) FROM task")[0][0] == before + 1


async def test_an_archived_id_is_nobody_elses_and_no_other_task(path: Path) -> None:
    await trio.to_thread.run_sync(move, path)
    other = parse_body(Kind.TRANSFER, BODIES[Kind.TRANSFER] | {"amount": "1.00"})
    name = TaskId("PAY-succeeded")
    for submission, client in (
        (Submission(name, BANK, Kind.TRANSFER), "erp-2"),
        (Submission(name, BankName("cmb"), Kind.TRANSFER), "erp-1"),
        (Submission(name, BANK, Kind.BALANCE), "erp-1"),
        (Submission(name, BANK, Kind.TRANSFER, body=other), "erp-1"),
    ):
        [answer] = await admitted(path, submission, client=client)
        assert not isinstance(answer, Admitted)
        assert answer.code == "TASK_CONFLICT"


async def test_places_go_on_above_the_archived_ones(tmp_path: Path) -> None:
    path = tmp_path / "fep.sqlite"
    async with opened(path) as store:
        await store.write(work_of([Made(f"T{n}", State.SUCCEEDED) for n in range(5)]))
        await trio.to_thread.run_sync(move, path)
        assert await store.read(rows.last_seq) == 5
        await store.write(work_of([Made("NEXT", State.SUCCEEDED)]))
        await trio.to_thread.run_sync(move, path)
    assert findings(path) == []
    places = query(
        path.with_name("archive-2025.sqlite"), "SELECT seq, task_id FROM task ORDER BY seq"
    )
    assert places[-1] == (6, "NEXT")


async def test_a_reference_of_an_archived_payment_is_found(path: Path) -> None:
    await trio.to_thread.run_sync(move, path)
    async with opened(path) as store:
        reference = query(path, "SELECT client_ref FROM task WHERE task_id = 'PAY-succeeded'")[0][0]
        found = await store.read(lambda c: rows.of_reference(c, BANK, reference))
        assert (found.task_id, found.state) == ("PAY-succeeded", State.SUCCEEDED)


# -- cut off ----------------------------------------------------------------------------------


def copied(path: Path, places: list[int]) -> None:
    """Do the first half of a batch."""
    with files.reading(path) as store, archive._opened(path.parent, "2025") as file:
        archive.copy_in(file, archive.read_rows(store, places), "2025")


def places_of(path: Path, *tasks: str) -> list[int]:
    found = dict(query(path, "SELECT task_id, seq FROM task"))
    return [found[name] for name in tasks]


@pytest.mark.parametrize("left", ["nothing", "no tables", "tables"])
def test_an_archive_is_given_to_the_daemon_though_its_making_was_cut_off(
    path: Path, year: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    if left == "no tables":
        year.touch()
    if left == "tables":
        with archive._opened(path.parent, "2025"):
            pass
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(path.parent, owner, -1)
    seen: list[tuple[Path, bool]] = []
    give = files.give_to_owner

    def given(own: Path, like: Path) -> None:
        give(own, like)
        seen.append((own, own.with_name(f"{own.name}-wal").exists()))

    monkeypatch.setattr(files, "give_to_owner", given)
    # Nothing goes to it in a run that finds it.
    early = over(before=OLD - dt.timedelta(days=90))
    assert move(path, over() if left == "nothing" else early).keys() <= {"2025"}
    assert seen == [(year, False)], "before SQLite makes its own files beside it, of that owner"
    assert year.stat().st_uid == owner
    assert findings(path) == []


def test_what_a_link_leads_to_is_not_given_away(path: Path, year: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own").touch()
    year.symlink_to(elsewhere / "own")
    before = elsewhere.stat().st_uid
    os.chown(path.parent, 65534 if os.geteuid() == 0 else os.geteuid(), -1)
    move(path)
    assert (elsewhere / "own").stat().st_uid == before


def test_what_was_copied_and_not_removed_is_copied_anew(path: Path, year: Path) -> None:
    before = whole(path)
    copied(path, places_of(path, "PAY-succeeded", "PAY-rejected"))
    report = verify(path)
    assert report.sound, report.findings
    told = "2 tasks are in the store too: fep archive was interrupted and goes on from there"
    assert report.notes == [f"archive-2025.sqlite: {told}"]
    assert move(path) == {"2025": len(MOVED_2025)}
    assert whole(path) == before
    assert findings(path) == []
    assert verify(path).notes == []


def test_what_was_copied_to_a_year_that_it_does_not_end_in_any_more_is_taken_back(
    path: Path, year: Path
) -> None:
    """Cut off before it was removed; then it came back to its bank, in another year."""
    copied(path, places_of(path, "PAY-succeeded"))
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "UPDATE task SET updated_at = '2026-03-01T00:00:00.000+00:00'"
            " WHERE task_id = 'PAY-succeeded'"
        )
        db.commit()
    later = NOW + dt.timedelta(days=400)
    assert move(path, over(later, later))["2026"] >= 1
    assert ("PAY-succeeded",) not in query(year, "SELECT task_id FROM task")
    assert not [one for one in verify(path).findings if one.check == "archives"]


def test_an_archive_that_is_read_is_not_said_to_be_one_file(
    path: Path, year: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.1)
    log = year.with_name(f"{year.name}-wal")
    readers: list[sqlite3.Connection] = []

    def read(_year: str, _count: int) -> None:
        reader = sqlite3.connect(f"file:{year}?mode=ro", uri=True)
        readers.append(reader)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM task").fetchall()

    with pytest.raises(archive.ArchiveHeldError, match="run fep archive again"):
        move(path, tell=read)
    assert log.stat().st_size > 0
    for reader in readers:
        reader.close()
    # Nothing is left to be moved, and it is one file by then.
    assert move(path) == {}
    assert not log.exists()
    assert len(query(year, "SELECT task_id FROM task")) == len(MOVED_2025)
    assert findings(path) == []


def test_what_changed_after_it_was_copied_is_not_taken_out(path: Path, year: Path) -> None:
    with files.writing(path) as store, archive._opened(path.parent, "2025") as file:
        stale = archive.read_rows(store, places_of(path, "PAY-rejected", "PAY-succeeded"))
        archive.copy_in(file, stale, "2025")
        store.exec_driver_sql(
            "UPDATE task SET bank_message = 'late' WHERE task_id = 'PAY-succeeded'"
        )
        assert not archive.take_out(store, stale, "2025", over(), chain.head(file), NOW, "a test")
        archive.remove_left_over(store, file, "2025")
    assert names(year) == set()
    assert names(path, "archived NOT NULL") == set()
    assert move(path) == {"2025": len(MOVED_2025)}
    assert query(year, "SELECT bank_message FROM task WHERE task_id = 'PAY-succeeded'") == [
        ("late",)
    ]
    assert findings(path) == []


def come_back(path: Path, task: str, at: dt.datetime, *, cause: str, acknowledged: bool) -> None:
    """Have the daemon note that a task, or one more row of it, came back (退票)."""
    with files.writing(path) as daemon, files.transaction(daemon):
        [seq, state] = daemon.execute(
            sa.select(schema.task.c.seq, schema.task.c.state).where(schema.task.c.task_id == task)
        ).one()
        columns = {"delivery": rows.OWED, "result": orjson.dumps({"cause": cause})}
        wire = rows.Bytes(sent=False, correlation=cause, data=cause.encode())
        events = (Event.PROVED_RETURNED,)
        change = rows.Change(
            seq, State(state), State.RETURNED, events, cause, at, columns, wire, None, None
        )
        rows.apply(daemon, [change], "c")
        if acknowledged:
            [told] = rows.deliveries(daemon, [task])
            rows.acknowledge(daemon, [(told.task_id, told.state.value, told.at)])
        chain.extend(daemon)


@pytest.mark.parametrize("acknowledged", [False, True], ids=["is owed", "ends in another year"])
def test_what_comes_back_before_it_is_read_is_not_moved(
    path: Path, year: Path, monkeypatch: pytest.MonkeyPatch, acknowledged: bool
) -> None:
    """It was chosen as a success; what is read and compared after that is all of one moment."""
    at = OLD + dt.timedelta(days=400 if acknowledged else 60)
    read = archive.read_rows

    def read_late(connection: sa.Connection, places: list[int]) -> archive.Rows:
        monkeypatch.setattr(archive, "read_rows", read)
        come_back(path, "PAY-succeeded", at, cause="too late", acknowledged=acknowledged)
        return read(connection, places)

    monkeypatch.setattr(archive, "read_rows", read_late)
    late = over(OLD + dt.timedelta(days=500), OLD + dt.timedelta(days=500))
    moved = move(path, late)
    assert "PAY-succeeded" in names(path, "archived IS NULL AND result NOT NULL")
    assert "PAY-succeeded" not in names(year)
    assert findings(path) == []
    # All of its batch stayed; nothing but that is left for the next run.
    again = move(path, late)
    assert again.keys() == ({"2025", "2026"} if acknowledged else {"2025"})
    assert sum((moved | again).values()) == len(MOVED_2025) + acknowledged
    assert move(path, late) == {}
    assert findings(path) == []


def test_an_older_store_that_was_put_back_takes_its_tasks_back(path: Path, year: Path) -> None:
    shutil.copy(path, path.with_name("older"))
    early = over(before=OLD - dt.timedelta(days=30))
    assert move(path, early) == {"2025": 1}
    shutil.copy(path, path.with_name("old"))
    move(path)
    shutil.copy(path.with_name("old"), path)
    assert names(year) - names(path, "archived NOT NULL") != set()
    assert move(path) == {"2025": len(MOVED_2025) - 1}
    assert findings(path) == []


@pytest.mark.parametrize("known", ["queued", "unknown"])
def test_an_end_that_only_the_archive_knows_is_not_taken_out_of_it(
    path: Path, year: Path, known: str
) -> None:
    """The store was put back from before it; a person is to look at the bank first."""
    move(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "UPDATE task SET archived = NULL, state = ?, updated_at = submitted_at"
            " WHERE archived IS NOT NULL",
            (known,),
        )
        db.commit()
    with pytest.raises(ArchiveConflictError, match=f"it is {known}: bring it to its end first"):
        move(path)
    assert query(year, "SELECT count(*) FROM task") == [(len(MOVED_2025),)]


@pytest.mark.parametrize("way_out", ["its bank tells it again", "the archive's copy"])
def test_rows_that_only_the_archive_knows_to_be_back_are_not_taken_out_of_it(
    tmp_path: Path, way_out: str
) -> None:
    """A batch is returned after each of its rows that comes back (退票)."""
    batch = Made("BATCH", State.RETURNED, Kind.BATCH_TRANSFER)
    first = Made("FIRST", State.SUCCEEDED, at=OLD - dt.timedelta(days=1))
    path = make(tmp_path / "fep.sqlite", [first], [batch])
    year = path.with_name("archive-2025.sqlite")
    assert move(path, over(before=OLD)) == {"2025": 1}
    for file in (path, year):
        shutil.copy(file, tmp_path / f"older {file.name}")
    at = OLD + dt.timedelta(days=3)
    come_back(path, "BATCH", at, cause="row 1 is back", acknowledged=True)
    assert move(path) == {"2025": 1}
    shutil.copy(tmp_path / f"older {path.name}", path)
    before = contents(year)
    told = "it is returned: bring it to its end first.* transfer_status .* put back the copy"
    for _ in range(2):
        with pytest.raises(ArchiveConflictError, match=told):
            move(path)
    assert contents(year) == before
    if way_out == "its bank tells it again":
        at += dt.timedelta(days=9)
        come_back(path, "BATCH", at, cause="row 1 is back, asked again", acknowledged=True)
    else:
        shutil.copy(tmp_path / f"older {year.name}", year)
    assert move(path) == {"2025": 1}
    assert findings(path) == []


def test_an_archive_of_another_store_is_left_alone(path: Path, year: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make(other / "fep.sqlite", [Made(f"OTHER-{n}", State.SUCCEEDED) for n in range(40)])
    move(other / "fep.sqlite")
    shutil.copy(other / year.name, year)
    before = contents(year), contents(path)
    with pytest.raises(ArchiveConflictError, match="OTHER-39"):
        move(path)
    assert (contents(year), contents(path)) == before
    assert any("is not known to the store" in one for one in findings(path))


# -- tampering --------------------------------------------------------------------------------

CHANGES = {
    "UPDATE task_event SET cause = 'x' WHERE seq = 3": "chain: link",
    "DELETE FROM task_event WHERE event = 'bank_done'": "missing",
    "UPDATE task SET bank = 'cmb' WHERE task_id = 'PAY-rejected'": "is another in the store",
    "UPDATE task SET delivery = 1 WHERE task_id = 'PAY-rejected'": "is another in the store",
    "UPDATE message SET bytes = x'00'": "are not those of digest",
    "UPDATE event_link SET digest = '' WHERE seq = 2": "archive chain: archive-2025.sqlite: link 2",
    "DELETE FROM event_link WHERE seq = 9": "there are tasks that no link covers",
    "DELETE FROM task WHERE task_id = 'PAY-rejected'": "1 of 10 tasks are missing",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_in_an_archive_is_found(path: Path, year: Path, change: str) -> None:
    move(path)
    with closing(sqlite3.connect(year)) as db:
        first = db.execute("SELECT min(seq) FROM task_event WHERE seq > 1").fetchone()[0]
        assert db.execute(change.replace("seq = 3", f"seq = {first}")).rowcount > 0
        db.commit()
    found = findings(path)
    assert any(CHANGES[change] in one for one in found), found


PAID = "(SELECT seq FROM task WHERE task_id = 'PAY-succeeded')"
BATCH = "(SELECT seq FROM task WHERE task_id = 'BATCH-succeeded')"
ELSEWHEN = "'2024-01-01T00:00:00.000+00:00'"
LEFT_CHANGES = {
    f"UPDATE task SET submitted_at = {ELSEWHEN} WHERE seq = {PAID}": "is another in the store",
    f"UPDATE task SET updated_at = {ELSEWHEN} WHERE seq = {PAID}": "is another in the store",
    f"UPDATE task SET offers = 9 WHERE seq = {PAID}": "is another in the store",
    f"UPDATE task SET sent_at = {ELSEWHEN} WHERE seq = {PAID};"
    f" UPDATE payment SET sent_at = {ELSEWHEN} WHERE task_seq = {PAID}": "is another in the store",
    f"UPDATE task SET sent_at = NULL WHERE seq = {PAID};"
    f" DELETE FROM payment WHERE task_seq = {PAID}": "is another in the store",
    f"UPDATE task SET body = '{{}}' WHERE seq = {PAID}": "its body or result is here",
    f"UPDATE task SET result = '{{}}' WHERE seq = {PAID}": "its body or result is here",
    f"DELETE FROM payment WHERE task_seq = {PAID}": "no statement is searched for it",
    f"UPDATE payment SET amount_fen = 1 WHERE task_seq = {PAID}": "is searched as 1 fen from",
    f"UPDATE payment SET payer = 'x' WHERE task_seq = {PAID}": "is searched as 1250 fen from x",
    f"UPDATE payment SET payee = 'x' WHERE task_seq = {PAID}": "and its body is another",
    f"UPDATE payment_row SET amount_fen = 1 WHERE task_seq = {BATCH} AND place = 1": "row 1 is",
    f"UPDATE payment_row SET client_ref = 'x' WHERE task_seq = {BATCH}": "row 0 is searched as",
    f"DELETE FROM payment_row WHERE task_seq = {BATCH} AND place = 0": "row 0 is searched as",
    "INSERT INTO message (task_seq, bank, direction, at, correlation, digest, bytes)"
    f" VALUES ({PAID}, 'pingan', 'sent', '2025-03-01', 'c', 'd', x'00')": "are not those of digest",
    "UPDATE pool_item SET amount_fen = 1": "moves 12.50, not the amount of the round",
}


@pytest.mark.parametrize("change", LEFT_CHANGES)
def test_what_was_changed_of_what_the_store_keeps_of_an_archived_task_is_found(
    path: Path, year: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    # Several queries, and some tasks of each are in the store yet.
    monkeypatch.setattr("fep.daemon.verify.TASKS_AT_ONCE", 3)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SWEPT)
        move(path)
        assert findings(path) == []
        db.executescript(change)
    found = findings(path)
    assert any(LEFT_CHANGES[change] in one for one in found), found


SWEPT = """
INSERT INTO pool_round (round_id, pool, key, state, started_at, plan_only)
    VALUES ('R1', 'main', 'k1', 'running', '2025-03-01T02:00:00.000+00:00', 0);
INSERT INTO pool_item (round_id, account, place, bank, balance_task, sweep_task, threshold_fen,
                       amount_fen, state)
    VALUES ('R1', '99000000000101', 0, 'pingan', 'B1', 'PAY-succeeded', 1, 1250, 'swept');
"""


def test_what_a_store_keeps_is_not_compared_with_an_archive_that_is_away(
    path: Path, year: Path
) -> None:
    move(path)
    year.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE payment SET amount_fen = 1 WHERE task_seq = {PAID}")
        db.execute(
            "DELETE FROM payment WHERE task_seq ="
            " (SELECT seq FROM task WHERE task_id = 'PAY-returned')"
        )
        db.commit()
    report = verify(path, enterprise=ENTERPRISE, are_whole=False)
    assert report.findings == []


def test_an_archive_that_was_carried_away_is_missed(path: Path, year: Path) -> None:
    move(path)
    year.unlink()
    report = verify(path, enterprise=ENTERPRISE)
    assert [str(one) for one in report.findings] == [
        "archives: archive-2025.sqlite: is not here; 10 tasks and their events can't be looked at"
    ]
    assert report.notes == ["2 links can't be checked without the archives that are not here"]


def test_an_archive_that_is_damaged_is_said(path: Path, year: Path) -> None:
    move(path)
    year.write_bytes(b"no database" * 1000)
    assert any("archives: archive-2025.sqlite: can't be read" in one for one in findings(path))


def test_an_archived_task_that_comes_to_life_in_the_store_is_found(path: Path) -> None:
    move(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "INSERT INTO task_event (task_seq, at, event, state, cause, configuration)"
            " SELECT seq, updated_at, 'proved_returned', 'returned', 'x', 'c' FROM task"
            " WHERE task_id = 'PAY-succeeded'"
        )
        db.commit()
    assert any("it is archived, and its events are here" in one for one in findings(path))


# -- beside a daemon --------------------------------------------------------------------------


async def test_the_daemon_writes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "BATCH_TASKS_MAX", 20)
    path = tmp_path / "fep.sqlite"
    async with opened(path) as store:
        for group in range(10):
            await store.write(work_of([Made(f"T{group}-{n}", State.SUCCEEDED) for n in range(20)]))
        moved: dict[str, int] = {}

        async def run_move() -> None:
            moved.update(await trio.to_thread.run_sync(move, path))

        written = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_move)
            while not moved:
                await store.write(work_of([Made(f"N{written}", State.QUEUED)]))
                written += 1
        assert moved == {"2025": 200}
        assert written > 20
        assert len(await store.read(rows.open_tasks)) == written
    assert findings(path) == []


async def test_who_holds_the_store_for_long_makes_the_move_give_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUSY_SECONDS", 0.05)
    with files.writing(path) as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            move(path)
    assert move(path) == {"2025": len(MOVED_2025)}
    assert findings(path) == []
