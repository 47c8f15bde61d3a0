"""``fep demo`` from the outside: what it prints, what it refuses, and that it tidies up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from fep.client import BlockingClient
from fep.sandbox.demo import ACCOUNTS_PER_BANK, PAYMENTS
from fep.sandbox.scene import BANKS
from tests.rights import without_rights
from tests.system.demo_run import ROOT, DemoRun, demo

FIGURES = {"slots", "banks", "accounts", "tasks", "swept", "seconds"}


@pytest.mark.req("FEP-01", "FEP-02", "FEP-03", "FEP-04", "FEP-06", "FEP-07", "FEP-34", "POOL-13")
@pytest.mark.slow
def test_the_demo_shows_the_main_job_and_its_figures(demo_run: DemoRun) -> None:
    assert demo_run.process.returncode == 0, demo_run.output[-3000:]
    tally = demo_run.tally
    assert tally.keys() >= FIGURES
    accounts = len(BANKS) * ACCOUNTS_PER_BANK
    assert (tally["slots"], tally["banks"], tally["accounts"]) == (4, 4, accounts)
    assert tally["keys"] == "pcsc"
    assert 0 < tally["swept"] < accounts
    # Each balance for the finance system, its payments, each balance of the round, each sweep.
    assert tally["tasks"] == accounts + PAYMENTS + (accounts - 1) + tally["swept"]
    for words in (
        "cmb-bj is pulled in mid-round",
        "UKey 未插入",
        "the other banks went on",
        "The sum over all books is unchanged",
        "payments was booked exactly once",
    ):
        assert words in demo_run.output
    assert demo_run.left_behind == []


@pytest.mark.slow
def test_the_demo_with_software_keys(directory: Path) -> None:
    kept = directory / "kept"
    with demo("--software", "--accounts", "3", "--directory", str(kept)) as run:
        run.watch()
        assert run.process.returncode == 0, run.output[-3000:]
        assert (run.tally["keys"], run.tally["accounts"]) == ("software", 12)
        assert "Key slots: SOFTWARE keys" in run.output
        assert run.left_behind == []
    for name in ("fep.log", "book.sqlite", "fep.toml"):
        assert (kept / name).stat().st_size > 0


def test_the_demo_refuses_a_directory_that_holds_something(directory: Path) -> None:
    (directory / "mine").write_text("keep")
    with demo("--software", "--directory", str(directory)) as run:
        run.watch()
        assert run.process.returncode == 2
        assert run.output == f"fep demo: {directory} is not empty; choose another\n"
    assert [path.name for path in directory.iterdir()] == ["mine"]


def test_the_demo_refuses_a_file_in_the_place_of_its_directory(directory: Path) -> None:
    mine = directory / "mine"
    mine.write_text("keep")
    with demo("--software", "--directory", str(mine)) as run:
        run.watch()
        assert run.process.returncode == 2
        assert run.output == f"fep demo: {mine} is no folder; choose another\n"
    assert mine.read_text() == "keep"


def test_the_demo_refuses_a_directory_that_it_can_not_read(directory: Path) -> None:
    mine = directory / "mine"
    mine.mkdir(mode=0)
    done = subprocess.run(
        [*without_rights(), sys.executable, "-m", "fep.daemon.main", "demo", "--directory", mine],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    told = (done.stdout + done.stderr).decode()
    assert told == f"fep demo: {mine} can't be read: Permission denied\n"
    assert done.returncode == 2


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
@pytest.mark.slow
def test_the_demo_ended_in_its_middle_leaves_nothing_running(directory: Path, how: str) -> None:
    """Ctrl-C reaches the whole process group, ``kill`` the demo alone."""
    kept = directory / "kept"
    with demo("--accounts", "3", "--directory", str(kept)) as run:
        run.watch(lambda: "hands over" in run.output)
        run.look()
        assert run.process.poll() is None, run.output[-3000:]
        assert len(run.processes) >= len(BANKS) + 3
        if how == "ctrl-c":
            os.killpg(run.process.pid, signal.SIGINT)
        else:
            run.process.send_signal(signal.SIGTERM)
        run.watch()
        assert run.process.returncode == 130
        assert "Traceback" not in run.output
        assert run.output.splitlines()[-1] == (
            f"demo: interrupted; all that was started has ended, logs and data are kept in {kept}"
        )
        assert run.left_behind == []


@pytest.mark.slow
def test_the_demo_stays_up_for_who_wants_to_try_it(directory: Path) -> None:
    with demo("--software", "--accounts", "2", "--stay", "--directory", str(directory)) as run:
        run.watch(lambda: "files 文件" in run.output)
        found = re.search(r"(http://\S+)  user demo, password (\S+)", run.output)
        assert found is not None, run.output[-3000:]
        with httpx2.Client(base_url=found[1], follow_redirects=True) as browser:
            assert browser.get("/").url.path == "/login"
        with BlockingClient(f"unix:{directory}/control.sock", "me") as client:
            assert client.call("task.get", {"task_id": "PAY-001"})["state"] == "succeeded"
            assert [one["name"] for one in client.call("user.list")["users"]] == ["demo"]
        run.look()
        os.killpg(run.process.pid, signal.SIGINT)
        run.watch()
        assert run.process.returncode == 0
        assert run.tally["accounts"] == 8
        assert "Traceback" not in run.output
        assert run.left_behind == []


@pytest.mark.parametrize("words", [["--accounts", "0"], ["--accounts", "-3"], ["--accounts", "x"]])
def test_a_demo_that_can_not_be_is_refused(words: list[str]) -> None:
    with demo("--software", *words) as run:
        run.watch()
        assert run.process.returncode == 2
        assert "is not a number from 2 to 99" in run.output


def test_a_directory_that_can_not_be_made_is_said() -> None:
    with demo("--software", "--directory", "/proc/none") as run:
        run.watch()
        assert run.process.returncode == 2
        assert run.output.startswith("fep demo: /proc/none can't be made: ")
