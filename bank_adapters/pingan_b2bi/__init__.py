"""Ping An direct link (平安 银企直联 B2Bi): 222-byte header and GBK XML over TCP.

Sources: 139 real packets of a 2016 test environment (40 trades, 22 error codes) and two public
integrations that agree (dengpplive/EE.Services.Pay, liveqmock/hsxt). ``frames`` cuts and builds
packets, ``bodies`` reads and writes the XML, ``messages`` prints operations as trades, ``replies``
reads what answers mean, ``codec`` joins them, ``host`` is the simulated bank; ``card.toml`` holds
every code.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import attrs

from bank_adapters.pingan_b2bi.codec import PinganCodec
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.decoder import DECODER
from fep.adapters.api import BankProfile
from fep.adapters.card import BehaviourCard, card_from_toml
from fep.adapters.decode import Decoder
from fep.domain.order import Kind


@attrs.frozen
class PinganAdapter:
    """The registration value of this bank."""

    card: BehaviourCard
    name: str = "pingan_b2bi"
    title: str = "平安银行 银企直联 B2Bi"
    capabilities: frozenset[Kind] = frozenset(
        {
            Kind.BALANCE,
            Kind.TRANSFER,
            Kind.BATCH_TRANSFER,
            Kind.TRANSFER_STATUS,
            Kind.STATEMENT,
            Kind.RETURNED_PAYMENTS,
            Kind.BANK_CODE_LOOKUP,
            Kind.POOL_SWEEP,
        }
    )
    options_class: type[PinganOptions] = PinganOptions
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    @property
    def version(self) -> str:
        """Version of the protocol, as the card says."""
        return self.card.identity.version

    def open(self, profile: BankProfile) -> PinganCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: the enterprise code does not fit, or the card wants a sign port.
        """
        return PinganCodec(profile)


ADAPTER: Final = PinganAdapter(
    card_from_toml(files(__name__).joinpath("card.toml").read_text("utf-8"))
)
