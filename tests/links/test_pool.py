"""Several HTTP connections to one bank, against a server in this process that a test directs."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fep.adapters.api import Context, Draft, Outcome, Reply, Unclear
from fep.adapters.card import SignAlgorithm
from fep.adapters.http import HttpFramer
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import BusinessDate, SystemClock
from fep.domain.errors import LinkLostError, NothingSentError
from fep.domain.ids import BankName, Sequence
from fep.domain.order import Operation, StatementQuery
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.pool import LinkPool
from fep.links.service import run_link
from fep.links.state import LinkState
from fep.store.database import Store
from fep.wire.http import HttpRequest, HttpResponse, RequestReader, request_bytes, response_bytes
from tests.links.conftest import WAIT_SECONDS_MAX, Asked, Bank, KeyGate, Wire

BANK = BankName("web")
BODY_MAX = 100_000


def _reply(response: HttpResponse) -> Reply:
    """A body ``correlation|code``; the correlation may be empty."""
    correlation, _, code = response.body.decode().partition("|")
    return Reply(correlation, "", code or str(response.status), "", response.body)


class HttpCodec:
    """A bank whose good answers bear code 0; requests of a session bear its token."""

    def framer(self) -> HttpFramer:
        return HttpFramer(_reply, BODY_MAX)

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
        return request_bytes("h:1", f"/{draft.trade}", draft.correlation.encode(), "t/p")

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        del operation
        return Unclear(reply.code, reply.message)

    def payment_ref(self, reply: Reply) -> str:
        del reply
        return ""

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        del today
        return [query]


class TokenCodec(HttpCodec):
    """Signs on for a token, which it must get anew when the bank answers 1033."""

    def __init__(self) -> None:
        self.token = ""
        self.answered: list[str] = []

    @property
    def is_signed_on(self) -> bool:
        return bool(self.token)

    def logon(self, context: Context) -> Draft | None:
        if self.token:
            return None
        return Draft(context.sequence, "LOGON", None, SignAlgorithm.RSA_SHA256, None)

    def alive(self, reply: Reply) -> bool:
        return reply.code == "0" or reply.code.startswith("token")

    def signed_on(self, reply: Reply) -> None:
        self.token = reply.code

    def signed_off(self, reply: Reply) -> bool:
        self.answered.append(reply.correlation)
        if reply.code != "1033":
            return False
        self.token = ""
        return True


class LockingCodec(HttpCodec):
    """A bank that counts refused passwords, which it answers with 15500."""

    def locks_out(self, reply: Reply) -> bool:
        return reply.code == "15500"


def answer(text: str = "|0", *, close: bool = False, status: int = 200) -> bytes:
    return response_bytes(status, text.encode(), "t/p", close=close)


def ask_bytes(correlation: str) -> bytes:
    return request_bytes("h:1", "/T", correlation.encode(), "t/p")


class HttpWire:
    """The bank's end of one connection."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._reader = RequestReader(BODY_MAX)
        self._requests: list[HttpRequest] = []

    async def read(self) -> HttpRequest:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not self._requests:
                data = await self.wire._stream.receive_some()
                assert data, "the link closed the connection"
                self._requests += self._reader.receive_data(data)
        return self._requests.pop(0)

    def unread(self, request: HttpRequest) -> None:
        """Let it be read next."""
        self._requests.insert(0, request)

    async def serve(self, data: bytes = b"") -> HttpRequest:
        """Answer one request, well if nothing else is said."""
        request = await self.read()
        await self.wire.write(data or answer())
        return request


