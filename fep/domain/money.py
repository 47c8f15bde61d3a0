"""Money: a whole number of fen, never a float (1 yuan = 100 fen)."""

from __future__ import annotations

import re
from typing import Final, Self

import attrs

FEN_MAX: Final = 10**15
"""Largest amount taken at any boundary: ten trillion yuan, far inside 64 bits."""

_DECIMAL: Final = re.compile(r"-?[0-9]{1,13}\.[0-9]{2}")
_PLAIN: Final = re.compile(r"-?[0-9]{1,13}(?:\.[0-9]{1,2})?")
_GROUPED: Final = r"[0-9]{1,3}(?:,[0-9]{3}){1,3}|[0-9](?:,[0-9]{3}){4}"
_LOOSE: Final = re.compile(rf"-?(?:[0-9]{{1,13}}|{_GROUPED})(?:\.[0-9]{{1,2}})?")
"""A comma stands before three digits or the text is no amount: ``12,5`` must not become 125."""


@attrs.frozen(order=True, repr=False)
class Cny:
    """An amount of renminbi in fen; may be negative in a balance, never in an order."""

    fen: int = attrs.field(validator=attrs.validators.instance_of(int))

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
    def parse_plain(cls, text: str) -> Self:
        """Return the amount written in digits: ``12``, ``12.5`` or ``12.50``.

        Raises:
            ValueError: the text is not such a number.
        """
        if not _PLAIN.fullmatch(text):
            msg = f"{text[:40]!r} is not an amount in yuan"
            raise ValueError(msg)
        if text[-3:-2] == ".":
            return cls(int(text[:-3] + text[-2:]))
        whole, _, decimals = text.partition(".")
        return cls(int(whole + decimals.ljust(2, "0")))

    @classmethod
    def parse_loose(cls, text: str) -> Self:
        """Return the amount as banks write it: ``12``, ``12.5``, ``12.50``, or ``1,234.50``.

        Raises:
            ValueError: the text is not such a number.
        """
        if _PLAIN.fullmatch(text):
            return cls.parse_plain(text)
        stripped = text.strip()
        if not _LOOSE.fullmatch(stripped):
            msg = f"{text[:40]!r} is not an amount in yuan"
            raise ValueError(msg)
        whole, _, decimals = stripped.replace(",", "").partition(".")
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
