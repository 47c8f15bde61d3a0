"""The blocking client (BIO 同步阻塞, FEP-33): plain sockets, and one thread that reads.

Each call blocks until its answer; the thread keeps the heartbeat, answers ``task.fetch`` and
``task.result`` through the caller's functions, and reconnects. For programs without an event loop.
What those functions raise is shown on standard error and told to ``alarm``, and ends nothing: the
body is asked for, and the result told, again later.
"""

from __future__ import annotations

import secrets
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, assert_never

import attrs

from fep.client.address import Address, parse_address
from fep.client.conversation import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    SILENCE_HEARTBEATS,
    Answered,
    Broken,
    CallError,
    Conversation,
    DisconnectedError,
    EventTold,
    FetchAsked,
    Foreign,
    Happening,
    Opened,
    ResultTold,
    TaskResult,
)
from fep.domain.clock import Clock, SystemClock, to_text
from fep.wire.proof import NONCE_BYTES, Key

RECEIVE_BYTES: Final = 65_536
SEND_BYTES: Final = 262_144
CONNECT_SECONDS_MAX: Final = 10.0
OPEN_SECONDS_MAX: Final = 10.0
CLOSE_SECONDS_MAX: Final = 2.0
JOIN_SECONDS_MAX: Final = 5.0

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Fetch = Callable[[str, int], dict[str, Any] | None]
Result = Callable[[TaskResult], None]


@attrs.define(eq=False)
class _Ticket:
    done: threading.Event = attrs.Factory(threading.Event)
    answer: Answered | None = None


