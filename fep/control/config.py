"""What the configuration says of the control protocol's listeners and who may open as what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from fep.domain.ids import ClientName

RoleName = Literal["finance", "viewer", "operator", "admin"]


@attrs.frozen
class TlsFiles:
    """PEM files of one TLS listener."""

    certificate: Path
    key: Path
    client_ca: Path
    """The CA that signs our clients' certificates, and nobody else's."""


@attrs.frozen
class TcpListener:
    """One ``[[control.tcp]]``: mutual TLS, or a token on loopback."""

    host: str
    port: int
    tls: TlsFiles | None = None
    token_file: Path | None = None


@attrs.frozen
class ClientConfig:
    """One ``[control.clients.NAME]``: what a TCP client of this name may do."""

    role: RoleName = "finance"


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
