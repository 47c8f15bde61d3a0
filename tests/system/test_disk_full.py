"""A full disk under the store: new tasks are refused in words, nothing is lost, and it recovers."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient, CallError
from fep.sandbox.scene import BANKS, Scene
from tests.system.work import causes, every_task, held_up, open_tasks, transfer, violations

BANK, OTHER = "pingan", "cmb"
WORKERS = 4
DISK_BYTES = 4 * 1024 * 1024
SUBMITS_MAX = 200
"""So many payments certainly do not fit into what is left of a disk that is full."""


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a disk of a few megabytes at a folder, in memory."""
    path.mkdir()
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "fep-test", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    """Two banks and the daemon, whose store is on a disk of its own."""
    with (
        small_disk(directory / "state"),
        Scene(directory, banks=BANKS[:2], accounts_per_bank=4) as scene,
    ):
        scene.workers = WORKERS
        scene.reply_timeout_s = 60.0
        scene.start_hosts()
        config = scene.configuration()
        for bank in config["bank"]:
            bank["heartbeat_s"] = 30.0
        scene.write_config(config)
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene


def ballast(scene: Scene) -> Path:
    """Return the file that takes all the room there is."""
    return scene.directory / "state" / "ballast"


def fill_up(scene: Scene) -> None:
    """Leave no byte on the store's disk."""
    with ballast(scene).open("ab", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def pay(scene: Scene, client: BlockingClient, bank: str, name: str) -> dict[str, Any]:
    """Submit a payment between two accounts of a bank."""
    payer, payee = [one for one in scene.accounts if one.bank == bank][1:3]
    return client.submit(name, bank, "transfer", transfer(scene, payer, payee, "1.00"))


def sending(client: BlockingClient) -> int:
    """Return how many payments are at the bank that is held up."""
    found: int = client.call("status")["queue"]["banks"][BANK]["open"].get("sending", 0)
    return found


def store_alarms(client: BlockingClient) -> list[dict[str, Any]]:
    """Return the alarms about the disk."""
    return [one for one in client.call("alarm.list")["alarms"] if one["kind"] == "STORE_FULL"]


def refuse(scene: Scene, client: BlockingClient) -> set[str]:
    """Submit until the full disk refuses a payment; return those that it still took."""
    taken: set[str] = set()
    for number in range(SUBMITS_MAX):
        try:
            pay(scene, client, BANK, f"TRY-{number}")
        except CallError as error:
            refused = error
            break
        taken.add(f"TRY-{number}")
    else:
        pytest.fail("the disk was not full")
    assert refused.code == "STORE_FULL"
    assert "free space" in str(refused)
    return taken


@pytest.mark.req("FEP-23", "POOL-14")
@pytest.mark.slow
def test_a_full_disk_refuses_new_tasks_and_loses_none(scene: Scene) -> None:
    with scene.operator() as client:
        with held_up(scene, BANK):
            round_id = client.call("pool.run", {"pool": "main"})["round_id"]
            accepted = {f"BEFORE-{number}" for number in range(8)}
            for name in sorted(accepted):
                pay(scene, client, BANK, name)
            scene.wait(client, lambda c: sending(c) > 0, "payments at the bank")
            fill_up(scene)
            accepted |= refuse(scene, client)
        # The answers come home, and there is no room for what they change.
        scene.wait(client, store_alarms, "the alarm")
        (alarm,) = store_alarms(client)
        assert (alarm["severity"], alarm["subject"]) == ("critical", "store")
        assert client.call("status")["store_full"] is True
        refuse(scene, client)
        assert open_tasks(client) > 0
        assert client.call("pool.round", {"round_id": round_id})["state"] == "running"
        ballast(scene).unlink()
        scene.wait(client, lambda c: not store_alarms(c), "the alarm cleared")
        pay(scene, client, BANK, "AFTER")

        def finished(client: BlockingClient) -> bool:
            found = client.call("pool.round", {"round_id": round_id})
            return bool(found["state"] == "finished" and open_tasks(client) == 0)

        scene.wait(client, finished, "everything done")
        assert client.call("status")["store_full"] is False
        assert client.call("alarm.list")["alarms"] == []
        tasks = every_task(client)
        swept = client.call("pool.round", {"round_id": round_id})["items"]
        chain = causes(client, tasks)
    assert violations(scene, tasks) == []
    found = {task["task_id"] for task in tasks}
    assert found >= accepted | {"AFTER"}
    mine = {name for name in found if not name.startswith("main-")}
    assert mine == accepted | {"AFTER"}
    # An account that paid between its balance and its sweep is left to the next round.
    left = [item for item in swept if item["state"] == "failed"]
    assert {item["reason"] for item in left} <= {"PAID_MEANWHILE"}
    unsent = {item["sweep_task"] for item in left}
    assert {task["state"] for task in tasks if task["task_id"] not in unsent} == {"succeeded"}
    assert not [cause for cause in chain if cause.startswith("outcome_lost")]


@pytest.mark.req("FEP-22", "FEP-24", "FEP-26")
@pytest.mark.slow
def test_an_idle_daemon_notices_by_itself_that_the_disk_has_room_again(scene: Scene) -> None:
    with scene.operator() as client:
        fill_up(scene)
        refuse(scene, client)
        scene.wait(client, store_alarms, "the alarm")
        scene.wait(client, lambda c: sending(c) == 0, "nothing under way")
        ballast(scene).unlink()
        scene.wait(client, lambda c: not store_alarms(c), "the alarm cleared")
        scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
        assert client.call("status")["store_full"] is False


@pytest.mark.req("FEP-23")
@pytest.mark.slow
def test_a_daemon_killed_on_a_full_disk_goes_on_when_there_is_room(scene: Scene) -> None:
    with scene.operator() as client:
        with held_up(scene, BANK):
            accepted = {f"BEFORE-{number}" for number in range(8)}
            for name in sorted(accepted):
                pay(scene, client, BANK, name)
            scene.wait(client, lambda c: sending(c) == WORKERS, "payments at the bank")
            fill_up(scene)
            accepted |= refuse(scene, client)
        scene.wait(client, store_alarms, "the alarm")
        scene.kill_daemon()
    ballast(scene).unlink()
    scene.start_daemon()
    with scene.operator() as client:
        scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
        tasks = every_task(client)
        chain = causes(client, tasks)
        assert store_alarms(client) == []
    assert violations(scene, tasks) == []
    assert {task["task_id"] for task in tasks} == accepted
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert chain["proved_done: the bank's status query says: done"] > 0


@pytest.mark.req("FEP-20")
@pytest.mark.slow
def test_a_start_on_a_full_disk_notes_its_configuration_later(scene: Scene) -> None:
    scene.kill_daemon()
    fill_up(scene)
    with scene.config.open("a", encoding="utf-8") as file:
        file.write("# changed by hand meanwhile\n")
    scene.start_daemon()
    with scene.operator() as client:
        scene.wait_ready(client)
        scene.wait(
            client, lambda _: "config.not_noted" in (scene.directory / "fep.log").read_text(), "no"
        )
        assert len(client.call("config.versions")["versions"]) == 1
        ballast(scene).unlink()
        noted = lambda _: len(client.call("config.versions")["versions"]) == 2  # noqa: E731
        scene.wait(client, noted, "the version is noted")


@pytest.mark.slow
def test_an_answer_that_comes_late_on_a_full_disk_ends_nothing(scene: Scene) -> None:
    host = scene.hosts[BANK]
    host.stop()
    host.faults = "delayed=1"
    host.start()
    config = scene.configuration()
    for bank in config["bank"]:
        bank["reply_timeout_s"] = 0.5
    scene.write_config(config)
    scene.stop_daemon()
    scene.start_daemon()
    with scene.operator() as client:
        scene.wait_ready(client)
        for number in range(WORKERS):
            pay(scene, client, BANK, f"LATE-{number}")
        scene.wait(client, lambda c: sending(c) > 0, "payments at the bank")
        fill_up(scene)
        scene.wait(client, store_alarms, "the alarm")
        scene.wait(client, lambda c: unmatched(c) > 0, "an answer that nobody waits for")
        ballast(scene).unlink()
        host.stop()
        host.faults = ""
        host.start()
        scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
        tasks = every_task(client)
        assert store_alarms(client) == []
    assert scene.daemon is not None
    assert scene.daemon.poll() is None
    assert violations(scene, tasks) == []
    assert len(tasks) == WORKERS


def unmatched(client: BlockingClient) -> int:
    """Return how many answers matched no request."""
    (link,) = [one for one in client.call("link.list")["links"] if one["bank"] == BANK]
    found: int = link["unmatched"]
    return found
