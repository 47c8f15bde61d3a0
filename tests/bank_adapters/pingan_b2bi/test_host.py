from __future__ import annotations

import datetime as dt
import itertools

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.frames import DEFAULTS, FIELDS, encode
from bank_adapters.pingan_b2bi.host import LANDS_ABOVE
from fep.adapters.api import Accepted, Refusal, Rejected, Unclear
from fep.adapters.host import (
    DELAY_SECONDS,
    HIDDEN_SECONDS_MAX,
    RETURN_SECONDS_MAX,
    Answer,
    BookAccount,
    Fault,
    Faults,
)
from fep.domain.clock import BusinessDate
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    BatchOrder,
    BatchQuery,
    Direction,
    Operation,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
)
from tests.bank_adapters.pingan_b2bi.samples import (
    BANK,
    INSIDE,
    LINES,
    NOW,
    ORDER,
    OTHER_BANK,
    PACKETS,
    PAYEE,
    PAYEE_NAME,
    PAYER,
    PAYER_NAME,
    QUERY,
    REF,
    SISTER,
    TODAY,
    Bank,
    codec,
    context,
    reply_to,
    result,
)

START = Cny.parse("1250000.37")


def state(bank: Bank, reference: ClientRef = REF) -> PaymentState:
    found = bank.ask(attrs.evolve(QUERY, client_ref=reference))
    assert isinstance(found, Accepted), found
    assert isinstance(found.result, PaymentStatus)
    return found.result.state


def available(bank: Bank, account: AccountNumber = PAYER) -> Cny:
    found = bank.ask(BalanceQuery(account))
    assert isinstance(found, Accepted), found
    assert isinstance(found.result, Balance)
    return found.result.available


def walk(bank: Bank, query: StatementQuery = LINES) -> list[StatementEntry]:
    """All lines of all pages."""
    lines: list[StatementEntry] = []
    while True:
        found = bank.ask(query)
        assert isinstance(found, Accepted), found
        assert isinstance(found.result, Statement)
        lines += found.result.entries
        if not found.result.cursor:
            return lines
        query = attrs.evolve(query, cursor=found.result.cursor)


# --- the right answers


def test_the_balance_answer_is_the_documents_byte_for_byte() -> None:
    (found,) = Bank().connection().receive_data(PACKETS["4001 request"])
    assert found == Answer(PACKETS["4001 answer"])


def test_a_duplicate_is_answered_as_in_the_document() -> None:
    bank = Bank()
    bank.ask(ORDER)
    cells = {"corp_code": "99990000000000000001", "trade_code": "4004", "date": "20260105"}
    cells |= {"time": "090800", "seq": "20260105090800000009"}
    request = encode(cells, PACKETS["4004 request"][222:])
    assert bank.connection().receive_data(request) == [Answer(PACKETS["4004 error MA4045 (bank)"])]
    assert bank.book.moved == 1


def test_the_probe_is_answered() -> None:
    bank = Bank()
    probe = bank.codec.seal(bank.codec.probe(context()), None)
    (found,) = bank.connection().receive_data(probe)
    assert bank.codec.alive(reply_to(found.data))


def test_money_paid_inside_the_bank_is_done_at_once() -> None:
    bank = Bank()
    found = bank.ask(INSIDE)
    assert isinstance(found, Accepted)
    assert found.final
    assert isinstance(found.result, PaymentReceipt)
    assert found.result.client_ref == REF
    assert (found.result.amount, found.result.fee) == (ORDER.amount, Cny(0))
    assert state(bank) is PaymentState.SUCCEEDED
    assert available(bank) == START - ORDER.amount
    assert available(bank, SISTER) == ORDER.amount


@pytest.mark.req("FEP-02")
def test_money_paid_to_another_bank_is_accepted_then_polled_and_arrives() -> None:
    bank = Bank()
    found = bank.ask(ORDER)
    assert isinstance(found, Accepted)
    assert not found.final
    assert state(bank) is PaymentState.SUCCEEDED
    payee = bank.book.account(OTHER_BANK, PAYEE)
    assert payee is not None
    assert payee.balance == ORDER.amount
    assert bank.book.total() == START


