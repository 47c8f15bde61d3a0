"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import datetime as dt
from typing import Self

import attrs

from bank_adapters.cmb_cdc import replies, requests
from bank_adapters.cmb_cdc.config import SIGN_KEY, SM4_KEY
from bank_adapters.cmb_cdc.messages import (
    FORM,
    GATEWAY,
    REQUEST,
    RESPONSE,
    SAID_CHARS_MAX,
    Message,
    Secrets,
    decode,
    form,
    hide,
    is_gateway_error,
    reveal,
    take_form,
    text_to_sign,
    uncover,
    without_signature,
)
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.http import HttpFramer
from fep.domain.clock import BusinessDate
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.domain.order import Lookup, Operation, StatementQuery
from fep.wire.http import HttpResponse, RequestReader, request_bytes


@attrs.frozen
class _Sealed:
    """A draft's own parts."""

    function: str
    text: bytes = attrs.field(repr=False)
    """As it is signed."""


@attrs.frozen
class CmbCdcCodec:
    """One configured bank's protocol."""

    profile: BankProfile
    secrets: Secrets | None
    """None while a configuration is only checked."""

    @classmethod
    def of(cls, profile: BankProfile) -> Self:
        """Return the codec of a profile.

        Raises:
            ValueError: a secret can't be read as a key.
        """
        if not profile.secrets:
            return cls(profile, None)
        other = requests.options_of(profile).bank_public_key
        own, hidden_by = profile.secrets.get(SIGN_KEY, ""), profile.secrets.get(SM4_KEY, "")
        return cls(profile, Secrets.parse(own, other, hidden_by))

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> HttpFramer:
        """Return the framer of a new connection."""
        return HttpFramer(self._read, self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: each request is signed, and there is no session."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat."""
        return self._draft(requests.probe(self.profile, context), context.now)

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank; "too often" does."""
        codes = self.profile.card.codes
        return reply.trade == requests.BALANCE and reply.code in codes.ok | codes.throttled

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        return self._draft(requests.request(operation, self.profile, context), context.now)

    def prepare_lookup(self, lookup: Lookup, context: Context) -> Draft:
        """Return the request for one page of payments that came back.

        Raises:
            BodyError: this bank can't carry it; nothing was sent.
        """
        return self._draft(requests.lookup_request(lookup, self.profile, context), context.now)

    def looked_up(self, lookup: Lookup, reply: Reply) -> Outcome:
        """Return what a reply means for the look-up it answers."""
        return replies.looked_up(self.profile.card, lookup, reply)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send; signed here, since each request is, the heartbeat too.

        Raises:
            LocalProtocolError: there is a signature of a key slot, or we have no keys.
        """
        sealed, options = draft.content, requests.options_of(self.profile)
        assert isinstance(sealed, _Sealed)
        if signature is not None or self.secrets is None:
            msg = "requests of this bank are signed with the key among its secrets"
            raise LocalProtocolError(msg)
        data = hide(sealed.text, self.secrets, options.user_id)
        body = form(sealed.function, options.user_id, data)
        return request_bytes(self.profile.peer, options.path, body, FORM)

    def bare(self, frame: bytes) -> bytes:
        """Return the text of a request, with the mark in its signature's place.

        Raises:
            RemoteProtocolError: it is none of ours.
        """
        [request] = RequestReader(self.profile.card.limits.frame_bytes_max).receive_data(frame)
        if self.secrets is None:
            msg = "there are no keys to read it with"
            raise RemoteProtocolError(msg)
        form = take_form(request.body)
        text = uncover(form["DATA"].encode(), self.secrets.hidden_by, form["UID"])
        return without_signature(text)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers."""
        return replies.outcome(self.profile.card, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return our reference of the payment that an answer to a payment bears, or empty."""
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

    # -- own --------------------------------------------------------------------------------------

    def _draft(self, message: Message, at: dt.datetime) -> Draft:
        return Draft(
            correlation=message.number,
            trade=message.function,
            to_sign=None,
            algorithm=self.profile.card.signing.algorithm,
            content=_Sealed(message.function, text_to_sign(message, REQUEST, at)),
        )

    def _read(self, response: HttpResponse) -> Reply:
        body = response.body
        if is_gateway_error(body):
            said = body.decode("utf-8", "replace").strip()[:SAID_CHARS_MAX]
            return Reply("", "", GATEWAY, said, body)
        if response.status != 200:
            return Reply("", "", f"HTTP{response.status}", "the gateway's HTTP status", body)
        if self.secrets is None:
            return Reply("", "", replies.UNREADABLE, "there are no keys to read it with", body)
        try:
            user_id = requests.options_of(self.profile).user_id
            text = reveal(body.strip(), self.secrets, user_id)
            part, message = decode(text)
        except RemoteProtocolError as error:
            return Reply("", "", replies.UNREADABLE, str(error), body)
        if part != RESPONSE:
            return Reply("", "", replies.UNREADABLE, "it is a request, not an answer", body)
        code, said = message.head.get("resultcode", ""), message.head.get("resultmsg", "")
        return Reply(message.number, message.function, code, said, body, message)
