"""Our half of PIV against the virtual card, and against cards that answer anything."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.card import SignAlgorithm
from fep.domain.clock import SystemClock
from fep.keys.errors import CardDataError, DeviceError, StatusWordError
from fep.keys.piv import (
    BODY_BYTES_MAX,
    CERTIFICATE_BYTES_MAX,
    RESPONSE_PARTS_MAX,
    Conversation,
    PinAccepted,
    PinCounter,
    PinRefused,
    algorithm_id,
    elements,
    find,
    pin_counter,
    read_certificate,
    read_guid,
    select,
    sign,
    tlv,
    transmit,
    verify_pin,
)
from fep.keys.signatures import card_block, parse_certificate, verifies
from fep.sandbox.ukey.build import default_directory, prepare_directory
from fep.sandbox.ukey.personalise import Personality, load_keys, personalise
from fep.sandbox.ukey.piv import KeyReference, PivCard

T = TypeVar("T")
GUID = bytes(range(16))


def run(conversation: Conversation[T], answer: Callable[[bytes], bytes]) -> T:
    """Carry a conversation with whatever answers."""
    try:
        command = next(conversation)
        while True:
            command = conversation.send(answer(command))
    except StopIteration as stop:
        result: T = stop.value
        return result


def replay(answers: Iterable[bytes]) -> Callable[[bytes], bytes]:
    """Answer from a list, then with an unknown status word for ever."""
    left = iter(answers)
    return lambda _: next(left, b"\x6f\x00")


@pytest.fixture(scope="module")
def personality() -> Personality:
    cache = prepare_directory(default_directory() / "keys")
    return personalise("Unit card", GUID, load_keys(cache, "card-00"), SystemClock().now())


@pytest.fixture
def card(personality: Personality) -> PivCard:
    made = personality.make_card()
    run(select(), made.process)
    return made


def test_identity(card: PivCard) -> None:
    assert run(read_guid(), card.process) == GUID.hex()
    for reference in ("9A", "9C", "9D", "9E"):
        expected = card.certificate(KeyReference(int(reference, 16)))
        assert run(read_certificate(reference), card.process) == expected


def test_the_counter_is_read_without_spending_a_try(card: PivCard) -> None:
    for _ in range(5):
        assert run(pin_counter(), card.process) == PinCounter(3)
    assert run(verify_pin("999999"), card.process) == PinRefused(2)
    assert run(pin_counter(), card.process) == PinCounter(2)
    assert run(verify_pin("123456"), card.process) == PinAccepted()
    assert run(pin_counter(), card.process) == PinCounter(None)
    for left in (2, 1, 0):
        assert run(verify_pin("99999999"), card.process) == PinRefused(left)
    assert run(pin_counter(), card.process) == PinCounter(0)
    assert run(verify_pin("123456"), card.process) == PinRefused(0)


@pytest.mark.parametrize(
    ("reference", "algorithm"),
    [
        ("9A", SignAlgorithm.RSA_SHA256),
        ("9C", SignAlgorithm.RSA_SHA256),
        ("9D", SignAlgorithm.ECDSA_SHA256),
        ("9E", SignAlgorithm.ECDSA_SHA256),
    ],
)
def test_signatures(card: PivCard, reference: Any, algorithm: SignAlgorithm) -> None:
    key = parse_certificate(run(read_certificate(reference), card.process)).card_key
    bits = key.key_size if algorithm is SignAlgorithm.RSA_SHA256 else None
    run(verify_pin("123456"), card.process)
    block = card_block(key, b"data")
    signature = run(sign(reference, algorithm_id(bits), block), card.process)
    assert verifies(key, algorithm, b"data", signature)
    assert not verifies(key, algorithm, b"date", signature)


def test_key_9c_wants_its_pin_each_time(card: PivCard) -> None:
    key = parse_certificate(run(read_certificate("9C"), card.process)).card_key
    run(verify_pin("123456"), card.process)
    run(sign("9C", 0x07, card_block(key, b"x")), card.process)
    with pytest.raises(StatusWordError) as failure:
        run(sign("9C", 0x07, card_block(key, b"x")), card.process)
    assert failure.value.word == 0x6982


def test_a_card_that_was_reset_is_noticed(card: PivCard) -> None:
    card.power_off()
    with pytest.raises(StatusWordError) as failure:
        run(read_guid(), card.process)
    assert failure.value.word == 0x6D00


def test_a_card_without_the_application() -> None:
    with pytest.raises(StatusWordError) as failure:
        run(select(), replay([bytes.fromhex("6A82")]))
    assert failure.value.word == 0x6A82


@given(st.binary(max_size=3 * BODY_BYTES_MAX))
def test_a_body_arrives_whole_in_pieces_that_fit(body: bytes) -> None:
    received: list[bytes] = []

    def answer(command: bytes) -> bytes:
        received.append(command)
        return b"\x90\x00"

    assert run(transmit(0x87, 0x07, 0x9C, body), answer) == (b"", 0x9000)
    assert all(len(command) <= 6 + BODY_BYTES_MAX for command in received)
    assert [command[0] for command in received] == [0x10] * (len(received) - 1) + [0x00]
    assert b"".join(c[5 : 5 + c[4]] if len(c) > 5 else b"" for c in received) == body


@given(st.lists(st.binary(min_size=1, max_size=256), min_size=1, max_size=8))
def test_an_answer_in_parts_is_put_together(parts: list[bytes]) -> None:
    answers = [part + b"\x61\x00" for part in parts[:-1]] + [parts[-1] + b"\x90\x00"]
    assert run(transmit(0xCB, 0x3F, 0xFF), replay(answers)) == (b"".join(parts), 0x9000)


def test_an_answer_without_an_end_is_refused() -> None:
    sent: list[bytes] = []

    def answer(command: bytes) -> bytes:
        sent.append(command)
        return b"x\x61\x01"

    with pytest.raises(CardDataError):
        run(read_guid(), answer)
    assert len(sent) <= RESPONSE_PARTS_MAX + 2


CONVERSATIONS: list[Callable[[], Conversation[Any]]] = [
    select,
    read_guid,
    lambda: read_certificate("9C"),
    pin_counter,
    lambda: verify_pin("123456"),
    lambda: sign("9C", 0x07, bytes(256)),
]


@given(st.sampled_from(CONVERSATIONS), st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_any_answers_give_a_result_or_a_typed_error(
    make: Callable[[], Conversation[Any]], answers: list[bytes], data: st.DataObject
) -> None:
    good = [a + b"\x90\x00" if data.draw(st.booleans()) else a for a in answers]
    try:
        run(make(), replay(good))
    except DeviceError:
        return


@given(st.lists(st.tuples(st.sampled_from([0x53, 0x70, 0x7F49, 0x5FC102]), st.binary())))
def test_tlv_reads_what_it_writes(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(tlv(tag, value) for tag, value in pairs)
    assert list(elements(data)) == pairs
    for tag in {tag for tag, _ in pairs}:
        assert find(data, tag) == next(value for t, value in pairs if t == tag)


def test_long_tlv() -> None:
    assert list(elements(tlv(0x53, bytes(70_000 % 65_536)))) == [(0x53, bytes(4464))]
    for size in (127, 128, 255, 256, 65_535):
        assert list(elements(tlv(0x53, bytes(size)))) == [(0x53, bytes(size))]


@given(st.binary())
def test_any_bytes_are_tlv_or_a_typed_error(data: bytes) -> None:
    try:
        list(elements(data))
    except CardDataError:
        return


def _stored(der: bytes, info: int) -> list[bytes]:
    content = tlv(0x70, der) + tlv(0x71, bytes((info,))) + tlv(0xFE, b"")
    return [tlv(0x53, content) + b"\x90\x00"]


def test_a_compressed_certificate_is_inflated(card: PivCard) -> None:
    der = card.certificate(KeyReference.SIGNATURE)
    assert run(read_certificate("9C"), replay(_stored(gzip.compress(der), 1))) == der
    bomb = gzip.compress(bytes(CERTIFICATE_BYTES_MAX + 1))
    for wrong in (bomb, gzip.compress(der)[:-9], b"not gzip"):
        with pytest.raises(CardDataError):
            run(read_certificate("9C"), replay(_stored(wrong, 1)))


def test_only_keys_that_piv_knows() -> None:
    assert [algorithm_id(bits) for bits in (2048, 3072, 4096, None)] == [7, 5, 0x16, 0x11]
    with pytest.raises(CardDataError):
        algorithm_id(1024)
