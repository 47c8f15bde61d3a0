"""ICBC's codec and its simulated bank: the documented bytes, in memory, and over real sockets."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import random

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.icbc_nc import ADAPTER
from bank_adapters.icbc_nc.codec import IcbcNcCodec
from bank_adapters.icbc_nc.config import CARD, IcbcNcOptions
from bank_adapters.icbc_nc.host import HOST
from bank_adapters.icbc_nc.messages import Message, decode, encode
from fep.adapters.api import Accepted, BankProfile, Context, Outcome, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, override
from fep.adapters.host import BookAccount, Fault, Faults, HostProfile
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import BodyError, ConfigError
from fep.domain.ids import AccountNumber, BankName, ClientRef, Sequence
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Operation,
    Payee,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementQuery,
    StatusQuery,
)
from fep.keys.sign_port import SignPortError, sign_at_port
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.pool import LinkPool
from fep.links.service import run_link
from fep.sandbox.host import run_host
from fep.wire.http import HttpResponse, RequestReader, response_bytes
from tests.bank_adapters.book import MemoryBook

ICBC = BankName("icbc")
OURS, PAYEE = AccountNumber("9999000000000000101"), AccountNumber("9999000000000000202")
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, 123_000, SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = ClientRef("FEP20260105000000001")
ORDER = PaymentOrder(OURS, Payee(PAYEE, "云阶示例贸易有限公司"), Cny(100_050), purpose="货款")
STATUS = StatusQuery(REF, ORDER, DAY)
STATEMENT = StatementQuery(OURS, DAY, DAY)


@attrs.define
class StepClock:
    moment: dt.datetime = NOW

    def now(self) -> dt.datetime:
        return self.moment


def codec(
    card: BehaviourCard = CARD, peer: str = "127.0.0.1:448", sign_port: int = 449
) -> IcbcNcCodec:
    names = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
    accounts = {
        number: Account(number=number, bank=ICBC, name=name) for number, name in names.items()
    }
    options = IcbcNcOptions(user_id="fep01.y.9999", cis="999900000000001", sign_port=sign_port)
    made = ADAPTER.open(BankProfile(ICBC, card, options, "1", accounts, peer))
    assert isinstance(made, IcbcNcCodec)
    return made


class Bench:
    """A codec and the simulated bank, joined by bytes."""

    def __init__(self, **faults: float) -> None:
        self.codec, self.clock, self.sequence = codec(), StepClock(), Sequence()
        accounts = [
            BookAccount(ICBC, OURS, "江枫样例制造有限公司", Cny(500_000)),
            BookAccount(ICBC, PAYEE, "云阶示例贸易有限公司", Cny(0)),
        ]
        self.book = MemoryBook(*accounts)
        chance = {Fault(name): one for name, one in faults.items()}
        self.profile = HostProfile(ICBC, self.book, self.clock, Faults(chance, random.Random(1)))

    def replies(self, operation: Operation, host: HostProfile | None = None) -> list[Reply]:
        connection = HOST.open(host or self.profile)
        reference = REF if isinstance(operation, PaymentOrder) else None
        context = Context(self.clock.moment, self.sequence.next(self.clock.moment), reference)
        draft = self.codec.prepare(operation, context)
        signature = None
        if draft.to_sign is not None:
            [told] = connection.receive_data(self.codec.sign_request(draft.to_sign))
            [response] = _responses(told.data)
            signature = self.codec.sign_value(response)
        framer = self.codec.framer()
        answers = connection.receive_data(self.codec.seal(draft, signature))
        return [
            attrs.evolve(reply, correlation=draft.correlation)
            for answer in answers
            for reply in framer.receive_data(answer.data)
        ]

    def ask(self, operation: Operation) -> Outcome:
        [reply] = self.replies(operation)
        return self.codec.outcome(operation, reply)


def _responses(data: bytes) -> list[HttpResponse]:
    from fep.wire.http import ResponseReader  # noqa: PLC0415

    return ResponseReader(10**6).receive_data(data)


def reply_of(
    fields: dict[str, str],
    trade: str = "QPAYENT",
    rows: tuple[dict[str, str], ...] = (),
    code: str = "0",
) -> Reply:
    pub = {"TransCode": trade, "fSeqno": REF, "RetCode": code}
    body = b"reqData=" + base64.encodebytes(encode(Message(pub, fields, rows), "out"))
    [reply] = codec().framer().receive_data(response_bytes(200, body, "t/x"))
    return reply


def test_the_documented_bytes_of_a_balance_query() -> None:
    one = codec()
    draft = one.prepare(BalanceQuery(OURS), Context(NOW, "FEP20260105000001"))
    [request] = RequestReader(10**6).receive_data(one.seal(draft, None))
    xml = draft.content.xml
    assert (len(xml), hashlib.sha256(xml).hexdigest()[:16]) == (493, "469923b0cea0cca3")
    assert len(request.body) == 847
    assert hashlib.sha256(request.body).hexdigest()[:16] == "74d40510cb7aa490"
    assert request.target == (
        "/servlet/ICBCCMPAPIReqServlet?userID=fep01.y.9999&PackageID=FEP20260105000001"
        "&SendTime=20260105090100123"
    )


def test_a_payment_is_booked_once_and_every_query_tells_it() -> None:
    bench = Bench()
    taken = bench.ask(ORDER)
    assert isinstance(taken, Accepted)
    assert not taken.final
    assert isinstance(taken.result, PaymentReceipt)
    assert taken.result.client_ref == REF
    status = bench.ask(STATUS)
    assert isinstance(status, Accepted)
    assert isinstance(status.result, PaymentStatus)
    assert status.result.state is PaymentState.SUCCEEDED
    balance = bench.ask(BalanceQuery(OURS))
    assert isinstance(balance, Accepted)
    assert isinstance(balance.result, Balance)
    assert balance.result.available == Cny(399_950)
    lines = bench.ask(STATEMENT)
    assert isinstance(lines, Accepted)
    assert isinstance(lines.result, Statement)
    [line] = lines.result.entries
    assert (line.client_ref, line.amount, line.booked_at) == (
        REF,
        ORDER.amount,
        NOW.replace(microsecond=0),
    )
    repeat = bench.ask(ORDER)
    assert isinstance(repeat, Unclear)
    assert bench.book.moved == 1


@pytest.mark.parametrize(
    ("fault", "moved", "answered"),
    [
        ("silent_before_booking", 0, 0),
        ("silent_after_booking", 1, 0),
        ("close_before_booking", 0, 0),
        ("close_after_booking", 1, 0),
        ("exit_before_booking", 0, 0),
        ("exit_after_booking", 1, 0),
        ("unknown_after_booking", 1, 1),
    ],
)
def test_faults_that_leave_a_payment_open(fault: str, moved: int, answered: int) -> None:
    bench = Bench(**{fault: 1.0})
    replies = bench.replies(ORDER)
    assert (bench.book.moved, len(replies)) == (moved, answered)
    for reply in replies:
        assert isinstance(bench.codec.outcome(ORDER, reply), Unclear)
    status = bench.ask(STATUS)
    assert isinstance(status, Accepted)
    assert isinstance(status.result, PaymentStatus)
    assert status.result.state is (PaymentState.SUCCEEDED if moved else PaymentState.NO_RECORD)


def test_landed_throttled_and_poor() -> None:
    bench = Bench(landed=1.0)
    bench.ask(ORDER)
    status = bench.ask(STATUS)
    assert isinstance(status, Accepted)
    assert isinstance(status.result, PaymentStatus)
    assert status.result.state is PaymentState.PROCESSING
    assert isinstance(Bench(throttled=1.0).ask(BalanceQuery(OURS)), Rejected)
    poor = Bench()
    poor.ask(attrs.evolve(ORDER, amount=Cny(500_001)))
    status = poor.ask(attrs.evolve(STATUS, order=attrs.evolve(ORDER, amount=Cny(500_001))))
    assert isinstance(status, Accepted)
    assert isinstance(status.result, PaymentStatus)
    assert status.result.state is PaymentState.REJECTED


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"Result": "98"}, PaymentState.UNKNOWN),
        ({"Result": "7"}, PaymentState.SUCCEEDED),
        ({"Result": "6"}, PaymentState.REJECTED),
        ({"Result": "12345"}, PaymentState.UNKNOWN),
        ({"Result": "7", "PayAmt": "1000"}, PaymentState.UNKNOWN),
        ({"Result": "7", "RecAccNo": "1"}, PaymentState.UNKNOWN),
    ],
)
def test_results(row: dict[str, str], state: PaymentState) -> None:
    found = codec().outcome(STATUS, reply_of({"QryfSeqno": REF}, rows=(row,)))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    assert found.result.state is state


def test_an_amount_in_yuan_proves_nothing() -> None:
    row = {"Result": "7", "PayAmt": "1000.50"}
    assert isinstance(codec().outcome(STATUS, reply_of({}, rows=(row,))), Unclear)


def test_pages_go_on_by_next_tag_and_never_round_and_round() -> None:
    line = {"Drcrf": "1", "Amount": "5", "TimeStamp": "2026-01-05-09.02.00.123456"}
    page = codec().outcome(STATEMENT, reply_of({"NextTag": "T1"}, "QPD", (line,)))
    assert isinstance(page, Accepted)
    assert isinstance(page.result, Statement)
    assert page.result.cursor == "QPD:T1"
    again = attrs.evolve(STATEMENT, cursor=page.result.cursor)
    context = Context(NOW, "1")
    asked = codec().prepare(again, context).content.message
    assert (asked.trade, asked.fields["NextTag"]) == ("QPD", "T1")
    # By the next day the lines are asked for by another trade, whose pages they are not.
    later = attrs.evolve(context, now=NOW + dt.timedelta(days=1))
    with pytest.raises(BodyError, match="midnight passed between two pages"):
        codec().prepare(again, later)
    assert isinstance(codec().outcome(again, reply_of({"NextTag": "T1"}, "QPD", (line,))), Unclear)
    empty = codec().outcome(again, reply_of({"NextTag": "T1"}, "QPD", ({"Drcrf": ""},)))
    assert isinstance(empty, Accepted)
    assert isinstance(empty.result, Statement)
    assert empty.result == Statement(())
    none = codec().outcome(STATEMENT, reply_of({}, "QPD", ({"Amount": ""},), "B0116"))
    assert isinstance(none, Accepted)


def test_a_statement_is_asked_in_days_before_and_today() -> None:
    asked = StatementQuery(OURS, BusinessDate(DAY - dt.timedelta(days=2)), DAY)
    past, today = codec().split(asked, DAY)
    assert (past.first_day, past.last_day) == (asked.first_day, DAY - dt.timedelta(days=1))
    assert (today.first_day, today.last_day) == (DAY, DAY)
    assert codec().prepare(past, Context(NOW, "1")).trade == "QHISD"
    assert codec().prepare(today, Context(NOW, "1")).trade == "QPD"


def test_the_banks_clock_counts_from_three_minutes_on() -> None:
    bench = Bench()
    host_clock = StepClock(NOW + dt.timedelta(minutes=10))
    bench.replies(BalanceQuery(OURS), attrs.evolve(bench.profile, clock=host_clock))
    draft = bench.codec.prepare(BalanceQuery(OURS), Context(NOW, "1"))
    assert draft.content.message.pub["TranTime"].startswith("0911")
    host_clock.moment = NOW + dt.timedelta(minutes=2)
    bench.replies(BalanceQuery(OURS), attrs.evolve(bench.profile, clock=host_clock))
    assert bench.codec.clock_off == dt.timedelta(0)


def test_what_is_refused_before_sending() -> None:
    payee = Payee(PAYEE, "\U0001f600")
    with pytest.raises(BodyError, match="GBK"):
        codec().prepare(attrs.evolve(ORDER, payee=payee), Context(NOW, "1", REF))
    with pytest.raises(ConfigError):
        codec(override(CARD, {"signing": {"by": "front_end"}}))
    with pytest.raises(ConfigError):
        codec(override(CARD, {"transport": {"protocol": "tcp"}}))


@given(st.binary(max_size=400))
def test_garbage_is_a_reply_that_proves_nothing(body: bytes) -> None:
    for data in (
        body,
        b"reqData=" + body,
        b"reqData=" + base64.b64encode(body),
        b"errorCode=" + body,
    ):
        [reply] = codec().framer().receive_data(response_bytes(200, data, "t/x"))
        assert isinstance(codec().outcome(ORDER, reply), Unclear)
    assert decode(encode(Message({"A": "<&>账"}))).pub == {"A": "<&>账"}


class _Open:
    is_open = True

    async def wait_open(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> None:
        await trio.sleep_forever()


class _NoAlarms:
    def raise_alarm(self, *_: object) -> None: ...

    def clear(self, *_: object) -> None: ...


async def test_over_real_sockets_with_the_sign_port() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(run_host, HOST, bench.profile, ("127.0.0.1", 0))
        one = codec(peer=f"{host}:{port}", sign_port=port)
        send, _ = trio.open_memory_channel[UnmatchedReply](1)
        config = LinkConfig(ICBC, host, port, connections=2)
        link = LinkPool(
            config, one, bench.sequence, bench.clock, _NoAlarms(), send, random.Random(1)
        )
        await nursery.start(run_link, link, _Open())
        with trio.fail_after(5):
            await link.wait_open()
            for operation in (ORDER, STATUS, BalanceQuery(OURS), STATEMENT):
                reference = REF if operation is ORDER else None
                draft = one.prepare(operation, Context(NOW, bench.sequence.next(NOW), reference))
                signature = (
                    None if draft.to_sign is None else await sign_at_port(one, draft.to_sign)
                )
                reply = await link.exchange(one.seal(draft, signature), draft.correlation)
                assert isinstance(one.outcome(operation, reply), Accepted)
        nursery.cancel_scope.cancel()
    assert bench.book.moved == 1


async def test_a_sign_port_that_is_down_or_refuses_leaves_nothing_sent() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    one = codec(sign_port=listener.socket.getsockname()[1])

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(response_bytes(200, b"<html><result>41</result></html>", "x/y"))

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, refuse, [listener])
        with pytest.raises(SignPortError, match="did not sign: 41"):
            await sign_at_port(one, b"<CMS/>")
        nursery.cancel_scope.cancel()
    with pytest.raises(SignPortError):
        await sign_at_port(one, b"<CMS/>")
