"""Padding, verification and the facts of certificates."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.card import SignAlgorithm
from fep.crypto.sm2 import Sm2PrivateKey
from fep.keys.errors import AlgorithmUnavailableError, CardDataError
from fep.keys.signatures import (
    card_block,
    check_algorithm,
    check_key,
    days_left,
    der_signature,
    fingerprint,
    parse_certificate,
    token_block,
    verifies,
)
from tests.keys.files import certificate_of, ec_key, rsa_key, sm2_pair

RSA, ECDSA = SignAlgorithm.RSA_SHA256, SignAlgorithm.ECDSA_SHA256
SM2 = SignAlgorithm.SM2_SM3


@given(st.binary())
def test_a_raw_rsa_operation_over_our_block_is_a_signature(data: bytes) -> None:
    key = rsa_key()
    numbers = key.private_numbers()
    block = int.from_bytes(card_block(key.public_key(), data), "big")
    raw = pow(block, numbers.d, numbers.public_numbers.n)
    signature = raw.to_bytes(256, "big")
    assert verifies(key.public_key(), RSA, data, signature)
    assert not verifies(key.public_key(), RSA, data + b"\0", signature)


def test_the_block_of_an_elliptic_key_is_the_hash() -> None:
    assert card_block(ec_key().public_key(), b"x") == hashlib.sha256(b"x").digest()


def test_what_a_token_pads_by_itself_is_the_end_of_our_block() -> None:
    key = rsa_key().public_key()
    info = token_block(key, b"x")
    assert len(info) == 51
    assert card_block(key, b"x").endswith(b"\xff\x00" + info)
    assert token_block(ec_key().public_key(), b"x") == hashlib.sha256(b"x").digest()


@given(st.binary())
def test_a_raw_signature_has_the_form_of_the_others(data: bytes) -> None:
    key = ec_key()
    der = key.sign(data, ec.ECDSA(hashes.SHA256()))
    raw = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(der))
    assert der_signature(raw) == der
    assert verifies(key.public_key(), ECDSA, data, der_signature(raw))


@given(st.binary(max_size=100).filter(lambda raw: len(raw) != 64))
def test_a_raw_signature_of_another_length_is_none(raw: bytes) -> None:
    with pytest.raises(CardDataError, match=f"{len(raw)} bytes"):
        der_signature(raw)


def test_each_kind_of_certificate_has_its_algorithm() -> None:
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    for key, algorithm in ((rsa_key(), RSA), (ec_key(), ECDSA)):
        certificate = parse_certificate(certificate_of(key, now))
        assert certificate.algorithm is algorithm
        assert certificate.card_key == key.public_key()


def test_an_sm2_certificate_s_facts() -> None:
    der = x509.load_pem_x509_certificate(sm2_pair()[1]).public_bytes(serialization.Encoding.DER)
    certificate = parse_certificate(der)
    assert certificate.algorithm is SM2
    assert certificate.public_key == Sm2PrivateKey.from_pem(sm2_pair()[0]).public_key
    assert certificate.sha256 == hashlib.sha256(der).hexdigest()
    assert days_left(certificate, certificate.not_after - dt.timedelta(days=3)) == 3
    with pytest.raises(CardDataError, match="software slots"):
        _ = certificate.card_key


def test_a_certificate_s_facts() -> None:
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    der = certificate_of(rsa_key(), now, days=45)
    certificate = parse_certificate(der)
    assert certificate.sha256 == fingerprint(der) == hashlib.sha256(der).hexdigest()
    assert certificate.public_key == rsa_key().public_key()
    assert certificate.not_after == now + dt.timedelta(days=45)
    assert days_left(certificate, now) == 45
    assert days_left(certificate, now + dt.timedelta(days=45, seconds=1)) == -1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(CardDataError):
        parse_certificate(data)


def test_only_keys_we_can_use() -> None:
    other_curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    for key in (other_curve, ed25519.Ed25519PrivateKey.generate().public_key()):
        with pytest.raises(CardDataError):
            check_key(key)


@pytest.mark.parametrize(
    ("algorithm", "fits_rsa", "fits_ec"),
    [
        (RSA, True, False),
        (ECDSA, False, True),
        (SM2, False, False),
    ],
)
def test_an_algorithm_fits_its_kind_of_key_only(
    algorithm: SignAlgorithm, *, fits_rsa: bool, fits_ec: bool
) -> None:
    keys: list[tuple[rsa.RSAPublicKey | ec.EllipticCurvePublicKey, bool]] = [
        (rsa_key().public_key(), fits_rsa),
        (ec_key().public_key(), fits_ec),
    ]
    for key, fits in keys:
        if fits:
            check_algorithm(key, algorithm)
        else:
            with pytest.raises(AlgorithmUnavailableError):
                check_algorithm(key, algorithm)
