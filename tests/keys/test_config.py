"""What a [[slot]] may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fep.domain.ids import SlotName
from fep.keys.config import (
    CardBinding,
    ObjectRef,
    SecretRef,
    SlotConfig,
    TokenBinding,
    ring_faults,
)

CARD = CardBinding("ab" * 16, "cd" * 32)
KEY = SecretRef(file=Path("key.pem"))
MODULE = Path("library.so")
TOKEN = TokenBinding("cd" * 32, "0123456789abcdef")


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
        {"backend": "pcsc", "card": CARD, "module": MODULE},
        {"backend": "pcsc", "card": CARD, "object": ObjectRef("01")},
        {"backend": "software", "key": KEY, "token": TOKEN},
        {"backend": "software", "key": KEY, "sm2_user_id": ""},
        {"backend": "software", "key": KEY, "sm2_user_id": "x" * 8192},
        {"backend": "pcsc", "card": CARD, "sm2_user_id": "N009999999"},
        {"backend": "pkcs11"},
        {"backend": "pkcs11", "module": MODULE},
        {"backend": "pkcs11", "token": TOKEN},
        {"backend": "pkcs11", "module": MODULE, "token": TOKEN, "card": CARD},
        {"backend": "pkcs11", "module": MODULE, "token": TOKEN, "key": KEY},
    ],
)
def test_what_does_not_fit_together_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"slot|must"):
        SlotConfig(name=SlotName("s"), **members)


def test_a_token_is_bound_by_serial_or_label() -> None:
    assert str(TokenBinding("CD " * 32, " 01 ")) == "01"
    assert str(TokenBinding("cd" * 32, label="一号")) == "labelled 一号"
    for members in ({}, {"serial": " "}, {"serial": "x" * 17}, {"label": "一" * 11}):
        with pytest.raises(ValueError, match=r"serial|label"):
            TokenBinding("cd" * 32, **members)
    with pytest.raises(ValueError, match="hexadecimal"):
        TokenBinding("cd", "01")


def test_an_object_is_named_by_whole_bytes() -> None:
    assert ObjectRef("0A:1b").id == "0a1b"
    for wrong in ("0", "0g", "00" * 65):
        with pytest.raises(ValueError, match="id must be"):
            ObjectRef(wrong)


def token_slot(name: str, serial: str, label: str = "", module: Path = MODULE) -> SlotConfig:
    return SlotConfig(
        name=SlotName(name),
        backend="pkcs11",
        module=module,
        token=TokenBinding("cd" * 32, serial, label),
    )


def test_two_slots_share_no_token() -> None:
    one = token_slot("one", "01", "a")
    for other in (
        token_slot("two", "01"),
        token_slot("two", "01", "a"),
        token_slot("two", "", "a"),
    ):
        assert "same token" in ring_faults([one, other])[0]
    for other in (
        token_slot("two", "02"),
        token_slot("two", "", "b"),
        token_slot("two", "01", "b"),
        token_slot("two", "01", "a", Path("other.so")),
    ):
        assert ring_faults([one, other]) == []


def test_two_slots_share_neither_name_nor_card() -> None:
    one = SlotConfig(name=SlotName("one"), backend="pcsc", card=CARD)
    same_card = SlotConfig(name=SlotName("two"), backend="pcsc", card=CARD, key_reference="9A")
    soft = SlotConfig(name=SlotName("one"), backend="software", key=KEY)
    assert ring_faults([one]) == []
    assert "same card" in ring_faults([one, same_card])[0]
    assert "twice" in ring_faults([one, soft])[0]
