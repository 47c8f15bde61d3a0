"""One connection, line by line: its first line, its heartbeats, its messages, and its end."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import structlog
import trio
import trio.testing

from fep.control.session import (
    LINE_SECONDS_MAX,
    OUTBOX_BYTES_MAX,
    RESULT_AGAIN_SECONDS,
    SILENCE_HEARTBEATS,
    UNCOMMITTED_MAX,
    WRITE_SECONDS_MAX,
)
from fep.control.share import CALLS_MAX
from fep.domain.ids import ClientName, TaskId
from fep.store.database import READERS_MAX
from fep.tasks.state import State
from fep.wire.jsonrpc import LINE_BYTES_MAX
from tests.control.conftest import Start
from tests.control.rig import RESET, WAIT_SECONDS_MAX, Config, Rig, Wire
from tests.store.held import held

HEARTBEAT_S = 100.0
"""Much longer than anything takes on a slow machine; the clock is moved on by hand."""
BALANCE = {"bank": "pingan", "kind": "balance"}
OPEN = b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":"root"}}\n'


@pytest.fixture
def clock(mock_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that goes like any other, and can be moved on."""
    mock_clock.rate = 1.0
    return mock_clock


@contextmanager
def readers_held(rig: Rig) -> Iterator[list[threading.Event]]:
    """Keep the store's readers busy for a block, each until its event is set."""
    gates = [threading.Event() for _ in range(READERS_MAX)]
    for gate in gates:
        rig.nursery.start_soon(rig.daemon._store.read, partial(_wait, gate))
    try:
        yield gates
    finally:
        for gate in gates:
            gate.set()


def _wait(gate: threading.Event, _connection: object) -> None:
    gate.wait(WAIT_SECONDS_MAX)


async def settle() -> None:
    """Let what is under way on the sockets happen."""
    await trio.testing.wait_all_tasks_blocked(0.02)


async def reset(wire: Wire) -> None:
    """End a connection as a machine that lost power does."""
    assert isinstance(wire.stream, trio.SocketStream)
    wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await wire.aclose()


async def closed(rig: Rig, many: int = 1) -> list[str]:
    """Wait for the end of so many sessions; returns why they ended."""
    records = await rig.until(
        lambda: len(rig.logs.named("session.closed")) >= many and rig.logs.named("session.closed"),
        f"{many} sessions closed",
    )
    return [one["reason"] for one in records]


# -- the first line -------------------------------------------------------------------------------


FIRST_LINES = [
    (b'{"jsonrpc":"2.0","id":1,"method":"status"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"task.submit","params":{}}', -32600),
    (b'{"jsonrpc":"2.0","method":"session.open","params":{"client":"a"}}', -32600),
    (b'{"jsonrpc":"2.0","method":"session.heartbeat"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"session.open"}', -32600),
    (b"[]", -32600),
    (b"", -32700),
    (b"GET / HTTP/1.1\r", -32700),
    (b"\xff\xfe", -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"session.open"}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":[]}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":null}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":1}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":"a","x":1}}', -32602),
]


async def test_another_first_line_is_answered_and_ends_the_connection(start: Start) -> None:
    async with start() as rig:
        for line, code in FIRST_LINES:
            wire = await rig.unix()
            # More behind it is not looked at, and does not cost the answer.
            await wire.send_bytes(line + b"\n" + OPEN * 2000)
            answer, *more = await wire.ended()
            assert answer["error"]["code"] == code, line
            assert more == []
        assert not rig.logs.named("session.opened")


async def test_lines_behind_the_first_are_acted_on_in_the_same_packet(start: Start) -> None:
    async with start() as rig:
        wire = await rig.unix()
        opening, status = (
            wire.request("session.open", {"client": "root"}),
            wire.request("status"),
        )
        await wire.send(opening, status)
        assert (await wire.reply(opening))["result"]["role"] == "admin"
        assert "version" in (await wire.reply(status))["result"]


async def test_the_welcome_says_all_that_a_client_needs(start: Start) -> None:
    async with start(heartbeat_s=7.5) as rig:
        wire = await rig.unix()
        welcome = await wire.open("root")
        assert set(welcome) == {"session", "server", "protocol", "role", "heartbeat_s", "time"}
        assert (welcome["heartbeat_s"], welcome["protocol"]) == (7.5, 1)


async def test_a_line_may_come_byte_by_byte(start: Start) -> None:
    async with start() as rig:
        wire = await rig.unix()
        for place in range(len(OPEN)):
            await wire.send_bytes(OPEN[place : place + 1])
        answer = await wire.receive()
        assert answer is not None
        assert answer["result"]["role"] == "admin"


