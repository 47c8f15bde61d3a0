"""What moves by each rule, and what never may: DEC-b and DEC-c as properties."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fep.domain.ids import AccountNumber
from fep.domain.money import ZERO, Cny
from fep.pooling.config import (
    Excess,
    Fixed,
    MemberConfig,
    Percentage,
    Range,
    RuleConfig,
    Target,
    Tier,
    Tiered,
    Zero,
)
from fep.pooling.rules import RAW_AMOUNTS, Reason, sweep

ACCOUNT = AccountNumber("99000000000101")
LARGE = 10**15 - 1


def member(threshold: int, rule: RuleConfig | None = None, **limits: Any) -> MemberConfig:
    spans: dict[str, Any] = {name: Cny(fen) for name, fen in limits.items()}
    return MemberConfig(ACCOUNT, Cny(threshold), rule=rule or Excess(), **spans)


def moved(balance: int, given: MemberConfig) -> int:
    return sweep(Cny(balance), given).amount.fen


# -- strategies ------------------------------------------------------------------------------------

FEN = st.integers(0, 2_000) | st.integers(0, LARGE)
SHARES = st.integers(1, 10_000)


@st.composite
def tiereds(draw: st.DrawFn) -> Tiered:
    bounds = sorted(draw(st.lists(FEN, min_size=2, max_size=6, unique=True)))
    tiers = []
    for low, high in zip(bounds[::2], bounds[1::2], strict=False):
        tiers.append(Tier(Cny(low), Cny(high), draw(SHARES)))
    if draw(st.booleans()):
        low = bounds[-1] + draw(st.integers(0, 5))
        tiers.append(Tier(Cny(low), None, draw(SHARES)))
    return Tiered(tuple(tiers))


RULES: st.SearchStrategy[RuleConfig] = st.one_of(
    st.just(Excess()),
    st.just(Zero()),
    FEN.map(lambda fen: Target(Cny(fen))),
    FEN.map(lambda fen: Fixed(Cny(fen))),
    SHARES.map(Percentage),
    st.tuples(FEN, FEN).map(lambda pair: Range(Cny(min(pair)), Cny(max(pair)))),
    tiereds(),
)


@st.composite
def members(draw: st.DrawFn) -> MemberConfig:
    minimum, unit = draw(st.integers(0, 500)), draw(st.integers(1, 500))
    maximum = draw(st.none() | st.integers(max(minimum, unit), 3_000) | st.just(LARGE))
    return MemberConfig(
        ACCOUNT,
        threshold=Cny(draw(FEN)),
        reserve=Cny(draw(FEN)),
        minimum=Cny(minimum),
        maximum=None if maximum is None else Cny(maximum),
        unit=Cny(unit),
        rule=draw(RULES),
    )


BALANCES = st.integers(-LARGE, LARGE) | st.integers(-100, 3_000)


# -- what never may happen -------------------------------------------------------------------------


@pytest.mark.req("POOL-05", "POOL-06", "DEC-b", "DEC-c")
@given(balance=BALANCES, given_member=members())
def test_the_limits_of_every_sweep(balance: int, given_member: MemberConfig) -> None:
    working = sweep(Cny(balance), given_member)
    amount = working.amount.fen
    assert type(amount) is int
    assert working.balance == Cny(balance)
    assert amount >= 0
    assert (working.reason is None) == (amount > 0)
    if amount:
        assert balance > given_member.threshold.fen
        assert balance - amount >= given_member.reserve.fen
        assert amount <= balance
        assert amount <= working.raw.fen
        assert amount >= given_member.minimum.fen
        assert amount % given_member.unit.fen == 0
        if given_member.maximum is not None:
            assert amount <= given_member.maximum.fen


@pytest.mark.req("POOL-05", "DEC-b")
@given(given_member=members(), below=st.integers(0, LARGE))
@example(given_member=member(100), below=0)
def test_at_or_below_the_threshold_nothing_moves(given_member: MemberConfig, below: int) -> None:
    working = sweep(given_member.threshold - Cny(below), given_member)
    assert working.amount == ZERO
    assert working.reason is Reason.AT_OR_BELOW_THRESHOLD


@pytest.mark.req("POOL-04", "POOL-05", "DEC-b")
@given(threshold=FEN, reserve=FEN)
def test_one_fen_above_the_threshold_moves_one_fen(threshold: int, reserve: int) -> None:
    given_member = member(threshold, reserve=min(reserve, threshold))
    assert moved(threshold, given_member) == 0
    assert moved(threshold + 1, given_member) == 1


@pytest.mark.req("POOL-07", "DEC-c")
@given(balance=BALANCES, given_member=members())
def test_more_would_break_a_limit(balance: int, given_member: MemberConfig) -> None:
    """The amount is the largest allowed: a unit more is above the rule, reserve or maximum."""
    working = sweep(Cny(balance), given_member)
    if working.reason in (Reason.AT_OR_BELOW_THRESHOLD, Reason.NOTHING_BY_RULE):
        return
    bounds = [working.raw.fen, balance - given_member.reserve.fen]
    if given_member.maximum is not None:
        bounds.append(given_member.maximum.fen)
    most = min(bounds)
    whole = most - most % given_member.unit.fen
    swept = whole if most > 0 and whole >= max(given_member.minimum.fen, 1) else 0
    assert working.amount.fen == swept


@pytest.mark.req("POOL-07", "DEC-c")
@given(balance=BALANCES, given_member=members())
def test_a_new_round_right_after_moves_nothing_where_it_must_not(
    balance: int, given_member: MemberConfig
) -> None:
    """Under excess, zero, target and range, unless the maximum cut the first sweep."""
    working = sweep(Cny(balance), given_member)
    repeats = isinstance(given_member.rule, Fixed | Percentage | Tiered)
    if repeats or (given_member.maximum is not None and working.raw > given_member.maximum):
        return
    # What the unit kept back may be a unit again only with what came in meanwhile.
    assert sweep(Cny(balance) - working.amount, given_member).amount == ZERO


# -- each rule -------------------------------------------------------------------------------------

TIERS = Tiered(
    (
        Tier(Cny(0), Cny(1_000), 1_000),
        Tier(Cny(1_000), Cny(3_000), 5_000),
        Tier(Cny(5_000), None, 10_000),
    )
)


@pytest.mark.req("POOL-07", "DEC-c")
@pytest.mark.parametrize(
    ("rule", "balance", "expected", "reason"),
    [
        (Excess(), 100, 0, Reason.AT_OR_BELOW_THRESHOLD),
        (Excess(), 101, 1, None),
        (Excess(), 12_345, 12_245, None),
        (Zero(), 100, 0, Reason.AT_OR_BELOW_THRESHOLD),
        (Zero(), 101, 101, None),
        (Target(Cny(40)), 101, 61, None),
        (Target(Cny(101)), 101, 0, Reason.NOTHING_BY_RULE),
        (Target(Cny(500)), 101, 0, Reason.NOTHING_BY_RULE),
        (Target(Cny(0)), 101, 101, None),
        (Fixed(Cny(60)), 101, 60, None),
        (Fixed(Cny(101)), 101, 101, None),
        (Fixed(Cny(500)), 101, 101, None),
        (Fixed(Cny(0)), 101, 0, Reason.NOTHING_BY_RULE),
        (Percentage(10_000), 101, 101, None),
        (Percentage(5_000), 101, 50, None),
        (Percentage(3_333), 200, 66, None),
        (Percentage(1), 9_999, 0, Reason.NOTHING_BY_RULE),
        (Percentage(1), 10_000, 1, None),
        (Range(Cny(50), Cny(200)), 200, 0, Reason.NOTHING_BY_RULE),
        (Range(Cny(50), Cny(200)), 201, 151, None),
        (Range(Cny(0), Cny(0)), 101, 101, None),
        (TIERS, 101, 10, None),
        (TIERS, 1_000, 100, None),
        (TIERS, 1_001, 100, None),
        (TIERS, 1_002, 101, None),
        (TIERS, 3_000, 1_100, None),
        (TIERS, 5_000, 1_100, None),
        (TIERS, 5_007, 1_107, None),
    ],
)
def test_each_rule_by_example(
    rule: RuleConfig, balance: int, expected: int, reason: Reason | None
) -> None:
    working = sweep(Cny(balance), member(100, rule))
    assert (working.amount.fen, working.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("limits", "expected", "reason"),
    [
        ({}, 900, None),
        ({"reserve": 300}, 700, None),
        ({"reserve": 999}, 1, None),
        ({"reserve": 1_000}, 0, Reason.RESERVE),
        ({"reserve": 5_000}, 0, Reason.RESERVE),
        ({"maximum": 250}, 250, None),
        ({"maximum": 250, "unit": 100}, 200, None),
        ({"unit": 1_000}, 0, Reason.BELOW_MINIMUM),
        ({"unit": 900}, 900, None),
        ({"minimum": 900}, 900, None),
        ({"minimum": 901}, 0, Reason.BELOW_MINIMUM),
        ({"minimum": 0, "unit": 901}, 0, Reason.BELOW_MINIMUM),
        # The order is fixed: what the minimum sees is the amount after reserve, maximum, rounding.
        ({"minimum": 200, "maximum": 250, "unit": 150}, 0, Reason.BELOW_MINIMUM),
        ({"reserve": 150, "maximum": 870, "unit": 100}, 800, None),
        ({"reserve": 995, "unit": 10}, 0, Reason.BELOW_MINIMUM),
    ],
)
@pytest.mark.req("DEC-c")
def test_reserve_maximum_rounding_minimum_in_this_order(
    limits: dict[str, Any], expected: int, reason: Reason | None
) -> None:
    working = sweep(Cny(1_000), member(100, **limits))
    assert (working.amount.fen, working.reason) == (expected, reason)


@pytest.mark.req("DEC-c")
@given(balance=st.integers(1, LARGE), share=SHARES)
def test_a_percentage_is_rounded_down_to_the_fen(balance: int, share: int) -> None:
    raw = sweep(Cny(balance), member(0, Percentage(share))).raw.fen
    assert raw <= Fraction(balance * share, 10_000) < raw + 1


@pytest.mark.req("DEC-c")
@given(balance=st.integers(1, LARGE), rule=tiereds())
def test_tiers_are_marginal_and_rounded_down(balance: int, rule: Tiered) -> None:
    raw = sweep(Cny(balance), member(0, rule)).raw.fen
    exact = Fraction(0)
    for tier in rule.tiers:
        high = balance if tier.high is None else min(balance, tier.high.fen)
        exact += Fraction(max(0, high - tier.low.fen) * tier.basis_points, 10_000)
    assert raw <= exact < raw + len(rule.tiers)


@pytest.mark.req("DEC-c")
@given(rule=tiereds(), one=st.integers(1, LARGE), more=st.integers(0, 10**6))
def test_more_money_never_sweeps_less_by_tiers(rule: Tiered, one: int, more: int) -> None:
    given_member = member(0, rule)
    assert moved(one, given_member) <= moved(one + more, given_member)


def test_every_rule_has_its_row() -> None:
    kinds = {rule.kind for rule in (Excess, Zero, Target, Fixed, Percentage, Range, Tiered)}
    assert set(RAW_AMOUNTS) == kinds


def test_the_working_tells_every_step() -> None:
    working: Any = sweep(Cny(1_000), member(100, reserve=300))
    assert (working.balance, working.raw, working.amount) == (Cny(1_000), Cny(900), Cny(700))
    nothing = sweep(Cny(1_000), member(100, reserve=2_000))
    assert (nothing.raw, nothing.amount) == (Cny(900), ZERO)
