"""Alarms in force: one a cause, never lost, never in anybody's way."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog
import trio

from fep.alarms.service import COUNTED_LOG_EVERY, UNSTORED_ALARMS_MAX, Alarms
from fep.alarms.state import AlarmKind, AlarmState
from fep.store.database import (
    WAITING_WORK_MAX,
    Store,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
)

pytestmark = pytest.mark.req("FEP-28", "FEP-31")
FULL_PAGES = 1


class TickingClock:
    """Each look is a second later, so the order of events shows in their times."""

    def __init__(self) -> None:
        self._now = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        self._now += dt.timedelta(seconds=1)
        return self._now


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Store, Alarms]]:
    store = Store.at(path / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, TickingClock())
        await alarms.load()
        yield store, alarms
        nursery.cancel_scope.cancel()


async def settled(store: Store) -> None:
    """Wait until all that was handed over is on disk, and then what that let in again."""
    for _ in range(2):
        await store.write(lambda _connection: None)  # the writer keeps the order


async def fill(store: Store) -> None:
    """Make the disk full, as SQLite sees it."""
    await store.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={FULL_PAGES}"))


async def empty(store: Store) -> None:
    """Make room again."""
    await store.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))


async def test_a_cause_is_one_alarm_however_often_it_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        with structlog.testing.capture_logs() as logs:
            for place in range(2 * COUNTED_LOG_EVERY):
                alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", f"refused {place}")
            alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused")
        pingan, cmb = alarms.active()
        assert (pingan.subject, pingan.count, pingan.cause) == ("pingan", 200, "refused 199")
        assert (cmb.subject, cmb.count) == ("cmb", 1)
        raised = [(line["subject"], line["count"]) for line in logs]
        assert raised == [("pingan", 1), ("pingan", 100), ("pingan", 200), ("cmb", 1)]
        assert {line["log_level"] for line in logs} == {"error"}
        await settled(store)
        assert {(one.subject, one.count) for one in await alarms.recent(10)} == {
            ("pingan", 200),
            ("cmb", 1),
        }


async def test_an_alarm_outlives_the_process_until_it_is_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_store, alarms):
        alarms.raise_alarm(AlarmKind.KEY_MISSING, "ukey-1", "taken out")
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        key, link = alarms.active()
        await alarms.acknowledge(key.id, "li")
        alarms.clear(AlarmKind.LINK_DOWN, "pingan")
    async with opened(tmp_path) as (store, alarms):
        (again,) = alarms.active()
        assert (again.id, again.state, again.acknowledged_by) == (
            key.id,
            AlarmState.ACKNOWLEDGED,
            "li",
        )
        alarms.raise_alarm(AlarmKind.KEY_MISSING, "ukey-1", "still out")
        assert [(one.id, one.count) for one in alarms.active()] == [(key.id, 2)]
        alarms.clear(AlarmKind.KEY_MISSING, "ukey-1")
        alarms.clear(AlarmKind.KEY_MISSING, "ukey-1")
        assert alarms.active() == []
        await settled(store)
        assert {one.id: one.state for one in await alarms.recent(10)} == {
            key.id: AlarmState.CLEARED,
            link.id: AlarmState.CLEARED,
        }


async def test_acknowledging_is_on_disk_and_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_store, alarms):
        alarms.raise_alarm(AlarmKind.UNKNOWN_OVERDUE, "T-1", "no record for a day")
        with pytest.raises(LookupError):
            await alarms.acknowledge("nothing", "li")
        one = await alarms.acknowledge(alarms.active()[0].id, "li")
        assert one.state is AlarmState.ACKNOWLEDGED
        (stored,) = await alarms.recent(10)
        assert (stored.state, stored.acknowledged_by) == (AlarmState.ACKNOWLEDGED, "li")
        assert alarms.active() == [one], "the payment is still unknown"


async def test_what_only_happened_once_is_over_when_a_person_has_seen_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_store, alarms):
        with structlog.testing.capture_logs() as logs:
            alarms.raise_alarm(AlarmKind.UNMATCHED_REPLY, "pingan", "000123")
        assert logs[0]["log_level"] == "warning", "it can wait for the day's work"
        one = await alarms.acknowledge(alarms.active()[0].id, "li")
        assert one.state is AlarmState.CLEARED
        assert alarms.active() == []
        (stored,) = await alarms.recent(10)
        assert (stored.state, stored.acknowledged_by) == (AlarmState.CLEARED, "li")


async def test_a_clear_during_an_acknowledgement_stays_the_last_word(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarms.acknowledge, alarms.active()[0].id, "li")
            while alarms.active()[0].state is AlarmState.RAISED:
                await trio.lowlevel.checkpoint()
            alarms.clear(AlarmKind.LINK_DOWN, "pingan")
        await settled(store)
        (stored,) = await alarms.recent(10)
        assert (stored.state, stored.acknowledged_by) == (AlarmState.CLEARED, "li")


async def test_a_full_disk_neither_stops_an_alarm_nor_loses_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        await fill(store)
        with structlog.testing.capture_logs() as logs:
            alarms.raise_alarm(AlarmKind.STORE_FULL, "store", "x" * 100_000)
            with pytest.raises(StoreFullError):
                await store.write(
                    lambda c: c.exec_driver_sql("CREATE TABLE big AS SELECT zeroblob(100000)")
                )
        events = [line["event"] for line in logs]
        assert events.count("alarm.raised") == events.count("alarm.not_stored") == 1
        (full,) = alarms.active()
        with pytest.raises(StoreFullError):
            await alarms.acknowledge(full.id, "li")
        assert alarms.active()[0].state is AlarmState.ACKNOWLEDGED
        await empty(store)
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        await settled(store)
        kept = {one.id: one.state for one in await alarms.recent(10)}
        assert kept[full.id] is AlarmState.ACKNOWLEDGED, "what was refused came with the next"
        assert len(kept) == 2


async def test_what_was_refused_can_be_tried_again_without_a_new_alarm(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        await fill(store)
        with structlog.testing.capture_logs() as logs:
            for kind in (AlarmKind.STORE_FULL, AlarmKind.LINK_DOWN):
                alarms.raise_alarm(kind, "x", "y" * 100_000)
            for _ in range(3):
                with suppress(StoreFullError):  # as whatever shares a group with the alarm
                    await settled(store)
                alarms.try_again()
            with suppress(StoreFullError):
                await settled(store)
        assert [line["event"] for line in logs].count("alarm.not_stored") == 2
        assert await alarms.recent(10) == []
        await empty(store)
        alarms.try_again()
        await settled(store)
        assert {one.kind for one in await alarms.recent(10)} == {
            AlarmKind.STORE_FULL,
            AlarmKind.LINK_DOWN,
        }
        alarms.try_again()


async def test_an_old_word_never_overwrites_a_newer_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        await fill(store)
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "x" * 100_000)
        with pytest.raises(StoreFullError):
            await store.write(
                lambda c: c.exec_driver_sql("CREATE TABLE big AS SELECT zeroblob(100000)")
            )
        await empty(store)
        alarms.clear(AlarmKind.LINK_DOWN, "pingan")
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused")
        await settled(store)
        stored = {one.subject: one.state for one in await alarms.recent(10)}
        assert stored == {"pingan": AlarmState.CLEARED, "cmb": AlarmState.RAISED}


async def test_of_two_for_one_cause_the_newer_is_in_force(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, alarms):
        alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "first")
        await settled(store)
        # As when the disk was full at the end of the first and had room at the second's beginning.
        second = Alarms(store, TickingClock())
        second._clock = alarms._clock
        second.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "second")
        await settled(store)
    async with opened(tmp_path) as (store, alarms):
        (one,) = alarms.active()
        assert one.cause == "second"
        await settled(store)
        states = {stored.cause: stored.state for stored in await alarms.recent(10)}
        assert states == {"first": AlarmState.CLEARED, "second": AlarmState.RAISED}


async def test_a_store_that_has_ended_or_is_busy_does_not_reach_the_caller(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "fep.db")
    alarms = Alarms(store, TickingClock())
    for _ in range(WAITING_WORK_MAX):
        store.submit(lambda _c: None, lambda _r, _e: None)
    with pytest.raises(StoreBusyError):
        store.submit(lambda _c: None, lambda _r, _e: None)
    alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "busy")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(StoreFailedError):
        store.submit(lambda _c: None, lambda _r, _e: None)
    for place in range(2 * UNSTORED_ALARMS_MAX):
        alarms.raise_alarm(AlarmKind.TASK_EXPIRED, f"T-{place}", "ended")
        if place > 50:
            alarms.clear(AlarmKind.TASK_EXPIRED, f"T-{place}")
    assert len(alarms.active()) == 52
    assert len(alarms._unstored) <= UNSTORED_ALARMS_MAX
