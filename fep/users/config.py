"""How long a person stays logged in."""

from __future__ import annotations

from typing import Final

import attrs

IDLE_SECONDS_DEFAULT: Final = 1800.0
SESSION_SECONDS_DEFAULT: Final = 43_200.0


@attrs.frozen
class SessionLimits:
    """Spans in seconds."""

    idle_s: float = IDLE_SECONDS_DEFAULT
    """Without a click for so long, a session ends."""
    session_s: float = SESSION_SECONDS_DEFAULT
    """So long after the log-in it ends in any case."""
