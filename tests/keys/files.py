"""Key files and certificates for tests; a key is made once a process."""

from __future__ import annotations

import datetime as dt
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate_of(key: PrivateKey, now: dt.datetime, days: int = 365) -> bytes:
    """Return a self-signed certificate, DER."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "江枫样例制造有限公司")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


@cache
def sm2_pair(number: int = 0) -> tuple[bytes, bytes]:
    """Return an SM2 key and its self-signed certificate, both PEM, as OpenSSL's own tool makes them."""
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = Path(directory, "key.pem"), Path(directory, "certificate.pem")
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2"]
        openssl(["genpkey", *curve, "-out", str(key)])
        command = ["req", "-x509", "-key", str(key), "-sm3", "-sigopt", "distid:1234567812345678"]
        command += ["-days", "365", "-subj", f"/CN=fep test {number}", "-out", str(certificate)]
        openssl(command)
        return key.read_bytes(), certificate.read_bytes()


def sm2_number(pem: bytes) -> str:
    """Return the private number of an SM2 key in hexadecimal, as banks hand keys out."""
    shown = openssl(["ec", "-text", "-noout"], pem).decode("ascii")
    number = shown.partition("priv:")[2].partition("pub:")[0]
    return "".join(number.split()).replace(":", "").zfill(64)[-64:]


def openssl(command: list[str], given: bytes = b"") -> bytes:
    """Return what OpenSSL's own tool writes."""
    run = subprocess.run(["openssl", *command], input=given, check=True, capture_output=True)
    return run.stdout


def write_private(path: Path, content: bytes) -> Path:
    """Write a file only its owner can read."""
    path.write_bytes(content)
    path.chmod(0o600)
    return path
