"""The campaign in short: nothing is lost or doubled, a broken daemon is caught, nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.faults import FAULTS, NEEDS, ON_SERVER, Fault
from tests.crash.means import Means
from tests.crash.round import VIOLATIONS
from tests.crash.store import DUMP
from tests.system.processes import Process, descendants

ROUNDS = 30
CATCH_ROUNDS_MAX = 24
"""It ends with the first that fails, mostly the first or second."""
CAMPAIGN_SECONDS_MAX = 900.0
END_SECONDS_MAX = 90.0
GROWN_MIN = 12
"""Two lanes, each with its fork server, two banks, the daemon and a finance system."""
RESULT = "crash: "


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the campaign makes its directories; a short path, since sockets lie there."""
    path = Path(tempfile.mkdtemp(prefix="fep-t-"))
    yield path
    shutil.rmtree(path)


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    """Start a campaign; it must be ended."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(place)},
    )


def campaign(place: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run a campaign; returns its status, its closing figures, and all that it printed."""
    with start(place, *words) as process:
        try:
            output, _ = process.communicate(timeout=CAMPAIGN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate()
            pytest.fail(f"not within {CAMPAIGN_SECONDS_MAX:g} s:\n{output[-3000:]}")
    last = output.splitlines()[-1]
    assert last.startswith(RESULT), output[-3000:]
    return process.returncode, json.loads(last.removeprefix(RESULT)), output


@pytest.mark.req("FEP-22", "FEP-23", "FEP-25", "POOL-11")
@pytest.mark.slow
def test_no_payment_is_lost_or_doubled_whatever_dies(place: Path) -> None:
    status, figures, output = campaign(place, "--rounds", str(ROUNDS))
    assert {kind: figures[kind] for kind in VIOLATIONS} == dict.fromkeys(VIOLATIONS, 0), output
    assert status == 0, output
    assert (figures["rounds"], figures["rounds_missing"]) == (ROUNDS, 0)
    # It was worth something: every fault came, or is counted as not run; what matters was hit.
    barred = {Fault(one) for one in figures["not_run"]}
    assert {Fault(one) for one in figures["faults"]} == set(FAULTS) - barred
    for name in ("kills", "cuts", "died_sending", "line_lost", "proved_done", "proved_not_done"):
        assert figures[name] > 0, (name, figures)
    assert figures["points"], figures
    assert figures["injected"] or Fault.STORE_ERROR in barred, figures
    assert figures["full"] or Fault.DISK_FULL in barred, figures
    assert all(f"no {NEEDS[one]} here" in output for one in barred), output
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_what_a_machine_does_not_allow_is_counted_as_not_run(place: Path) -> None:
    """As in a container that may neither mount nor trace; the rest of a round goes on."""
    words = ("--rounds", "2", "--without", Means.TMPFS, "--without", Means.STRACE)
    faults = ("--fault", Fault.DISK_FULL, "--fault", Fault.STORE_ERROR, "--fault", Fault.CUT)
    status, figures, output = campaign(place, *words, *faults)
    assert status == 0, output
    assert figures["not_run"] == {Fault.DISK_FULL: 2, Fault.STORE_ERROR: 2}
    assert figures["faults"] == {Fault.CUT: 2}
    assert figures["cuts"] > 0
    assert f"no {Means.TMPFS} here (not wanted), so not run: {Fault.DISK_FULL}\n" in output


@pytest.mark.parametrize(
    ("broken", "fault", "first", "violation"),
    [
        ("sends-first", Fault.KILL_AT_POINT, 4, "doubled"),
        ("sends-again", Fault.BANKS_MISBEHAVE, 6, "doubled"),
        ("acknowledges-first", Fault.KILL_DAEMON, 1, "lost"),
        ("commits-later", Fault.KILL_POSTGRES, 1, "lost or doubled"),
        ("believes-no-record", Fault.CLOCK, 1, "wrong"),
        ("believes-the-clock", Fault.CLOCK, 1, "wrong"),
    ],
)
@pytest.mark.slow
def test_a_broken_daemon_is_caught(
    place: Path, broken: str, fault: Fault, first: int, violation: str
) -> None:
    words = ("--broken", broken, "--fault", fault, "--stop", "--lanes", "1")
    rounds = ("--from", str(first), "--rounds", str(CATCH_ROUNDS_MAX))
    status, figures, output = campaign(place, *words, *rounds)
    assert status == 1, output
    # What is lost of the one is the submission, of the other that it was sent.
    assert any(figures[one] > 0 for one in violation.split(" or ")), output
    assert f"python -m tests.crash --only {figures['failed'][0]} " in output
    (kept,) = place.glob(f"fep-crash-{figures['failed'][0]}-kept-*")
    assert (kept / (DUMP if fault in ON_SERVER else "state/fep.sqlite")).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_what_ends_early_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    """Ctrl-C, and even kill -9: no process, no mount, no directory."""
    process = start(place, "--rounds", "1000", "--fault", "store-error")
    with process:
        try:
            family = _grown(process.pid)
        finally:
            process.send_signal(number)
        assert process.wait(END_SECONDS_MAX) == (130 if number is signal.SIGINT else -number)
        limit = time.monotonic() + END_SECONDS_MAX
        while any(one.is_running for one in family) and time.monotonic() < limit:
            time.sleep(0.1)
    assert [one for one in family if one.is_running] == []
    assert list(place.iterdir()) == []
    assert "fep-crash" not in Path("/proc/self/mountinfo").read_text("utf-8")


def _grown(pid: int) -> set[Process]:
    """Return a campaign's processes when both lanes have mounted, and all of a scene runs."""
    limit = time.monotonic() + END_SECONDS_MAX
    while time.monotonic() < limit:
        family = descendants(pid)
        if len([one for one in family if _mounts(one)]) >= GROWN_MIN:
            return family
        time.sleep(0.1)
    pytest.fail("the campaign did not begin")


def _mounts(process: Process) -> bool:
    """Say whether a process sees a file system of the campaign."""
    try:
        return "fep-crash" in Path(f"/proc/{process.pid}/mountinfo").read_text("utf-8")
    except OSError:
        return False  # it has just ended
