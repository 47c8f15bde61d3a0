"""After a restore no payment leaves until a person has looked: what was sent since is not known."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from fep.adapters.api import Outcome, Reply
from fep.adapters.host import Answer, Fault
from fep.alarms.state import AlarmKind
from fep.daemon.verify import verify
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, TaskId, client_ref, row_ref, short_ref
from fep.domain.order import Kind, Operation
from fep.links.mux import UnmatchedReply
from fep.store import backup
from fep.tasks import store
from fep.tasks.replay import read_task
from fep.tasks.service import TaskRefusedError
from fep.tasks.state import State
from fep.tasks.task import digest
from tests.store.held import held
from tests.tasks.bench import (
    CCB,
    CCB_PAYEE,
    CCB_PAYER,
    ENTERPRISE,
    PAYER,
    Fep,
    MovedClock,
    World,
    balance,
    batch,
    money,
    transfer,
    until,
)
from tests.tasks.bench import PINGAN as BANK
from tests.tasks.codecs import changed, mute, nameless
from tests.tasks.test_archived import acknowledged, move
from tests.tasks.test_proofs import framed

pytestmark = pytest.mark.req("FEP-23")

EVIDENCE = "statement of today, line 4"
NEVER = {"inquiry": {"cool_down_s": 600.0, "accepted_interval_s": 600.0}}
"""A card by which no bank is asked while a test lasts."""


def back_up(world: World) -> Path:
    target = world.path / "copy.sqlite"
    backup.back_up(world.store_file, target, SystemClock().now(), lambda _path: None, _silent)
    return target


def restore(world: World, copy: Path) -> None:
    backup.restore(copy, world.path, SystemClock().now(), lambda _path: None, _silent)


def _silent(_done: int, _total: int) -> None:
    pass


async def paid_after_the_backup(world: World, *names: str) -> Path:
    """Let payments wait, copy the store, let them be paid, and put the copy back."""
    return await sent_after_the_backup(world, BANK, {name: money(BANK) for name in names})


async def sent_after_the_backup(
    world: World, bank: BankName, bodies: Mapping[str, Mapping[str, Any]], *, bare: bool = False
) -> Path:
    async with world.fep(banks=[bank]) as fep:
        fep.take_key()
        for name, body in bodies.items():
            kind = Kind(body["kind"])
            await fep.submit(name, kind, bank, None if bare else dict(body))
        copy = await trio.to_thread.run_sync(back_up, world)
        fep.client(bodies=bodies)
        fep.give_key()
        for name in bodies:
            await fep.becomes(name, State.SUCCEEDED)
    await trio.to_thread.run_sync(restore, world, copy)
    return copy


async def everything_tried(fep: Fep) -> None:
    """Wait until the lane has had every chance to send: queries that wait behind get through."""
    await fep.ready()
    for number in range(3):
        name = f"ASK-{number}-{trio.current_time()}"
        await fep.submit(name, body=balance(), priority=0)
        await fep.becomes(name, State.SUCCEEDED)


async def payments_go(fep: Fep) -> None:
    await fep.submit("LAST", body=money(BANK))
    await fep.becomes("LAST", State.SUCCEEDED)


async def test_a_payment_sent_after_the_backup_is_not_sent_again(world: World) -> None:
    await paid_after_the_backup(world, "PAY-1", "PAY-2")
    async with world.fep() as fep:
        assert AlarmKind.STORE_RESTORED in fep.alarm_kinds()
        await fep.submit("PAY-3", body=money(BANK))
        await everything_tried(fep)
        assert [world.booked(name) for name in ("PAY-1", "PAY-2", "PAY-3")] == [1, 1, 0]
        told = await fep.service.restored()
        assert (told["held"], told["count"]) == (True, 3)
        assert [one["task_id"] for one in told["payments"]] == ["PAY-1", "PAY-2", "PAY-3"]
        assert told["payments"][0]["client_ref"] == client_ref(ENTERPRISE, TaskId("PAY-1"))
        assert told["payments"][0]["amount"] == "12.50"


async def test_nothing_that_is_held_is_said_to_be_unsent_however_old_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.tasks.service.HELD_LOOK_SECONDS", 0.05)
    await paid_after_the_backup(world, "PAY-1")
    clock = MovedClock()
    clock.moved = dt.timedelta(days=2)
    async with world.fep(clock=clock) as fep:
        erp = fep.client()
        await fep.submit("PAY-2", body=money(BANK), expires_s=0.1)
        await fep.submit("ASK", body={"kind": "transfer_status", "params": {"task_id": "PAY-1"}})
        asked = await erp.result("ASK")
        assert asked.bank_message.endswith("is not known since a backup was restored")
        await everything_tried(fep)
        assert (await fep.service.restored())["count"] == 2
        assert AlarmKind.TASK_EXPIRED not in fep.alarm_kinds()
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)
        await fep.service.confirm("wang", TaskId("PAY-1"))
        assert (await erp.result("PAY-1")).state is State.SUCCEEDED
        await fep.service.cancel(None, TaskId("PAY-2"), "operator li")
        assert (await erp.result("PAY-2")).state is State.CANCELLED
    assert [world.booked(name) for name in ("PAY-1", "PAY-2")] == [1, 0]


async def test_what_two_persons_found_at_the_bank_is_done_and_its_client_is_told(
    world: World,
) -> None:
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep() as fep:
        erp = fep.client()
        await everything_tried(fep)
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)
        with pytest.raises(TaskRefusedError, match="second person"):
            await fep.service.confirm("li", TaskId("PAY-1"))
        await fep.service.confirm("wang", TaskId("PAY-1"))
        await until(lambda: any(one.task_id == "PAY-1" for one in erp.told))
        found = await fep.get("PAY-1")
        assert (found["state"], found["bank_code"]) == ("succeeded", "RESOLVED")
        assert found["client_ref"] == client_ref(ENTERPRISE, TaskId("PAY-1"))
        assert await fep.events("PAY-1") == ["submitted", "proposed", "found_done"]
        assert await fep.service.release("wang", EVIDENCE) == 0
        await payments_go(fep)
    assert world.booked("PAY-1") == 1
    report = verify(world.store_file, enterprise=ENTERPRISE)
    assert report.findings == []


async def test_what_was_not_at_the_bank_is_sent_once_it_is_released(world: World) -> None:
    async with world.fep() as fep:
        fep.take_key()
        for name in ("PAY-1", "PAY-2"):
            await fep.submit(name, body=money(BANK))
        copy = await trio.to_thread.run_sync(back_up, world)
    await trio.to_thread.run_sync(restore, world, copy)
    async with world.fep() as fep:
        fep.client(bodies={"PAY-3": money(BANK)})
        await fep.submit("PAY-3", Kind.TRANSFER)
        await everything_tried(fep)
        await fep.becomes("PAY-3", State.FETCHED)
        await fep.service.cancel(None, TaskId("PAY-2"), "operator li")
        assert await fep.service.release("li", EVIDENCE) == 2
        for name in ("PAY-1", "PAY-3"):
            await fep.becomes(name, State.SUCCEEDED)
        assert AlarmKind.STORE_RESTORED not in fep.alarm_kinds()
        assert not (await fep.service.restored())["held"]
        fep.agrees()
    assert [world.booked(name) for name in ("PAY-1", "PAY-2", "PAY-3")] == [1, 0, 1]
    async with world.fep() as fep:
        assert fep.service.held_since is None, "released is released, also over a restart"
        await payments_go(fep)
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_a_proposal_for_a_held_payment_does_not_outlive_the_release(world: World) -> None:
    """Confirmed later it would close what was sent by then, whatever became of that."""
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await everything_tried(fep)
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)
        world.banks[BANK].host.changes = lambda _answers: []
        # As when the release was on its way to the disk before the answer.
        now = SystemClock().now()
        await fep.store.write(lambda c: store.release(c, "wang", EVIDENCE, now, "test"))
        fep.service.know_released()
        await fep.becomes("PAY-1", State.UNKNOWN)
        with pytest.raises(TaskRefusedError, match="nothing is proposed"):
            await fep.service.confirm("wang", TaskId("PAY-1"))
        assert world.on_disk("select count(*) from resolution") == [(0,)]
        assert (await fep.events("PAY-1"))[:3] == ["submitted", "proposed", "unproposed"]
        fep.agrees()
    world.banks[BANK].host.changes = lambda answers: answers
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_a_proposal_for_what_the_copy_knows_as_sent_outlives_the_release(
    world: World,
) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await fep.ready()
        world.banks[BANK].host.changes = lambda _answers: []
        await fep.submit("PAY-1", body=money(BANK))
        await fep.becomes("PAY-1", State.UNKNOWN)
        copy = await trio.to_thread.run_sync(back_up, world)
    await trio.to_thread.run_sync(restore, world, copy)
    async with world.fep(card=NEVER) as fep:
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)
        await fep.service.release("wang", EVIDENCE)
        assert await fep.service.confirm("wang", TaskId("PAY-1")) is State.SUCCEEDED
    world.banks[BANK].host.changes = lambda answers: answers


def waiting(fep: Fep) -> list[str]:
    """Return which functions' work waits for the disk, first to last."""
    works: list[Any] = [one.work for one in fep.store._waiting]
    return [getattr(one, "func", one).__qualname__.split(".<locals>")[0] for one in works]


