"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says what else the machine does, and nothing of the code.
settings.register_profile("fep", deadline=None)
settings.load_profile("fep")
