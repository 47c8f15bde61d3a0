"""What a message says, as values: states of payments, booked lines, balances.

Source: the message definitions of pain.002, camt.052/053/054 and pacs.004; where versions differ
(a name, a choice of date), all forms are read. What can't be read raises ``ValueError``: a line
left out would be a lie.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

import attrs
from lxml import etree

from bank_adapters.iso20022.messages import ENTRY, REPORTS, Message, text, texts
from fep.adapters import xml
from fep.domain.clock import SHANGHAI, BusinessDate, business_date
from fep.domain.money import FEN_MAX, Cny

_AMOUNT: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,5}))?")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_CHARS: Final = 10
CURRENCIES: Final = frozenset({"", "CNY"})

BOOKED: Final = "BOOK"
NOT_PROVIDED: Final = "NOTPROVIDED"
"""What stands in an id that must be there and is not known."""
_IDS: Final = (
    "OrgnlMsgId",
    "OrgnlPmtInfId",
    "OrgnlEndToEndId",
    "OrgnlInstrId",
    "EndToEndId",
    "PmtInfId",
    "InstrId",
    "MsgId",
)
RETURN_FAMILY: Final = "RRTN"
"""BkTxCd: reversal due to a payment return."""


def money(value: str) -> Cny:
    """Return an amount as messages write it: up to five decimals, of which three are zeros."""
    found = _AMOUNT.fullmatch(value)
    if found is None or (found[2] or "")[2:].strip("0"):
        msg = f"{value[:40]!r} is no amount in yuan"
        raise ValueError(msg)
    amount = Cny(int(found[1] + (found[2] or "")[:2].ljust(2, "0")))
    if amount.fen > FEN_MAX:
        msg = f"{value[:40]!r} is no amount of this world"
        raise ValueError(msg)
    return amount


@lru_cache(maxsize=1024)  # a page has few dates
def moment(value: str) -> dt.datetime:
    """Return an ISODate or ISODateTime; without an offset it is Shanghai's, a day its midnight."""
    if _DAY.fullmatch(value[:_DAY_CHARS]) is None:
        msg = f"{value[:40]!r} is no date"
        raise ValueError(msg)
    found = dt.datetime.fromisoformat(value)
    if found.tzinfo is None:
        found = found.replace(tzinfo=SHANGHAI)
    try:
        return found.astimezone(dt.UTC)
    except OverflowError as error:
        msg = f"{value[:40]!r} is outside the calendar"
        raise ValueError(msg) from error


def _moment_or_none(value: str) -> dt.datetime | None:
    try:
        return moment(value)
    except ValueError:
        return None


def _day(element: etree._Element | None, name: str) -> BusinessDate | None:
    """Return the calendar day as it is written, whatever its offset."""
    value = text(element, f"{name}/Dt", f"{name}/DtTm", name)
    return BusinessDate(moment(value[:_DAY_CHARS]).astimezone(SHANGHAI).date()) if value else None


@attrs.frozen
class Amount:
    """An amount with its currency."""

    value: Cny
    currency: str


def _amount(element: etree._Element | None, *paths: str) -> Amount | None:
    for path in paths:
        found = element.find(path) if element is not None else None
        if found is not None and (value := (found.text or "").strip()):
            return Amount(money(value), found.get("Ccy", "").strip())
    return None


def _account(element: etree._Element | None, *names: str) -> str:
    paths = (path for name in names for path in (f"{name}/Id/IBAN", f"{name}/Id/Othr/Id"))
    return text(element, *paths)


# -- pain.002 -------------------------------------------------------------------------------------


@attrs.frozen
class Status:
    """What a status report says of one payment, at the deepest level that names it."""

    code: str
    reasons: tuple[str, ...] = ()
    said: str = ""
    above: tuple[str, ...] = ()
    """States of the levels above, which a payment's own goes before."""
    reasons_above: tuple[str, ...] = ()
    """Reasons of those levels: what a whole message was refused for holds for all in it."""
    created: dt.datetime | None = None
    bank_ref: str = ""
    amount: Amount | None = None
    payer: str = ""
    payee: str = ""


def created(message: Message) -> dt.datetime | None:
    """Return when the bank made a message, None where it can't be read."""
    return created_of(message.body)


