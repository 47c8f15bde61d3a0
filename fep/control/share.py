"""What one client may have of the daemon, over all its connections: sessions, lines, turns.

Who sends too much is not refused line by line, which would cost as much as to serve it: it is read
more slowly, and the rest waits in its own sockets. A refusal (``LIMITED``) says only what does not
pass by itself in a moment: too many sessions, too many open tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import trio

from fep.control.config import ClientConfig, Limits
from fep.control.poller import Turn
from fep.domain.ids import ClientName

BURST_SECONDS: Final = 1.0
"""A client that was quiet may send so many seconds' worth at once."""
CALLS_MAX: Final = 64
"""Requests of one client that are being worked on at once; more wait in its sockets."""
UNCOMMITTED_TASKS_MAX: Final = 2048
"""Submissions of one client that wait for the disk. All that wait are stored together, so that they
are what others wait for; a client's next ones wait in its sockets."""


class Pace:
    """A client's lines and bytes a second. Pure; ``now`` is trio's time, in seconds.

    Each limit is a moment up to which the client has used up its share: ahead of now it waits.
    """

    def __init__(self, limits: Limits) -> None:
        self._line = 1 / limits.lines_s if limits.lines_s else 0.0
        self._byte = 1 / limits.bytes_s if limits.bytes_s else 0.0
        self._lines_until = self._bytes_until = float("-inf")

    def spend(self, lines: int, size: int, now: float) -> None:
        """Note what came."""
        earliest = now - BURST_SECONDS
        self._lines_until = max(self._lines_until, earliest) + lines * self._line
        self._bytes_until = max(self._bytes_until, earliest) + size * self._byte

    def wait(self, now: float) -> float:
        """Return for how many seconds nothing more is to be read; 0.0 when something is."""
        return max(0.0, self._lines_until - now, self._bytes_until - now)


@attrs.define(eq=False)
class Share:
    """One client's part, for as long as it has a session; that of a configured client stays."""

    limits: Limits
    pace: Pace | None
    """None: as fast as it can."""
    turn: Turn = attrs.Factory(Turn)
    secured: trio.Lock = attrs.Factory(trio.Lock)
    """Its TLS connections are acted on one after the other, so that others come between."""
    calls: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(CALLS_MAX))
    reads: trio.Lock = attrs.Factory(trio.Lock)
    """What is read from the store for it is read one after the other, in order."""
    sessions: int = 0
    uncommitted: int = 0
    """Submissions that wait for the disk."""
    waiting: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)
    """Who waits for that to fall."""

    @property
    def has_room(self) -> bool:
        """Whether more submissions may be handed to the store."""
        return self.uncommitted < UNCOMMITTED_TASKS_MAX

    async def room(self) -> None:
        """Wait until it has room; what is done before the next wait counts."""
        while not self.has_room:
            await self.waiting.park()

    def stored(self, count: int) -> None:
        """Note that so many submissions wait no more."""
        self.uncommitted -= count
        # Nobody waits, nearly always; to wake nobody would cost more than all the rest here.
        if self.waiting and self.has_room:
            self.waiting.unpark_all()


class Shares:
    """Owns the shares of all clients, whichever way they came in."""

    def __init__(self, default: Limits, clients: Mapping[ClientName, ClientConfig]) -> None:
        self._default = default
        self._configured = {name: one.limits for name, one in clients.items()}
        self._shares: dict[ClientName, Share] = {}

    def join(self, name: ClientName) -> Share | None:
        """Count a session; None when the client has as many as it may have."""
        share = self._shares.get(name)
        if share is None:
            limits = self._configured.get(name, self._default)
            limited = limits.lines_s or limits.bytes_s
            share = Share(limits, Pace(limits) if limited else None)
        if share.sessions >= share.limits.sessions_max:
            return None
        self._shares[name] = share
        share.sessions += 1
        return share

    def leave(self, name: ClientName, share: Share) -> None:
        """Count a session's end. What a configured client has used up outlives its sessions."""
        share.sessions -= 1
        if not share.sessions and name not in self._configured:
            self._shares.pop(name, None)
