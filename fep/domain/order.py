"""The canonical operations (规范交易) and their results, parsed once at the boundary.

Every bank adapter translates these to its own trades; everybody above speaks only these.
Members and their meaning: the control protocol's reference, section "Canonical params".
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, Literal, assert_never

import attrs

from fep.domain.clock import BusinessDate, to_text
from fep.domain.errors import BodyError
from fep.domain.ids import (
    BATCH_ROWS_MAX,
    AccountNumber,
    ClientRef,
    TaskId,
    parse_account_number,
    parse_task_id,
    row_ref,
)
from fep.domain.money import FEN_MAX, ZERO, Cny

NAME_CHARS_MAX: Final = 60
ROW_MESSAGE_CHARS_MAX: Final = 100
"""Of the bank's words on one row of a batch: the result must fit one line."""
PURPOSE_CHARS_MAX: Final = 30
"""Smallest room any supported bank gives the purpose (Ping An UseEx, C(30))."""
STATEMENT_DAYS_MAX: Final = 100
RETURNED_DAYS_MAX: Final = 30
"""As Ping An's 4019; the least of the banks that have such a list."""

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
"""The library's own reader takes weeks and days without hyphens too."""


PRIORITY_MIN: Final = 0
PRIORITY_MAX: Final = 9
"""Goes first."""
PRIORITY_DEFAULT: Final = 5


class Kind(StrEnum):
    """Canonical operations; an adapter declares which it has."""

    # An enum's own hash is a call of Python; these are asked for at each task.
    __hash__ = str.__hash__

    BALANCE = "balance"
    TRANSFER = "transfer"
    BATCH_TRANSFER = "batch_transfer"
    TRANSFER_STATUS = "transfer_status"
    STATEMENT = "statement"
    RETURNED_PAYMENTS = "returned_payments"
    BANK_CODE_LOOKUP = "bank_code_lookup"
    POOL_SWEEP = "pool_sweep"
    RECEIPT = "receipt"


MOVES_MONEY: Final = frozenset({Kind.TRANSFER, Kind.BATCH_TRANSFER, Kind.POOL_SWEEP})
"""Kinds whose repetition would pay twice: after the first byte only evidence closes them."""


class Urgency(StrEnum):
    """How fast an interbank payment should be cleared (加急标志)."""

    NORMAL = "normal"
    URGENT = "urgent"


class Sweep(StrEnum):
    """Which way the bank's own pooling trade moves money (归集方向)."""

    UP = "up"
    """From the child to the parent (上划)."""
    DOWN = "down"
    """From the parent to the child (下拨)."""


class Direction(StrEnum):
    """Side of a statement line, seen from the account's holder."""

    DEBIT = "debit"
    CREDIT = "credit"

    @property
    def opposite(self) -> Direction:
        """The other side: where a negative amount of this one belongs."""
        return Direction.CREDIT if self is Direction.DEBIT else Direction.DEBIT


@attrs.frozen
class Payee:
    """Who gets the money; an own account or a stranger's."""

    account: AccountNumber
    name: str
    bank_code: str = ""
    """CNAPS code (联行号), 12 digits, or empty."""
    bank_name: str = ""
    kind: Literal["corporate", "personal"] = "corporate"


@attrs.frozen
class BalanceQuery:
    """Ask one account's balance (余额查询)."""

    account: AccountNumber


@attrs.frozen
class PaymentOrder:
    """One payment (单笔转账); one that exists is valid."""

    payer: AccountNumber
    payee: Payee
    amount: Cny
    currency: Literal["CNY"] = "CNY"
    purpose: str = ""
    urgency: Urgency = Urgency.NORMAL
    sweep: Sweep | None = None
    """By the bank's own pooling trade (手工归集): both accounts are ours, the payee has no name."""


