"""A whole daemon in the test's own process, with a simulated bank, and raw clients to it.

The raw client is written with ``json`` and plain streams on purpose: what it reads is what is on
the wire, not what our own client makes of it.
"""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import attrs
import structlog
import tomli_w
import trio
from cryptography import x509

from fep.adapters import registry
from fep.adapters.host import BookAccount, Faults, HostProfile
from fep.daemon import config as configuration
from fep.daemon.app import Daemon
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName
from fep.logs import Followers
from fep.sandbox.book import SqliteBook
from fep.sandbox.host import run_host
from fep.sandbox.scene import BANKS, FINANCE_CLIENT, HostProcess, Scene
from fep.store.files import STORE_FILE

WAIT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.01
LONG_HEARTBEAT_S = 3000.0
"""For tests in which heartbeats have no part."""
BANK = BANKS[0]
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close sends RST."""

Config = dict[str, Any]

_CONNECT_AS = """
import os, socket, sys
uid, path, fd = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
with socket.socket(fileno=fd) as channel:
    socket.send_fds(channel, [b"x"], [sock.fileno()])
"""


class Logs:
    """What was logged, and who follows it live."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.followers = Followers()

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the records of one event, oldest first."""
        return [one for one in self.records if one["event"] == event]

    def _keep(self, _logger: object, _method: str, record: Any) -> Any:
        self.records.append(dict(record))
        raise structlog.DropEvent

    @contextmanager
    def configured(self) -> Iterator[Self]:
        """Take all logs of this process for a block."""
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                self.followers,
                self._keep,
            ]
        )
        try:
            yield self
        finally:
            structlog.reset_defaults()


class Wire:
    """The client's end of one connection, line by line."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.seen: list[dict[str, Any]] = []
        """All that came and was not waited for."""
        self._tail = b""
        self._lines: list[bytes] = []
        self._ids = count(1)

    async def send_bytes(self, data: bytes) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            await self.stream.send_all(data)

    async def send(self, *messages: dict[str, Any]) -> None:
        lines = [json.dumps({"jsonrpc": "2.0"} | one).encode() + b"\n" for one in messages]
        await self.send_bytes(b"".join(lines))

    def request(self, method: str, params: Any = None) -> dict[str, Any]:
        """Return a request with an id of its own, not sent."""
        made = {"id": next(self._ids), "method": method}
        return made if params is None else made | {"params": params}

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message, None when the daemon has ended the connection."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not self._lines:
                try:
                    data = bytes(await self.stream.receive_some(65_536))
                except trio.BrokenResourceError:
                    return None
                if not data:
                    return None
                *self._lines, self._tail = (self._tail + data).split(b"\n")
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        assert message.pop("jsonrpc") == "2.0"
        return message

    async def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request that was sent; what else comes is kept in ``seen``."""
        for message in self.seen:
            if message.get("id") == request["id"] and "method" not in message:
                self.seen.remove(message)
                return message
        while (got := await self.receive()) is not None:
            if got.get("id") == request["id"] and "method" not in got:
                return got
            self.seen.append(got)
        msg = f"the connection ended before the answer to {request}"
        raise AssertionError(msg)

    async def ask(self, method: str, params: Any = None) -> dict[str, Any]:
        """Send a request and return its answer."""
        request = self.request(method, params)
        await self.send(request)
        return await self.reply(request)

    async def result(self, method: str, params: Any = None) -> Any:
        """Send a request and return its result."""
        answer = await self.ask(method, params)
        assert "error" not in answer, answer
        return answer["result"]

    async def refusal(self, method: str, params: Any = None) -> str | int:
        """Send a request and return the code of its refusal: ours, or JSON-RPC's own."""
        return code_of(await self.ask(method, params))

    async def take(self, method: str) -> dict[str, Any]:
        """Return the next request or notification of this method from the daemon."""
        for message in self.seen:
            if message.get("method") == method:
                self.seen.remove(message)
                return message
        while (got := await self.receive()) is not None:
            if got.get("method") == method:
                return got
            self.seen.append(got)
        msg = f"the connection ended before a {method}"
        raise AssertionError(msg)

    async def ended(self) -> list[dict[str, Any]]:
        """Wait for the end of the connection; returns all that came before it."""
        while (got := await self.receive()) is not None:
            self.seen.append(got)
        return self.seen

    async def open(self, client: str = FINANCE_CLIENT, token: str | None = None) -> dict[str, Any]:
        """Open the session and return the welcome."""
        params = {"client": client} | ({} if token is None else {"token": token})
        found: dict[str, Any] = await self.result("session.open", params)
        return found

    async def answer(self, request: dict[str, Any], result: Any) -> None:
        """Answer a request of the daemon."""
        await self.send({"id": request["id"], "result": result})

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def code_of(answer: dict[str, Any]) -> str | int:
    """Return the code of a refusal: ours, or JSON-RPC's own."""
    error = answer["error"]
    assert set(error) <= {"code", "message", "data"}
    if error["code"] != -32000:
        found: int = error["code"]
        return found
    code: str = error["data"]["code"]
    assert set(error["data"]) == {"code"} | ({"retry_after_s"} if code == "LIMITED" else set())
    return code


