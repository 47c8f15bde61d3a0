"""Compiles the reader driver: ``python -m fep.sandbox.ukey.build [DIRECTORY]`` prints its path."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from fep.domain.errors import FepError

SOURCE: Final = Path(__file__).with_name("ifd_vslot.c")
COMPILER: Final = "gcc"
_FLAGS: Final = ("-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
_COMPILE_SECONDS_MAX: Final = 60


class DriverBuildError(FepError):
    """The reader driver does not compile here; the message ends with the compiler's own words."""

    code = "UKEY_DRIVER_BUILD"


def default_directory() -> Path:
    """Return ``.build/ukey`` of the checkout, or the user's cache for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").is_file() or (root / ".git").exists():
        return root / ".build" / "ukey"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fep" / "ukey"


def prepare_directory(directory: Path) -> Path:
    """Create a directory for build products, private to its owner and invisible to git."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignore = directory / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return directory


def build(directory: Path | None = None) -> Path:
    """Return the compiled driver in ``directory``, compiling it only when that is needed.

    The file's name carries a digest of source and command, so an old build is never taken for a
    new one, and two builds at once do no harm.

    Raises:
        DriverBuildError: no compiler, no pcsc-lite headers, or the compiler refused.
    """
    directory = prepare_directory(directory or default_directory())
    compiler = [COMPILER, *_FLAGS, *_pcsclite_flags()]
    # The digest takes the source's text, not its path: two checkouts may share a directory.
    recipe = shlex.join(compiler).encode() + SOURCE.read_bytes()
    target = directory / f"libifdvslot-{hashlib.sha256(recipe).hexdigest()[:16]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        product = Path(scratch) / target.name
        _run([*compiler, "-o", str(product), str(SOURCE), "-lpthread"])
        product.replace(target)
    return target


def _pcsclite_flags() -> list[str]:
    return shlex.split(_run(["pkg-config", "--cflags", "libpcsclite"]))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_COMPILE_SECONDS_MAX,
        )
    except FileNotFoundError as error:
        msg = f"{command[0]} is not installed"
        raise DriverBuildError(msg) from error
    except subprocess.SubprocessError as error:
        words = getattr(error, "stderr", None) or str(error)
        msg = f"{shlex.join(command)} failed: {words}"
        raise DriverBuildError(msg) from error
    return done.stdout


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]) if len(sys.argv) > 1 else None)}\n")
