"""``fep conformance ADAPTER``: what every adapter must do, tried on one (适配器一致性测试).

Most checks join the adapter's codec and its simulated bank by bytes; the last ones run the daemon
itself against the simulated bank over TCP, with every fault that leaves a payment open. What is
right is the behaviour card's word, and the same for all.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fep.adapters import registry
from fep.adapters.api import (
    Accepted,
    BankAdapter,
    BankCodec,
    BankProfile,
    BatchCodec,
    Context,
    Draft,
    LookupCodec,
    Outcome,
    Refusal,
    Rejected,
    Reply,
    SessionCodec,
    Unclear,
)
from fep.adapters.card import BehaviourCard, SignAlgorithm, Signer, override
from fep.adapters.decode import lines
from fep.adapters.host import BankHost, BookAccount, Fault, Faults, HostProfile, own_faults
from fep.adapters.quality import Example, Status
from fep.client import BlockingClient
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import BodyError, RemoteProtocolError
from fep.domain.ids import (
    BATCH_ROWS_MAX,
    AccountNumber,
    BankName,
    ClientRef,
    TaskId,
    client_ref,
    is_ref_of,
    row_ref,
    short_ref,
)
from fep.domain.ids import Sequence as Numbers
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    BankCodeQuery,
    BankCodes,
    BatchOrder,
    BatchQuery,
    BatchStatus,
    Kind,
    Lookup,
    Operation,
    Payee,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    ReturnedPayments,
    ReturnedQuery,
    Statement,
    StatementQuery,
    StatusQuery,
    Sweep,
)
from fep.sandbox.book import SqliteBook
from fep.sandbox.scene import BankPlan, Scene
from fep.tasks import evidence
from fep.tasks.state import FINAL, State

SEED: Final = 20261126
CUTS: Final = 100
"""Ways to cut a stream that are tried."""
NOISES: Final = 400
"""Byte strings that are no answers, or nearly one."""
FRAME_BYTES: Final = 64 * 1024
"""Size limit of a frame while the bound on memory is tried."""
HELD_FACTOR: Final = 2
LINES: Final = 45
"""Payments whose lines a statement must tell, over several pages at most banks."""
RETURNS: Final = 3
"""Payments that came back, of which a list must tell."""
SPAN_DAYS: Final = 100
"""Longest statement that a client may ask for."""
PAYMENTS: Final = 8
"""Of the daemon's part, for each kind of fault."""
BATCHES: Final = 4
"""Of the daemon's part, too, where the bank takes batches."""
SECRET: Final = "never-to-be-shown"  # noqa: S105 - of no bank
UNLISTED: Final = "ZZZ999"
"""A code that no card lists."""
BANK: Final = BankName("bank")
OURS, PAYEE = AccountNumber("99990000000101"), AccountNumber("99990000000202")
HOLDERS: Final = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
OTHER: Final = Payee(AccountNumber("99990000000303"), "外行示例公司")
OPENING: Final = Cny(10_000_000)
NOW: Final = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY: Final = BusinessDate(dt.date(2026, 1, 5))
ORDER: Final = PaymentOrder(OURS, Payee(PAYEE, HOLDERS[PAYEE]), Cny(100_050), purpose="货款")
BATCH: Final = BatchOrder(tuple(attrs.evolve(ORDER, amount=Cny(100 + at)) for at in range(3)))
SWEEPS: Final = (
    PaymentOrder(PAYEE, Payee(OURS, ""), Cny(70_050), sweep=Sweep.UP),
    PaymentOrder(OURS, Payee(PAYEE, ""), Cny(70_050), sweep=Sweep.DOWN),
)
"""From the child to the parent, and back."""
LOOKUPS: Final[Mapping[Kind, Lookup]] = {
    Kind.RETURNED_PAYMENTS: ReturnedQuery(
        OURS, BusinessDate(DAY - dt.timedelta(days=28)), BusinessDate(DAY + dt.timedelta(days=1))
    ),
    Kind.BANK_CODE_LOOKUP: BankCodeQuery("308", ""),
}
OPEN_FAULTS: Final = (
    Fault.SILENT_BEFORE_BOOKING,
    Fault.SILENT_AFTER_BOOKING,
    Fault.CLOSE_BEFORE_BOOKING,
    Fault.CLOSE_AFTER_BOOKING,
    Fault.EXIT_BEFORE_BOOKING,
    Fault.EXIT_AFTER_BOOKING,
    Fault.UNKNOWN_AFTER_BOOKING,
)
"""After these nobody knows whether a payment was booked."""
NO_SESSION: Final = "the protocol has none"
DAEMON_FAULTS: Final = (
    "silent_after_booking=0.3,close_after_booking=0.2,unknown_after_booking=0.2,delayed=0.1,"
    "signed_off=0.02,signed_off_after_booking=0.1"
)


class _FailedError(Exception):
    """A check that does not hold; says what was seen."""


def _hold(condition: object, saw: str) -> None:
    if not condition:
        raise _FailedError(saw)


class _Clock:
    """Stands still."""

    def now(self) -> dt.datetime:
        return NOW


