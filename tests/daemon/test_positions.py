"""Every key of every TOML text is found where it stands."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fep.daemon.positions import Positions

Path = tuple[str | int, ...]

TRICKY = st.sampled_from(
    [
        "",
        "a",
        "#",
        "]",
        "[[x]]",
        "k1 = 2",
        "x\ny",
        '"',
        "'",
        '"""',
        "\\",
        "\\\n",
        "江枫",
        "a\tb",
        '\\"',
    ]
)
SHAPES = st.recursive(
    st.integers(0, 9) | TRICKY | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(lambda rows: {"table": rows}, st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)
ODD_KEYS = st.text(st.sampled_from("a.=#]\"'\\ 江-_[{,\t"), max_size=4)


def named(shape: Any, counter: Iterator[str]) -> Any:
    """Return the shape with tables whose keys are all different."""
    if isinstance(shape, dict):
        return {next(counter): named(one, counter) for one in shape["table"]}
    if isinstance(shape, list):
        return [named(one, counter) for one in shape]
    return shape


def keys(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every key below a value."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield (*path, key)
            yield from keys(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from keys(one, (*path, index))


def offset(text: str, positions: Positions, path: Path) -> int:
    place = positions.of(path)
    lines = text.split("\n")
    assert positions.source(place.line) == lines[place.line - 1].rstrip("\r")
    return sum(len(line) + 1 for line in lines[: place.line - 1]) + place.column - 1


def inline(value: Any) -> str:
    """Write a value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}= {inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(inline, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


@given(shapes=st.lists(SHAPES, max_size=5), odd=ODD_KEYS, multiline=st.booleans())
def test_whatever_is_written_is_found_again(shapes: list[Any], odd: str, multiline: bool) -> None:
    counter = (f"{odd}k{number}k" for number in range(10_000))
    value = named({"table": shapes}, counter)
    text = tomli_w.dumps(value, multiline_strings=multiline)
    assert tomllib.loads(text) == value
    positions = Positions(text)
    for path in keys(value):
        at = offset(text, positions, path)
        number = str(path[-1]).removeprefix(odd)
        # The key itself, in quotes or not, or the header of its table.
        line = text[at:].split("\n")[0]
        assert number in line
        start = line.lstrip("[ ").lstrip("\"'")
        assert line.startswith("[") or start[: len(number) + 2 * len(odd) + 2].find(number) >= 0


@given(shapes=st.lists(SHAPES, max_size=5))
def test_keys_on_one_line_are_found_to_the_column(shapes: list[Any]) -> None:
    value = named({"table": shapes}, (f"k{number}k" for number in range(10_000)))
    text = "".join(f"{key} = {inline(one)}\n" for key, one in value.items())
    text = text.replace("k1k", "a.b.k1k", 1)  # a dotted key
    value = tomllib.loads(text)
    positions = Positions(text)
    for path in keys(value):
        if path[-1] in {"a", "b"}:
            assert text[offset(text, positions, path) :].startswith(str(path[-1]))
        else:
            assert text[offset(text, positions, path) :].startswith(f"{path[-1]}")


TEXT = """\
# [[bank]]
"quoted key" = 1
"a\\u0062" = 2
dotted . 'key' = { deep = 1, more.deep = [ { x = 1 }, {x = 2} ] }

[[bank]]
name = "a"
  [bank.options]
  text = \"\"\"
[[bank]]
name = 1 \"\"\"\"\"
[[ "bank" ]]
name = "b"
[[bank.member]]
[[bank.member]]
x = [
  1, # one
  { y = 2 },
]
[outer.inner]
z = 1
"""


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        (("quoted key",), 2, 1),
        (("ab",), 3, 1),
        (("dotted",), 4, 1),
        (("dotted", "key"), 4, 10),
        (("dotted", "key", "deep"), 4, 20),
        (("dotted", "key", "more"), 4, 30),
        (("dotted", "key", "more", "deep", 1, "x"), 4, 56),
        (("bank",), 6, 1),
        (("bank", 0, "name"), 7, 1),
        (("bank", 0, "options"), 8, 3),
        (("bank", 0, "options", "text"), 9, 3),
        (("bank", 1), 12, 1),
        (("bank", 1, "name"), 13, 1),
        (("bank", 1, "member", 1), 15, 1),
        (("bank", 1, "member", 1, "x"), 16, 1),
        (("bank", 1, "member", 1, "x", 1, "y"), 18, 5),
        (("outer",), 20, 1),
        (("outer", "inner", "z"), 21, 1),
        (("bank", 0, "options", "missing"), 8, 3),
        (("bank", 1, "member", 0, "missing"), 14, 1),
        (("nowhere", "at", "all"), 1, 1),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_forms_people_write(path: Path, line: int, column: int, end: str) -> None:
    text = TEXT.replace("\n", end)
    tomllib.loads(text)
    place = Positions(text).of(path)
    assert (place.line, place.column) == (line, column)


def test_a_file_of_nothing_has_a_place_too() -> None:
    positions = Positions("")
    assert (positions.of(("a",)).line, positions.source(1), positions.source(9)) == (1, "", "")
