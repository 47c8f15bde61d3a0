"""What becomes which span, in tables; OpenTelemetry's own schema is the judge of the form."""

from __future__ import annotations

import datetime as dt
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.domain.clock import to_text
from fep.domain.ids import BankName, TaskId
from fep.domain.order import Kind
from fep.tasks.figures import Exchange
from fep.tasks.state import FINAL, State
from fep.tasks.tracing import Step
from fep.traces import spans
from fep.traces.spans import Asked, Ended, Signed
from tests.traces.otlp import Span, attributes, spans_in

BEGAN = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)
TASK = TaskId("PAY-1")
TRACE = spans.trace_id("E1", TASK)


def at(seconds: float) -> dt.datetime:
    return BEGAN + dt.timedelta(seconds=seconds)


def chain(*steps: tuple[float, str, str]) -> list[Step]:
    return [Step(to_text(at(seconds)), event, state) for seconds, event, state in steps]


def ended(**more: Any) -> Ended:
    one = Ended(
        7, TRACE, TASK, BankName("b"), Kind.TRANSFER, "k", State.SUCCEEDED, "0", 1, 0, BEGAN, at(9)
    )
    return attrs.evolve(one, **more)


def read(*made: spans.Span) -> list[Span]:
    return spans_in(spans.message_of(made, {"service.name": "fep"}, "1"))


def lasted(span: Span) -> tuple[float, float]:
    origin = int(BEGAN.timestamp()) * 10**9
    return (
        (span.start_time_unix_nano - origin) / 10**9,
        (span.end_time_unix_nano - origin) / 10**9,
    )


def test_each_stay_in_a_state_is_a_span_below_the_task() -> None:
    steps = chain(
        (0, "submitted", "queued"),
        (1, "offered", "offered"),
        (2, "offer_lapsed", "queued"),
        (3, "offered", "offered"),
        (4, "body_taken", "fetched"),
        (5, "send_begun", "sending"),
        (6, "outcome_lost", "unknown"),
        (7, "inquired", "unknown"),
        (8, "proposed", "unknown"),
        (9, "proved_done", "succeeded"),
    )
    made = read(*spans.spans_of(ended(inquiries=1), steps))
    assert [one.name for one in made if not one.parent_span_id] == ["transfer"]
    [root] = [one for one in made if not one.parent_span_id]
    assert lasted(root) == (0, 9)
    assert (spans.Status(root.status.code), root.status.message) == (spans.Status.OK, "")
    assert attributes(root) == {
        "fep.task_id": TASK,
        "fep.bank": "b",
        "fep.kind": "transfer",
        "fep.slot": "k",
        "fep.state": "succeeded",
        "fep.bank_code": "0",
        "fep.offers": 1,
        "fep.inquiries": 1,
    }
    phases = [one for one in made if one.parent_span_id]
    assert {one.parent_span_id for one in phases} == {root.span_id}
    assert {one.trace_id for one in made} == {TRACE}
    assert len({one.span_id for one in made}) == len(made)
    assert [(one.name, *lasted(one)) for one in phases] == [
        ("queued", 0, 1),
        ("offered", 1, 2),
        ("queued", 2, 3),
        ("offered", 3, 4),
        ("fetched", 4, 5),
        ("sending", 5, 6),
        ("unknown", 6, 9),
    ]
    assert [spans.Status(one.status.code) for one in phases] == [spans.Status.UNSET] * 6 + [
        spans.Status.ERROR
    ]
    assert [one.name for one in phases[-1].events] == ["inquired", "proposed"]


@pytest.mark.parametrize("state", sorted(FINAL - {State.RETURNED}))
def test_an_end_that_is_no_success_is_an_error_with_its_name(state: State) -> None:
    steps = chain((0, "submitted", "queued"), (9, "x", state.value))
    [root] = [
        one for one in read(*spans.spans_of(ended(state=state), steps)) if not one.parent_span_id
    ]
    good = {State.SUCCEEDED: spans.Status.OK, State.CANCELLED: spans.Status.UNSET}
    assert spans.Status(root.status.code) == good.get(state, spans.Status.ERROR)
    assert root.status.message == ("" if state in good else state.value)
    assert attributes(root)["fep.state"] == state.value


