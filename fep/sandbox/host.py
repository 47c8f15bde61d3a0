"""``fep host``: a simulated bank as a process of its own, on loopback only.

The book's calls are short and run in the loop: this is a simulation of one bank's line, and the
order of its answers must not depend on threads.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
import tempfile
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import orjson
import structlog
import trio
from cryptography import x509

from fep import logs
from fep.adapters import registry
from fep.adapters.host import Answer, BankHost, BookAccount, Fault, Faults, HostProfile
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, parse_account_number
from fep.domain.money import Cny
from fep.sandbox.book import SqliteBook

log = structlog.get_logger()

RECEIVE_BYTES: Final = 65_536
EXIT_STATUS: Final = 137
"""What a shell shows for a process ended by SIGKILL (128 + 9)."""
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST, as a bank's box that lost power would."""

SAMPLE_ACCOUNTS: Final = (
    ("99000000000101", "江枫样例制造有限公司", "1250000.37"),
    ("99000000000102", "云阶示例贸易有限公司", "300000.00"),
)


async def run_host(
    host: BankHost,
    profile: HostProfile,
    address: tuple[str, int],
    guard: Callable[
        [Callable[[trio.SocketStream], Awaitable[None]]],
        Callable[[trio.SocketStream], Awaitable[None]],
    ],
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``started()`` with the address that is listened on.

    Args:
        host: the adapter's simulated half.
        profile: its bank, book, faults and certificates.
        address: host and port; port 0 takes a free one.
        guard: keeps what goes wrong in one connection from the others.
        task_status: trio's.

    Raises:
        ValueError: the address is not loopback.
    """
    name, port = address
    if name not in ("127.0.0.1", "::1", "localhost"):
        msg = f"a simulated bank listens on loopback only, not on {name}"
        raise ValueError(msg)

    async def serve(stream: trio.SocketStream) -> None:
        await _serve(host, profile, stream)

    listeners = await trio.open_tcp_listeners(port, host=name)
    where = listeners[0].socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, guard(serve), listeners)
        task_status.started((str(where[0]), int(where[1])))


async def _serve(host: BankHost, profile: HostProfile, stream: trio.SocketStream) -> None:
    """One connection: answers leave in order, but a late one holds up nobody else's."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = host.open(profile)
    writing = trio.Lock()
    async with trio.open_nursery() as nursery:
        while True:
            try:
                data = await stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                nursery.cancel_scope.cancel()
                return
            for answer in connection.receive_data(bytes(data)):
                if answer.delay_s > 0:
                    nursery.start_soon(_late, stream, answer, writing)
                elif not await _act(stream, answer, writing):
                    nursery.cancel_scope.cancel()
                    return


async def _late(stream: trio.SocketStream, answer: Answer, writing: trio.Lock) -> None:
    await trio.sleep(answer.delay_s)
    await _act(stream, answer, writing)


async def _act(stream: trio.SocketStream, answer: Answer, writing: trio.Lock) -> bool:
    """Do one answer; False when the connection is over."""
    if answer.exit:
        os._exit(EXIT_STATUS)
    if answer.data:
        try:
            async with writing:
                await stream.send_all(answer.data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
    if answer.close:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await stream.aclose()
        return False
    return True


def read_accounts(path: Path, bank: BankName) -> list[BookAccount]:
    """Return the accounts of a TOML file of ``[[account]]`` with number, name, balance, bank.

    Raises:
        ValueError: a member is missing or wrong.
    """
    rows = tomllib.loads(path.read_text("utf-8")).get("account", [])
    try:
        return [
            BookAccount(
                BankName(row.get("bank", bank)),
                parse_account_number(row["number"]),
                row["name"],
                Cny.parse(row["balance"]),
            )
            for row in rows
        ]
    except KeyError as error:
        msg = f"{path}: an [[account]] lacks {error}"
        raise ValueError(msg) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fep host",
        description="Run a simulated bank on loopback: the adapter's other half.",
        epilog="Faults are NAME=PROBABILITY, separated by commas. Names: " + ", ".join(Fault),
    )
    parser.add_argument("adapter", help="whose protocol to speak, such as pingan_b2bi")
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="loopback; port 0 = any free"
    )
    parser.add_argument("--bank", help="the bank's name in the book (default: the adapter's name)")
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="the book; hosts may share one (SQLite)"
    )
    parser.add_argument(
        "--accounts", type=Path, metavar="FILE", help="TOML with [[account]] rows to open"
    )
    parser.add_argument("--faults", default="", metavar="SPEC", help="what to do wrong, see below")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    parser.add_argument(
        "--certificate",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="demand signatures by this certificate's key; may be repeated",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning"))
    return parser


def _profile(given: argparse.Namespace, ledger: Path) -> HostProfile:
    bank = BankName(given.bank or given.adapter)
    book = SqliteBook(ledger)
    if given.accounts is not None:
        accounts = read_accounts(given.accounts, bank)
    elif given.ledger is None:
        accounts = [
            BookAccount(bank, parse_account_number(number), name, Cny.parse(balance))
            for number, name, balance in SAMPLE_ACCOUNTS
        ]
    else:
        accounts = []
    clock = SystemClock()
    book.open_accounts(accounts, clock.now())
    return HostProfile(
        bank=bank,
        book=book,
        clock=clock,
        faults=Faults.parse(given.faults, given.seed),
        certificates=tuple(
            x509.load_pem_x509_certificate(path.read_bytes()) for path in given.certificate
        ),
    )


async def _run(
    host: BankHost,
    profile: HostProfile,
    address: tuple[str, int],
    guard: Callable[
        [Callable[[trio.SocketStream], Awaitable[None]]],
        Callable[[trio.SocketStream], Awaitable[None]],
    ],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            where = await nursery.start(run_host, host, profile, address, guard)
            line = {"event": "host.listening", "adapter": host.name, "bank": profile.bank}
            line["address"] = f"{where[0]}:{where[1]}"
            sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
            sys.stdout.flush()
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def guarded(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Keep what goes wrong in one connection from the others."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await handler(stream)
        except Exception as error:  # noqa: BLE001 - the edge of one connection
            log.error("host.connection_failed", reason=repr(error))

    return serve


def main(arguments: Sequence[str]) -> int:
    """Run ``fep host``; returns the exit status."""
    given = _parser().parse_args(arguments)
    logs.configure(sys.stderr, given.log_level)
    try:
        host = registry.host(given.adapter)
        name, _, port = given.listen.rpartition(":")
        with tempfile.TemporaryDirectory(prefix="fep-host-") as scratch:
            profile = _profile(given, given.ledger or Path(scratch) / "book.sqlite")
            trio.run(_run, host, profile, (name, int(port)), guarded)
    except (registry.UnknownAdapterError, ValueError, OSError) as error:
        sys.stderr.write(f"fep host: {error}\n")
        return 1
    return 0
