"""The life of an alarm, whatever happens in whatever order."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.alarms.state import (
    MEANINGS,
    TRANSITIONS,
    Alarm,
    AlarmEvent,
    AlarmKind,
    AlarmState,
    IllegalTransitionError,
    step,
)

NOW = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)


def alarm() -> Alarm:
    return Alarm("a1", AlarmKind.KEY_MISSING, "ukey-1", "taken out", NOW, NOW)


def test_every_kind_says_in_two_languages_what_it_is_and_what_to_do() -> None:
    assert set(MEANINGS) == set(AlarmKind)
    for kind, meaning in MEANINGS.items():
        assert kind.value == kind.name
        assert meaning.title.isascii()
        assert meaning.action.endswith(".")
        assert any("\u4e00" <= character <= "\u9fff" for character in meaning.title_zh)
    assert len({meaning.title_zh for meaning in MEANINGS.values()}) == len(AlarmKind)


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(AlarmState)
    assert TRANSITIONS[AlarmState.CLEARED] == {}


@given(st.lists(st.sampled_from(AlarmEvent)))
def test_any_events_follow_the_table_and_a_cleared_alarm_stays_so(events: list[AlarmEvent]) -> None:
    state = AlarmState.RAISED
    for event in events:
        if state is AlarmState.CLEARED:
            with pytest.raises(IllegalTransitionError, match=event.value):
                step(state, event)
            continue
        was, state = state, step(state, event)
        if event is AlarmEvent.CLEAR:
            assert state is AlarmState.CLEARED
        if was is AlarmState.ACKNOWLEDGED:
            assert state is not AlarmState.RAISED, "nobody is asked twice for the same cause"


def test_what_a_person_did_shows_beside_the_cause() -> None:
    one = alarm()
    assert one.value() == {
        "alarm_id": "a1",
        "kind": "KEY_MISSING",
        "subject": "ukey-1",
        "state": "raised",
        "severity": "critical",
        "title": "USB-Key not inserted",
        "title_zh": "UKey 未插入",
        "cause": "taken out",
        "action": MEANINGS[AlarmKind.KEY_MISSING].action,
        "action_zh": MEANINGS[AlarmKind.KEY_MISSING].action_zh,
        "count": 1,
        "raised_at": "2026-03-02T01:00:00.000+00:00",
        "last_at": "2026-03-02T01:00:00.000+00:00",
    }
    one.seen_again("again", NOW + dt.timedelta(seconds=1))
    one.acknowledge("li", NOW + dt.timedelta(seconds=2))
    one.clear(NOW + dt.timedelta(seconds=3))
    shown = one.value()
    assert (shown["state"], shown["cause"], shown["count"]) == ("cleared", "again", 2)
    assert shown["last_at"] == "2026-03-02T01:00:01.000+00:00"
    assert shown["acknowledged_by"] == "li"
    assert shown["acknowledged_at"] == "2026-03-02T01:00:02.000+00:00"
    assert shown["cleared_at"] == "2026-03-02T01:00:03.000+00:00"
