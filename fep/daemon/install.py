"""``fep install-service``: makes a systemd service of the ``fep`` that runs this, or of an image's.

It says what became of every file, and a second run finds nothing to do. What the site writes (the
configuration, drop-ins, secrets, the state) is never touched, by ``--uninstall`` neither.
"""

from __future__ import annotations

import argparse
import difflib
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

import fep
from fep.daemon import config as configuration
from fep.daemon.service_files import (
    COMMAND_FOLDER,
    COMMANDS,
    CONFIG_FILE,
    GROUP,
    SHIPPED,
    SYSUSERS_FILE,
    TMPFILES_FILE,
    UNIT_FOLDER,
    UNITS,
    Act,
    File,
    act,
    files,
    link_act,
    why_unfit,
)
from fep.domain.errors import FepError

LINKS_MAX: Final = 40
"""As the kernel: a path that leads through more symbolic links is a circle."""
COMMAND_SECONDS_MAX: Final = 600.0
"""Of one systemctl: a start waits until the daemon is ready, a stop until it has drained."""
OLD: Final = ".old"
OTHERS_READ, OTHERS_ENTER = stat.S_IROTH, stat.S_IXOTH

_SAID: Final = {
    Act.WRITE: ("written", "would be written"),
    Act.REPLACE: ("written anew", "would be written anew"),
    Act.SAME: ("is as it should be", "is as it should be"),
    Act.KEEP: ("kept as it is", "would be kept as it is"),
}


class CannotInstallError(FepError):
    """The service can't be installed so; nothing was changed."""

    code = "CANNOT_INSTALL"


def install_service(given: argparse.Namespace) -> int:
    """``fep install-service``: 0 when the service is installed, or gone."""
    os.umask(0o022)
    try:
        image = Image(_root_of(given), dry=given.dry_run)
        _check_machine(image)
        return _uninstall(image) if given.uninstall else _install(image, given)
    except FepError as error:
        told = str(error)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except subprocess.TimeoutExpired as error:
        told = f"{' '.join(map(str, error.cmd))}: not done within {error.timeout:g} s"
    print(f"fep install-service: {told}", file=sys.stderr)
    return 1


# -- a machine, or the image of one -----------------------------------------------------------