async def test_a_session_opens_once(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        assert await admin.refusal("session.open", {"client": "other"}) == "BAD_STATE"
        await admin.result("status")


# -- lines ----------------------------------------------------------------------------------------


async def test_a_line_that_is_wrong_is_answered_and_the_session_goes_on(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        for method, params, code, words in (
            ("no.such", {}, -32601, "no.such"),
            ("task.get", {"task_id": "T", "taskid": 1}, -32602, "taskid"),
            ("task.get", {}, -32602, "task_id"),
            ("task.get", {"task_id": 1}, -32602, "task_id"),
            ("task.get", None, -32602, "task_id"),
            ("task.list", [], -32602, "array"),
            ("status", {"verbose": True}, -32602, "verbose"),
            ("task.submit", {"task_id": "T 1", **BALANCE}, -32602, "task_id"),
            ("task.submit", {"task_id": "T", "bank": "pingan", "kind": "x"}, -32602, "kind"),
            ("session.close", {"now": True}, -32602, "now"),
        ):
            answer = await admin.ask(method, params)
            assert answer["error"]["code"] == code, answer
            assert words in answer["error"]["message"]
        for line in (b"[]", b"1", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","id":1.5,"method":"x"}'):
            await admin.send_bytes(line + b"\n")
            fault = await admin.receive()
            assert fault is not None
            assert (fault["id"], fault["error"]["code"]) == (None, -32600)
        await admin.result("status")


async def test_a_line_that_is_no_json_is_answered_and_ends_the_session(start: Start) -> None:
    async with start() as rig:
        for line in (b"no JSON", b"\xff", b"{" * 100_000, b'{"a":'):
            admin = await rig.admin()
            await admin.send_bytes(line + b"\n")
            (fault,) = await admin.ended()
            assert (fault["id"], fault["error"]["code"]) == (None, -32700)


async def test_a_line_may_have_one_mebibyte_and_no_more(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        request = json.dumps({"jsonrpc": "2.0", "id": "long", "method": "status"}).encode()
        await admin.send_bytes(request.ljust(LINE_BYTES_MAX) + b"\n")
        answer = await admin.receive()
        assert answer is not None
        assert answer["id"] == "long"
        # The answer comes also where the line goes on and on.
        with suppress(trio.BrokenResourceError):
            await admin.send_bytes(request.ljust(3 * LINE_BYTES_MAX))
        (fault,) = await admin.ended()
        assert fault["error"]["code"] == -32700


async def test_what_nobody_asked_for_is_noted_once_and_left(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        for number in range(50):
            await admin.send({"id": number, "result": {}}, {"method": f"n{number}", "params": {}})
            await admin.send({"id": f"x{number}", "error": {"code": 1, "message": "no"}})
        await admin.result("status")
        assert len(rig.logs.named("session.unexpected_response")) == 1
        assert len(rig.logs.named("session.unknown_notification")) == 1


async def test_nothing_that_a_client_sends_ends_another_session_or_a_handler(start: Start) -> None:
    """Three hundred sessions of nonsense; that no handler crashed is asserted by ``logs``."""
    rng = random.Random(20_260_301)
    methods = ["task.submit", "task.get", "task.list", "events.follow", "status", "x", "alarm.list"]

    def value(depth: int = 0) -> Any:
        match rng.randrange(9 if depth < 3 else 6):
            case 0:
                return rng.choice([0, -1, 2**63, 10**30, 1e308, -0.0, 1.5])
            case 1:
                return rng.choice(["", "T1", "pingan", "balance", "\0", "\u2028", "令", "x" * 3000])
            case 2:
                return rng.choice([None, True, False])
            case 3 | 4 | 5:
                return rng.choice(["T1", "transfer", "1", 5])
            case 6:
                return [value(depth + 1) for _ in range(rng.randrange(4))]
            case _:
                names = ["task_id", "bank", "kind", "body", "params", "limit", "prefix", "all"]
                return {rng.choice(names): value(depth + 1) for _ in range(rng.randrange(5))}

    def line() -> bytes:
        message: dict[str, Any] = {"jsonrpc": rng.choice(["2.0"] * 9 + ["1.0"])}
        members = {
            "id": value(3),
            "method": rng.choice(methods),
            "params": value(),
            "result": value(),
            "error": {"code": value(3), "message": value(3)},
        }
        for name in rng.sample(sorted(members), rng.randrange(1, 4)):
            message[name] = members[name]
        data = bytearray(json.dumps(message).encode())
        while data and rng.random() < 0.1:
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data) + b"\n"

    async with start(bank=True) as rig:
        witness = await rig.finance()
        for number in range(300):
            wire = await (rig.admin() if number % 2 else rig.finance())
            with suppress(trio.BrokenResourceError):
                await wire.send_bytes(b"".join(line() for _ in range(rng.randrange(1, 30))))
            if number % 3:
                await reset(wire)
            else:
                with suppress(trio.BrokenResourceError):
                    await wire.send(wire.request("session.close"))
                await wire.ended()
                await wire.aclose()
        await witness.result("status")


# -- heartbeats -----------------------------------------------------------------------------------


@pytest.mark.req("FEP-29", "FEP-30")
async def test_the_daemon_sends_heartbeats(start: Start) -> None:
    async with start(heartbeat_s=0.05) as rig:
        admin = await rig.admin()
        for number in (1, 2, 3):
            beat = await admin.take("session.heartbeat")
            assert "id" not in beat
            assert set(beat["params"]) == {"seq", "time"}
            assert beat["params"]["seq"] == number
            await admin.send({"method": "session.heartbeat", "params": {"seq": number, "time": ""}})


@pytest.mark.req("FEP-30", "FEP-31")
async def test_a_silent_finance_system_is_cut_after_three_beats_with_an_alarm(
    start: Start, clock: trio.testing.MockClock
) -> None:
    async with start(heartbeat_s=HEARTBEAT_S) as rig:
        finance = await rig.finance()
        await finance.result("status")
        begun = trio.current_time()
        for _ in range(SILENCE_HEARTBEATS):
            assert ("CLIENT_LOST", "erp-1") not in rig.alarms()
            clock.jump(0.9 * HEARTBEAT_S)
            await settle()
        assert not rig.logs.named("session.closed")
        clock.jump(0.3 * HEARTBEAT_S)
        await finance.ended()
        # At three beats, not at the fourth.
        assert trio.current_time() - begun < (SILENCE_HEARTBEATS + 0.5) * HEARTBEAT_S
        assert "nothing heard" in (await closed(rig))[0]
        await rig.until(lambda: ("CLIENT_LOST", "erp-1") in rig.alarms(), "the alarm")
        await rig.finance()
        await rig.until(lambda: ("CLIENT_LOST", "erp-1") not in rig.alarms(), "its end")


async def test_anything_that_comes_is_a_sign_of_life(
    start: Start, clock: trio.testing.MockClock
) -> None:
    async with start(heartbeat_s=HEARTBEAT_S) as rig:
        finance = await rig.finance()
        for number in range(3 * SILENCE_HEARTBEATS):
            clock.jump(HEARTBEAT_S)
            match number // SILENCE_HEARTBEATS:
                case 0:
                    params = {"seq": number, "time": "2026-03-02T09:00:00+08:00"}
                    await finance.send({"method": "session.heartbeat", "params": params})
                case 1:
                    await finance.result("session.heartbeat", {"seq": number, "time": "x"})
                case _:
                    await finance.send({"method": "anything"})
            await settle()
        await finance.result("status")


async def test_a_line_that_does_not_end_is_cut_in_its_time_and_no_byte_of_it_is_a_sign_of_life(
    start: Start, clock: trio.testing.MockClock
) -> None:
    async with start(heartbeat_s=HEARTBEAT_S) as rig:
        patient, finance = await rig.finance(), await rig.finance()
        begun = trio.current_time()
        with suppress(trio.BrokenResourceError):
            for place in range(2 * int(LINE_SECONDS_MAX)):
                await finance.send_bytes(b" ")
                if place % 10 == 0:
                    # A line that comes in pieces, and another behind it, are in order.
                    line = b'{"jsonrpc":"2.0","id":7,"method":"status"}\n'
                    await patient.send_bytes(line[20:] + line[:20] if place else line[:20])
                await settle()
                clock.jump(1.0)
        await finance.ended()
        assert LINE_SECONDS_MAX <= trio.current_time() - begun < 2 * LINE_SECONDS_MAX + 5
        assert (await closed(rig)) == [f"a line did not end within {LINE_SECONDS_MAX:g} s"]
        assert len([one for one in patient.seen if one.get("id") == 7]) == 0
        await patient.send_bytes(b'{"jsonrpc":"2.0","id":7,"method":"status"}\n'[20:])
        assert (await patient.reply({"id": 7}))["result"]


async def test_the_daemons_own_work_is_not_the_clients_silence(
    start: Start, clock: trio.testing.MockClock
) -> None:
    """While a call waits for a slow disk in our hands, the client's beats wait in its socket."""
    async with start(bank=True, heartbeat_s=HEARTBEAT_S) as rig:
        await rig.ready()
        finance = await rig.finance()
        await finance.result("task.submit", {"task_id": "T1", **BALANCE})
        fetch = await finance.take("task.fetch")
        with held(rig.daemon._store):
            await finance.answer(fetch, rig.balance())
            task = rig.daemon.tasks._open[TaskId("T1")]
            await rig.until(lambda: task.claimed, "the body in the store's hands")
            # Acts on what the body makes of the task, so it waits for that.
            await finance.send({"id": 7, "method": "task.cancel", "params": {"task_id": "T9"}})
            await settle()
            for _ in range(2 * SILENCE_HEARTBEATS):
                clock.jump(HEARTBEAT_S)
                await settle()
        assert (await finance.take("task.result"))["params"]["state"] == "succeeded"


@pytest.mark.req("FEP-31")
async def test_an_end_without_goodbye_raises_the_alarm(start: Start) -> None:
    async with start() as rig:
        for many, how in enumerate(("closed", "reset", "session.close"), 1):
            finance = await rig.finance()
            if how == "session.close":
                assert await finance.result("session.close") == {}
                assert await finance.ended() == []
            elif how == "closed":
                await finance.aclose()
            else:
                await reset(finance)
            await closed(rig, many)
            await settle()
            assert (("CLIENT_LOST", "erp-1") in rig.alarms()) == (how != "session.close")


async def test_only_a_finance_system_is_missed_and_only_when_it_has_no_connection_left(
    start: Start,
) -> None:
    async with start() as rig:
        await (await rig.admin()).aclose()
        first, second = await rig.finance(), await rig.finance()
        await reset(second)
        await closed(rig, 2)
        assert not {one for one in rig.alarms() if one[0] == "CLIENT_LOST"}
        await reset(first)
        await closed(rig, 3)
        await rig.until(lambda: ("CLIENT_LOST", "erp-1") in rig.alarms(), "the alarm")


# -- acts and questions ---------------------------------------------------------------------------


async def test_what_was_begun_is_done_although_its_client_hung_up(
    start: Start, clock: trio.testing.MockClock
) -> None:
    """A reload cut in two would leave a bank out of force until the next restart."""
    async with start(heartbeat_s=HEARTBEAT_S) as rig:
        begun, gate, done = trio.Event(), trio.Event(), trio.Event()

        async def slow(who: str) -> dict[str, Any]:
            begun.set()
            await gate.wait()
            done.set()
            return {"who": who}

        rig.daemon.services.apply_config = slow
        admin = await rig.admin()
        await admin.send(admin.request("config.apply"))
        await begun.wait()
        clock.jump(SILENCE_HEARTBEATS * HEARTBEAT_S)
        # The client is rid of, and nobody waits for the act.
        await admin.ended()
        await closed(rig)
        assert not done.is_set()
        gate.set()
        with trio.fail_after(WAIT_SECONDS_MAX):
            await done.wait()


async def test_a_question_ends_with_its_client_and_an_act_with_the_daemon(start: Start) -> None:
    async with start() as rig:
        begun, ended = trio.Event(), trio.Event()

        async def never() -> list[str]:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
            raise AssertionError

        async def act(_who: str) -> dict[str, Any]:
            await never()
            return {}

        rig.daemon.services.check_config = never
        admin = await rig.admin()
        await admin.send(admin.request("config.check"))
        await begun.wait()
        await reset(admin)
        with trio.fail_after(WAIT_SECONDS_MAX):
            await ended.wait()
        begun, ended = trio.Event(), trio.Event()
        rig.daemon.services.apply_config = act
        admin = await rig.admin()
        await admin.send(admin.request("config.apply"))
        await begun.wait()
    assert ended.is_set()


async def test_calls_beyond_the_limit_wait_and_are_all_answered(start: Start) -> None:
    async with start() as rig:
        gate, running, most = trio.Event(), 0, 0

        async def slow() -> list[str]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1
            return []

        rig.daemon.services.check_config = slow
        admin, other = await rig.admin(), await rig.admin("other")
        requests = [admin.request("config.check") for _ in range(3 * CALLS_MAX)]
        await admin.send(*requests)
        await rig.until(lambda: running == CALLS_MAX, "as many as may run")
        await settle()
        await other.result("status")
        gate.set()
        for request in requests:
            assert (await admin.reply(request))["result"] == {"faults": []}
        assert most == CALLS_MAX


async def test_one_read_of_a_client_is_under_way_and_others_come_between(start: Start) -> None:
    """The store has few readers: whoever asks for lists without end must not have them all."""

    def two(config: Config) -> None:
        config["control"]["clients"]["erp-2"] = {"role": "finance"}

    many = 10
    async with start(change=two) as rig:
        finance = await rig.finance()
        await submit(finance, 6)
        end_in_store(rig, "{}")
    async with start(change=two) as rig:
        admin, other = await rig.admin(), await rig.finance("erp-2")
        with readers_held(rig):
            readers = rig.daemon._store._reader_limiter
            await settle()
            others = readers.statistics().tasks_waiting
            first, second = await rig.finance(), await rig.finance()
            calls: list[tuple[str, Any]] = [
                ("task.list", {}),
                ("task.list", {"state": "queued"}),
                ("task.why", {"task_id": "T0"}),
                ("task.get", {"task_id": "T0"}),
                ("task.cancel", {"task_id": "nobody's"}),
            ]
            both = [first, second] * many
            asked = [both[n].request(*calls[n % len(calls)]) for n in range(len(both))]
            await first.send(*asked[0::2])
            await second.send(*asked[1::2])
            await settle()
            waiting = readers.statistics().tasks_waiting - others
            assert waiting == 1, "of all sessions of a client together"
            people = [admin.request("audit.list"), admin.request("task.list")]
            await admin.send(*people)
            await other.send(between := other.request("task.list"))
            await settle()
            assert readers.statistics().tasks_waiting - others == 3
        for one in people:
            await admin.reply(one)
        assert (await other.reply(between))["result"] == {"tasks": []}
        for wire, requests in ((first, asked[0::2]), (second, asked[1::2])):
            for request in requests:
                await wire.reply(request)
        told = [await second.take("task.result") for _ in range(6)]
        assert {one["params"]["task_id"] for one in told} == ids(6)


# -- a client that does not read ------------------------------------------------------------------


async def offer(wire: Wire, data: bytes, times: int) -> int:
    """Send the same bytes again and again until nobody takes them; returns how often it went."""
    taken = 0
    for _ in range(times):
        with trio.move_on_after(WAIT_SECONDS_MAX) as scope:
            sending = trio.Event()

            async def send(sent: trio.Event = sending) -> None:
                await wire.stream.send_all(data)
                sent.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await settle()
                nursery.cancel_scope.cancel()
            if not sending.is_set():
                return taken
            taken += 1
        assert not scope.cancelled_caught
    return taken


async def test_answers_that_nobody_reads_cost_bounded_memory_and_then_the_session(
    start: Start, clock: trio.testing.MockClock
) -> None:
    async with start() as rig:
        made = 0

        def show() -> dict[str, Any]:
            nonlocal made
            made += 1
            return {"text": "x" * 200_000}

        rig.daemon.services.show_config = show
        admin, other = await rig.admin(), await rig.admin("other")
        line = b'{"jsonrpc":"2.0","id":1,"method":"config.show"}\n'
        # A gigabyte of answers is asked for.
        await offer(admin, line * 250, 20)
        sockets = 16 * 1024 * 1024
        most = (OUTBOX_BYTES_MAX + sockets) / 200_000 + CALLS_MAX
        assert 10 < made < most
        await other.result("status")
        clock.jump(WRITE_SECONDS_MAX)
        assert "slow client" in (await closed(rig))[0]
        await other.result("status")


async def test_submissions_beyond_the_disks_pace_wait_in_the_socket(start: Start) -> None:
    async with start() as rig:
        finance, other = await rig.finance(), await rig.admin()
        count = 0

        def block() -> bytes:
            nonlocal count
            lines = []
            for _ in range(16):
                count += 1
                params = {"task_id": f"T{count}", **BALANCE}
                one = {"jsonrpc": "2.0", "id": count, "method": "task.submit", "params": params}
                lines.append(json.dumps(one).encode().ljust(4095) + b"\n")
            return b"".join(lines)

        with held(rig.daemon._store):
            taken = 0
            while await offer(finance, block(), 1):
                taken += 1
                assert taken * 65_536 < 2 * UNCOMMITTED_MAX * 65_536 + 16 * 1024 * 1024
            await other.result("status")
        assert taken > 16


async def test_a_client_that_reads_gets_all_however_much_it_is(start: Start) -> None:
    async with start() as rig:
        rig.daemon.services.show_config = lambda: {"text": "x" * 500_000}
        admin = await rig.admin()
        requests = [admin.request("config.show") for _ in range(60)]
        await admin.send(*requests)
        await settle()
        for request in requests:
            assert len((await admin.reply(request))["result"]["text"]) == 500_000


async def test_many_long_results_do_not_cut_off_the_client_that_comes_for_them(
    start: Start,
) -> None:
    """Before, what was too much for the outbox was too much again on each new connection."""
    many = 2 * OUTBOX_BYTES_MAX // 500_000
    async with start() as rig:
        finance = await rig.finance()
        await submit(finance, many)
        await finance.result("session.close")
        end_in_store(rig, json.dumps({"entries": ["x" * 500_000], "complete": True}))
    async with start() as rig:
        finance = await rig.finance()
        told = [await finance.take("task.result") for _ in range(many)]
        assert {one["params"]["task_id"] for one in told} == ids(many)


# -- asking and telling ---------------------------------------------------------------------------


def small_window(config: Config) -> None:
    config["tasks"] |= {"result_window": 4, "fetch_timeout_s": 3600.0}


def ids(many: int) -> set[str]:
    return {f"T{number}" for number in range(many)}


async def submit(wire: Wire, many: int) -> None:
    """Submit balance queries T0, T1, … without bodies."""
    requests = [
        wire.request("task.submit", {"task_id": f"T{number}", **BALANCE}) for number in range(many)
    ]
    await wire.send(*requests)
    for request in requests:
        assert (await wire.reply(request))["result"]["known"] is False


def end_in_store(rig: Rig, result: str) -> None:
    """Write into the store that all tasks succeeded and that their results are owed."""
    with rig.store() as connection:
        connection.execute(
            "UPDATE task SET state='succeeded', delivery=1, result=?", (result.encode(),)
        )


@pytest.mark.req("FEP-22", "FEP-24", "FEP-26")
async def test_what_a_client_did_not_answer_is_asked_and_told_again_on_its_next_connection(
    start: Start,
) -> None:
    many = 20
    async with start(bank=True, change=small_window) as rig:
        await rig.ready()
        finance = await rig.finance()
        await submit(finance, many)
        asked = [await finance.take("task.fetch") for _ in range(4)]
        await reset(finance)
        finance = await rig.finance()
        again = [await finance.take("task.fetch") for _ in range(4)]
        assert [one["params"] for one in again] == [one["params"] for one in asked]
        fetched: set[str] = set()
        for fetch in again:
            await finance.answer(fetch, rig.balance())
        while len(fetched) < many - 4:
            fetch = await finance.take("task.fetch")
            fetched.add(fetch["params"]["task_id"])
            await finance.answer(fetch, rig.balance())
        told = [await finance.take("task.result") for _ in range(4)]
        # A reset would take back what is on its way.
        await rig.until(lambda: rig.daemon.tasks.status()["open"] == 0, "all done at the bank")
        await reset(finance)
        finance = await rig.finance()
        # Two more connections come and go with the same four in their hands.
        for _ in range(2):
            once_more = [await finance.take("task.result") for _ in range(4)]
            assert [one["params"] for one in once_more] == [one["params"] for one in told]
            await reset(finance)
            finance = await rig.finance()
        got: set[str] = set()
        while len(got) < many:
            result = await finance.take("task.result")
            assert result["params"]["state"] == "succeeded"
            got.add(result["params"]["task_id"])
            await finance.answer(result, {})
        await rig.until(
            lambda: rig.stored("SELECT count(*) FROM task WHERE delivery=2") == [(many,)],
            "all acknowledged on disk",
        )
    # A restart tells nothing again.
    async with start(change=small_window) as rig:
        finance = await rig.finance()
        await finance.result("status")
        await settle()
        assert not finance.seen


async def test_results_owed_from_before_survive_a_client_that_hangs_up_while_they_are_read(
    start: Start,
) -> None:
    async with start() as rig:
        finance = await rig.finance()
        await submit(finance, 6)
        end_in_store(rig, "{}")
    async with start() as rig:
        with readers_held(rig):
            finance = await rig.finance()
            await settle()
            await reset(finance)
            await closed(rig)
        finance = await rig.finance()
        told = [await finance.take("task.result") for _ in range(6)]
        assert {one["params"]["task_id"] for one in told} == ids(6)


async def test_results_that_are_being_read_for_a_connection_go_to_a_newer_one(
    start: Start,
) -> None:
    """If they went to the older one, and that died, nobody would tell them any more."""
    async with start() as rig:
        finance = await rig.finance()
        await submit(finance, 6)
        end_in_store(rig, "{}")
    async with start() as rig:
        with readers_held(rig) as gates:
            older = await rig.finance()
            await settle()
            newer = await rig.finance()
            await settle()
            # The older one's read is done first, alone.
            gates[0].set()
            await settle()
        told = [await newer.take("task.result") for _ in range(6)]
        assert {one["params"]["task_id"] for one in told} == ids(6)
        await older.result("status")
        assert not older.seen


@pytest.mark.req("FEP-22", "FEP-23")
async def test_the_same_id_again_is_the_same_task(start: Start) -> None:
    def two(config: Config) -> None:
        config["control"]["clients"]["erp-2"] = {"role": "finance"}

    async with start(change=two) as rig:
        finance = await rig.finance()
        body = rig.transfer(fen=100)
        task = {"task_id": "T1", "bank": "pingan", "kind": "transfer", "body": body}
        twice = [finance.request("task.submit", task) for _ in range(2)]
        await finance.send(*twice)
        answers = [(await finance.reply(one))["result"] for one in twice]
        assert [one["known"] for one in answers] == [False, True]
        again = await (await rig.finance()).result("task.submit", task)
        assert again == {"task_id": "T1", "state": "queued", "known": True}
        other = await rig.finance("erp-2")
        assert await other.refusal("task.submit", task) == "TASK_CONFLICT"
        for change in ({"body": rig.transfer(fen=101)}, {"kind": "balance", "body": rig.balance()}):
            assert await finance.refusal("task.submit", task | change) == "TASK_CONFLICT"
        assert rig.stored("SELECT count(*) FROM task") == [(1,)]


async def test_of_two_connections_the_newest_gets_the_messages_and_the_older_takes_over(
    start: Start,
) -> None:
    async with start(bank=True, change=small_window) as rig:
        await rig.ready()
        older, newer = await rig.finance(), await rig.finance()
        await submit(older, 3)
        fetches = [await newer.take("task.fetch") for _ in range(3)]
        await older.result("status")
        assert not older.seen
        await newer.answer(fetches[0], rig.balance())
        await newer.take("task.result")
        await reset(newer)
        again = [await older.take("task.fetch") for _ in range(2)]
        assert [one["params"] for one in again] == [one["params"] for one in fetches[1:]]
        result = await older.take("task.result")
        assert result["params"]["task_id"] == fetches[0]["params"]["task_id"]
        await older.answer(result, {})
        for fetch in again:
            await older.answer(fetch, rig.balance())
        for _ in range(2):
            await older.answer(await older.take("task.result"), {})


async def test_the_answer_to_an_earlier_question_is_taken(start: Start) -> None:
    def soon(config: Config) -> None:
        config["tasks"] = {"fetch_timeout_s": 0.1}

    async with start(bank=True, change=soon) as rig:
        await rig.ready()
        finance = await rig.finance()
        await submit(finance, 1)
        first, second = await finance.take("task.fetch"), await finance.take("task.fetch")
        assert [one["params"]["attempt"] for one in (first, second)] == [1, 2]
        await finance.answer(first, rig.balance())
        result = await finance.take("task.result")
        assert (result["params"]["task_id"], result["params"]["state"]) == ("T0", "succeeded")


async def test_who_may_not_submit_takes_no_messages(start: Start) -> None:
    def looks(config: Config) -> None:
        config["control"]["clients"]["erp-1"] = {"role": "viewer"}

    async with start(bank=True, change=looks) as rig:
        await rig.ready()
        admin = await rig.admin("erp-1")
        viewer = await rig.finance("erp-1")
        await admin.result("task.submit", {"task_id": "T1"} | BALANCE)
        await admin.answer(await admin.take("task.fetch"), rig.balance())
        result = await admin.take("task.result")
        assert result["params"]["task_id"] == "T1"
        await viewer.result("status")
        assert not viewer.seen
        # What it takes for an answer is none, and its end is nobody's loss.
        await viewer.send({"id": 1, "result": rig.balance()})
        await viewer.result("session.close")
        assert await viewer.ended() == []
        assert ("CLIENT_LOST", "erp-1") not in rig.alarms()


async def test_a_result_that_was_refused_is_told_again_on_the_same_connection(
    start: Start, clock: trio.testing.MockClock
) -> None:
    async with start(bank=True, change=small_window) as rig:
        await rig.ready()
        finance = await rig.finance()
        await submit(finance, 2)
        for _ in range(2):
            await finance.answer(await finance.take("task.fetch"), rig.balance())
        first, second = [await finance.take("task.result") for _ in range(2)]
        await finance.send({"id": first["id"], "error": {"code": -32000, "message": "disk full"}})
        await finance.answer(second, {})
        await finance.result("status")
        assert rig.logs.named("session.result_refused")[0]["reason"] == "disk full"
        clock.jump(RESULT_AGAIN_SECONDS)
        again = await finance.take("task.result")
        assert again["params"] == first["params"]
        await finance.answer(again, {})
        clock.jump(RESULT_AGAIN_SECONDS)
        await settle()
        await finance.result("status")
        assert not finance.seen


async def test_an_acknowledgement_of_an_earlier_end_is_none_of_a_later_one(start: Start) -> None:
    """A payment came back (退票) while its success was being acknowledged."""
    async with start(bank=True, change=small_window) as rig:
        await rig.ready()
        finance = await rig.finance()
        await submit(finance, 1)
        await finance.answer(await finance.take("task.fetch"), rig.balance())
        done = await finance.take("task.result")
        box = rig.daemon.tasks._box(ClientName("erp-1"))
        box.tell(attrs.evolve(box.told[TaskId("T0")], state=State.RETURNED))
        returned = await finance.take("task.result")
        assert (done["params"]["state"], returned["params"]["state"]) == ("succeeded", "returned")
        await finance.answer(done, {})
        await finance.result("status")
        await reset(finance)
        finance = await rig.finance()
        assert (await finance.take("task.result"))["params"] == returned["params"]


async def test_a_body_that_can_not_be_given_now_is_asked_for_again(start: Start) -> None:
    def quick(config: Config) -> None:
        config["tasks"]["fetch_timeout_s"] = 0.2

    async with start(bank=True, change=quick) as rig:
        await rig.ready()
        finance = await rig.finance()
        await submit(finance, 1)
        fetch = await finance.take("task.fetch")
        assert fetch["params"] == {"task_id": "T0", "attempt": 1}
        await finance.send({"id": fetch["id"], "error": {"code": -32000, "message": "not now"}})
        fetch = await finance.take("task.fetch")
        assert fetch["params"] == {"task_id": "T0", "attempt": 2}
        await finance.answer(fetch, rig.balance())
        assert (await finance.take("task.result"))["params"]["state"] == "succeeded"


async def test_the_end_in_order_comes_after_the_answers(start: Start) -> None:
    async with start() as rig:
        finance = await rig.finance()
        requests = [
            finance.request("task.submit", {"task_id": f"T{number}", **BALANCE})
            for number in range(20)
        ]
        await finance.send(*requests, finance.request("session.close"))
        *answers, bye = await finance.ended()
        assert sorted(one["result"]["task_id"] for one in answers) == sorted(ids(20))
        assert bye["result"] == {}


# -- events ---------------------------------------------------------------------------------------


def emit(event: str, **fields: Any) -> None:
    structlog.get_logger().info(event, **fields)


async def test_events_are_followed_by_their_beginning_until_they_are_not(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        assert await admin.result("events.follow", {"prefix": "test.some"}) == {}
        await settle()
        emit("test.some_one", number=1)
        emit("test.other", number=2)
        record = await admin.take("event")
        assert "id" not in record
        assert (record["params"]["event"], record["params"]["number"]) == ("test.some_one", 1)
        # Following anew replaces what was followed.
        await admin.result("events.follow", {"prefix": "test.other"})
        await settle()
        emit("test.some_one", number=3)
        emit("test.other", number=4)
        assert (await admin.take("event"))["params"]["number"] == 4
        assert await admin.result("events.unfollow") == {}
        await settle()
        emit("test.other", number=5)
        await admin.result("status")
        assert not admin.seen
        assert await admin.result("events.unfollow") == {}


async def test_a_follower_that_went_is_followed_no_more(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        await admin.result("events.follow")
        await reset(admin)
        await closed(rig)
        await rig.until(lambda: not rig.logs.followers._followers, "no follower")


async def test_a_follower_that_does_not_read_loses_records_and_nothing_else(start: Start) -> None:
    many, text = 25_000, "x" * 1500
    async with start() as rig:
        admin, other = await rig.admin(), await rig.admin("other")
        await admin.result("events.follow", {"prefix": "test."})
        longest = 0.0
        for number in range(many):
            emit("test.event", number=number, text=text)
            if number % 100 == 0:
                begun = time.monotonic()
                await other.result("status")
                longest = max(longest, time.monotonic() - begun)
        assert longest < 5.0
        got: list[dict[str, Any]] = []
        with trio.fail_after(WAIT_SECONDS_MAX):
            while len(got) < 2 or got[-1].get("number") != many:
                emit("test.event", number=many, text="")
                got.append((await admin.take("event"))["params"])
        dropped = sum(one["count"] for one in got if one["event"] == "events.dropped")
        assert dropped > 0
        kept = [one["number"] for one in got if one["event"] == "test.event" and one["text"]]
        assert kept == sorted(set(kept))
        assert len(kept) > 1000
        await admin.result("status")


async def test_the_end_is_answered_when_the_body_before_it_is_on_disk(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        finance = await rig.finance()
        await finance.result("task.submit", {"task_id": "T1", **BALANCE})
        fetch = await finance.take("task.fetch")
        close = finance.request("session.close", {})
        body = "select count(*) from task where body is not null"
        seen: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def closed() -> None:
                await finance.reply(close)
                seen.append(rig.stored(body))

            with held(rig.daemon._store):
                await finance.send({"id": fetch["id"], "result": rig.balance()}, close)
                nursery.start_soon(closed)
                await settle()
                assert seen == []
        assert seen == [[(1,)]]


async def test_a_call_finds_the_task_whose_body_came_with_it(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        finance = await rig.finance()
        await finance.result("task.submit", {"task_id": "T1", **BALANCE})
        fetch = await finance.take("task.fetch")
        cancel = finance.request("task.cancel", {"task_id": "T1"})
        with held(rig.daemon._store):
            await finance.send({"id": fetch["id"], "result": rig.balance()}, cancel)
            await settle()
        await finance.reply(cancel)
        # Whatever the answer is, it was given to a task that has its body.
        assert rig.stored("select event from task_event order by seq")[:3] == [
            ("submitted",),
            ("offered",),
            ("body_taken",),
        ]
