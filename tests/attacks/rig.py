"""One daemon as a process, with all its ways in, that works for a finance system while it is attacked.

The bank is a simulated one behind a line that a test can turn against us. An attack is made inside
``Site.unharmed``: afterwards the daemon is healthy, another client's work has gone on, no handler
and no lane has crashed, and nobody's secret is in the log.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import attrs
import httpx2
import tomli_w
import trustme

from bank_adapters.cmb_xml.frames import pack
from fep.client import BlockingClient, DisconnectedError
from fep.sandbox.scene import BANKS, Scene, free_port, write_secret
from tests.console.rig import CSRF
from tests.control.rig import connected_as
from tests.system.work import transfer

WAIT_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02
PASSWORD = "correct-horse-battery"
PEOPLE = {"anna": "admin", "olaf": "operator", "otto": "operator", "vera": "viewer"}
LI, ZHAO, WANG, STRANGER = 41_001, 41_002, 41_003, 41_004
SECRET = "k" * 40
BANK = BANKS[1]
CRASHES = {"connection.crashed", "lane.crashed", "console.request_failed", "store.failed"}


class Line:
    """The line to the bank; with ``answer`` set, that comes in place of what the bank says."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.answer: bytes | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._socks: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                bank = socket.create_connection(("127.0.0.1", self._to))
                self._socks += [ours, bank]
                for source, sink, is_bank in ((ours, bank, False), (bank, ours, True)):
                    arguments = (source, sink, is_bank)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_bank: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(self.answer if is_bank and self.answer is not None else data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def saying(self, xml: bytes) -> Iterator[None]:
        """Let the bank say this, whatever it is asked, for a block."""
        self.answer = pack(xml)
        try:
            yield
        finally:
            self.answer = None

    def close(self) -> None:
        self._listener.close()
        for sock in self._socks:
            sock.close()


class Raw:
    """A connection that says what it likes, line by line."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT_SECONDS_MAX)
        self._tail = b""
        self._ids = count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def line(self) -> dict[str, Any] | None:
        """Return the next line but heartbeats, None at the end of the connection."""
        while True:
            while b"\n" not in self._tail:
                try:
                    data = self.sock.recv(65_536)
                except (ConnectionError, ssl.SSLError):
                    return None
                if not data:
                    return None
                self._tail += data
            line, _, self._tail = self._tail.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if message.get("method") != "session.heartbeat":
                return message

    def ended(self) -> bool:
        """Wait for the end of the connection; nothing but heartbeats may come before it."""
        return self.line() is None

    def ask(self, method: str, params: Any = None) -> dict[str, Any]:
        """Return the answer to a request; an empty one when the connection ended instead."""
        id_ = next(self._ids)
        message = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params or {}}
        self.send(json.dumps(message).encode() + b"\n")
        while (got := self.line()) is not None:
            if got.get("id") == id_ and "method" not in got:
                return got
        return {}

    def code(self, method: str, params: Any = None) -> str | int | None:
        """Return the code of the refusal, None when it was done."""
        error = self.ask(method, params).get("error")
        if error is None:
            return None
        code: str | int = error.get("data", {}).get("code", error["code"])
        return code


class Browser:
    """One browser, at a loopback address of its own: the log-in's brake counts by address."""

    def __init__(self, url: str, address: str) -> None:
        transport = httpx2.HTTPTransport(local_address=address)
        self.http = httpx2.Client(base_url=url, transport=transport, timeout=20.0, trust_env=False)
        self.csrf = ""

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self._kept(self.http.get(path, **more))

    def post(self, path: str, **fields: str) -> httpx2.Response:
        return self._kept(self.http.post(path, data={"csrf": self.csrf, **fields}))

    def log_in(self, user: str, password: str = PASSWORD, after: str = "/") -> httpx2.Response:
        self.get("/login")
        answer = self.post("/login", user=user, password=password, next=after)
        if answer.status_code == 303:
            self.get("/me")
        return answer

    def _kept(self, answer: httpx2.Response) -> httpx2.Response:
        if found := CSRF.search(answer.text):
            self.csrf = found[1]
        return answer


@attrs.define
class Site:
    """What is attacked."""

    scene: Scene
    line: Line
    ca: trustme.CA
    ports: dict[str, int]
    worker: Worker
    _browsers: list[Browser] = attrs.Factory(list)
    _addresses: Iterator[int] = attrs.Factory(lambda: count(2))
    _people: dict[str, Browser] = attrs.Factory(dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['console']}"

    @property
    def token(self) -> str:
        return self.scene.token.read_text("utf-8").strip()

    # -- ways in ------------------------------------------------------------------------------

    def tcp(self, port: str = "token") -> Raw:
        return Raw(socket.create_connection(("127.0.0.1", self.ports[port])))

    def finance(self, client: str = "erp-2") -> Raw:
        """Return an open session of a finance system."""
        raw = self.tcp()
        answer = raw.ask("session.open", {"client": client, "token": self.token})
        assert answer["result"]["role"] in ("finance", "viewer")
        return raw

    def tls(self, certificate: trustme.LeafCert | None) -> Raw:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        sock = socket.create_connection(("127.0.0.1", self.ports["tls"]))
        return Raw(context.wrap_socket(sock, server_hostname="127.0.0.1"))

    def unix_as(self, uid: int) -> Raw:
        sock = connected_as(uid, self.scene.socket)
        return Raw(sock)

    def person(self, uid: int, claims: str = "somebody") -> Raw:
        """Return an open session of a person on the Unix socket."""
        raw = self.unix_as(uid)
        assert "result" in raw.ask("session.open", {"client": claims})
        return raw

    def browser(self) -> Browser:
        """Return a browser that nobody has used."""
        found = Browser(self.url, f"127.0.0.{next(self._addresses)}")
        self._browsers.append(found)
        return found

    def logged_in(self, user: str) -> Browser:
        """Return this person's browser; one that is used by many tests."""
        if user not in self._people:
            found = self.browser()
            assert found.log_in(user).status_code == 303
            self._people[user] = found
        return self._people[user]

    # -- what is left of it -------------------------------------------------------------------

    def log_text(self) -> str:
        return (self.scene.directory / "fep.log").read_text("utf-8")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Wait for records of an event that have these fields; returns them."""

        def found() -> list[dict[str, Any]]:
            records = [json.loads(one) for one in self.log_text().splitlines() if event in one]
            return [
                one
                for one in records
                if one["event"] == event and all(one.get(k) == v for k, v in fields.items())
            ]

        got: list[dict[str, Any]] = until(found, f"{event} {fields} in the log")
        return got

    def audited(self, what: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the recorded acts of a kind, newest first."""
        with self.scene.operator() as operator:
            acts = operator.call("audit.list", {"limit": 500})["acts"]
        return [
            one
            for one in acts
            if one["what"] == what and all(one.get(k) == v for k, v in fields.items())
        ]

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Attack in the block: nobody else notices."""
        begin = len(self.log_text())
        yield
        with self.scene.operator() as operator:
            assert operator.call("status")["links"] == {BANK.name: "ready"}
        before = self.worker.done
        until(lambda: self.worker.done > before + 2, "the other client's work")
        assert self.worker.faults == []
        assert httpx2.get(f"{self.url}/login", trust_env=False).status_code == 200
        text = self.log_text()[begin:]
        crashed = [one for one in text.splitlines() if any(f'"{c}"' in one for c in CRASHES)]
        assert not crashed, "\n".join(crashed)
        for secret in (self.token, SECRET, PASSWORD):
            assert secret not in text

    def close(self) -> None:
        for one in self._browsers:
            one.http.close()


class Worker:
    """A finance system at its work: one balance after the other, each to its end."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.done = 0
        self.faults: list[str] = []
        self._ended: dict[str, threading.Event] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT_SECONDS_MAX)

    def _run(self) -> None:
        token = self._scene.token.read_text("utf-8").strip()
        address = f"tcp:127.0.0.1:{self._scene.port}"
        account = self._scene.accounts[0].number
        body = {"kind": "balance", "params": {"account": account}}
        with BlockingClient(
            address, "erp-1", token=token, result=self._take, alarm=self.faults.append
        ) as client:
            for number in count():
                if self._stop.wait(0.03):
                    return
                task_id = f"WORK-{number}"
                ended = self._ended[task_id] = threading.Event()
                try:
                    client.submit(task_id, BANK.name, "balance", body)
                except DisconnectedError as error:
                    self.faults.append(str(error))
                    return
                # While the bank answers nonsense its end comes late, or it fails: that is the bank.
                ended.wait(WAIT_SECONDS_MAX)
                self.done += 1

    def _take(self, told: Any) -> None:
        if (ended := self._ended.pop(told.task_id, None)) is not None:
            ended.set()


