"""The simulated bank (模拟银行): signs on by password, and wants the token in every request.

Its memory is the book alone: the token is a function of the bank and the operator. b2e0009 takes a
payment over; only b2e0007 tells what became of it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from bank_adapters.boc_b2e.codec import (
    BALANCE,
    CREDIT,
    DEBIT,
    MORE,
    PAY,
    REVERSED,
    SIGN_ON,
    STATEMENT,
    STATUS,
)
from bank_adapters.boc_b2e.config import NAME
from bank_adapters.boc_b2e.messages import (
    TYPE,
    Fields,
    Message,
    decode,
    encode,
    signed_part,
    take_signature,
    text,
)
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    ODD,
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
from fep.adapters.http import HttpHostConnection
from fep.domain.clock import BusinessDate, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny
from fep.wire.http import HttpRequest, response_bytes

OK: Final = "B001"
BAD_FIELD, NOT_ALLOWED, TOO_FREQUENT = "SIM1", "SIM2", "SIM3"
DUPLICATE, NO_RECORD = "SIM4", "SIM5"
NO_SESSION, SESSION_ENDED = "1033", "B107"
UNSURE: Final = "SIM9"
"""On no list of the card: the bank does not know itself."""
BAD_REQUEST: Final = 400
ROWS_MAX: Final = 100

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
_CODES: Final = {
    BookedState.DONE: OK,
    BookedState.LANDED: "B059",
    BookedState.REFUSED: "SIM-F",
    BookedState.RETURNED: "SIM-T",
}


class _RefusedError(Exception):
    """The request is answered with an outer rspcod other than B001."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said


@attrs.frozen
class BocB2eHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME

    def open(self, profile: HostProfile) -> HttpHostConnection:
        """Return the host's half of a new connection."""
        return HttpHostConnection(_Client(profile).answer)


@attrs.frozen
class _Found:
    """What a transaction's answer holds."""

    items: tuple[Fields, ...]
    fields: Fields = attrs.Factory(dict)
    code: str = OK


