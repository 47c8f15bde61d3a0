"""Scenes for whole-system tests: the daemon, its banks and keys as processes of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fep.sandbox.scene import BANKS, Scene


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: Unix sockets have room for 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fep-t-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def running() -> Iterator[Scene]:
    """Two banks of two kinds with software keys, and the daemon, ready; shared by a module."""
    path = Path(tempfile.mkdtemp(prefix="fep-t-"))
    with Scene(path, banks=BANKS[:2], accounts_per_bank=4) as scene:
        scene.start_hosts()
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene
    shutil.rmtree(path)
