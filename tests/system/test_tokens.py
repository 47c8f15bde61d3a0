"""The whole daemon with keys behind PKCS#11 libraries: SoftHSM's tokens, and cards through OpenSC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fep.domain.money import Cny
from fep.sandbox.scene import BANKS, PIN, Scene, write_secret
from fep.sandbox.ukey.rig import UkeyRig
from tests.keys.softhsm import LIBRARY, Hsm, HsmToken
from tests.keys.test_service_opensc import MODULE
from tests.system.test_keys import (
    SLOW_SECONDS,
    alarms,
    begin_round,
    check_swept_once,
    received,
    states_at,
    wait_alarm,
    wait_round,
    wait_silent,
)
from tests.system.work import open_tasks, transfer, violations


def private_key(path: Path) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def token_of(scene: Scene, hsm: Hsm, bank: str, key: rsa.RSAPrivateKey | None = None) -> HsmToken:
    """Put a bank's key and certificate into a token; with another key, under that certificate."""
    pem, crt = (scene.directory / f"ukey-{bank}.{suffix}" for suffix in ("pem", "crt"))
    certificate = x509.load_pem_x509_certificate(crt.read_bytes())
    der = certificate.public_bytes(serialization.Encoding.DER)
    right = private_key(pem)
    hsm.make_empty(bank)
    hsm.add(bank, "01", key or right, der)
    # The daemon has the key from its token or not at all.
    pem.unlink()
    return HsmToken(bank, hsm.serial(bank), right, der)


def slot_of(scene: Scene, token: HsmToken) -> dict[str, Any]:
    """Return the configuration of a slot bound to a token."""
    pin = write_secret(scene.directory / f"{token.label}.pin", PIN)
    return {
        "name": f"ukey-{token.label}",
        "backend": "pkcs11",
        "module": str(LIBRARY),
        "token": {"serial": token.serial, "certificate_sha256": token.fingerprint},
        "pin": {"file": pin.name},
    }


def start(scene: Scene, slots: list[dict[str, Any]]) -> None:
    config = scene.configuration()
    config["slot"] = slots
    scene.write_config(config)
    scene.start_daemon()


@pytest.fixture
def tokens(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Scene, Hsm]]:
    """Two banks that demand signatures, and SoftHSM with no token yet; every account has much."""
    hsm = Hsm(directory / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.configuration))
    with Scene(directory, banks=BANKS[:2], accounts_per_bank=4) as scene:
        scene.thresholds = dict.fromkeys(scene.thresholds, Cny(1_000_00))
        scene.start_hosts(log_level="debug")
        yield scene, hsm


@pytest.mark.req("FEP-03", "FEP-04", "FEP-09", "POOL-14")
@pytest.mark.slow
def test_a_round_signed_by_tokens(tokens: tuple[Scene, Hsm]) -> None:
    scene, hsm = tokens
    start(scene, [slot_of(scene, token_of(scene, hsm, plan.name)) for plan in scene.banks])
    with scene.operator() as client:
        scene.wait_ready(client)
        slots = client.call("slot.list")["slots"]
        assert {slot["backend"] for slot in slots} == {"pkcs11"}
        assert all(slot["reader"].startswith("SoftHSM") and slot["guid"] for slot in slots)
        round_id = client.call("pool.run", {"pool": "main"})["round_id"]
        tasks = wait_round(scene, client, round_id)
        check_swept_once(scene, client, round_id)
        assert alarms(client) == set()
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert scene.stop_daemon() == 0


@pytest.mark.req("FEP-09", "FEP-28")
@pytest.mark.slow
def test_a_token_with_another_key_signs_nothing_that_leaves(tokens: tuple[Scene, Hsm]) -> None:
    scene, hsm = tokens
    other = rsa.generate_private_key(65537, 2048)
    wrong, right = scene.banks[1].name, scene.banks[0].name
    start(
        scene,
        [
            slot_of(scene, token_of(scene, hsm, right)),
            slot_of(scene, token_of(scene, hsm, wrong, other)),
        ],
    )
    with scene.operator() as client:
        mine = [one for one in scene.accounts if one.bank == wrong]
        others = [one for one in scene.accounts if one.bank == right]
        client.submit("WAITS", wrong, "transfer", transfer(scene, mine[0], mine[1], "7.00"))
        wait_alarm(scene, client, "KEY_WRONG", f"ukey-{wrong}")
        client.submit("GOES", right, "transfer", transfer(scene, others[0], others[1], "7.00"))
        scene.wait(
            client, lambda c: c.call("task.get", {"task_id": "GOES"})["state"] == "succeeded", "it"
        )
        wait_silent(scene, client, wrong)
        assert client.call("task.get", {"task_id": "WAITS"})["state"] == "queued"
        assert client.call("status")["slots"][f"ukey-{wrong}"] == "wrong_card"
    book = scene.open_book()
    assert [payment.payer for payment in book.payments()] == [others[0].number]
    book.close()


@pytest.fixture
def carded(rig: UkeyRig, directory: Path) -> Iterator[Scene]:
    """Three banks whose keys are cards behind a real pcscd, reached through OpenSC's library."""
    rig.start_pcscd()
    rig.reset()
    with Scene(directory, banks=BANKS[:3], accounts_per_bank=6, rig=rig) as scene:
        scene.thresholds = dict.fromkeys(scene.thresholds, Cny(1_000_00))
        scene.start_hosts(log_level="debug")
        config = scene.configuration()
        for slot in config["slot"]:
            card = slot.pop("card")
            slot |= {
                "backend": "pkcs11",
                "module": str(MODULE),
                "token": {
                    "serial": card["guid"][16:],
                    "certificate_sha256": card["certificate_sha256"],
                },
            }
        scene.write_config(config)
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene


@pytest.mark.req("FEP-04", "FEP-08", "FEP-09", "FEP-27", "FEP-28", "POOL-14", "POOL-18")
@pytest.mark.slow
def test_a_token_pulled_in_mid_round_and_put_back(carded: Scene) -> None:
    scene, bank = carded, "cmb"
    assert scene.rig is not None
    card = scene.rig.cards[1]
    card.slow(SLOW_SECONDS)
    with scene.operator() as client:
        round_id = begin_round(scene, client, bank)
        card.pull()
        wait_alarm(scene, client, "KEY_MISSING", "ukey-cmb")
        before = wait_silent(scene, client, bank)

        def others_done(client: Any) -> bool:
            items = client.call("pool.round", {"round_id": round_id})["items"]
            return all(item["state"] == "swept" for item in items if item["bank"] != bank)

        scene.wait(client, others_done, "the other banks' accounts swept")
        assert sum(state != "swept" for state in states_at(client, round_id, bank)) >= 2
        assert received(scene, bank) == before
        assert client.call("status")["slots"]["ukey-cmb"] == "empty"
        assert open_tasks(client) > 0
        card.slow(0)
        card.insert()
        tasks = wait_round(scene, client, round_id)
        assert alarms(client) == set()
        check_swept_once(scene, client, round_id)
    assert violations(scene, tasks) == []
    assert {task["state"] for task in tasks} == {"succeeded"}
