"""Tries whether a bank's front-end machine can be reached, beside the link and its session."""

from __future__ import annotations

import os
from typing import Any, Final

import attrs
import trio

from fep.domain.errors import reason_of
from fep.links.config import LinkConfig
from fep.links.service import BankLink, connect_tcp

PROBE_SECONDS_MAX: Final = 5.0


@attrs.frozen
class Reach:
    """How far we came towards a bank's machine."""

    told: str
    seconds: float = 0.0
    reached: bool = attrs.field(kw_only=True)


async def reach(config: LinkConfig) -> Reach:
    """Open a connection to a bank and close it at once; nothing is sent on it."""
    began = trio.current_time()
    if config.folders is not None:
        lacking = [
            str(path)
            for path in (config.folders.out, config.folders.inbox)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK)
        ]
        if lacking:
            return Reach(f"not there, or not ours: {', '.join(lacking)}", reached=False)
        return Reach("the folders are there", reached=True)
    reached, told = False, ""
    try:
        with trio.fail_after(PROBE_SECONDS_MAX):
            (await connect_tcp(config)).close()
    except trio.TooSlowError:
        told = f"no answer within {PROBE_SECONDS_MAX:g} s: a firewall, or the wrong address"
    except OSError as error:
        told = reason_of(error)
    else:
        reached, told = True, "the bank's machine takes connections"
    return Reach(told, round(trio.current_time() - began, 3), reached=reached)


async def tried(link: BankLink) -> dict[str, Any]:
    """Return what stands between us and a bank.

    A link that is ready proves more than a new connection could, and some banks take only one: it
    is only told of.
    """
    shown = link.snapshot()
    found = Reach("the link is ready", reached=True) if shown.is_open else await reach(link.config)
    told = found.told
    if shown.last_failure and not shown.is_open:
        told = f"{told}; the link's last failure: {shown.last_failure}"
    return {
        "bank": shown.bank,
        "peer": shown.peer,
        "state": shown.state.value,
        "reached": found.reached,
        "told": told,
        "seconds": found.seconds,
    }
