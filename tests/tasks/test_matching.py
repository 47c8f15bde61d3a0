"""What a statement proves of a payment: never by guess, whatever else stands in it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.clock import SHANGHAI, business_date
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import Direction, StatementEntry
from fep.tasks.matching import (
    DAYS_AFTER_MAX,
    EARLIER_MAX,
    Absent,
    Ambiguous,
    Found,
    Match,
    Payment,
    Returns,
    comes_back,
    find_payment,
)

pytestmark = pytest.mark.req("LAND-51", "FEP-25")

PAYER, PAYEE, OTHER = (AccountNumber(f"9900000000010{n}") for n in (1, 2, 3))
SENT = dt.datetime(2026, 3, 2, 10, 0, tzinfo=SHANGHAI)
DAY = dt.timedelta(days=1)
MINE = Payment(ClientRef("F1"), PAYER, PAYEE, Cny(1250), SENT)
KNOWN = attrs.evolve(MINE, bank_ref="B1")


def rival(name: str = "F2", **changes: Any) -> Payment:
    """Return another payment of ours, like ours but for the changes."""
    return attrs.evolve(MINE, client_ref=ClientRef(name), **changes)


def line(**changes: Any) -> StatementEntry:
    """Return a line that could be our payment's, without any reference."""
    plain = StatementEntry(
        bank_ref="",
        booked_at=SENT + dt.timedelta(minutes=1),
        direction=Direction.DEBIT,
        amount=MINE.amount,
        counterparty_account=PAYEE,
    )
    return attrs.evolve(plain, **changes)


def find(
    payment: Payment, entries: Sequence[StatementEntry], others: Sequence[Payment] = ()
) -> Match:
    return find_payment(payment, entries, others)


def returned(payment: Payment, entries: Sequence[StatementEntry]) -> Match:
    return Returns.among(entries).find(payment)


def may_be_back(payment: Payment, entries: Sequence[StatementEntry]) -> bool:
    return Returns.among(entries).may_hold(payment)


# -- what is found ----------------------------------------------------------------------------


def test_a_line_is_found_by_the_banks_reference_then_by_ours_then_by_what_it_is() -> None:
    by_bank = line(bank_ref="B1", counterparty_account="", client_ref="")
    by_ours = line(bank_ref="X9", client_ref="F1", counterparty_account="")
    plain = line()
    assert find(KNOWN, [plain, by_ours, by_bank]) == Found(by_bank, "the bank's reference")
    assert find(KNOWN, [plain, by_ours]) == Found(by_ours, "our reference")
    assert find(MINE, [plain]) == Found(plain, "amount, counterparty and time")
    assert find(MINE, []) == Absent()


@pytest.mark.parametrize(
    "changes",
    [
        {"direction": Direction.CREDIT},
        {"fee": True},
        {"reversal": True},
        {"amount": Cny(1249)},
    ],
    ids=["a credit", "a fee", "a reversal", "another amount"],
)
def test_what_is_no_debit_of_the_amount_is_never_it_whatever_reference_it_bears(
    changes: dict[str, Any],
) -> None:
    for reference in ({"bank_ref": "B1"}, {"client_ref": "F1"}, {}):
        assert find(KNOWN, [line(**changes, **reference)]) == Absent()


def test_a_fee_beside_its_payment_does_not_hide_it() -> None:
    fee = line(bank_ref="B1", amount=Cny(50), fee=True)
    same_size = line(bank_ref="B1", fee=True)
    paid = line(bank_ref="B1")
    assert find(KNOWN, [fee, same_size, paid]) == Found(paid, "the bank's reference")


@pytest.mark.parametrize(
    "changes",
    [
        {"counterparty_account": OTHER},
        {"counterparty_account": ""},
        {"client_ref": "F2"},
        {"booked_at": SENT - EARLIER_MAX - dt.timedelta(seconds=1)},
        {"booked_at": SENT + (DAYS_AFTER_MAX + 1) * DAY},
        {"booked_at": dt.datetime(2026, 3, 1, tzinfo=SHANGHAI)},
    ],
    ids=[
        "another payee",
        "no payee",
        "named as another",
        "before the sending",
        "too late",
        "the day before, without a time",
    ],
)
def test_a_line_without_a_reference_must_fit_in_all_it_says(changes: dict[str, Any]) -> None:
    assert find(MINE, [line(**changes)]) == Absent()


