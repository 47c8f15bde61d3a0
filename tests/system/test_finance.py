"""A finance system that vanishes and returns: every result reaches it, and nothing happens twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient, CallError, TaskResult
from fep.sandbox.scene import BANKS, FINANCE_CLIENT, Scene, end
from tests.system.wire import wire
from tests.system.work import every_task, held_up, open_tasks, transfer, violations

QUICK, LATE = "pingan", "cmb"
PAYMENTS = 6
"""At each of the two banks."""
FINISH_SECONDS_MAX = 60.0


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    """Two banks and the daemon, with quick heartbeats."""
    with Scene(directory, banks=BANKS[:2], accounts_per_bank=PAYMENTS, heartbeat_s=0.5) as scene:
        scene.start_hosts()
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene


def payments(scene: Scene) -> list[dict[str, Any]]:
    """Return the work of a finance system: payments by id, the bodies kept back."""
    work = []
    for number, payer in enumerate(scene.accounts):
        payee = scene.accounts[(number + 1) % len(scene.accounts)]
        body = transfer(scene, payer, payee, f"10.{number:02d}")
        work.append(
            {"task_id": f"F-{number}", "bank": payer.bank, "kind": "transfer", "body": body}
        )
    return work


@contextmanager
def finance_system(scene: Scene) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the outside finance system as a process; gives the file of what it says, too."""
    work, said = scene.directory / "work.json", scene.directory / "said.jsonl"
    work.write_text(json.dumps(payments(scene)), "utf-8")
    command = [sys.executable, "-m", "fep.sandbox.finance", "--client", FINANCE_CLIENT]
    command += ["--address", f"tcp:127.0.0.1:{scene.port}"]
    command += ["--token-file", str(scene.token), "--work", str(work)]
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)
    try:
        yield process, said
    finally:
        end(process, signal.SIGKILL)


def tell(said: Path, event: str) -> list[dict[str, Any]]:
    """Return what the finance system has said of one kind."""
    lines = said.read_text("utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def unacknowledged(client: BlockingClient) -> set[str]:
    """Return the tasks whose result nobody has yet, be they at their end or not."""
    return {task["task_id"] for task in every_task(client) if not task["acknowledged"]}


def half_done(client: BlockingClient) -> bool:
    """Say whether the quick bank's results are home and the late bank's payments under way."""
    tasks = every_task(client)
    late = [task["state"] for task in tasks if task["bank"] == LATE]
    return (
        len(tasks) == 2 * PAYMENTS
        and all(task["acknowledged"] for task in tasks if task["bank"] == QUICK)
        and set(late) <= {"fetched", "sending", "unknown"}
    )


def client_lost(client: BlockingClient) -> bool:
    """Say whether the daemon has raised its alarm about the finance system."""
    alarms = client.call("alarm.list")["alarms"]
    return ("CLIENT_LOST", FINANCE_CLIENT) in {(one["kind"], one["subject"]) for one in alarms}


@contextmanager
def returned(scene: Scene, told: list[TaskResult]) -> Iterator[BlockingClient]:
    """Connect as the finance system after its return, with nothing but an inbox."""
    token = scene.token.read_text("utf-8").strip()
    with BlockingClient(
        f"tcp:127.0.0.1:{scene.port}", FINANCE_CLIENT, token=token, result=told.append
    ) as client:
        yield client


@pytest.mark.req("FEP-22", "FEP-24", "FEP-26", "FEP-32", "FEP-33")
@pytest.mark.slow
def test_a_killed_finance_system_gets_what_it_had_not_acknowledged(scene: Scene) -> None:
    with scene.operator() as operator:
        with held_up(scene, LATE), finance_system(scene) as (process, _said):
            scene.wait(operator, half_done, "half of the results")
            process.kill()
            process.wait()
        scene.wait(operator, client_lost, "the alarm")
        scene.wait(operator, lambda c: open_tasks(c) == 0, "every payment closed")
        owed = unacknowledged(operator)
        assert owed == {task["task_id"] for task in every_task(operator) if task["bank"] == LATE}
        # It comes back, is told everything, and dies again before it has said that it knows.
        with wire(scene) as connection:
            asked = [connection.asked() for _ in owed]
        assert {one["params"]["task_id"] for one in asked} == owed
        assert {one["method"] for one in asked} == {"task.result"}
        # The daemon, too, is killed meanwhile: what is owed is on disk.
        scene.kill_daemon()
        scene.start_daemon()
        told: list[TaskResult] = []
        with returned(scene, told):
            scene.wait(operator, lambda c: not unacknowledged(c), "every result acknowledged")
            assert not client_lost(operator)
        assert {result.task_id for result in told} == owed
        assert {result.state for result in told} == {"succeeded"}
        # What is acknowledged is never told again.
        del told[:]
        with returned(scene, told) as client:
            assert client.call("task.get", {"task_id": "F-0"})["state"] == "succeeded"
        assert told == []
        tasks = every_task(operator)
    assert violations(scene, tasks) == []
    assert len(tasks) == 2 * PAYMENTS


@pytest.mark.req("FEP-29", "FEP-30", "FEP-31", "FEP-32")
@pytest.mark.slow
def test_a_finance_system_behind_a_dead_line_gets_its_results_when_it_is_back(scene: Scene) -> None:
    """A stopped process is a half-open connection: nothing is closed, and nothing comes."""
    with scene.operator() as operator, ExitStack() as stack:
        with held_up(scene, LATE):
            process, said = stack.enter_context(finance_system(scene))
            scene.wait(operator, half_done, "half of the results")
            process.send_signal(signal.SIGSTOP)
        scene.wait(operator, client_lost, "the alarm for missing heartbeats")
        scene.wait(operator, lambda c: open_tasks(c) == 0, "every payment closed")
        owed = unacknowledged(operator)
        assert len(owed) == PAYMENTS
        before = {record["task_id"] for record in tell(said, "result")}
        assert before.isdisjoint(owed)
        process.send_signal(signal.SIGCONT)
        assert process.wait(FINISH_SECONDS_MAX) == 0
        assert unacknowledged(operator) == set()
        # Both sides noticed: the finance system has its own alarm of a connection that was lost.
        assert len(tell(said, "alarm")) >= 1
        assert {record["task_id"] for record in tell(said, "result")} == before | owed
        tasks = every_task(operator)
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}


