"""Canonical operations to the bank's functions."""

import datetime as dt
from typing import Any

import attrs
import pytest

from bank_adapters.cmb_xml.messages import decode
from fep.adapters.api import Context
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.order import (
    BalanceQuery,
    Operation,
    Payee,
    PaymentOrder,
    StatementQuery,
    Urgency,
)
from tests.bank_adapters.cmb_xml.samples import (
    ABROAD,
    BALANCE,
    CONTEXT,
    DAY,
    NOW,
    OPTIONS,
    ORDER,
    PAYER,
    SAMPLES,
    SISTER,
    STATEMENT,
    STATUS,
    STRANGER,
    codec,
)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (BALANCE, "balance_request"),
        (ORDER, "payment_request"),
        (STATUS, "status_request"),
        (STATEMENT, "statement_request"),
    ],
)
def test_requests_are_the_samples_byte_for_byte(operation: Operation, name: str) -> None:
    draft = codec().prepare(operation, CONTEXT)
    sample = SAMPLES[name]
    assert codec().seal(draft, None) == f"{sample.size:<8}".encode() + sample.data
    assert draft.correlation == CONTEXT.sequence
    assert draft.trade in sample.title
    assert draft.to_sign is None


def _payment(order: PaymentOrder, **options: Any) -> dict[str, str]:
    changed = attrs.evolve(OPTIONS, **options)
    draft = codec(changed).prepare(order, CONTEXT)
    assert isinstance(draft.content, bytes)
    (row,) = decode(draft.content).rows("DCOPDPAYX")
    return dict(row)


def _to(account: AccountNumber, **facts: Any) -> PaymentOrder:
    return attrs.evolve(ORDER, payee=Payee(account, "云阶示例贸易有限公司", **facts))


@pytest.mark.parametrize(
    "order",
    [_to(SISTER), _to(PAYER), _to(STRANGER, bank_code="308584000013", bank_name="招商银行")],
    ids=["own", "own with code", "by code"],
)
def test_a_payee_at_this_bank_needs_no_bank(order: PaymentOrder) -> None:
    row = _payment(order, payee_address_default="")
    assert row["BNKFLG"] == "Y"
    assert not {"STLCHN", "BRDNBR", "CRTBNK", "CRTADR"} & set(row)


def test_an_own_payee_elsewhere_is_completed_from_the_configuration() -> None:
    row = _payment(_to(ABROAD))
    assert (row["BNKFLG"], row["BRDNBR"], row["CRTBNK"]) == ("N", "309391000011", "兴业银行")


def test_the_orders_bank_code_outweighs_an_own_account_of_the_same_number() -> None:
    row = _payment(_to(SISTER, bank_code="309391000011", bank_name="兴业银行"))
    assert (row["BNKFLG"], row["CRTBNK"]) == ("N", "兴业银行")
    with pytest.raises(BodyError, match=r"payee\.bank_name"):
        _payment(_to(PAYER, bank_code="309391000011"))


def test_an_unknown_bank_counts_as_another_bank() -> None:
    row = _payment(_to(STRANGER, bank_name="兴业银行"))
    assert row["BNKFLG"] == "N"
    assert "BRDNBR" not in row


def test_urgent_payments_take_the_fast_channel() -> None:
    assert _payment(attrs.evolve(ORDER, urgency=Urgency.URGENT))["STLCHN"] == "F"


def test_a_payment_without_purpose_takes_the_configured_one() -> None:
    assert (
        _payment(attrs.evolve(ORDER, purpose=" "), purpose_default="往来款")["NUSAGE"] == "往来款"
    )


def test_a_long_name_goes_into_the_long_field() -> None:
    name = "江" * 31
    assert (
        _payment(attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, name=name)))["CRTNAM"] == name
    )
    row = _payment(attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, name=name + "枫")))
    assert row["LRVEAN"] == name + "枫"
    assert "CRTNAM" not in row


