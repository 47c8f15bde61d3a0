"""The card server against a driver that the test plays itself."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fep.sandbox.ukey.build import default_directory
from fep.sandbox.ukey.cards import (
    CONTROL_LINE_BYTES_MAX,
    SLOTS_MAX,
    FrameBuffer,
    Options,
    default_names,
    frame,
    parse_options,
    run_cards,
    trace_entry,
)
from fep.sandbox.ukey.piv import ATR

DEADLINE_SECONDS = 10
SELECT = bytes.fromhex("00A404000BA000000308000010000100")
VERIFY = bytes.fromhex("0020008008313233343536FFFF")
SIGN = bytes.fromhex("0087079A00")


@given(payloads=st.lists(st.binary(max_size=300), max_size=6), data=st.data())
def test_frames_survive_any_split(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    buffer = FrameBuffer()
    got: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += buffer.feed(stream[begin:end])
    assert got == payloads


@pytest.mark.parametrize("ins", ["20", "24", "2C", "FE", "FF"])
def test_the_trace_keeps_no_secret(ins: str) -> None:
    entry = trace_entry(1.0, bytes.fromhex(f"00{ins}008008") + b"12345678", b"\x90\x00")
    assert (entry.command, entry.response) == (f"00{ins.lower()}0080", "9000")
    assert trace_entry(1.0, SELECT, b"\x90\x00").command == SELECT.hex()


@attrs.frozen
class Bench:
    """A card server with two slots, the driver's listener of slot 0, and a control line."""

    listener: trio.SocketListener
    control: trio.SocketStream

    async def ask(self, command: str, **members: object) -> dict[str, Any]:
        return await self.send(json.dumps({"command": command, **members}).encode())

    async def send(self, line: bytes) -> dict[str, Any]:
        await self.control.send_all(line + b"\n")
        answer: dict[str, Any] = json.loads(await self.control.receive_some())
        return answer


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "slots").mkdir()
    driver = trio.socket.socket(socket.AF_UNIX)
    await driver.bind(str(tmp_path / "slots" / "00.sock"))
    driver.listen(8)
    cache = default_directory() / "keys"
    names = [*default_names(2), "spare"]
    options = Options(tmp_path, 2, names, [], cache, inserted=True, lifeline=None)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_cards, options)
            listener = trio.SocketListener(driver)
            control = await trio.open_unix_socket(str(tmp_path / "control.sock"))
            async with listener, control:
                yield Bench(listener, control)
            nursery.cancel_scope.cancel()


async def exchange(line: trio.SocketStream, payload: bytes) -> bytes:
    """Return the answer to one message of the driver; answers here come in one piece."""
    await line.send_all(frame(payload))
    answer = bytes(await line.receive_some())
    assert int.from_bytes(answer[:2], "big") == len(answer) - 2
    return answer[2:]


async def test_a_card_answers_the_driver(bench: Bench) -> None:
    async with await bench.listener.accept() as line:
        await line.send_all(frame(b"\x01"))
        assert await exchange(line, b"\x04") == ATR
        assert (await bench.ask("list"))["cards"][0]["recognised"] is False
        await line.send_all(frame(b"\x05"))
        assert (await exchange(line, SELECT))[-2:] == b"\x90\x00"
        assert (await bench.ask("list"))["cards"][0]["recognised"] is True
        assert await exchange(line, VERIFY) == b"\x90\x00"
        await line.send_all(frame(b"\x02"))
        assert await exchange(line, VERIFY) == b"\x6d\x00"
        trace = (await bench.ask("trace", card=0))["trace"]
        assert [entry["response"][-4:] for entry in trace] == ["9000", "9000", "6d00"]


async def test_a_card_connects_again_when_its_line_is_lost(bench: Bench) -> None:
    for _ in range(3):
        async with await bench.listener.accept() as line:
            assert await exchange(line, b"\x04") == ATR


async def test_pull_closes_the_line_and_insert_opens_one(bench: Bench) -> None:
    async with await bench.listener.accept() as line:
        assert await exchange(line, b"\x04") == ATR
        assert await bench.ask("pull", card=0) == {"ok": True}
        assert await line.receive_some() == b""
    assert (await bench.ask("list"))["cards"][0]["slot"] is None
    await bench.ask("mute", card=0)
    await bench.ask("insert", card=0)
    async with await bench.listener.accept() as line:
        assert await exchange(line, b"\x04") == b""


async def test_a_slow_card_can_be_pulled_and_the_next_one_answers_at_once(bench: Bench) -> None:
    await bench.ask("slow", card=0, seconds=3600)
    async with await bench.listener.accept() as line:
        await line.send_all(frame(SIGN))
        assert await bench.ask("swap", card=0, other=2) == {"ok": True}
        assert await line.receive_some() == b""
    async with await bench.listener.accept() as line:
        assert await exchange(line, SIGN) == b"\x6d\x00"
    cards = (await bench.ask("list"))["cards"]
    assert [card["slot"] for card in cards] == [None, 1, 0]


async def test_a_card_dies_in_place_of_an_answer(bench: Bench) -> None:
    await bench.ask("die_on_ins", card=0, ins=0x87)
    async with await bench.listener.accept() as line:
        assert await exchange(line, SELECT)
        await line.send_all(frame(SIGN))
        assert await line.receive_some() == b""
    assert (await bench.ask("list"))["cards"][0]["slot"] is None


async def test_two_cards_exchange_slots_and_reset_brings_all_back(bench: Bench) -> None:
    await bench.ask("swap", card=0, other=1)
    await bench.ask("set_guid", card=0, guid="aa" * 16)
    await bench.ask("block_pin", card=0)
    cards = (await bench.ask("list"))["cards"]
    assert [card["slot"] for card in cards] == [1, 0, None]
    assert (cards[0]["guid"], cards[0]["pin_tries_left"]) == ("aa" * 16, 0)
    await bench.ask("reset")
    cards = (await bench.ask("list"))["cards"]
    assert [card["slot"] for card in cards] == [0, 1, None]
    assert (cards[0]["guid"] == "aa" * 16, cards[0]["pin_tries_left"]) == (False, 3)
    assert len((await bench.ask("certificate", card=0, key="9C"))["der"]) > 1000


async def test_an_endless_control_line_ends_the_connection(bench: Bench) -> None:
    await bench.control.send_all(b"x" * (CONTROL_LINE_BYTES_MAX + 1))
    assert await bench.control.receive_some() == b""


@pytest.mark.parametrize("arguments", [["--slots", "0"], ["--slots", str(SLOTS_MAX + 1)], []])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--dir", "/nowhere", *arguments])


def test_names_are_filled_up() -> None:
    options = parse_options(["--dir", "/nowhere", "--slots", "2", "--common-name", "first"])
    assert options.common_names == ["first", "UKEY-01"]
