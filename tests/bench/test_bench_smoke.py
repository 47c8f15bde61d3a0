"""The benchmarks run end to end: every system, every load, every figure is there. Nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fep.adapters import registry
from fep.domain.order import Kind

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS_MAX = 300
LOADS = {"put_1x1", "put_1x64", "put_64x1", "put_64x16", "cycle_64x1"}

pytestmark = pytest.mark.slow


def bench(name: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Return what a benchmark printed, and its last line."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
        # Its peers run as other users, whatever mask it is started with.
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    return done.stdout, json.loads(last)


def test_queue_compares_every_system_under_every_load() -> None:
    printed, found = bench("queue", "--sync", "shim1ms", "--rounds", "1", "--seconds", "0.2")
    assert found.keys() == {"shim1ms"}
    ratios = found["shim1ms"]
    assert ratios["beanstalkd"].keys() == ratios["redis"].keys() == LOADS
    # pgbench has no pipeline of separate commits.
    assert ratios["postgresql"].keys() == {"put_1x1", "put_64x1", "cycle_64x1"}
    assert all(ratio > 0 for peer in ratios.values() for ratio in peer.values())
    assert all(f"{load:<12}fep" in printed for load in LOADS)


def test_queue_refuses_what_it_does_not_know() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.queue", "--systems", "fep,rabbit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no system 'rabbit'" in done.stderr


def test_recovery_finds_every_waiting_task() -> None:
    _, found = bench("recovery", "--tasks", "2000", "--rounds", "1", "--seconds", "0.2")
    assert found["tasks"] == 2000
    assert found["dispatch_s"] > 0
    assert found["rss_mb"] > 0
    assert found["submits_empty"] > 0
    assert found["submits_full"] > 0


def test_adapters_are_all_measured() -> None:
    _, found = bench("adapters", "--rounds", "1")
    assert list(found) == registry.names()
    for name, figures in found.items():
        assert figures["balance_us"] > 0
        reads = Kind.STATEMENT in registry.adapter(name).capabilities
        assert reads == ("statement_us" in figures)
        # One of them speaks JSON.
        assert (reads and name != "cmb_cdc") == ("to_lxml" in figures)


def test_soak_ends_what_it_began() -> None:
    _, found = bench("soak", "--minutes", "0.05", "--every", "1", "--rate", "50")
    assert found["ended"] > 100
    assert found["fds_first"] == found["fds_last"]
