"""One bank's lane: a payment leaves at most once, and its end is proved, whatever goes wrong."""

from __future__ import annotations

import datetime as dt
import random
from functools import partial
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from msgspec import structs

from fep.adapters.api import BankCodec, Context, Draft, Outcome, Reply
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import Answer, BookedState, Fault, PaymentRequest
from fep.alarms.state import AlarmKind
from fep.daemon import supervisor
from fep.domain.clock import SHANGHAI, SystemClock, business_date, from_text, to_shanghai
from fep.domain.ids import AccountNumber, BankName, TaskId, client_ref
from fep.domain.money import Cny
from fep.domain.order import Kind, Operation, PaymentOrder, PaymentState
from fep.links.mux import UnmatchedReply
from fep.tasks.lane import OFFERS_OUTSTANDING_MAX, QUERY_ATTEMPTS_MAX
from fep.tasks.state import FINAL, State
from tests.store.held import held
from tests.tasks.bench import (
    ACCOUNTS,
    CMB,
    CMB_PAYER,
    ENTERPRISE,
    ERP,
    OPENING,
    OTHER,
    PAYEE,
    PAYER,
    PINGAN,
    STRANGER,
    Fep,
    MovedClock,
    World,
    balance,
    money,
    transfer,
    until,
)
from tests.tasks.codecs import changed, says
from tests.tasks.test_proofs import framed

BANKS = [PINGAN, CMB]
ID = TaskId("T1")
TODAY = business_date(SystemClock().now()).isoformat()
SLOW_EVIDENCE = {"inquiry": {"cool_down_s": 600.0, "accepted_interval_s": 600.0}}
"""A card by which the bank is not asked while a test lasts."""


def statement(account: AccountNumber = PAYER) -> dict[str, Any]:
    return {"kind": "statement", "params": {"account": account, "from": TODAY, "to": TODAY}}


def status_of(task_id: str) -> dict[str, Any]:
    return {"kind": "transfer_status", "params": {"task_id": task_id}}


async def end_of(fep: Fep, task_id: str) -> dict[str, Any]:
    """Return a task at its end, with memory and disk agreeing on all."""
    found = await fep.becomes(task_id, *FINAL)
    await until(lambda: not any(lane._in_hands for lane in fep.service.lanes.values()))
    fep.agrees()
    return found


# -- write first, then act --------------------------------------------------------------------


@pytest.mark.req("FEP-25", "DEC-a")
@pytest.mark.parametrize("bank", BANKS)
async def test_sending_is_on_disk_before_the_first_byte_leaves(
    world: World, bank: BankName
) -> None:
    """The bank itself looks, by a connection of its own, before it reads what arrived."""
    query = (
        "select task.state, client_ref, sent_at is not null, message.bytes from task"
        " left join message on task_seq = task.seq and direction = 'sent' where task_id = 'T1'"
    )
    seen: list[tuple[Any, ...]] = []
    received = bytearray()

    def look(data: bytes) -> None:
        seen.extend(world.on_disk(query))
        received.extend(data)

    async with world.fep(banks=[bank]) as fep:
        await fep.ready(bank)
        world.banks[bank].host.on_data = look
        await fep.submit("T1", bank=bank, body=money(bank))
        await end_of(fep, "T1")
    state, reference, sent_at, frame = seen[0]
    assert (state, reference, sent_at) == ("sending", client_ref(ENTERPRISE, ID), 1)
    assert bytes(received).startswith(frame), "the very bytes that leave are stored"


async def test_the_bytes_of_both_ways_are_kept_with_their_digests(world: World) -> None:
    async with world.fep() as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await end_of(fep, "T1")
        chain = (await fep.service.why(None, ID))["events"]
    kept = world.on_disk("select direction, digest, correlation from message order by seq")
    assert [row[0] for row in kept] == ["sent", "received"]
    assert kept[0][2] == kept[1][2]
    digests = {event["event"]: event.get("digest") for event in chain}
    assert (digests["send_begun"], digests["bank_done"]) == (kept[0][1], kept[1][1])
    assert all(event["configuration"] == "test" for event in chain)


# -- no answer is not "no" ---------------------------------------------------------------------


@pytest.mark.req("FEP-25", "LAND-51")
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize(
    "fault", [Fault.SILENT_AFTER_BOOKING, Fault.CLOSE_AFTER_BOOKING, Fault.UNKNOWN_AFTER_BOOKING]
)
async def test_a_lost_answer_is_unknown_until_the_bank_is_asked_and_booked_once(
    world: World, bank: BankName, fault: Fault
) -> None:
    async with world.fep(banks=[bank], reply_timeout_s=0.5) as fep:
        await fep.ready(bank)
        client = fep.client()
        faults = world.banks[bank].faults
        faults[fault] = 1.0
        await fep.submit("T1", bank=bank, body=money(bank))
        await until(lambda: world.booked("T1") == 1)
        faults.clear()
        told = await client.result("T1")
        assert told.state is State.SUCCEEDED
        assert told.result["client_ref"] == client_ref(ENTERPRISE, ID)
        events = await fep.events("T1")
        assert events.count("send_begun") == 1
        assert events[events.index("send_begun") + 1] == "outcome_lost"
        assert events[-1] == "proved_done"
        assert world.booked("T1") == 1
        await end_of(fep, "T1")


