"""What PC/SC says of the readers, turned into events: pure, fed with the raw states of each wait.

Facts of pcsc-lite used here (measured on 1.9.9 or read in its source): the high word of a reader's
state counts insertions and removals and wraps at 0xFFFF, but it is raised a moment after the state
it belongs to is to be seen, so it may lag by one; a high word of 0 in the query switches
pcscd's own comparison of it off; our own connects wake the wait too, so only presence, muteness
and the counter are looked at; at most 16 entries in one query before 2.5.0, the entry for new
readers included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final

import attrs

NEW_READERS: Final = "\\\\?PnP?\\Notification"
"""The entry by which a wait also ends when the list of readers changes."""
ENTRIES_MAX: Final = 16

_CHANGED: Final = 0x0002
_UNKNOWN: Final = 0x0004
_UNAVAILABLE: Final = 0x0008
_PRESENT: Final = 0x0020
_MUTE: Final = 0x0200
_COUNTER: Final = 0xFFFF


@attrs.frozen
class ServiceUp:
    """PC/SC answers."""


@attrs.frozen
class ServiceDown:
    """PC/SC does not answer; every reader and card is out of sight."""

    reason: str


@attrs.frozen
class ReaderAdded:
    """A reader is listed."""

    reader: str


@attrs.frozen
class ReaderRemoved:
    """A reader is not listed any more; its card was reported removed before."""

    reader: str


@attrs.frozen
class Inserted:
    """A card with an ATR is in the reader."""

    reader: str


@attrs.frozen
class Removed:
    """The card, mute or not, is not in the reader any more."""

    reader: str


@attrs.frozen
class Mute:
    """A card without an ATR is in the reader."""

    reader: str


ReaderEvent = ServiceUp | ServiceDown | ReaderAdded | ReaderRemoved | Inserted | Removed | Mute

Result = tuple[str, int, Sequence[int]]
"""Reader's name, event state, ATR: one entry of what ``SCardGetStatusChange`` returns."""


class _Presence(Enum):
    EMPTY = auto()
    PRESENT = auto()
    MUTE = auto()


@attrs.define
class _Seen:
    presence: _Presence = _Presence.EMPTY
    flags: int = 0
    """0 is SCARD_STATE_UNAWARE: the first wait returns at once with the truth."""
    counter: int = 0
    settled: int | None = None
    """What the counter will be, or is, when it has caught up with the presence; None: not known."""


def _settled(before: int | None, counter: int, *, moved: bool) -> int:
    """Return what the counter will be when it has caught up with what was seen beside it.

    An odd number of counts lies between two looks that differ in presence, and an even one between
    two that do not; the counter of the later look may lag by one.
    """
    if before is None:
        return counter
    counts = (counter - before) & _COUNTER
    if counts == _COUNTER:
        counts = 0  # The counter has not caught up with the look before.
    return (before + counts + ((counts % 2 == 1) != moved)) & _COUNTER


def _presence(flags: int) -> _Presence:
    if flags & (_UNKNOWN | _UNAVAILABLE) or not flags & _PRESENT:
        return _Presence.EMPTY
    return _Presence.MUTE if flags & _MUTE else _Presence.PRESENT


class ReaderTable:
    """All readers as last seen; two queries, since a mute card delays whatever shares its wait."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._new_readers = 0

    def relist(self, names: Iterable[str]) -> list[ReaderEvent]:
        """Take the present list of readers; return what came and what went."""
        listed = list(dict.fromkeys(names))
        events: list[ReaderEvent] = []
        for name in [name for name in self._seen if name not in listed]:
            events += self._left(name)
            events.append(ReaderRemoved(name))
            del self._seen[name]
        for name in listed:
            if name not in self._seen:
                self._seen[name] = _Seen()
                events.append(ReaderAdded(name))
        return events

    def query(self) -> list[tuple[str, int]]:
        """Return the entries of the main wait: all but the mute ones; never empty.

        With 16 readers the entry for new ones is left out: no further reader can come, and one
        that goes wakes the wait anyway.
        """
        entries = self._entries(mute=False)
        if len(entries) < ENTRIES_MAX:
            entries.append((NEW_READERS, self._new_readers))
        return entries

    def mute_query(self) -> list[tuple[str, int]]:
        """Return the entries of the wait for readers that hold a mute card; may be empty."""
        return self._entries(mute=True)

    def observe(self, results: Iterable[Result]) -> list[ReaderEvent]:
        """Take the states a wait returned; return what happened since the last ones, in order."""
        events: list[ReaderEvent] = []
        for name, state, _atr in results:
            if name == NEW_READERS:
                # From 2.3.0 pcsc-lite counts reader events in the high word and wants it back.
                self._new_readers = state & 0xFFFF0000
            elif name in self._seen:
                events += self._observe(name, state & 0xFFFFFFFF)
        return events

    def _entries(self, *, mute: bool) -> list[tuple[str, int]]:
        return [
            (name, seen.flags | seen.counter << 16)
            for name, seen in self._seen.items()
            if (seen.presence is _Presence.MUTE) == mute
        ]

    def _observe(self, name: str, state: int) -> list[ReaderEvent]:
        seen = self._seen[name]
        flags = state & 0xFFFF & ~_CHANGED
        counter = state >> 16
        now = _presence(flags)
        was = seen.presence
        is_moved = (was is _Presence.EMPTY) != (now is _Presence.EMPTY)
        settled = _settled(seen.settled, counter, moved=is_moved)
        is_swapped = was is now is _Presence.PRESENT and seen.settled not in (None, settled)
        events = self._left(name) if was is not now or is_swapped else []
        if now is _Presence.PRESENT and (was is not now or is_swapped):
            events.append(Inserted(name))
        if now is _Presence.MUTE and was is not now:
            events.append(Mute(name))
        seen.presence, seen.flags, seen.counter, seen.settled = now, flags, counter, settled
        if flags & (_UNKNOWN | _UNAVAILABLE):
            # Such a reader reports counter 0: forget it, or its return looks a swap.
            seen.counter, seen.settled = 0, None
        return events

    def _left(self, name: str) -> list[ReaderEvent]:
        empty = self._seen[name].presence is _Presence.EMPTY
        return [] if empty else [Removed(name)]
