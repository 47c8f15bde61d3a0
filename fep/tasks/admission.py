"""Admits what arrived while the disk was busy as one group: a few statements for all of it.

Many clients with one task each cost the store no more than one client with many. What arrives
before a group's turn joins that group; each submitter is answered when the group is on disk.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import sqlalchemy as sa

from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import ClientName, TaskId
from fep.store.database import Store, StoreBusyError, StoreFullError
from fep.store.joining import Joining
from fep.tasks import store as rows
from fep.tasks.state import State
from fep.tasks.task import (
    Admitted,
    Answer,
    Refused,
    Submission,
    Task,
    body_bytes,
    digest,
)


@attrs.define(eq=False, slots=True)
class Arrival:
    """What one client submitted together."""

    client: ClientName
    submissions: Sequence[Submission]
    refusals: Sequence[Refused | None]
    """Why each can't be new; one that is stored already is known all the same."""
    done: Callable[[list[Answer]], None]
    room: int = sys.maxsize
    """How many of them may be new."""
    full: Refused | None = None
    """What the rest is told, where they may be too many."""


@attrs.define(eq=False, slots=True)
class _Group:
    """What one commit admits."""

    configuration: str
    arrivals: list[Arrival]
    answers: list[list[Answer]] = attrs.Factory(list)
    fresh: list[Task] = attrs.Factory(list)


class _Ages(dict[float | None, dt.datetime]):
    """When tasks that are submitted at one moment expire, by what they say of it."""

    def __init__(self, at: dt.datetime, age_max_s: float) -> None:
        super().__init__()
        self.at = at
        self._age_max_s = age_max_s

    def __missing__(self, age_s: float | None) -> dt.datetime:
        seconds = self._age_max_s if age_s is None else age_s
        found = self[age_s] = self.at + dt.timedelta(seconds=seconds)
        return found


class Admission:
    """Owns what waits to be admitted.

    Args:
        store: where tasks are kept.
        clock: all of a group are submitted at the moment at which its turn comes.
        age_max_s: after so long a task that was never fetched expires.
        keep: called in the trio thread with the tasks that are on disk now, in order.
        full: called there when the disk had no room for a group.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        age_max_s: float,
        keep: Callable[[list[Task]], None],
        full: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._age_max_s = age_max_s
        self._keep = keep
        self._full = full
        self.tell: Callable[[sa.Connection, Sequence[Task]], None] | None = None
        """Called in the commit with the new tasks, in order, where other machines share the queue.
        """
        self._seq = 0
        self._joining = Joining[Arrival]()

    def begin_after(self, last_seq: int) -> None:
        """Give places above this one: the highest that is stored."""
        self._seq = last_seq

    def submit(self, arrival: Arrival, configuration: str) -> None:
        """Put an arrival into the next group; its ``done`` is called once it is on disk."""
        arrivals = self._joining.join(arrival)
        if arrivals is None:
            return
        group = _Group(configuration, arrivals)
        try:
            self._store.submit(partial(self._admit, group), partial(self._committed, group))
        except FepError as error:
            self._committed(group, None, error)

    def _admit(self, group: _Group, connection: sa.Connection) -> None:
        """Write the group (writer thread); once more where the first time was undone."""
        self._joining.close(group.arrivals)
        group.answers, group.fresh = [], []
        if self.tell is not None:
            # Other machines give places too; nobody does until this group is stored.
            self._seq = rows.last_seq(connection)
        refusals = [_refusals(connection, arrival) for arrival in group.arrivals]
        ages = _Ages(self._clock.now(), self._age_max_s)
        made = [
            self._new(arrival, refused, ages)
            for arrival, refused in zip(group.arrivals, refusals, strict=True)
        ]
        new = [one for several in made for one in several if one is not None]
        written = rows.insert(connection, new, group.configuration)
        if self.tell is not None and written:
            self.tell(connection, [one.task for one in new])
        if written == len(new) and all(None not in several for several in made):
            group.fresh = [one.task for one in new]
            group.answers = [
                [Admitted(one.task_id, State.QUEUED, known=False) for one in arrival.submissions]
                for arrival in group.arrivals
            ]
            return
        ids = [one.task_id for arrival in group.arrivals for one in arrival.submissions]
        stored = rows.known(connection, ids)
        for arrival, several, refused_of in zip(group.arrivals, made, refusals, strict=True):
            answers: list[Answer] = []
            for one, task, refused in zip(arrival.submissions, several, refused_of, strict=True):
                known = stored.get(one.task_id)
                if known is None:
                    assert refused is not None
                    answers.append(refused)
                elif task is not None and known.seq == task.task.seq:
                    group.fresh.append(task.task)
                    answers.append(Admitted(one.task_id, State.QUEUED, known=False))
                else:
                    answers.append(_repeated(arrival.client, one, known))
            group.answers.append(answers)

    def _new(
        self, arrival: Arrival, refusals: Sequence[Refused | None], ages: _Ages
    ) -> list[rows.NewTask | None]:
        """Return the tasks of an arrival, None where one can't be new."""
        made: list[rows.NewTask | None] = []
        for one, refused in zip(arrival.submissions, refusals, strict=True):
            if refused is not None:
                made.append(None)
                continue
            self._seq += 1
            task = Task(
                self._seq,
                one.task_id,
                arrival.client,
                one.bank,
                one.kind,
                one.priority,
                State.QUEUED,
                ages.at,
                ages[one.expires_s],
                body=one.body,
            )
            body = None if one.body is None else body_bytes(one.kind, one.body)
            made.append(rows.NewTask(task, body))
        return made

    def _look_up(self, group: _Group, refused: Refused, connection: sa.Connection) -> None:
        """Answer what was not stored: an id that was stored before is known all the same."""
        ids = [one.task_id for arrival in group.arrivals for one in arrival.submissions]
        stored = rows.known(connection, ids)
        group.answers = [
            [
                refused
                if (known := stored.get(one.task_id)) is None
                else _repeated(arrival.client, one, known)
                for one in arrival.submissions
            ]
            for arrival in group.arrivals
        ]

    def _committed(self, group: _Group, _result: Any, error: Exception | None) -> None:  # noqa: ANN401
        if error is not None:
            self._refuse(group, error)
            return
        # The answers first: clients go on while the rest is done, and nothing comes between.
        try:
            self._answer(group)
        finally:
            self._keep(group.fresh)

    def _refuse(self, group: _Group, error: Exception) -> None:
        refused = _not_stored(error)
        # The store may have refused it before its turn came.
        self._joining.close(group.arrivals)

        def looked(_result: Any, failure: Exception | None) -> None:  # noqa: ANN401
            if failure is not None:
                # Nobody could look: these say nothing of what was stored before.
                group.answers = [[refused] * len(one.submissions) for one in group.arrivals]
            self._answer(group)

        if not isinstance(error, StoreFullError):
            looked(None, error)
            return
        self._full()
        try:
            self._store.submit(partial(self._look_up, group, refused), looked)
        except FepError as failure:
            looked(None, failure)

    def _answer(self, group: _Group) -> None:
        self._answer_rest(zip(group.arrivals, group.answers, strict=True))

    def _answer_rest(self, pairs: Iterator[tuple[Arrival, list[Answer]]]) -> None:
        try:
            for arrival, answers in pairs:
                arrival.done(answers)
        finally:
            # Whatever goes wrong in one answer, the others have theirs.
            if left := list(pairs):
                self._answer_rest(iter(left))