def until(ready: Callable[[], Any], what: str) -> Any:
    """Wait until ``ready()`` is something true, and return that."""
    limit = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < limit:
        if found := ready():
            return found
        time.sleep(POLL_SECONDS)
    msg = f"{what}: not within {WAIT_SECONDS_MAX:g} s"
    raise AssertionError(msg)


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def verified(store: Path) -> subprocess.CompletedProcess[str]:
    """Run ``fep verify-store`` on a store's file."""
    return subprocess.run(
        [sys.executable, "-m", "fep.daemon.main", "verify-store", str(store)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def _configured(scene: Scene, line: Line, ports: dict[str, int]) -> dict[str, Any]:
    table = scene.configuration()
    control = table["control"]
    control["socket_mode"] = "0666"
    tls = {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}
    control["tcp"] += [
        {"listen": f"127.0.0.1:{ports['tls']}", "tls": tls},
        {"listen": f"127.0.0.1:{ports['keys']}", "keys_file": "keys"},
    ]
    control["clients"] = {
        "erp-1": {},
        "erp-2": {},
        "flood": {"sessions_max": 20},
        "auditor": {"role": "viewer"},
    }
    control["users"] = {
        "li": {"uid": LI, "role": "operator"},
        "zhao": {"uid": ZHAO, "role": "operator"},
        "wang": {"uid": WANG, "role": "viewer"},
    }
    table["console"] = {"listen": f"127.0.0.1:{ports['console']}"}
    (bank,) = table["bank"]
    bank["port"] = line.port
    # A payment that is unknown stays so for as long as the tests look at it.
    bank["card"]["inquiry"] |= {"cool_down_s": 3600.0, "interval_max_s": 3600.0}
    return table


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Run the daemon, its bank and its finance system for a block."""
    ca = trustme.CA()
    server = ca.issue_cert("127.0.0.1")
    # Three heartbeats are more than a busy machine may take for anything.
    with Scene(directory, banks=[BANK], accounts_per_bank=3, heartbeat_s=5.0) as scene:
        scene.reply_timeout_s = 1.0
        ports = {name: free_port() for name in ("tls", "keys", "console")}
        ports["token"] = scene.port
        server.cert_chain_pems[0].write_to_path(directory / "tls.crt")
        write_secret(directory / "tls.key", server.private_key_pem.bytes().decode())
        ca.cert_pem.write_to_path(directory / "ca.crt")
        write_secret(directory / "keys", f"k1 erp-2 {SECRET}")
        scene.start_hosts()
        line = Line(scene.hosts[BANK.name].port)
        scene.config.write_text(tomli_w.dumps(_configured(scene, line, ports)), "utf-8")
        scene.start_daemon()
        with scene.operator() as operator:
            for name, role in PEOPLE.items():
                user = {"name": name, "role": role, "password": PASSWORD}
                operator.call("user.add", user)
            scene.wait_ready(operator)
        with Worker(scene) as worker:
            until(lambda: worker.done, "the finance system's work")
            found = Site(scene, line, ca, ports, worker)
            try:
                yield found
            finally:
                found.close()
        line.close()


def payment(site: Site, amount: str = "12.34") -> dict[str, Any]:
    """Return the body of a payment between the last two accounts."""
    payer, payee = site.scene.accounts[-2:]
    return transfer(site.scene, payer, payee, amount)
