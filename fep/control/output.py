"""Standard output that may fail without the work: ``fep`` and ``fepctl`` say the two apart.

A task that was taken is not "not done" because the disk of the log that was to tell it is full:
who believes that gives it a new id, and pays twice.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HIGHEST_STANDARD: Final = 2
UNSAID: Final = 3
"""Exit status: done, but what was to be said could not be written."""
BROKEN_PIPE: Final = 141
"""The exit status that shells know for a reader that went away."""


class _Descriptor(io.FileIO):
    """Remembers that it could not write, and takes what comes after that for written."""

    lost: OSError | None = None
    is_read_along: bool = False
    """Whether there is no use in going on when its reader went away."""

    def write(self, data: ReadableBuffer, /) -> int:
        if self.lost is None:
            try:
                return self._write_in_time(data)
            except OSError as error:
                self.lost = error
                if self.is_read_along and isinstance(error, BrokenPipeError):
                    raise
        return memoryview(data).nbytes

    def _write_in_time(self, data: ReadableBuffer) -> int:
        while (written := super().write(data)) is None:
            # Somebody else made it non-blocking, and it is full for the moment.
            select.select([], [self], [])
        return written


def open_closed() -> None:
    """Open what the shell closed (``>&-``), so that whoever prints need not ask."""
    # Never closed: a store or a socket that got the number 1 would be printed into.
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= HIGHEST_STANDARD:
        pass
    os.close(nowhere)
    for number, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


def close_log() -> None:
    """Write what the log's buffer still has; what no file takes must not change how it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_lost() -> bool:
    """Say whether what is printed now goes nowhere: who prints without an end can stop."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Descriptor) and raw.lost is not None


def run(command: Callable[[], int], complain: Callable[[str], object]) -> int:
    """Run a command to its end, whether or not anybody can be told of it.

    Args:
        command: prints to ``sys.stdout``, and returns its exit status.
        complain: told when what was printed is lost; what ``sys.stderr`` can't take ends nothing.

    Returns:
        The command's exit status. Where what it printed is lost, ``UNSAID`` in the place of 0; and
        ``BROKEN_PIPE`` where its reader went away.
    """
    open_closed()
    stdout, stderr = _descriptor(sys.stdout), _descriptor(sys.stderr)
    if stdout is None:
        return command()
    stdout.is_read_along = True
    before = sys.stdout, sys.stderr
    sys.stdout = _text(stdout, sys.stdout)
    if stderr is not None:
        sys.stderr = _text(stderr, sys.stderr)
    try:
        status = _run(command, stdout)
        if stdout.lost is None:
            return status
        if isinstance(stdout.lost, BrokenPipeError):
            return BROKEN_PIPE
        words = f"what was to be said could not be written: {stdout.lost.strerror}"
        complain(words if status else f"done, but {words}")
        return status or UNSAID
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _run(command: Callable[[], int], stdout: _Descriptor) -> int:
    try:
        try:
            status = command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if stdout.lost is None:
            raise
        return BROKEN_PIPE
    except SystemExit as end:  # of the parser: help, or wrong usage
        if stdout.lost is None or end.code:
            raise
        return 0
    return status


def _descriptor(stream: TextIO) -> _Descriptor | None:
    """Return a descriptor for the one behind a stream; None where that is no file, as in tests."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is not io.FileIO:
        return None
    stream.flush()
    return _Descriptor(raw.fileno(), "w", closefd=False)


def _text(raw: _Descriptor, like: TextIO) -> io.TextIOWrapper:
    assert isinstance(like, io.TextIOWrapper)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        like.encoding,
        like.errors,
        line_buffering=like.line_buffering or like.write_through,
    )
