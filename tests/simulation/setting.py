"""What a run is made of: banks, accounts, keys and the configuration, drawn from the seed."""

from __future__ import annotations

import atexit
import datetime as dt
import functools
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fep.adapters import registry
from fep.adapters.host import BookAccount
from fep.daemon import config as configuration
from fep.daemon.config import Config
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.domain.order import Kind
from tests.simulation.banks import PROMISED_SECONDS
from tests.simulation.machine import EPOCH

BANKS = (
    ("pingan", "pingan_b2bi", "99000000000", {"corp_code": "00102079900001234000"}),
    (
        "cmb",
        "cmb_xml",
        "9999000000101",
        {"login_name": "FEP01", "branch": "75", "payee_address_default": "广东省深圳市"},
    ),
    ("pingan-sh", "pingan_b2bi", "99000000001", {"corp_code": "00102079900005678000"}),
)
BANK_CODES = {"pingan_b2bi": "307584007998", "cmb_xml": "308584000013"}
ACCOUNTS_PER_BANK = 3
ENTERPRISE = "E0001"
HORIZON_SECONDS = 3600.0
REPLY_SECONDS = 20.0
WATCH_SECONDS = 4320.0


@attrs.frozen
class Setting:
    """One way the front end is set up; several runs share it."""

    config: Config
    accounts: tuple[BookAccount, ...]
    adapters: dict[str, str]
    certificates: tuple[x509.Certificate, ...]

    def has_batches(self, bank: str) -> bool:
        """Say whether a bank takes batches."""
        return Kind.BATCH_TRANSFER in registry.adapter(self.adapters[bank]).capabilities


def _card(by_slot: bool) -> dict[str, Any]:
    return {
        "signing": {"by": "slot" if by_slot else "front_end", "algorithm": "ecdsa_sha256"},
        "throttle": {"submit_gap_s": 0.0, "query_gap_s": 0.0, "concurrent_max": 0},
        "inquiry": {
            "cool_down_s": 20.0,
            "accepted_interval_s": 10.0,
            "backoff_factor": 2.0,
            "interval_max_s": 120.0,
            "horizon_s": HORIZON_SECONDS,
            "no_record": "after",
            "no_record_after_s": PROMISED_SECONDS,
            "statement_after": 2,
        },
        "returned": {
            "watch_days": WATCH_SECONDS / 86_400.0,
            "first_look_s": 60.0,
            "interval_s": 300.0,
        },
        "batch": {"poll_s": 30.0},
    }


@functools.cache
def directory() -> Path:
    """Return a directory of this process with one key; the key's file is read in every life."""
    path = Path(tempfile.mkdtemp(prefix="fep-sim-"))
    atexit.register(shutil.rmtree, path)
    # P-256: reading an RSA key takes longer than many a run.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulation")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(EPOCH - dt.timedelta(days=1))
        .not_valid_after(EPOCH + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (path / "key.pem").touch(0o600)
    (path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (path / "key.crt").write_bytes(certificate.public_bytes(pem))
    return path


@functools.cache
def setting(banks: int, by_slot: bool, workers: int) -> Setting:
    """Return the setting with so many banks; made once in a process."""
    place = directory()
    chosen = BANKS[:banks]
    accounts = tuple(
        BookAccount(
            BankName(name),
            AccountNumber(
                f"{prefix}{number:03d}" if "b2bi" in adapter else f"{prefix}{number:02d}"
            ),
            f"江枫样例制造有限公司{name}{number:02d}",
            Cny(1_000_000_00),
        )
        for name, adapter, prefix, _ in chosen
        for number in range(1, ACCOUNTS_PER_BANK + 1)
    )
    adapters = {name: adapter for name, adapter, _, _ in chosen}
    file = {
        "mode": "demo",
        "state_dir": "state",
        "log_level": "debug",
        "enterprise": {"id": ENTERPRISE, "fep_number": "FEP-01"},
        "control": {"socket": "control.sock", "heartbeat_s": 30.0},
        "tasks": {"fetch_timeout_s": 60.0, "age_max_s": 7200.0},
        "slot": [
            {"name": f"ukey-{name}", "backend": "software", "key": {"file": "key.pem"}}
            for name in adapters
        ],
        "bank": [
            {
                "name": name,
                "adapter": adapter,
                "class": "307",
                "direct_connect_number": f"0-{name}",
                "host": "127.0.0.1",
                "port": 1,
                "slot": f"ukey-{name}",
                "workers": workers,
                "reply_timeout_s": REPLY_SECONDS,
                "heartbeat_s": 60.0,
                "options": options,
                "card": _card(by_slot),
            }
            for name, adapter, _, options in chosen
        ],
        "account": [
            {
                "number": one.number,
                "bank": one.bank,
                "name": one.name,
                "bank_code": BANK_CODES[adapters[one.bank]],
            }
            for one in accounts
        ],
        "pool": [
            {
                "name": "main",
                "target": accounts[0].number,
                "member": [
                    {"account": one.number, "threshold": "900000.00"} for one in accounts[1:]
                ],
            }
        ],
    }
    path = place / f"fep-{banks}-{by_slot}-{workers}.toml"
    path.write_text(tomli_w.dumps(file), "utf-8")
    certificate = x509.load_pem_x509_certificate((place / "key.crt").read_bytes())
    return Setting(configuration.load(path), accounts, adapters, (certificate,) if by_slot else ())


def drawn(rng: random.Random) -> Setting:
    """Return a setting."""
    return setting(rng.randint(1, len(BANKS)), rng.random() < 0.3, rng.choice((1, 2, 4)))
