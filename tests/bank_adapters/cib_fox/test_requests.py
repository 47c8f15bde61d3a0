"""What is written for each operation, and what is refused before a byte leaves."""

from __future__ import annotations

import datetime as dt
from typing import Any

import attrs
import pytest

from bank_adapters.cib_fox.config import CibFoxOptions
from bank_adapters.cib_fox.messages import Fields, decode, part, text
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.money import FEN_MAX, Cny
from fep.domain.order import BalanceQuery, Payee, PaymentOrder, StatementQuery, Urgency
from tests.bank_adapters.cib_fox.samples import (
    ABROAD,
    DAY,
    NOW,
    OPTIONS,
    ORDER,
    PAYER,
    SISTER,
    STATEMENT,
    STRANGER,
    body_of,
    codec,
    context,
)

NAME = "云阶示例贸易有限公司"


def info(order: PaymentOrder, options: CibFoxOptions = OPTIONS) -> Fields:
    one = codec(options=options)
    message = decode(body_of(one.seal(one.prepare(order, context()), None)))
    return part(message.body, "XFERRQ", "XFERINFO")


def to(payee: Payee, **changes: Any) -> PaymentOrder:
    return attrs.evolve(ORDER, payee=payee, **changes)


@pytest.mark.parametrize(
    ("payee", "interbank", "local", "bank"),
    [
        (Payee(STRANGER, NAME, "308584000013", "招商银行"), "N", "N", "招商银行"),
        (Payee(STRANGER, NAME, "308391000015", "招商银行"), "N", "Y", "招商银行"),
        (Payee(STRANGER, NAME, "", "招商银行"), "N", "N", "招商银行"),
        (Payee(STRANGER, NAME, "309391000011"), "Y", "Y", ""),
        (Payee(STRANGER, NAME, "309584000017", "兴业银行深圳分行"), "Y", "N", ""),
        (Payee(STRANGER, NAME, "", "兴业银行深圳分行"), "Y", "N", ""),
        (Payee(SISTER, "江枫样例销售有限公司"), "Y", "N", ""),
        (Payee(ABROAD, "江枫样例投资有限公司"), "N", "N", "招商银行"),
    ],
)
def test_interbank_says_whether_the_payee_is_not_here(
    payee: Payee, interbank: str, local: str, bank: str
) -> None:
    written = info(to(payee))
    assert text(written, "ACCTTO", "@INTERBANK") == interbank
    assert text(written, "ACCTTO", "@LOCAL") == local
    assert text(written, "ACCTTO", "BANKDESC") == bank


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, ""),
        ({"urgency": Urgency.URGENT}, "SUPER"),
        ({"urgency": Urgency.URGENT, "amount": Cny(5_000_000)}, "SUPER"),
        ({"urgency": Urgency.URGENT, "amount": Cny(5_000_001)}, ""),
        ({"urgency": Urgency.URGENT, "payee": Payee(STRANGER, NAME, "", "招商银行")}, ""),
        ({"urgency": Urgency.URGENT, "payee": Payee(SISTER, NAME)}, ""),
    ],
)
def test_real_time_is_for_urgent_payments_of_at_most_50_000_to_a_known_branch(
    changes: dict[str, Any], mode: str
) -> None:
    written = info(attrs.evolve(ORDER, **changes))
    assert text(written, "PMTMODE") == mode
    assert ("PMTMODE" in written) == bool(mode), "an empty one is an error at the bank"
    assert list(written) == [
        "ACCTFROM",
        "ACCTTO",
        "CHEQUENUM",
        "TRNAMT",
        *(["PMTMODE"] if mode else []),
        "PURPOSE",
        "MEMO",
    ]


def test_a_payment_without_a_purpose_has_the_default() -> None:
    assert text(info(attrs.evolve(ORDER, purpose=" ")), "PURPOSE") == "转账"


