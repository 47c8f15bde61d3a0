"""One look at an account: which pages were read, and what is still to be asked. Pure.

A look is done one request at a time, between payments, so it is a thing that can be laid down and
taken up again.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from fep.adapters.api import Reply
from fep.domain.clock import BusinessDate, business_date
from fep.domain.ids import AccountNumber
from fep.domain.order import STATEMENT_DAYS_MAX, Statement, StatementEntry, StatementQuery
from fep.tasks.matching import Returns, Watched

PAGES_MAX: Final = 1000
ENTRIES_MAX: Final = 50_000
"""What is read of one account in one look; of a longer statement only references prove anything."""
LOSSES_MAX: Final = 5
LOSSES_OF_ONE_MAX: Final = 2
"""Requests after one success without a clear answer, then it waits for the next look."""


@attrs.define(eq=False)
class Look:
    """One look at one payer's account."""

    payer: AccountNumber
    began: float = 0.0
    """When its first request was made (trio's time)."""
    is_begun: bool = False
    is_judged: bool = False
    parts: deque[StatementQuery] = attrs.Factory(deque)
    """What of the statement is still to be asked; the first may be under way."""
    entries: list[StatementEntry] = attrs.Factory(list)
    returns: Returns = attrs.Factory(Returns)
    """Those of ``entries`` that may be returns."""
    pages: list[tuple[int, Reply, str]] = attrs.Factory(list)
    """Each page, with how many entries there were before it, and the cursor it was asked by."""
    is_complete: bool = True
    """False: there is more in the statement than was read."""
    asks: deque[Watched] = attrs.Factory(deque)
    """Successes whose status is to be asked."""
    asks_all_after: int | None = None
    """Set where there is no statement: every success is asked after, from this place on."""
    losses: int = 0
    """Requests in a row without a clear answer."""
    known_bad: frozenset[int] = frozenset()
    """Places of successes of which the bank told nothing at an earlier look: asked last."""
    last: deque[Watched] = attrs.Factory(deque)
    """Those of ``known_bad`` that are still to be asked after."""
    bad: set[int] = attrs.Factory(set)
    """Places of those of which it tells nothing at this look."""
    asks_until: int = 0
    """The highest place when it began: what succeeds meanwhile is for the next look."""
    waiting: frozenset[int] = frozenset()
    """Places of successes that may have come back, and whose turn to be asked is later."""
    missed: str = ""
    """Why this look did not learn all; empty: it did."""
    _is_at_last: bool = False
    _losses_of_one: int = 0

    @property
    def is_asking(self) -> bool:
        """Whether the next request asks after a success."""
        return self.is_judged and not self.parts and bool(self.asks)

    @property
    def unlearned(self) -> frozenset[int] | None:
        """Places of successes of which this look learned nothing; None: that may be any."""
        return self.waiting | self.bad if self.is_complete else None

    @property
    def is_lost(self) -> bool:
        """Whether too many requests in a row got no clear answer."""
        return self.losses >= LOSSES_MAX

    def ask_after(self, found: Iterable[Watched]) -> None:
        """Let the status of these successes be asked."""
        for one in found:
            (self.last if one.seq in self.known_bad else self.asks).append(one)

    def ask_last(self) -> None:
        """Go on to the successes of which nothing was told at an earlier look."""
        self.asks, self.last = self.last, deque()
        self._is_at_last = True
        self.losses = 0

    def take_told(self) -> None:
        """Go on behind a success of which the bank told something."""
        self.asks.popleft()
        self.losses = self._losses_of_one = 0

    def pass_over(self, reason: str) -> None:
        """Go on behind a success of which the bank tells nothing: it must not hide the others."""
        self.bad.add(self.asks.popleft().seq)
        self._losses_of_one = 0
        self.missed = reason

    def lose(self, reason: str) -> None:
        """Count a request without a clear answer; a success is passed over at the second."""
        self.losses += 1
        if not self.is_asking:
            return
        self._losses_of_one += 1
        if self._losses_of_one >= LOSSES_OF_ONE_MAX or self._is_at_last:
            self.pass_over(reason)
        if self._is_at_last and self.is_lost:
            # All others were asked, so the look is over, however long the bank tells nothing.
            self.bad |= {one.seq for one in self.asks}
            self.asks.clear()
            self.losses = 0

    def ask_statement(self, parts: Sequence[StatementQuery]) -> None:
        """Let these parts of the statement be read, the newest first: earlier looks read others."""
        self.parts = deque(reversed(parts))

    def take_page(self, page: Statement, reply: Reply) -> None:
        """Take a page that was read and go on to what follows it."""
        part = self.parts.popleft()
        self.pages.append((len(self.entries), reply, part.cursor))
        self.entries.extend(page.entries)
        self.returns.add(page.entries)
        if page.cursor:
            self.parts.appendleft(attrs.evolve(part, cursor=page.cursor))
        if self.parts and (len(self.pages) >= PAGES_MAX or len(self.entries) >= ENTRIES_MAX):
            self.is_complete = False
            self.missed = f"its statement has more than the {len(self.entries)} lines that are read"
            self.parts.clear()

    def page_of(self, entry: StatementEntry) -> tuple[Reply, str]:
        """Return the bank's answer that an entry stands in, and the cursor it was asked by."""
        place = next(at for at, one in enumerate(self.entries) if one is entry)
        return next(
            (reply, cursor) for first, reply, cursor in reversed(self.pages) if first <= place
        )


def days(oldest: dt.datetime, now: dt.datetime) -> tuple[BusinessDate, BusinessDate]:
    """Return the days of a statement that must show what was sent since ``oldest``.

    From the day before, for the bank's midnight is not ours. Never more than a statement covers.
    """
    last = business_date(now)
    first = min(business_date(oldest), last) - dt.timedelta(days=1)
    earliest = last - dt.timedelta(days=STATEMENT_DAYS_MAX - 1)
    return BusinessDate(max(first, earliest)), last
