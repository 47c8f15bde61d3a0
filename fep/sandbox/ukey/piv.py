"""A virtual PIV card, sans-I/O: command APDU in, response APDU out (NIST SP 800-73-4, part 2).

It speaks enough of Yubico's extensions (version, metadata, import, management key) for ykman and
yubico-piv-tool to administer it. Key references, objects and rules:

========== ========================= ============================
reference  use                       PIN
========== ========================= ============================
9A         authentication            verified once
9C         digital signature         verified anew for each use
9D         key management            verified once
9E         card authentication       none
========== ========================= ============================
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

import attrs
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fep.sandbox.ukey import tlv
from fep.sandbox.ukey.apdu import (
    CHAINING,
    Assembler,
    CardStatusError,
    Command,
    Ins,
    StatusWord,
    status_bytes,
)
from fep.sandbox.ukey.keypair import Algorithm, KeyPair, PinPolicy

FACTORY_PIN: Final = b"123456"
FACTORY_PUK: Final = b"12345678"
FACTORY_MANAGEMENT_KEY: Final = bytes.fromhex("0102030405060708" * 3)

TRIES_MAX: Final = 3
PIN_BYTES_MIN: Final = 6
PIN_BYTES_MAX: Final = 8
OBJECT_BYTES_MAX: Final = 3052
"""Largest data object, as on a YubiKey 5."""
GUID_BYTES: Final = 16

ATR: Final = bytes.fromhex("3B8301464550D1")
"""T=1, historical bytes "FEP". Its T0 must not be Fx: ykman takes that for a YubiKey on USB."""

AID: Final = bytes.fromhex("A000000308000010000100")
_AID_PREFIX_BYTES_MIN: Final = 5
_LABEL: Final = b"FEP virtual UKey"

YUBICO_VERSION: Final = bytes([5, 4, 3])
"""First line with metadata and 3DES management keys; what ykman is told."""


class KeyReference(IntEnum):
    """P2 of GENERAL AUTHENTICATE (SP 800-73-4, part 1, table 4b)."""

    AUTHENTICATION = 0x9A
    SIGNATURE = 0x9C
    KEY_MANAGEMENT = 0x9D
    CARD_AUTHENTICATION = 0x9E


class Dynamic(IntEnum):
    """Tags inside the dynamic authentication template 7C (SP 800-73-4, part 2, table 7)."""

    WITNESS = 0x80
    CHALLENGE = 0x81
    RESPONSE = 0x82
    EXPONENTIATION = 0x85


class Tag(IntEnum):
    """Data objects (SP 800-73-4, part 1, table 3)."""

    DISCOVERY = 0x7E
    CHUID = 0x5FC102
    CCC = 0x5FC107
    FINGERPRINTS = 0x5FC103
    FACIAL_IMAGE = 0x5FC108
    PRINTED_INFORMATION = 0x5FC109


CERTIFICATE_TAG: Final[Mapping[KeyReference, int]] = {
    KeyReference.AUTHENTICATION: 0x5FC105,
    KeyReference.SIGNATURE: 0x5FC10A,
    KeyReference.KEY_MANAGEMENT: 0x5FC10B,
    KeyReference.CARD_AUTHENTICATION: 0x5FC101,
}

DEFAULT_PIN_POLICY: Final[Mapping[KeyReference, PinPolicy]] = {
    KeyReference.AUTHENTICATION: PinPolicy.ONCE,
    KeyReference.SIGNATURE: PinPolicy.ALWAYS,
    KeyReference.KEY_MANAGEMENT: PinPolicy.ONCE,
    KeyReference.CARD_AUTHENTICATION: PinPolicy.NEVER,
}

_PIN_PROTECTED: Final = frozenset({Tag.FINGERPRINTS, Tag.FACIAL_IMAGE, Tag.PRINTED_INFORMATION})

_P1_FORGET: Final = 0xFF
"""Of VERIFY: take the PIN's verification back."""
_REF_PIN: Final = 0x80
_REF_PUK: Final = 0x81
_REF_MANAGEMENT: Final = 0x9B

