"""The control protocol's listeners: the Unix socket, TCP with mutual TLS, or with a secret.

Every connection is guarded: what goes wrong in one handler ends that connection alone. Each
listener has places of its own: who floods one keeps nobody from the others.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio
from cryptography import x509

from fep.control.commands import Role, Services
from fep.control.config import SESSIONS_MAX, ControlConfig, TcpListener, TlsFiles
from fep.control.poller import Poller
from fep.control.postman import Postman
from fep.control.proof import Gate
from fep.control.renewal import Loaded, Renewals, Renewed
from fep.control.session import Lock, Peer, Session
from fep.control.share import Shares
from fep.domain.errors import ConfigError
from fep.domain.ids import ClientName
from fep.wire.proof import Key, parse_keys

log = structlog.get_logger()

HANDSHAKE_SECONDS_MAX: Final = 5.0
CONNECTIONS_MAX: Final = SESSIONS_MAX
"""Open sessions of one listener; who comes then is refused."""
UNOPENED_MAX: Final = 64
"""Connections of one listener without a session yet; the oldest makes room for the next, so that a
flood of them keeps out nobody who opens at once."""
NOTE_SECONDS: Final = 1.0
"""A flood is logged once in this time, with its count."""
PROBE_SECONDS_MAX: Final = 1.0
TOKEN_CHARS_MIN: Final = 16
BACKLOG: Final = 128
PEER_CREDENTIALS: Final = "iII"
"""struct ucred of unix(7): a process id, and two unsigned numbers."""

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
    with ExitStack() as watched:
        with ExitStack() as undo:
            faces = []
            # The Unix socket last: who can connect to it finds all others open too.
            gate = Gate(int(services.clock.now().timestamp() * 1000), secrets.token_bytes(32))
            for listen in (*(_tcp_face(one, gate) for one in config.tcp), _unix_face):
                face = await listen(config, services, inherited)
                faces.append(face)
                if face.renewed is not None:
                    watched.callback(services.renewals.end, face.renewed)
                for listener in face.listeners:
                    undo.callback(listener.socket.close)
            undo.pop_all()
        faces.insert(0, faces.pop())
        shared = _Shared(Poller(), Postman(), Shares(config.limits, config.clients))
        async with trio.open_nursery() as nursery:
            await nursery.start(shared.poller.run)
            await nursery.start(shared.postman.run)
            nursery.start_soon(services.renewals.run)
            for face in faces:
                handler = guard(_handler(face, services, config.heartbeat_s, shared))
                await nursery.start(trio.serve_listeners, handler, face.listeners)
            addresses = [address for face in faces for address in face.addresses]
            log.info("control.listening", addresses=addresses)
            task_status.started(addresses)


@attrs.frozen
class _Shared:
    """What all connections have in common."""

    poller: Poller
    postman: Postman
    shares: Shares


Identify = Callable[[trio.SocketStream], Awaitable[tuple[trio.abc.Stream, Peer] | None]]
"""Says who is at the other end, and over what to speak to it; None: refused, and logged."""


@attrs.define
class _Face:
    """One way in: where it listens, and how it knows who comes."""

    identify: Identify
    listeners: list[trio.SocketListener]
    addresses: list[str]
    renewed: Renewed[Any] | None = None
    """What is read anew while it serves."""


Listen = Callable[[ControlConfig, Services, Sequence[socket.socket]], Awaitable[_Face]]


async def _unix_face(
    config: ControlConfig, _services: Services, inherited: Sequence[socket.socket]
) -> _Face:
    listeners = [_adopt(one) for one in inherited] or [_listen_unix(config)]
    addresses = [str(one.socket.getsockname()) for one in listeners]
    return _Face(_UnixPeers(config), listeners, addresses)


def _tcp_face(listener: TcpListener, gate: Gate) -> Listen:
    async def face(
        config: ControlConfig, services: Services, _inherited: Sequence[socket.socket]
    ) -> _Face:
        # The files first: what they lack must not leave an open listener behind.
        subject = f"control.tcp {listener.host}:{listener.port}"
        peers = _peers(listener, config, services, subject, gate)
        try:
            listeners = await _listen_tcp(listener)
        except ConfigError:
            services.renewals.end(peers.renewed)
            raise
        addresses = [_address(one.socket) for one in listeners]
        return _Face(peers, listeners, addresses, peers.renewed)

    return face


def _peers(
    listener: TcpListener, config: ControlConfig, services: Services, subject: str, gate: Gate
) -> _TlsPeers | _TokenPeers | _KeyPeers:
    if listener.tls is not None:
        return _TlsPeers(listener, config, services.renewals, subject)
    if listener.keys_file is not None:
        return _KeyPeers(listener.keys_file, config, services.renewals, subject, gate)
    assert listener.token_file is not None
    return _TokenPeers(listener.token_file, config, services.renewals, subject)


def _handler(
    face: _Face, services: Services, heartbeat_s: float, shared: _Shared
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    places = _Places()

    async def handle(stream: trio.SocketStream) -> None:
        if not places.has_room():
            return
        session: Session | None = None
        opened = False
        try:
            with places.unopened():
                if (found := await face.identify(stream)) is not None:
                    session = Session(
                        *found,
                        services,
                        heartbeat_s,
                        shared.poller,
                        shared.postman,
                        shared.shares,
                    )
                    opened = await session.open()
            if session is not None and opened:
                with places.open():
                    await session.run()
        finally:
            if session is not None:
                session.leave()

    return handle


class _Places:
    """The places of one listener: for sessions, and for connections on the way to one."""

    def __init__(self) -> None:
        self._unopened: dict[trio.CancelScope, None] = {}
        self._sessions = 0
        self._refused = _Count()
        self._crowded_out = _Count()

    def has_room(self) -> bool:
        """Say whether one more connection may come; noted when not."""
        if self._sessions < CONNECTIONS_MAX:
            return True
        if count := self._refused.due():
            log.warning("session.no_room", connections=CONNECTIONS_MAX, count=count)
        return False

    @contextmanager
    def unopened(self) -> Iterator[None]:
        """Hold a place until the session is open, or until a newer connection needs it."""
        if len(self._unopened) >= UNOPENED_MAX:
            oldest = next(iter(self._unopened))
            del self._unopened[oldest]
            oldest.cancel()
            if count := self._crowded_out.due():
                log.warning("session.crowded_out", connections=UNOPENED_MAX, count=count)
        with trio.CancelScope() as scope:
            self._unopened[scope] = None
            try:
                yield
            finally:
                self._unopened.pop(scope, None)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold a session's place."""
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1


