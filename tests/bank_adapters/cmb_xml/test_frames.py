"""The SOCKET form's framing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cmb_xml.frames import LENGTH_BYTES, FrameReader, pack, xml_of
from fep.domain.errors import LocalProtocolError, RemoteProtocolError

CAP = 64
PAYLOADS = st.lists(st.binary(min_size=1, max_size=CAP), max_size=5)
GARBAGE = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.sampled_from([b"3       ", b"64      ", b"65      ", b"0       ", b"abc", b" 5      "]),
    ),
    max_size=8,
)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_the_length_counts_bytes_and_stands_left() -> None:
    assert pack("货款".encode("gbk")) == b"4       " + "货款".encode("gbk")


@pytest.mark.parametrize("xml", [b"", b"x" * 100_000_000], ids=["empty", "nine digits"])
def test_pack_refuses_what_no_header_can_state(xml: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        pack(xml)


@given(PAYLOADS, st.lists(st.integers(0, 1000), max_size=10))
def test_any_split_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    reader = FrameReader(CAP)
    got = [
        frame
        for piece in _pieces(b"".join(map(pack, payloads)), cuts)
        for frame in reader.receive_data(piece)
    ]
    reader.receive_eof()
    assert got == [pack(one) for one in payloads]


@given(GARBAGE)
def test_garbage_gives_frames_or_an_error_and_holds_little(pieces: list[bytes]) -> None:
    reader = FrameReader(CAP)
    for piece in pieces:
        failed = reader.fault
        try:
            frames = reader.receive_data(piece)
        except RemoteProtocolError:
            assert reader.fault
            assert reader.held_bytes == 0
        else:
            assert not failed
            assert all(LENGTH_BYTES < len(frame) <= LENGTH_BYTES + CAP for frame in frames)
        assert reader.held_bytes < LENGTH_BYTES + CAP


@pytest.mark.parametrize(
    "header",
    [b"abcdefgh", b"        ", b"0       ", b"-5      ", b"2 5     ", b"65      ", b"+1      "],
)
def test_a_bad_length_is_their_fault_and_stays_so(header: bytes) -> None:
    reader = FrameReader(CAP)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            reader.receive_data(header)
    with pytest.raises(RemoteProtocolError):
        reader.receive_eof()


def test_frames_before_a_fault_come_first() -> None:
    reader = FrameReader(CAP)
    frames = reader.receive_data(pack(b"one") + pack(b"two") + b"nonsense")
    assert [xml_of(frame) for frame in frames] == [b"one", b"two"]
    with pytest.raises(RemoteProtocolError, match="nonsense"):
        reader.receive_data(b"")


def test_the_card_can_not_raise_the_cap_beyond_the_header() -> None:
    reader = FrameReader(10**9)
    assert reader.receive_data(b"99999999") == []
    assert reader.fault == ""


@pytest.mark.parametrize("end", range(1, LENGTH_BYTES + 3))
def test_the_end_inside_a_frame_is_their_fault(end: int) -> None:
    reader = FrameReader(CAP)
    assert reader.receive_data(pack(b"abc")[:end]) == []
    with pytest.raises(RemoteProtocolError, match="inside a frame"):
        reader.receive_eof()


def test_blanks_on_the_left_are_read_too() -> None:
    [frame] = FrameReader(CAP).receive_data(b"       3abc")
    assert (frame, xml_of(frame)) == (b"       3abc", b"abc")
