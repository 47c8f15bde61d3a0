"""Keys pulled, mixed up and lost with pcscd in the middle of a round: real pcscd, virtual cards."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fep.client import BlockingClient
from fep.sandbox.scene import Scene, log_lines
from tests.system.work import every_task, open_tasks, transfer, violations

ALARM_SECONDS_MAX = 2.0
ROUND_SECONDS_MAX = 60.0
SLOW_SECONDS = 0.05
"""Of each of the two commands of a signature: a round of six accounts then takes over a second."""


def round_of(client: BlockingClient, round_id: str) -> dict[str, Any]:
    """Return the round as it stands."""
    found: dict[str, Any] = client.call("pool.round", {"round_id": round_id})
    return found


def states_at(client: BlockingClient, round_id: str, bank: str) -> list[str]:
    """Return the states of one bank's accounts in the round."""
    items = round_of(client, round_id)["items"]
    return [item["state"] for item in items if item["bank"] == bank]


def begin_round(scene: Scene, client: BlockingClient, bank: str) -> str:
    """Start a round and return its id once the bank is in the middle of its part."""
    round_id: str = client.call("pool.run", {"pool": "main"})["round_id"]

    def midway(client: BlockingClient) -> bool:
        states = states_at(client, round_id, bank)
        return 0 < states.count("swept") < len(states) - 2

    scene.wait(client, midway, f"{bank} in mid-round")
    return round_id


def alarms(client: BlockingClient) -> set[tuple[str, str]]:
    """Return kind and subject of the alarms in force."""
    return {(one["kind"], one["subject"]) for one in client.call("alarm.list")["alarms"]}


def wait_alarm(scene: Scene, client: BlockingClient, kind: str, subject: str) -> None:
    """Wait for an alarm no longer than it may take."""
    begun = time.monotonic()
    scene.wait(client, lambda c: (kind, subject) in alarms(c), kind, ALARM_SECONDS_MAX)
    assert time.monotonic() - begun < ALARM_SECONDS_MAX


def wait_silent(scene: Scene, client: BlockingClient, bank: str) -> int:
    """Wait until a bank without its key has no session, and return what its host had received."""

    def silent(client: BlockingClient) -> bool:
        (link,) = [one for one in client.call("link.list")["links"] if one["bank"] == bank]
        return (link["state"], link["in_flight"]) == ("no_key", 0)

    scene.wait(client, silent, f"no session with {bank}")
    return received(scene, bank)


def received(scene: Scene, bank: str) -> int:
    """Return how often a bank's host received something, by its own log."""
    with scene.hosts[bank].log_file.open(encoding="utf-8") as file:
        return sum(record["event"] == "host.bytes_taken" for record in log_lines(file))


def wait_round(scene: Scene, client: BlockingClient, round_id: str) -> list[dict[str, Any]]:
    """Wait until the round has completed by itself, and return all tasks."""

    def finished(client: BlockingClient) -> bool:
        return bool(round_of(client, round_id)["state"] == "finished")

    scene.wait(client, finished, "the round finished", ROUND_SECONDS_MAX)
    scene.wait(client, lambda c: open_tasks(c) == 0, "every task closed")
    return every_task(client)


def check_swept_once(scene: Scene, client: BlockingClient, round_id: str) -> None:
    """Check that every account was swept down to its threshold, each by one payment."""
    found = round_of(client, round_id)
    assert found["states"] == {"swept": len(scene.accounts) - 1}
    book = scene.open_book()
    balances = {one.number: one.balance for one in book.accounts()}
    payments = book.payments()
    book.close()
    swept = [one for one in payments if one.payee == scene.target.number]
    assert len(swept) == len(scene.accounts) - 1
    assert len({one.payer for one in swept}) == len(swept)
    for one in scene.accounts:
        if one is not scene.target:
            assert balances[one.number] == scene.thresholds[one.number]


