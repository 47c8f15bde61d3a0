"""Holds one TCP connection to each bank's front-end machine open, and exchanges requests on it.

A request costs no task and no channel: the caller writes to the idle socket itself, and the reader
wakes it with the answer. Many requests at once are joined into one write by the writer task. The
socket is the standard library's in non-blocking mode: trio's own adds a scheduling round to each
send, and hides whether a byte of a cancelled send has left.
"""

from __future__ import annotations

import datetime as dt
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, assert_never

import attrs
import outcome
import structlog
import trio

from fep.adapters.api import (
    BankCodec,
    Context,
    Draft,
    Framer,
    InOrderFramer,
    LockoutCodec,
    Reply,
    SessionCodec,
)
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import (
    LinkLostError,
    LocalProtocolError,
    NothingSentError,
    RemoteProtocolError,
    reason_of,
)
from fep.domain.ids import BankName, Sequence
from fep.links.backoff import Backoff
from fep.links.config import LinkConfig
from fep.links.liveness import Due, Liveness
from fep.links.mux import Match, Mux, Request, UnmatchedReply
from fep.links.state import FAILURES_MAX, LinkEvent, LinkState, step

log = structlog.get_logger()

KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES_MAX: Final = 3
USER_TIMEOUT_MS: Final = 20_000
"""Longest time the kernel waits for the peer's acknowledgement of data; keepalive alone does not
act while data are under way, and this alone does not act on an idle connection."""
RECEIVE_BYTES_MAX: Final = 65_536
UNMATCHED_WAITING_MAX: Final = 256
"""Answers nobody waits for that are kept for a slow receiver before the link stops reading."""
SILENT: Final = "the bank is silent"
TOO_LATE: Final = "it was not permitted any more to begin"
RESTED_SECONDS_MIN: Final = 1.0
"""A connection that the bank ends sooner, without an answer on it, is a lost one."""
SAID_CHARS_MAX: Final = 120
"""Of a bank's own words, in logs and alarms."""

_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES_MAX),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
)


Connect = Callable[[LinkConfig], Awaitable[socket.socket]]
"""Opens a non-blocking socket to the bank; raises OSError. The link sets the deadline."""


async def connect_tcp(config: LinkConfig) -> socket.socket:
    """Return a non-blocking socket connected to the bank, with the options that find a dead peer.

    Raises:
        OSError: no connection.
    """
    stream = await trio.open_tcp_stream(config.host, config.port)
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        sock.settimeout(0.0)
        for level, option, value in _SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
    except OSError:
        sock.close()
        raise
    return sock


class Gate(Protocol):
    """What permits a bank's session: its key slot (FEP-09)."""

    @property
    def is_open(self) -> bool:
        """True while the key is there and usable."""
        ...

    async def wait_open(self) -> None:
        """Return when it is open; at once if it is."""
        ...

    async def wait_closed(self) -> None:
        """Return when it is closed; at once if it is."""
        ...


class AlarmBell(Protocol):
    """Where a link's alarms go."""

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        """Raise it, or count it when it is active already."""
        ...

    def clear(self, kind: AlarmKind, subject: str) -> None:
        """Note that it is over."""
        ...


@attrs.frozen
class LinkSnapshot:
    """One link as screens and ``link.list`` show it."""

    bank: BankName
    peer: str
    """``host:port`` of the bank's front-end machine, or the folder that our files go to."""
    state: LinkState
    since: dt.datetime
    """When the state began, aware UTC."""
    is_open: bool
    """READY, and the key slot open: requests are taken."""
    failures: int
    """Failures since the last successful log-on."""
    last_failure: str
    last_reply_at: dt.datetime | None
    requests: int
    """Requests of callers handed to the link since the process started."""
    unmatched: int
    """Answers nobody waited for since then."""
    in_flight: int
    connections: int = 1
    """How many the link holds open when all is well."""
    connections_ready: int = 0
    """How many of them are READY now."""
    log_ons: int = 0
    """How often the bank let us in since the process started; the first is no reconnection."""
    losses: int = 0
    """Attempts and connections that failed since then."""


