"""A toy bank on loopback whose every byte a test can choose, and a link to it."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fep.adapters.api import Context, Draft, Outcome, Reply, Unclear
from fep.adapters.card import SignAlgorithm
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import BusinessDate, SystemClock
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import BankName, Sequence
from fep.domain.order import Operation, StatementQuery
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import Link, run_link
from fep.links.state import LinkState
from fep.store.database import Store

BANK = BankName("toy")
FRAME_BYTES_MAX = 8 * 1024 * 1024
WAIT_SECONDS_MAX = 5.0


def toy_frame(correlation: str, code: str = "0", text: str = "", trade: str = "T") -> bytes:
    """Return a frame: 8 digits of length, then four fields between bars."""
    body = f"{correlation}|{trade}|{code}|{text}".encode()
    return b"%08d%b" % (len(body), body)


class ToyFramer:
    """Reads what ``toy_frame`` prints."""

    def __init__(self) -> None:
        self._data = bytearray()

    def receive_data(self, data: bytes) -> list[Reply]:
        self._data += data
        replies: list[Reply] = []
        while len(self._data) >= 8:
            head = bytes(self._data[:8])
            if not head.isdigit() or int(head) > FRAME_BYTES_MAX:
                if replies:
                    break
                msg = f"{head!r} is not a length"
                raise RemoteProtocolError(msg)
            end = 8 + int(head)
            if len(self._data) < end:
                break
            raw = bytes(self._data[:end])
            del self._data[:end]
            correlation, trade, code, text = raw[8:].decode().split("|")
            replies.append(Reply(correlation, trade, code, text, raw))
        return replies

    def receive_eof(self) -> None:
        if self._data:
            msg = "the stream ended inside a frame"
            raise RemoteProtocolError(msg)


@attrs.frozen
class ToyCodec:
    """A bank whose good answers bear code 0."""

    has_logon: bool = True

    def framer(self) -> ToyFramer:
        return ToyFramer()

    def logon(self, context: Context) -> Draft | None:
        return self._draft(context, "LOGON") if self.has_logon else None

    def probe(self, context: Context) -> Draft:
        return self._draft(context, "PROBE")

    def alive(self, reply: Reply) -> bool:
        return reply.code == "0"

    def prepare(self, operation: Operation, context: Context) -> Draft:
        del operation
        return self._draft(context, "T")

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        del signature
        return toy_frame(draft.correlation, trade=draft.trade)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        del operation
        return Unclear(reply.code, reply.message)

    def payment_ref(self, reply: Reply) -> str:
        del reply
        return ""

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        del today
        return [query]

    def _draft(self, context: Context, trade: str) -> Draft:
        return Draft(context.sequence, trade, None, SignAlgorithm.RSA_SHA256, None)


class KeyGate:
    """A key slot that a test opens and closes."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._closed = trio.Event()
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def open(self) -> None:
        self._open.set()
        self._closed = trio.Event()

    def close(self) -> None:
        self._closed.set()
        self._open = trio.Event()

    async def wait_open(self) -> None:
        await self._open.wait()

    async def wait_closed(self) -> None:
        await self._closed.wait()


class Wire:
    """The bank's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._framer = ToyFramer()
        self._requests: list[Reply] = []

    async def read(self) -> Reply:
        """Return the next request that the link sent."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not self._requests:
                data = await self._stream.receive_some()
                assert data, "the link closed the connection"
                self._requests += self._framer.receive_data(data)
        return self._requests.pop(0)

    async def read_bytes(self) -> bytes:
        """Return all the bytes until the link closes, parsed ones excluded."""
        data = bytearray()
        with trio.fail_after(WAIT_SECONDS_MAX):
            try:
                async for part in self._stream:
                    data += part
            except trio.BrokenResourceError:
                data += b"<reset>"
        return bytes(data)

    async def read_one_byte(self) -> None:
        """Read a single byte, for peers that stop in the middle."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            assert await self._stream.receive_some(1)

    async def write(self, data: bytes) -> None:
        """Send any bytes."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self._stream.send_all(data)

    async def answer(self, request: Reply, code: str = "0", text: str = "") -> None:
        """Answer one request."""
        await self.write(toy_frame(request.correlation, code, text, request.trade))

    async def log_on(self) -> None:
        """Answer the log-on (or the probe that stands for it) well."""
        await self.answer(await self.read())

    async def close(self) -> None:
        """End the stream in good order."""
        await self._stream.aclose()

    async def reset(self) -> None:
        """End it with RST."""
        linger = struct.pack("ii", 1, 0)
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await self._stream.aclose()


class Bank:
    """The listening side."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._streams: list[trio.SocketStream] = []
        self.port: int = listener.socket.getsockname()[1]

    @classmethod
    async def listen(cls, port: int = 0) -> Bank:
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        return cls(listener)

    async def accept(self) -> Wire:
        """Return the link's next connection."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            stream = await self._listener.accept()
        self._streams.append(stream)
        return Wire(stream)

    def has_caller(self) -> bool:
        """Say whether a connection waits to be accepted."""
        readable, _, _ = select.select([self._listener.socket], [], [], 0)
        return bool(readable)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        await self._listener.aclose()
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


