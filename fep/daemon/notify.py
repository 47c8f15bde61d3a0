"""The service manager's side channel: readiness, reload, watchdog, inherited sockets.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3) of systemd 252. Does nothing when the
process was not started by a service manager.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

import trio

FIRST_FD: Final = 3
DEFAULT_WATCHDOG_USEC: Final = 10_000_000


def notify(*lines: str) -> None:
    """Send lines such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.sendall("\n".join(lines).encode())


def reloading() -> None:
    """Say that a reload has begun; ``notify("READY=1")`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


async def watchdog(healthy: Callable[[], bool], status: Callable[[], str]) -> None:
    """Feed the watchdog from inside the loop, so that a stuck loop starves it; never returns."""
    period = int(os.environ.get("WATCHDOG_USEC", DEFAULT_WATCHDOG_USEC)) / 2e6
    while True:
        alive = ["WATCHDOG=1"] if healthy() else []
        notify(*alive, f"STATUS={status()}")
        await trio.sleep(period)


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets the service manager opened, by their ``FileDescriptorName=``."""
    found: dict[str, list[socket.socket]] = {}
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return found
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    names += ["unknown"] * (count - len(names))
    for fd, name in zip(range(FIRST_FD, FIRST_FD + count), names, strict=False):
        os.set_inheritable(fd, False)  # noqa: FBT003 - its only form
        found.setdefault(name, []).append(socket.socket(fileno=fd))
    return found
