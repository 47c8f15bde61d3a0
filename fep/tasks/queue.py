"""The order of one bank's lane: what is offered next, what is sent next. Pure.

Three waiting places: by client, those whose body must be fetched; those that can be sent; those
whose end is asked for. Higher priority first, then the order of admission; clients take turns, so
one client's backlog does not hold another's single task.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterable
from typing import Final

from fep.domain.ids import ClientName
from fep.tasks.state import State
from fep.tasks.task import Task

Entry = tuple[int, int, Task]

_WAITING: Final = frozenset({State.QUEUED, State.FETCHED})


def _entry(task: Task) -> Entry:
    return (-task.priority, task.seq, task)


class LaneQueue:
    """What waits in one bank's lane; a claimed or moved-on task is skipped when it comes up."""

    def __init__(self) -> None:
        self._to_fetch: dict[ClientName, list[Entry]] = {}
        self._turns: deque[ClientName] = deque()
        self._to_send: list[Entry] = []

    def add_to_fetch(self, task: Task) -> None:
        """Put a task that has no body yet."""
        heap = self._to_fetch.get(task.client)
        if heap is None:
            heap = self._to_fetch[task.client] = []
            self._turns.append(task.client)
        heapq.heappush(heap, _entry(task))

    def add_to_send(self, task: Task) -> None:
        """Put a task whose body is known."""
        heapq.heappush(self._to_send, _entry(task))

    def take_to_fetch(self, limit: int, present: Container[ClientName]) -> list[Task]:
        """Remove and return up to ``limit`` tasks of clients that are connected, in turn."""
        taken: list[Task] = []
        idle = 0
        while len(taken) < limit and idle < len(self._turns):
            client = self._turns[0]
            self._turns.rotate(-1)
            task = self._pop(self._to_fetch[client]) if client in present else None
            if task is None:
                idle += 1
            else:
                idle = 0
                taken.append(task)
        return taken

    def take_to_send(self) -> Task | None:
        """Remove and return the next task to send, None when none waits."""
        return self._pop(self._to_send)

    @property
    def sendable(self) -> int:
        """How many entries wait to be sent (claimed ones may be among them)."""
        return len(self._to_send)

    def fetchable(self, present: Iterable[ClientName]) -> bool:
        """Say whether a connected client has a task to be asked for."""
        return any(self._to_fetch.get(client) for client in present)

    @staticmethod
    def _pop(heap: list[Entry]) -> Task | None:
        while heap:
            task = heapq.heappop(heap)[2]
            if task.state in _WAITING and not task.claimed:
                return task
        return None
