"""Chosen points in the daemon at which it dies at once, as by kill -9, with nothing in between.

From outside, the moment between two steps of one process can be met by luck only. So the daemon of
such a life is given its point before it starts, and ends itself with the signal that no process
can catch. The product has no hook for it.
"""

from __future__ import annotations

import os
import random
import signal
from enum import StrEnum
from typing import Any, Final, NoReturn, Self, assert_never

import attrs

from fep.adapters.api import Reply
from fep.links.service import _Connection
from fep.tasks.admission import Admission, Arrival
from fep.tasks.lane import Lane
from fep.tasks.service import TaskService
from fep.tasks.state import Event
from fep.tasks.task import Answer, Task
from tests.crash.proof import PROOFS

NUMBER_MAX: Final = 6
SHARES: Final = 100


class Place(StrEnum):
    """Between which two steps of a payment."""

    SUBMITTED = "submitted"
    """Its submission is on disk, and the client has no answer."""
    SEALED = "sealed"
    """It is signed and sealed, and ``sending`` is not yet written."""
    SENDING = "sending"
    """``sending`` is synced, and no byte has left."""
    FIRST_BYTES = "first-bytes"
    """A part of the request has left, at least a byte, never all of it."""
    ASKED = "asked"
    """All of the request has left, and the answer is on its way."""
    ANSWERED = "answered"
    """The answer is read, and nothing of it is on disk."""
    ENDED = "ended"
    """The end is on disk, and the client does not know it."""


@attrs.frozen
class Point:
    """Where a daemon dies: when it comes to a place for the ``number``-th time."""

    place: Place
    number: int = 1
    share: int = 0
    """Of the request, in hundredths, that leaves before the end at ``FIRST_BYTES``."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Self:
        """Return a point of chance."""
        place, number = rng.choice(list(Place)), rng.randint(1, NUMBER_MAX)
        return cls(place, number, rng.randrange(SHARES))


@attrs.define
class _Count:
    """Counts down to the point."""

    left: int

    def is_there(self) -> bool:
        """Note one more; True for the one that counts."""
        self.left -= 1
        return self.left == 0

    def come(self) -> None:
        """Note one more, and die if it is the one."""
        if self.is_there():
            _die()


def die_at(point: Point) -> None:
    """Prepare this process, in which the daemon will run, to die at a point."""
    count = _Count(point.number)
    match point.place:
        case Place.SUBMITTED:
            _when_submitted(count)
        case Place.FIRST_BYTES:
            _when_bytes_leave(count, point.share)
        case Place.ASKED:
            _when_bytes_leave(count, None)
        case Place.ANSWERED:
            _before_the_answer_counts(count)
        case Place.SEALED | Place.SENDING | Place.ENDED:
            _around_a_change(count, point.place)
        case _:
            assert_never(point.place)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    msg = "nothing comes after this"
    raise AssertionError(msg)


def _when_submitted(count: _Count) -> None:
    submit = Admission.submit

    def watched(self: Admission, arrival: Arrival, configuration: str) -> None:
        done = arrival.done

        def note(answers: list[Answer]) -> None:
            count.come()
            done(answers)

        arrival.done = note
        submit(self, arrival, configuration)

    Admission.submit = watched  # type: ignore[method-assign]


def _around_a_change(count: _Count, place: Place) -> None:
    change = TaskService.change

    async def watched(
        self: TaskService, task: Task, events: tuple[Event, ...], cause: str, **more: Any
    ) -> None:
        begins = Event.SEND_BEGUN in events and more.get("sent") is not None
        ends = task.moves_money and bool(PROOFS.intersection(events))
        if begins and place is Place.SEALED:
            count.come()
        await change(self, task, events, cause, **more)
        if (begins and place is Place.SENDING) or (ends and place is Place.ENDED):
            count.come()

    TaskService.change = watched  # type: ignore[method-assign]


def _before_the_answer_counts(count: _Count) -> None:
    take = Lane._take_answer

    async def watched(self: Lane, task: Task, reply: Reply) -> None:
        count.come()
        await take(self, task, reply)

    Lane._take_answer = watched  # type: ignore[method-assign]


def _when_bytes_leave(count: _Count, share: int | None) -> None:
    """Die when a payment has left, or a share of it where one is given."""
    send, flush = Lane._send, _Connection._flush
    payments: set[bytes] = set()

    async def noted(self: Lane, task: Task, frame: bytes, correlation: str) -> None:
        payments.add(frame)
        await send(self, task, frame, correlation)

    def watched(self: _Connection, *, is_asked: bool = False) -> None:
        buffers = self._mux.buffers()
        hit = None
        for place, frame in enumerate(buffers):
            if frame in payments:
                payments.discard(bytes(frame))
                if count.is_there():
                    hit = place
        if hit is not None and share is not None:
            size = max(1, (len(buffers[hit]) - 1) * share // SHARES)
            self._sock.send(b"".join([*buffers[:hit], buffers[hit][:size]]))
            _die()
        flush(self, is_asked=is_asked)
        if hit is not None:
            _die()

    Lane._send = noted  # type: ignore[method-assign]
    _Connection._flush = watched  # type: ignore[method-assign]
