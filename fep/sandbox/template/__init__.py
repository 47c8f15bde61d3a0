"""The adapter that ``fep new-adapter`` begins with: a trivial protocol of no bank.

``messages`` cuts and builds frames, ``codec`` prints operations and reads what answers mean,
``decoder`` shows captured bytes, ``host`` is the simulated bank; ``card.toml`` holds every code.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import attrs

from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, card_from_toml
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind
from fep.sandbox.template.codec import TemplateCodec, TemplateOptions
from fep.sandbox.template.decoder import DECODER

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The bank's behaviour card as shipped."""


@attrs.frozen
class TemplateAdapter:
    """The registration value of this bank."""

    name: str = "template"
    title: str = CARD.identity.title
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = TemplateOptions
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> TemplateCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if not isinstance(profile.options, TemplateOptions):
            msg = f"options must be a {TemplateOptions.__name__}"
            raise ConfigError(msg)
        return TemplateCodec(profile)


ADAPTER: Final[BankAdapter] = TemplateAdapter()