def _refusals(connection: sa.Connection, arrival: Arrival) -> Sequence[Refused | None]:
    """Return why each can't be new; what is stored takes no room from the others."""
    if arrival.refusals.count(None) <= arrival.room:
        return arrival.refusals
    stored = rows.known(connection, [one.task_id for one in arrival.submissions])
    new: set[TaskId] = set()
    found: list[Refused | None] = []
    for one, why in zip(arrival.submissions, arrival.refusals, strict=True):
        is_new = why is None and one.task_id not in stored and one.task_id not in new
        if is_new and len(new) < arrival.room:
            new.add(one.task_id)
            is_new = False
        found.append(arrival.full if is_new else why)
    return found


def _repeated(client: ClientName, one: Submission, earlier: rows.Known) -> Answer:
    """Return the answer to an id that is stored already: the same task, or a conflict."""
    if earlier.client != client:
        return Refused("TASK_CONFLICT", "this task_id belongs to another client; choose another")
    if (earlier.bank, earlier.kind) != (one.bank, one.kind):
        msg = f"this task_id was submitted as {earlier.kind.value} for {earlier.bank} before"
        return Refused("TASK_CONFLICT", msg)
    if (
        one.body is not None
        and earlier.body_digest is not None
        and digest(body_bytes(one.kind, one.body)) != earlier.body_digest
    ):
        msg = "another body is recorded for this task_id: two orders have one id (task.why)"
        return Refused("TASK_CONFLICT", msg)
    return Admitted(TaskId(one.task_id), earlier.state, known=True)


def _not_stored(error: Exception) -> Refused:
    if isinstance(error, StoreFullError):
        return Refused("STORE_FULL", str(error))
    if isinstance(error, StoreBusyError):
        return Refused("QUEUE_FULL", str(error))
    if isinstance(error, FepError):
        return Refused("SHUTTING_DOWN", str(error))
    raise error
