"""Structured logs (结构化日志): one JSON object a line, masked, followed over the control socket.

What operators tail and what ``events.follow`` sends is the same record, made once. Writing a log
never raises: a full disk or a reader that went away costs lines, which are counted, and no task.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, BinaryIO, Final, Literal, TextIO

import orjson
import structlog
import trio

from fep.domain.account import mask

FOLLOWER_EVENTS_MAX: Final = 1024
FOLLOWERS_MAX: Final = 32
VALUE_CHARS_MAX: Final = 2000
TRACE_CHARS_MAX: Final = 16_000
ITEMS_MAX: Final = 200
DEPTH_MAX: Final = 6
DIGITS_EXACT_MAX: Final = 10**11
"""An integer from here on may be an account number (12 digits) and is masked as text."""

Record = MutableMapping[str, Any]

SECRET_NAMES: Final = frozenset(
    {"pin", "puk", "password", "passphrase", "secret", "token", "key", "mac", "csrf", "signature"}
)
"""Values whose name is, or ends in ``_`` and, one of these are hidden whole."""
_PLAIN: Final = frozenset(
    {"ts", "event", "level", "task_id", "round_id", "alarm_id", "session", "configuration"}
    | {"digest", "guid", "certificate_sha256"}
    | {"correlation", "bank_ref", "client_ref"}  # the bank's serials, wanted whole in a dispute
)
_FIRST: Final = ("ts", "level", "event")
_ACCOUNTS: Final = frozenset({"account", "payer", "payee", "target"})
NUMBER_CHARS_MIN: Final = 12
"""A shorter text can hold no number that is masked."""
# Not \w in the guards: Chinese characters are \w, and a number beside one would pass unmasked.
_UNSEEN: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, takes for a line's end, or turns the order of what is around it by. What
is below a space, JSON escapes itself."""
_NUMBER: Final = re.compile(r"(?<![0-9A-Za-z_-])(\d{4})\d{4,15}(\d{4})(?![0-9A-Za-z_-])")


def is_secret(name: str) -> bool:
    """Say whether a value of this name must not be shown."""
    return name.lower().rpartition("_")[2] in SECRET_NAMES


_is_secret_field: Final = functools.lru_cache(maxsize=1024)(is_secret)
"""Of a record's own fields, which the code names: they are few, and short."""


