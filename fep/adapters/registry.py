"""Finds the installed adapters and simulated hosts by entry point; fep never imports them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from fep.adapters.api import BankAdapter
from fep.adapters.host import BankHost

ADAPTER_GROUP: Final = "fep.bank_adapters"
HOST_GROUP: Final = "fep.bank_hosts"


class UnknownAdapterError(LookupError):
    """No installed package offers this adapter; the message lists those there are."""


def names(group: str = ADAPTER_GROUP) -> list[str]:
    """Return the names offered in a group, sorted."""
    return sorted(entry_points(group=group).names)


def _load(group: str, name: str) -> Any:  # noqa: ANN401 - an entry point is untyped by nature
    found: list[EntryPoint] = list(entry_points(group=group, name=name))
    if not found:
        msg = f"no adapter {name!r} is installed; there are: {', '.join(names(group)) or 'none'}"
        raise UnknownAdapterError(msg)
    return found[0].load()


def adapter(name: str) -> BankAdapter:
    """Return the adapter of this name.

    Raises:
        UnknownAdapterError: there is none.
    """
    loaded: BankAdapter = _load(ADAPTER_GROUP, name)
    return loaded


def host(name: str) -> BankHost:
    """Return the simulated bank of this name.

    Raises:
        UnknownAdapterError: there is none.
    """
    loaded: BankHost = _load(HOST_GROUP, name)
    return loaded
