"""The tables, from the first release's on: an update loses nothing, a downgrade touches nothing."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio

from fep.store import schema
from fep.store.database import Store
from fep.store.dialect import Sqlite
from fep.store.schema import VERSION, NewerStoreError
from fep.tasks import store as tasks
from fep.tasks.state import State

pytestmark = pytest.mark.req("FEP-23")

HERE = Path(__file__).resolve().parent
FIXTURES = sorted(HERE.glob("version_*.sql"))


def version_of(fixture: Path) -> int:
    return int(fixture.stem.removeprefix("version_"))


def made_by(fixture: Path, path: Path) -> Path:
    """Return a store as that release left it."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(fixture.read_text("utf-8"))
        assert db.execute("pragma user_version").fetchone() == (version_of(fixture),)
    return path


def shape(path: Path) -> dict[str, Any]:
    """Return the tables and indexes as SQLite understands them, whatever the SQL's spelling."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("select name from sqlite_master where type='table'")]
        return {
            name: (
                sorted(db.execute(f"pragma table_info({name})").fetchall()),
                sorted(
                    (unique, origin, [c[2] for c in db.execute(f"pragma index_info('{index}')")])
                    for _, index, unique, origin, _ in db.execute(f"pragma index_list({name})")
                ),
            )
            for name in names
        }


async def run_once(path: Path) -> None:
    """Start and end the store of this release on a file."""
    store = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()


def test_every_version_has_its_fixture() -> None:
    assert [version_of(one) for one in FIXTURES] == list(range(1, VERSION + 1))


async def test_tables_do_not_change_without_a_new_version(tmp_path: Path) -> None:
    """If this fails, raise VERSION, write the step from the last one, and add its fixture."""
    await run_once(tmp_path / "fresh.db")
    made_by(FIXTURES[-1], tmp_path / "last.db")
    assert shape(tmp_path / "fresh.db") == shape(tmp_path / "last.db")


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
async def test_a_store_of_every_release_is_brought_to_the_present(
    fixture: Path, tmp_path: Path
) -> None:
    path = made_by(fixture, tmp_path / "fep.db")
    await run_once(tmp_path / "fresh.db")
    store = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        one, two = sorted(await store.read(tasks.open_tasks), key=lambda task: task.seq)
        assert (one.task_id, one.state, one.moves_money) == ("T1", State.UNKNOWN, True)
        assert str(one.body.amount) == "12.50"
        assert (one.client_ref, one.sent_at.isoformat()) == (
            "F0000000000000000001",
            "2026-01-05T01:00:01+00:00",
        )
        assert (two.task_id, two.state, two.body) == ("T2", State.QUEUED, None)
        assert await store.read(lambda c: tasks.waited(c, [one.seq, two.seq])) == {one.seq: 7.5}
        assert await store.read(tasks.last_seq) == 3
        assert await store.read(tasks.owed) == [("erp-2", "T3")]
        assert await store.read(tasks.drained) == {"pingan"}
        proposal = await store.read(lambda c: tasks.proposal(c, 1))
        assert (proposal.by, proposal.outcome) == ("li", State.SUCCEEDED)
        chain = await store.read(lambda c: tasks.why(c, "T1"))
        assert [event["event"] for event in chain] == ["submitted"]
        nursery.cancel_scope.cancel()
    assert shape(path) == shape(tmp_path / "fresh.db")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma user_version").fetchone() == (VERSION,)
        assert db.execute("select bytes from message").fetchall() == [(b"\x01\x02",)]


async def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    await run_once(path)
    before = path.read_bytes()
    await run_once(path)
    assert path.read_bytes() == before


async def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    await run_once(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma user_version = {VERSION + 1}")
        db.execute("create table of_the_future (seq integer)")
        db.commit()
    before = path.read_bytes()
    store = Store.at(path)
    with pytest.RaisesGroup(
        pytest.RaisesExc(NewerStoreError, match=rf"version {VERSION + 1}.*knows {VERSION};")
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
    assert store.failed
    assert path.read_bytes() == before


async def test_an_update_that_fails_leaves_the_old_store_whole(tmp_path: Path) -> None:
    """Its tables are made in one transaction: a name in the way undoes them all."""
    path = tmp_path / "fep.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table pool_item_sweep (one)")
        db.commit()
    dialect = Sqlite(sa.URL.create("sqlite", database=str(path)))
    engine = dialect.engine(1)
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
        schema.migrate(connection)
    engine.dispose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma user_version").fetchone() == (0,)
        assert [row[0] for row in db.execute("select name from sqlite_master")] == [
            "pool_item_sweep"
        ]


def test_names_are_sql_that_other_databases_take() -> None:
    for table in schema.metadata.tables.values():
        for column in (table, *table.columns):
            assert re.fullmatch(r"[a-z][a-z_]*", column.name)
