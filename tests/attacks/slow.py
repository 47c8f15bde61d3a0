"""Connections that send a byte now and then, so that they hold a place for as long as they can."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from typing import Self

from tests.attacks.rig import Site

BYTE_SECONDS = 0.5

HEADER = b"GET /login HTTP/1.1\r\nhost: x\r\nx-slow: " + b"y" * 2000
BODY = (
    b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n"
    b"content-type: application/x-www-form-urlencoded\r\n\r\n" + b"user=" * 400
)
FIRST = b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":"' + b"x" * 2000
LINE = b'{"jsonrpc":"2.0","id":2,"method":"status","params":{"x":"' + b"y" * 2000
WHOLE = {"header": 0, "body": 110, "first line": 0, "line": 0, "TLS": 0}
"""How many bytes of each are sent at once."""


class Slow:
    """One connection of each kind; ``ended`` says after how many seconds the daemon cut it off."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.ended: dict[str, float] = {}
        self.said: dict[str, bytes] = {}
        self._data = {"header": HEADER, "body": BODY, "first line": FIRST, "line": LINE}
        self._data["TLS"] = b"\x16\x03\x01\x02\x00" + b"\x01" * 2000
        self._socks: dict[str, socket.socket] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        port = {"header": "console", "body": "console", "TLS": "tls"}
        for name in self._data:
            where = ("127.0.0.1", self._site.ports[port.get(name, "token")])
            self._socks[name] = socket.create_connection(where)
        opening = {"client": "erp-2", "token": self._site.token}
        line = {"jsonrpc": "2.0", "id": 1, "method": "session.open", "params": opening}
        self._socks["line"].sendall(json.dumps(line).encode() + b"\n")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for sock in self._socks.values():
            sock.close()

    def _run(self) -> None:
        begun, place = time.monotonic(), 0
        while not self._stop.wait(BYTE_SECONDS) and len(self.ended) < len(self._data):
            for name in self._data.keys() - self.ended.keys():
                if not self._is_open(name, place):
                    self.ended[name] = time.monotonic() - begun
            place += 1

    def _is_open(self, name: str, place: int) -> bool:
        sock, first = self._socks[name], WHOLE[name]
        data = self._data[name]
        sent = data[: first + 1] if place == 0 else data[first + place : first + place + 1]
        with contextlib.suppress(ConnectionError):
            while select.select([sock], [], [], 0)[0]:
                got = sock.recv(65_536)
                if not got:
                    return False
                self.said[name] = self.said.get(name, b"") + got
            sock.sendall(sent)
            return True
        return False
