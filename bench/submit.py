"""Durable submits: how many ``task.submit`` a second the daemon acknowledges, at several loads.

``python -m bench.submit [--sync disk|shim1ms] [--rounds N] [--seconds S] [--loads 64,pipelined]``.
The daemon is a process of its own, started as ``fep run`` and reached over loopback TCP with a
token. Each round has a fresh daemon with an empty store, and in it the loads in shuffled order;
beside each load, before or after it, the same lines go to an echo server (a Python process with one
epoll loop) over as many connections: what the machine could do at that moment. Ratios are taken
inside a round. The tasks have no body and their bank's link is down, so nothing but admission is
measured. At the end of a round the daemon is killed and the store must hold every acknowledged
task. The last line is one JSON object; ``bench/README.md`` says what its members mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import attrs

from fep.client import BlockingClient
from fep.sandbox.scene import BANKS, HostProcess, Scene, end, free_port, make_software_key

RECEIVE_BYTES: Final = 262_144
LINES_PER_SECOND_MAX: Final = 80_000
"""Lines are made before the clock runs; a daemon faster than this ends the bench with a message."""
SECONDS_MAX: Final = 20.0
WARM_UP_SECONDS: Final = 0.15
ECHO_SECONDS: Final = 0.25
STALL_SECONDS_MAX: Final = 20.0
HEARTBEAT_SECONDS: Final = 60.0
"""Longer than a load, so that no heartbeat is among the replies."""
LOG_CHARS_MAX: Final = 4000
PROBE_SYNCS: Final = 60
PROBE_BYTES: Final = 4096
SYNC_MODES: Final = ("disk", "shim1ms")
BANK: Final = BANKS[0]
ACKNOWLEDGED: Final = b'"known":false'
"""In every reply to a submit that is newly on disk."""
ECHOED: Final = b'"task.submit"'
_PROBE: Final = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
for place in range(int(sys.argv[2])):
    os.pwrite(fd, bytes(int(sys.argv[3])), place * int(sys.argv[3]))
    began = time.perf_counter()
    os.fdatasync(fd)
    print(time.perf_counter() - began)
"""


@attrs.frozen
class Load:
    """How the submits are sent."""

    name: str
    clients: int
    window: int
    """Submits that one client has in flight."""


LOADS: Final = (
    Load("1", 1, 1),
    Load("16", 16, 1),
    Load("64", 64, 1),
    Load("pipelined", 1, 64),
)


@attrs.frozen
class Driven:
    """What one load gave."""

    rate: float
    """Acknowledged a second."""
    p50_ms: float
    p99_ms: float
    client_cpu: float
    """Of one core, of this process."""
    acknowledged: int
    """All of them, also those before and after the clock ran."""


@attrs.frozen
class Measured:
    """One load in one round."""

    submits: Driven
    echo: Driven
    daemon_us: float
    """The daemon's CPU time for one submit."""
    group: float
    """Submits for one sync; 0 where the syncs are not counted."""


# -- the load generator -------------------------------------------------------------------------


class _Client:
    __slots__ = ("sent_at", "sock", "tail")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tail = b""
        self.sent_at: deque[float] = deque()

    def send(self, lines: list[bytes]) -> None:
        now = time.perf_counter()
        self.sent_at.extend([now] * len(lines))
        self.sock.sendall(b"".join(lines))

    def receive(self, expected: bytes) -> int:
        """Return how many submits were answered; every line is looked at."""
        data = self.sock.recv(RECEIVE_BYTES)
        if not data:
            msg = "the connection was closed under load; see the daemon's log"
            raise RuntimeError(msg)
        *lines, self.tail = (self.tail + data).split(b"\n")
        for line in lines:
            if expected not in line:
                msg = f"not an acknowledgement: {line.decode()}"
                raise RuntimeError(msg)
        return len(lines)


