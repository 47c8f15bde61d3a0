"""What the bank's answers mean: codes, states and rows to outcomes; never raises on bad content.

Two levels: resultcode of the head says that the request was taken, and no more; a row's errCod,
reqSts and rtnFlg say what became of the payment. States as in ``cmb_xml``.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, assert_never

from bank_adapters.cmb_cdc.messages import TIME_DIGITS, Message, Row
from bank_adapters.cmb_cdc.requests import (
    MORE,
    PAYMENT,
    RENMINBI,
    RETURNED,
    RETURNED_ASKED,
    RETURNED_TOLD,
    Y1,
    Z1,
    Z2,
    Cursor,
    cursor_text,
    function_of,
)
from fep.adapters.api import Accepted, Outcome, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, Codes, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import BusinessDate, from_bank
from fep.domain.ids import ClientRef
from fep.domain.money import ZERO, Cny
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
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
)

FINISHED: Final = "FIN"
UNREADABLE: Final = "UNREADABLE"
"""Our code of an answer that can't be read."""
REVERSED: Final = "Y"
"""reversalFlag of a line that takes an earlier one back (冲账)."""
_DAY: Final = re.compile("[0-9]{8}")
_DIRECTIONS: Final = {"D": Direction.DEBIT, "C": Direction.CREDIT}
_ACCOUNT_STATUS: Final = {"A": "active", "B": "frozen", "C": "closed"}
_SUBSIDIARY: Final = "S"


def outcome(card: BehaviourCard, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != function_of(operation):
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function[:40]!r}")
    if message.fault:
        return Unclear(UNREADABLE, message.fault)
    if reply.code not in card.codes.ok:
        if isinstance(operation, PaymentOrder):
            # The gateway answers so also for a request that it had already passed on.
            return Unclear(reply.code, reply.message)
        return refused(card.codes, reply.code, reply.message)
    try:
        return _answered(card, operation, reply, message)
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear(UNREADABLE, str(error))


def looked_up(card: BehaviourCard, lookup: Lookup, reply: Reply) -> Outcome:
    """Return what a reply means for the look-up it answers."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != RETURNED:
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function[:40]!r}")
    if message.fault:
        return Unclear(UNREADABLE, message.fault)
    if reply.code not in card.codes.ok:
        return refused(card.codes, reply.code, reply.message)
    try:
        return Accepted(_returned(lookup, message), reply.code, reply.message)
    except ValueError as error:
        return Unclear(UNREADABLE, str(error))


def _returned(lookup: Lookup, message: Message) -> ReturnedPayments:
    if RETURNED_TOLD not in message.tables:
        msg = "the answer has no table of payments that came back"
        raise ValueError(msg)
    entries = tuple(
        ReturnedPayment(
            client_ref=row.get("yurRef", ""),
            bank_ref=row.get("reqNbr", ""),
            amount=Cny.parse_loose(row.get("trsAmt", "")),
            submitted_on=_day_or_none(row.get("eptDat", "")),
            returned_on=_day_or_none(row.get("rtnDat", "")),
            payee_account=row.get("crtAcc", ""),
            payee_name=row.get("crtNam", ""),
            payee_bank_name=row.get("crtBnk", ""),
            reason=row.get("rtnNar", ""),
        )
        for row in message.rows(RETURNED_TOLD)
    )
    [again] = message.rows(RETURNED_ASKED) or ({},)
    following = again.get("ctnKey", "")
    if following and (following == lookup.cursor or not entries):
        msg = "the list goes on, and the bank does not say where"
        raise ValueError(msg)
    return ReturnedPayments(entries, following)


def _day_or_none(text: str) -> BusinessDate | None:
    return BusinessDate(_day(text)) if text else None


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to BB1PAYOP bears in its number."""
    message = reply.content
    if not isinstance(message, Message) or message.function != PAYMENT:
        return ""
    return message.number[TIME_DIGITS:]


