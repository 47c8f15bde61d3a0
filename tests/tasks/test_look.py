"""One look at an account: pages in order, no more than is allowed, each line's page known."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.api import Reply
from fep.domain.clock import SHANGHAI, BusinessDate, business_date
from fep.domain.ids import AccountNumber
from fep.domain.money import Cny
from fep.domain.order import (
    STATEMENT_DAYS_MAX,
    Direction,
    Statement,
    StatementEntry,
    StatementQuery,
)
from fep.tasks import look
from fep.tasks.look import Look

pytestmark = pytest.mark.req("LAND-51")

PAYER = AccountNumber("99000000000101")
DAY = BusinessDate(dt.date(2026, 3, 2))
NOW = dt.datetime(2026, 3, 2, 10, tzinfo=SHANGHAI)


def entries(count: int) -> tuple[StatementEntry, ...]:
    return tuple(StatementEntry(f"B{n}", NOW, Direction.DEBIT, Cny(n + 1)) for n in range(count))


def reply(number: int) -> Reply:
    return Reply(f"c{number}", "4008", "000000", "", b"%d" % number)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_page_of_every_part_is_read_once_and_every_line_has_its_page(
    parts: list[list[int]],
) -> None:
    one = Look(PAYER)
    one.ask_statement([StatementQuery(PAYER, DAY, DAY) for _ in parts])
    number = 0
    for pages in parts:
        for place, size in enumerate(pages):
            assert one.parts[0].cursor == (f"after {place - 1}" if place else "")
            cursor = "" if place == len(pages) - 1 else f"after {place}"
            one.take_page(Statement(entries(size), cursor), reply(number))
            for entry in one.entries[len(one.entries) - size :]:
                assert one.page_of(entry) == one.pages[-1][1:]
            number += 1
    assert not one.parts
    assert one.is_complete
    assert len(one.pages) == number
    assert len(one.entries) == sum(map(sum, parts))


@pytest.mark.parametrize("limit", ["PAGES_MAX", "ENTRIES_MAX"])
def test_a_statement_without_end_is_given_up_and_known_as_incomplete(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, limit, 6)
    one = Look(PAYER)
    one.ask_statement([StatementQuery(PAYER, DAY, DAY)] * 2)
    for number in range(6):
        if not one.parts:
            break
        one.take_page(Statement(entries(2), "more"), reply(number))
    assert not one.parts
    assert not one.is_complete
    assert len(one.entries) == (12 if limit == "PAGES_MAX" else 6)


MOMENTS = st.integers(0, 30 * 365 * 24 * 60).map(
    lambda minutes: NOW - dt.timedelta(minutes=minutes)
)


@given(MOMENTS, MOMENTS)
def test_the_days_reach_to_the_one_before_the_sending_as_far_as_a_statement_does(
    oldest: dt.datetime, now: dt.datetime
) -> None:
    first, last = look.days(oldest, now)
    assert last == business_date(now)
    assert first < last
    assert (last - first).days < STATEMENT_DAYS_MAX
    day_before = business_date(oldest) - dt.timedelta(days=1)
    if (last - day_before).days < STATEMENT_DAYS_MAX:
        # Also where the clock says that it was sent tomorrow.
        assert first <= day_before