@pytest.mark.parametrize(
    "booked_at",
    [
        SENT - EARLIER_MAX,
        SENT + DAYS_AFTER_MAX * DAY,
        dt.datetime(2026, 3, 2, tzinfo=SHANGHAI),
    ],
    ids=["the bank's clock is behind", "over a week-end", "a day without a time"],
)
def test_a_line_may_be_booked_about_then(booked_at: dt.datetime) -> None:
    one = line(booked_at=booked_at)
    assert find(MINE, [one]) == Found(one, "amount, counterparty and time")


def test_where_references_are_shown_a_line_without_one_is_not_ours() -> None:
    """As when somebody pays the same by hand in e-banking while ours was never executed."""
    named = line(client_ref="F1")
    for entries, expected in (
        ([line()], Absent()),
        ([line(), named], Found(named, "our reference")),
    ):
        assert find_payment(MINE, entries, [], by_reference_only=True) == expected


# -- what is a guess --------------------------------------------------------------------------


def test_two_lines_prove_nothing() -> None:
    for changes in ({"bank_ref": "B1"}, {"client_ref": "F1"}, {}):
        two = [line(**changes), line(**changes, purpose="again")]
        assert isinstance(find(KNOWN, two), Ambiguous)
        assert isinstance(find(KNOWN, [two[0], two[0]]), Ambiguous)


@pytest.mark.parametrize(
    "other",
    [
        rival(),
        rival(sent_at=SENT + (DAYS_AFTER_MAX + 1) * DAY),
        rival(sent_at=SENT - (DAYS_AFTER_MAX + 1) * DAY),
        rival(payer=PAYEE, payee=PAYER),
        rival(bank_ref="B7"),
    ],
    ids=["same day", "days later", "days before", "the other way", "its line is not among these"],
)
def test_a_line_that_fits_two_payments_proves_nothing_of_either(other: Payment) -> None:
    assert isinstance(find(MINE, [line()], [other]), Ambiguous)
    assert isinstance(find(MINE, [line()], [other, MINE]), Ambiguous)


@pytest.mark.parametrize(
    "other",
    [
        rival(amount=Cny(1251)),
        rival(payee=OTHER),
        rival(sent_at=SENT + (DAYS_AFTER_MAX + 2) * DAY),
        MINE,
    ],
    ids=["amount", "payee", "long after", "itself"],
)
def test_another_payment_that_could_not_be_it_does_not_count(other: Payment) -> None:
    one = line()
    assert find(MINE, [one], [other]) == Found(one, "amount, counterparty and time")


def test_a_rival_with_a_line_of_its_own_takes_no_other() -> None:
    own = line(bank_ref="B7")
    left = line()
    assert find(MINE, [own, left], [rival(bank_ref="B7")]) == Found(
        left, "amount, counterparty and time"
    )
    assert find(MINE, [own], [rival(bank_ref="B7")]) == Absent()
    by_ours = line(client_ref="F2")
    assert find(MINE, [by_ours, left], [rival()]) == Found(left, "amount, counterparty and time")


def test_a_payment_whose_bank_reference_is_known_is_no_line_with_another() -> None:
    assert find(KNOWN, [line(bank_ref="B9")]) == Absent()
    one = line()
    assert find(KNOWN, [one]) == Found(one, "amount, counterparty and time")


def test_a_bank_reference_that_two_of_ours_bear_proves_nothing() -> None:
    assert isinstance(find(KNOWN, [line(bank_ref="B1")], [rival(bank_ref="B1")]), Ambiguous)


def test_what_comes_back_of_a_payment_to_us_is_not_our_payment() -> None:
    """The payer's bank takes a payment to us back: a debit to the one we were about to pay."""
    theirs = rival(payer=PAYEE, payee=PAYER, bank_ref="B7")
    assert find(MINE, [line(bank_ref="B7")], [theirs]) == Absent()


# -- what comes back --------------------------------------------------------------------------


def back(**changes: Any) -> StatementEntry:
    plain = line(direction=Direction.CREDIT, bank_ref="B1", booked_at=SENT + DAY)
    return attrs.evolve(plain, **changes)


