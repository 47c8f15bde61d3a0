"""What answers mean: over HTTP, and from the files of a folder."""

from __future__ import annotations

import datetime as dt
import re
from email.utils import parsedate_to_datetime
from typing import Final, assert_never

import attrs

from bank_adapters.iso20022.config import Iso20022Options
from bank_adapters.iso20022.facts import Report, reports
from bank_adapters.iso20022.judging import judge
from bank_adapters.iso20022.messages import Message, documents, read
from bank_adapters.iso20022.requests import BALANCE, PAYMENT, PROBE, STATEMENT, STATUS
from bank_adapters.iso20022.statements import MissingError, balance, collected, page
from fep.adapters.api import (
    Accepted,
    BankProfile,
    Outcome,
    Rejected,
    Reply,
    Unclear,
)
from fep.adapters.card import BehaviourCard, Protocol
from fep.adapters.files import NONE, TOLD, Parcel
from fep.adapters.meaning import refused
from fep.domain.clock import BusinessDate, business_date, from_text
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import ClientRef
from fep.domain.order import (
    BalanceQuery,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    StatementQuery,
    StatusQuery,
)
from fep.wire.http import HttpResponse

UNREADABLE: Final = "UNREADABLE"
"""Our code of an answer that can't be read."""
REQUEST_ID: Final = "x-request-id"
_ID: Final = re.compile(rf"({PAYMENT}|{STATUS}|{BALANCE}|{STATEMENT}|{PROBE})-([!-~]{{1,64}})")
_TRADES: Final = {
    BalanceQuery: BALANCE,
    PaymentOrder: PAYMENT,
    StatusQuery: STATUS,
    StatementQuery: STATEMENT,
}


@attrs.frozen
class Content:
    """What an answer holds."""

    messages: tuple[Message, ...] = ()
    reference: str = ""
    """Of the payment it is about, as its carrier says."""
    asked_at: dt.datetime | None = None
    """When it was asked, by the clock of who answered."""

    @property
    def payment(self) -> str:
        """The reference of the one payment that its status reports are about, or empty."""
        if self.reference:
            return self.reference
        ids = {
            one.body.findtext("OrgnlGrpInfAndSts/OrgnlMsgId", "").strip()
            for one in self.messages
            if one.kind == "pain.002"
        }
        return ids.pop() if len(ids) == 1 else ""


# -- reading --------------------------------------------------------------------------------------


def read_http(response: HttpResponse) -> Reply:
    """Return the reply that an HTTP answer is; never raises."""
    echoed = response.header(REQUEST_ID)
    found = _ID.fullmatch(echoed)
    trade, correlation = (found[1], found[2]) if found else ("", "")
    body = response.body
    try:
        content = Content(_messages(body), asked_at=_http_date(response.header("date")))
    except RemoteProtocolError as error:
        return Reply(correlation, trade, UNREADABLE, str(error), body)
    return Reply(correlation, trade, str(response.status), "", body, content)


def _http_date(value: str) -> dt.datetime | None:
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo is not None else None


def _messages(body: bytes) -> tuple[Message, ...]:
    """Return the messages in a body; text of another kind, such as JSON, holds none."""
    if not body.lstrip(b" \t\r\n\xef\xbb\xbf").startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        return ()
    return tuple(read(one) for one in documents(body))


def read_parcel(parcel: Parcel, raw: bytes) -> Reply:
    """Return the reply that a folder link's answer is; never raises."""
    code, said = parcel.code, parcel.message
    content = None
    try:
        messages = tuple(read(one) for part in parcel.documents for one in documents(part))
        asked_at = from_text(parcel.at) if parcel.at else None
        content = Content(messages, parcel.reference, asked_at)
    except (RemoteProtocolError, ValueError) as error:
        code, said = UNREADABLE, str(error)
    return Reply(parcel.correlation, parcel.trade, code, said, raw, content)


# -- meaning --------------------------------------------------------------------------------------


def outcome(profile: BankProfile, operation: Operation, reply: Reply) -> Outcome:
    """Return what a reply means for the operation it answers; never raises on bad content."""
    content = reply.content
    wanted = {"", TOLD, _TRADES[type(operation)]}
    if not isinstance(content, Content) or reply.trade not in wanted:
        return Unclear(reply.code, reply.message or "an answer to something else")
    try:
        return _outcome(profile, operation, reply, content)
    except MissingError as error:
        return Unclear(error.code, str(error))
    except ValueError as error:
        # One value that can't be read spoils the answer: a line left out would be a lie.
        return Unclear(UNREADABLE, str(error)[:200])


def _outcome(profile: BankProfile, operation: Operation, reply: Reply, content: Content) -> Outcome:
    card = profile.card
    is_empty = reply.code in card.codes.no_record
    if isinstance(operation, StatusQuery) and is_empty:
        return Accepted(PaymentStatus(PaymentState.NO_RECORD), reply.code, reply.message)
    is_folder = card.transport.protocol is Protocol.FOLDER
    is_told = reply.code in card.codes.ok or (is_folder and reply.code == NONE)
    if not is_told:
        if isinstance(operation, PaymentOrder):
            # HTTP's own refusals come from what stands in front of the bank, too.
            return Unclear(reply.code, reply.message)
        return refused(card.codes, reply.code, reply.message)
    match operation:
        case PaymentOrder():
            return _payment(card, operation, content)
        case StatusQuery():
            reference = operation.client_ref
            if content.reference not in {"", reference}:
                msg = "the answer tells of another payment"
                raise ValueError(msg)
            status = judge(card, operation.order, reference, content.messages)
            return Accepted(status, status.code or reply.code, status.message)
        case BalanceQuery():
            age_max_s = _options(profile).balance_age_max_s
            told = balance(operation, _reports(content), content.asked_at, age_max_s)
            return Accepted(told, reply.code, reply.message)
        case StatementQuery():
            return Accepted(
                page(operation, _reports(content))
                if not is_folder
                else collected(
                    operation,
                    _reports(content),
                    _today(content),
                    weekends=_options(profile).statements_on_weekends,
                ),
                reply.code,
                reply.message,
            )
        case _:
            assert_never(operation)


def _options(profile: BankProfile) -> Iso20022Options:
    options = profile.options
    assert isinstance(options, Iso20022Options)
    return options


def _reports(content: Content) -> list[Report]:
    return [report for message in content.messages for report in reports(message)]


def _today(content: Content) -> BusinessDate:
    if content.asked_at is None:
        msg = "it is not told when this was asked"
        raise ValueError(msg)
    return business_date(content.asked_at)


def _payment(card: BehaviourCard, order: PaymentOrder, content: Content) -> Outcome:
    reference = content.payment
    if not reference:
        return Unclear("NO_STATUS", "the answer holds no status report of one message")
    status = judge(card, order, reference, content.messages)
    receipt = PaymentReceipt(
        ClientRef(reference), order.amount, status.bank_ref, booked_on=status.booked_on
    )
    match status.state:
        case PaymentState.SUCCEEDED | PaymentState.RETURNED:
            return Accepted(receipt, status.code, status.message)
        case PaymentState.PROCESSING:
            return Accepted(receipt, status.code, status.message, final=False)
        case PaymentState.REJECTED:
            return Rejected(status.code, status.message)
        case PaymentState.NO_RECORD | PaymentState.UNKNOWN:
            return Unclear(status.code, status.message)
        case _:
            assert_never(status.state)
