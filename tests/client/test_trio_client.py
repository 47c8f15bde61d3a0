"""The trio client over real sockets: on a real daemon, and on a peer that the test plays itself."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from fep.client import CallError, Client, DisconnectedError, TaskResult, open_client
from fep.client.address import client_tls
from fep.client.conversation import BACKOFF_FIRST_S, BACKOFF_MAX_S, SILENCE_HEARTBEATS
from fep.client.trio_client import CLOSE_SECONDS_MAX, HANDLERS_MAX, OPEN_SECONDS_MAX
from fep.wire.jsonrpc import LINE_BYTES_MAX
from tests.control.conftest import Start
from tests.control.rig import RESET, WAIT_SECONDS_MAX, Config, Rig, Wire, open_fds, until

HEARTBEAT_S = 5.0
SUBMIT = ("T1", "pingan", "balance")
NOT_PERMITTED = {"code": -32000, "message": "no such name", "data": {"code": "NOT_PERMITTED"}}
STOPPING = {"code": -32000, "message": "stopping", "data": {"code": "SHUTTING_DOWN"}}


class Peer:
    """A daemon whose every line the test writes."""

    def __init__(self, address: str, listener: trio.SocketListener, stack: AsyncExitStack) -> None:
        self.address = address
        self._listener = listener
        self._stack = stack

    async def accept(self) -> Wire:
        """Take the client's next connection."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            stream = await self._listener.accept()
        self._stack.push_async_callback(trio.aclose_forcefully, stream)
        return Wire(stream)

    async def opening(self) -> tuple[Wire, dict[str, Any]]:
        """Take the next connection and its first line."""
        wire = await self.accept()
        return wire, await wire.take("session.open")

    async def welcome(self, heartbeat_s: float = 3000.0) -> Wire:
        """Take the next connection and open its session."""
        wire, opening = await self.opening()
        await wire.answer(opening, {"heartbeat_s": heartbeat_s, "server": "peer"})
        return wire

    async def refuse(self, error: dict[str, Any]) -> None:
        """Take the next connection and refuse its session."""
        wire, opening = await self.opening()
        await wire.send({"id": opening["id"], "error": error})
        await wire.aclose()


@asynccontextmanager
async def listening(address: str, listener: trio.SocketListener) -> AsyncIterator[Peer]:
    """Be a peer for a block; what it accepted is closed after it."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(trio.aclose_forcefully, listener)
        yield Peer(address, listener, stack)


@pytest.fixture
async def peer(directory: Path) -> AsyncIterator[Peer]:
    """A peer on a Unix socket: what one side sends, the other has at once, so a clock may jump."""
    path = str(directory / "peer.sock")
    raw = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await raw.bind(path)
    raw.listen()
    async with listening(path, trio.SocketListener(raw)) as made:
        yield made


@pytest.fixture
async def tcp_peer() -> AsyncIterator[Peer]:
    """A peer on TCP."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listening(f"tcp:127.0.0.1:{port}", listener) as made:
        yield made


