"""The simulated bank (模拟银行): verifies, and answers signed and hidden, with named faults.

Its memory is the book alone: BB1PAYOP answers NTE (taken, approved), and only BB1PAYQR tells FIN
and S. Its keys are known to everybody: they protect nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bank_adapters.cmb_cdc.config import NAME
from bank_adapters.cmb_cdc.messages import (
    NUMBER_CHARS_MAX,
    NUMBER_CHARS_MIN,
    REQUEST,
    RESPONSE,
    Message,
    Row,
    Secrets,
    decode,
    hide,
    reveal,
    take_form,
    text_to_sign,
)
from bank_adapters.cmb_cdc.replies import REVERSED
from bank_adapters.cmb_cdc.requests import (
    BALANCE,
    MORE,
    OTHER_BANK,
    PAYMENT,
    RENMINBI,
    RETURNED,
    RETURNED_ASKED,
    RETURNED_TOLD,
    SAME_BANK,
    STATEMENT,
    STATUS,
    X1,
    Y1,
    Z1,
    Z2,
)
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
)
from fep.adapters.http import HttpHostConnection
from fep.crypto.sm2 import Sm2Error, Sm2PrivateKey, Sm2PublicKey
from fep.domain.clock import BusinessDate, from_bank, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny
from fep.wire.http import HttpRequest, response_bytes

BANK_KEY: Final = "7f6b1d62a15e3ee24d4ca1cfd2c0d6a8a9e1c1a8f7d5d0f4b8ad2a8d6a1f9c11"
USER_KEY: Final = "2b8e4f3c9d1a60577c0e9b84d5f2a3168e7c6d5b4a39281706f5e4d3c2b1a099"
SM4_KEY: Final = "0123456789abcdef"
"""Of nobody: the numbers of the simulated bank's and its sample user's private key."""

OK: Final = "SUC0000"
DUPLICATE: Final = "NCB4241"
NO_ACCOUNT, NO_MONEY = "CSAB051", "CSAC054"
BAD_FIELD, NOT_ALLOWED, TOO_FREQUENT = "SIM0001", "SIM0002", "SIM0003"
TYPE: Final = "text/plain; charset=UTF-8"
CLOCK_OFF: Final = dt.timedelta(hours=1)
"""How far sigtim may be from the bank's clock."""
ROWS_MAX: Final = 200
RETURNED_ROWS_MAX: Final = 50
SUMMARY: Final = "DAYSUM"
BAD_REQUEST: Final = 400
FAULTS: Final[Mapping[str, str]] = {
    "gateway_error": "a request is answered in plain text, and not passed on",
    "clock_refused": "a request is refused in plain text for the time of its signature",
    "wrong_signature": "the answer is signed by another key",
    "trailing_blanks": "the answer's values are filled up with blanks",
    "suspicious": "a status query is answered with WRF: the bank does not know",
    "cursor_lost": "a statement goes on, and the answer does not say where (Y1)",
    "day_summary": "a statement tells one line for all debits of the account",
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
_STATES: Final = {
    BookedState.DONE: ("FIN", "S"),
    BookedState.LANDED: ("APW", ""),
    BookedState.REFUSED: ("FIN", "F"),
    BookedState.RETURNED: ("FIN", "B"),
}
_OTHER_KEY: Final = Sm2PrivateKey.from_number(bytes(31) + b"\x07")

Tables = dict[str, tuple[Row, ...]]


class _RefusedError(Exception):
    """The request is answered with a resultcode other than SUC0000."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said


@attrs.frozen
class CmbCdcHost:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME
    faults: Mapping[str, str] = FAULTS

    def open(self, profile: HostProfile) -> HttpHostConnection:
        """Return the host's half of a new connection."""
        return HttpHostConnection(_Client(profile, _secrets(profile)).answer)


def _secrets(profile: HostProfile) -> Secrets:
    """Return the bank's secrets; it takes SM2 certificates, or else the sample user's key."""
    users = [key for one in profile.certificates if (key := _key(one)) is not None]
    sample = Sm2PrivateKey.parse(USER_KEY.encode()).public_key
    return Secrets(
        Sm2PrivateKey.parse(BANK_KEY.encode()), tuple(users) or (sample,), SM4_KEY.encode()
    )


def _key(certificate: x509.Certificate) -> Sm2PublicKey | None:
    try:
        return Sm2PublicKey.from_certificate(certificate.public_bytes(Encoding.DER))
    except Sm2Error:
        return None


@attrs.frozen
class _Client:
    """The bank, as one user sees it."""

    profile: HostProfile
    secrets: Secrets

    def answer(self, request: HttpRequest) -> list[Answer]:
        """Return what to do about a request."""
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        if self._draws("gateway_error"):
            return [_plain("CDCServer ErrMsg: back end is not available")]
        try:
            form = take_form(request.body)
            user_id = form["UID"]
            part, message = decode(reveal(form["DATA"].encode(), self.secrets, user_id))
        except (RemoteProtocolError, UnicodeEncodeError) as error:
            # Also what a key that is not the user's gives: the bank can't answer in secret then.
            return [_plain(f"CDCServer ErrMsg: {error}", BAD_REQUEST)]
        if (refused := self._checked(form, part, message)) is not None:
            return [refused]
        try:
            if message.function == PAYMENT:
                return self._pay(message, user_id)
            return self._told(message, user_id, OK, "", self._query(message))
        except _RefusedError as refusal:
            return self._told(message, user_id, refusal.code, refusal.said, {})

    def _draws(self, fault: str) -> bool:
        return self.profile.faults.draw(fault)

    def _checked(self, form: Mapping[str, str], part: str, message: Message) -> Answer | None:
        """Return the answer to a request that is not looked into, None for a good one."""
        if part != REQUEST or message.function != form["FUNCODE"] or form["ALG"] != "SM":
            return _plain("CDCServer ErrMsg: the form and its data do not agree", BAD_REQUEST)
        if message.head.get("userid") != form["UID"]:
            return _plain("CDCServer ErrMsg: another user's data", BAD_REQUEST)
        if not NUMBER_CHARS_MIN <= len(message.number) <= NUMBER_CHARS_MAX:
            return _plain("CDCServer ErrMsg: reqid", BAD_REQUEST)
        try:
            off = abs(from_bank(message.signed_at) - self.profile.clock.now())
        except ValueError:
            off = CLOCK_OFF
        if off >= CLOCK_OFF or self._draws("clock_refused"):
            return _plain("CDCServer ErrMsg: signature time out of range")
        return None

    def _query(self, message: Message) -> Tables:
        query = _QUERIES.get(message.function)
        if query is None:
            raise _RefusedError(BAD_FIELD, f"不支持的接口: {message.function[:40]}")
        if self._draws(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "请求太频繁")
        return query(self.profile, message)

    def _pay(self, message: Message, user_id: str) -> list[Answer]:
        request = _payment_request(message)
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults, now = self.profile.faults, self.profile.clock.now()
        request = attrs.evolve(
            request, landed=faults.draw(Fault.LANDED), returns_at=faults.draw_return(now)
        )
        row = self._book(request, now)
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            return [_plain("CDCServer ErrMsg: no answer of the back end in time")]
        return self._told(message, user_id, OK, "", {"bb1payopz1": (row,)})

    def _book(self, request: PaymentRequest, now: dt.datetime) -> Row:
        book, bank = self.profile.book, self.profile.bank
        try:
            payment = book.pay(bank, request, now)
        except DuplicateReferenceError:
            return _row(DUPLICATE, "业务参考号重复", "FIN", "F")
        if payment.state is BookedState.REFUSED:
            payer = book.account(bank, request.payer)
            poor = payer is not None and payer.balance < request.amount
            return _row(NO_MONEY if poor else NO_ACCOUNT, payment.reason, "FIN", "F")
        landed = payment.state is BookedState.LANDED
        return {**_row(OK, "", "APW" if landed else "NTE", ""), "reqNbr": payment.bank_ref}

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        drawn = (answers for fault, answers in faults.items() if self._draws(fault))
        return next(drawn, None)

    def _told(
        self, message: Message, user_id: str, code: str, said: str, tables: Tables
    ) -> list[Answer]:
        now = self.profile.clock.now()
        head = {
            "bizcode": "",
            "resultcode": code,
            "resultmsg": said,
            "rspid": f"{to_shanghai(now):%Y%m%d%H%M%S}000000000000000001-FEP",
            "userid": user_id,
        }
        if self._draws("trailing_blanks"):
            tables = {
                name: tuple({key: f"{value}  " for key, value in row.items()} for row in rows)
                for name, rows in tables.items()
            }
        answer = Message(message.function, message.number, tables, head)
        secrets = self.secrets
        if self._draws("wrong_signature"):
            secrets = attrs.evolve(secrets, own=_OTHER_KEY)
        hidden = hide(text_to_sign(answer, RESPONSE, now), secrets, user_id)
        late = self._draws(Fault.DELAYED)
        data = response_bytes(200, hidden, TYPE)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]


