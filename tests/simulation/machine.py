"""The machine under the simulated daemon: virtual threads, a disk that can lose what was not
synced, sockets that can be cut, and a wall clock that follows trio's virtual one.
"""

from __future__ import annotations

import datetime as dt
import functools
import random
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from fep.store import files, schema
from fep.store.files import STORE_FILE
from fep.store.pace import Pace

EPOCH = dt.datetime(2026, 1, 5, 1, 0, tzinfo=dt.UTC)
"""Monday 09:00 in Shanghai."""
STORE_FILES = (STORE_FILE, f"{STORE_FILE}-wal")
THREAD_SECONDS_MAX = 0.02
"""Before the work and after it; a slow disk is most of it."""


@functools.cache
def _empty_store() -> bytes:
    """Return a file that has its tables: making them takes longer than many a run."""
    with tempfile.TemporaryDirectory(prefix="fep-sim-") as directory:
        path = Path(directory) / STORE_FILE
        with files.writing(path) as connection:
            schema.migrate(connection)
        return path.read_bytes()


class TrueClock:
    """The wall clock of everybody else: it goes with virtual time and is never set."""

    def now(self) -> dt.datetime:
        """Return the present moment, aware, in UTC."""
        return EPOCH + dt.timedelta(seconds=trio.current_time())


class SimClock:
    """The daemon's wall clock: virtual time, and a step that an operator or NTP may make."""

    def __init__(self) -> None:
        self.step_s = 0.0

    def now(self) -> dt.datetime:
        """Return the present moment, aware, in UTC."""
        return EPOCH + dt.timedelta(seconds=trio.current_time() + self.step_s)


class Disk:
    """The state directory, one copy for each life of the daemon.

    A commit that returned is synced (SQLite WAL, synchronous=FULL). A crash inside a commit leaves
    any part of what it appended to the write-ahead log, the last bytes torn.
    """

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._life = 0
        self.directory = root / "life-0"
        self.directory.mkdir()
        (self.directory / STORE_FILE).write_bytes(_empty_store())
        self.torn = 0

    def crash(self) -> None:
        """Give the next life what the disk holds at this moment."""
        self._next_life({name: self._read(name) for name in STORE_FILES})

    def crash_in_commit(self, before: dict[str, bytes | None]) -> None:
        """Give the next life what the disk may hold when the power went inside a commit.

        Args:
            before: the files' content when the commit began; the commit has run since.
        """
        after = {name: self._read(name) for name in STORE_FILES}
        main, wal = STORE_FILES
        old, new = before[wal] or b"", after[wal] or b""
        if before[main] == after[main] and new.startswith(old) and len(new) > len(old):
            cut = self._rng.randrange(len(old), len(new) + 1)
            torn = bytearray(new[:cut])
            for _ in range(self._rng.randrange(3)):
                if cut > len(old):
                    torn[self._rng.randrange(len(old), cut)] ^= 1 << self._rng.randrange(8)
            after[wal] = bytes(torn)
            self.torn += 1
        self._next_life(after)

    def content(self) -> dict[str, bytes | None]:
        """Return the files as they are now."""
        return {name: self._read(name) for name in STORE_FILES}

    def _read(self, name: str) -> bytes | None:
        path = self.directory / name
        return path.read_bytes() if path.exists() else None

    def _next_life(self, files: dict[str, bytes | None]) -> None:
        old = self.directory
        self._life += 1
        self.directory = self._root / f"life-{self._life}"
        self.directory.mkdir()
        for name, data in files.items():
            if data is not None:
                (self.directory / name).write_bytes(data)
        # The dead process may hold its files open; unlinking them hurts nobody.
        shutil.rmtree(old)


@attrs.define
class Threads:
    """``trio.to_thread.run_sync`` in virtual time: the work is done inline, its waits are drawn."""

    rng: random.Random
    before_work: Callable[[Callable[..., Any]], None] = lambda _work: None
    after_work: Callable[[Callable[..., Any]], Awaitable[None]] | None = None

    async def run_sync(
        self,
        work: Callable[..., Any],
        *args: Any,
        thread_name: str | None = None,  # noqa: ARG002 - trio's signature
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
    ) -> Any:
        """Do the work at a drawn moment and return its result at another."""
        holder = object()
        await trio.lowlevel.checkpoint_if_cancelled()
        if limiter is not None:
            await limiter.acquire_on_behalf_of(holder)
        try:
            with trio.CancelScope(shield=not abandon_on_cancel):
                await trio.sleep(self.rng.random() * THREAD_SECONDS_MAX)
                self.before_work(work)
                try:
                    return work(*args)
                finally:
                    if self.after_work is not None:
                        await self.after_work(work)  # noqa: ASYNC102
                    await trio.sleep(self.rng.random() * THREAD_SECONDS_MAX)  # noqa: ASYNC102
        finally:
            if limiter is not None:
                limiter.release_on_behalf_of(holder)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put these threads in the place of the machine's."""
        real = trio.to_thread.run_sync
        trio.to_thread.run_sync = self.run_sync  # type: ignore[assignment]
        try:
            yield
        finally:
            trio.to_thread.run_sync = real


class DrawnPace(Pace):
    """Draws which commits are done without a thread, some of a life, all, or none.

    Args:
        rng: the life's own.
        is_patient: whether a thread must do the next one.
    """

    def __init__(self, rng: random.Random, is_patient: Callable[[], bool]) -> None:
        super().__init__()
        self._rng = rng
        self._share = rng.choice((0.0, 0.5, 1.0))
        self._is_patient = is_patient

    def is_quick(self, now: float) -> bool:  # noqa: ARG002 - how quick this machine is tells nothing
        """Draw."""
        return not self._is_patient() and self._rng.random() < self._share

    def note(self, waited: float, now: float) -> None:
        """Learn nothing from this machine's disk."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected non-blocking sockets; what one sends the other has at once."""
    pair = socket.socketpair()
    for one in pair:
        one.setblocking(False)
    return pair


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    """Return a trio stream over one end of a pair."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Let trio's scheduler draw from the seed."""
    from trio._core import _run  # noqa: PLC0415

    state = _run._r.getstate()
    _run._r.seed(seed)
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    try:
        yield
    finally:
        _run._r.setstate(state)
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = before
