"""A statement and a balance from the reports that are there.

Over HTTP the bank answers what was asked. From a folder the statement of each day is one file that
comes when it likes; whether one is missing shows in the balances: one day's closing is the next
one's opening. Lines of a day without a statement yet are those that were notified.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs

from bank_adapters.iso20022.facts import BOOKED, CURRENCIES, NOT_PROVIDED, Line, Report
from fep.domain.clock import SHANGHAI, BusinessDate, business_date
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Direction,
    Statement,
    StatementEntry,
    StatementQuery,
)

OPENING: Final = ("OPBD", "PRCD")
CLOSING: Final = ("CLBD",)
NOW_BOOKED: Final = ("ITBD", "CLBD")
NOW_AVAILABLE: Final = ("ITAV", "CLAV", "FWAV")
SATURDAY: Final = 5
_EARLIEST: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


class MissingError(ValueError):
    """What was asked for is not there, or not whole; ``code`` says in which way."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code


# -- balance --------------------------------------------------------------------------------------


def balance(
    query: BalanceQuery, found: Iterable[Report], asked_at: dt.datetime | None, age_max_s: float
) -> Balance:
    """Return the newest balance that a report tells.

    Raises:
        MissingError: none does, or it is too old.
        ValueError: it is in another currency.
    """
    told = [
        (as_of, report)
        for report in found
        if report.account == query.account
        and report.balance(*NOW_BOOKED) is not None
        and (as_of := _as_of(report)) is not None
    ]
    if not told:
        raise MissingError("NO_REPORT", "no report with a balance of this account is there")
    as_of, report = max(told, key=lambda one: one[0])
    if asked_at is not None and (asked_at - as_of).total_seconds() > age_max_s:
        raise MissingError("STALE", f"the newest balance is of {as_of:%Y-%m-%d %H:%M:%S}Z")
    book, available = report.balance(*NOW_BOOKED), report.balance(*NOW_AVAILABLE)
    assert book is not None
    available = available or book
    if not {book.currency, available.currency} <= CURRENCIES:
        msg = f"the balance is in {book.currency[:3]}"
        raise ValueError(msg)
    return Balance(query.account, available.amount, book.amount, as_of)


def _as_of(report: Report) -> dt.datetime | None:
    """Return when a balance was so: a closing one never later than its day."""
    at, book = report.created, report.balance(*NOW_BOOKED)
    if report.kind != "camt.053" or book is None or book.day is None:
        return at
    end = dt.datetime.combine(book.day + dt.timedelta(days=1), dt.time(), SHANGHAI)
    return end.astimezone(dt.UTC) if at is None else min(at, end.astimezone(dt.UTC))


# -- statement ------------------------------------------------------------------------------------


def page(query: StatementQuery, found: Sequence[Report]) -> Statement:
    """Return the page that an HTTP answer is, or all that a mailbox has of it.

    Raises:
        MissingError: there is no report, or it does not add up.
    """
    ours = [one for one in found if one.account == query.account]
    if not ours:
        # What stands in front of the bank answers 200, too.
        raise MissingError("NO_REPORT", "the answer holds no report of this account")
    statements = _newest(one for one in ours if one.kind == "camt.053")
    lines = _lines(query, ours, statements)
    cut = [one for one in statements if not one.is_last_page]
    if cut and len(statements) > 1:
        raise MissingError("STATEMENT_GAP", "a page of one of several statements is not there")
    cursor = str(cut[0].page + 1) if cut else ""
    return Statement(tuple(_entry(line) for line in lines), cursor)


def collected(
    query: StatementQuery,
    found: Sequence[Report],
    today: BusinessDate,
    *,
    weekends: bool,
) -> Statement:
    """Return the statement that the files of these days make.

    Raises:
        MissingError: a past day's file is not there, or does not add up.
    """
    ours = [one for one in found if one.account == query.account]
    statements = _newest(one for one in ours if one.kind == "camt.053")
    if any(one.page != 1 or not one.is_last_page for one in statements):
        raise MissingError("STATEMENT_GAP", "a page of a statement is not there")
    day = query.first_day
    while day <= query.last_day and day < today:
        if not _is_told(day, statements, weekends=weekends):
            raise MissingError("NO_STATEMENT", f"the statement of {day} is not there")
        day = BusinessDate(day + dt.timedelta(days=1))
    lines = _lines(query, ours, statements)
    return Statement(tuple(_entry(line) for line in lines))


