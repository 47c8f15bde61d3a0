"""What a payment's causal chain must say: legal steps, sent once at most, an end that is proved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fep.tasks.state import FINAL, Event, IllegalTransitionError, State, step

SUBMITTED: Final = "submitted"
EVENTS: Final = frozenset(Event)
"""Those that lead on; others only note what was done, such as an inquiry."""
PROOFS: Final = frozenset(
    {Event.BANK_DONE, Event.BANK_REFUSED, Event.PROVED_DONE, Event.PROVED_REFUSED}
)
"""What may end a payment that may have left: each with the bank's own bytes."""
UNSENT_ENDS: Final = frozenset({State.CANCELLED, State.EXPIRED, State.FAILED})


def chain_faults(state: str, events: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a payment's chain, as ``task.why`` tells it; nothing when all is well.

    Args:
        state: where the task stands.
        events: all of them, in order.
    """
    now = State.QUEUED
    sent = 0
    proved = False
    for place, told in enumerate(events):
        if (told["event"] == SUBMITTED) is not (place == 0):
            yield f"event {place} is {told['event']}"
            return
        if place == 0:
            continue
        if told["event"] not in EVENTS:
            if told["state"] != now:
                yield f"event {place}, {told['event']}, says {told['state']}, and it was {now}"
            continue
        event = Event(told["event"])
        try:
            now = step(now, event)
        except IllegalTransitionError as error:
            yield f"event {place}: {error}"
            return
        sent += (event is Event.SEND_BEGUN) - (event is Event.NOTHING_SENT)
        if sent > 1 and event is Event.SEND_BEGUN:
            yield "it was sent again, and nothing says that no byte had left"
        proved = proved or (event in PROOFS and "digest" in told)
    if now != state:
        yield f"it is {state}, and its chain ends in {now}"
    elif now in FINAL and sent and not proved:
        yield f"it may have left, and is {now} without the bank's word"
    elif now in FINAL and not sent and now not in UNSENT_ENDS:
        yield f"it never left, and is {now}"
