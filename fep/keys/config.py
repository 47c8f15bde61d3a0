"""What the configuration says of a key slot; one that exists is valid."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from fep.domain.ids import SlotName

SIGN_SECONDS_MAX: Final = 600.0

_CREDENTIAL: Final = re.compile(r"[0-9A-Za-z._-]{1,255}")

Backend = Literal["pcsc", "pkcs11", "software"]
KeyReference = Literal["9A", "9C", "9D", "9E"]


def _hex(digits: int) -> Any:  # noqa: ANN401 - an attrs validator
    pattern = re.compile(rf"[0-9a-f]{{{digits}}}")

    def check(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
        if not pattern.fullmatch(value):
            msg = f"{attribute.name} must be {digits} hexadecimal digits"
            raise ValueError(msg)

    return check


def _lower(text: str) -> str:
    return text.replace(" ", "").replace(":", "").lower()


@attrs.frozen
class SecretRef:
    """Where a secret is: a systemd credential's name or a file; exactly one of the two."""

    credential: str | None = None
    """Name below ``$CREDENTIALS_DIRECTORY``."""
    file: Path | None = None

    def __attrs_post_init__(self) -> None:
        if (self.credential is None) == (self.file is None):
            msg = "give either credential or file"
            raise ValueError(msg)
        if self.credential is not None and (
            not _CREDENTIAL.fullmatch(self.credential) or self.credential in {".", ".."}
        ):
            msg = "credential must be a plain name of letters, digits or . _ -"
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"credential {self.credential}" if self.credential else f"file {self.file}"


@attrs.frozen
class CardBinding:
    """Which card is the right one: never a reader's name, always the card's own identity."""

    guid: str = attrs.field(converter=_lower, validator=_hex(32))
    """Tag 34 of the card's CHUID (NIST SP 800-73-4, part 1, 3.1.2), 32 hexadecimal digits."""
    certificate_sha256: str = attrs.field(converter=_lower, validator=_hex(64))
    """SHA-256 of the DER of the certificate of the key that signs, 64 hexadecimal digits."""


@attrs.frozen
class SlotConfig:
    """One ``[[slot]]`` of the configuration."""

    name: SlotName
    backend: Backend = attrs.field(validator=attrs.validators.in_(("pcsc", "pkcs11", "software")))
    card: CardBinding | None = None
    pin: SecretRef | None = None
    """None: an operator unlocks the slot by hand after each insertion."""
    key: SecretRef | None = None
    """Software only: PKCS#8 PEM, mode 0600; a certificate may lie beside it, same name, .crt."""
    key_reference: KeyReference = attrs.field(
        default="9C", validator=attrs.validators.in_(("9A", "9C", "9D", "9E"))
    )
    sign_deadline_s: float = 10.0
    """Seconds one card command sequence may take before the slot is taken for stuck."""

    def __attrs_post_init__(self) -> None:
        if not 0.0 < self.sign_deadline_s <= SIGN_SECONDS_MAX:
            msg = f"sign_deadline_s must be above 0 and at most {SIGN_SECONDS_MAX:g}"
            raise ValueError(msg)
        if self.backend == "pcsc" and self.card is None:
            msg = 'a pcsc slot needs card = { guid = "…", certificate_sha256 = "…" }'
            raise ValueError(msg)
        if self.backend == "pcsc" and self.key is not None:
            msg = "a pcsc slot has its key on the card: leave key out"
            raise ValueError(msg)
        if self.backend == "software" and (self.key is None or self.card or self.pin):
            msg = 'a software slot needs key = { file = "…" } and has neither card nor pin'
            raise ValueError(msg)


def ring_faults(configs: Iterable[SlotConfig]) -> list[str]:
    """Return what is wrong between the slots: one name or one card twice; empty when all is well.

    A card is held exclusively by one slot, so two slots can't share one even for two of its keys.
    """
    faults: list[str] = []
    names: set[str] = set()
    cards: dict[str, str] = {}
    for config in configs:
        if config.name in names:
            faults.append(f"slot {config.name} is there twice")
        names.add(config.name)
        if config.card is not None:
            other = cards.setdefault(config.card.guid, config.name)
            if other != config.name:
                faults.append(f"slots {other} and {config.name} are bound to the same card")
    return faults
