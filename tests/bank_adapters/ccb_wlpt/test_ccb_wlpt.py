"""CCB's codec and its simulated bank, joined by bytes."""

from __future__ import annotations

import datetime as dt
import itertools
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.ccb_wlpt import ADAPTER
from bank_adapters.ccb_wlpt.codec import CcbWlptCodec
from bank_adapters.ccb_wlpt.config import CARD, CcbWlptOptions
from bank_adapters.ccb_wlpt.host import HOST, ROWS_PER_PAGE
from bank_adapters.ccb_wlpt.messages import (
    FrameReader,
    Message,
    decode,
    encode,
    signed_part,
    take_signature,
)
from fep.adapters.api import (
    Accepted,
    BankProfile,
    Context,
    Outcome,
    Rejected,
    Reply,
    SecretiveCodec,
    Unclear,
)
from fep.adapters.card import BehaviourCard, override
from fep.adapters.host import BookAccount, Fault, Faults, HostProfile
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.errors import BodyError, ConfigError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import AccountNumber, BankName, Sequence, TaskId, short_ref
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
from tests.bank_adapters.book import MemoryBook

CCB = BankName("ccb")
OURS, PAYEE = AccountNumber("99990000000000000101"), AccountNumber("99990000000000000202")
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = short_ref("E0001", TaskId("T1"), 16)
ORDER = PaymentOrder(OURS, Payee(PAYEE, "云阶<示例>&贸易有限公司"), Cny(100_050), purpose="货款")
STATUS = StatusQuery(REF, ORDER, DAY)
STATEMENT = StatementQuery(OURS, DAY, DAY)
PASSWORD = "not-for-logs"


@attrs.frozen
class StandingClock:
    def now(self) -> dt.datetime:
        return NOW


def codec(card: BehaviourCard = CARD) -> CcbWlptCodec:
    names = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
    accounts = {
        number: Account(number=number, bank=CCB, name=name) for number, name in names.items()
    }
    options = CcbWlptOptions(customer_id="105999900000001", user_id="FEP001")
    made = ADAPTER.open(
        BankProfile(CCB, card, options, "1", accounts, secrets={"password": PASSWORD})
    )
    assert isinstance(made, CcbWlptCodec)
    return made


class Bench:
    """A codec and the simulated bank."""

    def __init__(self, **faults: float) -> None:
        self.codec, self.sequence = codec(), Sequence()
        accounts = [
            BookAccount(CCB, OURS, "江枫样例制造有限公司", Cny(500_000)),
            BookAccount(CCB, PAYEE, "云阶示例贸易有限公司", Cny(0)),
        ]
        self.book = MemoryBook(*accounts)
        chance = {Fault(name): one for name, one in faults.items()}
        self.profile = HostProfile(
            CCB, self.book, StandingClock(), Faults(chance, random.Random(1))
        )

    def replies(self, operation: Operation, reference: str = REF) -> list[Reply]:
        known = reference if isinstance(operation, PaymentOrder) else None
        context = Context(NOW, self.sequence.next(NOW), known)  # type: ignore[arg-type]
        draft = self.codec.prepare(operation, context)
        signature = b"signature" if draft.to_sign is not None else None
        framer = self.codec.framer()
        answers = HOST.open(self.profile).receive_data(self.codec.seal(draft, signature))
        return [reply for answer in answers for reply in framer.receive_data(answer.data)]

    def ask(self, operation: Operation) -> Outcome:
        [reply] = self.replies(operation)
        return self.codec.outcome(operation, reply)

    def status(self) -> PaymentStatus:
        told = self.ask(STATUS)
        assert isinstance(told, Accepted)
        assert isinstance(told.result, PaymentStatus)
        return told.result


def reply_of(fields: dict[str, str], trade: str, code: str = "000000") -> Reply:
    head = {"REQUEST_SN": REF, "TX_CODE": trade, "RETURN_CODE": code}
    [reply] = codec().framer().receive_data(encode(Message(head, fields)))
    return reply


