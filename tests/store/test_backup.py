"""A backup is the store of one moment, and marked; a restore can be cut off anywhere."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from fep.daemon.verify import verify
from fep.domain.clock import to_text
from fep.store import backup, chain, files
from fep.store.backup import BackupRefusedError
from fep.tasks import store as rows
from fep.tasks.state import State
from tests.store.made import ENTERPRISE, EVERY, OLD, Made, make, opened, work_of
from tests.store.test_archive import move

pytestmark = pytest.mark.req("FEP-23")

LATER = OLD.replace(month=9)


class NotSoundError(Exception):
    pass


def sound(path: Path) -> None:
    if verify(path, enterprise=ENTERPRISE).findings:
        raise NotSoundError


def silent(_done: int, _total: int) -> None:
    pass


def back_up(path: Path, target: Path, **options: Any) -> None:
    options = {"check": sound, "tell": silent} | options
    backup.back_up(path, target, LATER, **options)


def restore(source: Path, directory: Path, **options: Any) -> Path:
    options = {"check": sound, "tell": silent} | options
    return backup.restore(source, directory, LATER, **options)


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def content(path: Path) -> list[str]:
    """Return everything in a store but the marks of its copies, and what the chain says of them."""
    of_marks = "(SELECT seq FROM task_event WHERE event = 'restored')"
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        closing(sqlite3.connect(":memory:")) as own,
    ):
        db.backup(own)
        own.execute("DELETE FROM restored")
        own.execute(f"DELETE FROM event_link WHERE first_event IN {of_marks}")
        own.execute("DELETE FROM task_event WHERE event = 'restored'")
        return list(own.iterdump())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return make(tmp_path / "state" / files.STORE_FILE, EVERY[:6], EVERY[6:])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy.sqlite"


# -- backup -----------------------------------------------------------------------------------


def test_a_copy_has_everything_and_bears_its_mark(path: Path, target: Path) -> None:
    before = path.read_bytes()
    back_up(path, target)
    assert path.read_bytes() == before, "the mark is in the copy alone"
    assert content(target) == content(path)
    assert target.stat().st_mode & 0o777 == 0o600
    assert query(target, "PRAGMA journal_mode") == [("delete",)], "it is one file"
    head = str(verify(path).head)
    assert query(target, "SELECT taken_at, link, released_at FROM restored") == [
        (to_text(LATER), head, None)
    ]
    assert verify(target, full=True, head=head).sound
    assert [one.name for one in target.parent.iterdir() if one.is_file()] == ["copy.sqlite"]


def test_a_file_that_is_there_is_left_alone(path: Path, target: Path) -> None:
    target.write_bytes(b"precious")
    with pytest.raises(BackupRefusedError, match="is there already"):
        back_up(path, target)
    assert target.read_bytes() == b"precious"
    back_up(path, target, replace=True)
    assert verify(target).sound


def test_a_copy_that_is_not_sound_never_gets_its_name(path: Path, target: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE task_event SET cause = 'x' WHERE seq = 3")
        db.commit()
    target.write_bytes(b"the last good one")
    with pytest.raises(NotSoundError):
        back_up(path, target, replace=True)
    assert target.read_bytes() == b"the last good one"
    assert sorted(one.name for one in target.parent.iterdir()) == ["copy.sqlite", "state"]


def test_without_a_folder_nothing_begins(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupRefusedError, match="is no folder"):
        back_up(path, tmp_path / "no" / "copy.sqlite")


async def test_a_copy_is_of_one_moment_while_the_daemon_writes(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit writes two tasks; a copy of several moments would have an odd number."""
    monkeypatch.setattr(backup, "PAGES_AT_ONCE", 1)
    path = tmp_path / "fep.sqlite"
    steps: list[int] = []
    async with opened(path) as store:

        async def pair(number: int) -> None:
            await store.write(work_of([Made(f"{n}{number}", State.SUCCEEDED) for n in "ab"]))

        for number in range(20):
            await pair(number)
        at_first = len(query(path, "SELECT 1 FROM task"))

        def tell(done: int, total: int) -> None:
            steps.append(total)
            if done % 5 == 0:
                # From the copier's thread: the daemon commits between two of its pages.
                trio.from_thread.run(pair, 1000 + len(steps))

        copying: Callable[[], None] = lambda: back_up(path, target, tell=tell)  # noqa: E731
        await trio.to_thread.run_sync(copying)
        assert len(query(path, "SELECT 1 FROM task")) > at_first
    assert len(query(target, "SELECT 1 FROM task")) == at_first
    assert len(set(steps)) == 1, "it never began anew"
    assert verify(target, full=True, enterprise=ENTERPRISE).sound


