"""What is to be told by which channel, and when: decided from events and two clocks. Pure.

An alarm that is raised, comes again or is over makes a notice for every channel that takes it. The
notices that wait at a channel go out as one message. A notice that is on its way stays waiting
until the receiver has it: it may be told twice, with the same id, and is not lost.

Seconds are those of a clock that is never set (``now``); moments are the wall clock's, for people.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import attrs

from fep.alarms.config import AlarmsConfig, ChannelConfig
from fep.alarms.state import MEANINGS, Alarm, AlarmKind, AlarmState, Severity
from fep.domain.clock import to_text
from fep.domain.errors import LocalProtocolError

BACKOFF_FIRST_SECONDS: Final = 5.0
BACKOFF_SECONDS_MAX: Final = 600.0
BACKOFF_FACTOR: Final = 2.0
FAILURES_TO_ALARM: Final = 3
"""So many attempts in a row fail before the other channels hear of it."""
MINUTE_SECONDS: Final = 60.0
WAITING_NOTICES_MAX: Final = 1000
"""At one channel; beyond it the oldest of the least severe is given up."""
REASON_CHARS_MAX: Final = 300

REPEATED: Final = frozenset({Severity.CRITICAL, Severity.MAJOR})
"""A minor alarm, such as a certificate that ends in a month, is told once."""
SEVERITY_RANK: Final = {one: rank for rank, one in enumerate(Severity)}


class What(StrEnum):
    """What of an alarm a notice tells."""

    RAISED = "raised"
    AGAIN = "again"
    CLEARED = "cleared"


class NoticeState(StrEnum):
    """Where a notice stands."""

    WAITING = "waiting"
    SENT = "sent"
    GIVEN_UP = "given_up"


class ChannelState(StrEnum):
    """Where a channel stands."""

    IDLE = "idle"
    """Nothing waits."""
    GATHERING = "gathering"
    """Something waits for what comes with it, or for its turn."""
    SENDING = "sending"
    FAILING = "failing"
    """The last attempt failed; the next one comes after a pause."""


class ChannelEvent(StrEnum):
    """What can happen to it."""

    NOTED = "noted"
    BEGAN = "began"
    TOLD = "told"
    TOLD_SOME = "told_some"
    """Others came meanwhile."""
    FAILED = "failed"
    GAVE_UP = "gave_up"
    """Nothing waits any more."""


TRANSITIONS: Final[dict[ChannelState, dict[ChannelEvent, ChannelState]]] = {
    ChannelState.IDLE: {ChannelEvent.NOTED: ChannelState.GATHERING},
    ChannelState.GATHERING: {
        ChannelEvent.NOTED: ChannelState.GATHERING,
        ChannelEvent.BEGAN: ChannelState.SENDING,
        ChannelEvent.GAVE_UP: ChannelState.IDLE,
    },
    ChannelState.SENDING: {
        ChannelEvent.NOTED: ChannelState.SENDING,
        ChannelEvent.TOLD: ChannelState.IDLE,
        ChannelEvent.TOLD_SOME: ChannelState.GATHERING,
        ChannelEvent.FAILED: ChannelState.FAILING,
    },
    ChannelState.FAILING: {
        ChannelEvent.NOTED: ChannelState.FAILING,
        ChannelEvent.BEGAN: ChannelState.SENDING,
        ChannelEvent.GAVE_UP: ChannelState.IDLE,
    },
}


class IllegalChannelStepError(LocalProtocolError):
    """An event came in a state without a row for it: a defect of ours."""

    code = "ILLEGAL_TRANSITION"


def step(state: ChannelState, event: ChannelEvent) -> ChannelState:
    """Return the state that follows.

    Raises:
        IllegalChannelStepError: the table has no such row.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        msg = f"{event.value} can't happen to a channel that is {state.value}"
        raise IllegalChannelStepError(msg) from None


