"""What the link adds to a bare socket: round trips over loopback, all systems in one run.

``python -m bench.link [--seconds S | --rounds N] [--trips N] [--seed N]``. A round is cut into
slices; in each slice every system runs once, in a shuffled order, against a process of its own.
Ratios are taken inside a round, and their median and range are reported, so that a busy machine
shows in the range more than in the ratio. The last line is one JSON object; ``bench/README.md``
says what its members mean. Frames of the echo systems have 200 bytes: 8 digits of length, 20 of
correlation, and filling. The Ping An systems exchange that bank's probe with the bank's simulated
half: the host's and the framer's work is in all their figures, and making the request in the one
that says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from multiprocessing.connection import Connection
from typing import Final, cast

import attrs
import structlog
import trio

from fep.adapters import registry
from fep.adapters.api import (
    BankCodec,
    BankProfile,
    Context,
    Draft,
    Outcome,
    Reply,
    Unclear,
)
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import Book, Faults, HostProfile
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import BusinessDate, SystemClock
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import BankName, Sequence
from fep.domain.order import Operation, StatementQuery
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import Link, run_link

FRAME_BYTES: Final = 200
LENGTH_BYTES: Final = 8
CORRELATION_BYTES: Final = 20
SLICES: Final = 10
WARM_UP: Final = 200
REPLY_SECONDS_MAX: Final = 60.0
ROUNDS_MIN: Final = 3
PIPELINES: Final = (16, 64)
PINGAN: Final = BankName("pingan")
_FILLING: Final = b"x" * (FRAME_BYTES - LENGTH_BYTES - CORRELATION_BYTES)
_HEAD: Final = b"%08d" % (FRAME_BYTES - LENGTH_BYTES)


def _frame(correlation: str) -> bytes:
    return _HEAD + correlation.encode().ljust(CORRELATION_BYTES) + _FILLING


class _EchoFramer:
    """Cuts 8-byte length frames; the least a real bank's framer does."""

    def __init__(self) -> None:
        self._data = b""

    def receive_data(self, data: bytes) -> list[Reply]:
        data = self._data + data
        replies = []
        begin = 0
        while len(data) - begin >= LENGTH_BYTES:
            body = begin + LENGTH_BYTES
            end = body + int(data[begin:body])
            if len(data) < end:
                break
            correlation = data[body : body + CORRELATION_BYTES].decode().rstrip()
            replies.append(Reply(correlation, "ECHO", "0", "", data[begin:end]))
            begin = end
        self._data = data[begin:]
        return replies

    def receive_eof(self) -> None:
        if self._data:
            msg = "the stream ended inside a frame"
            raise RemoteProtocolError(msg)


class _EchoCodec:
    def framer(self) -> _EchoFramer:
        return _EchoFramer()

    def logon(self, context: Context) -> Draft | None:
        del context
        return None

    def probe(self, context: Context) -> Draft:
        return Draft(context.sequence, "PROBE", None, SignAlgorithm.RSA_SHA256, None)

    def alive(self, reply: Reply) -> bool:
        return reply.code == "0"

    def prepare(self, operation: Operation, context: Context) -> Draft:
        del operation
        return self.probe(context)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        del signature
        return _frame(draft.correlation)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        del operation
        return Unclear(reply.code, reply.message)

    def payment_ref(self, reply: Reply) -> str:
        del reply
        return ""

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        del today
        return [query]


