"""Personalises virtual cards: keys (cached on disk, RSA is slow to make), certificates, GUIDs."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fep.sandbox.ukey.keypair import Algorithm, KeyPair
from fep.sandbox.ukey.piv import DEFAULT_PIN_POLICY, KeyReference, PivCard

KEY_ALGORITHM: Final[Mapping[KeyReference, Algorithm]] = {
    KeyReference.AUTHENTICATION: Algorithm.RSA_2048,
    KeyReference.SIGNATURE: Algorithm.RSA_2048,
    KeyReference.KEY_MANAGEMENT: Algorithm.P_256,
    KeyReference.CARD_AUTHENTICATION: Algorithm.P_256,
}

CERTIFICATE_DAYS: Final = 3650
_GUID_NAMESPACE: Final = uuid.UUID("5f6fb1c2-3f0c-4c8e-9d5b-6f0a3a8a1c57")
_KEY_FILE_MODE: Final = 0o600
_SERIAL_MAX: Final = 0xFFFF_FFFF


def guid_of(common_name: str) -> bytes:
    """Return the GUID a card of that name gets when none is given: the same in every run."""
    return uuid.uuid5(_GUID_NAMESPACE, common_name).bytes


def load_keys(directory: Path, name: str) -> dict[KeyReference, KeyPair]:
    """Return the four keys of the card called ``name``, made on first use and kept there (0600)."""
    return {
        reference: _load_key(directory / f"{name}-{reference:02X}.pem", reference)
        for reference in KeyReference
    }


@attrs.frozen
class Personality:
    """What is written to a card before it is handed out; a reset brings the card back to it."""

    common_name: str
    guid: bytes
    keys: Mapping[KeyReference, KeyPair]
    certificates: Mapping[KeyReference, bytes]

    def make_card(self) -> PivCard:
        """Return a new card with factory PIN and PUK."""
        serial = int.from_bytes(self.guid, "big") % _SERIAL_MAX
        return PivCard(self.guid, self.keys, self.certificates, serial=serial)


def personalise(
    common_name: str, guid: bytes, keys: Mapping[KeyReference, KeyPair], now: dt.datetime
) -> Personality:
    """Return the personality with these keys and a self-signed certificate for each."""
    certificates = {
        reference: _certificate(common_name, key, now) for reference, key in keys.items()
    }
    return Personality(common_name, guid, keys, certificates)


def _load_key(path: Path, reference: KeyReference) -> KeyPair:
    policy = DEFAULT_PIN_POLICY[reference]
    try:
        # We wrote the file ourselves; checking the primes again would cost 40 ms a key.
        private = serialization.load_pem_private_key(
            path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True
        )
    except FileNotFoundError:
        made = KeyPair.generate(KEY_ALGORITHM[reference], policy)
        _save_key(path, made)
        return made
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        msg = f"{path} holds a key no card has"
        raise TypeError(msg)
    return KeyPair(private, policy)


def _save_key(path: Path, key: KeyPair) -> None:
    """Write the key whole or not at all: another rig may be reading the same cache."""
    pem = key.private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    handle, scratch = tempfile.mkstemp(dir=path.parent)  # made with mode 0600
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), _KEY_FILE_MODE)
        file.write(pem)
    Path(scratch).replace(path)


def _certificate(common_name: str, key: KeyPair, now: dt.datetime) -> bytes:
    """Return a self-signed certificate for signatures that cannot be denied (DER)."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(usage, critical=True)
    )
    certificate = builder.sign(key.private, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)
