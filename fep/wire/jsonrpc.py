"""The control protocol's lines: JSON-RPC 2.0, one UTF-8 object a line, symmetric. Sans-I/O.

Both sides send requests, so one class reads both sides' lines. Whatever can be wrong with a line is
a value (``Fault``), never an exception: the session decides to answer, and whether to close.
Source: JSON-RPC 2.0 specification (2013-01-04); our contract in ``docs/protocol.md``.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal, TypeVar

import attrs
import msgspec

LINE_BYTES_MAX: Final = 1024 * 1024
"""A line's length without its LF."""
MESSAGE_CHARS_MAX: Final = 16_000
"""Of an error's message, which may echo what the other side sent: it must fit a line."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REFUSED: Final = -32000
"""Our own refusals; ``data.code`` says which."""

Id = int | str
T = TypeVar("T")


class Failure(msgspec.Struct, gc=False, omit_defaults=True):
    """The ``error`` member of a response."""

    code: int
    message: str
    data: Any = None


class _Envelope(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    jsonrpc: str | None = None
    id: int | str | msgspec.UnsetType | None = msgspec.UNSET
    method: str | None = None
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Failure | None = None


class Request(msgspec.Struct, frozen=True, gc=False):
    """The other side asks; ``id`` None is a notification, which gets no reply."""

    id: Id | None
    method: str
    params: msgspec.Raw | None


class Response(msgspec.Struct, frozen=True, gc=False):
    """The other side answers one of our requests: exactly one of result and error."""

    id: Id
    result: msgspec.Raw | None
    error: Failure | None


class Fault(msgspec.Struct, frozen=True, gc=False):
    """A line that is no message; ``fatal`` ones end the connection after the answer."""

    code: int
    message: str
    id: Id | None = None
    fatal: bool = False


Message = Request | Response | Fault


@attrs.frozen
class Shortcut:
    """How the lines of one method, which are nearly all, are read in one step.

    ``decoder`` takes whole lines that are in order and nothing else: every other line is read the
    long way, and answered as if there were no shortcut.
    """

    mark: bytes
    """Is in each such line."""
    decoder: msgspec.json.Decoder[Any]


def shortcut(method: str, params: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], Shortcut]:
    """Return the type of a method's lines (members ``id`` and ``params``), and how to read them."""
    fields = [
        ("jsonrpc", Literal["2.0"]),
        ("id", Id),
        ("method", Literal[method]),
        ("params", params),
    ]
    line = msgspec.defstruct("Line", fields, frozen=True, gc=False, forbid_unknown_fields=True)
    return line, Shortcut(f'"{method}"'.encode(), msgspec.json.Decoder(line))


_DECODER: Final = msgspec.json.Decoder(_Envelope)
_ANY: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()


