"""What the bank's answers mean: codes, states and lines to outcomes; never raises on bad content.

Three levels: CODE of the sign-on, CODE of the trade's STATUS, and XFERPRCCODE of the payment. A
payment is done only if STATUS says 0 and XFERPRCCODE says PAYOUT (V4.0.4, transfer).
"""

from __future__ import annotations

from typing import Final, assert_never

from bank_adapters.cib_fox.config import CARD
from bank_adapters.cib_fox.messages import SIGN_ON, Fields, Message, part, rows, text
from bank_adapters.cib_fox.requests import PAGE_FIRST, PAYMENT, SUPER_FEN_MAX, trade_of
from fep.adapters import xml
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import BusinessDate, business_date, from_bank
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
    Urgency,
)

UNREADABLE: Final = "UNREADABLE"
"""Our code of an answer that can't be read."""
NO_RECORD: Final = "-1"
"""TO of a status answer that knows no such payment."""
_RENMINBI: Final = frozenset({"", "01", "RMB", "CNY"})
_ACCOUNT_STATUS: Final = {"0": "closed", "1": "active"}
_DIRECTIONS: Final = {"DEBIT": Direction.DEBIT, "CREDIT": Direction.CREDIT}


def codes(message: Message) -> tuple[str, str]:
    """Return an answer's code and the bank's words: of the sign-on where that was refused.

    Raises:
        ValueError: one of these nodes stands there several times.
    """
    said = part(message.sign_on, "STATUS")
    refused = text(said, "CODE") not in CARD.codes.ok | {""}
    if message.trade != SIGN_ON and not refused:
        said = part(message.body, "STATUS")
    return text(said, "CODE"), text(said, "MESSAGE")


def is_sign_on_refused(card: BehaviourCard, reply: Reply) -> bool:
    """Say whether the bank refused user or password: there is no second part then."""
    message = reply.content
    alone = isinstance(message, Message) and message.is_answer and message.trade == SIGN_ON
    return alone and reply.code in card.codes.permission


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to a transfer bears, or empty."""
    message = reply.content
    if not isinstance(message, Message) or message.trade != PAYMENT or not message.is_answer:
        return ""
    try:
        return text(message.body, "XFERRS", "CLIENTREF") or message.number
    except ValueError:
        return ""


def outcome(card: BehaviourCard, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers."""
    message = reply.content
    if not isinstance(message, Message) or not message.is_answer:
        return Unclear(reply.code, reply.message or "no answer of this bank")
    if is_sign_on_refused(card, reply):
        # Nothing was done, and nothing will be: the bank did not even look at the trade.
        return Rejected(reply.code, reply.message, Refusal.PERMISSION)
    if message.trade != trade_of(operation):
        return Unclear(reply.code, reply.message or "an answer to something else")
    try:
        return _outcome(card, operation, reply, message.body)
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear(UNREADABLE, str(error))


def _outcome(card: BehaviourCard, operation: Operation, reply: Reply, body: Fields) -> Outcome:
    is_ok = reply.code in card.codes.ok
    match operation:
        case PaymentOrder() if is_ok:
            return _payment(card.states, operation, body)
        case PaymentOrder():
            return _failed(card, reply, body)
        case StatementQuery() if reply.code in card.codes.no_record:
            return Accepted(Statement(()), reply.code, reply.message)
        case _ if not is_ok:
            return refused(card.codes, reply.code, reply.message)
        case BalanceQuery():
            return Accepted(_balance(operation, reply, body), reply.code, reply.message)
        case StatusQuery():
            status = _status(card.states, operation, body)
            return Accepted(status, status.code, status.message)
        case StatementQuery():
            return Accepted(_statement(operation, body), reply.code, reply.message)
        case _:
            assert_never(operation)


def _failed(card: BehaviourCard, reply: Reply, body: Fields) -> Outcome:
    """Return what a CODE other than 0 on a payment means: mostly that nobody knows."""
    # The bank's own checks come before it has an order, and it refuses a sign-on without a trade.
    if "XFERRS" in body or reply.code in card.codes.permission:
        return Unclear(reply.code, reply.message)
    return payment_refused(card.codes, reply.code, reply.message)


def _payment(states: States, order: PaymentOrder, body: Fields) -> Outcome:
    told = part(body, "XFERRS")
    if not told:
        return Unclear("NO_XFERRS", "the answer to a payment tells of none")
    if difference := _difference(order, part(told, "XFERINFO")):
        # A TRNUID that somebody else at the enterprise used: it was that payment's stored result.
        return Unclear("MISMATCH", f"the bank's payment of this TRNUID has another {difference}")
    state, said = text(told, "XFERPRCSTS", "XFERPRCCODE"), text(told, "XFERPRCSTS", "MESSAGE")
    match payment_state(states, state):
        case PaymentState.SUCCEEDED | PaymentState.PROCESSING as found:
            final = found is PaymentState.SUCCEEDED and not _may_be_super(order, told)
            receipt = PaymentReceipt(
                client_ref=ClientRef(text(body, "TRNUID") or text(told, "CLIENTREF")),
                amount=order.amount,
                bank_ref=text(told, "SRVRID"),
                booked_on=_day(text(told, "XFERINFO", "DTDUE")) if final else None,
            )
            return Accepted(receipt, state, said, final=final)
        case PaymentState.REJECTED:
            return Rejected(state, said)
        case _:
            return Unclear(state, said)


