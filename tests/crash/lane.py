"""One lane: rounds one after another on one machine, which is made anew now and then."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from fep.sandbox.scene import BANKS
from tests.crash.faults import FAULTS, NEEDS, ON_SERVER, Fault
from tests.crash.machine import Machine
from tests.crash.means import Means, mount
from tests.crash.proxy import Side, Walk
from tests.crash.round import Choice, Round

ROUNDS_PER_MACHINE_MAX: Final = 40
"""So that its store and its book stay small: every round looks at all of them."""
KILLS: Final = ("kills_daemon", "kills_host", "kills_finance", "kills_store")
SHARED_MEMORY: Final = Path("/dev/shm")
SHARED_BYTES: Final = 512 * 1024 * 1024


def run_lane(given: argparse.Namespace) -> None:
    """Run this lane's share of the rounds; each prints one line, and the lane a last one."""
    mounts = Means.TMPFS not in given.without
    if mounts:
        # In our own namespace. A database server's data are in there, and go with us.
        subprocess.run(mount(SHARED_MEMORY, SHARED_BYTES, "1777"), check=True)
    without = frozenset(one for one, means in NEEDS.items() if means in given.without)
    chosen = None if given.fault is None else [Fault(one) for one in given.fault]
    choice = Choice(chosen, without)
    walks = _walks(given)
    total: Counter[str] = Counter()
    with _Machines(total, given.broken, mounts=mounts) as machines:
        for seed in lane_seeds(given.seed, given.rounds, given.lane, given.lanes):
            on_server = not ON_SERVER.isdisjoint(choice.faults(seed))
            machine = machines.take(on_server=on_server)
            if not _run_round(machine, seed, walks, choice):
                machines.drop(on_server=on_server)
    _tell({"what": "lane", "counts": dict(total), "cuts": _cuts(walks)})


class _Machines:
    """A lane's machines, one for each kind of store; use it as a context manager.

    Args:
        total: gets what each of them has counted at its end.
        broken: the name of a break of the daemon.
        mounts: whether they may mount.
    """

    def __init__(self, total: Counter[str], broken: str, *, mounts: bool) -> None:
        self._total = total
        self._broken = broken
        self._mounts = mounts
        self._all: dict[bool, tuple[Machine, ExitStack]] = {}
        self._rounds: Counter[bool] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for one in self._all.values():
                stack.push(one[1])

    def take(self, *, on_server: bool) -> Machine:
        """Return the machine for a round, made anew when there is none or it was used enough."""
        if self._rounds[on_server] >= ROUNDS_PER_MACHINE_MAX:
            self.drop(on_server=on_server)
        if on_server not in self._all:
            with ExitStack() as stack:
                directory = Path(tempfile.mkdtemp(prefix="fep-crash-"))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                machine = Machine(
                    directory, broken=self._broken, mounts=self._mounts, postgres=on_server
                )
                stack.enter_context(machine)
                stack.callback(_count, self._total, machine)
                self._all[on_server] = (machine, stack.pop_all())
        self._rounds[on_server] += 1
        return self._all[on_server][0]

    def drop(self, *, on_server: bool) -> None:
        """End a machine: the next round has another."""
        _, end = self._all.pop(on_server)
        del self._rounds[on_server]
        end.close()


def lane_seeds(first: int, rounds: int, lane: int, lanes: int) -> list[int]:
    """Return a lane's seeds: each lane comes to each fault, whatever their numbers."""
    places = (divmod(place, len(FAULTS)) for place in range(rounds))
    return [
        first + place
        for place, (turn, fault) in enumerate(places)
        if (turn + fault) % lanes == lane
    ]


def _run_round(machine: Machine, seed: int, walks: dict[str, Walk], choice: Choice) -> bool:
    """Run one round; returns whether the next one may have the same machine."""
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
    # What a round that failed left would be found again by every later one; and days of another
    # clock stand in the store, which the next rounds are not about.
    return not report.violations and Fault.CLOCK not in report.faults


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
    with suppress(machine.store.error):
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
    machine.store.keep(kept)
    return kept


def _tell(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
