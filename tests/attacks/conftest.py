"""One site for all attacks, and what takes its time in the background of all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.rig import Site, site
from tests.attacks.slow import Slow


@pytest.fixture(scope="session")
def attacked() -> Iterator[Site]:
    """The daemon that is attacked; its folder has a short path that other users can enter."""
    path = Path(tempfile.mkdtemp(prefix="fep-x-"))
    path.chmod(0o755)
    with site(path) as found:
        yield found
    shutil.rmtree(path)


@pytest.fixture(scope="session", autouse=True)
def slow(attacked: Site) -> Iterator[Slow]:
    """Connections that say one byte now and then, from the first test on."""
    with Slow(attacked) as found:
        yield found