async def test_nothing_is_proposed_for_a_payment_whose_release_is_on_its_way_to_the_disk(
    world: World,
) -> None:
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep() as fep:
        fep.lane.drain()
        refused: list[TaskRefusedError] = []

        async def propose() -> None:
            try:
                await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)
            except TaskRefusedError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            with held(fep.store):
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(fep.service.release, "wang", EVIDENCE)
                await until(lambda: "TaskService.release" in waiting(fep))
                before = len(waiting(fep))
                nursery.start_soon(propose)
                await until(lambda: "TaskService.resolve" in waiting(fep)[before:])
        assert [str(one) for one in refused] == [
            "the task was closed at this very moment, or released: there is nothing to resolve"
        ]
        assert world.on_disk("select count(*) from resolution") == [(0,)]


async def test_a_release_whose_caller_goes_is_known_when_it_is_stored(world: World) -> None:
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep(run=False) as fep:
        async with trio.open_nursery() as nursery:
            with held(fep.store):
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(fep.service.release, "wang", EVIDENCE)
                await until(lambda: "TaskService.release" in waiting(fep))
                nursery.cancel_scope.cancel()
        held_by = "select count(*) from restored where released_at is null"
        await until(lambda: world.on_disk(held_by) == [(0,)])
        await until(lambda: fep.service.held_since is None)
        assert AlarmKind.STORE_RESTORED not in fep.alarm_kinds()