@pytest.mark.req("FEP-04", "FEP-08", "FEP-09", "FEP-27", "FEP-28", "POOL-14", "POOL-18")
@pytest.mark.slow
def test_a_key_pulled_in_mid_round_and_put_back(keyed: Scene) -> None:
    scene, bank = keyed, "cmb"
    assert scene.rig is not None
    card = scene.rig.cards[1]
    card.slow(SLOW_SECONDS)
    with scene.operator() as client:
        round_id = begin_round(scene, client, bank)
        card.pull()
        wait_alarm(scene, client, "KEY_MISSING", "ukey-cmb")
        before = wait_silent(scene, client, bank)

        def others_done(client: BlockingClient) -> bool:
            items = round_of(client, round_id)["items"]
            return all(item["state"] == "swept" for item in items if item["bank"] != bank)

        scene.wait(client, others_done, "the other banks' accounts swept")
        states = states_at(client, round_id, bank)
        assert 2 <= sum(state != "swept" for state in states) < len(states)
        assert set(states) <= {"asking", "planned", "sweeping", "swept"}
        assert received(scene, bank) == before
        status = client.call("status")
        assert status["slots"]["ukey-cmb"] == "empty"
        assert sum(status["queue"]["banks"][bank]["open"].values()) >= 2
        assert status["queue"]["banks"]["pingan"]["open"] == {}
        card.slow(0)
        card.insert()
        tasks = wait_round(scene, client, round_id)
        assert alarms(client) == set()
        check_swept_once(scene, client, round_id)
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}


@pytest.mark.req("FEP-09", "FEP-28")
@pytest.mark.slow
def test_the_wrong_card_is_reported_and_its_bank_stays_silent(keyed: Scene) -> None:
    scene, bank = keyed, "cmb"
    assert scene.rig is not None
    card, spare = scene.rig.cards[1], scene.rig.cards[3]
    with scene.operator() as client:
        reader = card.reader_name
        card.swap(spare)
        wait_alarm(scene, client, "KEY_WRONG", reader)
        # A slot belongs to its card, not to a reader: to the bank its key is missing.
        wait_alarm(scene, client, "KEY_MISSING", "ukey-cmb")
        before = wait_silent(scene, client, bank)
        assert client.call("status")["slots"]["ukey-cmb"] == "empty"
        mine = [one for one in scene.accounts if one.bank == bank]
        other = [one for one in scene.accounts if one.bank == "pingan"]
        client.submit("WAITS", bank, "transfer", transfer(scene, mine[0], mine[1], "7.00"))
        # The daemon has had all the time it needs when ten payments at another bank are done.
        for number in range(10):
            body = transfer(scene, other[1], other[2], f"1.{number:02d}")
            client.submit(f"GOES-{number}", "pingan", "transfer", body)
        scene.wait(client, lambda c: open_tasks(c) == 1, "the other bank's payments")
        assert client.call("task.get", {"task_id": "WAITS"})["state"] == "queued"
        assert received(scene, bank) == before
        assert spare.pin_tries_left == 3
        spare.swap(card)
        scene.wait(client, lambda c: open_tasks(c) == 0, "the waiting payment")
        assert received(scene, bank) > before
        assert alarms(client) == set()
        tasks = every_task(client)
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}


@pytest.mark.req("FEP-28")
@pytest.mark.slow
def test_pcscd_killed_in_mid_round_and_started_again(keyed: Scene) -> None:
    scene = keyed
    assert scene.rig is not None
    for card in scene.rig.cards[:3]:
        card.slow(SLOW_SECONDS)
    with scene.operator() as client:
        round_id = begin_round(scene, client, "cmb")
        scene.rig.kill_pcscd()
        wait_alarm(scene, client, "KEY_SERVICE_DOWN", "pcscd")
        counts = {bank: wait_silent(scene, client, bank) for bank in scene.hosts}
        assert set(client.call("status")["slots"].values()) == {"no_service"}
        assert open_tasks(client) > 0
        assert round_of(client, round_id)["state"] == "running"
        assert {bank: received(scene, bank) for bank in scene.hosts} == counts
        scene.rig.start_pcscd()
        for card in scene.rig.cards[:3]:
            card.slow(0)
        tasks = wait_round(scene, client, round_id)
        assert alarms(client) == set()
        check_swept_once(scene, client, round_id)
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}
