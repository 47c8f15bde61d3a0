"""Canonical operations to the bank's trades; every value is checked before it is written."""

from __future__ import annotations

from typing import Final, assert_never

from bank_adapters.ccb_wlpt.config import BANK_CLASS, PASSWORD, CcbWlptOptions
from bank_adapters.ccb_wlpt.messages import CHARSET, Message
from fep.adapters.api import BankProfile, Context
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.order import (
    BalanceQuery,
    Operation,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
)

BALANCE: Final = "6W0100"
STATEMENT: Final = "6W0300"
STATUS: Final = "6W0600"
SAME_BANK: Final = "6W8010"
OTHER_BANK: Final = "6W8020"
PAYMENTS: Final = frozenset({SAME_BANK, OTHER_BANK})

RENMINBI: Final = "01"
SERIAL_DIGITS: Final = 16
"""REQUEST_SN of a query: the last digits of its number, month to second and a count."""
TEXT_BYTES_MAX: Final = 200
"""Our choice: the bank's lengths are not known."""


def trades_of(operation: Operation) -> frozenset[str]:
    """Return the trades that may carry an operation."""
    match operation:
        case BalanceQuery():
            return frozenset({BALANCE})
        case PaymentOrder():
            return PAYMENTS
        case StatusQuery():
            return frozenset({STATUS})
        case StatementQuery():
            return frozenset({STATEMENT})
        case _:
            assert_never(operation)


def probe(profile: BankProfile, context: Context) -> Message:
    """Return the heartbeat: the balance of the first account of ours at this bank."""
    ours = (number for number, one in profile.accounts.items() if one.bank == profile.bank)
    return _balance(next(ours, AccountNumber("0")), profile, context)


def request(operation: Operation, profile: BankProfile, context: Context) -> Message:
    """Return the message that carries an operation.

    Raises:
        BodyError: this bank can't carry it; the message names the member and what is right.
        LocalProtocolError: a payment without its reference.
    """
    match operation:
        case BalanceQuery():
            return _balance(_own_account(operation.account, profile, "account"), profile, context)
        case PaymentOrder():
            return _payment(operation, profile, context)
        case StatusQuery():
            fields = {"REQUEST_SN1": _text(operation.client_ref, "client_ref")}
            return Message(_head(STATUS, profile, _serial(context)), fields)
        case StatementQuery():
            return _statement(operation, profile, context)
        case _:
            assert_never(operation)


def _serial(context: Context) -> str:
    return context.sequence[-SERIAL_DIGITS:]


def _head(trade: str, profile: BankProfile, number: str) -> dict[str, str]:
    options = options_of(profile)
    return {
        "REQUEST_SN": number,
        "CUST_ID": options.customer_id,
        "USER_ID": options.user_id,
        "PASSWORD": profile.secrets.get(PASSWORD, ""),
        "TX_CODE": trade,
        "LANGUAGE": "CN",
        "SIGN_INFO": "",
        "SIGNCERT": "",
    }


def options_of(profile: BankProfile) -> CcbWlptOptions:
    """Return the bank's options."""
    options = profile.options
    assert isinstance(options, CcbWlptOptions)
    return options


def _balance(account: AccountNumber, profile: BankProfile, context: Context) -> Message:
    return Message(_head(BALANCE, profile, _serial(context)), {"ACC_NO": account})


def _payment(order: PaymentOrder, profile: BankProfile, context: Context) -> Message:
    if context.client_ref is None:
        msg = "a payment was to be written without its reference"
        raise LocalProtocolError(msg)
    payer = _own_account(order.payer, profile, "payer.account")
    own = profile.accounts.get(order.payee.account)
    code = order.payee.bank_code or (own.bank_code if own else "")
    same_bank = code.startswith(BANK_CLASS) or (
        not code and own is not None and own.bank == profile.bank
    )
    bank_name = order.payee.bank_name or (own.bank_title if own else "")
    if not same_bank and not bank_name.strip():
        msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
        raise BodyError(msg)
    purpose = order.purpose if order.purpose.strip() else options_of(profile).purpose_default
    fields = {
        "PAY_ACCNO": payer,
        "RECV_ACCNO": _text(order.payee.account, "payee.account"),
        "RECV_ACC_NAME": _text(order.payee.name, "payee.name"),
        "CHK_RECVNAME": "1",
        "PAY_AMOUNT": str(order.amount),
        "CUR_CODE": RENMINBI,
        "USEOF": _text(purpose, "purpose"),
        "REM1": context.client_ref,
        "REM2": "",
    }
    if not same_bank:
        fields["RECV_OPENACC_DEPT"] = _text(bank_name, "payee.bank_name")
        fields["RECV_UBANKNO"] = code
    trade = SAME_BANK if same_bank else OTHER_BANK
    return Message(_head(trade, profile, context.client_ref), fields)


def _statement(query: StatementQuery, profile: BankProfile, context: Context) -> Message:
    days = (query.last_day - query.first_day).days
    if not 0 <= days < profile.card.statement.span_days_max:
        msg = "'from' and 'to': this bank tells a limited number of days at once"
        raise BodyError(msg)
    fields = {
        "ACC_NO": _own_account(query.account, profile, "account"),
        "START_DATE": f"{query.first_day:%Y%m%d}",
        "END_DATE": f"{query.last_day:%Y%m%d}",
        "START_PAGE": query.cursor or "1",
        "POSTSTR": "",
    }
    return Message(_head(STATEMENT, profile, _serial(context)), fields)


def _own_account(number: AccountNumber, profile: BankProfile, member: str) -> AccountNumber:
    account = profile.accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{member} is no approved account of ours at bank {profile.bank!r}"
        raise BodyError(msg)
    return number


def _text(value: str, member: str) -> str:
    """Return a value that the bank's parser reads back as it is."""
    if not value.strip() or not value.isprintable():
        msg = f"{member} must be printable text that is not blank"
        raise BodyError(msg)
    try:
        size = len(value.encode(CHARSET))
    except UnicodeEncodeError as error:
        msg = f"{member}: character {value[error.start]!r} is not in GB18030"
        raise BodyError(msg) from error
    if size > TEXT_BYTES_MAX:
        msg = f"{member} has {size} bytes in GB18030; this bank takes at most {TEXT_BYTES_MAX}"
        raise BodyError(msg)
    return value