# OpenSC takes the GUID for the serial number only beside this FASC-N, "not a federal agency"
# (all nines); with any other, every card would have the serial number 0.
_FASC_N: Final = bytes.fromhex("d4e739da739ced39ce739d836858210842108421c84210c3eb")
_EXPIRY: Final = b"20400101"
_CARD_ID_PREFIX: Final = bytes.fromhex("A000000116FF02")

_BLOCK_BYTES: Final[Mapping[int, int]] = {Algorithm.TDES: 8, Algorithm.AES_192: 16}
_MANAGEMENT_KEY_BYTES: Final = 24


@attrs.define
class _Secret:
    """A PIN or PUK with its tries."""

    value: bytes
    factory: bytes
    tries_max: int = TRIES_MAX
    tries_left: int = TRIES_MAX

    @classmethod
    def of(cls, text: bytes) -> _Secret:
        padded = text.ljust(PIN_BYTES_MAX, b"\xff")
        return cls(padded, padded)

    def check(self, candidate: bytes) -> None:
        """Compare and count; a right value restores the tries.

        Raises:
            CardStatusError: 63Cx wrong, x tries left; 6983 none left.
        """
        if self.tries_left and hmac.compare_digest(candidate, self.value):
            self.tries_left = self.tries_max
            return
        self.tries_left = max(0, self.tries_left - 1)
        raise self.refusal()

    def refusal(self) -> CardStatusError:
        """Return the status that tells how many tries are left."""
        if not self.tries_left:
            return CardStatusError(StatusWord.BLOCKED)
        return CardStatusError(StatusWord.TRIES_LEFT | min(self.tries_left, 0xF))

    def change(self, value: bytes) -> None:
        """Set a new value and restore the tries.

        Raises:
            CardStatusError: 6A80, not 6 to 8 characters padded with FF.
        """
        text = value.rstrip(b"\xff")
        if not PIN_BYTES_MIN <= len(text) <= PIN_BYTES_MAX or b"\xff" in text:
            raise CardStatusError(StatusWord.WRONG_DATA)
        self.value = value
        self.tries_left = self.tries_max


@attrs.define
class _Session:
    """What a card forgets when it loses power."""

    selected: bool = False
    pin_verified: bool = False
    pin_fresh: bool = False
    """Verified and not yet used up by a key that wants the PIN each time."""
    management_verified: bool = False
    challenge: bytes = b""
    """What the host must encrypt (single authentication)."""
    witness: bytes = b""
    """What the host must have decrypted (mutual authentication)."""


def chuid(guid: bytes) -> bytes:
    """Return the card holder unique identifier (SP 800-73-4, part 1, table 9), unsigned.

    Raises:
        ValueError: the GUID has not 16 bytes.
    """
    if len(guid) != GUID_BYTES:
        msg = f"a GUID has {GUID_BYTES} bytes, not {len(guid)}"
        raise ValueError(msg)
    fields = ((0x30, _FASC_N), (0x34, guid), (0x35, _EXPIRY), (0x3E, b""), (0xFE, b""))
    return b"".join(tlv.encode(tag, value) for tag, value in fields)


def capability_container(guid: bytes) -> bytes:
    """Return the card capability container (SP 800-73-4, part 1, table 8)."""
    fields = [
        (0xF0, _CARD_ID_PREFIX + guid[:14]),
        *((0xF1, b"\x21"), (0xF2, b"\x21"), (0xF3, b""), (0xF4, b"\x00"), (0xF5, b"\x10")),
        *((tag, b"") for tag in (0xF6, 0xF7, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE)),
    ]
    return b"".join(tlv.encode(tag, value) for tag, value in fields)


def certificate_object(der: bytes) -> bytes:
    """Return the data object around an uncompressed certificate (part 1, table 10)."""
    return tlv.encode(0x70, der) + tlv.encode(0x71, b"\x00") + tlv.encode(0xFE, b"")


