"""What the configuration says of the task queue."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen
class TasksConfig:
    """``[tasks]``; all spans in seconds."""

    queue_max: int = attrs.field(default=1_000_000, validator=validators.ge(1))
    """Open tasks of all banks; above it ``task.submit`` is refused with QUEUE_FULL."""
    fetch_timeout_s: float = attrs.field(default=30.0, validator=validators.gt(0))
    """An offered task that is not fetched by then goes back and is offered again (DEC-a)."""
    age_max_s: float = attrs.field(default=86_400.0, validator=validators.gt(0))
    """A task that was never fetched expires at this age; nothing was sent."""
    result_window: int = attrs.field(default=256, validator=validators.ge(1))
    """Fetches, and results, that may be unanswered on one connection."""