def _answered(card: BehaviourCard, operation: Operation, reply: Reply, message: Message) -> Outcome:
    match operation:
        case PaymentOrder():
            return _payment(card, operation, message)
        case BalanceQuery():
            return _balance(card.codes, operation, message)
        case StatusQuery():
            status = _status(card.states, operation, message)
            return Accepted(status, status.code, status.message)
        case StatementQuery():
            return Accepted(_statement(operation, message), reply.code, reply.message)
        case _:
            assert_never(operation)


def state_key(row: Row) -> str:
    """Return a row's state as the card writes it: reqSts, or FIN with its rtnFlg: ``FIN+S``."""
    state = row.get("reqSts", "")
    return f"{FINISHED}+{row.get('rtnFlg', '')}" if state == FINISHED else state


def _only(message: Message, table: str) -> Row:
    rows = message.rows(table)
    if len(rows) != 1:
        msg = f"{len(rows)} rows of {table} answer one request"
        raise ValueError(msg)
    return rows[0]


def _payment(card: BehaviourCard, order: PaymentOrder, message: Message) -> Outcome:
    row = _only(message, "bb1payopz1")
    code, key = row.get("errCod", ""), state_key(row)
    said = row.get("errTxt", "") or row.get("msgTxt", "")
    if code in card.codes.duplicate:
        # FIN and F beside this code are about the repeat; the first one may have been paid.
        return Unclear(code, said)
    state = payment_state(card.states, key)
    if code not in card.codes.ok:
        if key and state is not PaymentState.REJECTED:
            return Unclear(code, f"{said} (the row's state {key} says otherwise)")
        return payment_refused(card.codes, code, said)
    if state in {PaymentState.SUCCEEDED, PaymentState.PROCESSING}:
        reference = ClientRef(message.number[TIME_DIGITS:])
        receipt = PaymentReceipt(reference, order.amount, row.get("reqNbr", ""))
        return Accepted(receipt, key, said, final=state is PaymentState.SUCCEEDED)
    return Rejected(key, said) if state is PaymentState.REJECTED else Unclear(key or code, said)


def _balance(codes: Codes, query: BalanceQuery, message: Message) -> Outcome:
    rows = [row for row in message.rows("ntqadinfz") if row.get("accnbr") == query.account]
    if len(rows) != 1:
        msg = f"{len(rows)} rows tell the balance of one account"
        raise ValueError(msg)
    row = rows[0]
    code, said = row.get("errcod", ""), row.get("errtxt", "")
    if code not in codes.ok:
        return refused(codes, code, said)
    _check_currency(row.get("ccynbr", ""))
    held, status = row.get("hldblv", ""), row.get("stscod", "")
    balance = Balance(
        account=query.account,
        available=Cny.parse_loose(row.get("avlblv", "")),
        book=Cny.parse_loose(row.get("onlblv", "")),
        held=Cny.parse_loose(held) if held else None,
        as_of=_asked_at(message),
        # intcod S: the "balance" is a group's quota and no money lies there.
        status="virtual"
        if row.get("intcod") == _SUBSIDIARY
        else _ACCOUNT_STATUS.get(status, status),
    )
    return Accepted(balance, code, said)


def _asked_at(message: Message) -> dt.datetime:
    """Return when the bank answered, or when it was asked: a balance bears no time of its own."""
    return from_bank(message.signed_at or message.number[:14])


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    if "bb1payqrz1" not in message.tables:
        msg = "the answer has no table of payments"
        raise ValueError(msg)
    rows = message.rows("bb1payqrz1")
    # The bank may tell of references that only begin alike.
    mine = [row for row in rows if row.get("yurRef") == query.client_ref]
    if not mine:
        if rows:
            msg = "the answer tells of other payments only"
            raise ValueError(msg)
        return PaymentStatus(PaymentState.NO_RECORD)
    found = [_row_status(states, query, row) for row in mine]
    if any(one.state is not found[0].state for one in found):
        told = "rows of one reference do not agree"
        return PaymentStatus(PaymentState.UNKNOWN, "MANY_ROWS", told)
    return found[0]