def created_of(body: etree._Element) -> dt.datetime | None:
    """Return when the bank made the message of this body, None where it can't be read."""
    return _moment_or_none(text(body, "GrpHdr/CreDtTm"))


def references(element: etree._Element) -> frozenset[str]:
    """Return all that a message, or a part of it, refers to payments by."""
    found = {
        (one.text or "").strip()
        for one in element.iter(*_IDS)
        if one.tag != "MsgId" or _is_of_refs(one)
    }
    return frozenset(found - {"", NOT_PROVIDED})


def _is_of_refs(element: etree._Element) -> bool:
    above = element.getparent()
    return above is not None and above.tag == "Refs"


def statuses(message: Message, reference: str) -> Iterator[Status]:
    """Yield what a pain.002 says of the payment that bears this reference in all its ids."""
    group = message.body.find("OrgnlGrpInfAndSts")
    is_ours = text(group, "OrgnlMsgId") == reference
    at = created(message)
    above = _code(group, "GrpSts")
    why = _reasons(group)
    batches = message.body.findall("OrgnlPmtInfAndSts")
    seen = False
    for batch in batches:
        batch_id = text(batch, "OrgnlPmtInfId")
        of_batch = batch_id == reference or (is_ours and not batch_id)
        rows = batch.findall("TxInfAndSts")
        mine = [row for row in rows if _names(row, reference)]
        if not mine and of_batch and len(rows) == 1 and not _ids(rows[0]):
            mine = rows
        levels = (above, _code(batch, "PmtInfSts"))
        whys = (*_reasons(batch), *why)
        total = _amount(batch, "OrgnlCtrlSum") if of_batch and len(rows) <= 1 else None
        for row in mine:
            seen = True
            code = _code(row, "TxSts")
            yield _status(row, code or levels[1] or levels[0], levels, whys, at, total)
        if not mine and of_batch and not rows:
            seen = True
            yield _status(batch, levels[1] or levels[0], levels[:1], why, at, total)
    # Older versions have the transactions beside the group, without a batch.
    for row in message.body.findall("TxInfAndSts"):
        if _names(row, reference):
            seen = True
            yield _status(row, _code(row, "TxSts") or above, (above,), why, at, None)
    if not seen and is_ours and not batches:
        yield _status(group, above, (), (), at, _amount(group, "OrgnlCtrlSum"))


def _code(element: etree._Element | None, name: str) -> str:
    return text(element, name)


def _reasons(element: etree._Element | None) -> tuple[str, ...]:
    """Return why a level has its state; the last two paths are those of pain.002.001.02."""
    told = element.findall("StsRsnInf") if element is not None else []
    paths = ("Rsn/Cd", "Rsn/Prtry", "StsRsn/Cd", "StsRsn/Prtry")
    return tuple(filter(None, (text(one, *paths) for one in told)))


def _ids(row: etree._Element) -> set[str]:
    return {text(row, "OrgnlEndToEndId"), text(row, "OrgnlInstrId")} - {""}


def _names(row: etree._Element, reference: str) -> bool:
    """Say whether a row is this payment's: no id of it is another's."""
    return _ids(row) == {reference}


def _status(
    element: etree._Element | None,
    code: str,
    above: tuple[str, ...],
    reasons_above: tuple[str, ...],
    at: dt.datetime | None,
    total: Amount | None,
) -> Status:
    original = element.find("OrgnlTxRef") if element is not None else None
    return Status(
        code=code,
        reasons=_reasons(element),
        said=texts(element, "StsRsnInf/AddtlInf")[:200],
        above=tuple(filter(None, above)),
        reasons_above=reasons_above,
        created=at,
        bank_ref=text(element, "AcctSvcrRef"),
        amount=_amount(original, "Amt/InstdAmt", "IntrBkSttlmAmt", "Amt/EqvtAmt/Amt") or total,
        payer=_account(original, "DbtrAcct"),
        payee=_account(original, "CdtrAcct"),
    )


# -- camt and pacs.004 ----------------------------------------------------------------------------


