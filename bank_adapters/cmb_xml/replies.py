"""What the bank's answers mean: codes, states and rows to outcomes; never raises on bad content.

Two levels: RETCOD of INFO says what became of the request, a row's ERRCOD, REQSTS and RTNFLG say
what became of the payment. RETCOD 0 with a failed row is a failed payment (guide 4.3.1, DCPAYMNT).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Final, assert_never

from bank_adapters.cmb_xml.messages import Message
from bank_adapters.cmb_xml.requests import PAYMENT, PAYMENTS, RENMINBI, function_of, week_of
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, States
from fep.adapters.meaning import payment_state, refused
from fep.domain.clock import BusinessDate, from_bank
from fep.domain.errors import BodyError
from fep.domain.ids import ClientRef, batch_refs
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Direction,
    Lookup,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    ReturnedPayment,
    ReturnedPayments,
    ReturnedQuery,
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
)

FINISHED: Final = "FIN"
PAYMENT_ROW: Final = "NTQPAYRQZ"
STATUS_ROW: Final = "NTSTLLSTZ"
REVERSAL: Final = "*"
"""RSVFLG of a line that takes an earlier one back (冲账)."""

_ACCOUNT_STATUS: Final = {"A": "active", "B": "frozen", "C": "closed"}
_SUBSIDIARY: Final = "S"
_DATE: Final = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_TIME: Final = re.compile(r"[0-9]{6}")
_MOMENT: Final = re.compile(r"([0-9]{8})([0-9]{6})[0-9]*")

Row = Mapping[str, str]


def outcome(card: BehaviourCard, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != function_of(operation):
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function!r}")
    match operation:
        case PaymentOrder():
            return _payment(card, operation, reply, message)
        case BalanceQuery() | StatusQuery() | StatementQuery():
            if reply.code in card.codes.ok:
                return _answered(card, operation, reply, message)
            return refused(card.codes, reply.code, reply.message)
        case _:
            assert_never(operation)


def looked_up(card: BehaviourCard, lookup: Lookup, reply: Reply) -> Outcome:
    """Return what an answer to NTQRYSTN says of the account's payments that came back."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != PAYMENTS or not isinstance(lookup, ReturnedQuery):
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function!r}")
    if reply.code not in card.codes.ok:
        return refused(card.codes, reply.code, reply.message)
    try:
        entries = tuple(
            _returned(row)
            for row in message.rows(STATUS_ROW)
            if payment_state(card.states, state_key(row)) is PaymentState.RETURNED
            # The list is of all accounts that this user pays from.
            and row.get("DBTACC", "") in {"", lookup.account}
        )
        _, last = week_of(lookup)
    except (BodyError, ValueError) as error:
        return Unclear("UNREADABLE", str(error))
    following = "" if last == lookup.last_day else str(int(lookup.cursor or "0") + 1)
    return Accepted(ReturnedPayments(entries, following), reply.code, reply.message)


def _returned(row: Row) -> ReturnedPayment:
    _check_currency(row)
    day = row.get("OPRDAT", "")
    return ReturnedPayment(
        client_ref=row.get("YURREF", ""),
        bank_ref=row.get("REQNBR", ""),
        amount=Cny.parse_loose(row.get("TRSAMT", "")),
        submitted_on=BusinessDate(_date(day)) if day else None,
        # The list does not tell when it came back.
        returned_on=None,
        payee_account=row.get("CRTACC", ""),
        payee_name=row.get("CRTNAM", ""),
        payee_bank_name="",
        reason=row.get("RTNNAR", ""),
    )


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to DCPAYMNT bears, or empty.

    Of a batch that is its first row's.
    """
    message = reply.content
    if not isinstance(message, Message) or message.function != PAYMENT:
        return ""
    rows = message.rows(PAYMENT_ROW)
    first = rows[0].get("YURREF", "") if rows else ""
    return first if len(rows) == 1 or batch_refs(first) else ""


def state_key(row: Row) -> str:
    """Return a row's state as the card writes it: REQSTS, or FIN with its RTNFLG: ``FIN+S``."""
    state = row.get("REQSTS", "")
    # RTNFLG counts only once the request is finished.
    return f"{FINISHED}+{row.get('RTNFLG', '')}" if state == FINISHED else state