@pytest.mark.req("FEP-22", "FEP-23", "FEP-24")
@pytest.mark.slow
def test_the_same_id_is_the_same_task_and_never_another(scene: Scene) -> None:
    payer, payee, third = scene.accounts[:3]
    body = transfer(scene, payer, payee, "12.34")
    told: list[TaskResult] = []

    def refused(**changes: Any) -> str:
        """Submit the id again with something else, and return the code of the refusal."""
        asked = {"bank": payer.bank, "kind": "transfer", "body": body} | changes
        with pytest.raises(CallError) as caught:
            client.submit("ONE", **asked)
        return caught.value.code

    def check_conflicts() -> None:
        assert refused(body=transfer(scene, payer, payee, "12.35")) == "TASK_CONFLICT"
        assert refused(body=transfer(scene, payer, third, "12.34")) == "TASK_CONFLICT"
        assert refused(bank=LATE, body=None) == "TASK_CONFLICT"
        query = {"kind": "balance", "params": {"account": payer.number}}
        assert refused(kind="balance", body=query) == "TASK_CONFLICT"

    with returned(scene, told) as client:
        first = client.submit("ONE", payer.bank, "transfer", body)
        assert (first["state"], first["known"]) == ("queued", False)
        assert client.submit("ONE", payer.bank, "transfer", body)["known"] is True
        check_conflicts()
        scene.wait(client, lambda c: open_tasks(c) == 0, "the payment")
        again = client.submit("ONE", payer.bank, "transfer", body)
        assert (again["state"], again["known"]) == ("succeeded", True)
        assert client.submit("ONE", payer.bank, "transfer")["known"] is True
        scene.wait(client, lambda _: told, "its result")
    scene.kill_daemon()
    scene.start_daemon()
    with returned(scene, told) as client:
        again = client.submit("ONE", payer.bank, "transfer", body)
        assert (again["state"], again["known"]) == ("succeeded", True)
        check_conflicts()
        tasks = every_task(client)
    assert [result.task_id for result in told] == ["ONE"]
    assert [task["task_id"] for task in tasks] == ["ONE"]
    assert violations(scene, tasks) == []
