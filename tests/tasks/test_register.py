"""The open tasks in memory: figures that are kept agree with figures that are counted."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.money import Cny
from fep.domain.order import Kind, Payee, PaymentOrder
from fep.tasks.register import AGES_MIN, Register
from fep.tasks.state import State
from fep.tasks.task import Task

pytestmark = pytest.mark.req("FEP-23")

START = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
BANKS = [BankName("a"), BankName("b")]
CLIENTS = [ClientName("erp-1"), ClientName("fep:pooling")]
PAYERS = [AccountNumber("1"), AccountNumber("2")]


def order(payer: AccountNumber, fen: int) -> PaymentOrder:
    return PaymentOrder(payer, Payee(AccountNumber("9"), "云阶示例贸易有限公司"), Cny(fen))


def make(number: int, expires_s: float = 60.0, **more: object) -> Task:
    task = Task(
        seq=number,
        task_id=TaskId(f"T{number}"),
        client=CLIENTS[0],
        bank=BANKS[0],
        kind=Kind.TRANSFER,
        priority=5,
        state=State.QUEUED,
        submitted_at=START,
        expires_at=START + dt.timedelta(seconds=expires_s),
    )
    for name, value in more.items():
        setattr(task, name, value)
    return task


class RegisterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.register = Register()
        self.tasks: dict[TaskId, Task] = {}
        self.due: list[Task] = []
        self.made = 0
        self.now = START.timestamp()

    @rule(
        bank=st.sampled_from(BANKS),
        client=st.sampled_from(CLIENTS),
        body=st.none() | st.builds(order, st.sampled_from(PAYERS), st.integers(1, 99)),
        expires_s=st.floats(0, 50),
        state=st.sampled_from([State.QUEUED, State.OFFERED, State.SENDING]),
    )
    def keep(
        self,
        bank: BankName,
        client: ClientName,
        body: PaymentOrder | None,
        expires_s: float,
        state: State,
    ) -> None:
        self.made += 1
        later = self.now - START.timestamp() + expires_s
        task = make(self.made, later, bank=bank, client=client, body=body, state=state)
        self.register.keep(task)
        self.tasks[task.task_id] = task
        if state is not State.SENDING:
            self.due.append(task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), state=st.sampled_from(State))
    def turn(self, data: st.DataObject, state: State) -> None:
        task = self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))]
        body = data.draw(st.none() | st.builds(order, st.sampled_from(PAYERS), st.integers(1, 99)))
        wanted = task.body if task.body is not None else body
        self.register.turn(task, state, body)
        assert (task.state, task.body) == (state, wanted)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        task = self.tasks.pop(data.draw(st.sampled_from(sorted(self.tasks))))
        self.register.drop(task)
        self.register.drop(task)
        self.register.turn(task, State.FAILED)
        self.due = [one for one in self.due if one is not task]

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        came = list(self.register.expired(self.now))
        assert all(task.expires_at.timestamp() <= self.now for task in came)
        assert len(came) == len(set(came))
        overdue = {one for one in self.due if math.ceil(one.expires_at.timestamp()) <= self.now}
        assert set(came) == overdue
        self.due = [one for one in self.due if one not in overdue]

    @invariant()
    def figures(self) -> None:
        register, tasks = self.register, self.tasks.values()
        assert len(register) == len(tasks)
        counted = Counter((task.bank, task.state) for task in tasks)
        kept = {
            (bank, state): number
            for bank, states in register.counts().items()
            for state, number in states.items()
        }
        assert kept == dict(counted)
        for but in (None, *CLIENTS):
            sums: Counter[AccountNumber] = Counter()
            for task in tasks:
                if isinstance(task.body, PaymentOrder) and task.client != but:
                    sums[task.body.payer] += task.body.amount.fen
            under_way = {payer: amount.fen for payer, amount in register.under_way(but).items()}
            assert under_way == dict(sums)
        for bank in BANKS:
            mine = sorted((task for task in tasks if task.bank == bank), key=lambda one: one.seq)
            assert register.of_bank(bank) == mine
        soonest = min((one.expires_at.timestamp() for one in self.due), default=math.inf)
        assert register.next_expiry <= math.ceil(soonest) if self.due else True


TestRegisterMachine = RegisterMachine.TestCase
TestRegisterMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_tasks_that_ended_do_not_stay_until_their_age() -> None:
    register = Register()
    old = make(0, 5.0)
    register.keep(old)
    for number in range(1, 5 * AGES_MIN):
        task = make(number, 86_400.0)
        register.keep(task)
        register.drop(task)
    assert sum(len(bucket) for bucket in register._ages.values()) <= AGES_MIN + 4
    assert list(register.expired(START.timestamp() + 5)) == [old]


def test_a_task_that_was_let_go_of_does_not_come_of_age() -> None:
    """It may have been read again since, with its bank."""
    register = Register()
    old, fresh, other = make(1), make(1), make(2)
    for task in (old, other):
        register.keep(task)
    register.drop(old)
    register.drop(other)
    register.keep(fresh)
    (came,) = register.expired(START.timestamp() + 60)
    assert came is fresh
