"""Durable tasks: fep beside queues whose acknowledgement means the same, on the disk.

``python -m bench.queue [--sync shim1ms,disk] [--rounds N] [--seconds S] [--systems fep,redis]``.
Every measurement has a fresh server with an empty store. In a round all (system, load) pairs run in
a shuffled order, and ratios are taken inside it. What was acknowledged must be in the server's
store afterwards, and where syncs are counted it must have cost some. The last line is one JSON
object: by sync, peer and load, the median of fep's rate divided by the peer's.
``bench/README.md`` says what the loads are and what an acknowledgement means.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

import attrs

from bench.daemon import Fep
from bench.loads import LOADS, Figures, Load, build, run
from bench.peers import Beanstalkd, Postgresql, Redis, cpu_s
from bench.submit import SYNC_MODES, Sync, filesystem

SECONDS_MAX: Final = 20.0
CLIENT_CPU_MAX: Final = 0.7
"""Above it a figure is the load generator's."""
SYSTEMS: Final[Mapping[str, Callable[[], System]]] = {
    one.name: one for one in (Fep, Beanstalkd, Redis, Postgresql)
}
PEERS: Final = tuple(name for name in SYSTEMS if name != Fep.name)


class System(Protocol):
    """A queue that can be measured."""

    name: str

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int: ...

    def prepare(self, directory: Path) -> None: ...

    def supports(self, load: Load) -> bool: ...

    def start(self, directory: Path, sync: Mapping[str, str], load: Load) -> None: ...

    def stop(self) -> None: ...

    def stored(self, load: Load) -> int: ...


@attrs.frozen
class Measured:
    """One load on one system, once."""

    figures: Figures
    server_us: float
    """The server's CPU time for an operation."""
    syncs: float
    """Syncs for an operation; 0 where they are not counted."""


Round = dict[tuple[str, str], Measured]
"""By system and load."""


class Bench:
    """One run with one kind of sync, in one directory."""

    def __init__(self, mode: str, directory: Path, systems: Sequence[str]) -> None:
        # PostgreSQL runs as another user, and must come in.
        directory.chmod(0o711)
        self.sync = Sync(mode, directory)
        for one in directory.iterdir():
            one.chmod(0o666 if one.name == "syncs" else 0o755)
        self.systems = {name: SYSTEMS[name]() for name in systems}
        self._directory = directory
        self._loadgen = build("loadgen", directory)
        for system in self.systems.values():
            system.prepare(directory)

    def close(self) -> None:
        """End whatever still runs."""
        for system in self.systems.values():
            system.stop()

    def measure(self, system: System, load: Load, seconds: float) -> Measured:
        """Measure one load on a fresh server.

        Raises:
            RuntimeError: a reply was wrong, or the store does not hold what was acknowledged.
        """
        place = self._directory / f"{system.name}-{load.name}"
        place.mkdir()
        try:
            system.start(place, self.sync.environment, load)
            syncs, cpu = self.sync.count(), cpu_s(system.pid)
            figures = self._drive(system, load, seconds, place)
            syncs, cpu = self.sync.count() - syncs, cpu_s(system.pid) - cpu
            stored = system.stored(load)
        except RuntimeError as error:
            for log in (place / "log", place / "daemon.log"):
                if log.is_file():
                    print(log.read_text("utf-8")[-4000:], file=sys.stderr)
            msg = f"{system.name}, {load.name}: {error}"
            raise RuntimeError(msg) from error
        finally:
            system.stop()
            shutil.rmtree(place)
        if stored != figures.ended or (self.sync.environment and not syncs):
            msg = (
                f"{system.name}, {load.name}: {figures.ended} operations were acknowledged,"
                f" {stored} are stored, after {syncs} syncs"
            )
            raise RuntimeError(msg)
        return Measured(figures, cpu / figures.ended * 1e6, syncs / figures.ended)

    def _drive(self, system: System, load: Load, seconds: float, place: Path) -> Figures:
        if isinstance(system, Postgresql):
            return system.drive(load, seconds, place)
        assert isinstance(system, Fep | Beanstalkd | Redis)
        return run(self._loadgen, system.port, load, system.script(load), seconds)

    def round(self, loads: Sequence[Load], seconds: float, rng: random.Random) -> Round:
        """Measure every load on every system that supports it, in a shuffled order."""
        pairs = [
            (system, load)
            for system in self.systems.values()
            for load in loads
            if system.supports(load)
        ]
        rng.shuffle(pairs)
        return {
            (system.name, load.name): self.measure(system, load, seconds) for system, load in pairs
        }


def ratios(rounds: Sequence[Round], peer: str, load: str) -> list[float]:
    """Return fep's rate divided by a peer's in each round; empty where one was not measured."""
    return [
        one[Fep.name, load].figures.rate / one[peer, load].figures.rate
        for one in rounds
        if (Fep.name, load) in one and (peer, load) in one
    ]


