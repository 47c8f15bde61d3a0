"""Prints the canonical operations as B2Bi trades: element names, order and lengths of each.

What we write is checked here, member by
member, so that a payment the bank can't carry is refused before anything is sent.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from bank_adapters.pingan_b2bi import bodies
from bank_adapters.pingan_b2bi.config import PinganOptions
from fep.adapters.api import BankProfile
from fep.domain.account import Account
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError
from fep.domain.ids import BATCH_ROWS_MAX, AccountNumber, ClientRef, row_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    BatchOrder,
    BatchQuery,
    PaymentOrder,
    ReturnedQuery,
    StatementQuery,
    StatusQuery,
    Sweep,
    Urgency,
)

PROBE: Final = "S001"
BALANCE: Final = "4001"
TRANSFER: Final = "4004"
STATUS: Final = "4005"
TODAY: Final = "4008"
HISTORY: Final = "4013"
BANK_CODES: Final = "4017"
RETURNED: Final = "4019"
SWEEP: Final = "4052"
BATCH: Final = "4018"
BATCH_STATUS: Final = "4015"
PAYMENTS: Final = frozenset({TRANSFER, SWEEP, BATCH})
BATCH_ROW: Final = "HOResultSet4018R"
"""Name of a row's element in 4018."""

CURRENCY: Final = "RMB"
ONE_CHILD: Final = "2"
"""guiJiAreaOption of 4052; 1 is all children."""
SWEEP_UP, SWEEP_DOWN = "1", "2"
"""guiJiType of 4052."""
AMOUNT_MAX: Final = Cny(9_999_999_999_999)
"""TranAmount is 13,2: thirteen digits, two of them decimals."""
PAGES_MAX: Final = 10_000
HISTORY_ROWS_MIN: Final = 30
HISTORY_ROWS_MAX: Final = 1000
RETURNED_ROWS: Final = 300
"""PageCts of 4019: the most it gives at once."""
RETURNED_DAYS_MAX: Final = 30

CHARS_MAX: Final = {
    "Account": 14,
    "AcctNo": 14,
    "ThirdVoucher": 20,
    "SThirdVoucher": 20,
    "OrigThirdVoucher": 20,
    "OutAcctNo": 14,
    "OutAcctName": 60,
    "InAcctBankNode": 12,
    "InAcctNo": 32,
    "InAcctName": 60,
    "InAcctBankName": 60,
    "UseEx": 30,
    "AccNo": 14,
    "subAccountNo": 14,
    "KeyWord": 60,
}
"""Declared lengths C(n) in characters."""

_OTHER_CITY: Final = "2"
"""AddrFlag. "Other city" is right for every payment; a wrong "same city" is refused (YQ9974,
YQ9975, YQ9978) and may still cost a fee."""
_DEBIT_EACH_ROW: Final = "0"
"""PayType. With 1 the whole is booked as one sum, and no line of a statement is a row's."""
_ALL_ROWS: Final = "0"
"""QueryType."""
_SYS_FLAGS: Final = {Urgency.NORMAL: "N", Urgency.URGENT: "Y"}

CURSOR: Final = re.compile(
    rf"({TODAY}|{HISTORY})/([0-9]{{8}})/([0-9]{{1,5}})/([0-9]{{1,4}})/([0-9A-Za-z]{{1,32}})/([0-9A-Za-z]{{1,32}})"
)

_BANK_TITLES: Final = {
    "102": "中国工商银行",
    "103": "中国农业银行",
    "104": "中国银行",
    "105": "中国建设银行",
    "301": "交通银行",
    "302": "中信银行",
    "303": "中国光大银行",
    "304": "华夏银行",
    "305": "中国民生银行",
    "306": "广发银行",
    "307": "平安银行",
    "308": "招商银行",
    "309": "兴业银行",
    "310": "上海浦东发展银行",
    "315": "恒丰银行",
    "316": "浙商银行",
    "403": "中国邮政储蓄银行",
}
"""Names by CNAPS class, for a payee whose bank's code is known and its name is not."""


