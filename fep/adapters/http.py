"""What adapters of banks that speak HTTP/1.1 share: the framer, and the simulated host's half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from fep.adapters.api import Reply
from fep.adapters.host import Answer
from fep.domain.errors import RemoteProtocolError
from fep.wire.http import HttpRequest, HttpResponse, RequestReader, ResponseReader, response_bytes

REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one request's body at a simulated bank."""
BAD_REQUEST: Final = 400


class HttpFramer:
    """Cuts one HTTP connection's bytes into replies.

    Args:
        read: makes the reply of an answer of any status; must not raise. Its correlation may stay
            empty: HTTP answers come in the order of their requests, and the link knows whose it is.
        body_bytes_max: bound of one answer's body.
    """

    def __init__(self, read: Callable[[HttpResponse], Reply], body_bytes_max: int) -> None:
        self._read = read
        self._reader = ResponseReader(body_bytes_max)

    @property
    def is_over(self) -> bool:
        """True when the bank closes the connection after what it answered."""
        return self._reader.is_over

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their answer."""
        return self._reader.held_bytes

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: no HTTP or too large; raised by the call after the one that
                returned what was complete before it.
        """
        return self._replies(self._reader.receive_data(data))

    def finish(self) -> list[Reply]:
        """Note the end of the stream; return the reply that it completes.

        Raises:
            RemoteProtocolError: it ended inside an answer.
        """
        return self._replies(self._reader.finish())

    def _replies(self, responses: list[HttpResponse]) -> list[Reply]:
        # What is kept as evidence is the whole answer: so it can be read anew.
        return [attrs.evolve(self._read(one), raw=one.raw) for one in responses]

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside an answer.
        """
        self._reader.finish()


@attrs.define
class HttpHostConnection:
    """One connection to a simulated bank that speaks HTTP.

    ``answer`` says what happens about a request; ``Answer.data`` is the whole HTTP answer, as
    ``response_bytes`` makes it. A client that asks for no more requests is closed on after that.
    """

    answer: Callable[[HttpRequest], list[Answer]]
    _reader: RequestReader = attrs.field(factory=lambda: RequestReader(REQUEST_BYTES_MAX))

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return what to do about these bytes; never raises on bad bytes."""
        try:
            return [
                one for request in self._reader.receive_data(data) for one in self.answer(request)
            ]
        except RemoteProtocolError as error:
            body = f"{error}\n".encode()
            data = response_bytes(BAD_REQUEST, body, "text/plain", close=True)
            return [Answer(data, close=True)]
