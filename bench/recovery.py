"""A full queue: what a million waiting tasks cost in memory, at a restart, and at a submit.

``python -m bench.recovery [--tasks N] [--rounds N] [--sync shim1ms|disk]``. The tasks are written
by the store's own code into a fresh file, by several clients and without bodies, as a finance
system leaves them whose bank is closed. Then the daemon is started on it. The last line is one
JSON object; ``bench/README.md`` says what its members mean.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from bench.daemon import BANK, Fep
from bench.loads import LOADS, Figures, Load, build, run
from bench.peers import cpu_s
from bench.submit import SYNC_MODES, Sync, filesystem
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, ClientName, TaskId
from fep.domain.order import PRIORITY_DEFAULT, Kind
from fep.store.database import Store
from fep.store.files import STORE_FILE
from fep.tasks import store as rows
from fep.tasks.state import State
from fep.tasks.store import NewTask
from fep.tasks.task import Task

CLIENTS: Final = 16
GROUP: Final = 5000
AGE: Final = dt.timedelta(days=1)
DISPATCH_SECONDS_MAX: Final = 120.0
PUT: Final = next(load for load in LOADS if load.name == "put_64x1")
CYCLE: Final = next(load for load in LOADS if load.is_cycle)
MEGABYTE: Final = 1024 * 1024


# -- a store that is full -----------------------------------------------------------------------


def _tasks(count: int) -> Iterator[Task]:
    """Yield tasks that came one after another, a thousand a second: no two share their times."""
    now = SystemClock().now()
    for seq in range(1, count + 1):
        at = now - dt.timedelta(milliseconds=count - seq)
        yield Task(
            seq,
            TaskId(f"WAITS-{seq:010d}"),
            ClientName(f"erp-{seq % CLIENTS}"),
            BankName(BANK.name),
            Kind.BALANCE,
            PRIORITY_DEFAULT,
            State.QUEUED,
            at,
            at + AGE,
        )


async def _fill(path: Path, count: int) -> None:
    store = Store.at(path)
    tasks = _tasks(count)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for done in range(0, count, GROUP):
            group = [NewTask(next(tasks), None) for _ in range(min(GROUP, count - done))]
            await store.write(partial(_insert, group))
        nursery.cancel_scope.cancel()


def _insert(group: list[NewTask], connection: Any) -> None:
    rows.insert(connection, group, "bench")


# -- the daemon on it ---------------------------------------------------------------------------


def memory_mb(pid: int, name: str = "VmRSS") -> float:
    """Return a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _first_dispatch(fep: Fep) -> None:
    """Be a finance system that connects as soon as it can, and wait for the first ``task.fetch``.

    Raises:
        RuntimeError: none came.
    """
    limit = time.monotonic() + DISPATCH_SECONDS_MAX
    token = fep.scene.token.read_text("utf-8").strip()
    params = {"client": "erp-0", "token": token}
    line = {"jsonrpc": "2.0", "id": 0, "method": "session.open", "params": params}
    while time.monotonic() < limit:
        try:
            sock = socket.create_connection(("127.0.0.1", fep.port), DISPATCH_SECONDS_MAX)
        except OSError:
            time.sleep(0.01)
            continue
        with sock:
            sock.sendall(json.dumps(line).encode() + b"\n")
            said = b""
            while b'"task.fetch"' not in said:
                received = sock.recv(65_536)
                if not received:
                    raise RuntimeError(said.decode())
                said += received
            return
    msg = f"no task was asked for within {DISPATCH_SECONDS_MAX:g} s"
    raise RuntimeError(msg)


@attrs.frozen
class Restarted:
    """What a start with all tasks waiting took."""

    dispatch_s: float
    """From the start of the process to the first ``task.fetch`` at a client."""
    cpu_s: float
    """The daemon's CPU time in that, which a busy machine changes little."""
    rss_mb: float
    peak_mb: float


