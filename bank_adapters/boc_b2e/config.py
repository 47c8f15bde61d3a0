"""What the adapter ships (its card) and what a bank's ``options`` table may say."""

from __future__ import annotations

from importlib import resources
from typing import Final

import attrs
from attrs import validators

from fep.adapters.card import BehaviourCard, card_from_toml

NAME: Final = "boc_b2e"
BANK_CLASS: Final = "104"
"""First three digits of the CNAPS code of every branch of this bank."""
PASSWORD: Final = "password"  # noqa: S105 - the secret's name
"""Of the operator, for the sign-on: ``secrets.password`` of the bank's table."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""

_WORD: Final = validators.matches_re(r"[0-9A-Za-z_-]{1,30}")


@attrs.frozen
class BocB2eOptions:
    """The ``options`` table of a bank of this adapter.

    Raises:
        ValueError: a value can't go into the bank's field; the message names the option.
    """

    terminal_id: str = attrs.field(validator=_WORD)
    """The front-end machine's number (前置机号, termid)."""
    customer_id: str = attrs.field(validator=_WORD)
    """The enterprise's number (企业客户号, custid)."""
    operator_id: str = attrs.field(validator=_WORD)
    """The operator's number (操作员号, cusopr)."""
    path: str = attrs.field(
        default="/B2EP/XmlServlet", validator=validators.matches_re(r"/[!-~]{0,200}")
    )
    """Where the servlet is."""
    purpose_default: str = attrs.field(default="转账", validator=validators.min_len(1))
    """Purpose (用途, furinfo) of payments that come without one."""
