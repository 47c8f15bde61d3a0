"""One task as the engine holds it in memory, and the messages to and from its client."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from typing import Any, Literal

import attrs
import msgspec
import orjson

from fep.domain.clock import business_date
from fep.domain.ids import BankName, ClientName, ClientRef, TaskId, row_ref
from fep.domain.order import (
    MOVES_MONEY,
    PRIORITY_DEFAULT,
    BatchOrder,
    BatchQuery,
    Body,
    Kind,
    Order,
    PaymentOrder,
    StatusQuery,
    body_params,
)
from fep.store.chain import kept_text
from fep.tasks.matching import Payment
from fep.tasks.state import State


class Task(msgspec.Struct, eq=False, gc=False):
    """A task that is not at its end yet; the engine's lane owns it.

    A million of them may wait: they are small, and the garbage collector does not walk them.
    """

    seq: int
    """Place in the queue: given once, grows with each admission."""
    task_id: TaskId
    client: ClientName
    bank: BankName
    kind: Kind
    priority: int
    state: State
    submitted_at: dt.datetime
    expires_at: dt.datetime
    offers: int = 0
    body: Body | None = None
    client_ref: ClientRef | None = None
    bank_ref: str = ""
    sent_at: dt.datetime | None = None
    sent_to: str | None = None
    """Which system it was sent to; None where that is not known."""
    inquiries: int = 0
    inquire_at: dt.datetime | None = None
    attempts: int = 0
    """Times a query was sent without a clear answer, in this process."""
    claimed: bool = False
    """Somebody is changing it right now; nobody else may."""
    waited_s: float = 0.0
    """How long it was unknown before ``waited_from``: time that daemons lived through, no other."""
    waited_from: float = math.inf
    """Since when it is unknown in this process (trio's time)."""

    @property
    def moves_money(self) -> bool:
        """True where a repetition would pay twice."""
        return self.kind in MOVES_MONEY

    def wait_from(self, moment: float, waited_s: float = 0.0) -> None:
        """Note that it is unknown, and that so much of its waiting is over (trio's time)."""
        self.waited_s, self.waited_from = waited_s, moment

    def waited(self, moment: float) -> float:
        """Return for how many seconds it is unknown; never more than have really passed."""
        return self.waited_s + max(moment - self.waited_from, 0.0)


def status_query(task: Task) -> StatusQuery:
    """Return the question for what became of a payment that was sent."""
    assert isinstance(task.body, PaymentOrder)
    assert task.client_ref is not None
    assert task.sent_at is not None
    return StatusQuery(task.client_ref, task.body, business_date(task.sent_at), task.bank_ref)


def batch_query(task: Task) -> BatchQuery:
    """Return the question for the first page of a batch that was sent."""
    assert isinstance(task.body, BatchOrder)
    assert task.client_ref is not None
    assert task.sent_at is not None
    return BatchQuery(task.client_ref, task.body, business_date(task.sent_at))


def first_query(task: Task) -> StatusQuery | BatchQuery:
    """Return the question that a payment, single or of rows, is asked after by."""
    return batch_query(task) if isinstance(task.body, BatchOrder) else status_query(task)


def payment_of(task: Task, row: int = 0, bank_ref: str = "") -> Payment:
    """Return a payment that was sent as statements are searched for it.

    Args:
        task: single, or a batch.
        row: which of a batch.
        bank_ref: of that row.
    """
    assert isinstance(task.body, Order)
    assert task.client_ref is not None
    assert task.sent_at is not None
    order, reference = task.body, task.client_ref
    if isinstance(order, BatchOrder):
        order, reference = order.rows[row], row_ref(reference, row)
    return Payment(
        client_ref=reference,
        payer=order.payer,
        payee=order.payee.account,
        amount=order.amount,
        sent_at=task.sent_at,
        bank_ref=bank_ref if order is not task.body else task.bank_ref,
    )


class OvertakenError(Exception):
    """What a change was made for does not hold any more; nothing was changed."""


class QueryLostError(Exception):
    """A query got no clear answer; it may be asked again."""

    def __init__(self, code: str, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.code = code
        self.sent = sent


class Submission(msgspec.Struct, frozen=True, gc=False):
    """One ``task.submit``, already parsed."""

    task_id: TaskId
    bank: BankName
    kind: Kind
    priority: int = PRIORITY_DEFAULT
    expires_s: float | None = None
    body: Body | None = None


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """The task is on disk: newly, or it was there already (``known``)."""

    task_id: TaskId
    state: State
    known: bool


@attrs.frozen
class Refused:
    """Nothing was changed; ``code`` is one of the protocol's codes."""

    code: Literal[
        "NOT_FOUND",
        "NOT_PERMITTED",
        "TASK_CONFLICT",
        "BAD_STATE",
        "UNKNOWN_BANK",
        "UNSUPPORTED_KIND",
        "QUEUE_FULL",
        "LIMITED",
        "SHUTTING_DOWN",
        "STORE_FULL",
    ]
    message: str
    retry_after_s: float | None = None
    """When another try may be taken; None: nobody can say."""


Answer = Admitted | Refused
"""To a submission."""


@attrs.frozen
class Fetch:
    """Ask the client for the body of a task."""

    task_id: TaskId
    attempt: int


@attrs.frozen
class Delivery:
    """Tell the client a task's end; repeated until it acknowledges."""

    task_id: TaskId
    state: State
    result: Any
    """The canonical result as a JSON value, or None."""
    bank_code: str
    bank_message: str
    at: str


Message = Fetch | Delivery


def body_bytes(kind: Kind, body: Body) -> bytes:
    """Return the body as stored and digested: canonical JSON with sorted keys."""
    return orjson.dumps(
        {"kind": kind.value, "params": body_params(body)}, option=orjson.OPT_SORT_KEYS
    )


def digest(data: bytes) -> str:
    """Return the SHA-256 of exact bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def body_told(body_digest: str) -> str:
    """Return what the chain keeps of a body that a client gave when it was asked for it."""
    return f"body {body_digest}"


def end_told(bank_code: str, bank_message: str, result: bytes | None) -> str:
    """Return what the chain keeps of an end that two persons confirmed: a digest of its words.

    Args:
        bank_code: the column of the task's row.
        bank_message: the same.
        result: the same.
    """
    # Without the character that one of the databases has not.
    words = kept_text(f"{len(bank_code)} {len(bank_message)} {bank_code}{bank_message}")
    return f"told {digest(words.encode(errors='replace') + (result or b''))}"
