"""What late answers and statement lines mean, and the words that the causal chain keeps."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Unclear
from fep.adapters.card import BehaviourCard, Dedupe, Identity, Inquiry
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    Direction,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
)
from fep.tasks import evidence
from fep.tasks.state import OPEN_AT_BANK, TRANSITIONS, Event, State, step

pytestmark = pytest.mark.req("FEP-25", "LAND-51")

NOW = dt.datetime(2026, 3, 2, 2, 0, tzinfo=dt.UTC)
RECEIPT = PaymentReceipt(ClientRef("F1"), Cny(1))
DONE = Accepted(RECEIPT, "000000", "交易成功")
TAKEN = Accepted(RECEIPT, "NTE", "", final=False)
REFUSED = Rejected("CSAC054", "户口透支")
UNCLEAR = Unclear("GW3002", "通讯故障")
ENTRY = StatementEntry("B1", NOW, Direction.DEBIT, Cny(1))


@pytest.mark.parametrize(
    ("outcome", "events"),
    [
        (DONE, (Event.PROVED_DONE,)),
        (TAKEN, (Event.PROVED_ACCEPTED,)),
        (REFUSED, (Event.PROVED_REFUSED,)),
        (UNCLEAR, ()),
    ],
)
def test_a_late_answer_counts_as_it_would_have_in_time(
    outcome: Outcome, events: tuple[Event, ...]
) -> None:
    found, cause = evidence.of_late(outcome)
    assert found == events
    assert cause.startswith("the bank's late answer ")
    for event in found:
        # Whoever holds the payment open can apply it.
        assert any(event in TRANSITIONS[state] for state in OPEN_AT_BANK)
        assert step(State.UNKNOWN, event) is not State.UNKNOWN


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("outcome", [DONE, TAKEN, REFUSED, UNCLEAR])
def test_only_an_answer_against_the_state_is_a_contradiction(
    state: State, outcome: Outcome
) -> None:
    against = {
        (State.REJECTED, "DONE"),
        (State.SUCCEEDED, "REFUSED"),
        (State.RETURNED, "REFUSED"),
    }
    for never_sent in ("queued", "offered", "fetched", "failed", "cancelled", "expired"):
        against |= {(State(never_sent), "DONE"), (State(never_sent), "TAKEN")}
    name = {id(DONE): "DONE", id(TAKEN): "TAKEN", id(REFUSED): "REFUSED"}.get(id(outcome), "")
    assert evidence.contradicts(state, outcome) == ((state, name) in against)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (DONE, "done 000000"),
        (TAKEN, "taken over NTE"),
        (REFUSED, "refused (business) CSAC054"),
        (Rejected("YQ9990", "", Refusal.PERMISSION), "refused (permission) YQ9990"),
        (UNCLEAR, "unclear GW3002"),
        (Unclear("", ""), "unclear"),
        (
            Accepted(PaymentStatus(PaymentState.NO_RECORD, "MA0103"), "MA0103"),
            "status no_record MA0103 MA0103",
        ),
        (Accepted(PaymentStatus(PaymentState.RETURNED)), "status returned"),
        (Accepted(Statement((ENTRY, ENTRY))), "statement of 2 lines"),
        (Accepted(Balance(AccountNumber("1"), Cny(1), Cny(1), NOW), "0"), "answered 0"),
    ],
)
def test_the_chain_keeps_what_an_answer_was_taken_for(outcome: Outcome, words: str) -> None:
    assert evidence.told(outcome) == words


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_banks_own_words_are_not_among_them(code: str, message: str) -> None:
    """A bank that words it otherwise by now decides nothing otherwise."""
    outcomes = (Rejected(code, message), Unclear(code, message), Accepted(RECEIPT, code, message))
    for one in outcomes:
        assert evidence.told(one) == evidence.told(attrs.evolve(one, message="x"))


def test_a_line_is_proof_of_a_payment_with_the_banks_reference_and_day() -> None:
    done = evidence.of_line(ENTRY).result
    assert done == PaymentStatus(
        PaymentState.SUCCEEDED, bank_ref="B1", booked_on=BusinessDate(dt.date(2026, 3, 2))
    )
    day = BusinessDate(dt.date(2026, 3, 4))
    back = evidence.of_line(ENTRY, day).result
    assert isinstance(back, PaymentStatus)
    assert (back.state, back.returned_on) == (PaymentState.RETURNED, day)


@pytest.mark.parametrize(
    ("after", "inquiries", "due"), [(0, 99, False), (3, 2, False), (3, 3, True)]
)
def test_the_statement_is_due_after_as_many_inquiries_as_the_card_says(
    after: int, inquiries: int, *, due: bool
) -> None:
    card = BehaviourCard(
        Identity("toy", "1"), Dedupe("ref", 20), inquiry=Inquiry(statement_after=after)
    )
    assert evidence.statement_due(card, inquiries) == due


@given(
    st.floats(0, 1e5, allow_nan=False),
    st.floats(0, 1e5, allow_nan=False),
    st.floats(0, 1e5, allow_nan=False),
    st.sampled_from(sorted(OPEN_AT_BANK)),
    st.integers(0, 60),
)
def test_no_planned_inquiry_is_later_than_the_longest_wait(
    cool_down_s: float, accepted_s: float, longest_s: float, state: State, inquiries: int
) -> None:
    inquiry = Inquiry(
        cool_down_s=cool_down_s, accepted_interval_s=accepted_s, interval_max_s=longest_s
    )
    card = BehaviourCard(Identity("toy", "1"), Dedupe("ref", 20), inquiry=inquiry)
    limit = NOW + dt.timedelta(seconds=evidence.inquiry_wait_max_s(card))
    assert evidence.first_inquiry(card, state, NOW) <= limit
    assert evidence.next_inquiry(card, state, inquiries, NOW) <= limit
