"""The daemon over a long time: whole cycles at a steady rate, and what it holds meanwhile.

``python -m bench.soak [--minutes 10] [--rate 500] [--every 60] [--sync disk|shim1ms]``. 64 clients
submit, are asked for bodies, and acknowledge results, of a bank that answers at once; so many
cycles are begun a second, whatever became of earlier ones. A line each minute says what was
reached, and the daemon's resident memory, open files and threads. The last line is one JSON object;
``bench/README.md`` says what its members mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from bench.daemon import Fep
from bench.loads import LOADS, WARM_UP_SECONDS, Figures, build, paced
from bench.peers import cpu_s
from bench.recovery import memory_mb
from bench.submit import SYNC_MODES, Sync, filesystem

CYCLE: Final = next(load for load in LOADS if load.is_cycle)
SETTLED_SHARE: Final = 0.2
"""The first part of a run, in which a process takes what it needs, is left out of the slope."""


@attrs.frozen
class Look:
    """The daemon at one moment."""

    minute: float
    rss_mb: float
    fds: int
    threads: int
    cpu_s: float


def look(pid: int, minute: float) -> Look:
    """Return what a process holds now."""
    proc = Path(f"/proc/{pid}")
    fds = len([*(proc / "fd").iterdir()])
    threads = len([*(proc / "task").iterdir()])
    return Look(minute, memory_mb(pid), fds, threads, cpu_s(pid))


def slope(looks: list[Look]) -> float:
    """Return the growth of the resident memory, in MB an hour, once it has settled."""
    settled = [one for one in looks if one.minute >= SETTLED_SHARE * looks[-1].minute]
    if len(settled) < 2:
        return 0.0
    line = statistics.linear_regression(
        [one.minute for one in settled], [one.rss_mb for one in settled]
    )
    return line.slope * 60


def _row(found: Figures, now: Look, before: Look, every_s: float) -> str:
    return (
        f"{now.minute:>7.1f}{found.rate:>10.1f}{found.p50_ms:>9.2f}{found.p99_ms:>9.2f}"
        f"{found.max_ms:>9.1f}{now.rss_mb:>9.1f}{now.fds:>6}{now.threads:>9}"
        f"{(now.cpu_s - before.cpu_s) / every_s:>7.0%}"
    )


def main(args: argparse.Namespace) -> dict[str, object]:
    """Run the load, print a line for each span, return the summary.

    Raises:
        RuntimeError: a reply was wrong, or a task is not at its end.
    """
    load_average = os.getloadavg()[0]
    place = args.directory or Path("/var/tmp" if args.sync == "disk" else "/dev/shm")
    fep = Fep()
    looks: list[Look] = []
    spans: list[Figures] = []
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="fep-bench-", dir=place))
        )
        sync = Sync(args.sync, directory)
        loadgen = build("loadgen", directory)
        fep.prepare(directory)
        stack.callback(fep.stop)
        state = directory / "one"
        state.mkdir()
        fep.start(state, sync.environment, CYCLE)
        looks.append(look(fep.pid, 0.0))
        print(f"sync: {args.sync} on {filesystem(directory)}; {args.rate:g} cycles a second")
        print(
            f"{'minute':>7}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'RSS MB':>9}"
            f"{'fds':>6}{'threads':>9}{'CPU':>7}",
            flush=True,
        )
        script = fep.script(CYCLE)
        # The last span ends with the run, and is reported like the others.
        seconds = args.minutes * 60
        try:
            for found in paced(loadgen, fep.port, CYCLE, script, seconds, args.rate, args.every):
                spans.append(found)
                minute = min(len(spans) * args.every / 60, args.minutes)
                looks.append(look(fep.pid, minute))
                print(_row(found, looks[-1], looks[-2], args.every), flush=True)
        except RuntimeError:
            print(fep.log_end(), file=sys.stderr)
            raise
        stored = fep.stored(CYCLE)
    begun = round((seconds + WARM_UP_SECONDS) * args.rate)
    return {
        "bench": "soak",
        "sync": args.sync,
        "load_average": round(load_average, 2),
        "minutes": args.minutes,
        "asked_rate": args.rate,
        "rate": round(statistics.mean(one.rate for one in spans), 1),
        "p99_ms": round(statistics.median(one.p99_ms for one in spans), 2),
        "max_ms": round(max(one.max_ms for one in spans), 1),
        "ended": stored,
        "of": begun,
        "rss_first_mb": round(looks[1].rss_mb, 1),
        "rss_last_mb": round(looks[-1].rss_mb, 1),
        "rss_mb_an_hour": round(slope(looks[1:]), 1),
        "fds_first": looks[1].fds,
        "fds_last": looks[-1].fds,
        "threads_max": max(one.threads for one in looks),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="default 10")
    parser.add_argument("--rate", type=float, default=500.0, help="cycles a second; default 500")
    parser.add_argument("--every", type=float, default=60.0, help="seconds of a span; default 60")
    parser.add_argument("--sync", choices=SYNC_MODES, default="disk", help="default disk")
    parser.add_argument("--directory", type=Path, help="default /var/tmp, with the shim /dev/shm")
    print(json.dumps(main(parser.parse_args())))
