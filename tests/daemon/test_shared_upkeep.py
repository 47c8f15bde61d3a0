"""The commands that keep the store, where the store is a PostgreSQL of several machines."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fep.daemon.main import main
from fep.daemon.verify import verify
from fep.domain.clock import from_text, to_shanghai
from fep.sandbox.postgres import PROGRAMS, PostgresServer
from fep.sandbox.scene import write_secret
from fep.store import files
from fep.store.database import Store
from fep.store.postgres import Postgres
from fep.tasks import store as rows
from fep.tasks.state import State
from tests.daemon.files import GOOD, changed, written
from tests.store.made import EVERY, Made, make, work_of
from tests.store.postgres import database, postgres  # noqa: F401 - fixtures

pytestmark = pytest.mark.req("FEP-22", "FEP-23")


@attrs.define
class Desk:
    """A machine's configuration, and commands typed on it."""

    directory: Path
    server: PostgresServer
    url: str
    capsys: pytest.CaptureFixture[str]

    def run(self, command: str, *words: object, status: int = 0) -> str:
        self.capsys.readouterr()
        given = [command, "--config", str(self.directory / "fep.toml"), *map(str, words)]
        got = main(given)
        told = self.capsys.readouterr()
        assert got == status, told
        return told.out if status == 0 or "--json" in words else told.out + told.err

    def sql(self, statement: str) -> None:
        with self.server.connect(self.url.rpartition("/")[2]) as connection:
            connection.execute(statement.encode())

    def in_store(self, *works: Any) -> list[Any]:
        async def run() -> list[Any]:
            store = Store(Postgres(self.url, self.server.password, "FEP-01"))
            async with trio.open_nursery() as nursery:
                await nursery.start(store.run)
                found = [await store.write(work) for work in works]
                nursery.cancel_scope.cancel()
            return found

        return trio.run(run)


@pytest.fixture
def desk(
    tmp_path: Path,
    postgres: PostgresServer,  # noqa: F811
    database: str,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> Desk:
    write_secret(tmp_path / "password", postgres.password)
    lines = f'[store]\nurl = "{database}"\npassword = {{ file = "password" }}\n[enterprise]'
    written(tmp_path, changed("[enterprise]", lines, GOOD))
    (tmp_path / "state").mkdir()
    desk = Desk(tmp_path, postgres, database, capsys)
    desk.in_store(work_of(EVERY[:6]), work_of(EVERY[6:]))
    return desk


def test_a_shared_store_is_looked_at_like_a_file(desk: Desk) -> None:
    told = json.loads(desk.run("verify-store", "--json"))
    assert told["sound"], told["findings"]
    assert desk.server.password not in json.dumps(told)
    assert told["store"].startswith("postgresql://postgres@127.0.0.1")
    there = make(desk.directory / "state" / files.STORE_FILE, EVERY[:6], EVERY[6:])
    same = verify(there, enterprise="E0001").value()
    of_files = {"file", "archives"}
    assert told["checks"] == {k: v for k, v in same["checks"].items() if k not in of_files}
    assert told["head"] == same["head"], "the chain is the same on both databases"
    assert json.loads(desk.run("verify-store", "--json", "--head", told["head"]))["sound"]


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE task_event SET cause = cause || ' %s' WHERE seq = 5", "chain"),
        ("DELETE FROM task_event WHERE seq = 5", "chain"),
        ("UPDATE task SET state = 'succeeded' WHERE task_id = 'PAY-queued'", "tasks"),
        ("UPDATE message SET bytes = '\\x00' WHERE seq = (SELECT min(seq) FROM message)", "tasks"),
        ("UPDATE payment SET amount_fen = amount_fen + 1", "payments"),
        ("DELETE FROM task WHERE task_id = 'PAY-unknown'", "strays"),
    ],
)
def test_what_was_changed_by_hand_is_found(desk: Desk, statement: str, check: str) -> None:
    desk.sql(statement)
    told = json.loads(desk.run("verify-store", "--json", status=1))
    assert check in {one["check"] for one in told["findings"]}


def test_an_older_store_does_not_have_the_head_that_was_seen(desk: Desk) -> None:
    head = "9:" + "0" * 64
    told = json.loads(desk.run("verify-store", "--json", "--head", head, status=1))
    assert [one["where"] for one in told["findings"]] == [f"head {head}"]


def test_two_machines_may_have_the_same_alarm(desk: Desk) -> None:
    for number in ("FEP-01", "FEP-02"):
        desk.sql(
            "INSERT INTO alarm (id, kind, subject, state, cause, count, raised_at, last_at) VALUES"
            f" ('{number}/1', 'LINK_DOWN', 'pingan', 'raised', '', 1,"
            " '2026-01-05T01:00:00.000+00:00', '2026-01-05T01:00:00.000+00:00')"
        )
    told = json.loads(desk.run("verify-store", "--json"))
    assert told["checks"]["alarms"] == {"looked_at": 2, "wrong": 0}


