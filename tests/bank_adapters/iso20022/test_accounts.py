"""Balances and statements: of an HTTP answer, and of the files of a folder."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import attrs
import pytest

from bank_adapters.iso20022 import host
from bank_adapters.iso20022.messages import documents, read
from bank_adapters.iso20022.replies import Content
from fep.adapters import registry
from fep.adapters.api import Accepted, Outcome, Unclear
from fep.adapters.host import BookAccount, BookEntry, Fault
from fep.domain.clock import BusinessDate
from fep.domain.money import Cny
from fep.domain.order import Balance, BalanceQuery, Direction, Statement, StatementQuery
from fep.sandbox.conformance import ORDER as ORDER_OF_RIG
from fep.sandbox.conformance import Rig
from tests.bank_adapters.iso20022.samples import (
    BANK,
    FOLDER,
    NOW,
    OURS,
    PAYEE,
    REF,
    RETURNED,
    bal,
    camt,
    codec,
    entry,
    faults_of_the_banks,
    reply,
)


def day(number: int) -> str:
    return f"2026-01-{number:02d}"


def whole(number: int, opening: str, closing: str, *entries: str, **more: str) -> str:
    """Return the statement of a day of January."""
    balances = bal("OPBD", opening, day(number)) + bal("CLBD", closing, day(number))
    at = more.pop("at", f"{day(number + 1)}T06:00:00+08:00")
    return camt("camt.053", *entries, balances=balances, day=day(number), at=at, **more)


def asked(first: int, last: int) -> StatementQuery:
    begin, end = (BusinessDate(dt.date(2026, 1, one)) for one in (first, last))
    return StatementQuery(OURS, begin, end)


def collected(query: StatementQuery, *made: str, now: int = 12, **options: bool) -> Outcome:
    """Return what a folder with these files answers on a day of January."""
    at = dt.datetime(2026, 1, now, 1, 0, tzinfo=dt.UTC)
    content = Content(tuple(read(one.encode()) for one in made), asked_at=at)
    told = attrs.evolve(reply(), code="FOUND" if made else "NONE", content=content)
    return codec(FOLDER, **options).outcome(query, told)


def amounts(found: Outcome) -> list[str]:
    assert isinstance(found, Accepted), found
    assert isinstance(found.result, Statement)
    assert not found.result.cursor
    return [str(one.amount) for one in found.result.entries]


def on(number: int, amount: str, ref: str = REF, **more: str) -> str:
    return entry(amount, ref=ref, day=f"<Dt>{day(number)}</Dt>", **more)


# 5 January 2026 is a Monday.


def test_each_day_is_one_file_and_all_make_the_statement() -> None:
    made = (
        whole(5, "10.00", "9.00", on(5, "1.00")),
        whole(6, "9.00", "7.00", on(6, "2.00")),
        whole(7, "7.00", "4.00", on(7, "3.00")),
    )
    assert amounts(collected(asked(5, 7), *made)) == ["1.00", "2.00", "3.00"]
    assert amounts(collected(asked(6, 6), *made)) == ["2.00"]
    found = collected(asked(5, 8), *made)
    assert isinstance(found, Unclear)
    assert found.code == "NO_STATEMENT"


def test_a_day_without_a_file_had_no_lines_if_the_balances_say_so() -> None:
    before, after = whole(5, "10.00", "9.00", on(5, "1.00")), whole(7, "9.00", "9.00")
    assert amounts(collected(asked(5, 7), before, after)) == ["1.00"]
    jump = whole(7, "8.00", "8.00")
    found = collected(asked(5, 7), before, jump)
    assert isinstance(found, Unclear)
    assert found.code == "NO_STATEMENT"


def test_weekends_have_no_statements_unless_the_bank_makes_some() -> None:
    friday = whole(9, "10.00", "9.00", on(9, "1.00"))
    assert amounts(collected(asked(9, 11), friday)) == ["1.00"]
    assert isinstance(collected(asked(9, 11), friday, statements_on_weekends=True), Unclear)


def test_lines_that_do_not_make_the_closing_balance_are_not_told() -> None:
    gap = whole(5, "10.00", "7.00", on(5, "1.00"))
    for found in (collected(asked(5, 5), gap), codec().outcome(asked(5, 5), reply(gap))):
        assert isinstance(found, Unclear)
        assert found.code == "STATEMENT_GAP"


def test_today_is_what_was_notified_so_far_each_line_once() -> None:
    mine = on(12, "1.00", outside="<AcctSvcrRef>B1</AcctSvcrRef>")
    again = on(12, "1.00", outside="<AcctSvcrRef>B1</AcctSvcrRef>")
    other = on(12, "1.00", ref="NOTPROVIDED", outside="<AcctSvcrRef>B2</AcctSvcrRef>")
    pending = on(12, "5.00", state="<Sts>PDNG</Sts>")
    made = (
        camt("camt.054", mine, at="2026-01-12T09:00:00Z"),
        camt("camt.052", again, other, at="2026-01-12T10:00:00Z"),
        camt("camt.054", mine, pending, at="2026-01-12T11:00:00Z"),
        camt("camt.054", on(12, "9.00"), account=PAYEE),
    )
    assert amounts(collected(asked(12, 12), *made)) == ["1.00", "1.00"]
    assert amounts(collected(asked(12, 12))) == []
    # Once its statement is there, that is the word.
    final = whole(12, "2.00", "1.00", mine)
    assert amounts(collected(asked(12, 12), *made, final, now=13)) == ["1.00"]


def test_a_statement_that_comes_again_or_anew_counts_once() -> None:
    first = whole(5, "10.00", "9.00", on(5, "1.00"))
    anew = whole(5, "10.00", "8.00", on(5, "2.00"), at="2026-01-06T09:00:00+08:00", ident="S2")
    assert amounts(collected(asked(5, 5), first, first)) == ["1.00"]
    assert amounts(collected(asked(5, 5), anew, first)) == ["2.00"]


def acct(ref: str) -> str:
    return f"<AcctSvcrRef>{ref}</AcctSvcrRef>"


def test_a_bank_reference_that_comes_round_again_is_another_line() -> None:
    made = (
        whole(5, "10.00", "9.00", on(5, "1.00", "E5", outside=acct("7"))),
        whole(6, "9.00", "8.00", on(6, "1.00", "E6", outside=acct("7"))),
        whole(7, "8.00", "7.00", on(7, "1.00", "NOTPROVIDED", outside=acct("7"))),
    )
    assert amounts(collected(asked(5, 7), *made)) == ["1.00"] * 3
    assert amounts(codec().outcome(asked(5, 7), reply(*made))) == ["1.00"] * 3


B, E, NO = "B1", "E1", "NOTPROVIDED"


@pytest.mark.parametrize(
    ("one", "other", "lines"),
    [
        ((B, E), (B, E), 1),
        # One report may tell less than another.
        ((B, E), (B, NO), 1),
        ((B, E), ("", E), 1),
        (("", NO), ("", NO), 1),
        (("", E), ("", E), 1),
        # A batch's one reference, and a payment's id that is used again.
        ((B, E), (B, "E2"), 2),
        ((B, E), ("B2", E), 2),
        ((B, NO), ("B2", NO), 2),
        ((B, NO), ("", E), 2),
        (("", E), ("", NO), 2),
    ],
)
@pytest.mark.parametrize("kinds", [("camt.054", "camt.054"), ("camt.054", "camt.052")])
def test_what_makes_two_lines_of_two_reports_one(
    one: tuple[str, str], other: tuple[str, str], lines: int, kinds: tuple[str, str]
) -> None:
    for first, second in ((one, other), (other, one)):
        made = [
            camt(kind, on(12, "1.00", ref, outside=acct(bank) if bank else ""), ident=kind)
            for kind, (bank, ref) in zip(kinds, (first, second), strict=True)
        ]
        assert len(amounts(collected(asked(12, 12), *made))) == lines, (first, second)


def test_lines_alike_are_as_many_as_the_report_that_has_most_of_them() -> None:
    alike = on(12, "1.00", NO, outside=acct(B))
    made = [camt("camt.054", alike), camt("camt.054", alike, alike), camt("camt.054", alike)]
    assert amounts(collected(asked(12, 12), *made)) == ["1.00", "1.00"]
    # Other sides, days and amounts are other lines.
    made += [camt("camt.054", on(12, "1.00", NO, outside=acct(B), side="CRDT"))]
    made += [camt("camt.054", on(11, "1.00", NO, outside=acct(B)))]
    made += [camt("camt.054", on(12, "1.01", NO, outside=acct(B)))]
    assert len(amounts(collected(asked(10, 12), *made, statements_on_weekends=False))) == 5


def test_statements_whose_days_overlap_tell_each_line_once() -> None:
    line = on(6, "1.00", outside=acct(B))
    made = (
        camt("camt.053", on(5, "2.00"), line, day=day(5)).replace(f"{day(5)}T23", f"{day(6)}T23"),
        whole(6, "9.00", "8.00", line),
    )
    assert amounts(collected(asked(5, 6), *made)) == ["2.00", "1.00"]


def test_an_answer_without_a_report_is_no_statement() -> None:
    page = attrs.evolve(reply(), content=Content())
    for nothing in (page, reply(camt("camt.053", day=day(5), account=PAYEE))):
        found = codec().outcome(asked(5, 5), nothing)
        assert isinstance(found, Unclear)
        assert found.code == "NO_REPORT"
    assert amounts(codec().outcome(asked(5, 5), reply(camt("camt.053", day=day(5))))) == []


def test_a_debit_that_takes_a_credit_back_is_told_as_a_debit_that_proves_nothing() -> None:
    line = on(5, "1.00", outside="<RvslInd>true</RvslInd>")
    found = codec().outcome(asked(5, 5), reply(camt("camt.053", line, day=day(5))))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Statement)
    [told] = found.result.entries
    assert (told.direction, told.reversal, told.client_ref) == (Direction.DEBIT, False, "")


def test_two_lines_alike_in_one_statement_are_two() -> None:
    twice = whole(5, "3.00", "1.00", on(5, "1.00", "NOTPROVIDED"), on(5, "1.00", "NOTPROVIDED"))
    assert amounts(collected(asked(5, 5), twice)) == ["1.00", "1.00"]


def test_a_statement_that_goes_on_from_another_of_its_day_is_told_with_it() -> None:
    def part(hour: int, opening: str, closing: str, *lines: str) -> str:
        entries = [on(5, one, f"R{one}") for one in lines]
        return whole(5, opening, closing, *entries, at=f"2026-01-05T{hour:02d}:00:00+08:00")

    morning, evening = part(12, "10.00", "9.00", "1.00"), part(20, "9.00", "7.00", "2.00")
    assert amounts(collected(asked(5, 5), evening, morning)) == ["1.00", "2.00"]
    # What tells the evening, or the whole day, anew takes its place.
    again = part(21, "9.00", "5.00", "4.00")
    assert amounts(collected(asked(5, 5), morning, evening, again)) == ["1.00", "4.00"]
    day_whole = part(22, "10.00", "7.00", "3.00")
    assert amounts(collected(asked(5, 5), morning, evening, day_whole)) == ["3.00"]
    # Sent once more, each is what it was; what is behind it stays.
    assert amounts(collected(asked(5, 5), morning, evening, part(21, "10.00", "9.00", "1.00"))) == [
        "1.00",
        "2.00",
    ]
    assert amounts(collected(asked(5, 5), morning, evening, evening)) == ["1.00", "2.00"]


def test_lines_alike_in_statements_that_follow_each_other_are_all_told() -> None:
    def part(hour: int, opening: str, closing: str, count: int) -> str:
        lines = [on(5, "1.00", "NOTPROVIDED")] * count
        return whole(5, opening, closing, *lines, at=f"2026-01-05T{hour:02d}:00:00+08:00")

    found = collected(asked(5, 5), part(12, "10.00", "9.00", 1), part(20, "9.00", "7.00", 2))
    assert amounts(found) == ["1.00"] * 3


def test_what_may_go_on_from_a_statement_or_take_its_place_is_not_guessed() -> None:
    """The day ended as it began: a payment, and its return."""

    def day_of(hour: int, closing: str, *lines: str) -> str:
        return whole(5, "9.00", closing, *lines, at=f"2026-01-05T{hour:02d}:00:00+08:00")

    there, back = on(5, "1.00", "R1"), on(5, "1.00", "R1", side="CRDT")
    even = day_of(12, "9.00", there, back)
    assert amounts(collected(asked(5, 5), even, day_of(13, "9.00", there, back))) == ["1.00"] * 2
    for other in (
        day_of(13, "9.00", there, on(5, "1.00", "R2", side="CRDT")),
        day_of(13, "8.00", there),
    ):
        found = collected(asked(5, 5), even, other)
        assert isinstance(found, Unclear)
        assert found.code == "STATEMENT_GAP"


def test_the_pages_of_a_statement_belong_together() -> None:
    def page(number: int, *entries: str, last: str) -> str:
        paging = f"<StmtPgntn><PgNb>{number}</PgNb><LastPgInd>{last}</LastPgInd></StmtPgntn>"
        return whole(5, "10.00", "7.00", *entries, paging=paging)

    one, two = page(1, on(5, "1.00"), last="false"), page(2, on(5, "2.00"), last="true")
    assert amounts(collected(asked(5, 5), two, one)) == ["1.00", "2.00"]
    for missing in ([two], [page(1, last="false"), page(3, last="true")]):
        found = collected(asked(5, 5), *missing)
        assert isinstance(found, Unclear), missing
    over_http = codec().outcome(asked(5, 5), reply(one))
    assert isinstance(over_http, Accepted)
    assert isinstance(over_http.result, Statement)
    assert over_http.result.cursor == "2"


def test_a_line_bears_all_that_it_says() -> None:
    inside = (
        "<RltdPties><Cdtr><Pty><Nm>云阶</Nm></Pty></Cdtr><CdtrAcct><Id><Othr><Id>6222</Id></Othr></Id>"
        "</CdtrAcct></RltdPties><RmtInf><Ustrd>货</Ustrd><Ustrd>款</Ustrd></RmtInf>" + RETURNED
    )
    line = on(5, "1.00", side="CRDT", inside=inside, outside="<NtryRef>N1</NtryRef>")
    found = codec().outcome(asked(5, 5), reply(camt("camt.053", line, day=day(5))))
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Statement)
    [told] = found.result.entries
    assert (told.bank_ref, told.client_ref, told.reversal) == ("N1", REF, True)
    assert (told.direction, told.purpose) == (Direction.CREDIT, "货 款")
    assert (told.counterparty_account, told.counterparty_name) == ("6222", "云阶")


def test_an_entry_of_several_payments_is_several_lines_if_it_adds_up() -> None:
    def rows(*worth: str) -> str:
        parts = "".join(
            f'<TxDtls><Refs><EndToEndId>R{one}</EndToEndId></Refs><Amt Ccy="CNY">{one}</Amt></TxDtls>'
            for one in worth
        )
        return (
            '<Ntry><Amt Ccy="CNY">3.00</Amt><CdtDbtInd>DBIT</CdtDbtInd><Sts>BOOK</Sts>'
            f"<BookgDt><Dt>{day(5)}</Dt></BookgDt><NtryDtls>{parts}</NtryDtls></Ntry>"
        )

    good = codec().outcome(asked(5, 5), reply(camt("camt.053", rows("1.00", "2.00"), day=day(5))))
    assert amounts(good) == ["1.00", "2.00"]
    bad = codec().outcome(asked(5, 5), reply(camt("camt.053", rows("1.00", "1.00"), day=day(5))))
    assert isinstance(bad, Unclear)


@pytest.mark.parametrize("wrong", ["amount", "currency", "side", "date"])
def test_one_line_that_can_not_be_read_spoils_the_answer(wrong: str) -> None:
    line = {
        "amount": on(5, "one"),
        "currency": on(5, "1.00", currency="USD"),
        "side": on(5, "1.00", side="X"),
        "date": entry("1.00", day="<Dt>soon</Dt>"),
    }[wrong]
    found = codec().outcome(asked(5, 5), reply(camt("camt.053", on(5, "2.00"), line, day=day(5))))
    assert isinstance(found, Unclear)


# -- balances --------------------------------------------------------------------------------------


def balance(*made: str, at: dt.datetime | None = NOW) -> Outcome:
    content = Content(tuple(read(one.encode()) for one in made), asked_at=at)
    told = attrs.evolve(reply(), code="FOUND", content=content)
    return codec(FOLDER).outcome(BalanceQuery(OURS), told)


def test_the_newest_balance_counts_and_an_old_one_is_not_told() -> None:
    old = camt("camt.052", balances=bal("ITBD", "1.00"), at="2026-01-05T08:50:00+08:00")
    new = camt(
        "camt.052",
        balances=bal("OPBD", "9.00") + bal("ITBD", "2.00", side="DBIT") + bal("ITAV", "3.00"),
        at="2026-01-05T09:00:00+08:00",
    )
    found = balance(new, old)
    assert isinstance(found, Accepted)
    assert isinstance(found.result, Balance)
    assert (found.result.book, found.result.available) == (Cny(-200), Cny(300))
    stale = balance(old, new, at=NOW + dt.timedelta(minutes=15))
    assert isinstance(stale, Unclear)
    assert stale.code == "STALE"
    # A statement's closing balance is one of its day, whenever it was made.
    closing = camt("camt.053", balances=bal("CLBD", "4.00", day(4)), at="2026-01-05T09:00:30+08:00")
    assert isinstance(balance(closing), Unclear)


@pytest.mark.parametrize(
    "made",
    [
        camt("camt.052", balances=bal("ITBD", "1.00"), account=PAYEE),
        camt("camt.052", balances=bal("OPBD", "1.00")),
        camt("camt.052", balances=bal("ITBD", "1.00").replace("CNY", "EUR")),
        camt("camt.052", balances=bal("ITBD", "1.00", side="")),
        camt("camt.054", entry()),
    ],
)
def test_what_tells_no_balance_of_ours_is_unclear(made: str) -> None:
    assert isinstance(balance(made), Unclear)


# -- the simulated bank ----------------------------------------------------------------------------


def test_what_the_simulated_bank_writes_fits_the_standard(rig: Rig) -> None:
    """Held against mock-bank's dictionary, which is held against the published schemas."""
    seen = set()
    for fault in (None, Fault.LANDED, Fault.RETURNED):
        with rig.bank(*([fault] if fault else [])) as bank:
            for operation in (ORDER_OF_RIG, rig.status(order=ORDER_OF_RIG), *rig.queries):
                _, answer = bank.answer(operation)
                for one in documents(answer.partition(b"\r\n\r\n")[2]):
                    assert faults_of_the_banks(one) == []
                    seen.add(read(one).kind)
    assert seen >= {"pain.002", "camt.052", "camt.053"}
    made = host.notification(
        BookAccount(BANK, OURS, "x", Cny(0)),
        [ENTRY, attrs.evolve(ENTRY, debit=False, back=True)],
        NOW,
    )
    assert faults_of_the_banks(made.encode()) == []