@attrs.frozen
class Cursor:
    """Where the next page of a statement starts; it lives in ``StatementQuery.cursor``."""

    trade: str
    asked_on: str
    """Day the walk began (yyyyMMdd): a walk over today must not go on as one over the past."""
    page: int
    rows: int = 0
    """PageSize of 4013: must stay the same over one walk, so it travels with the walk."""
    journal: str = "0"
    log_count: str = "0"
    """JournalNo and LogCount of 4008: 0 first, then as answered."""

    def __str__(self) -> str:
        parts = (self.trade, self.asked_on, self.page, self.rows, self.journal, self.log_count)
        return "/".join(map(str, parts))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor a page of ours ended with.

        Raises:
            BodyError: it is none.
        """
        found = CURSOR.fullmatch(text)
        if found is None:
            msg = f"cursor {text[:40]!r} is not of this bank"
            raise BodyError(msg)
        trade, asked_on, page, rows, journal, log_count = found.groups()
        return cls(trade, asked_on, int(page), int(rows), journal, log_count)

    def following(self, journal: str, log_count: str) -> Cursor:
        """Return the cursor of the page behind this one."""
        kept = (journal, log_count) if self.trade == TODAY else (self.journal, self.log_count)
        return attrs.evolve(self, page=self.page + 1, journal=kept[0], log_count=kept[1])


def start(profile: BankProfile, query: StatementQuery, today: BusinessDate) -> Cursor:
    """Return where a statement query starts or goes on.

    Raises:
        BodyError: its cursor is not one of ours.
    """
    if query.cursor:
        return Cursor.parse(query.cursor)
    options: PinganOptions = profile.options
    if query.first_day == today and options.today_trade == TODAY:
        return Cursor(TODAY, f"{today:%Y%m%d}", 0)
    rows = min(max(profile.card.statement.rows_per_page, HISTORY_ROWS_MIN), HISTORY_ROWS_MAX)
    return Cursor(HISTORY, f"{today:%Y%m%d}", 1, rows)


def own_account(profile: BankProfile, number: AccountNumber, where: str) -> Account:
    """Return the approved account of this bank.

    Raises:
        BodyError: there is none of this number.
    """
    account = profile.accounts.get(number)
    if account is None or account.bank != profile.bank:
        msg = f"{where}: not an approved account of bank {profile.bank!r}"
        raise BodyError(msg)
    return account


def is_same_bank(profile: BankProfile, order: PaymentOrder) -> bool:
    """Say whether the money stays inside the bank (UnionFlag): by CNAPS, then by configuration.

    The order's own word counts first: a stranger's account at another bank can have the same number
    as one of ours here.
    """
    own = profile.accounts.get(order.payee.account)
    options: PinganOptions = profile.options
    if code := _payee_code(order, own):
        return code.startswith(options.bank_class)
    return own is not None and own.bank == profile.bank


def _payee_code(order: PaymentOrder, own: Account | None) -> str:
    return order.payee.bank_code or (own.bank_code if own else "")


def _member(element: str, text: str, where: str) -> tuple[str, str]:
    limit = CHARS_MAX[element]
    if len(text) > limit:
        msg = f"{where}: {element} takes at most {limit} characters, not {len(text)}"
        raise BodyError(msg)
    if not bodies.is_printable_in_xml(text):
        msg = f"{where}: it holds a control character"
        raise BodyError(msg)
    try:
        text.encode("gbk")
    except UnicodeEncodeError as error:
        msg = f"{where}: the character {text[error.start]!r} is not in GBK"
        raise BodyError(msg) from error
    return element, text


def _needed(element: str, text: str, where: str) -> tuple[str, str]:
    if not text.strip():
        msg = f"{where}: {element} must not be empty"
        raise BodyError(msg)
    return _member(element, text, where)


def _body(members: bodies.Members) -> bytes:
    return bodies.write(bodies.REQUEST_DECLARATION, members).encode("gbk")


def probe() -> bytes:
    """Return the body of S001."""
    return _body(())


def balance(profile: BankProfile, query: BalanceQuery) -> bytes:
    """Return the body of 4001."""
    own_account(profile, query.account, "account")
    account = _needed("Account", query.account, "account")
    return _body([account, ("CcyType", "C"), ("CcyCode", CURRENCY)])


def transfer(profile: BankProfile, order: PaymentOrder, reference: ClientRef) -> bytes:
    """Return the body of 4004; an interbank payment without a bank code lands at the bank.

    Raises:
        BodyError: the bank can't carry it; the message names the member.
    """
    members = [
        _needed("ThirdVoucher", reference, "client_ref"),
        ("CcyCode", CURRENCY),
        *_payer_members(profile, order.payer),
        *_payee_members(profile, order, ""),
        ("SysFlag", _SYS_FLAGS[order.urgency]),
        ("AddrFlag", _OTHER_CITY),
    ]
    return _body(members)


def sweep(profile: BankProfile, order: PaymentOrder, reference: ClientRef) -> bytes:
    """Return the body of 4052: one child and an amount, never all of a pool.

    What is not known beforehand could not be found again in a statement.

    Raises:
        BodyError: an account is not ours, or the bank can't carry the amount.
    """
    if not 0 < order.amount.fen <= AMOUNT_MAX.fen:
        msg = f"amount: Amount must be above 0.00 and at most {AMOUNT_MAX}"
        raise BodyError(msg)
    up = order.sweep is Sweep.UP
    ends = (order.payee.account, order.payer)
    parent, child = ends if up else ends[::-1]
    return _body(
        [
            _needed("ThirdVoucher", reference, "client_ref"),
            _needed("AcctNo", own_account(profile, parent, "parent.account").number, "parent"),
            ("guiJiAreaOption", ONE_CHILD),
            _needed("subAccountNo", own_account(profile, child, "child.account").number, "child"),
            ("guiJiType", SWEEP_UP if up else SWEEP_DOWN),
            ("Amount", str(order.amount)),
        ]
    )


def _payer_members(profile: BankProfile, payer: AccountNumber) -> bodies.Members:
    account = own_account(profile, payer, "payer.account")
    return [
        _needed("OutAcctNo", account.number, "payer.account"),
        _needed("OutAcctName", account.name, "payer.account (its configured name)"),
    ]


def _payee_members(profile: BankProfile, order: PaymentOrder, where: str) -> bodies.Members:
    """Return what 4004 and a row of 4018 have in common; ``where`` stands before our names."""
    if not 0 < order.amount.fen <= AMOUNT_MAX.fen:
        msg = f"{where}amount: TranAmount must be above 0.00 and at most {AMOUNT_MAX}"
        raise BodyError(msg)
    same_bank = is_same_bank(profile, order)
    code = _payee_code(order, profile.accounts.get(order.payee.account))
    bank_name = _payee_bank_name(profile, order, code, same_bank=same_bank)
    members = []
    if code and not same_bank:
        members.append(_member("InAcctBankNode", code, f"{where}payee.bank_code"))
    members += [
        _needed("InAcctNo", order.payee.account, f"{where}payee.account"),
        _needed("InAcctName", order.payee.name, f"{where}payee.name"),
        _needed("InAcctBankName", bank_name, f"{where}payee.bank_name"),
        ("TranAmount", str(order.amount)),
    ]
    if order.purpose:
        members.append(_member("UseEx", order.purpose, f"{where}purpose"))
    return [*members, ("UnionFlag", "1" if same_bank else "0")]


def batch(profile: BankProfile, order: BatchOrder, reference: ClientRef) -> bytes:
    """Return the body of 4018: every row is debited by itself, so that each has its own line.

    Raises:
        BodyError: the bank can't carry it; the message names the row.
    """
    rows_max = profile.card.batch.rows_max
    if len(order.rows) > rows_max:
        msg = f"rows: this bank takes at most {rows_max} payments in one batch"
        raise BodyError(msg)
    if order.amount > AMOUNT_MAX:
        msg = f"rows: totalAmt must be at most {AMOUNT_MAX}"
        raise BodyError(msg)
    members = [
        _needed("ThirdVoucher", reference, "client_ref"),
        ("totalCts", str(len(order.rows))),
        ("totalAmt", str(order.amount)),
        ("BSysFlag", _SYS_FLAGS[Urgency.NORMAL]),
        ("CcyCode", CURRENCY),
        *_payer_members(profile, order.payer),
        ("PayType", _DEBIT_EACH_ROW),
        # Their values are not known; nothing marks them as optional either.
        ("BizFlag1", ""),
        ("BookingDate", ""),
    ]
    rows = [
        [
            ("SThirdVoucher", row_ref(reference, place)),
            *_payee_members(profile, row, f"rows[{place}]."),
            ("AddrFlag", _OTHER_CITY),
            ("SysFlag", _SYS_FLAGS[row.urgency]),
        ]
        for place, row in enumerate(order.rows)
    ]
    text = bodies.write(bodies.REQUEST_DECLARATION, members, rows, BATCH_ROW)
    return text.encode("gbk")


def batch_page(cursor: str) -> int:
    """Return which page of 4015 a query is for, from 1.

    Raises:
        BodyError: its cursor is not one of ours.
    """
    page = cursor or "1"
    if not (page.isascii() and page.isdecimal() and len(page) <= 3 and int(page) > 0):
        msg = f"cursor {page[:40]!r} is not of this bank"
        raise BodyError(msg)
    return int(page)


def batch_status(query: BatchQuery) -> bytes:
    """Return the body of 4015 for one page of all rows, whatever became of them."""
    return _body(
        [
            _needed("OrigThirdVoucher", query.client_ref, "client_ref"),
            ("QueryType", _ALL_ROWS),
            ("PageCts", str(BATCH_ROWS_MAX)),
            ("PageNo", str(batch_page(query.cursor))),
        ]
    )


def _payee_bank_name(
    profile: BankProfile, order: PaymentOrder, code: str, *, same_bank: bool
) -> str:
    own = profile.accounts.get(order.payee.account)
    options: PinganOptions = profile.options
    return (
        order.payee.bank_name
        or (own.bank_title if own else "")
        or (options.bank_title if same_bank else _BANK_TITLES.get(code[:3], ""))
    )


def status(query: StatusQuery) -> bytes:
    """Return the body of 4005: asked by our voucher, never by the bank's numbers."""
    return _body([_needed("OrigThirdVoucher", query.client_ref, "client_ref")])


