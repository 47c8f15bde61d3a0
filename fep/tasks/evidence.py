"""The evidence engine's decisions (证据引擎): what a finding proves, and when to ask again. Pure.

No answer is not "no". Only the bank's own final word, a line of its statement, or "no record" from
when the behaviour card says that it counts, closes a payment; everything else means asking again,
later. Nothing here knows which kind of payment it is.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, assert_never

import attrs

from fep.adapters.api import (
    Accepted,
    BankCodec,
    Context,
    Outcome,
    Rejected,
    Reply,
    Unclear,
)
from fep.adapters.card import BehaviourCard, NoRecord
from fep.domain.clock import SHANGHAI, BusinessDate, business_date, from_text, to_shanghai
from fep.domain.ids import ClientRef
from fep.domain.order import (
    OperationResult,
    PaymentOrder,
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
    """
    again = next_inquiry(card, state, inquiries + 1, now)
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
            if state is State.UNKNOWN and no_record_counts(card, sent_at, certain_now):
                return Close(
                    (Event.PROVED_REFUSED,), "no record at the bank, and by its card that is proof"
                )
            return AskAgain(again, "no record yet, which proves nothing by the bank's card")
        case PaymentState.PROCESSING:
            # From now on "no record" proves nothing.
            proved = (Event.PROVED_ACCEPTED,) if state is State.UNKNOWN else ()
            return AskAgain(again, "the bank's status query says: in progress", proved)
        case PaymentState.UNKNOWN:
            return AskAgain(again, "the bank's status query says: unknown")


def of_answer(
    codec: BankCodec, order: PaymentOrder, reference: ClientRef | None, reply: Reply
) -> Outcome:
    """Return what an answer means for a payment; one that names another proves nothing."""
    if codec.payment_ref(reply) not in ("", reference):
        return Unclear(REPLY_MISMATCH, "the answer bears another payment's reference")
    return codec.outcome(order, reply)


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


def contradicts(state: State, outcome: Outcome) -> bool:
    """Say whether an answer to a payment says otherwise than the end it was brought to."""
    match outcome:
        case Accepted(final=True):
            return state is State.REJECTED
        case Rejected():
            return state in (State.SUCCEEDED, State.RETURNED)
        case _:
            return False


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
_LINE: Final = re.compile(r"line (found by .*?|that takes it back)(?: \(page (.*)\))?", re.DOTALL)

_PREPARED: Final = re.compile(r"prepared (\S+) (\S+)")


def line_told(what: str, cursor: str) -> str:
    """Return what the causal chain keeps of a statement's page: its line, and which page it was.

    Args:
        what: ``found by …`` of a line that proves a payment, ``TAKES_BACK`` of its return.
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
        case PaymentReceipt():
            return "done" if final else "taken over"
        case Statement(entries=entries):
            return f"statement of {len(entries)} lines"
        case _:
            return "answered"
