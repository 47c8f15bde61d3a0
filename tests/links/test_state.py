"""The table of a link's life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.links.state import (
    CONNECTED,
    TRANSITIONS,
    IllegalTransitionError,
    LinkEvent,
    LinkState,
    step,
)


def test_every_state_has_a_row_and_every_event_a_use() -> None:
    assert set(TRANSITIONS) == set(LinkState)
    assert {event for row in TRANSITIONS.values() for event in row} == set(LinkEvent)


def test_what_is_not_written_cannot_happen() -> None:
    with pytest.raises(IllegalTransitionError, match="logged_on in state off"):
        step(LinkState.OFF, LinkEvent.LOGGED_ON)


@pytest.mark.req("FEP-09")
def test_a_session_begins_only_with_the_key_there() -> None:
    entries = {
        (state, event)
        for state, row in TRANSITIONS.items()
        for event, after in row.items()
        if after is LinkState.CONNECTING
    }
    assert entries == {
        (LinkState.NO_KEY, LinkEvent.KEY_THERE),
        (LinkState.BACKING_OFF, LinkEvent.DELAY_OVER),
        # Only of a session that the key's going would have drained.
        (LinkState.READY, LinkEvent.RESTED),
    }


@pytest.mark.req("FEP-09")
def test_without_the_key_no_request_is_taken_again_before_a_new_log_on() -> None:
    assert TRANSITIONS[LinkState.DRAINING].keys().isdisjoint({LinkEvent.LOGGED_ON})
    ways = {state for state, row in TRANSITIONS.items() if LinkState.READY in row.values()}
    assert ways == {LinkState.LOGGING_ON}


def test_every_running_link_can_be_stopped() -> None:
    running = set(LinkState) - {LinkState.OFF}
    assert all(TRANSITIONS[state][LinkEvent.STOPPED] is LinkState.OFF for state in running)


@given(st.lists(st.sampled_from(LinkEvent), max_size=40))
def test_ready_comes_only_from_a_fresh_connection(events: list[LinkEvent]) -> None:
    state, connects = LinkState.OFF, 0
    for event in events:
        before = state
        try:
            state = step(state, event)
        except IllegalTransitionError:
            continue
        connects += event is LinkEvent.CONNECTED
        if state is LinkState.READY and before is not LinkState.READY:
            assert before is LinkState.LOGGING_ON
            assert connects > 0
        if state in CONNECTED and before not in CONNECTED:
            assert event is LinkEvent.CONNECTED