# -- what the bank tells of held payments by itself ---------------------------------------------


async def answers_of(world: World, bank: BankName) -> list[bytes]:
    """Start a bank; return a list into which goes all that it answers."""
    await world.start_bank(bank)
    found: list[bytes] = []

    def note(answers: list[Answer]) -> list[Answer]:
        found.extend(one.data for one in answers)
        return answers

    world.banks[bank].host.changes = note
    return found


def naming(answers: list[bytes], reference: str) -> bytes:
    return next(one for one in answers if reference.encode() in one)


def answer_to(answers: list[bytes], task_id: str) -> bytes:
    return naming(answers, client_ref(ENTERPRISE, TaskId(task_id)))


async def told(fep: Fep, bank: BankName, answer: bytes, task_id: str) -> str:
    """Let the bank tell something unasked, and return what the alarm says of a task."""
    await fep.unmatched.send(UnmatchedReply(bank, framed(bank, answer), told=True))
    await until(lambda: [one for one in fep.alarms.active() if one.subject == task_id])
    await until(lambda: answers_kept(fep) > 0)
    assert AlarmKind.UNMATCHED_REPLY not in fep.alarm_kinds()
    [alarm] = [one for one in fep.alarms.active() if one.subject == task_id]
    assert alarm.kind is AlarmKind.EVIDENCE_CONFLICT
    return alarm.cause


def answers_kept(fep: Fep) -> int:
    [(count,)] = fep.world.on_disk("select count(*) from task_event where event = 'answered'")
    return int(count)


