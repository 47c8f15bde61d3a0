"""What the answers mean: codes, Results and rows to outcomes; never raises on bad content."""

from __future__ import annotations

import re
from typing import Final, assert_never

from bank_adapters.icbc_nc.messages import Message, Row
from bank_adapters.icbc_nc.requests import PAYMENT, RENMINBI, asked_at, cursor_of, trade_of
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

REVERSED: Final = "1"
"""UpDtranf of a line that takes an earlier one back."""
_FEN: Final = re.compile(r"-?[0-9]{1,15}")
_RENMINBI: Final = frozenset({"", RENMINBI, "RMB"})


def outcome(card: BehaviourCard, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.trade not in trade_of(operation):
        return Unclear("WRONG_TRADE", f"the answer is to {message.trade!r}")
    try:
        return _outcome(card, operation, reply, message)
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear("UNREADABLE", str(error))


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to PAYENT bears, or empty."""
    message = reply.content
    if not isinstance(message, Message) or message.trade != PAYMENT:
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
            return Accepted(_balance(operation, reply, message), reply.code, reply.message)
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
    reference = ClientRef(message.number)
    if not message.rows:
        # File level: taken, and only QPAYENT tells the rest.
        receipt = PaymentReceipt(reference, order.amount, message.fields.get("SerialNo", ""))
        return Accepted(receipt, reply.code, reply.message, final=False)
    if len(message.rows) != 1:
        return Unclear("NOT_ONE_ROW", f"{len(message.rows)} rows answer one payment")
    [row] = message.rows
    if difference := _difference(order, row):
        return Unclear("MISMATCH", f"the answer's row has another {difference}")
    result, text = row.get("Result", ""), _said(row)
    match payment_state(card.states, result):
        case PaymentState.SUCCEEDED | PaymentState.PROCESSING as state:
            receipt = PaymentReceipt(reference, order.amount, row.get("OrderNo", ""))
            return Accepted(receipt, result, text, final=state is PaymentState.SUCCEEDED)
        case PaymentState.REJECTED:
            return Rejected(row.get("instrRetCode", "") or result, text)
        case _:
            return Unclear(result or row.get("iRetCode", ""), text)


def _said(row: Row) -> str:
    return row.get("instrRetMsg", "") or row.get("iRetMsg", "")


def _difference(order: PaymentOrder, row: Row) -> str:
    """Return which of the facts present in the row is not the order's, or empty."""
    amount = row.get("PayAmt", "")
    if amount and _fen(amount) != order.amount:
        return "amount"
    if row.get("RecAccNo", "") not in {"", order.payee.account}:
        return "payee"
    return "payer" if row.get("PayAccNo", "") not in {"", order.payer} else ""


def _balance(query: BalanceQuery, reply: Reply, message: Message) -> Balance:
    rows = [row for row in message.rows if row.get("AccNo") == query.account]
    if len(rows) != 1:
        msg = f"{len(rows)} rows tell the balance of one account"
        raise ValueError(msg)
    [row] = rows
    _check_currency(row)
    if row.get("iRetCode", "0") not in {"", "0"}:
        msg = f"the account's row says {row['iRetCode'][:20]} {row.get('iRetMsg', '')[:40]}"
        raise ValueError(msg)
    as_of = asked_at(reply.correlation)
    if as_of is None:
        msg = "the answer's number does not tell when the request was made"
        raise ValueError(msg)
    return Balance(
        account=query.account,
        available=_fen(row.get("UsableBalance", "")),
        book=_fen(row.get("Balance", "")),
        as_of=as_of,
    )


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    if message.fields.get("QryfSeqno", "") not in {"", query.client_ref}:
        msg = "the answer tells of another package"
        raise ValueError(msg)
    if len(message.rows) != 1:
        msg = f"{len(message.rows)} rows tell of one payment"
        raise ValueError(msg)
    [row] = message.rows
    result, bank_ref = row.get("Result", ""), row.get("QryOrderNo", "")
    if difference := _difference(query.order, row):
        text = f"the bank's payment of this reference has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", text, bank_ref)
    return PaymentStatus(payment_state(states, result), result, _said(row), bank_ref)


def _statement(query: StatementQuery, message: Message) -> Statement:
    tag = message.fields.get("NextTag", "")
    entries = tuple(_entry(row) for row in message.rows)
    # Seen: a tag that never gets empty. A page without a line is the last one.
    cursor = cursor_of(message.trade, tag) if tag and entries else ""
    if cursor and cursor == query.cursor:
        msg = "the bank answers the page that was asked for as the next one"
        raise ValueError(msg)
    return Statement(entries, cursor)


def _entry(row: Row) -> StatementEntry:
    if row.get("CurrType", "") not in _RENMINBI:
        _check_currency(row)
    match row.get("Drcrf", ""):
        case "1":
            direction = Direction.DEBIT
        case "2":
            direction = Direction.CREDIT
        case other:
            msg = f"a line's Drcrf is {other[:20]!r}, not 1 or 2"
            raise ValueError(msg)
    amount = _fen(row.get("Amount", ""))
    if amount.fen <= 0:
        msg = f"a line's amount is {amount}, not above zero"
        raise ValueError(msg)
    balance = row.get("Balance", "")
    return StatementEntry(
        bank_ref=row.get("TimeStamp", "") + row.get("SequenceNo", ""),
        booked_at=from_bank(row.get("TimeStamp", "")),
        direction=direction,
        amount=amount,
        counterparty_account=row.get("RecipAccNo", ""),
        counterparty_name=row.get("RecipName", ""),
        client_ref=row.get("Ref", ""),
        balance_after=_fen(balance) if balance else None,
        purpose=row.get("UseCN", "") or row.get("Summary", ""),
        reversal=row.get("UpDtranf", "") == REVERSED,
    )


def _check_currency(row: Row) -> None:
    if row.get("CurrType", "") not in _RENMINBI:
        msg = f"the currency is {row['CurrType'][:20]!r}, not {RENMINBI} (renminbi)"
        raise ValueError(msg)


def _fen(text: str) -> Cny:
    """Return an amount in fen; yuan by mistake would be a hundred times too little."""
    if not _FEN.fullmatch(text):
        msg = f"{text[:20]!r} is not an amount in fen"
        raise ValueError(msg)
    return Cny(int(text))
