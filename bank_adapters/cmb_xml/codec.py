"""The adapter's two classes: the codec of one configured bank and the framer of one connection."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Final

import attrs

from bank_adapters.cmb_xml import batches, replies, requests
from bank_adapters.cmb_xml.frames import FrameReader, pack, xml_of
from bank_adapters.cmb_xml.messages import CORRELATION, Message, add_signature, decode, encode
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.card import Signer
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import ClientRef
from fep.domain.order import (
    BatchOrder,
    BatchQuery,
    Lookup,
    Operation,
    PaymentOrder,
    StatementQuery,
)

UNREADABLE: Final = "UNREADABLE"
"""Our code of a frame whose XML can't be read; it matches no request and is stored."""


class CmbXmlFramer:
    """Cuts one connection's bytes into replies."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frames = FrameReader(frame_bytes_max)

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return self._frames.held_bytes

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        A frame whose XML can't be read is a reply without correlation, as the stream goes on.

        Raises:
            RemoteProtocolError: a length is no number or too large; raised by the call after the
                one that returned what was complete before it.
        """
        return [_reply(frame) for frame in self._frames.receive_data(data)]

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        self._frames.receive_eof()


def _reply(frame: bytes) -> Reply:
    try:
        message = decode(xml_of(frame))
    except RemoteProtocolError as error:
        return Reply(correlation="", trade="", code=UNREADABLE, message=str(error), raw=frame)
    return Reply(
        correlation=message.info.get(CORRELATION, ""),
        trade=message.function,
        code=message.info.get("RETCOD", ""),
        message=message.info.get("ERRMSG", ""),
        raw=frame,
        content=message,
    )


@attrs.frozen
class CmbXmlCodec:
    """One configured bank's protocol; its profile and nothing else."""

    profile: BankProfile

    def framer(self) -> CmbXmlFramer:
        """Return the framer of a new connection."""
        return CmbXmlFramer(self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: the operator logs in at the bank's front end, not we."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat."""
        return self._draft(requests.probe(self.profile.options, context), signed=False)

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank; "too often" does."""
        codes = self.profile.card.codes
        return reply.trade == requests.PROBE and reply.code in codes.ok | codes.throttled

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        message = requests.request(operation, self.profile, context)
        by_slot = self.profile.card.signing.by is Signer.SLOT
        return self._draft(message, signed=by_slot and isinstance(operation, PaymentOrder))

    def prepare_lookup(self, lookup: Lookup, context: Context) -> Draft:
        """Return NTQRYSTN for one week.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
        """
        return self._draft(requests.lookup_request(lookup, self.profile, context), signed=False)

    def looked_up(self, lookup: Lookup, reply: Reply) -> Outcome:
        """Return which of a week's payments came back."""
        return replies.looked_up(self.profile.card, lookup, reply)

    def prepare_batch(self, order: BatchOrder, context: Context) -> Draft:
        """Return one DCPAYMNT with all rows.

        Raises:
            BodyError: this bank can't carry it; the message names the row.
            LocalProtocolError: a batch without its reference.
        """
        message = batches.request(order, self.profile, context)
        return self._draft(message, signed=self.profile.card.signing.by is Signer.SLOT)

    def batch_taken(self, order: BatchOrder, reference: ClientRef, reply: Reply) -> Outcome:
        """Return what the answer to a batch means."""
        return batches.taken(self.profile.card, order, reference, reply)

    def prepare_batch_status(self, query: BatchQuery, context: Context) -> Draft:
        """Return NTQRYSTY after one row.

        Raises:
            BodyError: the cursor is not one of ours, or the bank tells of that day no more.
        """
        return self._draft(batches.status_request(query, self.profile, context), signed=False)

    def batch_status(self, query: BatchQuery, reply: Reply) -> Outcome:
        """Return what NTQRYSTY says of one row."""
        return batches.status(self.profile.card, query, reply)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        xml = draft.content
        assert isinstance(xml, bytes)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        if signature is not None:
            xml = add_signature(xml, base64.b64encode(signature).decode("ascii"))
        return pack(xml)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers."""
        return replies.outcome(self.profile.card, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the YURREF of an answer to DCPAYMNT, or empty."""
        return replies.payment_ref(reply)

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:  # noqa: ARG002 - the interface's
        """Return the queries a statement must be asked in: spans the bank tells at once."""
        step = dt.timedelta(days=max(self.profile.card.statement.span_days_max, 1))
        spans, first = [], query.first_day
        while first <= query.last_day:
            last = BusinessDate(min(first + step - dt.timedelta(days=1), query.last_day))
            spans.append(attrs.evolve(query, first_day=first, last_day=last))
            first = BusinessDate(first + step)
        return spans

    def _draft(self, message: Message, *, signed: bool) -> Draft:
        try:
            xml = encode(message)
        except LocalProtocolError as error:
            raise BodyError(str(error)) from error
        return Draft(
            correlation=message.info[CORRELATION],
            trade=message.function,
            to_sign=xml if signed else None,
            algorithm=self.profile.card.signing.algorithm,
            content=xml,
        )
