"""What a [[slot]] may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fep.domain.ids import SlotName
from fep.keys.config import CardBinding, SecretRef, SlotConfig, ring_faults

CARD = CardBinding("ab" * 16, "cd" * 32)
KEY = SecretRef(file=Path("key.pem"))


def test_a_binding_is_read_in_the_forms_tools_print() -> None:
    spaced = CardBinding("AB " * 16, ":".join(["CD"] * 32))
    assert spaced == CARD


@pytest.mark.parametrize(("guid", "certificate"), [("ab", "cd" * 32), ("ab" * 16, "xy" * 32)])
def test_a_binding_has_the_right_length_and_digits(guid: str, certificate: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        CardBinding(guid, certificate)


def test_a_secret_is_in_exactly_one_place() -> None:
    assert str(SecretRef(credential="pin-1")) == "credential pin-1"
    assert str(KEY) == "file key.pem"
    with pytest.raises(ValueError, match="either"):
        SecretRef()
    with pytest.raises(ValueError, match="either"):
        SecretRef(credential="a", file=Path("b"))
    for name in ("../pin", "a/b", "", "..", "."):
        with pytest.raises(ValueError, match="plain name"):
            SecretRef(credential=name)


@pytest.mark.parametrize(
    "members",
    [
        {"backend": "pcsc"},
        {"backend": "pcsc", "card": CARD, "key": KEY},
        {"backend": "software"},
        {"backend": "software", "key": KEY, "card": CARD},
        {"backend": "software", "key": KEY, "pin": KEY},
        {"backend": "smartcard"},
        {"backend": "pcsc", "card": CARD, "key_reference": "9B"},
        {"backend": "pcsc", "card": CARD, "sign_deadline_s": 0.0},
        {"backend": "pcsc", "card": CARD, "sign_deadline_s": 601.0},
    ],
)
def test_what_does_not_fit_together_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"slot|must"):
        SlotConfig(name=SlotName("s"), **members)


def test_two_slots_share_neither_name_nor_card() -> None:
    one = SlotConfig(name=SlotName("one"), backend="pcsc", card=CARD)
    same_card = SlotConfig(name=SlotName("two"), backend="pcsc", card=CARD, key_reference="9A")
    soft = SlotConfig(name=SlotName("one"), backend="software", key=KEY)
    assert ring_faults([one]) == []
    assert "same card" in ring_faults([one, same_card])[0]
    assert "twice" in ring_faults([one, soft])[0]
