"""What the service manager is told, and what it hands over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fep.daemon import notify

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def received(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_lines_go_in_one_message(manager: socket.socket) -> None:
    assert notify.notify("READY=1", "STATUS=2 banks\nREADY=0")
    assert received(manager) == ["READY=1", "STATUS=2 banks READY=0"]


def test_an_abstract_socket_is_reached_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0fep-test-{os.getpid()}")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@fep-test-{os.getpid()}")
        assert notify.notify("READY=1")
        assert received(sock) == ["READY=1"]


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify.notify("READY=1")


def test_a_manager_that_does_not_read_does_not_stop_the_loop(manager: socket.socket) -> None:
    begun = time.monotonic()
    while notify.notify("WATCHDOG=1"):
        assert time.monotonic() - begun < 30, "its queue never fills"
    assert time.monotonic() - begun < 30
    assert received(manager) == ["WATCHDOG=1"]


def test_a_reload_bears_the_time_systemd_compares(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.reloading()
    first, second = received(manager)
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("x", None, None),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert notify.watchdog_seconds() == seconds


async def test_the_watchdog_is_fed_twice_in_its_time_and_only_while_healthy(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    begun = trio.current_time()
    with trio.move_on_after(61):
        await notify.watchdog(
            lambda: trio.current_time() - begun < 20, lambda: f"{trio.current_time() - begun:g} s"
        )
    manager.setblocking(False)
    told = []
    while True:
        try:
            told.append(received(manager))
        except BlockingIOError:
            break
    assert told == [
        ["WATCHDOG=1", "STATUS=0 s"],
        ["WATCHDOG=1", "STATUS=15 s"],
        ["STATUS=30 s"],
        ["STATUS=45 s"],
        ["STATUS=60 s"],
    ]


CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "own" else "1"
from fep.daemon import notify
found = notify.inherited_sockets()
for name, socks in sorted(found.items()):
    for sock in socks:
        print(name, sock.family.name, sock.type.name, os.get_inheritable(sock.fileno()))
"""


def child(whose: str, count: int, names: str | None) -> list[str]:
    """Run a process that inherits a Unix and a TCP listener as file descriptors 3 and 4."""
    environment = {**os.environ, "LISTEN_FDS": str(count), "PYTHONPATH": str(ROOT)}
    environment.pop("LISTEN_FDNAMES", None)
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
    ):
        unix.bind("")  # the kernel names it
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        # A shell gives them the numbers that the manager would.
        command = [
            "/bin/bash",
            "-c",
            f'exec 3<&{unix.fileno()} 4<&{tcp.fileno()}; exec "$@"',
            "bash",
            sys.executable,
            "-c",
            CHILD,
            whose,
        ]
        told = subprocess.run(
            command,
            env=environment,
            pass_fds=(unix.fileno(), tcp.fileno()),
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    return told.stdout.splitlines()


def test_inherited_sockets_come_by_name_and_go_no_further() -> None:
    assert child("own", 2, "control:finance") == [
        "control AF_UNIX SOCK_STREAM False",
        "finance AF_INET SOCK_STREAM False",
    ]
    assert child("own", 2, "control:control") == [
        "control AF_UNIX SOCK_STREAM False",
        "control AF_INET SOCK_STREAM False",
    ]
    assert child("own", 2, None) == [
        "unknown AF_UNIX SOCK_STREAM False",
        "unknown AF_INET SOCK_STREAM False",
    ]
    assert child("own", 2, "control") == [
        "control AF_UNIX SOCK_STREAM False",
        "unknown AF_INET SOCK_STREAM False",
    ]


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    assert child("other", 2, "control:finance") == []
