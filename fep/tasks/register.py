"""The open tasks in memory, with the figures that are asked for often kept up to date. Pure.

A million tasks may wait: nothing here walks all of them but what must have them all.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final

from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.money import ZERO, Cny
from fep.domain.order import Body, Order
from fep.tasks.state import State
from fep.tasks.task import Task

AGES_MIN: Final = 1000
"""Of tasks that ended before their age, so many are kept at least before they are sorted out."""


class Register:
    """Owns which tasks are open; who changes a task's state or body does it here."""

    def __init__(self) -> None:
        self._tasks: dict[TaskId, Task] = {}
        self._counts: dict[BankName, dict[State, int]] = {}
        self._clients: dict[ClientName, int] = {}
        self._under_way: dict[tuple[AccountNumber, ClientName], Cny] = {}
        self._ages: dict[int, list[Task]] = {}
        """By the second in which they expire, which is much less than an entry of a heap a task."""
        self._seconds: list[int] = []
        self._aged = 0
        """How many entries the ages have; tasks that ended stay among them for a while."""

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def __getitem__(self, task_id: TaskId) -> Task:
        return self._tasks[task_id]

    def get(self, task_id: TaskId) -> Task | None:
        """Return an open task, None when there is none of this id."""
        return self._tasks.get(task_id)

    def of_bank(self, bank: BankName) -> list[Task]:
        """Return a bank's open tasks, in the order of admission."""
        found = [task for task in self._tasks.values() if task.bank == bank]
        found.sort(key=lambda task: task.seq)
        return found

    def keep(self, task: Task) -> None:
        """Take a task in."""
        self._tasks[task.task_id] = task
        self._count(task, 1)
        self._clients[task.client] = self._clients.get(task.client, 0) + 1
        self._sum(task, task.body, 1)
        if task.state in (State.QUEUED, State.OFFERED):
            self.expire_at(task, task.expires_at.timestamp())

    def keep_all(self, tasks: Iterable[Task]) -> None:
        """Take in many, as at a start: of a million, each is worth a microsecond at most."""
        clients = self._clients
        for (bank, state), several in itertools.groupby(tasks, _where):
            before = len(self._tasks)
            ages = state is State.QUEUED or state is State.OFFERED
            expires_at, bucket = None, list[Task]()
            for task in several:
                if task.task_id not in self._tasks:
                    # Of those that came together, nearly each is another client's.
                    clients[task.client] = clients.get(task.client, 0) + 1
                self._tasks[task.task_id] = task
                if task.body is not None:
                    self._sum(task, task.body, 1)
                if ages:
                    if task.expires_at is not expires_at:
                        # Those that came together share it.
                        expires_at = task.expires_at
                        bucket = self._bucket(expires_at.timestamp())
                    bucket.append(task)
                    self._aged += 1
            states = self._counts.setdefault(bank, {})
            states[state] = states.get(state, 0) + len(self._tasks) - before
        self._tidy_ages()

    def drop(self, task: Task) -> None:
        """Let go of a task that is at its end."""
        if self._tasks.pop(task.task_id, None) is not None:
            self._count(task, -1)
            self._let_go(task.client)
            self._sum(task, task.body, -1)

    def turn(self, task: Task, state: State, body: Body | None = None) -> None:
        """Note a task's new state, and its body where that has come."""
        known = self._tasks.get(task.task_id) is task
        if known:
            self._count(task, -1)
        task.state = state
        if known:
            self._count(task, 1)
        if body is not None and task.body is None:
            task.body = body
            if known:
                self._sum(task, body, 1)

    def counts(self) -> dict[BankName, dict[State, int]]:
        """Return how many open tasks of each bank are in each state, none that is zero."""
        return {
            bank: {state: number for state, number in states.items() if number}
            for bank, states in self._counts.items()
        }

    def of_client(self, client: ClientName) -> int:
        """Return how many tasks of a client are open."""
        return self._clients.get(client, 0)

    def under_way(self, but: ClientName | None = None) -> dict[AccountNumber, Cny]:
        """Return by payer what open payments will or may take, without one client's."""
        sums: dict[AccountNumber, Cny] = {}
        for (payer, client), amount in self._under_way.items():
            if client != but:
                sums[payer] = sums.get(payer, ZERO) + amount
        return sums

    # -- ages ---------------------------------------------------------------------------------

    def expire_at(self, task: Task, moment: float) -> None:
        """Let a task come up in ``expired`` from this moment on (seconds since 1970)."""
        self._bucket(moment).append(task)
        self._aged += 1
        self._tidy_ages()

    def _tidy_ages(self) -> None:
        if self._aged > AGES_MIN + 2 * len(self._tasks):
            self._forget_ended()

    def _bucket(self, moment: float) -> list[Task]:
        second = math.ceil(moment)
        bucket = self._ages.get(second)
        if bucket is None:
            bucket = self._ages[second] = []
            heapq.heappush(self._seconds, second)
        return bucket

    def _forget_ended(self) -> None:
        """Drop the ages of tasks that ended: a queue that is quick makes many in a day."""
        kept = {
            second: [task for task in bucket if self._tasks.get(task.task_id) is task]
            for second, bucket in self._ages.items()
        }
        self._ages = {second: bucket for second, bucket in kept.items() if bucket}
        self._seconds = sorted(self._ages)
        self._aged = sum(len(bucket) for bucket in self._ages.values())

    def expired(self, now: float) -> Iterator[Task]:
        """Yield, once each, the open tasks whose moment has come; they may have moved on."""
        while self._seconds and self._seconds[0] <= now:
            bucket = self._ages.pop(heapq.heappop(self._seconds))
            self._aged -= len(bucket)
            # One that was let go of with its bank stands in its old state still, and may be open
            # as another object by now.
            yield from (task for task in bucket if self._tasks.get(task.task_id) is task)

    @property
    def next_expiry(self) -> float:
        """When the next may expire (seconds since 1970), infinite when none does."""
        return float(self._seconds[0]) if self._seconds else math.inf

    # -- figures ------------------------------------------------------------------------------

    def _count(self, task: Task, by: int) -> None:
        states = self._counts.setdefault(task.bank, {})
        states[task.state] = states.get(task.state, 0) + by

    def _let_go(self, client: ClientName) -> None:
        number = self._clients[client] - 1
        if number:
            self._clients[client] = number
        else:
            del self._clients[client]

    def _sum(self, task: Task, body: Body | None, sign: int) -> None:
        if isinstance(body, Order):
            key = (body.payer, task.client)
            left = self._under_way.get(key, ZERO) + Cny(sign * body.amount.fen)
            if left.fen:
                self._under_way[key] = left
            else:
                self._under_way.pop(key, None)


def _where(task: Task) -> tuple[BankName, State]:
    return task.bank, task.state
