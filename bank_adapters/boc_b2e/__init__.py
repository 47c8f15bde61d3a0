"""Bank of China's B2E interface (中国银行 银企对接 B2E): XML over HTTP, with a token.

Source: the names and meanings of public integrations; no official document was read, and the bank
was never tried. ``messages`` has the envelope, ``codec`` the session, operations and answers,
``decoder`` shows captured bytes, ``host`` is the simulated bank; ``card.toml`` holds every code.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.boc_b2e.codec import BocB2eCodec
from bank_adapters.boc_b2e.config import CARD, NAME, PASSWORD, BocB2eOptions
from bank_adapters.boc_b2e.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Protocol, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class BocB2eAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "中国银行 银企对接 B2E"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = BocB2eOptions
    secret_names: frozenset[str] = frozenset({PASSWORD})
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> BocB2eCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if profile.card.signing.by is not Signer.SLOT:
            msg = "card.signing.by: payments are signed by our key; use 'slot'"
            raise ConfigError(msg)
        if profile.card.transport.protocol is not Protocol.HTTP:
            msg = "card.transport.protocol: this bank speaks 'http'"
            raise ConfigError(msg)
        if not isinstance(profile.options, BocB2eOptions):
            msg = f"options must be a {BocB2eOptions.__name__}"
            raise ConfigError(msg)
        return BocB2eCodec(profile)


ADAPTER: Final[BankAdapter] = BocB2eAdapter()
