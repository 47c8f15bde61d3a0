"""The service manager's side channel: readiness, reload, watchdog, inherited sockets.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3) of systemd 252. Without a service
manager nothing happens; with one that does not listen nothing is lost but its knowledge of us.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

import trio

FIRST_FD: Final = 3
DEFAULT_WATCHDOG_SECONDS: Final = 10.0
"""Without a watchdog the status line is still refreshed as if this were its time."""
NOTIFY_SECONDS_MAX: Final = 0.5
STATUS_CHARS_MAX: Final = 1000


def notify(*lines: str) -> bool:
    """Send lines such as ``READY=1`` to the service manager; False when nobody took them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    message = "\n".join(line.replace("\n", " ")[:STATUS_CHARS_MAX] for line in lines)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # The manager's queue may be full: the loop waits this long for it and no longer.
        sock.settimeout(NOTIFY_SECONDS_MAX)
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            sock.sendall(message.encode())
        except OSError:
            return False
    return True


def reloading() -> None:
    """Say that a reload has begun; ``notify("READY=1")`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """Return the time after which the manager takes us for stuck; None without a watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    given = os.environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isascii() and given.isdigit() and int(given) else None


async def watchdog(healthy: Callable[[], bool], status: Callable[[], str]) -> None:
    """Feed the watchdog twice in its time, and refresh the status line; never returns.

    It runs inside the loop, so that a stuck loop starves it. One that is not healthy is not fed:
    the manager then ends the process and starts another.
    """
    period = (watchdog_seconds() or DEFAULT_WATCHDOG_SECONDS) / 2
    while True:
        alive = ["WATCHDOG=1"] if healthy() else []
        notify(*alive, f"STATUS={status()}")
        await trio.sleep(period)


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets the service manager opened, by their ``FileDescriptorName=``.

    Each is a copy that belongs to whoever asked. They are not passed on to child processes.
    """
    found: dict[str, list[socket.socket]] = {}
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return found
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for place in range(count):
        name = (names[place] if place < len(names) else "") or "unknown"
        os.set_inheritable(FIRST_FD + place, False)  # noqa: FBT003 - its only form
        found.setdefault(name, []).append(socket.socket(fileno=os.dup(FIRST_FD + place)))
    return found
