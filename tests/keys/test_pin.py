"""When a PIN may be sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fep.keys.pin import Bar, Blocked, Pin, Send, Withhold, decide
from fep.keys.piv import PIN_TRIES_LEFT_MIN, PinCounter

FILE = Pin("123456", "file:1")
OPERATOR = Pin("654321", "")

COUNTERS = st.builds(PinCounter, st.one_of(st.none(), st.integers(0, 15)))
BARS = st.one_of(
    st.none(),
    st.builds(Bar, st.sampled_from(["file:1", "file:2"]), st.one_of(st.none(), st.integers(0, 15))),
)
ACCEPTED = st.sampled_from([None, FILE, OPERATOR])
OFFERED = st.sampled_from([FILE, "no PIN is configured"])


@given(COUNTERS, ACCEPTED, OFFERED, BARS)
def test_no_pin_is_ever_sent_that_could_block_the_card_or_was_refused(
    counter: PinCounter, accepted: Pin | None, offered: Pin | str, bar: Bar | None
) -> None:
    decision = decide(counter, accepted, offered, bar)
    if counter.tries == 0:
        assert decision == Blocked()
    if isinstance(decision, Send):
        assert counter.tries is None or counter.tries >= PIN_TRIES_LEFT_MIN
        assert decision.pin in (accepted, offered)
        assert decision.record == (accepted is None)
        if accepted is None and bar is not None and bar.source == decision.pin.source:
            assert bar.tries_before is not None


def test_what_the_policy_says() -> None:
    full, low = PinCounter(3), PinCounter(1)
    assert decide(full, None, FILE, None) == Send(FILE, record=True)
    assert decide(full, None, FILE, Bar("file:2", None)) == Send(FILE, record=True)
    assert decide(full, OPERATOR, FILE, Bar("file:1", None)) == Send(OPERATOR, record=False)
    assert decide(full, None, "no file", None) == Withhold("no file")
    for accepted in (None, OPERATOR):
        withheld = decide(low, accepted, FILE, None)
        assert isinstance(withheld, Withhold)
        assert "1 try left" in withheld.reason
    refused = decide(full, None, FILE, Bar("file:1", None))
    assert isinstance(refused, Withhold)
    assert not refused.refused


def test_an_attempt_without_an_answer_counts_as_refused_when_a_try_is_gone() -> None:
    assert decide(PinCounter(3), None, FILE, Bar("file:1", 3)) == Send(FILE, record=True)
    spent = decide(PinCounter(2), None, FILE, Bar("file:1", 3))
    assert isinstance(spent, Withhold)
    assert spent.refused


def test_a_pin_is_in_no_representation() -> None:
    assert "123456" not in repr(Send(FILE, record=True))
