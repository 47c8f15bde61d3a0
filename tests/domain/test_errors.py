"""Every error has a code of its own that does not change."""

from __future__ import annotations

import re

from fep.domain import errors
from fep.domain.errors import FepError

CODES = {
    "FepError": "FEP_ERROR",
    "RemoteProtocolError": "REMOTE_PROTOCOL",
    "LocalProtocolError": "LOCAL_PROTOCOL",
    "LinkLostError": "LINK_LOST",
    "NothingSentError": "NOTHING_SENT",
    "KeySlotError": "KEY_UNAVAILABLE",
    "BodyError": "BAD_BODY",
    "ConfigError": "BAD_CONFIG",
}


def test_the_codes_are_stable_unique_and_upper_case() -> None:
    found = {
        name: one.code
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, FepError)
    }
    assert found == CODES
    assert len(set(found.values())) == len(found)
    assert all(re.fullmatch(r"[A-Z][A-Z_]+", code) for code in found.values())


def test_what_may_have_left_and_what_did_not_are_never_mistaken() -> None:
    """One means that a payment is unknown, the other that it may be sent."""
    assert not issubclass(errors.LinkLostError, errors.NothingSentError)
    assert not issubclass(errors.NothingSentError, errors.LinkLostError)


def test_the_message_is_the_first_argument() -> None:
    assert str(errors.BodyError("amount is missing")) == "amount is missing"