async def test_what_the_bank_tells_of_a_held_payment_is_for_who_releases_it(world: World) -> None:
    answers = await answers_of(world, BANK)
    await paid_after_the_backup(world, "PAY-1", "PAY-2")
    done = answer_to(answers, "PAY-2")
    async with world.fep() as fep:
        await fep.ready()
        cause = await told(fep, BANK, done, "PAY-2")
        assert cause == "it is held since a backup was restored, and the bank has it: done 000000"
        assert (await fep.get("PAY-2"))["state"] == "queued"
        fep.agrees()
    kept = "select bytes from message join task on task.seq = task_seq where task_id = 'PAY-2'"
    assert world.on_disk(kept) == [(done,)]
    async with world.fep() as fep:
        shown = await fep.service.restored()
        assert (shown["count"], shown["answered"]) == (2, 1)
        first, second = shown["payments"]
        assert "answer" not in first
        assert second["answer"] == "the bank has it: done 000000"
        assert (
            second["answered_at"]
            == (await fep.service.why(None, TaskId("PAY-2")))["events"][-1]["at"]
        )
        with pytest.raises(TaskRefusedError, match="the bank has answered for PAY-2: close these"):
            await fep.service.release("wang", EVIDENCE)
        assert fep.service.held_since is not None
        for name in ("PAY-1", "PAY-2"):
            await fep.service.resolve("li", TaskId(name), State.SUCCEEDED, EVIDENCE)
            await fep.service.confirm("wang", TaskId(name))
        await fep.service.release("wang", EVIDENCE)
        await payments_go(fep)
    assert [world.booked(name) for name in ("PAY-1", "PAY-2")] == [1, 1]
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_what_the_bank_answers_while_a_release_is_on_its_way_is_not_sent_again(
    world: World,
) -> None:
    answers = await answers_of(world, BANK)
    await paid_after_the_backup(world, "PAY-1")
    done = answer_to(answers, "PAY-1")
    refusals: list[str] = []
    async with world.fep() as fep:
        await fep.ready()

        async def release() -> None:
            with pytest.raises(TaskRefusedError) as caught:
                await fep.service.release("wang", EVIDENCE)
            refusals.append(str(caught.value))

        with held(fep.store):
            # First in the writer's queue: the answer.
            await fep.unmatched.send(UnmatchedReply(BANK, framed(BANK, done)))
            await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
            await trio.testing.wait_all_tasks_blocked(0.05)
            fep.nursery.start_soon(release)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await until(lambda: bool(refusals))
        assert "the bank has answered for PAY-1: close these first" in refusals[0]
        await everything_tried(fep)
        assert (await fep.get("PAY-1"))["state"] == "queued"


async def test_of_too_many_held_payments_those_are_shown_that_the_bank_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.tasks.service.HELD_SHOWN_MAX", 2)
    monkeypatch.setattr("fep.tasks.lane.HELD_COMPARED_AT_ONCE", 2)
    answers = await answers_of(world, BANK)
    await paid_after_the_backup(world, "PAY-1", "PAY-2", "PAY-3")
    async with world.fep() as fep:
        last = answer_to(answers, "PAY-3")
        await told(fep, BANK, last, "PAY-3")
        shown = await fep.service.restored()
        assert [one["task_id"] for one in shown["payments"]] == ["PAY-1", "PAY-3"]


async def test_an_answer_to_a_held_payment_without_its_body_is_found_too(world: World) -> None:
    answers = await answers_of(world, BANK)
    await sent_after_the_backup(world, BANK, {"PAY-1": money(BANK)}, bare=True)
    async with world.fep() as fep:
        done = answer_to(answers, "PAY-1")
        cause = await told(fep, BANK, done, "PAY-1")
        assert cause.endswith("the bank has it: an answer bears its reference")
        codec, card = fep.lane.parts.codec, fep.lane.parts.card
        [task] = fep.service.tasks_of(BANK)
        recorded = await fep.store.read(lambda c: store.recorded(c, [task.seq])[task.seq])
        ended = await fep.store.read(lambda c: store.ended(c, [task.seq])[task.seq])
        [reading] = read_task(codec, card, task, ended, recorded, lambda _: [])
        assert not reading.differs, "a replay finds no fault with it"
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_an_answer_to_a_row_of_a_held_batch_is_found_by_the_row_s_reference(
    world: World,
) -> None:
    answers = await answers_of(world, BANK)
    await sent_after_the_backup(world, BANK, {"B": batch(BANK, "1.00", "2.00")})
    async with world.fep() as fep:
        [held_batch] = fep.service.tasks_of(BANK)
        row = row_ref(client_ref(ENTERPRISE, TaskId("B")), 1)
        assert await fep.lane._held_under(row) == [held_batch]
        taken = answer_to(answers, "B")
        assert "the bank has it: taken over" in await told(fep, BANK, taken, "B")


