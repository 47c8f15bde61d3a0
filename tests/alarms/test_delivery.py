"""What is told arrives: over failures, restarts, other configurations and a full disk."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import httpx2  # noqa: F401 - loaded before the clock runs
import pytest
import structlog
import trio
from trio.testing import MockClock

from fep.alarms import store as alarm_store
from fep.alarms.config import AlarmsConfig, ChannelConfig, ChannelKind, HttpTarget
from fep.alarms.delivery import ChannelBusyError, Delivery
from fep.alarms.service import NOT_CONFIGURED, Alarms
from fep.alarms.state import AlarmKind, Severity
from fep.daemon.supervisor import supervise
from fep.domain.clock import SystemClock
from fep.store.database import Store
from tests.alarms import receivers
from tests.alarms.receivers import HttpReceiver, Request
from tests.alarms.test_service import empty, fill

pytestmark = pytest.mark.req("FEP-28", "FEP-31")
WAIT_SECONDS_MAX = 1200.0
RATE = 20.0
"""So much faster than a real clock is the clock that pauses and deadlines go by."""


@pytest.fixture
def quick(mock_clock: MockClock) -> MockClock:
    mock_clock.rate = RATE
    return mock_clock


@attrs.frozen
class Desk:
    """Alarms, their channels, and the store."""

    store: Store
    alarms: Alarms
    delivery: Delivery
    path: Path

    def notices(self) -> list[tuple[str, ...]]:
        """Return channel, what, kind and state of each notice as they are on disk."""
        with closing(sqlite3.connect(self.path / "fep.db")) as db:
            return db.execute(
                "select channel, what, kind, state from alarm_notice order by noted_at, rowid"
            ).fetchall()

    def channel(self, name: str = "duty") -> dict[str, Any]:
        return next(one for one in self.delivery.status() if one["channel"] == name)

    def in_force(self) -> set[tuple[str, str]]:
        return {(one.kind.value, one.subject) for one in self.alarms.active()}


def channel(receiver: HttpReceiver, name: str = "duty", **change: Any) -> ChannelConfig:
    url = receiver.url()
    target = HttpTarget(lambda: url, None)
    found = ChannelConfig(name, ChannelKind.WEBHOOK, target, per_minute=60, digest=url)
    return attrs.evolve(found, **change)


def rules(*channels: ChannelConfig, **change: Any) -> AlarmsConfig:
    return attrs.evolve(AlarmsConfig(channels, repeat_s=0.0, group_s=1.0), **change)


@asynccontextmanager
async def working(path: Path, config: AlarmsConfig) -> AsyncIterator[Desk]:
    """Run alarms and channels for a block; after it all is gone, as after a kill."""
    store = Store.at(path / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, SystemClock(), config)

        async def supervised(name: str, lane: Callable[..., Any]) -> None:
            await supervise(name, lane, alarms)

        delivery = Delivery(alarms, SystemClock(), "FEP-01", supervised)
        await nursery.start(delivery.run)
        await alarms.load()
        yield Desk(store, alarms, delivery, path)
        nursery.cancel_scope.cancel()


async def until(ready: Callable[[], Any]) -> Any:
    with trio.fail_after(WAIT_SECONDS_MAX):
        while not (found := ready()):
            await trio.sleep(0.2)
    return found


def told(requests: list[Request]) -> list[tuple[str, str, str]]:
    """Return what, kind and subject of all that came."""
    return [
        (one["what"], one["kind"], one["subject"])
        for request in requests
        for one in request.value["alarms"]
    ]


async def test_an_alarm_is_told_and_that_it_is_over(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver, working(tmp_path, rules(channel(receiver))) as desk:
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused")
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused again")
        await receiver.wait(1)
        assert told(receiver.requests) == [
            ("raised", "LINK_DOWN", "pingan"),
            ("raised", "LINK_DOWN", "cmb"),
        ]
        await until(lambda: desk.channel()["told"] == 2)
        desk.alarms.clear(AlarmKind.LINK_DOWN, "cmb")
        await receiver.wait(2)
        assert told(receiver.requests)[2:] == [("cleared", "LINK_DOWN", "cmb")]
        await until(lambda: len([one for one in desk.notices() if one[3] == "sent"]) == 3)
        assert desk.channel()["state"] == "idle"


async def test_it_is_told_again_until_it_is_acknowledged(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver:
        config = rules(channel(receiver), repeat_s=60.0)
        async with working(tmp_path, config) as desk:
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
            await receiver.wait(3)
            assert [one[0] for one in told(receiver.requests)] == ["raised", "again", "again"]
            await desk.alarms.acknowledge(desk.alarms.active()[0].id, "li")
            count = len(receiver.requests)
            await trio.sleep(100.0)
            assert len(receiver.requests) - count <= 1, "one may have been on its way"


async def test_a_channel_that_fails_is_told_by_the_other_until_it_delivers(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as bad, receivers.http() as good:
        bad.answer = (500, b"broken")
        both = rules(channel(bad), channel(good, "mail"))
        with structlog.testing.capture_logs() as logs:
            async with working(tmp_path, both) as desk:
                desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
                await until(lambda: ("ALARM_UNDELIVERED", "duty") in desk.in_force())
                await until(lambda: len(told(good.requests)) == 2)
                assert told(good.requests)[1] == ("raised", "ALARM_UNDELIVERED", "duty")
                assert desk.channel()["failures"] >= 3
                assert "HTTP 500" in desk.channel()["last_error"]
                before = len(bad.requests)
                bad.answer = receivers.OK
                await until(lambda: ("ALARM_UNDELIVERED", "duty") not in desk.in_force())
                await until(lambda: len(told(good.requests)) == 3)
                assert told(good.requests)[2] == ("cleared", "ALARM_UNDELIVERED", "duty")
                assert len(bad.requests) == before + 1
        assert all(
            one["kind"] != "ALARM_UNDELIVERED"
            for request in bad.requests
            for one in request.value["alarms"]
        ), "no channel tells of itself"
        ids = [one["ids"] for request in bad.requests for one in request.value["alarms"]]
        assert len({tuple(one) for one in ids}) == 1, "what comes twice bears one id"
        events = [line["event"] for line in logs]
        assert events.count("alarm.raised") == 2, "no loop"
        assert "notice.failed" in events


async def test_two_channels_that_fail_raise_two_alarms_and_no_more(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as one, receivers.http() as other:
        one.answer = other.answer = "close"
        with structlog.testing.capture_logs() as logs:
            async with working(tmp_path, rules(channel(one), channel(other, "mail"))) as desk:
                desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
                await until(lambda: min(c["failures"] for c in desk.delivery.status()) > 3)
                assert len(desk.in_force()) == 3
                one.answer = other.answer = receivers.OK
                await until(lambda: len(desk.in_force()) == 1)
                await until(lambda: all(c["state"] == "idle" for c in desk.delivery.status()))
        assert len([line for line in logs if line["event"] == "alarm.raised"]) == 3


async def test_what_nobody_got_is_told_by_the_next_process(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as receiver:
        receiver.answer = "hang"
        config = rules(channel(receiver))
        async with working(tmp_path, config) as desk:
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
            await receiver.wait(1)
            desk.alarms.raise_alarm(AlarmKind.KEY_MISSING, "ukey-1", "taken out")
        assert {one[3] for one in desk.notices()} == {"waiting"}
        receiver.answer = receivers.OK
        async with working(tmp_path, config) as desk:
            await receiver.wait(2)
            await until(lambda: {one[3] for one in desk.notices()} == {"sent"})
        first, second = receiver.requests
        assert first.value["alarms"][0]["ids"] == second.value["alarms"][0]["ids"]
        assert len(second.value["alarms"]) == 2
        async with working(tmp_path, config) as desk:
            await trio.sleep(100.0)
            assert len(receiver.requests) == 2, "what is told is told"


async def test_an_alarm_that_was_stored_without_channels_is_told_when_there_are_some(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as receiver, working(tmp_path, rules()) as desk:
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused")
        await desk.alarms.acknowledge(desk.alarms.active()[1].id, "li")
        assert desk.notices() == []
        await desk.delivery.configure(rules(channel(receiver)))
        await receiver.wait(1)
        assert told(receiver.requests) == [("raised", "LINK_DOWN", "pingan")]


async def test_another_configuration_loses_nothing(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as old, receivers.http() as new, receivers.http() as kept:
        old.answer = "hang"
        two = rules(channel(old), channel(kept, "mail"))
        async with working(tmp_path, two) as desk:
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
            await old.wait(1)
            await kept.wait(1)
            await desk.delivery.configure(rules(channel(new), channel(kept, "mail")))
            await new.wait(1)
            assert told(new.requests) == [("raised", "LINK_DOWN", "pingan")]
            await until(lambda: {one[3] for one in desk.notices()} == {"sent"})
            assert len(kept.requests) == 1
            await desk.delivery.configure(rules(channel(kept, "mail")))
            assert [one["channel"] for one in desk.delivery.status()] == ["mail"]
            with pytest.raises(LookupError):
                await desk.delivery.test("duty")


async def test_what_waits_at_a_channel_that_is_taken_away_is_ended(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as receiver:
        receiver.answer = (500, b"")
        async with working(tmp_path, rules(channel(receiver))) as desk:
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
            await until(lambda: ("ALARM_UNDELIVERED", "duty") in desk.in_force())
            await desk.delivery.configure(rules())
            assert desk.in_force() == {("LINK_DOWN", "pingan")}
            await until(lambda: [one[3] for one in desk.notices()] == ["given_up"])
    # The same where the process ended in between.
    async with receivers.http() as receiver:
        receiver.answer = "hang"
        async with working(tmp_path, rules(channel(receiver))) as desk:
            desk.alarms.raise_alarm(AlarmKind.KEY_MISSING, "ukey-1", "out")
            await receiver.wait(1)
        async with working(tmp_path, rules()) as desk:
            await until(lambda: "waiting" not in {one[3] for one in desk.notices()})
        with closing(sqlite3.connect(tmp_path / "fep.db")) as db:
            assert (NOT_CONFIGURED,) in db.execute("select reason from alarm_notice").fetchall()


async def test_what_is_too_old_is_given_up_with_a_word(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver, receivers.http() as other:
        receiver.answer = (500, b"")
        config = rules(channel(receiver), channel(other, "mail"), age_max_s=60.0)
        with structlog.testing.capture_logs() as logs:
            async with working(tmp_path, config) as desk:
                desk.alarms.raise_alarm(AlarmKind.PAYMENT_RETURNED, "T1", "1.00")
                await until(lambda: desk.channel()["given_up"])
                assert desk.channel()["state"] == "idle"
                await until(lambda: ("raised", "ALARM_UNDELIVERED", "duty") in told(other.requests))
                await until(
                    lambda: ("duty", "raised", "PAYMENT_RETURNED", "given_up") in desk.notices()
                )
        (line,) = [one for one in logs if one["event"] == "notice.given_up"]
        assert (line["channel"], line["alarms"], line["log_level"]) == (
            "duty",
            ["PAYMENT_RETURNED T1"],
            "error",
        )


async def test_that_the_disk_is_full_is_told_without_the_disk(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as receiver, working(tmp_path, rules(channel(receiver))) as desk:
        await fill(desk.store)
        desk.alarms.raise_alarm(AlarmKind.STORE_FULL, "store", "x" * 9000)
        await receiver.wait(1)
        assert told(receiver.requests) == [("raised", "STORE_FULL", "store")]
        await until(lambda: desk.channel()["told"] == 1)
        assert desk.notices() == []
        await empty(desk.store)
        desk.alarms.try_again()
        await until(lambda: desk.notices() == [("duty", "raised", "STORE_FULL", "sent")])


async def test_a_storm_is_few_messages(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver:
        robot = channel(receiver, kind=ChannelKind.DINGTALK, per_minute=2)
        async with working(tmp_path, rules(robot, group_s=0.0)) as desk:
            began = trio.current_time()
            for number in range(300):
                desk.alarms.raise_alarm(AlarmKind.PAYMENT_RETURNED, f"T{number}", "1.00")
                await trio.sleep(0.1)
            await until(lambda: desk.channel()["told"] == 300)
            minutes = (trio.current_time() - began) / 60.0
            assert len(receiver.requests) <= 2 * (minutes + 1)
            assert "另有" in receiver.requests[-1].value["text"]["content"]


async def test_a_test_message_says_how_it_went(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver:
        config = rules(channel(receiver, per_minute=4))
        async with working(tmp_path, config) as desk:
            receiver.answer = (500, b"broken")
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
            await until(lambda: desk.channel()["failures"] == 2)
            outcome = await desk.delivery.test("duty")
            assert (outcome["delivered"], outcome["told"]) == (False, "HTTP 500: broken")
            receiver.answer = receivers.OK
            outcome = await desk.delivery.test("duty")
            assert (outcome["channel"], outcome["delivered"], outcome["told"]) == ("duty", True, "")
            assert receiver.requests[-1].value["type"] == "fep.test"
            with pytest.raises(ChannelBusyError):
                await desk.delivery.test("duty")
            await until(lambda: desk.channel()["told"] == 1)


async def test_what_is_not_asked_for_is_not_told(tmp_path: Path, quick: MockClock) -> None:
    async with receivers.http() as receiver:
        only = channel(receiver, severities=frozenset({Severity.CRITICAL}))
        async with working(tmp_path, rules(only)) as desk:
            desk.alarms.raise_alarm(AlarmKind.CLIENT_LOST, "erp-1", "gone")
            desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "account 6222000000001234")
            await receiver.wait(1)
            assert told(receiver.requests) == [("raised", "LINK_DOWN", "pingan")]
            cause = receiver.requests[0].value["alarms"][0]["cause"]
            assert cause == "account 6222****1234", "no account number leaves"


async def test_old_notices_are_forgotten_and_those_of_an_alarm_in_force_are_not(
    tmp_path: Path, quick: MockClock
) -> None:
    async with receivers.http() as receiver, working(tmp_path, rules(channel(receiver))) as desk:
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "pingan", "refused")
        desk.alarms.raise_alarm(AlarmKind.LINK_DOWN, "cmb", "refused")
        desk.alarms.clear(AlarmKind.LINK_DOWN, "cmb")
        await until(lambda: len([one for one in desk.notices() if one[3] == "sent"]) == 3)
        now = SystemClock().now()
        removed = await desk.store.write(lambda c: alarm_store.forget_notices(c, now, "", 100))
        assert removed == 2
        assert [one[0] for one in desk.notices()] == ["duty"]
