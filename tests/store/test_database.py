"""The store: what is acknowledged is on disk, whatever happens to the disk, the work or us."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import IO, Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from fep.store.database import (
    GROUP_WORK_MAX,
    OTHERS_TURNS_MAX,
    WAITING_WORK_MAX,
    Store,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
)
from fep.store.dialect import BUSY_TIMEOUT_MS
from fep.store.pace import LOST_SECONDS_MAX, Pace
from tests.rights import without_rights
from tests.store.child import EXIT_FAILED, put, whole_numbers
from tests.store.held import WAIT_SECONDS_MAX, InThread, held

pytestmark = pytest.mark.req("FEP-23")

ROOT = Path(__file__).resolve().parents[2]
KILLS = 3


@asynccontextmanager
async def opened(path: Path, pace: Pace | None = None) -> AsyncIterator[Store]:
    store = Store.at(path, InThread() if pace is None else pace)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path / "fep.db") as made:
        yield made


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path / "fep.db", Pace()) as made:
        yield made


async def traced(store: Store) -> list[str]:
    """Return the list that every statement of the writer is added to from now on."""
    statements: list[str] = []

    def trace(connection: sa.Connection) -> None:
        raw: Any = connection.connection.dbapi_connection
        raw.set_trace_callback(statements.append)

    await store.write(trace)
    statements.clear()
    return statements


def insert(name: str) -> Callable[[sa.Connection], str]:
    def work(connection: sa.Connection) -> str:
        connection.exec_driver_sql("insert into lane (bank, drained) values (?, 0)", (name,))
        return name

    return work


def banks(connection: sa.Connection) -> list[str]:
    rows = connection.exec_driver_sql("select bank from lane order by rowid")
    return [row[0] for row in rows]


def on_disk(path: Path) -> list[str]:
    """Read by a connection of another's: what is committed."""
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("select bank from lane order by rowid")]


async def outcome(work: Callable[[], Any]) -> Any:
    try:
        return await work()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error


# -- groups -----------------------------------------------------------------------------------


async def test_what_waits_together_is_committed_together(store: Store) -> None:
    statements = await traced(store)
    results: list[str] = []

    async def one(name: str) -> None:
        results.append(await store.write(insert(name)))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, f"b{number}")
    assert sorted(results) == sorted(f"b{number}" for number in range(200))
    assert statements.count("COMMIT") <= 3
    assert statements.count("SAVEPOINT work") == 200


async def test_a_lonely_write_does_not_wait_for_company(store: Store) -> None:
    statements = await traced(store)
    for number in range(5):
        await store.write(insert(f"b{number}"))
    assert statements.count("COMMIT") == 5


async def test_order_is_kept_and_groups_are_bounded(store: Store) -> None:
    statements = await traced(store)
    total = 2 * GROUP_WORK_MAX + 7
    answered: list[str] = []
    with held(store):
        await trio.testing.wait_all_tasks_blocked()
        for number in range(total):
            store.submit(insert(f"b{number}"), lambda result, _error: answered.append(result))
    await store.write(lambda _c: None)
    assert answered == await store.read(banks) == [f"b{number}" for number in range(total)]
    work_of_group = [0]
    for statement in statements:
        if statement == "COMMIT":
            work_of_group.append(0)
        work_of_group[-1] += statement == "SAVEPOINT work"
    assert max(work_of_group) == GROUP_WORK_MAX


