"""A defect in one lane or one connection is caught once, and nobody else notices."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.daemon.supervisor import (
    CLEAR_SECONDS,
    RESTART_PAUSE_SECONDS,
    RESTART_WINDOW_SECONDS,
    RESTARTS_MAX,
    guarded,
    supervise,
)
from fep.store.database import Store, StoreBusyError, StoreFailedError, StoreFullError

Log = MutableMapping[str, Any]


class FixedClock:
    def now(self) -> dt.datetime:
        return dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)


@pytest.fixture
def alarms(tmp_path: Path) -> Alarms:
    """Alarms whose store does not run: raising them never waits for it."""
    return Alarms(Store.at(tmp_path / "fep.db"), FixedClock())


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Log]]:
    """What was logged; nothing is printed, since a trace in colours takes half a second."""
    with structlog.testing.capture_logs() as captured:
        yield captured


class Lane:
    """A lane that crashes by a plan: how long it lives each time, None for ever."""

    def __init__(self, *lives: float | None, error: BaseException | None = None) -> None:
        self._lives = list(lives)
        self._error = error or RuntimeError("a defect")
        self.begun: list[float] = []

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.begun.append(trio.current_time())
        life = self._lives.pop(0) if self._lives else None
        if life is None:
            task_status.started()
            await trio.sleep_forever()
        else:
            task_status.started()
            await trio.sleep(life)
            raise self._error


async def test_the_end_of_the_store_is_no_defect_of_a_lane(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    """The store has said it, and the daemon ends: nothing is started again, nothing to report."""
    ended = StoreFailedError("the server closed the connection")
    lane = Lane(1.0, error=ExceptionGroup("a lane's nursery", [ended, ExceptionGroup("", [ended])]))
    defect = Lane(1.0, error=ExceptionGroup("", [ended, RuntimeError("a defect")]))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "bank:one", lane.run, alarms)
        await nursery.start(supervise, "bank:bad", defect.run, alarms)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert len(lane.begun) == 1
    assert [entry["lane"] for entry in logs if entry["event"] == "lane.crashed"] == ["bank:bad"]


async def test_a_store_that_refuses_for_the_moment_is_no_defect_of_a_lane(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    """As while another program holds a table of the shared store."""
    times = 3 * RESTARTS_MAX
    busy = ExceptionGroup("a lane's nursery", [StoreBusyError("held"), StoreFullError("full")])
    lane = Lane(*[0.0] * times, None, error=busy)
    defect = Lane(0.0, None, error=ExceptionGroup("", [busy, RuntimeError("a defect")]))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "bank:one", lane.run, alarms)
        await nursery.start(supervise, "bank:bad", defect.run, alarms)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert len(lane.begun) == times + 1
    assert {b - a for a, b in pairwise(lane.begun)} == {RESTART_PAUSE_SECONDS}
    assert alarms.active() == []
    raised = [entry for entry in logs if entry["event"] == "alarm.raised"]
    assert [
        (one["subject"], "refuses what it asks for: held" in one["cause"]) for one in raised
    ] == [("bank:one", True)]
    assert 100 - times * RESTART_PAUSE_SECONDS > CLEAR_SECONDS
    told = [entry for entry in logs if entry["event"] == "lane.interrupted"]
    assert [(entry["lane"], entry["reason"]) for entry in told] == [("bank:one", "held")] * times
    assert [entry["lane"] for entry in logs if entry["event"] == "lane.crashed"] == ["bank:bad"]


async def test_a_lane_that_finds_the_store_at_its_end_does_not_hold_up_the_start(
    alarms: Alarms, autojump_clock: trio.testing.MockClock
) -> None:
    async def lane(*, task_status: trio.TaskStatus[None]) -> None:
        raise StoreFailedError("the store has ended")

    async with trio.open_nursery() as nursery:
        with trio.fail_after(1.0):
            await nursery.start(supervise, "bank:one", lane, alarms)
        nursery.cancel_scope.cancel()


async def test_a_lane_that_crashes_is_started_again_and_others_do_not_notice(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    bad, good = Lane(1.0, 2.0, None), Lane(None)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "bank:bad", bad.run, alarms)
        await nursery.start(supervise, "bank:good", good.run, alarms)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert len(good.begun) == 1
    first = bad.begun[0]
    pause = RESTART_PAUSE_SECONDS
    assert [at - first for at in bad.begun] == [0, 1 + pause, 3 + 2 * pause]
    crashed = [line for line in logs if line["event"] == "lane.crashed"]
    assert [line["lane"] for line in crashed] == ["bank:bad"] * 2
    assert all(line["exc_info"] for line in crashed)
    assert alarms.active() == []


async def test_too_many_crashes_in_the_window_are_failed_with_an_alarm(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    lane = Lane(*[1.0] * 100)
    await supervise("bank:bad", lane.run, alarms)
    assert len(lane.begun) == RESTARTS_MAX + 1
    (alarm,) = alarms.active()
    assert (alarm.kind, alarm.subject) == (AlarmKind.LANE_FAILED, "bank:bad")
    assert alarm.cause == "crashed 6 times in 600 s"
    assert [line["event"] for line in logs].count("lane.failed") == 1


async def test_a_failed_lane_is_left_with_the_alarm_raised_however_often_that_takes(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    left: list[float] = []

    async def leave() -> None:
        assert [one.kind for one in alarms.active()] == [AlarmKind.LANE_FAILED]
        left.append(trio.current_time())
        if len(left) < 15:
            raise RuntimeError("the store is busy")

    await supervise("bank:bad", Lane(*[1.0] * 100).run, alarms, leave=leave)
    pauses = [later - before for before, later in pairwise(left)]
    assert pauses[:3] == [RESTART_PAUSE_SECONDS * 2**n for n in range(3)]
    assert max(pauses) == pauses[-1] == RESTART_WINDOW_SECONDS
    assert [line["event"] for line in logs].count("lane.not_left") == 14
    assert [line["event"] for line in logs].count("lane.failed") == 1


async def test_a_lane_that_failed_is_not_left_when_the_store_has_ended(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    async def leave() -> None:
        raise StoreFailedError("the server closed the connection")

    await supervise("bank:bad", Lane(*[1.0] * 100).run, alarms, leave=leave)
    assert [one.kind for one in alarms.active()] == [AlarmKind.LANE_FAILED]
    assert "lane.not_left" not in {line["event"] for line in logs}


async def test_crashes_far_apart_never_fail(
    alarms: Alarms, autojump_clock: trio.testing.MockClock
) -> None:
    seldom = RESTART_WINDOW_SECONDS / RESTARTS_MAX
    lane = Lane(*[seldom] * 50, None)
    with trio.move_on_after(seldom * 60):
        await supervise("bank:bad", lane.run, alarms)
    assert len(lane.begun) == 51
    assert alarms.active() == []


async def test_a_start_forgets_the_last_process_failure(
    alarms: Alarms, autojump_clock: trio.testing.MockClock
) -> None:
    alarms.raise_alarm(AlarmKind.LANE_FAILED, "bank:bad", "crashed 6 times")
    with trio.move_on_after(1):
        await supervise("bank:bad", Lane(None).run, alarms)
    assert alarms.active() == []


async def test_a_lane_that_returns_is_a_defect_too(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    async def returns(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    await supervise("pooling", returns, alarms)
    assert [line["event"] for line in logs].count("lane.returned") == RESTARTS_MAX + 1
    assert len(alarms.active()) == 1


async def test_a_lane_that_cannot_start_does_not_keep_the_daemon_from_starting(
    alarms: Alarms, autojump_clock: trio.testing.MockClock
) -> None:
    async def broken(*, task_status: trio.TaskStatus[None]) -> None:
        raise RuntimeError("before started()")

    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "slot:ukey-1", broken, alarms)
        assert trio.current_time() < RESTART_WINDOW_SECONDS
    assert len(alarms.active()) == 1


async def test_cancelling_ends_the_lane_and_is_no_crash(
    alarms: Alarms, autojump_clock: trio.testing.MockClock, logs: list[Log]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "bank:good", Lane(None).run, alarms)
        nursery.cancel_scope.cancel()
    assert logs == []


async def test_a_group_of_exceptions_is_one_crash_and_an_interrupt_is_none(
    alarms: Alarms, autojump_clock: trio.testing.MockClock
) -> None:
    group = ExceptionGroup("two", [RuntimeError(), ValueError()])
    lane = Lane(0.0, None, error=group)
    with trio.move_on_after(100):
        await supervise("bank:bad", lane.run, alarms)
    assert len(lane.begun) == 2
    with pytest.raises(KeyboardInterrupt):
        await supervise("bank:bad", Lane(0.0, error=KeyboardInterrupt()).run, alarms)


# -- connections ----------------------------------------------------------------------------------


@asynccontextmanager
async def served(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[Callable[[], Awaitable[trio.SocketStream]]]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, guarded(handler), [listener])
        host, port = listener.socket.getsockname()
        yield partial(trio.open_tcp_stream, host, port)
        nursery.cancel_scope.cancel()


async def test_what_goes_wrong_in_one_connection_ends_that_one_alone(logs: list[Log]) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            if data == b"crash":
                raise RuntimeError("a defect")
            if data == b"group":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.lowlevel.checkpoint)
                    raise ValueError("in a nursery")
            await stream.send_all(data)

    async def ask(stream: trio.SocketStream, data: bytes) -> bytes:
        with trio.fail_after(5):
            await stream.send_all(data)
            return bytes(await stream.receive_some(10))

    async with served(echo) as connect:
        witness = await connect()
        for word in (b"crash", b"group"):
            victim = await connect()
            assert await ask(victim, b"hello") == b"hello"
            assert await ask(victim, word) == b"", "closed"
            await victim.aclose()
            assert await ask(witness, b"still") == b"still"
        reset = await connect()
        assert await ask(reset, b"hello") == b"hello"
        reset.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await reset.aclose()
        another = await connect()
        assert await ask(another, b"new") == b"new"
        assert await ask(witness, b"still") == b"still"
        await another.aclose()
        await witness.aclose()
    assert {line["event"] for line in logs} == {"connection.crashed"}
    assert len(logs) in {2, 3}, "a reset may reach the handler as an error or as an end"


async def test_cancelling_the_server_ends_its_connections_quietly(logs: list[Log]) -> None:
    async def wait(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with served(wait) as connect:
        stream = await connect()
    with trio.fail_after(5):
        assert await stream.receive_some(1) == b""
    await stream.aclose()
    assert logs == []
