"""What is compared when kept bytes are read again; the stores are in ``tests/daemon/test_replay.py``."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_adapters.ccb_wlpt import ADAPTER as CCB
from bank_adapters.ccb_wlpt.config import CcbWlptOptions
from fep.adapters.api import BankCodec, BankProfile, Context, SecretiveCodec
from fep.adapters.card import BehaviourCard
from fep.domain.clock import from_text, to_text
from fep.domain.ids import ClientName, ClientRef, Sequence, TaskId
from fep.domain.order import Kind, PaymentOrder
from fep.tasks import evidence
from fep.tasks.replay import NOTHING_NOTED, SAME_BYTES, Ended, Kept, Reading, Recorded, read_task
from fep.tasks.state import State
from fep.tasks.task import Task
from tests.bank_adapters.boc_b2e import test_boc_b2e as boc
from tests.bank_adapters.ccb_wlpt import test_ccb_wlpt as ccb
from tests.bank_adapters.cib_fox import samples as cib
from tests.bank_adapters.cmb_xml import samples as cmb
from tests.bank_adapters.pingan_b2bi import samples as pingan

pytestmark = pytest.mark.req("FEP-23", "FEP-25")

NOW = dt.datetime(2026, 1, 5, 1, 2, 5, tzinfo=dt.UTC)
SIGNED = {"signing": {"by": "slot", "algorithm": "ecdsa_sha256"}}
PLAIN = {"signing": {"by": "front_end"}}
CODECS: dict[str, tuple[BankCodec, PaymentOrder]] = {
    "pingan, signed by us": (pingan.codec(SIGNED), pingan.ORDER),
    "pingan": (pingan.codec(PLAIN), pingan.ORDER),
    "cmb, signed by us": (cmb.codec(card=SIGNED), cmb.ORDER),
    "cmb": (cmb.codec(card=PLAIN), cmb.ORDER),
}
NEVER_ENDED = Ended("", "", "", None)


def task_of(order: PaymentOrder) -> Task:
    return Task(
        seq=1,
        task_id=TaskId("T1"),
        client=ClientName("erp-1"),
        bank=pingan.BANK,
        kind=Kind.TRANSFER,
        priority=5,
        state=State.UNKNOWN,
        submitted_at=NOW,
        expires_at=NOW,
        body=order,
        client_ref=cmb.REFERENCE,
        sent_at=NOW,
    )


def card_of(codec: BankCodec) -> BehaviourCard:
    profile = getattr(codec, "profile", None) or vars(codec)["_profile"]
    card: BehaviourCard = profile.card
    return card


def sent(codec: BankCodec, order: PaymentOrder, signature: bytes) -> Recorded:
    """Return a request as it is kept, 40 seconds after it was prepared."""
    sequence = Sequence().next(NOW)
    draft = codec.prepare(order, Context(NOW, sequence, cmb.REFERENCE))
    frame = codec.seal(draft, None if draft.to_sign is None else signature)
    at = to_text(NOW + dt.timedelta(seconds=40))
    return Recorded(at, True, sequence, frame, ("send_begun",), "sending")


def read(codec: BankCodec, order: PaymentOrder, one: Recorded) -> Reading:
    [reading] = read_task(
        codec, card_of(codec), task_of(order), NEVER_ENDED, [one], lambda _payment: []
    )
    return reading


@pytest.mark.parametrize("name", CODECS)
@given(signature=st.binary(min_size=1, max_size=600))
def test_a_request_is_the_same_whatever_its_signature(name: str, signature: bytes) -> None:
    codec, order = CODECS[name]
    reading = read(codec, order, sent(codec, order, signature))
    assert (reading.then, reading.now, reading.differs) == (SAME_BYTES, SAME_BYTES, False)


@pytest.mark.parametrize("name", CODECS)
@given(signature=st.binary(min_size=60, max_size=300), data=st.data())
def test_another_byte_outside_of_the_signature_is_noticed(
    name: str, signature: bytes, data: st.DataObject
) -> None:
    codec, order = CODECS[name]
    one = sent(codec, order, signature)
    frame = one.data
    other = sent(codec, order, bytes(byte ^ 0xFF for byte in signature)).data
    fixed = [at for at in range(len(frame)) if frame[at] == other[at]]
    # What is the same in both by chance may stand in the signature's own text.
    if frame != other:
        first = next(at for at in range(len(frame)) if frame[at] != other[at])
        fixed = [at for at in fixed if at < first - 4]
    at = data.draw(st.sampled_from(fixed))
    changed = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
    assert read(codec, order, attrs.evolve(one, data=changed)).differs
    assert read(codec, order, attrs.evolve(one, data=frame + b" ")).differs


@pytest.mark.parametrize("name", CODECS)
def test_an_order_that_can_not_be_carried_any_more_is_said(name: str) -> None:
    codec, order = CODECS[name]
    one = sent(codec, order, b"s" * 70)
    payee = attrs.evolve(order.payee, name="\N{GRINNING FACE}")
    reading = read(codec, attrs.evolve(order, payee=payee), one)
    assert reading.differs
    assert reading.now.startswith("this bank can't carry it: ")


@given(st.binary(max_size=80))
@pytest.mark.parametrize("name", CODECS)
def test_bytes_that_are_no_answer_are_not_understood(name: str, data: bytes) -> None:
    codec, order = CODECS[name]
    one = Recorded(to_text(NOW), False, "1", data, ("bank_done",), "succeeded", "", "done 000000")
    reading = read(codec, order, one)
    assert reading.differs
    assert reading.now.startswith("not understood: ")
    # Also where nothing was noted: once it was a frame.
    late = read(codec, order, attrs.evolve(one, events=(), taken_for=""))
    assert (late.kept, late.then, late.differs) == (Kept.LATE, NOTHING_NOTED, True)


@pytest.mark.parametrize(
    ("events", "taken_for", "kept"),
    [
        (("bank_done",), "done 000000", Kept.ANSWER),
        (("bank_refused",), "refused (business) X", Kept.ANSWER),
        (("outcome_lost",), "unclear GW3002", Kept.ANSWER),
        (("bank_accepted",), "taken over NTE", Kept.ANSWER),
        (("proved_done",), "done 000000", Kept.ANSWER),
        (("proved_refused",), "refused (business) X", Kept.ANSWER),
        (("proved_accepted",), "taken over NTE", Kept.ANSWER),
        (("proved_accepted",), "status processing 11", Kept.STATUS),
        (("proved_refused",), "status no_record MA0103", Kept.STATUS),
        (("proved_done", "proved_returned"), "status returned 20", Kept.STATUS),
        (("inquired",), "refused (permission) YQ9990", Kept.STATUS),
        (("proved_done",), "line found by our reference", Kept.PAGE),
        (("proved_returned",), "line that takes it back (page 4008|1)", Kept.PAGE),
        ((), "", Kept.LATE),
    ],
)
def test_what_an_answer_answered_is_known_by_what_was_noted(
    events: tuple[str, ...], taken_for: str, kept: Kept
) -> None:
    one = Recorded(to_text(NOW), False, "1", b"", events, "", "", taken_for)
    assert one.kept is kept
    assert attrs.evolve(one, sent=True).kept is Kept.REQUEST


@given(by=st.sampled_from(["our reference", "amount, counterparty and time"]), cursor=st.text())
def test_what_is_told_of_a_line_is_read_again(by: str, cursor: str) -> None:
    for what in (f"found by {by}", evidence.TAKES_BACK):
        assert evidence.line_read(evidence.line_told(what, cursor)) == (what, cursor)
    assert evidence.line_read(f"status succeeded {cursor}") is None


def test_a_request_is_prepared_as_of_the_second_in_its_number() -> None:
    codec, order = CODECS["pingan"]
    one = sent(codec, order, b"")
    assert from_text(one.at) - NOW == dt.timedelta(seconds=40)
    assert not read(codec, order, one).differs
    # A number of another form leaves the time when it was kept.
    assert read(codec, order, attrs.evolve(one, correlation="X1")).differs


SECRET = "Sesam-77"


def secretive() -> dict[str, tuple[BankCodec, BankCodec, PaymentOrder, ClientRef]]:
    """Return codecs whose requests bear a secret: as it was sent, and as it is read anew."""
    by_slot = {"signing": {"by": "slot", "algorithm": "rsa_sha256"}}
    accounts = ccb.codec().profile.accounts
    options = CcbWlptOptions(customer_id="105999900000001", user_id="FEP001")
    profile = BankProfile(ccb.CCB, CCB.card, options, "1", accounts, secrets={"password": SECRET})
    signed_on = boc.codec()
    signed_on._token = SECRET
    return {
        "ccb_wlpt": (CCB.open(profile), CCB.open(profile), ccb.ORDER, ccb.REF),
        "cib_fox": (
            cib.codec(password=SECRET),
            cib.codec(password=SECRET),
            cib.ORDER,
            cib.REFERENCE,
        ),
        "cib_fox, signed by us": (
            cib.codec(by_slot, password=SECRET),
            cib.codec(by_slot, password=SECRET),
            cib.ORDER,
            cib.REFERENCE,
        ),
        "boc_b2e": (signed_on, boc.codec(), boc.ORDER, boc.REF),
    }


@pytest.mark.parametrize("name", secretive())
def test_a_request_with_a_secret_is_read_anew_without_it(name: str) -> None:
    then, now, order, reference = secretive()[name]
    context = Context(NOW, Sequence().next(NOW), reference)
    draft = then.prepare(order, context)
    frame = then.seal(draft, None if draft.to_sign is None else b"s" * 64)
    assert SECRET.encode() in frame
    assert isinstance(then, SecretiveCodec)
    task = task_of(order)
    task.client_ref = reference
    # As it is stored; and as an older release may have stored it.
    for data in (then.kept(frame), frame):
        one = Recorded(
            to_text(NOW), True, draft.correlation, data, ("send_begun",), "sending",
            taken_for=evidence.prepared_told(context),
        )  # fmt: skip
        for told, differs in ((one, False), (changed_amount(one), True)):
            [reading] = read_task(now, card_of(now), task, NEVER_ENDED, [told], lambda _payment: [])
            assert reading.differs is differs
            assert (reading.now == SAME_BYTES) is not differs
            assert SECRET not in str(reading)
            if differs:
                assert "where b'9" in reading.now


def changed_amount(one: Recorded) -> Recorded:
    """Return the request with another amount, as long."""
    assert one.data.count(b"1000.50") == 1
    return attrs.evolve(one, data=one.data.replace(b"1000.50", b"9000.50"))
