"""Two front-end machines, one PostgreSQL: work is shared, and no death of either doubles or loses."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient, CallError, DisconnectedError, TaskResult
from fep.sandbox.postgres import PostgresServer
from fep.sandbox.scene import FINANCE_CLIENT, Scene, end
from tests.store.postgres import postgres  # noqa: F401 - a fixture
from tests.system.forked import Forked
from tests.system.shared import LEASE_S, Machines, served, wait_served
from tests.system.work import OPEN, causes, every_task, held_up, transfer, violations

pytestmark = [pytest.mark.req("FEP-22", "FEP-23", "FEP-25"), pytest.mark.slow]

KILLS = int(os.environ.get("FEP_TEST_SHARED_KILLS", "12"))
DATABASE_KILLS = 3
SETTLE_SECONDS_MAX = 90.0
ANSWER_SECONDS_MAX = 5.0
"""A machine that does not answer for so long has died."""
BOTH = [["pingan", "cmb"], ["pingan", "cmb"]]
APART = [["pingan"], ["cmb"]]


@pytest.fixture
def apart(directory: Path, postgres: PostgresServer) -> Iterator[Machines]:  # noqa: F811
    """FEP-01 has the key of one bank, FEP-02 that of the other; all is up."""
    with Machines(directory, postgres, APART) as machines:
        machines.start_banks()
        machines.start()
        with machines.first.operator() as operator:
            wait_served(machines.first, operator, {"FEP-01": {"pingan"}, "FEP-02": {"cmb"}})
        yield machines


def pay(
    machines: Machines, client: BlockingClient, bank: str, name: str, *, body: bool = True
) -> dict[str, Any]:
    """Submit a payment from an account of a bank, with its body or by its id alone."""
    given = payment(machines, bank) if body else None
    return client.submit(name, bank, "transfer", given, deadline_s=ANSWER_SECONDS_MAX)


def payment(machines: Machines, bank: str, amount: str = "1.00") -> dict[str, Any]:
    """Return the body of a payment between two accounts of a bank."""
    scene = machines.first
    payer, payee = [one for one in scene.accounts if one.bank == bank][1:3]
    return transfer(scene, payer, payee, amount)


def settled(machines: Machines) -> bool:
    """Say whether every task on disk is at its end."""
    states = machines.states()
    return not any(states[state] for state in OPEN)


def settle(machines: Machines, scene: Scene, client: BlockingClient) -> list[dict[str, Any]]:
    """Wait until every task is at its end, and return all tasks."""
    scene.wait(client, lambda _: settled(machines), "every task closed", SETTLE_SECONDS_MAX)
    return every_task(client)


@contextmanager
def finance(
    machines: Machines,
    scene: Scene,
    told: list[TaskResult],
    *,
    asked: list[str] | None = None,
) -> Iterator[BlockingClient]:
    """Connect to a machine as the finance system, which gives the body of every payment."""

    def fetch(task_id: str, _attempt: int) -> dict[str, Any]:
        if asked is not None:
            asked.append(task_id)
        return payment(machines, task_id.partition("-")[0])

    token = scene.token.read_text("utf-8").strip()
    with BlockingClient(
        f"tcp:127.0.0.1:{scene.port}",
        FINANCE_CLIENT,
        token=token,
        fetch=fetch,
        result=told.append,
    ) as client:
        yield client


def names(told: list[TaskResult]) -> set[str]:
    return {one.task_id for one in told}


# -- in peace --------------------------------------------------------------------------------------


def test_a_client_of_one_machine_has_the_work_of_both_done(apart: Machines) -> None:
    """It is asked for bodies, and told results, where it is connected, whoever does the work."""
    one, _ = apart.all
    told: list[TaskResult] = []
    asked: list[str] = []
    wanted = {f"{bank}-{number}" for bank in ("pingan", "cmb") for number in range(10)}
    with finance(apart, one, told, asked=asked) as client, one.operator() as operator:
        for name in wanted:
            assert pay(apart, client, name.partition("-")[0], name, body=False)["known"] is False
        one.wait(operator, lambda _: names(told) == wanted, "every result told")
        tasks = settle(apart, one, operator)
        chain = causes(operator, tasks)
    assert sorted(asked) == sorted(wanted), "each was asked for once"
    assert len(told) == len(wanted), "each was told once"
    assert {one.state for one in told} == {"succeeded"}
    assert violations(one, tasks) == []
    assert all(task["acknowledged"] for task in tasks)
    assert chain[f"body_taken: task.fetch answered by {FINANCE_CLIENT}"] == len(wanted)


def test_a_client_may_go_to_another_machine(apart: Machines) -> None:
    """What it was not told, or did not acknowledge, it is told where it connects next."""
    one, other = apart.all
    first: list[TaskResult] = []
    second: list[TaskResult] = []
    with one.operator() as operator:
        with held_up(one, "cmb"), finance(apart, one, first) as client:
            for number in range(5):
                pay(apart, client, "pingan", f"pingan-{number}")
                pay(apart, client, "cmb", f"cmb-{number}")
            one.wait(operator, lambda _: len(first) == 5, "what is quick is told")
            # Acknowledged for certain, before the client goes.
            one.wait(
                operator,
                lambda c: sum(task["acknowledged"] for task in every_task(c)) == 5,
                "acknowledged",
            )
        with finance(apart, other, second):
            other.wait(operator, lambda _: len(names(second)) == 5, "the rest is told")
            tasks = settle(apart, one, operator)
            one.wait(
                operator,
                lambda c: all(task["acknowledged"] for task in every_task(c)),
                "acknowledged",
            )
    assert names(first) == {f"pingan-{number}" for number in range(5)}
    assert names(second) == {f"cmb-{number}" for number in range(5)}
    assert violations(one, tasks) == []


def test_one_id_at_both_machines_at_the_same_moment_is_one_task(apart: Machines) -> None:
    one, other = apart.all
    ids = [f"pingan-{number}" for number in range(60)]
    answers: dict[str, list[bool]] = {name: [] for name in ids}
    start = threading.Barrier(2)

    def submit(scene: Scene, order: list[str]) -> None:
        with scene.operator() as client:
            start.wait()
            for name in order:
                answers[name].append(pay(apart, client, "pingan", name)["known"])

    threads = [
        threading.Thread(target=submit, args=(scene, order))
        for scene, order in ((one, ids), (other, ids))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with one.operator() as operator:
        tasks = settle(apart, one, operator)
    assert [name for name, known in answers.items() if sorted(known) != [False, True]] == []
    assert sorted(task["task_id"] for task in tasks) == sorted(ids)
    assert violations(one, tasks) == []


def test_an_operator_acts_on_any_machine(apart: Machines) -> None:
    """What only one machine can do is done by that one, wherever it is asked for."""
    one, other = apart.all
    with one.operator() as here, other.operator() as there:
        here.call("link.drain", {"bank": "cmb"})
        other.wait(
            there,
            lambda c: c.call("status")["queue"]["banks"]["cmb"]["drained"],
            "drained at the machine that serves it",
        )
        pay(apart, here, "cmb", "cmb-1")
        pay(apart, here, "cmb", "cmb-2")
        assert here.call("task.cancel", {"task_id": "cmb-1"}) == {"state": "cancelled"}
        with pytest.raises(CallError, match="can't be cancelled any more") as refused:
            here.call("task.cancel", {"task_id": "cmb-1"})
        assert refused.value.code == "BAD_STATE"
        with pytest.raises(CallError, match="only accepted and unknown ones") as refused:
            here.call(
                "task.resolve",
                {"task_id": "cmb-2", "outcome": "succeeded", "evidence": "seen in the statement"},
            )
        assert refused.value.code == "BAD_STATE"
        with pytest.raises(CallError) as refused:
            here.call("task.cancel", {"task_id": "nobody-1"})
        assert refused.value.code == "NOT_FOUND"
        assert there.call("task.get", {"task_id": "cmb-1"})["state"] == "cancelled"
        there.call("link.resume", {"bank": "cmb"})
        tasks = settle(apart, one, here)
        assert {task["task_id"]: task["state"] for task in tasks} == {
            "cmb-1": "cancelled",
            "cmb-2": "succeeded",
        }
        why = here.call("task.why", {"task_id": "cmb-1"})["events"]
        assert why[-1]["cause"] == "cancelled by admin operator"
        # One of the two runs the pools; both start rounds, and see them.
        pooling = next(who for who, what in served(here).items() if "pooling" in what)
        elsewhere = there if pooling == "FEP-01" else here
        round_id = elsewhere.call("pool.run", {"pool": "main"})["round_id"]
        one.wait(
            elsewhere,
            lambda c: c.call("pool.round", {"round_id": round_id})["state"] == "finished",
            "a round over both machines' banks",
            SETTLE_SECONDS_MAX,
        )
        items = elsewhere.call("pool.round", {"round_id": round_id})["items"]
        tasks = settle(apart, one, here)
    assert {item["state"] for item in items} <= {"swept", "nothing"}
    assert {item["bank"] for item in items if item["state"] == "swept"} == {"pingan", "cmb"}
    assert violations(one, tasks) == []


def test_a_machine_that_stops_leaves_its_banks_at_once(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    with Machines(directory, postgres, BOTH) as machines:
        machines.start_banks()
        one, other = machines.all
        one.start_daemon()
        with one.operator() as operator:
            wait_served(one, operator, {"FEP-01": {"pingan", "cmb"}})
        other.start_daemon()
        with other.operator() as operator:
            wait_served(other, operator, {"FEP-01": {"pingan", "cmb"}, "FEP-02": set()})
            pay(machines, operator, "pingan", "pingan-1")
            assert one.stop_daemon() == 0
            wait_served(other, operator, {"FEP-02": {"pingan", "cmb"}})
            pay(machines, operator, "pingan", "pingan-2")
            tasks = settle(machines, other, operator)
            alarms = operator.call("alarm.list")["alarms"]
        assert violations(one, tasks) == []
        assert [task["state"] for task in tasks] == ["succeeded", "succeeded"]
        assert "MACHINE_LOST" not in {alarm["kind"] for alarm in alarms}


# -- death -----------------------------------------------------------------------------------------


def test_a_payment_whose_machine_died_before_the_answer_is_closed_by_the_other(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """It was booked, or not, when the machine died: the other finds out, and never sends."""
    with Machines(directory, postgres, BOTH) as machines:
        machines.start_banks("silent_before_booking=0.4,silent_after_booking=0.6")
        one, other = machines.all
        one.start_daemon()
        with one.operator() as operator:
            wait_served(one, operator, {"FEP-01": {"pingan", "cmb"}})
            for number in range(12):
                bank = ("pingan", "cmb")[number % 2]
                pay(machines, operator, bank, f"{bank}-{number}")
            one.wait(operator, lambda _: machines.states()["sending"] >= 8, "many at the banks")
            other.start_daemon()
            one.kill_daemon()
        caught = machines.states()
        assert caught["sending"] >= 8
        for host in one.hosts.values():
            host.stop()
            host.faults = ""
            host.start()
        with other.operator() as operator:
            tasks = settle(machines, other, operator)
            chain = causes(operator, tasks)
            assert served(operator).keys() == {"FEP-02"}
            other.wait(
                operator,
                lambda c: "MACHINE_LOST" in {a["kind"] for a in c.call("alarm.list")["alarms"]},
                "the alarm",
            )
        assert len(tasks) == 12
        assert violations(one, tasks) == []
        lost = "outcome_lost: the process ended while it was being sent"
        assert chain[lost] == caught["sending"]
        # Of what was being sent, nothing was sent by the other.
        begun = sum(count for cause, count in chain.items() if cause.startswith("send_begun"))
        assert begun == len(tasks)
        assert chain["proved_done: the bank's status query says: done"] > 0
        assert {task["state"] for task in tasks} == {"succeeded", "rejected"}


def test_machines_killed_at_random_moments_lose_and_double_nothing(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    rng = random.Random(20_260_106)
    with Machines(directory, postgres, BOTH, start_command=Forked) as machines:
        machines.start_banks()
        machines.start()
        acknowledged: set[str] = set()
        caught: Counter[str] = Counter()
        takeovers = 0
        for kill in range(KILLS):
            victim, survivor = rng.sample(machines.all, 2)
            with ExitStack() as clients:
                both = [clients.enter_context(scene.operator()) for scene in machines.all]
                number = machines.all.index(victim) + 1
                machines.first.wait(
                    both[machines.all.index(survivor)],
                    lambda c: len(served(c)) == 2 and all_served(c),
                    "both alive",
                    SETTLE_SECONDS_MAX,
                )
                had = served(both[0])[f"FEP-{number:02d}"]
                acknowledged |= keep_busy(machines, both, kill, rng)
                victim.kill_daemon()
            caught.update(machines.states().keys() & set(OPEN))
            takeovers += any(what.startswith("bank:") for what in had)
            if rng.random() < 0.5:
                # Else it is back before its lease has run out, and takes up what was its own.
                with survivor.operator() as client:
                    survivor.wait(
                        client, lambda c: len(served(c)) == 1 and all_served(c), "taken over", 60.0
                    )
            victim.start_daemon()
        scene = machines.first
        with scene.operator() as client:
            tasks = settle(machines, scene, client)
            chain = causes(client, tasks)
        assert acknowledged <= {task["task_id"] for task in tasks}
        assert violations(scene, tasks) == []
        assert takeovers > 0
        assert caught["sending"] > 0, caught
        assert chain["outcome_lost: the process ended while it was being sent"] > 0, chain


def all_served(client: BlockingClient) -> bool:
    """Say whether some machine serves each bank."""
    return {what for places in served(client).values() for what in places} >= {
        "bank:pingan",
        "bank:cmb",
    }


def keep_busy(
    machines: Machines, clients: list[BlockingClient], kill: int, rng: random.Random
) -> set[str]:
    """Give payments to both machines for a random while; return what they took."""
    until = time.monotonic() + rng.uniform(0.02, 0.6)
    acknowledged: set[str] = set()
    number = 0
    while time.monotonic() < until:
        bank = ("pingan", "cmb")[number % 2]
        task_id = f"{bank}-{kill}-{number}"
        try:
            pay(machines, rng.choice(clients), bank, task_id)
        except DisconnectedError:
            break
        acknowledged.add(task_id)
        number += 1
    return acknowledged


def test_a_machine_that_stood_still_sends_nothing_when_its_lease_has_run_out(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """Frozen at any moment, for longer than the lease: the other has its banks by then."""
    with Machines(directory, postgres, BOTH) as machines:
        machines.start_banks()
        machines.start()
        one = machines.first
        number = 0
        acknowledged: set[str] = set()
        for _ in range(4):
            with ExitStack() as clients:
                both = [clients.enter_context(scene.operator()) for scene in machines.all]
                one.wait(both[0], lambda c: len(served(c)) == 2 and all_served(c), "both", 60.0)
                holder = next(
                    place
                    for place, number_ in enumerate(("FEP-01", "FEP-02"))
                    if "bank:pingan" in served(both[0])[number_]
                )
                frozen, awake = machines.all[holder], machines.all[1 - holder]
                process = frozen.daemon
                assert process is not None
                for _ in range(30):
                    number += 1
                    pay(machines, both[1 - holder], "pingan", f"pingan-{number}")
                    acknowledged.add(f"pingan-{number}")
                    if number % 10 == 7:
                        process.send_signal(signal.SIGSTOP)
                try:
                    awake.wait(
                        both[1 - holder],
                        lambda c, other=f"FEP-0{2 - holder}": (
                            "bank:pingan" in served(c).get(other, ())
                        ),
                        "taken over",
                        60.0,
                    )
                finally:
                    process.send_signal(signal.SIGCONT)
            # It may have ended: the database cuts off who stands still in the middle of a group.
            if not answers(frozen):
                end(frozen.daemon, signal.SIGKILL)
                frozen.start_daemon()
        with one.operator() as client:
            tasks = settle(machines, one, client)
        assert {task["task_id"] for task in tasks} == acknowledged
        assert violations(one, tasks) == []


def answers(scene: Scene) -> bool:
    """Say whether a daemon lives on; it may take a moment to end."""
    assert scene.daemon is not None
    limit = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < limit and scene.daemon.poll() is None:
        time.sleep(0.05)
    return scene.daemon.poll() is None


def test_a_database_that_is_killed_ends_the_machines_and_no_payment_is_lost_or_doubled(
    directory: Path,
) -> None:
    rng = random.Random(20_260_107)
    with PostgresServer() as server, Machines(directory, server, BOTH) as machines:
        machines.start_banks("delayed=0.5")
        machines.start()
        acknowledged: set[str] = set()
        caught: Counter[str] = Counter()
        for kill in range(DATABASE_KILLS):
            with ExitStack() as clients:
                both = [clients.enter_context(scene.operator()) for scene in machines.all]
                machines.first.wait(both[0], all_served, "served", SETTLE_SECONDS_MAX)
                killer = threading.Timer(rng.uniform(0.1, 0.5), server.kill)
                killer.start()
                acknowledged |= until_lost(machines, both, kill)
                killer.join()
            for scene in machines.all:
                assert scene.daemon is not None
                assert scene.daemon.wait(60.0) == 1, "fail-stop"
                assert "store.failed" in (scene.directory / "fep.log").read_text("utf-8")
            server.start()
            caught.update(machines.states().keys() & set(OPEN))
            machines.start()
        scene = machines.first
        with scene.operator() as client:
            tasks = settle(machines, scene, client)
        assert acknowledged <= {task["task_id"] for task in tasks}
        assert violations(scene, tasks) == []
        assert sum(caught.values()) > 0, "something was under way when it died"


def until_lost(machines: Machines, clients: list[BlockingClient], kill: int) -> set[str]:
    """Submit to both machines until one does not answer; return what was acknowledged."""
    acknowledged: set[str] = set()
    for number in count():
        bank = ("pingan", "cmb")[number % 2]
        task_id = f"{bank}-{kill}-{number}"
        try:
            pay(machines, clients[number % 2], bank, task_id)
        except DisconnectedError:
            break
        except CallError as error:
            if error.code != "SHUTTING_DOWN":
                raise
        else:
            acknowledged.add(task_id)
    return acknowledged


def test_a_machine_of_another_enterprise_is_refused(
    apart: Machines,
) -> None:
    """Its payments would have other references: it must not take over ours."""
    other = apart.all[1]
    other.stop_daemon()
    apart.write_config(2, lambda config: config["enterprise"].update(id="E0002"))
    with pytest.raises(RuntimeError, match="belongs to enterprise 'E0001', and this is 'E0002'"):
        other.start_daemon()
