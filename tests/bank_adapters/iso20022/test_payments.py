"""What is written is valid, and what several reports say of a payment is judged together."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.iso20022.config import CARD, Iso20022Options
from bank_adapters.iso20022.host import _payment
from bank_adapters.iso20022.requests import is_iban
from fep.adapters.api import Accepted, Context, Rejected, Unclear
from fep.domain.errors import BodyError, ConfigError, LocalProtocolError
from fep.domain.ids import AccountNumber
from fep.domain.money import FEN_MAX, Cny
from fep.domain.order import Payee, PaymentOrder, PaymentState, PaymentStatus, Urgency
from tests.bank_adapters.iso20022.samples import (
    FOLDER,
    NOW,
    ORDER,
    OURS,
    PAYEE,
    REF,
    RETURNED,
    STATUS,
    camt,
    codec,
    document,
    entry,
    faults_of_ours,
    payment,
    reply,
    status,
)

S = PaymentState


def state(*documents: str, order: PaymentOrder = ORDER) -> PaymentStatus:
    """Return what these documents say of the payment."""
    found = codec().outcome(attrs.evolve(STATUS, order=order), reply(*documents))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, PaymentStatus)
    return found.result


# -- writing ---------------------------------------------------------------------------------------


def test_a_payment_is_byte_for_byte_what_it_was() -> None:
    found = payment()
    assert hashlib.sha256(found).hexdigest() == (
        "3e45b6bb7c2d50008c469b82a8523f4c0e0928dad3e5731b14055500402a6b4b"
    )
    assert faults_of_ours(found) == []


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "),
    min_size=1,
    max_size=30,
).filter(lambda text: bool(text.strip()) and text.isprintable())


@given(
    name=TEXT,
    purpose=TEXT | st.just(""),
    bank_name=TEXT | st.just(""),
    code=st.sampled_from(["", "104100000004"]),
    fen=st.integers(1, FEN_MAX),
    account=st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z-]{0,33}\Z"),
    urgency=st.sampled_from(list(Urgency)),
    customer=st.sampled_from(["", "C<1>&2"]),
    bic=st.sampled_from(["", "BKCHCNBJ", "BKCHCNBJ110"]),
)
def test_every_payment_is_valid_and_read_back(
    name: str,
    purpose: str,
    bank_name: str,
    code: str,
    fen: int,
    account: str,
    urgency: Urgency,
    customer: str,
    bic: str,
) -> None:
    payee = Payee(AccountNumber(account), name, code, bank_name)
    order = PaymentOrder(OURS, payee, Cny(fen), purpose=purpose, urgency=urgency)
    found = payment(order, customer_id=customer, bic=bic)
    assert faults_of_ours(found) == []
    read = _payment(found)
    assert (read.client_ref, read.payer, read.payee) == (REF, OURS, account)
    assert (read.amount, read.payee_name.strip()) == (Cny(fen), name.strip())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (attrs.evolve(ORDER, payer=PAYEE, payee=Payee(OURS, "x\x0b")), "payee.name"),
        (attrs.evolve(ORDER, payer=AccountNumber("1")), "payer.account"),
        (attrs.evolve(ORDER, payee=Payee(AccountNumber("9" * 35), "x")), "payee.account"),
        (attrs.evolve(ORDER, purpose="\ud800"), "purpose"),
        (attrs.evolve(ORDER, payee=Payee(PAYEE, "x" * 141)), "payee.name"),
    ],
)
def test_what_can_not_be_written_is_refused_before(order: PaymentOrder, message: str) -> None:
    with pytest.raises(BodyError, match=message):
        payment(order)


def test_a_payment_needs_its_reference_and_its_signature() -> None:
    with pytest.raises(LocalProtocolError):
        codec().prepare(ORDER, Context(NOW, "1"))
    one = codec({"signing": {"by": "slot"}})
    draft = one.prepare(ORDER, Context(NOW, "1", REF))
    assert draft.to_sign == payment()
    assert b"X-Signature: eA==\r\n" in one.seal(draft, b"x")
    with pytest.raises(LocalProtocolError):
        one.seal(draft, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"transport": {"protocol": "tcp"}},
        {"signing": {"by": "sign_port"}},
        FOLDER | {"signing": {"by": "slot"}},
    ],
)
def test_what_does_not_fit_is_told_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        codec(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"initiating_party": ""},
        {"bic": "short"},
        {"status_path": "/a/{nothing}"},
        {"status_path": "/a/{reference!r}"},
        {"status_path": "no-slash"},
        {"submit_path": "/{reference}"},
        {"balance_path": "/{account"},
        {"balance_age_max_s": 0},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Iso20022Options(**({"initiating_party": "x"} | options))


def test_an_iban_is_one_by_its_check_digits() -> None:
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB83WEST12345698765432")
    assert not is_iban("99990000000000000101")
    order = attrs.evolve(ORDER, payee=Payee(AccountNumber("GB82WEST12345698765432"), "x"))
    assert b"<CdtrAcct><Id><IBAN>GB82" in payment(order)


# -- status reports --------------------------------------------------------------------------------

CODES = {
    **dict.fromkeys(CARD.states.final_ok, S.SUCCEEDED),
    **dict.fromkeys(CARD.states.final_bad, S.REJECTED),
    **dict.fromkeys(CARD.states.intermediate, S.PROCESSING),
    **dict.fromkeys(CARD.states.unknown, S.UNKNOWN),
}


def test_the_card_has_the_codes_of_the_standard() -> None:
    assert CODES == {
        "ACSC": S.SUCCEEDED,
        "ACCC": S.SUCCEEDED,
        "RCVD": S.PROCESSING,
        "ACTC": S.PROCESSING,
        "ACCP": S.PROCESSING,
        "ACSP": S.PROCESSING,
        "PDNG": S.PROCESSING,
        "RJCT": S.REJECTED,
        "CANC": S.REJECTED,
        "PART": S.UNKNOWN,
    }


@pytest.mark.parametrize("level", ["group", "batch", "transaction"])
@pytest.mark.parametrize("code", [*CODES, "ACWC", "ACFC", "PATC", "rjct", "acsc", "0"])
def test_each_code_means_what_the_card_says_at_each_level(level: str, code: str) -> None:
    made = {
        "group": status("", group=code),
        "batch": status("", batch=code),
        "transaction": status(code),
    }[level]
    assert state(made).state is CODES.get(code, S.UNKNOWN)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        # The deepest level that speaks goes before those above it.
        (status("RJCT", group="PART", batch="PART"), S.REJECTED),
        (status("ACCP", group="PART", batch="PART"), S.PROCESSING),
        (status("ACSC", group="ACCP"), S.SUCCEEDED),
        # Unless those above say that nothing of it was taken.
        (status("ACSC", group="RJCT"), S.UNKNOWN),
        (status("ACCP", batch="RJCT"), S.UNKNOWN),
        # Of another payment nothing follows.
        (status("ACSC", ref="F0000000000000000000"), S.NO_RECORD),
        (status("ACSC", ref=REF.lower()), S.NO_RECORD),
        # Facts that are told must be ours.
        (status("ACSC", amount="1000.5"), S.SUCCEEDED),
        (status("ACSC", amount="1000.50000"), S.SUCCEEDED),
        (status("ACSC", amount="1000.51"), S.UNKNOWN),
        (status("RJCT", amount="100050"), S.UNKNOWN),
        (status("ACSC", more="<CdtrAcct><Id><IBAN>X</IBAN></Id></CdtrAcct>"), S.UNKNOWN),
        (
            status("ACSC", more=f"<DbtrAcct><Id><Othr><Id>{PAYEE}</Id></Othr></Id></DbtrAcct>"),
            S.UNKNOWN,
        ),
        (status("ACSC", more="<Amt><InstdAmt Ccy='USD'>1000.50</InstdAmt></Amt>"), S.UNKNOWN),
    ],
)
def test_levels_and_facts(made: str, wanted: PaymentState) -> None:
    assert state(made).state is wanted


@pytest.mark.parametrize("reason", sorted(CARD.codes.duplicate))
def test_a_refusal_of_what_is_known_refuses_nothing(reason: str) -> None:
    again = status("", group="RJCT", reason=reason, at="2026-01-05T09:02:00+08:00")
    assert state(again).state is S.UNKNOWN
    assert state(again).code == reason
    assert state(status("RJCT", reason=reason)).state is S.UNKNOWN
    assert state(status("ACCP"), again).state is S.PROCESSING
    assert state(status("ACSC"), again).state is S.SUCCEEDED
    assert state(status("RJCT", reason="AC04"), again).state is S.REJECTED
    paid = codec().outcome(ORDER, reply(again))
    assert isinstance(paid, Unclear)


def why(code: str, rsn: str = "Rsn", kind: str = "Cd") -> str:
    return f"<StsRsnInf><{rsn}><{kind}>{code}</{kind}></{rsn}></StsRsnInf>"


@pytest.mark.parametrize(
    "made",
    [
        status("RJCT", group="RJCT", group_more=why("DUPL")),
        status("", group="RJCT", batch="RJCT", group_more=why("DUPL")),
        status("RJCT", group="RJCT", batch="RJCT", batch_more=why("DUPL")),
        # Another reason below says nothing of the first message.
        status("RJCT", group="RJCT", group_more=why("DUPL"), reason="NARR"),
        status("RJCT", group="RJCT", group_more=why("AM04") + why("DUPL")),
        status("RJCT", group="RJCT", group_more=why("DUPL", kind="Prtry")),
        status("RJCT", group="RJCT", group_more=why("DUPL", "StsRsn"), version="pain.002.001.02"),
        document(
            f"<CstmrPmtStsRpt><OrgnlGrpInfAndSts><OrgnlMsgId>{REF}</OrgnlMsgId>"
            f"<GrpSts>RJCT</GrpSts>{why('DUPL', 'StsRsn')}</OrgnlGrpInfAndSts><TxInfAndSts>"
            f"<OrgnlEndToEndId>{REF}</OrgnlEndToEndId><TxSts>RJCT</TxSts></TxInfAndSts>"
            "</CstmrPmtStsRpt>"
        ),
    ],
)
def test_a_duplicate_at_a_higher_level_refuses_nothing_either(made: str) -> None:
    found = state(made)
    assert (found.state, found.code) == (S.UNKNOWN, "DUPL")
    assert state(status("ACSC"), made).state is S.SUCCEEDED
    assert isinstance(codec().outcome(ORDER, reply(made)), Unclear)


def test_another_reason_at_a_higher_level_leaves_a_rejection_one() -> None:
    made = status("RJCT", group="RJCT", group_more=why("AM04"))
    assert (state(made).state, state(made).code) == (S.REJECTED, "RJCT")


def test_a_rejection_after_an_acceptance_is_one_and_the_other_way_round_is_nothing() -> None:
    accepted = status("ACCP", at="2026-01-05T09:00:00+08:00")
    rejected = status("RJCT", reason="AC04", at="2026-01-05T10:00:00+08:00")
    for made in ((accepted, rejected), (rejected, accepted)):
        assert state(*made).state is S.REJECTED
        assert state(*made).code == "AC04"
    later = status("ACSP", at="2026-01-05T11:00:00+08:00")
    assert state(accepted, rejected, later).code == "CONTRADICTION"
    # Without the bank's own time, what came last was said last.
    bare = status("RJCT", at="")
    assert state(accepted, bare).state is S.REJECTED
    assert state(bare, accepted).state is S.UNKNOWN
    done = status("ACSC", at="2026-01-05T08:00:00+08:00")
    assert state(done, rejected).code == "CONTRADICTION"


# -- lines and returns -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["camt.052", "camt.053", "camt.054"])
def test_a_booked_line_is_the_end(kind: str) -> None:
    found = state(status("ACCP"), camt(kind, entry(outside="<AcctSvcrRef>B1</AcctSvcrRef>")))
    assert (found.state, found.bank_ref) == (S.SUCCEEDED, "B1")
    assert str(found.booked_on) == "2026-01-05"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (entry(state="<Sts>BOOK</Sts>"), S.SUCCEEDED),  # versions before .08
        (entry(state="<Sts><Cd>PDNG</Cd></Sts>"), S.PROCESSING),
        (entry(state="<Sts><Cd>INFO</Cd></Sts>"), S.UNKNOWN),
        (entry(state=""), S.UNKNOWN),
        (entry("1000.51"), S.UNKNOWN),
        (entry(currency="USD"), S.UNKNOWN),
        (entry(ref="NOTPROVIDED"), S.NO_RECORD),
        (entry(ref="F0000000000000000000"), S.NO_RECORD),
        (entry(side="CRDT"), S.UNKNOWN),
        (entry(side="CRDT", inside=RETURNED), S.RETURNED),
        (entry(side="CRDT", inside="<RtrInf/>"), S.RETURNED),
        (entry(side="CRDT", outside="<RvslInd>true</RvslInd>"), S.RETURNED),
        (entry("1000.00", "CRDT", inside=RETURNED), S.UNKNOWN),
        (entry(side="CRDT", inside=RETURNED, state="<Sts>PDNG</Sts>"), S.UNKNOWN),
        (
            entry(
                inside="<RltdPties><CdtrAcct><Id><Othr><Id>6222</Id></Othr></Id></CdtrAcct>"
                "</RltdPties>"
            ),
            S.UNKNOWN,
        ),
    ],
)
def test_what_a_line_says(line: str, wanted: PaymentState) -> None:
    assert state(camt("camt.054", line)).state is wanted


@pytest.mark.parametrize(
    "more",
    [
        {"outside": "<RvslInd>true</RvslInd>"},
        {"inside": RETURNED},
        {"outside": "<BkTxCd><Domn><Fmly><SubFmlyCd>RRTN</SubFmlyCd></Fmly></Domn></BkTxCd>"},
    ],
)
def test_a_debit_that_takes_a_credit_back_is_neither_a_payment_nor_a_return(
    more: dict[str, str],
) -> None:
    again = camt("camt.054", entry(**more))
    assert (state(again).state, state(again).code) == (S.UNKNOWN, "DEBIT_TAKES_BACK")
    back = camt("camt.054", entry(side="CRDT", inside=RETURNED))
    assert state(camt("camt.053", entry()), back, again).state is S.UNKNOWN
    told = codec().outcome(ORDER, reply(status("ACSC"), again, reference=REF))
    assert isinstance(told, Unclear)


def test_a_line_of_another_account_is_none_of_the_payer() -> None:
    assert state(camt("camt.054", entry(), account=PAYEE)).state is S.NO_RECORD


def test_a_returned_payment_is_told_with_its_reason_whatever_was_said_before() -> None:
    back = camt("camt.054", entry(side="CRDT", inside=RETURNED, day="<Dt>2026-01-08</Dt>"))
    found = state(status("ACSC"), camt("camt.053", entry()), back)
    assert (found.state, found.code) == (S.RETURNED, "AC04")
    assert (found.message, str(found.returned_on)) == ("AC04 账户已销户", "2026-01-08")
    paid = codec().outcome(ORDER, reply(status("ACSC"), back, reference=REF))
    assert isinstance(paid, Accepted)
    assert paid.final


@pytest.mark.parametrize("amount", ["1000.50", "900.00", ""])
def test_a_payment_return_message_is_a_return(amount: str) -> None:
    worth = f'<RtrdIntrBkSttlmAmt Ccy="CNY">{amount}</RtrdIntrBkSttlmAmt>' if amount else ""
    made = document(
        "<PmtRtr><GrpHdr><CreDtTm>2026-01-08T09:00:00Z</CreDtTm></GrpHdr><TxInf>"
        f"<OrgnlEndToEndId>{REF}</OrgnlEndToEndId>{worth}<IntrBkSttlmDt>2026-01-08</IntrBkSttlmDt>"
        "<RtrRsnInf><Rsn><Cd>MD07</Cd></Rsn></RtrRsnInf></TxInf></PmtRtr>",
        "pacs.004.001.09",
    )
    found = state(made)
    assert found.state is (S.UNKNOWN if amount == "900.00" else S.RETURNED)
    assert found.code == ("RETURNED_NOT_ALL" if amount == "900.00" else "MD07")


# -- answers to payments ---------------------------------------------------------------------------


def test_an_answer_to_a_payment_is_its_status_report() -> None:
    one = codec()
    assert isinstance(one.outcome(ORDER, reply(status("ACSC"))), Accepted)
    taken = one.outcome(ORDER, reply(status("ACCP")))
    assert isinstance(taken, Accepted)
    assert not taken.final
    refused = one.outcome(ORDER, reply(status("RJCT", reason="AM04")))
    assert refused == Rejected("AM04", "AM04")
    assert one.payment_ref(reply(status("ACSC"))) == REF
    for nothing in (
        reply(),
        reply(status("ACSC"), status("ACSC", ref="F0000000000000000000")),
        reply(status("ACSC"), code="409"),
        reply(status("ACSC"), trade="status"),
        reply(code="WRITTEN", reference=REF),
    ):
        assert isinstance(one.outcome(ORDER, nothing), Unclear), nothing
