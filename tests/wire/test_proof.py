"""Codes that prove a key: known values, and that no two openings have one code."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.ids import ClientName
from fep.wire import proof
from fep.wire.proof import KEY_CHARS_MIN, KEYS_MAX, Key, opening_mac, parse_keys, welcome_mac

SECRET = "s" * KEY_CHARS_MIN


def test_the_code_is_what_another_language_computes() -> None:
    text = b"fep-open-1\nk1\nerp-1\n1767661200000\n" + b"0" * 32
    right = hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    assert opening_mac(SECRET.encode(), "k1", "erp-1", 1_767_661_200_000, "0" * 32) == right
    text = f"fep-welcome-1\n{right}\nabc".encode()
    assert (
        welcome_mac(SECRET.encode(), right, "abc")
        == hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    )
    assert len(right) == proof.MAC_CHARS


NAMES = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,5}", fullmatch=True)
OPENINGS = st.tuples(
    st.binary(min_size=1, max_size=4), NAMES, NAMES, st.integers(0, 10**6), st.sampled_from("ab")
)


@given(OPENINGS, OPENINGS)
def test_no_two_openings_have_one_code(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    # A key that ends in zero bytes is the same key to HMAC; those of a file are text.
    same = (one[0].rstrip(b"\0"), *one[1:]) == (other[0].rstrip(b"\0"), *other[1:])
    assert (opening_mac(*one) == opening_mac(*other)) == same


def test_a_key_file_is_read_line_by_line() -> None:
    text = (
        f"# of the finance system\n\nk1 erp-1 {SECRET}\n  k2\terp-1  {SECRET}2 \nk3 desk {SECRET}\n"
    )
    assert parse_keys(text) == {
        "k1": Key("k1", ClientName("erp-1"), SECRET.encode()),
        "k2": Key("k2", ClientName("erp-1"), f"{SECRET}2".encode()),
        "k3": Key("k3", ClientName("desk"), SECRET.encode()),
    }
    assert SECRET not in repr(parse_keys(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no key"),
        ("# nothing\n", "there is no key"),
        (f"k1 erp-1 {SECRET}\nk1 erp-2 {SECRET}", "line 2: a key id is there twice"),
        (f"\nk1 {SECRET}", "line 2: must be KEY_ID CLIENT SECRET"),
        (f"k1 erp-1 {SECRET} more", "line 1: must be"),
        (f"k/1 erp-1 {SECRET}", "line 1: must be"),
        (f"k1 付款 {SECRET}", "line 1: must be"),
        (f"k1 erp-1 {SECRET[1:]}", "line 1: a secret has 32 to 256"),
        ("k1 erp-1 " + "s" * 257, "line 1: a secret has 32 to 256"),
        ("k1 erp-1 " + "密" * 40, "line 1: a secret has 32 to 256"),
        ("".join(f"k{n} erp-1 {SECRET}\n" for n in range(KEYS_MAX + 1)), "more than 256"),
    ],
)
def test_a_line_that_is_no_key_is_told_without_what_is_in_it(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse_keys(text)
    assert "sss" not in str(error.value)
