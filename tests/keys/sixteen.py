"""Sixteen slots at once, the most that pcscd before 2.5.0 takes: run in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
import trio

from fep.adapters.card import SignAlgorithm
from fep.alarms.state import AlarmKind
from fep.keys.service import Slot
from fep.keys.signatures import parse_certificate, verifies
from fep.keys.state import SlotState
from fep.sandbox.ukey.rig import UkeyCard, UkeyRig
from tests.keys.bench import card_slot, pin_file, ring_of, until

SLOTS = 16
EVENT_SECONDS_MAX = 1.0
"""For sixteen cards at once on a busy machine; one alone shows within 0.1 s."""


async def sign(slot: Slot, card: UkeyCard) -> None:
    data = card.guid.encode()
    signature = await slot.sign(SignAlgorithm.RSA_SHA256, data)
    key = parse_certificate(card.certificate_der()).public_key
    assert verifies(key, SignAlgorithm.RSA_SHA256, data, signature)


async def main(rig: UkeyRig, directory: Path) -> None:
    pin = pin_file(directory)
    configs = [card_slot(card, pin) for card in rig.cards]
    async with ring_of(directory, configs) as bench:
        slots = list(bench.ring.slots.values())
        await bench.ready()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for slot, card in zip(slots, rig.cards, strict=True):
                    nursery.start_soon(sign, slot, card)
            for card in rig.cards:
                card.pull()
            await until(lambda: all(s.state is SlotState.EMPTY for s in slots), EVENT_SECONDS_MAX)
            for card in reversed(rig.cards):
                card.insert()
            await bench.ready()
        # A mute card among sixteen: no entry is left for new readers, and nobody is delayed.
        rig.cards[3].mute()
        rig.cards[3].swap()
        await bench.state(SlotState.MUTE, 3)
        rig.cards[15].pull()
        await until(lambda: slots[15].state is SlotState.EMPTY, 0.1)
        assert bench.kinds(slots[3].name) == {AlarmKind.KEY_FAULT}


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    folder = Path(sys.argv[1])
    with UkeyRig.start(folder / "rig", slots=SLOTS) as running:
        running.export_environment()
        trio.run(main, running, folder)
