"""What the loop may lose to slow commits: a small share of its time, whatever the disk does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.store.pace import LOST_SECONDS_MAX, LOST_SHARE_MAX, QUICK_SECONDS_MAX, Pace

pytestmark = pytest.mark.req("FEP-23")


def test_quick_commits_are_free() -> None:
    pace = Pace()
    now = 1000.0
    for _ in range(10_000):
        assert pace.is_quick(now)
        now += QUICK_SECONDS_MAX
        pace.note(QUICK_SECONDS_MAX, now)


def test_a_slow_commit_now_and_then_is_no_reason_to_change() -> None:
    pace = Pace()
    slow = LOST_SECONDS_MAX / 2
    now = 0.0
    for _ in range(100):
        assert pace.is_quick(now)
        pace.note(slow, now + slow)
        now += slow / LOST_SHARE_MAX + slow


def test_a_disk_that_hung_is_not_trusted_until_it_is_made_good() -> None:
    pace = Pace()
    pace.note(10.0, 100.0)
    made_good = 100.0 + (10.0 - LOST_SECONDS_MAX) / LOST_SHARE_MAX
    assert not pace.is_quick(100.0)
    assert not pace.is_quick(made_good - 0.001)
    assert pace.is_quick(made_good + 0.001)


@given(
    commits=st.lists(st.tuples(st.floats(0.0, 0.2), st.floats(0.0, 1.0)), min_size=1, max_size=60)
)
def test_what_is_lost_is_bounded(commits: list[tuple[float, float]]) -> None:
    """In any stretch: the share, what may be lost in advance, and the one commit that tells."""
    pace = Pace()
    now = 0.0
    lost: list[tuple[float, float]] = []
    for waited, pause in commits:
        if pace.is_quick(now):
            now += waited
            pace.note(waited, now)
            lost.append((now, waited if waited > QUICK_SECONDS_MAX else 0.0))
        now += pause
    for begin in range(len(lost)):
        for end in range(begin, len(lost)):
            stretch = lost[end][0] - lost[begin][0]
            bound = LOST_SECONDS_MAX + LOST_SHARE_MAX * stretch + 2 * 0.2
            assert sum(waited for _, waited in lost[begin : end + 1]) <= bound + 1e-9
