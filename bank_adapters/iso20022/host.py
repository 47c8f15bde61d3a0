"""The simulated bank (模拟银行): ISO 20022 documents over HTTP, on the book of all banks.

A payment that is posted is answered with its first status; what became of it is got by its
reference: its status, and its booked lines. The paths are the options' own defaults.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
from lxml import etree

from bank_adapters.iso20022.codec import SIGNATURE
from bank_adapters.iso20022.config import CARD, NAME
from bank_adapters.iso20022.facts import money
from bank_adapters.iso20022.messages import HEAD, PREFIX, TYPE, Node, element, read, text, yuan
from bank_adapters.iso20022.replies import REQUEST_ID
from fep.adapters import xml
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
from fep.adapters.http import HttpHostConnection
from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.errors import BodyError, RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import FEN_MAX, Cny
from fep.wire.http import HttpRequest, response_bytes

OK, BAD_REQUEST, NOT_ALLOWED, NOT_FOUND = 200, 400, 403, 404
TOO_FREQUENT, BAD_GATEWAY = 429, 502
ROWS_MAX: Final = 20
"""Lines of a statement's page."""
BIC: Final = "SIMBCNBJ"
PAIN_002, CAMT_052, CAMT_053, CAMT_054 = (
    "pain.002.001.10",
    "camt.052.001.08",
    "camt.053.001.08",
    "camt.054.001.08",
)
BOOKED_CODE: Final = ("PMNT", "ICDT", "DMCT")
RETURNED_CODE: Final = ("PMNT", "ICDT", "RRTN")
RECEIVED_CODE: Final = ("PMNT", "RCDT", "DMCT")
_REASON_CHARS: Final = 105