@pytest.mark.req("FEP-25", "LAND-51", "LAND-52")
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("fault", [Fault.SILENT_BEFORE_BOOKING, Fault.CLOSE_BEFORE_BOOKING])
async def test_what_never_arrived_is_refused_only_when_no_record_is_proof(
    world: World, bank: BankName, fault: Fault
) -> None:
    async with world.fep(banks=[bank], reply_timeout_s=0.5) as fep:
        await fep.ready(bank)
        client = fep.client()
        faults = world.banks[bank].faults
        faults[fault] = 1.0
        await fep.submit("T1", bank=bank, body=money(bank))
        await fep.becomes("T1", State.UNKNOWN)
        faults.clear()
        told = await client.result("T1")
        assert (told.state, told.result) == (State.REJECTED, None)
        found = await end_of(fep, "T1")
        waited = from_text(found["updated_at"]) - from_text(found["sent_at"])
        assert waited >= dt.timedelta(seconds=0.3), "the card's no_record_after_s"
        assert (await fep.events("T1"))[-1] == "proved_refused"
        assert world.booked("T1") == 0


@pytest.mark.req("FEP-25", "LAND-51")
async def test_no_record_is_never_proof_where_the_card_says_so(world: World) -> None:
    card = {"inquiry": {"no_record": "never", "horizon_s": 0.4}}
    async with world.fep(reply_timeout_s=0.3, card=card) as fep:
        await fep.ready()
        faults = world.banks[PINGAN].faults
        faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.UNKNOWN)
        faults.clear()
        await until(lambda: AlarmKind.UNKNOWN_OVERDUE in fep.alarm_kinds(), "a person must look")
        await until(lambda: fep.task("T1").inquiries >= 4)
        assert (await fep.get("T1"))["state"] == "unknown"
        await fep.service.resolve("li", ID, State.REJECTED, "not in the bank's statement")
        # While the bank is being asked it says "try again".
        await until(lambda: not fep.task("T1").claimed)
        assert await fep.service.confirm("wang", ID) is State.REJECTED
        assert AlarmKind.UNKNOWN_OVERDUE not in fep.alarm_kinds()
        await end_of(fep, "T1")


async def test_a_payment_open_for_too_long_is_told_also_when_the_bank_can_not_be_asked(
    world: World,
) -> None:
    card = {"inquiry": {"horizon_s": 0.6, "accepted_interval_s": 0.05}}
    async with world.fep(card=card) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.LANDED] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.ACCEPTED)
        fep.lane.drain()
        await until(lambda: AlarmKind.UNKNOWN_OVERDUE in fep.alarm_kinds())
        await until(lambda: not fep.lane._timers, "nobody goes on looking")
    # Nor does a restart forget it, with the key out from the start.
    async with world.fep(run=False, card=card) as fep:
        fep.alarms.clear(AlarmKind.UNKNOWN_OVERDUE, "T1")
        fep.take_key()
        await fep.start()
        await until(lambda: AlarmKind.UNKNOWN_OVERDUE in fep.alarm_kinds())


@pytest.mark.parametrize("workers", [1, 4])
async def test_payments_that_stay_open_keep_no_new_one_from_being_sent(
    world: World, workers: int
) -> None:
    """As those that wait for an approval at the bank: many are asked after all the time."""
    # More than can be asked after in the time after which each is to be asked again.
    card = {"throttle": {"query_gap_s": 0.05}, "inquiry": {"interval_max_s": 0.1}}
    codec = changed(says(PaymentState.PROCESSING))
    async with world.fep(card=card, codec=codec, workers=workers) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.LANDED] = 1.0
        for number in range(12):
            await fep.submit(f"OPEN-{number}", body=transfer(f"{number + 1}.00"))
        for number in range(12):
            await fep.becomes(f"OPEN-{number}", State.ACCEPTED)
        await until(lambda: len(fep.lane._inquiries) > workers, "they are behind")
        world.banks[PINGAN].faults.clear()
        await fep.submit("T1", body=transfer("99.00"))
        await fep.submit("ASK", body=balance())
        await fep.becomes("T1", State.SUCCEEDED)
        await fep.becomes("ASK", State.SUCCEEDED)
        asked = [fep.task(f"OPEN-{number}").inquiries for number in range(12)]
        await until(
            lambda: all(fep.task(f"OPEN-{n}").inquiries > asked[n] for n in range(12)),
            "and those are asked after all the same",
        )


async def test_a_bank_that_is_drained_between_two_inquiries_hides_no_overdue_payment(
    world: World,
) -> None:
    seldom = {"backoff_factor": 1000.0, "interval_max_s": 500.0}
    card = {"inquiry": {"no_record": "never", "horizon_s": 0.6, **seldom}}
    async with world.fep(card=card, reply_timeout_s=0.3) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.UNKNOWN)
        world.banks[PINGAN].faults.clear()
        await until(lambda: fep.task("T1").inquiries == 1)
        assert AlarmKind.UNKNOWN_OVERDUE not in fep.alarm_kinds()
        fep.lane.drain()
        await until(lambda: AlarmKind.UNKNOWN_OVERDUE in fep.alarm_kinds())
        assert len(fep.lane._horizon_looks) == 0


async def test_a_refusal_is_told_and_moves_nothing(world: World) -> None:
    async with world.fep(banks=BANKS) as fep:
        client = fep.client()
        for bank in BANKS:
            await fep.submit(f"POOR-{bank}", bank=bank, body=money(bank, "99999999.00"))
            told = await client.result(f"POOR-{bank}")
            assert (told.state, told.result) == (State.REJECTED, None)
            assert told.bank_code
            assert told.bank_message
            assert world.booked(f"POOR-{bank}") == 0
            await end_of(fep, f"POOR-{bank}")


