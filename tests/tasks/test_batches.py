"""Batches: one task of many rows, which is at its end when every row is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import attrs
import pytest
import trio

from fep.adapters.api import Accepted, BankCodec, Outcome, Reply
from fep.adapters.host import BookedState, Fault
from fep.alarms.state import AlarmKind
from fep.daemon.verify import verify
from fep.domain.clock import SystemClock
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId, client_ref, row_ref
from fep.domain.money import Cny
from fep.domain.order import BatchQuery, BatchStatus, Kind, PaymentState, PaymentStatus
from fep.tasks import replay, store
from fep.tasks.state import State
from tests.tasks.bench import (
    ACCOUNTS,
    CMB,
    CMB_PAYER,
    ENTERPRISE,
    OPENING,
    PAYEE,
    PAYER,
    PINGAN,
    Codec,
    Fep,
    World,
    batch,
    money,
    until,
)
from tests.tasks.codecs import changed, mute

pytestmark = pytest.mark.req("FEP-25", "LAND-51")

BANKS = [PINGAN, CMB]
ID = TaskId("B1")
REFERENCE = client_ref(ENTERPRISE, ID)
TOO_MUCH = f"{OPENING.fen // 100 + 1}.00"
WATCH: dict[str, Any] = {
    "returned": {"watch_days": 2, "first_look_s": 0.05, "interval_s": 0.2},
}
Page = Callable[[BatchQuery, Outcome], Outcome]


class _Paged:
    """A codec whose bank says other things of a batch's rows."""

    def __init__(self, inner: BankCodec, change: Page) -> None:
        self._inner = inner
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def batch_status(self, query: BatchQuery, reply: Reply) -> Outcome:
        return self._change(query, self._inner.batch_status(query, reply))  # type: ignore[attr-defined]


def told(change: Page) -> Codec:
    return lambda inner: cast("BankCodec", _Paged(inner, change))


def rows_told(*rows: int) -> Page:
    """A bank that tells of these rows only, in one page."""

    def change(_query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus() as page):
                status = next(iter(page.rows.values()))
                return attrs.evolve(outcome, result=BatchStatus(dict.fromkeys(rows, status)))
            case _:
                return outcome

    return change


def booked(world: World, rows: int, reference: Any = REFERENCE) -> list[int]:
    return [world.book.times_booked(row_ref(reference, at)) for at in range(rows)]


async def sound(fep: Fep, bank: BankName = PINGAN) -> None:
    """Check what the store holds, and that today's adapter reads the same of what it kept."""
    assert verify(fep.world.store_file, enterprise=ENTERPRISE).findings == []
    codec, card = fep.units[bank].parts.codec, fep.units[bank].parts.card

    def read(connection: Any) -> list[replay.Reading]:
        places = store.with_bytes(connection, 0, "", 100)
        recorded, ended = store.recorded(connection, places), store.ended(connection, places)
        rivals = partial(store.rivals, connection)
        return [
            reading
            for task in store.at_places(connection, places)
            for reading in replay.read_task(
                codec, card, task, ended[task.seq], recorded[task.seq], rivals
            )
        ]

    readings = await fep.store.read(read)
    assert readings
    assert [one.value() for one in readings if one.differs] == []


@pytest.mark.parametrize("bank", BANKS)
async def test_rows_are_paid_once_each_and_the_result_says_which(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank]) as fep:
        client = fep.client()
        await fep.ready(bank)
        body = batch(bank, "1.00", TOO_MUCH, "3.00")
        await fep.submit("B1", bank=bank, body=body)
        end = await client.result("B1")
        assert end.state is State.SUCCEEDED
        rows = end.result["rows"]
        assert [(one["row"], one["state"]) for one in rows] == [
            (0, "succeeded"),
            (1, "rejected"),
            (2, "succeeded"),
        ]
        assert [one["client_ref"] for one in rows] == [row_ref(REFERENCE, at) for at in range(3)]
        assert rows[0]["bank_ref"]
        assert rows[1]["bank_message"]
        counts = {name: end.result[name] for name in ("succeeded", "rejected", "returned")}
        assert counts == {"succeeded": 2, "rejected": 1, "returned": 0}
        assert end.result["amount_succeeded"] == "4.00"
        assert end.result["client_ref"] == REFERENCE
        # Once more the same: it is the same task, and nothing moves.
        await fep.submit("B1", bank=bank, body=body)
        await fep.submit("S1", bank=bank, body=status_of("B1"))
        asked = await client.result("S1")
        assert [one["state"] for one in asked.result["rows"]] == [one["state"] for one in rows]
        assert booked(world, 3) == [1, 0, 1]
        fep.agrees()
        await sound(fep, bank)