def _payment(card: BehaviourCard, order: PaymentOrder, reply: Reply, message: Message) -> Outcome:
    if reply.code not in card.codes.ok:
        # The front end answers so also for a request that it had already passed on.
        return Unclear(reply.code, reply.message)
    rows = message.rows(PAYMENT_ROW)
    if len(rows) != 1:
        return Unclear("NOT_ONE_ROW", f"{len(rows)} rows answer one payment")
    return payment_row(card, order, rows[0])


def payment_row(card: BehaviourCard, order: PaymentOrder, row: Row) -> Outcome:
    """Return what a row of an answer to DCPAYMNT means for its payment."""
    code, text, key = row.get("ERRCOD", ""), row.get("ERRTXT", ""), state_key(row)
    if code in card.codes.duplicate:
        # FIN and F beside this code are about the repeat; the first one may have been paid.
        return Unclear(code, text)
    state = payment_state(card.states, key)
    if code not in card.codes.ok:
        return _failed_row(card, code, text, key, state)
    match state:
        case PaymentState.SUCCEEDED | PaymentState.PROCESSING:
            receipt = PaymentReceipt(
                ClientRef(row.get("YURREF", "")), order.amount, row.get("REQNBR", "")
            )
            return Accepted(receipt, key, text, final=state is PaymentState.SUCCEEDED)
        case PaymentState.REJECTED:
            return Rejected(key, text)
        case PaymentState.RETURNED | PaymentState.UNKNOWN | PaymentState.NO_RECORD:
            return Unclear(key or code, text)
        case _:
            assert_never(state)


def _failed_row(
    card: BehaviourCard, code: str, text: str, key: str, state: PaymentState
) -> Outcome:
    if key and state is not PaymentState.REJECTED:
        return Unclear(code, f"{text} (the row's state {key} says otherwise)")
    if code in card.codes.permission:
        return Rejected(code, text, Refusal.PERMISSION)
    if code in card.codes.refused:
        return Rejected(code, text)
    return Unclear(code, text)


def _answered(
    card: BehaviourCard,
    query: BalanceQuery | StatusQuery | StatementQuery,
    reply: Reply,
    message: Message,
) -> Outcome:
    try:
        match query:
            case BalanceQuery():
                result = _balance(query, reply, message)
                return Accepted(result, reply.code, reply.message)
            case StatusQuery():
                found = status(card.states, query, message)
                return Accepted(found, found.code, found.message)
            case StatementQuery():
                entries = tuple(_entry(row) for row in message.rows("NTQTSINFZ"))
                return Accepted(Statement(entries), reply.code, reply.message)
            case _:
                assert_never(query)
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear("UNREADABLE", str(error))


def _balance(query: BalanceQuery, reply: Reply, message: Message) -> Balance:
    rows = [row for row in message.rows("NTQACINFZ") if row.get("ACCNBR") == query.account]
    if len(rows) != 1:
        msg = f"{len(rows)} rows tell the balance of one account"
        raise ValueError(msg)
    row = rows[0]
    _check_currency(row)
    held = row.get("HLDBLV", "")
    status = _ACCOUNT_STATUS.get(row.get("STSCOD", ""), row.get("STSCOD", ""))
    return Balance(
        account=query.account,
        available=Cny.parse_loose(row.get("AVLBLV", "")),
        book=Cny.parse_loose(row.get("ONLBLV", "")),
        held=Cny.parse_loose(held) if held else None,
        as_of=_asked_at(reply.correlation),
        # INTCOD S: the "balance" is a group's quota and no money lies there.
        status="virtual" if row.get("INTCOD") == _SUBSIDIARY else status,
    )


