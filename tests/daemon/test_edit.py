"""Values of a TOML text change; every other byte stays."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fep.daemon.edit import CannotEditError, Edit, literal

TEXT = """\
# our front-end machine
mode = "demo"   # why demo

[enterprise]
id = "E1"  # who we are
fep_number = 'F-1'

# the first bank
[[bank]]
name = "a" # A
port = 0x50
options = { x = 1, "odd key" = "z" } # both
[bank.card.inquiry]
cool_down_s = 3 # three

# account of a
[[account]]
number = "1"
bank = "a"

# the second bank,
# in two lines
[[bank]]
name = "b"
port = 2
options.q = [1,
  2] # spread
secrets.word = { file = "w" }
[bank.folder] # where files are
out = "o"

[[account]]   # of b
number = "2"
bank = "b"

[tasks]
queue_max = 5
# the end
"""


def edited(*steps: Any, text: str = TEXT) -> str:
    edit = Edit(text)
    for step in steps:
        step(edit)
    return edit.done()


def test_nothing_changes_nothing() -> None:
    assert edited() == TEXT
    same = {"port": 80, "options": {"x": 1, "odd key": "z"}, "workers": None}
    assert edited(lambda one: one.merge(("bank", 0), same)) == TEXT


def test_a_value_is_changed_in_its_place() -> None:
    found = edited(lambda one: one.merge(("bank", 0), {"port": 81}))
    assert found == TEXT.replace("port = 0x50", "port = 81")
    found = edited(lambda one: one.merge(("enterprise",), {"id": '企业"1"'}))
    assert found == TEXT.replace('id = "E1"', 'id = "企业\\"1\\""')


def test_a_new_key_stands_at_the_end_of_its_table() -> None:
    found = edited(lambda one: one.merge(("bank", 0), {"workers": 8, "slot": "ukey-1"}))
    line = '"odd key" = "z" } # both\n'
    assert found == TEXT.replace(line, line + 'workers = 8\nslot = "ukey-1"\n')


def test_a_key_is_taken_out_with_its_line() -> None:
    assert edited(lambda one: one.merge(("bank", 1), {"port": None})) == TEXT.replace(
        "port = 2\n", ""
    )
    spread = "options.q = [1,\n  2] # spread\n"
    assert edited(lambda one: one.merge(("bank", 1), {"options": None})) == TEXT.replace(spread, "")
    folder = '[bank.folder] # where files are\nout = "o"\n'
    assert edited(lambda one: one.merge(("bank", 1), {"folder": None})) == TEXT.replace(folder, "")


def test_a_table_in_one_line_is_written_anew() -> None:
    found = edited(lambda one: one.merge(("bank", 0), {"options": {"x": 2, "y": True}}))
    before = '{ x = 1, "odd key" = "z" }'
    assert found == TEXT.replace(before, "{ x = 2, y = true }")


def test_a_table_with_a_header_or_dots_is_changed_key_by_key() -> None:
    found = edited(
        lambda one: one.merge(("bank", 0), {"card": {"inquiry": {"cool_down_s": 4.5, "n": 1}}}),
        lambda one: one.merge(("bank", 1), {"options": {"q": [1, 2], "r": "new"}}),
        lambda one: one.merge(("bank", 1), {"folder": {"in": "i"}}),
    )
    wanted = TEXT.replace("cool_down_s = 3 # three\n", "cool_down_s = 4.5 # three\nn = 1\n")
    line = 'secrets.word = { file = "w" }\n'
    wanted = wanted.replace(line, line + 'options.r = "new"\n')
    assert found == wanted.replace('out = "o"\n', 'in = "i"\n')


def test_a_table_is_added_behind_its_like() -> None:
    new = {"number": "3", "bank": "a", "name": None}
    found = edited(lambda one: one.append("account", new, 0))
    block = '[[account]]\nnumber = "1"\nbank = "a"\n'
    assert found == TEXT.replace(block, block + '\n[[account]]\nnumber = "3"\nbank = "a"\n')


def test_a_bank_is_added_behind_all_that_belongs_to_the_last_one() -> None:
    found = edited(lambda one: one.append("bank", {"name": "c", "options": {"x": 1}}))
    block = '[bank.folder] # where files are\nout = "o"\n'
    more = '\n[[bank]]\nname = "c"\noptions = { x = 1 }\n'
    assert found == TEXT.replace(block, block + more)


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_first_of_an_array_stands_at_the_end(end: str) -> None:
    text = f'mode = "demo"{end}'
    found = edited(lambda one: one.append("bank", {"name": "a"}), text=text)
    assert found == 'mode = "demo"\n\n[[bank]]\nname = "a"\n'
    assert edited(lambda one: one.append("bank", {"name": "a"}), text="") == (
        '[[bank]]\nname = "a"\n'
    )


def test_a_table_is_taken_out_with_what_belongs_to_it() -> None:
    found = edited(lambda one: one.remove("bank", 0))
    begin, end = TEXT.index("# the first bank"), TEXT.index("# account of a")
    assert found == TEXT[:begin] + TEXT[end:]
    found = edited(lambda one: one.remove("bank", 1), lambda one: one.remove("account", 1))
    begin, end = TEXT.index("# the second bank"), TEXT.index("[tasks]")
    assert found == TEXT[:begin] + TEXT[end:]


def test_one_goes_and_another_comes() -> None:
    def change(one: Edit) -> None:
        one.remove("account", 1)
        one.append("account", {"number": "3", "bank": "b"}, 1)
        one.append("account", {"number": "4", "bank": "b"}, 1)
        one.remove("bank", 0)
        one.merge(("bank", 1), {"name": "only"})

    found = tomllib.loads(edited(change))
    assert [one["number"] for one in found["account"]] == ["1", "3", "4"]
    assert [one["name"] for one in found["bank"]] == ["only"]


def test_all_of_an_array_is_replaced() -> None:
    def change(one: Edit) -> None:
        one.remove("account", 0)
        one.remove("account", 1)
        one.append("account", {"number": "9"}, 0)

    found = edited(change)
    assert tomllib.loads(found)["account"] == [{"number": "9"}]
    assert found.endswith('# the end\n\n[[account]]\nnumber = "9"\n')


def test_the_ends_of_lines_stay() -> None:
    text = TEXT.replace("\n", "\r\n")
    found = edited(
        lambda one: one.merge(("bank", 0), {"workers": 8}),
        lambda one: one.append("bank", {"name": "c"}),
        lambda one: one.remove("account", 0),
        text=text,
    )
    assert found.count("\n") == found.count("\r\n")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ('bank = [{ name = "a" }]', lambda one: one.merge(("bank", 0), {"name": "b"})),
        ('bank = [{ name = "a" }]', lambda one: one.remove("bank", 0)),
        ('bank = [{ name = "a" }]', lambda one: one.append("bank", {"name": "b"})),
        ('enterprise = { id = "a" }', lambda one: one.merge(("enterprise",), {"id": "b"})),
        ("[a]\n[a.b]\nc = 1", lambda one: one.merge(("a",), {"b": 1})),
    ],
)
def test_what_can_not_be_changed_is_refused(text: str, step: Any) -> None:
    with pytest.raises(CannotEditError):
        edited(step, text=text)


def test_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        Edit("a = ")


KEYS = st.sampled_from(["name", "port", "x y", "键", "options", "a.b"])
PLAIN = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


@given(VALUES)
def test_a_value_is_written_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"k = {literal(value)}")["k"] == value


@settings(deadline=None)
@given(
    st.lists(TABLES, min_size=1, max_size=4),
    TABLES,
    st.data(),
    st.booleans(),
)
def test_any_change_says_what_was_asked_for_or_is_refused(
    rows: list[dict[str, Any]], top: dict[str, Any], data: st.DataObject, in_lines: bool
) -> None:
    document = {"first": top, "bank": rows, "last": {"n": 1}}
    text = tomli_w.dumps(document)
    if in_lines:
        text = "".join(
            f"\n# about {key}\n" + tomli_w.dumps({key: one}) for key, one in document.items()
        )
    if tomllib.loads(text) != document or "[[bank]]" not in text:
        return
    index = data.draw(st.integers(0, len(rows) - 1))
    values = data.draw(st.dictionaries(KEYS, st.none() | VALUES, max_size=4))
    wanted = [dict(one) for one in rows]
    edit = Edit(text)
    try:
        edit.merge(("bank", index), values)
        for key, value in values.items():
            wanted[index].pop(key, None)
            if value is not None:
                wanted[index][key] = value
        gone = data.draw(st.sampled_from([None, *range(len(rows))]))
        if gone is not None and gone != index:
            edit.remove("bank", gone)
        new = data.draw(TABLES)
        edit.append("bank", new)
        found = edit.done()
    except CannotEditError:
        return
    expected = [one for place, one in enumerate(wanted) if place != gone or gone == index]
    assert tomllib.loads(found) == {**document, "bank": [*expected, new]}
    assert found.count("# about") == text.count("# about") - (
        1 if gone == 0 and gone != index and in_lines else 0
    )
