"""Words for people that several commands need."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 fault``, ``2 faults``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
