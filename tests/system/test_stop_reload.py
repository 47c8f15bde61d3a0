"""The daemon stopped and reloaded in the middle of its work, by the signals that systemd sends."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fep.client import BlockingClient, CallError
from fep.daemon.config import load
from fep.sandbox.scene import BANKS, STOP_SECONDS_MAX, Scene, log_lines
from tests.system.work import causes, every_task, held_up, open_tasks, transfer, violations

BANK, OTHER = "pingan", "cmb"
WORKERS = 4
LOST = "outcome_lost"


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    """Two banks that may be silent for a while before anybody takes them for dead."""
    with Scene(directory, banks=BANKS[:2], accounts_per_bank=4) as scene:
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


def pay(scene: Scene, client: BlockingClient, bank: str, name: str) -> None:
    """Submit a payment between two accounts of a bank."""
    payer, payee = [one for one in scene.accounts if one.bank == bank][:2]
    client.submit(name, bank, "transfer", transfer(scene, payer, payee, "1.00"))


def fill(scene: Scene, client: BlockingClient, bank: str, waiting: int = 0) -> None:
    """Submit as many payments as are sent at once, and some that wait behind them."""
    for number in range(WORKERS + waiting):
        pay(scene, client, bank, f"{bank}-{number}")

    def all_sent(client: BlockingClient) -> bool:
        open_states = client.call("status")["queue"]["banks"][bank]["open"]
        return bool(open_states.get("sending") == WORKERS)

    scene.wait(client, all_sent, "every worker's payment sent")


def signalled(scene: Scene, number: signal.Signals) -> None:
    """Send a signal to the daemon."""
    assert scene.daemon is not None
    scene.daemon.send_signal(number)


def logged(scene: Scene, event: str) -> list[dict[str, Any]]:
    """Return the daemon's log records of an event."""
    with (scene.directory / "fep.log").open(encoding="utf-8") as file:
        return [record for record in log_lines(file) if record["event"] == event]


def test_who_is_ended_by_the_watchdog_says_where_it_stood(scene: Scene) -> None:
    """The signal is the one that the unit file names."""
    with scene.operator() as client:
        pay(scene, client, BANK, "ONE")
    daemon = scene.daemon
    assert daemon is not None
    signalled(scene, signal.SIGABRT)
    assert daemon.wait(STOP_SECONDS_MAX) == -signal.SIGABRT
    said = (scene.directory / "fep.log").read_text("utf-8")
    stack = said[said.index("Fatal Python error: Aborted") :]
    assert "in run" in stack
    assert "fep/daemon/main.py" in stack
    scene.start_daemon()
    tasks, _ = finish(scene)
    assert [task["state"] for task in tasks] == ["succeeded"]


def finish(scene: Scene) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Wait for the end of all tasks, check the book, and return the tasks and their causes."""
    with scene.operator() as client:
        scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
        tasks = every_task(client)
        chain = causes(client, tasks)
    assert violations(scene, tasks) == []
    return tasks, chain


# -- stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        [signal.SIGINT],
        [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
    ],
    ids=["term", "int", "impatient"],
)
@pytest.mark.slow
def test_a_stop_lets_what_is_at_the_bank_come_home(
    scene: Scene, signals: list[signal.Signals]
) -> None:
    daemon = scene.daemon
    assert daemon is not None
    with scene.operator() as client:
        with held_up(scene, BANK):
            fill(scene, client, BANK, waiting=2)
            for number in signals:
                signalled(scene, number)
                scene.wait(client, lambda _: logged(scene, "daemon.stopping"), "the stop begun")
            # Nothing new is taken, and what waits here is not sent any more.
            with pytest.raises(CallError) as refused:
                pay(scene, client, OTHER, "TOO-LATE")
            assert refused.value.code == "SHUTTING_DOWN"
            assert daemon.poll() is None
        assert daemon.wait(STOP_SECONDS_MAX) == 0
    assert len(logged(scene, "daemon.stopped")) == 1
    book = scene.open_book()
    assert len(book.payments()) == WORKERS
    book.close()
    scene.start_daemon()
    with scene.operator() as client:
        states = {task["task_id"]: task["state"] for task in every_task(client)}
        assert [states[f"{BANK}-{number}"] for number in range(WORKERS)] == ["succeeded"] * WORKERS
    tasks, chain = finish(scene)
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert len(tasks) == WORKERS + 2
    # Closed by the answers that came home, and not by asking anew.
    assert not [cause for cause in chain if cause.startswith(LOST)]


@pytest.mark.slow
def test_a_second_daemon_on_one_state_directory_is_refused(scene: Scene) -> None:
    config = tomllib.loads(scene.config.read_text("utf-8"))
    config["control"] |= {"socket": "second.sock", "tcp": []}
    second = scene.directory / "second.toml"
    second.write_text(tomli_w.dumps(config), "utf-8")
    for file in (scene.config, second):
        done = subprocess.run(
            [sys.executable, "-m", "fep.daemon.main", "run", "--config", str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=STOP_SECONDS_MAX,
        )
        assert done.returncode == 1
        state = scene.directory / "state"
        assert done.stderr == (
            f"fep: {state}: another daemon runs on this state directory; stop it first\n"
        )
    assert not (scene.directory / "second.sock").exists()
    with scene.operator() as client:
        pay(scene, client, BANK, "FIRST-LIVES")
    tasks, _ = finish(scene)
    assert [task["state"] for task in tasks] == ["succeeded"]


# -- reload ---------------------------------------------------------------------------------------


def change(scene: Scene, bank: str, **values: Any) -> None:
    """Write other values of a bank into the configuration file."""
    config = tomllib.loads(scene.config.read_text("utf-8"))
    (table,) = [one for one in config["bank"] if one["name"] == bank]
    table |= values
    scene.write_config(config)


def link(client: BlockingClient, bank: str) -> dict[str, Any]:
    """Return a bank's connection."""
    links: list[dict[str, Any]] = client.call("link.list")["links"]
    (found,) = [one for one in links if one["bank"] == bank]
    return found


