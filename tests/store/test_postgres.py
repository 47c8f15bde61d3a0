"""The store on a real PostgreSQL 15: what a commit means, and what is done when it fails."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import sqlalchemy as sa
import trio

from fep.domain.errors import FepError
from fep.sandbox.postgres import PostgresServer
from fep.store import database as module
from fep.store import schema
from fep.store.database import Store, StoreBusyError, StoreFailedError, StoreFullError
from fep.store.postgres import STALLED_WRITER_MS, WRITE_LOCK, Postgres

WAIT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.01
AGAIN, DEADLOCK, FULL = "40001", "40P01", "53100"
OTHERS = """FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND application_name NOT LIKE 'fep%'"""
SMALL_DISK_BYTES = 24 * 1024 * 1024


@attrs.define
class Answers:
    """What the submitters of one group were told."""

    found: list[tuple[Any, Exception | None]] = attrs.Factory(list)

    def done(self, result: Any, error: Exception | None) -> None:
        self.found.append((result, error))

    async def all(self, count: int) -> list[type[Exception] | None]:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while len(self.found) < count:
                await trio.sleep(POLL_SECONDS)
        assert len(self.found) == count
        return [None if error is None else type(error) for _, error in self.found]


@attrs.define
class Base:
    """One database of a server, and stores on it."""

    server: PostgresServer
    name: str

    def store(
        self,
        machine: str = "FEP-01",
        password: str | None = None,
        open_seconds_max: float = WAIT_SECONDS_MAX,
    ) -> Store:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{self.server.port}/{self.name}"
        database = Postgres(url, password or self.server.password, machine)
        return Store(database, open_seconds_max)

    @asynccontextmanager
    async def running(
        self, machine: str = "FEP-01", open_seconds_max: float = WAIT_SECONDS_MAX
    ) -> AsyncIterator[Store]:
        store = self.store(machine, open_seconds_max=open_seconds_max)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store
            nursery.cancel_scope.cancel()

    async def until_it_ends(self, group: list[Any], answers: Answers) -> None:
        """Submit works together, to a store that ends by itself."""
        async with self.running() as store:
            for work in group:
                store.submit(work, answers.done)
            await trio.sleep(WAIT_SECONDS_MAX)

    async def lost_in(self, lose: Callable[[Store], Awaitable[None]]) -> Store:
        """Return a store that ended by itself because of what was done."""
        stores: list[Store] = []

        async def live() -> None:
            async with self.running() as store:
                stores.append(store)
                await lose(store)
                await trio.sleep(WAIT_SECONDS_MAX)

        with pytest.raises(BaseExceptionGroup):
            await live()
        assert stores[0].failed
        return stores[0]

    def lanes(self) -> dict[str, int]:
        with self.server.connect(self.name) as connection:
            return dict(connection.execute("SELECT bank, drained FROM lane").fetchall())

    def set(self, name: str, value: str) -> None:
        """Change a setting of the server, and wait until it has read that."""
        with self.server.connect(self.name) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")
        while value != "DEFAULT" and self.ask(f"SHOW {name}") != value:
            pass

    def ask(self, sql: str) -> Any:
        with self.server.connect(self.name) as connection:
            row = connection.execute(sql.encode()).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture
def base(postgres: PostgresServer, database: str) -> Base:
    return Base(postgres, database.rpartition("/")[2])


@pytest.fixture
def own() -> Iterator[Base]:
    """A server that the test may do anything to."""
    with PostgresServer() as server:
        server.make_database("fep")
        yield Base(server, "fep")


def put(bank: str, value: int = 0) -> Any:
    """Return work that adds a row."""
    return lambda c: c.execute(sa.insert(schema.lane).values(bank=bank, drained=value))


def trouble(state: str) -> Any:
    """Return work in which the server says an error."""
    sql = f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$"
    return lambda c: c.exec_driver_sql(sql)


def told(group: pytest.ExceptionInfo[BaseExceptionGroup[Any]]) -> str:
    """Return what a store said when it ended."""
    found: Any = group.value
    while isinstance(found, BaseExceptionGroup):
        # Who waited for the store is told the same.
        assert len({str(one) for one in found.exceptions}) == 1
        found = found.exceptions[0]
    assert isinstance(found, FepError)
    return str(found)


# -- groups ----------------------------------------------------------------------------------------


async def test_what_waits_together_is_one_transaction_and_a_failing_work_falls_alone(
    base: Base,
) -> None:
    async with base.running() as store:
        answers = Answers()
        transactions: set[int] = set()

        def note(connection: sa.Connection, bank: str) -> None:
            put(bank)(connection)
            number = connection.exec_driver_sql("SELECT txid_current()").scalar_one()
            transactions.add(number)

        for number in range(20):
            store.submit(partial(note, bank=f"b{number}"), answers.done)
        store.submit(put("b7"), answers.done)
        store.submit(trouble("22012"), answers.done)
        store.submit(put("last"), answers.done)
        assert await answers.all(23) == [None] * 20 + [
            sa.exc.IntegrityError,
            sa.exc.DataError,
            None,
        ]
    assert len(transactions) == 1
    assert base.lanes().keys() == {*(f"b{number}" for number in range(20)), "last"}


async def test_a_work_that_hides_the_databases_error_loses_the_group_and_not_its_truth(
    base: Base,
) -> None:
    """A transaction that PostgreSQL gave up is answered to COMMIT with a rollback and no error."""

    def hide(connection: sa.Connection) -> str:
        try:
            trouble("22012")(connection)
        except sa.exc.DBAPIError:
            return "well"
        raise AssertionError

    answers = Answers()
    with pytest.raises(BaseExceptionGroup):
        await base.until_it_ends([put("before"), hide], answers)
    assert await answers.all(2) == [StoreFailedError, StoreFailedError]
    assert base.lanes() == {}


async def test_a_read_sees_one_moment_and_can_not_write(base: Base) -> None:
    async with base.running() as store:
        await store.write(put("one"))

        def twice(connection: sa.Connection) -> tuple[int, int]:
            count = sa.select(sa.func.count()).select_from(schema.lane)
            first = connection.execute(count).scalar_one()
            trio.from_thread.run(store.write, put("two"))
            return first, connection.execute(count).scalar_one()

        assert await store.read(twice) == (1, 1)
        assert await store.read(_count) == 2
        with pytest.raises(sa.exc.InternalError, match="read-only transaction"):
            await store.read(put("three"))
    assert base.lanes().keys() == {"one", "two"}


def _count(connection: sa.Connection) -> int:
    found: int = connection.execute(
        sa.select(sa.func.count()).select_from(schema.lane)
    ).scalar_one()
    return found


async def test_text_with_the_character_nul_is_stored_without_it(base: Base) -> None:
    async with base.running() as store:
        await store.write(put("a\0b"))
    assert base.lanes().keys() == {"a\ufffdb"}


async def test_a_commit_is_synced(base: Base) -> None:
    async with base.running() as store:
        shown = await store.write(
            lambda c: [
                c.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("synchronous_commit", "transaction_isolation")
            ]
        )
    assert shown == ["on", "read committed"]


# -- several machines ------------------------------------------------------------------------------


async def test_the_groups_of_two_machines_have_one_order(base: Base) -> None:
    """Each reads the highest number and gives the next: without one order they would meet."""
    numbers: list[int] = []

    def next_number(connection: sa.Connection) -> None:
        highest = connection.execute(sa.select(sa.func.max(schema.lane.c.drained))).scalar()
        number = (highest or 0) + 1
        put(f"n{number}", number)(connection)
        numbers.append(number)

    async with (
        base.running("FEP-01") as one,
        base.running("FEP-02") as other,
        trio.open_nursery() as nursery,
    ):
        for _ in range(50):
            nursery.start_soon(one.write, next_number)
            nursery.start_soon(other.write, next_number)
    assert sorted(numbers) == list(range(1, 101))
    assert sorted(base.lanes().values()) == list(range(1, 101))


async def test_machines_that_start_together_make_the_tables_once(base: Base) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(4):
            await_store = base.store(f"FEP-0{number}")
            nursery.start_soon(_start_and_stop, await_store)
    assert base.ask("SELECT count(*) FROM store_version") == 1
    assert base.ask("SELECT version FROM store_version") == schema.VERSION


async def _start_and_stop(store: Store) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()


async def test_a_second_machine_of_one_number_is_kept_out_until_the_first_has_gone(
    base: Base,
) -> None:
    async with base.running("FEP-01"):
        with pytest.raises(BaseExceptionGroup) as failed:
            async with base.running("FEP-01", open_seconds_max=0.2):
                pass
        assert "another process writes to this store as machine 'FEP-01'" in told(failed)
        async with base.running("FEP-02"):
            pass
    async with base.running("FEP-01"):
        pass


# -- what fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [AGAIN, DEADLOCK])
async def test_a_group_that_was_crossed_is_done_again_as_a_whole(base: Base, state: str) -> None:
    async with base.running() as store:
        answers, runs = Answers(), []

        def crossed(connection: sa.Connection) -> int:
            runs.append(1)
            if len(runs) == 1:
                trouble(state)(connection)
            return len(runs)

        store.submit(put("before"), answers.done)
        store.submit(crossed, answers.done)
        store.submit(put("after"), answers.done)
        assert await answers.all(3) == [None, None, None]
        assert answers.found[1] == (2, None)
    assert base.lanes().keys() == {"before", "after"}


async def test_a_group_that_is_crossed_twice_is_refused_and_the_store_lives_on(base: Base) -> None:
    async with base.running() as store:
        answers = Answers()
        store.submit(put("before"), answers.done)
        store.submit(trouble(DEADLOCK), answers.done)
        assert await answers.all(2) == [StoreBusyError, StoreBusyError]
        await store.write(put("later"))
    assert base.lanes().keys() == {"later"}


async def test_a_real_deadlock_with_another_program_is_outlived(base: Base) -> None:
    async with base.running() as store:
        await store.write(put("x"))
        await store.write(put("y"))
        took_x, took_y = trio.Event(), trio.Event()
        runs = []

        def cross(connection: sa.Connection) -> None:
            runs.append(1)
            # When it is done again it does not get into the other's way: that would be one more.
            while len(runs) == 2 and base.ask(f"SELECT count(*) {OTHERS} AND state <> 'idle'"):
                pass
            update = sa.update(schema.lane).values(drained=1)
            connection.execute(update.where(schema.lane.c.bank == "x"))
            if len(runs) == 1:
                trio.from_thread.run_sync(took_x.set)
                # The server looks for a deadlock once in each wait: ours must be the later one.
                while not base.ask(f"SELECT count(*) {OTHERS} AND wait_event_type = 'Lock'"):
                    pass
            connection.execute(update.where(schema.lane.c.bank == "y"))

        def intrude() -> None:
            with base.server.connect(base.name) as foreign, foreign.transaction():
                foreign.execute("SET LOCAL deadlock_timeout = '30s'")
                foreign.execute("UPDATE lane SET drained = 2 WHERE bank = 'y'")
                trio.from_thread.run_sync(took_y.set)
                trio.from_thread.run(took_x.wait)
                foreign.execute("UPDATE lane SET drained = 2 WHERE bank = 'x'")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, intrude)
            await took_y.wait()
            await store.write(cross)
    assert len(runs) == 2
    assert base.lanes() == {"x": 1, "y": 1}


async def test_a_connection_that_is_lost_in_the_middle_of_a_command_is_dropped_without_a_word(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(connection: sa.Connection) -> None:
        raw: Any = connection.connection.driver_connection
        raw.pgconn.send_query(b"SELECT pg_sleep(30)")
        raise psycopg.OperationalError("the socket is closed")

    answers = Answers()
    with pytest.raises(BaseExceptionGroup):
        await base.until_it_ends([lose], answers)
    assert await answers.all(1) == [StoreFailedError]
    assert [one.getMessage() for one in caplog.records if one.name.startswith("sqlalchemy")] == []


async def test_a_disk_that_is_full_refuses_the_work_and_nothing_else(base: Base) -> None:
    async with base.running() as store:
        answers = Answers()
        store.submit(put("before"), answers.done)
        store.submit(trouble(FULL), answers.done)
        store.submit(put("after"), answers.done)
        assert await answers.all(3) == [None, StoreFullError, None]
        was_full = store.full
        await store.write(put("later"))
        assert (was_full, store.full) == (True, False)
    assert base.lanes().keys() == {"before", "after", "later"}


@pytest.mark.slow
async def test_a_disk_that_is_really_full_takes_again_when_there_is_room(own: Base) -> None:
    with _small_disk(own.server) as place:
        with own.server.connect("postgres") as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
            connection.execute("CREATE DATABASE small TABLESPACE small")
        base = Base(own.server, "small")
        async with base.running() as store:
            ballast = place / "ballast"
            _fill(ballast)
            with pytest.raises(StoreFullError, match="the database's disk is full"):
                await _write_on_and_on(store)
            before = base.lanes().keys()
            ballast.unlink()
            await store.write(put("later"))
            assert not store.full
        assert base.lanes().keys() == {*before, "later"}
        with own.server.connect("postgres") as connection:
            connection.execute("DROP DATABASE small")
            connection.execute("DROP TABLESPACE small")


async def _write_on_and_on(store: Store) -> None:
    for number in range(100):
        # Repeated bytes would be compressed, and take no room.
        await store.write(put(f"{number} {secrets.token_hex(2000)}"))


@contextmanager
def _small_disk(server: PostgresServer) -> Iterator[Path]:
    """Mount a small disk in memory that the server may write to."""
    path = Path(tempfile.mkdtemp(prefix="fep-pg-disk-"))
    size = f"size={SMALL_DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "fep-test", path], check=True)
    try:
        status = server.directory.stat()
        os.chown(path, status.st_uid, status.st_gid)
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
        shutil.rmtree(path)


def _fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


@pytest.mark.slow
async def test_a_program_that_holds_the_store_refuses_work_and_no_more(base: Base) -> None:
    async with base.running() as store:
        with base.server.connect(base.name) as foreign:
            foreign.execute("SELECT pg_advisory_lock(%s)", (WRITE_LOCK,))
            with pytest.raises(StoreBusyError, match="another program holds the database"):
                await store.write(put("refused"))
        await store.write(put("later"))
    assert base.lanes().keys() == {"later"}


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        ("55P03", StoreBusyError),
        ("57014", StoreBusyError),
        (AGAIN, StoreBusyError),
        (DEADLOCK, StoreBusyError),
        (FULL, StoreFullError),
    ],
)
async def test_a_read_that_is_refused_for_the_moment_may_be_asked_again(
    base: Base, state: str, refusal: type[FepError]
) -> None:
    async with base.running() as store:
        with pytest.raises(refusal):
            await store.read(trouble(state))
        assert await store.read(_count) == 0
        await store.write(put("later"))
    assert base.lanes().keys() == {"later"}


async def test_a_read_that_is_wrong_is_a_defect_and_nothing_else(base: Base) -> None:
    async with base.running() as store:
        with pytest.raises(sa.exc.ProgrammingError):
            await store.read(trouble("42P01"))
        assert await store.read(_count) == 0


async def test_a_lost_server_is_the_end_of_the_store_whatever_it_was_doing(own: Base) -> None:
    answers = Answers()

    async def lose(store: Store) -> None:
        store.submit(put("stored"), answers.done)
        await answers.all(1)
        own.server.kill()
        store.submit(put("lost"), answers.done)
        store.submit(put("lost too"), answers.done)

    store = await own.lost_in(lose)
    assert await answers.all(3) == [None, StoreFailedError, StoreFailedError]
    with pytest.raises(StoreFailedError):
        await store.write(put("never"))
    own.server.start()
    assert own.lanes() == {"stored": 0}


async def test_a_server_that_is_lost_to_a_reader_is_the_end_of_the_store(own: Base) -> None:
    async def lose(store: Store) -> None:
        await store.read(_count)
        own.server.kill()
        with pytest.raises(StoreFailedError):
            await store.read(_count)

    await own.lost_in(lose)


async def test_an_idle_reader_that_was_cut_off_is_connected_anew(base: Base) -> None:
    async with base.running() as store:
        await store.read(_count)
        base.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'ROLLBACK%'"
        )
        assert await store.read(_count) == 0


@pytest.mark.parametrize("moment", ["in the group", "in the commit"])
async def test_a_connection_that_breaks_before_the_commit_is_answered(
    base: Base, moment: str
) -> None:
    """Whether it is stored can't be known, so everybody is told the same, and the store ends."""
    answers = Answers()

    def cut(connection: sa.Connection) -> None:
        put("unsure")(connection)
        raw: Any = connection.connection.dbapi_connection
        if moment == "in the group":
            base.ask(f"SELECT pg_terminate_backend({raw.info.backend_pid})")
        else:
            # The request to commit leaves; its answer never comes.
            raw.pgconn.send_query(b"RELEASE work; COMMIT")
            raw.pgconn.finish()

    with pytest.raises(BaseExceptionGroup):
        await base.until_it_ends([put("before"), cut], answers)
    assert await answers.all(2) == [StoreFailedError, StoreFailedError]


