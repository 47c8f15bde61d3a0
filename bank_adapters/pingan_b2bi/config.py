"""The ``options`` table of a bank that speaks B2Bi."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class PinganOptions:
    """What the administrator may set besides the members every bank has."""

    corp_code: str = ""
    """Enterprise code (企业代码) in the header, 1 to 20 characters; empty = 银企直联编号."""
    today_trade: Literal["4013", "4008"] = "4013"
    """Trade that today's statement is asked with; 4008 has pages of 10 rows, 4013 of 30."""
    bank_class: str = "307"
    """First three digits of the CNAPS codes that belong to this bank (银行大类)."""
    bank_title: str = "平安银行"
    """Name of the payee's bank in a payment inside the bank where none is given."""
