"""China Construction Bank's enterprise platform (建设银行 外联平台): XML over plain TCP.

Source: the names and meanings of public integrations; no official document was read, and the bank
was never tried. ``messages`` cuts and builds the envelope, ``requests`` prints operations as
trades, ``replies`` reads what answers mean, ``codec`` joins them, ``host`` is the simulated bank.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.ccb_wlpt.codec import CcbWlptCodec
from bank_adapters.ccb_wlpt.config import CARD, NAME, PASSWORD, CcbWlptOptions
from bank_adapters.ccb_wlpt.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.ids import SHORT_REF_DIGITS_MIN
from fep.domain.order import Kind


@attrs.frozen
class CcbWlptAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "中国建设银行 外联平台"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = CcbWlptOptions
    secret_names: frozenset[str] = frozenset({PASSWORD})
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> CcbWlptCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        if profile.card.signing.by is not Signer.SLOT:
            msg = "card.signing.by: SIGN_INFO is made by our key; use 'slot'"
            raise ConfigError(msg)
        dedupe = profile.card.dedupe
        if not dedupe.digits or not SHORT_REF_DIGITS_MIN <= dedupe.length_max <= 16:
            msg = "card.dedupe: REQUEST_SN takes 12 to 16 digits"
            raise ConfigError(msg)
        if not isinstance(profile.options, CcbWlptOptions):
            msg = f"options must be a {CcbWlptOptions.__name__}"
            raise ConfigError(msg)
        return CcbWlptCodec(profile)


ADAPTER: Final[BankAdapter] = CcbWlptAdapter()
