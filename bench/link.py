"""What the link adds to a bare socket: round trips over loopback, all systems in one run.

``python -m bench.link [--quick] [--rounds N] [--seed N]``. A round measures every system once, in a
shuffled order, each against an echo process of its own; ratios are taken inside a round, and their
median and range are printed, so that a busy machine shows in the range and not in the ratio. The
last line is one JSON object. Peers are real processes; frames have 200 bytes: 8 digits of length, 20
of correlation, and filling.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from multiprocessing.connection import Connection
from typing import Final

import attrs
import trio

from fep.adapters.api import Context, Draft, Outcome, Reply, Unclear
from fep.adapters.card import SignAlgorithm
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
WARM_UP: Final = 200
REPLY_SECONDS_MAX: Final = 60.0
PIPELINES: Final = (16, 64)
_FILLING: Final = b"x" * (FRAME_BYTES - LENGTH_BYTES - CORRELATION_BYTES)
_HEAD: Final = b"%08d" % (FRAME_BYTES - LENGTH_BYTES)


def _frame(correlation: str) -> bytes:
    return _HEAD + correlation.encode().ljust(CORRELATION_BYTES) + _FILLING


class _EchoFramer:
    """Cuts 8-byte length frames; the least a real bank's framer does."""

    def __init__(self) -> None:
        self._data = b""

    def receive_data(self, data: bytes) -> list[Reply]:
        self._data += data
        replies = []
        while len(self._data) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int(self._data[:LENGTH_BYTES])
            if len(self._data) < end:
                break
            raw, self._data = self._data[:end], self._data[end:]
            correlation = raw[LENGTH_BYTES : LENGTH_BYTES + CORRELATION_BYTES].decode().rstrip()
            replies.append(Reply(correlation, "ECHO", "0", "", raw))
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


def _echo(told: Connection) -> None:
    """Answer every byte with itself, one connection after the other, until killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while data := connection.recv(65_536):
                    connection.sendall(data)


@asynccontextmanager
async def _echo_process() -> AsyncIterator[int]:
    """Start an echo process, and give its port."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_echo, args=(tell,), daemon=True)
    process.start()
    try:
        with told:
            yield told.recv()
    finally:
        process.kill()
        process.join()
        process.close()


System = Callable[[int], Awaitable[list[float]]]
"""Makes so many round trips and returns their times in seconds."""


def _numbers() -> Callable[[], str]:
    count = 0

    def number() -> str:
        nonlocal count
        count += 1
        return f"{count:020d}"

    return number


@asynccontextmanager
async def _raw(port: int) -> AsyncIterator[System]:
    """Yield the blocking socket: what can't be beaten."""
    number = _numbers()
    with closing(socket.create_connection(("127.0.0.1", port))) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def trips(count: int) -> list[float]:
            times = []
            for _ in range(count):
                frame = _frame(number())
                began = time.perf_counter()
                sock.sendall(frame)
                data = sock.recv(65_536)
                while len(data) < FRAME_BYTES:
                    data += sock.recv(65_536)
                times.append(time.perf_counter() - began)
                assert data == frame
            await trio.lowlevel.checkpoint()
            return times

        yield trips


@asynccontextmanager
async def _trio(port: int) -> AsyncIterator[System]:
    """Yield a bare trio stream: what trio itself costs."""
    number = _numbers()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:

        async def trips(count: int) -> list[float]:
            times = []
            for _ in range(count):
                frame = _frame(number())
                began = time.perf_counter()
                await stream.send_all(frame)
                data = await stream.receive_some(65_536)
                while len(data) < FRAME_BYTES:
                    data += await stream.receive_some(65_536)
                times.append(time.perf_counter() - began)
                assert data == frame
            return times

        yield trips


@asynccontextmanager
async def _open_link(port: int) -> AsyncIterator[Link]:
    config = LinkConfig(BankName("echo"), "127.0.0.1", port)
    send, receive = trio.open_memory_channel[UnmatchedReply](16)
    clock, rng = SystemClock(), random.Random(0)  # noqa: S311 - jitter, not a secret
    link = Link(config, _EchoCodec(), Sequence(), clock, _NoAlarms(), send, rng)
    with send, receive:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_link, link, _OpenGate())
            with trio.fail_after(REPLY_SECONDS_MAX):
                await link.wait_open()
            yield link
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _link(port: int) -> AsyncIterator[System]:
    """Yield ``Link.exchange`` as the task engine uses it: with a deadline around each request."""
    number = _numbers()
    async with _open_link(port) as link:

        async def trips(count: int) -> list[float]:
            times = []
            for _ in range(count):
                correlation = number()
                frame = _frame(correlation)
                began = time.perf_counter()
                with trio.fail_after(REPLY_SECONDS_MAX):
                    reply = await link.exchange(frame, correlation)
                times.append(time.perf_counter() - began)
                assert reply.raw == frame
            return times

        yield trips