def test_a_resend_of_the_same_reference_pays_once() -> None:
    bank = Bank()
    bank.ask(ORDER)
    assert bank.ask(ORDER) == Unclear("MA4045", "重复的第三方流水号或凭证号")
    assert bank.book.moved == 1


def test_the_statement_shows_the_payment_under_the_receipts_reference() -> None:
    bank = Bank()
    receipt = bank.ask(ORDER)
    (line,) = walk(bank)
    assert isinstance(receipt, Accepted)
    assert isinstance(receipt.result, PaymentReceipt)
    assert line == StatementEntry(
        bank_ref=receipt.result.bank_ref,
        booked_at=NOW.astimezone(dt.UTC),
        direction=Direction.DEBIT,
        amount=ORDER.amount,
        counterparty_account=PAYEE,
        counterparty_name=PAYEE_NAME,
        purpose="货款",
    )


def test_a_payment_and_a_batch_that_are_not_found_at_first() -> None:
    bank = Bank()
    bank.profile = attrs.evolve(bank.profile, faults=Faults({"no_record_at_first": 1.0}))
    bank.ask(INSIDE)
    batch = BatchOrder((ORDER, attrs.evolve(ORDER, amount=Cny(1))))
    reference = ClientRef("F" + "1" * 19)
    asked = BatchQuery(reference, batch, TODAY)
    bank.connection().receive_data(
        bank.codec.seal(bank.codec.prepare_batch(batch, context(reference=reference)), None)
    )

    def rows() -> object:
        sealed = bank.codec.seal(bank.codec.prepare_batch_status(asked, context()), None)
        (found,) = bank.connection().receive_data(sealed)
        return bank.codec.batch_status(asked, reply_to(found.data)).code

    assert (state(bank), rows()) == (PaymentState.NO_RECORD, "MA0103")
    bank.clock.moment += dt.timedelta(seconds=HIDDEN_SECONDS_MAX)
    assert (state(bank), rows()) == (PaymentState.SUCCEEDED, "000000")


def test_what_comes_back_shows_in_the_status_and_on_both_sides_lines() -> None:
    bank = Bank(faults=[Fault.RETURNED])
    bank.ask(INSIDE)
    found = bank.ask(attrs.evolve(QUERY, order=INSIDE))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    assert found.result.state is PaymentState.SUCCEEDED
    bank.clock.moment = NOW + dt.timedelta(seconds=RETURN_SECONDS_MAX)
    found = bank.ask(attrs.evolve(QUERY, order=INSIDE))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    assert (found.result.state, found.result.code) == (PaymentState.RETURNED, "20")
    assert "RJ01" in found.result.message
    assert (available(bank), available(bank, SISTER)) == (START, Cny(0))
    for days in (0, 1):
        # The other trade tells the same of a day that is over.
        bank.clock.moment += dt.timedelta(days=days)
        forth, back = walk(bank)
        assert (forth.direction, back.direction) == (Direction.DEBIT, Direction.CREDIT)
        assert forth.bank_ref == back.bank_ref == found.result.bank_ref
        assert forth.counterparty_account == back.counterparty_account == SISTER
        assert not back.reversal
        came, gone = walk(bank, attrs.evolve(LINES, account=SISTER))
        # What the payee had is taken off again: a credit below zero (冲账), so the money goes.
        assert (came.direction, gone.direction) == (Direction.CREDIT, Direction.DEBIT)
        assert (came.reversal, gone.reversal) == (False, True)
        assert came.amount == gone.amount == INSIDE.amount
        assert gone.counterparty_account == PAYER


def test_an_account_without_lines_has_an_empty_statement() -> None:
    assert Bank().ask(LINES) == Accepted(Statement(()), "ES0200", "无明细记录")


