"""The hash chain over the event log: what is changed later is found, and named."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fep.store import chain, files
from fep.store.chain import Link
from fep.store.database import HEAD_SECONDS, Store
from tests.store.test_schema import FIXTURES, made_by

GROUPS = ((3, "a"), (1, "b"), (4, "c"), (2, "d"))
"""Events and name of each group that the store of these tests commits."""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


def events(count: int, name: str) -> Callable[[sa.Connection], None]:
    """Return the work that writes so many events."""

    def work(connection: sa.Connection) -> None:
        for number in range(count):
            connection.exec_driver_sql(
                "INSERT INTO task_event (task_seq, at, event, state, cause, configuration, detail)"
                " VALUES (?, '2026-01-05T01:00:00.000+00:00', 'noted', 'queued', ?, 'c1', ?)",
                (number, f"{name} {number}", "" if number % 2 else "两\nlines"),
            )

    return work


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a store with four links over ten events."""

    async def fill() -> None:
        async with opened(tmp_path / "fep.sqlite") as store:
            for count, name in GROUPS:
                await store.write(events(count, name))

    trio.run(fill)
    return tmp_path / "fep.sqlite"


@contextmanager
def tampered(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as db:
        yield db
        db.commit()


def found(path: Path) -> list[tuple[int, str]]:
    with files.reading(path) as connection:
        lines = ((seq, line) for seq, _, line in chain.lines(connection))
        return [(one.link, one.message) for one in chain.faults(chain.links(connection), lines)]


def links(path: Path) -> list[Link]:
    with files.reading(path) as connection:
        return list(chain.links(connection))


def by_hand(path: Path) -> list[str]:
    """Return what the digests must be, from the rows and the words of the chain's own page."""
    digests = [""]
    with closing(sqlite3.connect(path)) as db:
        for first, last in db.execute("SELECT first_event, last_event FROM event_link"):
            told = [digests[-1]]
            rows = db.execute(
                "SELECT seq, task_seq, at, event, state, configuration, digest, cause, detail"
                " FROM task_event WHERE seq BETWEEN ? AND ? ORDER BY seq",
                (first, last),
            )
            for *plain, cause, detail in rows:
                told.append(
                    " ".join(map(str, plain)) + f" {len(cause)}:{cause} {len(detail)}:{detail}"
                )
            digests.append(hashlib.sha256("\n".join(told).encode()).hexdigest())
    return digests[1:]


def test_each_commit_adds_one_link_over_its_events(path: Path) -> None:
    spans = [(one.seq, one.first_event, one.last_event) for one in links(path)]
    assert spans == [(1, 1, 3), (2, 4, 4), (3, 5, 8), (4, 9, 10)]
    assert [one.digest for one in links(path)] == by_hand(path)
    assert found(path) == []


async def test_one_link_covers_all_works_of_a_group(tmp_path: Path) -> None:
    async with opened(tmp_path / "fep.sqlite") as store, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(store.write, events(2, str(number)))
    spans = links(tmp_path / "fep.sqlite")
    assert len(spans) <= 3
    assert spans[-1].last_event == 100
    assert found(tmp_path / "fep.sqlite") == []


async def test_what_is_undone_is_in_no_link_and_a_commit_without_events_adds_none(
    path: Path,
) -> None:
    def undone(connection: sa.Connection) -> None:
        events(3, "x")(connection)
        raise LookupError

    async with opened(path) as store:
        with pytest.raises(LookupError):
            await store.write(undone)
        await store.write(lambda c: c.exec_driver_sql("INSERT INTO lane VALUES ('b', 0)"))
        await store.write(events(1, "e"))
    assert [(one.seq, one.last_event) for one in links(path)][3:] == [(4, 10), (5, 11)]
    assert found(path) == []


async def test_the_chain_goes_on_over_restarts_and_kills(path: Path) -> None:
    head = links(path)[-1]
    async with opened(path) as store:
        assert await store.read(chain.head) == head
        await store.write(events(2, "e"))
    assert links(path)[-2] == head
    assert found(path) == []


async def test_the_log_knows_the_head_at_the_start_at_the_end_and_every_hour(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with opened(path) as store:
            for number in range(4):
                await store.write(events(1, str(number)))
                if number % 2:
                    await trio.sleep(HEAD_SECONDS)
    noted = [one["head"] for one in logs if one["event"] == "chain.noted"]
    heads = [str(one) for one in links(path)]
    # Four links were there; the seventh is the first after an hour.
    assert noted == [heads[3], heads[6], heads[7]]


def test_a_store_without_events_has_no_links(tmp_path: Path) -> None:
    assert str(Link()) == "0"
    assert list(chain.faults([], [])) == []


async def test_a_store_of_the_first_release_has_its_links(tmp_path: Path) -> None:
    assert found(made_by(FIXTURES[0], tmp_path / "fep.sqlite")) == []


# -- tampering --------------------------------------------------------------------------------

TOLD = "say is not what was written, or the link is not"


@pytest.mark.parametrize("column", ["at", "event", "state", "cause", "configuration", "digest"])
def test_a_changed_byte_is_found(path: Path, column: str) -> None:
    with tampered(path) as db:
        db.execute(f"UPDATE task_event SET {column} = {column} || '.' WHERE seq = 6")
    assert found(path) == [(3, f"link 3 is broken: what events 5-8 {TOLD}")]


def test_one_bit_in_any_column_of_any_event_is_found(path: Path) -> None:
    rng = random.Random(1)
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT * FROM task_event").fetchall()
        names = [one[1] for one in db.execute("PRAGMA table_info(task_event)")]
    owner = [1, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    for row in rows:
        for name, value in zip(names[1:], row[1:], strict=True):
            if value == "":
                continue
            data = bytearray(str(value).encode())
            data[rng.randrange(len(data))] ^= 1
            changed = data.decode("utf-8", "replace")
            with tampered(path) as db:
                db.execute(f"UPDATE task_event SET {name} = ? WHERE seq = ?", (changed, row[0]))
            assert [link for link, _ in found(path)] == [owner[row[0] - 1]], (row, name)
            with tampered(path) as db:
                db.execute(f"UPDATE task_event SET {name} = ? WHERE seq = ?", (value, row[0]))
    assert found(path) == []


def test_a_removed_event_is_named(path: Path) -> None:
    with tampered(path) as db:
        db.execute("DELETE FROM task_event WHERE seq IN (2, 6, 7)")
    assert found(path) == [
        (1, "link 1 is broken: event 2 missing"),
        (3, "link 3 is broken: events 6-7 missing"),
    ]


def test_two_events_that_changed_places_are_found(path: Path) -> None:
    with tampered(path) as db:
        for a, b in ((4, 99), (9, 4), (99, 9)):
            db.execute("UPDATE task_event SET seq = ? WHERE seq = ?", (b, a))
    assert [link for link, _ in found(path)] == [2, 4]


def test_an_event_that_is_put_in_is_found(path: Path) -> None:
    with tampered(path) as db:
        for seq in (10, 9):
            db.execute("UPDATE task_event SET seq = seq + 1 WHERE seq = ?", (seq,))
        db.execute("INSERT INTO task_event SELECT 9, 5, at, event, state, cause, '', '', '' FROM task_event WHERE seq = 8")  # fmt: skip
        db.execute("INSERT INTO task_event SELECT 12, 5, at, event, state, cause, '', '', '' FROM task_event WHERE seq = 8")  # fmt: skip
    told = found(path)
    assert [link for link, _ in told] == [4, 5]
    assert told[1][1] == "no link covers events 11-12"


@pytest.mark.parametrize("last", [10, 9, 7, 3])
def test_a_tail_cut_off_is_found(path: Path, last: int) -> None:
    with tampered(path) as db:
        db.execute("DELETE FROM task_event WHERE seq >= ?", (last,))
    first, told = found(path)[0]
    assert first == {10: 4, 9: 4, 7: 3, 3: 1}[last]
    assert f" {last}" in told
    assert told.endswith("missing")


def test_a_tail_cut_off_with_its_links_does_not_fit_the_head_that_was_seen(path: Path) -> None:
    """Nothing in the file can show it: that is what heads in logs and backups are for."""
    seen = links(path)[-1]
    with tampered(path) as db:
        db.execute("DELETE FROM event_link WHERE seq = 4")
        db.execute("DELETE FROM task_event WHERE seq >= 9")
    assert found(path) == []
    assert seen not in links(path)


def test_missing_and_changed_links_are_found(path: Path) -> None:
    with tampered(path) as db:
        db.execute("DELETE FROM event_link WHERE seq IN (2, 3)")
    assert found(path) == [
        (4, "no link covers events 4-8"),
        (2, "links 2-3 missing before link 4"),
    ]
    with tampered(path) as db:
        db.execute("DELETE FROM event_link")
    assert found(path) == [(1, "no link covers events 1-10")]


def test_who_makes_a_link_anew_must_make_all_that_follow(path: Path) -> None:
    with tampered(path) as db:
        db.execute("UPDATE task_event SET cause = 'never' WHERE seq = 4")
    with tampered(path) as db:
        db.execute("UPDATE event_link SET digest = ? WHERE seq = 2", (by_hand(path)[1],))
    assert [link for link, _ in found(path)] == [3]


# -- the text of an event ---------------------------------------------------------------------

PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=4)
FREE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
ROWS = st.lists(st.tuples(st.integers(1, 99), *[PLAIN] * 4, FREE, FREE), min_size=1, max_size=3)


def text_of(rows: list[Any]) -> str:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(
            "CREATE TABLE task_event (seq INTEGER PRIMARY KEY, task_seq, at, event, state,"
            " configuration, cause, detail, digest DEFAULT '')"
        )
        db.executemany(
            "INSERT INTO task_event (task_seq, at, event, state, configuration, cause, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        query = f"SELECT group_concat({chain.LINE}, char(10)) FROM task_event"
        return str(db.execute(query).fetchone()[0])


@given(ROWS, ROWS)
def test_different_rows_have_different_texts(a: list[Any], b: list[Any]) -> None:
    assert (text_of(a) == text_of(b)) == (a == b)
