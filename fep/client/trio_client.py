"""The trio client: one long connection that comes back by itself.

Bodies and results go through two functions of the caller: ``fetch(task_id, attempt)`` returns the
body (None: not now), ``result(task_result)`` returns once the result is safe on the caller's side;
only then it is acknowledged. Either may be called again for the same task: delivery is at least
once. Results of one task are given one after the other, in the order in which they were told: a
payment that succeeded may come back. What they raise is shown on standard error and told to
``alarm``, and ends nothing else: the body is asked for, and the result told, again later. They are
cancelled when the connection ends.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
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
    Foreign,
    Happening,
    Opened,
    ResultTold,
    TaskResult,
)
from fep.domain.clock import Clock, SystemClock, to_text
from fep.domain.errors import reason_of
from fep.wire.proof import NONCE_BYTES, Key

RECEIVE_BYTES: Final = 65_536
CONNECT_SECONDS_MAX: Final = 10.0
OPEN_SECONDS_MAX: Final = 10.0
CLOSE_SECONDS_MAX: Final = 2.0
HANDLERS_MAX: Final = 256
"""How many of the caller's functions run at once; what else is asked and told waits."""

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

    def __init__(self, reason: str, *, code: str = "", permanent: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.permanent = permanent


class Client:
    """A finance system's or operator's connection to the daemon.

    Start :meth:`run` in a nursery (or use :func:`open_client`); it is ``started()`` when the first
    session is open, and reconnects with back-off for ever. It raises ``CallError`` only when the
    daemon refuses the first session for good; a later refusal (a configuration that is wrong for an
    hour) is told to ``alarm`` like any loss. It returns after :meth:`close`.
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
        alarm: Told | None = None,
        event: EventSink | None = None,
        clock: Clock | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._address = parse_address(address) if isinstance(address, str) else address
        self._open_stream = connect
        self._tls = tls
        self._conversation = Conversation(name, token, key)
        self._fetch = fetch
        self._result = result
        self._alarm = alarm
        self._event = event
        self._clock = clock or SystemClock()
        self._out: list[bytes] = []
        self._out_wanted = trio.Event()
        self._changed = trio.Event()
        self._is_open = False
        self._closing = False
        self._life = trio.CancelScope()
        """Of :meth:`run`; :meth:`close` ends it, also while there is no connection."""
        self._ended = False
        self._heard_at = 0.0
        self._taking: dict[str, trio.Event] = {}
        """By task, set when the last of its results that came was given to the caller."""
        self.welcome: dict[str, Any] = {}

    # -- calls --------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """True while a session is open."""
        return self._is_open

    async def wait_connected(self) -> None:
        """Wait until a session is open.

        Raises:
            DisconnectedError: the client has ended: none will be.
        """
        while not self._is_open:
            self._check_alive()
            await self._changed.wait()

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Call a method and return its result; the caller sets the deadline.

        Raises:
            CallError: the daemon refused it.
            DisconnectedError: the connection ended before the answer, or the client has.
            TypeError, ValueError: the parameters are no JSON values.
        """
        await self.wait_connected()
        return await self._ask(method, params or {})

    async def close(self) -> None:
        """Say goodbye and end: the daemon raises no alarm. Calls that wait still fail.

        Without a connection there is nobody to say it to, and it ends at once.
        """
        self._closing = True
        try:
            with suppress(CallError, DisconnectedError), trio.move_on_after(CLOSE_SECONDS_MAX):
                if self._is_open:
                    await self._ask("session.close", {})
        finally:
            self._life.cancel()

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
            DisconnectedError: the client has ended; submit the same id again.
            TypeError, ValueError: the body is no JSON value.
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
        self._check_alive()
        ticket = _Ticket()
        line = self._conversation.call(method, params, ticket)
        if self._is_open:
            self._send(line)
        try:
            await ticket.done.wait()
        finally:
            if ticket.answer is None:
                self._conversation.forget(ticket)
        assert ticket.answer is not None
        if ticket.answer.error is not None:
            raise ticket.answer.error
        return ticket.answer.value

    def _check_alive(self) -> None:
        if self._ended:
            msg = f"the client of {self._address} has ended"
            raise DisconnectedError(msg)

    # -- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled, or closed.

        Raises:
            CallError: the daemon refused the first session for good.
        """
        wait, told = BACKOFF_FIRST_S, False

        def opened() -> None:
            nonlocal wait, told
            wait = BACKOFF_FIRST_S
            if not told:
                told = True
                task_status.started(self)

        try:
            with self._life:
                while True:
                    try:
                        await self._live(opened)
                    except _LostError as lost:
                        if self._closing:
                            return
                        if lost.permanent and not told:
                            raise CallError(lost.code, str(lost)) from lost
                        self._tell(str(lost))
                    await trio.sleep(wait)
                    wait = min(wait * 2, BACKOFF_MAX_S)
        finally:
            # Nobody may wait for an answer that can't come any more.
            self._ended = True
            self._settle(self._conversation.ended())

    async def _live(self, opened: Callable[[], None]) -> None:
        """Live through one connection; raises ``_LostError`` at its end."""
        stream = await self._connect()
        now_ms = int(self._clock.now().timestamp() * 1000)
        self._out = [self._conversation.connected(now_ms, secrets.token_hex(NONCE_BYTES))]
        self._out_wanted.set()
        self._heard_at = trio.current_time()
        lost: _LostError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, stream)
                nursery.start_soon(self._expect_welcome)
                await self._read(stream, nursery, opened)
        except* _LostError as group:
            # Raised below: beside a cancellation it would be a group, and reach our caller.
            lost = _first(group)
        finally:
            self._is_open = False
            self._settle(self._conversation.disconnected())
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await trio.aclose_forcefully(stream)
        if lost is not None:
            raise lost

    async def _connect(self) -> trio.abc.Stream:
        address = self._address
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                if self._open_stream is not None:
                    return await self._open_stream()
                if address.kind == "unix":
                    return await trio.open_unix_socket(address.path)
                stream = await trio.open_tcp_stream(address.host, address.port)
                return await self._secured(stream) if address.kind == "tls" else stream
        except trio.TooSlowError as error:
            msg = f"can't connect to {address}: not within {CONNECT_SECONDS_MAX:g} s"
            raise _LostError(msg) from error
        except (OSError, trio.BrokenResourceError) as error:
            msg = f"can't connect to {address}: {reason_of(error)}"
            raise _LostError(msg) from error

    async def _secured(self, stream: trio.SocketStream) -> trio.abc.Stream:
        context = self._tls or ssl.create_default_context()
        secured = trio.SSLStream(stream, context, server_hostname=self._address.host)
        done = False
        try:
            await secured.do_handshake()
            done = True
        finally:
            if not done:
                await trio.aclose_forcefully(stream)
        return secured

    async def _expect_welcome(self) -> None:
        await trio.sleep(OPEN_SECONDS_MAX)
        if not self._is_open:
            msg = f"{self._address} took the connection and said nothing for {OPEN_SECONDS_MAX:g} s"
            raise _LostError(msg)

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
            self._heard_at = trio.current_time()
            happenings, out = self._conversation.receive_data(bytes(data))
            self._send(out)
            for happening in happenings:
                # Never waits: an answer that a function of the caller waits for may come next.
                self._happen(happening, nursery, room, opened)

    def _happen(
        self,
        happening: Happening,
        nursery: trio.Nursery,
        room: trio.CapacityLimiter,
        opened: Callable[[], None],
    ) -> None:
        match happening:
            case Answered():
                self._settle([happening])
            case Opened(welcome=welcome):
                self.welcome = welcome
                self._is_open = True
                nursery.start_soon(self._beat)
                opened()
                self._settle([])
            case Broken(reason=reason, code=code, permanent=permanent):
                raise _LostError(reason, code=code, permanent=permanent)
            case FetchAsked():
                nursery.start_soon(self._give, happening, room)
            case ResultTold():
                if self._result is not None:
                    # Without a function nobody has the result: it stays owed.
                    before = self._taking.get(happening.result.task_id)
                    turn = self._taking[happening.result.task_id] = trio.Event()
                    nursery.start_soon(self._take, happening, self._result, room, before, turn)
            case EventTold(record=record):
                if self._event is not None:
                    with Foreign("event") as call:
                        self._event(record)
                    self._tell_fault(call)

    async def _give(self, asked: FetchAsked, room: trio.CapacityLimiter) -> None:
        line = self._conversation.refuse(asked.id, "this client has no such task")
        async with room:
            with Foreign(f"fetch of {asked.task_id}") as call:
                if self._fetch is not None:
                    body = await self._fetch(asked.task_id, asked.attempt)
                    if body is not None:
                        line = self._conversation.reply(asked.id, body)
        self._send(self._conversation.refuse(asked.id, call.fault) if call.fault else line)
        self._tell_fault(call)

    async def _take(
        self,
        told: ResultTold,
        result: Result,
        room: trio.CapacityLimiter,
        before: trio.Event | None,
        turn: trio.Event,
    ) -> None:
        """Give a result to the caller, after what was told of the same task before."""
        task_id = told.result.task_id
        try:
            if before is not None:
                await before.wait()
            async with room:
                with Foreign(f"result of {task_id}") as call:
                    await result(told.result)
        finally:
            turn.set()
            if self._taking.get(task_id) is turn:
                del self._taking[task_id]
        if call.fault:
            self._send(self._conversation.refuse(told.id, call.fault))
        else:
            self._send(self._conversation.reply(told.id, {}))
        self._tell_fault(call)

    def _settle(self, answers: list[Answered]) -> None:
        """Hand out answers, and wake who waits for a change."""
        for answer in answers:
            ticket: _Ticket = answer.ticket
            ticket.answer = answer
            ticket.done.set()
        self._changed.set()
        self._changed = trio.Event()

    async def _beat(self) -> None:
        """Send our heartbeats, and notice that the daemon's do not come; runs while open."""
        interval = self._conversation.heartbeat_s
        due = trio.current_time() + interval
        while True:
            await trio.sleep_until(min(due, self._heard_at + SILENCE_HEARTBEATS * interval))
            now = trio.current_time()
            if now - self._heard_at >= SILENCE_HEARTBEATS * interval:
                msg = f"no heartbeat from {self._address} for {now - self._heard_at:.1f} s"
                raise _LostError(msg)
            if now >= due:
                due = now + interval
                self._send(self._conversation.heartbeat(to_text(self._clock.now())))

    def _send(self, lines: bytes) -> None:
        self._out.append(lines)
        self._out_wanted.set()

    async def _write(self, stream: trio.abc.Stream) -> None:
        while True:
            await self._out_wanted.wait()
            self._out_wanted = trio.Event()
            data, self._out = b"".join(self._out), []
            try:
                if data:
                    await stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                msg = f"the connection to {self._address} broke"
                raise _LostError(msg) from error

    def _tell(self, reason: str) -> None:
        """Raise the heartbeat alarm of FEP-31 on the finance system's side."""
        if self._alarm is not None:
            with Foreign("alarm"):
                self._alarm(reason)

    def _tell_fault(self, call: Foreign) -> None:
        if call.fault:
            self._tell(call.fault)


@asynccontextmanager
async def open_client(  # noqa: PLR0913 - as Client
    address: str | Address,
    name: str,
    *,
    token: str | None = None,
    key: Key | None = None,
    tls: ssl.SSLContext | None = None,
    fetch: Fetch | None = None,
    result: Result | None = None,
    alarm: Told | None = None,
    event: EventSink | None = None,
) -> AsyncIterator[Client]:
    """Open a client for a block; it is connected when the block begins, and closed at its end.

    Raises:
        CallError: the daemon refused the session.
    """
    client = Client(
        address,
        name,
        token=token,
        key=key,
        tls=tls,
        fetch=fetch,
        result=result,
        alarm=alarm,
        event=event,
    )
    refused: CallError | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(client.run)
        except CallError as error:
            refused = error
        else:
            try:
                yield client
            finally:
                with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                    await client.close()
        nursery.cancel_scope.cancel()
    if refused is not None:
        # Not from inside the nursery, which would make a group of it.
        raise refused


def _first(group: BaseExceptionGroup[_LostError]) -> _LostError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, _LostError)
    return found
