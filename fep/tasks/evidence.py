"""The evidence engine's decisions (证据引擎): what a finding proves, and when to ask again. Pure.

No answer is not "no". Only the bank's own final word, a line of its statement, or "no record" from
when the behaviour card says that it counts, closes a payment; everything else means asking again,
later. Nothing here knows which kind of payment it is.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

import attrs

from fep.adapters.api import (
    Accepted,
    BankCodec,
    BatchCodec,
    Context,
    Outcome,
    Rejected,
    Reply,
    Unclear,
)
from fep.adapters.card import BehaviourCard, NoRecord
from fep.domain.clock import SHANGHAI, BusinessDate, business_date, from_text, to_shanghai
from fep.domain.ids import ClientRef, is_ref_of
from fep.domain.order import (
    BatchOrder,
    BatchStatus,
    OperationResult,
    Order,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
)
from fep.tasks.state import Event, State

REPLY_MISMATCH: Final = "REPLY_MISMATCH"
"""Code of our own: the answer speaks of something else than was asked."""
INTERVAL_SECONDS_MIN: Final = 0.1
"""Between two inquiries about one payment, whatever its card says: a wait of 0 would never end."""
DOUBLINGS_MAX: Final = 32
"""By then every card's cap is reached."""
DAY_END_SECONDS: Final = 3600.0
"""How long past midnight a bank's day is over for certain: its clock and its last batch need not
keep to ours, and banks were seen to say "no record" minutes after they took a payment."""


@attrs.frozen
class Close:
    """The payment's end is proved; apply the events in order."""

    events: tuple[Event, ...]
    cause: str


@attrs.frozen
class AskAgain:
    """The end is not proved yet."""

    at: dt.datetime
    cause: str
    events: tuple[Event, ...] = ()
    """What is proved all the same."""


Decision = Close | AskAgain


def card_of(card: BehaviourCard, order: Order) -> BehaviourCard:
    """Return the card by which this order is asked after: batches may want longer pauses."""
    if not isinstance(order, BatchOrder):
        return card
    facts, poll_s = card.inquiry, card.batch.poll_s
    paused = attrs.evolve(
        facts,
        cool_down_s=max(facts.cool_down_s, poll_s),
        accepted_interval_s=max(facts.accepted_interval_s, poll_s),
        interval_max_s=max(facts.interval_max_s, poll_s),
    )
    return attrs.evolve(card, inquiry=paused)


def first_inquiry(card: BehaviourCard, state: State, now: dt.datetime) -> dt.datetime:
    """Return when to ask first after a payment became ``accepted`` or ``unknown``."""
    wait = card.inquiry.cool_down_s if state is State.UNKNOWN else card.inquiry.accepted_interval_s
    return now + dt.timedelta(seconds=wait)


def next_inquiry(
    card: BehaviourCard, state: State, inquiries: int, now: dt.datetime
) -> dt.datetime:
    """Return when to ask again after ``inquiries`` fruitless ones: back-off up to a cap."""
    facts = card.inquiry
    wait = facts.cool_down_s if state is State.UNKNOWN else facts.accepted_interval_s
    wait = max(wait, INTERVAL_SECONDS_MIN)
    for _ in range(min(inquiries, DOUBLINGS_MAX)):
        wait *= facts.backoff_factor
    return now + dt.timedelta(seconds=min(wait, facts.interval_max_s))


def inquiry_wait_max_s(card: BehaviourCard) -> float:
    """Return the longest time between two inquiries, whatever a stored moment says."""
    facts = card.inquiry
    return max(facts.cool_down_s, facts.accepted_interval_s, facts.interval_max_s)


def quiet_s(card: BehaviourCard, now: dt.datetime) -> float:
    """Return for how long the bank is not to be asked after payments and statements; 0 = ask."""
    facts = card.inquiry
    if not (facts.quiet_from and facts.quiet_to):
        return 0.0
    begin, end = dt.time.fromisoformat(facts.quiet_from), dt.time.fromisoformat(facts.quiet_to)
    local = to_shanghai(now)
    # Yesterday's may last until this morning.
    for days in (-1, 0):
        day = local.date() + dt.timedelta(days=days)
        first = dt.datetime.combine(day, begin, tzinfo=SHANGHAI)
        last = dt.datetime.combine(day, end, tzinfo=SHANGHAI)
        if last <= first:
            last += dt.timedelta(days=1)
        if first <= local < last:
            return (last - local).total_seconds()
    return 0.0


