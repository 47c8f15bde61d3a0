"""The simulated bank, alone and against the adapter, in memory."""

import datetime as dt
import random
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.cmb_xml.config import CARD
from bank_adapters.cmb_xml.frames import pack
from bank_adapters.cmb_xml.host import HOST
from bank_adapters.cmb_xml.messages import Block, Message, decode, encode
from fep.adapters.api import Accepted, Context, Draft, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.card import SignAlgorithm
from fep.adapters.host import (
    DELAY_SECONDS,
    RETURN_SECONDS_MAX,
    Answer,
    BookAccount,
    Fault,
    Faults,
    HostConnection,
    HostProfile,
)
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Direction,
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
from tests.bank_adapters.cmb_xml.samples import (
    BALANCE,
    CMB,
    CONTEXT,
    DAY,
    NOW,
    ORDER,
    OTHER,
    PAYER,
    REFERENCE,
    SAMPLES,
    SISTER,
    STATEMENT,
    STATUS,
    STRANGER,
    codec,
)

OPENING = Cny.parse("5000.00")
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


@attrs.define
class StepClock:
    """A wall clock that only the test moves."""

    moment: dt.datetime = NOW

    def now(self) -> dt.datetime:
        return self.moment


def _book() -> MemoryBook:
    return MemoryBook(
        BookAccount(CMB, PAYER, "江枫样例制造有限公司", OPENING),
        BookAccount(CMB, SISTER, "江枫样例销售有限公司", Cny(0)),
        BookAccount(OTHER, STRANGER, "云阶示例贸易有限公司", Cny(0)),
    )


@attrs.define
class Bench:
    """One bank's adapter joined to its simulated host by nothing but bytes."""

    book: MemoryBook = attrs.Factory(_book)
    chance: dict[Fault, float] = attrs.Factory(dict)
    certificates: tuple[x509.Certificate, ...] = ()
    card: dict[str, Any] = attrs.Factory(dict)
    clock: StepClock = attrs.Factory(StepClock)

    def connect(self) -> HostConnection:
        faults = Faults(self.chance, random.Random(1))
        return HOST.open(HostProfile(CMB, self.book, self.clock, faults, self.certificates))

    def exchange(self, draft: Draft, signature: bytes | None = None) -> list[Answer]:
        return self.connect().receive_data(codec(card=self.card).seal(draft, signature))

    def replies(self, draft: Draft, signature: bytes | None = None) -> list[Reply]:
        framer = codec(card=self.card).framer()
        data = b"".join(answer.data for answer in self.exchange(draft, signature))
        return framer.receive_data(data) if data else []

    def ask(self, operation: Operation, client_ref: ClientRef | None = None) -> Outcome:
        context = Context(self.clock.moment, "20260105090205000007", client_ref or REFERENCE)
        draft = codec(card=self.card).prepare(operation, context)
        (reply,) = self.replies(draft)
        assert reply.correlation == draft.correlation
        return codec(card=self.card).outcome(operation, reply)

    def status(
        self, order: PaymentOrder = ORDER, client_ref: ClientRef = REFERENCE
    ) -> PaymentStatus:
        outcome = self.ask(StatusQuery(client_ref, order, DAY))
        assert isinstance(outcome, Accepted)
        assert isinstance(outcome.result, PaymentStatus)
        return outcome.result


def _certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "E0001")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


# The adapter's requests against the host's answers.


def test_the_probe_finds_a_working_bank() -> None:
    (reply,) = Bench().replies(codec().probe(CONTEXT))
    assert codec().alive(reply)
    assert reply.correlation == CONTEXT.sequence


def test_a_balance() -> None:
    outcome = Bench().ask(BALANCE)
    assert isinstance(outcome, Accepted)
    assert outcome.result == Balance(
        account=PAYER,
        available=OPENING,
        book=OPENING,
        held=Cny(0),
        as_of=NOW,
        status="active",
    )


