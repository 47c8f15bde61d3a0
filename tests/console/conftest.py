"""A directory, a key and the logs for a daemon with a console in the test's process."""

from tests.control.conftest import directory, key, logs  # noqa: F401
