"""Everything that people do is recorded before it is done, and how it ended afterwards.

What a finance system does is in the causal chain of its tasks and not here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import structlog

from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.logs import is_secret
from fep.store import audit
from fep.store.audit import Doer, Entry
from fep.store.database import Store

log = structlog.get_logger()


class Audit:
    """Owns the record of what people did."""

    def __init__(self, database: Store, clock: Clock, configuration: Callable[[], str]) -> None:
        self._store = database
        self._clock = clock
        self._configuration = configuration

    async def recorded(
        self,
        doer: Doer,
        what: str,
        about: Mapping[str, Any],
        act: Callable[[], Awaitable[Any]],
    ) -> Any:  # noqa: ANN401 - what the act returns
        """Record that a person asks for an act, do it, and record how it ended.

        Raises:
            FepError: it was refused; or it could not be recorded, and was not done.
        """
        entry = Entry(doer, what, without_secrets(about))
        configuration = self._configuration()
        now = self._clock.now()
        asked = await self._store.write(
            partial(audit.ask, entry=entry, at=now, configuration=configuration)
        )
        value, refused = None, None
        try:
            value = await act()
        except FepError as error:
            refused = error
        why = "" if refused is None else f"{refused.code}: {refused}"
        await self._answer(entry, configuration, asked, why)
        if refused is not None:
            raise refused
        return value

    async def _answer(self, entry: Entry, configuration: str, asked: int, refusal: str) -> None:
        write = partial(
            audit.answer,
            entry=entry,
            at=self._clock.now(),
            configuration=configuration,
            asked=asked,
            refusal=refusal,
        )
        try:
            await self._store.write(write)
        except FepError as error:
            # That it was asked for is on disk; what was done is done.
            log.error("act.not_recorded", what=entry.what, who=entry.doer.name, reason=str(error))

    async def page(
        self, *, limit: int, before: int | None, who: str
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return what people did, newest first, and where the next page begins."""
        found: tuple[list[dict[str, Any]], int | None] = await self._store.read(
            partial(audit.page, limit=limit, before=before, who=who)
        )
        return found


def without_secrets(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an act as they may be recorded."""
    return {
        name: "***" if is_secret(name) else value
        for name, value in about.items()
        if value is not None
    }
