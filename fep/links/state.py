"""The life of one bank's connection as a table; all code that changes its state goes through here.

Two cross conditions are functions of this state and others, not states: a link takes requests when
it is READY *and* its key slot is open, and it is down for the operator after ``FAILURES_MAX``
failures in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fep.domain.errors import FepError

FAILURES_MAX: Final = 3
"""Failures in a row after which the LINK_DOWN alarm is raised; trying goes on for ever."""


class LinkState(StrEnum):
    """Where one bank's connection is."""

    OFF = "off"
    """Nobody runs it."""
    NO_KEY = "no_key"
    """The bank's key is not there, so there must be no session (FEP-09)."""
    HELD = "held"
    """An operator drained it, or the bank refused its password; it waits for ``resume``."""
    CONNECTING = "connecting"
    LOGGING_ON = "logging_on"
    """Connected; the log-on, or the probe where the bank has none, waits for a good answer."""
    READY = "ready"
    DRAINING = "draining"
    """No new requests; those in flight may still get their answers, then it closes."""
    BACKING_OFF = "backing_off"
    """The connection failed or was lost; waits before the next attempt."""


class LinkEvent(StrEnum):
    """What can happen to it."""

    STARTED = "started"
    STOPPED = "stopped"
    KEY_THERE = "key_there"
    KEY_GONE = "key_gone"
    """No session may be now, and none is any more."""
    HELD = "held"
    """The link is to be held, and no session is any more."""
    RESUMED = "resumed"
    CONNECTED = "connected"
    LOGGED_ON = "logged_on"
    DRAIN_BEGAN = "drain_began"
    """The key went, the operator drains, or the bank says that it can't work."""
    LOST = "lost"
    """Refused, ended, silent for too long, or not understood."""
    DELAY_OVER = "delay_over"
    RESTED = "rested"
    """The bank closed an idle connection in good order, as HTTP servers do; a new one is made."""


class IllegalTransitionError(FepError):
    """An event came in a state that has no row for it: a defect of ours."""

    code = "ILLEGAL_TRANSITION"


_State = LinkState
_Event = LinkEvent

TRANSITIONS: Final[Mapping[LinkState, Mapping[LinkEvent, LinkState]]] = {
    _State.OFF: {_Event.STARTED: _State.NO_KEY},
    _State.NO_KEY: {
        _Event.KEY_THERE: _State.CONNECTING,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
    _State.HELD: {_Event.RESUMED: _State.NO_KEY, _Event.STOPPED: _State.OFF},
    _State.CONNECTING: {
        _Event.CONNECTED: _State.LOGGING_ON,
        _Event.LOST: _State.BACKING_OFF,
        _Event.KEY_GONE: _State.NO_KEY,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
    _State.LOGGING_ON: {
        _Event.LOGGED_ON: _State.READY,
        _Event.LOST: _State.BACKING_OFF,
        _Event.KEY_GONE: _State.NO_KEY,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
    _State.READY: {
        _Event.DRAIN_BEGAN: _State.DRAINING,
        _Event.LOST: _State.BACKING_OFF,
        _Event.RESTED: _State.CONNECTING,
        # Of a log-on that was over in the moment at which the key went.
        _Event.KEY_GONE: _State.NO_KEY,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
    _State.DRAINING: {
        _Event.LOST: _State.BACKING_OFF,
        _Event.KEY_GONE: _State.NO_KEY,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
    _State.BACKING_OFF: {
        _Event.DELAY_OVER: _State.CONNECTING,
        _Event.KEY_GONE: _State.NO_KEY,
        _Event.HELD: _State.HELD,
        _Event.STOPPED: _State.OFF,
    },
}

CONNECTED: Final = frozenset({LinkState.LOGGING_ON, LinkState.READY, LinkState.DRAINING})
"""States in which there is a TCP connection."""


def step(state: LinkState, event: LinkEvent) -> LinkState:
    """Return the state after the event.

    Raises:
        IllegalTransitionError: the table has no such row.
    """
    after = TRANSITIONS[state].get(event)
    if after is None:
        msg = f"link: {event} in state {state}"
        raise IllegalTransitionError(msg)
    return after
