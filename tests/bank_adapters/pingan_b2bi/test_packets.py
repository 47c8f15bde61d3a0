"""Answers in several packets (续包), and files that come with one (附件)."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi import ADAPTER
from bank_adapters.pingan_b2bi.codec import ANSWERS_BEGUN_MAX
from bank_adapters.pingan_b2bi.frames import Attachment, Cutter, encode
from bank_adapters.pingan_b2bi.host import FAULTS, FILE
from bank_adapters.pingan_b2bi.replies import REPLY_CONTINUES, reply_of
from fep.adapters.api import Accepted, Outcome, Reply, Unclear
from fep.adapters.decode import lines
from fep.adapters.host import Faults
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import ClientRef
from fep.domain.order import Operation, Statement, StatementQuery, StatusQuery, Sweep
from tests.bank_adapters.pingan_b2bi.samples import (
    INSIDE,
    PAYER,
    REF,
    TODAY,
    Bank,
    answer,
    codec,
    reply_to,
    result,
)

QUERY = StatementQuery(PAYER, TODAY, TODAY)
ROW = (
    "<list><AcctDate>20260105</AcctDate><TxTime>090000</TxTime><BussSeqNo>{0}</BussSeqNo>"
    "<CcyCode>RMB</CcyCode><TranAmount>{0}.00</TranAmount><DcFlag>D</DcFlag></list>"
)

DONE = result(
    ThirdVoucher=REF, TranAmount="1000.50", Amount="1000.50", UnionFlag="1", hostFlowNo="1"
)


def packet(
    *numbers: int, more: bool, told: int = 0, seq: str = "1", trade: str = "4013", code: str = ""
) -> bytes:
    """Return a packet with these rows; ``told`` is PageRecCount, else their own count."""
    rows = "".join(ROW.format(number) for number in numbers)
    members = {"AcctNo": PAYER, "EndFlag": "Y", "PageNo": "1", "PageSize": "30"}
    xml = result(rows, **members, PageRecCount=str(told or len(numbers)))
    return answer(trade, code or "000000", xml, seq=seq, cont_flag=str(int(more)))


def replies(data: bytes, cuts: list[int] | None = None) -> list[Reply]:
    framer = codec().framer()
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts or ()), len(data)]
    found = []
    for begin, end in pairwise(ends):
        found += framer.receive_data(data[begin:end])
    framer.receive_eof()
    return found


def refs(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, Statement)
    return [entry.bank_ref for entry in outcome.result.entries]


def exchange(bank: Bank) -> Reply:
    [told] = bank.connection().receive_data(bank.packet(QUERY, None))
    return reply_to(told.data)


@pytest.mark.parametrize("told", [0, 3])
def test_the_packets_of_one_answer_are_one_page(told: int) -> None:
    """Whether each packet counts its own rows or all of them is not known: both are read."""
    data = packet(1, 2, more=True, told=told) + packet(3, more=False, told=told)
    [reply] = replies(data)
    assert reply.raw == data
    assert refs(codec().outcome(QUERY, reply)) == ["1", "2", "3"]
    assert reply_to(reply.raw) == reply, "what is kept reads as it did"


@given(cuts=st.lists(st.integers(0, 4000), max_size=6))
def test_packets_of_several_answers_may_be_mixed_and_cut_anywhere(cuts: list[int]) -> None:
    data = (
        packet(1, more=True, seq="A")
        + packet(7, more=False, seq="C")
        + packet(2, more=True, seq="B")
        + packet(3, more=True, seq="A")
        + packet(4, more=False, seq="B")
        + packet(5, more=False, seq="A")
    )
    found = {
        reply.correlation: refs(codec().outcome(QUERY, reply)) for reply in replies(data, cuts)
    }
    assert found == {"A": ["1", "3", "5"], "B": ["2", "4"], "C": ["7"]}


@pytest.mark.parametrize(
    "data",
    [
        packet(1, more=True, told=3) + packet(3, more=False, told=3),
        packet(3, more=False, told=3),
        packet(1, more=True) + packet(2, more=False, trade="4008"),
        packet(1, more=True) + packet(2, more=False, code="YQ9999"),
        packet(1, more=True) + answer("4013", xml="<Result>", seq="1"),
    ],
    ids=["a packet is missing", "only the last came", "two trades", "two codes", "no XML"],
)
def test_what_is_not_whole_proves_nothing(data: bytes) -> None:
    [reply] = replies(data)
    assert isinstance(codec().outcome(QUERY, reply), Unclear)


def test_a_stream_that_ends_inside_an_answer_says_so() -> None:
    framer = codec().framer()
    assert framer.receive_data(packet(1, more=True)) == []
    with pytest.raises(RemoteProtocolError, match="inside 1 answers"):
        framer.receive_eof()


def test_an_answer_that_never_ends_holds_no_more_than_a_frame_may_have() -> None:
    one = packet(1, more=True)
    framer = codec({"limits": {"frame_bytes_max": 3 * len(one)}}).framer()
    found = [reply for _ in range(8) for reply in framer.receive_data(one)]
    assert [len(reply.raw) for reply in found] == [4 * len(one)] * 2
    for reply in found:
        told = codec().outcome(QUERY, reply)
        assert isinstance(told, Unclear)
        assert told.code == REPLY_CONTINUES


def test_small_answers_begun_make_no_room_for_a_large_one_that_never_ends() -> None:
    small, large = packet(1, more=True), packet(*range(30), more=True, seq="L")
    bytes_max = 2 * len(large)
    framer = codec({"limits": {"frame_bytes_max": bytes_max}}).framer()
    held = 0
    for number in range(8):
        assert framer.receive_data(packet(1, more=True, seq=str(number))) == []
        held += len(small)
    for _ in range(8):
        held += len(large) - sum(len(one.raw) for one in framer.receive_data(large))
        assert held <= bytes_max


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        (INSIDE, answer("4004", xml=DONE, cont_flag="1")),
        (attrs.evolve(INSIDE, sweep=Sweep.DOWN), answer("4052", xml=DONE, cont_flag="1")),
        (
            StatusQuery(REF, INSIDE, TODAY),
            answer("4005", xml=result(OrigThirdVoucher=REF, Stt="30"), cont_flag="1"),
        ),
        (StatusQuery(REF, INSIDE, TODAY), answer("4005", "MA0103", cont_flag="1")),
        (INSIDE, answer("4004", "2778", cont_flag="1")),
    ],
)
def test_a_payment_s_answer_that_never_ended_proves_nothing(
    operation: Operation, data: bytes
) -> None:
    """Whole, each of these would end a payment, or say that the bank took it."""
    whole, unended = (
        reply_of(Cutter(1 << 20).receive_data(one))
        for one in (data[:193] + b"0" + data[194:], data)
    )
    assert not isinstance(codec().outcome(operation, whole), Unclear)
    told = codec().outcome(operation, unended)
    assert isinstance(told, Unclear)
    assert told.code == REPLY_CONTINUES


def test_of_many_that_never_end_the_oldest_is_told() -> None:
    framer = codec().framer()
    for number in range(ANSWERS_BEGUN_MAX):
        assert framer.receive_data(packet(1, more=True, seq=f"S{number}")) == []
    [oldest] = framer.receive_data(packet(1, more=True, seq="S99"))
    assert oldest.correlation == "S0"
    assert isinstance(codec().outcome(QUERY, oldest), Unclear)


def test_the_bank_s_pages_in_several_packets_with_a_file_are_read_whole() -> None:
    bank = Bank()
    for number in range(5):
        bank.ask(INSIDE, ClientRef(f"FEP2026010500000000{number}"))
    plain = refs(codec().outcome(QUERY, exchange(bank)))
    faults = Faults.parse("continued=1,attachment=1", 0, FAULTS)
    bank.profile = attrs.evolve(bank.profile, faults=faults)
    [told] = bank.connection().receive_data(bank.packet(QUERY, None))
    packets = Cutter(1 << 20).receive_data(told.data)
    assert [one.header.text("cont_flag") for one in packets] == ["1", "1", "0"]
    assert packets[-1].attachments == (FILE,)
    assert refs(codec().outcome(QUERY, reply_to(told.data))) == plain
    assert len(plain) == 5


def test_files_are_cut_out_and_shown_by_name_size_and_digest() -> None:
    files = [Attachment("a/../b.txt", b"A001" * 60, b"signature"), Attachment("空", b"")]
    cells = {"trade_code": "4013", "seq": "1", "ret_code": "000000", "serv_type": "02"}
    data = encode(cells, b"<Result></Result>", b"", files)
    [packet_] = Cutter(1 << 20).receive_data(data)
    assert list(packet_.attachments) == files
    [_, shown] = lines(ADAPTER.name, ADAPTER.decoder, b"?" + data)
    assert shown["fields"]["attachments"][0] == {
        "name": "a/../b.txt",
        "bytes": 240,
        "sha256": hashlib.sha256(b"A001" * 60).hexdigest(),
    }
