"""What the configuration says of the page of metrics."""

from __future__ import annotations

import attrs

from fep.control.config import TlsFiles


@attrs.frozen
class MetricsConfig:
    """``[metrics]``."""

    listen: tuple[str, int] | None = None
    """Host and port; None: there is no page."""
    tls: TlsFiles | None = None
    """Mutual TLS; None: plain HTTP, on loopback only."""
