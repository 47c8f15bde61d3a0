"""Admission: what arrives while the disk is busy is one group, and each gets its own answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fep.domain.clock import SystemClock
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.order import BalanceQuery, Kind
from fep.store.database import Store
from fep.tasks.admission import Admission, Arrival
from fep.tasks.state import State
from fep.tasks.task import Admitted, Answer, Refused, Submission, Task
from tests.store.held import held

pytestmark = pytest.mark.req("FEP-22", "FEP-23")

BANK = BankName("pingan")
BODY = BalanceQuery(AccountNumber("1"))
NO_BANK = Refused("UNKNOWN_BANK", "no such bank")
WAIT_SECONDS_MAX = 20.0


class Desk:
    """The admission with what it is told and what it tells."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept: list[Task] = []
        self.full = 0
        self.admission = Admission(store, SystemClock(), 60.0, self.kept.extend, self.note_full)
        self.answers: dict[str, list[Answer]] = {}

    def note_full(self) -> None:
        self.full += 1

    def submit(self, name: str, client: str, *given: Submission | tuple[str, Refused]) -> None:
        """Submit under a name, by which the answers are found."""
        submissions = [
            Submission(TaskId(one[0]), BANK, Kind.BALANCE) if isinstance(one, tuple) else one
            for one in given
        ]
        refusals = [one[1] if isinstance(one, tuple) else None for one in given]

        def done(answers: list[Answer]) -> None:
            assert name not in self.answers, "answered twice"
            self.answers[name] = answers

        arrival = Arrival(ClientName(client), submissions, refusals, done)
        self.admission.submit(arrival, "c")

    async def answered(self, *names: str) -> list[list[Answer]]:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not set(names) <= self.answers.keys():
                await trio.sleep(0.002)
        return [self.answers[name] for name in names]


def one(task_id: str, *, body: bool = False, expires_s: float | None = None) -> Submission:
    given = BODY if body else None
    return Submission(TaskId(task_id), BANK, Kind.BALANCE, body=given, expires_s=expires_s)


def new(task_id: str) -> Admitted:
    return Admitted(TaskId(task_id), State.QUEUED, known=False)


def known(task_id: str) -> Admitted:
    return Admitted(TaskId(task_id), State.QUEUED, known=True)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = Store.at(tmp_path / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Desk(store)
        nursery.cancel_scope.cancel()


async def test_many_clients_are_one_group_and_each_gets_its_own_answers(desk: Desk) -> None:
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        for number in range(50):
            desk.submit(f"C{number}", f"erp-{number}", one(f"T{number}"), one("SAME"))
        waiting = len(desk.store._waiting)
    assert waiting == 1, "one piece of work for all of them"
    answers = await desk.answered(*(f"C{number}" for number in range(50)))
    assert answers[0] == [new("T0"), new("SAME")]
    for number in range(1, 50):
        mine, same = answers[number]
        assert mine == new(f"T{number}")
        assert isinstance(same, Refused)
        assert same.code == "TASK_CONFLICT"
    assert [task.task_id for task in desk.kept] == ["T0", "SAME", *(f"T{n}" for n in range(1, 50))]
    assert [task.seq for task in desk.kept] == sorted(task.seq for task in desk.kept)


async def test_a_group_has_one_moment_from_which_each_age_counts(desk: Desk) -> None:
    before = SystemClock().now()
    for group in ("1", "2"):
        with held(desk.store):
            await trio.testing.wait_all_tasks_blocked()
            desk.submit(f"x{group}", "erp-1", one(f"A{group}"), one(f"B{group}", expires_s=5.0))
            desk.submit(f"y{group}", "erp-2", one(f"C{group}", expires_s=5.0))
        await desk.answered(f"x{group}", f"y{group}")
    first, second = desk.kept[:3], desk.kept[3:]
    assert len({task.submitted_at for task in first}) == len({t.submitted_at for t in second}) == 1
    assert before < first[0].submitted_at < second[0].submitted_at < SystemClock().now()
    for several in (first, second):
        ages = [(task.expires_at - task.submitted_at).total_seconds() for task in several]
        assert ages == [60.0, 5.0, 5.0]


async def test_known_new_and_refused_ones_of_a_group_do_not_mix(desk: Desk) -> None:
    desk.submit("first", "erp", one("A"), one("B", body=True))
    await desk.answered("first")
    with held(desk.store):
        await trio.testing.wait_all_tasks_blocked()
        desk.submit("x", "erp", ("A", NO_BANK), one("C"), ("D", NO_BANK), one("B", body=True))
        desk.submit("y", "erp", one("C"), one("E"), one("E"))
        desk.submit("z", "erp")
    x, y, z = await desk.answered("x", "y", "z")
    assert x == [known("A"), new("C"), NO_BANK, known("B")]
    assert y == [known("C"), new("E"), known("E")]
    assert z == []
    assert [task.task_id for task in desk.kept] == ["A", "B", "C", "E"]


async def test_what_arrives_after_its_turn_is_the_next_group(desk: Desk) -> None:
    for number in range(20):
        desk.submit(f"N{number}", "erp", one(f"T{number}"))
        if number % 3 == 0:
            await desk.answered(f"N{number}")
    await desk.answered(*(f"N{number}" for number in range(20)))
    assert [task.task_id for task in desk.kept] == [f"T{number}" for number in range(20)]


async def test_a_full_disk_and_an_ended_store_answer_everybody(desk: Desk) -> None:
    desk.submit("first", "erp", one("A"))
    await desk.answered("first")
    await desk.store.write(lambda c: c.exec_driver_sql("pragma max_page_count=1"))
    many = [one(f"F{n}", body=True) for n in range(400)]
    desk.submit("full", "erp", one("A"), *many)
    [answers] = await desk.answered("full")
    assert answers[0] == known("A"), "what is stored is known, whatever the disk says of new ones"
    assert {answer.code for answer in answers[1:] if isinstance(answer, Refused)} == {"STORE_FULL"}
    assert desk.full == 1
    assert desk.store.full, "to look something up is no sign of room"
    assert [task.task_id for task in desk.kept] == ["A"]
    await desk.store.write(lambda c: c.exec_driver_sql("pragma max_page_count=1000000"))
    desk.submit("again", "erp", one("F1", body=True))
    [[again]] = await desk.answered("again")
    assert again == new("F1")
    assert not desk.store.failed
