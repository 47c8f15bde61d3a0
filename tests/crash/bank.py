"""A simulated bank's book that is worse than the product's: it forgets, and shows late.

What it does wrong is read from a file beside the book, so that a running host changes its manners
at once.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import zlib
from pathlib import Path
from typing import Final

import attrs

from fep.adapters.host import BookPayment, DuplicateReferenceError, PaymentRequest
from fep.domain.ids import BankName
from fep.sandbox.book import SqliteBook

AGAIN: Final = "~"
"""Stands in the book between a reference and the mark of its repetition."""
FILE: Final = "manners.json"


@attrs.frozen
class Manners:
    """What the banks of a scene do wrong."""

    forgets: bool = False
    """A reference that is known is booked once more: this bank does not protect us."""
    shows_late: bool = False
    """Every second payment is booked and not found by a status query as long as this holds."""

    def write(self, directory: Path) -> None:
        """Let the banks have these manners from now on."""
        new = directory / f"{FILE}.new"
        new.write_text(json.dumps(attrs.asdict(self)), "utf-8")
        new.replace(directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> Manners:
        """Return the present manners."""
        return cls(**json.loads((directory / FILE).read_text("utf-8")))


class CrashBook(SqliteBook):
    """The book as such a bank keeps it."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        super().__init__(path)

    def pay(self, bank: BankName, request: PaymentRequest, now: dt.datetime) -> BookPayment:
        """Book it; a second time too, where the bank forgets."""
        try:
            return super().pay(bank, request, now)
        except DuplicateReferenceError:
            if not Manners.read(self._directory).forgets:
                raise
            again = f"{request.client_ref}{AGAIN}{os.urandom(4).hex()}"
            return super().pay(bank, attrs.evolve(request, client_ref=again), now)

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference once it shows."""
        late = zlib.crc32(client_ref.encode()) % 2 == 0
        if late and Manners.read(self._directory).shows_late:
            return None
        return super().payment(bank, client_ref)
