"""The commands that keep the store: verify-store, backup, restore, archive; also when all goes wrong."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fep.daemon import app
from fep.daemon.main import main
from fep.daemon.verify import verify
from fep.domain.clock import SystemClock, from_text, to_shanghai
from fep.domain.errors import ConfigError
from fep.logs import Followers
from fep.store import files
from fep.tasks.state import State
from tests.daemon.files import GOOD, loaded, written
from tests.store.made import EVERY, Made, make, opened, work_of
from tests.store.test_archive import MOVED_2025, whole

pytestmark = pytest.mark.req("FEP-23")

ROOT = Path(__file__).resolve().parents[2]
DAY = "2025-06-01"
WAIT_SECONDS_MAX = 60.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a folder with a configuration, and a store with a task in each state."""
    written(tmp_path, GOOD)
    (tmp_path / "state").mkdir()
    make(tmp_path / "state" / files.STORE_FILE, EVERY[:6], EVERY[6:])
    return tmp_path


class Desk:
    """Runs commands as they are typed."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.store = directory / "state" / files.STORE_FILE
        self.copy = directory / "copy.sqlite"
        self._capsys = capsys

    def run(self, command: str, *words: object, status: int = 0) -> str:
        """Run a command, and return what it said."""
        self._capsys.readouterr()
        given = [command, "--config", str(self.directory / "fep.toml"), *map(str, words)]
        got = main(given)
        told = self._capsys.readouterr()
        assert got == status, told
        if status == 0 and "--json" not in words:
            assert told.err == ""
        return told.out if status == 0 else told.out + told.err

    def json(self, command: str, *words: object, status: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.run(command, "--json", *words, status=status).splitlines()[0]
        )
        return found


@pytest.fixture
def desk(directory: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    mask = os.umask(0o077)
    os.umask(mask)
    yield Desk(directory, capsys)
    os.umask(mask)


def tamper(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(sql).rowcount > 0
        db.commit()


# -- verify-store -----------------------------------------------------------------------------


def test_a_sound_store_is_said_to_be(desk: Desk) -> None:
    out = desk.run("verify-store")
    assert "sound 完好" in out
    assert f"head of the chain 链头: {verify(desk.store).head}" in out
    assert re.search(rf"^tasks +{len(EVERY)} +0$", out, re.MULTILINE)
    value = desk.json("verify-store", "--full")
    assert (value["sound"], value["findings"]) == (True, [])
    assert value["checks"]["tasks"] == {"looked_at": len(EVERY), "wrong": 0}


def test_what_is_wrong_is_said_and_the_status_is_1(desk: Desk) -> None:
    tamper(desk.store, "UPDATE task_event SET cause = 'x' WHERE seq = 5")
    out = desk.run("verify-store", status=1)
    assert "chain: link 1: link 1 is broken: what events 1-" in out
    assert "NOT SOUND 有问题" in out
    value = desk.json("verify-store", status=1)
    assert not value["sound"]
    assert value["findings"][0]["check"] == "chain"


def test_a_head_that_was_noted_is_compared(desk: Desk) -> None:
    head = desk.json("verify-store")["head"]
    assert desk.json("verify-store", "--head", head)["sound"]
    out = desk.run("verify-store", "--head", "1:" + "0" * 64, status=1)
    assert "is not in this chain" in out


def test_any_file_can_be_looked_at_without_a_configuration(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-store", str(desk.store)]) == 0
    assert main(["verify-store", str(desk.directory / "fep.toml")]) == 1
    assert "fep: STORE_UNREADABLE: " in capsys.readouterr().err


def test_references_are_compared_with_the_enterprise_of_the_configuration(desk: Desk) -> None:
    written(desk.directory, GOOD.replace('"E0001"', '"E0002"'))
    out = desk.run("verify-store", status=1)
    assert "is not that of this task id" in out


# -- backup -----------------------------------------------------------------------------------


def test_a_backup_is_made_and_said(desk: Desk) -> None:
    out = desk.run("backup", desk.copy)
    assert out == (
        f"{desk.copy}: {desk.copy.stat().st_size} bytes, sound 完好; "
        f"head of the chain 链头: {verify(desk.store).head}\n"
    )
    assert verify(desk.copy).sound
    told = desk.run("backup", desk.copy, status=1)
    assert "fep: BACKUP_REFUSED: " in told
    assert "--force" in told
    assert desk.json("backup", "--force", desk.copy)["backup"] == str(desk.copy)


@pytest.mark.parametrize("head", ["1", "abc", "1:a1b260ce", "1:" + "g" * 64, "x:" + "0" * 64])
def test_a_part_of_a_head_is_no_head(desk: Desk, head: str) -> None:
    """It would be told as the head of another store."""
    with pytest.raises(SystemExit, match="2"):
        desk.run("verify-store", "--head", head)


def test_a_head_may_be_typed_in_capitals(desk: Desk) -> None:
    head = str(verify(desk.store).head)
    assert desk.json("verify-store", "--head", head.upper())["sound"]


def test_a_folder_that_is_not_there_is_no_files_name(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        desk.run("backup", f"{desk.directory}/backups/")
    assert "there is no folder" in capsys.readouterr().err
    assert not (desk.directory / "backups").exists()


def test_no_name_is_no_place_for_a_backup(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a script's variable is empty: the copy would lie where the script was run."""
    monkeypatch.chdir(desk.directory)
    before = sorted(desk.directory.iterdir())
    with pytest.raises(SystemExit, match="2"):
        desk.run("backup", "")
    assert "give a new file, or a folder for one" in capsys.readouterr().err
    assert sorted(desk.directory.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ("verify-store", "FOLDER"),
        ("verify-store", ""),
        ("restore", "FOLDER"),
        ("replay", "--all", "--store", "FOLDER"),
    ],
)
def test_a_folder_is_told_to_be_one(
    desk: Desk, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no disk to have failed."""
    monkeypatch.chdir(desk.directory)
    given = [str(desk.store.parent) if word == "FOLDER" else word for word in words]
    told = desk.run(*given, status=2 if words[0] == "replay" else 1)
    assert told.endswith(f": {Path(given[-1])} is a folder, not a store's file\n")


@pytest.mark.parametrize(
    "name", ["fep.sqlite", "fep.sqlite-wal", "archive-2025.sqlite", "fep.lock"]
)
def test_the_store_is_not_its_own_backup(desk: Desk, name: str) -> None:
    before = desk.store.read_bytes()
    told = desk.run("backup", desk.store.with_name(name), "--force", status=1)
    assert "is the store itself, or a file that belongs to it" in told
    assert desk.store.read_bytes() == before
    link = desk.directory / "link"
    link.symlink_to(desk.store)
    assert "BACKUP_REFUSED" in desk.run("backup", link, "--force", status=1)
    assert desk.store.read_bytes() == before


ARCHIVED = "archive-2025.sqlite"


def test_an_archive_that_is_away_or_older_does_not_end_the_backups(desk: Desk) -> None:
    desk.run("archive", "--before", DAY)
    year = desk.store.with_name(ARCHIVED)
    with closing(sqlite3.connect(year)) as db:
        db.executescript("ALTER TABLE task DROP COLUMN sent_to; PRAGMA user_version = 5;")
    told = f"{ARCHIVED} has version 5, not looked at; fep archive brings it up to date"
    assert told in desk.run("verify-store")
    assert told in desk.run("backup", desk.directory / "one.sqlite")
    # Nothing is moved any more, and the archive follows all the same.
    desk.run("archive", "--before", DAY)
    assert "not looked at" not in desk.run("verify-store")
    year.rename(desk.directory / "elsewhere")
    assert f"{ARCHIVED}: is not here" in desk.run("verify-store", status=1)
    assert f"{ARCHIVED} is not here" in desk.run("backup", desk.directory / "two.sqlite")
    desk.run("restore", desk.directory / "two.sqlite")


def test_a_restore_waits_for_nobody_who_archives(desk: Desk) -> None:
    desk.run("backup", desk.directory / "one.sqlite")
    with (desk.store.with_name("archive.lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = desk.run("restore", desk.directory / "one.sqlite", status=1)
    assert "fep archive runs; wait for its end" in told


def test_a_folder_gets_a_name_with_the_time(desk: Desk) -> None:
    (desk.directory / "backups").mkdir()
    value = desk.json("backup", desk.directory / "backups")
    [file] = (desk.directory / "backups").iterdir()
    assert value["backup"] == str(file)
    assert re.fullmatch(r"fep-\d{8}-\d{6}\.sqlite", file.name)
    assert value["head"] == str(verify(desk.store).head)


def test_a_store_that_is_not_sound_gives_no_backup(desk: Desk) -> None:
    tamper(desk.store, "DELETE FROM task_event WHERE seq = 5")
    told = desk.run("backup", desk.copy, status=1)
    assert "fep: NOT_SOUND: " in told
    assert "link 1 is broken: event 5 missing" in told
    assert not desk.copy.exists()
    assert [one.name for one in desk.directory.iterdir() if one.name.startswith(".")] == []


WORDS: dict[str, Callable[[Desk], list[object]]] = {
    "verify-store": lambda _desk: [],
    "backup": lambda desk: [desk.copy],
    "restore": lambda desk: [desk.copy],
    "archive": lambda _desk: ["--before", DAY],
}


@pytest.mark.parametrize("command", WORDS)
def test_a_configuration_with_faults_is_told(desk: Desk, command: str) -> None:
    (desk.directory / "fep.toml").write_text("mode = 1\n")
    told = desk.run(command, *WORDS[command](desk), status=1)
    assert "fep.toml:1:" in told


@pytest.mark.parametrize("command", ["verify-store", "backup", "archive"])
def test_where_no_store_is_it_is_said(desk: Desk, command: str) -> None:
    desk.store.unlink()
    told = desk.run(command, *WORDS[command](desk), status=1)
    assert "fep: " in told
    assert not desk.store.exists()


# -- restore ----------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_restore_says_what_to_do_and_keeps_the_former_store(desk: Desk) -> None:
    desk.run("backup", desk.copy)
    out = desk.run("restore", desk.copy)
    for words in ("restored 已恢复", "sends no payment", "fepctl restored", "fepctl release"):
        assert words in out
    value = desk.json("restore", desk.copy)
    assert Path(value["former"]).exists()
    taken_at = to_shanghai(from_text(value["taken_at"]))
    assert f"after {taken_at:%Y-%m-%d %H:%M:%S}." in out


def test_no_restore_while_the_daemon_runs(desk: Desk) -> None:
    desk.run("backup", desk.copy)
    before = desk.store.read_bytes()
    with locked(desk.directory / "state" / files.LOCK_FILE):
        told = desk.run("restore", desk.copy, status=1)
    assert "fep: STATE_HELD: " in told
    assert "the daemon runs; stop it first" in told
    assert desk.store.read_bytes() == before


def test_the_daemon_does_not_start_on_half_a_restore(desk: Desk) -> None:
    desk.run("backup", desk.copy)
    flag = desk.directory / "state" / files.RESTORING_FILE
    flag.touch()
    daemon = app.Daemon(loaded(desk.directory), SystemClock(), Followers())
    with pytest.raises(ConfigError, match="run fep restore again"):
        trio.run(daemon.run)
    desk.run("restore", desk.copy)
    assert not flag.exists()


# -- archive ----------------------------------------------------------------------------------


def test_what_is_old_and_over_is_archived_and_said(desk: Desk) -> None:
    before = whole(desk.store)
    out = desk.run("archive", "--before", DAY)
    assert out == f"archive-2025.sqlite: {len(MOVED_2025)} tasks moved 已归档\n"
    assert desk.run("archive", "--before", DAY) == "nothing to archive 没有可归档的任务\n"
    assert desk.json("archive", "--before", "2026-02-01")["archived"] == {"archive-2025.sqlite": 1}
    assert whole(desk.store) == before
    assert desk.json("verify-store", "--full")["sound"]
    desk.run("backup", desk.copy)
    with closing(sqlite3.connect(desk.store)) as db:
        [cause] = db.execute("SELECT cause FROM task_event WHERE event = 'archived'").fetchone()
    assert cause.startswith(
        f"fep archive --before {DAY} moved {len(MOVED_2025)} tasks to archive-2025.sqlite"
    )


def test_a_payment_stays_for_as_long_as_it_may_come_back(desk: Desk) -> None:
    today = SystemClock().now()
    recent = today - dt.timedelta(days=20)

    async def add() -> None:
        async with opened(desk.store) as store:
            await store.write(
                work_of(
                    [
                        Made("PAY-20-days", State.SUCCEEDED, at=recent),
                        Made("NO-20-days", State.REJECTED, at=recent),
                    ]
                )
            )

    trio.run(add)
    desk.run("archive", "--before", f"{today - dt.timedelta(days=1):%Y-%m-%d}")
    with closing(sqlite3.connect(desk.store)) as db:
        rows = dict(db.execute("SELECT task_id, archived FROM task WHERE task_id LIKE '%20-days'"))
    assert rows["PAY-20-days"] is None
    assert rows["NO-20-days"] is not None


def test_a_day_to_come_is_refused(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not over yet" in desk.run("archive", "--before", "2999-01-01", status=1)
    for words in (["archive"], ["archive", "--before", "yesterday"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
    assert "no day YYYY-MM-DD" in capsys.readouterr().err


def test_two_at_once_are_one_too_many(desk: Desk) -> None:
    with locked(desk.directory / "state" / "archive.lock"):
        told = desk.run("archive", "--before", DAY, status=1)
    assert "another fep archive runs" in told


def test_an_older_store_is_left_to_its_daemon(desk: Desk) -> None:
    tamper(desk.store, "UPDATE task SET priority = 1")
    with closing(sqlite3.connect(desk.store)) as db:
        db.execute("PRAGMA user_version = 99")
    told = desk.run("archive", "--before", DAY, status=1)
    assert "has version 99" in told


# -- when all goes wrong ----------------------------------------------------------------------


def command(directory: Path, *words: str) -> list[str]:
    config = str(directory / "fep.toml")
    return [sys.executable, "-m", "fep.daemon.main", words[0], "--config", config, *words[1:]]


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


ARCHIVE = ("archive", "--before", DAY)


@pytest.mark.slow
async def test_killed_anywhere_nothing_is_lost_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """The daemon's writer goes on all the while, and its tasks are there at the end."""
    written(tmp_path, GOOD)
    (tmp_path / "state").mkdir()
    store_file = tmp_path / "state" / files.STORE_FILE
    rng = random.Random(3)
    kills = written_tasks = 0
    async with opened(store_file) as store:
        for group in range(4):
            tasks = [Made(f"T{group}-{n}", State.SUCCEEDED) for n in range(100)]
            await store.write(work_of(tasks))
        before = await trio.to_thread.run_sync(whole, store_file)
        status = None
        with trio.fail_after(2 * WAIT_SECONDS_MAX):
            while status != 0:
                process = started(command(tmp_path, *ARCHIVE))
                # Each run lives longer than the last: at first it hardly begins, at last it ends.
                until = time.monotonic() + rng.uniform(0.3, 1.0) * (1 + kills / 2)
                while (status := process.poll()) is None:
                    if time.monotonic() > until:
                        process.send_signal(signal.SIGKILL)
                    await store.write(work_of([Made(f"N{written_tasks}", State.QUEUED)]))
                    written_tasks += 1
                    await trio.sleep(0.005)
                error = process.communicate()[1]
                assert status in (0, -signal.SIGKILL), error.decode()
                kills += status != 0
                report = await trio.to_thread.run_sync(verify, store_file)
                assert report.sound, report.findings
    assert kills > 0
    after = whole(store_file)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + written_tasks
    assert verify(store_file).checks["archive chain"].looked_at == 400


@pytest.mark.slow
def test_a_full_disk_stops_both_commands_and_nothing_is_lost(tmp_path: Path) -> None:
    """On a disk of its own: a tmpfs that only the child sees."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mount -t tmpfs -o size=12m tmpfs '{tmp_path}' && exec \"$@\""
    child = [sys.executable, "-m", "tests.daemon.upkeep_child", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", *root, "sh", "-c", mount, "-", *child],
        cwd=ROOT,
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout.splitlines()[-1])
    for name in ("archive", "backup"):
        status, told = seen[f"{name} when full"]
        assert status == 1
        assert "full" in told or "No space left" in told
        assert seen[f"sound after {name}"]
        assert not any(one.startswith((".", "copy")) for one in seen[f"left by {name}"])
        assert seen[name][0] == 0, seen[name]
    assert seen["findings"] == []
    assert seen["archived"] == 600


@pytest.mark.slow
@pytest.mark.parametrize("words", [ARCHIVE, ("backup",)], ids=["archive", "backup"])
@pytest.mark.parametrize("call", [1, 3, 6])
def test_a_failed_sync_ends_the_command_and_the_next_run_goes_on(
    directory: Path, words: tuple[str, ...], call: int
) -> None:
    """The kernel says EIO from the n-th sync on: what is on the disk then is not known."""
    store_file, copy = directory / "state" / files.STORE_FILE, directory / "copy.sqlite"
    before = whole(store_file)
    words = (*words, str(copy)) if words == ("backup",) else words
    fault = f"inject=fdatasync,fsync:error=EIO:when={call}+"
    trace = ("-f", "-qq", "-o", str(directory / "trace"), "-e", "trace=fdatasync,fsync")
    done = subprocess.run(
        ["strace", *trace, "-e", fault, *command(directory, *words)],
        cwd=ROOT,
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    if b"INJECTED" not in (directory / "trace").read_bytes():
        assert done.returncode == 0, "it has fewer syncs than that, and did its work"
        return
    assert done.returncode == 1, done.stdout
    assert b"Traceback" not in done.stderr
    assert not copy.exists()
    assert verify(store_file).sound, verify(store_file).findings
    assert whole(store_file) == before
    again = subprocess.run(
        command(directory, *words), cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr.decode()
    assert verify(store_file).sound
    assert whole(store_file) == before


def test_a_copy_that_lies_about_is_no_store(desk: Desk) -> None:
    """A file that ``cp`` made of a store in use lacks what is in its log: it is not restored."""
    shutil.copy(desk.store, desk.copy)
    data = bytearray(desk.copy.read_bytes())
    desk.copy.write_bytes(data[: len(data) // 2])
    told = desk.run("restore", desk.copy, status=1)
    assert "fep: " in told
    assert verify(desk.store).sound
