"""One lane: rounds one after another on one machine, which is made anew now and then."""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fep.sandbox.scene import BANKS
from tests.crash.faults import FAULTS, NEEDS, Fault
from tests.crash.machine import Machine
from tests.crash.means import Means
from tests.crash.proxy import Side, Walk
from tests.crash.round import Choice, Round

ROUNDS_PER_MACHINE_MAX: Final = 40
"""So that its store and its book stay small: every round looks at all of them."""
KILLS: Final = ("kills_daemon", "kills_host", "kills_finance")


def run_lane(given: argparse.Namespace) -> None:
    """Run this lane's share of the rounds; each prints one line, and the lane a last one."""
    mounts = Means.TMPFS not in given.without
    without = frozenset(one for one, means in NEEDS.items() if means in given.without)
    seeds = lane_seeds(given.seed, given.rounds, given.lane, given.lanes)
    walks = _walks(given)
    chosen = None if given.fault is None else [Fault(one) for one in given.fault]
    total: Counter[str] = Counter()
    while seeds:
        directory = Path(tempfile.mkdtemp(prefix="fep-crash-"))
        try:
            with Machine(directory, broken=given.broken, mounts=mounts) as machine:
                try:
                    _run_rounds(machine, seeds, walks, Choice(chosen, without))
                finally:
                    _count(total, machine)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    _tell({"what": "lane", "counts": dict(total), "cuts": _cuts(walks)})


def lane_seeds(first: int, rounds: int, lane: int, lanes: int) -> list[int]:
    """Return a lane's seeds: each lane comes to each fault, whatever their numbers."""
    return [
        first + place for place in range(rounds) if (place + place // len(FAULTS)) % lanes == lane
    ]


def _run_rounds(machine: Machine, seeds: list[int], walks: dict[str, Walk], choice: Choice) -> None:
    """Run rounds until all are done or one was such that a new machine is better."""
    for _ in range(min(ROUNDS_PER_MACHINE_MAX, len(seeds))):
        seed = seeds.pop(0)
        kills = sum(machine.counts[kind] for kind in KILLS)
        report = Round(machine, seed, walks, choice).run()
        record = {
            "what": "round",
            "seed": seed,
            "faults": report.faults,
            "not_run": report.not_run,
            "walk": report.walk,
            "tasks": report.tasks,
            "kills": sum(machine.counts[kind] for kind in KILLS) - kills,
            "violations": report.violations,
            "lines": report.lines,
            "seconds": round(report.seconds, 2),
            "kept": "",
        }
        if report.violations:
            record["kept"] = str(_kept(machine, seed))
        _tell(record)
        if report.violations or Fault.CLOCK in report.faults:
            # What such a round left would be found again by every later one; and days of another
            # clock stand in the store, which the next rounds are not about.
            return


def _walks(given: argparse.Namespace) -> dict[str, Walk]:
    """Return where the cuts of each bank begin; each lane makes every n-th."""
    places = dict(one.split("=") for one in given.walk.split(",") if one)
    return {
        plan.name: Walk(int(places.get(plan.name, given.lane)), given.lanes) for plan in BANKS[:2]
    }


def _cuts(walks: dict[str, Walk]) -> dict[str, dict[str, int]]:
    """Return for each bank at how many bytes its line was cut, and how many there are."""
    return {
        name: {
            **{side.value: sum(one is side for one, _ in walk.made) for side in Side},
            "of": walk.request_bytes + walk.answer_bytes + 2,
        }
        for name, walk in walks.items()
    }


def _count(total: Counter[str], machine: Machine) -> None:
    total.update(machine.counts)
    for proxy in machine.proxies.values():
        total["cuts"] += proxy.cuts
        total["silenced"] += proxy.silenced
        total["repeated"] += proxy.repeated
        total["dropped"] += proxy.dropped
        total["payments_sent"] += proxy.payments
    with suppress(sqlite3.Error):
        total.update(machine.caught())
    total["unknowns"] += machine.events["task.left_open"]
    total["full"] += machine.events["store.filled"]
    total["store_failed"] += machine.events["store.failed"]


def _kept(machine: Machine, seed: int) -> Path:
    """Copy a machine's files to where they outlive it; its store is in memory."""
    kept = Path(tempfile.mkdtemp(prefix=f"fep-crash-{seed}-kept-"))
    with suppress(shutil.Error):
        shutil.copytree(
            machine.directory,
            kept,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.sock", "ballast"),
        )
    return kept


def _tell(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
