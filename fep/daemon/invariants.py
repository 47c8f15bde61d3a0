"""What must hold of the store's rows, whatever happened: one task, one pool item, one alarm. Pure.

The daemon never breaks these; who changes the file by hand, or a defect of ours, does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
import orjson

from fep.alarms.outgoing import NoticeState, What
from fep.alarms.state import AlarmKind, AlarmState
from fep.domain.clock import from_text
from fep.domain.errors import BodyError
from fep.domain.ids import (
    CLIENT_REF_CHARS,
    SHORT_REF_ATTEMPTS,
    SHORT_REF_DIGITS_MIN,
    ClientRef,
    TaskId,
    client_ref,
    row_ref,
    short_ref,
)
from fep.domain.order import MOVES_MONEY, BatchOrder, Body, Kind, Order, parse_body
from fep.pooling.plan import ENDED, ItemState, RoundState
from fep.store import chain
from fep.tasks.state import FINAL, Event, IllegalTransitionError, State, step
from fep.tasks.task import body_told, end_told

SUBMITTED: Final = "submitted"
RESOLVED: Final = "RESOLVED"
"""``bank_code`` of an end that two persons confirmed: there is no result of the bank's."""
NO_RESULT, OWED, ACKNOWLEDGED = 0, 1, 2
BODY, TOLD = "body ", "told "
"""How the details of events begin that tell a digest (``body_told``, ``end_told``)."""
ONE_STEP_MAX: Final = dt.timedelta(minutes=1)
"""The clock may be set in a step, by little."""
LONG_REF: Final = re.compile(rf"F[0-9A-Z]{{{CLIENT_REF_CHARS - 1}}}")
"""A batch's, of which those of its rows are made."""
PLAIN: Final = re.compile(r"[!-~]*")
"""What an event has in all columns but two: the text under its link's digest is cut at blanks."""

_EVENTS: Final = {event.value: event for event in Event}
_STATES: Final = {state.value for state in State}
_KINDS: Final = {kind.value for kind in Kind}
_BATCHES: Final = frozenset({Kind.BATCH_TRANSFER.value})


@attrs.frozen
class TaskRow:
    """The columns of a task that something must hold of."""

    seq: int
    task_id: str
    client: str
    bank: str
    kind: str
    state: str
    submitted_at: str
    updated_at: str
    offers: int
    body: bytes | None
    body_digest: str | None
    client_ref: str | None
    sent_at: str | None
    result: bytes | None
    bank_code: str
    bank_message: str
    delivery: int
    archived: str | None


@attrs.frozen
class EventRow:
    """One event."""

    seq: int
    at: str
    event: str
    state: str
    cause: str
    configuration: str
    digest: str
    detail: str


@attrs.frozen
class MessageRow:
    """One message, of whose bytes only the digest is kept."""

    direction: str
    at: str
    digest: str
    real_digest: str


def sha256(data: bytes) -> str:
    """Return the digest of exact bytes."""
    return hashlib.sha256(data).hexdigest()


def task_faults(
    task: TaskRow,
    events: Sequence[EventRow],
    messages: Sequence[MessageRow],
    enterprise: str | None = None,
) -> Iterator[str]:
    """Yield what is wrong with a task.

    Args:
        task: the task's row, whole: of an archived one that of the archive.
        events: its events, in order.
        messages: what was sent and received for it.
        enterprise: whose store it is; None when that is not known.
    """
    if task.state not in _STATES or task.kind not in _KINDS:
        yield f"state {task.state!r} or kind {task.kind!r} is none that there is"
        return
    if not events:
        yield "it has no events"
        return
    for event in events:
        yield from event_faults(event)
    if not all(map(_is_text, events)):
        return
    yield from _submission_faults(task, events[0])
    yield from _body_faults(task, events)
    yield from _walk_faults(task, events)
    yield from _column_faults(task, events)
    yield from _message_faults(events, messages)
    if Kind(task.kind) in MOVES_MONEY:
        yield from _payment_faults(task, events, messages, enterprise)


