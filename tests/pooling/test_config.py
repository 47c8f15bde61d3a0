"""A pool that exists is valid, whoever makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.ids import AccountNumber
from fep.domain.money import Cny
from fep.pooling.config import (
    BASIS_POINTS_MAX,
    Excess,
    Fixed,
    MemberConfig,
    Percentage,
    PoolConfig,
    Range,
    Target,
    Tier,
    Tiered,
)

ONE, TWO, THREE = AccountNumber("1"), AccountNumber("2"), AccountNumber("3")


def member(**changes: Any) -> MemberConfig:
    return MemberConfig(ONE, Cny(100), **changes)


@pytest.mark.req("POOL-04", "POOL-07")
def test_a_member_moves_the_excess_unless_told_otherwise() -> None:
    assert member().rule == Excess()
    assert (member().reserve, member().minimum, member().maximum) == (Cny(0), Cny(1), None)
    assert member().unit == Cny(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemberConfig(ONE, Cny(-1)), "threshold must not be negative"),
        (lambda: member(reserve=Cny(-1)), "reserve must not be negative"),
        (lambda: member(minimum=Cny(-1)), "minimum must not be negative"),
        (lambda: member(unit=Cny(0)), "unit must be at least 0.01"),
        (lambda: member(minimum=Cny(3), maximum=Cny(2)), "maximum must not be below minimum"),
        (lambda: member(unit=Cny(3), maximum=Cny(2)), "maximum must not be below unit"),
        (lambda: Target(Cny(-1)), "amount must not be negative"),
        (lambda: Fixed(Cny(-1)), "amount must not be negative"),
        (lambda: Percentage(0), "basis_points must be from 1 to 10000"),
        (lambda: Percentage(BASIS_POINTS_MAX + 1), "basis_points must be from 1 to 10000"),
        (lambda: Range(Cny(2), Cny(1)), "low must not be above high"),
        (lambda: Range(Cny(-2), Cny(1)), "low must not be negative"),
        (lambda: Tiered(()), "at least one tier"),
        (lambda: Tiered((Tier(Cny(1), Cny(1), 1),)), "'to' must be above 'from'"),
        (lambda: PoolConfig("p", ONE, (member(),)), "is the target"),
        (lambda: PoolConfig("p", TWO, (member(), member())), "is a member twice"),
        (lambda: PoolConfig("p", TWO, (member(),), "25:00"), "not a time"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_good_pool_is_taken() -> None:
    pool = PoolConfig("p", THREE, (member(maximum=Cny(1)),), "08:30")
    assert pool.members[0].account == ONE


@given(
    bounds=st.lists(
        st.tuples(st.integers(0, 20), st.none() | st.integers(0, 20)), min_size=1, max_size=4
    )
)
def test_tiers_that_exist_never_take_a_fen_twice(bounds: list[tuple[int, int | None]]) -> None:
    tiers = tuple(Tier(Cny(low), None if to is None else Cny(to), 1) for low, to in bounds)
    taken = [
        sum(1 for low, to in bounds if low <= fen and (to is None or fen < to)) for fen in range(25)
    ]
    empty = any(to is not None and to <= low for low, to in bounds)
    ordered = [low for low, _ in bounds] == sorted(low for low, _ in bounds)
    good = max(taken) <= 1 and not empty and ordered
    try:
        Tiered(tiers)
    except ValueError:
        # What is refused although no fen is taken twice is out of order or empty.
        assert not good
    else:
        assert good
