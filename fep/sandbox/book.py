"""The double-entry book of all simulated banks, in one SQLite file that several hosts share.

Every booking writes one debit and one credit line of the same amount, so the sum over all accounts
never changes. Money to an account that no simulated bank keeps goes to ``OUTSIDE``; opening
balances come from ``EQUITY``. A payment that is taken back (退票) has two more lines, marked
``back``, the same way round. A process killed at any moment leaves the book whole: each payment is
one transaction.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

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
NOT_ENOUGH: Final = "not enough money"
RETURNED: Final = "the payee's bank sent it back"
BUSY_SECONDS_MAX: Final = 30.0
BUSY_RETRY_SECONDS: Final = 0.01
DAY_MIN: Final = dt.date(1900, 1, 1)
DAY_MAX: Final = dt.date(9998, 12, 31)
"""Days asked for beyond these mean these: the calendar's own ends have no midnight in UTC."""

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
    returns_at text, unique (bank, client_ref));
create table if not exists batch_row (
    bank text not null, batch text not null, place integer not null, client_ref text not null,
    primary key (bank, batch, place));
create table if not exists entry (
    id integer primary key, payment integer, bank text not null, number text not null,
    amount integer not null, balance integer not null, at text not null,
    back integer not null default 0);
create index if not exists entry_account on entry (bank, number, at);
create index if not exists entry_payment on entry (payment);
create index if not exists payment_ref on payment (client_ref);
create index if not exists payment_returns on payment (bank, returns_at)
    where returns_at is not null;
