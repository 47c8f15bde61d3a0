"""The listener of the page of metrics: small, guarded, and in nobody's way.

A page is made a piece at a time, so that the loop stands still for a millisecond or so, and no more
often than each second, however many scrapers ask. A connection answers one request and ends; of too
many the oldest makes room. Nothing of it waits for a bank, a key or the store.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from fep.control.commands import Services
from fep.control.renewal import Renewed
from fep.control.service import loaded_tls
from fep.domain.errors import ConfigError, RemoteProtocolError
from fep.domain.histogram import LAG_SECONDS, Histogram
from fep.metrics import page
from fep.metrics.catalogue import Disk, Look
from fep.metrics.config import MetricsConfig
from fep.wire.http import HttpRequest, RequestReader, response_bytes

log = structlog.get_logger()

PATH: Final = "/metrics"
CONNECTIONS_MAX: Final = 16
REQUEST_SECONDS_MAX: Final = 3.0
"""From the connection (TLS included) to the end of the request."""
REQUEST_BYTES_MAX: Final = 16_384
ANSWER_SECONDS_MAX: Final = 10.0
"""A scraper that has not read its page by then is cut off."""
PAGE_SECONDS_MIN: Final = 1.0
"""Who asks sooner gets the last page again."""
DISK_SECONDS_MAX: Final = 0.5
"""A file system that does not answer by then is left out."""
LAG_LOOK_SECONDS: Final = 0.25
RECEIVE_BYTES: Final = 4096
BACKLOG: Final = 64
TEXT: Final = "text/plain; charset=utf-8"

Guard = Callable[[Callable[[Any], Awaitable[None]]], Callable[[Any], Awaitable[None]]]


async def run_metrics(
    config: MetricsConfig,
    services: Services,
    guard: Guard,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the page until cancelled; ``started()`` when it listens.

    Args:
        config: where.
        services: what the metrics tell of.
        guard: the daemon's wrapper of connection handlers.
        task_status: trio's.

    Raises:
        ConfigError: it can't listen; the message says why.
    """
    assert config.listen is not None
    where, renewed = f"metrics {config.listen[0]}:{config.listen[1]}", None
    if (files := config.tls) is not None:
        renewed = services.renewals.begin(
            where,
            [files.certificate, files.key, files.client_ca, files.client_crl],
            partial(loaded_tls, files, where),
        )
    try:
        listeners = await _listen(*config.listen, where)
    except ConfigError:
        if renewed is not None:
            services.renewals.end(renewed)
        raise
    sockets = [one.socket for one in listeners]
    pages = _Pages(services)
    handler = guard(_Handler(pages, renewed))
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(pages.watch_lag)
            await nursery.start(trio.serve_listeners, handler, listeners)
            scheme = "http" if renewed is None else "https"
            addresses = [f"{scheme}://{_address(one)}{PATH}" for one in sockets]
            services.metrics = addresses
            log.info("metrics.listening", addresses=addresses)
            task_status.started()
            await trio.sleep_forever()
        finally:
            services.metrics = []
            if renewed is not None:
                services.renewals.end(renewed)
            for one in sockets:
                one.close()


class _Pages:
    """Owns the last page of each form, and what must be watched to make one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lag = Histogram(LAG_SECONDS)
        self._process = page.Process()
        self._made: dict[page.Writing, tuple[float, bytes]] = {}
        self._making = trio.Lock()
        self._disk_limiter = trio.CapacityLimiter(1)

    async def watch_lag(self) -> None:
        """Note by how much the loop is late, until cancelled."""
        while True:
            due = trio.current_time() + LAG_LOOK_SECONDS
            await trio.sleep_until(due)
            self._lag.observe(trio.current_time() - due)

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type; made anew unless the last one is fresh."""
        writing = page.writing(accept)
        async with self._making:
            made = self._made.get(writing)
            if made is None or trio.current_time() - made[0] >= PAGE_SECONDS_MIN:
                pieces = []
                for piece in page.pieces(await self._look(), self._process, writing):
                    pieces.append(piece)
                    # Others may go between two pieces of the work.
                    await trio.lowlevel.checkpoint()
                self._made[writing] = made = trio.current_time(), b"".join(pieces)
        return made[1], writing.value

    async def _look(self) -> Look:
        statistics = trio.lowlevel.current_statistics()
        tasks = {"living": statistics.tasks_living, "runnable": statistics.tasks_runnable}
        return Look(self._services, self._lag, await self._disk(), tasks)

    async def _disk(self) -> Disk | None:
        path = self._services.tasks.store.path
        if path is None:
            return None
        with trio.move_on_after(DISK_SECONDS_MAX):
            return await trio.to_thread.run_sync(
                _disk_of, path, abandon_on_cancel=True, limiter=self._disk_limiter
            )
        return None


