"""Secret files: who may read them, and how one is told from its successor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fep.keys.config import SecretRef
from fep.keys.credentials import SECRET_BYTES_MAX, identity, read_beside, read_secret
from fep.keys.errors import KeyFileError
from tests.keys.files import write_private


def test_a_file_only_its_owner_can_read(tmp_path: Path) -> None:
    path = write_private(tmp_path / "pin", b"123456\n")
    reference = SecretRef(file=path)
    secret = read_secret(reference, {})
    assert secret.content == b"123456\n"
    assert secret.identity == identity(reference, {})
    assert "123456" not in repr(secret)
    for mode in (0o640, 0o604, 0o644, 0o620):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="chmod 600"):
            read_secret(reference, {})


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    reference = SecretRef(file=write_private(tmp_path / "pin", b"123456\n"))
    before = identity(reference, {})
    assert identity(reference, {}) == before
    replacement = write_private(tmp_path / "new", b"654321\n")
    replacement.replace(tmp_path / "pin")
    after = identity(reference, {})
    assert after != before
    status = (tmp_path / "pin").stat()
    os.utime(tmp_path / "pin", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert identity(reference, {}) not in {before, after}
    (tmp_path / "pin").unlink()
    assert identity(reference, {}) == ""


def test_a_credential_is_known_by_its_name_alone(tmp_path: Path) -> None:
    # systemd makes its file anew at each start.
    reference = SecretRef(credential="pin-1")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "pin-1").write_bytes(b"123456")
    (tmp_path / "pin-1").chmod(0o440)
    secret = read_secret(reference, environ)
    assert secret.content == b"123456"
    assert secret.identity == identity(reference, environ) == "credential:pin-1"
    with pytest.raises(KeyFileError, match="CREDENTIALS_DIRECTORY"):
        read_secret(reference, {})


def test_what_is_no_secret_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    write_private(tmp_path / "long", bytes(SECRET_BYTES_MAX + 1))
    for name in ("missing", "fifo", "folder", "long"):
        with pytest.raises(KeyFileError):
            read_secret(SecretRef(file=tmp_path / name), {})


def test_a_certificate_beside_the_key(tmp_path: Path) -> None:
    reference = SecretRef(file=tmp_path / "key.pem")
    assert read_beside(reference, {}, ".crt") is None
    (tmp_path / "key.crt").write_bytes(b"x")
    assert read_beside(reference, {}, ".crt") == b"x"
    (tmp_path / "key.crt").unlink()
    (tmp_path / "key.crt").mkdir()
    with pytest.raises(KeyFileError):
        read_beside(reference, {}, ".crt")
