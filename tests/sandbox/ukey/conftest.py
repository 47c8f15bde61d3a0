"""The rig, and a PC/SC client in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fep.sandbox.ukey.rig import UkeyRig
from tests.rig import fresh_ukeys, ukey_rig  # noqa: F401
from tests.sandbox.ukey.pcsc import PcscClient


@pytest.fixture
def pcsc(fresh_ukeys: UkeyRig) -> Iterator[PcscClient]:  # noqa: F811
    """A client of the rig's pcscd."""
    with PcscClient.start(fresh_ukeys.environment) as client:
        yield client
