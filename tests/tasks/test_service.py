"""The task queue to its clients: one id is one task, bodies by claim check, results until had."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import ExitStack, closing
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from fep.adapters.host import Fault
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, TaskId
from fep.domain.order import Kind
from fep.store.database import StoreFullError
from fep.tasks import store
from fep.tasks.config import TasksConfig
from fep.tasks.service import EXPIRED_AT_ONCE_MAX, TIMER_SECONDS, TaskRefusedError
from fep.tasks.state import FINAL, Event, State
from fep.tasks.task import Admitted, Answer, Delivery, Refused, Task
from tests.store.held import held
from tests.tasks.bench import (
    CMB,
    ERP,
    OTHER,
    PAYER,
    PINGAN,
    STRANGER,
    MovedClock,
    World,
    balance,
    money,
    transfer,
    until,
)

QUICK = TasksConfig(fetch_timeout_s=0.2)
ID = TaskId("T1")


def codes(answers: list[Any]) -> list[str]:
    return [one.code if isinstance(one, Refused) else one.state.value for one in answers]


async def refused(act: Any) -> str:
    with pytest.raises(TaskRefusedError) as caught:
        await act
    return caught.value.code


# -- the way of a task ------------------------------------------------------------------------


@pytest.mark.req("FEP-22", "FEP-23", "FEP-24", "FEP-25", "FEP-26", "DEC-a")
@pytest.mark.parametrize("bank", [PINGAN, CMB])
async def test_an_id_becomes_a_task_a_payment_and_a_result(world: World, bank: BankName) -> None:
    async with world.fep(banks=[bank]) as fep:
        client = fep.client(bodies={"T1": money(bank)})
        await fep.submit("T1", Kind.TRANSFER, bank)
        told = await client.result("T1")
        assert told.state is State.SUCCEEDED
        assert told.result["amount"] == "12.50"
        assert told.result["bank_ref"]
        assert client.attempts("T1") == [1]
        events = await fep.events("T1")
        assert events[:4] == ["submitted", "offered", "body_taken", "send_begun"]
        assert world.booked("T1") == 1
        await until(lambda: world.on_disk("select delivery from task") == [(store.ACKNOWLEDGED,)])
        assert (await fep.get("T1"))["acknowledged"] is True
        fep.agrees()


async def test_an_inline_body_is_not_asked_for(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client()
        await fep.submit("T1", body=transfer("3.00"))
        assert (await client.result("T1")).state is State.SUCCEEDED
        assert client.asked == []
        assert await fep.events("T1") == ["submitted", "body_taken", "send_begun", "bank_done"]


# -- admission --------------------------------------------------------------------------------


@pytest.mark.req("FEP-22", "FEP-23")
async def test_the_same_id_is_the_same_task(world: World) -> None:
    async with world.fep(banks=[PINGAN, CMB], run=False) as fep:
        one = fep.submission("T1", body=transfer("1.00"))
        [first, again] = await fep.admit(one, one)
        assert [first.known, again.known] == [False, True]  # type: ignore[union-attr]
        later = await fep.admit(one, fep.submission("T1", Kind.TRANSFER))
        assert [answer.known for answer in later] == [True, True]  # type: ignore[union-attr]
        others = [
            fep.submission("T1", body=transfer("1.01")),
            fep.submission("T1", Kind.BALANCE),
            fep.submission("T1", Kind.TRANSFER, CMB),
        ]
        assert codes(await fep.admit(*others)) == ["TASK_CONFLICT"] * 3
        assert codes(await fep.admit(one, client=OTHER)) == ["TASK_CONFLICT"]
        assert world.on_disk("select task_id, state, client from task") == [("T1", "queued", ERP)]
        assert world.on_disk("select count(*) from task_event") == [(1,)]


async def test_an_id_is_known_whatever_became_of_its_task(world: World) -> None:
    async with world.fep() as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.SUCCEEDED)
        [answer] = await fep.admit(fep.submission("T1", body=transfer("1.00")))
        assert answer == Admitted(ID, State.SUCCEEDED, known=True)
        assert codes(await fep.admit(fep.submission("T1", body=transfer("2.00")))) == [
            "TASK_CONFLICT"
        ]
        await trio.testing.wait_all_tasks_blocked()
        assert world.booked("T1") == 1


async def test_what_is_refused_changes_nothing_and_answers_keep_their_order(world: World) -> None:
    async with world.fep(run=False) as fep:
        answers = await fep.admit(
            fep.submission("T1"),
            fep.submission("T2", bank=BankName("nowhere")),
            fep.submission("T3", Kind.RECEIPT),
            fep.submission("T4"),
        )
        assert codes(answers) == ["queued", "UNKNOWN_BANK", "UNSUPPORTED_KIND", "queued"]
        assert await fep.admit() == []
        assert world.on_disk("select task_id from task") == [("T1",), ("T4",)]
        fep.agrees()


@pytest.mark.req("FEP-23")
async def test_a_full_queue_takes_nothing_new_and_denies_nothing_old(world: World) -> None:
    config = TasksConfig(queue_max=10)
    async with world.fep(tasks=config, run=False) as fep:
        many = [fep.submission(f"T{n}") for n in range(12)]
        answers = await fep.admit(*many)
        assert codes(answers) == ["queued"] * 10 + ["QUEUE_FULL"] * 2
        assert fep.alarm_kinds() >= {AlarmKind.QUEUE_NEARLY_FULL}
        again = await fep.admit(*many)
        assert codes(again) == codes(answers)
        assert [answer.known for answer in again[:10]] == [True] * 10  # type: ignore[union-attr]
        for n in range(3):
            await fep.service.cancel(ERP, TaskId(f"T{n}"), "test")
        assert AlarmKind.QUEUE_NEARLY_FULL not in fep.alarm_kinds()
        assert codes(await fep.admit(fep.submission("T20"))) == ["queued"]


async def test_batches_that_wait_for_one_commit_share_the_room(world: World) -> None:
    async with world.fep(tasks=TasksConfig(queue_max=10), run=False) as fep:
        answers: list[Any] = []
        with held(fep.store):
            for batch in range(3):
                many = [fep.submission(f"B{batch}-{n}") for n in range(8)]
                fep.service.submit(ERP, many, answers.extend)
        await fep.settled()
        assert codes(answers).count("queued") == 10
        assert world.on_disk("select count(*) from task") == [(10,)]
        # The refused ones do not go on taking up room.
        await fep.service.cancel(ERP, TaskId("B0-0"), "test")
        assert codes(await fep.admit(fep.submission("T1"))) == ["queued"]


@pytest.mark.parametrize(
    ("config", "open_max"), [(TasksConfig(queue_max=10), 0), (TasksConfig(), 10)]
)
async def test_what_is_known_takes_no_room_from_what_is_new(
    world: World, config: TasksConfig, open_max: int
) -> None:
    """A finance system that begins again submits all that it has, ended or not, and new ones."""
    async with world.fep(tasks=config, run=False) as fep:
        full = "LIMITED" if open_max else "QUEUE_FULL"

        async def admit(*ids: str) -> list[Answer]:
            answers: list[Answer] = []
            many = [fep.submission(task_id) for task_id in ids]
            fep.service.submit(ERP, many, answers.extend, open_max)
            await until(lambda: len(answers) == len(ids))
            return answers

        earlier = [f"T{n}" for n in range(10)]
        await admit(*earlier)
        for task_id in earlier[:4]:
            await fep.service.cancel(ERP, TaskId(task_id), "test")
        # Six are open and four have ended: there is room for four.
        answers = await admit(*earlier, "N0", "N1", "N1", "N2", "N3", "N4", "T0")
        assert codes(answers) == ["cancelled"] * 4 + ["queued"] * 11 + [full, "cancelled"]
        known = [one.known for one in answers if isinstance(one, Admitted)]
        assert known == [*([True] * 10), False, False, True, False, False, True]
        assert world.on_disk("select count(*) from task where state = 'queued'") == [(10,)]
        assert codes(await admit("T9", "N4")) == ["queued", full]
        assert fep.service._admitting == 0
        fep.agrees()


async def test_a_stopping_daemon_takes_nothing(world: World) -> None:
    async with world.fep(run=False) as fep:
        fep.service.stop_accepting()
        assert codes(await fep.admit(fep.submission("T1"))) == ["SHUTTING_DOWN"]


async def test_a_full_disk_takes_nothing_new_and_denies_nothing_old(world: World) -> None:
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await fep.fill_disk()
        known = fep.submission("T1", body=transfer("1.00"))
        answers = await fep.admit(fep.submission("T2"), known, fep.submission("T3"))
        assert codes(answers) == ["STORE_FULL", "queued", "STORE_FULL"]
        await fep.empty_disk()
        assert codes(await fep.admit(fep.submission("T2"))) == ["queued"]
        fep.agrees()


async def test_an_ended_store_is_a_daemon_that_stops(world: World) -> None:
    async with world.fep(run=False) as fep:
        pass
    assert codes(await fep.admit(fep.submission("T1"))) == ["SHUTTING_DOWN"]


# -- hand-back --------------------------------------------------------------------------------


@pytest.mark.req("FEP-09", "FEP-24")
async def test_nobody_is_asked_while_the_key_is_out(world: World) -> None:
    async with world.fep() as fep:
        await fep.ready()
        fep.take_key()
        await until(lambda: not fep.slot.is_open)
        client = fep.client(bodies={"T1": balance()})
        await fep.submit("T1")
        await fep.settled()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert client.asked == []
        fep.give_key()
        assert (await client.result("T1")).state is State.SUCCEEDED


@pytest.mark.req("FEP-24", "DEC-a")
async def test_an_offer_that_is_not_fetched_lapses_and_is_made_again(world: World) -> None:
    async with world.fep(tasks=QUICK) as fep:
        client = fep.client()
        await fep.submit("T1")
        await until(lambda: client.attempts("T1") == [1, 2])
        client.bodies["T1"] = balance()
        assert (await client.result("T1")).state is State.SUCCEEDED
        assert client.attempts("T1") == [1, 2, 3]
        events = await fep.events("T1")
        assert events[:6] == ["submitted", *(["offered", "offer_lapsed"] * 2), "offered"]
        assert events[6:] == ["body_taken", "send_begun", "bank_done"]
        assert (await fep.get("T1"))["offers"] == 3


@pytest.mark.req("FEP-24", "DEC-a")
async def test_a_body_that_comes_after_its_offer_lapsed_is_taken_and_not_asked_again(
    world: World,
) -> None:
    """The task waits for its next offer when the answer to the last one comes: it is fetched."""
    async with world.fep(tasks=QUICK) as fep:
        await fep.ready()
        client = fep.client()
        await fep.submit("T1")
        await fep.becomes("T1", State.OFFERED)
        fep.take_key()
        await fep.becomes("T1", State.QUEUED)
        await fep.service.fetched(ERP, [(ID, balance())])
        assert (await fep.get("T1"))["state"] == "fetched"
        fep.give_key()
        assert (await client.result("T1")).state is State.SUCCEEDED
        assert client.attempts("T1") == [1]
        assert (await fep.events("T1")).count("offered") == 1
        fep.agrees()


@pytest.mark.req("FEP-24")
async def test_what_a_client_that_went_was_asked_is_asked_when_it_is_back(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client()
        await fep.submit("T1")
        await until(lambda: client.asked)
        await client.close()
        await fep.becomes("T1", State.QUEUED)
        await fep.submit("T2")
        again = fep.client(bodies={"T1": balance(), "T2": balance()})
        for task_id in ("T1", "T2"):
            assert (await again.result(task_id)).state is State.SUCCEEDED
        assert again.attempts("T1") == [2]


async def test_a_client_back_in_time_is_asked_by_the_same_offer(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client()
        await fep.submit("T1")
        await until(lambda: client.asked)
        client.scope.cancel()
        again = fep.client(bodies={"T1": balance()})
        assert (await again.result("T1")).state is State.SUCCEEDED
        assert again.attempts("T1")[0] in (1, 2)
        fep.agrees()


@pytest.mark.req("DEC-a")
async def test_only_its_own_client_gives_a_task_its_body_and_only_once(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client()
        stranger = fep.client(OTHER)
        await fep.submit("T1")
        await until(lambda: client.asked)
        await fep.service.fetched(OTHER, [(ID, balance())])
        assert fep.task("T1").state is State.OFFERED
        stranger_money = {"kind": "transfer", "params": {}}
        await fep.service.fetched(
            ERP, [(ID, balance()), (ID, stranger_money), (TaskId("never"), balance())]
        )
        assert (await client.result("T1")).state is State.SUCCEEDED
        await fep.service.fetched(ERP, [(ID, stranger_money)])
        assert [one.task_id for one in client.told] == ["T1"]
        assert stranger.told == []
        assert (await fep.events("T1")).count("body_taken") == 1


@pytest.mark.req("FEP-21", "DEC-a")
@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "balance",
        {"kind": "balance"},
        {"kind": "balance", "params": {"account": PAYER}, "more": 1},
        {"kind": "statement", "params": {"account": PAYER}},
        {"kind": "balance", "params": {"account": STRANGER}},
        {"kind": "balance", "params": {"account": "9999000000201"}},
        {"kind": "balance", "params": {"account": PAYER, "x" * 700_000: 1}},
        {"kind": "b" * 700_000, "params": {"account": PAYER}},
        {"kind": "balance", "params": {"account": "1" * 700_000}},
    ],
    ids=range(11),
)
async def test_a_bad_body_fails_its_task_and_nothing_is_sent(world: World, answer: Any) -> None:
    async with world.fep() as fep:
        await fep.ready()
        requests = fep.link.requests
        client = fep.client(bodies={"T1": answer, "T2": balance()})
        await fep.submit("T1")
        told = await client.result("T1")
        assert (told.state, told.bank_code) == (State.FAILED, "BAD_BODY")
        assert 0 < len(told.bank_message) < 1000
        assert fep.link.requests == requests
        await fep.submit("T2")
        assert (await client.result("T2")).state is State.SUCCEEDED
        fep.agrees()


async def test_a_client_that_hangs_up_while_its_body_is_stored_leaves_no_task_stuck(
    world: World,
) -> None:
    async with world.fep() as fep:
        client = fep.client(answers=False)
        await fep.submit("T1")
        await until(lambda: client.asked)
        with held(fep.store):
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await fep.service.fetched(ERP, [(ID, balance())])
        assert (await client.result("T1")).state is State.SUCCEEDED


async def test_a_body_that_finds_the_disk_full_is_asked_for_again(world: World) -> None:
    async with world.fep(tasks=QUICK) as fep:
        await fep.ready()
        client = fep.client()
        late = await fep.submit("LATE")
        await fep.becomes("LATE", State.OFFERED)
        await until(lambda: client.asked)
        fep.take_key()
        await fep.becomes("LATE", State.QUEUED)
        await fep.fill_disk()
        # Whatever is wrong with the disk, it is nothing that may end the client's connection.
        await fep.service.fetched(ERP, [(late, balance())])
        assert fep.task("LATE").state is State.QUEUED
        fep.give_key()
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds(), "the offer waits for room")
        await fep.empty_disk()
        client.bodies["LATE"] = balance()
        assert (await client.result("LATE")).state is State.SUCCEEDED
        await until(lambda: AlarmKind.STORE_FULL not in fep.alarm_kinds())
        fep.agrees()


@pytest.mark.req("FEP-26")
@pytest.mark.parametrize("at_once", [1, 500])
async def test_an_acknowledgement_that_finds_the_store_held_is_noted_when_it_is_free(
    world: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("fep.tasks.service.RECEIPTS_AT_ONCE_MAX", at_once, raising=False)
    monkeypatch.setattr("fep.store.database.BUSY_TIMEOUT_MS", 20)
    async with world.fep() as fep:
        client = fep.client(acknowledges=False)
        ids = [TaskId(f"T{number}") for number in range(3)]
        for task_id in ids:
            await fep.submit(task_id, body=balance())
            await client.result(task_id)
        with (
            closing(sqlite3.connect(world.store_file, isolation_level=None)) as other,
            structlog.testing.capture_logs() as logs,
        ):
            other.execute("BEGIN IMMEDIATE")
            fep.service.acknowledge(ERP, ids[:2])
            fep.service.acknowledge(ERP, ids[2:])
            refusal = "tasks.acknowledgement_not_stored"
            await until(lambda: [one["event"] for one in logs].count(refusal) == 2, "refused")
            assert AlarmKind.STORE_FULL in fep.alarm_kinds()
            assert world.on_disk("select distinct delivery from task") == [(1,)]
        await until(lambda: world.on_disk("select distinct delivery from task") == [(2,)], "noted")
        await until(lambda: AlarmKind.STORE_FULL not in fep.alarm_kinds(), "the alarm's end")
        assert sorted(one.task_id for one in client.told) == ids
    async with world.fep() as fep:
        assert not fep.service.box(ERP).results


async def test_a_bad_body_that_finds_the_disk_full_holds_up_nobody(world: World) -> None:
    async with world.fep(tasks=QUICK) as fep:
        client = fep.client()
        await fep.submit("T1")
        await until(lambda: client.asked)
        await fep.fill_disk()
        with trio.fail_after(TIMER_SECONDS / 2):
            await fep.service.fetched(ERP, [(ID, None)])
        await fep.empty_disk()
        client.bodies["T1"] = None
        assert (await client.result("T1")).state is State.FAILED


async def test_nobody_else_changes_a_task_whose_bad_body_is_being_noted(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client()
        for task_id in ("T1", "T2"):
            await fep.submit(task_id)
        await until(lambda: len(client.asked) == 2)
        async with trio.open_nursery() as nursery:
            with held(fep.store):
                answers = [(ID, balance()), (TaskId("T2"), None)]
                nursery.start_soon(fep.service.fetched, ERP, answers)
                await trio.testing.wait_all_tasks_blocked()
                for task_id in ("T1", "T2"):
                    cancel = fep.service.cancel(ERP, TaskId(task_id), "test")
                    assert await refused(cancel) == "BAD_STATE"
        assert (await client.result("T1")).state is State.SUCCEEDED
        assert (await client.result("T2")).state is State.FAILED
        fep.agrees()


async def test_more_questions_than_the_window_are_asked_as_answers_come(world: World) -> None:
    async with world.fep(tasks=TasksConfig(result_window=2)) as fep:
        ids = [f"T{n}" for n in range(9)]
        await fep.admit(*(fep.submission(task_id) for task_id in ids))
        client = fep.client(bodies={task_id: balance() for task_id in ids})
        for task_id in ids:
            assert (await client.result(task_id)).state is State.SUCCEEDED
            assert client.attempts(task_id) == [1], "none lapsed for want of a window"


async def test_a_refused_question_is_asked_again_when_its_offer_lapses(world: World) -> None:
    async with world.fep(tasks=QUICK) as fep:
        client = fep.client()
        await fep.submit("T1")
        await until(lambda: client.asked)
        fep.service.fetch_refused(ERP, ID, "the ledger is locked")
        client.bodies["T1"] = balance()
        assert (await client.result("T1")).state is State.SUCCEEDED
        assert client.attempts("T1")[:2] == [1, 2]


# -- results ----------------------------------------------------------------------------------


@pytest.mark.req("FEP-26", "FEP-32")
async def test_a_result_is_told_until_it_is_acknowledged(world: World) -> None:
    async with world.fep() as fep:
        deaf = fep.client(acknowledges=False)
        await fep.submit("T1", body=balance())
        first = await deaf.result("T1")
        await deaf.close()
        client = fep.client()
        assert await client.result("T1") == first
        await until(lambda: world.on_disk("select delivery from task") == [(2,)])
        await client.close()
        last = fep.client()
        await fep.submit("T2", body=balance())
        await last.result("T2")
        assert [one.task_id for one in last.told] == ["T2"]


@pytest.mark.req("FEP-26")
async def test_a_result_is_told_after_a_restart_and_as_it_was(world: World) -> None:
    async with world.fep() as fep:
        deaf = fep.client(acknowledges=False)
        for task_id, body in (("T1", balance()), ("T2", transfer("4.00")), ("T3", balance())):
            await fep.submit(task_id, body=body)
            await deaf.result(task_id)
        before = {one.task_id: one for one in deaf.told}
    async with world.fep(tasks=TasksConfig(result_window=2)) as fep:
        client = fep.client()
        for task_id, told in before.items():
            assert await client.result(task_id) == told
        await until(lambda: world.on_disk("select distinct delivery from task") == [(2,)])
    async with world.fep() as fep:
        client = fep.client()
        await fep.submit("T4", body=balance())
        await client.result("T4")
        assert [one.task_id for one in client.told] == ["T4"]


@pytest.mark.req("FEP-26")
async def test_the_newest_connection_of_a_client_is_told_and_the_older_one_after_it(
    world: World,
) -> None:
    async with world.fep() as fep:
        older = fep.client(acknowledges=False)
        await fep.submit("T1", body=balance())
        await older.result("T1")
        newer = fep.client(acknowledges=False)
        await newer.result("T1")
        await fep.submit("T2", body=balance())
        await newer.result("T2")
        assert [one.task_id for one in older.told] == ["T1"]
        fep.service.acknowledge(ERP, [ID])  # by whichever connection
        await newer.close()
        assert fep.service.present == {ERP}
        await older.result("T2")
        assert [one.task_id for one in older.told] == ["T1", "T2"]
        await older.close()
        assert fep.service.present == set()


async def owed(world: World) -> None:
    """Leave a result behind that no client was told."""
    async with world.fep() as fep:
        await fep.submit("T1", body=balance())
        await fep.becomes("T1", State.SUCCEEDED)


async def test_a_result_whose_reading_was_interrupted_goes_to_the_next_connection(
    world: World,
) -> None:
    await owed(world)
    async with world.fep() as fep:
        async with fep.held_readers():
            mailbox = fep.service.attach(ERP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fep.service.take, mailbox)
                await until(lambda: not mailbox.box.results)
                nursery.cancel_scope.cancel()
            fep.service.detach(mailbox)
        assert (await fep.client().result("T1")).state is State.SUCCEEDED


async def test_a_result_read_for_an_older_connection_goes_to_the_newest(world: World) -> None:
    await owed(world)
    async with world.fep() as fep:
        got: list[Any] = []

        async def take() -> None:
            got.extend(await fep.service.take(older))

        async with trio.open_nursery() as nursery:
            async with fep.held_readers():
                older = fep.service.attach(ERP)
                nursery.start_soon(take)
                await until(lambda: not older.box.results)
                newer = fep.client()
            assert (await newer.result("T1")).state is State.SUCCEEDED
            nursery.cancel_scope.cancel()
        assert got == []
        fep.service.detach(older)


async def test_results_nobody_fetches_do_not_fill_the_memory(world: World) -> None:
    async with world.fep(run=False) as fep:
        box = fep.service._box(ERP)
        for n in range(5000):
            box.tell(Delivery(TaskId(f"T{n}"), State.FAILED, None, "", "x" * 100, ""))
        assert len(box.results) == 5000
        assert sum(one is not None for one in box.results.values()) <= 1024


# -- acts -------------------------------------------------------------------------------------


@pytest.mark.req("DEC-a")
async def test_a_task_can_be_cancelled_until_it_may_have_left(world: World) -> None:
    async with world.fep(card={"inquiry": {"accepted_interval_s": 60.0}}) as fep:
        await fep.ready()
        fep.take_key()
        await until(lambda: not fep.slot.is_open)
        client = fep.client()
        await fep.submit("QUEUED")
        await fep.submit("INLINE", body=transfer("1.00"))
        await fep.submit("FETCHED")
        await fep.service.fetched(ERP, [(TaskId("FETCHED"), balance())])
        for task_id in ("QUEUED", "INLINE", "FETCHED"):
            assert await fep.service.cancel(ERP, TaskId(task_id), "test") is State.CANCELLED
            assert await refused(fep.service.cancel(ERP, TaskId(task_id), "test")) == "BAD_STATE"
        fep.give_key()
        await fep.submit("OFFERED")
        await until(lambda: client.asked)
        assert await fep.service.cancel(None, TaskId("OFFERED"), "operator li")
        assert fep.lane.offered == {}
        assert (await client.result("OFFERED")).state is State.CANCELLED
        await fep.submit("DONE", body=balance())
        await client.result("DONE")
        await fep.submit("ACCEPTED", body=transfer("1.00", payee=STRANGER))
        await fep.becomes("ACCEPTED", State.ACCEPTED)
        for task_id in ("DONE", "ACCEPTED"):
            assert await refused(fep.service.cancel(ERP, TaskId(task_id), "test")) == "BAD_STATE"
        assert await refused(fep.service.cancel(OTHER, TaskId("ACCEPTED"), "test")) == "NOT_FOUND"
        assert await refused(fep.service.cancel(ERP, TaskId("NO"), "test")) == "NOT_FOUND"
        told = [one.task_id for one in client.told]
        assert told == ["OFFERED", "DONE"], "who cancels its own task is not told of it again"
        assert world.booked("INLINE") == 0
        fep.agrees()


async def test_a_client_that_hangs_up_while_its_cancel_is_stored_leaves_the_lane_alone(
    world: World,
) -> None:
    """Memory follows the disk in the moment of the commit, whoever waits for it."""
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await fep.submit("T2", body=transfer("2.00"))
        with held(fep.store):
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await fep.service.cancel(ERP, ID, "test")
        await fep.start()
        await fep.becomes("T2", State.SUCCEEDED)
        assert (await fep.get("T1"))["state"] == "cancelled"
        assert world.booked("T1") == 0
        fep.agrees()


async def test_what_is_settled_is_settled_also_when_its_group_failed_for_another(
    world: World,
) -> None:
    """A lane that starts anew reads the disk only when nothing of the old one comes after."""
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await fep.submit("T2")
        now = SystemClock().now()
        stale = store.Change(2, State.SENDING, State.UNKNOWN, (Event.OUTCOME_LOST,), "test", now)
        seen: list[object] = []

        async def look() -> None:
            await fep.service.settled()
            seen.append(fep.service._open.get(ID))

        async with trio.open_nursery() as nursery:
            with held(fep.store):
                await trio.testing.wait_all_tasks_blocked()
                fep.service._changes.submit([stale], "c", lambda _error: None)
                with trio.move_on_after(0):
                    await fep.service.cancel(ERP, ID, "test")
                nursery.start_soon(look)
                await trio.testing.wait_all_tasks_blocked()
                assert seen == []
        assert seen == [None], "it ended before it was called settled"
        await fep.service.settled()


async def test_a_cancel_that_finds_the_disk_full_is_refused_and_the_task_goes_on(
    world: World,
) -> None:
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await fep.fill_disk()
        with pytest.raises(StoreFullError):
            await fep.service.cancel(ERP, ID, "test")
        fep.agrees()
        await fep.empty_disk()
        await fep.start()
        assert (await fep.becomes("T1", State.SUCCEEDED))["bank_ref"]


async def test_a_task_that_came_up_while_it_was_held_is_not_lost(world: World) -> None:
    """The lane skips a task that somebody is changing; when that fails it must come up again."""
    async with world.fep() as fep:
        await fep.ready()
        fep.lane.drain()
        await fep.submit("T1", body=transfer("1.00"))
        await fep.fill_disk()
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                with pytest.raises(StoreFullError):
                    await fep.service.cancel(ERP, ID, "test")

            with held(fep.store):
                nursery.start_soon(cancel)
                await trio.testing.wait_all_tasks_blocked()
                assert fep.task("T1").claimed
                fep.lane.resume()
                await trio.testing.wait_all_tasks_blocked()
        await fep.empty_disk()
        await fep.becomes("T1", State.SUCCEEDED)


async def test_what_is_seen_of_tasks(world: World) -> None:
    async with world.fep(run=False) as fep:
        for n in range(5):
            client = ERP if n % 2 else OTHER
            await fep.submit(f"T{n}", client=client)
        await fep.service.cancel(None, TaskId("T0"), "test")
        page, before = await fep.service.page(None, state=None, bank=None, limit=2, before=None)
        assert [one["task_id"] for one in page] == ["T4", "T3"]
        page, before = await fep.service.page(None, state=None, bank=None, limit=9, before=before)
        assert ([one["task_id"] for one in page], before) == (["T2", "T1", "T0"], None)
        own, _ = await fep.service.page(
            OTHER, state=State.QUEUED, bank="pingan", limit=9, before=None
        )
        assert [one["task_id"] for one in own] == ["T4", "T2"]
        assert await refused(fep.service.get(OTHER, ID)) == "NOT_FOUND"
        assert await refused(fep.service.why(OTHER, ID)) == "NOT_FOUND"
        status = fep.service.status()
        assert (status["open"], status["banks"]["pingan"]["open"]) == (4, {"queued": 4})


# -- two persons ------------------------------------------------------------------------------


_PROVED = {State.SUCCEEDED: "proved_done", State.REJECTED: "proved_refused"}


@pytest.mark.req("LAND-55", "DEC-g")
@pytest.mark.parametrize("outcome", _PROVED)
async def test_an_unknown_is_closed_by_two_persons(world: World, outcome: State) -> None:
    async with world.fep(card={"inquiry": {"accepted_interval_s": 60.0}}) as fep:
        service, client = fep.service, fep.client()
        await fep.submit("T1", body=transfer("1.00", payee=STRANGER))
        assert (await fep.becomes("T1", State.ACCEPTED))["inquire_at"]
        assert await refused(service.confirm("wang", ID)) == "BAD_STATE"
        assert await refused(service.resolve("li", ID, outcome, "  seen   ")) == "BAD_STATE"
        await service.resolve("li", ID, outcome, "statement of 2 March, line 7")
        assert await refused(service.confirm("li", ID)) == "NOT_PERMITTED"
        assert await service.confirm("wang", ID) is outcome
        told = await client.result("T1")
        assert (told.state, told.bank_code) == (outcome, "RESOLVED")
        assert "inquire_at" not in await fep.get("T1"), "nobody asks the bank any more"
        assert world.on_disk("select inquire_at from task") == [(None,)]
        await fep.store.write(lambda c: c.exec_driver_sql("update task set inquire_at = 'once'"))
        assert "inquire_at" not in await fep.get("T1"), "nor after an update of this program"
        assert "li proposed, wang confirmed" in told.bank_message
        assert await refused(service.confirm("wang", ID)) == "BAD_STATE"
        assert await refused(service.resolve("li", ID, outcome, "once more, with feeling")) == (
            "BAD_STATE"
        )
        chain = (await service.why(None, ID))["events"]
        assert [one["event"] for one in chain[-2:]] == ["proposed", _PROVED[outcome]]
        fep.agrees()


@pytest.mark.req("LAND-55", "DEC-g")
async def test_only_what_is_open_at_the_bank_is_resolved(world: World) -> None:
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        for task_id, code in (("T1", "BAD_STATE"), ("NO", "NOT_FOUND")):
            resolve = fep.service.resolve("li", TaskId(task_id), State.SUCCEEDED, "evidence " * 3)
            assert await refused(resolve) == code
            assert await refused(fep.service.confirm("li", TaskId(task_id))) == code


async def test_the_last_proposal_counts_and_outlives_a_restart(world: World) -> None:
    card = {"inquiry": {"accepted_interval_s": 60.0}}
    async with world.fep(card=card) as fep:
        await fep.submit("T1", body=transfer("1.00", payee=STRANGER))
        await fep.becomes("T1", State.ACCEPTED)
        await fep.service.resolve("li", ID, State.SUCCEEDED, "statement, line 7")
        await fep.service.resolve("wang", ID, State.REJECTED, "no, that was line 8")
    async with world.fep(card=card) as fep:
        assert await refused(fep.service.confirm("wang", ID)) == "NOT_PERMITTED"
        assert await fep.service.confirm("li", ID) is State.REJECTED


# -- drained banks ----------------------------------------------------------------------------


async def test_a_drained_bank_gets_nothing_until_it_is_resumed(world: World) -> None:
    async with world.fep() as fep:
        client = fep.client(bodies={"T1": balance()})
        await fep.ready()
        await fep.service.set_drained(PINGAN, value=True)
        await fep.submit("T1")
        await fep.submit("T2", body=transfer("1.00"))
    async with world.fep() as fep:
        client = fep.client(bodies={"T1": balance()})
        await fep.ready()
        assert fep.service.status()["banks"]["pingan"]["drained"]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (client.asked, world.booked("T2")) == ([], 0)
        # A changed configuration makes a new lane: what an operator stopped stays stopped.
        await fep.end()
        fep.make(PINGAN)
        await fep.service.keep_drained()
        await fep.start()
        await fep.ready()
        assert fep.lane.drained
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (client.asked, world.booked("T2")) == ([], 0)
        await fep.service.set_drained(PINGAN, value=False)
        for task_id in ("T1", "T2"):
            assert (await client.result(task_id)).state is State.SUCCEEDED
        assert await refused(fep.service.set_drained(BankName("no"), value=True)) == "UNKNOWN_BANK"
    assert world.on_disk("select drained from lane") == [(0,)]


# -- time -------------------------------------------------------------------------------------


@pytest.mark.req("DEC-a")
async def test_what_is_never_fetched_expires_and_nothing_was_sent(world: World) -> None:
    async with world.fep() as fep:
        await fep.ready()
        client = fep.client()
        await fep.submit("T1", expires_s=0.3)
        told = await client.result("T1")
        assert (told.state, told.bank_code) == (State.EXPIRED, "EXPIRED")
        assert client.attempts("T1") == [1]
        assert fep.lane.offered == {}
        # The client is told in the same instant: its word may come before the alarm.
        await until(lambda: AlarmKind.TASK_EXPIRED in fep.alarm_kinds())
        await fep.service.fetched(ERP, [(ID, transfer())])
        assert (await fep.get("T1"))["state"] == "expired"
        assert world.booked("T1") == 0
        fep.agrees()


async def test_each_client_is_told_of_its_own_expired_tasks(world: World) -> None:
    """They end in one look, and a client sees its own alarms only."""
    clock = MovedClock()
    async with world.fep(clock=clock) as fep:
        await fep.ready()
        for client, ids in ((ERP, ["T1", "T2"]), (OTHER, ["T3"])):
            await fep.admit(*(fep.submission(one) for one in ids), client=client)
        clock.moved += dt.timedelta(days=2)
        fep.service._look.set()

        def told() -> dict[str, str]:
            expired = AlarmKind.TASK_EXPIRED
            return {one.subject: one.cause for one in fep.alarms.active() if one.kind is expired}

        await until(told)
        assert told() == {
            ERP: "2 tasks expired unsent; the oldest is T1",
            OTHER: "1 tasks expired unsent; the oldest is T3",
        }


@pytest.mark.req("DEC-a")
async def test_what_waits_for_a_key_expires_unless_it_was_fetched(world: World) -> None:
    clock = MovedClock()
    async with world.fep(clock=clock) as fep:
        await fep.ready()
        fep.take_key()
        await until(lambda: not fep.slot.is_open)
        await fep.submit("INLINE", body=transfer("1.00"), expires_s=3600)
        await fep.submit("FETCHED", Kind.TRANSFER, expires_s=3600)
        await fep.service.fetched(ERP, [(TaskId("FETCHED"), transfer("2.00"))])
        clock.moved += dt.timedelta(hours=2)
        fep.service._look.set()  # it looks by itself, too, but not so soon
        await fep.becomes("INLINE", State.EXPIRED)
        fep.give_key()
        await fep.becomes("FETCHED", State.SUCCEEDED)
        assert (world.booked("INLINE"), world.booked("FETCHED")) == (0, 1)


@pytest.mark.req("DEC-a")
async def test_a_task_fetched_in_the_instant_of_its_expiry_is_one_or_the_other(
    world: World,
) -> None:
    """Many expire together; while the first ones' end is written, another one's body comes."""
    async with world.fep() as fep:
        await fep.ready()
        fep.lane.drain()
        ids = [f"T{n}" for n in range(EXPIRED_AT_ONCE_MAX + 9)]
        await fep.admit(*(fep.submission(one, expires_s=0.01) for one in ids))
        async with trio.open_nursery() as nursery:
            with held(fep.store):
                await until(lambda: any(fep.task(one).claimed for one in ids))
                late = [TaskId(one) for one in ids if not fep.task(one).claimed]
                assert late
                nursery.start_soon(fep.service.fetched, ERP, [(late[0], balance())])
                await trio.testing.wait_all_tasks_blocked()
        fep.lane.resume()
        for one in ids:
            wanted = State.SUCCEEDED if one == late[0] else State.EXPIRED
            assert (await fep.becomes(one, *FINAL))["state"] == wanted.value
        fep.agrees()


@pytest.mark.req("DEC-a")
async def test_a_body_in_the_instant_in_which_its_offer_lapses_is_taken(world: World) -> None:
    """Two offers lapse; the first one's end is on disk, the second one's body is on its way."""
    async with world.fep(tasks=TasksConfig(fetch_timeout_s=1.0)) as fep:
        await fep.ready()
        await fep.admit(fep.submission("T1"), fep.submission("T2"))
        client = fep.client(answers=False)
        await until(lambda: len(client.asked) == 2)
        before, lapsed, fetched = ExitStack(), ExitStack(), ExitStack()
        async with trio.open_nursery() as nursery:
            before.enter_context(held(fep.store))
            await trio.testing.wait_all_tasks_blocked()
            await until(lambda: fep.task("T1").claimed or fep.task("T2").claimed)
            [other] = [one for one in ("T1", "T2") if not fep.task(one).claimed]
            lapsed.enter_context(held(fep.store))
            before.close()
            # In the writer's hands: what comes now belongs to the next group.
            await until(
                lambda: not fep.store._waiting and fep.service._changes._joining._open is None
            )
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fep.service.fetched, ERP, [(TaskId(other), balance())])
            await until(lambda: fep.store._waiting)
            fetched.enter_context(held(fep.store))
            lapsed.close()
            await until(lambda: fep.task("T1").state is not fep.task("T2").state)
            await trio.testing.wait_all_tasks_blocked()
            fetched.close()
        client.answers = True
        client.bodies |= {"T1": balance(), "T2": balance()}
        for task_id in ("T1", "T2"):
            assert (await client.result(task_id)).state is State.SUCCEEDED
        assert "offer_lapsed" not in await fep.events(other)
        fep.agrees()


async def test_tasks_that_ended_long_before_their_age_do_not_stay_in_memory(world: World) -> None:
    async with world.fep(run=False) as fep:
        for batch in range(3):
            ids = [f"B{batch}-{n}" for n in range(500)]
            await fep.admit(*(fep.submission(task_id) for task_id in ids))
            async with trio.open_nursery() as nursery:
                for task_id in ids:
                    nursery.start_soon(fep.service.cancel, ERP, TaskId(task_id), "test")
        await fep.submit("LAST", expires_s=0.01)
        assert fep.service._open._aged < 1500
        await fep.becomes("LAST", State.EXPIRED)


# -- restart ----------------------------------------------------------------------------------


@pytest.mark.req("FEP-23", "DEC-a")
async def test_every_state_goes_on_after_a_restart(world: World) -> None:
    """Each task is brought to its state by the first life; the second one finds it there."""
    card = {"inquiry": {"accepted_interval_s": 60.0}}
    async with world.fep(run=False, tasks=TasksConfig(fetch_timeout_s=60)) as fep:
        ids = ("QUEUED", "OFFERED", "FETCHED", "SENDING", "ACCEPTED", "UNKNOWN")
        for task_id in ids:
            await fep.submit(task_id, Kind.TRANSFER)
        mailbox = fep.service.attach(ERP)
        await fep.service.offer(fep.lane, [fep.task(one) for one in ids[1:]])
        bodies = {one: transfer(f"{n}.00") for n, one in enumerate(ids, 1)}
        given = [(TaskId(one), bodies[one]) for one in ids[2:]]
        await fep.service.fetched(ERP, given)
        for task_id in ids[3:]:
            sent = {"client_ref": f"F-{task_id}", "sent_at": "2026-03-02T01:00:00.000+00:00"}
            await fep.service.change(fep.task(task_id), (Event.SEND_BEGUN,), "test", columns=sent)
        at = {"inquire_at": "2026-03-02T01:00:00.000+00:00"}
        for task_id, event in (("ACCEPTED", Event.BANK_ACCEPTED), ("UNKNOWN", Event.OUTCOME_LOST)):
            await fep.service.change(fep.task(task_id), (event,), "test", columns=at)
        for task_id in ids:
            assert (await fep.get(task_id))["state"] == task_id.lower()
        fep.service.detach(mailbox)
    async with world.fep(card=card) as fep:
        events = await fep.events("SENDING")
        assert events[-1] == "outcome_lost", "what may have left is settled before anything else"
        client = fep.client(bodies=bodies)
        for task_id in ("QUEUED", "OFFERED", "FETCHED"):
            assert (await client.result(task_id)).state is State.SUCCEEDED
            assert world.booked(task_id) == 1
        assert client.attempts("QUEUED") == [1]
        assert client.attempts("OFFERED") == [2]
        assert client.attempts("FETCHED") == []
        for task_id in ("SENDING", "UNKNOWN"):
            told = await client.result(task_id)
            assert (told.state, told.result) == (State.REJECTED, None)
            assert world.booked(task_id) == 0
            assert (await fep.events(task_id)).count("send_begun") == 1
        # The bank that took it over can't unsay that by not finding it.
        await until(lambda: fep.task("ACCEPTED").inquiries > 1)
        assert fep.task("ACCEPTED").state is State.ACCEPTED
        fep.agrees()


async def test_a_query_that_was_being_asked_is_asked_again_after_a_restart(world: World) -> None:
    async with world.fep(run=False) as fep:
        await fep.submit("T1", body=balance())
        await fep.service.change(fep.task("T1"), (Event.BODY_TAKEN, Event.SEND_BEGUN), "test")
    async with world.fep() as fep:
        assert (await fep.client().result("T1")).state is State.SUCCEEDED
        assert "query_lost" in await fep.events("T1")


async def test_places_in_the_queue_go_on_after_a_restart(world: World) -> None:
    for life in range(3):
        async with world.fep(run=False) as fep:
            await fep.submit(f"T{life}")
    assert world.on_disk("select seq, task_id from task order by seq") == [
        (1, "T0"),
        (2, "T1"),
        (3, "T2"),
    ]


# -- banks that are not there any more ---------------------------------------------------------


async def test_tasks_of_a_bank_that_is_not_configured_wait_for_it_or_for_two_persons(
    world: World,
) -> None:
    async with world.fep(banks=[PINGAN, CMB], run=False) as fep:
        for task_id in ("QUEUED", "SENDING"):
            await fep.submit(task_id, bank=CMB, body=money(CMB))
        sent = {"client_ref": "F-1", "sent_at": "2026-03-02T01:00:00.000+00:00"}
        events = (Event.BODY_TAKEN, Event.SEND_BEGUN)
        await fep.service.change(fep.task("SENDING"), events, "test", columns=sent)
    async with world.fep(banks=[PINGAN]) as fep:
        assert AlarmKind.LANE_FAILED in fep.alarm_kinds()
        assert (await fep.get("SENDING"))["state"] == "unknown"
        await fep.service.resolve("li", TaskId("SENDING"), State.REJECTED, "not in the statement")
        assert await fep.service.confirm("wang", TaskId("SENDING")) is State.REJECTED
        assert fep.service.status()["banks"]["cmb"]["open"] == {"queued": 1}
        answers = await fep.admit(
            fep.submission("NEW", bank=CMB), fep.submission("QUEUED", Kind.TRANSFER, CMB)
        )
        assert codes(answers) == ["UNKNOWN_BANK", "queued"]
    async with world.fep(banks=[PINGAN, CMB]) as fep:
        assert AlarmKind.LANE_FAILED not in fep.alarm_kinds()
        await fep.becomes("QUEUED", State.SUCCEEDED)


async def test_a_bank_whose_taking_out_was_cut_off_by_a_full_disk_is_taken_out_by_another_try(
    world: World,
) -> None:
    async with world.fep(banks=[PINGAN, CMB]) as fep:
        await fep.ready(CMB)
        world.banks[CMB].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("SENT", bank=CMB, body=money(CMB))
        await world.until_booked("SENT")
        await fep.fill_disk()
        await fep.end(CMB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fep.service.remove_lane, CMB)
            await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
            nursery.cancel_scope.cancel()
        assert fep.task("SENT").state is State.SENDING
        await fep.empty_disk()
        for _ in range(2):
            await fep.service.remove_lane(CMB)
        assert (await fep.get("SENT"))["state"] == "unknown"
        assert (await fep.events("SENT")).count("outcome_lost") == 1
        await fep.service.resolve("li", TaskId("SENT"), State.SUCCEEDED, "line 4 of the statement")
        assert await fep.service.confirm("wang", TaskId("SENT")) is State.SUCCEEDED
        await fep.service.remove_lane(BankName("never-there"))
        fep.agrees()


async def test_what_a_lane_let_go_of_is_not_taken_from_who_claimed_it_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.fep(run=False) as fep:
        for name in ("T1", "T2"):
            await fep.submit(name, body=money(PINGAN))
            fep.lane.hold(fep.task(name))
        refresh = fep.service.refresh
        let_go: list[Task] = []
        with trio.CancelScope() as scope:

            def first_only(task: Task, fresh: Task) -> None:
                refresh(task, fresh)
                let_go.append(task)
                scope.cancel()

            monkeypatch.setattr(fep.service, "refresh", first_only)
            await fep.lane.let_go()
        (first,) = let_go
        assert not first.claimed
        first.claimed = True
        await fep.lane.let_go()
        assert [task for task in map(fep.task, ("T1", "T2")) if task.claimed] == [first]


async def test_a_bank_that_is_taken_out_of_force_while_tasks_are_under_way(world: World) -> None:
    async with world.fep(banks=[PINGAN, CMB], reply_timeout_s=30.0) as fep:
        await fep.ready(CMB)
        client = fep.client(answers=False)
        await fep.submit("ASKED", Kind.BALANCE, CMB)
        await until(lambda: client.asked)
        silent = world.banks[CMB].faults
        silent[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("SENT", bank=CMB, body=money(CMB))
        await fep.becomes("SENT", State.SENDING)
        await until(lambda: world.booked("SENT") == 1)
        await fep.end(CMB)
        await fep.service.remove_lane(CMB)
        assert AlarmKind.LANE_FAILED in fep.alarm_kinds()
        assert (await fep.get("SENT"))["state"] == "unknown"
        assert codes(await fep.admit(fep.submission("NEW", bank=CMB))) == ["UNKNOWN_BANK"]
        await fep.service.fetched(ERP, [(TaskId("ASKED"), balance("9999000000201"))])
        assert await fep.service.cancel(ERP, TaskId("ASKED"), "test") is State.CANCELLED
        fep.agrees()
        # It comes back, and what it left behind goes on.
        silent.clear()
        fep.make(CMB)
        await fep.start(CMB)
        await fep.becomes("SENT", State.SUCCEEDED)
        assert world.booked("SENT") == 1
        assert AlarmKind.LANE_FAILED not in fep.alarm_kinds()
