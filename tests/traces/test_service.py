"""Traces over real sockets: a daemon with a bank, and a receiver that may do as it likes."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from fep.domain.ids import BankName
from fep.traces import service
from fep.traces.service import Tracer
from fep.traces.spans import trace_id
from tests.alarms.receivers import Answer, HttpReceiver, http
from tests.control.conftest import Start
from tests.control.rig import BANK, Config, Logs, Rig, Wire, until
from tests.traces.otlp import Span, attributes, decoded, spans_in

OK: Answer = (200, b"{}")
QUICK_SECONDS = 5.0
"""More than a payment takes here, less than any message may."""


def with_traces(url: str, **more: Any) -> Callable[[Config], None]:
    def change(table: Config) -> None:
        table["traces"] = {"endpoint": url} | more

    return change


def tracer_of(rig: Rig) -> Tracer:
    assert rig.daemon.tracer is not None
    return rig.daemon.tracer


def trace_of(rig: Rig, task_id: str) -> bytes:
    return trace_id(rig.daemon.config.enterprise.id, task_id)  # type: ignore[arg-type]


async def paid(
    rig: Rig, wire: Wire, task_id: str, fen: int = 123_456, *, at_once: bool = True
) -> str:
    """Pay, by claim check unless the body is given at once; return how it ended."""
    body = rig.transfer(fen)
    params = {"task_id": task_id, "bank": BANK.name, "kind": "transfer"}
    await wire.result("task.submit", params | ({"body": body} if at_once else {}))
    if not at_once:
        await wire.answer(await wire.take("task.fetch"), body)
    told = await wire.take("task.result")
    assert told["params"]["task_id"] == task_id
    await wire.answer(told, {})
    state: str = told["params"]["state"]
    return state


async def arrived(receiver: HttpReceiver, trace: bytes) -> list[Span]:
    """Return a trace's spans once the one of its task is among them."""

    def look() -> list[Span]:
        found = [one for one in spans_in(*bodies(receiver)) if one.trace_id == trace]
        return found if any(not one.parent_span_id for one in found) else []

    found: list[Span] = await until(look, "the trace")
    return found


def bodies(receiver: HttpReceiver) -> list[bytes]:
    return [one.body for one in receiver.requests]


def secrets_of(rig: Rig) -> list[str]:
    """Return what must be in no trace: numbers and names of accounts, and the amount."""
    who = [one for account in rig.accounts for one in (account.number, account.name)]
    return [*who, "1234.56", "123456"]


