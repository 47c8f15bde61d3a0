"""The evidence engine's decisions (证据引擎): what a finding proves, and when to ask again. Pure.

No answer is not "no". Only the bank's own final word, or "no record" from when the behaviour card
says that it counts, closes a payment; everything else means asking again, later.
"""

from __future__ import annotations

import datetime as dt

import attrs

from fep.adapters.api import Accepted, Outcome
from fep.adapters.card import BehaviourCard, NoRecord
from fep.domain.clock import business_date
from fep.domain.order import PaymentState, PaymentStatus
from fep.tasks.state import Event, State


@attrs.frozen
class Close:
    """The payment's end is proved; apply the events in order."""

    events: tuple[Event, ...]
    cause: str


@attrs.frozen
class AskAgain:
    """Nothing is proved yet."""

    at: dt.datetime
    cause: str


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
    first = facts.cool_down_s if state is State.UNKNOWN else facts.accepted_interval_s
    # The exponent is capped: beyond 32 doublings every card's cap is long reached.
    wait = min(first * facts.backoff_factor ** min(inquiries, 32), facts.interval_max_s)
    return now + dt.timedelta(seconds=max(wait, 0.0))


def no_record_counts(card: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say whether "no record" proves by now that the payment was not executed."""
    match card.inquiry.no_record:
        case NoRecord.NEVER:
            return False
        case NoRecord.AFTER:
            return (now - sent_at).total_seconds() >= card.inquiry.no_record_after_s
        case NoRecord.END_OF_DAY:
            return business_date(now) > business_date(sent_at)


def overdue(card: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say whether the payment is open for longer than the card's horizon."""
    return (now - sent_at).total_seconds() > card.inquiry.horizon_s


def decide(
    card: BehaviourCard,
    state: State,
    sent_at: dt.datetime,
    inquiries: int,
    finding: Outcome,
    now: dt.datetime,
) -> Decision:
    """Return what one status query's outcome means for a payment that is open at the bank.

    Args:
        card: the bank's behaviour card.
        state: ``ACCEPTED`` or ``UNKNOWN``.
        sent_at: when ``SENDING`` was recorded.
        inquiries: how many inquiries were made before this one.
        finding: what the codec made of the bank's answer to the status query.
        now: the present moment.
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
            if state is State.UNKNOWN and no_record_counts(card, sent_at, now):
                return Close(
                    (Event.PROVED_REFUSED,), "no record at the bank, and by its card that is proof"
                )
            return AskAgain(again, "no record yet, which proves nothing by the bank's card")
        case PaymentState.PROCESSING | PaymentState.UNKNOWN:
            return AskAgain(again, f"the bank's status query says: {status.state.value}")
