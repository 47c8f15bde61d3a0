"""SM2 by libcrypto: the standard's own example, and another implementation on the other side."""

from __future__ import annotations

import gmalg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from fep.crypto import sm2
from fep.crypto.sm2 import ORDER, Sm2Error, Sm2PrivateKey, Sm2PublicKey

NUMBER = bytes.fromhex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")
POINT = bytes.fromhex(
    "0409F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020"
    "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
)
MESSAGE = b"message digest"
RAW = bytes.fromhex(
    "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3"
    "B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA"
)
"""GM/T 0003.5, A.2: the check vector of the recommended curve."""
KEY = Sm2PrivateKey.from_number(NUMBER)


def test_the_standard_s_example_verifies_and_nothing_near_it() -> None:
    public = Sm2PublicKey.from_point(POINT)
    signature = sm2.from_raw(RAW)
    assert KEY.point == POINT
    assert KEY.public_key == public
    assert public.verifies(signature, MESSAGE)
    assert not public.verifies(signature, MESSAGE + b" ")
    assert not public.verifies(signature, MESSAGE, b"1234567812345679")
    assert not public.verifies(signature[:-1], MESSAGE)
    assert not public.verifies(b"", MESSAGE)
    flipped = sm2.from_raw(RAW[:-1] + bytes((RAW[-1] ^ 1,)))
    assert not public.verifies(flipped, MESSAGE)


@settings(max_examples=8, deadline=None)
@given(
    number=st.integers(1, ORDER - 2),
    data=st.binary(max_size=200),
    user_id=st.binary(min_size=1, max_size=40),
)
def test_another_implementation_takes_ours_and_we_take_its(
    number: int, data: bytes, user_id: bytes
) -> None:
    key = Sm2PrivateKey.from_number(number.to_bytes(32, "big"))
    other = gmalg.SM2(number.to_bytes(32, "big"), user_id, key.point)
    ours = sm2.to_raw(key.sign(data, user_id))
    assert other.verify(data, ours[:32], ours[32:])
    # The other one writes a number in as few bytes as it needs; the raw form has 32 for each.
    theirs = b"".join(part.rjust(32, b"\x00") for part in other.sign(data))
    assert key.public_key.verifies(sm2.from_raw(theirs), data, user_id)
    assert not key.public_key.verifies(sm2.from_raw(theirs), data + b"x", user_id)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (b"", "32 bytes"),
        (b"\x01" * 33, "32 bytes"),
        (bytes(32), "n - 2"),
        ((ORDER - 1).to_bytes(32, "big"), "n - 2"),
        (b"\xff" * 32, "n - 2"),
    ],
)
def test_a_number_that_is_no_private_key_is_refused(number: bytes, says: str) -> None:
    with pytest.raises(Sm2Error, match=says):
        Sm2PrivateKey.from_number(number)


@pytest.mark.parametrize("point", [b"", POINT[:-1], b"\x04" + b"\x01" * 64, b"\x03" + POINT[1:]])
def test_a_point_that_is_not_on_the_curve_is_refused(point: bytes) -> None:
    with pytest.raises(Sm2Error, match="no SM2 key"):
        Sm2PublicKey.from_point(point)


@pytest.mark.parametrize("user_id", [b"", b"x" * 8192])
def test_no_user_id_is_refused_and_not_taken_for_the_empty_one(user_id: bytes) -> None:
    with pytest.raises(Sm2Error, match="user id"):
        KEY.sign(MESSAGE, user_id)
    with pytest.raises(Sm2Error, match="user id"):
        KEY.public_key.verifies(sm2.from_raw(RAW), MESSAGE, user_id)


def test_keys_come_as_pem_or_as_digits() -> None:
    assert Sm2PrivateKey.parse(NUMBER.hex().encode() + b"\n").point == POINT
    assert Sm2PrivateKey.parse(NUMBER.hex().upper().encode()).point == POINT
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(Sm2Error, match="SM2 curve"):
        Sm2PrivateKey.parse(other)
    with pytest.raises(Sm2Error, match="encrypted"):
        Sm2PrivateKey.parse(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(Sm2Error, match="no SM2 key"):
        Sm2PublicKey.from_pem(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_refused(data: bytes) -> None:
    for read in (Sm2PrivateKey.parse, Sm2PublicKey.from_pem, Sm2PublicKey.from_certificate):
        with pytest.raises(Sm2Error):
            read(data)


def test_a_key_s_text_does_not_show_it() -> None:
    assert NUMBER.hex() not in repr(KEY).lower()


def test_a_raw_signature_has_its_length() -> None:
    assert sm2.to_raw(sm2.from_raw(RAW)) == RAW
    with pytest.raises(ValueError, match="64 bytes"):
        sm2.from_raw(RAW[1:])
    with pytest.raises(ValueError, match="out of range"):
        sm2.to_raw(encode_dss_signature(1, 1 << 256))
