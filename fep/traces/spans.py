"""What becomes which span, and how spans are written (OTLP, as JSON). Pure.

A trace holds what is in ``docs/traces.md`` and nothing else: no amount, no account, no name, no
text of a bank or of a cause.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final

import attrs
import orjson

from fep.domain.clock import from_text, to_text
from fep.domain.ids import BankName, TaskId
from fep.domain.order import Kind
from fep.logs import masked
from fep.tasks.figures import Exchange
from fep.tasks.state import FINAL, State
from fep.tasks.tracing import Step

TRACE_BYTES: Final = 16
SPAN_BYTES: Final = 8
PHASES_MAX: Final = 200
"""Of one trace; of more, those in the middle are left out."""
POINTS_MAX: Final = 100
"""Of one phase: the inquiries in it."""
TEXT_CHARS_MAX: Final = 200
RANDOM_BITS: Final = 56
"""The last bits of a trace's id, by which samplers choose (W3C Trace Context, level 2)."""
SCOPE: Final = "fep"
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_ENDS: Final = frozenset(state.value for state in FINAL)
_WAITS_FOR_BANK: Final = frozenset({State.SENDING.value, State.ACCEPTED.value, State.UNKNOWN.value})

Span = dict[str, Any]


class SpanKind(IntEnum):
    """As OTLP numbers them."""

    INTERNAL = 1
    CLIENT = 3


class Status(IntEnum):
    """As OTLP numbers them."""

    UNSET = 0
    OK = 1
    ERROR = 2


STATUS: Final[dict[State, Status]] = {
    State.SUCCEEDED: Status.OK,
    State.REJECTED: Status.ERROR,
    State.RETURNED: Status.ERROR,
    State.FAILED: Status.ERROR,
    State.EXPIRED: Status.ERROR,
    State.CANCELLED: Status.UNSET,
}
"""What the end of a task is as the status of its trace."""


@attrs.frozen
class Ended:
    """A task is at its end, or came back after it."""

    seq: int
    trace: bytes
    task_id: TaskId
    bank: BankName
    kind: Kind
    slot: str
    state: State
    bank_code: str
    offers: int
    inquiries: int
    began: dt.datetime
    at: dt.datetime


@attrs.frozen
class Signed:
    """A slot signed, or could not."""

    trace: bytes
    task_id: TaskId
    bank: BankName
    slot: str
    code: str
    """Why it could not; empty: it did."""
    began: dt.datetime
    at: dt.datetime


@attrs.frozen
class Asked:
    """A request to a bank ended."""

    trace: bytes
    task_id: TaskId
    bank: BankName
    asked: str
    how: Exchange
    began: dt.datetime
    at: dt.datetime


Note = Ended | Signed | Asked


def trace_id(enterprise: str, task_id: TaskId) -> bytes:
    """Return the id of a task's trace: the same in each process, on each machine."""
    text = f"fep trace\n{enterprise}\n{task_id}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:TRACE_BYTES]


def threshold_of(sample: float) -> int:
    """Return what the last bits of a sampled trace's id are not below.

    Args:
        sample: the share of traces, from 0 to 1.
    """
    return round((1.0 - sample) * (1 << RANDOM_BITS))


