"""The client's side of the protocol: any bytes, any order, and nothing is lost or asked twice."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fep.client.conversation import (
    Answered,
    Broken,
    CallError,
    Conversation,
    DisconnectedError,
    EventTold,
    FetchAsked,
    Foreign,
    Happening,
    Opened,
    ResultTold,
    TaskResult,
)
from fep.wire.jsonrpc import LINE_BYTES_MAX

WELCOME = {"session": "s", "server": "fep 1", "protocol": 1, "role": "finance", "heartbeat_s": 5.0}
RESULT: dict[str, Any] = {
    "task_id": "T1",
    "state": "succeeded",
    "result": {"amount": "1.00"},
    "bank_code": "0",
    "bank_message": "成功",
    "at": "2026-03-02T01:00:00.000+00:00",
}


def line(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n"


def sent(data: bytes) -> list[dict[str, Any]]:
    """Return the messages of lines that we send."""
    return [json.loads(one) for one in data.splitlines()]


def opened(welcome: Any = WELCOME) -> tuple[Conversation, list[Happening], bytes]:
    """Return a conversation that was answered so, what happened, and what is to be sent."""
    conversation = Conversation("erp-1", "secret")
    (first,) = sent(conversation.connected())
    happenings, out = conversation.receive_data(line(id=first["id"], result=welcome))
    return conversation, happenings, out


def test_the_first_line_opens_the_session() -> None:
    (first,) = sent(Conversation("erp-1", "secret").connected())
    assert first["method"] == "session.open"
    assert first["params"] == {"client": "erp-1", "token": "secret"}
    (first,) = sent(Conversation("erp-1", None).connected())
    assert first["params"] == {"client": "erp-1"}


def test_who_has_not_answered_the_opening_is_told_and_believed_nothing() -> None:
    """It may be anybody who took the daemon's port."""
    told = (
        line(id=1, method="task.result", params=RESULT | {"state": "rejected"}),
        line(id=2, method="task.fetch", params={"task_id": "T1", "attempt": 1}),
    )
    for one in told:
        conversation = Conversation("erp-1", "secret")
        conversation.connected()
        (broken,), out = conversation.receive_data(one)
        assert isinstance(broken, Broken)
        assert "before the welcome" in str(broken)
        assert not broken.permanent
        assert out == b""
    conversation, _, _ = opened()
    (waiting,) = sent(conversation.call("task.submit", {"task_id": "T1"}, "ticket"))
    conversation.disconnected()
    (opening,) = sent(conversation.connected())
    assert conversation.receive_data(line(id=waiting["id"], result={})) == ([], b"")
    (_, answered), _ = conversation.receive_data(
        line(id=opening["id"], result=WELCOME) + line(id=waiting["id"], result={})
    )
    assert isinstance(answered, Answered), "by who was welcome"


def test_the_welcome_gives_the_heartbeat() -> None:
    conversation, happenings, out = opened(WELCOME | {"new_in_a_later_release": [1]})
    assert happenings == [Opened(WELCOME | {"new_in_a_later_release": [1]})]
    assert (conversation.heartbeat_s, out) == (5.0, b"")
    (beat,) = sent(conversation.heartbeat("now"))
    assert (beat["method"], beat["params"]) == ("session.heartbeat", {"seq": 1, "time": "now"})
    assert "id" not in beat


WRONG_HEARTBEATS: list[Any] = [0, -1, None, "5", [], 1e9, 10**400, True]


@pytest.mark.parametrize(
    "welcome",
    [{}, [], None, "yes", *({"heartbeat_s": wrong} for wrong in WRONG_HEARTBEATS)],
)
def test_a_welcome_that_can_not_be_read_ends_the_connection_only(welcome: Any) -> None:
    conversation, happenings, _ = opened(welcome)
    (broken,) = happenings
    assert isinstance(broken, Broken)
    assert not broken.permanent
    assert conversation.heartbeat_s == 10.0


