"""The simulated bank's shell: connections apart, answers in order, deaths and restarts."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fep.adapters.host import Faults, HostProfile
from fep.domain.clock import SystemClock
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.sandbox.book import SqliteBook
from fep.sandbox.host import MEMORY, SAMPLE_ACCOUNTS, main, parse_listen, read_accounts, run_host
from tests.sandbox.book_child import ACCOUNTS, NORTH, NOW
from tests.sandbox.line_host import LineHost

ROOT = Path(__file__).parents[2]
ANSWER_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 1.0
"""From SIGTERM to the end of the process."""

Address = tuple[str, int]


@pytest.fixture
async def address(nursery: trio.Nursery) -> AsyncIterator[Address]:
    """A line bank in this process, on a free port."""
    book = SqliteBook(MEMORY)
    book.open_accounts(ACCOUNTS, NOW)
    profile = HostProfile(NORTH, book, SystemClock(), Faults())
    where: Address = await nursery.start(run_host, LineHost(), profile, ("127.0.0.1", 0))
    yield where
    nursery.cancel_scope.cancel()
    book.close()


async def lines(stream: trio.abc.ReceiveStream, count: int) -> list[str]:
    """Return the next lines; what comes beyond them is a fault."""
    data = b""
    with trio.fail_after(ANSWER_SECONDS_MAX):
        while data.count(b"\n") < count:
            some = await stream.receive_some()
            assert some, f"the end after {data!r}"
            data += some
    assert data.endswith(b"\n")
    return data.decode().split()


async def ask(stream: trio.abc.Stream, *requests: str) -> list[str]:
    """Send requests in one piece and return as many lines."""
    await stream.send_all("".join(f"{one}\n" for one in requests).encode())
    return await lines(stream, len(requests))


def above_debug(logged: Sequence[Any]) -> list[Any]:
    """Return what an operator sees by default."""
    return [one for one in logged if one["log_level"] != "debug"]


def reset(stream: trio.SocketStream) -> None:
    """Make the stream's close a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# -- connections ------------------------------------------------------------------------------


async def test_answers_leave_in_order(address: Address) -> None:
    async with await trio.open_tcp_stream(*address) as stream:
        words = [f"w{n}" for n in range(50)]
        assert await ask(stream, *(f"echo {word}" for word in words)) == words


async def test_each_connection_has_its_own_answers(address: Address) -> None:
    async def talk(name: int) -> None:
        async with await trio.open_tcp_stream(*address) as stream:
            for turn in range(5):
                await trio.testing.wait_all_tasks_blocked()
                assert await ask(stream, f"echo {name}-{turn}") == [f"{name}-{turn}"]

    async with trio.open_nursery() as nursery:
        for name in range(20):
            nursery.start_soon(talk, name)


async def test_a_late_answer_holds_up_no_other(
    autojump_clock: trio.testing.MockClock, address: Address
) -> None:
    """All three requests come in one piece, so the clock can't jump between them."""
    async with await trio.open_tcp_stream(*address) as stream:
        started = trio.current_time()
        await stream.send_all(b"late 20 slow\necho quick\nlate 10 middle\n")
        assert await lines(stream, 3) == ["quick", "middle", "slow"]
        assert trio.current_time() - started == pytest.approx(20)


async def test_a_defect_in_one_connection_reaches_no_other(address: Address) -> None:
    with capture_logs() as logged:
        async with await trio.open_tcp_stream(*address) as well:
            assert await ask(well, "echo before") == ["before"]
            for turn in range(3):
                async with await trio.open_tcp_stream(*address) as ill:
                    await ill.send_all(b"fault\n")
                    with trio.fail_after(ANSWER_SECONDS_MAX):
                        assert await ill.receive_some() == b""
                assert await ask(well, f"echo {turn}") == [str(turn)]
    events = [(one["event"], one["log_level"], one["bank"]) for one in above_debug(logged)]
    assert events == [("host.connection_failed", "error", "north")] * 3


@pytest.mark.parametrize("request_", ["last bye", "late-last 0.01 bye"])
async def test_close_is_a_reset_and_not_a_fault(address: Address, request_: str) -> None:
    with capture_logs() as logged:
        async with await trio.open_tcp_stream(*address) as stream:
            assert await ask(stream, request_) == ["bye"]
            with trio.fail_after(ANSWER_SECONDS_MAX), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        async with await trio.open_tcp_stream(*address) as stream:
            assert await ask(stream, "echo next") == ["next"]
    assert above_debug(logged) == []