class Rig:
    """A pool, its gate and alarms, and the bank it talks to."""

    def __init__(self, nursery: trio.Nursery, bank: Bank, alarms: Alarms) -> None:
        self.nursery, self.bank, self.alarms = nursery, bank, alarms
        self.gate = KeyGate()
        self.task = trio.CancelScope()
        self.unmatched: trio.MemoryReceiveChannel[UnmatchedReply]
        self.codec: HttpCodec = HttpCodec()
        self.link: LinkPool

    async def start(self, connections: int = 2, **times: float) -> list[HttpWire]:
        """Start it and return the bank's ends of its READY connections."""
        wires = await self.connect(connections, **times)
        if isinstance(self.codec, TokenCodec | LockingCodec):
            # One goes first, and only then the other goes on with a probe.
            first = await asked(wires)
            await first.wire.write(answer("|token1" if self.signs_on else "|0"))
            await (await asked(wires)).wire.write(answer())
        else:
            for wire in wires:
                await wire.serve()
        await self.ready(connections)
        return wires

    @property
    def signs_on(self) -> bool:
        return isinstance(self.codec, TokenCodec)

    async def connect(self, connections: int = 2, **times: float) -> list[HttpWire]:
        """Start it and return the bank's ends of its connections."""
        spans: dict[str, Any] = {"backoff_first_s": 0.01, "backoff_max_s": 0.05, **times}
        config = LinkConfig(BANK, "127.0.0.1", self.bank.port, connections=connections, **spans)
        send, self.unmatched = trio.open_memory_channel[UnmatchedReply](16)
        self.link = LinkPool(
            config, self.codec, Sequence(), SystemClock(), self.alarms, send, random.Random(7)
        )
        await self.nursery.start(self._run)
        return [await self.accept() for _ in range(connections)]

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with self.task:
            await run_link(self.link, self.gate, task_status=task_status)

    async def accept(self) -> HttpWire:
        return HttpWire(await self.bank.accept())

    async def ready(self, count: int) -> None:
        await self.until(lambda: self.link.snapshot().connections_ready == count)

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not holds():
                await trio.sleep(0.001)

    def ask(
        self,
        correlation: str,
        deadline_s: float = 30.0,
        may_begin: Callable[[], bool] | None = None,
    ) -> Asked:
        asked = Asked(self.link, ask_bytes(correlation), correlation, deadline_s, may_begin)  # type: ignore[arg-type]
        self.nursery.start_soon(asked.run)
        return asked


async def asked(wires: list[HttpWire]) -> HttpWire:
    """Return the first of these connections on which a request came, read.

    What came on others in the same moment is read next.
    """
    found: list[HttpWire] = []
    async with trio.open_nursery() as nursery:

        async def read(wire: HttpWire) -> None:
            request = await wire.read()
            if found:
                wire.unread(request)
            found.append(wire)
            nursery.cancel_scope.cancel()

        for wire in wires:
            nursery.start_soon(read, wire)
    return found[0]


@asynccontextmanager
async def open_rig(path: Path) -> AsyncIterator[Rig]:
    bank = await Bank.listen()
    store = Store.at(path / "fep.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, SystemClock())
        await alarms.load()
        async with trio.open_nursery() as inner:
            yield Rig(inner, bank, alarms)
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    await bank.close()


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as made:
        yield made


async def test_an_answer_goes_to_the_request_of_its_connection(web: Rig) -> None:
    first, second = await web.start()
    a, b, c = web.ask("A"), web.ask("B"), web.ask("C")
    asked = {(await first.read()).body.decode(): first, (await second.read()).body.decode(): second}
    assert len(asked) == 2
    waits = ({"A", "B", "C"} - asked.keys()).pop()
    assert web.link.snapshot().in_flight == 2
    for name, wire in asked.items():
        await wire.wire.write(answer(f"|{name.lower()}"))
    ended = {name: task for name, task in (("A", a), ("B", b), ("C", c)) if name != waits}
    for name, task in ended.items():
        reply = await task.reply()
        assert (reply.correlation, reply.code) == (name, name.lower())
    async with trio.open_nursery() as nursery:
        served: list[str] = []

        async def serve(wire: HttpWire) -> None:
            served.append((await wire.serve()).body.decode())
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve, first)
        nursery.start_soon(serve, second)
    assert served == [waits]
    assert web.link.requests == 3


async def test_the_first_to_wait_is_the_first_served(web: Rig) -> None:
    [wire] = await web.start(1)
    tasks = []
    for name in "ABCD":
        tasks.append(web.ask(name))
        await trio.testing.wait_all_tasks_blocked()
    assert [(await wire.serve()).body for _ in tasks] == [b"A", b"B", b"C", b"D"]
    assert [(await task.reply()).correlation for task in tasks] == list("ABCD")


