"""How long to wait before the next attempt: exponential with full jitter, never giving up.

Full jitter (each delay is drawn from 0 to the ceiling) keeps the links of many machines from
coming back to a recovering bank at one moment.
"""

from __future__ import annotations

import random
from typing import Final

BACKOFF_FACTOR: Final = 2.0


class Backoff:
    """Delays between attempts; ``reset`` only when a log-on succeeded.

    A mere connection proves nothing: a bank whose front end accepts and closes at once would
    otherwise be knocked at without end.
    """

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng
        self.ceiling_s = min(first_s, max_s)
        """Upper bound of the next delay, in seconds."""

    def next_s(self) -> float:
        """Return the next delay in seconds, from 0 to the ceiling, and double the ceiling."""
        delay = self._rng.uniform(0.0, self.ceiling_s)
        self.ceiling_s = min(self.ceiling_s * BACKOFF_FACTOR, self._max_s)
        return delay

    def reset(self) -> None:
        """Begin again with the first delay."""
        self.ceiling_s = min(self._first_s, self._max_s)
