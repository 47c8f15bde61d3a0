"""What proves a payment's end over restarts, late answers, clocks and persons; and what does not."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import attrs
import pytest
import sqlalchemy as sa
import trio
import trio.testing

from fep.adapters import registry
from fep.adapters.api import BankProfile, Outcome, Reply
from fep.adapters.host import Answer, Fault
from fep.alarms.state import AlarmKind
from fep.domain.ids import BankName, TaskId, client_ref
from fep.domain.order import Operation, PaymentOrder, PaymentState
from fep.links.mux import UnmatchedReply
from fep.machines.service import PlaceLostError
from fep.store.pace import Pace
from fep.tasks import service, store, watch
from fep.tasks.lane import NOT_SENT_RETRY_SECONDS
from fep.tasks.look import Look
from fep.tasks.matching import Absent
from fep.tasks.service import TaskRefusedError
from fep.tasks.state import State
from fep.tasks.task import QueryLostError, Task
from tests.store.held import held
from tests.tasks.bench import (
    ACCOUNTS,
    CARD,
    CMB,
    CMB_PAYER,
    ENTERPRISE,
    OPTIONS,
    PAYER,
    PINGAN,
    WAIT_SECONDS_MAX,
    Fep,
    MovedClock,
    World,
    money,
    until,
)
from tests.tasks.codecs import changed, says

pytestmark = pytest.mark.req("FEP-25", "LAND-51", "LAND-55")

BANKS = [PINGAN, CMB]
ID = TaskId("T1")
NEVER = {"inquiry": {"cool_down_s": 600.0, "accepted_interval_s": 600.0}}
"""A card by which nobody is asked while a test lasts."""


def asking(**inquiry: object) -> dict[str, dict[str, object]]:
    """Return a card by which only the status query tells."""
    return {"inquiry": {"statement_after": 0, **inquiry}}


def framed(bank: BankName, data: bytes) -> Reply:
    """Return the bank's bytes as this adapter's framer cuts them."""
    name, options = OPTIONS[bank]
    adapter = registry.adapter(name)
    profile = BankProfile(bank, adapter.card, adapter.options_class(**options), "4012", ACCOUNTS)
    [reply] = adapter.open(profile).framer().receive_data(data)
    return reply


class Tap:
    """Keeps what a bank answers to payments, and may keep it from being sent."""

    def __init__(self, world: World, bank: BankName, *, swallows: bool) -> None:
        self.answers: list[bytes] = []
        self.swallows = swallows
        self._reference = client_ref(ENTERPRISE, ID).encode()
        world.banks[bank].host.changes = self._change

    def _change(self, answers: list[Answer]) -> list[Answer]:
        mine = [one for one in answers if self._reference in one.data]
        self.answers += [one.data for one in mine]
        return [one for one in answers if one not in mine] if self.swallows else answers


async def lost(fep: Fep, bank: BankName) -> Tap:
    """Send T1, which the bank books; its answer does not come."""
    await fep.ready(bank)
    tap = Tap(fep.world, bank, swallows=True)
    await fep.submit("T1", bank=bank, body=money(bank))
    await fep.becomes("T1", State.UNKNOWN)
    tap.swallows = False
    return tap


# -- late answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("bank", BANKS)
async def test_an_answer_that_comes_after_a_restart_is_found_by_our_reference(
    world: World, bank: BankName
) -> None:
    async with world.fep(banks=[bank], card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, bank)
    async with world.fep(banks=[bank], card=NEVER) as fep:
        reply = framed(bank, tap.answers[0])
        await fep.unmatched.send(UnmatchedReply(bank, reply))
        if bank == PINGAN:  # done at once; the other bank only takes payments over
            found = await fep.becomes("T1", State.SUCCEEDED)
            assert found["result"]["amount"] == "12.50"
            detail = "done 000000"
        else:
            await fep.becomes("T1", State.ACCEPTED)
            detail = "taken over NTE"
        chain = (await fep.service.why(None, ID))["events"]
        assert chain[-1]["cause"].startswith("the bank's late answer says: ")
        assert chain[-1]["detail"] == detail
        assert world.on_disk("select count(*) from message where direction = 'received'") == [(1,)]
        assert fep.alarm_kinds() == set()
        fep.agrees()


async def test_a_late_answer_that_names_nobody_we_know_is_kept_with_an_alarm(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
        ours = client_ref(ENTERPRISE, ID).encode()
        theirs = client_ref(ENTERPRISE, TaskId("T9")).encode()
        strange = tap.answers[0].replace(ours, theirs)
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, strange)))
        await until(lambda: AlarmKind.UNMATCHED_REPLY in fep.alarm_kinds())
        assert world.on_disk("select bytes from message where task_seq is null") == [(strange,)]
        assert (await fep.get("T1"))["state"] == "unknown"


@pytest.mark.parametrize("told", [True, False])
async def test_a_success_of_which_the_bank_says_unasked_that_it_came_back_is_returned(
    world: World, told: bool
) -> None:
    codec = changed(says(PaymentState.RETURNED))
    async with world.fep(card=NEVER, codec=codec) as fep:
        await fep.ready(PINGAN)
        tap = Tap(world, PINGAN, swallows=False)
        await fep.submit("T1", bank=PINGAN, body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        reply = framed(PINGAN, tap.answers[0])
        for _ in range(2):
            await fep.unmatched.send(UnmatchedReply(PINGAN, reply, told=told))
        await fep.becomes("T1", State.RETURNED)
        kept = "select count(*) from message where direction = 'received'"
        await until(lambda: world.on_disk(kept) == [(3,)])
        assert AlarmKind.EVIDENCE_CONFLICT not in fep.alarm_kinds()
        assert AlarmKind.PAYMENT_RETURNED in fep.alarm_kinds()


class _Elsewhere:
    """Of several machines another serves every bank by now."""

    def guarded(self, _tasks: object, _changes: object) -> None:
        raise PlaceLostError("another machine serves it by now")

    def is_here(self, _client: object) -> bool:
        return True


async def test_a_late_answer_at_a_machine_that_was_taken_over_is_kept_and_changes_nothing(
    world: World,
) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
        fep.service.sharing = _Elsewhere()  # type: ignore[assignment]
        reply = framed(PINGAN, tap.answers[0])
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        kept = "select task_seq from message where bytes = ?"
        await until(lambda: world.on_disk(kept, reply.raw) == [(1,)])
        assert (await fep.get("T1"))["state"] == "unknown"
        fep.service.sharing = None


async def test_an_answer_that_comes_while_the_bank_is_asked_counts_first(world: World) -> None:
    """The inquiry would say that there is no record, and by the card that were proof."""
    card = asking(no_record_after_s=0.001)
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    asked = asked_slowly(world)
    async with world.fep(card=card, codec=codec) as fep:
        await until(asked.is_set)
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
        await until(lambda: bool(fep.lane._late))
        assert (await fep.get("T1"))["state"] == "unknown"
        world.banks[PINGAN].stop()
        await fep.becomes("T1", State.SUCCEEDED)
        assert "proved_refused" not in await fep.events("T1")
        assert fep.lane._late == {}


async def test_an_answer_that_comes_before_no_record_is_on_a_full_disk_counts_first(
    world: World,
) -> None:
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    card = asking(no_record_after_s=0.001)
    async with world.fep(card=card, codec=codec, run=False) as fep:
        await fep.fill_disk()
        await fep.start()
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
        await until(lambda: bool(fep.lane._late))
        await fep.empty_disk()
        await fep.becomes("T1", State.SUCCEEDED)
        assert "proved_refused" not in await fep.events("T1")


class _Gate:
    """Holds the store's writer where it writes an event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, event: str) -> None:
        self.is_held = threading.Event()
        self.open = threading.Event()
        self._real = getattr(store, name)
        self._event = event
        monkeypatch.setattr(store, name, self._write)
        # In the writer thread, whatever the disk.
        monkeypatch.setattr(Pace, "is_quick", lambda *_given: False)

    def _write(self, *given: object, **named: object) -> object:
        if self._event in str(given):
            self.is_held.set()
            assert self.open.wait(WAIT_SECONDS_MAX)
        return self._real(*given, **named)


