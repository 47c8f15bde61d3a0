"""What is put together while the disk is busy: one group for each turn of the store's writer.

Things are put in the trio thread, and a group's turn comes in the writer's thread, in the middle of
anything. Each thing is in one group from the moment at which it is put, and a group that is closed
takes no more: what is answered with a group is what was written with it, also where the writer does
it a second time.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Joining(Generic[T]):
    """Owns the group that is still open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Held for an instant: neither thread waits for the other one's work."""
        self._open: list[T] | None = None

    def join(self, one: T) -> list[T] | None:
        """Put something into the open group; return a group that is new, and is to be queued."""
        with self._lock:
            if self._open is not None:
                self._open.append(one)
                return None
            self._open = [one]
            return self._open

    def close(self, group: list[T]) -> None:
        """Let nothing more join a group: its turn has come. It may be closed before."""
        with self._lock:
            if self._open is group:
                self._open = None
