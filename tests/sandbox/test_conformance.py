"""Every shipped adapter conforms; and each check fails for an adapter that is broken so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from bank_adapters.boc_b2e.codec import BocB2eCodec
from bank_adapters.ccb_wlpt import codec, host, messages, replies
from bank_adapters.cmb_cdc import replies as cdc_replies
from bank_adapters.cmb_xml import batches as cmb_batches
from bank_adapters.cmb_xml import host as cmb_host
from bank_adapters.cmb_xml import replies as cmb_replies
from bank_adapters.pingan_b2bi import host as pingan_host
from bank_adapters.pingan_b2bi import messages as pingan_messages
from bank_adapters.pingan_b2bi import replies as pingan_replies
from fep.adapters import decode, registry
from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Reply
from fep.adapters.host import BookedState
from fep.domain.money import Cny
from fep.domain.order import Balance, PaymentState, ReturnedPayments, Statement
from fep.sandbox import conformance
from fep.sandbox.conformance import CHECKS, conform

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("name", registry.names())
def test_every_shipped_adapter_conforms(name: str) -> None:
    results = list(conform(name))
    assert [one.check for one in results if not one.passed] == [], results
    assert len(results) == len(CHECKS) + 1


def changes(place: Any, name: str, change: Callable[[Any, Any], Any]) -> Break:
    """Return a break: what a function returns is changed, given its last argument too."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        whole = getattr(place, name)
        patch.setattr(place, name, lambda *args: change(whole(*args), args[-1]))

    return apply


def puts(place: Any, name: str, value: Any) -> Break:
    """Return a break: another value stands there."""
    return lambda patch: patch.setattr(place, name, value)


def forgets_the_begin(patch: pytest.MonkeyPatch) -> None:
    whole = messages.FrameReader.receive_data

    def receive(self: messages.FrameReader, data: bytes) -> list[bytes]:
        found = whole(self, data)
        self._buffer.clear()
        return found

    patch.setattr(messages.FrameReader, "receive_data", receive)


def holds_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "FrameReader", lambda _limit: messages.FrameReader(10**9))


def poor_balance(outcome: Outcome, _reply: Reply) -> Outcome:
    if isinstance(outcome, Accepted) and isinstance(outcome.result, Balance):
        return Accepted(Balance(outcome.result.account, Cny(1), Cny(1), outcome.result.as_of))
    return outcome


def without_the_last_line(found: Statement, _message: Any) -> Statement:
    return Statement(found.entries[:-1], found.cursor)


def raises(outcome: Outcome, reply: Reply) -> Outcome:
    if reply.content is None:
        raise KeyError(reply.code)
    return outcome


BREAKS: dict[str, Break] = {
    "every_operation": changes(replies, "outcome", poor_balance),
    "heartbeat": puts(codec.CcbWlptCodec, "alive", lambda *_: True),
    "any_split": forgets_the_begin,
    "any_bytes": changes(replies, "outcome", raises),
    "bounded_memory": holds_all,
    "codes_by_card": changes(
        replies, "refused", lambda _found, said: Rejected("SIM000", said, Refusal.BUSINESS)
    ),
    "booked_once": puts(host, "DUPLICATE", "SIM003"),
    "faults_stay_open": puts(replies, "payment_state", lambda *_: PaymentState.REJECTED),
    "refusals_and_landed": puts(host, "_DEAL_TYPES", host._DEAL_TYPES | {BookedState.LANDED: "4"}),
    "facts_are_compared": puts(replies, "_difference", lambda *_: ""),
    "signatures": puts(host._Client, "_is_signed", lambda *_: True),
    "statements": changes(replies, "_statement", without_the_last_line),
    "correlations": changes(
        codec, "_reply", lambda reply, _frame: Reply("x", "", "", "", reply.raw, reply.content)
    ),
    "secrets_hidden": puts(decode, "masked", lambda value: value),
}


def refused(outcome: Outcome, _reply: Reply) -> Outcome:
    """As an adapter that takes a batch for refused of which some rows were."""
    return outcome if isinstance(outcome, Accepted) else Rejected(outcome.code, outcome.message)


def as_refused(outcome: Outcome, reply: Reply) -> Outcome:
    """As an adapter that takes whatever it does not know for a refusal."""
    return outcome if isinstance(outcome, Accepted) else Rejected(reply.code, "")


