from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi.frames import (
    ATTACHMENT_HEADER_BYTES,
    DEFAULTS,
    FIELDS,
    HEADER_BYTES,
    Cutter,
    Header,
    Packet,
    encode,
)
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from tests.bank_adapters.pingan_b2bi.samples import PACKETS

LIMIT = 4096


def attachment(name: str, content: bytes, signature: bytes = b"") -> bytes:
    cells = [
        name.encode("gbk").ljust(240),
        b"01" + b"0" + b"0" + b"1" + b" " * 12,
        f"{len(signature):<10}".encode(),
        f"{len(content):010d}".encode(),
    ]
    header = b"".join(cells)
    assert len(header) == ATTACHMENT_HEADER_BYTES
    return header + content + signature


WITH_ATTACHMENTS = (
    encode({"trade_code": "FILE02", "attach": "2"}, b"<Result/>", b"sig")
    + attachment("一.txt", b"A001" * 60)
    + attachment("b", b"", b"s2")
)
STREAM = [*PACKETS.values(), WITH_ATTACHMENTS, encode({"trade_code": "4004"}, b"x", b"y" * 256)]


def feed(pieces: list[bytes], limit: int = LIMIT) -> tuple[list[Packet], str]:
    """All packets of the pieces and the fault that ended them, if any."""
    cutter, packets = Cutter(limit), []
    try:
        for piece in pieces:
            packets += cutter.receive_data(piece)
        cutter.receive_eof()
    except RemoteProtocolError as error:
        return packets, str(error)
    return packets, ""


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def test_the_header_is_222_bytes_and_an_attachments_277() -> None:
    assert (HEADER_BYTES, ATTACHMENT_HEADER_BYTES) == (222, 277)


@pytest.mark.parametrize("name", PACKETS)
def test_every_packet_comes_out_byte_for_byte_when_its_cells_are_passed_through(name: str) -> None:
    (packet,) = Cutter(LIMIT).receive_data(PACKETS[name])
    cells = {field: packet.header.cell(field) for field, _ in FIELDS}
    assert encode(cells, packet.body) == PACKETS[name]


@given(st.lists(st.integers(0, 10**6), max_size=12))
def test_any_split_of_the_bytes_gives_the_same_packets(cuts: list[int]) -> None:
    data = b"".join(STREAM)
    packets, fault = feed(split(data, cuts))
    assert [packet.raw for packet in packets] == STREAM
    assert fault == ""


def test_an_answer_split_at_every_byte_is_one_packet() -> None:
    whole = PACKETS["4001 answer"]
    for cut in range(len(whole) + 1):
        assert [one.raw for one in feed([whole[:cut], whole[cut:]])[0]] == [whole]


def test_bytes_one_by_one_give_the_same_packets() -> None:
    data = b"".join(STREAM)
    packets, _ = feed([data[at : at + 1] for at in range(len(data))])
    assert [packet.raw for packet in packets] == STREAM


def test_signature_and_attachments_are_consumed_and_kept() -> None:
    packets, _ = feed([WITH_ATTACHMENTS + PACKETS["S001 answer"]])
    first, second = packets
    assert (first.body, first.signature) == (b"<Result/>", b"sig")
    kept = [(one.name, one.content, one.signature) for one in first.attachments]
    assert kept == [("一.txt", b"A001" * 60, b""), ("b", b"", b"s2")]
    assert second.raw == PACKETS["S001 answer"]


@given(st.lists(st.binary(max_size=600), max_size=8), st.booleans())
def test_any_bytes_give_packets_or_a_protocol_error_in_bounded_memory(
    pieces: list[bytes],
    magic: bool,
) -> None:
    if magic:
        pieces = [b"A001", *pieces]
    cutter, seen = Cutter(LIMIT), 0
    for piece in pieces:
        try:
            seen += sum(len(packet.raw) for packet in cutter.receive_data(piece))
        except RemoteProtocolError:
            break
        assert len(cutter._buffer) <= LIMIT
    assert seen <= sum(map(len, pieces))


