"""Reads secrets from files that only their owner can read; blocking, for a slot's thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from fep.keys.config import SecretRef
from fep.keys.errors import KeyFileError

SECRET_BYTES_MAX: Final = 64 * 1024


@attrs.frozen
class Secret:
    """A file's content and its identity."""

    content: bytes = attrs.field(repr=False)
    identity: str
    """Changes when the operator changes the file; says nothing of the content.

    systemd makes a credential's file anew at each start, so a credential is known by its name
    alone: a PIN refused from one stays barred until an operator unlocks the slot by hand with
    the very PIN that the credential holds by then.
    """


def locate(reference: SecretRef, environ: Mapping[str, str]) -> Path:
    """Return the file a reference means.

    Raises:
        KeyFileError: a credential, but the service was given none.
    """
    if reference.file is not None:
        return reference.file
    assert reference.credential is not None
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        msg = f"{reference}: CREDENTIALS_DIRECTORY is not set; see LoadCredential= in the unit"
        raise KeyFileError(msg)
    return Path(directory) / reference.credential


def identity(reference: SecretRef, environ: Mapping[str, str]) -> str:
    """Return the identity of the secret's file without reading it; empty when it can't be seen."""
    if reference.credential is not None:
        return f"credential:{reference.credential}"
    try:
        return _identity(locate(reference, environ).stat())
    except OSError:
        return ""


def read_secret(reference: SecretRef, environ: Mapping[str, str]) -> Secret:
    """Return the content of a secret file that group and others can't read.

    Raises:
        KeyFileError: missing, not a regular file, too open or too long.
    """
    path = locate(reference, environ)
    try:
        # The checks are made on the opened file, so that it can't be exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        msg = f"{reference} can't be opened: {error.strerror}"
        raise KeyFileError(msg) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            msg = f"{reference} is not a regular file"
            raise KeyFileError(msg)
        # systemd's own directory is closed to others; its files may be readable by the group.
        if reference.file is not None and status.st_mode & 0o077:
            msg = f"{reference} is open to group or others; chmod 600"
            raise KeyFileError(msg)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > SECRET_BYTES_MAX:
        msg = f"{reference} is longer than {SECRET_BYTES_MAX} bytes"
        raise KeyFileError(msg)
    known = f"credential:{reference.credential}" if reference.credential else _identity(status)
    return Secret(content, known)


def read_text(reference: SecretRef) -> str:
    """Return a secret that is text, such as a password, without its last line break.

    Raises:
        KeyFileError: as of ``read_secret``, or it is not UTF-8.
    """
    try:
        return read_secret(reference, os.environ).content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        msg = f"{reference} is not UTF-8"
        raise KeyFileError(msg) from error


def read_beside(reference: SecretRef, environ: Mapping[str, str], suffix: str) -> bytes | None:
    """Return the content of the file of the same name with another suffix, None without one.

    Raises:
        KeyFileError: it is there but can't be read.
    """
    path = locate(reference, environ).with_suffix(suffix)
    try:
        with path.open("rb") as file:
            return file.read(SECRET_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path.name} can't be read: {error.strerror}"
        raise KeyFileError(msg) from error


def _identity(status: os.stat_result) -> str:
    return f"file:{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
