"""What a bank's statement proves of our payments: done, come back, or nothing. Pure.

A line is matched by the bank's own reference, then by ours, and only where it bears neither of any
payment by amount, counterparty and day. Two lines that fit, or two payments that one line fits,
prove nothing: a person decides. A line that is missing never proves that nothing was done.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from fep.domain.clock import business_date
from fep.domain.ids import ClientRef
from fep.domain.order import Direction, PaymentOrder, StatementEntry

DAYS_AFTER_MAX: Final = 3
"""A payment may be booked so many days after its sending, over a week-end."""


@attrs.frozen
class Payment:
    """One of our payments as a statement is searched for it."""

    client_ref: ClientRef
    order: PaymentOrder
    sent_at: dt.datetime
    bank_ref: str = ""


@attrs.frozen
class Found:
    """Exactly one line is this payment's."""

    entry: StatementEntry
    by: str
    """What it was found by, in words."""


@attrs.frozen
class Ambiguous:
    """Several lines fit, or the line fits several payments: a person decides."""

    why: str


@attrs.frozen
class Absent:
    """No line fits, which proves nothing."""


Match = Found | Ambiguous | Absent


def find_payment(
    payment: Payment, entries: Iterable[StatementEntry], others: Iterable[Payment]
) -> Match:
    """Return which line of the payer's statement is this payment.

    Args:
        payment: what is searched.
        entries: lines of the payer's account.
        others: our other payments from this account, whatever became of them.
    """
    lines = [entry for entry in entries if _may_be(payment, entry)]
    rivals = [one for one in others if one.client_ref != payment.client_ref]
    if payment.bank_ref:
        mine = [entry for entry in lines if entry.bank_ref == payment.bank_ref]
        if mine:
            return _only(mine, "the bank's reference")
    mine = [entry for entry in lines if entry.client_ref == payment.client_ref]
    if mine:
        return _only(mine, "our reference")
    claimed = {one.bank_ref for one in rivals if one.bank_ref}
    unnamed = [
        entry
        for entry in lines
        if not entry.client_ref
        and entry.bank_ref not in claimed
        and not (payment.bank_ref and entry.bank_ref)
        and _fits(payment, entry)
    ]
    if not unnamed:
        return Absent()
    alike = [one for one in rivals if _alike(payment, one)]
    if alike:
        return Ambiguous(
            f"{len(alike) + 1} payments of this amount to this account fit "
            f"{len(unnamed)} lines without a reference"
        )
    return _only(unnamed, "amount, counterparty and day")


def find_return(payment: Payment, entries: Iterable[StatementEntry]) -> Match:
    """Return which line says that a payment that was done has come back (退票, 冲账).

    Only a line with the payment's own reference counts: money that comes in from a payee may as
    well be a payment to us. A fee line is never one.

    Args:
        payment: a payment that was done.
        entries: lines of the payer's account from the day of the payment on.
    """
    mine = [
        entry
        for entry in entries
        if not entry.fee
        and entry.amount == payment.order.amount
        and (entry.reversal or entry.direction is Direction.CREDIT)
        and (
            (bool(payment.bank_ref) and entry.bank_ref == payment.bank_ref)
            or entry.client_ref == payment.client_ref
        )
    ]
    return _only(mine, "its reference on a line that takes it back") if mine else Absent()


def _only(lines: Sequence[StatementEntry], by: str) -> Match:
    if len(lines) > 1:
        return Ambiguous(f"{len(lines)} lines fit by {by}")
    return Found(lines[0], by)


def _may_be(payment: Payment, entry: StatementEntry) -> bool:
    """Say whether a line is a debit of the payment's amount; a fee never is."""
    return (
        entry.direction is Direction.DEBIT
        and not entry.fee
        and not entry.reversal
        and entry.amount == payment.order.amount
    )


def _fits(payment: Payment, entry: StatementEntry) -> bool:
    booked, sent = business_date(entry.booked_at), business_date(payment.sent_at)
    return (
        entry.counterparty_account == payment.order.payee.account
        and 0 <= (booked - sent).days <= DAYS_AFTER_MAX
    )


def _alike(one: Payment, other: Payment) -> bool:
    """Say whether one line without a reference could be either's."""
    days = (business_date(one.sent_at) - business_date(other.sent_at)).days
    return (
        one.order.payee.account == other.order.payee.account
        and one.order.amount == other.order.amount
        and one.order.payer == other.order.payer
        and abs(days) <= DAYS_AFTER_MAX
    )
