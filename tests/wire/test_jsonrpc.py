"""Whatever bytes come, they give messages or faults; what we print, we read."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

import msgspec
import msgspec.structs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fep.wire import jsonrpc
from fep.wire.jsonrpc import (
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    MESSAGE_CHARS_MAX,
    PARSE_ERROR,
    Fault,
    LineReceiver,
    Request,
    Response,
    decode,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
IDS = st.integers() | TEXT
WORDS = (
    b'{}[],: \t\r\n"\\' + b"0123456789.eE+-" + b"truefalsn" + b"udc8" + bytes((0, 0x80, 0xC3, 0xFF))
)
"""What JSON is made of, so that random bytes are often nearly JSON."""
PIECES = [
    '{"jsonrpc":"2.0"',
    '"id":1',
    '"id":null',
    '"id":1.5',
    '"id":"a"',
    '"method":"m"',
    '"params":{}',
    '"params":[1',
    '"result":{}',
    '"result":1e999',
    '"error":{"code":1,"message":"m"}',
    '"error":null',
    '"x":1',
    ",",
    "}",
    "]",
    '"\\ud800"',
    '"\\u0000"',
    "\n",
    "\r\n",
]
NEARLY_LINES = st.lists(st.sampled_from(PIECES), max_size=12).map(
    lambda some: "".join(some).encode()
)
MEMBERS = st.lists(st.sampled_from(PIECES[1:13]), max_size=5).map(
    lambda some: ("{" + ",".join(['"jsonrpc":"2.0"', *some]) + "}").encode()
)
LINES = (
    MEMBERS
    | NEARLY_LINES
    | st.binary(max_size=30)
    | st.lists(st.sampled_from(WORDS), max_size=30).map(bytes)
)


def plain(message: msgspec.Struct) -> dict[str, Any]:
    """Return a message in a form that can be compared."""
    values = {
        name: bytes(value) if isinstance(value, msgspec.Raw) else value
        for name, value in msgspec.structs.asdict(message).items()
    }
    return {"is": type(message).__name__, **values}


def receive(receiver: LineReceiver, *parts: bytes) -> list[dict[str, Any]]:
    return [plain(message) for part in parts for message in receiver.receive_data(part)]


def one(line: bytes) -> jsonrpc.Message:
    """Read one printed line back."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    message: jsonrpc.Message
    (message,) = LineReceiver().receive_data(line)
    return message


# -- properties -----------------------------------------------------------------------------------


@given(st.lists(LINES, max_size=5), st.data())
def test_any_split_gives_the_same_messages(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines) + data.draw(LINES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    small = data.draw(st.sampled_from([20, LINE_BYTES_MAX]))
    assert receive(LineReceiver(small), *parts) == receive(LineReceiver(small), whole)


class _Params(msgspec.Struct, forbid_unknown_fields=True):
    a: int
    b: msgspec.Raw | None = None


_Short, SHORTCUT = jsonrpc.shortcut("m", _Params)


@given(
    MEMBERS
    | st.lists(
        st.sampled_from(
            [
                '"jsonrpc":"2.0"',
                '"id":1',
                '"id":"a"',
                '"id":null',
                '"method":"m"',
                '"method":"n"',
                '"params":{"a":1}',
                '"params":{"a":1,"b":[{}]}',
                '"params":{"a":"1"}',
                '"params":{}',
                '"error":null',
                '"x":1',
            ]
        ),
        max_size=5,
    ).map(lambda some: ("{" + ",".join(some) + "}").encode())
)
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1}}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1,"b":"\xff"}}')
def test_a_shortcut_reads_what_the_long_way_reads_and_nothing_else(line: bytes) -> None:
    receiver = LineReceiver()
    receiver.shortcut = SHORTCUT
    (found,) = receiver.receive_data(line + b"\n")
    long = decode(line)
    if type(found) is not _Short:
        assert plain(found) == plain(long)
        return
    short: Any = found
    assert isinstance(long, Request)
    assert (short.id, long.method) == (long.id, "m")
    params = jsonrpc.decoded(msgspec.json.Decoder(_Params), long.params)
    assert plain(short.params) == plain(params)