def test_archives_beside_the_store_are_looked_at_with_the_copy(path: Path, target: Path) -> None:
    move(path)

    def check(file: Path) -> None:
        report = verify(file, archives=path.parent, enterprise=ENTERPRISE)
        assert report.sound, report.findings

    back_up(path, target, check=check)
    assert query(target, "SELECT count(*) FROM task WHERE archived NOT NULL")[0][0] > 5


# -- restore ----------------------------------------------------------------------------------


def grown(path: Path) -> None:
    """Let the store go on after its backup, with commits left in its write-ahead log."""

    async def go_on() -> None:
        async with opened(path) as store:
            await store.write(work_of([Made("LATER", State.UNKNOWN)]))
            # As a kill leaves it: the last close would take the log into the file.
            for end in ("", "-wal"):
                shutil.copy(f"{path}{end}", f"{path}{end}.kill")

    trio.run(go_on)
    for end in ("", "-wal"):
        Path(f"{path}{end}.kill").rename(f"{path}{end}")


def test_a_copy_takes_the_place_of_the_store_and_that_is_kept(path: Path, target: Path) -> None:
    back_up(path, target)
    grown(path)
    former = restore(target, path.parent)
    assert content(path) == content(target)
    assert query(path, "SELECT task_id FROM task WHERE task_id = 'LATER'") == []
    assert query(former, "SELECT task_id FROM task WHERE task_id = 'LATER'") == [("LATER",)]
    assert verify(path, full=True).sound
    assert verify(former).sound
    assert not path.with_name(files.RESTORING_FILE).exists()
    assert query(path, "SELECT taken_at, restored_at, released_at FROM restored") == [
        (to_text(LATER), to_text(LATER), None)
    ]


def kept(path: Path) -> list[tuple[str, list[str]]]:
    """Return the former stores by name, each with the task that came after the backup, if it has it."""
    tasks = "SELECT task_id FROM task WHERE task_id = 'LATER'"
    return [
        (one.name, [task_id for (task_id,) in query(one, tasks)])
        for one in sorted(path.parent.glob("*.before-*"))
        if not one.name.endswith(files.SIDE_FILES)
    ]


def test_what_is_kept_outlives_a_restore_in_the_same_second(path: Path, target: Path) -> None:
    back_up(path, target)
    grown(path)
    former = restore(target, path.parent)
    # As a kill leaves it beside a file: commits that are another's.
    log = former.with_name(f"{former.name}-2-wal")
    log.write_bytes(b"of another file")
    assert restore(target, path.parent) == former.with_name(f"{former.name}-3")
    assert log.read_bytes() == b"of another file"
    assert kept(path) == [(former.name, ["LATER"]), (f"{former.name}-3", [])]


def test_the_new_file_meets_nothing_of_the_old_one(path: Path, target: Path) -> None:
    back_up(path, target)
    sides = {end: path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")}
    for end, side in sides.items():
        side.write_text(end)
    former = restore(target, path.parent)
    assert [side for side in sides.values() if side.exists()] == []
    for end in sides:
        assert former.with_name(former.name + end).read_text() == end


def test_a_file_that_was_copied_by_other_means_is_marked_too(path: Path, target: Path) -> None:
    grown(path)
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{target}{end}")
    restore(target, path.parent)
    [(taken_at, restored_at)] = query(path, "SELECT taken_at, restored_at FROM restored")
    assert taken_at == query(path, "SELECT max(at) FROM task_event")[0][0]
    assert restored_at == to_text(LATER)
    assert query(path, "SELECT task_id FROM task WHERE task_id = 'LATER'") == [("LATER",)]


@pytest.mark.parametrize(
    ("by_hand", "told"),
    [
        ("DELETE FROM restored", "put a copy back, and its mark is not here: mark 1 of 2025-09-01"),
        (
            "UPDATE restored SET taken_at = '2025-08-01T00:00:00.000+00:00'",
            "is not here: mark 1 of",
        ),
        ("UPDATE restored SET restored_at = NULL", "was put back at None, and event"),
        (
            "UPDATE restored SET released_at = restored_at, released_by = 'li', evidence = 'none'",
            "is released, and no event says by whom and why",
        ),
    ],
)
def test_a_mark_that_is_taken_away_by_hand_is_missed(
    path: Path, target: Path, by_hand: str, told: str
) -> None:
    back_up(path, target)
    restore(target, path.parent)
    with closing(sqlite3.connect(path)) as db:
        db.execute(by_hand)
        db.commit()
    [finding] = verify(path, enterprise=ENTERPRISE).findings
    assert (finding.check, finding.where) == ("marks", "the store")
    assert told in finding.message


def test_what_was_released_before_releases_nothing_later(path: Path, target: Path) -> None:
    """Neither do the words of an earlier release, taken over by hand."""
    for month, marks in ((8, 1), (9, 2), (10, 3)):
        backup.back_up(path, target, OLD.replace(month=month), sound, silent, replace=True)
        restore(target, path.parent)
        assert len(query(path, "SELECT 1 FROM restored")) == marks
        # The second is put back while the first holds payments still.
        if month == 9:
            with files.writing(path) as connection, files.transaction(connection):
                rows.release(connection, "li", "statements of\0 all banks", LATER, "c")
                chain.extend(connection)
        assert verify(path, enterprise=ENTERPRISE).findings == []
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "UPDATE restored SET (released_at, released_by, evidence) ="
            " (SELECT released_at, released_by, evidence FROM restored WHERE seq = 1) WHERE seq = 3"
        )
        db.commit()
    [finding] = verify(path, enterprise=ENTERPRISE).findings
    assert finding.message.startswith("mark 3 of 2025-10-01")


