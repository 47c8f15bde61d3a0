"""Real receivers on loopback: HTTP with and without TLS, mail, syslog over datagrams and streams."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import h11
import trio
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

WAIT_SECONDS_MAX = 30.0
Answer = tuple[int, bytes] | tuple[int, bytes, dict[str, str]] | str
"""An answer, or a way to behave badly: ``hang``, ``close``, ``garbage``, ``endless``."""
OK: Answer = (200, b'{"errcode":0,"errmsg":"ok"}')


@attrs.define
class Request:
    """What came."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@attrs.define(eq=False)
class HttpReceiver:
    """Answers as it is told; ``judge`` looks at a request first, as a robot does at signatures."""

    port: int = 0
    scheme: str = "http"
    answer: Answer = OK
    judge: Callable[[Request], Answer | None] = lambda _request: None
    requests: list[Request] = attrs.Factory(list)
    _came: trio.Event = attrs.Factory(trio.Event)

    def url(self, path: str = "/robot/send?access_token=very-secret-token") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def wait(self, count: int = 1) -> list[Request]:
        """Wait until so many requests came."""
        with trio.fail_after(WAIT_SECONDS_MAX * 40):
            while len(self.requests) < count:
                self._came = trio.Event()
                await self._came.wait()
        return self.requests

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                return

    async def _converse(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(65_536)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        assert head is not None
        assert head.method == b"POST"
        headers = {name.decode(): value.decode() for name, value in head.headers}
        request = Request(head.target.decode(), headers, body)
        answer = self.judge(request) or self.answer
        self.requests.append(request)
        self._came.set()
        match answer:
            case "hang":
                await trio.sleep_forever()
            case "close":
                return
            case "garbage":
                await stream.send_all(b"\x00\x01 what?\r\n\r\n")
            case "endless":
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n")
                while True:
                    await stream.send_all(b"x" * 65_536)
            case _:
                assert not isinstance(answer, str)
                status, text, *more = answer
                fields = [("content-length", str(len(text))), ("connection", "close")]
                fields += list(more[0].items()) if more else []
                data = connection.send(h11.Response(status_code=status, headers=fields)) or b""
                data += connection.send(h11.Data(data=text)) or b""
                data += connection.send(h11.EndOfMessage()) or b""
                await stream.send_all(data)


@asynccontextmanager
async def http(context: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[HttpReceiver]:
    """Run an HTTP receiver for a block."""
    receiver = HttpReceiver(scheme="http" if context is None else "https")
    async with trio.open_nursery() as nursery:
        if context is None:
            serve: Callable[..., Awaitable[None]] = partial(
                trio.serve_tcp, receiver.serve, port, host="127.0.0.1"
            )
        else:
            serve = partial(
                trio.serve_ssl_over_tcp, receiver.serve, port, context, host="127.0.0.1"
            )
        (listener,) = await nursery.start(serve)
        inner = listener.transport_listener if context is not None else listener
        receiver.port = inner.socket.getsockname()[1]
        yield receiver
        nursery.cancel_scope.cancel()


def dingtalk(secret: str) -> Callable[[Request], Answer | None]:
    """Judge as DingTalk's robot does: milliseconds and secret signed, both in the URL."""

    def judge(request: Request) -> Answer | None:
        text = f"{request.query.get('timestamp')}\n{secret}"
        sign = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
        good = request.query.get("sign") == base64.b64encode(sign).decode()
        good &= request.value.get("msgtype") == "text"
        return None if good else (200, b'{"errcode":310000,"errmsg":"sign not match"}')

    return judge


def feishu(secret: str) -> Callable[[Request], Answer | None]:
    """Judge as Feishu's robot does: seconds and secret are the key, nothing is signed by it."""

    def judge(request: Request) -> Answer | None:
        value = request.value
        key = f"{value.get('timestamp')}\n{secret}"
        sign = hmac.new(key.encode(), b"", hashlib.sha256).digest()
        if value.get("sign") != base64.b64encode(sign).decode():
            return 200, b'{"code":19021,"data":{},"msg":"sign match fail"}'
        assert isinstance(value["timestamp"], str)
        assert value["msg_type"] == "text"
        return 200, b'{"code":0,"data":{},"msg":"success"}'

    return judge


def webhook(key: bytes) -> Callable[[Request], Answer | None]:
    """Judge as a receiver of Standard Webhooks does."""

    def judge(request: Request) -> Answer | None:
        fields = [request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp")]
        signed = f"{fields[0]}.{fields[1]}.".encode() + request.body
        sign = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        if request.headers.get("webhook-signature") != f"v1,{sign}":
            return 401, b"wrong signature"
        return 204, b""

    return judge


# -- mail ------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class MailReceiver:
    """A mail server that keeps what it takes."""

    port: int = 0
    envelopes: list[Envelope] = attrs.Factory(list)
    log_ins: list[bytes] = attrs.Factory(list)
    secure: list[bool] = attrs.Factory(list)
    refuses: frozenset[str] = frozenset()
    down: str = ""
    """What it answers instead of taking a mail."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address in self.refuses:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.down:
            return self.down
        self.envelopes.append(envelope)
        self.secure.append(session.ssl is not None)
        return "250 taken"

    def authenticate(
        self, _server: Any, _session: Any, _envelope: Any, _way: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.log_ins.append(data.login)
        good = (data.login, data.password) == (b"fep", b"mail-password")
        return AuthResult(success=good, handled=False)


class _Controller(Controller):
    """One that takes any port that is free."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mail(
    context: ssl.SSLContext | None = None, *, way: str = "none", log_in: bool = False
) -> Iterator[MailReceiver]:
    """Run a mail server for a block, in a thread of its own: it is asyncio's."""
    receiver = MailReceiver()
    controller = _Controller(
        receiver,
        hostname="127.0.0.1",
        port=0,
        ssl_context=context if way == "tls" else None,
        tls_context=context if way == "starttls" else None,
        require_starttls=way == "starttls",
        authenticator=receiver.authenticate if log_in else None,
        auth_required=log_in,
        auth_require_tls=way == "starttls",
    )
    controller.start()
    try:
        receiver.port = controller.port
        yield receiver
    finally:
        controller.stop()


# -- syslog ----------------------------------------------------------------------------------------


@attrs.define(eq=False)
class SyslogReceiver:
    """Keeps what came, piece by piece."""

    address: str = ""
    data: list[bytes] = attrs.Factory(list)


async def _take(receiver: SyslogReceiver, sock: trio.socket.SocketType) -> None:
    while True:
        receiver.data.append(await sock.recv(65_536))


async def _take_stream(receiver: SyslogReceiver, stream: trio.SocketStream) -> None:
    async with stream:
        whole = b""
        async for data in stream:
            whole += data
        receiver.data.append(whole)


@asynccontextmanager
async def syslog(way: str, directory: Path) -> AsyncIterator[SyslogReceiver]:
    """Run a receiver of syslog for a block: udp, tcp, unix, or unix-stream."""
    receiver = SyslogReceiver()
    async with trio.open_nursery() as nursery:
        if way == "tcp":
            serve = partial(trio.serve_tcp, partial(_take_stream, receiver), 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            receiver.address = f"tcp:127.0.0.1:{listener.socket.getsockname()[1]}"
            yield receiver
        else:
            unix = way.startswith("unix")
            family = trio.socket.AF_UNIX if unix else trio.socket.AF_INET
            stream = way == "unix-stream"
            kind = trio.socket.SOCK_STREAM if stream else trio.socket.SOCK_DGRAM
            with trio.socket.socket(family, kind) as sock:
                place: Any = str(directory / "log") if unix else ("127.0.0.1", 0)
                await sock.bind(place)
                if stream:
                    sock.listen(5)
                    listener = trio.SocketListener(sock)
                    serve_stream: Callable[..., Awaitable[None]] = partial(
                        trio.serve_listeners, partial(_take_stream, receiver), [listener]
                    )
                    await nursery.start(serve_stream)
                else:
                    nursery.start_soon(_take, receiver, sock)
                receiver.address = (
                    f"unix:{place}" if unix else f"udp:127.0.0.1:{sock.getsockname()[1]}"
                )
                yield receiver
                nursery.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
