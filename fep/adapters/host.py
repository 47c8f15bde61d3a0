"""The simulated bank's half (模拟银行): what ``fep host`` runs, sans-I/O, with named faults.

A host decodes what the adapter encodes and keeps its accounts in a double-entry book that several
hosts share, so that money sent from one bank arrives at the other.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Protocol, runtime_checkable

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from fep.adapters.card import SignAlgorithm
from fep.crypto.sm2 import Sm2Error, Sm2PublicKey
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

    def pay_batch(
        self, bank: BankName, reference: str, requests: Sequence[PaymentRequest], now: dt.datetime
    ) -> list[BookPayment]:
        """Book the rows of a batch, each as ``pay`` does, and keep them together; all at once.

        Raises:
            DuplicateReferenceError: the batch's reference, or a row's, is known; nothing was
                booked.
        """
        ...

    def batch(self, bank: BankName, reference: str) -> list[BookPayment]:
        """Return the rows of a batch in their order, none where it is not known."""
        ...

    def take_back(self, bank: BankName, now: dt.datetime) -> None:
        """Take back this bank's payments whose time for it has come.

        One whose payee has not the money any more stays done.
        """
        ...

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference, or None."""
        ...

    def submitted(
        self, bank: BankName, first: BusinessDate, last: BusinessDate
    ) -> list[BookPayment]:
        """Return the bank's payments that were made on these days (Asia/Shanghai), oldest first."""
        ...

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        """Return the account's lines of these days (Asia/Shanghai), oldest first."""
        ...


class Fault(StrEnum):
    """What every host can do wrong, by name; each is drawn with its probability per request.

    What one bank alone does wrong is named by its host (``FaultyHost``).
    """

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
    DELAYED = "delayed"
    """The right answer, ``DELAY_SECONDS`` late."""
    SPLIT = "split"
    """The answer in many small pieces."""
    TWICE = "twice"
    """The answer, and the same answer again."""
    CUT = "cut"
    """The connection is reset inside the answer."""
    NOISE = "noise"
    """Bytes that are no frame stand before the answer."""
    WRONG_CHARSET = "wrong_charset"
    """The answer's Chinese is not in its charset."""
    STALE_BALANCE = "stale_balance"
    """A balance is told as it was before the account's newest line."""
    LINE_MISSING = "line_missing"
    """A statement lacks the account's newest line."""
    ODD_CURRENCY = "odd_currency"
    """A statement's line is in a currency that nobody knows, where lines have one."""


DELAY_SECONDS: Final = 2.0
PIECES_MAX: Final = 64
"""Of an answer that is split; every place to cut is tried by the conformance suite."""
ODD: Final = "XXX"
"""The currency that nobody knows (ISO 4217: no currency)."""
RETURN_SECONDS_MAX: Final = 60.0
HIDDEN_SECONDS_MAX: Final = 0.9
"""How long a payment that is there may not be found: for less than a scene's "no record" counts."""


@attrs.frozen
class Faults:
    """Probabilities by fault, drawn from one seed."""

    chance: Mapping[Any, float] = attrs.Factory(dict)
    """Of a ``Fault``, or of a bank's own by its name."""
    rng: random.Random = attrs.field(factory=lambda: random.Random(0), repr=False)  # noqa: S311

    @classmethod
    def parse(cls, spec: str, seed: int, own: Collection[str] = ()) -> Faults:
        """Return the faults of a ``name=probability,...`` spec.

        Args:
            spec: the faults.
            seed: of the draws.
            own: names of the bank's own faults.

        Raises:
            ValueError: an unknown name or a probability outside 0..1; the message lists the names.
        """
        known = {*Fault, *own}
        chance: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in spec.split(","))):
            fault, _, number = (piece.strip() for piece in part.partition("="))
            try:
                probability = float(number or "1") if fault in known else None
            except ValueError:
                probability = None
            if probability is None:
                names = ", ".join((*Fault, *own))
                msg = f"{part!r} is not NAME=PROBABILITY with a name of: {names}"
                raise ValueError(msg)
            if not 0.0 <= probability <= 1.0:
                msg = f"{part!r}: the probability must be from 0 to 1"
                raise ValueError(msg)
            chance[fault] = probability
        return cls(chance, random.Random(seed))  # noqa: S311

    def draw(self, fault: str) -> bool:
        """Say whether this fault happens now."""
        probability = self.chance.get(fault, 0.0)
        return probability > 0.0 and self.rng.random() < probability

    def draw_return(self, now: dt.datetime) -> dt.datetime | None:
        """Return when a payment that is done now is taken back, None for never."""
        if not self.draw(Fault.RETURNED):
            return None
        return now + dt.timedelta(seconds=self.rng.uniform(0.0, RETURN_SECONDS_MAX))

    def hides(self, fault: str, booked_at: dt.datetime, now: dt.datetime) -> bool:
        """Say whether a status query does not find a payment that is there.

        Only soon after it was booked: a bank that does so later breaks the word of its card, and
        money would be moved twice by whoever believes that.
        """
        is_young = (now - booked_at).total_seconds() < HIDDEN_SECONDS_MAX
        return is_young and self.draw(fault)


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