class _OpenGate:
    """A key that is always there."""

    is_open = True

    async def wait_open(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> None:
        await trio.sleep_forever()


class _NoAlarms(Alarms):
    """Ends the run instead of raising an alarm: a figure with a lost link is no figure."""

    def __init__(self) -> None:
        pass

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        msg = f"{kind} {subject}: {cause}"
        raise RuntimeError(msg)

    def clear(self, kind: AlarmKind, subject: str) -> None:
        pass


def _serve(told: Connection, answer: Callable[[], Callable[[bytes], bytes]]) -> None:
    """Answer one connection after the other, until killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = answer()
            with connection:
                while data := connection.recv(65_536):
                    if answered := answers(data):
                        connection.sendall(answered)


def _echo() -> Callable[[bytes], bytes]:
    return lambda data: data


def _pingan_host() -> Callable[[bytes], bytes]:
    """Return the simulated bank; the probe needs no book."""
    book = cast("Book", None)
    profile = HostProfile(PINGAN, book, SystemClock(), Faults())
    connection = registry.host("pingan_b2bi").open(profile)
    return lambda data: b"".join(answer.data for answer in connection.receive_data(data))


def _pingan_codec() -> BankCodec:
    adapter = registry.adapter("pingan_b2bi")
    options = adapter.options_class()
    return adapter.open(BankProfile(PINGAN, adapter.card, options, "1" * 20, {}))


@asynccontextmanager
async def _process(answer: Callable[[], Callable[[bytes], bytes]]) -> AsyncIterator[int]:
    """Start a peer, and give its port."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(tell, answer), daemon=True)
    process.start()
    tell.close()  # Its own end is the last one: should it die, ``recv`` raises and does not wait.
    try:
        with told:
            yield told.recv()
    finally:
        process.kill()
        process.join()
        process.close()


System = Callable[[int], Awaitable[tuple[list[float], float]]]
"""Makes so many round trips; returns their times, and how long they took together, in seconds."""


Opener = Callable[[int], AbstractAsyncContextManager[System]]
"""Connects a system to the peer at a port."""


def _frames(codec: BankCodec) -> Callable[[], tuple[bytes, str]]:
    """Return what makes the next request, and its correlation; outside of the times taken."""
    clock, sequence = SystemClock(), Sequence()

    def make() -> tuple[bytes, str]:
        now = clock.now()
        draft = codec.probe(Context(now=now, sequence=sequence.next(now)))
        return codec.seal(draft, None), draft.correlation

    return make


def _raw(codec: BankCodec, *, read: bool = False) -> Opener:
    """Return the blocking socket: what can't be beaten; ``read`` takes the framer's time too."""

    @asynccontextmanager
    async def system(port: int) -> AsyncIterator[System]:
        make = _frames(codec)
        with closing(socket.create_connection(("127.0.0.1", port))) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            async def trips(count: int) -> tuple[list[float], float]:
                framer = codec.framer()
                times = []
                for _ in range(count):
                    frame, correlation = make()
                    began = time.perf_counter()
                    sock.sendall(frame)
                    data = sock.recv(65_536)
                    received = time.perf_counter()
                    # A frame is one segment on loopback, so one recv has all of it.
                    [reply] = framer.receive_data(data)
                    times.append((time.perf_counter() if read else received) - began)
                    assert reply.correlation == correlation
                await trio.lowlevel.checkpoint()
                return times, sum(times)

            yield trips

    return system


def _trio(codec: BankCodec) -> Opener:
    """Return a bare trio stream: what trio itself costs."""

    @asynccontextmanager
    async def system(port: int) -> AsyncIterator[System]:
        make = _frames(codec)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:

            async def trips(count: int) -> tuple[list[float], float]:
                framer = codec.framer()
                times = []
                for _ in range(count):
                    frame, correlation = make()
                    began = time.perf_counter()
                    await stream.send_all(frame)
                    data = await stream.receive_some(65_536)
                    times.append(time.perf_counter() - began)
                    [reply] = framer.receive_data(bytes(data))
                    assert reply.correlation == correlation
                return times, sum(times)

            yield trips

    return system


@asynccontextmanager
async def _open_link(codec: BankCodec, port: int) -> AsyncIterator[Link]:
    config = LinkConfig(BankName("bench"), "127.0.0.1", port)
    send, receive = trio.open_memory_channel[UnmatchedReply](16)
    clock, rng = SystemClock(), random.Random(0)
    link = Link(config, codec, Sequence(500_000), clock, _NoAlarms(), send, rng)
    with send, receive:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_link, link, _OpenGate())
            with trio.fail_after(REPLY_SECONDS_MAX):
                await link.wait_open()
            yield link
            nursery.cancel_scope.cancel()


def _link(codec: BankCodec, in_flight: int = 1, *, seal: bool = False) -> Opener:
    """Return ``Link.exchange`` as the task engine uses it: with a deadline around each request.

    With ``seal`` the time begins before the codec makes the request, else the request is there.
    """

    @asynccontextmanager
    async def system(port: int) -> AsyncIterator[System]:
        make = _frames(codec)
        async with _open_link(codec, port) as link:

            async def work(requests: list[tuple[bytes, str]], times: list[float]) -> None:
                for ready in requests:
                    began = time.perf_counter()
                    frame, correlation = make() if seal else ready
                    with trio.fail_after(REPLY_SECONDS_MAX):
                        reply = await link.exchange(frame, correlation)
                    times.append(time.perf_counter() - began)
                    assert reply.correlation == correlation

            async def trips(count: int) -> tuple[list[float], float]:
                each = count // in_flight + 1
                shares = [[make() for _ in range(each)] for _ in range(in_flight)]
                times: list[float] = []
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for share in shares:
                        nursery.start_soon(work, share, times)
                return times, time.perf_counter() - began

            yield trips

    return system


@attrs.frozen
class Figures:
    """One system in one round; times in microseconds."""

    p50_us: float
    p99_us: float
    rate: float
    """Round trips a second."""


Rounds = list[dict[str, Figures]]


def _figures(times: list[float], elapsed: float) -> Figures:
    cuts = statistics.quantiles(times, n=100)
    return Figures(cuts[49] * 1e6, cuts[98] * 1e6, len(times) / elapsed)


