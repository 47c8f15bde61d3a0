"""The simulated bank (模拟银行): the bank's proxy with the bank behind it, and named faults.

Its memory is the book alone. A known TRNUID is answered with the stored result, and nothing is
executed. It reads requests strictly: nodes in their order, no other nodes, nothing escaped.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import attrs

from bank_adapters.cib_fox.codec import SIGNATURE_HEADER
from bank_adapters.cib_fox.config import BANK_TITLE, NAME, PASSWORD_BYTES_MAX
from bank_adapters.cib_fox.messages import (
    ATTRIBUTE,
    PASSWORD_NODE,
    SIGN_ON,
    TYPE,
    Fields,
    Message,
    Value,
    decode,
    encode,
    part,
    signed_part,
    text,
)
from bank_adapters.cib_fox.replies import NO_RECORD
from bank_adapters.cib_fox.requests import (
    AMOUNT_FEN_MAX,
    BALANCE,
    PAYMENT,
    STATEMENT,
    STATUS,
    SUPER,
    SUPER_FEN_MAX,
)
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    Answer,
    BankHost,
    BookAccount,
    BookedState,
    BookEntry,
    BookPayment,
    DuplicateReferenceError,
    Fault,
    HostProfile,
    PaymentRequest,
    verify,
)
from fep.adapters.http import HttpHostConnection
from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import Cny
from fep.wire.http import HttpRequest, response_bytes

OK: Final = "0"
WRONG_PASSWORD, NO_OPERATOR = "15500", "2000"
NAME_MISMATCH: Final = "2002"
NO_ROWS: Final = "6421"
BAD_FIELD, BAD_SIGNATURE, TOO_FREQUENT = "SIM1", "SIM2", "SIM3"
UNSURE: Final = "SIM9"
"""On no list of the card: the proxy does not know what its bank did."""
PENDING: Final = "PENDING"
ODD_STATE: Final = "50006"
"""Numbers stand in the document's examples of XFERPRCCODE."""
PENDING_SECONDS: Final = 900.0
"""For so long a payment that is booked may be told as PENDING."""
BAD_REQUEST: Final = 400
SIGN_ON_REFUSED, STAYS_PENDING = "sign_on_refused", "pending"
ODD_CODE, NOT_FOUND = "odd_state", "not_found"
FAULTS: Final[Mapping[str, str]] = {
    SIGN_ON_REFUSED: "user or password is refused, and there is no second part",
    STAYS_PENDING: "a payment is booked, and for 15 minutes told as PENDING",
    ODD_CODE: "a payment is booked, and answered with a state that is a number",
    NOT_FOUND: "a status query does not find a payment that is there, soon after it was booked",
}
ROWS_PER_PAGE: Final = 100
TRNUID_CHARS_MAX: Final = 30
REFUNDS: Final = "3"
"""SELTYPE: only what came back."""

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
    BookedState.DONE: ("PAYOUT", "交易成功"),
    BookedState.LANDED: ("WAIT_FOR_AUDIT", "等待银行审批"),
    BookedState.REFUSED: ("FAIL", ""),
    # The bank has no word for it: only a negative line tells.
    BookedState.RETURNED: ("PAYOUT", "交易成功"),
}
_ORDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "SONRQ": ("DTCLIENT", "CID", "USERID", PASSWORD_NODE, "GENUSERKEY", "APPID", "APPVER"),
    BALANCE: ("TRNUID", "RQBODY"),
    "RQBODY": ("ACCTID",),
    PAYMENT: ("TRNUID", "CLTCOOKIE", "XFERRQ"),
    "XFERRQ": ("XFERINFO",),
    "XFERINFO": (
        "ACCTFROM",
        "ACCTTO",
        "CHEQUENUM",
        "CURSYM",
        "TRNAMT",
        "PMTMODE",
        "PURPOSE",
        "DTDUE",
        "MEMO",
    ),
    "ACCTFROM": ("ACCTID", "NAME", "BANKDESC", "CITY"),
    "ACCTTO": (
        "@INTERBANK",
        "@LOCAL",
        "ACCTID",
        "NAME",
        "BANKDESC",
        "BANKNUM",
        "CITY",
        "COLLECT",
    ),
    STATUS: ("TRNUID", "XFERINQRQ"),
    "XFERINQRQ": ("CLIENTREF",),
    STATEMENT: ("TRNUID", "SCUSTSTMTRQ"),
    "SCUSTSTMTRQ": ("VERSION", "ACCTFROM", "INCTRAN", "SELTYPE"),
    "INCTRAN": ("DTSTART", "DTEND", "PAGE", "TRNTYPE"),
}
"""The nodes of each element, in the order of the document."""


