"""fepctl top against a real daemon, by its keys; what it looked like is kept as a picture."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from fep.client import BlockingClient
from fep.control.board import Order
from fep.control.ctl import main
from fep.control.top import Help, Top
from fep.sandbox.scene import BANKS, Scene

SECONDS_MAX = 30.0
PICTURES = Path(__file__).resolve().parent.parent.parent / ".build/screenshots"
SIZE = (150, 40)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Two banks with software keys and the daemon."""
    path = Path(tempfile.mkdtemp(prefix="fep-top-"))
    with Scene(path, banks=BANKS[:2], accounts_per_bank=2) as scene:
        scene.start_hosts()
        scene.write_config(scene.configuration())
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene
    shutil.rmtree(path)


def watching(scene: Scene, use: Callable[[Pilot[None], Top], Awaitable[None]]) -> None:
    """Run the screen without a terminal and use it."""
    with BlockingClient(f"unix:{scene.socket}", "anna", result=lambda _result: None) as client:
        app = Top(client, ask_seconds=0.1)

        async def run() -> None:
            async with app.run_test(size=SIZE) as pilot:
                await until(pilot, lambda: app.board.last is not None, "the first answer")
                await use(pilot, app)

        asyncio.run(run())


async def until(pilot: Pilot[None], ready: Callable[[], Any], what: str) -> None:
    limit = time.monotonic() + SECONDS_MAX
    while not ready():
        assert time.monotonic() < limit, what
        await pilot.pause(0.02)


def rows(app: Top, name: str) -> list[list[str]]:
    table: DataTable[Any] = app.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row_at(at)] for at in range(table.row_count)]


def head(app: Top) -> str:
    return str(app.query_one("#head", Static).render())


async def keep(pilot: Pilot[None], app: Top, name: str) -> str:
    """Keep a picture of the screen, once it is laid out, and return it."""
    for _ in range(5):
        await pilot.pause()
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.svg"
    app.save_screenshot(path.name, str(path.parent))
    return path.read_text("utf-8")


def test_it_shows_banks_slots_and_what_is_done(scene: Scene):
    async def use(pilot: Pilot[None], app: Top) -> None:
        assert [row[:2] for row in rows(app, "banks")] == [["cmb", "ready"], ["pingan", "ready"]]
        assert {(row[0], row[1]) for row in rows(app, "slots")} == {
            ("ukey-cmb", "ready"),
            ("ukey-pingan", "ready"),
        }
        body = {"kind": "balance", "params": {"account": scene.accounts[0].number}}

        def submit() -> None:
            with scene.operator() as operator:
                for number in range(5):
                    operator.submit(f"top-{number}", "pingan", "balance", body)

        await asyncio.to_thread(submit)
        # Five within some seconds: the rate is that of ten seconds, or of less at the begin.
        await until(pilot, lambda: app.board.rate, "a rate")
        await until(
            pilot, lambda: rows(app, "banks")[1][5] not in {"–", "0/min"}, "the bank's rate"
        )
        assert "fep 0.1.0" in head(app)
        assert any(app.board.bars())
        picture = await keep(pilot, app, "top")
        for word in ("pingan", "ukey-cmb", "ready"):
            assert word in picture

    watching(scene, use)


def test_keys_sort_pause_help_and_quit(scene: Scene):
    async def use(pilot: Pilot[None], app: Top) -> None:
        for order in [*list(Order)[1:], Order.NAME]:
            await pilot.press("s")
            assert app.order is order
            assert order.value in head(app)
        await pilot.press("p")
        assert "PAUSED" in head(app)
        await until(pilot, lambda: not app._asking, "the last answer")
        last = app.board.last
        await pilot.pause(0.5)
        assert app.board.last is last
        await pilot.press("r")
        await until(pilot, lambda: app.board.last is not last, "an answer that was asked for")
        await pilot.press("p")
        last = app.board.last
        await until(pilot, lambda: app.board.last is not last, "that it goes on")
        await pilot.press("question_mark")
        assert isinstance(app.screen_stack[-1], Help)
        assert "acknowledge" in (await keep(pilot, app, "top-help"))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1, "the end of the help")
        await pilot.press("q")
        assert not app.is_running

    watching(scene, use)


def test_an_alarm_is_acknowledged_and_the_mark_stays_on_it(scene: Scene):
    scene.hosts["cmb"].stop()

    async def use(pilot: Pilot[None], app: Top) -> None:
        await until(pilot, lambda: rows(app, "alarms"), "the alarm of the lost bank")
        [row] = rows(app, "alarms")
        assert row[:3] == ["critical", "raised", "cmb"]
        assert rows(app, "banks")[0][9] != "", "and why it was lost"
        told = str(app.query_one("#told", Static).render())
        assert "the link reconnects by itself" in told, "and what to do"
        await keep(pilot, app, "top-alarm")
        await pilot.press("a")
        await until(pilot, lambda: rows(app, "alarms")[0][1] == "acknowledged", "that it is known")

    try:
        watching(scene, use)
        with scene.operator() as operator:
            [alarm] = operator.call("alarm.list")["alarms"]
            assert alarm["acknowledged_by"] == "anna"
    finally:
        scene.hosts["cmb"].start()
        with scene.operator() as operator:
            scene.wait_ready(operator)


def test_without_an_alarm_nothing_is_acknowledged(scene: Scene):
    async def use(pilot: Pilot[None], app: Top) -> None:
        await until(pilot, lambda: not rows(app, "alarms"), "that the alarm is over")
        await pilot.press("a")
        await until(pilot, lambda: list(app._notifications), "a word about it")
        assert "没有告警" in next(iter(app._notifications)).message

    watching(scene, use)


def test_it_reconnects_when_the_daemon_comes_back(scene: Scene):
    async def use(pilot: Pilot[None], app: Top) -> None:
        await asyncio.to_thread(scene.stop_daemon)
        await until(pilot, lambda: app.trouble, "that it does not answer")
        assert "NO ANSWER" in head(app)
        assert len(rows(app, "banks")) == 2, "what was known last is shown still"
        await pilot.press("s")
        assert "open 未完成" in head(app), "and the keys work"
        await keep(pilot, app, "top-no-answer")
        before = app.board.last
        await asyncio.to_thread(scene.start_daemon)
        await until(pilot, lambda: not app.trouble, "that it answers again")
        assert "NO ANSWER" not in head(app)
        assert app.board.last is not before

    watching(scene, use)


def test_it_wants_a_terminal(scene: Scene, capsys: pytest.CaptureFixture[str]):
    for more in ([], ["--json"]):
        assert main(["--address", f"unix:{scene.socket}", "top", *more]) == 1
        assert "for a terminal" in capsys.readouterr().err


def test_in_a_real_terminal_it_draws_and_ends_with_q(scene: Scene):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fep.control.ctl", "--address", f"unix:{scene.socket}", "top"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"},
    )
    os.close(slave)
    try:
        drawn = b""
        limit = time.monotonic() + SECONDS_MAX
        while b"pingan" not in drawn:
            assert time.monotonic() < limit, drawn[-500:]
            if select.select([master], [], [], 0.2)[0]:
                drawn += os.read(master, 65_536)
        os.write(master, b"q")
        while process.poll() is None:
            assert time.monotonic() < limit
            if select.select([master], [], [], 0.2)[0]:
                try:
                    os.read(master, 65_536)
                except OSError:
                    break
        assert process.wait(SECONDS_MAX) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
