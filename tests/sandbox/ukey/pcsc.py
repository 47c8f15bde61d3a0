"""A PC/SC client in a child process, driven by JSON lines.

libpcsclite looks at PCSCLITE_CSOCK_NAME once, at a process's first call: a process of its own is
the only client that surely talks to the rig under test. ``pcsc_child.py`` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

SUCCESS = 0
NO_SMARTCARD = 0x8010000C
NOT_TRANSACTED = 0x80100016
READER_UNAVAILABLE = 0x80100017
NO_SERVICE = 0x8010001D
UNPOWERED_CARD = 0x80100067
REMOVED_CARD = 0x80100069

STATE_EMPTY = 0x10
STATE_PRESENT = 0x20
STATE_MUTE = 0x200

CHILD = Path(__file__).with_name("pcsc_child.py")


class PcscClient:
    """The parent's side: each call is done in the child; codes are unsigned 32-bit numbers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def start(cls, environment: dict[str, str]) -> Self:
        """Start the child; its environment is only what a PC/SC program needs."""
        program = [sys.executable, str(CHILD)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=environment)
        return cls(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def send(self, call: str, *arguments: object) -> None:
        """Start a call without waiting for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([call, *arguments]) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """Return the result of the call that was sent."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _call(self, call: str, *arguments: object) -> Any:
        self.send(call, *arguments)
        return self.receive()

    def watch(self, reader: str) -> None:
        """Wait for a reader's next change; ``receive`` gives code, flags and monotonic time."""
        assert self._call("watch", reader) == "watching"

    def readers(self) -> list[str]:
        """Return the names of all readers."""
        return cast("list[str]", self._call("readers"))

    def state(self, reader: str) -> tuple[int, int]:
        """Return flags and event counter of a reader now."""
        return cast("tuple[int, int]", tuple(self._call("state", reader)))

    def wait_for_counter(self, reader: str, counter: int) -> tuple[int, int]:
        """Wait until the event counter is that one; return the code and the flags then."""
        return cast("tuple[int, int]", tuple(self._call("wait_for_counter", reader, counter)))

    def connect(self, reader: str) -> int:
        """Connect exclusively and return the code."""
        return int(self._call("connect", reader))

    def disconnect(self) -> int:
        """Reset the card and let it go."""
        return int(self._call("disconnect"))

    def transmit(self, apdu: str) -> tuple[int, str]:
        """Return code and response (hex) of one command APDU (hex)."""
        return cast("tuple[int, str]", tuple(self._call("transmit", apdu)))

    def exchange(self, *apdus: str) -> str:
        """Send commands, the last response's 61xx included, and return that response (hex)."""
        response = ""
        for apdu in apdus:
            code, response = self.transmit(apdu)
            assert code == SUCCESS
        while response[-4:-2] == "61":
            code, rest = self.transmit(f"00C00000{response[-2:]}")
            assert code == SUCCESS
            response = response[:-4] + rest
        return response
