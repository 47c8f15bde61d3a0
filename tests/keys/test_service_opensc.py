"""Slots over PKCS#11 whose tokens come and go: OpenSC's library, a real pcscd, virtual cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fep.adapters.card import SignAlgorithm
from fep.alarms.state import AlarmKind
from fep.domain.errors import KeySlotError
from fep.domain.ids import SlotName
from fep.keys.config import KeyReference, SecretRef, SlotConfig, TokenBinding
from fep.keys.cryptoki import CKF_USER_PIN_FINAL_TRY
from fep.keys.errors import (
    PinBlockedError,
    PinRefusedError,
    SignOutcomeUnknownError,
    SlotGoneError,
)
from fep.keys.presence import POLL_SECONDS
from fep.keys.service import Slot
from fep.keys.signatures import parse_certificate, verifies
from fep.keys.state import SlotState
from fep.sandbox.ukey.rig import UkeyCard, UkeyRig
from tests.keys.bench import PIN, Bench, pin_file, ring_of, until
from tests.keys.softhsm import Faults, faulty
from tests.rig import SPARE

MODULE = next(Path("/usr/lib").glob("**/opensc-pkcs11.so"), Path("opensc-pkcs11.so"))
RSA, ECDSA = SignAlgorithm.RSA_SHA256, SignAlgorithm.ECDSA_SHA256
WRONG_PIN = "999999"
ALARM_SECONDS_MAX = 2.0


def token_slot(
    card: UkeyCard,
    pin: SecretRef | None,
    reference: KeyReference = "9A",
    module: Path = MODULE,
) -> SlotConfig:
    """Return a slot bound to a card of the rig as OpenSC shows it: half of the GUID is its serial."""
    return SlotConfig(
        name=SlotName(f"ukey-{card.number}"),
        backend="pkcs11",
        pin=pin,
        module=module,
        token=TokenBinding(card.certificate_sha256(reference), card.guid[16:]),
    )


async def signs(slot: Slot, card: UkeyCard, key: str = "9A") -> None:
    certificate = parse_certificate(card.certificate_der(key))
    algorithm = certificate.algorithm
    signature = await slot.sign(algorithm, b"data")
    assert verifies(certificate.public_key, algorithm, b"data", signature)


async def in_background(bench: Bench, slot: Slot) -> list[Any]:
    box: list[Any] = []

    async def ask() -> None:
        try:
            box.append(await slot.sign(RSA, b"x"))
        except KeySlotError as error:
            box.append(error)

    bench.nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return box


@pytest.mark.parametrize("reference", ["9A", "9C", "9D"])
async def test_every_key_of_the_token_signs(
    fresh_ukeys: UkeyRig, tmp_path: Path, reference: KeyReference
) -> None:
    card = fresh_ukeys.cards[0]
    config = token_slot(card, pin_file(tmp_path), reference)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        # 9C wants its PIN for each signature, and gets it.
        for _ in range(3):
            await signs(slot, card, reference)
        assert slot.snapshot().guid == card.guid[16:]
        assert card.reader_name in slot.reader
        assert bench.alarms.active() == []
    assert card.pin_tries_left == 3


@pytest.mark.req("FEP-03", "FEP-08", "FEP-28")
async def test_pulling_and_inserting_shows_within_two_polls(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [token_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        await until(lambda: slot.view.settled)
        for generation in range(2, 4):
            card.pull()
            await until(lambda: bench.has(AlarmKind.KEY_MISSING, slot.name), ALARM_SECONDS_MAX)
            cause = bench.cause(AlarmKind.KEY_MISSING, slot.name)
            assert card.guid[16:] in cause
            assert fresh_ukeys.cards[1].guid[16:] in cause
            assert slot.state is SlotState.EMPTY
            with pytest.raises(SlotGoneError):
                await slot.sign(RSA, b"x")
            card.insert()
            await bench.state(SlotState.READY)
            assert slot.generation == generation
            assert bench.alarms.active() == []
            await signs(slot, card)


async def test_a_pull_between_two_polls_costs_one_signature_that_did_not_leave(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [token_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        card.swap()
        with pytest.raises((SlotGoneError, SignOutcomeUnknownError)):
            await slot.sign(RSA, b"x")
        await bench.state(SlotState.READY)
        await signs(slot, card)
        assert card.pin_tries_left == 3


@pytest.mark.parametrize("reference", ["9A", "9C"])
async def test_pulled_inside_a_signature(
    fresh_ukeys: UkeyRig, tmp_path: Path, reference: KeyReference
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [token_slot(card, pin_file(tmp_path), reference)]) as bench:
        slot = await bench.state(SlotState.READY)
        card.slow(0.3)
        box = await in_background(bench, slot)
        await until(lambda: card.is_signing)
        card.pull()
        await until(lambda: box)
        assert isinstance(box[0], SignOutcomeUnknownError)
        await bench.state(SlotState.EMPTY)
        card.slow(0)
        card.insert()
        await bench.state(SlotState.READY)
        await signs(slot, card, reference)


async def test_another_card_in_its_reader_gets_no_pin(fresh_ukeys: UkeyRig, tmp_path: Path) -> None:
    card, spare = fresh_ukeys.cards[0], fresh_ukeys.cards[SPARE]
    async with ring_of(tmp_path, [token_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        await until(lambda: slot.view.settled)
        card.swap(spare)
        await until(lambda: bench.has(AlarmKind.KEY_MISSING, slot.name), ALARM_SECONDS_MAX)
        assert spare.guid[16:] in bench.cause(AlarmKind.KEY_MISSING, slot.name)
        # An empty VERIFY asks for the counter; whatever sent a PIN had another answer.
        asked = [one for one in spare.trace() if one["command"].startswith("00200080")]
        assert all(one["response"] == "63c3" for one in asked)
        spare.swap(card)
        await bench.state(SlotState.READY)
        await signs(slot, card)


async def test_two_cards_that_change_places_go_on_as_themselves(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    one, two = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    async with ring_of(tmp_path, [token_slot(one, pin), token_slot(two, pin)]) as bench:
        await bench.ready()
        one.swap(two)
        slots = bench.slot(0), bench.slot(1)
        await until(lambda: all(slot.generation == 2 for slot in slots))
        await bench.ready()
        await signs(slots[0], one)
        await signs(slots[1], two)
        assert two.reader_name in slots[1].reader


@pytest.mark.req("FEP-28")
async def test_pcscd_killed_and_started_again(fresh_ukeys: UkeyRig, tmp_path: Path) -> None:
    cards = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    async with ring_of(tmp_path, [token_slot(card, pin) for card in cards]) as bench:
        await bench.ready()
        slots = [bench.slot(0), bench.slot(1)]
        await trio.to_thread.run_sync(fresh_ukeys.kill_pcscd)
        await until(lambda: not any(slot.is_open for slot in slots))
        await until(lambda: all(bench.kinds(slot.name) for slot in slots), 2 * ALARM_SECONDS_MAX)
        await trio.to_thread.run_sync(fresh_ukeys.start_pcscd)
        await bench.ready()
        for slot, card in zip(slots, cards, strict=True):
            await signs(slot, card)
        await until(lambda: bench.alarms.active() == [])
    assert [card.pin_tries_left for card in cards] == [3, 3]


@pytest.mark.parametrize("reference", ["9A", "9C"])
async def test_a_wrong_pin_costs_one_try(
    fresh_ukeys: UkeyRig, tmp_path: Path, reference: KeyReference
) -> None:
    card = fresh_ukeys.cards[0]
    config = token_slot(card, pin_file(tmp_path, WRONG_PIN), reference)
    for _ in range(2):
        async with ring_of(tmp_path, [config]) as bench:
            slot = await bench.state(SlotState.PIN_REQUIRED)
            await trio.sleep(2 * POLL_SECONDS)
        assert card.pin_tries_left == 2
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        with pytest.raises(PinRefusedError, match="1 tries left"):
            await slot.unlock(WRONG_PIN)
        assert card.pin_tries_left == 1
    # Another file with the right PIN: it is not sent as the last try, which a person may do.
    pin_file(tmp_path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        assert "1 try left" in slot.detail
        await slot.unlock(PIN)
        await signs(slot, card, reference)
        assert card.pin_tries_left == 3


async def test_the_last_wrong_pin_blocks_and_a_blocked_token_gets_none(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [token_slot(card, None)]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        for _ in range(2):
            with pytest.raises(PinRefusedError):
                await slot.unlock(WRONG_PIN)
        with pytest.raises(PinBlockedError):
            await slot.unlock(WRONG_PIN)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_BLOCKED}
    async with ring_of(tmp_path, [token_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.PIN_BLOCKED)
        with pytest.raises(PinBlockedError):
            await slot.sign(RSA, b"x")


async def test_no_pin_is_sent_for_a_signature_as_the_last_try(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    faults = Faults(await trio.to_thread.run_sync(faulty, tmp_path, MODULE))
    config = token_slot(card, pin_file(tmp_path), "9C", faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        await signs(slot, card, "9C")
        sent = faults.calls("Login")
        faults.flags(CKF_USER_PIN_FINAL_TRY)
        with pytest.raises(SlotGoneError, match="none may be sent"):
            await slot.sign(RSA, b"x")
        await bench.state(SlotState.PIN_REQUIRED)
        assert "1 try left" in slot.detail
        assert faults.calls("Login") == sent


async def test_a_pin_changed_outside_is_refused_once_for_a_key_that_wants_it_each_time(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    faults = Faults(await trio.to_thread.run_sync(faulty, tmp_path, MODULE))
    config = token_slot(card, pin_file(tmp_path), "9C", faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        await signs(slot, card, "9C")
        change = ("pkcs11-tool", "--module", str(MODULE), "--token-label", card.common_name)
        await trio.run_process(
            [*change, "--change-pin", "--pin", PIN, "--new-pin", "654321"],
            capture_stdout=True,
            capture_stderr=True,
        )
        with pytest.raises(KeySlotError):
            await slot.sign(RSA, b"x")
        await bench.state(SlotState.PIN_REQUIRED)
        assert card.pin_tries_left == 2
        # The session with the signature that was begun, and with the old log-in, is over.
        assert faults.calls("OpenSession") == 2
        await slot.unlock("654321")
        await signs(slot, card, "9C")
