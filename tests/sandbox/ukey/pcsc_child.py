"""The child of ``pcsc.PcscClient``: does PC/SC calls asked for as JSON arrays on its input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from smartcard import scard

SUCCESS = 0
GENEROUS_MS = 10_000


def unsigned(code: int) -> int:
    """Return the code as PC/SC writes it; pyscard gives it signed."""
    return code & 0xFFFF_FFFF


def answer(value: object) -> None:
    """Write one result."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class Child:
    """One context and at most one card handle."""

    def __init__(self) -> None:
        code, self._context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
        assert code == SUCCESS, hex(unsigned(code))
        self._handle: Any = None

    def readers(self) -> list[str]:
        return list(scard.SCardListReaders(self._context, [])[1])

    def state(self, reader: str) -> list[int]:
        word = self._change(reader, 0, 0)[1]
        return [word & 0xFFFF, word >> 16]

    def wait_for_counter(self, reader: str, counter: int) -> list[int]:
        code, word = self._change(reader, 0, 0)
        while word >> 16 != counter and code == SUCCESS:
            code, word = self._change(reader, word, GENEROUS_MS)
        return [code, word & 0xFFFF]

    def watch(self, reader: str) -> list[float]:
        """Say "watching", then give code, flags and moment of the next change."""
        word = self._change(reader, 0, 0)[1]
        answer("watching")
        code, word = self._change(reader, word, GENEROUS_MS)
        return [code, word & 0xFFFF, time.monotonic()]

    def connect(self, reader: str) -> int:
        code, self._handle, _ = scard.SCardConnect(
            self._context, reader, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T1
        )
        return unsigned(code)

    def disconnect(self) -> int:
        return unsigned(scard.SCardDisconnect(self._handle, scard.SCARD_RESET_CARD))

    def transmit(self, apdu: str) -> list[object]:
        command = list(bytes.fromhex(apdu))
        code, response = scard.SCardTransmit(self._handle, scard.SCARD_PCI_T1, command)
        return [unsigned(code), bytes(response).hex()]

    def transmit_many(self, apdu: str, times: int) -> float:
        """Give the seconds that so many exchanges take."""
        begin = time.monotonic()
        for _ in range(times):
            self.transmit(apdu)
        return time.monotonic() - begin

    def _change(self, reader: str, known: int, timeout_ms: int) -> tuple[int, int]:
        code, found = scard.SCardGetStatusChange(self._context, timeout_ms, [(reader, known)])
        return unsigned(code), unsigned(found[0][1])


def main() -> None:
    """Serve until the end of input."""
    child = Child()
    calls: dict[str, Callable[..., object]] = {
        call.__name__: call
        for call in (
            child.readers,
            child.state,
            child.wait_for_counter,
            child.watch,
            child.connect,
            child.disconnect,
            child.transmit,
            child.transmit_many,
        )
    }
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        answer(calls[call](*arguments))


if __name__ == "__main__":
    main()
