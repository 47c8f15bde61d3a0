"""The pooling rules (归集规则): from one account's balance to the amount that moves. Pure.

One class of configuration and one row in ``RAW_AMOUNTS`` is a rule. The order is fixed: trigger,
rule, reserve, maximum, rounding, minimum. All arithmetic is in whole fen.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import attrs

from fep.domain.money import ZERO, Cny
from fep.pooling.config import MemberConfig, RuleConfig

BASIS_POINTS: Final = 10_000


class Reason(StrEnum):
    """Why nothing moves from an account in a round."""

    AT_OR_BELOW_THRESHOLD = "AT_OR_BELOW_THRESHOLD"
    RESERVE = "RESERVE"
    """All above the threshold is reserved."""
    BELOW_MINIMUM = "BELOW_MINIMUM"
    """What is left after rounding is less than the smallest transfer."""
    NOTHING_BY_RULE = "NOTHING_BY_RULE"
    NO_UKEY = "NO_UKEY"
    BALANCE_UNAVAILABLE = "BALANCE_UNAVAILABLE"
    NOT_CONFIGURED = "NOT_CONFIGURED"
    """The account was taken out of the pool while the round ran."""
    BALANCE_TOO_OLD = "BALANCE_TOO_OLD"
    """The sweep waited too long, for a key or a link, to be sent by that balance."""
    PAID_MEANWHILE = "PAID_MEANWHILE"
    """The account paid something else while the sweep waited."""


@attrs.frozen
class Working:
    """How an amount came about; every step, for the record of the round."""

    balance: Cny
    """The bank's available balance less our own payments still under way."""
    raw: Cny
    """What the rule alone would move."""
    amount: Cny
    """What moves; zero with a reason."""
    reason: Reason | None = None


def _excess(balance: int, member: MemberConfig, _rule: Any) -> int:  # noqa: ANN401
    return balance - member.threshold.fen


def _zero(balance: int, _member: MemberConfig, _rule: Any) -> int:  # noqa: ANN401
    return balance


def _target(balance: int, _member: MemberConfig, rule: Any) -> int:  # noqa: ANN401
    return balance - int(rule.amount.fen)


def _fixed(_balance: int, _member: MemberConfig, rule: Any) -> int:  # noqa: ANN401
    return int(rule.amount.fen)


def _percentage(balance: int, _member: MemberConfig, rule: Any) -> int:  # noqa: ANN401
    return balance * int(rule.basis_points) // BASIS_POINTS


def _range(balance: int, _member: MemberConfig, rule: Any) -> int:  # noqa: ANN401
    """Above ``high`` the balance goes down to ``low``; inside the range nothing moves."""
    return balance - int(rule.low.fen) if balance > rule.high.fen else 0


def _tiered(balance: int, _member: MemberConfig, rule: Any) -> int:  # noqa: ANN401
    """Marginal tiers: each part of the balance by the share of the tier it lies in."""
    moved = 0
    for tier in rule.tiers:
        low = tier.low.fen
        high = balance if tier.high is None else min(balance, tier.high.fen)
        if high > low:
            moved += (high - low) * tier.basis_points // BASIS_POINTS
    return moved


RAW_AMOUNTS: Final[dict[str, Callable[[int, MemberConfig, Any], int]]] = {
    "excess": _excess,
    "zero": _zero,
    "target": _target,
    "fixed": _fixed,
    "percentage": _percentage,
    "range": _range,
    "tiered": _tiered,
}


def sweep(balance: Cny, member: MemberConfig) -> Working:
    """Return what moves from an account with this balance.

    Args:
        balance: the judged balance; at or below the threshold nothing ever moves (strictly
            greater, DEC-b).
        member: the account's own threshold, rule and limits.
    """
    if balance.fen <= member.threshold.fen:
        return Working(balance, ZERO, ZERO, Reason.AT_OR_BELOW_THRESHOLD)
    rule: RuleConfig = member.rule
    raw = RAW_AMOUNTS[rule.kind](balance.fen, member, rule)
    if raw <= 0:
        return Working(balance, Cny(max(raw, 0)), ZERO, Reason.NOTHING_BY_RULE)
    amount = min(raw, balance.fen - member.reserve.fen)
    if amount <= 0:
        return Working(balance, Cny(raw), ZERO, Reason.RESERVE)
    if member.maximum is not None:
        amount = min(amount, member.maximum.fen)
    # Rounding down after the limits, so that reserve and maximum still hold.
    amount -= amount % member.unit.fen
    if amount < max(member.minimum.fen, 1):
        return Working(balance, Cny(raw), ZERO, Reason.BELOW_MINIMUM)
    return Working(balance, Cny(raw), Cny(amount))
