"""A bank adapter with a defect that never returns, for the booted machine only.

It is Ping An's but for one thing: a payment that is prepared in the process whose number stands in
a file is prepared for ever. The event loop stands still then, as it would by such a defect.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import attrs

from bank_adapters.pingan_b2bi import ADAPTER as PINGAN
from bank_adapters.pingan_b2bi import PinganAdapter
from bank_adapters.pingan_b2bi.codec import PinganCodec
from fep.adapters.api import BankProfile, Context, Draft
from fep.domain.order import Operation

STUCK = Path("/run/stuck-pid")


class StuckCodec(PinganCodec):
    """Stands still when it is told to."""

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the draft, or never."""
        while STUCK.exists() and STUCK.read_text("utf-8") == str(os.getpid()):
            time.sleep(1.0)
        return super().prepare(operation, context)


@attrs.frozen
class StuckAdapter(PinganAdapter):
    """The registration value."""

    name: str = "stuck_bank"

    def open(self, profile: BankProfile) -> PinganCodec:
        """Return the codec of one configured bank."""
        return StuckCodec(profile)


ADAPTER = StuckAdapter(PINGAN.card)
