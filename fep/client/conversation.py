"""The client's side of the control protocol, sans-I/O: shared by both clients.

Submissions are kept until they are answered and go out again on a new connection: the same task id
is the same task. Other calls fail with ``DisconnectedError`` when the connection ends under them.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Annotated, Any, Final, Self

import attrs
import msgspec

from fep.domain.errors import FepError
from fep.wire import jsonrpc, proof
from fep.wire.jsonrpc import Fault, Request, Response
from fep.wire.proof import Key

SILENCE_HEARTBEATS: Final = 3
HEARTBEAT_SECONDS_MAX: Final = 86_400.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 10.0
NOT_PROVED: Final = "NOT_PROVED"
"""The other side holds not our key: it only listens where the daemon should."""
RESENT: Final = frozenset({"task.submit"})
PERMANENT: Final = frozenset(
    {
        "NOT_PERMITTED",
        str(jsonrpc.INVALID_REQUEST),
        str(jsonrpc.METHOD_NOT_FOUND),
        str(jsonrpc.INVALID_PARAMS),
    }
)
"""Refusals of a first session that another try does not change; all others pass by themselves."""


class CallError(FepError):
    """The daemon refused a call; ``code`` is its stable code, such as ``TASK_CONFLICT``."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        """Of ``LIMITED``: when another try may be taken."""


class DisconnectedError(FepError):
    """The connection ended before the answer; whether the call was done is not known."""

    code = "DISCONNECTED"


@attrs.frozen
class TaskResult:
    """The end of a task, as the daemon delivers it until it is acknowledged."""

    task_id: str
    state: str
    """succeeded, rejected, returned, cancelled, expired or failed."""
    result: Any
    bank_code: str
    bank_message: str
    at: str


@attrs.frozen
class Answered:
    """One of our calls got its answer: exactly one of ``value`` and ``error`` counts."""

    ticket: Any
    value: Any
    error: CallError | DisconnectedError | None


@attrs.frozen
class Opened:
    """The session is open."""

    welcome: dict[str, Any]


@attrs.frozen
class FetchAsked:
    """The daemon asks for a task's body; answer with ``reply`` or ``refuse``."""

    id: jsonrpc.Id
    task_id: str
    attempt: int


@attrs.frozen
class ResultTold:
    """The daemon tells a task's end; acknowledge with ``reply(id, {})``."""

    id: jsonrpc.Id
    result: TaskResult


@attrs.frozen
class EventTold:
    """One record of the events that are followed."""

    record: dict[str, Any]


@attrs.frozen
class Broken:
    """The daemon refused the session or broke the protocol; nothing more of this connection counts.

    ``permanent``: of a first session, do not come back.
    """

    reason: str
    code: str = ""
    permanent: bool = False


Happening = Answered | Opened | FetchAsked | ResultTold | EventTold | Broken


class _Welcome(msgspec.Struct, kw_only=True):
    session: str = ""
    proof: str = ""
    heartbeat_s: Annotated[float, msgspec.Meta(gt=0, le=HEARTBEAT_SECONDS_MAX)]


class _FetchParams(msgspec.Struct):
    task_id: str
    attempt: int


class _ResultParams(msgspec.Struct):
    task_id: str
    state: str
    bank_code: str
    bank_message: str
    at: str
    result: Any = None


# Members we do not know are a newer daemon's, and ignored.
_WELCOME: Final = msgspec.json.Decoder(_Welcome)
_FETCH: Final = msgspec.json.Decoder(_FetchParams)
_RESULT: Final = msgspec.json.Decoder(_ResultParams)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


@attrs.frozen
class _Call:
    method: str
    line: bytes
    ticket: Any


