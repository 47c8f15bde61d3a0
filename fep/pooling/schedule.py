"""When rounds are due: times of day in Shanghai, such as ``08:30, 17:30``. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from fep.domain.clock import SHANGHAI

TIMES_MAX: Final = 48
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def parse_schedule(text: str) -> tuple[dt.time, ...]:
    """Return the times of day, sorted; none for ``""`` (only by hand).

    Raises:
        ValueError: not a list of ``HH:MM``.
    """
    times: set[dt.time] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not (found := _TIME.fullmatch(part)):
            msg = f"{part!r} is not a time HH:MM; write times as '08:30, 17:30' (Shanghai)"
            raise ValueError(msg)
        times.add(dt.time(int(found[1]), int(found[2])))
    if len(times) > TIMES_MAX:
        msg = f"at most {TIMES_MAX} times a day"
        raise ValueError(msg)
    return tuple(sorted(times))


def next_due(times: tuple[dt.time, ...], after: dt.datetime) -> dt.datetime | None:
    """Return the first due moment strictly after ``after``; None when there is no time at all."""
    if not times:
        return None
    local = after.astimezone(SHANGHAI)
    for day in (local.date(), local.date() + dt.timedelta(days=1)):
        for time in times:
            due = dt.datetime.combine(day, time, SHANGHAI)
            if due > local:
                return due
    msg = "a day later every time of day is due again"
    raise AssertionError(msg)


def last_due(times: tuple[dt.time, ...], until: dt.datetime) -> dt.datetime | None:
    """Return the latest due moment at or before ``until``; None when there is no time at all."""
    if not times:
        return None
    local = until.astimezone(SHANGHAI)
    for day in (local.date(), local.date() - dt.timedelta(days=1)):
        for time in reversed(times):
            due = dt.datetime.combine(day, time, SHANGHAI)
            if due <= local:
                return due
    msg = "a day earlier every time of day was due"
    raise AssertionError(msg)
