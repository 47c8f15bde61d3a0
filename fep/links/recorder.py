"""Writes a bank's wire tape (报文磁带): its sockets are tapped, and one task writes the file.

What the link does is not changed or held up: a piece is put into memory in a few microseconds, and
when the disk does not take it, the tape has a gap and the link goes on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from fep.adapters.tape import Record, What, digest, head_line, line
from fep.domain.clock import Clock, to_text
from fep.domain.ids import BankName, TaskId
from fep.links.config import LinkConfig
from fep.links.service import Connect

log = structlog.get_logger()

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one file; then the next is begun."""
FILES_MAX: Final = 8
"""Of one bank, with the one that is written; the oldest is removed."""
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
"""In memory for a slow disk; beyond that the tape has a gap."""
LINGER_SECONDS: Final = 0.05
"""What comes within this time is written at once."""
RETRY_SECONDS: Final = 10.0
"""After a write that failed."""
DIRECTORY: Final = "tape"
_MODE: Final = 0o600


class _Tapped(socket.socket):
    """A connected socket that tells its tape what the kernel took and gave."""

    tape: Recorder
    number: str

    def send(self, data: Any, flags: int = 0, /) -> int:  # noqa: ANN401 - any buffer
        count = super().send(data, flags)
        self.tape.note(What.SENT, self.number, bytes(memoryview(data)[:count]))
        return count

    def sendmsg(self, buffers: Iterable[Any], /, *rest: Any) -> int:  # noqa: ANN401
        pieces = list(buffers)
        count = super().sendmsg(pieces, *rest)
        self.tape.note(What.SENT, self.number, b"".join(map(bytes, pieces))[:count])
        return count

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        if data and not flags & socket.MSG_PEEK:
            self.tape.note(What.RECEIVED, self.number, data)
        return data

    def close(self) -> None:
        if self.fileno() >= 0:
            self.tape.note(What.CLOSED, self.number)
        super().close()


class Recorder:
    """One bank's tape.

    Args:
        directory: where its files are; made if it is not there.
        bank: its name, which the files bear.
        adapter: whose protocol is on it.
        clock: what the records are timed by.
    """

    def __init__(self, directory: Path, bank: BankName, adapter: str, clock: Clock) -> None:
        self._path = directory / f"{bank}.tape"
        self._bank = bank
        self._adapter = adapter
        self._clock = clock
        self._process = f"{int(clock.now().timestamp()):x}-{os.getpid():x}"
        self._connections = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._lost_bytes = 0
        self._wanted = trio.Event()

    def tapped(self, connect: Connect) -> Connect:
        """Return what opens the bank's sockets so that they are recorded."""

        async def open_tapped(config: LinkConfig) -> socket.socket:
            sock = await connect(config)
            tapped = _Tapped(fileno=sock.detach())
            tapped.settimeout(0.0)
            self._connections += 1
            tapped.tape, tapped.number = self, f"{self._process}-{self._connections}"
            self.note(What.OPENED, tapped.number)
            return tapped

        return open_tapped

    def note(self, what: What, connection: str, data: bytes = b"") -> None:
        """Note what happened on a connection."""
        self._add(Record(what, to_text(self._clock.now()), connection, data), len(data))

    def note_task(self, task: TaskId, frame: bytes) -> None:
        """Note whose a frame is that may be sent next."""
        at = to_text(self._clock.now())
        self._add(Record(What.TASK, at, task=task, frame=digest(frame)), 0)

    def _add(self, record: Record, size: int) -> None:
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._lost_bytes += size
            return
        text = line(record)
        self._waiting.append(text)
        self._waiting_bytes += len(text)
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; the owner calls ``flush`` once more after the link has ended."""
        task_status.started()
        while True:
            await self._wanted.wait()
            await trio.sleep(LINGER_SECONDS)
            if not await self.flush():
                await trio.sleep(RETRY_SECONDS)

    async def flush(self) -> bool:
        """Write what waits; False when the disk did not take it."""
        pieces, self._waiting = self._waiting, []
        self._waiting_bytes, self._wanted = 0, trio.Event()
        if self._lost_bytes:
            lost, self._lost_bytes = self._lost_bytes, 0
            pieces.append(line(Record(What.GAP, to_text(self._clock.now()), count=lost)))
        if not pieces:
            return True
        try:
            await trio.to_thread.run_sync(self._write, b"".join(pieces))
        except OSError as error:
            self._lost_bytes += sum(map(len, pieces))
            log.warning(
                "tape.not_written", link=self._bank, reason=str(error), bytes=self._lost_bytes
            )
            return False
        return True

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        if self._size() > FILE_BYTES_MAX:
            self._rotate()
        begins = self._size() == 0
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)
        with open(file, "ab", buffering=0) as out:  # noqa: PTH123 - a descriptor
            # A line that an end without goodbye has cut is left behind its own end of line.
            head = b"" if not begins and not self._is_cut() else b"\n"
            begin = head_line(self._bank, self._adapter) if begins else head
            rest = memoryview(begin + data)
            while rest:
                rest = rest[out.write(rest) :]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _is_cut(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _rotate(self) -> None:
        for number in range(FILES_MAX - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}")
            source = self._path if number == 1 else newer
            if source.exists():
                source.replace(older)
