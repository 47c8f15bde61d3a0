from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi import messages
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.messages import Cursor
from fep.domain.account import Account
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import BalanceQuery, PaymentOrder, Urgency
from tests.bank_adapters.pingan_b2bi.samples import (
    INSIDE,
    LINES,
    ORDER,
    OTHER_BANK,
    PAYEE,
    REF,
    SISTER,
    TODAY,
    profile,
)

FOREIGN = AccountNumber("11000000000404")


def transfer(order: PaymentOrder, **options: str) -> str:
    given = profile(options=PinganOptions(**options))  # type: ignore[arg-type]
    own = Account(FOREIGN, OTHER_BANK, "江枫样例制造有限公司", "308584000013", "招商银行深圳分行")
    accounts = {**given.accounts, FOREIGN: own}
    return messages.transfer(attrs.evolve(given, accounts=accounts), order, REF).decode("gbk")


def paying(**changes: object) -> PaymentOrder:
    return attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "flag", "node"),
    [
        (ORDER, "0", "308584000013"),
        (INSIDE, "1", ""),
        (paying(bank_code="307584007998"), "1", ""),
        (paying(bank_code=""), "0", ""),
        (paying(account=FOREIGN, bank_code="", bank_name=""), "0", "308584000013"),
        (
            attrs.evolve(
                INSIDE, payee=attrs.evolve(INSIDE.payee, bank_code="105100000017", bank_name="建行")
            ),
            "0",
            "105100000017",
        ),
    ],
    ids=[
        "other bank",
        "own account",
        "code of the bank",
        "no code lands",
        "own account elsewhere",
        "a stranger's account of the same number",
    ],
)
def test_union_flag_follows_the_bank_code_then_the_configuration(
    order: PaymentOrder, flag: str, node: str
) -> None:
    text = transfer(order)
    assert f"<UnionFlag>{flag}</UnionFlag>" in text
    assert ("<InAcctBankNode>" in text) is bool(node)
    assert node in text


@pytest.mark.parametrize(
    ("order", "name"),
    [
        (INSIDE, "平安银行"),
        (paying(bank_name=""), "招商银行"),
        (paying(account=FOREIGN, bank_name="", bank_code=""), "招商银行深圳分行"),
        (paying(bank_name="样例银行"), "样例银行"),
    ],
)
def test_the_payees_bank_has_the_best_name_known(order: PaymentOrder, name: str) -> None:
    assert f"<InAcctBankName>{name}</InAcctBankName>" in transfer(order)


def test_urgency_is_the_sys_flag() -> None:
    assert "<SysFlag>Y</SysFlag><AddrFlag>2</AddrFlag>" in transfer(
        attrs.evolve(ORDER, urgency=Urgency.URGENT)
    )


def test_text_is_escaped_and_an_empty_purpose_left_out() -> None:
    text = transfer(paying(name="甲&乙<丙>"))
    assert "<InAcctName>甲&amp;乙&lt;丙&gt;</InAcctName>" in text
    assert "UseEx" not in transfer(attrs.evolve(ORDER, purpose=""))


@pytest.mark.parametrize(
    ("order", "member"),
    [
        (paying(name="名" * 61), "payee.name"),
        (paying(name=" "), "payee.name"),
        (paying(name="藏文ཀ"), "payee.name"),
        (paying(name="符\x02号"), "payee.name"),
        (paying(name="\U0001f600"), "payee.name"),
        (paying(account="9" * 33), "payee.account"),
        (paying(bank_name="行" * 61), "payee.bank_name"),
        (paying(bank_name="", bank_code=""), "payee.bank_name"),
        (attrs.evolve(ORDER, purpose="款" * 31), "purpose"),
        (attrs.evolve(ORDER, payer=PAYEE), "payer.account"),
        (attrs.evolve(ORDER, payer=FOREIGN), "payer.account"),
        (attrs.evolve(ORDER, amount=Cny(0)), "amount"),
        (attrs.evolve(ORDER, amount=Cny(10**13)), "amount"),
    ],
)
def test_what_the_bank_cannot_carry_is_refused_by_member(order: PaymentOrder, member: str) -> None:
    with pytest.raises(BodyError, match=member.replace(".", r"\.")):
        transfer(order)


