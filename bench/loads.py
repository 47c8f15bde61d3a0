"""Builds and runs the load generator, ``bench/loadgen.c``, whose head says what a script is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

HERE: Final = Path(__file__).parent
WARM_UP_SECONDS: Final = 0.15
STALL_SECONDS_MAX: Final = 60.0
"""Beyond a load's own seconds; the load generator gives up earlier, and says why."""
_WARNINGS: Final = ("-Wall", "-Wextra", "-Werror")


@attrs.frozen
class Load:
    """What is done, and over how many connections."""

    name: str
    connections: int
    window: int
    """Operations that one connection has under way."""

    @property
    def is_cycle(self) -> bool:
        """True of a task's whole way, False of its admission alone."""
        return self.name.startswith("cycle")


LOADS: Final = (
    Load("put_1x1", 1, 1),
    Load("put_1x64", 1, 64),
    Load("put_64x1", 64, 1),
    Load("put_64x16", 64, 16),
    Load("cycle_64x1", 64, 1),
)


@attrs.frozen
class Figures:
    """What one load gave."""

    rate: float
    """Operations a second."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu: float
    """Of one core, of the load generator."""
    counted: int
    ended: int
    """All of them, also those before and after the clock ran."""


def build(name: str, directory: Path) -> Path:
    """Return the program of ``bench/NAME.c``, built there."""
    program = directory / name
    source = HERE / f"{name}.c"
    subprocess.run(["gcc", "-O2", *_WARNINGS, "-o", str(program), str(source)], check=True)
    return program


def run(program: Path, port: int, load: Load, script: Sequence[str], seconds: float) -> Figures:
    """Put the load on a server and return what it gave.

    Raises:
        RuntimeError: a reply was not the one that was expected, or none came.
    """
    arguments = [port, load.connections, load.window, WARM_UP_SECONDS, seconds, 0, 0]
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        input="".join(f"{line}\n" for line in script),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + STALL_SECONDS_MAX,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"the load generator ended {done.returncode}")
    found, last = map(json.loads, done.stdout.splitlines())
    return Figures(**found | last)


def paced(
    program: Path,
    port: int,
    load: Load,
    script: Sequence[str],
    seconds: float,
    rate: float,
    every_s: float,
) -> Iterator[Figures]:
    """Begin so many operations a second, and yield the figures of each span when it is over.

    Raises:
        RuntimeError: as ``run``.
    """
    arguments = [port, load.connections, load.window, WARM_UP_SECONDS, seconds, rate, every_s]
    with subprocess.Popen(
        [str(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write("".join(f"{line}\n" for line in script))
            process.stdin.close()
            for line in process.stdout:
                found = json.loads(line)
                if "rate" in found:
                    yield Figures(**found)
            if process.wait() != 0:
                raise RuntimeError(process.stderr.read().strip())
        finally:
            process.kill()