def configuration(client: BlockingClient) -> str:
    """Return the digest of the configuration in force."""
    return str(client.call("status")["configuration"])


@pytest.mark.req("FEP-19", "FEP-20")
@pytest.mark.slow
def test_a_changed_bank_does_not_disturb_the_others_work(scene: Scene) -> None:
    with scene.operator() as client, held_up(scene, BANK):
        fill(scene, client, BANK, waiting=2)
        before = link(client, BANK)
        in_force = configuration(client)
        change(scene, OTHER, workers=1)
        signalled(scene, signal.SIGHUP)
        scene.wait(client, lambda c: configuration(c) != in_force, "the new configuration")
        # The changed bank works; the other one's requests never noticed.
        pay(scene, client, OTHER, "AFTER")

        def after(client: BlockingClient) -> bool:
            found = client.call("task.get", {"task_id": "AFTER"})
            return bool(found["state"] == "succeeded")

        scene.wait(client, after, "a payment at the changed bank")
        assert link(client, BANK) == before
        assert before["in_flight"] == WORKERS
    tasks, chain = finish(scene)
    (record,) = logged(scene, "config.applied")
    assert (record["who"], record["changed"], record["removed"]) == ("SIGHUP", [OTHER], [])
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert not [cause for cause in chain if cause.startswith(LOST)]


@pytest.mark.req("FEP-20")
@pytest.mark.slow
def test_a_changed_banks_own_requests_come_home_first(scene: Scene) -> None:
    with scene.operator() as client:
        in_force = configuration(client)
        with held_up(scene, BANK):
            fill(scene, client, BANK, waiting=2)
            change(scene, BANK, workers=2)
            signalled(scene, signal.SIGHUP)

            def drained(client: BlockingClient) -> bool:
                return bool(link(client, BANK)["drained"])

            scene.wait(client, drained, "nothing new sent")
            pay(scene, client, BANK, "MEANWHILE")
        scene.wait(client, lambda c: configuration(c) != in_force, "the new configuration")
    tasks, chain = finish(scene)
    assert len(tasks) == WORKERS + 3
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert not [cause for cause in chain if cause.startswith(LOST)]


@pytest.mark.req("FEP-20", "FEP-25")
@pytest.mark.slow
def test_each_payment_knows_to_which_system_it_was_sent(scene: Scene) -> None:
    """By that "no record" of another one proves nothing."""
    wanted = []
    with scene.operator() as client:
        for number, numbered in enumerate(("1", "2")):
            change(scene, BANK, direct_connect_number=numbered)
            (bank,) = [one for one in load(scene.config).banks if one.name == BANK]
            wanted.append((bank.system(shared=False),))
            before = configuration(client)
            signalled(scene, signal.SIGHUP)
            scene.wait(client, lambda c, before=before: configuration(c) != before, "the reload")
            pay(scene, client, BANK, f"PAY-{number}")
            scene.wait(client, lambda c: open_tasks(c) == 0, "the payment")
    with closing(sqlite3.connect(scene.directory / "state" / "fep.sqlite")) as store:
        assert store.execute("select sent_to from task order by seq").fetchall() == wanted
    assert wanted[0] != wanted[1]