def test_a_payment_is_taken_then_found_paid() -> None:
    bench = Bench()
    outcome = bench.ask(ORDER)
    bank_ref = bench.book.payments[CMB, REFERENCE].bank_ref
    receipt = PaymentReceipt(REFERENCE, ORDER.amount, bank_ref)
    assert outcome == Accepted(receipt, "NTE", final=False)
    assert bench.status() == PaymentStatus(
        PaymentState.SUCCEEDED, "FIN+S", bank_ref=bank_ref, booked_on=DAY
    )
    assert bench.book.accounts[CMB, PAYER].balance == OPENING - ORDER.amount
    assert bench.book.accounts[OTHER, STRANGER].balance == ORDER.amount
    payment = bench.book.payments[CMB, REFERENCE]
    assert (payment.payee_name, payment.payee_bank_name) == (ORDER.payee.name, "兴业银行")


def test_a_repeat_moves_nothing_and_says_nothing() -> None:
    bench = Bench()
    bench.ask(ORDER)
    for state in (PaymentState.SUCCEEDED,) * 2:
        outcome = bench.ask(ORDER)
        assert isinstance(outcome, Unclear)
        assert outcome.code == "NCB4241"
        assert bench.status().state is state
    assert bench.book.moved == 1


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (attrs.evolve(ORDER, amount=OPENING + Cny(1)), "CSAC054"),
        (
            attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, account=AccountNumber("1"))),
            "CSAB051",
        ),
    ],
    ids=["no money", "no payee"],
)
def test_a_refused_payment_is_a_failed_row(order: PaymentOrder, code: str) -> None:
    bench = Bench()
    outcome = bench.ask(order)
    assert isinstance(outcome, Rejected)
    assert outcome.code == code
    assert outcome.message.startswith(code)
    status = bench.status(order)
    assert (status.state, status.code) == (PaymentState.REJECTED, "FIN+F")
    assert status.message
    assert bench.book.moved == 0
    # The reference is used up: the bank's word on the repeat is still not its word on the first.
    assert isinstance(bench.ask(order), Unclear)


def test_a_statement_shows_both_sides() -> None:
    bench = Bench()
    bench.ask(ORDER)
    inside = attrs.evolve(ORDER, payee=Payee(SISTER, "江枫样例销售有限公司"), amount=Cny(1))
    bench.ask(inside, ClientRef("R2"))
    lines = {}
    for account in (PAYER, SISTER):
        outcome = bench.ask(StatementQuery(account, DAY, DAY))
        assert isinstance(outcome, Accepted)
        assert isinstance(outcome.result, Statement)
        assert outcome.result.cursor == ""
        lines[account] = outcome.result.entries
    first, second = lines[PAYER]
    assert (first.direction, first.amount, first.client_ref) == (
        Direction.DEBIT,
        ORDER.amount,
        REFERENCE,
    )
    assert (first.booked_at, first.balance_after) == (NOW, OPENING - ORDER.amount)
    assert (first.counterparty_account, first.purpose) == (STRANGER, "货款")
    (credit,) = lines[SISTER]
    assert (credit.direction, credit.client_ref) == (Direction.CREDIT, "")
    assert credit.bank_ref == second.bank_ref
    assert bench.book.payments[CMB, "R2"].payee_bank_name == "招商银行"


def test_what_comes_back_shows_in_the_status_and_on_both_sides_lines() -> None:
    bench = Bench(chance={Fault.RETURNED: 1.0})
    inside = attrs.evolve(ORDER, payee=Payee(SISTER, "江枫样例销售有限公司"))
    bench.ask(inside)
    assert bench.status(inside).state is PaymentState.SUCCEEDED
    bench.clock.moment = NOW + dt.timedelta(seconds=RETURN_SECONDS_MAX)
    status = bench.status(inside)
    assert (status.state, status.code) == (PaymentState.RETURNED, "FIN+B")
    lines = {}
    for account in (PAYER, SISTER):
        outcome = bench.ask(StatementQuery(account, DAY, DAY))
        assert isinstance(outcome, Accepted)
        assert isinstance(outcome.result, Statement)
        lines[account] = outcome.result.entries
    forth, back = lines[PAYER]
    assert (forth.direction, back.direction) == (Direction.DEBIT, Direction.CREDIT)
    assert forth.client_ref == back.client_ref == REFERENCE
    assert (back.bank_ref, back.reversal) == (status.bank_ref, False)
    assert back.counterparty_account == SISTER
    assert back.balance_after == OPENING
    came, gone = lines[SISTER]
    # What the payee had is taken off again (冲账); the payer's reference is nothing it learns.
    assert (came.direction, gone.direction) == (Direction.CREDIT, Direction.CREDIT)
    assert (came.reversal, gone.reversal) == (False, True)
    assert (gone.client_ref, gone.counterparty_account) == ("", PAYER)


