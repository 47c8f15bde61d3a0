"""``make simulate``: many seeds on all cores; ends with one line ``simulate: {json}``.

A seed that fails is printed with what was wrong; ``--trace SEED`` shows all that was logged in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence

import attrs

from tests.simulation.run import report_of, simulate

LINES_SHOWN_MAX = 3
PROGRESS_SECONDS = 5.0
HASH_SEED = "0"


def campaign(first: int, count: int, processes: int) -> dict[str, object]:
    """Run the seeds, show progress and failures, and return the closing figures."""
    began = said = time.monotonic()
    counted = ("tasks", "crashes", "torn", "unknowns", "returned", "steps")
    total = {"seeds": 0, **dict.fromkeys(counted, 0), "violations": 0}
    failed: list[int] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for report in pool.imap_unordered(report_of, range(first, first + count), chunksize=4):
            total["seeds"] += 1
            for name in counted:
                total[name] += getattr(report, name)
            if report.violations:
                failed.append(report.seed)
                total["violations"] += len(report.violations)
                for line in report.violations[:LINES_SHOWN_MAX]:
                    print(f"seed {report.seed}: {line}", flush=True)
            now = time.monotonic()
            if now - said >= PROGRESS_SECONDS or total["seeds"] == count:
                said = now
                print(_progress(total, count, now - began), flush=True)
    return total | {"failed": sorted(failed), "seconds": round(time.monotonic() - began, 1)}


def _progress(total: dict[str, int], count: int, seconds: float) -> str:
    done, wrong = total["seeds"], total["violations"]
    left = seconds / done * (count - done)
    return f"{done}/{count} seeds in {seconds:.0f} s, {left:.0f} s left, {wrong} violations"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="S")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trace", type=int, metavar="SEED", help="show one seed's whole log")
    given = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # The order of sets is one more source of chance.
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    if given.trace is not None:
        report, lines = simulate(given.trace)
        print("\n".join(lines))
        print(json.dumps(attrs.asdict(report), ensure_ascii=False, indent=2))
        return int(bool(report.violations))
    figures = campaign(given.first, given.seeds, given.processes)
    print(f"simulate: {json.dumps(figures)}")
    return int(bool(figures["violations"]))


if __name__ == "__main__":
    sys.exit(main())
