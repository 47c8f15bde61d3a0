"""``make crash``: rounds of faults on real processes; ends with one line ``crash: {json}``.

Each lane works in a directory and a mount namespace of its own, so that whatever becomes of it,
nothing stays mounted and no process stays behind. A round that fails is printed with its seed, and
its directory is kept. It mounts, traces, and sets clocks; what this machine does not allow is said
at the begin, and counted at the end as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tests.crash.broken import BREAKS
from tests.crash.faults import NEEDS, Fault
from tests.crash.lane import run_lane
from tests.crash.means import OWN_NAMESPACE, Means, missing
from tests.crash.round import VIOLATIONS

LANES: Final = 2
PROGRESS_ROUNDS: Final = 10
INTERRUPTED: Final = 130
END_SECONDS_MAX: Final = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when nothing was violated."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--from", type=int, default=1, dest="seed", help="the first seed")
    parser.add_argument("--lanes", type=int, default=LANES)
    parser.add_argument("--only", type=int, metavar="SEED", help="this one round, as it was")
    parser.add_argument("--walk", default="", metavar="BANK=BYTE,...", help="where the cuts stand")
    parser.add_argument("--fault", action="append", choices=list(Fault), help="only these")
    parser.add_argument(
        "--without", action="append", type=Means, help=f"{', '.join(Means)}: do not use it"
    )
    parser.add_argument("--stop", action="store_true", help="at the first round that fails")
    parser.add_argument("--broken", default="", choices=list(BREAKS), help=argparse.SUPPRESS)
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.only is not None:
        given.rounds, given.seed, given.lanes = 1, given.only, 1
    given.lanes = max(1, min(given.lanes, given.rounds))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        if given.lane is not None:
            given.without = given.without or []
            run_lane(given)
            return 0
        return campaign(given, words)
    except KeyboardInterrupt:
        return INTERRUPTED


def _interrupt(_number: int, _frame: object) -> None:
    """Begin the end; it must come to its own end, however often it is asked for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Tally:
    """What the lanes have reported so far."""

    def __init__(self, rounds: int) -> None:
        self.wanted = rounds
        self.rounds = 0
        self.failed: list[int] = []
        self._began = time.monotonic()
        self._slowest: dict[str, Any] = {"seed": None, "seconds": 0.0, "faults": []}
        self._total: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._not_run: Counter[str] = Counter()
        self._injected: Counter[str] = Counter()
        self._points: Counter[str] = Counter()
        self._kills_postgres: Counter[str] = Counter()
        self._cut_bytes: dict[str, dict[str, int]] = {}

    @property
    def violations(self) -> int:
        """How many there are, of all kinds."""
        return sum(self._total[kind] for kind in VIOLATIONS)

    def take_round(self, record: dict[str, Any]) -> None:
        """Count a round."""
        self.rounds += 1
        self._total["tasks"] += record["tasks"]
        self._total["kills"] += record["kills"]
        self._total.update(record["violations"])
        self._faults.update(record["faults"])
        self._not_run.update(record["not_run"])
        if record["seconds"] > self._slowest["seconds"]:
            self._slowest = {name: record[name] for name in self._slowest}
        if record["violations"]:
            self.failed.append(record["seed"])

    def take_lane(self, record: dict[str, Any]) -> None:
        """Count what a lane says at its end."""
        for name, number in record["counts"].items():
            if name.startswith("injected "):
                self._injected[name.removeprefix("injected ")] += number
            elif name.startswith("at "):
                self._points[name.removeprefix("at ")] += number
            elif name.startswith("store "):
                self._kills_postgres[name.removeprefix("store ")] += number
            elif not name.startswith("kills"):
                self._total[name] += number
        for bank, cuts in record["cuts"].items():
            known = self._cut_bytes.setdefault(bank, {"request": 0, "answer": 0, "of": 0})
            known["request"] += cuts["request"]
            known["answer"] += cuts["answer"]
            known["of"] = max(known["of"], cuts["of"])

    def progress(self) -> str:
        """Return how far it is, in one line."""
        return (
            f"{self.rounds}/{self.wanted} rounds, {time.monotonic() - self._began:.0f} s: "
            f"{self._total['kills']} kills, {self._total['tasks']} tasks, "
            f"{self.violations} violations"
        )

    def figures(self) -> dict[str, Any]:
        """Return the closing figures."""
        first = {name: self._total.pop(name, 0) for name in ("kills", *VIOLATIONS)}
        return {
            "rounds": self.rounds,
            **first,
            "failed": sorted(self.failed),
            "rounds_missing": self.wanted - self.rounds,
            "seconds": round(time.monotonic() - self._began, 1),
            "slowest": self._slowest,
            **self._total,
            "faults": self._faults,
            "not_run": self._not_run,
            "injected": self._injected,
            "points": self._points,
            "kills_postgres": self._kills_postgres,
            "cut_bytes": self._cut_bytes,
        }


