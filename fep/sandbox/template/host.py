"""The simulated bank (模拟银行): its memory is the book alone."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    Answer,
    BankHost,
    BookedState,
    BookEntry,
    DuplicateReferenceError,
    Fault,
    HostProfile,
    PaymentRequest,
    verify,
)
from fep.domain.clock import BusinessDate, to_text
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny
from fep.sandbox.template.codec import BALANCE, PAY, STATEMENT, STATUS, signed_bytes
from fep.sandbox.template.messages import FrameReader, Message, decode, encode, text

OK, REFUSED, NOT_SIGNED, TOO_OFTEN = "0000", "E001", "E002", "E003"
DUPLICATE, NO_RECORD = "E004", "E005"
UNSURE: Final = "E999"
"""On no list of the card: the bank does not know itself."""
REQUEST_BYTES_MAX: Final = 64 * 1024
ROWS_PER_PAGE: Final = 20

_BEFORE_BOOKING: Final[Mapping[Fault, list[Answer]]] = {
    Fault.SILENT_BEFORE_BOOKING: [],
    Fault.CLOSE_BEFORE_BOOKING: [Answer(close=True)],
    Fault.EXIT_BEFORE_BOOKING: [Answer(exit=True)],
}
_AFTER_BOOKING: Final[Mapping[Fault, list[Answer]]] = {
    Fault.SILENT_AFTER_BOOKING: [],
    Fault.CLOSE_AFTER_BOOKING: [Answer(close=True)],
    Fault.EXIT_AFTER_BOOKING: [Answer(exit=True)],
}
_STATES: Final = {
    BookedState.DONE: "DONE",
    BookedState.LANDED: "WAITS",
    BookedState.REFUSED: "REFUSED",
    BookedState.RETURNED: "RETURNED",
}


class _RefusedError(Exception):
    """The request is answered with another code than 0000."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said


@attrs.frozen
class TemplateHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = "template"

    def open(self, profile: HostProfile) -> _Client:
        """Return the host's half of a new connection."""
        return _Client(profile)