def masked(text: str) -> str:
    """Return text with each account number in it as ``6222****1234``, for who may not see it."""
    return _text("", text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _text(name: str, value: str) -> str:
    if len(value) < NUMBER_CHARS_MIN and value.isascii() and name not in _ACCOUNTS:
        return value
    if not value.isascii():
        # A lone surrogate (from a file's name, from a peer) can't be written as UTF-8.
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        value = _UNSEEN.sub(_escaped, value)
    if name in _PLAIN:
        return value[:VALUE_CHARS_MAX]
    if name in _ACCOUNTS and "*" not in value and value.isascii():
        return mask(value)
    if name == "exception" and len(value) > TRACE_CHARS_MAX:
        value = "…" + value[-TRACE_CHARS_MAX:]  # the end of a trace says what and where
    elif name != "exception" and len(value) > VALUE_CHARS_MAX:
        value = value[:VALUE_CHARS_MAX] + "…"
    return _NUMBER.sub(r"\1****\2", value)


def _masked(name: str, value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON value
    return "***" if is_secret(name) else _shown(name, value, depth)


def _shown(name: str, value: Any, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    kind = type(value)
    if kind is str:
        return _text(name, value)
    if value is None or kind is bool or kind is float:
        return value
    if isinstance(value, int):
        return value if abs(value) < DIGITS_EXACT_MAX else _text(name, str(value))
    return _shown_rarer(name, value, depth)


def _shown_rarer(name: str, value: Any, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, float):
        return value
    if depth == DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:ITEMS_MAX]
        return {_text("", str(key)): _masked(str(key), one, depth + 1) for key, one in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(name, one, depth + 1) for one in list(value)[:ITEMS_MAX]]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"  # may be a whole message
    return _text(name, str(value))


def redact(_logger: object, _method: str, record: Record) -> Record:
    """Return the record with secrets hidden whole and account numbers masked, at any depth.

    The result is new, made of JSON values only, and begins with what the eye looks for.
    """
    first = {name: record[name] for name in _FIRST if name in record}
    return {
        name: "***" if _is_secret_field(name) else _shown(name, value, 0)
        for name, value in (first | dict(record)).items()
    }


class Followers:
    """Those who follow the log live; a slow one loses records and is told how many."""

    def __init__(self) -> None:
        self._followers: dict[trio.MemoryReceiveChannel[dict[str, Any]], _Follower] = {}
        self._token: trio.lowlevel.TrioToken | None = None

    def subscribe(self) -> trio.MemoryReceiveChannel[dict[str, Any]]:
        """Return a channel of the records logged from now on; close it by ``unsubscribe``.

        A record ``{"event": "events.dropped", "count": n}`` stands where ``n`` were lost. The
        channel ends when ``FOLLOWERS_MAX`` came after it: a forgotten one must not keep a person
        from looking.
        """
        if len(self._followers) >= FOLLOWERS_MAX:
            self._followers.pop(next(iter(self._followers))).channel.close()
        self._token = trio.lowlevel.current_trio_token()
        send, receive = trio.open_memory_channel[dict[str, Any]](FOLLOWER_EVENTS_MAX)
        self._followers[receive] = _Follower(send)
        return receive

    def unsubscribe(self, channel: trio.MemoryReceiveChannel[dict[str, Any]]) -> None:
        """End a subscription; the second time nothing happens."""
        if (follower := self._followers.pop(channel, None)) is not None:
            follower.channel.close()
        channel.close()

    def __call__(self, _logger: object, _method: str, record: Record) -> Record:
        """Pass the record on to all followers; as a structlog processor, from any thread."""
        if not self._followers:
            return record
        copy = dict(record)
        try:
            inside = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            inside = False
        if inside:
            self._pass_on(copy)
        elif self._token is not None:
            # Memory channels are for the loop's thread alone.
            try:
                self._token.run_sync_soon(self._pass_on, copy)
            except trio.RunFinishedError:
                self._followers.clear()
        return record

    def _pass_on(self, record: dict[str, Any]) -> None:
        for channel, follower in list(self._followers.items()):
            try:
                follower.give(record)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._followers.pop(channel, None)


class _Follower:
    def __init__(self, channel: trio.MemorySendChannel[dict[str, Any]]) -> None:
        self.channel = channel
        self._dropped = 0

    def give(self, record: dict[str, Any]) -> None:
        try:
            if self._dropped:
                note = {"event": "events.dropped", "level": "warning", "count": self._dropped}
                self.channel.send_nowait(note)
                self._dropped = 0
            self.channel.send_nowait(record)
        except trio.WouldBlock:
            self._dropped += 1


class _Lines:
    """Writes a line whole; one that can't be written is counted, never raised.

    What the file's buffer took is written when the file takes it again; only what it had no room
    for is lost. The buffer's own lock keeps lines of several threads apart.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lost = 0

    def __call__(self, *_: object) -> _Lines:
        """Return itself: structlog takes it for the factory too, and makes no logger a line."""
        return self

    def msg(self, line: bytes) -> None:
        try:
            if self._lost:
                note = {"event": "log.lines_lost", "level": "error", "count": self._lost}
                self._file.write(orjson.dumps(note) + b"\n")
                self._lost = 0
            self._file.write(line + b"\n")
        except (OSError, ValueError):  # ValueError: the file is closed
            self._lost += 1
            return
        with suppress(OSError):
            self._file.flush()

    debug = info = warning = error = critical = exception = msg


def _json(_logger: object, _method: str, record: Record) -> bytes:
    return orjson.dumps(record)


def _console(*, colors: bool) -> Callable[[object, str, Record], bytes]:
    # The trace is text by then, and masked; a formatter of its own would show it unmasked.
    render = structlog.dev.ConsoleRenderer(
        timestamp_key="ts", colors=colors, exception_formatter=structlog.dev.plain_traceback
    )
    return lambda logger, method, record: str(render(logger, method, record)).encode()


def configure(
    stream: TextIO | None = None,
    level: str = "info",
    followers: Followers | None = None,
    form: Literal["json", "console"] = "json",
) -> None:
    """Set up the logs of this process.

    Args:
        stream: where to; standard output by default, which journald keeps and rotates.
        level: the least level written: debug, info, warning or error.
        followers: who gets each record live.
        form: ``json`` for machines, ``console`` for a terminal.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        redact,
    ]
    if followers is not None:
        processors.append(followers)
    target = stream or sys.stdout
    processors.append(_json if form == "json" else _console(colors=target.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines(target.buffer),
        # Not cached: a logger bound for ever would outlive the stream of a test, and the factory
        # that makes nothing gives back what the cache would save.
        cache_logger_on_first_use=False,
    )
