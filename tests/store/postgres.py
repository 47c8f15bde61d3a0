"""A PostgreSQL server for the tests of one folder or module, and a fresh database for each test.

A folder that needs them imports the fixtures by name in its ``conftest.py``::

    from tests.store.postgres import database, postgres  # noqa: F401
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from fep.sandbox.postgres import PostgresServer

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole session; a test that kills it starts one of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The URL of an empty database."""
    return postgres.make_database(f"fep{next(_NUMBERS)}")
