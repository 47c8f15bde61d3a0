"""An outside finance system (财务系统) for the demo and the tests: a process of its own, over TCP.

It hands over task ids, gives the body of each when asked for it by id, and keeps every result. It
knows nothing of the daemon but its address, its token and the control protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from fep.client import TaskResult, open_client

RESULTS_SECONDS_MAX: Final = 120.0
SUBMITS_AT_ONCE_MAX: Final = 64


class FinanceSystem:
    """The tasks of one run, by id, and what became of each."""

    def __init__(self, work: list[dict[str, Any]]) -> None:
        self.work = {one["task_id"]: one for one in work}
        self.results: dict[str, TaskResult] = {}
        self.fetched: set[str] = set()
        self.complete = trio.Event()

    async def fetch(self, task_id: str, attempt: int) -> dict[str, Any] | None:
        """Give the body of a task, as often as it is asked for."""
        one = self.work.get(task_id)
        if one is None:
            return None
        self.fetched.add(task_id)
        say({"event": "fetch", "task_id": task_id, "attempt": attempt})
        body: dict[str, Any] = one["body"]
        return body

    async def result(self, result: TaskResult) -> None:
        """Keep a result; the same one again changes nothing."""
        self.results[result.task_id] = result
        say(
            {
                "event": "result",
                "task_id": result.task_id,
                "state": result.state,
                "result": result.result,
                "bank_code": result.bank_code,
                "bank_message": result.bank_message,
            }
        )
        if self.work.keys() <= self.results.keys():
            self.complete.set()


def say(record: dict[str, Any]) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()


async def run(address: str, client: str, token: str, work: list[dict[str, Any]]) -> int:
    """Submit all the work, wait for all the results; returns the exit status."""
    system = FinanceSystem(work)
    room = trio.CapacityLimiter(SUBMITS_AT_ONCE_MAX)
    async with open_client(
        address,
        client,
        token=token,
        fetch=system.fetch,
        result=system.result,
        alarm=lambda reason: say({"event": "alarm", "reason": reason}),
    ) as connection:
        say({"event": "connected", "server": connection.welcome["server"]})

        async def submit(one: dict[str, Any]) -> None:
            async with room:
                answer = await connection.submit(one["task_id"], one["bank"], one["kind"])
                say({"event": "submitted", **answer})

        async with trio.open_nursery() as nursery:
            for one in work:
                nursery.start_soon(submit, one)
        with trio.move_on_after(RESULTS_SECONDS_MAX):
            await system.complete.wait()
    done = sum(result.state == "succeeded" for result in system.results.values())
    say({"event": "done", "tasks": len(work), "results": len(system.results), "succeeded": done})
    return 0 if done == len(work) else 1


def main(arguments: Sequence[str]) -> int:
    """Run the finance system of a work file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fep.sandbox.finance", description=__doc__)
    parser.add_argument("--address", required=True, help="tcp:HOST:PORT")
    parser.add_argument("--client", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="JSON list of tasks")
    given = parser.parse_args(arguments)
    token = given.token_file.read_text("utf-8").strip()
    work = json.loads(given.work.read_text("utf-8"))
    return trio.run(run, given.address, given.client, token, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
