"""The slot's table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.keys.state import (
    ALARM_OF,
    OPEN,
    SLOT_ALARMS,
    TRANSITIONS,
    IllegalTransitionError,
    SlotEvent,
    SlotState,
    step,
)

EVENTS = st.lists(st.sampled_from(SlotEvent), max_size=60)


def run(events: list[SlotEvent]) -> list[SlotState]:
    """Return the states passed through; an event without a row changes nothing."""
    states = [SlotState.NO_SERVICE]
    for event in events:
        try:
            states.append(step(states[-1], event))
        except IllegalTransitionError:
            continue
    return states


def test_every_state_has_a_row_and_every_row_leads_to_a_state() -> None:
    assert set(TRANSITIONS) == set(SlotState)
    assert {event for row in TRANSITIONS.values() for event in row} == set(SlotEvent)


def test_every_state_can_be_reached() -> None:
    reached = {SlotState.NO_SERVICE}
    while True:
        further = {after for state in reached for after in TRANSITIONS[state].values()}
        if further <= reached:
            break
        reached |= further
    assert reached == set(SlotState)


@given(EVENTS)
def test_a_slot_opens_only_after_its_card_was_identified_since_it_was_put_in(
    events: list[SlotEvent],
) -> None:
    state, proved = SlotState.NO_SERVICE, False
    for event in events:
        try:
            after = step(state, event)
        except IllegalTransitionError:
            continue
        if event in {SlotEvent.IDENTIFIED, SlotEvent.UNLOCKED, SlotEvent.PIN_NEEDED}:
            # PIN_NEEDED comes after the identity too: an operator's unlock completes it.
            proved = True
        if after in {SlotState.EMPTY, SlotState.NO_SERVICE, SlotState.IDENTIFYING}:
            proved = False
        if after in OPEN:
            assert proved
        state = after


@given(EVENTS)
def test_service_down_leads_out_of_every_other_state(events: list[SlotEvent]) -> None:
    last = run(events)[-1]
    if last is not SlotState.NO_SERVICE:
        assert step(last, SlotEvent.SERVICE_DOWN) is SlotState.NO_SERVICE


@pytest.mark.parametrize("state", [s for s in SlotState if s in TRANSITIONS])
def test_a_removal_leads_to_empty_from_every_state_with_a_card(state: SlotState) -> None:
    without = {SlotState.NO_SERVICE, SlotState.NO_READER, SlotState.EMPTY}
    if state in without:
        with pytest.raises(IllegalTransitionError):
            step(state, SlotEvent.REMOVED)
    else:
        assert step(state, SlotEvent.REMOVED) is SlotState.EMPTY


def test_a_wrong_or_blocked_card_is_left_only_by_taking_it_out() -> None:
    for state in (SlotState.WRONG_CARD, SlotState.PIN_BLOCKED):
        assert set(TRANSITIONS[state]) == {SlotEvent.REMOVED, SlotEvent.SERVICE_DOWN}


def test_every_settled_state_that_cannot_sign_has_its_alarm() -> None:
    passing = {SlotState.NO_SERVICE, SlotState.IDENTIFYING, SlotState.BUSY}
    assert set(ALARM_OF) == set(SlotState) - passing
    assert {state for state, kind in ALARM_OF.items() if kind is None} == {SlotState.READY}
    assert {kind for kind in ALARM_OF.values() if kind is not None} == set(SLOT_ALARMS)
