"""What the adapter ships (its card) and what a bank's ``options`` and ``secrets`` may say."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import attrs
from attrs import validators

from fep.adapters.card import BehaviourCard, card_from_toml
from fep.crypto.sm2 import Sm2PublicKey

NAME: Final = "cmb_cdc"
BANK_CLASS: Final = "308"
"""First three digits of the CNAPS code of every branch of this bank."""
SIGN_KEY: Final = "sign_key"
"""Secret: our SM2 key as PEM, or 64 hexadecimal digits."""
SM4_KEY: Final = "sm4_key"
"""Secret: the SM4 key (对称密钥) that the bank gave, 16 characters or 32 hexadecimal digits."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""

TEXT_BYTES_MAX: Final = 62
_WORD: Final = validators.matches_re(r"[0-9A-Za-z]{1,20}")


def _text(*, empty: bool) -> Any:  # noqa: ANN401 - an attrs validator
    def check(_: object, attribute: attrs.Attribute[str], value: str) -> None:
        if not value and empty:
            return
        if not value.isprintable() or not value or len(value.encode("gb18030")) > TEXT_BYTES_MAX:
            msg = f"{attribute.name} must be printable text of at most {TEXT_BYTES_MAX} bytes"
            raise ValueError(msg)

    return check


def _point(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        Sm2PublicKey.from_point(bytes.fromhex(value))
    except ValueError as error:
        msg = f"{attribute.name} must be a point of the SM2 curve: 04, X and Y in hexadecimal"
        raise ValueError(msg) from error


@attrs.frozen
class CmbCdcOptions:
    """The ``options`` table of a bank of this adapter.

    Raises:
        ValueError: a value can't go into the bank's field; the message names the option.
    """

    user_id: str = attrs.field(validator=_WORD)
    """The login user (企业网银用户号, UID): also the SM2 user id and the SM4 vector come of it."""
    bank_public_key: str = attrs.field(validator=_point)
    """The bank's SM2 public key (银行公钥): 130 hexadecimal digits."""
    branch: str = attrs.field(validator=validators.matches_re(r"[0-9A-Za-z]{2}"))
    """Area of the accounts' branch (分行号, bbknbr), such as 75 for Shenzhen."""
    busmod: str = attrs.field(default="00001", validator=validators.matches_re(r"[0-9A-Z]{1,5}"))
    """Business mode (业务模式编号) for payments."""
    buscod: str = attrs.field(default="N02030", validator=validators.matches_re(r"[0-9A-Z]{6}"))
    """Business code of payments (业务类别)."""
    path: str = attrs.field(
        default="/cdcserver/api/v2", validator=validators.matches_re(r"/[!-~]{0,200}")
    )
    """Where the interface is."""
    blanks: bool = False
    """Let blanks into texts: only once it is known that the bank's signature check keeps them."""
    payee_address_default: str = attrs.field(default="", validator=_text(empty=True))
    """Payee bank's address (收方行地址, crtAdr) of interbank payments; left out when empty."""
    purpose_default: str = attrs.field(default="转账", validator=_text(empty=False))
    """Purpose (用途, nusAge) of payments that come without one."""
