"""A machine to boot: this one's files under a layer in memory, with fep installed as a service.

``python -m tests.system.boot.machine DIRECTORY`` mounts, installs and becomes the booting systemd; it
must run in namespaces of its own (``boot`` sees to that), of which nothing stays behind.
"""

from __future__ import annotations

import configparser
import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric import rsa

from fep.sandbox.scene import BANKS, HostProcess, Scene, write_secret
from tests.keys.bench import PIN
from tests.keys.softhsm import LIBRARY, Hsm
from tests.system.work import ENTERPRISE, transfer

ROOT = Path(__file__).resolve().parent.parent.parent.parent
HERE = Path(__file__).parent
BOOT_SECONDS_MAX = 200.0
TREE_SIZE = "size=1G"
UNSHARE = [
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup",
    "--propagation", "private",
]  # fmt: skip
FINANCE, CONSOLE = "127.0.0.1:7071", "127.0.0.1:8200"
PORTS = {"pingan": 17070, "cmb": 17080}
ADAPTERS = {"pingan": "stuck_bank"}
"""Whose defect is needed; the other bank has its adapter as it is."""
WATCHDOG_SECONDS = 5
CREDENTIALS = "/run/credentials/fep.service"
PREFIX = "/opt/fep"

UNWANTED = (
    "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service",
    "postgresql.service", "ssh.service", "cron.service", "getty@tty1.service",
    "console-getty.service", "apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer",
    "e2scrub_reap.service", "dpkg-db-backup.timer",
)  # fmt: skip

SECRETS_UNIT = """\
[Unit]
Description=Encrypt the secrets with the machine's own key
Before=fep.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/systemd-creds setup
{lines}
[Install]
RequiredBy=fep.service
"""
BANK_UNIT = """\
[Unit]
Description=The simulated bank {name}
Before=fep.service
[Service]
ExecStart=/opt/fep/bin/fep host {adapter} --bank {name} --listen 127.0.0.1:{port} \
--ledger /var/lib/bank/book.sqlite --certificate /opt/proof/ukey-{name}.crt
[Install]
WantedBy=multi-user.target
"""
PROOF_UNIT = """\
[Unit]
Description=Make things happen to fep, note them, and switch the machine off
After=fep.service
[Service]
Type=oneshot
WorkingDirectory=/opt/proof
StandardOutput=file:/share/proof.log
StandardError=file:/share/proof.log
ExecStart=/opt/fep/bin/python /opt/proof/proof.py
ExecStopPost=/bin/systemctl --force --no-block poweroff
[Install]
WantedBy=multi-user.target
"""
PEOPLE = """\
u treasury 1500 "A person who may use the control socket"
m treasury fep-ops
u stranger 1501 "A person who may not"
"""


class NoBootError(Exception):
    """No machine could be booted here; the message says what is needed."""


def boot(directory: Path) -> dict[str, Any]:
    """Boot the machine, let the proof run in it, and return the notes.

    Args:
        directory: an empty one with an absolute path; logs stay in its ``share``.

    Raises:
        NoBootError: it did not come so far that there are notes.
    """
    if os.geteuid():
        raise NoBootError("a machine can be booted by root only: run the tests as root")
    for needed in ("unshare", "systemd-nspawn"):
        if shutil.which(needed) is None:
            msg = f"{needed} is not installed; requirements/debian.txt lists what is needed"
            raise NoBootError(msg)
    (directory / "share").mkdir()
    (directory / "tree").mkdir()
    _gather(directory)
    log = directory / "share" / "boot.log"
    command = [*UNSHARE, sys.executable, "-m", "tests.system.boot.machine", str(directory)]
    with log.open("wb") as out:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=False,
                timeout=BOOT_SECONDS_MAX,
            ).returncode
        except subprocess.TimeoutExpired:
            done = -1
    notes = directory / "share" / "notes.json"
    if not notes.exists():
        said = log.read_text("utf-8", "replace")[-3000:]
        msg = (
            f"the machine did not boot (status {done}). It needs root, namespaces that unshare may "
            f"make, overlay file systems and systemd-nspawn. It said:\n{said}"
        )
        raise NoBootError(msg)
    found: dict[str, Any] = json.loads(notes.read_text("utf-8"))
    return found


# -- before: what the machine is made of ----------------------------------------------------------


