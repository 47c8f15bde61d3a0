"""One private key on a card: its algorithm, its PIN policy, and the raw operations a chip does."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Self, TypeAlias, assert_never

import attrs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo, Prehashed

from fep.sandbox.ukey import tlv

RSA_BITS: Final = 2048
RSA_EXPONENT: Final = 65537
_RSA_BLOCK_BYTES: Final = RSA_BITS // 8
_PKCS1_FILL_BYTES_MIN: Final = 8

_HASH_BY_SIZE: Final[dict[int, hashes.HashAlgorithm]] = {
    20: hashes.SHA1(),  # noqa: S303 - the size names the hash, the card does not choose it
    28: hashes.SHA224(),
    32: hashes.SHA256(),
    48: hashes.SHA384(),
    64: hashes.SHA512(),
}

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Algorithm(IntEnum):
    """Identifiers of NIST SP 800-78-4, table 6-2, as GENERAL AUTHENTICATE carries them in P1."""

    TDES = 0x03
    RSA_2048 = 0x07
    AES_192 = 0x0A
    P_256 = 0x11


class PinPolicy(IntEnum):
    """When a key asks for the PIN; the numbers are Yubico's."""

    NEVER = 1
    ONCE = 2
    ALWAYS = 3


class Origin(IntEnum):
    """Where a key was made; the numbers are Yubico's."""

    GENERATED = 1
    IMPORTED = 2


@attrs.frozen
class KeyPair:
    """A private key with the rules the card attaches to it."""

    private: PrivateKey
    pin_policy: PinPolicy
    origin: Origin = Origin.GENERATED

    @classmethod
    def generate(cls, algorithm: int, pin_policy: PinPolicy) -> Self:
        """Return a new key; RSA takes about 0.1 s.

        Raises:
            ValueError: not an algorithm of an asymmetric key.
        """
        match algorithm:
            case Algorithm.RSA_2048:
                return cls(rsa.generate_private_key(RSA_EXPONENT, RSA_BITS), pin_policy)
            case Algorithm.P_256:
                return cls(ec.generate_private_key(ec.SECP256R1()), pin_policy)
            case _:
                msg = f"no key pair of algorithm {algorithm:02X}"
                raise ValueError(msg)

    @classmethod
    def from_rsa_primes(cls, p: int, q: int, pin_policy: PinPolicy) -> Self:
        """Return the imported RSA key of these primes.

        Raises:
            ValueError: they do not make an RSA-2048 key.
        """
        if (p * q).bit_length() != RSA_BITS or p == q or p % 2 == 0 or q % 2 == 0:
            msg = f"not the two primes of an RSA-{RSA_BITS} key"
            raise ValueError(msg)
        exponent = pow(RSA_EXPONENT, -1, (p - 1) * (q - 1))
        numbers = rsa.RSAPrivateNumbers(
            p,
            q,
            exponent,
            rsa.rsa_crt_dmp1(exponent, p),
            rsa.rsa_crt_dmq1(exponent, q),
            rsa.rsa_crt_iqmp(p, q),
            rsa.RSAPublicNumbers(RSA_EXPONENT, p * q),
        )
        return cls(numbers.private_key(), pin_policy, Origin.IMPORTED)

    @classmethod
    def from_p256_scalar(cls, scalar: int, pin_policy: PinPolicy) -> Self:
        """Return the imported P-256 key of this secret number.

        Raises:
            ValueError: the number is not in the group.
        """
        return cls(ec.derive_private_key(scalar, ec.SECP256R1()), pin_policy, Origin.IMPORTED)

    @property
    def algorithm(self) -> Algorithm:
        """The identifier GENERAL AUTHENTICATE must name to use this key."""
        match self.private:
            case rsa.RSAPrivateKey():
                return Algorithm.RSA_2048
            case ec.EllipticCurvePrivateKey():
                return Algorithm.P_256
            case _:
                assert_never(self.private)

    def public_template(self) -> bytes:
        """Return the public key as GENERATE answers it: 81 n, 82 e or 86 point."""
        match self.private:
            case rsa.RSAPrivateKey():
                public = self.private.public_key().public_numbers()
                modulus = public.n.to_bytes(_RSA_BLOCK_BYTES, "big")
                return tlv.encode(0x81, modulus) + tlv.encode(0x82, public.e.to_bytes(3, "big"))
            case ec.EllipticCurvePrivateKey():
                point = self.private.public_key().public_numbers()
                x, y = (number.to_bytes(32, "big") for number in (point.x, point.y))
                return tlv.encode(0x86, b"\x04" + x + y)
            case _:
                assert_never(self.private)

    def answer(self, block: bytes) -> bytes:
        """Return what the chip makes of a challenge (tag 81): raw RSA, or ECDSA in DER.

        Raises:
            ValueError: the block does not fit the key.
        """
        match self.private:
            case rsa.RSAPrivateKey():
                return _raw_rsa(self.private, block)
            case ec.EllipticCurvePrivateKey():
                algorithm = _HASH_BY_SIZE.get(len(block))
                if algorithm is None:
                    msg = f"{len(block)} bytes are not the size of a hash"
                    raise ValueError(msg)
                return self.private.sign(block, ec.ECDSA(Prehashed(algorithm)))
            case _:
                assert_never(self.private)

    def agree(self, point: bytes) -> bytes:
        """Return the shared secret with an uncompressed point (tag 85): ECDH, the X coordinate.

        Raises:
            ValueError: not an elliptic-curve key, or not a point of its curve.
        """
        if not isinstance(self.private, ec.EllipticCurvePrivateKey):
            msg = "an RSA key cannot agree on a secret"
            raise ValueError(msg)  # noqa: TRY004 - what the reader sent is wrong, not our types
        peer = ec.EllipticCurvePublicKey.from_encoded_point(self.private.curve, point)
        return self.private.exchange(ec.ECDH(), peer)


