"""The simulated bank (模拟银行): answers over many lines, as the platform does.

Its memory is the book alone, which keeps one reference for each payment: the REQUEST_SN.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from bank_adapters.ccb_wlpt.config import CARD, NAME
from bank_adapters.ccb_wlpt.messages import (
    FrameReader,
    Message,
    decode,
    encode,
    signed_part,
    take_signature,
)
from bank_adapters.ccb_wlpt.replies import CREDIT, DEBIT, REVERSED
from bank_adapters.ccb_wlpt.requests import (
    BALANCE,
    PAYMENTS,
    RENMINBI,
    SERIAL_DIGITS,
    STATEMENT,
    STATUS,
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
from fep.domain.clock import BusinessDate, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny

OK: Final = "000000"
NOT_ALLOWED: Final = "SIM001"
BAD_FIELD: Final = "SIM003"
DUPLICATE: Final = "SIM004"
TOO_FREQUENT: Final = "SIM005"
NO_RECORD: Final = "SIM006"
REQUEST_BYTES_MAX: Final = 1024 * 1024
ROWS_PER_PAGE: Final = CARD.statement.rows_per_page

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
_UNSURE: Final = "9"
_DEAL_TYPES: Final = {
    BookedState.DONE: "4",
    BookedState.LANDED: _UNSURE,
    BookedState.REFUSED: "5",
    BookedState.RETURNED: "SIM-T",
}


class _RefusedError(Exception):
    """The request is answered with a RETURN_CODE other than 000000."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@attrs.frozen
class CcbWlptHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME

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
            frames = self._frames.receive_data(data)
        except RemoteProtocolError:
            return [Answer(close=True)]
        return [answer for frame in frames for answer in self._answer(frame)]

    def _answer(self, frame: bytes) -> list[Answer]:
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            return self._told(Message({}), BAD_FIELD, f"报文格式错误: {error}")
        try:
            _check_password(message)
            if message.trade in PAYMENTS:
                return self._payment(message, frame)
            return self._told(message, OK, "", self._query(message))
        except _RefusedError as refused:
            return self._told(message, refused.code, refused.text)

    def _query(self, message: Message) -> Message:
        query = _QUERIES.get(message.trade)
        if query is None:
            raise _RefusedError(BAD_FIELD, f"不支持的交易: {message.trade}")
        if self.profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return query(self.profile, message)

    def _payment(self, message: Message, frame: bytes) -> list[Answer]:
        if not self._is_signed(frame):
            raise _RefusedError(NOT_ALLOWED, "签名无效")
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
            raise _RefusedError(DUPLICATE, "请求序列号重复") from None
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        deal_type = _DEAL_TYPES[payment.state]
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            deal_type = _UNSURE
        fields = {"DEAL_TYPE": deal_type, "MESSAGE": payment.reason, "TRAN_FLOW": payment.bank_ref}
        return self._told(message, OK, "", Message({}, fields))

    def _is_signed(self, frame: bytes) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        try:
            signature = base64.b64decode(take_signature(frame), validate=True)
        except binascii.Error:
            return False
        signed = signed_part(frame)
        return any(verify(certificates, one, signature, signed) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    def _told(
        self, asked: Message, code: str, text: str, found: Message | None = None
    ) -> list[Answer]:
        told = found or Message({})
        names = ("REQUEST_SN", "CUST_ID", "TX_CODE")
        head = {name: asked.head[name] for name in names if name in asked.head}
        head |= {"RETURN_CODE": code, "RETURN_MSG": text, "LANGUAGE": "CN"}
        data = encode(Message(head, told.fields, told.rows), "replace").replace(b"><", b">\r\n<")
        late = self.profile.faults.draw(Fault.DELAYED)
        return [Answer(data + b"\r\n", delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = CcbWlptHost()


def _check_password(message: Message) -> None:
    """Refuse who has none; which one is right is not asked."""
    if not message.head.get("PASSWORD"):
        raise _RefusedError(NOT_ALLOWED, "密码错误")


def _need(fields: Mapping[str, str], name: str) -> str:
    if not (value := fields.get(name, "")):
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}")
    return value


def _number(fields: Mapping[str, str], name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(fields, name))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


def _payment_request(message: Message) -> PaymentRequest:
    fields, number = message.fields, message.number
    if not (number.isascii() and number.isdecimal() and len(number) <= SERIAL_DIGITS):
        raise _RefusedError(BAD_FIELD, "字段有误: REQUEST_SN")
    try:
        amount = Cny.parse(_need(fields, "PAY_AMOUNT"))
    except ValueError:
        raise _RefusedError(BAD_FIELD, "字段有误: PAY_AMOUNT") from None
    if not 0 < amount.fen <= FEN_MAX:
        raise _RefusedError(BAD_FIELD, "字段有误: PAY_AMOUNT")
    return PaymentRequest(
        client_ref=number,
        payer=_number(fields, "PAY_ACCNO"),
        payee=_number(fields, "RECV_ACCNO"),
        payee_name=_need(fields, "RECV_ACC_NAME"),
        payee_bank_name=fields.get("RECV_OPENACC_DEPT") or "中国建设银行",
        amount=amount,
        purpose=_need(fields, "USEOF"),
    )


def _balance(profile: HostProfile, message: Message) -> Message:
    account = profile.book.account(profile.bank, _number(message.fields, "ACC_NO"))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    fields = {
        "ACC_NO": account.number,
        "CUR_CODE": RENMINBI,
        "BALANCE": str(account.balance),
        "BALANCE1": str(account.balance),
        "QRY_TIME": f"{to_shanghai(profile.clock.now()):%Y%m%d%H%M%S}",
    }
    return Message({}, fields)


def _status(profile: HostProfile, message: Message) -> Message:
    reference = _need(message.fields, "REQUEST_SN1")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None:
        raise _RefusedError(NO_RECORD, "无此交易")
    fields = {
        "REQUEST_SN1": reference,
        "DEAL_TYPE": _DEAL_TYPES[payment.state],
        "MESSAGE": payment.reason,
        "TRAN_FLOW": payment.bank_ref,
        "PAY_ACCNO": payment.payer,
        "RECV_ACCNO": payment.payee,
        "PAY_AMOUNT": str(payment.amount),
    }
    return Message({}, fields)


def _statement(profile: HostProfile, message: Message) -> Message:
    fields = message.fields
    account = profile.book.account(profile.bank, _number(fields, "ACC_NO"))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    page = fields.get("START_PAGE") or "1"
    if not (page.isascii() and page.isdecimal() and 0 < len(page) <= 6 and int(page) > 0):
        raise _RefusedError(BAD_FIELD, "字段有误: START_PAGE")
    first, last = _day(fields, "START_DATE"), _day(fields, "END_DATE")
    entries = profile.book.entries(profile.bank, account.number, first, last)
    begin = (int(page) - 1) * ROWS_PER_PAGE
    rows = tuple(_line(entry) for entry in entries[begin : begin + ROWS_PER_PAGE])
    if not rows:
        raise _RefusedError(NO_RECORD, "无明细")
    pages = -(-len(entries) // ROWS_PER_PAGE)
    told = {"ACC_NO": account.number, "CUR_PAGE": page, "PAGE_COUNT": str(pages)}
    if profile.faults.draw(Fault.ODD_CURRENCY):
        rows = (*rows[:-1], {**rows[-1], "CUR_CODE": ODD})
    return Message({}, told, rows)


def _day(fields: Mapping[str, str], name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.datetime.strptime(_need(fields, name), "%Y%m%d").date())  # noqa: DTZ007
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


def _line(entry: BookEntry) -> dict[str, str]:
    is_payer = entry.debit != entry.back
    return {
        "TRANDATE": f"{to_shanghai(entry.at):%Y/%m/%d}",
        "TRANTIME": f"{to_shanghai(entry.at):%H:%M:%S}",
        # A payer's reference is nothing the payee's bank ever learns.
        "CRE_NO": entry.client_ref if is_payer else "",
        "MESSAGE": entry.purpose,
        "AMT": str(entry.amount),
        "AMT1": str(entry.balance_after),
        "FLAG1": DEBIT if entry.debit else CREDIT,
        "ACCNO2": entry.counterparty,
        "ACC_NAME1": entry.counterparty_name,
        "TRAN_FLOW": entry.payment_ref,
        "BACK_FLAG": REVERSED if entry.back else "",
        "CUR_CODE": RENMINBI,
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], Message]]] = {
    BALANCE: _balance,
    STATUS: _status,
    STATEMENT: _statement,
}