def drive(
    socks: Sequence[socket.socket],
    window: int,
    lines: Iterator[bytes],
    expected: bytes,
    seconds: float,
) -> Driven:
    """Keep ``window`` lines in flight on each connection for so long; then let all come home."""
    clients = {sock.fileno(): _Client(sock) for sock in socks}
    times: list[float] = []
    total = counted = in_flight = 0
    with select.epoll() as epoll:
        for fd, client in clients.items():
            epoll.register(fd, select.EPOLLIN)
            client.send([next(lines) for _ in range(window)])
            in_flight += window
        opens = time.perf_counter() + WARM_UP_SECONDS
        closes = opens + seconds
        cpu_at_open = None
        cpu = 0.0
        while in_flight:
            ready = epoll.poll(STALL_SECONDS_MAX)
            if not ready:
                msg = f"{in_flight} submits without an answer for {STALL_SECONDS_MAX:g} s"
                raise RuntimeError(msg)
            for fd, _ in ready:
                client = clients[fd]
                answered = client.receive(expected)
                now = time.perf_counter()
                total += answered
                in_flight -= answered
                if opens <= now < closes:
                    if cpu_at_open is None:
                        cpu_at_open = time.process_time()
                    counted += answered
                    # Replies of one connection come in the order of its submits.
                    times += [now - client.sent_at.popleft() for _ in range(answered)]
                else:
                    for _ in range(answered):
                        client.sent_at.popleft()
                if now < closes:
                    client.send([next(lines) for _ in range(answered)])
                    in_flight += answered
                elif cpu_at_open is not None and not cpu:
                    cpu = time.process_time() - cpu_at_open
    if len(times) < 2:
        msg = "fewer than two answers came; give the load more seconds"
        raise RuntimeError(msg)
    cuts = statistics.quantiles(times, n=100)
    return Driven(counted / seconds, cuts[49] * 1e3, cuts[98] * 1e3, cpu / seconds, total)


def _lines(first: int, count: int) -> list[bytes]:
    return [
        b'{"jsonrpc":"2.0","id":%d,"method":"task.submit","params":{"task_id":"BENCH-%010d",'
        b'"bank":"%s","kind":"balance"}}\n' % (number, number, BANK.name.encode())
        for number in range(first, first + count)
    ]


# -- the echo server ----------------------------------------------------------------------------


def _serve_echo(told: Connection) -> None:
    """Send back what comes, until killed: one epoll loop over plain sockets."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    told.send(listener.getsockname()[1])
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    open_socks: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_socks[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            elif data := open_socks[fd].recv(RECEIVE_BYTES):
                open_socks[fd].sendall(data)
            else:
                epoll.unregister(fd)
                open_socks.pop(fd).close()


@contextmanager
def _echo_server() -> Iterator[int]:
    """Run the echo server, and give its port."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_serve_echo, args=(tell,), daemon=True)
    process.start()
    tell.close()  # Its own end is the last one: should it die, ``recv`` raises and does not wait.
    try:
        with told:
            yield told.recv()
    finally:
        process.kill()
        process.join()
        process.close()


# -- the sync -----------------------------------------------------------------------------------


class Sync:
    """What a sync of the daemon is in this run: the disk's, or the shim's 1 ms."""

    def __init__(self, mode: str, directory: Path) -> None:
        self.environment: dict[str, str] = {}
        self._directory = directory
        self._count: Path | None = None
        if mode == "shim1ms":
            library = directory / "shim1ms.so"
            source = Path(__file__).with_name("shim1ms.c")
            subprocess.run(
                ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
            )
            self._count = directory / "syncs"
            self._count.write_bytes(bytes(8))
            self.environment = {"LD_PRELOAD": str(library), "SHIM1MS_COUNT": str(self._count)}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Give what is started inside the environment that decides what a sync is."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def count(self) -> int:
        """Return the syncs made so far; always 0 of a real disk, where nothing counts them."""
        if self._count is None:
            return 0
        return int(struct.unpack("=Q", self._count.read_bytes())[0])

    def probe_ms(self) -> list[float]:
        """Return how long some syncs of 4 KiB take, each after a write at the file's end."""
        path = self._directory / "probe"
        with self.in_force():
            said = subprocess.run(
                [sys.executable, "-c", _PROBE, str(path), str(PROBE_SYNCS), str(PROBE_BYTES)],
                check=True,
                stdout=subprocess.PIPE,
            )
        path.unlink()
        return [float(line) * 1e3 for line in said.stdout.split()]


