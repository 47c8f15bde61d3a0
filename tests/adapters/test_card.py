"""A behaviour card says what an answer means for the money: nothing in it is guessed."""

from __future__ import annotations

import contextlib
import itertools
import tomllib
from typing import Any

import attrs
import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters import registry, strict
from fep.adapters.card import (
    BehaviourCard,
    Codes,
    Dedupe,
    Identity,
    Inquiry,
    NoRecord,
    Resend,
    SignAlgorithm,
    Signer,
    States,
    card_from_toml,
    override,
)

TEXT = """
[identity]
bank = "toy"
version = "1"
[dedupe]
key = "REF"
length_max = 20
resend = "replay"
[codes]
ok = ["0"]
refused = ["E1", "E2"]
[inquiry]
cool_down_s = 5
no_record = "after"
no_record_after_s = 60.5
[signing]
by = "slot"
algorithm = "ecdsa_sha256"
"""
CARD = card_from_toml(TEXT)
SECTIONS = [field.name for field in attrs.fields(BehaviourCard)]


def faults(error: pytest.ExceptionInfo[BaseException]) -> dict[tuple[str | int, ...], str]:
    return {fault.path: fault.message for fault in strict.faults(error.value)}


def test_what_is_written_is_read_and_the_rest_is_careful() -> None:
    expected = BehaviourCard(
        identity=Identity("toy", "1"),
        dedupe=Dedupe("REF", 20, resend=Resend.REPLAY),
        codes=Codes(ok=frozenset({"0"}), refused=frozenset({"E1", "E2"})),
        inquiry=Inquiry(cool_down_s=5.0, no_record=NoRecord.AFTER, no_record_after_s=60.5),
        signing=attrs.evolve(CARD.signing, by=Signer.SLOT, algorithm=SignAlgorithm.ECDSA_SHA256),
    )
    assert expected == CARD
    silent = card_from_toml(TEXT.partition("[codes]")[0])
    # A card that says nothing proves nothing: no code is final, and "no record" never counts.
    assert silent.inquiry.no_record is NoRecord.NEVER
    assert not any(getattr(silent.codes, field.name) for field in attrs.fields(Codes))
    assert not any(getattr(silent.states, field.name) for field in attrs.fields(States))
    assert silent.signing.by is Signer.FRONT_END


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", ("identity",), "is missing"),
        ("[identity]\nbank = 'b'", ("identity", "version"), "is missing"),
        (TEXT + "[code]\nok = []", ("code",), "unknown key"),
        (TEXT + "refusd = ['E3']", ("signing", "refusd"), "unknown key"),
        (TEXT.replace('["0"]', '"0"'), ("codes", "ok"), "must be an array"),
        (TEXT.replace('["0"]', "[0]"), ("codes", "ok", 0), "must be text in quotes"),
        (TEXT.replace("length_max = 20", "length_max = '20'"), ("dedupe", "length_max"), "whole"),
        (TEXT.replace("60.5", "'60'"), ("inquiry", "no_record_after_s"), "must be a number"),
        (TEXT.replace('"replay"', '"retry"'), ("dedupe", "resend"), "must be one of none"),
        (TEXT.replace('"after"', '"soon"'), ("inquiry", "no_record"), "must be one of never"),
        (TEXT.replace('"slot"', '"us"'), ("signing", "by"), "must be one of front_end"),
        (TEXT.replace("ecdsa_sha256", "rsa_md5"), ("signing", "algorithm"), "must be one of rsa"),
        (TEXT.replace("[codes]", "[[codes]]"), ("codes",), "must be a table"),
    ],
)
def test_a_card_with_a_fault_is_refused_with_its_place(
    text: str, path: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(cattrs.BaseValidationError) as caught:
        card_from_toml(text)
    found = faults(caught)
    assert path in found
    assert message in found[path]


@pytest.mark.parametrize("text", ["[identity", "a = 1\na = 2", "[codes]\nok = ['1',, ]", "\x00"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        card_from_toml(text)


# -- a bank's own changes --------------------------------------------------------------------------


def test_changes_are_laid_over_key_by_key() -> None:
    made = override(
        CARD,
        {
            "codes": {"ok": ["OK"]},
            "inquiry": {"cool_down_s": 1},
            "identity": {"title": "玩具银行"},
            "throttle": {"submit_gap_s": 0.5},
        },
    )
    assert made.codes == Codes(ok=frozenset({"OK"}), refused=frozenset({"E1", "E2"}))
    assert made.inquiry == attrs.evolve(CARD.inquiry, cool_down_s=1.0)
    assert made.identity == Identity("toy", "1", "玩具银行")
    assert made.throttle.submit_gap_s == 0.5
    untouched = [
        name for name in SECTIONS if name not in {"codes", "inquiry", "identity", "throttle"}
    ]
    assert all(getattr(made, name) == getattr(CARD, name) for name in untouched)


def test_no_change_is_the_same_card_and_none_changes_the_shipped_one() -> None:
    assert override(CARD, {}) is CARD
    before = card_from_toml(TEXT)
    override(CARD, {"codes": {"ok": []}, "dedupe": {"resend": "none"}})
    assert before == CARD


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"code": {"ok": []}}, ("code",), "unknown key"),
        ({"codes": {"okay": []}}, ("codes", "okay"), "unknown key"),
        ({"codes": []}, ("codes",), "must be a table"),
        ({"codes": {"ok": "0"}}, ("codes", "ok"), "must be an array"),
        ({"inquiry": {"horizon_s": True}}, ("inquiry", "horizon_s"), "must be a number"),
        ({"inquiry": 3}, ("inquiry",), "must be a table"),
        ({"dedupe": {"length_max": 19.5}}, ("dedupe", "length_max"), "must be a whole number"),
        ({"signing": {"by": "SLOT"}}, ("signing", "by"), "must be one of"),
    ],
)
def test_a_change_with_a_fault_is_refused(
    changes: dict[str, Any], path: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(cattrs.BaseValidationError) as caught:
        override(CARD, changes)
    assert message in faults(caught)[path]


CHANGES = st.dictionaries(
    st.sampled_from([*SECTIONS, "x"]),
    st.dictionaries(
        st.sampled_from(["ok", "refused", "cool_down_s", "by", "no_record", "length_max", "x"]),
        st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.text()),
        max_size=3,
    )
    | st.integers()
    | st.none(),
    max_size=3,
)


