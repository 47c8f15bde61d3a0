"""Keys in files."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.card import SignAlgorithm
from fep.keys.errors import AlgorithmUnavailableError, KeyFileError
from fep.keys.signatures import verifies
from fep.keys.software import load_key
from tests.keys.files import PrivateKey, certificate_of, ec_key, pem_of, rsa_key

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RSA, ECDSA = SignAlgorithm.RSA_SHA256, SignAlgorithm.ECDSA_SHA256


@pytest.mark.parametrize(
    ("key", "algorithm", "other"),
    [
        (rsa_key(), RSA, ECDSA),
        (ec_key(), ECDSA, RSA),
    ],
)
def test_a_key_file_signs(key: PrivateKey, algorithm: SignAlgorithm, other: SignAlgorithm) -> None:
    loaded = load_key(pem_of(key))
    assert loaded.certificate is None
    signature = loaded.sign(algorithm, b"data")
    assert verifies(loaded.public_key, algorithm, b"data", signature)
    for unfit in (other, SignAlgorithm.SM2_SM3):
        with pytest.raises(AlgorithmUnavailableError):
            loaded.sign(unfit, b"data")


def test_a_certificate_beside_the_key_in_either_form() -> None:
    der = certificate_of(rsa_key(), NOW)
    pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    for content in (der, pem):
        certificate = load_key(pem_of(rsa_key()), content).certificate
        assert certificate is not None
        assert certificate.der == der


def test_a_certificate_of_another_key_is_refused() -> None:
    for other in (certificate_of(rsa_key(1), NOW), certificate_of(ec_key(), NOW)):
        with pytest.raises(KeyFileError, match="another key"):
            load_key(pem_of(rsa_key()), other)


def test_keys_of_other_kinds_and_forms_are_refused() -> None:
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    locked = rsa_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for wrong in (ed, locked):
        with pytest.raises(KeyFileError):
            load_key(wrong)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        load_key(data)
    with pytest.raises(KeyFileError):
        load_key(pem_of(ec_key()), data)
