"""The daemon under measurement: ``fep run``, reached over loopback TCP with its token.

Its one bank is either down (nobody listens at its port), so that a task stays queued, or a small
program that answers at once (``bench/bank.c``), so that a cycle costs no bank's time.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.loads import Load, build
from fep.client import BlockingClient
from fep.sandbox.scene import (
    BANKS,
    FINANCE_CLIENT,
    HostProcess,
    Launch,
    Running,
    Scene,
    end,
    free_port,
    launch,
    make_software_key,
)

HEARTBEAT_SECONDS: Final = 60.0
"""Longer than a load, so that no heartbeat is among the replies."""
WORKERS: Final = 64
LOG_CHARS_MAX: Final = 4000
BANK: Final = BANKS[0]
HELD_OFF_SECONDS: Final = 3600.0
ACCOUNT: Final = f"{BANK.account_prefix}01"
_OPEN: Final = (
    r'open {"jsonrpc":"2.0","id":0,"method":"session.open",'
    r'"params":{"client":"erp-{c}","token":"TOKEN"}}\n'
)
_OPENED: Final = 'expect {"jsonrpc":"2.0","id":0,"result":{"session":{*}'
_SUBMIT: Final = (
    r'send {"jsonrpc":"2.0","id":{n},"method":"task.submit",'
    rf'"params":{{"task_id":"BENCH-{{n}}","bank":"{BANK.name}","kind":"balance"}}}}\n'
)
_SUBMITTED: Final = (
    'expect {"jsonrpc":"2.0","id":{n},"result":'
    '{"task_id":"BENCH-{n}","state":"queued","known":false}}'
)
_ASKED: Final = (
    'expect {"jsonrpc":"2.0","id":{=id},"method":"task.fetch",'
    '"params":{"task_id":"BENCH-{n}","attempt":1}}'
)
_BODY: Final = (
    r'send {"jsonrpc":"2.0","id":{id},"result":'
    rf'{{"kind":"balance","params":{{"account":"{ACCOUNT}"}}}}}}\n'
)
_TOLD: Final = (
    'expect {"jsonrpc":"2.0","id":{=id},"method":"task.result",'
    '"params":{"task_id":"BENCH-{n}","state":"succeeded",{*}'
)
_TAKEN: Final = r'send {"jsonrpc":"2.0","id":{id},"result":{}}\n'
_HEARTBEAT: Final = 'ignore {"jsonrpc":"2.0","method":"session.heartbeat"{*}'


class Bank:
    """A bank that answers at once."""

    def __init__(self, directory: Path) -> None:
        self._program = build("bank", directory)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it and return its port."""
        self._process = subprocess.Popen(
            [str(self._program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            end(self._process, signal.SIGKILL)
            self._process = None


class Fep:
    """The front-end processor, as a queue."""

    name = "fep"

    def __init__(self) -> None:
        self._bank: Bank | None = None
        self._scene: Scene | None = None
        self.state = Path()
        self.log = Path()

    def prepare(self, directory: Path) -> None:
        """Build the bank that answers at once, and make the key."""
        self._bank = Bank(directory)
        self._keys = directory / "fep-keys"
        self._keys.mkdir(exist_ok=True)
        make_software_key(self._keys, f"ukey-{BANK.name}")

    def supports(self, load: Load) -> bool:
        """Say whether it can be put under this load."""
        del load
        return True

    def start(
        self,
        directory: Path,
        sync: Mapping[str, str],
        load: Load,
        changes: Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """Start it with the store that is in its directory, an empty one where there is none.

        Args:
            directory: where its state and its log are.
            sync: the environment that decides what a sync is.
            load: a cycle needs a bank.
            changes: of the configuration, by section.
            wait: until its key and its bank are there; else only until it listens.
        """
        scene = self._scene = Scene(
            directory,
            banks=[BANK],
            accounts_per_bank=2,
            heartbeat_s=HEARTBEAT_SECONDS,
            start_command=_launching(sync),
        )
        scene.workers = WORKERS
        for one in self._keys.iterdir():
            (directory / one.name).write_bytes(one.read_bytes())
            (directory / one.name).chmod(0o600)
        assert self._bank is not None
        port = self._bank.start() if load.is_cycle else free_port()
        scene.hosts[BANK.name] = HostProcess(BANK, directory, port=port)
        config = scene.configuration()
        for bank in config["bank"]:
            bank["heartbeat_s"] = HEARTBEAT_SECONDS
            if not load.is_cycle:
                bank |= {"backoff_first_s": HELD_OFF_SECONDS, "backoff_max_s": HELD_OFF_SECONDS}
        clients = {f"erp-{place}": {"role": "finance"} for place in range(load.connections)}
        config["control"]["clients"] = clients | {FINANCE_CLIENT: {"role": "finance"}}
        # Its pools would ask for balances of their own.
        config["pool"] = []
        for section, values in (changes or {}).items():
            config[section] = {**config.get(section, {}), **values}
        scene.write_config(config)
        self.state = directory / config["state_dir"]
        self.log = directory / "daemon.log"
        scene.start_daemon(log_name=self.log.name)
        if not wait:
            return
        with scene.operator() as client:
            scene.wait(client, _keys_ready, "the key")
            if load.is_cycle:
                scene.wait_ready(client)

    def kill(self) -> None:
        """End it as ``kill -9`` does; its bank stays."""
        self.scene.kill_daemon()

    def stop(self) -> None:
        """End it at once, and its bank."""
        if self._scene is not None:
            end(self._scene.daemon, signal.SIGKILL)
            self._scene.daemon = None
        if self._bank is not None:
            self._bank.stop()

    @property
    def scene(self) -> Scene:
        """Of the daemon that was started last."""
        assert self._scene is not None
        return self._scene

    @property
    def port(self) -> int:
        """Where its clients connect."""
        return self.scene.port

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        assert self.scene.daemon is not None
        return self.scene.daemon.pid

    def log_end(self) -> str:
        """Return the end of its log."""
        return self.log.read_text("utf-8")[-LOG_CHARS_MAX:] if self.log.is_file() else ""

    def script(self, load: Load) -> list[str]:
        """Return what the load generator says."""
        token = self.scene.token.read_text("utf-8").strip()
        lines = [_OPEN.replace("TOKEN", token), _OPENED, _SUBMIT, _SUBMITTED, _HEARTBEAT]
        if load.is_cycle:
            lines += [_ASKED, _BODY, _TOLD, _TAKEN]
        return lines

    def stored(self, load: Load) -> int:
        """End it as ``kill -9`` does, and return how many operations its store shows."""
        self.kill()
        state = "succeeded" if load.is_cycle else "queued"
        store = sqlite3.connect(self.state / "fep.sqlite")
        try:
            [count] = store.execute("SELECT count(*) FROM task WHERE state = ?", [state]).fetchone()
        finally:
            store.close()
        return int(count)


def _launching(sync: Mapping[str, str]) -> Launch:
    def start(
        arguments: Sequence[str], log_file: Path, *, pipe: bool, environment: Mapping[str, str]
    ) -> Running:
        return launch(arguments, log_file, pipe=pipe, environment={**environment, **sync})

    return start


def _keys_ready(client: BlockingClient) -> bool:
    return all(state == "ready" for state in client.call("status")["slots"].values())