@pytest.mark.parametrize("trade", ["4008", "4013"])
@pytest.mark.parametrize("count", [1, 10, 11, 30, 31, 65])
def test_all_pages_together_have_every_line_once(trade: str, count: int) -> None:
    options = PinganOptions(today_trade="4008" if trade == "4008" else "4013")
    bank = Bank(codec(options=options))
    order = attrs.evolve(INSIDE, amount=Cny(1))
    for number in range(count):
        bank.ask(order, ClientRef(f"F{number:04d}"))
    assert [line.direction for line in walk(bank)] == [Direction.DEBIT] * count
    lines = walk(bank, StatementQuery(SISTER, TODAY, TODAY))
    assert len({line.bank_ref for line in lines}) == count
    assert {line.counterparty_account for line in lines} == {PAYER}


def test_a_past_days_statement_is_read_the_next_day() -> None:
    bank = Bank()
    bank.ask(ORDER)
    bank.clock.moment += dt.timedelta(days=1)
    assert len(walk(bank)) == 1
    tomorrow = BusinessDate(TODAY + dt.timedelta(days=1))
    mixed = attrs.evolve(LINES, last_day=tomorrow)
    pieces = bank.codec.split(mixed, tomorrow)
    assert [len(walk(bank, piece)) for piece in pieces] == [1, 0]


def test_the_answer_is_split_at_every_byte_and_read_the_same() -> None:
    bank = Bank()
    (found,) = bank.connection().receive_data(bank.packet(ORDER))
    for cut in range(len(found.data) + 1):
        framer = bank.codec.framer()
        replies = framer.receive_data(found.data[:cut]) + framer.receive_data(found.data[cut:])
        assert [reply.raw for reply in replies] == [found.data]


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_requests_in_any_split_are_answered_in_order(cuts: list[int]) -> None:
    bank = Bank()
    data = bank.packet(ORDER) + bank.packet(BalanceQuery(PAYER)) + bank.packet(QUERY)
    places = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    connection = bank.connection()
    answers = [
        found
        for start, end in itertools.pairwise(places)
        for found in connection.receive_data(data[start:end])
    ]
    replies = bank.codec.framer().receive_data(b"".join(found.data for found in answers))
    assert [reply.trade for reply in replies] == ["4004", "4001", "4005"]
    assert [reply.code for reply in replies] == ["000000"] * 3
    assert bank.book.moved == 1


# --- refusals


def refused(found: object) -> str:
    assert isinstance(found, Rejected), found
    return found.code


def test_an_unknown_account_is_refused() -> None:
    bank = Bank()
    del bank.book.accounts[BANK, PAYER]
    assert refused(bank.ask(BalanceQuery(PAYER))) == "2778"
    assert refused(bank.ask(LINES)) == "2778"
    assert refused(bank.ask(ORDER)) == "2778"
    assert state(bank) is PaymentState.NO_RECORD


def test_an_unknown_account_of_this_bank_is_no_payee() -> None:
    bank = Bank()
    order = attrs.evolve(
        ORDER,
        payee=attrs.evolve(ORDER.payee, account=AccountNumber("1" * 14), bank_code="307584007998"),
    )
    assert refused(bank.ask(order)) == "2778"


@pytest.mark.parametrize("order", [ORDER, INSIDE])
def test_too_little_money_is_refused_and_stays_so(order: Operation) -> None:
    bank = Bank()
    bank.book.accounts[BANK, PAYER] = BookAccount(BANK, PAYER, PAYER_NAME, Cny(100049))
    assert refused(bank.ask(order)) == "YQ9993"
    assert state(bank) is PaymentState.REJECTED
    assert bank.book.moved == 0


def test_a_payee_the_other_bank_does_not_know_is_accepted_and_fails_later() -> None:
    bank = Bank()
    del bank.book.accounts[OTHER_BANK, PAYEE]
    found = bank.ask(ORDER)
    assert isinstance(found, Accepted)
    assert not found.final
    assert state(bank) is PaymentState.REJECTED


def test_a_payment_nobody_made_has_no_record() -> None:
    assert state(Bank(), ClientRef("NEVER")) is PaymentState.NO_RECORD


