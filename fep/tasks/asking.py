"""Which part of a codec carries an operation: all have the first, some banks more. Pure."""

from __future__ import annotations

from fep.adapters.api import BankCodec, BatchCodec, Context, Draft, LookupCodec, Outcome, Reply
from fep.domain.errors import BodyError
from fep.domain.order import (
    BankCodeQuery,
    Batch,
    BatchOrder,
    BatchQuery,
    Lookup,
    Operation,
    PaymentOrder,
    ReturnedQuery,
)


def prepared(codec: BankCodec, operation: Operation | Lookup | Batch, context: Context) -> Draft:
    """Return the request for an operation.

    Raises:
        BodyError: this bank can't carry it; nothing was sent.
    """
    match operation:
        case ReturnedQuery() | BankCodeQuery():
            if not isinstance(codec, LookupCodec):
                raise BodyError("this bank has no look-ups")
            return codec.prepare_lookup(operation, context)
        case BatchOrder() | BatchQuery():
            if not isinstance(codec, BatchCodec):
                raise BodyError("this bank takes no batches")
            if isinstance(operation, BatchQuery):
                return codec.prepare_batch_status(operation, context)
            return codec.prepare_batch(operation, context)
        case _:
            return codec.prepare(operation, context)


def understood(codec: BankCodec, query: Operation | Lookup | BatchQuery, reply: Reply) -> Outcome:
    """Return what a reply means for the query that it answers; payments have ``of_answer``."""
    match query:
        case ReturnedQuery() | BankCodeQuery():
            assert isinstance(codec, LookupCodec)
            return codec.looked_up(query, reply)
        case BatchQuery():
            assert isinstance(codec, BatchCodec)
            return codec.batch_status(query, reply)
        case _:
            assert not isinstance(query, PaymentOrder)
            return codec.outcome(query, reply)
