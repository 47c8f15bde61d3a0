"""Structured logs (结构化日志): one JSON object a line, masked, followed over the control socket.

What operators tail and what ``events.follow`` sends is the same record, made once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import orjson
import structlog
import trio

FOLLOWER_EVENTS_MAX: Final = 1024
FOLLOWERS_MAX: Final = 32
VALUE_CHARS_MAX: Final = 2000

Record = MutableMapping[str, Any]

_HIDDEN: Final = frozenset({"pin", "password", "token", "key", "mac", "csrf", "secret", "puk"})
_PLAIN: Final = frozenset(
    {"ts", "task_id", "event", "level", "round_id", "session", "digest", "guid", "correlation"}
    | {"alarm_id", "certificate_sha256", "bank_ref", "client_ref", "configuration"}
)
# Not \\w in the guards: Chinese characters are \\w, and a number beside one would pass unmasked.
_NUMBER: Final = re.compile(r"(?<![0-9A-Za-z_-])(\d{4})\d{4,15}(\d{4})(?![0-9A-Za-z_-])")


def _masked(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if name in _HIDDEN:
        return "***"
    if isinstance(value, str):
        text = value if len(value) <= VALUE_CHARS_MAX else value[:VALUE_CHARS_MAX] + "…"
        return text if name in _PLAIN else _NUMBER.sub(r"\1****\2", text)
    if isinstance(value, dict):
        return {key: _masked(str(key), one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(name, one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**11:
        return _NUMBER.sub(r"\1****\2", str(value))
    return value


def redact(_logger: object, _method: str, record: Record) -> Record:
    """Hide secrets whole and mask account numbers, at any depth."""
    return {name: _masked(name, value) for name, value in record.items()}


class Followers:
    """Those who follow the log live; a slow one loses records and is told how many."""

    def __init__(self) -> None:
        self._channels: dict[
            trio.MemoryReceiveChannel[dict[str, Any]], trio.MemorySendChannel[dict[str, Any]]
        ] = {}
        self._dropped: dict[trio.MemoryReceiveChannel[dict[str, Any]], int] = {}

    def subscribe(self) -> trio.MemoryReceiveChannel[dict[str, Any]]:
        """Return a channel of the records logged from now on; close it by ``unsubscribe``."""
        send, receive = trio.open_memory_channel[dict[str, Any]](FOLLOWER_EVENTS_MAX)
        self._channels[receive] = send
        return receive

    def unsubscribe(self, channel: trio.MemoryReceiveChannel[dict[str, Any]]) -> None:
        """End a subscription."""
        if (send := self._channels.pop(channel, None)) is not None:
            send.close()
        self._dropped.pop(channel, None)
        channel.close()

    def __call__(self, _logger: object, _method: str, record: Record) -> Record:
        """Pass the record on to all followers; as a structlog processor."""
        for channel, send in list(self._channels.items()):
            lost = self._dropped.get(channel, 0)
            try:
                if lost:
                    send.send_nowait({"event": "events.dropped", "level": "warning", "count": lost})
                    self._dropped[channel] = 0
                send.send_nowait(dict(record))
            except trio.WouldBlock:
                self._dropped[channel] = lost + 1
        return record


def _only_trio_thread(followers: Followers) -> Any:  # noqa: ANN401 - a structlog processor
    """Pass records on only from the loop's thread: memory channels are not for others."""

    def process(logger: object, method: str, record: Record) -> Record:
        if not followers._channels:  # noqa: SLF001 - the cheap way out on the hot path
            return record
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return record
        return followers(logger, method, record)

    return process


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
        processors.append(_only_trio_thread(followers))
    target = stream or sys.stdout
    factory: Any
    if form == "json":
        processors.append(
            structlog.processors.JSONRenderer(
                serializer=lambda value, **_: orjson.dumps(value, default=str)
            )
        )
        factory = structlog.BytesLoggerFactory(target.buffer)
    else:
        processors.append(structlog.dev.ConsoleRenderer(timestamp_key="ts"))
        factory = structlog.PrintLoggerFactory(target)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
