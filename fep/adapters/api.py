"""The interface between the engine and one bank's protocol; sans-I/O on both sides.

An adapter has three parts that never mix: the framer (bytes to frames, one instance a
connection), the envelope codec (frame to header and body) and the trade mapper (canonical
operation to the bank's trade). The engine sees them as a ``BankCodec`` and its ``Framer``.
The link owns sockets, deadlines and retries; the key slot signs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import attrs

from fep.adapters.card import BehaviourCard, SignAlgorithm
from fep.adapters.decode import Decoder
from fep.domain.account import Account
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, BankName, ClientRef
from fep.domain.order import (
    BatchOrder,
    BatchQuery,
    Kind,
    Lookup,
    Operation,
    OperationResult,
    StatementQuery,
)
from fep.wire.http import HttpResponse


@attrs.frozen
class BankProfile:
    """All an adapter knows of one configured bank."""

    bank: BankName
    card: BehaviourCard
    """The adapter's card with the bank's own overrides applied."""
    options: Any
    """An instance of the adapter's ``options_class``."""
    direct_connect_number: str
    """银企直联编号: the enterprise's number at this bank."""
    accounts: Mapping[AccountNumber, Account]
    """All approved accounts of the enterprise, of every bank, so that a payee can be known."""
    peer: str = ""
    """``host:port`` of the bank's front end, for protocols whose requests name it (HTTP)."""
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """By the adapter's ``secret_names``; empty while a configuration is only checked."""


@attrs.frozen
class Context:
    """What changes from request to request and must not be taken from a global."""

    now: dt.datetime
    sequence: str
    """Unique for each request of this process: 20 digits, what the answer is correlated by."""
    client_ref: ClientRef | None = None
    """Of a payment: its dedupe key at the bank. Already on disk before the first byte."""


@attrs.frozen
class Draft:
    """One request before it is signed."""

    correlation: str
    """What the answer will echo; unique among the requests in flight of one link."""
    trade: str
    """The bank's own name of the trade, for logs."""
    to_sign: bytes | None
    """Exactly the bytes the key must sign, or None where nothing is signed by us."""
    algorithm: SignAlgorithm
    content: Any = attrs.field(repr=False)
    """The adapter's own parts; only its ``seal`` reads them."""


@attrs.frozen
class Reply:
    """One complete frame from the bank."""

    correlation: str
    """What the request sent, or empty when the frame bears none that can be read."""
    trade: str
    code: str
    """The bank's return code as it stands in the frame's header."""
    message: str
    raw: bytes = attrs.field(repr=False)
    content: Any = attrs.field(repr=False, default=None)
    """The adapter's own decoded parts; only its ``outcome`` reads them."""


@attrs.frozen
class Accepted:
    """The bank did it (``final``) or took it over and will finish it later (not ``final``)."""

    result: OperationResult
    code: str = ""
    message: str = ""
    final: bool = True


class Refusal(StrEnum):
    """Why a bank refused: decides whether a query may be asked again by itself."""

    BUSINESS = "business"
    """It is not to be done: no money, no such account, bad member."""
    THROTTLED = "throttled"
    """Asked too often: later it may be asked again."""
    PERMISSION = "permission"
    """The enterprise or account may not do this: a person must act."""


@attrs.frozen
class Rejected:
    """The bank said clearly that it was not done and will not be."""

    code: str
    message: str
    why: Refusal = Refusal.BUSINESS


@attrs.frozen
class Unclear:
    """The answer proves nothing; a payment becomes ``unknown`` and only evidence closes it."""

    code: str
    message: str


Outcome = Accepted | Rejected | Unclear


