"""SM4 in CBC mode with PKCS#7 padding (GM/T 0002), and SM3 (GM/T 0004)."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK_BYTES: Final = 16
"""Of a key and an initialisation vector too."""


def encrypt(key: bytes, vector: bytes, plain: bytes) -> bytes:
    """Return the cipher text of any bytes.

    Args:
        key: 16 bytes.
        vector: the initialisation vector, 16 bytes.
        plain: what is hidden.
    """
    padder = padding.PKCS7(8 * BLOCK_BYTES).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithms.SM4(key), modes.CBC(vector)).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def decrypt(key: bytes, vector: bytes, hidden: bytes) -> bytes:
    """Return what was hidden.

    Raises:
        ValueError: no whole blocks, or another key: the padding is wrong.
    """
    decryptor = Cipher(algorithms.SM4(key), modes.CBC(vector)).decryptor()
    padded = decryptor.update(hidden) + decryptor.finalize()
    unpadder = padding.PKCS7(8 * BLOCK_BYTES).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def sm3(data: bytes) -> bytes:
    """Return the SM3 digest, 32 bytes."""
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()
