"""Whether the trio thread itself may wait for the next commit; nothing else runs there then.

To hand a group to a thread and to come back costs more than a quick disk takes for its sync, and
the two threads wait for each other's interpreter lock. So while the disk is quick, the loop stands
still for it. A disk may always be slow for once: what the loop has lost to slow commits is a small
share of its time, and once it is used up, a thread waits and the loop goes on.

The share is kept by the generic cell rate algorithm (ITU-T I.371): one moment, ``_even_at``, by
which what was lost is made good.
"""

from __future__ import annotations

import math
from typing import Final

QUICK_SECONDS_MAX: Final = 0.002
"""A commit that waits no longer is quick, and nothing is lost by it."""
LOST_SHARE_MAX: Final = 0.05
"""Of the loop's time, to slow commits."""
LOST_SECONDS_MAX: Final = 0.05
"""That much may be lost in advance: now and then a commit writes the log back into the file."""


class Pace:
    """How quick the disk has been; moments are seconds of a clock that is never set."""

    def __init__(self) -> None:
        self._even_at = -math.inf

    def is_quick(self, now: float) -> bool:
        """Say whether a commit that begins now may be waited for."""
        return self._even_at - now <= LOST_SECONDS_MAX / LOST_SHARE_MAX

    def note(self, waited: float, now: float) -> None:
        """Note a commit for which the loop has stood still so many seconds until now."""
        if waited > QUICK_SECONDS_MAX:
            self._even_at = max(self._even_at, now) + waited / LOST_SHARE_MAX