def left_faults(
    task: TaskRow, events: Sequence[EventRow], messages: Sequence[MessageRow]
) -> Iterator[str]:
    """Yield what is wrong with what a store has of an archived task.

    Args:
        task: the task's row in the store.
        events: its events there.
        messages: those there: an answer that comes when a task is archived is kept where it comes.
    """
    if events:
        yield "it is archived, and its events are here"
    if task.body is not None or task.result is not None:
        yield "it is archived, and its body or result is here"
    yield from _bytes_faults(messages)


def event_faults(event: EventRow) -> Iterator[str]:
    """Yield what is wrong with an event by itself."""
    plain = (event.at, event.event, event.state, event.configuration, event.digest)
    if not _is_text(event):
        yield f"event {event.seq} has bytes where an event has text"
    elif not all(PLAIN.fullmatch(one) for one in plain) or "\0" in event.cause + event.detail:
        yield f"event {event.seq} has characters that no event has"


def _is_text(event: EventRow) -> bool:
    """Say whether all columns are text: a file takes anything in any column."""
    plain = (event.at, event.event, event.state, event.configuration, event.digest)
    return all(isinstance(one, str) for one in (*plain, event.cause, event.detail))


def _submission_faults(task: TaskRow, first: EventRow) -> Iterator[str]:
    expected = (SUBMITTED, State.QUEUED.value, task.submitted_at)
    if (first.event, first.state, first.at) != expected:
        yield f"event {first.seq}, its first, is not its submission"
    elif first.cause != f"task.submit of client {task.client}":
        yield f"it is {task.client}'s, and event {first.seq} says: {first.cause}"
    if first.digest and first.digest != task.body_digest:
        yield f"event {first.seq} tells another body than the recorded one"


def _body_faults(task: TaskRow, events: Sequence[EventRow]) -> Iterator[str]:
    """Hold the body against the events that tell of it."""
    taken = [one for one in events if one.event == Event.BODY_TAKEN]
    for event in taken:
        # An older release noted no digest here.
        told = event.detail.startswith(BODY)
        if told and event.detail != body_told(task.body_digest or ""):
            yield f"event {event.seq} took another body than the recorded one"
    if task.body is not None:
        if sha256(task.body) != task.body_digest:
            yield "its body is not the one that its digest is of"
    elif taken:
        yield f"its body was taken by event {taken[-1].seq}, and is not here"
    elif events[0].digest:
        yield "it was submitted with a body, and has none"


def _walk_faults(task: TaskRow, events: Sequence[EventRow]) -> Iterator[str]:
    """Follow the events through the table of transitions."""
    state, changed_at = State.QUEUED, events[0].at
    steps = [(one, _EVENTS[one.event]) for one in events[1:] if one.event in _EVENTS]
    for place, (row, event) in enumerate(steps):
        try:
            state = step(state, event)
        except IllegalTransitionError as error:
            yield f"event {row.seq}: {error}"
            return
        changed_at = row.at
        if row.state != state.value:
            # Events of one change all bear the state that the last of them leads to.
            after = steps[place + 1][0] if place + 1 < len(steps) else None
            if after is None or (after.at, after.state) != (row.at, row.state):
                yield f"event {row.seq} says {row.state}, and {event.value} leads to {state.value}"
    if state.value != task.state:
        yield f"it is {task.state}, and its events lead to {state.value}"
    elif changed_at != task.updated_at:
        yield f"it changed at {task.updated_at}, and its last event at {changed_at}"


