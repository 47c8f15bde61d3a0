"""The console's plain parts: who waits, how values look, the pictures."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.console import pictures, shown
from fep.console.desk import local_path
from fep.console.store import Flow
from fep.console.throttle import (
    KEPT_MAX,
    PAUSE_SECONDS,
    PEER_FAILURES_MAX,
    USER_FAILURES_MAX,
    Throttle,
)


def test_a_user_waits_after_five_failures_and_is_forgotten_after_a_minute() -> None:
    one = Throttle()
    for _ in range(USER_FAILURES_MAX):
        assert one.wait("wang", "1.1.1.1", 0.0) == 0.0
        one.failed("wang", "1.1.1.1", 0.0)
    assert one.wait("wang", "2.2.2.2", 1.0) == PAUSE_SECONDS - 1.0
    assert one.wait("li", "1.1.1.1", 1.0) == 0.0
    assert one.wait("wang", "2.2.2.2", PAUSE_SECONDS) == 0.0
    one.failed("wang", "1.1.1.1", PAUSE_SECONDS)
    assert one.wait("wang", "1.1.1.1", PAUSE_SECONDS) == 0.0


def test_a_peer_that_tries_many_names_waits_and_one_that_knows_them_does_not() -> None:
    hunts, knows = Throttle(), Throttle()
    for place in range(PEER_FAILURES_MAX):
        hunts.failed(f"u{place}", "1.1.1.1", 0.0)
        knows.failed(f"u{place}", "1.1.1.1", 0.0)
        knows.succeeded(f"u{place}", "1.1.1.1")
    assert hunts.wait("new", "1.1.1.1", 1.0) > 0
    assert knows.wait("new", "1.1.1.1", 1.0) == 0.0


def test_what_is_remembered_is_bounded() -> None:
    one = Throttle()
    for place in range(KEPT_MAX + 100):
        one.failed(f"u{place}", "1.1.1.1", 0.0)
    assert len(one._counts) <= KEPT_MAX


@given(st.integers(-(10**15), 10**15))
def test_an_amount_reads_back(fen: int) -> None:
    text = shown.yuan(fen)
    assert round(float(text.replace(",", "")) * 100) == fen or abs(fen) > 10**14
    plain = f"{'-' if fen < 0 else ''}{abs(fen) // 100}.{abs(fen) % 100:02d}"
    assert shown.amount(plain) == text


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("/tasks?state=unknown", "/tasks?state=unknown"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
        ("/x\r\nset-cookie: a=b", "/"),
    ],
)
def test_one_is_led_to_a_place_of_this_console_alone(text: str, path: str) -> None:
    assert local_path(text) == path


flow = st.builds(
    Flow,
    st.sampled_from([f"bank-{n}" for n in range(20)]),
    st.sampled_from([f"acc-{n}" for n in range(40)]),
    st.integers(1, 10**12),
    st.integers(1, 100),
)


@given(st.lists(flow, max_size=80))
def test_flows_keep_all_money_and_stay_in_the_picture(found: list[Flow]) -> None:
    picture = pictures.flows(found, {"acc-1": "江枫样例制造有限公司上海第一分公司"}, "others")
    if not found:
        assert picture is None
        return
    assert picture is not None
    total = sum(one.fen for one in found)
    for side in (True, False):
        told = [node.told for node in picture.nodes if node.is_left is side]
        sums = sum(round(float(one.replace(",", "")) * 100) for one in told)
        assert abs(sums - total) <= total * 1e-9
    assert len([node for node in picture.nodes if not node.is_left]) <= pictures.PAYEES_MAX + 1
    assert all(len(node.name) <= pictures.NAME_CHARS_MAX for node in picture.nodes)
    for ribbon in picture.ribbons:
        assert re.fullmatch(r"[MCLZ\d., -]+", ribbon.path)
    bottoms = sorted((n.y, n.y + n.height) for n in picture.nodes if not n.is_left)
    assert all(low <= next_low for (_, low), (next_low, _) in itertools.pairwise(bottoms))


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_bars_are_of_one_scale(seconds: list[float]) -> None:
    bars = pictures.bars({"a": seconds, "b": [], "c": [1.0]})
    assert [bar.bank for bar in bars] == ["a", "c"]
    assert all(0 <= bar.median_width <= bar.slow_width <= pictures.BAR_WIDTH for bar in bars)
    assert max(bar.slow_width for bar in bars) == pictures.BAR_WIDTH


def test_a_results_lines_are_a_table_and_its_times_a_persons() -> None:
    line = {
        "booked_at": "2026-01-05T01:02:03.000+00:00",
        "amount": "1.00",
        "counterparty": {"account": "9", "name": ""},
    }
    columns, rows = shown.listed(
        {"entries": [line, {"amount": "2.00", "fee": True}], "complete": True}
    )
    assert columns == ["booked_at", "amount", "counterparty.account", "fee"]
    assert rows[0] == {
        "booked_at": "2026-01-05 09:02:03.000",
        "amount": "1.00",
        "counterparty.account": "9",
    }
    assert rows[1] == {"amount": "2.00", "fee": "yes"}
    assert shown.listed({"available": "1.00"}) == shown.listed(None) == ([], [])
    # What is a list and no table stays; a table is told by itself.
    assert shown.pairs({"words": ["a", "b"], "rows": [{"a": 1}], "complete": False}) == [
        ("words", "['a', 'b']"),
        ("complete", "no"),
    ]
