"""HTTP/1.1 as bytes: however the bytes are cut, the same messages; garbage is a typed error."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.wire.http import (
    HEAD_BYTES_MAX,
    HttpResponse,
    RequestReader,
    ResponseReader,
    request_bytes,
    response_bytes,
)

BODY_MAX = 1000
PLAIN = response_bytes(200, b"one", "text/plain")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1;x=y\r\no\r\n0\r\nA: b\r\n\r\n"
FAILED = response_bytes(502, "三".encode("gbk"), "text/html")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
LAST = response_bytes(200, b"last", "text/plain", close=True)
STREAM = PLAIN + CHUNKED + CONTINUE + FAILED + EMPTY + LAST


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def read(reader: ResponseReader, parts: list[bytes]) -> list[HttpResponse]:
    return [found for part in parts for found in reader.receive_data(part)]


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_gives_the_same_answers(cuts: list[int]) -> None:
    reader = ResponseReader(BODY_MAX)
    found = read(reader, pieces(STREAM, cuts))
    assert [(one.status, one.body) for one in found] == [
        (200, b"one"),
        (200, b"two"),
        (502, "三".encode("gbk")),
        (204, b""),
        (200, b"last"),
    ]
    assert reader.is_over
    assert reader.finish() == []


def test_one_byte_at_a_time() -> None:
    reader = ResponseReader(BODY_MAX)
    assert len(read(reader, [bytes([byte]) for byte in STREAM])) == 5


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_is_a_typed_error_or_waits(data: bytes, cuts: list[int]) -> None:
    reader = ResponseReader(BODY_MAX)
    try:
        read(reader, pieces(data, cuts))
        reader.finish()
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            reader.receive_data(b"")
    server = RequestReader(BODY_MAX)
    try:
        for part in pieces(data, cuts):
            server.receive_data(part)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            server.receive_data(PLAIN)


def test_good_answers_come_before_the_fault() -> None:
    reader = ResponseReader(BODY_MAX)
    [one] = reader.receive_data(PLAIN + b"no http\r\n\r\n")
    assert one.body == b"one"
    with pytest.raises(RemoteProtocolError):
        reader.receive_data(b"")


@pytest.mark.parametrize(
    "data",
    [
        response_bytes(200, b"x" * (BODY_MAX + 1), "text/plain"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1f4\r\n%b\r\n" % (b"x" * 500) * 3,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BODY_MAX + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEAD_BYTES_MAX + 1),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 ok\r\n\r\n",
    ],
)
def test_bounds_and_faults(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ResponseReader(BODY_MAX).receive_data(data)


def test_a_body_as_large_as_may_be() -> None:
    [one] = ResponseReader(BODY_MAX).receive_data(response_bytes(200, b"x" * BODY_MAX, "a/b"))
    assert len(one.body) == BODY_MAX


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reader = ResponseReader(BODY_MAX)
    assert reader.receive_data(b"HTTP/1.0 200 OK\r\n\r\nto the end") == []
    [one] = reader.finish()
    assert one.body == b"to the end"
    assert reader.is_over


@pytest.mark.parametrize("cut", range(1, len(PLAIN)))
def test_an_end_inside_an_answer_is_a_fault(cut: int) -> None:
    reader = ResponseReader(BODY_MAX)
    assert reader.receive_data(PLAIN[:cut]) == []
    with pytest.raises(RemoteProtocolError, match="ended inside"):
        reader.finish()


def test_an_end_between_answers_is_none() -> None:
    reader = ResponseReader(BODY_MAX)
    reader.receive_data(PLAIN)
    assert reader.finish() == []


def test_an_old_server_closes_after_its_answer() -> None:
    reader = ResponseReader(BODY_MAX)
    [one] = reader.receive_data(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nDate: now\r\n\r\nx")
    assert (one.body, one.header("date"), one.header("none")) == (b"x", "now", "")
    assert reader.is_over


@given(st.binary(max_size=BODY_MAX), st.lists(st.integers(0, 3000), max_size=9))
def test_what_one_role_writes_the_other_reads(body: bytes, cuts: list[int]) -> None:
    asked = request_bytes("10.0.0.7:448", "/a?b=c", body, "text/xml", [("X-One", "1")])
    server = RequestReader(BODY_MAX)
    found = [one for part in pieces(asked * 2, cuts) for one in server.receive_data(part)]
    assert [(one.method, one.target, one.body) for one in found] == [("POST", "/a?b=c", body)] * 2
    assert found[0].header("host") == "10.0.0.7:448"
    assert found[0].header("x-one") == "1"


def test_the_exact_bytes_of_a_request() -> None:
    assert request_bytes("h:1", "/p", b"ab", "t/x") == (
        b"POST /p HTTP/1.1\r\nHost: h:1\r\nContent-Type: t/x\r\nContent-Length: 2\r\n"
        b"Connection: keep-alive\r\n\r\nab"
    )


@pytest.mark.parametrize(
    ("peer", "target", "kind"),
    [("h\r\nX: y", "/", "t"), ("h", "/ x", "t"), ("h", "/", "t\r\n"), ("h", "/账", "t")],
)
def test_a_part_that_can_not_stand_in_a_request(peer: str, target: str, kind: str) -> None:
    with pytest.raises(LocalProtocolError):
        request_bytes(peer, target, b"", kind)


def test_a_method_whose_answer_has_no_body_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        request_bytes("h", "/", b"", "t", method="HEAD")


def test_after_a_close_nothing_more_is_read() -> None:
    reader = ResponseReader(BODY_MAX)
    assert len(reader.receive_data(LAST + PLAIN)) == 1
    assert reader.receive_data(PLAIN) == []