def test_other_days_have_no_lines() -> None:
    bench = Bench()
    bench.ask(ORDER)
    tomorrow = BusinessDate(DAY + dt.timedelta(days=1))
    outcome = bench.ask(attrs.evolve(STATEMENT, first_day=tomorrow, last_day=tomorrow))
    assert isinstance(outcome, Accepted)
    assert outcome.result == Statement(())


def test_a_payment_booked_after_midnight_is_found_by_the_widened_days() -> None:
    bench = Bench()
    bench.clock.moment = dt.datetime(2026, 1, 5, 16, 0, 1, tzinfo=dt.UTC)
    bench.ask(ORDER)
    assert bench.status().state is PaymentState.SUCCEEDED


@pytest.mark.parametrize("hours", [-25, 0, 25])
def test_a_payment_is_found_though_our_clock_was_a_day_off(hours: int) -> None:
    bench = Bench()
    bench.clock.moment = NOW + dt.timedelta(hours=hours)
    bench.ask(ORDER)
    for since in (0.0, CARD.inquiry.no_record_after_s):
        bench.clock.moment = NOW + dt.timedelta(seconds=since)
        assert bench.status().state is PaymentState.SUCCEEDED


def test_an_unknown_account_is_not_an_answer() -> None:
    bench = Bench(MemoryBook())
    for query in (BALANCE, STATEMENT):
        outcome = bench.ask(query)
        assert isinstance(outcome, Unclear)
        assert outcome.code == "-2"


# Faults.


@pytest.mark.parametrize(
    ("fault", "answers", "moved"),
    [
        (Fault.SILENT_BEFORE_BOOKING, [], 0),
        (Fault.SILENT_AFTER_BOOKING, [], 1),
        (Fault.CLOSE_BEFORE_BOOKING, [Answer(close=True)], 0),
        (Fault.CLOSE_AFTER_BOOKING, [Answer(close=True)], 1),
        (Fault.EXIT_BEFORE_BOOKING, [Answer(exit=True)], 0),
        (Fault.EXIT_AFTER_BOOKING, [Answer(exit=True)], 1),
    ],
)
def test_a_payment_lost(fault: Fault, answers: list[Answer], moved: int) -> None:
    bench = Bench(chance={fault: 1.0})
    assert bench.exchange(codec().prepare(ORDER, CONTEXT)) == answers
    assert bench.book.moved == moved
    # Queries go on as if nothing were wrong, and tell the truth.
    expected = PaymentState.SUCCEEDED if moved else PaymentState.NO_RECORD
    assert bench.status().state is expected


def test_nothing_follows_a_closed_connection() -> None:
    bench = Bench(chance={Fault.CLOSE_BEFORE_BOOKING: 1.0})
    connection = bench.connect()
    payment = codec().seal(codec().prepare(ORDER, CONTEXT), None)
    probe = codec().seal(codec().probe(CONTEXT), None)
    before, last = connection.receive_data(probe + payment + probe + payment)
    assert (before.close, last) == (False, Answer(close=True))
    assert connection.receive_data(probe) == []


def test_unknown_after_booking() -> None:
    bench = Bench(chance={Fault.UNKNOWN_AFTER_BOOKING: 1.0})
    assert bench.ask(ORDER) == Unclear("-1", "操作超时")
    assert bench.status().state is PaymentState.SUCCEEDED
    assert bench.book.moved == 1


