"""What a finding proves about a payment whose end is open, and when to ask again."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Unclear
from fep.adapters.card import BatchFacts, BehaviourCard, Dedupe, Identity, Inquiry, NoRecord
from fep.domain.clock import SHANGHAI
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BatchOrder,
    BatchStatus,
    Payee,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
)
from fep.tasks import evidence
from fep.tasks.evidence import AskAgain, Close, decide
from fep.tasks.state import FINAL, OPEN_AT_BANK, Event, State, step

pytestmark = pytest.mark.req("FEP-25", "LAND-51", "LAND-52")

SENT = dt.datetime(2026, 3, 2, 10, 0, tzinfo=SHANGHAI)
DAY = dt.timedelta(days=1)


def card(**inquiry: object) -> BehaviourCard:
    return BehaviourCard(Identity("toy", "1"), Dedupe("ref", 20), inquiry=Inquiry(**inquiry))  # type: ignore[arg-type]


CARDS = st.builds(
    card,
    cool_down_s=st.floats(0, 600),
    accepted_interval_s=st.floats(0, 600),
    backoff_factor=st.floats(1, 10),
    interval_max_s=st.floats(0.001, 86_400),
    no_record=st.sampled_from(NoRecord),
    no_record_after_s=st.floats(0.001, 200_000),
)
MOMENTS = st.timedeltas(dt.timedelta(), dt.timedelta(days=370)).map(lambda since: SENT + since)
AGES = st.timedeltas(dt.timedelta(), dt.timedelta(days=4))
OPEN = st.sampled_from(sorted(OPEN_AT_BANK))
NO_RECORD = Accepted(PaymentStatus(PaymentState.NO_RECORD))
PROVES_NOTHING: list[Outcome] = [
    Unclear("NO_REPLY", ""),
    Unclear("", ""),
    Rejected("X1", "no such account"),
    Rejected("X2", "too often", Refusal.THROTTLED),
    Rejected("X3", "not permitted", Refusal.PERMISSION),
    Accepted(Statement(())),
    Accepted(Balance(AccountNumber("1"), Cny(1), Cny(1), SENT)),
    Accepted(PaymentReceipt(ClientRef("F1"), Cny(1))),
    Accepted(PaymentStatus(PaymentState.PROCESSING)),
    Accepted(PaymentStatus(PaymentState.UNKNOWN)),
]


def proves_by_the_card(one: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say it in another way than the code does: is "no record" at ``now`` proof?"""
    if one.inquiry.no_record is NoRecord.NEVER:
        return False
    if one.inquiry.no_record is NoRecord.AFTER:
        return now >= sent_at + dt.timedelta(seconds=one.inquiry.no_record_after_s)
    midnight = dt.datetime.combine(
        sent_at.astimezone(SHANGHAI).date() + DAY, dt.time(), tzinfo=SHANGHAI
    )
    return now >= midnight + dt.timedelta(hours=1)


@settings(deadline=None)
@given(CARDS, OPEN, MOMENTS, AGES, st.integers(0, 100))
def test_no_record_closes_an_unknown_when_the_card_says_so_and_never_before(
    one: BehaviourCard, state: State, sent_at: dt.datetime, age: dt.timedelta, inquiries: int
) -> None:
    now = sent_at + age
    decision = decide(one, state, sent_at, inquiries, NO_RECORD, now, now)
    if state is State.UNKNOWN and proves_by_the_card(one, sent_at, now):
        assert isinstance(decision, Close)
        assert decision.events == (Event.PROVED_REFUSED,)
    else:
        assert isinstance(decision, AskAgain)


@settings(deadline=None)
@given(CARDS, MOMENTS, AGES)
def test_no_record_of_another_system_is_no_proof(
    one: BehaviourCard, sent_at: dt.datetime, age: dt.timedelta
) -> None:
    now = sent_at + age
    rows = Accepted(BatchStatus(rows_of([PaymentState.SUCCEEDED, PaymentState.NO_RECORD])))
    for finding in (NO_RECORD, rows):
        decision = decide(one, State.UNKNOWN, sent_at, 0, finding, now, now, is_elsewhere=True)
        assert isinstance(decision, AskAgain)
        assert decision.events == ()