def campaign(given: argparse.Namespace, words: list[str]) -> int:
    """Run the lanes, show progress and failures, print the closing line; returns the status."""
    without = dict.fromkeys(given.without or (), "not wanted")
    for means, reason in (missing() | without).items():
        what = ", ".join(fault for fault, needed in NEEDS.items() if needed is means)
        print(f"no {means} here ({reason}), so not run: {what}", flush=True)
        without[means] = reason
    tally = _Tally(given.rounds)
    try:
        whole = _follow(given, words, without, tally)
        status = int(not whole or tally.violations > 0)
    except KeyboardInterrupt:
        status = INTERRUPTED
    print(f"crash: {json.dumps(tally.figures())}", flush=True)
    return status


def _follow(
    given: argparse.Namespace, words: list[str], without: Collection[Means], tally: _Tally
) -> bool:
    """Run the lanes and show what they report; returns whether they did all they should."""
    with _lanes(given, words, without) as lanes:
        for record in _records(lanes):
            if record["what"] == "lane":
                tally.take_lane(record)
                continue
            tally.take_round(record)
            if record["violations"]:
                _show(given, record)
                if given.stop:
                    return False
            if tally.rounds % PROGRESS_ROUNDS == 0 or tally.rounds == given.rounds:
                print(tally.progress(), flush=True)
        statuses = [lane.wait() for lane in lanes]
    return not any(statuses) and tally.rounds == given.rounds


def _show(given: argparse.Namespace, record: dict[str, Any]) -> None:
    walk = ",".join(f"{bank}={place}" for bank, place in record["walk"].items())
    print(f"round {record['seed']} failed ({', '.join(record['faults'])}):", flush=True)
    for line in record["lines"]:
        print(f"  {line}", flush=True)
    chosen = "".join(f" --fault {one}" for one in given.fault or ())
    print(
        f"  again: python -m tests.crash --only {record['seed']} --walk {walk}{chosen}\n"
        f"  kept: {record['kept']}",
        flush=True,
    )


@contextmanager
def _lanes(
    given: argparse.Namespace, words: list[str], without: Collection[Means]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the lanes, and end them, whatever happens here."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(given.lanes):
            command = [sys.executable, "-m", "tests.crash", *words]
            command += [f"--without={means}" for means in without]
            if Means.TMPFS not in without:
                command = [*OWN_NAMESPACE, *command]
            # A lane ends in order with us; what it started ends with it.
            watched = ["setpriv", "--pdeathsig", "TERM", "--", *command]
            watched += [f"--lane={number}"]
            started.append(subprocess.Popen(watched, stdout=subprocess.PIPE))
        yield started
    finally:
        for lane in started:
            if lane.poll() is None:
                lane.terminate()
        for lane in started:
            try:
                lane.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                lane.kill()
                lane.wait()
            assert lane.stdout is not None
            lane.stdout.close()


def _records(lanes: list[subprocess.Popen[bytes]]) -> Iterator[dict[str, Any]]:
    """Yield what the lanes report, as it comes."""
    with selectors.DefaultSelector() as selector:
        rest = dict.fromkeys(range(len(lanes)), b"")
        for number, lane in enumerate(lanes):
            assert lane.stdout is not None
            selector.register(lane.stdout, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65_536)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                *lines, rest[key.data] = (rest[key.data] + data).split(b"\n")
                yield from map(json.loads, lines)


if __name__ == "__main__":
    sys.exit(main())