class PivCard:
    """One card. It survives any input: every answer ends in a status word, nothing is raised.

    Args:
        guid: the card's identity, 16 bytes, written to the CHUID.
        keys: the private keys by reference.
        certificates: DER certificates by key reference.
        random_bytes: where challenges come from.
        serial: the number Yubico's serial command answers.
    """

    def __init__(
        self,
        guid: bytes,
        keys: Mapping[KeyReference, KeyPair],
        certificates: Mapping[KeyReference, bytes],
        random_bytes: Callable[[int], bytes] = os.urandom,
        serial: int = 0,
    ) -> None:
        self._keys = dict(keys)
        self._objects: dict[int, bytes] = {}
        self._random_bytes = random_bytes
        self._serial = serial
        self._pin = _Secret.of(FACTORY_PIN)
        self._puk = _Secret.of(FACTORY_PUK)
        self._management_algorithm: int = Algorithm.TDES
        self._management_key = FACTORY_MANAGEMENT_KEY
        self._session = _Session()
        self._assembler = Assembler()
        self.set_guid(guid)
        for reference, der in certificates.items():
            self._objects[CERTIFICATE_TAG[reference]] = certificate_object(der)
        self._commands: Final[Mapping[int, Callable[[Command], bytes]]] = {
            Ins.SELECT: self._select,
            Ins.GET_DATA: self._get_data,
            Ins.PUT_DATA: self._put_data,
            Ins.VERIFY: self._verify,
            Ins.CHANGE_REFERENCE: self._change_reference,
            Ins.RESET_RETRY_COUNTER: self._reset_retry_counter,
            Ins.GENERAL_AUTHENTICATE: self._general_authenticate,
            Ins.GENERATE: self._generate,
            Ins.GET_VERSION: lambda _: YUBICO_VERSION,
            Ins.GET_SERIAL: lambda _: self._serial.to_bytes(4, "big"),
            Ins.GET_METADATA: self._get_metadata,
            Ins.IMPORT_KEY: self._import_key,
            Ins.SET_MANAGEMENT_KEY: self._set_management_key,
            Ins.SET_TRIES: self._set_tries,
            Ins.RESET: self._reset,
        }

    # What the world outside the APDU line may see and do.

    @property
    def guid(self) -> bytes:
        """The GUID in the CHUID, empty if there is none any more."""
        return _field(self._objects.get(Tag.CHUID, b""), 0x34)

    def set_guid(self, guid: bytes) -> None:
        """Write CHUID and capability container anew, as re-personalising a card does.

        Raises:
            ValueError: the GUID has not 16 bytes.
        """
        self._objects[Tag.CHUID] = chuid(guid)
        self._objects[Tag.CCC] = capability_container(guid)

    def certificate(self, reference: KeyReference) -> bytes:
        """Return the certificate stored for a key (DER), empty if there is none."""
        return _field(self._objects.get(CERTIFICATE_TAG[reference], b""), 0x70)

    @property
    def pin_tries_left(self) -> int:
        """How many wrong PINs the card would still take."""
        return self._pin.tries_left

    def block_pin(self) -> None:
        """Use up all tries of the PIN, as a person with the wrong one would."""
        self._pin.tries_left = 0
        self._forget_pin()

    def power_off(self) -> None:
        """Forget what lives in the chip's memory only: selection, PIN, chains, challenges."""
        self._session = _Session()
        self._assembler.reset()

    def process(self, apdu: bytes) -> bytes:
        """Return the response APDU; any bytes at all give at least a status word."""
        try:
            return self._process(Command.parse(apdu))
        except CardStatusError as refusal:
            return status_bytes(refusal.status)

    def _process(self, piece: Command) -> bytes:
        if piece.cla & ~CHAINING:
            raise CardStatusError(StatusWord.CLA_NOT_SUPPORTED)
        if piece.ins == Ins.GET_RESPONSE:
            return self._assembler.respond_rest(piece.response_bytes_max)
        command = self._assembler.add(piece)
        if command is None:
            return status_bytes(StatusWord.SUCCESS)
        return self._assembler.respond(self._execute(command), command.response_bytes_max)

    def _execute(self, command: Command) -> bytes:
        run = self._commands.get(command.ins)
        if run is None or not (self._session.selected or command.ins == Ins.SELECT):
            raise CardStatusError(StatusWord.INS_NOT_SUPPORTED)
        return run(command)

    # Selection and data objects.

    def _select(self, command: Command) -> bytes:
        if (command.p1, command.p2) != (0x04, 0x00):
            raise CardStatusError(StatusWord.WRONG_P1_P2)
        if len(command.data) < _AID_PREFIX_BYTES_MIN or not AID.startswith(command.data):
            raise CardStatusError(StatusWord.NOT_FOUND)
        self._session.selected = True
        authority = tlv.encode(0x79, tlv.encode(0x4F, AID[:5]))
        return tlv.encode(0x61, tlv.encode(0x4F, AID[5:]) + authority + tlv.encode(0x50, _LABEL))

    def _get_data(self, command: Command) -> bytes:
        tag = _object_tag(command)
        if tag == Tag.DISCOVERY:
            return tlv.encode(tag, tlv.encode(0x4F, AID) + tlv.encode(0x5F2F, b"\x40\x00"))
        if tag in _PIN_PROTECTED and not self._session.pin_verified:
            raise CardStatusError(StatusWord.SECURITY_NOT_SATISFIED)
        value = self._objects.get(tag)
        if value is None:
            raise CardStatusError(StatusWord.NOT_FOUND)
        return tlv.encode(0x53, value)

    def _put_data(self, command: Command) -> bytes:
        self._require_management()
        tag = _object_tag(command)
        value = _template(command.data).get(0x53)
        if value is None:
            raise CardStatusError(StatusWord.WRONG_DATA)
        if len(value) > OBJECT_BYTES_MAX:
            raise CardStatusError(StatusWord.NO_SPACE)
        if value:
            self._objects[tag] = value
        else:
            self._objects.pop(tag, None)
        return b""

    # PIN and PUK.

    def _verify(self, command: Command) -> bytes:
        if command.p2 != _REF_PIN:
            raise CardStatusError(StatusWord.REFERENCE_NOT_FOUND)
        if command.p1 == _P1_FORGET and not command.data:
            self._forget_pin()
            return b""
        if command.p1 != 0x00:
            raise CardStatusError(StatusWord.WRONG_P1_P2)
        if not command.data:
            if not self._session.pin_verified:
                raise self._pin.refusal()
            return b""
        if len(command.data) != PIN_BYTES_MAX:
            raise CardStatusError(StatusWord.WRONG_DATA)
        self._forget_pin()
        self._pin.check(command.data)
        self._session.pin_verified = self._session.pin_fresh = True
        return b""

    def _change_reference(self, command: Command) -> bytes:
        secret = {_REF_PIN: self._pin, _REF_PUK: self._puk}.get(command.p2)
        if secret is None:
            raise CardStatusError(StatusWord.REFERENCE_NOT_FOUND)
        old, new = _two_secrets(command.data)
        if secret is self._pin:
            self._forget_pin()
        secret.check(old)
        secret.change(new)
        return b""

    def _reset_retry_counter(self, command: Command) -> bytes:
        if command.p2 != _REF_PIN:
            raise CardStatusError(StatusWord.REFERENCE_NOT_FOUND)
        puk, new_pin = _two_secrets(command.data)
        self._puk.check(puk)
        self._pin.change(new_pin)
        return b""

    def _forget_pin(self) -> None:
        self._session.pin_verified = self._session.pin_fresh = False

    # Keys.

    def _general_authenticate(self, command: Command) -> bytes:
        template = _template(_template(command.data).get(0x7C, b""))
        if command.p2 == _REF_MANAGEMENT:
            return self._authenticate_management(command.p1, template)
        key = self._key(command.p2)
        if command.p1 != key.algorithm:
            raise CardStatusError(StatusWord.WRONG_DATA)
        self._use_pin(key.pin_policy)
        try:
            if Dynamic.CHALLENGE in template:
                answer = key.answer(template[Dynamic.CHALLENGE])
            else:
                answer = key.agree(template.get(Dynamic.EXPONENTIATION, b""))
        except ValueError as error:
            raise CardStatusError(StatusWord.WRONG_DATA) from error
        return tlv.encode(0x7C, tlv.encode(Dynamic.RESPONSE, answer))

    def _use_pin(self, policy: PinPolicy) -> None:
        session = self._session
        allowed = {
            PinPolicy.NEVER: True,
            PinPolicy.ONCE: session.pin_verified,
            PinPolicy.ALWAYS: session.pin_fresh,
        }
        if not allowed[policy]:
            raise CardStatusError(StatusWord.SECURITY_NOT_SATISFIED)
        if policy is PinPolicy.ALWAYS:
            session.pin_fresh = False

    def _key(self, reference: int) -> KeyPair:
        for known, key in self._keys.items():
            if known == reference:
                return key
        raise CardStatusError(StatusWord.REFERENCE_NOT_FOUND)

    def _generate(self, command: Command) -> bytes:
        self._require_management()
        reference = _key_reference(command.p2)
        control = _template(_template(command.data).get(0xAC, b""))
        try:
            algorithm = int.from_bytes(control.get(0x80, b""), "big")
            key = KeyPair.generate(algorithm, _pin_policy(control, reference))
        except ValueError as error:
            raise CardStatusError(StatusWord.WRONG_DATA) from error
        self._keys[reference] = key
        return tlv.encode(0x7F49, key.public_template())

    def _import_key(self, command: Command) -> bytes:
        self._require_management()
        reference = _key_reference(command.p2)
        parts = _template(command.data)
        try:
            policy = _pin_policy(parts, reference)
            numbers = {tag: int.from_bytes(value, "big") for tag, value in parts.items()}
            match command.p1:
                case Algorithm.RSA_2048:
                    key = KeyPair.from_rsa_primes(numbers.get(1, 0), numbers.get(2, 0), policy)
                case Algorithm.P_256:
                    key = KeyPair.from_p256_scalar(numbers.get(6, 0), policy)
                case _:
                    raise CardStatusError(StatusWord.WRONG_DATA)
        except ValueError as error:
            raise CardStatusError(StatusWord.WRONG_DATA) from error
        self._keys[reference] = key
        return b""

    # Administration.

    def _authenticate_management(self, algorithm: int, template: dict[int, bytes]) -> bytes:
        """Run one step of single (81, 82) or mutual (80, then 80 and 81) authentication."""
        session = self._session
        challenge, witness = session.challenge, session.witness
        session.challenge = session.witness = b""
        # SP 800-78-4, table 6-2: 00 is 3DES too. OpenSC asks that way for random bytes.
        algorithm = algorithm or Algorithm.TDES
        if algorithm != self._management_algorithm:
            raise CardStatusError(StatusWord.WRONG_DATA)
        size = _BLOCK_BYTES[algorithm]
        match template:
            case {Dynamic.WITNESS: b""}:
                session.witness = self._random_bytes(size)
                reply = tlv.encode(Dynamic.WITNESS, self._encrypt(session.witness))
            case {Dynamic.CHALLENGE: b""}:
                session.challenge = self._random_bytes(size)
                reply = tlv.encode(Dynamic.CHALLENGE, session.challenge)
            case {Dynamic.WITNESS: decrypted, Dynamic.CHALLENGE: question}:
                if len(question) != size:
                    raise CardStatusError(StatusWord.WRONG_DATA)
                self._admit(decrypted, witness)
                reply = tlv.encode(Dynamic.RESPONSE, self._encrypt(question))
            case {Dynamic.RESPONSE: encrypted}:
                self._admit(encrypted, self._encrypt(challenge) if challenge else b"")
                return b""
            case _:
                raise CardStatusError(StatusWord.WRONG_DATA)
        return tlv.encode(0x7C, reply)

    def _admit(self, answer: bytes, expected: bytes) -> None:
        self._session.management_verified = bool(expected) and hmac.compare_digest(answer, expected)
        self._require_management()

    def _encrypt(self, block: bytes) -> bytes:
        key = self._management_key
        is_tdes = self._management_algorithm == Algorithm.TDES
        algorithm = TripleDES(key) if is_tdes else algorithms.AES(key)
        # One random block under ECB is the protocol (SP 800-73-4, part 2, appendix A.1).
        encryptor = Cipher(algorithm, modes.ECB()).encryptor()  # noqa: S305
        return encryptor.update(block) + encryptor.finalize()

    def _require_management(self) -> None:
        if not self._session.management_verified:
            raise CardStatusError(StatusWord.SECURITY_NOT_SATISFIED)

    def _set_management_key(self, command: Command) -> bytes:
        self._require_management()
        data = command.data
        header = bytes([data[0] if data else 0, _REF_MANAGEMENT, _MANAGEMENT_KEY_BYTES])
        is_known = header[0] in _BLOCK_BYTES
        if not is_known or data[:3] != header or len(data) != 3 + _MANAGEMENT_KEY_BYTES:
            raise CardStatusError(StatusWord.WRONG_DATA)
        self._management_algorithm = data[0]
        self._management_key = data[3:]
        return b""

    def _set_tries(self, command: Command) -> bytes:
        self._require_management()
        if not self._session.pin_verified:
            raise CardStatusError(StatusWord.SECURITY_NOT_SATISFIED)
        if not (command.p1 and command.p2):
            raise CardStatusError(StatusWord.WRONG_P1_P2)
        for secret, tries in ((self._pin, command.p1), (self._puk, command.p2)):
            secret.value = secret.factory
            secret.tries_max = secret.tries_left = tries
        self._forget_pin()
        return b""

    def _reset(self, _: Command) -> bytes:
        """Return to the state of a new card: no keys, no objects, everything at factory values."""
        if self._pin.tries_left or self._puk.tries_left:
            raise CardStatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
        self._keys.clear()
        self._objects.clear()
        self._pin = _Secret.of(FACTORY_PIN)
        self._puk = _Secret.of(FACTORY_PUK)
        self._management_algorithm = Algorithm.TDES
        self._management_key = FACTORY_MANAGEMENT_KEY
        self._session = _Session(selected=True)
        return b""

    def _get_metadata(self, command: Command) -> bytes:
        """Answer Yubico's metadata: 01 algorithm, 02 policies, 03 origin, 04 key, 05, 06 tries."""
        touch_never = 1
        secret = {_REF_PIN: self._pin, _REF_PUK: self._puk}.get(command.p2)
        if secret is not None:
            fields = [
                (0x01, b"\xff"),
                (0x05, bytes([secret.value == secret.factory])),
                (0x06, bytes([secret.tries_max, secret.tries_left])),
            ]
        elif command.p2 == _REF_MANAGEMENT:
            fields = [
                (0x01, bytes([self._management_algorithm])),
                (0x02, bytes([0, touch_never])),
                (0x05, bytes([self._management_key == FACTORY_MANAGEMENT_KEY])),
            ]
        else:
            key = self._key(command.p2)
            fields = [
                (0x01, bytes([key.algorithm])),
                (0x02, bytes([key.pin_policy, touch_never])),
                (0x03, bytes([key.origin])),
                (0x04, key.public_template()),
            ]
        return b"".join(tlv.encode(tag, value) for tag, value in fields)