@settings(deadline=None)
@given(CARDS, MOMENTS, AGES)
def test_no_record_never_unsays_that_the_bank_took_it_over(
    one: BehaviourCard, sent_at: dt.datetime, age: dt.timedelta
) -> None:
    now = sent_at + age
    decision = decide(one, State.ACCEPTED, sent_at, 3, NO_RECORD, now, now)
    assert isinstance(decision, AskAgain)


@settings(deadline=None)
@given(CARDS, OPEN, MOMENTS, AGES, st.sampled_from(PROVES_NOTHING))
def test_what_proves_nothing_closes_nothing_however_late(
    one: BehaviourCard, state: State, sent_at: dt.datetime, age: dt.timedelta, finding: Outcome
) -> None:
    now = sent_at + age
    decision = decide(one, state, sent_at, 0, finding, now, now)
    assert isinstance(decision, AskAgain)
    assert decision.cause


@pytest.mark.parametrize("state", sorted(OPEN_AT_BANK))
@pytest.mark.parametrize("mode", NoRecord)
@pytest.mark.parametrize("said", PaymentState)
@pytest.mark.parametrize("age", [dt.timedelta(), 3 * DAY])
def test_every_word_of_the_bank(
    state: State, mode: NoRecord, said: PaymentState, age: dt.timedelta
) -> None:
    now = SENT + age
    one = card(no_record=mode, no_record_after_s=60.0)
    decision = decide(one, state, SENT, 0, Accepted(PaymentStatus(said)), now, now)
    ends = {
        PaymentState.SUCCEEDED: State.SUCCEEDED,
        PaymentState.REJECTED: State.REJECTED,
        PaymentState.RETURNED: State.RETURNED,
    }
    late = mode is not NoRecord.NEVER and age > DAY and state is State.UNKNOWN
    if said is PaymentState.NO_RECORD and late:
        ends[said] = State.REJECTED
    if said in ends:
        assert isinstance(decision, Close)
        end = state
        for event in decision.events:
            end = step(end, event)
        assert end is ends[said]
        assert end in FINAL
    else:
        assert isinstance(decision, AskAgain)
        assert decision.at > now


@pytest.mark.parametrize(
    ("sent", "asked", "proof"),
    [
        ("2026-03-02T10:00:00+08:00", "2026-03-02T23:59:59+08:00", False),
        ("2026-03-02T10:00:00+08:00", "2026-03-03T00:00:00+08:00", False),
        ("2026-03-02T10:00:00+08:00", "2026-03-03T01:00:00+08:00", True),
        ("2026-03-02T23:59:30+08:00", "2026-03-03T00:00:31+08:00", False),
        ("2026-03-03T00:00:10+08:00", "2026-03-03T23:59:59+08:00", False),
        ("2026-03-03T00:30:00+08:00", "2026-03-03T01:30:00+08:00", False),
        ("2026-03-01T16:30:00+00:00", "2026-03-02T15:59:59+00:00", False),
        ("2026-03-02T10:00:00+08:00", "2026-03-01T10:00:00+08:00", False),
    ],
)
def test_the_end_of_the_day_is_the_banks_and_not_a_moment(
    sent: str, asked: str, *, proof: bool
) -> None:
    # A bank was seen to say "no record" minutes after it took a payment: a payment sent just
    # before midnight must not be taken for refused just after it.
    one = card(no_record=NoRecord.END_OF_DAY)
    given_at, now = dt.datetime.fromisoformat(sent), dt.datetime.fromisoformat(asked)
    assert evidence.no_record_counts(one, given_at, now) is proof


