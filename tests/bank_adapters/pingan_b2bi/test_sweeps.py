"""4052: the bank's own pooling trade, from a child to the parent or back."""

from __future__ import annotations

import datetime as dt
from typing import Any

import attrs
import pytest

from bank_adapters.pingan_b2bi.frames import encode
from fep.adapters.api import Accepted, Rejected, Unclear
from fep.adapters.host import BookAccount, Fault
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Payee,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    StatusQuery,
    Sweep,
)
from tests.bank_adapters.pingan_b2bi.samples import (
    BANK,
    PAYER,
    REF,
    SISTER,
    SISTER_NAME,
    TODAY,
    Bank,
    answer,
    codec,
    context,
    reply_to,
    result,
)

UP = PaymentOrder(SISTER, Payee(PAYER, ""), Cny(1_000_50), sweep=Sweep.UP)
RETURN_AFTER = dt.timedelta(hours=1)
DOWN = PaymentOrder(PAYER, Payee(SISTER, ""), Cny(1_000_50), sweep=Sweep.DOWN)


def pool(**given: Any) -> Bank:
    """Return a bank at which child and parent have money."""
    bank = Bank(**given)
    bank.book.accounts[BANK, SISTER] = BookAccount(BANK, SISTER, SISTER_NAME, Cny(5_000_00))
    return bank


def state(bank: Bank, order: PaymentOrder) -> PaymentState:
    found = bank.ask(StatusQuery(REF, order, TODAY))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    return found.result.state


@pytest.mark.parametrize(("order", "way"), [(UP, b"1"), (DOWN, b"2")])
def test_a_request_names_one_child_and_an_amount(order: PaymentOrder, way: bytes) -> None:
    draft = codec().prepare(order, context())
    assert draft.trade == "4052"
    body = draft.content.body
    for member in (
        b"<ThirdVoucher>" + REF.encode() + b"</ThirdVoucher>",
        b"<AcctNo>" + PAYER.encode() + b"</AcctNo>",
        b"<guiJiAreaOption>2</guiJiAreaOption>",
        b"<subAccountNo>" + SISTER.encode() + b"</subAccountNo>",
        b"<guiJiType>" + way + b"</guiJiType>",
        b"<Amount>1000.50</Amount>",
    ):
        assert body.count(member) == 1, member


@pytest.mark.parametrize("order", [UP, DOWN])
def test_it_moves_the_money_once_and_only_the_query_ends_it(order: PaymentOrder) -> None:
    bank = pool()
    before = {number: bank.book.accounts[BANK, number].balance for number in (PAYER, SISTER)}
    taken = bank.ask(order)
    assert isinstance(taken, Accepted)
    assert not taken.final
    assert isinstance(taken.result, PaymentReceipt)
    assert (taken.result.client_ref, taken.result.amount) == (REF, order.amount)
    assert state(bank, order) is PaymentState.SUCCEEDED
    moved = {number: bank.book.accounts[BANK, number].balance for number in (PAYER, SISTER)}
    assert moved[order.payer] == before[order.payer] - order.amount
    assert moved[order.payee.account] == before[order.payee.account] + order.amount
    again = bank.ask(order)
    assert isinstance(again, Unclear)
    assert again.code == "MA4045"
    assert bank.book.moved == 1


@pytest.mark.parametrize(
    ("fault", "booked", "wanted"),
    [
        (Fault.SILENT_BEFORE_BOOKING, 0, PaymentState.NO_RECORD),
        (Fault.SILENT_AFTER_BOOKING, 1, PaymentState.SUCCEEDED),
        (Fault.UNKNOWN_AFTER_BOOKING, 1, PaymentState.SUCCEEDED),
        (Fault.LANDED, 0, PaymentState.PROCESSING),
        (Fault.RETURNED, 1, PaymentState.RETURNED),
    ],
)
def test_every_fault_of_a_payment_is_one_of_a_sweep(
    fault: Fault, booked: int, wanted: PaymentState
) -> None:
    bank = pool(faults=[fault])
    bank.connection().receive_data(bank.packet(UP))
    assert bank.book.moved == booked
    if fault is Fault.RETURNED:
        bank.clock.moment += RETURN_AFTER
    assert state(bank, UP) is wanted


def test_who_has_not_the_money_is_refused() -> None:
    bank = Bank()
    found = bank.ask(attrs.evolve(UP, amount=Cny(10**12)))
    assert isinstance(found, Rejected)
    assert bank.book.moved == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"guiJiAreaOption": "1"}, "YQ9993"),
        ({"guiJiType": "3"}, "YQ9993"),
        ({"Amount": "0"}, "YQ9993"),
        ({"subAccountNo": PAYER}, "YQ9993"),
        ({"subAccountNo": "88000000000000"}, "2778"),
    ],
)
def test_the_bank_refuses_what_it_does_not_do(changes: dict[str, Any], code: str) -> None:
    bank = Bank()
    good = {
        "ThirdVoucher": REF,
        "AcctNo": PAYER,
        "guiJiAreaOption": "2",
        "subAccountNo": SISTER,
        "guiJiType": "1",
        "Amount": "1.00",
    }
    request = encode({"trade_code": "4052"}, result(**good | changes).encode("gbk"))
    (found,) = bank.connection().receive_data(request)
    assert reply_to(found.data).code == code
    assert bank.book.payments == {}


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (answer("4052", xml=result(ThirdVoucher=REF, Amount="1000.50")), Accepted),
        (answer("4052", xml=result(ThirdVoucher=REF, Amount="1000.51")), Unclear),
        (answer("4052", xml=result(Amount="1000.50")), Unclear),
        (answer("4004", xml=result(ThirdVoucher=REF, Amount="1000.50")), Unclear),
        (answer("4052", "YQ9971"), Unclear),
        (answer("4052", "MA0103"), Unclear),
        (answer("4052", "GW3002"), Unclear),
        (answer("4052", "2778"), Rejected),
    ],
)
def test_what_an_answer_means(packet: bytes, kind: type) -> None:
    assert isinstance(codec().outcome(UP, reply_to(packet)), kind)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (attrs.evolve(UP, payer=AccountNumber("1")), r"child\.account: not an approved account"),
        (attrs.evolve(UP, payee=Payee(AccountNumber("1"), "")), r"parent\.account: not an appr"),
        (attrs.evolve(UP, amount=Cny(10**13)), "amount"),
    ],
)
def test_what_is_refused_before_sending(order: PaymentOrder, says: str) -> None:
    with pytest.raises(BodyError, match=says):
        codec().prepare(order, context())


def test_a_late_answer_is_known_by_its_voucher() -> None:
    told = reply_to(answer("4052", xml=result(ThirdVoucher=REF, Amount="1000.50")))
    assert codec().payment_ref(told) == ClientRef(REF)
