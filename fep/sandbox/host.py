"""``fep host``: a simulated bank as a process of its own, on loopback only.

The book's calls are short and run in the loop: this is a simulation of one bank's line, and the
order of its answers must not depend on threads. A book that another process keeps locked holds up
the whole bank for at most ``book.BUSY_SECONDS_MAX``.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sqlite3
import struct
import sys
import tomllib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
import trio
from cryptography import x509

from fep import logs
from fep.adapters import registry
from fep.adapters.host import (
    Answer,
    BankHost,
    BookAccount,
    Fault,
    Faults,
    ForgetfulBook,
    HostProfile,
    on_the_line,
    own_faults,
)
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, parse_account_number, parse_name
from fep.domain.money import Cny
from fep.sandbox.book import SqliteBook

log = structlog.get_logger()

RECEIVE_BYTES: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST, as a bank's box that lost power would."""

MEMORY: Final = Path(":memory:")
"""SQLite's name of a book without a file: nothing stays behind, however the process ends."""
PORT_MAX: Final = 65_535

SAMPLE_ACCOUNTS: Final = (
    ("99000000000101", "江枫样例制造有限公司", "1250000.37"),
    ("99000000000102", "云阶示例贸易有限公司", "300000.00"),
)


def parse_listen(text: str) -> tuple[str, int]:
    """Return the address and port of ``HOST:PORT``, such as ``127.0.0.1:0`` or ``[::1]:7001``.

    ``localhost`` is 127.0.0.1: the name may stand for two addresses with two free ports.

    Raises:
        ValueError: not written so, or the address is not loopback.
    """
    name, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > PORT_MAX:
        msg = f"{text!r} is not HOST:PORT with a port from 0 to {PORT_MAX}"
        raise ValueError(msg)
    address = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    address = "127.0.0.1" if address == "localhost" else address
    _check_loopback(address)
    return address, int(port)


def _check_loopback(address: str) -> None:
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        msg = f"a simulated bank listens on loopback only (127.0.0.1 or [::1]), not on {address!r}"
        raise ValueError(msg)


