"""A directory, a key and the logs for a daemon in the test's process; no connection may crash."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from fep.sandbox.scene import make_software_key
from tests.control.rig import LONG_HEARTBEAT_S, Config, Logs, Rig, running


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A software key, its certificate beside it."""
    return make_software_key(tmp_path_factory.mktemp("key"), "ukey").with_suffix(".pem")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path (Unix sockets have room for 107 bytes), open to other users."""
    path = Path(tempfile.mkdtemp(prefix="fep-c-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What is logged; a handler that crashed or a lane that did fails the test."""
    with Logs().configured() as found:
        yield found
    defects = [*found.named("connection.crashed"), *found.named("lane.crashed")]
    assert not defects, "\n".join(str(one.get("exception", one)) for one in defects)


class Start(Protocol):
    """Runs a daemon for a block; see ``running``."""

    def __call__(
        self,
        *,
        bank: bool = False,
        heartbeat_s: float = LONG_HEARTBEAT_S,
        change: Callable[[Config], None] | None = None,
        faults: str = "",
    ) -> AbstractAsyncContextManager[Rig]: ...


@pytest.fixture
def start(directory: Path, key: Path, logs: Logs) -> Start:
    """Start a daemon in this test's directory; a second time it is a restart on the same store."""
    return partial(running, directory, key, logs)


__all__ = ["Config", "Start"]