def filesystem(directory: Path) -> str:
    """Return the kind of file system that a directory is on."""
    command = ["stat", "-f", "-c", "%T", str(directory)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# -- the daemon ---------------------------------------------------------------------------------


class Subject:
    """The daemon under measurement, in one directory."""

    def __init__(self, directory: Path, sync: Sync) -> None:
        self.sync = sync
        self._scene = Scene(
            directory, banks=[BANK], accounts_per_bank=2, heartbeat_s=HEARTBEAT_SECONDS
        )
        make_software_key(directory, f"ukey-{BANK.name}")
        # Nobody listens there: the link stays down and no task is ever asked for.
        self._scene.hosts[BANK.name] = HostProcess(BANK, directory, port=free_port())
        config = self._scene.configuration()
        for bank in config["bank"]:
            bank |= {"backoff_first_s": HEARTBEAT_SECONDS, "backoff_max_s": HEARTBEAT_SECONDS}
        clients = max(load.clients for load in LOADS)
        config["control"]["clients"] = {f"erp-{n}": {"role": "finance"} for n in range(clients)}
        self._scene.write_config(config)
        self._state = directory / config["state_dir"]
        self._log = directory / "daemon.log"
        self._token = self._scene.token.read_text("utf-8").strip()

    def start(self) -> None:
        """Start it with an empty store, and wait until its key is in and it has come to rest."""
        shutil.rmtree(self._state, ignore_errors=True)
        with self.sync.in_force():
            self._scene.start_daemon(log_name=self._log.name)
        with self._scene.operator() as client:
            self._scene.wait(client, _keys_ready, "the key")

    def kill(self) -> int:
        """End it as ``kill -9`` does, and return how many tasks the store holds."""
        self._scene.kill_daemon()
        store = sqlite3.connect(self._state / "fep.sqlite")
        try:
            [count] = store.execute("SELECT count(*) FROM task WHERE state = 'queued'").fetchone()
        finally:
            store.close()
        return int(count)

    def log(self) -> str:
        """Return the end of the daemon's log."""
        return self._log.read_text("utf-8")[-LOG_CHARS_MAX:]

    def close(self) -> None:
        """End whatever still runs."""
        end(self._scene.daemon, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        assert self._scene.daemon is not None
        return self._scene.daemon.pid

    def cpu_s(self) -> float:
        """Return its CPU time so far, of all its threads."""
        stat = Path(f"/proc/{self.pid}/stat").read_text("ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def sessions(self, count: int) -> Iterator[list[socket.socket]]:
        """Open so many sessions, each with a client name of its own; end them in order."""
        with ExitStack() as stack:
            socks = []
            for place in range(count):
                sock = stack.enter_context(_connected(self._scene.port))
                # At once: the daemon keeps few connections that have no session yet.
                params = {"client": f"erp-{place}", "token": self._token}
                _ask(sock, "session.open", params)
                socks.append(sock)
            yield socks
            for sock in socks:
                _ask(sock, "session.close", {})


def _keys_ready(client: BlockingClient) -> bool:
    return all(state == "ready" for state in client.call("status")["slots"].values())


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), STALL_SECONDS_MAX)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(sock: socket.socket, method: str, params: dict[str, str]) -> None:
    line = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
    sock.sendall(json.dumps(line).encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        received = sock.recv(RECEIVE_BYTES)
        if not received:
            break
        data += received
    if b'"result"' not in data:
        msg = f"{method} was answered {data.decode()}"
        raise RuntimeError(msg)


# -- rounds -------------------------------------------------------------------------------------

Round = dict[str, Measured]


def _echo(port: int, load: Load) -> Driven:
    with ExitStack() as stack:
        socks = [stack.enter_context(_connected(port)) for _ in range(load.clients)]
        return drive(socks, load.window, cycle(_lines(0, 1000)), ECHOED, ECHO_SECONDS)


def _submits(subject: Subject, load: Load, lines: list[bytes], seconds: float) -> Measured:
    """Return the figures without those of the echo, which are zeros."""
    with subject.sessions(load.clients) as socks:
        syncs, cpu = subject.sync.count(), subject.cpu_s()
        try:
            driven = drive(socks, load.window, iter(lines), ACKNOWLEDGED, seconds)
        except StopIteration as error:
            msg = f"more than {LINES_PER_SECOND_MAX} submits a second: raise the limit"
            raise RuntimeError(msg) from error
        group = driven.acknowledged / max(subject.sync.count() - syncs, 1)
        cpu = subject.cpu_s() - cpu
    return Measured(
        submits=driven,
        echo=driven,
        daemon_us=cpu / driven.acknowledged * 1e6,
        group=group if subject.sync.environment else 0.0,
    )


def measure_round(
    subject: Subject, echo_port: int, loads: Sequence[Load], seconds: float, rng: random.Random
) -> Round:
    """Return the figures of every load, taken with a fresh daemon.

    Raises:
        RuntimeError: the store does not hold what was acknowledged.
    """
    subject.start()
    found: Round = {}
    count = int((seconds + WARM_UP_SECONDS) * LINES_PER_SECOND_MAX)
    for place, load in enumerate(rng.sample(loads, len(loads))):
        lines = _lines(place * count, count)
        gc.collect()
        if rng.random() < 0.5:
            echo = _echo(echo_port, load)
            one = _submits(subject, load, lines, seconds)
        else:
            one = _submits(subject, load, lines, seconds)
            echo = _echo(echo_port, load)
        found[load.name] = attrs.evolve(one, echo=echo)
    stored = subject.kill()
    acknowledged = sum(one.submits.acknowledged for one in found.values())
    if stored != acknowledged:
        msg = f"{acknowledged} submits were acknowledged and {stored} are stored"
        raise RuntimeError(msg)
    return found


def _median(rounds: Sequence[Round], load: Load, figure: Callable[[Measured], float]) -> float:
    return statistics.median(figure(one[load.name]) for one in rounds)


def _row(rounds: Sequence[Round], load: Load) -> str:
    def median(figure: Callable[[Measured], float]) -> float:
        return _median(rounds, load, figure)

    rates = [one[load.name].submits.rate for one in rounds]
    return (
        f"{load.name:<10}{median(lambda one: one.submits.rate):>10,.0f}"
        f"{f'{min(rates):,.0f}-{max(rates):,.0f}':>18}"
        f"{median(lambda one: one.submits.p50_ms):>9.2f}"
        f"{median(lambda one: one.submits.p99_ms):>9.2f}"
        f"{median(lambda one: one.echo.rate):>11,.0f}"
        f"{median(lambda one: one.submits.rate / one.echo.rate):>8.3f}"
        f"{median(lambda one: one.daemon_us):>10.0f}"
        f"{median(lambda one: one.submits.client_cpu):>11.0%}"
        f"{median(lambda one: one.group):>9.1f}"
    )


def _table(rounds: Sequence[Round], loads: Sequence[Load]) -> str:
    head = (
        f"{'load':<10}{'submits/s':>10}{'min-max':>18}{'p50 ms':>9}{'p99 ms':>9}{'echo/s':>11}"
        f"{'ratio':>8}{'daemon us':>10}{'client CPU':>11}{'a sync':>9}"
    )
    return "\n".join([head, *(_row(rounds, load) for load in loads)])


def summary(
    rounds: Sequence[Round], loads: Sequence[Load], sync_ms: Sequence[float]
) -> dict[str, object]:
    """Return the members that all runs have; medians over the rounds."""

    def medians(figure: Callable[[Measured], float], digits: int) -> dict[str, float]:
        return {
            load.name: round(_median(rounds, load, figure), digits) if digits else
            int(_median(rounds, load, figure))
            for load in loads
        }  # fmt: skip

    cuts = statistics.quantiles(sync_ms, n=100)
    sync_s = cuts[49] / 1e3
    return {
        "submits_per_second": medians(lambda one: one.submits.rate, 0),
        "ratios": medians(lambda one: one.submits.rate / one.echo.rate, 4),
        "raw_round_trips_per_second": medians(lambda one: one.echo.rate, 0),
        "sync_ms": round(cuts[49], 3),
        "sync_p99_ms": round(cuts[98], 3),
        "submits_per_sync_time": medians(lambda one: one.submits.rate * sync_s, 2),
        "submits_per_sync": medians(lambda one: one.group, 1),
        "p50_ms": medians(lambda one: one.submits.p50_ms, 2),
        "p99_ms": medians(lambda one: one.submits.p99_ms, 2),
        "daemon_cpu_us": medians(lambda one: one.daemon_us, 1),
        "client_cpu": medians(lambda one: one.submits.client_cpu, 2),
    }


def main(
    mode: str, parent: Path, loads: Sequence[Load], rounds_count: int, seconds: float, seed: int
) -> dict[str, object]:
    """Measure, print the table, return the summary."""
    load_average = os.getloadavg()[0]
    rng = random.Random(seed)
    rounds: list[Round] = []
    sync_ms: list[float] = []
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="fep-bench-", dir=parent))
        )
        kind = filesystem(directory)
        if mode == "disk" and kind in ("tmpfs", "ramfs"):
            msg = f"{parent} is on {kind}, which has no disk; choose another with --directory"
            raise SystemExit(msg)
        sync = Sync(mode, directory)
        subject = Subject(directory, sync)
        stack.callback(subject.close)
        echo_port = stack.enter_context(_echo_server())
        for _ in range(rounds_count):
            sync_ms += sync.probe_ms()
            try:
                rounds.append(measure_round(subject, echo_port, loads, seconds, rng))
            except (RuntimeError, OSError):
                print(subject.log(), file=sys.stderr)
                raise
    print(
        f"sync: {mode} on {kind}, p50 {statistics.median(sync_ms):.3f} ms, max {max(sync_ms):.1f}"
    )
    print(_table(rounds, loads))
    about = {
        "bench": "submit",
        "sync": mode,
        "filesystem": kind,
        "load_average": round(load_average, 2),
        "rounds": rounds_count,
        "seconds": seconds,
        "seed": seed,
    }
    return about | summary(rounds, loads, sync_ms)


def _chosen_loads(text: str) -> list[Load]:
    known = {load.name: load for load in LOADS}
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        msg = f"no load {unknown[0]!r}; there are: {', '.join(known)}"
        raise argparse.ArgumentTypeError(msg)
    return [known[name] for name in names]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sync",
        choices=SYNC_MODES,
        default="disk",
        help="what a sync is: the disk's own (default), or 1 ms exactly and nothing synced",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--seconds", type=float, default=0.7, help="of each load; default 0.7")
    parser.add_argument(
        "--loads", type=_chosen_loads, default=LOADS, help="1,16,64,pipelined by default"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the daemon's state is; default /var/tmp, with the shim /dev/shm",
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if not 0 < chosen.seconds <= SECONDS_MAX or chosen.rounds < 1:
        parser.error(f"--seconds must be above 0 and at most {SECONDS_MAX:g}, --rounds 1 or more")
    place = chosen.directory or Path("/var/tmp" if chosen.sync == "disk" else "/dev/shm")
    gc.disable()
    result = main(chosen.sync, place, chosen.loads, chosen.rounds, chosen.seconds, chosen.seed)
    print(json.dumps(result))
