"""The blocking client (FEP-33): threads, kills, silence, nonsense; on a real daemon and on a peer."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio

from fep.client import BlockingClient, CallError, DisconnectedError, TaskResult
from fep.client.blocking import CLOSE_SECONDS_MAX
from fep.client.conversation import BACKOFF_FIRST_S, SILENCE_HEARTBEATS
from fep.sandbox.scene import Scene
from fep.wire.jsonrpc import LINE_BYTES_MAX
from tests.client.test_trio_client import NOT_PERMITTED, STOPPING, tls_rig
from tests.control.conftest import Start
from tests.control.rig import WAIT_SECONDS_MAX, scene_in
from tests.system.work import transfer

HEARTBEAT_S = 0.3
POLL_SECONDS = 0.01
BALANCE = ("pingan", "balance")


def until(ready: Callable[[], Any], what: str) -> Any:
    """Wait until ``ready()`` is something true, and return that."""
    limit = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < limit:
        if found := ready():
            return found
        time.sleep(POLL_SECONDS)
    msg = f"{what}: not within {WAIT_SECONDS_MAX:g} s"
    raise AssertionError(msg)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for what would block the test."""
    with ThreadPoolExecutor(64) as pool:
        yield pool


# -- on a real daemon -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(key: Path) -> Iterator[Scene]:
    """A daemon with one bank, as processes; its tests leave it running."""
    path = Path(tempfile.mkdtemp(prefix="fep-b-"))
    with scene_in(path, key, HEARTBEAT_S) as made:
        made.start_hosts()
        made.write_config()
        made.start_daemon()
        with made.operator() as operator:
            made.wait_ready(operator)
        yield made
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def lone(key: Path) -> Iterator[Scene]:
    """A daemon as a process, whose bank is down; its tests stop and kill it, and leave one running."""
    path = Path(tempfile.mkdtemp(prefix="fep-b-"))
    with scene_in(path, key, HEARTBEAT_S) as made:
        made.write_config()
        made.start_daemon()
        yield made
    shutil.rmtree(path)


def finance(scene: Scene, **options: Any) -> BlockingClient:
    token = scene.token.read_text("utf-8").strip()
    return BlockingClient(f"tcp:127.0.0.1:{scene.port}", "erp-1", token=token, **options)


@contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    """Keep the daemon's process from running for a block, or until it is killed."""
    process = scene.daemon
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def stored(client: BlockingClient, beginning: str) -> list[str]:
    """Return the ids of tasks that begin so."""
    tasks = client.call("task.list", {"limit": 500})["tasks"]
    return [one["task_id"] for one in tasks if one["task_id"].startswith(beginning)]


@pytest.mark.req("FEP-22", "FEP-24", "FEP-26", "FEP-32", "FEP-33")
def test_a_task_goes_out_by_its_id_and_comes_home_as_a_result(scene: Scene) -> None:
    asked: list[tuple[str, int]] = []
    results: list[TaskResult] = []
    body = transfer(scene, scene.accounts[0], scene.accounts[1], "1.00")

    def fetch(task_id: str, attempt: int) -> dict[str, Any]:
        asked.append((task_id, attempt))
        return body

    with finance(scene, fetch=fetch, result=results.append) as client:
        assert client.welcome["role"] == "finance"
        answer = client.submit("PAY-1", "pingan", "transfer", priority=9, expires_s=3600.0)
        assert answer == {"task_id": "PAY-1", "state": "queued", "known": False}
        until(lambda: results, "the result")
        with pytest.raises(CallError) as refused:
            client.call("task.get", {"task_id": "PAY-9"})
        assert refused.value.code == "NOT_FOUND"
    assert asked == [("PAY-1", 1)]
    assert (results[0].task_id, results[0].state) == ("PAY-1", "succeeded")
    with scene.operator() as operator:
        until(
            lambda: operator.call("task.get", {"task_id": "PAY-1"})["acknowledged"],
            "the acknowledgement on disk",
        )
        # The goodbye was one: nobody misses the finance system.
        kinds = {one["kind"] for one in operator.call("alarm.list")["alarms"]}
        assert "CLIENT_LOST" not in kinds


