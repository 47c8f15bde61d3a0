"""Where the daemon of a campaign keeps its store: in a file of its own, or on a PostgreSQL.

The server is a real one of the campaign's own. It is killed in several ways, and what must hold of
the store holds on either kind.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, Self, assert_never

import psycopg

from fep.daemon.verify import Report, verify, verify_shared
from fep.sandbox.postgres import PROGRAMS, USER, PostgresServer
from fep.sandbox.scene import write_secret
from fep.store.files import STORE_FILE
from fep.store.postgres import Postgres
from tests.system.processes import descendants
from tests.system.work import ENTERPRISE

LEASE_SECONDS: Final = 2.0
LAST_WORDS_SECONDS: Final = 1.0
"""So long a server that is dying may take a connection still, and break it."""
DATABASE: Final = "fep"
VERIFIER: Final = "VERIFY"
PASSWORD: Final = "database-password"
DUMP: Final = "fep.sql"
WITH_LANE: Final = ("setpriv", "--pdeathsig", "QUIT", "--")
"""Lets the server end when we do, with all that is its."""


class Death(StrEnum):
    """How the server, or a part of it, dies."""

    ALL = "all"
    """Kill -9 of all its processes, as when its machine dies."""
    POSTMASTER = "postmaster"
    """Kill -9 of the first one; the others end by themselves when they notice."""
    PART = "part"
    """Kill -9 of any other: the server breaks all connections and recovers by itself."""
    CONNECTION = "connection"
    """``pg_terminate_backend`` of one of the daemon's; the others live on."""
    IMMEDIATE = "immediate"
    """``pg_ctl stop -m immediate``."""
    FAST = "fast"
    """``pg_ctl stop -m fast``, as at a restart in order."""


class Store(Protocol):
    """What a machine asks of its store; a context manager that makes and removes it."""

    table: dict[str, Any] | None
    """``[store]`` of the configuration."""
    error: type[Exception]
    """What is raised where it can't be read."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def is_dying(self) -> bool:
        """True where a daemon that starts now may lose it again by no fault of its own."""

    def die(self, how: Death, share: float) -> bool:
        """Let its server, or a part of it, die now; from any thread.

        Args:
            how: in which way.
            share: from 0 to 1, chooses one of its processes where one is to die.

        Returns:
            Whether there was one.
        """

    @property
    def is_down(self) -> bool:
        """True when it can be started again."""

    def start(self) -> str:
        """Start it again and do not wait; returns what is wrong with its end, mostly nothing."""

    def count_causes(self, pattern: str) -> int:
        """Return how many events have a cause like this."""

    def look(self, head: str | None) -> Report:
        """Return what is wrong with it; a head that was seen before must be in its chain still."""

    def keep(self, directory: Path) -> None:
        """Put what is not in the machine's directory where it outlives it."""


class FileStore:
    """An SQLite file in the state directory, whose owner makes and removes it."""

    table: dict[str, Any] | None = None
    error: type[Exception] = sqlite3.Error
    is_dying = is_down = False

    def __init__(self, state: Path) -> None:
        self._path = state / STORE_FILE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def die(self, how: Death, share: float) -> bool:
        """Refuse: it has no server."""
        raise NotImplementedError

    def start(self) -> str:
        """Refuse: it is never down."""
        raise NotImplementedError

    def count_causes(self, pattern: str) -> int:
        """Return how many events have a cause like this."""
        query = "SELECT count(*) FROM task_event WHERE cause LIKE ?"
        with closing(sqlite3.connect(self._path)) as store:
            return int(store.execute(query, (pattern,)).fetchone()[0])

    def look(self, head: str | None) -> Report:
        """Return what is wrong with it."""
        return verify(self._path, enterprise=ENTERPRISE, head=head)

    def keep(self, directory: Path) -> None:
        """Do nothing."""


class ServerStore:
    """A database on a PostgreSQL server of its own, in memory.

    Args:
        directory: where the daemon finds its password.
    """

    error: type[Exception] = psycopg.Error

    def __init__(self, directory: Path) -> None:
        self.table: dict[str, Any] | None = None
        self._directory = directory
        self._server: PostgresServer | None = None
        self._died_at = -math.inf
        self._may_end = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._server = server = stack.enter_context(PostgresServer(wrap=WITH_LANE))
            password = write_secret(self._directory / PASSWORD, server.password)
            self.table = {
                "url": server.make_database(DATABASE),
                "password": {"file": password.name},
                "lease_s": LEASE_SECONDS,
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def server(self) -> PostgresServer:
        """The server, once it is made."""
        assert self._server is not None
        return self._server

    @property
    def is_dying(self) -> bool:
        """True where a connection that is made now may be one of the last."""
        return time.monotonic() < self._died_at + LAST_WORDS_SECONDS

    def die(self, how: Death, share: float) -> bool:
        """Let it, or a part of it, die now."""
        first = self.server.pid
        if first is None:
            return False
        others = sorted(one.pid for one in descendants(first) if one.pid != first)
        match how:
            case Death.ALL:
                number, doomed = signal.SIGKILL, [first, *others]
            case Death.POSTMASTER:
                number, doomed = signal.SIGKILL, [first]
            case Death.PART:
                number, doomed = signal.SIGKILL, _chosen(others, share)
            case Death.CONNECTION:
                ours = [pid for pid in others if _is_connection(pid)]
                number, doomed = signal.SIGTERM, _chosen(ours, share)
            case Death.IMMEDIATE:
                number, doomed = signal.SIGQUIT, [first]
            case Death.FAST:
                number, doomed = signal.SIGINT, [first]
            case _:
                assert_never(how)
        # Before the signals: who looks at them sees why.
        self._died_at = time.monotonic()
        self._may_end = self._may_end or first in doomed
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(doomed)

    @property
    def is_down(self) -> bool:
        """True when it has ended and none of its processes is left."""
        return not self.server.is_running and self.server.has_left

    def start(self) -> str:
        """Start it again and do not wait."""
        fault = "" if self._may_end else f"PostgreSQL ended by itself, see {self.server.log}"
        self._may_end = False
        self.server.launch()
        return fault

    def count_causes(self, pattern: str) -> int:
        """Return how many events have a cause like this."""
        query = "SELECT count(*) FROM task_event WHERE cause LIKE %s"
        with self.server.connect(DATABASE) as connection:
            row = connection.execute(query, (pattern,)).fetchone()
        assert row is not None
        return int(row[0])

    def look(self, head: str | None) -> Report:
        """Return what is wrong with it."""
        assert self.table is not None
        database = Postgres(self.table["url"], self.server.password, VERIFIER)
        return verify_shared(database, enterprise=ENTERPRISE, head=head)

    def keep(self, directory: Path) -> None:
        """Write the server's log and, where it answers, all rows as text."""
        with suppress(OSError):
            shutil.copy(self.server.log, directory / "postgresql.log")
        words = [f"--host={self.server.directory}", f"--port={self.server.port}"]
        words += [f"--username={USER}", f"--file={directory / DUMP}", DATABASE]
        subprocess.run([PROGRAMS / "pg_dump", *words], check=False, capture_output=True)


def _chosen(pids: list[int], share: float) -> list[int]:
    return pids[int(share * len(pids)) :][:1]


def _is_connection(pid: int) -> bool:
    """Say whether a process of the server serves a connection over TCP, as the daemon's are."""
    with suppress(OSError):
        return b" 127.0.0.1(" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
