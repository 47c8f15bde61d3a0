"""What the configuration says of one bank's connection."""

from __future__ import annotations

from typing import Final

import attrs
from attrs import validators

from fep.domain.ids import BankName

CONNECTIONS_MAX: Final = 16
"""Of one bank: front ends work on few requests at once."""

_PORT = validators.and_(validators.ge(1), validators.le(65535))


@attrs.frozen
class LinkConfig:
    """One bank front-end machine and the times of its connection; all spans in seconds.

    ``2.5 * heartbeat_s`` should be more than ``reply_timeout_s``: a bank that works on one request
    at a time is silent while it does, and cutting it then makes a known outcome an unknown one.

    Raises:
        ValueError: a port outside 1..65535, a span that is not more than zero, or more than
            ``CONNECTIONS_MAX`` connections.
    """

    bank: BankName
    host: str
    port: int = attrs.field(validator=_PORT)
    heartbeat_s: float = attrs.field(default=30.0, validator=validators.gt(0))
    """After this long without an answer the bank's own probe is sent."""
    reply_timeout_s: float = attrs.field(default=60.0, validator=validators.gt(0))
    """Longest time requests in flight may still get their answers when the key has gone."""
    connect_timeout_s: float = attrs.field(default=10.0, validator=validators.gt(0))
    logon_timeout_s: float = attrs.field(default=10.0, validator=validators.gt(0))
    backoff_first_s: float = attrs.field(default=0.5, validator=validators.gt(0))
    backoff_max_s: float = attrs.field(default=60.0, validator=validators.gt(0))
    connections: int = attrs.field(
        default=1, validator=validators.and_(validators.ge(1), validators.le(CONNECTIONS_MAX))
    )
    """How many are held open, where the bank's protocol has one request at a time on each."""
