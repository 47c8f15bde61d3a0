"""4017 and 4019: CNAPS codes, and the bank's own list of payments that came back."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest

from bank_adapters.pingan_b2bi.host import NODES
from fep.adapters.api import Accepted, LookupCodec, Outcome, Rejected, Unclear
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.order import BankCodeQuery, BankCodes, Lookup, ReturnedPayments, ReturnedQuery
from tests.bank_adapters.pingan_b2bi.samples import (
    INSIDE,
    PAYER,
    SISTER,
    TODAY,
    Bank,
    answer,
    codec,
    context,
    reply_to,
    result,
)

RETURNED = ReturnedQuery(PAYER, TODAY, TODAY)
CODES = BankCodeQuery("308", "")


def look_up(bank: Bank, lookup: Lookup) -> Outcome:
    draft = bank.codec.prepare_lookup(lookup, context(7, bank.clock.now(), None))
    [told] = bank.connection().receive_data(bank.codec.seal(draft, None))
    return bank.codec.looked_up(lookup, reply_to(told.data, bank.codec))


def test_the_codec_has_look_ups() -> None:
    assert isinstance(codec(), LookupCodec)


def test_codes_are_found_by_class_and_keyword() -> None:
    bank = Bank()
    found = look_up(bank, CODES)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, BankCodes)
    assert [(one.code, one.name) for one in found.result.entries] == [
        node for node in NODES if node[0].startswith("308")
    ]
    none = look_up(bank, BankCodeQuery("308", "没有这个地方"))
    assert isinstance(none, Accepted)
    assert none.result == BankCodes(())


def test_a_payment_that_came_back_is_listed_once_with_its_days() -> None:
    bank = Bank(faults=("returned",))
    bank.ask(INSIDE)
    bank.clock.moment += dt.timedelta(hours=1)
    bank.ask(INSIDE, ClientRef("FEP20260105000000002"))
    found = look_up(bank, RETURNED)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, ReturnedPayments)
    [entry] = found.result.entries
    assert entry.client_ref == "FEP20260105000000001"
    assert (entry.amount, entry.payee_account) == (INSIDE.amount, SISTER)
    assert (entry.submitted_on, entry.returned_on) == (TODAY, TODAY)
    assert entry.reason.startswith("RJ01")
    assert found.result.cursor == ""
    nothing = look_up(Bank(), RETURNED)
    assert isinstance(nothing, Accepted)
    assert nothing.result == ReturnedPayments(())


ROW = "<list><PayAccNo>{}</PayAccNo><SThirdVoucher>F1</SThirdVoucher><Amount>{}</Amount></list>"


@pytest.mark.parametrize(
    ("lookup", "packet", "kind"),
    [
        (RETURNED, answer("4019", xml=result(IsEnd="Y", PageNo="1")), Accepted),
        (RETURNED, answer("4019", xml=result(ROW.format(PAYER, "1.00"), PageNo="1")), Accepted),
        (RETURNED, answer("4019", xml=result(ROW.format(PAYER, "x"), PageNo="1")), Unclear),
        (RETURNED, answer("4019", xml=result(PageNo="2")), Unclear),
        (RETURNED, answer("4017", xml=result(PageNo="1")), Unclear),
        (RETURNED, answer("4019", "YQ9971"), Rejected),
        (RETURNED, answer("4019", "ZZ9999"), Unclear),
        (RETURNED, answer("4019", "ES0200"), Accepted),
        (CODES, answer("4017", xml=result()), Accepted),
        (CODES, answer("4019", xml=result()), Unclear),
        (CODES, answer("4017", "YQ9990"), Rejected),
    ],
)
def test_what_an_answer_means(lookup: Lookup, packet: bytes, kind: type[Outcome]) -> None:
    assert isinstance(codec().looked_up(lookup, reply_to(packet)), kind)


def test_pages_go_on_until_the_bank_says_the_end() -> None:
    row = ROW.format(PAYER, "1.00")
    found = codec().looked_up(
        RETURNED, reply_to(answer("4019", xml=result(row, IsEnd="N", PageNo="1")))
    )
    assert isinstance(found, Accepted)
    assert isinstance(found.result, ReturnedPayments)
    assert found.result.cursor == "2"
    body = codec().prepare_lookup(attrs.evolve(RETURNED, cursor="2"), context()).content.body
    assert b"<PageNo>2</PageNo>" in body
    # A bank that never says it does not keep us for ever.
    empty = codec().looked_up(
        attrs.evolve(RETURNED, cursor="9"), reply_to(answer("4019", xml=result(PageNo="9")))
    )
    assert isinstance(empty, Accepted)
    assert empty.result == ReturnedPayments(())


@pytest.mark.parametrize(
    ("lookup", "says"),
    [
        (attrs.evolve(RETURNED, account=AccountNumber("1")), "not an approved account"),
        (
            attrs.evolve(RETURNED, first_day=BusinessDate(TODAY - dt.timedelta(days=30))),
            "30 days",
        ),
        (attrs.evolve(RETURNED, cursor="x"), "cursor"),
        (attrs.evolve(RETURNED, cursor="0"), "cursor"),
        (attrs.evolve(CODES, keyword="\U00020000"), "GBK"),
        (attrs.evolve(CODES, cursor="2"), "at once"),
    ],
)
def test_what_this_bank_can_t_carry(lookup: Lookup, says: str) -> None:
    with pytest.raises(BodyError, match=says):
        codec().prepare_lookup(lookup, context())
