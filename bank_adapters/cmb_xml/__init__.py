"""China Merchants Bank through its front end (招商银行 银企直联): XML ``CMBSDKPGK`` over TCP.

Official developer guide 4.3.1, SOCKET form. Bytes to frames: ``frames``; frames to records:
``messages``; operations to records: ``requests``; records to outcomes: ``replies``.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.cmb_xml.codec import CmbXmlCodec
from bank_adapters.cmb_xml.config import CARD, NAME, CmbXmlOptions
from bank_adapters.cmb_xml.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class CmbXmlAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "招商银行 银企直联 CMBSDKPGK"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {
            Kind.BALANCE,
            Kind.TRANSFER,
            Kind.BATCH_TRANSFER,
            Kind.TRANSFER_STATUS,
            Kind.STATEMENT,
            Kind.RETURNED_PAYMENTS,
        }
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = CmbXmlOptions
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> CmbXmlCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if profile.card.signing.by is Signer.SIGN_PORT:
            msg = "card.signing.by: this bank has no sign port; use 'front_end' or 'slot'"
            raise ConfigError(msg)
        if not isinstance(profile.options, CmbXmlOptions):
            msg = f"options must be a {CmbXmlOptions.__name__}"
            raise ConfigError(msg)
        return CmbXmlCodec(profile)


ADAPTER: Final[BankAdapter] = CmbXmlAdapter()
