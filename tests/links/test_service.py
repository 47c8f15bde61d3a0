"""The link against a toy bank on loopback."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
import trio.testing

from fep.adapters.api import Reply
from fep.alarms.state import AlarmKind
from fep.domain.errors import LinkLostError, LocalProtocolError, NothingSentError
from fep.links.service import UNMATCHED_WAITING_MAX, run_link
from fep.links.state import LinkState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.links.conftest import Rig, Wire

BIG = 6 * 1024 * 1024
"""More than the sockets' buffers on loopback hold, so that part of it stays with us."""


def frame(correlation: str, size: int = 0) -> bytes:
    """Return a request of at least that size, as the toy bank reads it."""
    body = f"{correlation}|T|0|{'x' * size}".encode()
    return b"%08d%b" % (len(body), body)


# Connecting and logging on


@pytest.mark.req("FEP-05")
async def test_an_answer_reaches_its_request(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.answer(await wire.read(), "0", "hello")
    assert (await asked.reply()).message == "hello"
    assert rig.link.requests == 1
    assert rig.link.last_reply_at is not None


@pytest.mark.req("FEP-08")
async def test_it_is_open_only_after_the_bank_answered_the_log_on(rig: Rig) -> None:
    await rig.start()
    wire = await rig.bank.accept()
    request = await wire.read()
    assert request.trade == "LOGON"
    await trio.testing.wait_all_tasks_blocked()
    assert rig.link.state is LinkState.LOGGING_ON
    assert not rig.link.is_open
    await wire.answer(request)
    await rig.open()


async def test_a_bank_without_a_log_on_must_answer_its_probe(rig: Rig) -> None:
    rig.make_link(has_logon=False)
    await rig.start()
    wire = await rig.bank.accept()
    request = await wire.read()
    assert request.trade == "PROBE"
    assert not rig.link.is_open
    await wire.answer(request)
    await rig.open()


async def _refuse(wire: Wire) -> None:
    await wire.answer(await wire.read(), "E1", "no")


async def _close(wire: Wire) -> None:
    await wire.close()


async def _reset(wire: Wire) -> None:
    await wire.read_one_byte()
    await wire.reset()


async def _garbage(wire: Wire) -> None:
    await wire.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def _half(wire: Wire) -> None:
    await wire.write(frame((await wire.read()).correlation)[:-1])
    await wire.close()


async def _silent(wire: Wire) -> None:
    await wire.read()


@pytest.mark.parametrize("misbehave", [_refuse, _close, _reset, _garbage, _half, _silent])
async def test_a_log_on_that_fails_is_tried_again(
    rig: Rig, misbehave: Callable[[Wire], object]
) -> None:
    rig.make_link(logon_timeout_s=0.1)
    await rig.start()
    for failures in (1, 2):
        await misbehave(await rig.bank.accept())  # type: ignore[misc]
        await rig.until(lambda wanted=failures: rig.link.failures == wanted)  # type: ignore[misc]
        assert not rig.link.is_open
    await rig.logged_on()
    assert rig.link.failures == 0


async def test_a_refused_connection_is_tried_for_ever_and_alarmed_after_three(
    rig: Rig,
) -> None:
    port = rig.bank.port
    await rig.bank.close()
    await rig.start()
    await rig.until(lambda: rig.link.failures == 2)
    assert rig.alarm_kinds() == set()
    await rig.until(lambda: rig.link.failures == 3)
    assert rig.alarm_kinds() == {AlarmKind.LINK_DOWN}
    await rig.until(lambda: rig.link.failures >= 12)
    rig.bank = await type(rig.bank).listen(port)
    await rig.logged_on()
    assert rig.alarm_kinds() == set()
    await rig.bank.close()


async def test_the_back_off_grows_to_its_cap_over_a_day(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    rig.make_link(backoff_first_s=0.5, backoff_max_s=60.0)
    await rig.bank.close()
    await rig.start()
    began = trio.current_time()
    times: list[float] = []
    while len(times) < 200:
        failures = rig.link.failures
        await rig.link._changed.wait()
        if rig.link.failures > failures:
            times.append(trio.current_time() - began)
    gaps = [later - before for before, later in itertools.pairwise(times)]
    for attempt, gap in enumerate(gaps):
        assert gap <= min(0.5 * 2**attempt, 60.0) + 1e-6
    assert max(gaps) > 50.0, "the cap is reached"
    assert sum(gaps[10:]) / len(gaps[10:]) > 20.0, "the jitter is full, not small"


async def test_a_log_on_resets_the_back_off_and_a_connection_does_not(rig: Rig) -> None:
    rig.make_link(backoff_first_s=0.01, backoff_max_s=10.0)
    await rig.start()
    for _ in range(3):
        await _close(await rig.bank.accept())
    await rig.until(lambda: rig.link.failures == 3)
    assert rig.link._backoff.ceiling_s == pytest.approx(0.08)
    await rig.logged_on()
    assert rig.link._backoff.ceiling_s == pytest.approx(0.01)


async def test_a_connect_that_hangs_ends_at_its_deadline(rig: Rig) -> None:
    # A listener whose queue is full drops further SYNs, as an unplugged machine does.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        rig.bank.port = full.getsockname()[1]
        rig.make_link(connect_timeout_s=0.05)
        await rig.start()
        await rig.until(lambda: rig.link.failures >= 2)
        assert "no connection within 0.05 s" in rig.link.last_failure


async def test_the_socket_finds_a_vanished_peer(rig: Rig) -> None:
    await rig.started()
    assert rig.link._connection is not None
    sock = rig.link._connection._sock
    tcp = socket.IPPROTO_TCP
    assert sock.getsockopt(tcp, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 10
    assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 5
    assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == 3
    assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 20_000


# The key (FEP-09) and the operator


@pytest.mark.req("FEP-09")
async def test_without_the_key_nothing_connects(rig: Rig) -> None:
    rig.gate.close()
    await rig.start()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.link.state is LinkState.NO_KEY
    assert not rig.bank.has_caller()
    rig.gate.open()
    await rig.logged_on()


@pytest.mark.req("FEP-09")
async def test_pulling_the_key_stops_requests_at_once_and_lets_answers_in(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    request = await wire.read()
    rig.gate.close()
    assert not rig.link.is_open
    with pytest.raises(NothingSentError):
        await rig.link.exchange(frame("A2"), "A2")
    await rig.state(LinkState.DRAINING)
    await wire.answer(request, "0", "known")
    assert (await asked.reply()).message == "known"
    assert await wire.read_bytes() == b""
    await rig.state(LinkState.NO_KEY)
    rig.gate.open()
    await rig.logged_on()


@pytest.mark.req("FEP-09")
async def test_pulling_the_key_closes_when_an_answer_does_not_come(rig: Rig) -> None:
    rig.make_link(reply_timeout_s=0.1)
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.read()
    rig.gate.close()
    assert await asked.error() is LinkLostError
    await rig.state(LinkState.NO_KEY)
    assert await wire.read_bytes() == b""


@pytest.mark.req("FEP-09")
async def test_pulling_the_key_withdraws_what_has_not_left(rig: Rig) -> None:
    wire = await rig.started()
    first = rig.ask("A1", frame("A1", BIG))
    await rig.in_flight(1)
    second = rig.ask("A2")
    await rig.in_flight(2)
    rig.gate.close()
    assert await second.error() is NothingSentError
    await wire.answer(await wire.read())
    await first.reply()
    assert await wire.read_bytes() == b""


@pytest.mark.req("FEP-09")
@pytest.mark.parametrize("is_logged_on", [False, True])
async def test_pulling_the_key_ends_a_log_on_and_an_idle_session(
    rig: Rig,
    is_logged_on: bool,
) -> None:
    await rig.start()
    wire = await rig.bank.accept()
    request = await wire.read()
    if is_logged_on:
        await wire.answer(request)
        await rig.open()
    rig.gate.close()
    assert await wire.read_bytes() == b""
    await rig.state(LinkState.NO_KEY)
    await trio.testing.wait_all_tasks_blocked()
    assert not rig.bank.has_caller()


@pytest.mark.req("FEP-09")
@pytest.mark.parametrize("is_held", [False, True])
async def test_a_log_on_that_is_over_in_the_moment_at_which_the_key_goes_opens_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    await rig.start()
    log_on = rig.link._log_on

    async def slow(connection: Any) -> bool:
        is_in = await log_on(connection)
        rig.link.drain() if is_held else rig.gate.close()
        # Who closes the link runs first, and finds nothing to drain yet.
        for _ in range(10):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return is_in

    monkeypatch.setattr(rig.link, "_log_on", slow)
    wire = await rig.bank.accept()
    await wire.answer(await wire.read())
    assert await wire.read_bytes() == b""
    await rig.state(LinkState.HELD if is_held else LinkState.NO_KEY)
    monkeypatch.undo()
    rig.link.resume() if is_held else rig.gate.open()
    await rig.logged_on()


@pytest.mark.req("FEP-09")
async def test_pulling_the_key_ends_the_back_off(rig: Rig) -> None:
    rig.make_link(backoff_first_s=3600.0, backoff_max_s=3600.0)
    await rig.start()
    await _close(await rig.bank.accept())
    await rig.state(LinkState.BACKING_OFF)
    rig.gate.close()
    await rig.state(LinkState.NO_KEY)
    rig.gate.open()
    await rig.logged_on()


async def test_a_key_that_comes_back_at_once_wakes_who_waits(rig: Rig) -> None:
    await rig.started()
    rig.gate.close()
    waited = trio.Event()

    async def wait() -> None:
        await rig.link.wait_open()
        waited.set()

    rig.nursery.start_soon(wait)
    await trio.lowlevel.checkpoint()
    rig.gate.open()
    await rig.logged_on()
    with trio.fail_after(5):
        await waited.wait()


async def test_a_key_that_blinks_unseen_leaves_nobody_waiting(rig: Rig) -> None:
    # As a slot whose ``wait_closed`` looks only now and then: no state of the link changes.
    rig.gate.wait_closed = trio.sleep_forever  # type: ignore[method-assign]
    await rig.started()
    rig.gate.close()
    waiting = trio.Event()

    async def wait() -> None:
        await rig.link.wait_open()
        waiting.set()

    rig.nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not waiting.is_set()
    rig.gate.open()
    with trio.fail_after(5):
        await waiting.wait()
    assert rig.link.is_open


async def test_a_lost_connection_while_draining_waits_for_the_key_too(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.read()
    rig.gate.close()
    await rig.state(LinkState.DRAINING)
    await wire.close()
    assert await asked.error() is LinkLostError
    await rig.state(LinkState.NO_KEY)
    await trio.testing.wait_all_tasks_blocked()
    assert not rig.bank.has_caller()


async def test_the_operator_drains_and_resumes(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    request = await wire.read()
    rig.link.drain()
    assert not rig.link.is_open
    await rig.state(LinkState.DRAINING)
    await wire.answer(request)
    with structlog.testing.capture_logs() as logs:
        await asked.reply()
        await rig.state(LinkState.HELD)
    assert [(one["event"], one.get("state")) for one in logs] == [
        ("link.disconnected", None),
        ("link.closed", LinkState.HELD),
    ]
    rig.gate.close()
    rig.gate.open()
    await trio.testing.wait_all_tasks_blocked()
    assert not rig.bank.has_caller()
    rig.link.resume()
    await rig.logged_on()


async def test_drain_and_resume_in_one_breath_change_nothing(rig: Rig) -> None:
    wire = await rig.started()
    rig.link.drain()
    rig.link.resume()
    assert rig.link.is_open
    asked = rig.ask("A1")
    await wire.answer(await wire.read())
    await asked.reply()


async def test_a_held_link_starts_held(rig: Rig) -> None:
    rig.link.drain()
    await rig.start()
    await rig.state(LinkState.HELD)
    rig.gate.close()
    rig.link.resume()
    await rig.state(LinkState.NO_KEY)
    rig.gate.open()
    await rig.logged_on()


async def test_waiting_is_level_triggered(rig: Rig) -> None:
    with trio.fail_after(5):
        await rig.link.wait_closed()
        wire = await rig.started()
        await rig.link.wait_open()
        await rig.link.wait_open()
        await wire.close()
        await rig.link.wait_closed()
        await rig.link.wait_closed()


# What is certain when a request ends badly


async def test_a_link_that_does_not_run_sends_nothing(rig: Rig) -> None:
    with pytest.raises(NothingSentError, match="off"):
        await rig.link.exchange(frame("A1"), "A1")


@pytest.mark.parametrize("end", [_close, _reset, _garbage])
async def test_a_connection_that_ends_before_the_answer_leaves_it_unknown(
    rig: Rig, end: Callable[[Wire], object]
) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.read_one_byte()
    await end(wire)  # type: ignore[misc]
    assert await asked.error() is LinkLostError
    assert not rig.link.is_open
    await rig.logged_on()


async def test_an_answer_cut_at_any_byte_is_no_answer(rig: Rig) -> None:
    await rig.start()
    answer = frame("A1")
    for cut in range(len(answer)):
        wire = await rig.logged_on()
        asked = rig.ask("A1")
        await wire.read()
        await wire.write(answer[:cut])
        await wire.close()
        assert await asked.error() is LinkLostError
        await rig.until(lambda: rig.link.failures == 1)
        assert ("inside a frame" in rig.link.last_failure) == (cut > 0)


async def test_an_answer_in_single_bytes_is_an_answer(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.read()
    for byte in frame("A1"):
        await wire.write(bytes([byte]))
    await asked.reply()


async def test_garbage_behind_a_good_answer_ends_the_link_at_once(rig: Rig) -> None:
    wire = await rig.started()
    first, second = rig.ask("A1"), rig.ask("A2")
    await wire.read()
    await wire.read()
    await wire.write(frame("A1") + b"garbage!")
    await first.reply()
    assert await second.error() is LinkLostError


async def test_a_lost_connection_tells_what_left_from_what_did_not(rig: Rig) -> None:
    wire = await rig.started()
    begun = rig.ask("A1", frame("A1", BIG))
    await wire.read_one_byte()
    unsent = rig.ask("A2")
    await rig.in_flight(2)
    await wire.reset()
    assert await begun.error() is LinkLostError
    assert await unsent.error() is NothingSentError


async def test_a_deadline_before_the_first_byte_withdraws_the_frame(rig: Rig) -> None:
    wire = await rig.started()
    first = rig.ask("A1", frame("A1", BIG))
    await rig.in_flight(1)
    second = rig.ask("A2", deadline_s=0.01)
    assert await second.error() is NothingSentError
    third = rig.ask("A3")
    for asked in (first, third):
        await wire.answer(await wire.read())
        await asked.reply()


async def test_a_deadline_inside_a_frame_ends_the_connection(rig: Rig) -> None:
    wire = await rig.started()
    first = rig.ask("A1", frame("A1", BIG))
    await rig.in_flight(1)
    second = rig.ask("A2")
    await rig.in_flight(2)
    first.scope.cancel()
    assert await first.error() is trio.TooSlowError
    assert await second.error() is NothingSentError
    assert 0 < len(await wire.read_bytes()) < BIG, "the bank has a torn frame"


async def test_what_may_not_begin_sends_nothing(rig: Rig) -> None:
    wire = await rig.started()
    assert await rig.ask("A1", may_begin=lambda: False).error() is NothingSentError
    asked = rig.ask("A2", may_begin=lambda: True)
    request = await wire.read()
    assert request.correlation == "A2"
    await wire.answer(request)
    await asked.reply()


async def test_what_waited_for_the_socket_until_it_may_not_begin_any_more_sends_nothing(
    rig: Rig,
) -> None:
    """It was asked when it came, and is asked again at its own first byte."""
    wire = await rig.started()
    may = [True]
    first = rig.ask("A1", frame("A1", BIG), may_begin=lambda: may[0])
    await rig.in_flight(1)
    second = rig.ask("A2", may_begin=lambda: may[0])
    third = rig.ask("A3")
    await rig.in_flight(3)
    may[0] = False
    # The one that has begun goes on: half a frame would be understood by nobody.
    await wire.answer(await wire.read())
    await first.reply()
    assert await second.error() is NothingSentError
    request = await wire.read()
    assert request.correlation == "A3"
    await wire.answer(request)
    await third.reply()


async def test_a_deadline_that_has_passed_sends_nothing(rig: Rig) -> None:
    wire = await rig.started()
    assert await rig.ask("A1", deadline_s=0.0).error() is NothingSentError
    asked = rig.ask("A2")
    request = await wire.read()
    assert request.correlation == "A2"
    await wire.answer(request)
    await asked.reply()


async def test_a_connection_that_has_just_ended_takes_no_byte(rig: Rig) -> None:
    wire = await rig.started()
    assert rig.link._connection is not None
    rig.link._connection.end("seen by the reader a moment ago")
    with pytest.raises(NothingSentError, match="a moment ago"):
        await rig.link.exchange(frame("A1"), "A1")
    assert await wire.read_bytes() == b""


async def test_a_request_larger_than_the_socket_takes_arrives_whole(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1", frame("A1", BIG))
    await rig.in_flight(1)
    request = await wire.read()
    assert request.raw == frame("A1", BIG)
    await wire.answer(request)
    await asked.reply()


async def test_requests_sent_to_a_peer_that_has_just_gone_are_never_called_unsent_wrongly(
    rig: Rig,
) -> None:
    # The reader has not yet seen the end: the kernel takes the bytes, so it isn't certain.
    wire = await rig.started()
    await wire.close()
    asked = rig.ask("A1")
    assert await asked.error() in {LinkLostError, NothingSentError}
    later = rig.ask("A2")
    assert await later.error() is NothingSentError


# Correlation


async def test_answers_may_come_in_any_order(rig: Rig) -> None:
    wire = await rig.started()
    asked = {f"A{number}": rig.ask(f"A{number}") for number in range(100)}
    requests = [await wire.read() for _ in asked]
    random.Random(3).shuffle(requests)
    await wire.write(b"".join(frame(request.correlation) for request in requests))
    for correlation, one in asked.items():
        assert (await one.reply()).correlation == correlation


async def test_a_correlation_in_flight_is_refused(rig: Rig) -> None:
    wire = await rig.started()
    first = rig.ask("A1")
    await rig.in_flight(1)
    second = rig.ask("A1")
    assert await second.error() is LocalProtocolError
    await wire.answer(await wire.read())
    await first.reply()


async def test_a_late_answer_is_kept_as_evidence(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1", deadline_s=0.05)
    request = await wire.read()
    assert await asked.error() is trio.TooSlowError
    await wire.answer(request, "0", "paid after all")
    unmatched = await rig.next_unmatched()
    assert unmatched.late
    assert unmatched.reply.message == "paid after all"
    assert rig.link.is_open
    assert rig.link.snapshot().unmatched == 1


@pytest.mark.parametrize("correlation", ["nobody", ""])
async def test_an_answer_nobody_asked_for_is_kept(rig: Rig, correlation: str) -> None:
    wire = await rig.started()
    await wire.write(frame(correlation))
    unmatched = await rig.next_unmatched()
    assert not unmatched.late
    assert unmatched.reply.correlation == correlation
    assert rig.link.is_open


async def test_an_answer_before_the_whole_request_left_ends_the_link(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1", frame("A1", BIG))
    await wire.read_one_byte()
    await wire.write(frame("A1"))
    assert await asked.error() is LinkLostError
    assert (await rig.next_unmatched()).reply.correlation == "A1"


async def test_no_unmatched_answer_is_lost_to_a_slow_receiver(rig: Rig) -> None:
    rig.make_link(unmatched_max=1)
    wire = await rig.started()
    count = UNMATCHED_WAITING_MAX * 3
    for number in range(count):
        await wire.write(frame(f"S{number}"))
        await trio.lowlevel.checkpoint()
    asked = rig.ask("A1")
    await wire.answer(await wire.read())
    await trio.testing.wait_all_tasks_blocked()
    assert rig.link.snapshot().unmatched < count, "the link stopped reading"
    got = [(await rig.next_unmatched()).reply.correlation for _ in range(count)]
    assert got == [f"S{number}" for number in range(count)]
    await asked.reply()


async def test_unmatched_answers_outlive_their_connection(rig: Rig) -> None:
    rig.make_link(unmatched_max=0)
    wire = await rig.started()
    await wire.write(b"".join(frame(f"S{number}") for number in range(5)))
    await wire.close()
    await rig.link.wait_closed()
    assert [(await rig.next_unmatched()).reply.correlation for _ in range(5)] == [
        f"S{number}" for number in range(5)
    ]


# Cancellation and defects


@pytest.mark.parametrize("seed", range(5))
async def test_in_a_storm_of_cancellations_every_request_ends_once(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    wire = await rig.started()
    logged_on_at = rig.link.last_reply_at
    names = [f"A{number}" for number in range(300)]
    asked = [rig.ask(name, frame(name, rng.randrange(100))) for name in names]

    async def answer_some() -> None:
        while True:
            request = await wire.read()
            if rng.random() < 0.7:
                await wire.answer(request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_some)
        for one in rng.sample(asked, 200):
            one.scope.cancel()
            if rng.random() < 0.5:
                await trio.lowlevel.checkpoint()
        await rig.until(lambda: rig.link.last_reply_at != logged_on_at)
        await rig.until(lambda: sum(one.is_done for one in asked) > 200)
        nursery.cancel_scope.cancel()
    await wire.close()
    ends = [await one.end() for one in asked]
    for end in ends:
        assert isinstance(end, Reply | trio.TooSlowError | LinkLostError | NothingSentError)
    assert any(isinstance(end, Reply) for end in ends)
    assert any(isinstance(end, trio.TooSlowError | NothingSentError) for end in ends)
    wire = await rig.logged_on()
    last = rig.ask("last")
    await wire.answer(await wire.read())
    await last.reply()


async def test_a_stopped_link_ends_what_is_in_flight_and_can_be_started_again(rig: Rig) -> None:
    wire = await rig.started()
    asked = rig.ask("A1")
    await wire.read()
    rig.task.cancel()
    assert await asked.error() is LinkLostError
    assert await wire.read_bytes() == b""
    await rig.state(LinkState.OFF)
    rig.task = trio.CancelScope()
    await rig.started()


async def test_a_defect_of_the_adapter_ends_the_lane_and_nothing_in_flight_hangs(
    rig: Rig,
) -> None:
    failures: list[BaseException] = []
    ended = trio.Event()

    async def supervised() -> None:
        try:
            await run_link(rig.link, rig.gate)
        except* UnicodeDecodeError as group:
            failures.extend(group.exceptions)
        ended.set()

    rig.nursery.start_soon(supervised)
    wire = await rig.logged_on()
    asked = rig.ask("A1")
    await wire.read()
    await wire.write(b"00000002\xff\xff")
    assert await asked.error() is LinkLostError
    with trio.fail_after(5):
        await ended.wait()
    assert len(failures) == 1
    assert rig.link.state is LinkState.OFF


# Heartbeat


@pytest.mark.req("FEP-29", "FEP-30")
async def test_an_idle_bank_is_probed_and_a_living_one_stays(rig: Rig) -> None:
    rig.make_link(heartbeat_s=0.05)
    wire = await rig.started()
    for _ in range(4):
        request = await wire.read()
        assert request.trade == "PROBE"
        await wire.answer(request)
    assert rig.link.is_open
    assert rig.link.requests == 0, "probes are not counted as requests of callers"


@pytest.mark.req("FEP-30", "FEP-31")
async def test_a_bank_that_stops_answering_is_dead_after_two_and_a_half_heartbeats(
    rig: Rig,
) -> None:
    rig.make_link(heartbeat_s=0.2, reply_timeout_s=0.4)
    wire = await rig.started()
    began = trio.current_time()
    asked = rig.ask("A1")
    assert await asked.error() is LinkLostError
    assert 0.45 < trio.current_time() - began < 1.5
    trades = [(await wire.read()).trade for _ in range(3)]
    assert trades == ["T", "PROBE", "PROBE"]
    assert rig.alarm_kinds() == {AlarmKind.BANK_HEARTBEAT_LOST}
    await rig.logged_on()
    assert rig.alarm_kinds() == set()


async def test_a_request_that_was_sent_to_a_silent_bank_has_its_time_all_the_same(rig: Rig) -> None:
    rig.make_link(heartbeat_s=0.4, reply_timeout_s=0.9)
    wire = await rig.started()
    first = rig.ask("A1")
    await wire.read()
    await trio.sleep(0.7)
    second = rig.ask("A2", deadline_s=0.9)
    await rig.state(LinkState.DRAINING)
    assert rig.alarm_kinds() == {AlarmKind.BANK_HEARTBEAT_LOST}
    with pytest.raises(NothingSentError):
        await rig.link.exchange(frame("A3"), "A3")
    while (request := await wire.read()).correlation != "A2":
        pass
    await wire.answer(request)
    assert (await second.reply()).correlation == "A2"
    assert await first.error() is LinkLostError
    await rig.logged_on()


async def test_bytes_that_never_make_a_frame_are_no_sign_of_life(rig: Rig) -> None:
    rig.make_link(heartbeat_s=0.1)
    wire = await rig.started()
    await wire.write(b"00009999")

    async def dribble() -> None:
        with suppress(trio.BrokenResourceError):
            while rig.link.is_open:
                await wire.write(b"x")
                await trio.lowlevel.checkpoint()

    rig.nursery.start_soon(dribble)
    await rig.until(lambda: rig.link.failures > 0)
    assert "silent" in rig.link.last_failure


async def test_a_refused_probe_drains_the_link_and_tries_again(rig: Rig) -> None:
    rig.make_link(heartbeat_s=0.1)
    wire = await rig.started()
    asked = rig.ask("A1")
    request = await wire.read()
    await wire.answer(await wire.read(), "E90004", "the bank is not reachable")
    await rig.state(LinkState.DRAINING)
    assert rig.alarm_kinds() == {AlarmKind.BANK_HEARTBEAT_LOST}
    with pytest.raises(NothingSentError):
        await rig.link.exchange(frame("A2"), "A2")
    await wire.answer(request)
    await asked.reply()
    await rig.logged_on()
    assert rig.alarm_kinds() == set()


async def test_a_probe_answered_late_is_a_sign_of_life_and_no_evidence(rig: Rig) -> None:
    rig.make_link(heartbeat_s=0.1)
    wire = await rig.started()
    first, second = await wire.read(), await wire.read()
    assert (first.trade, second.trade) == ("PROBE", "PROBE")
    await wire.answer(first)
    await wire.answer(second)
    third = await wire.read()
    await wire.answer(third)
    assert rig.link.is_open
    assert rig.link.snapshot().unmatched == 0
    await wire.read()
    assert rig.link.is_open


# What is shown


async def test_the_snapshot_tells_where_the_link_is(rig: Rig) -> None:
    assert rig.link.snapshot().state is LinkState.OFF
    wire = await rig.started()
    rig.ask("A1")
    await wire.read()
    shown = rig.link.snapshot()
    assert shown.peer == f"127.0.0.1:{rig.bank.port}"
    assert (shown.state, shown.is_open, shown.in_flight, shown.requests) == (
        LinkState.READY,
        True,
        1,
        1,
    )
    await wire.close()
    await rig.link.wait_closed()
    await rig.until(lambda: rig.link.snapshot().failures == 1)
    assert "closed the connection" in rig.link.snapshot().last_failure


async def test_a_peer_that_vanishes_without_a_word_is_found() -> None:
    # A network namespace of its own, so that "the cable is pulled" (lo down) disturbs nobody.
    child = Path(__file__).with_name("half_open_child.py")
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    with trio.fail_after(30):
        done = await trio.run_process(
            ["unshare", *own, "--net", sys.executable, str(child)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_stdout=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"idle": "the bank is silent", "in_flight": "LinkLostError"}