def test_a_shortcut_is_taken_by_what_is_in_order() -> None:
    receiver = LineReceiver()
    receiver.shortcut = SHORTCUT
    found = receiver.receive_data(jsonrpc.request(1, "m", {"a": 1}) * 2)
    assert [type(message) for message in found] == [_Short, _Short]


@given(LINES)
@example(b'{"jsonrpc":"2.0","id":1,"result":1e999}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":[1e999]}}')
def test_any_line_is_a_message_or_a_fault_and_its_parts_can_be_read(line: bytes) -> None:
    message = decode(line)
    if isinstance(message, Fault):
        assert message.message
        assert message.fatal or message.code == INVALID_REQUEST
        return
    raw = message.params if isinstance(message, Request) else message.result
    # Every way it can fail is this one error.
    with suppress(msgspec.ValidationError):
        jsonrpc.value(raw)
    if isinstance(message, Response):
        assert (message.result is None) != (message.error is None)


def _strict(line: bytes) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(word)

    return json.loads(line.decode("utf-8"), parse_constant=refuse)


@given(LINES.filter(lambda line: b"\\ud" not in line))
@example(b'{"jsonrpc":"2.0","id":1.5,"result":1e999,"params":[1}')
def test_what_is_json_agrees_with_the_standard_library(line: bytes) -> None:
    """But for lone surrogates, which JSON can write and UTF-8 can't."""
    message = decode(line)
    try:
        _strict(line)
    except ValueError:
        assert isinstance(message, Fault)
        assert message.code == PARSE_ERROR
        assert message.fatal
    else:
        assert not (isinstance(message, Fault) and message.code == PARSE_ERROR)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_memory_is_bounded_by_one_line(parts: list[bytes]) -> None:
    receiver = LineReceiver(25)
    for part in parts:
        receiver.receive_data(part)
        assert len(receiver._tail) <= 25


@given(LINES, LINES)
def test_nothing_comes_after_a_fatal_fault(line: bytes, more: bytes) -> None:
    receiver = LineReceiver()
    found = receiver.receive_data(line + b"\n" + more + b"\n")
    fatal = [isinstance(one, Fault) and one.fatal for one in found]
    assert True not in fatal[:-1]
    if fatal[-1]:
        assert receiver.receive_data(more + b"\n") == []


@given(IDS, TEXT, VALUES)
def test_a_request_is_read_as_it_was_printed(id_: jsonrpc.Id, method: str, params: Any) -> None:
    message = one(jsonrpc.request(id_, method, params))
    assert isinstance(message, Request)
    assert (message.id, message.method) == (id_, method)
    assert jsonrpc.value(message.params) == params


@given(TEXT, VALUES)
def test_a_notification_is_read_as_it_was_printed(method: str, params: Any) -> None:
    message = one(jsonrpc.notification(method, params))
    assert isinstance(message, Request)
    assert (message.id, message.method) == (None, method)
    assert jsonrpc.value(message.params) == params


@given(IDS, VALUES)
def test_a_result_is_read_as_it_was_printed(id_: jsonrpc.Id, value: Any) -> None:
    message = one(jsonrpc.result(id_, value))
    assert isinstance(message, Response)
    assert message.id == id_
    assert message.error is None
    assert jsonrpc.value(message.result) == value


@given(IDS, st.integers(-(2**31), 2**31), TEXT, VALUES)
def test_an_error_is_read_as_it_was_printed(
    id_: jsonrpc.Id, code: int, text: str, data: Any
) -> None:
    message = one(jsonrpc.error(id_, code, text, data))
    assert isinstance(message, Response)
    assert message.id == id_
    assert message.result is None
    assert message.error == jsonrpc.Failure(code, text, data)


def test_a_refusal_names_its_code() -> None:
    message = one(jsonrpc.refusal("a", "TASK_CONFLICT", "choose another id"))
    assert isinstance(message, Response)
    failure = jsonrpc.Failure(jsonrpc.REFUSED, "choose another id", {"code": "TASK_CONFLICT"})
    assert message.error == failure


