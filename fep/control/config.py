"""What the configuration says of the control protocol's listeners and who may open as what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import attrs

from fep.domain.ids import ClientName

SESSIONS_MAX: Final = 256
"""Open sessions of one listener, whosever they are."""
SESSIONS_DEFAULT: Final = 128
"""Of one client."""

RoleName = Literal["finance", "viewer", "operator", "admin"]


@attrs.frozen
class TlsFiles:
    """PEM files of one TLS listener."""

    certificate: Path
    key: Path
    client_ca: Path
    """The CA that signs our clients' certificates, and nobody else's."""
    client_crl: Path | None = None
    """Certificates that this CA has taken back; None: no list is looked at."""


@attrs.frozen
class TcpListener:
    """One ``[[control.tcp]]``: mutual TLS, or a token or keys on loopback."""

    host: str
    port: int
    tls: TlsFiles | None = None
    token_file: Path | None = None
    keys_file: Path | None = None
    """Clients prove that they hold a key of this file, and never show it."""


@attrs.frozen
class Limits:
    """What one client may use up, over all its connections; 0 is no limit."""

    lines_s: float = 0.0
    """Lines a second."""
    bytes_s: float = 0.0
    """Bytes a second."""
    open_max: int = 0
    """Open tasks: submitted, and not at their end."""
    sessions_max: int = SESSIONS_DEFAULT
    """Sessions at once; always a limit, so that one client leaves places to the others."""


@attrs.frozen
class ClientConfig:
    """One ``[control.clients.NAME]``: what a TCP client of this name may do."""

    role: RoleName = "finance"
    limits: Limits = attrs.Factory(Limits)


@attrs.frozen
class UserConfig:
    """One ``[control.users.NAME]``: a person on the Unix socket, known by uid."""

    uid: int
    role: RoleName


@attrs.frozen
class ControlConfig:
    """``[control]``; spans in seconds."""

    socket: Path
    socket_mode: int = 0o660
    heartbeat_s: float = 10.0
    tcp: tuple[TcpListener, ...] = ()
    clients: Mapping[ClientName, ClientConfig] = attrs.Factory(dict)
    users: Mapping[str, UserConfig] = attrs.Factory(dict)
    limits: Limits = attrs.Factory(Limits)
    """Of each client that has none of its own."""
