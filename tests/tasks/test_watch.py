"""Looks at accounts: what a statement closes, and successes that come back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import sqlalchemy as sa
import trio

from fep.adapters.api import Accepted, Outcome, Rejected, Reply, Unclear
from fep.adapters.host import Answer, Fault
from fep.alarms.state import AlarmKind
from fep.domain.account import mask
from fep.domain.clock import SystemClock, business_date
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, BankName, TaskId, client_ref
from fep.domain.money import Cny
from fep.domain.order import (
    Direction,
    Kind,
    Operation,
    PaymentState,
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
)
from fep.store.database import StoreBusyError
from fep.tasks import store
from fep.tasks.look import Look
from fep.tasks.state import Event, State
from fep.tasks.store import NOT_LOOKED_AT, ends_untold, note_look, text_of
from fep.tasks.store import one as one_of
from fep.tasks.task import Task
from fep.tasks.watch import SECONDS_PER_DAY
from tests.tasks.bench import (
    CMB,
    ENTERPRISE,
    ERP,
    PAYEE,
    PAYER,
    PINGAN,
    Codec,
    Fep,
    MovedClock,
    World,
    batch,
    money,
    same,
    until,
)
from tests.tasks.codecs import changed, mute, nameless, no_statements, says

pytestmark = pytest.mark.req("LAND-51", "FEP-25")

BANKS = [PINGAN, CMB]
ID = TaskId("T1")
SEARCH_SOON = {"inquiry": {"statement_after": 1, "no_record": "never"}}
WATCH: dict[str, Any] = {
    "returned": {"watch_days": 2, "first_look_s": 0.05, "interval_s": 0.2},
}


async def take_back(world: World, bank: BankName) -> None:
    """Let the bank take back what it draws to, at once."""
    world.book.take_back(bank, SystemClock().now() + dt.timedelta(minutes=2))


class Seen:
    """Counts what a bank was asked, by what its host half received."""

    def __init__(self, world: World, bank: BankName = PINGAN) -> None:
        self.statements = 0
        self.statuses = 0
        world.banks[bank].host.on_data = self._note

    def _note(self, data: bytes) -> None:
        self.statements += data.count(b"A001") if b"4008" in data or b"4013" in data else 0
        self.statuses += data.count(b"OrigThirdVoucher>") // 2


async def silent(fep: Fep, bank: BankName, *bodies: dict[str, Any]) -> None:
    """Send payments that the bank books and does not answer."""
    await fep.ready(bank)
    faults = fep.world.banks[bank].faults
    faults[Fault.SILENT_AFTER_BOOKING] = 1.0
    for number, body in enumerate(bodies, 1):
        await fep.submit(f"T{number}", bank=bank, body=body)
    for number in range(1, len(bodies) + 1):
        await fep.becomes(f"T{number}", State.UNKNOWN)
    faults.clear()


async def one_succeeds(fep: Fep) -> None:
    """Send T1, which the bank does."""
    await fep.ready()
    await fep.submit("T1", body=money(PINGAN))
    await fep.becomes("T1", State.SUCCEEDED)


# -- open payments ----------------------------------------------------------------------------


@pytest.mark.parametrize("bank", BANKS)
async def test_a_payment_that_no_inquiry_tells_of_is_found_in_the_statement(
    world: World, bank: BankName
) -> None:
    options: dict[str, Any] = {"banks": [bank], "reply_timeout_s": 0.3, "codec": changed(mute)}
    async with world.fep(card=SEARCH_SOON, **options) as fep:
        client = fep.client()
        await silent(fep, bank, money(bank))
        told = await client.result("T1")
        assert told.state is State.SUCCEEDED
        assert told.result["amount"] == "12.50"
        assert told.result["bank_ref"]
        chain = (await fep.service.why(None, ID))["events"]
        by = {PINGAN: "amount, counterparty and time", CMB: "our reference"}[bank]
        assert chain[-1]["event"] == "proved_done"
        assert chain[-1]["cause"].endswith(f"found by {by}")
        assert chain[-1]["detail"] == f"line found by {by}"
        [(kept,)] = world.on_disk("select bytes from message where digest = ?", chain[-1]["digest"])
        assert b"12.50" in kept
        assert fep.alarm_kinds() == set()
        fep.agrees()


def refuse_once(monkeypatch: pytest.MonkeyPatch, query: str) -> list[StoreBusyError]:
    """Let the store refuse a query for the moment, once; return what it will still refuse with."""
    real, left = getattr(store, query), [StoreBusyError("held")]

    def refusing(*given: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return real(*given, **named)

    monkeypatch.setattr(store, query, refusing)
    return left


@pytest.mark.parametrize("query", ["watched_since", "is_blind", "rivals"])
async def test_a_look_that_the_store_refuses_for_the_moment_is_begun_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Payments in flight go on, and the one that is searched for is found by the next look."""
    left = refuse_once(monkeypatch, query)
    async with world.fep(card=SEARCH_SOON, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        await silent(fep, PINGAN, money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        assert not left
        fep.agrees()


async def test_a_return_is_found_by_the_look_after_one_that_the_store_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = refuse_once(monkeypatch, "watched_alike")
    async with world.fep(card=WATCH) as fep:
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await one_succeeds(fep)
        await take_back(world, PINGAN)
        await fep.becomes("T1", State.RETURNED)
        assert not left


async def test_a_payment_that_was_not_done_is_not_found_and_stays_open(world: World) -> None:
    async with world.fep(card=SEARCH_SOON, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.UNKNOWN)
        world.banks[PINGAN].faults.clear()
        # A payment of another amount stands in the same statement.
        await fep.submit("T2", body=money(PINGAN, "12.51"))
        await fep.becomes("T2", State.SUCCEEDED)
        await until(lambda: fep.task("T1").inquiries >= 6)
        events = await fep.events("T1")
        assert events.count("searched") == 1, "the chain says it once"
        assert (await fep.get("T1"))["state"] == "unknown"


async def test_two_alike_are_told_apart_by_two_persons_only(world: World) -> None:
    async with world.fep(card=SEARCH_SOON, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        await silent(fep, PINGAN, money(PINGAN), money(PINGAN))

        def alarms() -> set[str]:
            kind = AlarmKind.EVIDENCE_AMBIGUOUS
            return {one.subject for one in fep.alarms.active() if one.kind is kind}

        await until(lambda: alarms() == {"T1", "T2"}, "a person must look")
        assert world.booked("T1") == world.booked("T2") == 1
        for task_id in ("T1", "T2"):
            assert (await fep.get(task_id))["state"] == "unknown"
            assert "searched" in await fep.events(task_id)
            line = "statement of today, two lines of 12.50"
            await fep.service.resolve("li", TaskId(task_id), State.SUCCEEDED, line)
            assert await fep.service.confirm("wang", TaskId(task_id)) is State.SUCCEEDED
        assert alarms() == set()


async def test_one_statement_is_read_for_all_payments_of_an_account(world: World) -> None:
    async with world.fep(
        card=SEARCH_SOON, reply_timeout_s=0.3, codec=changed(mute), workers=1
    ) as fep:
        await silent(fep, PINGAN, *(money(PINGAN, f"{n}.00") for n in range(10, 18)))
        seen = Seen(world)
        for number in range(1, 9):
            await fep.becomes(f"T{number}", State.SUCCEEDED)
        # Two parts, today and before, each time; those that were being asked after took another.
        assert seen.statements <= 2 * 4


async def test_a_statement_is_not_read_before_the_card_says_so(world: World) -> None:
    card = {"inquiry": {"statement_after": 0, "no_record": "never"}}
    async with world.fep(card=card, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        await silent(fep, PINGAN, money(PINGAN))
        seen = Seen(world)
        await until(lambda: fep.task("T1").inquiries >= 8)
        assert seen.statements == 0


async def test_payments_go_on_while_a_long_statement_is_read(world: World) -> None:
    """Pages without end: the only worker takes one at a time, and payments in between."""

    def endless(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        match operation, outcome:
            case StatementQuery(), Accepted(result=Statement(entries=entries)):
                return attrs.evolve(outcome, result=Statement(entries, f"4008/{TODAY}/1/0/0/0"))
            case _:
                return mute(operation, _reply, outcome)

    async with world.fep(
        card=SEARCH_SOON, reply_timeout_s=1.0, codec=changed(endless), workers=1
    ) as fep:
        await silent(fep, PINGAN, money(PINGAN))
        seen = Seen(world)
        await until(lambda: seen.statements > 3)
        for number in range(20):
            await fep.submit(f"P{number}", body=money(PINGAN, f"{number + 20}.00"))
        for number in range(20):
            await fep.becomes(f"P{number}", State.SUCCEEDED)


TODAY = f"{business_date(SystemClock().now()):%Y%m%d}"


# -- successes that come back -----------------------------------------------------------------


@pytest.mark.parametrize("bank", BANKS)
async def test_a_success_that_comes_back_is_returned_and_told_again(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank], card=WATCH) as fep:
        await fep.ready(bank)
        world.banks[bank].faults[Fault.RETURNED] = 1.0
        client = fep.client()
        await fep.submit("T1", bank=bank, body=money(bank))
        first = await client.result("T1")
        assert first.state is State.SUCCEEDED
        await until(lambda: not fep.service._box(ERP).told, "the success was acknowledged")
        await take_back(world, bank)
        found = await fep.becomes("T1", State.RETURNED)
        await until(lambda: len(client.told) == 2)
        again = client.told[1]
        assert (again.task_id, again.state) == ("T1", State.RETURNED)
        day = business_date(SystemClock().now()).isoformat()
        assert again.result == first.result | {"returned_on": day}
        assert found["result"] == again.result
        assert "退票" in again.bank_message
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.PAYMENT_RETURNED]
        assert (alarm.subject, alarm.cause.startswith("12.50 yuan: ")) == ("T1", True)
        chain = (await fep.service.why(None, ID))["events"]
        assert (chain[-1]["event"], chain[-1]["detail"]) == (
            "proved_returned",
            "line that takes it back",
        )
        await until(
            lambda: world.on_disk("select delivery, watched_s from task, payment") == [(2, None)]
        )
        assert world.booked("T1") == 1
        fep.agrees()


async def test_what_is_watched_is_known_after_a_restart(world: World) -> None:
    async with world.fep(card=WATCH) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
    await take_back(world, PINGAN)
    async with world.fep(card=WATCH) as fep:
        client = fep.client()
        told = await client.result("T1")
        if told.state is State.SUCCEEDED:  # still owed when the first life ended
            await until(lambda: len(client.told) == 2)
        assert client.told[-1].state is State.RETURNED
        assert (await fep.get("T1"))["state"] == "returned"


async def test_a_clock_that_was_behind_at_the_start_hides_no_return(world: World) -> None:
    """As of a machine whose battery is empty, until its time comes from the network."""
    clock = MovedClock()
    clock.moved = -dt.timedelta(days=400)
    async with world.fep(card=WATCH, clock=clock) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        clock.moved = dt.timedelta()
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        await take_back(world, PINGAN)
        await fep.becomes("T1", State.RETURNED)


async def test_a_clock_that_was_behind_at_the_start_hides_no_overdue_payment(world: World) -> None:
    clock = MovedClock()
    clock.moved = -dt.timedelta(days=400)
    card = {"inquiry": {"no_record": "never", "horizon_s": 0.5}}
    async with world.fep(card=card, clock=clock, reply_timeout_s=0.3) as fep:
        await fep.ready()
        clock.moved = dt.timedelta()
        world.banks[PINGAN].faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.UNKNOWN)
        await until(lambda: AlarmKind.UNKNOWN_OVERDUE in fep.alarm_kinds())


async def test_an_account_is_looked_at_once_for_all_its_successes(world: World) -> None:
    async with world.fep(card=WATCH) as fep:
        await fep.ready()
        seen = Seen(world)
        for number in range(12):
            await fep.submit(f"T{number}", body=money(PINGAN, f"{number + 1}.00"))
        for number in range(12):
            await fep.becomes(f"T{number}", State.SUCCEEDED)
        seen.statements = 0
        began = trio.current_time()
        await until(lambda: seen.statements >= 6)
        assert seen.statuses == 0
        # Two parts a look: today, and the day before.
        assert trio.current_time() - began >= 0.2 * (6 / 2 - 1) * 0.9


async def test_a_line_that_could_be_a_return_lets_the_status_decide(world: World) -> None:
    """Two successes of one size, of which one comes back; the statement has no references."""
    async with world.fep(card=WATCH, codec=changed(nameless)) as fep:
        await one_succeeds(fep)
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("T2", body=money(PINGAN))
        await fep.submit("T3", body=money(PINGAN, "13.00"))
        await fep.becomes("T2", State.SUCCEEDED)
        await fep.becomes("T3", State.SUCCEEDED)
        world.banks[PINGAN].faults.clear()
        await take_back(world, PINGAN)
        for task_id in ("T2", "T3"):
            await fep.becomes(task_id, State.RETURNED)
            chain = (await fep.service.why(None, TaskId(task_id)))["events"]
            assert chain[-1]["cause"] == "the bank's status query says: returned (退票)"
            assert chain[-1]["detail"] == "status returned 20 000000"
        assert (await fep.get("T1"))["state"] == "succeeded"


@pytest.mark.parametrize("refused", [True, False])
async def test_without_statements_each_payment_is_asked_after(
    world: World,
    refused: bool,
) -> None:
    async with world.fep(run=False) as fep:
        unit = fep.make(PINGAN, WATCH, codec=changed(no_statements) if refused else lambda c: c)
        if not refused:
            unit.lane.parts = attrs.evolve(
                unit.parts, capabilities=unit.parts.capabilities - {Kind.STATEMENT}
            )
        await fep.start()
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        for number in range(1, 4):
            await fep.submit(f"T{number}", body=money(PINGAN, f"{number}.00"))
            await fep.becomes(f"T{number}", State.SUCCEEDED)
            world.banks[PINGAN].faults.clear()
        await take_back(world, PINGAN)
        await fep.becomes("T1", State.RETURNED)
        states = {(await fep.get(f"T{number}"))["state"] for number in (2, 3)}
        assert states == {"succeeded"}


async def test_a_client_that_asks_itself_makes_it_returned_at_once(world: World) -> None:
    async with world.fep(card={"returned": {"first_look_s": 600.0}}) as fep:
        client = fep.client()
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        await take_back(world, PINGAN)
        ask = {"kind": "transfer_status", "params": {"task_id": "T1"}}
        await fep.submit("Q1", body=ask)
        assert (await client.result("Q1")).result["state"] == PaymentState.RETURNED.value
        await fep.becomes("T1", State.RETURNED)
        await until(
            lambda: [one.state for one in client.told if one.task_id == "T1"][-1] is State.RETURNED
        )


async def test_an_open_payment_that_came_back_is_returned_in_one_step(world: World) -> None:
    async with world.fep(card=SEARCH_SOON, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        client = fep.client()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.ready()
        faults = world.banks[PINGAN].faults
        faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await world.until_booked("T1")
        await take_back(world, PINGAN)
        faults.clear()
        told = await client.result("T1")
        assert (told.state, len(client.told)) == (State.RETURNED, 1)
        assert told.result["returned_on"]
        assert (await fep.events("T1"))[-2:] == ["proved_done", "proved_returned"]
        assert world.on_disk("select watched_s from payment") == [(None,)]


# -- how long ---------------------------------------------------------------------------------


async def test_the_watch_ends_and_costs_nothing_then(world: World) -> None:
    card = {"returned": {"watch_days": 0.5 / 86_400, "first_look_s": 0.05, "interval_s": 0.1}}
    async with world.fep(card=card) as fep:
        await one_succeeds(fep)
        [(watched_s,)] = world.on_disk("select watched_s from payment")
        assert watched_s is not None
        began = trio.current_time()
        await until(lambda: world.on_disk("select watched_s from payment") == [(None,)])
        assert trio.current_time() - began >= 0.4
        seen = Seen(world)
        await trio.sleep(0.4)
        assert seen.statements == 0
        assert not fep.lane.watch.is_due


async def test_nothing_is_watched_where_the_card_says_so(world: World) -> None:
    async with world.fep(card={"returned": {"watch_days": 0}}) as fep:
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        assert world.on_disk("select watched_s from payment") == [(None,)]
        assert fep.lane.watch._due == {}


async def test_only_successes_are_watched(world: World) -> None:
    async with world.fep(card={"returned": {"first_look_s": 600.0}}) as fep:
        await fep.ready()
        await fep.submit("GOOD", body=money(PINGAN))
        await fep.submit("POOR", body=money(PINGAN, "99999999.00"))
        await fep.submit("QUERY", body={"kind": "balance", "params": {"account": PAYER}})
        await fep.becomes("GOOD", State.SUCCEEDED)
        await fep.becomes("POOR", State.REJECTED)
        await fep.becomes("QUERY", State.SUCCEEDED)
        rows = world.on_disk(
            "select task_id, watched_s from task join payment on task_seq = seq order by seq"
        )
        assert rows == [("GOOD", NOT_LOOKED_AT), ("POOR", None)]
        assert list(fep.lane.watch._due) == [AccountNumber(PAYER)]


async def test_a_bank_that_is_down_is_looked_at_when_it_is_back(world: World) -> None:
    async with world.fep(card=WATCH) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        world.banks[PINGAN].stop()
        await until(lambda: not fep.link.is_open)
        await take_back(world, PINGAN)
        await trio.sleep(0.3)
        assert (await fep.get("T1"))["state"] == "succeeded"
        await world.start_bank(PINGAN)
        await fep.becomes("T1", State.RETURNED)


async def test_a_look_that_fails_is_made_again(world: World) -> None:
    async with world.fep(card=WATCH) as fep:
        await fep.ready()
        bank = world.banks[PINGAN]
        bank.faults[Fault.RETURNED] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        await take_back(world, PINGAN)
        lost = 0

        def lose(answers: list[Answer]) -> list[Answer]:
            nonlocal lost
            lost += 1
            return [Answer(close=True)] if lost <= 6 else answers

        bank.host.changes = lose
        await fep.becomes("T1", State.RETURNED)
        assert lost > 6


def tells_nothing(how: str, ids: Sequence[str]) -> Codec:
    """A bank that never tells what became of these payments."""
    of_them = {client_ref(ENTERPRISE, TaskId(one)) for one in ids}

    def change(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        if isinstance(operation, StatusQuery) and operation.client_ref in of_them:
            return Unclear("X1", "") if how == "unclear" else Rejected("X2", "")
        return outcome

    return changed(change)


def watched_by_status(fep: Fep, codec: Codec, card: dict[str, Any] = WATCH) -> None:
    unit = fep.make(PINGAN, card, codec=codec, reply_timeout_s=0.3)
    kinds = unit.parts.capabilities - {Kind.STATEMENT}
    unit.lane.parts = attrs.evolve(unit.parts, capabilities=kinds)


def short_watch(seconds: float) -> dict[str, Any]:
    return {"returned": WATCH["returned"] | {"watch_days": seconds / SECONDS_PER_DAY}}


def watch_alarms(fep: Fep) -> list[str]:
    return [one.cause for one in fep.alarms.active() if one.kind is AlarmKind.WATCH_FAILED]


@pytest.mark.parametrize("how", ["unclear", "refused", "lost"])
async def test_a_success_of_which_the_bank_tells_nothing_hides_no_other_return(
    world: World, how: str
) -> None:
    async with world.fep(run=False) as fep:
        watched_by_status(fep, tells_nothing(how, ["T1"] if how != "lost" else []))
        await fep.start()
        await fep.ready()
        bank = world.banks[PINGAN]
        if how == "lost":
            reference = client_ref(ENTERPRISE, ID).encode()
            asked = False

            def note(data: bytes) -> None:
                nonlocal asked
                asked = b"OrigThirdVoucher>" + reference in data

            bank.host.on_data = note
            bank.host.changes = lambda answers: [] if asked else answers
        await fep.submit("T1", body=money(PINGAN, "1.00"))
        await fep.becomes("T1", State.SUCCEEDED)
        bank.faults[Fault.RETURNED] = 1.0
        await fep.submit("T2", body=money(PINGAN, "2.00"))
        await fep.becomes("T2", State.SUCCEEDED)
        await take_back(world, PINGAN)
        await fep.becomes("T2", State.RETURNED)
        await until(lambda: watch_alarms(fep), "a person must know that T1 is not learned of")
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.WATCH_FAILED]
        assert alarm.subject == PINGAN
        assert alarm.cause.startswith(f"3 looks in a row at {mask(PAYER)} did not learn all: ")
        assert (await fep.get("T1"))["state"] == "succeeded"


async def test_a_success_that_can_not_be_asked_after_hides_no_other_return(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.fep(run=False) as fep:
        watched_by_status(fep, same)
        await fep.start()
        await fep.ready()
        ask_after = fep.lane.ask_after

        async def only_others(target: Task, *rest: Any) -> Any:
            if target.task_id == ID:
                msg = "its payer is not approved any more"
                raise BodyError(msg)
            return await ask_after(target, *rest)

        monkeypatch.setattr(fep.lane, "ask_after", only_others)
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        for name in ("T1", "T2"):
            await fep.submit(name, body=money(PINGAN, "1.00"))
            await fep.becomes(name, State.SUCCEEDED)
        await take_back(world, PINGAN)
        await fep.becomes("T2", State.RETURNED)


async def test_where_many_may_have_come_back_they_are_asked_after_in_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.tasks.watch.SUSPECTS_MAX", 2)
    async with world.fep(card=WATCH, codec=changed(nameless)) as fep:
        await fep.ready()
        names = [f"T{number}" for number in range(1, 6)]
        for name in names:
            if name == names[-1]:
                world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
            await fep.submit(name, body=money(PINGAN))
            await fep.becomes(name, State.SUCCEEDED)
        await take_back(world, PINGAN)
        await fep.becomes(names[-1], State.RETURNED)
        for name in names[:-1]:
            assert (await fep.get(name))["state"] == "succeeded"
        # Within three looks all had their turn: that is no cause for concern, however often.
        looks = fep.lane.watch._looked
        now = trio.current_time()
        await until(lambda: looks.get(PAYER, 0.0) > now + 1.5)
        assert watch_alarms(fep) == []


async def test_a_batch_that_may_have_come_back_has_its_turn_among_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.tasks.watch.SUSPECTS_MAX", 2)
    async with world.fep(card=WATCH, codec=changed(nameless)) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("B1", body=batch(PINGAN, "12.50", "1.00"))
        await fep.becomes("B1", State.SUCCEEDED)
        world.banks[PINGAN].faults.clear()
        for number in range(4):
            await fep.submit(f"T{number}", body=money(PINGAN))
            await fep.becomes(f"T{number}", State.SUCCEEDED)
        await take_back(world, PINGAN)
        await fep.becomes("B1", State.RETURNED)


async def test_a_success_whose_last_look_learned_nothing_is_watched_on(world: World) -> None:
    untold = True

    def change(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        if untold and isinstance(operation, StatusQuery):
            return Unclear("X1", "")
        return outcome

    async with world.fep(run=False) as fep:
        # A look that learns nothing takes more than a second.
        watched_by_status(fep, changed(change), WATCH | short_watch(3.0))
        await fep.start()
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        await take_back(world, PINGAN)
        over = "select count(*) from payment where watched_s >= 3.0"
        await until(lambda: world.on_disk(over) == [(1,)], "its time is over, and it is watched")
        untold = False
        await fep.becomes("T1", State.RETURNED)


async def test_a_success_that_is_never_learned_of_is_watched_twice_as_long_and_told(
    world: World,
) -> None:
    async with world.fep(run=False) as fep:
        watched_by_status(fep, tells_nothing("refused", ["T1"]), WATCH | short_watch(1.0))
        await fep.start()
        await one_succeeds(fep)
        await until(lambda: world.on_disk("select watched_s from payment") == [(None,)])
        assert watch_alarms(fep), "who could not be told stays with a person"
        await until(lambda: not fep.lane.watch._failures)


async def test_what_a_watch_never_learned_stays_told_until_a_person_acknowledges_it(
    world: World,
) -> None:
    async with world.fep(run=False) as fep:
        watched_by_status(fep, tells_nothing("refused", ["T1"]), WATCH | short_watch(1.0))
        await fep.start()
        await one_succeeds(fep)
        await until(lambda: world.on_disk("select watched_s from payment") == [(None,)])
        await until(lambda: PAYER not in fep.lane.watch._due, "its last look is done")
    async with world.fep(run=False) as fep:
        watched_by_status(fep, same)
        await fep.start()
        await fep.ready()
        await fep.submit("T2", body=money(PINGAN))
        await fep.becomes("T2", State.SUCCEEDED)
        await until(lambda: PAYER in fep.lane.watch._looked, "a look that learned all is done")
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.WATCH_FAILED]
        assert alarm.subject == f"{PINGAN} {mask(PAYER)}"
        assert alarm.cause.startswith(f"{mask(PAYER)} has payments that are watched no more and ")
        await fep.alarms.acknowledge(alarm.id, "li")
        assert watch_alarms(fep) == []


async def test_a_watch_that_ends_untold_is_counted_also_where_others_are_watched_on(
    world: World,
) -> None:
    ages = {1: 1.5, 2: 1.0, 3: 1.0, 4: NOT_LOOKED_AT}
    async with world.fep(run=False) as fep:

        def look(missed: set[int] | None, connection: sa.Connection) -> tuple[int, int]:
            facts = PINGAN, PAYER, 0.5, 1.0, missed
            return ends_untold(connection, *facts), note_look(connection, *facts)

        def fill(connection: sa.Connection) -> None:
            for seq, watched_s in ages.items():
                put_watched(connection, seq, watched_s=watched_s)

        await fep.store.write(fill)
        assert await fep.store.write(partial(look, {1, 2})) == (1, 2)
        assert await fep.store.write(partial(look, None)) == (1, 1)
        assert await fep.store.write(partial(look, set())) == (0, 0)


async def test_a_bank_that_tells_nothing_is_one_alarm_until_all_its_accounts_are_learned_of(
    world: World,
) -> None:
    async with world.fep(run=False) as fep:
        watch, other = fep.make(PINGAN).lane.watch, AccountNumber("9900" + "7" * 6 + PAYER[-4:])
        for _ in range(3):
            watch._count_failure(PAYER, "no answer")
            watch._count_failure(other, "")
        assert watch_alarms(fep) == [
            f"3 looks in a row at {mask(PAYER)} did not learn all: no answer"
        ]
        for _ in range(3):
            watch._count_failure(other, "no answer")
        assert watch_alarms(fep)[0].endswith("no answer; so it is with 2 accounts")
        watch._count_failure(PAYER, "")
        assert len(watch_alarms(fep)) == 1
        watch._count_failure(other, "")
        assert watch_alarms(fep) == []


async def test_a_contradiction_that_was_acknowledged_does_not_come_again(world: World) -> None:
    async with world.fep(run=False) as fep:
        watched_by_status(fep, changed(says(PaymentState.REJECTED)))
        await fep.start()
        await one_succeeds(fep)
        await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.EVIDENCE_CONFLICT]
        await fep.alarms.acknowledge(alarm.id, "li")
        looks = fep.lane.watch._looked
        now = trio.current_time()
        await until(lambda: looks.get(PAYER, 0.0) > now, "looks go on")
        assert AlarmKind.EVIDENCE_CONFLICT not in fep.alarm_kinds()


async def test_a_statement_that_is_longer_than_what_is_read_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.tasks.look.PAGES_MAX", 1)

    def endless(_operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=Statement(entries=entries)):
                return attrs.evolve(outcome, result=Statement(entries, "1"))
            case _:
                return outcome

    async with world.fep(card=WATCH, codec=changed(endless)) as fep:
        await one_succeeds(fep)
        await until(lambda: watch_alarms(fep))
        assert "its statement has more than the" in watch_alarms(fep)[0]


@pytest.mark.parametrize(
    ("end", "said", "by"),
    [
        (State.SUCCEEDED, PaymentState.REJECTED, "a look"),
        (State.SUCCEEDED, PaymentState.REJECTED, "its client"),
        (State.REJECTED, PaymentState.SUCCEEDED, "its client"),
    ],
)
async def test_a_status_that_contradicts_the_end_is_an_alarm_with_its_bytes(
    world: World, end: State, said: PaymentState, by: str
) -> None:
    card = WATCH if by == "a look" else {"returned": {"watch_days": 0}}
    async with world.fep(run=False) as fep:
        watched_by_status(fep, changed(says(said)), card)
        await fep.start()
        await fep.ready()
        amount = "1.00" if end is State.SUCCEEDED else "99999999.00"
        await fep.submit("T1", body=money(PINGAN, amount))
        await fep.becomes("T1", end)
        if by == "its client":
            ask = {"kind": "transfer_status", "params": {"task_id": "T1"}}
            await fep.submit("ASK", body=ask)
            await fep.becomes("ASK", State.SUCCEEDED)
        await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.EVIDENCE_CONFLICT]
        assert alarm.subject == "T1"
        assert alarm.cause.startswith(f"it is {end.value}, and the bank's status query says: ")
        assert (await fep.get("T1"))["state"] == end.value
        kept = "select count(*) from message where direction = 'received' and task_seq = 1"
        await until(lambda: world.on_disk(kept) == [(2,)])


async def test_looks_that_fail_one_after_another_are_an_alarm_until_one_does_not(
    world: World,
) -> None:
    refuses = True

    def change(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
        if refuses and isinstance(operation, StatementQuery):
            return Rejected("X3", "come back later")
        return outcome

    async with world.fep(card=WATCH, codec=changed(change)) as fep:
        await one_succeeds(fep)
        await until(lambda: watch_alarms(fep))
        assert "X3 come back later" in watch_alarms(fep)[0]
        refuses = False
        await until(lambda: not watch_alarms(fep))


async def test_two_may_find_at_once_that_a_payment_came_back(world: World) -> None:
    names = [f"T{number}" for number in range(1, 9)]
    async with world.fep(card={"returned": {"first_look_s": 600.0}}) as fep:
        fep.client()
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        for number, name in enumerate(names, 1):
            await fep.submit(name, body=money(PINGAN, f"{number}.50"))
        for name in names:
            await fep.becomes(name, State.SUCCEEDED)
        await take_back(world, PINGAN)
        for name in names:
            ask = {"kind": "transfer_status", "params": {"task_id": name}}
            await fep.admit(*(fep.submission(f"ASK-{name}-{which}", body=ask) for which in "ab"))
            for which in "ab":
                await fep.becomes(f"ASK-{name}-{which}", State.SUCCEEDED)
            assert (await fep.events(name)).count("proved_returned") == 1


# -- many of both -----------------------------------------------------------------------------


class CountedEntry(StatementEntry):
    """A line that counts how often the amount of any is read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        CountedEntry.reads += name == "amount"
        return super().__getattribute__(name)


class Steps(trio.abc.Instrument):
    """Counts how often this task goes on after others had their turn."""

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


def coming_in(line: type[StatementEntry] = StatementEntry, **what: Any) -> StatementEntry:
    """Return a line of 1.00 yuan that puts money in now."""
    plain: dict[str, Any] = {"amount": Cny(100), "bank_ref": "", "counterparty_account": PAYEE}
    now = SystemClock().now()
    return line(booked_at=now, direction=Direction.CREDIT, **(plain | what))


def begun(*entries: StatementEntry) -> Look:
    """Return a look that has read these lines, and judged nothing yet."""
    now = SystemClock().now()
    look = Look(PAYER, is_begun=True)
    look.ask_statement([StatementQuery(PAYER, business_date(now), business_date(now))])
    look.take_page(Statement(entries), Reply("", "4013", "000000", "", b"<>"))
    return look


def put_watched(
    connection: sa.Connection, seq: int, *, watched_s: float = 0.0, payee: str = PAYEE
) -> None:
    """Write a success of 1.00 yuan that is watched."""
    at = text_of(SystemClock().now())
    connection.exec_driver_sql(
        "insert into task (seq, task_id, client, bank, kind, priority, state, submitted_at,"
        " expires_at, updated_at, client_ref, sent_at)"
        " values (?, ?, 'erp-1', 'pingan', 'transfer', 5, 'succeeded', ?, ?, ?, ?, ?)",
        (seq, f"T{seq}", at, at, at, f"F{seq}", at),
    )
    connection.exec_driver_sql(
        "insert into payment (task_seq, bank, payer, payee, amount_fen, sent_at, waited_s,"
        " watched_s) values (?, 'pingan', ?, ?, 100, ?, 0, ?)",
        (seq, PAYER, payee, at, watched_s),
    )


async def test_all_lines_are_read_once_for_all_successes_and_others_have_their_turn_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    singles, row_of, lines, reads_of_each_max = 40, 20, 300, 8
    monkeypatch.setattr("fep.tasks.watch.JUDGED_AT_ONCE_MAX", 2)
    at = text_of(SystemClock().now())

    def fill(connection: sa.Connection) -> None:
        for seq in range(1, singles + 2):
            put_watched(connection, seq, payee="" if seq > singles else PAYEE)
        for place in range(row_of):
            connection.exec_driver_sql(
                "insert into payment_row (task_seq, place, payer, payee, amount_fen, sent_at,"
                " client_ref, bank_ref) values (?, ?, ?, ?, 100, ?, ?, '')",
                (singles + 1, place, PAYER, PAYEE, at, f"R{place}"),
            )

    async with world.fep(run=False) as fep:
        await fep.store.write(fill)
        CountedEntry.reads = 0
        look = begun(*(coming_in(CountedEntry, bank_ref=f"B{at}") for at in range(lines)))
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        try:
            await fep.lane.watch._judge(look)
        finally:
            trio.lowlevel.remove_instrument(steps)
        assert CountedEntry.reads <= reads_of_each_max * lines
        assert steps.count > (singles + row_of) // 2
        # Any line may be any one's return: all are asked after.
        assert len(look.asks) == singles + 1


async def test_what_comes_back_otherwise_while_a_statement_is_judged_is_left_as_it_is(
    world: World,
) -> None:
    async with world.fep(card={"returned": {"first_look_s": 600.0}}) as fep:
        await fep.ready()
        refs = {}
        for name in ("T1", "T2", "T3"):
            await fep.submit(name, body=money(PINGAN, "1.00"))
            await fep.becomes(name, State.SUCCEEDED)
            refs[name] = client_ref(ENTERPRISE, TaskId(name))
        watch = fep.lane.watch
        # Two lines that T3 may have come back by.
        look = begun(*(coming_in(client_ref=refs[name]) for name in ("T1", "T2", "T3", "T3")))
        async with trio.open_nursery() as nursery, watch._reopening:
            nursery.start_soon(watch._judge, look)
            await until(lambda: watch._reopening.statistics().tasks_waiting)
            for name in ("T2", "T3"):
                task = await fep.store.read(partial(one_of, task_id=TaskId(name)))
                assert task is not None
                await fep.service.change(task, (Event.PROVED_RETURNED,), "told otherwise")
        while look.asks:
            await watch._ask_status(look)
        for name, cause in (("T1", "found by"), ("T2", "told otherwise"), ("T3", "told otherwise")):
            chain = (await fep.service.why(None, TaskId(name)))["events"]
            told = [one["cause"] for one in chain if one["event"] == "proved_returned"]
            assert len(told) == 1
            assert cause in told[0]
        assert fep.alarm_kinds() == {AlarmKind.PAYMENT_RETURNED}
