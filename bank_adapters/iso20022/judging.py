"""What all that a bank said of one payment proves together. Pure.

Reports contradict each other seldom and never harmlessly: then nothing is proved. A rejection that
only says that the payment is known already proves nothing either. A booked line is the end of a
payment, and a line or message that returns it goes before that.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from bank_adapters.iso20022.facts import (
    BOOKED,
    CURRENCIES,
    Amount,
    Line,
    Report,
    Returned,
    Status,
    reports,
    returns,
    statuses,
)
from bank_adapters.iso20022.messages import Message
from fep.adapters.card import BehaviourCard
from fep.domain.clock import BusinessDate, business_date
from fep.domain.order import PaymentOrder, PaymentState, PaymentStatus

MISMATCH: Final = "MISMATCH"
"""Our code: the bank tells another amount or account under our reference."""
CONTRADICTION: Final = "CONTRADICTION"
"""Our code: two reports can't both be true."""
PENDING: Final = "PDNG"
RETURNED_NOT_ALL: Final = "RETURNED_NOT_ALL"
"""Our code: another amount came back than was paid."""
DEBIT_TAKES_BACK: Final = "DEBIT_TAKES_BACK"
"""Our code: a debit under our reference takes a credit back, such as a return that was none."""


@attrs.frozen
class _Sign:
    """One thing the bank said of a payment."""

    state: PaymentState
    code: str
    message: str = ""
    created: dt.datetime | None = None
    bank_ref: str = ""
    booked_on: BusinessDate | None = None
    returned_on: BusinessDate | None = None
    counts: bool = True
    """False: it only says that the payment is known."""


def judge(
    card: BehaviourCard, order: PaymentOrder, reference: str, messages: Iterable[Message]
) -> PaymentStatus:
    """Return what these messages, in the order in which they came, prove of a payment.

    Raises:
        ValueError: what is said of it can't be read.
    """
    signs: list[_Sign] = []
    for message in messages:
        if message.kind == "pain.002":
            signs += [_of_status(card, order, one) for one in statuses(message, reference)]
        elif message.kind == "pacs.004":
            signs += [_of_return(order, one) for one in returns(message, reference)]
        else:
            signs += _of_reports(order, reference, reports(message))
    return _together(signs)


def _together(signs: Sequence[_Sign]) -> PaymentStatus:
    if not signs:
        return PaymentStatus(PaymentState.NO_RECORD)
    ordered = _by_time(signs)
    bank_ref = next((one.bank_ref for one in ordered if one.bank_ref), "")

    def last(*states: PaymentState) -> _Sign | None:
        return next((one for one in reversed(ordered) if one.state in states), None)

    def told(one: _Sign, state: PaymentState | None = None) -> PaymentStatus:
        booked = next((sign.booked_on for sign in ordered if sign.booked_on), None)
        return PaymentStatus(
            state or one.state,
            one.code,
            one.message,
            bank_ref,
            booked_on=booked,
            returned_on=one.returned_on,
        )

    stops = {MISMATCH, RETURNED_NOT_ALL, DEBIT_TAKES_BACK}
    wrong = next((one for one in ordered if one.code in stops), None)
    if wrong is not None:
        return told(wrong, PaymentState.UNKNOWN)
    if (back := last(PaymentState.RETURNED)) is not None:
        return told(back)
    done, refused = last(PaymentState.SUCCEEDED), last(PaymentState.REJECTED)
    if done is not None and refused is not None:
        return _contradiction(f"both {done.code} and {refused.code} were told", bank_ref)
    if done is not None:
        return told(done)
    underway = last(PaymentState.PROCESSING)
    if refused is not None:
        later = [one for one in ordered[ordered.index(refused) + 1 :] if one.counts]
        if later:
            return _contradiction(f"{later[-1].code} was told after {refused.code}", bank_ref)
        return told(refused)
    return told(underway or ordered[-1])


def _contradiction(said: str, bank_ref: str) -> PaymentStatus:
    return PaymentStatus(PaymentState.UNKNOWN, CONTRADICTION, said, bank_ref)


def _by_time(signs: Sequence[_Sign]) -> list[_Sign]:
    """Return the signs in the bank's own order where all bear its time, else as they came."""
    if any(one.created is None for one in signs):
        return list(signs)
    return sorted(signs, key=lambda one: one.created or dt.datetime.min.replace(tzinfo=dt.UTC))