@attrs.frozen
class Image:
    """The file system of the machine that will run the service: this one's, or an image's."""

    root: Path
    dry: bool = False

    @property
    def is_this_machine(self) -> bool:
        """False for an image, in which nothing can be started."""
        return self.root == Path("/")

    def place(self, path: PurePosixPath) -> Path:
        """Return where a path of the machine is here; its links lead nowhere outside the image.

        Raises:
            CannotInstallError: a circle of links.
        """
        waiting = list(reversed(path.parts[1:]))
        here = self.root
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                here = here if here == self.root else here.parent
                continue
            here /= part
            if here.is_symlink():
                links += 1
                if links > LINKS_MAX:
                    msg = f"{path}: too many symbolic links"
                    raise CannotInstallError(msg)
                target = here.readlink()
                here = self.root if target.is_absolute() else here.parent
                waiting += reversed([one for one in target.parts if one != "/"])
        return here

    def entry(self, path: PurePosixPath) -> Path:
        """Return where a name of the machine is here, and not what it leads to if it is a link."""
        return self.place(path.parent) / path.name

    def read(self, path: PurePosixPath) -> bytes | None:
        """Return a file's content, None without one."""
        try:
            return self.place(path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: PurePosixPath, content: bytes) -> None:
        """Write a file that everybody may read, whole or not at all."""
        place = self.place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(place)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of systemd's commands on this machine or image.

        Raises:
            CannotInstallError: it is not installed.
        """
        where = [] if self.is_this_machine else [f"--root={self.root}"]
        try:
            return subprocess.run(  # noqa: S603 - a fixed command of systemd
                [command[0], *where, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=COMMAND_SECONDS_MAX,
            )
        except FileNotFoundError as error:
            msg = f"{command[0]} is not installed here"
            raise CannotInstallError(msg) from error

    def must(self, *command: str) -> None:
        """Run one of systemd's commands, or in a dry run say so.

        Raises:
            CannotInstallError: it failed.
        """
        if self.dry:
            print(f"would run: {' '.join(command)}")
            return
        done = self.run(*command)
        if done.returncode:
            told = (done.stderr or done.stdout).strip()
            msg = f"{' '.join(command)} failed: {told}"
            raise CannotInstallError(msg)


def _root_of(given: argparse.Namespace) -> Path:
    root = Path(given.root or "/").resolve()
    if not root.is_dir():
        msg = f"{given.root} is no directory"
        raise CannotInstallError(msg)
    return root


def _check_machine(image: Image) -> None:
    if not image.is_this_machine:
        return
    if not Path("/run/systemd/system").is_dir():
        raise CannotInstallError(
            "systemd does not run this machine; --root DIR installs into an image of one"
        )
    if os.geteuid() and not image.dry:
        raise CannotInstallError(
            "only root can install a service; --dry-run shows what it would do"
        )


# -- install ----------------------------------------------------------------------------------


def _install(image: Image, given: argparse.Namespace) -> int:
    folder = _command_folder(image, given.prefix)
    _check_program(image, folder)
    shipped = {name: _shipped(name) for name in SHIPPED}
    changed = [_put(image, file) for file in files(shipped, folder)]
    for name in COMMANDS:
        _put_link(image, COMMAND_FOLDER / name, folder / name)
    image.must("systemd-sysusers", SYSUSERS_FILE.name)
    image.must("systemd-tmpfiles", "--create", TMPFILES_FILE.name)
    if image.is_this_machine:
        image.must("systemctl", "daemon-reload")
    faults = [] if image.dry else _verify(image)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        raise CannotInstallError(
            "systemd finds faults in the units; they are installed all the same"
        )
    own = _own_config(image, shipped["fep.toml"])
    status = _enable(image, is_own=own) if given.enable else 0
    if not image.dry and not status:
        _say_next(image, given, is_own=own, changed=any(changed))
    return status


def _command_folder(image: Image, prefix: Path | None) -> PurePosixPath:
    """Return the folder of the commands, as the machine that runs them sees it.

    Raises:
        CannotInstallError: there is no fep.
    """
    here = Path(sysconfig.get_path("scripts"))
    if prefix is not None:
        folder = PurePosixPath(os.path.normpath("/" / prefix)) / "bin"
    elif here.is_relative_to(image.root):
        folder = PurePosixPath("/") / here.relative_to(image.root)
    else:
        folder = PurePosixPath(here)
    command = image.place(folder / "fep")
    if not (command.is_file() and os.access(command, os.X_OK)):
        msg = (
            f"there is no fep at {image.root / str(folder)[1:]}; --prefix DIR names the "
            "environment that has it, as the machine will see it"
        )
        raise CannotInstallError(msg)
    return folder


def _check_program(image: Image, folder: PurePosixPath) -> None:
    """See to it that the service's own user could run the program.

    Raises:
        CannotInstallError: it could not; all reasons are told.
    """
    reasons = [
        f"{path}: {reason}"
        for path in _program(image, folder)
        if (reason := why_unfit(path) or _why_closed(image, path))
    ]
    if reasons:
        raise CannotInstallError(
            "the service could not run it:\n  "
            + "\n  ".join(dict.fromkeys(reasons))
            + "\nInstall fep into an environment such as /opt/fep (README.md, 'Run it for real')."
        )


def _program(image: Image, folder: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield what is read to run the program: as it is called, and where links lead."""
    for name in ("fep", "python"):
        path = folder / name
        if image.place(path).exists():
            yield path
            yield _seen(image, image.place(path))
    if image.place(folder) == Path(sysconfig.get_path("scripts")).resolve():
        # It is the one that runs: in a checkout the code is not where the command is.
        yield _seen(image, Path(fep.__file__).resolve())


def _seen(image: Image, place: Path) -> PurePosixPath:
    """Return a place here as the machine sees it."""
    inside = place.is_relative_to(image.root)
    return PurePosixPath("/") / place.relative_to(image.root) if inside else PurePosixPath(place)


def _why_closed(image: Image, path: PurePosixPath) -> str:
    """Return what keeps a user who is nobody in particular from reading a file; empty: nothing."""
    place = image.place(path)
    if not place.exists():
        return "is not there"
    inside = [one for one in place.parents if image.root in one.parents]
    for folder in reversed(inside):
        if not folder.stat().st_mode & OTHERS_ENTER:
            return f"{_seen(image, folder)} is closed to other users; chmod o+x"
    return "" if place.stat().st_mode & OTHERS_READ else "is closed to other users; chmod o+r"


def _shipped(name: str) -> bytes:
    """Return one of the package's files; in a checkout they are links to where git has them."""
    return (Path(__file__).parent / "systemd" / name).read_bytes()


def _put(image: Image, file: File) -> bool:
    """Bring a file to where it should be, and say so; returns whether it changed."""
    there = image.read(file.path)
    doing = act(file, there)
    more = ""
    if doing is Act.REPLACE:
        more = f"; the one before is {file.path.name}{OLD}"
    print(f"{file.path}: {_SAID[doing][image.dry]}{more}")
    if doing not in (Act.WRITE, Act.REPLACE):
        return False
    if image.dry:
        sys.stdout.writelines(_difference(file, there))
        return False
    if there is not None and doing is Act.REPLACE:
        image.write(file.path.with_name(file.path.name + OLD), there)
    image.write(file.path, file.content)
    return True


