"""Files that listeners read anew while they serve: certificates, keys of TLS, tokens, key files.

They are looked at when somebody connects, at most once a second, every few seconds besides, and at
each reload of the configuration. What can't be used changes nothing: the earlier one stays in
force, with an alarm until the files are right again. The alarm also tells of what ends soon.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import attrs
import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock
from fep.domain.errors import ConfigError

log = structlog.get_logger()

CHECK_SECONDS: Final = 1.0
"""Between two looks that are made because somebody connects."""
LOOK_SECONDS: Final = 5.0
"""Between two looks that are made although nobody does."""
LOOK_SECONDS_MAX: Final = 2.0
"""A file system that does not answer by then is asked again later."""
ENDS_SOON_DAYS: Final = 30
LIST_ENDS_SOON_DAYS: Final = 2
"""Of a list of what was taken back: many are made anew each week."""
TOLD_AGAIN: Final = dt.timedelta(days=1)

T = TypeVar("T")
Prints = tuple[tuple[int, int, int] | None, ...]
"""Of each file: time of its last change, size, number; None: it is not there."""


@attrs.frozen
class Loaded(Generic[T]):
    """What was made of the files."""

    value: T
    ends: Mapping[Path, dt.datetime] = attrs.Factory(dict)
    """What stops to be valid by itself, and when."""
    lists: Mapping[Path, dt.datetime] = attrs.Factory(dict)
    """Lists of what was taken back, and when the next ones are due."""


@attrs.frozen
class _Seen(Generic[T]):
    prints: Prints
    loaded: Loaded[T] | None = None
    fault: str = ""


class Renewed(Generic[T]):
    """What is in force of some files; made by ``Renewals.begin``."""

    def __init__(
        self,
        subject: str,
        files: Sequence[Path],
        load: Callable[[], Loaded[T]],
        alarms: Alarms | None,
        clock: Clock,
    ) -> None:
        self._subject = subject
        self._files = tuple(files)
        self._load = load
        self._alarms = alarms
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        self._look_at = float("-inf")
        self._looking = False
        self._doubted: Prints = ()
        """Files that could not be used once: they may be half written."""
        self._fault = ""
        self._soon: list[str] = []
        self._told_at: dt.datetime | None = None
        self._known = _prints(self._files)
        self._loaded = load()
        self._judge()

    @property
    def value(self) -> T:
        """What is in force."""
        return self._loaded.value

    async def fresh(self) -> T:
        """Return what is in force, after a look at the files if the last one is not just over."""
        if trio.current_time() >= self._look_at:
            await self.look()
        return self.value

    async def look(self, *, is_sure: bool = False) -> None:
        """Read the files if they have changed.

        Args:
            is_sure: a person says that they are as they should be; else a fault is told only when
                it is there at the next look still.
        """
        if self._looking and not is_sure:
            return  # nobody waits for a disk that hangs because another one does
        # After a fault the same files may be right by now: what they name has come.
        known = () if is_sure and self._fault else self._known
        self._looking = True
        self._look_at = trio.current_time() + CHECK_SECONDS
        try:
            with trio.move_on_after(LOOK_SECONDS_MAX):
                seen = await trio.to_thread.run_sync(
                    partial(_look, self._files, self._load, known),
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
                self._take(seen, is_sure=is_sure)
        finally:
            self._looking = False

    def _take(self, seen: _Seen[T], *, is_sure: bool) -> None:
        if seen.loaded is not None:
            self._known, self._loaded, self._fault = seen.prints, seen.loaded, ""
            self._told_at = None
            log.warning("credential.renewed", subject=self._subject)
        elif seen.fault:
            if not is_sure and self._doubted != seen.prints:
                self._doubted = seen.prints
                return
            self._known, self._fault, self._told_at = seen.prints, seen.fault, None
            log.error("credential.faulty", subject=self._subject, reason=seen.fault)
        self._judge()

    def _judge(self) -> None:
        """Raise or clear the alarm: for a fault, and once a day for what ends soon."""
        now = self._clock.now()
        if self._told_at is not None and now - self._told_at < TOLD_AGAIN:
            return
        self._told_at = now
        causes = [f"{self._fault}; the earlier one stays in force"] if self._fault else []
        loaded = self._loaded
        soon = [(file, end, ENDS_SOON_DAYS) for file, end in loaded.ends.items()]
        soon += [(file, end, LIST_ENDS_SOON_DAYS) for file, end in loaded.lists.items()]
        for file, end, days_before in soon:
            days = (end - now).days
            if days < days_before:
                log.warning(
                    "credential.ends_soon", subject=self._subject, file=str(file), days=days
                )
                causes.append(f"{file.name} ends on {end.date().isoformat()}")
        if self._alarms is None:
            return
        if causes:
            self._alarms.raise_alarm(AlarmKind.CREDENTIAL_FAULT, self._subject, "; ".join(causes))
        else:
            self._alarms.clear(AlarmKind.CREDENTIAL_FAULT, self._subject)


class Renewals:
    """Owns what is renewed; ``run`` looks at it while nobody connects."""

    def __init__(self, alarms: Alarms | None, clock: Clock) -> None:
        self._alarms = alarms
        self._clock = clock
        self._all: list[Renewed[object]] = []

    def begin(
        self, subject: str, files: Sequence[Path | None], load: Callable[[], Loaded[T]]
    ) -> Renewed[T]:
        """Load files and watch them until ``end``.

        Raises:
            ConfigError: they can't be used.
        """
        there = [file for file in files if file is not None]
        found = Renewed(subject, there, load, self._alarms, self._clock)
        self._all.append(found)  # type: ignore[arg-type] # of any kind
        return found

    def end(self, renewed: Renewed[Any]) -> None:
        """Watch these no more."""
        self._all = [one for one in self._all if one is not renewed]

    async def look(self) -> None:
        """Look at all at once: a person says that the files are as they should be."""
        for one in list(self._all):
            await one.look(is_sure=True)

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            for one in list(self._all):
                await one.look()


def _prints(files: Sequence[Path]) -> Prints:
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def _look(files: Sequence[Path], load: Callable[[], Loaded[T]], known: Prints) -> _Seen[T]:
    """Load the files if they have changed (in a thread)."""
    # Before they are read: what changes meanwhile is seen at the next look.
    prints = _prints(files)
    if prints == known:
        return _Seen(prints)
    try:
        return _Seen(prints, load())
    except (ConfigError, OSError, ValueError) as error:
        return _Seen(prints, fault=str(error) or repr(error))
