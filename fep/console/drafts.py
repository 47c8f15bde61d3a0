"""Drafts of the configuration between the page that makes them and the one that saves them."""

from __future__ import annotations

import secrets
from typing import Any, Final

import attrs

DRAFTS_MAX: Final = 64
"""Of all people together; the oldest makes room."""
PLACE_BYTES: Final = 12


@attrs.frozen
class Draft:
    """One draft as ``config.draft`` answered it."""

    id: str
    session: str
    """Whose it is: nobody else may save it."""
    shown: dict[str, Any]
    why: str
    """What was changed, for the note."""


class Drafts:
    """Keeps the newest drafts in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Draft] = {}

    def keep(self, session: str, shown: dict[str, Any], why: str) -> Draft:
        """Keep a draft; returns it with its id."""
        draft = Draft(secrets.token_urlsafe(PLACE_BYTES), session, shown, why)
        self._kept[draft.id] = draft
        while len(self._kept) > DRAFTS_MAX:
            del self._kept[next(iter(self._kept))]
        return draft

    def find(self, session: str, draft_id: str) -> Draft | None:
        """Return a draft of this session; None when there is none (any more)."""
        found = self._kept.get(draft_id)
        return found if found is not None and found.session == session else None

    def drop(self, draft: Draft) -> None:
        """Forget a draft that was saved."""
        self._kept.pop(draft.id, None)