def _row_status(states: States, query: StatusQuery, row: Row) -> PaymentStatus:
    key, bank_ref = state_key(row), row.get("reqNbr", "")
    if difference := _difference(query.order, row):
        # Somebody else at the enterprise used our reference: this row is not our payment.
        told = f"the bank's payment of this reference has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", told, bank_ref)
    day = row.get("eptDat", "") or row.get("oprDat", "")
    return PaymentStatus(
        state=payment_state(states, key),
        code=key,
        message=row.get("rtnNar", ""),
        bank_ref=bank_ref,
        booked_on=BusinessDate(_day(day)) if day else None,
    )


def _difference(order: PaymentOrder, row: Row) -> str:
    """Return which of the facts present in the row is not the order's, or empty."""
    amount = row.get("trsAmt", "")
    if amount and Cny.parse_loose(amount) != order.amount:
        return "amount"
    if row.get("crtAcc", "") not in {"", order.payee.account}:
        return "payee"
    return "payer" if row.get("dbtAcc", "") not in {"", order.payer} else ""


def _statement(query: StatementQuery, message: Message) -> Statement:
    if not message.tables.keys() & {Z1, Z2}:
        msg = "the answer has no table of a statement"
        raise ValueError(msg)
    entries = tuple(_entry(row) for row in message.rows(Z2))
    page = _only(message, Z1) if message.rows(Z1) else {}
    counts = {page.get("debitNums", ""), page.get("creditNums", "")} - {"", "0"}
    if counts and not entries and not query.cursor:
        msg = "the bank counts lines, and tells none"
        raise ValueError(msg)
    if page.get("ctnFlag") != MORE:
        return Statement(entries)
    rows = message.rows(Y1)
    if not rows or not page.get("queryAcctNbr"):
        # Asked again without them the bank would begin at the first page, for ever.
        msg = "there are more lines, and the bank does not say where they begin"
        raise ValueError(msg)
    following = cursor_text(Cursor(page["queryAcctNbr"], rows))
    if following == query.cursor:
        msg = "there are more lines, and the bank says that they begin where these did"
        raise ValueError(msg)
    return Statement(entries, following)


def _entry(row: Row) -> StatementEntry:
    _check_currency(row.get("currencyNbr", ""))
    signed = Cny.parse_loose(row.get("transAmount", ""))
    direction = _DIRECTIONS.get(row.get("loanCode", ""))
    by_sign = Direction.DEBIT if signed < ZERO else Direction.CREDIT
    if signed == ZERO or direction is not by_sign:
        msg = f"a line's amount {signed} and loanCode {row.get('loanCode', '')[:9]!r} do not agree"
        raise ValueError(msg)
    balance = row.get("acctOnlineBal", "")
    return StatementEntry(
        bank_ref=row.get("transSequenceIdn", ""),
        booked_at=from_bank(row.get("transDate", "") + (row.get("transTime", "") or "000000")),
        direction=direction,
        amount=-signed if signed < ZERO else signed,
        counterparty_account=row.get("ctpAcctNbr", ""),
        counterparty_name=row.get("ctpAcctName", ""),
        client_ref=row.get("yurRef", ""),
        balance_after=Cny.parse_loose(balance) if balance else None,
        purpose=row.get("remarkTextClt", ""),
        reversal=row.get("reversalFlag", "") == REVERSED,
    )


def _check_currency(currency: str) -> None:
    if currency not in {"", RENMINBI}:
        msg = f"the currency is {currency[:20]!r}, not {RENMINBI} (renminbi)"
        raise ValueError(msg)


def _day(text: str) -> dt.date:
    if not _DAY.fullmatch(text):
        msg = f"{text[:20]!r} is not a date yyyyMMdd"
        raise ValueError(msg)
    return dt.date(int(text[:4]), int(text[4:6]), int(text[6:]))