def summary(rounds: Sequence[Round], peers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the median ratio by peer and load."""
    return {
        peer: {
            load.name: round(statistics.median(found), 3)
            for load in LOADS
            if (found := ratios(rounds, peer, load.name))
        }
        for peer in peers
    }


def _row(rounds: Sequence[Round], name: str, load: str) -> str:
    def median(figure: Callable[[Measured], float]) -> float:
        return statistics.median(figure(one[name, load]) for one in rounds)

    rates = [one[name, load].figures.rate for one in rounds]
    found = ratios(rounds, name, load) if name != Fep.name else []
    times = f"{statistics.median(found):.2f}" if found else ""
    spread = f"{min(found):.2f}-{max(found):.2f}" if found else ""
    cpu = median(lambda one: one.figures.client_cpu)
    return (
        f"{load:<12}{name:<12}{statistics.median(rates):>10,.0f}"
        f"{f'{min(rates):,.0f}-{max(rates):,.0f}':>18}{times:>9}{spread:>15}"
        f"{median(lambda one: one.figures.p50_ms):>9.2f}"
        f"{median(lambda one: one.figures.p99_ms):>9.2f}"
        f"{cpu:>8.0%}{'!' if cpu > CLIENT_CPU_MAX else ' '}"
        f"{median(lambda one: one.server_us):>10.1f}{median(lambda one: one.syncs):>9.3f}"
    )


def table(rounds: Sequence[Round], systems: Sequence[str], loads: Sequence[Load]) -> str:
    """Return the medians as text; ``!`` marks a figure that is the client's."""
    head = (
        f"{'load':<12}{'system':<12}{'a second':>10}{'min-max':>18}{'fep to it':>9}{'min-max':>15}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'client':>8} {'server us':>10}{'syncs':>9}"
    )
    rows = [
        _row(rounds, name, load.name)
        for load in loads
        for name in systems
        if (name, load.name) in rounds[0]
    ]
    return "\n".join([head, *rows])


def measure(
    mode: str, parent: Path, systems: Sequence[str], loads: Sequence[Load], args: argparse.Namespace
) -> list[Round]:
    """Run all rounds with one kind of sync, and print the table."""
    rng = random.Random(args.seed)
    sync_ms: list[float] = []
    rounds: list[Round] = []
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="fep-bench-", dir=parent))
        )
        kind = filesystem(directory)
        if mode == "disk" and kind in ("tmpfs", "ramfs"):
            msg = f"{parent} is on {kind}, which has no disk; choose another with --directory"
            raise SystemExit(msg)
        bench = Bench(mode, directory, systems)
        stack.callback(bench.close)
        for _ in range(args.rounds):
            sync_ms += bench.sync.probe_ms()
            rounds.append(bench.round(loads, args.seconds, rng))
    print(
        f"sync: {mode} on {kind}, p50 {statistics.median(sync_ms):.3f} ms,"
        f" max {max(sync_ms):.1f}; {args.rounds} rounds of {args.seconds:g} s, seed {args.seed},"
        f" load average now {os.getloadavg()[0]:.2f}"
    )
    print("cycle: the bank answers at once (bench/bank.c), a balance, nothing is signed")
    print(table(rounds, systems, loads), flush=True)
    return rounds


def main(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure with every kind of sync that was asked for; return the ratios."""
    peers = [name for name in args.systems if name != Fep.name]
    found = {}
    for mode in args.sync:
        place = args.directory or Path("/var/tmp" if mode == "disk" else "/dev/shm")
        rounds = measure(mode, place, args.systems, args.loads, args)
        found[mode] = summary(rounds, peers)
    return found


def _chosen(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            msg = f"no {what} {unknown[0]!r}; there are: {', '.join(known)}"
            raise argparse.ArgumentTypeError(msg)
        return names

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sync", type=_chosen(SYNC_MODES, "sync"), help="shim1ms,disk by default")
    add("--rounds", type=int, help="default 5")
    add("--seconds", type=float, help="of each measurement; default 0.7")
    add(
        "--systems", type=_chosen([*SYSTEMS], "system"), default=[*SYSTEMS],
        help=f"{','.join(SYSTEMS)} by default",
    )  # fmt: skip
    names = [load.name for load in LOADS]
    add("--loads", type=_chosen(names, "load"), default=names, help="all by default")
    add("--quick", action="store_true", help="one round of 0.5 s with the shim alone")
    add("--directory", type=Path, help="of the stores; default /var/tmp, with the shim /dev/shm")
    add("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    # PostgreSQL's programs run as another user, and read what is written here.
    os.umask(0o022)
    given = _parser().parse_args()
    quick = given.quick
    given.sync = given.sync or (["shim1ms"] if quick else ["shim1ms", "disk"])
    given.rounds = given.rounds or (1 if quick else 5)
    given.seconds = given.seconds or (0.5 if quick else 0.7)
    given.loads = [load for load in LOADS if load.name in given.loads]
    if not 0 < given.seconds <= SECONDS_MAX or given.rounds < 1:
        _parser().error(f"--seconds above 0 and at most {SECONDS_MAX:g}, --rounds 1 or more")
    print(json.dumps(main(given)))
