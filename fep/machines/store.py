"""The SQL of machines, places and letters; every moment is the database's own.

Whoever writes holds the store's one lock, so what is read here holds until the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
import orjson
import sqlalchemy as sa

from fep.machines.state import Look, Machine, Place, Said
from fep.store.database import scratch
from fep.store.schema import letter, machine, place

LETTERS_AT_ONCE_MAX: Final = 200
LETTER_SECONDS_MAX: Final = 3600.0
"""What nobody has read for so long is for nobody any more."""
_NOW: Final = sa.func.clock_timestamp()
"""Not ``now()``, which stands still in a transaction: one may wait long for its turn."""
_HELD: Final = "fep.places"


def _in(seconds: float) -> Any:  # noqa: ANN401 - an expression
    return _NOW + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


@attrs.frozen
class Me:
    """What the store is told of this machine."""

    number: str
    instance: str
    enterprise: str
    release: str
    lease_s: float


def register(connection: sa.Connection, me: Me) -> str | None:
    """Make this machine known; return the enterprise of another machine if it is another's.

    What was written to its last process is for nobody any more.
    """
    other = connection.execute(
        sa.select(machine.c.enterprise).where(
            machine.c.enterprise != me.enterprise, machine.c.number != me.number
        )
    ).scalar()
    if other is not None:
        return str(other)
    old = sa.select(machine.c.instance).where(machine.c.number == me.number)
    connection.execute(
        sa.delete(letter).where(
            sa.or_(
                letter.c.addressee.in_(old.scalar_subquery()),
                letter.c.at < _in(-LETTER_SECONDS_MAX),
            )
        )
    )
    connection.execute(sa.delete(machine).where(machine.c.number == me.number))
    connection.execute(
        sa.insert(machine).values(
            number=me.number,
            instance=me.instance,
            enterprise=me.enterprise,
            release=me.release,
            said=_json(Said()),
            until_at=_in(me.lease_s),
            has_left=False,
        )
    )
    return None


def add_place(connection: sa.Connection, what: str) -> None:
    """Make a place that nobody has held yet."""
    connection.execute(
        sa.insert(place).values(what=what, holder="", instance="", fence=0, until_at=_NOW)
    )


def _json(said: Said) -> str:
    return orjson.dumps(said.value(), option=orjson.OPT_SORT_KEYS).decode()


def beat(connection: sa.Connection, me: Me, said: Said, held: Sequence[str]) -> Look | None:
    """Say that this machine lives and holds its places still; return all there is to see.

    Returns:
        None when another process has taken this machine's number.
    """
    mine = connection.execute(
        sa.update(machine)
        .where(machine.c.number == me.number, machine.c.instance == me.instance)
        .values(said=_json(said), until_at=_in(me.lease_s))
    )
    if mine.rowcount != 1:
        return None
    if held:
        connection.execute(
            sa.update(place)
            .where(place.c.instance == me.instance, place.c.what.in_(held))
            .values(until_at=_in(me.lease_s))
        )
    return look(connection)


def look(connection: sa.Connection) -> Look:
    """Return all machines and places."""
    machines = [
        Machine(
            number=row.number,
            instance=row.instance,
            release=row.release,
            is_alive=row.is_alive,
            left=row.has_left,
            said=Said.of(orjson.loads(row.said)),
        )
        for row in connection.execute(
            sa.select(machine, (machine.c.until_at > _NOW).label("is_alive"))
        )
    ]
    places = {
        row.what: Place(row.what, row.holder, row.instance, row.fence, row.is_held)
        for row in connection.execute(sa.select(place, (place.c.until_at > _NOW).label("is_held")))
    }
    return Look(tuple(machines), places)


def claim(connection: sa.Connection, me: Me, what: str, before: str) -> int | None:
    """Take a place that nobody holds; return the fence of this grant, None when somebody does.

    Args:
        connection: the writer's.
        me: who takes it.
        what: the place.
        before: this machine's last process, known to be dead.
    """
    scratch(connection).pop(_HELD, None)
    # A process that was put out lives, and must not take anything before it hears of that.
    known = (
        sa.exists()
        .where(machine.c.number == me.number, machine.c.instance == me.instance)
        .correlate(None)
    )
    free = place.c.until_at <= _NOW
    if before:
        free = sa.or_(free, place.c.instance == before)
    # Of machines only one is here at a time; a row that another program holds is passed over, and
    # not waited for with the store's one lock in hand.
    mine = (
        sa.select(place.c.what)
        .where(place.c.what == what, free, known)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    granted: int | None = connection.execute(
        sa.update(place)
        .where(place.c.what == mine)
        .values(
            holder=me.number,
            instance=me.instance,
            fence=place.c.fence + 1,
            until_at=_in(me.lease_s),
        )
        .returning(place.c.fence)
    ).scalar()
    return granted


def release(connection: sa.Connection, me: Me, what: str) -> None:
    """Leave a place: another machine may take it at once."""
    scratch(connection).pop(_HELD, None)
    connection.execute(
        sa.update(place)
        .where(place.c.what == what, place.c.instance == me.instance)
        .values(until_at=_NOW, instance="")
    )


def leave(connection: sa.Connection, me: Me) -> None:
    """Note that this machine ended in order."""
    connection.execute(
        sa.update(machine)
        .where(machine.c.number == me.number, machine.c.instance == me.instance)
        .values(until_at=_NOW, has_left=True)
    )


def put_all_out(connection: sa.Connection) -> None:
    """Let no process that knows this store so far take or hold a place, or beat.

    One that was frozen goes on with what it knew of another past of the store.
    """
    connection.execute(sa.delete(machine))
    connection.execute(sa.update(place).values(until_at=_NOW, holder="", instance=""))


def holds(connection: sa.Connection, me: Me, fences: Mapping[str, int]) -> bool:
    """Say whether this machine holds these places by these grants.

    It is so at this moment and until the commit: nobody can take one before it.
    """
    held: dict[str, int] | None = scratch(connection).get(_HELD)
    if held is None:
        found = connection.execute(
            sa.select(place.c.what, place.c.fence).where(
                place.c.instance == me.instance, place.c.until_at > _NOW
            )
        )
        held = scratch(connection)[_HELD] = {row[0]: row[1] for row in found}
    return all(held.get(what) == fence for what, fence in fences.items())


@attrs.frozen
class Letter:
    """One letter that was not read yet."""

    seq: int
    sender: str
    kind: str
    body: bytes


def post(connection: sa.Connection, addressee: str, sender: str, kind: str, body: bytes) -> None:
    """Write a letter to a machine's process."""
    connection.execute(
        sa.insert(letter).values(addressee=addressee, sender=sender, kind=kind, body=body, at=_NOW)
    )


def unread(connection: sa.Connection, addressee: str, after: int) -> list[Letter]:
    """Return letters to a process, oldest first, behind one that it has read."""
    rows = connection.execute(
        sa.select(letter.c.seq, letter.c.sender, letter.c.kind, letter.c.body)
        .where(letter.c.addressee == addressee, letter.c.seq > after)
        .order_by(letter.c.seq)
        .limit(LETTERS_AT_ONCE_MAX)
    )
    return [Letter(row.seq, row.sender, row.kind, bytes(row.body)) for row in rows]


def forget(connection: sa.Connection, seqs: Iterable[int]) -> None:
    """Drop letters that were read."""
    connection.execute(sa.delete(letter).where(letter.c.seq.in_(list(seqs))))
