"""The channels at work: one task a channel, which sends what waits until the receiver has it.

A channel that can't send is told by the others, with the alarm ALARM_UNDELIVERED, until it can.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import attrs
import structlog
import trio

from fep.alarms.config import AlarmsConfig
from fep.alarms.messages import NOTICES_MAX, Message, message_of, trial_message
from fep.alarms.outgoing import FAILURES_TO_ALARM, ChannelState, Notice, NoticeState, Outbox, shown
from fep.alarms.senders import NotSent, Send, Sent, sender_of
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import new_session_id

log = structlog.get_logger()

KEPT_DAYS: Final = 90
"""So long the store says who was told what, and when."""
HOUSEKEEPING_SECONDS: Final = 600.0
LOOK_PAUSE_SECONDS: Final = 0.1
"""After a change, until it is looked at."""

Supervise = Callable[..., Awaitable[None]]
"""Runs a lane by its name, again after a defect."""


class ChannelBusyError(FepError):
    """The receiver takes no more messages in this minute."""

    code = "BAD_STATE"


@attrs.define(eq=False)
class _Running:
    """A channel's task."""

    digest: str
    box: Outbox
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ended: trio.Event = attrs.Factory(trio.Event)


class Delivery:
    """Owns the tasks of the channels. Start :meth:`run` in the daemon's nursery.

    Args:
        alarms: what is told.
        clock: the wall clock.
        machine: this front-end machine's number, for who reads the messages.
        supervise: runs a lane by its name, again after a defect.
    """

    def __init__(self, alarms: Alarms, clock: Clock, machine: str, supervise: Supervise) -> None:
        self._alarms = alarms
        self._clock = clock
        self._machine = machine
        self._supervise = supervise
        self._running: dict[str, _Running] = {}
        self._changed = trio.Event()

    async def configure(self, config: AlarmsConfig) -> None:
        """Take these channels into force, without a word lost."""
        await self._alarms.configure(config)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled; what was not sent then waits in the store."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_house)
            is_first = True
            while True:
                changed = self._changed
                await self._end_changed()
                for name, box in self._alarms.outgoing.boxes.items():
                    if name not in self._running:
                        running = _Running(box.config.digest, box)
                        self._running[name] = running
                        nursery.start_soon(self._run_channel, name, running)
                if is_first:
                    task_status.started()
                    is_first = False
                await changed.wait()

    async def _end_changed(self) -> None:
        """End the tasks of channels that are no more, or that are configured otherwise."""
        boxes = self._alarms.outgoing.boxes
        for name, running in list(self._running.items()):
            box = boxes.get(name)
            if box is not running.box or box.config.digest != running.digest:
                running.scope.cancel()
                await running.ended.wait()
                del self._running[name]

    async def _run_channel(self, name: str, running: _Running) -> None:
        try:
            with running.scope:
                await self._supervise(f"channel:{name}", partial(self._serve, running.box))
        finally:
            running.ended.set()

    async def _serve(
        self, box: Outbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Send what waits at one channel, until cancelled."""
        send = sender_of(box.config)
        task_status.started()
        try:
            while True:
                noted, now = self._alarms.noted, trio.current_time()
                self._keep(box, box.look(now, self._clock.now()))
                if box.is_due(now):
                    await self._send_waiting(box, send)
                    continue
                with trio.move_on_at(box.next_s(now)):
                    await noted.wait()
                    # Thousands may end one after the other: one look is for all of them.
                    await trio.sleep(LOOK_PAUSE_SECONDS)
        finally:
            box.abandon()

    async def _send_waiting(self, box: Outbox, send: Send) -> None:
        config, began = box.config, trio.current_time()
        notices = box.begin(began, NOTICES_MAX[config.kind])
        message = message_of(
            notices, self._machine, config.name, config.language, self._clock.now()
        )
        outcome = await send(message)
        if box.state is not ChannelState.SENDING:
            return  # the channel was taken out of force meanwhile
        now, moment = trio.current_time(), self._clock.now()
        match outcome:
            case Sent():
                self._alarms.keep_notices(box.delivered(now, moment))
                log.info(
                    "notice.sent",
                    channel=config.name,
                    message=message.id,
                    notices=len(notices),
                    seconds=round(now - began, 3),
                )
                self._alarms.clear(AlarmKind.ALARM_UNDELIVERED, config.name)
            case NotSent(reason, retry_after_s):
                pause = box.failed(now, moment, reason, retry_after_s)
                log.warning(
                    "notice.failed",
                    channel=config.name,
                    message=message.id,
                    notices=len(notices),
                    failures=box.failures,
                    reason=reason,
                    retry_seconds=round(pause, 3),
                )
                if box.failures == FAILURES_TO_ALARM:
                    self._alarms.raise_alarm(AlarmKind.ALARM_UNDELIVERED, config.name, reason)

    def _keep(self, box: Outbox, changed: Iterable[Notice]) -> None:
        """Keep what the look changed, and tell what was given up."""
        kept = list(changed)
        given_up = [one for one in kept if one.state is NoticeState.GIVEN_UP]
        self._alarms.keep_notices(kept)
        if given_up:
            log.error(
                "notice.given_up",
                channel=box.config.name,
                notices=len(given_up),
                alarms=sorted({f"{one.kind.value} {one.subject}" for one in given_up}),
                reason=given_up[0].reason,
            )
            self._alarms.raise_alarm(
                AlarmKind.ALARM_UNDELIVERED,
                box.config.name,
                f"{len(given_up)} notices were given up: {given_up[0].reason}",
            )

    async def _keep_house(self) -> None:
        while True:
            if self._alarms.outgoing.boxes:
                self._alarms.try_again()
                self._alarms.forget_notices(self._clock.now() - dt.timedelta(days=KEPT_DAYS))
            await trio.sleep(HOUSEKEEPING_SECONDS)

    # -- what people ask -----------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Return every channel as the protocol shows it."""
        return [shown(box.status()) for box in self._alarms.outgoing.boxes.values()]

    async def test(self, name: str) -> dict[str, Any]:
        """Send a test's message at once, past what waits; return how it went.

        Raises:
            LookupError: there is no such channel.
            ChannelBusyError: BAD_STATE, so many messages went in this minute that the receiver
                takes no more.
        """
        box = self._alarms.outgoing.boxes.get(name)
        if box is None:
            raise LookupError(name)
        began, config = trio.current_time(), box.config
        if not box.has_turn(began):
            msg = f"{name}: {config.per_minute} messages went in this minute; try again later"
            raise ChannelBusyError(msg)
        box.note_attempt(began)
        message: Message = trial_message(
            self._machine, name, config.language, self._clock.now(), new_session_id()
        )
        outcome = await sender_of(config)(message)
        seconds, moment = round(trio.current_time() - began, 3), self._clock.now()
        told = ""
        match outcome:
            case Sent():
                box.note_success(moment)
                self._alarms.clear(AlarmKind.ALARM_UNDELIVERED, name)
                self._alarms.wake()  # what waits for a pause to be over may go now
            case NotSent(reason, _):
                told = reason
                box.note_refusal(moment, reason)
        log.info("channel.tested", channel=name, delivered=not told, reason=told, seconds=seconds)
        return {"channel": name, "delivered": not told, "told": told, "seconds": seconds}
