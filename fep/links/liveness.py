"""Is the bank still there? Decides from the time of its last answer when to probe and when to end.

TCP answers for a hung front end, so its own keepalive is not enough: only an answer of the bank's
program counts, and a frame that never gets complete does not. A bank may be busy with the one
request that it was sent, and has the whole span from then on.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

DEAD_FACTOR: Final = 2.5
"""Heartbeats of silence after which the connection is dead; an idle one's two probes are unanswered
then. So many must be more than ``reply_timeout_s``, or a busy bank is taken for a dead one."""


class Due(Enum):
    """What to do now."""

    NOTHING = "nothing"
    PROBE = "probe"
    END = "end"


class Liveness:
    """Follows the answers of one connection; times are seconds of one monotonic clock."""

    def __init__(self, heartbeat_s: float, now: float) -> None:
        self._heartbeat_s = heartbeat_s
        self.heard_at = now
        """When the last answer came, or the connection was made."""
        self.asked_at = now
        """When the newest request of a caller was written, or the connection was made."""
        self._owed_from: float | None = None
        self._probe_at = now + heartbeat_s

    def heard(self, now: float) -> None:
        """Note that a complete frame came."""
        self.heard_at = now
        self._owed_from = None
        self._probe_at = now + self._heartbeat_s

    def asked(self, now: float) -> None:
        """Note that a caller's request was written; the first since the last answer counts.

        Else a bank that is gone would never be found while it is asked again and again.
        """
        self.asked_at = now
        if self._owed_from is None:
            self._owed_from = now

    def probed(self, now: float) -> None:
        """Note that a probe is being sent; the next is due a heartbeat later."""
        self._probe_at = now + self._heartbeat_s

    def due(self, now: float) -> Due:
        """Return what to do at this moment."""
        if now >= self._dead_at:
            return Due.END
        return Due.PROBE if now >= self._probe_at else Due.NOTHING

    @property
    def next_at(self) -> float:
        """When ``due`` changes, if nothing is heard until then."""
        return min(self._probe_at, self._dead_at)

    @property
    def _dead_at(self) -> float:
        silent_from = self.heard_at if self._owed_from is None else self._owed_from
        return silent_from + DEAD_FACTOR * self._heartbeat_s