def _disk_of(path: Path) -> Disk | None:
    try:
        space = os.statvfs(path.parent)
        store = path.stat().st_size
    except OSError:
        return None
    try:
        ahead = path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        ahead = 0
    free, size = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    return Disk(store, ahead, free, size)


class _Handler:
    """Answers one request a connection; of too many connections the oldest makes room."""

    def __init__(self, pages: _Pages, renewed: Renewed[ssl.SSLContext] | None) -> None:
        self._pages = pages
        self._renewed = renewed
        self._open: dict[trio.CancelScope, None] = {}

    async def __call__(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._open[scope] = None
            try:
                await self._serve(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The scraper went: it asks again by itself.
                return
            finally:
                self._open.pop(scope, None)

    async def _serve(self, plain: trio.SocketStream) -> None:
        stream: trio.abc.Stream = plain
        if self._renewed is not None:
            context = await self._renewed.fresh()
            stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        answer: bytes | None = None
        with trio.move_on_after(REQUEST_SECONDS_MAX) as waiting:
            try:
                request = await _request(stream)
            except RemoteProtocolError:
                answer = _refusal(400)
            else:
                if request is None:
                    return
                answer = await self._answer(request)
        if waiting.cancelled_caught:
            return
        assert answer is not None
        with trio.move_on_after(ANSWER_SECONDS_MAX):
            await stream.send_all(answer)
            await _last_words(stream)
            await stream.aclose()

    async def _answer(self, request: HttpRequest) -> bytes:
        if request.target.partition("?")[0] != PATH:
            return _refusal(404)
        if request.method != "GET":
            return _refusal(405)
        body, content_type = await self._pages.page(request.header("accept"))
        return response_bytes(200, body, content_type, close=True)


async def _request(stream: trio.abc.Stream) -> HttpRequest | None:
    """Return the first request, None when the connection ended before there was one.

    Raises:
        RemoteProtocolError: no HTTP, or too much of it.
    """
    reader = RequestReader(REQUEST_BYTES_MAX)
    got = 0
    while data := await stream.receive_some(RECEIVE_BYTES):
        got += len(data)
        if found := reader.receive_data(bytes(data)):
            return found[0]
        if got > REQUEST_BYTES_MAX:
            msg = f"a request of more than {REQUEST_BYTES_MAX} bytes"
            raise RemoteProtocolError(msg)
    return None


async def _last_words(stream: trio.abc.Stream) -> None:
    """Let the scraper read all: bytes that it sent meanwhile must not reset the connection."""
    if isinstance(stream, trio.SSLStream):
        # Says that this is the end, no break, and waits until the scraper says so, too.
        await stream.unwrap()
        return
    if isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.send_eof()
    left = REQUEST_BYTES_MAX
    while left > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
        left -= len(data)


def _refusal(status: int) -> bytes:
    return response_bytes(status, b"", TEXT, close=True)


async def _listen(host: str, port: int, where: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, socket.gaierror) as error:
        name = errno.errorcode.get(error.errno or 0, "")
        msg = f"{where}: {error.strerror or error} {name}".rstrip()
        raise ConfigError(msg) from error


def _address(sock: trio.socket.SocketType) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