class Rig:
    """An adapter's codec and its simulated bank, joined by bytes."""

    def __init__(
        self, directory: Path, adapter: BankAdapter, host: BankHost, example: Example
    ) -> None:
        self.adapter = adapter
        by_us = {} if adapter.card.signing.by is Signer.ADAPTER else {"signing": {"by": "slot"}}
        self.card: BehaviourCard = override(adapter.card, by_us)
        self.secrets = _secrets(adapter, example)
        self.host = host
        self._example = example
        self._directory = directory
        self._books = 0
        self.numbers = Numbers()
        self.codec = self.open()
        self._key, self.certificate = _key_of(self.card.signing.algorithm)

    def sealed(self, draft: Draft, *, badly: bool = False) -> bytes:
        """Return a request's bytes, signed as the key slot would, or badly."""
        if draft.to_sign is None:
            return self.codec.seal(draft, None)
        return self.codec.seal(draft, self._key(draft.to_sign + (b"?" if badly else b"")))

    def open(self, changes: Mapping[str, Any] | None = None) -> BankCodec:
        """Return a codec, its card changed."""
        accounts = {number: Account(number, BANK, name) for number, name in HOLDERS.items()}
        return self.adapter.open(
            BankProfile(
                BANK,
                override(self.card, changes or {}),
                self.adapter.options_class(**self._example.options),
                "1",
                accounts,
                "127.0.0.1:1",
                self.secrets,
            )
        )

    @contextmanager
    def bank(self, *faults: str) -> Iterator[Bank]:
        """Open a simulated bank with an empty history, which does these faults always."""
        self._books += 1
        path = self._directory / f"book-{self._books}.sqlite"
        accounts = [BookAccount(BANK, one, name, OPENING) for one, name in HOLDERS.items()]
        book = SqliteBook.create(path, accounts, NOW)
        chance: dict[str, float] = dict.fromkeys(faults, 1.0)
        drawn = Faults(chance, random.Random(SEED))
        profile = HostProfile(BANK, book, _Clock(), drawn, (self.certificate,))
        try:
            yield Bank(self, self.host, profile, book)
        finally:
            book.close()

    @property
    def batch_codec(self) -> BatchCodec:
        """The codec of an adapter that has batches."""
        codec = self.codec
        if not isinstance(codec, BatchCodec):
            msg = "it declares batch_transfer, and its codec carries none"
            raise _FailedError(msg)
        return codec

    @property
    def queries(self) -> tuple[Operation, ...]:
        """Queries that the adapter has, after the payment's own."""
        if Kind.STATEMENT in self.adapter.capabilities:
            return BalanceQuery(OURS), StatementQuery(OURS, DAY, DAY)
        return (BalanceQuery(OURS),)

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Look-ups that the adapter has."""
        return tuple(one for kind, one in LOOKUPS.items() if kind in self.adapter.capabilities)

    @property
    def lookup_codec(self) -> LookupCodec:
        """The codec of an adapter that has look-ups."""
        codec = self.codec
        if not isinstance(codec, LookupCodec):
            msg = "it declares look-ups, and its codec carries none"
            raise _FailedError(msg)
        return codec

    def reference(self, number: int) -> ClientRef:
        """Return the reference of a payment, as the engine makes it."""
        task, dedupe = TaskId(f"T{number}"), self.card.dedupe
        if dedupe.digits:
            return short_ref("E0001", task, dedupe.length_max)
        return client_ref("E0001", task)

    def draft(self, operation: Operation, number: int = 1) -> Draft:
        """Return an operation's request."""
        known = self.reference(number) if isinstance(operation, PaymentOrder) else None
        return self.codec.prepare(operation, self.context(known))

    def context(self, reference: ClientRef | None = None) -> Context:
        """Return what a request is made with."""
        return Context(NOW, self.numbers.next(NOW), reference)

    def status(self, number: int = 1, order: PaymentOrder = ORDER) -> StatusQuery:
        """Return the query after a payment."""
        return StatusQuery(self.reference(number), order, DAY)


@attrs.define
class Bank:
    """One simulated bank."""

    rig: Rig
    host: BankHost
    profile: HostProfile
    book: SqliteBook

    def answer(
        self, operation: Operation, number: int = 1, *, badly: bool = False
    ) -> tuple[Draft, bytes]:
        """Return a request and the bytes of what the bank answers, if anything."""
        self.sign_on()
        draft = self.rig.draft(operation, number)
        request = self.rig.sealed(draft, badly=badly)
        answers = self.host.open(self.profile).receive_data(request)
        return draft, b"".join(one.data for one in answers)

    def sign_on(self) -> None:
        """Sign on as the link does, where the protocol has a session and there is none."""
        codec = self.rig.codec
        if not isinstance(codec, SessionCodec) or codec.is_signed_on:
            return
        draft = codec.logon(self.rig.context())
        _hold(draft is not None, "nobody is signed on, and there is no log-on")
        assert draft is not None
        [reply] = self.exchange(codec.seal(draft, None))
        _hold(codec.alive(reply), f"the log-on is answered with {reply.code!r}")
        codec.signed_on(reply)
        _hold(codec.is_signed_on, "a good log-on signs nobody on")

    def exchange(self, request: bytes) -> list[Reply]:
        """Return the replies to some bytes."""
        answers = self.host.open(self.profile).receive_data(request)
        return self.rig.codec.framer().receive_data(b"".join(one.data for one in answers))

    def replies(self, operation: Operation, number: int = 1) -> list[Reply]:
        """Return the bank's replies."""
        return self.rig.codec.framer().receive_data(self.answer(operation, number)[1])

    def ask(self, operation: Operation, number: int = 1) -> Outcome:
        """Return what the bank's only reply means."""
        replies = self.replies(operation, number)
        _hold(len(replies) == 1, f"{len(replies)} replies to one {_name(operation)}")
        return self.rig.codec.outcome(operation, replies[0])

    def state(self, number: int = 1, order: PaymentOrder = ORDER) -> PaymentState:
        """Return what the bank says of a payment."""
        told = self.ask(self.rig.status(number, order))
        _hold(isinstance(told, Accepted), f"a status query is answered with {told}")
        assert isinstance(told, Accepted)
        assert isinstance(told.result, PaymentStatus)
        return told.result.state

    def look_up(self, lookup: Lookup) -> Reply:
        """Return the bank's only reply to one page of a look-up."""
        self.sign_on()
        draft = self.rig.lookup_codec.prepare_lookup(lookup, self.rig.context())
        replies = self.exchange(self.rig.sealed(draft))
        _hold(len(replies) == 1, f"{len(replies)} replies to one {type(lookup).__name__}")
        return replies[0]

    def listed(self, lookup: Lookup) -> list[Any]:
        """Return what a look-up finds, all pages together, as the engine asks."""
        entries: list[Any] = []
        for _ in range(LINES):
            found = self.rig.lookup_codec.looked_up(lookup, self.look_up(lookup))
            _hold(isinstance(found, Accepted), f"a look-up is answered with {found}")
            assert isinstance(found, Accepted)
            assert isinstance(found.result, ReturnedPayments | BankCodes)
            entries += found.result.entries
            if not found.result.cursor:
                return entries
            lookup = attrs.evolve(lookup, cursor=found.result.cursor)
        msg = "the pages never end"
        raise _FailedError(msg)

    def send(
        self, order: BatchOrder = BATCH, number: int = 1, *, badly: bool = False
    ) -> list[Reply]:
        """Send a batch; return the bank's replies."""
        self.sign_on()
        codec = self.rig.batch_codec
        draft = codec.prepare_batch(order, self.rig.context(self.rig.reference(number)))
        return self.exchange(self.rig.sealed(draft, badly=badly))

    def taken(self, replies: list[Reply], order: BatchOrder = BATCH) -> Outcome:
        """Return what the only reply to a batch means."""
        _hold(len(replies) == 1, f"{len(replies)} replies to one batch")
        return evidence.of_answer(self.rig.codec, order, self.rig.reference(1), replies[0])

    def told(self, order: BatchOrder = BATCH) -> BatchStatus | Unclear:
        """Return what the bank says of a batch's rows, all pages together, as the engine asks."""
        codec, pages = self.rig.batch_codec, list[BatchStatus]()
        query = BatchQuery(self.rig.reference(1), order, DAY)
        while True:
            self.sign_on()
            draft = codec.prepare_batch_status(query, self.rig.context())
            replies = self.exchange(self.rig.sealed(draft))
            _hold(len(replies) <= 1, f"{len(replies)} replies to one page")
            if not replies:
                return Unclear("NO_REPLY", "the page never came")
            found = codec.batch_status(query, replies[0])
            if not isinstance(found, Accepted):
                return Unclear(found.code, found.message)
            page = found.result
            assert isinstance(page, BatchStatus)
            pages.append(page)
            if not page.cursor or evidence.is_undecided(page):
                return evidence.joined(order, pages)
            _hold(len(pages) <= len(order.rows), "the pages never end")
            query = attrs.evolve(query, cursor=page.cursor)

    def states(self, order: BatchOrder = BATCH) -> list[PaymentState]:
        """Return the state of each row of a batch, none where that is not clear."""
        told = self.told(order)
        rows = {} if isinstance(told, Unclear) else told.rows
        return [rows[at].state for at in sorted(rows)]

    def booked_rows(self, order: BatchOrder = BATCH) -> list[int]:
        """Return how often each row moved money."""
        reference = self.rig.reference(1)
        rows = range(len(order.rows))
        return [self.book.times_booked(row_ref(reference, at)) for at in rows]

    @property
    def booked(self) -> int:
        """How many payments moved money."""
        return sum(self.book.times_booked(one.client_ref) for one in self.book.payments())


