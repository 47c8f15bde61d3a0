"""The queues that fep is compared with: beanstalkd, Redis and PostgreSQL, each fresh and empty.

Their programs are the machine's own where it has them; else Debian's packages are downloaded and
unpacked into ``.build/peers``, and nothing is installed or started by them. A second run finds them
there. All listen on loopback, and sync before they acknowledge.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.loads import WARM_UP_SECONDS, Figures, Load
from fep.sandbox.scene import end, free_port

PEERS: Final = Path(__file__).parent.parent / ".build" / "peers"
SYSTEM: Final = Path("/")
START_SECONDS_MAX: Final = 30.0
TRANSACTIONS_MIN: Final = 10
POLL_SECONDS: Final = 0.02
RECEIVE_BYTES: Final = 65_536
TASK: Final = '{"id":"{n}","bank":"pingan","kind":"balance","account":"990000000000101"}'
"""80 bytes when the number stands in it: what of a task a queue without fep's words would keep."""
TASK_BYTES: Final = 80
NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
"""PostgreSQL refuses to run as root."""
_NEW: Final = re.compile(r"Inst (\S+) ")


# -- the programs -------------------------------------------------------------------------------


def ensure(package: str, program: str) -> Path:
    """Return the root below which the program ``usr/…`` is, after unpacking its package if needed.

    Raises:
        subprocess.CalledProcessError: the package can't be downloaded.
    """
    for root in (SYSTEM, PEERS / "root"):
        if (root / program).exists():
            return root
    archives = PEERS / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    names = _missing(package)
    if not names:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        names = _missing(package)
    print(f"peers: unpacking {' '.join(names)} into {PEERS / 'root'}", flush=True)
    options = ["-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"]
    subprocess.run(["apt-get", "-qq", *options, "download", *names], cwd=archives, check=True)
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(archive), str(PEERS / "root")], check=True)
        archive.unlink()
    return PEERS / "root"


def _missing(package: str) -> list[str]:
    """Return what an installation would bring, none where the lists do not know the package."""
    command = ["apt-get", "-s", "--no-install-recommends", "install", package]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return _NEW.findall(said)


def _environment(root: Path, sync: Mapping[str, str]) -> dict[str, str]:
    given = {**os.environ, **sync}
    if root != SYSTEM:
        libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
        given["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    return given


# -- servers ------------------------------------------------------------------------------------


def answers(port: int) -> bool:
    """Say whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Poll until it is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    limit = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < limit and process.poll() is None:
        if ready():
            return
        time.sleep(POLL_SECONDS)
    msg = f"{what} did not start; see its log"
    raise RuntimeError(msg)


def cpu_s(pid: int) -> float:
    """Return the CPU time so far of a process and its children, also of those that ended."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    total = 0
    for one in [str(pid), *children]:
        try:
            stat = Path(f"/proc/{one}/stat").read_text("ascii")
        except OSError:
            continue  # ended meanwhile: its parent's figures have it
        total += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _ask(port: int, line: str, last: str) -> str:
    """Return a server's answer to a line, read up to its last words."""
    with socket.create_connection(("127.0.0.1", port), START_SECONDS_MAX) as sock:
        sock.sendall(line.encode() + b"\r\n")
        said = ""
        while not said.endswith(last):
            received = sock.recv(RECEIVE_BYTES)
            if not received:
                break
            said += received.decode()
        return said


class _Server:
    """A peer that is one process and speaks lines."""

    name = ""
    package = ""
    program = ""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, directory: Path) -> None:
        """Find its programs, or unpack them."""
        del directory
        self._root = ensure(self.package, self.program)

    def supports(self, load: Load) -> bool:
        """Say whether it can be put under this load."""
        del load
        return True

    def start(self, directory: Path, sync: Mapping[str, str], load: Load) -> None:
        """Start it in an empty directory, and wait until it listens."""
        del load
        self.port = free_port()
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._root / self.program), *self._arguments(directory)],
                env=_environment(self._root, sync),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait(lambda: answers(self.port), self._process, self.name)

    def stop(self) -> None:
        """End it at once."""
        end(self._process, signal.SIGKILL)
        self._process = None

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def _arguments(self, directory: Path) -> list[str]:
        raise NotImplementedError