def test_landed_waits_for_ever() -> None:
    bench = Bench(chance={Fault.LANDED: 1.0})
    outcome = bench.ask(ORDER)
    assert isinstance(outcome, Accepted)
    assert (outcome.code, outcome.final) == ("APW", False)
    bench.clock.moment += dt.timedelta(days=30)
    assert bench.status().state is PaymentState.PROCESSING
    assert bench.book.moved == 0


@pytest.mark.parametrize("query", [BALANCE, STATEMENT, STATUS])
def test_throttled_queries(query: Operation) -> None:
    outcome = Bench(chance={Fault.THROTTLED: 1.0}).ask(query)
    assert outcome == Rejected("-5", "请求太频繁", Refusal.THROTTLED)


def test_a_throttle_stops_no_payment_and_no_heartbeat() -> None:
    bench = Bench(chance={Fault.THROTTLED: 1.0})
    assert isinstance(bench.ask(ORDER), Accepted)
    (reply,) = bench.replies(codec().probe(CONTEXT))
    assert codec().alive(reply)


@pytest.mark.parametrize("operation", [ORDER, BALANCE, STATEMENT, STATUS])
def test_delayed_answers_are_right(operation: Operation) -> None:
    bench = Bench(chance={Fault.DELAYED: 1.0})
    (answer,) = bench.exchange(codec().prepare(operation, CONTEXT))
    assert answer.delay_s == DELAY_SECONDS
    (prompt,) = Bench().exchange(codec().prepare(operation, CONTEXT))
    assert answer.data == prompt.data


def test_without_faults_nothing_is_late() -> None:
    (answer,) = Bench().exchange(codec().prepare(BALANCE, CONTEXT))
    assert answer.delay_s == 0.0


# Signatures.


