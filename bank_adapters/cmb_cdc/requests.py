"""Canonical operations to the bank's functions; every value is checked before it is written.

Source of the fields: public integrations (C = characters). Lengths are those of the front end's
interface (``cmb_xml``), whose fields have the same meanings.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, assert_never

import attrs
import orjson

from bank_adapters.cmb_cdc.config import BANK_CLASS, TEXT_BYTES_MAX, CmbCdcOptions
from bank_adapters.cmb_cdc.messages import Message, Row, number_of
from fep.adapters.api import BankProfile, Context
from fep.domain.account import Account
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

BALANCE: Final = "NTQADINF"
PAYMENT: Final = "BB1PAYOP"
STATUS: Final = "BB1PAYQR"
STATEMENT: Final = "trsQryByBreakPoint"
RETURNED: Final = "BB1PAYQB"
RETURNED_ASKED, RETURNED_TOLD = "bb1payqby1", "bb1payqbz1"
"""Tables of BB1PAYQB; the answer's first one has the mark of the next page, ``ctnKey``."""
X1, Y1, Z1, Z2 = (f"TRANSQUERYBYBREAKPOINT_{one}" for one in ("X1", "Y1", "Z1", "Z2"))

RENMINBI: Final = "10"
SAME_BANK, OTHER_BANK = "Y", "N"
MORE: Final = "Y"
"""ctnFlag of a page that is not the last."""
CURSOR_CHARS_MAX: Final = 4096
CONTINUE_CHARS_MAX: Final = 100
"""Of ctnKey: our choice, its length is not known."""
_NAME_BYTES_MAX: Final = 200
_REFERENCE_CHARS_MAX: Final = 30
_ACCOUNT_CHARS_MAX: Final = 35
_UNSIGNABLE: Final = frozenset("&<>")
"""Not verified how the bank's signature check takes these: they are kept out."""
UNIQUE_DIGITS: Final = 6
"""Of a query's number, behind its time."""


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


def options_of(profile: BankProfile) -> CmbCdcOptions:
    """Return the bank's options."""
    options = profile.options
    assert isinstance(options, CmbCdcOptions)
    return options


def probe(profile: BankProfile, context: Context) -> Message:
    """Return the heartbeat: the balance of the first account of ours at this bank."""
    ours = (number for number, one in profile.accounts.items() if one.bank == profile.bank)
    account = next(ours, AccountNumber("0"))
    return _message(BALANCE, profile, context, _balance(account, profile))


def request(operation: Operation, profile: BankProfile, context: Context) -> Message:
    """Return the message that carries an operation.

    Raises:
        BodyError: this bank can't carry it; the message names the member and what is right.
        LocalProtocolError: a payment without its reference.
    """
    match operation:
        case BalanceQuery():
            tables = _balance(_own(operation.account, profile, "account"), profile)
        case PaymentOrder():
            tables = _payment(operation, profile, context)
        case StatusQuery():
            reference = _text(operation.client_ref, "client_ref", _REFERENCE_CHARS_MAX, profile)
            row = {"busCod": options_of(profile).buscod, "yurRef": reference}
            tables = {"bb1payqrx1": (row,)}
        case StatementQuery():
            tables = _statement(operation, profile)
        case _:
            assert_never(operation)
    return _message(function_of(operation), profile, context, tables)


def lookup_request(lookup: Lookup, profile: BankProfile, context: Context) -> Message:
    """Return the message that asks for one page of payments that came back.

    Raises:
        BodyError: it asks for something else, or for an account that is not ours.
    """
    if not isinstance(lookup, ReturnedQuery):
        msg = "this bank tells no bank codes"
        raise BodyError(msg)
    row = {
        "accNbr": _own(lookup.account, profile, "account"),
        "bbkNbr": options_of(profile).branch,
        "bgnDat": f"{lookup.first_day:%Y%m%d}",
        "ctnKey": _text(lookup.cursor, "cursor", CONTINUE_CHARS_MAX, profile)
        if lookup.cursor
        else "",
        "endDat": f"{lookup.last_day:%Y%m%d}",
        "reqNbr": "",
        "rsv50Z": "",
    }
    return _message(RETURNED, profile, context, {RETURNED_ASKED: (row,)})


def _message(
    function: str, profile: BankProfile, context: Context, tables: dict[str, tuple[Row, ...]]
) -> Message:
    # An answer to a payment does not name it, but bears the request's number.
    unique = context.client_ref or context.sequence[-UNIQUE_DIGITS:]
    number = number_of(context.now, unique)
    return Message(function, number, tables, {"userid": options_of(profile).user_id})


def _balance(account: AccountNumber, profile: BankProfile) -> dict[str, tuple[Row, ...]]:
    return {"ntqadinfx": ({"accnbr": account, "bbknbr": options_of(profile).branch},)}


