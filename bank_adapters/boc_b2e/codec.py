"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping
from typing import Final, assert_never

import attrs

from bank_adapters.boc_b2e.config import BANK_CLASS, PASSWORD, BocB2eOptions
from bank_adapters.boc_b2e.messages import (
    TYPE,
    Fields,
    Message,
    add_signature,
    decode,
    encode,
    mask_token,
    signed_part,
    take_token,
    text,
)
from fep.adapters import xml
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
from fep.adapters.http import HttpFramer
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import BusinessDate, from_bank, to_shanghai
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
    Urgency,
)
from fep.wire.http import HttpResponse, request_bytes

SIGN_ON, BALANCE, STATUS = "b2e0001", "b2e0005", "b2e0007"
PAY, STATEMENT = "b2e0009", "b2e0035"
NOT_SIGNED_ON: Final = frozenset({"1033", "B107"})
MORE: Final = "B002"
"""The outer rspcod of a statement's page that others follow; of anything else it proves nothing."""
UNANSWERED_MAX: Final = 2048
"""Requests whose token is remembered; more than wait and are under way at once."""
UNREADABLE: Final = "UNREADABLE"
"""Our code of an answer that can't be read."""
TEXT_CHARS_MAX: Final = 100
"""Our choice: the bank's lengths are not known."""
DEBIT, CREDIT = "D", "C"
"""``dircod`` of a line; the simulated bank's."""
REVERSED: Final = "1"
"""``revers`` of a line that takes an earlier one back; the simulated bank's."""


