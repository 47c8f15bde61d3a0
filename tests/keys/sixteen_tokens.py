"""Sixteen slots over one PKCS#11 library at once: run in a process of its own, whose end it may be.

A library that was not initialised for programs with threads ends the process here within seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
import trio

from fep.adapters.card import SignAlgorithm
from fep.domain.ids import SlotName
from fep.keys.config import SecretRef, SlotConfig, TokenBinding
from fep.keys.service import Slot
from fep.keys.signatures import parse_certificate, verifies
from tests.keys.bench import ring_of
from tests.keys.softhsm import LIBRARY

ECDSA = SignAlgorithm.ECDSA_SHA256
ROUNDS = 3
SIGNATURES = 60


async def sign(slot: Slot) -> None:
    assert slot.certificate is not None
    key = parse_certificate(slot.certificate).public_key
    for number in range(SIGNATURES):
        data = f"{slot.name} {number}".encode()
        assert verifies(key, ECDSA, data, await slot.sign(ECDSA, data))


async def main(configs: list[SlotConfig], directory: Path) -> None:
    # Each round starts and ends the library, all sixteen at once.
    for _ in range(ROUNDS):
        async with ring_of(directory, configs) as bench:
            await bench.ready()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for slot in bench.ring.slots.values():
                    nursery.start_soon(sign, slot)
            rate = len(configs) * SIGNATURES / (trio.current_time() - began)
            print(f"{rate:.0f} signatures/s")
            assert bench.alarms.active() == []


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    wanted = [
        SlotConfig(
            name=SlotName(label),
            backend="pkcs11",
            pin=SecretRef(file=Path(pin)),
            module=LIBRARY,
            token=TokenBinding(fingerprint, serial),
        )
        for label, serial, fingerprint, pin in map(str.split, sys.stdin)
    ]
    trio.run(main, wanted, Path(sys.argv[1]))