def status_of(task_id: str) -> dict[str, Any]:
    return {"kind": "transfer_status", "params": {"task_id": task_id}}


@pytest.mark.parametrize("bank", BANKS)
async def test_a_batch_of_which_no_row_is_paid_is_rejected_with_its_rows(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank]) as fep:
        client = fep.client()
        await fep.ready(bank)
        await fep.submit("B1", bank=bank, body=batch(bank, TOO_MUCH, TOO_MUCH))
        end = await client.result("B1")
        assert end.state is State.REJECTED
        if end.result is not None:  # a bank that refused it at once told no rows
            assert [one["state"] for one in end.result["rows"]] == ["rejected"] * 2
        assert booked(world, 2) == [0, 0]
        await sound(fep, bank)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault.SILENT_AFTER_BOOKING,
        Fault.CLOSE_AFTER_BOOKING,
        Fault.UNKNOWN_AFTER_BOOKING,
        Fault.SILENT_BEFORE_BOOKING,
        Fault.CLOSE_BEFORE_BOOKING,
    ],
)
async def test_after_a_lost_answer_the_rows_are_asked_after_and_never_sent_again(
    world: World, bank: BankName, fault: Fault
) -> None:
    async with world.fep(banks=[bank], reply_timeout_s=0.3) as fep:
        client = fep.client()
        await fep.ready(bank)
        world.banks[bank].faults[fault] = 1.0
        await fep.submit("B1", bank=bank, body=batch(bank, "1.00", "2.00"))
        end = await client.result("B1")
        was_booked = "after" in fault.value
        assert end.state is (State.SUCCEEDED if was_booked else State.REJECTED)
        assert (await fep.events("B1")).count("send_begun") == 1
        assert booked(world, 2) == [int(was_booked)] * 2
        assert end.result["succeeded"] == 2 * was_booked
        await sound(fep, bank)


@pytest.mark.parametrize("bank", BANKS)
async def test_a_process_that_ended_between_sending_and_answer_asks(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank]) as fep:
        await fep.ready(bank)
        world.banks[bank].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("B1", bank=bank, body=batch(bank, "1.00", "2.00"))
        await until(lambda: booked(world, 2) == [1, 1])
        assert fep.task("B1").state is State.SENDING
    async with world.fep(banks=[bank]) as fep:
        found = await fep.becomes("B1", State.SUCCEEDED)
        assert found["result"]["succeeded"] == 2
        assert "outcome_lost" in await fep.events("B1")
        assert booked(world, 2) == [1, 1]
        await sound(fep, bank)


@pytest.mark.parametrize("bank", BANKS)
async def test_a_batch_with_a_row_that_waits_at_the_bank_is_not_at_its_end(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank]) as fep:
        client = fep.client()
        await fep.ready(bank)
        world.banks[bank].faults[Fault.LANDED] = 1.0
        await fep.submit("B1", bank=bank, body=batch(bank, "1.00", "2.00"))
        await fep.becomes("B1", State.ACCEPTED)
        await fep.inquired("B1", 2)
        now = SystemClock().now()
        world.book.settle_landed(bank, row_ref(REFERENCE, 0), now, ok=True)
        asked = fep.task("B1").inquiries
        await fep.inquired("B1", asked + 2)
        assert (await fep.get("B1"))["state"] == "accepted", "one row is decided, and one is not"
        world.book.settle_landed(bank, row_ref(REFERENCE, 1), now, ok=False)
        end = await client.result("B1")
        assert [one["state"] for one in end.result["rows"]] == ["succeeded", "rejected"]
        await sound(fep, bank)