@asynccontextmanager
async def running(client: Client) -> AsyncIterator[trio.Nursery]:
    """Run a client for a block, whether it ever connects or not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def soon(event: trio.Event) -> None:
    with trio.fail_after(WAIT_SECONDS_MAX):
        await event.wait()


def finance(rig: Rig, **options: Any) -> Any:
    return open_client(f"tcp:127.0.0.1:{rig.port}", "erp-1", token=rig.token, **options)


# -- on a real daemon -----------------------------------------------------------------------------


@pytest.mark.req("FEP-22", "FEP-24", "FEP-26", "FEP-32")
async def test_a_task_goes_out_by_its_id_and_comes_home_as_a_result(start: Start) -> None:
    results: list[TaskResult] = []
    home, asked = trio.Event(), []

    async with start(bank=True) as rig:
        await rig.ready()

        async def fetch(task_id: str, attempt: int) -> dict[str, Any]:
            asked.append((task_id, attempt))
            return rig.balance()

        async def result(told: TaskResult) -> None:
            results.append(told)
            home.set()

        async with finance(rig, fetch=fetch, result=result) as client:
            assert client.connected
            assert client.welcome["role"] == "finance"
            answer = await client.submit(*SUBMIT, priority=9, expires_s=60)
            assert answer == {"task_id": "T1", "state": "queued", "known": False}
            await soon(home)
            with pytest.raises(CallError) as refused:
                await client.call("task.get", {"task_id": "T9"})
            assert refused.value.code == "NOT_FOUND"
        assert asked == [("T1", 1)]
        assert [(one.task_id, one.state) for one in results] == [("T1", "succeeded")]
        # The acknowledgement left before the goodbye, and the goodbye raised no alarm.
        await rig.until(
            lambda: rig.stored("SELECT delivery FROM task") == [(2,)], "acknowledged on disk"
        )
        await rig.until(lambda: rig.logs.named("session.closed"), "the end")
        assert [one["reason"] for one in rig.logs.named("session.closed")] == ["session.close"]
        assert ("CLIENT_LOST", "erp-1") not in rig.alarms()


async def test_events_are_handed_on(start: Start) -> None:
    async with start() as rig:
        got, first = [], trio.Event()

        def event(record: dict[str, Any]) -> None:
            got.append(record["event"])
            first.set()

        async with open_client(f"unix:{rig.scene.socket}", "op", event=event) as client:
            await client.call("events.follow", {"prefix": "session."})
            await (await rig.admin("other")).result("session.close")
            await soon(first)
        assert got[0] == "session.opened"


@pytest.mark.req("FEP-31")
async def test_a_daemon_that_ended_is_told_and_found_again_when_it_is_back(
    start: Start, directory: Path
) -> None:
    alarms: list[str] = []
    lost = trio.Event()

    def alarm(reason: str) -> None:
        alarms.append(reason)
        lost.set()

    client = Client(f"unix:{directory / 'control.sock'}", "op", alarm=alarm)
    async with running(client) as nursery:
        async with start() as rig:
            await client.submit("T1", "pingan", "balance")
            lost = trio.Event()
        await soon(lost)
        assert "closed the connection" in alarms[-1]
        assert not client.connected
        # Submitted while nobody is there; it is on disk as soon as somebody is.
        answers: dict[str, bool] = {}

        async def again(task_id: str) -> None:
            answers[task_id] = (await client.submit(task_id, "pingan", "balance"))["known"]

        nursery.start_soon(again, "T1")
        nursery.start_soon(again, "T2")
        before = len(alarms)
        await until(lambda: len(alarms) > before, "a try that failed")
        async with start() as rig:
            await until(lambda: len(answers) == 2, "both answers")
            assert answers == {"T1": True, "T2": False}
            assert rig.stored("SELECT task_id FROM task ORDER BY seq") == [("T1",), ("T2",)]
            await client.close()


def tls_rig(directory: Path, host: str) -> tuple[Callable[[Config], None], ssl.SSLContext]:
    """Return a change to TLS with a certificate for this host, and a client's context."""
    ca = trustme.CA()
    server, client = ca.issue_cert(host), ca.issue_cert("erp.example", common_name="erp-1")
    server.cert_chain_pems[0].write_to_path(directory / "tls.crt")
    server.private_key_pem.write_to_path(directory / "tls.key")
    ca.cert_pem.write_to_path(directory / "ca.crt")
    client.cert_chain_pems[0].write_to_path(directory / "erp.crt")
    client.private_key_pem.write_to_path(directory / "erp.key")
    (directory / "tls.key").chmod(0o600)
    files = {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}

    def change(config: Config) -> None:
        config["control"]["tcp"] = [{"listen": "127.0.0.1:0", "tls": files}]

    context = client_tls(directory / "erp.crt", directory / "erp.key", directory / "ca.crt")
    return change, context


async def test_mutual_tls_end_to_end(start: Start, directory: Path) -> None:
    change, context = tls_rig(directory, "127.0.0.1")
    async with start(change=change) as rig:
        address = f"tls:127.0.0.1:{rig.port}"
        async with open_client(address, "erp-1", tls=context) as client:
            assert client.welcome["role"] == "finance"
            assert (await client.submit(*SUBMIT))["known"] is False
        await rig.until(lambda: rig.logs.named("session.closed"), "the end")
        assert rig.logs.named("session.closed")[0]["reason"] == "session.close"


@pytest.mark.parametrize("fault", ["another host's name", "another CA"])
async def test_a_client_talks_to_its_own_daemon_only(
    start: Start, directory: Path, fault: str
) -> None:
    change, context = tls_rig(directory, "fep.example" if fault != "another CA" else "127.0.0.1")
    reason = "not valid for" if fault != "another CA" else "CERTIFICATE_VERIFY_FAILED"
    if fault == "another CA":
        (directory / "other").mkdir()
        _, context = tls_rig(directory / "other", "127.0.0.1")
    alarms: list[str] = []
    async with start(change=change) as rig:
        client = Client(f"tls:127.0.0.1:{rig.port}", "erp-1", tls=context, alarm=alarms.append)
        async with running(client):
            await until(lambda: alarms, "a try")
            before = open_fds()
            await until(lambda: len(alarms) > 3, "more tries")
            # A handshake that failed leaves no connection behind.
            assert open_fds() <= before + 1
        assert not client.connected
        assert all(reason in one for one in alarms), alarms
        assert not rig.logs.named("session.opened")


