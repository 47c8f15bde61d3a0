"""The SOCKET form's framing, both directions: 8 ASCII bytes of length, then that many bytes of XML.

The length is written left-aligned and padded with blanks on the right, and counts bytes, not
characters (CMB front-end developer guide 4.3.1, SOCKET access).
"""

from __future__ import annotations

from typing import Final

from fep.domain.errors import LocalProtocolError, RemoteProtocolError

LENGTH_BYTES: Final = 8
"""Size of the length header."""
FRAME_BYTES_LIMIT: Final = 10**LENGTH_BYTES - 1
"""Largest length the header can state."""


def pack(xml: bytes) -> bytes:
    """Return the frame that carries this XML.

    Raises:
        LocalProtocolError: it is empty, or longer than the header can state.
    """
    if not 0 < len(xml) <= FRAME_BYTES_LIMIT:
        msg = f"{len(xml)} bytes of XML do not fit a frame"
        raise LocalProtocolError(msg)
    return str(len(xml)).encode("ascii").ljust(LENGTH_BYTES) + xml


def xml_of(frame: bytes) -> bytes:
    """Return the XML that a frame carries."""
    return frame[LENGTH_BYTES:]


class FrameReader:
    """Cuts one connection's bytes into frames, each with its length; holds less than one frame."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = min(frame_bytes_max, FRAME_BYTES_LIMIT)
        self._buffer = bytearray()
        self._fault = ""

    @property
    def fault(self) -> str:
        """Why the stream can't be read any more, or empty."""
        return self._fault

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[bytes]:
        """Return the frames completed by these bytes, in order; :func:`xml_of` is what they carry.

        Raises:
            RemoteProtocolError: a length is no number or too large. Frames complete before the
                fault are returned first; then the next call raises.
        """
        self._check()
        self._buffer += data
        frames: list[bytes] = []
        while not self._fault and (frame := self._next()) is not None:
            frames.append(frame)
        if not frames:
            self._check()
        return frames

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame, or had a fault before.
        """
        self._check()
        if self._buffer:
            msg = f"the stream ended inside a frame, after {len(self._buffer)} bytes of it"
            raise RemoteProtocolError(msg)

    def _check(self) -> None:
        if self._fault:
            raise RemoteProtocolError(self._fault)

    def _next(self) -> bytes | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = self._length(bytes(self._buffer[:LENGTH_BYTES]))
        end = LENGTH_BYTES + length
        if self._fault or len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[:end])
        del self._buffer[:end]
        return frame

    def _length(self, header: bytes) -> int:
        digits = header.strip(b" ")
        if not digits.isdigit() or int(digits) == 0:
            return self._fail(f"the length header {header!r} is not a number above 0")
        if int(digits) > self._frame_bytes_max:
            return self._fail(
                f"a frame of {int(digits)} bytes is larger than {self._frame_bytes_max} bytes"
            )
        return int(digits)

    def _fail(self, fault: str) -> int:
        self._fault = fault
        self._buffer.clear()
        return 0