async def test_what_lands_at_the_bank_is_accepted_until_a_person_there_decides(
    world: World,
) -> None:
    async with world.fep(banks=BANKS) as fep:
        client = fep.client()
        for bank, ok in ((PINGAN, True), (CMB, False)):
            task_id = f"L-{bank}"
            world.banks[bank].faults[Fault.LANDED] = 1.0
            await fep.submit(task_id, bank=bank, body=money(bank))
            await fep.becomes(task_id, State.ACCEPTED)
            await fep.inquired(task_id, 2)
            assert (await fep.get(task_id))["state"] == "accepted"
            reference = client_ref(ENTERPRISE, TaskId(task_id))
            landed = world.book.payment(bank, reference)
            assert landed is not None
            assert landed.state is BookedState.LANDED
            world.book.settle_landed(bank, reference, SystemClock().now(), ok=ok)
            told = await client.result(task_id)
            assert told.state is (State.SUCCEEDED if ok else State.REJECTED)
            assert world.booked(task_id) == int(ok)


async def test_an_accepted_payment_is_asked_for_by_the_banks_reference(world: World) -> None:
    async with world.fep() as fep:
        await fep.submit("T1", body=transfer("2.00", payee=STRANGER))
        found = await end_of(fep, "T1")
        assert found["state"] == "succeeded"
        assert found["bank_ref"]
        events = await fep.events("T1")
        assert events[-2:] == ["bank_accepted", "proved_done"]


@pytest.mark.req("LAND-54")
async def test_an_answer_that_comes_late_is_used(world: World) -> None:
    async with world.fep(reply_timeout_s=0.3, card=SLOW_EVIDENCE) as fep:
        await fep.ready()
        client = fep.client()
        world.banks[PINGAN].host.changes = lambda answers: [
            attrs.evolve(answer, delay_s=0.9) for answer in answers
        ]
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.UNKNOWN)
        told = await client.result("T1")
        assert told.state is State.SUCCEEDED
        chain = (await fep.service.why(None, ID))["events"]
        assert chain[-1]["cause"] == "the bank's late answer says: done"
        assert AlarmKind.UNMATCHED_REPLY not in fep.alarm_kinds()
        kept = world.on_disk("select count(*) from message where direction = 'received'")
        assert kept[0][0] >= 1
        await end_of(fep, "T1")


async def test_an_answer_that_belongs_to_nothing_is_kept_and_told(world: World) -> None:
    async with world.fep() as fep:
        await fep.ready()

        def twice(answers: list[Answer]) -> list[Answer]:
            return [*answers, *answers]

        world.banks[PINGAN].host.changes = twice
        await fep.submit("T1", Kind.BALANCE, body=balance())
        await end_of(fep, "T1")
        await until(lambda: AlarmKind.UNMATCHED_REPLY in fep.alarm_kinds())
        kept = world.on_disk("select bank, bytes from message where task_seq is null")
        assert [row[0] for row in kept] == ["pingan"]
        assert str(OPENING).encode() in kept[0][1]


async def test_an_answer_nobody_waits_for_is_kept_although_the_disk_was_full(
    world: World,
) -> None:
    async with world.fep() as fep:
        await fep.fill_disk()
        for number in range(3):
            reply = Reply(f"c{number}", "4004", "000000", "", b"x" * 5000)
            await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        await fep.empty_disk()
        kept = "select correlation from message where task_seq is null order by seq"
        await until(lambda: world.on_disk(kept) == [("c0",), ("c1",), ("c2",)])


# -- what does not leave -----------------------------------------------------------------------


@pytest.mark.req("FEP-25")
@pytest.mark.parametrize(
    ("bank", "body"),
    [
        (PINGAN, transfer("1.00", purpose="用途🙂")),
        (CMB, money(CMB) | {"params": money(CMB)["params"] | {"purpose": "用途🙂"}}),
    ],
    ids=["pingan", "cmb"],
)
async def test_what_the_adapter_can_not_carry_fails_and_nothing_is_sent(
    world: World, bank: BankName, body: dict[str, Any]
) -> None:
    async with world.fep(banks=[bank]) as fep:
        await fep.ready(bank)
        before = fep.units[bank].link.requests
        client = fep.client(bodies={"T1": body})
        await fep.submit("T1", Kind.TRANSFER, bank)
        told = await client.result("T1")
        assert (told.state, told.bank_code) == (State.FAILED, "BAD_BODY")
        assert told.bank_message
        assert fep.units[bank].link.requests == before
        assert world.on_disk("select count(*) from message") == [(0,)]
        await end_of(fep, "T1")


async def test_a_payment_whose_link_broke_before_its_first_byte_goes_out_once_later(
    world: World,
) -> None:
    async with world.fep() as fep:
        await fep.ready()
        with held(fep.store):
            await trio.testing.wait_all_tasks_blocked()
            fep.service.submit(
                ERP, [fep.submission("T1", body=transfer("1.00"))], lambda _answers: None
            )
        await until(lambda: len(fep.service._open))
        with held(fep.store):
            await until(lambda: fep.lane._in_hands and fep.store._waiting)
            connection = fep.link._connection
            assert connection is not None
            connection.end("the test ends it")
        found = await end_of(fep, "T1")
        assert found["state"] == "succeeded"
        events = await fep.events("T1")
        assert events.count("send_begun") == events.count("nothing_sent") + 1
        assert world.booked("T1") == 1


async def test_a_payment_waits_for_the_key_and_can_be_cancelled_meanwhile(world: World) -> None:
    """A card that does not sign: the task goes round, and its end must not surprise the lane."""
    async with world.fep(codec=unsigned) as fep:
        await fep.ready()
        for task_id in ("T1", "T2"):
            await fep.submit(task_id, body=transfer("1.00"), expires_s=3600)
        await until(lambda: len(fep.lane._timers) == 2, "both wait for the next try")
        assert (await fep.get("T1"))["state"] == "queued"
        await fep.service.cancel(ERP, ID, "test")
        _Unsigned.broken = False
        found = await end_of(fep, "T2")
        assert (found["state"], world.booked("T2"), world.booked("T1")) == ("succeeded", 1, 0)


