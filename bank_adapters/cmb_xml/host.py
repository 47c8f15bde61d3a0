"""The simulated bank (模拟银行): answers the functions as the front end would, with named faults.

Its memory is the book alone: DCPAYMNT answers NTE (taken, approved), and only NTQRYSTY tells FIN
and S. A landed payment stays APW, as nobody at this bank ever looks at it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from bank_adapters.cmb_xml.config import CARD, NAME
from bank_adapters.cmb_xml.frames import FrameReader, pack, xml_of
from bank_adapters.cmb_xml.messages import (
    DATA_XML,
    SIGNATURE,
    Block,
    Message,
    decode,
    encode,
    take_signature,
)
from bank_adapters.cmb_xml.replies import REVERSAL, STATUS_ROW
from bank_adapters.cmb_xml.requests import (
    BALANCE,
    OTHER_BANK,
    PAYMENT,
    PAYMENTS,
    PAYMENTS_DAYS_MAX,
    PROBE,
    RENMINBI,
    SAME_BANK,
    STATEMENT,
    STATUS,
    STATUS_REACH_DAYS,
)
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    ODD,
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
from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import ZERO, Cny

OK: Final = "0"
ROW_OK: Final = "SUC0000"
HOST_UNREACHED: Final = "-1"
EXECUTION_FAILED: Final = "-2"
BAD_FORMAT: Final = "-3"
TOO_FREQUENT: Final = "-5"
OTHER_FAULT: Final = "-9"
DUPLICATE: Final = "NCB4241"
NO_ACCOUNT: Final = "CSAB051"
NO_MONEY: Final = "CSAC054"
BAD_SIGNATURE: Final = "SIG0001"
"""Not the bank's: FEPSIGNATURE is ours, so is its code."""

ANSWERED_ROWS_MAX: Final = 30
STATUS_SPAN_DAYS_MAX: Final = 7
REFERENCE_CHARS_MAX: Final = 30
ROW_NUMBER: Final = "0000000001"
HOME_BANK: Final = "招商银行"

FAULTS: Final[Mapping[str, str]] = {
    "suspicious": "NTQRYSTY answers WRF: the bank does not know",
    "trailing_blanks": "the answer's values are filled up with blanks",
    "sorted_fields": "the fields of the answer's rows are in the order of their names",
}

_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_]*")
_OWN_INFO: Final = frozenset({"FUNNAM", "DATTYP", "RETCOD", "ERRMSG", "LGNNAM", SIGNATURE})
_BEFORE_BOOKING: Final[Mapping[Fault, tuple[Answer, ...]]] = {
    Fault.SILENT_BEFORE_BOOKING: (),
    Fault.CLOSE_BEFORE_BOOKING: (Answer(close=True),),
    Fault.EXIT_BEFORE_BOOKING: (Answer(exit=True),),
}
_AFTER_BOOKING: Final[Mapping[Fault, tuple[Answer, ...]]] = {
    Fault.SILENT_AFTER_BOOKING: (),
    Fault.CLOSE_AFTER_BOOKING: (Answer(close=True),),
    Fault.EXIT_AFTER_BOOKING: (Answer(exit=True),),
}
_STATES: Final = {
    BookedState.DONE: ("FIN", "S"),
    BookedState.LANDED: ("APW", ""),
    BookedState.REFUSED: ("FIN", "F"),
    BookedState.RETURNED: ("FIN", "B"),
}


class _RefusedError(Exception):
    """The request as a whole is answered with a RETCOD other than 0."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@attrs.frozen
class CmbXmlHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME
    faults: Mapping[str, str] = FAULTS

    def open(self, profile: HostProfile) -> CmbXmlHostConnection:
        """Return the host's half of a new connection."""
        return CmbXmlHostConnection(profile)


