"""An account of the enterprise that a bank approved for direct connection (银企直联账号)."""

from __future__ import annotations

import attrs

from fep.domain.ids import AccountNumber, BankName


@attrs.frozen
class Account:
    """One approved account; only these may pay, and only these take part in pooling."""

    number: AccountNumber
    bank: BankName
    name: str
    """Holder's name as the bank knows it (户名)."""
    bank_code: str = ""
    """CNAPS code of the opening branch (开户行行号), 12 digits, or empty."""
    bank_title: str = ""
    """Opening bank's name (开户行名称), as other banks want it in a payment to this account."""
    currency: str = "CNY"


def mask(number: str) -> str:
    """Return the number as logs and screens show it: ``6222****1234``."""
    return f"{number[:4]}****{number[-4:]}" if len(number) > 8 else "****"
