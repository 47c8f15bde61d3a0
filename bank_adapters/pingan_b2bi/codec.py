"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Final, assert_never

import attrs

from bank_adapters.pingan_b2bi import messages, replies
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.frames import Cutter, Packet, encode
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.card import SignAlgorithm, Signer
from fep.domain.clock import BusinessDate, business_date, to_shanghai
from fep.domain.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import ClientRef
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    BatchOrder,
    BatchQuery,
    Lookup,
    Operation,
    PaymentOrder,
    ReturnedQuery,
    StatementQuery,
    StatusQuery,
)

SIGN_ALGORITHMS: Final = {
    SignAlgorithm.RSA_SHA256: "RSA-SHA256",
    SignAlgorithm.ECDSA_SHA256: "ECDSA-SHA256",
    SignAlgorithm.SM2_SM3: "SM2-SM3",
}
"""Names in the header's ``sign_alg``; the bank's own ``RSA-SHA1`` is only ever its front end's."""

SIGNATURE_BYTES_MAX: Final = 1024
ANSWERS_BEGUN_MAX: Final = 16
"""Answers of one connection of which more is to come."""
_CORP_CODE: Final = re.compile(r"[0-9A-Za-z]{1,20}")
_SEQUENCE: Final = re.compile(r"[0-9A-Za-z]{1,20}")


@attrs.frozen
class Content:
    """A request's parts before it is signed."""

    cells: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


