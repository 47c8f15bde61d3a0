"""A scene of real processes behind the console, and one real browser for all tests of a module."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import tomli_w
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from fep.client import BlockingClient
from fep.sandbox.scene import BANKS, Scene, free_port
from tests.system.work import transfer

PASSWORD = "correct-horse-battery"
PEOPLE = {"wang": "admin", "li": "operator", "zhao": "operator", "chen": "viewer"}
CHROMIUM = "/usr/bin/chromium"
SHOTS = Path(__file__).resolve().parent.parent.parent / ".build/screenshots"
QUIET, DEAF = BANKS[0], BANKS[2]
"""A bank where all goes well, and one that answers nothing about its payments."""
UNKNOWN = "PAY-20261127-0001"


@attrs.define
class Site:
    """The daemon, its console and the browser."""

    scene: Scene
    url: str
    browser: Browser
    errors: list[str] = attrs.Factory(list)
    """What any page said is wrong; a refused style or script is said here too."""
    _known: dict[str, Any] = attrs.Factory(dict)
    """The cookies of those who have logged in: a password takes its time."""

    def page(self, user: str = "", *, language: str = "zh-CN", **more: Any) -> Page:
        """Return a page of a browser profile of its own, logged in."""
        context = self.browser.new_context(
            viewport={"width": 1280, "height": 860},
            locale=language,
            storage_state=self._known.get(user),
            **more,
        )
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: self.errors.append(f"{page.url}: {error}"))
        page.on("console", lambda message: self._note(page, message))
        if user in self._known:
            page.goto(self.url)
        elif user:
            page.goto(f"{self.url}/login")
            page.fill("[name=user]", user)
            page.fill("[name=password]", PASSWORD)
            page.press("[name=password]", "Enter")
            page.wait_for_url(f"{self.url}/")
            self._known[user] = context.storage_state()
        return page

    def forget(self, user: str) -> None:
        """Let this user log in anew the next time."""
        self._known.pop(user, None)

    def _note(self, page: Page, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(f"{page.url}: {message.text}")

    def shot(self, page: Page, name: str) -> None:
        """Keep a picture of the whole page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def fepctl(scene: Scene, *arguments: str, given: str = "") -> None:
    """Run fepctl as an operator does."""
    command = [sys.executable, "-m", "fep.control.ctl", "--address", f"unix:{scene.socket}"]
    subprocess.run([*command, *arguments], input=given, text=True, check=True, timeout=30)


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Run the scene and the browser for a block; the users are made as the documents say."""
    port = free_port()
    with Scene(directory, banks=[QUIET, DEAF], accounts_per_bank=12) as scene:
        scene.reply_timeout_s = 1.0
        scene.start_hosts(own={DEAF.name: "silent_after_booking=1"})
        table = scene.configuration() | {"console": {"listen": f"127.0.0.1:{port}"}}
        # Nobody asks for the end of its payment before the tests are over.
        table["bank"][1]["card"]["inquiry"] |= {"cool_down_s": 3600.0, "interval_max_s": 3600.0}
        scene.config.write_text(tomli_w.dumps(table), "utf-8")
        scene.start_daemon()
        (first, role), *others = PEOPLE.items()
        fepctl(scene, "user", "add", first, role, given=f"{PASSWORD}\n")
        with scene.operator() as operator:
            for name, role in others:
                user = {"name": name, "role": role, "password": PASSWORD}
                operator.call("user.add", user)
            scene.wait_ready(operator)
            _work(scene, operator)
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
        ):
            yield Site(scene, f"http://127.0.0.1:{port}", browser)


def _work(scene: Scene, operator: BlockingClient) -> None:
    """Give the daemon a day's work: balances, payments, one whose end stays unknown."""
    mine = [one for one in scene.accounts if one.bank == QUIET.name]
    theirs = [one for one in scene.accounts if one.bank == DEAF.name]
    for place, account in enumerate(mine):
        body = {"kind": "balance", "params": {"account": account.number}}
        operator.submit(f"BAL-{place:04d}", QUIET.name, "balance", body)
    for place in range(60):
        payer, payee = mine[place % 12], (mine + theirs)[(place * 7 + 1) % 24]
        body = transfer(scene, payer, payee, f"{12 + place * 31}.{place:02d}")
        operator.submit(f"PAY-20261126-{place:04d}", QUIET.name, "transfer", body)
    body = transfer(scene, theirs[0], mine[0], "88000.50")
    operator.submit(UNKNOWN, DEAF.name, "transfer", body)