def _sign(algorithm: str, data: bytes) -> bytes:
    if algorithm == SignAlgorithm.ECDSA_SHA256:
        return EC_KEY.sign(data, ec.ECDSA(hashes.SHA256()))
    return RSA_KEY.sign(data, padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("algorithm", ["ecdsa_sha256", "rsa_sha256"])
def test_a_signed_payment_is_taken(algorithm: str) -> None:
    key = EC_KEY if algorithm == "ecdsa_sha256" else RSA_KEY
    signing = {"signing": {"by": "slot", "algorithm": algorithm}}
    bench = Bench(certificates=(_certificate(key),), card=signing)
    draft = codec(card=bench.card).prepare(ORDER, CONTEXT)
    assert draft.to_sign is not None
    (reply,) = bench.replies(draft, _sign(algorithm, draft.to_sign))
    assert isinstance(codec().outcome(ORDER, reply), Accepted)
    assert b"FEPSIGNATURE" not in reply.raw
    assert bench.book.moved == 1


@pytest.mark.parametrize("damage", ["missing", "other data", "other key", "no base64", "twice"])
def test_a_payment_without_a_good_signature_leaves_no_trace(damage: str) -> None:
    bench = Bench(certificates=(_certificate(EC_KEY),))
    xml = SAMPLES["payment_request"].data
    bank = codec(card={"signing": {"by": "slot"}})
    draft = bank.prepare(ORDER, CONTEXT)
    good = bank.seal(draft, _sign("ecdsa_sha256", xml))[8:]
    sent = {
        "missing": xml,
        "other data": good.replace(b"1000.50", b"1000.51"),
        "other key": bank.seal(draft, _sign("rsa_sha256", xml))[8:],
        "no base64": bank.seal(draft, b"")[8:].replace(b"URE></FEP", b"URE>A</FEP"),
        "twice": good.replace(
            b"</INFO>", good[good.index(b"<FEPSIG") : good.index(b"</INFO>") + 7]
        ),
    }[damage]
    (answer,) = bench.connect().receive_data(pack(sent))
    (reply,) = codec().framer().receive_data(answer.data)
    assert codec().outcome(ORDER, reply) == Rejected("SIG0001", "签名无效", Refusal.PERMISSION)
    assert bench.book.payments == {}


def test_queries_need_no_signature() -> None:
    assert isinstance(Bench(certificates=(_certificate(EC_KEY),)).ask(BALANCE), Accepted)


# Requests that no adapter of ours would send.


def _raw(bench: Bench, function: str, *blocks: Block) -> Message:
    info = {"FUNNAM": function, "DATTYP": "2", "LGNNAM": "FEP01", "FEPCORRID": "77", "MYFIELD": "a"}
    (answer,) = bench.connect().receive_data(pack(encode(Message(info, blocks))))
    message = decode(answer.data[8:])
    assert message.function == function
    assert message.info["FEPCORRID"] == "77"
    assert message.info["MYFIELD"] == "a"
    return message


PAY = dict(decode(SAMPLES["payment_request"].data).rows("DCOPDPAYX")[0])
MODE = Block("SDKPAYRQX", {"BUSMOD": "00001", "BUSCOD": "N02031"})
ASK = {"ACCNBR": PAYER, "YURREF": REFERENCE, "BGNDAT": "20260101", "ENDDAT": "20260105"}


@pytest.mark.parametrize(
    "change",
    [
        {"YURREF": ""},
        {"YURREF": "R" * 31},
        {"TRSAMT": "-1.00"},
        {"TRSAMT": "0"},
        {"TRSAMT": "much"},
        {"CCYNBR": "32"},
        {"BNKFLG": ""},
        {"CRTBNK": ""},
        {"CRTADR": ""},
        {"CRTNAM": ""},
        {"NUSAGE": ""},
        {"DBTACC": "?"},
        {"CRTACC": ""},
    ],
    ids=str,
)
def test_a_payment_that_is_not_well_made_is_refused_whole(change: dict[str, str]) -> None:
    bench = Bench()
    message = _raw(bench, "DCPAYMNT", MODE, Block("DCOPDPAYX", PAY | change))
    assert message.info["RETCOD"] == "-3"
    assert message.rows("NTQPAYRQZ") == []
    assert bench.book.payments == {}
    assert _raw(bench, "DCPAYMNT", MODE, Block("DCOPDPAYX", PAY)).info["RETCOD"] == "0"


@pytest.mark.parametrize(
    ("function", "blocks"),
    [
        ("DCPAYMNT", [MODE]),
        ("DCPAYMNT", [MODE, Block("DCOPDPAYX", PAY), Block("DCOPDPAYX", PAY | {"TRSAMT": "0"})]),
        ("DCPAYMNT", [Block("DCOPDPAYX", PAY)]),
        ("GetAccInfo", []),
        ("GetAccInfo", [Block("SDKACINFX", {"ACCNBR": "?"})]),
        ("ListMode", []),
        ("NTQRYSTY", [Block("NTQRYSTYX1", ASK | {"BGNDAT": "20251229"})]),
        ("NTQRYSTY", [Block("NTQRYSTYX1", ASK | {"BGNDAT": "20250901", "ENDDAT": "20250902"})]),
        ("NTQRYSTY", [Block("NTQRYSTYX1", ASK | {"YURREF": ""})]),
        ("NTQRYSTY", [Block("NTQRYSTYX1", ASK | {"BGNDAT": "20260106"})]),
        ("GetTransInfo", [Block("SDKTSINFX", ASK | {"BGNDAT": "20250901"})]),
        ("GetTransInfo", [Block("SDKTSINFX", ASK | {"ENDDAT": "soon"})]),
    ],
)
def test_a_request_that_is_not_well_made_is_refused(function: str, blocks: list[Block]) -> None:
    assert _raw(Bench(), function, *blocks).info["RETCOD"] == "-3"


def test_one_missing_account_fails_all_balances() -> None:
    known, unknown = (Block("SDKACINFX", {"ACCNBR": one}) for one in (PAYER, "1"))
    assert len(_raw(Bench(), "GetAccInfo", known, known).rows("NTQACINFZ")) == 2
    message = _raw(Bench(), "GetAccInfo", known, unknown)
    assert (message.info["RETCOD"], message.blocks) == ("-2", ())


def test_an_unknown_function_is_refused() -> None:
    assert _raw(Bench(), "GetMoney").info["RETCOD"] == "-9"


def test_xml_that_can_not_be_read_is_answered_and_the_stream_goes_on() -> None:
    probe = codec().seal(codec().probe(CONTEXT), None)
    bad, good = Bench().connect().receive_data(pack(b"<CMBSDKPGK>") + probe)
    assert decode(bad.data[8:]).info["RETCOD"] == "-3"
    assert decode(good.data[8:]).info["RETCOD"] == "0"
    assert not bad.close


def test_bytes_that_are_no_frame_close_the_connection_after_what_was_complete() -> None:
    probe = codec().seal(codec().probe(CONTEXT), None)
    connection = Bench().connect()
    answer, end = connection.receive_data(probe + b"garbage!")
    assert decode(answer.data[8:]).info["RETCOD"] == "0"
    assert end == Answer(close=True)
    assert connection.receive_data(probe) == []


def test_only_plain_fields_are_echoed() -> None:
    odd = b'<INFO><FUNNAM>ListMode</FUNNAM><a:b xmlns:a="urn:x">1</a:b><OKAY>2</OKAY></INFO>'
    (answer,) = Bench().connect().receive_data(pack(b"<CMBSDKPGK>" + odd + b"</CMBSDKPGK>"))
    info = decode(answer.data[8:]).info
    assert info["OKAY"] == "2"
    assert not any("b" in name for name in info)


REQUESTS = [pack(SAMPLES[name].data) for name in SAMPLES if "request" in name]


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.binary(min_size=1, max_size=80).map(pack),
            st.sampled_from(REQUESTS),
        ),
        max_size=5,
    )
)
def test_garbage_never_makes_the_host_raise(pieces: list[bytes]) -> None:
    bench = Bench()
    connection, ended = bench.connect(), False
    for piece in pieces:
        answers = connection.receive_data(piece)
        assert not (ended and answers)
        ended = ended or any(answer.close for answer in answers)
    assert bench.book.moved <= 1


