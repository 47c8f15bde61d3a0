"""The behaviour card (行为卡): what one bank and version does, as data.

The evidence engine, the simulated host's misbehaviour and the conformance tests all read the same
card. A code that is not on the card is unclear. Times are in seconds, spans in days.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import attrs

from fep.adapters import strict


class SignAlgorithm(StrEnum):
    """How a request is signed."""

    RSA_SHA256 = "rsa_sha256"
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017); signature as long as the modulus."""
    ECDSA_SHA256 = "ecdsa_sha256"
    """ECDSA on P-256 with SHA-256; DER SEQUENCE{r, s}."""
    SM2_SM3 = "sm2_sm3"
    """SM2 with SM3 (GM/T 0003, GM/T 0004); DER SEQUENCE{r, s}."""


class Signer(StrEnum):
    """Who signs this bank's trades."""

    FRONT_END = "front_end"
    """The bank's own front-end program; we send unsigned."""
    SIGN_PORT = "sign_port"
    """A signing service of the bank on another port."""
    SLOT = "slot"
    """Our key slot."""
    ADAPTER = "adapter"
    """The adapter itself, all it sends, with a key among the bank's secrets."""


class Protocol(StrEnum):
    """What carries this bank's messages."""

    TCP = "tcp"
    """One connection; requests are under way side by side and answers bear their numbers."""
    HTTP = "http"
    """HTTP/1.1: several connections, one request at a time on each."""
    FOLDER = "folder"
    """Files: ours are put where the bank fetches them, and its own come when it likes."""


class Resend(StrEnum):
    """What the bank does with a reference it already knows."""

    NONE = "none"
    REJECT_DUP = "reject_dup"
    REPLAY = "replay"


class NoRecord(StrEnum):
    """From when "no record" proves that a payment was not executed."""

    NEVER = "never"
    AFTER = "after"
    """From ``no_record_after_s`` after the sending."""
    END_OF_DAY = "end_of_day"
    """From an hour past the end of the bank's day (Asia/Shanghai) of the sending, by our clock."""


@attrs.frozen
class Identity:
    """Which bank and version of its protocol."""

    bank: str
    version: str
    title: str = ""


@attrs.frozen
class Dedupe:
    """The bank's own protection against a payment sent twice."""

    key: str
    length_max: int
    scope: str = ""
    resend: Resend = Resend.NONE
    digits: bool = False
    """The key takes digits only: a payment's reference is ``length_max`` of them."""


@attrs.frozen
class Codes:
    """Return codes by meaning; a code in no list is unclear."""

    ok: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    permission: frozenset[str] = frozenset()
    throttled: frozenset[str] = frozenset()
    duplicate: frozenset[str] = frozenset()
    no_record: frozenset[str] = frozenset()
    unclear: frozenset[str] = frozenset()


@attrs.frozen
class States:
    """The bank's payment states by meaning; a state in no list is unclear."""

    final_ok: frozenset[str] = frozenset()
    final_bad: frozenset[str] = frozenset()
    returned: frozenset[str] = frozenset()
    intermediate: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()


@attrs.frozen
class Inquiry:
    """How the evidence engine asks after a payment whose end is not known."""

    cool_down_s: float = 60.0
    """From an unclear answer to the first status query."""
    accepted_interval_s: float = 30.0
    """From "accepted, in progress" to the first status query."""
    backoff_factor: float = 2.0
    interval_max_s: float = 600.0
    horizon_s: float = 86_400.0
    """Unresolved this long after the sending: alarm, a person must look."""
    no_record: NoRecord = NoRecord.NEVER
    no_record_after_s: float = 0.0
    statement_after: int = 3
    """After so many inquiries that proved nothing the payer's statement is read too; 0 = never."""
    quiet_from: str = ""
    """``HH:MM`` in Shanghai: from then on the bank is asked for no statement and after no payment,
    every day; empty = it never rests."""
    quiet_to: str = ""
    """``HH:MM``: until then; the next day's where it is not later than ``quiet_from``."""


@attrs.frozen
class Throttle:
    """What the bank allows; 0 = no limit known."""

    submit_gap_s: float = 0.0
    query_gap_s: float = 0.0
    concurrent_max: int = 0


@attrs.frozen
class StatementFacts:
    """How statements are paged and cut."""

    rows_per_page: int = 0
    span_days_max: int = 100
    today_separate: bool = False
    fee_mark: str = ""
    shows_reference: bool = False
    """A payment's line bears our reference: a line without one is none of ours."""


@attrs.frozen
class ReturnedFacts:
    """For how long and by which signs a success can come back (退票)."""

    watch_days: float = 2.0
    """How long a success is watched; 0 = not at all."""
    sign: str = ""
    first_look_s: float = 3600.0
    """From a success to the first look at its payer's account."""
    interval_s: float = 14_400.0
    """From one look at an account to the next."""


@attrs.frozen
class BatchFacts:
    """Several payments in one request (批量转账), where the bank has that."""

    rows_max: int = 0
    """Of one batch; a bank's own limit, or where its answers stop telling each row."""
    poll_s: float = 0.0
    """The least time between two questions after one batch; the first waits for it, too."""


@attrs.frozen
class Signing:
    """Who signs, and how."""

    by: Signer = Signer.FRONT_END
    algorithm: SignAlgorithm = SignAlgorithm.RSA_SHA256


@attrs.frozen
class Transport:
    """What carries the messages, and how many connections are held open."""

    protocol: Protocol = Protocol.TCP
    connections: int = 2
    """Of HTTP alone; a bank's own ``connections`` goes before it."""


@attrs.frozen
class Limits:
    """Sizes and times of one exchange."""

    frame_bytes_max: int = 4 * 1024 * 1024
    reply_timeout_s: float = 60.0
    heartbeat_s: float = 30.0
    """2.5 of them must be more than ``reply_timeout_s``: so long a bank may be busy, and silent."""


@attrs.frozen
class BehaviourCard:
    """One bank and version as data."""

    identity: Identity
    dedupe: Dedupe
    codes: Codes = attrs.Factory(Codes)
    states: States = attrs.Factory(States)
    inquiry: Inquiry = attrs.Factory(Inquiry)
    throttle: Throttle = attrs.Factory(Throttle)
    statement: StatementFacts = attrs.Factory(StatementFacts)
    returned: ReturnedFacts = attrs.Factory(ReturnedFacts)
    batch: BatchFacts = attrs.Factory(BatchFacts)
    signing: Signing = attrs.Factory(Signing)
    transport: Transport = attrs.Factory(Transport)
    limits: Limits = attrs.Factory(Limits)


_CONVERTER: Final = strict.converter()


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        both_tables = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[name] = _merge(known, value) if both_tables else value  # type: ignore[arg-type]
    return merged


def card_from_toml(text: str) -> BehaviourCard:
    """Return the card written in a ``card.toml``.

    Raises:
        cattrs.BaseValidationError: a key is unknown, missing or of the wrong kind.
        tomllib.TOMLDecodeError: not TOML.
    """
    return _CONVERTER.structure(tomllib.loads(text), BehaviourCard)


def override(card: BehaviourCard, changes: Mapping[str, Any]) -> BehaviourCard:
    """Return the card with a bank's own ``card = { section = { key = value } }`` laid over it.

    Raises:
        cattrs.BaseValidationError: a key is unknown or of the wrong kind.
    """
    if not changes:
        return card
    return _CONVERTER.structure(_merge(_CONVERTER.unstructure(card), changes), BehaviourCard)
