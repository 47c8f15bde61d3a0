"""Goes round to the connections for which something has come: one turn of the scheduler for all.

A commit may bring a message to each of many clients. To wake a task for each of them costs more
than what it then does.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class Postman:
    """Owns who must be called; run it beside the connections."""

    def __init__(self) -> None:
        self._due: dict[Callable[[], None], None] = {}
        self._wanted = trio.Event()

    def note(self, call: Callable[[], None]) -> None:
        """Have something called soon, once however often it is noted until then.

        It must not raise: what goes wrong in it belongs to its connection.
        """
        self._due[call] = None
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call what is due until cancelled."""
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            due, self._due = self._due, {}
            for call in due:
                call()