header_cells = st.builds(
    lambda body, sign, attach: {"body_len": body, "sign_len": sign, "attach": attach},
    *(st.sampled_from([b"0", b"5", b"17", b"", b"x", b"-1", b"1_0", b"4000", b"9999999999"]),) * 2,
    st.sampled_from([b"0", b"1", b"9", b" ", b"x"]),
)


@given(
    st.lists(st.tuples(header_cells, st.binary(max_size=700)), max_size=4),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_broken_streams_end_the_same_way_in_any_split(
    frames: list[tuple[dict[str, bytes], bytes]], cuts: list[int]
) -> None:
    data = b""
    for cells, rest in frames:
        given = {name: DEFAULTS.get(name, "").encode() for name, _ in FIELDS} | cells
        data += b"".join(given[name][:size].ljust(size) for name, size in FIELDS) + rest
    whole, fault = feed([data])
    pieces, other = feed(split(data, cuts))
    assert [one.raw for one in pieces] == [one.raw for one in whole]
    assert bool(other) == bool(fault)


def test_packets_before_a_fault_are_returned_first_and_the_fault_stays() -> None:
    cutter = Cutter(LIMIT)
    packets = cutter.receive_data(PACKETS["S001 answer"] + b"garbage")
    assert [packet.raw for packet in packets] == [PACKETS["S001 answer"]]
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="A001"):
            cutter.receive_data(PACKETS["S001 answer"])
    with pytest.raises(RemoteProtocolError):
        cutter.receive_eof()


def test_garbage_is_a_fault_at_its_first_byte() -> None:
    with pytest.raises(RemoteProtocolError):
        Cutter(LIMIT).receive_data(b"H")


@pytest.mark.parametrize("size", [1, 221, 222, 300, 388])
def test_an_end_inside_a_packet_is_a_fault(size: int) -> None:
    packets, fault = feed([PACKETS["4001 answer"][:size]])
    assert packets == []
    assert "ended" in fault


@pytest.mark.parametrize(
    "cells",
    [{"sign_len": "9999999999"}, {"sign_len": str(LIMIT - 221)}],
    ids=["far above", "one above"],
)
def test_a_frame_above_the_limit_is_a_fault_before_it_is_there(cells: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError, match="limit"):
        Cutter(LIMIT).receive_data(encode(cells))


def test_a_frame_of_the_limit_is_taken() -> None:
    whole = encode({}, b"x" * (LIMIT - HEADER_BYTES))
    assert [one.raw for one in feed([whole])[0]] == [whole]


def test_a_huge_attachment_is_a_fault_before_it_is_there() -> None:
    head = attachment("a", b"")[:-10] + b"4000      "
    with pytest.raises(RemoteProtocolError, match="limit"):
        Cutter(LIMIT).receive_data(encode({"attach": "1"}) + head)


@pytest.mark.parametrize(
    "cell", [b"         0", b"0         ", b"0000000000", b"          ", b"    0     "]
)
def test_all_forms_of_a_zero_length_are_read(cell: bytes) -> None:
    (packet,) = Cutter(LIMIT).receive_data(encode({"sign_len": cell}, b"<Result/>"))
    assert (packet.body, packet.signature) == (b"<Result/>", b"")


@pytest.mark.parametrize("text", ["2778", "MA4045"])
def test_a_code_has_four_or_six_characters(text: str) -> None:
    assert Header(encode({"ret_code": text})).text("ret_code") == text


def test_a_message_cut_inside_a_character_loses_only_that_one() -> None:
    text = (":" + "重" * 60).encode("gbk")[:100]
    assert Header(encode({"ret_msg": text})).message == "重" * 49


def test_a_sequence_padded_left_is_the_same() -> None:
    assert Header(encode({"seq": "42".rjust(20)})).text("seq") == "42"


def test_a_cell_that_is_too_long_is_our_own_defect() -> None:
    with pytest.raises(LocalProtocolError, match="corp_code"):
        encode({"corp_code": "9" * 21})


def test_lengths_count_bytes_not_characters() -> None:
    body = "货款".encode("gbk")
    header = Header(encode({}, body, b"s" * 256)[:222])
    assert (header.number("body_len"), header.number("sign_len")) == (4, 256)
    assert header.cell("sign_len") == b"       256"