def _may_be_super(order: PaymentOrder, told: Fields) -> bool:
    """Say whether a payment may have gone in real time (SUPER): the bank wants it asked after."""
    home = text(told, "XFERINFO", "ACCTTO", "@INTERBANK") == "Y"
    small = order.amount.fen <= SUPER_FEN_MAX
    return order.urgency is Urgency.URGENT and small and not home


def _difference(order: PaymentOrder, told: Fields) -> str:
    """Return which of the facts that are told is not the order's, or empty."""
    amount = text(told, "TRNAMT")
    if amount and Cny.parse_plain(amount) != order.amount:
        return "amount"
    if text(told, "ACCTTO", "ACCTID") not in {"", order.payee.account}:
        return "payee"
    if text(told, "ACCTFROM", "ACCTID") not in {"", order.payer}:
        return "payer"
    return "" if text(told, "CURSYM") in _RENMINBI else "currency"


def _status(states: States, query: StatusQuery, body: Fields) -> PaymentStatus:
    told = part(body, "XFERINQRS", "XFERLIST")
    found = rows(told, "XFER")
    if text(told, "TO") == NO_RECORD and not found:
        return PaymentStatus(PaymentState.NO_RECORD, NO_RECORD)
    if len(found) != 1 or text(told, "TO") == NO_RECORD:
        msg = f"{len(found)} payments answer the query after one, up to {text(told, 'TO')[:20]!r}"
        raise ValueError(msg)
    [row] = found
    bank_ref = text(row, "SRVRTID") or text(row, "SRVRID")
    if text(row, "CLIENTREF") not in {"", query.client_ref}:
        msg = "the answer tells of another payment"
        raise ValueError(msg)
    if difference := _difference(query.order, part(row, "XFERINFO")):
        said = f"the bank's payment of this TRNUID has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", said, bank_ref)
    state = text(row, "XFERPRCSTS", "XFERPRCCODE")
    meaning = payment_state(states, state)
    return PaymentStatus(
        state=meaning,
        code=state,
        message=text(row, "XFERPRCSTS", "MESSAGE"),
        bank_ref=bank_ref,
        booked_on=(
            _day(text(row, "XFERINFO", "DTDUE")) if meaning is PaymentState.SUCCEEDED else None
        ),
    )


def _day(told: str) -> BusinessDate | None:
    """Return a day, None where it is none: it is for people and proves nothing."""
    try:
        return business_date(from_bank(f"{told} 00:00:00"))
    except ValueError:
        return None


def _balance(query: BalanceQuery, reply: Reply, body: Fields) -> Balance:
    told = part(body, "RSBODY")
    if text(told, "ACCTID") != query.account:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    _check_currency(text(told, "CURRENCY"))
    status = text(told, "STATUS")
    assert isinstance(reply.content, Message)
    return Balance(
        account=query.account,
        available=Cny.parse_plain(text(told, "AVAILBAL")),
        book=Cny.parse_plain(text(told, "BALAMT")),
        as_of=from_bank(text(reply.content.sign_on, "DTSERVER")),
        status=_ACCOUNT_STATUS.get(status, status),
    )


def _statement(query: StatementQuery, body: Fields) -> Statement:
    told = part(body, "SCUSTSTMTRS")
    if text(told, "ACCTFROM", "ACCTID") not in {"", query.account}:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    _check_currency(text(told, "CURDEF"))
    listed = part(told, "TRANLIST")
    entries = tuple(_entry(row) for row in rows(listed, "STMTTRN"))
    match text(listed, "@MORE"):
        case "N":
            return Statement(entries)
        case "Y" if entries:
            return Statement(entries, str(int(query.cursor or PAGE_FIRST) + 1))
        case more:
            # A page left out would be as bad as a line.
            msg = f"MORE is {more[:20]!r} on a page of {len(entries)} lines"
            raise ValueError(msg)


def _entry(found: Fields) -> StatementEntry:
    row = found if isinstance(found, xml.Row) else {name: text(found, name) for name in _LINE}
    _check_currency(row.get("CURRENCY", ""))
    amount, after = Cny.parse_plain(row.get("TRNAMT", "")), row.get("BALAMT", "")
    direction = _DIRECTIONS.get(row.get("TRNTYPE", ""))
    if direction is None or not amount.fen:
        msg = f"a line has TRNTYPE {row.get('TRNTYPE', '')[:20]!r} and TRNAMT {amount}"
        raise ValueError(msg)
    taken_back = amount.fen < 0
    if taken_back:
        # A debit of -1.00 puts money in: it takes an earlier debit back (冲账).
        amount, direction = -amount, direction.opposite
    summary, _, purpose = row.get("MEMO", "").partition("|")
    return StatementEntry(
        bank_ref=row.get("SRVRTID", "") or text(found, "ATTACHINFO"),
        booked_at=from_bank(row.get("DTACCT", "")),
        direction=direction,
        amount=amount,
        counterparty_account=row.get("CORRELATE_ACCTID", ""),
        counterparty_name=row.get("CORRELATE_NAME", ""),
        balance_after=Cny.parse_plain(after) if after else None,
        purpose=purpose or summary,
        reversal=taken_back,
    )


_LINE: Final = (
    "SRVRTID",
    "TRNTYPE",
    "DTACCT",
    "TRNAMT",
    "BALAMT",
    "CURRENCY",
    "MEMO",
    "CORRELATE_ACCTID",
    "CORRELATE_NAME",
)


def _check_currency(currency: str) -> None:
    if currency not in _RENMINBI:
        msg = f"the currency is {currency[:20]!r}, not renminbi"
        raise ValueError(msg)