@attrs.define
class BocB2eCodec:
    """One configured bank's protocol; besides its profile it knows the token.

    An answer that nobody is signed on may be late, and speak of the token before this one.
    """

    profile: BankProfile
    _token: str = attrs.field(default="", repr=False)
    _borne: dict[str, str] = attrs.field(factory=dict, repr=False)
    """The tokens that requests without an answer bear, by their numbers."""

    # -- the session ------------------------------------------------------------------------------

    @property
    def is_signed_on(self) -> bool:
        """Whether requests can be sealed now."""
        return bool(self._token)

    def signed_on(self, reply: Reply) -> None:
        """Take the token of a sign-on."""
        if isinstance(reply.content, Message):
            self._token = _token(reply.content)

    def signed_off(self, reply: Reply) -> bool:
        """Say whether this answer means that nobody is signed on, and forget the token."""
        borne = self._borne.pop(reply.correlation, self._token)
        if reply.code not in NOT_SIGNED_ON or (self._token and borne != self._token):
            return False
        self._token = ""
        return True

    def logon(self, context: Context) -> Draft | None:
        """Return the sign-on while nobody is signed on."""
        if self._token:
            return None
        at = to_shanghai(context.now)
        password = self.profile.secrets.get(PASSWORD, "")
        item = {"custdt": f"{at:%Y%m%d%H%M%S}", "oprpwd": password}
        return self._draft(SIGN_ON, context.sequence, item)

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> HttpFramer:
        """Return the framer of a new connection."""
        return HttpFramer(_read, self.profile.card.limits.frame_bytes_max)

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat: the balance of the first account of ours at this bank."""
        accounts = self.profile.accounts.items()
        ours = (number for number, one in accounts if one.bank == self.profile.bank)
        account = next(ours, AccountNumber("0"))
        return self._draft(BALANCE, context.sequence, {"account": self._account(account)})

    def alive(self, reply: Reply) -> bool:
        """Say whether the answer to a sign-on or heartbeat shows a working bank."""
        codes = self.profile.card.codes
        if reply.trade == SIGN_ON:
            has_token = isinstance(reply.content, Message) and _token(reply.content) != ""
            return reply.code in codes.ok and has_token
        return reply.trade == BALANCE and reply.code in codes.ok | codes.throttled

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        match operation:
            case BalanceQuery():
                account = self._account(self._own(operation.account, "account"))
                return self._draft(BALANCE, context.sequence, {"account": account})
            case PaymentOrder():
                if context.client_ref is None:
                    msg = "a payment was to be written without its reference"
                    raise LocalProtocolError(msg)
                item = self._payment(operation, context)
                return self._draft(PAY, context.client_ref, item, signed=True)
            case StatusQuery():
                item = {"insid": operation.client_ref, "obssid": operation.bank_ref}
                return self._draft(STATUS, context.sequence, item)
            case StatementQuery():
                return self._draft(STATEMENT, context.sequence, self._statement(operation))
            case _:
                assert_never(operation)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send, with the token of now.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        message = draft.content
        assert isinstance(message, Message)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        self._borne[draft.correlation] = self._token
        if len(self._borne) > UNANSWERED_MAX:
            del self._borne[next(iter(self._borne))]
        xml = encode(attrs.evolve(message, head={**message.head, "token": self._token}))
        if signature is not None:
            xml = add_signature(xml, base64.b64encode(signature))
        return request_bytes(self.profile.peer, self._options.path, xml, TYPE)

    def kept(self, frame: bytes) -> bytes:
        """Return a request's bytes as they may be stored and shown: without the token."""
        return mask_token(frame)

    def bearing(self, frame: bytes) -> BocB2eCodec:
        """Return a codec that seals with the token, or its stars, of a kept request."""
        return BocB2eCodec(self.profile, take_token(frame))

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers; never raises on bad content."""
        message = reply.content
        if not isinstance(message, Message) or message.trade != _TRADES[type(operation)]:
            return Unclear(reply.code, reply.message or "an answer to something else")
        try:
            return _outcome(self.profile.card, operation, reply, message)
        except ValueError as error:
            # One value that can't be read spoils the answer: a line left out would be a lie.
            return Unclear(UNREADABLE, str(error))

    def payment_ref(self, reply: Reply) -> str:
        """Return the insid of an answer to b2e0009, or empty."""
        message = reply.content
        if not isinstance(message, Message) or message.trade != PAY:
            return ""
        return text(message.items[0], "insid") if message.items else ""

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

    @property
    def _options(self) -> BocB2eOptions:
        options = self.profile.options
        assert isinstance(options, BocB2eOptions)
        return options

    def _draft(self, trade: str, number: str, item: Fields, *, signed: bool = False) -> Draft:
        head = {
            "termid": self._options.terminal_id,
            "trnid": number,
            "custid": self._options.customer_id,
            "cusopr": self._options.operator_id,
            "trncod": trade,
            # Put in when it is sealed.
            "token": "",
            "signature": "",
        }
        message = Message(head, trade, items=(item,))
        return Draft(
            correlation=number,
            trade=trade,
            to_sign=signed_part(encode(message)) if signed else None,
            algorithm=self.profile.card.signing.algorithm,
            content=message,
        )

    def _account(self, number: AccountNumber) -> Fields:
        own = self.profile.accounts.get(number)
        return {"ibknum": own.bank_code[3:8] if own else "", "actacn": number}

    def _payment(self, order: PaymentOrder, context: Context) -> Fields:
        payer, payee = self._own(order.payer, "payer.account"), order.payee
        own = self.profile.accounts.get(payee.account)
        code = payee.bank_code or (own.bank_code if own else "")
        same_bank = code.startswith(BANK_CLASS) or (
            not code and own is not None and own.bank == self.profile.bank
        )
        bank_name = payee.bank_name or (own.bank_title if own else "")
        if not same_bank and not bank_name.strip():
            msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
            raise BodyError(msg)
        at = to_shanghai(context.now)
        debit = self.profile.accounts[payer]
        return {
            "insid": context.client_ref or "",
            "fractn": {
                "fribkn": debit.bank_code[3:8],
                "actacn": payer,
                "actnam": _text(debit.name, "payer.name"),
            },
            "toactn": {
                "toibkn": code,
                "actacn": _text(payee.account, "payee.account"),
                "toname": _text(payee.name, "payee.name"),
                "toaddr": "",
                "tobknm": _text(bank_name, "payee.bank_name") if bank_name else "",
            },
            "trnamt": str(order.amount),
            "trncur": "CNY",
            "priolv": "1" if order.urgency is Urgency.URGENT else "0",
            "furinfo": _text(order.purpose.strip() or self._options.purpose_default, "purpose"),
            "trfdate": f"{at:%Y%m%d}",
            "trftime": f"{at:%H%M%S}",
        }

    def _statement(self, query: StatementQuery) -> Fields:
        days = (query.last_day - query.first_day).days
        if not 0 <= days < self.profile.card.statement.span_days_max:
            msg = "'from' and 'to': this bank tells a limited number of days at once"
            raise BodyError(msg)
        return {
            **self._account(self._own(query.account, "account")),
            "datefrom": f"{query.first_day:%Y%m%d}",
            "dateto": f"{query.last_day:%Y%m%d}",
            "begnum": query.cursor or "1",
            "recnum": str(self.profile.card.statement.rows_per_page),
        }

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


def _text(value: str, member: str) -> str:
    """Return a value that the bank's parser reads back as it is."""
    if not value.strip() or not value.isprintable() or len(value) > TEXT_CHARS_MAX:
        msg = f"{member} must be printable text of at most {TEXT_CHARS_MAX} characters"
        raise BodyError(msg)
    return value


def _token(message: Message) -> str:
    """Return the token of a sign-on's answer, wherever the bank puts it."""
    inside = text(message.items[0], "token") if message.items else ""
    return inside or text(message.fields, "token")


def _read(response: HttpResponse) -> Reply:
    if response.status != 200:
        code = f"HTTP{response.status}"
        return Reply("", "", code, "the front end's HTTP status", response.body)
    try:
        message = decode(response.body)
    except RemoteProtocolError as error:
        return Reply("", "", UNREADABLE, str(error), response.body)
    code, said = text(message.status, "rspcod"), text(message.status, "rspmsg")
    return Reply(message.number, message.trade, code, said, response.body, message)


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
    has_more = isinstance(operation, StatementQuery) and reply.code == MORE
    if reply.code not in card.codes.ok and not has_more:
        return refused(card.codes, reply.code, reply.message)
    match operation:
        case BalanceQuery():
            return Accepted(_balance(operation, message), reply.code, reply.message)
        case StatusQuery():
            status = _status(card.states, operation, message)
            return Accepted(status, status.code, status.message)
        case StatementQuery():
            told = _statement(operation, message, has_more=has_more)
            return Accepted(told, reply.code, reply.message)
        case _:
            assert_never(operation)


