"""A bank's lane that has failed for good keeps nothing from people."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from fep.adapters.api import BankCodec
from fep.daemon import supervisor
from fep.domain.ids import BankName
from tests.control.rig import Logs, running


class _Defect:
    """A codec that can't prepare anything."""

    def __init__(self, inner: BankCodec) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, *_: object) -> object:
        raise ZeroDivisionError


@pytest.mark.req("FEP-23", "FEP-25")
async def test_a_payment_on_which_its_lane_fails_can_be_cancelled(
    directory: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_PAUSE_SECONDS", 0.01)
    with Logs().configured() as logs:
        async with running(directory, key, logs, bank=True) as rig:
            await rig.ready()
            lane = rig.daemon.tasks.lanes[BankName("pingan")]
            defect = cast("BankCodec", _Defect(lane.parts.codec))
            lane.parts = attrs.evolve(lane.parts, codec=defect)
            finance = await rig.finance()
            task = {"task_id": "T1", "bank": "pingan", "kind": "transfer", "body": rig.transfer()}
            await finance.result("task.submit", task)
            failed = ("LANE_FAILED", "bank:pingan")
            await rig.until(lambda: failed in rig.alarms(), "the failure")
            await rig.until(lambda: lane.in_flight == 0, "what it held")
            assert await finance.result("task.cancel", {"task_id": "T1"}) == {"state": "cancelled"}
        assert len(logs.named("lane.crashed")) == supervisor.RESTARTS_MAX + 1
