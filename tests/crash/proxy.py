"""The line to a bank, with faults: delays, slices, losses, repetitions, cuts at any byte, silence.

A proxy stands between the daemon and one simulated bank and sees whole frames, so that a fault can
be put at a chosen byte of a chosen payment. It keeps one promise, or "no record" would prove
nothing: a request of an older line reaches the bank before the first byte of the next line, or
never.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Self

import attrs
import trio

from bank_adapters.cmb_xml.frames import LENGTH_BYTES
from bank_adapters.pingan_b2bi.frames import HEADER_BYTES, Header

RECEIVE_BYTES: Final = 65_536
FINISH_SECONDS_MAX: Final = 5.0
MISSES_MAX: Final = 8
RESET: Final = struct.pack("ii", 1, 0)


class Protocol(StrEnum):
    """Whose frames pass; the names of the adapters."""

    PINGAN = "pingan_b2bi"
    CMB = "cmb_xml"


def frame_bytes(protocol: Protocol, data: bytes) -> int | None:
    """Return the size of the frame that begins these bytes, None until they tell it.

    Raises:
        ValueError: they are no frame.
    """
    if protocol is Protocol.CMB:
        return None if len(data) < LENGTH_BYTES else LENGTH_BYTES + int(data[:LENGTH_BYTES])
    if len(data) < HEADER_BYTES:
        return None
    header = Header(data[:HEADER_BYTES])
    return HEADER_BYTES + int(header.text("body_len")) + int(header.text("sign_len") or "0")


def is_payment(protocol: Protocol, frame: bytes) -> bool:
    """Say whether a frame orders a payment or answers such an order."""
    if protocol is Protocol.CMB:
        return b"<FUNNAM>DCPAYMNT<" in frame
    return Header(frame[:HEADER_BYTES]).text("trade_code") == "4004"


class Side(StrEnum):
    """Which way a frame goes."""

    REQUEST = "request"
    ANSWER = "answer"


class Stage(StrEnum):
    """Moments of a payment at which something else may be made to happen."""

    ARRIVED = "arrived"
    """The daemon has sent it, the bank has nothing."""
    FORWARDED = "forwarded"
    """The bank has all of it, and has not answered."""
    ANSWERED = "answered"
    """The bank has answered, the daemon has nothing."""
    TOLD = "told"
    """The daemon has the answer, and little time to write it down."""


class End(StrEnum):
    """What happens to a line at a cut."""

    CLOSE = "close"
    RESET = "reset"
    SILENCE = "silence"
    """Nothing passes any more, and nobody is told."""


class Walk:
    """The cuts of one kind of bank, byte after byte of a payment's request and of its answer.

    Position p of a request means: p bytes of it reach the bank. Behind the last of the request come
    the answer's. The walk goes on over rounds and begins anew behind its end.
    """

    def __init__(self, place: int = 0, step: int = 1) -> None:
        self.place = place
        self.step = step
        self.request_bytes = 0
        """The longest payment seen."""
        self.answer_bytes = 0
        self.made: set[tuple[Side, int]] = set()
        self._missed = 0

    def cut_request(self, size: int) -> int | None:
        """Return where to cut this payment, None when its answer is to be cut, if any."""
        self.request_bytes = max(self.request_bytes, size)
        if self.place <= size:
            return self._made(Side.REQUEST, self.place)
        if self.place <= self.request_bytes:
            self._miss()
        return None

    def cut_answer(self, size: int) -> int | None:
        """Return where to cut the answer, None when another is to be cut."""
        self.answer_bytes = max(self.answer_bytes, size)
        at = self.place - self.request_bytes - 1
        if at > self.answer_bytes:
            self.place %= self.step
        elif at > size:
            self._miss()
        elif at >= 0:
            return self._made(Side.ANSWER, at)
        return None

    def _made(self, side: Side, at: int) -> int:
        self.made.add((side, at))
        self.place += self.step
        self._missed = 0
        return at

    def _miss(self) -> None:
        # Only the longest frames have this byte; they may be rare.
        self._missed += 1
        if self._missed > MISSES_MAX:
            self.place += self.step
            self._missed = 0


@attrs.frozen
class Temper:
    """What a line does wrong."""

    delay_s: float = 0.0
    """Each frame waits for up to this long."""
    slice_bytes: int = 0
    """Frames leave in pieces of at most this size; 0 whole."""
    repeat_answers: float = 0.0
    """Chance that an answer comes twice."""
    repeat_requests: float = 0.0
    drop_answers: float = 0.0
    """Chance that an answer never comes, on a line that lives on."""
    drop_requests: float = 0.0
    walk: Walk | None = None
    """Cut every payment, or its answer, where the walk stands."""
    ends: tuple[End, ...] = (End.CLOSE, End.RESET)


class _OverError(Exception):
    """This line is over."""


class _Line:
    """One connection of the daemon and ours to the bank."""

    def __init__(self, proxy: Proxy, client: trio.SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._host: trio.SocketStream | None = None
        self._hurry = trio.Event()
        self.over = trio.Event()
        self.silent = False
        """Read and forget."""

    async def finish(self) -> None:
        """Let what the daemon sent go on to the bank now, and wait for the end."""
        self._hurry.set()
        with trio.move_on_after(FINISH_SECONDS_MAX):
            await self.over.wait()

    async def run(self, host_port: int) -> None:
        """Carry until either side ends it."""
        try:
            self._host = await trio.open_tcp_stream("127.0.0.1", host_port)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answers, nursery.cancel_scope)
                # The daemon's end of the line decides: what it sent goes on although the bank hung
                # up, and an answer to a daemon that has gone is nobody's.
                await self._carry(Side.REQUEST, self._client, self._host)
                nursery.cancel_scope.cancel()
        except* (OSError, _OverError):
            pass
        finally:
            self.over.set()
            with trio.CancelScope(shield=True, relative_deadline=1.0):
                await trio.aclose_forcefully(self._client)
                if self._host is not None:
                    await trio.aclose_forcefully(self._host)

    async def _answers(self, scope: trio.CancelScope) -> None:
        assert self._host is not None
        await self._carry(Side.ANSWER, self._host, self._client)
        if not self.silent and not self._hurry.is_set():
            scope.cancel()

    async def _carry(self, side: Side, source: trio.SocketStream, to: trio.SocketStream) -> None:
        buffer = b""
        while True:
            try:
                data = await source.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                if buffer and not self.silent:
                    await self._send(to, buffer)
                return
            if self.silent:
                continue
            buffer += data
            while buffer and not self.silent:
                try:
                    size = frame_bytes(self._proxy.protocol, bytes(buffer))
                except ValueError:
                    size = len(buffer)
                if size is None or len(buffer) < size:
                    break
                frame, buffer = bytes(buffer[:size]), buffer[size:]
                await self._pass(side, frame, to)

    async def _pass(self, side: Side, frame: bytes, to: trio.SocketStream) -> None:
        temper = self._proxy.temper
        request = side is Side.REQUEST
        payment = is_payment(self._proxy.protocol, frame)
        if payment:
            self._proxy.reached(Stage.ARRIVED if request else Stage.ANSWERED)
        if temper.delay_s:
            with trio.move_on_after(self._proxy.rng.random() * temper.delay_s):
                await self._hurry.wait()
        if payment and temper.walk is not None:
            walk = temper.walk
            at = walk.cut_request(len(frame)) if request else walk.cut_answer(len(frame))
            if at is not None:
                # From this byte on nothing passes, whatever else is under way.
                self.silent = True
                await self._send(to, frame[:at])
                await self._cut(self._proxy.rng.choice(temper.ends))
                return
        if self._proxy.rng.random() < (temper.drop_requests if request else temper.drop_answers):
            self._proxy.dropped += 1
            return
        chance = temper.repeat_requests if request else temper.repeat_answers
        await self._send(to, frame)
        if self._proxy.rng.random() < chance:
            self._proxy.repeated += 1
            await self._send(to, frame)
        if payment:
            self._proxy.reached(Stage.FORWARDED if request else Stage.TOLD)

    async def _cut(self, end: End) -> None:
        self._proxy.cuts += 1
        if end is End.SILENCE:
            return
        assert self._host is not None
        if end is End.RESET:
            for one in (self._client, self._host):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        raise _OverError

    async def _send(self, to: trio.SocketStream, data: bytes) -> None:
        """Send; what can't be sent is lost, and the other direction goes on."""
        size = self._proxy.temper.slice_bytes or len(data) or 1
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for at in range(0, len(data), size):
                await to.send_all(data[at : at + size])