async def test_who_waits_for_a_connection_has_sent_nothing(web: Rig) -> None:
    [wire] = await web.start(1)
    web.ask("A")
    await wire.read()
    assert await web.ask("B", deadline_s=0.01).error() is NothingSentError
    c = web.ask("C", may_begin=lambda: False)
    await trio.testing.wait_all_tasks_blocked()
    d = web.ask("D")
    await trio.testing.wait_all_tasks_blocked()
    await wire.wire.write(answer())
    assert await c.error() is NothingSentError
    assert (await wire.serve()).body == b"D"
    await d.reply()


async def test_a_late_answer_is_kept_and_the_connection_waits_for_it(web: Rig) -> None:
    [wire] = await web.start(1)
    a = web.ask("A", deadline_s=0.02)
    await wire.read()
    assert await a.error() is trio.TooSlowError
    b = web.ask("B")
    await trio.testing.wait_all_tasks_blocked()
    assert not b.is_done
    await wire.wire.write(answer("|late"))
    got = await web.unmatched.receive()
    assert (got.reply.correlation, got.reply.code, got.late) == ("A", "late", True)
    assert (await wire.serve()).body == b"B"
    assert (await b.reply()).correlation == "B"


async def test_an_idle_connection_that_the_bank_closes_is_no_failure(web: Rig) -> None:
    [wire] = await web.start(1)
    for name in "AB":
        await wire.wire.close()
        wire = await web.accept()
        await web.ready(1)
        task = web.ask(name)
        # It just answered, so the new connection needs no probe before the request.
        assert (await wire.serve()).body == name.encode()
        await task.reply()
    shown = web.link.snapshot()
    assert (shown.failures, shown.last_failure) == (0, "")
    assert web.alarms.active() == []


async def test_a_server_that_closes_after_each_answer_works(web: Rig) -> None:
    await _close_after(web, answer("|0", close=True))


async def test_a_server_that_ends_its_answers_by_closing_works(web: Rig) -> None:
    await _close_after(web, b"HTTP/1.0 200 OK\r\n\r\n|0")


async def _close_after(web: Rig, data: bytes) -> None:
    async def serve() -> None:
        while True:
            wire = await web.accept()
            with trio.move_on_after(WAIT_SECONDS_MAX):
                await wire.serve(data)
            await wire.wire.close()

    web.nursery.start_soon(serve)
    config = LinkConfig(BANK, "127.0.0.1", web.bank.port, backoff_first_s=0.01)
    send, web.unmatched = trio.open_memory_channel[UnmatchedReply](16)
    web.link = LinkPool(
        config, web.codec, Sequence(), SystemClock(), web.alarms, send, random.Random(7)
    )
    await web.nursery.start(web._run)
    with trio.fail_after(WAIT_SECONDS_MAX):
        await web.link.wait_open()
    tasks = [web.ask(f"A{number}") for number in range(5)]
    for number, task in enumerate(tasks):
        reply = await task.reply()
        assert (reply.correlation, reply.code) == (f"A{number}", "0")
    assert web.link.snapshot().failures == 0


async def test_a_bank_that_closes_every_connection_at_once_is_lost(web: Rig) -> None:
    [wire] = await web.start(1)
    await wire.wire.close()
    for _ in range(4):
        await (await web.accept()).wire.close()
    await web.until(lambda: web.link.snapshot().failures > 0)
    assert web.link.snapshot().last_failure


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-Len", answer()[:-1]])
async def test_a_close_instead_of_an_answer_leaves_the_outcome_open(web: Rig, part: bytes) -> None:
    [wire] = await web.start(1)
    task = web.ask("A")
    await wire.read()
    if part:
        await wire.wire.write(part)
    await wire.wire.close()
    assert await task.error() is LinkLostError
    assert web.link.snapshot().failures == 1


