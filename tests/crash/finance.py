"""An outside finance system as a process: it submits, gives bodies, and journals what it learns.

It may be killed at any moment and started again. A line is in its journal before it acts on it: an
id that stands there as acknowledged must never be lost by the daemon, and a result is acknowledged
only when it stands there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from fep.client import CallError, TaskResult
from fep.client.conversation import DisconnectedError
from fep.client.trio_client import Client

PASSING: Final = ("QUEUE_FULL", "STORE_FULL", "SHUTTING_DOWN")
RETRY_SECONDS: Final = 0.1


@attrs.frozen
class Journal:
    """What a finance system knows, as of its last line."""

    acknowledged: frozenset[str]
    refused: dict[str, str]
    results: dict[str, list[str]]
    """By task id the states it was told, in order."""

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Return what stands in a journal; a last line that is not whole never happened."""
        acknowledged, refused = set(), {}
        results: dict[str, list[str]] = {}
        text = path.read_text("utf-8") if path.exists() else ""
        for line in text.split("\n")[:-1]:
            one = json.loads(line)
            match one["what"]:
                case "acknowledged":
                    acknowledged.add(one["task_id"])
                case "refused":
                    refused[one["task_id"]] = one["code"]
                case "result":
                    results.setdefault(one["task_id"], []).append(one["state"])
                case other:
                    msg = f"a journal knows no {other!r}"
                    raise ValueError(msg)
        return cls(frozenset(acknowledged), refused, results)


class FinanceSystem:
    """The work of one run, and what became of it."""

    def __init__(self, work: list[dict[str, Any]], path: Path) -> None:
        self.work = {one["task_id"]: one for one in work}
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        known = Journal.read(path)
        self.acknowledged = set(known.acknowledged)
        self.results = set(known.results)
        self.complete = trio.Event()
        self._look()

    def write(self, what: str, task_id: str, **more: str) -> None:
        """Put a line into the journal; when this returns, kill -9 can't take it away."""
        line = json.dumps({"what": what, "task_id": task_id, **more}) + "\n"
        os.write(self._file, line.encode())

    async def fetch(self, task_id: str, _attempt: int) -> dict[str, Any] | None:
        """Give the body of a task, as often as it is asked for."""
        one = self.work.get(task_id)
        body: dict[str, Any] | None = None if one is None else one["body"]
        return body

    async def result(self, result: TaskResult) -> None:
        """Journal a result; it is acknowledged when this returns."""
        self.write("result", result.task_id, state=result.state)
        self.results.add(result.task_id)
        self._look()

    def _look(self) -> None:
        if self.work.keys() <= self.results & self.acknowledged:
            self.complete.set()

    async def submit(self, client: Client, one: dict[str, Any]) -> None:
        """Submit a task at its time, until it is acknowledged or refused for good."""
        task_id = one["task_id"]
        await trio.sleep(max(0.0, one["at"] - time.monotonic()))
        body = one["body"] if one["inline"] else None
        while True:
            try:
                await client.submit(task_id, one["bank"], one["kind"], body)
            except CallError as error:
                if error.code not in PASSING:
                    self.write("refused", task_id, code=error.code)
                    return
                await trio.sleep(RETRY_SECONDS)
            except DisconnectedError:
                return
            else:
                self.write("acknowledged", task_id)
                self.acknowledged.add(task_id)
                self._look()
                return


async def run(address: str, name: str, token: str, system: FinanceSystem) -> None:
    """Work until every task is acknowledged and its result is here."""
    client = Client(address, name, token=token, fetch=system.fetch, result=system.result)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        for one in system.work.values():
            if one["task_id"] not in system.acknowledged:
                nursery.start_soon(system.submit, client, one)
        await system.complete.wait()
        await client.close()
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str]) -> int:
    """Run one finance system; returns 0 when all is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    given = parser.parse_args(arguments)
    system = FinanceSystem(json.loads(given.work.read_text("utf-8")), given.journal)
    token = given.token_file.read_text("utf-8").strip()
    trio.run(run, given.address, given.client, token, system)
    return 0
