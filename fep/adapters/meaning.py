"""What a bank's codes and states mean by its card; in no list, they prove nothing."""

from __future__ import annotations

from fep.adapters.api import Refusal, Rejected, Unclear
from fep.adapters.card import Codes, States
from fep.domain.order import PaymentState


def refused(codes: Codes, code: str, said: str) -> Rejected | Unclear:
    """Return what a code means in answer to a query, if it is not that all went well."""
    if code in codes.throttled:
        return Rejected(code, said, Refusal.THROTTLED)
    if code in codes.permission:
        return Rejected(code, said, Refusal.PERMISSION)
    return Rejected(code, said) if code in codes.refused else Unclear(code, said)


def payment_refused(codes: Codes, code: str, said: str) -> Rejected | Unclear:
    """Return what such a code means in answer to a payment.

    "Too often" may have been said of a payment that was taken: it is unclear.
    """
    return Unclear(code, said) if code in codes.throttled else refused(codes, code, said)


def payment_state(states: States, state: str) -> PaymentState:
    """Return what a payment's state means; one that is on no list is unknown."""
    # In this order the more careful reading wins should a bank's own card list a state twice.
    if state in states.unknown:
        return PaymentState.UNKNOWN
    if state in states.intermediate:
        return PaymentState.PROCESSING
    if state in states.returned:
        return PaymentState.RETURNED
    if state in states.final_bad:
        return PaymentState.REJECTED
    return PaymentState.SUCCEEDED if state in states.final_ok else PaymentState.UNKNOWN
