"""What the store remembers of PINs: attempts without a recorded answer, and refusals. SQL only."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from fep.domain.clock import to_text
from fep.domain.ids import SlotName
from fep.keys.pin import Bar
from fep.store.schema import pin_bar


def load_bar(connection: sa.Connection, slot: SlotName) -> Bar | None:
    """Return what is remembered of the slot's PIN."""
    row = connection.execute(
        sa.select(pin_bar.c.credential, pin_bar.c.tries_before).where(pin_bar.c.slot == slot)
    ).one_or_none()
    return None if row is None else Bar(row.credential, row.tries_before)


def save_bar(connection: sa.Connection, slot: SlotName, bar: Bar, at: dt.datetime) -> None:
    """Remember this instead of what was remembered before."""
    lift_bar(connection, slot)
    connection.execute(
        sa.insert(pin_bar).values(
            slot=slot, credential=bar.source, tries_before=bar.tries_before, at=to_text(at)
        )
    )


def lift_bar(connection: sa.Connection, slot: SlotName) -> None:
    """Forget: the card accepted a PIN."""
    connection.execute(sa.delete(pin_bar).where(pin_bar.c.slot == slot))