@pytest.mark.parametrize("rows", [(0,), (0, 1, 2), (1, 7), ()])
async def test_rows_that_are_missing_or_strange_prove_nothing(
    world: World, rows: tuple[int, ...]
) -> None:
    async with world.fep(codec=told(rows_told(*rows))) as fep:
        await fep.ready()
        await fep.submit("B1", body=batch(PINGAN, "1.00", "2.00"))
        await fep.becomes("B1", State.ACCEPTED)
        await fep.inquired("B1", 3)
        assert (await fep.get("B1"))["state"] == "accepted"


async def test_a_row_that_two_pages_tell_proves_nothing(world: World) -> None:
    def change(query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus() as page):
                cursor = "" if query.cursor else "1"
                return attrs.evolve(outcome, result=attrs.evolve(page, cursor=cursor))
            case _:
                return outcome

    async with world.fep(codec=told(change)) as fep:
        await fep.ready()
        await fep.submit("B1", body=batch(PINGAN, "1.00", "2.00"))
        await fep.becomes("B1", State.ACCEPTED)
        await fep.inquired("B1", 2)
        assert (await fep.get("B1"))["state"] == "accepted"
        assert (await fep.events("B1")).count("paged") >= 2


async def test_a_row_without_a_record_is_refused_when_the_card_says_so(world: World) -> None:
    """A bank that lost one row of three, and the answer."""
    lost = PaymentStatus(PaymentState.NO_RECORD, "MA0103")

    def change(_query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus() as page):
                return attrs.evolve(outcome, result=BatchStatus({**page.rows, 1: lost}))
            case _:
                return outcome

    async with world.fep(codec=told(change), reply_timeout_s=0.3) as fep:
        client = fep.client()
        await fep.ready()
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        began = trio.current_time()
        await fep.submit("B1", body=batch(PINGAN, "1.00", "2.00", "3.00"))
        end = await client.result("B1")
        assert trio.current_time() - began > 0.3, "before that it proves nothing"
        assert [one["state"] for one in end.result["rows"]] == [
            "succeeded",
            "rejected",
            "succeeded",
        ]
    # Where the bank said that it has it, it can't unsay a row.
    async with world.fep(codec=told(change)) as fep:
        await fep.ready()
        world.banks[PINGAN].faults.clear()
        await fep.submit("B2", body=batch(PINGAN, "1.00", "2.00", "3.00"))
        await fep.becomes("B2", State.ACCEPTED)
        await fep.inquired("B2", 4)
        assert (await fep.get("B2"))["state"] == "accepted"


