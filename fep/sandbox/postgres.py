"""A PostgreSQL server of our own in a temporary directory, on loopback.

It is the machine's real PostgreSQL 15 (Debian's ``postgresql-15``), apart from any cluster that
runs there, and syncs as any other. The server refuses to run as root, so root starts it as the user
``postgres``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from fep.sandbox.scene import free_port, write_secret

PROGRAMS: Final = Path("/usr/lib/postgresql/15/bin")
USER: Final = "postgres"
START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 30.0
POLL_SECONDS: Final = 0.02
LOCK_MEMORY_LINE: Final = 6
"""Of ``postmaster.pid``, counted from 0: key and id of the System V shared memory."""


class PostgresServer:
    """One server with its data; use it as a context manager, which ends it and removes its data.

    Args:
        place: where its directory is made; None: in memory, where a sync costs nothing. That is as
            good where processes are killed, and nobody cuts the power.
        wrap: a program, and its words, that becomes the server's first process.

    Raises:
        FileNotFoundError: PostgreSQL 15 is not installed (see ``requirements/debian.txt``).
    """

    def __init__(self, place: Path | None = None, wrap: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._wrap = list(wrap)
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="fep-pg-", dir=place or _memory()))
        self._own = self._identity()
        if self._own:
            owner = pwd.getpwnam(USER)
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        self._data = self.directory / "data"
        self._lock = self._data / "postmaster.pid"
        self.log = self.directory / "log"

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its data."""
        self.stop(signal.SIGQUIT)
        self._forget_memory()
        shutil.rmtree(self.directory)

    @staticmethod
    def _identity() -> dict[str, Any]:
        """Return whose process it is to be, for ``subprocess``; empty for ourselves."""
        if os.geteuid() != 0:
            return {}
        owner = pwd.getpwnam(USER)
        return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def _make(self) -> None:
        words = write_secret(self.directory / "password", self.password)
        if self._own:
            os.chown(words, self._own["user"], self._own["group"])
        subprocess.run(
            [
                PROGRAMS / "initdb",
                f"--pgdata={self._data}",
                f"--username={USER}",
                f"--pwfile={words}",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--no-sync",
                "--wal-segsize=1",
            ],
            check=True,
            capture_output=True,
            cwd=self.directory,
            **self._own,
        )

    def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            RuntimeError: it ended instead.
        """
        self.launch()
        limit = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < limit and self.is_running:
            if self.is_up:
                return
            time.sleep(POLL_SECONDS)
        msg = f"PostgreSQL did not start:\n{self.log.read_text('utf-8')[-2000:]}"
        raise RuntimeError(msg)

    def launch(self) -> None:
        """Start it and do not wait; where it was killed, none of its processes may be left."""
        # The number in it may be another program's by now.
        self._lock.unlink(missing_ok=True)
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.directory}",
            "max_connections=40",
            "shared_buffers=32MB",
            "max_wal_size=64MB",
            "min_wal_size=16MB",
            # In its directory, with which it goes when the server is killed.
            "dynamic_shared_memory_type=mmap",
        ]
        command = [*self._wrap, str(PROGRAMS / "postgres"), "-D", str(self._data)]
        command += [word for option in options for word in ("-c", option)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._own,
            )

    @property
    def pid(self) -> int | None:
        """Of its first process, the postmaster; None when that has ended."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """False when it has ended, by whomever."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_up(self) -> bool:
        """True when it takes connections."""
        with contextlib.suppress(psycopg.OperationalError), self.connect(USER):
            return True
        return False

    @property
    def has_left(self) -> bool:
        """True when no process of one that was killed is there any more, with its memory."""
        mark = str(self._data)
        return not any(mark in line for line in _working_directories())

    def kill(self) -> None:
        """End it at once, as kill -9 of all its processes."""
        assert self._process is not None
        # Its processes end by themselves when the postmaster is gone; a new one waits for that.
        self._process.kill()
        self._process.wait(STOP_SECONDS_MAX)
        self._process = None
        self._wait_gone()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it; transactions under way are rolled back, connections broken.

        Args:
            how: SIGINT writes what is in memory; SIGQUIT leaves that to the next start.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        self._process.wait(STOP_SECONDS_MAX)
        self._process = None

    def _wait_gone(self) -> None:
        """Wait until no process of a killed server holds its shared memory."""
        limit = time.monotonic() + STOP_SECONDS_MAX
        while time.monotonic() < limit:
            if self.has_left:
                return
            time.sleep(POLL_SECONDS)
        msg = "processes of the killed server live on"
        raise RuntimeError(msg)

    def _forget_memory(self) -> None:
        """Remove the few bytes in the kernel that a killed server leaves to its next start."""
        with contextlib.suppress(OSError):
            lines = self._lock.read_text("ascii").splitlines()
            self._wait_gone()
            for line in lines[LOCK_MEMORY_LINE : LOCK_MEMORY_LINE + 1]:
                subprocess.run(["ipcrm", "-m", line.split()[1]], check=False)

    @contextlib.contextmanager
    def connect(self, database: str) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection of the administrator's, in autocommit mode."""
        with psycopg.connect(
            host=str(self.directory), port=self.port, user=USER, dbname=database, autocommit=True
        ) as connection:
            yield connection

    def make_database(self, name: str) -> str:
        """Make an empty database; returns its URL, without the password."""
        with self.connect(USER) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{name}"


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def _working_directories() -> Iterator[str]:
    """Yield where the processes of this machine work."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield str((folder / "cwd").readlink())
