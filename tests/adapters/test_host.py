"""What simulated banks share: named faults from a seed, and signatures that are really checked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    HIDDEN_SECONDS_MAX,
    BookedState,
    BookPayment,
    DuplicateReferenceError,
    Fault,
    Faults,
    verify,
)
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.sandbox.scene import CARD_CHANGES

NAMES = [fault.value for fault in Fault]


def test_a_payment_is_hidden_for_less_than_a_scene_s_no_record_counts() -> None:
    """Else the bank would break its card's word, and whoever believes it pays twice."""
    assert CARD_CHANGES["inquiry"]["no_record_after_s"] > HIDDEN_SECONDS_MAX
    faults, at = Faults({"lost": 1.0}), dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    for seconds, hidden in ((0.0, True), (HIDDEN_SECONDS_MAX, False), (3600.0, False)):
        now = at + dt.timedelta(seconds=seconds)
        assert faults.hides("lost", at, now) is hidden
    assert not faults.hides("another", at, at)


def drawn(faults: Faults, times: int = 200) -> list[bool]:
    return [faults.draw(fault) for _ in range(times) for fault in Fault]


@pytest.mark.parametrize(
    ("spec", "chance"),
    [
        ("", {}),
        (" , ,", {}),
        ("landed=0.25", {Fault.LANDED: 0.25}),
        ("landed", {Fault.LANDED: 1.0}),
        (" landed = 0.5 , delayed=1e-3", {Fault.LANDED: 0.5, Fault.DELAYED: 0.001}),
        ("landed=0,landed=1", {Fault.LANDED: 1.0}),
        (",".join(f"{name}=0.1" for name in NAMES), dict.fromkeys(Fault, 0.1)),
    ],
)
def test_a_spec_is_names_with_probabilities(spec: str, chance: dict[str, float]) -> None:
    assert Faults.parse(spec, 0).chance == chance


@pytest.mark.parametrize(
    "spec", ["silent", "LANDED=0.1", "landed=x", "=0.5", "landed=0.1;delayed=0.2", "landed=0.1=0.2"]
)
def test_a_wrong_name_or_number_lists_the_names(spec: str) -> None:
    with pytest.raises(ValueError, match="NAME=PROBABILITY") as caught:
        Faults.parse(spec, 0)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_bank_s_own_faults_are_known_where_they_are_named() -> None:
    faults = Faults.parse("token_lost=1,landed=0.5", 0, {"token_lost": "what it does"})
    assert faults.chance == {"token_lost": 1.0, Fault.LANDED: 0.5}
    assert faults.draw("token_lost")
    with pytest.raises(ValueError, match="token_lost"):
        Faults.parse("token=1", 0, {"token_lost": "what it does"})
    with pytest.raises(ValueError, match="NAME=PROBABILITY"):
        Faults.parse("token_lost=1", 0)


@pytest.mark.parametrize("number", ["-0.1", "1.1", "nan", "inf", "-inf", "1e9"])
def test_a_probability_is_from_0_to_1(number: str) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Faults.parse(f"landed={number}", 0)


@given(spec=st.text(alphabet="landed=,.0159 -e", max_size=20), seed=st.integers())
def test_any_spec_is_taken_or_refused(spec: str, seed: int) -> None:
    try:
        faults = Faults.parse(spec, seed)
    except ValueError as error:
        assert "PROBABILITY" in str(error) or "probability" in str(error)  # noqa: PT017
    else:
        assert all(0 <= one <= 1 for one in faults.chance.values())


def test_the_same_seed_draws_the_same_faults() -> None:
    spec = "landed=0.5,delayed=0.1,throttled=0.9"
    first = drawn(Faults.parse(spec, 7))
    assert drawn(Faults.parse(spec, 7)) == first
    assert drawn(Faults.parse(spec, 8)) != first


def test_faults_come_as_often_as_they_are_asked_for() -> None:
    faults = Faults.parse("landed=0.25,delayed=1,throttled=0", 3)
    landed = sum(faults.draw(Fault.LANDED) for _ in range(10_000))
    assert 2_300 < landed < 2_700
    assert all(faults.draw(Fault.DELAYED) for _ in range(1_000))
    assert not any(faults.draw(Fault.THROTTLED) for _ in range(1_000))
    assert not any(drawn(Faults()))


def test_a_fault_that_is_off_does_not_move_the_others() -> None:
    """A failing run is found again when the faults that played no part are left out."""
    first, second = Faults.parse("landed=0.5", 1), Faults.parse("landed=0.5,delayed=0", 1)
    for _ in range(100):
        assert not second.draw(Fault.DELAYED)
        assert first.draw(Fault.LANDED) == second.draw(Fault.LANDED)


# -- signatures ------------------------------------------------------------------------------------

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
DATA = "资金归集".encode()


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "江枫样例制造有限公司")])
    now = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


CERTIFICATES = (certificate(RSA_KEY), certificate(EC_KEY))


def by_rsa(data: bytes) -> bytes:
    return RSA_KEY.sign(data, padding.PKCS1v15(), hashes.SHA256())


def by_ec(data: bytes) -> bytes:
    return EC_KEY.sign(data, ec.ECDSA(hashes.SHA256()))


SIGNERS = [(SignAlgorithm.RSA_SHA256, by_rsa), (SignAlgorithm.ECDSA_SHA256, by_ec)]


@pytest.mark.parametrize(("algorithm", "sign"), SIGNERS)
def test_a_signature_holds_for_its_key_its_data_and_its_algorithm(
    algorithm: SignAlgorithm, sign: Callable[[bytes], bytes]
) -> None:
    signature = sign(DATA)
    assert verify(CERTIFICATES, algorithm, signature, DATA)
    assert not verify(CERTIFICATES, algorithm, signature, DATA + b"\0")
    assert not verify((), algorithm, signature, DATA)
    for other in SignAlgorithm:
        if other is not algorithm:
            assert not verify(CERTIFICATES, other, signature, DATA)
    stranger = certificate(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert not verify((stranger,), algorithm, signature, DATA)


@pytest.mark.parametrize(("algorithm", "sign"), SIGNERS)
def test_a_signature_with_one_bit_turned_does_not_hold(
    algorithm: SignAlgorithm, sign: Callable[[bytes], bytes]
) -> None:
    signature = sign(DATA)
    for place in range(0, len(signature), 7):
        turned = bytearray(signature)
        turned[place] ^= 1
        assert not verify(CERTIFICATES, algorithm, bytes(turned), DATA)


@pytest.mark.parametrize("algorithm", SignAlgorithm)
@given(signature=st.binary(max_size=300))
def test_any_bytes_are_no_signature(algorithm: SignAlgorithm, signature: bytes) -> None:
    assert not verify(CERTIFICATES, algorithm, signature, DATA)


def test_a_known_reference_brings_its_payment() -> None:
    payment = BookPayment(
        bank=BankName("toy"),
        client_ref="F1",
        bank_ref="B1",
        payer=AccountNumber("1"),
        payer_name="江枫样例制造有限公司",
        payee=AccountNumber("2"),
        payee_name="云阶示例贸易有限公司",
        payee_bank_name="",
        amount=Cny(29),
        purpose="",
        state=BookedState.DONE,
        same_bank=True,
        at=dt.datetime(2026, 1, 5, tzinfo=dt.UTC),
    )
    error = DuplicateReferenceError(payment)
    assert error.payment is payment
    assert str(error) == "F1"