def test_a_payment_is_booked_once_and_every_query_tells_it() -> None:
    bench = Bench()
    done = bench.ask(ORDER)
    assert isinstance(done, Accepted)
    assert done.final
    assert isinstance(done.result, PaymentReceipt)
    assert (done.result.client_ref, done.code) == (REF, "4")
    assert bench.status().state is PaymentState.SUCCEEDED
    balance = bench.ask(BalanceQuery(OURS))
    assert isinstance(balance, Accepted)
    assert isinstance(balance.result, Balance)
    assert balance.result.available == Cny(399_950)
    lines = bench.ask(STATEMENT)
    assert isinstance(lines, Accepted)
    assert isinstance(lines.result, Statement)
    [line] = lines.result.entries
    assert (line.client_ref, line.amount, line.booked_at) == (REF, ORDER.amount, NOW)
    assert lines.result.cursor == ""
    assert isinstance(bench.ask(ORDER), Unclear)
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
    state = bench.status().state
    assert state is (PaymentState.SUCCEEDED if moved else PaymentState.NO_RECORD)


def test_landed_throttled_returned_and_poor() -> None:
    landed = Bench(landed=1.0)
    assert isinstance(landed.ask(ORDER), Unclear)
    assert landed.status().state is PaymentState.UNKNOWN
    throttled = Bench(throttled=1.0).ask(BalanceQuery(OURS))
    assert isinstance(throttled, Rejected)
    poor = Bench()
    assert isinstance(poor.ask(attrs.evolve(ORDER, amount=Cny(500_001))), Rejected)


def test_pages_go_on_to_the_last_one() -> None:
    bench = Bench()
    for number in range(ROWS_PER_PAGE + 1):
        reference = short_ref("E0001", TaskId(f"P{number}"), 16)
        bench.replies(attrs.evolve(ORDER, amount=Cny(100 + number)), reference)
    amounts: list[int] = []
    query = STATEMENT
    for _ in range(2):
        told = bench.ask(query)
        assert isinstance(told, Accepted)
        assert isinstance(told.result, Statement)
        amounts += [line.amount.fen for line in told.result.entries]
        query = attrs.evolve(query, cursor=told.result.cursor)
    assert amounts == [100 + number for number in range(ROWS_PER_PAGE + 1)]
    assert query.cursor == ""


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"DEAL_TYPE": "2"}, PaymentState.SUCCEEDED),
        ({"DEAL_TYPE": "5"}, PaymentState.REJECTED),
        ({"DEAL_TYPE": "9"}, PaymentState.UNKNOWN),
        ({"DEAL_TYPE": "7"}, PaymentState.UNKNOWN),
        ({}, PaymentState.UNKNOWN),
        ({"DEAL_TYPE": "4", "PAY_AMOUNT": "1000.5"}, PaymentState.SUCCEEDED),
        ({"DEAL_TYPE": "4", "PAY_AMOUNT": "1000.51"}, PaymentState.UNKNOWN),
        ({"DEAL_TYPE": "4", "RECV_ACCNO": "1"}, PaymentState.UNKNOWN),
    ],
)
def test_what_a_status_answer_means(fields: dict[str, str], state: PaymentState) -> None:
    told = codec().outcome(STATUS, reply_of(fields, "6W0600"))
    assert isinstance(told, Accepted)
    assert isinstance(told.result, PaymentStatus)
    assert told.result.state is state


@pytest.mark.parametrize(
    ("operation", "fields", "trade"),
    [
        (STATUS, {"DEAL_TYPE": "4", "REQUEST_SN1": "1"}, "6W0600"),
        (STATUS, {"DEAL_TYPE": "4", "PAY_AMOUNT": "100,050"}, "6W0600"),
        (STATUS, {"DEAL_TYPE": "4"}, "6W0100"),
        (ORDER, {"DEAL_TYPE": "4", "PAY_AMOUNT": "1.00"}, "6W8010"),
        (ORDER, {}, "6W8010"),
        (BalanceQuery(OURS), {"ACC_NO": PAYEE, "BALANCE": "1.00"}, "6W0100"),
        (BalanceQuery(OURS), {"ACC_NO": OURS, "BALANCE": "1.00", "CUR_CODE": "14"}, "6W0100"),
        (STATEMENT, {"CUR_PAGE": "2", "PAGE_COUNT": "2"}, "6W0300"),
    ],
)
def test_what_proves_nothing(operation: Operation, fields: dict[str, str], trade: str) -> None:
    assert isinstance(codec().outcome(operation, reply_of(fields, trade)), Unclear)


@pytest.mark.parametrize("code", ["SIM004", "SIM005", "SIM006", "999999", ""])
def test_a_code_that_is_no_refusal_leaves_a_payment_open(code: str) -> None:
    assert isinstance(codec().outcome(ORDER, reply_of({}, "6W8010", code)), Unclear)
    assert isinstance(codec().outcome(ORDER, reply_of({}, "6W8010", "SIM003")), Rejected)


