"""What ``test_upkeep.py`` runs on a small disk of its own: ``python -m tests.daemon.upkeep_child DIR``.

Fills the disk beside a store, runs the commands, makes room, runs them again, and prints what each
answered as one JSON object.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fep.daemon.main import main
from fep.daemon.verify import verify
from fep.store.files import STORE_FILE
from fep.tasks.state import State
from tests.daemon.files import GOOD, written
from tests.store.made import Made, make

TASKS = 600
LEFT_BYTES = 100_000
"""Of the disk: enough for a lock file and SQLite's own, too little for a batch or a copy."""


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
        file.truncate(file.tell() - LEFT_BYTES)
    yield
    ballast.unlink()


def run(*words: str) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        status = main(words)
    return status, told.getvalue()


def seen(directory: Path) -> dict[str, Any]:
    (directory / "state").mkdir()
    config = str(written(directory, GOOD))
    store = directory / "state" / STORE_FILE
    make(store, [Made(f"T{n}", State.SUCCEEDED) for n in range(TASKS)])
    found: dict[str, Any] = {}
    commands = {
        "archive": ("archive", "--config", config, "--before", "2025-06-01"),
        "backup": ("backup", "--config", config, str(directory / "copy.sqlite")),
    }
    for name, words in commands.items():
        with full(directory):
            found[f"{name} when full"] = run(*words)
            found[f"sound after {name}"] = verify(store).sound
            found[f"left by {name}"] = sorted(one.name for one in directory.iterdir())
        found[name] = run(*words)
    found["findings"] = [str(one) for one in verify(store).findings]
    found["archived"] = verify(store).checks["archive chain"].looked_at
    return found


if __name__ == "__main__":
    print(json.dumps(seen(Path(sys.argv[1]))))
