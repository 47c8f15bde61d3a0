"""HTTP/1.1 as bytes, both roles, over h11 (RFC 9112); one request at a time on a connection.

A request is made whole before it is sent, so that its exact bytes can be on disk first. That is why
the reader of answers is told nothing of the request: each answer is read as one to a POST.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import attrs
import h11

from fep.domain.errors import LocalProtocolError, RemoteProtocolError

HEAD_BYTES_MAX: Final = 64 * 1024
"""Of a request line or status line with its headers, and of one chunk's head or the trailers."""

Headers = tuple[tuple[str, str], ...]
"""Name and value; names in lower case where they were read from the wire."""


@attrs.frozen
class HttpRequest:
    """One whole request as a server reads it."""

    method: str
    target: str
    headers: Headers
    body: bytes = attrs.field(repr=False)

    def header(self, name: str) -> str:
        """Return a header's value (name in lower case), or empty."""
        return _header(self.headers, name)


@attrs.frozen
class HttpResponse:
    """One whole answer as a client reads it."""

    status: int
    headers: Headers
    body: bytes = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False, eq=False, default=b"")
    """Exactly as it came, with its head."""

    def header(self, name: str) -> str:
        """Return a header's value (name in lower case), or empty."""
        return _header(self.headers, name)


def request_bytes(
    peer: str,
    target: str,
    body: bytes,
    content_type: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    method: str = "POST",
) -> bytes:
    """Return a request as it goes over the wire; the connection is kept open after it.

    Args:
        peer: ``host:port`` for the Host header.
        target: path and query, already quoted: ASCII without blanks.
        body: sent with its Content-Length.
        content_type: of the body.
        headers: more headers.
        method: any but HEAD and CONNECT, whose answers end in another way.

    Raises:
        LocalProtocolError: a part can't stand in a request, such as a line break.
    """
    if method in {"HEAD", "CONNECT"}:
        msg = f"the answer to {method} can't be read here"
        raise LocalProtocolError(msg)
    head = [
        ("Host", peer),
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "keep-alive"),
        *headers,
    ]
    connection = h11.Connection(h11.CLIENT)
    try:
        parts = [connection.send(h11.Request(method=method, target=target, headers=head))]
        if body:
            parts.append(connection.send(h11.Data(data=body)))
        parts.append(connection.send(h11.EndOfMessage()))
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        msg = f"no such HTTP request can be sent: {error}"
        raise LocalProtocolError(msg) from error
    return b"".join(part for part in parts if part)


def response_bytes(
    status: int,
    body: bytes,
    content_type: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    close: bool = False,
) -> bytes:
    """Return an answer as it goes over the wire; simulated banks answer so.

    Args:
        status: such as 200.
        body: sent with its Content-Length.
        content_type: of the body.
        headers: more headers.
        close: say that the connection ends after it.
    """
    head = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "close" if close else "keep-alive"),
        *headers,
    ]
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in head)]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


