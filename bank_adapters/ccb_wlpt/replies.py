"""What the answers mean: RETURN_CODE and DEAL_TYPE to outcomes; never raises on bad content."""

from __future__ import annotations

from typing import Final, assert_never

from bank_adapters.ccb_wlpt.messages import Fields, Message
from bank_adapters.ccb_wlpt.requests import PAYMENTS, RENMINBI, trades_of
from fep.adapters.api import Accepted, Outcome, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import from_bank
from fep.domain.ids import ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Direction,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
)

DEBIT, CREDIT = "0", "1"
"""FLAG1 of a line (借贷标志); as integrations have it."""
REVERSED: Final = "1"
"""BACK_FLAG of a line that takes an earlier one back; the simulated bank's."""
_DIRECTIONS: Final = {DEBIT: Direction.DEBIT, CREDIT: Direction.CREDIT}
_RENMINBI: Final = frozenset({"", RENMINBI, "CNY", "RMB"})


def outcome(card: BehaviourCard, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.trade not in trades_of(operation):
        return Unclear("WRONG_TRADE", f"the answer is to {message.trade[:20]!r}")
    try:
        return _outcome(card, operation, reply, message)
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear("UNREADABLE", str(error))


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to a payment bears, or empty."""
    message = reply.content
    if not isinstance(message, Message) or message.trade not in PAYMENTS:
        return ""
    return message.number


def _outcome(card: BehaviourCard, operation: Operation, reply: Reply, message: Message) -> Outcome:
    empty = reply.code in card.codes.no_record
    match operation:
        case PaymentOrder():
            return _payment(card, operation, reply, message)
        case StatusQuery() if empty:
            return Accepted(PaymentStatus(PaymentState.NO_RECORD), reply.code, reply.message)
        case StatementQuery() if empty:
            return Accepted(Statement(()), reply.code, reply.message)
    if reply.code not in card.codes.ok:
        return refused(card.codes, reply.code, reply.message)
    match operation:
        case BalanceQuery():
            return Accepted(_balance(operation, message), reply.code, reply.message)
        case StatusQuery():
            status = _status(card.states, operation, message)
            return Accepted(status, status.code, status.message)
        case StatementQuery():
            return Accepted(_statement(operation, message), reply.code, reply.message)
        case _:
            assert_never(operation)


def _payment(card: BehaviourCard, order: PaymentOrder, reply: Reply, message: Message) -> Outcome:
    if reply.code not in card.codes.ok:
        return payment_refused(card.codes, reply.code, reply.message)
    if difference := _difference(order, message.fields):
        return Unclear("MISMATCH", f"the answer has another {difference}")
    deal_type, text = message.fields.get("DEAL_TYPE", ""), message.fields.get("MESSAGE", "")
    match payment_state(card.states, deal_type):
        case PaymentState.SUCCEEDED | PaymentState.PROCESSING as state:
            bank_ref = message.fields.get("TRAN_FLOW", "")
            receipt = PaymentReceipt(ClientRef(message.number), order.amount, bank_ref)
            return Accepted(receipt, deal_type, text, final=state is PaymentState.SUCCEEDED)
        case PaymentState.REJECTED:
            return Rejected(deal_type, text)
        case _:
            return Unclear(f"DEAL_TYPE {deal_type[:20]}", text)


def _difference(order: PaymentOrder, fields: Fields) -> str:
    """Return which of the facts present in the answer is not the order's, or empty."""
    amount = fields.get("PAY_AMOUNT", "")
    if amount and Cny.parse_plain(amount) != order.amount:
        return "amount"
    if fields.get("RECV_ACCNO", "") not in {"", order.payee.account}:
        return "payee"
    return "payer" if fields.get("PAY_ACCNO", "") not in {"", order.payer} else ""


def _balance(query: BalanceQuery, message: Message) -> Balance:
    fields = message.fields
    if fields.get("ACC_NO", "") != query.account:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    _check_currency(fields)
    book = Cny.parse_plain(fields.get("BALANCE", ""))
    return Balance(
        account=query.account,
        available=Cny.parse_plain(fields.get("BALANCE1", "") or fields.get("BALANCE", "")),
        book=book,
        as_of=from_bank(fields.get("QRY_TIME", "")),
    )


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    fields = message.fields
    if fields.get("REQUEST_SN1", "") not in {"", query.client_ref}:
        msg = "the answer tells of another payment"
        raise ValueError(msg)
    deal_type, bank_ref = fields.get("DEAL_TYPE", ""), fields.get("TRAN_FLOW", "")
    if difference := _difference(query.order, fields):
        text = f"the bank's payment of this number has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", text, bank_ref)
    text = fields.get("MESSAGE", "")
    return PaymentStatus(payment_state(states, deal_type), deal_type, text, bank_ref)


def _statement(query: StatementQuery, message: Message) -> Statement:
    fields = message.fields
    if fields.get("ACC_NO", "") not in {"", query.account}:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    page, pages = _count(fields, "CUR_PAGE"), _count(fields, "PAGE_COUNT")
    if page != int(query.cursor or "1"):
        msg = f"the answer is page {page}, and page {query.cursor or '1'} was asked for"
        raise ValueError(msg)
    entries = tuple(_entry(row) for row in message.rows)
    return Statement(entries, str(page + 1) if page < pages and entries else "")


def _count(fields: Fields, name: str) -> int:
    text = fields.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        msg = f"{name} is {text[:20]!r}, not a number"
        raise ValueError(msg)
    return int(text)


def _entry(row: Fields) -> StatementEntry:
    if row.get("CUR_CODE", "") not in _RENMINBI:
        _check_currency(row)
    direction = _DIRECTIONS.get(row.get("FLAG1", ""))
    if direction is None:
        msg = f"a line's FLAG1 is {row.get('FLAG1', '')[:20]!r}, not {DEBIT} or {CREDIT}"
        raise ValueError(msg)
    amount = Cny.parse_plain(row.get("AMT", ""))
    if amount.fen <= 0:
        msg = f"a line's amount is {amount}, not above zero"
        raise ValueError(msg)
    after = row.get("AMT1", "")
    return StatementEntry(
        bank_ref=row.get("TRAN_FLOW", ""),
        booked_at=from_bank(row.get("TRANDATE", "") + row.get("TRANTIME", "")),
        direction=direction,
        amount=amount,
        counterparty_account=row.get("ACCNO2", ""),
        counterparty_name=row.get("ACC_NAME1", ""),
        client_ref=row.get("CRE_NO", ""),
        balance_after=Cny.parse_plain(after) if after else None,
        purpose=row.get("MESSAGE", ""),
        reversal=row.get("BACK_FLAG", "") == REVERSED,
    )


def _check_currency(fields: Fields) -> None:
    if fields.get("CUR_CODE", "") not in _RENMINBI:
        msg = f"the currency is {fields['CUR_CODE'][:20]!r}, not {RENMINBI} (renminbi)"
        raise ValueError(msg)
