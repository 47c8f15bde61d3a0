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
    st.lists(st.tuples(st.floats(0.01, 100.0), st.sampled_from(["heard", "wake"])), max_size=60),
    st.floats(0.5, 60.0),
)
def test_death_means_silence_and_silence_means_death(
    moves: list[tuple[float, str]], heartbeat_s: float
) -> None:
    now = heard_at = 0.0
    liveness = Liveness(heartbeat_s, now)
    for span, move in moves:
        now += span
        if move == "heard":
            liveness.heard(now)
            heard_at = now
        due = liveness.due(now)
        assert (due is Due.END) == (now >= heard_at + DEAD_FACTOR * heartbeat_s)
        if due is Due.PROBE:
            assert now - heard_at >= heartbeat_s * (1 - 1e-9)
            liveness.probed(now)
            assert liveness.due(now) is Due.NOTHING
        if due is not Due.END:
            assert liveness.next_at > now


@pytest.mark.parametrize(("at", "due"), [(29.999, Due.NOTHING), (30.0, Due.PROBE), (75.0, Due.END)])
def test_the_bounds(at: float, due: Due) -> None:
    assert Liveness(HEARTBEAT_S, 0.0).due(at) is due