class LineReceiver:
    """Cuts a byte stream into messages; keeps at most one unfinished line."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self.shortcut: Shortcut | None = None
        """Reads the lines of one method; they come as its type."""
        self._tail = bytearray()
        self._max = line_bytes_max
        self._dead = False

    def receive_data(self, data: bytes) -> list[Any]:
        """Return the messages completed by these bytes; nothing more after a fatal fault."""
        if self._dead:
            return []
        *lines, tail = data.split(b"\n")
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail = bytearray()
        # Appended, not joined anew: a line that comes byte by byte must not cost its square.
        self._tail += tail
        messages: list[Any] = []
        for line in lines:
            if len(line) > self._max:
                message: Any = self._too_long()
            elif (message := self._short(line)) is None:
                message = decode(line)
            messages.append(message)
            if type(message) is Fault and message.fatal:
                self._dead, self._tail = True, bytearray()
                return messages
        if len(self._tail) > self._max:
            self._dead, self._tail = True, bytearray()
            messages.append(self._too_long())
        return messages

    @property
    def is_amid_line(self) -> bool:
        """Whether a line has begun that has not ended."""
        return bool(self._tail)

    def _short(self, line: bytes) -> Any:  # noqa: ANN401 - of the shortcut's type, or None
        short = self.shortcut
        if short is None or short.mark not in line:
            return None
        try:
            # msgspec leaves the text inside raw members unchecked.
            str(line, "utf-8")
            return short.decoder.decode(line)
        except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
            return None

    def _too_long(self) -> Fault:
        msg = f"a line may have at most {self._max} bytes; split the work into more lines"
        return Fault(PARSE_ERROR, msg, fatal=True)


def decode(line: bytes) -> Message:
    """Return the message of one line without its LF."""
    try:
        # msgspec leaves the text inside raw members unchecked: check the whole line here, once.
        str(line, "utf-8")
        envelope = _DECODER.decode(line)
    except UnicodeDecodeError as error:
        msg = f"the line is not UTF-8 (byte {error.start})"
        return Fault(PARSE_ERROR, msg, fatal=True)
    except msgspec.ValidationError as error:
        return _no_message(line, str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return Fault(PARSE_ERROR, f"the line is not JSON: {error}", fatal=True)
    return _classified(envelope)


def _no_message(line: bytes, reason: str) -> Fault:
    """Return what is wrong with a line that is no message: it may not even be JSON further on."""
    try:
        msgspec.json.decode(line)
    except msgspec.ValidationError:
        # A number beyond all bounds is JSON still, but msgspec looks no further then.
        try:
            json.loads(line, parse_int=str, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return Fault(PARSE_ERROR, f"the line is not JSON: {error}", fatal=True)
    except (msgspec.DecodeError, RecursionError) as error:
        return Fault(PARSE_ERROR, f"the line is not JSON: {error}", fatal=True)
    return Fault(INVALID_REQUEST, f"not a JSON-RPC 2.0 object: {reason}")


def _refuse_constant(word: str) -> None:
    msg = f"{word} is no value"
    raise ValueError(msg)


def _classified(envelope: _Envelope) -> Message:
    result, failed = envelope.result, envelope.error is not None
    is_request = envelope.method is not None and result is msgspec.UNSET and not failed
    id_ = None if envelope.id is msgspec.UNSET else envelope.id
    if envelope.jsonrpc != "2.0":
        # Only a request's id is named: a response's id is ours, and would be taken for theirs.
        msg = 'every line must have "jsonrpc": "2.0"'
        return Fault(INVALID_REQUEST, msg, id_ if is_request else None)
    if envelope.method is not None:
        if not is_request:
            return Fault(INVALID_REQUEST, "a line is a request or a response, not both")
        if envelope.id is None:
            msg = "a request's id must be a number or a string; a notification has none"
            return Fault(INVALID_REQUEST, msg)
        params = None if envelope.params is msgspec.UNSET else envelope.params
        return Request(id_, envelope.method, params)
    if id_ is not None and failed != (result is not msgspec.UNSET):
        return Response(id_, None if result is msgspec.UNSET else result, envelope.error)
    if id_ is None and envelope.error is not None:
        # An error without an id answers a line of ours that could not be read at all.
        return Fault(INVALID_REQUEST, f"the other side: {envelope.error.message}", fatal=True)
    msg = "a line must have a method (request), or an id with a result or an error (response)"
    return Fault(INVALID_REQUEST, msg)


def request(id_: Id, method: str, params: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the line of a request."""
    return _line({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})


def notification(method: str, params: Any) -> bytes:  # noqa: ANN401
    """Return the line of a notification."""
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


def result(id_: Id, value: Any) -> bytes:  # noqa: ANN401
    """Return the line of a response with a result."""
    return _line({"jsonrpc": "2.0", "id": id_, "result": value})


def error(id_: Id | None, code: int, message: str, data: Any = None) -> bytes:  # noqa: ANN401
    """Return the line of a response with an error."""
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[:MESSAGE_CHARS_MAX] + "…"
    failure: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        failure["data"] = data
    return _line({"jsonrpc": "2.0", "id": id_, "error": failure})


def refusal(id_: Id | None, code: str, message: str, retry_after_s: float | None = None) -> bytes:
    """Return the line of one of our own refusals; ``code`` such as ``TASK_CONFLICT``."""
    again = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
    return error(id_, REFUSED, message, {"code": code, **again})


def value(raw: msgspec.Raw | None) -> Any:  # noqa: ANN401
    """Return the JSON value of a raw member, None for an absent one.

    Raises:
        msgspec.ValidationError: a number is beyond all bounds, or the nesting is too deep.
    """
    return None if raw is None else decoded(_ANY, raw)


def decoded(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw | None) -> T:
    """Return a raw member as the decoder's type, an absent one as an empty object.

    Raises:
        msgspec.ValidationError: it is not of that type; the message says where and why.
    """
    try:
        return decoder.decode(b"{}" if raw is None else raw)
    except RecursionError as error:
        # The line was read on a stack a few frames lower, where the same nesting just fitted.
        msg = "it is nested too deeply"
        raise msgspec.ValidationError(msg) from error


def _line(message: dict[str, Any]) -> bytes:
    return _ENCODER.encode(message) + b"\n"
