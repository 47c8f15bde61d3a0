"""The blocking client (BIO 同步阻塞, FEP-33): plain sockets, and one thread that reads.

Each call blocks until its answer; the thread keeps the heartbeat, answers ``task.fetch`` and
``task.result`` through the caller's functions, and reconnects. For programs without an event loop.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
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
    Happening,
    Opened,
    ResultTold,
    TaskResult,
)
from fep.domain.clock import Clock, SystemClock, to_text

RECEIVE_BYTES: Final = 65_536
CONNECT_SECONDS_MAX: Final = 10.0
JOIN_SECONDS_MAX: Final = 5.0

Fetch = Callable[[str, int], dict[str, Any] | None]
Result = Callable[[TaskResult], None]


@attrs.define(eq=False)
class _Ticket:
    done: threading.Event = attrs.Factory(threading.Event)
    answer: Answered | None = None


class _LostError(Exception):
    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class BlockingClient:
    """A connection to the daemon for threads; use it as a context manager.

    ``fetch``, ``result`` and ``alarm`` run in the client's own thread: they must not call the
    client, and must be short. A result is acknowledged when ``result`` returns.

    ``retry`` False: a first connection that can't be made is told at once, as a command wants it;
    ``connect_s`` bounds the wait for the first session.
    """

    def __init__(  # noqa: PLR0913 - each is an option by itself, given by name
        self,
        address: str | Address,
        name: str,
        *,
        token: str | None = None,
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
        self._conversation = Conversation(name, token)
        self._fetch = fetch
        self._result = result
        self._alarm = alarm
        self._event = event
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._out = b""
        self._open = threading.Event()
        self._settled = threading.Event()
        """Set when the first session is open or refused for good."""
        self._refusal: _LostError | None = None
        """Why there is no session, when ``_settled`` and none will come."""
        self._retry = retry
        self._connect_s = connect_s
        self._stopping = threading.Event()
        # A pair of sockets wakes the reading thread when there is something to send.
        self._waker, self._wakee = socket.socketpair()
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
        if not self._settled.wait(self._connect_s):
            self.close()
            msg = f"no session with {self._address} within {self._connect_s:g} s"
            raise DisconnectedError(msg)
        if self._refusal is not None:
            self.close()
            if self._refusal.permanent:
                raise CallError("NOT_PERMITTED", str(self._refusal))
            raise DisconnectedError(str(self._refusal)) from self._refusal.__cause__
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and the thread."""
        self._stopping.set()
        self._wake()
        self._thread.join(JOIN_SECONDS_MAX)
        self._waker.close()
        self._wakee.close()

    # -- calls --------------------------------------------------------------------------------

    def call(
        self, method: str, params: dict[str, Any] | None = None, *, deadline_s: float = 60.0
    ) -> Any:  # noqa: ANN401
        """Call a method and return its result.

        Raises:
            CallError: the daemon refused it.
            DisconnectedError: no connection, or it ended before the answer, or the deadline passed.
        """
        if not self._open.wait(deadline_s):
            msg = f"not connected to {self._address}"
            raise DisconnectedError(msg)
        return self._ask(method, params or {}, deadline_s)

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
        """
        params: dict[str, Any] = {"task_id": task_id, "bank": bank, "kind": kind}
        if body is not None:
            params["body"] = body
        if priority is not None:
            params["priority"] = priority
        if expires_s is not None:
            params["expires_s"] = expires_s
        answer: dict[str, Any] = self._ask("task.submit", params, deadline_s)
        return answer

    def _ask(self, method: str, params: dict[str, Any], deadline_s: float) -> Any:  # noqa: ANN401
        ticket = _Ticket()
        with self._lock:
            line = self._conversation.call(method, params, ticket)
            if self._open.is_set():
                self._out += line
        self._wake()
        if not ticket.done.wait(deadline_s):
            with self._lock:
                self._conversation.forget(ticket)
            msg = f"no answer to {method} within {deadline_s:g} s"
            raise DisconnectedError(msg)
        assert ticket.answer is not None
        error = ticket.answer.error
        if error is None:
            return ticket.answer.value
        if error.code == DisconnectedError.code:
            raise DisconnectedError(str(error))
        raise error

    def _wake(self) -> None:
        self._waker.send(b"w")

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        wait = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            try:
                self._live()
            except _LostError as lost:
                if self._settled.is_set() and self._open.is_set():
                    wait = BACKOFF_FIRST_S
                self._end_session()
                if lost.permanent or not (self._retry or self._settled.is_set()):
                    self._refusal = lost
                    self._settled.set()
                    return
                if self._alarm is not None and not self._stopping.is_set():
                    self._alarm(str(lost))
            self._stopping.wait(wait)
            wait = min(wait * 2, BACKOFF_MAX_S)
        self._end_session()

    def _end_session(self) -> None:
        with self._lock:
            self._open.clear()
            self._out = b""
            failed = self._conversation.disconnected()
        for answer in failed:
            _settle(answer)

    def _live(self) -> None:
        with self._connect() as sock:
            with self._lock:
                self._out = self._conversation.connected()
            heard = beaten = time.monotonic()
            while not self._stopping.is_set():
                interval = self._conversation.heartbeat_s
                with self._lock:
                    writable = [sock] if self._out else []
                pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
                limit = 0.0 if pending else max(0.0, beaten + interval - time.monotonic())
                ready, can_write, _ = select.select([sock, self._wakee], writable, [], limit)
                if self._wakee in ready:
                    self._wakee.recv(RECEIVE_BYTES)
                if can_write:
                    self._write(sock)
                if sock in ready or pending:
                    self._read(sock)
                    heard = time.monotonic()
                now = time.monotonic()
                if now >= beaten + interval:
                    beaten = now
                    if self._open.is_set():
                        with self._lock:
                            self._out += self._conversation.heartbeat(to_text(self._clock.now()))
                if now - heard > SILENCE_HEARTBEATS * interval:
                    msg = f"no heartbeat from {self._address} for {now - heard:.0f} s"
                    raise _LostError(msg)

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
            data = self._out
        try:
            sent = sock.send(data[: RECEIVE_BYTES * 4])
        except (TimeoutError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            msg = f"the connection to {self._address} broke: {error}"
            raise _LostError(msg) from error
        with self._lock:
            self._out = self._out[sent:]

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(RECEIVE_BYTES)
        except (TimeoutError, ssl.SSLWantReadError):
            return
        except OSError as error:
            msg = f"the connection to {self._address} broke: {error}"
            raise _LostError(msg) from error
        if not data:
            msg = f"the daemon at {self._address} closed the connection"
            raise _LostError(msg)
        with self._lock:
            happenings, out = self._conversation.receive_data(data)
            self._out += out
            # Under the lock: a submission made now is either in ``out`` or sends itself.
            if any(isinstance(happening, Opened) for happening in happenings):
                self._open.set()
        for happening in happenings:
            self._act(happening)

    def _act(self, happening: Happening) -> None:
        match happening:
            case Answered():
                _settle(happening)
            case Opened(welcome=welcome):
                self.welcome = welcome
                self._settled.set()
            case Broken(reason=reason, permanent=permanent):
                raise _LostError(reason, permanent=permanent)
            case FetchAsked():
                self._answer_fetch(happening)
            case ResultTold():
                if self._result is not None:
                    self._result(happening.result)
                    self._queue(self._conversation.reply(happening.id, {}))
            case EventTold(record=record):
                if self._event is not None:
                    self._event(record)
            case _:
                assert_never(happening)

    def _answer_fetch(self, asked: FetchAsked) -> None:
        body = None if self._fetch is None else self._fetch(asked.task_id, asked.attempt)
        if body is None:
            self._queue(self._conversation.refuse(asked.id, "this client has no such task"))
        else:
            self._queue(self._conversation.reply(asked.id, body))

    def _queue(self, line: bytes) -> None:
        with self._lock:
            self._out += line


def _settle(answer: Answered) -> None:
    ticket: _Ticket = answer.ticket
    ticket.answer = answer
    ticket.done.set()
