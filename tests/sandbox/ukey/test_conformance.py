"""The virtual card before outside judges: OpenSC, ykman and yubico-piv-tool over a real pcscd.

Each test is what a client that knows nothing of us says about the card.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from fep.sandbox.ukey.piv import FACTORY_MANAGEMENT_KEY
from fep.sandbox.ukey.rig import UkeyCard, UkeyRig
from tests.rig import COMMON_NAMES

CARD = 1
PIN = "123456"
PUK = "12345678"
WRONG_PIN = "999999"
TOOL_SECONDS_MAX = 60
MESSAGE = b"transfer 100.00 from 6222 to 6223"
MODULE = "opensc-pkcs11.so"


@attrs.frozen
class Tool:
    """Runs outside programs in the rig's environment; ``work`` is their current folder."""

    environment: dict[str, str]
    work: Path
    card: UkeyCard

    def run(self, *command: str, succeeds: bool = True) -> str:
        """Return all a program prints, having checked how it ended."""
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TOOL_SECONDS_MAX,
            check=False,
        )
        assert (done.returncode == 0) is succeeds, done.stdout
        return done.stdout

    def pkcs15(self, *arguments: str) -> str:
        return self.run("pkcs15-tool", "--reader", self.card.reader_name, *arguments)

    def pkcs11(self, *arguments: str, succeeds: bool = True) -> str:
        slot = ("--slot-index", str(CARD))
        command = ("pkcs11-tool", "--module", MODULE, *slot, *arguments)
        return self.run(*command, succeeds=succeeds)

    def ykman(self, *arguments: str, succeeds: bool = True) -> str:
        program = str(Path(sys.executable).with_name("ykman"))
        command = (program, "--reader", self.card.reader_name, "piv", *arguments)
        return self.run(*command, succeeds=succeeds)

    def administer(self, *arguments: str) -> str:
        """Run a ykman command that takes PIN and management key after its name."""
        secrets = ("-P", PIN, "-m", FACTORY_MANAGEMENT_KEY.hex())
        group, verb, *rest = arguments
        return self.ykman(group, verb, *secrets, *rest)


@pytest.fixture
def tool(fresh_ukeys: UkeyRig, tmp_path: Path) -> Tool:
    (tmp_path / "message").write_bytes(MESSAGE)
    (tmp_path / "digest").write_bytes(hashlib.sha256(MESSAGE).digest())
    environment = os.environ | fresh_ukeys.environment | {"HOME": str(tmp_path), "LC_ALL": "C"}
    return Tool(environment, tmp_path, fresh_ukeys.cards[CARD])


def test_every_judge_is_installed() -> None:
    programs = ("opensc-tool", "pkcs15-tool", "pkcs11-tool", "yubico-piv-tool", "openssl")
    assert [program for program in programs if shutil.which(program) is None] == []
    assert Path(sys.executable).with_name("ykman").exists()


# OpenSC.


def test_opensc_lists_readers_and_recognises_a_piv_card(tool: Tool) -> None:
    listing = tool.run("opensc-tool", "-l")
    assert listing.count("Yes") == 4
    assert all(f"UKey {slot:02} {slot:02X} 00" in listing for slot in range(4))
    name = tool.run("opensc-tool", "-r", str(CARD), "-n")
    assert "Personal Identity Verification Card" in name


def test_opensc_reads_the_structure_of_the_card(tool: Tool) -> None:
    dump = tool.pkcs15("--dump")
    assert tool.card.guid in dump.lower()
    assert "piv_II" in dump
    assert dump.count("Private RSA Key") == 2
    assert dump.count("Private EC Key") == 2
    assert dump.count("X.509 Certificate [") == 4
    references = [line.split()[-2] for line in dump.splitlines() if "Key ref" in line]
    assert references == ["154", "156", "157", "158"] * 2  # 9A 9C 9D 9E, private and public
    for reference in ("Reference      : 128", "Reference      : 129"):  # PIN 80, PUK 81
        assert reference in dump