@attrs.frozen
class Line:
    """One movement of an account."""

    account: str
    amount: Amount
    is_debit: bool
    state: str
    """BOOK, PDNG, INFO, …; empty where it is not told."""
    booked_at: dt.datetime
    has_time: bool
    reference: str = ""
    """EndToEndId, as it stands."""
    message_ref: str = ""
    """The other ids of a payment of ours: MsgId, PmtInfId, InstrId; one of them."""
    bank_ref: str = ""
    """AcctSvcrRef, or NtryRef where there is none: many banks number a report's entries there."""
    counterparty: str = ""
    counterparty_name: str = ""
    purpose: str = ""
    is_reversal: bool = False
    return_reason: str = ""
    return_said: str = ""
    created: dt.datetime | None = None

    @property
    def takes_back(self) -> bool:
        """Whether it takes an earlier line back."""
        return self.is_reversal or bool(self.return_reason)

    def is_of(self, reference: str) -> bool:
        """Say whether it is this payment's: by its own id, or by another where it bears none."""
        if self.reference and self.reference != NOT_PROVIDED:
            return self.reference == reference
        return self.message_ref == reference


@attrs.frozen
class Balance:
    """One balance of a report."""

    code: str
    amount: Cny
    currency: str
    day: BusinessDate | None


@attrs.frozen
class Report:
    """One account's report, statement or notification."""

    kind: str
    account: str
    created: dt.datetime | None
    first: BusinessDate | None
    last: BusinessDate | None
    balances: tuple[Balance, ...]
    lines: tuple[Line, ...]
    page: int = 1
    is_last_page: bool = True
    number: str = ""
    ident: str = ""

    def balance(self, *codes: str) -> Balance | None:
        """Return the first balance of these codes, in their order."""
        for code in codes:
            for one in self.balances:
                if one.code == code:
                    return one
        return None


def reports(message: Message) -> Iterator[Report]:
    """Yield the reports of a camt message."""
    if (name := REPORTS.get(message.kind)) is None:
        return
    lean = message.lean
    if lean is not None and not all(_tells_days(one) for one in lean.body.iterchildren(name)):
        lean = None  # its days are those of its entries
    head = message.body if lean is None else lean.body
    at = created_of(head)
    plans: dict[int, Plan] = {}
    for element in head.iterchildren(name):
        account = account_of(element)
        made = _moment_or_none(text(element, "CreDtTm")) or at
        lines: list[Line] = []
        for entry in element.findall(ENTRY):
            row = None if lean is None else lean.nested.row(entry)
            if row is None:
                lines += _lines(entry, account, made)
                continue
            key = id(row.shape)
            if (plan := plans.get(key)) is None:
                plan = plans[key] = _plan(row.shape)
            lines.append(_planned(plan, row.texts, account, made))
        yield _report(message.kind, element, account, made, tuple(lines))


def _tells_days(report: etree._Element) -> bool:
    first, last = _told_day(report, "FrDtTm", "FrDt"), _told_day(report, "ToDtTm", "ToDt")
    return first is not None and last is not None


def account_of(report: etree._Element) -> str:
    """Return the account of a report's element."""
    return _account(report, "Acct")


def span(report: etree._Element) -> tuple[BusinessDate | None, BusinessDate | None]:
    """Return the days that a report tells of, without reading its lines."""
    first, last = _told_day(report, "FrDtTm", "FrDt"), _told_day(report, "ToDtTm", "ToDt")
    if first is not None and last is not None:
        return first, last
    dates = [*report.iterfind("Bal/Dt"), *report.iterfind("Ntry/BookgDt")]
    days = [
        business_date(at)
        for one in dates
        if (at := _moment_or_none(text(one, "DtTm", "Dt", "."))) is not None
    ]
    return first or min(days, default=None), last or max(days, default=None)


def _report(
    kind: str,
    element: etree._Element,
    account: str,
    at: dt.datetime | None,
    lines: tuple[Line, ...],
) -> Report:
    balances = tuple(_balance(one) for one in element.findall("Bal"))
    first, last = span(element)
    page = text(element, "StmtPgntn/PgNb", "RptPgntn/PgNb", "NtfctnPgntn/PgNb") or "1"
    ends = text(element, "StmtPgntn/LastPgInd", "RptPgntn/LastPgInd", "NtfctnPgntn/LastPgInd")
    return Report(
        kind=kind,
        account=account,
        created=at,
        first=first,
        last=last,
        balances=balances,
        lines=lines,
        page=int(page) if page.isascii() and page.isdecimal() and len(page) < 6 else 1,
        is_last_page=ends not in {"false", "0"},
        number=text(element, "ElctrncSeqNb", "LglSeqNb"),
        ident=text(element, "Id"),
    )