class Framer(Protocol):
    """Cuts one connection's bytes into replies; a fresh one for each connection."""

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: the stream can't be understood any more; close it. Replies that
                were complete before the fault were returned by earlier calls or are lost with it:
                an implementation returns them first and raises on its next call.
        """
        ...

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        ...


@runtime_checkable
class InOrderFramer(Framer, Protocol):
    """The framer of a protocol without correlation on the wire, such as HTTP/1.1.

    An answer belongs to the oldest request of its connection, so the link has one request at a time
    on each, and writes the request's correlation into a reply that bears none. A reply that bears
    another request's ends the connection.
    """

    @property
    def is_over(self) -> bool:
        """True when no more answers come on this connection, whatever is sent."""
        ...

    def finish(self) -> list[Reply]:
        """Note the end of the stream, as ``receive_eof``; return the reply that it completes.

        Raises:
            RemoteProtocolError: it ended inside a reply.
        """
        ...


class BankCodec(Protocol):
    """One configured bank's protocol; stateless but for its profile, shared by all its tasks."""

    def framer(self) -> Framer:
        """Return the framer of a new connection."""
        ...

    def logon(self, context: Context) -> Draft | None:
        """Return the request that opens a session after connecting, None where there is none."""
        ...

    def probe(self, context: Context) -> Draft:
        """Return the bank's own harmless request used as heartbeat (心跳)."""
        ...

    def alive(self, reply: Reply) -> bool:
        """Say whether this answer to ``logon`` or ``probe`` shows a working bank."""
        ...

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it (a name too long, a character GBK lacks, an account
                that is not approved); nothing was sent.
        """
        ...

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send; ``signature`` is None where the draft wants none."""
        ...

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers; never raises on bad content."""
        ...

    def payment_ref(self, reply: Reply) -> str:
        """Return our reference of the payment that an answer to a payment bears, or empty.

        How an answer is used that comes when nobody knows any more what it answers.
        """
        ...

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        """Return the queries a statement must be asked in (some banks don't mix days)."""
        ...


@runtime_checkable
class SessionCodec(BankCodec, Protocol):
    """A codec whose requests bear what a log-on gave (a token, 会话令牌), one for the whole bank.

    Its ``logon`` returns a draft while nobody is signed on and None while somebody is. While nobody
    is, the link takes no requests. An answer "not signed on" ends the connection it came on, in
    good order and without an alarm, and a new log-on follows. What the answer means for the request
    it belongs to is ``outcome``'s business as ever: the engine repeats a query, and asks after a
    payment. The token is in the sealed bytes; a payment that waits sealed may bear an old one.
    """

    @property
    def is_signed_on(self) -> bool:
        """Whether requests can be sealed now."""
        ...

    def signed_on(self, reply: Reply) -> None:
        """Take what a good answer to ``logon`` gives."""
        ...

    def signed_off(self, reply: Reply) -> bool:
        """Say whether this answer means that nobody is signed on, and forget what was given.

        Called with each answer, its correlation filled in. One to a request that bears an earlier
        token is late, and takes nothing away.
        """
        ...


@runtime_checkable
class LockoutCodec(BankCodec, Protocol):
    """A codec whose bank locks the operator (锁定操作员) when its password was wrong a few times.

    After one such answer the link asks the bank nothing more until a person resumes it; its
    connections are made one after the other, so that a wrong password is shown once.
    """

    def locks_out(self, reply: Reply) -> bool:
        """Say whether this answer refuses user or password."""
        ...


@runtime_checkable
class SecretiveCodec(BankCodec, Protocol):
    """A codec whose requests hold a secret in clear, such as a password."""

    def kept(self, frame: bytes) -> bytes:
        """Return a sealed request as it is stored: the same but for the secret, and as long."""
        ...


@runtime_checkable
class TokenCodec(SecretiveCodec, Protocol):
    """A codec whose requests bear the token of a session, which ends with it."""

    def bearing(self, frame: bytes) -> BankCodec:
        """Return a codec that seals with the token of a kept request, whatever is left of it."""
        ...


@runtime_checkable
class SignPortCodec(BankCodec, Protocol):
    """A codec whose bank signs on a port of its own, before anything is sent (card: ``sign_port``).

    The sign value is what ``seal`` gets as signature.
    """

    @property
    def sign_peer(self) -> tuple[str, int]:
        """Host and port of the signing service."""
        ...

    def sign_request(self, data: bytes) -> bytes:
        """Return the whole HTTP request that asks for a signature over the data."""
        ...

    def sign_value(self, response: HttpResponse) -> bytes:
        """Return the sign value of the service's answer.

        Raises:
            RemoteProtocolError: it did not sign.
        """
        ...


@runtime_checkable
class LookupCodec(BankCodec, Protocol):
    """A codec of a bank with look-ups: payments that came back, CNAPS codes."""

    def prepare_lookup(self, lookup: Lookup, context: Context) -> Draft:
        """Return the request for one page.

        Raises:
            BodyError: this bank can't carry it; nothing was sent.
        """
        ...

    def looked_up(self, lookup: Lookup, reply: Reply) -> Outcome:
        """Return what a reply means for the look-up it answers; never raises on bad content."""
        ...


@runtime_checkable
class BatchCodec(BankCodec, Protocol):
    """A codec of a bank that takes several payments in one request (批量转账).

    Each row goes under ``ids.row_ref`` of the batch's reference and its place. A batch is at its
    end when every row is; what an answer says of other rows, other amounts or other payees than
    were sent, or twice of one, proves nothing.
    """

    def prepare_batch(self, order: BatchOrder, context: Context) -> Draft:
        """Return the request.

        Raises:
            BodyError: this bank can't carry it; the message names the row. Nothing was sent.
        """
        ...

    def batch_taken(self, order: BatchOrder, reference: ClientRef, reply: Reply) -> Outcome:
        """Return what the answer to a batch means; never raises on bad content.

        ``Accepted`` bears a ``PaymentReceipt`` of the whole and is never final; ``Rejected`` only
        where no row was or will be paid. Refused in part is ``Unclear``: the rows are asked after.
        """
        ...

    def prepare_batch_status(self, query: BatchQuery, context: Context) -> Draft:
        """Return the question for one page of a batch's rows.

        Raises:
            BodyError: this bank can't carry it; nothing was sent.
        """
        ...

    def batch_status(self, query: BatchQuery, reply: Reply) -> Outcome:
        """Return what a page says, as a ``BatchStatus``; never raises on bad content."""
        ...


@runtime_checkable
class SealingCodec(BankCodec, Protocol):
    """A codec that signs or hides what it sends by itself (card: ``adapter``): no two are alike."""

    def bare(self, frame: bytes) -> bytes:
        """Return what a request of ours says, without its signature.

        Raises:
            RemoteProtocolError: it is none of ours.
        """
        ...


class BankAdapter(Protocol):
    """The registration value of one bank: what its package exports as ``ADAPTER``."""

    @property
    def name(self) -> str:
        """Entry-point name, such as ``pingan_b2bi``."""
        ...

    @property
    def title(self) -> str:
        """Name for people, such as ``平安银行 银企直联 B2Bi``."""
        ...

    @property
    def version(self) -> str:
        """Version of the bank's protocol that is spoken."""
        ...

    @property
    def capabilities(self) -> frozenset[Kind]:
        """Canonical operations it has."""
        ...

    @property
    def card(self) -> BehaviourCard:
        """The bank's behaviour card as shipped."""
        ...

    @property
    def options_class(self) -> type[Any]:
        """The attrs class of the bank's ``options`` table."""
        ...

    @property
    def decoder(self) -> Decoder:
        """What reads captured bytes for people."""
        ...

    @property
    def secret_names(self) -> frozenset[str]:
        """What the bank's ``secrets`` table must name a file or credential for."""
        ...

    def open(self, profile: BankProfile) -> BankCodec:
        """Return the codec of one configured bank."""
        ...


@runtime_checkable
class KeyedAdapter(BankAdapter, Protocol):
    """An adapter whose bytes hide what they say: a bank's secrets are needed to show them."""

    def decoder_of(self, profile: BankProfile) -> Decoder:
        """Return what reads one bank's captured bytes.

        Raises:
            ConfigError: a secret can't be used.
        """
        ...


def decoder_of(adapter: BankAdapter, profile: BankProfile) -> Decoder:
    """Return what reads one bank's captured bytes, with its secrets where they are needed."""
    return adapter.decoder_of(profile) if isinstance(adapter, KeyedAdapter) else adapter.decoder