async def test_an_answer_under_a_short_reference_may_be_to_a_held_payment(world: World) -> None:
    answers = await answers_of(world, CCB)
    body = transfer("12.50", CCB_PAYER, CCB_PAYEE)
    await sent_after_the_backup(world, CCB, {"PAY-1": body})
    first, second = (short_ref(ENTERPRISE, TaskId("PAY-1"), 16, turn) for turn in range(2))
    async with world.fep(banks=[CCB]) as fep:
        # It was sent under its second one: another payment had the first then.
        done = naming(answers, first).replace(first.encode(), second.encode())
        cause = await told(fep, CCB, done, "PAY-1")
        assert "the bank may have it (short references can meet): " in cause
        assert (await fep.get("PAY-1"))["state"] == "queued"
        [shown] = (await fep.service.restored())["payments"]
        assert shown["answer"].startswith("the bank may have it")


async def test_an_answer_to_a_held_payment_is_no_answer_to_its_next_sending(world: World) -> None:
    """It is kept with its task, and a lane takes up such answers when it starts."""
    answers = await answers_of(world, BANK)
    await paid_after_the_backup(world, "PAY-1")
    done = answer_to(answers, "PAY-1")
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await fep.ready()
        await told(fep, BANK, done, "PAY-1")
        world.banks[BANK].host.changes = lambda _answers: []
        # As when the release was on its way to the disk before the answer.
        now = SystemClock().now()
        await fep.store.write(lambda c: store.release(c, "wang", EVIDENCE, now, "test"))
        fep.service.know_released()
        await fep.becomes("PAY-1", State.UNKNOWN)
    world.banks[BANK].host.changes = lambda given: given
    async with world.fep(card=NEVER) as fep:
        await everything_tried(fep)
        assert (await fep.get("PAY-1"))["state"] == "unknown"
        fep.agrees()


async def test_what_names_no_held_payment_is_kept_as_nobody_s(world: World) -> None:
    answers = await answers_of(world, BANK)
    await paid_after_the_backup(world, "PAY-1")
    ours, theirs = (client_ref(ENTERPRISE, TaskId(one)).encode() for one in ("PAY-1", "PAY-9"))
    strange = naming(answers, ours.decode()).replace(ours, theirs)
    async with world.fep() as fep:
        await fep.unmatched.send(UnmatchedReply(BANK, framed(BANK, strange)))
        await until(lambda: AlarmKind.UNMATCHED_REPLY in fep.alarm_kinds())
        assert AlarmKind.EVIDENCE_CONFLICT not in fep.alarm_kinds()
        assert (await fep.service.restored())["answered"] == 0


async def test_a_body_that_is_changed_while_its_payment_waits_is_found(world: World) -> None:
    """Given when it was asked for: the event that took it tells its digest."""
    await paid_after_the_backup(world)
    async with world.fep() as fep:
        fep.client(bodies={"PAY-1": money(BANK)})
        await fep.ready()
        await fep.submit("PAY-1", Kind.TRANSFER)
        await fep.becomes("PAY-1", State.FETCHED)
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []
    with closing(sqlite3.connect(world.store_file)) as db:
        [body] = db.execute("SELECT body FROM task WHERE task_id = 'PAY-1'").fetchone()
        other = body.replace(b"12.50", b"99999.00")
        assert other != body
        db.execute("UPDATE task SET body = ?, body_digest = ?", (other, digest(other)))
        db.commit()
    [finding] = verify(world.store_file, enterprise=ENTERPRISE).findings
    assert finding.where == "PAY-1"
    assert "took another body than the recorded one" in finding.message


async def test_what_two_persons_confirmed_is_held_against_their_event(world: World) -> None:
    """Whatever they write: one of the databases has no NUL."""
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep() as fep:
        evidence = "statement of\0 today, line 4"
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, evidence)
        await fep.service.confirm("wang", TaskId("PAY-1"))
        found = await fep.get("PAY-1")
        assert found["bank_message"].endswith("statement of\N{REPLACEMENT CHARACTER} today, line 4")
        await fep.service.release("li", evidence)
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []
    for column in ("result = '{}'", "bank_code = '0'", "bank_message = 'paid'"):
        with closing(sqlite3.connect(world.store_file)) as db:
            db.execute(f"UPDATE task SET {column} WHERE task_id = 'PAY-1'")
            db.commit()
        [finding] = verify(world.store_file, enterprise=ENTERPRISE).findings
        assert "its result, code or message is not what event" in finding.message


