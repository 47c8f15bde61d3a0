"""Reader states to events, against a model of what pcscd reports."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from fep.keys.readers import (
    ENTRIES_MAX,
    NEW_READERS,
    Inserted,
    Mute,
    ReaderAdded,
    ReaderRemoved,
    ReaderTable,
    Removed,
)

CHANGED, UNAVAILABLE, EMPTY, PRESENT, EXCLUSIVE, MUTE = 0x2, 0x8, 0x10, 0x20, 0x80, 0x200
ATR_A = [0x3B, 0x80]
EXCHANGE = [Removed("a"), Inserted("a")]


def state(flags: int, counter: int) -> int:
    return flags | CHANGED | counter << 16


def table_with(*names: str) -> ReaderTable:
    table = ReaderTable()
    assert table.relist(names) == [ReaderAdded(name) for name in names]
    return table


def test_a_card_that_is_in_at_the_start_is_reported() -> None:
    table = table_with("a", "b")
    results = [("a", state(PRESENT, 0), ATR_A), ("b", state(EMPTY, 0), [])]
    assert table.observe(results) == [Inserted("a")]
    assert table.observe(results) == []


def test_our_own_connects_are_no_events() -> None:
    table = table_with("a")
    table.observe([("a", state(PRESENT, 1), ATR_A)])
    assert table.observe([("a", state(PRESENT | EXCLUSIVE, 1), ATR_A)]) == []
    assert ("a", PRESENT | EXCLUSIVE | 1 << 16) in table.query()


def test_an_exchange_between_two_looks_is_a_removal_and_an_insertion() -> None:
    for before, after in ((1, 3), (0xFFFF, 1), (0xFFFE, 0), (0, 2), (5, 105)):
        table = table_with("a")
        table.observe([("a", state(PRESENT, before), ATR_A)])
        assert table.observe([("a", state(PRESENT, after), ATR_A)]) == EXCHANGE


def test_an_exchange_whose_second_count_lags_is_told_once() -> None:
    # pcscd shows the new card a moment before it counts it: seen in the middle, it has one count.
    for before in (1, 0xFFFE, 0xFFFF):
        table = table_with("a")
        table.observe([("a", state(PRESENT, before), ATR_A)])
        lagging, settled = (before + 1) & 0xFFFF, (before + 2) & 0xFFFF
        assert table.observe([("a", state(PRESENT, lagging), ATR_A)]) == EXCHANGE
        assert table.observe([("a", state(PRESENT, settled), ATR_A)]) == []
        assert table.observe([("a", state(EMPTY, settled), [])]) == [Removed("a")]


def test_an_insertion_that_is_seen_before_it_is_counted_is_told_once() -> None:
    table = table_with("a")
    table.observe([("a", state(EMPTY, 4), [])])
    assert table.observe([("a", state(PRESENT, 4), ATR_A)]) == [Inserted("a")]
    assert table.observe([("a", state(PRESENT, 5), ATR_A)]) == []
    assert table.observe([("a", state(PRESENT, 7), ATR_A)]) == EXCHANGE


def test_a_mute_card_changes_the_query_it_is_in() -> None:
    table = table_with("a", "b")
    assert table.mute_query() == []
    assert table.observe([("a", state(PRESENT | MUTE, 1), [])]) == [Mute("a")]
    assert [name for name, _ in table.query()] == ["b", NEW_READERS]
    assert table.mute_query() == [("a", PRESENT | MUTE | 1 << 16)]
    assert table.observe([("a", state(EMPTY, 2), [])]) == [Removed("a")]
    assert [name for name, _ in table.query()] == ["a", "b", NEW_READERS]
    table.observe([("a", state(PRESENT | MUTE, 3), [])])
    assert table.observe([("a", state(PRESENT, 5), ATR_A)]) == [Removed("a"), Inserted("a")]


def test_a_reader_that_goes_takes_its_card_along() -> None:
    table = table_with("a", "b")
    table.observe([("a", state(PRESENT, 1), ATR_A), ("b", state(EMPTY, 0), [])])
    assert table.relist(["c"]) == [
        Removed("a"),
        ReaderRemoved("a"),
        ReaderRemoved("b"),
        ReaderAdded("c"),
    ]
    assert table.observe([("a", state(PRESENT, 2), ATR_A)]) == []


def test_an_unavailable_reader_forgets_its_counter() -> None:
    table = table_with("a")
    table.observe([("a", state(PRESENT, 7), ATR_A)])
    assert table.observe([("a", UNAVAILABLE | CHANGED, [])]) == [Removed("a")]
    assert table.observe([("a", state(PRESENT, 0), ATR_A)]) == [Inserted("a")]


def test_sixteen_readers_leave_no_room_for_the_entry_of_new_ones() -> None:
    names = [f"r{number}" for number in range(ENTRIES_MAX)]
    table = table_with(*names)
    assert [name for name, _ in table.query()] == names
    table.relist(names[1:])
    assert [name for name, _ in table.query()] == [*names[1:], NEW_READERS]
    table.observe([(NEW_READERS, state(0, 3), [])])
    assert table.query()[-1] == (NEW_READERS, 3 << 16)


def test_a_negative_state_is_read_as_unsigned() -> None:
    table = table_with("a")
    raw = state(PRESENT, 0xFFFF)
    assert table.observe([("a", raw - (1 << 32), ATR_A)]) == [Inserted("a")]
    assert table.observe([("a", raw, ATR_A)]) == []


@attrs.define
class ModelReader:
    """What pcscd knows of one reader."""

    card: int | None = None
    counter: int = 0
    insertions: int = 0

    def result(self, name: str, *, lags: bool = False) -> tuple[str, int, list[int]]:
        flags = EMPTY if self.card is None else PRESENT
        atr = [] if self.card is None else [0x3B, self.card]
        return (name, state(flags, (self.counter - lags) & 0xFFFF), atr)

    def move(self, card: int | None) -> bool:
        """Say whether something moved."""
        counts = (self.card is not None) + (card is not None)
        self.counter = (self.counter + counts) & 0xFFFF
        self.insertions += card is not None
        self.card = card
        return counts > 0


MOVES = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.one_of(st.none(), st.integers(1, 3)),
        st.sampled_from(("unseen", "lagging", "lagging and settled", "settled")),
    ),
    max_size=40,
)


@given(MOVES, st.integers(0, 0xFFFF))
def test_whatever_happens_the_events_end_with_the_truth_and_alternate(
    moves: list[tuple[str, int | None, str]], first: int
) -> None:
    model = {name: ModelReader(counter=first) for name in "ab"}
    table = table_with(*model)
    events = table.observe([reader.result(name) for name, reader in model.items()])
    for moved, card, look in [*moves, ("a", None, "settled")]:
        is_moved = model[moved].move(card)
        if "lagging" in look:
            events += table.observe(
                [r.result(n, lags=n == moved and is_moved) for n, r in model.items()]
            )
        if "settled" in look:
            events += table.observe([reader.result(name) for name, reader in model.items()])
    for name, reader in model.items():
        mine = [event for event in events if event in (Inserted(name), Removed(name))]
        assert mine[0::2] == [Inserted(name)] * len(mine[0::2])
        assert mine[1::2] == [Removed(name)] * len(mine[1::2])
        assert bool(len(mine) % 2) == (reader.card is not None)
        assert len(mine[0::2]) <= reader.insertions


@given(st.lists(st.sampled_from(("lagging", "lagging and settled", "settled")), min_size=1))
def test_each_exchange_is_told_once_however_the_looks_fall(looks: list[str]) -> None:
    reader = ModelReader(card=1, counter=7)
    table = table_with("a")
    table.observe([reader.result("a")])
    for look in looks:
        reader.move(1)
        events = table.observe([reader.result("a", lags=True)]) if "lagging" in look else []
        if "settled" in look:
            events += table.observe([reader.result("a")])
        assert events == EXCHANGE


@given(st.lists(st.tuples(st.text("ab", max_size=2), st.integers(), st.binary(max_size=4))))
def test_any_states_give_events(results: list[tuple[str, int, bytes]]) -> None:
    table = table_with("a", "b")
    for event in table.observe([(n, s, list(atr)) for n, s, atr in results]):
        assert isinstance(event, Inserted | Removed | Mute)
