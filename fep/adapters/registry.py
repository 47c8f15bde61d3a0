"""Finds the installed adapters and simulated hosts by entry point; fep never imports them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any, Final

import cattrs

from fep.adapters.api import BankAdapter
from fep.adapters.host import BankHost
from fep.adapters.quality import FILE, Quality, read

ADAPTER_GROUP: Final = "fep.bank_adapters"
HOST_GROUP: Final = "fep.bank_hosts"


class UnknownAdapterError(LookupError):
    """No installed package offers this adapter; the message lists those there are."""


class BrokenAdapterError(ImportError):
    """An installed package offers this adapter, but it can't be used; the message says why."""


_UNLOADABLE: Final = (
    ImportError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    cattrs.BaseValidationError,
)
"""What the import of a package with a fault in its code, card or files can raise."""


def names(group: str = ADAPTER_GROUP) -> list[str]:
    """Return the names offered in a group, sorted."""
    return sorted(entry_points(group=group).names)


def _load(group: str, name: str) -> Any:  # noqa: ANN401 - an entry point is untyped by nature
    found: list[EntryPoint] = list(entry_points(group=group, name=name))
    if not found:
        msg = f"no adapter {name!r} is installed; there are: {', '.join(names(group)) or 'none'}"
        raise UnknownAdapterError(msg)
    offers = {one.value for one in found}
    if len(offers) > 1:
        # Which one would speak to the bank is not left to the order of installation.
        several = ", ".join(sorted(offers))
        msg = f"adapter {name!r} is offered by several packages, as {several}; keep one"
        raise BrokenAdapterError(msg)
    try:
        loaded = found[0].load()
    except _UNLOADABLE as error:
        msg = f"adapter {name!r} is installed but can't be loaded: {error}"
        raise BrokenAdapterError(msg) from error
    if getattr(loaded, "name", None) != name or not callable(getattr(loaded, "open", None)):
        msg = f"adapter {name!r} is installed, but {found[0].value} is no adapter of this name"
        raise BrokenAdapterError(msg)
    return loaded


def adapter(name: str) -> BankAdapter:
    """Return the adapter of this name.

    Raises:
        UnknownAdapterError: there is none.
        BrokenAdapterError: there is one that can't be used.
    """
    loaded: BankAdapter = _load(ADAPTER_GROUP, name)
    return loaded


def quality(name: str) -> Quality:
    """Return what an adapter keeps of the rules, as its package says.

    Raises:
        UnknownAdapterError: there is no such adapter.
        BrokenAdapterError: its package says nothing of it, or what can't be read.
    """
    adapter(name)
    [found] = {one.module for one in entry_points(group=ADAPTER_GROUP, name=name)}
    try:
        return read(files(found).joinpath(FILE).read_text("utf-8"))
    except (OSError, TypeError, ValueError, ImportError) as error:
        msg = f"the quality of adapter {name!r} is not known: {error}"
        raise BrokenAdapterError(msg) from error


def host(name: str) -> BankHost:
    """Return the simulated bank of this name.

    Raises:
        UnknownAdapterError: there is none.
        BrokenAdapterError: there is one that can't be used.
    """
    loaded: BankHost = _load(HOST_GROUP, name)
    return loaded
