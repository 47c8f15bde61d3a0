"""The card as shipped and the options of a bank."""

from typing import Any

import attrs
import cattrs
import pytest

from bank_adapters.cmb_xml.config import CARD, CmbXmlOptions
from fep.adapters.card import NoRecord, Resend
from tests.bank_adapters.cmb_xml.samples import OPTIONS, PAYER, SISTER


@pytest.mark.parametrize("table", [CARD.codes, CARD.states], ids=["codes", "states"])
def test_no_code_has_two_meanings(table: object) -> None:
    listed = [code for group in attrs.astuple(table) for code in group]  # type: ignore[arg-type]
    assert len(listed) == len(set(listed))


def test_the_card_never_trusts_a_missing_record_before_the_day_after() -> None:
    assert CARD.inquiry.no_record is NoRecord.AFTER
    assert CARD.inquiry.no_record_after_s >= 86_400
    assert CARD.dedupe.resend is Resend.REJECT_DUP


@pytest.mark.req("FEP-18")
def test_options_come_from_a_table() -> None:
    table = {"login_name": "FEP01", "branch": "99", "branches": {SISTER: "75"}}
    options = cattrs.structure(table, CmbXmlOptions)
    assert options.buscod == "N02031"
    assert [options.branch_of(one) for one in (PAYER, SISTER)] == ["99", "75"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("login_name", ""),
        ("login_name", "a\nb"),
        ("login_name", "登" * 16),
        ("branch", "9"),
        ("branch", "分行"),
        ("branches", {PAYER: "999"}),
        ("busmod", "000001"),
        ("buscod", "N03010"),
        ("payee_address_default", "址" * 32),
        ("payee_address_default", "😀"),
        ("purpose_default", " "),
    ],
)
def test_a_bad_option_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        attrs.evolve(OPTIONS, **{name: value})