async def run_host(
    host: BankHost,
    profile: HostProfile,
    listen: tuple[str, int],
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``started()`` with the address that is listened on.

    It owns the listening socket and the connections. What goes wrong in one connection ends that
    one alone. The port may be that of a host that has just died.

    Args:
        host: the adapter's simulated half.
        profile: its bank, book, faults and certificates.
        listen: loopback address and port; port 0 takes a free one.
        task_status: trio's.

    Raises:
        ValueError: the address is not loopback.
        OSError: the port is taken.
    """
    address, port = listen
    _check_loopback(address)

    async def guarded(stream: trio.SocketStream) -> None:
        # An exception that left a handler would end the nursery of all connections.
        try:
            await _serve(host, profile, stream)
        except Exception:  # the edge of one connection; an exception group too, Cancelled passes
            log.exception("host.connection_failed", bank=profile.bank)

    (listener,) = await trio.open_tcp_listeners(port, host=address)
    where = listener.socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, guarded, [listener])
        task_status.started((str(where[0]), int(where[1])))


async def _serve(host: BankHost, profile: HostProfile, stream: trio.SocketStream) -> None:
    """One connection: answers leave in order, but a late one holds up nobody else's."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = host.open(profile)
    writing = trio.Lock()
    async with trio.open_nursery() as nursery:
        while data := await _received(stream):
            answers = connection.receive_data(data)
            log.debug("host.bytes_taken", bank=profile.bank, size=len(data), answers=len(answers))
            for answer in [one for told in answers for one in on_the_line(told, profile.faults)]:
                if answer.delay_s > 0:
                    nursery.start_soon(_late, stream, answer, writing)
                elif not await _act(stream, answer, writing):
                    nursery.cancel_scope.cancel()
                    return
        nursery.cancel_scope.cancel()


async def _received(stream: trio.SocketStream) -> bytes:
    """Return the next bytes; empty at the end, however it came."""
    try:
        return bytes(await stream.receive_some(RECEIVE_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # Closed: a late answer has just reset the connection under us.
        return b""


async def _late(stream: trio.SocketStream, answer: Answer, writing: trio.Lock) -> None:
    # When this ends the connection, who receives from it learns that by the closed stream.
    await trio.sleep(answer.delay_s)
    await _act(stream, answer, writing)


async def _act(stream: trio.SocketStream, answer: Answer, writing: trio.Lock) -> bool:
    """Do one answer; False when the connection is over."""
    if answer.exit:
        # As from outside: no handler, no flush, no goodbye.
        os.kill(os.getpid(), signal.SIGKILL)
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

    The balance is a text such as ``"1234.50"``; without ``bank`` the account is at this one.

    Raises:
        OSError: the file can't be read.
        ValueError: a member is missing or wrong; the message names the file and what is right.
    """
    try:
        return _accounts(tomllib.loads(path.read_text("utf-8")), bank)
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _accounts(table: dict[str, Any], bank: BankName) -> list[BookAccount]:
    rows = table.get("account")
    if set(table) != {"account"} or not isinstance(rows, list):
        msg = "must hold [[account]] tables only"
        raise ValueError(msg)
    return [_account(row, bank) for row in rows]


def _account(row: Any, bank: BankName) -> BookAccount:  # noqa: ANN401 - whatever TOML holds
    names = ("number", "name", "balance")
    texts = isinstance(row, dict) and all(isinstance(one, str) for one in row.values())
    if not texts or not set(names) <= set(row) <= {*names, "bank"}:
        msg = "an [[account]] has number, name, balance and maybe bank, all of them texts"
        raise ValueError(msg)
    balance = Cny.parse(row["balance"])
    if balance.fen < 0:
        msg = f"account {row['number']}: the balance must not be below zero"
        raise ValueError(msg)
    at = BankName(parse_name(row.get("bank", bank), "bank"))
    return BookAccount(at, parse_account_number(row["number"]), row["name"], balance)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fep host",
        description="Run a simulated bank on loopback: the adapter's other half.",
        epilog="Faults are NAME=PROBABILITY, separated by commas. Names: "
        + ", ".join(Fault)
        + ". An adapter's own are told by a wrong name, and by its page in docs/banks.",
    )
    parser.add_argument("adapter", help="whose protocol to speak, such as pingan_b2bi")
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="loopback only; port 0 = any free (default %(default)s)",
    )
    parser.add_argument("--bank", help="the bank's name in the book (default: the adapter's name)")
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="the book; hosts may share one (SQLite, made if missing)",
    )
    parser.add_argument(
        "--accounts", type=Path, metavar="FILE", help="TOML of [[account]] to open; known ones stay"
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


def _opening(given: argparse.Namespace, bank: BankName) -> list[BookAccount]:
    if given.accounts is not None:
        return read_accounts(given.accounts, bank)
    if given.ledger is not None:
        return []
    return [
        BookAccount(bank, parse_account_number(number), name, Cny.parse(balance))
        for number, name, balance in SAMPLE_ACCOUNTS
    ]


def _profile(host: BankHost, given: argparse.Namespace) -> tuple[HostProfile, SqliteBook]:
    bank = BankName(parse_name(given.bank or given.adapter, "bank"))
    faults = Faults.parse(given.faults, given.seed, own_faults(host))
    certificates = tuple(
        x509.load_pem_x509_certificate(path.read_bytes()) for path in given.certificate
    )
    accounts = _opening(given, bank)
    clock = SystemClock()
    try:
        book = SqliteBook(given.ledger or MEMORY)
        book.open_accounts(accounts, clock.now())
    except sqlite3.Error as error:
        msg = f"{given.ledger}: {error}"
        raise ValueError(msg) from error
    told = ForgetfulBook(book, faults)
    return HostProfile(bank, told, clock, faults, certificates), book


async def _run(host: BankHost, profile: HostProfile, listen: tuple[str, int]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            try:
                where = await nursery.start(run_host, host, profile, listen)
            except OSError as error:
                _complain(f"{listen[0]} port {listen[1]}: {error.strerror}")
                return 1
            _announce(host, profile, where)
            await anext(signals)
            nursery.cancel_scope.cancel()
    return 0


def _announce(host: BankHost, profile: HostProfile, where: tuple[str, int]) -> None:
    address = f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"
    line = {"event": "host.listening", "adapter": host.name, "bank": profile.bank}
    sys.stdout.buffer.write(orjson.dumps(line | {"address": address}) + b"\n")
    sys.stdout.flush()


def _complain(what: str) -> None:
    sys.stderr.write(f"fep host: {what}\n")


def main(arguments: Sequence[str]) -> int:
    """Run ``fep host``; returns the exit status: 0 ended by a signal, 1 could not run.

    Raises:
        SystemExit: 2 for wrong usage, 0 for ``--help``.
    """
    given = _parser().parse_args(arguments)
    logs.configure(sys.stderr, given.log_level)
    try:
        host, listen = registry.host(given.adapter), parse_listen(given.listen)
        profile, book = _profile(host, given)
    except (LookupError, ImportError, ValueError, OSError) as error:
        _complain(str(error))
        return 1
    with closing(book):
        return trio.run(_run, host, profile, listen)
