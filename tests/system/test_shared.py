"""Two front-end machines, one PostgreSQL: work is shared, and no death of either doubles or loses."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient, CallError, DisconnectedError, TaskResult
from fep.daemon.main import main
from fep.domain.ids import TaskId, client_ref
from fep.sandbox.postgres import PostgresServer
from fep.sandbox.scene import FINANCE_CLIENT, Scene
from tests.store.postgres import postgres  # noqa: F401 - a fixture
from tests.system.shared import Cutter, Machines, served, wait_served
from tests.system.work import ENTERPRISE, OPEN, causes, every_task, held_up, transfer, violations

pytestmark = [pytest.mark.req("FEP-22", "FEP-23", "FEP-25"), pytest.mark.slow]

KILLS = int(os.environ.get("FEP_TEST_SHARED_KILLS", "2"))
STANDSTILLS = 2
DATABASE_KILLS = 2
SETTLE_SECONDS_MAX = 90.0
ANSWER_SECONDS_MAX = 10.0
"""A machine that does not answer for so long has died."""
LOST_SECONDS = 1.5
BOTH = [["pingan", "cmb"], ["pingan", "cmb"]]
APART = [["pingan"], ["cmb"]]


@pytest.fixture(scope="module")
def apart(module_directory: Path, postgres: PostgresServer) -> Iterator[Machines]:  # noqa: F811
    """FEP-01 has the key of one bank, FEP-02 that of the other; all is up, for the whole module."""
    with Machines(module_directory, postgres, APART) as machines:
        machines.start_banks()
        machines.start()
        with machines.first.operator() as operator:
            wait_served(machines.first, operator, {"FEP-01": {"pingan"}, "FEP-02": {"cmb"}})
        yield machines


def pay(
    machines: Machines,
    client: BlockingClient,
    bank: str,
    name: str,
    *,
    body: bool = True,
    answer_s: float = ANSWER_SECONDS_MAX,
) -> dict[str, Any]:
    """Submit a payment from an account of a bank, with its body or by its id alone."""
    given = payment(machines, bank) if body else None
    while True:
        try:
            return client.submit(name, bank, "transfer", given, deadline_s=answer_s)
        except CallError as error:
            # A machine that stands still in the middle of a group holds the others up.
            if error.code != "STORE_BUSY":
                raise


def payment(machines: Machines, bank: str, amount: str = "1.00") -> dict[str, Any]:
    """Return the body of a payment between two accounts of a bank."""
    scene = machines.first
    payer, payee = [one for one in scene.accounts if one.bank == bank][1:3]
    return transfer(scene, payer, payee, amount)


def assert_sound(scene: Scene) -> None:
    """Have ``fep verify-store`` look at the shared store: whatever happened, all of it fits."""
    assert main(["verify-store", "--config", str(scene.config)]) == 0


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


def acknowledged(client: BlockingClient, prefix: str) -> int:
    """Return how many tasks whose names begin so were told and acknowledged."""
    tasks = every_task(client)
    return sum(task["acknowledged"] for task in tasks if task["task_id"].startswith(prefix))


def names(told: list[TaskResult]) -> set[str]:
    return {one.task_id for one in told}


# -- in peace --------------------------------------------------------------------------------------


def test_a_client_of_one_machine_has_the_work_of_both_done(apart: Machines) -> None:
    """It is asked for bodies, and told results, where it is connected, whoever does the work."""
    one, _ = apart.all
    told: list[TaskResult] = []
    asked: list[str] = []
    wanted = {f"{bank}-a{number}" for bank in ("pingan", "cmb") for number in range(10)}
    with finance(apart, one, told, asked=asked) as client, one.operator() as operator:
        for name in wanted:
            assert pay(apart, client, name.partition("-")[0], name, body=False)["known"] is False
        one.wait(operator, lambda _: names(told) == wanted, "every result told")
        tasks = settle(apart, one, operator)
        own = [task for task in tasks if task["task_id"] in wanted]
        chain = causes(operator, own)
        one.wait(
            operator,
            lambda c: sum(task["acknowledged"] for task in every_task(c)) >= len(wanted),
            "acknowledged",
        )
    assert sorted(asked) == sorted(wanted), "each was asked for once"
    assert len(told) == len(wanted), "each was told once"
    assert {one.state for one in told} == {"succeeded"}
    assert violations(one, tasks) == []
    assert chain[f"body_taken: task.fetch answered by {FINANCE_CLIENT}"] == len(wanted)


def test_a_client_may_go_to_another_machine(apart: Machines) -> None:
    """What it was not told, or did not acknowledge, it is told where it connects next."""
    one, other = apart.all
    first: list[TaskResult] = []
    second: list[TaskResult] = []
    with one.operator() as operator:
        with held_up(one, "cmb"), finance(apart, one, first) as client:
            for number in range(5):
                pay(apart, client, "pingan", f"pingan-b{number}")
                pay(apart, client, "cmb", f"cmb-b{number}")
            one.wait(operator, lambda _: len(first) == 5, "what is quick is told")
            # Acknowledged for certain, before the client goes.
            one.wait(
                operator,
                lambda c: acknowledged(c, "pingan-b") == 5,
                "acknowledged",
            )
        with finance(apart, other, second):
            other.wait(operator, lambda _: len(names(second)) == 5, "the rest is told")
            tasks = settle(apart, one, operator)
            one.wait(
                operator,
                lambda c: acknowledged(c, "cmb-b") == 5,
                "acknowledged",
            )
    assert names(first) == {f"pingan-b{number}" for number in range(5)}
    assert names(second) == {f"cmb-b{number}" for number in range(5)}
    assert violations(one, tasks) == []


def test_one_id_at_both_machines_at_the_same_moment_is_one_task(apart: Machines) -> None:
    one, other = apart.all
    ids = [f"pingan-c{number}" for number in range(60)]
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
    assert sorted(one for one in (t["task_id"] for t in tasks) if one in answers) == sorted(ids)
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
        pay(apart, here, "cmb", "cmb-d1")
        pay(apart, here, "cmb", "cmb-d2")
        assert here.call("task.cancel", {"task_id": "cmb-d1"}) == {"state": "cancelled"}
        with pytest.raises(CallError, match="can't be cancelled any more") as refused:
            here.call("task.cancel", {"task_id": "cmb-d1"})
        assert refused.value.code == "BAD_STATE"
        with pytest.raises(CallError, match="only accepted and unknown ones") as refused:
            here.call(
                "task.resolve",
                {"task_id": "cmb-d2", "outcome": "succeeded", "evidence": "seen in the statement"},
            )
        assert refused.value.code == "BAD_STATE"
        with pytest.raises(CallError) as refused:
            here.call("task.cancel", {"task_id": "nobody-1"})
        assert refused.value.code == "NOT_FOUND"
        assert there.call("task.get", {"task_id": "cmb-d1"})["state"] == "cancelled"
        there.call("link.resume", {"bank": "cmb"})
        tasks = settle(apart, one, here)
        ended = {task["task_id"]: task["state"] for task in tasks}
        assert {name: state for name, state in ended.items() if name.startswith("cmb-d")} == {
            "cmb-d1": "cancelled",
            "cmb-d2": "succeeded",
        }
        why = here.call("task.why", {"task_id": "cmb-d1"})["events"]
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


# -- held up ---------------------------------------------------------------------------------------


def test_a_table_that_another_program_holds_ends_no_machine(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """As ``VACUUM FULL`` does it: for longer than a read waits at the server."""
    with Machines(directory, postgres, APART) as machines:
        machines.start_banks()
        machines.start()
        one, _ = machines.all
        both = {"FEP-01": {"pingan"}, "FEP-02": {"cmb"}}
        with one.operator() as operator:
            wait_served(one, operator, both)
        told: list[TaskResult] = []
        with machines.server.connect(machines.database) as holder:
            with holder.transaction():
                holder.execute("LOCK TABLE task IN ACCESS EXCLUSIVE MODE")
                for scene in machines.all:
                    # A connection has the machine look for what is owed to its client.
                    with finance(machines, scene, told) as client:
                        with pytest.raises(CallError) as refused:
                            client.call("task.get", {"task_id": "nobody-1"})
                        assert refused.value.code == "STORE_BUSY"
                        scene.wait(client, lambda _, s=scene: refused_reads(s) > 1, "its own too")
            assert all_run(machines)
        with finance(machines, one, told) as client, one.operator() as operator:
            wait_served(one, operator, both)
            for bank in ("pingan", "cmb"):
                pay(machines, client, bank, f"{bank}-1")
            one.wait(operator, lambda _: len(names(told)) == 2, "both told")
            tasks = settle(machines, one, operator)
        assert all_run(machines)
        assert violations(one, tasks) == []


def test_a_bank_is_taken_when_its_tasks_can_be_read_at_last(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    with Machines(directory, postgres, [["pingan"]]) as machines:
        machines.start_banks()
        one = machines.first
        one.start_daemon()
        with one.operator() as operator:
            wait_served(one, operator, {"FEP-01": {"pingan"}})
            operator.call("link.drain", {"bank": "pingan"})
            pay(machines, operator, "pingan", "pingan-1")
        assert one.stop_daemon() == 0
        with machines.server.connect(machines.database) as holder, holder.transaction():
            holder.execute("LOCK TABLE task IN ACCESS EXCLUSIVE MODE")
            one.start_daemon(log_name="again.log")
            log = one.directory / "again.log"
            until_told(machines, log, "place.taken")
            until_told(machines, log, "store.read_refused")
        with one.operator() as operator:
            operator.call("link.resume", {"bank": "pingan"})
            tasks = settle(machines, one, operator)
        assert all_run(machines)
        assert [task["state"] for task in tasks] == ["succeeded"]
        assert violations(one, tasks) == []


def until_told(machines: Machines, log: Path, event: str) -> None:
    """Wait until a machine's log tells an event, while all run."""
    end = time.monotonic() + SETTLE_SECONDS_MAX
    while event not in log.read_text("utf-8"):
        assert all_run(machines)
        assert time.monotonic() < end, f"{event} was not told"


