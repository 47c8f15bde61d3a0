"""What is remembered of PINs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trio

from fep.domain.ids import SlotName
from fep.keys.pin import Bar
from fep.keys.store import lift_bar, load_bar, save_bar
from fep.store.database import Store

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
ONE, TWO = SlotName("one"), SlotName("two")


async def test_a_bar_is_kept_replaced_and_lifted_for_its_slot_alone(tmp_path: Path) -> None:
    for bar in (Bar("file:1", 3), Bar("file:1", None), Bar("file:2", 0)):
        async with trio.open_nursery() as nursery:
            store = Store.at(tmp_path / "fep.db")
            await nursery.start(_run, store)
            await store.write(lambda c, bar=bar: save_bar(c, ONE, bar, NOW))  # type: ignore[misc]
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            store = Store.at(tmp_path / "fep.db")
            await nursery.start(_run, store)
            assert await store.read(lambda c: load_bar(c, ONE)) == bar
            assert await store.read(lambda c: load_bar(c, TWO)) is None
            await store.write(lambda c: lift_bar(c, TWO))
            assert await store.read(lambda c: load_bar(c, ONE)) == bar
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        store = Store.at(tmp_path / "fep.db")
        await nursery.start(_run, store)
        await store.write(lambda c: lift_bar(c, ONE))
        assert await store.read(lambda c: load_bar(c, ONE)) is None
        nursery.cancel_scope.cancel()


async def _run(store: Store, *, task_status: trio.TaskStatus[None]) -> None:
    await store.run(task_status=task_status)
