"""Feeds a store's recorded bank bytes through today's adapters, and says what they make of them.

Nothing is written and nothing is sent; a running daemon does not notice. One read transaction sees
one moment of the store, and its archives are read with it.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import sqlalchemy as sa

from fep.adapters import tape as tapes
from fep.adapters.api import BankCodec, decoder_of
from fep.adapters.decode import Decoder, Role
from fep.adapters.tape import Tape
from fep.daemon.config import BankConfig, Config
from fep.daemon.verify import UnreadableStoreError
from fep.domain.clock import SHANGHAI, to_text
from fep.domain.errors import FepError, RemoteProtocolError
from fep.domain.ids import BankName
from fep.store import files, schema
from fep.tasks import replay, store
from fep.tasks.replay import Kept, Reading, Recorded
from fep.tasks.task import Task

TASKS_AT_ONCE: Final = 200
DIFFERENCES_KEPT_MAX: Final = 100_000
"""In a report; each is told when it is found, and all are counted."""
ANSWERS_NOTHING: Final = "answers nothing known"

Progress = Callable[[str, int, int], None]


class NoReplayError(FepError):
    """This task can't be replayed: it is not known, or what it needs is not there."""

    code = "NO_REPLAY"


@attrs.frozen
class Difference:
    """One message that today's adapter reads otherwise."""

    bank: str
    task_id: str
    """Empty for an answer that was kept without a task."""
    state: str
    reading: Reading

    def value(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {
            "task_id": self.task_id,
            "bank": self.bank,
            "state": self.state,
            **self.reading.value(),
        }

    def __str__(self) -> str:
        one, reading = self.reading.recorded, self.reading
        whose = f"{self.task_id} ({self.bank}, {self.state})" if self.task_id else self.bank
        steps = ", ".join(one.events) or "no step"
        head = f"{whose}: {reading.kept.value} of {one.at} ({steps})"
        lines = [f"{head}: then {reading.then}; now {reading.now}"]
        return "\n    ".join([*lines, *reading.changes])


@attrs.define
class Report:
    """What was read, and what is read otherwise than it was."""

    path: Path
    adapters: dict[str, str] = attrs.Factory(dict)
    """Name and version of the adapter of each bank."""
    tasks: int = 0
    counts: dict[str, int] = attrs.Factory(lambda: {one.value: 0 for one in Kept})
    different: int = 0
    differences: list[Difference] = attrs.Factory(list)
    skipped: dict[str, int] = attrs.Factory(dict)
    """Tasks that were not replayed, by why."""
    notes: list[str] = attrs.Factory(list)
    seconds: float = 0.0

    def value(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {
            "store": str(self.path),
            "adapters": self.adapters,
            "tasks": self.tasks,
            "messages": self.counts,
            "different": self.different,
            "differences": [one.value() for one in self.differences],
            "skipped": self.skipped,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }


@attrs.frozen
class Bank:
    """One configured bank, as it is spoken to today."""

    config: BankConfig
    codec: BankCodec
    decoder: Decoder


def banks_of(config: Config) -> dict[BankName, Bank]:
    """Return the configured banks with their codecs."""
    return {bank.name: _bank(bank, config) for bank in config.banks}


def _bank(bank: BankConfig, config: Config) -> Bank:
    try:
        secrets = bank.read_secrets()
    except FepError:
        # Who replays may not be who runs the daemon; most protocols are read without them.
        secrets = {}
    profile = bank.profile(config.accounts, secrets)
    codec = bank.adapter.open(profile)
    return Bank(bank, codec, decoder_of(bank.adapter, profile) if secrets else bank.adapter.decoder)


class Replay:
    """One replay of a store; made by :func:`opened`."""

    def __init__(
        self,
        path: Path,
        banks: Mapping[BankName, Bank],
        main: sa.Connection,
        archives: Mapping[str, sa.Connection],
    ) -> None:
        self.report = Report(path)
        self._banks = banks
        self._main = main
        self._archives = archives
        for name, bank in banks.items():
            self.report.adapters[name] = f"{bank.config.adapter.name} {bank.config.adapter.version}"

    def one(self, task_id: str) -> tuple[Task, list[Reading]]:
        """Return what today's adapter makes of one task's messages.

        Raises:
            NoReplayError: it is not known, its archive is not here, or its bank is not configured.
        """
        task = store.one(self._main, task_id)
        if task is None:
            msg = f"there is no task {task_id}"
            raise NoReplayError(msg)
        year, connection = store.archive_of(self._main, task_id), self._main
        if year is not None:
            if year not in self._archives:
                msg = f"{task_id} is archived, and {files.archive_name(year)} is not here"
                raise NoReplayError(msg)
            connection = self._archives[year]
            task = store.one(connection, task_id) or task
        if task.bank not in self._banks:
            msg = f"{task_id} is of bank {task.bank}, which is not configured"
            raise NoReplayError(msg)
        [readings] = self._read(connection, [task])
        return task, readings

    def all(
        self, since: dt.date | None, found: Callable[[Difference], None], progress: Progress
    ) -> None:
        """Replay every message that was kept since a day, in Shanghai, or ever.

        Args:
            since: the first day.
            found: called with each difference, at once.
            progress: told which file is read, how many of its tasks are, and how many there are.
        """
        began = time.monotonic()
        moment = "" if since is None else to_text(dt.datetime.combine(since, dt.time(), SHANGHAI))
        self._all_of(self._main, self.report.path.name, moment, found, progress)
        for year, connection in self._archives.items():
            name = files.archive_name(year)
            self._all_of(connection, name, moment, found, progress, is_archive=True)
        for difference in self._unmatched(moment):
            self._note(difference, found)
        self.report.seconds = time.monotonic() - began

    def _whole(self, task: Task) -> Task | None:
        """Return a task with its body: an answer may have come after it was archived."""
        if task.body is not None or (year := store.archive_of(self._main, task.task_id)) is None:
            return task
        found = store.one(self._archives[year], task.task_id) if year in self._archives else None
        if found is None:
            self._skip(f"{files.archive_name(year)} is not here")
        return found

    def _all_of(
        self,
        connection: sa.Connection,
        name: str,
        moment: str,
        found: Callable[[Difference], None],
        progress: Progress,
        *,
        is_archive: bool = False,
    ) -> None:
        total, after, done = store.count_with_bytes(connection, moment), 0, 0
        while places := store.with_bytes(connection, after, moment, TASKS_AT_ONCE):
            after = places[-1]
            tasks = store.at_places(connection, places)
            if is_archive:
                # One that was moved since our moment was read in the store itself.
                moved = store.archived_of(self._main, places)
                tasks = [task for task in tasks if task.seq in moved]
            else:
                tasks = [whole for task in tasks if (whole := self._whole(task)) is not None]
            here = [task for task in tasks if task.bank in self._banks]
            for task in tasks:
                if task.bank not in self._banks:
                    self._skip(f"bank {task.bank} is not configured")
            for task, readings in zip(here, self._read(connection, here), strict=True):
                for reading in readings:
                    if reading.differs:
                        self._note(
                            Difference(task.bank, task.task_id, task.state.value, reading), found
                        )
            done += len(places)
            progress(name, done, total)

    def _note(self, difference: Difference, found: Callable[[Difference], None]) -> None:
        self.report.different += 1
        if len(self.report.differences) < DIFFERENCES_KEPT_MAX:
            self.report.differences.append(difference)
        found(difference)

    def _skip(self, why: str) -> None:
        self.report.skipped[why] = self.report.skipped.get(why, 0) + 1

    def _read(self, connection: sa.Connection, tasks: list[Task]) -> Iterator[list[Reading]]:
        places = [task.seq for task in tasks]
        recorded, ended = store.recorded(connection, places), store.ended(connection, places)
        for task in tasks:
            messages, bank = recorded.get(task.seq, []), self._banks[task.bank]
            self.report.tasks += 1
            for one in messages:
                self.report.counts[one.kept.value] += 1
            yield self._read_task(bank, task, ended[task.seq], messages)

    def _read_task(
        self, bank: Bank, task: Task, ended: replay.Ended, messages: list[Recorded]
    ) -> list[Reading]:
        try:
            return replay.read_task(
                bank.codec,
                bank.config.card,
                task,
                ended,
                messages,
                partial(store.rivals, self._main),
            )
        except Exception as error:  # noqa: BLE001 - an adapter's defect is what is looked for
            told = _failed(error)
            return [Reading(one.kept, one, one.taken_for, told, (told,)) for one in messages[:1]]

    def tape(
        self, tape: Tape, task_id: str, found: Callable[[Difference], None]
    ) -> list[tuple[str, Reading]]:
        """Return what today's adapter makes of the answers on a wire tape, each with its task.

        An answer that the store keeps too is read beside what was noted of it then.

        Args:
            tape: what was read of it.
            task_id: of this one alone; empty: of all.
            found: called with each difference.

        Raises:
            NoReplayError: the tape's bank is not configured, or has another adapter, or no answer
                to this task is on it.
        """
        bank = self._banks.get(BankName(tape.bank))
        if bank is None or bank.config.adapter.name != tape.adapter:
            msg = f"bank {tape.bank!r} with adapter {tape.adapter!r} is not configured"
            raise NoReplayError(msg)
        readings: list[tuple[str, Reading]] = []
        kept: dict[str, tuple[Task | None, dict[bytes, Reading]]] = {}
        for one in tapes.shown(tape, tape.adapter, bank.decoder):
            whose, value = one.value.get("task", ""), one.value
            if value.get("role") != Role.ANSWER or not whose or task_id not in ("", whose):
                continue
            if whose not in kept:
                kept[whose] = self._kept(whose)
            task, noted = kept[whose]
            reading = noted.get(one.data)
            if reading is None:
                recorded = Recorded(value["at"], False, value["reference"], one.data)  # noqa: FBT003
                reading = self._read_from_tape(bank, task, recorded)
            self.report.counts[reading.kept.value] += 1
            readings.append((whose, reading))
            if reading.differs:
                state = "" if task is None else task.state.value
                self._note(Difference(bank.config.name, whose, state, reading), found)
        if task_id and not readings:
            msg = f"no answer of task {task_id} is on this tape"
            raise NoReplayError(msg)
        self.report.tasks = len(kept)
        return readings

    def _kept(self, task_id: str) -> tuple[Task | None, dict[bytes, Reading]]:
        """Return a task, and the readings of what the store keeps of it, by their bytes."""
        try:
            task, readings = self.one(task_id)
        except NoReplayError as error:
            self._skip(str(error))
            return None, {}
        return task, {one.recorded.data: one for one in readings if not one.recorded.sent}

    @staticmethod
    def _read_from_tape(bank: Bank, task: Task | None, one: Recorded) -> Reading:
        try:
            return replay.read_query_answer(bank.codec, task, one)
        except Exception as error:  # noqa: BLE001 - an adapter's defect is what is looked for
            told = _failed(error)
            return Reading(Kept.QUERY, one, replay.NOTHING_NOTED, told, (told,))

    def _unmatched(self, moment: str) -> Iterator[Difference]:
        """Yield the answers without a task that today's adapter finds one for, or can't read."""
        after = 0
        while rows := store.unmatched(self._main, after, moment, TASKS_AT_ONCE):
            for seq, bank_name, one in rows:
                after = seq
                bank = self._banks.get(bank_name)
                if bank is None:
                    self._skip(f"bank {bank_name} is not configured")
                    continue
                self.report.counts[Kept.UNMATCHED.value] += 1
                now = self._answers(bank, one)
                if now != ANSWERS_NOTHING:
                    reading = Reading(Kept.UNMATCHED, one, ANSWERS_NOTHING, now)
                    yield Difference(bank_name, "", "", reading)

    def _answers(self, bank: Bank, one: Recorded) -> str:
        try:
            reference = bank.codec.payment_ref(replay.only_reply(bank.codec, one.data))
        except RemoteProtocolError as error:
            return f"not understood: {error}"
        except Exception as error:  # noqa: BLE001 - as above
            return _failed(error)
        task = store.of_reference(self._main, bank.config.name, reference) if reference else None
        return ANSWERS_NOTHING if task is None else f"answers {task.task_id}"


def _failed(error: Exception) -> str:
    return f"the adapter failed: {type(error).__name__}: {error}"


def opened(stack: ExitStack, config: Config, path: Path) -> Replay:
    """Return a replay of a store, with the archives beside it.

    Raises:
        UnreadableStoreError: no store is there, or it is another release's.
    """
    try:
        main = stack.enter_context(files.reading(path))
        version = schema.version_of(main)
    except sa.exc.DBAPIError as error:
        msg = f"{path} can't be read as a store: {error.orig}"
        raise UnreadableStoreError(msg) from error
    if version != schema.VERSION:
        msg = f"{path} has version {version}, this release reads {schema.VERSION}"
        raise UnreadableStoreError(msg)
    archives: dict[str, sa.Connection] = {}
    notes = []
    for year, file in files.archives(path.parent).items():
        connection = stack.enter_context(files.reading(file))
        if schema.version_of(connection) == schema.VERSION:
            archives[year] = connection
        else:
            notes.append(f"{file.name} is another release's, and was left out")
    made = Replay(path, banks_of(config), main, archives)
    made.report.notes += notes
    return made
