"""Canonical operations to the bank's functions; every value is checked before it is written.

Field names and lengths: guide 4.3.1, the function's table (C = characters, Z = bytes in GBK).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final, assert_never

from bank_adapters.cmb_xml.config import BANK_CLASS, CmbXmlOptions
from bank_adapters.cmb_xml.messages import CORRELATION, DATA_XML, Block, Message
from fep.adapters.api import BankProfile, Context
from fep.domain.account import Account
from fep.domain.clock import BusinessDate, business_date
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.order import (
    BalanceQuery,
    Lookup,
    Operation,
    PaymentOrder,
    ReturnedQuery,
    StatementQuery,
    StatusQuery,
    Urgency,
)

PROBE: Final = "ListMode"
BALANCE: Final = "GetAccInfo"
PAYMENT: Final = "DCPAYMNT"
STATUS: Final = "NTQRYSTY"
STATEMENT: Final = "GetTransInfo"
PAYMENTS: Final = "NTQRYSTN"
"""Lists all payments of some days, by their submission."""

RENMINBI: Final = "10"
"""CCYNBR of renminbi."""
SAME_BANK: Final = "Y"
OTHER_BANK: Final = "N"
STATUS_REACH_DAYS: Final = 90
"""How far back NTQRYSTY looks."""
STATUS_DOUBT_DAYS: Final = 3
"""On both sides of our date: seven days in all, the most that NTQRYSTY takes."""

PAYMENTS_DAYS_MAX: Final = 7
"""Of one NTQRYSTN."""

_TEXT_BYTES_MAX: Final = 62
_LONG_NAME_BYTES_MAX: Final = 200
_REFERENCE_CHARS_MAX: Final = 30
_ACCOUNT_CHARS_MAX: Final = 35
_BANK_CODE_CHARS_MAX: Final = 30
_DAY: Final = dt.timedelta(days=1)


def function_of(operation: Operation) -> str:
    """Return the bank's name of the function that carries an operation."""
    match operation:
        case BalanceQuery():
            return BALANCE
        case PaymentOrder():
            return PAYMENT
        case StatusQuery():
            return STATUS
        case StatementQuery():
            return STATEMENT
        case _:
            assert_never(operation)


def probe(options: CmbXmlOptions, context: Context) -> Message:
    """Return the heartbeat: the list of the login user's business modes.

    ListMode and not GetAccInfo: it needs no account, moves and locks nothing, and its answer
    proves that the front end is logged in and that this user may pay.
    """
    return _message(PROBE, options, context, Block("SDKMDLSTX", {"BUSCOD": options.buscod}))


def request(operation: Operation, profile: BankProfile, context: Context) -> Message:
    """Return the message that carries an operation.

    Raises:
        BodyError: this bank can't carry it; the message names the member and what is right.
        LocalProtocolError: a payment without its reference.
    """
    blocks: tuple[Block, ...]
    match operation:
        case BalanceQuery():
            blocks = (_balance(operation, profile),)
        case PaymentOrder():
            blocks = payment(operation, profile, context)
        case StatusQuery():
            blocks = (status(operation, profile, context),)
        case StatementQuery():
            blocks = (_statement(operation, profile),)
        case _:
            assert_never(operation)
    return message_of(function_of(operation), profile, context, *blocks)


def lookup_request(lookup: Lookup, profile: BankProfile, context: Context) -> Message:
    """Return the message that lists a week's payments, for those that came back to be picked.

    Raises:
        BodyError: it asks for something else, for an account that is not ours, or its cursor is
            not one of ours.
    """
    if not isinstance(lookup, ReturnedQuery):
        msg = "this bank tells no bank codes"
        raise BodyError(msg)
    _own_account(lookup.account, profile, "account")
    options = _options(profile)
    first, last = week_of(lookup)
    fields = {
        "BUSCOD": options.buscod,
        "BUSMOD": options.busmod,
        "BGNDAT": _date(first),
        "ENDDAT": _date(last),
    }
    return message_of(PAYMENTS, profile, context, Block("NTQRYSTNY1", fields))


