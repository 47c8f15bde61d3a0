"""Amounts as the bank writes them; the rest of this adapter is held by conformance."""

from __future__ import annotations

import pytest

from fep.adapters import registry
from fep.adapters.api import Accepted, BankProfile, Unclear
from fep.domain.account import Account
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.domain.order import Balance, BalanceQuery

BANK = BankName("abc")
OURS = AccountNumber("10999900010101")


@pytest.mark.parametrize(
    ("written", "fen"), [("12", 1200), ("12.5", 1250), ("12.50", 1250), (" 12.50 ", 1250)]
)
def test_a_balance_with_or_without_decimals_is_read(written: str, fen: int) -> None:
    found = asked(written)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Balance)
    assert found.result.book == found.result.available == Cny(fen)


@pytest.mark.parametrize("written", ["", "1,2", "12.555", "x"])
def test_what_is_no_amount_proves_nothing(written: str) -> None:
    assert isinstance(asked(written), Unclear)


def asked(written: str) -> object:
    """Return what an answer means that writes both balances so."""
    adapter = registry.adapter("abc_ict")
    accounts = {OURS: Account(OURS, BANK, "江枫样例制造有限公司", "103100000026", "农业银行")}
    options = adapter.options_class(corp_no="1", op_no="1")
    codec = adapter.open(BankProfile(BANK, adapter.card, options, "4012", accounts))
    told = f"|{OURS}|||{written}|{written}|"
    body = (
        "<ap><ReqSeqNo>1</ReqSeqNo><CCTransCode>CQRA06</CCTransCode><RespCode>0000</RespCode>"
        "<RespDate>20260105</RespDate><RespTime>090101</RespTime>"
        f"<Cmp><RespPrvData>{told}</RespPrvData></Cmp></ap>"
    ).encode("gb18030")
    [reply] = codec.framer().receive_data(b"0%-6d" % len(body) + body)
    return codec.outcome(BalanceQuery(OURS), reply)
