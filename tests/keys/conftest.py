"""The virtual cards, for tests that need a key in hardware."""

from tests.rig import fresh_ukeys, ukey_rig  # noqa: F401