class _Unsigned:
    """A codec whose payments ask for a signature that the key can't make, while it is broken."""

    broken = True

    def __init__(self, inner: BankCodec) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, operation: Operation, context: Any) -> Any:
        draft = self._inner.prepare(operation, context)
        if draft.to_sign is not None and _Unsigned.broken:
            return attrs.evolve(draft, algorithm=SignAlgorithm.SM2_SM3)
        return draft


def unsigned(codec: BankCodec) -> BankCodec:
    _Unsigned.broken = True
    return cast("BankCodec", _Unsigned(codec))


async def test_a_payment_does_not_leave_a_bank_that_was_drained_while_it_waited(
    world: World,
) -> None:
    card = {"throttle": {"submit_gap_s": 0.4}}
    async with world.fep(card=card) as fep:
        await fep.ready()
        ids = ["T1", "T2", "T3"]
        await fep.admit(*(fep.submission(one, body=transfer("1.00")) for one in ids))
        await until(lambda: len(fep.lane._in_hands) >= 2, "they wait for the gap")
        await fep.service.set_drained(PINGAN, value=True)
        with trio.fail_after(10):
            await fep.lane.wait_idle()
        left = sum(world.booked(one) for one in ids)
        await trio.sleep(1.0)
        assert sum(world.booked(one) for one in ids) == left < 3
        await fep.service.set_drained(PINGAN, value=False)
        for one in ids:
            await end_of(fep, one)
            assert world.booked(one) == 1


async def test_payments_keep_the_banks_gap(world: World) -> None:
    card = {"throttle": {"submit_gap_s": 0.5}}
    arrived: list[float] = []
    async with world.fep(card=card) as fep:
        await fep.ready()
        world.banks[PINGAN].host.on_data = lambda _data: arrived.append(trio.current_time())
        ids = ["T1", "T2", "T3"]
        await fep.admit(*(fep.submission(one, body=transfer("1.00")) for one in ids))
        for one in ids:
            await end_of(fep, one)
    # The turns are a second apart; half of it is left to a machine that is slow at the first.
    assert arrived[-1] - arrived[0] >= 0.5


# -- a full disk -------------------------------------------------------------------------------


@pytest.mark.req("FEP-25")
async def test_a_payment_that_finds_the_disk_full_does_not_leave(world: World) -> None:
    clock = MovedClock()
    async with world.fep(clock=clock) as fep:
        await fep.ready()
        await fep.service.set_drained(PINGAN, value=True)
        await fep.submit("T1", body=transfer("1.00"), expires_s=10 * 86_400)
        await fep.fill_disk()
        fep.lane.resume()
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        await until(lambda: not fep.lane._in_hands)
        assert world.booked("T1") == 0
        clock.moved = dt.timedelta(hours=30)
        await fep.empty_disk()
        found = await end_of(fep, "T1")
        assert (found["state"], world.booked("T1")) == ("succeeded", 1)
        # Evidence goes by this time: it must be the sending's, not that of the first try.
        assert clock.now() - from_text(found["sent_at"]) < dt.timedelta(hours=1)
        assert AlarmKind.STORE_FULL not in fep.alarm_kinds()


async def test_an_answer_that_finds_the_disk_full_is_written_when_there_is_room(
    world: World,
) -> None:
    async with world.fep() as fep:
        await fep.ready()
        went = trio.Event()

        async def fill() -> None:
            await fep.fill_disk()
            went.set()

        world.banks[PINGAN].host.changes = lambda answers: [
            attrs.evolve(answer, delay_s=0.5) for answer in answers
        ]
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.SENDING)
        fep.nursery.start_soon(fill)
        await went.wait()
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        assert (await fep.get("T1"))["state"] == "sending"
        await fep.empty_disk()
        assert (await end_of(fep, "T1"))["state"] == "succeeded"


async def test_an_inquiry_that_finds_the_disk_full_goes_on_when_there_is_room(
    world: World,
) -> None:
    async with world.fep() as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.LANDED] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.ACCEPTED)
        await fep.fill_disk()
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        await fep.empty_disk()
        asked = fep.task("T1").inquiries
        await until(lambda: fep.task("T1").inquiries > asked + 1)
        reference = client_ref(ENTERPRISE, ID)
        world.book.settle_landed(PINGAN, reference, SystemClock().now(), ok=True)
        assert (await end_of(fep, "T1"))["state"] == "succeeded"


# -- clocks ------------------------------------------------------------------------------------


@pytest.mark.req("LAND-52")
async def test_a_wall_clock_that_leaps_forward_makes_no_record_no_proof(world: World) -> None:
    """The bank does not find the payment yet; the machine's clock says that a day has passed."""
    clock = MovedClock()
    card = {"inquiry": {"no_record_after_s": 3600.0}}
    async with world.fep(clock=clock, reply_timeout_s=0.3, card=card) as fep:
        await fep.ready()
        faults = world.banks[PINGAN].faults
        faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.UNKNOWN)
        faults.clear()
        clock.moved = dt.timedelta(days=1)
        asked = fep.task("T1").inquiries
        await until(lambda: fep.task("T1").inquiries >= asked + 4)
        assert (await fep.get("T1"))["state"] == "unknown"


async def test_a_wall_clock_that_falls_back_does_not_put_off_the_inquiry(world: World) -> None:
    clock = MovedClock()
    clock.moved = dt.timedelta(days=300)
    async with world.fep(clock=clock, card=SLOW_EVIDENCE) as fep:
        await fep.submit("T1", body=transfer("1.00", payee=STRANGER))
        await fep.becomes("T1", State.ACCEPTED)
    async with world.fep() as fep:
        assert (await end_of(fep, "T1"))["state"] == "succeeded"


