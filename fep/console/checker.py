"""One look at the whole store at a time, asked for on a page; its answer stays for the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from fep.domain.errors import FepError

log = structlog.get_logger()

Verify = Callable[[], Awaitable[dict[str, Any]]]


class Checker:
    """Runs the look that a person asked for; a second wish while one runs is the same one."""

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self._wanted = trio.Event()
        self.running = False
        self.report: dict[str, Any] | None = None
        """The last one's."""
        self.failure = ""
        """Why there is none."""

    def want(self) -> None:
        """Begin one, if none runs."""
        self.running = True
        self._wanted.set()

    async def run(self) -> None:
        """Look whenever it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                self.report, self.failure = await self._verify(), ""
            except FepError as error:
                self.report, self.failure = None, str(error)
            self._wanted = trio.Event()
            self.running = False
            log.info("store.checked", sound=bool((self.report or {}).get("sound")))