"""

# Each query finds what breaks one rule of the book; its columns fill the sentence's places.
_RULES: Final = (
    (
        "payment {0} has entries that sum to {1} fen in {2} lines",
        (
            "select payment, sum(amount), count(*) from entry where payment is not null"
            " group by payment, back having sum(amount) <> 0 or count(*) <> 2"
        ),
    ),
    (
        "the opening entries sum to {0} fen",
        "select * from (select sum(amount) as total from entry where payment is null) where total",
    ),
    (
        "entry {0} belongs to no payment or account",
        (
            "select e.id from entry e left join payment p on p.id = e.payment"
            " left join account a on a.bank = e.bank and a.number = e.number"
            " where a.number is null or (e.payment is not null and p.id is null)"
        ),
    ),
    (
        "entry {0} of payment {1} moves {2} fen at {3}/{4}, which is not what was ordered",
        (
            "select e.id, p.id, e.amount, e.bank, e.number from entry e"
            " join payment p on p.id = e.payment where abs(e.amount) <> p.amount or not"
            " case when (e.amount < 0) <> e.back then e.bank = p.bank and e.number = p.payer"
            " else e.bank = p.payee_bank and e.number ="
            "  case p.payee_bank when '-' then 'OUTSIDE' else p.payee end end"
        ),
    ),
    (
        "account {0}/{1} shows {2} fen but its lines sum to {3}",
        (
            "select a.bank, a.number, a.balance, coalesce(sum(e.amount), 0) as lines"
            " from account a left join entry e on e.bank = a.bank and e.number = a.number"
            " group by a.bank, a.number having a.balance <> lines"
        ),
    ),
    (
        "entry {0} shows {1} fen left but {2} were",
        (
            "select * from (select id, balance, sum(amount) over"
            " (partition by bank, number order by id) as run from entry) where balance <> run"
        ),
    ),
    (
        "payment {0} is {1} and was booked in {2} lines",
        (
            "select p.id, p.state, count(e.id) as lines from payment p"
            " left join entry e on e.payment = p.id"
            " group by p.id having lines <>"
            "  case p.state when 'done' then 2 when 'returned' then 4 else 0 end"
        ),
    ),
    (
        "payment {0} was taken back before it was made",
        (
            "select back.payment from entry back join entry forth on forth.payment = back.payment"
            " where back.back = 1 and forth.back = 0 and back.id < forth.id"
        ),
    ),
    (
        "reference {1} of bank {0} has {2} payments",
        (
            "select bank, client_ref, count(*) as times from payment"
            " group by bank, client_ref having times > 1"
        ),
    ),
    (
        "account {0}/{1} is overdrawn: {2} fen",
        "select bank, number, balance from account where bank <> '-' and balance < 0",
    ),
    (
        "the sum over all accounts is {0} fen, not zero",
        "select * from (select sum(balance) as total from account) where total",
    ),
)


class SqliteBook:
    """One connection to the book; each process opens its own.

    Made by itself it opens a book or makes an empty one; ``create`` and ``open`` insist.
    """

    @classmethod
    def create(cls, path: Path, accounts: Iterable[BookAccount], now: dt.datetime) -> Self:
        """Return a new book with these accounts.

        Raises:
            FileExistsError: there is a file of this name.
            ValueError: an opening balance is below zero; no file is left.
        """
        path.touch(exist_ok=False)
        book = cls(path)
        try:
            book.open_accounts(accounts, now)
        except ValueError:
            book.close()
            path.unlink()
            raise
        return book

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return a connection to a book that is there.

        Raises:
            FileNotFoundError: it isn't.
            sqlite3.DatabaseError: the file is something else.
        """
        path.stat()
        return cls(path)

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS_MAX)
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare_in_turn()
        except sqlite3.Error:
            self._db.close()
            raise

    def _prepare_in_turn(self) -> None:
        """Prepare the file; who else does so at this moment is waited for.

        SQLite does not wait by itself where a wait for the write-ahead log might be one for ever.
        """
        ends = time.monotonic() + BUSY_SECONDS_MAX
        while True:
            try:
                self._prepare()
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > ends:
                    raise
                time.sleep(BUSY_RETRY_SECONDS)
            else:
                return

    def _prepare(self) -> None:
        self._db.execute("pragma journal_mode=wal")
        # A process that dies loses nothing; only a power cut could, and this is a simulation.
        self._db.execute("pragma synchronous=normal")
        self._db.execute("pragma temp_store=memory")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # Immediate: who only reads first and writes then could find its view out of date.
        self._db.execute("begin immediate")
        with self._db:
            yield self._db

    def open_accounts(self, accounts: Iterable[BookAccount], now: dt.datetime) -> None:
        """Add accounts with their opening balances; accounts that are there stay as they are.

        Raises:
            ValueError: an opening balance is below zero; nothing was added.
        """
        with self._transaction() as db:
            for special in (EQUITY, OUTSIDE):
                db.execute("insert or ignore into account values (?, ?, '', 0)", special)
            for one in accounts:
                if one.balance.fen < 0:
                    msg = f"account {one.number} can't open with {one.balance}"
                    raise ValueError(msg)
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

        Refused, with nothing moved: no such payer, not enough money, an amount that is not above
        zero, a payee whom a bank of the book knows by another name. A landed payment is judged
        now and moves its money in ``settle_landed``.

        Raises:
            DuplicateReferenceError: the reference is known; nothing was booked.
        """
        with self._transaction() as db:
            return self._pay(db, bank, request, now)

    def pay_batch(
        self, bank: BankName, reference: str, requests: Sequence[PaymentRequest], now: dt.datetime
    ) -> list[BookPayment]:
        """Book the rows of a batch, each as ``pay`` does; all of them or, when killed, none.

        Raises:
            DuplicateReferenceError: the batch's reference, or a row's, is known; nothing was
                booked.
        """
        with self._transaction() as db:
            if known := self.batch(bank, reference):
                raise DuplicateReferenceError(known[0])
            made = [self._pay(db, bank, request, now) for request in requests]
            rows = [(bank, reference, at, one.client_ref) for at, one in enumerate(requests)]
            db.executemany("insert into batch_row values (?,?,?,?)", rows)
        return made

    def batch(self, bank: BankName, reference: str) -> list[BookPayment]:
        """Return the rows of a batch in their order, none where it is not known."""
        rows = self._db.execute(
            "select payment.* from batch_row join payment using (bank, client_ref)"
            " where bank = ? and batch = ? order by place",
            (bank, reference),
        )
        return [_payment(row) for row in rows]

    def _pay(
        self, db: sqlite3.Connection, bank: BankName, request: PaymentRequest, now: dt.datetime
    ) -> BookPayment:
        """Book one payment in a transaction that is open."""
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
            "insert into payment values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
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
                _when(request, state),
            ),
        )
        if state is BookedState.DONE:
            to = OUTSIDE if payee is None else (payee["bank"], payee["number"])
            self._move(db, number, (bank, request.payer), to, request.amount.fen, now)
        made = self._payment(bank, request.client_ref)
        assert made is not None
        return made

    def take_back(self, bank: BankName, now: dt.datetime) -> None:
        """Take back this bank's payments whose time for it has come (退票).

        One whose payee has not the money any more stays done.
        """
        due = (
            "select * from payment where bank = ? and returns_at is not null and returns_at <= ?"
            " order by returns_at, id"
        )
        if self._db.execute(due, (bank, to_text(now))).fetchone() is None:
            return
        with self._transaction() as db:
            for row in db.execute(due, (bank, to_text(now))).fetchall():
                self._take_back(db, row, now)

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference, or None."""
        return self._payment(bank, client_ref)

    def submitted(
        self, bank: BankName, first: BusinessDate, last: BusinessDate
    ) -> list[BookPayment]:
        """Return the bank's payments that were made on these days (Asia/Shanghai), oldest first."""
        begin, end = _midnight(first), _midnight(last) + dt.timedelta(days=1)
        rows = self._db.execute(
            "select * from payment where bank = ? and at >= ? and at < ? order by id",
            (bank, to_text(begin), to_text(end)),
        )
        return [_payment(row) for row in rows]

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        """Return the account's lines of these days (Asia/Shanghai), oldest first."""
        begin, end = _midnight(first), _midnight(last) + dt.timedelta(days=1)
        rows = self._db.execute(
            "select entry.amount as moved, entry.balance as left, entry.at as booked, entry.back,"
            " payment.*"
            " from entry join payment on payment.id = entry.payment"
            " where entry.bank = ? and entry.number = ? and entry.at >= ? and entry.at < ?"
            " order by entry.id",
            (bank, number, to_text(begin), to_text(end)),
        )
        return [_entry(row) for row in rows]

    # -- what tests and the demo use ----------------------------------------------------------

    def settle_landed(
        self, bank: BankName, client_ref: str, now: dt.datetime, *, ok: bool
    ) -> BookPayment:
        """Let the person at the bank decide a landed payment; returns it as it is then.

        A payment that is let through is refused all the same when the money has gone meanwhile.

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
            left = db.execute(
                "select balance from account where bank = ? and number = ?", (bank, row["payer"])
            ).fetchone()[0]
            state, reason = BookedState.DONE, ""
            if not ok:
                state, reason = BookedState.REFUSED, "refused by a person at the bank"
            elif left < row["amount"]:
                state, reason = BookedState.REFUSED, NOT_ENOUGH
            db.execute(
                "update payment set state = ?, reason = ? where id = ?",
                (state.value, reason, row["id"]),
            )
            if state is BookedState.DONE:
                outside = row["payee_bank"] == OUTSIDE[0]
                to = OUTSIDE if outside else (row["payee_bank"], row["payee"])
                self._move(db, row["id"], (bank, row["payer"]), to, row["amount"], now)
            settled = self._payment(bank, client_ref)
        assert settled is not None
        return settled

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
                "select coalesce(sum(balance), 0) from account where (bank, number) <> (?, ?)",
                EQUITY,
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
                " where client_ref = ? and entry.amount < 0 and entry.back = 0",
                (client_ref,),
            ).fetchone()[0]
        )

    def check(self) -> list[str]:
        """Return what is wrong with the book: empty when every rule of it holds."""
        # One snapshot, or a host that books between two queries would look like a fault.
        self._db.execute("begin")
        with self._db:
            return [
                sentence.format(*row)
                for sentence, query in _RULES
                for row in self._db.execute(query)
            ]

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
        *,
        back: bool = False,
    ) -> None:
        for (bank, number), amount in ((source, -fen), (to, fen)):
            balance = db.execute(
                "update account set balance = balance + ? where bank = ? and number = ?"
                " returning balance",
                (amount, bank, number),
            ).fetchone()[0]
            db.execute(
                "insert into entry (payment, bank, number, amount, balance, at, back)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (payment, bank, number, amount, balance, to_text(now), int(back)),
            )

    def _take_back(self, db: sqlite3.Connection, row: sqlite3.Row, now: dt.datetime) -> None:
        outside = row["payee_bank"] == OUTSIDE[0]
        holder = OUTSIDE if outside else (row["payee_bank"], row["payee"])
        left = db.execute(
            "select balance from account where bank = ? and number = ?", holder
        ).fetchone()[0]
        state, reason = BookedState.DONE, ""
        if outside or left >= row["amount"]:
            state, reason = BookedState.RETURNED, RETURNED
            payer = (row["bank"], row["payer"])
            self._move(db, row["id"], holder, payer, row["amount"], now, back=True)
        db.execute(
            "update payment set state = ?, reason = ?, returns_at = null where id = ?",
            (state.value, reason, row["id"]),
        )


def _when(request: PaymentRequest, state: BookedState) -> str | None:
    """Return when a payment is to be taken back; only what is done at once ever is."""
    if request.returns_at is None or state is not BookedState.DONE:
        return None
    return to_text(request.returns_at)


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(min(max(day, DAY_MIN), DAY_MAX), dt.time(), SHANGHAI)


def _judged(
    request: PaymentRequest, payer: sqlite3.Row | None, payee: sqlite3.Row | None
) -> tuple[BookedState, str]:
    if payer is None:
        return BookedState.REFUSED, "no such payer account"
    if request.amount.fen <= 0:
        # A payment of less than nothing would fetch money from the payee.
        return BookedState.REFUSED, "the amount is not above zero"
    if payer["balance"] < request.amount.fen:
        return BookedState.REFUSED, NOT_ENOUGH
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
    debit, back = row["moved"] < 0, bool(row["back"])
    # The other side of a payer's line is the payee, whichever way the money goes.
    is_payer = debit != back
    return BookEntry(
        payment_ref=row["bank_ref"],
        client_ref=row["client_ref"],
        at=from_text(row["booked"]),
        debit=debit,
        amount=Cny(abs(row["moved"])),
        balance_after=Cny(row["left"]),
        counterparty=AccountNumber(row["payee"] if is_payer else row["payer"]),
        counterparty_name=row["payee_name"] if is_payer else row["payer_name"],
        counterparty_bank_name=row["payee_bank_name"] if is_payer else "",
        purpose=row["purpose"],
        back=back,
    )