def _template(data: bytes) -> dict[int, bytes]:
    """Return the data objects a command carries.

    Raises:
        CardStatusError: 6A80, not BER-TLV.
    """
    try:
        return tlv.decode(data)
    except ValueError as error:
        raise CardStatusError(StatusWord.WRONG_DATA) from error


def _field(data: bytes, tag: int) -> bytes:
    """Return one field of a stored object, empty if the object is not what it should be."""
    try:
        return tlv.decode(data).get(tag, b"")
    except ValueError:
        return b""


def _object_tag(command: Command) -> int:
    if (command.p1, command.p2) != (0x3F, 0xFF):
        raise CardStatusError(StatusWord.WRONG_P1_P2)
    tag = _template(command.data).get(0x5C)
    if not tag:
        raise CardStatusError(StatusWord.WRONG_DATA)
    return int.from_bytes(tag, "big")


def _two_secrets(data: bytes) -> tuple[bytes, bytes]:
    if len(data) != 2 * PIN_BYTES_MAX:
        raise CardStatusError(StatusWord.WRONG_DATA)
    return data[:PIN_BYTES_MAX], data[PIN_BYTES_MAX:]


def _key_reference(p2: int) -> KeyReference:
    try:
        return KeyReference(p2)
    except ValueError as error:
        raise CardStatusError(StatusWord.WRONG_P1_P2) from error


def _pin_policy(template: Mapping[int, bytes], reference: KeyReference) -> PinPolicy:
    """Return the PIN policy asked for (tag AA), else the default of the key reference.

    Raises:
        ValueError: no such policy.
    """
    asked = int.from_bytes(template.get(0xAA, b""), "big")
    return PinPolicy(asked) if asked else DEFAULT_PIN_POLICY[reference]