@pytest.mark.parametrize(
    "order",
    [
        attrs.evolve(ORDER, payee=attrs.evolve(ORDER.payee, bank_code="")),
        attrs.evolve(ORDER, amount=LANDS_ABOVE + Cny(1)),
        attrs.evolve(INSIDE, amount=LANDS_ABOVE + Cny(1)),
    ],
    ids=["without code", "much", "much inside the bank"],
)
def test_what_lands_is_in_progress_for_ever(order: Operation) -> None:
    bank = Bank()
    bank.book.accounts[BANK, PAYER] = BookAccount(BANK, PAYER, PAYER_NAME, Cny(10**12))
    found = bank.ask(order)
    assert isinstance(found, Accepted)
    assert not found.final
    assert isinstance(order, type(ORDER))
    bank.clock.moment += dt.timedelta(days=3)
    answer = bank.ask(StatusQuery(REF, order, TODAY))
    assert isinstance(answer, Accepted)
    assert isinstance(answer.result, PaymentStatus)
    assert answer.result.state is PaymentState.PROCESSING
    assert bank.book.moved == 0


GOOD = {
    "ThirdVoucher": REF,
    "CcyCode": "RMB",
    "OutAcctNo": PAYER,
    "OutAcctName": PAYER_NAME,
    "InAcctNo": SISTER,
    "InAcctName": "江枫样例物流有限公司",
    "InAcctBankName": "平安银行",
    "TranAmount": "1",
    "UnionFlag": "1",
}


@pytest.mark.parametrize(
    ("trade", "xml", "code"),
    [
        ("4004", "<Result>", "YQ9977"),
        ("4004", result(**GOOD | {"ThirdVoucher": ""}), "YQ9993"),
        ("4004", result(**GOOD | {"ThirdVoucher": "F" * 21}), "YQ9993"),
        ("4004", result(**GOOD | {"TranAmount": "0"}), "YQ9993"),
        ("4004", result(**GOOD | {"TranAmount": "-1"}), "YQ9993"),
        ("4004", result(**GOOD | {"TranAmount": "1.005"}), "YQ9993"),
        ("4004", result(**GOOD | {"CcyCode": "USD"}), "YQ9993"),
        ("4004", result(**GOOD | {"UnionFlag": ""}), "YQ9993"),
        ("4004", result(**GOOD | {"InAcctName": ""}), "YQ9993"),
        ("4004", result("<UnionFlag>0</UnionFlag>", **GOOD), "YQ9993"),
        ("4005", result(), "YQ9993"),
        ("4013", result(AcctNo=PAYER, BeginDate="x", EndDate="x"), "YQ9993"),
        ("4013", result(AcctNo=PAYER, BeginDate="20260104", EndDate="20260105"), "YQ9993"),
        ("4008", result(AcctNo=PAYER, PageNo="x"), "YQ9993"),
        ("4099", result(), "YQ0000"),
    ],
)
def test_a_bad_request_is_refused_header_only_and_moves_nothing(
    trade: str, xml: str, code: str
) -> None:
    bank = Bank()
    request = encode({"trade_code": trade, "seq": "5"}, xml.encode("gbk"))
    (found,) = bank.connection().receive_data(request)
    reply = reply_to(found.data)
    assert (reply.code, reply.correlation, len(found.data)) == (code, "5", 222)
    assert bank.book.payments == {}


def test_mixed_days_are_refused_even_with_a_right_page() -> None:
    bank = Bank()
    page = {"AcctNo": PAYER, "PageNo": "1", "PageSize": "30"}
    for first, code in (("20260104", "YQ9993"), ("20260105", "ES0200")):
        xml = result(**page, BeginDate=first, EndDate="20260105")
        request = encode({"trade_code": "4013"}, xml.encode("gbk"))
        (found,) = bank.connection().receive_data(request)
        assert reply_to(found.data).code == code


