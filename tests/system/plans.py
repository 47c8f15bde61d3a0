"""One bank of every shipped adapter, as its own example has it."""

from __future__ import annotations

from typing import Final

from fep.adapters import registry
from fep.sandbox.scene import BankPlan

HEAD_OFFICES: Final = {
    "102": "102100099996",
    "103": "103100000026",
    "104": "104100000004",
    "105": "105100000017",
    "301": "301290000007",
    "307": "307584007998",
    "308": "308584000013",
    "309": "309391000011",
}
"""CNAPS codes of the head offices, by class of bank; public."""


def plan_of(adapter: str, place: int) -> BankPlan:
    """Return a bank of an adapter, named after it.

    Args:
        adapter: its name.
        place: makes its accounts' numbers other than those of the others.
    """
    example, known = registry.quality(adapter).example, registry.adapter(adapter)
    return BankPlan(
        adapter.replace("_", "-"),
        adapter,
        example.bank_class,
        HEAD_OFFICES.get(example.bank_class, ""),
        known.title.split()[0],
        f"99990000{place:04d}",
        example.options,
        {**dict.fromkeys(known.secret_names, "demo-only"), **example.secrets},
    )


def all_plans() -> tuple[BankPlan, ...]:
    """Return a bank of each installed adapter."""
    return tuple(plan_of(name, place) for place, name in enumerate(sorted(registry.names()), 1))
