"""What the store's tests run in a process of its own: ``python -m tests.store.child MODE FILE``.

``write``: commit numbered rows for ever, several at a time, higher than what is there, and print
each number once it is acknowledged. ``fill``: fill the disk, free it, go on, and print what was
seen as one JSON object. ``large``: change and sort more at once than any cache holds.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
import trio

from fep.store.database import Store, StoreFailedError, StoreFullError

WRITERS = 8
ROW_BYTES = 700
EXIT_FAILED = 3
LARGE_ROWS = 4000


def put(number: int) -> Any:
    """Return the work that stores one number, in two statements that belong together."""

    def work(connection: sa.Connection) -> int:
        for half in ("a", "b"):
            connection.exec_driver_sql(
                "insert into message (bank, direction, at, correlation, digest, bytes)"
                " values ('', '', '', ?, ?, ?)",
                (str(number), half, bytes(ROW_BYTES)),
            )
        return number

    return work


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def write(path: Path) -> int:
    """Write until killed; or until the store fails, and then print what it says from then on."""
    store = Store.at(path)
    numbers = count()
    failures: list[str] = []

    async def writer() -> None:
        for number in numbers:
            say(f"begin {number}")
            try:
                await store.write(put(number))
            except StoreFailedError:
                failures.append("write")
                return
            say(f"stored {number}")

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            numbers = count(await store.read(rows))
            for _ in range(WRITERS):
                nursery.start_soon(writer)
    except* StoreFailedError:
        failures.append("run")
    # Who was told of the failure may have been cancelled with the rest before he noted it.
    for name, refused in (("submit", store.submit), ("after", store.submit)):
        try:
            refused(put(0), lambda _result, _error: None)
        except StoreFailedError:
            failures.append(name)
    say(f"failed {store.failed} {' '.join(sorted(set(failures)))}")
    return EXIT_FAILED


async def fill(path: Path) -> int:
    filler = path.with_name("filler")
    filler.write_bytes(bytes(1_200_000))
    stored: list[int] = []
    seen: dict[str, Any] = {}
    store = Store.at(path)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            refused = 0
            number = 0
            while refused < 20:
                number += 1
                try:
                    stored.append(await store.write(put(number)))
                except StoreFullError:
                    refused += 1
            seen["full"] = store.full
            seen["read"] = await store.read(rows)
            seen["stored_when_full"] = len(stored)
            filler.unlink()
            for _ in range(30):
                number += 1
                stored.append(await store.write(put(number)))
            seen["full_after"] = store.full
            nursery.cancel_scope.cancel()
    seen["failed"] = store.failed
    seen["stored"] = stored
    seen["events"] = [line["event"] for line in logs if line["event"].startswith("store.")]
    again = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(again.run)
        seen["found"] = await again.read(whole_numbers)
        nursery.cancel_scope.cancel()
    say(orjson.dumps(seen).decode())
    return 0


async def large(path: Path) -> int:
    def change_all(connection: sa.Connection) -> None:
        connection.exec_driver_sql("update message set correlation = correlation || 'x'")

    def change_and_fail(connection: sa.Connection) -> None:
        change_all(connection)
        raise LookupError

    store = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for number in range(LARGE_ROWS):
            store.submit(put(number), lambda _result, _error: None)
        for work in (change_all, change_and_fail):
            store.submit(work, lambda _result, _error: None)
        await store.write(change_all)
        await store.read(lambda c: c.exec_driver_sql("select * from message order by bytes").all())
        nursery.cancel_scope.cancel()
    return 0


def rows(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("select count(*) from message").scalar_one())


def whole_numbers(connection: sa.Connection) -> list[int]:
    """Return the stored numbers; fails when one is there by half."""
    found = connection.exec_driver_sql(
        "select correlation, count(*), min(digest), max(digest) from message"
        " group by correlation order by cast(correlation as integer)"
    ).all()
    assert all(tuple(row[1:]) == (2, "a", "b") for row in found)
    return [int(row[0]) for row in found]


if __name__ == "__main__":
    mode, where = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    sys.exit(trio.run({"write": write, "fill": fill, "large": large}[mode], Path(where)))
