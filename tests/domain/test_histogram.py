"""A histogram against the plain definition: how many values are not above a bound."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain import histogram
from fep.domain.histogram import Histogram

BOUNDS = (0.1, 1.0, 5.0)
VALUES = st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100)))


@given(VALUES)
def test_a_bucket_counts_what_is_not_above_its_bound(values: list[float]) -> None:
    one = Histogram(BOUNDS)
    for value in values:
        one.observe(value)
    found = [(bound, count) for bound, count, _ in one.buckets()]
    assert found == [
        (bound, sum(value <= bound for value in values)) for bound in (*BOUNDS, math.inf)
    ]
    assert one.count == len(values)
    assert one.total == pytest.approx(sum(values))


def test_a_bucket_keeps_the_newest_example_of_its_own() -> None:
    one = Histogram(BOUNDS)
    for value, name in ((0.5, "a"), (0.7, "b"), (0.6, ""), (50.0, "c")):
        one.observe(value, name)
    assert [example for _, _, example in one.buckets()] == [None, ("b", 0.7), None, ("c", 50.0)]


def test_bounds_ascend() -> None:
    for name in ("REQUEST_SECONDS", "TASK_SECONDS", "COMMIT_SECONDS", "LAG_SECONDS"):
        bounds = getattr(histogram, name)
        assert list(bounds) == sorted(set(bounds))