@pytest.mark.parametrize("bank", BANKS)
async def test_rows_that_come_back_are_told_one_by_one_each_once(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank], card=WATCH) as fep:
        client = fep.client()
        await fep.ready(bank)
        world.banks[bank].faults[Fault.RETURNED] = 1.0
        await fep.submit("B1", bank=bank, body=batch(bank, "1.00", "2.00", "3.00"))
        first = await client.result("B1")
        assert first.state is State.SUCCEEDED
        await until(lambda: world.on_disk("select delivery from task") == [(2,)])
        again, states = first, [""]
        for count, at in enumerate((1, 0), 2):
            due = dict(world.book._db.execute("select client_ref, returns_at from payment"))
            late = (SystemClock().now() + dt.timedelta(days=1)).isoformat()
            for row in range(3):
                if row != at and due[row_ref(REFERENCE, row)] is not None:
                    world.book._db.execute(
                        "update payment set returns_at = ? where client_ref = ?",
                        (late, row_ref(REFERENCE, row)),
                    )
            world.book._db.execute(
                "update payment set returns_at = '2000' where client_ref = ?",
                (row_ref(REFERENCE, at),),
            )
            world.book.take_back(bank, SystemClock().now())
            assert world.book.payment(bank, row_ref(REFERENCE, at)).state is BookedState.RETURNED  # type: ignore[union-attr]
            await until(partial(lambda n: len(client.told) == n, count), "told")
            again = client.told[-1]
            assert again.state is State.RETURNED
            states = [one["state"] for one in again.result["rows"]]
            assert states[at] == "returned"
            assert states.count("returned") == again.result["returned"] == count - 1
        assert states == ["returned", "returned", "succeeded"]
        refs = dict(world.on_disk("select place, bank_ref from payment_row"))
        assert refs == {one["row"]: one["bank_ref"] for one in again.result["rows"]}
        chain = (await fep.service.why(None, ID))["events"]
        lines = [one["detail"] for one in chain if one["event"] == "proved_returned"]
        assert lines == ["line that takes row 1 back", "line that takes row 0 back"]
        assert again.result["amount_succeeded"] == "3.00"
        kept = {"row", "client_ref", "amount", "bank_ref", "booked_on"}
        assert all(kept <= one.keys() for one in again.result["rows"])
        # More looks tell nothing more, and the third row is watched on.
        looks = fep.units[bank].lane.watch._looked
        began = looks[next(iter(looks))]
        await until(lambda: looks[next(iter(looks))] > began + 0.2)
        assert len(client.told) == 3
        assert (await fep.events("B1")).count("proved_returned") == 2
        [(watched, delivery)] = world.on_disk("select watched_s, delivery from payment, task")
        assert watched is not None
        assert delivery == 2
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.PAYMENT_RETURNED]
        assert alarm.subject == "B1"
        assert alarm.cause.startswith("of a batch of 3 payments: ")
        assert alarm.cause.endswith(": row 0")
        fep.agrees()
        await sound(fep, bank)


async def test_a_row_of_which_the_bank_tells_nothing_hides_no_other_rows_return(
    world: World,
) -> None:
    is_odd = False

    def odd(_query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus(rows=rows) as page) if is_odd and 0 in rows:
                untold = PaymentStatus(PaymentState.UNKNOWN, "ODD", "a state on no list")
                return attrs.evolve(outcome, result=attrs.evolve(page, rows={**rows, 0: untold}))
            case _:
                return outcome

    card = {"returned": {"watch_days": 2, "first_look_s": 0.05, "interval_s": 0.2}}
    async with world.fep(banks=[CMB], run=False) as fep:
        unit = fep.make(CMB, card, codec=told(odd))
        kinds = unit.parts.capabilities - {Kind.STATEMENT}
        unit.lane.parts = attrs.evolve(unit.parts, capabilities=kinds)
        await fep.start(CMB)
        await fep.ready(CMB)
        world.banks[CMB].faults[Fault.RETURNED] = 1.0
        await fep.submit("B1", bank=CMB, body=batch(CMB, "1.00", "2.00"))
        await fep.becomes("B1", State.SUCCEEDED)
        is_odd = True
        world.book.take_back(CMB, SystemClock().now() + dt.timedelta(minutes=2))
        found = await fep.becomes("B1", State.RETURNED)
        assert [row["state"] for row in found["result"]["rows"]] == ["succeeded", "returned"]
        # The first one is not learned of: that is told too.
        await until(lambda: AlarmKind.WATCH_FAILED in fep.alarm_kinds())
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.WATCH_FAILED]
        assert alarm.cause.endswith("the bank's status query says: unknown")


async def test_a_row_that_the_bank_denies_after_the_end_is_an_alarm(world: World) -> None:
    is_denied = False

    def denying(_query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus(rows=rows) as page) if is_denied:
                denied = {at: PaymentStatus(PaymentState.REJECTED, "NO", "") for at in rows}
                return attrs.evolve(outcome, result=attrs.evolve(page, rows=denied))
            case _:
                return outcome

    async with world.fep(codec=told(denying)) as fep:
        await fep.ready()
        poor = batch(PINGAN, "1.00", "99999999.00")
        await fep.submit("B1", body=poor)
        found = await fep.becomes("B1", State.SUCCEEDED)
        assert [row["state"] for row in found["result"]["rows"]] == ["succeeded", "rejected"]
        await fep.submit("ASK-0", body=status_of("B1"))
        await fep.becomes("ASK-0", State.SUCCEEDED)
        assert AlarmKind.EVIDENCE_CONFLICT not in fep.alarm_kinds()
        is_denied = True
        await fep.submit("ASK", body=status_of("B1"))
        await fep.becomes("ASK", State.SUCCEEDED)
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.EVIDENCE_CONFLICT]
        assert alarm.subject == "B1"
        assert "says of row 0: " in alarm.cause


