"""The alarms in force, kept on disk; raising and clearing never waits and never fails."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog

from fep.alarms import store
from fep.alarms.state import MEANINGS, Alarm, AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import new_session_id
from fep.store.database import Store

log = structlog.get_logger()

COUNTED_LOG_EVERY: Final = 100
"""A cause that keeps coming is logged the first time and then each hundredth."""


class Alarms:
    """Owns the active alarms: at most one for each kind and subject."""

    def __init__(self, database: Store, clock: Clock) -> None:
        self._store = database
        self._clock = clock
        self._active: dict[tuple[AlarmKind, str], Alarm] = {}

    async def load(self) -> None:
        """Take over what was active when the last process ended."""
        for alarm in await self._store.read(store.active):
            self._active[alarm.kind, alarm.subject] = alarm

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        """Raise it, or count it when it is active already."""
        now = self._clock.now()
        alarm = self._active.get((kind, subject))
        if alarm is None:
            alarm = Alarm(new_session_id()[:12], kind, subject, cause, now, now)
            self._active[kind, subject] = alarm
            self._log_raised(alarm)
        else:
            alarm.seen_again(cause, now)
            if alarm.count % COUNTED_LOG_EVERY:
                return
            self._log_raised(alarm)
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

    async def acknowledge(self, alarm_id: str, who: str) -> Alarm:
        """Note that a person acts on it.

        Raises:
            LookupError: no active alarm has this id.
        """
        for alarm in self._active.values():
            if alarm.id == alarm_id:
                alarm.acknowledge(who, self._clock.now())
                row = store.row_of(alarm)
                await self._store.write(partial(store.put, row=row))
                log.info("alarm.acknowledged", alarm_id=alarm.id, kind=alarm.kind.value, who=who)
                return alarm
        raise LookupError(alarm_id)

    def active(self) -> list[Alarm]:
        """Return what is raised or acknowledged, oldest first."""
        return sorted(self._active.values(), key=lambda alarm: alarm.raised_at)

    async def recent(self, limit: int) -> list[Alarm]:
        """Return the newest alarms, cleared ones too."""
        found: list[Alarm] = await self._store.read(lambda c: store.recent(c, limit))
        return found

    def _log_raised(self, alarm: Alarm) -> None:
        meaning = MEANINGS[alarm.kind]
        log.error(
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

    def _keep(self, alarm: Alarm) -> None:
        """Store it when the disk takes it; an alarm about the disk must not need the disk."""

        def stored(_result: Any, error: Exception | None) -> None:  # noqa: ANN401
            if error is not None:
                log.warning("alarm.not_stored", alarm_id=alarm.id, reason=str(error))

        row = store.row_of(alarm)
        try:
            self._store.submit(lambda c: store.put(c, row), stored)
        except FepError as error:
            stored(None, error)
