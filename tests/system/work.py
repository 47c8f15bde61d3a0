"""Payments for system tests, and what must hold of them afterwards."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fep.adapters.host import BookAccount
from fep.client import BlockingClient
from fep.domain.ids import TaskId, client_ref
from fep.sandbox.scene import Scene

ENTERPRISE = "E0001"
OPEN = ("queued", "offered", "fetched", "sending", "accepted", "unknown")


def transfer(scene: Scene, payer: BookAccount, payee: BookAccount, amount: str) -> dict[str, Any]:
    """Return the body of a payment between two accounts of the scene."""
    plan = next(plan for plan in scene.banks if plan.name == payee.bank)
    return {
        "kind": "transfer",
        "params": {
            "payer": {"account": payer.number},
            "payee": {
                "account": payee.number,
                "name": payee.name,
                "bank_code": plan.bank_code,
                "bank_name": plan.title,
            },
            "amount": amount,
            "currency": "CNY",
        },
    }


def open_tasks(client: BlockingClient) -> int:
    """Return how many tasks are not at their end."""
    found: int = client.call("status")["queue"]["open"]
    return found


def every_task(client: BlockingClient) -> list[dict[str, Any]]:
    """Return all tasks, page by page."""
    tasks: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 500}
    while True:
        page = client.call("task.list", params)
        tasks += page["tasks"]
        if "cursor" not in page:
            return tasks
        params["cursor"] = page["cursor"]


def violations(scene: Scene, tasks: list[dict[str, Any]]) -> list[str]:
    """Return where the tasks and the book of all banks disagree; empty when each is once."""
    book = scene.open_book()
    faults = book.check()
    known = set()
    for task in tasks:
        if task["kind"] != "transfer":
            continue
        reference = client_ref(ENTERPRISE, TaskId(task["task_id"]))
        known.add(reference)
        times = book.times_booked(reference)
        expected = 1 if task["state"] == "succeeded" else 0
        if times != expected or task["state"] in OPEN:
            faults.append(f"{task['task_id']} is {task['state']} and was booked {times} times")
    faults += [
        f"payment {payment.client_ref} has no task"
        for payment in book.payments()
        if payment.client_ref not in known
    ]
    book.close()
    return faults


@contextmanager
def held_up(scene: Scene, bank: str) -> Iterator[None]:
    """Have a bank take requests and answer none until the end of the block: its host is stopped."""
    process = scene.hosts[bank].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def states_on_disk(scene: Scene) -> Counter[str]:
    """Return how many tasks stand in each state in the store of a daemon that has been killed.

    A copy is read: to look at the original would repair it, which is the next daemon's part.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fep.sqlite", "fep.sqlite-wal"):
            if (source := scene.directory / "state" / name).exists():
                shutil.copy(source, folder)
        with closing(sqlite3.connect(Path(folder) / "fep.sqlite")) as database:
            return Counter(dict(database.execute("select state, count(*) from task group by 1")))


def causes(client: BlockingClient, tasks: list[dict[str, Any]]) -> Counter[str]:
    """Return how many tasks went through each event and cause, by their causal chains."""
    found: Counter[str] = Counter()
    for task in tasks:
        events = client.call("task.why", {"task_id": task["task_id"]})["events"]
        found.update({f"{event['event']}: {event['cause']}" for event in events})
    return found