class Conversation:
    """Over any number of connections: what was asked and is not answered yet."""

    def __init__(self, name: str, token: str | None, key: Key | None = None) -> None:
        self._name = name
        self._token = token
        self._key = key
        self._mac = ""
        """Of the proof that this connection was opened with."""
        self._next_id = 0
        self._calls: dict[jsonrpc.Id, _Call] = {}
        self._receiver = jsonrpc.LineReceiver()
        self._opening: jsonrpc.Id | None = None
        self._beats = 0
        self.heartbeat_s = 10.0

    def connected(self, time_ms: int = 0, nonce: str = "") -> bytes:
        """Begin on a new connection; returns the first line to send.

        Args:
            time_ms: now, in milliseconds since 1970; where there is a key.
            nonce: 32 random hexadecimal digits, new for each connection; where there is a key.
        """
        self._receiver = jsonrpc.LineReceiver()
        self._next_id += 1
        self._opening = self._next_id
        params: dict[str, Any] = {"client": self._name}
        if self._token:
            params["token"] = self._token
        if (key := self._key) is not None:
            self._mac = proof.opening_mac(key.secret, key.id, self._name, time_ms, nonce)
            params["proof"] = {
                "key_id": key.id,
                "time": time_ms,
                "nonce": nonce,
                "mac": self._mac,
            }
        return jsonrpc.request(self._opening, "session.open", params)

    def disconnected(self) -> list[Answered]:
        """End a connection; returns the calls that fail with it (submissions stay)."""
        self._opening = None
        return self._fail(
            [id_ for id_, call in self._calls.items() if call.method not in RESENT],
            "the connection ended before the answer",
        )

    def ended(self) -> list[Answered]:
        """End for good; returns all calls that wait, submissions too: they fail."""
        self._opening = None
        return self._fail(list(self._calls), "the client was closed before the answer")

    def _fail(self, ids: list[jsonrpc.Id], reason: str) -> list[Answered]:
        return [
            Answered(self._calls.pop(id_).ticket, None, DisconnectedError(reason)) for id_ in ids
        ]

    def call(self, method: str, params: Any, ticket: Any) -> bytes:  # noqa: ANN401
        """Register a call and return its line; ``ticket`` comes back with the answer.

        Raises:
            TypeError, ValueError: the parameters are no JSON values; nothing was registered.
            CallError: they fit no line.
        """
        id_ = self._next_id + 1
        line = jsonrpc.request(id_, method, params)
        if len(line) > jsonrpc.LINE_BYTES_MAX:
            # The daemon would end the connection over it, and again each time it is sent again.
            msg = f"the request has {len(line)} bytes, and a line at most {jsonrpc.LINE_BYTES_MAX}"
            raise CallError(str(jsonrpc.INVALID_PARAMS), msg)
        self._next_id = id_
        self._calls[id_] = _Call(method, line, ticket)
        return line

    def forget(self, ticket: Any) -> None:  # noqa: ANN401
        """Drop a call whose caller does not wait any more."""
        for id_, call in list(self._calls.items()):
            if call.ticket is ticket:
                del self._calls[id_]

    @property
    def waiting(self) -> int:
        """How many calls wait for an answer."""
        return len(self._calls)

    def heartbeat(self, now: str) -> bytes:
        """Return our heartbeat's line."""
        self._beats += 1
        return jsonrpc.notification("session.heartbeat", {"seq": self._beats, "time": now})

    @staticmethod
    def reply(id_: jsonrpc.Id, value: Any) -> bytes:  # noqa: ANN401
        """Return the line that answers the daemon: a body, or ``{}`` as acknowledgement.

        Raises:
            TypeError, ValueError: it is no JSON value, or fits no line.
        """
        line = jsonrpc.result(id_, value)
        if len(line) > jsonrpc.LINE_BYTES_MAX:
            msg = f"it has {len(line)} bytes, and a line at most {jsonrpc.LINE_BYTES_MAX}"
            raise ValueError(msg)
        return line

    @staticmethod
    def refuse(id_: jsonrpc.Id, reason: str) -> bytes:
        """Return the line that says we can't answer now; the daemon asks or tells again later."""
        printable = reason.encode("utf-8", "backslashreplace").decode("utf-8")
        return jsonrpc.refusal(id_, "NOT_FOUND", printable)

    def receive_data(self, data: bytes) -> tuple[list[Happening], bytes]:
        """Return what happened, and lines to send at once (unanswered submissions, after open).

        No bytes make it raise. ``Broken`` comes last, and calls that wait then wait still.
        """
        happenings: list[Happening] = []
        out = b""
        for message in self._receiver.receive_data(data):
            happening, lines = self._received(message)
            out += lines
            if happening is not None:
                happenings.append(happening)
            if isinstance(happening, Broken):
                break
        return happenings, out

    def _received(self, message: jsonrpc.Message) -> tuple[Happening | None, bytes]:
        match message:
            case Response(id=id_) if id_ == self._opening:
                return self._opened(message)
            case Request() if self._opening is not None:
                # It has proved nothing: no order is told to it, and no result is taken from it.
                return Broken("who answered spoke before the welcome"), b""
            case Response() if self._opening is not None:
                return None, b""
            case Response():
                call = self._calls.pop(message.id, None)
                return (None if call is None else _answer(call, message)), b""
            case Request():
                return _asked(message)
            case Fault():
                return Broken(message.message), b""

    def _opened(self, message: Response) -> tuple[Happening, bytes]:
        self._opening = None
        if message.error is not None:
            code = _code(message.error)
            return Broken(message.error.message, code, permanent=code in PERMANENT), b""
        try:
            welcome = jsonrpc.decoded(_OBJECT, message.result)
            read = jsonrpc.decoded(_WELCOME, message.result)
        except msgspec.ValidationError as error:
            return Broken(f"the daemon's welcome can't be read: {error}"), b""
        if self._key is not None:
            right = proof.welcome_mac(self._key.secret, self._mac, read.session)
            if not proof.is_same(read.proof, right):
                msg = "who answered did not prove to hold our key: this is not the daemon"
                return Broken(msg, NOT_PROVED, permanent=True), b""
        self.heartbeat_s = read.heartbeat_s
        return Opened(welcome), b"".join(call.line for call in self._calls.values())