class CmbXmlHostConnection:
    """One connection; after a close or an exit it ignores all that comes."""

    def __init__(self, profile: HostProfile) -> None:
        self._profile = profile
        self._frames = FrameReader(CARD.limits.frame_bytes_max)
        self._ended = False

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return what to do about these bytes, in order; bytes that are no frame end it."""
        answers: list[Answer] = []
        for frame in [] if self._ended else self._read(data):
            answers += self._answer(xml_of(frame))
            if answers and (answers[-1].close or answers[-1].exit):
                self._ended = True
                return answers
        if self._frames.fault and not self._ended:
            self._ended = True
            answers.append(Answer(close=True))
        return answers

    def _read(self, data: bytes) -> list[bytes]:
        try:
            return self._frames.receive_data(data)
        except RemoteProtocolError:
            return []

    def _answer(self, xml: bytes) -> tuple[Answer, ...]:
        """Return the answer to one request, nothing for silence."""
        self._profile.book.take_back(self._profile.bank, self._profile.clock.now())
        try:
            message = decode(xml)
        except RemoteProtocolError as error:
            return self._late(_message({}, BAD_FORMAT, f"数据格式错误: {error}"))
        try:
            if message.function == PAYMENT:
                return self._payment(message, xml)
            return self._late(_message(message.info, OK, "", self._query(message)))
        except _RefusedError as refused:
            return self._late(_message(message.info, refused.code, refused.text))

    def _odd(self, block: Block) -> Block:
        """Return a row with what this bank's are known to have now and then."""
        fields, faults = dict(block.fields), self._profile.faults
        if "REQSTS" in fields and block.name == STATUS_ROW and faults.draw("suspicious"):
            fields |= {"REQSTS": "WRF", "RTNFLG": ""}
        if faults.draw("trailing_blanks"):
            fields = {name: f"{value}  " for name, value in fields.items()}
        if faults.draw("sorted_fields"):
            fields = dict(sorted(fields.items()))
        if block.name == "NTQTSINFZ" and faults.draw(Fault.ODD_CURRENCY):
            fields["CCYNBR"] = ODD
        return Block(block.name, fields)

    def _late(self, message: Message) -> tuple[Answer, ...]:
        message = attrs.evolve(message, blocks=tuple(map(self._odd, message.blocks)))
        delayed = self._profile.faults.draw(Fault.DELAYED)
        # The bank's own texts go beyond GBK now and then; a simulated bank must never raise.
        data = pack(encode(message, "gb18030", "replace"))
        return (Answer(data, delay_s=DELAY_SECONDS if delayed else 0.0),)

    def _query(self, message: Message) -> tuple[Block, ...]:
        answer = _QUERIES.get(message.function)
        if answer is None:
            raise _RefusedError(OTHER_FAULT, f"不支持的函数: {message.function}")
        if self._profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return answer(self._profile, message)

    def _payment(self, message: Message, xml: bytes) -> tuple[Answer, ...]:
        asked = [_payment_request(message, row) for row in message.rows("DCOPDPAYX")]
        if not asked:
            raise _RefusedError(BAD_FORMAT, "数据格式错误: DCOPDPAYX")
        if not self._signed(xml):
            refused = [_row(one.client_ref, BAD_SIGNATURE, "签名无效", "FIN", "F") for one in asked]
            return self._late(_paid(message, refused))
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults = self._profile.faults
        rows = []
        for request in asked:
            landed = faults.draw(Fault.LANDED)
            returns_at = faults.draw_return(self._profile.clock.now())
            rows.append(self._book(attrs.evolve(request, landed=landed, returns_at=returns_at)))
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if self._profile.faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusedError(HOST_UNREACHED, "操作超时")
        # Many rows are taken, and nothing is told of them.
        return self._late(_paid(message, rows if len(rows) <= ANSWERED_ROWS_MAX else []))

    def _interrupted(self, faults: Mapping[Fault, tuple[Answer, ...]]) -> tuple[Answer, ...] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (answers for fault, answers in faults.items() if self._profile.faults.draw(fault)), None
        )

    def _signed(self, xml: bytes) -> bool:
        certificates = self._profile.certificates
        if not certificates:
            return True
        data, text = take_signature(xml)
        try:
            signature = base64.b64decode(text, validate=True)
        except binascii.Error:
            return False
        # The key's kind decides the algorithm: a certificate verifies with one of them only.
        return any(verify(certificates, one, signature, data) for one in SignAlgorithm)

    def _book(self, request: PaymentRequest) -> dict[str, str]:
        book, bank = self._profile.book, self._profile.bank
        try:
            payment = book.pay(bank, request, self._profile.clock.now())
        except DuplicateReferenceError:
            return _row(request.client_ref, DUPLICATE, "业务参考号重复", "FIN", "F")
        if payment.state is BookedState.REFUSED:
            payer = book.account(bank, request.payer)
            poor = payer is not None and payer.balance < request.amount
            code = NO_MONEY if poor else NO_ACCOUNT
            row = _row(request.client_ref, code, f"{code} {payment.reason}", "FIN", "F")
        else:
            landed = payment.state is BookedState.LANDED
            row = _row(request.client_ref, ROW_OK, "", "APW" if landed else "NTE")
        return row | {"REQNBR": payment.bank_ref}


HOST: Final[BankHost] = CmbXmlHost()