def _column_faults(task: TaskRow, events: Sequence[EventRow]) -> Iterator[str]:
    state = State(task.state)
    names = [one.event for one in events]
    if task.body is None and Event.SEND_BEGUN in names:
        yield "it was sent, and has no body"
    if task.offers != names.count(Event.OFFERED):
        yield f"it counts {task.offers} offers, and its events {names.count(Event.OFFERED)}"
    if (task.delivery == NO_RESULT) == (state in FINAL):
        yield f"it is {task.state}, and its delivery is {task.delivery}"
    if task.result is not None and state not in FINAL:
        yield f"it is {task.state}, and has a result"
    done = state in (State.SUCCEEDED, State.RETURNED)
    if done and task.result is None and task.bank_code != RESOLVED:
        yield f"it is {task.state}, and has no result"
    # Told of what two persons confirmed. Of what bytes prove the chain covers those, and fep replay
    # reads them again; of queries nothing is told.
    last = [one for one in events if one.event in _EVENTS][-1:]
    if last and last[0].detail.startswith(TOLD):
        words = end_told(task.bank_code, task.bank_message, task.result)
        if last[0].detail != words:
            yield f"its result, code or message is not what event {last[0].seq} told"


def _bytes_faults(messages: Sequence[MessageRow]) -> Iterator[str]:
    for message in messages:
        if message.direction not in ("sent", "received"):
            yield f"the bytes of digest {message.digest[:12]}… are {message.direction!r}"
        if message.digest != message.real_digest:
            yield f"the bytes {message.direction} are not those of digest {message.digest[:12]}…"


def _message_faults(events: Sequence[EventRow], messages: Sequence[MessageRow]) -> Iterator[str]:
    yield from _bytes_faults(messages)
    kept = {(message.digest, message.at) for message in messages}
    for event in events:
        if event.digest and event.event != SUBMITTED and (event.digest, event.at) not in kept:
            yield f"the bytes of event {event.seq} ({event.event}) are not kept, or not since then"


def _payment_faults(
    task: TaskRow,
    events: Sequence[EventRow],
    messages: Sequence[MessageRow],
    enterprise: str | None,
) -> Iterator[str]:
    begun = [one for one in events if one.event == Event.SEND_BEGUN]
    sent = [one.digest for one in messages if one.direction == "sent"]
    for event in begun:
        if event.digest not in sent:
            yield f"event {event.seq} sent bytes that are not kept"
        if not event.cause.endswith(f" under {task.client_ref}"):
            yield f"its reference is {task.client_ref}, and event {event.seq} was {event.cause}"
    if len(sent) > len(begun):
        yield f"{len(sent)} messages were sent, and it was begun {len(begun)} times"
    if begun and (task.client_ref is None or task.sent_at is None):
        yield "it was sent, and has no reference or no moment of that"
    found = any(one.event == Event.FOUND_DONE for one in events)
    if task.sent_at is not None and not found:
        # Of one that persons found it is the moment of the copy that was put back.
        if not begun:
            yield f"it was sent at {task.sent_at}, and no event says so"
        elif not _is_about(task.sent_at, begun[-1].at):
            yield f"it was sent at {task.sent_at}, and event {begun[-1].seq} was at {begun[-1].at}"
    if enterprise is not None and task.client_ref not in _references(enterprise, task):
        yield f"reference {task.client_ref} is not that of this task id"


def _is_about(moment: str, other: str) -> bool:
    """Say whether two moments are those of one step, which asks the clock twice."""
    try:
        apart = from_text(moment) - from_text(other)
    except (ValueError, TypeError):
        return False
    return abs(apart) <= ONE_STEP_MAX


def _references(enterprise: str, task: TaskRow) -> Iterator[str | None]:
    """Yield those that a task may have, by what its bank takes."""
    task_id, reference = TaskId(task.task_id), task.client_ref or ""
    yield None
    yield client_ref(enterprise, task_id)
    if SHORT_REF_DIGITS_MIN <= len(reference) <= CLIENT_REF_CHARS and reference.isdecimal():
        for attempt in range(SHORT_REF_ATTEMPTS):
            yield short_ref(enterprise, task_id, len(reference), attempt)


@attrs.frozen
class PaymentRow:
    """What a payment is searched by, with its task."""

    task_seq: int
    bank: str
    payer: str
    payee: str
    amount_fen: int
    is_watched: bool
    task_bank: str
    task_kind: str
    task_state: str
    task_body: bytes | None