@attrs.define
class Notice:
    """One thing that one channel is to tell; as the alarm stood then."""

    id: str
    """A receiver that has seen it drops the second."""
    channel: str
    alarm_id: str
    what: What
    kind: AlarmKind
    subject: str
    cause: str
    count: int
    raised_at: dt.datetime
    noted_at: dt.datetime
    state: NoticeState = NoticeState.WAITING
    ended_at: dt.datetime | None = None
    reason: str = ""
    """Why it was given up."""
    noted_s: float = 0.0
    """``noted_at`` by the clock that is never set."""

    @property
    def severity(self) -> Severity:
        """How soon a person must act."""
        return MEANINGS[self.kind].severity


def takes(config: ChannelConfig, kind: AlarmKind, subject: str) -> bool:
    """Say whether a channel tells of an alarm; of its own failure it can't."""
    own = kind is AlarmKind.ALARM_UNDELIVERED and subject == config.name
    return not own and kind in config.kinds and MEANINGS[kind].severity in config.severities


@attrs.frozen
class ChannelStatus:
    """A channel as people see it."""

    name: str
    kind: str
    language: str
    state: ChannelState
    waiting: int
    failures: int
    """Attempts in a row that failed."""
    told: int
    """Notices since the process began."""
    given_up: int
    last_success_at: dt.datetime | None
    last_failure_at: dt.datetime | None
    last_error: str


@attrs.define
class _Open:
    """An alarm that nobody has acknowledged, as one channel tells it."""

    alarm: Alarm
    again_s: float = math.inf
    """When it is to be told again; never while it waits to be told."""


