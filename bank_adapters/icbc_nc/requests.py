"""Canonical operations to the bank's trades; every value is checked before it is written."""

from __future__ import annotations

import datetime as dt
from typing import Final, assert_never

from bank_adapters.icbc_nc.config import BANK_CLASS, IcbcNcOptions
from bank_adapters.icbc_nc.messages import Message, moment
from fep.adapters.api import BankProfile, Context
from fep.domain.clock import SHANGHAI, business_date
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.order import (
    BalanceQuery,
    Operation,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
    Urgency,
)

BALANCE: Final = "QACCBAL"
PAYMENT: Final = "PAYENT"
STATUS: Final = "QPAYENT"
TODAY: Final = "QPD"
HISTORY: Final = "QHISD"

RENMINBI: Final = "001"
ROW: Final = "1"
"""iSeqno of the only row of a package."""
TEXT_BYTES_MAX: Final = 200
"""Our choice: the bank's lengths are not known."""


def trade_of(operation: Operation) -> frozenset[str]:
    """Return the trades that may carry an operation."""
    match operation:
        case BalanceQuery():
            return frozenset({BALANCE})
        case PaymentOrder():
            return frozenset({PAYMENT})
        case StatusQuery():
            return frozenset({STATUS})
        case StatementQuery():
            return frozenset({TODAY, HISTORY})
        case _:
            assert_never(operation)


def probe(profile: BankProfile, context: Context, at: dt.datetime) -> Message:
    """Return the heartbeat: the balance of the first account of ours at this bank."""
    ours = (number for number, one in profile.accounts.items() if one.bank == profile.bank)
    return _balance(next(ours, AccountNumber("0")), profile, context.sequence, at)


def request(
    operation: Operation, profile: BankProfile, context: Context, at: dt.datetime
) -> Message:
    """Return the message that carries an operation.

    Args:
        operation: what to do.
        profile: whose bank.
        context: the request's number, and the payment's.
        at: the bank's clock as far as we know it.

    Raises:
        BodyError: this bank can't carry it; the message names the member and what is right.
        LocalProtocolError: a payment without its reference.
    """
    match operation:
        case BalanceQuery():
            account = _own_account(operation.account, profile, "account")
            return _balance(account, profile, context.sequence, at)
        case PaymentOrder():
            return _payment(operation, profile, context, at)
        case StatusQuery():
            return _status(operation, profile, context, at)
        case StatementQuery():
            return _statement(operation, profile, context, at)
        case _:
            assert_never(operation)


def _pub(trade: str, profile: BankProfile, number: str, at: dt.datetime) -> dict[str, str]:
    options, stamp = options_of(profile), moment(at)
    return {
        "TransCode": trade,
        "CIS": options.cis,
        "BankCode": BANK_CLASS,
        "ID": options.user_id,
        "TranDate": stamp[:8],
        "TranTime": stamp[8:],
        "fSeqno": number,
    }


def options_of(profile: BankProfile) -> IcbcNcOptions:
    """Return the bank's options."""
    options = profile.options
    assert isinstance(options, IcbcNcOptions)
    return options


def _balance(account: AccountNumber, profile: BankProfile, number: str, at: dt.datetime) -> Message:
    row = {
        "iSeqno": ROW,
        "AccNo": account,
        "CurrType": RENMINBI,
        "ReqReserved3": "",
        "ReqReserved4": "",
    }
    fields = {"TotalNum": "1", "ReqReserved1": "", "ReqReserved2": ""}
    return Message(_pub(BALANCE, profile, number, at), fields, (row,))


