"""Defects that were or could be ours, to be put in on purpose: what the simulation must notice.

Each is a function that takes pytest's ``MonkeyPatch`` and breaks the engine until it is undone.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import pytest
import trio

from fep.adapters.api import Context
from fep.domain.errors import KeySlotError, LinkLostError, NothingSentError
from fep.domain.order import BatchOrder, PaymentOrder
from fep.tasks import evidence, store
from fep.tasks.asking import prepared
from fep.tasks.lane import Lane
from fep.tasks.service import TaskService
from fep.tasks.state import Event, step
from fep.tasks.task import Task
from fep.tasks.watch import Watch


def resends_on_time_out(patch: pytest.MonkeyPatch) -> None:
    """A payment without an answer is sent once more, under the same reference."""
    _resend(patch, PaymentOrder)


def resends_a_batch_on_time_out(patch: pytest.MonkeyPatch) -> None:
    """The same of batches alone."""
    _resend(patch, BatchOrder)


def _resend(patch: pytest.MonkeyPatch, kind: type[PaymentOrder | BatchOrder]) -> None:
    leave_open = Lane._open_at_bank

    async def send_again(
        self: Lane, task: Task, event: Event, cause: str, *more: Any, **named: Any
    ) -> None:
        order, parts = task.body, self.parts
        if cause.startswith("no answer") and isinstance(order, kind):
            now = self._service.clock.now()
            context = Context(now, self._service.sequence.next(now), task.client_ref)
            draft = prepared(parts.codec, order, context)
            try:
                frame = parts.codec.seal(draft, await self._sign(draft, task))
                with trio.fail_after(parts.reply_timeout_s):
                    reply = await parts.link.exchange(frame, draft.correlation)
            except (trio.TooSlowError, LinkLostError, NothingSentError, KeySlotError):
                pass
            else:
                await self._take_answer(task, reply)
                return
        await leave_open(self, task, event, cause, *more, **named)

    patch.setattr(Lane, "_open_at_bank", send_again)


def sends_before_the_disk_has_it(patch: pytest.MonkeyPatch) -> None:
    """``sending`` is handed to the disk, and the first byte leaves without waiting for it."""
    change = TaskService.change

    async def unsynced(
        self: TaskService, task: Task, events: tuple[Event, ...], cause: str, **more: Any
    ) -> None:
        if events[-1] is not Event.SEND_BEGUN:
            await change(self, task, events, cause, **more)
            return
        before = after = task.state
        for event in events:
            after = step(after, event)
        one = store.Change(
            task.seq,
            before,
            after,
            events,
            cause,
            self.clock.now(),
            more["columns"],
            more["wire"],
            more["sent"],
        )
        self._open.turn(task, after)
        self._changes.submit([one], self.configuration, lambda _error: None)

    patch.setattr(TaskService, "change", unsynced)


def takes_no_record_for_no(patch: pytest.MonkeyPatch) -> None:
    """What the bank does not find was not done, whenever it is asked."""
    patch.setattr(evidence, "no_record_counts", lambda *_: True)


def counts_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """How long a payment is unknown is read from the clock on the wall."""
    shown: list[dt.datetime] = []

    def now(self: TaskService) -> dt.datetime:
        shown[:] = [self.clock.now()]
        return shown[0]

    def waited(self: Task, _moment: float) -> float:
        assert self.sent_at is not None
        return (shown[0] - self.sent_at).total_seconds()

    patch.setattr(TaskService, "certain_now", now)
    patch.setattr(Task, "waited", waited)


def begins_anew_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """A step of the clock does not count, but where the clock stands at the next start does."""
    certain = TaskService.certain_now
    shown: list[dt.datetime] = []

    def now(self: TaskService) -> dt.datetime:
        shown[:] = [certain(self)]
        return shown[0]

    def waited(self: Task, _moment: float) -> float:
        assert self.sent_at is not None
        return (shown[0] - self.sent_at).total_seconds()

    patch.setattr(TaskService, "certain_now", now)
    patch.setattr(Task, "waited", waited)


def forgets_what_the_bank_said(patch: pytest.MonkeyPatch) -> None:
    """A payment that was in progress may be "no record" a little later, and is refused then."""
    decide = evidence.decide

    def forgetful(*given: Any) -> evidence.Decision:
        decision = decide(*given)
        if isinstance(decision, evidence.AskAgain):
            return evidence.AskAgain(decision.at, decision.cause)
        return decision

    patch.setattr(evidence, "decide", forgetful)


def looks_at_no_account(patch: pytest.MonkeyPatch) -> None:
    """Successes are never looked at again."""
    patch.setattr(Watch, "_want", lambda *_: None)


VARIANTS: Final = {
    one.__name__: one
    for one in (
        resends_on_time_out,
        resends_a_batch_on_time_out,
        sends_before_the_disk_has_it,
        takes_no_record_for_no,
        counts_by_the_wall_clock,
        begins_anew_by_the_wall_clock,
        looks_at_no_account,
    )
}
