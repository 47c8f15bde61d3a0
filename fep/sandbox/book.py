"""The double-entry book of all simulated banks, in one SQLite file that several hosts share.

Every booking writes one debit and one credit line of the same amount, so the sum over all accounts
never changes. Money to an account that no simulated bank keeps goes to ``OUTSIDE``; opening
balances come from ``EQUITY``. A process killed at any moment leaves the book whole: each payment is
one transaction.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fep.adapters.host import (
    BookAccount,
    BookedState,
    BookEntry,
    BookPayment,
    DuplicateReferenceError,
    PaymentRequest,
)
from fep.domain.clock import SHANGHAI, BusinessDate, from_text, to_text
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny

EQUITY: Final = ("-", "EQUITY")
OUTSIDE: Final = ("-", "OUTSIDE")
BUSY_SECONDS_MAX: Final = 30.0

_TABLES: Final = """
create table if not exists account (
    bank text not null, number text not null, name text not null, balance integer not null,
    primary key (bank, number));
create index if not exists account_number on account (number);
create table if not exists payment (
    id integer primary key, bank text not null, client_ref text not null, bank_ref text not null,
    payer text not null, payer_name text not null, payee text not null, payee_name text not null,
    payee_bank text not null, payee_bank_name text not null, amount integer not null,
    purpose text not null, state text not null, at text not null, reason text not null,
    unique (bank, client_ref));
create table if not exists entry (
    id integer primary key, payment integer, bank text not null, number text not null,
    amount integer not null, balance integer not null, at text not null);
