"""The virtual PIV card by itself: any input, chaining, counters, PIN rules, signatures."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fep.domain.clock import SystemClock
from fep.sandbox.ukey import tlv
from fep.sandbox.ukey.apdu import CHAIN_BYTES_MAX, Ins
from fep.sandbox.ukey.build import default_directory, prepare_directory
from fep.sandbox.ukey.keypair import KeyPair, PinPolicy, raw_rsa_by_pow
from fep.sandbox.ukey.personalise import Personality, guid_of, load_keys, personalise
from fep.sandbox.ukey.piv import (
    AID,
    ATR,
    FACTORY_MANAGEMENT_KEY,
    OBJECT_BYTES_MAX,
    KeyReference,
    PivCard,
)

GUID = bytes(range(16))
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
DIGEST = hashlib.sha256(b"pay 100.00").digest()

SELECT = bytes.fromhex("00A404000BA000000308000010000100")
PIN_OK = bytes.fromhex("0020008008313233343536FFFF")
PIN_WRONG = bytes.fromhex("0020008008393939393939FFFF")
PIN_QUERY = bytes.fromhex("00200080")


@pytest.fixture(scope="module")
def personality() -> Personality:
    cache = prepare_directory(default_directory() / "keys")
    return personalise("Unit card", GUID, load_keys(cache, "card-00"), SystemClock().now())


@pytest.fixture
def card(personality: Personality) -> PivCard:
    made = personality.make_card()
    assert status(made.process(SELECT)) == "9000"
    return made


def status(response: bytes) -> str:
    return response[-2:].hex().upper()


def apdu(ins: int, p1: int, p2: int, data: bytes = b"") -> bytes:
    """Return an extended command, so that no test has to think of lengths."""
    body = b"\x00" + len(data).to_bytes(2, "big") + data if data else b"\x00"
    return bytes([0, ins, p1, p2]) + body + b"\x00\x00"


def authenticate(algorithm: int, key: int, tag: int, value: bytes) -> bytes:
    template = tlv.encode(0x7C, tlv.encode(0x82, b"") + tlv.encode(tag, value))
    return apdu(Ins.GENERAL_AUTHENTICATE, algorithm, key, template)


def result(response: bytes) -> bytes:
    assert status(response) == "9000"
    return tlv.decode(tlv.decode(response[:-2])[0x7C])[0x82]


def pkcs1_block(digest: bytes) -> bytes:
    info = SHA256_PREFIX + digest
    return b"\x00\x01" + b"\xff" * (253 - len(info)) + b"\x00" + info


def sign_rsa(card: PivCard, key: int = 0x9C) -> bytes:
    return card.process(authenticate(0x07, key, 0x81, pkcs1_block(DIGEST)))


def admit_management(card: PivCard) -> None:
    """Run the mutual authentication as ykman does."""
    cipher = Cipher(TripleDES(FACTORY_MANAGEMENT_KEY), modes.ECB())
    ask = apdu(Ins.GENERAL_AUTHENTICATE, 0x03, 0x9B, tlv.encode(0x7C, tlv.encode(0x80, b"")))
    witness = tlv.decode(tlv.decode(card.process(ask)[:-2])[0x7C])[0x80]
    decryptor = cipher.decryptor()
    plain = decryptor.update(witness) + decryptor.finalize()
    question = tlv.encode(0x80, plain) + tlv.encode(0x81, b"question")
    response = card.process(apdu(Ins.GENERAL_AUTHENTICATE, 0x03, 0x9B, tlv.encode(0x7C, question)))
    encryptor = cipher.encryptor()
    assert result(response) == encryptor.update(b"question") + encryptor.finalize()


def public_key(card: PivCard, reference: KeyReference) -> x509.Certificate:
    return x509.load_der_x509_certificate(card.certificate(reference))


def object_command(ins: int, tag: int, value: bytes | None = None) -> bytes:
    name = tlv.encode(0x5C, tag.to_bytes((tag.bit_length() + 7) // 8, "big"))
    return apdu(ins, 0x3F, 0xFF, name if value is None else name + tlv.encode(0x53, value))


# Any input.


@settings(max_examples=500, deadline=None)
@given(commands=st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_give_a_status_word(personality: Personality, commands: list[bytes]) -> None:
    card = personality.make_card()
    for command in commands:
        assert len(card.process(command)) >= 2


KNOWN_BODIES = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(
        st.sampled_from([0x01, 0x02, 0x06, 0x53, 0x5C, 0x7C, 0x80, 0x81, 0x82, 0x85, 0xAA, 0xAC]),
        st.one_of(st.binary(max_size=40), st.just(tlv.encode(0x80, b"\x11"))),
        max_size=3,
    ).map(lambda members: b"".join(tlv.encode(tag, value) for tag, value in members.items())),
)


@settings(max_examples=500, deadline=None)
@given(
    commands=st.lists(
        st.tuples(
            st.sampled_from([0x00, 0x10]),
            st.sampled_from([*Ins]),
            st.sampled_from([0x00, 0x03, 0x07, 0x11, 0x3F, 0xFF]),
            st.sampled_from([0x00, 0x80, 0x81, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0xFF]),
            KNOWN_BODIES,
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_commands_with_odd_bodies_give_a_status_word(
    personality: Personality, commands: list[tuple[int, int, int, int, bytes, bool]]
) -> None:
    card = personality.make_card()
    card.process(SELECT)
    card.process(PIN_OK)
    admit_management(card)
    for cla, ins, p1, p2, body, wrapped in commands:
        data = tlv.encode(0x7C if ins == Ins.GENERAL_AUTHENTICATE else 0xAC, body)
        command = apdu(ins, p1, p2, data if wrapped else body)
        assert len(card.process(bytes([cla]) + command[1:])) >= 2


@given(tag=st.sampled_from([0x30, 0x7E, 0x5FC102, 0x7F49]), value=st.binary(max_size=400))
def test_tlv_reads_what_it_writes(tag: int, value: bytes) -> None:
    assert tlv.decode(tlv.encode(tag, value)) == {tag: value}


@given(st.binary(max_size=60))
def test_tlv_decodes_or_says_why_not(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(len(value) <= len(data) for value in tlv.decode(data).values())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", "6700"),
        ("00A404", "6700"),
        ("00A4040005A00000", "6700"),  # says five, brings three
        ("00A404000000", "6700"),  # half an extended length
        ("0CA4040000", "6E00"),  # secure messaging
        ("80A4040000", "6E00"),
        ("0012000000", "6D00"),
        ("00C0000000", "6985"),  # nothing left to fetch
    ],
)
def test_malformed_commands(card: PivCard, command: str, expected: str) -> None:
    assert status(card.process(bytes.fromhex(command))) == expected


# Selection, chaining, long responses.


def test_nothing_works_before_select(personality: Personality) -> None:
    card = personality.make_card()
    assert status(card.process(PIN_QUERY)) == "6D00"
    assert status(card.process(bytes.fromhex("00A4040005A000000527"))) == "6A82"
    assert status(card.process(PIN_QUERY)) == "6D00"
    assert AID[5:] in card.process(bytes.fromhex("00A4040005A000000308"))
    assert status(card.process(PIN_QUERY)) == "63C3"


def test_atr_is_t1_and_not_a_usb_yubikey() -> None:
    checksum = 0
    for byte in ATR[1:]:
        checksum ^= byte
    assert checksum == 0
    assert ATR[1] & 0xF0 != 0xF0


def test_a_chained_signature_equals_an_unchained_one(card: PivCard) -> None:
    whole = authenticate(0x07, 0x9A, 0x81, pkcs1_block(DIGEST))
    body = whole[7:-2]
    card.process(PIN_OK)
    assert status(card.process(b"\x10\x87\x07\x9a\xff" + body[:255])) == "9000"
    first = card.process(b"\x00\x87\x07\x9a" + bytes([len(body) - 255]) + body[255:])
    assert len(first) == 258
    assert status(first) == "6108"
    rest = card.process(bytes.fromhex("00C0000008"))
    assert first[:-2] + rest == card.process(whole)


def test_another_command_ends_an_open_chain_and_a_pending_response(card: PivCard) -> None:
    card.process(PIN_OK)
    assert status(card.process(b"\x10\x87\x07\x9a\x02\x7c\x00")) == "9000"
    assert status(card.process(PIN_QUERY)) == "9000"
    read = bytes.fromhex("00CB3FFF055C035FC10500")  # a certificate, longer than 256 bytes
    assert card.process(read)[-2] == 0x61
    card.process(PIN_QUERY)
    assert status(card.process(bytes.fromhex("00C0000000"))) == "6985"


def test_a_chain_has_an_end(card: PivCard) -> None:
    piece = b"\x10\x87\x07\x9a\xff" + bytes(255)
    answers = [status(card.process(piece)) for _ in range(CHAIN_BYTES_MAX // 255 + 1)]
    assert answers == ["9000"] * (CHAIN_BYTES_MAX // 255) + ["6700"]


def test_losing_power_forgets_selection_pin_and_management(card: PivCard) -> None:
    card.process(PIN_OK)
    admit_management(card)
    card.power_off()
    assert status(sign_rsa(card)) == "6D00"
    card.process(SELECT)
    assert status(sign_rsa(card)) == "6982"
    assert status(card.process(object_command(Ins.PUT_DATA, 0x5FC109, b"x"))) == "6982"


# PIN and PUK.


def test_three_wrong_pins_block_and_the_puk_unblocks(card: PivCard) -> None:
    assert [status(card.process(PIN_WRONG)) for _ in range(3)] == ["63C2", "63C1", "6983"]
    assert status(card.process(PIN_OK)) == "6983"
    assert status(card.process(PIN_QUERY)) == "6983"
    unblock = apdu(0x2C, 0, 0x80, b"12345678" + b"654321\xff\xff")
    assert status(card.process(unblock)) == "9000"
    assert status(card.process(PIN_OK)) == "63C2"
    assert status(card.process(bytes.fromhex("0020008008363534333231FFFF"))) == "9000"


def test_asking_for_the_counter_spends_no_try(card: PivCard) -> None:
    assert [status(card.process(PIN_QUERY)) for _ in range(5)] == ["63C3"] * 5
    card.process(PIN_OK)
    assert status(card.process(PIN_QUERY)) == "9000"


def test_a_right_pin_restores_the_counter_and_a_wrong_one_takes_the_verification(
    card: PivCard,
) -> None:
    card.process(PIN_WRONG)
    card.process(PIN_OK)
    assert card.pin_tries_left == 3
    card.process(PIN_WRONG)
    assert status(sign_rsa(card, 0x9A)) == "6982"


def test_three_wrong_puks_block_the_puk(card: PivCard) -> None:
    wrong = apdu(0x2C, 0, 0x80, b"00000000" + b"654321\xff\xff")
    assert [status(card.process(wrong)) for _ in range(4)] == ["63C2", "63C1", "6983", "6983"]
    assert status(card.process(PIN_OK)) == "9000"


@pytest.mark.parametrize("new", [b"12345\xff\xff\xff", b"\xff" * 8, b"12\xff45678"])
def test_a_new_pin_has_six_to_eight_characters(card: PivCard, new: bytes) -> None:
    old = b"123456\xff\xff"
    assert status(card.process(apdu(Ins.CHANGE_REFERENCE, 0, 0x80, old + new))) == "6A80"
    assert status(card.process(PIN_OK)) == "9000"


def test_block_pin_is_what_three_wrong_pins_do(card: PivCard) -> None:
    card.process(PIN_OK)
    card.block_pin()
    assert status(card.process(PIN_OK)) == "6983"
    assert status(sign_rsa(card)) == "6982"


# Signatures.


def test_9c_wants_a_fresh_pin_for_each_signature(card: PivCard) -> None:
    assert status(sign_rsa(card)) == "6982"
    card.process(PIN_OK)
    assert [status(sign_rsa(card)) for _ in range(2)] == ["9000", "6982"]
    assert status(sign_rsa(card, 0x9A)) == "9000"  # the PIN itself is still verified
    card.process(PIN_OK)
    assert status(sign_rsa(card)) == "9000"


def test_9a_wants_the_pin_once_and_9e_never(card: PivCard) -> None:
    ask_9e = authenticate(0x11, 0x9E, 0x81, DIGEST)
    assert status(card.process(ask_9e)) == "9000"
    card.process(PIN_OK)
    assert [status(sign_rsa(card, 0x9A)) for _ in range(3)] == ["9000"] * 3


def test_signatures_verify_against_the_certificates(card: PivCard) -> None:
    card.process(PIN_OK)
    rsa_public = public_key(card, KeyReference.SIGNATURE).public_key()
    assert isinstance(rsa_public, rsa.RSAPublicKey)
    digest = Prehashed(hashes.SHA256())
    rsa_public.verify(result(sign_rsa(card)), DIGEST, padding.PKCS1v15(), digest)
    ec_public = public_key(card, KeyReference.CARD_AUTHENTICATION).public_key()
    assert isinstance(ec_public, ec.EllipticCurvePublicKey)
    signature = result(card.process(authenticate(0x11, 0x9E, 0x81, DIGEST)))
    ec_public.verify(signature, DIGEST, ec.ECDSA(digest))


@settings(max_examples=20, deadline=None)
@given(payload=st.binary(min_size=1, max_size=240))
def test_the_quick_rsa_path_is_the_same_number(personality: Personality, payload: bytes) -> None:
    key = personality.keys[KeyReference.SIGNATURE]
    block = b"\x00\x01" + b"\xff" * (253 - len(payload)) + b"\x00" + payload
    assert isinstance(key.private, rsa.RSAPrivateKey)
    assert key.answer(block) == raw_rsa_by_pow(key.private, block)


@settings(max_examples=20, deadline=None)
@given(block=st.binary(min_size=255, max_size=255))
def test_raw_rsa_is_undone_by_the_public_key(personality: Personality, block: bytes) -> None:
    key = personality.keys[KeyReference.AUTHENTICATION]
    assert isinstance(key.private, rsa.RSAPrivateKey)
    public = key.private.public_key().public_numbers()
    answer = key.answer(b"\x00" + block)
    assert pow(int.from_bytes(answer, "big"), public.e, public.n) == int.from_bytes(block, "big")


def test_key_agreement_on_9d(card: PivCard) -> None:
    peer = ec.generate_private_key(ec.SECP256R1())
    numbers = peer.public_key().public_numbers()
    point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    command = authenticate(0x11, 0x9D, 0x85, point)
    assert status(card.process(command)) == "6982"
    card.process(PIN_OK)
    public = public_key(card, KeyReference.KEY_MANAGEMENT).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert result(card.process(command)) == peer.exchange(ec.ECDH(), public)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (authenticate(0x11, 0x9A, 0x81, DIGEST), "6A80"),  # an RSA key
        (authenticate(0x07, 0x9A, 0x81, DIGEST), "6A80"),  # not a block
        (authenticate(0x07, 0x9A, 0x81, b"\xff" * 256), "6A80"),  # above the modulus
        (authenticate(0x11, 0x9E, 0x81, b"too short"), "6A80"),
        (authenticate(0x11, 0x9D, 0x85, b"\x04" + bytes(64)), "6A80"),  # not on the curve
        (authenticate(0x07, 0x82, 0x81, pkcs1_block(DIGEST)), "6A88"),  # no such key
        (apdu(Ins.GENERAL_AUTHENTICATE, 0x07, 0x9A, b"\x7c\x05\x81"), "6A80"),
    ],
)
def test_what_does_not_fit_the_key_is_refused(card: PivCard, command: bytes, expected: str) -> None:
    card.process(PIN_OK)
    assert status(card.process(command)) == expected


# Identity and administration.


def test_guid_and_certificates_are_where_the_standard_says(card: PivCard) -> None:
    chuid = tlv.decode(card.process(object_command(Ins.GET_DATA, 0x5FC102))[:-2])[0x53]
    assert tlv.decode(chuid)[0x34] == GUID == card.guid
    stored = tlv.decode(card.process(object_command(Ins.GET_DATA, 0x5FC10A))[:-2])[0x53]
    der = tlv.decode(stored)[0x70]
    assert der == card.certificate(KeyReference.SIGNATURE)
    certificate = x509.load_der_x509_certificate(der)
    assert certificate.subject.rfc4514_string() == "CN=Unit card"
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.content_commitment


def test_another_guid_leaves_the_certificate(card: PivCard) -> None:
    before = card.certificate(KeyReference.SIGNATURE)
    card.set_guid(b"\xaa" * 16)
    assert (card.guid, card.certificate(KeyReference.SIGNATURE)) == (b"\xaa" * 16, before)
    with pytest.raises(ValueError, match="16 bytes"):
        card.set_guid(b"short")


def test_a_name_has_always_the_same_guid() -> None:
    assert guid_of("a") == guid_of("a") != guid_of("b")


def test_objects_need_the_management_key_to_change(card: PivCard) -> None:
    put = object_command(Ins.PUT_DATA, 0x5FC10D, b"value")
    assert status(card.process(put)) == "6982"
    admit_management(card)
    assert status(card.process(put)) == "9000"
    assert b"value" in card.process(object_command(Ins.GET_DATA, 0x5FC10D))
    too_long = object_command(Ins.PUT_DATA, 0x5FC10D, bytes(OBJECT_BYTES_MAX + 1))
    assert status(card.process(too_long)) == "6A84"
    card.process(object_command(Ins.PUT_DATA, 0x5FC10D, b""))
    assert status(card.process(object_command(Ins.GET_DATA, 0x5FC10D))) == "6A82"


def test_printed_information_needs_the_pin(card: PivCard) -> None:
    admit_management(card)
    card.process(object_command(Ins.PUT_DATA, 0x5FC109, b"name"))
    assert status(card.process(object_command(Ins.GET_DATA, 0x5FC109))) == "6982"
    card.process(PIN_OK)
    assert status(card.process(object_command(Ins.GET_DATA, 0x5FC109))) == "9000"


def test_a_wrong_answer_does_not_open_the_management(card: PivCard) -> None:
    ask = tlv.encode(0x7C, tlv.encode(0x81, b""))
    card.process(apdu(Ins.GENERAL_AUTHENTICATE, 0x03, 0x9B, ask))
    answer = tlv.encode(0x7C, tlv.encode(0x82, bytes(8)))
    command = apdu(Ins.GENERAL_AUTHENTICATE, 0x03, 0x9B, answer)
    # The second time there is no challenge any more: an answer to nothing is no answer.
    assert [status(card.process(command)) for _ in range(2)] == ["6982", "6982"]


def test_generate_and_import_need_the_management_key(card: PivCard) -> None:
    generate = apdu(Ins.GENERATE, 0, 0x9A, bytes.fromhex("AC03800111"))
    scalar = tlv.encode(0x06, (7).to_bytes(32, "big"))
    bring = apdu(Ins.IMPORT_KEY, 0x11, 0x9C, scalar)
    assert [status(card.process(command)) for command in (generate, bring)] == ["6982"] * 2
    admit_management(card)
    assert [status(card.process(command)) for command in (generate, bring)] == ["9000"] * 2
    metadata = tlv.decode(card.process(apdu(Ins.GET_METADATA, 0, 0x9C))[:-2])
    assert metadata[0x02] == bytes([PinPolicy.ALWAYS, 1])
    assert metadata[0x03] == b"\x02"
    seven = KeyPair.from_p256_scalar(7, PinPolicy.ALWAYS)
    assert metadata[0x04] == seven.public_template()


def test_a_key_import_leaves_the_old_certificate(card: PivCard) -> None:
    before = card.certificate(KeyReference.SIGNATURE)
    admit_management(card)
    card.process(apdu(Ins.IMPORT_KEY, 0x11, 0x9C, tlv.encode(0x06, (7).to_bytes(32, "big"))))
    assert card.certificate(KeyReference.SIGNATURE) == before


@pytest.mark.parametrize(
    "command",
    [
        apdu(Ins.IMPORT_KEY, 0x07, 0x9C, tlv.encode(1, b"\x0f" * 128) + tlv.encode(2, b"\x0e")),
        apdu(Ins.IMPORT_KEY, 0x11, 0x9C, tlv.encode(0x06, bytes(32))),
        apdu(Ins.IMPORT_KEY, 0x14, 0x9C, tlv.encode(0x06, b"\x01")),
        apdu(Ins.GENERATE, 0, 0x9A, bytes.fromhex("AC03800105")),
        apdu(Ins.GENERATE, 0, 0x9A, bytes.fromhex("AC06800111AA0107")),
        apdu(Ins.SET_MANAGEMENT_KEY, 0xFF, 0xFF, b"\x03\x9b\x18" + bytes(23)),
    ],
)
def test_bad_administration_is_refused(card: PivCard, command: bytes) -> None:
    admit_management(card)
    assert status(card.process(command)) == "6A80"


def test_reset_needs_both_counters_at_zero(card: PivCard) -> None:
    card.block_pin()
    assert status(card.process(apdu(Ins.RESET, 0, 0))) == "6985"
    wrong = apdu(0x2C, 0, 0x80, b"00000000" + b"654321\xff\xff")
    for _ in range(3):
        card.process(wrong)
    assert status(card.process(apdu(Ins.RESET, 0, 0))) == "9000"
    assert (card.guid, card.certificate(KeyReference.SIGNATURE)) == (b"", b"")
    assert status(card.process(PIN_OK)) == "9000"
    assert status(sign_rsa(card)) == "6A88"


# The key cache.


@pytest.fixture
def empty_cache(tmp_path: Path) -> Path:
    return prepare_directory(tmp_path / "keys")


def test_keys_are_kept_private_to_their_owner(empty_cache: Path) -> None:
    made = load_keys(empty_cache, "card")
    files = sorted(empty_cache.glob("*.pem"))
    assert len(files) == len(KeyReference)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    again = load_keys(empty_cache, "card")
    assert {reference: key.public_template() for reference, key in again.items()} == {
        reference: key.public_template() for reference, key in made.items()
    }
