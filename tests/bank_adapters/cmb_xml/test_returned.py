"""NTQRYSTN: the payments of some days, of which those are told that came back."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest

from bank_adapters.cmb_xml.messages import decode
from fep.adapters.api import Accepted, LookupCodec, Outcome, Rejected, Unclear
from fep.adapters.host import Fault
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    BankCodeQuery,
    Lookup,
    Payee,
    ReturnedPayment,
    ReturnedPayments,
    ReturnedQuery,
)
from tests.bank_adapters.cmb_xml.samples import (
    CONTEXT,
    DAY,
    ORDER,
    PAYER,
    SISTER,
    STRANGER,
    codec,
    reply,
)
from tests.bank_adapters.cmb_xml.test_host import Bench

ASKED = ReturnedQuery(PAYER, DAY, DAY)
LATER = dt.timedelta(days=1)


def days(first: int, last: int) -> ReturnedQuery:
    """Return the query from so many days after ``DAY`` to so many."""
    first_day, last_day = (BusinessDate(DAY + at * LATER) for at in (first, last))
    return ReturnedQuery(PAYER, first_day, last_day)


def weeks(query: ReturnedQuery, bench: Bench) -> list[ReturnedPayments]:
    """Return every page, as the bank tells them one after the other."""
    one = codec()
    assert isinstance(one, LookupCodec)
    pages: list[ReturnedPayments] = []
    while not pages or pages[-1].cursor:
        if pages:
            query = attrs.evolve(query, cursor=pages[-1].cursor)
        [told] = bench.replies(one.prepare_lookup(query, CONTEXT))
        pages.append(listed(one.looked_up(query, told)))
    return pages


def listed(outcome: Outcome) -> ReturnedPayments:
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.result, ReturnedPayments)
    return outcome.result


def answer(*rows: dict[str, str], code: str = "0", function: str = "NTQRYSTN") -> str:
    blocks = "".join(
        f"<NTSTLLSTZ>{''.join(f'<{k}>{v}</{k}>' for k, v in row.items())}</NTSTLLSTZ>"
        for row in rows
    )
    info = f"<INFO><FUNNAM>{function}</FUNNAM><RETCOD>{code}</RETCOD></INFO>"
    return f"<CMBSDKPGK>{info}{blocks}</CMBSDKPGK>"


def told(xml: str, lookup: Lookup = ASKED) -> Outcome:
    return codec().looked_up(lookup, reply(xml))


BACK = {"REQSTS": "FIN", "RTNFLG": "B", "DBTACC": PAYER, "TRSAMT": "1.00", "CCYNBR": "10"}


def test_a_month_is_asked_week_by_week_and_no_day_is_left_out() -> None:
    query, asked = days(-29, 0), []
    bench = Bench()
    for cursor in ("", "1", "2", "3", "4"):
        draft = codec().prepare_lookup(attrs.evolve(query, cursor=cursor), CONTEXT)
        [block] = decode(draft.content).rows("NTQRYSTNY1")
        assert (block["BUSCOD"], block["BUSMOD"]) == ("N02031", "00001")
        asked.append((block["BGNDAT"], block["ENDDAT"]))
        assert len(bench.replies(draft)) == 1
    assert asked == [
        ("20251207", "20251213"),
        ("20251214", "20251220"),
        ("20251221", "20251227"),
        ("20251228", "20260103"),
        ("20260104", "20260105"),
    ]
    assert len(weeks(query, bench)) == len(asked)
    assert len(weeks(days(-6, 0), bench)) == 1
    assert len(weeks(days(-7, 0), bench)) == 2


@pytest.mark.parametrize("query", [days(0, 0), days(-6, 0), days(-20, 9)])
def test_only_the_account_s_payments_that_came_back_are_told(query: ReturnedQuery) -> None:
    bench = Bench(chance={Fault.RETURNED: 1.0})
    other = Payee(SISTER, "江枫样例销售有限公司")
    for order, reference in (
        (ORDER, "BACK"),
        (attrs.evolve(ORDER, payee=other, amount=Cny(700)), "INSIDE"),
        (attrs.evolve(ORDER, amount=Cny(10**12)), "REFUSED"),
    ):
        bench.ask(order, ClientRef(reference))
    assert [page.entries for page in weeks(query, bench)][-1:] == [()], "nothing came back yet"
    bench.clock.moment += LATER
    bench.chance.clear()
    bench.ask(attrs.evolve(ORDER, amount=Cny(1)), ClientRef("DONE"))
    found = [one for page in weeks(query, bench) for one in page.entries]
    assert [one.client_ref for one in found] == ["BACK", "INSIDE"]
    back = found[0]
    assert (back.amount, back.submitted_on, back.returned_on) == (ORDER.amount, DAY, None)
    assert (back.payee_account, back.payee_name) == (STRANGER, ORDER.payee.name)
    assert back.bank_ref == bench.status(client_ref=ClientRef("BACK")).bank_ref
    assert [page.entries for page in weeks(attrs.evolve(query, account=SISTER), bench)][-1] == ()
    assert [page.entries for page in weeks(days(1, 3), bench)] == [()]


def test_a_refund_is_one_too_and_what_a_row_lacks_is_left_empty() -> None:
    bare = {"REQSTS": "FIN", "RTNFLG": "T", "TRSAMT": "1"}
    page = listed(told(answer(bare)))
    assert page == ReturnedPayments(
        (ReturnedPayment("", "", Cny(100), None, None, "", "", "", ""),), ""
    )


@pytest.mark.parametrize(
    ("row", "count"),
    [
        (BACK | {"RTNFLG": "S"}, 0),
        (BACK | {"RTNFLG": "M"}, 0),
        (BACK | {"REQSTS": "BNK"}, 0),
        (BACK | {"DBTACC": SISTER, "TRSAMT": "x"}, 0),
        (BACK | {"OPRDAT": "20260105"}, 1),
    ],
)
def test_which_rows_count(row: dict[str, str], count: int) -> None:
    assert len(listed(told(answer(row))).entries) == count


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        (answer(), Accepted),
        (answer(BACK | {"TRSAMT": ""}), Unclear),
        (answer(BACK | {"TRSAMT": "1.001"}), Unclear),
        (answer(BACK | {"OPRDAT": "20261332"}), Unclear),
        (answer(BACK | {"CCYNBR": "32"}), Unclear),
        (answer(BACK, function="NTQRYSTY"), Unclear),
        (answer(BACK, code="-1"), Unclear),
        (answer(code="-9999"), Unclear),
        (answer(code="-5"), Rejected),
        ("<CMBSDKPGK>", Unclear),
    ],
)
def test_what_an_answer_means(xml: str, kind: type[Outcome]) -> None:
    assert isinstance(told(xml), kind)


@pytest.mark.parametrize(
    ("lookup", "says"),
    [
        (attrs.evolve(ASKED, account=AccountNumber("1")), "account is no approved"),
        (BankCodeQuery("308", ""), "no bank codes"),
    ],
)
def test_what_is_not_asked(lookup: Lookup, says: str) -> None:
    with pytest.raises(BodyError, match=says):
        codec().prepare_lookup(lookup, CONTEXT)


@pytest.mark.parametrize("cursor", ["1", "-1", "00", "x", "²"])
def test_a_cursor_is_ours(cursor: str) -> None:
    lookup = attrs.evolve(ASKED, cursor=cursor)
    with pytest.raises(BodyError, match="cursor"):
        codec().prepare_lookup(lookup, CONTEXT)
    assert isinstance(told(answer(BACK), lookup), Unclear)


def test_the_bank_lists_no_more_than_a_week() -> None:
    bench = Bench()
    draft = codec().prepare_lookup(days(-6, 0), CONTEXT)
    wider = attrs.evolve(draft, content=draft.content.replace(b"20251230", b"20251229"))
    assert wider.content != draft.content
    assert [one.code for one in bench.replies(draft) + bench.replies(wider)] == ["0", "-3"]
