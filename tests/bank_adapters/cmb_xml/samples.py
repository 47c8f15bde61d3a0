"""The synthetic messages, and the profile and orders that they were made from."""

from __future__ import annotations

import datetime as dt
import tomllib
from pathlib import Path
from typing import Any, Final

import attrs

from bank_adapters.cmb_xml import ADAPTER
from bank_adapters.cmb_xml.codec import CmbXmlCodec
from bank_adapters.cmb_xml.config import CARD, CmbXmlOptions
from bank_adapters.cmb_xml.frames import pack
from fep.adapters.api import BankProfile, Context, Reply
from fep.adapters.card import override
from fep.domain.account import Account
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, BankName, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    Payee,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
)


@attrs.frozen
class Sample:
    """One message of ``samples.toml``."""

    title: str
    size: int
    sha256: str
    xml: str

    @property
    def data(self) -> bytes:
        return self.xml.encode("gbk")


SAMPLES: Final = {
    name: Sample(**value)
    for name, value in tomllib.loads(
        Path(__file__).with_name("samples.toml").read_text("utf-8")
    ).items()
}

CMB: Final = BankName("cmb-main")
OTHER: Final = BankName("cib-main")
PAYER: Final = AccountNumber("999900000010101")
SISTER: Final = AccountNumber("999900000010102")
"""Ours, at this bank too."""
ABROAD: Final = AccountNumber("88880000000000303")
"""Ours, at another bank."""
STRANGER: Final = AccountNumber("99990000000000202")
REFERENCE: Final = ClientRef("FEP20260105000000001")
SEQUENCE: Final = "20260105000123"
DAY: Final = BusinessDate(dt.date(2026, 1, 5))
NOW: Final = dt.datetime(2026, 1, 5, 1, 2, 5, tzinfo=dt.UTC)
"""09:02:05 in Shanghai."""

ACCOUNTS: Final = {
    one.number: one
    for one in (
        Account(PAYER, CMB, "江枫样例制造有限公司", "308584000013", "招商银行"),
        Account(SISTER, CMB, "江枫样例销售有限公司"),
        Account(ABROAD, OTHER, "江枫样例投资有限公司", "309391000011", "兴业银行"),
    )
}
OPTIONS: Final = CmbXmlOptions(
    login_name="FEP01", branch="99", payee_address_default="福建省福州市"
)
ORDER: Final = PaymentOrder(
    payer=PAYER,
    payee=Payee(STRANGER, "云阶示例贸易有限公司", bank_code="309391000011", bank_name="兴业银行"),
    amount=Cny.parse("1000.50"),
    purpose="货款",
)
BALANCE: Final = BalanceQuery(PAYER)
STATUS: Final = StatusQuery(REFERENCE, ORDER, DAY)
STATEMENT: Final = StatementQuery(PAYER, DAY, DAY)
CONTEXT: Final = Context(NOW, SEQUENCE, REFERENCE)


def codec(options: CmbXmlOptions = OPTIONS, card: dict[str, Any] | None = None) -> CmbXmlCodec:
    """Return the codec of a bank with these options and its own changes to the card."""
    changed = override(CARD, card or {})
    opened = ADAPTER.open(BankProfile(CMB, changed, options, "E99000001", ACCOUNTS))
    assert isinstance(opened, CmbXmlCodec)
    return opened


def reply(xml: bytes | str) -> Reply:
    """Return the reply that the framer makes of one XML."""
    data = xml.encode("gb18030") if isinstance(xml, str) else xml
    (made,) = codec().framer().receive_data(pack(data))
    return made