@settings(deadline=None)
@given(CARDS, MOMENTS, AGES, AGES)
def test_a_wall_clock_that_was_set_forward_proves_nothing(
    one: BehaviourCard, sent_at: dt.datetime, age: dt.timedelta, leap: dt.timedelta
) -> None:
    really = sent_at + age
    assume(not proves_by_the_card(one, sent_at, really))
    decision = decide(one, State.UNKNOWN, sent_at, 0, NO_RECORD, really + leap, really)
    assert isinstance(decision, AskAgain)
    assert decision.at >= really + leap, "the next inquiry goes by the clock on the wall"


@settings(deadline=None)
@given(CARDS, OPEN, MOMENTS, st.integers(0, 10_000))
def test_the_back_off_grows_and_is_bounded(
    one: BehaviourCard, state: State, now: dt.datetime, inquiries: int
) -> None:
    def wait(count: int) -> dt.timedelta:
        return evidence.next_inquiry(one, state, count, now) - now

    assert dt.timedelta() <= wait(inquiries) <= wait(inquiries + 1)
    assert wait(inquiries) <= dt.timedelta(seconds=one.inquiry.interval_max_s + 1e-5)


@settings(deadline=None)
@given(CARDS, MOMENTS)
def test_the_first_inquiry_comes_after_the_cards_time(one: BehaviourCard, now: dt.datetime) -> None:
    def wait(state: State) -> float:
        return (evidence.first_inquiry(one, state, now) - now).total_seconds()

    assert wait(State.UNKNOWN) == pytest.approx(one.inquiry.cool_down_s, abs=1e-5)
    assert wait(State.ACCEPTED) == pytest.approx(one.inquiry.accepted_interval_s, abs=1e-5)


@settings(deadline=None)
@given(MOMENTS, AGES, st.floats(1, 200_000))
def test_overdue_from_the_horizon_on(
    sent_at: dt.datetime, age: dt.timedelta, horizon_s: float
) -> None:
    one = card(horizon_s=horizon_s)
    assert evidence.overdue(one, sent_at, sent_at + age) == (age.total_seconds() > horizon_s)


def test_a_card_can_not_make_the_waits_meaningless() -> None:
    """A cool-down of nothing must not spin, a huge factor must not overflow."""
    for cool_down_s, factor in ((0.0, 1.0), (0.0, 2.0), (1.0, 1e300)):
        one = card(cool_down_s=cool_down_s, backoff_factor=factor, interval_max_s=60.0)
        at = evidence.next_inquiry(one, State.UNKNOWN, 40, SENT)
        assert SENT < at <= SENT + dt.timedelta(seconds=60)


def test_decisions_are_values() -> None:
    assert attrs.asdict(AskAgain(SENT, "why"))["cause"] == "why"


# -- the time of day in which the bank wants to be left alone --------------------------------------


@pytest.mark.parametrize(
    ("begin", "end", "at", "minutes"),
    [
        ("", "", "00:30", 0),
        ("00:00", "01:00", "23:59", 0),
        ("00:00", "01:00", "00:00", 60),
        ("00:00", "01:00", "00:59", 1),
        ("00:00", "01:00", "01:00", 0),
        ("23:30", "00:30", "23:29", 0),
        ("23:30", "00:30", "23:30", 60),
        ("23:30", "00:30", "00:10", 20),
        ("23:30", "00:30", "00:30", 0),
        ("09:00", "08:00", "07:59", 1),
        ("09:00", "08:00", "08:30", 0),
    ],
)
def test_quiet_hours_are_shanghais_and_may_last_over_midnight(
    begin: str, end: str, at: str, minutes: int
) -> None:
    local = dt.datetime.combine(SENT.date(), dt.time.fromisoformat(at), tzinfo=SHANGHAI)
    one = card(quiet_from=begin, quiet_to=end)
    assert evidence.quiet_s(one, local.astimezone(dt.UTC)) == 60 * minutes


@given(st.times(), st.times(), MOMENTS)
def test_quiet_hours_end_when_they_say(begin: dt.time, end: dt.time, now: dt.datetime) -> None:
    one = card(quiet_from=f"{begin:%H:%M}", quiet_to=f"{end:%H:%M}")
    assume(one.inquiry.quiet_from != one.inquiry.quiet_to)
    wait = evidence.quiet_s(one, now)
    assert 0 <= wait < 86_400
    after = now + dt.timedelta(seconds=wait)
    assert evidence.quiet_s(one, after) == 0.0
    assert not wait or f"{after.astimezone(SHANGHAI):%H:%M}" == one.inquiry.quiet_to


