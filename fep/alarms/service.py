"""The alarms in force, kept on disk; raising and clearing never waits and never fails."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog

from fep.alarms import store
from fep.alarms.state import MEANINGS, Alarm, AlarmKind, Severity
from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import new_session_id
from fep.store.database import Store

log = structlog.get_logger()

COUNTED_LOG_EVERY: Final = 100
"""A cause that keeps coming is logged and stored the first time and then each hundredth."""
UNSTORED_ALARMS_MAX: Final = 1024
"""Changes the disk refused that are offered to it again; the oldest are given up."""
ID_CHARS: Final = 12


class Alarms:
    """Owns the active alarms: at most one for each kind and subject.

    Every change is handed to the store without waiting. What a full disk refuses is kept and handed
    over again when it takes something, so an alarm about the disk does not need the disk.
    """

    def __init__(self, database: Store, clock: Clock) -> None:
        self._store = database
        self._clock = clock
        self._active: dict[tuple[AlarmKind, str], Alarm] = {}
        self._unstored: dict[str, Alarm] = {}
        self.raised: dict[AlarmKind, int] = dict.fromkeys(AlarmKind, 0)
        """How many were raised since the process began, without those that came again."""

    async def load(self) -> None:
        """Take over what was active when this machine's last process ended.

        Of two for one kind and subject (the end of the older one met a full disk) the newer stays
        and the older is cleared; what was raised since this process began is newer than both.
        """
        for alarm in await self._store.read(partial(store.active, scope=self._store.scope)):
            known = self._active.setdefault((alarm.kind, alarm.subject), alarm)
            if known is alarm:
                continue
            older, newer = sorted((known, alarm), key=lambda one: one.raised_at)
            self._active[alarm.kind, alarm.subject] = newer
            older.clear(self._clock.now())
            self._keep(older)

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        """Raise it, or count it when it is active already.

        Args:
            kind: what is wrong.
            subject: which slot, bank, client, task or pool.
            cause: one English sentence or less; the newest is shown.
        """
        now = self._clock.now()
        alarm = self._active.get((kind, subject))
        if alarm is None:
            alarm_id = self._store.scope + new_session_id()[:ID_CHARS]
            alarm = Alarm(alarm_id, kind, subject, cause, now, now)
            self._active[kind, subject] = alarm
            self.raised[kind] += 1
        else:
            alarm.seen_again(cause, now)
            if alarm.count % COUNTED_LOG_EVERY:
                return
        _log_raised(alarm)
        self._keep(alarm)

    def clear(self, kind: AlarmKind, subject: str) -> None:
        """Note that it is over; nothing happens when it is not active."""
        alarm = self._active.pop((kind, subject), None)
        if alarm is None:
            return
        alarm.clear(self._clock.now())
        log.info(
            "alarm.cleared", alarm_id=alarm.id, kind=kind.value, subject=subject, count=alarm.count
        )
        self._keep(alarm)

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

    async def recent(self, limit: int) -> list[Alarm]:
        """Return the newest stored alarms, cleared ones too."""
        found: list[Alarm] = await self._store.read(partial(store.recent, limit=limit))
        return found

    def try_again(self) -> None:
        """Hand over again one change that the disk refused; when it is taken the others follow."""
        if self._unstored:
            self._keep(next(iter(self._unstored.values())))

    def _keep(self, alarm: Alarm) -> None:
        """Hand it to the store as it stands now."""
        done = partial(self._stored, alarm)
        try:
            self._store.submit(partial(store.put, row=store.row_of(alarm)), done)
        except FepError as error:
            done(None, error)

    def _stored(self, alarm: Alarm, _result: Any, error: Exception | None) -> None:  # noqa: ANN401
        if error is None:
            # The disk takes again what it refused before; each goes as it stands now, so that an
            # old word never overwrites a newer one.
            again, self._unstored = self._unstored, {}
            for one in again.values():
                self._keep(one)
            return
        if alarm.id not in self._unstored:
            log.warning("alarm.not_stored", alarm_id=alarm.id, reason=str(error))
        self._unstored[alarm.id] = alarm
        if len(self._unstored) > UNSTORED_ALARMS_MAX:
            self._unstored.pop(next(iter(self._unstored)))


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
