"""The console: how long its pages take, and what a hundred live viewers cost the queue.

``python -m bench.console [--tasks 100000] [--accounts 1000] [--rounds 7] [--viewers 100]``. The
daemon is a process of its own, started as ``fep run`` on a store with so many tasks in it; the
pages are asked for over one connection by a client of the standard library, so that the time is the
server's and a little more. Then tasks are submitted for a while with no viewer and with all of them
(each an open live page that is read), in turns; ratios are taken inside a round. The last line is
one JSON object; ``bench/README.md`` says what its members mean.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import selectors
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from bench.submit import ACKNOWLEDGED, drive
from fep.sandbox.scene import BANKS, HostProcess, Scene, end, free_port, make_software_key

BANK: Final = BANKS[0]
PASSWORD: Final = "correct-horse-battery"
CLIENTS: Final = 16
WINDOW: Final = 8
SECONDS: Final = 3.0
REQUESTS: Final = 60
LINES_MAX: Final = 400_000
QUEUE_MAX: Final = 10_000_000
HEARTBEAT_SECONDS: Final = 60.0
PAGES: Final = {
    "overview": "/",
    "pictures": "/pictures",
    "banks": "/banks",
    "slots": "/slots",
    "tasks": "/tasks",
    "tasks_rare": "/tasks?state=unknown",
    "tasks_deep": "/tasks?cursor=2000",
    "tasks_found": "/tasks?find=BENCH-0005",
    "tasks_named": "/tasks?find=BENCH-000500",
    "task": "/tasks/BENCH-000500",
    "alarms": "/alarms",
    "accounts": "/accounts",
    "audit": "/audit",
    "config": "/config",
}


def scene_in(directory: Path, accounts: int, port: int) -> Scene:
    """Return a scene with a bank that is down and a console, not started."""
    per_bank = min(accounts, 90)
    scene = Scene(
        directory, banks=[BANK], accounts_per_bank=per_bank, heartbeat_s=HEARTBEAT_SECONDS
    )
    make_software_key(directory, f"ukey-{BANK.name}")
    scene.hosts[BANK.name] = HostProcess(BANK, directory, port=free_port())
    config = scene.configuration()
    config["bank"][0] |= {"backoff_first_s": HEARTBEAT_SECONDS, "backoff_max_s": HEARTBEAT_SECONDS}
    config["account"] += [
        {"number": f"98000000{place:06d}", "bank": BANK.name, "name": f"样例{place:06d}"}
        for place in range(accounts - per_bank)
    ]
    config["pool"] = []
    # A quick machine takes more than a million in a few rounds.
    config["tasks"] = config.get("tasks", {}) | {"queue_max": QUEUE_MAX}
    config["console"] = {"listen": f"127.0.0.1:{port}"}
    config["control"]["clients"] = {f"erp-{n}": {"role": "finance"} for n in range(CLIENTS)}
    scene.write_config(config)
    return scene


def start(scene: Scene) -> None:
    """Start the daemon and wait for its key."""
    scene.start_daemon(log_name="daemon.log")
    with scene.operator() as client:
        scene.wait(
            client, lambda one: "ready" in one.call("status")["slots"].values(), "the key", 60.0
        )


def fill(path: Path, tasks: int, accounts: int) -> None:
    """Put tasks of a year into the store: most payments that succeeded, some balances."""
    at = "2026-11-01T01:00:00.000+00:00"
    names = (
        "seq, task_id, client, bank, kind, priority, state, submitted_at, expires_at, body,"
        " body_digest, result, updated_at, delivery, sent_at"
    )

    def rows() -> Iterator[tuple[Any, ...]]:
        for seq in range(1, tasks + 1):
            account = f"98000000{seq % max(accounts - 90, 1):06d}"
            is_balance = seq % 5 == 0
            kind = "balance" if is_balance else "transfer"
            params: dict[str, Any] = {"account": account}
            result = {"account": account, "currency": "CNY", "available": "12345.67"}
            result |= {"book": "12345.67", "as_of": at}
            if not is_balance:
                payee = {"account": "99000000000101", "name": "样例公司", "bank_code": "3" * 12}
                params = {"payer": {"account": account}, "payee": payee, "amount": f"{seq}.00"}
                params["currency"] = "CNY"
                result = {}
            body = json.dumps({"kind": kind, "params": params}).encode()
            state = "rejected" if seq % 997 == 0 else "succeeded"
            yield (
                seq, f"BENCH-{seq:06d}", "erp-0", BANK.name, kind, 5, state, at, at, body, "0" * 64,
                json.dumps(result).encode(), at, 2, None if is_balance else at,
            )  # fmt: skip

    with closing(sqlite3.connect(path)) as store, store:
        marks = ", ".join("?" * 15)
        store.executemany(f"INSERT INTO task ({names}) VALUES ({marks})", rows())
        for event in ("submitted", "send_begun", "bank_done"):
            store.execute(
                "INSERT INTO task_event (task_seq, at, event, state, cause, configuration)"
                " SELECT seq, submitted_at, ?, state, 'made by the benchmark', 'c' FROM task",
                [event],
            )
        store.execute(
            "INSERT INTO payment (task_seq, bank, payer, payee, amount_fen, sent_at)"
            " SELECT seq, bank, '98000000000001', '99000000000101', seq * 100, sent_at FROM task"
            " WHERE kind = 'transfer'"
        )


class Browser:
    """One connection that is kept, with a cookie."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookie = ""

    def get(self, path: str) -> tuple[float, bytes]:
        """Return how many milliseconds a page took, and the page."""
        began = time.perf_counter()
        self._connection.request("GET", path, headers={"cookie": self.cookie})
        answer = self._connection.getresponse()
        data = answer.read()
        took = (time.perf_counter() - began) * 1e3
        if cookie := answer.getheader("set-cookie"):
            self.cookie = cookie.partition(";")[0]
        if answer.status != 200:
            msg = f"{path} was answered {answer.status}: {data[:300]!r}"
            raise RuntimeError(msg)
        return took, data

    def log_in(self) -> None:
        """Log in as the user that was made."""
        found = re.search(rb'name="csrf" value="([0-9a-f]+)"', self.get("/login")[1])
        assert found is not None
        form = {"csrf": found[1].decode(), "user": "anna", "password": PASSWORD, "next": "/"}
        headers = {"cookie": self.cookie, "content-type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/login", urlencode(form), headers)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 303, answer.status
        self.cookie = (answer.getheader("set-cookie") or "").partition(";")[0]


