"""What one connection was asked and told and has not answered, by the ids of our requests. Pure."""

from __future__ import annotations

from typing import Final

from fep.tasks.mailbox import ClientBox
from fep.tasks.task import Delivery, Fetch, Message

LAPSED_MAX: Final = 16_384
"""Fetches that lapsed, and results that were told anew, whose answers are known still: who answers
none of them costs no more."""


class Asked:
    """Owns the ids of our requests on one connection.

    What the client's box waits for is kept; of the rest, which a late answer may be about, the
    newest.

    Args:
        box: of the client.
    """

    def __init__(self, box: ClientBox) -> None:
        self._box = box
        self._unanswered: dict[int, Message] = {}
        self._last_id = 0
        self._forget_above = 2 * box.window + LAPSED_MAX

    def __len__(self) -> int:
        return len(self._unanswered)

    def put(self, message: Message) -> int:
        """Return the id of the request that asks or tells this."""
        self._last_id += 1
        self._unanswered[self._last_id] = message
        if len(self._unanswered) > self._forget_above:
            self._forget()
        return self._last_id

    def answered(self, id_: object) -> Message | None:
        """Return what an answer is to, None when that is not known, or not known any more."""
        return self._unanswered.pop(id_, None) if isinstance(id_, int) else None

    def _forget(self) -> None:
        """Forget the older half of what nobody waits for: so it is seldom looked through."""
        # What was asked or told anew on this connection is waited for under its newest id alone.
        newest = {(type(one), one.task_id): id_ for id_, one in self._unanswered.items()}
        over = [
            id_
            for id_, one in self._unanswered.items()
            if newest[type(one), one.task_id] != id_ or not self._is_waited_for(one)
        ]
        for id_ in over[: max(len(over) - LAPSED_MAX // 2, 0)]:
            del self._unanswered[id_]
        least = len(self._unanswered) + LAPSED_MAX // 2
        self._forget_above = max(2 * self._box.window + LAPSED_MAX, least)

    def _is_waited_for(self, message: Message) -> bool:
        match message:
            case Fetch(task_id=task_id, attempt=attempt):
                return self._box.asked.get(task_id) == attempt
            case Delivery(task_id=task_id):
                return self._box.told.get(task_id) is message
