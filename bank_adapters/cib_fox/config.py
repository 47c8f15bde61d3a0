"""What the adapter ships (its card) and what a bank's ``options`` table may say."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import attrs
from attrs import validators

from bank_adapters.cib_fox.messages import fault
from fep.adapters.card import BehaviourCard, card_from_toml

NAME: Final = "cib_fox"
BANK_CLASS: Final = "309"
"""First three digits of the CNAPS code of every branch of this bank."""
BANK_TITLE: Final = "兴业银行"
"""May not stand in BANKDESC of a payee at another bank."""
PASSWORD: Final = "password"  # noqa: S105 - the secret's name
"""Of the operator, in every request: ``secrets.password`` of the bank's table."""
PASSWORD_BYTES_MAX: Final = 30
PURPOSE_CHARS_MAX: Final = 30
"""PURPOSE is C60 in the document's tables and 30 in its FAQ."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""


def _fits(bytes_max: int, *, empty: bool = False) -> Any:  # noqa: ANN401 - an attrs validator
    def check(_: object, attribute: attrs.Attribute[str], value: str) -> None:
        wrong = fault(value, bytes_max) or ("" if empty or value.strip() else "must not be empty")
        if wrong:
            msg = f"{attribute.name} {wrong}"
            raise ValueError(msg)

    return check


@attrs.frozen
class CibFoxOptions:
    """The ``options`` table of a bank of this adapter.

    Raises:
        ValueError: a value can't go into the bank's node; the message names the option.
    """

    customer_id: str = attrs.field(validator=validators.matches_re(r"[0-9]{10}"))
    """The enterprise's number (企业客户号, CID), ten digits."""
    user_id: str = attrs.field(validator=_fits(20))
    """The operator's login name (登录用户名, USERID)."""
    app_id: str = attrs.field(default="FEP01", validator=_fits(5))
    """Name of the enterprise's program (客户端应用程序编码, APPID)."""
    app_version: str = attrs.field(
        default="1000", validator=validators.matches_re(r"[0-9A-Za-z.]{1,4}")
    )
    """Its version (APPVER)."""
    path: str = attrs.field(default="/", validator=validators.matches_re(r"/[!-~]{0,200}"))
    """Where the bank's local proxy takes messages."""
    payee_city_default: str = attrs.field(default="", validator=_fits(30, empty=True))
    """Payee's city (收款人城市, CITY), which payments to other banks can't go without."""
    purpose_default: str = attrs.field(
        default="转账", validator=validators.and_(_fits(60), validators.max_len(PURPOSE_CHARS_MAX))
    )
    """Purpose (用途, PURPOSE) of payments that come without one: the bank demands one."""