# -- the edges of JSON ----------------------------------------------------------------------------

REQUEST = '{"jsonrpc":"2.0","id":%s,"method":"m","params":%s}'
DEEP = 100_000


def faulty(line: str | bytes) -> tuple[int, bool, jsonrpc.Id | None]:
    message = decode(line if isinstance(line, bytes) else line.encode())
    assert isinstance(message, Fault), message
    return message.code, message.fatal, message.id


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"hello",
        b"\xef\xbb\xbf{}",
        b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xc3"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xed\xa0\x80"}}',
        (REQUEST % ("1", '{"a":"\\ud800"}')).encode(),
        (REQUEST % ('"\\ud800"', "{}")).encode(),
        (REQUEST % ("1", '{"a":NaN}')).encode(),
        (REQUEST % ("1", '{"a":Infinity}')).encode(),
        (REQUEST % ("1", '{"a":"\n"}')).encode(),
        (REQUEST % ("1", '{"a":1,}')).encode(),
        (REQUEST % ("1", "{}")).encode() + b"{}",
        # What is wrong with the object comes before what is wrong with the JSON.
        b'{"unknown":1, garbage',
        b'{"id":1.5, garbage',
        b'[{"jsonrpc":"2.0"',
        b"[" * DEEP,
        b'{"unknown":' * DEEP,
        (REQUEST % ("1", "[" * DEEP + "]" * DEEP)).encode(),
        (REQUEST % ("1", '{"a":' * DEEP + "1" + "}" * DEEP)).encode(),
    ],
    ids=lambda line: repr(line[:40]),
)
def test_what_is_no_json_ends_the_connection(line: bytes) -> None:
    assert faulty(line) == (PARSE_ERROR, True, None)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '[{"jsonrpc":"2.0","id":1,"method":"status"}]',
        "5",
        "null",
        '"hello"',
        "{}",
        '{"jsonrpc":"2.0"}',
        '{"jsonrpc":"2.0","id":1}',
        '{"jsonrpc":2.0,"id":1,"method":"m"}',
        '{"jsonrpc":"2.0","id":1,"method":5}',
        '{"jsonrpc":"2.0","id":1,"method":null}',
        '{"jsonrpc":"2.0","id":1,"method":"m","extra":0}',
        REQUEST % ("null", "{}"),
        REQUEST % ("1.0", "{}"),
        REQUEST % ("1.5", "{}"),
        REQUEST % ("true", "{}"),
        REQUEST % ("[]", "{}"),
        REQUEST % ("1" * (sys.get_int_max_str_digits() + 1), "{}"),
        REQUEST % ("1e999", "{}"),
        '{"jsonrpc":"2.0","id":1,"method":"m","result":{}}',
        '{"jsonrpc":"2.0","id":1,"method":"m","error":{"code":1,"message":"m"}}',
        '{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":"m"}}',
        '{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"m"}}',
        '{"jsonrpc":"2.0","id":1,"error":"m"}',
        '{"id":1,"result":{}}',
        '{"jsonrpc":"1.0","id":1,"result":{}}',
    ],
    ids=lambda line: line[:70],
)
def test_what_is_no_message_is_refused_without_an_id(line: str) -> None:
    """The id may be that of a response, so one of ours: the other side would take it for its own
    request, and a refused one at that."""
    assert faulty(line) == (INVALID_REQUEST, False, None)


@pytest.mark.parametrize("version", ["", '"jsonrpc":"1.0",', '"jsonrpc":null,'])
def test_a_request_of_another_version_is_refused_under_its_id(version: str) -> None:
    line = "{" + version + '"id":7,"method":"m"}'
    assert faulty(line) == (INVALID_REQUEST, False, 7)


