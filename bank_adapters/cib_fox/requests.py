"""Canonical operations to the bank's trades; every value is checked before it is written."""

from __future__ import annotations

from typing import Final, assert_never

import attrs

from bank_adapters.cib_fox.config import BANK_CLASS, BANK_TITLE, CibFoxOptions
from bank_adapters.cib_fox.messages import PASSWORD_NODE, Fields, Message, Value, fault
from fep.adapters.api import BankProfile, Context
from fep.domain.clock import business_date, to_shanghai
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    Operation,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
    Urgency,
)

BALANCE, PAYMENT = "CURRACCTQUERYTRN", "XFERTRN"
STATUS, STATEMENT = "XFERINQTRN", "SCUSTSTMTTRN"

AMOUNT_FEN_MAX: Final = 10**15 - 1
"""TRNAMT is 15,2: thirteen digits in front of the point."""
SUPER: Final = "SUPER"
SUPER_FEN_MAX: Final = 5_000_000
"""Real-time interbank payment (超级网银) of at most 50,000 yuan."""
PAGE_FIRST: Final = "1"


def trade_of(operation: Operation) -> str:
    """Return the trade that carries an operation."""
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


def sign_on(profile: BankProfile, context: Context) -> Fields:
    """Return the nodes of SONRQ; the password is put in when the message is sealed."""
    options = options_of(profile)
    return {
        "DTCLIENT": f"{to_shanghai(context.now):%Y-%m-%d %H:%M:%S}",
        "CID": options.customer_id,
        "USERID": options.user_id,
        PASSWORD_NODE: "",
        "GENUSERKEY": "N",
        "APPID": options.app_id,
        "APPVER": options.app_version,
    }


def options_of(profile: BankProfile) -> CibFoxOptions:
    """Return the bank's options."""
    options = profile.options
    assert isinstance(options, CibFoxOptions)
    return options


def request(operation: Operation, profile: BankProfile, context: Context) -> Message:
    """Return the message that carries an operation.

    Raises:
        BodyError: this bank can't carry it; the message names the member and what is right.
        LocalProtocolError: a payment without its reference.
    """
    number = context.sequence
    body: Fields
    match operation:
        case BalanceQuery():
            account = _own_account(operation.account, profile, "account", 32)
            body = {"RQBODY": {"ACCTID": account}}
        case PaymentOrder():
            if context.client_ref is None:
                msg = "a payment was to be written without its reference"
                raise LocalProtocolError(msg)
            number = context.client_ref
            body = {"XFERRQ": {"XFERINFO": _payment(operation, profile)}}
        case StatusQuery():
            body = {"XFERINQRQ": {"CLIENTREF": _text(operation.client_ref, "client_ref", 30)}}
        case StatementQuery():
            body = {"SCUSTSTMTRQ": _statement(operation, profile, context)}
        case _:
            assert_never(operation)
    nodes: Fields = {"TRNUID": number, **body}
    return Message(sign_on(profile, context), trade_of(operation), nodes)


def _payment(order: PaymentOrder, profile: BankProfile) -> Fields:
    payer = _own_account(order.payer, profile, "payer.account", 18)
    if order.amount.fen > AMOUNT_FEN_MAX:
        msg = f"amount must be at most {Cny(AMOUNT_FEN_MAX)} at this bank"
        raise BodyError(msg)
    payee = _payee(order, profile)
    purpose = order.purpose if order.purpose.strip() else options_of(profile).purpose_default
    # An empty DTDUE, PMTMODE or CURSYM is an error at the bank; an empty CHEQUENUM or MEMO is not.
    nodes: dict[str, Value] = {
        "ACCTFROM": {"ACCTID": payer},
        "ACCTTO": payee.nodes,
        "CHEQUENUM": "",
        "TRNAMT": str(order.amount),
    }
    if payee.super_allowed:
        nodes["PMTMODE"] = SUPER
    return nodes | {"PURPOSE": _text(purpose, "purpose", 60), "MEMO": ""}


@attrs.frozen
class _Payee:
    nodes: Fields
    super_allowed: bool


def _payee(order: PaymentOrder, profile: BankProfile) -> _Payee:
    payee, own = order.payee, profile.accounts.get(order.payee.account)
    code = payee.bank_code or (own.bank_code if own else "")
    name = payee.bank_name or (own.bank_title if own else "")
    city = options_of(profile).payee_city_default
    if code:
        same_bank = code.startswith(BANK_CLASS)
    else:
        same_bank = BANK_TITLE in name or (own is not None and own.bank == profile.bank)
    from_code = profile.accounts[order.payer].bank_code
    # Digits four to seven of a CNAPS code are the city.
    same_city = bool(code) and bool(from_code) and code[3:7] == from_code[3:7]
    nodes: dict[str, Value] = {
        "@INTERBANK": "Y" if same_bank else "N",
        "@LOCAL": "Y" if same_city else "N",
        "ACCTID": _text(payee.account, "payee.account", 32),
        "NAME": _text(payee.name, "payee.name", 50),
    }
    if not same_bank:
        if BANK_TITLE in name:
            msg = f"payee.bank_name names {BANK_TITLE}, but payee.bank_code is another bank's"
            raise BodyError(msg)
        if not name.strip():
            msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
            raise BodyError(msg)
        if not city.strip():
            msg = "options.payee_city_default is missing: this bank demands the payee's city"
            raise BodyError(msg)
        nodes["BANKDESC"] = _text(name, "payee.bank_name", 50)
    if code:
        nodes["BANKNUM"] = code
    if city.strip():
        nodes["CITY"] = city
    urgent = order.urgency is Urgency.URGENT and order.amount.fen <= SUPER_FEN_MAX
    return _Payee(nodes, super_allowed=urgent and not same_bank and bool(code))


def _statement(query: StatementQuery, profile: BankProfile, context: Context) -> Fields:
    account = _own_account(query.account, profile, "account", 32)
    days = (query.last_day - query.first_day).days
    today = business_date(context.now)
    if not 0 <= days < profile.card.statement.span_days_max or (days and query.last_day >= today):
        msg = "'from' and 'to': this bank tells one day, or a span that ends before today"
        raise BodyError(msg)
    return {
        "ACCTFROM": {"ACCTID": account},
        "INCTRAN": {
            "DTSTART": query.first_day.isoformat(),
            "DTEND": query.last_day.isoformat(),
            "PAGE": query.cursor or PAGE_FIRST,
        },
    }


def _own_account(number: AccountNumber, profile: BankProfile, member: str, chars_max: int) -> str:
    account = profile.accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{member} is no approved account of ours at bank {profile.bank!r}"
        raise BodyError(msg)
    return _text(number, member, chars_max)


def _text(value: str, member: str, bytes_max: int) -> str:
    """Return a value that the bank's parser reads back as it is."""
    wrong = fault(value, bytes_max) or ("" if value.strip() else "must not be blank")
    if wrong:
        msg = f"{member} {wrong}"
        raise BodyError(msg)
    return value