def test_the_longest_members_are_carried() -> None:
    order = attrs.evolve(
        paying(name="名" * 60, bank_name="行" * 60, account="9" * 32),
        purpose="款" * 30,
        amount=messages.AMOUNT_MAX,
    )
    assert "<TranAmount>99999999999.99</TranAmount>" in transfer(order)


def test_a_reference_above_twenty_characters_is_refused() -> None:
    with pytest.raises(BodyError, match="client_ref"):
        messages.transfer(profile(), ORDER, ClientRef("F" * 21))


def test_an_account_of_ours_too_long_for_the_bank_is_refused() -> None:
    number = AccountNumber("9" * 15)
    given = attrs.evolve(
        profile(), accounts={number: Account(number, profile().bank, "江枫样例制造有限公司")}
    )
    with pytest.raises(BodyError, match="Account takes at most 14"):
        messages.balance(given, BalanceQuery(number))


def test_only_approved_accounts_of_this_bank_are_asked_about() -> None:
    with pytest.raises(BodyError, match="approved"):
        messages.balance(profile(), BalanceQuery(PAYEE))
    assert b"99000000000202" in messages.balance(profile(), BalanceQuery(SISTER))


DIGITS = st.text("0123456789", min_size=1, max_size=9)


@given(
    st.sampled_from(["4008", "4013"]),
    st.dates().map(lambda day: f"{day:%Y%m%d}".rjust(8, "0")),
    st.integers(0, 9999),
    st.integers(0, 1000),
    DIGITS,
    DIGITS,
)
def test_a_cursor_reads_what_it_writes(
    trade: str, day: str, page: int, rows: int, journal: str, log_count: str
) -> None:
    cursor = Cursor(trade, day, page, rows, journal, log_count)
    assert Cursor.parse(str(cursor)) == cursor


@given(st.text(max_size=40))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    try:
        assert str(Cursor.parse(text))
    except BodyError:
        return


def later(days: int) -> BusinessDate:
    return BusinessDate(TODAY + dt.timedelta(days=days))


def statement(first: int, last: int, cursor: str = "", **options: str) -> str:
    query = attrs.evolve(LINES, first_day=later(first), last_day=later(last), cursor=cursor)
    given = profile(options=PinganOptions(**options))  # type: ignore[arg-type]
    start = messages.start(given, query, TODAY)
    return messages.statement(given, query, start, TODAY).decode("gbk")


def test_today_is_asked_with_the_trade_that_is_configured() -> None:
    assert "<PageNo>1</PageNo><PageSize>30</PageSize>" in statement(0, 0)
    wanted = "<PageNo>0</PageNo><JournalNo>0</JournalNo><LogCount>0</LogCount>"
    assert wanted in statement(0, 0, today_trade="4008")
    assert "<PageSize>" in statement(-2, -1, today_trade="4008")


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (0, 1), (1, 1)])
def test_mixed_and_future_days_are_refused(first: int, last: int) -> None:
    with pytest.raises(BodyError):
        statement(first, last)


def test_a_page_keeps_the_size_its_walk_began_with() -> None:
    cursor = "4013/20260105/3/200/0/0"
    assert "<PageNo>3</PageNo><PageSize>200</PageSize>" in statement(-2, -1, cursor)
    assert "<JournalNo>10</JournalNo><LogCount>12</LogCount>" in statement(
        0, 0, "4008/20260105/1/0/10/12"
    )


@pytest.mark.parametrize("trade", ["4008", "4013"])
def test_a_walk_over_today_does_not_go_on_after_midnight(trade: str) -> None:
    with pytest.raises(BodyError, match="day changed"):
        statement(-1, -1, f"{trade}/20260104/2/30/0/0")
