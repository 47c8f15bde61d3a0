"""A bank's folders: nothing half, nothing twice, nothing lost, whatever happens in between."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fep.adapters.files import Contents
from fep.domain.clock import SHANGHAI
from fep.domain.errors import RemoteProtocolError
from fep.links.config import Folders
from fep.links.drop import Arrived, Drop, NotPutError, UnsureError

START = dt.datetime(2026, 1, 5, 9, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)


class Clock:
    """Stands where a test puts it."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> dt.datetime:
        return self.at


def contents(data: bytes) -> Contents:
    """Read ``<MARK:text>``: whole only with its end."""
    if not (data.startswith(b"<") and data.endswith(b">")):
        msg = "not whole"
        raise RemoteProtocolError(msg)
    marks = data[1:-1].partition(b":")[0].decode().split()
    return Contents(frozenset(marks), {one: one for one in marks}, lambda _: data)


def make(root: Path, clock: Clock | None = None, **times: float) -> Drop:
    for name in ("out", "in", "archive"):
        (root / name).mkdir(exist_ok=True)
    spans = {"settle_s": 0.0, "unreadable_s": 60.0} | times
    folders = Folders(root / "out", root / "in", root / "archive", **spans)  # type: ignore[arg-type]
    made = Drop(folders, contents, clock or Clock(), 1000)
    made.open()
    return made


def bring(root: Path, name: str, data: bytes) -> Path:
    path = root / "in" / name
    path.write_bytes(data)
    return path


def found(drop: Drop, *marks: str, newest: int = 0) -> list[bytes]:
    return [document for _, document in drop.find(marks, newest, 10**6)]


# -- out -------------------------------------------------------------------------------------------


def test_a_file_of_ours_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    drop = make(tmp_path)
    staged = drop.stage("a.xml", b"<a>")
    assert not (tmp_path / "out" / "a.xml").exists()
    drop.publish(staged)
    assert (tmp_path / "out" / "a.xml").read_bytes() == b"<a>"
    assert not staged.exists()
    with pytest.raises(UnsureError, match="there already"):
        drop.publish(drop.stage("a.xml", b"<b>"))
    assert (tmp_path / "out" / "a.xml").read_bytes() == b"<a>"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_what_can_not_be_written_is_not_there(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(NotPutError, match="No space"):
        drop.stage("a.xml", b"<a>")
    monkeypatch.undo()
    assert [one.name for one in (tmp_path / "out").iterdir()] == [".fep"]
    assert not list((tmp_path / "out" / ".fep").iterdir())


def test_a_rename_that_fails_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    staged = drop.stage("a.xml", b"<a>")
    monkeypatch.setattr(Path, "rename", _full)
    with pytest.raises(NotPutError):
        drop.publish(staged)
    monkeypatch.undo()
    rename = Path.rename

    def lost(self: Path, target: Path) -> Path:
        """Over a network: done, and the answer was lost."""
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", lost)
    with pytest.raises(UnsureError):
        drop.publish(staged)
    assert (tmp_path / "out" / "a.xml").exists()


def test_a_folder_that_can_not_be_synced_leaves_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    staged = drop.stage("a.xml", b"<a>")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(UnsureError):
        drop.publish(staged)


def test_what_a_dead_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    drop = make(tmp_path)
    drop.stage("a.xml", b"<a>")
    drop.publish(drop.stage("b.xml", b"<b>"))
    make(tmp_path)
    assert not list((tmp_path / "out" / ".fep").iterdir())
    assert (tmp_path / "out" / "b.xml").exists()


def test_how_long_the_oldest_of_ours_waits(tmp_path: Path) -> None:
    drop = make(tmp_path)
    assert drop.oldest_wait_s(10.0) == 0.0
    drop.publish(drop.stage("a.xml", b"<a>"))
    (tmp_path / "out" / "processed").mkdir()
    assert drop.oldest_wait_s(20.0) == 0.0
    drop.publish(drop.stage("b.xml", b"<b>"))
    assert drop.oldest_wait_s(25.0) == 5.0
    (tmp_path / "out" / "a.xml").unlink()
    assert drop.oldest_wait_s(30.0) == 5.0


@pytest.mark.parametrize("missing", ["out", "in", "archive"])
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, missing: str) -> None:
    drop = make(tmp_path)
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(OSError, match=missing):
        drop.open()


# -- in --------------------------------------------------------------------------------------------