@pytest.mark.req("FEP-20")
@pytest.mark.slow
def test_a_reload_of_a_faulty_file_changes_nothing_and_is_told(scene: Scene) -> None:
    good = scene.config.read_text("utf-8")
    with scene.operator() as client:
        before = configuration(client), client.call("config.show"), link(client, OTHER)
        with held_up(scene, BANK):
            fill(scene, client, BANK)
            change(scene, OTHER, port=70_000, workers=0)
            signalled(scene, signal.SIGHUP)
            scene.wait(client, lambda _: logged(scene, "config.refused"), "the refusal")
            pay(scene, client, OTHER, "AFTER")
        scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
        now = configuration(client), client.call("config.show"), link(client, OTHER)
        assert now[:2] == before[:2]
        assert (now[2]["since"], now[2]["state"]) == (before[2]["since"], "ready")
        (record,) = logged(scene, "config.refused")
        assert (record["who"], record["faults"], record["level"]) == ("SIGHUP", 2, "error")
        told = (scene.directory / "fep.log").read_text("utf-8")
        for key in ("port", "workers"):
            assert f"{scene.config}:" in told
            assert key in told
        # The right file again is taken as if nothing had been.
        scene.config.write_text(good.replace("workers = 4", "workers = 3"), "utf-8")
        signalled(scene, signal.SIGHUP)
        scene.wait(client, lambda c: configuration(c) != before[0], "the right configuration")
    tasks, chain = finish(scene)
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert not [cause for cause in chain if cause.startswith(LOST)]


@pytest.mark.req("FEP-20")
@pytest.mark.slow
def test_a_bank_taken_out_takes_nothing_and_its_tasks_wait_for_its_return(scene: Scene) -> None:
    whole = scene.config.read_text("utf-8")
    config = tomllib.loads(whole)
    for key, of in (("bank", "name"), ("account", "bank")):
        config[key] = [one for one in config[key] if one[of] != OTHER]
    left = {one["number"] for one in config["account"]}
    (pool,) = config["pool"]
    pool["member"] = [one for one in pool["member"] if one["account"] in left]
    with scene.operator() as client:
        client.call("link.drain", {"bank": OTHER})
        pay(scene, client, OTHER, "WAITS")
        in_force = configuration(client)
        scene.write_config(config)
        signalled(scene, signal.SIGHUP)
        scene.wait(client, lambda c: configuration(c) != in_force, "the configuration without it")
        with pytest.raises(CallError) as refused:
            pay(scene, client, OTHER, "REFUSED")
        assert refused.value.code == "UNKNOWN_BANK"
        pay(scene, client, BANK, "GOES")
        scene.wait(client, lambda c: open_tasks(c) == 1, "the other bank's payment")
        assert client.call("task.get", {"task_id": "WAITS"})["state"] == "queued"
        (alarm,) = client.call("alarm.list")["alarms"]
        assert (alarm["kind"], alarm["subject"]) == ("LANE_FAILED", OTHER)
        scene.config.write_text(whole, "utf-8")
        signalled(scene, signal.SIGHUP)
        scene.wait(client, lambda c: configuration(c) == in_force, "the whole configuration")
        # What an operator stopped stays stopped until an operator says otherwise.
        assert link(client, OTHER)["drained"] is True
        change(scene, OTHER, workers=3)
        signalled(scene, signal.SIGHUP)
        scene.wait(client, lambda c: configuration(c) != in_force, "a change of it")
        assert link(client, OTHER)["drained"] is True
        assert client.call("task.get", {"task_id": "WAITS"})["state"] == "queued"
        client.call("link.resume", {"bank": OTHER})
        scene.wait(client, lambda c: open_tasks(c) == 0, "the payment that waited")
        assert client.call("alarm.list")["alarms"] == []
    tasks, _ = finish(scene)
    assert {task["task_id"]: task["state"] for task in tasks} == {
        "WAITS": "succeeded",
        "GOES": "succeeded",
    }
