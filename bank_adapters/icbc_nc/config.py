"""What the adapter ships (its card) and what a bank's ``options`` table may say."""

from __future__ import annotations

from importlib import resources
from typing import Final

import attrs
from attrs import validators

from fep.adapters.card import BehaviourCard, card_from_toml

NAME: Final = "icbc_nc"
BANK_CLASS: Final = "102"
"""First three digits of the CNAPS code of every branch of this bank, and its BankCode."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""

_WORD: Final = validators.matches_re(r"[0-9A-Za-z._-]{1,40}")


@attrs.frozen
class IcbcNcOptions:
    """The ``options`` table of a bank of this adapter.

    Raises:
        ValueError: a value can't go into the bank's field; the message names the option.
    """

    user_id: str = attrs.field(validator=_WORD)
    """ID of the certificate (证书ID), such as fep01.y.9999."""
    cis: str = attrs.field(validator=_WORD)
    """Number of the enterprise's group (集团CIS号)."""
    sign_host: str = ""
    """Where the sign port is; empty: on the bank's ``host``."""
    sign_port: int = attrs.field(
        default=449, validator=validators.and_(validators.ge(1), validators.le(65_535))
    )
    """The NetSafe Client's sign port; the bank's ``port`` is the send port (448)."""
    purpose_default: str = attrs.field(default="转账", validator=validators.min_len(1))
    """Purpose (用途, UseCN) of payments that come without one."""