def test_a_payment_that_came_back_adds_to_its_trace() -> None:
    [span] = read(*spans.spans_of(ended(state=State.RETURNED, at=at(90))))
    [root] = [one for one in read(*spans.spans_of(ended())) if not one.parent_span_id]
    assert (span.name, span.trace_id, span.parent_span_id) == ("returned", TRACE, root.span_id)
    assert spans.Status(span.status.code) == spans.Status.ERROR


@pytest.mark.parametrize("how", Exchange)
def test_a_request_that_was_not_answered_is_an_error(how: Exchange) -> None:
    note = Asked(TRACE, TASK, BankName("b"), "transfer_status", how, at(1), at(2.5))
    [span] = read(*spans.spans_of(note))
    assert (span.name, spans.SpanKind(span.kind), *lasted(span)) == (
        "request",
        spans.SpanKind.CLIENT,
        1,
        2.5,
    )
    assert attributes(span)["fep.asked"] == "transfer_status"
    assert attributes(span)["fep.result"] == how.value
    bad = how is not Exchange.ANSWERED
    assert spans.Status(span.status.code) == (spans.Status.ERROR if bad else spans.Status.UNSET)


@pytest.mark.parametrize("code", ["", "KEY_REMOVED"])
def test_a_key_that_did_not_sign_is_an_error_with_its_code(code: str) -> None:
    [span] = read(*spans.spans_of(Signed(TRACE, TASK, BankName("b"), "k", code, at(1), at(2))))
    assert (span.name, attributes(span)["fep.slot"]) == ("sign", "k")
    assert spans.Status(span.status.code) == (spans.Status.ERROR if code else spans.Status.UNSET)
    assert span.status.message == code


def test_a_clock_that_was_set_back_makes_no_span_that_ends_before_it_begins() -> None:
    steps = chain((5, "submitted", "queued"), (3, "body_taken", "fetched"), (1, "x", "succeeded"))
    for one in read(*spans.spans_of(ended(at=at(-5)), steps)):
        assert one.end_time_unix_nano >= one.start_time_unix_nano


def test_a_trace_has_an_end_however_often_its_task_was_offered() -> None:
    many = [(float(n), "x", ("queued", "offered")[n % 2]) for n in range(1000)]
    made = spans.spans_of(ended(at=at(1000)), chain(*many))
    assert len(made) == 1 + spans.PHASES_MAX
    assert (lasted(read(made[1])[0]), lasted(read(made[-1])[0])) == ((0, 1), (999, 1000))
    asked = [(2.0 + n, "inquired", "unknown") for n in range(1000)]
    [_, unknown] = spans.spans_of(ended(), chain((1, "outcome_lost", "unknown"), *asked))
    assert len(unknown["events"]) == spans.POINTS_MAX


def test_text_of_a_bank_is_masked_and_short() -> None:
    number = "6222020200011223344"
    [root, *_] = read(*spans.spans_of(ended(bank_code=f"户{number}" + "长" * 1000)))
    told = attributes(root)["fep.bank_code"]
    assert number not in told
    assert "6222****3344" in told
    assert len(told) == spans.TEXT_CHARS_MAX


def test_a_task_has_the_same_trace_in_each_process_and_another_enterprise_another() -> None:
    assert spans.trace_id("E1", TASK).hex() == "ae2c923697076d78715e809c13ce3d86"
    assert spans.trace_id("E2", TASK) != TRACE


@given(st.integers(0, 100), st.integers(0, 100))
def test_who_samples_less_samples_a_part_of_the_same(less: int, more: int) -> None:
    low, high = sorted((less / 100, more / 100))
    for number in range(100):
        trace = spans.trace_id("E1", TaskId(f"T{number}"))
        if spans.is_sampled(trace, spans.threshold_of(low)):
            assert spans.is_sampled(trace, spans.threshold_of(high))


@pytest.mark.parametrize(("sample", "low", "high"), [(0, 0, 0), (0.25, 200, 300), (1, 1000, 1000)])
def test_a_share_is_sampled(sample: float, low: int, high: int) -> None:
    threshold = spans.threshold_of(sample)
    traces = [spans.trace_id("E1", TaskId(f"T{number}")) for number in range(1000)]
    assert low <= sum(spans.is_sampled(one, threshold) for one in traces) <= high
