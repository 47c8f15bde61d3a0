"""Daemons that are broken on purpose: the campaign must find each of them.

A break is made in the process it is for, before the daemon starts there; the product has no hook.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
import trio

from fep.adapters.api import Reply
from fep.daemon.main import main
from fep.domain.clock import SystemClock
from fep.domain.errors import LinkLostError, NothingSentError
from fep.domain.ids import TaskId
from fep.links.service import Link
from fep.store.database import Store
from fep.store.postgres import Postgres
from fep.tasks import evidence
from fep.tasks.admission import Admission, Arrival
from fep.tasks.service import TaskService
from fep.tasks.state import Event, State
from fep.tasks.task import Admitted, Task

COMMIT_SECONDS: Final = 0.1
"""A disk so slow that what does not wait for it is caught."""
SLOW_COMMIT_SECONDS: Final = 0.3
PATIENCE_SECONDS: Final = 0.2


def _slow_disk(seconds: float) -> None:
    commit = Store._commit

    def slow(self: Store, group: Any) -> None:
        time.sleep(seconds)
        commit(self, group)

    Store._commit = slow  # type: ignore[method-assign]


def sends_first() -> None:
    """Send a payment while SENDING is still on its way to the disk."""
    _slow_disk(COMMIT_SECONDS)
    change = TaskService.change
    begun: dict[Task, trio.Event] = {}

    async def record(service: TaskService, task: Task, *given: Any, **more: Any) -> None:
        await change(service, task, *given, **more)
        begun.pop(task).set()

    async def hasty(
        self: TaskService, task: Task, events: tuple[Event, ...], cause: str, **more: Any
    ) -> None:
        if Event.SEND_BEGUN in events and more.get("wire") is not None:
            begun[task] = trio.Event()
            trio.lowlevel.spawn_system_task(partial(record, self, task, events, cause, **more))
            # By the second turn it has begun; the rest of the daemon takes it for done.
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            self._open.turn(task, State.SENDING)
            return
        if task in begun:
            await begun[task].wait()
        await change(self, task, events, cause, **more)

    TaskService.change = hasty  # type: ignore[method-assign]


def sends_again() -> None:
    """Take no answer for no: what may have left is sent again."""
    exchange = Link.exchange

    async def impatient(
        self: Link, frame: bytes, correlation: str, may_begin: Callable[[], bool] | None = None
    ) -> Reply:
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                return await exchange(self, frame, correlation, may_begin)
        except (LinkLostError, trio.TooSlowError) as error:
            msg = "surely the bank has nothing"
            raise NothingSentError(msg) from error

    Link.exchange = impatient  # type: ignore[method-assign]


def acknowledges_first() -> None:
    """Say "on disk" of a task that is not yet there."""
    _slow_disk(SLOW_COMMIT_SECONDS)
    submit = Admission.submit

    def hasty(self: Admission, arrival: Arrival, configuration: str) -> None:
        done, arrival.done = arrival.done, lambda _answers: None
        submit(self, arrival, configuration)
        done(
            [
                refused or Admitted(TaskId(one.task_id), State.QUEUED, known=False)
                for one, refused in zip(arrival.submissions, arrival.refusals, strict=True)
            ]
        )

    Admission.submit = hasty  # type: ignore[method-assign]


def commits_later() -> None:
    """Have the database server say "on disk" of a commit that it will write a moment later."""
    check = Postgres.check

    def careless(self: Postgres, connection: sa.Connection) -> None:
        check(self, connection)
        connection.exec_driver_sql("SET synchronous_commit = off")

    Postgres.check = careless  # type: ignore[method-assign]


def believes_no_record() -> None:
    """Take "no record" for proof at once, whatever the bank's card says."""
    vars(evidence)["no_record_counts"] = lambda *_: True


def believes_the_clock() -> None:
    """Take the wall clock's word for how much time has passed."""
    clock = SystemClock()

    def waited(self: Task, _moment: float) -> float:
        assert self.sent_at is not None
        return (clock.now() - self.sent_at).total_seconds()

    Task.waited = waited  # type: ignore[assignment, method-assign]


BREAKS: Final[dict[str, Callable[[], None]]] = {
    "": lambda: None,
    "sends-first": sends_first,
    "sends-again": sends_again,
    "acknowledges-first": acknowledges_first,
    "commits-later": commits_later,
    "believes-no-record": believes_no_record,
    "believes-the-clock": believes_the_clock,
}


if __name__ == "__main__":
    # A daemon that can't be forked, since its clock is another: NAME, and the command.
    BREAKS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