async def test_a_client_that_goes_is_not_a_fault(address: Address) -> None:
    """It leaves by a reset, with and without answers to come, or in order."""
    with capture_logs() as logged:
        for owed, by_reset in (
            (b"late 0.01 never\necho unread\n", True),
            (b"", True),
            (b"", False),
        ):
            stream = await trio.open_tcp_stream(*address)
            assert await ask(stream, "echo here") == ["here"]
            await stream.send_all(owed)
            if by_reset:
                reset(stream)
            await stream.aclose()
        async with await trio.open_tcp_stream(*address) as stream:
            # Later than what was owed to the two that left.
            assert await ask(stream, "late 0.1 next") == ["next"]
    assert above_debug(logged) == []


async def test_the_late_answers_of_a_closed_connection_end_with_it(
    autojump_clock: trio.testing.MockClock, address: Address
) -> None:
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"late 1000 never\nlast bye\n")
        assert await lines(stream, 1) == ["bye"]
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() < 1000


async def test_bytes_may_come_one_by_one(address: Address) -> None:
    async with await trio.open_tcp_stream(*address) as stream:
        for byte in b"echo whole\n":
            await stream.send_all(bytes([byte]))
        assert await lines(stream, 1) == ["whole"]


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["0.0.0.0", "192.0.2.1", "::", "", "bank.example", "127.1.example"]
)
async def test_it_listens_on_loopback_only(name: str) -> None:
    book = SqliteBook(MEMORY)
    profile = HostProfile(NORTH, book, SystemClock(), Faults())
    with pytest.raises(ValueError, match="loopback only"):
        await run_host(LineHost(), profile, (name, 0))
    with pytest.raises(ValueError, match=r"loopback only|HOST:PORT"):
        parse_listen(f"{name}:0")
    book.close()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.8.0.1:65535", ("127.8.0.1", 65_535)),
        ("localhost:7001", ("127.0.0.1", 7001)),
        ("[::1]:7001", ("::1", 7001)),
    ],
)
def test_listen_addresses(text: str, parsed: Address) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize(
    "text", ["7001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣"]
)
def test_wrong_listen_addresses_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_listen(text)


@given(st.text())
def test_any_listen_text_gives_an_address_or_a_value_error(text: str) -> None:
    try:
        _, port = parse_listen(text)
    except ValueError:
        return
    assert 0 <= port <= 65_535


# -- accounts ---------------------------------------------------------------------------------

ACCOUNTS_TOML = """
[[account]]
number = "1001"
name = "江枫样例制造有限公司"
balance = "1234.50"
[[account]]
number = "2001"
name = "松湖示例物流有限公司"
balance = "0.00"
bank = "south"
"""


def test_accounts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "accounts.toml"
    path.write_text(ACCOUNTS_TOML, "utf-8")
    first, second = read_accounts(path, NORTH)
    assert (first.bank, first.number, first.balance) == (NORTH, "1001", Cny(1234_50))
    assert (second.bank, second.name) == ("south", "松湖示例物流有限公司")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"1234.50"', "1234.50"),
        ('"1234.50"', '"-1234.50"'),
        ('"1234.50"', '"1234.5"'),
        ('"1001"', '"10 01"'),
        ('"south"', '"-"'),
        ("[[account]]", "[[accounts]]"),
        ("[[account]]", "[account]"),
        ('number = "1001"', ""),
        ('number = "1001"', 'number = "1001"\nnumbr = "1"'),
    ],
)
def test_wrong_accounts_name_the_file(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "accounts.toml"
    path.write_text(ACCOUNTS_TOML.replace(before, after), "utf-8")
    with pytest.raises(ValueError, match=r"accounts\.toml: "):
        read_accounts(path, NORTH)


# -- processes --------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Start a bank and give it with its first line; it is ended here if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "it did not start"
            yield process, json.loads(line)
        finally:
            process.kill()


def port_of(said: dict[str, Any]) -> int:
    return int(said["address"].rpartition(":")[2])


@pytest.mark.slow
@pytest.mark.req("FEP-25")
def test_it_dies_as_by_kill_and_comes_back_on_its_port(tmp_path: Path) -> None:
    """Booked, no answer; the restarted bank knows the payment though clients still hang on."""
    path = tmp_path / "book.sqlite"
    SqliteBook.create(path, ACCOUNTS, NOW).close()
    command = ["tests.sandbox.line_host", str(path)]
    with running([*command, "0"]) as (process, said):
        port = port_of(said)
        with (
            socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX) as idle,
            socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX) as client,
        ):
            client.sendall(b"die R1\n")
            assert process.wait(ANSWER_SECONDS_MAX) == -signal.SIGKILL
            # No goodbye: the end of the stream, or a reset.
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            with running([*command, str(port)]) as (_, again):
                assert port_of(again) == port
                with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX) as client2:
                    client2.sendall(b"pay R2\n")
                    assert client2.recv(100) == b"done\n"
            assert idle.fileno() >= 0
    book = SqliteBook.open(path)
    assert [one.client_ref for one in book.payments()] == ["R1", "R2"]
    assert [book.times_booked(one) for one in ("R1", "R2")] == [1, 1]
    assert book.check() == []
    book.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_with_clients_connected(tmp_path: Path, number: int) -> None:
    path = tmp_path / "book.sqlite"
    SqliteBook.create(path, ACCOUNTS, NOW).close()
    with (
        running(["tests.sandbox.line_host", str(path), "0"]) as (process, said),
        socket.create_connection(("127.0.0.1", port_of(said)), ANSWER_SECONDS_MAX) as client,
    ):
        client.sendall(b"late 1000 never\necho here\n")
        assert client.recv(100) == b"here\n"
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(ANSWER_SECONDS_MAX) == 0
        assert time.monotonic() - began < STOP_SECONDS_MAX
        assert process.communicate() == (b"", b"")


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def logs_restored() -> Iterator[None]:
    """The command sets the logs up for its process; this one goes on without that."""
    yield
    structlog.reset_defaults()