def _gather(directory: Path) -> None:
    """Put into ``parts`` what the machine needs besides this one's files."""
    parts = directory / "parts"
    parts.mkdir()
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(parts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOOT_SECONDS_MAX,
    )
    if built.returncode:
        msg = f"no wheel could be built:\n{built.stdout}{built.stderr}"
        raise NoBootError(msg)
    scene = Scene(parts, banks=BANKS[:2], accounts_per_bank=2)
    scene.open_book().close()
    for place, plan in enumerate(scene.banks):
        scene.hosts[plan.name] = HostProcess(plan, parts, port=PORTS[plan.name])
        scene._certificate(place)
    config = tomli_w.dumps(_configuration(scene))
    (parts / "fep.toml").write_text(config, "utf-8")
    token = scene.token.read_text("utf-8").strip()
    told = {
        "enterprise": ENTERPRISE,
        "config": config,
        "token": token,
        "password": secrets.token_hex(16),
        "finance": f"tcp:{FINANCE}",
        "console": f"http://{CONSOLE}",
        "payments": {bank: _payment(scene, bank) for bank in PORTS},
    }
    (parts / "plan.json").write_text(json.dumps(told), "utf-8")


def _more_keys(parts: Path) -> list[dict[str, Any]]:
    """Return slots that no bank uses: foreign code that the sandbox must let in, and a PIN."""
    write_secret(parts / "sm2-1", f"{secrets.randbelow(1 << 255) + 1:064x}")
    write_secret(parts / "hsm-1-pin", PIN)
    hsm = Hsm(parts / "hsm")
    token = hsm.make("hsm-1", rsa.generate_private_key(65537, 2048))
    binding = {"serial": token.serial, "certificate_sha256": token.fingerprint}
    return [
        {"name": "sm2-1", "backend": "software", "key": {"credential": "sm2-1"}},
        {
            "name": "hsm-1",
            "backend": "pkcs11",
            "module": str(LIBRARY),
            "token": binding,
            "pin": {"credential": "hsm-1-pin"},
        },
    ]


def _payment(scene: Scene, bank: str) -> dict[str, Any]:
    """Return the body of a payment between the two accounts at a bank."""
    payer, payee = (one for one in scene.accounts if one.bank == bank)
    return transfer(scene, payer, payee, "1.00")


def _configuration(scene: Scene) -> dict[str, Any]:
    """Return the scene's configuration as a site would have it: the unit's paths, credentials."""
    scene.reply_timeout_s = 60.0
    config = scene.configuration()
    config["state_dir"] = "/var/lib/fep"
    config["control"] |= {
        "socket": "/run/fep-control.sock",
        "tcp": [{"listen": FINANCE, "token_file": f"{CREDENTIALS}/finance-token"}],
        "users": {"treasury": {"uid": 1500, "role": "viewer"}},
    }
    config["console"] = {"listen": CONSOLE}
    for slot in config["slot"]:
        slot["key"] = {"credential": slot["name"]}
    config["slot"] += _more_keys(scene.directory)
    for bank in config["bank"]:
        bank["heartbeat_s"] = 30.0
        bank["adapter"] = ADAPTERS.get(bank["name"], bank["adapter"])
    return config


# -- within namespaces of our own -----------------------------------------------------------------


def main(directory: Path) -> None:
    """Make the machine's files, install the service into them, and become the machine."""
    tree, parts, share = directory / "tree", directory / "parts", directory / "share"
    # What systemd-nspawn notes of its machines is not left behind on this one.
    _do("mount", "-t", "tmpfs", "tmpfs", "/run")
    _do("mount", "-t", "tmpfs", "-o", TREE_SIZE, "tmpfs", str(tree))
    for name in ("upper", "scratch", "top"):
        (tree / name).mkdir()
    top = tree / "top"
    layers = f"lowerdir=/,upperdir={tree / 'upper'},workdir={tree / 'scratch'}"
    _do("mount", "-t", "overlay", "overlay", "-o", layers, str(top))
    _plain_machine(top)
    _environment(top, next(parts.glob("*.whl")))
    _site(top, parts)
    # As an administrator would, but that the machine is not running yet.
    _do(
        sys.executable, "-m", "fep.daemon.main", "install-service",
        "--root", str(top), "--prefix", PREFIX, "--enable",
    )  # fmt: skip
    _write(top, "etc/sysusers.d/people.conf", PEOPLE)
    _do("systemd-sysusers", f"--root={top}", "people.conf")
    units = [f"bank-{name}.service" for name in PORTS] + ["secrets.service", "proof.service"]
    _do("systemctl", f"--root={top}", "--quiet", "enable", *units)
    sys.stdout.flush()
    os.execvp(
        "systemd-nspawn",
        [
            "systemd-nspawn", "--quiet", "-D", str(top), "--boot", "--register=no", "--keep-unit",
            "--private-network", f"--machine=fep-boot-{os.getpid()}-{secrets.token_hex(4)}",
            f"--bind={share}:/share", f"--bind-ro={sysconfig.get_path('purelib')}:/opt/fep-site",
            "--console=pipe",
        ],
    )  # fmt: skip


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=BOOT_SECONDS_MAX)


