"""What fep says may find no room and no reader; what it did is then still told apart."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fep.sandbox import scene as scenes
from fep.sandbox.scene import BANKS, Running, Scene
from fep.store import files
from tests.daemon.files import GOOD, written
from tests.store.made import EVERY, make

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 60.0
LOST = "fep: done, but what was to be said could not be written: No space left on device\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a folder with a configuration, and a store with a task in each state."""
    written(tmp_path, GOOD)
    (tmp_path / "state").mkdir()
    make(tmp_path / "state" / files.STORE_FILE, EVERY[:6], EVERY[6:])
    return tmp_path


def ran(directory: Path, shell: str, *words: str) -> tuple[int, str]:
    """Run a command with its output as the shell says; returns its status and complaints."""
    command = [sys.executable, "-m", "fep.daemon.main", *words]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {shell}', "-", *command],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return done.returncode, done.stderr


COMMANDS = {
    "--version": ("--version",),
    "check": ("check", "fep.toml"),
    "adapters": ("adapters",),
    "verify-store": ("verify-store", "--config", "fep.toml"),
    "backup": ("backup", "--config", "fep.toml", "copy.sqlite"),
    "archive": ("archive", "--config", "fep.toml", "--before", "2025-06-01", "--json"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_without_room_for_words_it_is_done_and_the_status_is_3(
    directory: Path, words: tuple[str, ...]
) -> None:
    assert ran(directory, ">/dev/full", *words) == (3, LOST)
    assert (directory / "copy.sqlite").exists() == (words[0] == "backup")


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_who_closes_the_output_wants_no_words(
    directory: Path, shell: str, words: tuple[str, ...]
) -> None:
    assert ran(directory, shell, *words) == (0, "")


def child(code: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import os\nfrom fep.control import output\n{code}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )


def test_what_is_opened_later_gets_no_number_that_is_printed_into() -> None:
    code = "output.open_closed(); os._exit(os.open(os.devnull, os.O_RDONLY))"
    closed = partial(os.closerange, 0, 3)
    with child(code, preexec_fn=closed) as process:
        assert process.wait(SECONDS_MAX) == 3


def test_a_pipe_that_somebody_made_non_blocking_takes_all() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    room = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    code = f"raise SystemExit(output.run(lambda: print('x' * {2 * room}) or 0, print))"
    with child(code, stdout=write) as process:
        os.close(write)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        with os.fdopen(read, "rb") as pipe:
            assert len(pipe.read()) == 2 * room + 1
        assert process.wait(SECONDS_MAX) == 0


def test_what_failed_stays_failed_without_room_for_words(directory: Path) -> None:
    words = ("verify-store", "fep.toml")
    status, told = ran(directory, ">/dev/full", *words)
    assert (status, told.split(": ")[:2]) == (1, ["fep", "STORE_UNREADABLE"])
    assert ran(directory, ">/dev/full 2>&1", *words) == (1, "")
    assert ran(directory, "2>/dev/full", *words) == (1, "")


def test_without_a_reader_it_ends_quietly_with_141(directory: Path) -> None:
    assert ran(directory, "", "backup", "--config", "fep.toml", "copy.sqlite")[0] == 0
    for words in (
        ("adapters",),
        ("--help",),
        ("verify-store", "--config", "fep.toml"),
        ("replay", "--config", "fep.toml", "--all"),
        ("restore", "--config", "fep.toml", "copy.sqlite"),
    ):
        read, write = os.pipe()
        os.close(read)
        try:
            command = [sys.executable, "-m", "fep.daemon.main", *words]
            done = subprocess.run(
                command,
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=write,
                stderr=subprocess.PIPE,
                text=True,
                timeout=SECONDS_MAX,
                check=False,
            )
        finally:
            os.close(write)
        assert (done.returncode, done.stderr) == (141, ""), words


@pytest.mark.parametrize("shell", [">&- 2>&-", ">/dev/full 2>&1"])
def test_a_daemon_whose_log_goes_nowhere_serves_and_ends_well(shell: str) -> None:
    def launch(
        arguments: Sequence[str], log_file: Path, *, pipe: bool, environment: Mapping[str, str]
    ) -> Running:
        if arguments[0] != "run":
            return scenes.launch(arguments, log_file, pipe=pipe, environment=environment)
        command = [sys.executable, "-m", "fep.daemon.main", *arguments]
        return subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {shell}', "-", *command],
            stdin=subprocess.DEVNULL,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        )

    with (
        tempfile.TemporaryDirectory(prefix="fep-t-") as directory,
        Scene(Path(directory), banks=BANKS[:1], start_command=launch) as scene,
    ):
        scene.start_hosts()
        scene.write_config(scene.configuration())
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        assert scene.stop_daemon() == 0
