"""What is told by which channel, and when: the table, the rules, and any order of events."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.alarms.config import AlarmsConfig, ChannelConfig, ChannelKind, SyslogTarget
from fep.alarms.outgoing import (
    BACKOFF_FIRST_SECONDS,
    BACKOFF_SECONDS_MAX,
    MINUTE_SECONDS,
    TRANSITIONS,
    WAITING_NOTICES_MAX,
    ChannelEvent,
    ChannelState,
    IllegalChannelStepError,
    Notice,
    NoticeState,
    Outbox,
    Outgoing,
    What,
    step,
)
from fep.alarms.state import Alarm, AlarmKind, Severity

BEGIN = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)
CHANNEL = ChannelConfig("duty", ChannelKind.DINGTALK, SyslogTarget("udp"), per_minute=3, digest="1")
IDS = itertools.count(1)
RULES = AlarmsConfig(repeat_s=600.0, group_s=5.0, age_max_s=3600.0)


def at(now: float) -> dt.datetime:
    return BEGIN + dt.timedelta(seconds=now)


def alarm(number: int = 1, kind: AlarmKind = AlarmKind.LINK_DOWN, subject: str = "pingan") -> Alarm:
    return Alarm(f"a{number}", kind, subject, "refused", BEGIN, BEGIN)


def outbox(config: ChannelConfig = CHANNEL, rules: AlarmsConfig = RULES) -> Outbox:
    return Outbox(config, rules, random.Random(1), lambda: f"n{next(IDS)}")


def told(box: Outbox, now: float, most: int = 100) -> list[tuple[str, What]]:
    """Send what is due, and return it; nothing when nothing is."""
    box.look(now, at(now))
    if not box.is_due(now):
        return []
    box.begin(now, most)
    return [(one.alarm_id, one.what) for one in box.delivered(now, at(now))]


def test_every_state_has_a_row_and_an_event_without_one_is_a_defect() -> None:
    assert set(TRANSITIONS) == set(ChannelState)
    for state, event in itertools.product(ChannelState, ChannelEvent):
        if event in TRANSITIONS[state]:
            assert step(state, event) in ChannelState
        else:
            with pytest.raises(IllegalChannelStepError):
                step(state, event)


def test_what_comes_together_is_one_message() -> None:
    box = outbox()
    assert (box.state, box.next_s(0.0)) == (ChannelState.IDLE, math.inf)
    box.note_raised(alarm(1), 0.0, at(0))
    box.note_raised(alarm(2, AlarmKind.KEY_MISSING), 3.0, at(3))
    assert box.status().state is ChannelState.GATHERING
    assert box.next_s(3.0) == 5.0
    assert told(box, 4.9) == []
    assert told(box, 5.0) == [("a1", What.RAISED), ("a2", What.RAISED)]
    assert box.status().state is ChannelState.IDLE
    assert told(box, 6.0) == []


def test_the_most_severe_goes_first_and_what_has_no_room_next() -> None:
    box = outbox()
    box.note_raised(alarm(1, AlarmKind.KEY_EXPIRING), 0.0, at(0))
    box.note_raised(alarm(2, AlarmKind.CLIENT_LOST), 1.0, at(1))
    box.note_raised(alarm(3, AlarmKind.LINK_DOWN), 2.0, at(2))
    assert [one[0] for one in told(box, 5.0, most=2)] == ["a3", "a2"]
    assert box.status().state is ChannelState.GATHERING
    assert [one[0] for one in told(box, 5.0, most=2)] == ["a1"]


def test_it_is_told_again_until_a_person_acts() -> None:
    box = outbox()
    one = alarm()
    box.note_raised(one, 0.0, at(0))
    assert told(box, 7.0) == [("a1", What.RAISED)]
    assert box.next_s(7.0) == 607.0
    assert told(box, 606.9) == []
    assert told(box, 607.0) == [], "it gathers first"
    assert box.next_s(607.0) == 612.0
    assert told(box, 612.0) == [("a1", What.AGAIN)]
    box.note_acknowledged(one)
    assert box.next_s(612.0) == math.inf
    assert box.look(9999.0, at(9999)) == []
    box.note_cleared(one, 9999.0, at(9999))
    assert told(box, 10_004.0) == [("a1", What.CLEARED)]


def test_minor_alarms_are_told_once_and_with_no_span_all_are() -> None:
    box = outbox()
    box.note_raised(alarm(1, AlarmKind.KEY_EXPIRING), 0.0, at(0))
    assert told(box, 5.0) == [("a1", What.RAISED)]
    assert box.next_s(5.0) == math.inf
    box = outbox(rules=attrs.evolve(RULES, repeat_s=0.0))
    box.note_raised(alarm(), 0.0, at(0))
    assert told(box, 5.0) == [("a1", What.RAISED)]
    assert box.next_s(5.0) == math.inf


def test_that_it_came_again_is_not_told_when_it_is_over_by_then() -> None:
    box = outbox()
    one = alarm()
    box.note_raised(one, 0.0, at(0))
    assert told(box, 5.0)
    (again,) = box.look(605.0, at(605))
    ended = box.note_cleared(one, 606.0, at(606))
    assert [(n.what, n.state) for n in ended] == [
        (What.AGAIN, NoticeState.GIVEN_UP),
        (What.CLEARED, NoticeState.WAITING),
    ]
    assert again is ended[0]
    assert box.status().given_up == 0, "nobody misses it"
    assert told(box, 611.0) == [("a1", What.CLEARED)]


def test_that_it_is_over_can_be_left_out() -> None:
    box = outbox(rules=attrs.evolve(RULES, tells_cleared=False))
    one = alarm()
    box.note_raised(one, 0.0, at(0))
    assert told(box, 5.0) == [("a1", What.RAISED)]
    assert box.note_cleared(one, 6.0, at(6)) == []
    assert box.next_s(6.0) == math.inf


@pytest.mark.parametrize(
    ("change", "kind", "taken"),
    [
        ({}, AlarmKind.KEY_EXPIRING, True),
        ({"severities": frozenset({Severity.CRITICAL})}, AlarmKind.KEY_EXPIRING, False),
        ({"severities": frozenset({Severity.CRITICAL})}, AlarmKind.LINK_DOWN, True),
        ({"kinds": frozenset({AlarmKind.LINK_DOWN})}, AlarmKind.LINK_DOWN, True),
        ({"kinds": frozenset({AlarmKind.LINK_DOWN})}, AlarmKind.KEY_MISSING, False),
    ],
)
def test_a_channel_takes_what_it_is_configured_for(
    change: dict[str, Any], kind: AlarmKind, taken: bool
) -> None:
    box = outbox(attrs.evolve(CHANNEL, **change))
    one = alarm(kind=kind)
    assert bool(box.note_raised(one, 0.0, at(0))) == taken
    assert bool(box.note_cleared(one, 1.0, at(1))) == taken


def test_a_channel_does_not_tell_of_its_own_failure() -> None:
    box = outbox()
    own = alarm(kind=AlarmKind.ALARM_UNDELIVERED, subject="duty")
    other = alarm(2, kind=AlarmKind.ALARM_UNDELIVERED, subject="mail")
    assert box.note_raised(own, 0.0, at(0)) == []
    assert box.note_cleared(own, 0.0, at(0)) == []
    assert len(box.note_raised(other, 0.0, at(0))) == 1


def test_no_more_messages_a_minute_than_the_receiver_takes() -> None:
    box = outbox(rules=attrs.evolve(RULES, group_s=0.0, repeat_s=0.0))
    went = []
    for number in range(20):
        now = float(number)
        box.note_raised(alarm(number), now, at(now))
        if told(box, now):
            went.append(now)
    assert went == [0.0, 1.0, 2.0]
    assert not box.has_turn(20.0)
    assert box.next_s(20.0) == MINUTE_SECONDS
    assert len(told(box, 60.0)) == 17, "what waited is one message"
    assert box.has_turn(61.5)


def test_after_a_failure_it_pauses_ever_longer_and_then_no_longer() -> None:
    box = outbox(attrs.evolve(CHANNEL, per_minute=1000), attrs.evolve(RULES, age_max_s=1e9))
    box.note_raised(alarm(), 0.0, at(0))
    now, pauses = 5.0, []
    for _ in range(12):
        box.begin(now, 10)
        pauses.append(box.failed(now, at(now), "HTTP 500"))
        assert box.status().state is ChannelState.FAILING
        assert box.next_s(now) == now + pauses[-1]
        assert not box.is_due(now + pauses[-1] * 0.99)
        now += pauses[-1]
        assert box.is_due(now)
    ceilings = [min(BACKOFF_FIRST_SECONDS * 2**n, BACKOFF_SECONDS_MAX) for n in range(12)]
    assert all(c / 2 <= p <= c for p, c in zip(pauses, ceilings, strict=True))
    assert (box.failures, box.status().last_error) == (12, "HTTP 500")
    assert told(box, now) == [("a1", What.RAISED)]
    assert (box.failures, box.status().last_error) == (0, "")
    box.note_raised(alarm(2), now, at(now))
    box.begin(now + 5, 10)
    assert box.failed(now + 5, at(now), "x") <= BACKOFF_FIRST_SECONDS


@pytest.mark.parametrize(("asked", "least", "most"), [(120.0, 120.0, 120.0), (1e6, 600.0, 600.0)])
def test_a_pause_that_the_receiver_asks_for_is_kept(
    asked: float, least: float, most: float
) -> None:
    box = outbox()
    box.note_raised(alarm(), 0.0, at(0))
    box.begin(5.0, 10)
    assert least <= box.failed(5.0, at(5), "HTTP 429", asked) <= most


def test_what_comes_while_a_message_fails_goes_with_the_next_one() -> None:
    box = outbox()
    box.note_raised(alarm(1), 0.0, at(0))
    box.begin(5.0, 10)
    box.note_raised(alarm(2), 6.0, at(6))
    assert box.status().state is ChannelState.SENDING
    pause = box.failed(7.0, at(7), "no answer")
    assert len(told(box, 11.0 + pause)) == 2


def test_what_comes_while_a_message_is_taken_gathers() -> None:
    box = outbox()
    box.note_raised(alarm(1), 0.0, at(0))
    box.begin(5.0, 10)
    box.note_raised(alarm(2), 6.0, at(6))
    assert [one.alarm_id for one in box.delivered(7.0, at(7))] == ["a1"]
    assert box.status().state is ChannelState.GATHERING
    assert told(box, 11.0) == [("a2", What.RAISED)]


def test_what_is_too_old_is_given_up_and_told_again_later() -> None:
    box = outbox()
    box.note_raised(alarm(), 0.0, at(0))
    box.begin(5.0, 10)
    box.failed(5.0, at(5), "HTTP 500")
    (gone,) = box.look(3600.0, at(3600))
    assert (gone.state, gone.reason, gone.ended_at) == (
        NoticeState.GIVEN_UP,
        "HTTP 500",
        at(3600),
    )
    assert (box.state, box.status().given_up) == (ChannelState.IDLE, 1)
    assert box.next_s(3600.0) == 4200.0, "the alarm is in force still"
    assert told(box, 4200.0) == []
    assert told(box, 4205.0) == [("a1", What.AGAIN)]


def test_of_too_many_the_oldest_of_the_least_severe_are_given_up() -> None:
    box = outbox()
    for number in range(WAITING_NOTICES_MAX):
        box.note_raised(alarm(number), number / 1000, at(0))
    box.note_raised(alarm(9998, AlarmKind.KEY_EXPIRING), 2.0, at(2))
    box.note_raised(alarm(9999), 2.0, at(2))
    gone = box.look(2.0, at(2))
    assert [one.alarm_id for one in gone] == ["a9998", "a0"]
    assert len(box.waiting) == WAITING_NOTICES_MAX


def test_a_new_process_tells_what_nobody_got_and_what_was_never_noted() -> None:
    old = outbox()
    waits, sent, never, acted = (alarm(number) for number in range(1, 5))
    old.note_raised(waits, 100.0, at(100))
    acted.acknowledge("li", at(0))
    box = outbox()
    (made,) = box.take_over(
        [waits, sent, never, acted], old.waiting.values(), {"a2": at(0)}, 7.0, at(200)
    )
    assert made.alarm_id == "a3"
    assert told(box, 7.0) == [("a1", What.RAISED), ("a3", What.RAISED)], "one has waited enough"
    assert box.next_s(7.0) == 7.0 - 200 + 600, "as long ago as it was told"
    assert box.take_over([waits, sent, never], [], {}, 8.0, at(201)) == []


def test_a_clock_that_was_set_back_makes_nothing_older_or_younger_than_new() -> None:
    old = outbox()
    old.note_raised(alarm(), 0.0, at(9000))
    box = outbox()
    box.take_over([alarm()], old.waiting.values(), {}, 50.0, at(0))
    assert box.next_s(50.0) == 55.0


def test_other_rules_hold_at_once() -> None:
    box = outbox()
    key = alarm(2, AlarmKind.KEY_MISSING)
    box.note_raised(alarm(1), 0.0, at(0))
    box.note_raised(key, 0.0, at(0))
    assert len(told(box, 5.0)) == 2
    only = attrs.evolve(CHANNEL, kinds=frozenset({AlarmKind.KEY_MISSING}), digest="2")
    box.configure(only, attrs.evolve(RULES, repeat_s=100.0), 10.0)
    assert box.next_s(10.0) == 110.0
    (again,) = box.look(110.0, at(110))
    assert again.alarm_id == key.id
    box.begin(115.0, 10)
    box.failed(115.0, at(115), "HTTP 404")
    assert not box.is_due(115.0)
    box.configure(attrs.evolve(only, digest="3"), RULES, 115.0)
    assert box.is_due(115.0), "another place is tried at once"


def test_a_channel_that_is_taken_away_ends_what_waits() -> None:
    outgoing = Outgoing(random.Random(1), lambda: f"n{next(IDS)}")
    two = attrs.evolve(CHANNEL, name="mail")
    assert outgoing.configure(attrs.evolve(RULES, channels=(CHANNEL, two)), 0.0, at(0)) == []
    made = outgoing.raised(alarm(), 0.0, at(0))
    assert {one.channel for one in made} == {"duty", "mail"}
    outgoing.boxes["duty"].begin(5.0, 10)
    (ended,) = outgoing.configure(attrs.evolve(RULES, channels=(two,)), 6.0, at(6))
    assert (ended.channel, ended.state) == ("duty", NoticeState.GIVEN_UP)
    assert list(outgoing.boxes) == ["mail"]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["raise", "ack", "clear", "send", "fail", "look", "set", "abandon"]),
        st.integers(0, 3),
        st.floats(0.0, 900.0),
    ),
    max_size=60,
)


@given(EVENTS)
def test_in_any_order_each_notice_ends_once_and_nothing_is_forgotten(
    events: list[tuple[str, int, float]],
) -> None:
    """Every notice is told or given up; an alarm in force is told or waits; no loop stands."""
    box = outbox()
    kinds = list(AlarmKind)
    made: dict[str, Notice] = {}
    active: dict[int, Alarm] = {}
    now, number = 0.0, 0
    for what, which, passes in events:
        now += passes
        for one in box.look(now, at(now)):
            made.setdefault(one.id, one)
        if what == "raise" and which not in active:
            number += 1
            active[which] = alarm(number, kinds[(number * 7) % len(kinds)])
            made |= {one.id: one for one in box.note_raised(active[which], now, at(now))}
        elif what == "ack" and which in active:
            box.note_acknowledged(active[which])
            active[which].acknowledge("li", at(now))
        elif what == "clear" and which in active:
            gone = active.pop(which)
            made |= {one.id: one for one in box.note_cleared(gone, now, at(now))}
        elif what in {"send", "fail"} and box.is_due(now):
            before = set(box.waiting)
            under_way = box.begin(now, 2)
            assert {one.id for one in under_way} <= before
            if what == "send":
                ended = box.delivered(now, at(now))
                assert {one.id for one in ended} == before - set(box.waiting)
            else:
                box.failed(now, at(now), "x")
                assert set(box.waiting) == before
        elif what == "set":
            box.configure(attrs.evolve(CHANNEL, digest=str(now)), RULES, now)
        elif what == "abandon":
            box.abandon()
        assert (box.state is ChannelState.IDLE) == (not box.waiting)
        for one in made.values():
            waits = one.state is NoticeState.WAITING
            assert waits == (one.id in box.waiting) == (one.ended_at is None)
        for alive in active.values():
            notices = [n for n in made.values() if n.alarm_id == alive.id]
            assert notices, "an alarm in force was noted"
        # Whoever waits until then finds something to do: the loop of the shell does not spin.
        upcoming = box.next_s(now)
        if upcoming <= now:
            assert box.is_due(now) or box.look(now, at(now))
    for attempt in range(500):
        if not box.waiting:
            break
        if box.is_due(now):
            box.begin(now, 2)
            box.delivered(now, at(now))
        else:
            now = max(now, min(box.next_s(now), now + 1000.0))
            for alive in active.values():
                box.note_acknowledged(alive)
            for one in box.look(now, at(now)):
                made.setdefault(one.id, one)
        assert attempt < 400
    assert not box.waiting
