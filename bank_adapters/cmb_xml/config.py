"""What the adapter ships (its card) and what a bank's ``options`` table may say."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import attrs

from fep.adapters.card import BehaviourCard, card_from_toml

NAME: Final = "cmb_xml"
BANK_CLASS: Final = "308"
"""First three digits of the CNAPS code of every branch of this bank."""
BUSINESS_CODES: Final = ("N02031", "N02041")
"""Direct payment (直接支付) and direct payment of a group (直接集团支付)."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""

LOGIN_NAME_BYTES_MAX: Final = 30
BRANCH_CHARS: Final = 2
BUSINESS_MODE_CHARS_MAX: Final = 5


def _fits_gbk(bytes_max: int, *, empty: bool) -> Any:  # noqa: ANN401 - an attrs validator
    def check(_: object, attribute: attrs.Attribute[str], value: str) -> None:
        try:
            size = len(value.encode("gbk"))
        except UnicodeEncodeError as error:
            msg = f"{attribute.name}: {value[error.start]!r} is not in GBK"
            raise ValueError(msg) from error
        if size > bytes_max or not value.isprintable() or not (empty or value.strip()):
            msg = f"{attribute.name} must be printable text of at most {bytes_max} bytes in GBK"
            raise ValueError(msg)

    return check


def _branch(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not (len(value) == BRANCH_CHARS and value.isascii() and value.isalnum()):
        msg = f"{attribute.name} must be the {BRANCH_CHARS} characters of BBKNBR, such as 75"
        raise ValueError(msg)


def _branches(
    instance: object, attribute: attrs.Attribute[Mapping[str, str]], value: Mapping[str, str]
) -> None:
    for branch in value.values():
        _branch(instance, attribute, branch)  # type: ignore[arg-type]


@attrs.frozen
class CmbXmlOptions:
    """The ``options`` table of a bank of this adapter.

    Raises:
        ValueError: a value can't go into the bank's field; the message names the option.
    """

    login_name: str = attrs.field(validator=_fits_gbk(LOGIN_NAME_BYTES_MAX, empty=False))
    """Login user of the front end (登录用户名, LGNNAM)."""
    branch: str = attrs.field(validator=_branch)
    """Area of the accounts' branch (分行号, BBKNBR), such as 75 for Shenzhen."""
    branches: Mapping[str, str] = attrs.field(factory=dict, validator=_branches)
    """Area by account number, for accounts that are not at ``branch``."""
    busmod: str = attrs.field(
        default="00001", validator=_fits_gbk(BUSINESS_MODE_CHARS_MAX, empty=False)
    )
    """Business mode (业务模式编号) for payments; the bank's ListMode names those there are."""
    buscod: str = attrs.field(default="N02031", validator=attrs.validators.in_(BUSINESS_CODES))
    """Business code of payments (业务类别)."""
    payee_address_default: str = attrs.field(default="", validator=_fits_gbk(62, empty=True))
    """Payee bank's address (收方行地址, CRTADR), which interbank payments can't go without."""
    purpose_default: str = attrs.field(default="转账", validator=_fits_gbk(62, empty=False))
    """Purpose (用途, NUSAGE) of payments that come without one: the bank demands one."""

    def branch_of(self, account: str) -> str:
        """Return the area code of an account of ours."""
        return self.branches.get(account, self.branch)