def _told_day(element: etree._Element, *names: str) -> BusinessDate | None:
    """Return a day of FrToDt as it is written: the bank's day, whatever its offset."""
    value = text(element, *(f"FrToDt/{name}" for name in names))
    at = _moment_or_none(value[:_DAY_CHARS])
    return None if at is None else business_date(at)


def _balance(element: etree._Element) -> Balance:
    amount = _amount(element, "Amt")
    if amount is None:
        msg = "a balance has no amount"
        raise ValueError(msg)
    side = text(element, "CdtDbtInd")
    if side not in {"CRDT", "DBIT"}:
        msg = f"a balance is neither credit nor debit: {side[:20]!r}"
        raise ValueError(msg)
    code = text(element, "Tp/CdOrPrtry/Cd", "Tp/CdOrPrtry/Prtry", "Tp/Cd")
    value = amount.value if side == "CRDT" else -amount.value
    return Balance(code, value, amount.currency, _day(element, "Dt"))


def _lines(entry: etree._Element, account: str, at: dt.datetime | None) -> Iterator[Line]:
    """Yield an entry's line, or those of its transactions where each has its own amount."""
    rows = entry.findall("NtryDtls/TxDtls")
    if len(rows) < 2:
        yield _line(entry, rows[0] if rows else None, account, at, _amount(entry, "Amt"))
        return
    whole = _line(entry, None, account, at, _amount(entry, "Amt"))
    parts = [_line(entry, row, account, at, _own_amount(row)) for row in rows]
    signed = sum(one.amount.value.fen * (1 if one.is_debit else -1) for one in parts)
    if abs(signed) != whole.amount.value.fen:
        msg = "an entry of several transactions does not add up"
        raise ValueError(msg)
    yield from parts


def _own_amount(row: etree._Element) -> Amount | None:
    return _amount(row, "Amt", "AmtDtls/TxAmt/Amt", "AmtDtls/InstdAmt/Amt")


_TEXTS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "side": (("CdtDbtInd",), ("CdtDbtInd",)),
    "booked": ((), ("BookgDt/DtTm", "BookgDt/Dt", "BookgDt", "ValDt/DtTm", "ValDt/Dt", "ValDt")),
    "time": ((), ("BookgDt/DtTm",)),
    "state": ((), ("Sts/Cd", "Sts/Prtry", "Sts")),
    "family": (("BkTxCd/Domn/Fmly/SubFmlyCd",), ("BkTxCd/Domn/Fmly/SubFmlyCd",)),
    "reversal": ((), ("RvslInd",)),
    "reference": (("Refs/EndToEndId",), ()),
    "message ref": (
        ("Refs/InstrId", "Refs/PmtInfId", "Refs/MsgId"),
        ("NtryDtls/Btch/PmtInfId",),
    ),
    "bank ref": (("Refs/AcctSvcrRef",), ("AcctSvcrRef", "NtryRef")),
    "more": (("AddtlTxInf",), ("AddtlNtryInf",)),
    **{
        f"{party} account": (
            (f"RltdPties/{party}Acct/Id/IBAN", f"RltdPties/{party}Acct/Id/Othr/Id"),
            (),
        )
        for party in ("Cdtr", "Dbtr")
    },
    **{
        f"{party} name": (
            tuple(f"RltdPties/{party}/{of}Nm" for of in ("Pty/", "", "Agt/FinInstnId/")),
            (),
        )
        for party in ("Cdtr", "Dbtr")
    },
}
"""Where a transaction, and where else its entry, has what."""
_ROW: Final = "NtryDtls/TxDtls"
_USTRD: Final = "RmtInf/Ustrd"


def _line(
    entry: etree._Element,
    row: etree._Element | None,
    account: str,
    at: dt.datetime | None,
    amount: Amount | None,
) -> Line:
    told = {
        what: text(row, *of_row) or text(entry, *of_entry)
        for what, (of_row, of_entry) in _TEXTS.items()
    }
    told["purpose"] = texts(row, _USTRD)
    return _made(told, _first(row, "RtrInf"), account, at, amount)


