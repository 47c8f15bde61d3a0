"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import datetime as dt
from email.utils import parsedate_to_datetime
from typing import Final

import attrs

from bank_adapters.icbc_nc import replies, requests
from bank_adapters.icbc_nc.messages import (
    FORM,
    SIGN_TYPE,
    Message,
    decode,
    encode,
    form,
    quoted,
    signed,
    take_answer,
    take_sign_value,
    target,
)
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.card import Signer
from fep.adapters.http import HttpFramer
from fep.domain.clock import BusinessDate
from fep.domain.errors import LocalProtocolError, RemoteProtocolError
from fep.domain.order import Operation, PaymentOrder, StatementQuery
from fep.wire.http import HttpResponse, request_bytes

ERROR: Final = "ERROR"
"""Our code of an answer ``errorCode=``."""
UNREADABLE: Final = "UNREADABLE"
"""Our code of an answer that can't be read."""
CLOCK_OFF: Final = dt.timedelta(minutes=3)
"""From this difference on the bank's clock counts for the times in our requests."""


@attrs.frozen
class _Sealed:
    """What ``seal`` needs of a draft."""

    message: Message
    xml: bytes
    at: dt.datetime


@attrs.define
class IcbcNcCodec:
    """One configured bank's protocol; besides its profile it knows how far off the clocks are."""

    profile: BankProfile
    clock_off: dt.timedelta = dt.timedelta(0)
    """What to add to our clock for the bank's."""

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> HttpFramer:
        """Return the framer of a new connection."""
        return HttpFramer(self._read, self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: a person logs in at the NetSafe Client, not we."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat."""
        at = context.now + self.clock_off
        return self._draft(requests.probe(self.profile, context, at), at, to_sign=False)

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
        at = context.now + self.clock_off
        message = requests.request(operation, self.profile, context, at)
        return self._draft(message, at, to_sign=isinstance(operation, PaymentOrder))

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send; of a sign port ``signature`` is its sign value.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        sealed = draft.content
        assert isinstance(sealed, _Sealed)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        if signature is None:
            data = quoted(sealed.xml)
        elif self.profile.card.signing.by is Signer.SIGN_PORT:
            data = signature.decode("ascii")
        else:
            data = signed(sealed.xml, signature)
        options = requests.options_of(self.profile)
        where = target(options.user_id, sealed.message.number, sealed.at)
        body = form(sealed.message, options.cis, data)
        return request_bytes(self.profile.peer, where, body, FORM)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers."""
        return replies.outcome(self.profile.card, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the fSeqno of an answer to PAYENT, or empty."""
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

    # -- the sign port ----------------------------------------------------------------------------

    @property
    def sign_peer(self) -> tuple[str, int]:
        """Host and port of the NetSafe Client's sign port."""
        options = requests.options_of(self.profile)
        return options.sign_host or self.profile.peer.rpartition(":")[0], options.sign_port

    def sign_request(self, data: bytes) -> bytes:
        """Return the whole request that asks the sign port for a signature over this XML."""
        host, port = self.sign_peer
        return request_bytes(f"{host}:{port}", "/", data, SIGN_TYPE)

    def sign_value(self, response: HttpResponse) -> bytes:
        """Return what the sign port gave.

        Raises:
            RemoteProtocolError: it did not sign.
        """
        return take_sign_value(response.body)

    # -- own --------------------------------------------------------------------------------------

    def _draft(self, message: Message, at: dt.datetime, *, to_sign: bool) -> Draft:
        xml = encode(message)
        return Draft(
            correlation=message.number,
            trade=message.trade,
            to_sign=xml if to_sign else None,
            algorithm=self.profile.card.signing.algorithm,
            content=_Sealed(message, xml, at),
        )

    def _read(self, response: HttpResponse) -> Reply:
        if response.status != 200:
            code = f"HTTP{response.status}"
            return Reply("", "", code, "the front end's HTTP status", response.body)
        try:
            xml, error = take_answer(response.body)
            if error:
                return Reply("", "", ERROR, error, response.body)
            message = decode(xml)
        except RemoteProtocolError as error:
            return Reply("", "", UNREADABLE, str(error), response.body)
        self._compare_clocks(message.number, response.header("date"))
        code, text = message.pub.get("RetCode", ""), message.pub.get("RetMsg", "")
        return Reply(message.number, message.trade, code, text, response.body, message)

    def _compare_clocks(self, number: str, date: str) -> None:
        """Note how far off the bank's clock is; its answer's Date comes after our number."""
        asked = requests.asked_at(number)
        if asked is None or not date:
            return
        try:
            told = parsedate_to_datetime(date)
        except ValueError:
            return
        if told.tzinfo is None:
            return
        # Our number was made by our clock, not the bank's.
        off = told - asked
        self.clock_off = off if abs(off) >= CLOCK_OFF else dt.timedelta(0)
