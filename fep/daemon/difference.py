"""What a new configuration means for the daemon that runs on an old one. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs

from fep.daemon.config import Config
from fep.domain.ids import BankName, SlotName


@attrs.frozen
class Difference:
    """Which banks a reload touches; all others do not notice it."""

    changed: tuple[BankName, ...]
    """Begun, or ended and begun anew, by name."""
    removed: tuple[BankName, ...]
    unchanged: tuple[BankName, ...]
    waiting: tuple[BankName, ...]
    """They need a slot that only a restart opens."""
    restart: tuple[str, ...]
    """Tables of the file that take effect at the next start only."""

    def value(self) -> dict[str, Any]:
        """Return it as the protocol tells it."""
        return {
            "changed": list(self.changed),
            "removed": list(self.removed),
            "unchanged": list(self.unchanged),
            "restart_needed": list(self.restart),
        }


def difference(old: Config, new: Config, slots: Collection[SlotName]) -> Difference:
    """Compare the configuration in force with the one to come.

    Args:
        old: in force.
        new: to come.
        slots: those that run.
    """
    before = {bank.name: bank.digest for bank in old.banks}
    after = {bank.name: bank for bank in new.banks}
    waiting = {one.name for one in new.banks if one.slot is not None and one.slot not in slots}
    changed = {name for name, bank in after.items() if before.get(name) != bank.digest} - waiting
    alike = (
        ("slot", old.slots == new.slots),
        ("control", old.control == new.control),
        ("console", old.console == new.console),
        ("metrics", old.metrics == new.metrics),
        ("enterprise", old.enterprise == new.enterprise),
        ("state_dir", old.state_dir == new.state_dir),
        ("store", old.store == new.store),
        ("tasks", old.tasks == new.tasks),
    )
    return Difference(
        changed=tuple(sorted(changed)),
        removed=tuple(sorted(before.keys() - after.keys())),
        unchanged=tuple(sorted(after.keys() - changed - waiting)),
        waiting=tuple(sorted(waiting)),
        restart=tuple(part for part, same in alike if not same),
    )
