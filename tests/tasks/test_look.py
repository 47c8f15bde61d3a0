"""One look at an account: pages in order, no more than is allowed, each line's page known."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.api import Reply
from fep.domain.clock import SHANGHAI, BusinessDate, business_date
from fep.domain.ids import AccountNumber, ClientRef, TaskId
from fep.domain.money import Cny
from fep.domain.order import (
    STATEMENT_DAYS_MAX,
    Direction,
    Statement,
    StatementEntry,
    StatementQuery,
)
from fep.tasks import look
from fep.tasks.look import LOSSES_MAX, Look
from fep.tasks.matching import Payment, Watched

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


def asking(*places: int, known_bad: frozenset[int] = frozenset()) -> Look:
    one = Look(PAYER, is_begun=True, is_judged=True, known_bad=known_bad)
    paid = Payment(ClientRef("R"), PAYER, AccountNumber("9"), Cny(1), NOW)
    one.ask_after(Watched(place, TaskId(f"T{place}"), paid) for place in places)
    return one


def places(one: Look) -> list[int]:
    return [asked.seq for asked in one.asks]


def test_a_success_that_the_bank_tells_nothing_of_is_passed_over_at_the_second_time() -> None:
    one = asking(1, 2, 3)
    one.lose("no answer")
    assert (places(one), one.missed) == ([1, 2, 3], "")
    one.lose("no answer")
    assert (places(one), one.missed, one.bad) == ([2, 3], "no answer", {1})
    one.take_told()
    assert (places(one), one.losses) == ([3], 0)


def test_a_bank_that_answers_nothing_ends_a_look() -> None:
    one = asking(1, 2, 3)
    for _ in range(LOSSES_MAX):
        assert not one.is_lost
        one.lose("no answer")
    assert one.is_lost
    reading = Look(PAYER, is_begun=True)
    reading.ask_statement([StatementQuery(PAYER, DAY, DAY)])
    for _ in range(LOSSES_MAX):
        assert not reading.is_lost
        reading.lose("no answer")
    assert reading.is_lost
    assert reading.bad == set()


def test_what_was_not_told_is_asked_last_and_ends_no_look() -> None:
    one = asking(*range(1, 9), known_bad=frozenset(range(1, 8)))
    assert places(one) == [8]
    one.take_told()
    one.ask_last()
    assert places(one) == [1, 2, 3, 4, 5, 6, 7]
    one.take_told()
    for _ in range(LOSSES_MAX):
        assert one.is_asking
        one.lose("no answer")
        assert not one.is_lost
    assert not one.is_asking
    assert one.bad == {2, 3, 4, 5, 6, 7}


def test_however_many_are_not_told_all_others_are_asked_after_some_looks() -> None:
    untold = set(range(1, 12))
    known: frozenset[int] = frozenset()
    told = list[int]()
    for _ in range(6):
        one = asking(*range(1, 15), known_bad=known)
        while one.is_asking and not one.is_lost:
            if one.asks[0].seq in untold:
                one.lose("no answer")
            else:
                told.append(one.asks[0].seq)
                one.take_told()
        known |= one.bad
        if told:
            break
    assert told == [12, 13, 14]
    assert known <= untold


def test_the_newest_days_are_read_first_and_what_is_not_read_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(look, "PAGES_MAX", 2)
    one = Look(PAYER)
    days = [BusinessDate(DAY - dt.timedelta(days=ago)) for ago in (2, 1, 0)]
    one.ask_statement([StatementQuery(PAYER, day, day) for day in days])
    for day in (days[2], days[1]):
        assert one.parts[0].first_day == day
        assert one.missed == ""
        one.take_page(Statement(entries(1), ""), reply(1))
    assert not one.parts
    assert not one.is_complete
    assert one.missed == "its statement has more than the 2 lines that are read"


def test_what_was_not_learned_of_is_known_or_may_be_any() -> None:
    one = asking(1, 2)
    one.pass_over("nothing")
    one.waiting = frozenset({5})
    assert one.unlearned == frozenset({1, 5})
    one.is_complete = False
    assert one.unlearned is None
