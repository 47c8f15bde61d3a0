"""SM4 and SM3: the standards' examples, and any text there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.crypto import sm4

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")


def test_the_standard_s_block() -> None:
    """GB/T 32907, A.1: one block in ECB is one in CBC with a vector of zeros."""
    hidden = sm4.encrypt(KEY, bytes(16), KEY)
    assert hidden[:16].hex() == "681edf34d206965e86b3e94f536e4246"


def test_the_standard_s_digest() -> None:
    """GB/T 32905, A.1."""
    assert (
        sm4.sm3(b"abc").hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    )


@given(
    key=st.binary(min_size=16, max_size=16),
    vector=st.binary(min_size=16, max_size=16),
    plain=st.binary(max_size=200),
)
def test_there_and_back(key: bytes, vector: bytes, plain: bytes) -> None:
    hidden = sm4.encrypt(key, vector, plain)
    assert len(hidden) == (len(plain) // 16 + 1) * 16
    assert sm4.decrypt(key, vector, hidden) == plain


@given(st.binary(max_size=64))
def test_any_bytes_are_opened_or_refused(hidden: bytes) -> None:
    try:
        sm4.decrypt(KEY, bytes(16), hidden)
    except ValueError:
        return
    assert len(hidden) % 16 == 0


def test_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="block"):
        sm4.decrypt(KEY, bytes(16), b"\x00" * 17)
