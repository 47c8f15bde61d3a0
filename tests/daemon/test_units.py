"""The service manager's files: understood by systemd itself, and in step with the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fep.daemon.config import load

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "systemd"
EXPOSURE_MAX = 15
"""Tenths, as systemd-analyze counts: 10 is fully locked down, 100 has no protection at all."""

HARDENED = [
    "NoNewPrivileges=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectHome=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RemoveIPC=yes",
    "ProtectSystem=strict",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    "KeyringMode=private",
    "DevicePolicy=closed",
    "LimitCORE=0",
    "DynamicUser=yes",
    "PrivateUsers=no",
]

STAYS_UP = [
    "Restart=on-failure",
    "StartLimitIntervalSec=0",
    "WatchdogSec=30s",
    "OOMPolicy=stop",
    "OOMScoreAdjust=-500",
    "LogRateLimitIntervalSec=0",
]
"""What keeps the service, and its log, whatever happens to it."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies whose commands exist on this machine."""
    for unit in UNITS.glob("fep.s*"):
        text = unit.read_text("utf-8").replace("/opt/fep/bin/fep", sys.executable)
        (tmp_path / unit.name).write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["fep.service", "fep.socket"])
def test_systemd_finds_nothing_to_say(units: Path, name: str) -> None:
    told = run("systemd-analyze", "verify", units / name)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_systemd_would_say_it(units: Path) -> None:
    unit = units / "fep.service"
    unit.write_text(unit.read_text("utf-8").replace("WatchdogSec", "WatchdogSeconds"), "utf-8")
    assert "Unknown key" in run("systemd-analyze", "verify", unit).stderr


def test_the_service_is_locked_down(units: Path) -> None:
    unit = units / "fep.service"
    told = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    assert told.returncode == 0, told.stdout + told.stderr
    lines = unit.read_text("utf-8").splitlines()
    assert [one for one in HARDENED if one not in lines] == []


def test_the_service_is_never_given_up(units: Path) -> None:
    lines = (units / "fep.service").read_text("utf-8").splitlines()
    assert [one for one in STAYS_UP if one not in lines] == []


def test_the_groups_of_socket_and_configuration_are_made() -> None:
    told = run("systemd-sysusers", "--dry-run", UNITS / "fep.sysusers.conf")
    assert told.returncode == 0, told.stderr
    text = "".join((UNITS / name).read_text("utf-8") for name in ("fep.socket", "fep.service"))
    (socket,) = re.findall("^SocketGroup=(.+)$", text, re.MULTILINE)
    (service,) = re.findall("^SupplementaryGroups=(.+)$", text, re.MULTILINE)
    made = (UNITS / "fep.sysusers.conf").read_text("utf-8").splitlines()
    assert {f"g {socket} -", f"g {service} -"} <= set(made)


def test_the_folder_of_the_configuration_is_writable_for_the_service() -> None:
    service = (UNITS / "fep.service").read_text("utf-8")
    (group,) = re.findall("^SupplementaryGroups=(.+)$", service, re.MULTILINE)
    (mode,) = re.findall("^ConfigurationDirectoryMode=(.+)$", service, re.MULTILINE)
    (folder,) = re.findall("^ReadWritePaths=(.+)$", service, re.MULTILINE)
    lines = (UNITS / "fep.tmpfiles.conf").read_text("utf-8").splitlines()
    assert f"d {folder} {mode} root {group} -" in lines


def test_units_and_example_speak_of_the_same_socket_and_secrets() -> None:
    config = load(ROOT / "config" / "fep.toml")
    socket = (UNITS / "fep.socket").read_text("utf-8")
    service = (UNITS / "fep.service").read_text("utf-8")
    assert f"ListenStream={config.control.socket}" in socket
    assert "FileDescriptorName=control" in socket
    assert "StateDirectory=fep" in service
    assert str(config.state_dir) == "/var/lib/fep"
    wanted = {slot.pin.credential for slot in config.slots if slot.pin is not None}
    files = [one.token_file for one in config.control.tcp if one.token_file is not None]
    files += [one.tls.key for one in config.control.tcp if one.tls is not None]
    for file in files:
        assert file.parent == Path("/run/credentials/fep.service")
        wanted.add(file.name)
    assert wanted == set(re.findall(r"LoadCredentialEncrypted=([^:]+):", service))


def test_the_daemon_has_time_to_end_in_order() -> None:
    from fep.daemon.app import DRAIN_SECONDS_MAX  # noqa: PLC0415 - loads the whole daemon
    from fep.store.database import CLOSE_SECONDS_MAX  # noqa: PLC0415

    service = (UNITS / "fep.service").read_text("utf-8")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > DRAIN_SECONDS_MAX + CLOSE_SECONDS_MAX
