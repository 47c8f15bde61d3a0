"""A name that exists is well formed; a payment's reference is its own and nobody else's."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters import registry
from fep.domain.ids import (
    CLIENT_REF_CHARS,
    NAME_CHARS_MAX,
    SHORT_REF_DIGITS_MIN,
    TASK_ID_CHARS_MAX,
    Sequence,
    TaskId,
    client_ref,
    new_session_id,
    parse_account_number,
    parse_name,
    parse_task_id,
    short_ref,
)

PARSERS: list[tuple[Callable[[str], Any], int, str]] = [
    (parse_task_id, TASK_ID_CHARS_MAX, r"[0-9A-Za-z][0-9A-Za-z._:-]*"),
    (parse_name, NAME_CHARS_MAX, r"[0-9A-Za-z][0-9A-Za-z._:-]*"),
    (parse_account_number, 35, r"[0-9A-Za-z][0-9A-Za-z-]*"),
]
HOSTILE = [
    "",
    " ",
    "a b",
    "a\n",
    "\na",
    "a\x00",
    "-a",
    ".a",
    ":a",
    "ａ",
    "１２３",
    "任务",
    "a/b",
    "a'b",
    'a"b',
    "a;b",
    "a%b",
    "..",
    "\ud800",
    "a\u202eb",
]


@pytest.mark.parametrize(("parse", "chars_max", "pattern"), PARSERS)
def test_length_and_letters(parse: Callable[[str], Any], chars_max: int, pattern: str) -> None:
    for good in ("A", "0", "Az09-x", "9" * chars_max):
        assert parse(good) == good
    for bad in (*HOSTILE, "9" * (chars_max + 1)):
        with pytest.raises(ValueError, match=str(chars_max)):
            parse(bad)


@pytest.mark.parametrize(("parse", "chars_max", "pattern"), PARSERS)
@given(text=st.text(max_size=70))
def test_any_text_is_an_id_or_refused(
    parse: Callable[[str], Any], chars_max: int, pattern: str, text: str
) -> None:
    good = re.fullmatch(pattern, text, re.ASCII) is not None and len(text) <= chars_max
    try:
        assert parse(text) == text
    except ValueError:
        assert not good
    else:
        assert good


def test_an_account_number_has_no_dots_or_colons() -> None:
    for bad in ("62.22", "62:22", "62_22"):
        with pytest.raises(ValueError, match="account number"):
            parse_account_number(bad)


def test_a_refused_name_says_whose_it_is() -> None:
    with pytest.raises(ValueError, match=r"^a pool's name must be"):
        parse_name("", "a pool's name")


TASK_IDS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}", fullmatch=True).map(TaskId)
ENTERPRISES = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,31}", fullmatch=True)


@given(enterprise=ENTERPRISES, task_id=TASK_IDS)
def test_a_reference_fits_every_bank_and_is_always_the_same(
    enterprise: str, task_id: TaskId
) -> None:
    reference = client_ref(enterprise, task_id)
    assert re.fullmatch(r"F[0-9A-HJKMNP-TV-Z]{19}", reference)
    assert len(reference) == CLIENT_REF_CHARS == 20
    assert client_ref(enterprise, task_id) == reference


def test_the_reference_of_a_task_never_changes_between_releases() -> None:
    """A payment that is unknown over an update is asked for by the reference it was sent under."""
    assert client_ref("E0001", TaskId("PAY-001")) == "F4PEHX430RVMDN65H433"
    assert client_ref("E0001", TaskId("Z" * 64)) != client_ref("E0001", TaskId("Z" * 63))


@given(one=st.tuples(ENTERPRISES, TASK_IDS), two=st.tuples(ENTERPRISES, TASK_IDS))
def test_two_tasks_have_two_references(one: tuple[str, TaskId], two: tuple[str, TaskId]) -> None:
    assert (client_ref(*one) == client_ref(*two)) == (one == two)


def test_enterprise_and_task_id_do_not_run_together() -> None:
    pairs = [("E1", "2"), ("E12", ""), ("E", "12"), ("", "E12")]
    assert len({client_ref(enterprise, TaskId(task)) for enterprise, task in pairs}) == len(pairs)


def test_ids_that_differ_in_one_place_only_have_references_of_their_own() -> None:
    """The ids finance systems really make: counters, dates, long prefixes in common."""
    prefix = "ERP-2026-01-05-PAYROLL-SHANGHAI-BRANCH-0000-"
    ids = [TaskId(f"{prefix}{number:08d}") for number in range(50_000)]
    ids += [TaskId(f"T{number}") for number in range(50_000)]
    references = {client_ref("E0001", task_id) for task_id in ids}
    assert len(references) == len(ids)
    # Each of the 32 letters at each of the 19 places, about as often: no place is wasted.
    for place in range(1, CLIENT_REF_CHARS):
        counts: dict[str, int] = {}
        for reference in references:
            counts[reference[place]] = counts.get(reference[place], 0) + 1
        assert len(counts) == 32
        assert max(counts.values()) < 1.2 * len(ids) / 32


def test_the_odds_that_two_tasks_share_a_reference_are_stated_and_acceptable() -> None:
    """Two payments under one reference: the bank books the first only, so one would be lost.

    n tasks of one enterprise at one bank meet with odds of at most n(n-1)/2 over the number of
    references (the birthday bound). Ten million tasks are 27 years of a thousand a day.
    """
    references: int = 32 ** (CLIENT_REF_CHARS - 1)
    assert references == 2**95

    def odds(tasks: int) -> float:
        return tasks * (tasks - 1) / 2 / references

    assert odds(10**7) < 2e-15
    assert odds(10**9) < 2e-11


def test_every_bank_has_room_for_the_reference() -> None:
    for name in registry.names():
        dedupe = registry.adapter(name).card.dedupe
        least = SHORT_REF_DIGITS_MIN if dedupe.digits else CLIENT_REF_CHARS
        assert dedupe.length_max >= least


@pytest.mark.parametrize("digits", [12, 16, 20])
def test_short_references_are_digits_of_the_task_alone(digits: int) -> None:
    many = [short_ref("E0001", TaskId(f"T{number}"), digits) for number in range(2000)]
    assert len(set(many)) == len(many)
    assert {len(one) for one in many} == {digits}
    assert all(one.isascii() and one.isdecimal() for one in many)
    assert {one[0] for one in many} == set("23456789")
    again = {short_ref("E0001", TaskId("T1"), digits, attempt) for attempt in (0, 0, 1)}
    assert len(again) == 2
    assert short_ref("E0002", TaskId("T1"), digits) not in again


def test_sessions_have_ids_of_their_own() -> None:
    assert len({new_session_id() for _ in range(1000)}) == 1000


NOON = dt.datetime(2026, 1, 5, 4, 0, 0, tzinfo=dt.UTC)


def test_request_numbers_are_20_digits_of_shanghai_time_and_a_count() -> None:
    numbers = Sequence(7)
    assert numbers.next(NOON) == "20260105120000000008"
    assert numbers.next(NOON) == "20260105120000000009"


@given(start=st.integers(0, 10**9), steps=st.lists(st.integers(-3, 3), min_size=1, max_size=200))
def test_request_numbers_never_come_twice_even_when_the_clock_steps(
    start: int, steps: list[int]
) -> None:
    numbers = Sequence(start)
    now = NOON
    seen = set()
    for step in steps:
        now += dt.timedelta(seconds=step)
        seen.add(numbers.next(now))
    assert len(seen) == len(steps)
    assert all(len(one) == 20 and one.isascii() and one.isdigit() for one in seen)


def test_the_count_begins_again_after_a_million() -> None:
    numbers = Sequence(999_998)
    assert [numbers.next(NOON)[14:] for _ in range(3)] == ["999999", "000000", "000001"]
