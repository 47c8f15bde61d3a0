"""How the campaign's processes are started: forked, or executed under strace or libfaketime.

All of them end with the process that started them, whatever becomes of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from fep.sandbox import host
from fep.sandbox.scene import Running
from tests.crash import finance
from tests.crash.bank import CrashBook
from tests.crash.broken import BREAKS
from tests.crash.points import Point, die_at
from tests.system.forked import CONTEXT, Forked, run_command

LIBRARIES: Final = Path("/usr/lib")
FAKETIME: Final = "faketime/libfaketimeMT.so.1"
ATTACH_SECONDS_MAX: Final = 20.0
PR_SET_PDEATHSIG: Final = 1
WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")
"""Lets an executed program end when we do."""

CONTEXT.set_forkserver_preload(
    [
        "fep.daemon.app",
        "fep.sandbox.host",
        "bank_adapters.pingan_b2bi.host",
        "bank_adapters.cmb_xml.host",
        __name__,
    ]
)


def _enter(
    broken: str,
    point: Point | None,
    arguments: list[str],
    log_file: str,
    output: Connection | None,
) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    match arguments[0]:
        case "finance":
            log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.exit(finance.main(arguments[1:]))
        case "host":
            # The simulated banks of the campaign are worse than the product's.
            vars(host)["SqliteBook"] = CrashBook
        case _:
            BREAKS[broken]()
            if point is not None:
                die_at(point)
    run_command(arguments, log_file, output)


class Child(Forked):
    """A forked ``fep`` command or finance system.

    Args:
        arguments: of the command.
        log_file: gets all that it writes.
        pipe: give its output to ``stdout`` instead.
        environment: must be empty; what is forked has ours.
        broken: names a break of the daemon.
        point: where the daemon dies by itself.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log_file: Path,
        *,
        pipe: bool = False,
        environment: Mapping[str, str] | None = None,
        broken: str = "",
        point: Point | None = None,
    ) -> None:
        super().__init__(
            arguments,
            log_file,
            pipe=pipe,
            environment=environment or {},
            entry=partial(_enter, broken, point),
        )


def execute(
    arguments: Sequence[str],
    log_file: Path,
    *,
    wrap: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    broken: str = "",
) -> Running:
    """Start a ``fep`` command in a fresh Python; its pid is the command's also under strace.

    Args:
        arguments: of the command.
        log_file: gets all that it writes.
        wrap: what is put before it, such as ``strace -D``.
        environment: variables on top of our own.
        broken: names a break of the daemon.
    """
    program = ["tests.crash.broken", broken] if broken else ["fep.daemon.main"]
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [*WITH_US, *wrap, sys.executable, "-m", *program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | (environment or {}),
        )


def holder(pid: int) -> int:
    """Return the pid of the strace that a process which has ended is held by, 0 for none.

    A tracer that is attached while its process ends may wait for ever, and nobody else is told of
    the end until it goes.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
    return int(fields.get("TracerPid", "0")) if fields.get("State", "").startswith("Z") else 0


def clock_environment(file: Path) -> dict[str, str]:
    """Return what gives a process the wall clock of a file, such as ``+3d``; monotonic stays.

    Raises:
        FileNotFoundError: libfaketime is not installed.
    """
    library = next(LIBRARIES.glob(f"*/{FAKETIME}"), None)
    if library is None:
        msg = f"there is no {FAKETIME} below {LIBRARIES}"
        raise FileNotFoundError(msg)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Else Python's threads, which wait for each other by that clock, spin.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def injection(trace: Path, inject: str, files: Sequence[Path] = ()) -> list[str]:
    """Return strace with one injection, such as ``fdatasync:error=EIO:when=3``.

    Args:
        trace: gets what was done.
        inject: as strace wants it.
        files: only calls on these are counted and tampered with; none: on all.
    """
    calls = inject.partition(":")[0]
    # A call that is not traced is not tampered with, and nothing is said.
    return [
        "strace",
        "-f",
        "-q",
        # Of a program that it starts it would let go only when that ends.
        "--interruptible=waiting",
        "-o",
        str(trace),
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={inject}",
        *(f"--trace-path={file}" for file in files),
    ]


def attach(
    pid: int, trace: Path, inject: str, files: Sequence[Path] = ()
) -> subprocess.Popen[bytes]:
    """Attach strace to all threads of a process; returns it when it holds them."""
    process = subprocess.Popen(
        [*WITH_US, *injection(trace, inject, files), "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + ATTACH_SECONDS_MAX
    while time.monotonic() < limit and process.poll() is None:
        if _tracers(pid) == {process.pid}:
            break
        time.sleep(0.005)
    return process


def _tracers(pid: int) -> set[int]:
    """Return who traces the threads of a process; 0 is nobody."""
    found = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            text = (thread / "status").read_text("ascii", "replace")
            found.add(int(text.partition("TracerPid:")[2].split()[0]))
    return found


def detach(pid: int) -> None:
    """Let strace let go of a process, if one holds it."""
    limit = time.monotonic() + ATTACH_SECONDS_MAX
    while (tracers := _tracers(pid) - {0}) and time.monotonic() < limit:
        for tracer in tracers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(tracer, signal.SIGTERM)
        time.sleep(0.01)