def test_a_file_is_taken_once_and_kept_and_found(tmp_path: Path) -> None:
    drop = make(tmp_path)
    path = bring(tmp_path, "r.xml", b"<A B:1>")
    [one] = drop.scan(0.0)
    assert (one.name, one.reason, one.again) == ("r.xml", "", False)
    assert not path.exists()
    assert one.kept is not None
    assert one.kept.read_bytes() == b"<A B:1>"
    assert one.kept.parent.name == "2026-01-05"
    assert found(drop, "A") == found(drop, "B") == [b"<A B:1>"]
    # The same part under two marks is one document.
    assert found(drop, "A", "B", "C") == [b"<A B:1>"]
    assert drop.scan(1.0) == []
    assert found(make(tmp_path), "A") == [b"<A B:1>"]


def test_the_same_bytes_again_count_once_under_any_name(tmp_path: Path) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "r.xml", b"<A:1>")
    drop.scan(0.0)
    for again in (drop, make(tmp_path)):
        bring(tmp_path, "other.xml", b"<A:1>")
        [one] = again.scan(1.0)
        assert (one.again, one.kept) == (True, None)
        assert found(again, "A") == [b"<A:1>"]
    assert not list((tmp_path / "in").iterdir())
    assert len(list((tmp_path / "archive" / "2026-01-05").iterdir())) == 1


def test_a_file_that_is_written_still_is_left_alone(tmp_path: Path) -> None:
    drop = make(tmp_path, settle_s=2.0)
    path = bring(tmp_path, "r.xml", b"<A:")
    assert drop.scan(0.0) == []
    path.write_bytes(b"<A:1>")
    assert drop.scan(2.0) == []
    assert drop.scan(3.9) == []
    [one] = drop.scan(4.0)
    assert one.kept is not None


def test_half_a_file_waits_and_is_put_aside_in_the_end(tmp_path: Path) -> None:
    drop = make(tmp_path)
    path = bring(tmp_path, "r.xml", b"<A:")
    assert drop.scan(0.0) == drop.scan(59.0) == []
    assert path.exists()
    # It went on being written: the wait begins anew.
    path.write_bytes(b"<A:12")
    assert drop.scan(61.0) == []
    [one] = drop.scan(121.0)
    assert one.reason == "not whole"
    assert one.kept is not None
    assert one.kept.parent.name == "unreadable"
    assert found(drop, "A") == []
    # The whole one, under the same name, is taken.
    bring(tmp_path, "r.xml", b"<A:12>")
    assert [one.reason for one in drop.scan(122.0)] == [""]
    assert found(drop, "A") == [b"<A:12>"]


@pytest.mark.parametrize(
    "name", [".r.xml", "r.xml.tmp", "r.PART", "r.filepart", "r.xml.processing", ".fep"]
)
def test_names_of_what_is_not_finished_are_left_alone(tmp_path: Path, name: str) -> None:
    drop = make(tmp_path)
    path = bring(tmp_path, name, b"<A:1>")
    assert drop.scan(0.0) == []
    assert path.exists()


def test_what_is_no_plain_file_is_left_alone(tmp_path: Path) -> None:
    drop = make(tmp_path)
    (tmp_path / "in" / "folder").mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"<A:secret>")
    (tmp_path / "in" / "link.xml").symlink_to(secret)
    os.mkfifo(tmp_path / "in" / "pipe.xml")
    assert drop.scan(0.0) == drop.scan(100.0) == []
    assert secret.exists()


def test_one_unreadable_file_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "a.xml", b"<A:1>")
    bring(tmp_path, "b.xml", b"<B:1>")
    opened = os.open

    def refuse(path: Path, *more: int) -> int:
        if Path(path).name == "a.xml":
            raise PermissionError(13, "Permission denied")
        return opened(path, *more)

    monkeypatch.setattr(os, "open", refuse)
    arrived = {one.name: one for one in drop.scan(0.0)}
    assert "Permission denied" in arrived["a.xml"].reason
    assert arrived["b.xml"].reason == ""
    assert drop.scan(1.0) == []
    monkeypatch.undo()
    assert [one.name for one in drop.scan(61.0)] == ["a.xml"]
    assert found(drop, "A") == [b"<A:1>"]


def test_a_file_that_can_not_be_removed_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "a.xml", b"<A:1>")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    [one] = drop.scan(0.0)
    assert "can't be removed" in one.reason
    assert one.contents.told == {"A": "A"}
    assert drop.scan(100.0) == drop.scan(10_000.0) == []
    assert found(drop, "A") == [b"<A:1>"]


def test_what_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    path = bring(tmp_path, "a.xml", b"<A:1>")
    write = Drop._write

    def overwrite(kept: Path, data: bytes) -> None:
        write(kept, data)
        path.write_bytes(b"<A:22>")

    monkeypatch.setattr(Drop, "_write", staticmethod(overwrite))
    drop.scan(0.0)
    monkeypatch.undo()
    assert path.exists()
    drop.scan(1.0)
    assert found(drop, "A") == [b"<A:1>", b"<A:22>"]
    assert not path.exists()