@attrs.frozen
class BatchOrder:
    """Several payments of one payer in one request (批量转账); one that exists is valid."""

    rows: tuple[PaymentOrder, ...]
    """From 1 to ``BATCH_ROWS_MAX``, all of one payer."""

    @property
    def payer(self) -> AccountNumber:
        """Whose account pays them all."""
        return self.rows[0].payer

    @property
    def amount(self) -> Cny:
        """What all rows come to."""
        return total([row.amount for row in self.rows])


@attrs.frozen
class TransferStatusRequest:
    """Ask what became of an earlier transfer task of the same client (转账状态查询)."""

    task_id: TaskId


@attrs.frozen
class StatusQuery:
    """What an adapter needs to ask its bank about one payment."""

    client_ref: ClientRef
    order: PaymentOrder
    submitted_on: BusinessDate
    bank_ref: str = ""


@attrs.frozen
class BatchQuery:
    """What an adapter needs to ask its bank about the rows of one batch, one page at a time."""

    client_ref: ClientRef
    order: BatchOrder
    submitted_on: BusinessDate
    cursor: str = ""
    """The adapter's own mark of the next page; empty for the first."""


@attrs.frozen
class StatementQuery:
    """Ask for an account's lines of some business days (明细查询), one page at a time."""

    account: AccountNumber
    first_day: BusinessDate
    last_day: BusinessDate
    cursor: str = ""
    """The adapter's own mark of the next page; empty for the first."""


@attrs.frozen
class ReturnedQuery:
    """Ask the bank's own list of payments that came back (退票查询), one page at a time."""

    account: AccountNumber
    first_day: BusinessDate
    last_day: BusinessDate
    cursor: str = ""
    """The adapter's own mark of the next page; empty for the first."""


@attrs.frozen
class BankCodeQuery:
    """Ask the bank for CNAPS codes (联行号查询)."""

    bank_class: str
    """Three digits: the first ones of the codes looked for."""
    keyword: str
    """Part of a branch's name, such as a city; empty: all of the class."""
    cursor: str = ""


Lookup = ReturnedQuery | BankCodeQuery
"""Queries that only some banks have; ``LookupCodec`` carries them."""
Batch = BatchOrder | BatchQuery
"""What only some banks have, too; ``BatchCodec`` carries it."""
Order = PaymentOrder | BatchOrder
"""Bodies of the kinds in ``MOVES_MONEY``: they change something at the bank, so are sent once."""
Query = BalanceQuery | TransferStatusRequest | StatementQuery | Lookup
"""Bodies that change nothing: asked again when they are lost."""
Body = Order | Query
"""What a client's task body parses to."""
Operation = BalanceQuery | PaymentOrder | StatusQuery | StatementQuery
"""What an adapter is asked to do."""


@attrs.frozen
class Balance:
    """An account's balance as the bank told it."""

    account: AccountNumber
    available: Cny
    book: Cny
    as_of: dt.datetime
    held: Cny | None = None
    currency: str = "CNY"
    status: str = ""


@attrs.frozen
class PaymentReceipt:
    """What the bank said of a payment it took."""

    client_ref: ClientRef
    amount: Cny
    bank_ref: str = ""
    currency: str = "CNY"
    booked_on: BusinessDate | None = None
    fee: Cny | None = None
    returned_on: BusinessDate | None = None
    """When the money came back (退票), where that is known."""


class PaymentState(StrEnum):
    """What a status query says of a payment."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    PROCESSING = "processing"
    RETURNED = "returned"
    NO_RECORD = "no_record"
    UNKNOWN = "unknown"


@attrs.frozen
class PaymentStatus:
    """The bank's word on one payment; only SUCCEEDED, REJECTED and RETURNED are final."""

    state: PaymentState
    code: str = ""
    message: str = ""
    bank_ref: str = ""
    booked_on: BusinessDate | None = None
    fee: Cny | None = None
    returned_on: BusinessDate | None = None
    is_elsewhere: bool = False
    """Whether it was sent to another system than the one that says this, as far as we know."""


