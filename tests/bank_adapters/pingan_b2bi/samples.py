"""The synthetic packets, and one configured bank with its simulated host, for these tests."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from bank_adapters.pingan_b2bi import ADAPTER
from bank_adapters.pingan_b2bi.codec import PinganCodec
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.frames import encode
from bank_adapters.pingan_b2bi.host import HOST, PinganHostConnection
from fep.adapters.api import BankProfile, Context, Reply
from fep.adapters.card import BehaviourCard, override
from fep.adapters.host import BookAccount, Fault, Faults, HostProfile
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.ids import AccountNumber, BankName, ClientRef
from fep.domain.money import Cny
from fep.domain.order import Operation, Payee, PaymentOrder, StatementQuery, StatusQuery
from tests.bank_adapters.book import MemoryBook

_LINE = re.compile(r"(.+): (\d+) bytes, body (\d+), sha256 ([0-9a-f]{16}) :: (.+)")

BANK = BankName("pingan")
OTHER_BANK = BankName("cmb")
CORP_CODE = "99990000000000000001"
PAYER = AccountNumber("99000000000101")
PAYER_NAME = "江枫样例制造有限公司"
SISTER = AccountNumber("99000000000202")
SISTER_NAME = "江枫样例物流有限公司"
PAYEE = AccountNumber("990000000000303")
PAYEE_NAME = "云阶示例贸易有限公司"
REF = ClientRef("FEP20260105000000001")
TODAY = BusinessDate(dt.date(2026, 1, 5))
NOW = dt.datetime(2026, 1, 5, 9, 2, 0, tzinfo=SHANGHAI)
ACCOUNTS: Mapping[AccountNumber, Account] = {
    PAYER: Account(PAYER, BANK, PAYER_NAME, bank_code="307584007998"),
    SISTER: Account(SISTER, BANK, SISTER_NAME),
}
ORDER = PaymentOrder(
    payer=PAYER,
    payee=Payee(PAYEE, PAYEE_NAME, bank_code="308584000013", bank_name="招商银行"),
    amount=Cny.parse("1000.50"),
    purpose="货款",
)
INSIDE = attrs.evolve(ORDER, payee=Payee(SISTER, SISTER_NAME))
"""The same payment to an account of the same bank."""
QUERY = StatusQuery(REF, ORDER, TODAY)
LINES = StatementQuery(PAYER, TODAY, TODAY)


def _packets() -> dict[str, bytes]:
    """Read the packets and check each against the length and hash it is listed with."""
    packets: dict[str, bytes] = {}
    lines = Path(__file__).with_name("packets.txt").read_text("utf-8").splitlines()
    for index, line in enumerate(lines):
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        name, size, body_size, digest, header = found.groups()
        body = lines[index + 1].encode("gbk") if int(body_size) else b""
        packet = header.replace("␣", " ").encode("gbk") + body
        assert (len(packet), len(body)) == (int(size), int(body_size)), name
        assert hashlib.sha256(packet).hexdigest()[:16] == digest, name
        packets[name] = packet
    return packets


PACKETS = _packets()


def profile(
    changes: Mapping[str, object] | None = None, options: PinganOptions | None = None
) -> BankProfile:
    card: BehaviourCard = override(ADAPTER.card, changes or {})
    return BankProfile(BANK, card, options or PinganOptions(), CORP_CODE, ACCOUNTS)


def codec(
    changes: Mapping[str, object] | None = None, options: PinganOptions | None = None
) -> PinganCodec:
    return ADAPTER.open(profile(changes, options))


def context(number: int = 1, now: dt.datetime = NOW, reference: ClientRef | None = REF) -> Context:
    return Context(now, f"{now.astimezone(SHANGHAI):%Y%m%d%H%M%S}{number:06d}", reference)


def reply_to(data: bytes, one: PinganCodec | None = None) -> Reply:
    (reply,) = (one or codec()).framer().receive_data(data)
    return reply


def answer(trade: str, code: str = "000000", xml: str = "", **cells: str) -> bytes:
    """A packet such as the bank sends."""
    text = {"date": "20260105", "time": "090200", "serv_type": "02", "seq": "1"}
    given = text | {"trade_code": trade, "ret_code": code, "ret_msg": ":说明"} | cells
    return encode(given, xml.encode("gb18030"))


def leaves(**members: str) -> str:
    return "".join(f"<{name}>{text}</{name}>" for name, text in members.items())


def result(inner: str = "", **members: str) -> str:
    return f'<?xml version="1.0" encoding="GBK" ?><Result>{leaves(**members)}{inner}</Result>'


@attrs.define
class FixedClock:
    """A clock that a test sets."""

    moment: dt.datetime = NOW

    def now(self) -> dt.datetime:
        return self.moment


class Bank:
    """A simulated bank and the codec that talks to it, in memory."""

    def __init__(self, one: PinganCodec | None = None, **given: object) -> None:
        self.book = MemoryBook(
            BookAccount(BANK, PAYER, PAYER_NAME, Cny.parse("1250000.37")),
            BookAccount(BANK, SISTER, SISTER_NAME, Cny.parse("0.00")),
            BookAccount(OTHER_BANK, PAYEE, PAYEE_NAME, Cny.parse("0.00")),
        )
        self.clock = FixedClock()
        faults = {Fault(name): 1.0 for name in given.pop("faults", ())}  # type: ignore[attr-defined]
        self.profile = HostProfile(
            BANK,
            self.book,
            self.clock,
            Faults(faults, random.Random(0)),
            **given,  # type: ignore[arg-type]
        )
        self.codec = one or codec()
        self.count = 0

    def connection(self) -> PinganHostConnection:
        return HOST.open(self.profile)

    def packet(self, operation: Operation, reference: ClientRef | None = REF) -> bytes:
        self.count += 1
        ctx = context(self.count, self.clock.now(), reference)
        return self.codec.seal(self.codec.prepare(operation, ctx), None)

    def ask(self, operation: Operation, reference: ClientRef | None = REF) -> object:
        """Return the outcome of one exchange on a fresh connection."""
        (found,) = self.connection().receive_data(self.packet(operation, reference))
        return self.codec.outcome(operation, reply_to(found.data, self.codec))