def _difference(file: File, there: bytes | None) -> Iterator[str]:
    """Yield the lines that would come and go; all of a new file."""
    old = (there or b"").decode("utf-8", "replace").splitlines(keepends=True)
    new = file.content.decode().splitlines(keepends=True)
    for line in difflib.unified_diff(old, new, str(file.path), str(file.path)):
        yield line if line.endswith("\n") else line + "\n"


def _put_link(image: Image, path: PurePosixPath, target: PurePosixPath) -> None:
    place = image.entry(path)
    there = str(place.readlink()) if place.is_symlink() else "" if place.exists() else None
    doing = link_act(target, there, is_link=place.is_symlink())
    print(f"{path} -> {target}: {_SAID[doing][image.dry]}")
    if image.dry or doing not in (Act.WRITE, Act.REPLACE):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def _verify(image: Image) -> list[str]:
    """Return what systemd finds wrong in the units; says so where it can't be asked."""
    if not image.place(PurePosixPath("/usr/lib/systemd/system/sysinit.target")).exists():
        print("the units are not checked: the image has no systemd of its own")
        return []
    done = image.run("systemd-analyze", "verify", "--man=no", *UNITS)
    # On a machine with much else it also tells what it thinks of that.
    faults = [line for line in done.stderr.splitlines() if any(name in line for name in UNITS)]
    if not faults:
        print("the units are checked: systemd finds no fault")
    return faults


def _own_config(image: Image, example: bytes) -> bool:
    """Return whether the configuration is the site's own, and not the example as it was shipped."""
    return image.read(CONFIG_FILE) not in (None, example)


def _enable(image: Image, *, is_own: bool) -> int:
    if not image.dry and not is_own:
        print(f"not enabled: {CONFIG_FILE} is still the example, with banks that are not yours")
        return 0
    # Of an image the files that it names are elsewhere: only its own machine can look at them.
    here = image.is_this_machine and not image.dry
    if here and (faults := configuration.check(Path(str(CONFIG_FILE)))):
        print("\n".join(map(str, faults)), file=sys.stderr)
        print(f"not enabled: {CONFIG_FILE} has faults: {len(faults)}", file=sys.stderr)
        return 1
    image.must("systemctl", "enable", *UNITS)
    if image.dry:
        return 0
    print(f"enabled: {' and '.join(UNITS)} start with the machine")
    if not here:
        return 0
    done = image.run("systemctl", "start", *reversed(UNITS))
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        print("it did not start; why: journalctl -u fep -n 30", file=sys.stderr)
        return 1
    print("started; its health: systemctl status fep, fepctl status")
    return 0


def _say_next(image: Image, given: argparse.Namespace, *, is_own: bool, changed: bool) -> None:
    """Print what is left for a person to do."""
    if not is_own:
        print(
            f"next: edit {CONFIG_FILE} (it explains itself), and fep check-config\n"
            "next: systemd-creds encrypt --name=NAME - /etc/fep/NAME.cred for each secret it "
            "names, and systemctl edit fep to load them"
        )
        print(f"next: usermod -aG {GROUP} NAME for each person who may use fepctl")
    if not given.enable:
        print("next: fep install-service --enable")
    elif changed and is_own and image.is_this_machine:
        print("next: systemctl restart fep, if it ran before this")


# -- uninstall --------------------------------------------------------------------------------


def _uninstall(image: Image) -> int:
    there = [name for name in UNITS if image.read(UNIT_FOLDER / name) is not None]
    if there:
        image.must("systemctl", "disable", *(["--now"] if image.is_this_machine else []), *there)
    units = [UNIT_FOLDER / name for name in UNITS]
    ours: Sequence[PurePosixPath] = [*units, SYSUSERS_FILE, TMPFILES_FILE]
    for path in ours:
        for one in (path, path.with_name(path.name + OLD)):
            _remove(image, one)
    for name in COMMANDS:
        path = COMMAND_FOLDER / name
        place = image.entry(path)
        if place.is_symlink() and place.readlink().name == name:
            _remove(image, path)
    if image.is_this_machine and there:
        image.must("systemctl", "daemon-reload")
    print(
        f"kept: {CONFIG_FILE.parent} with the configuration and secrets, drop-ins in "
        f"{UNIT_FOLDER}/fep.service.d, the groups, and the state in /var/lib/fep: "
        "the store, in which every task and payment is"
    )
    return 0


def _remove(image: Image, path: PurePosixPath) -> None:
    place = image.entry(path)
    if place.is_symlink() or place.exists():
        print(f"{path}: {'would be removed' if image.dry else 'removed'}")
        if not image.dry:
            place.unlink()