def no_record_counts(card: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say whether "no record" proves by now that the payment was not executed.

    Args:
        card: the bank's behaviour card.
        sent_at: from when it could leave no more.
        now: never more after ``sent_at`` than has really passed.
    """
    match card.inquiry.no_record:
        case NoRecord.NEVER:
            return False
        case NoRecord.AFTER:
            return (now - sent_at).total_seconds() >= card.inquiry.no_record_after_s
        case NoRecord.END_OF_DAY:
            ended = now - dt.timedelta(seconds=DAY_END_SECONDS)
            return business_date(ended) > business_date(sent_at)


def overdue(card: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say whether the payment is open for longer than the card's horizon."""
    return (now - sent_at).total_seconds() > card.inquiry.horizon_s


def statement_due(card: BehaviourCard, inquiries: int) -> bool:
    """Say whether so many fruitless inquiries are enough to read the payer's statement."""
    return 0 < card.inquiry.statement_after <= inquiries


def decide(
    card: BehaviourCard,
    state: State,
    sent_at: dt.datetime,
    inquiries: int,
    finding: Outcome,
    now: dt.datetime,
    certain_now: dt.datetime,
    *,
    is_elsewhere: bool = False,
) -> Decision:
    """Return what one status query's outcome means for a payment that is open at the bank.

    Args:
        card: the bank's behaviour card.
        state: ``ACCEPTED`` or ``UNKNOWN``.
        sent_at: from when it could leave no more.
        inquiries: how many inquiries were made before this one.
        finding: what the codec made of the bank's answer to the status query.
        now: the present moment, from which the next inquiry is planned.
        certain_now: a moment that is never more after ``sent_at`` than has really passed: only
            by such time is anything proved.
        is_elsewhere: whether the payment was sent to another system than the one that was asked,
            which can't know that there is no record of it.
    """
    again = next_inquiry(card, state, inquiries + 1, now)
    counts = not is_elsewhere and no_record_counts(card, sent_at, certain_now)
    if isinstance(finding, Accepted) and isinstance(finding.result, BatchStatus):
        gone = state is State.UNKNOWN and counts
        return _decide_batch(state, finding.result, again, no_record_counts=gone)
    if not isinstance(finding, Accepted) or not isinstance(finding.result, PaymentStatus):
        return AskAgain(again, f"the status query proved nothing ({finding.code or 'no answer'})")
    status = finding.result
    match status.state:
        case PaymentState.SUCCEEDED:
            return Close((Event.PROVED_DONE,), "the bank's status query says: done")
        case PaymentState.REJECTED:
            return Close((Event.PROVED_REFUSED,), "the bank's status query says: not done")
        case PaymentState.RETURNED:
            return Close(
                (Event.PROVED_DONE, Event.PROVED_RETURNED),
                "the bank's status query says: done, then returned (退票)",
            )
        case PaymentState.NO_RECORD:
            # A bank that took the payment over once can't unsay it by not finding it.
            if state is State.UNKNOWN and counts:
                return Close(
                    (Event.PROVED_REFUSED,), "no record at the bank, and by its card that is proof"
                )
            if is_elsewhere:
                return AskAgain(again, "no record, and it was sent to another system than this")
            return AskAgain(again, "no record yet, which proves nothing by the bank's card")
        case PaymentState.PROCESSING:
            # From now on "no record" proves nothing.
            proved = (Event.PROVED_ACCEPTED,) if state is State.UNKNOWN else ()
            return AskAgain(again, "the bank's status query says: in progress", proved)
        case PaymentState.UNKNOWN:
            return AskAgain(again, "the bank's status query says: unknown")


def _decide_batch(
    state: State, status: BatchStatus, again: dt.datetime, *, no_record_counts: bool
) -> Decision:
    """Return what the rows of a batch mean for it: it is at its end when all of them are.

    Args:
        state: the batch's.
        status: of every row that was asked after; those behind an undecided one may be missing.
        again: when to ask again.
        no_record_counts: whether a row that the bank does not find was not done.
    """
    said = {row.state for row in status.rows.values()}
    if not status.cursor and PaymentState.NO_RECORD in said and not no_record_counts:
        return AskAgain(again, "no record of some rows yet, which proves nothing by the card")
    if status.cursor or is_undecided(status):
        unsaid = {PaymentState.NO_RECORD, PaymentState.UNKNOWN}
        # The bank has it when it has every row: from then on "no record" proves nothing.
        has_all = bool(said) and not said & unsaid and not status.cursor
        proved = (Event.PROVED_ACCEPTED,) if has_all and state is State.UNKNOWN else ()
        return AskAgain(again, "the bank's status query says: rows are not decided", proved)
    paid = [row for row in status.rows.values() if row.state is PaymentState.SUCCEEDED]
    told = f"{len(paid)} of {len(status.rows)} rows done"
    if PaymentState.RETURNED in said:
        events = (Event.PROVED_DONE, Event.PROVED_RETURNED)
        return Close(events, f"the bank's status query says: {told}, and some returned (退票)")
    if paid:
        return Close((Event.PROVED_DONE,), f"the bank's status query says: {told}")
    return Close((Event.PROVED_REFUSED,), "the bank's status query says: no row done")


def is_undecided(status: BatchStatus) -> bool:
    """Say whether rows of this page keep the batch open, so that the others need not be asked.

    Not for want of a record: from when that counts, all must have been asked.
    """
    open_states = (PaymentState.PROCESSING, PaymentState.UNKNOWN)
    return not status.is_over or any(row.state in open_states for row in status.rows.values())


def joined(order: BatchOrder, pages: Sequence[BatchStatus]) -> BatchStatus | Unclear:
    """Return what a batch's pages say together; Unclear where that is nothing.

    Args:
        order: what was sent.
        pages: in order, the last with its cursor where the rows behind it were not asked after.
    """
    rows: dict[int, PaymentStatus] = {}
    for page in pages:
        if twice := rows.keys() & page.rows.keys():
            return Unclear(REPLY_MISMATCH, f"row {min(twice)} is told twice")
        rows |= page.rows
    if strange := rows.keys() - set(range(len(order.rows))):
        return Unclear(REPLY_MISMATCH, f"there is no row {min(strange)}")
    whole = BatchStatus(rows, pages[-1].cursor, all(page.is_over for page in pages))
    if len(rows) < len(order.rows) and not (whole.cursor and is_undecided(whole)):
        return Unclear(REPLY_MISMATCH, f"{len(rows)} of {len(order.rows)} rows are told")
    return whole


def ended_rows(rows: Mapping[int, PaymentStatus]) -> dict[int, PaymentStatus]:
    """Return the rows of a batch that is at its end: what the bank never got was not done."""
    return {
        at: attrs.evolve(row, state=PaymentState.REJECTED)
        if row.state is PaymentState.NO_RECORD
        else row
        for at, row in rows.items()
    }


def of_answer(codec: BankCodec, order: Order, reference: ClientRef | None, reply: Reply) -> Outcome:
    """Return what an answer means for a payment; one that names another proves nothing."""
    found, is_batch = codec.payment_ref(reply), isinstance(order, BatchOrder)
    row_of_it = is_batch and reference is not None and is_ref_of(found, reference)
    if found not in ("", reference) and not row_of_it:
        return Unclear(REPLY_MISMATCH, "the answer bears another payment's reference")
    if not isinstance(order, BatchOrder):
        return codec.outcome(order, reply)
    assert isinstance(codec, BatchCodec)
    assert reference is not None
    return codec.batch_taken(order, reference, reply)


def of_late(outcome: Outcome) -> tuple[tuple[Event, ...], str]:
    """Return what an answer that came late proves of its payment: events, none, and the cause."""
    match outcome:
        case Accepted(final=True):
            return (Event.PROVED_DONE,), "the bank's late answer says: done"
        case Accepted():
            return (Event.PROVED_ACCEPTED,), "the bank's late answer says: taken over"
        case Rejected():
            return (Event.PROVED_REFUSED,), "the bank's late answer says: not done"
        case Unclear():
            return (), "the bank's late answer proves nothing"
        case _:
            assert_never(outcome)


_NEVER_SENT: Final = frozenset(
    {
        State.QUEUED,
        State.OFFERED,
        State.FETCHED,
        State.FAILED,
        State.CANCELLED,
        State.EXPIRED,
    }
)
"""States that say: no byte of it left, or it was proved that none did."""


def contradicts(state: State, outcome: Outcome) -> bool:
    """Say whether an answer to a payment says otherwise than its state does."""
    match outcome:
        case Accepted(result=PaymentStatus(state=said)):
            return _denies(state, said)
        case Accepted(final=is_final):
            # It may have been taken over first and refused then.
            return state in _NEVER_SENT or (is_final and state is State.REJECTED)
        case Rejected():
            return state in (State.SUCCEEDED, State.RETURNED)
        case _:
            return False


_HAS_IT: Final = frozenset({PaymentState.SUCCEEDED, PaymentState.RETURNED, PaymentState.PROCESSING})


_NO_END: Final = frozenset({PaymentState.PROCESSING, PaymentState.NO_RECORD, PaymentState.UNKNOWN})


def _denies(told: str, said: PaymentState) -> bool:
    """Say whether a bank's status is against the end that was told.

    Not what it says is not done of what came back: some banks say so of it.
    """
    if told == State.SUCCEEDED:
        return said is PaymentState.REJECTED
    return said in _HAS_IT and (told == State.REJECTED or told in _NEVER_SENT)


def contradicted_rows(
    state: State, told: Mapping[str, Any] | None, status: BatchStatus
) -> list[int]:
    """Return the rows of a batch at its end of which the bank's status says otherwise.

    Args:
        state: of the batch.
        told: its result, empty where two persons brought it to its end; None: it can't be read.
        status: what the bank says of rows by now.
    """
    if told is None:
        return []
    ends = {row["row"]: row["state"] for row in told.get("rows", ())}
    return [at for at, row in status.rows.items() if _denies(ends.get(at, state), row.state)]


def untold(outcome: Outcome) -> str | None:
    """Return why a status does not tell whether a success came back; None: it tells that."""
    match outcome:
        case Accepted(result=PaymentStatus(state=state)):
            said = {state}
        case Accepted(result=BatchStatus(rows=rows)):
            # A row that the bank never got was told as rejected.
            said = {row.state for row in rows.values()} - {PaymentState.NO_RECORD}
        case _:
            return f"the bank does not tell its status: {outcome.code} {outcome.message}"
    if open_ones := said & _NO_END:
        return f"the bank's status query says: {', '.join(sorted(open_ones))}"
    return None


def of_line(entry: StatementEntry, returned_on: BusinessDate | None = None) -> Accepted:
    """Return a statement's line as the status it proves: done, or done and come back."""
    status = PaymentStatus(
        PaymentState.SUCCEEDED if returned_on is None else PaymentState.RETURNED,
        bank_ref=entry.bank_ref,
        booked_on=business_date(entry.booked_at),
        returned_on=returned_on,
    )
    return Accepted(status)


TAKES_BACK: Final = "that takes it back"
_LINE: Final = re.compile(
    r"line (found by .*?|that takes (?:it|row [0-9]{1,3}) back)(?: \(page (.*)\))?", re.DOTALL
)
_ROW_BACK: Final = re.compile(r"that takes (?:it|row ([0-9]{1,3})) back")

_PAGE: Final = re.compile(r" \(page (.*)\)$", re.DOTALL)
_PREPARED: Final = re.compile(r"prepared (\S+) (\S+)")


def takes_back(row: int | None) -> str:
    """Return ``TAKES_BACK``, or what a line is that takes back one row of a batch."""
    return TAKES_BACK if row is None else f"that takes row {row} back"


def taken_back(what: str) -> int | None:
    """Return the row that :func:`takes_back` was given, -1 for no batch, None of something else."""
    found = _ROW_BACK.fullmatch(what)
    return None if found is None else int(found[1] or -1)


def line_told(what: str, cursor: str) -> str:
    """Return what the causal chain keeps of a statement's page: its line, and which page it was.

    Args:
        what: ``found by …`` of a line that proves a payment, :func:`takes_back` of its return.
        cursor: what the page was asked by, empty for the first.
    """
    return f"line {what} (page {cursor})" if cursor else f"line {what}"


def line_read(taken_for: str) -> tuple[str, str] | None:
    """Return what :func:`line_told` was given, None of what tells of something else."""
    found = _LINE.fullmatch(taken_for)
    return None if found is None else (found[1], found[2] or "")


def prepared_told(context: Context) -> str:
    """Return what the causal chain keeps of a request: what it was prepared with."""
    return f"prepared {context.now.isoformat(timespec='microseconds')} {context.sequence}"


def prepared_read(noted: str) -> tuple[dt.datetime, str] | None:
    """Return the moment and number of :func:`prepared_told`, None of what tells something else."""
    found = _PREPARED.fullmatch(noted)
    if found is None:
        return None
    try:
        return from_text(found[1]), found[2]
    except ValueError:
        return None


def page_told(outcome: Outcome, cursor: str) -> str:
    """Return what the causal chain keeps of a page of a batch's rows: which page it was, too."""
    said = told(outcome)
    return f"{said} (page {cursor})" if cursor else said


def page_read(taken_for: str) -> str:
    """Return the cursor of :func:`page_told`."""
    found = _PAGE.search(taken_for)
    return found[1] if found else ""


def told(outcome: Outcome) -> str:
    """Return an outcome as the causal chain keeps it: what a replay compares. No free text."""
    match outcome:
        case Accepted(result=result, code=code, final=final):
            return f"{_result_told(result, final=final)} {code}".rstrip()
        case Rejected(code=code, why=why):
            return f"refused ({why.value}) {code}".rstrip()
        case Unclear(code=code):
            return f"unclear {code}".rstrip()
        case _:
            assert_never(outcome)


def _result_told(result: OperationResult, *, final: bool) -> str:
    match result:
        case PaymentStatus(state=state, code=code):
            return f"status {state.value} {code}".rstrip()
        case BatchStatus(rows=rows, is_over=is_over):
            states = [row.state.value for row in rows.values()]
            counts = ", ".join(f"{states.count(one)} {one}" for one in sorted(set(states)))
            return f"status of rows: {counts or 'none'}{'' if is_over else ', not over'}"
        case PaymentReceipt():
            return "done" if final else "taken over"
        case Statement(entries=entries):
            return f"statement of {len(entries)} lines"
        case _:
            return "answered"