@pytest.mark.req("FEP-25")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"counterparty_account": ""},
        {"bank_ref": "X", "client_ref": "F1", "counterparty_account": OTHER},
        {"direction": Direction.DEBIT, "reversal": True},
    ],
    ids=["returned", "from a suspense account", "by our reference", "reversed"],
)
def test_a_line_with_its_reference_that_puts_money_back_is_its_return(
    changes: dict[str, Any],
) -> None:
    entry = back(**changes)
    assert returned(KNOWN, [line(bank_ref="B1"), entry]) == Found(
        entry, "its reference on a line that takes it back"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"fee": True},
        {"amount": Cny(1249)},
        {"direction": Direction.DEBIT},
        {"bank_ref": ""},
        {"bank_ref": "B9"},
        {"client_ref": "F2"},
        {"counterparty_account": OTHER},
    ],
    ids=["fee", "amount", "debit", "no reference", "another", "named as another", "a stranger's"],
)
def test_any_other_line_is_not_its_return(changes: dict[str, Any]) -> None:
    assert returned(KNOWN, [back(**changes)]) == Absent()


def test_without_a_bank_reference_an_empty_one_is_not_it() -> None:
    assert returned(MINE, [back(bank_ref="")]) == Absent()


def test_two_lines_that_take_it_back_are_for_a_person() -> None:
    assert isinstance(returned(KNOWN, [back(), back()]), Ambiguous)


def test_a_line_that_only_could_be_its_return_lets_the_bank_be_asked() -> None:
    assert may_be_back(MINE, [back(bank_ref="")])
    assert may_be_back(MINE, [back(bank_ref="X", counterparty_account=OTHER)])
    for changes in (
        {"client_ref": "F2"},
        {"fee": True},
        {"amount": Cny(1)},
        {"booked_at": SENT - 2 * DAY},
        {"direction": Direction.DEBIT},
    ):
        assert not may_be_back(MINE, [back(**changes)])


# -- whatever stands in a statement -----------------------------------------------------------

ACCOUNTS = st.sampled_from([PAYER, PAYEE, OTHER])
AMOUNTS = st.sampled_from([Cny(1250), Cny(1251)])
BANK_REFS = st.sampled_from(["", "B1", "B2", "B3"])
CLIENT_REFS = st.sampled_from(["", "F1", "F2", "F3"])
MOMENTS = st.integers(-6 * 24, 6 * 24).map(lambda hours: SENT + dt.timedelta(hours=hours))
ENTRIES = st.lists(
    st.builds(
        StatementEntry,
        bank_ref=BANK_REFS,
        booked_at=MOMENTS,
        direction=st.sampled_from(Direction),
        amount=AMOUNTS,
        counterparty_account=st.sampled_from([PAYEE, PAYEE, OTHER, ""]),
        client_ref=CLIENT_REFS,
        fee=st.sampled_from([False, False, False, True]),
        reversal=st.sampled_from([False, False, False, True]),
    ),
    max_size=6,
)
COMING = ENTRIES.map(
    lambda lines: [attrs.evolve(one, direction=Direction.CREDIT, fee=False) for one in lines]
)
"""Such lines that all may be returns."""
PAYMENTS = st.builds(
    Payment,
    client_ref=st.sampled_from([ClientRef("F1"), ClientRef("F2"), ClientRef("F3")]),
    payer=ACCOUNTS,
    payee=ACCOUNTS,
    amount=AMOUNTS,
    sent_at=MOMENTS,
    bank_ref=BANK_REFS,
)
RIVALS = st.lists(PAYMENTS, max_size=3)


@given(PAYMENTS, ENTRIES, RIVALS, st.booleans(), st.randoms())
def test_the_order_of_lines_and_payments_changes_nothing(
    payment: Payment, entries: list[StatementEntry], others: list[Payment], only: bool, rng: Any
) -> None:
    first = find_payment(payment, entries, others, by_reference_only=only)
    back_by = returned(payment, entries)
    shuffled, mixed = list(entries), list(others)
    rng.shuffle(shuffled)
    rng.shuffle(mixed)
    assert find_payment(payment, shuffled, mixed, by_reference_only=only) == first
    assert returned(payment, shuffled) == back_by


