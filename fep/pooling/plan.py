"""The plan of a round: one item an account, from asking its balance to its transfer. Pure.

``Item.state`` is on disk before anything follows from it, so a round continues after a crash where
it stood: the same ids, the same amounts, never a second transfer.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Final

import attrs

from fep.domain.account import Account
from fep.domain.clock import to_text
from fep.domain.ids import AccountNumber, BankName, TaskId
from fep.domain.money import Cny
from fep.domain.order import Kind, Payee, PaymentOrder, body_params
from fep.pooling.config import MemberConfig, PoolConfig
from fep.pooling.rules import Reason, Working, sweep

PURPOSE: Final = "资金归集"


class RoundState(StrEnum):
    """Where a round stands."""

    RUNNING = "running"
    FINISHED = "finished"


class ItemState(StrEnum):
    """Where one account of a round stands."""

    ASKING = "asking"
    """获取: its balance is being asked for (first task ID)."""
    PLANNED = "planned"
    """判断: the amount is fixed, its transfer waits in the queue; a plan-only round ends here."""
    SWEEPING = "sweeping"
    """归集: its transfer was handed over by its id (second task ID)."""
    SWEPT = "swept"
    NOTHING = "nothing"
    FAILED = "failed"
    RETURNED = "returned"


TO_SWEEP: Final = frozenset({ItemState.PLANNED, ItemState.SWEEPING})
ENDED: Final = frozenset({ItemState.SWEPT, ItemState.NOTHING, ItemState.FAILED, ItemState.RETURNED})


@attrs.define
class Item:
    """One account in one round."""

    account: AccountNumber
    bank: BankName
    balance_task: TaskId
    sweep_task: TaskId
    threshold: Cny
    state: ItemState = ItemState.ASKING
    balance: Cny | None = None
    amount: Cny | None = None
    reason: str = ""
    rule: str = ""
    working: str = ""

    def value(self) -> dict[str, Any]:
        """Return it as the protocol shows it."""
        return {
            "account": self.account,
            "bank": self.bank,
            "state": self.state.value,
            "threshold": str(self.threshold),
            "balance": None if self.balance is None else str(self.balance),
            "amount": None if self.amount is None else str(self.amount),
            "reason": self.reason,
            "rule": self.rule,
            "balance_task": self.balance_task,
            "sweep_task": self.sweep_task,
        }


@attrs.define
class Round:
    """One run of one pool."""

    round_id: str
    pool: str
    key: str
    """What makes it unique: the planned time, or the moment of the order by hand.

    Its own id where a clock that was ahead began it: the planned time is still to come."""
    started_at: dt.datetime
    plan_only: bool
    note: str
    items: list[Item]
    state: RoundState = RoundState.RUNNING
    finished_at: dt.datetime | None = None

    @property
    def over(self) -> bool:
        """True when every item has its end."""
        ends = ENDED | {ItemState.PLANNED} if self.plan_only else ENDED
        return all(item.state in ends for item in self.items)

    def value(self) -> dict[str, Any]:
        """Return it as the protocol shows it, with totals."""
        states: dict[str, int] = {}
        for item in self.items:
            states[item.state.value] = states.get(item.state.value, 0) + 1
        swept = sum(
            item.amount.fen
            for item in self.items
            if item.amount is not None and item.state is ItemState.SWEPT
        )
        planned = sum(item.amount.fen for item in self.items if item.amount is not None)
        return {
            "round_id": self.round_id,
            "pool": self.pool,
            "state": self.state.value,
            "plan_only": self.plan_only,
            "note": self.note,
            "started_at": to_text(self.started_at),
            "finished_at": None if self.finished_at is None else to_text(self.finished_at),
            "accounts": len(self.items),
            "states": states,
            "planned": str(Cny(planned)),
            "swept": str(Cny(swept)),
            "items": [item.value() for item in self.items],
        }


def new_round(
    pool: PoolConfig,
    banks: dict[AccountNumber, BankName],
    keyless: frozenset[BankName],
    key: str,
    now: dt.datetime,
    *,
    plan_only: bool,
    note: str,
) -> Round:
    """Return a round that asks for every member's balance.

    Args:
        pool: the pool's configuration.
        banks: the bank of each member's account.
        keyless: banks whose UKey is not in: their accounts stay out of this round (FEP-27).
        key: what makes the round unique.
        now: the present moment.
        plan_only: stop at the plan.
        note: who ordered it.
    """
    round_id = f"{pool.name}-{now:%Y%m%d%H%M%S%f}"
    items = []
    for place, member in enumerate(pool.members, start=1):
        bank = banks[member.account]
        item = Item(
            account=member.account,
            bank=bank,
            balance_task=TaskId(f"{round_id}-b{place}"),
            sweep_task=TaskId(f"{round_id}-s{place}"),
            threshold=member.threshold,
            rule=member.rule.kind,
        )
        if bank in keyless:
            item.state, item.reason = ItemState.NOTHING, Reason.NO_UKEY.value
        items.append(item)
    return Round(round_id, pool.name, key, now, plan_only, note, items)


def judge(item: Item, member: MemberConfig, available: Cny, under_way: Cny) -> Working:
    """Fix the amount of an item from its balance (判断单元); changes the item.

    Args:
        item: the account's item, in ``ASKING``.
        member: its configuration.
        available: the bank's available balance.
        under_way: our own payments from this account that are not at their end.
    """
    working = sweep(available - under_way, member)
    # As they are now: the configuration may have changed since the round began.
    item.threshold, item.rule = member.threshold, member.rule.kind
    item.balance = available
    item.amount = working.amount
    item.working = f"judged {working.balance}, under way {under_way}, rule gives {working.raw}"
    if working.reason is None:
        item.state = ItemState.PLANNED
    else:
        item.state, item.reason = ItemState.NOTHING, working.reason.value
    return working


def balance_body(item: Item) -> dict[str, Any]:
    """Return the body of the first task: ask the balance."""
    return {"kind": Kind.BALANCE.value, "params": {"account": item.account}}


def sweep_body(item: Item, target: Account) -> dict[str, Any]:
    """Return the body of the second task: move the amount to the target account."""
    assert item.amount is not None
    order = PaymentOrder(
        payer=item.account,
        payee=Payee(target.number, target.name, target.bank_code, target.bank_title),
        amount=item.amount,
        purpose=PURPOSE,
    )
    return {"kind": Kind.TRANSFER.value, "params": body_params(order)}
