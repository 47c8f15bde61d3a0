"""The one epoll of all plain connections, on real sockets; and the round of the postman."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trio
import trio.testing

from fep.control.poller import READ_BYTES, Inlet, Poller, Turn
from fep.control.postman import Postman

SECONDS_MAX = 5.0


class Defect(Exception):  # noqa: N818
    pass


class Line:
    """One connection: what its ``take`` was given, and what it leaves to its task."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.given: list[bytes] = []
        self.inlet: Inlet[bytes]

    def take(self, data: bytes) -> bytes | None:
        self.given.append(data)
        if data.startswith(b"defect"):
            raise Defect
        return None if data.startswith(b"mine") else data

    async def receive(self) -> bytes:
        with trio.fail_after(SECONDS_MAX):
            return await self.inlet.receive()


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    async with trio.open_nursery() as nursery:
        one = Poller()
        await nursery.start(one.run)
        yield one
        nursery.cancel_scope.cancel()


@contextmanager
def line_of(poller: Poller) -> Iterator[Line]:
    line = Line()
    with line.ours, line.theirs, poller.reading(line.ours.fileno(), line.take) as inlet:
        line.inlet = inlet
        yield line


async def test_what_the_function_leaves_comes_to_the_task_and_the_rest_does_not(
    poller: Poller,
) -> None:
    with line_of(poller) as line, trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            found: list[bytes] = []

            async def receive() -> None:
                found.append(await line.receive())

            nursery.start_soon(receive)
            for number in range(3):
                line.theirs.send(b"mine")
                while len(line.given) <= number:
                    await trio.lowlevel.checkpoint()
            assert found == []
            line.theirs.send(b"yours")
        assert found == [b"yours"]
        assert line.given == [b"mine"] * 3 + [b"yours"]


async def test_what_comes_while_the_task_is_busy_waits_in_the_socket_and_is_not_asked_for(
    poller: Poller,
) -> None:
    with line_of(poller) as busy, line_of(poller) as other:
        for line in (busy, other):
            line.theirs.send(b"first")
            assert await line.receive() == b"first"
        busy.theirs.send(b"second")
        # The round in which it comes up takes it out of the epoll: no round after it finds it.
        other.theirs.send(b"x")
        assert await other.receive() == b"x"
        assert busy.given == [b"first"]
        assert poller._epoll.poll(0) == []
        assert await busy.receive() == b"second"


async def test_the_end_of_the_stream_comes_once_however_long_it_is_left(poller: Poller) -> None:
    with line_of(poller) as line, line_of(poller) as other:
        line.theirs.close()
        assert await line.receive() == b""
        other.theirs.send(b"x")
        assert await other.receive() == b"x"
        assert line.given == [b""]
        assert poller._epoll.poll(0) == []


async def test_more_than_one_read_takes_comes_in_parts(poller: Poller) -> None:
    with line_of(poller) as line:
        sent = bytes(range(256)) * (READ_BYTES // 128)
        got = b""
        async with trio.open_nursery() as nursery:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(line.theirs.dup()))
            nursery.start_soon(stream.send_all, sent)
            while len(got) < len(sent):
                got += await line.receive()
        await stream.aclose()
        assert got == sent
        assert max(map(len, line.given)) <= READ_BYTES


async def test_one_that_floods_over_many_connections_has_one_turn_a_round(poller: Poller) -> None:
    """What others send is read after one read of the flood, not after all its connections."""
    turn, reads = Turn(), list[tuple[str, int]]()
    flood = [socket.socketpair() for _ in range(20)]
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def take(name: str) -> Callable[[bytes], None]:
        return lambda data: reads.append((name, len(data)))

    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for number, (reads_here, writes_here) in enumerate(flood):
                for sock in (reads_here, writes_here):
                    stack.callback(sock.close)
                    sock.setblocking(False)
                with suppress(BlockingIOError):
                    while True:
                        writes_here.send(bytes(READ_BYTES))
                inlet: Inlet[None] = stack.enter_context(
                    poller.reading(reads_here.fileno(), take(f"flood {number}"), turn)
                )
                nursery.start_soon(inlet.receive)
            stack.callback(ours.close)
            stack.callback(theirs.close)
            inlet = stack.enter_context(poller.reading(ours.fileno(), take("other")))
            nursery.start_soon(inlet.receive)
            for number in range(50):
                theirs.send(b"x")
                while reads.count(("other", 1)) <= number:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    between = [0]
    for name, size in reads:
        if name == "other":
            between.append(0)
        else:
            between[-1] += size
    # Less than two reads of the flood before it, and in the next round: never all twenty.
    assert max(between) <= 4 * READ_BYTES
    # And of the flood's own connections none goes before the others for ever.
    assert len({name for name, _ in reads if name != "other"}) == len(flood)


async def test_a_defect_is_raised_in_its_connection_alone(poller: Poller) -> None:
    with line_of(poller) as broken, line_of(poller) as sound:
        broken.theirs.send(b"defect")
        with pytest.raises(Defect):
            await broken.receive()
        sound.theirs.send(b"x")
        assert await sound.receive() == b"x"
        broken.theirs.send(b"again")
        assert await broken.receive() == b"again"


async def test_who_stopped_waiting_loses_nothing(poller: Poller) -> None:
    with line_of(poller) as line:
        with trio.CancelScope() as scope:
            scope.cancel()
            await line.inlet.receive()
        line.theirs.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert line.given == []
        assert await line.receive() == b"x"


async def test_a_connection_may_end_another_one_of_the_same_round(poller: Poller) -> None:
    first, second = Line(), Line()
    with second.ours, second.theirs, first.ours, first.theirs:
        ending = poller.reading(second.ours.fileno(), second.take)
        second.inlet = ending.__enter__()

        def take(data: bytes) -> bytes:
            ending.__exit__(None, None, None)
            return data

        with poller.reading(first.ours.fileno(), take) as first.inlet:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.inlet.receive)
                await trio.testing.wait_all_tasks_blocked()
                first.theirs.send(b"x")
                second.theirs.send(b"y")
                assert await first.receive() == b"x"
                nursery.cancel_scope.cancel()
            assert second.given in ([], [b"y"])  # as the kernel has it


async def test_the_postman_calls_once_whoever_is_noted_and_in_the_next_round_who_comes_then() -> (
    None
):
    postman = Postman()
    called: list[str] = []

    def first() -> None:
        called.append("first")
        if len(called) == 1:
            postman.note(first)

    def second() -> None:
        called.append("second")

    for call in (first, second, first, second):
        postman.note(call)
    async with trio.open_nursery() as nursery:
        await nursery.start(postman.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert called == ["first", "second", "first"]
