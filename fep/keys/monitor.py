"""Watches all readers with one thread and one context, and tells what happens as events.

A second thread and context watch the readers that hold a mute card: libpcsclite sleeps 400 ms
inside each wait that has such a reader in its query, which would delay every other slot's events.
Nothing polls. When pcscd goes both contexts are dead for good; new ones are tried with a back-off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import trio

from fep.keys.blocking import GRACE_SECONDS, call
from fep.keys.errors import CANCELLED, UNKNOWN_READER, PcscError
from fep.keys.pcsc import cancel, establish, list_readers, release, wait_change
from fep.keys.readers import ReaderEvent, ReaderTable, Result, ServiceDown, ServiceUp

BACKOFF_FIRST_SECONDS: Final = 0.05
BACKOFF_MAX_SECONDS: Final = 1.0

_BENIGN: Final = frozenset({UNKNOWN_READER, CANCELLED})
"""The list of readers changed under the wait, or a cancel came late: begin anew."""

Report = trio.MemorySendChannel[list[ReaderEvent]]


class _Context:
    """A PC/SC context and the one thread that uses it."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._cancel_limiter = trio.CapacityLimiter(1)
        self._handle: Any = None
        self._lost = False

    async def establish(self) -> None:
        self._handle = await call(establish, self._limiter, abandon=self._lose)

    async def readers(self) -> list[str]:
        return await call(lambda: list_readers(self._handle), self._limiter, abandon=self._lose)

    async def wait(self, query: list[tuple[str, int]]) -> list[Result]:
        return await call(
            lambda: wait_change(self._handle, query),
            self._limiter,
            interrupt=self._interrupt,
            abandon=self._lose,
        )

    async def close(self) -> None:
        if self._handle is not None and not self._lost:
            await call(lambda: release(self._handle), self._limiter)

    async def _interrupt(self) -> None:
        # Cancelling talks to pcscd over a socket of its own: a hung pcscd must not hang the loop.
        await trio.to_thread.run_sync(
            cancel, self._handle, limiter=self._cancel_limiter, abandon_on_cancel=True
        )

    def _lose(self) -> None:
        self._lost = True


@asynccontextmanager
async def _opened() -> AsyncIterator[_Context]:
    context = _Context()
    try:
        await context.establish()
        yield context
    finally:
        with trio.CancelScope(shield=True, relative_deadline=GRACE_SECONDS):
            await context.close()


class _Watch:
    """One life of the PC/SC service: two waits over one table."""

    def __init__(self, report: Report) -> None:
        self.listed = False
        self._report = report
        self._table = ReaderTable()
        self._main_wait = trio.CancelScope()
        self._mute_wait = trio.CancelScope()
        self._mute_changed = trio.Event()

    async def run(self, main: _Context, side: _Context) -> NoReturn:
        """Report until PC/SC fails.

        Raises:
            PcscError: perhaps inside an exception group.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_mute, side)
            while True:
                await self._relist(main)
                with trio.CancelScope() as self._main_wait:
                    await self._observe(main, self._table.query())

    async def _watch_mute(self, side: _Context) -> NoReturn:
        while True:
            self._mute_changed = trio.Event()
            query = self._table.mute_query()
            if not query:
                await self._mute_changed.wait()
                continue
            with trio.CancelScope() as self._mute_wait:
                await self._observe(side, query)
                # A reader that is gone from the list wakes this wait at once, again and again,
                # until it is out of the table too.
                await self._relist(side)

    async def _observe(self, context: _Context, query: list[tuple[str, int]]) -> None:
        try:
            results = await context.wait(query)
        except PcscError as error:
            if error.number not in _BENIGN:
                raise
            return
        before = self._table.mute_query()
        events = self._table.observe(results)
        self._regroup(before)
        await self._tell(events)

    async def _relist(self, context: _Context) -> None:
        names = await context.readers()
        before = self._table.mute_query()
        events = self._table.relist(names)
        self._regroup(before)
        if not self.listed:
            self.listed = True
            events.insert(0, ServiceUp())
        await self._tell(events)

    def _regroup(self, before: list[tuple[str, int]]) -> None:
        """Let both waits begin anew when a reader changed from one to the other."""
        if {name for name, _ in before} != {name for name, _ in self._table.mute_query()}:
            self._mute_changed.set()
            self._mute_wait.cancel()
            self._main_wait.cancel()

    async def _tell(self, events: list[ReaderEvent]) -> None:
        if events:
            # What was observed is in the table and won't be seen again: it must not be lost when
            # the other wait cancels this one. The receiver only does bookkeeping, so this is short.
            with trio.CancelScope(shield=True, relative_deadline=GRACE_SECONDS):
                await self._report.send(events)


async def watch_readers(report: Report) -> NoReturn:
    """Report the readers' events, in order, for ever; a service that is down is reported once.

    The first report comes when the first attempt succeeded (``ServiceUp``) or failed
    (``ServiceDown``). Every reader and card is reported anew after each ``ServiceUp``.
    """
    pause = BACKOFF_FIRST_SECONDS
    down = False
    while True:
        watch = _Watch(report)
        reason = ""
        try:
            async with _opened() as main, _opened() as side:
                await watch.run(main, side)
        except* PcscError as failures:
            reason = str(_first(failures))
        if watch.listed:
            pause, down = BACKOFF_FIRST_SECONDS, False
        if not down:
            down = True
            await report.send([ServiceDown(reason)])
        await trio.sleep(pause)
        pause = min(2 * pause, BACKOFF_MAX_SECONDS)


def _first(group: BaseExceptionGroup[PcscError]) -> PcscError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
