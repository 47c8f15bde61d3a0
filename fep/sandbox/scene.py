"""A whole scene on one machine: banks, keys, accounts, the daemon; for the demo and the tests.

Everything runs as processes of its own, in one directory, on loopback. The scene starts them, knows
their addresses, and ends those it started.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol, Self

import attrs
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from fep.adapters import registry
from fep.adapters.card import Signer
from fep.adapters.host import BookAccount
from fep.client import BlockingClient
from fep.domain.clock import SystemClock
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.sandbox.book import SqliteBook
from fep.sandbox.ukey.rig import UkeyRig

PORT_FIRST: Final = 10_000
PORT_END: Final = 32_768
PORT_TRIES_MAX: Final = 100
START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 15.0
POLL_SECONDS: Final = 0.02
PIN: Final = "123456"
FINANCE_CLIENT: Final = "erp-1"


@attrs.frozen
class BankPlan:
    """One bank of the scene."""

    name: str
    adapter: str
    bank_class: str
    bank_code: str
    title: str
    account_prefix: str
    options: Mapping[str, Any]
    secrets: Mapping[str, str] = attrs.Factory(dict)
    """What the adapter's secrets are, by their names."""


BANKS: Final = (
    BankPlan(
        "pingan",
        "pingan_b2bi",
        "307",
        "307584007998",
        "平安银行",
        "990000000001",
        {"corp_code": "00102079900001234000"},
    ),
    BankPlan(
        "cmb",
        "cmb_xml",
        "308",
        "308584000013",
        "招商银行",
        "9999000000101",
        {"login_name": "FEP01", "branch": "75", "payee_address_default": "广东省深圳市"},
    ),
    BankPlan(
        "pingan-sh",
        "pingan_b2bi",
        "307",
        "307584007998",
        "平安银行",
        "990000000002",
        {"corp_code": "00102079900005678000"},
    ),
    BankPlan(
        "cmb-bj",
        "cmb_xml",
        "308",
        "308584000013",
        "招商银行",
        "9999000000202",
        {"login_name": "FEP02", "branch": "10", "payee_address_default": "北京市"},
    ),
)
"""Two banks of each kind; the CNAPS codes are the public ones of the head offices."""

CARD_CHANGES: Final[dict[str, Any]] = {
    "signing": {"by": "slot"},
    "throttle": {"submit_gap_s": 0.0, "query_gap_s": 0.0, "concurrent_max": 0},
    "inquiry": {
        "cool_down_s": 0.5,
        "accepted_interval_s": 0.2,
        "backoff_factor": 1.5,
        "interval_max_s": 2.0,
        "horizon_s": 120.0,
        "no_record": "after",
        "no_record_after_s": 1.0,
        "quiet_from": "",
        "quiet_to": "",
    },
    "batch": {"poll_s": 0.2},
}
"""The simulated banks book at once and forget nothing, so waits of minutes become fractions.

A payment that they don't find at first they find within ``host.HIDDEN_SECONDS_MAX``.
"""