async def test_they_are_held_over_restarts_and_lane_restarts(world: World) -> None:
    await paid_after_the_backup(world, "PAY-1")
    for _ in range(2):
        async with world.fep() as fep:
            await everything_tried(fep)
            await fep.end()
            fep.make(BANK)
            await fep.start()
            await everything_tried(fep)
            assert fep.service.held_since is not None
    assert world.booked("PAY-1") == 1


async def test_an_unknown_of_the_copy_is_closed_by_evidence_meanwhile(world: World) -> None:
    """What the copy knows as sent needs no person: it is asked after as ever."""
    async with world.fep() as fep:
        await fep.ready()
        world.banks[BANK].host.changes = lambda _answers: []
        await fep.submit("PAY-1", body=money(BANK))
        await world.until_booked("PAY-1")
        copy = await trio.to_thread.run_sync(back_up, world)
    world.banks[BANK].host.changes = lambda answers: answers
    await trio.to_thread.run_sync(restore, world, copy)
    async with world.fep() as fep:
        await fep.becomes("PAY-1", State.SUCCEEDED)
        assert fep.service.held_since is not None
    assert world.booked("PAY-1") == 1


async def test_what_can_not_be_said_of_a_held_payment(world: World) -> None:
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep() as fep:
        for evidence, outcome, words in (
            (EVIDENCE, State.REJECTED, "was not sent by this store"),
            ("seen", State.SUCCEEDED, "evidence must say where"),
        ):
            with pytest.raises(TaskRefusedError, match=words):
                await fep.service.resolve("li", TaskId("PAY-1"), outcome, evidence)
        with pytest.raises(TaskRefusedError, match="evidence must say where"):
            await fep.service.release("li", "looked")
        await fep.submit("ASK", body=balance())
        fep.take_key()
        await fep.submit("ASK-2", body=balance())
        with pytest.raises(TaskRefusedError, match="only accepted and unknown"):
            await fep.service.resolve("li", TaskId("ASK-2"), State.SUCCEEDED, EVIDENCE)


async def test_without_a_restore_nothing_is_held_and_nothing_to_release(world: World) -> None:
    async with world.fep() as fep:
        assert await fep.service.restored() == {
            "held": False, "taken_at": None, "count": 0, "answered": 0, "payments": []
        }  # fmt: skip
        with pytest.raises(TaskRefusedError, match="no payments are held"):
            await fep.service.release("li", EVIDENCE)
        fep.take_key()
        await fep.submit("PAY-1", body=money(BANK))
        with pytest.raises(TaskRefusedError, match="only accepted and unknown"):
            await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE)


async def test_a_batch_without_its_body_that_two_persons_found_done_is_no_fault(
    world: World,
) -> None:
    async with world.fep() as fep:
        await fep.ready()
        copy = await trio.to_thread.run_sync(back_up, world)
    await trio.to_thread.run_sync(restore, world, copy)
    async with world.fep() as fep:
        await fep.ready()
        await fep.submit("B", Kind.BATCH_TRANSFER)
        await fep.service.resolve("li", TaskId("B"), State.SUCCEEDED, EVIDENCE)
        await fep.service.confirm("wang", TaskId("B"))
        erp = fep.client()
        await erp.result("B")
        await acknowledged(world)
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []
    assert sum(move(world).values()) == 1
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


async def test_what_a_person_or_a_bank_writes_does_not_break_the_chain(world: World) -> None:
    await paid_after_the_backup(world, "PAY-1")
    async with world.fep() as fep:
        await fep.ready()
        await fep.service.resolve("li", TaskId("PAY-1"), State.SUCCEEDED, EVIDENCE + "\0 and on")
        await fep.service.confirm("wang", TaskId("PAY-1"))
        await fep.service.release("wang", "both statements\0were read")
        chain = (await fep.service.why(None, TaskId("PAY-1")))["events"]
        assert chain[1]["cause"].endswith("line 4\N{REPLACEMENT CHARACTER} and on")
    assert verify(world.store_file, enterprise=ENTERPRISE).findings == []