def as_business(reply: Reply, *_: object, **_more: object) -> Outcome:
    return Rejected(reply.code, "")


def without_the_next_page(outcome: Outcome, _reply: Reply) -> Outcome:
    if isinstance(outcome, Accepted) and isinstance(outcome.result, ReturnedPayments):
        return attrs.evolve(outcome, result=ReturnedPayments(outcome.result.entries))
    return outcome


PART_BREAKS: list[tuple[str, str, Break]] = [
    ("cmb_xml", "batches", puts(cmb_replies, "_difference", lambda *_: "")),
    ("cmb_xml", "batches", changes(cmb_batches, "taken", refused)),
    ("cmb_xml", "batches", puts(cmb_batches, "_place", lambda _query: 0)),
    ("pingan_b2bi", "batches", puts(pingan_replies, "_expect", lambda *_: None)),
    ("pingan_b2bi", "batches", puts(pingan_host, "BATCH_REPEATED", ("YQ9966", ""))),
    ("cmb_xml", "batches_stay_open", changes(cmb_batches, "taken", refused)),
    (
        "pingan_b2bi",
        "batches_stay_open",
        puts(pingan_replies, "_state", lambda *_: PaymentState.REJECTED),
    ),
    ("pingan_b2bi", "sweeps", puts(pingan_messages, "SWEEP_UP", pingan_messages.SWEEP_DOWN)),
    ("pingan_b2bi", "sweeps", puts(pingan_replies, "_expect", lambda *_: None)),
    ("pingan_b2bi", "sweeps", puts(pingan_host, "DUPLICATE", ("2778", ""))),
    ("pingan_b2bi", "sweeps", puts(pingan_replies, "_not_done", as_business)),
    ("pingan_b2bi", "look_ups", changes(pingan_replies, "looked_up", as_refused)),
    ("cmb_xml", "look_ups", changes(cmb_replies, "looked_up", without_the_next_page)),
    ("cmb_xml", "look_ups", puts(cmb_host, "PAYMENTS_DAYS_MAX", 6)),
    ("cmb_xml", "look_ups", puts(cmb_replies, "state_key", lambda _row: "FIN+B")),
    ("cmb_cdc", "look_ups", changes(cdc_replies, "_returned", lambda *_: ReturnedPayments(()))),
]
"""Adapter, check, and what breaks the adapter."""


@pytest.mark.parametrize(("name", "check", "breaks"), PART_BREAKS)
def test_what_only_some_banks_have_is_found_broken(
    name: str, check: str, breaks: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    failed = {one.check for one in conform(name, daemon=False) if not one.passed}
    assert check in failed


def test_every_check_has_a_break() -> None:
    assert set(BREAKS) == {check.__name__ for check in CHECKS} - {
        "sessions",
        "faults_of_its_own",
        *(check for _, check, _ in PART_BREAKS),
    }


def test_a_session_that_is_not_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BocB2eCodec, "signed_off", lambda *_: False)
    failed = {one.check for one in conform("boc_b2e", daemon=False) if not one.passed}
    assert "sessions" in failed


def test_a_fault_of_the_bank_s_own_that_is_believed_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cdc_replies, "payment_state", lambda *_: PaymentState.REJECTED)
    [failed] = [one for one in conform("cmb_cdc", daemon=False) if one.check == "faults_of_its_own"]
    assert not failed.passed
    assert "told as" in failed.detail


@pytest.mark.parametrize("check", BREAKS)
def test_a_broken_adapter_is_found(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKS[check](monkeypatch)
    failed = {one.check for one in conform("ccb_wlpt", daemon=False) if not one.passed}
    assert check in failed


def test_the_command_tells_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conformance.main(["ccb_wlpt", "--no-daemon"]) == 0
    out = capsys.readouterr().out
    assert f"ccb_wlpt: {len(CHECKS)} of {len(CHECKS)} hold" in out
    BREAKS["signatures"](monkeypatch)
    assert conformance.main(["ccb_wlpt", "--no-daemon"]) == 1
    assert "FAIL  signatures" in capsys.readouterr().out
    assert conformance.main(["ccb_wlpt", "--no-daemon", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["adapter"], told["failed"]) == ("ccb_wlpt", ["signatures"])
    assert len(told["checks"]) == len(CHECKS)
    assert conformance.main(["nobody"]) == 1
    assert "there are:" in capsys.readouterr().err
