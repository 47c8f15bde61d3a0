"""``fep demo`` as a process of its own, watched while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import attrs

from tests.system.processes import Listener, Process, descendants, listeners

DEMO_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.1
ROOT = Path(__file__).resolve().parent.parent.parent


@attrs.define
class DemoRun:
    """One run, and what was seen of it."""

    process: subprocess.Popen[bytes]
    _file: IO[bytes]
    listeners: set[Listener] = attrs.Factory(set)
    """Everything that listened at any moment that was looked at."""
    processes: set[Process] = attrs.Factory(set)
    """Every process of it that was ever seen, itself included."""

    def look(self) -> None:
        """Note the processes and listening sockets of this moment."""
        for one in descendants(self.process.pid):
            self.processes.add(one)
            self.listeners.update(listeners(one.pid))

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Look again and again until the condition holds or the demo has ended.

        Raises:
            TimeoutError: neither came.
        """
        limit = time.monotonic() + DEMO_SECONDS_MAX
        while self.process.poll() is None and not until():
            if time.monotonic() > limit:
                msg = f"the demo did not get there: {self.output[-3000:]}"
                raise TimeoutError(msg)
            self.look()
            time.sleep(LOOK_SECONDS)

    @property
    def output(self) -> str:
        """What it has printed so far, on both streams."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode()

    @property
    def tally(self) -> dict[str, Any]:
        """The figures of the last line, which programs read."""
        head, _, figures = self.output.splitlines()[-1].partition("{")
        assert head == "demo: ok ", self.output[-3000:]
        found: dict[str, Any] = json.loads("{" + figures)
        return found

    @property
    def left_behind(self) -> list[Process]:
        """Those of its processes that live still."""
        return [one for one in self.processes if one.is_running]

    def end(self) -> None:
        """End whatever of it lives, also what it left behind."""
        if self.process.poll() is None:
            self.look()
        for one in self.left_behind:
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def demo(*arguments: str) -> Iterator[DemoRun]:
    """Start the demo, in a process group of its own, as a terminal does."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fep.daemon.main", "demo", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        run = DemoRun(process, output)
        try:
            yield run
        finally:
            run.end()
