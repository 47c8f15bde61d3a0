"""Parcels: whatever is put in comes out, however it is cut; anything else is a typed error."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.api import Reply
from fep.adapters.files import Parcel, ParcelFramer, parcel_bytes, read_parcel
from fep.domain.errors import RemoteProtocolError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z._-]{0,20}\Z")


@st.composite
def parcels(draw: st.DrawFn) -> Parcel:
    documents = tuple(draw(st.lists(st.binary(max_size=60), max_size=3)))
    return Parcel(
        trade=draw(TEXT),
        correlation=draw(TEXT),
        reference=draw(TEXT),
        code=draw(TEXT),
        at=draw(TEXT),
        names=tuple(draw(NAME) for _ in documents),
        marks=tuple(marks := draw(st.lists(TEXT, max_size=3))),
        newest=draw(st.integers(0, 9)) if marks else 0,
        documents=documents,
    )


def _read(parcel: Parcel, raw: bytes) -> Reply:
    return Reply(parcel.correlation, parcel.trade, parcel.code, "", raw, parcel)


@given(parcel=parcels())
def test_a_parcel_reads_back(parcel: Parcel) -> None:
    assert read_parcel(parcel_bytes(parcel)) == parcel


@given(many=st.lists(parcels(), max_size=4), cuts=st.lists(st.integers(0, 500), max_size=6))
def test_any_split_gives_the_same_parcels(many: list[Parcel], cuts: list[int]) -> None:
    stream = b"".join(map(parcel_bytes, many))
    ends = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    framer = ParcelFramer(_read, 10**6)
    found = [
        reply
        for begin, end in itertools.pairwise(ends)
        for reply in framer.receive_data(stream[begin:end])
    ]
    assert [one.content for one in found] == many
    assert b"".join(one.raw for one in found) == stream
    framer.receive_eof()


@given(data=st.binary(max_size=300))
def test_any_bytes_are_parcels_or_a_typed_error(data: bytes) -> None:
    framer = ParcelFramer(_read, 1000)
    with contextlib.suppress(RemoteProtocolError):
        framer.receive_data(data)
        framer.receive_data(b"")
        framer.receive_eof()
    with contextlib.suppress(RemoteProtocolError):
        read_parcel(data)


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"{}",
        b'{"trade":1}',
        b'{"trade":"a","files":[{"name":"../x","bytes":1}]}',
        b'{"trade":"a","files":[{"name":"x","bytes":-1}]}',
        b'{"trade":"a","files":[{"name":"x","bytes":true}]}',
        b'{"trade":"a","files":{}}' * 2,
        b'{"trade":"a","marks":[1]}',
        b'{"trade":"a","files":[{"name":"x","bytes":2000}]}',
        b'{"trade":"a","marks":' + b"[" * 20_000,
    ],
)
def test_what_is_no_parcel_ends_the_stream(head: bytes) -> None:
    framer = ParcelFramer(_read, 1000)
    good = parcel_bytes(Parcel("a"))
    assert len(framer.receive_data(good + head + b"\n")) == 1
    with pytest.raises(RemoteProtocolError):
        framer.receive_data(b"")
    assert framer.held_bytes == 0


def test_a_parcel_that_never_ends_is_not_held() -> None:
    for begin in (b"", parcel_bytes(Parcel("a", names=("x",), documents=(b"x" * 900,)))[:60]):
        framer = ParcelFramer(_read, 1000)
        framer.receive_data(begin)
        with contextlib.suppress(RemoteProtocolError):
            framer.receive_data(b"{" * 70_000)
        with pytest.raises(RemoteProtocolError):
            framer.receive_data(b"")
        assert framer.held_bytes == 0