class _RefusedError(Exception):
    """The trade is answered with a CODE other than 0."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said


@attrs.frozen
class CibFoxHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME
    faults: Mapping[str, str] = FAULTS

    def open(self, profile: HostProfile) -> HttpHostConnection:
        """Return the host's half of a new connection."""
        return HttpHostConnection(_Client(profile).answer)


@attrs.frozen
class _Client:
    """The bank, as one customer sees it."""

    profile: HostProfile

    def answer(self, request: HttpRequest) -> list[Answer]:
        """Return what to do about a request."""
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            message = _read(request)
        except (RemoteProtocolError, ValueError) as error:
            return [Answer(response_bytes(BAD_REQUEST, f"{error}\n".encode(), "text/plain"))]
        if refusal := self._sign_on(message):
            # There is no second part then.
            return self._send(Message(self._signed(*refusal), is_answer=True))
        if message.trade == SIGN_ON:
            return self._send(Message(self._signed(OK, ""), is_answer=True))
        try:
            if message.trade == PAYMENT:
                return self._pay(message, request)
            return self._told(message, self._query(message))
        except _RefusedError as refused:
            return self._refused(message, refused)
        except ValueError as error:
            return self._refused(message, _RefusedError(BAD_FIELD, f"报文有误: {error}"))

    # -- the parts of an answer -------------------------------------------------------------------

    def _sign_on(self, message: Message) -> tuple[str, str] | None:
        given = message.sign_on
        password = text(given, PASSWORD_NODE)
        if not text(given, "USERID"):
            return NO_OPERATOR, "操作员不存在"
        too_long = len(password.encode("gbk", "replace")) > PASSWORD_BYTES_MAX
        if not password or too_long or self.profile.faults.draw(SIGN_ON_REFUSED):
            return WRONG_PASSWORD, "登录失败，请输入正确的用户名及密码"
        return None

    def _signed(self, code: str, said: str) -> Fields:
        at = to_shanghai(self.profile.clock.now())
        return {"STATUS": _status_of(code, said), "DTSERVER": f"{at:%Y-%m-%d %H:%M:%S}"}

    def _told(self, asked: Message, found: Fields) -> list[Answer]:
        body = {"TRNUID": asked.number, "STATUS": _status_of(OK, ""), **found}
        return self._send(Message(self._signed(OK, ""), asked.trade, body, is_answer=True))

    def _refused(self, asked: Message, refused: _RefusedError) -> list[Answer]:
        status = _status_of(refused.code, refused.said)
        body: Fields = {"TRNUID": asked.body.get("TRNUID", ""), "STATUS": status}
        return self._send(Message(self._signed(OK, ""), asked.trade, body, is_answer=True))

    def _send(self, message: Message) -> list[Answer]:
        late = self.profile.faults.draw(Fault.DELAYED)
        data = response_bytes(200, encode(message, strict=False), TYPE)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]

    # -- trades -----------------------------------------------------------------------------------

    def _query(self, message: Message) -> Fields:
        query = _QUERIES.get(message.trade)
        if query is None:
            raise _RefusedError(BAD_FIELD, f"不支持的交易: {message.trade}")
        if self.profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return query(self.profile, message.body)

    def _pay(self, message: Message, http: HttpRequest) -> list[Answer]:
        if not self._is_signed(http):
            raise _RefusedError(BAD_SIGNATURE, "签名无效")
        info = part(message.body, "XFERRQ", "XFERINFO")
        request = _payment_request(message.number, info)
        self._check_name(request)
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults, now = self.profile.faults, self.profile.clock.now()
        request = attrs.evolve(
            request, landed=faults.draw(Fault.LANDED), returns_at=faults.draw_return(now)
        )
        try:
            payment = self.profile.book.pay(self.profile.bank, request, now)
        except DuplicateReferenceError as known:
            # Its stored result, whatever this request says.
            payment = known.payment
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusedError(UNSURE, "与主机通讯超时")
        told: Fields = {
            "SRVRID": payment.bank_ref,
            "XFERINFO": _info_of(payment),
            "XFERPRCSTS": _state_of(self.profile, payment, odd=faults.draw(ODD_CODE)),
            "CLIENTREF": payment.client_ref,
        }
        return self._told(message, {"XFERRS": told})

    def _check_name(self, request: PaymentRequest) -> None:
        """Refuse a name that is not the account's, before there is any order."""
        payee = self.profile.book.account(self.profile.bank, request.payee)
        if payee is not None and payee.name != request.payee_name:
            raise _RefusedError(NAME_MISMATCH, "账号与核心户名不符")

    def _is_signed(self, http: HttpRequest) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        try:
            told = http.header(SIGNATURE_HEADER.lower())
            signature = base64.b64decode(told, validate=True)
        except (binascii.Error, ValueError):
            return False
        data = signed_part(http.body)
        return any(verify(certificates, one, signature, data) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )


HOST: Final[BankHost] = CibFoxHost()


# -- requests, read strictly ----------------------------------------------------------------------


def _read(http: HttpRequest) -> Message:
    """Return a request's message.

    Raises:
        RemoteProtocolError, ValueError: it is none, or not as the document wants it.
    """
    if http.header("content-type").partition(";")[0].strip() != TYPE:
        msg = f"the content type is not {TYPE}"
        raise ValueError(msg)
    # In GBK no byte of a Chinese character is an ampersand.
    if b"&" in http.body:
        msg = "& can't stand in a value, and nothing is escaped"
        raise ValueError(msg)
    message = decode(http.body)
    if message.is_answer:
        msg = "an answer is no request"
        raise ValueError(msg)
    for fault in _disorder("SONRQ", message.sign_on):
        raise ValueError(fault)
    for fault in _disorder(message.trade, message.body):
        raise ValueError(fault)
    return message


def _disorder(name: str, fields: Fields) -> Iterator[str]:
    """Yield what is not as the document wants it: an unknown node, or one out of its order."""
    order = _ORDERS.get(name)
    if order is None:
        return
    if unknown := [one for one in fields if one not in order]:
        yield f"{name} has no {unknown[0]}"
        return
    places = [order.index(one) for one in fields]
    if any(after < before for before, after in itertools.pairwise(places)):
        yield f"the nodes of {name} are out of order"
    for inner, value in fields.items():
        if isinstance(value, tuple):
            yield f"{inner} stands there {len(value)} times"
        elif isinstance(value, Mapping):
            yield from _disorder(inner, value)


def _need(fields: Fields, *names: str) -> str:
    if not (value := text(fields, *names)):
        raise _RefusedError(BAD_FIELD, f"字段有误: {names[-1].removeprefix(ATTRIBUTE)}")
    return value


def _number(fields: Fields, *names: str) -> AccountNumber:
    try:
        return parse_account_number(_need(fields, *names))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {names[-1]}") from None


