"""A bank's own secrets: the file names where they are, and they are read at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.daemon.config import redacted, secret_faults
from fep.keys.errors import KeyFileError
from tests.daemon.files import changed, loaded, marked

OPTIONS = 'options = { login_name = "FEP01", branch = "75" }'
OURS = 'options = { customer_id = "105999900000001", user_id = "FEP001" }\n'
CARD = "card = { signing"
SECRET = 'secrets = { password = { file = "ccb.password" } }'


def text(secrets: str) -> str:
    made = changed('adapter = "cmb_xml"', 'adapter = "ccb_wlpt"')
    return changed(OPTIONS, OURS + secrets, made)


def test_a_secret_is_read_from_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    found = loaded(tmp_path, text(SECRET))
    bank = found.banks[1]
    file = tmp_path / "ccb.password"
    assert f"{file}: No such file or directory" in secret_faults(found)
    with pytest.raises(KeyFileError):
        bank.read_secrets()
    file.write_text("not-for-logs\n", "utf-8")
    file.chmod(0o644)
    assert f"{file}: can be read by others; chmod 600 it" in secret_faults(found)
    file.chmod(0o600)
    secrets = bank.read_secrets()
    assert secrets == {"password": "not-for-logs"}
    assert "not-for-logs" not in repr((bank, bank.profile({}, secrets), redacted(found)))
    file.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="UTF-8"):
        bank.read_secrets()


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ("", "secrets.password is missing"),
        ('secrets = { ‸pasword = { file = "x" } }', "has no secret 'pasword'"),
        ("secrets = { password = { ‸fil = 3 } }", "fil"),
        ('secrets = { ‸password = "clear" }', "must be a table"),
    ],
)
def test_what_is_wrong_with_secrets_is_told_at_its_place(
    tmp_path: Path, secrets: str, message: str
) -> None:
    made = text(secrets)
    if not secrets:
        made = changed('[[bank]]\nname = "cmb"', '‸[[bank]]\nname = "cmb"', made)
    faults = marked(tmp_path, made)
    assert any(message in fault.message for fault in faults), faults


def test_a_bank_without_secrets_has_none(tmp_path: Path) -> None:
    made = changed(OPTIONS, OPTIONS + '\nsecrets = { ‸pin = { file = "x" } }')
    (fault,) = marked(tmp_path, made)
    assert "adapter cmb_xml has no secret 'pin'" in fault.message