def test_pkcs11_shows_the_token(tool: Tool) -> None:
    listing = tool.pkcs11("-L")
    token = listing.split("Slot 1 ")[1] if "Slot 1 " in listing else listing
    assert COMMON_NAMES[CARD] in token
    assert "PKCS#15 emulated" in token
    assert tool.card.guid[-16:] in token


def test_pkcs11_tool_s_own_test_finds_no_errors(tool: Tool) -> None:
    assert "No errors" in tool.pkcs11("--test", "--login", "--pin", PIN)


@pytest.mark.parametrize("key", ["01", "02"])  # 9A, 9C
def test_an_rsa_signature_through_pkcs11_is_good_for_openssl(tool: Tool, key: str) -> None:
    sign = ("--sign", "--id", key, "-m", "SHA256-RSA-PKCS", "-i", "message", "-o", "signature")
    tool.pkcs11(*sign, "--login", "--pin", PIN)
    _read_public_key(tool, key)
    verify = ("-verify", "public.pem", "-signature", "signature", "message")
    assert "Verified OK" in tool.run("openssl", "dgst", "-sha256", *verify)


def test_an_ec_signature_through_pkcs11_is_good_for_openssl(tool: Tool) -> None:
    form = ("-m", "ECDSA", "--signature-format", "openssl")
    sign = ("--sign", "--id", "04", *form, "-i", "digest", "-o", "signature")
    tool.pkcs11(*sign, "--login", "--pin", PIN)
    _read_public_key(tool, "04")
    verify = ("-pubin", "-inkey", "public.pem", "-sigfile", "signature", "-in", "digest")
    said = tool.run("openssl", "pkeyutl", "-verify", *verify)
    assert "Signature Verified Successfully" in said


def _read_public_key(tool: Tool, key: str) -> None:
    tool.pkcs15("--read-certificate", key, "-o", "certificate.pem")
    pem = tool.run("openssl", "x509", "-in", "certificate.pem", "-pubkey", "-noout")
    (tool.work / "public.pem").write_text(pem)


def test_wrong_pins_through_pkcs11_lock_the_card_and_the_puk_unlocks_it(tool: Tool) -> None:
    sign = ("--sign", "--id", "01", "-m", "SHA256-RSA-PKCS", "-i", "message", "-o", "signature")
    answers = [tool.pkcs11(*sign, "--login", "--pin", WRONG_PIN, succeeds=False) for _ in range(4)]
    codes = ["CKR_PIN_INCORRECT" in said for said in answers]
    assert codes == [True, True, False, False]
    assert all("CKR_PIN_LOCKED" in said for said in answers[2:])
    assert "user PIN locked" in tool.pkcs11("-L")
    tool.pkcs15("--unblock-pin", "--auth-id", "01", "--puk", PUK, "--new-pin", PIN)
    tool.pkcs15("--verify-pin", "--auth-id", "01", "--pin", PIN)
    assert tool.card.pin_tries_left == 3


# ykman.


def test_ykman_describes_the_card(tool: Tool) -> None:
    said = tool.ykman("info")
    assert "PIV version:              5.4.3" in said
    assert "PIN tries remaining:      3/3" in said
    assert "PUK tries remaining:      3/3" in said
    assert "TDES" in said
    assert "WARNING: Using default PIN!" in said
    assert all(f"Slot {key}" in said for key in ("9A", "9C", "9D", "9E"))


def test_ykman_makes_a_key_a_certificate_and_a_request(tool: Tool) -> None:
    said = tool.administer("keys", "generate", "-a", "ECCP256", "9a", "public.pem")
    assert "Private key generated in slot 9A" in said
    tool.administer("certificates", "generate", "-s", "CN=demo", "9a", "public.pem")
    request = ("certificates", "request", "-s", "CN=demo", "-P", PIN)
    tool.ykman(*request, "9a", "public.pem", "request.pem")
    said = tool.run("openssl", "req", "-in", "request.pem", "-verify", "-noout")
    assert "self-signature verify OK" in said
    tool.ykman("certificates", "export", "9a", "certificate.pem")
    use = ("-r", tool.card.reader_name, "-a", "verify-pin", "-P", PIN, "-a", "test-signature")
    said = tool.run("yubico-piv-tool", *use, "-s", "9a", "-i", "certificate.pem")
    assert "Successful ECDSA verification." in said


