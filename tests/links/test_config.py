"""What a link's configuration takes."""

from __future__ import annotations

import pytest

from fep.domain.ids import BankName
from fep.links.config import LinkConfig

BANK = BankName("toy")


def test_the_defaults_are_those_of_the_manual() -> None:
    config = LinkConfig(BANK, "10.0.0.7", 7070)
    assert (config.heartbeat_s, config.reply_timeout_s, config.connect_timeout_s) == (30, 60, 10)
    assert (config.backoff_first_s, config.backoff_max_s) == (0.5, 60)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_has_sixteen_bits(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        LinkConfig(BANK, "10.0.0.7", port)


@pytest.mark.parametrize(
    "name",
    [
        "heartbeat_s",
        "reply_timeout_s",
        "connect_timeout_s",
        "logon_timeout_s",
        "backoff_first_s",
        "backoff_max_s",
    ],
)
def test_a_span_is_more_than_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        LinkConfig(BANK, "10.0.0.7", 7070, **{name: 0.0})  # type: ignore[arg-type]
