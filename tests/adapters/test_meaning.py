"""Codes and states mean what the card says; where it says two things, the more careful one."""

from __future__ import annotations

import pytest

from fep.adapters.api import Refusal, Rejected, Unclear
from fep.adapters.card import Codes, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.order import PaymentState

CODES = Codes(
    refused=frozenset({"R", "RP", "RT"}),
    permission=frozenset({"P", "RP"}),
    throttled=frozenset({"T", "RT"}),
)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("R", Refusal.BUSINESS),
        ("P", Refusal.PERMISSION),
        ("T", Refusal.THROTTLED),
        ("RP", Refusal.PERMISSION),
        ("RT", Refusal.THROTTLED),
        ("?", None),
        ("", None),
    ],
)
def test_a_code_means_what_its_list_says(code: str, why: Refusal | None) -> None:
    unclear = Unclear(code, "said")
    meant = unclear if why is None else Rejected(code, "said", why)
    assert refused(CODES, code, "said") == meant
    is_throttled = why is Refusal.THROTTLED
    assert payment_refused(CODES, code, "said") == (unclear if is_throttled else meant)


def test_of_two_meanings_of_a_state_the_more_careful_one_counts() -> None:
    by_care = ("unknown", "intermediate", "returned", "final_bad", "final_ok")
    meant = (
        PaymentState.UNKNOWN,
        PaymentState.PROCESSING,
        PaymentState.RETURNED,
        PaymentState.REJECTED,
        PaymentState.SUCCEEDED,
    )
    for at, wanted in enumerate(meant):
        states = States(**{name: frozenset({"S"}) for name in by_care[at:]})
        assert payment_state(states, "S") is wanted
        assert payment_state(states, "") is PaymentState.UNKNOWN
