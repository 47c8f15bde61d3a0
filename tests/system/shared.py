"""Several front-end machines on one database: daemons of their own, the banks in common."""

from __future__ import annotations

import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from fep.client import BlockingClient
from fep.sandbox.postgres import PostgresServer
from fep.sandbox.scene import BANKS, BankPlan, Launch, Scene, write_secret
from tests.system.forked import Forked

LEASE_S = 2.0
_NUMBERS = count(1)


class Machines:
    """Machines FEP-01, FEP-02 …, each with the keys of some of the banks.

    Args:
        directory: each machine's is below it.
        server: where the database is made.
        keys: for each machine the names of the banks whose keys it has.
        banks: which take part.
        start_command: how daemons and banks are started.
        lease_s: of all machines.
    """

    def __init__(
        self,
        directory: Path,
        server: PostgresServer,
        keys: Sequence[Sequence[str]],
        banks: Sequence[BankPlan] = BANKS[:2],
        start_command: Launch = Forked,
        lease_s: float = LEASE_S,
    ) -> None:
        self.server = server
        self.database = f"fep{next(_NUMBERS)}"
        self.url = server.make_database(self.database)
        self.keys = [list(names) for names in keys]
        self.all = [
            Scene(
                directory / f"fep-{number}",
                banks=banks,
                accounts_per_bank=6,
                start_command=start_command,
            )
            for number in range(1, len(keys) + 1)
        ]
        for scene in self.all:
            password = write_secret(scene.directory / "password", server.password)
            scene.store = {
                "url": self.url,
                "password": {"file": password.name},
                "lease_s": lease_s,
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for scene in reversed(self.all):
            scene.close()

    @property
    def first(self) -> Scene:
        """The machine that started the banks."""
        return self.all[0]

    def start_banks(self, faults: str = "") -> None:
        """Start the banks and write every machine's configuration."""
        self.first.start_hosts(faults)
        for number, scene in enumerate(self.all, 1):
            scene.hosts = self.first.hosts
            if scene is not self.first:
                for file in self.first.directory.glob("ukey-*"):
                    shutil.copy(file, scene.directory)
            self.write_config(number)

    def heal_banks(self) -> None:
        """Start the banks anew, without faults."""
        for host in self.first.hosts.values():
            host.stop()
            host.faults = ""
            host.start()

    def write_config(
        self, number: int, change: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Write a machine's configuration: all banks, with slots where it has the keys."""
        scene = self.all[number - 1]
        config = scene.configuration()
        config["enterprise"]["fep_number"] = f"FEP-{number:02d}"
        has = {f"ukey-{name}" for name in self.keys[number - 1]}
        config["slot"] = [slot for slot in config["slot"] if slot["name"] in has]
        for bank in config["bank"]:
            if bank["slot"] not in has:
                del bank["slot"]
        if change is not None:
            change(config)
        scene.write_config(config)

    def start(self) -> None:
        """Start all daemons."""
        for scene in self.all:
            scene.start_daemon()

    def take_away(self, bank: str) -> None:
        """Give a bank's place to a machine that is none, and tell nobody."""
        self._set_place(
            bank,
            b"holder = 'FEP-09', instance = 'nobody', fence = fence + 1,"
            b" until_at = clock_timestamp() + interval '1 h'",
        )

    def free(self, bank: str) -> None:
        """Let the lease of a bank's place have run out."""
        self._set_place(bank, b"until_at = clock_timestamp()")

    def _set_place(self, bank: str, values: bytes) -> None:
        with self.server.connect(self.database) as connection:
            sql = b"UPDATE place SET " + values + b" WHERE what = %s"
            connection.execute(sql, (f"bank:{bank}",))

    def states(self) -> Counter[str]:
        """Return how many tasks stand in each state, as it is on disk."""
        with self.server.connect(self.database) as connection:
            rows = connection.execute("SELECT state, count(*) FROM task GROUP BY 1").fetchall()
        return Counter(dict(rows))


def served(client: BlockingClient) -> Mapping[str, Sequence[str]]:
    """Return what each living machine serves, as one of them sees it."""
    found: Mapping[str, Sequence[str]] = client.call("status")["machines"]
    return found


def wait_served(scene: Scene, client: BlockingClient, wanted: Mapping[str, set[str]]) -> None:
    """Wait until each machine serves exactly these banks, and its connections are up."""

    def ready(client: BlockingClient) -> bool:
        found = {
            number: {what.removeprefix("bank:") for what in places if what != "pooling"}
            for number, places in served(client).items()
        }
        if found != dict(wanted):
            return False
        status = client.call("status")
        mine = wanted[status["machine"]]
        return all(status["links"][bank] == "ready" for bank in mine)

    scene.wait(client, ready, f"{wanted} served", 60.0)


class Cutter:
    """Stands between a machine and the database, and cuts an answer off: was it stored, or not?

    Use it as a context manager. Armed with some bytes, it lets the commit of the group in which
    they go by reach the server, waits for the answer, and breaks the connection in its place.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._mark = b""
        self.cut = threading.Event()
        """Set once an answer was cut off."""

    @property
    def port(self) -> int:
        """Where machines connect."""
        port: int = self._listener.getsockname()[1]
        return port

    def arm(self, mark: bytes) -> None:
        """Cut off the answer to the commit of what bears these bytes."""
        self.cut.clear()
        self._mark = mark

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            _end(one)

    def _accept(self) -> None:
        while True:
            try:
                machine, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server.port))
            except OSError:
                machine.close()
                continue
            self._sockets += [machine, server]
            doomed = threading.Event()
            for run in (self._forward, self._answer):
                threading.Thread(target=run, args=(machine, server, doomed), daemon=True).start()

    def _forward(
        self, machine: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        seen = b""
        with suppress(OSError):
            while data := machine.recv(65_536):
                seen += data
                if self._mark and self._mark in seen and b"COMMIT" in data:
                    self._mark = b""
                    doomed.set()
                if b"COMMIT" in data:
                    seen = b""
                server.sendall(data)
        _end(server)

    def _answer(
        self, machine: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if doomed.is_set():
                    self.cut.set()
                    _end(server)
                    break
                machine.sendall(data)
        _end(machine)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
