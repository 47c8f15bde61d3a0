"""The life of a key slot as one table; all code that changes its state goes through here.

Whether a slot can sign (``OPEN``) and which alarm its state deserves (``ALARM_OF``) are functions
of the state, not flags beside it. A slot belongs to a card, not to a reader: NO_READER means that
no reader at all is listed, EMPTY that the slot's card is in none of them. With PKCS#11 a token is
the card, and a library's slot the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fep.alarms.state import AlarmKind
from fep.domain.errors import LocalProtocolError


class SlotState(StrEnum):
    """Where a slot is."""

    NO_SERVICE = "no_service"
    """No PC/SC service (pcscd is down), a PKCS#11 library that fails, or nobody watches yet."""
    NO_READER = "no_reader"
    EMPTY = "empty"
    MUTE = "mute"
    """A card is in the slot's reader and gives no ATR."""
    IDENTIFYING = "identifying"
    """Connect, SELECT, identity, PIN counter and, where the policy allows, one VERIFY."""
    WRONG_CARD = "wrong_card"
    """The card answers, but it or its key is not the bound one."""
    PIN_REQUIRED = "pin_required"
    """The right card; no PIN is known, or the policy forbids sending it."""
    PIN_BLOCKED = "pin_blocked"
    READY = "ready"
    BUSY = "busy"
    """One signature runs."""
    STUCK = "stuck"
    """A thread is inside a card call past its deadline; no second one is started."""
    FAULT = "fault"
    """Any other fault; tried again by itself after a pause."""


class SlotEvent(StrEnum):
    """What can happen to it."""

    SERVICE_UP = "service_up"
    SERVICE_DOWN = "service_down"
    READER_ADDED = "reader_added"
    """The first reader is listed."""
    READER_REMOVED = "reader_removed"
    """No reader is listed any more."""
    INSERTED = "inserted"
    """The slot's card was found in a reader; a new generation begins."""
    REMOVED = "removed"
    MUTE = "mute"
    IDENTIFIED = "identified"
    """It is the bound card and key, and nothing stands between it and a signature."""
    WRONG_CARD = "wrong_card"
    PIN_NEEDED = "pin_needed"
    """The PIN is missing, low, refused or barred."""
    PIN_BLOCKED = "pin_blocked"
    UNLOCKED = "unlocked"
    """An operator's PIN was accepted."""
    SIGN_STARTED = "sign_started"
    SIGN_ENDED = "sign_ended"
    SUSPECTED = "suspected"
    """The card is not in the state we left it in: a swap, a reset; identify it again."""
    OVERDUE = "overdue"
    RETURNED = "returned"
    """The overdue call came back."""
    FAULT = "fault"
    RETRIED = "retried"


class IllegalTransitionError(LocalProtocolError):
    """An event came in a state that has no row for it: a defect of ours."""

    code = "ILLEGAL_TRANSITION"


_S = SlotState
_E = SlotEvent

_CARD_IN: Final[Mapping[SlotEvent, SlotState]] = {
    _E.REMOVED: _S.EMPTY,
    _E.SERVICE_DOWN: _S.NO_SERVICE,
}
"""What ends any state with a card in the reader."""

TRANSITIONS: Final[Mapping[SlotState, Mapping[SlotEvent, SlotState]]] = {
    _S.NO_SERVICE: {_E.SERVICE_UP: _S.NO_READER},
    _S.NO_READER: {_E.READER_ADDED: _S.EMPTY, _E.SERVICE_DOWN: _S.NO_SERVICE},
    _S.EMPTY: {
        _E.INSERTED: _S.IDENTIFYING,
        _E.MUTE: _S.MUTE,
        _E.READER_REMOVED: _S.NO_READER,
        _E.SERVICE_DOWN: _S.NO_SERVICE,
    },
    _S.MUTE: _CARD_IN,
    _S.IDENTIFYING: {
        **_CARD_IN,
        _E.IDENTIFIED: _S.READY,
        _E.WRONG_CARD: _S.WRONG_CARD,
        _E.PIN_NEEDED: _S.PIN_REQUIRED,
        _E.PIN_BLOCKED: _S.PIN_BLOCKED,
        _E.OVERDUE: _S.STUCK,
        _E.FAULT: _S.FAULT,
    },
    _S.WRONG_CARD: _CARD_IN,
    _S.PIN_REQUIRED: {
        **_CARD_IN,
        _E.UNLOCKED: _S.READY,
        _E.PIN_NEEDED: _S.PIN_REQUIRED,
        _E.PIN_BLOCKED: _S.PIN_BLOCKED,
        _E.SUSPECTED: _S.IDENTIFYING,
        _E.OVERDUE: _S.STUCK,
        _E.FAULT: _S.FAULT,
    },
    _S.PIN_BLOCKED: _CARD_IN,
    _S.READY: {**_CARD_IN, _E.SIGN_STARTED: _S.BUSY},
    _S.BUSY: {
        **_CARD_IN,
        _E.SIGN_ENDED: _S.READY,
        _E.WRONG_CARD: _S.WRONG_CARD,
        _E.PIN_NEEDED: _S.PIN_REQUIRED,
        _E.PIN_BLOCKED: _S.PIN_BLOCKED,
        _E.SUSPECTED: _S.IDENTIFYING,
        _E.OVERDUE: _S.STUCK,
        _E.FAULT: _S.FAULT,
    },
    _S.STUCK: {**_CARD_IN, _E.RETURNED: _S.IDENTIFYING},
    _S.FAULT: {**_CARD_IN, _E.RETRIED: _S.IDENTIFYING},
}

OPEN: Final = frozenset({_S.READY, _S.BUSY})
"""States in which a signature may be asked for."""

SLOT_ALARMS: Final = (
    AlarmKind.KEY_MISSING,
    AlarmKind.KEY_WRONG,
    AlarmKind.KEY_BLOCKED,
    AlarmKind.KEY_PIN,
    AlarmKind.KEY_FAULT,
)
"""Alarms whose subject is a slot and that its state alone decides; at most one of them stands."""

ALARM_OF: Final[Mapping[SlotState, AlarmKind | None]] = {
    _S.NO_READER: AlarmKind.KEY_MISSING,
    _S.EMPTY: AlarmKind.KEY_MISSING,
    _S.MUTE: AlarmKind.KEY_FAULT,
    _S.WRONG_CARD: AlarmKind.KEY_WRONG,
    _S.PIN_REQUIRED: AlarmKind.KEY_PIN,
    _S.PIN_BLOCKED: AlarmKind.KEY_BLOCKED,
    _S.READY: None,
    _S.STUCK: AlarmKind.KEY_FAULT,
    _S.FAULT: AlarmKind.KEY_FAULT,
}
"""The one alarm a settled state deserves. States on the way to another (NO_SERVICE, IDENTIFYING)
and BUSY are not listed: what stood before stands until the slot settles again."""


def step(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state after the event.

    Raises:
        IllegalTransitionError: the event has no row in this state.
    """
    after = TRANSITIONS[state].get(event)
    if after is None:
        msg = f"a slot in state {state.value} can't take {event.value}"
        raise IllegalTransitionError(msg)
    return after