def week_of(lookup: ReturnedQuery) -> tuple[BusinessDate, BusinessDate]:
    """Return the days that are asked at once: from the cursor on, no more than the bank lists.

    Raises:
        BodyError: the cursor is not one of ours.
    """
    weeks = {
        str(at): BusinessDate(lookup.first_day + at * PAYMENTS_DAYS_MAX * _DAY)
        for at in range((lookup.last_day - lookup.first_day).days // PAYMENTS_DAYS_MAX + 1)
    }
    first = weeks.get(lookup.cursor or "0")
    if first is None:
        msg = f"cursor {lookup.cursor[:40]!r} is not of this bank"
        raise BodyError(msg)
    last = first + (PAYMENTS_DAYS_MAX - 1) * _DAY
    return first, BusinessDate(min(last, lookup.last_day))


def message_of(function: str, profile: BankProfile, context: Context, *blocks: Block) -> Message:
    """Return the message of these blocks."""
    return _message(function, _options(profile), context, *blocks)


def _message(function: str, options: CmbXmlOptions, context: Context, *blocks: Block) -> Message:
    info = {
        "FUNNAM": function,
        "DATTYP": DATA_XML,
        "LGNNAM": options.login_name,
        CORRELATION: context.sequence,
    }
    return Message(info, blocks)


def _options(profile: BankProfile) -> CmbXmlOptions:
    options = profile.options
    assert isinstance(options, CmbXmlOptions)
    return options


def _balance(query: BalanceQuery, profile: BankProfile) -> Block:
    account = _own_account(query.account, profile, "account")
    return Block("SDKACINFX", {"BBKNBR": _options(profile).branch_of(account), "ACCNBR": account})


def payment(order: PaymentOrder, profile: BankProfile, context: Context) -> tuple[Block, Block]:
    """Return the business mode, and the block of one payment.

    Raises:
        BodyError: this bank can't carry it; the message names the member.
        LocalProtocolError: a payment without its reference.
    """
    if context.client_ref is None:
        msg = "a payment was to be written without its reference"
        raise LocalProtocolError(msg)
    options = _options(profile)
    payer = _own_account(order.payer, profile, "payer.account")
    own_payee = profile.accounts.get(order.payee.account)
    same_bank = _is_same_bank(order, profile, own_payee)
    fields = {
        "YURREF": _text(context.client_ref, "client_ref", _REFERENCE_CHARS_MAX),
        "DBTACC": payer,
        "DBTBBK": options.branch_of(payer),
        "TRSAMT": str(order.amount),
        "CCYNBR": RENMINBI,
    }
    if not same_bank:
        fields["STLCHN"] = "F" if order.urgency is Urgency.URGENT else "N"
    purpose = order.purpose if order.purpose.strip() else options.purpose_default
    fields |= {
        "NUSAGE": _text(purpose, "purpose", _TEXT_BYTES_MAX),
        "BNKFLG": SAME_BANK if same_bank else OTHER_BANK,
        "CRTACC": _text(order.payee.account, "payee.account", _ACCOUNT_CHARS_MAX),
    }
    fields |= _payee_name(order)
    if not same_bank:
        fields |= _payee_bank(order, options, own_payee)
    mode = {"BUSMOD": options.busmod, "BUSCOD": options.buscod}
    return Block("SDKPAYRQX", mode), Block("DCOPDPAYX", fields)


def _is_same_bank(order: PaymentOrder, profile: BankProfile, own_payee: Account | None) -> bool:
    """Say whether the payee's account is at this bank too (系统内)."""
    # The order's own word counts first: a stranger's account at another bank can have the same
    # number as one of ours here.
    bank_code = order.payee.bank_code or (own_payee.bank_code if own_payee else "")
    if bank_code:
        return bank_code.startswith(BANK_CLASS)
    return own_payee is not None and own_payee.bank == profile.bank


def _payee_name(order: PaymentOrder) -> dict[str, str]:
    name = _text(order.payee.name, "payee.name", _LONG_NAME_BYTES_MAX)
    # CRTNAM and LRVEAN must not both be empty; the long one is for names beyond 62 bytes.
    long = len(name.encode("gbk")) > _TEXT_BYTES_MAX
    return {"LRVEAN" if long else "CRTNAM": name}


def _payee_bank(
    order: PaymentOrder, options: CmbXmlOptions, own_payee: Account | None
) -> dict[str, str]:
    code, name = order.payee.bank_code, order.payee.bank_name
    # What the configuration knows of our own account holds for the order's account only if the
    # order doesn't place that account at another branch.
    if own_payee is not None and code in {"", own_payee.bank_code}:
        code, name = own_payee.bank_code, name or own_payee.bank_title
    if not name.strip():
        msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
        raise BodyError(msg)
    if not options.payee_address_default.strip():
        msg = (
            "payee: this bank demands the payee bank's address for a payee at another bank; "
            "set options.payee_address_default"
        )
        raise BodyError(msg)
    fields = {"BRDNBR": _text(code, "payee.bank_code", _BANK_CODE_CHARS_MAX)} if code else {}
    return fields | {
        "CRTBNK": _text(name, "payee.bank_name", _TEXT_BYTES_MAX),
        "CRTADR": options.payee_address_default,
    }


def status(query: StatusQuery, profile: BankProfile, context: Context) -> Block:
    """Return the block that asks after one payment.

    Raises:
        BodyError: the bank tells of that day no more.
    """
    today = business_date(context.now)
    # NTQRYSTY finds by the bank's date of the payment, which need not be ours: around midnight, and
    # where our clock was wrong when the payment left, or is now. So all the days are asked that the
    # bank lets us ask for at once, or "no record" would prove nothing.
    first = query.submitted_on - STATUS_DOUBT_DAYS * _DAY
    last = query.submitted_on + STATUS_DOUBT_DAYS * _DAY
    reach = today - STATUS_REACH_DAYS * _DAY
    if query.submitted_on + _DAY < reach:
        msg = f"the bank tells a payment's status for {STATUS_REACH_DAYS} days only"
        raise BodyError(msg)
    fields = {
        "BUSCOD": _options(profile).buscod,
        "YURREF": _text(query.client_ref, "client_ref", _REFERENCE_CHARS_MAX),
        "BGNDAT": _date(max(first, reach)),
        "ENDDAT": _date(last),
        "RSV50Z": "",
    }
    return Block("NTQRYSTYX1", fields)


def _statement(query: StatementQuery, profile: BankProfile) -> Block:
    account = _own_account(query.account, profile, "account")
    days_max = profile.card.statement.span_days_max
    if query.cursor or not 0 <= (query.last_day - query.first_day).days < days_max:
        msg = f"'from' and 'to': this bank tells at most {days_max} days at once, in one page"
        raise BodyError(msg)
    fields = {
        "BBKNBR": _options(profile).branch_of(account),
        "C_BBKNBR": "",
        "ACCNBR": account,
        "BGNDAT": _date(query.first_day),
        "ENDDAT": _date(query.last_day),
        "LOWAMT": "",
        "HGHAMT": "",
        "AMTCDR": "",
    }
    return Block("SDKTSINFX", fields)


def _own_account(number: AccountNumber, profile: BankProfile, member: str) -> AccountNumber:
    accounts: Mapping[AccountNumber, Account] = profile.accounts
    account = accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{member} is no approved account of ours at bank {profile.bank!r}"
        raise BodyError(msg)
    return number


def _text(value: str, member: str, bytes_max: int) -> str:
    """Return a value that the bank's parser reads back as it is."""
    # "]]>" is not allowed in XML text, and the bank wants no escape for ">".
    if not value.strip() or not value.isprintable() or "]]>" in value:
        msg = f"{member} must be printable text that is not blank and has no ']]>'"
        raise BodyError(msg)
    try:
        size = len(value.encode("gbk"))
    except UnicodeEncodeError as error:
        msg = f"{member}: character {value[error.start]!r} is not in GBK, which this bank speaks"
        raise BodyError(msg) from error
    if size > bytes_max:
        msg = f"{member} has {size} bytes in GBK; this bank takes at most {bytes_max}"
        raise BodyError(msg)
    return value


def _date(day: dt.date) -> str:
    return f"{day:%Y%m%d}"
