"""An account as logs and screens show it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.account import Account, mask
from fep.domain.ids import AccountNumber, BankName


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("6222020200001234567", "6222****4567"),
        ("99000000000101", "9900****0101"),
        ("12345678", "****"),
        ("1234", "****"),
        ("", "****"),
    ],
)
def test_the_middle_of_a_number_is_hidden(number: str, shown: str) -> None:
    assert mask(number) == shown


@given(number=st.text(alphabet="0123456789", min_size=9, max_size=35))
def test_a_shown_number_has_its_own_ends_and_nothing_of_its_middle(number: str) -> None:
    shown = mask(number)
    assert (shown[:4], shown[4:8], shown[8:]) == (number[:4], "****", number[-4:])


def test_an_account_is_renminbi_unless_told_otherwise() -> None:
    account = Account(AccountNumber("1"), BankName("b"), "江枫样例制造有限公司")
    assert (account.currency, account.bank_code, account.bank_title) == ("CNY", "", "")
    with pytest.raises(AttributeError):
        account.number = AccountNumber("2")  # type: ignore[misc]