async def test_a_row_is_a_rival_of_a_single_payment_whose_line_has_no_reference(
    world: World,
) -> None:
    """One line fits a payment and a row that nobody knows of: a person decides."""

    def silent(_query: BatchQuery, _outcome: Outcome) -> Outcome:
        return Accepted(BatchStatus({}, "2", is_over=False))

    card = {"inquiry": {"statement_after": 1, "no_record": "never"}}
    codecs = (changed(mute), told(silent))
    async with world.fep(
        card=card, reply_timeout_s=0.3, codec=lambda inner: codecs[1](codecs[0](inner))
    ) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("B1", body=batch(PINGAN, "12.50", "1.00"))
        await fep.becomes("B1", State.UNKNOWN)
        # This one never arrives, and the only line of its amount is the row's.
        world.banks[PINGAN].faults.clear()
        world.banks[PINGAN].faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=money(PINGAN, "12.50"))
        await fep.becomes("T1", State.UNKNOWN)
        world.banks[PINGAN].faults.clear()
        await until(lambda: AlarmKind.EVIDENCE_AMBIGUOUS in fep.alarm_kinds())
        assert (await fep.get("T1"))["state"] == "unknown"
        # Two persons look, and may close the batch as any other.
        evidence = "the bank's list of today: both rows paid"
        await fep.service.resolve("li", ID, State.SUCCEEDED, evidence)
        assert await fep.service.confirm("wang", ID) is State.SUCCEEDED
        await sound(fep)


async def test_a_batch_above_the_bank_s_limit_is_refused_before_it_leaves(world: World) -> None:
    async with world.fep(card={"batch": {"rows_max": 2}}) as fep:
        await fep.ready()
        await fep.submit("B1", body=batch(PINGAN, "1.00", "2.00", "3.00"))
        found = await fep.becomes("B1", State.FAILED)
        assert found["bank_message"] == "rows: this bank takes at most 2 payments in one batch"
        long = batch(PINGAN, "1.00", payees=[(AccountNumber("1" * 33), "外行示例公司")])
        await fep.submit("B2", body=long)
        found = await fep.becomes("B2", State.FAILED)
        assert found["bank_message"].startswith("rows[0].payee.account: ")
        assert booked(world, 3) == [0, 0, 0]


async def test_what_a_batch_may_take_counts_as_under_way(world: World) -> None:
    async with world.fep(run=False) as fep:
        fep.make(PINGAN)
        await fep.submit("B1", body=batch(PINGAN, "1.00", "2.50"))
        assert fep.service._open.under_way() == {PAYER: Cny(350)}
        assert ACCOUNTS[PAYEE].bank == PINGAN


async def test_a_batch_of_which_one_payment_came_back_took_the_money_of_all(world: World) -> None:
    """What is taken off a balance asked for before: rather too much than too little."""

    def back(_query: BatchQuery, outcome: Outcome) -> Outcome:
        match outcome:
            case Accepted(result=BatchStatus(rows=rows) as page) if 1 in rows:
                row = attrs.evolve(rows[1], state=PaymentState.RETURNED)
                return attrs.evolve(outcome, result=attrs.evolve(page, rows={**rows, 1: row}))
            case _:
                return outcome

    async with world.fep(banks=[CMB], codec=told(back)) as fep:
        await fep.ready(CMB)
        await fep.submit("B1", bank=CMB, body=batch(CMB, "9000.00", "2.00"))
        found = await fep.becomes("B1", State.RETURNED)
        assert [row["state"] for row in found["result"]["rows"]] == ["succeeded", "returned"]
        total = Cny.parse("9002.00")
        assert fep.service.paid(CMB_PAYER) == total
        earlier = {TaskId("none"): CMB_PAYER}
        assert await fep.service.spent(earlier, ClientName("pool")) == {CMB_PAYER: total}