async def test_failing_work_is_undone_and_the_others_of_its_group_stay(store: Store) -> None:
    statements = await traced(store)

    def half(connection: sa.Connection) -> None:
        insert("half")(connection)
        raise LookupError("the work's own")

    def twice(connection: sa.Connection) -> None:
        insert("twice")(connection)
        insert("twice")(connection)

    def wrong(connection: sa.Connection) -> None:
        insert("wrong")(connection)
        connection.exec_driver_sql("select no_such_column from lane")

    works = [insert("a"), half, insert("b"), twice, insert("c"), wrong, insert("d")]
    answers: list[tuple[Any, Exception | None]] = []
    with held(store):
        await trio.testing.wait_all_tasks_blocked()
        for work in works:
            store.submit(work, lambda *answer: answers.append(answer))
    await store.write(lambda _c: None)
    assert await store.read(banks) == ["a", "b", "c", "d"]
    assert [result for result, _ in answers] == ["a", None, "b", None, "c", None, "d"]
    kinds = [type(error) for _, error in answers if error is not None]
    assert kinds == [LookupError, sa.exc.IntegrityError, sa.exc.OperationalError]
    assert statements.count("COMMIT") <= 3
    assert not store.failed


async def test_an_answer_comes_after_the_commit(store: Store, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    store.submit(insert("a"), lambda _result, _error: seen.append(on_disk(tmp_path / "fep.db")))
    await store.write(lambda _c: None)
    assert seen == [["a"]]


async def test_a_commit_is_synced(store: Store) -> None:
    def pragmas(connection: sa.Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.exec_driver_sql(f"pragma {name}").scalar_one() for name in names]

    assert await store.write(pragmas) == ["wal", 2, 1]


async def test_a_kill_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    """A group, a sort and an index larger than any cache make no temporary file."""
    trace = tmp_path / "trace"
    words = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=openat,open")
    process = child("large", tmp_path / "fep.db", *words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    opened_files = trace.read_text("utf-8", "replace")
    assert "fep.db-wal" in opened_files
    assert "etilqs" not in opened_files


async def test_a_defect_in_one_answer_does_not_leave_the_others_without(tmp_path: Path) -> None:
    answered: list[str] = []

    def defect(_result: Any, _error: Exception | None) -> None:
        raise ZeroDivisionError

    store = Store.at(tmp_path / "fep.db", InThread())
    with pytest.RaisesGroup(ZeroDivisionError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            with held(store):
                await trio.testing.wait_all_tasks_blocked()
                store.submit(insert("a"), defect)
                for name in ("b", "c"):
                    store.submit(insert(name), lambda result, _error: answered.append(result))
    assert answered == ["b", "c"]


async def test_too_much_that_waits_is_refused_and_nothing_of_it_done(store: Store) -> None:
    answered = 0

    def done(_result: Any, error: Exception | None) -> None:
        nonlocal answered
        answered += error is None

    with held(store):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(WAITING_WORK_MAX):
            store.submit(lambda _c: None, done)
        with pytest.raises(StoreBusyError):
            store.submit(insert("too much"), done)
        with pytest.raises(StoreBusyError):
            await store.write(insert("too much"))
    with trio.fail_after(WAIT_SECONDS_MAX):
        while answered < WAITING_WORK_MAX:
            await trio.sleep(0.01)
    await store.write(insert("a"))
    assert await store.read(banks) == ["a"]


# -- callers ----------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_undo_its_work(store: Store) -> None:
    with held(store):
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await store.write(insert("a"))
        assert scope.cancelled_caught
    await store.write(insert("b"))
    assert await store.read(banks) == ["a", "b"]


async def test_what_was_accepted_before_the_end_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    answers: list[Any] = []
    async with opened(path) as store:
        with held(store):
            await trio.testing.wait_all_tasks_blocked()
            for number in range(GROUP_WORK_MAX + 1):
                store.submit(insert(f"b{number}"), lambda result, _error: answers.append(result))
    assert len(answers) == len(on_disk(path)) == GROUP_WORK_MAX + 1
    with pytest.raises(StoreFailedError):
        store.submit(insert("late"), lambda *_answer: None)
    with pytest.raises(StoreFailedError):
        await store.write(insert("late"))
    with pytest.raises(StoreFailedError):
        await store.read(banks)
    assert not store.failed


# -- readers ----------------------------------------------------------------------------------


async def test_a_reader_sees_one_moment_and_only_what_is_committed(store: Store) -> None:
    await store.write(insert("a"))
    first, then = threading.Event(), threading.Event()

    def look_twice(connection: sa.Connection) -> tuple[list[str], list[str]]:
        before = banks(connection)
        first.set()
        assert then.wait(WAIT_SECONDS_MAX)
        return before, banks(connection)

    seen: list[Any] = []

    async def read() -> None:
        seen.append(await store.read(look_twice))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.to_thread.run_sync(first.wait, WAIT_SECONDS_MAX)
        await store.write(insert("b"))
        assert await store.read(banks) == ["a", "b"], "a reader holds up nobody"
        then.set()
    assert seen == [(["a"], ["a"])]
    inside = threading.Event()

    def slow(connection: sa.Connection) -> None:
        insert("c")(connection)
        inside.set()
        then.wait(WAIT_SECONDS_MAX)

    then.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, slow)
        await trio.to_thread.run_sync(inside.wait, WAIT_SECONDS_MAX)
        assert await store.read(banks) == ["a", "b"]
        then.set()
    assert await store.read(banks) == ["a", "b", "c"]


async def test_a_reader_can_not_write(store: Store) -> None:
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        await store.read(insert("a"))
    with pytest.raises(LookupError):
        await store.read(lambda _c: dict[str, str]()["no"])
    assert await store.read(banks) == []
    await store.write(insert("b"))


async def test_a_look_before_the_start_does_not_spoil_the_writer(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "fep.db")
    assert await store.read(lambda c: c.exec_driver_sql("select 1").scalar_one()) == 1
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await store.write(insert("a"))
        assert await store.read(banks) == ["a"]
        nursery.cancel_scope.cancel()


# -- what others do to the file ---------------------------------------------------------------


async def test_a_second_writer_is_locked_out_and_refused_work_is_not_done(
    store: Store, tmp_path: Path
) -> None:
    await store.write(lambda c: c.exec_driver_sql("pragma busy_timeout=20"))
    await store.write(insert("a"))
    with closing(sqlite3.connect(tmp_path / "fep.db", timeout=0)) as other:
        other.execute("begin immediate")
        with pytest.raises(StoreBusyError, match="another program"):
            await store.write(insert("b"))
        assert await store.read(banks) == ["a"]
        other.rollback()
        await store.write(insert("c"))
        gate, inside = threading.Event(), threading.Event()

        def slow(connection: sa.Connection) -> None:
            insert("d")(connection)
            inside.set()
            gate.wait(WAIT_SECONDS_MAX)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, slow)
            await trio.to_thread.run_sync(inside.wait, WAIT_SECONDS_MAX)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("begin immediate")
            gate.set()
    assert on_disk(tmp_path / "fep.db") == ["a", "c", "d"]
    assert not store.failed
    assert not store.full


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    path.write_bytes(b"no database " * 1000)
    store = Store.at(path)
    waiting: list[Any] = []
    store.submit(insert("a"), lambda _result, error: waiting.append(error))
    with pytest.RaisesGroup(StoreFailedError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
    assert [type(error) for error in waiting] == [StoreFailedError]
    assert store.failed
    assert path.read_bytes() == b"no database " * 1000


def test_a_file_that_can_not_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not by the first client that submits: to open and to read it is allowed."""
    path = tmp_path / "fep.db"
    trio.run(found, path)
    before = path.read_bytes()
    path.chmod(0o444)
    process = child("write", path, *without_rights())
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_FAILED, err.decode()
    assert b"can't be opened: attempt to write a readonly database (SQLITE_READONLY)" in out
    assert numbers(out.splitlines(), b"begin") == [], "it never said that it was ready"
    assert path.read_bytes() == before


async def test_who_holds_the_file_does_not_hold_up_the_start(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    async with opened(path):
        pass
    with closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("begin immediate")
        began = trio.current_time()
        async with opened(path) as store:
            assert trio.current_time() - began < BUSY_TIMEOUT_MS / 2000
            assert await store.read(banks) == []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, insert("a"))
                await trio.testing.wait_all_tasks_blocked()
                # The writer has its patience all the same.
                other.rollback()
    assert on_disk(path) == ["a"]


async def test_a_file_that_can_not_be_written_any_more_is_fail_stop(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "fep.db")
    answers: list[Any] = []
    with pytest.RaisesGroup(StoreFailedError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await store.write(lambda c: c.exec_driver_sql("pragma query_only=1"))
            store.submit(insert("a"), lambda _result, error: answers.append(error))
            await trio.sleep_forever()
    assert [type(error) for error in answers] == [StoreFailedError]
    assert "SQLITE_READONLY" in str(answers[0])


async def test_a_damaged_page_is_fail_stop(tmp_path: Path) -> None:
    path = tmp_path / "fep.db"
    async with opened(path) as store:
        for number in range(400):
            store.submit(put(number), lambda *_answer: None)
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        [(root,)] = db.execute("select rootpage from sqlite_master where name = 'message'")
        [(size,)] = db.execute("pragma page_size")
    data[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(data)
    store = Store.at(path, InThread())
    with pytest.RaisesGroup(StoreFailedError):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            # The one damaged takes the others of its group along: nothing is known of the file.
            with held(store):
                await trio.testing.wait_all_tasks_blocked()
                other = insert("a")
                store.submit(other, lambda *_answer: None)
                store.submit(put(1000), lambda *_answer: None)
            await trio.sleep_forever()
    assert store.failed
    assert on_disk(path) == []


# -- a quick disk ------------------------------------------------------------------------------


async def thread_of(store: Store) -> int:
    """Return the thread in which the store does its work now."""
    ident: int = await store.write(lambda _c: threading.get_ident())
    return ident


async def test_a_quick_disk_is_waited_for_without_a_thread(quick: Store) -> None:
    assert await thread_of(quick) == threading.get_ident()
    quick.submit(insert("a"), lambda *_answer: None)
    await quick.write(insert("b"))
    assert await quick.read(banks) == ["a", "b"]


async def test_a_slow_disk_is_waited_for_in_a_thread(quick: Store) -> None:
    await quick.write(lambda _c: time.sleep(3 * LOST_SECONDS_MAX))
    assert await thread_of(quick) != threading.get_ident()


async def test_who_can_run_joins_a_group_that_needs_no_thread(quick: Store) -> None:
    statements = await traced(quick)

    async def come(number: int) -> None:
        for _ in range(number % OTHERS_TURNS_MAX):
            await trio.lowlevel.checkpoint()
        await quick.write(insert(f"b{number}"))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(come, number)
    assert len(await quick.read(banks)) == 200
    assert statements.count("COMMIT") <= 2


async def test_without_a_thread_failing_work_is_undone_alone(quick: Store) -> None:
    def half(connection: sa.Connection) -> None:
        insert("half")(connection)
        raise LookupError("the work's own")

    answers: list[tuple[Any, Exception | None]] = []
    for work in (insert("a"), half, insert("b")):
        quick.submit(work, lambda *answer: answers.append(answer))
    assert await thread_of(quick) == threading.get_ident()
    assert await quick.read(banks) == ["a", "b"]
    assert [type(error) for _, error in answers] == [type(None), LookupError, type(None)]


async def test_who_holds_the_file_does_not_stop_the_loop(quick: Store, tmp_path: Path) -> None:
    await quick.write(insert("a"))
    with closing(sqlite3.connect(tmp_path / "fep.db", timeout=0)) as other:
        other.execute("begin immediate")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(quick.write, insert("b"))
            # This is the loop's turn: were it waiting for the file, nobody would let go of it.
            await trio.testing.wait_all_tasks_blocked()
            assert await quick.read(banks) == ["a"]
            other.rollback()
    assert await quick.read(banks) == ["a", "b"]
    assert await thread_of(quick) == threading.get_ident()


# -- the disk ---------------------------------------------------------------------------------


def child(
    mode: str, path: Path, *before: str, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tests.store.child", mode, str(path)],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def numbers(lines: list[bytes], word: bytes) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(word + b" ")]


async def found(path: Path) -> list[int]:
    async with opened(path) as store:
        result: list[int] = await store.read(whole_numbers)
    return result


def test_a_full_disk_refuses_loses_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    """On a disk of its own: a tmpfs that only the child sees."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mount -t tmpfs -o size=2m tmpfs '{tmp_path}' && exec \"$@\""
    process = child(
        "fill", tmp_path / "fep.db", "unshare", "--mount", *root, "sh", "-c", mount, "-"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert list(tmp_path.iterdir()) == [], "the disk was the child's own"
    assert seen["stored_when_full"] > 10
    assert seen["full"]
    assert seen["read"] == 2 * seen["stored_when_full"], "what is stored can be read meanwhile"
    assert not seen["full_after"]
    assert not seen["failed"]
    assert seen["found"] == seen["stored"]
    assert seen["events"] == ["store.filled", "store.recovered"]


async def test_full_as_sqlite_sees_it_refuses_only_what_needs_room(store: Store) -> None:
    await store.write(lambda c: c.exec_driver_sql("pragma max_page_count=1"))
    answers: list[Exception | None] = []
    for number in range(40):
        store.submit(put(number), lambda _result, error: answers.append(error))
    with trio.fail_after(WAIT_SECONDS_MAX):
        while len(answers) < 40:
            await trio.sleep(0.001)
    # A commit that changes nothing needs no room, and is no sign of any.
    full = []
    for work in (lambda _c: None, insert("small")):
        await store.write(work)
        full.append(store.full)
    assert full == [True, False]
    assert {type(error) for error in answers if error is not None} == {StoreFullError}
    stored = sum(error is None for error in answers)
    assert len(await store.read(whole_numbers)) == stored
    assert await store.read(banks) == ["small"]
    await store.write(lambda c: c.exec_driver_sql("pragma max_page_count=1000000"))
    await store.write(put(99))
    assert not store.full


async def test_a_failed_sync_is_fail_stop(tmp_path: Path) -> None:
    """The kernel says EIO from the n-th sync on; what was acknowledged before is found."""
    path = tmp_path / "fep.db"
    async with opened(path):
        pass
    fault = "inject=fdatasync,fsync:error=EIO:when=6+"
    options = ("-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync,fsync")
    process = child("write", path, "strace", *options, "-e", fault)
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_FAILED, err.decode()
    lines = out.splitlines()
    assert lines[-1].split(b" ", 2)[:2] == [b"failed", b"True"]
    assert set(lines[-1].split()[2:]) >= {b"run", b"submit", b"after"}
    assert b"INJECTED" in (tmp_path / "trace").read_bytes()
    stored = numbers(lines, b"stored")
    there = await found(path)
    assert set(stored) <= set(there)
    assert set(there) <= set(numbers(lines, b"begin"))


def kill_at_random(path: Path, said: Path, rng: random.Random) -> list[bytes]:
    """Let a child write until it has said so much, kill it, and return the lines it said."""
    wanted = rng.randrange(100, 6000)
    until = time.monotonic() + WAIT_SECONDS_MAX
    with said.open("wb") as file, child("write", path, stdout=file) as process:
        while said.stat().st_size < wanted:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.005))  # anywhere in the next commit
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return said.read_bytes().split(b"\n")[:-1]


async def test_every_acknowledged_write_outlives_a_kill(tmp_path: Path) -> None:
    rng = random.Random(20260302)
    path = tmp_path / "fep.db"
    stored: set[int] = set()
    begun: set[int] = set()
    for kill in range(KILLS):
        lines = kill_at_random(path, tmp_path / "said", rng)
        assert numbers(lines, b"stored"), f"kill {kill} came before anything was stored"
        stored |= set(numbers(lines, b"stored"))
        begun |= set(numbers(lines, b"begin"))
        there = set(await found(path))
        assert stored <= there
        assert there <= begun
