"""What the configuration says of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from fep.keys.config import SecretRef

ENDPOINT_DEFAULT: Final = "http://127.0.0.1:4318/v1/traces"
TIMEOUT_SECONDS_DEFAULT: Final = 10.0


@attrs.frozen
class TracesConfig:
    """``[traces]``."""

    endpoint: str = ENDPOINT_DEFAULT
    """Takes OTLP over HTTP, as JSON."""
    service_name: str = "fep"
    sample: float = 1.0
    """The share of the tasks that are traced."""
    timeout_s: float = TIMEOUT_SECONDS_DEFAULT
    """Of one message, whatever the receiver does."""
    ca: Path | None = None
    """PEM of the authorities that may have signed its certificate; None: the system's."""
    headers: tuple[tuple[str, SecretRef], ...] = ()
    """Sent with each message; their values are secrets and stand in files."""
