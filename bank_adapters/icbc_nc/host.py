"""The simulated bank (模拟银行): a NetSafe Client with its sign port and send port on one port.

Its memory is the book alone. PAYENT answers at file level; only QPAYENT tells the Result. The book
keeps one reference for each payment: the fSeqno.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from email.utils import format_datetime
from typing import Final

import attrs

from bank_adapters.icbc_nc.config import NAME
from bank_adapters.icbc_nc.messages import (
    FORM,
    SIGN_ANSWER_TYPE,
    SIGN_TYPE,
    Message,
    decode,
    encode,
    signed,
    take_form,
    take_signed,
)
from bank_adapters.icbc_nc.replies import REVERSED
from bank_adapters.icbc_nc.requests import BALANCE, HISTORY, PAYMENT, STATUS, TODAY
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
from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import Cny
from fep.wire.http import HttpRequest, response_bytes

OK: Final = "0"
NO_RECORD: Final = "B0116"
BAD_SIGNATURE: Final = "SIM0001"
BAD_FIELD: Final = "SIM0003"
DUPLICATE: Final = "SIM0004"
TOO_FREQUENT: Final = "SIM0005"
ROWS_PER_PAGE: Final = 20
SIGN_SECRET: Final = b"simulated NetSafe Client"

CLOCK_OFF: Final = dt.timedelta(minutes=4)
FAULTS: Final[Mapping[str, str]] = {
    "sign_port_down": "the sign port closes the connection",
    "sign_refused": "the sign port answers with a result other than 0",
    "endless_tag": "NextTag is never empty",
    "empty_row": "no record (B0116) is told with one empty row",
    "rows_reordered": "rows come in another order than they were asked for",
    "suspicious": "QPAYENT answers Result 98 to a payment that is done",
    "clock_off": "the bank's clock is four minutes ahead of ours",
    "in_yuan": "amounts are written in yuan and not in fen",
}

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
_RESULTS: Final = {
    BookedState.DONE: "7",
    BookedState.LANDED: "4",
    BookedState.REFUSED: "6",
    BookedState.RETURNED: "SIM-T",
}


class _RefusedError(Exception):
    """The request is answered with a RetCode other than 0."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@attrs.frozen
class IcbcNcHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME
    faults: Mapping[str, str] = FAULTS

    def open(self, profile: HostProfile) -> HttpHostConnection:
        """Return the host's half of a new connection."""
        return HttpHostConnection(_Client(profile).answer)


def sign_value(xml: bytes) -> bytes:
    """Return what the simulated sign port gives for this XML, base64 without line breaks."""
    return signed(xml, hashlib.sha256(SIGN_SECRET + xml).digest()).encode("ascii")