def _payment_request(number: str, info: Fields) -> PaymentRequest:
    bank = text(info, "ACCTTO", "BANKDESC")
    interbank = _need(info, "ACCTTO", "@INTERBANK")
    try:
        amount = Cny.parse(_need(info, "TRNAMT"))
    except ValueError:
        amount = Cny(0)
    mode = text(info, "PMTMODE")
    code = text(info, "ACCTTO", "BANKNUM")
    abroad = interbank == "N"
    faulty = {
        "TRNUID": not 0 < len(number) <= TRNUID_CHARS_MAX,
        "TRNAMT": not 0 < amount.fen <= AMOUNT_FEN_MAX,
        "INTERBANK": interbank not in {"Y", "N"},
        "LOCAL": _need(info, "ACCTTO", "@LOCAL") not in {"Y", "N"},
        "BANKDESC": abroad and (not bank or BANK_TITLE in bank),
        "CURSYM": text(info, "CURSYM") not in {"", "RMB"},
        "DTDUE": "DTDUE" in info,
        "PMTMODE": "PMTMODE" in info
        and (mode != SUPER or not code or not abroad or amount.fen > SUPER_FEN_MAX),
    }
    if names := [name for name, bad in faulty.items() if bad]:
        raise _RefusedError(BAD_FIELD, f"字段有误: {', '.join(names)}")
    return PaymentRequest(
        client_ref=number,
        payer=_number(info, "ACCTFROM", "ACCTID"),
        payee=_number(info, "ACCTTO", "ACCTID"),
        payee_name=_need(info, "ACCTTO", "NAME"),
        payee_bank_name=bank or BANK_TITLE,
        amount=amount,
        purpose=_need(info, "PURPOSE"),
    )


def _day(fields: Fields, name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.date.fromisoformat(_need(fields, name)))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


# -- answers --------------------------------------------------------------------------------------


def _status_of(code: str, said: str) -> Fields:
    status = {"CODE": code, "SEVERITY": "INFO" if code == OK else "ERROR"}
    return status | ({"MESSAGE": said} if said else {})


def _info_of(payment: BookPayment) -> Fields:
    """Return XFERINFO as the bank keeps it."""
    return {
        "ACCTFROM": {
            "ACCTID": payment.payer,
            "NAME": payment.payer_name,
            "BANKDESC": BANK_TITLE,
            "CITY": "福州",
        },
        "ACCTTO": {
            "@INTERBANK": "Y" if payment.same_bank else "N",
            "@LOCAL": "N",
            "ACCTID": payment.payee,
            "NAME": payment.payee_name,
            "BANKDESC": payment.payee_bank_name,
            "CITY": "",
        },
        "CHEQUENUM": payment.bank_ref[-7:],
        "CURSYM": "RMB",
        "TRNAMT": str(payment.amount),
        "PURPOSE": payment.purpose,
        "DTDUE": f"{to_shanghai(payment.at):%Y-%m-%d}",
        "MEMO": "",
    }


def _state_of(profile: HostProfile, payment: BookPayment, *, odd: bool = False) -> Fields:
    state, said = _STATES[payment.state]
    age_s = (profile.clock.now() - payment.at).total_seconds()
    if age_s < PENDING_SECONDS and profile.faults.draw(STAYS_PENDING):
        state, said = PENDING, "指令状态未知"
    elif odd:
        state, said = ODD_STATE, "主机处理异常"
    return {
        "XFERPRCCODE": state,
        "DTXFERPRC": f"{to_shanghai(payment.at):%Y-%m-%d %H:%M:%S}",
        "MESSAGE": payment.reason or said,
    }


def _account(profile: HostProfile, fields: Fields, *names: str) -> BookAccount:
    account = profile.book.account(profile.bank, _number(fields, *names))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    return account


def _balance(profile: HostProfile, body: Fields) -> Fields:
    account = _account(profile, body, "RQBODY", "ACCTID")
    money = str(account.balance)
    return {
        "RSBODY": {
            "ACCTID": account.number,
            "NAME": account.name,
            "STATUS": "1",
            "ACCTTYPE": "0",
            "BALAMT": money,
            "AVAILBAL": money,
            "CURRENCY": "01",
            "OPENDAT": "2020-01-01",
        }
    }


