"""Tries whether a bank's front-end machine can be reached, beside the link and its session."""

from __future__ import annotations

import os
from typing import Any, Final

import trio

from fep.links.service import BankLink, connect_tcp

PROBE_SECONDS_MAX: Final = 5.0


async def tried(link: BankLink) -> dict[str, Any]:
    """Return what stands between us and a bank.

    A link that is ready proves more than a new connection could, and some banks take only one: it
    is only told of. Else a connection is opened and closed at once, and nothing is sent on it.
    """
    shown = link.snapshot()
    began = trio.current_time()
    found: dict[str, Any] = {"bank": shown.bank, "peer": shown.peer, "state": shown.state.value}
    if shown.is_open:
        return found | {"reached": True, "told": "the link is ready", "seconds": 0.0}
    reached, told = False, ""
    if link.config.folders is not None:
        lacking = [
            str(path)
            for path in (link.config.folders.out, link.config.folders.inbox)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK)
        ]
        reached = not lacking
        told = (
            f"not there, or not ours: {', '.join(lacking)}" if lacking else "the folders are there"
        )
    else:
        try:
            with trio.fail_after(PROBE_SECONDS_MAX):
                (await connect_tcp(link.config)).close()
        except trio.TooSlowError:
            told = f"no answer within {PROBE_SECONDS_MAX:g} s: a firewall, or the wrong address"
        except OSError as error:
            told = error.strerror or str(error)
        else:
            reached, told = True, "the bank's machine takes connections"
    if shown.last_failure:
        told = f"{told}; the link's last failure: {shown.last_failure}"
    return found | {
        "reached": reached,
        "told": told,
        "seconds": round(trio.current_time() - began, 3),
    }