ENTRY = BookEntry("B1", REF, NOW, True, Cny(1), Cny(0), PAYEE, "云阶", "本行", "货款")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    name = "iso20022"
    return Rig(
        tmp_path, registry.adapter(name), registry.host(name), registry.quality(name).example
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"<NbOfTxs>1<", b"<NbOfTxs>2<"), b"400"),
        ((b"<CtrlSum>1000.50<", b"<CtrlSum>1000.51<"), b"400"),
        ((b'Ccy="CNY">1000.50', b'Ccy="USD">1000.50'), b"400"),
        ((b"<EndToEndId>F", b"<EndToEndId>G"), b"400"),
        ((b"<Cdtr>", b"<Cdtr><!DOCTYPE x>"), b"400"),
        ((b"POST /payments ", b"GET /nothing "), b"404"),
    ],
)
def test_the_simulated_bank_books_nothing_that_is_wrong(
    rig: Rig, change: tuple[bytes, bytes], status: bytes
) -> None:
    rig.card = attrs.evolve(rig.card, signing=codec().profile.card.signing)
    rig.codec = rig.open()
    with rig.bank() as signed:
        bank = attrs.evolve(signed, profile=attrs.evolve(signed.profile, certificates=()))
        request = rig.sealed(rig.draft(ORDER_OF_RIG)).replace(*change)
        [answer] = bank.host.open(bank.profile).receive_data(request)
        assert answer.data.startswith(b"HTTP/1.1 " + status)
        assert bank.booked == 0
