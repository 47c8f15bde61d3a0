"""Commands for which files are what their modes say, and disks what a test mounts, as root too."""

from __future__ import annotations

import os
from pathlib import Path


def without_rights() -> list[str]:
    """Return what to run a command with, so that a file's mode holds for root too."""
    drop = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={drop}"] if os.geteuid() == 0 else []


def on_read_only_disk(path: Path) -> list[str]:
    """Return what to run a command with, so that it finds an empty read-only disk at a folder."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mount -t tmpfs -o ro tmpfs '{path}' && exec \"$@\""
    return ["unshare", "--mount", *root, "sh", "-c", mount, "-"]
