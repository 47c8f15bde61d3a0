"""Money: a whole number of fen, never a float (1 yuan = 100 fen)."""

from __future__ import annotations

import re
from typing import Final, Self

import attrs

FEN_MAX: Final = 10**15
"""Largest amount taken at any boundary: ten trillion yuan, far inside 64 bits."""

_DECIMAL: Final = re.compile(r"-?[0-9]{1,13}\.[0-9]{2}")
_LOOSE: Final = re.compile(r"-?[0-9]{1,13}(\.[0-9]{1,2})?")


@attrs.frozen(order=True, repr=False)
class Cny:
    """An amount of renminbi in fen; may be negative in a balance, never in an order."""

    fen: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the amount written as ``1234.50``: exactly two decimals, no sign but minus.

        Raises:
            ValueError: the text is not such a number, or is beyond ``FEN_MAX``.
        """
        if not _DECIMAL.fullmatch(text):
            msg = f"{text[:40]!r} is not an amount with two decimals such as '1234.50'"
            raise ValueError(msg)
        return cls(int(text.replace(".", "")))

    @classmethod
    def parse_loose(cls, text: str) -> Self:
        """Return the amount as banks write it: ``12``, ``12.5`` and ``12.50`` are the same.

        Raises:
            ValueError: the text is not such a number.
        """
        stripped = text.strip().replace(",", "")
        if not _LOOSE.fullmatch(stripped):
            msg = f"{text[:40]!r} is not an amount in yuan"
            raise ValueError(msg)
        whole, _, decimals = stripped.partition(".")
        return cls(int(whole + decimals.ljust(2, "0")))

    def __str__(self) -> str:
        sign = "-" if self.fen < 0 else ""
        yuan, fen = divmod(abs(self.fen), 100)
        return f"{sign}{yuan}.{fen:02d}"

    def __repr__(self) -> str:
        return f"Cny({self})"

    def __add__(self, other: Cny) -> Cny:
        return Cny(self.fen + other.fen)

    def __sub__(self, other: Cny) -> Cny:
        return Cny(self.fen - other.fen)

    def __neg__(self) -> Cny:
        return Cny(-self.fen)


ZERO: Final = Cny(0)