_ALL_DAYS: Final = (BusinessDate(dt.date(2000, 1, 1)), BusinessDate(dt.date(2100, 1, 1)))
_NOISE: Final = b"\x00\xff no frame \r\n"
_CHARSET: Final = bytes(byte if byte < 0x80 else 0xFF for byte in range(256))


def on_the_line(answer: Answer, faults: Faults) -> list[Answer]:
    """Return what becomes of an answer on its way: what lines do, whatever they carry."""
    if not answer.data or answer.exit:
        return [answer]
    data = answer.data
    if faults.draw(Fault.CUT):
        end = faults.rng.randrange(len(data))
        return [attrs.evolve(answer, data=data[:end], close=True)]
    if faults.draw(Fault.WRONG_CHARSET):
        data = data.translate(_CHARSET)
    if faults.draw(Fault.NOISE):
        data = _NOISE + data
    if faults.draw(Fault.TWICE):
        data += data
    # Late pieces would mix with other answers.
    if answer.delay_s or not faults.draw(Fault.SPLIT):
        return [attrs.evolve(answer, data=data)]
    places = {faults.rng.randrange(1, len(data) + 1) for _ in range(PIECES_MAX - 1)} | {len(data)}
    cuts = [0, *sorted(places)]
    pieces = [Answer(data[begin:end]) for begin, end in pairwise(cuts)]
    return [*pieces[:-1], attrs.evolve(pieces[-1], close=answer.close)]


@attrs.frozen
class ForgetfulBook:
    """A book of which a bank does not tell the newest: what it books is the book's all the same."""

    inner: Book
    faults: Faults

    def account(self, bank: BankName, number: AccountNumber) -> BookAccount | None:
        """Return the account; maybe with its balance before its newest line."""
        found = self.inner.account(bank, number)
        if found is None or not self.faults.draw(Fault.STALE_BALANCE):
            return found
        newest = self._newest(bank, number)
        if newest is None:
            return found
        out = newest.debit and not newest.back
        before = found.balance + newest.amount if out else found.balance - newest.amount
        return attrs.evolve(found, balance=before)

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        """Return the account's lines; maybe without the newest."""
        found = self.inner.entries(bank, number, first, last)
        return found[:-1] if self.faults.draw(Fault.LINE_MISSING) else found

    def _newest(self, bank: BankName, number: AccountNumber) -> BookEntry | None:
        found = self.inner.entries(bank, number, *_ALL_DAYS)
        return found[-1] if found else None

    def bank_of(self, number: AccountNumber) -> BankName | None:
        """Return which simulated bank keeps an account."""
        return self.inner.bank_of(number)

    def pay(self, bank: BankName, request: PaymentRequest, now: dt.datetime) -> BookPayment:
        """Book one payment."""
        return self.inner.pay(bank, request, now)

    def pay_batch(
        self, bank: BankName, reference: str, requests: Sequence[PaymentRequest], now: dt.datetime
    ) -> list[BookPayment]:
        """Book the rows of a batch."""
        return self.inner.pay_batch(bank, reference, requests, now)

    def batch(self, bank: BankName, reference: str) -> list[BookPayment]:
        """Return the rows of a batch."""
        return self.inner.batch(bank, reference)

    def take_back(self, bank: BankName, now: dt.datetime) -> None:
        """Take back what is to be taken back."""
        self.inner.take_back(bank, now)

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference."""
        return self.inner.payment(bank, client_ref)

    def submitted(
        self, bank: BankName, first: BusinessDate, last: BusinessDate
    ) -> list[BookPayment]:
        """Return the bank's payments of these days."""
        return self.inner.submitted(bank, first, last)


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


@runtime_checkable
class FaultyHost(BankHost, Protocol):
    """A host with faults of its own bank: what only this bank's line does."""

    @property
    def faults(self) -> Mapping[str, str]:
        """What each does, by its name."""
        ...


def own_faults(host: BankHost) -> Mapping[str, str]:
    """Return what a host's own faults do, by their names."""
    return host.faults if isinstance(host, FaultyHost) else {}


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
    if algorithm is SignAlgorithm.SM2_SM3:
        return _verified_by_sm2(certificate, signature, data)
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


def _verified_by_sm2(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    try:
        key = Sm2PublicKey.from_certificate(certificate.public_bytes(Encoding.DER))
    except Sm2Error:
        return False
    return key.verifies(signature, data)