def status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    """Return what an answer to NTQRYSTY says of a payment.

    Raises:
        ValueError: it tells of others, or can't be read.
    """
    rows = [row for row in message.rows(STATUS_ROW) if row.get("YURREF") == query.client_ref]
    if not rows:
        if message.rows(STATUS_ROW):
            msg = "the answer tells of other payments only"
            raise ValueError(msg)
        return PaymentStatus(PaymentState.NO_RECORD)
    found = [_row_status(states, query, row) for row in rows]
    if any(one.state is not found[0].state for one in found):
        return PaymentStatus(
            PaymentState.UNKNOWN, "MANY_ROWS", "rows of one reference do not agree"
        )
    return found[0]


def _row_status(states: States, query: StatusQuery, row: Row) -> PaymentStatus:
    key, bank_ref = state_key(row), row.get("REQNBR", "")
    if difference := _difference(query.order, row):
        # Somebody else at the enterprise used our reference: this row is not our payment.
        text = f"the bank's payment of this reference has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", text, bank_ref)
    day = row.get("EPTDAT", "") or row.get("OPRDAT", "")
    return PaymentStatus(
        state=payment_state(states, key),
        code=key,
        message=row.get("RTNNAR", "") or row.get("ERRTXT", ""),
        bank_ref=bank_ref,
        booked_on=BusinessDate(_date(day)) if day else None,
    )


def _difference(order: PaymentOrder, row: Row) -> str:
    """Return which of the facts present in the row is not the order's, or empty."""
    amount = row.get("TRSAMT", "")
    if amount and Cny.parse_loose(amount) != order.amount:
        return "amount"
    if row.get("CRTACC", "") not in {"", order.payee.account}:
        return "payee"
    return "payer" if row.get("DBTACC", "") not in {"", order.payer} else ""


def _entry(row: Row) -> StatementEntry:
    _check_currency(row)
    match row.get("AMTCDR", ""):
        case "D":
            direction, text = Direction.DEBIT, row.get("TRSAMTD", "")
        case "C":
            direction, text = Direction.CREDIT, row.get("TRSAMTC", "")
        case other:
            msg = f"a line's AMTCDR is {other!r}, not C or D"
            raise ValueError(msg)
    amount = Cny.parse_loose(text)
    if amount.fen <= 0:
        msg = f"a line's amount is {amount}, not above zero"
        raise ValueError(msg)
    balance = row.get("TRSBLV", "")
    return StatementEntry(
        bank_ref=row.get("REFNBR", ""),
        booked_at=_moment(row.get("ETYDAT", ""), row.get("ETYTIM", "")),
        direction=direction,
        amount=amount,
        counterparty_account=row.get("RPYACC", ""),
        counterparty_name=row.get("RPYNAM", ""),
        client_ref=row.get("YURREF", ""),
        balance_after=Cny.parse_loose(balance) if balance else None,
        purpose=row.get("NUSAGE", "") or row.get("NARYUR", ""),
        reversal=row.get("RSVFLG", "") == REVERSAL,
    )


def _check_currency(row: Row) -> None:
    if row.get("CCYNBR", "") not in {"", RENMINBI}:
        msg = f"the currency is {row['CCYNBR']!r}, not {RENMINBI} (renminbi)"
        raise ValueError(msg)


def _asked_at(correlation: str) -> dt.datetime:
    """Return when the request was made, which its own number tells; answers bear no time."""
    found = _MOMENT.fullmatch(correlation)
    if found is None:
        msg = "the answer's number does not tell when the request was made"
        raise ValueError(msg)
    return _moment(found[1], found[2])


def _moment(day: str, time: str) -> dt.datetime:
    if not _TIME.fullmatch(time or "000000"):
        msg = f"{time[:20]!r} is not a time HHmmss"
        raise ValueError(msg)
    if not _DATE.fullmatch(day):
        msg = f"{day[:20]!r} is not a date yyyyMMdd"
        raise ValueError(msg)
    return from_bank(day + (time or "000000"))


def _date(text: str) -> dt.date:
    found = _DATE.fullmatch(text)
    if found is None:
        msg = f"{text[:20]!r} is not a date yyyyMMdd"
        raise ValueError(msg)
    return dt.date(int(found[1]), int(found[2]), int(found[3]))