def bank_codes(query: BankCodeQuery) -> bytes:
    """Return the body of 4017, which has no pages."""
    if query.cursor:
        msg = "cursor: this bank tells all codes at once"
        raise BodyError(msg)
    return _body([("BankNo", query.bank_class), _member("KeyWord", query.keyword, "keyword")])


def returned(profile: BankProfile, query: ReturnedQuery) -> bytes:
    """Return the body of 4019 for one page.

    Raises:
        BodyError: not an account of ours, too many days, or a cursor of something else.
    """
    own_account(profile, query.account, "account")
    if not 0 <= (query.last_day - query.first_day).days < RETURNED_DAYS_MAX:
        msg = f"from, to: this bank tells {RETURNED_DAYS_MAX} days of returned payments at once"
        raise BodyError(msg)
    page = query.cursor or "1"
    if not (page.isascii() and page.isdecimal() and 0 < int(page[:6]) <= PAGES_MAX):
        msg = f"cursor {page[:40]!r} is not of this bank"
        raise BodyError(msg)
    return _body(
        [
            _needed("AccNo", query.account, "account"),
            ("StartDate", f"{query.first_day:%Y%m%d}"),
            ("EndDate", f"{query.last_day:%Y%m%d}"),
            ("PageNo", page),
            ("PageCts", str(RETURNED_ROWS)),
        ]
    )


