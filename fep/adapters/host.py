"""The simulated bank's half (模拟银行): what ``fep host`` runs, sans-I/O, with named faults.

A host decodes what the adapter encodes and keeps its accounts in a double-entry book that several
hosts share, so that money sent from one bank arrives at the other.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Protocol

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fep.adapters.card import SignAlgorithm
from fep.domain.clock import BusinessDate, Clock
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny


@attrs.frozen
class BookAccount:
    """One account in the book of all banks."""

    bank: BankName
    number: AccountNumber
    name: str
    balance: Cny


class BookedState(StrEnum):
    """What became of a payment in the book."""

    DONE = "done"
    LANDED = "landed"
    """落地: taken, waits for a person at the bank; booked later or never."""
    REFUSED = "refused"
    RETURNED = "returned"
    """退票: done, and taken back."""


@attrs.frozen
class BookPayment:
    """One payment as a bank keeps it."""

    bank: BankName
    client_ref: str
    bank_ref: str
    payer: AccountNumber
    payer_name: str
    payee: AccountNumber
    payee_name: str
    payee_bank_name: str
    amount: Cny
    purpose: str
    state: BookedState
    same_bank: bool
    at: dt.datetime
    reason: str = ""


@attrs.frozen
class BookEntry:
    """One line of one account, newest last."""

    payment_ref: str
    """The payment's bank_ref."""
    client_ref: str
    at: dt.datetime
    debit: bool
    amount: Cny
    balance_after: Cny
    counterparty: AccountNumber
    counterparty_name: str
    counterparty_bank_name: str
    purpose: str
    back: bool = False
    """True for a line of a payment that is taken back: money in for its payer."""


class DuplicateReferenceError(Exception):
    """The bank already knows this reference; ``payment`` is the first one."""

    def __init__(self, payment: BookPayment) -> None:
        super().__init__(payment.client_ref)
        self.payment = payment


@attrs.frozen
class PaymentRequest:
    """What a host asks the book to do."""

    client_ref: str
    payer: AccountNumber
    payee: AccountNumber
    payee_name: str
    payee_bank_name: str
    amount: Cny
    purpose: str
    landed: bool = False
    returns_at: dt.datetime | None = None
    """When it is taken back after it was done (退票), None for never."""


class Book(Protocol):
    """The double-entry book shared by all simulated banks."""

    def account(self, bank: BankName, number: AccountNumber) -> BookAccount | None:
        """Return one bank's account, or None."""
        ...

    def bank_of(self, number: AccountNumber) -> BankName | None:
        """Return which simulated bank keeps an account, None when none does."""
        ...

    def pay(self, bank: BankName, request: PaymentRequest, now: dt.datetime) -> BookPayment:
        """Book one payment at most once for each (bank, client_ref).

        Refused payments (no such payer, not enough money, unknown payee) are recorded as REFUSED
        and move nothing.

        Raises:
            DuplicateReferenceError: the reference is known; nothing was booked.
        """
        ...

    def take_back(self, bank: BankName, now: dt.datetime) -> None:
        """Take back this bank's payments whose time for it has come.

        One whose payee has not the money any more stays done.
        """
        ...

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference, or None."""
        ...

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        """Return the account's lines of these days (Asia/Shanghai), oldest first."""
        ...


class Fault(StrEnum):
    """What a host can do wrong, by name; each is drawn with its probability per request."""

    SILENT_BEFORE_BOOKING = "silent_before_booking"
    """A payment arrives and nothing happens: no booking, no answer."""
    SILENT_AFTER_BOOKING = "silent_after_booking"
    """Booked, and no answer is ever sent."""
    CLOSE_BEFORE_BOOKING = "close_before_booking"
    CLOSE_AFTER_BOOKING = "close_after_booking"
    """Booked, then the connection is reset instead of an answer."""
    EXIT_BEFORE_BOOKING = "exit_before_booking"
    EXIT_AFTER_BOOKING = "exit_after_booking"
    """Booked, then the host's process dies at once, as by kill -9."""
    UNKNOWN_AFTER_BOOKING = "unknown_after_booking"
    """Booked, and the answer is a communication fault of the bank's own front end."""
    LANDED = "landed"
    """Taken, but waits for a person at the bank (落地)."""
    RETURNED = "returned"
    """Done, and taken back up to ``RETURN_SECONDS_MAX`` later (退票)."""
    THROTTLED = "throttled"
    """A query is refused because it came too soon."""
    SIGNED_OFF = "signed_off"
    """A request is refused because the session has ended, where the protocol has one."""
    SIGNED_OFF_AFTER_BOOKING = "signed_off_after_booking"
    """Booked, and answered as if the session had ended before."""
    PENDING = "pending"
    """Booked, and for a while told as unknown at the bank itself, by answers and status queries."""
    ODD_STATE = "odd_state"
    """Booked, and answered with a state that stands in no document."""
    NOT_FOUND = "not_found"
    """A status query does not find a payment that is there."""
    SIGN_ON_REFUSED = "sign_on_refused"
    """User or password is refused, where each request signs on."""
    DELAYED = "delayed"
    """The right answer, ``DELAY_SECONDS`` late."""