def payment_faults(row: PaymentRow) -> Iterator[str]:
    """Yield what is wrong with a payment's row."""
    # Of a batch some rows may have come back, and the others are watched on.
    may_come = {State.SUCCEEDED} | ({State.RETURNED} if row.task_kind in _BATCHES else set())
    if row.is_watched and row.task_state not in may_come:
        yield f"it is {row.task_state}, and watched for its return"
    if row.task_bank != row.bank:
        yield f"it is searched at {row.bank}, and its task is {row.task_bank}'s"
    if row.task_body is None:
        return
    body = _stored_body(row.task_kind, row.task_body)
    told = (row.payer, row.payee, row.amount_fen)
    if not isinstance(body, Order):
        yield "it is searched as a payment, and its body is none"
        return
    payee = "" if isinstance(body, BatchOrder) else body.payee.account
    if (body.payer, payee, body.amount.fen) != told:
        yield f"it is searched as {row.amount_fen} fen from {row.payer}, and its body is another"


@attrs.frozen
class BatchRows:
    """What the rows of a batch are searched by, with its task."""

    task_kind: str
    task_body: bytes | None
    """None: the task is archived, and its archive is not here."""
    client_ref: str | None
    rows: tuple[tuple[int, str, str, int, str], ...]
    """Place, payer, payee, fen and reference of each, in order."""


def rows_faults(batch: BatchRows) -> Iterator[str]:
    """Yield what is wrong with what a batch's rows are searched by."""
    if batch.task_body is None:
        return
    body = _stored_body(batch.task_kind, batch.task_body)
    if not isinstance(body, BatchOrder) or batch.client_ref is None:
        yield "rows are searched, and it is no batch that was sent"
        return
    if not LONG_REF.fullmatch(str(batch.client_ref)):
        yield f"rows are searched, and no batch has reference {batch.client_ref}"
        return
    reference = ClientRef(batch.client_ref)
    wanted = tuple(
        (place, body.payer, row.payee.account, row.amount.fen, row_ref(reference, place))
        for place, row in enumerate(body.rows)
    )
    for at, (own, found) in enumerate(itertools.zip_longest(wanted, batch.rows)):
        if own != found:
            yield f"row {at} is searched as another than its body says"
            return


def _stored_body(kind: str, data: bytes) -> Body | None:
    """Return a stored body, None when it can't be read."""
    try:
        return parse_body(Kind(kind), orjson.loads(data)["params"])
    except (BodyError, ValueError, KeyError, TypeError):
        return None


@attrs.frozen
class ItemRow:
    """One account of a pooling round, with the task that moves its money."""

    round_id: str
    round_state: str
    plan_only: bool
    account: str
    state: str
    amount_fen: int | None
    sweep_task: str
    task_kind: str | None
    """None: there is no such task."""
    task_state: str | None
    task_delivery: int | None
    task_body: bytes | None


_SWEPT: Final = {
    ItemState.SWEPT: {State.SUCCEEDED, State.RETURNED},
    ItemState.RETURNED: {State.RETURNED},
}
_NOT_SWEPT: Final = frozenset({ItemState.ASKING, ItemState.NOTHING})
"""No money moves for these: there is no task, or it ended without having been sent."""


def item_faults(item: ItemRow) -> Iterator[str]:
    """Yield what is wrong with an account of a round."""
    try:
        state = ItemState(item.state)
        round_state = RoundState(item.round_state)
        task_state = None if item.task_state is None else State(item.task_state)
    except ValueError as error:
        yield str(error)
        return
    ends = ENDED | ({ItemState.PLANNED} if item.plan_only else set())
    if round_state is RoundState.FINISHED and state not in ends:
        yield f"the round is finished, and this account is {state.value}"
    told = "not there" if task_state is None else task_state.value
    if state in _SWEPT and task_state not in _SWEPT[state]:
        yield f"it is {state.value}, and its transfer {item.sweep_task} is {told}"
    moved = task_state in (State.SUCCEEDED, State.RETURNED)
    if (item.plan_only or state in _NOT_SWEPT) and moved:
        yield f"it is {state.value}, and its transfer {item.sweep_task} is {told}"
    if state is ItemState.FAILED and moved and item.task_delivery == ACKNOWLEDGED:
        yield f"it is failed, and its transfer {item.sweep_task} is {told}"
    if item.task_kind is not None and item.task_body is not None:
        yield from _sweep_faults(item, item.task_kind, item.task_body)


