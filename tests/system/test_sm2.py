"""The whole daemon with SM2 keys (国密) in its slots; the banks demand such signatures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fep.client.blocking import BlockingClient
from fep.domain.money import Cny
from fep.sandbox.scene import BANKS, Scene
from tests.keys.files import sm2_pair, write_private
from tests.system.work import transfer

GOOD, OTHER_ID = BANKS[0].name, BANKS[2].name


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    """Two banks; the second slot signs as somebody whom its bank does not know."""
    for number, bank in enumerate((GOOD, OTHER_ID)):
        key, certificate = sm2_pair(number)
        write_private(directory / f"ukey-{bank}.pem", key)
        (directory / f"ukey-{bank}.crt").write_bytes(certificate)
    with Scene(directory, banks=(BANKS[0], BANKS[2]), accounts_per_bank=2) as made:
        made.thresholds = dict.fromkeys(made.thresholds, Cny(1_000_00))
        made.card_changes["signing"] |= {"algorithm": "sm2_sm3"}
        made.start_hosts(log_level="debug")
        config = made.configuration()
        config["slot"][1]["sm2_user_id"] = "N009999999000000"
        made.write_config(config)
        made.start_daemon()
        yield made


def _pays(scene: Scene, client: BlockingClient, bank: str) -> str:
    """Submit one payment at a bank and return the state it ends in."""
    payer, payee = (one for one in scene.accounts if one.bank == bank)
    client.submit(f"PAY-{bank}", bank, "transfer", transfer(scene, payer, payee, "7.00"))

    def is_over(client: BlockingClient) -> bool:
        state = client.call("task.get", {"task_id": f"PAY-{bank}"})["state"]
        return state in {"succeeded", "rejected"}

    scene.wait(client, is_over, f"the end of the payment at {bank}")
    return str(client.call("task.get", {"task_id": f"PAY-{bank}"})["state"])


@pytest.mark.req("FEP-03", "FEP-09")
@pytest.mark.slow
def test_a_payment_signed_by_sm2_is_booked_and_one_signed_as_another_is_not(scene: Scene) -> None:
    with scene.operator() as client:
        scene.wait_ready(client)
        ends = {slot["name"]: slot["not_after"] for slot in client.call("slot.list")["slots"]}
        assert all(ends.values())
        assert _pays(scene, client, GOOD) == "succeeded"
        assert _pays(scene, client, OTHER_ID) == "rejected"
    book = scene.open_book()
    assert {payment.bank for payment in book.payments()} == {GOOD}
    book.close()
    assert scene.stop_daemon() == 0
