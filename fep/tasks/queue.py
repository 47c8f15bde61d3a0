"""The order of one bank's lane: what is offered next, what is sent next. Pure.

Two waiting places here: those whose body must be fetched, and those that can be sent. In each,
clients take turns, so one client's backlog does not hold another's single task; of one client's,
higher priority goes first, then the order of admission.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import Final

from fep.domain.ids import ClientName
from fep.tasks.state import State
from fep.tasks.task import Task

Entry = tuple[int, int, int, bool, Task]
OLDEST_LOOKED_MAX: Final = 1000
"""Of a client's tasks that came back, or can be sent, so many are looked at for the oldest."""
LEFT_LOOKED_MAX: Final = 100
"""Of tasks at a line's head that moved on and are still in it."""
_BY_SEQ: Final = attrgetter("seq")


def _is_to_fetch(task: Task) -> bool:
    return task.state is State.QUEUED and task.body is None


def _is_to_send(task: Task) -> bool:
    return task.state is State.FETCHED or (task.state is State.QUEUED and task.body is not None)


class _Line:
    """One client's tasks: higher priority first, then the order of admission.

    Nearly all come in that order, and a million may: those wait in a plain line for each priority.
    """

    def __init__(self) -> None:
        self._lines: dict[int, deque[Task]] = {}
        self._others: list[Entry] = []
        """A heap of those that come back, and of those that have a fetched body."""

    def add(self, task: Task, entry: int) -> None:
        if task.state is State.QUEUED:
            line = self._lines.get(task.priority)
            if line is None:
                self._lines[task.priority] = deque((task,))
                # Kept with the highest first, which is where to look.
                self._lines = dict(sorted(self._lines.items(), reverse=True))
                return
            if not line or line[-1].seq < task.seq:
                line.append(task)
                return
        fetched = task.state is State.FETCHED
        heapq.heappush(self._others, (-task.priority, task.seq, entry, fetched, task))

    def add_new(self, task: Task) -> bool:
        """Put a task behind all others of its priority; False where it does not belong there."""
        line = self._lines.get(task.priority)
        if line is None or (line and line[-1].seq >= task.seq):
            return False
        line.append(task)
        return True

    def oldest(self, belongs: Callable[[Task], bool]) -> Iterator[Task]:
        """Yield the oldest tasks that still belong here, one a line at most."""
        for line in self._lines.values():
            yield from islice(filter(belongs, islice(line, LEFT_LOOKED_MAX)), 1)
        others = (entry[-1] for entry in islice(self._others, OLDEST_LOOKED_MAX))
        if (task := min(filter(belongs, others), key=_BY_SEQ, default=None)) is not None:
            yield task

    def take(self) -> tuple[Task, bool] | None:
        """Remove and return the next task, and whether its body was fetched when it came."""
        others = self._others
        for priority, line in self._lines.items():
            if line:
                if others and others[0] < (-priority, line[0].seq):
                    break
                return line.popleft(), False
        if not others:
            return None
        *_, fetched, task = heapq.heappop(others)
        return task, fetched


class _Turns:
    """Tasks by client; the clients take turns.

    A task may be in it twice, or not belong here any more: that is seen when it comes up.
    """

    def __init__(self, belongs: Callable[[Task], bool]) -> None:
        self.size = 0
        self.fetched = 0
        """How many entries have a body that was fetched."""
        self._belongs = belongs
        self._lines: dict[ClientName, _Line] = {}
        self._order: deque[ClientName] = deque()
        self._entries = 0

    def add(self, task: Task) -> None:
        line = self._lines.get(task.client)
        if line is None:
            line = self._lines[task.client] = _Line()
            self._order.append(task.client)
        self.size += 1
        self.fetched += task.state is State.FETCHED
        # The count keeps two entries of one task from being compared by the task itself.
        self._entries += 1
        line.add(task, self._entries)

    def add_new(self, tasks: Iterable[Task]) -> None:
        """Put tasks that were just admitted and have no body."""
        lines = self._lines
        for task in tasks:
            line = lines.get(task.client)
            if line is None or not line.add_new(task):
                self.add(task)
            else:
                self.size += 1

    def oldest(self) -> Iterator[Task]:
        """Yield the oldest task of each line."""
        for line in self._lines.values():
            yield from line.oldest(self._belongs)

    def take(self, present: Container[ClientName] | None = None) -> Task | None:
        """Remove and return the next task whose client is present (None: whoever's)."""
        for _ in range(len(self._order)):
            client = self._order.popleft()
            if present is not None and client not in present:
                self._order.append(client)
                continue
            task = self._pop(client)
            if task is not None:
                self._order.append(client)
                return task
            # Its line is empty: there may be many such clients, and they need no turn.
            del self._lines[client]
        return None

    def _pop(self, client: ClientName) -> Task | None:
        line = self._lines[client]
        while (found := line.take()) is not None:
            task, fetched = found
            self.size -= 1
            self.fetched -= fetched
            if self._belongs(task) and not task.claimed:
                return task
        return None


class LaneQueue:
    """What waits in one bank's lane; a claimed or moved-on task is skipped when it comes up.

    Who lets go of a claimed task without moving it on must add it again.
    """

    def __init__(self) -> None:
        self._to_fetch = _Turns(_is_to_fetch)
        self._to_send = _Turns(_is_to_send)

    def add_to_fetch(self, task: Task) -> None:
        """Put a task that has no body yet."""
        self._to_fetch.add(task)

    def add_all_to_fetch(self, tasks: Iterable[Task]) -> None:
        """Put tasks that were just admitted and have no body."""
        self._to_fetch.add_new(tasks)

    def add_to_send(self, task: Task) -> None:
        """Put a task whose body is known."""
        self._to_send.add(task)

    def take_to_fetch(self, limit: int, present: Container[ClientName]) -> list[Task]:
        """Remove and return up to ``limit`` tasks of clients that are connected, in turn."""
        taken: dict[Task, None] = {}
        while len(taken) < limit and (task := self._to_fetch.take(present)) is not None:
            taken[task] = None
        return list(taken)

    def oldest(self) -> Task | None:
        """Return the task that was admitted first, None when none waits.

        It does not look at all of a long queue: of very many that came back it may be a later one.
        """
        both = chain(self._to_fetch.oldest(), self._to_send.oldest())
        return min(both, key=_BY_SEQ, default=None)

    def take_to_send(self) -> Task | None:
        """Remove and return the next task to send, None when none waits."""
        return self._to_send.take()

    @property
    def sendable(self) -> int:
        """How many entries wait to be sent (claimed ones may be among them)."""
        return self._to_send.size

    @property
    def fetched(self) -> int:
        """How many bodies were fetched and wait to be sent (claimed ones may be among them)."""
        return self._to_send.fetched