@attrs.frozen
class _Client:
    """The bank, as one operator sees it."""

    profile: HostProfile

    def answer(self, request: HttpRequest) -> list[Answer]:
        """Return what to do about a request."""
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            message = decode(request.body)
        except RemoteProtocolError as error:
            return [Answer(response_bytes(BAD_REQUEST, f"{error}\n".encode(), "text/plain"))]
        try:
            if message.trade == SIGN_ON:
                return self._told(message, OK, "", self._sign_on(message))
            self._check_session(message)
            if message.trade == PAY:
                return self._pay(message, request.body)
            found = self._query(message)
            return self._told(message, found.code, "", found)
        except _RefusedError as refused:
            return self._told(message, refused.code, refused.said)

    def _token(self, message: Message) -> str:
        who = f"{self.profile.bank}\0{message.head.get('custid')}\0{message.head.get('cusopr')}"
        return hashlib.sha256(who.encode()).hexdigest()[:32]

    def _sign_on(self, message: Message) -> _Found:
        if not text(_only(message), "oprpwd"):
            raise _RefusedError(NOT_ALLOWED, "密码错误")
        at = f"{to_shanghai(self.profile.clock.now()):%Y%m%d%H%M%S}"
        return _Found(({"serverdt": at, "token": self._token(message)},))

    def _check_session(self, message: Message) -> None:
        if message.head.get("token") != self._token(message):
            raise _RefusedError(NO_SESSION, "未签到")
        if self.profile.faults.draw(Fault.SIGNED_OFF):
            raise _RefusedError(SESSION_ENDED, "会话已失效")

    def _query(self, message: Message) -> _Found:
        query = _QUERIES.get(message.trade)
        if query is None:
            raise _RefusedError(BAD_FIELD, f"不支持的交易: {message.trade}")
        if self.profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return query(self.profile, _only(message))

    def _pay(self, message: Message, xml: bytes) -> list[Answer]:
        if not self._is_signed(xml):
            raise _RefusedError(NOT_ALLOWED, "签名无效")
        request = _payment_request(_only(message))
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults, now = self.profile.faults, self.profile.clock.now()
        request = attrs.evolve(
            request, landed=faults.draw(Fault.LANDED), returns_at=faults.draw_return(now)
        )
        try:
            payment = self.profile.book.pay(self.profile.bank, request, now)
        except DuplicateReferenceError:
            raise _RefusedError(DUPLICATE, "指令序号重复") from None
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusedError(UNSURE, "与主机通讯超时")
        if faults.draw(Fault.SIGNED_OFF_AFTER_BOOKING):
            raise _RefusedError(SESSION_ENDED, "会话已失效")
        status = {"rspcod": OK, "rspmsg": ""}
        item: Fields = {"status": status, "insid": request.client_ref, "obssid": payment.bank_ref}
        return self._told(message, OK, "", _Found((item,)))

    def _is_signed(self, xml: bytes) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        try:
            signature = base64.b64decode(take_signature(xml), validate=True)
        except (binascii.Error, ValueError):
            return False
        data = signed_part(xml)
        return any(verify(certificates, one, signature, data) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    def _told(
        self, asked: Message, code: str, said: str, found: _Found | None = None
    ) -> list[Answer]:
        told = found or _Found(())
        names = ("termid", "trnid", "custid", "cusopr", "trncod")
        head = {name: asked.head[name] for name in names if name in asked.head}
        status = {"rspcod": code, "rspmsg": said}
        message = Message(head, asked.trade, status, told.items, told.fields)
        late = self.profile.faults.draw(Fault.DELAYED)
        data = response_bytes(200, encode(message, "rs", "replace"), TYPE)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = BocB2eHost()


def _only(message: Message) -> Fields:
    if len(message.items) != 1:
        raise _RefusedError(BAD_FIELD, f"交易有误: {message.trade[:20]}")
    return message.items[0]


def _need(fields: Fields, *names: str) -> str:
    if not (value := text(fields, *names)):
        raise _RefusedError(BAD_FIELD, f"字段有误: {names[-1]}")
    return value


def _number(fields: Fields, *names: str) -> AccountNumber:
    try:
        return parse_account_number(_need(fields, *names))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {names[-1]}") from None


def _payment_request(item: Fields) -> PaymentRequest:
    try:
        amount = Cny.parse(_need(item, "trnamt"))
    except ValueError:
        raise _RefusedError(BAD_FIELD, "字段有误: trnamt") from None
    if not 0 < amount.fen <= FEN_MAX:
        raise _RefusedError(BAD_FIELD, "字段有误: trnamt")
    return PaymentRequest(
        client_ref=_need(item, "insid"),
        payer=_number(item, "fractn", "actacn"),
        payee=_number(item, "toactn", "actacn"),
        payee_name=_need(item, "toactn", "toname"),
        payee_bank_name=text(item, "toactn", "tobknm") or "中国银行",
        amount=amount,
        purpose=_need(item, "furinfo"),
    )


def _balance(profile: HostProfile, item: Fields) -> _Found:
    account = profile.book.account(profile.bank, _number(item, "account", "actacn"))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    money = str(account.balance)
    return _Found(
        (
            {
                "status": {"rspcod": OK, "rspmsg": ""},
                "account": {"actacn": account.number, "curcde": "001", "actname": account.name},
                "balance": {"bokbal": money, "avabal": money, "stpamt": "0.00", "ovramt": "0.00"},
                "baldat": f"{to_shanghai(profile.clock.now()):%Y%m%d%H%M%S}",
            },
        )
    )


def _status(profile: HostProfile, item: Fields) -> _Found:
    reference = _need(item, "insid")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None:
        raise _RefusedError(NO_RECORD, "无此交易")
    return _Found(
        (
            {
                "status": {"rspcod": _CODES[payment.state], "rspmsg": payment.reason},
                "insid": reference,
                "obssid": payment.bank_ref,
                "fractn": {"actacn": payment.payer},
                "toactn": {"actacn": payment.payee},
                "trnamt": str(payment.amount),
            },
        )
    )


def _statement(profile: HostProfile, item: Fields) -> _Found:
    account = profile.book.account(profile.bank, _number(item, "actacn"))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    begin, size = _count(item, "begnum"), _count(item, "recnum")
    first, last = _day(item, "datefrom"), _day(item, "dateto")
    entries = profile.book.entries(profile.bank, account.number, first, last)
    rows = tuple(_line(entry) for entry in entries[begin - 1 : begin - 1 + min(size, ROWS_MAX)])
    if not rows:
        raise _RefusedError(NO_RECORD, "无明细")
    if profile.faults.draw(Fault.ODD_CURRENCY):
        rows = (*rows[:-1], {**rows[-1], "trncur": ODD})
    code = MORE if begin + len(rows) <= len(entries) else OK
    return _Found(rows, {"totnum": str(len(entries))}, code)


def _count(item: Fields, name: str) -> int:
    number = _need(item, name)
    if not (number.isascii() and number.isdecimal() and len(number) <= 6 and int(number) > 0):
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}")
    return int(number)


def _day(item: Fields, name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.datetime.strptime(_need(item, name), "%Y%m%d").date())  # noqa: DTZ007
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


def _line(entry: BookEntry) -> Fields:
    is_payer = entry.debit != entry.back
    return {
        "obssid": entry.payment_ref,
        "trndat": f"{to_shanghai(entry.at):%Y%m%d%H%M%S}",
        "dircod": DEBIT if entry.debit else CREDIT,
        "trnamt": str(entry.amount),
        "trncur": "CNY",
        "toactn": entry.counterparty,
        "toname": entry.counterparty_name,
        # A payer's reference is nothing the payee's bank ever learns.
        "insid": entry.client_ref if is_payer else "",
        "balance": str(entry.balance_after),
        "furinfo": entry.purpose,
        "revers": REVERSED if entry.back else "",
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Fields], _Found]]] = {
    BALANCE: _balance,
    STATUS: _status,
    STATEMENT: _statement,
}
