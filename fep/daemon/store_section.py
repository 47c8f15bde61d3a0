"""The ``[store]`` table: where the store is, when it is not a file of this machine alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from fep.daemon.tables import Table
from fep.keys.config import SecretRef
from fep.keys.credentials import read_text

if TYPE_CHECKING:
    import sqlalchemy as sa

    from fep.store.postgres import Postgres

DRIVER: Final = "postgresql+psycopg"
LEASE_SECONDS_DEFAULT: Final = 15.0
LEASE_SECONDS_MIN, LEASE_SECONDS_MAX = 2.0, 300.0
CHECKED: Final = frozenset({"verify-ca", "verify-full"})
"""What of libpq's ``sslmode`` proves to whom we speak."""
SECRET: Final = frozenset({"password", "passfile", "sslpassword"})
OURS: Final = frozenset({"options", "client_encoding", "application_name"})


@attrs.frozen
class StoreConfig:
    """``[store]``; one that exists is a PostgreSQL that several front-end machines share."""

    url: str
    password: SecretRef | None
    """None: the server trusts the peer, or ``.pgpass`` has it."""
    lease_s: float
    """A machine that is not heard of for so long loses its banks to the others."""


def database_of(shared: StoreConfig, machine: str) -> Postgres:
    """Return the database that the table names; nothing is opened yet.

    Args:
        shared: the table.
        machine: this machine's number.

    Raises:
        KeyFileError: the password can't be read.
    """
    from fep.store.postgres import Postgres  # noqa: PLC0415 - most machines have no such store

    password = None if shared.password is None else read_text(shared.password)
    return Postgres(shared.url, password, machine)


def read_store(
    top: Table, secret: Callable[[Table | None], SecretRef | None], *, strict: bool
) -> StoreConfig | None:
    """Return the shared store, None where each machine has its own file.

    Args:
        top: the whole file.
        secret: reads where a secret is.
        strict: the server must prove who it is, unless it is on this machine.
    """
    table = top.table("store")
    if table is None:
        return None
    url = table.parsed("url", _url)
    password = secret(table.table("password"))
    lease_s = table.number("lease_s", LEASE_SECONDS_DEFAULT, LEASE_SECONDS_MIN, LEASE_SECONDS_MAX)
    if url is not None and strict and not _is_proved(url):
        msg = "the database is on another machine: add ?sslmode=verify-full&sslrootcert=FILE"
        table.fault("url", msg)
    table.close()
    if url is None or not table.is_clean():
        return None
    return StoreConfig(url.render_as_string(hide_password=False), password, lease_s)


def _url(text: str) -> sa.URL:
    import sqlalchemy as sa  # noqa: PLC0415 - half the time of reading a file, and most have none

    shape = f"must be '{DRIVER}://USER@HOST:PORT/DATABASE'"
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ValueError(shape) from error
    if url.drivername != DRIVER:
        msg = f"{shape}; for SQLite, which is the default, leave [store] out"
        raise ValueError(msg)
    if url.password is not None or SECRET & url.query.keys():
        msg = "must hold no password: give password = { credential = … } or { file = … }"
        raise ValueError(msg)
    if ours := OURS & url.query.keys():
        msg = f"must not set {', '.join(sorted(ours))}: the daemon sets it itself"
        raise ValueError(msg)
    if not url.database:
        msg = f"names no database; {shape}"
        raise ValueError(msg)
    return url


def _is_proved(url: sa.URL) -> bool:
    """Say whether we know to whom we speak: on this machine, or by the server's certificate."""
    mode = url.query.get("sslmode", "")
    if mode in CHECKED:
        return True
    named = url.query.get("host", url.host or "")
    hosts = named.split(",") if isinstance(named, str) else list(named)
    return all(_is_here(host) for host in hosts)


def _is_here(host: str) -> bool:
    """Say whether a host, with or without its port, is this machine; none is its Unix socket."""
    name = host.partition(":")[0] if host.count(":") == 1 else host
    if not name or name.startswith(("/", "@")) or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
