"""What a client must still be asked and told, over any number of connections.

Delivery is at least once: what a connection did not answer goes to the next one. Only the newest
connection of a client gets messages; an older one that lives still may submit and ask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import trio

from fep.domain.ids import ClientName, TaskId
from fep.tasks.task import Delivery, Fetch, Message, Task


class ClientBox:
    """One client's unanswered messages; lives as long as the daemon."""

    def __init__(self, client: ClientName, window: int) -> None:
        self.client = client
        self.window = window
        self.fetches: OrderedDict[TaskId, int] = OrderedDict()
        self.results: OrderedDict[TaskId, Delivery | None] = OrderedDict()
        """None: read from the store when its turn comes; it may be owed for long, with many others.
        """
        self.reading: dict[TaskId, None] = {}
        """Read from the store for the newest connection at this moment."""
        self.asked: dict[TaskId, int] = {}
        self.told: dict[TaskId, Delivery] = {}
        self.connections: list[Mailbox] = []
        self.vet: Callable[[Task], Awaitable[str]] | None = None
        """Asked before the first byte of a payment of this client leaves: why it is not to be sent
        any more; empty: it is."""

    @property
    def present(self) -> bool:
        """True while the client has a connection that takes messages."""
        return bool(self.connections)

    def ask(self, task_id: TaskId, attempt: int) -> None:
        """Put a fetch."""
        self.fetches[task_id] = attempt
        self.wake()

    def tell(self, delivery: Delivery) -> None:
        """Put a result; a later one of the same task takes the place of an earlier one."""
        self.told.pop(delivery.task_id, None)
        self.reading.pop(delivery.task_id, None)
        soon = len(self.results) < self.window
        self.results[delivery.task_id] = delivery if soon else None
        self.wake()

    def owe(self, task_ids: Iterable[TaskId]) -> None:
        """Have these results read from the store and told, but for those on their way."""
        for task_id in task_ids:
            if task_id not in self.told and task_id not in self.reading:
                self.results.setdefault(task_id, None)
        self.wake()

    def forget_results(self) -> None:
        """Drop all results: they are owed still, and told from the store."""
        self.results.clear()
        self.reading.clear()
        self.told.clear()

    def forget_fetch(self, task_id: TaskId) -> None:
        """Drop a fetch that was answered or lapsed."""
        self.fetches.pop(task_id, None)
        if self.asked.pop(task_id, None) is not None:
            # There is room in the window.
            self.wake()

    def acknowledged(self, task_ids: Iterable[TaskId]) -> list[Delivery]:
        """Drop results that the client has, and return them."""
        got = [self.told.pop(task_id) for task_id in task_ids if task_id in self.told]
        self.wake()
        return got

    def wake(self) -> None:
        """Wake the newest connection, if there is anything for it."""
        if self.connections and (self.fetches or self.results):
            self.connections[-1].note()


class Mailbox:
    """One connection's view of its client's box.

    Args:
        box: its client's.
        note: told that there may be something to draw; else :meth:`wait` for it.
    """

    def __init__(self, box: ClientBox, note: Callable[[], None] | None = None) -> None:
        self.box = box
        self._changed = trio.Event()
        self.note = self._note if note is None else note
        """Told, without waiting, that there may be something to draw."""
        box.connections.append(self)
        self._return_unanswered()

    @property
    def is_newest(self) -> bool:
        """True while the client's messages are this connection's to tell."""
        return bool(self.box.connections) and self.box.connections[-1] is self

    def close(self) -> None:
        """End this connection's part: what it did not answer is for the next one."""
        newest = self.is_newest
        self.box.connections.remove(self)
        if newest:
            self._return_unanswered()

    def _return_unanswered(self) -> None:
        """Put back, in front and in order, what was sent and not answered."""
        box = self.box
        for task_id in reversed(list(box.reading)):
            box.results.setdefault(task_id, None)
            box.results.move_to_end(task_id, last=False)
        for task_id in reversed(list(box.told)):
            box.results[task_id] = box.told[task_id]
            box.results.move_to_end(task_id, last=False)
        for task_id in reversed(list(box.asked)):
            box.fetches[task_id] = box.asked[task_id]
            box.fetches.move_to_end(task_id, last=False)
        box.reading.clear()
        box.told.clear()
        box.asked.clear()
        box.wake()

    def draw(self) -> tuple[list[Message], list[TaskId]]:
        """Take what may be sent now: messages, and ids whose result must be read first.

        Give what was read to :meth:`read`.
        """
        box = self.box
        messages: list[Message] = []
        unread: list[TaskId] = []
        if not self.is_newest:
            return messages, unread
        while box.fetches and len(box.asked) < box.window:
            task_id, attempt = box.fetches.popitem(last=False)
            box.asked[task_id] = attempt
            messages.append(Fetch(task_id, attempt))
        while box.results and len(box.told) + len(box.reading) < box.window:
            task_id, delivery = box.results.popitem(last=False)
            if delivery is None:
                box.reading[task_id] = None
                unread.append(task_id)
            else:
                box.told[task_id] = delivery
                messages.append(delivery)
        return messages, unread

    def read(self, found: Iterable[Delivery]) -> list[Delivery]:
        """Return those that are this connection's to tell still: a newer one may have come."""
        box = self.box
        if not self.is_newest:
            return []
        mine = [one for one in found if one.task_id in box.reading]
        box.told.update((one.task_id, one) for one in mine)
        box.reading.clear()
        return mine

    async def wait(self) -> None:
        """Wait until there may be something to draw; where nobody else is told."""
        await self._changed.wait()
        self._changed = trio.Event()

    def _note(self) -> None:
        self._changed.set()