def test_the_local_front_ends_errors_keep_serv_type_01_and_the_banks_do_not() -> None:
    connection = Bank().connection()
    (local,) = connection.receive_data(encode({"trade_code": "9999"}))
    (bank,) = connection.receive_data(encode({"trade_code": "4005"}, result().encode()))
    assert (local.data[51:53], local.data[211:221]) == (b"01", b"0000000000")
    assert (bank.data[51:53], bank.data[211:221]) == (b"02", b"0         ")


def test_names_beyond_gbk_in_the_book_are_answered() -> None:
    bank = Bank()
    bank.book.accounts[BANK, PAYER] = BookAccount(BANK, PAYER, "䶮&\x02样例", Cny(1))
    (found,) = bank.connection().receive_data(bank.packet(BalanceQuery(PAYER)))
    reply = reply_to(found.data)
    assert reply.content.fields.get("AccountName") == "䶮&\ufffd样例"


# --- faults


@pytest.mark.parametrize(
    ("fault", "wanted", "booked"),
    [
        (Fault.SILENT_BEFORE_BOOKING, [], 0),
        (Fault.CLOSE_BEFORE_BOOKING, [Answer(close=True)], 0),
        (Fault.EXIT_BEFORE_BOOKING, [Answer(exit=True)], 0),
        (Fault.SILENT_AFTER_BOOKING, [], 1),
        (Fault.CLOSE_AFTER_BOOKING, [Answer(close=True)], 1),
        (Fault.EXIT_AFTER_BOOKING, [Answer(exit=True)], 1),
    ],
)
def test_a_lost_answer_leaves_the_truth_in_the_book(
    fault: Fault, wanted: list[Answer], booked: int
) -> None:
    bank = Bank(faults=[fault])
    connection = bank.connection()
    assert connection.receive_data(bank.packet(ORDER)) == wanted
    assert bank.book.moved == booked
    assert state(bank) is (PaymentState.SUCCEEDED if booked else PaymentState.NO_RECORD)
    follows = connection.receive_data(bank.packet(BalanceQuery(PAYER)))
    assert bool(follows) is (wanted == [])


def test_unknown_after_booking_is_unclear_and_the_query_tells() -> None:
    bank = Bank(faults=[Fault.UNKNOWN_AFTER_BOOKING])
    assert bank.ask(ORDER) == Unclear("GW3002", "通讯故障")
    assert bank.book.moved == 1
    assert state(bank) is PaymentState.SUCCEEDED


@pytest.mark.parametrize("order", [ORDER, INSIDE])
def test_the_landed_fault_lands_any_payment(order: Operation) -> None:
    bank = Bank(faults=[Fault.LANDED])
    found = bank.ask(order)
    assert isinstance(found, Accepted)
    assert not found.final
    assert state(bank) is PaymentState.PROCESSING


def test_throttling_hits_queries_only() -> None:
    bank = Bank(faults=[Fault.THROTTLED])
    for query in (BalanceQuery(PAYER), QUERY, LINES):
        found = bank.ask(query)
        assert isinstance(found, Rejected)
        assert (found.code, found.why) == ("YQ9971", Refusal.THROTTLED)
    assert isinstance(bank.ask(ORDER), Accepted)
    probe = bank.codec.seal(bank.codec.probe(context()), None)
    assert bank.codec.alive(reply_to(bank.connection().receive_data(probe)[0].data))


def test_a_delayed_answer_is_the_right_one_late() -> None:
    bank = Bank(faults=[Fault.DELAYED])
    (found,) = bank.connection().receive_data(PACKETS["4001 request"])
    assert found == Answer(PACKETS["4001 answer"], delay_s=DELAY_SECONDS)


# --- signatures

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enterprise E0001")])
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


CERTIFICATES = (certificate(OTHER_KEY), certificate(KEY))


def signed(bank: Bank, key: rsa.RSAPrivateKey = KEY) -> bytes:
    draft = bank.codec.prepare(ORDER, context())
    assert draft.to_sign is not None
    signature = key.sign(draft.to_sign, padding.PKCS1v15(), hashes.SHA256())
    return bank.codec.seal(draft, signature)