@attrs.frozen
class BatchStatus:
    """The bank's word on rows of one batch; ``cursor`` as of ``Statement``."""

    rows: Mapping[int, PaymentStatus]
    """By their places in the batch; those that stand in no page are not decided."""
    cursor: str = ""
    is_over: bool = True
    """False while the bank says that it works on the batch still, whatever its rows say."""
    is_elsewhere: bool = False
    """As of ``PaymentStatus``."""


@attrs.frozen
class BatchReceipt:
    """What became of each row of a batch that is at its end."""

    client_ref: ClientRef
    order: BatchOrder
    rows: Mapping[int, PaymentStatus]
    bank_ref: str = ""


@attrs.frozen
class StatementEntry:
    """One line of a statement; amounts are positive, the direction says which way."""

    bank_ref: str
    booked_at: dt.datetime
    direction: Direction
    amount: Cny
    counterparty_account: str = ""
    counterparty_name: str = ""
    client_ref: str = ""
    balance_after: Cny | None = None
    purpose: str = ""
    fee: bool = False
    """True for a fee line that bears its payment's reference."""
    reversal: bool = False
    """True for a line that takes an earlier one back (冲账)."""


@attrs.frozen
class Statement:
    """One page of lines; ``cursor`` is what to put in the next query, empty at the end."""

    entries: tuple[StatementEntry, ...]
    cursor: str = ""


@attrs.frozen
class ReturnedPayment:
    """One payment of ours that came back (退票)."""

    client_ref: str
    """Our reference, empty where the bank does not tell it."""
    bank_ref: str
    amount: Cny
    submitted_on: BusinessDate | None
    returned_on: BusinessDate | None
    payee_account: str = ""
    payee_name: str = ""
    payee_bank_name: str = ""
    reason: str = ""


@attrs.frozen
class ReturnedPayments:
    """One page of payments that came back; ``cursor`` as of ``Statement``."""

    entries: tuple[ReturnedPayment, ...]
    cursor: str = ""


@attrs.frozen
class BankCode:
    """One branch's CNAPS code."""

    code: str
    name: str


@attrs.frozen
class BankCodes:
    """One page of CNAPS codes; ``cursor`` as of ``Statement``."""

    entries: tuple[BankCode, ...]
    cursor: str = ""


LookupResult = ReturnedPayments | BankCodes
BatchResult = BatchStatus | BatchReceipt
OperationResult = Balance | PaymentReceipt | PaymentStatus | Statement | LookupResult | BatchResult


def _members(
    params: object, where: str, required: frozenset[str], optional: frozenset[str]
) -> Mapping[str, object]:
    if not isinstance(params, dict):
        msg = f"{where} must be an object"
        raise BodyError(msg)
    for name in params:
        if name not in required and name not in optional:
            # Cut and escaped: a reason is stored and sent on, whatever the name was.
            shown = name if name.isidentifier() and len(name) <= 40 else ascii(name)[:60]
            msg = f"{where}.{shown} is not a known member"
            raise BodyError(msg)
    for name in sorted(required):
        if name not in params:
            msg = f"{where}.{name} is missing"
            raise BodyError(msg)
    return params


