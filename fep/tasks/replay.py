"""What today's adapter makes of bytes that were kept (回放), beside what was noted then. Pure.

The causal chain keeps with each answer of a bank what it was taken for (``evidence.told``), and the
task's row what its client was told. Both are made anew here from the same bytes. A request that was
sent is prepared anew from the task's body; a signature can't be, so what stands around it is
compared.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs
import orjson

from fep.adapters.api import (
    Accepted,
    BankCodec,
    Context,
    Draft,
    InOrderFramer,
    LookupCodec,
    Outcome,
    Reply,
    SealingCodec,
    SecretiveCodec,
    TokenCodec,
    Unclear,
)
from fep.adapters.card import BehaviourCard
from fep.domain.clock import BusinessDate, business_date, from_text
from fep.domain.errors import BodyError, FepError, RemoteProtocolError
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    BatchOrder,
    BatchStatus,
    Order,
    ReturnedQuery,
    Statement,
    StatementQuery,
)
from fep.tasks import evidence
from fep.tasks.asking import prepared, understood
from fep.tasks.matching import Absent, Ambiguous, Found, Payment, Returns, find_payment
from fep.tasks.result import end_columns
from fep.tasks.state import Event, State
from fep.tasks.task import Task, batch_query, digest, first_query, payment_of, status_query

SIGNATURE_BYTES_MAX: Final = 4096
EXCERPT_BYTES: Final = 24
"""Of two requests from where they differ."""
NOTHING_NOTED: Final = "nothing noted"
SAME_BYTES: Final = "the same bytes"
ENDS: Final = frozenset(
    {Event.BANK_DONE, Event.BANK_REFUSED, Event.PROVED_DONE, Event.PROVED_REFUSED}
)
"""What brings a payment to an end that its row tells; a return changes the row once more."""
TO_PAYMENT: Final = frozenset(
    {Event.BANK_DONE, Event.BANK_REFUSED, Event.BANK_ACCEPTED, Event.OUTCOME_LOST}
)


class Kept(StrEnum):
    """What a message that was kept is."""

    REQUEST = "request"
    ANSWER = "answer"
    """To the payment."""
    LATE = "late answer"
    """To the payment, kept without a step of its task."""
    STATUS = "status"
    """Answers a status query."""
    PAGE = "page"
    """Of a statement."""
    QUERY = "query's answer"
    """On a tape only."""
    UNMATCHED = "unmatched"
    """It answered nothing that was known."""


@attrs.frozen
class Recorded:
    """One message as it was kept, and what the chain noted with it."""

    at: str
    sent: bool
    correlation: str
    data: bytes = attrs.field(repr=False)
    events: tuple[str, ...] = ()
    """Steps of its task that it was kept with, none of a late or unmatched answer."""
    state: str = ""
    """Of the task after them."""
    cause: str = ""
    taken_for: str = ""
    configuration: str = ""

    @property
    def kept(self) -> Kept:
        """What it is, by what was noted with it."""
        if self.sent:
            return Kept.REQUEST
        if not self.events:
            return Kept.LATE
        if evidence.line_read(self.taken_for) is not None:
            return Kept.PAGE
        if TO_PAYMENT.intersection(self.events):
            return Kept.ANSWER
        # Proofs come of status queries and of late answers to the payment itself.
        by_status = "inquired" in self.events or self.taken_for.startswith("status ")
        return Kept.STATUS if by_status else Kept.ANSWER


@attrs.frozen
class Ended:
    """What a task's row says of its end."""

    bank_code: str
    bank_message: str
    bank_ref: str
    result: bytes | None


@attrs.frozen
class Reading:
    """One message read by today's adapter."""

    kept: Kept
    recorded: Recorded
    then: str
    now: str
    changes: tuple[str, ...] = ()
    """What else is another than it was: members of what the client was told."""

    @property
    def differs(self) -> bool:
        """True when today's adapter says otherwise."""
        return bool(self.changes) or self.then not in (self.now, NOTHING_NOTED)

    def value(self) -> dict[str, Any]:
        """Return it as one JSON object, without the bytes."""
        one = self.recorded
        return {
            "at": one.at,
            "kind": self.kept.value,
            "correlation": one.correlation,
            "digest": digest(one.data),
            "bytes": len(one.data),
            "events": list(one.events),
            "configuration": one.configuration,
            "then": self.then,
            "now": self.now,
            "changes": list(self.changes),
            "differs": self.differs,
        }


