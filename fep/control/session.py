"""One connection of the control protocol: reads lines, answers them, asks and tells the client.

Lines that arrived together are admitted together, and their replies leave together from the
commit's callback; nothing is done per line that can be done per batch.
"""

from __future__ import annotations

import hmac
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Final, assert_never

import attrs
import msgspec
import structlog
import trio

from fep.alarms.state import AlarmKind
from fep.control.asked import Asked
from fep.control.commands import (
    METHODS,
    PROTOCOL_VERSION,
    SUBMITTING,
    Caller,
    FollowParams,
    HeartbeatParams,
    OpenParams,
    ProofParams,
    ProtocolRefusal,
    Role,
    Services,
    SubmitParams,
    not_permitted,
    perform,
)
from fep.control.config import Limits
from fep.control.poller import Poller
from fep.control.postman import Postman
from fep.control.proof import Gate, Verdict
from fep.control.share import UNCOMMITTED_TASKS_MAX, Share, Shares
from fep.domain.clock import to_text
from fep.domain.errors import BodyError, FepError, KeySlotError
from fep.domain.ids import BankName, ClientName, TaskId, new_session_id, parse_name, parse_task_id
from fep.domain.order import Body
from fep.tasks.mailbox import Mailbox
from fep.tasks.state import State
from fep.tasks.task import Admitted, Answer, Delivery, Fetch, Message, Refused, Submission
from fep.wire import jsonrpc, proof
from fep.wire.jsonrpc import Fault, Id, Request, Response
from fep.wire.proof import Key

log = structlog.get_logger()

RECEIVE_BYTES: Final = 65_536
OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
"""While more than this waits for a client, nothing more is read from it, asked of it or told it."""
WRITE_BYTES: Final = 256 * 1024
UNCOMMITTED_MAX: Final = 64
"""Groups of one connection's submissions that wait for the disk; more wait in the socket."""
OPEN_SECONDS_MAX: Final = 10.0
LINE_SECONDS_MAX: Final = 30.0
"""A line that has begun is to end by then."""
SESSIONS_AGAIN_SECONDS: Final = 5.0
"""After so long a client that has too many sessions may try again."""
WRITE_SECONDS_MAX: Final = 30.0
"""A client that takes not even ``WRITE_BYTES`` in this time is cut off."""
RESULT_AGAIN_SECONDS: Final = 30.0
"""A result that the client refused is told again after this time, or on its next connection."""
CLOSE_SECONDS_MAX: Final = 2.0
SILENCE_HEARTBEATS: Final = 3
OWN_PREFIX: Final = "fep:"
"""Of the names of parts of the daemon that are clients of the queue; nobody may take their mail."""
BANK_CODE_CHARS_MAX, BANK_MESSAGE_CHARS_MAX = 64, 2000

_DECODERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    name: msgspec.json.Decoder(row.params) for name, row in METHODS.items()
}
_SubmitLine: Any
_SubmitLine, _SHORTCUT = jsonrpc.shortcut("task.submit", SubmitParams)


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
    lock: Lock | None = None
    """Opened by who proves that it holds a key; None: by nothing of the kind."""


@attrs.frozen
class Lock:
    """The keys of a listener at this moment, and which proofs were used."""

    keys: Mapping[str, Key]
    gate: Gate