def test_an_error_without_an_id_is_about_a_line_of_ours_and_ends_the_connection() -> None:
    line = '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"not JSON"}}'
    assert faulty(line) == (INVALID_REQUEST, True, None)


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("0", 0),
        ("-7", -7),
        ('""', ""),
        ('"7"', "7"),
        ('"\\u0000"', "\0"),
        ('"\\ud83d\\ude00"', "😀"),
        ("1" + "0" * 400, 10**400),
    ],
)
def test_ids_come_back_as_they_were(text: str, id_: jsonrpc.Id) -> None:
    message = decode((REQUEST % (text, "{}")).encode())
    assert isinstance(message, Request)
    assert message.id == id_
    assert type(message.id) is type(id_)
    answer = one(jsonrpc.result(message.id, {}))
    assert isinstance(answer, Response)
    assert answer.id == id_


def test_absent_params_are_none_and_spaces_and_a_cr_at_the_end_are_json() -> None:
    for line in (
        b'{"jsonrpc":"2.0","id":1,"method":"m"}',
        b' { "jsonrpc" : "2.0" , "id" : 1 , "method" : "m" } \t\r',
    ):
        message = decode(line)
        assert isinstance(message, Request)
        assert message.params is None


def test_of_two_members_of_one_name_the_last_counts() -> None:
    message = decode(b'{"jsonrpc":"2.0","id":1,"id":2,"method":"m","params":{"a":1,"a":2}}')
    assert isinstance(message, Request)
    assert message.id == 2
    assert jsonrpc.value(message.params) == {"a": 2}


def test_members_that_other_libraries_add_to_errors_are_ignored() -> None:
    line = b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m","type":"X"},"result":null}'
    assert isinstance(decode(line), Fault)
    message = decode(line.replace(b',"result":null', b""))
    assert isinstance(message, Response)
    assert message.error == jsonrpc.Failure(1, "m")


def test_nesting_that_just_fits_the_line_is_refused_politely_by_whoever_reads_it_deeper() -> None:
    """Python's stack is the limit, and params are read some frames above their line."""

    def read(raw: msgspec.Raw | None, frames: int) -> Any:
        return jsonrpc.value(raw) if frames == 0 else read(raw, frames - 1)

    depths = [d for d in range(1000) if isinstance(decode(deep_request(d)), Request)]
    deepest = decode(deep_request(max(depths)))
    assert isinstance(deepest, Request)
    with pytest.raises(msgspec.ValidationError, match="nested too deeply"):
        read(deepest.params, 50)


def deep_request(depth: int) -> bytes:
    return (REQUEST % ("1", "[" * depth + "]" * depth)).encode()


# -- limits ---------------------------------------------------------------------------------------


def _request_of(size: int) -> bytes:
    start, end = b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"', b'"}}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("piece", [64, 65_536, 2 * LINE_BYTES_MAX])
def test_a_line_of_the_greatest_length_is_taken_and_one_more_byte_is_not(piece: int) -> None:
    for size, taken in ((LINE_BYTES_MAX, True), (LINE_BYTES_MAX + 1, False)):
        data = _request_of(size) + b"\n"
        parts = [data[at : at + piece] for at in range(0, len(data), piece)]
        (found,) = receive(LineReceiver(), *parts)
        assert found["is"] == ("Request" if taken else "Fault")
        if not taken:
            assert (found["code"], found["fatal"]) == (PARSE_ERROR, True)
            assert str(LINE_BYTES_MAX) in found["message"]


def test_too_long_is_known_before_the_line_ends() -> None:
    receiver = LineReceiver()
    assert receiver.receive_data(b"x" * LINE_BYTES_MAX) == []
    (fault,) = receiver.receive_data(b"x")
    assert isinstance(fault, Fault)
    assert receiver.receive_data(b"\n{}\n") == []


def test_what_comes_before_a_line_that_is_too_long_counts() -> None:
    good = jsonrpc.request(1, "m", {})
    found = LineReceiver(60).receive_data(good + b"x" * 61 + b"\n" + good)
    assert [type(message) for message in found] == [Request, Fault]


def test_an_error_fits_a_line_whatever_it_echoes() -> None:
    line = jsonrpc.refusal(1, "NOT_FOUND", "\0" * LINE_BYTES_MAX)
    assert len(line) < LINE_BYTES_MAX // 8
    message = one(line)
    assert isinstance(message, Response)
    assert message.error is not None
    assert message.error.message == "\0" * MESSAGE_CHARS_MAX + "…"