# -- queries -----------------------------------------------------------------------------------


@pytest.mark.req("FEP-26", "POOL-02")
@pytest.mark.parametrize(("bank", "account"), [(PINGAN, PAYER), (CMB, CMB_PAYER)])
async def test_a_balance_and_a_statement(
    world: World, bank: BankName, account: AccountNumber
) -> None:
    async with world.fep(banks=[bank]) as fep:
        client = fep.client()
        await fep.submit("P1", bank=bank, body=money(bank))
        await client.result("P1")
        await fep.submit("B1", bank=bank, body=balance(account))
        told = await client.result("B1")
        assert told.result["available"] == str(attrs.evolve(OPENING, fen=OPENING.fen - 1250))
        await fep.submit("S1", bank=bank, body=statement(account))
        lines = (await client.result("S1")).result
        assert lines["complete"] is True
        assert [one["amount"] for one in lines["entries"]] == ["12.50"]


async def test_a_statement_of_days_to_come_is_refused_and_not_empty(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a bank has nothing to be asked for them."""
    async with world.fep() as fep:
        erp = fep.client()
        await fep.ready()
        monkeypatch.setattr(type(fep.lane.parts.codec), "split", lambda *_given: [])
        await fep.submit("S1", body=statement())
        told = await erp.result("S1")
        assert (told.state, told.bank_code) == (State.FAILED, "BAD_BODY")
        assert "of days to come a bank tells nothing" in told.bank_message


async def test_a_long_statement_is_asked_page_by_page(world: World) -> None:
    async with world.fep() as fep:
        now = SystemClock().now()
        for number in range(70):
            world.book.pay(PINGAN, payment(number), now)
        client = fep.client()
        await fep.submit("S1", body=statement())
        told = (await client.result("S1")).result
        assert (told["complete"], len(told["entries"])) == (True, 70)
        assert fep.link.requests >= 3


def payment(number: int) -> PaymentRequest:
    """Return a payment that somebody else ordered at the bank."""
    name = ACCOUNTS[PAYEE].name
    return PaymentRequest(f"X{number}", PAYER, PAYEE, name, "平安银行", Cny(100), "")


async def test_what_became_of_a_transfer_is_asked_by_its_client_only(world: World) -> None:
    async with world.fep(banks=BANKS) as fep:
        client, other = fep.client(), fep.client(OTHER)
        await fep.submit("T1", body=transfer("1.00"))
        await client.result("T1")
        await fep.submit("OWN", body=status_of("T1"))
        told = await client.result("OWN")
        assert told.result["state"] == "succeeded"
        await fep.submit("NOT-OWN", body=status_of("T1"), client=OTHER)
        assert (await other.result("NOT-OWN")).bank_code == "BAD_BODY"
        await fep.submit("NO-SUCH", body=status_of("NOTHING"))
        await fep.submit("NO-TRANSFER", body=status_of("OWN"))
        await fep.submit("OTHER-BANK", bank=CMB, body=status_of("T1"))
        for task_id in ("NO-SUCH", "NO-TRANSFER", "OTHER-BANK"):
            told = await client.result(task_id)
            assert (told.state, told.bank_code) == (State.FAILED, "BAD_BODY")
        await fep.service.set_drained(PINGAN, value=True)
        await fep.submit("UNSENT", body=transfer("1.00"))
        await fep.service.cancel(None, TaskId("UNSENT"), "test")
        await fep.service.set_drained(PINGAN, value=False)
        await fep.submit("OF-UNSENT", body=status_of("UNSENT"))
        assert "never sent" in (await client.result("OF-UNSENT")).bank_message


async def test_a_query_that_came_too_soon_is_asked_again(world: World) -> None:
    async with world.fep() as fep:
        await fep.ready()
        faults = world.banks[PINGAN].faults
        faults[Fault.THROTTLED] = 1.0
        await fep.submit("T1", body=balance())
        await until(lambda: fep.task("T1").attempts == 1)
        faults.clear()
        assert (await end_of(fep, "T1"))["state"] == "succeeded"


async def test_queries_without_an_answer_are_given_up_in_the_end_and_can_be_cancelled_before(
    world: World,
) -> None:
    async with world.fep(reply_timeout_s=0.1) as fep:
        await fep.ready()
        client = fep.client()
        world.banks[PINGAN].host.changes = lambda _answers: []
        fep.lane.drain()
        await fep.submit("GIVEN-UP", body=balance())
        await fep.submit("CANCELLED", body=balance())
        fep.task("GIVEN-UP").attempts = QUERY_ATTEMPTS_MAX - 2
        fep.lane.resume()
        await until(lambda: fep.task("CANCELLED").attempts == 1 and not fep.lane._in_hands)
        await fep.service.cancel(ERP, TaskId("CANCELLED"), "test")
        told = await client.result("GIVEN-UP")
        assert (told.state, told.bank_code, told.result) == (State.FAILED, "NO_REPLY", None)
        assert fep.link.requests == 2 + 1
        await end_of(fep, "GIVEN-UP")


# -- the lane's own life -----------------------------------------------------------------------


class _Crashing:
    """A codec with a defect: it can't read the next answer to a payment."""

    crashes = 1

    def __init__(self, inner: BankCodec) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        if reply.trade == "4004" and _Crashing.crashes:
            _Crashing.crashes -= 1
            raise ZeroDivisionError
        return self._inner.outcome(operation, reply)


@pytest.mark.req("FEP-25")
async def test_a_lane_that_crashed_settles_what_it_held(world: World) -> None:
    """Run as under the supervisor: the payment it held is unknown, the others lose nothing."""
    _Crashing.crashes = 1
    async with world.fep(run=False) as fep:
        unit = fep.make(PINGAN, codec=lambda codec: cast("BankCodec", _Crashing(codec)))
        crashes = 0

        async def supervised() -> None:
            nonlocal crashes
            while True:
                try:
                    await unit.lane.run()
                except* ZeroDivisionError:
                    crashes += 1

        await fep.start_link(unit)
        fep.nursery.start_soon(supervised)
        ids = [f"T{n}" for n in range(8)]
        await fep.admit(*(fep.submission(one, body=transfer("1.00")) for one in ids))
        for one in ids:
            assert (await end_of(fep, one))["state"] == "succeeded"
            assert world.booked(one) == 1
        assert crashes == 1
        lost = [one for one in ids if "outcome_lost" in await fep.events(one)]
        assert lost
        with trio.fail_after(5):
            await unit.lane.wait_idle()


class _Poisoned(_Crashing):
    """A codec with a defect: it can't prepare a payment of one amount."""

    def prepare(self, operation: Operation, context: Context) -> Draft:
        if isinstance(operation, PaymentOrder) and str(operation.amount) == "66.00":
            raise ZeroDivisionError
        return self._inner.prepare(operation, context)


async def failing(fep: Fep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the lane as the daemon does; it is not restarted after a sixth crash."""
    monkeypatch.setattr(supervisor, "RESTART_PAUSE_SECONDS", 0.01)
    await fep.start_link(fep.units[PINGAN])
    await fep.ready()
    supervise = partial(supervisor.supervise, leave=fep.lane.leave)
    await fep.nursery.start(supervise, "bank:pingan", fep.lane.run, fep.alarms)


async def failed(fep: Fep) -> None:
    await until(lambda: AlarmKind.LANE_FAILED in fep.alarm_kinds())
    with trio.fail_after(5):
        await fep.lane.wait_idle()


@pytest.mark.req("FEP-23", "FEP-25")
async def test_persons_can_act_on_what_a_lane_held_that_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Crashing.crashes = 0
    codec = changed(says(PaymentState.UNKNOWN))
    card = {"inquiry": {"no_record": "never", "cool_down_s": 0.01, "interval_max_s": 0.01}}
    async with world.fep(run=False) as fep:
        fep.make(
            PINGAN,
            card,
            codec=lambda c: cast("BankCodec", _Poisoned(codec(c))),
            reply_timeout_s=0.3,
        )
        await failing(fep, monkeypatch)
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        ids = [TaskId(f"U{n}") for n in range(8)]
        for task_id in ids:
            await fep.submit(task_id, body=transfer("1.00"))
        for task_id in ids:
            await fep.becomes(task_id, State.UNKNOWN)
        await fep.submit("POISON", body=transfer("66.00"))
        await failed(fep)
        assert await fep.service.cancel(None, TaskId("POISON"), "li") is State.CANCELLED
        for task_id in ids:
            await fep.service.resolve("li", task_id, State.SUCCEEDED, "statement of today")
            assert await fep.service.confirm("wang", task_id) is State.SUCCEEDED
        fep.agrees()


@pytest.mark.req("FEP-23", "FEP-25")
async def test_what_was_being_sent_when_a_lane_failed_is_unknown_and_can_be_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an answer came meanwhile on which the adapter fails."""
    _Crashing.crashes = supervisor.RESTARTS_MAX + 2
    answers: list[Answer] = []

    def swallow(given: list[Answer]) -> list[Answer]:
        answers.extend(given)
        return []

    async with world.fep(run=False) as fep:
        fep.make(PINGAN, SLOW_EVIDENCE, codec=lambda c: cast("BankCodec", _Crashing(c)))
        await failing(fep, monkeypatch)
        for number in range(supervisor.RESTARTS_MAX):
            await fep.submit(f"T{number}", body=transfer("1.00"))
            await fep.becomes(f"T{number}", State.UNKNOWN)
        world.banks[PINGAN].host.changes = swallow
        await fep.submit("WAITS", body=transfer("1.00"))
        await until(lambda: answers)
        world.banks[PINGAN].host.changes = lambda given: given
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, answers[0].data)))
        await until(lambda: fep.lane._late)
        await fep.submit("LAST", body=transfer("1.00"))
        await failed(fep)
        for task_id in (TaskId("WAITS"), TaskId("LAST")):
            await fep.becomes(task_id, State.UNKNOWN)
            await fep.service.resolve("li", task_id, State.SUCCEEDED, "statement of today")
            assert await fep.service.confirm("wang", task_id) is State.SUCCEEDED
        await until(lambda: not fep.lane._late)
        assert _Crashing.crashes == 0
        fep.agrees()


