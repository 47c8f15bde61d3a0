"""One connection of the control protocol: reads lines, answers them, asks and tells the client.

Lines that arrived together are admitted together, and their replies leave together from the
commit's callback; nothing is done per line that can be done per batch.
"""

from __future__ import annotations

import hmac
from collections import deque
from functools import cached_property
from typing import Any, Final

import attrs
import msgspec
import structlog
import trio

from fep.alarms.state import AlarmKind
from fep.control.commands import (
    METHODS,
    PROTOCOL_VERSION,
    SUBMITTING,
    Caller,
    FollowParams,
    HeartbeatParams,
    OpenParams,
    ProtocolRefusal,
    Role,
    Services,
    SubmitParams,
)
from fep.domain.clock import to_text
from fep.domain.errors import BodyError, FepError, KeySlotError
from fep.domain.ids import BankName, ClientName, TaskId, new_session_id, parse_name, parse_task_id
from fep.tasks.mailbox import Mailbox
from fep.tasks.task import Admitted, Fetch, Submission
from fep.wire import jsonrpc
from fep.wire.jsonrpc import Fault, Id, Request, Response

log = structlog.get_logger()

RECEIVE_BYTES: Final = 65_536
OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
"""A client that reads so little that this much waits for it is cut off."""
CALLS_MAX: Final = 256
"""Requests of one connection that are being worked on at once; more wait in the socket."""
OPEN_SECONDS_MAX: Final = 10.0
WRITE_SECONDS_MAX: Final = 30.0
CLOSE_SECONDS_MAX: Final = 2.0
SILENCE_HEARTBEATS: Final = 3

_DECODERS: Final = {name: msgspec.json.Decoder(row.params) for name, row in METHODS.items()}
_EMPTY: Final = msgspec.Raw(b"{}")


@attrs.frozen
class Peer:
    """Who is at the other end, as the listener proved it."""

    role: Role | None
    """From the Unix socket's uid; None where the client's name decides."""
    names: dict[ClientName, Role]
    """Names this connection may open as, with their roles; empty with ``role``: any name."""
    name: ClientName | None
    """The proven name of the person, whatever the first line says; None: the line says it."""
    token: str | None
    """What ``session.open`` must bear, None where the channel itself is proof."""
    origin: str
    """For logs: ``unix uid 1000``, ``tls CN erp-1``, ``tcp 127.0.0.1:50000``."""


class _Closed(Exception):  # noqa: N818 - the end of a session, not a defect
    """End this connection; ``reason`` is for the log."""

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


