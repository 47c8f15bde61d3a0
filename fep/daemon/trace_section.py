"""The ``[traces]`` table: where traces (调用链) are sent, and how many."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fep.alarms.senders import check_url
from fep.daemon.tables import Table
from fep.keys.config import SecretRef
from fep.traces.config import ENDPOINT_DEFAULT, TIMEOUT_SECONDS_DEFAULT, TracesConfig

HEADERS_MAX: Final = 8
SERVICE_NAME_CHARS_MAX: Final = 64
OURS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "expect", "host"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
"""What only we may say, or the message could not be read."""
_HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Secret = Callable[[Table | None], SecretRef | None]


def read_traces(top: Table, secret: Secret) -> TracesConfig | None:
    """Return where traces are sent; None without the table.

    Args:
        top: the whole file.
        secret: reads where a secret is.
    """
    table = top.table("traces")
    if table is None:
        return None
    found = TracesConfig(
        endpoint=table.parsed("endpoint", _endpoint, ENDPOINT_DEFAULT) or ENDPOINT_DEFAULT,
        service_name=table.parsed("service_name", _service_name, "fep") or "fep",
        sample=table.number("sample", 1.0, 0.0, 1.0),
        timeout_s=table.number("timeout_s", TIMEOUT_SECONDS_DEFAULT, 0.1, 60.0),
        ca=table.path_of("ca") if table.has("ca") else None,
        headers=_headers(table, secret),
    )
    table.close()
    return found


def _headers(table: Table, secret: Secret) -> tuple[tuple[str, SecretRef], ...]:
    found: dict[str, SecretRef] = {}
    for number, one in enumerate(table.tables("header")):
        if number == HEADERS_MAX:
            one.fault("", f"is one of more than {HEADERS_MAX}")
        name = one.parsed("name", _header)
        if one.has("value") and isinstance(one.value("value"), str):
            one.fault("value", "is a secret: value = { credential = … } or { file = … }")
            reference = None
        else:
            one.value("value", required=True)
            reference = secret(one.table("value"))
        one.close()
        if name is not None and name in found:
            one.fault("name", f"header {name!r} is there twice")
        if name is not None and reference is not None:
            found[name] = reference
    return tuple(found.items())


def _endpoint(text: str) -> str:
    check_url(text)
    return text


def _service_name(text: str) -> str:
    if not (0 < len(text) <= SERVICE_NAME_CHARS_MAX and text.isprintable()):
        msg = f"must be printable text of 1 to {SERVICE_NAME_CHARS_MAX} characters"
        raise ValueError(msg)
    return text


def _header(text: str) -> str:
    name = text.lower()
    if not _HEADER.fullmatch(name):
        raise ValueError("must be the name of an HTTP header, such as authorization")
    if name in OURS:
        raise ValueError("is said by fep itself")
    return name
