"""DCPAYMNT with several rows, and NTQRYSTY row by row."""

from __future__ import annotations

import attrs
import pytest

from fep.adapters.api import Accepted, BatchCodec, Outcome, Rejected, Unclear
from fep.adapters.host import Fault
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber, ClientRef, row_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BatchOrder,
    BatchQuery,
    BatchStatus,
    Payee,
    PaymentReceipt,
    PaymentState,
)
from tests.bank_adapters.cmb_xml.samples import (
    CONTEXT,
    DAY,
    NOW,
    ORDER,
    REFERENCE,
    SEQUENCE,
    SISTER,
    codec,
    reply,
)
from tests.bank_adapters.cmb_xml.test_host import Bench

INSIDE = attrs.evolve(ORDER, payee=Payee(SISTER, "江枫样例销售有限公司"), amount=Cny(1))
BATCH = BatchOrder((ORDER, INSIDE))
QUERY = BatchQuery(REFERENCE, BATCH, DAY)
REFS = [row_ref(REFERENCE, at) for at in range(2)]


def test_one_message_carries_all_rows_under_their_own_references() -> None:
    one = codec(card={"signing": {"by": "slot"}})
    assert isinstance(one, BatchCodec)
    draft = one.prepare_batch(BATCH, CONTEXT)
    assert draft.to_sign == draft.content, "one signature over all rows"
    single = [
        codec().prepare(row, attrs.evolve(CONTEXT, client_ref=reference)).content.decode("gbk")
        for row, reference in zip(BATCH.rows, REFS, strict=True)
    ]
    head, _, first = single[0].partition("<DCOPDPAYX>")
    _, _, second = single[1].partition("<DCOPDPAYX>")
    rows = first.removesuffix("</CMBSDKPGK>") + "<DCOPDPAYX>" + second
    assert draft.content.decode("gbk") == f"{head}<DCOPDPAYX>{rows}"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (BatchOrder((ORDER,) * 31), "rows: this bank answers at most 30"),
        (
            BatchOrder((ORDER, attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, bank_name="")))),
            "rows[1].payee.bank_name is missing",
        ),
        (BatchOrder((attrs.evolve(ORDER, payer=AccountNumber("1")),)), "payer.account is no"),
    ],
)
def test_what_the_bank_can_t_carry_is_refused_with_its_row(order: BatchOrder, reason: str) -> None:
    with pytest.raises(BodyError) as caught:
        codec().prepare_batch(order, CONTEXT)
    assert str(caught.value).startswith(reason)


def test_a_batch_has_its_reference_and_a_cursor_is_ours() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare_batch(BATCH, attrs.evolve(CONTEXT, client_ref=None))
    for cursor in ("2", "x", "-1", "²"):
        with pytest.raises(BodyError, match="cursor"):
            codec().prepare_batch_status(attrs.evolve(QUERY, cursor=cursor), CONTEXT)


def answer(function: str, *rows: dict[str, str], code: str = "0") -> str:
    name = {"DCPAYMNT": "NTQPAYRQZ", "NTQRYSTY": "NTSTLLSTZ"}[function]
    blocks = "".join(
        f"<{name}>{''.join(f'<{k}>{v}</{k}>' for k, v in row.items())}</{name}>" for row in rows
    )
    info = f"<INFO><FUNNAM>{function}</FUNNAM><RETCOD>{code}</RETCOD></INFO>"
    return f"<CMBSDKPGK>{info}{blocks}</CMBSDKPGK>"


def row(at: int, code: str = "SUC0000", state: str = "NTE", flag: str = "") -> dict[str, str]:
    return {"YURREF": REFS[at], "ERRCOD": code, "REQSTS": state, "RTNFLG": flag}


def taken(xml: str) -> Outcome:
    return codec().batch_taken(BATCH, REFERENCE, reply(xml))


def test_rows_that_are_all_taken_are_a_batch_that_is_taken() -> None:
    xml = answer("DCPAYMNT", row(1), row(0, state="FIN", flag="S"))
    found = taken(xml)
    assert isinstance(found, Accepted)
    assert (found.result, found.final) == (PaymentReceipt(REFERENCE, BATCH.amount), False)
    assert codec().payment_ref(reply(xml)) == REFS[1], "it is found by any of its rows"