@pytest.mark.parametrize(
    "make", [("RSA", "rsa_keygen_bits:2048"), ("EC", "ec_paramgen_curve:P-256")]
)
def test_ykman_imports_a_key(tool: Tool, make: tuple[str, str]) -> None:
    algorithm, option = make
    tool.run("openssl", "genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out", "key.pem")
    tool.administer("keys", "import", "9c", "key.pem")
    said = tool.ykman("keys", "info", "9c")
    assert "PIN required for use:   ALWAYS" in said
    assert "IMPORTED" in said


def test_writing_a_certificate_by_ykman_changes_the_guid(tool: Tool) -> None:
    before = tool.card.guid
    tool.administer("keys", "generate", "-a", "ECCP256", "9a", "public.pem")
    assert tool.card.guid == before
    tool.administer("certificates", "generate", "-s", "CN=demo", "9a", "public.pem")
    assert tool.card.guid != before
    assert len(tool.card.certificate_der("9A")) > 100


def test_ykman_changes_the_pin_counts_wrong_ones_and_unblocks(tool: Tool) -> None:
    change = ("access", "change-pin")
    assert "New PIN set." in tool.ykman(*change, "-P", PIN, "-n", "654321")
    answers = [tool.ykman(*change, "-P", WRONG_PIN, "-n", PIN, succeeds=False) for _ in range(4)]
    expected = ["2 tries left", "1 tries left", "PIN is blocked", "PIN is blocked"]
    assert [words in said for words, said in zip(expected, answers, strict=True)] == [True] * 4
    assert "New PIN set." in tool.ykman("access", "unblock-pin", "-p", PUK, "-n", PIN)
    assert tool.card.pin_tries_left == 3


def test_ykman_changes_the_management_key(tool: Tool) -> None:
    change = ("access", "change-management-key", "-P", PIN)
    old, new = FACTORY_MANAGEMENT_KEY.hex(), "0f" * 24
    tool.ykman(*change, "-m", old, "-a", "AES192", "-n", new)
    assert "AES192" in tool.ykman("info")
    tool.ykman(*change, "-m", new, "-a", "TDES", "-n", old)
    tool.ykman(*change, "-m", new, "-n", old, succeeds=False)


def test_ykman_resets_the_card(tool: Tool) -> None:
    assert "Reset complete" in tool.ykman("reset", "-f")
    assert tool.card.certificate_der("9A") == b""


# yubico-piv-tool.


def test_yubico_piv_tool_reports_the_card(tool: Tool) -> None:
    said = tool.run("yubico-piv-tool", "-r", tool.card.reader_name, "-a", "status")
    assert tool.card.guid in said.lower()
    assert "PIN tries left:\t3" in said or "PIN tries left: 3" in said
    assert all(f"Slot {key}:" in said for key in ("9a", "9c", "9d", "9e"))
    assert said.count("Fingerprint:") == 4


@pytest.mark.parametrize(
    ("key", "words"),
    [("9a", "Successful RSA verification."), ("9e", "Successful ECDSA verification.")],
)
def test_yubico_piv_tool_accepts_a_signature(tool: Tool, key: str, words: str) -> None:
    reader = ("-r", tool.card.reader_name)
    tool.run("yubico-piv-tool", *reader, "-a", "read-certificate", "-s", key, "-o", "c.pem")
    verify = ("-a", "verify-pin", "-P", PIN)
    test = ("-a", "test-signature", "-s", key, "-i", "c.pem")
    assert words in tool.run("yubico-piv-tool", *reader, *verify, *test)
