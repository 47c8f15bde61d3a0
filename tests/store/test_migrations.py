"""The way from version to version: each step once, all or none, nothing backwards.

``test_schema.py`` brings a file of every released version to the present; here are steps to come.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from fep.store import schema
from fep.store.schema import NewerStoreError, Step
from tests.store.test_schema import FIXTURES, made_by

pytestmark = pytest.mark.req("FEP-23")


def add_note(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE task ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")


def fill_note(connection: sa.Connection) -> None:
    connection.exec_driver_sql("UPDATE task SET note = 'of ' || client")


def fail(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE half (one TEXT)")
    connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")


def stumble(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE half (one TEXT)")
    raise LookupError


@contextmanager
def opened(path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        yield connection


def migrate(path: Path, *steps: Step) -> int:
    with opened(path) as connection:
        schema.migrate(connection, steps)
        return schema.version_of(connection)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made_by(FIXTURES[0], tmp_path / "fep.sqlite")


def query(path: Path, sql: str) -> list[object]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute(sql)]


def tables(path: Path) -> list[object]:
    return query(path, "SELECT name FROM sqlite_master ORDER BY name")


def test_each_step_is_taken_once_and_in_order(path: Path) -> None:
    assert migrate(path, add_note) == 2
    assert query(path, "SELECT note FROM task") == ["none"] * 3
    assert migrate(path, add_note, fill_note) == 3
    assert query(path, "SELECT note FROM task ORDER BY seq") == ["of erp-1", "of erp-1", "of erp-2"]
    before = path.read_bytes()
    assert migrate(path, add_note, fill_note) == 3
    assert path.read_bytes() == before


def test_several_steps_are_taken_at_once(path: Path) -> None:
    assert migrate(path, add_note, fill_note) == 3
    assert query(path, "SELECT count(*) FROM task WHERE note LIKE 'of erp-%'") == [3]


@pytest.mark.parametrize("steps", [(add_note, fail), (add_note, stumble), (fail,)])
def test_a_step_that_fails_takes_the_others_back(path: Path, steps: Sequence[Step]) -> None:
    before, shape = path.read_bytes(), tables(path)
    with pytest.raises((sa.exc.OperationalError, LookupError)):
        migrate(path, *steps)
    assert tables(path) == shape
    assert query(path, "PRAGMA user_version") == [1]
    assert query(path, "SELECT task_id FROM task ORDER BY seq") == ["T1", "T2", "T3"]
    assert path.read_bytes() == before
    assert migrate(path, add_note) == 2


def test_a_newer_file_is_refused_at_every_distance(path: Path) -> None:
    migrate(path, add_note, fill_note)
    before = path.read_bytes()
    for steps in ([], [add_note]):
        with pytest.raises(
            NewerStoreError, match=rf"version 3, this release knows {len(steps) + 1}"
        ):
            migrate(path, *steps)
    assert path.read_bytes() == before


def test_the_present_version_has_as_many_steps_behind_it(path: Path) -> None:
    assert len(schema.STEPS) + 1 == schema.VERSION
    assert migrate(path, *schema.STEPS) == schema.VERSION