async def _round(systems: dict[str, System], trips: int, rng: random.Random) -> dict[str, Figures]:
    times: dict[str, list[float]] = {name: [] for name in systems}
    elapsed = dict.fromkeys(systems, 0.0)
    for _ in range(SLICES):
        for name in rng.sample(list(systems), len(systems)):
            taken, span = await systems[name](trips // SLICES)
            times[name] += taken
            elapsed[name] += span
    return {name: _figures(times[name], elapsed[name]) for name in systems}


def _median(rounds: Rounds, name: str, field: str) -> float:
    return float(statistics.median(getattr(one[name], field) for one in rounds))


def _row(name: str, rounds: Rounds) -> str:
    p50 = [one[name].p50_us for one in rounds]
    span = f"{min(p50):.1f}-{max(p50):.1f}"
    rate = _median(rounds, name, "rate")
    return (
        f"{name:<24}{_median(rounds, name, 'p50_us'):>9.1f}{span:>16}"
        f"{_median(rounds, name, 'p99_us'):>10.1f}{rate:>12,.0f}"
    )


def _compared(rounds: Rounds, name: str, with_name: str, prefix: str) -> dict[str, float]:
    """Return what a system adds to another, and their ratio, both taken inside each round."""
    pairs = [(one[name].p50_us, one[with_name].p50_us) for one in rounds]
    added = [ours - theirs for ours, theirs in pairs]
    return {
        f"{prefix}_to_raw_p50": round(statistics.median(a / b for a, b in pairs), 2),
        f"{prefix}_added_p50_us": round(statistics.median(added), 1),
        f"{prefix}_added_p50_us_min": round(min(added), 1),
        f"{prefix}_added_p50_us_max": round(max(added), 1),
    }


async def main(
    seconds: float, rounds_count: int | None, trips: int, seed: int
) -> dict[str, object]:
    """Measure all systems, print the table, return the summary.

    Without ``rounds_count`` rounds are begun for so many seconds.
    """
    load_average = os.getloadavg()[0]
    echo = _EchoCodec()
    plan: dict[str, tuple[Opener, Callable[[], Callable[[bytes], bytes]]]] = {
        "raw socket": (_raw(echo), _echo),
        "trio stream": (_trio(echo), _echo),
        "link": (_link(echo), _echo),
        **{f"link, {count} in flight": (_link(echo, count), _echo) for count in PIPELINES},
    }
    if "pingan_b2bi" in registry.names():
        pingan = _pingan_codec()
        plan["pingan, raw socket"] = (_raw(pingan, read=True), _pingan_host)
        plan["pingan, link"] = (_link(pingan), _pingan_host)
        plan["pingan, link and codec"] = (_link(pingan, seal=True), _pingan_host)
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        systems = {}
        for name, (opener, peer) in plan.items():
            port = await stack.enter_async_context(_process(peer))
            systems[name] = await stack.enter_async_context(opener(port))
            await systems[name](WARM_UP)
        rounds: Rounds = []
        ends = time.perf_counter() + seconds
        while len(rounds) < (rounds_count or ROUNDS_MIN) or (
            rounds_count is None and time.perf_counter() < ends
        ):
            rounds.append(await _round(systems, trips, rng))
    head = f"{'system':<24}{'p50 us':>9}{'min-max':>16}{'p99 us':>10}{'trips/s':>12}"
    print("\n".join([head, *(_row(name, rounds) for name in plan)]))
    summary: dict[str, object] = {
        "bench": "link",
        "load_average": round(load_average, 2),
        "rounds": len(rounds),
        "seed": seed,
        "raw_p50_us": round(_median(rounds, "raw socket", "p50_us"), 1),
        **_compared(rounds, "trio stream", "raw socket", "trio"),
        **_compared(rounds, "link", "raw socket", "link"),
    }
    for count in PIPELINES:
        summary[f"link_rate_{count}"] = round(_median(rounds, f"link, {count} in flight", "rate"))
    if "pingan, link" in plan:
        raw = "pingan, raw socket"
        summary |= _compared(rounds, "pingan, link", raw, "pingan_link")
        summary |= _compared(rounds, "pingan, link and codec", raw, "pingan_codec")
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=float, default=15.0, help="begin rounds for so long; default 15"
    )
    length.add_argument("--rounds", type=int, help="exactly so many rounds instead")
    parser.add_argument(
        "--trips", type=int, default=1000, help="round trips of a system in one round; default 1000"
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.trips < SLICES * 2 or (chosen.rounds is not None and chosen.rounds < 1):
        parser.error(f"--trips must be {SLICES * 2} or more, --rounds 1 or more")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    result = trio.run(main, chosen.seconds, chosen.rounds, chosen.trips, chosen.seed)
    print(json.dumps(result))
