"""What the configuration says of one bank's connection."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs
from attrs import validators

from fep.domain.ids import BankName

CONNECTIONS_MAX: Final = 16
"""Of one bank: front ends work on few requests at once."""

PORT_MAX: Final = 65_535


@attrs.frozen
class Folders:
    """Where files go to a bank and come from it, and the times of that.

    Raises:
        ValueError: two of the folders are one, or one is in another, or a time is below zero.
    """

    out: Path
    """Where the bank's own program fetches our files."""
    inbox: Path
    """Where it puts its files."""
    archive: Path
    """Where they are kept once they were read."""
    poll_s: float = attrs.field(default=2.0, validator=validators.gt(0))
    """From one look into the inbox to the next."""
    settle_s: float = attrs.field(default=1.0, validator=validators.ge(0))
    """A file that changed within this time may not be whole yet."""
    unreadable_s: float = attrs.field(default=60.0, validator=validators.ge(0))
    """What can't be read is put aside when it did not change for so long."""
    fetched_within_s: float = attrs.field(default=900.0, validator=validators.gt(0))
    """A file of ours that waits longer is an alarm: nobody fetches."""
    kept_days: int = attrs.field(default=14, validator=validators.ge(1))
    """For so long what came is looked through for answers; the files stay."""

    def __attrs_post_init__(self) -> None:
        places = [self.out, self.inbox, self.archive]
        for one in places:
            for other in places:
                if one is not other and (one == other or one in other.parents):
                    msg = f"out, in and archive must be three folders side by side, not {one}"
                    raise ValueError(msg)


@attrs.frozen
class LinkConfig:
    """One bank front-end machine, or its folders, and the times of that; all spans in seconds.

    ``2.5 * heartbeat_s`` must be more than ``reply_timeout_s``, which the daemon's configuration
    sees to: a bank that works on one request at a time is silent while it does, and cutting it then
    makes a known outcome an unknown one.

    Raises:
        ValueError: a port outside 1..65535, a span that is not more than zero, or more than
            ``CONNECTIONS_MAX`` connections.
    """

    bank: BankName
    host: str = ""
    port: int = 0
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
    folders: Folders | None = None
    """Where the bank takes and gives files; there is no host then, and no port."""

    def __attrs_post_init__(self) -> None:
        if self.folders is None and not 1 <= self.port <= PORT_MAX:
            msg = f"port must be from 1 to {PORT_MAX}, not {self.port}"
            raise ValueError(msg)

    @property
    def peer(self) -> str:
        """What screens show: ``host:port``, or the folder that our files go to."""
        if self.folders is not None:
            return str(self.folders.out)
        return f"{self.host}:{self.port}"
