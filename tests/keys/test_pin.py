"""When a PIN may be sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.ids import SlotName
from fep.keys.config import CardBinding, SlotConfig, TokenBinding
from fep.keys.pin import Bar, Blocked, Pin, Send, Withhold, decide, parse_pin
from fep.keys.piv import PIN_TRIES_LEFT_MIN, PinCounter

FILE = Pin("123456", "file:1")
OPERATOR = Pin("654321", "")

CARD = SlotConfig(SlotName("card"), "pcsc", CardBinding("ab" * 16, "cd" * 32))
TOKEN = SlotConfig(
    SlotName("token"), "pkcs11", module=Path("lib.so"), token=TokenBinding("cd" * 32, "0123")
)
FULL, LOW, FINAL, LOCKED = (PinCounter(tries, exact=False) for tries in (None, 2, 1, 0))
"""What a token's flags say."""

COUNTERS = st.one_of(
    st.builds(PinCounter, st.one_of(st.none(), st.integers(0, 15))),
    st.sampled_from([FULL, LOW, FINAL, LOCKED]),
)
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
            assert counter.exact
        if not counter.exact:
            assert counter.tries is None or accepted is not None


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


def test_what_the_policy_says_of_a_token() -> None:
    assert decide(FULL, None, FILE, None) == Send(FILE, record=True)
    assert decide(FULL, None, FILE, Bar("file:2", None)) == Send(FILE, record=True)
    assert decide(LOCKED, OPERATOR, FILE, None) == Blocked()
    # Wrong PINs were sent by whomever: nobody knows how many tries are left.
    assert isinstance(decide(LOW, None, FILE, None), Withhold)
    assert decide(LOW, OPERATOR, FILE, None) == Send(OPERATOR, record=False)
    for accepted in (None, OPERATOR):
        withheld = decide(FINAL, accepted, FILE, None)
        assert isinstance(withheld, Withhold)
        assert "1 try left" in withheld.reason


@pytest.mark.parametrize("counter", [FULL, LOW])
def test_a_lost_answer_of_a_token_bars_the_pin(counter: PinCounter) -> None:
    lost = decide(counter, None, FILE, Bar("file:1", 0))
    assert isinstance(lost, Withhold)
    assert "lost" in lost.reason
    assert decide(counter, OPERATOR, FILE, Bar("file:1", 0)) == Send(OPERATOR, record=False)


def test_the_form_of_a_pin() -> None:
    assert parse_pin("123456\n", CARD) == "123456"
    assert parse_pin("12345678\r\n", CARD) == "12345678"
    assert parse_pin("1234", TOKEN) == "1234"
    assert parse_pin("x" * 64, TOKEN) == "x" * 64
    for wrong in ("", "12345", "123456789", "12345é", "12345\t"):
        with pytest.raises(ValueError, match="6 to 8") as failure:
            parse_pin(wrong, CARD)
        assert not wrong or wrong not in str(failure.value)
    for wrong in ("", "123", "x" * 65, "1234é", "1234\t"):
        with pytest.raises(ValueError, match="4 to 64") as failure:
            parse_pin(wrong, TOKEN)
        assert not wrong or wrong not in str(failure.value)


def test_a_pin_is_in_no_representation() -> None:
    assert "123456" not in repr(Send(FILE, record=True))
