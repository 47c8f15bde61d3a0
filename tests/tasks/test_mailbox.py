"""What a client is asked and told over any number of connections: at least once, none lost."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fep.domain.ids import ClientName, TaskId
from fep.tasks.mailbox import ClientBox, Mailbox
from fep.tasks.state import State
from fep.tasks.task import Delivery, Fetch, Message

pytestmark = pytest.mark.req("FEP-24", "FEP-26", "FEP-32")

WINDOW = 3
IDS = [TaskId(f"T{n}") for n in range(8)]


def delivery(task_id: TaskId, state: State = State.SUCCEEDED) -> Delivery:
    return Delivery(task_id, state, None, "", "", "")


def box(window: int = WINDOW) -> ClientBox:
    return ClientBox(ClientName("erp-1"), window)


def names(messages: list[Message]) -> list[str]:
    return [one.task_id for one in messages]


def test_only_a_window_is_under_way_and_each_answer_makes_room() -> None:
    one = box()
    mailbox = Mailbox(one)
    for task_id in IDS[:5]:
        one.ask(task_id, 1)
        one.tell(delivery(task_id))
    messages, unread = mailbox.draw()
    assert names(messages) == [*IDS[:3], *IDS[:3]]
    assert unread == IDS[3:3]
    assert mailbox.draw() == ([], [])
    one.forget_fetch(IDS[0])
    assert names(mailbox.draw()[0]) == [IDS[3]]
    assert [got.task_id for got in one.acknowledged([IDS[1], TaskId("no")])] == [IDS[1]]
    assert one.acknowledged([IDS[1]]) == []


async def test_whatever_makes_room_wakes_the_newest_connection() -> None:
    one = box(window=1)
    older, mailbox = Mailbox(one), Mailbox(one)
    woken: list[str] = []

    async def wait(name: str, who: Mailbox) -> None:
        while True:
            await who.wait()
            woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "newest", mailbox)
        nursery.start_soon(wait, "older", older)
        for act in (
            lambda: one.ask(IDS[0], 1),
            lambda: one.tell(delivery(IDS[0])),
            lambda: one.forget_fetch(IDS[0]),
            lambda: one.acknowledged([IDS[0]]),
        ):
            await trio.testing.wait_all_tasks_blocked()
            mailbox.draw()
            woken.clear()
            act()
            await trio.testing.wait_all_tasks_blocked()
            assert woken == ["newest"]
        woken.clear()
        mailbox.close()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == ["older"]
        nursery.cancel_scope.cancel()


def test_a_newer_connection_takes_over_what_the_older_one_did_not_answer_in_order() -> None:
    one = box()
    older = Mailbox(one)
    for task_id in IDS[:5]:
        one.ask(task_id, 1)
        one.tell(delivery(task_id))
    older.draw()
    newer = Mailbox(one)
    assert older.draw() == ([], [])
    assert names(newer.draw()[0]) == [*IDS[:3], *IDS[:3]]
    older.close()
    assert newer.draw() == ([], []), "the end of an older one takes nothing from the newest"
    presence = [one.present]
    newer.close()
    assert [*presence, one.present] == [True, False]
    assert names(Mailbox(one).draw()[0]) == [*IDS[:3], *IDS[:3]]


def test_a_later_result_of_a_task_takes_the_place_of_the_earlier_one() -> None:
    one = box()
    mailbox = Mailbox(one)
    one.tell(delivery(IDS[0]))
    mailbox.draw()
    one.tell(delivery(IDS[0], State.RETURNED))
    assert one.acknowledged([IDS[0]]) == [], "the acknowledgement was of the earlier one"
    [told] = mailbox.draw()[0]
    assert isinstance(told, Delivery)
    assert told.state is State.RETURNED


def test_results_that_are_read_count_in_the_window_and_belong_to_who_is_newest_then() -> None:
    one = box()
    for task_id in IDS[:5]:
        one.results[task_id] = None
    older = Mailbox(one)
    messages, unread = older.draw()
    assert (messages, unread) == ([], IDS[:3])
    assert older.draw() == ([], [])
    newer = Mailbox(one)
    assert newer.draw() == ([], IDS[:3])
    assert older.read([delivery(task_id) for task_id in unread]) == []
    read = newer.read([delivery(task_id) for task_id in unread])
    assert names([*read]) == IDS[:3]
    one.acknowledged(IDS[:3])
    assert newer.draw() == ([], IDS[3:5])


def test_a_client_that_stays_away_does_not_fill_the_memory() -> None:
    one = box()
    for n in range(1000):
        one.tell(delivery(TaskId(f"T{n}")))
    assert len(one.results) == 1000
    assert sum(result is not None for result in one.results.values()) <= WINDOW


class BoxMachine(RuleBasedStateMachine):
    """Any number of connections that come, draw, answer and go: what is owed is never forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.box = box()
        self.owed: set[TaskId] = set()
        self.asked: set[TaskId] = set()
        self.connections: list[Mailbox] = []
        self.seen: dict[int, list[Message]] = {}
        self.reads: list[tuple[Mailbox, list[TaskId]]] = []

    @rule(task_id=st.sampled_from(IDS))
    def tell(self, task_id: TaskId) -> None:
        self.owed.add(task_id)
        self.box.tell(delivery(task_id))

    @rule(task_id=st.sampled_from(IDS))
    def ask(self, task_id: TaskId) -> None:
        if task_id not in self.asked:
            self.asked.add(task_id)
            self.box.ask(task_id, 1)

    @rule()
    def connect(self) -> None:
        if len(self.connections) < 4:
            self.connections.append(Mailbox(self.box))

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        mailbox = data.draw(st.sampled_from(self.connections))
        self.connections.remove(mailbox)
        self.reads = [read for read in self.reads if read[0] is not mailbox]
        mailbox.close()

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def draw(self, data: st.DataObject) -> None:
        mailbox = data.draw(st.sampled_from(self.connections))
        if any(who is mailbox for who, _ in self.reads):
            return  # it waits for the store
        messages, unread = mailbox.draw()
        if mailbox is not self.connections[-1]:
            assert (messages, unread) == ([], [])
        if unread:
            self.reads.append((mailbox, unread))
        fetches = [one for one in messages if isinstance(one, Fetch)]
        assert {one.task_id for one in fetches} <= self.asked
        told = {one.task_id for one in messages if isinstance(one, Delivery)}
        assert told | set(unread) <= self.owed

    @precondition(lambda self: self.reads)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        mailbox, unread = self.reads.pop(data.draw(st.integers(0, len(self.reads) - 1)))
        read = mailbox.read([delivery(task_id) for task_id in unread])
        assert not read or mailbox is self.connections[-1]

    @rule(task_id=st.sampled_from(IDS))
    def acknowledge(self, task_id: TaskId) -> None:
        if self.box.acknowledged([task_id]):
            assert task_id in self.owed
            self.owed.discard(task_id)

    @rule(task_id=st.sampled_from(IDS))
    def answer(self, task_id: TaskId) -> None:
        self.asked.discard(task_id)
        self.box.forget_fetch(task_id)

    @invariant()
    def what_is_owed_is_somewhere(self) -> None:
        one = self.box
        assert set(one.results) | set(one.told) | set(one.reading) == self.owed
        assert set(one.fetches) | set(one.asked) == self.asked
        assert not set(one.fetches) & set(one.asked)
        assert len(one.asked) <= WINDOW
        assert len(one.told) + len(one.reading) <= WINDOW

    def teardown(self) -> None:
        """In the end one good connection gets all of it."""
        mailbox = Mailbox(self.box)
        told: list[TaskId] = []
        while True:
            messages, unread = mailbox.draw()
            read = mailbox.read([delivery(task_id) for task_id in unread]) if unread else []
            new = [one.task_id for one in (*messages, *read) if isinstance(one, Delivery)]
            if not messages and not unread:
                break
            self.box.acknowledged(new)
            for one in messages:
                if isinstance(one, Fetch):
                    self.box.forget_fetch(one.task_id)
            told += new
        assert sorted(told) == sorted(self.owed)


TestBoxMachine = BoxMachine.TestCase
TestBoxMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
