"""``fep`` commands forked from a process that has imported everything: fifty starts cost one.

What is forked is a process like any other, and kill -9 ends it like any other; what it lacks is
half a second of imports. The server they come from ends with the test session.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from fep.daemon import main as command

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "fep.daemon.app",
        "fep.sandbox.host",
        "bank_adapters.pingan_b2bi.host",
        "bank_adapters.cmb_xml.host",
        __name__,
    ]
)


Entry = Callable[[list[str], str, Connection | None], None]
"""Runs in the child with its arguments, its log file, and a pipe for its output."""


class Forked:
    """One forked command, to be used like a ``subprocess.Popen``; see ``fep.sandbox.scene``."""

    def __init__(
        self,
        arguments: Sequence[str],
        log_file: Path,
        *,
        pipe: bool,
        environment: Mapping[str, str],
        entry: Entry | None = None,
    ) -> None:
        assert not environment
        self.stdout: IO[Any] | None = None
        theirs: Connection | None = None
        if pipe:
            ours, theirs = CONTEXT.Pipe(duplex=False)
            self.stdout = os.fdopen(os.dup(ours.fileno()), "rb")
            ours.close()
        self._process = CONTEXT.Process(
            target=entry or run_command,
            args=(list(arguments), str(log_file), theirs),
            daemon=True,
        )
        self._process.start()
        if theirs is not None:
            theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("fep", timeout or 0.0)
        return status

    def send_signal(self, sig: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(arguments: list[str], log_file: str, output: Connection | None) -> None:
    """Be a ``fep`` command from here on; what a child does unless it is given another entry."""
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log if output is None else output.fileno(), 1)
    os.dup2(log, 2)
    os.close(log)
    if output is not None:
        output.close()
    sys.exit(command.main(arguments))