class Running(Protocol):
    """What the scene asks of a process; ``subprocess.Popen`` is one."""

    pid: int
    stdout: IO[Any] | None

    @property
    def returncode(self) -> int | None:
        """Its exit status once ``poll`` or ``wait`` has seen its end."""

    def poll(self) -> int | None:
        """Return the exit status, None while it lives."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises ``subprocess.TimeoutExpired``."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """Send it SIGKILL."""


class Launch(Protocol):
    """Starts a ``fep`` command as a process of its own."""

    def __call__(
        self,
        arguments: Sequence[str],
        log_file: Path,
        *,
        pipe: bool,
        environment: Mapping[str, str],
    ) -> Running:
        """Return it started, with what it writes in the log file.

        Args:
            arguments: such as ``["run", "--config", "fep.toml"]``.
            log_file: gets standard error, and standard output too unless ``pipe``.
            pipe: whether standard output is to be read as ``stdout`` of what is returned.
            environment: variables on top of our own.
        """
        ...


def launch(
    arguments: Sequence[str], log_file: Path, *, pipe: bool, environment: Mapping[str, str]
) -> Running:
    """Start a ``fep`` command in a fresh Python; see ``Launch``."""
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fep.daemon.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else log,
            stderr=log,
            env=os.environ | environment,
        )


def _signs_by_itself(plan: BankPlan) -> bool:
    """Say whether the plan's adapter signs with a key of its own, and not with a slot's."""
    return registry.adapter(plan.adapter).card.signing.by is Signer.ADAPTER


@attrs.define
class HostProcess:
    """One simulated bank."""

    plan: BankPlan
    directory: Path
    certificates: Sequence[Path] = ()
    faults: str = ""
    seed: int = 0
    port: int = 0
    log_level: str = "info"
    start_command: Launch = launch
    process: Running | None = None

    @property
    def log_file(self) -> Path:
        """Where it writes its log; with level debug one record for all it receives."""
        return self.directory / f"host-{self.plan.name}.log"

    def start(self) -> None:
        """Start it, in place of an earlier one and on its port, and wait until it listens."""
        self.launch()
        self.wait_listening()

    def launch(self) -> None:
        """Start it and do not wait; call ``wait_listening`` next."""
        self.kill()
        command = ["host", self.plan.adapter, "--bank", self.plan.name]
        command += ["--listen", f"127.0.0.1:{self.port}", "--log-level", self.log_level]
        command += ["--ledger", str(self.directory / "book.sqlite"), "--seed", str(self.seed)]
        for certificate in self.certificates:
            command += ["--certificate", str(certificate)]
        if self.faults:
            command += ["--faults", self.faults]
        self.process = self.start_command(command, self.log_file, pipe=True, environment={})

    def wait_listening(self) -> None:
        """Wait until it listens, and learn on which port.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            msg = f"the simulated bank {self.plan.name} did not start; see its log"
            raise RuntimeError(msg)
        self.port = int(json.loads(line)["address"].rpartition(":")[2])

    def kill(self) -> None:
        """End it at once, as kill -9."""
        end(self.process, signal.SIGKILL)
        self.process = None

    def stop(self) -> None:
        """End it in order."""
        end(self.process, signal.SIGTERM)
        self.process = None

    @property
    def alive(self) -> bool:
        """False when it has ended, or was never started."""
        return self.process is not None and self.process.poll() is None


def end(process: Running | None, number: signal.Signals) -> int | None:
    """Send a signal to a process that we started, wait for its end, return its status."""
    if process is None:
        return None
    if process.poll() is None:
        process.send_signal(number)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS_MAX)
    finally:
        # Also when a second Ctrl-C ends the waiting: nothing that was started stays behind.
        if process.poll() is None:
            process.kill()
            process.wait(STOP_SECONDS_MAX)
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def free_port() -> int:
    """Return a loopback port that was free a moment ago.

    It is below those that the kernel gives to outgoing connections, so that none of them takes it
    before it is listened at, or between two lives of who listens there.
    """
    import socket  # noqa: PLC0415

    for _ in range(PORT_TRIES_MAX):
        port = random.SystemRandom().randrange(PORT_FIRST, PORT_END)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    msg = f"no free port of loopback from {PORT_FIRST} to {PORT_END} was found"
    raise RuntimeError(msg)