def _secrets(adapter: BankAdapter, example: Example) -> dict[str, str]:
    return {**dict.fromkeys(adapter.secret_names, SECRET), **example.secrets}


def _key_of(algorithm: SignAlgorithm) -> tuple[Callable[[bytes], bytes], x509.Certificate]:
    """Return what signs, and the certificate that the bank has of it."""
    if algorithm is SignAlgorithm.ECDSA_SHA256:
        curve = ec.generate_private_key(ec.SECP256R1())
        return partial(_sign_ecdsa, curve), _certificate(curve)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return partial(_sign_rsa, key), _certificate(key)


def _sign_ecdsa(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _sign_rsa(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def _certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fep conformance")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def _name(operation: Operation) -> str:
    return type(operation).__name__


EXEMPT: Final[Mapping[str, str]] = {
    "facts_are_compared": "status_checks_facts",
    "signatures": "signature",
    "statements": "statement",
    "batches": "batch_transfer",
    "batches_stay_open": "batch_transfer",
    "sweeps": "pool_sweep",
}
"""The rule of ``quality.toml`` that may say that the bank has nothing of what a check tries."""


# -- the checks -----------------------------------------------------------------------------------


def every_operation(rig: Rig) -> str:
    """What the adapter prints its bank reads, and the other way round."""
    with rig.bank() as bank:
        paid = bank.ask(ORDER)
        _hold(isinstance(paid, Accepted | Unclear), f"a payment is answered with {paid}")
        if isinstance(paid, Accepted):
            assert isinstance(paid.result, PaymentReceipt)
            _hold(paid.result.client_ref == rig.reference(1), "the receipt has another reference")
            _hold(paid.result.amount == ORDER.amount, "the receipt has another amount")
        _hold(bank.booked == 1, f"one payment was booked {bank.booked} times")
        state = bank.state()
        _hold(state is PaymentState.SUCCEEDED, f"the booked payment is {state}")
        balance = bank.ask(BalanceQuery(OURS))
        _hold(isinstance(balance, Accepted), f"a balance query is answered with {balance}")
        assert isinstance(balance, Accepted)
        assert isinstance(balance.result, Balance)
        left = OPENING - ORDER.amount
        _hold(
            balance.result.available == left,
            f"the balance is {balance.result.available}, not {left}",
        )
        _hold(bank.book.check() == [], "the book does not add up")
    return f"{len(rig.adapter.capabilities)} operations"


def heartbeat(rig: Rig) -> str:
    """The bank's own harmless request shows a bank that works, and changes nothing."""
    with rig.bank() as bank:
        bank.sign_on()
        draft = rig.codec.probe(rig.context())
        _hold(draft.to_sign is None, "the heartbeat is to be signed")
        [reply] = bank.exchange(rig.codec.seal(draft, None))
        _hold(rig.codec.alive(reply), f"the answer {reply.code!r} shows no working bank")
        _hold(not rig.codec.alive(attrs.evolve(reply, code=UNLISTED)), "any answer shows one")
        _hold(not bank.book.payments(), "the heartbeat has paid")
    return draft.trade


def any_split(rig: Rig) -> str:
    """However the bytes are cut, the same replies come."""
    with rig.bank() as bank:
        stream = b"".join(bank.answer(one)[1] for one in (ORDER, rig.status(), *rig.queries))
    whole = [_seen(one) for one in rig.codec.framer().receive_data(stream)]
    _hold(
        len(whole) == 2 + len(rig.queries),
        f"{len(whole)} replies to {2 + len(rig.queries)} requests",
    )
    rng = random.Random(SEED)
    for _ in range(CUTS):
        framer = rig.codec.framer()
        cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((1, 2, 8, 40))))
        ends = [0, *cuts, len(stream)]
        found = [
            _seen(reply)
            for begin, end in itertools.pairwise(ends)
            for reply in framer.receive_data(stream[begin:end])
        ]
        _hold(found == whole, f"other replies when cut at {cuts}")
    framer = rig.codec.framer()
    single = [
        _seen(reply)
        for at in range(len(stream))
        for reply in framer.receive_data(stream[at : at + 1])
    ]
    _hold(single == whole, "other replies byte by byte")
    return f"{CUTS} cuts, and byte by byte"


