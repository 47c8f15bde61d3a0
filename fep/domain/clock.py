"""Time as an argument: the wall clock in aware UTC, business dates in Asia/Shanghai."""

from __future__ import annotations

import datetime as dt
import functools
import re
import time
from collections.abc import Callable
from typing import Final, NewType, Protocol

_AHEAD: Final = dt.timedelta(hours=8)
SHANGHAI: Final = dt.timezone(_AHEAD, "Asia/Shanghai")
"""China has had one zone and no summer time since 1991, so a fixed offset is exact."""

MOMENTS_KEPT: Final = 256
"""Of those read last: many lines of a page bear the same time, or a day alone."""
BANK_DIGITS: Final = 14
"""Of a bank's time: year to second."""
_NUMBERS: Final = re.compile(r"[0-9]+")

BusinessDate = NewType("BusinessDate", dt.date)
"""A day as the bank counts it (Asia/Shanghai), not to be mixed with a UTC date."""


class Clock(Protocol):
    """What tells the wall-clock time; durations come from ``trio.current_time`` instead."""

    def now(self) -> dt.datetime:
        """Return the present moment, aware, in UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> dt.datetime:
        """Return the present moment, aware, in UTC."""
        return dt.datetime.now(dt.UTC)


def steady_seconds() -> float:
    """Return a clock that is never set, and does not stand still while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PatientClock:
    """A clock that is never ahead of what has really passed since it was made.

    The wall clock may be stepped, by NTP or by an operator. A step back is followed; a step forward
    only as fast as time passes. What counts by this clock may come late, never early.

    Args:
        wall: the clock that people read.
        elapsed: seconds since some moment; never stepped (``trio.current_time``).
    """

    def __init__(self, wall: Clock, elapsed: Callable[[], float]) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._began_at = wall.now()
        self._began = elapsed()

    def now(self) -> dt.datetime:
        """Return the present moment, or an earlier one; aware, in UTC."""
        lived = dt.timedelta(seconds=self._elapsed() - self._began)
        return min(self._wall.now(), self._began_at + lived)


def to_shanghai(moment: dt.datetime) -> dt.datetime:
    """Return the same moment on a Shanghai clock."""
    return moment.astimezone(SHANGHAI)


def business_date(moment: dt.datetime) -> BusinessDate:
    """Return the calendar day in Shanghai at that moment."""
    return BusinessDate(moment.astimezone(SHANGHAI).date())


def to_text(moment: dt.datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds, the one form stored and sent."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds")


def from_text(text: str) -> dt.datetime:
    """Return the moment written by :func:`to_text`, or any RFC 3339 time with an offset.

    Raises:
        ValueError: not such a time, or without an offset.
    """
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        msg = f"{text!r} has no offset; write it as 2026-01-05T09:00:00+08:00"
        raise ValueError(msg)
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError as error:
        msg = f"{text!r} is outside the calendar in UTC"
        raise ValueError(msg) from error


@functools.lru_cache(MOMENTS_KEPT)
def from_bank(text: str) -> dt.datetime:
    """Return the moment that a bank writes in Shanghai time: fourteen digits, any marks between.

    What follows, such as fractions of a second, does not count.

    Raises:
        ValueError: there are fewer digits, or they are no time.
    """
    digits = "".join(_NUMBERS.findall(text))
    if len(digits) < BANK_DIGITS:
        msg = f"{text[:40]!r} is no date and time"
        raise ValueError(msg)
    local = dt.datetime.fromisoformat(f"{digits[:8]}T{digits[8:BANK_DIGITS]}")
    try:
        # Cheaper than a zone and `astimezone`; the pages of statements are read by this.
        return local.replace(tzinfo=dt.UTC) - _AHEAD
    except OverflowError as error:
        msg = f"{text[:40]!r} is outside the calendar in UTC"
        raise ValueError(msg) from error
