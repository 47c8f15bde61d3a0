"""What the configuration says of the console."""

from __future__ import annotations

from pathlib import Path

import attrs

from fep.users.config import SessionLimits


@attrs.frozen
class ConsoleTls:
    """PEM files: what the browser is shown, and its key."""

    certificate: Path
    key: Path


@attrs.frozen
class ConsoleConfig:
    """``[console]``."""

    listen: tuple[str, int] | None = None
    """Host and port; None: there is no console."""
    tls: ConsoleTls | None = None
    """None: plain HTTP, on loopback only."""
    sessions: SessionLimits = attrs.Factory(SessionLimits)