class Bench:
    """One run, in one directory."""

    def __init__(self, mode: str, directory: Path, count: int) -> None:
        self.sync = Sync(mode, directory)
        self._count = count
        self._loadgen = build("loadgen", directory)
        self._fep = Fep()
        self._fep.prepare(directory)
        self._directory = directory
        self._changes = {"tasks": {"queue_max": 2 * count + 1_000_000}}
        self.full_store = directory / "full" / "state" / STORE_FILE

    def close(self) -> None:
        """End whatever still runs."""
        self._fep.stop()

    def fill(self) -> float:
        """Write the tasks and return how many a second were."""
        self.full_store.parent.mkdir(parents=True)
        began = time.monotonic()
        trio.run(_fill, self.full_store, self._count)
        return self._count / (time.monotonic() - began)

    def restart(self) -> Restarted:
        """Start it with the bank there, and wait until a client is asked for a body."""
        fep = self._fep
        began = time.monotonic()
        fep.start(
            self._directory / "full",
            self.sync.environment,
            CYCLE,
            self._changes,
            wait=False,
        )
        try:
            _first_dispatch(fep)
            took = time.monotonic() - began
            peak = memory_mb(fep.pid, "VmHWM")
            return Restarted(took, cpu_s(fep.pid), memory_mb(fep.pid), peak)
        finally:
            fep.stop()

    def submits(self, place: str, load: Load, seconds: float) -> tuple[Figures, float]:
        """Return what a load gives on this store, and the resident memory before it."""
        directory = self._directory / place
        directory.mkdir(exist_ok=True)
        self._fep.start(directory, self.sync.environment, load, self._changes)
        try:
            memory = memory_mb(self._fep.pid)
            port, script = self._fep.port, self._fep.script(load)
            return run(self._loadgen, port, load, script, seconds), memory
        except RuntimeError:
            print(self._fep.log_end(), file=sys.stderr)
            raise
        finally:
            self._fep.stop()


def main(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print what was found as it is found, return the summary."""
    place = args.directory or Path("/var/tmp" if args.sync == "disk" else "/dev/shm")
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="fep-bench-", dir=place))
        )
        bench = Bench(args.sync, directory, args.tasks)
        stack.callback(bench.close)
        print(f"sync: {args.sync} on {filesystem(directory)}; {args.tasks:,} tasks wait")
        rate = bench.fill()
        size = bench.full_store.stat().st_size / MEGABYTE
        print(f"written: {rate:,.0f} tasks a second, {size:,.0f} MB", flush=True)
        restarts = []
        for _ in range(args.rounds):
            restarts.append(bench.restart())
            one = restarts[-1]
            print(
                f"restart: first dispatch after {one.dispatch_s:.2f} s ({one.cpu_s:.2f} s of CPU),"
                f" resident {one.rss_mb:.0f} MB, at most {one.peak_mb:.0f} MB",
                flush=True,
            )
        empty, full = [], []
        for turn in range(args.rounds):
            empty.append(bench.submits(f"empty-{turn}", PUT, args.seconds))
            full.append(bench.submits("full", PUT, args.seconds))
            print(
                f"{PUT.name}: {empty[-1][0].rate:,.0f} a second into an empty queue"
                f" ({empty[-1][1]:.0f} MB), {full[-1][0].rate:,.0f} into the full one",
                flush=True,
            )
    ratios = [two.rate / one.rate for (one, _), (two, _) in zip(empty, full, strict=True)]
    resident = statistics.median(one.rss_mb for one in restarts)
    base = statistics.median(memory for _, memory in empty)
    return {
        "bench": "recovery",
        "sync": args.sync,
        "load_average": round(os.getloadavg()[0], 2),
        "tasks": args.tasks,
        "rounds": args.rounds,
        "store_mb": round(size),
        "rss_mb": round(resident),
        "rss_peak_mb": round(max(one.peak_mb for one in restarts)),
        "rss_empty_mb": round(base),
        "bytes_per_task": round((resident - base) * MEGABYTE / args.tasks),
        "dispatch_s": round(statistics.median(one.dispatch_s for one in restarts), 2),
        "dispatch_cpu_s": round(statistics.median(one.cpu_s for one in restarts), 2),
        "dispatch_max_s": round(max(one.dispatch_s for one in restarts), 2),
        "submits_empty": round(statistics.median(one.rate for one, _ in empty)),
        "submits_full": round(statistics.median(one.rate for one, _ in full)),
        "submit_ratio": round(statistics.median(ratios), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a load; default 1")
    parser.add_argument("--sync", choices=SYNC_MODES, default="shim1ms", help="default shim1ms")
    parser.add_argument("--directory", type=Path, help="default /var/tmp, with the shim /dev/shm")
    print(json.dumps(main(parser.parse_args())))