def test_a_store_that_an_older_release_put_back_is_sound(path: Path, target: Path) -> None:
    """It told the chain of the release alone."""
    back_up(path, target)
    with files.writing(target) as connection, files.transaction(connection):
        connection.exec_driver_sql("UPDATE restored SET restored_at = taken_at")
    assert verify(target).sound
    with files.writing(target) as connection, files.transaction(connection):
        rows.release(connection, "li", "statements of all banks", LATER, "c")
        chain.extend(connection)
    assert verify(target).findings == []


def test_where_no_store_is_left_a_copy_is_put_all_the_same(path: Path, target: Path) -> None:
    back_up(path, target)
    path.unlink()
    restore(target, path.parent)
    assert content(path) == content(target)


@pytest.mark.parametrize("damage", [b"", b"no database" * 500])
def test_what_is_not_sound_is_not_put_there(path: Path, target: Path, damage: bytes) -> None:
    before = content(path)
    with pytest.raises(BackupRefusedError, match="there is no file"):
        restore(target, path.parent)
    target.write_bytes(damage)
    with pytest.raises(BackupRefusedError, match="is no store"):
        restore(target, path.parent)
    back_up(path, target, replace=True)
    with closing(sqlite3.connect(target)) as db:
        db.execute("DELETE FROM task_event WHERE seq = 4")
        db.commit()
    with pytest.raises(NotSoundError):
        restore(target, path.parent)
    assert content(path) == before
    left = {one.name.removesuffix("-wal").removesuffix("-shm") for one in path.parent.iterdir()}
    assert left == {files.STORE_FILE}


STEPS = ("rename", "replace", "unlink", "write_text")


class Cut(BaseException):
    """The machine went off."""


@pytest.mark.parametrize("at", range(1, 7))
def test_a_restore_that_is_cut_off_anywhere_leaves_a_store_or_a_flag(
    path: Path, target: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step it was: either the old store is whole, or the daemon does not start."""
    back_up(path, target)
    grown(path)
    old, steps = content(path), 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Path, *rest: Any, **more: Any) -> Any:
            nonlocal steps
            if "part" not in self.name or real.__name__ == "replace":
                steps += 1
            if steps == at:
                raise Cut
            return real(self, *rest, **more)

        return step

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, cut(getattr(Path, name)))
        with pytest.raises(Cut):
            restore(target, path.parent)
    if not path.with_name(files.RESTORING_FILE).exists():
        assert content(path) == old
    former = restore(target, path.parent)
    assert content(path) == content(target)
    assert not path.with_name(files.RESTORING_FILE).exists()
    keeps = [path.with_name(name) for name, _ in kept(path)]
    assert former in keeps
    assert old in [content(one) for one in keeps]


def test_the_chain_goes_on_from_the_copy(path: Path, target: Path) -> None:
    back_up(path, target)
    head = verify(path).head
    grown(path)
    lost = verify(path).head
    restore(target, path.parent)

    async def go_on() -> None:
        async with opened(path) as store:
            assert (await store.read(chain.head)).seq == head.seq + 1, "it was put back"
            await store.write(work_of([Made("AFTER", State.QUEUED)]))
            since = await store.read(rows.held_since)
            assert since == LATER

    trio.run(go_on)
    assert verify(path, head=str(head)).sound
    assert not verify(path, head=str(lost)).sound, "that history is not in it"