# -- on a peer ------------------------------------------------------------------------------------


@pytest.mark.req("FEP-29", "FEP-30")
async def test_heartbeats_are_in_time_from_the_first_session_on(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    """The first session's beats once came at the time of a default, and so too late."""
    async with running(Client(peer.address, "erp-1")):
        wire = await peer.welcome(0.5)
        begun = trio.current_time()
        for number in range(1, 7):
            beat = await wire.take("session.heartbeat")
            assert beat["params"]["seq"] == number
            assert trio.current_time() - begun == pytest.approx(0.5 * number)
            await wire.send({"method": "session.heartbeat", "params": {"seq": 1, "time": ""}})


@pytest.mark.req("FEP-30", "FEP-31")
async def test_a_silent_daemon_is_noticed_after_three_beats(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    alarms: list[tuple[float, str]] = []
    client = Client(
        peer.address, "erp-1", alarm=lambda reason: alarms.append((trio.current_time(), reason))
    )
    async with running(client):
        wire = await peer.welcome(HEARTBEAT_S)
        for _ in range(5):
            await trio.sleep(HEARTBEAT_S)
            await wire.send({"method": "session.heartbeat", "params": {"seq": 1, "time": ""}})
        begun = trio.current_time()
        assert not alarms
        again = await peer.welcome(HEARTBEAT_S)
        ((at, reason),) = alarms
        assert "no heartbeat" in reason
        assert at - begun == pytest.approx(SILENCE_HEARTBEATS * HEARTBEAT_S)
        await client.wait_connected()
        assert client.connected
        await wire.ended()
        await again.aclose()


async def test_a_peer_that_takes_the_connection_and_says_nothing_is_left(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    alarms: list[str] = []
    async with running(Client(peer.address, "erp-1", alarm=alarms.append)):
        begun = trio.current_time()
        await peer.opening()
        await peer.welcome()
        assert trio.current_time() - begun >= OPEN_SECONDS_MAX
        assert "said nothing" in alarms[0]


async def test_it_comes_back_for_ever_at_growing_intervals(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        tries: list[float] = []
        client = Client(
            f"127.0.0.1:{port}", "erp-1", alarm=lambda _: tries.append(trio.current_time())
        )
        async with running(client):
            await trio.sleep(3600)
        gaps = [after - before for before, after in pairwise(tries)]
        assert gaps[0] == pytest.approx(BACKOFF_FIRST_S)
        assert all(after > before - 1e-6 for before, after in pairwise(gaps))
        assert gaps[-1] == pytest.approx(BACKOFF_MAX_S)
        assert len(gaps) > 300


async def test_after_a_session_it_comes_back_at_once(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(Client(peer.address, "erp-1")):
        for _ in range(8):
            await (await peer.accept()).aclose()
        for _ in range(3):
            await (await peer.welcome()).aclose()
            begun = trio.current_time()
            await (await peer.welcome()).aclose()
            assert trio.current_time() - begun == pytest.approx(BACKOFF_FIRST_S)


async def test_a_call_waits_for_a_session_however_many_tries_it_takes(peer: Peer) -> None:
    """A connection that broke before its session once left the waiting ones behind for ever."""
    client = Client(peer.address, "erp-1")
    async with running(client) as nursery:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await client.call("status"))

        async def connected() -> None:
            await client.wait_connected()
            answers.append("connected")

        nursery.start_soon(ask)
        nursery.start_soon(connected)
        for _ in range(2):
            await (await peer.accept()).aclose()
        wire = await peer.welcome()
        await wire.answer(await wire.take("status"), "here")
        await until(lambda: len(answers) == 2, "both answers")
        assert set(answers) == {"here", "connected"}


async def test_a_first_session_that_is_refused_for_good_is_the_callers_error(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.refuse, NOT_PERMITTED)
        with pytest.raises(CallError, match="no such name") as refused:
            async with open_client(peer.address, "erp-1"):
                pass
        assert refused.value.code == "NOT_PERMITTED"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.refuse, NOT_PERMITTED | {"code": -32602, "data": None})
        with pytest.raises(CallError) as refused:
            async with open_client(peer.address, "erp-1"):
                pass
        assert refused.value.code == "-32602"


async def test_a_refusal_that_passes_is_waited_out(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    alarms: list[str] = []
    async with running(Client(peer.address, "erp-1", alarm=alarms.append)):
        await peer.refuse(STOPPING)
        await peer.refuse({"code": -32603, "message": "later"})
        await peer.welcome()
        assert alarms[0] == "stopping"
        assert len(alarms) >= 2


async def test_a_client_that_was_in_stays_whatever_it_is_refused_later(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    """A token that is wrong for an hour must not end a finance system's connection for ever."""
    alarms: list[str] = []
    client = Client(peer.address, "erp-1", alarm=alarms.append)
    async with running(client):
        await (await peer.welcome()).aclose()
        for _ in range(5):
            await peer.refuse(NOT_PERMITTED)
        await peer.welcome()
        await client.wait_connected()
        assert alarms.count("no such name") == 5


async def test_calls_in_flight_fail_and_submissions_go_out_again(peer: Peer) -> None:
    client = Client(peer.address, "erp-1")
    async with running(client) as nursery:
        outcomes: dict[str, Any] = {}

        async def note(name: str, ask: Callable[[], Any]) -> None:
            try:
                outcomes[name] = await ask()
            except DisconnectedError as error:
                outcomes[name] = error

        wire = await peer.welcome()
        await client.wait_connected()
        submits = [partial(client.submit, f"T{number}", "b", "balance") for number in range(3)]
        nursery.start_soon(note, "status", partial(client.call, "status"))
        for number, submit in enumerate(submits):
            nursery.start_soon(note, f"T{number}", submit)
        await wire.take("status")
        first = [await wire.take("task.submit") for _ in range(3)]
        await wire.answer(first[1], {"known": False})
        await until(lambda: "T1" in outcomes or outcomes, "an answer")
        await wire.aclose()
        wire = await peer.welcome()
        again = [await wire.take("task.submit") for _ in range(2)]
        kept = [first[0], first[2]]
        assert sorted(map(repr, again)) == sorted(map(repr, kept)), "same ids, same parameters"
        assert isinstance(outcomes["status"], DisconnectedError)
        for one in again:
            await wire.answer(one, {"known": True})
        await until(lambda: len(outcomes) == 4, "all answers")
        assert [outcomes[f"T{number}"]["known"] for number in range(3)].count(True) == 2


async def test_who_does_not_wait_any_more_is_forgotten(peer: Peer) -> None:
    client = Client(peer.address, "erp-1")
    async with running(client):
        wire = await peer.welcome()
        await client.wait_connected()
        with trio.move_on_after(0.01):
            await client.submit("T1", "b", "balance")
        submitted = await wire.take("task.submit")
        await wire.aclose()
        wire = await peer.welcome()
        await wire.answer(submitted, {"known": False})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "status")
            await wire.answer(await wire.take("status"), {})
        assert wire.seen == []


async def test_what_can_not_be_sent_is_refused_at_once_and_harms_nothing(peer: Peer) -> None:
    client = Client(peer.address, "erp-1")
    async with running(client):
        wire = await peer.welcome()
        await client.wait_connected()
        with pytest.raises(TypeError):
            await client.submit("T1", "b", "balance", {"kind": "balance", "params": object()})
        with pytest.raises(CallError, match="a line at most"):
            await client.submit("T1", "b", "balance", {"params": "x" * LINE_BYTES_MAX})
        await wire.aclose()
        wire = await peer.welcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "status")
            await wire.answer(await wire.take("status"), {})
        assert wire.seen == []


# -- the caller's functions -----------------------------------------------------------------------


async def test_what_the_callers_functions_raise_ends_nothing(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    alarms: list[str] = []
    bodies: dict[str, Any] = {
        "good": {"kind": "balance", "params": {}},
        "none": None,
        "no JSON": {"kind": object()},
        "too long": {"kind": "x" * LINE_BYTES_MAX},
    }
    broken_disk = True

    async def fetch(task_id: str, _attempt: int) -> Any:
        await trio.lowlevel.checkpoint()
        return bodies[task_id]

    async def result(told: TaskResult) -> None:
        await trio.lowlevel.checkpoint()
        if broken_disk:
            msg = f"no room for {told.task_id}, account 6222"
            raise OSError(msg)

    def event(_record: dict[str, Any]) -> None:
        msg = "event"
        raise LookupError(msg)

    def alarm(reason: str) -> None:
        alarms.append(reason)
        msg = "alarm"
        raise RuntimeError(msg)

    client = Client(peer.address, "erp-1", fetch=fetch, result=result, event=event, alarm=alarm)
    async with running(client):
        wire = await peer.welcome()
        answers = {}
        for number, task_id in enumerate([*bodies, "unknown"], 100):
            await wire.send(
                {"id": number, "method": "task.fetch", "params": {"task_id": task_id, "attempt": 1}}
            )
            answers[task_id] = await wire.reply({"id": number})
        assert answers.pop("good")["result"] == bodies["good"]
        messages = {name: one["error"]["message"] for name, one in answers.items()}
        assert messages == {
            "none": "this client has no such task",
            "no JSON": "fetch of no JSON raised TypeError",
            "too long": "fetch of too long raised ValueError",
            "unknown": "fetch of unknown raised KeyError",
        }
        told = {"task_id": "T1", "state": "succeeded", "result": None, "bank_code": ""}
        told |= {"bank_message": "", "at": ""}
        await wire.send({"id": 200, "method": "task.result", "params": told})
        refused = await wire.reply({"id": 200})
        # The sentence names the error; what it says may hold what no log may.
        assert refused["error"]["message"] == "result of T1 raised OSError"
        broken_disk = False
        await wire.send({"id": 201, "method": "task.result", "params": told})
        assert (await wire.reply({"id": 201}))["result"] == {}
        await wire.send({"method": "event", "params": {"event": "x"}})
        await until(lambda: "event raised LookupError" in alarms, "the alarm of the event")
        await wire.aclose()
        await (await peer.welcome()).aclose()
        assert len(alarms) >= 5
    assert "no room for T1" in capfd.readouterr().err


async def test_a_result_that_nobody_takes_stays_owed(peer: Peer) -> None:
    async with running(Client(peer.address, "erp-1")):
        wire = await peer.welcome()
        told = {"task_id": "T1", "state": "failed", "bank_code": "", "bank_message": "", "at": ""}
        await wire.send({"id": 1, "method": "task.result", "params": told})
        await wire.send({"id": 2, "method": "task.fetch", "params": {"task_id": "T", "attempt": 1}})
        assert "no such task" in (await wire.reply({"id": 2}))["error"]["message"]
        assert wire.seen == []


async def test_results_of_one_task_are_given_one_after_the_other(peer: Peer) -> None:
    """A payment that succeeded may come back: who hears of both must hear it last."""
    given: list[str] = []
    gate = trio.Event()

    async def result(told: TaskResult) -> None:
        if told.state == "succeeded":
            await gate.wait()
        given.append(f"{told.task_id} {told.state}")

    async with running(Client(peer.address, "erp-1", result=result)):
        wire = await peer.welcome()
        for number, (task_id, state) in enumerate(
            [("T1", "succeeded"), ("T1", "returned"), ("T2", "returned")]
        ):
            told = {"task_id": task_id, "state": state, "bank_code": "", "bank_message": ""}
            await wire.send({"id": number, "method": "task.result", "params": told | {"at": ""}})
        assert (await wire.reply({"id": 2}))["result"] == {}
        assert given == ["T2 returned"]
        gate.set()
        for number in (0, 1):
            assert (await wire.reply({"id": number}))["result"] == {}
        assert given == ["T2 returned", "T1 succeeded", "T1 returned"]


async def test_the_callers_functions_may_call_the_client_all_at_once(peer: Peer) -> None:
    """Were the reader to wait for room, nobody would read the answers that make room."""
    many = 2 * HANDLERS_MAX + 10

    async def fetch(task_id: str, _attempt: int) -> dict[str, Any]:
        answer: dict[str, Any] = await client.call("task.get", {"task_id": task_id})
        return answer

    client = Client(peer.address, "erp-1", fetch=fetch)
    async with running(client):
        wire = await peer.welcome()
        fetches = [
            {"id": f"f{number}", "method": "task.fetch", "params": {"task_id": "T", "attempt": 1}}
            for number in range(many)
        ]
        await wire.send(*fetches)
        for _ in range(many):
            await wire.answer(await wire.take("task.get"), {"kind": "balance"})
        for fetch_ in fetches:
            assert (await wire.reply(fetch_))["result"] == {"kind": "balance"}


# -- nonsense and the end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nonsense",
    [
        b"no JSON\n",
        b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"?"}}\n',
        b"\xff\n",
        b"[]\n",
        b"x" * (LINE_BYTES_MAX + 1),
        b'{"jsonrpc":"2.0","id":1,"result":{}}\n',
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)
async def test_a_peer_that_talks_nonsense_is_left_and_tried_again(
    peer: Peer, nonsense: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    alarms: list[str] = []
    client = Client(peer.address, "erp-1", alarm=alarms.append)
    async with running(client):
        wire, opening = await peer.opening()
        assert opening["id"] == 1
        with suppress(trio.BrokenResourceError):
            await wire.send_bytes(nonsense)
        wire = await peer.welcome()
        await client.wait_connected()
        with suppress(trio.BrokenResourceError):
            await wire.send_bytes(nonsense + b"\xff\n")
        await peer.welcome()
        assert len(alarms) == 2


async def test_the_end_of_the_client_ends_all_that_waits(peer: Peer) -> None:
    client = Client(peer.address, "erp-1")
    outcomes: list[BaseException] = []

    async def note(ask: Callable[[], Any]) -> None:
        try:
            await ask()
        except DisconnectedError as error:
            outcomes.append(error)

    async with trio.open_nursery() as outside:
        async with running(client):
            wire = await peer.welcome()
            await client.wait_connected()
            outside.start_soon(note, partial(client.submit, "T1", "b", "balance"))
            outside.start_soon(note, partial(client.call, "status"))
            await wire.take("status")
        await until(lambda: len(outcomes) == 2, "both told")
    for ask in (
        client.call("status"),
        client.submit("T2", "b", "balance"),
        client.wait_connected(),
    ):
        with pytest.raises(DisconnectedError, match="has ended"):
            await ask
    await client.close()


async def test_who_waits_for_a_session_that_never_comes_is_told_at_the_end() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = Client(f"127.0.0.1:{nobody.getsockname()[1]}", "erp-1")
        outcomes: list[BaseException] = []

        async def wait() -> None:
            try:
                await client.call("status")
            except DisconnectedError as error:
                outcomes.append(error)

        async with trio.open_nursery() as outside, running(client):
            outside.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        assert len(outcomes) == 1


async def test_closing_says_goodbye_and_does_not_wait_for_ever(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        alarms: list[str] = []
        client = Client(peer.address, "erp-1", alarm=alarms.append)
        nursery.start_soon(client.run)
        wire = await peer.welcome()
        await client.wait_connected()
        begun = trio.current_time()
        await client.close()
        assert trio.current_time() - begun == pytest.approx(CLOSE_SECONDS_MAX)
        await wire.take("session.close")
        # A daemon that answers ends the connection, and with it the run, without an alarm.
        await wire.aclose()
    assert alarms == []


@pytest.mark.parametrize("is_back", [False, True])
async def test_closing_while_the_connection_is_lost_ends_at_once(
    peer: Peer, autojump_clock: trio.testing.MockClock, is_back: bool
) -> None:
    client = Client(peer.address, "erp-1")
    refused: list[str] = []
    ended = trio.Event()

    async def run() -> None:
        await client.run()
        ended.set()

    async def submit() -> None:
        with pytest.raises(DisconnectedError) as caught:
            await client.submit(*SUBMIT)
        refused.append(str(caught.value))

    with trio.fail_after(WAIT_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            wire = await peer.welcome()
            await client.wait_connected()
            await wire.aclose()
            if is_back:
                # A connection without a session: the daemon has taken it and says nothing yet.
                await peer.opening()
            await until(lambda: not client.connected, "the loss")
            nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            await client.close()
            await ended.wait()
            assert trio.current_time() == begun
    assert len(refused) == 1


async def test_the_end_of_a_block_is_a_goodbye_also_when_it_raises(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:

        async def daemon() -> None:
            wire = await peer.welcome()
            await wire.answer(await wire.take("session.close"), {})
            await wire.aclose()

        nursery.start_soon(daemon)
        with pytest.RaisesGroup(LookupError, flatten_subgroups=True):
            async with open_client(peer.address, "erp-1"):
                raise LookupError


async def test_a_reset_in_the_middle_is_a_loss_like_any(tcp_peer: Peer) -> None:
    peer, client = tcp_peer, Client(tcp_peer.address, "erp-1")
    async with running(client):
        for _ in range(3):
            wire = await peer.welcome()
            assert isinstance(wire.stream, trio.SocketStream)
            wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            await wire.aclose()
        await peer.welcome()
        await client.wait_connected()