def _link_with(in_flight: int) -> Callable[[int], object]:
    """Return the system that keeps so many requests under way on one link."""

    @asynccontextmanager
    async def system(port: int) -> AsyncIterator[System]:
        number = _numbers()
        async with _open_link(port) as link:

            async def trips(count: int) -> list[float]:
                times: list[float] = []

                async def worker() -> None:
                    while len(times) < count:
                        correlation = number()
                        began = time.perf_counter()
                        with trio.fail_after(REPLY_SECONDS_MAX):
                            await link.exchange(_frame(correlation), correlation)
                        times.append(time.perf_counter() - began)

                async with trio.open_nursery() as nursery:
                    for _ in range(in_flight):
                        nursery.start_soon(worker)
                return times

            yield trips

    return system


@attrs.frozen
class Figures:
    """One system in one round; times in microseconds."""

    p50_us: float
    p99_us: float
    rate: float
    """Round trips a second."""


def _figures(times: list[float], elapsed: float) -> Figures:
    cuts = statistics.quantiles(times, n=100)
    return Figures(cuts[49] * 1e6, cuts[98] * 1e6, len(times) / elapsed)


async def _measure(systems: dict[str, System], rounds: int, trips: int, seed: int) -> Rounds:
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    measured: Rounds = []
    for system in systems.values():
        await system(WARM_UP)
    for _ in range(rounds):
        order = list(systems)
        rng.shuffle(order)
        figures = {}
        for name in order:
            began = time.perf_counter()
            times = await systems[name](trips)
            figures[name] = _figures(times, time.perf_counter() - began)
        measured.append(figures)
    return measured


Rounds = list[dict[str, Figures]]


def _row(name: str, rounds: Rounds) -> str:
    p50 = [one[name].p50_us for one in rounds]
    p99 = statistics.median(one[name].p99_us for one in rounds)
    rate = statistics.median(one[name].rate for one in rounds)
    span = f"{min(p50):.1f}-{max(p50):.1f}"
    return f"{name:<24}{statistics.median(p50):>9.1f}{span:>16}{p99:>10.1f}{rate:>12,.0f}"


def _summary(rounds: Rounds, seed: int) -> dict[str, object]:
    def added(name: str) -> list[float]:
        return [one[name].p50_us - one["raw socket"].p50_us for one in rounds]

    def ratio(name: str) -> float:
        each = [one[name].p50_us / one["raw socket"].p50_us for one in rounds]
        return round(statistics.median(each), 2)

    link = added("link")
    rates = {
        f"link_rate_{count}": round(
            statistics.median(one[f"link, {count} in flight"].rate for one in rounds)
        )
        for count in PIPELINES
    }
    return {
        "bench": "link",
        "rounds": len(rounds),
        "seed": seed,
        "raw_p50_us": round(statistics.median(one["raw socket"].p50_us for one in rounds), 1),
        "trio_to_raw_p50": ratio("trio stream"),
        "link_to_raw_p50": ratio("link"),
        "trio_added_p50_us": round(statistics.median(added("trio stream")), 1),
        "link_added_p50_us": round(statistics.median(link), 1),
        "link_added_p50_us_min": round(min(link), 1),
        "link_added_p50_us_max": round(max(link), 1),
        **rates,
    }


async def main(rounds: int, trips: int, seed: int) -> dict[str, object]:
    """Measure all systems, print the table, return the summary."""
    openers = {
        "raw socket": _raw,
        "trio stream": _trio,
        "link": _link,
        **{f"link, {count} in flight": _link_with(count) for count in PIPELINES},
    }
    async with AsyncExitStack() as stack:
        systems = {}
        for name, opener in openers.items():
            port = await stack.enter_async_context(_echo_process())
            systems[name] = await stack.enter_async_context(opener(port))  # type: ignore[arg-type]
        measured = await _measure(systems, rounds, trips, seed)
    head = f"{'system':<24}{'p50 us':>9}{'min-max':>16}{'p99 us':>10}{'trips/s':>12}"
    print("\n".join([head, *(_row(name, measured) for name in openers)]))  # noqa: T201
    return _summary(measured, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, for CI")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--trips", type=int)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    summary = trio.run(
        main,
        chosen.rounds or (5 if chosen.quick else 21),
        chosen.trips or (500 if chosen.quick else 2000),
        chosen.seed,
    )
    sys.stdout.write(json.dumps(summary) + "\n")
