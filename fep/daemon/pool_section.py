"""The ``[[pool]]`` tables: accounts under pooling, each with its threshold and rule (归集规则)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from fep.daemon.tables import Table
from fep.domain.account import Account
from fep.domain.ids import AccountNumber, parse_account_number, parse_name
from fep.domain.money import FEN_MAX, ZERO, Cny
from fep.pooling import config as pooling
from fep.pooling.schedule import parse_schedule

RULES: Final = ("excess", "zero", "target", "fixed", "percentage", "range", "tiered")
FEN: Final = Cny(1)

Accounts = Mapping[AccountNumber, Account]


def read_pools(
    top: Table, accounts: Accounts | None, *, all_read: bool = True
) -> tuple[pooling.PoolConfig, ...]:
    """Return the pools that can be used.

    Args:
        top: the whole file.
        accounts: all approved accounts, also those with a fault of another kind.
        all_read: each account has a number; else one that is not there may be meant by it.
    """
    if not all_read:
        accounts = None
    found: dict[str, pooling.PoolConfig] = {}
    names: set[str] = set()
    swept_by: dict[AccountNumber, Table] = {}
    for table in top.tables("pool"):
        name = table.parsed("name", lambda text: parse_name(text, "a pool's name")) or ""
        if name and name in names:
            table.fault("name", f"pool {name!r} is there twice")
        names.add(name)
        pool = _pool(table, name, accounts, swept_by)
        if pool is not None:
            found[pool.name] = pool
    return tuple(found.values())


def _pool(
    table: Table, name: str, accounts: Accounts | None, swept_by: dict[AccountNumber, Table]
) -> pooling.PoolConfig | None:
    target = _approved(table, "target", accounts)
    schedule = table.parsed("schedule", _schedule, "")
    members: dict[AccountNumber, pooling.MemberConfig] = {}
    for row in table.tables("member"):
        member = _member(row, accounts, target)
        if member is None:
            continue
        if (other := swept_by.setdefault(member.account, table)) is not table:
            # Two pools would each plan with the same balance, and both would move it.
            msg = f"is a member of pool {other.values.get('name')!r} already; one pool sweeps it"
            row.fault("account", msg)
        elif member.account in members:
            row.fault("account", "is a member of this pool twice")
        members[member.account] = member
    if not table.values.get("member"):
        table.fault("member", "a pool needs at least one [[pool.member]]")
    table.close()
    if target is None or schedule is None or not table.is_clean():
        return None
    return table.made(partial(pooling.PoolConfig, name, target, tuple(members.values()), schedule))


def _schedule(text: str) -> str:
    parse_schedule(text)
    return text


def _approved(table: Table, key: str, accounts: Accounts | None) -> AccountNumber | None:
    """Return an account; pooling moves money between approved ones only (POOL-15)."""
    number = table.parsed(key, parse_account_number)
    if number is not None and accounts is not None and number not in accounts:
        # No "did you mean": own accounts differ in a digit, and the nearest may be the wrong one.
        table.fault(key, f"account {number} is not among the approved [[account]]s")
    return number


def _amount(text: str) -> Cny:
    amount = Cny.parse(text)
    if not 0 <= amount.fen <= FEN_MAX:
        msg = f"must be from 0.00 to {Cny(FEN_MAX)}"
        raise ValueError(msg)
    return amount


def _unit(text: str) -> Cny:
    amount = _amount(text)
    if amount < FEN:
        raise ValueError("must be at least 0.01")
    return amount


def _member(
    table: Table, accounts: Accounts | None, target: AccountNumber | None
) -> pooling.MemberConfig | None:
    account = _approved(table, "account", accounts)
    if account is not None and account == target:
        table.fault("account", "is the pool's target and can't be a member too")
    threshold = table.parsed("threshold", _amount)
    reserve = table.parsed("reserve", _amount, ZERO)
    minimum = table.parsed("minimum", _amount, FEN)
    maximum = table.parsed("maximum", _amount) if table.has("maximum") else None
    unit = table.parsed("unit", _unit, FEN)
    row = table.table("rule")
    rule = pooling.Excess() if row is None else _rule(row)
    table.close()
    if (
        account is None
        or threshold is None
        or reserve is None
        or minimum is None
        or unit is None
        or rule is None
        or not table.is_clean()
    ):
        return None
    return table.made(
        lambda: pooling.MemberConfig(account, threshold, reserve, minimum, maximum, unit, rule)
    )


def _rule(table: Table) -> pooling.RuleConfig | None:
    made: pooling.RuleConfig | None = None
    is_table = table.is_clean()
    kind = table.choice("kind", RULES)
    if is_table and not table.has("kind"):
        table.fault("kind", f"is missing; it is one of {', '.join(RULES)}")
    if not table.is_clean():
        return None  # of a rule without a kind nothing can be said of the other keys
    match kind:
        case "zero":
            made = pooling.Zero()
        case "target" | "fixed":
            amount = table.parsed("amount", _amount)
            if amount is not None:
                made = pooling.Target(amount) if kind == "target" else pooling.Fixed(amount)
        case "percentage":
            share = table.integer("basis_points", None, 1, pooling.BASIS_POINTS_MAX)
            made = table.made(lambda: pooling.Percentage(share))
        case "range":
            low, high = table.parsed("low", _amount), table.parsed("high", _amount)
            if low is not None and high is not None:
                made = table.made(lambda: pooling.Range(low, high))
        case "tiered":
            made = _tiered(table)
        case _:
            made = pooling.Excess()
    table.close()
    return made if table.is_clean() else None


def _tiered(table: Table) -> pooling.Tiered | None:
    is_good = True
    if not isinstance(rows := table.value("tiers", required=True), list) or not rows:
        if table.has("tiers"):
            table.fault("tiers", "must be [{ from, to, basis_points }], at least one")
        return None
    made: list[pooling.Tier] = []
    tiered: pooling.Tiered | None = None
    for row in table.tables("tiers"):
        tier = _tier(row)
        if tier is None:
            is_good = False
        elif is_good:
            made.append(tier)
            tiered = row.made(lambda: pooling.Tiered(tuple(made)))
            is_good = tiered is not None
    return tiered if is_good else None


def _tier(table: Table) -> pooling.Tier | None:
    low = table.parsed("from", _amount)
    high = table.parsed("to", _amount) if table.has("to") else None
    share = table.integer("basis_points", None, 1, pooling.BASIS_POINTS_MAX)
    table.close()
    if low is None or not table.is_clean():
        return None
    if high is not None and high <= low:
        table.fault("to", "must be above 'from'")
        return None
    return pooling.Tier(low, high, share)
