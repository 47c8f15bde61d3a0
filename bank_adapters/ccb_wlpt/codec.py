"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Final

import attrs

from bank_adapters.ccb_wlpt import replies, requests
from bank_adapters.ccb_wlpt.messages import (
    FrameReader,
    Message,
    add_signature,
    decode,
    encode,
    mask_password,
    signed_part,
)
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.domain.clock import BusinessDate
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.domain.order import Operation, PaymentOrder, StatementQuery

UNREADABLE: Final = "UNREADABLE"
"""Our code of a message that can't be read; it matches no request and is stored."""


class CcbWlptFramer:
    """Cuts one connection's bytes into replies."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frames = FrameReader(frame_bytes_max)

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their message."""
        return self._frames.held_bytes

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: as of ``FrameReader.receive_data``.
        """
        return [_reply(frame) for frame in self._frames.receive_data(data)]

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a message.
        """
        self._frames.receive_eof()


def _reply(frame: bytes) -> Reply:
    try:
        message = decode(frame)
    except RemoteProtocolError as error:
        return Reply("", "", UNREADABLE, str(error), frame)
    code, text = message.head.get("RETURN_CODE", ""), message.head.get("RETURN_MSG", "")
    return Reply(message.number, message.trade, code, text, frame, message)


@attrs.frozen
class CcbWlptCodec:
    """One configured bank's protocol; its profile and nothing else."""

    profile: BankProfile

    def framer(self) -> CcbWlptFramer:
        """Return the framer of a new connection."""
        return CcbWlptFramer(self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: every request bears user and password."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat."""
        return self._draft(requests.probe(self.profile, context), signed=False)

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank; "too often" does."""
        codes = self.profile.card.codes
        return reply.trade == requests.BALANCE and reply.code in codes.ok | codes.throttled

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        message = requests.request(operation, self.profile, context)
        return self._draft(message, signed=isinstance(operation, PaymentOrder))

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        data = draft.content
        assert isinstance(data, bytes)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        if signature is None:
            return data
        return add_signature(data, base64.b64encode(signature).decode("ascii"))

    def kept(self, frame: bytes) -> bytes:
        """Return a request's bytes as they may be stored and shown: without the password."""
        return mask_password(frame)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers."""
        return replies.outcome(self.profile.card, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the REQUEST_SN of an answer to a payment, or empty."""
        return replies.payment_ref(reply)

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:  # noqa: ARG002 - the interface's
        """Return the queries a statement must be asked in: spans the bank tells at once."""
        step = dt.timedelta(days=self.profile.card.statement.span_days_max)
        spans, first = [], query.first_day
        while first <= query.last_day:
            last = BusinessDate(min(first + step - dt.timedelta(days=1), query.last_day))
            spans.append(attrs.evolve(query, first_day=first, last_day=last))
            first = BusinessDate(first + step)
        return spans

    def _draft(self, message: Message, *, signed: bool) -> Draft:
        data = encode(message)
        return Draft(
            correlation=message.number,
            trade=message.trade,
            to_sign=signed_part(data) if signed else None,
            algorithm=self.profile.card.signing.algorithm,
            content=data,
        )
