"""Agricultural Bank of China through its ICT program (农业银行 银企通 ICT): XML in a 7-byte frame.

The worked example of ``docs/adapters.md``. ``messages`` cuts and builds frames, ``codec`` prints
operations and reads what answers mean, ``decoder`` shows captured bytes, ``host`` is the simulated
bank; ``card.toml`` holds every code. Made from public integrations; never tried live.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import attrs

from bank_adapters.abc_ict.codec import AbcIctCodec, AbcIctOptions
from bank_adapters.abc_ict.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, card_from_toml
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""


@attrs.frozen
class AbcIctAdapter:
    """The registration value of this bank."""

    name: str = "abc_ict"
    title: str = CARD.identity.title
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset({Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS})
    card: BehaviourCard = CARD
    options_class: type[Any] = AbcIctOptions
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> AbcIctCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if not isinstance(profile.options, AbcIctOptions):
            msg = f"options must be a {AbcIctOptions.__name__}"
            raise ConfigError(msg)
        return AbcIctCodec(profile)


ADAPTER: Final[BankAdapter] = AbcIctAdapter()
