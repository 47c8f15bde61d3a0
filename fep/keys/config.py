"""What the configuration says of a key slot; one that exists is valid."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from fep.crypto.sm2 import USER_ID, USER_ID_BYTES_MAX
from fep.domain.ids import SlotName

SIGN_SECONDS_MAX: Final = 600.0

_CREDENTIAL: Final = re.compile(r"[0-9A-Za-z._-]{1,255}")

TOKEN_SERIAL_CHARS_MAX: Final = 16
"""Of serialNumber in CK_TOKEN_INFO (PKCS#11 2.40, 3.3); of its label twice as many bytes."""
TOKEN_LABEL_BYTES_MAX: Final = 32
OBJECT_ID_DIGITS_MAX: Final = 128

Backend = Literal["pcsc", "pkcs11", "software"]
KeyReference = Literal["9A", "9C", "9D", "9E"]


def _hex(digits: int) -> Any:  # noqa: ANN401 - an attrs validator
    pattern = re.compile(rf"[0-9a-f]{{{digits}}}")

    def check(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
        if not pattern.fullmatch(value):
            msg = f"{attribute.name} must be {digits} hexadecimal digits"
            raise ValueError(msg)

    return check


def _plain_name(_instance: object, _attribute: object, value: str | None) -> None:
    if value is not None and (not _CREDENTIAL.fullmatch(value) or value in {".", ".."}):
        msg = "credential must be a plain name of letters, digits or . _ -"
        raise ValueError(msg)


def _serial_fits(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if len(value) > TOKEN_SERIAL_CHARS_MAX:
        msg = f"serial has at most {TOKEN_SERIAL_CHARS_MAX} characters"
        raise ValueError(msg)


def _label_fits(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if len(value.encode()) > TOKEN_LABEL_BYTES_MAX:
        msg = f"label has at most {TOKEN_LABEL_BYTES_MAX} bytes"
        raise ValueError(msg)


def _stripped(text: str) -> str:
    return text.strip()


def _lower(text: str) -> str:
    return text.replace(" ", "").replace(":", "").lower()


@attrs.frozen
class SecretRef:
    """Where a secret is: a systemd credential's name or a file; exactly one of the two."""

    credential: str | None = attrs.field(default=None, validator=_plain_name)
    """Name below ``$CREDENTIALS_DIRECTORY``."""
    file: Path | None = None

    def __attrs_post_init__(self) -> None:
        if (self.credential is None) == (self.file is None):
            msg = "give either credential or file"
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
class TokenBinding:
    """Which PKCS#11 token is the right one, and which certificate in it."""

    certificate_sha256: str = attrs.field(converter=_lower, validator=_hex(64))
    """SHA-256 of the DER of the certificate of the key that signs, 64 hexadecimal digits."""
    serial: str = attrs.field(default="", converter=_stripped, validator=_serial_fits)
    label: str = attrs.field(default="", converter=_stripped, validator=_label_fits)
    """Beside the serial where one device shows several tokens; alone for tokens that stand for each
    other, each with a serial of its own."""

    def __attrs_post_init__(self) -> None:
        if not self.serial and not self.label:
            msg = "give serial or label, or both"
            raise ValueError(msg)

    def may_be(self, other: TokenBinding) -> bool:
        """Say whether one token could be both."""
        return all(
            mine in {"", its} or not its
            for mine, its in ((self.serial, other.serial), (self.label, other.label))
        )

    def __str__(self) -> str:
        return self.serial or f"labelled {self.label}"


@attrs.frozen
class ObjectRef:
    """Which private key of a token signs; both empty: that with the certificate's CKA_ID."""

    id: str = attrs.field(default="", converter=_lower)
    """CKA_ID in hexadecimal."""
    label: str = ""
    """CKA_LABEL."""

    def __attrs_post_init__(self) -> None:
        if not re.fullmatch(r"([0-9a-f]{2})*", self.id) or len(self.id) > OBJECT_ID_DIGITS_MAX:
            msg = f"id must be pairs of hexadecimal digits, at most {OBJECT_ID_DIGITS_MAX} digits"
            raise ValueError(msg)


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
    module: Path | None = None
    """PKCS#11 only: the library of the token's maker."""
    token: TokenBinding | None = None
    """PKCS#11 only."""
    object: ObjectRef = ObjectRef()
    """PKCS#11 only."""
    sm2_user_id: str = USER_ID.decode("ascii")
    """Software only: what an SM2 key signs as (用户身份标识); agreed with the bank."""

    @property
    def identity(self) -> str:
        """The GUID of the bound card or the serial of the bound token; may be empty."""
        if self.token is not None:
            return self.token.serial
        return self.card.guid if self.card is not None else ""

    @property
    def bound_certificate(self) -> str:
        """The SHA-256 of the bound certificate; empty for a software key."""
        bound = self.card or self.token
        return bound.certificate_sha256 if bound is not None else ""

    def __attrs_post_init__(self) -> None:
        if not 0 < len(self.sm2_user_id.encode()) <= USER_ID_BYTES_MAX:
            msg = f"sm2_user_id must have 1 to {USER_ID_BYTES_MAX} bytes"
            raise ValueError(msg)
        if self.backend != "software" and self.sm2_user_id.encode() != USER_ID:
            msg = f"sm2_user_id is for software slots; this one is {self.backend}"
            raise ValueError(msg)
        if self.backend == "pkcs11":
            self._check_token()
        elif self.module or self.token or self.object != ObjectRef():
            msg = f"module, token and object are for pkcs11 slots; this one is {self.backend}"
            raise ValueError(msg)
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

    def _check_token(self) -> None:
        if self.module is None or self.token is None:
            msg = (
                'a pkcs11 slot needs module = "/…/library.so" and '
                'token = { serial = "…", certificate_sha256 = "…" }'
            )
            raise ValueError(msg)
        if self.card is not None or self.key is not None:
            msg = "a pkcs11 slot has its key on its token: leave card and key out"
            raise ValueError(msg)


def ring_faults(configs: Iterable[SlotConfig]) -> list[str]:
    """Return what is wrong between the slots: one name or one card twice; empty when all is well.

    A card is held exclusively by one slot, so two slots can't share one even for two of its keys;
    nor a token, whose log-in counts for the whole process.
    """
    faults: list[str] = []
    names: set[str] = set()
    cards: dict[str, str] = {}
    tokens: list[SlotConfig] = []
    for config in configs:
        if config.name in names:
            faults.append(f"slot {config.name} is there twice")
        names.add(config.name)
        if config.card is not None:
            other = cards.setdefault(config.card.guid, config.name)
            if other != config.name:
                faults.append(f"slots {other} and {config.name} are bound to the same card")
        if config.token is not None:
            faults += [
                f"slots {other.name} and {config.name} may be bound to the same token; "
                "give both serial and label"
                for other in tokens
                if other.module == config.module
                and other.token is not None
                and other.token.may_be(config.token)
            ]
            tokens.append(config)
    return faults