async def test_a_payment_is_one_trace_from_its_submission_to_its_end(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = OK
        change = with_traces(receiver.url("/v1/traces"), service_name="fep-test")
        async with start(bank=True, change=change) as rig:
            await rig.ready()
            wire = await rig.finance()
            assert await paid(rig, wire, "PAY-1", at_once=False) == "succeeded"
            found = await arrived(receiver, trace_of(rig, "PAY-1"))
            await until(lambda: tracer_of(rig).sent, "it is counted")
            assert tracer_of(rig).dropped == 0
            slot = f"ukey-{BANK.name}"
            secrets = secrets_of(rig)
    [root] = [one for one in found if not one.parent_span_id]
    names = [one.name for one in found if one.parent_span_id]
    assert sorted(names) == ["fetched", "offered", "queued", "request", "sending", "sign"]
    by_name = {one.name: one for one in found}
    stays = [by_name[name] for name in ("queued", "offered", "fetched", "sending")]
    assert stays[0].start_time_unix_nano == root.start_time_unix_nano
    assert stays[-1].end_time_unix_nano == root.end_time_unix_nano
    for one, following in pairwise(stays):
        assert one.start_time_unix_nano <= one.end_time_unix_nano
        assert one.end_time_unix_nano == following.start_time_unix_nano
    for inner, outer in (("sign", "fetched"), ("request", "sending")):
        # The chain has milliseconds.
        ends = by_name[outer].end_time_unix_nano + 10**6
        assert by_name[outer].start_time_unix_nano <= by_name[inner].start_time_unix_nano
        assert by_name[inner].end_time_unix_nano <= ends
    told = attributes(root)
    assert told["fep.task_id"] == "PAY-1"
    assert (told["fep.bank"], told["fep.slot"], told["fep.state"]) == (BANK.name, slot, "succeeded")
    assert (told["fep.kind"], root.status.code) == ("transfer", 1)
    assert attributes(by_name["request"])["fep.asked"] == "transfer"
    assert all(attributes(one)["fep.task_id"] == "PAY-1" for one in found)
    resource = decoded(bodies(receiver)[0]).resource_spans[0].resource
    named = {one.key: one.value.string_value for one in resource.attributes}
    assert named["service.name"] == "fep-test"
    assert receiver.requests[0].headers["content-type"] == "application/json"
    for body in bodies(receiver):
        assert not [
            one for one in secrets if one in json.dumps(json.loads(body), ensure_ascii=False)
        ]


async def test_a_refusal_and_a_query_are_traced_too(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = OK
        async with start(bank=True, change=with_traces(receiver.url())) as rig:
            await rig.ready()
            wire = await rig.finance()
            assert await paid(rig, wire, "MUCH", rig.accounts[0].balance.fen + 1) == "rejected"
            found = await arrived(receiver, trace_of(rig, "MUCH"))
            [root] = [one for one in found if not one.parent_span_id]
            assert (root.status.code, root.status.message) == (2, "rejected")
            assert attributes(root)["fep.bank_code"]
            params = {"task_id": "B-1", "bank": BANK.name, "kind": "balance"}
            await wire.result("task.submit", params | {"body": rig.balance()})
            found = await arrived(receiver, trace_of(rig, "B-1"))
            assert {one.name for one in found} >= {"balance", "queued", "request"}
            secrets = secrets_of(rig)
    for body in bodies(receiver):
        assert not [one for one in secrets if one.encode() in body]


async def test_a_restart_in_the_middle_continues_the_trace(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = OK

        def change(table: Config) -> None:
            with_traces(receiver.url())(table)
            # The bank is not asked before the restart.
            table["bank"][0]["card"]["inquiry"]["cool_down_s"] = 600.0

        async with start(bank=True, change=change, faults="close_after_booking=1") as rig:
            await rig.ready()
            wire = await rig.finance()
            params = {"task_id": "LOST", "bank": BANK.name, "kind": "transfer"}
            await wire.result("task.submit", params | {"body": rig.transfer()})
            trace = trace_of(rig, "LOST")
            left = "SELECT state FROM task WHERE task_id='LOST' AND state='unknown'"
            await until(lambda: rig.stored(left), "the payment is unknown")
            # What happened is told before the end is known.
            await until(
                lambda: [one for one in spans_in(*bodies(receiver)) if one.name == "request"],
                "the request's span",
            )
            early = spans_in(*bodies(receiver))
            assert {one.trace_id for one in early} == {trace}
            requests = [one for one in early if one.name == "request"]
            [lost] = [one for one in requests if attributes(one)["fep.asked"] == "transfer"]
            assert (lost.status.code, attributes(lost)["fep.result"]) == (2, "lost")
        async with start(change=change) as rig:
            ann, bob = await rig.admin("ann"), await rig.admin("bob")
            evidence = {"outcome": "succeeded", "evidence": "statement 3, line 9"}
            await ann.result("task.resolve", {"task_id": "LOST"} | evidence)
            await bob.result("task.confirm", {"task_id": "LOST"})
            found = await arrived(receiver, trace)
    [root] = [one for one in found if not one.parent_span_id]
    assert {one.parent_span_id for one in found} == {b"", root.span_id}
    by_name = {one.name: one for one in found}
    # It was submitted, signed and sent by the first process, and closed by the second.
    assert {"queued", "sign", "request", "sending", "unknown"} <= by_name.keys()
    assert by_name["unknown"].end_time_unix_nano == root.end_time_unix_nano
    assert (by_name["unknown"].status.code, root.status.code) == (2, 1)
    assert "proposed" in [one.name for one in by_name["unknown"].events]


async def test_a_receiver_that_hangs_holds_nobody_up_and_what_is_lost_is_told(
    start: Start, logs: Logs
) -> None:
    async with http() as receiver:
        receiver.answer = "hang"
        change = with_traces(receiver.url(), timeout_s=0.2)
        async with start(bank=True, change=change) as rig:
            await rig.ready()
            wire = await rig.finance()
            tracer_of(rig).retry_seconds = ()
            for number in range(3):
                with trio.fail_after(QUICK_SECONDS):
                    assert await paid(rig, wire, f"P-{number}") == "succeeded"
            await until(lambda: tracer_of(rig).dropped, "a drop")
            [failing] = logs.named("traces.failing")
            assert "no answer within 0.2 s" in failing["reason"]
            assert logs.named("traces.dropped")[0]["count"] >= 1
            # It comes back: so do the traces, and the log says so once.
            receiver.answer = OK
            assert await paid(rig, wire, "AFTER") == "succeeded"
            await arrived(receiver, trace_of(rig, "AFTER"))
            await until(lambda: logs.named("traces.sent_again"), "it is told")
            receiver.answer = "hang"
            began = time.monotonic()
            assert await paid(rig, wire, "LAST") == "succeeded"
        assert time.monotonic() - began < QUICK_SECONDS + service.CLOSE_SECONDS_MAX


async def test_nobody_listens_there_and_the_daemon_does_not_care(start: Start, logs: Logs) -> None:
    async with http() as receiver:
        gone = receiver.url()
    async with start(bank=True, change=with_traces(gone)) as rig:
        await rig.ready()
        wire = await rig.finance()
        tracer_of(rig).retry_seconds = ()
        assert await paid(rig, wire, "P") == "succeeded"
        await until(lambda: tracer_of(rig).dropped >= 3, "all are dropped")
        assert tracer_of(rig).sent == 0
        assert ("LANE_FAILED", "traces") not in rig.alarms()
    assert sum(one["count"] for one in logs.named("traces.dropped")) >= 3


@pytest.mark.parametrize(
    ("answer", "tries", "told"),
    [
        ((503, b"later", {"retry-after": "0"}), 3, "HTTP 503"),
        ((429, b"", {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}), 3, "HTTP 429"),
        ((400, b"what?"), 1, "HTTP 400"),
        ((302, b"", {"location": "http://127.0.0.1:9/"}), 1, "HTTP 302"),
        ("close", 3, "RemoteProtocolError"),
        ("garbage", 3, "RemoteProtocolError"),
        ("endless", 1, "more than 65536 bytes"),
    ],
)
async def test_what_may_be_sent_again_is_and_the_rest_is_dropped(
    start: Start, logs: Logs, answer: Answer, tries: int, told: str
) -> None:
    async with http() as receiver:
        receiver.answer = answer
        async with start(change=with_traces(receiver.url())) as rig:
            tracer = tracer_of(rig)
            tracer.retry_seconds = (0.0, 0.0)
            await cancelled(rig, "C-1")
            await until(lambda: tracer.dropped, "it is dropped")
            assert (tracer.dropped, tracer.sent) == (1, 0)
            assert len(receiver.requests) == tries
            [failing] = logs.named("traces.failing")
            assert told in failing["reason"]
            # The next message is none the worse for it.
            receiver.answer = OK
            await cancelled(rig, "C-2")
            await arrived(receiver, trace_of(rig, "C-2"))
            await until(lambda: logs.named("traces.sent_again"), "it is told")


async def cancelled(rig: Rig, task_id: str) -> None:
    """Bring a task to an end without a bank: one note."""
    wire = await rig.finance()
    await wire.result("task.submit", {"task_id": task_id, "bank": BANK.name, "kind": "balance"})
    await wire.result("task.cancel", {"task_id": task_id})
    await wire.aclose()


@pytest.mark.parametrize("rejected", [b'"2"', b"2"])
async def test_spans_that_the_receiver_refuses_are_counted(
    start: Start, logs: Logs, rejected: bytes
) -> None:
    async with http() as receiver:
        receiver.answer = (
            200,
            b'{"partialSuccess":{"rejectedSpans":%s,"errorMessage":"too old"}}' % rejected,
        )
        async with start(change=with_traces(receiver.url())) as rig:
            await cancelled(rig, "C-1")
            await until(lambda: tracer_of(rig).dropped, "it is counted")
            assert (tracer_of(rig).dropped, tracer_of(rig).sent) == (1, 0)
    assert "refused 2 spans: too old" in logs.named("traces.dropped")[0]["reason"]


async def test_an_answer_that_says_nothing_clear_is_taken_for_yes(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = (200, b"[1]")
        async with start(change=with_traces(receiver.url())) as rig:
            await cancelled(rig, "C-1")
            await until(lambda: tracer_of(rig).sent, "it is counted")
            assert tracer_of(rig).dropped == 0


async def test_above_its_limit_the_queue_drops_and_tells(start: Start, logs: Logs) -> None:
    async with http() as receiver:
        receiver.answer = OK
        async with start(bank=True, change=with_traces(receiver.url())) as rig:
            await rig.ready()
            wire = await rig.finance()
            await paid(rig, wire, "P")
            await arrived(receiver, trace_of(rig, "P"))
            tracer = tracer_of(rig)
            task = await rig.daemon.tasks.stored("P")  # type: ignore[arg-type]
            assert task is not None
            # All between two awaits, as when more comes than can be sent.
            for _ in range(service.NOTES_MAX + 5):
                tracer.signed(task, "", 0.0)
            assert tracer.dropped == 5
            await until(lambda: logs.named("traces.dropped"), "it is told")
            [told] = logs.named("traces.dropped")
            assert (told["count"], told["reason"]) == (5, service.QUEUE_FULL)


async def test_only_the_chosen_share_is_sent(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = OK
        async with start(change=with_traces(receiver.url(), sample=0.0)) as rig:
            await cancelled(rig, "C-1")
            assert (tracer_of(rig).sent, tracer_of(rig).dropped) == (0, 0)
        # Even the stop sends nothing.
        assert receiver.requests == []


async def test_what_waits_at_the_stop_is_sent(start: Start) -> None:
    async with http() as receiver:
        receiver.answer = OK
        async with start(change=with_traces(receiver.url())) as rig:
            await cancelled(rig, "C-1")
            rig.daemon.stop()
            trace = trace_of(rig, "C-1")
            await arrived(receiver, trace)


async def test_headers_are_read_for_each_message_and_tls_is_checked(
    start: Start, logs: Logs, directory: Path
) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(directory / "ca.pem")
    other = trustme.CA()
    other.cert_pem.write_to_path(directory / "other.pem")
    token = directory / "otlp-token"
    token.write_text("Bearer one\n", "utf-8")
    token.chmod(0o600)
    header = [{"name": "Authorization", "value": {"file": str(token)}}]
    async with http(context) as receiver:
        receiver.answer = OK
        url = receiver.url("/v1/traces")
        more = {"header": header, "ca": str(directory / "ca.pem")}
        async with start(change=with_traces(url, **more)) as rig:
            tracer_of(rig).retry_seconds = ()
            await cancelled(rig, "C-1")
            [first] = await receiver.wait()
            assert first.headers["authorization"] == "Bearer one"
            token.write_text("Bearer two\n", "utf-8")
            await cancelled(rig, "C-2")
            await receiver.wait(2)
            assert receiver.requests[1].headers["authorization"] == "Bearer two"
            token.chmod(0o644)
            await cancelled(rig, "C-3")
            await until(lambda: logs.named("traces.failing"), "a secret that others can read")
            assert "open to group or others" in logs.named("traces.failing")[0]["reason"]
            token.chmod(0o600)
            token.write_text("Bearer\ntwo\n", "utf-8")
            await cancelled(rig, "C-4")
            await until(lambda: tracer_of(rig).dropped == 2, "no value of a header")
        more["ca"] = str(directory / "other.pem")
        token.write_text("Bearer one\n", "utf-8")
        async with start(change=with_traces(url, **more)) as rig:
            tracer_of(rig).retry_seconds = ()
            await cancelled(rig, "C-5")
            await until(lambda: tracer_of(rig).dropped, "another's certificate")
        assert len(receiver.requests) == 2
    assert "CERTIFICATE_VERIFY_FAILED" in logs.named("traces.failing")[-1]["reason"]
    told = json.dumps([one for one in logs.records if one["event"].startswith("traces.")])
    assert "Bearer" not in told


async def test_without_traces_the_queue_tells_nobody(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        wire = await rig.finance()
        assert rig.daemon.tracer is None
        assert await paid(rig, wire, "P") == "succeeded"
        assert (rig.daemon.tasks.tracing.sent, rig.daemon.tasks.tracing.dropped) == (0, 0)
        assert rig.daemon.links[BankName(BANK.name)].is_open