@pytest.mark.parametrize("cut_at", ["", "-wal", "the new one"])
async def test_a_restore_that_is_cut_off_and_run_again_keeps_the_former_store_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    async with world.fep() as fep:
        await fep.ready()
        copy = await trio.to_thread.run_sync(back_up, world)
        await fep.submit("ONE", body=money(BANK))
        await fep.becomes("ONE", State.SUCCEEDED)
        # As the files lie on the disk when the process is killed.
        dead = world.path / "dead"
        dead.mkdir()
        for end in ("", "-wal", "-shm"):
            shutil.copy(f"{world.store_file}{end}", dead)
    real = {name: getattr(Path, name) for name in ("rename", "replace")}

    def cut(name: str) -> Callable[[Path, Path], Path]:
        def act(path: Path, target: Path) -> Path:
            if cut_at == "the new one" if name == "replace" else path.name == f"fep.sqlite{cut_at}":
                raise KeyboardInterrupt
            moved: Path = real[name](path, target)
            return moved

        return act

    now = SystemClock().now()
    for name in real:
        monkeypatch.setattr(Path, name, cut(name))
    with pytest.raises(KeyboardInterrupt):
        backup.restore(copy, dead, now, lambda _path: None, _silent)
    for name, function in real.items():
        monkeypatch.setattr(Path, name, function)
    later = now + dt.timedelta(seconds=30)
    former = backup.restore(copy, dead, later, lambda _path: None, _silent)
    for path, known in ((former, [("ONE", "succeeded")]), (dead / "fep.sqlite", [])):
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("select task_id, state from task").fetchall() == known
    assert not (dead / "fep.restoring").exists()


async def test_a_body_that_is_not_valid_fails_no_payment_that_is_held(world: World) -> None:
    """It was paid after the backup; the account was taken out of the approved ones since."""
    async with world.fep() as fep:
        fep.take_key()
        await fep.submit("PAY-1", kind=Kind.TRANSFER)
        copy = await trio.to_thread.run_sync(back_up, world)
        fep.client(bodies={"PAY-1": money(BANK)})
        fep.give_key()
        await world.until_booked("PAY-1")
        await fep.becomes("PAY-1", State.SUCCEEDED)
    await trio.to_thread.run_sync(restore, world, copy)
    async with world.fep() as fep:
        approved = fep.accounts.pop(PAYER)
        with structlog.testing.capture_logs() as logs:
            fep.client(bodies={"PAY-1": money(BANK)})
            await until(lambda: any(one["event"] == "task.fetch_refused" for one in logs))
        assert (await fep.get("PAY-1"))["state"] in {"queued", "offered"}
        fep.accounts[PAYER] = approved


SEARCH = {"inquiry": {"statement_after": 1, "no_record": "never"}}


@pytest.mark.parametrize("how", ["held", "lost", "released", "not restored"])
async def test_a_line_that_may_be_of_what_the_copy_does_not_know_closes_no_other_payment(
    world: World, how: str
) -> None:
    quiet = {"inquiry": {"statement_after": 0, "no_record": "never"}}
    async with world.fep(card=quiet, reply_timeout_s=0.3, codec=changed(nameless)) as fep:
        await fep.ready()
        faults = world.banks[BANK].faults
        is_own = how == "not restored"
        faults[Fault.SILENT_AFTER_BOOKING if is_own else Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("OPEN", body=money(BANK))
        await fep.becomes("OPEN", State.UNKNOWN)
        faults.clear()
        fep.take_key()
        if how == "held":
            await fep.submit("PAID", body=money(BANK))
        copy = await trio.to_thread.run_sync(back_up, world)
        if how in ("lost", "released"):
            await fep.submit("PAID", body=money(BANK))
        fep.give_key()
        if not is_own:
            await fep.becomes("PAID", State.SUCCEEDED)
    if not is_own:
        await trio.to_thread.run_sync(restore, world, copy)
    if how == "released":
        async with world.fep(card=quiet) as fep:
            await fep.service.release("wang", EVIDENCE)
    async with world.fep(card=SEARCH, codec=changed(deaf)) as fep:
        await fep.ready()
        if is_own:
            await fep.becomes("OPEN", State.SUCCEEDED)
            return
        await until(lambda: fep.lane.watch._noted, "what the statement says of it is noted")
        chain = (await fep.service.why(None, TaskId("OPEN")))["events"]
        causes = [one["cause"] for one in chain if one["event"] == "searched"]
        assert causes == ["no line of the payer's statement is it: proves nothing"]
        assert (await fep.get("OPEN"))["state"] == "unknown"
        assert world.booked("OPEN") == 0


def deaf(operation: Operation, reply: Reply, outcome: Outcome) -> Outcome:
    """A bank whose lines bear no reference, and whose status query never tells anything."""
    return nameless(operation, reply, mute(operation, reply, outcome))