def _message(
    info: Mapping[str, str], code: str, text: str, blocks: tuple[Block, ...] = ()
) -> Message:
    head = {
        "FUNNAM": info.get("FUNNAM", ""),
        "DATTYP": DATA_XML,
        "RETCOD": code,
        "ERRMSG": text,
        "LGNNAM": info.get("LGNNAM", ""),
    }
    # Unknown fields of INFO are echoed, which is how an answer finds its request.
    echoed = {k: v for k, v in info.items() if k not in _OWN_INFO and _NAME.fullmatch(k)}
    return Message(head | echoed, blocks)


def _row(reference: str, code: str, text: str, state: str, flag: str = "") -> dict[str, str]:
    return {
        "ERRCOD": code,
        "ERRTXT": text,
        "REQSTS": state,
        "RTNFLG": flag,
        "SQRNBR": ROW_NUMBER,
        "YURREF": reference,
    }


def _paid(message: Message, rows: Sequence[Mapping[str, str]]) -> Message:
    return _message(message.info, OK, "", tuple(Block("NTQPAYRQZ", row) for row in rows))


def _one(message: Message, name: str) -> Mapping[str, str]:
    rows = message.rows(name)
    if len(rows) != 1:
        raise _RefusedError(BAD_FORMAT, f"数据格式错误: {name}")
    return rows[0]


def _need(row: Mapping[str, str], name: str) -> str:
    value = row.get(name, "")
    if not value:
        raise _RefusedError(BAD_FORMAT, f"数据格式错误: {name}")
    return value


def _number(row: Mapping[str, str], name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(row, name))
    except ValueError:
        raise _RefusedError(BAD_FORMAT, f"数据格式错误: {name}") from None


def _span(row: Mapping[str, str]) -> tuple[BusinessDate, BusinessDate]:
    try:
        first, last = (
            BusinessDate(dt.datetime.strptime(_need(row, name), "%Y%m%d").date())  # noqa: DTZ007
            for name in ("BGNDAT", "ENDDAT")
        )
    except ValueError:
        raise _RefusedError(BAD_FORMAT, "数据格式错误: BGNDAT, ENDDAT") from None
    if last < first:
        raise _RefusedError(BAD_FORMAT, "起始日期大于结束日期")
    return first, last


def _payment_request(message: Message, row: Mapping[str, str]) -> PaymentRequest:
    _need(_one(message, "SDKPAYRQX"), "BUSCOD")
    reference = _need(row, "YURREF")
    try:
        amount = Cny.parse_loose(_need(row, "TRSAMT"))
    except ValueError:
        amount = ZERO
    flag = row.get("BNKFLG", "")
    faulty = {
        "YURREF": len(reference) > REFERENCE_CHARS_MAX,
        "TRSAMT": amount <= ZERO,
        "CCYNBR": row.get("CCYNBR") != RENMINBI,
        "BNKFLG": flag not in {SAME_BANK, OTHER_BANK},
        "CRTNAM": not (row.get("CRTNAM") or row.get("LRVEAN")),
        "NUSAGE": not row.get("NUSAGE"),
        "CRTBNK, CRTADR": flag == OTHER_BANK and not (row.get("CRTBNK") and row.get("CRTADR")),
    }
    if names := [name for name, bad in faulty.items() if bad]:
        raise _RefusedError(BAD_FORMAT, f"数据格式错误: {', '.join(names)}")
    return PaymentRequest(
        client_ref=reference,
        payer=_number(row, "DBTACC"),
        payee=_number(row, "CRTACC"),
        payee_name=row.get("CRTNAM") or row.get("LRVEAN", ""),
        payee_bank_name=row["CRTBNK"] if flag == OTHER_BANK else HOME_BANK,
        amount=amount,
        purpose=row["NUSAGE"],
    )


def _modes(profile: HostProfile, message: Message) -> tuple[Block, ...]:  # noqa: ARG001 - one form for all queries
    _need(_one(message, "SDKMDLSTX"), "BUSCOD")
    return (Block("NTQMDLSTZ", {"BUSMOD": "00001", "MODALS": "直接支付"}),)


def _account(profile: HostProfile, row: Mapping[str, str]) -> BookAccount:
    account = profile.book.account(profile.bank, _number(row, "ACCNBR"))
    if account is None:
        raise _RefusedError(EXECUTION_FAILED, f"{NO_ACCOUNT} 户口不存在")
    return account


def _balances(profile: HostProfile, message: Message) -> tuple[Block, ...]:
    rows = message.rows("SDKACINFX")
    if not rows:
        raise _RefusedError(BAD_FORMAT, "数据格式错误: SDKACINFX")
    # As at the bank, one account that is not there fails them all.
    return tuple(_balance(_account(profile, row), row.get("BBKNBR", "")) for row in rows)


