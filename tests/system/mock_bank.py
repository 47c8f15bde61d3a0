"""The outside simulator mock-bank as a process of its own: a bank that nobody here wrote."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from fep.domain.clock import SystemClock, to_shanghai
from fep.sandbox.scene import free_port

START_SECONDS_MAX = 20.0


def iban(number: int) -> str:
    """Return an account number with right check digits: the simulator wants IBANs."""
    rest = f"MOCK{number:012d}"
    digits = "".join(str(int(one, 36)) for one in f"{rest}CN00")
    return f"CN{98 - int(digits) % 97:02d}{rest}"


def last_business_day() -> dt.date:
    """Return today, or the Friday before."""
    day = to_shanghai(SystemClock().now()).date()
    return day - dt.timedelta(days=max(day.weekday() - 4, 0))


class MockBank:
    """One simulator with its two folders; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.drop = directory / "to-bank"
        self.pickup = directory / "from-bank"
        self.archive = directory / "archive"
        for one in (self.drop, self.pickup, self.archive):
            one.mkdir()
        self.port = free_port()
        self._log = directory / "mock-bank.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "mockbank", "--quiet", "--port", str(self.port)]
        command += ["--drop-dir", str(self.drop), "--pickup-dir", str(self.pickup)]
        command += ["--drop-interval-ms", "50", "--drop-settle-ms", "0"]
        # The zone of its offsets; where there is no database of zones, UTC does as well.
        command += ["--timezone", "UTC", "--clock", f"{last_business_day()}T03:00"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        limit = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < limit:
            try:
                self.call("GET", "/_mock/health")
            except OSError:
                time.sleep(0.05)
            else:
                return self
        self.__exit__()
        raise RuntimeError(self._log.read_text("utf-8"))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10.0)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what its control plane answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, method=method
        )
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return json.loads(answer.read())

    def open_account(self, name: str, number: str, behaviour: str = "accept", **more: Any) -> None:
        """Let the bank hold an account in yuan."""
        wanted: dict[str, Any] = {
            "id": name,
            "iban": number,
            "name": f"样例{name}",
            "currency": "CNY",
        }
        wanted |= {"balance": 1_000_000_00, "behaviour": behaviour}
        self.call("POST", "/_mock/accounts", wanted | more)

    def advance(self, days: int) -> None:
        """Move the bank's time."""
        self.call("POST", f"/_mock/advance?days={days}")

    def payment(self, reference: str) -> Any:
        """Return what the bank itself thinks of a payment."""
        return self.call("GET", f"/_mock/payments/{reference}")

    def payments(self) -> list[Any]:
        """Return all payments that it decided on."""
        found: list[Any] = self.call("GET", "/_mock/payments")
        return found
