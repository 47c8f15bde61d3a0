"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Final

import attrs

from bank_adapters.cib_fox import replies, requests
from bank_adapters.cib_fox.config import PASSWORD
from bank_adapters.cib_fox.messages import (
    PASSWORD_NODE,
    SIGN_ON,
    TYPE,
    Message,
    decode,
    encode,
    mask_password,
    signed_part,
)
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.card import Signer
from fep.adapters.http import HttpFramer
from fep.domain.clock import BusinessDate
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.domain.order import Operation, PaymentOrder, StatementQuery
from fep.wire.http import HttpResponse, request_bytes

SIGNATURE_HEADER: Final = "X-FEP-Signature"
"""Ours, base64: the message itself has no room for a signature, and its nodes are fixed."""


@attrs.frozen
class CibFoxCodec:
    """One configured bank's protocol; its profile and nothing else."""

    profile: BankProfile

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> HttpFramer:
        """Return the framer of a new connection."""
        return HttpFramer(_read, self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: every message signs on by itself."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat: a sign-on without a trade."""
        message = Message(requests.sign_on(self.profile, context))
        return self._draft(message, context.sequence, to_sign=False)

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank."""
        return reply.trade == SIGN_ON and reply.code in self.profile.card.codes.ok

    def locks_out(self, reply: Reply) -> bool:
        """Say whether the bank refused user or password: a few more, and it locks the operator."""
        return replies.is_sign_on_refused(self.profile.card, reply)

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        message = requests.request(operation, self.profile, context)
        by_slot = self.profile.card.signing.by is Signer.SLOT
        to_sign = by_slot and isinstance(operation, PaymentOrder)
        return self._draft(message, message.number, to_sign=to_sign)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        message = draft.content
        assert isinstance(message, Message)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        password = self.profile.secrets.get(PASSWORD, "")
        # In its place among the nodes, whose order matters.
        signed_on = {**message.sign_on, PASSWORD_NODE: password}
        xml = encode(attrs.evolve(message, sign_on=signed_on))
        more = []
        if signature is not None:
            more = [(SIGNATURE_HEADER, base64.b64encode(signature).decode("ascii"))]
        path = requests.options_of(self.profile).path
        return request_bytes(self.profile.peer, path, xml, TYPE, more)

    def kept(self, frame: bytes) -> bytes:
        """Return a request's bytes as they may be stored and shown: without the password."""
        return mask_password(frame)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers."""
        return replies.outcome(self.profile.card, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the TRNUID of an answer to a transfer, or empty."""
        return replies.payment_ref(reply)

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:
        """Return the queries a statement must be asked in: past days in spans, today by itself."""
        step = dt.timedelta(days=self.profile.card.statement.span_days_max)
        day = dt.timedelta(days=1)
        spans, first = [], query.first_day
        end = min(query.last_day, today - day)
        while first <= end:
            last = BusinessDate(min(first + step - day, end))
            spans.append(attrs.evolve(query, first_day=first, last_day=last))
            first = BusinessDate(last + day)
        if query.first_day <= today <= query.last_day:
            spans.append(attrs.evolve(query, first_day=today, last_day=today))
        return spans

    # -- own --------------------------------------------------------------------------------------

    def _draft(self, message: Message, number: str, *, to_sign: bool) -> Draft:
        return Draft(
            correlation=number,
            trade=message.trade,
            to_sign=signed_part(encode(message)) if to_sign else None,
            algorithm=self.profile.card.signing.algorithm,
            content=message,
        )


def _read(response: HttpResponse) -> Reply:
    body = response.body
    if response.status != 200:
        return Reply("", "", f"HTTP{response.status}", "the proxy's HTTP status", body)
    try:
        message = decode(body)
        code, said = replies.codes(message)
        return Reply(message.number, message.trade, code, said, body, message)
    except (RemoteProtocolError, ValueError) as error:
        return Reply("", "", replies.UNREADABLE, str(error), body)
