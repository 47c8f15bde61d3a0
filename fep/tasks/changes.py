"""Writes the changes of open tasks that wait for the disk as one group: a few statements for all.

Each submitter's changes stand or fall alone, and are answered when the group is on disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import sqlalchemy as sa

from fep.domain.errors import FepError
from fep.machines.service import PlaceLostError
from fep.store.database import Store, Work
from fep.store.joining import Joining
from fep.tasks import store as rows

Done = Callable[[Exception | None], None]
"""Called in the trio thread once it is on disk, or with why it is not."""


@attrs.define(eq=False, slots=True)
class _Entry:
    """What one submitter writes together."""

    configuration: str
    changes: Sequence[rows.Change]
    acknowledged: Sequence[tuple[str, str, str]]
    done: Done
    also: Work | None = None
    """Done with them; what it raises undoes them."""


class Changes:
    """Owns the changes that wait to be written.

    Args:
        store: where tasks are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._joining = Joining[_Entry]()

    def submit(
        self,
        changes: Sequence[rows.Change],
        configuration: str,
        done: Done,
        also: Work | None = None,
    ) -> None:
        """Put changes into the next group, behind all that were put before.

        Args:
            changes: they stand or fall together.
            configuration: in force.
            done: called once they are on disk, or are not.
            also: done with them; what it raises undoes them.

        Raises:
            StoreBusyError, StoreFailedError: nothing was put.
        """
        self._put(_Entry(configuration, changes, (), done, also))

    def acknowledge(self, given: Sequence[tuple[str, str, str]], done: Done) -> None:
        """Note with the next group that a client has these results.

        Raises:
            StoreBusyError, StoreFailedError: nothing was put.
        """
        self._put(_Entry("", (), given, done))

    def _put(self, entry: _Entry) -> None:
        group = self._joining.join(entry)
        if group is None:
            return
        try:
            self._store.submit(partial(self._write, group), partial(self._written, group))
        except FepError:
            self._joining.close(group)
            raise

    def _write(self, group: list[_Entry], connection: sa.Connection) -> None:
        """Write the group (writer thread); once more where the first time was undone."""
        self._joining.close(group)
        _write(group, connection)

    def _written(self, group: list[_Entry], _result: Any, error: Exception | None) -> None:  # noqa: ANN401
        # The store may have refused it before its turn came.
        self._joining.close(group)
        alone = isinstance(error, (rows.StaleTaskError, PlaceLostError)) and len(group) > 1
        self._answer(iter(group), error, alone=alone)

    def _answer(self, entries: Iterator[_Entry], error: Exception | None, *, alone: bool) -> None:
        try:
            for entry in entries:
                if alone:
                    self._write_alone(entry)
                else:
                    entry.done(error)
        finally:
            # Whatever goes wrong in one answer, the others have theirs.
            if left := list(entries):
                self._answer(iter(left), error, alone=alone)

    def _write_alone(self, entry: _Entry) -> None:
        """Write what belonged to a group that failed for one of them."""

        def done(_result: Any, error: Exception | None) -> None:  # noqa: ANN401
            entry.done(error)

        try:
            self._store.submit(partial(_write, [entry]), done)
        except FepError as error:
            entry.done(error)


def _write(group: Sequence[_Entry], connection: sa.Connection) -> None:
    """Write all or none (writer thread).

    Raises:
        StaleTaskError: one is not what its submitter took it for.
        PlaceLostError: another machine serves a bank by now.
    """
    for entry in group:
        if entry.also is not None:
            entry.also(connection)
    changing = [entry for entry in group if entry.changes]
    for configuration, entries in itertools.groupby(changing, _configuration):
        changes = [change for entry in entries for change in entry.changes]
        rows.apply(connection, changes, configuration)
    if given := [one for entry in group for one in entry.acknowledged]:
        rows.acknowledge(connection, given)


def _configuration(entry: _Entry) -> str:
    return entry.configuration