def signing_bank(certificates: tuple[x509.Certificate, ...] = CERTIFICATES) -> Bank:
    return Bank(codec({"signing": {"by": "slot"}}), certificates=certificates)


@pytest.mark.req("FEP-09")
def test_a_payment_signed_by_a_known_key_is_booked() -> None:
    bank = signing_bank()
    (found,) = bank.connection().receive_data(signed(bank))
    assert isinstance(bank.codec.outcome(ORDER, reply_to(found.data)), Accepted)
    assert bank.book.moved == 1


def _tampered(data: bytes) -> bytes:
    return data.replace(b"<TranAmount>1000.50<", b"<TranAmount>9000.50<")


@pytest.mark.req("FEP-09")
@pytest.mark.parametrize("how", ["none", "other key", "amount", "algorithm", "flag"])
def test_a_payment_without_a_good_signature_is_refused_and_not_recorded(how: str) -> None:
    bank = signing_bank((certificate(KEY),))
    good = signed(bank)
    request = {
        "none": PACKETS["4004 request"],
        "other key": signed(bank, OTHER_KEY),
        "amount": _tampered(good),
        "algorithm": good.replace(b"RSA-SHA256  ", b"RSA-SHA1    "),
        "flag": good[:197] + b"0" + good[198:],
    }[how]
    (found,) = bank.connection().receive_data(request)
    outcome = bank.codec.outcome(ORDER, reply_to(found.data))
    assert isinstance(outcome, Rejected)
    assert (outcome.code, outcome.why) == ("YQ9985", Refusal.PERMISSION)
    assert bank.book.payments == {}


def test_queries_need_no_signature() -> None:
    bank = signing_bank()
    assert available(bank) == START


# --- garbage


@given(st.lists(st.binary(max_size=500), max_size=6), st.booleans())
def test_any_bytes_are_answered_or_closed(
    pieces: list[bytes],
    magic: bool,
) -> None:
    connection = Bank().connection()
    closed = False
    for piece in [b"A001", *pieces] if magic else pieces:
        answers = connection.receive_data(piece)
        assert not (closed and answers)
        closed = closed or any(found.close for found in answers)


CELL = st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from([b"0", b"1", b"YQ9990"]))
TAGS = st.sampled_from([*GOOD, "AcctNo", "PageNo", "PageSize", "BeginDate", "EndDate", "Account"])
LEAF = st.tuples(TAGS, st.text(st.characters(codec="gb18030", exclude_characters="<&"))).map(
    lambda leaf: f"<{leaf[0]}>{leaf[1]}</{leaf[0]}>"
)


@given(
    st.sampled_from(["S001", "4001", "4004", "4005", "4008", "4013", "XXXX", ""]),
    st.dictionaries(st.sampled_from(["seq", "date", "corp_code", "ret_msg", "charset"]), CELL),
    st.lists(LEAF, max_size=6),
    st.sets(st.sampled_from(sorted(GOOD)), max_size=3),
)
def test_any_request_is_answered_with_its_sequence_and_money_is_conserved(
    trade: str, cells: dict[str, bytes], inner: list[str], missing: set[str]
) -> None:
    bank = Bank()
    sizes = dict(FIELDS)
    given = {name: cell[: sizes[name]] for name, cell in cells.items()}
    members = {name: text for name, text in GOOD.items() if name not in missing}
    xml = result("".join(inner), **members).encode("gb18030")
    request = encode({**DEFAULTS, "trade_code": trade, **given}, xml)
    (found,) = bank.connection().receive_data(request)
    assert found.data[67:87] == request[67:87]
    assert len(bank.codec.framer().receive_data(found.data)) == 1
    assert bank.book.total() == START


def test_garbage_behind_a_request_closes_after_its_answer() -> None:
    bank = Bank()
    connection = bank.connection()
    answers = connection.receive_data(PACKETS["4001 request"] + b"GET / HTTP/1.1\r\n")
    assert answers == [Answer(PACKETS["4001 answer"]), Answer(close=True)]
    assert connection.receive_data(PACKETS["4001 request"]) == []