class PinganFramer:
    """Cuts one connection's bytes into replies; an answer in several packets (续包) is one."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._cutter = Cutter(frame_bytes_max)
        self._bytes_max = frame_bytes_max
        self._begun: dict[str, list[Packet]] = {}
        """By ``seq``, the packets of answers of which more is to come."""
        self._held_bytes = 0

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies these bytes complete; a fault behind them is raised by the next call.

        Raises:
            RemoteProtocolError: not a B2Bi stream, or a frame above the card's limit.
        """
        packets = self._cutter.receive_data(data)
        return [reply for packet in packets for reply in self._take(packet)]

    def _take(self, packet: Packet) -> list[Reply]:
        """Return the reply that a packet completes, or those that there is no room to wait for.

        Of answers that never end only so much is kept: the oldest are then told as they are, which
        proves nothing.
        """
        number = packet.header.text("seq")
        if packet.header.text("cont_flag") != replies.MORE_FOLLOWS:
            return [replies.reply_of([*self._taken(number), packet])]
        self._begun.setdefault(number, []).append(packet)
        self._held_bytes += len(packet.raw)
        given_up = []
        while len(self._begun) > ANSWERS_BEGUN_MAX or self._held_bytes > self._bytes_max:
            given_up.append(replies.reply_of(self._taken(next(iter(self._begun)))))
        return given_up

    def _taken(self, number: str) -> list[Packet]:
        packets = self._begun.pop(number, [])
        self._held_bytes -= sum(len(packet.raw) for packet in packets)
        return packets

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame, or an answer.
        """
        self._cutter.receive_eof()
        if self._begun:
            msg = f"the stream ended inside {len(self._begun)} answers that were to go on"
            raise RemoteProtocolError(msg)


class PinganCodec:
    """One configured bank's B2Bi; stateless."""

    def __init__(self, profile: BankProfile) -> None:
        """Check what the configuration gives.

        Raises:
            ConfigError: the enterprise code does not fit, or the card wants a sign port.
        """
        options: PinganOptions = profile.options
        self._profile = profile
        self._corp_code = options.corp_code or profile.direct_connect_number
        if not _CORP_CODE.fullmatch(self._corp_code):
            msg = (
                f"bank {profile.bank}: direct_connect_number (or options.corp_code) must be 1 to 20"
                " letters or digits"
            )
            raise ConfigError(msg)
        if profile.card.signing.by is Signer.SIGN_PORT:
            msg = f"bank {profile.bank}: card.signing.by must be 'front_end' or 'slot'"
            raise ConfigError(msg)

    def framer(self) -> PinganFramer:
        """Return the framer of a new connection."""
        return PinganFramer(self._profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's shape
        """Return None: the bank's front end is logged on, a connection needs nothing."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return S001, which is the bank's heartbeat."""
        return self._draft(messages.PROBE, messages.probe(), context)

    def alive(self, reply: Reply) -> bool:
        """Say whether S001 went well; AFE codes show a front end whose bank can't be reached."""
        return replies.meaning(self._profile.card.codes, reply.code) is replies.Meaning.OK

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference, or a bad sequence.
        """
        profile = self._profile
        match operation:
            case BalanceQuery():
                return self._draft(messages.BALANCE, messages.balance(profile, operation), context)
            case PaymentOrder():
                if context.client_ref is None:
                    msg = "a payment needs its client_ref"
                    raise LocalProtocolError(msg)
                if operation.sweep is not None:
                    body = messages.sweep(profile, operation, context.client_ref)
                    return self._draft(messages.SWEEP, body, context, signed=True)
                body = messages.transfer(profile, operation, context.client_ref)
                return self._draft(messages.TRANSFER, body, context, signed=True)
            case StatusQuery():
                return self._draft(messages.STATUS, messages.status(operation), context)
            case StatementQuery():
                today = business_date(context.now)
                cursor = messages.start(profile, operation, today)
                body = messages.statement(profile, operation, cursor, today)
                return self._draft(cursor.trade, body, context)
            case _:
                assert_never(operation)

    def prepare_lookup(self, lookup: Lookup, context: Context) -> Draft:
        """Return 4017 (CNAPS codes) or one page of 4019 (payments that came back).

        Raises:
            BodyError: this bank can't carry it; the message names the member.
        """
        match lookup:
            case BankCodeQuery():
                return self._draft(messages.BANK_CODES, messages.bank_codes(lookup), context)
            case ReturnedQuery():
                body = messages.returned(self._profile, lookup)
                return self._draft(messages.RETURNED, body, context)
            case _:
                assert_never(lookup)

    def looked_up(self, lookup: Lookup, reply: Reply) -> Outcome:
        """Return what a reply means for the look-up; never raises on bad content."""
        return replies.looked_up(self._profile.card.codes, lookup, reply)

    def prepare_batch(self, order: BatchOrder, context: Context) -> Draft:
        """Return 4018.

        Raises:
            BodyError: this bank can't carry it; the message names the row.
            LocalProtocolError: a batch without its reference, or a bad sequence.
        """
        if context.client_ref is None:
            msg = "a batch needs its client_ref"
            raise LocalProtocolError(msg)
        body = messages.batch(self._profile, order, context.client_ref)
        return self._draft(messages.BATCH, body, context, signed=True)

    def batch_taken(self, order: BatchOrder, reference: ClientRef, reply: Reply) -> Outcome:
        """Return what the answer to a 4018 means; never raises on bad content."""
        return replies.batch_taken(self._profile.card.codes, order, reference, reply)

    def prepare_batch_status(self, query: BatchQuery, context: Context) -> Draft:
        """Return 4015 for one page.

        Raises:
            BodyError: its cursor is not one of ours.
        """
        return self._draft(messages.BATCH_STATUS, messages.batch_status(query), context)

    def batch_status(self, query: BatchQuery, reply: Reply) -> Outcome:
        """Return what a page of 4015 says; never raises on bad content."""
        return replies.batch_status(self._profile.card, query, reply)

    def _draft(self, trade: str, body: bytes, context: Context, *, signed: bool = False) -> Draft:
        if not _SEQUENCE.fullmatch(context.sequence):
            msg = f"sequence {context.sequence!r} is not 1 to 20 letters or digits"
            raise LocalProtocolError(msg)
        signing = self._profile.card.signing
        local = to_shanghai(context.now)
        cells = {
            "corp_code": self._corp_code,
            "trade_code": trade,
            "date": f"{local:%Y%m%d}",
            "time": f"{local:%H%M%S}",
            "seq": context.sequence,
        }
        ours = signed and signing.by is Signer.SLOT
        if ours:
            name = SIGN_ALGORITHMS[signing.algorithm]
            cells |= {"sign_flag": "1", "sign_pkt": "0", "sign_alg": name}
        return Draft(
            correlation=context.sequence,
            trade=trade,
            to_sign=body if ours else None,
            algorithm=signing.algorithm,
            content=Content(cells, body),
        )

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, not wanted, or too long.
        """
        content = draft.content
        if not isinstance(content, Content):
            msg = "the draft was not prepared by this adapter"
            raise LocalProtocolError(msg)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft wants a signature" if signature is None else "nothing was to be signed"
            raise LocalProtocolError(msg)
        if signature is not None and not 0 < len(signature) <= SIGNATURE_BYTES_MAX:
            msg = f"a signature has 1 to {SIGNATURE_BYTES_MAX} bytes, not {len(signature)}"
            raise LocalProtocolError(msg)
        return encode(content.cells, content.body, signature or b"")

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation; never raises on bad content."""
        return replies.outcome(self._profile, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the ThirdVoucher of an answer to 4004, 4018 or 4052, or empty."""
        return replies.payment_ref(reply)

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        """Return the queries that don't mix today with the past, none over more days than allowed.

        A query that goes on from a cursor is one already. Days after today are left out; one that
        has no other day is returned as it is, for ``prepare`` to refuse.
        """
        if query.cursor or query.first_day > today:
            return [query]
        span = max(self._profile.card.statement.span_days_max, 1)
        last_day = min(query.last_day, today)
        pieces = []
        first = query.first_day
        while first <= last_day:
            end = min(first + dt.timedelta(days=span - 1), last_day)
            if first < today == end:
                end = today - dt.timedelta(days=1)
            piece = attrs.evolve(query, first_day=first, last_day=BusinessDate(end))
            pieces.append(piece)
            first = BusinessDate(end + dt.timedelta(days=1))
        return pieces