class _Closed(Exception):  # noqa: N818 - the end of a session, not a defect
    """End this connection; ``reason`` is for the log."""

    def __init__(self, reason: str, *, expected: bool = False, answered: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected
        self.answered = answered
        """A last line was sent that says why."""


@attrs.frozen
class _Nurseries:
    """Where the work on requests runs."""

    talk: trio.Nursery
    """Ends with the connection."""
    acts: trio.Nursery
    """Ends when the work is done."""


class _Batch(msgspec.Struct):
    """What the lines that arrived together ask for."""

    ids: list[Id] = []
    """Of the requests that ``submits`` are, in their order."""
    submits: list[Submission] = []
    bodies: list[tuple[TaskId, Any]] = []
    told: list[Delivery] = []
    refused: list[Delivery] = []
    last: bytes = b""
    end: _Closed | None = None

    def close(self, last: bytes, reason: str, *, expected: bool) -> None:
        """End the session after this batch, with a last line; the first reason stands."""
        if self.end is None:
            self.last, self.end = last, _Closed(reason, expected=expected, answered=True)


class _Outbox:
    """What waits to be written to one client; bounded, since who fills it waits for room.

    Args:
        now: sends what it can at once, without waiting; None where only the writer can (TLS).
    """

    def __init__(self, now: Callable[[bytes], int] | None) -> None:
        self._now = now
        self._lines: list[bytes] = []
        self._bytes = 0
        self._wanted = trio.Event()
        self._written = trio.Event()

    def put(self, lines: bytes) -> None:
        """Send lines, or queue them; never waits."""
        if self._now is not None and not self._bytes:
            # Nobody waits before them: a reply costs no turn of the scheduler.
            sent = self._now(lines)
            if sent == len(lines):
                return
            lines = lines[sent:]
        self._lines.append(lines)
        self._bytes += len(lines)
        self._wanted.set()

    async def room(self) -> None:
        """Wait until no more than ``OUTBOX_BYTES_MAX`` waits."""
        while self._bytes > OUTBOX_BYTES_MAX:
            await self._written.wait()

    @property
    def has_room(self) -> bool:
        """Whether ``room`` would not wait."""
        return self._bytes <= OUTBOX_BYTES_MAX

    async def empty(self) -> None:
        """Wait until everything is written."""
        while self._bytes:
            await self._written.wait()

    async def write(self, stream: trio.abc.Stream) -> None:
        """Write until cancelled.

        Raises:
            _Closed: the connection broke, or the client does not read.
        """
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            data, self._lines = memoryview(b"".join(self._lines)), []
            for place in range(0, len(data), WRITE_BYTES):
                part = data[place : place + WRITE_BYTES]
                try:
                    with trio.fail_after(WRITE_SECONDS_MAX):
                        await stream.send_all(part)
                except trio.TooSlowError as error:
                    msg = f"slow client: {self._bytes} bytes wait, {WRITE_SECONDS_MAX:g} s for few"
                    raise _Closed(msg) from error
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    msg = "the connection broke"
                    raise _Closed(msg) from error
                self._bytes -= len(part)
                self._written.set()
                self._written = trio.Event()


class Session:
    """One client's connection: ``open`` it, then ``run`` it.

    ``run`` returns when the connection is over, however it ended; what the client did not answer
    goes to its next connection, and what it asked to be done is done.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        peer: Peer,
        services: Services,
        heartbeat_s: float,
        poller: Poller | None = None,
        postman: Postman | None = None,
        shares: Shares | None = None,
    ) -> None:
        self._shares = shares
        self._share = Share(Limits(), None)
        """What the client may use up; its own once it is known who it is."""
        self._joined = False
        self._proof: str | None = None
        """What proves to the client that we hold its key."""
        self._line_at = math.inf
        """When the line began that has not ended."""
        self._stream = stream
        self._poller = poller if isinstance(stream, trio.SocketStream) else None
        """Reads a plain socket; None: the stream is read by its own means."""
        self._postman = postman
        self._defect: Exception | None = None
        self._peer = peer
        self._services = services
        self._heartbeat_s = heartbeat_s
        self._receiver = jsonrpc.LineReceiver()
        self._early: deque[jsonrpc.Message] = deque()
        self._caller: Caller | None = None
        self._mailbox: Mailbox | None = None
        self._outbox = _Outbox(_sender(stream))
        self._uncommitted = 0
        self._unstored = 0
        """Groups of bodies that wait for the disk."""
        self._waiting = trio.lowlevel.ParkingLot()
        """Who waits for one of these two to fall."""
        self._heard_at = trio.current_time()
        self._listening = False
        """False while what was received is acted on: then the client can't be heard."""
        self._asked: Asked | None = None
        """None: nothing is asked of it or told it."""
        self._left: deque[Message] = deque()
        """What was drawn and waits for room."""
        self._unread: list[TaskId] = []
        """Whose results must be read from the store, or are being read."""
        self._is_left = trio.Event()
        self._follow: trio.CancelScope | None = None
        self._noted: set[str] = set()

    @cached_property
    def _log(self) -> Any:  # noqa: ANN401
        assert self._caller is not None
        return log.bind(
            client=self._caller.name, role=self._caller.role.value, session=self._caller.session
        )

    # -- life ---------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Read the first line and answer it; say whether the session is open."""
        try:
            with trio.fail_after(OPEN_SECONDS_MAX):
                opened = await self._open()
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            log.info("session.not_opened", origin=self._peer.origin)
            return False
        if not opened:
            await self._linger()
        return opened

    def leave(self) -> None:
        """Give back what the client's share was asked for; the second time nothing happens."""
        if self._joined:
            assert self._shares is not None
            assert self._caller is not None
            self._joined = False
            self._shares.leave(self._caller.name, self._share)

    async def run(self) -> None:
        """Serve an open session until either side ends it."""
        assert self._caller is not None
        watched = self._caller.role is Role.FINANCE
        mailbox: Mailbox | None = None
        if self._caller.role in SUBMITTING:
            mailbox = self._services.tasks.attach(self._caller.name, self._note_mail)
            self._asked = Asked(mailbox.box)
        self._mailbox = mailbox
        if watched:
            self._services.alarms.clear(AlarmKind.CLIENT_LOST, self._caller.name)
        self._services.sessions[self._caller.role] += 1
        self._log.info("session.opened", origin=self._peer.origin)
        # The outer nursery is for what must be done to its end although its client hung up.
        async with trio.open_nursery() as acts:
            try:
                end = await self._talk(acts, mailbox)
            finally:
                if mailbox is not None:
                    self._services.tasks.detach(mailbox)
                self._services.sessions[self._caller.role] -= 1
            self._log.info("session.closed", reason=str(end))
            is_gone = watched and mailbox is not None and not mailbox.box.present
            if is_gone and not end.expected:
                self._services.alarms.raise_alarm(
                    AlarmKind.CLIENT_LOST, self._caller.name, str(end)
                )
            if end.answered:
                await self._linger()
            await trio.aclose_forcefully(self._stream)

    async def _talk(self, acts: trio.Nursery, mailbox: Mailbox | None) -> _Closed:
        """Read and write until the connection is over; returns why."""
        end = _Closed("the client closed the connection")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.write, self._stream)
                nursery.start_soon(self._beat)
                if mailbox is not None:
                    nursery.start_soon(self._deliver_rest, mailbox)
                await self._read(_Nurseries(nursery, acts))
        except* _Closed as group:
            end = _first(group)
        return end

    async def _open(self) -> bool:
        while not self._early:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return False
            self._early.extend(self._receiver.receive_data(bytes(data)))
        first = self._early.popleft()
        match first:
            case Request(id=id_, method="session.open", params=raw) if id_ is not None:
                try:
                    params = jsonrpc.decoded(_DECODERS["session.open"], raw)
                    self._caller = self._admit(params)
                except msgspec.ValidationError as error:
                    line = jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error))
                    log.warning("session.refused", origin=self._peer.origin, reason=str(error))
                except ProtocolRefusal as error:
                    line = jsonrpc.refusal(id_, error.code, str(error), error.retry_after_s)
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
        if name.startswith(OWN_PREFIX):
            msg = f"names that begin with {OWN_PREFIX} are the daemon's own; choose another"
            raise ProtocolRefusal("NOT_PERMITTED", msg)
        if peer.token is not None and not _same(params.token or "", peer.token):
            # The name is checked after the token, so that names can't be guessed without it.
            raise ProtocolRefusal("NOT_PERMITTED", "wrong or missing token")
        opening = None if peer.lock is None else self._proved(peer.lock, name, params.proof)
        role = peer.role if peer.role is not None else peer.names.get(name)
        if role is None:
            # On the Unix socket the name proves nothing: there is no list of names to look at.
            where = "[control.clients]" if peer.names or peer.token else "[control.users]"
            msg = f"this connection may not open as {name!r}; check {where}"
            raise ProtocolRefusal("NOT_PERMITTED", msg)
        if self._services.closed is not None:
            # Said to who may know it, and before anything is taken.
            raise ProtocolRefusal("STORE_AWAY", self._services.closed())
        self._join(name)
        session = new_session_id()
        if opening is not None:
            secret, mac = opening
            self._proof = proof.welcome_mac(secret, mac, session)
        return Caller(name, role, session, peer.origin, self._share.reads)

    def _proved(self, lock: Lock, name: ClientName, given: ProofParams | None) -> tuple[bytes, str]:
        """Return the key that the client proved to hold, and the code that proved it."""
        if given is None:
            raise ProtocolRefusal("NOT_PERMITTED", "this listener takes a proof of a key only")
        now_ms = int(self._services.clock.now().timestamp() * 1000)
        verdict = lock.gate.judge(
            lock.keys, name, given.key_id, given.time, given.nonce, given.mac, now_ms
        )
        match verdict:
            case Verdict.OK:
                return lock.keys[given.key_id].secret, given.mac
            case Verdict.BAD_MAC:
                # The same words for a key that is not there: no id can be guessed.
                raise ProtocolRefusal("NOT_PERMITTED", "the proof is not right: BAD_MAC")
            case Verdict.STALE:
                msg = f"the proof's time differs from the daemon's, {now_ms}; set the clocks"
                raise ProtocolRefusal("STALE", msg)
            case Verdict.REPLAY:
                raise ProtocolRefusal("REPLAY", "this proof was used before; a new one is needed")
            case _:
                assert_never(verdict)

    def _join(self, name: ClientName) -> None:
        if self._shares is None:
            return
        share = self._shares.join(name)
        if share is None:
            msg = f"{name} has as many sessions as it may have; close one"
            raise ProtocolRefusal("LIMITED", msg, SESSIONS_AGAIN_SECONDS)
        self._share, self._joined = share, True

    def _welcome(self) -> dict[str, Any]:
        assert self._caller is not None
        return ({} if self._proof is None else {"proof": self._proof}) | {
            "session": self._caller.session,
            "server": f"fep {self._services.version}",
            "protocol": PROTOCOL_VERSION,
            "role": self._caller.role.value,
            "heartbeat_s": self._heartbeat_s,
            "time": to_text(self._services.clock.now()),
        }

    # -- reading ------------------------------------------------------------------------------

    async def _read(self, nurseries: _Nurseries) -> None:
        messages: list[Any] = list(self._early)
        self._early.clear()
        self._receiver.shortcut = _SHORTCUT
        with self._reading() as more:
            deaf_at = trio.current_time()
            while True:
                if messages:
                    await self._share.room()
                    await self._handle(messages, nurseries)
                await self._outbox.room()
                while self._uncommitted >= UNCOMMITTED_MAX:
                    await self._waiting.park()
                await self._paced()
                # What came meanwhile is in the socket: the client is heard soon, or is silent.
                self._heard_at, self._listening = trio.current_time(), True
                # Nor does a line that has begun come further while nobody reads it.
                self._line_at += self._heard_at - deaf_at
                try:
                    messages = await more()
                except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                    msg = "the connection broke"
                    raise _Closed(msg) from error
                self._listening, deaf_at = False, trio.current_time()

    @contextmanager
    def _reading(self) -> Iterator[Callable[[], Awaitable[list[Any]]]]:
        """Yield what returns the next messages that the session's task must act on."""
        stream, poller = self._stream, self._poller
        if poller is None:

            async def more() -> list[Any]:
                data = bytes(await stream.receive_some(RECEIVE_BYTES))
                async with self._share.secured:
                    await trio.lowlevel.checkpoint()
                return self._messages(data)

            yield more
            return
        assert isinstance(stream, trio.SocketStream)
        fileno = stream.socket.fileno()
        with poller.reading(fileno, self._act_at_once, self._share.turn) as inlet:
            yield inlet.receive

    def _messages(self, data: bytes) -> list[Any]:
        if not data:
            msg = "the client closed the connection"
            raise _Closed(msg)
        receiver = self._receiver
        messages = receiver.receive_data(data)
        if not receiver.is_amid_line:
            self._line_at = math.inf
        elif messages or self._line_at == math.inf:
            self._line_at = trio.current_time()
        if (pace := self._share.pace) is not None:
            pace.spend(len(messages), len(data), trio.current_time())
        return messages

    async def _paced(self) -> None:
        """Wait while the client has sent more than its share; the rest waits in its socket."""
        if (pace := self._share.pace) is None:
            return
        while (wait := pace.wait(trio.current_time())) > 0:
            if self._is_new("held back"):
                self._log.warning("session.held_back", wait_seconds=round(wait, 3))
            await trio.sleep(wait)

    def _act_at_once(self, data: bytes) -> list[Any] | None:
        """Act on what came where nothing of it makes anybody wait; else return it (poller)."""
        messages = self._messages(data)
        pace = self._share.pace
        if (
            self._uncommitted + 1 < UNCOMMITTED_MAX
            and self._outbox.has_room
            and self._share.uncommitted < UNCOMMITTED_TASKS_MAX
            and all(map(_is_at_once, messages))
            and (pace is None or not pace.wait(trio.current_time()))
        ):
            self._heard_at = trio.current_time()
            batch = _Batch()
            for one in messages:
                self._sort(one, batch)
            self._finish(batch)
            return None
        return messages

    async def _handle(self, messages: list[Any], nurseries: _Nurseries) -> None:
        """Act on what arrived together: submissions, answers and acknowledgements in groups."""
        batch = _Batch()
        for message in messages:
            match message:
                case Request(id=id_, method="session.close") if id_ is not None:
                    if self._params(id_, message) is not None:
                        batch.close(jsonrpc.result(id_, {}), "session.close", expected=True)
                case Request(id=id_, method="task.submit") if id_ is not None:
                    if self._may_submit(id_) and (params := self._params(id_, message)):
                        self._add_submission(id_, params, batch)
                case Request():
                    # It finds the task whose body came before it.
                    self._take_bodies(batch)
                    await self._call(message, nurseries)
                case Fault(fatal=True):
                    line = jsonrpc.error(message.id, message.code, message.message)
                    batch.close(line, message.message, expected=False)
                case Fault():
                    self._send(jsonrpc.error(message.id, message.code, message.message))
                case _:
                    self._sort(message, batch)
        self._finish(batch)
        for refused in batch.refused:
            nurseries.talk.start_soon(self._tell_again, refused)
        if batch.end is not None:
            await self._flush(batch.last)
            raise batch.end

    def _sort(self, message: Any, batch: _Batch) -> None:  # noqa: ANN401 - of _SubmitLine, or a Response
        """Put a submission or an answer to the others that came with it."""
        if type(message) is _SubmitLine:
            if self._may_submit(message.id):
                self._add_submission(message.id, message.params, batch)
        else:
            self._answered(message, batch)

    def _finish(self, batch: _Batch) -> None:
        """Act on what came together, without waiting."""
        assert self._caller is not None
        if batch.told:
            self._acknowledge(batch.told)
        self._take_bodies(batch)
        if batch.submits:
            self._submit(batch)

    def _take_bodies(self, batch: _Batch) -> None:
        assert self._caller is not None
        if batch.bodies:
            bodies, batch.bodies = batch.bodies, []
            self._unstored += 1
            self._services.tasks.take_bodies(self._caller.name, bodies, self._stored)

    def _stored(self) -> None:
        self._unstored -= 1
        self._waiting.unpark_all()

    def _params(self, id_: Id, request: Request) -> Any:  # noqa: ANN401 - the method's struct
        """Return the parameters of a request, or None when they are wrong and that is answered."""
        try:
            return jsonrpc.decoded(_DECODERS[request.method], request.params)
        except msgspec.ValidationError as error:
            self._send(jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error)))
            return None

    def _may_submit(self, id_: Id) -> bool:
        """Say whether this session may submit, or answer that it may not."""
        assert self._caller is not None
        if self._caller.role in SUBMITTING:
            return True
        self._send(self._not_permitted(id_, "task.submit"))
        return False

    def _add_submission(self, id_: Id, params: SubmitParams, batch: _Batch) -> None:
        """Put a submission to the others that came with it, or answer what is wrong with it."""
        try:
            task_id = parse_task_id(params.task_id)
            body = None if params.body is None else self._inline_body(params)
        except (msgspec.ValidationError, ValueError, BodyError) as error:
            self._send(jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error)))
            return
        bank = BankName(params.bank)
        one = Submission(task_id, bank, params.kind, params.priority, params.expires_s, body)
        batch.ids.append(id_)
        batch.submits.append(one)

    def _inline_body(self, params: SubmitParams) -> Body | None:
        bank = BankName(params.bank)
        can = self._services.tasks.capabilities(bank)
        assert params.body is not None
        if can is None or params.kind not in can:
            # Admission refuses what the bank can't carry, with a code that says so.
            return None
        if params.body.kind != params.kind.value:
            msg = f"body.kind is {params.body.kind!r} but kind is {params.kind.value!r}"
            raise BodyError(msg)
        return self._services.tasks.parse(bank, params.kind, jsonrpc.value(params.body.params))

    def _submit(self, batch: _Batch) -> None:
        assert self._caller is not None
        ids, share = batch.ids, self._share

        def done(answers: Sequence[Answer]) -> None:
            share.stored(len(ids))
            self._uncommitted -= 1
            self._waiting.unpark_all()
            self._send(b"".join(map(_answer_line, ids, answers)))

        self._uncommitted += 1
        share.uncommitted += len(ids)
        self._services.tasks.submit(self._caller.name, batch.submits, done, share.limits.open_max)

    def _answered(self, message: Response, batch: _Batch) -> None:
        """Sort an answer to one of our requests; one we don't know (any more) is noted and left."""
        assert self._caller is not None
        asked = None if self._asked is None else self._asked.answered(message.id)
        if asked is None:
            if self._is_new("unexpected response"):
                self._log.warning("session.unexpected_response", id=message.id)
        elif isinstance(asked, Fetch):
            if message.error is None:
                batch.bodies.append((asked.task_id, _value(message)))
            else:
                self._services.tasks.fetch_refused(
                    self._caller.name, asked.task_id, message.error.message
                )
        elif message.error is None:
            batch.told.append(asked)
        else:
            reason = message.error.message
            self._log.warning("session.result_refused", task_id=asked.task_id, reason=reason)
            batch.refused.append(asked)

    def _acknowledge(self, told: list[Delivery]) -> None:
        """Note that the client has these; of a task that was told again since, the last counts."""
        assert self._caller is not None
        ids = [one.task_id for one in told if self._is_current(one)]
        self._services.tasks.acknowledge(self._caller.name, ids)

    def _is_current(self, told: Delivery) -> bool:
        assert self._mailbox is not None
        return self._mailbox.box.told.get(told.task_id) is told

    async def _tell_again(self, refused: Delivery) -> None:
        assert self._mailbox is not None
        await trio.sleep(RESULT_AGAIN_SECONDS)
        if self._is_current(refused):
            self._mailbox.box.tell(refused)

    async def _call(self, request: Request, nurseries: _Nurseries) -> None:
        assert self._caller is not None
        row = METHODS.get(request.method)
        if request.id is None:
            if request.method != "session.heartbeat" and self._is_new("unknown notification"):
                self._log.warning("session.unknown_notification", method=request.method)
            return
        if row is None:
            msg = f"no method {request.method!r}; see docs/protocol.md"
            self._send(jsonrpc.error(request.id, jsonrpc.METHOD_NOT_FOUND, msg))
            return
        if self._caller.role not in row.roles:
            self._send(self._not_permitted(request.id, request.method))
            return
        params = self._params(request.id, request)
        match params:
            case None:
                return
            case HeartbeatParams():
                self._send(jsonrpc.result(request.id, {}))
            case OpenParams():
                msg = "the session is open already"
                self._send(jsonrpc.refusal(request.id, "BAD_STATE", msg))
            case FollowParams():
                self._start_following(request.id, params, nurseries.talk)
            case _ if request.method == "events.unfollow":
                self._stop_following()
                self._send(jsonrpc.result(request.id, {}))
            case _:
                while self._unstored:
                    # A client may cancel the task whose body it has just given.
                    await self._waiting.park()
                # Waiting here, not in the task, keeps the excess in the client's socket.
                await self._share.calls.acquire_on_behalf_of(id(request))
                nursery = nurseries.acts if row.acts else nurseries.talk
                nursery.start_soon(self._serve, request, params)

    async def _serve(self, request: Request, params: msgspec.Struct) -> None:
        assert self._caller is not None
        assert request.id is not None
        try:
            if not METHODS[request.method].acts:
                await self._outbox.room()
            value = await perform(self._services, self._caller, request.method, params)
        except KeySlotError as error:
            line = jsonrpc.refusal(request.id, "KEY_UNAVAILABLE", str(error))
        except FepError as error:
            line = jsonrpc.refusal(request.id, error.code, str(error))
        else:
            line = _fitting(request.id, value)
        finally:
            self._share.calls.release_on_behalf_of(id(request))
        self._send(line)

    def _not_permitted(self, id_: Id, method: str) -> bytes:
        assert self._caller is not None
        if self._is_new(f"denied {method}"):
            self._log.warning("session.denied", method=method)
        return jsonrpc.refusal(id_, "NOT_PERMITTED", not_permitted(self._caller.role, method))

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
                    name = str(event.get("event", ""))
                    # How many were lost is told whatever is followed.
                    if name.startswith(prefix) or name == "events.dropped":
                        line = jsonrpc.notification("event", event)
                        if len(line) <= jsonrpc.LINE_BYTES_MAX:
                            self._send(line)
                        # Who does not read loses records, which are counted, and not its session.
                        await self._outbox.room()
        finally:
            followers.unsubscribe(events)

    # -- asking and telling -------------------------------------------------------------------

    def _note_mail(self) -> None:
        if self._postman is None:
            self._is_left.set()
        else:
            self._postman.note(self.deliver)

    def deliver(self) -> None:
        """Ask and tell what there is, as far as nobody must wait for that (postman)."""
        if self._mailbox is None:
            return  # it is being opened
        if self._left or self._unread or not self._outbox.has_room:
            self._is_left.set()
            return
        try:
            messages, unread = self._mailbox.draw()
            left = iter(messages)
            if messages:
                self._send(self._lines_of(left))
        except Exception as error:  # noqa: BLE001 - belongs to this connection, whose task raises it
            self._defect = error
            self._is_left.set()
            return
        self._left, self._unread = deque(left), unread
        if self._left or self._unread:
            self._is_left.set()

    async def _deliver_rest(self, mailbox: Mailbox) -> None:
        """Ask and tell what must be read from the store first, or had no room."""
        while True:
            await self._is_left.wait()
            await self._outbox.room()
            if self._defect is not None:
                raise self._defect
            if not (self._left or self._unread):
                self._is_left = trio.Event()
                self.deliver()
                continue
            if self._unread:
                async with self._share.reads:
                    found = await self._services.tasks.read_results(mailbox, self._unread)
                self._left.extend(found)
                self._unread = []
            left = iter(self._left)
            self._send(self._lines_of(left))
            self._left = deque(left)

    def _lines_of(self, messages: Iterator[Message]) -> bytes:
        """Return the lines of the next messages, about ``WRITE_BYTES`` of them."""
        lines, size = [], 0
        for message in messages:
            lines.append(self._line_of(message))
            size += len(lines[-1])
            if size >= WRITE_BYTES:
                break
        return b"".join(lines)

    def _line_of(self, message: Message) -> bytes:
        """Return the request that asks or tells, whose answer is expected from now on."""
        assert self._asked is not None
        id_ = self._asked.put(message)
        if isinstance(message, Fetch):
            params = {"task_id": message.task_id, "attempt": message.attempt}
            return jsonrpc.request(id_, "task.fetch", params)
        return _result_line(id_, message)

    async def _beat(self) -> None:
        """Send our heartbeats, and end the session when the client's have not come."""
        silence_max = SILENCE_HEARTBEATS * self._heartbeat_s
        seq, due = 0, trio.current_time() + self._heartbeat_s
        while True:
            ends = math.inf
            if self._listening:
                ends = min(self._heard_at + silence_max, self._line_at + LINE_SECONDS_MAX)
            # A line that begins meanwhile is not missed either.
            await trio.sleep_until(min(due, ends, trio.current_time() + LINE_SECONDS_MAX))
            now = trio.current_time()
            if self._listening and now - self._line_at >= LINE_SECONDS_MAX:
                msg = f"a line did not end within {LINE_SECONDS_MAX:g} s"
                raise _Closed(msg)
            if self._listening and now - self._heard_at >= silence_max:
                msg = f"nothing heard for {silence_max:g} s, {SILENCE_HEARTBEATS} heartbeats"
                raise _Closed(msg)
            if now >= due:
                seq, due = seq + 1, now + self._heartbeat_s
                params = {"seq": seq, "time": to_text(self._services.clock.now())}
                self._send(jsonrpc.notification("session.heartbeat", params))

    # -- writing ------------------------------------------------------------------------------

    def _send(self, lines: bytes) -> None:
        """Queue lines; never waits. Who makes many of them waits for room in the outbox."""
        self._outbox.put(lines)

    def _is_new(self, fault: str) -> bool:
        """Say whether it is this session's first of its kind: a client may do it without end."""
        known = fault in self._noted
        self._noted.add(fault)
        return not known

    async def _flush(self, line: bytes) -> None:
        """Send the session's last line after what is queued or being committed, if it is taken."""
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            while self._uncommitted or self._unstored:
                await self._waiting.park()
            self._send(line)
            await self._outbox.empty()

    async def _linger(self) -> None:
        """Let the client read the last line: closing over unread bytes resets the connection."""
        stream = self._stream
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if isinstance(stream, trio.SSLStream):
                    # Says the end inside TLS; what the client sends still is of no interest.
                    secured, stream = stream, stream.transport_stream
                    await secured.unwrap()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if isinstance(stream, trio.abc.HalfCloseableStream):
                    await stream.send_eof()
                while await stream.receive_some(RECEIVE_BYTES):
                    pass


