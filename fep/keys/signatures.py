"""Signatures as arithmetic: what a card must be given, and whether what came back is right."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Final

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fep.adapters.card import SignAlgorithm
from fep.crypto.sm2 import Sm2PublicKey
from fep.keys.errors import AlgorithmUnavailableError, CardDataError

EXPIRING_DAYS: Final = 30
"""A certificate with fewer days left is worth an alarm: a bank takes weeks to renew a key."""

P256_BYTES: Final = 32

_KINDS: Final = {
    SignAlgorithm.RSA_SHA256: "an RSA",
    SignAlgorithm.ECDSA_SHA256: "a P-256",
    SignAlgorithm.SM2_SM3: "an SM2",
}

_SHA256_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER of DigestInfo for SHA-256 up to the hash (RFC 8017, 9.2, note 1)."""

CardKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
"""What a card or a token signs with here."""
PublicKey = CardKey | Sm2PublicKey


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
        return algorithm_of(self.public_key)

    @property
    def card_key(self) -> CardKey:
        """The key, where a card or a token can sign with one of its kind.

        Raises:
            CardDataError: it is an SM2 key; each maker has mechanisms of its own for those.
        """
        if isinstance(self.public_key, Sm2PublicKey):
            raise CardDataError("SM2 keys are for software slots; this one is on a card or token")
        return self.public_key


def algorithm_of(public_key: PublicKey) -> SignAlgorithm:
    """Return how a key of this kind signs."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return SignAlgorithm.RSA_SHA256
    if isinstance(public_key, Sm2PublicKey):
        return SignAlgorithm.SM2_SM3
    return SignAlgorithm.ECDSA_SHA256


def parse_certificate(der: bytes) -> Certificate:
    """Return the facts of a certificate.

    Raises:
        CardDataError: not a certificate, or its key is not RSA, P-256 or SM2.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        not_after = certificate.not_valid_after_utc
        public_key = _key_in(certificate, der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CardDataError("the certificate can't be read") from error
    return Certificate(der, fingerprint(der), not_after, check_key(public_key))


def _key_in(certificate: x509.Certificate, der: bytes) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        # The library knows no SM2. What is no SM2 key either raises another ValueError.
        return Sm2PublicKey.from_certificate(der)


def check_key(public_key: object) -> PublicKey:
    """Return the key if it is of a kind we sign with.

    Raises:
        CardDataError: it is not RSA, P-256 or SM2.
    """
    if isinstance(public_key, rsa.RSAPublicKey | Sm2PublicKey):
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(
        public_key.curve, ec.SECP256R1
    ):
        return public_key
    raise CardDataError("the key is not RSA, P-256 or SM2; other kinds are not available")


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of the DER in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def check_algorithm(public_key: PublicKey, algorithm: SignAlgorithm) -> None:
    """Pass when this kind of key can sign so.

    Raises:
        AlgorithmUnavailableError: it can't.
    """
    own = algorithm_of(public_key)
    if own is not algorithm:
        msg = f"the slot holds {_KINDS[own]} key, which can't sign {algorithm.value}"
        raise AlgorithmUnavailableError(msg)


def card_block(public_key: CardKey, data: bytes) -> bytes:
    """Return what the card's raw operation gets: the padded block for RSA, the hash for P-256.

    PIV cards do raw RSA, so the host pads: EMSA-PKCS1-v1_5 of RFC 8017, 9.2.
    """
    info = token_block(public_key, data)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return info
    size = (public_key.key_size + 7) // 8
    return b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info


def token_block(public_key: CardKey, data: bytes) -> bytes:
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
    """Say whether the signature over the data is this key's; SM2 with the standard's user id."""
    check_algorithm(public_key, algorithm)
    if isinstance(public_key, Sm2PublicKey):
        return public_key.verifies(signature, data)
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