@pytest.mark.parametrize(
    ("code", "data", "permanent"),
    [
        (-32000, {"code": "NOT_PERMITTED"}, True),
        (-32602, None, True),
        (-32600, None, True),
        (-32601, None, True),
        (-32000, {"code": "SHUTTING_DOWN"}, False),
        (-32000, {"code": "QUEUE_FULL"}, False),
        (-32000, None, False),
        (-32603, None, False),
        (-32700, None, False),
        (1, "NOT_PERMITTED", False),
    ],
)
def test_a_refused_session_is_permanent_where_another_try_changes_nothing(
    code: int, data: Any, permanent: bool
) -> None:
    conversation = Conversation("erp-1", None)
    (first,) = sent(conversation.connected())
    error = {"code": code, "message": "no", "data": data}
    (broken,), _ = conversation.receive_data(line(id=first["id"], error=error))
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.permanent) == ("no", permanent)


def test_submissions_go_out_again_as_they_were_and_other_calls_fail() -> None:
    conversation, _, _ = opened()
    params = {"task_id": "T1", "bank": "b", "kind": "balance"}
    first = conversation.call("task.submit", params, "first")
    params["task_id"] = "T9"  # the caller's own dictionary may change meanwhile
    conversation.call("status", {}, "status")
    second = conversation.call("task.submit", {"task_id": "T2"}, "second")
    (failed,) = conversation.disconnected()
    assert failed.ticket == "status"
    assert isinstance(failed.error, DisconnectedError)
    (opening,) = sent(conversation.connected())
    assert opening["id"] not in {one["id"] for one in sent(first + second)}
    happenings, out = conversation.receive_data(line(id=opening["id"], result=WELCOME))
    assert isinstance(happenings[0], Opened)
    assert out == first + second
    (answered,), _ = conversation.receive_data(line(id=sent(second)[0]["id"], result={"a": 1}))
    assert answered == Answered("second", {"a": 1}, None)
    (ended,) = conversation.ended()
    assert (ended.ticket, conversation.waiting) == ("first", 0)
    assert isinstance(ended.error, DisconnectedError)


def test_a_call_that_nobody_waits_for_is_not_sent_again() -> None:
    conversation, _, _ = opened()
    conversation.call("task.submit", {"task_id": "T1"}, "first")
    conversation.forget("first")
    assert conversation.disconnected() == conversation.ended() == []


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, "\ud800", {"a": {"b": [1j]}}])
def test_what_is_no_json_is_the_callers_error_and_leaves_nothing_behind(value: Any) -> None:
    """Kept, it would be encoded again at each reconnect, and end the client there."""
    conversation, _, _ = opened()
    with pytest.raises((TypeError, ValueError)):
        conversation.call("task.submit", {"body": value}, "ticket")
    assert conversation.waiting == 0
    with pytest.raises((TypeError, ValueError)):
        conversation.reply(1, value)


def test_what_fits_no_line_is_refused_here() -> None:
    """Sent, it would end the connection, and again each time it was sent again."""
    conversation, _, _ = opened()
    with pytest.raises(CallError, match="a line at most") as refused:
        conversation.call("task.submit", {"body": "x" * LINE_BYTES_MAX}, "ticket")
    assert refused.value.code == "-32602"
    assert conversation.waiting == 0
    with pytest.raises(ValueError, match="a line at most"):
        conversation.reply(1, "x" * LINE_BYTES_MAX)
    assert len(conversation.call("x", {"body": "x" * (LINE_BYTES_MAX - 100)}, "ticket")) > 10**6