class _Count:
    """Counts what comes often, to be told once in a while."""

    def __init__(self) -> None:
        self._count = 0
        self._told_at = float("-inf")

    def due(self) -> int:
        """Count one more; returns how many there are to tell of now, 0: not yet."""
        self._count += 1
        now = trio.current_time()
        if now - self._told_at < NOTE_SECONDS:
            return 0
        count, self._count, self._told_at = self._count, 0, now
        return count


class _UnixPeers:
    """Proves who is behind a Unix socket by the kernel's word (SO_PEERCRED)."""

    def __init__(self, config: ControlConfig) -> None:
        self._users = {
            user.uid: (ClientName(name), user.role) for name, user in config.users.items()
        }

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        size = struct.calcsize(PEER_CREDENTIALS)
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _pid, uid, _gid = struct.unpack(PEER_CREDENTIALS, raw)
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

    def __init__(
        self, listener: TcpListener, config: ControlConfig, renewals: Renewals, subject: str
    ) -> None:
        self._names = _roles(config)
        files = listener.tls
        assert files is not None
        self.renewed = renewals.begin(
            subject,
            [files.certificate, files.key, files.client_ca, files.client_crl],
            partial(loaded_tls, files, f"control.tcp {listener.host}:{listener.port}"),
        )

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        # Each has a context of its own, so that no ticket of an earlier one opens a later one.
        secured = trio.SSLStream(stream, await self.renewed.fresh(), server_side=True)
        origin = _origin(stream)
        try:
            with trio.fail_after(HANDSHAKE_SECONDS_MAX):
                await secured.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            reason = repr(error if error.__cause__ is None else error.__cause__)
            log.warning("session.tls_refused", origin=origin, reason=reason)
            return None
        name = _common_name(secured.getpeercert())
        role = self._names.get(name)
        names = {} if role is None else {name: role}
        return secured, Peer(None, names, None, None, f"tls CN {name} {origin}")


class _TokenPeers:
    """Loopback only: the first line must bear the token of a file that only its user can read."""

    def __init__(self, file: Path, config: ControlConfig, renewals: Renewals, subject: str) -> None:
        self._names = _roles(config)
        self.renewed = renewals.begin(subject, [file], lambda: Loaded(read_token(file)))

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        token = await self.renewed.fresh()
        return stream, Peer(None, self._names, None, token, f"tcp {_origin(stream)}")


