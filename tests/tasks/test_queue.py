"""The order of one lane: turns of clients, priority, admission; what moved on is skipped."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.order import BalanceQuery, Kind
from fep.tasks.queue import LaneQueue
from fep.tasks.state import State
from fep.tasks.task import Task

pytestmark = pytest.mark.req("FEP-23", "FEP-24")

NOW = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
BODY = BalanceQuery(AccountNumber("1"))
CLIENTS = [ClientName(name) for name in ("a", "b", "c")]


def make(seq: int, client: str = "a", priority: int = 5, *, body: bool = False) -> Task:
    return Task(
        seq=seq,
        task_id=TaskId(f"T{seq}"),
        client=ClientName(client),
        bank=BankName("toy"),
        kind=Kind.BALANCE,
        priority=priority,
        state=State.QUEUED,
        submitted_at=NOW,
        expires_at=NOW,
        body=BODY if body else None,
    )


def order(task: Task) -> tuple[int, int]:
    return (-task.priority, task.seq)


def drained(queue: LaneQueue) -> list[Task]:
    taken = []
    while (task := queue.take_to_send()) is not None:
        taken.append(task)
    return taken


TASKS = st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 9)), min_size=1, max_size=40)


@settings(deadline=None)
@given(TASKS, st.permutations(range(40)))
def test_one_clients_tasks_go_by_priority_then_admission(
    given_tasks: list[tuple[ClientName, int]], arrival: list[int]
) -> None:
    """Whatever the order in which they come back to the queue."""
    tasks = [make(n, c, p, body=True) for n, (c, p) in enumerate(given_tasks)]
    queue = LaneQueue()
    for place in arrival:
        if place < len(tasks):
            queue.add_to_send(tasks[place])
    taken = drained(queue)
    assert sorted(taken, key=order) == sorted(tasks, key=order)
    for client in CLIENTS:
        own = [task for task in taken if task.client == client]
        assert own == sorted(own, key=order)


@settings(deadline=None)
@given(TASKS)
def test_no_client_waits_for_more_than_one_task_of_each_other(
    given_tasks: list[tuple[ClientName, int]],
) -> None:
    for place in ("send", "fetch"):
        queue = LaneQueue()
        for n, (client, priority) in enumerate(given_tasks):
            task = make(n, client, priority, body=place == "send")
            (queue.add_to_send if place == "send" else queue.add_to_fetch)(task)
        everybody = set(CLIENTS)
        taken = (
            drained(queue) if place == "send" else queue.take_to_fetch(len(given_tasks), everybody)
        )
        assert len(taken) == len(given_tasks)
        left = {c: [t.client for t in taken].count(c) for c in CLIENTS}
        since = dict.fromkeys(CLIENTS, 0)
        for task in taken:
            assert since[task.client] <= len(CLIENTS) - 1
            left[task.client] -= 1
            since = {c: 0 if c == task.client or not left[c] else n + 1 for c, n in since.items()}


@settings(deadline=None)
@given(TASKS, st.permutations(range(40)), st.sets(st.integers(0, 39), max_size=20), st.booleans())
def test_the_oldest_is_the_first_admitted_that_still_waits(
    given_tasks: list[tuple[ClientName, int]], arrival: list[int], ended: set[int], body: bool
) -> None:
    tasks = [make(n, c, p, body=body) for n, (c, p) in enumerate(given_tasks)]
    queue = LaneQueue()
    for place in arrival:
        if place < len(tasks):
            (queue.add_to_send if body else queue.add_to_fetch)(tasks[place])
    for task in tasks:
        if task.seq in ended:
            task.state = State.CANCELLED
    assert queue.oldest() is next((task for task in tasks if task.seq not in ended), None)


def test_the_oldest_of_an_empty_queue_is_none() -> None:
    assert LaneQueue().oldest() is None


def test_a_backlog_does_not_hold_the_single_task_of_another() -> None:
    queue = LaneQueue()
    for seq in range(1000):
        queue.add_to_send(make(seq, "a", priority=9, body=True))
    queue.add_to_send(single := make(2000, "b", priority=0, body=True))
    assert single in (queue.take_to_send(), queue.take_to_send())


def test_only_who_is_there_is_asked() -> None:
    queue = LaneQueue()
    away, there = make(1, "a"), make(2, "b")
    queue.add_to_fetch(away)
    queue.add_to_fetch(there)
    assert queue.take_to_fetch(5, {ClientName("b")}) == [there]
    assert queue.take_to_fetch(5, set()) == []
    assert queue.take_to_fetch(0, {ClientName("a")}) == []
    assert queue.take_to_fetch(5, {ClientName("a")}) == [away]


def test_a_body_that_came_late_is_not_asked_for_again() -> None:
    """The offer lapsed, the task waited to be offered again, then the answer came after all."""
    queue = LaneQueue()
    task = make(1)
    queue.add_to_fetch(task)
    task.body, task.state = BODY, State.FETCHED
    queue.add_to_send(task)
    assert queue.take_to_fetch(5, {ClientName("a")}) == []
    assert queue.take_to_send() is task


def test_a_task_that_was_added_twice_is_taken_once_at_a_time() -> None:
    queue = LaneQueue()
    fetch, send = make(1), make(2, body=True)
    for _ in range(3):
        queue.add_to_fetch(fetch)
        queue.add_to_send(send)
    assert queue.take_to_fetch(5, {ClientName("a")}) == [fetch]
    assert queue.take_to_send() is send
    send.claimed = True
    assert queue.take_to_send() is None


class QueueMachine(RuleBasedStateMachine):
    """A lane's use of the queue against a list of all tasks: none is lost, none is out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = LaneQueue()
        self.tasks: list[Task] = []

    def to_fetch(self) -> list[Task]:
        return [
            task
            for task in self.tasks
            if task.state is State.QUEUED and task.body is None and not task.claimed
        ]

    def to_send(self) -> list[Task]:
        return [
            task
            for task in self.tasks
            if not task.claimed
            and (task.state is State.FETCHED or (task.state is State.QUEUED and task.body))
        ]

    def _some(self, data: st.DataObject, *states: State, claimed: bool) -> Task | None:
        fit = [task for task in self.tasks if task.state in states and task.claimed is claimed]
        return data.draw(st.sampled_from(fit)) if fit else None

    def _add(self, task: Task) -> None:
        if task.state is State.QUEUED and task.body is None:
            self.queue.add_to_fetch(task)
        else:
            self.queue.add_to_send(task)

    @rule(client=st.sampled_from(CLIENTS), priority=st.integers(0, 9), body=st.booleans())
    def admit(self, client: ClientName, priority: int, *, body: bool) -> None:
        self.tasks.append(make(len(self.tasks), client, priority, body=body))
        self._add(self.tasks[-1])

    @rule(limit=st.integers(0, 4), present=st.sets(st.sampled_from(CLIENTS)))
    def offer(self, limit: int, present: set[ClientName]) -> None:
        due = [task for task in self.to_fetch() if task.client in present]
        taken = self.queue.take_to_fetch(limit, present)
        assert len(set(taken)) == len(taken) == min(limit, len(due))
        for client in CLIENTS:
            own = [task for task in taken if task.client == client]
            assert own == sorted((t for t in due if t.client == client), key=order)[: len(own)]
        for task in taken:
            task.state = State.OFFERED

    @rule(data=st.data())
    def lapse(self, data: st.DataObject) -> None:
        if task := self._some(data, State.OFFERED, claimed=False):
            task.state = State.QUEUED
            self._add(task)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """In time or late."""
        task = self._some(data, State.OFFERED, State.QUEUED, claimed=False)
        if task is not None and task.body is None:
            task.state, task.body = State.FETCHED, BODY
            self._add(task)

    @rule()
    def send(self) -> None:
        due = self.to_send()
        task = self.queue.take_to_send()
        if task is None:
            assert due == []
            return
        assert task in due
        assert order(task) == min(order(one) for one in due if one.client == task.client)
        task.claimed = True

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """A client cancels, say."""
        if task := self._some(data, State.QUEUED, State.FETCHED, claimed=False):
            task.claimed = True

    @rule(data=st.data())
    def move_on(self, data: st.DataObject) -> None:
        if task := self._some(data, *State, claimed=True):
            task.state, task.claimed = State.CANCELLED, False

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        if task := self._some(data, State.QUEUED, State.FETCHED, claimed=True):
            task.claimed = False
            self._add(task)

    @rule()
    def settle(self) -> None:
        """The lane starts anew."""
        self.queue = LaneQueue()
        for task in self.tasks:
            if task.state in (State.QUEUED, State.FETCHED):
                task.claimed = False
                self._add(task)

    @invariant()
    def the_bodies_that_wait_are_counted(self) -> None:
        waiting = self.to_send()
        assert self.queue.sendable >= len(waiting)
        assert self.queue.fetched >= sum(task.state is State.FETCHED for task in waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