def _write(top: Path, path: str, text: str, mode: int = 0o644) -> None:
    place = top / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch(mode)
    place.write_text(text, "utf-8")


def _plain_machine(top: Path) -> None:
    """Leave out what a machine has that need not run in a test."""
    units = top / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    links: Mapping[str, str] = dict.fromkeys(UNWANTED, "/dev/null") | {
        "default.target": "/lib/systemd/system/multi-user.target"
    }
    for name, target in links.items():
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to(target)
    _write(top, "etc/machine-id", "")


def _environment(top: Path, wheel: Path) -> None:
    """Make the environment that the service runs: the wheel, and what it needs bound beside it."""
    prefix = top / PREFIX[1:]
    _do(sys.executable, "-m", "venv", "--without-pip", str(prefix))
    site = next((prefix / "lib").glob("python3.*/site-packages"))
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    _write(site, "needed.pth", "/opt/fep-site\n")
    shutil.copy(HERE / "stuck_bank.py", site / "stuck_bank.py")
    _write(site, "stuck_bank-1.dist-info/METADATA", "Name: stuck-bank\nVersion: 1\n")
    _write(
        site,
        "stuck_bank-1.dist-info/entry_points.txt",
        "[fep.bank_adapters]\nstuck_bank = stuck_bank:ADAPTER\n",
    )
    # As pip does: the sandbox can't write where the code is, and would compile at every start.
    _do(sys.executable, "-m", "compileall", "-q", "-s", str(top), "-p", "/", str(site))
    points = configparser.ConfigParser()
    points.read(next(site.glob("fep-*.dist-info/entry_points.txt")))
    for name, where in points["console_scripts"].items():
        module, _, function = where.partition(":")
        script = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        _write(prefix, f"bin/{name}", f"#!{PREFIX}/bin/python\n{script}")
        (prefix / "bin" / name).chmod(0o755)


def _site(top: Path, parts: Path) -> None:
    """Write what a site brings: configuration, secrets, a drop-in; and the banks and the proof."""
    proof = top / "opt/proof"
    shutil.copytree(parts, proof)
    proof.chmod(0o700)
    shutil.copy(HERE / "proof.py", proof)
    _write(top, "etc/fep/fep.toml", (parts / "fep.toml").read_text("utf-8"))
    book = top / "var/lib/bank"
    book.mkdir(parents=True)
    shutil.copy(parts / "book.sqlite", book)
    shutil.copytree(parts / "hsm/tokens", top / "srv/hsm")
    _do("chmod", "-R", "a+rwX", str(top / "srv/hsm"))
    _write(top, "etc/fep/softhsm2.conf", "directories.tokendir = /srv/hsm\n")
    hidden = {f"ukey-{name}": f"ukey-{name}.pem" for name in PORTS} | {
        "finance-token": "token",
        "sm2-1": "sm2-1",
        "hsm-1-pin": "hsm-1-pin",
    }
    lines = [
        f"ExecStart=/usr/bin/systemd-creds encrypt --name={name} /opt/proof/{file} "
        f"/etc/fep/{name}.cred"
        for name, file in hidden.items()
    ]
    dropin = [f"LoadCredentialEncrypted={name}:/etc/fep/{name}.cred" for name in hidden]
    for name in PORTS:
        shutil.copy(parts / f"ukey-{name}.crt", top / "etc/fep")
        dropin.append(f"LoadCredential=ukey-{name}.crt:/etc/fep/ukey-{name}.crt")
    dropin += [f"WatchdogSec={WATCHDOG_SECONDS}s", "RestartSec=200ms"]
    dropin += ["Environment=SOFTHSM2_CONF=/etc/fep/softhsm2.conf", "ReadWritePaths=/srv/hsm"]
    units = "etc/systemd/system"
    _write(top, f"{units}/fep.service.d/site.conf", "\n".join(["[Service]", *dropin, ""]))
    _write(top, f"{units}/secrets.service", SECRETS_UNIT.format(lines="\n".join(lines)))
    _write(top, f"{units}/proof.service", PROOF_UNIT)
    for plan in BANKS[:2]:
        text = BANK_UNIT.format(name=plan.name, adapter=plan.adapter, port=PORTS[plan.name])
        _write(top, f"{units}/bank-{plan.name}.service", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
