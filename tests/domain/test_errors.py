"""Every error has a code of its own that does not change."""

from __future__ import annotations

import re

import pytest
import trio

from fep.domain import errors
from fep.domain.errors import FepError
from fep.domain.words import counted

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


async def test_why_nobody_takes_a_connection_is_told_in_the_systems_words() -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match="all attempts") as caught:
            await trio.open_tcp_stream("127.0.0.1", port)
        assert errors.reason_of(caught.value) == "Connection refused"


def test_a_reason_is_what_there_is() -> None:
    assert errors.reason_of(OSError("no words of the system's")) == "no words of the system's"
    silent = ValueError()
    silent.__cause__ = KeyError("inside")
    assert errors.reason_of(silent) == "'inside'"
    assert errors.reason_of(ValueError()) == ""


def test_one_is_not_counted_as_many() -> None:
    assert [counted(number, "fault") for number in (0, 1, 2)] == ["0 faults", "1 fault", "2 faults"]
