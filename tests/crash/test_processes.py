"""What the campaign does to a process hits what it is meant for, and nothing beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.crash.processes import injection

PROGRAM = """
import os, sys
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDWR)
    for number in range(2):
        try:
            os.pread(fd, 1, 0)
            print("read", end=" ")
        except OSError as error:
            print(error.strerror, end=" ")
"""


def test_an_error_hits_the_named_file_only_and_only_its_calls_count(tmp_path: Path) -> None:
    """Else the second read of a starting daemon would be one of its C library."""
    store, other = tmp_path / "store", tmp_path / "other"
    for file in (store, other):
        file.write_bytes(b"x")
    strace = injection(tmp_path / "trace", "pread64:error=EIO:when=2", [store])
    told = subprocess.run(
        [*strace, sys.executable, "-c", PROGRAM, other, store],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "read read read Input/output error "
    assert (tmp_path / "trace").read_text("utf-8").count("(INJECTED)") == 1