class _Reader:
    """What both readers share: bounds, and good messages first, the fault at the next call."""

    def __init__(self, role: type[h11.CLIENT | h11.SERVER], body_bytes_max: int) -> None:
        self._http = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._body_bytes_max = body_bytes_max
        self._body = bytearray()
        self._raw = bytearray()
        """What came since the last whole message."""
        self._in_message = False
        self._fault = ""
        self._over = False

    @property
    def is_over(self) -> bool:
        """True when the peer said, or the stream shows, that no more messages come."""
        return self._over

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their message."""
        return max(len(self._raw), len(self._http.trailing_data[0]) + len(self._body))

    def _feed(self, data: bytes) -> None:
        if self._fault:
            raise RemoteProtocolError(self._fault)
        # To h11 no bytes mean the end of the stream.
        if data and not self._over:
            self._raw += data
            self._http.receive_data(data)

    def _end(self) -> bool:
        """Tell the reader that the stream ended; False when it ended between two messages."""
        if self._fault:
            raise RemoteProtocolError(self._fault)
        if self._over or not (self._in_message or self._http.trailing_data[0]):
            return False
        self._http.receive_data(b"")
        return True

    def _next(self) -> h11.Event | None:
        """Return the next event, None when there is none now."""
        if self._over or self._fault:
            return None
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._fault = f"no HTTP: {error}"
            return None
        if isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > self._body_bytes_max:
                self._fault = f"a body of more than {self._body_bytes_max} bytes"
                self._body.clear()
                return None
        if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return None
        assert not isinstance(event, type)
        return event

    def _take_body(self) -> bytes:
        body = bytes(self._body)
        self._body.clear()
        self._in_message = False
        return body

    def _take_raw(self) -> bytes:
        end = len(self._raw) - len(self._http.trailing_data[0])
        raw = bytes(self._raw[:end])
        del self._raw[:end]
        return raw


class ResponseReader(_Reader):
    """Cuts a client's incoming bytes into answers; holds less than one answer."""

    def __init__(self, body_bytes_max: int) -> None:
        super().__init__(h11.CLIENT, body_bytes_max)
        self._head: h11.Response | None = None
        self._expect()

    def receive_data(self, data: bytes) -> list[HttpResponse]:
        """Return the answers completed by these bytes, in order.

        Raises:
            RemoteProtocolError: no HTTP, or more than the bounds. Answers complete before the fault
                are returned first; then the next call raises.
        """
        self._feed(data)
        found = self._responses()
        if self._fault and not found:
            raise RemoteProtocolError(self._fault)
        return found

    def finish(self) -> list[HttpResponse]:
        """Note the end of the stream; return the answer that it completes, if any.

        An answer without a length ends with its connection, so one that was cut is as good as a
        whole one here: whoever reads the body must notice.

        Raises:
            RemoteProtocolError: it ended inside an answer.
        """
        found = self._responses() if self._end() else []
        if self._fault:
            msg = f"the stream ended inside an answer: {self._fault}"
            raise RemoteProtocolError(msg)
        self._over = True
        return found

    def _responses(self) -> list[HttpResponse]:
        found = []
        while (event := self._next()) is not None:
            if isinstance(event, h11.Response):
                self._head, self._in_message = event, True
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                headers = _texts(self._head.headers)
                body, raw = self._take_body(), self._take_raw()
                found.append(HttpResponse(self._head.status_code, headers, body, raw))
                self._begin_next()
        return found

    def _begin_next(self) -> None:
        if self._http.their_state is not h11.DONE or self._http.our_state is not h11.DONE:
            self._over = True
            return
        self._http.start_next_cycle()
        self._expect()

    def _expect(self) -> None:
        # h11 reads an answer only after a request; the real one was made elsewhere, as bytes.
        headers = [("Host", "."), ("Content-Length", "0")]
        self._http.send(h11.Request(method="POST", target="/", headers=headers))
        self._http.send(h11.EndOfMessage())


class RequestReader(_Reader):
    """Cuts a server's incoming bytes into requests; what simulated banks read by."""

    def __init__(self, body_bytes_max: int) -> None:
        super().__init__(h11.SERVER, body_bytes_max)
        self._head: h11.Request | None = None

    def receive_data(self, data: bytes) -> list[HttpRequest]:
        """Return the requests completed by these bytes, in order.

        Raises:
            RemoteProtocolError: no HTTP, or more than the bounds. Requests complete before the
                fault are returned first; then the next call raises.
        """
        self._feed(data)
        found = []
        while (event := self._next()) is not None:
            if isinstance(event, h11.Request):
                self._head, self._in_message = event, True
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                found.append(
                    HttpRequest(
                        self._head.method.decode("ascii"),
                        self._head.target.decode("ascii"),
                        _texts(self._head.headers),
                        self._take_body(),
                    )
                )
                self._take_raw()
                self._begin_next()
        if self._fault and not found:
            raise RemoteProtocolError(self._fault)
        return found

    def _begin_next(self) -> None:
        # h11 wants an answer before the next request; the real one is made elsewhere, as bytes.
        self._http.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        self._http.send(h11.EndOfMessage())
        if self._http.our_state is not h11.DONE:
            self._over = True
            return
        self._http.start_next_cycle()


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _header(headers: Headers, wanted: str) -> str:
    return next((value for name, value in headers if name == wanted), "")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "-"
