"""ISO 20022 between an enterprise and its bank: pain.001 out, pain.002 and camt in.

Source: the message definitions of ISO 20022; no bank's own guide was followed, and no bank was ever
tried. ``messages`` reads and writes documents, ``facts`` says what stands in them, ``judging`` what
that proves of a payment, ``statements`` what it makes of an account; ``requests`` and ``replies``
are the operations over HTTP or a drop folder, ``codec`` the face to the engine, ``decoder`` shows
captured bytes, ``host`` is the simulated bank; ``card.toml`` holds every code.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from bank_adapters.iso20022.codec import Iso20022Codec
from bank_adapters.iso20022.config import CARD, NAME, Iso20022Options
from bank_adapters.iso20022.decoder import DECODER
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import BehaviourCard, Protocol, Signer
from fep.adapters.decode import Decoder
from fep.domain.errors import ConfigError
from fep.domain.order import Kind


@attrs.frozen
class Iso20022Adapter:
    """The registration value of this protocol."""

    name: str = NAME
    title: str = "ISO 20022 (pain.001, pain.002, camt)"
    version: str = CARD.identity.version
    capabilities: frozenset[Kind] = frozenset(
        {Kind.BALANCE, Kind.TRANSFER, Kind.TRANSFER_STATUS, Kind.STATEMENT}
    )
    card: BehaviourCard = CARD
    options_class: type[Any] = Iso20022Options
    secret_names: frozenset[str] = frozenset()
    decoder: Decoder = DECODER

    def open(self, profile: BankProfile) -> Iso20022Codec:
        """Return the codec of one configured bank.

        Raises:
            ConfigError: its card or options can't be used with this adapter.
        """
        transport, signing = profile.card.transport.protocol, profile.card.signing.by
        if transport not in {Protocol.HTTP, Protocol.FOLDER}:
            msg = "card.transport.protocol: these messages go over 'http' or a 'folder'"
            raise ConfigError(msg)
        if signing is Signer.SIGN_PORT:
            msg = "card.signing.by: there is no signing port; use 'front_end' or 'slot'"
            raise ConfigError(msg)
        if transport is Protocol.FOLDER and signing is not Signer.FRONT_END:
            msg = "card.signing.by: a file is signed by who fetches it; use 'front_end'"
            raise ConfigError(msg)
        if not isinstance(profile.options, Iso20022Options):
            msg = f"options must be a {Iso20022Options.__name__}"
            raise ConfigError(msg)
        return Iso20022Codec(profile)


ADAPTER: Final[BankAdapter] = Iso20022Adapter()