def test_who_has_no_password_or_signature_pays_nothing() -> None:
    bench = Bench()
    draft = bench.codec.prepare(ORDER, Context(NOW, "1", REF))
    sealed = bench.codec.seal(draft, b"signature")
    assert (signed_part(sealed), take_signature(sealed)) == (draft.to_sign, "c2lnbmF0dXJl")
    with pytest.raises(LocalProtocolError):
        bench.codec.seal(draft, None)
    [answer] = HOST.open(bench.profile).receive_data(sealed.replace(PASSWORD.encode(), b""))
    assert b"SIM001" in answer.data
    assert bench.book.moved == 0
    assert PASSWORD not in repr((draft, bench.codec, decode(sealed)))
    assert isinstance(bench.codec, SecretiveCodec)
    kept = bench.codec.kept(sealed)
    assert kept == sealed.replace(PASSWORD.encode(), b"*" * len(PASSWORD))


def test_what_is_refused_before_sending() -> None:
    one = codec()
    for payee in (Payee(PAYEE, "\x0b名"), Payee(PAYEE, "名" * 101)):
        with pytest.raises(BodyError, match=r"payee\.name"):
            one.prepare(attrs.evolve(ORDER, payee=payee), Context(NOW, "1", REF))
    stranger = Payee(AccountNumber("6222000000009999"), "外行示例公司")
    with pytest.raises(BodyError, match="bank_name"):
        one.prepare(attrs.evolve(ORDER, payee=stranger), Context(NOW, "1", REF))
    with pytest.raises(BodyError, match="no approved account"):
        one.prepare(BalanceQuery(AccountNumber("1")), Context(NOW, "1"))
    with pytest.raises(LocalProtocolError):
        one.prepare(ORDER, Context(NOW, "1"))
    for wrong in ({"signing": {"by": "front_end"}}, {"dedupe": {"digits": False}}):
        with pytest.raises(ConfigError):
            codec(override(CARD, wrong))


def test_numbers_of_queries_are_sixteen_digits_and_no_payments() -> None:
    draft = codec().prepare(STATUS, Context(NOW, Sequence().next(NOW)))
    assert len(draft.correlation) == 16
    assert draft.correlation.startswith("0105090100")
    assert REF[0] not in "01"


STREAM = b"\r\n".join(
    encode(Message({"TX_CODE": "6W0600", "REQUEST_SN": str(number)}, {"MESSAGE": "账"}))
    for number in range(3)
)


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cut_gives_the_same_replies(cuts: list[int]) -> None:
    framer = codec().framer()
    ends = [0, *sorted(cuts), len(STREAM)]
    replies = [
        reply
        for begin, end in itertools.pairwise(ends)
        for reply in framer.receive_data(STREAM[begin:end])
    ]
    framer.receive_eof()
    assert [reply.correlation for reply in replies] == ["0", "1", "2"]


@given(st.binary(max_size=300))
def test_any_bytes_are_replies_or_a_clear_error(data: bytes) -> None:
    for raw in (data, b"<TX>" + data + b"</TX>", b"<" + data):
        framer = FrameReader(200)
        try:
            frames = framer.receive_data(raw)
            framer.receive_data(b"")
        except RemoteProtocolError:
            continue
        assert framer.held_bytes <= 200
        for frame in frames:
            [reply] = codec().framer().receive_data(frame)
            assert isinstance(codec().outcome(ORDER, reply), Unclear)
    HOST.open(Bench().profile).receive_data(data)


def test_a_stream_that_ends_inside_or_never_begins_is_an_error() -> None:
    framer = codec().framer()
    framer.receive_data(STREAM[:-3])
    with pytest.raises(RemoteProtocolError, match="inside"):
        framer.receive_eof()
    with pytest.raises(RemoteProtocolError, match="no XML"):
        codec().framer().receive_data(b"HTTP/1.1 200 OK\r\n")
    reader = FrameReader(100)
    assert len(reader.receive_data(b"<TX></TX>" + b"<" * 200)) == 1
    with pytest.raises(RemoteProtocolError, match="100 bytes"):
        reader.receive_data(b"")


@given(st.text(max_size=40))
def test_what_is_written_is_read(text: str) -> None:
    try:
        data = encode(Message({"TX_CODE": "1"}, {"A": text}))
    except (BodyError, UnicodeEncodeError):
        return
    found = decode(data).fields["A"]
    assert found == text.replace("\r\n", "\n").replace("\r", "\n").strip()