class Outbox:
    """One channel: what waits at it, and when it sends.

    Args:
        config: the channel's.
        rules: those of all channels.
        rng: draws the pauses.
        new_id: makes a notice's id.
    """

    def __init__(
        self,
        config: ChannelConfig,
        rules: AlarmsConfig,
        rng: random.Random,
        new_id: Callable[[], str],
    ) -> None:
        self.config = config
        self.rules = rules
        self.state = ChannelState.IDLE
        self.waiting: dict[str, Notice] = {}
        self.failures = 0
        self._rng = rng
        self._new_id = new_id
        self._open: dict[str, _Open] = {}
        self._under_way: list[Notice] = []
        self._attempts: deque[float] = deque()
        self._ceiling_s = BACKOFF_FIRST_SECONDS
        self._not_before = -math.inf
        self._told = self._given_up = 0
        self._last_success_at: dt.datetime | None = None
        self._last_failure_at: dt.datetime | None = None
        self._last_error = ""

    # -- what comes ----------------------------------------------------------------------------

    def note_raised(self, alarm: Alarm, now: float, moment: dt.datetime) -> list[Notice]:
        """Note that an alarm was raised; returns the notices that this made."""
        if not takes(self.config, alarm.kind, alarm.subject):
            return []
        self._open[alarm.id] = _Open(alarm)
        return [self._note(alarm, What.RAISED, now, moment)]

    def note_acknowledged(self, alarm: Alarm) -> None:
        """Note that a person acts: it is told no more but for its end."""
        self._open.pop(alarm.id, None)

    def note_cleared(self, alarm: Alarm, now: float, moment: dt.datetime) -> list[Notice]:
        """Note that an alarm is over; returns the notices that this made.

        What waits to say that it came again is given up: it is not so any more.
        """
        self._open.pop(alarm.id, None)
        if not takes(self.config, alarm.kind, alarm.subject):
            return []
        stale = [
            one
            for one in self.waiting.values()
            if one.alarm_id == alarm.id and one.what is What.AGAIN and one not in self._under_way
        ]
        ended = [self._give_up(one, moment, "the alarm is over") for one in stale]
        self._given_up -= len(ended)  # nobody misses them
        if self.rules.tells_cleared:
            return [*ended, self._note(alarm, What.CLEARED, now, moment)]
        self._settle()
        return ended

    def _note(self, alarm: Alarm, what: What, now: float, moment: dt.datetime) -> Notice:
        notice = Notice(
            id=self._new_id(),
            channel=self.config.name,
            alarm_id=alarm.id,
            what=what,
            kind=alarm.kind,
            subject=alarm.subject,
            cause=alarm.cause,
            count=alarm.count,
            raised_at=alarm.raised_at,
            noted_at=moment,
            noted_s=now,
        )
        self.waiting[notice.id] = notice
        self.state = step(self.state, ChannelEvent.NOTED)
        return notice

    def take_over(
        self,
        active: Iterable[Alarm],
        waiting: Iterable[Notice],
        told: Mapping[str, dt.datetime],
        now: float,
        moment: dt.datetime,
    ) -> list[Notice]:
        """Go on where the last process, or the last configuration, ended; returns new notices.

        Args:
            active: the alarms in force.
            waiting: this channel's notices that nobody has got.
            told: when each alarm was last noted for this channel.
            now: seconds.
            moment: the wall clock.
        """
        made: list[Notice] = []
        for notice in waiting:
            if notice.id not in self.waiting:
                age = max(0.0, (moment - notice.noted_at).total_seconds())
                notice.noted_s = now - age
                self.waiting[notice.id] = notice
                self.state = step(self.state, ChannelEvent.NOTED)
        waits = {one.alarm_id for one in self.waiting.values()}
        for alarm in active:
            if alarm.state is not AlarmState.RAISED or alarm.id in self._open:
                continue
            if not takes(self.config, alarm.kind, alarm.subject):
                continue
            if alarm.id in waits:
                self._open[alarm.id] = _Open(alarm)
            elif alarm.id in told:
                age = max(0.0, (moment - told[alarm.id]).total_seconds())
                self._open[alarm.id] = _Open(alarm, self._again_after(alarm, now - age))
            else:
                made += self.note_raised(alarm, now, moment)
        return made

    def configure(self, config: ChannelConfig, rules: AlarmsConfig, now: float) -> None:
        """Take other rules into force; what waits stays, and a new place is tried at once."""
        if config.digest != self.config.digest:
            self._not_before, self._ceiling_s = -math.inf, BACKOFF_FIRST_SECONDS
        repeats_otherwise = rules.repeat_s != self.rules.repeat_s
        self.config, self.rules = config, rules
        self._open = {
            alarm_id: one
            for alarm_id, one in self._open.items()
            if takes(config, one.alarm.kind, one.alarm.subject)
        }
        if repeats_otherwise:
            waits = {one.alarm_id for one in self.waiting.values()}
            for alarm_id in self._open.keys() - waits:
                self._tell_again(alarm_id, now)

    def _again_after(self, alarm: Alarm, told_s: float) -> float:
        span = self.rules.repeat_s
        repeats = span > 0 and MEANINGS[alarm.kind].severity in REPEATED
        return told_s + span if repeats else math.inf

    # -- what goes -----------------------------------------------------------------------------

    def look(self, now: float, moment: dt.datetime) -> list[Notice]:
        """Note what is to be told again, and give up what is too old; returns what changed."""
        changed: list[Notice] = []
        for one in self._open.values():
            if one.again_s <= now:
                one.again_s = math.inf
                changed.append(self._note(one.alarm, What.AGAIN, now, moment))
        if self.state is ChannelState.SENDING:
            return changed
        too_old = [
            one for one in self.waiting.values() if one.noted_s + self.rules.age_max_s <= now
        ]
        why = self._last_error or "its turn did not come"
        changed += [self._give_up(one, moment, why, now) for one in too_old]
        excess = len(self.waiting) - WAITING_NOTICES_MAX
        if excess > 0:
            least = sorted(
                self.waiting.values(), key=lambda one: (-SEVERITY_RANK[one.severity], one.noted_s)
            )
            told = f"more than {WAITING_NOTICES_MAX} wait"
            changed += [self._give_up(one, moment, told, now) for one in least[:excess]]
        self._settle()
        return changed

    def next_s(self, now: float) -> float:
        """Return when to look again, in seconds: a message may go then, or a notice is too old."""
        again = min((one.again_s for one in self._open.values()), default=math.inf)
        if self.state not in {ChannelState.GATHERING, ChannelState.FAILING}:
            return again
        oldest = min(one.noted_s for one in self.waiting.values())
        return min(again, self._send_s(oldest, now), oldest + self.rules.age_max_s)

    def _send_s(self, oldest: float, now: float) -> float:
        """Return when the next message may go."""
        return max(oldest + self.rules.group_s, self._turn_s(now), self._not_before)

    def _turn_s(self, now: float) -> float:
        """Return from when on the receiver takes one more message."""
        while self._attempts and self._attempts[0] <= now - MINUTE_SECONDS:
            self._attempts.popleft()
        if len(self._attempts) < self.config.per_minute:
            return -math.inf
        return self._attempts[-self.config.per_minute] + MINUTE_SECONDS

    def is_due(self, now: float) -> bool:
        """Say whether a message may go at this moment."""
        if self.state not in {ChannelState.GATHERING, ChannelState.FAILING}:
            return False
        oldest = min(one.noted_s for one in self.waiting.values())
        return self._send_s(oldest, now) <= now

    def has_turn(self, now: float) -> bool:
        """Say whether the receiver takes one more message in this minute."""
        return self._turn_s(now) <= now

    def note_attempt(self, now: float) -> None:
        """Count a message that goes to the receiver, whatever becomes of it."""
        self._attempts.append(now)

    def begin(self, now: float, most: int) -> list[Notice]:
        """Return what goes now as one message: the most severe first, then the oldest.

        Args:
            now: seconds.
            most: so many at most; the others go with the next message.
        """
        assert self.waiting
        self.state = step(self.state, ChannelEvent.BEGAN)
        self.note_attempt(now)
        ordered = sorted(
            self.waiting.values(), key=lambda one: (SEVERITY_RANK[one.severity], one.noted_s)
        )
        self._under_way = ordered[:most]
        return list(self._under_way)

    def delivered(self, now: float, moment: dt.datetime) -> list[Notice]:
        """Note that the receiver has the message; returns the notices that are told."""
        told, self._under_way = self._under_way, []
        for one in told:
            del self.waiting[one.id]
            one.state, one.ended_at = NoticeState.SENT, moment
            self._tell_again(one.alarm_id, now)
        self._told += len(told)
        self.note_success(moment)
        event = ChannelEvent.TOLD_SOME if self.waiting else ChannelEvent.TOLD
        self.state = step(self.state, event)
        return told

    def note_success(self, moment: dt.datetime) -> None:
        """Note that the receiver took a message, if only a test's."""
        self.failures, self._ceiling_s, self._not_before = 0, BACKOFF_FIRST_SECONDS, -math.inf
        self._last_success_at, self._last_error = moment, ""

    def failed(
        self, now: float, moment: dt.datetime, reason: str, retry_after_s: float = 0.0
    ) -> float:
        """Note that an attempt failed; returns the pause until the next one, in seconds.

        Args:
            now: seconds.
            moment: the wall clock.
            reason: what went wrong.
            retry_after_s: the receiver asks for so long a pause.
        """
        self._under_way = []
        self.failures += 1
        self._last_failure_at, self._last_error = moment, reason[:REASON_CHARS_MAX]
        # Half of it at least: a receiver that refuses is not asked again at once.
        pause = self._ceiling_s * self._rng.uniform(0.5, 1.0)
        pause = max(pause, min(retry_after_s, BACKOFF_SECONDS_MAX))
        self._ceiling_s = min(self._ceiling_s * BACKOFF_FACTOR, BACKOFF_SECONDS_MAX)
        self._not_before = now + pause
        self.state = step(self.state, ChannelEvent.FAILED)
        return pause

    def abandon(self) -> None:
        """Note that the message on its way was not ended: its notices wait still."""
        if self.state is ChannelState.SENDING:
            self._under_way = []
            self.state = step(self.state, ChannelEvent.FAILED)

    def close(self, moment: dt.datetime, reason: str) -> list[Notice]:
        """Give up all that waits, since the channel is no more; returns it."""
        self.abandon()
        ended = [self._give_up(one, moment, reason) for one in list(self.waiting.values())]
        self._settle()
        return ended

    def note_refusal(self, moment: dt.datetime, reason: str) -> None:
        """Note that the receiver did not take a test's message; the pauses stay as they are."""
        self._last_failure_at, self._last_error = moment, reason[:REASON_CHARS_MAX]

    def status(self) -> ChannelStatus:
        """Return the channel as people see it."""
        return ChannelStatus(
            name=self.config.name,
            kind=self.config.kind.value,
            language=self.config.language,
            state=self.state,
            waiting=len(self.waiting),
            failures=self.failures,
            told=self._told,
            given_up=self._given_up,
            last_success_at=self._last_success_at,
            last_failure_at=self._last_failure_at,
            last_error=self._last_error,
        )

    def _give_up(
        self, notice: Notice, moment: dt.datetime, reason: str, now: float = math.inf
    ) -> Notice:
        del self.waiting[notice.id]
        notice.state, notice.ended_at, notice.reason = NoticeState.GIVEN_UP, moment, reason
        self._given_up += 1
        self._tell_again(notice.alarm_id, now)
        return notice

    def _tell_again(self, alarm_id: str, now: float) -> None:
        one = self._open.get(alarm_id)
        if one is not None:
            one.again_s = self._again_after(one.alarm, now)

    def _settle(self) -> None:
        if not self.waiting and self.state in {ChannelState.GATHERING, ChannelState.FAILING}:
            self.state = step(self.state, ChannelEvent.GAVE_UP)


