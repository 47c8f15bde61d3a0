"""The supervisor: a defect in one lane is caught once, here, and the others do not notice.

Expected loss (a bank that is down, a key that is out) is handled where it happens and never comes
here. That the store has ended is no lane's defect either: it ends the daemon, and the lane waits
for that. Nor is it one that the store refuses a lane what it asks for at the moment: the lane is
started again until it does not, and an alarm stands while that happens often. What else comes here
is a defect of ours: it is logged with its trace and the lane is started again, a few times; then it
is FAILED, with an alarm, until the service is restarted, and what it held is let go of, so that
persons can act on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.errors import FepError
from fep.store.database import StoreBusyError, StoreFailedError, StoreFullError

log = structlog.get_logger()

RESTARTS_MAX: Final = 5
RESTART_WINDOW_SECONDS: Final = 600.0
RESTART_PAUSE_SECONDS: Final = 1.0
CLEAR_SECONDS: Final = 30.0
"""A lane that has run so long since the store refused it something is well again."""

Lane = Callable[..., Awaitable[None]]
Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def supervise(
    name: str,
    lane: Lane,
    alarms: Alarms,
    *,
    leave: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a lane for ever, starting it again after a defect; returns when it has FAILED.

    ``started()`` when the lane is for the first time, or when it has failed before it ever was: a
    lane that can't start must not keep the daemon from starting.

    Args:
        name: of the lane, for logs and the alarm, such as ``bank:pingan``.
        lane: called with ``task_status``; it must not return.
        alarms: where LANE_FAILED goes.
        leave: called when it has FAILED and the alarm is raised, until it succeeds; None: nothing
            is left to be done.
        task_status: trio's.
    """
    crashes, interruptions = deque[float](), deque[float]()
    first = _Once(task_status)
    alarms.clear(AlarmKind.LANE_FAILED, name)
    while True:
        try:
            if interruptions:
                await _run_and_clear(partial(lane, task_status=first), alarms, name)
            else:
                await lane(task_status=first)
        except Exception as error:  # the one place: see the module's docstring
            if _says_only(error, StoreFailedError):
                first.started()
                await trio.sleep_forever()
            if _says_only(error, StoreBusyError, StoreFullError):
                first.started()
                log.warning("lane.interrupted", lane=name, reason=_told(error))
                if _count(interruptions) > RESTARTS_MAX:
                    cause = f"the store refuses what it asks for: {_told(error)}; it is tried again"
                    alarms.raise_alarm(AlarmKind.LANE_FAILED, name, cause)
                await trio.sleep(RESTART_PAUSE_SECONDS)
                continue
            log.exception("lane.crashed", lane=name)
        else:
            log.error("lane.returned", lane=name)
        first.started()
        if (times := _count(crashes)) > RESTARTS_MAX:
            cause = f"crashed {times} times in {RESTART_WINDOW_SECONDS:g} s"
            log.error("lane.failed", lane=name, cause=cause)
            alarms.raise_alarm(AlarmKind.LANE_FAILED, name, cause)
            if leave is not None:
                await _left(name, leave)
            return
        await trio.sleep(RESTART_PAUSE_SECONDS)


def _count(moments: deque[float]) -> int:
    """Add this moment, and return how many there were within the window."""
    now = trio.current_time()
    moments.append(now)
    while moments[0] < now - RESTART_WINDOW_SECONDS:
        moments.popleft()
    return len(moments)


async def _run_and_clear(lane: Callable[[], Awaitable[None]], alarms: Alarms, name: str) -> None:
    """Run a lane that was interrupted; its alarm goes when it has run for a while."""

    async def clear() -> None:
        await trio.sleep(CLEAR_SECONDS)
        alarms.clear(AlarmKind.LANE_FAILED, name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(clear)
        await lane()
        nursery.cancel_scope.cancel()


async def _left(name: str, leave: Callable[[], Awaitable[None]]) -> None:
    """Do what a lane that has FAILED leaves to be done; what made it fail may be in the way."""
    pause = RESTART_PAUSE_SECONDS
    while True:
        try:
            await leave()
        except Exception as error:  # the one place: see the module's docstring
            if _says_only(error, StoreFailedError):
                return
            log.exception("lane.not_left", lane=name)
        else:
            return
        await trio.sleep(pause)
        pause = min(2 * pause, RESTART_WINDOW_SECONDS)


def _says_only(error: Exception, *kinds: type[FepError]) -> bool:
    """Say whether an error, or all of a group, is of these kinds."""
    if isinstance(error, ExceptionGroup):
        return error.split(kinds)[1] is None
    return isinstance(error, kinds)


def _told(error: BaseException) -> str:
    """Return the words of an error, of a group those of the first that is none."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


class _Once:
    """A task status that passes on the first ``started`` only: a restarted lane says it again."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self._done = False

    def started(self, _value: Any = None) -> None:  # noqa: ANN401 - trio's signature
        if not self._done:
            self._done = True
            self._task_status.started()


async def attempted(what: str, work: Callable[[], Awaitable[None]]) -> str:
    """Do something whose defect must end nothing that runs; returns what went wrong, else nothing.

    Args:
        what: it is, for the log.
        work: what a person asked for.

    Raises:
        FepError: as ``work`` does; a refusal is no defect.
    """
    try:
        await work()
    except FepError:
        raise
    except Exception as error:  # the one place: see the module's docstring
        log.exception("attempt.failed", what=what)
        return str(error) or repr(error)
    return ""


def guarded(handler: Handler) -> Handler:
    """Wrap a connection's handler: what goes wrong in it ends that connection alone."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await handler(stream)
        except Exception:  # an exception group too; Cancelled is no Exception and passes
            log.exception("connection.crashed")

    return serve