@attrs.frozen
class _Client:
    """The simulated NetSafe Client, and the bank behind it."""

    profile: HostProfile

    def answer(self, request: HttpRequest) -> list[Answer]:
        if request.header("content-type") == SIGN_TYPE:
            return self._signed(request)
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            xml, signature = take_signed(take_form(request.body).get("reqData", ""))
            message = decode(xml)
        except (ValueError, RemoteProtocolError) as error:
            return self._error(f"报文格式错误: {error}")
        try:
            if message.trade == PAYMENT:
                return self._payment(message, xml, signature)
            return self._told(message, OK, "", self._query(message))
        except _RefusedError as refused:
            empty = refused.code == NO_RECORD and self.profile.faults.draw("empty_row")
            found = Message({}, {}, ({},)) if empty else None
            return self._told(message, refused.code, refused.text, found)

    def _signed(self, request: HttpRequest) -> list[Answer]:
        """Return what the sign port does."""
        faults = self.profile.faults
        if faults.draw("sign_port_down"):
            return [Answer(close=True)]
        value = base64.encodebytes(base64.b64decode(sign_value(request.body)))
        refused = faults.draw("sign_refused")
        result, sign = (b"1", b"") if refused else (b"0", b"<sign>" + value + b"</sign>")
        body = b"<html><result>" + result + b"</result>" + sign + b"</html>"
        return [Answer(response_bytes(200, body, SIGN_ANSWER_TYPE))]

    def _query(self, message: Message) -> Message:
        query = _QUERIES.get(message.trade)
        if query is None:
            raise _RefusedError(BAD_FIELD, f"不支持的交易: {message.trade}")
        if self.profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return self._odd(query(self.profile, message))

    def _odd(self, found: Message) -> Message:
        """Return an answer with what this bank's are known to have now and then."""
        faults = self.profile.faults
        rows = list(found.rows)
        if faults.draw("rows_reordered"):
            faults.rng.shuffle(rows)
        if faults.draw("in_yuan"):
            rows = [
                {
                    name: _in_yuan(value) if name in _AMOUNTS else value
                    for name, value in row.items()
                }
                for row in rows
            ]
        fields = dict(found.fields)
        if "NextTag" in fields and faults.draw("endless_tag"):
            fields["NextTag"] = fields["NextTag"] or "999999999"
        if rows and "Drcrf" in rows[-1] and faults.draw(Fault.ODD_CURRENCY):
            fields["CurrType"] = ODD
        return attrs.evolve(found, fields=fields, rows=tuple(rows))

    def _payment(self, message: Message, xml: bytes, signature: bytes | None) -> list[Answer]:
        if not self._is_signed(xml, signature):
            raise _RefusedError(BAD_SIGNATURE, "签名无效")
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
            raise _RefusedError(DUPLICATE, "指令包序列号重复") from None
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            return self._error("与银行通讯超时")
        return self._told(message, OK, "", Message({}, {"SerialNo": payment.bank_ref}))

    def _is_signed(self, xml: bytes, signature: bytes | None) -> bool:
        if signature is None:
            return False
        certificates = self.profile.certificates
        if not certificates:
            return signature == hashlib.sha256(SIGN_SECRET + xml).digest()
        return any(verify(certificates, one, signature, xml) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    def _told(
        self, asked: Message, code: str, text: str, found: Message | None = None
    ) -> list[Answer]:
        out = found or Message({})
        pub = {**asked.pub, "RetCode": code, "RetMsg": text}
        known = {name: value for name, value in pub.items() if name in _PUB}
        xml = encode(Message(known, out.fields, out.rows), "out", "replace")
        return self._send(b"reqData=" + base64.encodebytes(xml))

    def _error(self, text: str) -> list[Answer]:
        return self._send(b"errorCode=" + base64.encodebytes(text.encode("gb18030", "replace")))

    def _send(self, body: bytes) -> list[Answer]:
        now = self.profile.clock.now().astimezone(dt.UTC)
        now += CLOCK_OFF if self.profile.faults.draw("clock_off") else dt.timedelta()
        date = format_datetime(now, usegmt=True)
        late = self.profile.faults.draw(Fault.DELAYED)
        data = response_bytes(200, body, FORM, [("Date", date)])
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = IcbcNcHost()

_PUB: Final = frozenset(
    ("TransCode", "CIS", "BankCode", "ID", "TranDate", "TranTime", "fSeqno", "RetCode", "RetMsg")
)


_AMOUNTS: Final = frozenset(("PayAmt", "Amount", "Balance", "AccBalance", "UsableBalance"))


def _in_yuan(fen: str) -> str:
    return str(Cny(int(fen)))


def _need(row: Mapping[str, str], name: str) -> str:
    if not (value := row.get(name, "")):
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}")
    return value


def _number(row: Mapping[str, str], name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(row, name))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


def _payment_request(message: Message) -> PaymentRequest:
    if len(message.rows) != 1:
        raise _RefusedError(BAD_FIELD, "字段有误: rd")
    [row] = message.rows
    amount = _need(row, "PayAmt")
    if not (amount.isascii() and amount.isdecimal() and len(amount) <= 15 and int(amount) > 0):
        raise _RefusedError(BAD_FIELD, "字段有误: PayAmt")
    return PaymentRequest(
        client_ref=_need(message.pub, "fSeqno"),
        payer=_number(row, "PayAccNo"),
        payee=_number(row, "RecAccNo"),
        payee_name=_need(row, "RecAccNameCN"),
        payee_bank_name=row.get("RecBankName") or "中国工商银行",
        amount=Cny(int(amount)),
        purpose=_need(row, "UseCN"),
    )