Rivals = Callable[[Payment], Sequence[Payment]]
"""Gives our payments that one line without a reference could be as well."""


def read_task(
    codec: BankCodec,
    card: BehaviourCard,
    task: Task,
    ended: Ended,
    recorded: Iterable[Recorded],
    rivals: Rivals,
) -> list[Reading]:
    """Return what today's adapter makes of all that was kept of a task, in order.

    Args:
        codec: of the task's bank, as it is configured today.
        card: that bank's behaviour card.
        task: the task with its body, as it is stored.
        ended: what its row says.
        recorded: its messages, in the order they were kept.
        rivals: asked only for a line without a reference.
    """
    readings = []
    pages: list[BatchStatus] = []
    for one in recorded:
        if one.sent:
            readings.append(_read_request(codec, task, one))
            continue
        reading, outcome = _read_answer(codec, card, task, one, ended, rivals)
        if outcome is not None and isinstance(task.body, BatchOrder):
            outcome = _with_pages_before(task.body, one, outcome, pages)
        if outcome is not None and _tells_end(task, one):
            changes = reading.changes + tuple(_told_otherwise(task, one, outcome, ended))
            reading = attrs.evolve(reading, changes=changes)
        readings.append(reading)
    return readings


def _with_pages_before(
    order: BatchOrder, one: Recorded, outcome: Outcome, pages: list[BatchStatus]
) -> Outcome:
    """Return what a page of a batch's rows says with those before it, which are kept as read."""
    if not isinstance(outcome, Accepted) or not isinstance(outcome.result, BatchStatus):
        return outcome
    if not evidence.page_read(one.taken_for):
        pages.clear()
    pages.append(outcome.result)
    whole = evidence.joined(order, pages)
    return whole if isinstance(whole, Unclear) else attrs.evolve(outcome, result=whole)


# -- what the bank answered -------------------------------------------------------------------


def only_reply(codec: BankCodec, data: bytes) -> Reply:
    """Return the one reply that these bytes are.

    Raises:
        RemoteProtocolError: today's adapter can't read them, or not as one frame.
    """
    framer = codec.framer()
    replies = framer.receive_data(data)
    if len(replies) != 1:
        msg = f"{len(replies)} frames where one was"
        raise RemoteProtocolError(msg)
    framer.receive_eof()
    return replies[0]


def read_query_answer(codec: BankCodec, task: Task | None, one: Recorded) -> Reading:
    """Return what today's adapter makes of an answer that the store does not keep: a query's.

    Args:
        codec: of the task's bank.
        task: whose it is, None where the store does not know it.
        one: the answer as a tape has it.
    """
    try:
        reply = only_reply(codec, one.data)
    except RemoteProtocolError as error:
        return Reading(
            Kept.QUERY, one, NOTHING_NOTED, f"not understood: {error}", ("not understood",)
        )
    body = None if task is None else task.body
    if task is not None and isinstance(body, Order):
        # To the payment itself or to a query after it: the other reading proves nothing.
        told = [
            evidence.told(outcome)
            for outcome in (
                evidence.of_answer(codec, body, task.client_ref, reply),
                understood(codec, first_query(task), reply),
            )
            if not isinstance(outcome, Unclear)
        ]
        now = told[0] if told else "it proves nothing"
    elif isinstance(body, BalanceQuery | StatementQuery):
        now = evidence.told(codec.outcome(body, reply))
    elif isinstance(body, ReturnedQuery | BankCodeQuery) and isinstance(codec, LookupCodec):
        now = evidence.told(codec.looked_up(body, reply))
    else:
        now = f"{reply.trade} {reply.code} {reply.message}".strip()
    return Reading(Kept.QUERY, one, NOTHING_NOTED, now)