def test_what_is_asked_and_told_is_read() -> None:
    conversation, _, _ = opened()
    data = (
        line(id=7, method="task.fetch", params={"task_id": "T1", "attempt": 2, "later": 1})
        + line(id="x", method="task.result", params=RESULT | {"later": []})
        + line(method="event", params={"event": "task.ended"})
        + line(method="session.heartbeat", params={"seq": 1})
        + line(method="something.new", params=[])
    )
    happenings, out = conversation.receive_data(data)
    assert happenings == [
        FetchAsked(7, "T1", 2),
        ResultTold("x", TaskResult(**RESULT)),
        EventTold({"event": "task.ended"}),
    ]
    assert out == b""
    assert sent(conversation.refuse(7, "not \ud800 now"))[0]["error"]["code"] == -32000


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("task.fetch", {}, -32602),
        ("task.fetch", None, -32602),
        ("task.fetch", [], -32602),
        ("task.fetch", {"task_id": "T1"}, -32602),
        ("task.fetch", {"task_id": 1, "attempt": 1}, -32602),
        ("task.fetch", {"task_id": "T1", "attempt": "1"}, -32602),
        ("task.result", {"task_id": "T1"}, -32602),
        ("task.result", RESULT | {"state": None}, -32602),
        ("task.result", RESULT | {"bank_code": 5}, -32602),
        ("event", [], -32602),
        ("task.pay", {}, -32601),
        ("session.open", {}, -32601),
    ],
)
def test_what_the_daemon_asks_wrongly_is_answered_and_ends_nothing(
    method: str, params: Any, code: int
) -> None:
    conversation, _, _ = opened()
    message = {"id": 7, "method": method} | ({} if params is None else {"params": params})
    happenings, out = conversation.receive_data(line(**message))
    assert happenings == []
    (answer,) = sent(out)
    assert (answer["id"], answer["error"]["code"]) == (7, code)


def test_numbers_beyond_all_bounds_are_no_defect() -> None:
    conversation, _, _ = opened()
    (call,) = sent(conversation.call("status", {}, "ticket"))
    data = b'{"jsonrpc":"2.0","id":%d,"result":{"a":1e999}}\n' % call["id"]
    data += b'{"jsonrpc":"2.0","id":7,"method":"task.result","params":{"result":1e999}}\n'
    data += b'{"jsonrpc":"2.0","method":"event","params":{"a":%b}}\n' % (b"9" * 5000)
    (answered,), out = conversation.receive_data(data)
    assert isinstance(answered, Answered)
    assert isinstance(answered.error, CallError)
    assert [one["error"]["code"] for one in sent(out)] == [-32602]


def test_answers_behind_a_broken_line_are_not_lost() -> None:
    """Nobody looks at what stands behind it: who waits there must go on waiting."""
    conversation, _, _ = opened()
    (call,) = sent(conversation.call("task.submit", {"task_id": "T1"}, "ticket"))
    data = line(error={"code": -32700, "message": "?"}) + line(id=call["id"], result={})
    happenings, _ = conversation.receive_data(data)
    assert [type(one) for one in happenings] == [Broken]
    assert conversation.waiting == 1


# -- any bytes ------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["T1", "session.open", 1, 2, 3, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*RESULT, "heartbeat_s", "attempt", "code", "data", "message"]), inner
        )
    ),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0"] * 9 + ["1.0"]),
        "id": st.integers(0, 5) | st.text(max_size=2) | VALUES,
        "method": st.sampled_from(["task.fetch", "task.result", "event", "x"])
        | st.text(max_size=3),
        "params": VALUES | st.just(RESULT) | st.just({"task_id": "T1", "attempt": 1}),
        "result": VALUES | st.just(WELCOME),
        "error": VALUES | st.just({"code": 1, "message": "m"}),
    },
).map(lambda message: json.dumps({"jsonrpc": "2.0"} | message).encode())
LINES = st.lists(MESSAGES | st.binary(max_size=20), max_size=8).map(b"\n".join)


def conversed(chunks: list[bytes]) -> list[Happening]:
    """Return what happens to a client with two calls in flight, up to the end of its connection."""
    conversation = Conversation("erp-1", None)
    conversation.connected()
    conversation.call("task.submit", {"task_id": "T1"}, "T1")
    conversation.call("status", {}, "status")
    found: list[Happening] = []
    for chunk in chunks:
        happenings, out = conversation.receive_data(chunk)
        sent(out)
        found += happenings
        if found and isinstance(found[-1], Broken):
            break
    assert not any(isinstance(one, Broken) for one in found[:-1])
    tickets = [one.ticket for one in found if isinstance(one, Answered)]
    left = [one.ticket for one in (*conversation.disconnected(), *conversation.ended())]
    assert sorted(tickets + left) == ["T1", "status"], "each is answered once, or waits"
    return found


