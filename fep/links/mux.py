"""Correlates one connection's answers with its requests, and knows what has left this machine.

Three promises, whatever the order of events:

- every request ends exactly once: answered, abandoned by its caller, or failed with the connection;
- "nothing was sent" is said only of a request of which no byte was ever handed to the socket;
- after a request has ended no further byte of it is handed to the socket.

Pure: the shell writes, reads and wakes; ``waiter`` is whatever it wakes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import Final, Generic, TypeVar

import attrs

from fep.adapters.api import Reply
from fep.domain.errors import LocalProtocolError
from fep.domain.ids import BankName

IN_FLIGHT_MAX: Final = 1024
"""Requests of one connection that wait for their answers; one more is a defect of the caller."""
LATE_MAX: Final = 1024
"""Abandoned requests that are remembered, so that a late answer is known as one."""
BUFFERS_MAX: Final = 64
"""Frames joined into one write; far below the kernel's IOV_MAX of 1024."""

W = TypeVar("W")


@attrs.frozen
class UnmatchedReply:
    """An answer nobody waits for; evidence all the same, so it is handed on and never dropped."""

    bank: BankName
    reply: Reply
    late: bool = False
    """True: its request was abandoned on this same connection (deadline, shutdown)."""
    told: bool = False
    """True: the bank says such things unasked, and this is one."""


class Match(Enum):
    """What an answer is to the requests of its connection."""

    ANSWER = "answer"
    """The request it answers has ended with it."""
    LATE = "late"
    """Its request was abandoned before."""
    LATE_PROBE = "late_probe"
    """As LATE, of the link's own probe: a sign of life and evidence of nothing."""
    STRAY = "stray"
    """No request of this connection has its correlation."""
    EARLY = "early"
    """Its request has not wholly left: the bank can't have read it, and the stream is wrong."""


@attrs.define(eq=False)
class Request(Generic[W]):
    """One request from its registration to its end."""

    correlation: str
    frame: bytes = attrs.field(repr=False)
    waiter: W = attrs.field(repr=False)
    probe: bool = False
    """True for the link's own log-on and heartbeat."""
    may_begin: Callable[[], bool] | None = attrs.field(default=None, repr=False)
    """Asked at the moment of the first byte; False: it does not leave any more."""
    written: int = 0
    """Bytes the socket took so far."""

    @property
    def began(self) -> bool:
        """Whether a byte of it may have left this machine."""
        return self.written > 0

    @property
    def complete(self) -> bool:
        """Whether the socket took all of it."""
        return self.written == len(self.frame)


class Mux(Generic[W]):
    """The requests of one connection; a fresh one for each connection."""

    def __init__(self) -> None:
        self._waiting: dict[str, Request[W]] = {}
        self._late: OrderedDict[str, Match] = OrderedDict()
        self._unwritten: deque[Request[W]] = deque()

    @property
    def in_flight(self) -> int:
        """How many requests have not ended."""
        return len(self._waiting)

    @property
    def callers(self) -> int:
        """How many of them are not the link's own probes."""
        return sum(not request.probe for request in self._waiting.values())

    @property
    def unwritten(self) -> int:
        """How many requests wait for the socket to take (the rest of) them."""
        return len(self._unwritten)

    def register(
        self,
        correlation: str,
        frame: bytes,
        waiter: W,
        *,
        probe: bool = False,
        may_begin: Callable[[], bool] | None = None,
    ) -> Request[W]:
        """Take a request, before any byte of it is written: an answer can be that fast.

        Raises:
            LocalProtocolError: empty frame or correlation, a correlation that is in flight or whose
                late answer may still come, or too many in flight. Nothing was taken.
        """
        if not correlation or not frame:
            msg = "a request needs a correlation and at least one byte"
            raise LocalProtocolError(msg)
        if correlation in self._waiting or correlation in self._late:
            msg = f"correlation {correlation} is already in use on this connection"
            raise LocalProtocolError(msg)
        if len(self._waiting) >= IN_FLIGHT_MAX:
            msg = f"{IN_FLIGHT_MAX} requests are in flight"
            raise LocalProtocolError(msg)
        request = Request(correlation, frame, waiter, probe, may_begin)
        self._waiting[correlation] = request
        self._unwritten.append(request)
        return request

    def buffers(self) -> list[bytes | memoryview]:
        """Return what to write next, in order; empty when all was written."""
        return [
            memoryview(request.frame)[request.written :] if request.written else request.frame
            for request in islice(self._unwritten, BUFFERS_MAX)
        ]

    def wrote(self, count: int) -> None:
        """Note that the socket took this many bytes of ``buffers``."""
        while count:
            request = self._unwritten[0]
            part = min(count, len(request.frame) - request.written)
            request.written += part
            count -= part
            if request.complete:
                self._unwritten.popleft()

    def answer(self, correlation: str) -> tuple[Match, Request[W] | None]:
        """Return what a frame with this correlation is, and the request it is an ANSWER to.

        An ANSWER ends its request.
        """
        request = self._waiting.get(correlation)
        if request is not None:
            if not request.complete:
                return Match.EARLY, None
            del self._waiting[correlation]
            return Match.ANSWER, request
        return self._late.pop(correlation, Match.STRAY), None

    def abandon(self, request: Request[W]) -> None:
        """End a request whose caller waits no more.

        What follows from ``request``: not ``began``, it was withdrawn and never leaves; not
        ``complete``, the connection must be closed, for nothing after it could be understood.
        """
        del self._waiting[request.correlation]
        if not request.complete:
            self._unwritten.remove(request)
        if request.began:
            self._late[request.correlation] = Match.LATE_PROBE if request.probe else Match.LATE
            if len(self._late) > LATE_MAX:
                self._late.popitem(last=False)

    def withdraw(self) -> list[Request[W]]:
        """End and return the requests of which no byte has left."""
        return self._withdraw([request for request in self._unwritten if not request.began])

    def withdraw_late(self) -> list[Request[W]]:
        """End and return the requests that may not begin any more; ask before each write."""
        late = [
            request
            for request in self._unwritten
            if request.may_begin is not None and not request.began and not request.may_begin()
        ]
        return self._withdraw(late) if late else late

    def _withdraw(self, withdrawn: list[Request[W]]) -> list[Request[W]]:
        for request in withdrawn:
            self._unwritten.remove(request)
            del self._waiting[request.correlation]
        return withdrawn

    def close(self) -> list[Request[W]]:
        """End and return all requests: the connection is over."""
        ended = list(self._waiting.values())
        self._waiting.clear()
        self._unwritten.clear()
        self._late.clear()
        return ended
