"""Operations as requests: the pain.001 of a payment, and what is asked by HTTP or of the folder.

Source: pain.001.001.09 (CustomerCreditTransferInitiationV09). Our reference stands in MsgId,
PmtInfId, InstrId and EndToEndId alike: one payment is one message, so whatever level of it a bank
speaks of, it is this payment.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Final, assert_never
from urllib.parse import quote

import attrs

from bank_adapters.iso20022.config import NAME_CHARS_MAX, Iso20022Options
from bank_adapters.iso20022.messages import HEAD, PAIN_001, PREFIX, Node, element, yuan
from fep.adapters.api import BankProfile, Context
from fep.domain.account import Account
from fep.domain.clock import to_shanghai
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.order import (
    BalanceQuery,
    Operation,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
    Urgency,
)

PAYMENT, STATUS, BALANCE = "payment", "status", "balance"
STATEMENT, PROBE = "statement", "probe"
ACCOUNT_CHARS_MAX: Final = 34
"""Max34Text of GenericAccountIdentification1."""
TEXT_CHARS_MAX: Final = 140
NEIGHBOUR_DAYS: Final = 7
"""Statements this far before and behind those asked for show whether a day had one."""
_IBAN: Final = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{8,30}")
_CNAPS: Final = re.compile(r"[0-9]{12}")


@attrs.frozen
class Request:
    """One operation as it is asked."""

    trade: str
    target: str = ""
    """Of HTTP."""
    document: str = ""
    """What is sent; empty: a question."""
    marks: tuple[str, ...] = ()
    """Of a question to the folder."""
    newest: int = 0


def request(profile: BankProfile, operation: Operation, context: Context) -> Request:
    """Return how an operation is asked.

    Raises:
        BodyError: this bank can't carry it; the message names the member.
        LocalProtocolError: a payment without its reference.
    """
    options = profile.options
    assert isinstance(options, Iso20022Options)
    match operation:
        case BalanceQuery():
            account = _own(profile, operation.account, "account").number
            target = _target(options.balance_path, account=account)
            return Request(BALANCE, target, marks=(f"balance:{account}",), newest=8)
        case PaymentOrder():
            if context.client_ref is None:
                msg = "a payment was to be written without its reference"
                raise LocalProtocolError(msg)
            return Request(PAYMENT, options.submit_path, pain_001(profile, operation, context))
        case StatusQuery():
            reference = operation.client_ref
            target = _target(options.status_path, reference=reference)
            return Request(STATUS, target, marks=(f"payment:{reference}",))
        case StatementQuery():
            return _statement(profile, options, operation)
        case _:
            assert_never(operation)


def probe(profile: BankProfile) -> Request:
    """Return the heartbeat."""
    options = profile.options
    assert isinstance(options, Iso20022Options)
    if options.probe_path:
        return Request(PROBE, options.probe_path)
    accounts = profile.accounts.items()
    ours = (number for number, one in accounts if one.bank == profile.bank)
    account = next(ours, AccountNumber("0"))
    return Request(PROBE, _target(options.balance_path, account=account))


def _statement(profile: BankProfile, options: Iso20022Options, query: StatementQuery) -> Request:
    account = _own(profile, query.account, "account").number
    days = (query.last_day - query.first_day).days
    if not 0 <= days < profile.card.statement.span_days_max:
        msg = "'from' and 'to': this bank tells a limited number of days at once"
        raise BodyError(msg)
    target = _target(
        options.statement_path,
        account=account,
        first=query.first_day.isoformat(),
        last=query.last_day.isoformat(),
        page=query.cursor or "1",
    )
    begin = query.first_day - dt.timedelta(days=NEIGHBOUR_DAYS)
    marks = tuple(
        f"statement:{account}:{begin + dt.timedelta(days=at)}"
        for at in range(days + 1 + 2 * NEIGHBOUR_DAYS)
    )
    return Request(STATEMENT, target, marks=marks)


def _target(path: str, **values: str) -> str:
    return path.format(**{name: quote(value, safe="") for name, value in values.items()})


def pain_001(profile: BankProfile, order: PaymentOrder, context: Context) -> str:
    """Return the message of one payment."""
    reference = context.client_ref or ""
    at = to_shanghai(context.now)
    payer = _own(profile, order.payer, "payer.account")
    amount = str(order.amount)
    is_urgent = order.urgency is Urgency.URGENT
    header: list[Node] = [
        ("MsgId", reference),
        ("CreDtTm", at.isoformat(timespec="seconds")),
        ("NbOfTxs", "1"),
        ("CtrlSum", amount),
        ("InitgPty", _initiator(profile.options)),
    ]
    batch: list[Node] = [
        ("PmtInfId", reference),
        ("PmtMtd", "TRF"),
        ("NbOfTxs", "1"),
        ("CtrlSum", amount),
        (
            "PmtTpInf",
            [
                ("InstrPrty", "HIGH" if is_urgent else "NORM"),
                ("SvcLvl", [("Cd", "URGP" if is_urgent else "NURG")]),
            ],
        ),
        ("ReqdExctnDt", [("Dt", at.date().isoformat())]),
        ("Dbtr", [("Nm", _text(payer.name, "payer.name", NAME_CHARS_MAX))]),
        ("DbtrAcct", [*_account(payer.number, "payer.account"), ("Ccy", "CNY")]),
        ("DbtrAgt", _agent(profile.options.bic, payer.bank_code, "")),
    ]
    body = "".join(
        (
            element("GrpHdr", header),
            "<PmtInf>",
            *(element(*node) for node in batch),
            _transaction(profile, order, reference),
            "</PmtInf>",
        )
    )
    root = f'<Document xmlns="{PREFIX}{PAIN_001}">'
    return f"{HEAD}{root}<CstmrCdtTrfInitn>{body}</CstmrCdtTrfInitn></Document>"


def _initiator(options: Iso20022Options) -> list[Node]:
    name: Node = ("Nm", _text(options.initiating_party, "initiating_party", NAME_CHARS_MAX))
    if not options.customer_id:
        return [name]
    return [name, ("Id", [("OrgId", [("Othr", [("Id", options.customer_id)])])])]


def _transaction(profile: BankProfile, order: PaymentOrder, reference: str) -> str:
    payee = order.payee
    own = profile.accounts.get(payee.account)
    code = payee.bank_code or (own.bank_code if own else "")
    bank_name = payee.bank_name or (own.bank_title if own else "")
    options = profile.options
    purpose = order.purpose.strip() or options.purpose_default
    agent: Node = (
        "CdtrAgt",
        _agent("", code, _text(bank_name, "payee.bank_name", TEXT_CHARS_MAX)),
    )
    parties: list[Node] = [
        ("Cdtr", [("Nm", _text(payee.name, "payee.name", NAME_CHARS_MAX))]),
        ("CdtrAcct", _account(payee.account, "payee.account")),
        ("RmtInf", [("Ustrd", _text(purpose, "purpose", TEXT_CHARS_MAX))]),
    ]
    inside = "".join(
        (
            element("PmtId", [("InstrId", reference), ("EndToEndId", reference)]),
            f"<Amt>{yuan('InstdAmt', order.amount)}</Amt>",
            element(*agent) if code or bank_name else "",
            *(element(*node) for node in parties),
        )
    )
    return f"<CdtTrfTxInf>{inside}</CdtTrfTxInf>"


def _account(number: str, member: str) -> list[Node]:
    if is_iban(number):
        return [("Id", [("IBAN", number)])]
    if len(number) > ACCOUNT_CHARS_MAX:
        msg = f"{member} is longer than {ACCOUNT_CHARS_MAX} characters"
        raise BodyError(msg)
    return [("Id", [("Othr", [("Id", number)])])]


def is_iban(number: str) -> bool:
    """Say whether an account number is an IBAN (ISO 13616): its form and its check digits."""
    if not _IBAN.fullmatch(number):
        return False
    turned = "".join(str(int(one, 36)) for one in number[4:] + number[:4])
    return int(turned) % 97 == 1


def _agent(bic: str, code: str, name: str) -> list[Node]:
    """Return how a bank is named: by BIC, CNAPS code and name, as far as they are known."""
    inside: list[Node] = []
    if bic:
        inside.append(("BICFI", bic))
    if _CNAPS.fullmatch(code):
        system: Node = ("ClrSysId", [("Cd", "CNAPS")])
        inside.append(("ClrSysMmbId", [system, ("MmbId", code)]))
    if name:
        inside.append(("Nm", name))
    if not inside:
        inside.append(("Othr", [("Id", "NOTPROVIDED")]))
    return [("FinInstnId", inside)]


def _own(profile: BankProfile, number: AccountNumber, member: str) -> Account:
    accounts: Mapping[AccountNumber, Account] = profile.accounts
    account = accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{member} is no approved account of ours at bank {profile.bank!r}"
        raise BodyError(msg)
    return account


def _text(value: str, member: str, chars_max: int) -> str:
    """Return a value that the bank's parser reads back as it is; empty stays so."""
    if (value and not value.strip()) or not value.isprintable() or len(value) > chars_max:
        msg = f"{member} must be printable text of at most {chars_max} characters"
        raise BodyError(msg)
    return value
