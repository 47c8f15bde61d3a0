"""What passes between every shipped adapter and its simulated bank, as bytes."""

from __future__ import annotations

import datetime as dt

from fep.adapters import registry
from fep.adapters.api import BankAdapter, BankProfile, Context, SessionCodec, decoder_of
from fep.adapters.card import Signer, override
from fep.adapters.decode import Decoder
from fep.adapters.host import BookAccount, Faults, HostProfile
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.ids import AccountNumber, BankName, Sequence, TaskId, client_ref, short_ref
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    Kind,
    Operation,
    Payee,
    PaymentOrder,
    StatementQuery,
    StatusQuery,
)
from tests.bank_adapters.book import MemoryBook

BANK = BankName("bank")
OURS, PAYEE = AccountNumber("99990000000101"), AccountNumber("99990000000202")
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
ORDER = PaymentOrder(OURS, Payee(PAYEE, "云阶示例贸易有限公司"), Cny(100_050), purpose="货款")
SECRET = "not-for-logs"
HOLDERS = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}


class _Clock:
    def now(self) -> dt.datetime:
        return NOW


def profile_of(name: str) -> BankProfile:
    """Return an adapter's example bank."""
    adapter: BankAdapter = registry.adapter(name)
    example = registry.quality(name).example
    by_us = {} if adapter.card.signing.by is Signer.ADAPTER else {"signing": {"by": "slot"}}
    return BankProfile(
        BANK,
        override(adapter.card, by_us),
        adapter.options_class(**example.options),
        "1",
        {number: Account(number, BANK, holder) for number, holder in HOLDERS.items()},
        "127.0.0.1:1",
        {**dict.fromkeys(adapter.secret_names, SECRET), **example.secrets},
    )


def decoder(name: str) -> Decoder:
    """Return what reads the example bank's bytes."""
    return decoder_of(registry.adapter(name), profile_of(name))


def exchanges(name: str) -> list[tuple[Operation | None, bytes, bytes]]:
    """Return each operation (None: the log-on) with its request's bytes and its answer's."""
    adapter, profile = registry.adapter(name), profile_of(name)
    codec = adapter.open(profile)
    book = MemoryBook(
        *(BookAccount(BANK, one, holder, Cny(500_000)) for one, holder in HOLDERS.items())
    )
    host = registry.host(name).open(HostProfile(BANK, book, _Clock(), Faults()))
    task, sequence = TaskId("T1"), Sequence()
    dedupe = profile.card.dedupe
    reference = (
        short_ref("E0001", task, dedupe.length_max) if dedupe.digits else client_ref("E0001", task)
    )
    found: list[tuple[Operation | None, bytes, bytes]] = []
    if isinstance(codec, SessionCodec):
        logon = codec.logon(Context(NOW, sequence.next(NOW)))
        assert logon is not None
        request = codec.seal(logon, None)
        answer = b"".join(one.data for one in host.receive_data(request))
        [reply] = codec.framer().receive_data(answer)
        codec.signed_on(reply)
        found.append((None, request, answer))
    for operation in (
        ORDER,
        StatusQuery(reference, ORDER, DAY),
        BalanceQuery(OURS),
        StatementQuery(OURS, DAY, DAY),
    ):
        if isinstance(operation, StatementQuery) and Kind.STATEMENT not in adapter.capabilities:
            continue
        known = reference if isinstance(operation, PaymentOrder) else None
        draft = codec.prepare(operation, Context(NOW, sequence.next(NOW), known))
        request = codec.seal(draft, None if draft.to_sign is None else b"signature")
        answer = b"".join(one.data for one in host.receive_data(request))
        found.append((operation, request, answer))
    return found