@pytest.mark.req("FEP-33")
def test_calls_from_many_threads_each_get_their_own_answer(
    scene: Scene, threads: ThreadPoolExecutor
) -> None:
    with finance(scene) as client:

        def work(number: int) -> None:
            for turn in range(10):
                task_id = f"M{number}-{turn}"
                assert client.submit(task_id, *BALANCE)["task_id"] == task_id
                assert client.call("task.get", {"task_id": task_id})["task_id"] == task_id
                assert client.submit(task_id, *BALANCE)["known"] is True

        for one in [threads.submit(work, number) for number in range(16)]:
            one.result()


def test_events_are_handed_on(scene: Scene) -> None:
    got: list[dict[str, Any]] = []
    address = f"unix:{scene.socket}"
    with BlockingClient(address, "watch", event=got.append) as client:
        client.call("events.follow", {"prefix": "session."})
        with scene.operator():
            pass
        until(lambda: [one for one in got if one["event"] == "session.closed"], "the event")


@pytest.mark.req("FEP-29", "FEP-30", "FEP-31")
def test_a_daemon_that_stands_still_is_noticed_and_found_again(
    lone: Scene, threads: ThreadPoolExecutor
) -> None:
    alarms: list[tuple[float, str]] = []
    with finance(lone, alarm=lambda why: alarms.append((time.monotonic(), why))) as client:
        time.sleep(2 * SILENCE_HEARTBEATS * HEARTBEAT_S)
        assert not alarms, "an idle client is a living one"
        with stopped(lone):
            begun = time.monotonic()
            call = threads.submit(client.call, "status")
            with pytest.raises(DisconnectedError, match="ended before the answer"):
                call.result(WAIT_SECONDS_MAX)
            at, reason = alarms[0]
            assert "nothing heard" in reason
            assert at - begun >= (SILENCE_HEARTBEATS - 1) * HEARTBEAT_S
        assert client.call("status")["protocol"] == 1


@pytest.mark.req("FEP-22", "FEP-23")
def test_a_submission_that_a_killed_daemon_never_read_is_one_task(
    lone: Scene, threads: ThreadPoolExecutor
) -> None:
    with finance(lone) as client, stopped(lone):
        submit = threads.submit(client.submit, "ONCE", *BALANCE)
        until(lambda: client._conversation.waiting, "the line on its way")
        lone.kill_daemon()
        assert not submit.done()
        lone.start_daemon()
        assert submit.result(WAIT_SECONDS_MAX)["known"] is False
        assert stored(client, "ONCE") == ["ONCE"]


@pytest.mark.req("FEP-22", "FEP-23")
def test_submissions_under_a_kill_are_each_exactly_one_task(
    lone: Scene, threads: ThreadPoolExecutor
) -> None:
    rng = random.Random(7)
    many, kills = 120, 2
    with finance(lone) as client:
        answers: dict[str, Any] = {}
        numbers = count()

        def work() -> None:
            while (number := next(numbers)) < many:
                task_id = f"K{number}"
                answers[task_id] = client.submit(task_id, *BALANCE)
                time.sleep(0.005)

        workers = [threads.submit(work) for _ in range(8)]
        for kill in range(1, kills + 1):
            wanted = kill * many // 4
            while len(answers) < wanted:
                time.sleep(POLL_SECONDS)
            time.sleep(rng.random() * 0.02)
            lone.kill_daemon()
            lone.start_daemon()
        for one in workers:
            one.result(WAIT_SECONDS_MAX)
        assert answers.keys() == {f"K{number}" for number in range(many)}
        assert sorted(stored(client, "K")) == sorted(answers)