def _payment(
    order: PaymentOrder, profile: BankProfile, context: Context
) -> dict[str, tuple[Row, ...]]:
    if context.client_ref is None:
        msg = "a payment was to be written without its reference"
        raise LocalProtocolError(msg)
    options, payee = options_of(profile), order.payee
    own_payee = profile.accounts.get(payee.account)
    same_bank = _is_same_bank(order, profile, own_payee)
    purpose = order.purpose if order.purpose.strip() else options.purpose_default
    row = {
        "bnkFlg": SAME_BANK if same_bank else OTHER_BANK,
        "ccyNbr": RENMINBI,
        "crtAcc": _text(payee.account, "payee.account", _ACCOUNT_CHARS_MAX, profile),
        "crtNam": _text(payee.name, "payee.name", _NAME_BYTES_MAX, profile),
        "dbtAcc": _own(order.payer, profile, "payer.account"),
        "nusAge": _text(purpose, "purpose", TEXT_BYTES_MAX, profile),
        "trsAmt": str(order.amount),
        "yurRef": _text(context.client_ref, "client_ref", _REFERENCE_CHARS_MAX, profile),
    }
    if not same_bank:
        row |= _payee_bank(order, profile, own_payee)
        if order.urgency is Urgency.URGENT:
            row["stlChn"] = "Q"
    mode = {"busCod": options.buscod, "busMod": options.busmod}
    return {"bb1paybmx1": (mode,), "bb1payopx1": (row,)}


def _is_same_bank(order: PaymentOrder, profile: BankProfile, own_payee: Account | None) -> bool:
    """Say whether the payee's account is at this bank too (系统内)."""
    # The order's own word counts first: a stranger's account at another bank can have the same
    # number as one of ours here.
    bank_code = order.payee.bank_code or (own_payee.bank_code if own_payee else "")
    if bank_code:
        return bank_code.startswith(BANK_CLASS)
    return own_payee is not None and own_payee.bank == profile.bank


def _payee_bank(order: PaymentOrder, profile: BankProfile, own_payee: Account | None) -> Row:
    code, name = order.payee.bank_code, order.payee.bank_name
    if own_payee is not None and code in {"", own_payee.bank_code}:
        code, name = own_payee.bank_code, name or own_payee.bank_title
    if not name.strip():
        msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
        raise BodyError(msg)
    fields = {"crtBnk": _text(name, "payee.bank_name", TEXT_BYTES_MAX, profile)}
    if code:
        fields["brdNbr"] = _text(code, "payee.bank_code", _REFERENCE_CHARS_MAX, profile)
    if address := options_of(profile).payee_address_default:
        fields["crtAdr"] = address
    return fields


def _statement(query: StatementQuery, profile: BankProfile) -> dict[str, tuple[Row, ...]]:
    account = _own(query.account, profile, "account")
    days_max = profile.card.statement.span_days_max
    if not 0 <= (query.last_day - query.first_day).days < days_max:
        msg = f"'from' and 'to': this bank tells at most {days_max} days at once"
        raise BodyError(msg)
    cursor = read_cursor(query.cursor) if query.cursor else Cursor()
    asked = {
        "beginDate": f"{query.first_day:%Y%m%d}",
        "cardNbr": account,
        "currencyCode": "",
        "endDate": f"{query.last_day:%Y%m%d}",
        "queryAcctNbr": cursor.account,
        "reserve": "",
        "transactionSequence": "1",
    }
    tables: dict[str, tuple[Row, ...]] = {X1: (asked,)}
    if cursor.rows:
        tables[Y1] = cursor.rows
    return tables


@attrs.frozen
class Cursor:
    """Where a statement goes on: what the bank answered, to be sent back unchanged."""

    account: str = ""
    """queryAcctNbr."""
    rows: tuple[Row, ...] = ()
    """Of Y1."""


def cursor_text(cursor: Cursor) -> str:
    """Return the mark of the next page.

    Raises:
        ValueError: the bank's rows are too large for one.
    """
    value = orjson.dumps([cursor.account, cursor.rows])
    text = base64.urlsafe_b64encode(value).decode("ascii")
    if len(text) > CURSOR_CHARS_MAX:
        msg = "the bank's cursor rows are too large"
        raise ValueError(msg)
    return text


def read_cursor(text: str) -> Cursor:
    """Return the mark of a page.

    Raises:
        BodyError: it is none of ours.
    """
    try:
        account, rows = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        if not isinstance(account, str) or not all(_is_row(row) for row in rows):
            raise ValueError  # noqa: TRY301
    except (ValueError, TypeError, binascii.Error) as error:
        msg = "cursor: it is no mark of a page of this bank"
        raise BodyError(msg) from error
    return Cursor(account, tuple(rows))


def _is_row(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _own(number: AccountNumber, profile: BankProfile, member: str) -> AccountNumber:
    account = profile.accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{member} is no approved account of ours at bank {profile.bank!r}"
        raise BodyError(msg)
    return number


def _text(value: str, member: str, bytes_max: int, profile: BankProfile) -> str:
    """Return a value that is signed and read at the bank as it is."""
    if not value.strip() or not value.isprintable() or _UNSIGNABLE & set(value):
        msg = f"{member} must be printable text that is not blank and has none of & < >"
        raise BodyError(msg)
    if any(one.isspace() for one in value) and not options_of(profile).blanks:
        msg = (
            f"{member} has a blank: it is not known that this bank's signature check keeps it; "
            "set options.blanks once it is"
        )
        raise BodyError(msg)
    if (size := len(value.encode("gb18030", "replace"))) > bytes_max:
        msg = f"{member} has {size} bytes in GB18030; this bank takes at most {bytes_max}"
        raise BodyError(msg)
    return value
