"""``verify`` finds what is wrong with a store, and names it; what the daemon writes is sound."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fep.daemon.verify import FINDINGS_MAX, Report, UnreadableStoreError, verify
from fep.store import backup, chain, files
from fep.tasks import store as rows
from tests.store.made import ENTERPRISE, EVERY, OLD, Made, make, opened, work_of
from tests.store.test_schema import FIXTURES, made_by, run_once

pytestmark = pytest.mark.req("FEP-23")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a task in each state, over several commits."""
    path = tmp_path_factory.mktemp("original") / "fep.sqlite"
    make(path, EVERY[:4], EVERY[4:9], EVERY[9:])
    # One file: of the cells each is changed in a copy of it, which must not meet another's log.
    with files.writing(path, alone=True) as connection, files.transaction(connection):
        backup.mark_restored(connection, OLD)
        rows.release(connection, "li", "statements of all banks", OLD, "c")
        chain.extend(connection)
    with tampered(path) as db:
        db.executescript(POOLS_AND_ALARMS)
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """Return a copy of it to tamper with."""
    shutil.copy(original, tmp_path / "fep.sqlite")
    return tmp_path / "fep.sqlite"


POOLS_AND_ALARMS = """
INSERT INTO pool_round (round_id, pool, key, state, started_at, finished_at, plan_only)
    VALUES ('R1', 'main', 'k1', 'finished', '2025-03-01T02:00:00.000+00:00', '', 0),
           ('R2', 'main', 'k2', 'running', '2025-03-02T02:00:00.000+00:00', NULL, 0);
INSERT INTO pool_item (round_id, account, place, bank, balance_task, sweep_task, threshold_fen,
                       amount_fen, state)
    VALUES ('R1', '99000000000101', 0, 'pingan', 'B1', 'PAY-succeeded', 1, 1250, 'swept'),
           ('R1', '99000000000103', 1, 'pingan', 'B2', 'S2', 1, NULL, 'nothing'),
           ('R1', '99000000000104', 2, 'pingan', 'B3', 'PAY-rejected', 1, 1250, 'failed'),
           ('R2', '99000000000101', 0, 'pingan', 'B4', 'PAY-unknown', 1, 1250, 'sweeping'),
           ('R2', '99000000000105', 1, 'pingan', 'B5', 'S5', 1, NULL, 'asking');
UPDATE pool_item SET account = '99000000000101' WHERE sweep_task = 'no-account';
INSERT INTO alarm (id, kind, subject, state, cause, count, raised_at, last_at, cleared_at)
    VALUES ('a1', 'LINK_DOWN', 'pingan', 'cleared', 'c', 1, '2025-03-01T02:00:00.000+00:00',
            '2025-03-01T02:00:00.000+00:00', '2025-03-01T02:00:01.000+00:00'),
           ('a2', 'LINK_DOWN', 'pingan', 'raised', 'c', 2, '2025-03-01T03:00:00.000+00:00',
            '2025-03-01T03:00:00.000+00:00', NULL);
INSERT INTO alarm_notice (id, channel, alarm_id, what, kind, subject, cause, count, raised_at,
                          noted_at, state, ended_at)
    VALUES ('n1', 'duty', 'a1', 'raised', 'LINK_DOWN', 'pingan', 'c', 1,
            '2025-03-01T02:00:00.000+00:00', '2025-03-01T02:00:00.000+00:00', 'sent',
            '2025-03-01T02:00:02.000+00:00');
UPDATE pool_item SET sweep_task = 'none' WHERE account = '99000000000104';
"""
"""Beside the tasks: a finished round, a running one, a past alarm and an active one."""


