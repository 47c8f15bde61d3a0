"""Nothing is bent into shape on its way from a TOML table into a class."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

import attrs
import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters import registry, strict
from fep.adapters.card import BehaviourCard, override


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Inner:
    text: str = ""
    codes: frozenset[str] = frozenset()


def _even(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value % 2:
        msg = f"{attribute.name} must be even"
        raise ValueError(msg)


@attrs.frozen
class Outer:
    needed: str
    count: int = attrs.field(default=0, validator=_even)
    span: float = 0.0
    flag: bool = False
    colour: Colour = Colour.RED
    word: Literal["a", "b"] = "a"
    inner: Inner = attrs.Factory(Inner)
    names: Mapping[str, str] = attrs.Factory(dict)
    rows: tuple[Inner, ...] = ()
    short: str = attrs.field(default="", validator=attrs.validators.max_len(3))


def wrong(value: object) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises((cattrs.BaseValidationError, ValueError)) as caught:
        strict.converter().structure(value, Outer)
    return [(fault.path, fault.message) for fault in strict.faults(caught.value)]


def test_what_is_declared_is_taken() -> None:
    given = {
        "needed": "x",
        "count": 2,
        "span": 3,
        "flag": True,
        "colour": "blue",
        "word": "b",
        "inner": {"text": "t", "codes": ["1", "2"]},
        "names": {"a": "b"},
        "rows": [{"text": "r"}],
    }
    made = strict.converter().structure(given, Outer)
    assert made == Outer(
        needed="x",
        count=2,
        span=3.0,
        flag=True,
        colour=Colour.BLUE,
        word="b",
        inner=Inner("t", frozenset({"1", "2"})),
        names={"a": "b"},
        rows=(Inner("r"),),
    )
    assert type(made.span) is float
    assert type(made.colour) is Colour


@pytest.mark.parametrize(
    ("member", "path", "message"),
    [
        ({"needed": 3}, ("needed",), "must be text in quotes"),
        ({"count": 2.0}, ("count",), "must be a whole number"),
        ({"count": True}, ("count",), "must be a whole number"),
        ({"count": "2"}, ("count",), "must be a whole number"),
        ({"count": 3}, (), "count must be even"),
        ({"span": "3"}, ("span",), "must be a number"),
        ({"span": False}, ("span",), "must be a number"),
        ({"flag": 1}, ("flag",), "must be true or false"),
        ({"flag": "no"}, ("flag",), "must be true or false"),
        ({"colour": "green"}, ("colour",), "must be one of red, blue"),
        ({"colour": 1}, ("colour",), "must be one of red, blue"),
        ({"word": "c"}, ("word",), "must be one of a, b"),
        ({"inner": "x"}, ("inner",), "must be a table"),
        ({"inner": {"text": 1}}, ("inner", "text"), "must be text in quotes"),
        ({"inner": {"codes": "MA404"}}, ("inner", "codes"), "must be an array"),
        ({"inner": {"codes": ["1", 2]}}, ("inner", "codes", 1), "must be text in quotes"),
        ({"inner": {"code": []}}, ("inner", "code"), "unknown key"),
        ({"names": "x"}, ("names",), "must be a table"),
        ({"names": {"a": 1}}, ("names", "a"), "must be text in quotes"),
        ({"rows": {"text": "r"}}, ("rows",), "must be an array"),
        ({"rows": [{"text": "r"}, {"text": 1}]}, ("rows", 1, "text"), "must be text in quotes"),
        ({"other": 1}, ("other",), "unknown key"),
    ],
)
def test_what_is_not_is_told_with_its_path(
    member: dict[str, object], path: tuple[str | int, ...], message: str
) -> None:
    assert wrong({"needed": "x", **member}) == [(path, message)]


def test_all_faults_come_at_once() -> None:
    found = wrong({"count": "x", "inner": {"codes": "x", "z": 1}, "y": 1})
    assert {path for path, _ in found} == {
        ("needed",),
        ("count",),
        ("inner", "codes"),
        ("inner", "z"),
        ("y",),
    }
    assert dict(found)["needed",] == "is missing"


def test_a_validator_of_attrs_itself_gives_its_words_only() -> None:
    ((path, message),) = wrong({"needed": "x", "short": "four"})
    assert path == ()
    assert "short" in message
    assert "Attribute(" not in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["needed", "count", "span", "inner", "codes", "names", "rows", "colour"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(value=JSON)
def test_any_value_is_taken_as_it_is_or_told(value: Any) -> None:
    converter = strict.converter()
    try:
        made = converter.structure(value, Outer)
    except (cattrs.BaseValidationError, ValueError) as error:
        found = strict.faults(error)
        assert found
        assert all(fault.message and "\n" not in fault.message for fault in found)
    else:
        assert made.needed == value["needed"]
        assert made.count == value.get("count", 0)


@pytest.mark.parametrize("name", registry.names())
def test_the_shipped_cards_and_their_overrides_are_read_strictly(name: str) -> None:
    card = registry.adapter(name).card
    assert isinstance(card, BehaviourCard)
    assert override(card, {"inquiry": {"cool_down_s": 1}}).inquiry.cool_down_s == 1.0
    for changes in (
        {"codes": {"refused": "MA404"}},
        {"inquiry": {"cool_down_s": "1"}},
        {"dedupe": {"length_max": 3.7}},
    ):
        with pytest.raises(cattrs.BaseValidationError):
            override(card, changes)