@given(PAYMENTS, ENTRIES, RIVALS, st.booleans())
def test_what_is_found_is_one_line_of_the_payments_own(
    payment: Payment, entries: list[StatementEntry], others: list[Payment], only: bool
) -> None:
    match = find_payment(payment, entries, others, by_reference_only=only)
    if not isinstance(match, Found):
        return
    entry = match.entry
    assert sum(one is entry for one in entries) == 1
    assert entry.direction is Direction.DEBIT
    assert not entry.fee
    assert not entry.reversal
    assert entry.amount == payment.amount
    by_bank = bool(payment.bank_ref) and entry.bank_ref == payment.bank_ref
    by_ours = entry.client_ref == payment.client_ref
    if only:
        assert by_bank or by_ours
    if not by_bank and not by_ours:
        # Inferred: it names nobody, and nobody else of ours could be it.
        assert entry.client_ref == ""
        assert entry.counterparty_account == payment.payee
        assert abs((business_date(entry.booked_at) - business_date(payment.sent_at)).days) <= 3
        assert entry.bank_ref not in {one.bank_ref for one in others if one.bank_ref}


@given(PAYMENTS, ENTRIES, RIVALS)
def test_a_second_candidate_is_never_passed_over(
    payment: Payment, entries: list[StatementEntry], others: list[Payment]
) -> None:
    """The same line twice, or the same payment under another name: then nothing is found."""
    match = find_payment(payment, entries, others)
    if not isinstance(match, Found):
        return
    assert not isinstance(find_payment(payment, [*entries, match.entry], others), Found)
    twin = attrs.evolve(payment, client_ref=ClientRef("F9"))
    again = find_payment(payment, entries, [*others, twin])
    if match.by == "our reference":
        assert again == match
    else:
        assert isinstance(again, Ambiguous)


@given(PAYMENTS, ENTRIES, RIVALS)
def test_the_banks_reference_beats_everything(
    payment: Payment, entries: list[StatementEntry], others: list[Payment]
) -> None:
    payment = attrs.evolve(payment, bank_ref="OURS")
    own = line(amount=payment.amount, bank_ref="OURS", counterparty_account="", client_ref="")
    assert find_payment(payment, [*entries, own], others) == Found(own, "the bank's reference")


@given(PAYMENTS, ENTRIES)
def test_a_return_bears_the_payments_own_reference(
    payment: Payment, entries: list[StatementEntry]
) -> None:
    match = returned(payment, entries)
    if isinstance(match, Found):
        entry = match.entry
        assert comes_back(entry)
        assert not entry.fee
        assert entry.amount == payment.amount
        by_bank = bool(payment.bank_ref) and entry.bank_ref == payment.bank_ref
        assert by_bank or entry.client_ref == payment.client_ref
        assert may_be_back(payment, entries) or entry.booked_at < payment.sent_at
    if returned(payment, entries) != Absent():
        assert any(comes_back(entry) for entry in entries)


def walked(payment: Payment, entries: Sequence[StatementEntry]) -> tuple[int, bool]:
    """Return how many lines take a payment back, and whether one might, by reading them all."""
    named, might = 0, False
    since = business_date(payment.sent_at - EARLIER_MAX)
    for entry in entries:
        if entry.fee or entry.amount != payment.amount:
            continue
        if not entry.reversal and entry.direction is not Direction.CREDIT:
            continue
        if entry.client_ref:
            named += entry.client_ref == payment.client_ref
        elif payment.bank_ref and entry.bank_ref == payment.bank_ref:
            named += entry.counterparty_account in ("", payment.payee)
        is_ours = entry.client_ref in ("", payment.client_ref)
        might |= is_ours and business_date(entry.booked_at) >= since
    return named, might


NAMELESS = PAYMENTS.map(
    lambda one: attrs.evolve(one, client_ref=ClientRef(""), payee=AccountNumber(""))
)


@given(st.lists(PAYMENTS | NAMELESS, min_size=1, max_size=4), ENTRIES | COMING)
def test_lines_that_are_laid_out_tell_what_reading_them_all_tells(
    payments: list[Payment], entries: list[StatementEntry]
) -> None:
    returns = Returns.among(entries)
    assert returns.amounts == sorted({one.amount for one in entries if comes_back(one)})
    for payment in payments:
        named, might = walked(payment, entries)
        assert returns.may_hold(payment) == might
        match returns.find(payment):
            case Found(entry=entry):
                assert named == 1
                assert walked(payment, [entry])[0] == 1
                assert any(entry is one for one in entries)
            case Ambiguous(why=why):
                assert named > 1
                assert why.startswith(f"{named} lines fit ")
            case Absent():
                assert named == 0