class Beanstalkd(_Server):
    """One ``fsync`` for each put and each delete, before the reply (``-f0``)."""

    name = "beanstalkd"
    package = "beanstalkd"
    program = "usr/bin/beanstalkd"

    def _arguments(self, directory: Path) -> list[str]:
        return ["-l", "127.0.0.1", "-p", str(self.port), "-b", str(directory), "-f0"]

    def script(self, load: Load) -> list[str]:
        """Return what the load generator says."""
        put = rf"send put 0 0 60 {TASK_BYTES}\r\n{TASK}\r\n"
        if not load.is_cycle:
            return [put, "expect INSERTED {=id}"]
        return [
            put,
            "expect INSERTED {=id}",
            r"send reserve\r\n",
            f"expect RESERVED {{=id}} {TASK_BYTES}",
            'expect {"id":"{*}',
            r"send delete {id}\r\n",
            "expect DELETED",
        ]

    def stored(self, load: Load) -> int:
        """Return how many operations its store shows."""
        said = _ask(self.port, "stats", "\n\r\n")
        name = "cmd-delete" if load.is_cycle else "current-jobs-ready"
        return int(said.split(f"\n{name}: ")[1].split("\n")[0])


class Redis(_Server):
    """One ``fdatasync`` for all that came in one turn of its loop (``appendfsync always``)."""

    name = "redis"
    package = "redis-server"
    program = "usr/bin/redis-server"

    def _arguments(self, directory: Path) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "auto-aof-rewrite-percentage": "0",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def script(self, load: Load) -> list[str]:
        """Return what the load generator says."""
        task = rf"${TASK_BYTES}\r\n{TASK}\r\n"
        put = rf"send *3\r\n$5\r\nLPUSH\r\n$5\r\ntasks\r\n{task}"
        if not load.is_cycle:
            return [put, "expect :{*}"]
        taken = rf"${TASK_BYTES}\r\n{{id}}\r\n"
        return [
            put,
            "expect :{*}",
            r"send *3\r\n$9\r\nRPOPLPUSH\r\n$5\r\ntasks\r\n$5\r\ntaken\r\n",
            f"expect ${TASK_BYTES}",
            "expect {=id}",
            rf"send *4\r\n$4\r\nLREM\r\n$5\r\ntaken\r\n$1\r\n1\r\n{taken}",
            "expect :1",
        ]

    def stored(self, load: Load) -> int:
        """Return how many operations its store shows."""
        if not load.is_cycle:
            return int(_ask(self.port, "LLEN tasks", "\r\n").strip(":\r\n"))
        left = sum(int(_ask(self.port, f"LLEN {one}", "\r\n")[1:]) for one in ("tasks", "taken"))
        calls = _ask(self.port, "INFO commandstats", "\r\n\r\n")
        return int(calls.split("cmdstat_lrem:calls=")[1].split(",")[0]) - left


_TABLES: Final = f"""
create table q(id bigserial primary key, body text);
create table q2(id bigserial primary key, st int not null default 0, body text);
create index q2_waiting on q2(id) where st = 0;
insert into q2(body) select '{"0" * TASK_BYTES}' from generate_series(1, 1000);
"""
"""Rows wait beforehand: ``skip locked`` finds none where all that its snapshot shows are taken, and
pgbench can't try again."""
_PUT: Final = "insert into {table}(body) values('{task}') returning id;\n"
_CYCLE: Final = (
    _PUT
    + "update q2 set st = 1 where id = (select id from q2 where st = 0 order by id"
    + " for update skip locked limit 1) returning id as jid \\gset\n"
    + "update q2 set st = 2 where id = :jid;\n"
)


