"""The alarm channels on the console: their state in both languages, and the test's button."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fep.alarms.state import MEANINGS, AlarmKind
from tests.alarms import receivers
from tests.console.rig import consoling
from tests.control.rig import Logs

pytestmark = pytest.mark.req("FEP-10", "FEP-28")


async def test_channels_are_shown_and_tried(directory: Path, key: Path, logs: Logs) -> None:
    async with receivers.http() as receiver:

        def change(table: dict[str, Any]) -> None:
            channel = {"name": "hook", "kind": "webhook", "url": receiver.url("/")}
            table["alarms"] = {"group_s": 0, "channel": [channel]}

        async with consoling(directory, key, logs, change=change) as console:
            alarms = console.rig.daemon.alarms
            olaf = await console.person("olaf")
            page = (await olaf.get("/alarms")).text
            assert "告警通道" in page
            assert "hook" in page
            assert "/alarms/channels/hook/test" in page
            answer = await olaf.post("/alarms/channels/hook/test")
            assert "已送达" in answer.text
            assert receiver.requests[-1].value["type"] == "fep.test"
            receiver.answer = (500, b"<b>broken</b>")
            page = (await olaf.post("/alarms/channels/hook/test")).text
            assert "未送达" in page
            assert "HTTP 500: &lt;b&gt;broken" in page, "what a receiver says is text"
            receiver.answer = receivers.OK
            alarms.raise_alarm(AlarmKind.MACHINE_LOST, "FEP-02", "silent")
            # What the daemon itself has to tell may be told with it.
            await console.rig.until(
                lambda: any("MACHINE_LOST" in str(one.value) for one in receiver.requests), "told"
            )
            assert MEANINGS[AlarmKind.MACHINE_LOST].action_zh in (await olaf.get("/alarms")).text
            live = await olaf.get("/alarms?live&channels=1", headers={"hx-request": "true"})
            assert "hook" in live.text
            assert "<html" not in live.text
            vera = await console.person("vera")
            page = (await vera.get("/alarms")).text
            assert "hook" in page
            assert "/alarms/channels/hook/test" not in page
            assert (await olaf.post("/alarms/channels/none/test")).status_code == 404
            done = [one["method"] for one in await _acts(vera)]
            assert "alarm.test" in done


async def _acts(person: Any) -> list[dict[str, str]]:
    page = (await person.get("/audit")).text
    return [{"method": "alarm.test"}] if "alarm.test" in page else []
