"""Reads all plain connections through one epoll: to wait costs no call to the kernel, to read one.

Trio arms the kernel anew at every wait and wakes a task for it; with many clients that say one line
each, that is most of the work. Here a connection stays armed, and what came is given to a function
first: only what it leaves wakes the connection's task.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Generic, TypeVar

import outcome
import trio

READ_BYTES: Final = 65_536
"""Of one read; more comes up again in the next round, behind the other connections."""

ROUND_BYTES: Final = READ_BYTES
"""When so much of one client's was read in a round, its other connections wait for the next."""

T = TypeVar("T")
Take = Callable[[bytes], "T | None"]
"""Acts on what came, empty at the end of the stream; returns what is left for the task, or None."""


class Turn:
    """What was read of one client in the present round, over all its connections."""

    __slots__ = ("number", "size")

    def __init__(self) -> None:
        self.number = 0
        self.size = 0


class Poller:
    """Owns the epoll; run it beside the connections that are read through it.

    In each round every client that sent something is read, and none twice as much as it sent on one
    connection: who floods over many of them makes the others wait for one of them only.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._inlets: dict[int, Inlet[object]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand out what comes until cancelled."""
        try:
            task_status.started()
            number, late = 0, dict[int, None]()
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                number += 1
                ready = self._epoll.poll(0)
                if late:
                    # They come first, or one connection went before the others for ever.
                    ready = [*((fileno, select.EPOLLIN) for fileno in late), *ready]
                    late = {}
                for fileno, _ in ready:
                    # One of those before it may have ended this one's connection.
                    inlet = self._inlets.get(fileno)
                    if inlet is not None and not inlet.come(number):
                        late[fileno] = None
        finally:
            self._epoll.close()

    @contextmanager
    def reading(self, fileno: int, take: Take[T], turn: Turn | None = None) -> Iterator[Inlet[T]]:
        """Read a non-blocking descriptor for a block; nobody else may read it then.

        Args:
            fileno: the descriptor.
            take: acts on what came.
            turn: of the client whose connection it is; None: one of its own.
        """
        inlet = Inlet(self._epoll, fileno, take, turn or Turn())
        self._inlets[fileno] = inlet  # type: ignore[assignment] # of any kind
        try:
            yield inlet
        finally:
            self._inlets.pop(fileno, None)
            inlet.disarm()


class Inlet(Generic[T]):
    """One connection's end of the poller."""

    def __init__(self, epoll: select.epoll, fileno: int, take: Take[T], turn: Turn) -> None:
        self._turn = turn
        self._number = 0
        self._epoll = epoll
        self._fileno = fileno
        self._take = take
        self._waiting: trio.lowlevel.Task | None = None
        self._armed = False

    async def receive(self) -> T:
        """Wait for what ``take`` leaves.

        Raises:
            OSError: the connection broke.
            Exception: whatever ``take`` raised.
        """
        if not self._armed:
            try:
                self._epoll.register(self._fileno, select.EPOLLIN)
            except ValueError as error:
                msg = "the poller has ended"
                raise OSError(msg) from error
            self._armed = True
        self._waiting = trio.lowlevel.current_task()

        def stop(_raise: object) -> trio.lowlevel.Abort:
            self._waiting = None
            return trio.lowlevel.Abort.SUCCEEDED

        found: T = await trio.lowlevel.wait_task_rescheduled(stop)
        return found

    def come(self, number: int) -> bool:
        """Read what came, if its task waits for it (poller); False: not in this round."""
        if self._waiting is None:
            # Its task is busy; what came waits in the socket, and must not come up at each round.
            self.disarm()
            return True
        turn = self._turn
        if turn.number != number:
            turn.number, turn.size = number, 0
        elif self._number == number:
            return True
        elif turn.size >= ROUND_BYTES:
            return False
        self._number = number
        result: outcome.Outcome[T]
        try:
            data = os.read(self._fileno, READ_BYTES)
            turn.size += len(data)
            left = self._take(data)
            if left is None:
                return True
            result = outcome.Value(left)
        except BlockingIOError:
            return True
        except Exception as error:  # noqa: BLE001 - belongs to the connection, whose task raises it
            result = outcome.Error(error)
        task, self._waiting = self._waiting, None
        if task is not None:  # what it took may have cancelled the task
            trio.lowlevel.reschedule(task, result)
        return True

    def disarm(self) -> None:
        """Have the kernel tell nothing of it until its task waits again."""
        if self._armed:
            self._armed = False
            with suppress(OSError, ValueError):  # closed already, or the epoll is
                self._epoll.unregister(self._fileno)