async def test_mutual_tls_end_to_end(start: Start, directory: Path) -> None:
    change, context = tls_rig(directory, "127.0.0.1")
    async with start(change=change) as rig:

        def talk() -> None:
            address = f"tls:127.0.0.1:{rig.port}"
            with BlockingClient(address, "erp-1", tls=context) as client:
                assert client.welcome["role"] == "finance"
                assert client.submit("T1", *BALANCE)["known"] is False
                # An answer of many TLS records, of which a poll sees the first alone.
                for _ in range(20):
                    client.call("task.get", {"task_id": "T1"})

        await trio.to_thread.run_sync(talk)
        assert ("CLIENT_LOST", "erp-1") not in rig.alarms()


async def test_it_talks_to_its_own_daemon_only(start: Start, directory: Path) -> None:
    change, context = tls_rig(directory, "fep.example")
    async with start(change=change) as rig:

        def talk() -> None:
            address = f"tls:127.0.0.1:{rig.port}"
            client = BlockingClient(address, "erp-1", tls=context, retry=False)
            with pytest.raises(DisconnectedError, match="not valid for"), client:
                pass

        await trio.to_thread.run_sync(talk)
        assert not rig.logs.named("session.opened")


# -- on a peer ------------------------------------------------------------------------------------


class Line:
    """The peer's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def receive(self) -> dict[str, Any]:
        data = self._file.readline()
        assert data, "the client closed the connection"
        message: dict[str, Any] = json.loads(data)
        return message

    def take(self, method: str) -> dict[str, Any]:
        """Return the next request of this method; heartbeats are passed over."""
        while (message := self.receive())["method"] != method:
            assert message["method"] == "session.heartbeat", message
        return message

    def reply(self, id_: int) -> dict[str, Any]:
        """Return the answer to our request."""
        while (message := self.receive()).get("id") != id_ or "method" in message:
            pass
        return message

    def send(self, *messages: dict[str, Any]) -> None:
        lines = [
            json.dumps({"jsonrpc": "2.0"} | one, ensure_ascii=False).encode() + b"\n"
            for one in messages
        ]
        self.sock.sendall(b"".join(lines))

    def answer(self, request: dict[str, Any], result: Any) -> None:
        self.send({"id": request["id"], "result": result})

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Peer:
    """A daemon whose every line the test writes."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.address = f"unix:{path}"
        self._stack = stack
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(WAIT_SECONDS_MAX)

    def accept(self) -> Line:
        sock, _ = self._listener.accept()
        sock.settimeout(WAIT_SECONDS_MAX)
        line = Line(sock)
        self._stack.callback(line.close)
        return line

    def opening(self) -> tuple[Line, dict[str, Any]]:
        """Take the next connection and its first line."""
        line = self.accept()
        return line, line.take("session.open")

    def welcome(self, heartbeat_s: float = 3000.0) -> Line:
        """Take the next connection and open its session."""
        line, opening = self.opening()
        line.answer(opening, {"heartbeat_s": heartbeat_s})
        return line

    def refuse(self, error: dict[str, Any]) -> None:
        line, opening = self.opening()
        line.send({"id": opening["id"], "error": error})
        line.close()


@pytest.fixture
def peer(directory: Path) -> Iterator[Peer]:
    """A listening peer; what it accepted is closed after the test."""
    with ExitStack() as stack:
        yield Peer(directory / "peer.sock", stack)


@contextmanager
def started(
    client: BlockingClient, threads: ThreadPoolExecutor
) -> Iterator[Future[BlockingClient]]:
    """Enter a client in a thread of its own for a block, so that the test can play the daemon."""
    entering = threads.submit(client.__enter__)
    try:
        yield entering
    finally:
        # Nobody answers the goodbye any more.
        threads.submit(client.close).result(WAIT_SECONDS_MAX)


def say_goodbye(line: Line) -> None:
    """Play the daemon's part in the end of a client."""
    with suppress(AssertionError):
        line.answer(line.take("session.close"), {})
    line.close()


