"""A small book of all banks in memory, for tests of adapters and their hosts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import attrs

from fep.adapters.host import (
    BookAccount,
    BookedState,
    BookEntry,
    BookPayment,
    DuplicateReferenceError,
    PaymentRequest,
)
from fep.domain.clock import BusinessDate, business_date
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny


class MemoryBook:
    """The ``Book`` protocol over dicts; ``moved`` counts bookings."""

    def __init__(self, *accounts: BookAccount) -> None:
        self.accounts = {(one.bank, one.number): one for one in accounts}
        self.payments: dict[tuple[BankName, str], BookPayment] = {}
        self.lines: dict[tuple[BankName, AccountNumber], list[BookEntry]] = {}
        self.returns: dict[tuple[BankName, str], dt.datetime] = {}
        self.batches: dict[tuple[BankName, str], list[str]] = {}
        self.moved = 0

    def account(self, bank: BankName, number: AccountNumber) -> BookAccount | None:
        return self.accounts.get((bank, number))

    def bank_of(self, number: AccountNumber) -> BankName | None:
        return next((one.bank for one in self.accounts.values() if one.number == number), None)

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        return self.payments.get((bank, client_ref))

    def submitted(
        self, bank: BankName, first: BusinessDate, last: BusinessDate
    ) -> list[BookPayment]:
        made = [one for one in self.payments.values() if one.bank == bank]
        return [one for one in made if first <= business_date(one.at) <= last]

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        lines = self.lines.get((bank, number), [])
        return [one for one in lines if first <= business_date(one.at) <= last]

    def pay(self, bank: BankName, request: PaymentRequest, now: dt.datetime) -> BookPayment:
        known = self.payment(bank, request.client_ref)
        if known is not None:
            raise DuplicateReferenceError(known)
        payer = self.account(bank, request.payer)
        payee = self.account(bank, request.payee) or next(
            (one for one in self.accounts.values() if one.number == request.payee), None
        )
        reason = ""
        if payer is None:
            reason = "no such payer"
        elif payee is None:
            reason = "no such payee"
        elif payer.balance < request.amount:
            reason = "not enough money"
        state = BookedState.LANDED if request.landed else BookedState.DONE
        payment = BookPayment(
            bank=bank,
            client_ref=request.client_ref,
            bank_ref=f"{len(self.payments) + 1:022d}",
            payer=request.payer,
            payer_name=payer.name if payer else "",
            payee=request.payee,
            payee_name=request.payee_name,
            payee_bank_name=request.payee_bank_name,
            amount=request.amount,
            purpose=request.purpose,
            state=BookedState.REFUSED if reason else state,
            same_bank=payee is not None and payee.bank == bank,
            at=now,
            reason=reason,
        )
        self.payments[bank, request.client_ref] = payment
        if payment.state is BookedState.DONE:
            assert payer is not None
            assert payee is not None
            self.moved += 1
            self._book(payment, payer, payee, debit=True)
            self._book(payment, payee, payer, debit=False)
            if request.returns_at is not None:
                self.returns[bank, request.client_ref] = request.returns_at
        return payment

    def pay_batch(
        self, bank: BankName, reference: str, requests: Sequence[PaymentRequest], now: dt.datetime
    ) -> list[BookPayment]:
        if known := self.batch(bank, reference):
            raise DuplicateReferenceError(known[0])
        made = [self.pay(bank, one, now) for one in requests]
        self.batches[bank, reference] = [one.client_ref for one in made]
        return made

    def batch(self, bank: BankName, reference: str) -> list[BookPayment]:
        rows = self.batches.get((bank, reference), [])
        return [self.payments[bank, one] for one in rows]

    def take_back(self, bank: BankName, now: dt.datetime) -> None:
        due = [key for key, at in self.returns.items() if key[0] == bank and at <= now]
        for key in due:
            del self.returns[key]
            done = self.payments[key]
            payer = self.accounts[bank, done.payer]
            payee = next(one for one in self.accounts.values() if one.number == done.payee)
            if payee.balance < done.amount:
                continue
            back = attrs.evolve(done, state=BookedState.RETURNED, at=now)
            self.payments[key] = attrs.evolve(back, at=done.at)
            self._book(back, payer, payee, debit=False, back=True)
            self._book(back, payee, payer, debit=True, back=True)

    def _book(
        self,
        payment: BookPayment,
        own: BookAccount,
        other: BookAccount,
        *,
        debit: bool,
        back: bool = False,
    ) -> None:
        amount = payment.amount
        after = own.balance - amount if debit else own.balance + amount
        self.accounts[own.bank, own.number] = attrs.evolve(own, balance=after)
        self.lines.setdefault((own.bank, own.number), []).append(
            BookEntry(
                payment_ref=payment.bank_ref,
                client_ref=payment.client_ref if debit != back else "",
                at=payment.at,
                debit=debit,
                amount=amount,
                balance_after=after,
                counterparty=other.number,
                counterparty_name=other.name,
                counterparty_bank_name=payment.payee_bank_name if debit != back else "",
                purpose=payment.purpose,
                back=back,
            )
        )

    def total(self) -> Cny:
        """All money of all accounts; no payment may change it."""
        return Cny(sum(one.balance.fen for one in self.accounts.values()))