# -- batches ----------------------------------------------------------------------------------

ROWS = st.lists(st.sampled_from(PaymentState), min_size=1, max_size=5)
ENDS = {PaymentState.SUCCEEDED, PaymentState.REJECTED, PaymentState.RETURNED}
ORDER = BatchOrder(
    tuple(
        PaymentOrder(AccountNumber("1"), Payee(AccountNumber("2"), "N"), Cny(fen))
        for fen in range(1, 6)
    )
)


def rows_of(states: list[PaymentState]) -> dict[int, PaymentStatus]:
    return {at: PaymentStatus(one) for at, one in enumerate(states)}


@settings(deadline=None)
@given(OPEN, ROWS, st.booleans(), st.booleans(), st.booleans())
def test_a_batch_is_at_its_end_when_every_row_is(
    state: State, states: list[PaymentState], is_over: bool, is_cut: bool, late: bool
) -> None:
    status = BatchStatus(rows_of(states), "1" if is_cut else "", is_over)
    one = card(no_record=NoRecord.AFTER, no_record_after_s=60.0)
    now = SENT + dt.timedelta(seconds=61 if late else 1)
    decision = decide(one, state, SENT, 0, Accepted(status), now, now)
    decided = ENDS | ({PaymentState.NO_RECORD} if late and state is State.UNKNOWN else set())
    said = set(states)
    if not said <= decided or not is_over or is_cut:
        assert isinstance(decision, AskAgain)
        if decision.events:
            # The bank has every row, and none of them is missing.
            assert decision.events == (Event.PROVED_ACCEPTED,)
            assert said <= ENDS | {PaymentState.PROCESSING}
            assert not is_cut
        return
    assert isinstance(decision, Close)
    end = state
    for event in decision.events:
        end = step(end, event)
    if PaymentState.RETURNED in said:
        assert end is State.RETURNED
    else:
        paid = PaymentState.SUCCEEDED in said
        assert end is (State.SUCCEEDED if paid else State.REJECTED)
    left = {row.state for row in evidence.ended_rows(status.rows).values()}
    assert left <= ENDS
    assert left == {PaymentState.REJECTED if s is PaymentState.NO_RECORD else s for s in said}


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), unique=True), min_size=1, max_size=4))
def test_pages_say_something_together_only_of_each_row_once(pages: list[list[int]]) -> None:
    done = PaymentStatus(PaymentState.SUCCEEDED)
    given_pages = [BatchStatus(dict.fromkeys(one, done), "more") for one in pages]
    given_pages[-1] = attrs.evolve(given_pages[-1], cursor="")
    found = evidence.joined(ORDER, given_pages)
    each = sorted(row for one in pages for row in one)
    assert isinstance(found, BatchStatus) == (each == list(range(len(ORDER.rows))))


def test_a_walk_that_stops_at_an_open_row_says_that_it_did() -> None:
    done, waits = PaymentStatus(PaymentState.SUCCEEDED), PaymentStatus(PaymentState.PROCESSING)
    pages = [BatchStatus({0: done}, "1"), BatchStatus({1: waits}, "2")]
    found = evidence.joined(ORDER, pages)
    assert isinstance(found, BatchStatus)
    assert found.cursor == "2"
    assert isinstance(evidence.joined(ORDER, pages[:1]), Unclear), "nothing open, and not all"


def test_a_batch_is_asked_after_at_the_bank_s_pace() -> None:
    one = attrs.evolve(card(), batch=BatchFacts(500, 600.0))
    first = evidence.first_inquiry(evidence.card_of(one, ORDER), State.ACCEPTED, SENT)
    assert (first - SENT).total_seconds() == 600.0
    assert evidence.card_of(one, ORDER.rows[0]) is one
