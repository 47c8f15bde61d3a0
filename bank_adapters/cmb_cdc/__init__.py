"""China Merchants Bank without a front end (招商银行 免前置 CloudDC): JSON, SM2 and SM4.

Source: public integrations; no official document was read, and the bank was never tried. Each
request is signed and hidden in this process, with keys among the bank's ``secrets``: nothing else
could sign a heartbeat. ``messages`` has the envelope, ``requests`` and ``replies`` the operations,
``decoder`` shows captured bytes, ``host`` is the simulated bank; ``card.toml`` holds every code.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.cmb_cdc.codec import CmbCdcCodec
from bank_adapters.cmb_cdc.config import CARD, NAME, SIGN_KEY, SM4_KEY, CmbCdcOptions
from bank_adapters.cmb_cdc.decoder import DECODER, CmbCdcDecoder
from bank_adapters.cmb_cdc.messages import sm4_key
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Protocol, SignAlgorithm, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class CmbCdcAdapter:
    """The registration value of this bank."""

    name: str = NAME
    title: str = "招商银行 免前置 CloudDC"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {
            Kind.BALANCE,
            Kind.TRANSFER,
            Kind.TRANSFER_STATUS,
            Kind.STATEMENT,
            Kind.RETURNED_PAYMENTS,
        }
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = CmbCdcOptions
    secret_names: frozenset[str] = frozenset({SIGN_KEY, SM4_KEY})
    decoder: Decoder = DECODER

    def decoder_of(self, profile: BankProfile) -> CmbCdcDecoder:
        """Return the decoder that also reads what one bank's bytes hide.

        Raises:
            ConfigError: the SM4 key is none.
        """
        try:
            key = sm4_key(profile.secrets.get(SM4_KEY, ""))
        except ValueError as error:
            msg = f"secrets: {error}"
            raise ConfigError(msg) from error
        return CmbCdcDecoder(key, profile.options.user_id)

    def open(self, profile: BankProfile) -> CmbCdcCodec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card, options or secrets can't be used with this adapter.
        """
        signing = profile.card.signing
        if signing.by is not Signer.ADAPTER or signing.algorithm is not SignAlgorithm.SM2_SM3:
            msg = "card.signing: this bank's requests are signed by 'adapter' with 'sm2_sm3'"
            raise ConfigError(msg)
        if profile.card.transport.protocol is not Protocol.HTTP:
            msg = "card.transport.protocol: this bank speaks 'http'"
            raise ConfigError(msg)
        if not isinstance(profile.options, CmbCdcOptions):
            msg = f"options must be a {CmbCdcOptions.__name__}"
            raise ConfigError(msg)
        try:
            return CmbCdcCodec.of(profile)
        except ValueError as error:
            msg = f"secrets: {error}"
            raise ConfigError(msg) from error


ADAPTER: Final[BankAdapter] = CmbCdcAdapter()