def _code(failure: jsonrpc.Failure) -> str:
    data = failure.data if isinstance(failure.data, dict) else {}
    return str(data.get("code", failure.code))


def _answer(call: _Call, message: Response) -> Answered:
    if message.error is not None:
        data = message.error.data
        again = data.get("retry_after_s") if isinstance(data, dict) else None
        later = again if isinstance(again, int | float) else None
        error = CallError(_code(message.error), message.error.message, later)
        return Answered(call.ticket, None, error)
    try:
        return Answered(call.ticket, jsonrpc.value(message.result), None)
    except msgspec.ValidationError as error:
        msg = f"the answer can't be read: {error}"
        return Answered(call.ticket, None, CallError(str(jsonrpc.PARSE_ERROR), msg))


def _asked(message: Request) -> tuple[Happening | None, bytes]:
    """Sort what the daemon asks and tells; what can't be read is answered so."""
    id_ = message.id
    try:
        match message.method:
            case "task.fetch" if id_ is not None:
                fetch = jsonrpc.decoded(_FETCH, message.params)
                return FetchAsked(id_, fetch.task_id, fetch.attempt), b""
            case "task.result" if id_ is not None:
                told = jsonrpc.decoded(_RESULT, message.params)
                return ResultTold(id_, TaskResult(**msgspec.structs.asdict(told))), b""
            case "event":
                return EventTold(jsonrpc.decoded(_OBJECT, message.params)), b""
            case _:
                pass
    except msgspec.ValidationError as error:
        line = b"" if id_ is None else jsonrpc.error(id_, jsonrpc.INVALID_PARAMS, str(error))
        return None, line
    if id_ is None:
        return None, b""
    msg = f"this client has no method {message.method!r}"
    return None, jsonrpc.error(id_, jsonrpc.METHOD_NOT_FOUND, msg)


class Foreign:
    """A block in which one of the caller's own functions runs: what it raises ends nothing of ours.

    Nobody knows what it may raise, and one task's trouble must not stop the others. The error goes
    to standard error with its trace, as Python does with what a thread raises; ``fault`` is one
    sentence of it, empty when there was none.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.fault = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error)
        # Its name only: what it says may hold what must not be in a log.
        self.fault = f"{self._what} raised {type(error).__name__}"
        return True