def make_software_key(directory: Path, name: str) -> Path:
    """Make a key (PKCS#8, mode 0600) and its certificate beside it; returns the certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = SystemClock().now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    crt = directory / f"{name}.crt"
    crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return crt


def write_secret(path: Path, text: str) -> Path:
    """Write a file that only its owner can read."""
    path.touch(0o600)
    path.write_text(text + "\n", "utf-8")
    return path


class Scene:
    """The scene in one directory; use it as a context manager.

    Args:
        directory: where everything is written.
        banks: which banks take part.
        accounts_per_bank: approved accounts at each.
        seed: of the balances and thresholds.
        rig: virtual UKeys, one a bank; None: software keys.
        heartbeat_s: of the control connections.
        start_command: how the daemon and the banks are started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        banks: Sequence[BankPlan] = BANKS,
        accounts_per_bank: int = 20,
        seed: int = 1,
        rig: UkeyRig | None = None,
        heartbeat_s: float = 2.0,
        start_command: Launch = launch,
    ) -> None:
        self.directory = directory
        self.banks = tuple(banks)
        self.rig = rig
        self.port = free_port()
        self.config = directory / "fep.toml"
        self.token = directory / "token"
        self.socket = directory / "control.sock"
        self.hosts: dict[str, HostProcess] = {}
        self.daemon: Running | None = None
        self._rng = random.Random(seed)
        self._heartbeat_s = heartbeat_s
        self._start_command = start_command
        self.workers = 4
        self.reply_timeout_s = 5.0
        self.store: Mapping[str, Any] | None = None
        """``[store]`` of the configuration; None: a file of this daemon's own."""
        self.tape = False
        """Whether the banks' bytes are written to tapes."""
        self.card_changes: dict[str, Any] = json.loads(json.dumps(CARD_CHANGES))
        directory.mkdir(parents=True, exist_ok=True)
        self.accounts = [
            BookAccount(
                BankName(plan.name),
                AccountNumber(f"{plan.account_prefix}{number:02d}"),
                f"江枫样例制造有限公司{plan.name}{number:02d}",
                Cny(self._rng.randrange(5_000_00, 900_000_00)),
            )
            for plan in self.banks
            for number in range(1, accounts_per_bank + 1)
        ]
        self.target = self.accounts[0]
        self.thresholds = {
            one.number: Cny(self._rng.randrange(100_000_00, 800_000_00, 1_000_00))
            for one in self.accounts
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that was started; the daemon first, and the rest whatever happens to it."""
        with contextlib.ExitStack() as stack:
            for host in self.hosts.values():
                stack.callback(host.stop)
            stack.callback(self.stop_daemon)

    # -- banks --------------------------------------------------------------------------------

    def open_book(self) -> SqliteBook:
        """Return a connection to the book; made with its accounts the first time."""
        book = SqliteBook(self.directory / "book.sqlite")
        book.open_accounts(self.accounts, SystemClock().now())
        return book

    def start_hosts(
        self,
        faults: str = "",
        *,
        own: Mapping[str, str] | None = None,
        log_level: str = "info",
    ) -> None:
        """Start the simulated banks; each demands signatures by its own key.

        Args:
            faults: of all.
            own: more faults, by the bank's name.
            log_level: of their logs.
        """
        self.open_book().close()
        for place, plan in enumerate(self.banks):
            certificates = [self._certificate(place)]
            self.hosts[plan.name] = HostProcess(
                plan,
                self.directory,
                certificates,
                ",".join(filter(None, (faults, (own or {}).get(plan.name, "")))),
                seed=place,
                log_level=log_level,
                start_command=self._start_command,
            )
        for host in self.hosts.values():
            host.launch()
        for host in self.hosts.values():
            host.wait_listening()

    def _certificate(self, place: int) -> Path:
        plan = self.banks[place]
        if self.rig is None:
            path = self.directory / f"ukey-{plan.name}.crt"
            return path if path.exists() else make_software_key(self.directory, path.stem)
        path = self.directory / f"ukey-{plan.name}-9c.crt"
        certificate = x509.load_der_x509_certificate(self.rig.cards[place].certificate_der("9C"))
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    # -- daemon -------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """Return the configuration of the scene; change it before ``write_config``."""
        write_secret(self.token, secrets.token_hex(16))
        slots: list[dict[str, Any]] = []
        for place, plan in enumerate(self.banks):
            slot: dict[str, Any] = {"name": f"ukey-{plan.name}"}
            if self.rig is None:
                slot |= {"backend": "software", "key": {"file": f"ukey-{plan.name}.pem"}}
            else:
                card = self.rig.cards[place]
                pin = write_secret(self.directory / f"ukey-{plan.name}.pin", PIN)
                binding = {"guid": card.guid, "certificate_sha256": card.certificate_sha256("9C")}
                slot |= {"backend": "pcsc", "card": binding, "pin": {"file": pin.name}}
            slots.append(slot)
        banks = [
            {
                "name": plan.name,
                "adapter": plan.adapter,
                "class": plan.bank_class,
                "direct_connect_number": f"{plan.bank_class}-{plan.name}",
                "host": "127.0.0.1",
                "port": self.hosts[plan.name].port,
                "slot": f"ukey-{plan.name}",
                "workers": self.workers,
                "reply_timeout_s": self.reply_timeout_s,
                "heartbeat_s": max(3.0, self.reply_timeout_s / 2),
                "backoff_first_s": 0.1,
                "backoff_max_s": 1.0,
                "options": dict(plan.options),
                "tape": self.tape,
                "secrets": {
                    name: {"file": write_secret(self.directory / f"{plan.name}.{name}", value).name}
                    for name, value in plan.secrets.items()
                },
                "card": {
                    name: table
                    for name, table in self.card_changes.items()
                    if name != "signing" or not _signs_by_itself(plan)
                },
            }
            for plan in self.banks
        ]
        plans = {plan.name: plan for plan in self.banks}
        return {
            "mode": "demo",
            "state_dir": "state",
            **({} if self.store is None else {"store": dict(self.store)}),
            "enterprise": {"id": "E0001", "fep_number": "FEP-01"},
            "control": {
                "socket": self.socket.name,
                "heartbeat_s": self._heartbeat_s,
                "tcp": [{"listen": f"127.0.0.1:{self.port}", "token_file": self.token.name}],
                "clients": {FINANCE_CLIENT: {"role": "finance"}},
            },
            "tasks": {"fetch_timeout_s": 5.0},
            "slot": slots,
            "bank": banks,
            "account": [
                {
                    "number": one.number,
                    "bank": one.bank,
                    "name": one.name,
                    "bank_code": plans[one.bank].bank_code,
                    "bank_title": plans[one.bank].title,
                }
                for one in self.accounts
            ],
            "pool": [
                {
                    "name": "main",
                    "target": self.target.number,
                    "member": [
                        {"account": one.number, "threshold": str(self.thresholds[one.number])}
                        for one in self.accounts
                        if one is not self.target
                    ],
                }
            ],
        }

    def write_config(self, config: Mapping[str, Any] | None = None) -> Path:
        """Write the configuration file and return its path."""
        self.config.write_text(tomli_w.dumps(config or self.configuration()), "utf-8")
        return self.config

    def start_daemon(self, *, log_name: str = "fep.log") -> None:
        """Start ``fep run`` and wait until it answers on its control socket."""
        command = ["run", "--config", str(self.config)]
        environment = {} if self.rig is None else self.rig.environment
        self.daemon = self._start_command(
            command, self.directory / log_name, pipe=False, environment=environment
        )
        limit = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < limit:
            if self.daemon.poll() is not None:
                break
            with contextlib.suppress(OSError), self._probe():
                return
            time.sleep(POLL_SECONDS)
        tail = (self.directory / log_name).read_text("utf-8")[-2000:]
        msg = f"the daemon did not start:\n{tail}"
        raise RuntimeError(msg)

    @contextlib.contextmanager
    def _probe(self) -> Iterator[None]:
        import socket  # noqa: PLC0415

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.socket))
            yield

    def stop_daemon(self) -> int | None:
        """End the daemon in order (SIGTERM); returns its exit status."""
        status = end(self.daemon, signal.SIGTERM)
        self.daemon = None
        return status

    def kill_daemon(self) -> None:
        """End the daemon at once, as kill -9."""
        end(self.daemon, signal.SIGKILL)
        self.daemon = None

    def operator(self) -> BlockingClient:
        """Return a client on the Unix socket, with the admin role of the daemon's own user."""
        return BlockingClient(f"unix:{self.socket}", "operator")

    def wait(self, client: BlockingClient, ready: Any, what: str, seconds: float = 30.0) -> Any:  # noqa: ANN401
        """Poll ``ready(client)`` until it returns something true, and return that.

        Raises:
            TimeoutError: it did not within ``seconds``.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if found := ready(client):
                return found
            time.sleep(POLL_SECONDS)
        msg = f"{what}: not within {seconds:g} s"
        raise TimeoutError(msg)

    def wait_ready(self, client: BlockingClient, seconds: float = 30.0) -> None:
        """Wait until every key is in and every bank's connection is up."""

        def ready(client: BlockingClient) -> bool:
            status = client.call("status")
            return all(state.upper() == "READY" for state in status["links"].values()) and all(
                state.upper() in ("READY", "BUSY") for state in status["slots"].values()
            )

        self.wait(client, ready, "keys and links ready", seconds)


def log_lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON log, skipping what is none."""
    for line in file:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record
