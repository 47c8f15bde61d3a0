"""A tiny simulated bank that speaks lines, also as a process: ``line_host FILE PORT``.

``echo X``, ``late SECONDS X``, ``last X`` (answer, then reset), ``late-last SECONDS X``,
``pay REF`` (book and answer), ``die REF`` (book, then die at once), ``fault`` (a defect).
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from fep import logs
from fep.adapters.host import Answer, Faults, HostConnection, HostProfile
from fep.domain.clock import SystemClock
from fep.sandbox import host
from fep.sandbox.book import SqliteBook
from tests.sandbox.book_child import NORTH, request


class DefectError(Exception):
    """What a defect in an adapter's host looks like to the shell."""


class LineConnection:
    """One connection; keeps what is not a whole line yet."""

    def __init__(self, profile: HostProfile) -> None:
        self._profile = profile
        self._rest = b""

    def receive_data(self, data: bytes) -> list[Answer]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._answer(*line.decode().split()) for line in lines]

    def _answer(self, word: str, *rest: str) -> Answer:
        match word:
            case "echo":
                return Answer(f"{rest[0]}\n".encode())
            case "late":
                return Answer(f"{rest[1]}\n".encode(), delay_s=float(rest[0]))
            case "last":
                return Answer(f"{rest[0]}\n".encode(), close=True)
            case "late-last":
                return Answer(f"{rest[1]}\n".encode(), delay_s=float(rest[0]), close=True)
            case "pay" | "die":
                made = self._profile.book.pay(NORTH, request(rest[0]), self._profile.clock.now())
                return Answer(f"{made.state}\n".encode(), exit=word == "die")
            case _:
                raise DefectError(word)


class LineHost:
    """The ``BankHost`` of such lines."""

    name = "lines"

    def open(self, profile: HostProfile) -> HostConnection:
        return LineConnection(profile)


def main(path: Path, port: int) -> int:
    """Serve a book that is there until a signal comes, as ``fep host`` does."""
    logs.configure(sys.stderr)
    book = SqliteBook.open(path)
    profile = HostProfile(NORTH, book, SystemClock(), Faults())
    status = trio.run(host._run, LineHost(), profile, ("127.0.0.1", port))
    book.close()
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