def all_run(machines: Machines) -> bool:
    """Say whether no machine has ended."""
    daemons = [scene.daemon for scene in machines.all]
    return all(daemon is not None and daemon.poll() is None for daemon in daemons)


def refused_reads(scene: Scene) -> int:
    """Return how many reads the database has refused to a machine."""
    return (scene.directory / "fep.log").read_text("utf-8").count("store.read_refused")


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
        machines.heal_banks()
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
    with Machines(directory, postgres, BOTH) as machines:
        machines.start_banks()
        machines.start()
        acknowledged: set[str] = set()
        for kill in range(KILLS):
            with ExitStack() as clients:
                both = [clients.enter_context(scene.operator()) for scene in machines.all]
                machines.first.wait(
                    both[0],
                    lambda c: len(served(c)) == 2 and all_served(c),
                    "both alive",
                    SETTLE_SECONDS_MAX,
                )
                victim = machines.all["bank:pingan" in served(both[0])["FEP-02"]]
                acknowledged |= keep_busy(machines, both, kill, rng)
                victim.kill_daemon()
            if kill % 2 == 0:
                # Else it is back before its lease has run out, and takes up what was its own.
                survivor = machines.all[victim is machines.first]
                with survivor.operator() as client:
                    survivor.wait(
                        client, lambda c: len(served(c)) == 1 and all_served(c), "taken over", 60.0
                    )
            victim.start_daemon()
        scene = machines.first
        with scene.operator() as client:
            tasks = settle(machines, scene, client)
        assert acknowledged <= {task["task_id"] for task in tasks}
        assert violations(scene, tasks) == []
        assert_sound(scene)


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
        for _ in range(STANDSTILLS):
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
                for _ in range(20):
                    number += 1
                    pay(machines, both[1 - holder], "pingan", f"pingan-{number}")
                    acknowledged.add(f"pingan-{number}")
                    if number % 20 == 7:
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
                # The database cuts off who stands still in the middle of a group: that one ends.
                awake.wait(
                    both[1 - holder],
                    lambda c, process=process, number=f"FEP-0{holder + 1}": (
                        process.poll() is not None or number in served(c)
                    ),
                    "the frozen one is back, or has ended",
                )
            assert has_noticed(frozen)
            if process.poll() is not None:
                frozen.start_daemon()
        with one.operator() as client:
            tasks = settle(machines, one, client)
        assert {task["task_id"] for task in tasks} == acknowledged
        assert violations(one, tasks) == []
        assert_sound(one)


