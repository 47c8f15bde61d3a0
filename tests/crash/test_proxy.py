"""The line with faults: cuts at every byte, and the promise that makes "no record" a proof."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from bank_adapters.cmb_xml.frames import pack
from bank_adapters.pingan_b2bi.frames import encode
from tests.crash.proxy import (
    End,
    Protocol,
    Proxy,
    ProxyThread,
    Side,
    Stage,
    Temper,
    Walk,
    frame_bytes,
    is_payment,
)

PAYMENT = pack(b"<CMBSDKPGK><INFO><FUNNAM>DCPAYMNT</FUNNAM></INFO></CMBSDKPGK>")
QUERY = pack(b"<CMBSDKPGK><INFO><FUNNAM>NTQRYSTY</FUNNAM></INFO></CMBSDKPGK>")
PINGAN = encode({"trade_code": "4004"}, b"<Result/>", b"signature")


@pytest.mark.parametrize(
    ("protocol", "frame", "pays"),
    [
        (Protocol.CMB, PAYMENT, True),
        (Protocol.CMB, QUERY, False),
        (Protocol.PINGAN, PINGAN, True),
        (Protocol.PINGAN, encode({"trade_code": "4005"}), False),
    ],
)
def test_frames_are_found_and_payments_known(protocol: Protocol, frame: bytes, pays: bool) -> None:
    assert is_payment(protocol, frame) is pays
    sizes = {frame_bytes(protocol, frame[:at]) for at in range(len(frame) + 1)}
    assert sizes == {None, len(frame)}
    assert frame_bytes(protocol, frame + frame) == len(frame)


def test_what_is_no_frame_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        frame_bytes(Protocol.CMB, b"GET / HT")


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_together_cut_at_every_byte(lanes: int) -> None:
    """Frames of two sizes, as amounts have; the tail of the longer ones is reached too."""
    made: set[tuple[Side, int]] = set()
    for lane in range(lanes):
        walk = Walk(lane, lanes)
        for number in range(400):
            longer = number % 2
            if walk.cut_request(20 + longer) is None:
                walk.cut_answer(12 + longer)
        assert not made & walk.made
        made |= walk.made
    assert {at for side, at in made if side is Side.REQUEST} == set(range(22))
    assert {at for side, at in made if side is Side.ANSWER} == set(range(14))


class _Bank:
    """Takes down what each connection brings, and answers each frame with itself."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.ended = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        place = len(self.taken)
        self.taken.append(b"")
        try:
            while data := await stream.receive_some(65_536):
                self.taken[place] += data
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass
        self.ended += 1

    async def wait(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not holds():
                await trio.sleep(0.005)


Dial = Callable[[], Awaitable[trio.SocketStream]]


@asynccontextmanager
async def line(temper: Temper) -> AsyncIterator[tuple[Proxy, _Bank, Dial]]:
    bank, proxy = _Bank(), Proxy(Protocol.CMB)
    proxy.temper = temper
    dialled: list[trio.SocketStream] = []

    async def dial() -> trio.SocketStream:
        dialled.append(await trio.open_tcp_stream("127.0.0.1", proxy.port))
        return dialled[-1]

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.host_port = listener.socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, bank.serve, [listener])
        await nursery.start(proxy.run)
        try:
            yield proxy, bank, dial
        finally:
            for stream in dialled:
                await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def _received(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < size and (more := await stream.receive_some(size - len(data))):
            data += more
    return data


async def test_a_calm_line_carries_what_comes_also_what_is_no_frame() -> None:
    async with line(Temper()) as (proxy, _, dial):
        stream = await dial()
        for data in (PAYMENT + QUERY, b"no frame at all"):
            await stream.send_all(data)
            assert await _received(stream, len(data)) == data
        assert (proxy.payments, proxy.cuts) == (1, 0)


async def test_slices_and_delays_change_no_byte() -> None:
    async with line(Temper(delay_s=0.02, slice_bytes=1)) as (_, _, dial):
        stream = await dial()
        await stream.send_all(PAYMENT + QUERY)
        assert await _received(stream, len(PAYMENT + QUERY)) == PAYMENT + QUERY


@pytest.mark.parametrize("at", [0, 1, len(PAYMENT) - 1, len(PAYMENT)])
async def test_a_request_is_cut_at_its_byte(at: int) -> None:
    async with line(Temper(walk=Walk(at), ends=(End.CLOSE,))) as (proxy, bank, dial):
        stream = await dial()
        await stream.send_all(QUERY)
        assert await _received(stream, len(QUERY)) == QUERY
        await stream.send_all(PAYMENT + QUERY)
        assert await _received(stream, 1) == b""
        await bank.wait(lambda: bank.ended == 1)
        assert bank.taken == [QUERY + PAYMENT[:at]]
        assert proxy.cuts == 1


@pytest.mark.parametrize("at", [0, 1, len(PAYMENT)])
async def test_an_answer_is_cut_at_its_byte(at: int) -> None:
    walk = Walk(len(PAYMENT) + 1 + at)
    async with line(Temper(walk=walk, ends=(End.CLOSE,))) as (_, bank, dial):
        stream = await dial()
        await stream.send_all(PAYMENT)
        assert await _received(stream, len(PAYMENT) + 1) == PAYMENT[:at]
        assert bank.taken == [PAYMENT]
        assert walk.made == {(Side.ANSWER, at)}


async def test_a_reset_is_a_reset() -> None:
    async with line(Temper(walk=Walk(), ends=(End.RESET,))) as (_, _, dial):
        stream = await dial()
        await stream.send_all(PAYMENT)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


async def test_a_silent_line_stays_open_and_silent_and_the_next_one_works() -> None:
    async with line(Temper(walk=Walk(3), ends=(End.SILENCE,))) as (proxy, bank, dial):
        stream = await dial()
        await stream.send_all(PAYMENT + QUERY)
        with trio.move_on_after(0.2) as waited:
            await stream.receive_some(1)
        assert waited.cancelled_caught
        proxy.be_calm()
        await stream.aclose()
        other = await dial()
        await other.send_all(QUERY)
        assert await _received(other, len(QUERY)) == QUERY
        assert bank.taken == [PAYMENT[:3], QUERY]


async def test_a_request_of_an_older_line_is_never_after_a_newer_one() -> None:
    """However long it would have waited, and although its sender is gone."""
    async with line(Temper(delay_s=3600.0)) as (proxy, bank, dial):
        stream = await dial()
        await stream.send_all(PAYMENT)
        await bank.wait(lambda: proxy.payments == 1)
        assert bank.taken == [b""]
        await stream.aclose()
        proxy.be_calm()
        other = await dial()
        await other.send_all(QUERY)
        assert await _received(other, len(QUERY)) == QUERY
        assert bank.taken == [PAYMENT, QUERY]


async def test_frames_are_repeated_whole() -> None:
    async with line(Temper(repeat_requests=1.0)) as (proxy, _, dial):
        stream = await dial()
        await stream.send_all(PAYMENT)
        assert await _received(stream, 2 * len(PAYMENT)) == 2 * PAYMENT
        assert proxy.repeated == 1


@pytest.mark.parametrize("temper", [Temper(drop_requests=1.0), Temper(drop_answers=1.0)])
async def test_a_frame_is_lost_and_the_line_lives_on(temper: Temper) -> None:
    async with line(temper) as (proxy, bank, dial):
        stream = await dial()
        await stream.send_all(PAYMENT)
        await bank.wait(lambda: proxy.dropped == 1)
        proxy.be_calm()
        await stream.send_all(QUERY)
        assert await _received(stream, len(QUERY)) == QUERY
        assert bank.taken == [QUERY if temper.drop_requests else PAYMENT + QUERY]


@pytest.mark.parametrize("stage", list(Stage))
async def test_each_moment_of_a_payment_can_be_caught_once(stage: Stage) -> None:
    caught: list[tuple[int, list[bytes]]] = []
    async with line(Temper()) as (proxy, bank, dial):
        stream = await dial()
        proxy.trigger(stage, 2, lambda: caught.append((proxy.payments, list(bank.taken))))
        for _ in range(3):
            await stream.send_all(PAYMENT)
            assert await _received(stream, len(PAYMENT)) == PAYMENT
    ((payments, taken),) = caught
    assert payments == 2
    if stage is Stage.ARRIVED:
        assert taken == [PAYMENT]
    if stage in (Stage.ANSWERED, Stage.TOLD):
        assert taken == [2 * PAYMENT]


def test_the_proxies_live_in_a_thread_of_their_own() -> None:
    proxies = [Proxy(Protocol.CMB), Proxy(Protocol.PINGAN)]
    with ProxyThread(proxies):
        assert len({proxy.port for proxy in proxies} - {0}) == 2