def _text(value: object, where: str, chars_max: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max or not value.isprintable():
        msg = f"{where} must be printable text of at most {chars_max} characters"
        raise BodyError(msg)
    return value


def _account(value: object, where: str) -> AccountNumber:
    try:
        return parse_account_number(_text(value, where, 35))
    except ValueError as error:
        msg = f"{where}: {error}"
        raise BodyError(msg) from error


def _amount(value: object, where: str) -> Cny:
    if not isinstance(value, str):
        msg = f'{where} must be text in quotes, such as "1234.50": a number may lose cents'
        raise BodyError(msg)
    try:
        amount = Cny.parse(_text(value, where, 20))
    except ValueError as error:
        msg = f"{where}: {error}"
        raise BodyError(msg) from error
    if not 0 < amount.fen <= FEN_MAX:
        msg = f"{where} must be above 0.00 and at most {Cny(FEN_MAX)}"
        raise BodyError(msg)
    return amount


def _day(value: object, where: str) -> BusinessDate:
    msg = f"{where} must be a date written YYYY-MM-DD"
    if not isinstance(value, str) or not _DAY.fullmatch(value):
        raise BodyError(msg)
    try:
        return BusinessDate(dt.date.fromisoformat(value))
    except ValueError as error:
        raise BodyError(msg) from error


def _payee(value: object, where: str) -> Payee:
    given = _members(
        value,
        where,
        frozenset({"account", "name"}),
        frozenset({"bank_code", "bank_name", "kind"}),
    )
    bank_code = _text(given.get("bank_code", ""), f"{where}.bank_code", 12)
    if bank_code and not (len(bank_code) == 12 and bank_code.isascii() and bank_code.isdigit()):
        msg = f"{where}.bank_code must be 12 digits (CNAPS) or left out"
        raise BodyError(msg)
    kind = given.get("kind", "corporate")
    if kind not in ("corporate", "personal"):
        msg = f"{where}.kind must be 'corporate' or 'personal'"
        raise BodyError(msg)
    name = _text(given["name"], f"{where}.name", NAME_CHARS_MAX)
    if not name.strip():
        msg = f"{where}.name must not be empty"
        raise BodyError(msg)
    return Payee(
        account=_account(given["account"], f"{where}.account"),
        name=name,
        bank_code=bank_code,
        bank_name=_text(given.get("bank_name", ""), f"{where}.bank_name", NAME_CHARS_MAX),
        kind="personal" if kind == "personal" else "corporate",
    )


def _balance(params: object) -> BalanceQuery:
    given = _members(params, "params", frozenset({"account"}), frozenset())
    return BalanceQuery(_account(given["account"], "account"))


def _transfer(params: object) -> PaymentOrder:
    given = _members(
        params,
        "params",
        frozenset({"payer", "payee", "amount", "currency"}),
        frozenset({"purpose", "urgency"}),
    )
    payer = _payer(given["payer"])
    _check_currency(given["currency"])
    return _payment(payer, given, "")


def _payer(value: object) -> AccountNumber:
    payer = _members(value, "payer", frozenset({"account"}), frozenset())
    return _account(payer["account"], "payer.account")


def _check_currency(value: object) -> None:
    if value != "CNY":
        msg = "currency must be 'CNY', the only one supported"
        raise BodyError(msg)


def _payment(payer: AccountNumber, given: Mapping[str, object], where: str) -> PaymentOrder:
    """Return the payment of these members, whose names stand behind ``where``."""
    urgency = given.get("urgency", "normal")
    if urgency not in ("normal", "urgent"):
        msg = f"{where}urgency must be 'normal' or 'urgent'"
        raise BodyError(msg)
    order = PaymentOrder(
        payer=payer,
        payee=_payee(given["payee"], f"{where}payee"),
        amount=_amount(given["amount"], f"{where}amount"),
        purpose=_text(given.get("purpose", ""), f"{where}purpose", PURPOSE_CHARS_MAX),
        urgency=Urgency(urgency),
    )
    if order.payer == order.payee.account:
        msg = f"payer.account and {where}payee.account are the same"
        raise BodyError(msg)
    return order


def _pool_sweep(params: object) -> PaymentOrder:
    needed = frozenset({"parent", "child", "direction", "amount"})
    given = _members(params, "params", needed, frozenset({"currency"}))
    parent = _members(given["parent"], "parent", frozenset({"account"}), frozenset())
    child = _members(given["child"], "child", frozenset({"account"}), frozenset())
    top = _account(parent["account"], "parent.account")
    below = _account(child["account"], "child.account")
    if top == below:
        msg = "parent.account and child.account are the same"
        raise BodyError(msg)
    _check_currency(given.get("currency", "CNY"))
    if given["direction"] not in ("up", "down"):
        msg = "direction must be 'up' or 'down'"
        raise BodyError(msg)
    sweep = Sweep(given["direction"])
    payer, payee = (below, top) if sweep is Sweep.UP else (top, below)
    return PaymentOrder(payer, Payee(payee, ""), _amount(given["amount"], "amount"), sweep=sweep)


def _batch(params: object) -> BatchOrder:
    given = _members(params, "params", frozenset({"payer", "rows"}), frozenset({"currency"}))
    payer = _payer(given["payer"])
    _check_currency(given.get("currency", "CNY"))
    rows = given["rows"]
    if not isinstance(rows, list) or not 0 < len(rows) <= BATCH_ROWS_MAX:
        msg = f"rows must be a list of 1 to {BATCH_ROWS_MAX} payments"
        raise BodyError(msg)
    order = BatchOrder(tuple(_row(payer, row, f"rows[{at}]") for at, row in enumerate(rows)))
    if order.amount.fen > FEN_MAX:
        msg = f"rows must come to at most {Cny(FEN_MAX)} together"
        raise BodyError(msg)
    return order


def _row(payer: AccountNumber, value: object, where: str) -> PaymentOrder:
    needed, more = frozenset({"payee", "amount"}), frozenset({"purpose", "urgency"})
    return _payment(payer, _members(value, where, needed, more), f"{where}.")


def _transfer_status(params: object) -> TransferStatusRequest:
    given = _members(params, "params", frozenset({"task_id"}), frozenset())
    try:
        return TransferStatusRequest(parse_task_id(_text(given["task_id"], "task_id", 64)))
    except ValueError as error:
        raise BodyError(str(error)) from error


def _statement(params: object) -> StatementQuery:
    given = _members(params, "params", frozenset({"account", "from", "to"}), frozenset())
    account = _account(given["account"], "account")
    return StatementQuery(account, *_days(given, STATEMENT_DAYS_MAX, "a statement"))


def _days(
    given: Mapping[str, object], days_max: int, what: str
) -> tuple[BusinessDate, BusinessDate]:
    first, last = _day(given["from"], "from"), _day(given["to"], "to")
    if last < first:
        msg = "'to' must not be before 'from'"
        raise BodyError(msg)
    if (last - first).days >= days_max:
        msg = f"{what} covers at most {days_max} days"
        raise BodyError(msg)
    return first, last


def _returned(params: object) -> ReturnedQuery:
    given = _members(params, "params", frozenset({"account", "from", "to"}), frozenset())
    account = _account(given["account"], "account")
    return ReturnedQuery(account, *_days(given, RETURNED_DAYS_MAX, "a list of returned payments"))


def _bank_code(params: object) -> BankCodeQuery:
    given = _members(params, "params", frozenset({"bank_class"}), frozenset({"keyword"}))
    bank_class = _text(given["bank_class"], "bank_class", 3)
    if not (len(bank_class) == 3 and bank_class.isascii() and bank_class.isdigit()):
        msg = "bank_class must be 3 digits, the first ones of a CNAPS code"
        raise BodyError(msg)
    return BankCodeQuery(bank_class, _text(given.get("keyword", ""), "keyword", NAME_CHARS_MAX))


_PARSERS: Final[Mapping[Kind, Callable[[object], Body]]] = {
    Kind.BALANCE: _balance,
    Kind.TRANSFER: _transfer,
    Kind.BATCH_TRANSFER: _batch,
    Kind.TRANSFER_STATUS: _transfer_status,
    Kind.STATEMENT: _statement,
    Kind.RETURNED_PAYMENTS: _returned,
    Kind.BANK_CODE_LOOKUP: _bank_code,
    Kind.POOL_SWEEP: _pool_sweep,
}


def parse_body(kind: Kind, params: object) -> Body:
    """Return the operation that a task body asks for.

    Args:
        kind: what the task was submitted as.
        params: the decoded JSON value of the body's ``params``.

    Raises:
        BodyError: a member is missing, unknown or wrong; its message names it.
    """
    parser = _PARSERS.get(kind)
    if parser is None:
        msg = f"kind {kind.value!r} has no canonical parameters yet"
        raise BodyError(msg)
    return parser(params)


def _payment_params(order: PaymentOrder) -> dict[str, object]:
    """Return the members of a payment that a row of a batch has, too."""
    payee = {"account": order.payee.account, "name": order.payee.name}
    if order.payee.bank_code:
        payee["bank_code"] = order.payee.bank_code
    if order.payee.bank_name:
        payee["bank_name"] = order.payee.bank_name
    if order.payee.kind != "corporate":
        payee["kind"] = order.payee.kind
    params: dict[str, object] = {"payee": payee, "amount": str(order.amount)}
    if order.purpose:
        params["purpose"] = order.purpose
    if order.urgency is not Urgency.NORMAL:
        params["urgency"] = order.urgency.value
    return params


def body_params(body: Body) -> dict[str, object]:
    """Return the canonical JSON value of a body: what :func:`parse_body` reads back equal."""
    match body:
        case BalanceQuery():
            return {"account": body.account}
        case PaymentOrder(sweep=Sweep() as sweep):
            ends = (body.payee.account, body.payer)
            parent, child = ends if sweep is Sweep.UP else ends[::-1]
            return {
                "parent": {"account": parent},
                "child": {"account": child},
                "direction": sweep.value,
                "amount": str(body.amount),
                "currency": body.currency,
            }
        case PaymentOrder():
            payer = {"payer": {"account": body.payer}, "currency": body.currency}
            return payer | _payment_params(body)
        case BatchOrder():
            rows = [_payment_params(row) for row in body.rows]
            return {"payer": {"account": body.payer}, "currency": "CNY", "rows": rows}
        case TransferStatusRequest():
            return {"task_id": body.task_id}
        case StatementQuery() | ReturnedQuery():
            return {
                "account": body.account,
                "from": body.first_day.isoformat(),
                "to": body.last_day.isoformat(),
            }
        case BankCodeQuery():
            asked: dict[str, object] = {"bank_class": body.bank_class}
            return asked | ({"keyword": body.keyword} if body.keyword else {})
        case _:
            assert_never(body)


def _entry_value(entry: StatementEntry) -> dict[str, object]:
    value: dict[str, object] = {
        "bank_ref": entry.bank_ref,
        "booked_at": to_text(entry.booked_at),
        "direction": entry.direction.value,
        "amount": str(entry.amount),
        "counterparty": {"account": entry.counterparty_account, "name": entry.counterparty_name},
        "purpose": entry.purpose,
    }
    if entry.client_ref:
        value["client_ref"] = entry.client_ref
    if entry.balance_after is not None:
        value["balance_after"] = str(entry.balance_after)
    if entry.fee:
        value["fee"] = True
    if entry.reversal:
        value["reversal"] = True
    return value


def _returned_value(one: ReturnedPayment) -> dict[str, object]:
    value: dict[str, object] = {
        "client_ref": one.client_ref,
        "bank_ref": one.bank_ref,
        "amount": str(one.amount),
        "payee": {
            "account": one.payee_account,
            "name": one.payee_name,
            "bank_name": one.payee_bank_name,
        },
        "reason": one.reason,
    }
    days = {"submitted_on": one.submitted_on, "returned_on": one.returned_on}
    return value | {name: day.isoformat() for name, day in days.items() if day is not None}


def _row_value(row: int, status: PaymentStatus) -> dict[str, object]:
    """Return what is told of one row of a batch; what the bank left out is left out."""
    texts = {
        "bank_ref": status.bank_ref,
        "bank_code": status.code,
        "bank_message": status.message[:ROW_MESSAGE_CHARS_MAX],
        "booked_on": status.booked_on and status.booked_on.isoformat(),
        "fee": status.fee and str(status.fee),
        "returned_on": status.returned_on and status.returned_on.isoformat(),
    }
    told: dict[str, object] = {"row": row, "state": status.state.value}
    return told | {name: text for name, text in texts.items() if text}


def _batch_value(receipt: BatchResult) -> dict[str, object]:
    if isinstance(receipt, BatchStatus):
        shown = [_row_value(at, row) for at, row in sorted(receipt.rows.items())]
        told: dict[str, object] = {"state": _batch_state(receipt).value, "rows": shown}
        return told | ({"other_system": True} if receipt.is_elsewhere else {})
    rows = []
    for at, status in sorted(receipt.rows.items()):
        own = {"client_ref": row_ref(receipt.client_ref, at)}
        amount = {"amount": str(receipt.order.rows[at].amount)}
        rows.append(_row_value(at, status) | own | amount)
    sums = batch_sums(rows)
    return {"bank_ref": receipt.bank_ref, "client_ref": receipt.client_ref, "rows": rows} | sums


def _batch_state(status: BatchStatus) -> PaymentState:
    """Return what a batch is by the bank's word on its rows: decided when every row is."""
    said = {row.state for row in status.rows.values()}
    if len(said) == 1 and said <= {PaymentState.NO_RECORD, PaymentState.UNKNOWN}:
        return said.pop()
    decided = {PaymentState.SUCCEEDED, PaymentState.REJECTED, PaymentState.RETURNED}
    if status.cursor or not status.is_over or not said <= decided:
        return PaymentState.PROCESSING
    ends = (PaymentState.RETURNED, PaymentState.SUCCEEDED)
    return next((end for end in ends if end in said), PaymentState.REJECTED)


def batch_sums(rows: list[dict[str, object]]) -> dict[str, object]:
    """Return how many of a batch's rows, as they are told, ended how, and what was paid.

    What came back (退票) was not paid.
    """
    states = [row["state"] for row in rows]
    paid = [Cny.parse(str(row["amount"])) for row in rows if row["state"] == PaymentState.SUCCEEDED]
    ends = (PaymentState.SUCCEEDED, PaymentState.REJECTED, PaymentState.RETURNED)
    counts: dict[str, object] = {end.value: states.count(end.value) for end in ends}
    return counts | {"amount_succeeded": str(total(paid)), "currency": "CNY"}


def _entries(result: Statement | ReturnedPayments | BankCodes) -> list[dict[str, object]]:
    match result:
        case Statement():
            return [_entry_value(one) for one in result.entries]
        case ReturnedPayments():
            return [_returned_value(one) for one in result.entries]
        case BankCodes():
            return [{"code": one.code, "name": one.name} for one in result.entries]
        case _:
            assert_never(result)


def result_value(result: OperationResult) -> dict[str, object]:  # noqa: C901, PLR0912 - a case a kind
    """Return the JSON value of a result as ``task.result`` carries it."""
    match result:
        case Balance():
            value: dict[str, object] = {
                "account": result.account,
                "currency": result.currency,
                "available": str(result.available),
                "book": str(result.book),
                "as_of": to_text(result.as_of),
            }
            if result.held is not None:
                value["held"] = str(result.held)
            if result.status:
                value["status"] = result.status
            return value
        case PaymentReceipt():
            value = {
                "bank_ref": result.bank_ref,
                "client_ref": result.client_ref,
                "amount": str(result.amount),
                "currency": result.currency,
            }
            if result.booked_on is not None:
                value["booked_on"] = result.booked_on.isoformat()
            if result.fee is not None:
                value["fee"] = str(result.fee)
            if result.returned_on is not None:
                value["returned_on"] = result.returned_on.isoformat()
            return value
        case PaymentStatus():
            value = {"state": result.state.value}
            if result.bank_ref:
                value["bank_ref"] = result.bank_ref
            if result.state is PaymentState.RETURNED:
                value["returned"] = True
            if result.is_elsewhere:
                value["other_system"] = True
            return value
        case BatchStatus() | BatchReceipt():
            return _batch_value(result)
        case Statement() | ReturnedPayments() | BankCodes():
            return {"entries": _entries(result), "complete": not result.cursor}
        case _:
            assert_never(result)


def total(amounts: list[Cny]) -> Cny:
    """Return the sum, zero for none."""
    return sum(amounts, start=ZERO)
