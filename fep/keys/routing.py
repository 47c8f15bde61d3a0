"""Which card belongs to which slot, whatever reader it is in: pure bookkeeping over reader events.

A slot sees only its own ``View`` of the world. Every view is complete, so of a row of views only
the newest matters: one that was dropped on a full channel is made good by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, assert_never

import attrs

from fep.domain.ids import SlotName
from fep.keys.config import CardBinding
from fep.keys.readers import (
    Inserted,
    Mute,
    ReaderAdded,
    ReaderEvent,
    ReaderRemoved,
    Removed,
    ServiceDown,
    ServiceUp,
)
from fep.keys.state import SlotEvent


@attrs.frozen
class Insertion:
    """One stay of one card in one reader; ``number`` is never used twice."""

    reader: str
    number: int
    guid: str


@attrs.frozen
class View:
    """All a slot has to know of the readers."""

    service: bool = False
    readers: bool = False
    card: Insertion | None = None
    """Where the slot's card is."""
    mute_reader: str = ""
    """The reader with a mute card that must be the slot's, if its card is nowhere else."""
    settled: bool = False
    """False while the first scan after a start of PC/SC runs: an absent card may yet be found."""
    note: str = ""
    """What there is instead of a service or of the slot's key, in one English sentence."""


@attrs.frozen
class Known:
    """The card bears this identity; ``certificates`` are the SHA-256 of those it carries."""

    guid: str
    certificates: frozenset[str] = frozenset()


@attrs.frozen
class Unreadable:
    """The card could not be read; ``alarming`` when that has lasted longer than a hiccup may."""

    reason: str
    grace_seconds: float
    alarming: bool = False


@attrs.frozen
class Foreign:
    """The card answers, but it is no PIV card or bears no identity."""

    reason: str


Look = Known | Unreadable | Foreign


@attrs.define
class _Card:
    number: int
    mute: bool = False
    look: Look | None = None