create index if not exists entry_account on entry (bank, number, at);
"""


class SqliteBook:
    """One connection to the book; each process opens its own."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS_MAX)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode=wal")
        # A process that dies loses nothing; only a power cut could, and this is a simulation.
        self._db.execute("pragma synchronous=normal")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("begin immediate")
        try:
            yield self._db
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def open_accounts(self, accounts: Iterable[BookAccount], now: dt.datetime) -> None:
        """Add accounts with their opening balances; accounts that are there stay as they are."""
        with self._transaction() as db:
            for special in (EQUITY, OUTSIDE):
                db.execute("insert or ignore into account values (?, ?, '', 0)", special)
            for one in accounts:
                added = db.execute(
                    "insert or ignore into account values (?, ?, ?, 0)",
                    (one.bank, one.number, one.name),
                )
                if added.rowcount and one.balance.fen:
                    self._move(db, None, EQUITY, (one.bank, one.number), one.balance.fen, now)

    # -- what hosts use -----------------------------------------------------------------------

    def account(self, bank: BankName, number: AccountNumber) -> BookAccount | None:
        """Return one bank's account, or None."""
        row = self._db.execute(
            "select * from account where bank = ? and number = ?", (bank, number)
        ).fetchone()
        return None if row is None else _account(row)

    def bank_of(self, number: AccountNumber) -> BankName | None:
        """Return which simulated bank keeps an account, None when none does."""
        row = self._db.execute(
            "select bank from account where number = ? and bank <> '-'", (number,)
        ).fetchone()
        return None if row is None else BankName(row["bank"])

    def pay(self, bank: BankName, request: PaymentRequest, now: dt.datetime) -> BookPayment:
        """Book one payment at most once for each (bank, client_ref).

        Raises:
            DuplicateReferenceError: the reference is known; nothing was booked.
        """
        with self._transaction() as db:
            known = self._payment(bank, request.client_ref)
            if known is not None:
                raise DuplicateReferenceError(known)
            payer = db.execute(
                "select * from account where bank = ? and number = ?", (bank, request.payer)
            ).fetchone()
            payee = db.execute(
                "select * from account where number = ? and bank <> '-' order by bank <> ?",
                (request.payee, bank),
            ).fetchone()
            state, reason = _judged(request, payer, payee)
            payee_bank = OUTSIDE[0] if payee is None else payee["bank"]
            number = int(db.execute("select coalesce(max(id), 0) + 1 from payment").fetchone()[0])
            db.execute(
                "insert into payment values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    number,
                    bank,
                    request.client_ref,
                    f"{now.astimezone(SHANGHAI):%y%m%d}{number:010d}",
                    request.payer,
                    "" if payer is None else payer["name"],
                    request.payee,
                    request.payee_name,
                    payee_bank,
                    request.payee_bank_name,
                    request.amount.fen,
                    request.purpose,
                    state.value,
                    to_text(now),
                    reason,
                ),
            )
            if state is BookedState.DONE:
                to = OUTSIDE if payee is None else (payee["bank"], payee["number"])
                self._move(db, number, (bank, request.payer), to, request.amount.fen, now)
            made = self._payment(bank, request.client_ref)
        assert made is not None
        return made

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference, or None."""
        return self._payment(bank, client_ref)

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        """Return the account's lines of these days (Asia/Shanghai), oldest first."""
        begin = dt.datetime.combine(first, dt.time(), SHANGHAI)
        end = dt.datetime.combine(last, dt.time(), SHANGHAI) + dt.timedelta(days=1)
        rows = self._db.execute(
            "select entry.amount as moved, entry.balance as left, entry.at as booked, payment.*"
            " from entry join payment on payment.id = entry.payment"
            " where entry.bank = ? and entry.number = ? and entry.at >= ? and entry.at < ?"
            " order by entry.id",
            (bank, number, to_text(begin), to_text(end)),
        )
        return [_entry(row) for row in rows]

    # -- what tests and the demo use ----------------------------------------------------------

    def settle_landed(self, bank: BankName, client_ref: str, now: dt.datetime, *, ok: bool) -> None:
        """Let the person at the bank decide a landed payment.

        Raises:
            LookupError: there is no landed payment of this reference.
        """
        with self._transaction() as db:
            row = db.execute(
                "select * from payment where bank = ? and client_ref = ? and state = ?",
                (bank, client_ref, BookedState.LANDED.value),
            ).fetchone()
            if row is None:
                raise LookupError(client_ref)
            state = BookedState.DONE if ok else BookedState.REFUSED
            db.execute("update payment set state = ? where id = ?", (state.value, row["id"]))
            if ok:
                to = (
                    OUTSIDE
                    if row["payee_bank"] == OUTSIDE[0]
                    else (row["payee_bank"], row["payee"])
                )
                self._move(db, row["id"], (bank, row["payer"]), to, row["amount"], now)

    def accounts(self) -> list[BookAccount]:
        """Return all accounts of banks, in order."""
        rows = self._db.execute("select * from account where bank <> '-' order by bank, number")
        return [_account(row) for row in rows]

    def total(self) -> Cny:
        """Return the sum over all accounts, EQUITY and OUTSIDE too: always zero."""
        return Cny(self._db.execute("select coalesce(sum(balance), 0) from account").fetchone()[0])

    def held(self) -> Cny:
        """Return what the banks' accounts and OUTSIDE hold: what was opened, for ever."""
        return Cny(
            self._db.execute(
                "select coalesce(sum(balance), 0) from account where number <> 'EQUITY'"
            ).fetchone()[0]
        )

    def payments(self, bank: BankName | None = None) -> list[BookPayment]:
        """Return the payments, oldest first."""
        rows = self._db.execute(
            "select * from payment where ? is null or bank = ? order by id", (bank, bank)
        )
        return [_payment(row) for row in rows]

    def times_booked(self, client_ref: str) -> int:
        """Return how often money moved under a reference, over all banks."""
        return int(
            self._db.execute(
                "select count(*) from payment join entry on entry.payment = payment.id"
                " where client_ref = ? and entry.amount < 0",
                (client_ref,),
            ).fetchone()[0]
        )

    def check(self) -> list[str]:
        """Return what is wrong with the book: empty when every rule of it holds."""
        faults = [
            f"payment {row[0]} has entries that sum to {row[1]} fen in {row[2]} lines"
            for row in self._db.execute(
                "select payment, sum(amount), count(*) from entry where payment is not null"
                " group by payment having sum(amount) <> 0 or count(*) <> 2"
            )
        ]
        faults += [
            f"account {row[0]}/{row[1]} shows {row[2]} fen but its lines sum to {row[3]}"
            for row in self._db.execute(
                "select a.bank, a.number, a.balance, coalesce(sum(e.amount), 0) as lines"
                " from account a left join entry e on e.bank = a.bank and e.number = a.number"
                " group by a.bank, a.number having a.balance <> lines"
            )
        ]
        faults += [
            f"payment {row[0]} is done and was booked {row[1]} times"
            for row in self._db.execute(
                "select p.id, count(e.id) as lines from payment p"
                " left join entry e on e.payment = p.id"
                " group by p.id having lines <> case p.state when 'done' then 2 else 0 end"
            )
        ]
        if self.total().fen:
            faults.append(f"the sum over all accounts is {self.total()}, not zero")
        return faults

    # -- inside -------------------------------------------------------------------------------

    def _payment(self, bank: str, client_ref: str) -> BookPayment | None:
        row = self._db.execute(
            "select * from payment where bank = ? and client_ref = ?", (bank, client_ref)
        ).fetchone()
        return None if row is None else _payment(row)

    @staticmethod
    def _move(
        db: sqlite3.Connection,
        payment: int | None,
        source: tuple[str, str],
        to: tuple[str, str],
        fen: int,
        now: dt.datetime,
    ) -> None:
        for (bank, number), amount in ((source, -fen), (to, fen)):
            balance = db.execute(
                "update account set balance = balance + ? where bank = ? and number = ?"
                " returning balance",
                (amount, bank, number),
            ).fetchone()[0]
            db.execute(
                "insert into entry (payment, bank, number, amount, balance, at)"
                " values (?, ?, ?, ?, ?, ?)",
                (payment, bank, number, amount, balance, to_text(now)),
            )


