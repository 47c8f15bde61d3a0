"""A key in a PKCS#8 file: for the demo, tests, and banks that issue no hardware; pure crypto."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fep.adapters.card import SignAlgorithm
from fep.crypto.sm2 import USER_ID, Sm2Error, Sm2PrivateKey
from fep.keys.errors import CardDataError, KeyFileError
from fep.keys.signatures import Certificate, check_algorithm, check_key, parse_certificate

KEY_BYTES_MAX: Final = 64 * 1024

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Sm2PrivateKey


class SoftwareKey:
    """A private key in memory; ``certificate`` is the one that lies beside it, if any."""

    def __init__(
        self, private_key: PrivateKey, certificate: Certificate | None, user_id: bytes = USER_ID
    ) -> None:
        self._private_key = private_key
        self._user_id = user_id
        self.public_key = check_key(_public_half(private_key))
        self.certificate = certificate
        if certificate is not None and certificate.public_key != self.public_key:
            raise KeyFileError("the certificate beside the key file belongs to another key")

    def sign(self, algorithm: SignAlgorithm, data: bytes) -> bytes:
        """Return the signature: modulus length for RSA, DER for ECDSA and SM2.

        Raises:
            AlgorithmUnavailableError: this kind of key can't sign so.
        """
        check_algorithm(self.public_key, algorithm)
        if isinstance(self._private_key, rsa.RSAPrivateKey):
            return self._private_key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(self._private_key, Sm2PrivateKey):
            return self._private_key.sign(data, self._user_id)
        return self._private_key.sign(data, ec.ECDSA(hashes.SHA256()))


def load_key(pem: bytes, certificate: bytes | None = None, user_id: bytes = USER_ID) -> SoftwareKey:
    """Return the key of an unencrypted PKCS#8 PEM; an SM2 key may also be 64 hexadecimal digits.

    Args:
        pem: the key file's content.
        certificate: the certificate file's content, PEM or DER.
        user_id: what an SM2 key signs as.

    Raises:
        KeyFileError: not such a key, or the certificate is not the key's.
    """
    private_key = _load_private(pem)
    if not isinstance(private_key, PrivateKey):
        raise KeyFileError("the key is not RSA, P-256 or SM2; other kinds are not available")
    try:
        return SoftwareKey(private_key, _load_certificate(certificate), user_id)
    except CardDataError as error:
        raise KeyFileError(str(error)) from error


def _public_half(key: PrivateKey) -> object:
    return key.public_key if isinstance(key, Sm2PrivateKey) else key.public_key()


def _load_private(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        try:
            # The library knows no SM2.
            return Sm2PrivateKey.parse(pem)
        except Sm2Error:
            raise KeyFileError("the key file is not an unencrypted PKCS#8 PEM") from error


def _load_certificate(content: bytes | None) -> Certificate | None:
    if content is None:
        return None
    if b"-----BEGIN" not in content:
        return parse_certificate(content)
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise CardDataError("the certificate beside the key file can't be read") from error
    return parse_certificate(certificate.public_bytes(serialization.Encoding.DER))