def test_accounts_at_another_branch_bear_its_code() -> None:
    options = attrs.evolve(OPTIONS, branches={SISTER: "75"})
    for account, branch in ((SISTER, b"75"), (PAYER, b"99")):
        content = codec(options).prepare(BalanceQuery(account), CONTEXT).content
        assert b"<BBKNBR>" + branch + b"</BBKNBR>" in content


def _with_payee(**facts: Any) -> PaymentOrder:
    return attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, **facts))


@pytest.mark.parametrize(
    ("operation", "member"),
    [
        (_with_payee(name="江" * 101), "payee.name"),
        (_with_payee(name="𠀀样例"), "payee.name"),
        (_with_payee(name="a\tb"), "payee.name"),
        (_with_payee(bank_name="银" * 32), "payee.bank_name"),
        (_with_payee(bank_name=" "), "payee.bank_name"),
        (attrs.evolve(ORDER, purpose="款" * 32), "purpose"),
        (attrs.evolve(ORDER, purpose="a]]>b"), "purpose"),
        (attrs.evolve(ORDER, purpose="😀"), "purpose"),
        (attrs.evolve(ORDER, payer=STRANGER), "payer.account"),
        (attrs.evolve(ORDER, payer=ABROAD), "payer.account"),
        (BalanceQuery(ABROAD), "account"),
        (StatementQuery(STRANGER, DAY, DAY), "account"),
        (attrs.evolve(STATEMENT, cursor="2"), "from"),
        (attrs.evolve(STATEMENT, last_day=BusinessDate(DAY + dt.timedelta(days=100))), "from"),
    ],
)
def test_what_the_bank_can_not_carry_names_the_member(operation: Operation, member: str) -> None:
    with pytest.raises(BodyError, match=member.replace(".", r"\.")):
        codec().prepare(operation, CONTEXT)


def test_interbank_needs_the_configured_address() -> None:
    with pytest.raises(BodyError, match="payee_address_default"):
        _payment(ORDER, payee_address_default="")


def test_a_payment_without_its_reference_is_our_defect() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare(ORDER, attrs.evolve(CONTEXT, client_ref=None))


@pytest.mark.parametrize(
    ("days_later", "first", "last"),
    [
        (0, "20260102", "20260108"),
        (1, "20260102", "20260108"),
        (60, "20260102", "20260108"),
        (91, "20260106", "20260108"),
    ],
    ids=["same day", "day after", "later", "at the end of the reach"],
)
def test_the_status_span_covers_a_clock_of_ours_that_was_wrong_by_days(
    days_later: int, first: str, last: str
) -> None:
    context = attrs.evolve(CONTEXT, now=NOW + dt.timedelta(days=days_later))
    content = codec().prepare(STATUS, context).content
    assert isinstance(content, bytes)
    (row,) = decode(content).rows("NTQRYSTYX1")
    assert (row["BGNDAT"], row["ENDDAT"]) == (first, last)


def test_the_banks_day_counts_not_utcs() -> None:
    midnight = dt.datetime(2026, 1, 5, 16, 0, tzinfo=dt.UTC)
    later = midnight + dt.timedelta(days=90)
    for now, first in ((later - dt.timedelta(seconds=1), b"20260105"), (later, b"20260106")):
        content = codec().prepare(STATUS, attrs.evolve(CONTEXT, now=now)).content
        assert b"<BGNDAT>" + first in content


def test_a_payment_out_of_the_status_reach_is_refused() -> None:
    with pytest.raises(BodyError, match="90 days"):
        codec().prepare(STATUS, attrs.evolve(CONTEXT, now=NOW + dt.timedelta(days=92)))


def test_the_probe_needs_no_account() -> None:
    draft = codec().probe(Context(NOW, "20260105090205000001"))
    assert draft.trade == "ListMode"
    assert draft.to_sign is None
    message = decode(draft.content)
    assert message.rows("SDKMDLSTX") == [{"BUSCOD": "N02031"}]
    assert message.info["FEPCORRID"] == "20260105090205000001"