def _sweep_faults(item: ItemRow, kind: str, data: bytes) -> Iterator[str]:
    body = _stored_body(kind, data)
    if not isinstance(body, Order) or body.payer != item.account:
        yield f"its transfer {item.sweep_task} takes from another account"
    elif body.amount.fen != item.amount_fen:
        yield f"its transfer {item.sweep_task} moves {body.amount}, not the amount of the round"


@attrs.frozen
class MarkRow:
    """A mark of a copy: while it is not released, no payment leaves."""

    seq: int
    taken_at: str
    link: str
    restored_at: str | None
    released_at: str | None
    released_by: str
    evidence: str


def mark_faults(marks: Sequence[MarkRow], events: Sequence[EventRow]) -> Iterator[str]:
    """Yield what is wrong with the marks of copies that were put back.

    Args:
        marks: all of them.
        events: of the store itself, in order: what was put back, and what was released.
    """
    # What is put back once more while it is held has another event of the same mark. An older
    # release, and who puts a copy there by hand, wrote none.
    put_back = {one.detail: one for one in events if one.event == chain.RESTORED}
    there = {chain.mark_told(one.seq, one.taken_at, one.link): one for one in marks}
    for told, event in put_back.items():
        if (found := there.get(told)) is None:
            yield f"event {event.seq} put a copy back, and its mark is not here: {told}"
        elif found.restored_at != event.at:
            yield f"{told} was put back at {found.restored_at}, and event {event.seq} at {event.at}"
    for told, mark in there.items():
        after = put_back[told].seq if told in put_back else 0
        if mark.released_at is not None and not any(
            one.event == chain.RELEASED
            and one.seq > after
            and one.at == mark.released_at
            and one.cause == chain.released_told(mark.released_by, mark.evidence)
            for one in events
        ):
            yield f"{told} is released, and no event says by whom and why"


def alarm_faults(row: Any) -> Iterator[str]:  # noqa: ANN401 - a row is untyped by nature
    """Yield what is wrong with an alarm."""
    try:
        state = AlarmState(row.state)
        AlarmKind(row.kind)
        for moment in (row.raised_at, row.last_at):
            from_text(moment)
    except (ValueError, TypeError) as error:
        yield str(error)
        return
    if not isinstance(row.count, int) or row.count < 1:
        yield f"it was seen {row.count} times"
    if (row.cleared_at is not None) != (state is AlarmState.CLEARED):
        yield f"it is {state.value}, and its end is {row.cleared_at}"
    if state is AlarmState.ACKNOWLEDGED and not (row.acknowledged_at and row.acknowledged_by):
        yield "it is acknowledged, and not told by whom and when"


def notice_faults(row: Any) -> Iterator[str]:  # noqa: ANN401 - a row is untyped by nature
    """Yield what is wrong with a notice of an alarm."""
    try:
        state = NoticeState(row.state)
        AlarmKind(row.kind)
        What(row.what)
        for moment in (row.raised_at, row.noted_at):
            from_text(moment)
    except (ValueError, TypeError) as error:
        yield str(error)
        return
    if (row.ended_at is None) != (state is NoticeState.WAITING):
        yield f"it is {state.value}, and its end is {row.ended_at}"
    if (state is NoticeState.GIVEN_UP) != bool(row.reason):
        yield f"it is {state.value}, and its reason is {row.reason!r}"