def _seen(reply: Reply) -> tuple[str, str, str, bytes]:
    return reply.correlation, reply.trade, reply.code, reply.raw


def any_bytes(rig: Rig) -> str:
    """Any bytes are replies or a typed error; none of it proves that a payment was done or not."""
    with rig.bank() as bank:
        answers = [bank.answer(one)[1] for one in (ORDER, rig.status(), *rig.queries)]
        if Kind.BATCH_TRANSFER in rig.adapter.capabilities:
            answers += [reply.raw for reply in bank.send(number=2)]
        answers += [bank.look_up(one).raw for one in rig.lookups]
    rng = random.Random(SEED)
    operations = (ORDER, rig.status(), *rig.queries)
    for _ in range(NOISES):
        data = _noise(rng, answers)
        framer = rig.codec.framer()
        replies: list[Reply] = []
        try:
            replies = framer.receive_data(data)
            framer.receive_data(b"")
            framer.receive_eof()
        except RemoteProtocolError:
            pass
        for reply in replies:
            for operation in operations:
                rig.codec.outcome(operation, reply)
                rig.codec.payment_ref(reply)
            if isinstance(rig.codec, BatchCodec):
                rig.codec.batch_taken(BATCH, rig.reference(1), reply)
                rig.codec.batch_status(BatchQuery(rig.reference(1), BATCH, DAY), reply)
            for lookup in rig.lookups:
                rig.lookup_codec.looked_up(lookup, reply)
            rig.codec.alive(reply)
        with_garbage = list(lines(rig.adapter.name, rig.adapter.decoder, data))
        json.dumps(with_garbage)
    return f"{NOISES} byte strings"


