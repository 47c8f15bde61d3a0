"""The threat model names every attack that is tried here, and none that is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXT = (HERE.parent.parent / "docs/threat-model.md").read_text("utf-8")
ATTEMPTS_MIN = 20


def tried() -> set[str]:
    """Return the names of the attacks in this folder."""
    return {
        node.name
        for path in HERE.glob("test_*.py")
        if path != Path(__file__)
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def test_each_attack_has_a_row_and_each_row_an_attack() -> None:
    named = [re.fullmatch(r"`(\w+)`", row[4]) for row in rows("What stops them")]
    found = [one[1] for one in named if one is not None]
    assert len(found) == len(set(found)) == len(named) >= ATTEMPTS_MIN
    assert set(found) == tried()


def test_each_row_names_an_attacker_and_an_asset_that_are_described() -> None:
    attackers = {row[0] for row in rows("Who may try")}
    assets = {row[0] for row in rows("What is worth attacking")}
    table = rows("What stops them")
    assert {row[1] for row in table} == attackers
    assert {row[2] for row in table} <= assets
    assert all(all(row) for row in table)


def test_every_attack_is_made_where_harm_would_be_seen() -> None:
    for path in HERE.glob("test_*.py"):
        if path == Path(__file__):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert "attacked.unharmed()" in ast.unparse(node), node.name
