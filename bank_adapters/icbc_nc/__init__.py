"""Industrial and Commercial Bank of China through its NetSafe Client (工商银行 银企互联 NC).

Bytes to records and back: ``messages``; operations to records: ``requests``; records to outcomes:
``replies``. Payments are signed by the client's sign port first, or by our key slot.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.icbc_nc.codec import IcbcNcCodec
from bank_adapters.icbc_nc.config import CARD, NAME, IcbcNcOptions
from bank_adapters.icbc_nc.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Protocol, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class IcbcNcAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "中国工商银行 银企互联 NetSafe Client"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = IcbcNcOptions
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> IcbcNcCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if profile.card.signing.by is Signer.FRONT_END:
            msg = "card.signing.by: payments go signed to the send port; use 'sign_port' or 'slot'"
            raise ConfigError(msg)
        if profile.card.transport.protocol is not Protocol.HTTP:
            msg = "card.transport.protocol: this bank speaks 'http'"
            raise ConfigError(msg)
        if not isinstance(profile.options, IcbcNcOptions):
            msg = f"options must be a {IcbcNcOptions.__name__}"
            raise ConfigError(msg)
        return IcbcNcCodec(profile)


ADAPTER: Final[BankAdapter] = IcbcNcAdapter()