class BankLink(Protocol):
    """One bank's connection or connections as the rest of the daemon sees them."""

    config: LinkConfig

    @property
    def state(self) -> LinkState:
        """Where it is; of several connections, the best."""
        ...

    @property
    def is_open(self) -> bool:
        """True while requests are taken."""
        ...

    @property
    def requests(self) -> int:
        """Requests of callers taken since the process started."""
        ...

    @property
    def last_reply_at(self) -> dt.datetime | None:
        """When the bank last answered anything, aware UTC."""
        ...

    async def wait_open(self) -> None:
        """Return when requests are taken; at once if they are."""
        ...

    async def wait_closed(self) -> None:
        """Return when requests are not taken; at once if they are not."""
        ...

    async def exchange(
        self, frame: bytes, correlation: str, may_begin: Callable[[], bool] | None = None
    ) -> Reply:
        """Send a frame and return the bank's answer to it; see ``Link.exchange``."""
        ...

    def drain(self) -> None:
        """Take no more requests, let those in flight end, close, stay so until ``resume``."""
        ...

    def resume(self) -> None:
        """Take back ``drain``; idempotent."""
        ...

    def snapshot(self) -> LinkSnapshot:
        """Return what screens show."""
        ...

    async def run(self, gate: Gate) -> None:
        """Do what ``run_link`` says, which alone calls it."""
        ...