@pytest.mark.req("FEP-25")
async def test_a_new_lane_waits_for_what_the_old_one_left_with_the_disk(world: World) -> None:
    """The configuration changed while an answer was being written: it counts."""
    async with world.fep() as fep:
        await fep.ready()
        client = fep.client()
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.SENDING, State.SUCCEEDED)
        for number in range(2, 12):
            task_id = f"T{number}"
            await fep.submit(task_id, body=transfer("1.00"))
            await world.until_booked(task_id)
            with held(fep.store):
                await trio.testing.wait_all_tasks_blocked()
                await fep.end()
                fep.make(PINGAN)
                fep.nursery.start_soon(fep.start)
                await trio.testing.wait_all_tasks_blocked()
            assert (await client.result(task_id)).state is State.SUCCEEDED
            assert (await fep.events(task_id)).count("send_begun") == 1
            await fep.ready()
        fep.agrees()


@pytest.mark.req("FEP-25")
async def test_a_payment_that_was_stopped_before_its_first_byte_is_not_unknown(
    world: World,
) -> None:
    """Ended while "sending" was being written: it is proved that nothing left."""
    async with world.fep(card=SLOW_EVIDENCE) as fep:
        await fep.ready()
        fep.lane.drain()
        await fep.submit("T1", body=transfer("1.00"))
        with held(fep.store):
            await trio.testing.wait_all_tasks_blocked()
            fep.lane.resume()
            await until(lambda: fep.lane._in_hands and len(fep.store._waiting) == 1)
            fep.units[PINGAN].scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        await fep.end()
        assert (await fep.becomes("T1", State.FETCHED))["client_ref"]
        assert (await fep.events("T1"))[-1] == "nothing_sent"
        fep.make(PINGAN)
        await fep.start()
        assert (await end_of(fep, "T1"))["state"] == "succeeded"
        assert world.booked("T1") == 1


