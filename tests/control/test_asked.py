"""What a connection was asked and told: an answer finds it, and what lapsed takes bounded room."""

from __future__ import annotations

import pytest

from fep.control.asked import LAPSED_MAX, Asked
from fep.domain.ids import ClientName, TaskId
from fep.tasks.mailbox import ClientBox, Mailbox
from fep.tasks.state import State
from fep.tasks.task import Delivery, Fetch

pytestmark = pytest.mark.req("FEP-24", "FEP-26")

WINDOW = 4


class Connection:
    """A box with one connection, whose client answers as the test says."""

    def __init__(self) -> None:
        self.box = ClientBox(ClientName("erp-1"), WINDOW)
        self.mailbox = Mailbox(self.box)
        self.asked = Asked(self.box)

    def draw(self) -> list[int]:
        """Ask and tell what there is; returns the requests' ids."""
        return [self.asked.put(one) for one in self.mailbox.draw()[0]]

    def fetch(self, task_id: str, attempt: int) -> int:
        self.box.ask(TaskId(task_id), attempt)
        [id_] = self.draw()
        return id_

    def tell(self, task_id: str) -> int:
        self.box.tell(Delivery(TaskId(task_id), State.SUCCEEDED, None, "", "", ""))
        [id_] = self.draw()
        return id_


def test_an_answer_is_to_what_was_asked_once() -> None:
    one = Connection()
    first, second = one.fetch("T1", 1), one.tell("T2")
    assert one.asked.answered("1") is None
    assert one.asked.answered(None) is None
    assert one.asked.answered(first) == Fetch(TaskId("T1"), 1)
    assert one.asked.answered(first) is None
    told = one.asked.answered(second)
    assert isinstance(told, Delivery)
    assert told.task_id == "T2"
    assert len(one.asked) == 0


def test_a_client_that_answers_nothing_costs_bounded_memory_and_may_answer_late() -> None:
    one = Connection()
    waited = {one.fetch("OLD", 1): "OLD", one.tell("ENDED"): "ENDED"}
    lapsed = []
    for attempt in range(1, 3 * LAPSED_MAX):
        lapsed.append(one.fetch("T1", attempt))
        assert len(one.asked) <= 2 * WINDOW + LAPSED_MAX
        one.box.forget_fetch(TaskId("T1"))
    for id_, task_id in waited.items():
        message = one.asked.answered(id_)
        assert message is not None, "what is waited for was forgotten"
        assert message.task_id == task_id
    known = [id_ for id_ in lapsed if one.asked.answered(id_) is not None]
    assert known == lapsed[-len(known) :]
    assert len(known) >= LAPSED_MAX // 2
    assert len(one.asked) == 0


def test_a_result_told_anew_takes_bounded_room_too() -> None:
    one = Connection()
    newest = one.tell("T1")
    for _ in range(2 * LAPSED_MAX):
        newest = one.tell("T1")
        assert len(one.asked) <= 2 * WINDOW + LAPSED_MAX
    assert one.asked.answered(newest) is one.box.told[TaskId("T1")]


def test_what_goes_to_another_connection_and_comes_back_takes_bounded_room() -> None:
    """The same result, or question, under a new id each time: a session of the client's is short."""
    one = Connection()
    one.tell("T1")
    one.fetch("T2", 1)
    result, fetch = one.box.told[TaskId("T1")], Fetch(TaskId("T2"), 1)
    told = asked = 0
    for _ in range(2 * LAPSED_MAX):
        told, asked = one.asked.put(result), one.asked.put(fetch)
        assert len(one.asked) <= 2 * WINDOW + LAPSED_MAX
    assert one.asked.answered(told) is result
    assert one.asked.answered(asked) == fetch