@given(changes=CHANGES)
def test_any_change_gives_a_card_or_a_refusal(changes: dict[str, Any]) -> None:
    with contextlib.suppress(cattrs.BaseValidationError):
        made = override(CARD, changes)
        for section, values in changes.items():
            for key, value in (values or {}).items():
                stored = getattr(getattr(made, section), key)
                same = frozenset(value) if isinstance(value, list) else value
                assert stored == same or value != value, "only NaN is not itself"


# -- the shipped cards -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names())
def test_a_shipped_card_never_gives_a_code_two_meanings(name: str) -> None:
    card = registry.adapter(name).card
    for lists in (card.codes, card.states):
        groups = [getattr(lists, field.name) for field in attrs.fields(type(lists))]
        for one, other in itertools.combinations(groups, 2):
            assert not one & other
    assert card.codes.ok
    assert card.states.final_ok
    assert card.states.final_bad
    assert card.identity.version == registry.adapter(name).version


@pytest.mark.parametrize("name", registry.names())
def test_a_shipped_card_believes_no_record_late_or_never(name: str) -> None:
    inquiry = registry.adapter(name).card.inquiry
    if inquiry.no_record is NoRecord.AFTER:
        assert inquiry.no_record_after_s >= 86_400
    assert inquiry.backoff_factor >= 1
    assert 0 < inquiry.cool_down_s <= inquiry.interval_max_s <= inquiry.horizon_s
