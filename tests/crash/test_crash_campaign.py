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

from tests.crash.faults import FAULTS
from tests.crash.round import VIOLATIONS
from tests.system.processes import Process, descendants

ROUNDS = 30
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
    assert figures["rounds"] == ROUNDS
    # It was worth something: every fault came, and what matters was hit.
    assert figures["faults"].keys() == {str(one) for one in FAULTS}
    for name in ("kills", "cuts", "injections", "fail_stops", "died_sending", "line_lost"):
        assert figures[name] > 0, (name, figures)
    for name in ("proved_done", "proved_not_done", "full", "repeated"):
        assert figures[name] > 0, (name, figures)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "fault", "rounds", "figure"),
    [
        ("sends-first", "kill-at-payment", 6, "doubled"),
        ("sends-again", "banks-misbehave", 4, "doubled"),
        ("acknowledges-first", "kill-daemon", 4, "lost"),
    ],
)
@pytest.mark.slow
def test_a_broken_daemon_is_caught(
    place: Path, broken: str, fault: str, rounds: int, figure: str
) -> None:
    words = ("--broken", broken, "--fault", fault, "--rounds", str(rounds))
    status, figures, output = campaign(place, "--seed", "3", *words)
    assert status == 1, output
    assert figures[figure] > 0, output
    assert f"python -m tests.crash --only {figures['failed'][0]}" in output
    kept = list(place.iterdir())
    assert len(kept) == len(figures["failed"])
    assert all((one / "state" / "fep.sqlite").exists() for one in kept)


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
