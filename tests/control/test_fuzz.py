"""Whatever a client asks, it is answered once, and its session goes on."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from fep.control.commands import METHODS
from fep.wire import jsonrpc
from tests.control.conftest import Start
from tests.control.rig import Wire, code_of

LINES = 1500
AT_ONCE = 50
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 5, 10**30, -(2**63), 1e308, 5e-324, 0.1, "", "a", "P-1", "pingan", "\0",
    "😀" * 20, "江枫", "x" * 5000, "succeeded", "queued", "balance", "transfer", "9" * 18, "135790",
    "evidence enough", [], {}, [[[[]]]], {"kind": "balance", "params": {"account": "99000000000101"}},
    {"kind": "balance", "params": {}}, {"kind": "balance", "params": {"account": ["\0"]}},
    {"kind": "transfer", "params": {"payer": None}}, {"kind": 1, "params": []}, {"kind": "balance"},
)  # fmt: skip
RAW = (
    "1e999",
    "[" * 300 + "]" * 300,
    '{"kind":"balance","params":{"account":1e999}}',
    "-0",
    "1E+2",
)
"""JSON that Python's own printer does not make."""
PLAUSIBLE: dict[str, tuple[Any, ...]] = {
    "task_id": ("P-1", "P-2", "P:3", "P" * 64),
    "bank": ("pingan",),
    "kind": ("balance", "transfer", "receipt"),
    "priority": (0, 9),
    "expires_s": (5e-324, 1, 2592000),
    "body": VALUES[-6:],
    "state": ("queued", "expired"),
    "limit": (1, 500),
    "cursor": ("0", "9" * 18),
    "outcome": ("succeeded", "rejected"),
    "evidence": ("", "seen in the statement"),
    "slot": ("ukey-pingan", "none"),
    "pin": ("135790",),
    "seq": (1, 10**30),
    "all": (True, False),
}
LEFT_OUT = {"session.close"}


def params_of(rng: random.Random, method: str) -> str:
    members = list(METHODS[method].params.__struct_fields__)
    chosen = [name for name in members if rng.random() < 0.8]
    if rng.random() < 0.1:
        chosen.append("more")
    shown = []
    for name in chosen:
        known = PLAUSIBLE.get(name, ("a", "P-1", "\0")) if rng.random() < 0.7 else VALUES
        value = rng.choice(RAW) if rng.random() < 0.1 else json.dumps(rng.choice(known))
        shown.append(f"{json.dumps(name)}:{value}")
    return "{" + ",".join(shown) + "}" if rng.random() < 0.9 else rng.choice(RAW)


def line_of(rng: random.Random, id_: int) -> bytes:
    method = rng.choice(sorted(METHODS.keys() - LEFT_OUT))
    end = rng.choice(["\n", "\r\n", " \n"])
    params = params_of(rng, method)
    return f'{{"jsonrpc":"2.0","id":{id_},"method":"{method}","params":{params}}}{end}'.encode()


async def answers(wire: Wire, ids: set[int]) -> list[dict[str, Any]]:
    """Return the answers to these requests; other lines are the daemon's own requests."""
    found = []
    while ids:
        got = await wire.receive()
        assert got is not None, "the connection ended"
        if "method" not in got:
            ids.remove(got["id"])
            found.append(got)
    return found


@pytest.mark.parametrize("seed", [20_260_105, 20_260_106])
async def test_every_request_is_answered_once(start: Start, seed: int) -> None:
    rng = random.Random(seed)
    async with start() as rig:
        wire = await rig.admin()
        codes: dict[str | int, int] = {}
        results = 0
        for first in range(1, LINES, AT_ONCE):
            ids = set(range(first + 10, first + 10 + AT_ONCE))
            await wire.send_bytes(b"".join(line_of(rng, id_) for id_ in sorted(ids)))
            for answer in await answers(wire, ids):
                if "error" in answer:
                    code = code_of(answer)
                    codes[code] = codes.get(code, 0) + 1
                else:
                    results += 1
        # The seed found its way into the methods, and nothing but what the reference has came out.
        assert results > LINES / 10
        assert codes.keys() >= {jsonrpc.INVALID_PARAMS, "NOT_FOUND", "UNKNOWN_BANK"}
        assert jsonrpc.INTERNAL_ERROR not in codes
        await wire.result("status")


def test_the_values_reach_past_the_parameters() -> None:
    decoder = msgspec.json.Decoder(METHODS["task.submit"].params)
    rng = random.Random(1)
    taken = 0
    for _ in range(20_000):
        try:
            decoder.decode(params_of(rng, "task.submit"))
        except msgspec.DecodeError:
            continue
        taken += 1
    assert taken > 10
