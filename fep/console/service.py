"""The console's listener: HTTP on hypercorn's trio worker, each connection's handler guarded.

hypercorn ends idle connections, half headers and long ones; bodies are limited by us, and so is
the number of connections. What goes wrong in one connection ends that connection alone.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from fep.console.app import make_app
from fep.console.config import ConsoleConfig, ConsoleTls
from fep.console.desk import Desk
from fep.control.commands import Services
from fep.control.renewal import Loaded, Renewed
from fep.control.service import certificate_ends
from fep.domain.errors import ConfigError

log = structlog.get_logger()

CONNECTIONS_MAX: Final = 256
IDLE_SECONDS_MAX: Final = 15.0
"""Without a request, or in the middle of its header, a connection is ended."""
HEADER_BYTES_MAX: Final = 16_384
BACKLOG: Final = 128

Stream = Any
"""Plain or TLS; hypercorn takes both."""
Guard = Callable[[Callable[[Any], Awaitable[None]]], Callable[[Any], Awaitable[None]]]


async def run_console(
    config: ConsoleConfig,
    services: Services,
    guard: Guard,
    verify: Callable[[], Awaitable[dict[str, Any]]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the console until cancelled; ``started()`` when it listens.

    Args:
        config: where, and for how long people stay logged in.
        services: what the pages show and act on.
        guard: the daemon's wrapper of connection handlers.
        verify: looks at the whole store, in a process of its own.
        task_status: trio's.

    Raises:
        ConfigError: it can't listen; the message says why.
    """
    assert config.listen is not None
    where, renewed = f"console {config.listen[0]}:{config.listen[1]}", None
    if (files := config.tls) is not None:
        renewed = services.renewals.begin(
            where,
            [files.certificate, files.key],
            lambda: Loaded(_tls_context(files), certificate_ends(files.certificate)),
        )
    desk = Desk(services, verify, secure=renewed is not None)
    try:
        listeners = await _listen(*config.listen)
    except ConfigError:
        if renewed is not None:
            services.renewals.end(renewed)
        raise
    sockets = [one.socket for one in listeners]
    serve = _handler(wrap_app(cast("Any", make_app(desk)), 0, "asgi"), _server_config())
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(desk.live.run)
            nursery.start_soon(desk.checker.run)
            handler = guard(serve if renewed is None else _secured(serve, renewed))
            await nursery.start(trio.serve_listeners, handler, listeners)
            scheme = "https" if renewed is not None else "http"
            addresses = [f"{scheme}://{_address(one)}" for one in sockets]
            services.console = addresses
            log.info("console.listening", addresses=addresses)
            task_status.started()
            await trio.sleep_forever()
        finally:
            services.console = []
            if renewed is not None:
                services.renewals.end(renewed)
            for one in sockets:
                one.close()


def _handler(app: Any, config: Config) -> Callable[[Stream], Awaitable[None]]:  # noqa: ANN401
    context = WorkerContext(None)
    places = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def handle(stream: Stream) -> None:
        try:
            places.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            return
        try:
            await _Connection(app, config, context, ConnectionState({}), stream)
        finally:
            places.release_on_behalf_of(stream)

    return handle


class _Connection(TCPServer):
    """hypercorn's connection, which may also be closed while it answers.

    Its sends wait for each other, but not for the half-close. When a browser goes away in the
    middle of a body at the moment at which the application answers, hypercorn's "bad request" meets
    the application's half-close, and trio refuses it. Nobody is there to read it: it is an end.
    """

    async def protocol_send(self, event: Event) -> None:
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:
            await self.protocol.handle(Closed())


def _secured(
    serve: Callable[[Stream], Awaitable[None]], renewed: Renewed[ssl.SSLContext]
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def handle(stream: trio.SocketStream) -> None:
        context = await renewed.fresh()
        await serve(trio.SSLStream(stream, context, server_side=True, https_compatible=True))

    return handle


def _server_config() -> Config:
    config = Config()
    config.keep_alive_timeout = IDLE_SECONDS_MAX
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    config.alpn_protocols = ["http/1.1"]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    return config


def _tls_context(files: ConsoleTls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        msg = f"console: TLS files: {error}"
        raise ConfigError(msg) from error
    return context


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, socket.gaierror) as error:
        name = errno.errorcode.get(error.errno or 0, "")
        msg = f"console {host}:{port}: {error.strerror or error} {name}".rstrip()
        raise ConfigError(msg) from error


def _address(sock: trio.socket.SocketType) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
