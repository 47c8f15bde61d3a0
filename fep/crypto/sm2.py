"""SM2 signatures with SM3 (GM/T 0003.2, GM/T 0004), by the system's libcrypto.

``cryptography`` can't load SM2 keys, and a pure implementation is some twenty times slower, so
this is the one file of the project that calls a C library by ctypes. A call releases the GIL. Keys
are never changed after they were made, so several threads may use one.

The user id (用户身份标识) is part of what is signed. libcrypto would take none for the empty one
and not say so; here it is always given.
"""

from __future__ import annotations

import ctypes
import functools
import re
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

USER_ID: Final = b"1234567812345678"
"""The user id where nobody agreed on another (GM/T 0009, 10)."""
USER_ID_BYTES_MAX: Final = 8191
"""Its length in bits is written in 16 bits (GM/T 0003.2, 5.5)."""
NUMBER_BYTES: Final = 32
"""Of a private key, of a coordinate, of r and of s."""
LIBRARY: Final = "libcrypto.so.3"
KEY_BYTES_MAX: Final = 64 * 1024

ORDER: Final = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
"""n of the curve: a private key is from 1 to n - 2 (GM/T 0003.2, 6)."""

_SIGNATURE_BYTES_MAX: Final = 80
_OID: Final = bytes.fromhex("06082a811ccf5501822d")
"""DER of 1.2.156.10197.1.301, the recommended curve."""
_EC_PUBLIC_KEY: Final = bytes.fromhex("06072a8648ce3d0201")
_SPKI_HEAD: Final = bytes.fromhex("3059 3013") + _EC_PUBLIC_KEY + _OID + bytes.fromhex("034200")
"""DER of a SubjectPublicKeyInfo of this curve up to the point (RFC 5480, 2)."""
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{64}")


class Sm2Error(ValueError):
    """No SM2 key can be read here, or libcrypto can't work with it."""


_Pointer = int
"""Address of something libcrypto owns."""

_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "BIO_new_mem_buf": (c_void_p, [c_char_p, c_int]),
    "BIO_free": (c_int, [c_void_p]),
    "PEM_read_bio_PrivateKey": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "PEM_read_bio_PUBKEY": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "d2i_AutoPrivateKey": (c_void_p, [c_void_p, POINTER(c_char_p), c_long]),
    "d2i_PUBKEY": (c_void_p, [c_void_p, POINTER(c_char_p), c_long]),
    "d2i_X509": (c_void_p, [c_void_p, POINTER(c_char_p), c_long]),
    "X509_get_pubkey": (c_void_p, [c_void_p]),
    "X509_free": (None, [c_void_p]),
    "i2d_PUBKEY": (c_int, [c_void_p, POINTER(c_void_p)]),
    "CRYPTO_free": (None, [c_void_p, c_char_p, c_int]),
    "EVP_PKEY_free": (None, [c_void_p]),
    "EVP_sm3": (c_void_p, []),
    "EVP_MD_CTX_new": (c_void_p, []),
    "EVP_MD_CTX_free": (None, [c_void_p]),
    "EVP_DigestSignInit": (c_int, [c_void_p, POINTER(c_void_p), c_void_p, c_void_p, c_void_p]),
    "EVP_DigestVerifyInit": (c_int, [c_void_p, POINTER(c_void_p), c_void_p, c_void_p, c_void_p]),
    "EVP_PKEY_CTX_set1_id": (c_int, [c_void_p, c_char_p, c_int]),
    "EVP_DigestSign": (c_int, [c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t]),
    "EVP_DigestVerify": (c_int, [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t]),
    "ERR_clear_error": (None, []),
}


@functools.cache
def _library() -> ctypes.CDLL:
    """Return libcrypto, every function that is used with its types: else pointers would be cut."""
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        msg = f"{LIBRARY} with SM2 is not on this machine: {error}"
        raise Sm2Error(msg) from error
    return library


