"""The life of one task: the only place that says which state follows which.

``SENDING`` is on disk before the first byte leaves. After that only the bank's answer, or evidence,
leads on. The diagram in the documents is made from ``TRANSITIONS``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from fep.domain.errors import LocalProtocolError


class State(StrEnum):
    """Where a task stands."""

    # An enum's own hash is a call of Python; these are the keys of much that is asked for often.
    __hash__ = str.__hash__

    QUEUED = "queued"
    OFFERED = "offered"
    FETCHED = "fetched"
    SENDING = "sending"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    RETURNED = "returned"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a task."""

    __hash__ = str.__hash__

    OFFERED = "offered"
    """The finance system was asked for the body."""
    OFFER_LAPSED = "offer_lapsed"
    """It did not answer in time, or its connection went, or this process restarted."""
    BODY_TAKEN = "body_taken"
    BODY_REFUSED = "body_refused"
    """The body is not valid, or the bank can't carry it: nothing was sent."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SEND_BEGUN = "send_begun"
    """On disk, synced; the first byte leaves after this."""
    NOTHING_SENT = "nothing_sent"
    """The link proved that no byte left; the task waits for it again."""
    BANK_DONE = "bank_done"
    BANK_REFUSED = "bank_refused"
    BANK_ACCEPTED = "bank_accepted"
    OUTCOME_LOST = "outcome_lost"
    """No answer, a broken connection, a garbled or unlisted answer, or a restart."""
    QUERY_LOST = "query_lost"
    """A query changes nothing at the bank: it is asked again."""
    QUERY_GIVEN_UP = "query_given_up"
    PROVED_ACCEPTED = "proved_accepted"
    """The bank knows the payment and has not finished it: "no record" proves nothing any more."""
    PROVED_DONE = "proved_done"
    PROVED_REFUSED = "proved_refused"
    PROVED_RETURNED = "proved_returned"
    FOUND_DONE = "found_done"
    """Two persons saw it at the bank: it was sent after the copy was made that is the store now."""


DONE: Final = frozenset({Event.BANK_DONE, Event.PROVED_DONE, Event.FOUND_DONE})
"""At these a payment took its money, whatever came back later or in that same moment."""


class IllegalTransitionError(LocalProtocolError):
    """An event came in a state that has no row for it: a defect of ours, nothing was changed."""

    code = "BAD_STATE"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.QUEUED: {
        Event.OFFERED: State.OFFERED,
        Event.BODY_TAKEN: State.FETCHED,
        Event.BODY_REFUSED: State.FAILED,
        Event.CANCELLED: State.CANCELLED,
        Event.EXPIRED: State.EXPIRED,
        Event.FOUND_DONE: State.SUCCEEDED,
    },
    State.OFFERED: {
        Event.OFFER_LAPSED: State.QUEUED,
        Event.BODY_TAKEN: State.FETCHED,
        Event.BODY_REFUSED: State.FAILED,
        Event.CANCELLED: State.CANCELLED,
        Event.EXPIRED: State.EXPIRED,
        Event.FOUND_DONE: State.SUCCEEDED,
    },
    State.FETCHED: {
        Event.SEND_BEGUN: State.SENDING,
        Event.BODY_REFUSED: State.FAILED,
        Event.CANCELLED: State.CANCELLED,
        Event.FOUND_DONE: State.SUCCEEDED,
    },
    State.SENDING: {
        Event.NOTHING_SENT: State.FETCHED,
        Event.BANK_DONE: State.SUCCEEDED,
        Event.BANK_REFUSED: State.REJECTED,
        Event.BANK_ACCEPTED: State.ACCEPTED,
        Event.OUTCOME_LOST: State.UNKNOWN,
        Event.QUERY_LOST: State.FETCHED,
        Event.QUERY_GIVEN_UP: State.FAILED,
    },
    State.ACCEPTED: {
        Event.PROVED_DONE: State.SUCCEEDED,
        Event.PROVED_REFUSED: State.REJECTED,
    },
    State.UNKNOWN: {
        Event.PROVED_ACCEPTED: State.ACCEPTED,
        Event.PROVED_DONE: State.SUCCEEDED,
        Event.PROVED_REFUSED: State.REJECTED,
    },
    State.SUCCEEDED: {Event.PROVED_RETURNED: State.RETURNED},
    State.REJECTED: {},
    # Row by row of a batch.
    State.RETURNED: {Event.PROVED_RETURNED: State.RETURNED},
    State.CANCELLED: {},
    State.EXPIRED: {},
    State.FAILED: {},
}

FINAL: Final = frozenset(
    {
        State.SUCCEEDED,
        State.REJECTED,
        State.RETURNED,
        State.CANCELLED,
        State.EXPIRED,
        State.FAILED,
    }
)
"""The client is told, and nothing more happens (but a success may still be returned, 退票)."""

BEFORE_SENDING: Final = frozenset({State.QUEUED, State.OFFERED, State.FETCHED})
"""No byte has left: the task can still be cancelled."""

OPEN_AT_BANK: Final = frozenset({State.ACCEPTED, State.UNKNOWN})
"""Only evidence leaves these."""


def step(state: State, event: Event) -> State:
    """Return the state that follows.

    Raises:
        IllegalTransitionError: the table has no such row.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        msg = f"{event.value} can't happen to a task that is {state.value}"
        raise IllegalTransitionError(msg) from None
