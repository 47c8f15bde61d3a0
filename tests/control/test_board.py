"""What fepctl top shows: rates, order, and a daemon that was restarted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.control.board import READINGS_MAX, Board, Order, Reading, per_minute, seconds


def bank(ended: int = 0, **more: Any) -> dict[str, Any]:
    row = {"open": {}, "drained": False, "in_flight": 0, "ended": ended, "waiting_since": None}
    return row | more


def reading(at: float, banks: dict[str, dict[str, Any]], **status: Any) -> Reading:
    value = {
        "version": "1", "time": "2026-03-02T01:00:10.000000Z", "uptime_s": 100.0 + at,
        "queue": {"open": 0, "queue_max": 10, "banks": banks},
        "store_full": False, "held_since": None,
    }  # fmt: skip
    links = [
        {
            "bank": "north",
            "state": "ready",
            "last_reply_at": "2026-03-02T01:00:08.000000Z",
            "last_failure": "connect: refused\x1b[2J",
            "failures": 0,
        }
    ]
    return Reading(at, value | status, [], links, [])


def test_a_rate_is_over_the_last_ten_seconds() -> None:
    board = Board()
    board.take(reading(0, {"north": bank(1000)}))
    assert board.banks(Order.NAME)[0].rate is None
    assert board.rate is None
    for second in range(1, 31):
        # One a second at first, then two.
        ended = 1000 + second + max(second - 20, 0)
        board.take(reading(float(second), {"north": bank(ended)}))
    assert board.banks(Order.NAME)[0].rate == pytest.approx(120)
    assert board.rate == pytest.approx(120)
    assert board.bars()[:3] == [1, 1, 1]
    assert board.bars()[-1] == 2


def test_a_restarted_daemon_begins_anew() -> None:
    board = Board()
    board.take(reading(0, {"north": bank(1000)}))
    board.take(reading(1, {"north": bank(1001)}))
    board.take(reading(2, {"north": bank(0)}, uptime_s=0.5))
    assert board.banks(Order.NAME)[0].rate is None
    assert board.bars() == []


def test_banks_are_sorted_by_what_was_chosen() -> None:
    board = Board()
    rows = {
        "north": bank(
            0, open={"queued": 5, "sending": 1}, waiting_since="2026-03-02T01:00:07.000000Z"
        ),
        "south": bank(0, open={"queued": 9}, waiting_since="2026-03-02T01:00:09.000000Z"),
        "east": bank(0),
    }
    board.take(reading(0, rows))
    board.take(reading(1, rows | {"east": bank(9)}))
    names = {order: [one.name for one in board.banks(order)] for order in Order}
    assert names == {
        Order.NAME: ["east", "north", "south"],
        Order.OPEN: ["south", "north", "east"],
        Order.RATE: ["east", "north", "south"],
        Order.WAITING: ["north", "south", "east"],
    }
    order = Order.NAME
    for _ in Order:
        order = order.next()
    assert order is Order.NAME


def test_a_row_says_what_hinders_a_bank() -> None:
    board = Board()
    rows = {"north": bank(0, drained=True), "south": bank(0, served_by="FEP-02")}
    board.take(reading(0, rows, machine="FEP-01"))
    north, south = board.banks(Order.NAME)
    assert (north.link, north.note, north.silent_s) == ("ready", "drained 已暂停", 2.0)
    assert north.failure == "", "the last failure is over"
    assert (south.link, south.note, south.silent_s) == ("", "by 由 FEP-02", None)
    assert "machine 前置机 FEP-01" in board.headline()
    board.take(reading(1, rows, store_full=True, held_since="2026-03-01T00:00:00.000000Z"))
    assert "磁盘已满" in board.headline()
    assert "暂停付款" in board.headline()


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50), st.booleans())))
def test_no_rate_is_below_zero(steps: list[tuple[float, int, bool]]) -> None:
    board, at, ended = Board(), 0.0, 0
    for pause, more, restart in steps:
        at += pause + 0.01
        ended = 0 if restart else ended + more
        names = {"north": bank(ended)} if more % 7 else {}
        board.take(reading(at, names, uptime_s=0.1 if restart else 100 + at))
        assert all((one.rate or 0) >= 0 for one in board.banks(Order.RATE))
        assert (board.rate or 0) >= 0
        assert all(bar >= 0 for bar in board.bars())
        assert len(board.bars()) < READINGS_MAX


def test_nothing_is_shown_before_the_first_reading() -> None:
    board = Board()
    assert (board.banks(Order.NAME), board.bars(), board.headline()) == ([], [], "")
    assert (per_minute(None), seconds(None), seconds(0.25), seconds(75)) == (
        "–", "", "0.2 s", "1 min 15 s",
    )  # fmt: skip