@attrs.frozen
class Plan:
    """Where the texts of entries of one shape are: of one transaction, that nobody returned."""

    single: tuple[tuple[str, int], ...]
    """What stands at one place at most; -1 is a text that is empty."""
    several: tuple[tuple[str, tuple[int, ...]], ...]
    currency: str


def _plan(shape: xml.Shape) -> Plan:
    """Return where to find what in rows of a shape."""
    wanted = {
        what: (*(f"{_ROW}/{path}" for path in of_row), *of_entry)
        for what, (of_row, of_entry) in _TEXTS.items()
    }
    wanted |= {"purpose": (f"{_ROW}/{_USTRD}",), "amount": ("Amt",)}
    found = {
        what: tuple(shape.leaves[path] for path in paths if path in shape.leaves)
        for what, paths in wanted.items()
    }
    return Plan(
        tuple((what, slots[0] if slots else -1) for what, slots in found.items() if len(slots) < 2),
        tuple((what, slots) for what, slots in found.items() if len(slots) > 1),
        shape.attributes.get("Amt", ""),
    )


def _planned(plan: Plan, given: Sequence[str], account: str, at: dt.datetime | None) -> Line:
    all_ = (*given, "")
    told = {what: all_[slot].strip() for what, slot in plan.single}
    for what, slots in plan.several:
        told[what] = next((found for slot in slots if (found := all_[slot].strip())), "")
    value = told["amount"]
    return _made(told, None, account, at, Amount(money(value), plan.currency) if value else None)


def _made(
    told: Mapping[str, str],
    returned: etree._Element | None,
    account: str,
    at: dt.datetime | None,
    amount: Amount | None,
) -> Line:
    side, booked, family = told["side"], told["booked"], told["family"]
    if amount is None or side not in {"CRDT", "DBIT"} or not booked:
        msg = "an entry has no amount, side or date"
        raise ValueError(msg)
    is_debit = side == "DBIT"
    # What comes back comes from whom it went to.
    party = "Cdtr" if is_debit == (returned is None) else "Dbtr"
    reason, said = "", ""
    if returned is not None:
        reason = text(returned, "Rsn/Cd", "Rsn/Prtry")
        said = texts(returned, "AddtlInf")[:200]
    if (returned is not None or family == RETURN_FAMILY) and not reason:
        reason = "NARR"
    return Line(
        account=account,
        amount=amount,
        is_debit=is_debit,
        state=told["state"],
        booked_at=moment(booked),
        has_time=bool(told["time"]),
        reference=told["reference"],
        message_ref=told["message ref"],
        bank_ref=told["bank ref"],
        counterparty=told[f"{party} account"],
        counterparty_name=told[f"{party} name"],
        purpose=told["purpose"] or told["more"],
        is_reversal=told["reversal"].lower() in {"true", "1"},
        return_reason=reason,
        return_said=said,
        created=at,
    )


def _first(element: etree._Element | None, name: str) -> etree._Element | None:
    return element.find(name) if element is not None else None


@attrs.frozen
class Returned:
    """What a payment return (pacs.004) says of one payment."""

    reason: str
    said: str
    amount: Amount | None
    day: BusinessDate | None
    bank_ref: str
    created: dt.datetime | None


def returns(message: Message, reference: str) -> Iterator[Returned]:
    """Yield what a pacs.004 says of a payment."""
    for row in message.body.findall("TxInf"):
        if not _names(row, reference):
            continue
        reasons = row.findall("RtrRsnInf")
        yield Returned(
            reason=next(
                filter(None, (text(one, "Rsn/Cd", "Rsn/Prtry") for one in reasons)), "NARR"
            ),
            said=texts(row, "RtrRsnInf/AddtlInf")[:200],
            amount=_amount(row, "RtrdIntrBkSttlmAmt"),
            day=_day(row, "IntrBkSttlmDt") or _day(message.body, "GrpHdr/IntrBkSttlmDt"),
            bank_ref=text(row, "RtrId"),
            created=created(message),
        )
