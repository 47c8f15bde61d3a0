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


def difference(
    began: Config,
    old: Config,
    new: Config,
    slots: Collection[SlotName],
    running: Collection[BankName],
) -> Difference:
    """Compare the configuration in force with the one to come.

    Args:
        began: what the process was started with, for what only a start takes.
        old: in force.
        new: to come.
        slots: those that run.
        running: the banks that do; one that should and does not is begun.
    """
    before = {bank.name: bank.digest for bank in old.banks}
    after = {bank.name: bank for bank in new.banks}
    waiting = {one.name for one in new.banks if one.slot is not None and one.slot not in slots}
    changed = {
        name
        for name, bank in after.items()
        if before.get(name) != bank.digest or (bank.slot is not None and name not in running)
    } - waiting
    alike = (
        ("slot", began.slots == new.slots),
        ("control", began.control == new.control),
        ("console", began.console == new.console),
        ("metrics", began.metrics == new.metrics),
        ("traces", began.traces == new.traces),
        ("enterprise", began.enterprise == new.enterprise),
        ("state_dir", began.state_dir == new.state_dir),
        ("store", began.store == new.store),
        ("tasks", began.tasks == new.tasks),
    )
    return Difference(
        changed=tuple(sorted(changed)),
        removed=tuple(sorted(before.keys() - after.keys())),
        unchanged=tuple(sorted(after.keys() - changed - waiting)),
        waiting=tuple(sorted(waiting)),
        restart=tuple(part for part, same in alike if not same),
    )
