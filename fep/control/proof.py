"""Judges who opens a session with a key: right, right but old, or right and seen before. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fep.domain.ids import ClientName
from fep.wire import proof
from fep.wire.proof import Key

WINDOW_MS: Final = 30_000
"""A proof's time may differ from our clock by so much, in either direction."""
NONCES_MAX: Final = 16_384
"""Proofs that are remembered; when there are more, what is older than the oldest is refused."""


class Verdict(StrEnum):
    """What a well-formed proof is worth; one that is not is refused where lines are parsed."""

    OK = "OK"
    BAD_MAC = "BAD_MAC"
    STALE = "STALE"
    REPLAY = "REPLAY"


class Gate:
    """Remembers which proofs were used, at whichever listener.

    Args:
        started_ms: by the wall clock; what is older may have been used in an earlier life.
        decoy: random; proofs with a key id that nobody has are checked with it, so that they take
            as long as others. A constant would be a key that everybody has.
    """

    def __init__(self, started_ms: int, decoy: bytes) -> None:
        self._floor = started_ms
        self._decoy = decoy
        self._seen: set[tuple[int, str]] = set()
        self._oldest: list[tuple[int, str]] = []

    def judge(
        self,
        keys: Mapping[str, Key],
        client: ClientName,
        key_id: str,
        time_ms: int,
        nonce: str,
        mac: str,
        now_ms: int,
    ) -> Verdict:
        """Return the verdict; the nonce is remembered only when all else is right."""
        key = keys.get(key_id)
        secret = self._decoy if key is None else key.secret
        right = proof.opening_mac(secret, key_id, client, time_ms, nonce)
        if not proof.is_same(mac, right) or key is None or key.client != client:
            return Verdict.BAD_MAC
        # Nothing is dropped by age: the clock may be set back, and what was used would count again.
        if time_ms < self._floor or abs(now_ms - time_ms) > WINDOW_MS:
            return Verdict.STALE
        used = (time_ms, nonce)
        if used in self._seen:
            return Verdict.REPLAY
        self._seen.add(used)
        heapq.heappush(self._oldest, used)
        if len(self._oldest) > NONCES_MAX:
            oldest = heapq.heappop(self._oldest)
            self._seen.discard(oldest)
            self._floor = max(self._floor, oldest[0] + 1)
        return Verdict.OK