async def test_a_changed_bank_takes_over_what_is_under_way(world: World) -> None:
    async with world.fep(workers=1) as fep:
        await fep.ready()
        client = fep.client()
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("FLIES", body=transfer("1.00"))
        await until(lambda: world.booked("FLIES") == 1)
        await fep.submit("WAITS", body=transfer("2.00"))
        await fep.submit("ASKED")
        await until(lambda: client.asked)
        world.banks[PINGAN].faults.clear()
        await fep.end()
        fep.make(PINGAN, workers=2)
        await fep.start()
        for one in ("FLIES", "WAITS"):
            assert (await end_of(fep, one))["state"] == "succeeded"
            assert world.booked(one) == 1
        await fep.service.fetched(ERP, [(TaskId("ASKED"), balance())])
        assert (await client.result("ASKED")).state is State.SUCCEEDED
        assert client.attempts("ASKED") == [1]


async def test_an_inquiry_that_finds_the_connection_gone_does_not_spin(world: World) -> None:
    """Between the end of a connection and the link's knowing of it the link still looks open."""
    async with world.fep(workers=1) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.LANDED] = 1.0
        await fep.submit("T1", body=transfer("1.00"))
        await fep.becomes("T1", State.ACCEPTED)
        await until(lambda: fep.task("T1").inquiries > 0 and not fep.lane._in_hands)
        await trio.testing.wait_all_tasks_blocked()
        connection = fep.link._connection
        assert connection is not None
        connection.end("the test ends it")
        assert fep.link.is_open
        fep.lane._inquiries.append(fep.task("T1"))
        fep.lane._idle.unpark()
        await fep.ready()
        reference = client_ref(ENTERPRISE, ID)
        world.book.settle_landed(PINGAN, reference, SystemClock().now(), ok=True)
        assert (await end_of(fep, "T1"))["state"] == "succeeded"


async def test_who_waits_for_a_lane_to_be_idle_is_told(world: World) -> None:
    async with world.fep(workers=2) as fep:
        await fep.ready()
        world.banks[PINGAN].host.changes = lambda answers: [
            attrs.evolve(answer, delay_s=0.2) for answer in answers
        ]
        await fep.submit("T1", body=balance())
        await until(lambda: fep.lane.in_flight == 1)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(10):
                nursery.start_soon(fep.lane.wait_idle)
                await trio.testing.wait_all_tasks_blocked()
                await fep.submit("T2", body=balance())
                await until(lambda: fep.lane.in_flight == 2)
                fep.lane.drain()
        assert fep.lane.in_flight == 0


# -- many --------------------------------------------------------------------------------------


@pytest.mark.req("FEP-19", "FEP-24")
async def test_bodies_are_asked_for_as_the_bank_gets_on(world: World) -> None:
    """More tasks than are offered at once, and a bank that is slower than the client."""
    many = OFFERS_OUTSTANDING_MAX + 40
    async with world.fep(workers=8) as fep:
        await fep.ready()
        ids = [f"T{n}" for n in range(many)]
        released = False
        world.banks[PINGAN].host.changes = lambda answers: [
            answer if released else attrs.evolve(answer, delay_s=1.0) for answer in answers
        ]
        await fep.admit(*(fep.submission(one) for one in ids))
        client = fep.client(bodies={one: balance() for one in ids})
        await until(lambda: not fep.lane.offered and fep.lane.queue.fetched)
        await trio.testing.wait_all_tasks_blocked()
        assert len(client.asked) < many
        released = True
        await until(lambda: len(client.told) == many)
        assert {one.state for one in client.told} == {State.SUCCEEDED}
        fep.agrees()


async def test_bodies_that_need_not_be_sent_any_more_make_room(world: World) -> None:
    """Fetched in plenty and cancelled before their turn: the next are asked for."""
    async with world.fep() as fep:
        await fep.ready()
        one = await fep.admitted("ONE")
        for number in range(OFFERS_OUTSTANDING_MAX):
            gone = structs.replace(one, seq=1000 + number, state=State.FETCHED)
            fep.lane.queue.add_to_send(gone)
            gone.state = State.CANCELLED
        client = fep.client(bodies={"ONE": balance()})
        await trio.testing.wait_all_tasks_blocked()
        assert client.asked == []
        fep.lane._idle.unpark()  # as whatever is to be sent next would
        assert (await client.result("ONE")).state is State.SUCCEEDED


@pytest.mark.req("FEP-23")
async def test_one_clients_backlog_does_not_hold_the_single_task_of_another(world: World) -> None:
    """Neither its bodies that wait to be sent, nor its ids that wait to be offered."""
    async with world.fep(workers=1) as fep:
        await fep.ready()
        await fep.service.set_drained(PINGAN, value=True)
        backlog = [f"A{n}" for n in range(OFFERS_OUTSTANDING_MAX + 50)]
        await fep.admit(*(fep.submission(one, body=balance()) for one in backlog))
        await fep.submit("SINGLE", client=OTHER)
        other = fep.client(OTHER, bodies={"SINGLE": balance()})
        await fep.service.set_drained(PINGAN, value=False)
        await other.result("SINGLE")
        done = world.on_disk("select count(*) from task where state = 'succeeded'")[0][0]
        assert done < len(backlog) / 2


