"""Slots over a real pcscd with virtual cards."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from smartcard import scard

from fep.adapters.card import SignAlgorithm
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock
from fep.domain.errors import KeySlotError
from fep.keys.config import CardBinding, SlotConfig
from fep.keys.errors import (
    AlgorithmUnavailableError,
    KeyBusyError,
    PinBlockedError,
    PinRefusedError,
    PinRequiredError,
    SignOutcomeUnknownError,
    SlotGoneError,
    WrongCardError,
)
from fep.keys.pin import Bar
from fep.keys.service import KeyRing, Slot, run_monitor
from fep.keys.signatures import parse_certificate, verifies
from fep.keys.state import SlotState
from fep.keys.store import load_bar, save_bar
from fep.sandbox.ukey.rig import UkeyCard, UkeyRig
from tests.keys.bench import PIN, FixedClock, card_slot, pin_file, ring_of, until
from tests.rig import SPARE

ROOT = Path(__file__).parents[2]
EVENT_SECONDS_MAX = 0.1
RSA = SignAlgorithm.RSA_SHA256
WRONG_PIN = "999999"
_INS_VERIFY = 0x20
_INS_GET_RESPONSE = 0xC0
_INS_SIGN = 0x87


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """What was logged in the test."""
    with structlog.testing.capture_logs() as captured:
        yield captured


def is_signature_of(
    card: UkeyCard, data: bytes, signature: bytes, key: str = "9C", algorithm: SignAlgorithm = RSA
) -> bool:
    """Judge by the certificate that the card shows."""
    certificate = parse_certificate(card.certificate_der(key))
    return verifies(certificate.public_key, algorithm, data, signature)


def pins_sent(card: UkeyCard) -> int:
    """Return how many VERIFY commands with a PIN the card got since its last reset.

    The trace shows a command with a secret by its header, and an empty one whole: both as eight
    digits; an empty one is answered with the counter or 9000 and never spends a try.
    """
    return sum(
        1
        for entry in card.trace()
        if entry["command"].startswith("00200080") and entry["response"] != "63c3"
    )


async def in_background(slot: Slot, nursery: trio.Nursery, data: bytes = b"x") -> list[Any]:
    """Ask for a signature; the list gets the signature or the error."""
    box: list[Any] = []

    async def ask() -> None:
        try:
            box.append(await slot.sign(RSA, data))
        except KeySlotError as error:
            box.append(error)

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return box


@pytest.mark.req("FEP-03", "FEP-08", "FEP-28")
async def test_pulling_and_inserting_shows_at_once(
    fresh_ukeys: UkeyRig, tmp_path: Path, logs: list[Any]
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        assert is_signature_of(card, b"a", await slot.sign(RSA, b"a"))
        assert slot.snapshot().state is SlotState.READY
        assert slot.certificate == card.certificate_der("9C")
        assert slot.snapshot().guid == card.guid
        await until(lambda: slot.view.settled)
        for generation in range(2, 5):
            card.pull()
            assert await until(lambda: slot.state is SlotState.EMPTY) < EVENT_SECONDS_MAX
            assert bench.kinds(slot.name) == {AlarmKind.KEY_MISSING}
            assert card.guid in bench.cause(AlarmKind.KEY_MISSING, slot.name)
            assert not slot.is_open
            # Not beside the assertion above: the type checker would hold both for one moment.
            assert vars(slot)["_identified"] is None
            with pytest.raises(SlotGoneError):
                await slot.sign(RSA, b"b")
            card.insert()
            await bench.state(SlotState.READY)
            assert slot.generation == generation
            assert bench.kinds(slot.name) == set()
            assert is_signature_of(card, b"c", await slot.sign(RSA, b"c"))
    assert slot.snapshot().state is SlotState.NO_SERVICE
    assert PIN not in repr(logs)


async def test_a_key_that_is_in_at_the_start_is_never_reported_missing(
    fresh_ukeys: UkeyRig, tmp_path: Path, logs: list[Any]
) -> None:
    async with ring_of(
        tmp_path, [card_slot(card, pin_file(tmp_path)) for card in fresh_ukeys.cards[:4]]
    ) as bench:
        await bench.ready()
        await until(lambda: bench.slot().view.settled)
    assert [entry for entry in logs if entry["event"] == "alarm.raised"] == []


@pytest.mark.req("FEP-27", "FEP-28")
async def test_a_key_that_is_absent_at_the_start_is_reported_within_two_seconds(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path))
    card.pull()
    async with ring_of(tmp_path, [config]) as bench:
        assert await until(lambda: bench.has(AlarmKind.KEY_MISSING, "ukey-0")) < 2.0
        assert bench.slot().state is SlotState.EMPTY


@pytest.mark.req("FEP-04", "FEP-05")
async def test_a_card_of_no_slot_is_named_and_the_key_stays_missing(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card, spare = fresh_ukeys.cards[0], fresh_ukeys.cards[SPARE]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        await until(lambda: slot.view.settled)
        reader = card.reader_name
        card.swap(spare)
        await until(lambda: bench.has(AlarmKind.KEY_WRONG, reader))
        cause = bench.cause(AlarmKind.KEY_WRONG, reader)
        assert reader in cause
        assert spare.guid in cause
        assert slot.state is SlotState.EMPTY
        assert bench.kinds(slot.name) == {AlarmKind.KEY_MISSING}
        assert pins_sent(spare) == 0
        spare.swap(card)
        await bench.state(SlotState.READY)
        assert not bench.has(AlarmKind.KEY_WRONG, reader)


async def test_a_card_with_another_certificate_does_not_sign(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card, other = fresh_ukeys.cards[0], fresh_ukeys.cards[1]
    config = SlotConfig(
        name=card_slot(card, None).name,
        backend="pcsc",
        card=CardBinding(card.guid, other.certificate_sha256("9C")),
        pin=pin_file(tmp_path),
    )
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.WRONG_CARD)
        cause = bench.cause(AlarmKind.KEY_WRONG, slot.name)
        assert card.guid in cause
        assert card.reader_name in cause
        with pytest.raises(WrongCardError):
            await slot.sign(RSA, b"x")
        assert pins_sent(card) == 0


async def test_a_re_personalised_card_waits_for_an_operator(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        card.pull()
        await bench.state(SlotState.EMPTY)
        card.set_guid("00" * 15 + "01")
        card.insert()
        await bench.state(SlotState.WRONG_CARD)
        assert "re-personalised" in bench.cause(AlarmKind.KEY_WRONG, slot.name)


async def test_a_key_made_anew_under_the_old_certificate_signs_nothing_that_leaves(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    command = [str(Path(sys.executable).parent / "ykman"), "--reader", card.reader_name]
    command += ["piv", "keys", "generate", "-a", "RSA2048", "-P", PIN]
    command += ["-m", "0102030405060708" * 3, "9c", "-"]
    await trio.run_process(
        command,
        env=os.environ | fresh_ukeys.environment,
        capture_stdout=True,
        capture_stderr=True,
    )
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        with pytest.raises(WrongCardError):
            await slot.sign(RSA, b"x")
        assert slot.state is SlotState.WRONG_CARD
        assert bench.kinds(slot.name) == {AlarmKind.KEY_WRONG}


@pytest.mark.req("FEP-04")
async def test_two_cards_that_change_places_go_on_as_themselves(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    cards = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    async with ring_of(tmp_path, [card_slot(card, pin) for card in cards]) as bench:
        await bench.ready()
        for round_number in range(2, 12):
            cards[0].swap(cards[1])
            for index, card in enumerate(cards):
                slot = bench.slot(index)
                await until(
                    lambda slot=slot, card=card: (
                        slot.reader == card.reader_name  # type: ignore[misc]
                        and slot.state is SlotState.READY
                    )
                )
                data = b"%d" % index
                assert is_signature_of(card, data, await slot.sign(RSA, data))
                assert slot.generation == round_number


async def test_no_fast_re_insertion_is_lost(fresh_ukeys: UkeyRig, tmp_path: Path) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        for generation in range(2, 32):
            card.swap()
            await until(lambda g=generation: slot.generation == g and slot.is_open)  # type: ignore[misc]
            assert is_signature_of(card, b"x", await slot.sign(RSA, b"x"))


async def test_a_refused_pin_is_sent_once_until_its_file_changes(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path, WRONG_PIN))
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_PIN}
        assert card.pin_tries_left == 2
        with pytest.raises(PinRequiredError):
            await slot.sign(RSA, b"x")
        card.swap()
        await until(lambda: slot.generation == 2 and slot.state is SlotState.PIN_REQUIRED)
        assert "refused this PIN before" in slot.detail
    async with ring_of(tmp_path, [config]) as bench:
        await bench.state(SlotState.PIN_REQUIRED)
        assert card.pin_tries_left == 2
        pin_file(tmp_path, PIN)
        slot = await bench.state(SlotState.READY)
        assert bench.kinds(slot.name) == set()
    assert card.pin_tries_left == 3


async def test_no_pin_is_sent_with_one_try_left_but_an_operator_may(
    fresh_ukeys: UkeyRig, tmp_path: Path, logs: list[Any]
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, None)]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        for tries in (2, 1):
            with pytest.raises(PinRefusedError):
                await slot.unlock(WRONG_PIN)
            assert card.pin_tries_left == tries
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_PIN}
        assert "1 try left" in slot.detail
        assert card.pin_tries_left == 1
        await slot.unlock(PIN)
        assert slot.is_open
        assert card.pin_tries_left == 3
        assert is_signature_of(card, b"x", await slot.sign(RSA, b"x"))
        # The PIN that the card took is used again for the same card.
        card.swap()
        await until(lambda: slot.generation == 2 and slot.is_open)
        with pytest.raises(SlotGoneError):
            await slot.unlock(PIN)
    assert PIN not in repr(logs)
    assert WRONG_PIN not in repr(logs)


async def test_the_last_wrong_pin_blocks_and_a_blocked_card_gets_none(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, None)]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        for error in (PinRefusedError, PinRefusedError, PinBlockedError, PinBlockedError):
            with pytest.raises(error):
                await slot.unlock(WRONG_PIN)
        assert slot.state is SlotState.PIN_BLOCKED
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.PIN_BLOCKED)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_BLOCKED}
        with pytest.raises(PinBlockedError):
            await slot.sign(RSA, b"x")
        with pytest.raises(PinBlockedError):
            await slot.unlock(PIN)
        # Unblocked outside and inserted again.
        await trio.to_thread.run_sync(fresh_ukeys.reset)
        await bench.state(SlotState.READY)
        assert bench.kinds(slot.name) == set()


@pytest.mark.parametrize(("tries_before", "sent"), [(3, True), (4, False)])
async def test_an_attempt_without_an_answer_is_judged_by_the_counter(
    fresh_ukeys: UkeyRig, tmp_path: Path, tries_before: int, *, sent: bool
) -> None:
    # The daemon died between the attempt and its answer: three tries are left on the card.
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path))
    status = (tmp_path / "pin").stat()
    source = f"file:{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
    left_behind = Bar(source, tries_before)
    async with ring_of(tmp_path, []) as bench:
        now = SystemClock().now()
        await bench.store.write(lambda c: save_bar(c, config.name, left_behind, now))
    async with ring_of(tmp_path, [config]) as bench:
        await bench.state(SlotState.READY if sent else SlotState.PIN_REQUIRED)
        bar = await bench.store.read(lambda c: load_bar(c, config.name))
        assert bar == (None if sent else Bar(source, None))


@pytest.mark.parametrize(
    ("instruction", "errors"),
    [
        (_INS_VERIFY, (SlotGoneError, SignOutcomeUnknownError)),
        (_INS_SIGN, (SignOutcomeUnknownError,)),
        (_INS_GET_RESPONSE, (SignOutcomeUnknownError,)),
    ],
)
async def test_a_card_pulled_inside_a_command_ends_its_request(
    fresh_ukeys: UkeyRig,
    tmp_path: Path,
    instruction: int,
    errors: tuple[type[KeySlotError], ...],
    logs: list[Any],
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        await until(lambda: slot.view.settled)
        card.die_on_ins(instruction)
        with pytest.raises(errors):
            await slot.sign(RSA, b"x")
        assert not slot.is_open
        assert await until(lambda: slot.state is SlotState.EMPTY) < EVENT_SECONDS_MAX
        card.insert()
        await bench.state(SlotState.READY)
        assert is_signature_of(card, b"y", await slot.sign(RSA, b"y"))
    # A pull is a missing key, never a fault.
    raised = {entry["kind"] for entry in logs if entry["event"] == "alarm.raised"}
    assert AlarmKind.KEY_FAULT.value not in raised


@pytest.mark.req("FEP-28")
async def test_a_pull_inside_a_signature_fails_all_that_wait_at_once(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        card.slow(5)
        boxes = [await in_background(slot, bench.nursery) for _ in range(4)]
        await until(lambda: card.is_signing)
        card.pull()
        assert await until(lambda: all(boxes)) < EVENT_SECONDS_MAX
        assert [type(box[0]) for box in boxes] == [SignOutcomeUnknownError] + 3 * [SlotGoneError]


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_restart_of_pcscd_is_survived(
    fresh_ukeys: UkeyRig, tmp_path: Path, how: str
) -> None:
    cards = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    async with ring_of(tmp_path, [card_slot(card, pin) for card in cards]) as bench:
        await bench.ready()
        for _ in range(2):
            end = fresh_ukeys.kill_pcscd if how == "kill" else fresh_ukeys.stop_pcscd
            await trio.to_thread.run_sync(end)
            for index in range(2):
                slot = await bench.state(SlotState.NO_SERVICE, index)
                with pytest.raises(SlotGoneError):
                    await slot.sign(RSA, b"x")
            assert bench.has(AlarmKind.KEY_SERVICE_DOWN, "pcscd")
            await trio.to_thread.run_sync(fresh_ukeys.start_pcscd)
            await bench.ready()
            assert not bench.has(AlarmKind.KEY_SERVICE_DOWN, "pcscd")
            assert is_signature_of(cards[1], b"x", await bench.slot(1).sign(RSA, b"x"))


async def test_pcscd_killed_inside_a_signature(fresh_ukeys: UkeyRig, tmp_path: Path) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        card.slow(1)
        box = await in_background(slot, bench.nursery)
        await until(lambda: card.is_signing)
        await trio.to_thread.run_sync(fresh_ukeys.kill_pcscd)
        await until(lambda: box)
        assert isinstance(box[0], SignOutcomeUnknownError)
        await bench.state(SlotState.NO_SERVICE)
        card.slow(0)
        await trio.to_thread.run_sync(fresh_ukeys.start_pcscd)
        await bench.state(SlotState.READY)
        assert is_signature_of(card, b"x", await slot.sign(RSA, b"x"))


async def test_a_daemon_started_before_pcscd_waits_for_it(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path))
    await trio.to_thread.run_sync(fresh_ukeys.stop_pcscd)
    async with ring_of(tmp_path, [config]) as bench:
        assert bench.has(AlarmKind.KEY_SERVICE_DOWN, "pcscd")
        assert bench.slot().state is SlotState.NO_SERVICE
        await trio.to_thread.run_sync(fresh_ukeys.start_pcscd)
        await bench.state(SlotState.READY)


async def test_a_slow_card_is_stuck_until_its_call_returns(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    slow, quick = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    configs = [card_slot(slow, pin, deadline_s=0.3), card_slot(quick, pin)]
    async with ring_of(tmp_path, configs) as bench:
        await bench.ready()
        slot = bench.slot(0)
        slow.slow(0.8)
        waiting = [await in_background(slot, bench.nursery) for _ in range(2)]
        await bench.state(SlotState.STUCK)
        await until(lambda: all(waiting))
        assert [type(box[0]) for box in waiting] == [SignOutcomeUnknownError, SlotGoneError]
        assert bench.kinds(slot.name) == {AlarmKind.KEY_FAULT}
        with pytest.raises(SlotGoneError):
            await slot.sign(RSA, b"x")
        before = trio.current_time()
        assert is_signature_of(quick, b"q", await bench.slot(1).sign(RSA, b"q"))
        assert trio.current_time() - before < 0.5
        assert slot.state is SlotState.STUCK
        slow.slow(0)
        await bench.state(SlotState.READY)
        assert bench.kinds(slot.name) == set()
        assert is_signature_of(slow, b"s", await slot.sign(RSA, b"s"))


async def test_a_stuck_card_does_not_hold_up_the_end(
    fresh_ukeys: UkeyRig, tmp_path: Path, logs: list[Any]
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path), deadline_s=0.1)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        card.slow(3.5)
        box = await in_background(slot, bench.nursery)
        await bench.state(SlotState.STUCK)
        ended = trio.current_time()
    assert trio.current_time() - ended < 3.0
    assert isinstance(box[0], SignOutcomeUnknownError)
    assert any(entry["event"] == "key.call_abandoned" for entry in logs)
    # The thread that was left to itself lets go of the card when it is back.
    async with ring_of(tmp_path, [config]) as bench:
        card.slow(0)
        await bench.state(SlotState.READY)


async def test_the_end_in_the_middle_of_signatures_answers_everybody(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    boxes: list[list[Any]] = []
    async with trio.open_nursery() as callers:
        async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
            slot = await bench.state(SlotState.READY)
            card.slow(0.1)
            boxes += [await in_background(slot, callers) for _ in range(5)]
            await until(lambda: slot.state is SlotState.BUSY)
            ended = trio.current_time()
        assert trio.current_time() - ended < 1.0
        await until(lambda: all(boxes))
    assert all(isinstance(box[0], KeySlotError) for box in boxes)


async def test_a_mute_card_is_reported_and_delays_nobody(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    mute, other = fresh_ukeys.cards[:2]
    pin = pin_file(tmp_path)
    async with ring_of(tmp_path, [card_slot(mute, pin), card_slot(other, pin)]) as bench:
        await bench.ready()
        mute.mute()
        mute.swap()
        slot = await bench.state(SlotState.MUTE)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_FAULT}
        for _ in range(3):
            other.pull()
            waited = await until(lambda: bench.slot(1).state is SlotState.EMPTY)
            assert waited < EVENT_SECONDS_MAX
            other.insert()
            await bench.state(SlotState.READY, 1)
        mute.mute(False)
        mute.swap()
        await bench.state(SlotState.READY)
        assert bench.kinds(slot.name) == set()


async def test_a_card_held_by_another_program_is_tried_until_it_is_free(
    fresh_ukeys: UkeyRig, tmp_path: Path, logs: list[Any]
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path))
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
    result, held, _ = scard.SCardConnect(
        context, card.reader_name, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T1
    )
    assert result == scard.SCARD_S_SUCCESS
    async with ring_of(tmp_path, [config]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_MISSING, "ukey-0"))
        scard.SCardDisconnect(held, scard.SCARD_RESET_CARD)
        scard.SCardReleaseContext(context)
        await bench.state(SlotState.READY)
    raised = {entry["kind"] for entry in logs if entry["event"] == "alarm.raised"}
    assert AlarmKind.KEY_FAULT.value not in raised


async def test_a_verified_pin_does_not_outlive_the_slot(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path), "9A")
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        await slot.sign(RSA, b"x")
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
    _, held, _ = scard.SCardConnect(
        context, card.reader_name, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T1
    )
    select = bytes.fromhex("00A4040005A000000308")
    for command, word in ((select, [0x90, 0x00]), (bytes.fromhex("00200080"), [0x63, 0xC3])):
        _, answer = scard.SCardTransmit(held, scard.SCARD_PCI_T1, list(command))
        assert answer[-2:] == word
    scard.SCardDisconnect(held, scard.SCARD_LEAVE_CARD)
    scard.SCardReleaseContext(context)


@pytest.mark.parametrize(
    ("reference", "algorithm"),
    [("9A", RSA), ("9D", SignAlgorithm.ECDSA_SHA256), ("9E", SignAlgorithm.ECDSA_SHA256)],
)
async def test_every_key_of_the_card_signs(
    fresh_ukeys: UkeyRig, tmp_path: Path, reference: Any, algorithm: SignAlgorithm
) -> None:
    card = fresh_ukeys.cards[0]
    pin = None if reference == "9E" else pin_file(tmp_path)
    async with ring_of(tmp_path, [card_slot(card, pin, reference)]) as bench:
        slot = await bench.state(SlotState.READY)
        for data in (b"", b"two" * 1000):
            signature = await slot.sign(algorithm, data)
            assert is_signature_of(card, data, signature, reference, algorithm)
        other = next(a for a in SignAlgorithm if a is not algorithm)
        for unfit in (other, SignAlgorithm.SM2_SM3):
            with pytest.raises(AlgorithmUnavailableError):
                await slot.sign(unfit, b"x")
        assert slot.is_open


async def test_a_certificate_near_its_end_is_reported_and_still_signs(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    not_after = parse_certificate(card.certificate_der()).not_after
    config = card_slot(card, pin_file(tmp_path))
    for days, expected in ((31, False), (29, True), (-1, True), (31, False)):
        clock = FixedClock(not_after - dt.timedelta(days=days))
        async with ring_of(tmp_path, [config], clock) as bench:
            slot = await bench.state(SlotState.READY)
            assert slot.snapshot().not_after == not_after
            assert bench.has(AlarmKind.KEY_EXPIRING, slot.name) == expected
            await slot.sign(RSA, b"x")


async def test_a_request_whose_turn_comes_too_late_is_not_signed(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path), deadline_s=0.6)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        card.slow(0.2)  # twice a signature, so the third's turn comes after 0.8 s
        boxes = [await in_background(slot, bench.nursery) for _ in range(3)]
        await until(lambda: all(boxes))
        assert [type(box[0]) for box in boxes] == [bytes, bytes, KeyBusyError]
        assert slot.is_open
        assert slot.generation == 1


async def test_cancelled_callers_cost_nothing_that_lasts(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    async with ring_of(tmp_path, [card_slot(card, pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        for number in range(100):
            with trio.move_on_after(number / 50_000):
                await slot.sign(RSA, b"x")
        assert is_signature_of(card, b"y", await slot.sign(RSA, b"y"))
        assert slot.is_open
        assert slot.generation == 1


async def test_the_monitor_started_and_cancelled_two_hundred_times(
    fresh_ukeys: UkeyRig, tmp_path: Path
) -> None:
    card = fresh_ukeys.cards[0]
    config = card_slot(card, pin_file(tmp_path))
    async with ring_of(tmp_path, []) as empty:
        ring = KeyRing([config], empty.alarms, SystemClock(), empty.store)
        worst = 0.0
        for number in range(200):
            async with trio.open_nursery() as nursery:
                await nursery.start(_monitor, ring)
                # Later and later inside the start of the watch.
                with trio.move_on_after(number / 100_000):
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
                cancelled = trio.current_time()
            worst = max(worst, trio.current_time() - cancelled)
        assert worst < 1.0
    async with ring_of(tmp_path, [config]) as bench:
        await bench.state(SlotState.READY)


async def test_sixteen_slots_at_once(tmp_path: Path) -> None:
    # A process of its own: libpcsclite talks to one pcscd for the life of a process.
    result = await trio.run_process(
        [sys.executable, str(Path(__file__).with_name("sixteen.py")), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode()


async def _monitor(ring: KeyRing, *, task_status: trio.TaskStatus[None]) -> None:
    await run_monitor(ring, task_status=task_status)