def _balance(account: BookAccount, branch: str) -> Block:
    money = str(account.balance)
    fields = {
        "ACCBLV": money,
        "ACCITM": "20122",
        "ACCNAM": account.name,
        "ACCNBR": account.number,
        "AVLBLV": money,
        "BBKNBR": branch,
        "CCYNBR": RENMINBI,
        "C_CCYNBR": "人民币",
        "HLDBLV": str(ZERO),
        "INTCOD": "",
        "LMTOVR": str(ZERO),
        "ONLBLV": money,
        "OPNDAT": "20200101",
        "STSCOD": "A",
    }
    return Block("NTQACINFZ", fields)


def _status(profile: HostProfile, message: Message) -> tuple[Block, ...]:
    row = _one(message, "NTQRYSTYX1")
    first, last = _span(row)
    reach = business_date(profile.clock.now()) - dt.timedelta(days=STATUS_REACH_DAYS)
    if (last - first).days >= STATUS_SPAN_DAYS_MAX or first < reach:
        raise _RefusedError(BAD_FORMAT, "日期跨度不能超过7天, 不能早于90天前")
    payment = profile.book.payment(profile.bank, _need(row, "YURREF"))
    if payment is None or not first <= business_date(payment.at) <= last:
        return ()
    return (_status_row(payment, row.get("BUSCOD", "")),)


def _status_row(payment: BookPayment, business_code: str) -> Block:
    state, flag = _STATES[payment.state]
    at = to_shanghai(payment.at)
    fields = {
        "BUSCOD": business_code,
        "BUSMOD": "00001",
        "CCYNBR": RENMINBI,
        "CRTACC": payment.payee,
        "CRTNAM": payment.payee_name,
        "DBTACC": payment.payer,
        "EPTDAT": f"{at:%Y%m%d}",
        "EPTTIM": "000000",
        "OPRDAT": f"{at:%Y%m%d}",
        "REQNBR": payment.bank_ref,
        "REQSTS": state,
        "RTNFLG": flag,
        "RTNNAR": payment.reason,
        "TRSAMT": str(payment.amount),
        "YURREF": payment.client_ref,
    }
    return Block(STATUS_ROW, fields)


def _payments(profile: HostProfile, message: Message) -> tuple[Block, ...]:
    row = _one(message, "NTQRYSTNY1")
    first, last = _span(row)
    code = _need(row, "BUSCOD")
    _need(row, "BUSMOD")
    if (last - first).days >= PAYMENTS_DAYS_MAX:
        raise _RefusedError(BAD_FORMAT, f"日期跨度不能超过{PAYMENTS_DAYS_MAX}天")
    found = profile.book.submitted(profile.bank, first, last)
    return tuple(_status_row(one, code) for one in found)


def _statement(profile: HostProfile, message: Message) -> tuple[Block, ...]:
    row = _one(message, "SDKTSINFX")
    first, last = _span(row)
    days_max = CARD.statement.span_days_max
    if (last - first).days >= days_max:
        raise _RefusedError(BAD_FORMAT, f"日期跨度不能超过{days_max}天")
    account = _account(profile, row)
    entries = profile.book.entries(profile.bank, account.number, first, last)
    return tuple(_line(entry) for entry in entries)


def _line(entry: BookEntry) -> Block:
    at, money = to_shanghai(entry.at), str(entry.amount)
    # Both lines of a payment that is taken back are credits; the payee's is one that is reversed.
    debit = entry.debit and not entry.back
    is_payer = entry.debit != entry.back
    fields = {
        "ETYDAT": f"{at:%Y%m%d}",
        "ETYTIM": f"{at:%H%M%S}",
        "VLTDAT": f"{at:%Y%m%d}",
        "TRSCOD": "GATR",
        "NARYUR": entry.purpose,
        "TRSAMTD": money if debit else "",
        "TRSAMTC": "" if debit else money,
        "AMTCDR": "D" if debit else "C",
        "TRSBLV": str(entry.balance_after),
        "REFNBR": entry.payment_ref,
        "REQNBR": entry.payment_ref if is_payer else "",
        "BUSNAM": "企业银行直接支付",
        "NUSAGE": entry.purpose,
        # A payer's reference is nothing the payee's bank ever learns.
        "YURREF": entry.client_ref if is_payer else "",
        "RPYNAM": entry.counterparty_name,
        "RPYACC": entry.counterparty,
        "RPYBNK": entry.counterparty_bank_name,
        "INFFLG": "1",
        "ATHFLG": "N",
        "RSVFLG": REVERSAL if entry.debit and entry.back else "",
        "TRSANL": "APGATR",
    }
    return Block("NTQTSINFZ", fields)


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], tuple[Block, ...]]]] = {
    PROBE: _modes,
    BALANCE: _balances,
    STATUS: _status,
    STATEMENT: _statement,
    PAYMENTS: _payments,
}