class Routing:
    """Knows each reader's card and to which slot it goes."""

    def __init__(self, bindings: Mapping[SlotName, CardBinding]) -> None:
        self._bindings = dict(bindings)
        self._by_guid: Final = {binding.guid: slot for slot, binding in bindings.items()}
        self._by_certificate: Final = {
            binding.certificate_sha256: slot for slot, binding in bindings.items()
        }
        self._service = False
        self._settled = False
        self._readers: dict[str, _Card | None] = {}
        self._last_reader: dict[SlotName, str] = {}
        self._numbers = 0

    def apply(self, event: ReaderEvent) -> None:
        """Take one event of the monitor."""
        match event:
            case ServiceUp():
                self._service = True
            case ServiceDown():
                self._service = self._settled = False
                self._readers.clear()
            case ReaderAdded(reader):
                self._readers[reader] = None
            case ReaderRemoved(reader):
                self._readers.pop(reader, None)
            case Inserted(reader):
                self._readers[reader] = _Card(self._number())
            case Removed(reader):
                self._readers[reader] = None
            case Mute(reader):
                self._readers[reader] = _Card(self._number(), mute=True)
            case _:
                assert_never(event)

    def settle(self) -> None:
        """Note that the first scan is over."""
        self._settled = True

    @property
    def service(self) -> bool:
        """True while PC/SC is up."""
        return self._service

    @property
    def scanning(self) -> bool:
        """True while some reader's card was not looked at yet."""
        return any(
            card is not None
            and not card.mute
            and (
                card.look is None or (isinstance(card.look, Unreadable) and not card.look.alarming)
            )
            for card in self._readers.values()
        )

    def unidentified(self, reader: str) -> int | None:
        """Return the number of the card in the reader if it must be looked at, else None."""
        card = self._readers.get(reader)
        if card is None or card.mute or isinstance(card.look, Known | Foreign):
            return None
        return card.number

    def looked(self, reader: str, number: int, look: Look) -> None:
        """Note what the card turned out to be; ignored when it has gone since."""
        card = self._readers.get(reader)
        if card is None or card.number != number:
            return
        card.look = look
        slot = self._owner(look)
        if slot is not None:
            self._last_reader[slot] = reader

    def doubt(self, reader: str, number: int) -> None:
        """Forget the card's identity, since it answered with another one: look again."""
        card = self._readers.get(reader)
        if card is not None and card.number == number:
            self._readers[reader] = _Card(self._number())

    def view(self, slot: SlotName) -> View:
        """Return what the slot has to know."""
        if not self._service:
            return View()
        return View(
            service=True,
            readers=bool(self._readers),
            card=self._place(slot),
            mute_reader=self._mute_reader(slot),
            settled=self._settled,
        )

    def strangers(self) -> dict[str, str]:
        """Return the readers whose card is no slot's, each with the reason."""
        found: dict[str, str] = {}
        places = {slot: self._place(slot) for slot in self._bindings}
        for reader, card in self._readers.items():
            if card is None:
                continue
            if isinstance(card.look, Foreign):
                found[reader] = f"reader {reader} holds a card that is no key: {card.look.reason}"
            elif isinstance(card.look, Known):
                owner = self._owner(card.look)
                if owner is None:
                    certificates = ", ".join(sorted(card.look.certificates)) or "none"
                    found[reader] = (
                        f"card {card.look.guid} in reader {reader} is no slot's;"
                        f" certificate_sha256: {certificates}"
                    )
                elif (place := places[owner]) is None or place.number != card.number:
                    found[reader] = (
                        f"card {card.look.guid} in reader {reader} has the identity of the card "
                        f"of slot {owner}, which is in another reader"
                    )
        return found

    def troubles(self) -> dict[str, str]:
        """Return the readers whose card can't be read and is not known to be a slot's."""
        found: dict[str, str] = {}
        claimed = {self._mute_reader(slot) for slot in self._bindings}
        for reader, card in self._readers.items():
            if card is None:
                continue
            if card.mute and reader not in claimed:
                found[reader] = f"the card in reader {reader} gives no ATR"
            elif isinstance(card.look, Unreadable) and card.look.alarming:
                found[reader] = f"the card in reader {reader} can't be read: {card.look.reason}"
        return found

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _owner(self, look: Look | None) -> SlotName | None:
        """Return the slot by the card's GUID, or by a certificate of its own under another GUID.

        The latter is a re-personalised card (ykman writes a new CHUID with each certificate): the
        slot says so itself and waits for an operator to bind it anew.
        """
        if not isinstance(look, Known):
            return None
        if look.guid in self._by_guid:
            return self._by_guid[look.guid]
        for certificate in sorted(look.certificates):
            if certificate in self._by_certificate:
                return self._by_certificate[certificate]
        return None

    def _place(self, slot: SlotName) -> Insertion | None:
        """Return where the slot's card is; of two that claim it, the bound GUID, then the first."""
        bound = self._bindings[slot].guid
        places = [
            (card.look.guid != bound, card.number, reader, card.look.guid)
            for reader, card in self._readers.items()
            if card is not None and isinstance(card.look, Known) and self._owner(card.look) == slot
        ]
        if not places:
            return None
        _, number, reader, guid = min(places)
        return Insertion(reader, number, guid)

    def _mute_reader(self, slot: SlotName) -> str:
        """Return the mute reader that must be this slot's: its last one, or the only candidate."""
        if self._place(slot) is not None:
            return ""
        mute = [reader for reader, card in self._readers.items() if card is not None and card.mute]
        last = self._last_reader.get(slot)
        if last is not None:
            return last if last in mute else ""
        missing = [other for other in self._bindings if self._place(other) is None]
        return mute[0] if len(mute) == 1 and missing == [slot] else ""


ENDINGS: Final = frozenset({SlotEvent.SERVICE_DOWN, SlotEvent.REMOVED, SlotEvent.READER_REMOVED})
"""Events that still belong to the old view."""


def change(before: View, after: View) -> list[SlotEvent]:
    """Return the events that lead a slot from one view to another: what ends, then what begins."""
    if before.service and not after.service:
        return [SlotEvent.SERVICE_DOWN]
    events: list[SlotEvent] = []
    if after.service and not before.service:
        before = View(service=True)
        events.append(SlotEvent.SERVICE_UP)
    card_went = before.card is not None and before.card != after.card
    was_mute = before.card is None and before.mute_reader != ""
    is_mute = after.card is None and after.mute_reader != ""
    mute_went = was_mute and not (is_mute and before.mute_reader == after.mute_reader)
    if card_went or mute_went:
        events.append(SlotEvent.REMOVED)
    if before.readers and not after.readers:
        events.append(SlotEvent.READER_REMOVED)
    if after.readers and not before.readers:
        events.append(SlotEvent.READER_ADDED)
    if after.card is not None and (before.card is None or card_went):
        events.append(SlotEvent.INSERTED)
    elif is_mute and (not was_mute or mute_went):
        events.append(SlotEvent.MUTE)
    return events