@pytest.mark.req("FEP-19", "FEP-25")
@pytest.mark.parametrize("bank", BANKS)
async def test_a_storm_of_faults_leaves_each_payment_once_or_never(
    world: World, bank: BankName
) -> None:
    """All faults at random, and a restart in the middle: the book and the tasks agree."""
    rng = random.Random(20260302)
    faults = {
        Fault.SILENT_BEFORE_BOOKING: 0.1,
        Fault.SILENT_AFTER_BOOKING: 0.1,
        Fault.CLOSE_BEFORE_BOOKING: 0.1,
        Fault.CLOSE_AFTER_BOOKING: 0.1,
        Fault.UNKNOWN_AFTER_BOOKING: 0.1,
    }
    ids = [f"T{n}" for n in range(30)]
    bodies = {one: money(bank, f"{rng.randrange(1, 99)}.00") for one in ids}
    async with world.fep(banks=[bank], reply_timeout_s=0.5) as fep:
        world.banks[bank].faults.update(faults)
        fep.client(bodies=bodies)
        await fep.admit(*(fep.submission(one, Kind.TRANSFER, bank) for one in ids))
        await until(lambda: len(fep.service._open) <= 20)
    async with world.fep(banks=[bank], reply_timeout_s=0.5) as fep:
        fep.client(bodies=bodies)
        await until(lambda: len(fep.service._open) <= 10)
        world.banks[bank].faults.clear()
        for one in ids:
            found = await fep.becomes(one, *FINAL)
            assert world.booked(one) == (1 if found["state"] == "succeeded" else 0), found
            assert found["state"] in ("succeeded", "rejected")
    assert len(world.on_disk("select 1 from task_event where event = 'outcome_lost'")) > 3


# -- the hours in which a bank wants to be left alone ---------------------------------------------


async def test_in_quiet_hours_payments_leave_and_nobody_asks_after_them(world: World) -> None:
    """Half a second before their end: payments and balances go, status and statement wait."""
    clock = MovedClock()
    now = clock.now()
    end = dt.datetime.combine(to_shanghai(now).date(), dt.time(1), tzinfo=SHANGHAI)
    clock.moved = end - dt.timedelta(seconds=1.5) - now
    quiet = {"quiet_from": "00:00", "quiet_to": "01:00"}
    asked: list[bytes] = []
    async with world.fep(clock=clock, reply_timeout_s=0.2, card={"inquiry": quiet}) as fep:
        await fep.ready(PINGAN)
        world.banks[PINGAN].host.on_data = asked.append
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.UNKNOWN)
        for name, body in (("S", statement()), ("Q", status_of("T1")), ("B", balance(PAYER))):
            await fep.submit(name, body=body)
        await fep.becomes("B", State.SUCCEEDED)
        task = fep.service.open_task(TaskId("T1"))
        assert task is not None
        fep.units[PINGAN].lane.watch.search(task)
        await until(lambda: fep.units[PINGAN].lane.quiet_s() < 0.3)
        for name, state in (("T1", "unknown"), ("S", "queued"), ("Q", "queued")):
            assert (await fep.get(name))["state"] == state
        trades = {data[40:46].strip() for data in asked}
        assert trades == {b"4004", b"4001"}, "it was not asked, nor looked at"
        for name in ("T1", "S", "Q"):
            await fep.becomes(name, State.SUCCEEDED)
        assert fep.units[PINGAN].lane.quiet_s() == 0.0
        assert world.booked("T1") == 1


async def test_a_password_is_not_kept_with_the_bytes_of_a_payment(world: World) -> None:
    class Secretive:
        def __init__(self, inner: BankCodec) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def kept(self, frame: bytes) -> bytes:
            return frame.replace(PAYER.encode(), b"*" * len(PAYER))

    async with world.fep(codec=lambda inner: cast("BankCodec", Secretive(inner))) as fep:
        await fep.submit("T1", body=transfer("1.00"))
        await end_of(fep, "T1")
    [(sent,)] = world.on_disk("select bytes from message where direction = 'sent'")
    assert PAYER.encode() not in sent
    assert b"*" * len(PAYER) in sent
    assert world.booked("T1") == 1


async def test_a_bank_that_is_drained_twice_works_again_when_it_is_resumed(world: World) -> None:
    """Twice by an operator, or once and then by a configuration that is applied for another bank."""
    async with world.fep(banks=[PINGAN]) as fep:
        await fep.ready()
        await fep.service.set_drained(PINGAN, value=True)
        for number in range(6):
            await fep.submit(f"T{number}", body=money(PINGAN))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await fep.service.keep_drained()
        await fep.service.set_drained(PINGAN, value=True)
        await fep.service.set_drained(PINGAN, value=False)
        for number in range(6):
            await fep.becomes(f"T{number}", State.SUCCEEDED)


async def test_all_who_wait_for_the_changes_on_their_way_go_on(world: World) -> None:
    """Two lanes that crash of one cause."""
    async with world.fep(banks=[PINGAN, CMB]) as fep:
        await fep.ready()
        back: list[int] = []

        async def wait(number: int) -> None:
            await fep.service.settled()
            back.append(number)

        async with trio.open_nursery() as nursery:
            with held(fep.store):
                changes = fep.service._changes
                fep.service._hand_over(partial(changes.submit, [], "nothing"), lambda _: None)
                for number in range(2):
                    nursery.start_soon(wait, number)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                assert back == []
            with trio.fail_after(10):
                await until(lambda: len(back) == 2)