@given(LINES | st.binary())
@settings(max_examples=300)
def test_no_bytes_make_it_raise(data: bytes) -> None:
    conversed([data + b"\n"])


@given(LINES, st.data())
def test_any_split_of_the_bytes_tells_the_same(data: bytes, draw: st.DataObject) -> None:
    data += b"\n"
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=5).map(sorted))
    chunks = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    assert repr(conversed(chunks)) == repr(conversed([data]))


class Talk(RuleBasedStateMachine):
    """A client and an honest daemon over connections that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Conversation("erp-1", None)
        self.count = 0
        self.connected = self.open = False
        self.unanswered: dict[str, str] = {}
        """Of ticket: its method."""
        self.at_daemon: list[dict[str, Any]] = []
        self.answers: dict[str, int] = {}

    def take(self, happenings: list[Happening]) -> None:
        for one in happenings:
            if isinstance(one, Answered):
                self.answers[one.ticket] = self.answers.get(one.ticket, 0) + 1
                self.unanswered.pop(one.ticket)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.at_daemon = sent(self.client.connected())

    @precondition(lambda self: self.connected and not self.open)
    @rule()
    def welcome(self) -> None:
        self.open = True
        (opening,) = self.at_daemon
        happenings, out = self.client.receive_data(line(id=opening["id"], result=WELCOME))
        assert [type(one) for one in happenings] == [Opened]
        self.at_daemon = sent(out)
        again = [one["params"]["n"] for one in self.at_daemon]
        assert again == list(self.unanswered), "all that waits, in order"

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.connected = self.open = False
        self.at_daemon = []
        self.take([*self.client.disconnected()])
        assert set(self.unanswered.values()) <= {"task.submit"}

    @rule(method=st.sampled_from(["task.submit", "status"]))
    def call(self, method: str) -> None:
        if not self.open and method != "task.submit":
            return  # the shells wait for a session
        self.count += 1
        ticket = str(self.count)
        data = self.client.call(method, {"n": ticket}, ticket)
        self.unanswered[ticket] = method
        if self.open:
            self.at_daemon += sent(data)

    @precondition(lambda self: self.open and self.at_daemon)
    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        one = self.at_daemon.pop(data.draw(st.integers(0, len(self.at_daemon) - 1)))
        error = {"code": -32000, "message": "no", "data": {"code": "BAD_STATE"}}
        reply = line(id=one["id"], error=error) if refuse else line(id=one["id"], result=one)
        happenings, out = self.client.receive_data(reply)
        assert out == b""
        (answered,) = happenings
        assert isinstance(answered, Answered)
        assert (answered.ticket, answered.error is not None) == (one["params"]["n"], refuse)
        self.take(happenings)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.unanswered:
            ticket = data.draw(st.sampled_from(sorted(self.unanswered)))
            self.client.forget(ticket)
            del self.unanswered[ticket]
            # Its answer may come still, and is nobody's.
            self.at_daemon = [one for one in self.at_daemon if one["params"].get("n") != ticket]

    @invariant()
    def every_call_is_answered_at_most_once(self) -> None:
        assert all(times == 1 for times in self.answers.values())
        assert self.client.waiting == len(self.unanswered)


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=60, stateful_step_count=30)


# -- the caller's own functions -------------------------------------------------------------------


def test_what_the_callers_function_raises_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with Foreign("fetch of T1") as call:
        raise ValueError("secret words")
    assert call.fault == "fetch of T1 raised ValueError"
    trace = capfd.readouterr().err
    assert "Traceback" in trace
    assert "secret words" in trace
    with Foreign("fetch") as call:
        math.sqrt(4)
    assert call.fault == ""
    with pytest.raises(KeyboardInterrupt), Foreign("fetch"):
        raise KeyboardInterrupt
    with suppress(SystemExit), Foreign("fetch") as call:
        raise SystemExit
    assert call.fault == ""