class _KeyPeers:
    """Loopback only: the first line must bear a proof that its client holds a key of a file.

    All listeners have one gate: a proof that opened at one of them opens at no other.
    """

    def __init__(
        self, file: Path, config: ControlConfig, renewals: Renewals, subject: str, gate: Gate
    ) -> None:
        self._names = _roles(config)
        self._gate = gate
        self.renewed = renewals.begin(subject, [file], lambda: Loaded(read_keys(file)))

    async def __call__(self, stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer] | None:
        lock = Lock(await self.renewed.fresh(), self._gate)
        return stream, Peer(None, self._names, None, None, f"tcp {_origin(stream)}", lock)


def _roles(config: ControlConfig) -> dict[ClientName, Role]:
    return {name: Role(client.role) for name, client in config.clients.items()}


def _secret_text(path: Path, what: str) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except OSError as error:
        msg = f"{what} {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{what} {path}: is not UTF-8"
        raise ConfigError(msg) from error
    if stat.S_IMODE(mode) & 0o077:
        msg = f"{what} {path} can be read by others; chmod 600 it"
        raise ConfigError(msg)
    return text


def read_keys(path: Path) -> Mapping[str, Key]:
    """Return the keys in a file by their ids.

    Raises:
        ConfigError: not there, readable by others, or a line is no key.
    """
    text = _secret_text(path, "key file")
    try:
        return parse_keys(text)
    except ValueError as error:
        msg = f"key file {path}: {error}"
        raise ConfigError(msg) from error


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: not there, readable by others, or too short.
    """
    text = _secret_text(path, "token file")
    if len(text) < TOKEN_CHARS_MIN:
        msg = f"token file {path}: a token has at least {TOKEN_CHARS_MIN} characters"
        raise ConfigError(msg)
    return text


def tls_context(files: TlsFiles, where: str) -> ssl.SSLContext:
    """Return the server's context: TLS 1.3, and a client certificate of our own CA or no session.

    Args:
        files: of the listener.
        where: names it in an error.

    Raises:
        ConfigError: a file can't be read or does not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.client_ca)
        if files.client_crl is not None:
            context.load_verify_locations(files.client_crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        msg = f"{where}: TLS files: {error}"
        raise ConfigError(msg) from error
    return context


def loaded_tls(files: TlsFiles, where: str) -> Loaded[ssl.SSLContext]:
    """Return the server's context, and when what we show, and the list of what was taken back, end.

    Args:
        files: of the listener.
        where: names it in an error.

    Raises:
        ConfigError: a file can't be read or does not fit.
    """
    context = tls_context(files, where)
    ends = certificate_ends(files.certificate)
    crl = files.client_crl
    end = None if crl is None else _crl_end(crl)
    lists = {} if crl is None or end is None else {crl: end}
    return Loaded(context, ends, lists)


def certificate_ends(path: Path) -> dict[Path, dt.datetime]:
    """Return until when the first certificate of a PEM file is valid.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return {path: x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc}
    except (OSError, ValueError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error


def _crl_end(path: Path) -> dt.datetime | None:
    try:
        return x509.load_pem_x509_crl(path.read_bytes()).next_update_utc
    except (OSError, ValueError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error


def _common_name(certificate: Mapping[str, object] | None) -> ClientName:
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    for part in subject:
        for name, value in part:
            if name == "commonName":
                return ClientName(value)
    return ClientName("")


def _origin(stream: trio.SocketStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "gone already"
    return f"{host}:{port}"


def _address(sock: trio.socket.SocketType) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def _adopt(inherited: socket.socket) -> trio.SocketListener:
    inherited.settimeout(0)  # not blocking
    return trio.SocketListener(trio.socket.from_stdlib_socket(inherited))


def _listen_unix(config: ControlConfig) -> trio.SocketListener:
    """Open the Unix socket; a dead daemon's leftover is replaced, a living one's is not."""
    path = config.socket
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            _take_from_the_dead(path)
        raw.bind(str(path))
        path.chmod(config.socket_mode)
        raw.listen(BACKLOG)
    except OSError as error:
        raw.close()
        msg = f"control.socket {path}: {error.strerror or error}"
        raise ConfigError(msg) from error
    except ConfigError:
        raw.close()
        raise
    return _adopt(raw)


def _take_from_the_dead(path: Path) -> None:
    """Remove a socket that nobody serves.

    Raises:
        ConfigError: somebody does, or it can't be told: a busy daemon may not answer.
        OSError: it can't be removed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS_MAX)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except (TimeoutError, BlockingIOError):
            pass  # its backlog is full: it lives
    msg = f"{path}: another daemon serves this socket; stop it first"
    raise ConfigError(msg)


async def _listen_tcp(listener: TcpListener) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(listener.port, host=listener.host, backlog=BACKLOG)
    except OSError as error:
        msg = f"control.tcp {listener.host}:{listener.port}: {error.strerror or error}"
        raise ConfigError(msg) from error