@pytest.mark.parametrize("who", ["the bank", "two persons"])
async def test_an_answer_that_comes_while_the_end_it_contradicts_is_written_is_an_alarm(
    world: World, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    card = NEVER if who == "two persons" else asking(no_record_after_s=0.3)
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    gate = _Gate(monkeypatch, "apply", "PROVED_REFUSED")
    async with world.fep(card=card, codec=codec) as fep:
        if who == "two persons":
            await fep.service.resolve("li", ID, State.REJECTED, LINE)
            fep.nursery.start_soon(fep.service.confirm, "wang", ID)
        await until(gate.is_held.is_set)
        free, came = fep.lane._until_free, trio.Event()

        async def until_free(task: Task) -> None:
            came.set()
            await free(task)

        monkeypatch.setattr(fep.lane, "_until_free", until_free)
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
        await came.wait()
        gate.open.set()
        await fep.becomes("T1", State.REJECTED)
        await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
        assert fep.lane._late == {}
        fep.agrees()


async def test_an_answer_that_comes_while_a_statement_is_judged_is_used_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = changed(says(PaymentState.NO_RECORD))
    card = {"inquiry": {"statement_after": 1, "no_record": "never"}}
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    gate = _Gate(monkeypatch, "note", "searched")
    # No line is it.
    monkeypatch.setattr(watch, "find_payment", lambda *_given, **_named: Absent())
    async with world.fep(card=card, codec=codec) as fep:
        await until(gate.is_held.is_set)
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
        await until(lambda: bool(fep.lane._late))
        gate.open.set()
        await fep.becomes("T1", State.SUCCEEDED)
        assert (await fep.events("T1"))[-2:] == ["searched", "proved_done"]


async def test_an_answer_that_came_while_a_lane_ended_is_used_by_the_next(
    world: World,
) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
        task = fep.task("T1")
        fep.lane.hold(task)
        await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
        await until(lambda: bool(fep.lane._late))
        await fep.end()
        fep.make(PINGAN, NEVER)
        await fep.start()
        await fep.becomes("T1", State.SUCCEEDED)
        assert fep.lane._late == {}
        fep.agrees()


async def test_an_answer_that_comes_while_a_lane_that_crashed_is_settled_is_used(
    world: World,
) -> None:
    """Its payment is neither in hands nor written as unknown at that moment."""
    codec = changed(says(PaymentState.NO_RECORD))
    card = asking(no_record_after_s=0.3, cool_down_s=0.5)
    async with world.fep(card=card, codec=codec, run=False) as fep:
        unit = fep.units[PINGAN]
        await fep.start_link(unit)
        await fep.ready()
        tap = Tap(world, PINGAN, swallows=True)
        swallow = world.banks[PINGAN].host.changes

        def silent(answers: list[Answer]) -> list[Answer]:
            swallow(answers)
            return []

        world.banks[PINGAN].host.changes = silent
        async with trio.open_nursery() as nursery:
            await nursery.start(unit.lane.run)
            for name in ("T0", "T1"):
                await fep.submit(name, body=money(PINGAN))
                await world.until_booked(name)
            await until(lambda: bool(tap.answers))
            # As a defect in one worker ends all of them.
            nursery.cancel_scope.cancel()
        world.banks[PINGAN].host.changes = lambda answers: answers
        with held(fep.store):
            fep.nursery.start_soon(fep.lane.run)
            # The next run writes T0; T1 waits for its turn.
            await until(lambda: fep.task("T0").claimed and not fep.lane._in_hands)
            assert fep.task("T1").state is State.SENDING
            await fep.unmatched.send(UnmatchedReply(PINGAN, framed(PINGAN, tap.answers[0])))
            await until(lambda: bool(fep.lane._late))
        await fep.becomes("T1", State.SUCCEEDED)


async def test_a_late_acceptance_that_is_written_over_a_reload_is_followed_up(
    world: World,
) -> None:
    """The lane that took it up has ended by then; the next one asks what became of it."""
    async with world.fep(banks=[CMB], card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, CMB)
        await fep.fill_disk()
        await fep.unmatched.send(UnmatchedReply(CMB, framed(CMB, tap.answers[0])))
        await until(lambda: AlarmKind.STORE_FULL in fep.alarm_kinds())
        await until(lambda: fep.task("T1").claimed)
        await fep.end(CMB)
        fep.make(CMB, asking())
        await fep.start(CMB)
        await fep.empty_disk()
        await fep.becomes("T1", State.SUCCEEDED)
        assert "proved_accepted" in await fep.events("T1")


def asked_slowly(world: World) -> trio.Event:
    """Let the bank not answer when it is asked after T1; the event is that it was."""
    asked = trio.Event()

    def hold(answers: list[Answer]) -> list[Answer]:
        if any(b"OrigThirdVoucher" in one.data for one in answers):
            asked.set()
            return []
        return answers

    world.banks[PINGAN].host.changes = hold
    return asked


@pytest.mark.parametrize("how", ["a reload on a full disk", "a restart"])
async def test_an_answer_that_waits_for_the_end_of_an_inquiry_outlives_the_lane(
    world: World, how: str
) -> None:
    card, codec = asking(no_record_after_s=0.001), changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    reply, asked = framed(PINGAN, tap.answers[0]), asked_slowly(world)
    async with world.fep(card=card, codec=codec) as fep:
        await until(asked.is_set)
        if how == "a reload on a full disk":
            await fep.fill_disk()
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        await until(lambda: bool(fep.lane._late))
        if how == "a reload on a full disk":
            # A lost connection ends the inquiry, and what is found can't be written.
            world.banks[PINGAN].stop()
            await until(lambda: fep.task("T1").claimed and not fep.lane._late)
            await world.start_bank(PINGAN)
            await fep.end()
            fep.make(PINGAN, card, codec=codec)
            await fep.start()
            await fep.empty_disk()
            await fep.becomes("T1", State.SUCCEEDED)
        else:
            kept = "select count(*) from message where bytes = ?"
            await until(lambda: world.on_disk(kept, reply.raw) == [(1,)])
    world.banks[PINGAN].host.changes = lambda answers: answers
    async with world.fep(card=card, codec=codec) as fep:
        await fep.becomes("T1", State.SUCCEEDED)
        assert "proved_refused" not in await fep.events("T1")


def failing(operation: Operation, _reply: Reply, outcome: Outcome) -> Outcome:
    """A codec with a defect."""
    if isinstance(operation, PaymentOrder):
        raise KeyError("a defect of the adapter's")
    return outcome


async def test_a_kept_answer_that_an_adapter_fails_on_ends_a_lane_once(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
        reply = framed(PINGAN, tap.answers[0])
        fep.lane.hold(fep.task("T1"))
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        kept = "select count(*) from message where bytes = ?"
        await until(lambda: world.on_disk(kept, reply.raw) == [(1,)])
    async with world.fep(card=asking(), codec=changed(failing), run=False) as fep:
        await fep.start_link(fep.units[PINGAN])
        with pytest.raises(KeyError):
            await fep.lane.run()
        await fep.nursery.start(fep.lane.run)
        await fep.becomes("T1", State.SUCCEEDED)


async def test_an_answer_that_an_adapter_fails_on_is_kept(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    reply = framed(PINGAN, tap.answers[0])
    async with world.fep(card=NEVER, codec=changed(failing)) as fep:
        with pytest.raises(KeyError):
            await fep.service._take_unmatched(UnmatchedReply(PINGAN, reply))
        kept = "select count(*) from message where bytes = ?"
        assert world.on_disk(kept, reply.raw) == [(1,)]


async def test_an_answer_whose_payment_ends_while_it_is_looked_for_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has seen it unknown; before the lane hears that, the bank's word closes it."""
    read, seen, gate = store.of_reference, trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(connection: sa.Connection, bank: str, reference: str) -> Task | None:
        found = read(connection, bank, reference)
        token.run_sync_soon(seen.set)
        gate.wait(WAIT_SECONDS_MAX)
        return found

    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        tap = await lost(fep, PINGAN)
    reply = framed(PINGAN, tap.answers[0])
    monkeypatch.setattr(store, "of_reference", slow)
    async with world.fep(card=asking()) as fep:
        fep.lane.drain()
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        await seen.wait()
        fep.lane.resume()
        await fep.becomes("T1", State.SUCCEEDED)
        gate.set()
        kept = "select count(*) from message where bytes = ?"
        await until(lambda: world.on_disk(kept, reply.raw) != [(0,)])
        assert (await fep.events("T1"))[-1] == "proved_done"
        assert fep.alarm_kinds() == set()


async def test_an_answer_that_contradicts_the_end_is_an_alarm(world: World) -> None:
    card = asking(no_record_after_s=0.001)
    async with world.fep(
        card=card, reply_timeout_s=0.3, codec=changed(says(PaymentState.NO_RECORD))
    ) as fep:
        tap = await lost(fep, PINGAN)
        await fep.becomes("T1", State.REJECTED)
        reply = framed(PINGAN, tap.answers[0])
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        await until(lambda: AlarmKind.EVIDENCE_CONFLICT in fep.alarm_kinds())
        [alarm] = [one for one in fep.alarms.active() if one.kind is AlarmKind.EVIDENCE_CONFLICT]
        assert alarm.cause == "it is rejected, and a late answer says: done 000000"
        assert (await fep.get("T1"))["state"] == "rejected"
        # The alarm comes first.
        kept = "select task_seq from message where bytes = ?"
        await until(lambda: world.on_disk(kept, reply.raw) == [(1,)])


async def test_an_answer_told_twice_contradicts_nothing(world: World) -> None:
    async with world.fep() as fep:
        await fep.ready()
        world.banks[PINGAN].host.changes = lambda answers: [*answers, *answers]
        await fep.submit("T1", body=money(PINGAN))
        await fep.becomes("T1", State.SUCCEEDED)
        kept = "select count(*) from message where task_seq = 1 and direction = 'received'"
        await until(lambda: world.on_disk(kept) == [(2,)])
        assert fep.alarm_kinds() == set()


@pytest.mark.parametrize("bank", BANKS)
async def test_an_answer_that_names_another_payment_proves_nothing(
    world: World, bank: BankName
) -> None:
    """It bears our request's number all the same: a front end that mixes its answers up."""
    async with world.fep(banks=[bank], card=NEVER) as fep:
        await fep.ready(bank)
        ours = client_ref(ENTERPRISE, ID).encode()
        theirs = client_ref(ENTERPRISE, TaskId("T9")).encode()
        world.banks[bank].host.changes = lambda answers: [
            attrs.evolve(one, data=one.data.replace(ours, theirs)) for one in answers
        ]
        await fep.submit("T1", bank=bank, body=money(bank))
        found = await fep.becomes("T1", State.UNKNOWN)
        assert found["bank_code"] == "REPLY_MISMATCH"
        chain = (await fep.service.why(None, ID))["events"]
        assert chain[-1]["detail"] == "unclear REPLY_MISMATCH"


# -- the bank's word --------------------------------------------------------------------------


async def test_a_bank_that_has_it_can_not_unsay_it(world: World) -> None:
    card = asking(no_record_after_s=0.001, accepted_interval_s=0.05)
    said = says(PaymentState.PROCESSING, PaymentState.NO_RECORD)
    async with world.fep(card=card, reply_timeout_s=0.3, codec=changed(said)) as fep:
        await lost(fep, PINGAN)
        await fep.becomes("T1", State.ACCEPTED)
        await until(lambda: fep.task("T1").inquiries >= 5)
        events = await fep.events("T1")
        assert events.count("proved_accepted") == 1
        assert (await fep.get("T1"))["state"] == "accepted"


async def test_no_record_of_another_system_than_it_was_sent_to_proves_nothing(
    world: World,
) -> None:
    """A file that names a test system by mistake, or another customer's."""
    card = asking(no_record_after_s=0.001)
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=NEVER, reply_timeout_s=0.3, system="one") as fep:
        await lost(fep, PINGAN)
    async with world.fep(card=card, codec=codec, system="another") as fep:
        await fep.inquired("T1", 3)
        assert (await fep.get("T1"))["state"] == "unknown"
        chain = (await fep.service.why(None, ID))["events"]
        assert chain[-1]["cause"] == "no record, and it was sent to another system than this"
        assert await told_of(fep, "A1") == {"state": "no_record", "other_system": True}
        await fep.end()
        fep.make(PINGAN, {**CARD, **card}, codec=codec, system="one")
        await fep.start()
        await fep.becomes("T1", State.REJECTED)
        assert await told_of(fep, "A2") == {"state": "no_record"}


async def told_of(fep: Fep, name: str) -> object:
    """What a client is told that asks for the payment T1."""
    await fep.submit(name, body={"kind": "transfer_status", "params": {"task_id": "T1"}})
    return (await fep.becomes(name, State.SUCCEEDED))["result"]


# -- who holds it -----------------------------------------------------------------------------


class _Slow:
    """A link whose answers are told when a gate opens."""

    def __init__(self, link: Any, gate: trio.Event) -> None:
        self._link, self._gate = link, gate

    async def exchange(self, *given: Any) -> Any:
        reply = await self._link.exchange(*given)
        await self._gate.wait()
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


@pytest.mark.parametrize("_turn", range(4))
async def test_a_late_acceptance_does_not_let_go_of_what_a_worker_holds(
    world: World, _turn: int
) -> None:
    """One commit wakes the late answer's change and the worker that asks after that payment next.

    Which of them goes on first is chance.
    """
    card = asking(cool_down_s=0.1, accepted_interval_s=600.0, interval_max_s=600.0)
    async with world.fep(banks=[CMB], card=card, workers=1, reply_timeout_s=0.6) as fep:
        await fep.ready(CMB)
        lane = fep.service.lanes[CMB]
        tap = Tap(world, CMB, swallows=True)
        await fep.submit("T1", bank=CMB, body=money(CMB))
        await fep.becomes("T1", State.UNKNOWN)
        task, gate = fep.task("T1"), trio.Event()
        tap.swallows = False
        object.__setattr__(lane.parts, "link", _Slow(lane.parts.link, gate))
        balance = {"kind": "balance", "params": {"account": CMB_PAYER}}
        await fep.submit("Q", bank=CMB, body=balance)
        await until(lambda: task in lane._inquiries)
        with held(fep.store):
            gate.set()
            await fep.unmatched.send(UnmatchedReply(CMB, framed(CMB, tap.answers[0])))
            await until(lambda: len(fep.service._unanswered) >= 2)
        await until(lambda: not fep.service._unanswered)
        assert task.claimed or task not in lane._in_hands


# -- time -------------------------------------------------------------------------------------


async def test_a_clock_that_is_a_day_on_after_a_restart_makes_no_record_no_proof(
    world: World,
) -> None:
    clock = MovedClock()
    card = asking(no_record_after_s=3600.0)
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=card, clock=clock, reply_timeout_s=0.3, codec=codec) as fep:
        await lost(fep, PINGAN)
    for days in (2, -2, 365):
        clock.moved = dt.timedelta(days=days)
        async with world.fep(card=card, clock=clock, codec=codec) as fep:
            before = fep.task("T1").inquiries
            await until(lambda fep=fep, before=before: fep.task("T1").inquiries >= before + 3)  # type: ignore[misc]
            assert (await fep.get("T1"))["state"] == "unknown"


async def test_waiting_goes_on_after_a_restart_from_where_it_was(world: World) -> None:
    codec = changed(says(PaymentState.NO_RECORD))
    card = asking(no_record_after_s=3600.0)
    async with world.fep(card=card, reply_timeout_s=0.3, codec=codec) as fep:
        await lost(fep, PINGAN)
        began = trio.current_time()
        await until(lambda: fep.task("T1").inquiries >= 3)
    [(kept,)] = world.on_disk("select waited_s from payment")
    assert 0 < kept <= trio.current_time() - began + 0.01
    card = asking(no_record_after_s=kept + 0.4)
    async with world.fep(card=card, codec=codec) as fep:
        began = trio.current_time()
        assert fep.task("T1").waited(began) >= kept
        await fep.becomes("T1", State.REJECTED)
        assert trio.current_time() - began >= 0.39


async def test_what_was_being_sent_when_the_process_died_waits_from_the_next_start(
    world: World,
) -> None:
    async with world.fep(card=NEVER) as fep:
        await fep.ready()
        Tap(world, PINGAN, swallows=True)
        await fep.submit("T1", body=money(PINGAN))
        await world.until_booked("T1")
    async with world.fep(card=NEVER) as fep:
        await fep.becomes("T1", State.UNKNOWN)
        assert fep.task("T1").waited(trio.current_time()) < 5.0


# -- two persons ------------------------------------------------------------------------------


async def refusal(act: object) -> str:
    with pytest.raises(TaskRefusedError) as caught:
        await act  # type: ignore[misc]
    return f"{caught.value.code}: {caught.value}"


LINE = "statement of today, line 7"


async def test_who_confirms_confirms_what_was_seen(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await lost(fep, PINGAN)
        confirm = fep.service.confirm
        await fep.service.resolve("li", ID, State.REJECTED, LINE)
        said = await refusal(confirm("wang", ID, State.SUCCEEDED))
        assert said.startswith("BAD_STATE: li proposes rejected")
        assert (await fep.get("T1"))["state"] == "unknown"
        assert not fep.task("T1").claimed
        assert await confirm("wang", ID, State.REJECTED) is State.REJECTED
        fep.agrees()


async def test_a_proposal_that_is_replaced_in_that_moment_is_not_confirmed(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await lost(fep, PINGAN)
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        refusals: list[str] = []

        async def confirm() -> None:
            refusals.append(await refusal(fep.service.confirm("wang", ID)))

        with held(fep.store):
            # First in the writer's queue: the other proposal; then the confirmation of the first.
            fep.nursery.start_soon(fep.service.resolve, "li", ID, State.REJECTED, LINE)
            await trio.testing.wait_all_tasks_blocked(0.05)
            fep.nursery.start_soon(confirm)
            await trio.sleep(0.3)
        await until(lambda: bool(refusals))
        assert refusals[0].startswith("BAD_STATE: another proposal was made")
        assert (await fep.get("T1"))["state"] == "unknown"
        assert not fep.task("T1").claimed
        assert await fep.service.confirm("wang", ID) is State.REJECTED


async def test_a_proposal_for_what_is_closed_in_that_moment_is_refused(world: World) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await lost(fep, PINGAN)
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        refusals: list[str] = []

        async def resolve() -> None:
            act = fep.service.resolve("zhao", ID, State.REJECTED, LINE)
            refusals.append(await refusal(act))

        with held(fep.store):
            fep.nursery.start_soon(fep.service.confirm, "wang", ID)
            await trio.sleep(0.3)
            fep.nursery.start_soon(resolve)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await until(lambda: bool(refusals))
        assert refusals[0].startswith("BAD_STATE: the task was closed at this very moment")
        assert (await fep.events("T1"))[-1] == "proved_done"
        assert world.on_disk("select proposed_by from resolution") == [("li",)]


async def test_who_hangs_up_while_a_confirmation_is_stored_leaves_the_payment_held(
    world: World,
) -> None:
    async with world.fep(card=NEVER, reply_timeout_s=0.3) as fep:
        await lost(fep, PINGAN)
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        task, scope = fep.task("T1"), trio.CancelScope()

        async def confirm() -> None:
            with scope:
                await fep.service.confirm("wang", ID)

        with held(fep.store):
            fep.nursery.start_soon(confirm)
            await until(lambda: task.claimed and fep.store._waiting)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert task.claimed, "nobody asks the bank while its end is being written"
        await fep.becomes("T1", State.SUCCEEDED)
        assert not fep.service._open.get(ID)
        fep.agrees()


async def test_a_person_waits_for_an_inquiry_that_is_under_way(world: World) -> None:
    card = asking(cool_down_s=0.05, no_record="never")
    async with world.fep(card=card, reply_timeout_s=0.4) as fep:
        (await lost(fep, PINGAN)).swallows = True  # and no inquiry is answered either
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        await until(lambda: fep.task("T1").claimed)
        assert await fep.service.confirm("wang", ID) is State.SUCCEEDED
        fep.agrees()


async def test_a_person_does_not_wait_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FREE_SECONDS_MAX", 0.05)
    card = asking(cool_down_s=0.05, no_record="never")
    async with world.fep(card=card, reply_timeout_s=1.0) as fep:
        (await lost(fep, PINGAN)).swallows = True
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        await until(lambda: fep.task("T1").claimed)
        assert (await refusal(fep.service.confirm("wang", ID))).startswith("BAD_STATE: the bank is")


async def test_a_payment_closed_by_two_persons_is_watched_like_any_success(world: World) -> None:
    card = {"returned": {"first_look_s": 0.05, "interval_s": 0.2}, **NEVER}
    async with world.fep(card=card, reply_timeout_s=0.3) as fep:
        await fep.ready()
        world.banks[PINGAN].faults[Fault.RETURNED] = 1.0
        await lost(fep, PINGAN)
        await fep.service.resolve("li", ID, State.SUCCEEDED, LINE)
        await fep.service.confirm("wang", ID)
        world.banks[PINGAN].host.changes = lambda answers: answers
        world.book.take_back(PINGAN, fep.clock.now() + dt.timedelta(minutes=2))
        # Its bank reference never came, so the bank itself is asked.
        found = await fep.becomes("T1", State.RETURNED)
        assert found["result"]["client_ref"] == client_ref(ENTERPRISE, ID)


async def test_an_inquiry_that_was_put_off_while_a_statement_was_judged_is_made_after_it(
    world: World,
) -> None:
    codec = changed(says(PaymentState.NO_RECORD))
    async with world.fep(card=asking(no_record="never"), reply_timeout_s=0.3, codec=codec) as fep:
        await lost(fep, PINGAN)
        lane, task = fep.lane, fep.task("T1")
        await fep.inquired("T1", 3)
        real, failed = lane.ask_after, trio.Event()

        async def fails(*_given: object, **_named: object) -> None:
            lane.ask_after = real  # type: ignore[method-assign]
            failed.set()
            raise QueryLostError("KEY", "the key did not sign in time", sent=False)

        lane.ask_after = fails  # type: ignore[method-assign, assignment]
        await failed.wait()
        await until(lambda: not task.claimed)
        async with trio.open_nursery() as nursery:
            with held(fep.store):
                nursery.start_soon(lane.watch._judge_open, task, Look(PAYER))
                await until(lambda: task.claimed)
                # Its pause ends meanwhile, and the next one.
                await trio.sleep(3 * NOT_SENT_RETRY_SECONDS)
                assert task.claimed
                asked = task.inquiries
        await fep.inquired("T1", asked + 1)