class Rig:
    """A link, its gate, its alarms, and the toy bank it talks to."""

    def __init__(self, nursery: trio.Nursery, bank: Bank, alarms: Alarms) -> None:
        self.nursery = nursery
        self.bank = bank
        self.alarms = alarms
        self.gate = KeyGate()
        self.task = trio.CancelScope()
        self.unmatched: trio.MemoryReceiveChannel[UnmatchedReply]
        self.link = self.make_link()

    def make_link(self, *, has_logon: bool = True, unmatched_max: int = 16, **times: float) -> Link:
        """Make (again) the link under test, with short times."""
        spans: dict[str, Any] = {
            "heartbeat_s": 30.0,
            "backoff_first_s": 0.01,
            "backoff_max_s": 0.05,
            **times,
        }
        config = LinkConfig(BANK, "127.0.0.1", self.bank.port, **spans)
        send, self.unmatched = trio.open_memory_channel[UnmatchedReply](unmatched_max)
        clock, rng = SystemClock(), random.Random(7)
        codec = ToyCodec(has_logon)
        self.link = Link(config, codec, Sequence(), clock, self.alarms, send, rng)
        return self.link

    async def start(self) -> None:
        """Run the link in the background; ``task.cancel()`` stops it."""
        await self.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with self.task:
            await run_link(self.link, self.gate, task_status=task_status)

    async def logged_on(self) -> Wire:
        """Accept the link's connection, log it on and wait until it is open."""
        wire = await self.bank.accept()
        await wire.log_on()
        await self.open()
        return wire

    async def started(self) -> Wire:
        """Start the link and return the bank's end of its READY connection."""
        await self.start()
        return await self.logged_on()

    async def open(self) -> None:
        """Wait until the link takes requests."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self.link.wait_open()

    async def state(self, *wanted: LinkState) -> None:
        """Wait until the link is in one of these states."""
        await self.until(lambda: self.link.state in wanted)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not holds():
                await trio.lowlevel.checkpoint()

    async def in_flight(self, count: int) -> None:
        """Wait until so many requests are under way; trio starts tasks in any order."""
        await self.until(lambda: self.link.snapshot().in_flight == count)

    def ask(
        self,
        correlation: str,
        frame: bytes = b"",
        deadline_s: float = 30.0,
        may_begin: Callable[[], bool] | None = None,
    ) -> Asked:
        """Begin an exchange in the background."""
        sealed = frame or toy_frame(correlation)
        asked = Asked(self.link, sealed, correlation, deadline_s, may_begin)
        self.nursery.start_soon(asked.run)
        return asked

    def alarm_kinds(self) -> set[AlarmKind]:
        """Return the kinds of the alarms that are active now."""
        return {alarm.kind for alarm in self.alarms.active()}

    async def next_unmatched(self) -> UnmatchedReply:
        """Return the next answer that nobody waited for."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            return await self.unmatched.receive()


class Asked:
    """One exchange and how it ended."""

    def __init__(
        self,
        link: Link,
        frame: bytes,
        correlation: str,
        deadline_s: float,
        may_begin: Callable[[], bool] | None = None,
    ) -> None:
        self.scope = trio.CancelScope()
        self._may_begin = may_begin
        self._link = link
        self._frame = frame
        self._correlation = correlation
        self._deadline_s = deadline_s
        self._ends: list[Reply | Exception] = []
        self._done = trio.Event()

    async def run(self) -> None:
        try:
            with self.scope, trio.fail_after(self._deadline_s):
                ask = self._link.exchange(self._frame, self._correlation, self._may_begin)
                self._ends.append(await ask)
            if self.scope.cancelled_caught:
                self._ends.append(trio.TooSlowError("cancelled"))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self._ends.append(error)
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    async def end(self) -> Reply | Exception:
        """Return how it ended: exactly once."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self._done.wait()
        [end] = self._ends
        return end

    async def reply(self) -> Reply:
        end = await self.end()
        assert isinstance(end, Reply), repr(end)
        return end

    async def error(self) -> type[Exception]:
        end = await self.end()
        assert isinstance(end, Exception), repr(end)
        return type(end)


@asynccontextmanager
async def open_rig(path: Path) -> AsyncIterator[Rig]:
    """Make a rig with a store of its own, and stop everything at the end."""
    bank = await Bank.listen()
    store = Store.at(path / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, SystemClock())
        await alarms.load()
        async with trio.open_nursery() as inner:
            yield Rig(inner, bank, alarms)
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    await bank.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A link to a toy bank, not yet started."""
    async with open_rig(tmp_path) as made:
        yield made