def _is_told(day: BusinessDate, statements: Sequence[Report], *, weekends: bool) -> bool:
    """Say whether all lines of a past day are known."""
    if any(_covers(one, day) for one in statements):
        return True
    before = [one for one in statements if one.last is not None and one.last < day]
    after = [one for one in statements if one.first is not None and one.first > day]
    if before and after:
        closing, opening = before[-1].balance(*CLOSING), after[0].balance(*OPENING)
        return closing is not None and opening is not None and closing.amount == opening.amount
    return not weekends and day.weekday() >= SATURDAY


def _covers(report: Report, day: BusinessDate) -> bool:
    return (
        report.first is not None
        and report.last is not None
        and (report.first <= day <= report.last)
    )


def _newest(found: Iterable[Report]) -> list[Report]:
    """Return the statements by day, each once.

    Of several of the same days one that goes on from another's closing is told behind it, as a
    morning's and an afternoon's are; else the newest takes the place of those before it.
    """
    whole: dict[tuple[object, ...], list[Report]] = {}
    for one in sorted(found, key=_made):
        whole.setdefault((one.first, one.last), []).append(one)
    kept: list[Report] = []
    for group in whole.values():
        parts: list[list[Report]] = []
        for document in _documents(group):
            _take(parts, document)
        kept.append(_followed([_joined(pages) for pages in parts]))
    return sorted(kept, key=lambda one: one.first or BusinessDate(dt.date.min))


def _made(report: Report) -> dt.datetime:
    return report.created or _EARLIEST


def _documents(group: Iterable[Report]) -> list[list[Report]]:
    """Return the pages of each statement in order, the statements as they were made.

    A first page that comes again begins another one; a later page takes the place of the one
    before it.
    """
    begun: list[dict[int, Report]] = []
    newest: dict[tuple[str, str], dict[int, Report]] = {}
    for one in group:
        key = (one.number, one.ident)
        if key not in newest or (one.page == 1 and 1 in newest[key]):
            newest[key] = {}
            begun.append(newest[key])
        newest[key][one.page] = one
    return [[pages[number] for number in sorted(pages)] for pages in begun]


def _take(parts: list[list[Report]], newest: list[Report]) -> None:
    """Put a statement behind those of the same days, or in the place of what it tells anew.

    Raises:
        MissingError: it could be either.
    """
    begins, ends = _balance(newest, OPENING), _balance(newest, CLOSING)
    same = [
        at
        for at, one in enumerate(parts)
        if begins is not None and _balance(one, OPENING) == begins
    ]
    goes_on = bool(parts) and begins is not None and _balance(parts[-1], CLOSING) == begins
    if same and (not goes_on or _told(parts[same[-1]]) == _told(newest)):
        behind = parts[same[-1] + 1 :]
        # What was told behind it is so still, if that begins where this one ends.
        stays = bool(behind) and ends is not None and _balance(behind[0], OPENING) == ends
        parts[same[-1] :] = [newest, *(behind if stays else [])]
    elif same:
        said = f"of two statements of {newest[0].first} one may take the place of the other"
        raise MissingError("STATEMENT_GAP", said)
    elif goes_on:
        parts.append(newest)
    else:
        parts[:] = [newest]


def _balance(pages: Iterable[Report], codes: Sequence[str]) -> int | None:
    """Return a balance of a statement in fen, None where none of its pages tells it."""
    told = (found.amount.fen for one in pages if (found := one.balance(*codes)) is not None)
    return next(told, None)


def _told(pages: Iterable[Report]) -> list[tuple[object, ...]]:
    """Return what a statement tells, whatever numbers it gives its lines."""
    lines = (line for one in pages for line in one.lines)
    return sorted(
        (str(line.booked_at), line.is_debit, line.amount.value.fen, line.reference)
        for line in lines
    )


def _followed(parts: Sequence[Report]) -> Report:
    """Return statements that follow each other as one: no line of one is another's."""
    if len(parts) == 1:
        return parts[0]
    first = [one for one in parts[0].balances if one.code in OPENING]
    last = [one for one in parts[-1].balances if one.code not in OPENING]
    lines = tuple(line for one in parts for line in one.lines)
    return attrs.evolve(parts[-1], balances=(*first, *last), lines=lines)


def _joined(pages: Sequence[Report]) -> Report:
    if len(pages) == 1:
        return _checked(pages[0])
    numbers = [one.page for one in pages]
    if numbers != list(range(1, len(pages) + 1)) or not pages[-1].is_last_page:
        raise MissingError("STATEMENT_GAP", "a page of the statement is not there")
    return _checked(
        attrs.evolve(
            pages[-1],
            page=1,
            balances=tuple(balance for one in pages for balance in one.balances),
            lines=tuple(line for one in pages for line in one.lines),
        )
    )


