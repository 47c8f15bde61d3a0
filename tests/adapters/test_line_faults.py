"""What the line and a forgetful bank do to answers, whatever they carry."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from fep.adapters.host import (
    PIECES_MAX,
    Answer,
    BookAccount,
    Fault,
    Faults,
    ForgetfulBook,
    PaymentRequest,
    on_the_line,
)
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from tests.bank_adapters.book import MemoryBook

DATA = "an answer with 汉字 in it".encode("gbk")
NORTH = BankName("north")
ONE, TWO = AccountNumber("99990000000101"), AccountNumber("99990000000202")
NOW = dt.datetime(2026, 1, 5, 1, 0, tzinfo=dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))


def always(*faults: str) -> Faults:
    return Faults(dict.fromkeys(faults, 1.0), random.Random(3))


def test_without_a_fault_an_answer_is_left_alone() -> None:
    answer = Answer(DATA, 1.0, close=True)
    assert on_the_line(answer, Faults()) == [answer]


def test_a_split_answer_is_the_same_bytes_in_many_pieces() -> None:
    pieces = on_the_line(Answer(DATA, close=True), always(Fault.SPLIT))
    assert 2 < len(pieces) <= PIECES_MAX
    assert b"".join(one.data for one in pieces) == DATA
    assert [one.close for one in pieces] == [False] * (len(pieces) - 1) + [True]
    assert on_the_line(Answer(DATA, 1.0), always(Fault.SPLIT)) == [Answer(DATA, 1.0)]


def test_a_cut_answer_ends_the_connection_inside() -> None:
    [cut] = on_the_line(Answer(DATA), always(Fault.CUT))
    assert cut.close
    assert DATA.startswith(cut.data)
    assert cut.data != DATA


def test_an_answer_twice_with_noise_and_in_no_charset() -> None:
    assert [one.data for one in on_the_line(Answer(DATA), always(Fault.TWICE))] == [DATA + DATA]
    [noisy] = on_the_line(Answer(DATA), always(Fault.NOISE))
    assert noisy.data.endswith(DATA)
    assert noisy.data != DATA
    [wrong] = on_the_line(Answer(DATA), always(Fault.WRONG_CHARSET))
    assert len(wrong.data) == len(DATA)
    with pytest.raises(UnicodeDecodeError):
        wrong.data.decode("gbk")
    assert wrong.data.startswith(b"an answer with ")


@pytest.mark.parametrize("answer", [Answer(), Answer(close=True), Answer(DATA, exit=True)])
def test_what_is_no_answer_is_left_alone(answer: Answer) -> None:
    faults = always(Fault.SPLIT, Fault.CUT, Fault.NOISE, Fault.TWICE)
    assert on_the_line(answer, faults) == [answer]


def test_a_forgetful_book_books_and_does_not_tell() -> None:
    accounts = (BookAccount(NORTH, one, "甲", Cny(10_000)) for one in (ONE, TWO))
    inner = MemoryBook(*accounts)
    book = ForgetfulBook(inner, always(Fault.STALE_BALANCE, Fault.LINE_MISSING))
    for number, amount in enumerate((100, 250)):
        request = PaymentRequest(f"R{number}", ONE, TWO, "乙", "", Cny(amount), "货款")
        book.pay(NORTH, request, NOW)
    payer, payee = book.account(NORTH, ONE), book.account(NORTH, TWO)
    assert payer is not None
    assert payee is not None
    assert (payer.balance, payee.balance) == (Cny(9_900), Cny(10_100))
    assert [one.amount for one in book.entries(NORTH, ONE, DAY, DAY)] == [Cny(100)]
    real = inner.account(NORTH, ONE)
    assert real is not None
    assert real.balance == Cny(9_650)
    assert len(inner.entries(NORTH, ONE, DAY, DAY)) == 2
    assert book.payment(NORTH, "R1") == inner.payment(NORTH, "R1") is not None
    assert book.bank_of(TWO) == NORTH
    honest = ForgetfulBook(inner, Faults())
    assert honest.account(NORTH, ONE) == real
