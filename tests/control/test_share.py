"""What one client may use up; and that one which takes all it can get slows nobody else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fep.control.config import ClientConfig, Limits
from fep.control.poller import READ_BYTES
from fep.control.share import BURST_SECONDS, UNCOMMITTED_TASKS_MAX, Pace, Shares
from fep.domain.ids import ClientName
from fep.tasks.service import OPEN_AGAIN_SECONDS
from tests.control.conftest import Start
from tests.control.rig import Config, Rig, Wire, code_of

ERP, FLOOD = ClientName("erp-1"), ClientName("flood")
TASK = {"bank": "pingan", "kind": "balance"}


# -- the pace -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "spent", "wait"),
    [
        (Limits(lines_s=100), [(100, 0)], 0.0),
        (Limits(lines_s=100), [(150, 0)], 0.5),
        (Limits(bytes_s=1000), [(1, 1000), (1, 1000)], 1.0),
        (Limits(lines_s=100, bytes_s=1000), [(150, 3000)], 2.0),
        (Limits(lines_s=100, bytes_s=1000), [(300, 1500)], 2.0),
        (Limits(bytes_s=1000), [(10**9, 0)], 0.0),
    ],
)
def test_a_client_waits_when_it_has_used_up_its_share(
    limits: Limits, spent: list[tuple[int, int]], wait: float
) -> None:
    pace = Pace(limits)
    for lines, size in spent:
        pace.spend(lines, size, 50.0)
    assert pace.wait(50.0) == pytest.approx(wait)
    assert pace.wait(50.0 + wait) == pytest.approx(0.0)
    assert pace.wait(50.0 + wait + 1) == 0.0


@given(
    rate=st.floats(1, 1e6),
    sent=st.lists(st.tuples(st.integers(0, 500), st.floats(0, 2)), max_size=50),
)
def test_who_waits_when_told_never_sends_more_than_its_rate(
    rate: float, sent: list[tuple[int, float]]
) -> None:
    pace, now, total, last = Pace(Limits(lines_s=rate)), 0.0, 0, 0
    for lines, pause in sent:
        now += pause + pace.wait(now + pause)
        pace.spend(lines, 0, now)
        total, last = total + lines, lines
        assert total - last <= rate * (now + BURST_SECONDS) * 1.000001 + 1


def test_shares_are_counted_by_name_and_kept_for_those_that_are_configured() -> None:
    configured = {ERP: ClientConfig(limits=Limits(lines_s=5, sessions_max=2))}
    shares = Shares(Limits(sessions_max=3), configured)
    first = shares.join(ERP)
    assert first is not None
    assert shares.join(ERP) is first
    assert shares.join(ERP) is None
    others = [shares.join(FLOOD) for _ in range(4)]
    assert [one is None for one in others] == [False, False, False, True]
    shares.leave(ERP, first)
    shares.leave(ERP, first)
    # Nobody has its whole share again by hanging up.
    assert shares.join(ERP) is first
    for one in others[:3]:
        assert one is not None
        shares.leave(FLOOD, one)
    assert FLOOD not in shares._shares
    assert len(shares._shares) == 1


# -- on a daemon ----------------------------------------------------------------------------------


def limited(**limits: Any) -> Any:
    """Return the change of a configuration that has a client with limits beside the first."""

    def change(config: Config) -> None:
        config["control"]["clients"] = {"erp-1": {}, "flood": dict(limits)}

    return change


async def opened(rig: Rig, name: str) -> Wire | float:
    """Return an open session, or when to try again."""
    wire = await rig.tcp()
    answer = await wire.ask("session.open", {"client": name, "token": rig.token})
    if "result" in answer:
        return wire
    assert code_of(answer) == "LIMITED"
    seconds: float = answer["error"]["data"]["retry_after_s"]
    return seconds


async def test_sessions_beyond_a_clients_own_limit_are_refused_and_others_are_not(
    start: Start,
) -> None:
    async with start(change=limited(sessions_max=2)) as rig:
        first, second = await opened(rig, "flood"), await opened(rig, "flood")
        assert isinstance(first, Wire)
        assert isinstance(second, Wire)
        assert await opened(rig, "flood") == 5.0
        assert isinstance(await opened(rig, "erp-1"), Wire)
        await first.result("session.close")
        await first.ended()
        await first.aclose()
        await rig.until(lambda: len(rig.logs.named("session.closed")) == 1, "the end")
        with trio.fail_after(10):
            while not isinstance(await opened(rig, "flood"), Wire):
                await trio.lowlevel.checkpoint()
        await second.result("status")


async def test_open_tasks_beyond_a_clients_own_limit_are_refused_and_known_ones_are_known(
    start: Start,
) -> None:
    async with start(change=limited(open_max=10)) as rig:
        flood, erp = await opened(rig, "flood"), await opened(rig, "erp-1")
        assert isinstance(flood, Wire)
        assert isinstance(erp, Wire)
        requests = [
            flood.request("task.submit", {"task_id": f"F{number}", **TASK}) for number in range(15)
        ]
        # In one packet, and one by one: what waits for the disk counts too.
        await flood.send(*requests[:12])
        await flood.send(*requests[12:])
        answers = [await flood.reply(one) for one in requests]
        assert ["result" in one for one in answers] == [True] * 10 + [False] * 5
        for one in answers[10:]:
            assert one["error"]["data"] == {"code": "LIMITED", "retry_after_s": OPEN_AGAIN_SECONDS}
        # The same id is the same task, however full it is.
        again = await flood.result("task.submit", {"task_id": "F3", **TASK})
        assert again == {"task_id": "F3", "state": "queued", "known": True}
        for number in range(20):
            await erp.result("task.submit", {"task_id": f"E{number}", **TASK})
        await flood.result("task.cancel", {"task_id": "F0"})
        assert (await flood.result("task.submit", {"task_id": "F11", **TASK}))["known"] is False
        assert await flood.refusal("task.submit", {"task_id": "F12", **TASK}) == "LIMITED"
    async with start(change=limited(open_max=10)) as rig:
        flood = await opened(rig, "flood")
        assert isinstance(flood, Wire)
        assert await flood.refusal("task.submit", {"task_id": "F12", **TASK}) == "LIMITED"


async def test_a_client_above_its_rate_is_read_more_slowly_and_loses_nothing(
    start: Start, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    async with start(change=limited(lines_s=100)) as rig:
        flood, erp = await opened(rig, "flood"), await opened(rig, "erp-1")
        assert isinstance(flood, Wire)
        assert isinstance(erp, Wire)
        requests = [
            flood.request("task.submit", {"task_id": f"F{number}", **TASK})
            for number in range(1000)
        ]
        begun = trio.current_time()
        for place in range(0, 1000, 200):
            await flood.send(*requests[place : place + 200])
        await flood.reply(requests[99])
        await rig.until(lambda: rig.logs.named("session.held_back"), "the log")
        # Its ten seconds are not anybody else's.
        for number in range(20):
            await erp.result("task.submit", {"task_id": f"E{number}", **TASK})
        assert trio.current_time() - begun < 5
        async with trio.open_nursery() as nursery:

            async def hasten() -> None:
                while True:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                    mock_clock.jump(0.5)

            nursery.start_soon(hasten)
            answers = [await flood.reply(one) for one in requests[100:]]
            nursery.cancel_scope.cancel()
        assert all("result" in one for one in answers)
        assert trio.current_time() - begun >= (1000 / 100) - BURST_SECONDS - READ_BYTES / 100 / 100
        (record,) = rig.logs.named("session.held_back")
        assert record["client"] == "flood"


FLOODING = 30


async def test_a_flood_over_many_connections_lets_others_through_at_once(start: Start) -> None:
    """Counted, not timed: between two answers of the other, the flood has a few batches at most."""
    async with start(change=limited(sessions_max=FLOODING)) as rig:
        erp = await opened(rig, "erp-1")
        assert isinstance(erp, Wire)
        served: list[int] = []
        stop = trio.Event()

        async def flood(number: int) -> None:
            wire = await opened(rig, "flood")
            assert isinstance(wire, Wire)
            line = {"jsonrpc": "2.0", "id": 1, "method": "task.get", "params": {"task_id": "none"}}
            submit = {"method": "task.submit", "params": {"task_id": f"F{number}", **TASK}}
            lines = (json.dumps(line | submit) + "\n").encode() * 400

            async def write() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while not stop.is_set():
                        await wire.stream.send_all(lines)

            async def read() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await wire.stream.receive_some(65_536):
                        served[0] += data.count(b"\n")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(read)
                await stop.wait()
                await wire.aclose()

        served.append(0)
        async with trio.open_nursery() as nursery:
            for number in range(FLOODING):
                nursery.start_soon(flood, number)
            await rig.until(lambda: served[0] > 20_000, "the flood")
            between = []
            for number in range(40):
                before = served[0]
                await erp.result("task.submit", {"task_id": f"E{number}", **TASK})
                between.append(served[0] - before)
            stop.set()
        # What others wait for is what one client may have at the disk, and a batch behind it.
        assert max(between) < 4 * (UNCOMMITTED_TASKS_MAX + READ_BYTES // 100)