@pytest.mark.parametrize(
    ("order", "member"),
    [
        (to(Payee(STRANGER, "A<B", "308584000013", "招商银行")), r"payee\.name holds '<'"),
        (to(Payee(STRANGER, "A&B", "308584000013", "招商银行")), r"payee\.name holds '&'"),
        (to(Payee(STRANGER, NAME, "308584000013", "招商>银行")), r"payee\.bank_name holds '>'"),
        (attrs.evolve(ORDER, purpose="a & b"), "purpose holds '&'"),
        (to(Payee(STRANGER, "\x0b", "308584000013", "招商银行")), r"payee\.name must be printable"),
        (to(Payee(STRANGER, "云" * 26, "308584000013", "招商银行")), r"payee\.name has 52 bytes"),
        (to(Payee(STRANGER, "Ω≠😀", "308584000013", "招商银行")), r"payee\.name holds '😀'"),
        (to(Payee(AccountNumber("9" * 33), NAME, "308584000013", "招商银行")), r"payee\.account"),
        (to(Payee(STRANGER, NAME, "308584000013")), r"payee\.bank_name is missing"),
        (to(Payee(STRANGER, NAME)), r"payee\.bank_name is missing"),
        (to(Payee(STRANGER, NAME, "308584000013", "兴业银行")), r"payee\.bank_name names 兴业银行"),
        (attrs.evolve(ORDER, payer=ABROAD), r"payer\.account"),
        (attrs.evolve(ORDER, payer=STRANGER), r"payer\.account"),
        (attrs.evolve(ORDER, amount=Cny(FEN_MAX)), "amount must be at most 9999999999999.99"),
    ],
)
def test_what_the_bank_can_not_take_is_refused_before_sending(
    order: PaymentOrder, member: str
) -> None:
    with pytest.raises(BodyError, match=member):
        codec().prepare(order, context())


def test_a_payee_at_another_bank_needs_a_city() -> None:
    without = attrs.evolve(OPTIONS, payee_city_default="")
    with pytest.raises(BodyError, match="payee_city_default"):
        info(ORDER, without)
    assert "CITY" not in part(info(to(Payee(SISTER, NAME)), without), "ACCTTO")


def test_a_payment_needs_its_reference() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare(ORDER, attrs.evolve(context(), client_ref=None))


def test_a_statement_is_one_day_or_ends_before_today() -> None:
    one = codec()
    yesterday = BusinessDate(DAY - dt.timedelta(days=1))
    with pytest.raises(BodyError, match="this bank tells one day"):
        one.prepare(attrs.evolve(STATEMENT, first_day=yesterday), context())
    wide = codec({"statement": {"span_days_max": 31}})
    with pytest.raises(BodyError, match="ends before today"):
        wide.prepare(attrs.evolve(STATEMENT, first_day=yesterday), context())
    earlier = BusinessDate(DAY - dt.timedelta(days=5))
    wide.prepare(StatementQuery(PAYER, earlier, yesterday), context())
    with pytest.raises(BodyError, match="account"):
        one.prepare(attrs.evolve(STATEMENT, account=STRANGER), context())
    with pytest.raises(BodyError, match="account"):
        one.prepare(BalanceQuery(ABROAD), context())


@pytest.mark.parametrize("span", [1, 3, 31])
def test_a_statement_is_asked_in_parts_that_the_bank_takes(span: int) -> None:
    one = codec({"statement": {"span_days_max": span}})
    first = BusinessDate(DAY - dt.timedelta(days=9))
    parts = one.split(StatementQuery(PAYER, first, DAY), DAY)
    assert sum((part.last_day - part.first_day).days + 1 for part in parts) == 10
    assert (parts[-1].first_day, parts[-1].last_day) == (DAY, DAY)
    for query in parts:
        one.prepare(query, context())


def test_a_page_is_asked_by_its_number() -> None:
    one = codec()
    request = one.seal(one.prepare(attrs.evolve(STATEMENT, cursor="7"), context()), None)
    assert b"<PAGE>7</PAGE></INCTRAN>" in body_of(request)


def test_the_time_of_a_request_is_shanghais() -> None:
    one = codec()
    at = attrs.evolve(context(), now=NOW.astimezone(dt.timezone(dt.timedelta(hours=-5))))
    assert b"<DTCLIENT>2026-01-05 09:01:00</DTCLIENT>" in one.seal(one.probe(at), None)