@attrs.define
class _Client:
    """One connection."""

    profile: HostProfile
    _frames: FrameReader = attrs.field(factory=lambda: FrameReader(REQUEST_BYTES_MAX))

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return what to do about these bytes; never raises on bad bytes."""
        try:
            messages = [decode(body) for body in self._frames.receive_data(data)]
        except RemoteProtocolError:
            return [Answer(close=True)]
        return [answer for message in messages for answer in self._answer(message)]

    def _answer(self, message: Message) -> list[Answer]:
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            if text(message, "trade") == PAY:
                return self._pay(message)
            query = _QUERIES.get(text(message, "trade"))
            if query is None:
                return self._told(message, REFUSED, "unknown trade")
            if self.profile.faults.draw(Fault.THROTTLED):
                return self._told(message, TOO_OFTEN, "too often")
            return self._told(message, OK, "", query(self.profile, message))
        except _RefusedError as refused:
            return self._told(message, refused.code, refused.said)

    def _pay(self, message: Message) -> list[Answer]:
        if not self._is_signed(message):
            raise _RefusedError(NOT_SIGNED, "the signature is wrong")
        request = _payment_request(message)
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults, now = self.profile.faults, self.profile.clock.now()
        request = attrs.evolve(
            request, landed=faults.draw(Fault.LANDED), returns_at=faults.draw_return(now)
        )
        try:
            payment = self.profile.book.pay(self.profile.bank, request, now)
        except DuplicateReferenceError:
            raise _RefusedError(DUPLICATE, "the reference is known") from None
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            return self._told(message, UNSURE, "the bank's host did not answer")
        told = {
            "state": _STATES[payment.state],
            "reason": payment.reason,
            "bank_ref": payment.bank_ref,
        }
        return self._told(message, OK, "", told)

    def _is_signed(self, message: Message) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        try:
            signature = base64.b64decode(text(message, "signature"), validate=True)
        except (binascii.Error, ValueError):
            return False
        data = signed_bytes(message)
        return any(verify(certificates, one, signature, data) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    def _told(
        self, asked: Message, code: str, said: str, found: Mapping[str, Any] | None = None
    ) -> list[Answer]:
        head = {name: text(asked, name) for name in ("trade", "number")}
        data = encode({**head, "code": code, "said": said, **(found or {})})
        late = self.profile.faults.draw(Fault.DELAYED)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = TemplateHost()


def _need(message: Message, name: str) -> str:
    if not (value := text(message, name)):
        raise _RefusedError(REFUSED, f"{name} is missing")
    return value


def _number(message: Message, name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(message, name))
    except ValueError:
        raise _RefusedError(REFUSED, f"{name} is no account") from None


def _payment_request(message: Message) -> PaymentRequest:
    try:
        amount = Cny.parse(_need(message, "amount"))
    except ValueError:
        raise _RefusedError(REFUSED, "amount is none") from None
    if not 0 < amount.fen <= FEN_MAX:
        raise _RefusedError(REFUSED, "amount is too small or too large")
    return PaymentRequest(
        client_ref=_need(message, "number"),
        payer=_number(message, "payer"),
        payee=_number(message, "payee"),
        payee_name=_need(message, "payee_name"),
        payee_bank_name=_need(message, "payee_bank"),
        amount=amount,
        purpose=_need(message, "purpose"),
    )


def _balance(profile: HostProfile, message: Message) -> Mapping[str, Any]:
    account = profile.book.account(profile.bank, _number(message, "account"))
    if account is None:
        raise _RefusedError(REFUSED, "no such account")
    at = to_text(profile.clock.now())
    return {"account": account.number, "balance": str(account.balance), "at": at}


def _status(profile: HostProfile, message: Message) -> Mapping[str, Any]:
    reference = _need(message, "of")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None:
        raise _RefusedError(NO_RECORD, "no such payment")
    return {
        "of": reference,
        "state": _STATES[payment.state],
        "reason": payment.reason,
        "bank_ref": payment.bank_ref,
        "payer": payment.payer,
        "payee": payment.payee,
        "amount": str(payment.amount),
    }


def _statement(profile: HostProfile, message: Message) -> Mapping[str, Any]:
    account, page = _number(message, "account"), _need(message, "page")
    if not (page.isascii() and page.isdecimal() and int(page[:6]) > 0):
        raise _RefusedError(REFUSED, "page is no number")
    first, last = _day(message, "from"), _day(message, "to")
    entries = profile.book.entries(profile.bank, account, first, last)
    begin = (int(page[:6]) - 1) * ROWS_PER_PAGE
    rows = [_line(entry) for entry in entries[begin : begin + ROWS_PER_PAGE]]
    if not rows:
        raise _RefusedError(NO_RECORD, "no lines")
    pages = -(-len(entries) // ROWS_PER_PAGE)
    return {"page": page, "pages": str(pages), "rows": rows}


def _day(message: Message, name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.date.fromisoformat(_need(message, name)))
    except ValueError:
        raise _RefusedError(REFUSED, f"{name} is no day") from None


def _line(entry: BookEntry) -> Mapping[str, str]:
    is_payer = entry.debit != entry.back
    return {
        "bank_ref": entry.payment_ref,
        "at": to_text(entry.at),
        "direction": "debit" if entry.debit else "credit",
        "amount": str(entry.amount),
        "account": entry.counterparty,
        "name": entry.counterparty_name,
        # A payer's reference is nothing the payee's bank ever learns.
        "reference": entry.client_ref if is_payer else "",
        "balance": str(entry.balance_after),
        "purpose": entry.purpose,
        "back": "1" if entry.back else "",
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], Mapping[str, Any]]]] = {
    BALANCE: _balance,
    STATUS: _status,
    STATEMENT: _statement,
}
