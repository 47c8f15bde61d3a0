"""Delays between attempts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fep.links.backoff import Backoff

FIRST_S, MAX_S = 0.5, 60.0


@given(seed=st.integers(), attempts=st.integers(1, 2000))
def test_every_delay_is_between_nothing_and_a_doubling_ceiling(seed: int, attempts: int) -> None:
    backoff = Backoff(FIRST_S, MAX_S, random.Random(seed))
    for attempt in range(attempts):
        ceiling = min(FIRST_S * 2.0 ** min(attempt, 60), MAX_S)
        assert backoff.ceiling_s == ceiling
        assert 0.0 <= backoff.next_s() <= ceiling


def test_the_jitter_is_full() -> None:
    delays = []
    for seed in range(400):
        backoff = Backoff(FIRST_S, MAX_S, random.Random(seed))
        delays.append(backoff.next_s() / FIRST_S)
    assert min(delays) < 0.05
    assert max(delays) > 0.95
    assert 0.4 < sum(delays) / len(delays) < 0.6


def test_a_reset_begins_again() -> None:
    backoff = Backoff(FIRST_S, MAX_S, random.Random(1))
    for _ in range(9):
        backoff.next_s()
    assert backoff.ceiling_s == MAX_S
    backoff.reset()
    assert backoff.ceiling_s == FIRST_S


def test_a_first_delay_above_the_cap_is_capped() -> None:
    backoff = Backoff(5.0, 1.0, random.Random(1))
    assert backoff.ceiling_s == 1.0
    backoff.reset()
    assert backoff.ceiling_s == 1.0
