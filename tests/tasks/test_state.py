"""The life of a task: what can follow what, for any order of events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fep.tasks.state import (
    BEFORE_SENDING,
    FINAL,
    OPEN_AT_BANK,
    TRANSITIONS,
    Event,
    IllegalTransitionError,
    State,
    step,
)

pytestmark = pytest.mark.req("FEP-23", "FEP-24", "FEP-25", "DEC-a")

NEVER_LEFT = {State.CANCELLED, State.EXPIRED, State.FAILED}
"""Ends that tell the client: nothing left this machine."""
OF_QUERIES = {Event.QUERY_LOST, Event.QUERY_GIVEN_UP}
"""Nobody applies these to a payment."""
PROVEN_UNSENT = {Event.NOTHING_SENT, *OF_QUERIES}
PROOFS = {Event.PROVED_ACCEPTED, Event.PROVED_DONE, Event.PROVED_REFUSED}
Step = tuple[State, Event, State]


def walk(choices: list[int]) -> list[Step]:
    """Return a task's life: in each state one of the things that can happen there."""
    state = State.QUEUED
    steps = []
    for choice in choices:
        possible = sorted(TRANSITIONS[state])
        if not possible:
            break
        event = possible[choice % len(possible)]
        steps.append((state, event, step(state, event)))
        state = steps[-1][-1]
    return steps


LIVES = st.lists(st.integers(0, 5039), max_size=30).map(walk)


def test_every_state_has_a_row_and_every_event_a_use() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


def test_every_state_can_be_reached_and_none_is_a_trap() -> None:
    reached = {State.QUEUED}
    while more := {to for state in reached for to in TRANSITIONS[state].values()} - reached:
        reached |= more
    assert reached == set(State)
    ending = set(FINAL)
    while more := {s for s in State if ending & set(TRANSITIONS[s].values())} - ending:
        ending |= more
    assert ending == set(State)


def test_the_groups_are_what_their_names_say() -> None:
    assert BEFORE_SENDING | OPEN_AT_BANK | FINAL | {State.SENDING} == set(State)
    assert not BEFORE_SENDING & OPEN_AT_BANK
    assert not (BEFORE_SENDING | OPEN_AT_BANK | {State.SENDING}) & FINAL


def test_an_event_without_a_row_is_a_defect_that_names_both() -> None:
    with pytest.raises(
        IllegalTransitionError, match=r"cancelled can't happen .* sending"
    ) as caught:
        step(State.SENDING, Event.CANCELLED)
    assert caught.value.code == "BAD_STATE"


@settings(deadline=None)
@given(LIVES)
def test_before_sending_nothing_but_states_of_this_machine(life: list[Step]) -> None:
    for before, event, after in life:
        if event in (Event.SEND_BEGUN, Event.FOUND_DONE):
            break
        assert before in BEFORE_SENDING
        assert after in BEFORE_SENDING | NEVER_LEFT


@settings(deadline=None)
@given(LIVES)
def test_a_payment_that_may_have_left_never_ends_as_if_it_had_not(life: list[Step]) -> None:
    assume(not OF_QUERIES & {event for _, event, _ in life})
    may_have_left = False
    for _before, event, after in life:
        may_have_left = event is Event.SEND_BEGUN or (
            may_have_left and event is not Event.NOTHING_SENT
        )
        if may_have_left:
            assert after not in NEVER_LEFT
            assert after not in BEFORE_SENDING


@settings(deadline=None)
@given(LIVES)
def test_a_second_sending_needs_proof_that_the_first_did_not_leave(life: list[Step]) -> None:
    sendings = [place for place, (_, event, _) in enumerate(life) if event is Event.SEND_BEGUN]
    for first, second in pairwise(sendings):
        assert PROVEN_UNSENT & {event for _, event, _ in life[first:second]}


@settings(deadline=None)
@given(LIVES)
def test_only_evidence_leaves_what_is_open_at_the_bank(life: list[Step]) -> None:
    for before, event, after in life:
        if before in OPEN_AT_BANK:
            assert event in PROOFS
            # That the bank has it is less than an end, and never leads back.
            assert after in {State.SUCCEEDED, State.REJECTED, State.ACCEPTED}
            assert (before, after) != (State.ACCEPTED, State.ACCEPTED)


@settings(deadline=None)
@given(LIVES)
def test_an_end_is_an_end_but_for_a_returned_success(life: list[Step]) -> None:
    for before, event, after in life:
        if before in FINAL:
            # Of a batch one row comes back after the other.
            assert before in {State.SUCCEEDED, State.RETURNED}
            assert (event, after) == (Event.PROVED_RETURNED, State.RETURNED)


@settings(deadline=None)
@given(LIVES)
def test_only_what_was_never_fetched_expires(life: list[Step]) -> None:
    if any(after is State.EXPIRED for _, _, after in life):
        assert not {Event.BODY_TAKEN, Event.SEND_BEGUN} & {event for _, event, _ in life}
