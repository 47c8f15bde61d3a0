"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import attrs
from lxml import etree

from bank_adapters.iso20022.config import Iso20022Options
from bank_adapters.iso20022.facts import account_of, references, span
from bank_adapters.iso20022.messages import REPORTS, TYPE, Message, documents, read, written
from bank_adapters.iso20022.replies import REQUEST_ID, Content, outcome, read_http, read_parcel
from bank_adapters.iso20022.requests import PAYMENT, Request, probe, request
from fep.adapters.api import BankProfile, Context, Draft, Outcome, Reply
from fep.adapters.card import Protocol, Signer
from fep.adapters.files import TOLD, Contents, Parcel, ParcelFramer, parcel_bytes
from fep.adapters.http import HttpFramer
from fep.domain.clock import BusinessDate, to_text
from fep.domain.errors import LocalProtocolError
from fep.domain.order import Operation, StatementQuery
from fep.wire.http import request_bytes

SIGNATURE: Final = "X-Signature"
"""HTTP header: base64 of our key's signature over the document; our choice."""
OURS: Final = re.compile(r"F[0-9A-Z]{19}")
"""What our references look like: of nobody else's payment is anything handed on."""
DAYS_MAX: Final = 366
"""Of one statement."""


@attrs.frozen
class _Content:
    """What a draft holds."""

    request: Request
    sequence: str
    at: dt.datetime
    reference: str


@attrs.frozen
class Iso20022Codec:
    """One configured bank's messages; stateless but for its profile."""

    profile: BankProfile

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> HttpFramer | ParcelFramer:
        """Return the framer of a new connection."""
        limit = self.profile.card.limits.frame_bytes_max
        if self._is_folder:
            return ParcelFramer(read_parcel, limit)
        return HttpFramer(read_http, limit)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: there is no session."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat."""
        return self._draft(probe(self.profile), context)

    def alive(self, reply: Reply) -> bool:
        """Say whether the answer to a heartbeat shows a working bank."""
        codes = self.profile.card.codes
        return isinstance(reply.content, Content) and reply.code in codes.ok | codes.throttled

    def contents(self, document: bytes) -> Contents:
        """Return what is in a file that came from the bank.

        Raises:
            RemoteProtocolError: it can't be read, or not yet to its end.
        """
        parts: dict[str, list[Callable[[], bytes]]] = {}
        told: dict[str, str] = {}
        for one in documents(document):
            message = read(one)
            for mark, part in _marked(message, one):
                parts.setdefault(mark, []).append(part)
            if message.kind != "camt.053":
                # A statement is looked through by itself; it may hold thousands of payments.
                told |= {
                    mark: reference
                    for reference in references(message.body)
                    if OURS.fullmatch(reference) and (mark := f"payment:{reference}") in parts
                }

        def part_of(mark: str) -> bytes:
            # Several documents in one file stay one behind the other.
            return b"\n".join(dict.fromkeys(part() for part in parts[mark]))

        return Contents(frozenset(parts), told, part_of)

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        return self._draft(request(self.profile, operation, context), context)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        content = draft.content
        assert isinstance(content, _Content)
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        asked = content.request
        document = asked.document.encode("utf-8")
        if self._is_folder:
            return parcel_bytes(
                Parcel(
                    trade=asked.trade,
                    correlation=content.sequence,
                    reference=content.reference,
                    at=to_text(content.at),
                    names=(f"pain001-{content.reference}.xml",) if document else (),
                    marks=asked.marks,
                    newest=asked.newest,
                    documents=(document,) if document else (),
                )
            )
        headers = [(REQUEST_ID, f"{asked.trade}-{content.sequence}"), ("Accept", "application/xml")]
        if signature is not None:
            headers.append((SIGNATURE, base64.b64encode(signature).decode("ascii")))
        method = "POST" if document else "GET"
        peer = self.profile.peer
        return request_bytes(peer, asked.target, document, TYPE, headers, method=method)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers; never raises on bad content."""
        return outcome(self.profile, operation, reply)

    def payment_ref(self, reply: Reply) -> str:
        """Return the reference that an answer to a payment bears, or empty."""
        if not isinstance(reply.content, Content) or reply.trade not in {"", PAYMENT, TOLD}:
            return ""
        return reply.content.payment

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

    @property
    def _is_folder(self) -> bool:
        return self.profile.card.transport.protocol is Protocol.FOLDER

    @property
    def options(self) -> Iso20022Options:
        """The bank's own."""
        options = self.profile.options
        assert isinstance(options, Iso20022Options)
        return options

    def _draft(self, asked: Request, context: Context) -> Draft:
        signs = bool(asked.document) and self.profile.card.signing.by is Signer.SLOT
        reference = context.client_ref or ""
        if asked.marks and asked.marks[0].startswith("payment:"):
            reference = asked.marks[0].partition(":")[2]
        return Draft(
            correlation=context.sequence,
            trade=asked.trade,
            to_sign=asked.document.encode("utf-8") if signs else None,
            algorithm=self.profile.card.signing.algorithm,
            # To the second, as the request's number has it: what was sent can be made anew.
            content=_Content(
                asked, context.sequence, context.now.replace(microsecond=0), reference
            ),
        )


def _marked(message: Message, document: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what a message is looked for by, each with what makes the part that says that.

    Nothing is read that could be wrong: of a file with one bad value the rest still counts.
    """

    def whole() -> bytes:
        return document

    if message.kind == "pain.001":
        # A copy of what we sent is no word of the bank's.
        return
    if message.kind not in REPORTS:
        for reference in references(message.body):
            yield f"payment:{reference}", whole
        return
    for report in message.body.iterchildren(REPORTS[message.kind]):
        if account := account_of(report):
            if report.find("Bal") is not None:
                yield f"balance:{account}", partial(_part, message, report, "Bal")
            for day in _days(*span(report)):
                yield f"statement:{account}:{day}", whole
        by_payment: dict[str, list[etree._Element]] = {}
        for entry in report.iterchildren("Ntry"):
            for reference in references(entry):
                by_payment.setdefault(reference, []).append(entry)
        for reference, entries in by_payment.items():
            part = partial(_part, message, report, "", entries)
            yield f"payment:{reference}", part


def _days(first: BusinessDate | None, last: BusinessDate | None) -> list[str]:
    if first is None or last is None:
        return []
    span = min((last - first).days + 1, DAYS_MAX)
    return [(first + dt.timedelta(days=at)).isoformat() for at in range(span)]


def _part(
    message: Message, report: etree._Element, more: str = "", entries: Sequence[etree._Element] = ()
) -> bytes:
    """Return a document with this report and these lines alone: a statement may have thousands."""
    body = etree.Element(message.body.tag)
    body.extend(copy.deepcopy(message.body.findall("GrpHdr")))
    kept = etree.SubElement(body, report.tag)
    names = {"Id", "CreDtTm", "Acct", more}
    kept.extend(copy.deepcopy([one for one in report.iterchildren("*") if one.tag in names]))
    kept.extend(copy.deepcopy(list(entries)))
    return written(Message(message.kind, body))