def _raw_rsa(key: rsa.RSAPrivateKey, block: bytes) -> bytes:
    """Return block ** d mod n.

    cryptography offers no unpadded RSA. A block that is PKCS#1 v1.5 padding, which is what a
    signature needs, goes through OpenSSL nevertheless: its answer is the same number, five times
    faster and outside the GIL. Everything else (OAEP, PSS, raw tests) takes Python's ``pow``.
    """
    if len(block) != _RSA_BLOCK_BYTES:
        msg = f"{len(block)} bytes for a modulus of {_RSA_BLOCK_BYTES}"
        raise ValueError(msg)
    payload = _pkcs1_payload(block)
    if payload:
        return key.sign(payload, padding.PKCS1v15(), NoDigestInfo())
    return raw_rsa_by_pow(key, block)


def raw_rsa_by_pow(key: rsa.RSAPrivateKey, block: bytes) -> bytes:
    """Return block ** d mod n by the Chinese remainder theorem (RFC 8017, 5.1.2).

    Raises:
        ValueError: the block, as a number, is not below the modulus.
    """
    numbers = key.private_numbers()
    value = int.from_bytes(block, "big")
    if value >= numbers.public_numbers.n:
        msg = "the block is not below the modulus"
        raise ValueError(msg)
    at_p = pow(value, numbers.dmp1, numbers.p)
    at_q = pow(value, numbers.dmq1, numbers.q)
    result = at_q + numbers.q * (numbers.iqmp * (at_p - at_q) % numbers.p)
    return result.to_bytes(_RSA_BLOCK_BYTES, "big")


def _pkcs1_payload(block: bytes) -> bytes:
    """Return what follows ``00 01 FF .. FF 00``, empty if the block is not padded so."""
    if not block.startswith(b"\x00\x01"):
        return b""
    fill, separator, payload = block[2:].partition(b"\x00")
    if not separator or len(fill) < _PKCS1_FILL_BYTES_MIN or fill.strip(b"\xff"):
        return b""
    return payload