def test_a_database_that_does_not_answer_is_said(desk: Desk) -> None:
    write_secret(desk.directory / "password", "wrong")
    told = desk.run("verify-store", status=1)
    assert "STORE_UNREADABLE" in told
    assert "password authentication failed" in told
    desk.sql("DROP TABLE store_version")
    write_secret(desk.directory / "password", desk.server.password)
    assert "has version 0" in desk.run("verify-store", status=1)


def test_backup_and_archive_name_what_to_do_instead(desk: Desk) -> None:
    told = desk.run("backup", desk.directory / "copy", status=1)
    assert f"pg_dump --format=custom --file={desk.directory / 'copy'} 'postgresql://" in told
    assert desk.server.password not in told
    assert not (desk.directory / "copy").exists()
    told = desk.run("archive", "--before", "2026-01-01", status=1)
    assert "STORE_SHARED" in told
    assert "keeps all tasks" in told
    assert not list((desk.directory / "state").iterdir())


def test_a_database_that_was_put_back_is_marked_so_that_no_payment_leaves(desk: Desk) -> None:
    told = desk.run("restore", desk.directory / "fep.dump", status=1)
    assert "pg_restore --clean --if-exists --single-transaction --dbname='postgresql://" in told
    assert "then run fep restore without a file" in told
    assert desk.in_store(rows.held_since) == [None], "refused: nothing was changed"
    desk.sql(
        "INSERT INTO machine VALUES"
        " ('FEP-02', 'x', 'E0001', '1', '{}', clock_timestamp() + interval '9 s', false)"
    )
    assert "machines run on this store: FEP-02" in desk.run("restore", status=1)
    assert desk.in_store(rows.held_since) == [None]
    desk.sql("UPDATE machine SET until_at = clock_timestamp()")
    told = desk.run("restore")
    assert "marked as restored" in told
    (since,) = desk.in_store(rows.held_since)
    assert since is not None
    # It does not know what is later than its last event.
    with desk.server.connect(desk.url.rpartition("/")[2]) as connection:
        of_tasks = "SELECT max(at) FROM task_event WHERE task_seq <> 0"
        last = connection.execute(of_tasks.encode()).fetchone()
    assert last is not None
    assert f"after {to_shanghai(from_text(last[0])):%Y-%m-%d %H:%M:%S}." in told
    # Twice is once.
    assert desk.run("restore") == told
    assert json.loads(desk.run("verify-store", "--json"))["sound"]
    desk.sql("DELETE FROM restored")
    [finding] = json.loads(desk.run("verify-store", "--json", status=1))["findings"]
    assert finding["check"] == "marks"


def test_a_file_of_the_time_before_is_not_replayed_for_the_database(desk: Desk) -> None:
    there = make(desk.directory / "state" / files.STORE_FILE, EVERY[:6])
    told = desk.run("replay", "--all", status=2)
    assert "STORE_SHARED: this store is a PostgreSQL database, and fep replay reads files" in told
    assert f"{there}: 3 tasks" in desk.run("replay", "--all", "--store", there, status=1)


def test_the_commands_that_are_named_put_a_database_back(desk: Desk) -> None:
    """As they are told, but for the password: what was stored since is gone, and that is seen."""
    dump = desk.directory / "fep.dump"
    environment = {**os.environ, "PGPASSWORD": desk.server.password}

    def run(told: str, begin: str, end: str) -> None:
        words = shlex.split(begin + told.partition(begin)[2].partition(end)[0])
        command = [str(PROGRAMS / words[0]), *words[1:]]
        subprocess.run(command, check=True, env=environment, capture_output=True)

    run(desk.run("backup", dump, status=1), "pg_dump", "\n")
    desk.in_store(work_of([Made("PAY-since", State.SUCCEEDED)]))
    head = json.loads(desk.run("verify-store", "--json"))["head"]
    run(desk.run("restore", dump, status=1), "pg_restore", " ; then")
    told = json.loads(desk.run("verify-store", "--json", "--head", head, status=1))
    assert [one["where"] for one in told["findings"]] == [f"head {head}"]
    assert "marked as restored" in desk.run("restore")
    assert json.loads(desk.run("verify-store", "--json"))["sound"]
    # And it takes new tasks: the numbers go on behind those that are there.
    desk.in_store(work_of([Made("PAY-after", State.SUCCEEDED)]))
    assert json.loads(desk.run("verify-store", "--json"))["sound"]


def test_a_file_can_not_be_restored_without_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, GOOD)
    assert main(["restore", "--config", str(tmp_path / "fep.toml")]) == 1
    assert "say which file" in capsys.readouterr().err