@contextmanager
def tampered(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store as somebody does who must not."""
    with closing(sqlite3.connect(path)) as db:
        yield db
        db.commit()


def told(report: Report) -> list[str]:
    return [str(one) for one in report.findings]


def test_what_the_engine_writes_is_sound(path: Path) -> None:
    report = verify(path, full=True, enterprise=ENTERPRISE)
    assert told(report) == []
    assert report.sound
    looked_at = {one.name: one.looked_at for one in report.checks.values()}
    assert looked_at["tasks"] == len(EVERY)
    assert looked_at["chain"] == 5
    assert looked_at["marks"] == 1
    assert (looked_at["pools"], looked_at["alarms"]) == (5, 3)
    assert looked_at["payments"] == looked_at["references"] > 5
    with files.reading(path) as connection:
        assert report.head == chain.head(connection)


def test_a_store_of_a_first_start_is_sound(tmp_path: Path) -> None:
    report = verify(make(tmp_path / "fep.sqlite"))
    assert report.sound
    assert str(report.head) == "0"


async def test_a_store_that_is_in_use_can_be_looked_at(tmp_path: Path) -> None:
    async with opened(tmp_path / "fep.sqlite") as store:
        await store.write(work_of(EVERY[:3]))
        assert verify(tmp_path / "fep.sqlite").checks["tasks"].looked_at == 3
        await store.write(work_of([Made("MORE", EVERY[0].state)]))
        assert verify(tmp_path / "fep.sqlite").checks["tasks"].looked_at == 4


def test_nothing_is_written(path: Path) -> None:
    before = path.read_bytes()
    verify(path, full=True)
    assert path.read_bytes() == before
    assert not path.with_name("fep.sqlite-journal").exists()


# -- one thing is changed ---------------------------------------------------------------------

OF = "(SELECT seq FROM task WHERE task_id = '{}')"
EVENT = "seq = (SELECT max(seq) FROM task_event WHERE task_seq = " + OF + " AND event = '{}')"


def event_of(task: str, event: str) -> str:
    return EVENT.format(task, event)


CHANGES = {
    # The event log.
    "UPDATE task_event SET cause = 'Sent as 4004' || substr(cause, 13) WHERE "
    + event_of("PAY-succeeded", "send_begun"): "chain: link 2: link 2 is broken",
    "DELETE FROM task_event WHERE " + event_of("PAY-succeeded", "bank_done"): "is broken: event ",
    "UPDATE task_event SET task_seq = 1 WHERE task_seq = 2": "tasks: PAY-offered: it has no events",
    "DELETE FROM task_event WHERE seq > 20": "missing",
    "UPDATE task_event SET event = 'submitted ', cause = cause WHERE seq = 1": "characters that no",
    "UPDATE task_event SET cause = CAST(x'ff' AS TEXT) WHERE seq = 3": "link 1 is broken",
    # A task's columns.
    "UPDATE task SET state = 'rejected' WHERE task_id = 'PAY-succeeded'": "lead to succeeded",
    "UPDATE task SET state = 'done' WHERE task_id = 'PAY-succeeded'": "is none that there is",
    "UPDATE task SET updated_at = submitted_at WHERE task_id = 'PAY-succeeded'": "last event at",
    "UPDATE task SET client = 'erp-2' WHERE task_id = 'PAY-succeeded'": "it is erp-2's",
    "UPDATE task SET submitted_at = 'x' WHERE task_id = 'PAY-queued'": "not its submission",
    "UPDATE task SET body = replace(body, '12.50', '92.50') WHERE task_id = 'PAY-fetched'": (
        "PAY-fetched: its body is not the one"
    ),
    "UPDATE task SET body = NULL WHERE task_id = 'PAY-succeeded'": "was sent, and has no body",
    "UPDATE task SET offers = 7 WHERE task_id = 'PAY-offered'": "counts 7 offers, and its events 1",
    "UPDATE task SET delivery = 2 WHERE task_id = 'PAY-unknown'": "unknown, and its delivery is 2",
    "UPDATE task SET delivery = 0 WHERE task_id = 'PAY-owed'": "succeeded, and its delivery is 0",
    "UPDATE task SET result = NULL WHERE task_id = 'PAY-owed'": "succeeded, and has no result",
    "UPDATE task SET result = x'7b7d' WHERE task_id = 'PAY-unknown'": "unknown, and has a result",
    "UPDATE task SET body = NULL, body_digest = NULL WHERE task_id = 'PAY-fetched'": (
        "took another body than the recorded one"
    ),
    "UPDATE task SET body = NULL WHERE task_id = 'PAY-fetched'": "was taken by event",
    # What was sent.
    "UPDATE task SET sent_at = '2025-03-02T02:00:00.000+00:00' WHERE task_id = 'PAY-unknown'": (
        "it was sent at 2025-03-02T02:00:00.000+00:00, and event"
    ),
    "UPDATE task SET sent_at = submitted_at WHERE task_id = 'PAY-queued'": "and no event says so",
    "UPDATE payment SET sent_at = '2025-03-02T02:00:00.000+00:00' WHERE task_seq = "
    + OF.format("PAY-unknown"): "PAY-unknown: it is searched as sent at another moment",
    "UPDATE payment_row SET sent_at = '2025-03-02T02:00:00.000+00:00' WHERE place = 1": (
        "BATCH-unknown: it is searched as sent at another moment"
    ),
    "UPDATE message SET at = '2025-03-02T02:00:00.000+00:00' WHERE task_seq = "
    + OF.format("PAY-unknown"): "(send_begun) are not kept, or not since then",
    "UPDATE task SET client_ref = NULL WHERE task_id = 'PAY-unknown'": "no reference or no moment",
    "UPDATE task SET client_ref = '1' WHERE task_id = 'BATCH-unknown'": "no batch has reference 1",
    "UPDATE task SET sent_at = NULL WHERE task_id = 'PAY-unknown'": "no reference or no moment",
    "UPDATE task SET client_ref = (SELECT client_ref FROM task WHERE task_id = 'PAY-owed')"
    " WHERE task_id = 'PAY-unknown'": "references: F",
    "UPDATE task SET task_id = 'PAY-other' WHERE task_id = 'PAY-unknown'": "not that of this task",
    "UPDATE message SET bytes = bytes || x'00' WHERE task_seq = " + OF.format("PAY-unknown"): (
        "PAY-unknown: the bytes sent are not those of digest"
    ),
    "DELETE FROM message WHERE task_seq = " + OF.format("PAY-unknown"): "sent bytes that are not",
    "INSERT INTO message (task_seq, bank, direction, at, correlation, digest, bytes)"
    " SELECT task_seq, bank, direction, at, correlation, digest, bytes FROM message"
    " WHERE task_seq = " + OF.format("PAY-unknown"): "2 messages were sent, and it was begun 1",
    "UPDATE payment SET amount_fen = 1 WHERE task_seq = " + OF.format("PAY-unknown"): (
        "payments: PAY-unknown: it is searched as 1 fen"
    ),
    "UPDATE payment SET watched_s = 0 WHERE task_seq = " + OF.format("PAY-unknown"): "and watched",
    "UPDATE payment SET bank = 'cmb' WHERE task_seq = "
    + OF.format("PAY-unknown"): "searched at cmb",
    "DELETE FROM payment WHERE task_seq = " + OF.format("PAY-unknown"): "no statement is searched",
    "UPDATE payment SET payee = '1' WHERE task_seq = " + OF.format("BATCH-unknown"): (
        "BATCH-unknown: it is searched as 1350 fen"
    ),
    "UPDATE payment_row SET amount_fen = 1 WHERE place = 1 AND task_seq = "
    + OF.format("BATCH-unknown"): (
        "payments: BATCH-unknown: row 1 is searched as another than its body says"
    ),
    "UPDATE payment_row SET client_ref = 'B1' WHERE place = 0": "row 0 is searched as another",
    "DELETE FROM payment_row WHERE place = 1": "row 1 is searched as another",
    "DELETE FROM payment_row WHERE task_seq = "
    + OF.format("BATCH-unknown"): "BATCH-unknown: it was sent, and none of its rows is searched",
    "UPDATE payment_row SET task_seq = "
    + OF.format("PAY-unknown")
    + " WHERE task_seq = "
    + OF.format("BATCH-unknown"): "PAY-unknown: rows are searched, and it is no batch",
    # What belongs to nothing.
    "UPDATE payment_row SET task_seq = 999 WHERE task_seq = "
    + OF.format("BATCH-unknown"): "strays: task number 999: has 2 of payment_row",
    "DELETE FROM task WHERE task_id = 'ASK-queued'": "strays: task number",
    "UPDATE message SET task_seq = 999 WHERE seq = 1": "strays: task number 999: has 1 of message",
    # Pools.
    "UPDATE pool_item SET state = 'swept' WHERE sweep_task = 'PAY-unknown'": "is unknown",
    "UPDATE pool_item SET state = 'nothing' WHERE sweep_task = 'PAY-succeeded'": "is succeeded",
    "UPDATE pool_item SET state = 'failed' WHERE sweep_task = 'PAY-succeeded'": "it is failed, and",
    "UPDATE pool_item SET amount_fen = 1 WHERE sweep_task = 'PAY-succeeded'": "moves 12.50, not",
    "UPDATE pool_item SET account = '1' WHERE sweep_task = 'PAY-succeeded'": "from another account",
    "UPDATE pool_round SET state = 'finished' WHERE round_id = 'R2'": "this account is sweeping",
    "UPDATE pool_round SET state = 'over' WHERE round_id = 'R2'": "pools: R2",
    # Alarms.
    "UPDATE alarm SET cleared_at = NULL WHERE id = 'a1'": "alarms: a1: it is cleared, and its end",
    "UPDATE alarm SET cleared_at = '', state = 'raised' WHERE id = 'a1'": "it is raised, and its",
    "UPDATE alarm SET cleared_at = NULL, state = 'raised' WHERE id = 'a1'": "is active twice",
    "UPDATE alarm SET kind = 'NOISE' WHERE id = 'a1'": "alarms: a1",
    "UPDATE alarm SET count = 0 WHERE id = 'a1'": "it was seen 0 times",
    "UPDATE alarm SET state = 'acknowledged' WHERE id = 'a2'": "not told by whom",
    "UPDATE alarm_notice SET ended_at = NULL WHERE id = 'n1'": "alarms: n1: it is sent, and its end",
    "UPDATE alarm_notice SET state = 'waiting' WHERE id = 'n1'": "it is waiting, and its end",
    "UPDATE alarm_notice SET state = 'given_up' WHERE id = 'n1'": "its reason is ''",
    "UPDATE alarm_notice SET what = 'sung' WHERE id = 'n1'": "alarms: n1",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_found_and_named(path: Path, change: str) -> None:
    with tampered(path) as db:
        assert db.execute(change).rowcount > 0
    found = told(verify(path, enterprise=ENTERPRISE))
    assert any(CHANGES[change] in one for one in found), found


BODY_OF = "body = replace(body, '12.50', '92.50'), body_digest = ? WHERE task_id = 'PAY-fetched'"


def test_a_body_is_held_against_the_event_that_took_it(path: Path) -> None:
    with tampered(path) as db:
        [body] = db.execute("SELECT body FROM task WHERE task_id = 'PAY-fetched'").fetchone()
        digest = hashlib.sha256(body.replace(b"12.50", b"92.50")).hexdigest()
        db.execute(f"UPDATE task SET {BODY_OF}", (digest,))
    [finding] = told(verify(path, full=True, enterprise=ENTERPRISE))
    assert finding.startswith("tasks: PAY-fetched: event ")
    assert finding.endswith(" took another body than the recorded one")


def test_of_an_older_release_that_noted_no_digests_nothing_is_compared(path: Path) -> None:
    with tampered(path) as db:
        digests = "SET detail = '' WHERE detail LIKE 'body %'"
        assert db.execute(f"UPDATE task_event {digests}").rowcount > 5
        chain_anew(db)
    assert told(verify(path, enterprise=ENTERPRISE)) == []


def chain_anew(db: sqlite3.Connection) -> None:
    """Make every link of the chain anew, as who changes events must."""
    before = ""
    for seq, first, last in db.execute(
        "SELECT seq, first_event, last_event FROM event_link"
    ).fetchall():
        lines = db.execute(
            f"SELECT {chain.LINE} FROM task_event WHERE seq BETWEEN ? AND ?", (first, last)
        )
        before = chain.link_digest(before, (row[0] for row in lines))
        db.execute("UPDATE event_link SET digest = ? WHERE seq = ?", (before, seq))


def test_who_makes_the_whole_chain_anew_is_found_by_the_head_that_was_noted(path: Path) -> None:
    seen = str(verify(path).head)
    assert verify(path, head=seen).sound
    with tampered(path) as db:
        db.execute("UPDATE task_event SET detail = 'another' WHERE seq = 2")
        chain_anew(db)
    assert verify(path).sound
    why = "is not in this chain: the store is older than that, or its history is another"
    assert told(verify(path, head=seen)) == [f"chain: head {seen}: {why}"]


NOT_HELD = {
    ("alarm", "cause"), ("alarm", "cleared_at"), ("alarm", "count"), ("alarm", "id"),
    ("alarm", "subject"), ("alarm_notice", "alarm_id"), ("alarm_notice", "cause"),
    ("alarm_notice", "channel"), ("alarm_notice", "count"), ("alarm_notice", "ended_at"),
    ("alarm_notice", "id"), ("alarm_notice", "subject"), ("event_link", "at"),
    ("event_link", "first_event"), ("event_link", "last_event"), ("message", "correlation"),
    ("message", "seq"), ("payment", "waited_s"), ("payment", "watched_s"), ("pool_item", "account"),
    ("pool_item", "balance_task"), ("pool_item", "bank"), ("pool_item", "place"),
    ("pool_item", "round_id"), ("pool_item", "sweep_task"), ("pool_item", "threshold_fen"),
    ("pool_round", "key"), ("pool_round", "plan_only"), ("pool_round", "pool"),
    ("pool_round", "round_id"), ("pool_round", "started_at"), ("task", "bank"),
    ("task", "delivery"), ("task", "expires_at"), ("task", "inquiries"), ("task", "priority"),
    ("task", "task_id"), ("task", "result"), ("task", "bank_code"), ("task", "bank_message"),
}  # fmt: skip
"""Columns in which something may stand that nothing else in the store tells to be wrong."""


def cells(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield every column, with a row that has something in it."""
    with closing(sqlite3.connect(path)) as db:
        for (table,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            for _, column, *_ in db.execute(f"PRAGMA table_info({table})").fetchall():
                row = db.execute(
                    f"SELECT max(rowid) FROM {table} WHERE {column} NOT NULL AND {column} <> ''"
                ).fetchone()
                if row[0] is not None:
                    yield table, column, row[0]


def test_whatever_stands_in_a_cell_is_answered_and_most_is_found(path: Path) -> None:
    original, unseen = path.read_bytes(), set()
    for table, column, row in cells(path):
        for value in ("\0", b"\xff\xfe", -7, 2**60, 0.5):
            path.write_bytes(original)
            try:
                with tampered(path) as db:
                    db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
            except sqlite3.IntegrityError:
                continue
            if verify(path, enterprise=ENTERPRISE).sound:
                unseen.add((table, column))
    assert sorted(unseen - NOT_HELD) == []


def test_many_findings_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    path = make(tmp_path / "fep.sqlite", [Made(f"T{n}", EVERY[0].state) for n in range(200)])
    with tampered(path) as db:
        db.execute("UPDATE task SET offers = 3")
    report = verify(path)
    assert report.checks["tasks"].wrong == 200
    assert len(report.findings) == FINDINGS_MAX
    assert not report.sound


def test_a_damaged_page_is_told_and_ends_nothing(path: Path) -> None:
    data = bytearray(path.read_bytes())
    page = 4096
    for number in range(2, len(data) // page):
        data[number * page + 100 : number * page + 300] = b"\xff" * 200
    path.write_bytes(data)
    report = verify(path)
    assert not report.sound
    assert told(report)[0].startswith("file: fep.sqlite: ")


def test_an_index_that_does_not_fit_its_table_is_found_by_a_full_look(path: Path) -> None:
    with tampered(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX task_open ON task (bank, state, seq DESC)'"
            " WHERE name = 'task_open'"
        )
    report = verify(path, full=True)
    assert any("task_open" in one for one in told(report))


@pytest.mark.parametrize("content", [None, b"", b"no database " * 1000])
def test_what_is_no_store_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fep.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableStoreError, match=r"fep\.sqlite"):
        verify(path)
    assert path.exists() == (content is not None)


def test_another_releases_store_is_said(path: Path) -> None:
    with tampered(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UnreadableStoreError, match="version 99"):
        verify(path)


def test_progress_is_told(path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(path, progress=lambda *one: seen.append(one))
    assert {what for what, _, _ in seen} == {"reading fep.sqlite", "chain", "tasks"}
    assert ("tasks", 0, len(EVERY)) in seen


async def test_the_first_releases_chain_holds(tmp_path: Path) -> None:
    path = made_by(FIXTURES[0], tmp_path / "fep.sqlite")
    await run_once(path)
    report = verify(path)
    assert report.checks["chain"].wrong == 0