HOST: Final[BankHost] = CmbCdcHost()


def _plain(said: str, status: int = 200) -> Answer:
    return Answer(response_bytes(status, said.encode(), TYPE))


def _row(code: str, said: str, state: str, flag: str) -> Row:
    row = {"errCod": code, "evtIst": "", "reqNbr": "", "reqSts": state, "rtnFlg": flag}
    return {**row, "errTxt": said} if said else row


def _only(message: Message, table: str) -> Row:
    rows = message.rows(table)
    if len(rows) != 1:
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {table}")
    return rows[0]


def _need(row: Row, name: str) -> str:
    if not (value := row.get(name, "")):
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {name}")
    return value


def _number(row: Row, name: str) -> AccountNumber:
    try:
        return parse_account_number(_need(row, name))
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {name}") from None


def _payment_request(message: Message) -> PaymentRequest:
    _need(_only(message, "bb1paybmx1"), "busCod")
    row = _only(message, "bb1payopx1")
    try:
        amount = Cny.parse(_need(row, "trsAmt"))
    except ValueError:
        raise _RefusedError(BAD_FIELD, "数据格式错误: trsAmt") from None
    flag = row.get("bnkFlg", "")
    faulty = {
        "trsAmt": not 0 < amount.fen <= FEN_MAX,
        "ccyNbr": row.get("ccyNbr") != RENMINBI,
        "bnkFlg": flag not in {"", SAME_BANK, OTHER_BANK},
        "crtBnk": flag == OTHER_BANK and not row.get("crtBnk"),
    }
    if names := [name for name, bad in faulty.items() if bad]:
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {', '.join(names)}")
    return PaymentRequest(
        client_ref=_need(row, "yurRef"),
        payer=_number(row, "dbtAcc"),
        payee=_number(row, "crtAcc"),
        payee_name=_need(row, "crtNam"),
        payee_bank_name=row.get("crtBnk") or "招商银行",
        amount=amount,
        purpose=_need(row, "nusAge"),
    )


