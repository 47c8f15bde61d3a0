"""A directory, a key and the logs for a daemon in the test's process."""

from tests.control.conftest import directory, key, logs, start  # noqa: F401
