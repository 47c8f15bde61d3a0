"""The link of a bank that takes files: its promises are a link's, and the rename is the byte."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fep.adapters.api import Reply
from fep.adapters.files import (
    FOUND,
    NONE,
    TOLD,
    WRITTEN,
    Contents,
    Parcel,
    ParcelFramer,
    parcel_bytes,
)
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock
from fep.domain.errors import (
    LinkLostError,
    LocalProtocolError,
    NothingSentError,
    RemoteProtocolError,
)
from fep.domain.ids import Sequence
from fep.links.config import Folders, LinkConfig
from fep.links.drop import Drop
from fep.links.folder import FolderLink
from fep.links.mux import UnmatchedReply
from fep.links.service import run_link
from fep.links.state import LinkState
from fep.store.database import Store
from tests.links.conftest import BANK, KeyGate, ToyCodec

SECONDS_MAX = 5.0


@attrs.frozen
class FileCodec(ToyCodec):
    """A bank whose files are ``<MARK MARK:text>``."""

    def framer(self) -> ParcelFramer:  # type: ignore[override]
        def read(parcel: Parcel, raw: bytes) -> Reply:
            return Reply(parcel.correlation, parcel.trade, parcel.code, "", raw, parcel)

        return ParcelFramer(read, 10**6)

    def contents(self, document: bytes) -> Contents:
        if not (document.startswith(b"<") and document.endswith(b">")):
            msg = "not whole"
            raise RemoteProtocolError(msg)
        marks = document[1:-1].partition(b":")[0].decode().split()
        told = {one: f"R{one}" for one in marks}
        return Contents(frozenset(marks), told, lambda _: document)


class Rig:
    """A folder link, its gate, its alarms and its folders."""

    def __init__(self, root: Path, alarms: Alarms, **times: Any) -> None:
        self.root = root
        self.alarms = alarms
        self.gate = KeyGate()
        for name in ("out", "in", "archive"):
            (root / name).mkdir()
        spans = {"poll_s": 0.01, "settle_s": 0.0, "unreadable_s": 0.05} | times
        config = LinkConfig(
            BANK,
            folders=Folders(root / "out", root / "in", root / "archive", **spans),
            backoff_first_s=0.01,
            backoff_max_s=0.02,
            reply_timeout_s=1.0,
        )
        send, self.told = trio.open_memory_channel[UnmatchedReply](100)
        self.link = FolderLink(
            config, FileCodec(), Sequence(), SystemClock(), alarms, send, random.Random(1)
        )

    async def ask(self, parcel: Parcel, may_begin: Callable[[], bool] | None = None) -> Parcel:
        """Exchange a parcel."""
        reply = await self.link.exchange(parcel_bytes(parcel), parcel.correlation, may_begin)
        assert isinstance(reply.content, Parcel)
        return reply.content

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(SECONDS_MAX):
            while not holds():
                await trio.sleep(0.005)

    async def next_told(self) -> UnmatchedReply:
        with trio.fail_after(SECONDS_MAX):
            return await self.told.receive()

    def kinds(self) -> set[AlarmKind]:
        return {one.kind for one in self.alarms.active()}


@asynccontextmanager
async def running(root: Path, **times: Any) -> AsyncIterator[Rig]:
    """Run a link with its alarms."""
    store = Store.at(root / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, SystemClock())
        await alarms.load()
        rig = Rig(root, alarms, **times)
        async with trio.open_nursery() as inner:
            await inner.start(run_link, rig.link, rig.gate)
            with trio.fail_after(SECONDS_MAX):
                await rig.link.wait_open()
            yield rig
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def put(name: str = "a.xml", correlation: str = "1") -> Parcel:
    return Parcel("payment", correlation, "RA", names=(name,), documents=(b"<ours>",))


def question(*marks: str, correlation: str = "2", newest: int = 0) -> Parcel:
    return Parcel("status", correlation, marks=marks, newest=newest)


async def test_a_file_is_put_there_and_that_is_all_that_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        answer = await rig.ask(put())
        assert (answer.code, answer.correlation, answer.reference) == (WRITTEN, "1", "RA")
        assert (tmp_path / "out" / "a.xml").read_bytes() == b"<ours>"
        assert rig.link.snapshot().peer == str(tmp_path / "out")
        assert (rig.link.requests, rig.link.in_flight) == (1, 0)


async def test_a_question_is_answered_from_what_came(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        assert (await rig.ask(question("A"))).code == NONE
        (tmp_path / "in" / "r.xml").write_bytes(b"<A B:1>")
        told = [await rig.next_told(), await rig.next_told()]
        assert {one.reply.content.reference for one in told} == {"RA", "RB"}
        assert all(one.told and one.reply.trade == TOLD for one in told)
        answer = await rig.ask(question("A", correlation="3"))
        assert (answer.code, answer.documents) == (FOUND, (b"<A B:1>",))
        assert rig.link.last_reply_at is not None


async def test_what_is_told_of_a_payment_is_all_that_came_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for number in (1, 2):
            (tmp_path / "in" / f"{number}.xml").write_bytes(b"<A:%d>" % number)
            told = await rig.next_told()
            assert len(told.reply.content.documents) == number


async def test_may_begin_is_asked_at_the_last_moment(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def may_begin() -> bool:
        seen.append(sorted(one.name for one in (tmp_path / "out" / ".fep").iterdir()))
        return False

    async with running(tmp_path) as rig:
        with pytest.raises(NothingSentError, match="not permitted"):
            await rig.ask(put(), may_begin)
        assert seen == [["a.xml"]], "it was whole, and not seen yet"
        assert not (tmp_path / "out" / "a.xml").exists()


async def test_a_key_that_goes_while_the_file_is_written_stops_it(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        stage = rig.link._drop.stage

        def slow(name: str, document: bytes) -> Path:
            trio.from_thread.run_sync(rig.gate.close)
            return stage(name, document)

        rig.link._drop.stage = slow  # type: ignore[method-assign]
        with pytest.raises(NothingSentError):
            await rig.ask(put())
        assert not (tmp_path / "out" / "a.xml").exists()
        await rig.until(lambda: rig.link.state is LinkState.NO_KEY)
        with pytest.raises(NothingSentError):
            await rig.ask(put())


async def test_a_deadline_before_the_rename_means_that_nothing_was_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        go = threading.Event()
        stage = rig.link._drop.stage

        def slow(name: str, document: bytes) -> Path:
            go.wait(SECONDS_MAX)
            return stage(name, document)

        rig.link._drop.stage = slow  # type: ignore[method-assign]
        try:
            with pytest.raises(NothingSentError, match="deadline"), trio.fail_after(0.05):
                await rig.ask(put())
        finally:
            go.set()
        rig.link._drop.stage = stage  # type: ignore[method-assign]
        with pytest.raises(NothingSentError), trio.move_on_after(0):
            await rig.ask(put())
        await trio.sleep(0.05)
        assert not (tmp_path / "out" / "a.xml").exists()


async def test_who_is_cancelled_during_the_rename_learns_the_truth(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        publish = rig.link._drop.publish

        def slow(staged: Path) -> None:
            trio.from_thread.run_sync(scope.cancel)
            publish(staged)

        rig.link._drop.publish = slow  # type: ignore[method-assign]
        with trio.CancelScope() as scope:
            assert (await rig.ask(put())).code == WRITTEN
        assert (tmp_path / "out" / "a.xml").exists()


async def test_what_fails_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as rig:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(NothingSentError, match="No space"):
            await rig.ask(put())
        monkeypatch.undo()
        assert (await rig.ask(put(correlation="2"))).code == WRITTEN
        with pytest.raises(LinkLostError, match="there already"):
            await rig.ask(put(correlation="3"))
        for wrong in (b"rubbish", parcel_bytes(put(correlation="4"))):
            with pytest.raises(LocalProtocolError):
                await rig.link.exchange(wrong, "5")


async def test_the_folders_going_and_coming_back_are_a_lost_link(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        shutil.move(tmp_path / "in", tmp_path / "away")
        await rig.until(lambda: AlarmKind.LINK_DOWN in rig.kinds())
        with pytest.raises(NothingSentError):
            await rig.ask(put())
        shutil.move(tmp_path / "away", tmp_path / "in")
        await rig.until(lambda: rig.link.is_open and AlarmKind.LINK_DOWN not in rig.kinds())
        assert "folder" in rig.link.last_failure


async def test_a_file_that_nobody_fetches_is_an_alarm(tmp_path: Path) -> None:
    async with running(tmp_path, fetched_within_s=0.05) as rig:
        await rig.ask(put())
        await rig.until(lambda: AlarmKind.BANK_HEARTBEAT_LOST in rig.kinds())
        (tmp_path / "out" / "a.xml").unlink()
        await rig.until(lambda: AlarmKind.BANK_HEARTBEAT_LOST not in rig.kinds())


async def test_what_can_not_be_read_is_put_aside_with_an_alarm(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        (tmp_path / "in" / "half.xml").write_bytes(b"<A:")
        (tmp_path / "in" / "good.xml").write_bytes(b"<B:1>")
        assert (await rig.next_told()).reply.content.reference == "RB"
        await rig.until(lambda: AlarmKind.UNMATCHED_REPLY in rig.kinds())
        assert (tmp_path / "archive" / "unreadable").is_dir()
        assert rig.link.is_open


async def test_a_file_that_comes_twice_is_told_once(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for name in ("one.xml", "two.xml"):
            (tmp_path / "in" / name).write_bytes(b"<A:1>")
            await rig.until(lambda: not list((tmp_path / "in").iterdir()))
        await rig.next_told()
        with trio.move_on_after(0.1):
            pytest.fail(f"told again: {await rig.told.receive()}")


async def test_an_archive_that_can_not_be_looked_through_proves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        (tmp_path / "in" / "a.xml").write_bytes(b"<A:1>")
        await rig.next_told()
        rig.link._drop._recent.clear()
        for path in (tmp_path / "archive").rglob("*-a.xml"):
            path.unlink()
        assert (await rig.ask(question("A"))).code == "FAILED"
        assert isinstance(rig.link._drop, Drop)


async def test_draining_lets_nothing_new_begin_and_resuming_does(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        rig.link.drain()
        await rig.until(lambda: rig.link.state is LinkState.HELD)
        with pytest.raises(NothingSentError):
            await rig.ask(put())
        (tmp_path / "in" / "a.xml").write_bytes(b"<A:1>")
        rig.link.resume()
        assert (await rig.next_told()).reply.content.reference == "RA"
        assert (await rig.ask(put())).code == WRITTEN
