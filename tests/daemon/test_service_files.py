"""What is decided about the files of an installation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from fep.daemon.service_files import (
    CONFIG_FILE,
    HIDDEN,
    SHIPPED,
    SHIPPED_COMMAND,
    UNIT_FOLDER,
    Act,
    File,
    act,
    files,
    link_act,
    why_unfit,
)

ROOT = Path(__file__).parent.parent.parent
UNIT = File(UNIT_FOLDER / "fep.service", b"new")
SITES = File(CONFIG_FILE, b"new", is_sites=True)
TARGET = PurePosixPath("/opt/fep/bin/fepctl")
BESIDE = {name: (ROOT / "fep/daemon/systemd" / name).read_bytes() for name in SHIPPED}


@pytest.mark.parametrize(
    ("file", "there", "doing"),
    [
        (UNIT, None, Act.WRITE),
        (UNIT, b"new", Act.SAME),
        (UNIT, b"old", Act.REPLACE),
        (UNIT, b"", Act.REPLACE),
        (SITES, None, Act.WRITE),
        (SITES, b"new", Act.SAME),
        (SITES, b"old", Act.KEEP),
        (SITES, b"", Act.KEEP),
    ],
)
def test_what_becomes_of_a_file(file: File, there: bytes | None, doing: Act) -> None:
    assert act(file, there) is doing


@pytest.mark.parametrize(
    ("there", "is_link", "doing"),
    [
        (None, False, Act.WRITE),
        ("/opt/fep/bin/fepctl", True, Act.SAME),
        ("/opt/older/bin/fepctl", True, Act.REPLACE),
        ("/opt/other/bin/tool", True, Act.KEEP),
        ("", False, Act.KEEP),
    ],
)
def test_what_becomes_of_a_commands_link(there: str | None, is_link: bool, doing: Act) -> None:
    assert link_act(TARGET, there, is_link=is_link) is doing


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/opt/fep/bin/fep", ""),
        ("/usr/bin/python3.11", ""),
        ("/home", "ProtectHome"),
        ("/tmp/fep/bin/fep", "PrivateTmp"),
        ("/var/tmp/fep", "PrivateTmp"),
        ("/run/user/1000/fep", "ProtectHome"),
        ("/opt/my fep/bin/fep", "characters"),
        ("/opt/100%/bin/fep", "characters"),
        ("/opt/$fep/bin/fep", "characters"),
        ("/opt/前置机/bin/fep", "characters"),
        ("/opt/fep\n/bin/fep", "characters"),
        ("/opt/fep/bin/fep\n", "characters"),
        ("/rooted/fep", ""),
        ("/homes/fep", ""),
    ],
)
def test_where_the_service_could_not_run_a_program(path: str, reason: str) -> None:
    told = why_unfit(PurePosixPath(path))
    assert bool(told) == bool(reason)
    assert reason in told


def test_what_is_hidden_is_hidden_by_the_unit() -> None:
    lines = (ROOT / "systemd/fep.service").read_text("utf-8").splitlines()
    assert {f"{setting}=yes" for setting in HIDDEN.values()} <= set(lines)


def test_the_units_run_the_programs_own_path_and_no_other() -> None:
    made = files(BESIDE, PurePosixPath("/srv/fep-2/bin"))
    assert [str(one.path) for one in made] == [
        "/etc/systemd/system/fep.service",
        "/etc/systemd/system/fep.socket",
        "/etc/sysusers.d/fep.conf",
        "/etc/tmpfiles.d/fep.conf",
        "/etc/fep/fep.toml",
    ]
    assert [one.is_sites for one in made] == [False, False, False, False, True]
    service = made[0].content.decode()
    assert SHIPPED_COMMAND not in service
    runs = [line for line in service.splitlines() if line.startswith("Exec")]
    assert runs == [
        "ExecStartPre=/srv/fep-2/bin/fep check-config",
        "ExecStart=/srv/fep-2/bin/fep run",
        "ExecReload=/srv/fep-2/bin/fep check-config",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ]


def test_the_package_has_the_files_of_the_checkout() -> None:
    for name, content in BESIDE.items():
        folder = "config" if name == "fep.toml" else "systemd"
        assert content == (ROOT / folder / name).read_bytes()