@attrs.define
class Rig:
    """A running daemon and how to reach it."""

    scene: Scene
    daemon: Daemon
    logs: Logs
    addresses: list[str]
    token: str
    nursery: trio.Nursery
    _streams: list[trio.abc.Stream] = attrs.Factory(list)

    @property
    def port(self) -> int:
        """Of the first TCP listener."""
        return int(self.addresses[1].rpartition(":")[2])

    @property
    def accounts(self) -> list[BookAccount]:
        return self.scene.accounts

    def _wire(self, stream: trio.abc.Stream) -> Wire:
        self._streams.append(stream)
        return Wire(stream)

    async def unix(self) -> Wire:
        """Connect to the Unix socket as this process."""
        return self._wire(await trio.open_unix_socket(str(self.scene.socket)))

    async def unix_as(self, uid: int) -> Wire:
        """Connect to the Unix socket as another user; needs to be root."""
        raw = await trio.to_thread.run_sync(connected_as, uid, self.scene.socket)
        return self._wire(trio.SocketStream(trio.socket.from_stdlib_socket(raw)))

    async def tcp(self, port: int = 0) -> Wire:
        return self._wire(await trio.open_tcp_stream("127.0.0.1", port or self.port))

    async def tls(self, context: ssl.SSLContext, port: int = 0) -> Wire:
        """Connect with TLS; the handshake is made by the first send or receive."""
        stream = await trio.open_tcp_stream("127.0.0.1", port or self.port)
        return self._wire(trio.SSLStream(stream, context, server_hostname="127.0.0.1"))

    async def finance(self, name: str = FINANCE_CLIENT) -> Wire:
        """Return an open session over TCP."""
        wire = await self.tcp()
        await wire.open(name, self.token)
        return wire

    async def admin(self, name: str = "root") -> Wire:
        """Return an open session of an administrator."""
        wire = await self.unix()
        await wire.open(name)
        return wire

    def transfer(self, fen: int = 100) -> dict[str, Any]:
        """Return the body of a payment between the first two accounts."""
        payer, payee = self.accounts[:2]
        return {
            "kind": "transfer",
            "params": {
                "payer": {"account": payer.number},
                "payee": {
                    "account": payee.number,
                    "name": payee.name,
                    "bank_code": BANK.bank_code,
                    "bank_name": BANK.title,
                },
                "amount": f"{fen // 100}.{fen % 100:02d}",
                "currency": "CNY",
            },
        }

    def balance(self) -> dict[str, Any]:
        """Return the body of a balance query."""
        return {"kind": "balance", "params": {"account": self.accounts[0].number}}

    async def until(self, ready: Callable[[], Any], what: str) -> Any:
        """Wait until ``ready()`` is something true, and return that."""
        return await until(ready, what)

    async def ready(self) -> None:
        """Wait until the bank's key and connection are ready."""
        link = self.daemon.links[BankName(BANK.name)]
        await self.until(lambda: link.is_open, "the bank's connection")

    def stored(self, sql: str, *values: Any) -> list[Any]:
        """Return rows of the store as they are on disk."""
        with closing(sqlite3.connect(self.daemon.config.state_dir / STORE_FILE)) as connection:
            return connection.execute(sql, values).fetchall()

    @contextmanager
    def store(self) -> Iterator[sqlite3.Connection]:
        """Change the store on disk, behind the daemon's back."""
        path = self.daemon.config.state_dir / STORE_FILE
        with closing(sqlite3.connect(path)) as connection, connection:
            yield connection

    def alarms(self) -> set[tuple[str, str]]:
        """Return kind and subject of the alarms in force."""
        return {(one.kind.value, one.subject) for one in self.daemon.alarms.active()}