@pytest.mark.req("FEP-29", "FEP-30", "FEP-31")
def test_heartbeats_go_out_and_a_silent_daemon_is_left(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    alarms: list[str] = []
    client = BlockingClient(peer.address, "erp-1", alarm=alarms.append)
    with started(client, threads) as entering:
        line = peer.welcome(0.2)
        entering.result(WAIT_SECONDS_MAX)
        for number in (1, 2, 3):
            beat = line.take("session.heartbeat")
            assert beat["params"]["seq"] == number
            line.send({"method": "session.heartbeat", "params": {"seq": number, "time": ""}})
        begun = time.monotonic()
        again = peer.welcome(3000.0)
        assert time.monotonic() - begun >= SILENCE_HEARTBEATS * 0.2 - 0.1
        assert "nothing heard" in alarms[0]
        threads.submit(say_goodbye, again)


def test_a_peer_that_takes_the_connection_and_ends_it_is_tried_again(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    alarms: list[str] = []
    client = BlockingClient(peer.address, "erp-1", alarm=alarms.append)
    with started(client, threads) as entering:
        call = threads.submit(client.call, "status")
        for _ in range(2):
            peer.accept().close()
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        line.answer(line.take("status"), "here")
        assert call.result(WAIT_SECONDS_MAX) == "here"
        assert len(alarms) == 2
        threads.submit(say_goodbye, line)


def test_a_first_session_that_is_refused_for_good_is_the_callers_error(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    for code, data, expected in (
        (-32000, {"code": "NOT_PERMITTED"}, "NOT_PERMITTED"),
        (-32602, None, "-32602"),
    ):
        client = BlockingClient(peer.address, "erp-1")
        with started(client, threads) as entering:
            peer.refuse({"code": code, "message": "no such name", "data": data})
            with pytest.raises(CallError, match="no such name") as refused:
                entering.result(WAIT_SECONDS_MAX)
            assert refused.value.code == expected


def test_a_refusal_that_passes_is_waited_out_and_a_later_one_too(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    """A token that is wrong for an hour must not end a finance system's connection for ever."""
    alarms: list[str] = []
    client = BlockingClient(peer.address, "erp-1", alarm=alarms.append)
    with started(client, threads) as entering:
        peer.refuse(STOPPING)
        peer.welcome().close()
        entering.result(WAIT_SECONDS_MAX)
        for _ in range(2):
            peer.refuse(NOT_PERMITTED)
        line = peer.welcome()
        call = threads.submit(client.call, "status")
        line.answer(line.take("status"), {})
        call.result(WAIT_SECONDS_MAX)
        assert alarms.count("no such name") == 2
        threads.submit(say_goodbye, line)


def test_what_can_not_be_sent_is_refused_at_once_and_harms_nothing(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    client = BlockingClient(peer.address, "erp-1")
    with started(client, threads) as entering:
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        with pytest.raises(TypeError):
            client.submit("T1", "b", "balance", {"kind": "balance", "params": object()})
        with pytest.raises(CallError, match="a line at most"):
            client.submit("T1", "b", "balance", {"params": "x" * LINE_BYTES_MAX})
        line.close()
        line = peer.welcome()
        call = threads.submit(client.call, "status")
        line.answer(line.take("status"), {})
        call.result(WAIT_SECONDS_MAX)
        threads.submit(say_goodbye, line)


def test_a_long_line_goes_out_and_comes_in_whole(peer: Peer, threads: ThreadPoolExecutor) -> None:
    client = BlockingClient(peer.address, "erp-1")
    with started(client, threads) as entering:
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        text = "令" * 340_000
        call = threads.submit(client.call, "echo", {"text": text})
        line.answer(line.take("echo"), text)
        assert call.result(WAIT_SECONDS_MAX) == text
        threads.submit(say_goodbye, line)


def test_deadlines_hold_with_and_without_a_session(peer: Peer, threads: ThreadPoolExecutor) -> None:
    client = BlockingClient(peer.address, "erp-1", connect_s=0.2)
    begun = time.monotonic()
    with pytest.raises(DisconnectedError, match=r"no session .* within 0\.2 s"), client:
        pass
    assert time.monotonic() - begun < WAIT_SECONDS_MAX / 2
    client = BlockingClient(peer.address, "erp-1")
    with started(client, threads):
        peer.accept()  # the first client's
        for ask in (partial(client.call, "status"), partial(client.submit, "T1", "b", "balance")):
            with pytest.raises(DisconnectedError):
                ask(deadline_s=0.1)
        line = peer.welcome()
        with pytest.raises(DisconnectedError, match=r"no answer to status within 0\.1 s"):
            client.call("status", deadline_s=0.1)
        line.take("status")
        threads.submit(say_goodbye, line)


# -- the end --------------------------------------------------------------------------------------


def test_closing_ends_what_waits_at_once(peer: Peer, threads: ThreadPoolExecutor) -> None:
    client = BlockingClient(peer.address, "erp-1")
    entering = threads.submit(client.__enter__)
    line = peer.welcome()
    entering.result(WAIT_SECONDS_MAX)
    waiting = [
        threads.submit(client.call, "status", deadline_s=3600.0),
        threads.submit(client.submit, "T1", "b", "balance", deadline_s=3600.0),
    ]
    for _ in waiting:
        line.receive()
    begun = time.monotonic()
    closing_ = threads.submit(client.close)
    line.take("session.close")
    closing_.result(WAIT_SECONDS_MAX)
    for one in waiting:
        with pytest.raises(DisconnectedError):
            one.result(WAIT_SECONDS_MAX)
    # A daemon that does not answer the goodbye is not waited for any longer.
    assert time.monotonic() - begun < CLOSE_SECONDS_MAX + 10
    assert not client._thread.is_alive()
    for ask in (partial(client.call, "status"), partial(client.submit, "T2", "b", "balance")):
        with pytest.raises(DisconnectedError, match="has ended"):
            ask(deadline_s=3600.0)
    client.close()


def test_closing_ends_a_wait_for_the_next_try_at_once(threads: ThreadPoolExecutor) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        tries: list[float] = []
        client = BlockingClient(
            f"127.0.0.1:{nobody.getsockname()[1]}",
            "erp-1",
            alarm=lambda _: tries.append(time.monotonic()),
        )
        entering = threads.submit(client.__enter__)
        waiting = threads.submit(client.call, "status", deadline_s=3600.0)
        until(lambda: len(tries) == 5, "a longer pause")
        pause = BACKOFF_FIRST_S * 2**4
        begun = time.monotonic()
        client.close()
        assert time.monotonic() - begun < 0.8 * pause
        for one in (entering, waiting):
            with pytest.raises(DisconnectedError):
                one.result(WAIT_SECONDS_MAX)


def test_a_client_that_was_never_entered_can_be_closed() -> None:
    client = BlockingClient("unix:/nowhere", "erp-1")
    client.close()
    client.close()
    with pytest.raises(DisconnectedError, match="has ended"):
        client.submit("T1", "b", "balance")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_ends_the_thread_ends_what_waits_for_it(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    """``SystemExit`` from a caller's function ends a thread without a word."""

    def result(_told: TaskResult) -> None:
        raise SystemExit

    client = BlockingClient(peer.address, "erp-1", result=result)
    with started(client, threads) as entering:
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        call = threads.submit(client.call, "status", deadline_s=3600.0)
        line.take("status")
        line.send({"id": 1, "method": "task.result", "params": TOLD})
        with pytest.raises(DisconnectedError):
            call.result(WAIT_SECONDS_MAX)
        with pytest.raises(DisconnectedError, match="has ended"):
            client.call("status", deadline_s=3600.0)


# -- the caller's functions -----------------------------------------------------------------------

TOLD = {
    "task_id": "T1",
    "state": "succeeded",
    "result": None,
    "bank_code": "",
    "bank_message": "",
    "at": "",
}


def test_what_the_callers_functions_raise_ends_nothing(
    peer: Peer, threads: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    alarms: list[str] = []
    bodies: dict[str, Any] = {
        "good": {"kind": "balance", "params": {}},
        "none": None,
        "no JSON": {"kind": object()},
        "too long": {"kind": "x" * LINE_BYTES_MAX},
    }
    disk = {"broken": True}

    def fetch(task_id: str, _attempt: int) -> Any:
        return client.call("status") if task_id == "calls" else bodies[task_id]

    def result(told: TaskResult) -> None:
        if disk["broken"]:
            msg = f"no room for {told.task_id}"
            raise OSError(msg)

    def event(_record: dict[str, Any]) -> None:
        raise LookupError

    def alarm(reason: str) -> None:
        alarms.append(reason)
        raise RuntimeError

    client = BlockingClient(
        peer.address, "erp-1", fetch=fetch, result=result, event=event, alarm=alarm
    )
    with started(client, threads) as entering:
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        answers = {}
        for number, task_id in enumerate([*bodies, "unknown", "calls"], 100):
            params = {"task_id": task_id, "attempt": 1}
            line.send({"id": number, "method": "task.fetch", "params": params})
            answers[task_id] = line.reply(number)
        assert answers.pop("good")["result"] == bodies["good"]
        messages = {name: one["error"]["message"] for name, one in answers.items()}
        assert messages == {
            "none": "this client has no such task",
            "no JSON": "fetch of no JSON raised TypeError",
            "too long": "fetch of too long raised ValueError",
            "unknown": "fetch of unknown raised KeyError",
            # Its thread would wait for itself.
            "calls": "fetch of calls raised RuntimeError",
        }
        line.send({"id": 200, "method": "task.result", "params": TOLD})
        assert line.reply(200)["error"]["message"] == "result of T1 raised OSError"
        disk["broken"] = False
        line.send({"id": 201, "method": "task.result", "params": TOLD})
        assert line.reply(201)["result"] == {}
        line.send({"method": "event", "params": {"event": "x"}})
        until(lambda: "event raised LookupError" in alarms, "the alarm of the event")
        line.close()
        threads.submit(say_goodbye, peer.welcome())
    assert "no room for T1" in capfd.readouterr().err


def test_a_thread_that_is_busy_in_a_function_holds_up_nobody(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    """Nobody empties the pair of sockets that wakes it: it fills, and must not block the callers."""
    gate = threading.Event()

    def event(_record: dict[str, Any]) -> None:
        gate.wait(WAIT_SECONDS_MAX)

    client = BlockingClient(peer.address, "erp-1", event=event)
    with started(client, threads) as entering:
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        line.send({"method": "event", "params": {}})
        time.sleep(0.05)
        begun = time.monotonic()
        for number in range(3000):
            with pytest.raises(DisconnectedError):
                client.submit(f"T{number}", "b", "balance", deadline_s=0.0)
        assert time.monotonic() - begun < WAIT_SECONDS_MAX / 2
        gate.set()
        for _ in range(3000):
            line.take("task.submit")
        threads.submit(say_goodbye, line)


# -- surroundings ---------------------------------------------------------------------------------


def test_it_works_in_a_process_with_many_open_files(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    """``select`` can't take a file numbered 1024 or more."""
    with ExitStack() as stack:
        numbers = [0]
        while max(numbers) < 1100:
            file = stack.enter_context(closing(socket.socket()))
            numbers.append(file.fileno())
        client = BlockingClient(peer.address, "erp-1")
        with started(client, threads) as entering:
            line = peer.welcome()
            assert line.sock.fileno() >= 1024
            entering.result(WAIT_SECONDS_MAX)
            call = threads.submit(client.call, "status")
            line.answer(line.take("status"), {})
            call.result(WAIT_SECONDS_MAX)
            threads.submit(say_goodbye, line)


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
def test_a_peer_that_talks_nonsense_is_left_and_tried_again(
    peer: Peer, threads: ThreadPoolExecutor, nonsense: bytes
) -> None:
    client = BlockingClient(peer.address, "erp-1")
    with started(client, threads) as entering:
        line, opening = peer.opening()
        assert opening["id"] == 1
        with suppress(OSError):
            line.sock.sendall(nonsense)
        line = peer.welcome()
        entering.result(WAIT_SECONDS_MAX)
        with suppress(OSError):
            line.sock.sendall(nonsense + b"\xff\n")
        threads.submit(say_goodbye, peer.welcome())
