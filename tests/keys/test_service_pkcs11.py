"""Slots over PKCS#11: real tokens of SoftHSM, and SoftHSM behind a library that misbehaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fep.adapters.card import SignAlgorithm
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock
from fep.domain.errors import ConfigError, KeySlotError
from fep.domain.ids import SlotName
from fep.keys.blocking import GRACE_SECONDS
from fep.keys.config import ObjectRef
from fep.keys.cryptoki import (
    CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED,
    CKM_RSA_PKCS,
    CKM_SHA256_RSA_PKCS,
    CKU_USER,
    library_at,
)
from fep.keys.errors import (
    CKR_OK,
    CKR_PIN_INCORRECT,
    CKR_PIN_LOCKED,
    CKR_USER_ALREADY_LOGGED_IN,
    AlgorithmUnavailableError,
    PinBlockedError,
    PinRefusedError,
    PinRequiredError,
    SignOutcomeUnknownError,
    SlotGoneError,
    WrongCardError,
)
from fep.keys.presence import POLL_SECONDS
from fep.keys.service import KeyRing, Slot
from fep.keys.signatures import verifies
from fep.keys.state import SlotState
from tests.keys.bench import PIN, Bench, pin_file, ring_of, until
from tests.keys.files import PrivateKey, certificate_of, ec_key, rsa_key, sm2_pair
from tests.keys.softhsm import LIBRARY, NOW, Faults, Hsm, HsmToken

ROOT = Path(__file__).parents[2]
RSA, ECDSA = SignAlgorithm.RSA_SHA256, SignAlgorithm.ECDSA_SHA256
WRONG_PIN = "999999"
ALARM_SECONDS_MAX = 2.0

LIBC = next(Path("/usr/lib").glob("*/libc.so.6"))

GENERAL_ERROR = 0x05
DEVICE_ERROR = 0x30
DEVICE_REMOVED = 0x32
FUNCTION_FAILED = 0x06
PIN_EXPIRED = 0xA3
SESSION_HANDLE_INVALID = 0xB3
USER_NOT_LOGGED_IN = 0x101
CANT_LOCK = 0x0A


def algorithm_of(key: PrivateKey) -> SignAlgorithm:
    return RSA if isinstance(key, rsa.RSAPrivateKey) else ECDSA


async def signs(slot: Slot, key: PrivateKey, data: bytes = b"data") -> None:
    """Ask for a signature and judge it by the key."""
    algorithm = algorithm_of(key)
    assert verifies(key.public_key(), algorithm, data, await slot.sign(algorithm, data))


async def in_background(bench: Bench, slot: Slot) -> list[Any]:
    """Ask for a signature; the list gets the signature or the error."""
    box: list[Any] = []

    async def ask() -> None:
        try:
            box.append(await slot.sign(ECDSA, b"x"))
        except KeySlotError as error:
            box.append(error)

    bench.nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return box


# -- what a token signs ----------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "algorithm"), [(rsa_key(), RSA), (ec_key(), ECDSA)])
async def test_a_token_signs(
    hsm: Hsm, tmp_path: Path, key: PrivateKey, algorithm: SignAlgorithm
) -> None:
    token = hsm.make("one", key)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
        assert not bench.ring.needs_monitor
        slot = await bench.state(SlotState.READY)
        for data in (b"", b"data" * 1000):
            signature = await slot.sign(algorithm, data)
            assert verifies(key.public_key(), algorithm, data, signature)
        for unfit in {RSA, ECDSA, SignAlgorithm.SM2_SM3} - {algorithm}:
            with pytest.raises(AlgorithmUnavailableError):
                await slot.sign(unfit, b"data")
        assert slot.is_open
        assert slot.certificate == token.certificate
        shown = slot.snapshot()
        assert (shown.guid, shown.backend, shown.generation) == (token.serial, "pkcs11", 1)
        assert shown.certificate_sha256 == token.fingerprint
        assert shown.reader.startswith("SoftHSM slot")
        assert bench.alarms.active() == []
    assert slot.snapshot().state is SlotState.NO_SERVICE


async def test_a_token_that_hashes_by_itself_signs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hsm = Hsm(tmp_path / "hsm", "CKM_SHA256_RSA_PKCS")
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.configuration))
    token = hsm.make("one", rsa_key())
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        assert library_at(LIBRARY).can_sign(_slot_id(), CKM_SHA256_RSA_PKCS)
        assert not library_at(LIBRARY).can_sign(_slot_id(), CKM_RSA_PKCS)
        await signs(slot, rsa_key())


def _slot_id() -> int:
    return library_at(LIBRARY).slot_ids()[0]


async def test_a_token_without_a_mechanism_of_ours_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hsm = Hsm(tmp_path / "hsm", "CKM_SHA256_RSA_PKCS")
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.configuration))
    token = hsm.make("one", ec_key())
    async with ring_of(tmp_path, [token.slot(None)]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        with pytest.raises(SlotGoneError, match="no mechanism for ecdsa_sha256"):
            await slot.unlock(PIN)
        await until(lambda: bench.kinds(slot.name) == {AlarmKind.KEY_FAULT})
        assert "no mechanism" in bench.cause(AlarmKind.KEY_FAULT, slot.name)


async def test_an_sm2_certificate_is_a_fault_before_any_pin_is_sent(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    der = x509.load_pem_x509_certificate(sm2_pair()[1]).public_bytes(serialization.Encoding.DER)
    hsm.make_empty("one")
    hsm.add("one", "01", rsa_key(), der)
    token = HsmToken("one", hsm.serial("one"), rsa_key(), der)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(SlotState.FAULT)
        await until(lambda: bench.kinds(slot.name) == {AlarmKind.KEY_FAULT})
        assert "SM2 keys are for software slots" in bench.cause(AlarmKind.KEY_FAULT, slot.name)
        assert faults.calls("Login") == 0


async def test_of_several_keys_that_of_the_certificate_or_the_named_one_signs(
    hsm: Hsm, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    other = certificate_of(rsa_key(), NOW)
    hsm.add("one", "02", rsa_key(), other)
    pin = pin_file(tmp_path)
    for key, config in (
        (ec_key(), token.slot(pin)),
        (ec_key(), token.slot(pin, wanted=ObjectRef("01"))),
        (ec_key(), token.slot(pin, wanted=ObjectRef(label="key 01"))),
        (rsa_key(), attrs.evolve(token, certificate=other).slot(pin)),
    ):
        async with ring_of(tmp_path, [config]) as bench:
            await signs(await bench.state(SlotState.READY), key)
    for wanted, why in ((ObjectRef("03"), "no private key"), (ObjectRef(label="x"), "no private")):
        async with ring_of(tmp_path, [token.slot(pin, wanted=wanted)]) as bench:
            slot = await bench.state(SlotState.FAULT)
            assert why in slot.detail
    # The key of another certificate: whatever the configuration says, its signatures stay here.
    async with ring_of(tmp_path, [token.slot(pin, wanted=ObjectRef("02"))]) as bench:
        slot = bench.slot()
        await slot.wait_open()
        with pytest.raises(KeySlotError):
            await slot.sign(ECDSA, b"x")


# -- whose token it is -----------------------------------------------------------------------------


async def test_a_token_may_be_bound_by_its_label(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("一号", ec_key())
    hsm.make("二号", ec_key())
    config = token.slot(pin_file(tmp_path), serial="", label="一号")
    async with ring_of(tmp_path, [config]) as bench:
        await signs(await bench.state(SlotState.READY), ec_key())


async def test_two_tokens_of_one_label_are_not_chosen_from(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    directories = set((hsm.directory / "tokens").iterdir())
    hsm.make_empty("one")
    assert len(set((hsm.directory / "tokens").iterdir()) - directories) == 1
    config = token.slot(pin_file(tmp_path), serial="", label="one")
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.FAULT)
        assert "more than one token" in slot.detail
        assert token.serial in slot.detail
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), label="one")]) as bench:
        await signs(await bench.state(SlotState.READY), ec_key())


async def test_a_token_with_another_certificate_gets_no_pin(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path, certificate_sha256="ab" * 32)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.WRONG_CARD)
        cause = bench.cause(AlarmKind.KEY_WRONG, slot.name)
        assert token.serial in cause
        assert token.fingerprint in cause
        with pytest.raises(WrongCardError):
            await slot.sign(ECDSA, b"x")
        assert faults.calls("Login") == 0


async def test_a_token_without_a_certificate_is_the_wrong_one(hsm: Hsm, tmp_path: Path) -> None:
    hsm.make_empty("one")
    token = HsmToken("one", hsm.serial("one"), ec_key(), b"none")
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.WRONG_CARD)
        assert "has no certificate" in bench.cause(AlarmKind.KEY_WRONG, slot.name)


@pytest.mark.parametrize(("key", "other"), [(rsa_key(), rsa_key(1)), (ec_key(), ec_key(1))])
async def test_a_key_made_anew_under_the_old_certificate_signs_nothing_that_leaves(
    hsm: Hsm, tmp_path: Path, key: PrivateKey, other: PrivateKey
) -> None:
    token = hsm.make("one", key, certified=other)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        with pytest.raises(WrongCardError, match="not that of the bound"):
            await slot.sign(algorithm_of(key), b"x")
        assert slot.state is SlotState.WRONG_CARD
        assert bench.kinds(slot.name) == {AlarmKind.KEY_WRONG}


async def test_one_token_in_two_slots_is_refused(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path))
    twice = attrs.evolve(config, name=SlotName("two"))
    async with ring_of(tmp_path, []) as bench:
        with pytest.raises(ConfigError, match="same token"):
            KeyRing([config, twice], bench.alarms, SystemClock(), bench.store)
    # By two names of the library it is not seen before the token is there.
    link = tmp_path / "link.so"
    link.symlink_to(LIBRARY)
    async with ring_of(tmp_path, [config, attrs.evolve(twice, module=link)]) as bench:
        await until(lambda: {s.state for s in bench.ring.slots.values()} == {READY, FAULT})
        (faulty,) = [one for one in bench.ring.slots.values() if one.state is FAULT]
        assert "held by another slot" in faulty.detail


READY, FAULT = SlotState.READY, SlotState.FAULT

# -- its PIN ---------------------------------------------------------------------------------------


async def test_a_wrong_pin_is_sent_once_for_good(hsm: Hsm, faults: Faults, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path, WRONG_PIN), faults.path)
    for _ in range(3):
        async with ring_of(tmp_path, [config]) as bench:
            slot = await bench.state(SlotState.PIN_REQUIRED)
            assert bench.kinds(slot.name) == {AlarmKind.KEY_PIN}
            with pytest.raises(PinRequiredError):
                await slot.sign(ECDSA, b"x")
        assert faults.calls("Login") == 1
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        assert "refused this PIN before" in slot.detail
        # Another file does not help by itself: the token says that a wrong PIN was sent, and not
        # how many tries are left.
        pin_file(tmp_path, "123457")
        await until(lambda: "how many tries" in slot.detail)
        assert faults.calls("Login") == 1
        with pytest.raises(PinRefusedError):
            await slot.unlock("888888")
        await slot.unlock(PIN)
        assert slot.is_open
        await signs(slot, ec_key())
        assert faults.calls("Login") == 3


async def test_the_right_pin_by_hand_frees_the_file_that_holds_it_by_then(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path, WRONG_PIN), faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        pin_file(tmp_path)
        await slot.unlock(PIN)
    async with ring_of(tmp_path, [config]) as bench:
        await signs(await bench.state(SlotState.READY), ec_key())


async def test_without_a_pin_an_operator_unlocks(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    async with ring_of(tmp_path, [token.slot(None)]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        with pytest.raises(ValueError, match="4 to 64"):
            await slot.unlock("1")
        await slot.unlock(PIN)
        await signs(slot, ec_key())


@pytest.mark.parametrize(
    ("flags", "state", "why"),
    [
        (CKF_USER_PIN_COUNT_LOW, SlotState.PIN_REQUIRED, "how many tries are left"),
        (CKF_USER_PIN_FINAL_TRY, SlotState.PIN_REQUIRED, "1 try left"),
        (CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY, SlotState.PIN_REQUIRED, "1 try left"),
        (CKF_USER_PIN_LOCKED, SlotState.PIN_BLOCKED, "blocked"),
    ],
)
async def test_the_token_s_flags_are_obeyed(
    hsm: Hsm, faults: Faults, tmp_path: Path, flags: int, state: SlotState, why: str
) -> None:
    token = hsm.make("one", ec_key())
    faults.flags(flags)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(state)
        assert why in slot.detail
        await trio.sleep(3 * POLL_SECONDS)
        assert faults.calls("Login") == 0
        if state is SlotState.PIN_BLOCKED:
            with pytest.raises(PinBlockedError):
                await slot.unlock(PIN)
        else:
            # A person may, and knows.
            await slot.unlock(PIN)
            await signs(slot, ec_key())
            # The accepted PIN is sent again, but never as the last try.
            faults.answer("SignInit", USER_NOT_LOGGED_IN)
            with pytest.raises(SlotGoneError):
                await slot.sign(ECDSA, b"x")
            final = flags & CKF_USER_PIN_FINAL_TRY
            await bench.state(SlotState.PIN_REQUIRED if final else SlotState.READY)


async def test_a_locked_token_is_blocked(hsm: Hsm, faults: Faults, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    faults.answer("Login", CKR_PIN_LOCKED)
    config = token.slot(pin_file(tmp_path), faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_BLOCKED)
        assert bench.kinds(slot.name) == {AlarmKind.KEY_BLOCKED}
        with pytest.raises(PinBlockedError):
            await slot.sign(ECDSA, b"x")
        assert faults.calls("Login") == 1


@pytest.mark.parametrize("number", [GENERAL_ERROR, DEVICE_REMOVED, PIN_EXPIRED, 0x80000001])
async def test_a_pin_whose_answer_was_lost_is_not_sent_again(
    hsm: Hsm, faults: Faults, tmp_path: Path, number: int
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path)
    faults.answer("Login", number)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            async with ring_of(tmp_path, [config]) as bench:
                slot = await bench.state(SlotState.PIN_REQUIRED)
                assert "the answer to this PIN was lost" in slot.detail
                await trio.sleep(2 * POLL_SECONDS)
                assert faults.calls("Login") == 1
    assert [one["slot"] for one in logs if one["event"] == "key.pin_unanswered"] == ["one"]
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.PIN_REQUIRED)
        await slot.unlock(PIN)
        await signs(slot, ec_key())


async def test_a_log_in_that_outlived_its_session_is_ended(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path)
    faults.answer("Login", CKR_USER_ALREADY_LOGGED_IN)
    async with ring_of(tmp_path, [config]) as bench:
        await signs(await bench.state(SlotState.READY), ec_key())
        assert faults.calls("Login") == 2


async def test_a_log_in_from_before_the_slot_s_own_is_not_taken_over(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    library = library_at(faults.path)
    library.acquire()
    (slot_id,) = [
        one.slot_id for one in map(library.token, library.slot_ids()) if one and one.label
    ]
    assert library.login(library.open_session(slot_id), CKU_USER, PIN) == CKR_OK
    config = token.slot(pin_file(tmp_path, WRONG_PIN), faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        # Whoever logged in before: what counts is the PIN that this slot has.
        slot = await bench.state(SlotState.PIN_REQUIRED)
        assert "the card refused the PIN" in slot.detail
        await slot.unlock(PIN)
        await signs(slot, ec_key())
    library.release()
    assert library._users == 0


async def test_a_pin_changed_outside_is_refused_once(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        # SoftHSM itself goes on taking the PIN that was right when it started.
        faults.answer("Login", CKR_PIN_INCORRECT)
        faults.answer("SignInit", SESSION_HANDLE_INVALID)
        with pytest.raises(SlotGoneError):
            await slot.sign(ECDSA, b"x")
        await bench.state(SlotState.PIN_REQUIRED)
        assert "does not say how many" in slot.detail
        assert faults.calls("Login") == 2
        await slot.unlock(PIN)
        await signs(slot, ec_key())


# -- faults of a token and its library -------------------------------------------------------------


@pytest.mark.req("FEP-27", "FEP-28")
async def test_a_token_that_is_absent_at_the_start_is_reported_and_found_when_it_comes(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token, other = hsm.make("one", ec_key()), hsm.make("two", ec_key())
    stranger = attrs.evolve(token, serial="0123456789abcdef")
    async with ring_of(tmp_path, [stranger.slot(pin_file(tmp_path), faults.path)]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_MISSING, "one"), ALARM_SECONDS_MAX)
        cause = bench.cause(AlarmKind.KEY_MISSING, "one")
        for text in ("0123456789abcdef", token.serial, other.serial):
            assert text in cause
    faults.hide()
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_MISSING, "one"), ALARM_SECONDS_MAX)
        slot = await bench.state(SlotState.EMPTY)
        for generation in (1, 2, 3):
            faults.hide(False)
            await bench.state(SlotState.READY)
            assert slot.generation == generation
            assert bench.alarms.active() == []
            await signs(slot, ec_key())
            faults.hide()
            await until(lambda: bench.has(AlarmKind.KEY_MISSING, "one"), ALARM_SECONDS_MAX)
            await bench.state(SlotState.EMPTY)
            with pytest.raises(SlotGoneError):
                await slot.sign(ECDSA, b"x")


async def test_a_neighbour_that_does_not_answer_is_none_of_a_slot_s_business(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    faults.answer("GetTokenInfo", DEVICE_ERROR, -1)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_MISSING, "one"), ALARM_SECONDS_MAX)
        assert bench.kinds("one") == {AlarmKind.KEY_MISSING}
        faults.answer("GetTokenInfo", 0, 0)
        await signs(await bench.state(SlotState.READY), ec_key())


@pytest.mark.parametrize("number", [DEVICE_REMOVED, GENERAL_ERROR, DEVICE_ERROR, FUNCTION_FAILED])
async def test_a_line_that_breaks_inside_a_signature_leaves_its_outcome_open(
    hsm: Hsm, faults: Faults, tmp_path: Path, number: int
) -> None:
    token = hsm.make("one", ec_key())
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(SlotState.READY)
        faults.answer("Sign", number)
        with pytest.raises(SignOutcomeUnknownError):
            await slot.sign(ECDSA, b"x")
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert slot.generation == 1
        assert faults.calls("Login") == 2


@pytest.mark.parametrize("number", [DEVICE_REMOVED, USER_NOT_LOGGED_IN, SESSION_HANDLE_INVALID])
async def test_a_token_that_lost_its_state_is_identified_anew(
    hsm: Hsm, faults: Faults, tmp_path: Path, number: int
) -> None:
    token = hsm.make("one", ec_key())
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(SlotState.READY)
        faults.answer("SignInit", number)
        with pytest.raises(SlotGoneError, match="nothing was signed"):
            await slot.sign(ECDSA, b"x")
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []


async def test_an_answer_of_the_maker_s_own_is_a_fault_that_is_tried_again(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(SlotState.READY)
        faults.answer("SignInit", 0x80000123)
        faults.answer("OpenSession", 0x80000123, 3)
        with pytest.raises(SlotGoneError):
            await slot.sign(ECDSA, b"x")
        await until(lambda: bench.kinds(slot.name) == {AlarmKind.KEY_FAULT})
        assert "0x80000123" in bench.cause(AlarmKind.KEY_FAULT, slot.name)
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []


@pytest.mark.parametrize("function", ["GetTokenInfo", "GetSlotList"])
async def test_a_library_that_fails_is_a_service_that_is_down_and_starts_anew(
    hsm: Hsm, faults: Faults, tmp_path: Path, function: str
) -> None:
    token = hsm.make("one", ec_key())
    if function == "GetSlotList":
        faults.hide()
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        slot = await bench.state(SlotState.EMPTY if function == "GetSlotList" else SlotState.READY)
        starts = faults.calls("Initialize")
        faults.answer(function, GENERAL_ERROR, -1)
        await until(lambda: bench.has(AlarmKind.KEY_SERVICE_DOWN, "one"), ALARM_SECONDS_MAX)
        assert "CKR_GENERAL_ERROR" in bench.cause(AlarmKind.KEY_SERVICE_DOWN, "one")
        await bench.state(SlotState.NO_SERVICE)
        with pytest.raises(SlotGoneError, match="CKR_GENERAL_ERROR"):
            await slot.sign(ECDSA, b"x")
        await until(lambda: faults.calls("Initialize") > starts)
        faults.clear()
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []


async def test_a_library_that_is_missing_or_no_such_is_reported(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    module = tmp_path / "late.so"
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), module)]) as bench:
        slot = bench.slot()
        await until(lambda: bench.has(AlarmKind.KEY_SERVICE_DOWN, "one"), ALARM_SECONDS_MAX)
        assert "can't be loaded" in bench.cause(AlarmKind.KEY_SERVICE_DOWN, "one")
        assert slot.state is SlotState.NO_SERVICE
        shutil.copyfile(LIBRARY, module)
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), LIBC)]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_SERVICE_DOWN, "one"), ALARM_SECONDS_MAX)
        assert "C_GetFunctionList" in bench.cause(AlarmKind.KEY_SERVICE_DOWN, "one")


async def test_a_library_that_is_not_for_threads_is_not_used(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    faults.answer("Initialize", CANT_LOCK, -1)
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path), faults.path)]) as bench:
        await until(lambda: bench.has(AlarmKind.KEY_SERVICE_DOWN, "one"), ALARM_SECONDS_MAX)
        assert "CKR_CANT_LOCK" in bench.cause(AlarmKind.KEY_SERVICE_DOWN, "one")


async def test_a_call_past_its_deadline_sticks_and_the_other_slots_go_on(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    pin = pin_file(tmp_path)
    one, two = hsm.make("one", ec_key()), hsm.make("two", ec_key())
    configs = [one.slot(pin, faults.path, deadline_s=0.5), two.slot(pin, faults.path)]
    async with ring_of(tmp_path, configs) as bench:
        await bench.ready()
        stuck, other = bench.slot(0), bench.slot(1)
        faults.hold("Sign")
        box = await in_background(bench, stuck)
        await until(lambda: stuck.state is SlotState.STUCK and box)
        assert isinstance(box[0], SignOutcomeUnknownError)
        assert bench.kinds(stuck.name) == {AlarmKind.KEY_FAULT}
        waiting = await in_background(bench, stuck)
        assert isinstance(waiting[0], SlotGoneError)
        # Its poll must not make anything of it, and trio's own thread must not stand still.
        ticks = 0
        with trio.move_on_after(3 * POLL_SECONDS):
            while True:
                await trio.sleep(0.01)
                ticks += 1
        assert ticks > 50
        assert stuck.state is SlotState.STUCK
        faults.hold("Sign", on=False)
        await signs(other, ec_key())
        await bench.state(SlotState.READY)
        await signs(stuck, ec_key())
        assert bench.alarms.active() == []


async def test_two_calls_of_one_library_run_at_once(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    pin = pin_file(tmp_path)
    one, two = hsm.make("one", ec_key()), hsm.make("two", ec_key())
    async with ring_of(tmp_path, [one.slot(pin, faults.path), two.slot(pin, faults.path)]) as bench:
        await bench.ready()
        faults.hold("Sign")
        boxes = [await in_background(bench, bench.slot(index)) for index in (0, 1)]
        await until(lambda: faults.calls("Sign") == 2)
        faults.hold("Sign", on=False)
        await until(lambda: all(boxes))
        assert [type(box[0]) for box in boxes] == [bytes, bytes]


async def test_a_library_that_hangs_while_nothing_is_asked_of_it_is_noticed(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path, deadline_s=0.5)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        faults.hold("GetTokenInfo")
        await until(lambda: slot.state is SlotState.NO_SERVICE)
        assert "has not answered" in bench.cause(AlarmKind.KEY_SERVICE_DOWN, slot.name)
        # Longer than the session waits for its turn to close the token, and its call for the end.
        await trio.sleep(2 * GRACE_SECONDS + 0.5)
        assert slot.state is SlotState.NO_SERVICE
        assert slot.limiter.statistics().tasks_waiting == 0
        faults.hold("GetTokenInfo", on=False)
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []
        assert len(slot.unclosed) == 1
    # The session whose turn to be closed did not come was closed before the next.
    assert library_at(faults.path)._users == 0


async def test_a_signature_behind_a_look_that_hangs_has_its_own_deadline(
    hsm: Hsm, faults: Faults, tmp_path: Path
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path, deadline_s=0.5)
    async with ring_of(tmp_path, [config]) as bench:
        slot = await bench.state(SlotState.READY)
        faults.hold("GetTokenInfo")
        await until(lambda: slot.limiter.available_tokens == 0)
        box = await in_background(bench, slot)
        await until(lambda: slot.state is SlotState.STUCK and box)
        assert isinstance(box[0], SignOutcomeUnknownError)
        faults.hold("GetTokenInfo", on=False)
        await bench.state(SlotState.READY)
        await signs(slot, ec_key())
        assert bench.alarms.active() == []


@pytest.mark.parametrize("function", ["Sign", "GetTokenInfo", "Login"])
async def test_stopping_does_not_wait_for_a_call_that_does_not_return(
    hsm: Hsm, faults: Faults, tmp_path: Path, function: str
) -> None:
    token = hsm.make("one", ec_key())
    config = token.slot(pin_file(tmp_path), faults.path, deadline_s=0.3)
    async with ring_of(tmp_path, [config]) as bench:
        slot = bench.slot()
        if function == "Login":
            faults.hold("Login")
            await until(lambda: faults.calls("Login"))
        else:
            await bench.state(SlotState.READY)
            faults.hold(function)
            if function == "Sign":
                await in_background(bench, slot)
        await until(lambda: slot.state in {SlotState.STUCK, SlotState.NO_SERVICE})
        stopping = trio.current_time()
        bench.nursery.cancel_scope.cancel()
    assert trio.current_time() - stopping < 6.0
    assert slot.snapshot().state is SlotState.NO_SERVICE
    # What the thread comes back to is given up, and the library is whole for the next.
    faults.hold(function, on=False)
    await until(lambda: library_at(faults.path)._users == 0)
    if function != "Login":
        async with ring_of(tmp_path, [config]) as bench:
            await signs(await bench.state(SlotState.READY), ec_key())


async def test_a_slot_s_task_can_be_started_again(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", ec_key())
    for _ in range(5):
        async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
            slot = await bench.state(SlotState.READY)
            await signs(slot, ec_key())
        assert library_at(LIBRARY)._users == 0


async def test_cancelled_callers_cost_nothing_that_lasts(hsm: Hsm, tmp_path: Path) -> None:
    token = hsm.make("one", rsa_key())
    async with ring_of(tmp_path, [token.slot(pin_file(tmp_path))]) as bench:
        slot = await bench.state(SlotState.READY)
        for number in range(100):
            with trio.move_on_after(number / 50_000):
                await slot.sign(RSA, b"x")
        await signs(slot, rsa_key())
        assert slot.generation == 1


async def test_sixteen_slots_sign_at_once(hsm: Hsm, tmp_path: Path) -> None:
    # A process of its own: what breaks here ends the process.
    pin = pin_file(tmp_path)
    lines = []
    for number in range(16):
        token = hsm.make(f"token-{number}", ec_key())
        lines.append(f"{token.label} {token.serial} {token.fingerprint} {pin.file}")
    result = await trio.run_process(
        [sys.executable, str(Path(__file__).with_name("sixteen_tokens.py")), str(tmp_path)],
        stdin="\n".join(lines).encode(),
        env=os.environ | hsm.environment | {"PYTHONPATH": str(ROOT)},
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode()