def _judged(
    request: PaymentRequest, payer: sqlite3.Row | None, payee: sqlite3.Row | None
) -> tuple[BookedState, str]:
    if payer is None:
        return BookedState.REFUSED, "no such payer account"
    if payer["balance"] < request.amount.fen:
        return BookedState.REFUSED, "not enough money"
    if payee is not None and payee["name"] != request.payee_name:
        return BookedState.REFUSED, "payee name differs"
    if request.landed:
        return BookedState.LANDED, "waits for a person at the bank"
    return BookedState.DONE, ""


def _account(row: sqlite3.Row) -> BookAccount:
    return BookAccount(
        BankName(row["bank"]), AccountNumber(row["number"]), row["name"], Cny(row["balance"])
    )


def _payment(row: sqlite3.Row) -> BookPayment:
    return BookPayment(
        bank=BankName(row["bank"]),
        client_ref=row["client_ref"],
        bank_ref=row["bank_ref"],
        payer=AccountNumber(row["payer"]),
        payer_name=row["payer_name"],
        payee=AccountNumber(row["payee"]),
        payee_name=row["payee_name"],
        payee_bank_name=row["payee_bank_name"],
        amount=Cny(row["amount"]),
        purpose=row["purpose"],
        state=BookedState(row["state"]),
        same_bank=row["bank"] == row["payee_bank"],
        at=from_text(row["at"]),
        reason=row["reason"],
    )


def _entry(row: Any) -> BookEntry:  # noqa: ANN401 - a joined row
    debit = row["moved"] < 0
    return BookEntry(
        payment_ref=row["bank_ref"],
        client_ref=row["client_ref"],
        at=from_text(row["booked"]),
        debit=debit,
        amount=Cny(abs(row["moved"])),
        balance_after=Cny(row["left"]),
        counterparty=AccountNumber(row["payee"] if debit else row["payer"]),
        counterparty_name=row["payee_name"] if debit else row["payer_name"],
        counterparty_bank_name=row["payee_bank_name"] if debit else "",
        purpose=row["purpose"],
    )
