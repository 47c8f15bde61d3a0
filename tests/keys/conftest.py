"""Virtual cards and SoftHSM's tokens, for tests that need a key outside this process."""

from tests.keys.softhsm import faults, faulty_library, hsm  # noqa: F401
from tests.rig import fresh_ukeys, ukey_rig  # noqa: F401