def _read_answer(
    codec: BankCodec,
    card: BehaviourCard,
    task: Task,
    one: Recorded,
    ended: Ended,
    rivals: Rivals,
) -> tuple[Reading, Outcome | None]:
    """Return the reading, and what today's code would close the payment by, None for nothing."""
    kept, then = one.kept, one.taken_for or NOTHING_NOTED
    try:
        reply = only_reply(codec, one.data)
    except RemoteProtocolError as error:
        return Reading(kept, one, then, f"not understood: {error}", ("not understood",)), None
    changes: tuple[str, ...] = ()
    # Where answers come by their order the link has written the number into one that bears none.
    by_order = reply.correlation == "" and isinstance(codec.framer(), InOrderFramer)
    if reply.correlation != one.correlation and not by_order:
        changes = (f"correlation: {one.correlation!r}, now {reply.correlation!r}",)
    if not isinstance(task.body, Order):
        # Held after a restore, and asked for by nobody yet.
        return Reading(kept, one, then, "the task has no body of a payment", changes), None
    match kept:
        case Kept.PAGE:
            now, outcome = _read_page(codec, card, task, one, ended, reply, rivals)
            return Reading(kept, one, then, now, changes), outcome
        case Kept.STATUS if isinstance(task.body, BatchOrder):
            cursor = evidence.page_read(one.taken_for)
            outcome = understood(codec, attrs.evolve(batch_query(task), cursor=cursor), reply)
            return Reading(kept, one, then, evidence.page_told(outcome, cursor), changes), outcome
        case Kept.STATUS:
            outcome = codec.outcome(status_query(task), reply)
        case _:
            outcome = evidence.of_answer(codec, task.body, task.client_ref, reply)
    return Reading(kept, one, then, evidence.told(outcome), changes), outcome


def _read_page(
    codec: BankCodec,
    card: BehaviourCard,
    task: Task,
    one: Recorded,
    ended: Ended,
    reply: Reply,
    rivals: Rivals,
) -> tuple[str, Outcome | None]:
    """Look for the line that a statement's page was kept for."""
    noted = evidence.line_read(one.taken_for)
    assert noted is not None
    what, cursor = noted
    row = evidence.taken_back(what)
    payment = payment_of(task) if row is None or row < 0 else _row_of(task, row, ended)
    day = business_date(from_text(one.at))
    outcome = codec.outcome(StatementQuery(payment.payer, day, day, cursor), reply)
    if not isinstance(outcome, Accepted) or not isinstance(outcome.result, Statement):
        return evidence.told(outcome), None
    lines = outcome.result.entries
    if row is not None:
        match Returns.among(lines).find(payment):
            case Found():
                return one.taken_for, None
            case Ambiguous(why=why):
                return why, None
            case Absent():
                return "no line takes it back", None
    by_reference = card.statement.shows_reference
    found = find_payment(payment, lines, rivals(payment), by_reference_only=by_reference)
    match found:
        case Found(entry=entry):
            returned_on = _returned_on(one, payment, outcome.result)
            return one.taken_for, evidence.of_line(entry, returned_on)
        case Ambiguous(why=why):
            return why, None
        case Absent():
            return "no line is it", None


def _row_of(task: Task, row: int, ended: Ended) -> Payment:
    """Return one row of a batch, with the bank's reference of it that its result tells."""
    told = _parsed(ended.result) or {}
    refs = {one["row"]: one.get("bank_ref", "") for one in told.get("rows", ())}
    return payment_of(task, row, refs.get(row, ""))


def _returned_on(one: Recorded, payment: Payment, page: Statement) -> BusinessDate | None:
    if Event.PROVED_RETURNED not in one.events:
        return None
    match Returns.among(page.entries).find(payment):
        case Found(entry=entry):
            return business_date(entry.booked_at)
        case _:
            return None


def _tells_end(task: Task, one: Recorded) -> bool:
    """Say whether the task's row was written with this message and not changed since."""
    is_end = bool(ENDS.intersection(one.events)) and one.state == task.state.value
    return is_end and task.state in (State.SUCCEEDED, State.REJECTED)


def _told_otherwise(task: Task, one: Recorded, outcome: Outcome, ended: Ended) -> Iterator[str]:
    """Yield the members of what the client was told that today's code would tell otherwise."""
    events = [Event(name) for name in one.events]
    columns = end_columns(task, events, outcome)
    then: dict[str, Any] = {
        "bank_code": ended.bank_code,
        "bank_message": ended.bank_message,
    }
    now = {name: columns[name] for name in then}
    if "result" in columns or ended.result is not None:
        then["result"], now["result"] = ended.result, columns.get("result")
    if "bank_ref" in columns:
        then["bank_ref"], now["bank_ref"] = ended.bank_ref, columns["bank_ref"]
    for name, value in then.items():
        yield from _apart(name, _parsed(value), _parsed(now[name]))