def _balances(profile: HostProfile, message: Message) -> Tables:
    rows = message.rows("ntqadinfx")
    if not rows:
        raise _RefusedError(BAD_FIELD, "数据格式错误: ntqadinfx")
    return {"ntqadinfz": tuple(_balance(profile, row) for row in rows)}


def _balance(profile: HostProfile, asked: Row) -> Row:
    number = _number(asked, "accnbr")
    account = profile.book.account(profile.bank, number)
    if account is None:
        return {"accnbr": number, "errcod": NO_ACCOUNT, "errtxt": "户口不存在"}
    money = str(account.balance)
    return {
        "accblv": money,
        "accitm": "10001",
        "accnam": account.name,
        "accnbr": number,
        "avlblv": money,
        "bbknbr": asked.get("bbknbr", ""),
        "ccynbr": RENMINBI,
        "errcod": OK,
        "hldblv": "0.00",
        "intcod": "",
        "lmtovr": "0.00",
        "mutdat": "00000000",
        "onlblv": money,
        "opndat": "20200101",
        "stscod": "A",
    }


def _status(profile: HostProfile, message: Message) -> Tables:
    row = _only(message, "bb1payqrx1")
    payment = profile.book.payment(profile.bank, _need(row, "yurRef"))
    if payment is None:
        return {"bb1payqrz1": ()}
    state, flag = _STATES[payment.state]
    if profile.faults.draw("suspicious"):
        state, flag = "WRF", ""
    at = to_shanghai(payment.at)
    told = {
        "busCod": row.get("busCod", ""),
        "busMod": "00001",
        "ccyNbr": RENMINBI,
        "crtAcc": payment.payee,
        "crtNam": payment.payee_name,
        "dbtAcc": payment.payer,
        "eptDat": f"{at:%Y%m%d}",
        "oprDat": f"{at:%Y%m%d}",
        "reqNbr": payment.bank_ref,
        "reqSts": state,
        "rtnFlg": flag,
        "rtnNar": payment.reason,
        "trsAmt": str(payment.amount),
        "yurRef": payment.client_ref,
    }
    return {"bb1payqrz1": (told,)}


def _statement(profile: HostProfile, message: Message) -> Tables:
    asked = _only(message, X1)
    account = profile.book.account(profile.bank, _number(asked, "cardNbr"))
    if account is None:
        raise _RefusedError(NO_ACCOUNT, "户口不存在")
    first, last = _day(asked, "beginDate"), _day(asked, "endDate")
    entries = profile.book.entries(profile.bank, account.number, first, last)
    lines = [_line(entry) for entry in entries]
    if profile.faults.draw("day_summary"):
        lines = _summed(lines)
    begun = 1
    if message.rows(Y1):
        begun = _count(_only(message, Y1), "expectNextSequence")
    page = lines[begun - 1 : begun - 1 + ROWS_MAX]
    if page and profile.faults.draw(Fault.ODD_CURRENCY):
        page[-1] = {**page[-1], "currencyNbr": ODD}
    after = begun + len(page)
    more = after <= len(lines)
    cursor = {
        "acctNbr": account.number,
        "expectNextSequence": str(after),
        "transDate": f"{last:%Y%m%d}",
    }
    end = {
        "creditNums": str(sum(row["loanCode"] == "C" for row in page)),
        "ctnFlag": MORE if more else "N",
        "debitNums": str(sum(row["loanCode"] == "D" for row in page)),
        "queryAcctNbr": account.number,
    }
    lost = more and profile.faults.draw("cursor_lost")
    return {Y1: () if lost else (cursor,), Z1: (end,), Z2: tuple(page)}


