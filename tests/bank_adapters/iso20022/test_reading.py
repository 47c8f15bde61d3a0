"""What comes need be neither valid nor whole, and nothing in it may hurt."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from bank_adapters.iso20022.codec import OURS as OURS_REF
from bank_adapters.iso20022.facts import moment, money
from bank_adapters.iso20022.messages import documents, parse, read
from fep.adapters.api import Accepted, Outcome, Unclear
from fep.adapters.files import Parcel, parcel_bytes
from fep.domain.errors import RemoteProtocolError
from fep.domain.money import Cny
from fep.domain.order import BalanceQuery, PaymentState, PaymentStatus, StatementQuery
from fep.wire.http import response_bytes
from tests.bank_adapters.iso20022.samples import (
    DAY,
    FOLDER,
    ORDER,
    OURS,
    REF,
    STATUS,
    bal,
    camt,
    codec,
    entry,
    payment,
    reply,
    status,
)

SAMPLES = [
    status("ACSC", group="ACCP", batch="ACCP", reason="NARR", amount="1000.50"),
    camt("camt.053", entry(), balances=bal("OPBD", "2000.50") + bal("CLBD", "1000.00")),
    camt("camt.054", entry(), entry("5.00", "CRDT", ref="NOTPROVIDED")),
    camt("camt.052", balances=bal("ITBD", "1.00")),
]


def _state(*made: str) -> PaymentState:
    found = codec().outcome(STATUS, reply(*made))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    return found.result.state


@pytest.mark.parametrize("version", ["", "pain.002.001.03", "pain.002.001.15", "urn:what/ever"])
def test_any_version_and_none_is_read(version: str) -> None:
    assert _state(status("ACSC", version=version)) is PaymentState.SUCCEEDED


def test_prefixes_order_blanks_comments_and_more_elements_do_not_matter() -> None:
    odd = f"""<?xml version="1.0" encoding="utf-8"?><?xml-stylesheet href="x"?><!-- a -->
    <ns:Document xmlns:ns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10"><ns:CstmrPmtStsRpt>
    <ns:OrgnlPmtInfAndSts><ns:New>1</ns:New><ns:TxInfAndSts><ns:TxSts> ACSC
    </ns:TxSts><ns:StsRsnInf/><ns:OrgnlEndToEndId> {REF} </ns:OrgnlEndToEndId></ns:TxInfAndSts>
    </ns:OrgnlPmtInfAndSts><ns:GrpHdr><ns:CreDtTm>yesterday</ns:CreDtTm></ns:GrpHdr>
    </ns:CstmrPmtStsRpt></ns:Document>"""
    assert _state(odd) is PaymentState.SUCCEEDED
    # No Document around it, and a wider encoding.
    bare = status("ACSC").partition(">")[2].removesuffix("</Document>")
    assert _state(bare) is PaymentState.SUCCEEDED
    wide = status("ACSC").encode("utf-16")
    assert read(wide).kind == "pain.002"


def test_several_documents_one_behind_the_other_are_read() -> None:
    head = "<?xml version='1.0' encoding='utf-8'?>\n"
    together = "\n".join(head + one for one in SAMPLES).encode()
    assert [read(one).kind for one in documents(together)] == [
        "pain.002",
        "camt.053",
        "camt.054",
        "camt.052",
    ]


BOMB = "".join(f'<!ENTITY a{n} "&a{n - 1};&a{n - 1};">' for n in range(1, 30))


@pytest.mark.parametrize(
    "hostile",
    [
        f'<!DOCTYPE Document [<!ENTITY a0 "x">{BOMB}]><Document>&a29;</Document>'.encode(),
        b'<!DOCTYPE Document SYSTEM "file:///etc/passwd"><Document/>',
        '<!DOCTYPE Document [<!ENTITY a "x">]><Document>&a;</Document>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE x+AD4-<Document/>',
        b'<?xml version="1.0" encoding="no-such"?><Document/>',
        b"<Document>" * 100_000,
        b"<Document>\0</Document>",
        b"",
        b"{}",
        b"<Document><Other/></Document>",
        b"<Document><CstmrPmtStsRpt>",
    ],
)
def test_what_is_hostile_or_none_is_a_typed_error_at_once(hostile: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(RemoteProtocolError):
        read(hostile)
    assert time.monotonic() - began < 2.0


def test_an_entity_that_is_not_declared_is_no_text() -> None:
    with pytest.raises(RemoteProtocolError):
        parse(b"<Document>&secret;</Document>")


@pytest.mark.parametrize(
    ("text", "fen"), [("12", 1200), ("12.5", 1250), ("0.93", 93), ("12.34000", 1234)]
)
def test_amounts_as_messages_have_them(text: str, fen: int) -> None:
    assert money(text) == Cny(fen)


@pytest.mark.parametrize("text", ["", "-1", "1.234", "1,5", "1e3", "١", "9" * 16, "NaN", " 1"])
def test_what_is_no_amount_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        money(text)


def test_times_with_and_without_an_offset() -> None:
    assert moment("2026-01-05").isoformat() == "2026-01-04T16:00:00+00:00"
    assert moment("2026-01-05T09:00:00Z").hour == 9
    for wrong in ("2026-W01-1", "2026-13-01", "0001-01-01", "now", "2026-01-05T25:00:00"):
        with pytest.raises(ValueError, match=r"."):
            moment(wrong)


def _outcomes(data: bytes, changes: dict[str, object] | None = None) -> list[Outcome]:
    one = codec(changes)
    framer = one.framer()
    replies = []
    try:
        replies = framer.receive_data(data)
        framer.receive_data(b"")
        framer.receive_eof()
    except RemoteProtocolError:
        pass
    for found in replies:
        one.alive(found)
        one.payment_ref(found)
    operations = (ORDER, STATUS, BalanceQuery(OURS), StatementQuery(OURS, DAY, DAY))
    return [one.outcome(asked, found) for found in replies for asked in operations]


@given(data=st.binary(max_size=400), sample=st.sampled_from(SAMPLES), at=st.integers(0, 2000))
def test_any_bytes_are_an_outcome_and_none_raises(data: bytes, sample: str, at: int) -> None:
    raw = sample.encode()
    body = raw[: at % len(raw)] + data + raw[at % len(raw) :]
    _outcomes(data)
    _outcomes(data, FOLDER)
    assert len(_outcomes(response_bytes(200, body, "application/xml"))) == 4
    parcel = Parcel("status", "1", REF, "FOUND", names=("a",), documents=(body,))
    assert len(_outcomes(parcel_bytes(parcel), FOLDER)) == 4
    try:
        found = codec(FOLDER).contents(body)
    except RemoteProtocolError:
        return
    for mark in found.marks:
        found.part(mark)
    assert all(OURS_REF.fullmatch(one) for one in found.told.values())


WORDS = st.sampled_from(
    ["ACSC", "RJCT", "1000.50", "CNY", "DBIT", "CRDT", "BOOK", "2026-01-05", REF, OURS, "", "x"]
)


@given(
    sample=st.sampled_from(SAMPLES),
    values=st.lists(WORDS, min_size=1, max_size=6),
    drops=st.sets(st.integers(0, 60), max_size=8),
)
def test_any_tree_is_an_outcome_and_none_raises(
    sample: str, values: list[str], drops: set[int]
) -> None:
    root = etree.fromstring(sample.encode())
    leaves = [one for one in root.iter("*") if not len(one)]
    for number, value in enumerate(values):
        leaves[(number * 7 + len(value)) % len(leaves)].text = value
    inner = [one for one in root.iter("*") if one.getparent() is not None]
    for number in drops:
        one = inner[number % len(inner)]
        if (above := one.getparent()) is not None:
            above.remove(one)
    body = etree.tostring(root)
    assert len(_outcomes(response_bytes(200, body, "application/xml"))) == 4


def test_a_kept_answer_is_read_again_like_the_first_time() -> None:
    one = codec()
    head = [
        ("X-Request-ID", "status-20260105090100000007"),
        ("Date", "Mon, 05 Jan 2026 01:01:00 GMT"),
    ]
    sent = response_bytes(200, status("ACSC").encode(), "application/xml", head)
    [first] = one.framer().receive_data(sent)
    [again] = one.framer().receive_data(first.raw)
    assert (first.correlation, first.trade) == ("20260105090100000007", "status")
    assert (again.correlation, again.trade, again.raw) == (
        first.correlation,
        first.trade,
        first.raw,
    )
    assert one.outcome(STATUS, again) == one.outcome(STATUS, first)


OTHER = "F0000000000000000000"


def test_a_file_is_found_by_all_that_it_tells_of() -> None:
    made = [
        camt("camt.054", entry(), entry("oops", ref=OTHER), entry(ref="THEIRS"), at="soon"),
        status("ACCP"),
        camt("camt.053", entry(), balances=bal("CLBD", "x"), day="2026-01-05"),
    ]
    head = "<?xml version='1.0'?>"
    found = codec(FOLDER).contents("".join(head + one for one in made).encode())
    assert found.marks == {
        f"payment:{REF}",
        f"payment:{OTHER}",
        "payment:THEIRS",
        f"balance:{OURS}",
        f"statement:{OURS}:2026-01-05",
    }
    assert set(found.told.values()) == {REF, OTHER}
    # What another payment's line has in it does not matter to this one.
    part = found.part(f"payment:{REF}").decode()
    assert OTHER not in part
    assert _state(*(one.decode() for one in documents(part.encode()))) is PaymentState.SUCCEEDED
    told = Parcel("told", "", REF, "FOUND", names=("a",), documents=(part.encode(),))
    [kept] = codec(FOLDER).framer().receive_data(parcel_bytes(told))
    paid = codec(FOLDER).outcome(ORDER, kept)
    assert isinstance(paid, Accepted)
    assert paid.final
    assert codec(FOLDER).payment_ref(kept) == REF
    bad = found.part(f"payment:{OTHER}")
    assert b"oops" in bad
    whole = codec().outcome(STATUS, reply(made[0]))
    assert isinstance(whole, Unclear)


def test_a_copy_of_our_own_file_is_no_word_of_the_banks() -> None:
    found = codec(FOLDER).contents(payment())
    assert (found.marks, found.told) == (frozenset(), {})


def test_a_statement_tells_nobody_unasked() -> None:
    found = codec(FOLDER).contents(camt("camt.053", entry(), day="2026-01-05").encode())
    assert f"payment:{REF}" in found.marks
    assert found.told == {}


@given(at=st.integers(0, 5), count=st.integers(1, 6), back=st.booleans())
def test_a_part_says_of_its_payment_what_the_whole_does(at: int, count: int, back: bool) -> None:
    lines = [
        entry(
            ref=REF if number == at else f"F{number:019d}",
            side="CRDT" if back else "DBIT",
            inside="<RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf>" if back else "",
        )
        for number in range(count)
    ]
    made = camt("camt.054", *lines)
    found = codec(FOLDER).contents(made.encode())
    mark = f"payment:{REF}"
    assert (mark in found.marks) == (at < count)
    if at < count:
        part = found.part(mark).decode()
        assert codec().outcome(STATUS, reply(part)) == codec().outcome(STATUS, reply(made))