async def test_a_close_that_nobody_has_read_yet_is_seen_before_the_first_byte(web: Rig) -> None:
    first, second = await web.start()
    await first.wire.close()
    await second.wire.close()
    # Without a checkpoint in between the link's own readers have not seen it.
    task = web.ask("A")
    wires = [await web.accept(), await web.accept()]
    await (await asked(wires)).wire.write(answer())
    assert (await task.reply()).correlation == "A"


async def test_chunks_slow_bytes_and_a_failed_status_are_answers(web: Rig) -> None:
    [wire] = await web.start(1)
    task = web.ask("A")
    await wire.read()
    for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n|c\r\n0\r\n\r\n":
        await wire.wire.write(bytes([byte]))
    assert (await task.reply()).code == "c"
    task = web.ask("B")
    await wire.serve(answer("", status=503))
    assert (await task.reply()).code == "503"


@pytest.mark.parametrize(
    "data", [b"no http\r\n\r\n", answer("OTHER|0"), answer("x" * (BODY_MAX + 1))]
)
async def test_what_can_not_be_the_answer_ends_the_connection(web: Rig, data: bytes) -> None:
    [wire] = await web.start(1)
    task = web.ask("A")
    await wire.read()
    await wire.wire.write(data)
    assert await task.error() is LinkLostError
    await (await web.accept()).serve()
    await web.ready(1)


async def test_an_answer_to_no_request_is_kept_and_ends_the_connection(web: Rig) -> None:
    [wire] = await web.start(1)
    task = web.ask("A")
    await wire.serve(answer("|first") + answer("|second"))
    assert (await task.reply()).code == "first"
    assert (await web.unmatched.receive()).reply.code == "second"
    await (await web.accept()).serve()
    await web.ready(1)


async def test_each_idle_connection_is_probed(web: Rig) -> None:
    wires = await web.start(heartbeat_s=0.1)
    for wire in wires:
        assert (await wire.serve()).target == "/PROBE"
    for wire in wires:
        assert (await wire.serve()).target == "/PROBE"


async def test_a_busy_connection_is_not_probed_and_a_silent_one_ends(web: Rig) -> None:
    [wire] = await web.start(1, heartbeat_s=0.05, reply_timeout_s=0.1)
    task = web.ask("A")
    while (await wire.read()).body != b"A":
        await wire.wire.write(answer())
    assert await task.error() is LinkLostError
    assert await wire.wire.read_bytes() == b""
    assert [alarm.kind.value for alarm in web.alarms.active()] == ["BANK_HEARTBEAT_LOST"]


async def test_a_request_has_the_whole_silence_from_when_it_was_written(web: Rig) -> None:
    [wire] = await web.start(1, heartbeat_s=0.8, reply_timeout_s=1.9)
    await trio.sleep(0.6)
    task = web.ask("A")
    while (await wire.read()).body != b"A":
        await wire.wire.write(answer())
    # Two seconds after the bank's last word it would have been cut.
    await trio.sleep(1.6)
    await wire.wire.write(answer())
    assert (await task.reply()).code == "0"
    assert web.alarms.active() == []


async def test_the_bank_is_not_down_while_one_connection_works(web: Rig) -> None:
    wires = await web.start()
    web.ask("A")
    await (await asked(wires)).wire.close()
    for _ in range(4):
        await (await web.accept()).wire.close()
    assert web.link.is_open
    assert web.alarms.active() == []


async def test_without_the_key_no_connection_is_left(web: Rig) -> None:
    wires = await web.start()
    web.gate.close()
    await web.until(lambda: web.link.state is LinkState.NO_KEY)
    for wire in wires:
        assert await wire.wire.read_bytes() == b""
    with pytest.raises(NothingSentError):
        await web.link.exchange(ask_bytes("A"), "A")
    web.gate.open()
    # A new session is proved anew.
    assert (await (await web.accept()).serve()).target == "/PROBE"
    with trio.fail_after(WAIT_SECONDS_MAX):
        await web.link.wait_open()