def _of_status(card: BehaviourCard, order: PaymentOrder, one: Status) -> _Sign:
    states = card.states
    said = " ".join(filter(None, (" ".join(one.reasons), one.said)))
    if difference := _difference(order, one):
        said = f"the bank's payment of this reference has another {difference}"
        return _Sign(PaymentState.UNKNOWN, MISMATCH, said, one.created)
    state = PaymentState.UNKNOWN
    if one.code in states.final_ok:
        state = PaymentState.SUCCEEDED
    elif one.code in states.intermediate:
        state = PaymentState.PROCESSING
    elif one.code in states.final_bad:
        state = PaymentState.REJECTED
    elif one.code in states.returned:
        state = PaymentState.RETURNED
    known = [why for why in (*one.reasons, *one.reasons_above) if why in card.codes.duplicate]
    if state is PaymentState.REJECTED and known:
        # It speaks of the second message, at whatever level; the first may have been done.
        said = said or " ".join(known)
        return _Sign(PaymentState.UNKNOWN, known[0], said, one.created, counts=False)
    good = state in {PaymentState.SUCCEEDED, PaymentState.PROCESSING}
    if good and states.final_bad & set(one.above):
        said = f"{one.code} within {' '.join(one.above)}"
        return _Sign(PaymentState.UNKNOWN, CONTRADICTION, said, one.created)
    # The reason says more than the state does, and is what people look up.
    code = one.reasons[0] if state is PaymentState.REJECTED and one.reasons else one.code
    return _Sign(state, code, said, one.created, one.bank_ref)


def _difference(order: PaymentOrder, one: Status) -> str:
    """Return which of the facts that are told is not the order's, or empty."""
    if not _is_amount(order, one.amount):
        return "amount"
    if one.payee not in {"", order.payee.account}:
        return "payee"
    return "payer" if one.payer not in {"", order.payer} else ""


def _is_amount(order: PaymentOrder, amount: Amount | None) -> bool:
    return amount is None or (amount.value == order.amount and amount.currency in CURRENCIES)


def _of_reports(order: PaymentOrder, reference: str, found: Iterable[Report]) -> list[_Sign]:
    return [
        _of_line(order, report, line)
        for report in found
        if report.account in {"", order.payer}
        for line in report.lines
        if line.is_of(reference)
    ]


def _of_line(order: PaymentOrder, report: Report, line: Line) -> _Sign:
    day = business_date(line.booked_at)
    is_booked = line.state == BOOKED or (not line.state and report.kind == "camt.053")
    same = _is_amount(order, line.amount)
    if line.is_debit and line.takes_back:
        # Neither the payment nor its return: money went out (again) for what had come in.
        said = "a debit of this reference is said to take an earlier line back"
        return _Sign(PaymentState.UNKNOWN, DEBIT_TAKES_BACK, said, line.created)
    if not line.is_debit:
        if not is_booked:
            return _Sign(PaymentState.UNKNOWN, line.state, "a return is not booked", line.created)
        if not same:
            said = f"{line.amount.value} came back of {order.amount}"
            return _Sign(PaymentState.UNKNOWN, RETURNED_NOT_ALL, said, line.created)
        if not line.takes_back:
            said = "money came in under this reference, and is not said to be returned"
            return _Sign(PaymentState.UNKNOWN, "CRDT", said, line.created)
        said = " ".join(filter(None, (line.return_reason, line.return_said)))
        return _Sign(
            PaymentState.RETURNED,
            line.return_reason or "RVSL",
            said,
            line.created,
            returned_on=day,
        )
    if not same or line.counterparty not in {"", order.payee.account}:
        said = "a line of this reference has another amount or payee"
        return _Sign(PaymentState.UNKNOWN, MISMATCH, said, line.created)
    if is_booked:
        return _Sign(PaymentState.SUCCEEDED, BOOKED, "", line.created, line.bank_ref, day)
    state = PaymentState.PROCESSING if line.state == PENDING else PaymentState.UNKNOWN
    return _Sign(state, line.state, "", line.created, line.bank_ref)


def _of_return(order: PaymentOrder, one: Returned) -> _Sign:
    if not _is_amount(order, one.amount):
        said = f"another amount than {order.amount} came back"
        return _Sign(PaymentState.UNKNOWN, RETURNED_NOT_ALL, said, one.created)
    said = " ".join(filter(None, (one.reason, one.said)))
    return _Sign(PaymentState.RETURNED, one.reason, said, one.created, returned_on=one.day)
