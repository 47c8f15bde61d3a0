"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final, assert_never

import attrs

from fep.adapters.api import (
    Accepted,
    BankProfile,
    Context,
    Draft,
    Outcome,
    Rejected,
    Reply,
    Unclear,
)
from fep.adapters.card import BehaviourCard, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import BusinessDate, from_text
from fep.domain.errors import BodyError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import AccountNumber, ClientRef
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
from fep.sandbox.template.messages import FrameReader, Message, decode, encode, text

BALANCE, PAY, STATUS, STATEMENT = "balance", "pay", "status", "statement"
PURPOSE_DEFAULT: Final = "转账"
UNREADABLE: Final = "UNREADABLE"
"""Our code of a frame that can't be read; it matches no request and is stored."""


@attrs.frozen
class TemplateOptions:
    """The ``options`` table of a bank of this adapter; a ValueError names what is wrong."""

    customer: str
    """The enterprise's number at the bank."""


class TemplateFramer:
    """Cuts one connection's bytes into replies."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frames = FrameReader(frame_bytes_max)

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: as of ``FrameReader.receive_data``.
        """
        return [_reply(body) for body in self._frames.receive_data(data)]

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        self._frames.receive_eof()


def _reply(body: bytes) -> Reply:
    try:
        message = decode(body)
    except RemoteProtocolError as error:
        return Reply("", "", UNREADABLE, str(error), body)
    return Reply(
        correlation=text(message, "number"),
        trade=text(message, "trade"),
        code=text(message, "code"),
        message=text(message, "said"),
        raw=body,
        content=message,
    )