def look_on(port: int, cookie: str, count: int) -> None:
    """Be so many browsers with a live page, until killed (a process of its own)."""
    chosen = selectors.DefaultSelector()
    request = f"GET /live HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n".encode()
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), 20)
        sock.sendall(request)
        page = b""
        while b"</div>\n\n" not in page:
            page += sock.recv(1 << 18)
        sock.setblocking(False)  # noqa: FBT003
        chosen.register(sock, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in chosen.select():
            sock = key.fileobj  # type: ignore[assignment]
            if not sock.recv(1 << 18):
                print("a page ended", flush=True)
                raise SystemExit(1)


@contextmanager
def viewers(port: int, cookie: str, count: int) -> Iterator[None]:
    """Have so many live pages open for a block."""
    command = [sys.executable, "-m", "bench.console", "--look-on", str(port), cookie, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            assert process.poll() is None, "the live pages ended"
            process.send_signal(signal.SIGKILL)


def submits(scene: Scene, first: int) -> float:
    """Return how many submits a second are acknowledged."""
    token = scene.token.read_text("utf-8").strip()
    lines = [
        f'{{"jsonrpc":"2.0","id":{number},"method":"task.submit","params":{{"task_id":'
        f'"S-{number}","bank":"{BANK.name}","kind":"balance"}}}}\n'.encode()
        for number in range(first, first + LINES_MAX)
    ]
    with ExitStack() as stack:
        socks = []
        for place in range(CLIENTS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", scene.port), 20))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opening = {"client": f"erp-{place}", "token": token}
            line = {"jsonrpc": "2.0", "id": 0, "method": "session.open", "params": opening}
            sock.sendall(json.dumps(line).encode() + b"\n")
            assert b'"result"' in sock.recv(65_536)
            socks.append(sock)
        driven = drive(socks, WINDOW, iter(lines), ACKNOWLEDGED, SECONDS)
    return driven.rate


def main() -> int:
    """Run it; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="bench.console")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--accounts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--viewers", type=int, default=100)
    parser.add_argument("--look-on", nargs=3, metavar=("PORT", "COOKIE", "COUNT"))
    given = parser.parse_args()
    if given.look_on:
        look_on(int(given.look_on[0]), given.look_on[1], int(given.look_on[2]))
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fep-bench-") as name:
        directory, port = Path(name), free_port()
        scene = scene_in(directory, given.accounts, port)
        try:
            result = _measured(scene, port, given)
        finally:
            end(scene.daemon, signal.SIGKILL)
    print(json.dumps({"bench": "console", "load_average": load_average, **result}))
    return 0


def _measured(scene: Scene, port: int, given: argparse.Namespace) -> dict[str, Any]:
    start(scene)
    scene.stop_daemon()
    fill(scene.directory / "state/fep.sqlite", given.tasks, given.accounts)
    start(scene)
    with scene.operator() as operator:
        operator.call("user.add", {"name": "anna", "role": "admin", "password": PASSWORD})
    browser = Browser(port)
    browser.log_in()
    times: dict[str, list[float]] = {}
    for name, path in PAGES.items():
        # The first one of all makes templates and reads what is kept for a while.
        cold = browser.get(path)[0]
        times[name] = sorted(browser.get(path)[0] for _ in range(REQUESTS))
        middle, slow = statistics.median(times[name]), times[name][int(REQUESTS * 0.99)]
        print(f"{name:<12} p50 {middle:7.2f} ms  p99 {slow:7.2f} ms  first {cold:7.2f} ms")
    rates: list[tuple[float, float]] = []
    for place in range(given.rounds):
        first, alone = place * 2 * LINES_MAX, 0.0
        with ExitStack() as stack:
            if place % 2:
                alone = submits(scene, first)
            stack.enter_context(viewers(port, browser.cookie, given.viewers))
            watched = submits(scene, first + LINES_MAX)
            stack.close()
            if not place % 2:
                alone = submits(scene, first)
        rates.append((alone, watched))
        print(f"submits/s alone {alone:8.0f}, with {given.viewers} viewers {watched:8.0f}")
    return {
        "tasks": given.tasks,
        "accounts": given.accounts,
        "p50_ms": {name: round(statistics.median(one), 2) for name, one in times.items()},
        "p50_ms_max": round(max(statistics.median(one) for one in times.values()), 2),
        "viewers": given.viewers,
        "submits_alone": round(statistics.median(alone for alone, _ in rates)),
        "watched_to_alone": round(statistics.median(b / a for a, b in rates), 3),
        "watched_to_alone_min": round(min(b / a for a, b in rates), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
