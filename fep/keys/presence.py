"""Whether a slot's PKCS#11 token is there: asked again and again, in the slot's own thread.

PKCS#11 has events, and none of its bindings and few of its libraries deliver them well; a question
about one token costs little. A slot whose thread is at work is not asked: that call finds out by
itself, and what it signs is verified.
"""

from __future__ import annotations

from itertools import count
from typing import Final, NoReturn

import outcome
import structlog
import trio

from fep.keys.blocking import GRACE_SECONDS, call
from fep.keys.errors import DeviceError
from fep.keys.routing import Insertion, View
from fep.keys.slot import Slot
from fep.keys.state import SlotState
from fep.keys.token import Sight, TokenWatch

log = structlog.get_logger()

POLL_SECONDS: Final = 1.0
"""From the end of one look to the next. An absent key is an alarm within two seconds; a look costs
OpenSC about 5 ms."""
FAILING_POLL_SECONDS_MAX: Final = 2.0
"""The pause between two looks doubles up to this while the library does not do its work."""

_ANSWERS_FOR_ITSELF: Final = frozenset({SlotState.IDENTIFYING, SlotState.BUSY, SlotState.STUCK})
"""States of a slot with a call of its own that waits for the thread and has its own deadline."""


async def watch_token(slot: Slot) -> NoReturn:
    """Tell a slot for ever whether its token is there; ends only when cancelled.

    A library that fails or does not answer is a service that is down; it is loaded anew as soon as
    no slot uses it.
    """
    presence = _Presence(slot)
    try:
        while True:
            if slot.limiter.available_tokens:
                await presence.look()
            await trio.sleep(presence.pause)
    finally:
        with trio.CancelScope(shield=True, relative_deadline=GRACE_SECONDS):
            await presence.close()


class _Presence:
    """What is known of one slot's token."""

    def __init__(self, slot: Slot) -> None:
        self.pause = POLL_SECONDS
        self._slot = slot
        self._watch = TokenWatch(slot.config)
        self._view = View()
        self._numbers = count(slot.generation + 1)
        self._lost = False
        self._answers: bool | None = None

    async def look(self) -> None:
        """Look once and tell the slot what there is."""
        result = await call(
            self._guarded,
            self._slot.limiter,
            overdue=self._overdue,
            overdue_seconds=self._slot.config.sign_deadline_s,
            abandon=self._abandon,
        )
        try:
            sight = result.unwrap()
        except DeviceError as error:
            self._fail(str(error))
            self.pause = min(2 * self.pause, FAILING_POLL_SECONDS_MAX)
            return
        self.pause = POLL_SECONDS
        self._take(sight)

    async def close(self) -> None:
        """Let go of the library; a call that does not return does so when it is back."""
        self._slot.post(View())
        self._slot.unclosed.append(self._watch)
        if not self._lost:
            await call(self._slot.close_devices, self._slot.limiter)

    def _guarded(self) -> outcome.Maybe[Sight]:
        """Run in the slot's thread; nobody waits for it any more when it comes back late."""
        result = outcome.capture(self._watch.look)
        if self._lost:
            self._slot.close_devices()
        return result

    def _overdue(self) -> None:
        if self._slot.state not in _ANSWERS_FOR_ITSELF:
            seconds = self._slot.config.sign_deadline_s
            self._fail(f"the library has not answered for {seconds:g} s")

    def _abandon(self) -> None:
        self._lost = True
        log.error("key.call_abandoned", slot=self._slot.name, reader=self._slot.reader)

    def _take(self, sight: Sight) -> None:
        if self._answers is not True:
            self._answers = True
            log.info("key.library_answered", slot=self._slot.name)
            self._slot.library_answers()
        if not sight.tokens:
            card, note = None, self._absence(sight)
        else:
            # Of more than one, opening it says what is wrong.
            token, before = sight.tokens[0], self._view.card
            card, note = Insertion(token.slot, next(self._numbers), token.serial), ""
            if before is not None and (before.reader, before.guid) == (card.reader, card.guid):
                card = before
        # What a library shows at its first look after a failure may not be all yet.
        settled = self._view.service
        self._tell(View(service=True, readers=sight.slots, card=card, settled=settled, note=note))

    def _absence(self, sight: Sight) -> str:
        config = self._slot.config
        there = f"; there are {sight.others}" if sight.others else ""
        return f"token {config.token} of slot {config.name} is in no slot of its library{there}"

    def _fail(self, reason: str) -> None:
        if self._answers is not False:
            self._answers = False
            log.error("key.library_failed", slot=self._slot.name, reason=reason)
            self._slot.library_failed(reason)
        self._tell(View(note=reason))

    def _tell(self, view: View) -> None:
        self._view = view
        self._slot.post(view)
