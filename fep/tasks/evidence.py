"""The evidence engine's decisions (证据引擎): what a finding proves, and when to ask again. Pure.

No answer is not "no". Only the bank's own final word, or "no record" from when the behaviour card
says that it counts, closes a payment; everything else means asking again, later.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

import attrs

from fep.adapters.api import Accepted, Outcome
from fep.adapters.card import BehaviourCard, NoRecord
from fep.domain.clock import business_date
from fep.domain.order import PaymentState, PaymentStatus
from fep.tasks.state import Event, State

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
    wait = facts.cool_down_s if state is State.UNKNOWN else facts.accepted_interval_s
    wait = max(wait, INTERVAL_SECONDS_MIN)
    for _ in range(min(inquiries, DOUBLINGS_MAX)):
        wait *= facts.backoff_factor
    return now + dt.timedelta(seconds=min(wait, facts.interval_max_s))


def no_record_counts(card: BehaviourCard, sent_at: dt.datetime, now: dt.datetime) -> bool:
    """Say whether "no record" proves by now that the payment was not executed."""
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
        sent_at: when ``SENDING`` was recorded.
        inquiries: how many inquiries were made before this one.
        finding: what the codec made of the bank's answer to the status query.
        now: the present moment, from which the next inquiry is planned.
        certain_now: the latest moment that is certainly reached, by which time proves something:
            a wall clock that was set forward must not.
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
        case PaymentState.PROCESSING | PaymentState.UNKNOWN:
            return AskAgain(again, f"the bank's status query says: {status.state.value}")
