"""What a bank's statement proves of our payments: done, come back, or nothing. Pure.

A line is matched by the bank's own reference, then by ours, and only where it bears neither of any
payment by amount, counterparty and time. Two lines that fit, or two payments that one line fits,
prove nothing: a person decides. A line that is missing never proves that nothing was done.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Final, Self

import attrs

from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.ids import AccountNumber, ClientRef, TaskId
from fep.domain.money import Cny
from fep.domain.order import Direction, StatementEntry

DAYS_AFTER_MAX: Final = 3
"""A payment may be booked so many days after its sending, over a week-end."""
EARLIER_MAX: Final = dt.timedelta(hours=1)
"""So much may the bank's clock be behind ours; what was booked before that is another payment."""


@attrs.frozen
class Payment:
    """One of our payments as a statement is searched for it."""

    client_ref: ClientRef
    payer: AccountNumber
    payee: AccountNumber
    amount: Cny
    sent_at: dt.datetime
    bank_ref: str = ""


@attrs.frozen
class Watched:
    """One success that may come back."""

    seq: int
    task_id: TaskId
    payment: Payment
    row: int | None = None
    """Which of a batch."""


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
    payment: Payment,
    entries: Iterable[StatementEntry],
    others: Iterable[Payment],
    *,
    by_reference_only: bool = False,
) -> Match:
    """Return which line of the payer's statement is this payment.

    Args:
        payment: what is searched.
        entries: lines of the payer's account.
        others: our other payments between these accounts, whatever became of them.
        by_reference_only: lines are missing, or this bank's lines bear our references: then a line
            without one is either not ours or not the only one, and nothing is inferred.
    """
    lines = [entry for entry in entries if _may_be(payment, entry)]
    rivals = [one for one in others if one.client_ref != payment.client_ref]
    if payment.bank_ref:
        mine = [entry for entry in lines if entry.bank_ref == payment.bank_ref]
        namesakes = sum(one.bank_ref == payment.bank_ref for one in rivals)
        if mine and namesakes:
            return Ambiguous(f"{namesakes + 1} payments bear the bank's reference of this line")
        if mine:
            return _only(mine, "the bank's reference")
    mine = [entry for entry in lines if entry.client_ref == payment.client_ref]
    if mine:
        return _only(mine, "our reference")
    if by_reference_only:
        return Absent()
    return _inferred(payment, lines, rivals)


def _inferred(
    payment: Payment, lines: Sequence[StatementEntry], rivals: Sequence[Payment]
) -> Match:
    """Return the one line without a reference that can be no other payment of ours."""
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
    # A rival that has its own line among these takes no other.
    named = {entry.client_ref for entry in lines} | {entry.bank_ref for entry in lines}
    named.discard("")
    alike = [
        one for one in rivals if _alike(payment, one) and not named & {one.client_ref, one.bank_ref}
    ]
    if alike:
        return Ambiguous(
            f"{len(alike) + 1} payments of this amount between these accounts fit "
            f"{len(unnamed)} lines without a reference"
        )
    return _only(unnamed, "amount, counterparty and time")


@attrs.frozen(eq=False)
class Returns:
    """The lines of a statement that put money back or in, laid out by what a return is found by.

    Looked into for each success in turn: to walk all lines for each takes too long where both are
    many.
    """

    _by_ours: dict[tuple[Cny, str], list[StatementEntry]] = attrs.Factory(dict)
    """By our reference."""
    _by_banks: dict[tuple[Cny, str, str], list[StatementEntry]] = attrs.Factory(dict)
    """By the bank's reference and the other account, of lines without ours."""
    _latest: dict[tuple[Cny, str], BusinessDate] = attrs.Factory(dict)
    """The latest day of the lines that bear this reference of ours, or none."""

    @classmethod
    def among(cls, entries: Iterable[StatementEntry]) -> Self:
        """Lay out those of these lines that may be returns."""
        laid = cls()
        laid.add(entries)
        return laid

    def add(self, entries: Iterable[StatementEntry]) -> None:
        """Lay out more lines."""
        for entry in entries:
            if comes_back(entry):
                self._add(entry)

    def _add(self, entry: StatementEntry) -> None:
        named = entry.amount, entry.client_ref
        if entry.client_ref:
            self._by_ours.setdefault(named, []).append(entry)
        elif entry.bank_ref:
            key = entry.amount, entry.bank_ref, entry.counterparty_account
            self._by_banks.setdefault(key, []).append(entry)
        day = business_date(entry.booked_at)
        self._latest[named] = max(day, self._latest.get(named, day))

    @property
    def amounts(self) -> list[Cny]:
        """The amounts of the lines, each once, the smallest first."""
        return sorted({amount for amount, _ in self._latest})

    def find(self, payment: Payment) -> Match:
        """Return which line says that a payment that was done has come back (退票, 冲账).

        Only a line with the payment's own reference counts: money that comes in from a payee may as
        well be a payment to us. A fee line is never one, whether the fee is kept or given back. The
        bank's reference alone, on a line from somebody else, may be a number that came round again.

        Args:
            payment: a payment that was done; the lines are from its day on.
        """
        mine = list(self._by_ours.get((payment.amount, payment.client_ref), ()))
        for other in {"", payment.payee}:
            mine += self._by_banks.get((payment.amount, payment.bank_ref, other), ())
        return _only(mine, "its reference on a line that takes it back") if mine else Absent()

    def may_hold(self, payment: Payment) -> bool:
        """Say whether a line could be this payment's return though it bears no reference of ours.

        It proves nothing; the bank's status query does.
        """
        since = business_date(payment.sent_at - EARLIER_MAX)
        days = (self._latest.get((payment.amount, ref)) for ref in {"", payment.client_ref})
        return any(day is not None and day >= since for day in days)


def comes_back(entry: StatementEntry) -> bool:
    """Say whether a line puts money back or in, so that it may be a return."""
    return not entry.fee and (entry.reversal or entry.direction is Direction.CREDIT)


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
        and entry.amount == payment.amount
    )


def _fits(payment: Payment, entry: StatementEntry) -> bool:
    booked, sent = business_date(entry.booked_at), business_date(payment.sent_at)
    if entry.counterparty_account != payment.payee or (booked - sent).days > DAYS_AFTER_MAX:
        return False
    # Midnight is what a line without a time shows.
    local = to_shanghai(entry.booked_at)
    if (local.hour, local.minute, local.second) == (0, 0, 0):
        return booked >= business_date(payment.sent_at - EARLIER_MAX)
    return entry.booked_at >= payment.sent_at - EARLIER_MAX


def _alike(one: Payment, other: Payment) -> bool:
    """Say whether one line without a reference could be either's.

    Also in the other direction: what comes back of a payment to us is a debit, too.
    """
    days = (business_date(one.sent_at) - business_date(other.sent_at)).days
    return (
        one.amount == other.amount
        and {one.payer, one.payee} == {other.payer, other.payee}
        and abs(days) <= DAYS_AFTER_MAX + 1
    )
