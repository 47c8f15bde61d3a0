"""The trio client: one long connection that comes back by itself.

Bodies and results go through two functions of the caller: ``fetch(task_id, attempt)`` returns the
body (None: not now), ``result(task_result)`` returns once the result is safe on the caller's side;
only then it is acknowledged. Either may be called again for the same task: delivery is at least
once.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import attrs
import trio

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
CLOSE_SECONDS_MAX: Final = 2.0
OUTBOX_BYTES_MAX: Final = 16 * 1024 * 1024
HANDLERS_MAX: Final = 256

Fetch = Callable[[str, int], Awaitable[dict[str, Any] | None]]
Result = Callable[[TaskResult], Awaitable[None]]
Told = Callable[[str], None]
EventSink = Callable[[dict[str, Any]], None]
Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens a stream to the daemon in place of the address, such as a tunnel; raises OSError."""


@attrs.define(eq=False)
class _Ticket:
    done: trio.Event = attrs.Factory(trio.Event)
    answer: Answered | None = None


class _LostError(Exception):
    """This connection is over; the reason is for the alarm."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class Client:
    """A finance system's or operator's connection to the daemon.

    Start :meth:`run` in a nursery (or use :func:`open_client`); it is ``started()`` when the first
    session is open, reconnects with back-off for ever, and raises ``CallError`` only when the
    daemon refuses the session itself.
    """

    def __init__(
        self,
        address: str | Address,
        name: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        fetch: Fetch | None = None,
        result: Result | None = None,
        alarm: Told | None = None,
        event: EventSink | None = None,
        clock: Clock | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._address = parse_address(address) if isinstance(address, str) else address
        self._open_stream = connect
        self._tls = tls
        self._conversation = Conversation(name, token)
        self._fetch = fetch
        self._result = result
        self._alarm = alarm
        self._event = event
        self._clock = clock or SystemClock()
        self._out = b""
        self._out_wanted = trio.Event()
        self._open = trio.Event()
        self._last_heard = 0.0
        self._closing = False
        self.welcome: dict[str, Any] = {}

    # -- calls --------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """True while a session is open."""
        return self._open.is_set()

    async def wait_connected(self) -> None:
        """Wait until a session is open."""
        await self._open.wait()

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Call a method and return its result; the caller sets the deadline.

        Raises:
            CallError: the daemon refused it.
            DisconnectedError: the connection ended before the answer.
        """
        await self._open.wait()
        return await self._ask(method, params or {})

    async def submit(
        self,
        task_id: str,
        bank: str,
        kind: str,
        body: dict[str, Any] | None = None,
        *,
        priority: int | None = None,
        expires_s: float | None = None,
    ) -> dict[str, Any]:
        """Submit a task and return ``{task_id, state, known}`` once it is on the daemon's disk.

        Over a lost connection it is sent again by itself. ``body`` is ``{"kind", "params"}``, or
        None to be asked for it through ``fetch``.

        Raises:
            CallError: the daemon refused it; nothing was changed.
        """
        params: dict[str, Any] = {"task_id": task_id, "bank": bank, "kind": kind}
        if body is not None:
            params["body"] = body
        if priority is not None:
            params["priority"] = priority
        if expires_s is not None:
            params["expires_s"] = expires_s
        answer: dict[str, Any] = await self._ask("task.submit", params)
        return answer

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:  # noqa: ANN401
        ticket = _Ticket()
        line = self._conversation.call(method, params, ticket)
        if self._open.is_set():
            self._send(line)
        try:
            await ticket.done.wait()
        finally:
            if ticket.answer is None:
                self._conversation.forget(ticket)
        assert ticket.answer is not None
        error = ticket.answer.error
        if error is None:
            return ticket.answer.value
        if error.code == DisconnectedError.code:
            raise DisconnectedError(str(error))
        raise error

    # -- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled."""
        wait, told = BACKOFF_FIRST_S, False

        def opened() -> None:
            nonlocal wait, told
            wait = BACKOFF_FIRST_S
            if not told:
                told = True
                task_status.started(self)

        while True:
            try:
                await self._live(opened)
            except _LostError as lost:
                if lost.permanent:
                    raise CallError("NOT_PERMITTED", str(lost)) from lost
                self._tell(str(lost))
            await trio.sleep(wait)
            wait = min(wait * 2, BACKOFF_MAX_S)

    async def _live(self, opened: Callable[[], None]) -> None:
        """Live through one connection; raises ``_LostError`` at its end."""
        stream = await self._connect()
        self._out = self._conversation.connected()
        self._out_wanted.set()
        self._last_heard = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, stream)
                nursery.start_soon(self._beat)
                await self._read(stream, nursery, opened)
        except* _LostError as group:
            raise _first(group) from None
        finally:
            self._open = trio.Event()
            for failed in self._conversation.disconnected():
                self._answered(failed)
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await trio.aclose_forcefully(stream)

    async def _connect(self) -> trio.abc.Stream:
        address = self._address
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                if self._open_stream is not None:
                    return await self._open_stream()
                if address.kind == "unix":
                    return await trio.open_unix_socket(address.path)
                stream = await trio.open_tcp_stream(address.host, address.port)
                if address.kind == "tcp":
                    return stream
                context = self._tls or ssl.create_default_context()
                secured = trio.SSLStream(stream, context, server_hostname=address.host)
                await secured.do_handshake()
                return secured
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            msg = f"can't connect to {address}: {error or 'too slow'}"
            raise _LostError(msg) from error

    async def _read(
        self, stream: trio.abc.Stream, nursery: trio.Nursery, opened: Callable[[], None]
    ) -> None:
        room = trio.CapacityLimiter(HANDLERS_MAX)
        while True:
            try:
                data = await stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                msg = f"the connection to {self._address} broke"
                raise _LostError(msg) from error
            if not data:
                msg = f"the daemon at {self._address} closed the connection"
                raise _LostError(msg)
            self._last_heard = trio.current_time()
            happenings, out = self._conversation.receive_data(bytes(data))
            for happening in happenings:
                await self._happen(happening, nursery, room, opened)
            if out:
                self._send(out)

    async def _happen(
        self,
        happening: Happening,
        nursery: trio.Nursery,
        room: trio.CapacityLimiter,
        opened: Callable[[], None],
    ) -> None:
        match happening:
            case Answered():
                self._answered(happening)
            case Opened(welcome=welcome):
                self.welcome = welcome
                self._open.set()
                opened()
            case Broken(reason=reason, permanent=permanent):
                raise _LostError(reason, permanent=permanent)
            case FetchAsked() | ResultTold():
                await room.acquire_on_behalf_of(id(happening))
                nursery.start_soon(self._serve, happening, room)
            case EventTold(record=record):
                if self._event is not None:
                    self._event(record)

    async def _serve(self, asked: FetchAsked | ResultTold, room: trio.CapacityLimiter) -> None:
        try:
            if isinstance(asked, FetchAsked):
                body = (
                    None if self._fetch is None else await self._fetch(asked.task_id, asked.attempt)
                )
                line = (
                    self._conversation.refuse(asked.id, "this client has no such task")
                    if body is None
                    else self._conversation.reply(asked.id, body)
                )
                self._send(line)
            elif self._result is not None:
                # Without a function nobody has the result: it stays owed.
                await self._result(asked.result)
                self._send(self._conversation.reply(asked.id, {}))
        finally:
            room.release_on_behalf_of(id(asked))

    def _answered(self, answer: Answered) -> None:
        ticket: _Ticket = answer.ticket
        ticket.answer = answer
        ticket.done.set()

    async def _beat(self) -> None:
        while True:
            interval = self._conversation.heartbeat_s
            await trio.sleep(interval)
            if self._open.is_set():
                self._send(self._conversation.heartbeat(to_text(self._clock.now())))
            silent = trio.current_time() - self._last_heard
            if silent > SILENCE_HEARTBEATS * interval:
                msg = f"no heartbeat from {self._address} for {silent:.0f} s"
                raise _LostError(msg)

    def _send(self, lines: bytes) -> None:
        self._out += lines
        self._out_wanted.set()

    async def _write(self, stream: trio.abc.Stream) -> None:
        while True:
            await self._out_wanted.wait()
            self._out_wanted = trio.Event()
            data, self._out = self._out, b""
            try:
                if data:
                    await stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                msg = f"the connection to {self._address} broke"
                raise _LostError(msg) from error

    def _tell(self, reason: str) -> None:
        """Raise the heartbeat alarm of FEP-31 on the finance system's side."""
        if self._alarm is not None:
            self._alarm(reason)


@asynccontextmanager
async def open_client(
    address: str | Address,
    name: str,
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    fetch: Fetch | None = None,
    result: Result | None = None,
    alarm: Told | None = None,
    event: EventSink | None = None,
) -> AsyncIterator[Client]:
    """Open a client for a block; it is connected when the block begins."""
    client = Client(
        address,
        name,
        token=token,
        tls=tls,
        fetch=fetch,
        result=result,
        alarm=alarm,
        event=event,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        nursery.cancel_scope.cancel()


def _first(group: BaseExceptionGroup[_LostError]) -> _LostError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, _LostError)
    return found
