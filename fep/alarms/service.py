"""The alarms in force, kept on disk; raising and clearing never waits and never fails."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
import structlog
import trio

from fep.alarms import store
from fep.alarms.config import AlarmsConfig
from fep.alarms.outgoing import Notice, NoticeState, Outgoing
from fep.alarms.state import MEANINGS, Alarm, AlarmKind, Severity
from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import new_session_id
from fep.store.database import Store, Work

log = structlog.get_logger()

COUNTED_LOG_EVERY: Final = 100
"""A cause that keeps coming is logged and stored the first time and then each hundredth."""
UNSTORED_ALARMS_MAX: Final = 1024
"""Changes the disk refused that are offered to it again; the oldest are given up."""
UNSTORED_NOTICES_MAX: Final = 4096
FORGOTTEN_AT_ONCE: Final = 500
NOT_CONFIGURED: Final = "the channel is not configured any more"
ID_CHARS: Final = 12


class Alarms:
    """Owns the active alarms: at most one for each kind and subject.

    Every change is handed to the store without waiting. What a full disk refuses is kept and handed
    over again when it takes something, so an alarm about the disk does not need the disk.

    What channels are to tell of a change (``outgoing``) is written with the change.
    """

    def __init__(
        self,
        database: Store,
        clock: Clock,
        config: AlarmsConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._store = database
        self._clock = clock
        self._active: dict[tuple[AlarmKind, str], Alarm] = {}
        self._unstored: dict[str, Alarm] = {}
        self._unstored_notices: dict[str, Notice] = {}
        self.outgoing = Outgoing(rng or random.Random(), self._new_id)  # noqa: S311 - pauses
        self.noted = trio.Event()
        """Set when there is something to look at; then another one takes its place."""
        if config is not None:
            self.outgoing.configure(config, 0.0, clock.now())
        self.raised: dict[AlarmKind, int] = dict.fromkeys(AlarmKind, 0)
        """How many were raised since the process began, without those that came again."""

    async def load(self) -> None:
        """Take over what was active when this machine's last process ended.

        Of two for one kind and subject (the end of the older one met a full disk) the newer stays
        and the older is cleared; what was raised since this process began is newer than both.
        """
        scope = self._store.scope

        def read(connection: sa.Connection) -> tuple[list[Alarm], list[Notice], Any]:
            waiting = store.waiting_notices(connection, scope)
            return store.active(connection, scope), waiting, store.last_noted(connection)

        alarms, waiting, told = await self._store.read(read)
        for alarm in alarms:
            known = self._active.setdefault((alarm.kind, alarm.subject), alarm)
            if known is alarm:
                continue
            older, newer = sorted((known, alarm), key=lambda one: one.raised_at)
            self._active[alarm.kind, alarm.subject] = newer
            older.clear(self._clock.now())
            self._keep(older)
        self._take_over(waiting, told)

    async def configure(self, config: AlarmsConfig) -> None:
        """Take these channels into force; what waits at one that stays is told still."""
        told = await self._store.read(store.last_noted)
        ended = self.outgoing.configure(config, trio.current_time(), self._clock.now())
        self.keep_notices(ended)
        self._take_over([], told)

    def _take_over(self, waiting: list[Notice], told: dict[str, Any]) -> None:
        """Have each channel go on, and end what belongs to channels that are no more."""
        boxes, moment = self.outgoing.boxes, self._clock.now()
        for notice in waiting:
            if notice.channel not in boxes:
                notice.state, notice.ended_at = NoticeState.GIVEN_UP, moment
                notice.reason = NOT_CONFIGURED
                self.keep_notices([notice])
        for alarm in self.active():
            if alarm.kind is AlarmKind.ALARM_UNDELIVERED and alarm.subject not in boxes:
                self.clear(alarm.kind, alarm.subject)
        for name, box in boxes.items():
            own = [one for one in waiting if one.channel == name]
            now = trio.current_time()
            self.keep_notices(box.take_over(self.active(), own, told.get(name, {}), now, moment))
        self.wake()

    def wake(self) -> None:
        """Have the channels look what is to be done."""
        noted, self.noted = self.noted, trio.Event()
        noted.set()

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        """Raise it, or count it when it is active already.

        Args:
            kind: what is wrong.
            subject: which slot, bank, client, task or pool.
            cause: one English sentence or less; the newest is shown.
        """
        now = self._clock.now()
        alarm = self._active.get((kind, subject))
        notices: list[Notice] = []
        if alarm is None:
            alarm = Alarm(self._new_id(), kind, subject, cause, now, now)
            self._active[kind, subject] = alarm
            if self.outgoing.boxes:
                notices = self.outgoing.raised(alarm, trio.current_time(), now)
            self.raised[kind] += 1
        else:
            alarm.seen_again(cause, now)
            if alarm.count % COUNTED_LOG_EVERY:
                return
        _log_raised(alarm)
        self._keep(alarm, notices)

    def _new_id(self) -> str:
        return self._store.scope + new_session_id()[:ID_CHARS]

    def clear(self, kind: AlarmKind, subject: str) -> None:
        """Note that it is over; nothing happens when it is not active."""
        alarm = self._active.pop((kind, subject), None)
        if alarm is None:
            return
        now = self._clock.now()
        alarm.clear(now)
        log.info(
            "alarm.cleared", alarm_id=alarm.id, kind=kind.value, subject=subject, count=alarm.count
        )
        notices: list[Notice] = []
        if self.outgoing.boxes:
            notices = self.outgoing.cleared(alarm, trio.current_time(), now)
        self._keep(alarm, notices)

    def clear_all(self, kind: AlarmKind) -> None:
        """Note that it is over for every subject."""
        for alarm in self.active():
            if alarm.kind is kind:
                self.clear(kind, alarm.subject)

    async def acknowledge(self, alarm_id: str, who: str) -> Alarm:
        """Note on disk that a person acts on it; one that is only an event is over with that.

        Raises:
            LookupError: no active alarm has this id.
            StoreFullError, StoreFailedError, StoreBusyError: it holds, but is not on disk yet.
        """
        alarm = next((one for one in self._active.values() if one.id == alarm_id), None)
        if alarm is None:
            raise LookupError(alarm_id)
        alarm.acknowledge(who, self._clock.now())
        self.outgoing.acknowledged(alarm)
        log.info("alarm.acknowledged", alarm_id=alarm.id, kind=alarm.kind.value, who=who)
        if MEANINGS[alarm.kind].momentary:
            self.clear(alarm.kind, alarm.subject)
        # The store keeps the order: a clear above or meanwhile is written last.
        try:
            await self._store.write(partial(store.put, row=store.row_of(alarm)))
        except FepError:
            self._unstored[alarm.id] = alarm
            raise
        return alarm

    def active(self) -> list[Alarm]:
        """Return what is raised or acknowledged, oldest first."""
        return sorted(self._active.values(), key=lambda alarm: alarm.raised_at)

    async def recent(self, limit: int, client: str | None = None) -> list[Alarm]:
        """Return the newest stored alarms, cleared ones too; with a client those it may see."""
        read = partial(store.recent, limit=limit, client=client)
        found: list[Alarm] = await self._store.read(read)
        return found

    def try_again(self) -> None:
        """Hand over again one change that the disk refused; when it is taken the others follow."""
        if self._unstored:
            self._keep(next(iter(self._unstored.values())))
        elif self._unstored_notices:
            self.keep_notices([next(iter(self._unstored_notices.values()))])

    def keep_notices(self, notices: Iterable[Notice]) -> None:
        """Hand notices to the store as they stand now."""
        if kept := list(notices):
            rows = [store.notice_row(one) for one in kept]
            self._submit(partial(store.put_notices, rows=rows), None, kept)

    def forget_notices(self, before: dt.datetime) -> None:
        """Have the store remove some of the notices that ended before a moment."""
        work = partial(
            store.forget_notices, before=before, scope=self._store.scope, most=FORGOTTEN_AT_ONCE
        )
        self._submit(work, None, [])

    def _keep(self, alarm: Alarm, notices: Iterable[Notice] = ()) -> None:
        """Hand it to the store as it stands now, with what is to be told of it."""
        kept = list(notices)
        rows = [store.notice_row(one) for one in kept]
        work = partial(store.put_with_notices, row=store.row_of(alarm), notices=rows)
        self._submit(work, alarm, kept)
        if kept:
            self.wake()

    def _submit(self, work: Work, alarm: Alarm | None, notices: list[Notice]) -> None:
        done = partial(self._stored, alarm, notices)
        try:
            self._store.submit(work, done)
        except FepError as error:
            done(None, error)

    def _stored(
        self,
        alarm: Alarm | None,
        notices: list[Notice],
        _result: Any,  # noqa: ANN401
        error: Exception | None,
    ) -> None:
        if error is None:
            # The disk takes again what it refused before; each goes as it stands now, so that an
            # old word never overwrites a newer one.
            again, self._unstored = self._unstored, {}
            for one in again.values():
                self._keep(one)
            told, self._unstored_notices = self._unstored_notices, {}
            self.keep_notices(told.values())
            return
        if alarm is not None and alarm.id not in self._unstored:
            log.warning("alarm.not_stored", alarm_id=alarm.id, reason=str(error))
        if alarm is not None:
            self._unstored[alarm.id] = alarm
        self._unstored_notices |= {one.id: one for one in notices}
        while len(self._unstored) > UNSTORED_ALARMS_MAX:
            self._unstored.pop(next(iter(self._unstored)))
        while len(self._unstored_notices) > UNSTORED_NOTICES_MAX:
            self._unstored_notices.pop(next(iter(self._unstored_notices)))


def _log_raised(alarm: Alarm) -> None:
    meaning = MEANINGS[alarm.kind]
    # error: a person must act now; what is minor can wait for the day's work.
    write = log.warning if meaning.severity is Severity.MINOR else log.error
    write(
        "alarm.raised",
        alarm_id=alarm.id,
        kind=alarm.kind.value,
        subject=alarm.subject,
        severity=meaning.severity.value,
        title=meaning.title,
        cause=alarm.cause,
        count=alarm.count,
        action=meaning.action,
    )
