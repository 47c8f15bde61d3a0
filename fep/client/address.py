"""Where the daemon listens, in one word: ``unix:PATH``, ``tcp:HOST:PORT`` or ``tls:HOST:PORT``."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

import attrs


@attrs.frozen
class Address:
    """A parsed address; ``path`` for unix, ``host`` and ``port`` for the others."""

    kind: Literal["unix", "tcp", "tls"]
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return (
            f"unix:{self.path}" if self.kind == "unix" else f"{self.kind}:{self.host}:{self.port}"
        )


def parse_address(text: str) -> Address:
    """Return the address; a bare path is a Unix socket, a bare HOST:PORT is ``tcp``.

    Raises:
        ValueError: none of these forms.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address("unix", path=rest)
    if text.startswith(("/", "./", "../")):
        return Address("unix", path=text)
    if kind not in ("tcp", "tls"):
        kind, rest = "tcp", text
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        msg = f"{text!r} is not unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"
        raise ValueError(msg)
    return Address("tls" if kind == "tls" else "tcp", host=host.strip("[]"), port=int(port))


def client_tls(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return a context that shows our certificate and trusts only this CA (TLS 1.3)."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context
