"""What a machine allows: a container may forbid to mount or to trace, or have no libfaketime.

What it forbids is found out by doing it once, so that a campaign can say which of its faults it
could not do, and why.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Final

from fep.sandbox.postgres import PROGRAMS, USER
from tests.crash.processes import attach, clock_environment, detach

OWN_NAMESPACE: Final = ("unshare", "--mount", "--propagation", "private")
PROBE_SECONDS_MAX: Final = 30.0
PROBE_DAYS: Final = 40


class Means(StrEnum):
    """What some faults are done with."""

    TMPFS = "tmpfs"
    """A mount namespace of a lane's own, and a small file system in it."""
    STRACE = "strace"
    FAKETIME = "libfaketime"
    POSTGRES = "postgresql"


def missing() -> dict[Means, str]:
    """Return what can't be used here, with the reason; empty where all can be."""
    probes = {
        Means.TMPFS: _mount_fault,
        Means.STRACE: _trace_fault,
        Means.FAKETIME: _clock_fault,
        Means.POSTGRES: _server_fault,
    }
    found = {}
    for means, probe in probes.items():
        try:
            fault = probe()
        except OSError as error:
            fault = str(error)
        if fault:
            found[means] = fault
    return found


def mount(directory: Path, size: int, mode: str = "700") -> list[str]:
    """Return the command that mounts a file system of so many bytes in memory."""
    options = f"size={size},mode={mode}"
    return ["mount", "-t", "tmpfs", "-o", options, "fep-crash", str(directory)]


def _mount_fault() -> str:
    with tempfile.TemporaryDirectory(prefix="fep-crash-") as directory:
        return _fault([*OWN_NAMESPACE, *mount(Path(directory), 1 << 20)])


def _trace_fault() -> str:
    """Attach to a process that is not the tracer's own, as in a round."""
    if shutil.which("strace") is None:
        return "it is not installed"
    with tempfile.TemporaryDirectory(prefix="fep-crash-") as directory:
        trace = Path(directory) / "trace"
        with (
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as traced,
            attach(traced.pid, trace, "fdatasync:error=EIO") as tracer,
        ):
            if (status := tracer.poll()) is None:
                detach(traced.pid)
                return ""
            assert traced.stdin is not None
            traced.stdin.close()
            return f"strace may not attach to a process (status {status})"


def _clock_fault() -> str:
    with tempfile.TemporaryDirectory(prefix="fep-crash-") as directory:
        file = Path(directory) / "clock"
        file.write_text(f"+{PROBE_DAYS}d\n", "ascii")
        program = (
            "import sys, time\n"
            "moved = time.time() - float(sys.argv[1])\n"
            f"sys.exit(not {PROBE_DAYS - 1} < moved / 86400 < {PROBE_DAYS + 1})"
        )
        command = [sys.executable, "-c", program, str(time.time())]
        return _fault(command, environment=clock_environment(file))


def _server_fault() -> str:
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            return f"there is no user {USER}, and it refuses to run as root"
    return _fault([str(PROGRAMS / "initdb"), "--version"]) or _fault(
        [str(PROGRAMS / "postgres"), "--version"]
    )


def _fault(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env=None if environment is None else os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS_MAX,
        check=False,
    )
    if done.returncode == 0:
        return ""
    return done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
