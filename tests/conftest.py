"""What holds for all tests."""

import signal

from hypothesis import settings

# A shell that runs us in the background has us ignore Ctrl-C, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says what else the machine does, and nothing of the code.
settings.register_profile("fep", deadline=None)
settings.load_profile("fep")
