"""A tape's lines: there and back, cut and mixed with rubbish, and whose each answer is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters import registry, tape
from fep.adapters.decode import without_accounts
from fep.adapters.tape import Record, What
from tests.adapters.captures import OURS, decoder, exchanges

NAMES = registry.names()
AT = "2026-01-05T01:00:00.000+00:00"


@given(
    st.lists(
        st.builds(
            Record,
            st.sampled_from(What),
            st.just(AT),
            st.sampled_from(["", "a-1", "a-2"]),
            st.binary(max_size=40),
            st.sampled_from(["", "T1"]),
            st.sampled_from(["", "ab"]),
            st.integers(0, 9),
        ),
        max_size=20,
    )
)
def test_records_there_and_back(records: list[Record]) -> None:
    data = tape.head_line("bank", "x") + b"".join(map(tape.line, records))
    read = tape.read(data)
    assert (read.bank, read.adapter, read.left_out) == ("bank", "x", 0)
    assert read.records == records
    # An end without goodbye cuts the last line, and no other.
    cut = tape.read(data[:-2])
    assert cut.records == records[:-1]


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    read = tape.read(tape.head_line("bank", "pingan_b2bi") + data)
    for one in tape.shown(read, "pingan_b2bi", registry.adapter("pingan_b2bi").decoder):
        json.dumps(one.value)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_two_connections_are_put_together_and_each_has_its_task(name: str) -> None:
    data = [tape.head_line("bank", name)]
    for place, (_, asked, told) in enumerate(exchanges(name)):
        connection = f"p-{place % 2}"
        data.append(tape.line(Record(What.TASK, AT, task=f"T{place}", frame=tape.digest(asked))))
        data += [
            tape.line(Record(What.SENT, AT, connection, piece))
            for piece in (asked[:11], asked[11:])
        ]
        data += [
            tape.line(Record(What.RECEIVED, AT, connection, piece))
            for piece in (told[:50], told[50:51], told[51:])
        ]
    data.insert(3, b"rubbish\n")
    read = tape.read(b"".join(data))
    assert read.left_out == 1
    found = [one.value for one in tape.shown(read, name, decoder(name))]
    number = len(exchanges(name))
    assert [one["role"] for one in found] == ["request", "answer"] * number
    assert [one["task"] for one in found] == [f"T{n}" for n in range(number) for _ in range(2)]
    masked = json.dumps(without_accounts(found))
    assert OURS in json.dumps(found)
    assert OURS not in masked


def test_a_heartbeat_is_nobody_s_and_a_gap_is_told() -> None:
    _, asked, told = exchanges("cmb_xml")[0]
    data = tape.head_line("bank", "cmb_xml")
    for record in (
        Record(What.OPENED, AT, "p-1"),
        Record(What.SENT, AT, "p-1", asked),
        Record(What.GAP, AT, count=77),
        Record(What.RECEIVED, AT, "p-1", told),
        Record(What.CLOSED, AT, "p-1"),
    ):
        data += tape.line(record)
    found = [one.value for one in tape.shown(tape.read(data), "cmb_xml", decoder("cmb_xml"))]
    assert [one.get("what", one.get("role")) for one in found] == [
        "opened",
        "request",
        "gap",
        "answer",
        "closed",
    ]
    assert found[2]["bytes"] == 77
    assert found[1]["task"] == found[3]["task"] == ""
