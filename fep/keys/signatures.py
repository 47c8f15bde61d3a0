"""Signatures as arithmetic: what a card must be given, and whether what came back is right."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Final, assert_never

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fep.adapters.card import SignAlgorithm
from fep.keys.errors import AlgorithmUnavailableError, CardDataError

EXPIRING_DAYS: Final = 30
"""A certificate with fewer days left is worth an alarm: a bank takes weeks to renew a key."""

P256_BYTES: Final = 32

_SHA256_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER of DigestInfo for SHA-256 up to the hash (RFC 8017, 9.2, note 1)."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@attrs.frozen
class Certificate:
    """A certificate and the facts of it that matter to a slot."""

    der: bytes = attrs.field(repr=False)
    sha256: str
    not_after: dt.datetime
    """Aware, UTC."""
    public_key: PublicKey = attrs.field(repr=False, eq=False)

    @property
    def algorithm(self) -> SignAlgorithm:
        """The one by which this kind of key signs."""
        if isinstance(self.public_key, rsa.RSAPublicKey):
            return SignAlgorithm.RSA_SHA256
        return SignAlgorithm.ECDSA_SHA256


def parse_certificate(der: bytes) -> Certificate:
    """Return the facts of a certificate.

    Raises:
        CardDataError: not a certificate, or its key is neither RSA nor P-256.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        public_key = certificate.public_key()
        not_after = certificate.not_valid_after_utc
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CardDataError("the certificate can't be read") from error
    return Certificate(der, fingerprint(der), not_after, check_key(public_key))


def check_key(public_key: object) -> PublicKey:
    """Return the key if it is of a kind we sign with.

    Raises:
        CardDataError: it is neither RSA nor P-256.
    """
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(
        public_key.curve, ec.SECP256R1
    ):
        return public_key
    raise CardDataError("the key is neither RSA nor P-256; other kinds are not available")


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of the DER in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def check_algorithm(public_key: PublicKey, algorithm: SignAlgorithm) -> None:
    """Pass when this kind of key can sign so.

    Raises:
        AlgorithmUnavailableError: it can't.
    """
    match algorithm:
        case SignAlgorithm.RSA_SHA256:
            fits = isinstance(public_key, rsa.RSAPublicKey)
        case SignAlgorithm.ECDSA_SHA256:
            fits = isinstance(public_key, ec.EllipticCurvePublicKey)
        case SignAlgorithm.SM2_SM3:
            raise AlgorithmUnavailableError("sm2_sm3 is not available in this release")
        case _:
            assert_never(algorithm)
    if not fits:
        kind = "an RSA" if isinstance(public_key, rsa.RSAPublicKey) else "a P-256"
        msg = f"the slot holds {kind} key, which can't sign {algorithm.value}"
        raise AlgorithmUnavailableError(msg)


def card_block(public_key: PublicKey, data: bytes) -> bytes:
    """Return what the card's raw operation gets: the padded block for RSA, the hash for P-256.

    PIV cards do raw RSA, so the host pads: EMSA-PKCS1-v1_5 of RFC 8017, 9.2.
    """
    info = token_block(public_key, data)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return info
    size = (public_key.key_size + 7) // 8
    return b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info


def token_block(public_key: PublicKey, data: bytes) -> bytes:
    """Return what a token gets that pads by itself: DigestInfo for RSA, the hash for P-256."""
    digest = hashlib.sha256(data).digest()
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return digest
    return _SHA256_DIGEST_INFO + digest


def der_signature(raw: bytes) -> bytes:
    """Return a token's ECDSA signature, r and s of 32 bytes each, in the DER form of the others.

    Raises:
        CardDataError: it has another length.
    """
    half = P256_BYTES
    if len(raw) != 2 * half:
        msg = f"the token's P-256 signature has {len(raw)} bytes, not {2 * half}"
        raise CardDataError(msg)
    r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    return encode_dss_signature(r, s)


def verifies(
    public_key: PublicKey, algorithm: SignAlgorithm, data: bytes, signature: bytes
) -> bool:
    """Say whether the signature over the data is this key's."""
    check_algorithm(public_key, algorithm)
    try:
        if isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            public_key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def days_left(certificate: Certificate, now: dt.datetime) -> int:
    """Return the whole days until the certificate ends; negative when it has ended."""
    return (certificate.not_after - now).days