class Postgresql:
    """One ``fdatasync`` of the log for each commit, shared by commits that wait for it together.

    Its load generator is pgbench, whose log says when each transaction ended.
    """

    name = "postgresql"
    package = "postgresql-15"
    program = "usr/lib/postgresql/15/bin/postgres"

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._as = NOBODY if os.geteuid() == 0 else ()

    def prepare(self, directory: Path) -> None:
        """Make an empty cluster with its tables, to be copied for each measurement."""
        self._root = ensure(self.package, self.program)
        ensure("postgresql-client-15", "usr/lib/postgresql/15/bin/pgbench")
        self._template = directory / "postgresql-template"
        self._own(self._template)
        self._run("initdb", "-D", str(self._template / "d"), "-U", "postgres", "--no-sync")
        self._launch(self._template, {})
        self._psql(_TABLES)
        self.stop()

    def supports(self, load: Load) -> bool:
        """Say whether pgbench can: its pipelines are one transaction."""
        return load.window == 1

    def start(self, directory: Path, sync: Mapping[str, str], load: Load) -> None:
        """Start it on a copy of the empty cluster, and wait until it takes connections."""
        del load
        shutil.copytree(self._template / "d", directory / "d")
        self._own(directory)
        self._launch(directory, sync)

    def stop(self) -> None:
        """End it in order, with its children."""
        end(self._process, signal.SIGINT)
        self._process = None

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def drive(self, load: Load, seconds: float, directory: Path) -> Figures:
        """Put the load on it; whole seconds, for pgbench has no others."""
        task = TASK.replace("{n}", "0" * 10)
        text = (_CYCLE if load.is_cycle else _PUT).format(
            table="q2" if load.is_cycle else "q", task=task
        )
        script = directory / "load.sql"
        script.write_text(text, "ascii")
        whole = math.ceil(seconds + WARM_UP_SECONDS)
        earlier = 0
        # The time of its connecting is in its seconds: on a busy machine nothing may be left.
        for prefix in ("first", "second", "third"):
            lines, cpu = self._pgbench(load, script, whole, directory / prefix)
            found = _figures(lines, whole, cpu, earlier)
            if found is not None:
                return found
            earlier += len(lines)
            whole *= 4
        msg = f"pgbench ended {earlier} transactions in all its tries"
        raise RuntimeError(msg)

    def _pgbench(
        self, load: Load, script: Path, seconds: int, prefix: Path
    ) -> tuple[list[str], float]:
        """Return the log of its transactions, and its CPU time."""
        before = os.times()
        self._run(
            "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={load.connections}",
            "--jobs=1", f"--time={seconds}", f"--file={script}", "--log",
            f"--log-prefix={prefix}", "--host=127.0.0.1", f"--port={self.port}",
            "--username=postgres", "postgres",
        )  # fmt: skip
        after = os.times()
        cpu = after.children_user - before.children_user
        cpu += after.children_system - before.children_system
        [log] = prefix.parent.glob(f"{prefix.name}.*")
        return log.read_text("ascii").splitlines(), cpu

    def stored(self, load: Load) -> int:
        """Return how many operations its store shows."""
        table = "q2 where st = 2" if load.is_cycle else "q"
        return int(self._psql(f"select count(*) from {table};"))

    def _own(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        if self._as:
            subprocess.run(["chown", "-R", "65534:65534", str(directory)], check=True)
        directory.chmod(0o700)

    def _launch(self, directory: Path, sync: Mapping[str, str]) -> None:
        self.port = free_port()
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "synchronous_commit": "on",
            "wal_sync_method": "fdatasync",
            "max_connections": "80",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._root / self.program), "-D", str(directory / "d"), *words],
                env=_environment(self._root, sync),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait(self._takes_connections, self._process, self.name)

    def _takes_connections(self) -> bool:
        command = self._command("psql", *self._where(), "-c", "select 1")
        quiet = subprocess.run(
            command, env=_environment(self._root, {}), capture_output=True, check=False
        )
        return quiet.returncode == 0

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-qtAX", "postgres"]

    def _psql(self, text: str) -> str:
        return self._run("psql", *self._where(), "-c", text)

    def _command(self, program: str, *arguments: str) -> list[str]:
        place = (self._root / self.program).with_name(program)
        return [*self._as, str(place), *arguments]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            self._command(program, *arguments),
            env=_environment(self._root, {}) | {"LC_ALL": "C"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"{program}: {done.stderr.strip()}"
            raise RuntimeError(msg)
        return done.stdout


def _figures(log: Sequence[str], seconds: float, cpu: float, earlier: int) -> Figures | None:
    """Return pgbench's figures without its warm-up, or None where too little is left."""
    ended = []
    for line in log:
        words = line.split()
        ended.append((int(words[4]) + int(words[5]) / 1e6, int(words[2]) / 1e3))
    opens = min((at - took / 1e3 for at, took in ended), default=0.0) + WARM_UP_SECONDS
    times = [took for at, took in ended if at >= opens]
    if len(times) < TRANSACTIONS_MIN:
        return None
    cuts = statistics.quantiles(times, n=100)
    return Figures(
        rate=len(times) / (max(at for at, _ in ended) - opens),
        p50_ms=cuts[49],
        p99_ms=cuts[98],
        max_ms=max(times),
        client_cpu=cpu / seconds,
        counted=len(times),
        ended=earlier + len(ended),
    )