@pytest.mark.slow
async def test_a_writer_that_stalls_holds_nobody_up_for_long(base: Base) -> None:
    stalled = trio.Event()

    async def stall() -> None:
        def work(connection: sa.Connection) -> None:
            put("never")(connection)
            trio.from_thread.run_sync(stalled.set)
            trio.from_thread.run(trio.sleep, 1.5 * STALLED_WRITER_MS / 1000)

        async with base.running("FEP-01") as store:
            await store.write(work)

    async def go_on() -> None:
        await stalled.wait()
        async with base.running("FEP-02") as store:
            with trio.fail_after(WAIT_SECONDS_MAX):
                while True:
                    try:
                        await store.write(put("other"))
                    except StoreBusyError:
                        continue
                    return

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            nursery.start_soon(stall)

    with pytest.raises(BaseExceptionGroup) as failed:
        await both()
    assert "idle-in-transaction timeout" in told(failed)
    assert base.lanes().keys() == {"other"}


async def test_a_server_that_does_not_answer_refuses_what_comes_and_nothing_is_lost(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with base.running() as store:
        writer = await store.write(
            lambda c: c.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        )
        monkeypatch.setattr(module, "STALLED_SECONDS", 0.3)

        def stalled() -> bool:
            return store.stalled

        answers = Answers()
        os.kill(writer, signal.SIGSTOP)
        try:
            store.submit(put("asked"), answers.done)
            with trio.fail_after(WAIT_SECONDS_MAX):
                while not stalled():
                    await trio.sleep(POLL_SECONDS)
            with pytest.raises(StoreBusyError, match="does not answer"):
                await store.write(put("refused"))
        finally:
            os.kill(writer, signal.SIGCONT)
        assert await answers.all(1) == [None]
        await store.write(put("later"))
        assert not stalled()
    assert base.lanes().keys() == {"asked", "later"}


# -- the start -------------------------------------------------------------------------------------


async def test_a_server_that_comes_up_late_is_waited_for(own: Base) -> None:
    own.server.stop()
    async with trio.open_nursery() as nursery:
        store = own.store()
        nursery.start_soon(nursery.start, store.run)
        with trio.fail_after(WAIT_SECONDS_MAX):
            await store.went_away.wait()
            assert "refused" in store.away
            # What is asked for meanwhile is done when it is there.
            nursery.start_soon(trio.to_thread.run_sync, own.server.start)
            await store.write(put("here"))
        assert store.away == ""
        nursery.cancel_scope.cancel()
    assert own.lanes().keys() == {"here"}


async def _refused(base: Base, **arguments: Any) -> str:
    with pytest.raises(BaseExceptionGroup) as failed:
        async with trio.open_nursery() as nursery:
            await nursery.start(base.store(open_seconds_max=0.2, **arguments).run)
    return told(failed)


async def test_a_server_that_is_down_or_a_wrong_password_is_said_clearly(own: Base) -> None:
    why = await _refused(own, password="nothing-of-this-is-shown")
    assert "the store can't be opened" in why
    assert "password authentication failed" in why
    assert "nothing-of-this" not in why
    own.server.stop()
    why = await _refused(own)
    assert "the store can't be opened" in why
    assert "refused" in why
    assert own.server.password not in why


async def test_a_server_that_loses_commits_is_not_used(own: Base) -> None:
    for name, value, why in (
        ("fsync", "off", "the database has fsync = off: a commit is not on disk"),
        ("full_page_writes", "off", "a power cut may tear a page"),
        ("default_transaction_read_only", "on", "it is a standby, or read-only"),
    ):
        own.set(name, value)
        with pytest.raises(BaseExceptionGroup) as failed:
            await _start_and_stop(own.store())
        assert why in told(failed)
        own.set(name, "DEFAULT")
    await _start_and_stop(own.store())


async def test_the_store_of_a_newer_release_is_not_touched(base: Base) -> None:
    async with base.running() as store:
        await store.write(
            lambda c: c.exec_driver_sql(f"UPDATE store_version SET version = {schema.VERSION + 1}")
        )
    with pytest.raises(BaseExceptionGroup) as failed:
        async with base.running():
            pass
    assert "run a newer release" in told(failed)