class Proxy:
    """The line to one bank; every method but ``run`` may be called from any thread."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.temper = Temper()
        self.rng = random.Random(0)
        self.port = 0
        self.host_port = 0
        self.cuts = 0
        self.silenced = 0
        self.repeated = 0
        self.dropped = 0
        self.payments = 0
        self._silence_wanted = False
        self._lines: set[_Line] = set()
        self._trigger: tuple[Stage, int, Callable[[], None]] | None = None

    def be_calm(self) -> None:
        """Carry what comes, as it comes; a line that fell silent stays so."""
        self.temper = Temper()
        self._trigger = None
        self._silence_wanted = False

    def silence(self) -> None:
        """Let the lines there are fall silent, half-open."""
        for line in list(self._lines):
            if not line.silent:
                line.silent = True
                self.silenced += 1

    def trigger(self, stage: Stage, number: int, act: Callable[[], None]) -> None:
        """Call ``act`` once, in the proxy's thread, when the number-th payment from now is there."""
        self._trigger = (stage, number, act)

    def reached(self, stage: Stage) -> None:
        """Note a payment's moment."""
        self.payments += stage is Stage.ARRIVED
        if self._trigger is None or self._trigger[0] is not stage:
            return
        wanted, number, act = self._trigger
        self._trigger = (wanted, number - 1, act) if number > 1 else None
        if number <= 1:
            act()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; ``started()`` with the port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            task_status.started(self.port)

    async def _serve(self, client: trio.SocketStream) -> None:
        for older in list(self._lines):
            await older.finish()
        line = _Line(self, client)
        self._lines.add(line)
        try:
            await line.run(self.host_port)
        finally:
            self._lines.discard(line)


class ProxyThread:
    """All proxies of a scene in one thread; a context manager."""

    def __init__(self, proxies: list[Proxy]) -> None:
        self._proxies = proxies
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        # Who is interrupted before the thread is known to be there must not wait for its end.
        self._thread = threading.Thread(
            target=trio.run, args=(self._main,), name="proxies", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                for proxy in self._proxies:
                    await nursery.start(proxy.run)
                self._ready.set()
                await trio.sleep_forever()
