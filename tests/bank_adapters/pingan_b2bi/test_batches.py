"""4018 and 4015: several payments in one packet, and what the bank says of each."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi.messages import AMOUNT_MAX
from fep.adapters.api import Accepted, BatchCodec, Outcome, Refusal, Rejected, Unclear
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber, ClientRef, row_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BatchOrder,
    BatchQuery,
    BatchStatus,
    PaymentReceipt,
    PaymentState,
    Urgency,
)
from tests.bank_adapters.pingan_b2bi.samples import (
    INSIDE,
    ORDER,
    PAYEE,
    PAYER,
    REF,
    TODAY,
    answer,
    codec,
    context,
    leaves,
    reply_to,
    result,
)

BATCH = BatchOrder((ORDER, attrs.evolve(INSIDE, amount=Cny(1), purpose="", urgency=Urgency.URGENT)))
QUERY = BatchQuery(REF, BATCH, TODAY)
FIRST, SECOND = row_ref(REF, 0), row_ref(REF, 1)
TAKEN = result(ThirdVoucher=REF)


def test_the_body_of_a_batch_is_as_the_document_says() -> None:
    one = codec()
    assert isinstance(one, BatchCodec)
    draft = one.prepare_batch(BATCH, context())
    assert draft.trade == "4018"
    body = one.seal(draft, None)[222:].decode("gbk")
    assert body == (
        '<?xml version="1.0" encoding="GBK"?><Result>'
        "<ThirdVoucher>FEP20260105000000001</ThirdVoucher><totalCts>2</totalCts>"
        "<totalAmt>1000.51</totalAmt><BSysFlag>N</BSysFlag><CcyCode>RMB</CcyCode>"
        "<OutAcctNo>99000000000101</OutAcctNo><OutAcctName>江枫样例制造有限公司</OutAcctName>"
        "<PayType>0</PayType><BizFlag1></BizFlag1><BookingDate></BookingDate>"
        "<HOResultSet4018R><SThirdVoucher>BEP20260105000000000</SThirdVoucher>"
        "<InAcctBankNode>308584000013</InAcctBankNode><InAcctNo>990000000000303</InAcctNo>"
        "<InAcctName>云阶示例贸易有限公司</InAcctName><InAcctBankName>招商银行</InAcctBankName>"
        "<TranAmount>1000.50</TranAmount><UseEx>货款</UseEx><UnionFlag>0</UnionFlag>"
        "<AddrFlag>2</AddrFlag><SysFlag>N</SysFlag></HOResultSet4018R>"
        "<HOResultSet4018R><SThirdVoucher>BEP20260105000000001</SThirdVoucher>"
        "<InAcctNo>99000000000202</InAcctNo><InAcctName>江枫样例物流有限公司</InAcctName>"
        "<InAcctBankName>平安银行</InAcctBankName><TranAmount>0.01</TranAmount>"
        "<UnionFlag>1</UnionFlag><AddrFlag>2</AddrFlag><SysFlag>Y</SysFlag></HOResultSet4018R>"
        "</Result>"
    )
    # The same again is the same.
    assert one.seal(one.prepare_batch(BATCH, context()), None) == one.seal(draft, None)


def test_the_body_of_its_query_asks_for_all_rows_at_once() -> None:
    one = codec()
    draft = one.prepare_batch_status(attrs.evolve(QUERY, cursor="2"), context())
    assert draft.to_sign is None
    assert (
        one.seal(draft, None)[222:]
        .decode("gbk")
        .endswith(
            "<Result><OrigThirdVoucher>FEP20260105000000001</OrigThirdVoucher>"
            "<QueryType>0</QueryType><PageCts>500</PageCts><PageNo>2</PageNo></Result>"
        )
    )


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (BatchOrder((ORDER,) * 501), "rows: this bank takes at most 500"),
        (
            BatchOrder((ORDER, attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, name="𠮷")))),
            "rows[1].payee.name: the character",
        ),
        (BatchOrder((attrs.evolve(ORDER, amount=AMOUNT_MAX), ORDER)), "rows: totalAmt"),
        (BatchOrder((attrs.evolve(ORDER, payer=AccountNumber("1")),)), "payer.account: not"),
    ],
)
def test_what_the_bank_can_t_carry_is_refused_with_its_row(order: BatchOrder, reason: str) -> None:
    with pytest.raises(BodyError) as caught:
        codec().prepare_batch(order, context())
    assert str(caught.value).startswith(reason)


def test_a_batch_has_its_reference_and_a_cursor_is_ours() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare_batch(BATCH, context(reference=None))
    for cursor in ("0", "-1", "x", "1000", "²"):
        with pytest.raises(BodyError, match="cursor"):
            codec().prepare_batch_status(attrs.evolve(QUERY, cursor=cursor), context())


def taken(packet: bytes) -> Outcome:
    return codec().batch_taken(BATCH, REF, reply_to(packet))


def test_a_batch_that_the_bank_has_is_taken_over_and_never_done() -> None:
    reply = reply_to(answer("4018", xml=TAKEN))
    assert codec().payment_ref(reply) == REF
    found = taken(answer("4018", xml=TAKEN))
    assert isinstance(found, Accepted)
    assert found.result == PaymentReceipt(REF, Cny(100_051))
    assert not found.final


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (answer("4018", xml=result(ThirdVoucher="FEP20260105000000002")), "REPLY_MISMATCH"),
        (answer("4018", xml=result()), "REPLY_MISMATCH"),
        (answer("4018"), "REPLY_MISMATCH"),
        (answer("4004", xml=TAKEN), "REPLY_MISMATCH"),
        (answer("4018", xml="<Result>"), "000000"),
        # A repeat: the first one is there.
        (answer("4018", "YQ9962"), "YQ9962"),
        (answer("4018", "MA4045"), "MA4045"),
        (answer("4018", "GW3002"), "GW3002"),
        (answer("4018", "YQ9971"), "YQ9971"),
        (answer("4018", "MA0103"), "MA0103"),
        (answer("4018", "ZZZ999"), "ZZZ999"),
    ],
)
def test_what_is_no_clear_answer_to_a_batch(packet: bytes, code: str) -> None:
    found = taken(packet)
    assert isinstance(found, Unclear)
    assert found.code == code


def test_a_batch_that_was_checked_and_refused() -> None:
    for code in ("YQ9966", "YQ9969", "2778"):
        assert isinstance(taken(answer("4018", code)), Rejected), code
    found = taken(answer("4018", "YQ9990"))
    assert isinstance(found, Rejected)
    assert found.why is Refusal.PERMISSION


# -- 4015 -------------------------------------------------------------------------------------

ROW_1 = {"SThirdVoucher": FIRST, "TranAmount": "1000.5", "InAcctNo": PAYEE, "OutAcctNo": PAYER}
ROW_2 = {"SThirdVoucher": SECOND, "TranAmount": "0.01"}
DONE = {"Stt": "20", "FrontLogNo": "8001", "IsBack": "0"}


def page(*rows: Mapping[str, str], **members: str) -> bytes:
    inner = "".join(f"<list>{leaves(**row)}</list>" for row in rows)
    head = {"OrigThirdVoucher": REF, "batchSTT": "20", "IsEnd": "Y"} | members
    return answer("4015", xml=result(inner, **head))


def told(packet: bytes, cursor: str = "") -> Outcome:
    return codec().batch_status(attrs.evolve(QUERY, cursor=cursor), reply_to(packet))


def rows(found: Outcome) -> dict[int, PaymentState]:
    assert isinstance(found, Accepted), found
    assert isinstance(found.result, BatchStatus)
    return {at: row.state for at, row in found.result.rows.items()}


@pytest.mark.parametrize(
    ("member", "state"),
    [
        ({"Stt": "20"}, PaymentState.SUCCEEDED),
        ({"Stt": "30"}, PaymentState.REJECTED),
        ({"Stt": "20", "IsBack": "1"}, PaymentState.RETURNED),
        ({"Stt": "11"}, PaymentState.PROCESSING),
        ({"Stt": "99"}, PaymentState.UNKNOWN),
        ({"Stt": "77"}, PaymentState.UNKNOWN),
        ({}, PaymentState.UNKNOWN),
    ],
)
def test_each_row_has_the_state_that_the_card_gives_it(
    member: dict[str, str], state: PaymentState
) -> None:
    found = told(page(ROW_2 | member | {"BackRem": "RJ01"}, ROW_1 | DONE))
    assert rows(found) == {0: PaymentState.SUCCEEDED, 1: state}
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BatchStatus)
    assert found.result.rows[0].bank_ref == "8001"
    assert found.result.rows[1].message == "RJ01"
    assert (found.result.cursor, found.result.is_over) == ("", True)


def test_a_batch_that_is_worked_on_says_so_whatever_its_rows_say() -> None:
    found = told(page(ROW_1 | DONE, ROW_2 | DONE, batchSTT="B1"))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BatchStatus)
    assert not found.result.is_over


def test_pages_follow_each_other() -> None:
    found = told(page(ROW_1 | DONE, IsEnd="N"))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BatchStatus)
    assert found.result.cursor == "2"
    assert rows(told(page(ROW_2 | DONE, PageNo="2"), "2")) == {1: PaymentState.SUCCEEDED}
    # Where the flag is left out, a page with all rows is the last.
    assert rows(told(page(ROW_1 | DONE, ROW_2 | DONE, IsEnd=""))).keys() == {0, 1}


@pytest.mark.parametrize("code", ["MA0103", "YQ9996", "ES0200"])
def test_a_batch_that_the_bank_does_not_know_has_no_row_on_record(code: str) -> None:
    assert rows(told(answer("4015", code))) == dict.fromkeys((0, 1), PaymentState.NO_RECORD)
    assert isinstance(told(answer("4015", code), "2"), Unclear), "there was a page before this one"


@pytest.mark.parametrize(
    "packet",
    [
        page(ROW_1 | DONE, ROW_1 | DONE),
        page(ROW_1 | DONE, {"SThirdVoucher": row_ref(REF, 2)} | DONE),
        page({"SThirdVoucher": row_ref(ClientRef("F" + "0" * 19), 0)} | DONE),
        page({"Stt": "20"}),
        page(ROW_1 | DONE | {"TranAmount": "1000.51"}),
        page(ROW_1 | DONE | {"TranAmount": "x"}),
        page(ROW_1 | DONE | {"InAcctNo": "990000000000304"}),
        page(ROW_1 | DONE | {"OutAcctNo": "99000000000202"}),
        page(ROW_1 | DONE, OrigThirdVoucher="FEP20260105000000002"),
        page(ROW_1 | DONE, PageNo="2"),
        page(IsEnd="N"),
        page(ROW_1 | DONE, IsEnd="?"),
        answer("4005", xml=result(OrigThirdVoucher=REF, Stt="20")),
        answer("4015", xml="<Result>"),
        answer("4015", "GW3002"),
    ],
)
def test_what_speaks_of_something_else_proves_nothing(packet: bytes) -> None:
    assert isinstance(told(packet), Unclear)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "SThirdVoucher": st.sampled_from([FIRST, SECOND, row_ref(REF, 7), "", "x"]),
        "TranAmount": st.sampled_from(["1000.50", "0.01", "", "-", "1"]),
        "Stt": st.sampled_from(["20", "30", "11", "99", "", "?"]),
        "IsBack": st.sampled_from(["0", "1", ""]),
        "InAcctNo": st.sampled_from([PAYEE, "", "1"]),
        "AccountDate": st.sampled_from(["20260105", "0", "x"]),
    },
)


@given(st.lists(FIELDS, max_size=4), st.sampled_from(["", "Y", "N", "1"]))
def test_no_page_proves_a_row_that_it_does_not_name_once(
    lists: list[dict[str, str]], end: str
) -> None:
    found = told(page(*lists, IsEnd=end))
    if not isinstance(found, Accepted):
        return
    names = [one.get("SThirdVoucher") for one in lists]
    assert isinstance(found.result, BatchStatus)
    for at in found.result.rows:
        assert names.count(row_ref(REF, at)) == 1
        [one] = [one for one in lists if one.get("SThirdVoucher") == row_ref(REF, at)]
        amount = one.get("TranAmount")
        assert not amount or Cny.parse_loose(amount) == BATCH.rows[at].amount
