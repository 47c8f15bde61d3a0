"""A disk that a test holds still."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fep.store.database import Store
from fep.store.pace import Pace

WAIT_SECONDS_MAX = 20.0


class InThread(Pace):
    """A slow disk: every commit is done in the writer thread, where a test may hold it."""

    def is_quick(self, now: float) -> bool:
        """Deny it."""
        return now < 0


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Let the writer thread stop in front of whatever comes next, until the block ends.

    From now on the store does its work in that thread.
    """
    gate = threading.Event()
    store._pace = InThread()
    store.submit(lambda _c: gate.wait(WAIT_SECONDS_MAX), lambda _result, _error: None)
    try:
        yield
    finally:
        gate.set()