def test_only_rows_that_are_all_refused_are_a_batch_that_is_refused() -> None:
    bad = [row(at, "CSAC054", "FIN", "F") for at in range(2)]
    assert isinstance(taken(answer("DCPAYMNT", *bad)), Rejected)
    for other in (row(1), row(1, "NCB4241", "FIN", "F"), row(1, "ZZZ9999", "FIN", "F")):
        assert isinstance(taken(answer("DCPAYMNT", bad[0], other)), Unclear)
        assert isinstance(taken(answer("DCPAYMNT", other, bad[0])), Unclear)


@pytest.mark.parametrize(
    "xml",
    [
        answer("DCPAYMNT"),
        answer("DCPAYMNT", row(0)),
        answer("DCPAYMNT", row(0), row(0)),
        answer("DCPAYMNT", row(0), row(1), row(1)),
        answer("DCPAYMNT", row(0), row(1) | {"YURREF": row_ref(REFERENCE, 2)}),
        answer("DCPAYMNT", row(0), row(1) | {"YURREF": REFERENCE}),
        answer("DCPAYMNT", row(0), row(1, state="WRF")),
        answer("DCPAYMNT", row(0), row(1), code="-1"),
        answer("NTQRYSTY", row(0), row(1)),
        "<CMBSDKPGK><INFO></INFO></CMBSDKPGK>",
    ],
)
def test_what_is_no_clear_answer_to_a_batch(xml: str) -> None:
    assert isinstance(taken(xml), Unclear)


# -- NTQRYSTY ---------------------------------------------------------------------------------


def told(xml: str, cursor: str = "") -> Outcome:
    return codec().batch_status(attrs.evolve(QUERY, cursor=cursor), reply(xml))


def status(at: int, state: str = "FIN", flag: str = "S", **more: str) -> dict[str, str]:
    return {"YURREF": REFS[at], "REQNBR": "77", "REQSTS": state, "RTNFLG": flag} | more


def test_a_row_is_asked_after_by_its_reference_and_the_next_follows() -> None:
    for cursor, at in (("", 0), ("1", 1)):
        draft = codec().prepare_batch_status(attrs.evolve(QUERY, cursor=cursor), CONTEXT)
        assert f"<YURREF>{REFS[at]}</YURREF>".encode() in draft.content
    found = told(answer("NTQRYSTY", status(0)))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BatchStatus)
    assert found.result.rows[0].state is PaymentState.SUCCEEDED
    assert found.result.rows[0].bank_ref == "77"
    assert found.result.cursor == "1"
    last = told(answer("NTQRYSTY", status(1, flag="B")), "1")
    assert isinstance(last, Accepted)
    assert isinstance(last.result, BatchStatus)
    assert (last.result.rows[1].state, last.result.cursor) == (PaymentState.RETURNED, "")
    none = told(answer("NTQRYSTY"))
    assert isinstance(none, Accepted)
    assert isinstance(none.result, BatchStatus)
    assert none.result.rows[0].state is PaymentState.NO_RECORD


def test_another_row_or_another_amount_is_not_this_row() -> None:
    assert isinstance(told(answer("NTQRYSTY", status(1))), Unclear)
    assert isinstance(told(answer("DCPAYMNT", status(0))), Unclear)
    assert isinstance(told(answer("NTQRYSTY", status(0), code="-9")), Unclear)
    found = told(answer("NTQRYSTY", status(0, TRSAMT="1.00")))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BatchStatus)
    assert found.result.rows[0].state is PaymentState.UNKNOWN


def test_beyond_thirty_rows_the_bank_is_mute() -> None:
    bench = Bench(card={"batch": {"rows_max": 31}})
    order = BatchOrder((attrs.evolve(ORDER, amount=Cny(1)),) * 31)
    context = attrs.evolve(CONTEXT, now=NOW, sequence=SEQUENCE, client_ref=ClientRef(REFERENCE))
    draft = codec(card=bench.card).prepare_batch(order, context)
    [told_reply] = bench.replies(draft)
    assert isinstance(codec().batch_taken(order, REFERENCE, told_reply), Unclear)
    assert bench.book.moved == 31


def test_rows_are_booked_each_by_itself() -> None:
    bench = Bench(chance={Fault.LANDED: 0.5})
    order = BatchOrder(tuple(attrs.evolve(ORDER, amount=Cny(at)) for at in range(1, 21)))
    [found] = bench.replies(codec().prepare_batch(order, CONTEXT))
    assert isinstance(codec().batch_taken(order, REFERENCE, found), Accepted)
    assert 0 < bench.book.moved < 20
