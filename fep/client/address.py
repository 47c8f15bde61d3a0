"""Where the daemon listens, in one word: ``unix:PATH``, ``tcp:HOST:PORT`` or ``tls:HOST:PORT``."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Literal

import attrs

PORT_MAX: Final = 65_535


@attrs.frozen
class Address:
    """A parsed address; ``path`` for unix, ``host`` and ``port`` for the others."""

    kind: Literal["unix", "tcp", "tls"]
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address; a bare path is a Unix socket, a bare HOST:PORT is ``tcp``.

    Raises:
        ValueError: none of these forms.
    """
    kind, _, rest = text.partition(":")
    path = text if text.startswith(("/", "./", "../")) else rest if kind == "unix" else ""
    if path and "\0" not in path:
        return Address("unix", path=path)
    if kind not in ("tcp", "tls"):
        kind, rest = "tcp", text
    host, _, port = rest.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    good = port.isascii() and port.isdigit() and 0 < int(port[:6]) <= PORT_MAX
    if path or not good or not _is_host(host):
        msg = f"{text!r} is not unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"
        raise ValueError(msg)
    return Address("tls" if kind == "tls" else "tcp", host=host, port=int(port))


def _is_host(text: str) -> bool:
    """Say whether a name can be looked up at all: the look-up itself would raise for others."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return bool(text) and text.isprintable() and not set(text) & set("[]/ ")


def client_tls(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return a context that shows our certificate and trusts only this CA (TLS 1.3)."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context