def _noise(rng: random.Random, answers: Sequence[bytes]) -> bytes:
    data = bytearray(rng.choice(answers) + rng.choice(answers))
    match rng.randrange(4):
        case 0:
            return rng.randbytes(rng.randrange(300))
        case 1:
            at = rng.randrange(len(data))
            del data[at : at + rng.randrange(1, 60)]
        case 2:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(rng.randrange(1, 60))
        case _:
            for _ in range(rng.choice((1, 3, 12))):
                data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def bounded_memory(rig: Rig) -> str:
    """A frame that never ends is an error once the card's limit is reached."""
    with rig.bank() as bank:
        _, answer = bank.answer(BalanceQuery(OURS))
    codec = rig.open({"limits": {"frame_bytes_max": FRAME_BYTES}})
    for begin in (answer[: len(answer) // 2], answer[:-1], b"\xff" * 16, b"<" * 16, b"9" * 16):
        framer = codec.framer()
        fed = 0
        try:
            while fed <= HELD_FACTOR * FRAME_BYTES:
                piece = begin if fed == 0 else b"0" * 4096
                framer.receive_data(piece)
                fed += len(piece)
        except RemoteProtocolError:
            continue
        _hold(False, f"{fed} bytes that begin with {begin[:24]!r} were taken in")  # noqa: FBT003
    return f"at most {HELD_FACTOR} times the limit"


def codes_by_card(rig: Rig) -> str:
    """Each code of the card means what its list says; every other proves nothing."""
    codes = rig.card.codes
    with rig.bank() as bank:
        paid = bank.replies(ORDER)[0]
        told = bank.replies(BalanceQuery(OURS))[0]

    def of_payment(code: str) -> Outcome:
        return rig.codec.outcome(ORDER, attrs.evolve(paid, code=code))

    def of_query(code: str) -> Outcome:
        return rig.codec.outcome(BalanceQuery(OURS), attrs.evolve(told, code=code))

    for code in sorted(codes.refused):
        _hold(isinstance(of_query(code), Rejected), f"{code} does not refuse a query")
        _hold(not isinstance(of_payment(code), Accepted), f"{code} is a good answer to a payment")
    for code in sorted(codes.permission):
        found = of_query(code)
        by_permission = isinstance(found, Rejected) and found.why is Refusal.PERMISSION
        _hold(by_permission, f"{code} is not told as a permission: {found}")
        _hold(not isinstance(of_payment(code), Accepted), f"{code} is a good answer to a payment")
    for code in sorted(codes.throttled):
        found = of_query(code)
        by_throttle = isinstance(found, Rejected) and found.why is Refusal.THROTTLED
        _hold(by_throttle, f"{code} is not told as throttled: {found}")
    for code in [*sorted(codes.duplicate | codes.throttled | codes.unclear), UNLISTED, ""]:
        found = of_payment(code)
        _hold(isinstance(found, Unclear), f"{code!r} on a payment is not unclear but {found}")
        _hold(not isinstance(of_query(code), Accepted), f"{code!r} is a good answer to a query")
    return f"{sum(len(one) for one in attrs.astuple(codes))} codes, and two of none"


def booked_once(rig: Rig) -> str:
    """The same reference again moves no money, and is never taken for a refusal."""
    with rig.bank() as bank:
        bank.ask(ORDER)
        again = bank.ask(ORDER)
        _hold(bank.booked == 1, f"the same reference was booked {bank.booked} times")
        _hold(not isinstance(again, Rejected), f"a repeat is told as a refusal: {again}")
        state = bank.state()
        _hold(state is PaymentState.SUCCEEDED, f"after the repeat it is {state}")
    return rig.card.dedupe.resend.value


def faults_stay_open(rig: Rig) -> str:
    """After a fault a payment is unclear, and its status query tells what the book has."""
    _stay_open(rig, ORDER)
    return f"{len(OPEN_FAULTS)} faults"


def _stay_open(rig: Rig, order: PaymentOrder) -> None:
    for fault in OPEN_FAULTS:
        with rig.bank(fault) as bank:
            for reply in bank.replies(order):
                found = rig.codec.outcome(order, reply)
                _hold(isinstance(found, Unclear), f"{fault} is answered with {found}")
            booked = bank.booked
            _hold(booked == int("after" in fault), f"{fault} booked {booked} times")
            state = bank.state(order=order)
            wanted = PaymentState.SUCCEEDED if booked else PaymentState.NO_RECORD
            _hold(state is wanted, f"after {fault} it is told as {state}, not {wanted}")


def faults_of_its_own(rig: Rig) -> str:
    """Whatever only this bank's line does, no payment is believed done or not done wrongly."""
    own = own_faults(rig.host)
    for fault in own:
        with rig.bank() as bank:
            bank.sign_on()
        with rig.bank(fault) as bank:
            for reply in bank.replies(ORDER):
                found = rig.codec.outcome(ORDER, reply)
                done = isinstance(found, Accepted) and found.final
                _hold(not done or bank.booked, f"{fault}: not booked, and told as {found}")
                refused = isinstance(found, Rejected)
                _hold(not (refused and bank.booked), f"{fault}: booked, and told as {found}")
            booked = bank.booked
            for reply in bank.replies(rig.status()):
                told = rig.codec.outcome(rig.status(), reply)
                if isinstance(told, Accepted) and isinstance(told.result, PaymentStatus):
                    state = told.result.state
                    wrong = PaymentState.REJECTED if booked else PaymentState.SUCCEEDED
                    _hold(state is not wrong, f"{fault}: booked {booked} times, told as {state}")
            for query in rig.queries:
                for reply in bank.replies(query):
                    rig.codec.outcome(query, reply)
    return ", ".join(own) or "none is known"


def sessions(rig: Rig) -> str:
    """When the session has ended a new one is made; a payment that was told so may be booked."""
    codec = rig.codec
    if not isinstance(codec, SessionCodec):
        return NO_SESSION
    for fault, booked in ((Fault.SIGNED_OFF, 0), (Fault.SIGNED_OFF_AFTER_BOOKING, 1)):
        with rig.bank(fault) as bank:
            [reply] = bank.replies(ORDER)
            found = codec.outcome(ORDER, reply)
            _hold(isinstance(found, Unclear), f"{fault} is answered with {found}")
            _hold(codec.signed_off(reply), f"after {fault} somebody is still signed on")
            _hold(not codec.is_signed_on, f"after {fault} a token is left")
            _hold(bank.booked == booked, f"{fault} booked {bank.booked} times")
        with rig.bank() as bank:
            told = bank.ask(BalanceQuery(OURS))
            _hold(isinstance(told, Accepted), f"after a new log-on: {told}")
    return "ended before and after booking"


def refusals_and_landed(rig: Rig) -> str:
    """What can't be paid is rejected in the end, and what waits at the bank is not done."""
    poor = attrs.evolve(ORDER, amount=Cny(OPENING.fen + 1))
    with rig.bank() as bank:
        found = bank.ask(poor)
        _hold(not (isinstance(found, Accepted) and found.final), f"without money: {found}")
        state = bank.state(order=poor)
        _hold(state in {PaymentState.REJECTED, PaymentState.NO_RECORD}, f"without money: {state}")
        _hold(bank.booked == 0, "a payment without money was booked")
    with rig.bank(Fault.LANDED) as bank:
        found = bank.ask(ORDER)
        _hold(not isinstance(found, Rejected), f"a landed payment is told as a refusal: {found}")
        _hold(not (isinstance(found, Accepted) and found.final), "a landed payment is told as done")
        state = bank.state()
        open_states = {PaymentState.PROCESSING, PaymentState.UNKNOWN}
        _hold(state in open_states, f"a landed payment is told as {state}")
    with rig.bank(Fault.THROTTLED) as bank:
        found = bank.ask(BalanceQuery(OURS))
        throttled = isinstance(found, Rejected) and found.why is Refusal.THROTTLED
        _hold(throttled, f"too many queries are told as {found}")
    return "no money, landed, throttled"


def facts_are_compared(rig: Rig) -> str:
    """A status answer about another amount or payee closes nothing."""
    with rig.bank() as bank:
        bank.ask(ORDER)
        for other in (
            attrs.evolve(ORDER, amount=Cny(ORDER.amount.fen + 1)),
            attrs.evolve(ORDER, amount=Cny(ORDER.amount.fen * 100)),
        ):
            replies = bank.replies(rig.status(order=other))
            found = rig.codec.outcome(rig.status(order=other), replies[0])
            closed = (
                isinstance(found, Accepted)
                and isinstance(found.result, PaymentStatus)
                and found.result.state is PaymentState.SUCCEEDED
            )
            _hold(not closed, "a payment of another amount proves this one")
    return "amount"


def signatures(rig: Rig) -> str:
    """The simulated bank books nothing that is signed badly."""
    with rig.bank() as bank:
        draft, _ = bank.answer(ORDER, badly=True)
        if draft.to_sign is None:
            return "the protocol has none of ours"
        _hold(bank.booked == 0, "a payment with a bad signature was booked")
        bank.ask(ORDER)
        _hold(bank.booked == 1, "a payment with a good signature was not booked")
    return draft.algorithm.value


def batches(rig: Rig) -> str:
    """Each row of a batch is booked once under its own reference, and told by itself."""
    done = PaymentState.SUCCEEDED
    with rig.bank() as bank:
        none = [PaymentState.NO_RECORD] * len(BATCH.rows)
        _hold(bank.states() == none, f"a batch that was never sent is told as {bank.states()}")
        bank.send(badly=True)
        _hold(rig.card.signing.by is Signer.ADAPTER or bank.booked == 0, "booked unsigned")
    with rig.bank() as bank:
        [reply] = bank.send()
        found = bank.taken([reply])
        _hold(isinstance(found, Accepted) and not found.final, f"a batch is answered with {found}")
        bears = rig.codec.payment_ref(reply)
        _hold(bears == "" or is_ref_of(bears, rig.reference(1)), f"the answer bears {bears!r}")
        _hold(bank.booked_rows() == [1, 1, 1], f"the rows were booked {bank.booked_rows()} times")
        _hold(bank.states() == [done] * 3, f"booked rows are told as {bank.states()}")
        again = bank.taken(bank.send())
        _hold(bank.booked == len(BATCH.rows), "a batch was booked twice")
        _hold(isinstance(again, Unclear), f"a repeat is answered with {again}")
        changes: list[dict[str, Any]] = [{"amount": Cny(7)}, {"payee": OTHER}]
        for place, change in itertools.product(range(3), changes):
            rows = list(BATCH.rows)
            rows[place] = attrs.evolve(rows[place], **change)
            states = bank.states(BatchOrder(tuple(rows)))
            _hold(done not in states[place : place + 1], f"{change} of row {place} proves another")
        longer = bank.states(BatchOrder((*BATCH.rows, ORDER)))
        _hold(done not in longer[3:], "three rows are told as four")
        _hold(bank.book.check() == [], "the book does not add up")
    _refused_in_part(rig)
    limit = rig.card.batch.rows_max
    _hold(0 < limit <= BATCH_ROWS_MAX, f"batch.rows_max is {limit}")
    try:
        long = BatchOrder((ORDER,) * (limit + 1))
        rig.batch_codec.prepare_batch(long, rig.context(rig.reference(1)))
    except BodyError:
        return f"up to {limit} rows"
    msg = f"{limit + 1} rows are sent"
    raise _FailedError(msg)


def _refused_in_part(rig: Rig) -> None:
    done, refused = PaymentState.SUCCEEDED, PaymentState.REJECTED
    with rig.bank() as bank:
        poor = attrs.evolve(BATCH.rows[1], amount=Cny(OPENING.fen + 1))
        order = BatchOrder((BATCH.rows[0], poor, BATCH.rows[2]))
        found = bank.taken(bank.send(order), order)
        _hold(not isinstance(found, Rejected), f"partly booked, and told as {found}")
        _hold(bank.booked_rows() == [1, 0, 1], f"the rows were booked {bank.booked_rows()} times")
        states = bank.states(order)
        not_done = (refused, PaymentState.NO_RECORD)
        _hold(states[::2] == [done] * 2 and states[1] in not_done, f"they are told as {states}")


def batches_stay_open(rig: Rig) -> str:
    """Whatever goes wrong, no row is told as done or not done wrongly, and no batch refused."""
    done, refused = PaymentState.SUCCEEDED, PaymentState.REJECTED
    own = tuple(own_faults(rig.host))
    for fault in (*OPEN_FAULTS, Fault.LANDED, *own):
        with rig.bank() as bank:
            bank.sign_on()
        with rig.bank(fault) as bank:
            for reply in bank.send():
                found = bank.taken([reply])
                _hold(not (isinstance(found, Accepted) and found.final), f"{fault}: {found}")
                _hold(fault not in OPEN_FAULTS or isinstance(found, Unclear), f"{fault}: {found}")
                _hold(not (isinstance(found, Rejected) and bank.booked), f"{fault}: {found}")
            booked = bank.booked_rows()
            _hold(len(set(booked)) == 1, f"{fault} booked {booked}")
            if fault in OPEN_FAULTS:
                _hold(booked[0] == int("after" in fault), f"{fault} booked {booked}")
            wrong = refused if booked[0] else done
            for order in (BATCH, BatchOrder(BATCH.rows[:2])):
                _hold(wrong not in bank.states(order), f"{fault}: booked {booked}, told otherwise")
    with rig.bank() as bank:
        [reply] = bank.send()
        codes = rig.card.codes
        for code in [*sorted(codes.duplicate | codes.throttled | codes.unclear), UNLISTED, ""]:
            found = bank.taken([attrs.evolve(reply, code=code)])
            _hold(isinstance(found, Unclear), f"{code!r} on a batch is not unclear but {found}")
        for code in sorted(codes.refused | codes.permission):
            found = bank.taken([attrs.evolve(reply, code=code)])
            _hold(not isinstance(found, Accepted), f"{code} is a good answer to a batch")
    return f"{len(OPEN_FAULTS) + 1 + len(own)} faults"


def sweeps(rig: Rig) -> str:
    """The bank's own pooling trade moves just that money once, and is told as any payment is."""
    done = PaymentState.SUCCEEDED
    for order in SWEEPS:
        with rig.bank() as bank:
            bank.answer(order, badly=True)
            _hold(rig.card.signing.by is Signer.ADAPTER or bank.booked == 0, "booked unsigned")
        with rig.bank() as bank:
            [reply] = bank.replies(order)
            found = rig.codec.outcome(order, reply)
            _hold(isinstance(found, Accepted), f"a sweep is answered with {found}")
            bears = rig.codec.payment_ref(reply)
            _hold(bears in {"", rig.reference(1)}, f"the answer bears {bears!r}")
            payer, payee = (
                bank.book.account(BANK, one) for one in (order.payer, order.payee.account)
            )
            assert payer is not None
            assert payee is not None
            moved = OPENING - payer.balance, payee.balance - OPENING
            _hold(moved == (order.amount, order.amount), f"{order.sweep} moved {moved}")
            again = bank.ask(order)
            _hold(bank.booked == 1, f"the same reference was booked {bank.booked} times")
            _hold(not isinstance(again, Rejected), f"a repeat is told as a refusal: {again}")
            state = bank.state(order=order)
            _hold(state is done, f"what was booked is told as {state}")
            other = attrs.evolve(order, amount=Cny(order.amount.fen + 1))
            [told] = bank.replies(rig.status(order=other))
            closed = rig.codec.outcome(rig.status(order=other), told)
            is_done = (
                isinstance(closed, Accepted)
                and isinstance(closed.result, PaymentStatus)
                and closed.result.state is done
            )
            _hold(not is_done, "a sweep of another amount proves this one")
        _stay_open(rig, order)
        with rig.bank(Fault.LANDED) as bank:
            bank.ask(order)
            state = bank.state(order=order)
            _hold(state is PaymentState.PROCESSING, f"landed is told as {state}")
    return f"both ways, {len(OPEN_FAULTS)} faults"


def look_ups(rig: Rig) -> str:
    """What came back is listed, each once, and nothing else; what proves nothing lists nothing."""
    if not rig.lookups:
        return "the adapter has none"
    codec = rig.lookup_codec
    for lookup in rig.lookups:
        with rig.bank(Fault.RETURNED) as bank:
            _hold(isinstance(lookup, BankCodeQuery) or not bank.listed(lookup), "none was sent yet")
            for number in range(RETURNS):
                bank.replies(attrs.evolve(ORDER, amount=Cny(100 + number)), number)
            bank.book.take_back(BANK, NOW + dt.timedelta(days=1))
            # What is taken back later is not in the list.
            bank.replies(attrs.evolve(ORDER, amount=Cny(7)), RETURNS)
            entries = bank.listed(lookup)
            if isinstance(lookup, BankCodeQuery):
                wrong = [one.code for one in entries if not one.code.startswith(lookup.bank_class)]
                _hold(not wrong, f"asked for {lookup.bank_class}, told {wrong}")
            else:
                amounts = sorted(one.amount.fen for one in entries)
                wanted = [100 + number for number in range(RETURNS)]
                _hold(amounts == wanted, f"{wanted} came back, told are {amounts}")
                refs = {one.client_ref for one in entries} - {""}
                known = {rig.reference(number) for number in range(RETURNS)}
                _hold(refs <= known, f"they bear {refs - known}")
            reply = bank.look_up(lookup)
            for code in [*sorted(rig.card.codes.unclear), UNLISTED, ""]:
                found = codec.looked_up(lookup, attrs.evolve(reply, code=code))
                _hold(isinstance(found, Unclear), f"{code!r} is not unclear but {found}")
            for code in sorted(rig.card.codes.throttled):
                found = codec.looked_up(lookup, attrs.evolve(reply, code=code))
                by_throttle = isinstance(found, Rejected) and found.why is Refusal.THROTTLED
                _hold(by_throttle, f"{code} is not told as throttled: {found}")
    return ", ".join(type(one).__name__ for one in rig.lookups)


def statements(rig: Rig) -> str:
    """All lines come, each once, over as many pages as there are; spans keep to the card."""
    with rig.bank() as bank:
        for number in range(LINES):
            bank.replies(attrs.evolve(ORDER, amount=Cny(100 + number)), number)
        amounts: list[int] = []
        pages = 0
        query = StatementQuery(OURS, DAY, DAY)
        while True:
            found = bank.ask(query)
            _hold(isinstance(found, Accepted), f"a statement is answered with {found}")
            assert isinstance(found, Accepted)
            assert isinstance(found.result, Statement)
            amounts += [entry.amount.fen for entry in found.result.entries]
            pages += 1
            _hold(pages <= LINES, "the pages never end")
            if not found.result.cursor:
                break
            query = attrs.evolve(query, cursor=found.result.cursor)
    _hold(sorted(amounts) == [100 + n for n in range(LINES)], f"{len(amounts)} lines, not {LINES}")
    facts = rig.card.statement
    first = BusinessDate(DAY - dt.timedelta(days=SPAN_DAYS - 1))
    spans = rig.codec.split(StatementQuery(OURS, first, DAY), DAY)
    days = [
        one.first_day + dt.timedelta(days=at)
        for one in spans
        for at in range((one.last_day - one.first_day).days + 1)
    ]
    _hold(
        sorted(days) == [first + dt.timedelta(days=at) for at in range(100)],
        "days are left out or doubled",
    )
    if facts.span_days_max:
        longest = max((one.last_day - one.first_day).days + 1 for one in spans)
        _hold(longest <= facts.span_days_max, f"{longest} days are asked for at once")
    if facts.today_separate:
        mixed = any(one.first_day < DAY <= one.last_day for one in spans)
        _hold(not mixed, "today and days before are asked for together")
    return f"{LINES} lines on {pages} pages, {SPAN_DAYS} days in {len(spans)} queries"


def correlations(rig: Rig) -> str:
    """An answer bears what its request sent, or nothing where the protocol has no such thing."""
    with rig.bank() as bank:
        seen = set()
        for operation in (ORDER, rig.status(), *rig.queries):
            draft, data = bank.answer(operation)
            [reply] = rig.codec.framer().receive_data(data)
            _hold(draft.correlation not in seen, "two requests have one correlation")
            seen.add(draft.correlation)
            _hold(
                reply.correlation in {draft.correlation, ""},
                "an answer bears another's correlation",
            )
        [paid] = bank.replies(attrs.evolve(ORDER, amount=Cny(1)), 2)
        bears = rig.codec.payment_ref(paid)
        _hold(bears in {rig.reference(2), ""}, f"an answer to a payment bears {bears!r}")
    return f"{len(seen)} requests"


def secrets_hidden(rig: Rig) -> str:
    """No secret is in what may be logged or shown."""
    with rig.bank() as bank:
        shown = [repr(rig.codec)]
        fresh = rig.open()
        if (logon := fresh.logon(rig.context())) is not None:
            sealed = fresh.seal(logon, None)
            shown += [repr(logon), *map(str, lines(rig.adapter.name, rig.adapter.decoder, sealed))]
        for operation in (ORDER, rig.status(), *rig.queries):
            draft, data = bank.answer(operation)
            replies = rig.codec.framer().receive_data(data)
            request = rig.sealed(draft)
            shown += [repr(draft), repr(replies)]
            shown += map(str, lines(rig.adapter.name, rig.adapter.decoder, request + data))
    hidden = rig.secrets.values()
    _hold(not any(secret in one for one in shown for secret in hidden), "a secret is shown")
    return f"{len(rig.adapter.secret_names)} secrets"


CHECKS: Final[tuple[Callable[[Rig], str], ...]] = (
    every_operation,
    heartbeat,
    any_split,
    any_bytes,
    bounded_memory,
    codes_by_card,
    booked_once,
    faults_stay_open,
    faults_of_its_own,
    sessions,
    refusals_and_landed,
    facts_are_compared,
    signatures,
    batches,
    batches_stay_open,
    sweeps,
    look_ups,
    statements,
    correlations,
    secrets_hidden,
)


def _submit_batches(operator: BlockingClient, payer: BookAccount, payee: BookAccount) -> list[str]:
    """Submit batches whose rows have amounts of their own; return their ids."""
    names = [f"R{number}" for number in range(BATCHES)]
    to = {"account": payee.number, "name": payee.name}
    for number, name in enumerate(names, 1):
        rows = [{"payee": to, "amount": f"{100 * number + place}.00"} for place in range(3)]
        params = {"payer": {"account": payer.number}, "rows": rows}
        body = {"kind": "batch_transfer", "params": params}
        operator.submit(name, "bank", "batch_transfer", body)
    return names


def _paid_rows(tasks: Mapping[str, Any]) -> list[int]:
    """Return the fen of each row that is told as paid."""
    rows = [row for task in tasks.values() for row in (task["result"] or {}).get("rows", ())]
    return [Cny.parse(row["amount"]).fen for row in rows if row["state"] == PaymentState.SUCCEEDED]


def through_the_daemon(adapter: BankAdapter, example: Example, directory: Path) -> str:
    """Every payment is booked once and closed by evidence, in the daemon itself over TCP."""
    secrets = _secrets(adapter, example)
    plan = BankPlan(
        "bank",
        adapter.name,
        example.bank_class,
        "",
        adapter.title,
        "999900000001",
        example.options,
        secrets,
    )
    with Scene(directory, banks=(plan,), accounts_per_bank=2) as scene:
        scene.reply_timeout_s = 1.0
        scene.start_hosts(DAEMON_FAULTS)
        scene.write_config()
        scene.start_daemon()
        payer, payee = scene.accounts
        with scene.operator() as operator:
            scene.wait_ready(operator)
            for number in range(PAYMENTS):
                params = {
                    "payer": {"account": payer.number},
                    "payee": {"account": payee.number, "name": payee.name},
                    "amount": f"{number + 1}.00",
                    "currency": "CNY",
                }
                body = {"kind": "transfer", "params": params}
                operator.submit(f"P{number}", "bank", "transfer", body)
            body = {"kind": "balance", "params": {"account": payer.number}}
            operator.submit("B", "bank", "balance", body)
            names = [*(f"P{number}" for number in range(PAYMENTS)), "B"]
            if Kind.BATCH_TRANSFER in adapter.capabilities:
                names += _submit_batches(operator, payer, payee)

            def ended(client: BlockingClient) -> dict[str, Any] | None:
                found = {one: client.call("task.get", {"task_id": one}) for one in names}
                over = all(State(one["state"]) in FINAL for one in found.values())
                return found if over else None

            tasks = scene.wait(operator, ended, "every task closed", 60.0)
        _check_daemon(scene, tasks)
        log = scene.directory.joinpath("fep.log").read_text("utf-8", "replace")
        _hold(not any(one in log for one in secrets.values()), "a secret is in the log")
        _hold('"lane.crashed"' not in log, "a lane crashed")
    return f"{PAYMENTS} payments, {DAEMON_FAULTS}"


def _check_daemon(scene: Scene, tasks: Mapping[str, Any]) -> None:
    """Compare what the tasks are told as with what the bank has booked."""
    told = {name: task["state"] for name, task in tasks.items()}
    book = scene.open_book()
    try:
        # One that was refused for want of a session is not done, and its number is free of it.
        ends = {"succeeded", "rejected"}
        _hold(set(told.values()) <= ends, f"the tasks ended as {told}")
        _hold(told["B"] == "succeeded", f"a balance query ended as {told['B']}")
        done = [name for name in told if name[0] == "P" and told[name] == "succeeded"]
        amounts = sorted(one.amount.fen for one in book.payments())
        wanted = sorted([100 * (int(name[1:]) + 1) for name in done] + _paid_rows(tasks))
        _hold(amounts == wanted, f"booked are {amounts} fen, told as done {wanted}")
        _hold(len(done) > PAYMENTS // 2, f"only {len(done)} payments were done")
        _hold(book.check() == [], "the book does not add up")
    finally:
        book.close()


@attrs.frozen
class Result:
    """What one check has shown."""

    check: str
    asks: str
    passed: bool
    detail: str
    """What was tried; or what was seen, where it failed."""
    seconds: float


def conform(name: str, *, daemon: bool = True) -> Iterator[Result]:
    """Yield each check's result for an adapter.

    Raises:
        UnknownAdapterError, BrokenAdapterError: it can't be tried.
    """
    adapter, host = registry.adapter(name), registry.host(name)
    quality = registry.quality(name)
    example = quality.example
    exempt = {one.name: one.comment for one in quality.rules if one.status is Status.EXEMPT}
    with tempfile.TemporaryDirectory(prefix="fep-conformance-") as place:
        directory = Path(place)
        rig = Rig(directory, adapter, host, example)
        for check in CHECKS:
            if Kind.BATCH_TRANSFER not in adapter.capabilities:
                exempt[EXEMPT[batches.__name__]] = "the adapter has no batches"
            if Kind.POOL_SWEEP not in adapter.capabilities:
                exempt[EXEMPT[sweeps.__name__]] = "the adapter has no pooling trade"
            if check is statements and Kind.STATEMENT not in adapter.capabilities:
                exempt[EXEMPT[check.__name__]] = "the adapter reads no statements"
            if (why := exempt.get(EXEMPT.get(check.__name__, ""))) is not None:
                asks = (check.__doc__ or "").split("\n")[0]
                yield Result(check.__name__, asks, True, f"exempt: {why}", 0.0)  # noqa: FBT003
                continue
            yield _tried(check.__name__, check.__doc__ or "", lambda one=check: one(rig))  # type: ignore[misc]
        if daemon:
            run = through_the_daemon
            yield _tried(
                run.__name__, run.__doc__ or "", lambda: run(adapter, example, directory / "scene")
            )


def _tried(name: str, asks: str, check: Callable[[], str]) -> Result:
    began = time.monotonic()
    try:
        detail, passed = check(), True
    except Exception as error:  # noqa: BLE001 - whatever an adapter raises is this check's finding
        said = str(error) if isinstance(error, _FailedError) else f"{type(error).__name__}: {error}"
        detail, passed = said[:500], False
    return Result(
        name, asks.split("\n", maxsplit=1)[0], passed, detail, round(time.monotonic() - began, 2)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 when every check holds."""
    parser = argparse.ArgumentParser(
        prog="fep conformance", description="Try on an adapter what every adapter must do."
    )
    parser.add_argument("adapter")
    parser.add_argument("--json", action="store_true", help="one JSON line for programs")
    parser.add_argument(
        "--no-daemon", action="store_true", help="leave out what starts the daemon and a bank"
    )
    given = parser.parse_args(arguments)
    results = []
    try:
        for result in conform(given.adapter, daemon=not given.no_daemon):
            results.append(result)
            if not given.json:
                word = "pass" if result.passed else "FAIL"
                print(f"{word}  {result.check:<20} {result.seconds:6.2f} s  {result.detail}")
                if not result.passed:
                    print(f"      {'':<20}           {result.asks}")
                sys.stdout.flush()
    except (registry.UnknownAdapterError, registry.BrokenAdapterError) as error:
        print(error.args[0], file=sys.stderr)
        return 1
    failed = [one.check for one in results if not one.passed]
    if given.json:
        rows = [attrs.asdict(one) for one in results]
        print(json.dumps({"adapter": given.adapter, "failed": failed, "checks": rows}))
    else:
        print(f"conformance: {given.adapter}: {len(results) - len(failed)} of {len(results)} hold")
    return int(bool(failed))
