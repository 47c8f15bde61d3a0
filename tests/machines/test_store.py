"""Leases on a real PostgreSQL: one holder at a time, and nothing is written by who holds no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from fep.machines import store
from fep.machines.state import Said
from fep.sandbox.postgres import PostgresServer
from fep.store import database as groups
from fep.store import schema
from fep.store.postgres import Postgres

pytestmark = pytest.mark.req("FEP-22", "FEP-25")

BANK = "bank:pingan"
ONE = store.Me("FEP-01", "one-1", "E0001", "1.0", 15.0)
OTHER = store.Me("FEP-02", "other-1", "E0001", "1.0", 15.0)


@attrs.define
class Base:
    """A store with its tables; each call of ``group`` is one group of one machine."""

    server: PostgresServer
    name: str
    engine: sa.Engine
    database: Postgres

    def group(self, *works: Any) -> list[Any]:
        with self.engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            # What the store's writer keeps for the works of a group.
            connection.info.update({groups._NOTES: [], groups._SCRATCH: {}})
            self.database.execute(raw, self.database.begin)
            found = [work(connection) for work in works]
            self.database.commit(raw)
            return found

    def run_out(self, what: str) -> None:
        """Let a lease have run out, by the database's clock."""
        with self.server.connect(self.name) as connection:
            connection.execute(
                "UPDATE place SET until_at = clock_timestamp() - interval '1 ms' WHERE what = %s",
                (what,),
            )


@pytest.fixture
def base(postgres: PostgresServer, database: str) -> Iterator[Base]:
    one = Postgres(database, postgres.password, "FEP-01")
    engine = one.engine(2)
    with engine.connect() as connection:
        schema.migrate(connection, dialect=one)
    base = Base(postgres, database.rpartition("/")[2], engine, one)
    for me in (ONE, OTHER):
        assert base.group(lambda c, me=me: store.register(c, me)) == [None]
    base.group(lambda c: store.add_place(c, BANK))
    yield base
    engine.dispose()


def claim(me: store.Me, before: str = "") -> Any:
    return lambda c: store.claim(c, me, BANK, before)


def holds(me: store.Me, fence: int) -> Any:
    return lambda c: store.holds(c, me, {BANK: fence})


def test_a_place_has_one_holder_until_its_lease_has_run_out(base: Base) -> None:
    assert base.group(claim(ONE), claim(OTHER)) == [1, None]
    assert base.group(holds(ONE, 1)) == [True]
    assert base.group(holds(OTHER, 1)) == [False]
    base.run_out(BANK)
    assert base.group(holds(ONE, 1)) == [False]
    assert base.group(claim(OTHER)) == [2]
    assert base.group(holds(OTHER, 2)) == [True]
    # Back again, it holds what it held by another grant: what it did not see is not its own.
    base.run_out(BANK)
    assert base.group(claim(ONE)) == [3]
    assert base.group(holds(ONE, 1)) == [False]
    assert base.group(holds(ONE, 3)) == [True]


def test_a_beat_moves_on_what_is_held_and_nothing_that_another_has_taken(base: Base) -> None:
    base.group(claim(ONE))
    base.run_out(BANK)
    # Nobody has taken it: late, and still the only one.
    (look,) = base.group(lambda c: store.beat(c, ONE, Said(), [BANK]))
    assert look.places[BANK].is_held
    base.run_out(BANK)
    base.group(claim(OTHER))
    (look,) = base.group(lambda c: store.beat(c, ONE, Said(), [BANK]))
    assert (look.places[BANK].holder, look.places[BANK].fence) == ("FEP-02", 2)


def test_a_row_that_another_program_holds_is_passed_over(base: Base) -> None:
    with base.server.connect(base.name) as foreign, foreign.transaction():
        foreign.execute("SELECT * FROM place FOR UPDATE")
        assert base.group(claim(ONE)) == [None]
    assert base.group(claim(ONE)) == [1]


def test_what_the_last_process_held_is_free_for_the_next_one_of_that_machine(base: Base) -> None:
    base.group(claim(ONE))
    again = attrs.evolve(ONE, instance="one-2")
    assert base.group(lambda c: store.register(c, again)) == [None]
    # The old one is told that it is one no more.
    assert base.group(lambda c: store.beat(c, ONE, Said(), [BANK])) == [None]
    assert base.group(claim(OTHER, before="one-7")) == [None]
    assert base.group(claim(again, before="one-1")) == [2]
    assert base.group(holds(ONE, 1)) == [False]
    assert base.group(holds(again, 2)) == [True]


def test_a_machine_of_another_enterprise_is_told_whose_store_it_is(base: Base) -> None:
    """Its payments would have other references: it must not take over ours."""
    stranger = store.Me("FEP-03", "stranger-1", "E0002", "1.0", 15.0)
    assert base.group(lambda c: store.register(c, stranger)) == ["E0001"]
    (look,) = base.group(store.look)
    assert {one.number for one in look.machines} == {"FEP-01", "FEP-02"}


def test_who_leaves_in_order_is_seen_to_have_left(base: Base) -> None:
    base.group(claim(ONE))
    base.group(lambda c: store.release(c, ONE, BANK), lambda c: store.leave(c, ONE))
    (look,) = base.group(store.look)
    found = {one.number: (one.is_alive, one.left) for one in look.machines}
    assert found == {"FEP-01": (False, True), "FEP-02": (True, False)}
    assert base.group(claim(OTHER)) == [2]


def test_who_is_put_out_takes_and_holds_nothing_more(base: Base) -> None:
    base.group(claim(ONE))
    base.group(store.put_all_out)
    assert base.group(holds(ONE, 1)) == [False]
    assert base.group(claim(ONE)) == [None]
    assert base.group(claim(ONE, before="one-1")) == [None]
    assert base.group(lambda c: store.beat(c, ONE, Said(), [BANK])) == [None]
    # Its next process begins anew.
    again = attrs.evolve(ONE, instance="one-2")
    assert base.group(lambda c: store.register(c, again)) == [None]
    assert base.group(claim(again)) == [2]


def test_letters_are_read_in_order_and_forgotten(base: Base) -> None:
    def post(name: str, to: str = "other-1") -> Any:
        return lambda c: store.post(c, to, "one-1", "body", name.encode())

    base.group(post("a"), post("not for it", "one-9"), post("b"))
    (letters,) = base.group(lambda c: store.unread(c, "other-1", 0))
    assert [letter.body for letter in letters] == [b"a", b"b"]
    assert base.group(lambda c: store.unread(c, "other-1", letters[0].seq)) == [letters[1:]]
    base.group(lambda c: store.forget(c, [letter.seq for letter in letters]))
    assert base.group(lambda c: store.unread(c, "other-1", 0)) == [[]]
