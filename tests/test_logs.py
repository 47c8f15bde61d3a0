"""What a log line may show, to whom it goes, and that writing one never hurts."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from fep import logs
from fep.domain.money import Cny

ACCOUNT = "6222000000000001234"
MASKED = "6222****1234"


class Lines:
    """A stream in memory, and its lines read back."""

    def __init__(self) -> None:
        self.stream = io.TextIOWrapper(io.BytesIO(), "utf-8")

    @property
    def text(self) -> str:
        raw = self.stream.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode("utf-8")

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield Lines()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_line_is_one_json_object_that_journald_and_jq_read(lines: Lines) -> None:
    logs.configure(lines.stream, "info")
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(bank="pingan", slot="ukey-1"):
        log.info("task.ended", task_id="T-1", state="succeeded")
    log.debug("frame.sent")
    log.error("line\nbreak", note="两行\n文字")
    first, second = lines.records
    assert list(first)[:3] == ["ts", "level", "event"]
    assert first.pop("ts").endswith("Z")
    assert first == {
        "event": "task.ended",
        "level": "info",
        "bank": "pingan",
        "slot": "ukey-1",
        "task_id": "T-1",
        "state": "succeeded",
    }
    assert (second["event"], second["note"]) == ("line\nbreak", "两行\n文字")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("reason", f"付款至{ACCOUNT}备注", f"付款至{MASKED}备注"),
        ("reason", f"{ACCOUNT}。", f"{MASKED}。"),
        ("reason", "卡号６２２２0000000000001234", "卡号６２２２****1234"),
        ("reason", f"两个{ACCOUNT},{ACCOUNT}", f"两个{MASKED},{MASKED}"),
        ("reason", "12345678901", "12345678901"),
        ("reason", "123456789012", "1234****9012"),
        ("rows", [{"to": [ACCOUNT]}], [{"to": [MASKED]}]),
        ("balances", {ACCOUNT: "1.00"}, {MASKED: "1.00"}),
        ("number", int(ACCOUNT), MASKED),
        ("number", -int(ACCOUNT), f"-{ACCOUNT}"),
        ("count", 123_456_789, 123_456_789),
        ("account", "12345678", "****"),
        ("account", "755915678", "7559****5678"),
        ("account", MASKED, MASKED),
        ("amount", Cny(123_45), "123.45"),
        ("amount", Decimal("1.50"), "1.50"),
        ("path", Path(f"/tapes/{ACCOUNT}"), f"/tapes/{MASKED}"),
        ("frame", ACCOUNT.encode(), "<19 bytes>"),
        ("file", "a\ud800b", "a\\ud800b"),
        ("digest", "a\ud800b", "a\\ud800b"),
        ("flag", True, True),
        ("nothing", None, None),
    ],
)
def test_account_numbers_are_masked_wherever_they_stand(
    name: str, value: object, shown: object
) -> None:
    # A minus sign is one of the guards: ids with dashes are not numbers of accounts.
    assert logs.redact(None, "info", {name: value}) == {name: shown}


@pytest.mark.parametrize(
    "name", ["ts", "task_id", "round_id", "bank_ref", "client_ref", "correlation", "digest"]
)
def test_what_is_wanted_whole_in_a_dispute_is_exempt_by_name(name: str) -> None:
    assert logs.redact(None, "info", {name: ACCOUNT}) == {name: ACCOUNT}
    assert logs.redact(None, "info", {"inner": {name: ACCOUNT}}) == {"inner": {name: ACCOUNT}}


@pytest.mark.parametrize("name", [*sorted(logs.SECRET_NAMES), "slot_pin", "API_TOKEN"])
@pytest.mark.parametrize("value", ["123456", 123456, ["123456"], {"value": "123456"}, b"123456"])
def test_secrets_are_hidden_whole(name: str, value: object) -> None:
    assert logs.redact(None, "info", {name: value}) == {name: "***"}
    shown = logs.redact(None, "info", {"outer": [{name: value}]})
    assert shown == {"outer": [{name: "***"}]}


@pytest.mark.parametrize("name", ["token_file", "pin_tries", "monkey", "keys"])
def test_what_only_sounds_secret_is_shown(name: str) -> None:
    assert logs.redact(None, "info", {name: "3"}) == {name: "3"}


def fail(message: str) -> None:
    raise ValueError(message)


def test_long_values_end_and_a_trace_keeps_its_end(lines: Lines) -> None:
    logs.configure(lines.stream, "info")
    log = structlog.get_logger()
    deep: list[Any] = []
    deep.append(deep)
    log.info("a.b", text="x" * 10_000, items=list(range(10_000)), deep=deep)
    try:
        fail("y" * 30_000 + f" to {ACCOUNT} the end")
    except ValueError:
        log.exception("lane.crashed")
    first, second = lines.records
    assert len(first["text"]) == logs.VALUE_CHARS_MAX + 1
    assert len(first["items"]) == logs.ITEMS_MAX
    assert len(lines.text.splitlines()[0]) < 10_000
    assert second["exception"].endswith(f"to {MASKED} the end")
    assert len(second["exception"]) <= logs.TRACE_CHARS_MAX + 1


@attrs.frozen
class Odd:
    value: str


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(Odd, st.text(st.characters())),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner)
    ),
    max_leaves=10,
)


@given(fields=st.dictionaries(st.sampled_from(["reason", "rows", "digest", "exception"]), JSONISH))
def test_any_value_makes_one_line_and_shows_no_long_number(fields: dict[str, Any]) -> None:
    shown = logs.redact(None, "info", {**fields, "note": f"至{ACCOUNT}"})
    line = orjson.dumps(shown)
    assert b"\n" not in line
    assert ACCOUNT.encode() not in line
    assert set(shown) == {*fields, "note"}


def test_the_console_form_is_for_eyes_and_masks_too(lines: Lines) -> None:
    logs.configure(lines.stream, "info", form="console")
    structlog.get_logger().warning("link.lost", reason=f"至{ACCOUNT}", pin="123456")
    try:
        fail(f"to {ACCOUNT} it was")
    except ValueError:
        structlog.get_logger().exception("lane.crashed")
    assert f"ValueError: to {MASKED} it was" in lines.text
    assert "link.lost" in lines.text
    assert "warning" in lines.text
    assert MASKED in lines.text
    assert ACCOUNT not in lines.text
    assert "123456" not in lines.text


class Disk(io.RawIOBase):
    """A file on a disk that is full for a while."""

    def __init__(self) -> None:
        self.full = False
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        self.written += bytes(data)
        return len(data)


def test_a_line_that_cannot_be_written_is_counted_not_raised(lines: Lines) -> None:
    disk = Disk()
    stream = io.TextIOWrapper(io.BufferedWriter(disk, 1024))
    logs.configure(stream, "info")
    log = structlog.get_logger()
    log.info("a.b", number=0)
    disk.full = True
    for number in range(1, 50):
        log.info("a.b", number=number)
    disk.full = False
    log.info("a.b", number=50)
    records = [json.loads(line) for line in disk.written.splitlines()]
    numbers = [record["number"] for record in records if "number" in record]
    lost = [record["count"] for record in records if record["event"] == "log.lines_lost"]
    assert numbers[0] == 0
    assert numbers[-1] == 50
    assert numbers == sorted(set(numbers))
    assert [len(numbers) + lost[0]] == [51]
    stream.close()


def test_a_reader_that_went_away_does_not_stop_the_writer(lines: Lines) -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    logs.configure(stream, "info")
    log = structlog.get_logger()
    os.close(read)
    log.info("a.b")
    with pytest.raises(BrokenPipeError):
        stream.close()
    log.info("a.b")


async def test_a_follower_gets_the_masked_record_and_another_thread_reaches_it_too(
    lines: Lines,
) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)
    log = structlog.get_logger()
    log.info("before.anybody")
    channel = followers.subscribe()
    log.info("a.b", note=ACCOUNT)
    await trio.to_thread.run_sync(lambda: log.info("c.d"))
    with trio.fail_after(5):
        first, second = await channel.receive(), await channel.receive()
    assert (first["event"], first["note"], second["event"]) == ("a.b", MASKED, "c.d")
    assert [record["event"] for record in lines.records] == ["before.anybody", "a.b", "c.d"]
    followers.unsubscribe(channel)
    followers.unsubscribe(channel)
    log.info("after.all")
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()


async def test_a_slow_follower_is_told_how_many_it_lost_and_holds_up_nobody(lines: Lines) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)
    log = structlog.get_logger()
    slow, quick = followers.subscribe(), followers.subscribe()
    total = 2 * logs.FOLLOWER_EVENTS_MAX
    for number in range(total):
        log.info("a.b", number=number)
        assert (await quick.receive())["number"] == number
    got = [slow.receive_nowait() for _ in range(logs.FOLLOWER_EVENTS_MAX)]
    assert [record["number"] for record in got] == list(range(logs.FOLLOWER_EVENTS_MAX))
    log.info("a.b", number=total)
    assert slow.receive_nowait() == {
        "event": "events.dropped",
        "level": "warning",
        "count": total - logs.FOLLOWER_EVENTS_MAX,
    }
    assert slow.receive_nowait()["number"] == total
    for one in (slow, quick):
        followers.unsubscribe(one)


async def test_every_record_is_either_got_or_counted(lines: Lines) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)
    log = structlog.get_logger()
    channel = followers.subscribe()
    sent = told = 0
    for burst in (1500, 1, 1, 1100, 3):
        for _ in range(burst):
            log.info("a.b")
            sent += 1
        # One place only becomes free: the note goes there and the record itself is lost again.
        record = channel.receive_nowait()
        told += record.get("count", 1)
    for _ in range(channel.statistics().current_buffer_used):
        told += channel.receive_nowait().get("count", 1)
    log.info("a.b")
    told += channel.receive_nowait().get("count", 1) + channel.receive_nowait().get("count", 1)
    assert told == sent + 1
    followers.unsubscribe(channel)


async def test_a_forgotten_follower_makes_room(lines: Lines) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)
    channels = [followers.subscribe() for _ in range(logs.FOLLOWERS_MAX + 1)]
    structlog.get_logger().info("a.b")
    with pytest.raises(trio.EndOfChannel):
        await channels[0].receive()
    assert (await channels[-1].receive())["event"] == "a.b"
    for channel in channels:
        followers.unsubscribe(channel)


async def test_a_follower_that_only_closed_its_channel_is_forgotten(lines: Lines) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)
    gone, there = followers.subscribe(), followers.subscribe()
    gone.close()
    structlog.get_logger().info("a.b")
    structlog.get_logger().info("c.d")
    assert (await there.receive())["event"] == "a.b"
    followers.unsubscribe(there)
    assert not followers._followers


def test_a_log_after_the_loop_has_ended_is_still_written(lines: Lines) -> None:
    followers = logs.Followers()
    logs.configure(lines.stream, "info", followers)

    async def follow() -> None:
        followers.subscribe()

    trio.run(follow)
    structlog.get_logger().info("daemon.stopped")
    assert [record["event"] for record in lines.records] == ["daemon.stopped"]