class _Key:
    """Owns one key of libcrypto for as long as it lives."""

    def __init__(self, pointer: _Pointer | None, what: str) -> None:
        library = _library()
        if not pointer:
            library.ERR_clear_error()
            msg = f"no SM2 key can be read from the {what}"
            raise Sm2Error(msg)
        self._pointer = pointer
        weakref.finalize(self, library.EVP_PKEY_free, pointer)
        spki = _spki(library, pointer)
        if spki[: len(_SPKI_HEAD)] != _SPKI_HEAD:
            msg = f"the key of the {what} is not on the SM2 curve"
            raise Sm2Error(msg)
        self.point: Final = spki[len(_SPKI_HEAD) :]
        """The public key: 04, X and Y, 65 bytes."""

    def _context(self, begin: str, user_id: bytes) -> _Pointer:
        """Return a digest context that is ready to sign or verify; the caller frees it."""
        if not 0 < len(user_id) <= USER_ID_BYTES_MAX:
            msg = f"an SM2 user id has 1 to {USER_ID_BYTES_MAX} bytes"
            raise Sm2Error(msg)
        library = _library()
        context = library.EVP_MD_CTX_new()
        inner = c_void_p()
        begun = getattr(library, begin)(
            context, byref(inner), library.EVP_sm3(), None, self._pointer
        )
        if begun != 1 or library.EVP_PKEY_CTX_set1_id(inner, user_id, len(user_id)) != 1:
            library.EVP_MD_CTX_free(context)
            library.ERR_clear_error()
            msg = "libcrypto can't use the key for SM2 with SM3"
            raise Sm2Error(msg)
        assert isinstance(context, int)
        return context


class Sm2PublicKey(_Key):
    """Verifies signatures; equal to every other one of the same point."""

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Return the key of a SubjectPublicKeyInfo in PEM.

        Raises:
            Sm2Error: it is none, or on another curve.
        """
        return cls(_from_pem("PEM_read_bio_PUBKEY", pem), "public key file")

    @classmethod
    def from_point(cls, point: bytes) -> Self:
        """Return the key of a point: 04, X and Y, 65 bytes.

        Raises:
            Sm2Error: it is not such a point, or not on the curve.
        """
        return cls(_from_der("d2i_PUBKEY", _SPKI_HEAD + point), "public key's point")

    @classmethod
    def from_certificate(cls, der: bytes) -> Self:
        """Return the key of a certificate in DER.

        Raises:
            Sm2Error: it is none, or its key is on another curve.
        """
        library = _library()
        certificate = _from_der("d2i_X509", der)
        if not certificate:
            return cls(None, "certificate")
        try:
            return cls(library.X509_get_pubkey(certificate), "certificate")
        finally:
            library.X509_free(certificate)

    def verifies(self, signature: bytes, data: bytes, user_id: bytes = USER_ID) -> bool:
        """Say whether a signature, DER SEQUENCE{r, s}, over the data is this key's."""
        library = _library()
        context = self._context("EVP_DigestVerifyInit", user_id)
        try:
            told = library.EVP_DigestVerify(context, signature, len(signature), data, len(data))
        finally:
            library.EVP_MD_CTX_free(context)
            library.ERR_clear_error()
        return bool(told == 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sm2PublicKey) and other.point == self.point

    def __hash__(self) -> int:
        return hash(self.point)