def statement(
    profile: BankProfile, query: StatementQuery, cursor: Cursor, today: BusinessDate
) -> bytes:
    """Return the body of 4008 or 4013 for one page.

    Raises:
        BodyError: the days lie in the future, or today is mixed with the past.
    """
    own_account(profile, query.account, "account")
    if query.last_day > today:
        msg = f"to: {query.last_day} is after today, {today}"
        raise BodyError(msg)
    if query.first_day < today == query.last_day:
        msg = "from, to: this bank does not mix today with earlier days"
        raise BodyError(msg)
    members = [_needed("AcctNo", query.account, "account"), ("CcyCode", CURRENCY)]
    asked_on = cursor.asked_on
    if f"{today:%Y%m%d}" != asked_on == f"{query.last_day:%Y%m%d}":
        msg = "cursor: the day changed while today's statement was being read; start it again"
        raise BodyError(msg)
    if cursor.trade == TODAY:
        return _body(
            [
                *members,
                ("PageNo", str(cursor.page)),
                ("JournalNo", cursor.journal),
                ("LogCount", cursor.log_count),
            ]
        )
    return _body(
        [
            *members,
            ("BeginDate", f"{query.first_day:%Y%m%d}"),
            ("EndDate", f"{query.last_day:%Y%m%d}"),
            ("PageNo", str(cursor.page)),
            ("PageSize", str(cursor.rows)),
        ]
    )
