"""Slots without cards: key files, the queue, the alarms' timing, restarts."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from fep.adapters.card import SignAlgorithm
from fep.alarms.state import AlarmKind
from fep.domain.errors import ConfigError, KeySlotError
from fep.domain.ids import SlotName
from fep.keys.config import CardBinding, SecretRef, SlotConfig
from fep.keys.errors import (
    SHARING_SECONDS_MAX,
    SHARING_VIOLATION,
    AlgorithmUnavailableError,
    KeyBusyError,
    KeyFileError,
    PcscError,
    SignOutcomeUnknownError,
    SlotGoneError,
)
from fep.keys.readers import Inserted, ReaderAdded, ReaderRemoved, ServiceDown, ServiceUp
from fep.keys.service import KeyRing, Slot, run_slot
from fep.keys.signatures import parse_certificate, verifies
from fep.keys.slot import REQUESTS_WAITING_MAX, VIEWS_WAITING_MAX
from fep.keys.state import SlotEvent, SlotState
from tests.keys.bench import FixedClock, ring_of, until
from tests.keys.files import certificate_of, ec_key, pem_of, rsa_key, write_private

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RSA = SignAlgorithm.RSA_SHA256
CARD = SlotConfig(
    name=SlotName("ukey"),
    backend="pcsc",
    card=CardBinding("11" * 16, "22" * 32),
    key_reference="9E",
)


def key_slot(directory: Path, name: str = "soft", deadline_s: float = 10.0) -> SlotConfig:
    path = write_private(directory / f"{name}.pem", pem_of(rsa_key()))
    return SlotConfig(
        name=SlotName(name),
        backend="software",
        key=SecretRef(file=path),
        sign_deadline_s=deadline_s,
    )


async def test_a_key_file_signs(tmp_path: Path) -> None:
    async with ring_of(tmp_path, [key_slot(tmp_path)]) as bench:
        assert not bench.ring.needs_monitor
        slot = bench.slot()
        with trio.fail_after(5):
            await slot.wait_open()
        assert slot.certificate is None
        signature = await slot.sign(RSA, b"data")
        assert verifies(rsa_key().public_key(), RSA, b"data", signature)
        for unfit in (SignAlgorithm.ECDSA_SHA256, SignAlgorithm.SM2_SM3):
            with pytest.raises(AlgorithmUnavailableError):
                await slot.sign(unfit, b"data")
        assert slot.is_open
        with pytest.raises(SlotGoneError, match="waits for no PIN"):
            await slot.unlock("123456")
        with pytest.raises(ValueError, match="6 to 8"):
            await slot.unlock("1")
        assert bench.alarms.active() == []
    assert slot.snapshot().state is SlotState.NO_SERVICE


async def test_a_certificate_beside_the_key_is_the_slot_s(tmp_path: Path) -> None:
    config = key_slot(tmp_path)
    der = certificate_of(rsa_key(), NOW, days=100)
    (tmp_path / "soft.crt").write_bytes(der)
    async with ring_of(tmp_path, [config], FixedClock(NOW)) as bench:
        slot = await bench.state(SlotState.READY)
        assert slot.certificate == der
        shown = slot.snapshot()
        assert shown.not_after == NOW + dt.timedelta(days=100)
        assert shown.certificate_sha256 == parse_certificate(der).sha256
        assert (shown.guid, shown.generation, shown.backend) == ("", 1, "software")


@pytest.mark.parametrize("fault", ["missing", "open", "garbage", "other certificate"])
async def test_a_bad_key_file_is_a_fault_until_it_is_mended(tmp_path: Path, fault: str) -> None:
    config = key_slot(tmp_path)
    path, beside = tmp_path / "soft.pem", tmp_path / "soft.crt"
    match fault:
        case "missing":
            path.unlink()
        case "open":
            path.chmod(0o644)
        case "garbage":
            path.write_bytes(b"x")
        case _:
            beside.write_bytes(certificate_of(ec_key(), NOW))
    async with ring_of(tmp_path, [config]) as bench:
        slot = bench.slot()
        await until(lambda: bench.has(AlarmKind.KEY_FAULT, slot.name))
        assert not slot.is_open
        with pytest.raises(SlotGoneError):
            await slot.sign(RSA, b"x")
        beside.unlink(missing_ok=True)
        write_private(path, pem_of(rsa_key()))
        await bench.state(SlotState.READY)
        assert bench.alarms.active() == []


async def test_one_card_in_two_slots_is_refused(tmp_path: Path) -> None:
    async with ring_of(tmp_path, []) as bench:
        with pytest.raises(ConfigError, match="twice"):
            KeyRing([CARD, CARD], bench.alarms, FixedClock(NOW), bench.store)


async def test_a_slot_s_task_can_be_started_again(tmp_path: Path) -> None:
    async with ring_of(tmp_path, []) as bench:
        ring = KeyRing([key_slot(tmp_path)], bench.alarms, FixedClock(NOW), bench.store)
        slot = ring.slots[SlotName("soft")]
        for generation in (1, 2, 3):
            async with trio.open_nursery() as nursery:
                await nursery.start(_run, slot)
                with trio.fail_after(5):
                    await slot.wait_open()
                assert slot.generation == generation
                await slot.sign(RSA, b"x")
                nursery.cancel_scope.cancel()
            assert not slot.is_open
            with trio.fail_after(1):
                await slot.wait_closed()


async def test_a_full_queue_refuses_and_a_stuck_call_fails_all_that_wait(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with ring_of(tmp_path, [key_slot(tmp_path, deadline_s=3.0)]) as bench:
        slot = bench.slot()
        await slot.wait_open()
        holder = object()
        # Whoever holds the limiter is a call that does not return.
        await slot.limiter.acquire_on_behalf_of(holder)
        errors: list[KeySlotError] = []

        async def ask() -> None:
            try:
                await slot.sign(RSA, b"x")
            except KeySlotError as error:
                errors.append(error)

        for _ in range(REQUESTS_WAITING_MAX + 1):
            bench.nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
        assert slot.state is SlotState.BUSY
        with pytest.raises(KeyBusyError):
            await slot.sign(RSA, b"x")
        mock_clock.jump(3.0)
        await slot.wait_closed()
        await trio.testing.wait_all_tasks_blocked()
        assert slot.snapshot().state is SlotState.STUCK
        kinds = [type(error) for error in errors]
        assert kinds.count(SignOutcomeUnknownError) == 1
        assert kinds.count(SlotGoneError) == REQUESTS_WAITING_MAX
        assert bench.has(AlarmKind.KEY_FAULT, slot.name)
        slot.limiter.release_on_behalf_of(holder)
        await slot.wait_open()
        assert bench.alarms.active() == []


async def test_callers_that_give_up_make_room_in_the_queue(tmp_path: Path) -> None:
    async with ring_of(tmp_path, [key_slot(tmp_path, deadline_s=600.0)]) as bench:
        slot = bench.slot()
        await slot.wait_open()
        holder = object()
        await slot.limiter.acquire_on_behalf_of(holder)
        for _ in range(3 * REQUESTS_WAITING_MAX):
            with trio.move_on_after(0.001) as gave_up:
                await slot.sign(RSA, b"x")
            assert gave_up.cancelled_caught
        slot.limiter.release_on_behalf_of(holder)
        assert await slot.sign(RSA, b"x")


async def test_a_certificate_that_comes_near_its_end_is_noticed_while_running(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    class StartClock:
        def now(self) -> dt.datetime:
            return NOW + dt.timedelta(seconds=trio.current_time() - started)

    started = trio.current_time()
    config = key_slot(tmp_path)
    (tmp_path / "soft.crt").write_bytes(certificate_of(rsa_key(), NOW, days=31))
    async with ring_of(tmp_path, [config], StartClock()) as bench:
        slot = bench.slot()
        await slot.wait_open()
        for hour in range(30):
            await trio.testing.wait_all_tasks_blocked()
            assert bench.has(AlarmKind.KEY_EXPIRING, slot.name) == (hour > 24)
            mock_clock.jump(3600)
        assert slot.is_open


async def test_a_fault_is_an_alarm_only_when_it_lasts(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with ring_of(tmp_path, []) as bench:
        ring = KeyRing([CARD], bench.alarms, FixedClock(NOW), bench.store)
        slot = ring.slots[CARD.name]
        held = PcscError("SCardConnect", SHARING_VIOLATION)
        for event in (SlotEvent.SERVICE_UP, SlotEvent.READER_ADDED, SlotEvent.INSERTED):
            slot.enter(event)
        started = trio.current_time()
        while not bench.has(AlarmKind.KEY_FAULT, slot.name):
            slot.enter(SlotEvent.FAULT, str(held), held)
            await trio.sleep(1)
            slot.enter(SlotEvent.RETRIED)
        assert trio.current_time() - started == SHARING_SECONDS_MAX + 1
        slot.enter(SlotEvent.IDENTIFIED)
        assert bench.alarms.active() == []
        # The next fault has its own time, and one of another kind none at all.
        slot.enter(SlotEvent.SIGN_STARTED)
        slot.enter(SlotEvent.FAULT, str(held), held)
        assert bench.alarms.active() == []
        slot.enter(SlotEvent.RETRIED)
        slot.enter(SlotEvent.FAULT, "bad", KeyFileError("bad"))
        assert bench.kinds(slot.name) == {AlarmKind.KEY_FAULT}


async def test_an_absent_key_is_missing_only_after_the_first_scan(tmp_path: Path) -> None:
    async with ring_of(tmp_path, []) as bench:
        ring = KeyRing([CARD], bench.alarms, FixedClock(NOW), bench.store)
        slot = ring.slots[CARD.name]
        async with trio.open_nursery() as nursery:
            await nursery.start(_run, slot)
            ring.take(ServiceUp())
            ring.publish()
            await until(lambda: slot.state is SlotState.NO_READER)
            assert bench.alarms.active() == []
            ring.settle()
            await until(lambda: bench.has(AlarmKind.KEY_MISSING, slot.name))
            nursery.cancel_scope.cancel()


async def test_settling_clears_what_an_earlier_run_left_of_readers(tmp_path: Path) -> None:
    async with ring_of(tmp_path, []) as bench:
        ring = KeyRing([CARD], bench.alarms, FixedClock(NOW), bench.store)
        bench.alarms.raise_alarm(AlarmKind.KEY_WRONG, "old reader", "left standing")
        bench.alarms.raise_alarm(AlarmKind.KEY_FAULT, "old reader", "left standing")
        bench.alarms.raise_alarm(AlarmKind.KEY_WRONG, CARD.name, "of a slot")
        bench.alarms.raise_alarm(AlarmKind.LINK_DOWN, "bank", "of another part")
        ring.take(ServiceUp())
        ring.settle()
        assert {(a.kind, a.subject) for a in bench.alarms.active()} == {
            (AlarmKind.KEY_WRONG, CARD.name),
            (AlarmKind.LINK_DOWN, "bank"),
        }


@pytest.mark.parametrize("changes", [3, VIEWS_WAITING_MAX - 2, 20 * VIEWS_WAITING_MAX])
async def test_a_flood_of_views_ends_with_the_newest(tmp_path: Path, changes: int) -> None:
    with structlog.testing.capture_logs() as logs:
        async with ring_of(tmp_path, []) as bench:
            ring = KeyRing([CARD], bench.alarms, FixedClock(NOW), bench.store)
            slot = ring.slots[CARD.name]
            async with trio.open_nursery() as nursery:
                await nursery.start(_run, slot)
                ring.take(ServiceUp())
                # Nothing here waits: the slot's task gets no turn in between.
                for number in range(changes):
                    ring.take(ReaderAdded("r") if number % 2 == 0 else ReaderRemoved("r"))
                    ring.publish()
                expected = SlotState.EMPTY if changes % 2 else SlotState.NO_READER
                await until(lambda: slot.state is expected)
                await trio.testing.wait_all_tasks_blocked()
                assert slot.state is expected
                ring.take(ServiceDown("gone"))
                ring.publish()
                await until(lambda: slot.state is SlotState.NO_SERVICE)
                nursery.cancel_scope.cancel()
    resynced: list[Any] = [entry for entry in logs if entry["event"] == "slot.resynced"]
    assert bool(resynced) == (changes > VIEWS_WAITING_MAX)


async def test_nobody_watching_is_no_service(tmp_path: Path) -> None:
    async with ring_of(tmp_path, []) as bench:
        ring = KeyRing([CARD], bench.alarms, FixedClock(NOW), bench.store)
        for event in (ServiceUp(), ReaderAdded("r"), Inserted("r")):
            ring.take(event)
        ring.publish()
        slot = ring.slots[CARD.name]
        async with trio.open_nursery() as nursery:
            await nursery.start(_run, slot)
            await until(lambda: slot.state is SlotState.EMPTY)
            ring.lose()
            await until(lambda: slot.state is SlotState.NO_SERVICE)
            nursery.cancel_scope.cancel()


async def _run(slot: Slot, *, task_status: trio.TaskStatus[None]) -> None:
    await run_slot(slot, task_status=task_status)
