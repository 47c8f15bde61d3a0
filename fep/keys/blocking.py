"""One blocking call in a thread of its own limiter, such that its owner can always end in time.

A card call can't be stopped. While its owner only waits too long, the call is waited for; when the
owner is cancelled (card gone, shutdown) it is given a grace and then left to itself. The limiter
stays taken until the thread is back, so no second call is ever made beside a lost one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import outcome
import trio

T = TypeVar("T")

GRACE_SECONDS: Final = 2.0
CANCEL_AGAIN_SECONDS: Final = 0.02
"""A cancel that comes before the call blocks is lost, so it is repeated."""


async def call(
    work: Callable[[], T],
    limiter: trio.CapacityLimiter,
    *,
    interrupt: Callable[[], Awaitable[None]] | None = None,
    overdue: Callable[[], None] | None = None,
    overdue_seconds: float = 0.0,
    abandon: Callable[[], None] | None = None,
) -> T:
    """Return what the work returns, or raise what it raises.

    Args:
        work: blocking function.
        limiter: of one token; a call that waits for it counts as running.
        interrupt: makes a blocked call return early; called again and again once cancelled.
        overdue: called once when the work takes longer than the next; waiting goes on.
        overdue_seconds: from when the work is overdue.
        abandon: called when a cancelled caller gives up on the work.

    Raises:
        trio.Cancelled: cancelled; the thread is back, or ``abandon`` was called.
    """
    box: list[outcome.Maybe[T]] = []
    done = trio.Event()
    # The child outlives its parent's cancellation until the parent lets go of it.
    hold = trio.CancelScope()
    hold.shield = True

    async def run() -> None:
        try:
            with hold:
                box.append(
                    await trio.to_thread.run_sync(
                        outcome.capture, work, limiter=limiter, abandon_on_cancel=True
                    )
                )
        finally:
            done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            if overdue is not None:
                with trio.move_on_after(overdue_seconds):
                    await done.wait()
                if not done.is_set():
                    overdue()
            await done.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True, relative_deadline=GRACE_SECONDS):
                while not done.is_set():
                    if interrupt is not None:
                        await interrupt()
                    with trio.move_on_after(CANCEL_AGAIN_SECONDS):
                        await done.wait()
            if not done.is_set():
                if abandon is not None:
                    abandon()
                hold.cancel()
            raise
    return box[0].unwrap()