def test_a_file_that_is_too_large_is_put_aside_unread(tmp_path: Path) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "a.xml", b"<A:" + b"1" * 1000 + b">")
    [one] = drop.scan(0.0)
    assert "more than 1000 bytes" in one.reason
    assert one.kept is not None
    assert one.kept.stat().st_size == 1004


def test_an_archive_that_is_full_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = make(tmp_path)
    path = bring(tmp_path, "a.xml", b"<A:1>")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="No space"):
        drop.scan(0.0)
    monkeypatch.undo()
    assert path.exists()
    drop.open()
    assert found(drop, "A") == []
    drop.scan(1.0)
    assert found(drop, "A") == [b"<A:1>"]


def test_odd_names_stay_in_the_archive(tmp_path: Path) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "回单 №1;" + "x" * 80, b"<A:1>")
    [one] = drop.scan(0.0)
    assert one.kept is not None
    assert one.kept.parent.parent == tmp_path / "archive"
    assert found(make(tmp_path), "A") == [b"<A:1>"]


def test_many_files_come_in_portions_in_their_order(tmp_path: Path) -> None:
    drop = make(tmp_path)
    for number in range(150):
        path = bring(tmp_path, f"{number:03d}", b"<A:%d>" % number)
        os.utime(path, ns=(number, number))
    assert [len(drop.scan(0.0)) for _ in range(3)] == [100, 50, 0]
    assert found(drop, "A") == [b"<A:%d>" % number for number in range(150)]
    assert found(drop, "A", newest=2) == [b"<A:148>", b"<A:149>"]


def test_what_is_old_is_not_looked_through_and_stays(tmp_path: Path) -> None:
    clock = Clock()
    drop = make(tmp_path, clock, kept_days=3)
    bring(tmp_path, "a.xml", b"<A:1>")
    drop.scan(0.0)
    clock.at += dt.timedelta(days=3)
    drop.scan(1.0)
    assert found(drop, "A") == [b"<A:1>"]
    clock.at += dt.timedelta(days=1)
    drop.scan(2.0)
    assert found(drop, "A") == []
    assert found(make(tmp_path, clock, kept_days=3), "A") == []
    assert len(list((tmp_path / "archive" / "2026-01-05").iterdir())) == 1


def test_more_than_one_answer_holds_is_an_error(tmp_path: Path) -> None:
    drop = make(tmp_path)
    bring(tmp_path, "a.xml", b"<A:1>")
    drop.scan(0.0)
    with pytest.raises(RemoteProtocolError):
        drop.find(("A",), 0, 4)


@pytest.mark.parametrize("places", [("a", "a", "b"), ("a", "b", "b/c"), ("a/b", "c", "a")])
def test_folders_lie_side_by_side(places: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="side by side"):
        Folders(Path("/x", places[0]), Path("/x", places[1]), Path("/x", places[2]))


class Crashes(RuleBasedStateMachine):
    """Files come, come again, come in halves; the process dies at any system call."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="fep-drop-"))
        self.now = 0.0
        self.drop = make(self.root)
        self.told: list[str] = []
        self.whole: set[bytes] = set()

    def _note(self, arrived: list[Arrived]) -> None:
        self.told += [mark for one in arrived if not one.again for mark in one.contents.told]

    @rule(name=st.sampled_from("ab"), number=st.integers(0, 3), whole=st.booleans())
    def comes(self, name: str, number: int, whole: bool) -> None:
        data = b"<M%d:x>" % number
        old = self.root / "in" / name
        if old.exists():
            self.whole.discard(old.read_bytes())
        bring(self.root, name, data if whole else data[:-1])
        if whole:
            self.whole.add(data)

    @rule(seconds=st.sampled_from([0.0, 1.0, 100.0]))
    def looks(self, seconds: float) -> None:
        self.now += seconds
        self._note(self.drop.scan(self.now))

    @rule(at=st.integers(0, 12))
    def dies(self, at: int) -> None:
        left = [at]

        def maybe(call: Callable[..., object]) -> Callable[..., object]:
            def run(*given: object, **more: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return call(*given, **more)

            return run

        patch = pytest.MonkeyPatch()
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, maybe(getattr(owner, name)))
        try:
            self.now += 100.0
            self._note(self.drop.scan(self.now))
        except KeyboardInterrupt:
            pass
        finally:
            patch.undo()
        self.drop = make(self.root)

    @invariant()
    def nothing_is_lost_and_nothing_half_counts(self) -> None:
        waiting = {one.read_bytes() for one in (self.root / "in").iterdir()}
        for data in self.whole:
            mark = data[1:3].decode()
            seen = found(self.drop, mark)
            assert seen in ([], [data])
            assert seen or data in waiting
        assert all(one.startswith("M") for one in self.told)

    def teardown(self) -> None:
        shutil.rmtree(self.root)


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
