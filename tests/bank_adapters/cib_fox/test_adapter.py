"""What can be configured, who signs, and that the password is in the wire's bytes alone."""

from __future__ import annotations

from typing import Any

import pytest

from bank_adapters.cib_fox import ADAPTER
from bank_adapters.cib_fox.codec import SIGNATURE_HEADER
from bank_adapters.cib_fox.config import CARD, CibFoxOptions
from bank_adapters.cib_fox.messages import signed_part
from fep.adapters.api import BankProfile, LockoutCodec, SecretiveCodec, SessionCodec
from fep.adapters.card import Resend
from fep.adapters.decode import lines
from fep.daemon.bank_section import card_faults
from fep.domain.errors import ConfigError, LocalProtocolError
from fep.wire.http import RequestReader
from tests.bank_adapters.cib_fox.samples import (
    ACCOUNTS,
    CIB,
    OPTIONS,
    ORDER,
    SAMPLES,
    body_of,
    codec,
    context,
)

SECRET = "not-for-logs"


def test_the_card_says_what_the_document_says() -> None:
    assert list(card_faults(CARD)) == []
    assert CARD.dedupe.resend is Resend.REPLAY
    assert CARD.inquiry.cool_down_s == 900.0
    assert (CARD.inquiry.quiet_from, CARD.inquiry.quiet_to) == ("00:00", "01:00")
    assert CARD.statement.rows_per_page == 100


@pytest.mark.parametrize(
    "changes",
    [
        {"customer_id": "123"},
        {"customer_id": "12345678901"},
        {"user_id": ""},
        {"user_id": "a" * 21},
        {"user_id": "a&b"},
        {"app_id": "TOOLONG"},
        {"app_version": "<>"},
        {"path": "fox"},
        {"path": "/a b"},
        {"payee_city_default": "深<圳"},
        {"purpose_default": ""},
        {"purpose_default": "转" * 31},
    ],
)
def test_options_that_can_not_go_into_a_request_are_refused(changes: dict[str, str]) -> None:
    good = {"customer_id": "9999000001", "user_id": "fepuser"}
    CibFoxOptions(**good)
    [name] = changes
    with pytest.raises(ValueError, match=name):
        CibFoxOptions(**(good | changes))


@pytest.mark.parametrize(
    "card", [{"signing": {"by": "sign_port"}}, {"transport": {"protocol": "tcp"}}]
)
def test_a_card_that_does_not_fit_is_refused(card: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"card\."):
        codec(card)


@pytest.mark.parametrize("password", ["", "a<b", "a&b", "x" * 31])
def test_a_password_that_the_bank_can_not_take_is_refused_untold(password: str) -> None:
    with pytest.raises(ConfigError, match="password") as caught:
        codec(password=password)
    assert not password or password not in str(caught.value)


def test_a_configuration_is_checked_without_the_password() -> None:
    ADAPTER.open(BankProfile(CIB, CARD, OPTIONS, "1", ACCOUNTS))
    with pytest.raises(ConfigError, match="options"):
        ADAPTER.open(BankProfile(CIB, CARD, object(), "1", ACCOUNTS))


def test_the_banks_proxy_signs_unless_the_card_says_that_our_key_does() -> None:
    one = codec()
    draft = one.prepare(ORDER, context())
    assert draft.to_sign is None
    with pytest.raises(LocalProtocolError):
        one.seal(draft, b"signature")
    ours = codec({"signing": {"by": "slot"}})
    draft = ours.prepare(ORDER, context())
    assert draft.to_sign == signed_part(SAMPLES["transfer_request"].data)
    with pytest.raises(LocalProtocolError):
        ours.seal(draft, None)
    [http] = RequestReader(10**6).receive_data(ours.seal(draft, b"signature"))
    assert http.header(SIGNATURE_HEADER.lower()) == "c2lnbmF0dXJl"
    assert http.body == SAMPLES["transfer_request"].data, "the message itself is as ever"


def test_the_password_is_in_the_wires_bytes_alone() -> None:
    one = codec(password=SECRET)
    assert isinstance(one, SecretiveCodec)
    draft = one.prepare(ORDER, context())
    request = one.seal(draft, None)
    assert SECRET.encode() in request
    kept = one.kept(request)
    assert SECRET.encode() not in kept
    assert len(kept) == len(request)
    assert b"<USERPASS>************</USERPASS>" in body_of(kept)
    shown = [repr(one), repr(draft), repr(draft.content)]
    shown += map(str, lines(ADAPTER.name, ADAPTER.decoder, request))
    shown += map(str, lines(ADAPTER.name, ADAPTER.decoder, request[:-9] + b" " + body_of(request)))
    assert "USERPASS" in shown[-1], "it is decoded"
    assert not any(SECRET in one for one in shown)


def test_it_has_no_session_and_stops_at_a_refused_password() -> None:
    one = codec()
    assert not isinstance(one, SessionCodec)
    assert isinstance(one, LockoutCodec)
    assert one.logon(context()) is None