@pytest.mark.slow
def test_the_command_says_where_it_listens_and_seeds_a_ledger_once(tmp_path: Path) -> None:
    accounts, path = tmp_path / "accounts.toml", tmp_path / "book.sqlite"
    accounts.write_text(ACCOUNTS_TOML, "utf-8")
    command = ["fep.daemon.main", "host", "pingan_b2bi", "--bank", "north"]
    command += ["--ledger", str(path), "--accounts", str(accounts)]
    for balance in ("1234.50", "9.99"):
        with running(command) as (process, said):
            assert said == {
                "event": "host.listening",
                "adapter": "pingan_b2bi",
                "bank": "north",
                "address": f"127.0.0.1:{port_of(said)}",
            }
            socket.create_connection(("127.0.0.1", port_of(said)), ANSWER_SECONDS_MAX).close()
            process.terminate()
            assert process.wait(ANSWER_SECONDS_MAX) == 0
        accounts.write_text(ACCOUNTS_TOML.replace("1234.50", balance), "utf-8")
    book = SqliteBook.open(path)
    found = book.account(NORTH, AccountNumber("1001"))
    assert found is not None
    assert found.balance == Cny(1234_50)
    assert book.account(BankName("south"), AccountNumber("2001")) is not None
    assert book.check() == []
    book.close()


def test_the_samples_can_be_opened() -> None:
    assert all(Cny.parse(balance).fen > 0 for _, _, balance in SAMPLE_ACCOUNTS)
    assert len({number for number, _, _ in SAMPLE_ACCOUNTS}) == len(SAMPLE_ACCOUNTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nobody"], "no adapter 'nobody'"),
        (["cmb_xml", "--listen", "0.0.0.0:0"], "loopback only"),
        (["cmb_xml", "--listen", "7001"], "is not HOST:PORT"),
        (["cmb_xml", "--faults", "typo=1"], "silent_after_booking"),
        (["cmb_xml", "--bank", "-"], "bank must be"),
        (["cmb_xml", "--ledger", "{here}/none/book.sqlite"], "unable to open"),
        (["cmb_xml", "--ledger", "{here}/text"], "text: file is not a database"),
        (["cmb_xml", "--accounts", "{here}/none.toml"], "No such file"),
        (["cmb_xml", "--accounts", "{here}/text"], "text: "),
        (["cmb_xml", "--certificate", "{here}/text"], "PEM"),
    ],
)
@pytest.mark.usefixtures("logs_restored")
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "text").write_text("none of all these\n" * 100)
    assert main([one.format(here=tmp_path) for one in options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("fep host: ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("logs_restored")
def test_a_taken_port_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["cmb_xml", "--listen", f"127.0.0.1:{port}"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fep host: 127.0.0.1 port {port}: Address already in use\n")


@pytest.mark.usefixtures("logs_restored")
@pytest.mark.parametrize("option", ["--listen", "--ledger", "--bank", "--faults", "--seed"])
def test_the_help_lists_options_and_faults(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert option in shown
    assert "exit_after_booking" in shown
    assert "allow" not in shown