def _transfer_status(profile: HostProfile, body: Fields) -> Fields:
    reference = _need(body, "XFERINQRQ", "CLIENTREF")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None or profile.faults.hides(NOT_FOUND, payment.at, profile.clock.now()):
        none = {"@MORE": "N", "FROM": NO_RECORD, "TO": NO_RECORD}
        return {"XFERINQRS": {"XFERLIST": none}}
    row: Fields = {
        "SRVRTID": payment.bank_ref,
        "XFERINFO": _info_of(payment),
        "XFERPRCSTS": _state_of(profile, payment),
    }
    bounds = {"@MORE": "N", "FROM": payment.bank_ref, "TO": payment.bank_ref}
    return {"XFERINQRS": {"XFERLIST": {**bounds, "XFER": row}}}


def _statement(profile: HostProfile, body: Fields) -> Fields:
    asked = part(body, "SCUSTSTMTRQ")
    account = _account(profile, asked, "ACCTFROM", "ACCTID")
    today = business_date(profile.clock.now())
    found: dict[str, Value] = {"CURDEF": "RMB", "ACCTFROM": {"ACCTID": account.number}}
    if span := part(asked, "INCTRAN"):
        found["TRANLIST"] = _lines(profile, account, span, today, text(asked, "SELTYPE"))
    balance = {"BALAMT": str(account.balance), "DTASOF": f"{today}"}
    return {"SCUSTSTMTRS": {**found, "LEDGERBAL": balance, "AVAILBAL": balance}}


def _lines(
    profile: HostProfile, account: BookAccount, span: Fields, today: BusinessDate, kind: str
) -> Fields:
    first, last, page = _day(span, "DTSTART"), _day(span, "DTEND"), _need(span, "PAGE")
    if last < first or (first < last and last >= today):
        raise _RefusedError(BAD_FIELD, "字段有误: DTSTART, DTEND")
    if not (page.isascii() and page.isdecimal() and 0 < len(page) <= 6 and int(page) > 0):
        raise _RefusedError(BAD_FIELD, "字段有误: PAGE")
    entries = profile.book.entries(profile.bank, account.number, first, last)
    all_lines = [
        _line(f"{at:%Y%m%d}{number:018d}", entry)
        for number, entry in enumerate(entries, 1)
        for at in (to_shanghai(entry.at),)
        if kind != REFUNDS or entry.back
    ]
    wanted = text(span, "TRNTYPE")
    if wanted:
        side = {"0": "DEBIT", "1": "CREDIT"}.get(wanted)
        all_lines = [line for line in all_lines if line["TRNTYPE"] == side]
    begin = (int(page) - 1) * ROWS_PER_PAGE
    end = begin + ROWS_PER_PAGE
    if not all_lines[begin:end]:
        raise _RefusedError(NO_ROWS, "没有符合条件的记录")
    return {
        "@MORE": "Y" if end < len(all_lines) else "N",
        "DTSTART": f"{first}",
        "DTEND": f"{last}",
        "STMTTRN": tuple(all_lines[begin:end]),
    }


def _line(unique: str, entry: BookEntry) -> Fields:
    at = to_shanghai(entry.at)
    # A line that is taken back stands on its own side again, with a minus.
    debit = entry.debit != entry.back
    return {
        "SRVRTID": entry.payment_ref,
        "TRNTYPE": "DEBIT" if debit else "CREDIT",
        "TRNCODE": "231",
        "DTACCT": f"{at:%Y-%m-%dT%H:%M:%S}",
        "TRNAMT": f"-{entry.amount}" if entry.back else str(entry.amount),
        "BALAMT": str(entry.balance_after),
        "CURRENCY": "RMB",
        "MEMO": f"{'冲账' if entry.back else '汇款'}|{entry.purpose}",
        "CORRELATE_ACCTID": entry.counterparty,
        "CORRELATE_NAME": entry.counterparty_name,
        "CHEQUENUM": "",
        "BILLTYPE": "",
        "BILLNUMBER": "",
        "CORRELATE_BANKNAME": entry.counterparty_bank_name,
        "CORRELATE_BANKCODE": "",
        "ATTACHINFO": unique,
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Fields], Fields]]] = {
    BALANCE: _balance,
    STATUS: _transfer_status,
    STATEMENT: _statement,
}
