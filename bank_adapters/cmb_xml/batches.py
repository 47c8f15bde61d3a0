"""Several payments in one DCPAYMNT, each asked after by itself with NTQRYSTY.

Up to 30 rows are answered row by row (guide 4.3.1, DCPAYMNT); beyond that the bank is mute, so that
is the card's limit. The bank knows no batch: only the rows' own references.
"""

from __future__ import annotations

import attrs

from bank_adapters.cmb_xml import replies, requests
from bank_adapters.cmb_xml.messages import Block, Message
from fep.adapters.api import Accepted, BankProfile, Context, Outcome, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard
from fep.adapters.meaning import refused
from fep.domain.errors import BodyError, LocalProtocolError
from fep.domain.ids import ClientRef, row_ref
from fep.domain.order import (
    BatchOrder,
    BatchQuery,
    BatchStatus,
    PaymentReceipt,
    StatusQuery,
)


def request(order: BatchOrder, profile: BankProfile, context: Context) -> Message:
    """Return the DCPAYMNT that carries all rows.

    Raises:
        BodyError: this bank can't carry it; the message names the row.
        LocalProtocolError: a batch without its reference.
    """
    if context.client_ref is None:
        msg = "a batch was to be written without its reference"
        raise LocalProtocolError(msg)
    rows_max = profile.card.batch.rows_max
    if len(order.rows) > rows_max:
        msg = f"rows: this bank answers at most {rows_max} payments of one batch"
        raise BodyError(msg)
    blocks: list[Block] = []
    for place, row in enumerate(order.rows):
        own = attrs.evolve(context, client_ref=row_ref(context.client_ref, place))
        try:
            mode, payment = requests.payment(row, profile, own)
        except BodyError as error:
            where = "" if str(error).startswith("payer") else f"rows[{place}]."
            msg = f"{where}{error}"
            raise BodyError(msg) from error
        blocks += [payment] if blocks else [mode, payment]
    return requests.message_of(requests.PAYMENT, profile, context, *blocks)


def taken(card: BehaviourCard, order: BatchOrder, reference: ClientRef, reply: Reply) -> Outcome:
    """Return what the answer to a batch means: all rows taken over, all refused, or unclear."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != requests.PAYMENT:
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function!r}")
    if reply.code not in card.codes.ok:
        # The front end answers so also for a request that it had already passed on.
        return Unclear(reply.code, reply.message)
    rows = {row.get("YURREF", ""): row for row in message.rows(replies.PAYMENT_ROW)}
    wanted = [row_ref(reference, place) for place in range(len(order.rows))]
    if len(message.rows(replies.PAYMENT_ROW)) != len(wanted) or set(rows) != set(wanted):
        return Unclear("NOT_ITS_ROWS", "the answer's rows are not those of the batch")
    said = [
        replies.payment_row(card, one, rows[own])
        for one, own in zip(order.rows, wanted, strict=True)
    ]
    first = said[0]
    if all(isinstance(one, Accepted) for one in said):
        receipt = PaymentReceipt(reference, order.amount)
        return Accepted(receipt, first.code, first.message, final=False)
    if isinstance(first, Rejected) and all(isinstance(one, Rejected) for one in said):
        return first
    refused = next(one for one in said if not isinstance(one, Accepted))
    return Unclear(refused.code, refused.message or "not all rows were taken")


def status_request(query: BatchQuery, profile: BankProfile, context: Context) -> Message:
    """Return the NTQRYSTY after one row.

    Raises:
        BodyError: the cursor is not one of ours, or the bank tells of that day no more.
    """
    block = requests.status(_row_query(query), profile, context)
    return requests.message_of(requests.STATUS, profile, context, block)


def status(card: BehaviourCard, query: BatchQuery, reply: Reply) -> Outcome:
    """Return what NTQRYSTY says of one row, and which is next."""
    message = reply.content
    if not isinstance(message, Message):
        return Unclear(reply.code, reply.message)
    if message.function != requests.STATUS:
        return Unclear("WRONG_FUNCTION", f"the answer is to {message.function!r}")
    if reply.code not in card.codes.ok:
        return refused(card.codes, reply.code, reply.message)
    try:
        found = replies.status(card.states, _row_query(query), message)
        place = _place(query)
    except (BodyError, ValueError) as error:
        return Unclear("UNREADABLE", str(error))
    following = str(place + 1) if place + 1 < len(query.order.rows) else ""
    return Accepted(BatchStatus({place: found}, following), found.code, found.message)


def _row_query(query: BatchQuery) -> StatusQuery:
    place = _place(query)
    reference = row_ref(query.client_ref, place)
    return StatusQuery(reference, query.order.rows[place], query.submitted_on)


def _place(query: BatchQuery) -> int:
    text = query.cursor or "0"
    if not (text.isascii() and text.isdecimal() and int(text[:4]) < len(query.order.rows)):
        msg = f"cursor {text[:40]!r} is not of this bank"
        raise BodyError(msg)
    return int(text)
