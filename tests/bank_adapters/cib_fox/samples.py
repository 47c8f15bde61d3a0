"""The synthetic messages, and the profile and orders that they were made from."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from bank_adapters.cib_fox import ADAPTER
from bank_adapters.cib_fox.codec import CibFoxCodec
from bank_adapters.cib_fox.config import CARD, CibFoxOptions
from bank_adapters.cib_fox.messages import TYPE
from fep.adapters.api import BankProfile, Context, Reply
from fep.adapters.card import override
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.ids import AccountNumber, BankName, ClientRef
from fep.domain.money import Cny
from fep.domain.order import BalanceQuery, Payee, PaymentOrder, StatementQuery, StatusQuery
from fep.wire.http import RequestReader, response_bytes


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

CIB, OTHER = BankName("cib-main"), BankName("cmb-main")
PAYER: Final = AccountNumber("999900000000000101")
SISTER: Final = AccountNumber("999900000000000102")
"""Ours, at this bank too."""
ABROAD: Final = AccountNumber("99990000010101")
"""Ours, at another bank."""
STRANGER: Final = AccountNumber("990000000000303")
REFERENCE: Final = ClientRef("FEP20260105000000001")
DAY: Final = BusinessDate(dt.date(2026, 1, 5))
NOW: Final = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
PASSWORD: Final = "********"

ACCOUNTS: Final = {
    one.number: one
    for one in (
        Account(PAYER, CIB, "江枫样例制造有限公司", "309391000011", "兴业银行"),
        Account(SISTER, CIB, "江枫样例销售有限公司"),
        Account(ABROAD, OTHER, "江枫样例投资有限公司", "308584000013", "招商银行"),
    )
}
OPTIONS: Final = CibFoxOptions(
    customer_id="9999000001", user_id="fepuser", payee_city_default="深圳"
)
ORDER: Final = PaymentOrder(
    payer=PAYER,
    payee=Payee(STRANGER, "云阶示例贸易有限公司", bank_code="308584000013", bank_name="招商银行"),
    amount=Cny.parse("1000.50"),
    purpose="货款",
)
BALANCE: Final = BalanceQuery(PAYER)
STATUS: Final = StatusQuery(REFERENCE, ORDER, DAY)
STATEMENT: Final = StatementQuery(PAYER, DAY, DAY)


def context(number: str = "FEP20260105000001", seconds: int = 0) -> Context:
    return Context(NOW + dt.timedelta(seconds=seconds), number, REFERENCE)


def codec(
    card: Mapping[str, Any] | None = None,
    options: CibFoxOptions = OPTIONS,
    password: str = PASSWORD,
) -> CibFoxCodec:
    """Return the codec of a bank with its own changes to the card."""
    changed = override(CARD, card or {})
    secrets = {"password": password}
    made = ADAPTER.open(
        BankProfile(CIB, changed, options, "1", ACCOUNTS, "127.0.0.1:8007", secrets)
    )
    assert isinstance(made, CibFoxCodec)
    return made


def reply(xml: bytes | str, status: int = 200) -> Reply:
    """Return the reply that the framer makes of one XML."""
    data = xml.encode("gb18030") if isinstance(xml, str) else xml
    [made] = codec().framer().receive_data(response_bytes(status, data, TYPE))
    return made


def body_of(request: bytes) -> bytes:
    """Return the XML of a request."""
    [http] = RequestReader(10**6).receive_data(request)
    assert http.header("content-type") == TYPE
    return http.body
