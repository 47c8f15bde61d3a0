"""A start that is refused says why, in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from fep.store import files
from tests.daemon.files import written
from tests.rights import on_read_only_disk, without_rights
from tests.store.made import EVERY, make

pytestmark = pytest.mark.req("FEP-23")

ROOT = Path(__file__).resolve().parents[2]
REFUSED_SECONDS_MAX = 60.0

CONFIG = """\
mode = "demo"
state_dir = "above/state"
enterprise = { id = "E0001", fep_number = "FEP-01" }
control = { socket = "control.sock" }
"""


def not_writable(state: Path) -> list[str]:
    state.mkdir(parents=True)
    state.chmod(0o555)
    return without_rights()


def lock_of_another_owner(state: Path) -> list[str]:
    state.mkdir(parents=True)
    (state / files.LOCK_FILE).touch(0o444)
    return without_rights()


def store_of_another_owner(state: Path) -> list[str]:
    state.mkdir(parents=True)
    make(state / files.STORE_FILE, EVERY).chmod(0o444)
    return without_rights()


def a_file(state: Path) -> list[str]:
    state.parent.mkdir()
    state.touch()
    return []


def below_a_file(state: Path) -> list[str]:
    state.parent.touch()
    return []


def not_to_be_made(state: Path) -> list[str]:
    state.parent.mkdir()
    state.parent.chmod(0o555)
    return without_rights()


def read_only(state: Path) -> list[str]:
    state.mkdir(parents=True)
    return on_read_only_disk(state)


UNUSABLE = "{state}: the state directory can't be used: "
LOCK = "({state}/fep.lock)"


@pytest.mark.parametrize(
    ("prepared", "told"),
    [
        (not_writable, f"{UNUSABLE}Permission denied {LOCK}"),
        (lock_of_another_owner, f"{UNUSABLE}Permission denied {LOCK}"),
        (
            store_of_another_owner,
            "the store can't be opened: attempt to write a readonly database (SQLITE_READONLY)",
        ),
        (a_file, f"{UNUSABLE}it is no folder"),
        (below_a_file, f"{UNUSABLE}Not a directory"),
        (not_to_be_made, f"{UNUSABLE}Permission denied"),
        (read_only, f"{UNUSABLE}Read-only file system {LOCK}"),
    ],
)
def test_a_state_directory_that_can_not_be_used_is_told_in_a_line(
    tmp_path: Path, prepared: Callable[[Path], list[str]], told: str
) -> None:
    state = tmp_path / "above" / "state"
    before = prepared(state)
    config = str(written(tmp_path, CONFIG))
    done = subprocess.run(
        [*before, sys.executable, "-m", "fep.daemon.main", "run", "--config", config],
        cwd=ROOT,
        capture_output=True,
        timeout=REFUSED_SECONDS_MAX,
        check=False,
    )
    reason = told.format(state=state)
    assert done.stderr.decode() == f"fep: {reason}\n"
    assert done.returncode == 1
    last = orjson.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("daemon.failed", reason)