async def until(ready: Callable[[], Any], what: str) -> Any:
    """Wait until ``ready()`` is something true, and return that."""
    with trio.move_on_after(WAIT_SECONDS_MAX):
        while not (found := ready()):
            await trio.sleep(POLL_SECONDS)
        return found
    msg = f"{what}: not within {WAIT_SECONDS_MAX:g} s"
    raise AssertionError(msg)


def connected_as(uid: int, path: Path) -> socket.socket:
    """Return a connection that a process of this uid made; needs to be root."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-ISE", "-c", _CONNECT_AS, str(uid), str(path), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=WAIT_SECONDS_MAX,
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    sock = socket.socket(fileno=fds[0])
    sock.setblocking(False)
    return sock


def scene_in(directory: Path, key: Path, heartbeat_s: float) -> Scene:
    """Return a scene of one bank whose host is nowhere yet, with a ready-made software key."""
    scene = Scene(directory, banks=[BANK], accounts_per_bank=2, heartbeat_s=heartbeat_s)
    for suffix in (".pem", ".crt"):
        target = directory / f"ukey-{BANK.name}{suffix}"
        shutil.copyfile(key.with_suffix(suffix), target)
        target.chmod(0o600)
    scene.hosts[BANK.name] = HostProcess(BANK, directory, port=1)
    return scene


@asynccontextmanager
async def running(
    directory: Path,
    key: Path,
    logs: Logs,
    *,
    bank: bool = False,
    heartbeat_s: float = LONG_HEARTBEAT_S,
    change: Callable[[Config], None] | None = None,
    faults: str = "",
) -> AsyncIterator[Rig]:
    """Run a daemon for a block.

    Args:
        directory: its configuration, store and sockets; the same one again is a restart.
        key: a software key with its certificate beside it.
        logs: of this process.
        bank: True: with a simulated bank; else its connection is down.
        heartbeat_s: of the control protocol.
        change: changes the configuration before it is written.
        faults: of the simulated bank.
    """
    scene = scene_in(directory, key, heartbeat_s)
    async with trio.open_nursery() as nursery:
        if bank:
            await _start_bank(scene, nursery, faults)
        table = scene.configuration()
        table["control"]["tcp"][0]["listen"] = "127.0.0.1:0"
        if change is not None:
            change(table)
        scene.config.write_text(tomli_w.dumps(table), "utf-8")
        daemon = Daemon(configuration.load(scene.config), SystemClock(), logs.followers)
        addresses = await nursery.start(daemon.run)
        token = scene.token.read_text("utf-8").strip()
        rig = Rig(scene, daemon, logs, addresses, token, nursery)
        try:
            yield rig
        finally:
            with trio.CancelScope(shield=True, relative_deadline=WAIT_SECONDS_MAX):
                for stream in rig._streams:
                    await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def _start_bank(scene: Scene, nursery: trio.Nursery, faults: str) -> None:
    certificate = x509.load_pem_x509_certificate(
        (scene.directory / f"ukey-{BANK.name}.crt").read_bytes()
    )
    book = SqliteBook(Path(":memory:"))
    book.open_accounts(scene.accounts, SystemClock().now())
    profile = HostProfile(
        BankName(BANK.name), book, SystemClock(), Faults.parse(faults, 0), (certificate,)
    )
    host = registry.host(BANK.adapter)
    _, port = await nursery.start(partial(run_host, host, profile, ("127.0.0.1", 0)))
    scene.hosts[BANK.name].port = port


def open_fds() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir())) - 1