def _balance(profile: HostProfile, message: Message) -> Message:
    rows = []
    for asked in message.rows:
        account = profile.book.account(profile.bank, _number(asked, "AccNo"))
        if account is None:
            raise _RefusedError(BAD_FIELD, "账号不存在")
        money = str(account.balance.fen)
        rows.append(
            {
                "iSeqno": asked.get("iSeqno", ""),
                "AccNo": account.number,
                "CurrType": "001",
                "AccBalance": money,
                "Balance": money,
                "UsableBalance": money,
                "iRetCode": "0",
                "iRetMsg": "",
            }
        )
    # In file order at the bank, not in the order asked.
    return Message({}, {"TotalNum": str(len(rows))}, tuple(reversed(rows)))


def _status(profile: HostProfile, message: Message) -> Message:
    reference = _need(message.fields, "QryfSeqno")
    payment = profile.book.payment(profile.bank, reference)
    if payment is None:
        raise _RefusedError(NO_RECORD, "无记录")
    result = _RESULTS[payment.state]
    if result == "7" and profile.faults.draw("suspicious"):
        result = "98"
    row = {
        "iSeqno": "1",
        "QryiSeqno": "1",
        "QryOrderNo": payment.bank_ref,
        "PayAccNo": payment.payer,
        "RecAccNo": payment.payee,
        "CurrType": "001",
        "PayAmt": str(payment.amount.fen),
        "iRetCode": "0",
        "Result": result,
        "instrRetMsg": payment.reason,
    }
    return Message({}, {"QryfSeqno": reference, "QrySerialNo": payment.bank_ref}, (row,))


def _statement(profile: HostProfile, message: Message) -> Message:
    fields = message.fields
    account = profile.book.account(profile.bank, _number(fields, "AccNo"))
    if account is None:
        raise _RefusedError(BAD_FIELD, "账号不存在")
    first = last = business_date(profile.clock.now())
    if message.trade == HISTORY:
        first, last = _day(fields, "BeginDate"), _day(fields, "EndDate")
    tag = fields.get("NextTag") or "0"
    if not (tag.isascii() and tag.isdecimal() and len(tag) <= 9):
        raise _RefusedError(BAD_FIELD, "字段有误: NextTag")
    entries = profile.book.entries(profile.bank, account.number, first, last)
    begin, end = int(tag), int(tag) + ROWS_PER_PAGE
    rows = [_line(at, entry) for at, entry in enumerate(entries)][begin:end]
    if not rows:
        raise _RefusedError(NO_RECORD, "无记录")
    after = str(end) if end < len(entries) else ""
    return Message({}, {"AccNo": account.number, "NextTag": after}, tuple(rows))


def _day(fields: Mapping[str, str], name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.datetime.strptime(_need(fields, name), "%Y%m%d").date())  # noqa: DTZ007
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"字段有误: {name}") from None


def _line(at: int, entry: BookEntry) -> dict[str, str]:
    is_payer = entry.debit != entry.back
    return {
        "Drcrf": "1" if entry.debit else "2",
        "Amount": str(entry.amount.fen),
        "Balance": str(entry.balance_after.fen),
        "RecipAccNo": entry.counterparty,
        "RecipName": entry.counterparty_name,
        "UseCN": entry.purpose,
        # A payer's reference is nothing the payee's bank ever learns.
        "Ref": entry.client_ref if is_payer else "",
        "UpDtranf": REVERSED if entry.back else "",
        "TimeStamp": f"{to_shanghai(entry.at):%Y-%m-%d-%H.%M.%S.%f}",
        "SequenceNo": str(at + 1),
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], Message]]] = {
    BALANCE: _balance,
    STATUS: _status,
    TODAY: _statement,
    HISTORY: _statement,
}
