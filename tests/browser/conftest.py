"""One daemon and one browser for all tests here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.rig import Site, site


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    """The scene; its folder has a short path, since Unix sockets have room for 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="fep-b-"))
    with site(directory) as found:
        yield found
    shutil.rmtree(directory)


@pytest.fixture
def console(running: Site) -> Iterator[Site]:
    """The scene; no page may say that something is wrong."""
    running.errors.clear()
    yield running
    for context in running.browser.contexts:
        context.close()
    assert running.errors == []