_STATES: Final = {
    BookedState.DONE: "ACSC",
    BookedState.LANDED: "PDNG",
    BookedState.REFUSED: "RJCT",
    BookedState.RETURNED: "ACSC",
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
_STATUS: Final = re.compile(r"/payments/([^/]{1,64})/status")
_BALANCE: Final = re.compile(r"/accounts/([^/]{1,64})/balance")
_STATEMENT: Final = re.compile(r"/accounts/([^/]{1,64})/statement")


READ_TWICE, GROUP_ONLY, TWO_WORDS = "read_twice", "group_only", "two_words"
OLD_VERSION, PART, NO_CODE = "old_version", "part", "no_code"
FAULTS: Final[Mapping[str, str]] = {
    READ_TWICE: "its front end reads each message twice and tells what became of the second",
    GROUP_ONLY: "a status stands at the group alone",
    TWO_WORDS: "the group is rejected, and the payment within it is not",
    OLD_VERSION: "pain.002.001.03, with a prefix and the elements in another order",
    PART: "PART, and not of what",
    NO_CODE: "a status report without any status",
}


class _RefusedError(Exception):
    """The request is answered with an HTTP status other than 200."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@attrs.frozen
class Iso20022Host:
    """What the entry point names: opens one connection's half at a time."""

    name: str = NAME

    @property
    def faults(self) -> Mapping[str, str]:
        """What banks that speak ISO 20022 do, each in their own way."""
        return FAULTS

    def open(self, profile: HostProfile) -> HttpHostConnection:
        """Return the host's half of a new connection."""
        return HttpHostConnection(_Client(profile).answer)


HOST: Final[BankHost] = Iso20022Host()


@attrs.frozen
class _Client:
    """The bank, as one enterprise sees it."""

    profile: HostProfile

    def answer(self, request: HttpRequest) -> list[Answer]:
        """Return what to do about a request."""
        self.profile.book.take_back(self.profile.bank, self.profile.clock.now())
        try:
            if request.method == "POST":
                return self._pay(request)
            return self._told(request, OK, self._query(request).encode("utf-8", "replace"))
        except _RefusedError as refused:
            return self._told(request, refused.status, f"{refused}\n".encode())

    def _told(self, request: HttpRequest, status: int, body: bytes) -> list[Answer]:
        echoed = request.header(REQUEST_ID)
        headers = [(REQUEST_ID, echoed)] if re.fullmatch(r"[!-~]{1,100}", echoed) else []
        late = self.profile.faults.draw(Fault.DELAYED)
        kind = TYPE if body.startswith(b"<") else "text/plain"
        data = response_bytes(status, body, kind, headers)
        return [Answer(data, delay_s=DELAY_SECONDS if late else 0.0)]

    # -- payments -----------------------------------------------------------------------------

    def _pay(self, request: HttpRequest) -> list[Answer]:
        if not self._is_signed(request):
            raise _RefusedError(NOT_ALLOWED, "the signature is missing or wrong")
        wanted = _payment(request.body)
        if (broken := self._interrupted(_BEFORE_BOOKING)) is not None:
            return broken
        faults, now = self.profile.faults, self.profile.clock.now()
        wanted = attrs.evolve(
            wanted, landed=faults.draw(Fault.LANDED), returns_at=faults.draw_return(now)
        )
        try:
            payment = self.profile.book.pay(self.profile.bank, wanted, now)
        except DuplicateReferenceError as known:
            return self._told(request, OK, _known(known.payment, now).encode())
        if (broken := self._interrupted(_AFTER_BOOKING)) is not None:
            return broken
        if faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusedError(BAD_GATEWAY, "no answer from the core system")
        code = "ACSP" if payment.state is BookedState.DONE else _STATES[payment.state]
        body = self._report(payment, code)
        return self._told(request, OK, body.encode("utf-8", "replace"))

    def _report(self, payment: BookPayment, code: str) -> str:
        """Return the status report, as this bank makes it today."""
        now, faults = self.profile.clock.now(), self.profile.faults
        if faults.draw(READ_TWICE):
            return _known(payment, now)
        report = status_report(payment, now, code, _reason(payment), payment.reason)
        if faults.draw(NO_CODE):
            return report.replace(f"<TxSts>{code}</TxSts>", "")
        word = code if faults.draw(GROUP_ONLY) else "PART" if faults.draw(PART) else ""
        if word:
            head, _, rest = report.partition("<OrgnlPmtInfAndSts>")
            report = head + rest.partition("</OrgnlPmtInfAndSts>")[2]
        elif faults.draw(TWO_WORDS):
            word = "RJCT"
        if word:
            told = f"<GrpSts>{word}</GrpSts></OrgnlGrpInfAndSts>"
            report = report.replace("</OrgnlGrpInfAndSts>", told)
        return _in_old_version(report) if faults.draw(OLD_VERSION) else report

    def _is_signed(self, request: HttpRequest) -> bool:
        certificates = self.profile.certificates
        if not certificates:
            return True
        try:
            signature = base64.b64decode(request.header(SIGNATURE.lower()), validate=True)
        except (binascii.Error, ValueError):
            return False
        return any(verify(certificates, one, signature, request.body) for one in SignAlgorithm)

    def _interrupted(self, faults: Mapping[Fault, list[Answer]]) -> list[Answer] | None:
        """Return what happens instead of going on, None for going on."""
        return next(
            (done for fault, done in faults.items() if self.profile.faults.draw(fault)), None
        )

    # -- queries ------------------------------------------------------------------------------

    def _query(self, request: HttpRequest) -> str:
        if self.profile.faults.draw(Fault.THROTTLED):
            raise _RefusedError(TOO_FREQUENT, "too many requests")
        try:
            parts = urlsplit(request.target)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        except ValueError:
            raise _RefusedError(BAD_REQUEST, "no such address") from None
        if found := _STATUS.fullmatch(parts.path):
            return self._status(unquote(found[1]))
        if found := _BALANCE.fullmatch(parts.path):
            return self._balance(self._account(found[1]))
        if found := _STATEMENT.fullmatch(parts.path):
            return self._statement(self._account(found[1]), asked)
        raise _RefusedError(NOT_FOUND, "no such resource")

    def _account(self, quoted: str) -> BookAccount:
        try:
            number = parse_account_number(unquote(quoted))
        except ValueError:
            raise _RefusedError(BAD_REQUEST, "no account number") from None
        account = self.profile.book.account(self.profile.bank, number)
        if account is None:
            raise _RefusedError(NOT_FOUND, "no such account")
        return account

    def _status(self, reference: str) -> str:
        payment = self.profile.book.payment(self.profile.bank, reference)
        if payment is None:
            raise _RefusedError(NOT_FOUND, "no such payment")
        now = self.profile.clock.now()
        code = _STATES[payment.state]
        report = self._report(payment, code)
        if payment.state is not BookedState.RETURNED:
            return report
        # Its status was the last word of the payment; only its lines tell that it came back.
        day, today = business_date(payment.at), business_date(now)
        entries = [
            one
            for one in self.profile.book.entries(self.profile.bank, payment.payer, day, today)
            if one.client_ref == reference and one.debit != one.back
        ]
        account = self.profile.book.account(self.profile.bank, payment.payer)
        if not entries or account is None:
            return report
        return f"{report}\n{notification(account, entries, now)}"

    def _balance(self, account: BookAccount) -> str:
        now = self.profile.clock.now()
        day = business_date(now)
        inside = "".join(
            (
                _acct(account),
                _bal("ITBD", account.balance, day),
                _bal("ITAV", account.balance, day),
            )
        )
        return _report(CAMT_052, "BkToCstmrAcctRpt", "Rpt", now, inside)

    def _statement(self, account: BookAccount, asked: Mapping[str, str]) -> str:
        first, last = _asked_day(asked, "from"), _asked_day(asked, "to")
        number = asked.get("page", "1")
        if not (number.isascii() and number.isdecimal() and 0 < len(number) <= 5 and int(number)):
            raise _RefusedError(BAD_REQUEST, "no page number")
        at = int(number)
        entries = self.profile.book.entries(self.profile.bank, account.number, first, last)
        rows = entries[(at - 1) * ROWS_MAX : at * ROWS_MAX]
        now = self.profile.clock.now()
        is_last = at * ROWS_MAX >= len(entries)
        made = statement(account, rows, first, last, now, page=at, is_last=is_last)
        if rows and self.profile.faults.draw(Fault.ODD_CURRENCY):
            begin, entry, line = made.rpartition("<Ntry>")
            return begin + entry + line.replace('Ccy="CNY"', f'Ccy="{ODD}"')
        return made


# -- reading --------------------------------------------------------------------------------------


def _payment(body: bytes) -> PaymentRequest:
    try:
        message = read(body)
    except RemoteProtocolError as error:
        raise _RefusedError(BAD_REQUEST, str(error)) from None
    batches = message.body.findall("PmtInf")
    rows = [row for batch in batches for row in batch.findall("CdtTrfTxInf")]
    if message.kind != "pain.001" or len(batches) != 1 or len(rows) != 1:
        raise _RefusedError(BAD_REQUEST, "one payment a message is taken")
    batch, row = batches[0], rows[0]
    header = message.body.find("GrpHdr")
    reference = _need(row, "PmtId/EndToEndId")
    ids = {_need(header, "MsgId"), _need(batch, "PmtInfId"), reference}
    amount = _amount(row)
    sums = {text(header, "CtrlSum"), text(batch, "CtrlSum")} - {""}
    counts = {text(header, "NbOfTxs"), text(batch, "NbOfTxs")} - {""}
    if len(ids) != 1 or sums - {str(amount)} or counts - {"1"}:
        raise _RefusedError(BAD_REQUEST, "ids, sums or counts do not agree")
    return PaymentRequest(
        client_ref=reference,
        payer=_number(batch, "DbtrAcct"),
        payee=_number(row, "CdtrAcct"),
        payee_name=_need(row, "Cdtr/Nm"),
        payee_bank_name=text(row, "CdtrAgt/FinInstnId/Nm") or "本行",
        amount=amount,
        purpose=text(row, "RmtInf/Ustrd"),
    )


def _amount(row: etree._Element) -> Cny:
    found = row.find("Amt/InstdAmt")
    try:
        if found is None or found.get("Ccy") != "CNY":
            raise ValueError  # noqa: TRY301 - one refusal for all that can be wrong
        amount = money((found.text or "").strip())
    except ValueError:
        raise _RefusedError(BAD_REQUEST, "no amount in yuan") from None
    if not 0 < amount.fen <= FEN_MAX:
        raise _RefusedError(BAD_REQUEST, "no amount that can be paid")
    return amount


def _need(element: etree._Element | None, path: str) -> str:
    if not (value := text(element, path)):
        raise _RefusedError(BAD_REQUEST, f"{path} is missing")
    return value


def _number(element: etree._Element, name: str) -> AccountNumber:
    try:
        return parse_account_number(text(element, f"{name}/Id/Othr/Id", f"{name}/Id/IBAN"))
    except ValueError:
        raise _RefusedError(BAD_REQUEST, f"{name} is no account") from None


def _asked_day(asked: Mapping[str, str], name: str) -> BusinessDate:
    try:
        return BusinessDate(dt.date.fromisoformat(asked.get(name, "")))
    except ValueError:
        raise _RefusedError(BAD_REQUEST, f"{name} is no day") from None


# -- printing -------------------------------------------------------------------------------------


def _reason(payment: BookPayment) -> str:
    """Return the reason code of a payment that was refused."""
    if payment.state is not BookedState.REFUSED:
        return ""
    money_is_short = payment.reason == "not enough money"
    return "AM04" if money_is_short else "AC01" if "payer" in payment.reason else "BE01"


def _known(payment: BookPayment, now: dt.datetime) -> str:
    return status_report(payment, now, "RJCT", "DUPL", "MsgId is known")


def _in_old_version(report: str) -> str:
    """Return a report as an older program writes it, and not as the standard wants it."""
    root = xml.parse_declared(report.encode())
    space = f"{PREFIX}pain.002.001.03"
    turned = etree.Element(f"{{{space}}}Document", nsmap={"old": space})
    for one in root.iter("*"):
        one.tag = f"{{{space}}}{one.tag.rpartition('}')[2]}"
        one[:] = list(reversed(one))
    turned.extend(root)
    return etree.tostring(turned, encoding="unicode")


def status_report(
    payment: BookPayment, now: dt.datetime, code: str, reason: str = "", said: str = ""
) -> str:
    """Return the pain.002 of a payment."""
    reasons: list[Node] = []
    if reason:
        inside: list[Node] = [("Rsn", [("Cd", reason)])]
        if said:
            inside.append(("AddtlInf", said[:_REASON_CHARS]))
        reasons.append(("StsRsnInf", inside))
    row: list[Node] = [
        ("OrgnlInstrId", payment.client_ref),
        ("OrgnlEndToEndId", payment.client_ref),
        ("TxSts", code),
        *reasons,
        ("AcctSvcrRef", payment.bank_ref),
    ]
    original = "".join(
        (
            f"<Amt>{yuan('InstdAmt', payment.amount)}</Amt>",
            element("DbtrAcct", _id(payment.payer)),
            element("CdtrAcct", _id(payment.payee)),
        )
    )
    batch = "".join(
        (
            element("OrgnlPmtInfId", payment.client_ref),
            "<TxInfAndSts>",
            *(element(*node) for node in row),
            f"<OrgnlTxRef>{original}</OrgnlTxRef></TxInfAndSts>",
        )
    )
    body = "".join(
        (
            _header(now, f"S{payment.bank_ref}"),
            element(
                "OrgnlGrpInfAndSts",
                [("OrgnlMsgId", payment.client_ref), ("OrgnlMsgNmId", CARD.identity.version)],
            ),
            f"<OrgnlPmtInfAndSts>{batch}</OrgnlPmtInfAndSts>",
        )
    )
    return _document(PAIN_002, "CstmrPmtStsRpt", body)


def notification(account: BookAccount, entries: list[BookEntry], now: dt.datetime) -> str:
    """Return the camt.054 of some lines."""
    inside = _acct(account) + "".join(_entry(one) for one in entries)
    return _report(CAMT_054, "BkToCstmrDbtCdtNtfctn", "Ntfctn", now, inside)


def statement(
    account: BookAccount,
    rows: list[BookEntry],
    first: BusinessDate,
    last: BusinessDate,
    now: dt.datetime,
    *,
    page: int = 1,
    is_last: bool = True,
) -> str:
    """Return a page of the camt.053 of some days."""
    closing = rows[-1].balance_after if rows else account.balance
    opening = closing
    for one in rows:
        opening = opening + one.amount if one.debit else opening - one.amount
    inside = "".join(
        (
            element(
                "FrToDt",
                [("FrDtTm", f"{first}T00:00:00+08:00"), ("ToDtTm", f"{last}T23:59:59+08:00")],
            ),
            _acct(account),
            _bal("OPBD", opening, first),
            _bal("CLBD", closing, last),
            *(_entry(one) for one in rows),
        )
    )
    pages: list[Node] = [("PgNb", str(page)), ("LastPgInd", "true" if is_last else "false")]
    paging = element("StmtPgntn", pages)
    return _report(CAMT_053, "BkToCstmrStmt", "Stmt", now, inside, paging)


def _document(version: str, name: str, body: str) -> str:
    return f'{HEAD}<Document xmlns="{PREFIX}{version}"><{name}>{body}</{name}></Document>'


def _time(moment: dt.datetime) -> str:
    return to_shanghai(moment).isoformat(timespec="milliseconds")


def _header(now: dt.datetime, ident: str) -> str:
    agent: Node = ("DbtrAgt", [("FinInstnId", [("BICFI", BIC)])])
    return element("GrpHdr", [("MsgId", ident), ("CreDtTm", _time(now)), agent])


def _report(
    version: str, name: str, part: str, now: dt.datetime, inside: str, paging: str = ""
) -> str:
    ident = f"R{to_shanghai(now):%Y%m%d%H%M%S%f}"
    header = element("GrpHdr", [("MsgId", ident), ("CreDtTm", _time(now))])
    made = element("CreDtTm", _time(now))
    body = f"{header}<{part}>{element('Id', ident)}{paging}{made}{inside}</{part}>"
    return _document(version, name, body)


def _id(number: str) -> list[Node]:
    return [("Id", [("Othr", [("Id", number)])])]


def _acct(account: BookAccount) -> str:
    try:
        owner: list[Node] = [("Ownr", [("Nm", account.name)])]
        return element("Acct", [*_id(account.number), ("Ccy", "CNY"), *owner])
    except BodyError:
        return element("Acct", [*_id(account.number), ("Ccy", "CNY")])


def _amt(amount: Cny) -> str:
    return yuan("Amt", amount)


def _bal(code: str, amount: Cny, day: BusinessDate) -> str:
    side = "DBIT" if amount.fen < 0 else "CRDT"
    kind = element("Tp", [("CdOrPrtry", [("Cd", code)])])
    dated = element("Dt", [("Dt", day.isoformat())])
    value = _amt(-amount if amount.fen < 0 else amount)
    return f"<Bal>{kind}{value}{element('CdtDbtInd', side)}{dated}</Bal>"


def _code(codes: tuple[str, str, str]) -> str:
    domain, family, sub = codes
    return element(
        "BkTxCd", [("Domn", [("Cd", domain), ("Fmly", [("Cd", family), ("SubFmlyCd", sub)])])]
    )


def _entry(entry: BookEntry) -> str:
    # A payer's reference is nothing the payee's bank ever learns.
    is_payer = entry.debit != entry.back
    side = element("CdtDbtInd", "DBIT" if entry.debit else "CRDT")
    codes = RECEIVED_CODE if not is_payer else RETURNED_CODE if entry.back else BOOKED_CODE
    party = "Cdtr" if is_payer else "Dbtr"
    reference = entry.client_ref if is_payer else "NOTPROVIDED"
    parties = "".join(
        (
            element(party, [("Pty", [("Nm", entry.counterparty_name)])]),
            element(f"{party}Acct", _id(entry.counterparty)),
        )
    )
    returned = (
        element("RtrInf", [("Rsn", [("Cd", "AC04")]), ("AddtlInf", "退票")]) if entry.back else ""
    )
    details = "".join(
        (
            element("Refs", [("EndToEndId", reference)]),
            _amt(entry.amount),
            side,
            f"<RltdPties>{parties}</RltdPties>",
            element("RmtInf", [("Ustrd", entry.purpose)]),
            returned,
        )
    )
    dated = element("BookgDt", [("DtTm", _time(entry.at))])
    state = element("Sts", [("Cd", "BOOK")])
    ident = element("AcctSvcrRef", entry.payment_ref)
    return (
        f"<Ntry>{_amt(entry.amount)}{side}{state}{dated}{ident}{_code(codes)}"
        f"<NtryDtls><TxDtls>{details}</TxDtls></NtryDtls></Ntry>"
    )
