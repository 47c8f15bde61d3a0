# ruff: noqa: INP001 - a script beside the documents, not a package
"""Remakes the marked blocks of the documents from the code: ``python docs/diagrams.py [--check]``.

A block stands between ``<!-- made by docs/diagrams.py: NAME -->`` and ``<!-- end NAME -->``. With
``--check`` nothing is written; the exit status is 1 when a block is not as the code is now.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import attrs

from fep.alarms import outgoing as channels
from fep.alarms import state as alarms
from fep.keys import state as slots
from fep.links import state as links
from fep.tasks import state as tasks

ROOT: Final = Path(__file__).resolve().parent.parent

Table = Mapping[Any, Mapping[Any, Any]]


@attrs.frozen
class Fold:
    """Rows that are told in words under the picture, which would be a tangle with them."""

    events: frozenset[StrEnum]
    keep: frozenset[StrEnum]
    """States whose rows of these events are drawn all the same."""


@attrs.frozen
class Machine:
    """One state machine and how its picture is laid out."""

    transitions: Table
    start: StrEnum
    folds: tuple[Fold, ...] = ()
    evidence: frozenset[StrEnum] = frozenset()
    """States that only evidence leaves; drawn in another colour."""

    def is_folded(self, state: StrEnum, event: StrEnum) -> bool:
        """Say whether this row is told in words."""
        return any(event in fold.events and state not in fold.keep for fold in self.folds)

    def drawn(self) -> list[str]:
        """Return the picture's lines."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        for state, row in self.transitions.items():
            ways: dict[StrEnum, list[str]] = {}
            for event, after in row.items():
                if not self.is_folded(state, event):
                    ways.setdefault(after, []).append(str(event))
            lines += [
                f"    {state} --> {after}: {' / '.join(names)}" for after, names in ways.items()
            ]
            if not row:
                lines.append(f"    {state} --> [*]")
        if self.evidence:
            lines.append("    classDef evidence fill:#fde68a,stroke:#b45309,color:#1f2937")
            lines.append(f"    class {', '.join(sorted(self.evidence))} evidence")
        return lines

    def told(self) -> list[str]:
        """Return the lines for what is not drawn, one an event."""
        lines = []
        for event in (event for fold in self.folds for event in sorted(fold.events)):
            ways: dict[StrEnum, list[str]] = {}
            for state, row in self.transitions.items():
                if event in row and self.is_folded(state, event):
                    ways.setdefault(row[event], []).append(f"`{state}`")
            lines += [
                f"- `{event}` leads to `{after}` also from {', '.join(states)}."
                for after, states in ways.items()
            ]
        return lines

    def block(self) -> str:
        """Return the whole block."""
        told = ["", "Not drawn, to keep the picture readable:", "", *self.told()]
        lines = ["```mermaid", *self.drawn(), "```", *(told if self.folds else [])]
        return "\n".join(lines)


_SLOT, _SLOT_EVENT = slots.SlotState, slots.SlotEvent
_LINK, _LINK_EVENT = links.LinkState, links.LinkEvent

MACHINES: Final[Mapping[str, Machine]] = {
    "task": Machine(
        tasks.TRANSITIONS,
        tasks.State.QUEUED,
        (
            Fold(
                frozenset({tasks.Event.CANCELLED, tasks.Event.BODY_REFUSED}),
                frozenset({tasks.State.FETCHED}),
            ),
        ),
        tasks.OPEN_AT_BANK,
    ),
    "link": Machine(
        links.TRANSITIONS,
        _LINK.OFF,
        (
            Fold(frozenset({_LINK_EVENT.STOPPED}), frozenset({_LINK.NO_KEY})),
            Fold(
                frozenset({_LINK_EVENT.KEY_GONE, _LINK_EVENT.HELD}),
                frozenset({_LINK.DRAINING, _LINK.NO_KEY}),
            ),
        ),
    ),
    "slot": Machine(
        slots.TRANSITIONS,
        _SLOT.NO_SERVICE,
        (
            Fold(frozenset({_SLOT_EVENT.REMOVED}), frozenset({_SLOT.READY})),
            Fold(frozenset({_SLOT_EVENT.SERVICE_DOWN}), frozenset({_SLOT.NO_READER})),
        ),
    ),
    "alarm": Machine(alarms.TRANSITIONS, alarms.AlarmState.RAISED),
    "channel": Machine(channels.TRANSITIONS, channels.ChannelState.IDLE),
}


def _source(name: str) -> Path:
    """Return the file that speaks for a part of ``fep``; it may not exist."""
    package = ROOT / "fep" / name / "__init__.py"
    return package if package.is_file() else ROOT / "fep" / f"{name}.py"


def _first_line(name: str) -> str:
    """Return what a part of ``fep`` says of itself in its first line."""
    text = ast.get_docstring(ast.parse(_source(name).read_text("utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "`")


def layers() -> str:
    """Return the layers that exist, in the order the import contract of pyproject.toml says."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["type"] == "layers")
    lines = ["| layer | part | what it says of itself |", "|---|---|---|"]
    number = 0
    for layer in contract["layers"]:
        names = [name.strip(" ()") for name in layer.split("|")]
        there = [name for name in names if _source(name).is_file()]
        number += bool(there)
        for name in there:
            where = f"fep/{name}/" if (ROOT / "fep" / name).is_dir() else f"fep/{name}.py"
            lines.append(f"| {number} | `{where}` | {_first_line(name)} |")
    return "\n".join(lines)


def alarm_table() -> str:
    """Return every kind of alarm as an operator reads it."""
    lines = ["| alarm | 告警 | code | severity | what an operator does |", "|---|---|---|---|---|"]
    for kind, meaning in alarms.MEANINGS.items():
        cells = (meaning.title, meaning.title_zh, f"`{kind}`", meaning.severity, meaning.action)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def meaning_table() -> str:
    """Return every kind of alarm in both languages."""
    lines = ["| code | severity | alarm · 告警 | what to do · 处理 |", "|---|---|---|---|"]
    for kind, meaning in alarms.MEANINGS.items():
        title = f"{meaning.title} · {meaning.title_zh}"
        action = f"{meaning.action} {meaning.action_zh}"
        cells = (f"`{kind}`", meaning.severity, title, action)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {
    **{name: machine.block for name, machine in MACHINES.items()},
    "layers": layers,
    "alarms": alarm_table,
    "meanings": meaning_table,
}

_BLOCK: Final = re.compile(
    r"(<!-- made by docs/diagrams\.py: (?P<name>\w+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL
)


def remade(text: str) -> str:
    """Return a document with its blocks as the code is now."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{BLOCKS[found['name']]()}\n\n{found[3]}"

    return _BLOCK.sub(block, text)


def main(arguments: list[str]) -> int:
    """Remake or check all documents; returns the exit status."""
    stale = []
    for path in sorted(ROOT.glob("docs/**/*.md")):
        text = path.read_text("utf-8")
        if (new := remade(text)) == text:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if "--check" not in arguments:
            path.write_text(new, "utf-8")
    for name in stale:
        sys.stdout.write(f"{name}: {'is stale' if '--check' in arguments else 'remade'}\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
