"""Scenes for whole-system tests: the daemon, its banks and keys as processes of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fep.domain.money import Cny
from fep.sandbox.scene import BANKS, Scene
from fep.sandbox.ukey.rig import UkeyRig
from tests.system.demo_run import DemoRun, demo


@contextmanager
def _short_directory() -> Iterator[Path]:
    """Make a folder with a short path, since Unix sockets have room for 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fep-t-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path, gone after the test."""
    with _short_directory() as path:
        yield path


@pytest.fixture(scope="module")
def module_directory() -> Iterator[Path]:
    """One for all tests of a module."""
    with _short_directory() as path:
        yield path


@pytest.fixture(scope="module")
def running() -> Iterator[Scene]:
    """Two banks of two kinds with software keys, and the daemon, ready; shared by a module."""
    with (
        _short_directory() as path,
        Scene(path, banks=BANKS[:2], accounts_per_bank=4, heartbeat_s=0.5) as scene,
    ):
        scene.start_hosts()
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene


@pytest.fixture(scope="module")
def rig() -> Iterator[UkeyRig]:
    """A private pcscd with a card for each of three banks, and a spare card that fits none."""
    with (
        _short_directory() as path,
        UkeyRig.start(path, slots=3, common_names=["one", "two", "three", "spare"]) as rig,
    ):
        yield rig


@pytest.fixture
def keyed(rig: UkeyRig, directory: Path) -> Iterator[Scene]:
    """Three banks whose keys are cards behind a real pcscd; every account has much to sweep."""
    rig.start_pcscd()
    rig.reset()
    with Scene(directory, banks=BANKS[:3], accounts_per_bank=6, rig=rig) as scene:
        scene.thresholds = dict.fromkeys(scene.thresholds, Cny(1_000_00))
        scene.start_hosts(log_level="debug")
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene


@pytest.fixture(scope="session")
def demo_run() -> Iterator[DemoRun]:
    """One whole ``fep demo`` with cards, watched while it ran; shared by the session."""
    with _short_directory() as path, demo("--directory", str(path / "demo")) as run:
        run.watch()
        yield run
