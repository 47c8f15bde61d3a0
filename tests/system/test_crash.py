"""Kill -9 of a bank and of the daemon, 50 times each: no payment twice, none lost, all closed."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient, CallError, DisconnectedError
from fep.sandbox.scene import BANKS, Scene
from tests.system.forked import Forked
from tests.system.work import (
    OPEN,
    causes,
    every_task,
    open_tasks,
    states_on_disk,
    transfer,
    violations,
)

KILLS = int(os.environ.get("FEP_TEST_KILLS", "50"))
"""A longer campaign: FEP_TEST_KILLS=1000 make test PYTEST=tests/system/test_crash.py"""
SETTLE_SECONDS_MAX = 60.0
BODY_SECONDS = 0.02
"""How long the finance system takes to give a payment's body: a kill finds some that wait for it."""
WAITING_MAX = 40
"""Payments that may be open while the daemon lives; more would only wait."""


def settle(scene: Scene, client: BlockingClient) -> list[dict[str, Any]]:
    """Wait until every task is at its end, and return all tasks."""
    scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed", SETTLE_SECONDS_MAX)
    return every_task(client)


@pytest.mark.req("FEP-23", "FEP-25")
@pytest.mark.slow
def test_bank_killed_between_receipt_and_answer(directory: Path) -> None:
    """The host kills itself (SIGKILL) before or after booking; the test starts it again."""
    with Scene(directory, banks=BANKS[:2], accounts_per_bank=4, start_command=Forked) as scene:
        scene.start_hosts(faults="exit_before_booking=0.2,exit_after_booking=0.3")
        scene.write_config()
        scene.start_daemon()
        killed = dict.fromkeys(scene.hosts, 0)
        with scene.operator() as client:
            scene.wait_ready(client)
            number = 0
            while sum(killed.values()) < KILLS:
                if open_tasks(client) < 8:
                    payer, payee = scene.accounts[number % 8], scene.accounts[(number + 3) % 8]
                    body = transfer(scene, payer, payee, f"{1 + number % 97}.{number % 100:02d}")
                    client.submit(f"P{number}", payer.bank, "transfer", body)
                    number += 1
                for name, host in scene.hosts.items():
                    if not host.alive:
                        assert host.process is not None
                        assert host.process.returncode == -9
                        killed[name] += 1
                        # Another seed, or the first request would kill it again for ever.
                        host.seed += 1000
                        host.start()
            for host in scene.hosts.values():
                host.stop()
                host.faults = ""
                host.start()
            tasks = settle(scene, client)
            chain = causes(client, tasks)
        assert all(killed.values()), killed
        assert len(tasks) == number
        assert violations(scene, tasks) == []
        assert {task["state"] for task in tasks} == {"succeeded", "rejected"}
        # Nobody was believed dead: what was lost was closed by what the bank said later, be it
        # that the payment was booked, or that it was not.
        assert chain["proved_done: the bank's status query says: done"] > 0
        not_done = chain["proved_refused: no record at the bank, and by its card that is proof"]
        assert not_done == sum(task["state"] == "rejected" for task in tasks) > 0
        lost = sum(
            n for cause, n in chain.items() if cause.startswith("outcome_lost: the connecti")
        )
        assert lost >= len(tasks) // 4


@pytest.mark.req("FEP-23", "POOL-11")
@pytest.mark.slow
def test_daemon_killed_at_random_moments_of_a_round(directory: Path) -> None:
    """Payments and pooling rounds run while the daemon is killed; acknowledged means found."""
    rng = random.Random(20_260_105)
    with Scene(directory, banks=BANKS[:2], accounts_per_bank=6, start_command=Forked) as scene:
        scene.start_hosts()
        scene.write_config()
        acknowledged: set[str] = set()
        bodies: dict[str, dict[str, Any]] = {}
        caught: Counter[str] = Counter()
        for kill in range(KILLS):
            scene.start_daemon()
            with slow_finance(scene, bodies) as client:
                acknowledged |= keep_busy(scene, client, bodies, kill, rng)
                scene.kill_daemon()
            caught.update(states_on_disk(scene).keys() & set(OPEN))
        scene.start_daemon()
        with slow_finance(scene, bodies) as client:
            settle(scene, client)
            scene.wait(
                client,
                lambda c: c.call("pool.list")["pools"][0]["last_round"]["state"] == "finished",
                "the last round finished",
                SETTLE_SECONDS_MAX,
            )
            tasks = settle(scene, client)
            chain = causes(client, tasks)
        assert acknowledged <= {task["task_id"] for task in tasks}
        assert violations(scene, tasks) == []
        # The campaign was worth something: it hit every moment of a task's life, and often.
        assert {"queued", "offered", "fetched", "sending", "unknown"} <= caught.keys(), caught
        assert caught["sending"] >= KILLS // 10, caught
        assert chain["outcome_lost: the process ended while it was being sent"] > 0, chain
        assert chain["offer_lapsed: the process ended"] > 0, chain
        assert chain["proved_done: the bank's status query says: done"] > 0, chain


def slow_finance(scene: Scene, bodies: dict[str, dict[str, Any]]) -> BlockingClient:
    """Return a client that gives bodies when it is asked for them, each after a while."""

    def fetch(task_id: str, _attempt: int) -> dict[str, Any]:
        time.sleep(BODY_SECONDS)
        return bodies[task_id]

    return BlockingClient(f"unix:{scene.socket}", "operator", fetch=fetch)


def keep_busy(
    scene: Scene,
    client: BlockingClient,
    bodies: dict[str, dict[str, Any]],
    kill: int,
    rng: random.Random,
) -> set[str]:
    """Give the daemon a round and payments to do for a random while; return what it took.

    Every fourth payment comes without its body.
    """
    until = time.monotonic() + rng.uniform(0.02, 0.6)
    acknowledged: set[str] = set()
    try:
        client.call("pool.run", {"pool": "main"})
    except CallError as error:
        if error.code != "BAD_STATE":  # the round of an earlier life is still running
            raise
    number = 0
    while time.monotonic() < until:
        payer = scene.accounts[1 + (kill + number) % 11]
        body = transfer(scene, payer, scene.accounts[0], f"1.{number % 100:02d}")
        if (kill + number) % 3 == 0:
            # The money goes back, so that later rounds have something to sweep.
            amount = f"{rng.randrange(1000, 60_000)}.00"
            body = transfer(scene, scene.accounts[0], payer, amount)
            payer = scene.accounts[0]
        task_id = f"K{kill}-{number}"
        bodies[task_id] = body
        try:
            given = body if number % 4 else None
            client.submit(task_id, payer.bank, "transfer", given, deadline_s=5)
        except DisconnectedError:
            break
        acknowledged.add(task_id)
        number += 1
        if number % WAITING_MAX == 0:
            time.sleep(0.01)
    return acknowledged


def test_a_violation_is_seen(directory: Path) -> None:
    """The check itself can fail: a payment booked behind the daemon's back is reported."""
    with Scene(directory, banks=BANKS[:1], accounts_per_bank=2) as scene:
        scene.start_hosts()
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as client:
            scene.wait_ready(client)
            payer, payee = scene.accounts
            client.submit("ONCE", payer.bank, "transfer", transfer(scene, payer, payee, "5.00"))
            tasks = settle(scene, client)
        assert violations(scene, tasks) == []
        assert violations(scene, []) != []
        tasks[0]["state"] = "rejected"
        assert violations(scene, tasks) != []
