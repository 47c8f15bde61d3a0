"""The book of all simulated banks: no fen is made or lost, whoever writes and whoever dies."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fep.adapters.host import BookAccount, BookedState, BookPayment, DuplicateReferenceError
from fep.domain.clock import BusinessDate, business_date
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import ZERO, Cny
from fep.sandbox.book import RETURNED, SqliteBook
from tests.sandbox.book_child import ACCOUNTS, NORTH, NOW, SOUTH, request

HELD = Cny(sum(one.balance.fen for one in ACCOUNTS))
TODAY = business_date(NOW)
WRITERS = 4
CHILD_SECONDS_MAX = 60.0


@pytest.fixture
def book(tmp_path: Path) -> Iterator[SqliteBook]:
    made = SqliteBook.create(tmp_path / "book.sqlite", ACCOUNTS, NOW)
    yield made
    made.close()


def balances(book: SqliteBook) -> dict[str, int]:
    return {one.number: one.balance.fen for one in book.accounts()}


def start_child(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.sandbox.book_child", str(path), name, str(count)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


# -- one payment ------------------------------------------------------------------------------


def test_a_payment_to_another_bank_arrives_at_once(book: SqliteBook) -> None:
    made = book.pay(NORTH, request("A", fen=12_34), NOW)
    assert made.state is BookedState.DONE
    assert not made.same_bank
    assert balances(book) == {"1001": 1_000_000_00 - 12_34, "1002": 0, "2001": 500_00 + 12_34}
    (debit,) = book.entries(NORTH, AccountNumber("1001"), TODAY, TODAY)
    (credit,) = book.entries(SOUTH, AccountNumber("2001"), TODAY, TODAY)
    assert (debit.debit, credit.debit) == (True, False)
    assert debit.amount == credit.amount == Cny(12_34)
    assert debit.balance_after == Cny(1_000_000_00 - 12_34)
    assert credit.balance_after == Cny(500_00 + 12_34)
    assert (debit.counterparty, credit.counterparty) == ("2001", "1001")
    assert debit.payment_ref == credit.payment_ref == made.bank_ref
    assert (book.payment(NORTH, "A"), book.payment(SOUTH, "A")) == (made, None)


def test_money_to_a_stranger_stays_in_the_sum(book: SqliteBook) -> None:
    made = book.pay(NORTH, request("A", payee="777", fen=5_00), NOW)
    assert made.state is BookedState.DONE
    assert sum(balances(book).values()) == HELD.fen - 5_00
    assert book.held() == HELD
    assert book.total() == ZERO
    assert book.check() == []


@pytest.mark.req("FEP-23")
def test_a_reference_is_booked_once_for_each_bank(book: SqliteBook) -> None:
    first = book.pay(NORTH, request("A"), NOW)
    with pytest.raises(DuplicateReferenceError) as caught:
        book.pay(NORTH, request("A", fen=999), NOW)
    assert caught.value.payment == first
    assert book.times_booked("A") == 1
    book.pay(SOUTH, request("A", payer="2001", payee="1001"), NOW)
    assert book.times_booked("A") == 2
    assert [one.bank for one in book.payments()] == [NORTH, SOUTH]
    assert [one.bank for one in book.payments(SOUTH)] == [SOUTH]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request("A", payer="2001"), "no such payer account"),
        (request("A", fen=1_000_000_01), "not enough money"),
        (request("A", name="别家"), "payee name differs"),
        (request("A", fen=0), "the amount is not above zero"),
        (request("A", fen=-5_00), "the amount is not above zero"),
    ],
)
def test_a_refused_payment_is_kept_and_moves_nothing(
    book: SqliteBook, asked: Any, reason: str
) -> None:
    before = balances(book)
    made = book.pay(NORTH, asked, NOW)
    assert (made.state, made.reason) == (BookedState.REFUSED, reason)
    assert balances(book) == before
    assert book.times_booked("A") == 0
    with pytest.raises(DuplicateReferenceError):
        book.pay(NORTH, request("A"), NOW)


def test_the_whole_balance_can_be_paid(book: SqliteBook) -> None:
    assert book.pay(NORTH, request("A", fen=1_000_000_00), NOW).state is BookedState.DONE
    assert balances(book)["1001"] == 0


def test_an_account_is_found_at_its_own_bank(book: SqliteBook) -> None:
    assert book.account(SOUTH, AccountNumber("1001")) is None
    assert book.account(NORTH, AccountNumber("1001")) == ACCOUNTS[0]
    assert book.bank_of(AccountNumber("2001")) == SOUTH
    assert book.bank_of(AccountNumber("OUTSIDE")) is None


# -- landed -----------------------------------------------------------------------------------


def test_a_landed_payment_moves_when_a_person_lets_it(book: SqliteBook) -> None:
    assert book.pay(NORTH, request("A", landed=True), NOW).state is BookedState.LANDED
    assert book.times_booked("A") == 0
    settled = book.settle_landed(NORTH, "A", NOW, ok=True)
    assert (settled.state, settled.reason) == (BookedState.DONE, "")
    assert book.times_booked("A") == 1
    with pytest.raises(LookupError):
        book.settle_landed(NORTH, "A", NOW, ok=True)
    assert book.times_booked("A") == 1


def test_a_landed_payment_that_is_refused_never_moves(book: SqliteBook) -> None:
    book.pay(NORTH, request("A", landed=True), NOW)
    assert book.settle_landed(NORTH, "A", NOW, ok=False).state is BookedState.REFUSED
    assert book.times_booked("A") == 0
    assert book.check() == []


def test_a_landed_payment_cannot_overdraw(book: SqliteBook) -> None:
    """It reserves nothing, so the money may be gone when it is let through."""
    for reference in ("A", "B"):
        book.pay(NORTH, request(reference, fen=600_000_00, landed=True), NOW)
    book.settle_landed(NORTH, "A", NOW, ok=True)
    settled = book.settle_landed(NORTH, "B", NOW, ok=True)
    assert (settled.state, settled.reason) == (BookedState.REFUSED, "not enough money")
    assert balances(book)["1001"] == 400_000_00
    assert book.check() == []


# -- statements -------------------------------------------------------------------------------


def test_days_are_shanghai_days(book: SqliteBook) -> None:
    """00:30 in Shanghai is still yesterday in UTC."""
    book.pay(NORTH, request("LATE"), dt.datetime(2026, 1, 5, 15, 59, 59, tzinfo=dt.UTC))
    book.pay(NORTH, request("EARLY"), dt.datetime(2026, 1, 5, 16, 0, 0, tzinfo=dt.UTC))
    day = dt.date(2026, 1, 5)

    def references(first: dt.date, last: dt.date) -> list[str]:
        days = BusinessDate(first), BusinessDate(last)
        found = [one.client_ref for one in book.entries(NORTH, AccountNumber("1001"), *days)]
        assert [one.client_ref for one in book.submitted(NORTH, *days)] == found
        assert book.submitted(SOUTH, *days) == []
        return found

    after = day + dt.timedelta(days=1)
    assert references(day, day) == ["LATE"]
    assert references(after, after) == ["EARLY"]
    assert references(day, after) == ["LATE", "EARLY"]
    assert references(after, day) == []
    assert references(dt.date.min, dt.date.max) == ["LATE", "EARLY"]


# -- files ------------------------------------------------------------------------------------


def test_create_and_open_insist(tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite"
    with pytest.raises(FileNotFoundError):
        SqliteBook.open(path)
    SqliteBook.create(path, ACCOUNTS, NOW).close()
    with pytest.raises(FileExistsError):
        SqliteBook.create(path, ACCOUNTS, NOW)
    again = SqliteBook.open(path)
    assert again.accounts() == list(ACCOUNTS)
    again.close()


def test_another_file_is_not_taken_for_a_book(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be seen as none" * 10)
    with pytest.raises(sqlite3.DatabaseError):
        SqliteBook.open(path)


def test_a_negative_opening_leaves_nothing(tmp_path: Path, book: SqliteBook) -> None:
    poor = BookAccount(NORTH, AccountNumber("1009"), "示例", Cny(-1))
    with pytest.raises(ValueError, match=r"-0\.01"):
        SqliteBook.create(tmp_path / "other.sqlite", [poor], NOW)
    assert not (tmp_path / "other.sqlite").exists()
    fine = BookAccount(NORTH, AccountNumber("1008"), "示例", Cny(1))
    with pytest.raises(ValueError, match="1009"):
        book.open_accounts([fine, poor], NOW)
    assert book.accounts() == list(ACCOUNTS)


def test_opening_again_changes_nothing(book: SqliteBook) -> None:
    book.pay(NORTH, request("A"), NOW)
    before = balances(book)
    book.open_accounts(ACCOUNTS, NOW)
    assert balances(book) == before
    assert book.held() == HELD


# -- what comes back --------------------------------------------------------------------------

LATER = NOW + dt.timedelta(seconds=60)


@pytest.mark.parametrize("payee", ["2001", "9999"])
def test_a_payment_is_taken_back_when_its_time_has_come(book: SqliteBook, payee: str) -> None:
    before = balances(book)
    asked = attrs.evolve(request("A", payee=payee), returns_at=LATER)
    assert book.pay(NORTH, asked, NOW).state is BookedState.DONE
    book.take_back(NORTH, LATER - dt.timedelta(seconds=1))
    book.take_back(SOUTH, LATER)
    made = book.payment(NORTH, "A")
    assert made is not None
    assert made.state is BookedState.DONE
    for _ in range(2):
        book.take_back(NORTH, LATER)
        made = book.payment(NORTH, "A")
        assert made is not None
        assert (made.state, made.reason) == (BookedState.RETURNED, RETURNED)
        assert balances(book) == before
        assert book.check() == []
    # Money moved once; that it came back is not a second time.
    assert book.times_booked("A") == 1
    forth, back = book.entries(NORTH, AccountNumber("1001"), TODAY, TODAY)
    assert (forth.debit, forth.back) == (True, False)
    assert (back.debit, back.back, back.at) == (False, True, LATER)
    for one in (forth, back):
        assert (one.counterparty, one.payment_ref, one.client_ref) == (payee, made.bank_ref, "A")


def test_what_the_payee_has_spent_stays_paid(book: SqliteBook) -> None:
    asked = attrs.evolve(request("A", payee="1002"), returns_at=LATER)
    book.pay(NORTH, asked, NOW)
    book.pay(NORTH, request("B", payer="1002", payee="2001"), NOW)
    before = balances(book)
    book.take_back(NORTH, LATER)
    made = book.payment(NORTH, "A")
    assert made is not None
    assert made.state is BookedState.DONE
    assert (balances(book), book.check()) == (before, [])


@pytest.mark.parametrize("more", [{"landed": True}, {"fen": 1_000_000_01}])
def test_what_was_not_done_does_not_come_back(book: SqliteBook, more: dict[str, Any]) -> None:
    book.pay(NORTH, attrs.evolve(request("A", **more), returns_at=LATER), NOW)
    book.take_back(NORTH, LATER)
    made = book.payment(NORTH, "A")
    assert made is not None
    assert made.state is not BookedState.RETURNED
    assert book.check() == []


@pytest.mark.parametrize(
    ("sql", "seen"),
    [
        ("delete from entry where back = 1", "was booked in 2 lines"),
        ("update entry set back = 0", "in 4 lines"),
        ("update payment set state = 'done'", "is done and was booked in 4 lines"),
        ("update entry set back = 1 - back", "taken back before it was made"),
        ("update entry set number = '1002' where back = 1 and amount > 0", "not what was ordered"),
        ("update entry set amount = 2 * amount where back = 1", "not what was ordered"),
    ],
)
def test_check_sees_what_is_taken_back_wrongly(book: SqliteBook, sql: str, seen: str) -> None:
    book.pay(NORTH, attrs.evolve(request("A"), returns_at=LATER), NOW)
    book.take_back(NORTH, LATER)
    assert book.check() == []
    book._db.execute(sql)
    assert any(seen in fault for fault in book.check()), book.check()


# -- check ------------------------------------------------------------------------------------

CORRUPTIONS = [
    ("update account set balance = balance + 1 where number = '1001'", "its lines sum to"),
    ("update entry set amount = amount + 1 where payment = 1 and amount > 0", "sum to 1 fen"),
    ("delete from entry where payment = 1 and amount < 0", "in 1 lines"),
    ("delete from entry where payment = 1", "was booked in 0 lines"),
    ("insert into entry select null, 1, bank, number, amount, 0, at, 0 from entry", "in 8 lines"),
    ("update payment set state = 'refused' where id = 1", "is refused and was booked in 2"),
    ("delete from payment where id = 1", "belongs to no payment"),
    ("update entry set number = '1002' where payment = 1 and amount < 0", "not what was ordered"),
    ("update payment set amount = amount + 1 where id = 1", "not what was ordered"),
    ("update entry set balance = balance + 1 where payment = 1 and amount > 0", "fen left but"),
    ("update entry set amount = amount + 1 where payment is null", "opening entries sum to"),
    ("update account set balance = -1 where number = '1002'", "is overdrawn"),
    ("update account set balance = 0 where number = 'EQUITY'", "the sum over all accounts"),
    ("insert into entry values (null, null, 'north', '9', 1, 1, '', 0)", "no payment or account"),
]


@pytest.mark.parametrize(("statement", "found"), CORRUPTIONS, ids=[one[1] for one in CORRUPTIONS])
def test_check_sees(tmp_path: Path, book: SqliteBook, statement: str, found: str) -> None:
    book.pay(NORTH, request("A"), NOW)
    assert book.check() == []
    other = sqlite3.connect(tmp_path / "book.sqlite")
    with other:
        other.execute(statement)
    other.close()
    assert any(found in line for line in book.check()), book.check()


def test_the_file_itself_keeps_references_apart_and_has_a_journal(
    tmp_path: Path, book: SqliteBook
) -> None:
    """Both would hold even for a writer that forgot its transaction."""
    book.pay(NORTH, request("A", fen=0), NOW)
    other = sqlite3.connect(tmp_path / "book.sqlite")
    assert other.execute("pragma journal_mode").fetchone() == ("wal",)
    columns = [row[1] for row in other.execute("pragma table_info(payment)")][1:]
    names = ", ".join(columns)
    with pytest.raises(sqlite3.IntegrityError):
        other.execute(f"insert into payment ({names}) select {names} from payment")
    other.close()


def test_check_sees_a_reference_with_two_payments(tmp_path: Path, book: SqliteBook) -> None:
    """The table refuses it, so a table without that rule has to take its place."""
    book.pay(NORTH, request("A", fen=0), NOW)
    other = sqlite3.connect(tmp_path / "book.sqlite")
    with other:
        other.execute("alter table payment rename to strict")
        other.execute("create table payment as select * from strict")
        other.execute("insert into payment select * from strict")
    other.close()
    assert "reference A of bank north has 2 payments" in book.check()


# -- many processes, and kills ----------------------------------------------------------------


@pytest.mark.req("FEP-23")
@pytest.mark.slow
def test_processes_at_once_book_each_reference_once(tmp_path: Path) -> None:
    """The first opening of the file and of the accounts is a race too."""
    path, count = tmp_path / "book.sqlite", 40
    children = [start_child(path, f"W{place}", count) for place in range(WRITERS)]
    printed: list[str] = []
    for child in children:
        out, _ = child.communicate(timeout=CHILD_SECONDS_MAX)
        assert child.returncode == 0
        printed += out.split()
    book = SqliteBook.open(path)
    expected = {f"SHARED-{n}" for n in range(count)}
    expected |= {f"W{place}-{n}" for place in range(WRITERS) for n in range(count)}
    assert sorted(printed) == sorted(expected)
    assert {one.client_ref for one in book.payments()} == expected
    assert {book.times_booked(reference) for reference in expected} == {1}
    assert book.check() == []
    assert (book.total(), book.held()) == (ZERO, HELD)
    book.close()


@pytest.mark.req("FEP-25")
@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_book(tmp_path: Path) -> None:
    """What was told was booked is booked; what was cut off is whole or was never there."""
    path = tmp_path / "book.sqlite"
    told: set[str] = set()
    for kill in range(8):
        child = start_child(path, f"K{kill}", 1_000_000)
        assert child.stdout is not None
        for _ in range(1 + 7 * kill):
            told.add(child.stdout.readline().strip())
        child.kill()
        rest, _ = child.communicate(timeout=CHILD_SECONDS_MAX)
        assert child.returncode == -signal.SIGKILL
        # The last line may be cut by the kill; a payment that nobody was told of may stand.
        told |= {line for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        told = {line.strip() for line in told}
        book = SqliteBook.open(path)
        assert book.check() == []
        assert (book.total(), book.held()) == (ZERO, HELD)
        assert {book.times_booked(reference) for reference in told} == {1}
        book.close()


@pytest.mark.req("FEP-25")
def test_a_writer_killed_inside_a_booking_books_nothing(tmp_path: Path, book: SqliteBook) -> None:
    assert killed_inside_a_booking(tmp_path / "book.sqlite")
    assert book.payments() == []
    assert book.accounts() == list(ACCOUNTS)
    # Its lock went with it.
    assert book.pay(NORTH, request("A"), NOW).state is BookedState.DONE
    assert book.check() == []


INSIDE = """
import os, signal, sys
from pathlib import Path
from fep.sandbox.book import RETURNED, SqliteBook
from tests.sandbox.book_child import NORTH, NOW
book = SqliteBook.open(Path(sys.argv[1]))
with book._transaction() as db:
    db.execute("insert into payment values (99,'north','CUT','99','1001','','2001','','south',"
               "'',100,'','done','2026-01-05T01:00:00.000+00:00','',null)")
    db.execute("update account set balance = balance - 100 where number = '1001'")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_inside_a_booking(path: Path) -> bool:
    """Say that a process died by SIGKILL with half a payment written and not committed."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", INSIDE, str(path)],
        cwd=root,
        timeout=CHILD_SECONDS_MAX,
        check=False,
    )
    return ended.returncode == -signal.SIGKILL


# -- any sequence -----------------------------------------------------------------------------

BANKS_ = st.sampled_from([NORTH, SOUTH])
REFERENCES = st.sampled_from(["R1", "R2", "R3", "R4", "R5", "R6"])
NUMBERS = st.sampled_from(["1001", "1002", "2001", "777"])
FEN = st.one_of(st.integers(-5, 300_00), st.integers(0, 2_000_000_00))


class BookMachine(RuleBasedStateMachine):
    """The book against dicts; it is opened anew, and its writers die, at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fep-book-"))
        self.path = self.directory / "book.sqlite"
        self.book = SqliteBook.create(self.path, ACCOUNTS, NOW)
        self.banks = {one.number: one.bank for one in ACCOUNTS}
        self.names = {one.number: one.name for one in ACCOUNTS}
        self.balance = {one.number: one.balance.fen for one in ACCOUNTS}
        self.outside = 0
        self.state: dict[tuple[BankName, str], BookedState] = {}
        self.asked: dict[tuple[BankName, str], Any] = {}
        self.lines: dict[str, list[tuple[str, bool, int, int]]] = {n: [] for n in self.banks}
        self.now = NOW

    def teardown(self) -> None:
        self.book.close()
        shutil.rmtree(self.directory)

    def _move(self, asked: Any) -> None:
        fen = asked.amount.fen
        self.balance[asked.payer] -= fen
        self.lines[asked.payer].append((asked.client_ref, True, fen, self.balance[asked.payer]))
        if asked.payee in self.balance:
            self.balance[asked.payee] += fen
            line = (asked.client_ref, False, fen, self.balance[asked.payee])
            self.lines[asked.payee].append(line)
        else:
            self.outside += fen

    def _expected(self, bank: BankName, asked: Any) -> BookedState:
        fine = (
            self.banks.get(asked.payer) == bank
            and 0 < asked.amount.fen <= self.balance[asked.payer]
            and self.names.get(asked.payee, asked.payee_name) == asked.payee_name
        )
        if not fine:
            return BookedState.REFUSED
        return BookedState.LANDED if asked.landed else BookedState.DONE

    @rule(
        bank=BANKS_,
        reference=REFERENCES,
        payer=NUMBERS,
        payee=NUMBERS,
        fen=FEN,
        name=st.sampled_from([None, None, None, "别家"]),
        landed=st.booleans(),
    )
    def pay(self, bank: BankName, reference: str, **others: Any) -> None:
        asked = request(reference, **others)
        self.now += dt.timedelta(seconds=1)
        if (bank, reference) in self.state:
            with pytest.raises(DuplicateReferenceError) as caught:
                self.book.pay(bank, asked, self.now)
            assert caught.value.payment.amount == self.asked[bank, reference].amount
            return
        expected = self._expected(bank, asked)
        made: BookPayment = self.book.pay(bank, asked, self.now)
        assert (made.state, made.amount, made.at) == (expected, asked.amount, self.now)
        self.state[bank, reference], self.asked[bank, reference] = expected, asked
        if expected is BookedState.DONE:
            self._move(asked)

    @rule(bank=BANKS_, reference=REFERENCES, ok=st.booleans())
    def settle(self, bank: BankName, reference: str, ok: bool) -> None:
        if self.state.get((bank, reference)) is not BookedState.LANDED:
            with pytest.raises(LookupError):
                self.book.settle_landed(bank, reference, self.now, ok=ok)
            return
        asked = self.asked[bank, reference]
        done = ok and asked.amount.fen <= self.balance[asked.payer]
        settled = self.book.settle_landed(bank, reference, self.now, ok=ok)
        assert settled.state is (BookedState.DONE if done else BookedState.REFUSED)
        self.state[bank, reference] = settled.state
        if done:
            self._move(asked)

    @rule()
    def open_anew(self) -> None:
        self.book.close()
        self.book = SqliteBook.open(self.path)

    @rule()
    def writer_dies(self) -> None:
        # A connection must not cross a fork: SQLite in the child would think it holds its locks.
        self.book.close()
        child = os.fork()
        if child == 0:
            try:
                half = SqliteBook.open(self.path)
                with half._transaction() as db:
                    db.execute("update account set balance = balance - 1 where number = '1001'")
                    db.execute("delete from payment")
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self.book = SqliteBook.open(self.path)

    @precondition(lambda self: self.state)
    @rule(number=st.sampled_from([one.number for one in ACCOUNTS]))
    def statement(self, number: AccountNumber) -> None:
        lines = self.book.entries(self.banks[number], number, TODAY, TODAY)
        seen = [(one.client_ref, one.debit, one.amount.fen, one.balance_after.fen) for one in lines]
        assert seen == self.lines[number]

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        assert balances(self.book) == self.balance
        assert sum(self.balance.values()) + self.outside == HELD.fen
        assert (self.book.total(), self.book.held()) == (ZERO, HELD)
        assert self.book.check() == []
        states = {(one.bank, one.client_ref): one.state for one in self.book.payments()}
        assert states == self.state
        for reference in {key[1] for key in self.state}:
            done = [key for key, state in self.state.items() if state is BookedState.DONE]
            assert self.book.times_booked(reference) == sum(key[1] == reference for key in done)


BookMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBookMachine = BookMachine.TestCase