class Sm2PrivateKey(_Key):
    """Signs."""

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Return the key of an unencrypted PEM, PKCS#8 or SEC 1.

        Raises:
            Sm2Error: it is none, or on another curve.
        """
        if b"ENCRYPTED" in pem:
            # libcrypto would ask for the pass phrase at the terminal.
            msg = "the key file is encrypted; an unencrypted one is needed"
            raise Sm2Error(msg)
        return cls(_from_pem("PEM_read_bio_PrivateKey", pem), "key file")

    @classmethod
    def from_number(cls, number: bytes) -> Self:
        """Return the key of a private number, 32 bytes, the highest first.

        Raises:
            Sm2Error: it has another length, or is no number of the curve.
        """
        if len(number) != NUMBER_BYTES:
            msg = f"an SM2 private key has {NUMBER_BYTES} bytes, not {len(number)}"
            raise Sm2Error(msg)
        if not 0 < int.from_bytes(number, "big") < ORDER - 1:
            msg = "an SM2 private key is from 1 to n - 2 of the curve"
            raise Sm2Error(msg)
        # RFC 5915, 3: libcrypto works the point out by itself.
        inner = b"\x02\x01\x01\x04\x20" + number + b"\xa0\x0a" + _OID
        return cls(_from_der("d2i_AutoPrivateKey", _tlv(0x30, inner)), "private number")

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Return the key of a PEM, or of 64 hexadecimal digits, as banks hand them out.

        Raises:
            Sm2Error: it is neither.
        """
        if _HEX.fullmatch(text.strip()):
            return cls.from_number(bytes.fromhex(text.decode("ascii")))
        return cls.from_pem(text)

    @property
    def public_key(self) -> Sm2PublicKey:
        """Return the public half."""
        return Sm2PublicKey.from_point(self.point)

    def sign(self, data: bytes, user_id: bytes = USER_ID) -> bytes:
        """Return the signature, DER SEQUENCE{r, s}, over the data.

        Raises:
            Sm2Error: libcrypto could not.
        """
        library = _library()
        context = self._context("EVP_DigestSignInit", user_id)
        room, size = ctypes.create_string_buffer(_SIGNATURE_BYTES_MAX), c_size_t(80)
        try:
            told = library.EVP_DigestSign(context, room, byref(size), data, len(data))
        finally:
            library.EVP_MD_CTX_free(context)
            library.ERR_clear_error()
        if told != 1:
            msg = "libcrypto could not sign with the SM2 key"
            raise Sm2Error(msg)
        return room.raw[: size.value]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(point={self.point.hex()})"


def to_raw(signature: bytes) -> bytes:
    """Return a DER signature as r and s, 32 bytes each.

    Raises:
        ValueError: it is no SEQUENCE{r, s} of two such numbers.
    """
    r, s = decode_dss_signature(signature)
    try:
        return r.to_bytes(NUMBER_BYTES, "big") + s.to_bytes(NUMBER_BYTES, "big")
    except OverflowError as error:
        msg = "r or s of the signature is out of range"
        raise ValueError(msg) from error


def from_raw(signature: bytes) -> bytes:
    """Return r and s, 32 bytes each, as a DER signature.

    Raises:
        ValueError: it has another length.
    """
    if len(signature) != 2 * NUMBER_BYTES:
        msg = f"a raw SM2 signature has {2 * NUMBER_BYTES} bytes, not {len(signature)}"
        raise ValueError(msg)
    r, s = signature[:NUMBER_BYTES], signature[NUMBER_BYTES:]
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    assert len(content) < 0x80
    return bytes((tag, len(content))) + content


def _from_pem(function: str, pem: bytes) -> _Pointer | None:
    if len(pem) > KEY_BYTES_MAX:
        return None
    library = _library()
    source = library.BIO_new_mem_buf(pem, len(pem))
    try:
        found: _Pointer | None = getattr(library, function)(source, None, None, None)
    finally:
        library.BIO_free(source)
    return found


def _from_der(function: str, der: bytes) -> _Pointer | None:
    found: _Pointer | None = getattr(_library(), function)(None, byref(c_char_p(der)), len(der))
    return found


def _spki(library: ctypes.CDLL, key: _Pointer) -> bytes:
    """Return the DER of a key's public half."""
    room = c_void_p()
    size = library.i2d_PUBKEY(key, byref(room))
    if size <= 0:
        library.ERR_clear_error()
        return b""
    try:
        return ctypes.string_at(room, size)
    finally:
        library.CRYPTO_free(room, b"", 0)
