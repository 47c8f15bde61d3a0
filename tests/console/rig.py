"""A whole daemon with its console, and browsers without a screen: httpx2 keeps their cookies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import httpx2
import trio
from argon2 import PasswordHasher

from fep.domain.clock import SystemClock
from fep.store.files import STORE_FILE
from fep.users import store
from tests.control.rig import Config, Logs, Rig, running

PASSWORD = "correct-horse-battery"
PEOPLE = {"anna": "admin", "olaf": "operator", "otto": "operator", "vera": "viewer"}
CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@attrs.define
class Person:
    """One browser."""

    http: httpx2.AsyncClient
    csrf: str = ""

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        answer = await self.http.get(path, **more)
        self._keep(answer)
        return answer

    async def post(self, path: str, **fields: str) -> httpx2.Response:
        """Send a form of a page of ours."""
        answer = await self.http.post(path, data={"csrf": self.csrf, **fields})
        self._keep(answer)
        return answer

    async def log_in(
        self, user: str, password: str = PASSWORD, code: str = "", after: str = "/"
    ) -> httpx2.Response:
        """Log in, and read the mark of this person's forms."""
        await self.get("/login")
        answer = await self.post("/login", user=user, password=password, code=code, next=after)
        if answer.status_code == 303:
            await self.get("/me")
        return answer

    def _keep(self, answer: httpx2.Response) -> None:
        if found := CSRF.search(answer.text):
            self.csrf = found[1]


@attrs.define
class Console:
    """The daemon, and where its console is."""

    rig: Rig
    url: str
    _browsers: list[httpx2.AsyncClient] = attrs.Factory(list)

    def browser(self, **more: Any) -> Person:
        """Return a browser that nobody has used."""
        http = httpx2.AsyncClient(base_url=self.url, timeout=20.0, trust_env=False, **more)
        self._browsers.append(http)
        return Person(http)

    async def person(self, user: str, **more: Any) -> Person:
        """Return the browser of somebody who is logged in."""
        found = self.browser(**more)
        answer = await found.log_in(user)
        assert answer.status_code == 303, answer.text
        return found

    async def close(self) -> None:
        for one in self._browsers:
            await one.aclose()


def with_console(
    change: Callable[[Config], None] | None = None, **more: Any
) -> Callable[[Config], None]:
    """Return the change of a configuration that gives it a console on a free port."""

    def both(table: Config) -> None:
        table["console"] = {"listen": "127.0.0.1:0", **more}
        if change is not None:
            change(table)

    return both


@asynccontextmanager
async def consoling(
    directory: Path,
    key: Path,
    logs: Logs,
    *,
    bank: bool = False,
    change: Callable[[Config], None] | None = None,
    people: bool = True,
    **more: Any,
) -> AsyncIterator[Console]:
    """Run a daemon with a console for a block; its users are ``PEOPLE``."""
    async with running(directory, key, logs, bank=bank, change=with_console(change, **more)) as rig:
        services = rig.daemon.services
        found = Console(rig, services.console[0])
        if people:
            await services.tasks.store.write(_add_people)
        try:
            yield found
        finally:
            with trio.CancelScope(shield=True, relative_deadline=10.0):
                await found.close()


@cache
def _hash() -> str:
    """Return the hash of everybody's password, a cheap one: it says itself how it is compared."""
    return PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)


def _add_people(connection: Any) -> None:
    for name, role in PEOPLE.items():
        store.add(connection, name, role, _hash(), SystemClock().now())


__all__ = ["STORE_FILE", "Console", "Person", "consoling", "with_console"]