def has_noticed(scene: Scene) -> bool:
    """Say whether a machine knows that it holds its banks no more, or is no more itself."""
    told = (scene.directory / "fep.log").read_text("utf-8")
    return "place.lost" in told or "store.failed" in told


def test_a_machine_that_was_taken_over_unawares_sends_nothing(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """By its own clock its lease is good: the commit before the first byte finds that it is not."""
    with Machines(directory, postgres, [["pingan", "cmb"]], lease_s=5.0) as machines:
        machines.start_banks()
        machines.start()
        scene = machines.first
        log = scene.directory / "fep.log"
        with scene.operator() as client:
            wait_served(scene, client, {"FEP-01": {"pingan", "cmb"}})
            machines.take_away("pingan")
            pay(machines, client, "pingan", "pingan-1")
            scene.wait(client, lambda _: "place.lost" in log.read_text("utf-8"), "it knows")
            assert machines.states() == {"queued": 1}
            book = scene.open_book()
            assert book.payments() == []
            book.close()
            machines.free("pingan")
            settle(machines, scene, client)
            # And while the answer is waited for: it is not written down, and found out anew.
            with held_up(scene, "pingan"):
                pay(machines, client, "pingan", "pingan-2")
                scene.wait(client, lambda _: machines.states()["sending"] == 1, "at the bank")
                machines.take_away("pingan")
            scene.wait(client, lambda _: log.read_text("utf-8").count("place.lost") > 1, "again")
            assert machines.states() == {"succeeded": 1, "sending": 1}
            machines.free("pingan")
            tasks = settle(machines, scene, client)
            chain = causes(client, tasks)
        assert violations(scene, tasks) == []
        assert [task["state"] for task in tasks] == ["succeeded", "succeeded"]
        assert chain["outcome_lost: the process ended while it was being sent"] == 1
        assert_sound(scene)


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
                both = [clients.enter_context(patient(scene)) for scene in machines.all]
                machines.first.wait(both[0], all_served, "served", SETTLE_SECONDS_MAX)
                killer = threading.Timer(rng.uniform(0.1, 0.5), server.kill)
                killer.start()
                acknowledged |= until_lost(machines, both, kill)
                killer.join()
            for scene in machines.all:
                assert scene.daemon is not None
                assert scene.daemon.wait(60.0) == 1, "fail-stop"
                assert "store.failed" in (scene.directory / "fep.log").read_text("utf-8")
            if kill == 0:
                # They are started again before it is there, and go on by themselves when it is.
                machines.start()
                for scene in machines.all:
                    assert_refused_meanwhile(scene)
                # One that waits obeys.
                assert machines.first.stop_daemon() == 0
                machines.first.start_daemon()
                server.start()
            else:
                server.start()
                caught.update(machines.states().keys() & set(OPEN))
                machines.start()
        machines.heal_banks()
        scene = machines.first
        with patient(scene) as client:
            tasks = settle(machines, scene, client)
            alarms = client.call("alarm.list", {"all": True})["alarms"]
        down = [one["state"] for one in alarms if one["kind"] == "STORE_DOWN"]
        assert down == ["cleared"] * 2, "the one that was stopped could not store its own"
        assert acknowledged <= {task["task_id"] for task in tasks}
        assert violations(scene, tasks) == []
        assert_sound(scene)
        assert sum(caught.values()) > 0, "something was under way when it died"


def patient(scene: Scene) -> BlockingClient:
    """Return an operator's client of a machine that may not be open yet."""
    return BlockingClient(f"unix:{scene.socket}", "operator", retry=True, connect_s=30.0)


def assert_refused_meanwhile(scene: Scene) -> None:
    """A machine without its database says so to everybody, and raises the alarm."""
    with pytest.raises(DisconnectedError, match="nothing is taken or sent: the store can't be"):
        BlockingClient(f"unix:{scene.socket}", "operator", retry=False).__enter__()
    log = (scene.directory / "fep.log").read_text("utf-8")
    assert '"kind":"STORE_DOWN"' in log.replace(" ", "")
    assert "store.unreachable" in log


def until_lost(machines: Machines, clients: list[BlockingClient], kill: int) -> set[str]:
    """Submit to both machines until one does not answer; return what was acknowledged."""
    acknowledged: set[str] = set()
    for number in count():
        bank = ("pingan", "cmb")[number % 2]
        task_id = f"{bank}-{kill}-{number}"
        try:
            pay(machines, clients[number % 2], bank, task_id, answer_s=LOST_SECONDS)
        except DisconnectedError:
            break
        except CallError as error:
            if error.code != "SHUTTING_DOWN":
                raise
        else:
            acknowledged.add(task_id)
    return acknowledged


def test_whether_a_commit_was_stored_is_found_out_when_its_answer_is_lost(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """The machine ends, sends nothing, and its next process reads what is so."""
    with (
        Cutter(postgres) as cutter,
        Machines(directory, postgres, [["pingan", "cmb"]]) as machines,
    ):
        scene = machines.first
        assert scene.store is not None
        url = machines.url.replace(f":{postgres.port}/", f":{cutter.port}/")
        scene.store = dict(scene.store) | {"url": url}
        machines.start_banks()
        # In the commit that takes the task; then in the one that is before the first byte.
        for mark, stored in ((b"pingan-lost", "queued"), (b"send_begun", "sending")):
            scene.start_daemon()
            with scene.operator() as client:
                wait_served(scene, client, {"FEP-01": {"pingan", "cmb"}})
                settle(machines, scene, client)
                cutter.arm(mark)
                name = f"pingan-lost-{stored}"
                with suppress(DisconnectedError, CallError):
                    pay(machines, client, "pingan", name)
                assert cutter.cut.wait(30.0)
                assert scene.daemon is not None
                assert scene.daemon.wait(30.0) == 1, "fail-stop"
            assert machines.states()[stored] == 1
        book = scene.open_book()
        assert book.times_booked(client_ref(ENTERPRISE, TaskId("pingan-lost-sending"))) == 0
        book.close()
        scene.start_daemon()
        with scene.operator() as client:
            # Submitted again, as by a client that had no answer: it is known.
            for stored in ("queued", "sending"):
                assert pay(machines, client, "pingan", f"pingan-lost-{stored}")["known"] is True
            tasks = settle(machines, scene, client)
            chain = causes(client, tasks)
        assert violations(scene, tasks) == []
        ended = {task["task_id"]: task["state"] for task in tasks}
        assert ended == {"pingan-lost-queued": "succeeded", "pingan-lost-sending": "rejected"}
        assert chain["outcome_lost: the process ended while it was being sent"] == 1


def test_after_a_database_was_put_back_no_machine_sends_until_a_person_looked(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    with Machines(directory, postgres, APART) as machines:
        machines.start_banks()
        machines.start()
        for scene in machines.all:
            assert scene.stop_daemon() == 0
        assert main(["restore", "--config", str(machines.first.config)]) == 0
        machines.start()
        with ExitStack() as clients:
            here, there = [clients.enter_context(scene.operator()) for scene in machines.all]
            wait_served(machines.first, here, {"FEP-01": {"pingan"}, "FEP-02": {"cmb"}})
            for bank in ("pingan", "cmb"):
                pay(machines, here, bank, f"{bank}-held")
            for client in (here, there):
                held = client.call("restore.show")
                assert held["held"] is True
                assert {one["task_id"] for one in held["payments"]} == {"pingan-held", "cmb-held"}
                kinds = {one["kind"] for one in client.call("alarm.list")["alarms"]}
                assert "STORE_RESTORED" in kinds
            given = {"evidence": "statements of both banks were compared"}
            assert machines.states().keys().isdisjoint({"sending", "succeeded"})
            assert there.call("restore.release", given) == {"released": 2}
            tasks = settle(machines, machines.first, here)
            for client in (here, there):
                assert client.call("restore.show")["held"] is False
        assert violations(machines.first, tasks) == []
        assert [task["state"] for task in tasks] == ["succeeded", "succeeded"]


def test_a_machine_that_was_frozen_while_its_database_was_put_back_sends_nothing(
    directory: Path,
    postgres: PostgresServer,  # noqa: F811
) -> None:
    """It goes on with what it knew before, and would win its banks anew."""
    with Machines(directory, postgres, [["pingan", "cmb"]], lease_s=4.0) as machines:
        machines.start_banks()
        machines.start()
        scene = machines.first
        with scene.operator() as client:
            wait_served(scene, client, {"FEP-01": {"pingan", "cmb"}})
            scene.hosts["pingan"].stop()
            pay(machines, client, "pingan", "pingan-waits")
        process = scene.daemon
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        with machines.server.connect(machines.database) as store:
            alive = "SELECT count(*) FROM machine WHERE until_at > clock_timestamp()"
            limit = time.monotonic() + ANSWER_SECONDS_MAX
            while store.execute(alive).fetchall() != [(0,)]:
                assert time.monotonic() < limit
                time.sleep(0.1)
        scene.hosts["pingan"].start()
        assert main(["restore", "--config", str(scene.config)]) == 0
        process.send_signal(signal.SIGCONT)
        assert process.wait(SETTLE_SECONDS_MAX) != 0
        assert machines.states() == {"queued": 1}
        assert has_noticed(scene)
        scene.start_daemon()
        with scene.operator() as client:
            wait_served(scene, client, {"FEP-01": {"pingan", "cmb"}})
            (held,) = client.call("restore.show")["payments"]
            assert held["task_id"] == "pingan-waits"
        assert machines.states() == {"queued": 1}
