"""The grade of an adapter is what its file says of a fixed list of rules, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fep.adapters import quality, registry
from fep.adapters.quality import NAMES, RULES, Grade, Status, read
from fep.daemon import main
from tests.adapters.conftest import Install

TEXT = "[rules]\n" + "".join(f'{name} = {{ status = "done" }}\n' for name in NAMES)


def changed(name: str, entry: str) -> str:
    line = f'{name} = {{ status = "done" }}\n'
    assert line in TEXT
    return TEXT.replace(line, f"{name} = {entry}\n" if entry else "")


def test_a_grade_needs_all_of_its_rules_and_of_those_below() -> None:
    assert read(TEXT).grade is Grade.PLATINUM
    below = Grade.NONE
    for grade, rules in RULES.items():
        for name in rules:
            found = read(changed(name, '{ status = "todo", comment = "later" }'))
            assert found.grade is below
            exempt = read(changed(name, '{ status = "exempt", comment = "the bank has none" }'))
            assert exempt.grade is Grade.PLATINUM
        below = grade


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tables"),
        ("rules = 1", "tables"),
        (TEXT + "[more]\n", "tables"),
        (TEXT + 'speed = { status = "done" }\n', "speed is no rule"),
        (changed("samples", ""), "samples is missing"),
        (changed("samples", '"done"'), "samples must be"),
        (changed("samples", '{ status = "done", why = "" }'), "samples must be"),
        (changed("samples", '{ status = "perhaps" }'), "not one of done, todo, exempt"),
        (changed("samples", '{ status = "todo" }'), "samples is todo"),
        (changed("samples", '{ status = "exempt", comment = " " }'), "does not say why"),
        (changed("samples", '{ status = "done", comment = 3 }'), "does not say why"),
        ("[rules", "at end of document"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_every_shipped_adapter_has_a_grade_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["adapters", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["adapters"]
    assert [row["name"] for row in rows] == registry.names()
    for row in rows:
        assert row["grade"] in set(Grade) - {Grade.NONE}, "an adapter that may do harm is shipped"
        assert [rule["name"] for rule in row["rules"]] == list(NAMES)
        todo = [rule for rule in row["rules"] if rule["status"] == Status.TODO]
        assert all(rule["comment"] for rule in todo)


def test_one_adapters_rules_are_shown_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["adapters", "cmb_xml"]) == 0
    out = capsys.readouterr().out
    assert "platinum  todo    live_bank: tried against the bank" in out
    assert main.main(["adapters", "nobody"]) == 1
    assert "there are:" in capsys.readouterr().err


def test_an_adapter_without_its_file_is_no_adapter_to_trust(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = "class A:\n    name = 'bare'\n    def open(self): ...\nADAPTER = A()\n"
    install("barepackage", code, bare="barepackage:ADAPTER")
    with pytest.raises(registry.BrokenAdapterError, match="quality of adapter 'bare'"):
        registry.quality("bare")
    assert main.main(["adapters"]) == 1
    assert "quality of adapter 'bare' is not known" in capsys.readouterr().err
    assert not list(tmp_path.glob(quality.FILE))
