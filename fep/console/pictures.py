"""Pictures as shapes and numbers; the templates draw them as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from fep.console.shown import yuan
from fep.console.store import Flow

BAR_PIXELS, BAR_WIDTH = 26.0, 210.0
PAYEES_MAX: Final = 8
BANKS_MAX: Final = 12
FLOW_PIXELS: Final = 240.0
GAP_PIXELS: Final = 8.0
LINE_PIXELS: Final = 16.0
"""Nodes are so far apart at least: each has a line of text."""
NODE_PIXELS: Final = 10.0
LEFT, RIGHT = 110.0, 390.0
NAME_CHARS_MAX, NAME_BEGIN_CHARS = 16, 8


@attrs.frozen
class Bar:
    """How long one bank takes."""

    bank: str
    y: float
    median: float
    """Seconds, as are the others."""
    slow: float
    """What nineteen of twenty answers are quicker than."""
    answers: int
    median_width: float
    slow_width: float


@attrs.frozen
class Node:
    """One end of the flows."""

    name: str
    told: str
    x: float
    y: float
    height: float
    is_left: bool


@attrs.frozen
class Ribbon:
    """Money from one end to the other."""

    path: str
    told: str
    tone: int
    """Which of the few colours."""


@attrs.frozen
class Picture:
    """Today's flows."""

    nodes: tuple[Node, ...]
    ribbons: tuple[Ribbon, ...]
    height: float
    total: str


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the others does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, math.ceil(share * len(ranked)) - 1))]


def bars(latencies: Mapping[str, Sequence[float]]) -> list[Bar]:
    """Return one bar a bank, by name; their lengths are of one scale."""
    banks = sorted(bank for bank, seconds in latencies.items() if seconds)
    most = max((quantile(latencies[bank], 0.95) for bank in banks), default=0.0) or 1.0
    found = []
    for place, bank in enumerate(banks):
        median, slow = quantile(latencies[bank], 0.5), quantile(latencies[bank], 0.95)
        found.append(
            Bar(
                bank,
                place * BAR_PIXELS,
                median,
                slow,
                len(latencies[bank]),
                round(BAR_WIDTH * median / most, 1),
                round(BAR_WIDTH * slow / most, 1),
            )
        )
    return found


def flows(found: Sequence[Flow], names: Mapping[str, str], others: str) -> Picture | None:
    """Return the flows from banks to payees as ribbons; None when nothing moved.

    Args:
        found: the largest first.
        names: of our own accounts, by number.
        others: what the payees that have no place of their own are called.
    """
    total = sum(flow.fen for flow in found)
    if not total:
        return None
    by_payee: dict[str, int] = {}
    by_bank: dict[str, int] = {}
    for flow in found:
        by_payee[flow.payee] = by_payee.get(flow.payee, 0) + flow.fen
        by_bank[flow.bank] = by_bank.get(flow.bank, 0) + flow.fen
    payees = sorted(by_payee, key=lambda one: -by_payee[one])[:PAYEES_MAX]
    banks = sorted(by_bank, key=lambda one: -by_bank[one])[:BANKS_MAX]
    moved: dict[tuple[str, str], int] = {}
    for flow in found:
        bank = flow.bank if flow.bank in banks else others
        payee = flow.payee if flow.payee in payees else ""
        moved[bank, payee] = moved.get((bank, payee), 0) + flow.fen
    left = [*banks, *({bank for bank, _ in moved} - set(banks))]
    right = [*payees, *({payee for _, payee in moved} - set(payees))]
    titles = {payee: _title(payee, names, others) for payee in right}
    scale = (FLOW_PIXELS - GAP_PIXELS * (max(len(left), len(right)) - 1)) / total
    starts, from_left = _column(left, {one: _sum(moved, 0, one) for one in left}, scale)
    ends, to_right = _column(right, {one: _sum(moved, 1, one) for one in right}, scale)
    nodes = [
        Node(one, yuan(_sum(moved, 0, one)), LEFT, *from_left[one], is_left=True) for one in left
    ]
    nodes += [
        Node(titles[one], yuan(_sum(moved, 1, one)), RIGHT, *to_right[one], is_left=False)
        for one in right
    ]
    ribbons = []
    for bank in left:
        for payee in right:
            if fen := moved.get((bank, payee), 0):
                thick = fen * scale
                path = _ribbon(starts[bank], ends[payee], thick)
                starts[bank] += thick
                ends[payee] += thick
                told = f"{bank} → {titles[payee]}: {yuan(fen)}"
                ribbons.append(Ribbon(path, told, left.index(bank) % 6))
    height = max(node.y + node.height for node in nodes)
    return Picture(tuple(nodes), tuple(ribbons), height, yuan(total))


def _title(payee: str, names: Mapping[str, str], others: str) -> str:
    if not payee:
        return others
    name = names.get(payee, payee)
    if len(name) <= NAME_CHARS_MAX:
        return name
    # Firms of one group differ at the end of their names.
    return f"{name[:NAME_BEGIN_CHARS]}…{name[NAME_BEGIN_CHARS + 1 - NAME_CHARS_MAX :]}"


def _sum(moved: Mapping[tuple[str, str], int], side: int, name: str) -> int:
    return sum(fen for ends, fen in moved.items() if ends[side] == name)


def _column(
    names: Sequence[str], sums: Mapping[str, int], scale: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return where each node's ribbons begin, and each node's place and height."""
    starts, places, y = {}, {}, 0.0
    for name in names:
        height = sums[name] * scale
        starts[name] = y
        places[name] = (round(y, 1), round(max(height, 1.0), 1))
        y += max(height + GAP_PIXELS, LINE_PIXELS)
    return starts, places


def _ribbon(y1: float, y2: float, thick: float) -> str:
    x1, x2 = LEFT + NODE_PIXELS, RIGHT
    middle = (x1 + x2) / 2
    thick = max(thick, 0.6)
    return (
        f"M{x1:.1f},{y1:.1f}C{middle:.1f},{y1:.1f} {middle:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
        f"L{x2:.1f},{y2 + thick:.1f}C{middle:.1f},{y2 + thick:.1f} {middle:.1f},{y1 + thick:.1f}"
        f" {x1:.1f},{y1 + thick:.1f}Z"
    )
