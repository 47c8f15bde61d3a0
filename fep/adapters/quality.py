"""How good an adapter is (质量等级): a fixed list of rules, and what each adapter keeps of them.

An adapter's ``quality.toml`` names every rule once, as ``done``, ``todo`` or ``exempt`` (what the
bank does not have); the latter two say why. Its ``[example]`` has the options and the bank class
that the adapter is tried with. The grade is the highest of which, and of all below
it, every rule is done or exempt.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import attrs

from fep.adapters import strict

FILE: Final = "quality.toml"
"""In the adapter's package."""


class Grade(StrEnum):
    """Of an adapter, lowest first."""

    NONE = "none"
    """Not for money."""
    BRONZE = "bronze"
    """It harms nobody: whatever the bank says, no payment is made twice or believed wrongly."""
    SILVER = "silver"
    """It does the daily work: pays, asks and reads statements, against a host that misbehaves."""
    GOLD = "gold"
    """It does all that the bank offers of the canonical operations."""
    PLATINUM = "platinum"
    """It was tried at the bank."""


class Status(StrEnum):
    """Of one rule in one adapter."""

    DONE = "done"
    TODO = "todo"
    EXEMPT = "exempt"


RULES: Final[Mapping[Grade, Mapping[str, str]]] = {
    Grade.BRONZE: {
        "framing_any_split": "any cut of the bytes gives the same replies",
        "framing_bounded_memory": "a frame has a size limit, and no more is held",
        "garbage_never_raises": "any bytes are replies that prove nothing, or a typed error",
        "parser_hardened": "no document type, no entities, no network, no huge tree",
        "unlisted_codes_unclear": "a code that the card does not list proves nothing",
        "duplicate_never_fails": "a known reference is never taken for a refusal",
        "no_record_by_card": "no record is told as such, and only the card says what it proves",
        "correlation_echoed": "an answer is matched with its request and no other",
        "status_checks_facts": "amount, payer and payee of a status answer are compared",
        "refused_before_sending": "charset, lengths and accounts are checked before a byte leaves",
        "secrets_not_shown": "no secret stands in a repr, a log or an error",
        "host_books_once": "the simulated bank keeps the double-entry book and checks signatures",
        "host_never_raises": "any bytes are answered or hung up on by the simulated bank",
    },
    Grade.SILVER: {
        "probe": "the bank's own harmless request is the heartbeat",
        "signature": "payments are signed as the bank wants",
        "transfer": "single payments, within the bank and to others",
        "transfer_status": "what became of a payment, also of earlier days",
        "balance": "available and book balance",
        "statement": "lines of today and of earlier days, all pages",
        "statement_reversals": "a line that takes another back is told as such",
        "host_common_faults": "the simulated bank does every fault that all banks have",
        "samples": "known messages are printed and read byte for byte",
    },
    Grade.GOLD: {
        "batch_transfer": "several payments in one request, and their states",
        "returned_payments": "the bank's own query for payments that came back (退票)",
        "bank_code_lookup": "CNAPS codes (联行号)",
        "pool_sweep": "the bank's own pooling (资金归集)",
        "receipt": "receipts (回单)",
        "host_bank_faults": "the simulated bank does every fault listed for this bank",
    },
    Grade.PLATINUM: {
        "live_bank": "tried against the bank, or its test environment",
    },
}
"""By grade: name and what it asks."""

NAMES: Final = tuple(name for rules in RULES.values() for name in rules)


@attrs.frozen
class Rule:
    """One rule in one adapter."""

    name: str
    grade: Grade
    asks: str
    status: Status
    comment: str


@attrs.frozen
class Example:
    """What an adapter is opened with where it is tried and no enterprise is there."""

    options: Mapping[str, Any] = attrs.Factory(dict)
    bank_class: str = ""
    secrets: Mapping[str, str] = attrs.Factory(dict)
    """Those that must have a form, such as keys; they are known to the simulated bank alone."""


@attrs.frozen
class Quality:
    """What an adapter keeps of the rules, in their order."""

    rules: tuple[Rule, ...]
    example: Example

    @property
    def grade(self) -> Grade:
        """The highest grade that it has whole."""
        reached = Grade.NONE
        for grade in RULES:
            if any(one.status is Status.TODO for one in self.rules if one.grade is grade):
                break
            reached = grade
        return reached


def read(text: str) -> Quality:
    """Return what a ``quality.toml`` says.

    Raises:
        ValueError: not TOML, a rule is unknown, missing or without its reason; all are named.
    """
    table = tomllib.loads(text)
    given, example = table.get("rules"), table.get("example", {})
    if not set(table) <= {"rules", "example"} or not isinstance(given, dict):
        msg = f"{FILE} has the tables [rules] and [example], and no other"
        raise ValueError(msg)
    faults = [f"{name} is no rule" for name in given if name not in NAMES]
    found = []
    for grade, rules in RULES.items():
        for name, asks in rules.items():
            status, comment, fault = _entry(given.get(name))
            if fault:
                faults.append(f"{name} {fault}")
            found.append(Rule(name, grade, asks, status, comment))
    if faults:
        msg = f"{FILE}: {'; '.join(faults)}"
        raise ValueError(msg)
    return Quality(tuple(found), strict.converter().structure(example, Example))


def _entry(entry: object) -> tuple[Status, str, str]:
    """Return status, comment and what is wrong with an entry."""
    if entry is None:
        return Status.TODO, "", "is missing"
    if not isinstance(entry, dict) or not set(entry) <= {"status", "comment"}:
        return Status.TODO, "", "must be { status = …, comment = … }"
    comment = entry.get("comment", "")
    try:
        status = Status(str(entry.get("status")))
    except ValueError:
        return Status.TODO, "", f"has a status that is not one of {', '.join(Status)}"
    if not isinstance(comment, str) or (status is not Status.DONE and not comment.strip()):
        return status, "", f"is {status}, and its comment does not say why"
    return status, comment, ""
