"""The simulated bank (模拟银行): its memory is the book alone."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from bank_adapters.abc_ict.codec import BALANCE, LANDED, NO_SIGN, PAYMENTS, STATE_PLACES, STATUS
from bank_adapters.abc_ict.messages import FrameReader, Message, block, decode, encode, pack, text
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    Answer,
    BankHost,
    BookedState,
    DuplicateReferenceError,
    Fault,
    HostProfile,
    PaymentRequest,
    verify,
)
from fep.domain.clock import to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny

OK, REFUSED, NOT_SIGNED, TOO_OFTEN = "0000", "SIM1", "SIM2", "SIM3"
DUPLICATE, NO_RECORD = "SIM4", "SIM5"
UNSURE: Final = "9999"
REQUEST_BYTES_MAX: Final = 64 * 1024
_SIGN: Final = re.compile(rb"<Sign>([A-Za-z0-9+/=]*)</Sign>")

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
    BookedState.DONE: "0000",
    BookedState.LANDED: "0388",
    BookedState.REFUSED: "0389",
    # The bank tells by a statement line alone.
    BookedState.RETURNED: "0000",
}


class _RefusedError(Exception):
    """The request is answered with another code than 0000."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said


@attrs.frozen
class AbcIctHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = "abc_ict"

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
            frames = [(xml, decode(xml)) for xml in self._frames.receive_data(data)]
        except RemoteProtocolError:
            return [Answer(close=True)]
        return [answer for xml, message in frames for answer in self._answer(xml, message)]

    def _answer(self, xml: bytes, message: Message) -> list[Answer]:
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        trade = text(message, "CCTransCode")
        try:
            if trade in PAYMENTS:
                return self._pay(xml, message)
            query = _QUERIES.get(trade)
            if query is None:
                return self._told(message, REFUSED, f"不支持的交易: {trade}")
            if self.profile.faults.draw(Fault.THROTTLED):
                return self._told(message, TOO_OFTEN, "请求太频繁")
            return self._told(message, OK, "", query(self.profile, message))
        except _RefusedError as refused:
            return self._told(message, refused.code, refused.said)

    def _pay(self, xml: bytes, message: Message) -> list[Answer]:
        if not self._is_signed(xml):
            raise _RefusedError(NOT_SIGNED, "签名无效")
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
            raise _RefusedError(DUPLICATE, "请求流水号重复") from None
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            return self._told(message, UNSURE, "主机通讯超时")
        told: Message = {"WaitFlag": "0", "Cme": {"RespSeqNo": payment.bank_ref}}
        match payment.state:
            case BookedState.REFUSED:
                return self._told(message, REFUSED, payment.reason)
            case BookedState.LANDED:
                return self._told(message, LANDED, "待人工处理", {**told, "WaitFlag": "1"})
            case _:
                return self._told(message, OK, "", told)

    def _is_signed(self, xml: bytes) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        found = _SIGN.search(xml)
        try:
            signature = base64.b64decode(found[1] if found else b"", validate=True)
        except (binascii.Error, ValueError):
            return False
        data = _SIGN.sub(NO_SIGN, xml, count=1)
        return any(verify(certificates, one, signature, data) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    def _told(
        self, asked: Message, code: str, said: str, found: Message | None = None
    ) -> list[Answer]:
        at = to_shanghai(self.profile.clock.now())
        head = {name: text(asked, name) for name in ("CCTransCode", "ReqSeqNo")}
        head |= {"RespCode": code, "RespInfo": said}
        head |= {"RespDate": f"{at:%Y%m%d}", "RespTime": f"{at:%H%M%S}"}
        data = pack(encode({**head, **(found or {})}, "replace"))
        late = self.profile.faults.draw(Fault.DELAYED)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = AbcIctHost()


def _need(message: Message, name: str) -> str:
    if not (value := text(message, name)):
        raise _RefusedError(REFUSED, f"字段有误: {name}")
    return value


def _number(message: Message, name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(message, name))
    except ValueError:
        raise _RefusedError(REFUSED, f"字段有误: {name}") from None


def _payment_request(message: Message) -> PaymentRequest:
    cmp, corp = block(message, "Cmp"), block(message, "Corp")
    try:
        amount = Cny.parse(_need(message, "Amt"))
    except ValueError:
        raise _RefusedError(REFUSED, "字段有误: Amt") from None
    if not 0 < amount.fen <= FEN_MAX:
        raise _RefusedError(REFUSED, "字段有误: Amt")
    return PaymentRequest(
        client_ref=_need(message, "ReqSeqNo"),
        payer=_number(cmp, "DbAccNo"),
        payee=_number(cmp, "CrAccNo"),
        payee_name=_need(corp, "CrAccName"),
        payee_bank_name=text(corp, "CrBankName") or "中国农业银行",
        amount=amount,
        purpose=_need(corp, "WhyUse"),
    )


def _balance(profile: HostProfile, message: Message) -> Message:
    account = profile.book.account(profile.bank, _number(block(message, "Cmp"), "DbAccNo"))
    if account is None:
        raise _RefusedError(REFUSED, "账号不存在")
    money = str(account.balance)
    told = [account.number[:2], account.number, "01", account.name, money, money, "", "0000", ""]
    return {"Cmp": {"RespPrvData": "|".join(told)}}


def _status(profile: HostProfile, message: Message) -> Message:
    reference = _need(block(message, "Cme"), "OldReqSeqNo")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None:
        raise _RefusedError(NO_RECORD, "无此交易")
    told = " " * STATE_PLACES[0].start + _STATES[payment.state] * 2
    cme = {"OldReqSeqNo": reference, "RespSeqNo": payment.bank_ref}
    return {"Cmp": {"RespPrvData": told}, "Cme": cme}


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], Message]]] = {
    BALANCE: _balance,
    STATUS: _status,
}
