"""When to probe, and when a silent bank is dead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.links.liveness import DEAD_FACTOR, Due, Liveness

HEARTBEAT_S = 30.0


def test_a_silent_bank_is_probed_twice_and_then_dead() -> None:
    liveness = Liveness(HEARTBEAT_S, 0.0)
    done = []
    while True:
        now = liveness.next_at
        due = liveness.due(now)
        done.append((now, due))
        if due is Due.END:
            break
        liveness.probed(now)
    assert done == [(30.0, Due.PROBE), (60.0, Due.PROBE), (75.0, Due.END)]


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100.0), st.sampled_from(["heard", "asked", "wake"])), max_size=60
    ),
    st.floats(0.5, 60.0),
)
def test_death_means_silence_and_silence_means_death(
    moves: list[tuple[float, str]], heartbeat_s: float
) -> None:
    now = heard_at = 0.0
    owed_from: float | None = None
    liveness = Liveness(heartbeat_s, now)
    for span, move in moves:
        now += span
        if move == "heard":
            liveness.heard(now)
            heard_at, owed_from = now, None
        elif move == "asked":
            liveness.asked(now)
            owed_from = now if owed_from is None else owed_from
        due = liveness.due(now)
        silent_from = heard_at if owed_from is None else owed_from
        assert (due is Due.END) == (now >= silent_from + DEAD_FACTOR * heartbeat_s)
        if due is Due.PROBE:
            assert now - heard_at >= heartbeat_s * (1 - 1e-9)
            liveness.probed(now)
            assert liveness.due(now) is Due.NOTHING
        if due is not Due.END:
            assert liveness.next_at > now


@pytest.mark.parametrize(("at", "due"), [(29.999, Due.NOTHING), (30.0, Due.PROBE), (75.0, Due.END)])
def test_the_bounds(at: float, due: Due) -> None:
    assert Liveness(HEARTBEAT_S, 0.0).due(at) is due


def test_a_bank_has_the_whole_span_for_the_first_request_since_its_last_answer() -> None:
    liveness = Liveness(HEARTBEAT_S, 0.0)
    liveness.asked(29.0)
    liveness.asked(70.0)
    assert (liveness.due(103.9), liveness.due(104.0)) == (Due.PROBE, Due.END)
    liveness.heard(80.0)
    assert liveness.due(154.9) is Due.PROBE
    liveness.asked(100.0)
    assert (liveness.due(174.9), liveness.due(175.0)) == (Due.PROBE, Due.END)
