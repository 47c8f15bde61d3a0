"""The control protocol's listeners: the Unix socket, TCP with mutual TLS, loopback TCP with token.

Every connection is guarded: what goes wrong in one handler ends that connection alone.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog
import trio

from fep.control.commands import Role, Services
from fep.control.config import ControlConfig, TcpListener
from fep.control.session import Peer, Session
from fep.domain.errors import ConfigError
from fep.domain.ids import ClientName

log = structlog.get_logger()

HANDSHAKE_SECONDS_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 512
TOKEN_CHARS_MIN: Final = 16
BACKLOG: Final = 128

Guard = Callable[
    [Callable[[trio.SocketStream], Awaitable[None]]], Callable[[trio.SocketStream], Awaitable[None]]
]
"""Wraps a handler so that no exception of it leaves it; the daemon's supervisor has it."""


async def run_control(
    config: ControlConfig,
    services: Services,
    guard: Guard,
    inherited: Sequence[socket.socket] = (),
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``started()`` with the addresses once all listeners are open.

    Args:
        config: the listeners and who may open as what.
        services: what the methods act on.
        guard: the daemon's wrapper of connection handlers.
        inherited: open Unix sockets from the service manager, used in place of binding one.
        task_status: trio's.

    Raises:
        ConfigError: a listener can't be opened; the message says which and why.
    """
    room = trio.CapacityLimiter(CONNECTIONS_MAX)
    addresses: list[str] = []

    def handler(
        identify: Callable[[trio.SocketStream], Awaitable[tuple[trio.abc.Stream, Peer] | None]],
    ) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def handle(stream: trio.SocketStream) -> None:
            if room.borrowed_tokens >= CONNECTIONS_MAX:
                log.warning("session.no_room", connections=CONNECTIONS_MAX)
                return
            async with room:
                found = await identify(stream)
                if found is not None:
                    await Session(*found, services, config.heartbeat_s).run()

        return guard(handle)

    async with trio.open_nursery() as nursery:
        unix = [_adopt(one) for one in inherited] or [_listen_unix(config)]
        addresses.append(str(config.socket))
        await nursery.start(trio.serve_listeners, handler(_UnixPeers(config)), unix)
        for listener in config.tcp:
            opened = await _listen_tcp(listener)
            identify = (
                _TlsPeers(listener, config) if listener.tls else _TokenPeers(listener, config)
            )
            await nursery.start(trio.serve_listeners, handler(identify), opened)
            addresses.extend(_address(one.socket) for one in opened)
        log.info("control.listening", addresses=addresses)
        task_status.started(addresses)


class _UnixPeers:
    """Proves who is behind a Unix socket by the kernel's word (SO_PEERCRED)."""

    def __init__(self, config: ControlConfig) -> None:
        self._users = {
            user.uid: (ClientName(name), user.role) for name, user in config.users.items()
        }

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("3i", raw)
        origin = f"unix uid {uid}"
        if uid in self._users:
            name, role = self._users[uid]
            return stream, Peer(Role(role), {}, name, None, origin)
        if uid in (0, os.geteuid()):
            # Who can become root, or is the daemon's own user, has the store itself in hand.
            return stream, Peer(Role.ADMIN, {}, None, None, origin)
        return stream, Peer(None, {}, None, None, origin)


class _TlsPeers:
    """Proves a client by its certificate: the subject's common name is the client's name."""

    def __init__(self, listener: TcpListener, config: ControlConfig) -> None:
        self._names = _roles(config)
        self._context = tls_context(listener)

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        secured = trio.SSLStream(stream, self._context, server_side=True)
        origin = _origin(stream)
        try:
            with trio.fail_after(HANDSHAKE_SECONDS_MAX):
                await secured.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            reason = repr(error.__cause__ or error)
            log.warning("session.tls_refused", origin=origin, reason=reason)
            return None
        name = _common_name(secured.getpeercert())  # type: ignore[no-untyped-call]
        role = self._names.get(name)
        names = {} if role is None else {name: role}
        return secured, Peer(None, names, None, None, f"tls CN {name} {origin}")


class _TokenPeers:
    """Loopback only: the first line must bear the token of a file that only its user can read."""

    def __init__(self, listener: TcpListener, config: ControlConfig) -> None:
        assert listener.token_file is not None
        self._names = _roles(config)
        self._token = read_token(listener.token_file)

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        return stream, Peer(None, self._names, None, self._token, f"tcp {_origin(stream)}")


def _roles(config: ControlConfig) -> dict[ClientName, Role]:
    return {name: Role(client.role) for name, client in config.clients.items()}


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: not there, readable by others, or too short.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except OSError as error:
        msg = f"token file {path}: {error.strerror}"
        raise ConfigError(msg) from error
    if stat.S_IMODE(mode) & 0o077:
        msg = f"token file {path} can be read by others; chmod 600 it"
        raise ConfigError(msg)
    if len(text) < TOKEN_CHARS_MIN:
        msg = f"token file {path}: a token has at least {TOKEN_CHARS_MIN} characters"
        raise ConfigError(msg)
    return text


def tls_context(listener: TcpListener) -> ssl.SSLContext:
    """Return the server's context: TLS 1.3, and a client certificate of our own CA or no session.

    Raises:
        ConfigError: a file can't be read or does not fit.
    """
    assert listener.tls is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(listener.tls.certificate, listener.tls.key)
        context.load_verify_locations(listener.tls.client_ca)
    except (OSError, ssl.SSLError) as error:
        msg = f"control.tcp {listener.host}:{listener.port}: TLS files: {error}"
        raise ConfigError(msg) from error
    return context


def _common_name(certificate: Mapping[str, object] | None) -> ClientName:
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    for part in subject:
        for name, value in part:
            if name == "commonName":
                return ClientName(value)
    return ClientName("")


def _origin(stream: trio.SocketStream) -> str:
    host, port = stream.socket.getpeername()[:2]
    return f"{host}:{port}"


def _address(sock: trio.socket.SocketType) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def _adopt(inherited: socket.socket) -> trio.SocketListener:
    inherited.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(inherited))


def _listen_unix(config: ControlConfig) -> trio.SocketListener:
    """Open the Unix socket; a dead daemon's leftover is replaced, a living one's is not."""
    path = config.socket
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(path))
                except OSError:
                    path.unlink()
                else:
                    msg = f"{path}: another daemon serves this socket; stop it first"
                    raise ConfigError(msg)
        raw.bind(str(path))
        path.chmod(config.socket_mode)
        raw.listen(BACKLOG)
    except OSError as error:
        raw.close()
        msg = f"control.socket {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except ConfigError:
        raw.close()
        raise
    return _adopt(raw)


async def _listen_tcp(listener: TcpListener) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(listener.port, host=listener.host, backlog=BACKLOG)
    except OSError as error:
        msg = f"control.tcp {listener.host}:{listener.port}: {error.strerror or error}"
        raise ConfigError(msg) from error
