"""Blocking calls with an owner that can always end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from fep.keys import blocking
from fep.keys.blocking import call


class Blocker:
    """A call that returns when told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.end.wait(20)
        return "done"


async def begun(blocker: Blocker) -> None:
    await trio.to_thread.run_sync(blocker.begun.wait)


async def test_results_and_errors_come_through_unwrapped() -> None:
    limiter = trio.CapacityLimiter(1)
    assert await call(lambda: 7, limiter) == 7
    with pytest.raises(ZeroDivisionError):
        await call(lambda: 1 // 0, limiter)


async def test_an_overdue_call_is_reported_once_and_still_waited_for() -> None:
    blocker, reports = Blocker(), list[str]()
    async with trio.open_nursery() as nursery:

        async def caller() -> None:
            result = await call(
                blocker,
                trio.CapacityLimiter(1),
                overdue=lambda: reports.append("overdue"),
                overdue_seconds=0.01,
            )
            reports.append(result)

        nursery.start_soon(caller)
        with trio.fail_after(5):
            while not reports:
                await trio.sleep(0.001)
        assert reports == ["overdue"]
        blocker.end.set()
    assert reports == ["overdue", "done"]


async def test_a_cancelled_owner_waits_for_a_call_that_returns_in_time() -> None:
    blocker, abandoned = Blocker(), list[str]()

    async def interrupt() -> None:
        blocker.end.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call, blocker, interrupt, abandoned)
        await begun(blocker)
        nursery.cancel_scope.cancel()
    assert blocker.end.is_set()
    assert abandoned == []


async def test_a_call_that_never_returns_is_left_and_keeps_its_limiter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking, "GRACE_SECONDS", 0.1)
    blocker, abandoned, limiter = Blocker(), list[str](), trio.CapacityLimiter(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call, blocker, None, abandoned, limiter)
        await begun(blocker)
        nursery.cancel_scope.cancel()
    assert abandoned == ["abandoned"]
    assert limiter.borrowed_tokens == 1
    with trio.move_on_after(0.05) as scope:
        await call(lambda: None, limiter)
    assert scope.cancelled_caught
    blocker.end.set()
    with trio.fail_after(5):
        assert await call(lambda: 7, limiter) == 7


async def test_a_lost_interrupt_is_repeated() -> None:
    blocker, calls = Blocker(), list[int]()

    async def interrupt() -> None:
        calls.append(1)
        if len(calls) == 3:
            blocker.end.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call, blocker, interrupt, [])
        await begun(blocker)
        nursery.cancel_scope.cancel()
    assert len(calls) >= 3


async def _call(
    blocker: Blocker,
    interrupt: Callable[[], object] | None,
    abandoned: list[str],
    limiter: trio.CapacityLimiter | None = None,
) -> None:
    await call(
        blocker,
        limiter or trio.CapacityLimiter(1),
        interrupt=interrupt,  # type: ignore[arg-type]
        abandon=lambda: abandoned.append("abandoned"),
    )
