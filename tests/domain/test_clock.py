"""Times are aware UTC; a business day is Shanghai's."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.clock import (
    SHANGHAI,
    PatientClock,
    SystemClock,
    business_date,
    from_bank,
    from_text,
    to_shanghai,
    to_text,
)

MOMENTS = st.datetimes(
    min_value=dt.datetime.fromisoformat("1992-01-01"),
    max_value=dt.datetime.fromisoformat("9000-01-01"),
    timezones=st.just(dt.UTC),
).map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))


def test_the_day_begins_at_midnight_in_shanghai() -> None:
    before = dt.datetime(2026, 1, 4, 15, 59, 59, 999_999, tzinfo=dt.UTC)
    assert business_date(before) == dt.date(2026, 1, 4)
    assert business_date(before + dt.timedelta(microseconds=1)) == dt.date(2026, 1, 5)
    assert to_shanghai(before).hour == 23


@given(moment=MOMENTS)
def test_stored_times_are_read_back(moment: dt.datetime) -> None:
    text = to_text(moment)
    assert from_text(text) == moment
    assert from_text(text).tzinfo is dt.UTC
    assert text.endswith("+00:00")
    assert to_text(moment.astimezone(SHANGHAI)) == text


@given(one=MOMENTS, two=MOMENTS)
def test_stored_times_sort_as_text(one: dt.datetime, two: dt.datetime) -> None:
    assert (to_text(one) < to_text(two)) == (one < two)


@pytest.mark.parametrize(
    "text",
    ["2026-01-05T09:00:00+08:00", "2026-01-05T01:00:00Z", "2026-01-05T01:00:00.000+00:00"],
)
def test_any_offset_is_understood(text: str) -> None:
    assert from_text(text) == dt.datetime(2026, 1, 5, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-05T09:00:00",
        "2026-01-05",
        "2026-13-05T09:00:00Z",
        "２０２６-01-05T09:00:00Z",
        # No moment of UTC's calendar, though one of the other's.
        "0001-01-01T00:00:00+08:00",
        "9999-12-31T23:59:59-08:00",
        "2026-01-05T09:00:00+99:00",
        "\ud800",
    ],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_text(text)


@given(text=st.text(max_size=32))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert from_text(text).tzinfo is dt.UTC


def test_the_machine_s_clock_is_aware_and_utc() -> None:
    assert SystemClock().now().utcoffset() == dt.timedelta(0)


class _Wall:
    def __init__(self) -> None:
        self.moment = dt.datetime(2026, 1, 5, 1, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        return self.moment


STEPS = st.lists(
    st.tuples(
        st.floats(0, 1000),
        st.one_of(st.just(0.0), st.floats(-100_000, 100_000)),
    ),
    max_size=30,
)
"""Seconds that pass, and by how much the wall clock is set then."""


@given(steps=STEPS, began=st.floats(0, 1e6))
def test_a_patient_clock_is_never_ahead_of_what_has_passed(
    steps: list[tuple[float, float]], began: float
) -> None:
    wall, passed = _Wall(), began
    patient = PatientClock(wall, lambda: passed)
    first = patient.now()
    assert first == wall.moment
    for seconds, step in steps:
        passed += seconds
        wall.moment += dt.timedelta(seconds=seconds + step)
        lived = dt.timedelta(seconds=passed - began)
        assert patient.now() <= wall.moment
        assert patient.now() - first <= lived
        assert patient.now() == min(wall.moment, first + lived)


def test_a_patient_clock_follows_a_clock_that_goes_right_again() -> None:
    wall, passed = _Wall(), 0.0
    patient = PatientClock(wall, lambda: passed)
    for step in (86_400.0, -2 * 86_400.0, 86_400.0):
        passed += 60.0
        wall.moment += dt.timedelta(seconds=60.0 + step)
    assert patient.now() == wall.moment


@pytest.mark.parametrize(
    "text",
    [
        "20260105090200",
        "2026-01-05-09.02.00.123456",
        "2026/01/0509:02:00",
        " 2026年01月05日 090200 ",
    ],
)
def test_a_banks_time_is_shanghais_whatever_its_marks(text: str) -> None:
    assert from_bank(text) == dt.datetime(2026, 1, 5, 1, 2, 0, tzinfo=dt.UTC)
    assert from_bank(text).tzinfo is dt.UTC


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-05", "2026010590200", "20260105250000", "20261305090000", "00010101000000"],
)
def test_what_is_no_time_of_a_bank_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_bank(text)
