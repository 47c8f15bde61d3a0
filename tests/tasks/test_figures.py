"""What is counted of the lanes' work."""

from __future__ import annotations

import datetime as dt

import pytest

from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, BankName, TaskId
from fep.domain.order import BalanceQuery, Kind, ReturnedQuery, StatementQuery
from fep.tasks.figures import Exchange, Figures, asked_by
from fep.tasks.state import State

NORTH, SOUTH = BankName("north"), BankName("south")
ACCOUNT = AccountNumber("6222000000000001")
DAY = BusinessDate(dt.date(2026, 3, 2))


def test_ends_are_counted_by_bank_kind_and_state() -> None:
    figures = Figures()
    for bank, seconds in ((NORTH, 1.0), (NORTH, 3.0), (SOUTH, 5.0)):
        figures.note_end(bank, Kind.TRANSFER, State.SUCCEEDED, seconds)
    figures.note_end(NORTH, Kind.BALANCE, State.FAILED, -2.0)
    assert figures.ended_of(NORTH) == 3
    assert figures.ended_of(SOUTH) == 1
    assert figures.ended_of(BankName("none")) == 0
    assert figures.ended[NORTH, Kind.TRANSFER, State.SUCCEEDED].total == 4.0
    assert figures.ended[NORTH, Kind.BALANCE, State.FAILED].total == 0.0, "a clock was set back"


def test_a_request_is_counted_by_how_it_ended_with_its_task() -> None:
    figures = Figures()
    figures.note_exchange(NORTH, "transfer", Exchange.ANSWERED, 0.3, TaskId("T-1"))
    figures.note_exchange(NORTH, "transfer", Exchange.LOST, 0.3, None)
    assert figures.exchanges.keys() == {
        (NORTH, "transfer", Exchange.ANSWERED),
        (NORTH, "transfer", Exchange.LOST),
    }
    answered = figures.exchanges[NORTH, "transfer", Exchange.ANSWERED]
    assert [one for *_, one in answered.buckets() if one] == [("T-1", 0.3)]


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        (BalanceQuery(ACCOUNT), Kind.BALANCE),
        (StatementQuery(ACCOUNT, DAY, DAY), Kind.STATEMENT),
        (ReturnedQuery(ACCOUNT, DAY, DAY), Kind.RETURNED_PAYMENTS),
    ],
)
def test_a_query_is_counted_as_the_kind_that_asks_so(
    query: BalanceQuery | StatementQuery | ReturnedQuery, kind: Kind
) -> None:
    assert asked_by(query) == kind.value
