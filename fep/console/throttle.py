"""Who failed to log in too often waits: counted by user and by peer. Pure; the time comes in."""

from __future__ import annotations

from typing import Final

import attrs

USER_FAILURES_MAX: Final = 5
PEER_FAILURES_MAX: Final = 20
PAUSE_SECONDS: Final = 60.0
KEPT_MAX: Final = 4096
"""Names and peers that are remembered; the oldest is forgotten first."""


@attrs.define
class _Count:
    failures: int = 0
    until: float = 0.0
    """Forgotten, or free again, from then on."""


class Throttle:
    """Counts failed log-ins: after so many in a row no more are looked at for a minute."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Count] = {}

    def wait(self, user: str, peer: str, now: float) -> float:
        """Return for how many seconds no log-in of this user, or from this peer, is looked at."""
        waits = [
            one.until - now
            for key, limit in self._keys(user, peer)
            if (one := self._counts.get(key)) is not None and one.failures >= limit
        ]
        return max([0.0, *waits])

    def failed(self, user: str, peer: str, now: float) -> None:
        """Count a failure."""
        for key, _ in self._keys(user, peer):
            one = self._counts.pop(key, None)
            if one is None or one.until <= now:
                one = _Count()
            one.failures += 1
            one.until = now + PAUSE_SECONDS
            self._counts[key] = one
        while len(self._counts) > KEPT_MAX:
            del self._counts[next(iter(self._counts))]

    def succeeded(self, user: str, peer: str) -> None:
        """Take back one failure; a user's are all forgotten.

        A peer's others are kept: one good name must not cover a hunt.
        """
        self._counts.pop(("user", user), None)
        if (one := self._counts.get(("peer", peer))) is not None:
            one.failures -= 1

    @staticmethod
    def _keys(user: str, peer: str) -> list[tuple[tuple[str, str], int]]:
        return [(("user", user), USER_FAILURES_MAX), (("peer", peer), PEER_FAILURES_MAX)]