def _returned(profile: HostProfile, message: Message) -> Tables:
    asked = _only(message, RETURNED_ASKED)
    number = _number(asked, "accNbr")
    if profile.book.account(profile.bank, number) is None:
        raise _RefusedError(NO_ACCOUNT, "户口不存在")
    first, last = _day(asked, "bgnDat"), _day(asked, "endDat")
    if not first <= last:
        raise _RefusedError(BAD_FIELD, "数据格式错误: endDat")
    entries = [
        one
        for one in profile.book.entries(profile.bank, number, first, last)
        if one.back and not one.debit
    ]
    begun = _count(asked, "ctnKey") if asked.get("ctnKey") else 1
    page = entries[begun - 1 : begun - 1 + RETURNED_ROWS_MAX]
    after = begun + len(page)
    more = str(after) if after <= len(entries) else ""
    rows = tuple(_returned_row(profile, one) for one in page)
    return {RETURNED_ASKED: ({**asked, "ctnKey": more},), RETURNED_TOLD: rows}


def _returned_row(profile: HostProfile, entry: BookEntry) -> Row:
    payment = profile.book.payment(profile.bank, entry.client_ref)
    at = entry.at if payment is None else payment.at
    return {
        "busNbr": "",
        "crtAcc": entry.counterparty,
        "crtBnk": entry.counterparty_bank_name,
        "crtNam": entry.counterparty_name,
        "eptDat": f"{to_shanghai(at):%Y%m%d}",
        "reqNbr": entry.payment_ref,
        "rtnDat": f"{to_shanghai(entry.at):%Y%m%d}",
        "rtnNar": "收款人账号不存在",
        "trsAmt": str(entry.amount),
        "yurRef": entry.client_ref,
    }


def _summed(lines: list[Row]) -> list[Row]:
    debits = [row for row in lines if row["loanCode"] == "D"]
    if len(debits) < 2:
        return lines
    total = sum(Cny.parse_loose(row["transAmount"]).fen for row in debits)
    summed = {**debits[-1], "transAmount": str(Cny(total)), "textCode": SUMMARY}
    for name in ("ctpAcctNbr", "ctpAcctName", "yurRef", "remarkTextClt"):
        summed[name] = ""
    return [row for row in lines if row["loanCode"] != "D"] + [summed]


def _count(row: Row, name: str) -> int:
    text = _need(row, name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) > 0):
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {name}")
    return int(text)


def _day(row: Row, name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.datetime.strptime(_need(row, name), "%Y%m%d").date())  # noqa: DTZ007
    except ValueError:
        raise _RefusedError(BAD_FIELD, f"数据格式错误: {name}") from None


def _line(entry: BookEntry) -> Row:
    at = to_shanghai(entry.at)
    # Both lines of a payment that is taken back are credits; the payee's is one that is reversed.
    debit = entry.debit and not entry.back
    is_payer = entry.debit != entry.back
    amount = str(-entry.amount if debit else entry.amount)
    return {
        "acctOnlineBal": str(entry.balance_after),
        "currencyNbr": RENMINBI,
        "infoFlag": "1",
        "loanCode": "D" if debit else "C",
        "remarkTextClt": entry.purpose,
        "reversalFlag": REVERSED if entry.debit and entry.back else "N",
        "textCode": "EBPP",
        "transAmount": amount,
        "transDate": f"{at:%Y%m%d}",
        "transSequenceIdn": entry.payment_ref,
        "transTime": f"{at:%H%M%S}",
        "valueDate": f"{at:%Y%m%d}",
        "ctpAcctNbr": entry.counterparty,
        "ctpAcctName": entry.counterparty_name,
        # A payer's reference is nothing the payee's bank ever learns.
        "yurRef": entry.client_ref if is_payer else "",
    }


_QUERIES: Final[Mapping[str, Callable[[HostProfile, Message], Tables]]] = {
    BALANCE: _balances,
    STATUS: _status,
    STATEMENT: _statement,
    RETURNED: _returned,
}
