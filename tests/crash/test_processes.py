"""What the campaign asks the system about its processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.crash.processes import holder

SECONDS_MAX = 20.0

TRACER = """
import ctypes, signal, sys
PTRACE_SEIZE = 0x4206
if ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) != 0:
    sys.exit("it may not be traced")
print("traced", flush=True)
signal.pause()
"""
"""A tracer that takes no notice of what its process does, as an strace that hangs."""


def test_a_tracer_that_hangs_is_found_to_hold_the_dead_until_it_is_killed() -> None:
    traced = subprocess.Popen(["sleep", "1000"])
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACER, str(traced.pid)], stdout=subprocess.PIPE, text=True
    )
    stdout = tracer.stdout
    assert stdout is not None
    try:
        assert stdout.readline() == "traced\n"
        assert holder(traced.pid) == 0
        traced.kill()
        until = time.monotonic() + SECONDS_MAX
        while holder(traced.pid) != tracer.pid:
            assert time.monotonic() < until, "a dead process that is held was not found"
            time.sleep(0.001)
        # Nobody else is told of the end.
        assert traced.poll() is None
        tracer.kill()
        assert traced.wait(SECONDS_MAX) == -signal.SIGKILL
        assert holder(traced.pid) == 0
    finally:
        for process in (tracer, traced):
            process.kill()
            process.wait()
        stdout.close()