@given(st.sampled_from(REQUESTS), st.data())
def test_damaged_requests_never_make_the_host_raise(request: bytes, data: st.DataObject) -> None:
    xml = bytearray(request[8:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(xml) - 1))
        xml[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    bench = Bench()
    before = bench.book.total()
    for answer in bench.connect().receive_data(pack(bytes(xml) or b" ")):
        # Whatever was asked, the answer is one message that can be read.
        decode(answer.data[8:])
    assert bench.book.total() == before


@given(st.lists(st.integers(0, 5000), max_size=8))
def test_any_split_of_requests_gives_the_same_answers(cuts: list[int]) -> None:
    data = b"".join(REQUESTS)
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    connection = Bench().connect()
    answers: list[Answer] = []
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007 - as in test_codec
        answers += connection.receive_data(data[start:end])
    assert answers == Bench().connect().receive_data(data)
    assert len(answers) == len(REQUESTS)


@given(
    st.lists(st.sampled_from(list(Fault)), unique=True),
    st.integers(0, 2**16),
    st.integers(1, 4),
)
def test_no_fault_moves_money_twice(faults: list[Fault], seed: int, times: int) -> None:
    book = _book()
    before = book.total()
    for attempt in range(times):
        profile = HostProfile(
            CMB,
            book,
            StepClock(),
            Faults(dict.fromkeys(faults, 0.5), random.Random(seed + attempt)),
        )
        HOST.open(profile).receive_data(codec().seal(codec().prepare(ORDER, CONTEXT), None))
    assert book.moved <= 1
    assert book.total() == before


def test_balances_of_a_sister_account() -> None:
    outcome = Bench().ask(BalanceQuery(SISTER))
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, Balance)
    assert outcome.result.available == Cny(0)
