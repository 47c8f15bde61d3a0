"""Money is whole fen: what is parsed is printed again, and nothing else is taken."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fep
from fep.domain.money import FEN_MAX, ZERO, Cny

FEN = st.integers(-FEN_MAX + 1, FEN_MAX - 1)
PARSED_MAX = Cny(FEN_MAX - 1)

MONEY_MODULES = (
    "domain/money.py",
    "domain/order.py",
    "pooling/config.py",
    "pooling/plan.py",
    "pooling/rules.py",
    "pooling/store.py",
)


@given(fen=FEN)
@example(fen=29)
@example(fen=-1)
@example(fen=0)
@example(fen=FEN_MAX - 1)
@example(fen=1 - FEN_MAX)
def test_what_is_printed_is_parsed_back(fen: int) -> None:
    amount = Cny(fen)
    assert Cny.parse(str(amount)) == amount
    assert Cny.parse_loose(str(amount)) == amount
    assert repr(amount) == f"Cny({amount})"


def test_29_fen_are_29_fen() -> None:
    assert Cny.parse("0.29").fen == 29
    assert Cny.parse("-0.29").fen == -29
    assert str(Cny(-29)) == "-0.29"
    assert str(Cny(-100)) == "-1.00"
    assert str(Cny(123_450)) == "1234.50"
    assert Cny.parse("-0.00") == ZERO


REFUSED = [
    "",
    "0",
    "1",
    "1.",
    ".50",
    "1.5",
    "1.500",
    "+1.50",
    "--1.50",
    "- 1.50",
    " 1.50",
    "1.50 ",
    "1.50\n",
    "\u30001.50",
    "1,234.50",
    "1_000.00",
    "1e3",
    "1.00e2",
    "0x1.00",
    "NaN",
    "nan",
    "inf",
    "-Infinity",
    "１.50",
    "١.٥٠",
    "¥1.50",
    "1.50元",
    "1.50\x00",
    "10000000000000.00",
    "99999999999999999999999999.00",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_amount_with_two_decimals_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="two decimals"):
        Cny.parse(text)


def test_the_largest_amount_parsed_is_below_the_limit() -> None:
    assert Cny.parse("9999999999999.99") == PARSED_MAX
    assert PARSED_MAX.fen < FEN_MAX


@given(text=st.text(alphabet="0123456789.,-+eE \u3000\n１٣infa", max_size=18))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    for parse in (Cny.parse, Cny.parse_loose):
        with contextlib.suppress(ValueError):
            amount = parse(text)
            assert type(amount.fen) is int
            assert -FEN_MAX < amount.fen < FEN_MAX


@pytest.mark.parametrize(
    ("text", "fen"),
    [
        ("12", 1200),
        ("12.5", 1250),
        ("12.50", 1250),
        (" 12.50\r\n", 1250),
        ("-12.5", -1250),
        ("0", 0),
        ("1,234.50", 123_450),
        ("1,234,567.89", 123_456_789),
        ("-1,234", -123_400),
        ("0000012.50", 1250),
    ],
)
def test_banks_write_amounts_in_their_own_ways(text: str, fen: int) -> None:
    assert Cny.parse_loose(text).fen == fen


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        ".",
        "12.345",
        "12.",
        ".5",
        "1e3",
        "nan",
        "1 234.50",
        "١٢",
        "１２",
        # A comma that does not cut off three digits is a decimal comma, or garbage: 12,5 is not 125.
        "12,5",
        "0,29",
        "12,50",
        "1,23,4.00",
        "1,2345",
        "1234,567.00",
        ",123",
        "123,",
        "1,,234",
        "1.2,345",
        "10000000000000",
        "10,000,000,000,000.00",
    ],
)
def test_a_loose_amount_is_never_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount in yuan"):
        Cny.parse_loose(text)


@given(one=FEN, two=FEN)
def test_sums_are_sums_of_fen(one: int, two: int) -> None:
    assert Cny(one) + Cny(two) == Cny(one + two)
    assert Cny(one) - Cny(two) == Cny(one - two)
    assert -Cny(one) == Cny(-one)
    assert (Cny(one) < Cny(two)) == (one < two)
    assert (Cny(one) == Cny(two)) == (one == two)
    assert len({Cny(one), Cny(one), ZERO}) == (1 if one == 0 else 2)


@pytest.mark.parametrize("value", [0.29, 29.0, "29", None, float("nan")])
def test_an_amount_is_a_whole_number_of_fen(value: Any) -> None:
    with pytest.raises(TypeError):
        Cny(value)


def test_nothing_but_amounts_is_added_or_compared() -> None:
    amount: Any = Cny(100)
    for act in (
        lambda: amount + 1,
        lambda: amount - 0.5,
        lambda: 1 + amount,
        lambda: amount * 2,
        lambda: amount / 2,
        lambda: amount < 100,
        lambda: float(amount),
        lambda: int(amount),
    ):
        with pytest.raises((TypeError, AttributeError)):
            act()
    assert amount != 100
    with pytest.raises(AttributeError):
        amount.fen = 1


def _floats(tree: ast.AST) -> list[int]:
    """Return the lines where a fraction could come in: a literal, a name, a true division."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id in {"float", "Decimal", "round"})
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
    ]


@pytest.mark.parametrize("module", MONEY_MODULES)
def test_no_fraction_comes_near_money(module: str) -> None:
    text = (Path(fep.__file__).parent / module).read_text("utf-8")
    assert _floats(ast.parse(text)) == []


def test_the_look_for_fractions_sees_them() -> None:
    for line in ("a = 0.5", "a = float(b)", "a = b / 2", "a /= 2", "a = round(b)"):
        assert _floats(ast.parse(line)) == [1]
    assert _floats(ast.parse("a = b // 2")) == []