def _checked(report: Report) -> Report:
    """Return a statement whose lines make its closing of its opening, where it is whole.

    Raises:
        MissingError: they do not.
    """
    opening, closing = report.balance(*OPENING), report.balance(*CLOSING)
    if opening is None or closing is None or report.page != 1 or not report.is_last_page:
        return report
    moved = sum(
        -line.amount.value.fen if line.is_debit else line.amount.value.fen
        for line in report.lines
        if _is_booked(report, line)
    )
    if opening.amount.fen + moved != closing.amount.fen:
        said = f"the lines of {report.first} do not make {closing.amount} of {opening.amount}"
        raise MissingError("STATEMENT_GAP", said)
    return report


def _is_booked(report: Report, line: Line) -> bool:
    return line.state == BOOKED or (not line.state and report.kind == "camt.053")


def _lines(
    query: StatementQuery, ours: Sequence[Report], statements: Sequence[Report]
) -> list[Line]:
    """Return the lines of the days asked for, each once."""
    lines: list[Line] = []
    known = _Known()
    interim = sorted((one for one in ours if one.kind == "camt.052"), key=_made)[-1:]
    notified = [one for one in ours if one.kind == "camt.054"]
    for report in (*statements, *interim, *notified):
        lines += known.fresh(
            [
                line
                for line in report.lines
                if _is_booked(report, line)
                and (report.kind == "camt.053" or not _is_stated(line, statements))
            ]
        )
    within = [
        one for one in lines if query.first_day <= business_date(one.booked_at) <= query.last_day
    ]
    for line in within:
        if line.amount.currency not in CURRENCIES:
            msg = f"a line is in {line.amount.currency[:3]}"
            raise ValueError(msg)
    return within


def _is_stated(line: Line, statements: Sequence[Report]) -> bool:
    """Say whether the statement of a line's day is there: then it has the line, or it is none."""
    return any(_covers(one, business_date(line.booked_at)) for one in statements)


class _Known:
    """The lines of the reports so far, each once.

    Lines of two reports are one where day, side and amount agree, and so do those of the bank's
    reference and the payment's that both bear. Either alone may come round again, or be a whole
    batch's. Of lines that look alike each takes the place of one only.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[object, ...], list[Line]] = {}
        self._last: Sequence[Line] = ()

    def fresh(self, told: Sequence[Line]) -> Sequence[Line]:
        """Return those of a report's lines that are in no report before it."""
        for line in self._last:
            for key in _keys(line)[1]:
                self._places.setdefault(key, []).append(line)
        free: dict[tuple[object, ...], Iterator[Line]] = {}
        taken: set[int] = set()

        def is_seen(line: Line) -> bool:
            for key in _keys(line)[0]:
                for one in free.setdefault(key, iter(self._places.get(key, ()))):
                    if id(one) not in taken:
                        taken.add(id(one))
                        return True
            return False

        self._last = [line for line in told if not is_seen(line)] if self._places else told
        return self._last


def _keys(line: Line) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Return under what to look for a line's twin, and under what the line is found as one."""
    of_bank, of_payment = line.bank_ref, _reference(line)
    line_of = (business_date(line.booked_at), line.is_debit, line.amount.value, line.takes_back)
    if of_bank and of_payment:
        both = (*line_of, of_bank, of_payment)
        one_alone = [(*line_of, of_bank, ""), (*line_of, "", of_payment)]
        return [both, *one_alone], [both, (*line_of, of_bank, None), (*line_of, None, of_payment)]
    if of_bank or of_payment:
        alone = (*line_of, of_bank, of_payment)
        return [alone, (*line_of, of_bank or None, of_payment or None)], [alone]
    neither = (*line_of, "", "", line.message_ref)
    return [neither], [neither]


def _reference(line: Line) -> str:
    return "" if line.reference == NOT_PROVIDED else line.reference


def _entry(line: Line) -> StatementEntry:
    # A debit that takes a credit back is no return, and no proof of a payment either.
    goes_again = line.is_debit and line.takes_back
    return StatementEntry(
        bank_ref=line.bank_ref,
        booked_at=line.booked_at,
        direction=Direction.DEBIT if line.is_debit else Direction.CREDIT,
        amount=line.amount.value,
        counterparty_account=line.counterparty,
        counterparty_name=line.counterparty_name,
        client_ref="" if goes_again else _reference(line) or line.message_ref,
        purpose=line.purpose,
        reversal=line.takes_back and not line.is_debit,
    )
