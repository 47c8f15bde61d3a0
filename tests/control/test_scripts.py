"""Every transcript in ``tests/scripts`` is played to a daemon over real sockets, word for word."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fep.domain.clock import SystemClock, business_date
from fep.sandbox.scene import write_secret
from fep.wire.proof import opening_mac
from tests.control.conftest import Start
from tests.control.rig import LONG_HEARTBEAT_S, Config, Rig, Wire
from tests.control.transcript import SCRIPTS, Step, differences, expected_line, filled_in, steps

KEY_ID = "erp-1-2026"
CLIENTS = {"erp-1": "finance", "erp-2": "finance", "auditor": "viewer"}


def with_clients(config: Config) -> None:
    config["control"]["clients"] = {name: {"role": role} for name, role in CLIENTS.items()}
    config["control"]["tcp"].append({"listen": "127.0.0.1:0", "keys_file": "keys"})


def with_key(directory: Path) -> dict[str, Any]:
    """Write the key file; returns what opens a session with its key, once."""
    secret, nonce = secrets.token_hex(16), secrets.token_hex(16)
    write_secret(directory / "keys", f"{KEY_ID} erp-1 {secret}")
    # As soon as the daemon has started: what is older than that is refused.
    time_ms = int(SystemClock().now().timestamp() * 1000) + 5000
    mac = opening_mac(secret.encode(), KEY_ID, "erp-1", time_ms, nonce)
    return {"time_ms": time_ms, "nonce": nonce, "mac": mac}


@attrs.define
class Player:
    """Plays the client's side of a transcript and compares the daemon's."""

    rig: Rig
    names: dict[str, Any]
    wires: dict[str, Wire] = attrs.Factory(dict)
    current: str = ""

    @property
    def wire(self) -> Wire:
        return self.wires[self.current]

    async def play(self, step: Step) -> None:
        match step.what:
            case "--":
                await self.direct(step.text)
            case "C":
                await self.wire.send_bytes(filled_in(step.text, self.names).encode() + b"\n")
            case "C-BYTES":
                await self.wire.send_bytes(bytes.fromhex(step.text))
            case "C-FILL":
                await self.wire.send_bytes(b"x" * int(step.text))
            case "C-NEST":
                start, depth = (
                    b'{"jsonrpc":"2.0","id":0,"method":"status","params":',
                    int(step.text),
                )
                await self.wire.send_bytes(start + b"[" * depth + b"]" * depth + b"}\n")
            case "S":
                await self.compare(expected_line(step.text))
            case _:
                raise AssertionError(step.what)

    async def direct(self, text: str) -> None:
        match text.split():
            case ["daemon", *_]:
                pass
            case ["connect", name]:
                self.current, self.wires[name] = name, await self.rig.tcp()
            case ["connect", name, "over", "keys"]:
                port = int(self.rig.addresses[2].rpartition(":")[2])
                self.current, self.wires[name] = name, await self.rig.tcp(port)
            case ["connect", name, "over", "unix"]:
                self.current, self.wires[name] = name, await self.rig.unix()
            case ["close"]:
                await self.wires.pop(self.current).aclose()
            case ["closed"]:
                assert await self.next_line() is None
                await self.wires.pop(self.current).aclose()
            case [name]:
                assert name in self.wires
                self.current = name
            case _:
                raise AssertionError(text)

    async def next_line(self, *, heartbeat: bool = False) -> dict[str, Any] | None:
        """Return the daemon's next line; heartbeats count only where they are waited for."""
        while True:
            got = await self.wire.receive()
            if heartbeat or got is None or got.get("method") != "session.heartbeat":
                return got

    async def compare(self, expected: dict[str, Any]) -> None:
        assert expected.pop("jsonrpc") == "2.0"
        got = await self.next_line(heartbeat=expected.get("method") == "session.heartbeat")
        assert got is not None, "the daemon has closed the connection"
        assert list(differences(expected, got, self.names)) == []

    def end(self) -> None:
        """Nothing more was said than the transcript has."""
        assert [wire._lines for wire in self.wires.values() if wire._lines] == []


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.req("FEP-22", "FEP-23", "FEP-24", "FEP-25", "FEP-26", "FEP-29", "FEP-32", "DEC-a")
async def test_script(name: str, start: Start, directory: Path) -> None:
    text = SCRIPTS[name]
    found = re.search(r"^-- daemon heartbeat_s=([0-9.]+) --$", text, re.MULTILINE)
    heartbeat_s = float(found[1]) if found else LONG_HEARTBEAT_S
    opening = with_key(directory)
    async with start(bank=True, heartbeat_s=heartbeat_s, change=with_clients) as rig:
        await rig.ready()
        today = business_date(SystemClock().now()).isoformat()
        player = Player(rig, {"token": rig.token, "today": today} | opening)
        for step in steps(text):
            try:
                await player.play(step)
            except (AssertionError, trio.BrokenResourceError) as error:
                error.add_note(f"{name}, line {step.number}: {step.what} {step.text[:200]}")
                raise
        player.end()


def test_there_are_scripts_for_what_an_integrator_must_know() -> None:
    assert len(SCRIPTS) >= 12


def test_differences_are_seen() -> None:
    names: dict[str, Any] = {}

    def found(expected: Any, got: Any) -> list[str]:
        return list(differences(expected, got, names))

    assert found({"a": 1, "…": "…"}, {"a": 1, "b": 2}) == []
    assert found({"a": 1}, {"a": 1, "b": 2}) == [".b came too: 2"]
    assert found({"a": 1, "b": 2}, {"a": 1}) == [".b is missing"]
    assert found({"a": True}, {"a": 1}) == [".a is 1, not True"]
    assert found({"a": [1, {"b": "…"}]}, {"a": [1, {"b": [7]}]}) == []
    assert found({"a": [1]}, {"a": [1, 2]}) == [".a is [1, 2], not [1]"]
    assert found({"a": "<x>"}, {"a": 5}) == []
    assert found(["<x>", "<x>"], [5, 6]) == ["[1] is 6, but x was 5"]
    assert found(["<time>"], ["now"]) == ["[0] is 'now', which is no time"]
    assert found(["<time>"] * 2, [f"2026-01-05T09:00:0{n}.000+00:00" for n in (1, 2)]) == []
    assert list(steps("# x\nC: a\n   b\n\n-- close --\nS:")) == [
        Step(2, "C", "ab"),
        Step(5, "--", "close"),
        Step(6, "S", ""),
    ]
