"""A payment's chain proves its end, or the campaign says what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash.proof import chain_faults

SENT = ("submitted", "body_taken", "send_begun")


def chain(*names: str) -> list[dict[str, Any]]:
    """Return events as ``task.why`` tells them; ``+`` marks those with bytes."""
    return [
        {"event": name.removesuffix("+"), "state": "unknown"}
        | ({"digest": "d"} if name.endswith("+") else {})
        for name in names
    ]


@pytest.mark.parametrize(
    ("state", "events"),
    [
        ("queued", ("submitted",)),
        ("cancelled", ("submitted", "cancelled")),
        ("failed", ("submitted", "body_refused")),
        ("succeeded", (*SENT, "bank_done+")),
        ("rejected", (*SENT, "nothing_sent", "send_begun", "bank_refused+")),
        ("succeeded", (*SENT, "outcome_lost", "inquired+", "proved_done+")),
        ("returned", (*SENT, "outcome_lost", "proved_done+", "proved_returned+")),
        ("unknown", (*SENT, "outcome_lost")),
    ],
)
def test_what_is_proved_is_well(state: str, events: tuple[str, ...]) -> None:
    assert list(chain_faults(state, chain(*events))) == []


@pytest.mark.parametrize(
    ("state", "events", "fault"),
    [
        ("succeeded", (*SENT, "bank_done"), "without the bank's word"),
        ("rejected", (*SENT, "outcome_lost", "proved_refused"), "without the bank's word"),
        ("failed", (*SENT, "query_given_up"), "without the bank's word"),
        ("failed", (*SENT, "outcome_lost", "query_given_up"), "can't happen"),
        ("succeeded", (*SENT, "send_begun", "bank_done+"), "can't happen"),
        ("succeeded", (*SENT, "query_lost", "send_begun", "bank_done+"), "sent again"),
        ("rejected", (*SENT, "bank_done+"), "its chain ends in succeeded"),
        ("succeeded", SENT[1:], "event 0 is body_taken"),
        ("queued", ("submitted", "submitted"), "event 1 is submitted"),
        ("queued", ("submitted", "inquired"), "says unknown, and it was queued"),
    ],
)
def test_what_is_not_proved_is_found(state: str, events: tuple[str, ...], fault: str) -> None:
    found = list(chain_faults(state, chain(*events)))
    assert len(found) == 1
    assert fault in found[0]
