"""Fixtures with virtual USB-Keys behind a real pcscd.

A folder that needs them imports the fixtures by name in its ``conftest.py``::

    from tests.rig import fresh_ukeys, ukey_rig  # noqa: F401

The rig is one per test session: starting it is quick, but libpcsclite reads which pcscd to talk
to only once in a process, and ``ukey_rig`` tells it for the whole session.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fep.sandbox.ukey.rig import UkeyRig

SLOTS = 4
COMMON_NAMES = ["Card 0", "Card 1", "Card 2", "Card 3", "Spare card"]
SPARE = 4
"""The card that starts in no slot."""


@pytest.fixture(scope="session")
def ukey_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UkeyRig]:
    """Four readers with a card each and one spare card. A test that changes a card resets it."""
    assert UkeyRig.available() is None
    directory = tmp_path_factory.mktemp("rig")
    with UkeyRig.start(directory, slots=SLOTS, common_names=COMMON_NAMES) as rig:
        rig.export_environment()
        yield rig


@pytest.fixture
def fresh_ukeys(ukey_rig: UkeyRig) -> UkeyRig:
    """The session's rig with pcscd running and all cards as they were at the start."""
    ukey_rig.start_pcscd()
    ukey_rig.reset()
    return ukey_rig