@attrs.frozen
class TemplateCodec:
    """One configured bank's protocol; its profile and nothing else."""

    profile: BankProfile

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> TemplateFramer:
        """Return the framer of a new connection."""
        return TemplateFramer(self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: there is no session."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat: a harmless request of the bank's own."""
        accounts = self.profile.accounts.items()
        ours = (number for number, one in accounts if one.bank == self.profile.bank)
        account = next(ours, AccountNumber("0"))
        return self._draft(BALANCE, context.sequence, {"account": account}, signed=False)

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank; "too often" does."""
        codes = self.profile.card.codes
        return reply.trade == BALANCE and reply.code in codes.ok | codes.throttled

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        fields: Message
        match operation:
            case BalanceQuery():
                fields = {"account": self._own(operation.account, "account")}
                return self._draft(BALANCE, context.sequence, fields, signed=False)
            case PaymentOrder():
                if context.client_ref is None:
                    msg = "a payment was to be written without its reference"
                    raise LocalProtocolError(msg)
                return self._draft(PAY, context.client_ref, self._payment(operation), signed=True)
            case StatusQuery():
                fields = {"of": operation.client_ref}
                return self._draft(STATUS, context.sequence, fields, signed=False)
            case StatementQuery():
                fields = {
                    "account": self._own(operation.account, "account"),
                    "from": operation.first_day.isoformat(),
                    "to": operation.last_day.isoformat(),
                    "page": operation.cursor or "1",
                }
                return self._draft(STATEMENT, context.sequence, fields, signed=False)
            case _:
                assert_never(operation)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        message: dict[str, Any] = dict(draft.content)
        if signature is not None:
            message["signature"] = base64.b64encode(signature).decode("ascii")
        return encode(message)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers; never raises on bad content."""
        if not isinstance(reply.content, Mapping) or reply.trade != _TRADES[type(operation)]:
            return Unclear(reply.code, reply.message or "an answer to something else")
        try:
            return _outcome(self.profile.card, operation, reply, reply.content)
        except (ValueError, TypeError) as error:
            # One value that can't be read spoils the answer: a line left out would be a lie.
            return Unclear(UNREADABLE, str(error))

    def payment_ref(self, reply: Reply) -> str:
        """Return our reference of the payment that an answer to a payment bears, or empty."""
        return reply.correlation if reply.trade == PAY else ""

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:  # noqa: ARG002 - the interface's
        """Return the queries a statement must be asked in: spans the bank tells at once."""
        step = dt.timedelta(days=self.profile.card.statement.span_days_max)
        spans, first = [], query.first_day
        while first <= query.last_day:
            last = BusinessDate(min(first + step - dt.timedelta(days=1), query.last_day))
            spans.append(attrs.evolve(query, first_day=first, last_day=last))
            first = BusinessDate(first + step)
        return spans

    # -- own --------------------------------------------------------------------------------------

    def _draft(self, trade: str, number: str, fields: Message, *, signed: bool) -> Draft:
        options = self.profile.options
        assert isinstance(options, TemplateOptions)
        message = {"trade": trade, "number": number, "customer": options.customer, **fields}
        return Draft(
            correlation=number,
            trade=trade,
            to_sign=signed_bytes(message) if signed else None,
            algorithm=self.profile.card.signing.algorithm,
            content=message,
        )

    def _payment(self, order: PaymentOrder) -> Message:
        values = {
            "payer": self._own(order.payer, "payer.account"),
            "payee": order.payee.account,
            "payee_name": order.payee.name,
            "payee_bank": order.payee.bank_name or "-",
            "amount": str(order.amount),
            "purpose": order.purpose.strip() or PURPOSE_DEFAULT,
        }
        for member, value in values.items():
            if not value.isprintable():
                msg = f"{member} has a character that can't be printed"
                raise BodyError(msg)
        return values

    def _own(self, number: AccountNumber, member: str) -> AccountNumber:
        account = self.profile.accounts.get(number)
        if account is None or account.bank != self.profile.bank:
            msg = f"{member} is no approved account of ours at bank {self.profile.bank!r}"
            raise BodyError(msg)
        return number


_TRADES: Final = {
    BalanceQuery: BALANCE,
    PaymentOrder: PAY,
    StatusQuery: STATUS,
    StatementQuery: STATEMENT,
}


def signed_bytes(message: Message) -> bytes:
    """Return what is signed of a message: all but the signature, in one order."""
    signed = {name: value for name, value in message.items() if name != "signature"}
    return json.dumps(signed, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")


# -- what the answers mean ------------------------------------------------------------------------


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
    state = payment_state(card.states, text(message, "state"))
    receipt = PaymentReceipt(ClientRef(reply.correlation), order.amount, text(message, "bank_ref"))
    match state:
        case PaymentState.SUCCEEDED | PaymentState.PROCESSING:
            final = state is PaymentState.SUCCEEDED
            return Accepted(receipt, text(message, "state"), reply.message, final=final)
        case PaymentState.REJECTED:
            return Rejected(text(message, "state"), text(message, "reason"))
        case _:
            return Unclear(text(message, "state"), reply.message)


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    if text(message, "of") != query.client_ref:
        msg = "the answer tells of another payment"
        raise ValueError(msg)
    state, order = text(message, "state"), query.order
    facts = text(message, "payer"), text(message, "payee"), text(message, "amount")
    if facts != (order.payer, order.payee.account, str(order.amount)):
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", "another payment has this reference")
    bank_ref = text(message, "bank_ref")
    return PaymentStatus(payment_state(states, state), state, text(message, "reason"), bank_ref)


def _balance(query: BalanceQuery, message: Message) -> Balance:
    if text(message, "account") != query.account:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    money = Cny.parse(text(message, "balance"))
    return Balance(query.account, money, money, from_text(text(message, "at")))


def _statement(query: StatementQuery, message: Message) -> Statement:
    rows = message.get("rows")
    page, pages = int(text(message, "page")), int(text(message, "pages"))
    if not isinstance(rows, list) or page != int(query.cursor or "1"):
        msg = "the answer is not the page that was asked for"
        raise ValueError(msg)
    entries = tuple(_entry(row) for row in rows)
    return Statement(entries, str(page + 1) if page < pages and entries else "")


def _entry(row: object) -> StatementEntry:
    if not isinstance(row, dict):
        msg = "a line is no object"
        raise TypeError(msg)
    return StatementEntry(
        bank_ref=text(row, "bank_ref"),
        booked_at=from_text(text(row, "at")),
        direction=Direction(text(row, "direction")),
        amount=Cny.parse(text(row, "amount")),
        counterparty_account=text(row, "account"),
        counterparty_name=text(row, "name"),
        client_ref=text(row, "reference"),
        balance_after=Cny.parse(text(row, "balance")),
        purpose=text(row, "purpose"),
        reversal=text(row, "back") == "1",
    )
