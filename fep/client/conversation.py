"""The client's side of the control protocol, sans-I/O: shared by both clients.

Submissions are kept until they are answered and go out again on a new connection: the same task id
is the same task. Other calls fail with ``DisconnectedError`` when the connection ends under them.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from fep.domain.errors import FepError
from fep.wire import jsonrpc
from fep.wire.jsonrpc import Fault, Request, Response

SILENCE_HEARTBEATS: Final = 3
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 10.0
RESENT: Final = frozenset({"task.submit"})


class CallError(FepError):
    """The daemon refused a call; ``code`` is its stable code, such as ``TASK_CONFLICT``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
    error: CallError | None


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
    """The daemon refused the session or broke the protocol; ``permanent``: do not come back."""

    reason: str
    permanent: bool


Happening = Answered | Opened | FetchAsked | ResultTold | EventTold | Broken


@attrs.define
class _Call:
    method: str
    params: Any
    ticket: Any


class Conversation:
    """Over any number of connections: what was asked and is not answered yet."""

    def __init__(self, name: str, token: str | None) -> None:
        self._name = name
        self._token = token
        self._next_id = 0
        self._calls: dict[jsonrpc.Id, _Call] = {}
        self._receiver = jsonrpc.LineReceiver()
        self._opening: jsonrpc.Id | None = None
        self._beats = 0
        self.heartbeat_s = 10.0

    def connected(self) -> bytes:
        """Begin on a new connection; returns the first line to send."""
        self._receiver = jsonrpc.LineReceiver()
        self._next_id += 1
        self._opening = self._next_id
        params = {"client": self._name} | ({"token": self._token} if self._token else {})
        return jsonrpc.request(self._opening, "session.open", params)

    def disconnected(self) -> list[Answered]:
        """End a connection; returns the calls that fail with it (submissions stay)."""
        failed = []
        for id_, call in list(self._calls.items()):
            if call.method not in RESENT:
                del self._calls[id_]
                error = CallError(DisconnectedError.code, "the connection ended before the answer")
                failed.append(Answered(call.ticket, None, error))
        self._opening = None
        return failed

    def call(self, method: str, params: Any, ticket: Any) -> bytes:  # noqa: ANN401
        """Register a call and return its line; ``ticket`` comes back with the answer."""
        self._next_id += 1
        self._calls[self._next_id] = _Call(method, params, ticket)
        return jsonrpc.request(self._next_id, method, params)

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
        """Return the line that answers the daemon: a body, or ``{}`` as acknowledgement."""
        return jsonrpc.result(id_, value)

    @staticmethod
    def refuse(id_: jsonrpc.Id, reason: str) -> bytes:
        """Return the line that says we can't answer now; the daemon asks again later."""
        return jsonrpc.refusal(id_, "NOT_FOUND", reason)

    def receive_data(self, data: bytes) -> tuple[list[Happening], bytes]:
        """Return what happened, and lines to send at once (unanswered submissions, after open)."""
        happenings: list[Happening] = []
        out = b""
        for message in self._receiver.receive_data(data):
            match message:
                case Response(id=id_) if id_ == self._opening:
                    happening, lines = self._opened(message)
                    happenings.append(happening)
                    out += lines
                case Response():
                    call = self._calls.pop(message.id, None)
                    if call is not None:
                        happenings.append(_answer(call, message))
                case Request():
                    if (asked := _asked(message)) is not None:
                        happenings.append(asked)
                    elif message.id is not None:
                        msg = f"this client has no method {message.method!r}"
                        out += jsonrpc.error(message.id, jsonrpc.METHOD_NOT_FOUND, msg)
                case Fault():
                    happenings.append(Broken(message.message, permanent=False))
        return happenings, out

    def _opened(self, message: Response) -> tuple[Happening, bytes]:
        self._opening = None
        if message.error is not None:
            return Broken(message.error.message, permanent=True), b""
        welcome = jsonrpc.value(message.result)
        self.heartbeat_s = float(welcome["heartbeat_s"])
        lines = [
            jsonrpc.request(id_, call.method, call.params) for id_, call in self._calls.items()
        ]
        return Opened(welcome), b"".join(lines)


def _answer(call: _Call, message: Response) -> Answered:
    if message.error is None:
        return Answered(call.ticket, jsonrpc.value(message.result), None)
    failure = message.error
    data = failure.data if isinstance(failure.data, dict) else {}
    return Answered(
        call.ticket, None, CallError(str(data.get("code", failure.code)), failure.message)
    )


def _asked(message: Request) -> FetchAsked | ResultTold | EventTold | None:
    params = jsonrpc.value(message.params)
    match message.method:
        case "task.fetch" if message.id is not None:
            return FetchAsked(message.id, params["task_id"], params["attempt"])
        case "task.result" if message.id is not None:
            names = ("task_id", "state", "result", "bank_code", "bank_message", "at")
            return ResultTold(message.id, TaskResult(**{name: params[name] for name in names}))
        case "event":
            return EventTold(params)
        case _:
            return None