def _answer_line(id_: Id, answer: Answer) -> bytes:
    """Return the reply to a submission."""
    if type(answer) is not Admitted:
        assert isinstance(answer, Refused)
        return jsonrpc.refusal(id_, answer.code, answer.message, answer.retry_after_s)
    if type(id_) is int and not answer.known and answer.state is State.QUEUED:
        # Nearly all; nothing in a task's id needs escaping.
        return (
            f'{{"jsonrpc":"2.0","id":{id_},"result":{{"task_id":"{answer.task_id}",'
            '"state":"queued","known":false}}\n'
        ).encode()
    return jsonrpc.result(id_, answer)


def _is_at_once(message: Any) -> bool:  # noqa: ANN401
    """Say whether nobody must wait to act on this message."""
    kind = type(message)
    return kind is _SubmitLine or (kind is Response and message.error is None)


def _value(message: Response) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of an answer; one that can't be read is no body, and fails its task."""
    try:
        return jsonrpc.value(message.result)
    except msgspec.ValidationError:
        return None


def _fitting(id_: Id, value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the line of a result, or of the refusal of one that fits no line."""
    line = jsonrpc.result(id_, value)
    if len(line) <= jsonrpc.LINE_BYTES_MAX:
        return line
    msg = f"the answer has {len(line)} bytes and fits no line; ask for less (a smaller limit)"
    return jsonrpc.error(id_, jsonrpc.INTERNAL_ERROR, msg)


def _result_line(id_: int, told: Delivery) -> bytes:
    """Return a ``task.result``; a result that fits no line is left out, or it would come for ever.

    Nothing that an adapter makes of an answer is so long; this is for what a bank may say.
    """
    params = {
        "task_id": told.task_id,
        "state": told.state.value,
        "result": told.result,
        "bank_code": told.bank_code[:BANK_CODE_CHARS_MAX],
        "bank_message": told.bank_message[:BANK_MESSAGE_CHARS_MAX],
        "at": told.at,
    }
    line = jsonrpc.request(id_, "task.result", params)
    if len(line) <= jsonrpc.LINE_BYTES_MAX:
        return line
    log.error("session.result_too_long", task_id=told.task_id, size=len(line))
    return jsonrpc.request(id_, "task.result", params | {"result": None})


def _sender(stream: trio.abc.Stream) -> Callable[[bytes], int] | None:
    """Return what sends on a plain stream without waiting; it says how much has left."""
    if not isinstance(stream, trio.SocketStream):
        return None
    fileno = stream.socket.fileno

    def send(data: bytes) -> int:
        try:
            # os.write would raise SIGPIPE's error in the same way; the descriptor is non-blocking.
            return os.write(fileno(), data)
        except OSError:
            # Full, or broken: the writer waits, or finds out.
            return 0

    return send


def _first(group: BaseExceptionGroup[_Closed]) -> _Closed:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, _Closed)
    return found


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
