"""Run in a network namespace of its own: pulls the cable under a READY link, prints what it saw."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import trio

from tests.links.conftest import Rig, open_rig

HEARTBEAT_S = 0.2


def _loopback(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


async def _lose(rig: Rig) -> None:
    rig.make_link(heartbeat_s=HEARTBEAT_S, reply_timeout_s=2 * HEARTBEAT_S)
    wire = await rig.started()
    await wire.answer(await wire.read())
    _loopback("down")


async def _idle(rig: Rig) -> str:
    await _lose(rig)
    await rig.until(lambda: rig.link.failures > 0)
    return rig.link.last_failure


async def _in_flight(rig: Rig) -> str:
    await _lose(rig)
    return (await rig.ask("A1").error()).__name__


async def _main(path: Path) -> dict[str, str]:
    found = {}
    for name, lose in (("idle", _idle), ("in_flight", _in_flight)):
        _loopback("up")
        (path / name).mkdir()
        async with open_rig(path / name) as rig:
            found[name] = await lose(rig)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps(trio.run(_main, Path(made))))
