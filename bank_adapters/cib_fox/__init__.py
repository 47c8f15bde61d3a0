"""Industrial Bank's FOX interface (兴业银行 银企直联 FOX): GBK XML over HTTP to the bank's proxy.

Source: the official interface document V4.0.4; the bank was never tried. Bytes to records and back:
``messages``; operations to records: ``requests``; records to outcomes: ``replies``; captured bytes:
``decoder``; the simulated bank: ``host``; every code: ``card.toml``.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.cib_fox.codec import CibFoxCodec
from bank_adapters.cib_fox.config import CARD, NAME, PASSWORD, PASSWORD_BYTES_MAX, CibFoxOptions
from bank_adapters.cib_fox.decoder import DECODER
from bank_adapters.cib_fox.messages import fault
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Protocol, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class CibFoxAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "兴业银行 银企直联 FOX"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = CibFoxOptions
    secret_names: frozenset[str] = frozenset({PASSWORD})
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> CibFoxCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card, options or password can't be used with this adapter.
        """
        if profile.card.signing.by is Signer.SIGN_PORT:
            msg = "card.signing.by: this bank has no sign port; use 'front_end' or 'slot'"
            raise ConfigError(msg)
        if profile.card.transport.protocol is not Protocol.HTTP:
            msg = "card.transport.protocol: this bank speaks 'http'"
            raise ConfigError(msg)
        if not isinstance(profile.options, CibFoxOptions):
            msg = f"options must be a {CibFoxOptions.__name__}"
            raise ConfigError(msg)
        # None while a configuration is only checked. Its own characters are not told.
        password = profile.secrets.get(PASSWORD)
        if password is not None and (not password or fault(password, PASSWORD_BYTES_MAX)):
            msg = f"secrets.{PASSWORD} must be 1 to {PASSWORD_BYTES_MAX} bytes, without < > &"
            raise ConfigError(msg)
        return CibFoxCodec(profile)


ADAPTER: Final[BankAdapter] = CibFoxAdapter()