def is_sampled(trace: bytes, threshold: int) -> bool:
    """Say whether a trace is among the chosen; every part of one is, or none."""
    return int.from_bytes(trace[-RANDOM_BITS // 8 :], "big") >= threshold


def spans_of(note: Note, chain: Sequence[Step] = ()) -> list[Span]:
    """Return the spans of one note.

    Args:
        note: what happened.
        chain: of a task at its end: its events, oldest first.
    """
    match note:
        case Signed():
            return [_of_signature(note)]
        case Asked():
            return [_of_request(note)]
        case Ended(state=State.RETURNED):
            span = _child(note, "returned", note.at, note.at)
            span["status"] = _status(Status.ERROR, State.RETURNED.value)
            return [span]
        case Ended():
            return [_root(note), *_phases(note, chain)]


def _of_signature(note: Signed) -> Span:
    more = {"fep.slot": note.slot}
    if note.code:
        more["fep.code"] = note.code
    span = _child(note, "sign", note.began, note.at, more)
    if note.code:
        span["status"] = _status(Status.ERROR, note.code)
    return span


def _of_request(note: Asked) -> Span:
    more = {"fep.asked": note.asked, "fep.result": note.how.value}
    span = _child(note, "request", note.began, note.at, more)
    span["kind"] = SpanKind.CLIENT
    if note.how is not Exchange.ANSWERED:
        span["status"] = _status(Status.ERROR, note.how.value)
    return span


def _root(note: Ended) -> Span:
    more: dict[str, str | int] = {
        "fep.kind": note.kind.value,
        "fep.slot": note.slot,
        "fep.state": note.state.value,
        "fep.bank_code": note.bank_code,
        "fep.offers": note.offers,
        "fep.inquiries": note.inquiries,
    }
    status = STATUS[note.state]
    began, ended = _as_stored(note.began), _as_stored(note.at)
    return {
        **_span(note, note.kind.value, began, ended, more),
        "spanId": _root_id(note.trace),
        "status": _status(status, note.state.value if status is Status.ERROR else ""),
    }


def _phases(note: Ended, chain: Sequence[Step]) -> list[Span]:
    """Return one span for each stay in a state, in order; what comes after the end is left out."""
    stays: list[list[Step]] = []
    until = _as_stored(note.at)
    for step in chain:
        if step.state in _ENDS:
            until = from_text(step.at)
            break
        if stays and stays[-1][0].state == step.state:
            stays[-1].append(step)
        else:
            stays.append([step])
    if not stays:
        return []
    ends = [*(from_text(stay[0].at) for stay in stays[1:]), until]
    spans = [
        _phase(note, place, stay, end)
        for place, (stay, end) in enumerate(zip(stays, ends, strict=True))
    ]
    if len(spans) > PHASES_MAX:
        spans[PHASES_MAX // 2 : -PHASES_MAX // 2] = []
    return spans


def _phase(note: Ended, place: int, stay: Sequence[Step], end: dt.datetime) -> Span:
    first, *others = stay
    span = _child(note, first.state, from_text(first.at), end, salt=str(place))
    if first.state == State.UNKNOWN.value:
        span["status"] = _status(Status.ERROR, first.state)
    if others and first.state in _WAITS_FOR_BANK:
        span["events"] = [
            {"timeUnixNano": str(_nanoseconds(from_text(one.at))), "name": _text(one.event)}
            for one in others[-POINTS_MAX:]
        ]
    return span


def _child(
    note: Note,
    name: str,
    began: dt.datetime,
    ended: dt.datetime,
    more: dict[str, str | int] | dict[str, str] | None = None,
    salt: str = "",
) -> Span:
    made = f"{name}\n{_nanoseconds(ended)}\n{salt}".encode()
    return {
        **_span(note, name, began, ended, more or {}),
        "spanId": hashlib.sha256(note.trace + made).digest()[:SPAN_BYTES].hex(),
        "parentSpanId": _root_id(note.trace),
    }


def _span(
    note: Note,
    name: str,
    began: dt.datetime,
    ended: dt.datetime,
    more: dict[str, str | int] | dict[str, str],
) -> Span:
    begin = _nanoseconds(began)
    told = {"fep.bank": note.bank, **more}
    attributes = [_attribute("fep.task_id", note.task_id)]
    attributes += [
        _attribute(key, _text(value) if isinstance(value, str) else value)
        for key, value in told.items()
        if value != ""
    ]
    return {
        "traceId": note.trace.hex(),
        "name": name,
        "kind": SpanKind.INTERNAL,
        "startTimeUnixNano": str(begin),
        # A wall clock that was set back meanwhile must not make a span that no receiver takes.
        "endTimeUnixNano": str(max(begin, _nanoseconds(ended))),
        "attributes": attributes,
    }


def _root_id(trace: bytes) -> str:
    return hashlib.sha256(trace + b"root").digest()[:SPAN_BYTES].hex()


def _status(code: Status, message: str = "") -> dict[str, Any]:
    return {"code": code, "message": message} if message else {"code": code}


def _text(value: str) -> str:
    return masked(value)[:TEXT_CHARS_MAX]


def _attribute(key: str, value: str | int) -> dict[str, Any]:
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value}}


def _as_stored(at: dt.datetime) -> dt.datetime:
    """Return a moment as the chain has it: a later process knows it no better."""
    return from_text(to_text(at))


def _nanoseconds(at: dt.datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND * 1000


def message_of(spans: Iterable[Span], resource: dict[str, str], version: str) -> bytes:
    """Return an ``ExportTraceServiceRequest`` (OTLP 1.x, JSON: ids are hex, long numbers text).

    Args:
        spans: of any traces.
        resource: who tells them.
        version: of this program.
    """
    of_resource = [_attribute(key, value) for key, value in resource.items()]
    scope = {"scope": {"name": SCOPE, "version": version}, "spans": list(spans)}
    one = {"resource": {"attributes": of_resource}, "scopeSpans": [scope]}
    return orjson.dumps({"resourceSpans": [one]})
