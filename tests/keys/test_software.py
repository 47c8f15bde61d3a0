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
from fep.crypto.sm2 import Sm2PrivateKey
from fep.keys.errors import AlgorithmUnavailableError, KeyFileError
from fep.keys.signatures import verifies
from fep.keys.software import load_key
from tests.keys.files import (
    PrivateKey,
    certificate_of,
    ec_key,
    openssl,
    pem_of,
    rsa_key,
    sm2_number,
    sm2_pair,
)

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RSA, ECDSA = SignAlgorithm.RSA_SHA256, SignAlgorithm.ECDSA_SHA256
SM2 = SignAlgorithm.SM2_SM3


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


@pytest.mark.parametrize("form", ["PKCS#8", "SEC 1", "digits"])
def test_an_sm2_key_signs_as_who_it_is_told(form: str) -> None:
    pem, certificate = sm2_pair()
    key = Sm2PrivateKey.from_pem(pem)
    content = {
        "PKCS#8": pem,
        "SEC 1": openssl(["ec"], pem),
        "digits": sm2_number(pem).encode(),
    }[form]
    loaded = load_key(content, certificate, b"N009999999000000")
    assert loaded.certificate is not None
    assert loaded.certificate.public_key == loaded.public_key == key.public_key
    signature = loaded.sign(SM2, b"data")
    assert key.public_key.verifies(signature, b"data", b"N009999999000000")
    assert not key.public_key.verifies(signature, b"data")
    assert verifies(loaded.public_key, SM2, b"data", load_key(content).sign(SM2, b"data"))
    for unfit in (RSA, ECDSA):
        with pytest.raises(AlgorithmUnavailableError, match="an SM2 key"):
            loaded.sign(unfit, b"data")


def test_a_certificate_of_another_sm2_key_is_refused() -> None:
    for other in (sm2_pair(1)[1], certificate_of(ec_key(), NOW)):
        with pytest.raises(KeyFileError, match="another key"):
            load_key(sm2_pair()[0], other)


def test_an_encrypted_sm2_key_is_refused_without_asking_anybody() -> None:
    locked = openssl(["pkcs8", "-topk8", "-passout", "pass:secret"], sm2_pair()[0])
    assert b"ENCRYPTED" in locked
    with pytest.raises(KeyFileError, match="unencrypted"):
        load_key(locked)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        load_key(data)
    with pytest.raises(KeyFileError):
        load_key(pem_of(ec_key()), data)
