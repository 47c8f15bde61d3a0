"""When a round is due: on Shanghai's clock, whatever the machine's zone and clock do."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.clock import SHANGHAI
from fep.pooling.schedule import TIMES_MAX, last_due, next_due, parse_schedule

TIMES = st.lists(
    st.times(dt.time(0), dt.time(23, 59)).map(lambda time: time.replace(second=0, microsecond=0)),
    min_size=1,
    max_size=5,
).map(lambda times: tuple(sorted(set(times))))
ZONES = st.sampled_from(
    [dt.UTC, SHANGHAI, dt.timezone(dt.timedelta(hours=-11)), dt.timezone(dt.timedelta(hours=14))]
)
MOMENTS = st.datetimes(
    min_value=dt.datetime.fromisoformat("2000-01-03"),
    max_value=dt.datetime.fromisoformat("2100-01-01"),
    timezones=ZONES,
)


def shanghai(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"{text}+08:00")


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", ()),
        (" , ", ()),
        ("08:30", (dt.time(8, 30),)),
        ("17:30, 08:30", (dt.time(8, 30), dt.time(17, 30))),
        ("00:00,23:59,00:00", (dt.time(0), dt.time(23, 59))),
    ],
)
@pytest.mark.req("POOL-14")
def test_times_of_day_are_read_and_sorted(text: str, times: tuple[dt.time, ...]) -> None:
    assert parse_schedule(text) == times


@pytest.mark.parametrize(
    "text",
    [
        "8:30",
        "24:00",
        "08:60",
        "08:30:00",
        "0830",
        "08.30",
        "08：30",
        "０８:30",
        "noon",
        "08:30;17:30",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write times as"):
        parse_schedule(text)


def test_a_day_has_room_for_so_many_rounds() -> None:
    times = [f"{number // 60:02d}:{number % 60:02d}" for number in range(TIMES_MAX + 1)]
    assert len(parse_schedule(",".join(times[:-1]))) == TIMES_MAX
    with pytest.raises(ValueError, match=r"at most 48"):
        parse_schedule(",".join(times))


@pytest.mark.parametrize(
    ("now", "last", "following"),
    [
        ("2026-01-05T00:00:00", "2026-01-04T17:30", "2026-01-05T08:30"),
        ("2026-01-05T08:29:59.999999", "2026-01-04T17:30", "2026-01-05T08:30"),
        ("2026-01-05T08:30:00", "2026-01-05T08:30", "2026-01-05T17:30"),
        ("2026-01-05T08:30:00.000001", "2026-01-05T08:30", "2026-01-05T17:30"),
        ("2026-01-05T23:59:59", "2026-01-05T17:30", "2026-01-06T08:30"),
        ("2026-01-31T18:00:00", "2026-01-31T17:30", "2026-02-01T08:30"),
        ("2026-12-31T18:00:00", "2026-12-31T17:30", "2027-01-01T08:30"),
        ("2028-02-29T18:00:00", "2028-02-29T17:30", "2028-03-01T08:30"),
    ],
)
@pytest.mark.req("POOL-14")
def test_due_moments_across_midnight(now: str, last: str, following: str) -> None:
    times = parse_schedule("08:30, 17:30")
    moment = shanghai(now)
    for zone in (SHANGHAI, dt.UTC, dt.timezone(dt.timedelta(hours=-11))):
        assert last_due(times, moment.astimezone(zone)) == shanghai(last)
        assert next_due(times, moment.astimezone(zone)) == shanghai(following)


def test_midnight_itself_is_a_time() -> None:
    times = parse_schedule("00:00")
    # 16:00 UTC is midnight in Shanghai.
    midnight = dt.datetime(2026, 1, 4, 16, tzinfo=dt.UTC)
    assert last_due(times, midnight) == midnight
    assert next_due(times, midnight) == midnight + dt.timedelta(days=1)
    assert last_due(times, midnight - dt.timedelta(microseconds=1)) == midnight - dt.timedelta(
        days=1
    )


def test_without_times_nothing_is_due() -> None:
    assert last_due((), shanghai("2026-01-05T00:00")) is None
    assert next_due((), shanghai("2026-01-05T00:00")) is None


@given(times=TIMES, now=MOMENTS)
def test_now_is_between_the_last_and_the_next(times: tuple[dt.time, ...], now: dt.datetime) -> None:
    last, following = last_due(times, now), next_due(times, now)
    assert last is not None
    assert following is not None
    assert last <= now < following
    assert following - last <= dt.timedelta(days=1)
    for due in (last, following):
        assert due.astimezone(SHANGHAI).timetz().replace(tzinfo=None) in times
    # No due moment lies between the two.
    assert next_due(times, last) == following
    assert last_due(times, following - dt.timedelta(microseconds=1)) == last


@given(times=TIMES, now=MOMENTS, steps=st.lists(st.integers(1, 40_000), max_size=30))
def test_who_looks_at_any_moments_sees_each_due_moment_once(
    times: tuple[dt.time, ...], now: dt.datetime, steps: list[int]
) -> None:
    """Walking by ``next_due`` from the first look to the last meets what the looks met."""
    looks = [now]
    for seconds in steps:
        looks.append(looks[-1] + dt.timedelta(seconds=seconds))
    met = {last_due(times, look) for look in looks[1:]} - {last_due(times, now)}
    walked = set()
    due = next_due(times, now)
    while due is not None and due <= looks[-1]:
        walked.add(due)
        due = next_due(times, due)
    assert met <= walked
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    closest = min(
        (next_due(times, due) - due for due in walked),  # type: ignore[operator]
        default=dt.timedelta(days=1),
    )
    if all(gap <= closest for gap in gaps):
        assert met == walked
