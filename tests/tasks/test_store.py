"""The SQL of the queue: what is written is read back equal, and a stale change changes nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import count

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fep.domain.clock import BusinessDate, to_text
from fep.domain.ids import AccountNumber, BankName, ClientName, ClientRef, TaskId
from fep.domain.money import Cny
from fep.domain.order import (
    BalanceQuery,
    Body,
    Kind,
    Payee,
    PaymentOrder,
    StatementQuery,
    TransferStatusRequest,
    Urgency,
)
from fep.store import schema
from fep.tasks import store
from fep.tasks.state import FINAL, TRANSITIONS, Event, State
from fep.tasks.store import ACKNOWLEDGED, OWED, Bytes, Change, NewTask, StaleTaskError
from fep.tasks.task import Task, body_bytes, digest

pytestmark = pytest.mark.req("FEP-23")

NOW = dt.datetime(2026, 3, 2, 1, 2, 3, 456000, tzinfo=dt.UTC)
BANK, ERP = BankName("pingan"), ClientName("erp-1")
MOMENTS = st.integers(0, 10**11).map(
    lambda ms: dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
)
NUMBERS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z-]{0,20}", fullmatch=True).map(AccountNumber)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=30
)
BODIES: st.SearchStrategy[Body] = st.one_of(
    st.builds(BalanceQuery, NUMBERS),
    st.builds(TransferStatusRequest, st.just(TaskId("T-9"))),
    st.builds(
        PaymentOrder,
        payer=st.just(AccountNumber("payer")),
        payee=st.builds(
            Payee, account=NUMBERS, name=NAMES, kind=st.sampled_from(["corporate", "personal"])
        ),
        amount=st.integers(1, 10**15 - 1).map(Cny),
        purpose=st.just("") | NAMES,
        urgency=st.sampled_from(Urgency),
    ),
    st.builds(
        StatementQuery,
        NUMBERS,
        st.just(BusinessDate(dt.date(2026, 1, 1))),
        st.dates(dt.date(2026, 1, 1), dt.date(2026, 4, 1)).map(BusinessDate),
    ),
)
KINDS = {
    BalanceQuery: Kind.BALANCE,
    TransferStatusRequest: Kind.TRANSFER_STATUS,
    PaymentOrder: Kind.TRANSFER,
    StatementQuery: Kind.STATEMENT,
}


@pytest.fixture(scope="module")
def database() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    schema.metadata.create_all(engine)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def empty(database: sa.Connection) -> sa.Connection:
    for table in schema.metadata.tables:
        database.exec_driver_sql(f"delete from {table}")
    return database


@pytest.fixture
def connection(database: sa.Connection) -> sa.Connection:
    return empty(database)


def make(seq: int, task_id: str = "", body: Body | None = None, **more: object) -> NewTask:
    kind = Kind.BALANCE if body is None else KINDS[type(body)]
    task = Task(
        seq=seq,
        task_id=TaskId(task_id or f"T{seq}"),
        client=ERP,
        bank=BANK,
        kind=kind,
        priority=5,
        state=State.QUEUED,
        submitted_at=NOW,
        expires_at=NOW + dt.timedelta(hours=1),
        body=body,
    )
    for name, value in more.items():
        setattr(task, name, value)
    return NewTask(task, None if body is None else body_bytes(kind, body))


def change(task: Task, event: Event, **columns: object) -> Change:
    after = TRANSITIONS[task.state][event]
    return Change(task.seq, task.state, after, (event,), "test", NOW, columns)


def states(connection: sa.Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("select task_id, state from task")
    return {row[0]: row[1] for row in rows}


@settings(max_examples=50, deadline=None)
@given(given_tasks=st.lists(st.tuples(BODIES | st.none(), MOMENTS, st.integers(0, 9)), max_size=12))
def test_open_tasks_are_read_back_as_they_were_written(
    database: sa.Connection, given_tasks: list[tuple[Body | None, dt.datetime, int]]
) -> None:
    connection = empty(database)
    new = [
        make(n, body=body, submitted_at=at, expires_at=at, priority=priority)
        for n, (body, at, priority) in enumerate(given_tasks, 1)
    ]
    assert store.insert(connection, new, "c1") == len(new)
    read = sorted(store.open_tasks(connection), key=lambda one: one.seq)
    assert [structs.asdict(one) for one in read] == [structs.asdict(one.task) for one in new]
    assert store.last_seq(connection) == len(new)
    for one in new:
        found = store.one(connection, one.task.task_id)
        assert found is not None
        assert structs.asdict(found) == structs.asdict(one.task)


def test_ids_that_are_there_are_left_as_they_are(connection: sa.Connection) -> None:
    first = [make(1, "A"), make(2, "B", BalanceQuery(AccountNumber("1")))]
    assert store.insert(connection, first, "c1") == 2
    again = [make(3, "B", BalanceQuery(AccountNumber("2"))), make(4, "C"), make(5, "C")]
    assert store.insert(connection, again, "c2") == 1
    assert store.insert(connection, [], "c2") == 0
    known = store.known(connection, ["A", "B", "C", "D"])
    assert {name: one.seq for name, one in known.items()} == {"A": 1, "B": 2, "C": 4}
    assert known[TaskId("B")].body_digest == digest(first[1].body or b"")
    events = connection.exec_driver_sql(
        "select task_seq, event, configuration from task_event order by seq"
    ).all()
    assert [tuple(row) for row in events] == [
        (1, "submitted", "c1"),
        (2, "submitted", "c1"),
        (4, "submitted", "c2"),
    ]


def test_many_are_known_at_once(connection: sa.Connection) -> None:
    ids = [f"T{n}" for n in range(1, 2 * store.IDS_PER_QUERY_MAX + 8)]
    store.insert(connection, [make(n, one) for n, one in enumerate(ids, 1)], "c")
    assert set(store.known(connection, [*ids, "no"])) == set(ids)
    assert {one.task_id for one in store.deliveries(connection, ids)} == set(ids)
    assert store.known(connection, []) == {}


def test_a_change_is_written_with_its_events_and_bytes(connection: sa.Connection) -> None:
    new = make(1, body=BalanceQuery(AccountNumber("1")))
    store.insert(connection, [new], "c1")
    begun = Change(
        1,
        State.QUEUED,
        State.SENDING,
        (Event.BODY_TAKEN, Event.SEND_BEGUN),
        "sent",
        NOW,
        {"client_ref": "F1", "sent_at": to_text(NOW)},
        wire=Bytes(sent=True, correlation="c-1", data=b"\x00exact\xff"),
    )
    store.apply(connection, [begun], "c1")
    found = store.one(connection, "T1")
    assert found is not None
    assert (found.state, found.client_ref, found.sent_at) == (
        State.SENDING,
        ClientRef("F1"),
        NOW,
    )
    chain = store.why(connection, "T1")
    assert [(one["event"], one["state"]) for one in chain] == [
        ("submitted", "queued"),
        ("body_taken", "sending"),
        ("send_begun", "sending"),
    ]
    assert chain[-1]["digest"] == digest(b"\x00exact\xff")
    [message] = connection.exec_driver_sql("select task_seq, direction, bytes from message").all()
    assert tuple(message) == (1, "sent", b"\x00exact\xff")


@pytest.mark.parametrize("stale", range(3))
def test_one_stale_change_among_many_is_refused(connection: sa.Connection, stale: int) -> None:
    new = [make(n, body=BalanceQuery(AccountNumber("1"))) for n in (1, 2, 3)]
    store.insert(connection, new, "c")
    connection.exec_driver_sql(f"update task set state = 'cancelled' where seq = {stale + 1}")
    changes = [change(one.task, Event.BODY_TAKEN) for one in new]
    with pytest.raises(StaleTaskError):
        store.apply(connection, changes, "c")


@settings(max_examples=50, deadline=None)
@given(start=st.lists(st.sampled_from(State), min_size=1, max_size=6), data=st.data())
def test_many_changes_in_one_statement_change_each_its_own(
    database: sa.Connection, start: list[State], data: st.DataObject
) -> None:
    connection = empty(database)
    new = [make(n) for n in range(1, len(start) + 1)]
    store.insert(connection, new, "c")
    changes = []
    for one, state in zip(new, start, strict=True):
        connection.exec_driver_sql(
            "update task set state = ? where seq = ?", (state.value, one.task.seq)
        )
        one.task.state = state
        if TRANSITIONS[state]:
            event = data.draw(st.sampled_from(sorted(TRANSITIONS[state])))
            columns = data.draw(st.sampled_from([{}, {"offers": one.task.seq}]))
            changes.append(change(one.task, event, **columns))
    store.apply(connection, changes, "c")
    wanted = {f"T{n}": state.value for n, state in enumerate(start, 1)}
    wanted |= {f"T{one.seq}": one.after.value for one in changes}
    assert states(connection) == wanted
    rows = connection.exec_driver_sql("select seq, offers from task").all()
    set_to = {one.seq: one.seq for one in changes if one.columns}
    assert {row[0]: row[1] for row in rows} == {n: set_to.get(n, 0) for n in range(1, len(new) + 1)}


def test_only_open_tasks_are_read_at_the_start(connection: sa.Connection) -> None:
    new = [make(n) for n in range(1, len(State) + 1)]
    store.insert(connection, new, "c")
    for one, state in zip(new, State, strict=True):
        connection.exec_driver_sql(
            "update task set state = ? where seq = ?", (state.value, one.task.seq)
        )
    read = sorted(store.open_tasks(connection), key=lambda one: one.seq)
    assert [one.state for one in read] == [state for state in State if state not in FINAL]
    assert store.counts(connection) == {BANK: {state.value: 1 for state in State}}


def test_a_result_is_owed_until_it_is_acknowledged_and_a_later_one_anew(
    connection: sa.Connection,
) -> None:
    new = make(1)
    store.insert(connection, [new], "c")
    assert store.owed(connection) == []
    connection.exec_driver_sql(
        "update task set state = 'succeeded', delivery = ?, result = ?", (OWED, b'{"a":1}')
    )
    assert store.owed(connection) == [(ERP, TaskId("T1"))]
    [told] = store.deliveries(connection, ["T1"])
    assert (told.state, told.result) == (State.SUCCEEDED, {"a": 1})
    others = [("T1", "rejected", told.at), ("T2", "succeeded", told.at), ("T1", "succeeded", "")]
    store.acknowledge(connection, others)
    assert store.owed(connection) == [(ERP, TaskId("T1"))], "another end was acknowledged"
    store.acknowledge(connection, [("T1", "succeeded", told.at)])
    assert store.owed(connection) == []
    view = store.view(connection, "T1")
    assert view is not None
    assert (view["acknowledged"], view["result"]) == (True, {"a": 1})
    connection.exec_driver_sql("update task set state = 'returned', delivery = ?", (OWED,))
    store.acknowledge(connection, [("T1", "succeeded", told.at)])
    assert store.owed(connection) == [(ERP, TaskId("T1"))], "the return was not told yet"
    assert connection.exec_driver_sql("select delivery from task").scalar_one() != ACKNOWLEDGED


def test_pages_go_through_all_once_newest_first(connection: sa.Connection) -> None:
    store.insert(connection, [make(n) for n in range(1, 24)], "c")
    seen: list[str] = []
    before: int | None = None
    for _ in count():
        page, before = store.page(
            connection, client=ERP, state="queued", bank=BANK, limit=5, before=before
        )
        assert len(page) <= 5
        seen += [one["task_id"] for one in page]
        if before is None:
            break
    assert seen == [f"T{n}" for n in range(23, 0, -1)]
    for wrong in ({"client": "x"}, {"state": "failed"}, {"bank": "x"}):
        filters = {"client": ERP, "state": "queued", "bank": BANK, **wrong}
        page, before = store.page(connection, **filters, limit=5, before=None)
        assert (page, before) == ([], None)


def test_a_page_fits_a_line_however_long_its_results_are(connection: sa.Connection) -> None:
    store.insert(connection, [make(n) for n in range(1, 9)], "c")
    long = orjson.dumps({"entries": "x" * 400_000})
    connection.exec_driver_sql("update task set result = ?, bank_message = 'm'", (long,))
    seen: list[str] = []
    before: int | None = None
    while True:
        page, before = store.page(
            connection, client=None, state=None, bank=None, limit=8, before=before
        )
        assert len(orjson.dumps(page)) < 1024 * 1024
        assert page
        seen += [one["task_id"] for one in page]
        if before is None:
            break
    assert seen == [f"T{n}" for n in range(8, 0, -1)]


def test_what_an_operator_stopped_and_proposed_is_kept_once(connection: sa.Connection) -> None:
    store.set_drained(connection, BANK, value=True)
    store.set_drained(connection, BANK, value=True)
    assert store.drained(connection) == {BANK}
    store.set_drained(connection, BANK, value=False)
    assert store.drained(connection) == set()
    assert store.proposal(connection, 1) is None
    for outcome, who in ((State.SUCCEEDED, "li"), (State.REJECTED, "wang")):
        store.propose(connection, 1, store.Proposal(outcome, "line 7", who), NOW)
        assert store.proposal(connection, 1) == store.Proposal(outcome, "line 7", who)


def test_what_is_noted_changes_no_state(connection: sa.Connection) -> None:
    store.insert(connection, [make(1)], "c")
    wire = Bytes(sent=False, correlation="x", data=b"answer")
    store.note(
        connection,
        1,
        State.QUEUED,
        "inquired",
        "why",
        NOW,
        "c",
        wire=wire,
        columns={"inquiries": 3, "inquire_at": to_text(NOW)},
    )
    found = store.one(connection, "T1")
    assert found is not None
    assert (found.state, found.inquiries, found.inquire_at) == (State.QUEUED, 3, NOW)
    last = store.why(connection, "T1")[-1]
    assert (last["event"], last["digest"]) == ("inquired", digest(b"answer"))
    store.add_message(connection, None, BANK, wire, NOW)
    rows = connection.exec_driver_sql("select task_seq, bank, direction from message").all()
    assert [tuple(row) for row in rows] == [(1, "", "received"), (None, BANK, "received")]
    assert store.view(connection, "no") is None
    assert store.one(connection, "no") is None
    assert store.why(connection, "no") == []


def test_chains_of_many_are_read_at_once_each_from_its_beginning(connection: sa.Connection) -> None:
    store.insert(connection, [make(1), make(2)], "c")
    for _ in range(store.CHAIN_STEPS_MAX + 1):
        store.note(connection, 2, State.QUEUED, "noted", "", NOW, "c")
    found = store.chains(connection, [1, 2, 3])
    assert [(one.at, one.event, one.state) for one in found[1]] == [
        (to_text(NOW), "submitted", "queued")
    ]
    assert len(found[2]) == store.CHAIN_STEPS_MAX
    assert found[2][0].event == "submitted"
    assert found[3] == []
