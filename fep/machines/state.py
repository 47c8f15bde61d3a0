"""What the machines know of each other, and who takes or leaves a bank. Pure.

A bank's lane is served by one machine at a time. Its place (席位) is a row with the holder, a
number that grows with every grant (fence), and a moment until which it is held; the holder moves
that on while it lives. The moment is the database's own time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

UNFIT_SECONDS: Final = 3.0
"""A holder whose key is out for so long leaves the bank to a machine that has it."""
LINK_DOWN_SECONDS: Final = 60.0
"""So does one that does not reach the bank for so long."""
BARRED_SECONDS: Final = 120.0
"""It stands back for so long then: the other may not reach the bank either."""
BEATS_PER_LEASE: Final = 5
MARGIN_SHARE: Final = 0.1
"""Of the lease: no first byte leaves in this last part of it."""

BANK_PREFIX: Final = "bank:"
POOLING: Final = "pooling"


def bank_place(bank: str) -> str:
    """Return the name of a bank's place."""
    return f"{BANK_PREFIX}{bank}"


@attrs.frozen
class Said:
    """What a machine says of itself, to all others."""

    fit: frozenset[str] = frozenset()
    """Places it could fill at this moment: the key is in."""
    clients: Mapping[str, float] = attrs.Factory(dict)
    """Clients connected to it, and since when (seconds since 1970)."""
    open: Mapping[str, Mapping[str, int]] = attrs.Factory(dict)
    """Its open tasks by bank and state."""

    def value(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "fit": sorted(self.fit),
            "clients": dict(self.clients),
            "open": {bank: dict(states) for bank, states in self.open.items()},
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Said:
        """Return what ``value`` made; a newer release may say more."""
        return cls(frozenset(value["fit"]), value["clients"], value["open"])


@attrs.frozen
class Machine:
    """Another front-end machine."""

    number: str
    """Its 企业端前置机编号."""
    instance: str
    """Of its process: another one after each start."""
    release: str
    is_alive: bool
    """Heard of within its lease."""
    left: bool
    """It ended in order."""
    said: Said


@attrs.frozen
class Place:
    """Who serves something that one machine at a time serves."""

    what: str
    holder: str
    """A machine's number; empty before the first."""
    instance: str
    fence: int
    is_held: bool
    """Its lease has not run out."""


@attrs.frozen
class Look:
    """All machines and places at one moment."""

    machines: tuple[Machine, ...] = ()
    places: Mapping[str, Place] = attrs.Factory(dict)

    def alive(self) -> list[Machine]:
        """Return the machines that live."""
        return [one for one in self.machines if one.is_alive]

    def holder(self, what: str) -> Machine | None:
        """Return the machine that serves something, None when none does at this moment."""
        place = self.places.get(what)
        if place is None or not place.is_held:
            return None
        alive = (one for one in self.alive() if one.instance == place.instance)
        return next(alive, None)


def may_claim(place: Place, others: Iterable[Machine], *, fit: bool, before: str) -> bool:
    """Say whether this machine should take a place.

    Without a key it takes one too when nobody else has the key either: somebody must let its old
    tasks expire, and take what operators say of them.

    Args:
        place: as it is.
        others: the other machines.
        fit: whether this machine could fill it.
        before: this machine's last process, which is known to be dead: what it held is free.
    """
    if place.is_held and not (before and place.instance == before):
        return False
    return fit or not _other_is_fit(place.what, others)


def should_leave(what: str, others: Iterable[Machine], standing: Standing, now: float) -> bool:
    """Say whether this machine should leave a place it holds to another one."""
    return standing.is_unfit(now) and _other_is_fit(what, others)


def _other_is_fit(what: str, others: Iterable[Machine]) -> bool:
    return any(one.is_alive and what in one.said.fit for one in others)


@attrs.define
class Standing:
    """How fit this machine is for one place; all times are of one steady clock."""

    has_key: bool = False
    unfit_since: float = 0.0
    link_down_since: float | None = None
    barred_until: float = 0.0

    def note(self, now: float, *, has_key: bool, holds: bool, link_is_up: bool) -> None:
        """Take what is so at this moment."""
        if self.is_fit(now) and not has_key:
            self.unfit_since = now
        self.has_key = has_key
        if not (holds and has_key) or link_is_up:
            self.link_down_since = None
        elif self.link_down_since is None:
            self.link_down_since = now
        elif now - self.link_down_since >= LINK_DOWN_SECONDS:
            self.link_down_since = None
            # Unfit for long enough to leave at once.
            self.unfit_since = now - UNFIT_SECONDS
            self.barred_until = now + BARRED_SECONDS

    def is_fit(self, now: float) -> bool:
        """Say whether the bank could be served from here."""
        return self.has_key and now >= self.barred_until

    def is_unfit(self, now: float) -> bool:
        """Say whether it can't be, and not only for a moment."""
        return not self.is_fit(now) and now - self.unfit_since >= UNFIT_SECONDS


@attrs.define(eq=False)
class Lease:
    """Until when this machine holds a place, by its own steady clock.

    Never later than by the database's word, since it counts from before the question.
    """

    what: str
    fence: int
    until: float
    margin_s: float

    def is_valid(self, now: float) -> bool:
        """Say whether something may begin that only the holder may do."""
        return now < self.until - self.margin_s

    def has_run_out(self, now: float) -> bool:
        """Say whether another machine may hold the place by now."""
        return now >= self.until


def newest_at(client: str, here: float | None, others: Iterable[Machine]) -> Machine | None:
    """Return the machine with a client's newest connection, None when it is here or nowhere.

    Args:
        client: its name.
        here: since when it is connected here, None when it is not.
        others: the other machines.
    """
    found, since = None, here
    for one in others:
        then = one.said.clients.get(client) if one.is_alive else None
        if then is not None and (since is None or then > since):
            found, since = one, then
    return found