class Session:
    """One client's connection.

    ``run`` returns when the connection is over, however it ended; what the client did not answer
    goes to its next connection.
    """

    def __init__(
        self, stream: trio.abc.Stream, peer: Peer, services: Services, heartbeat_s: float
    ) -> None:
        self._stream = stream
        self._peer = peer
        self._services = services
        self._heartbeat_s = heartbeat_s
        self._receiver = jsonrpc.LineReceiver()
        self._early: deque[jsonrpc.Message] = deque()
        self._caller: Caller | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_wanted = trio.Event()
        self._out_drained = trio.Event()
        self._uncommitted = 0
        self._last_received = trio.current_time()
        self._asked: dict[int, Fetch | TaskId] = {}
        self._next_id = 0
        self._calls = trio.CapacityLimiter(CALLS_MAX)
        self._follow: trio.CancelScope | None = None

    @cached_property
    def _log(self) -> Any:  # noqa: ANN401
        assert self._caller is not None
        return log.bind(
            client=self._caller.name, role=self._caller.role.value, session=self._caller.session
        )

    # -- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            with trio.fail_after(OPEN_SECONDS_MAX):
                opened = await self._open()
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            log.info("session.not_opened", origin=self._peer.origin)
            return
        if not opened:
            return
        assert self._caller is not None
        alarm = self._caller.role is Role.FINANCE
        mailbox = self._services.tasks.attach(self._caller.name)
        if alarm:
            self._services.alarms.clear(AlarmKind.CLIENT_LOST, self._caller.name)
        self._log.info("session.opened", origin=self._peer.origin)
        reason, expected = "the client closed the connection", False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._beat)
                nursery.start_soon(self._deliver, mailbox)
                await self._read(nursery)
        except* _Closed as group:
            end = _first(group)
            reason, expected = str(end), end.expected
        finally:
            self._services.tasks.detach(mailbox)
        self._log.info("session.closed", reason=reason)
        if alarm and not expected and not mailbox.box.present:
            self._services.alarms.raise_alarm(AlarmKind.CLIENT_LOST, self._caller.name, reason)

    async def _open(self) -> bool:
        """Read the first line and answer it; say whether the session is open."""
        while not self._early:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return False
            self._early.extend(self._receiver.receive_data(bytes(data)))
        first = self._early.popleft()
        match first:
            case Request(id=id_, method="session.open", params=raw) if id_ is not None:
                try:
                    self._caller = self._admit(_DECODERS["session.open"].decode(raw or _EMPTY))
                except msgspec.ValidationError as error:
                    line = jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error))
                except ProtocolRefusal as error:
                    line = jsonrpc.refusal(id_, error.code, str(error))
                    log.warning("session.refused", origin=self._peer.origin, reason=str(error))
                else:
                    await self._stream.send_all(jsonrpc.result(id_, self._welcome()))
                    return True
            case Request(id=id_):
                msg = "the first line must be session.open"
                line = jsonrpc.error(id_, jsonrpc.INVALID_REQUEST, msg)
            case Fault():
                line = jsonrpc.error(first.id, first.code, first.message)
            case _:
                msg = "the first line must be session.open"
                line = jsonrpc.error(None, jsonrpc.INVALID_REQUEST, msg)
        await self._stream.send_all(line)
        return False

    def _admit(self, params: OpenParams) -> Caller:
        peer = self._peer
        try:
            name = peer.name or ClientName(parse_name(params.client, "client"))
        except ValueError as error:
            raise ProtocolRefusal("NOT_PERMITTED", str(error)) from error
        if peer.token is not None and not _same(params.token or "", peer.token):
            # The name is checked after the token, so that names can't be guessed without it.
            raise ProtocolRefusal("NOT_PERMITTED", "wrong or missing token")
        role = peer.role if peer.role is not None else peer.names.get(name)
        if role is None:
            msg = f"this connection may not open as {name!r}; check [control.clients]"
            raise ProtocolRefusal("NOT_PERMITTED", msg)
        return Caller(name, role, new_session_id())

    def _welcome(self) -> dict[str, Any]:
        assert self._caller is not None
        return {
            "session": self._caller.session,
            "server": f"fep {self._services.version}",
            "protocol": PROTOCOL_VERSION,
            "role": self._caller.role.value,
            "heartbeat_s": self._heartbeat_s,
            "time": to_text(self._services.clock.now()),
        }

    # -- reading ------------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        messages: list[jsonrpc.Message] = list(self._early)
        self._early.clear()
        while True:
            if messages:
                await self._handle(messages, nursery)
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                msg = "the connection broke"
                raise _Closed(msg) from error
            if not data:
                msg = "the client closed the connection"
                raise _Closed(msg)
            self._last_received = trio.current_time()
            messages = self._receiver.receive_data(bytes(data))

    async def _handle(self, messages: list[jsonrpc.Message], nursery: trio.Nursery) -> None:
        """Act on what arrived together: submissions, answers and acknowledgements in groups."""
        assert self._caller is not None
        submits: list[tuple[Id, Submission]] = []
        bodies: list[tuple[TaskId, Any]] = []
        told: list[TaskId] = []
        fatal: Fault | None = None
        closing: Id | None = None
        for message in messages:
            match message:
                case Request(id=id_, method="task.submit", params=raw) if id_ is not None:
                    submission = self._submission(id_, raw)
                    if submission is not None:
                        submits.append((id_, submission))
                case Request(id=id_, method="session.close") if id_ is not None:
                    closing = id_
                case Request():
                    await self._call(message, nursery)
                case Response():
                    self._answered(message, bodies, told)
                case Fault(fatal=True):
                    fatal = message
                case Fault():
                    self._send(jsonrpc.error(message.id, message.code, message.message))
        if told:
            self._services.tasks.acknowledge(self._caller.name, told)
        if bodies:
            await self._services.tasks.fetched(self._caller.name, bodies)
        if submits:
            self._submit(submits)
        if closing is not None:
            await self._flush(jsonrpc.result(closing, {}))
            msg = "session.close"
            raise _Closed(msg, expected=True)
        if fatal is not None:
            await self._flush(jsonrpc.error(fatal.id, fatal.code, fatal.message))
            raise _Closed(fatal.message)

    def _submission(self, id_: Id, raw: msgspec.Raw | None) -> Submission | None:
        """Parse a submission, or answer what is wrong with it."""
        assert self._caller is not None
        if self._caller.role not in SUBMITTING:
            self._send(self._not_permitted(id_, "task.submit"))
            return None
        try:
            params: SubmitParams = _DECODERS["task.submit"].decode(raw or _EMPTY)
            task_id, bank = parse_task_id(params.task_id), BankName(params.bank)
            body = None
            if params.body is not None and bank in self._services.tasks.lanes:
                if params.body.kind != params.kind.value:
                    msg = f"body.kind is {params.body.kind!r} but kind is {params.kind.value!r}"
                    raise BodyError(msg)
                value = jsonrpc.value(params.body.params)
                body = self._services.tasks.parse(bank, params.kind, value)
        except (msgspec.ValidationError, ValueError, BodyError) as error:
            self._send(jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error)))
            return None
        return Submission(task_id, bank, params.kind, params.priority, params.expires_s, body)

    def _submit(self, submits: list[tuple[Id, Submission]]) -> None:
        assert self._caller is not None

        def done(answers: list[Any]) -> None:
            self._uncommitted -= 1
            lines = []
            for (id_, _), answer in zip(submits, answers, strict=True):
                if isinstance(answer, Admitted):
                    value = {
                        "task_id": answer.task_id,
                        "state": answer.state.value,
                        "known": answer.known,
                    }
                    lines.append(jsonrpc.result(id_, value))
                else:
                    lines.append(jsonrpc.refusal(id_, answer.code, answer.message))
            self._send(b"".join(lines))

        self._uncommitted += 1
        self._services.tasks.submit(self._caller.name, [one for _, one in submits], done)

    def _answered(
        self, message: Response, bodies: list[tuple[TaskId, Any]], told: list[TaskId]
    ) -> None:
        """Sort an answer to one of our requests; one we never made is noted and left."""
        assert self._caller is not None
        asked = self._asked.pop(message.id, None) if isinstance(message.id, int) else None
        if asked is None:
            self._log.warning("session.unexpected_response", id=message.id)
        elif isinstance(asked, Fetch):
            if message.error is None:
                bodies.append((asked.task_id, jsonrpc.value(message.result)))
            else:
                self._services.tasks.fetch_refused(
                    self._caller.name, asked.task_id, message.error.message
                )
        elif message.error is None:
            told.append(asked)
        else:
            # Not acknowledged: it is told again on the next connection.
            self._log.warning("session.result_refused", task_id=asked, reason=message.error.message)

    async def _call(self, request: Request, nursery: trio.Nursery) -> None:
        assert self._caller is not None
        row = METHODS.get(request.method)
        if request.id is None:
            if request.method != "session.heartbeat":
                self._log.warning("session.unknown_notification", method=request.method)
            return
        if row is None:
            msg = f"no method {request.method!r}; see docs/protocol.md"
            self._send(jsonrpc.error(request.id, jsonrpc.METHOD_NOT_FOUND, msg))
            return
        if self._caller.role not in row.roles:
            self._send(self._not_permitted(request.id, request.method))
            return
        try:
            params = _DECODERS[request.method].decode(request.params or _EMPTY)
        except msgspec.ValidationError as error:
            self._send(jsonrpc.error(request.id, jsonrpc.INVALID_PARAMS, str(error)))
            return
        match params:
            case HeartbeatParams():
                self._send(jsonrpc.result(request.id, {}))
            case OpenParams():
                msg = "the session is open already"
                self._send(jsonrpc.refusal(request.id, "BAD_STATE", msg))
            case FollowParams():
                self._start_following(request.id, params, nursery)
            case _ if request.method == "events.unfollow":
                self._stop_following()
                self._send(jsonrpc.result(request.id, {}))
            case _:
                # Waiting here, not in the task, keeps the excess in the client's socket.
                await self._calls.acquire_on_behalf_of(id(request))
                nursery.start_soon(self._serve, request, params)

    async def _serve(self, request: Request, params: msgspec.Struct) -> None:
        assert self._caller is not None
        assert request.id is not None
        handle = METHODS[request.method].handle
        assert handle is not None
        try:
            value = await handle(self._services, self._caller, params)
        except KeySlotError as error:
            line = jsonrpc.refusal(request.id, "KEY_UNAVAILABLE", str(error))
        except FepError as error:
            line = jsonrpc.refusal(request.id, error.code, str(error))
        else:
            line = jsonrpc.result(request.id, value)
        finally:
            self._calls.release_on_behalf_of(id(request))
        self._send(line)

    def _not_permitted(self, id_: Id, method: str) -> bytes:
        assert self._caller is not None
        needed = ", ".join(sorted(METHODS[method].roles))
        msg = f"{method} needs one of the roles {needed}; this session is {self._caller.role.value}"
        return jsonrpc.refusal(id_, "NOT_PERMITTED", msg)

    # -- events -------------------------------------------------------------------------------

    def _start_following(self, id_: Id, params: FollowParams, nursery: trio.Nursery) -> None:
        self._stop_following()
        self._follow = trio.CancelScope()
        self._send(jsonrpc.result(id_, {}))
        nursery.start_soon(self._follow_events, self._follow, params.prefix)

    def _stop_following(self) -> None:
        if self._follow is not None:
            self._follow.cancel()
            self._follow = None

    async def _follow_events(self, scope: trio.CancelScope, prefix: str) -> None:
        followers = self._services.followers
        events = followers.subscribe()
        try:
            with scope:
                async for event in events:
                    if str(event.get("event", "")).startswith(prefix):
                        self._send(jsonrpc.notification("event", event))
        finally:
            followers.unsubscribe(events)

    # -- asking and telling -------------------------------------------------------------------

    async def _deliver(self, mailbox: Mailbox) -> None:
        while True:
            messages = await self._services.tasks.take(mailbox)
            lines = []
            for message in messages:
                self._next_id += 1
                if isinstance(message, Fetch):
                    self._asked[self._next_id] = message
                    params = {"task_id": message.task_id, "attempt": message.attempt}
                    lines.append(jsonrpc.request(self._next_id, "task.fetch", params))
                else:
                    self._asked[self._next_id] = message.task_id
                    lines.append(
                        jsonrpc.request(
                            self._next_id,
                            "task.result",
                            {
                                "task_id": message.task_id,
                                "state": message.state.value,
                                "result": message.result,
                                "bank_code": message.bank_code,
                                "bank_message": message.bank_message,
                                "at": message.at,
                            },
                        )
                    )
            self._send(b"".join(lines))

    async def _beat(self) -> None:
        seq = 0
        while True:
            await trio.sleep(self._heartbeat_s)
            seq += 1
            now = to_text(self._services.clock.now())
            self._send(jsonrpc.notification("session.heartbeat", {"seq": seq, "time": now}))
            silent = trio.current_time() - self._last_received
            if silent > SILENCE_HEARTBEATS * self._heartbeat_s:
                msg = f"nothing heard for {silent:.0f} s, {SILENCE_HEARTBEATS} heartbeats"
                raise _Closed(msg)

    # -- writing ------------------------------------------------------------------------------

    def _send(self, lines: bytes) -> None:
        """Queue lines; never waits. A client that does not read is cut off by the writer."""
        self._out.append(lines)
        self._out_bytes += len(lines)
        self._out_wanted.set()

    async def _write(self) -> None:
        while True:
            await self._out_wanted.wait()
            self._out_wanted = trio.Event()
            if self._out_bytes > OUTBOX_BYTES_MAX:
                msg = f"slow client: {self._out_bytes} bytes wait for it"
                raise _Closed(msg)
            data, self._out, self._out_bytes = b"".join(self._out), [], 0
            try:
                with trio.fail_after(WRITE_SECONDS_MAX):
                    await self._stream.send_all(data)
            except trio.TooSlowError as error:
                msg = f"slow client: it read nothing for {WRITE_SECONDS_MAX:g} s"
                raise _Closed(msg) from error
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                msg = "the connection broke"
                raise _Closed(msg) from error
            if not self._out and not self._uncommitted:
                self._out_drained.set()

    async def _flush(self, line: bytes) -> None:
        """Send the session's last line after what is queued or being committed, if it is taken."""
        self._out_drained = trio.Event()
        self._send(line)
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            await self._out_drained.wait()


def _first(group: BaseExceptionGroup[_Closed]) -> _Closed:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, _Closed)
    return found


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
