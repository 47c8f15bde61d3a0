"""Alarms on disk."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fep.alarms import store
from fep.alarms.state import Alarm, AlarmKind, AlarmState
from fep.store import schema

MOMENTS = st.integers(0, 10**11).map(
    lambda ms: dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ALARMS = st.builds(
    Alarm,
    id=st.sampled_from(["a", "b", "c", "d"]),
    kind=st.sampled_from(AlarmKind),
    subject=TEXTS,
    cause=TEXTS,
    raised_at=MOMENTS,
    last_at=MOMENTS,
    state=st.sampled_from(AlarmState),
    count=st.integers(1, 10**6),
    acknowledged_at=st.none() | MOMENTS,
    acknowledged_by=TEXTS,
    cleared_at=st.none() | MOMENTS,
)


@pytest.fixture(scope="module")
def engine() -> Iterator[sa.Engine]:
    made = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    schema.metadata.create_all(made)
    yield made
    made.dispose()


@given(alarms=st.lists(ALARMS, max_size=12))
def test_the_disk_gives_back_the_last_of_each(engine: sa.Engine, alarms: list[Alarm]) -> None:
    last = {one.id: one for one in alarms}
    with engine.connect() as connection:
        for one in alarms:
            store.put(connection, store.row_of(one))
        everything = store.recent(connection, 100)
        newest = store.recent(connection, 2)
        active = store.active(connection)
        connection.rollback()
    assert {one.id: one for one in everything} == last
    assert [one.raised_at for one in everything] == sorted(
        (one.raised_at for one in last.values()), reverse=True
    )
    assert len(newest) == min(2, len(last))
    assert newest == everything[:2]
    assert {one.id for one in active} == {
        one.id for one in last.values() if one.state is not AlarmState.CLEARED
    }
    assert [one.raised_at for one in active] == sorted(one.raised_at for one in active)
