"""What ``fep install-service`` puts on a machine, and what becomes of what is there. No I/O.

Source: systemd.unit(5), systemd.exec(5), sysusers.d(5) and tmpfiles.d(5) of systemd 252. What an
administrator installs by hand stands below ``/etc``, not ``/usr/lib``, which is for packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

import attrs

UNITS: Final = ("fep.service", "fep.socket")
UNIT_FOLDER: Final = PurePosixPath("/etc/systemd/system")
SYSUSERS_FILE: Final = PurePosixPath("/etc/sysusers.d/fep.conf")
TMPFILES_FILE: Final = PurePosixPath("/etc/tmpfiles.d/fep.conf")
CONFIG_FILE: Final = PurePosixPath("/etc/fep/fep.toml")
COMMAND_FOLDER: Final = PurePosixPath("/usr/local/bin")
COMMANDS: Final = ("fep", "fepctl")
GROUP: Final = "fep-ops"
SHIPPED: Final = (*UNITS, "fep.sysusers.conf", "fep.tmpfiles.conf", "fep.toml")
"""The names of the files that are part of the package."""
SHIPPED_COMMAND: Final = "/opt/fep/bin/fep"
"""Where the shipped unit has the program."""

HIDDEN: Final[Mapping[str, str]] = {
    "/home": "ProtectHome",
    "/root": "ProtectHome",
    "/run/user": "ProtectHome",
    "/tmp": "PrivateTmp",  # noqa: S108 - the place, not a file in it
    "/var/tmp": "PrivateTmp",  # noqa: S108
}
"""What the unit's sandbox does not let the daemon see, and by which setting."""
PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._+/-]+")
"""Anything else, such as a space or ``%``, would have a meaning of its own in a unit."""


class Act(StrEnum):
    """What is done with one file."""

    WRITE = "write"
    REPLACE = "replace"
    SAME = "same"
    """It is there already, as it should be."""
    KEEP = "keep"
    """It is there and is the site's own."""


@attrs.frozen
class File:
    """One file that should be on the machine."""

    path: PurePosixPath
    content: bytes = attrs.field(repr=False)
    is_sites: bool = False
    """The site writes it: once it is there it is never touched again."""


def files(shipped: Mapping[str, bytes], folder: PurePosixPath) -> list[File]:
    """Return the files of an installation whose commands are in ``folder``, such as /opt/fep/bin.

    Args:
        shipped: the package's files by the names in ``SHIPPED``.
        folder: an absolute path on the machine that will run it; ``why_unfit`` has nothing to say.
    """
    command = str(folder / "fep").encode()
    found = [
        File(UNIT_FOLDER / name, shipped[name].replace(SHIPPED_COMMAND.encode(), command))
        for name in UNITS
    ]
    found.append(File(SYSUSERS_FILE, shipped["fep.sysusers.conf"]))
    found.append(File(TMPFILES_FILE, shipped["fep.tmpfiles.conf"]))
    found.append(File(CONFIG_FILE, shipped["fep.toml"], is_sites=True))
    return found


def act(file: File, there: bytes | None) -> Act:
    """Return what is to be done with a file, given what is in its place (None: nothing)."""
    if there is None:
        return Act.WRITE
    if there == file.content:
        return Act.SAME
    return Act.KEEP if file.is_sites else Act.REPLACE


def link_act(target: PurePosixPath, there: str | None, *, is_link: bool) -> Act:
    """Return what is to be done with a command's link in ``COMMAND_FOLDER``.

    Args:
        target: where it should lead.
        there: where a link of its name leads now; None when nothing has its name.
        is_link: False when something else has its name, which is not ours to take away.
    """
    if there is None:
        return Act.WRITE
    if not is_link:
        return Act.KEEP
    if there == str(target):
        return Act.SAME
    # A link to a command of the same name is that of an older installation.
    return Act.REPLACE if PurePosixPath(there).name == target.name else Act.KEEP


def why_unfit(path: PurePosixPath) -> str:
    """Return why the service could not run something at this path; empty when it could."""
    if not PLAIN_PATH.fullmatch(str(path)):
        return f"{path} has characters that mean something else in a unit"
    for folder, setting in HIDDEN.items():
        if path.is_relative_to(folder):
            return f"the service sees nothing below {folder} ({setting}= in fep.service)"
    return ""
