"""A bank's card and adapter in the configuration: no contradiction gets in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from fep.adapters import registry
from fep.adapters.card import BehaviourCard, Codes, Dedupe, Identity, Inquiry, NoRecord, States
from fep.daemon.bank_section import card_faults
from fep.links.liveness import DEAD_FACTOR
from tests.daemon.files import changed, loaded, marked

LEAST = BehaviourCard(Identity("x", "1"), Dedupe("ref", 20))


@pytest.mark.parametrize("name", registry.names())
def test_the_shipped_cards_do_not_contradict_themselves(name: str) -> None:
    assert list(card_faults(registry.adapter(name).card)) == []


@pytest.mark.parametrize("name", registry.names())
def test_a_bank_may_be_as_long_silent_as_its_shipped_card_lets_it_be_busy(name: str) -> None:
    limits = registry.adapter(name).card.limits
    assert limits.heartbeat_s * DEAD_FACTOR > limits.reply_timeout_s


def test_a_card_says_how_often_its_bank_is_probed(tmp_path: Path) -> None:
    limits = "limits = { heartbeat_s = 60.0, reply_timeout_s = 120.0 }, signing = {"
    link = loaded(tmp_path, changed("signing = {", limits)).banks[1].link
    assert (link.heartbeat_s, link.reply_timeout_s) == (60.0, 120.0)
    text = changed("signing = {", "limits = { reply_timeout_s = 120.0 }, signing = {")
    text = changed('[[bank]]\nname = "cmb"', '‸[[bank]]\nname = "cmb"', text)
    (fault,) = marked(tmp_path, text)
    assert "2.5 * heartbeat_s must be more than reply_timeout_s, not 30 and 120" in fault.message


def test_a_code_can_mean_one_thing_only() -> None:
    assert list(card_faults(LEAST)) == []
    codes = Codes(ok=frozenset({"0", "1"}), refused=frozenset({"1"}))
    assert [path for path, _ in card_faults(attrs.evolve(LEAST, codes=codes))] == [
        ("codes", "ok"),
        ("codes", "refused"),
    ]
    states = States(final_bad=frozenset({"F"}), intermediate=frozenset({"F"}))
    assert [path for path, _ in card_faults(attrs.evolve(LEAST, states=states))] == [
        ("states", "final_bad"),
        ("states", "intermediate"),
    ]


def test_no_record_is_no_proof_at_once() -> None:
    inquiry = Inquiry(no_record=NoRecord.AFTER)
    ((path, message),) = card_faults(attrs.evolve(LEAST, inquiry=inquiry))
    assert path == ("inquiry", "no_record_after_s")
    assert "proves nothing" in message


@pytest.mark.parametrize(
    "inquiry",
    [
        {"cool_down_s": -1.0},
        {"cool_down_s": float("inf")},
        {"cool_down_s": float("nan")},
        {"accepted_interval_s": 0.0},
        {"backoff_factor": 0.9},
        {"interval_max_s": 0.0},
        {"horizon_s": 0.0},
        {"no_record_after_s": -1.0},
    ],
)
def test_spans_have_bounds(inquiry: dict[str, Any]) -> None:
    card = attrs.evolve(LEAST, inquiry=attrs.evolve(Inquiry(), **inquiry))
    ((path, _),) = card_faults(card)
    assert path == ("inquiry", *inquiry)


@pytest.mark.parametrize(
    ("begin", "end", "wrong"),
    [
        ("24:00", "01:00", "quiet_from"),
        ("00:00", "1:00", "quiet_to"),
        ("00:00", "01:00:00", "quiet_to"),
        ("00:00", "00:00", "quiet_to"),
        ("00:00", "", "quiet_to"),
        ("", "01:00", "quiet_from"),
    ],
)
def test_quiet_hours_are_two_different_times_of_day(begin: str, end: str, wrong: str) -> None:
    inquiry = Inquiry(quiet_from=begin, quiet_to=end)
    ((path, _),) = card_faults(attrs.evolve(LEAST, inquiry=inquiry))
    assert path == ("inquiry", wrong)
    good = Inquiry(quiet_from="23:30", quiet_to="00:30")
    assert list(card_faults(attrs.evolve(LEAST, inquiry=good))) == []


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("inquiry", {"statement_after": -1}),
        ("returned", {"watch_days": -0.1}),
        ("returned", {"watch_days": 90.1}),
        ("returned", {"watch_days": float("nan")}),
        ("returned", {"first_look_s": 0.0}),
        ("returned", {"interval_s": 0.0}),
        ("returned", {"interval_s": float("inf")}),
    ],
)
def test_looks_at_accounts_have_bounds(section: str, changes: dict[str, Any]) -> None:
    facts = attrs.evolve(getattr(LEAST, section), **changes)
    ((path, _),) = card_faults(attrs.evolve(LEAST, **{section: facts}))
    assert path == (section, *changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("broken = no_such_module_at_all:ADAPTER", "No module named"),
        ("broken = fep.adapters.card:NO_SUCH_NAME", "has no attribute"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_a_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fep.bank_adapters]\n{content}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "broken" in registry.names()
    text = changed('adapter = "cmb_xml"', '‸adapter = "broken"')
    (fault,) = marked(tmp_path, text)
    assert fault.message.startswith("adapter 'broken' is installed but can't be loaded")
    assert message in fault.message
