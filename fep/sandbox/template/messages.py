"""The frame: six digits of length, then that many bytes of JSON in UTF-8."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fep.domain.errors import LocalProtocolError, RemoteProtocolError

LENGTH_BYTES: Final = 6
Message = Mapping[str, Any]


class FrameReader:
    """Cuts one connection's bytes into frames; holds less than one."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._fault = ""

    def receive_data(self, data: bytes) -> list[bytes]:
        """Return the frames completed by these bytes, in order, without their length.

        Raises:
            RemoteProtocolError: no length, or too large a one. Frames complete before the fault are
                returned first; then the next call raises.
        """
        if self._fault:
            raise RemoteProtocolError(self._fault)
        self._buffer += data
        found: list[bytes] = []
        while len(self._buffer) >= LENGTH_BYTES:
            digits = bytes(self._buffer[:LENGTH_BYTES])
            if not digits.isdigit() or not 0 < int(digits) <= self._frame_bytes_max:
                self._fault = f"{digits!r} is no length of a frame"
                self._buffer.clear()
                break
            end = LENGTH_BYTES + int(digits)
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[LENGTH_BYTES:end]))
            del self._buffer[:end]
        if self._fault and not found:
            raise RemoteProtocolError(self._fault)
        return found

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        if self._fault or self._buffer:
            raise RemoteProtocolError(self._fault or "the stream ended inside a frame")


def encode(message: Message) -> bytes:
    """Return a message's frame.

    Raises:
        LocalProtocolError: it is longer than a length can say.
    """
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    if len(body) >= 10**LENGTH_BYTES:
        msg = f"a message of {len(body)} bytes fits no frame"
        raise LocalProtocolError(msg)
    return b"%06d" % len(body) + body


def decode(body: bytes) -> Message:
    """Return the message in a frame's body.

    Raises:
        RemoteProtocolError: it is no JSON object.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = "the frame is no JSON"
        raise RemoteProtocolError(msg) from error
    if not isinstance(message, dict):
        msg = "the frame is no JSON object"
        raise RemoteProtocolError(msg)
    return message


def text(message: Message, name: str) -> str:
    """Return a member that is text, empty where it is missing or no text."""
    value = message.get(name, "")
    return value if isinstance(value, str) else ""
