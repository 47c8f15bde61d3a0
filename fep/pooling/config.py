"""What the configuration says of pools, their accounts and rules; one that exists is valid."""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from fep.domain.ids import AccountNumber
from fep.domain.money import Cny
from fep.pooling.schedule import parse_schedule

BASIS_POINTS_MAX: Final = 10_000


def _not_negative(_instance: object, attribute: attrs.Attribute[Cny], value: Cny) -> None:
    if value.fen < 0:
        msg = f"{attribute.name} must not be negative"
        raise ValueError(msg)


def _share(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 < value <= BASIS_POINTS_MAX:
        msg = f"{attribute.name} must be from 1 to {BASIS_POINTS_MAX} (10000 = all)"
        raise ValueError(msg)


@attrs.frozen
class Excess:
    """The base form: what is above the threshold."""

    kind: ClassVar[str] = "excess"


@attrs.frozen
class Zero:
    """The whole balance; the reserve still stays."""

    kind: ClassVar[str] = "zero"


@attrs.frozen
class Target:
    """What is above a target balance."""

    kind: ClassVar[str] = "target"
    amount: Cny = attrs.field(validator=_not_negative)


@attrs.frozen
class Fixed:
    """The same amount each time."""

    kind: ClassVar[str] = "fixed"
    amount: Cny = attrs.field(validator=_not_negative)


@attrs.frozen
class Percentage:
    """A share of the balance, in basis points."""

    kind: ClassVar[str] = "percentage"
    basis_points: int = attrs.field(validator=_share)


@attrs.frozen
class Range:
    """Above ``high`` down to ``low``; inside the range nothing."""

    kind: ClassVar[str] = "range"
    low: Cny = attrs.field(validator=_not_negative)
    high: Cny = attrs.field(validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            msg = "low must not be above high"
            raise ValueError(msg)


@attrs.frozen
class Tier:
    """The part of a balance from ``low`` to ``high`` (None: no end) and the share that moves."""

    low: Cny = attrs.field(validator=_not_negative)
    high: Cny | None
    basis_points: int = attrs.field(validator=_share)


@attrs.frozen
class Tiered:
    """Marginal tiers, in order, without overlap."""

    kind: ClassVar[str] = "tiered"
    tiers: tuple[Tier, ...]

    def __attrs_post_init__(self) -> None:
        if not self.tiers:
            msg = "tiers must have at least one tier"
            raise ValueError(msg)
        for place, tier in enumerate(self.tiers):
            last = place == len(self.tiers) - 1
            if tier.high is None and not last:
                msg = "only the last tier may have no 'to'"
                raise ValueError(msg)
            if tier.high is not None and tier.high <= tier.low:
                msg = f"tier {place + 1}: 'to' must be above 'from'"
                raise ValueError(msg)
            if place and (before := self.tiers[place - 1].high) is not None and tier.low < before:
                msg = f"tier {place + 1} overlaps the one before it"
                raise ValueError(msg)


RuleConfig = Excess | Zero | Target | Fixed | Percentage | Range | Tiered


@attrs.frozen
class MemberConfig:
    """One pooled account (归集银行账户) with its own threshold and rule."""

    account: AccountNumber
    threshold: Cny = attrs.field(validator=_not_negative)
    """归集阈值: only a balance above it is swept (strictly greater)."""
    reserve: Cny = attrs.field(default=Cny(0), validator=_not_negative)
    minimum: Cny = attrs.field(default=Cny(1), validator=_not_negative)
    maximum: Cny | None = None
    unit: Cny = attrs.field(default=Cny(1))
    rule: RuleConfig = attrs.Factory(Excess)

    def __attrs_post_init__(self) -> None:
        if self.unit.fen < 1:
            msg = "unit must be at least 0.01"
            raise ValueError(msg)
        if self.maximum is not None:
            if self.maximum < self.minimum:
                msg = "maximum must not be below minimum"
                raise ValueError(msg)
            if self.maximum < self.unit:
                msg = "maximum must not be below unit"
                raise ValueError(msg)


@attrs.frozen
class PoolConfig:
    """One pool: its accounts, where the money goes, and when."""

    name: str
    target: AccountNumber
    """The second account (第二银行账户): gets what is swept."""
    members: tuple[MemberConfig, ...]
    schedule: str = ""
    """Times of day in Shanghai, ``08:30, 17:30``; empty: only by hand."""

    def __attrs_post_init__(self) -> None:
        parse_schedule(self.schedule)
        seen: set[str] = set()
        for member in self.members:
            if member.account == self.target:
                msg = f"account {member.account} is the target and can't be a member too"
                raise ValueError(msg)
            if member.account in seen:
                msg = f"account {member.account} is a member twice"
                raise ValueError(msg)
            seen.add(member.account)