DELAY_SECONDS: Final = 2.0
RETURN_SECONDS_MAX: Final = 60.0


@attrs.frozen
class Faults:
    """Probabilities by fault, drawn from one seed."""

    chance: Mapping[Fault, float] = attrs.Factory(dict)
    rng: random.Random = attrs.field(factory=lambda: random.Random(0), repr=False)  # noqa: S311

    @classmethod
    def parse(cls, spec: str, seed: int) -> Faults:
        """Return the faults of a ``name=probability,...`` spec.

        Raises:
            ValueError: an unknown name or a probability outside 0..1; the message lists the names.
        """
        chance: dict[Fault, float] = {}
        for part in filter(None, (piece.strip() for piece in spec.split(","))):
            name, _, number = part.partition("=")
            try:
                fault, probability = Fault(name.strip()), float(number or "1")
            except ValueError as error:
                known = ", ".join(Fault)
                msg = f"{part!r} is not NAME=PROBABILITY with a name of: {known}"
                raise ValueError(msg) from error
            if not 0.0 <= probability <= 1.0:
                msg = f"{part!r}: the probability must be from 0 to 1"
                raise ValueError(msg)
            chance[fault] = probability
        return cls(chance, random.Random(seed))  # noqa: S311

    def draw(self, fault: Fault) -> bool:
        """Say whether this fault happens now."""
        probability = self.chance.get(fault, 0.0)
        return probability > 0.0 and self.rng.random() < probability

    def draw_return(self, now: dt.datetime) -> dt.datetime | None:
        """Return when a payment that is done now is taken back, None for never."""
        if not self.draw(Fault.RETURNED):
            return None
        return now + dt.timedelta(seconds=self.rng.uniform(0.0, RETURN_SECONDS_MAX))


@attrs.frozen
class HostProfile:
    """All a simulated bank is given."""

    bank: BankName
    book: Book
    clock: Clock
    faults: Faults
    certificates: tuple[x509.Certificate, ...] = ()
    """Certificates of the enterprise's keys; empty = signatures are not asked for."""


@attrs.frozen
class Answer:
    """What the host's shell does next, in order."""

    data: bytes = b""
    delay_s: float = 0.0
    close: bool = False
    """Reset the connection after ``data``."""
    exit: bool = False
    """End the process at once, without goodbye."""


class HostConnection(Protocol):
    """One connection to a simulated bank."""

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return what to do about these bytes; never raises on bad bytes (answers or closes)."""
        ...


class BankHost(Protocol):
    """What an adapter's package exports as ``HOST``."""

    @property
    def name(self) -> str:
        """The adapter's name."""
        ...

    def open(self, profile: HostProfile) -> HostConnection:
        """Return the host's half of a new connection."""
        ...


def verify(
    certificates: tuple[x509.Certificate, ...],
    algorithm: SignAlgorithm,
    signature: bytes,
    data: bytes,
) -> bool:
    """Say whether any of the certificates' keys made this signature over the data."""
    return any(_verified(one, algorithm, signature, data) for one in certificates)


def _verified(
    certificate: x509.Certificate, algorithm: SignAlgorithm, signature: bytes, data: bytes
) -> bool:
    key = certificate.public_key()
    try:
        if algorithm is SignAlgorithm.RSA_SHA256 and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            return True
        if algorithm is SignAlgorithm.ECDSA_SHA256 and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            return True
    except InvalidSignature:
        return False
    return False
