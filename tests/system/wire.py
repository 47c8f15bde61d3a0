"""A plain TCP connection to the daemon, for what no well-made client would do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from fep.sandbox.scene import FINANCE_CLIENT, Scene

ANSWER_SECONDS_MAX = 30.0


class Wire:
    """A plain TCP connection to the daemon that sends whatever it is told to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX)
        self._lines = self._socket.makefile("rb")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, method: str, id_: int = 7, **params: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        message = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
        self.send(json.dumps(message).encode() + b"\n")
        answer = self.answer()
        assert answer is not None
        assert answer["id"] == id_
        return answer

    def answer(self) -> dict[str, Any] | None:
        """Return the daemon's next answer, None at the end; what it asks and tells is skipped."""
        return next((message for message in self.messages() if "method" not in message), None)

    def asked(self) -> dict[str, Any]:
        """Return the daemon's next request; heartbeats and answers are skipped."""
        return next(one for one in self.messages() if "method" in one and "id" in one)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what the daemon sends until it closes the connection."""
        for line in self._lines:
            yield json.loads(line)

    def at_end(self) -> bool:
        """Say whether the daemon has closed it; waits for that."""
        try:
            return self.answer() is None
        except ConnectionResetError:
            return True


@contextmanager
def wire(scene: Scene, *, client: str = FINANCE_CLIENT) -> Iterator[Wire]:
    """Open a session as the finance system."""
    with closing(Wire(scene.port)) as opened:
        token = scene.token.read_text("utf-8").strip()
        assert "result" in opened.ask("session.open", client=client, token=token)
        yield opened