class Traffic:
    """What outlives a link's connections: counts, and the answers nobody waits for."""

    def __init__(
        self, bank: BankName, clock: Clock, receiver: trio.MemorySendChannel[UnmatchedReply]
    ) -> None:
        self.requests = 0
        self.unmatched = 0
        self.log_ons = 0
        self.losses = 0
        self.last_reply_at: dt.datetime | None = None
        self._bank = bank
        self._clock = clock
        self._receiver = receiver
        self._waiting: deque[UnmatchedReply] = deque()
        self._changed = trio.Event()
        self.logging_on = trio.Lock()
        """Held while a connection of a bank with a session logs on."""

    def note_reply(self) -> None:
        """Note that the bank answered something."""
        self.last_reply_at = self._clock.now()

    def put_unmatched(self, reply: Reply, match: Match) -> None:
        """Keep an answer nobody waits for until the receiver took it; never refuses."""
        log.warning(
            "link.reply_unmatched",
            match=match.value,
            correlation=reply.correlation,
            trade=reply.trade,
            code=reply.code,
        )
        self.unmatched += 1
        self._waiting.append(UnmatchedReply(self._bank, reply, late=match is Match.LATE))
        self._pulse()

    def put_told(self, reply: Reply) -> None:
        """Keep what a bank says unasked (a file that came) until the receiver took it."""
        self._waiting.append(UnmatchedReply(self._bank, reply, told=True))
        self._pulse()

    @property
    def is_full(self) -> bool:
        """True while so many wait that nothing more should be read."""
        return len(self._waiting) >= UNMATCHED_WAITING_MAX

    async def wait_room(self) -> None:
        """Return when it is not full."""
        while self.is_full:
            await self._changed.wait()

    async def run(self) -> None:
        """Hand them on, oldest first; one is forgotten only when the receiver has it."""
        while True:
            while self._waiting:
                await self._receiver.send(self._waiting[0])
                self._waiting.popleft()
                self._pulse()
            await self._changed.wait()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class _Connection:
    """One TCP connection from connect to close: reads, writes, correlates.

    ``end`` may be called by anybody at any time and only notes the reason; ``close`` is called once
    by the owner when the tasks have ended, and ends every request still in flight.
    """

    def __init__(
        self,
        sock: socket.socket,
        framer: Framer,
        heartbeat_s: float,
        traffic: Traffic,
        on_answers: Callable[[list[Reply]], str],
    ) -> None:
        self.reason = ""
        """Why it ended; empty while it works."""
        self.rested = False
        """It ended in good order: the bank closed it while it owed no answer."""
        self.answers = 0
        self.made_at = trio.current_time()
        self.in_order = framer if isinstance(framer, InOrderFramer) else None
        """Its framer where answers go by their order, so that one request is under way at once."""
        self._on_answers = on_answers
        self._owed = ""
        """There, the correlation of the request whose answer comes next."""
        self.liveness = Liveness(heartbeat_s, trio.current_time())
        self._sock = sock
        self._framer = framer
        self._traffic = traffic
        self._mux: Mux[trio.lowlevel.Task] = Mux()
        self._scope = trio.CancelScope()
        self._writer = trio.lowlevel.ParkingLot()
        self._is_full = False
        self._draining = False
        self._drained = trio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answers, probes included."""
        return self._mux.in_flight

    @property
    def is_free(self) -> bool:
        """Whether a request can leave on it now."""
        return not (self.reason or self._draining or self._owed)

    def has_ended(self) -> bool:
        """Look whether the bank closed an idle connection and nobody has read that yet."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        # An end, or bytes that nobody asked for: either way not to be written to.
        return True

    async def exchange(
        self,
        frame: bytes,
        correlation: str,
        may_begin: Callable[[], bool] | None = None,
        *,
        probe: bool = False,
    ) -> Reply:
        """Send one request and return its answer; see ``Link.exchange``."""
        if self.reason:
            raise NothingSentError(self.reason)
        if trio.current_effective_deadline() <= trio.current_time():
            raise NothingSentError("the deadline passed before the request was sent")
        if may_begin is not None and not may_begin():
            raise NothingSentError(TOO_LATE)
        if self.in_order is not None:
            if not self.is_free:
                msg = "a request is under way on a connection that takes one at a time"
                raise LocalProtocolError(msg)
            self._owed = correlation
        task = trio.lowlevel.current_task()
        request = self._mux.register(correlation, frame, task, probe=probe, may_begin=may_begin)
        if self._mux.in_flight == 1:
            self._flush(is_asked=True)
        else:
            # Others are under way, so the bank is the slower one: let the writer join this tick's.
            self._writer.unpark()
        if not probe:
            self.liveness.asked(trio.current_time())

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            return self._give_up(request)

        reply: Reply = await trio.lowlevel.wait_task_rescheduled(give_up)
        return reply

    def _give_up(self, request: Request[trio.lowlevel.Task]) -> trio.lowlevel.Abort:
        """End a cancelled request; one that never left says so instead of ``Cancelled``."""
        self._mux.abandon(request)
        self._note_ended()
        if not request.began:
            self._forget(request)
            error = NothingSentError("the deadline passed before the request was sent")
            trio.lowlevel.reschedule(request.waiter, outcome.Error(error))
            return trio.lowlevel.Abort.FAILED
        if not request.complete:
            # The rest must not leave after the caller was told an end, and without it the bank
            # can't find the next frame.
            self.end("a request's deadline passed when part of it was sent")
        return trio.lowlevel.Abort.SUCCEEDED

    async def run(self, work: Callable[[_Connection], Awaitable[None]]) -> None:
        """Read and write until ``work(self)`` returns or ``end`` is called."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read)
                await work(self)
                nursery.cancel_scope.cancel()

    def end(self, reason: str) -> None:
        """Let the connection end; the first reason counts."""
        if not self.reason:
            self.reason = reason
        self._drained.set()
        self._scope.cancel()

    def close(self) -> tuple[int, int]:
        """Close the socket, end all requests; return how many may have left, and how many not."""
        self.reason = self.reason or "the link was stopped"
        self._sock.close()
        unsure = unsent = 0
        for request in self._mux.close():
            if request.began:
                unsure += 1
                error: Exception = LinkLostError(self.reason)
            else:
                unsent += 1
                error = NothingSentError(self.reason)
            trio.lowlevel.reschedule(request.waiter, outcome.Error(error))
        return unsure, unsent

    def begin_drain(self, reason: str) -> None:
        """Withdraw what has not begun to leave; the rest may still be answered."""
        self._draining = True
        for request in self._mux.withdraw():
            self._forget(request)
            error = outcome.Error(NothingSentError(reason))
            trio.lowlevel.reschedule(request.waiter, error)
        self._note_ended()

    async def wait_drained(self) -> None:
        """Return when no caller waits any more, or the connection ended."""
        await self._drained.wait()

    def _forget(self, request: Request[trio.lowlevel.Task]) -> None:
        """Owe no answer to a request that never left."""
        if self._owed == request.correlation:
            self._owed = ""

    def _note_ended(self) -> None:
        if self._draining and not self._mux.callers:
            self._drained.set()

    def _flush(self, *, is_asked: bool = False) -> None:
        """Write what the socket takes.

        Args:
            is_asked: of the only request it was just asked whether it may begin.
        """
        try:
            while self._mux.unwritten:
                if not is_asked:
                    self._withdraw_late()
                if not (buffers := self._mux.buffers()):
                    break
                alone = len(buffers) == 1
                sent = self._sock.send(buffers[0]) if alone else self._sock.sendmsg(buffers)
                self._mux.wrote(sent)
        except BlockingIOError:
            self._is_full = True
            self._writer.unpark()
        except OSError as error:
            self.end(f"write: {error}")

    def _withdraw_late(self) -> None:
        """End what waited for the socket until it may not begin any more."""
        for late in self._mux.withdraw_late():
            self._forget(late)
            error = outcome.Error(NothingSentError(TOO_LATE))
            trio.lowlevel.reschedule(late.waiter, error)
            self._note_ended()

    async def _write(self) -> None:
        while not self.reason:
            if not self._mux.unwritten:
                await self._writer.park()
            elif self._is_full:
                await trio.lowlevel.wait_writable(self._sock)
                self._is_full = False
            else:
                self._flush()

    async def _read(self) -> None:
        try:
            while True:
                if self._traffic.is_full:
                    await self._traffic.wait_room()
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    data = self._sock.recv(RECEIVE_BYTES_MAX)
                except BlockingIOError:
                    continue
                if not data:
                    self._receive_end()
                    return
                self._receive(data)
        except RemoteProtocolError as error:
            self.end(f"not understood: {error}")
        except OSError as error:
            self._rest(f"read: {error}")

    def _receive_end(self) -> None:
        if self.in_order is None:
            self._framer.receive_eof()
        else:
            self._take(self.in_order.finish())
        self._rest("the bank closed the connection")

    def _receive(self, data: bytes) -> None:
        if not (replies := self._framer.receive_data(data)):
            return
        self._take(replies)
        # A framer gives the good replies before a fault first and raises at its next call. That
        # call is now: a request sent in between would only become an unknown one.
        self._framer.receive_data(b"")

    def _take(self, replies: list[Reply]) -> None:
        if not replies:
            return
        self.answers += len(replies)
        self.liveness.heard(trio.current_time())
        self._traffic.note_reply()
        placed = []
        for reply in replies:
            placed.append(reply if self.in_order is None else self._placed(reply))
            self._deliver(placed[-1])
        if self.in_order is not None:
            if self.in_order.is_over:
                self._rest("the bank closes the connection after its answer")
            if over := self._on_answers(placed):
                self._rest(over)

    def _placed(self, reply: Reply) -> Reply:
        """Return a reply with the correlation of the request whose turn it is to be answered."""
        if self._owed and reply.correlation in {"", self._owed}:
            return attrs.evolve(reply, correlation=self._owed)
        # From here on no answer of this connection could be believed.
        self.end("an answer to no request, or to another than was asked, came")
        return reply

    def _rest(self, reason: str) -> None:
        """End it; in good order if the bank owes no answer, which is no failure there."""
        if not self.reason:
            self.rested = self.in_order is not None and not self._owed
        self.end(reason)

    def _deliver(self, reply: Reply) -> None:
        match, request = self._mux.answer(reply.correlation)
        if match is not Match.EARLY and reply.correlation == self._owed:
            self._owed = ""
        if request is not None:
            trio.lowlevel.reschedule(request.waiter, outcome.Value(reply))
            self._note_ended()
        elif match is Match.LATE_PROBE:
            log.debug("link.probe_answered_late", correlation=reply.correlation)
        else:
            self._traffic.put_unmatched(reply, match)
            if match is Match.EARLY:
                self.end(f"the bank answered {reply.correlation} before it had all of it")


class Link:
    """One bank's connection as the rest of the daemon sees it; ``run_link`` moves it.

    Args:
        config: where the bank is, and the times.
        codec: the bank's protocol.
        sequence: makes the numbers of log-ons and probes.
        clock: wall clock, for what is shown; all spans are trio's.
        alarms: where LINK_DOWN, BANK_HEARTBEAT_LOST and SIGN_ON_REFUSED go.
        unmatched: gets every answer that no caller waits for, in order, none dropped; where links
            of one bank share the traffic, what they share, and its owner runs it.
        rng: draws the back-off's jitter.
        connect: opens the socket; a simulation puts its own network in place.
    """

    def __init__(
        self,
        config: LinkConfig,
        codec: BankCodec,
        sequence: Sequence,
        clock: Clock,
        alarms: AlarmBell,
        unmatched: trio.MemorySendChannel[UnmatchedReply] | Traffic,
        rng: random.Random,
        connect: Connect = connect_tcp,
    ) -> None:
        self.config = config
        self.state = LinkState.OFF
        self.since = clock.now()
        self.failures = 0
        self.last_failure = ""
        self._codec = codec
        self._sequence = sequence
        self._clock = clock
        self._alarms = alarms
        self._backoff = Backoff(config.backoff_first_s, config.backoff_max_s, rng)
        self.on_change: Callable[[], None] | None = None
        """Called after its state changed or a request of it ended; must not raise."""
        self._owns_traffic = not isinstance(unmatched, Traffic)
        self._traffic = (
            unmatched if isinstance(unmatched, Traffic) else Traffic(config.bank, clock, unmatched)
        )
        self._session = codec if isinstance(codec, SessionCodec) else None
        self._lockout = codec if isinstance(codec, LockoutCodec) else None
        self.on_locked_out: Callable[[], None] = self.drain
        """Called when the bank refused our password: nobody may show it again."""
        self._known_until = 0.0
        """Until then the bank needs no new proof that it works: it just answered elsewhere."""
        self._is_reopening = False
        self._open_socket = connect
        self._gate: Gate | None = None
        self._connection: _Connection | None = None
        self._is_held = False
        self._changed = trio.Event()

    @property
    def is_open(self) -> bool:
        """True while requests are taken: READY, its key there at this moment, and not held."""
        return self.state is LinkState.READY and self._is_permitted

    @property
    def is_up(self) -> bool:
        """READY, or being made anew after the bank closed an idle connection in good order."""
        return self._is_permitted and (self.state is LinkState.READY or self._is_reopening)

    @property
    def is_free(self) -> bool:
        """Where one request goes at a time: whether one may leave at this moment."""
        connection = self._connection
        return (
            connection is not None
            and self.is_open
            and connection.is_free
            and not connection.has_ended()
        )

    @property
    def in_flight(self) -> int:
        """Requests under way, the link's own included."""
        return self._connection.in_flight if self._connection is not None else 0

    @property
    def _is_permitted(self) -> bool:
        return not self._is_held and self._gate is not None and self._gate.is_open

    @property
    def requests(self) -> int:
        """Requests of callers taken since the process started."""
        return self._traffic.requests

    @property
    def last_reply_at(self) -> dt.datetime | None:
        """When the bank last answered anything, aware UTC."""
        return self._traffic.last_reply_at

    async def wait_open(self) -> None:
        """Return when requests are taken; at once if they are."""
        await trio.lowlevel.checkpoint()
        while not self.is_open:
            if self.state is LinkState.READY and self._gate is not None and not self._is_held:
                # The key has just gone. Should it come back before anybody drains, no state
                # changes, so the gate itself is what to wait for.
                await self._gate.wait_open()
            else:
                await self._changed.wait()

    async def wait_closed(self) -> None:
        """Return when requests are not taken; at once if they are not."""
        await trio.lowlevel.checkpoint()
        while self.is_open:
            await self._changed.wait()

    async def exchange(
        self, frame: bytes, correlation: str, may_begin: Callable[[], bool] | None = None
    ) -> Reply:
        """Send a frame and return the bank's answer to it; the caller sets the deadline.

        A caller cancelled after the first byte gets ``Cancelled`` (``TooSlowError`` from its
        ``fail_after``) and the outcome is not known; the late answer goes to ``unmatched``.
        Cancelled before it, the frame is withdrawn and ``NothingSentError`` raised instead.

        Args:
            frame: exactly what the adapter sealed.
            correlation: what the answer will echo; unique among the requests in flight.
            may_begin: asked just before the first byte is handed to the socket, which may be some
                time after the call; False: none is, ever.

        Raises:
            NothingSentError: no byte of the frame was handed to the socket, nor ever will be.
            LinkLostError: the connection ended after the first byte; the outcome is not known.
            LocalProtocolError: the correlation is in use, or too many are in flight; nothing sent.
        """
        connection = self._connection
        if connection is None or not self.is_open:
            msg = f"the link to {self.config.bank} takes no requests: {self.state}"
            raise NothingSentError(msg)
        if self._owns_traffic:
            self._traffic.requests += 1
        return await connection.exchange(frame, correlation, may_begin)

    def drain(self) -> None:
        """Take no more requests, let those in flight end, close, stay so until ``resume``."""
        self._is_held = True
        self._pulse()

    def resume(self) -> None:
        """Take back ``drain``; idempotent."""
        self._is_held = False
        self._pulse()

    def snapshot(self) -> LinkSnapshot:
        """Return what screens show."""
        return LinkSnapshot(
            bank=self.config.bank,
            peer=self.config.peer,
            state=self.state,
            since=self.since,
            is_open=self.is_open,
            failures=self.failures,
            last_failure=self.last_failure,
            last_reply_at=self.last_reply_at,
            requests=self.requests,
            unmatched=self._traffic.unmatched,
            in_flight=self.in_flight,
            connections_ready=int(self.state is LinkState.READY),
            log_ons=self._traffic.log_ons,
            losses=self._traffic.losses,
        )

    async def run(self, gate: Gate) -> None:
        """Do what ``run_link`` says, which alone calls it."""
        structlog.contextvars.bind_contextvars(link=self.config.bank)
        self._gate = gate
        self._step(LinkEvent.STARTED)
        try:
            async with trio.open_nursery() as nursery:
                if self._owns_traffic:
                    nursery.start_soon(self._traffic.run)
                while True:
                    await self._wait_permitted(gate)
                    await self._run_permitted(gate)
        finally:
            self._step(LinkEvent.STOPPED)

    async def _wait_permitted(self, gate: Gate) -> None:
        """Return in CONNECTING, with the key there and no operator holding the link."""
        while not self._is_permitted or self.state is LinkState.HELD:
            if self.state is LinkState.HELD:
                await self._until(lambda: not self._is_held)
                self._step(LinkEvent.RESUMED)
            elif self._is_held:
                self._step(LinkEvent.HELD)
            else:
                await _first(gate.wait_open, self._wait_held)
        self._step(LinkEvent.KEY_THERE)

    async def _run_permitted(self, gate: Gate) -> None:
        """Keep the connection up until the key goes or the operator holds the link."""
        self._is_reopening = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            await _first(gate.wait_closed, self._wait_held)
            if self.state is LinkState.READY:
                self._begin_drain("the link is held" if self._is_held else "no key")
            await self._wait_drained()
            nursery.cancel_scope.cancel()
        self._is_reopening = False
        self._step(LinkEvent.HELD if self._is_held else LinkEvent.KEY_GONE)
        log.info("link.closed", state=self.state)

    async def _keep_up(self) -> None:
        """Connect again and again; never gives up, and never begins without permission."""
        while self._is_permitted:
            if await self._hold_connection() and self.state is LinkState.READY:
                self._is_reopening = True
                self._step(LinkEvent.RESTED)
                continue
            self._is_reopening = False
            delay_s = self._note_lost()
            await trio.sleep(delay_s)
            self._step(LinkEvent.DELAY_OVER)

    async def _hold_connection(self) -> bool:
        """Connect, log on and serve until the connection is over; say whether in good order."""
        connection = await self._connect()
        if connection is None:
            return False
        self._step(LinkEvent.CONNECTED)
        self._connection = connection
        try:
            await connection.run(self._serve)
        finally:
            self._connection = None
            unknown, unsent = connection.close()
            if connection.answers:
                self._known_until = connection.liveness.heard_at + self.config.heartbeat_s
            rested = connection.rested and (
                connection.answers > 0
                or trio.current_time() - connection.made_at >= RESTED_SECONDS_MIN
            )
            if rested:
                # It happens all day and says nothing.
                log.debug("link.rested", reason=connection.reason)
            else:
                self.last_failure = connection.reason
                log.info(
                    "link.disconnected", reason=connection.reason, unknown=unknown, unsent=unsent
                )
        return rested

    async def _connect(self) -> _Connection | None:
        """Return a new connection, or None with the reason noted."""
        config = self.config
        try:
            with trio.fail_after(config.connect_timeout_s):
                sock = await self._open_socket(config)
        except trio.TooSlowError:
            self.last_failure = f"no connection within {config.connect_timeout_s} s"
            return None
        except OSError as error:
            self.last_failure = f"connect: {reason_of(error)}"
            return None
        framer = self._codec.framer()
        return _Connection(sock, framer, config.heartbeat_s, self._traffic, self._take_answers)

    async def _serve(self, connection: _Connection) -> None:
        """Log on and prove life until the connection ends."""
        if not await self._log_on(connection):
            return
        again, self._is_reopening = self._is_reopening, False
        self.failures = 0
        self._backoff.reset()
        self._step(LinkEvent.LOGGED_ON)
        if not again:
            self._traffic.log_ons += 1
            log.info("link.logged_on")
        self._alarms.clear(AlarmKind.LINK_DOWN, self.config.bank)
        self._alarms.clear(AlarmKind.BANK_HEARTBEAT_LOST, self.config.bank)
        self._alarms.clear(AlarmKind.SIGN_ON_REFUSED, self.config.bank)
        while self.state is LinkState.READY:
            await self._prove_life(connection)
        # Draining: whoever began it ends the connection.
        await trio.sleep_forever()

    async def _log_on(self, connection: _Connection) -> bool:
        """Say whether the bank let us in; a bank without a log-on must answer its probe.

        A bank that only accepts TCP connections is not READY, and does not reset the back-off.
        """
        if self._session is None and self._lockout is None:
            return await self._open_session(connection)
        # Of two log-ons at once the bank may forget the token of either, or count a wrong password
        # twice.
        async with self._traffic.logging_on:
            return self._is_permitted and await self._open_session(connection)

    async def _open_session(self, connection: _Connection) -> bool:
        context = self._context()
        logon = self._codec.logon(context)
        if logon is None and self._is_reopening and trio.current_time() < self._known_until:
            return True
        draft = logon or self._codec.probe(context)
        reply = None
        with trio.move_on_after(self.config.logon_timeout_s):
            reply = await self._ask(connection, draft)
        if reply is None:
            connection.end(f"no answer to the log-on within {self.config.logon_timeout_s} s")
            return False
        if not self._codec.alive(reply):
            connection.end(f"the bank refused the log-on: {_said(reply)}")
            return False
        if logon is not None and self._session is not None:
            self._session.signed_on(reply)
        return True

    def _take_answers(self, replies: list[Reply]) -> str:
        """Look at answers of a connection that takes one request at a time.

        Returns why the connection must end, or empty.
        """
        session, lockout = self._session, self._lockout
        over = ""
        if lockout is not None:
            for refused in filter(lockout.locks_out, replies):
                over = f"the bank refused user or password: {_said(refused)}"
                self._stop_for_lockout(over)
        if session is not None and any(session.signed_off(reply) for reply in replies):
            over = "the bank wants a new log-on"
        if self.on_change is not None and not over:
            self.on_change()
        return over

    def _stop_for_lockout(self, reason: str) -> None:
        """Ask the bank nothing more until a person has seen to it: it would lock the operator."""
        log.error("link.locked_out", reason=reason)
        self._alarms.raise_alarm(AlarmKind.SIGN_ON_REFUSED, self.config.bank, reason)
        self.on_locked_out()

    async def _prove_life(self, connection: _Connection) -> None:
        """Do what is due for this connection's life, or wait until something is."""
        now = trio.current_time()
        match connection.liveness.due(now):
            case Due.NOTHING:
                await trio.sleep_until(connection.liveness.next_at)
            case Due.PROBE:
                connection.liveness.probed(now)
                if connection.in_order is None or connection.is_free:
                    await self._probe(connection)
                else:
                    # An answer is owed, and no probe can overtake it.
                    await trio.lowlevel.checkpoint()
            case Due.END:
                self._heartbeat_lost(connection, SILENT)
                # A request that was sent meanwhile has its time for an answer all the same.
                self._begin_drain(SILENT)
                with trio.move_on_at(connection.liveness.asked_at + self.config.reply_timeout_s):
                    await connection.wait_drained()
                connection.end(SILENT)
                await trio.lowlevel.checkpoint()
            case _ as never:
                assert_never(never)

    async def _probe(self, connection: _Connection) -> None:
        reply = None
        with trio.move_on_at(connection.liveness.next_at):
            reply = await self._ask(connection, self._codec.probe(self._context()))
        if reply is None or self._codec.alive(reply) or self.state is not LinkState.READY:
            return
        if not self._is_permitted:
            # It stops anyway, and why was told.
            return
        # The front end is there and its bank is not. What is in flight may yet be answered;
        # closing at once would only make known outcomes unknown.
        reason = f"the bank refused the probe: {_said(reply)}"
        self._heartbeat_lost(connection, reason)
        self._begin_drain(reason)
        await self._wait_drained()
        connection.end(reason)
        await trio.lowlevel.checkpoint()

    async def _ask(self, connection: _Connection, draft: Draft) -> Reply | None:
        """Return the answer to a request of the link's own, None when the connection ended."""
        assert draft.to_sign is None, "log-ons and probes are never signed by the slot"
        frame = self._codec.seal(draft, None)
        try:
            return await connection.exchange(frame, draft.correlation, probe=True)
        except (NothingSentError, LinkLostError):
            return None

    def _context(self) -> Context:
        now = self._clock.now()
        return Context(now=now, sequence=self._sequence.next(now))

    def _begin_drain(self, reason: str) -> None:
        self._step(LinkEvent.DRAIN_BEGAN)
        if self._connection is not None:
            log.info("link.draining", reason=reason, in_flight=self._connection.in_flight)
            self._connection.begin_drain(reason)

    async def _wait_drained(self) -> None:
        """Return when no caller waits, or after the longest time one may."""
        if self._connection is not None and self.state is LinkState.DRAINING:
            with trio.move_on_after(self.config.reply_timeout_s):
                await self._connection.wait_drained()

    def _note_lost(self) -> float:
        """Count a failure, tell of it, and return the delay before the next attempt in seconds."""
        self.failures += 1
        self._traffic.losses += 1
        delay_s = self._backoff.next_s()
        self._step(LinkEvent.LOST)
        log.warning(
            "link.lost",
            reason=self.last_failure,
            failures=self.failures,
            retry_seconds=round(delay_s, 3),
        )
        if self.failures >= FAILURES_MAX:
            self._alarms.raise_alarm(AlarmKind.LINK_DOWN, self.config.bank, self.last_failure)
        return delay_s

    def _heartbeat_lost(self, connection: _Connection, cause: str) -> None:
        log.warning("link.heartbeat_lost", reason=cause, in_flight=connection.in_flight)
        self._alarms.raise_alarm(AlarmKind.BANK_HEARTBEAT_LOST, self.config.bank, cause)

    def _step(self, event: LinkEvent) -> None:
        self.state = step(self.state, event)
        self.since = self._clock.now()
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        if self.on_change is not None:
            self.on_change()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    async def _wait_held(self) -> None:
        await self._until(lambda: self._is_held)


async def run_link(
    link: BankLink,
    gate: Gate,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a bank's connection up while its gate is open; never returns.

    Owns the socket and everything in flight on it. ``started()`` at once: a bank that is down is an
    expected state, ``link.wait_open`` tells when it is up. Connects, logs on, probes an idle bank,
    reconnects with back-off without end. A closed gate means no connection (FEP-09). When it ends
    (cancelled, or by a defect of the adapter, which it raises) every request in flight has ended
    with ``LinkLostError`` or ``NothingSentError``; it may then be started again with the same link.
    """
    task_status.started()
    await link.run(gate)


async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of them does."""
    async with trio.open_nursery() as nursery:

        async def run(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(run, wait)


def _said(reply: Reply) -> str:
    return f"{reply.code} {reply.message}"[:SAID_CHARS_MAX]
