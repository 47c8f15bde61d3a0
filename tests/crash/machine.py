"""The machine of a campaign: two banks, the line to each, the daemon and a finance system.

What is killed is started again by :meth:`Machine.tend`, and every end is judged: the daemon may
end when it was killed or stopped, or when its disk failed; otherwise it fell.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import attrs

from fep.client import BlockingClient, CallError, DisconnectedError
from fep.sandbox.scene import BANKS, FINANCE_CLIENT, HostProcess, Running, Scene, end, log_lines
from fep.store.files import STORE_FILE
from tests.crash.bank import Manners
from tests.crash.finance import Journal
from tests.crash.means import mount
from tests.crash.points import Point
from tests.crash.processes import Child, clock_environment, execute, holder
from tests.crash.proxy import Protocol, Proxy, ProxyThread
from tests.crash.store import Death, FileStore, ServerStore, Store

STATE_BYTES: Final = 160 * 1024 * 1024
START_SECONDS_MAX: Final = 60.0
HOST_STARTS_MAX: Final = 10
PORT_PAUSE_SECONDS: Final = 1.0
"""Between two tries to start a simulated bank on the port that the daemon knows."""
HELD_SECONDS_MAX: Final = 5.0
CALL_SECONDS_MAX: Final = 5.0
PROMISE_SECONDS: Final = 0.3
"""From when "no record" is proof at these banks. It may be short since the lines keep the order."""
CRASHES: Final = (
    "lane.crashed",
    "lane.failed",
    "lane.not_left",
    "lane.returned",
    "connection.crashed",
)
CAUGHT: Final = {
    "died_sending": "the process ended while it was being sent%",
    "died_offered": "the process ended",
    "line_lost": "the connection was lost%",
    "no_answer": "no answer within%",
    "nothing_sent": "no byte left%",
    "proved_done": "%status query says: done",
    "proved_not_done": "no record at the bank%",
}
"""Causes in the chains that show what the faults hit."""
DAEMON, FINANCE, STORE = "daemon", "finance", "store"

Launch = Callable[[Path], Running]
"""Starts the daemon with a log file."""


@attrs.define
class Life:
    """One life of the daemon."""

    process: Running
    log: Path
    killed: bool = False
    stopped: bool = False
    point: Point | None = None
    """Where it ends itself by kill -9."""
    hurt: bool = False
    """Its disk was made to fail: it may end itself, with status 1, and what it logs is excused."""
    bereft: bool = False
    """The server of its store died: it may end itself, with status 1, and its reason in the log."""
    held_at: float = math.inf
    """Since when it is dead and its strace has not noticed."""
    read_bytes: int = 0


class Machine:
    """A scene with a proxy before each bank; use it as a context manager.

    Args:
        directory: where all is written; the state directory in it is a small file system in memory.
        seed: of the balances.
        broken: the name of a break of the daemon, see ``tests.crash.broken``.
        mounts: False where nothing may be mounted: the state directory is one like any other.
        postgres: whether the store is on a PostgreSQL, instead of in a file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        seed: int = 1,
        broken: str = "",
        mounts: bool = True,
        postgres: bool = False,
    ) -> None:
        self.scene = Scene(
            directory,
            banks=BANKS[:2],
            accounts_per_bank=4,
            seed=seed,
            heartbeat_s=0.5,
            start_command=Child,
        )
        self.directory = directory
        self.state = directory / "state"
        self.store: Store = ServerStore(directory) if postgres else FileStore(self.state)
        self.store_files = [self.state / f"{STORE_FILE}{end}" for end in ("", "-wal")]
        self.proxies = {plan.name: Proxy(Protocol(plan.adapter)) for plan in self.scene.banks}
        self.counts: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        """What the daemon logged."""
        self.faults: list[str] = []
        """What happened that must not."""
        self.life: Life | None = None
        self.launch: Launch | None = None
        """How the daemon is started next; None: forked."""
        self.hurt_start: Launch | None = None
        """How it is started once, its disk failing from the first call."""
        self.points: list[Point] = []
        """Each start of the daemon takes the first, and dies there by itself."""
        self.doom: list[float] = []
        """Each start of the daemon takes the first and dies so many seconds later."""
        self.rng = random.Random(seed)
        self.rest_s = 0.1
        """What was killed stays down for up to this long."""
        self._broken = broken
        self._mounts = mounts
        self._lives: list[Life] = []
        self._lives_begun = 0
        self._down: dict[str, float] = {}
        """When what is down is started again, by name."""
        self._dooms: list[tuple[float, Life]] = []
        self._finance: Child | None = None
        self._finance_arguments: list[str] = []
        self._finance_killed = False
        self._config: dict[str, Any] = {}
        self._head: str | None = None
        """The hash chain's, when the store was looked at last."""
        self._stack = contextlib.ExitStack()

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.state.mkdir(mode=0o700)
            if self._mounts:
                # A kill takes nothing from the page cache, so memory is as good as a disk here. It
                # can be filled for real, and it goes with the lane's mount namespace.
                subprocess.run(mount(self.state, STATE_BYTES), check=True)
                unmount = ["umount", "--lazy", str(self.state)]
                stack.callback(lambda: subprocess.run(unmount, check=False))
            stack.enter_context(self.store)
            self.scene.store = self.store.table
            Manners().write(self.directory)
            stack.callback(self.scene.close)
            stack.callback(self.end_finance)
            stack.callback(self._end_daemon)
            self.scene.start_hosts()
            for name, proxy in self.proxies.items():
                proxy.host_port = self.scene.hosts[name].port
            stack.enter_context(ProxyThread(list(self.proxies.values())))
            self._config = self._configuration()
            self.write_config(PROMISE_SECONDS)
            self.start_daemon()
            self.wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _configuration(self) -> dict[str, Any]:
        config = self.scene.configuration()
        config["tasks"]["fetch_timeout_s"] = 1.0
        for bank in config["bank"]:
            bank["port"] = self.proxies[bank["name"]].port
            bank |= {"heartbeat_s": 0.5, "reply_timeout_s": 1.0, "logon_timeout_s": 1.0}
            bank |= {"backoff_first_s": 0.02, "backoff_max_s": 0.3, "connect_timeout_s": 1.0}
            bank["card"]["inquiry"] |= {"cool_down_s": 0.15, "accepted_interval_s": 0.05}
            bank["card"]["inquiry"] |= {"interval_max_s": 0.5}
        return config

    def write_config(self, promise_s: float) -> None:
        """Write the configuration; "no record" is proof from ``promise_s`` after the sending."""
        for bank in self._config["bank"]:
            bank["card"]["inquiry"]["no_record_after_s"] = promise_s
        self.scene.write_config(self._config)

    def apply_config(self, promise_s: float) -> None:
        """Write the configuration and let the daemon take it into force, however often it dies."""
        self.write_config(promise_s)
        self.insist(lambda client: client.call("config.apply", deadline_s=CALL_SECONDS_MAX))

    # -- the daemon ---------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Start it and do not wait."""
        self._lives_begun += 1
        log = self.directory / f"fep-{self._lives_begun}.log"
        # It may die before it has opened it.
        log.touch()
        hurt, self.hurt_start = self.hurt_start, None
        launch, point = hurt or self.launch or self.fork, None
        if self.points and launch == self.fork:
            point = self.points.pop(0)
            launch = partial(self.fork, point=point)
        bereft = self.store.is_dying
        life = Life(launch(log), log, hurt=hurt is not None, bereft=bereft, point=point)
        self.life = life
        self.scene.daemon = life.process
        self._lives.append(life)
        self.counts["starts"] += 1
        if self.doom:
            self._dooms.append((time.monotonic() + self.doom.pop(0), life))

    @property
    def command(self) -> list[str]:
        """What runs the daemon."""
        return ["run", "--config", str(self.scene.config)]

    def fork(self, log: Path, point: Point | None = None) -> Running:
        """Start the daemon from the server that has imported everything."""
        return Child(self.command, log, broken=self._broken, point=point)

    def with_clock(self, file: Path) -> Launch:
        """Return what starts the daemon with the wall clock of a file."""

        def launch(log: Path) -> Running:
            clock = clock_environment(file)
            return execute(self.command, log, environment=clock, broken=self._broken)

        return launch

    def wrapped(self, wrap: Sequence[str]) -> Launch:
        """Return what starts the daemon under another program that keeps its pid."""

        def launch(log: Path) -> Running:
            return execute(self.command, log, wrap=wrap, broken=self._broken)

        return launch

    def kill_daemon(self) -> None:
        """Kill -9 it now; from any thread."""
        life = self.life
        if life is not None and not life.killed:
            life.killed = True
            self.counts["kills_daemon"] += 1
            self._send(life.process.pid, signal.SIGKILL)

    def stop_daemon(self) -> None:
        """Ask it to end in order, and do not wait."""
        life = self.life
        if life is not None and not life.killed:
            life.stopped = True
            self._send(life.process.pid, signal.SIGTERM)

    @staticmethod
    def _send(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _end_daemon(self) -> None:
        if self.life is not None:
            end(self.life.process, signal.SIGKILL)

    def again(self) -> None:
        """End the daemon in order and start it again as it is started now; waits until ready."""
        life = self.life
        self.stop_daemon()
        # Of this one: whoever tends may have started the next before we look.
        self.until(lambda: life is None or life.process.poll() is not None, "a stop")
        self.tend()
        self.wait_ready()

    # -- the store ----------------------------------------------------------------------------

    def kill_store(self, how: Death, share: float) -> None:
        """Let the server of the store die now; from any thread."""
        life = self.life
        if life is not None:
            life.bereft = True
        if self.store.die(how, share):
            self.counts["kills_store"] += 1
            self.counts[f"store {how}"] += 1

    # -- banks --------------------------------------------------------------------------------

    def kill_host(self, name: str) -> None:
        """Kill -9 a bank's process now; from any thread."""
        process = self.scene.hosts[name].process
        if process is not None:
            self.counts["kills_host"] += 1
            self._send(process.pid, signal.SIGKILL)

    def set_host_faults(self, spec: str) -> None:
        """Let the banks misbehave so; those that did otherwise are started anew."""
        for host in self.scene.hosts.values():
            if host.faults != spec:
                host.faults = spec
                host.start()

    # -- the finance system -------------------------------------------------------------------

    def start_finance(self, work: list[dict[str, Any]], name: str) -> None:
        """Start the outside finance system with its work."""
        file = self.directory / f"{name}.work.json"
        file.write_text(json.dumps(work, ensure_ascii=False), "utf-8")
        journal = self.directory / f"{name}.journal"
        self._finance_arguments = [
            "finance",
            f"--address=tcp:127.0.0.1:{self.scene.port}",
            f"--client={FINANCE_CLIENT}",
            f"--token-file={self.scene.token}",
            f"--work={file}",
            f"--journal={journal}",
        ]
        self._journal = journal
        self._down.pop(FINANCE, None)
        self._launch_finance()

    def _launch_finance(self) -> None:
        self._finance_killed = False
        self._finance = Child(self._finance_arguments, self.directory / "finance.log")

    def kill_finance(self) -> None:
        """Let the finance system vanish, as by kill -9."""
        if self._finance is not None and self._finance.poll() is None:
            self.counts["kills_finance"] += 1
            self._finance_killed = True
            self._finance.send_signal(signal.SIGKILL)

    @property
    def finance_done(self) -> bool:
        """True when it has been told the end of everything it ordered."""
        return self._finance is not None and self._finance.poll() == 0

    def end_finance(self) -> None:
        """End it for good."""
        end(self._finance, signal.SIGKILL)
        self._finance = None

    def journal(self) -> Journal:
        """Return what it knows."""
        return Journal.read(self._journal)

    # -- tending ------------------------------------------------------------------------------

    def tend(self) -> None:
        """Look after all processes once: judge who ended, start who is due again."""
        now = time.monotonic()
        for at, life in list(self._dooms):
            if at <= now:
                self._dooms.remove((at, life))
                if life is self.life:
                    self.kill_daemon()
        if self.store.is_down and self._is_due(STORE) and (fault := self.store.start()):
            self.faults.append(fault)
        self._let_go(now)
        if self.life is not None and self.life.process.poll() is not None:
            self._judge(self.life)
            self.life = None
        if self.life is None and self._is_due(DAEMON):
            self.start_daemon()
        for name, host in self.scene.hosts.items():
            if not host.alive and self._is_due(name):
                self._restart_host(host)
        if self._finance is not None and self._finance.poll() not in (None, 0):
            if not self._finance_killed:
                self.faults.append(f"the finance system ended with {self._finance.poll()}")
                self._finance_killed = True
            if self._is_due(FINANCE):
                self._launch_finance()

    def _let_go(self, now: float) -> None:
        """End a strace that has held a dead daemon for long."""
        life = self.life
        if life is None or not life.hurt or not (tracer := holder(life.process.pid)):
            return
        life.held_at = min(life.held_at, now)
        if now - life.held_at > HELD_SECONDS_MAX:
            self.counts["let_go"] += 1
            self._send(tracer, signal.SIGKILL)

    def _is_due(self, name: str) -> bool:
        """Say whether what is down is to be started now; it rests for a drawn while before."""
        at = self._down.setdefault(name, time.monotonic() + self.rng.random() * self.rest_s)
        if at > time.monotonic():
            return False
        del self._down[name]
        return True

    def _restart_host(self, host: HostProcess) -> None:
        status = host.process.returncode if host.process is not None else None
        if status not in (-signal.SIGKILL, None):
            self.faults.append(f"the simulated bank {host.plan.name} ended with {status}")
        self.counts["starts_host"] += 1
        # Another seed, or the same first request would kill it for ever.
        host.seed += 1000
        for _ in range(HOST_STARTS_MAX - 1):
            try:
                host.start()
            except RuntimeError:
                # Its port is taken for a moment, by a connection of another program here.
                self.counts["port_taken"] += 1
                time.sleep(PORT_PAUSE_SECONDS)
            else:
                return
        host.start()

    def _judge(self, life: Life) -> None:
        """Count what ended the daemon, and note an end that it must not have."""
        status = life.process.returncode
        if life.killed:
            return
        if status == -signal.SIGKILL and (life.point is not None or life.hurt):
            self.counts["kills_daemon"] += 1
            if life.point is not None:
                self.counts[f"at {life.point.place}"] += 1
        elif status == 1 and (life.hurt or (life.bereft and _says_why(life))):
            self.counts["fail_stops"] += 1
        elif life.stopped and status == -signal.SIGTERM and not life.log.stat().st_size:
            # It was asked before it could hear that; it had not begun.
            self.counts["stops_unheard"] += 1
        elif not (life.stopped and status == 0):
            self.faults.append(f"the daemon fell: status {status}, see {life.log.name}")

    def until(self, ready: Callable[[], Any], what: str, seconds: float = START_SECONDS_MAX) -> Any:
        """Tend until ``ready()`` returns something true, and return that.

        Raises:
            TimeoutError: it did not.
        """
        limit = time.monotonic() + seconds
        while True:
            if found := ready():
                return found
            if time.monotonic() > limit:
                msg = f"{what}: not within {seconds:g} s"
                raise TimeoutError(msg)
            self.tend()
            time.sleep(0.01)

    def ask(self, call: Callable[[BlockingClient], Any]) -> Any:
        """Call the daemon as an operator; None when it is down or will not."""
        address = f"unix:{self.scene.socket}"
        try:
            with BlockingClient(address, "operator", retry=False, connect_s=2.0) as client:
                return call(client)
        except (DisconnectedError, CallError):
            return None

    def insist(self, call: Callable[[BlockingClient], Any]) -> Any:
        """Call the daemon until it answers something true."""
        return self.until(partial(self.ask, call), "an answer of the daemon")

    def wait_ready(self) -> None:
        """Wait until the daemon answers, with its keys in and its lines up."""

        def ready(client: BlockingClient) -> bool:
            links = client.call("status", deadline_s=CALL_SECONDS_MAX)["links"]
            return all(state.upper() == "READY" for state in links.values())

        self.insist(ready)

    # -- what it was worth --------------------------------------------------------------------

    def caught(self) -> Counter[str]:
        """Return how many tasks met what, by their causal chains."""
        found: Counter[str] = Counter()
        for name, pattern in CAUGHT.items():
            found[name] = self.store.count_causes(pattern)
        return found

    def whys(self, task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what happened to each of these tasks, as ``task.why`` tells it."""

        def ask(client: BlockingClient) -> dict[str, dict[str, Any]]:
            return {
                task_id: client.call("task.why", {"task_id": task_id}, deadline_s=CALL_SECONDS_MAX)
                for task_id in task_ids
            }

        found: dict[str, dict[str, Any]] = self.insist(ask) if task_ids else {}
        return found

    def look_at_store(self) -> list[str]:
        """Return where the store is not sound, or has lost what stood in it at the last look."""
        looked = self.store.look(self._head)
        self._head = str(looked.head)
        return [str(one) for one in looked.findings]

    # -- logs ---------------------------------------------------------------------------------

    def read_logs(self) -> None:
        """Count what the daemon has logged since, and note what it must not have."""
        for life in self._lives:
            with life.log.open("rb") as file:
                file.seek(life.read_bytes)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            life.read_bytes += len(whole)
            lines = whole.decode("utf-8", "replace").splitlines(keepends=True)
            for record in log_lines(iter(lines)):  # type: ignore[arg-type]
                event = str(record.get("event"))
                self.events[event] += 1
                if event in CRASHES and not life.hurt:
                    lane = record.get("lane", "")
                    self.faults.append(f"{event} {lane}, see {life.log.name}")
            if not life.hurt and any(line.startswith("Traceback") for line in lines):
                self.faults.append(f"a trace in {life.log.name}")
        self._lives = [life for life in self._lives if life is self.life]


def _says_why(life: Life) -> bool:
    """Say whether a daemon's log has the reason why it ended."""
    with life.log.open(encoding="utf-8", errors="replace") as file:
        return any(record.get("event") == "daemon.failed" for record in log_lines(file))
