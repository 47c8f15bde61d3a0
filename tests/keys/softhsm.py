"""Tokens of SoftHSM, made by its own tool and OpenSC's, for tests."""

from __future__ import annotations

import ctypes
import datetime as dt
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from fep.domain.ids import SlotName
from fep.keys.config import ObjectRef, SecretRef, SlotConfig, TokenBinding
from fep.keys.cryptoki import _FUNCTIONS
from fep.keys.signatures import fingerprint
from tests.keys.bench import PIN
from tests.keys.files import PrivateKey, certificate_of, pem_of

LIBRARY = next(
    (
        path
        for path in map(
            Path,
            (
                "/usr/lib/softhsm/libsofthsm2.so",
                "/usr/lib64/softhsm/libsofthsm2.so",
                "/usr/lib64/pkcs11/libsofthsm2.so",
            ),
        )
        if path.exists()
    ),
    Path("libsofthsm2.so"),
)
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


@attrs.frozen
class HsmToken:
    """One token and what is in it."""

    label: str
    serial: str
    key: PrivateKey
    certificate: bytes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def slot(
        self,
        pin: SecretRef | None,
        module: Path = LIBRARY,
        *,
        deadline_s: float = 10.0,
        serial: str | None = None,
        label: str = "",
        certificate_sha256: str = "",
        wanted: ObjectRef = ObjectRef(),  # noqa: B008 - frozen
    ) -> SlotConfig:
        """Return the configuration of a slot bound to it."""
        return SlotConfig(
            name=SlotName(self.label),
            backend="pkcs11",
            pin=pin,
            sign_deadline_s=deadline_s,
            module=module,
            token=TokenBinding(
                certificate_sha256 or self.fingerprint,
                self.serial if serial is None else serial,
                label,
            ),
            object=wanted,
        )


class Hsm:
    """A directory of tokens, which SoftHSM shows in this process from its next start on."""

    def __init__(self, directory: Path, mechanisms: str = "ALL") -> None:
        self.directory = directory
        (directory / "tokens").mkdir(parents=True)
        self.configuration = directory / "softhsm2.conf"
        self.configuration.write_text(
            f"directories.tokendir = {directory}/tokens\n"
            f"objectstore.backend = file\nlog.level = ERROR\nslots.mechanisms = {mechanisms}\n"
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.configuration)}

    def make(
        self,
        label: str,
        key: PrivateKey,
        certified: PrivateKey | None = None,
        *,
        days: int = 365,
    ) -> HsmToken:
        """Make a token with a key, and the certificate of it or of another one."""
        self.make_empty(label)
        certificate = certificate_of(certified or key, NOW, days)
        self.add(label, "01", key, certificate)
        return HsmToken(label, self.serial(label), key, certificate)

    def make_empty(self, label: str) -> None:
        """Make a token with nothing in it."""
        made = ("--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", PIN)
        self._run("softhsm2-util", *made)

    def add(self, label: str, number: str, key: PrivateKey | None, certificate: bytes) -> None:
        """Put a key and a certificate into a token, both under one CKA_ID."""
        pem, der = self.directory / "key.pem", self.directory / "certificate.der"
        if key is not None:
            pem.write_bytes(pem_of(key))
            self._run(
                *("softhsm2-util", "--import", str(pem), "--token", label, "--pin", PIN),
                *("--label", f"key {number}", "--id", number),
            )
        if certificate:
            der.write_bytes(certificate)
            self._run(
                *("pkcs11-tool", "--module", str(LIBRARY), "--token-label", label),
                *("--write-object", str(der), "--type", "cert", "--id", number),
            )

    def serial(self, label: str) -> str:
        """Return a token's serial as SoftHSM's own tool tells it."""
        listed = self._run("softhsm2-util", "--show-slots")
        tokens = re.findall(r"Serial number: +(\w*)\n.*?Label: +([^\n]*?) *\n", listed, re.DOTALL)
        (found,) = [serial for serial, name in tokens if name == label]
        return str(found)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hsm:
    """SoftHSM with no token yet, for this process too."""
    made = Hsm(tmp_path / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.configuration))
    return made


class Faults:
    """SoftHSM behind a library that answers wrongly or late when told; for this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.fault_set.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_int)
        self._library.fault_flags.argtypes = (ctypes.c_ulong,)

    def answer(self, function: str, number: int, times: int = 1) -> None:
        """Have a function fail, so many times; below 0 for ever, 0 no more."""
        self._library.fault_set(_FUNCTIONS.index(function), number, times)

    def hold(self, function: str, on: bool = True) -> None:
        """Have calls of a function not return until it is let go."""
        self._library.fault_hold(_FUNCTIONS.index(function), int(on))

    def flags(self, flags: int) -> None:
        """Show these flags of all tokens too."""
        self._library.fault_flags(flags)

    def hide(self, on: bool = True) -> None:
        """Show no token."""
        self._library.fault_hide(int(on))

    def calls(self, function: str) -> int:
        """Return how often a function was called since the test began."""
        return int(self._library.fault_calls(_FUNCTIONS.index(function)))

    def clear(self) -> None:
        """Behave."""
        self._library.fault_clear()


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that can misbehave, compiled."""
    return faulty(tmp_path_factory.mktemp("faulty"), LIBRARY)


def faulty(directory: Path, real: Path) -> Path:
    """Compile the library that can misbehave in front of a real one."""
    made = directory / "faulty_token.so"
    source = Path(__file__).with_name("faulty_token.c")
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1"),
            *(f'-DREAL="{real}"', "-o", str(made), str(source)),
        ],
        check=True,
    )
    return made


@pytest.fixture
def faults(faulty_library: Path) -> Iterator[Faults]:
    """It, with no fault set."""
    made = Faults(faulty_library)
    made.clear()
    yield made
    made.clear()
