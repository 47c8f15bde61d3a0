"""Several connections to one bank whose protocol takes one request at a time on each (HTTP/1.1).

Each is a ``Link`` of its own: it logs on, proves life and backs off by itself, all in the bank's
one nursery. This file says which of them a request goes to, and who waits for one.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import outcome
import structlog
import trio

from fep.adapters.api import BankCodec, Reply, SessionCodec
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import NothingSentError
from fep.domain.ids import Sequence
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import (
    AlarmBell,
    Connect,
    Gate,
    Link,
    LinkSnapshot,
    Traffic,
    connect_tcp,
)
from fep.links.state import LinkState

WAITING_MAX: Final = 1024
"""Requests that wait for a free connection; one more is told that nothing was sent."""

_BEST_FIRST: Final = (
    LinkState.READY,
    LinkState.DRAINING,
    LinkState.LOGGING_ON,
    LinkState.CONNECTING,
    LinkState.BACKING_OFF,
    LinkState.HELD,
    LinkState.NO_KEY,
    LinkState.OFF,
)


@attrs.frozen
class _Bell:
    """One member's alarms: the bank is not down while another member works."""

    alarms: AlarmBell
    others_up: Callable[[], bool]

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        # What all of them stop for is told while some are still up.
        if kind is AlarmKind.SIGN_ON_REFUSED or not self.others_up():
            self.alarms.raise_alarm(kind, subject, cause)

    def clear(self, kind: AlarmKind, subject: str) -> None:
        self.alarms.clear(kind, subject)


class LinkPool:
    """A bank's connections as the rest of the daemon sees them; arguments as of ``Link``.

    Its promises are a link's: ``NothingSentError`` says that no byte left, nor ever will.
    """

    def __init__(
        self,
        config: LinkConfig,
        codec: BankCodec,
        sequence: Sequence,
        clock: Clock,
        alarms: AlarmBell,
        unmatched: trio.MemorySendChannel[UnmatchedReply],
        rng: random.Random,
        connect: Connect = connect_tcp,
    ) -> None:
        self.config = config
        self._session = codec if isinstance(codec, SessionCodec) else None
        self._traffic = Traffic(config.bank, clock, unmatched)
        self._members: list[Link] = []
        for number in range(config.connections):
            bell = _Bell(alarms, lambda me=number: self._others_up(me))  # type: ignore[misc]
            jitter = random.Random(rng.random())  # noqa: S311 - no secret
            member = Link(config, codec, sequence, clock, bell, self._traffic, jitter, connect)
            member.on_change = self._note_change
            member.on_locked_out = self.drain
            self._members.append(member)
        self._kept: set[Link] = set()
        """Given to a caller that has not run since."""
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._gate: Gate | None = None
        self._changed = trio.Event()

    @property
    def state(self) -> LinkState:
        """The state of the connection that is farthest."""
        return self._best.state

    @property
    def is_open(self) -> bool:
        """True while requests are taken, though they may have to wait for a free connection."""
        return self._is_signed_on and any(member.is_up for member in self._members)

    @property
    def requests(self) -> int:
        """Requests of callers taken since the process started."""
        return self._traffic.requests

    @property
    def last_reply_at(self) -> dt.datetime | None:
        """When the bank last answered anything, aware UTC."""
        return self._traffic.last_reply_at

    async def wait_open(self) -> None:
        """Return when requests are taken; at once if they are."""
        await trio.lowlevel.checkpoint()
        while not self.is_open:
            if self._gate is None or self._gate.is_open:
                await self._changed.wait()
            else:
                # As of Link.wait_open: the key may come back before any state changes.
                await self._gate.wait_open()

    async def wait_closed(self) -> None:
        """Return when requests are not taken; at once if they are not."""
        await trio.lowlevel.checkpoint()
        while self.is_open:
            await self._changed.wait()

    async def exchange(
        self, frame: bytes, correlation: str, may_begin: Callable[[], bool] | None = None
    ) -> Reply:
        """Send a frame on a free connection, first come first served; see ``Link.exchange``."""
        if not self.is_open:
            msg = f"the link to {self.config.bank} takes no requests: {self.state}"
            raise NothingSentError(msg)
        self._traffic.requests += 1
        member = await self._free()
        try:
            return await member.exchange(frame, correlation, may_begin)
        finally:
            self._hand_out()

    def drain(self) -> None:
        """Take no more requests, let those in flight end, close, stay so until ``resume``."""
        for member in self._members:
            member.drain()

    def resume(self) -> None:
        """Take back ``drain``; idempotent."""
        for member in self._members:
            member.resume()

    def snapshot(self) -> LinkSnapshot:
        """Return what screens show."""
        return attrs.evolve(
            self._best.snapshot(),
            is_open=self.is_open,
            requests=self.requests,
            in_flight=sum(member.in_flight for member in self._members),
            connections=len(self._members),
            connections_ready=sum(member.state is LinkState.READY for member in self._members),
        )

    async def run(self, gate: Gate) -> None:
        """Do what ``run_link`` says, which alone calls it."""
        self._gate = gate
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._traffic.run)
                for number, member in enumerate(self._members):
                    nursery.start_soon(self._run_member, number, member, gate)
        finally:
            self._refuse("the link was stopped")

    async def _run_member(self, number: int, member: Link, gate: Gate) -> None:
        structlog.contextvars.bind_contextvars(connection=number)
        await member.run(gate)

    @property
    def _best(self) -> Link:
        return min(self._members, key=lambda member: _BEST_FIRST.index(member.state))

    @property
    def _is_signed_on(self) -> bool:
        return self._session is None or self._session.is_signed_on

    def _others_up(self, me: int) -> bool:
        others = (other for number, other in enumerate(self._members) if number != me)
        return self._is_signed_on and any(other.is_up for other in others)

    async def _free(self) -> Link:
        """Return a connection that is free at this moment, without a checkpoint from then on."""
        member = None if self._waiting else self._find()
        first = True
        while member is None:
            if len(self._waiting) >= WAITING_MAX:
                msg = f"{WAITING_MAX} requests wait for a connection to {self.config.bank}"
                raise NothingSentError(msg)
            given = await self._wait(first=first)
            self._kept.discard(given)
            member = given if given.is_free else self._find()
            first = False
        return member

    def _find(self) -> Link | None:
        for member in self._members:
            if member not in self._kept and member.is_free:
                return member
        return None

    async def _wait(self, *, first: bool) -> Link:
        """Wait to be given a connection; who was there before keeps the first place."""
        task = trio.lowlevel.current_task()
        (self._waiting.append if first else self._waiting.appendleft)(task)

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            error = NothingSentError("the deadline passed before a connection was free")
            trio.lowlevel.reschedule(task, outcome.Error(error))
            return trio.lowlevel.Abort.FAILED

        given: Link = await trio.lowlevel.wait_task_rescheduled(give_up)
        return given

    def _hand_out(self) -> None:
        """Give free connections to those who wait."""
        while self._waiting and (member := self._find()) is not None:
            self._kept.add(member)
            trio.lowlevel.reschedule(self._waiting.popleft(), outcome.Value(member))

    def _refuse(self, reason: str) -> None:
        while self._waiting:
            error = outcome.Error(NothingSentError(reason))
            trio.lowlevel.reschedule(self._waiting.popleft(), error)

    def _note_change(self) -> None:
        if self.is_open:
            self._hand_out()
        else:
            self._refuse(f"the link to {self.config.bank} takes no requests any more")
        self._changed.set()
        self._changed = trio.Event()
