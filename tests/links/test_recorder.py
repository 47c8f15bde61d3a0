"""The tape's writer on real sockets and a real disk: exact bytes, rotation, and a disk that fails."""

from __future__ import annotations

import datetime as dt
import socket
from pathlib import Path

import pytest
import trio

from fep.adapters import tape
from fep.adapters.tape import What
from fep.domain.ids import BankName, TaskId
from fep.links import recorder
from fep.links.config import LinkConfig
from fep.links.recorder import Recorder

NOW = dt.datetime(2026, 1, 5, 1, 0, tzinfo=dt.UTC)
BANK = BankName("bank")


class _Clock:
    def now(self) -> dt.datetime:
        return NOW


def made(directory: Path) -> Recorder:
    return Recorder(directory, BANK, "cmb_xml", _Clock())


async def pair(one: Recorder) -> tuple[socket.socket, socket.socket]:
    """Return a tapped socket and its other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def connect(_: LinkConfig) -> socket.socket:
        await trio.lowlevel.checkpoint()
        return ours

    return await one.tapped(connect)(LinkConfig(BANK, "127.0.0.1", 1)), theirs


def read(path: Path) -> tape.Tape:
    found = tape.read(path.read_bytes())
    assert found.left_out == 0
    return found


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_what_the_kernel_took_and_gave_is_on_the_tape(tmp_path: Path) -> None:
    one = made(tmp_path / "tape")
    tapped, theirs = await pair(one)
    with tapped, theirs:
        one.note_task(TaskId("T1"), b"abcdef")
        assert tapped.send(b"abc") == 3
        assert tapped.sendmsg([b"de", memoryview(b"f")]) == 3
        theirs.sendall(b"answer")
        assert tapped.recv(3, socket.MSG_PEEK) == b"ans"
        assert tapped.recv(3) == b"ans"
        assert tapped.recv(10) == b"wer"
        with pytest.raises(BlockingIOError):
            tapped.recv(1)
        # What does not fit in is not sent, and not on the tape.
        big = tapped.send(b"x" * 50_000_000)
        assert big < 50_000_000
    tapped.close()
    assert await one.flush()
    records = read(tmp_path / "tape/bank.tape").records
    assert [(r.what, r.data) for r in records][:6] == [
        (What.OPENED, b""),
        (What.TASK, b""),
        (What.SENT, b"abc"),
        (What.SENT, b"def"),
        (What.RECEIVED, b"ans"),
        (What.RECEIVED, b"wer"),
    ]
    assert len(records[6].data) == big
    assert [r.what for r in records][7:] == [What.CLOSED], "closed once, however often"
    assert (records[1].task, records[1].frame) == ("T1", tape.digest(b"abcdef"))
    assert len({r.connection for r in records if r.what is not What.TASK}) == 1


async def test_full_files_are_moved_on_and_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "FILE_BYTES_MAX", 200)
    monkeypatch.setattr(recorder, "FILES_MAX", 3)
    one = made(tmp_path)
    for number in range(10):
        one.note(What.RECEIVED, f"c-{number}", b"x" * 100)
        assert await one.flush()
    names = names_in(tmp_path)
    assert names == ["bank.tape", "bank.tape.1", "bank.tape.2"]
    kept = [r.connection for name in reversed(names) for r in read(tmp_path / name).records]
    assert kept == [f"c-{number}" for number in range(10 - len(kept), 10)]
    for name in names:
        assert tape.is_tape((tmp_path / name).read_bytes())


async def test_after_a_line_that_was_cut_the_next_is_whole(tmp_path: Path) -> None:
    one = made(tmp_path)
    one.note(What.OPENED, "c-1")
    assert await one.flush()
    path = tmp_path / "bank.tape"
    path.write_bytes(path.read_bytes() + b'{"at":"2026')
    other = made(tmp_path)
    other.note(What.OPENED, "c-2")
    assert await other.flush()
    found = tape.read(path.read_bytes())
    assert [r.connection for r in found.records] == ["c-1", "c-2"]
    assert found.left_out == 1


async def test_a_disk_that_fails_leaves_a_gap_and_nothing_else(tmp_path: Path) -> None:
    full = tmp_path / "tape"
    full.mkdir()
    # As root may write everywhere: a directory stands where the file would.
    (full / "bank.tape").mkdir()
    one = made(full)
    one.note(What.RECEIVED, "c-1", b"lost")
    assert not await one.flush()
    (full / "bank.tape").rmdir()
    one.note(What.RECEIVED, "c-1", b"kept")
    assert await one.flush()
    records = read(full / "bank.tape").records
    assert [(r.what, r.data) for r in records] == [(What.RECEIVED, b"kept"), (What.GAP, b"")]
    assert records[1].count > 0


async def test_memory_is_bounded_while_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WAITING_BYTES_MAX", 500)
    one = made(tmp_path)
    for _ in range(100):
        one.note(What.RECEIVED, "c-1", b"x" * 100)
    assert await one.flush()
    records = read(tmp_path / "bank.tape").records
    assert len(records) < 6
    assert records[-1].what is What.GAP
    assert records[-1].count + 100 * (len(records) - 1) == 100 * 100


async def test_it_writes_by_itself_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.0)
    one = made(tmp_path / "tape")
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        one.note(What.OPENED, "c-1")
        with trio.fail_after(5):
            while not (tmp_path / "tape/bank.tape").exists():
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