def _parsed(value: Any) -> Any:  # noqa: ANN401 - text, or JSON of a result
    return orjson.loads(value) if isinstance(value, bytes) else value


def _apart(name: str, then: Any, now: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(then, dict) and isinstance(now, dict):
        for member in sorted(then.keys() | now.keys()):
            yield from _apart(f"{name}.{member}", then.get(member), now.get(member))
    elif then != now:
        yield f"{name}: {then!r}, now {now!r}"


# -- what was sent ----------------------------------------------------------------------------


def _read_request(codec: BankCodec, task: Task, one: Recorded) -> Reading:
    """Prepare the request anew under the number and reference it had, and compare."""
    then = SAME_BYTES
    if not isinstance(task.body, Order):
        return Reading(Kept.REQUEST, one, then, "the task has no body of a payment")
    at, number = evidence.prepared_read(one.taken_for) or (_prepared_at(one), one.correlation)
    context = Context(at, number, task.client_ref)
    if isinstance(codec, TokenCodec):
        codec = codec.bearing(one.data)
    try:
        draft = prepared(codec, task.body, context)
        now = _compared(codec, draft, one.data)
    except BodyError as error:
        now = f"this bank can't carry it: {error}"
    except FepError as error:
        now = f"it can't be made: {error}"
    return Reading(Kept.REQUEST, one, then, now)


def _prepared_at(one: Recorded) -> dt.datetime:
    """Return when it was prepared: its number begins with the second (``ids.Sequence``)."""
    try:
        local = dt.datetime.fromisoformat(f"{one.correlation[:8]}T{one.correlation[8:14]}+0800")
    except ValueError:
        return from_text(one.at)
    return local.astimezone(dt.UTC)


def _compared(codec: BankCodec, draft: Draft, sent: bytes) -> str:
    sent = _kept(codec, sent)
    if draft.to_sign is None:
        made = codec.seal(draft, None)
        if isinstance(codec, SealingCodec):
            return _difference(codec.bare(sent), codec.bare(made))
        return _difference(sent, _kept(codec, made))
    apart = ""
    for one, other in _sealed_alike(codec, draft, len(sent)):
        # Two signatures that have no byte in common show where a signature stands.
        head = _common(one, other)
        tail = _common(one[head:][::-1], other[head:][::-1])
        end = len(one) - tail
        if sent[:head] == one[:head] and sent[end:] == one[end:]:
            return SAME_BYTES
        apart = _difference(sent, one[:head] + sent[head:end] + one[end:])
    return apart or "another length, whatever the signature's"


def _kept(codec: BankCodec, frame: bytes) -> bytes:
    """Return a frame as it is kept, and may be shown: without a password or a token."""
    return codec.kept(frame) if isinstance(codec, SecretiveCodec) else frame


def _sealed_alike(codec: BankCodec, draft: Draft, length: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs of frames of this length with two signatures that differ in every byte."""
    shortest = len(codec.seal(draft, b"\x00"))
    most = min(length - shortest + 1, SIGNATURE_BYTES_MAX)
    # Raw; in base64, whose last four digits stand for one to three bytes; in hexadecimal digits.
    sizes = [most, *(most * 3 // 4 + more for more in range(-3, 7)), (most + 1) // 2]
    for size in filter(lambda size: size > 0, dict.fromkeys(sizes)):
        one = codec.seal(draft, b"\x00" * size)
        if len(one) == length:
            yield _kept(codec, one), _kept(codec, codec.seal(draft, b"\xff" * size))


def _common(one: bytes, other: bytes) -> int:
    """Return how many first bytes are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _difference(then: bytes, now: bytes) -> str:
    if then == now:
        return SAME_BYTES
    at = _common(then, now)
    was, is_now = then[at : at + EXCERPT_BYTES], now[at : at + EXCERPT_BYTES]
    return f"from byte {at} of {len(then)} on {is_now!r} where {was!r} was"