class Outgoing:
    """All channels: each alarm's events go to those that take it."""

    def __init__(self, rng: random.Random, new_id: Callable[[], str]) -> None:
        self.boxes: dict[str, Outbox] = {}
        self._rng = rng
        self._new_id = new_id

    def raised(self, alarm: Alarm, now: float, moment: dt.datetime) -> list[Notice]:
        """Note that an alarm was raised; returns the notices that this made."""
        return [
            notice for box in self.boxes.values() for notice in box.note_raised(alarm, now, moment)
        ]

    def acknowledged(self, alarm: Alarm) -> None:
        """Note that a person acts on an alarm."""
        for box in self.boxes.values():
            box.note_acknowledged(alarm)

    def cleared(self, alarm: Alarm, now: float, moment: dt.datetime) -> list[Notice]:
        """Note that an alarm is over; returns the notices that changed."""
        return [
            notice for box in self.boxes.values() for notice in box.note_cleared(alarm, now, moment)
        ]

    def configure(self, rules: AlarmsConfig, now: float, moment: dt.datetime) -> list[Notice]:
        """Take these channels into force; returns the notices of those that are no more."""
        wanted = {one.name: one for one in rules.channels}
        ended: list[Notice] = []
        for name in [name for name in self.boxes if name not in wanted]:
            ended += self.boxes.pop(name).close(moment, "the channel is not configured any more")
        for name, config in wanted.items():
            if (box := self.boxes.get(name)) is not None:
                box.configure(config, rules, now)
            else:
                self.boxes[name] = Outbox(config, rules, self._rng, self._new_id)
        return ended


def shown(status: ChannelStatus) -> dict[str, Any]:
    """Return a channel as the protocol shows it; moments that never were are left out."""
    value: dict[str, Any] = {
        "channel": status.name,
        "kind": status.kind,
        "language": status.language,
        "state": status.state.value,
        "waiting": status.waiting,
        "failures": status.failures,
        "told": status.told,
        "given_up": status.given_up,
        "last_error": status.last_error,
    }
    for name in ("last_success_at", "last_failure_at"):
        moment = getattr(status, name)
        if moment is not None:
            value[name] = to_text(moment)
    return value