async def test_a_drain_lets_answers_come_and_refuses_who_waits(web: Rig) -> None:
    [wire] = await web.start(1)
    a = web.ask("A")
    await wire.read()
    b = web.ask("B")
    await trio.testing.wait_all_tasks_blocked()
    web.link.drain()
    assert await b.error() is NothingSentError
    await wire.wire.write(answer())
    assert (await a.reply()).code == "0"
    await web.until(lambda: web.link.state is LinkState.HELD)
    web.link.resume()
    await (await web.accept()).serve()
    await web.ready(1)


async def test_it_can_be_stopped_and_started_again(web: Rig) -> None:
    [wire] = await web.start(1)
    a = web.ask("A")
    await wire.read()
    b = web.ask("B")
    await trio.testing.wait_all_tasks_blocked()
    web.task.cancel()
    assert await a.error() is LinkLostError
    assert await b.error() is NothingSentError
    web.task = trio.CancelScope()
    await web.nursery.start(web._run)
    await (await web.accept()).serve()
    await web.ready(1)


async def test_not_signed_on_leads_to_a_new_log_on(web: Rig) -> None:
    web.codec = codec = TokenCodec()
    wires = await web.start()
    assert codec.token == "token1"
    task = web.ask("A")
    await (await asked(wires)).wire.write(answer("|1033"))
    assert (await task.reply()).code == "1033"
    assert codec.answered[-1] == "A", "the codec knows which request this answers"
    assert not web.link.is_open
    with pytest.raises(NothingSentError):
        await web.link.exchange(ask_bytes("B"), "B")
    again = await web.accept()
    assert (await again.serve(answer("|token2"))).target == "/LOGON"
    with trio.fail_after(WAIT_SECONDS_MAX):
        await web.link.wait_open()
    assert codec.token == "token2"
    assert web.alarms.active() == []


# A refused password


async def stays_silent(web: Rig) -> None:
    """See that everything has stopped, is told, and that nothing is asked any more."""
    await web.until(lambda: web.link.state is LinkState.HELD)
    assert not web.link.is_open
    with pytest.raises(NothingSentError):
        await web.link.exchange(ask_bytes("Z"), "Z")
    # Ten times the longest back-off.
    with trio.move_on_after(0.5):
        await web.accept()
        pytest.fail("the password would be shown again")
    [alarm] = web.alarms.active()
    assert alarm.kind is AlarmKind.SIGN_ON_REFUSED
    assert "15500" in alarm.cause


async def works_again(web: Rig) -> None:
    web.link.resume()
    wires = [await web.accept() for _ in range(2)]
    for _ in wires:
        await (await asked(wires)).wire.write(answer())
    await web.ready(2)
    assert web.alarms.active() == []


async def test_a_password_that_is_refused_at_the_start_is_shown_once(web: Rig) -> None:
    web.codec = LockingCodec()
    wires = await web.connect()
    first = await asked(wires)
    other = next(wire for wire in wires if wire is not first)
    await first.wire.write(answer("|15500"))
    assert await other.wire.read_bytes() == b"", "the other connection has asked, too"
    await stays_silent(web)
    await works_again(web)


@pytest.mark.parametrize("close", [False, True])
async def test_a_password_that_is_refused_later_stops_all_connections(
    web: Rig, close: bool
) -> None:
    web.codec = LockingCodec()
    wires = await web.start()
    a, b = web.ask("A"), web.ask("B")
    first, second = wires
    for wire in wires:
        await wire.read()
    await first.wire.write(answer("|15500", close=close))
    # What is under way elsewhere may still be answered.
    await second.wire.write(answer("|good"))
    assert {(await a.reply()).code, (await b.reply()).code} == {"15500", "good"}
    await stays_silent(web)
    await works_again(web)


async def test_a_heartbeat_that_is_refused_stops_all_connections(web: Rig) -> None:
    web.codec = LockingCodec()
    wires = await web.start(heartbeat_s=0.1)
    await (await asked(wires)).wire.write(answer("|15500"))
    await stays_silent(web)


async def test_another_refusal_is_tried_again(web: Rig) -> None:
    web.codec = LockingCodec()
    [wire] = await web.connect(1)
    await wire.serve(answer("|99999"))
    await (await web.accept()).serve()
    await web.ready(1)