def _payment(
    order: PaymentOrder, profile: BankProfile, context: Context, at: dt.datetime
) -> Message:
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
    fen = str(order.amount.fen)
    fields = {
        "OnlBatF": "1",
        "SettleMode": "0",
        "TotalNum": "1",
        "TotalAmt": fen,
        "SignTime": moment(at),
        "ReqReserved1": "",
        "ReqReserved2": "",
    }
    row = {
        "iSeqno": ROW,
        "PayType": "1" if order.urgency is Urgency.URGENT else "2",
        "PayAccNo": payer,
        "PayAccNameCN": _text(profile.accounts[payer].name, "payer.name"),
        "RecAccNo": _text(order.payee.account, "payee.account"),
        "RecAccNameCN": _text(order.payee.name, "payee.name"),
        "SysIOFlg": "1" if same_bank else "2",
        "IsSameCity": "2",
        "RecBankNo": code,
        "RecBankName": "" if same_bank and not bank_name else _text(bank_name, "payee.bank_name"),
        "CurrType": RENMINBI,
        "PayAmt": fen,
        "UseCN": _text(purpose, "purpose"),
        "Ref": context.client_ref,
    }
    return Message(_pub(PAYMENT, profile, context.client_ref, at), fields, (row,))


def _status(query: StatusQuery, profile: BankProfile, context: Context, at: dt.datetime) -> Message:
    fields = {
        "QryfSeqno": _text(query.client_ref, "client_ref"),
        "QrySerialNo": "",
        "ReqReserved1": "",
        "ReqReserved2": "",
    }
    return Message(_pub(STATUS, profile, context.sequence, at), fields)


def _statement(
    query: StatementQuery, profile: BankProfile, context: Context, at: dt.datetime
) -> Message:
    account = _own_account(query.account, profile, "account")
    today = business_date(context.now)
    if query.first_day == query.last_day == today:
        fields = {
            "AccNo": account,
            "AreaCode": "",
            "MinAmt": "",
            "MaxAmt": "",
            "BeginTime": "",
            "EndTime": "",
            "NextTag": _tag(query, TODAY),
            "ReqReserved1": "",
            "ReqReserved2": "",
            "AcctSeq": "",
            "CurrType": RENMINBI,
        }
        return Message(_pub(TODAY, profile, context.sequence, at), fields)
    days = (query.last_day - query.first_day).days
    if query.last_day >= today or not 0 <= days < profile.card.statement.span_days_max:
        msg = "'from' and 'to': this bank tells today by itself, and past days in a limited span"
        raise BodyError(msg)
    fields = {
        "AccNo": account,
        "BeginDate": f"{query.first_day:%Y%m%d}",
        "EndDate": f"{query.last_day:%Y%m%d}",
        "MinAmt": "",
        "MaxAmt": "",
        "NextTag": _tag(query, HISTORY),
        "ReqReserved1": "",
        "ReqReserved2": "",
    }
    return Message(_pub(HISTORY, profile, context.sequence, at), fields)


def cursor_of(trade: str, tag: str) -> str:
    """Return the mark of the page behind one: the bank's tag, and the trade it belongs to."""
    return f"{trade}:{tag}"


def _tag(query: StatementQuery, trade: str) -> str:
    """Return the tag of a page for the trade that is asked by now.

    Raises:
        BodyError: it is another trade's.
    """
    if not query.cursor:
        return ""
    of_trade, _, tag = query.cursor.partition(":")
    if of_trade != trade:
        msg = "midnight passed between two pages of today's lines: ask for the statement anew"
        raise BodyError(msg)
    return tag


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
        size = len(value.encode("gbk"))
    except UnicodeEncodeError as error:
        msg = f"{member}: character {value[error.start]!r} is not in GBK, which this bank speaks"
        raise BodyError(msg) from error
    if size > TEXT_BYTES_MAX:
        msg = f"{member} has {size} bytes in GBK; this bank takes at most {TEXT_BYTES_MAX}"
        raise BodyError(msg)
    return value


def asked_at(sequence: str) -> dt.datetime | None:
    """Return when a request was made, aware, which its number tells; None for other numbers."""
    if len(sequence) != 20 or not sequence.isascii() or not sequence.isdecimal():
        return None
    try:
        local = dt.datetime.strptime(sequence[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007
    except ValueError:
        return None
    return local.replace(tzinfo=SHANGHAI).astimezone(dt.UTC)