class _LostError(Exception):
    def __init__(self, reason: str, *, code: str = "", permanent: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.permanent = permanent


class BlockingClient:
    """A connection to the daemon for threads; use it as a context manager.

    Its calls may come from any number of threads. ``fetch``, ``result``, ``event`` and ``alarm``
    run in the client's own thread: they can't call the client, and must be short. A result is
    acknowledged when ``result`` returns. A session that is refused later than the first one is told
    to ``alarm`` like any loss, and tried again.

    ``retry`` False: a first connection that can't be made is told at once, as a command wants it;
    ``connect_s`` bounds the wait for the first session.
    """

    def __init__(  # noqa: PLR0913 - each is an option by itself, given by name
        self,
        address: str | Address,
        name: str,
        *,
        token: str | None = None,
        key: Key | None = None,
        tls: ssl.SSLContext | None = None,
        fetch: Fetch | None = None,
        result: Result | None = None,
        alarm: Callable[[str], None] | None = None,
        event: Callable[[dict[str, Any]], None] | None = None,
        clock: Clock | None = None,
        retry: bool = True,
        connect_s: float = CONNECT_SECONDS_MAX,
    ) -> None:
        self._address = parse_address(address) if isinstance(address, str) else address
        self._tls = tls
        self._conversation = Conversation(name, token, key)
        self._fetch = fetch
        self._result = result
        self._alarm = alarm
        self._event = event
        self._clock = clock or SystemClock()
        self._retry = retry
        self._connect_s = connect_s
        self._refusal: _LostError | None = None
        """Why no first session came and none will."""
        # All that follows changes under the lock only, which the condition has too.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._out = bytearray()
        self._is_open = False
        self._was_open = False
        self._closing = False
        self._ended = False
        self._stopping = threading.Event()
        # A pair of sockets wakes the reading thread when there is something to send.
        self._waker, self._wakee = socket.socketpair()
        self._waker.settimeout(0)
        self._wakee.settimeout(0)
        self._thread = threading.Thread(target=self._run, name="fep-client", daemon=True)
        self.welcome: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Connect; returns when the session is open.

        Raises:
            DisconnectedError: no session within ``connect_s``, or not at once without ``retry``;
                its cause is then the ``OSError``, if it was one.
            CallError: the daemon refused the session.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._was_open or self._ended, self._connect_s)
            if self._was_open:
                return self
        self.close()
        if self._refusal is None:
            msg = f"no session with {self._address} within {self._connect_s:g} s"
            raise DisconnectedError(msg)
        if self._refusal.permanent:
            raise CallError(self._refusal.code, str(self._refusal))
        raise DisconnectedError(str(self._refusal)) from self._refusal.__cause__

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and end the connection and the thread; calls that wait fail."""
        with self._lock:
            self._closing = True
            goodbye = self._is_open
        if threading.current_thread() is self._thread:
            # From one of the caller's functions: the thread ends when that returns.
            self._stopping.set()
            return
        if goodbye:
            with suppress(CallError, DisconnectedError):
                self._ask("session.close", {}, CLOSE_SECONDS_MAX, time.monotonic())
        self._stopping.set()
        with self._lock:
            self._wake()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS_MAX)
        elif not self._ended:
            self._end()  # it was never started

    # -- calls --------------------------------------------------------------------------------

    def call(
        self, method: str, params: dict[str, Any] | None = None, *, deadline_s: float = 60.0
    ) -> Any:  # noqa: ANN401
        """Call a method and return its result.

        Raises:
            CallError: the daemon refused it.
            DisconnectedError: no connection, or it ended before the answer, or the deadline passed.
            TypeError, ValueError: the parameters are no JSON values.
        """
        begun = time.monotonic()
        self._check_thread()
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_open or self._ended, deadline_s):
                msg = f"not connected to {self._address} within {deadline_s:g} s"
                raise DisconnectedError(msg)
        return self._ask(method, params or {}, deadline_s, begun)

    def submit(
        self,
        task_id: str,
        bank: str,
        kind: str,
        body: dict[str, Any] | None = None,
        *,
        priority: int | None = None,
        expires_s: float | None = None,
        deadline_s: float = 60.0,
    ) -> dict[str, Any]:
        """Submit a task and return ``{task_id, state, known}`` once it is on the daemon's disk.

        Over a lost connection it is sent again by itself within the deadline.

        Raises:
            CallError: the daemon refused it; nothing was changed.
            DisconnectedError: no answer within the deadline; submit the same id again.
            TypeError, ValueError: the body is no JSON value.
        """
        params: dict[str, Any] = {"task_id": task_id, "bank": bank, "kind": kind}
        if body is not None:
            params["body"] = body
        if priority is not None:
            params["priority"] = priority
        if expires_s is not None:
            params["expires_s"] = expires_s
        answer: dict[str, Any] = self._ask("task.submit", params, deadline_s, time.monotonic())
        return answer

    def _ask(self, method: str, params: dict[str, Any], deadline_s: float, begun: float) -> Any:  # noqa: ANN401
        self._check_thread()
        ticket = _Ticket()
        with self._lock:
            if self._ended:
                msg = f"the client of {self._address} has ended"
                raise DisconnectedError(msg)
            line = self._conversation.call(method, params, ticket)
            if self._is_open:
                self._out += line
                self._wake()
        try:
            ticket.done.wait(max(0.0, begun + deadline_s - time.monotonic()))
        finally:
            with self._lock:
                self._conversation.forget(ticket)
        if ticket.answer is None:
            msg = f"no answer to {method} within {deadline_s:g} s"
            raise DisconnectedError(msg)
        if ticket.answer.error is not None:
            raise ticket.answer.error
        return ticket.answer.value

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            msg = "fetch, result, event and alarm can't call the client: its thread waits for them"
            raise RuntimeError(msg)

    def _wake(self) -> None:
        """Make the thread look; under the lock, since the thread closes the pair at its end."""
        # A pair that is full wakes the thread as well, one that is closed has no thread to wake.
        with suppress(OSError):
            self._waker.send(b"w")

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._stay_connected()
        finally:
            # Whatever ended the thread, nobody may wait for it any more.
            self._end()

    def _stay_connected(self) -> None:
        wait = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            try:
                self._live()
            except _LostError as lost:
                if self._end_session():
                    wait = BACKOFF_FIRST_S
                if self._closing:
                    return
                if not self._was_open and (lost.permanent or not self._retry):
                    self._refusal = lost
                    return
                self._tell(str(lost))
            self._stopping.wait(wait)
            wait = min(wait * 2, BACKOFF_MAX_S)

    def _end_session(self) -> bool:
        """Fail what can't be answered any more; returns whether the session was open."""
        with self._changed:
            was_open, self._is_open = self._is_open, False
            self._out.clear()
            failed = self._conversation.disconnected()
        for answer in failed:
            _settle(answer)
        return was_open

    def _end(self) -> None:
        self._end_session()
        with self._changed:
            self._ended = True
            failed = self._conversation.ended()
            self._changed.notify_all()
            self._waker.close()
            self._wakee.close()
        for answer in failed:
            _settle(answer)

    def _live(self) -> None:
        """Live through one connection; raises ``_LostError`` at its end, returns when stopping."""
        with self._connect() as sock:
            sock.settimeout(0)
            with self._lock:
                self._out[:] = self._conversation.connected(
                    int(self._clock.now().timestamp() * 1000), secrets.token_hex(NONCE_BYTES)
                )
            poller = select.poll()  # select itself can't take files numbered 1024 and more
            poller.register(self._wakee, select.POLLIN)
            heard = beaten = time.monotonic()
            while not self._stopping.is_set():
                interval = self._conversation.heartbeat_s if self._is_open else OPEN_SECONDS_MAX
                silence_max = SILENCE_HEARTBEATS * interval if self._is_open else interval
                poller.register(sock, select.POLLIN | (select.POLLOUT if self._out else 0))
                limit = min(beaten + interval, heard + silence_max) - time.monotonic()
                # What TLS has taken from the socket already, no poll sees.
                pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
                ready = dict(poller.poll(0 if pending or limit < 0 else limit * 1000))
                if self._wakee.fileno() in ready:
                    self._wakee.recv(RECEIVE_BYTES)
                state = ready.get(sock.fileno(), 0)
                if state & select.POLLOUT:
                    self._write(sock)
                if state & ~select.POLLOUT or pending:
                    heard = self._read(sock) or heard
                now = time.monotonic()
                if now - heard >= silence_max:
                    msg = f"nothing heard from {self._address} for {now - heard:.1f} s"
                    raise _LostError(msg)
                if self._is_open and now >= beaten + self._conversation.heartbeat_s:
                    beaten = now
                    with self._lock:
                        self._out += self._conversation.heartbeat(to_text(self._clock.now()))

    def _connect(self) -> socket.socket:
        address = self._address
        sock: socket.socket | None = None
        try:
            if address.kind == "unix":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(self._connect_s)
                sock.connect(address.path)
            else:
                where = (address.host, address.port)
                sock = socket.create_connection(where, timeout=self._connect_s)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if address.kind == "tls":
                    context = self._tls or ssl.create_default_context()
                    sock = context.wrap_socket(sock, server_hostname=address.host)
        except OSError as error:
            if sock is not None:
                sock.close()
            msg = f"can't connect to {address}: {error}"
            raise _LostError(msg) from error
        return sock

    def _write(self, sock: socket.socket) -> None:
        with self._lock:
            data = bytes(self._out[:SEND_BYTES])
        try:
            sent = sock.send(data)
        except WOULD_BLOCK:
            return
        except OSError as error:
            msg = f"the connection to {self._address} broke: {error}"
            raise _LostError(msg) from error
        with self._lock:
            del self._out[:sent]

    def _read(self, sock: socket.socket) -> float | None:
        """Take what came and act on it; returns the time after that, None when nothing came."""
        try:
            data = sock.recv(RECEIVE_BYTES)
        except WOULD_BLOCK:
            return None
        except OSError as error:
            msg = f"the connection to {self._address} broke: {error}"
            raise _LostError(msg) from error
        if not data:
            msg = f"the daemon at {self._address} closed the connection"
            raise _LostError(msg)
        with self._changed:
            happenings, out = self._conversation.receive_data(data)
            self._out += out
            # Under the lock: a submission made now is either in ``out`` or sends itself.
            for happening in happenings:
                if isinstance(happening, Opened):
                    self.welcome = happening.welcome
                    self._is_open = self._was_open = True
                    self._changed.notify_all()
        for happening in happenings:
            self._act(happening)
        return time.monotonic()

    def _act(self, happening: Happening) -> None:
        match happening:
            case Answered():
                _settle(happening)
            case Opened():
                pass  # acted on under the lock
            case Broken(reason=reason, code=code, permanent=permanent):
                raise _LostError(reason, code=code, permanent=permanent)
            case FetchAsked():
                self._give(happening)
            case ResultTold():
                if self._result is not None:
                    self._take(happening, self._result)
            case EventTold(record=record):
                if self._event is not None:
                    with Foreign("event") as call:
                        self._event(record)
                    self._tell_fault(call)
            case _:
                assert_never(happening)

    def _give(self, asked: FetchAsked) -> None:
        line = self._conversation.refuse(asked.id, "this client has no such task")
        with Foreign(f"fetch of {asked.task_id}") as call:
            if self._fetch is not None:
                body = self._fetch(asked.task_id, asked.attempt)
                if body is not None:
                    line = self._conversation.reply(asked.id, body)
        self._queue(self._conversation.refuse(asked.id, call.fault) if call.fault else line)
        self._tell_fault(call)

    def _take(self, told: ResultTold, result: Result) -> None:
        with Foreign(f"result of {told.result.task_id}") as call:
            result(told.result)
        if call.fault:
            self._queue(self._conversation.refuse(told.id, call.fault))
        else:
            self._queue(self._conversation.reply(told.id, {}))
        self._tell_fault(call)

    def _queue(self, line: bytes) -> None:
        with self._lock:
            self._out += line

    def _tell(self, reason: str) -> None:
        """Raise the heartbeat alarm of FEP-31 on the finance system's side."""
        if self._alarm is not None:
            with Foreign("alarm"):
                self._alarm(reason)

    def _tell_fault(self, call: Foreign) -> None:
        if call.fault:
            self._tell(call.fault)


def _settle(answer: Answered) -> None:
    ticket: _Ticket = answer.ticket
    ticket.answer = answer
    ticket.done.set()