def _payment(card: BehaviourCard, order: PaymentOrder, reply: Reply, message: Message) -> Outcome:
    if reply.code not in card.codes.ok:
        return payment_refused(card.codes, reply.code, reply.message)
    item = _only(message)
    inner, said = text(item, "status", "rspcod"), text(item, "status", "rspmsg")
    if inner in card.codes.ok:
        # Taken over; only b2e0007 tells what becomes of it.
        receipt = PaymentReceipt(ClientRef(text(item, "insid")), order.amount, text(item, "obssid"))
        return Accepted(receipt, inner, said, final=False)
    if inner in card.codes.refused:
        return Rejected(inner, said)
    return Unclear(inner, said)


def _only(message: Message) -> Fields:
    if len(message.items) != 1:
        msg = f"{len(message.items)} items answer one request"
        raise ValueError(msg)
    return message.items[0]


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    item = _only(message)
    if text(item, "insid") not in {"", query.client_ref}:
        msg = "the answer tells of another payment"
        raise ValueError(msg)
    # The outer status is the query's own.
    code, said = text(item, "status", "rspcod"), text(item, "status", "rspmsg")
    bank_ref = text(item, "obssid")
    if difference := _difference(query.order, item):
        told = f"the bank's payment of this insid has another {difference}"
        return PaymentStatus(PaymentState.UNKNOWN, "MISMATCH", told, bank_ref)
    return PaymentStatus(payment_state(states, code), code, said, bank_ref)


def _difference(order: PaymentOrder, item: Fields) -> str:
    """Return which of the facts present in the item is not the order's, or empty."""
    amount = text(item, "trnamt")
    if amount and Cny.parse_plain(amount) != order.amount:
        return "amount"
    if text(item, "toactn", "actacn") not in {"", order.payee.account}:
        return "payee"
    return "payer" if text(item, "fractn", "actacn") not in {"", order.payer} else ""


def _balance(query: BalanceQuery, message: Message) -> Balance:
    item = _only(message)
    if text(item, "account", "actacn") != query.account:
        msg = "the answer tells of another account"
        raise ValueError(msg)
    _check_currency(text(item, "account", "curcde"))
    return Balance(
        account=query.account,
        available=Cny.parse_plain(text(item, "balance", "avabal")),
        book=Cny.parse_plain(text(item, "balance", "bokbal")),
        as_of=from_bank(text(item, "baldat")),
    )


def _statement(query: StatementQuery, message: Message, *, has_more: bool) -> Statement:
    begun = int(query.cursor or "1")
    entries = tuple(_entry(item) for item in message.items)
    told = text(message.fields, "totnum")
    if not (told.isascii() and told.isdecimal() and len(told) <= 9):
        msg = f"totnum is {told[:20]!r}, not a number"
        raise ValueError(msg)
    if has_more and not entries:
        msg = "a page without lines says that more follow"
        raise ValueError(msg)
    after = begun + len(entries)
    has_more |= bool(entries) and after <= int(told)
    return Statement(entries, str(after) if has_more else "")


def _entry(item: Fields) -> StatementEntry:
    row = item if isinstance(item, xml.Row) else {name: text(item, name) for name in _LINE}
    _check_currency(row.get("trncur", ""))
    direction = _DIRECTIONS.get(row.get("dircod", ""))
    amount, after = Cny.parse_plain(row.get("trnamt", "")), row.get("balance", "")
    if direction is None or amount.fen <= 0:
        msg = f"a line has direction {row.get('dircod', '')[:20]!r} and amount {amount}"
        raise ValueError(msg)
    return StatementEntry(
        bank_ref=row.get("obssid", ""),
        booked_at=from_bank(row.get("trndat", "")),
        direction=direction,
        amount=amount,
        counterparty_account=row.get("toactn", ""),
        counterparty_name=row.get("toname", ""),
        client_ref=row.get("insid", ""),
        balance_after=Cny.parse_plain(after) if after else None,
        purpose=row.get("furinfo", ""),
        reversal=row.get("revers", "") == REVERSED,
    )


_RENMINBI: Final = frozenset({"", "CNY", "RMB", "001"})
_LINE: Final = (
    "obssid",
    "trndat",
    "dircod",
    "trnamt",
    "trncur",
    "toactn",
    "toname",
    "insid",
    "balance",
    "furinfo",
    "revers",
)
_DIRECTIONS: Final[Mapping[str, Direction]] = {DEBIT: Direction.DEBIT, CREDIT: Direction.CREDIT}


def _check_currency(currency: str) -> None:
    if currency not in _RENMINBI:
        msg = f"the currency is {currency[:20]!r}, not CNY"
        raise ValueError(msg)
