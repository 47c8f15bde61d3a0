"""Cards to slots, views to events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fep.domain.ids import SlotName
from fep.keys.config import CardBinding
from fep.keys.readers import (
    Inserted,
    Mute,
    ReaderAdded,
    ReaderRemoved,
    Removed,
    ServiceDown,
    ServiceUp,
)
from fep.keys.routing import (
    Foreign,
    Insertion,
    Known,
    Routing,
    Unreadable,
    View,
    change,
)
from fep.keys.state import SlotEvent, SlotState, step

ONE, TWO = SlotName("one"), SlotName("two")
GUID = {ONE: "11" * 16, TWO: "22" * 16}
PRINT = {ONE: "aa" * 32, TWO: "bb" * 32}
STRANGE = "99" * 16


def routing(*readers: str) -> Routing:
    made = Routing({slot: CardBinding(GUID[slot], PRINT[slot]) for slot in GUID})
    made.apply(ServiceUp())
    for reader in readers:
        made.apply(ReaderAdded(reader))
    return made


def insert(made: Routing, reader: str, guid: str, *certificates: str) -> int:
    made.apply(Inserted(reader))
    number = made.unidentified(reader)
    assert number is not None
    made.looked(reader, number, Known(guid, frozenset(certificates)))
    return number


def test_a_card_goes_to_its_slot_whatever_reader_it_is_in() -> None:
    made = routing("a", "b")
    first = insert(made, "b", GUID[ONE])
    assert made.view(ONE).card == Insertion("b", first, GUID[ONE])
    assert made.view(TWO).card is None
    made.apply(Removed("b"))
    assert made.view(ONE).card is None
    second = insert(made, "a", GUID[ONE])
    assert made.view(ONE).card == Insertion("a", second, GUID[ONE])
    assert second > first


def test_a_look_that_comes_too_late_is_ignored() -> None:
    made = routing("a")
    made.apply(Inserted("a"))
    number = made.unidentified("a")
    assert number is not None
    made.apply(Removed("a"))
    made.apply(Inserted("a"))
    made.looked("a", number, Known(GUID[ONE]))
    assert made.view(ONE).card is None
    assert made.unidentified("a") not in (None, number)


def test_a_doubted_card_is_looked_at_again_as_a_new_one() -> None:
    made = routing("a")
    number = insert(made, "a", GUID[ONE])
    made.doubt("a", number)
    assert made.view(ONE).card is None
    again = made.unidentified("a")
    assert again is not None
    assert again != number
    made.doubt("a", number)
    assert made.unidentified("a") == again


def test_a_certificate_of_a_slot_under_a_new_guid_goes_to_that_slot() -> None:
    made = routing("a", "b")
    insert(made, "a", STRANGE, PRINT[TWO], "cc" * 32)
    view = made.view(TWO)
    assert view.card is not None
    assert view.card.guid == STRANGE
    assert made.strangers() == {}
    # The card with the bound GUID comes first, whenever it comes.
    insert(made, "b", GUID[TWO])
    view = made.view(TWO)
    assert view.card is not None
    assert view.card.reader == "b"
    assert list(made.strangers()) == ["a"]


def test_strangers_and_doubles_are_named() -> None:
    made = routing("a", "b", "c", "d")
    insert(made, "a", STRANGE)
    insert(made, "b", GUID[ONE])
    insert(made, "c", GUID[ONE])
    made.apply(Inserted("d"))
    number = made.unidentified("d")
    assert number is not None
    made.looked("d", number, Foreign("SELECT: the card answered 6A82"))
    strangers = made.strangers()
    assert set(strangers) == {"a", "c", "d"}
    assert STRANGE in strangers["a"]
    assert "reader a" in strangers["a"]
    assert "certificate_sha256: " in strangers["a"]
    assert made.unidentified("d") is None
    made.apply(Removed("b"))
    assert set(made.strangers()) == {"a", "d"}
    card = made.view(ONE).card
    assert card is not None
    assert card.reader == "c"


def test_an_unreadable_card_is_looked_at_again_and_reported_when_it_lasts() -> None:
    made = routing("a")
    made.apply(Inserted("a"))
    number = made.unidentified("a")
    assert number is not None
    assert made.scanning
    made.looked("a", number, Unreadable("held by another program", 10.0))
    assert made.unidentified("a") == number
    assert made.scanning
    assert made.troubles() == {}
    made.looked("a", number, Unreadable("held by another program", 10.0, alarming=True))
    assert "held by another program" in made.troubles()["a"]
    assert not made.scanning


def test_a_mute_card_is_the_slot_s_whose_reader_it_is() -> None:
    made = routing("a", "b")
    insert(made, "a", GUID[ONE])
    insert(made, "b", GUID[TWO])
    made.apply(Removed("a"))
    made.apply(Mute("a"))
    assert made.view(ONE).mute_reader == "a"
    assert made.view(TWO).mute_reader == ""
    assert made.troubles() == {}
    made.apply(Removed("a"))
    made.apply(Removed("b"))
    made.apply(Mute("b"))
    assert made.view(ONE).mute_reader == ""
    assert made.view(TWO).mute_reader == "b"


def test_a_mute_card_is_the_slot_s_that_alone_lacks_one() -> None:
    made = routing("a", "b")
    made.apply(Mute("a"))
    assert made.view(ONE).mute_reader == made.view(TWO).mute_reader == ""
    assert list(made.troubles()) == ["a"]
    insert(made, "b", GUID[TWO])
    assert made.view(ONE).mute_reader == "a"
    assert made.troubles() == {}


def test_a_service_that_goes_takes_everything_along() -> None:
    made = routing("a")
    insert(made, "a", GUID[ONE])
    made.settle()
    assert made.view(ONE).settled
    made.apply(ServiceDown("gone"))
    assert made.view(ONE) == View()
    made.apply(ServiceUp())
    assert made.view(ONE) == View(service=True)


VIEWS = st.builds(
    lambda service, readers, card, mute, settled: View(
        service,
        service and (readers or card is not None or mute != ""),
        card if service else None,
        mute if service and card is None else "",
        service and settled,
    ),
    st.booleans(),
    st.booleans(),
    st.one_of(
        st.none(), st.builds(Insertion, st.sampled_from("ab"), st.integers(1, 3), st.just("11"))
    ),
    st.sampled_from(["", "a", "b"]),
    st.booleans(),
)


def lead(state: SlotState, before: View, after: View) -> SlotState:
    for event in change(before, after):
        state = step(state, event)
    return state


def expected(view: View) -> SlotState:
    if not view.service:
        return SlotState.NO_SERVICE
    if view.card is not None:
        return SlotState.IDENTIFYING
    if view.mute_reader:
        return SlotState.MUTE
    return SlotState.EMPTY if view.readers else SlotState.NO_READER


@given(st.lists(VIEWS, max_size=12))
def test_any_views_lead_along_the_table_to_the_last_one_s_state(views: list[View]) -> None:
    state, before = SlotState.NO_SERVICE, View()
    for view in views:
        state, before = lead(state, before, view), view
        assert state is expected(view)


@given(st.lists(VIEWS, min_size=1, max_size=12))
def test_views_that_were_dropped_change_nothing_in_the_end(views: list[View]) -> None:
    state = lead(SlotState.NO_SERVICE, View(), views[0])
    assert lead(state, views[0], views[-1]) is expected(views[-1])


@given(VIEWS, VIEWS)
def test_another_insertion_is_never_taken_for_the_old_one(before: View, after: View) -> None:
    events = change(before, after)
    if after.card is not None and after.card != before.card:
        assert events[-1] is SlotEvent.INSERTED
    if before.card is not None and after.card != before.card:
        assert events[0] in {SlotEvent.REMOVED, SlotEvent.SERVICE_DOWN}


READER_EVENTS = st.one_of(
    st.just(ServiceUp()),
    st.just(ServiceDown("x")),
    st.builds(ReaderAdded, st.sampled_from("abc")),
    st.builds(ReaderRemoved, st.sampled_from("abc")),
    st.builds(Inserted, st.sampled_from("abc")),
    st.builds(Removed, st.sampled_from("abc")),
    st.builds(Mute, st.sampled_from("abc")),
)
LOOKS = st.one_of(
    st.builds(Known, st.sampled_from([*GUID.values(), STRANGE]), st.just(frozenset())),
    st.just(Foreign("x")),
    st.just(Unreadable("x", 0.0, alarming=True)),
)


@given(st.lists(st.one_of(READER_EVENTS, st.tuples(st.sampled_from("abc"), LOOKS))))
def test_no_card_is_ever_two_slots_and_every_slot_sees_only_its_own(steps: list[object]) -> None:
    made = Routing({slot: CardBinding(GUID[slot], PRINT[slot]) for slot in GUID})
    for each in steps:
        if isinstance(each, tuple):
            reader, look = each
            number = made.unidentified(reader)
            if number is not None:
                made.looked(reader, number, look)
        else:
            made.apply(each)  # type: ignore[arg-type]
        places = [made.view(slot).card for slot in GUID]
        numbers = [place.number for place in places if place is not None]
        assert len(numbers) == len(set(numbers))
        for slot, place in zip(GUID, places, strict=True):
            assert place is None or place.guid == GUID[slot]
        assert not set(made.strangers()) & {p.reader for p in places if p is not None}
