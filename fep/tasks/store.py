"""The SQL of the task queue: every state change is a compare-and-set with its event beside it."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import attrs
import orjson
import sqlalchemy as sa

from fep.adapters.api import Reply
from fep.domain.clock import from_text, to_text
from fep.domain.ids import (
    AccountNumber,
    BankName,
    ClientName,
    ClientRef,
    TaskId,
    batch_refs,
    row_ref,
)
from fep.domain.money import ZERO, Cny
from fep.domain.order import MOVES_MONEY, BatchOrder, Body, Kind, Order, parse_body
from fep.store import chain
from fep.store.files import archive_name
from fep.store.schema import (
    lane,
    message,
    payment,
    payment_row,
    resolution,
    restored,
    task,
    task_event,
)
from fep.tasks.matching import DAYS_AFTER_MAX, Payment, Watched
from fep.tasks.replay import Ended, Recorded
from fep.tasks.state import BEFORE_SENDING, DONE, FINAL, OPEN_AT_BANK, Event, State
from fep.tasks.task import Delivery, Task, body_bytes, body_told, digest, end_told
from fep.tasks.tracing import Step

IDS_PER_QUERY_MAX: Final = 500
"""Below SQLite's default limit of bound variables on every build since 2006 (999)."""
OWED, ACKNOWLEDGED = 1, 2
PAGE_BYTES_MAX: Final = 900_000
"""Of a page of tasks: it must fit one line of the protocol, and a statement alone nearly fills it.
"""
ROWS_READ_AT_ONCE: Final = 5000
CHAIN_STEPS_MAX: Final = 2000
"""Of a task's chain, for its trace."""
VIEW_BYTES: Final = 1000
"""Of a task as it is shown, without its result and the bank's words."""

NOT_LOOKED_AT: Final = -1.0
"""``watched_s`` of a success before the first look at its payer's account."""

PROOFS: Final = frozenset({Event.FOUND_DONE, Event.PROVED_DONE, Event.PROVED_REFUSED})
"""What brings an open payment to its end; without bytes two persons did."""
_NOTED: Final = PROOFS | {Event.BODY_TAKEN}
OPEN_STATES: Final = tuple(state.value for state in State if state not in FINAL)


class StaleTaskError(AssertionError):
    """A compare-and-set found another state on disk than in memory: a defect of ours."""


@attrs.frozen
class Bytes:
    """Exact bytes on the wire, kept as evidence."""

    sent: bool
    correlation: str
    data: bytes = attrs.field(repr=False)
    taken_for: str = ""
    """What an answer was taken for (``evidence.told``), or what a request was prepared with
    (``evidence.prepared_told``); a replay compares."""


def received(reply: Reply, taken_for: str = "") -> Bytes:
    """Return a bank's answer as it is kept."""
    return Bytes(sent=False, correlation=reply.correlation, data=reply.raw, taken_for=taken_for)


@attrs.frozen
class Sent:
    """What the evidence engine searches a payment by, from its sending on."""

    bank: BankName
    payer: AccountNumber
    payee: AccountNumber | None
    """None of a batch, whose rows have their own."""
    amount: Cny
    at: dt.datetime
    rows: tuple[SentRow, ...] = ()


@attrs.frozen
class SentRow:
    """The same of one row of a batch."""

    place: int
    payee: AccountNumber
    amount: Cny
    client_ref: ClientRef


def sent_of(bank: BankName, order: Order, at: dt.datetime, reference: ClientRef) -> Sent:
    """Return what a payment that may leave now is searched by."""
    if not isinstance(order, BatchOrder):
        return Sent(bank, order.payer, order.payee.account, order.amount, at)
    rows = tuple(
        SentRow(place, row.payee.account, row.amount, row_ref(reference, place))
        for place, row in enumerate(order.rows)
    )
    return Sent(bank, order.payer, None, order.amount, at, rows)


@attrs.frozen
class Change:
    """One step of one task, or several that belong to one moment."""

    seq: int
    before: State
    after: State
    events: tuple[Event, ...]
    cause: str
    at: dt.datetime
    columns: Mapping[str, Any] = attrs.Factory(dict)
    wire: Bytes | None = None
    sent: Sent | None = None
    """Set where the payment's first byte may leave from now on."""
    watched: bool | None = None
    """True: its success is watched from now on; False: not any more."""
    row_refs: Mapping[int, str] = attrs.Factory(dict)
    """The bank's references of a batch's rows, as far as they were told now."""


@attrs.frozen
class Known:
    """What the store holds of an id that is submitted again."""

    seq: int
    client: ClientName
    bank: BankName
    kind: Kind
    state: State
    body_digest: str | None


@attrs.frozen
class NewTask:
    """A row to insert."""

    task: Task
    body: bytes | None


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[at : at + IDS_PER_QUERY_MAX] for at in range(0, len(ids), IDS_PER_QUERY_MAX))


def known(connection: sa.Connection, ids: Sequence[str]) -> dict[TaskId, Known]:
    """Return what is stored of these ids."""
    columns = (
        task.c.seq,
        task.c.task_id,
        task.c.client,
        task.c.bank,
        task.c.kind,
        task.c.state,
        task.c.body_digest,
    )
    found: dict[TaskId, Known] = {}
    for chunk in _chunks(ids):
        for row in connection.execute(sa.select(*columns).where(task.c.task_id.in_(chunk))):
            found[TaskId(row[1])] = Known(
                row[0], ClientName(row[2]), BankName(row[3]), Kind(row[4]), State(row[5]), row[6]
            )
    return found


_INSERTED: Final = (
    "seq",
    "task_id",
    "client",
    "bank",
    "kind",
    "priority",
    "state",
    "submitted_at",
    "expires_at",
    "body",
    "body_digest",
    "updated_at",
)
ROWS_AT_ONCE: Final = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Rows of one statement: few sizes, so that each is prepared once."""


_SKIP: Final = "ON CONFLICT (task_id) DO NOTHING"
_EVENT_COLUMNS: Final = (
    "task_seq",
    "at",
    "event",
    "state",
    "cause",
    "configuration",
    "digest",
    "detail",
)
_MESSAGE_COLUMNS: Final = (
    "task_seq",
    "bank",
    "direction",
    "at",
    "correlation",
    "digest",
    "bytes",
)


@functools.cache
def _insert_sql(paramstyle: str, table: str, names: tuple[str, ...], rows: int, end: str) -> str:
    mark = "?" if paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(names))})"
    # Made of our own tables' names and marks: nothing of a client stands in it.
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([row] * rows)} {end}"  # noqa: S608


def _driver(connection: sa.Connection) -> Any:  # noqa: ANN401 - the driver's own
    """Return the driver's connection, for statements that are part of every commit."""
    return connection.connection.dbapi_connection


def _insert_rows(
    connection: sa.Connection,
    table: str,
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    end: str = "",
) -> int:
    """Insert rows, many a statement; returns how many were written.

    A statement with many rows is one step of the database: Python's lock is not fought for at
    each row.
    """
    style = connection.dialect.paramstyle
    driver = _driver(connection)
    written = at = 0
    while at < len(rows):
        size = next(size for size in ROWS_AT_ONCE if size <= len(rows) - at)
        values = tuple(itertools.chain.from_iterable(rows[at : at + size]))
        sql = _insert_sql(style, table, names, size, end)
        written += driver.execute(sql, values).rowcount
        at += size
    return written


def insert(connection: sa.Connection, tasks: Sequence[NewTask], configuration: str) -> int:
    """Insert new tasks with their first event, in a few statements; returns how many are new.

    A task whose id is stored already is left out. The places of the tasks are without a gap.
    """
    if not tasks:
        return 0
    written = _insert_rows(connection, "task", _INSERTED, [_values(new) for new in tasks], _SKIP)
    first, last = tasks[0].task.seq, tasks[-1].task.seq
    sql = _first_events_sql(connection.dialect.paramstyle)
    _driver(connection).execute(sql, (configuration, first, last))
    return written


@functools.cache
def _first_events_sql(paramstyle: str) -> str:
    mark = "?" if paramstyle == "qmark" else "%s"
    # Of our own tables' names and marks.
    return (
        f"INSERT INTO task_event ({', '.join(_EVENT_COLUMNS)})"  # noqa: S608
        " SELECT seq, submitted_at, 'submitted', state, 'task.submit of client ' || client,"
        f" CAST({mark} AS TEXT), coalesce(body_digest, ''), ''"
        f" FROM task WHERE seq BETWEEN {mark} AND {mark} ORDER BY seq"
    )


def _values(new: NewTask) -> tuple[Any, ...]:
    one = new.task
    at = text_of(one.submitted_at)
    return (
        one.seq,
        one.task_id,
        one.client,
        one.bank,
        one.kind.value,
        one.priority,
        one.state.value,
        at,
        text_of(one.expires_at),
        new.body,
        None if new.body is None else digest(new.body),
        at,
    )


text_of: Final = functools.lru_cache(maxsize=1024)(to_text)
"""Tasks that came together share their times."""


def apply(connection: sa.Connection, changes: Iterable[Change], configuration: str) -> None:
    """Write changes in a few statements, each a compare-and-set on its state.

    Raises:
        StaleTaskError: a row was not in the state it must be in; roll the work back.
    """
    events: list[tuple[Any, ...]] = []
    messages: list[tuple[Any, ...]] = []
    for batch in _apart(changes):
        alike: dict[tuple[str, ...], list[Change]] = {}
        for change in batch:
            alike.setdefault(tuple(change.columns), []).append(change)
        for names, several in alike.items():
            if _update(connection, names, several) != len(several):
                known = [(one.seq, one.before.value, one.events) for one in several]
                msg = f"one of {known} moved on"
                raise StaleTaskError(msg)
        for change in batch:
            wire_digest = ""
            if change.wire is not None:
                messages.append(_message_row(change.seq, "", change.wire, change.at))
                wire_digest = messages[-1][_MESSAGE_COLUMNS.index("digest")]
            events += _event_rows(change, configuration, wire_digest)
        _note_payments(connection, batch)
    _insert_rows(connection, "message", _MESSAGE_COLUMNS, messages)
    _insert_rows(connection, "task_event", _EVENT_COLUMNS, events)


def _apart(changes: Iterable[Change]) -> Iterable[list[Change]]:
    """Yield the changes in order, no two of one task together."""
    batch: dict[int, Change] = {}
    for change in changes:
        if change.seq in batch:
            yield list(batch.values())
            batch = {}
        batch[change.seq] = change
    yield list(batch.values())


def _event_rows(change: Change, configuration: str, wire_digest: str) -> list[tuple[Any, ...]]:
    at, state, cause = text_of(change.at), change.after.value, change.cause
    detail = "" if change.wire is None else change.wire.taken_for
    if "\0" in cause or "\0" in detail:
        cause, detail = chain.kept_text(cause), chain.kept_text(detail)
    return [
        (
            change.seq,
            at,
            event.value,
            state,
            cause,
            configuration,
            wire_digest,
            _noted(change, event, detail) if event in _NOTED else detail,
        )
        for event in change.events
    ]


def _noted(change: Change, event: Event, detail: str) -> str:
    """Return the detail of a step whose words no kept bytes tell: a digest of them."""
    columns = change.columns
    if event is Event.BODY_TAKEN:
        return body_told(columns["body_digest"]) if "body_digest" in columns else detail
    if change.wire is None and {"bank_code", "bank_message"} <= columns.keys():
        return end_told(columns["bank_code"], columns["bank_message"], columns.get("result"))
    return detail


def _update(connection: sa.Connection, names: tuple[str, ...], changes: Sequence[Change]) -> int:
    """Set these columns, and return how many rows were as they must be."""
    rows = [
        (
            change.seq,
            change.before.value,
            change.after.value,
            text_of(change.at),
            *change.columns.values(),
        )
        for change in changes
    ]
    driver = _driver(connection)
    updated = at = 0
    while at < len(rows):
        size = next(size for size in ROWS_AT_ONCE if size <= len(rows) - at)
        sql = _update_sql(connection.dialect.paramstyle, names, size)
        values = tuple(itertools.chain.from_iterable(rows[at : at + size]))
        updated += driver.execute(sql, values).rowcount
        at += size
    return updated


@functools.cache
def _update_sql(paramstyle: str, names: tuple[str, ...], rows: int) -> str:
    mark = "?" if paramstyle == "qmark" else "%s"
    assert set(names) <= set(task.c.keys())
    columns = ("state", "updated_at", *names)
    # Both databases name what VALUES gives; "WITH" in front would hide the count of rows from one.
    sets = ", ".join(f"{name} = given.column{3 + place}" for place, name in enumerate(columns))
    row = f"({', '.join([mark] * (2 + len(columns)))})"
    # Made of our own columns' names and marks: nothing of a client stands in it.
    return (
        f"UPDATE task SET {sets} FROM (VALUES {', '.join([row] * rows)}) AS given"  # noqa: S608
        " WHERE seq = given.column1 AND state = given.column2"
    )


def note(  # noqa: PLR0913 - one row of the chain has so many columns
    connection: sa.Connection,
    seq: int,
    state: State,
    event: str,
    cause: str,
    at: dt.datetime,
    configuration: str,
    *,
    wire: Bytes | None = None,
    columns: Mapping[str, Any] | None = None,
) -> None:
    """Record something that does not change the state: an inquiry, a late answer, a proposal."""
    if columns:
        connection.execute(sa.update(task).where(task.c.seq == seq).values(**columns))
    if wire is not None:
        add_message(connection, seq, "", wire, at)
    row = (
        seq,
        text_of(at),
        event,
        state.value,
        chain.kept_text(cause),
        configuration,
        "" if wire is None else digest(wire.data),
        "" if wire is None else chain.kept_text(wire.taken_for),
    )
    _insert_rows(connection, "task_event", _EVENT_COLUMNS, [row])


HELD_ANSWER: Final = "answered"
"""The event of an answer to a payment that is held after a restore."""


def note_held_answer(
    connection: sa.Connection,
    *,
    seq: int,
    cause: str,
    wire: Bytes,
    at: dt.datetime,
    configuration: str,
) -> None:
    """Keep an answer to a payment that is held: what it says is for a person.

    It is noted as a step, so that it is never taken up as an answer to the sending that follows the
    release.
    """
    stands = sa.select(task.c.state).where(task.c.seq == seq)
    state = State(connection.execute(stands).scalar_one())
    note(connection, seq, state, HELD_ANSWER, cause, at, configuration, wire=wire)


def held_answers(connection: sa.Connection, seqs: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return when these payments, while held, were last answered by their bank, and the cause."""
    found: dict[int, tuple[str, str]] = {}
    for at in range(0, len(seqs), IDS_PER_QUERY_MAX):
        mine = task_event.c.task_seq.in_(seqs[at : at + IDS_PER_QUERY_MAX])
        query = sa.select(task_event.c.task_seq, task_event.c.at, task_event.c.cause)
        query = query.where(mine, task_event.c.event == HELD_ANSWER).order_by(task_event.c.seq)
        found |= {row[0]: (row[1], row[2]) for row in connection.execute(query)}
    return found


def answered_while_held(connection: sa.Connection) -> list[TaskId]:
    """Return the payments that were not sent from here and that a bank has answered for."""
    query = (
        sa.select(task.c.task_id)
        .where(
            task.c.state.in_([state.value for state in BEFORE_SENDING]),
            task.c.kind.in_([kind.value for kind in MOVES_MONEY]),
            sa.exists().where(
                task_event.c.task_seq == task.c.seq, task_event.c.event == HELD_ANSWER
            ),
        )
        .order_by(task.c.seq)
    )
    return [TaskId(row[0]) for row in connection.execute(query)]


def add_message(
    connection: sa.Connection, seq: int | None, bank: str, wire: Bytes, at: dt.datetime
) -> None:
    """Keep exact bytes; ``seq`` is None for an answer that matched nothing."""
    row = _message_row(seq, bank, wire, at)
    _insert_rows(connection, "message", _MESSAGE_COLUMNS, [row])


def _message_row(seq: int | None, bank: str, wire: Bytes, at: dt.datetime) -> tuple[Any, ...]:
    return (
        seq,
        bank,
        "sent" if wire.sent else "received",
        text_of(at),
        wire.correlation,
        digest(wire.data),
        wire.data,
    )


def _task(row: Any) -> Task:  # noqa: ANN401 - a row is untyped by nature
    kind = Kind(row.kind)
    return Task(
        seq=row.seq,
        task_id=TaskId(row.task_id),
        client=ClientName(row.client),
        bank=BankName(row.bank),
        kind=kind,
        priority=row.priority,
        state=State(row.state),
        submitted_at=from_text(row.submitted_at),
        expires_at=from_text(row.expires_at),
        offers=row.offers,
        body=None if row.body is None else stored_body(kind, row.body),
        client_ref=None if row.client_ref is None else ClientRef(row.client_ref),
        bank_ref=row.bank_ref,
        sent_at=None if row.sent_at is None else from_text(row.sent_at),
        sent_to=row.sent_to,
        inquiries=row.inquiries,
        inquire_at=None if row.inquire_at is None else from_text(row.inquire_at),
    )


def stored_body(kind: Kind, data: bytes) -> Body:
    """Return the body that :func:`body_bytes` wrote."""
    return parse_body(kind, orjson.loads(data)["params"])


_BANKS: Final = sa.text(
    "WITH RECURSIVE found(bank) AS (SELECT min(bank) FROM task UNION ALL"
    " SELECT (SELECT min(task.bank) FROM task WHERE task.bank > found.bank)"
    " FROM found WHERE found.bank IS NOT NULL)"
    " SELECT bank FROM found WHERE bank IS NOT NULL"
)
"""One look into the index for each bank, however many tasks are at their end."""
_OPEN_ROWS: Final = (
    sa.select(
        task.c.seq,
        task.c.task_id,
        task.c.client,
        task.c.kind,
        task.c.priority,
        task.c.submitted_at,
        task.c.expires_at,
        task.c.offers,
        task.c.body,
        task.c.client_ref,
        # An empty text costs as much to read as a long one, and nothing costs nothing.
        sa.func.nullif(task.c.bank_ref, ""),
        task.c.sent_at,
        task.c.sent_to,
        task.c.inquiries,
        task.c.inquire_at,
    )
    .where(task.c.bank == sa.bindparam("bank"), task.c.state == sa.bindparam("state"))
    .order_by(task.c.seq)
)


_OPEN_ROWS_BETWEEN: Final = _OPEN_ROWS.where(
    task.c.seq.between(sa.bindparam("first"), sa.bindparam("last"))
)


def open_tasks(
    connection: sa.Connection, bank: BankName | None = None, between: tuple[int, int] | None = None
) -> list[Task]:
    """Return every task that is not at its end, in the order of admission.

    Args:
        connection: a reader's.
        bank: only this one's; None: all banks'.
        between: only those with a place in the queue from the first to the last.
    """
    found: list[Task] = []
    banks = [bank] if bank is not None else [row[0] for row in connection.execute(_BANKS)]
    for one_bank in banks:
        for state in OPEN_STATES:
            _read_open(connection, BankName(one_bank), State(state), found, between)
    # A few runs that are in order each: merged quickly.
    found.sort(key=attrgetter("seq"))
    return found


def _read_open(
    connection: sa.Connection,
    bank: BankName,
    state: State,
    found: list[Task],
    between: tuple[int, int] | None,
) -> None:
    """Add the tasks of one bank in one state: there may be a million, so this is all by hand."""
    moment = functools.lru_cache(maxsize=4096)(dt.datetime.fromisoformat)
    kinds = {kind.value: kind for kind in Kind}
    clients: dict[str, ClientName] = {}
    values: dict[str, Any] = {"bank": bank, "state": state.value}
    if between is None:
        result = connection.execute(_OPEN_ROWS, values)
    else:
        first, last = between
        result = connection.execute(_OPEN_ROWS_BETWEEN, values | {"first": first, "last": last})
    # The driver's own rows: the columns' names are of no use here.
    while rows := result.cursor.fetchmany(ROWS_READ_AT_ONCE):
        for (
            seq, task_id, client, kind_text, priority, submitted_at, expires_at, offers, body,
            client_ref, bank_ref, sent_at, sent_to, inquiries, inquire_at,
        ) in rows:  # fmt: skip
            kind = kinds[kind_text]
            one = Task(
                seq,
                task_id,
                clients.setdefault(client, client),
                bank,
                kind,
                priority,
                state,
                moment(submitted_at),
                moment(expires_at),
                offers,
            )
            if body is not None:
                one.body = stored_body(kind, body)
            if client_ref or bank_ref or sent_at or inquiries or inquire_at:
                one.client_ref, one.bank_ref, one.inquiries = client_ref, bank_ref or "", inquiries
                one.sent_at = None if sent_at is None else moment(sent_at)
                one.sent_to = sent_to
                one.inquire_at = None if inquire_at is None else moment(inquire_at)
            found.append(one)
    result.close()


def one(connection: sa.Connection, task_id: str) -> Task | None:
    """Return one task with its body, at its end or not."""
    row = connection.execute(sa.select(task).where(task.c.task_id == task_id)).first()
    return None if row is None else _task(row)


def last_seq(connection: sa.Connection) -> int:
    """Return the highest place given so far, 0 at first."""
    found = connection.execute(sa.select(sa.func.coalesce(sa.func.max(task.c.seq), 0)))
    return int(found.scalar_one())


def owed(
    connection: sa.Connection, client: ClientName | None = None
) -> list[tuple[ClientName, TaskId]]:
    """Return whose result was not acknowledged yet, oldest first; of one client or of all."""
    query = (
        sa.select(task.c.client, task.c.task_id).where(task.c.delivery == OWED).order_by(task.c.seq)
    )
    if client is not None:
        query = query.where(task.c.client == client)
    rows = connection.execute(query)
    return [(ClientName(row[0]), TaskId(row[1])) for row in rows]


def deliveries(
    connection: sa.Connection, ids: Sequence[str], *, owed_only: bool = False
) -> list[Delivery]:
    """Return the results of these tasks as the client is told them.

    Args:
        connection: a reader's.
        ids: the tasks.
        owed_only: leave out what the client has got, elsewhere and meanwhile.
    """
    query = sa.select(task)
    if owed_only:
        query = query.where(task.c.delivery == OWED)
    found = []
    for chunk in _chunks(ids):
        for row in connection.execute(query.where(task.c.task_id.in_(chunk))):
            found.append(  # noqa: PERF401 - rows of several chunks
                Delivery(
                    task_id=TaskId(row.task_id),
                    state=State(row.state),
                    result=None if row.result is None else orjson.loads(row.result),
                    bank_code=row.bank_code,
                    bank_message=row.bank_message,
                    at=row.updated_at,
                )
            )
    return found


def acknowledge(connection: sa.Connection, given: Sequence[tuple[str, str, str]]) -> None:
    """Note that the client has that result; a later one is owed anew.

    Args:
        connection: the writer's.
        given: task id, state and moment of what was delivered: a batch comes back row by row, and
            is in the same state after each.
    """
    at = 0
    while at < len(given):
        size = next(size for size in ROWS_AT_ONCE if size <= len(given) - at)
        values = tuple(itertools.chain.from_iterable(given[at : at + size]))
        _driver(connection).execute(_acknowledge_sql(connection.dialect.paramstyle, size), values)
        at += size


@functools.cache
def _acknowledge_sql(paramstyle: str, rows: int) -> str:
    mark = "?" if paramstyle == "qmark" else "%s"
    given = ", ".join([f"({mark}, {mark}, {mark})"] * rows)
    return (
        f"UPDATE task SET delivery = {ACKNOWLEDGED} FROM (VALUES {given}) AS given"  # noqa: S608
        " WHERE task_id = given.column1 AND state = given.column2"
        f" AND updated_at = given.column3 AND delivery = {OWED}"
    )


def spent(
    connection: sa.Connection, balances: Mapping[TaskId, AccountNumber], but: ClientName
) -> dict[AccountNumber, Cny]:
    """Return by payer the payments that are open, and those done since a balance was asked for.

    Events have the order of their commits, so no clock takes part in this.

    Args:
        connection: a reader's.
        balances: queries for balances, and whose each is.
        but: leave this client's open payments out.
    """
    events = connection.execute(
        sa.select(task.c.task_id, sa.func.max(task_event.c.seq))
        .join(task_event, task_event.c.task_seq == task.c.seq)
        .where(task.c.task_id.in_(list(balances)), task_event.c.event == Event.BODY_TAKEN.value)
        .group_by(task.c.task_id)
    )
    asked: dict[str, int] = {row[0]: row[1] for row in events}
    since: dict[AccountNumber, int] = {}
    for task_id, account in balances.items():
        # Of two questions for one account the earlier counts: rather too much than too little.
        at = asked.get(task_id, 0)
        since[account] = min(at, since.get(account, at))
    payments = sa.and_(
        task.c.kind.in_([kind.value for kind in MOVES_MONEY]),
        task.c.body.is_not(None),
    )
    none = sa.literal(None, sa.BigInteger)
    under_way = sa.select(task.c.kind, task.c.body, none).where(
        payments, task.c.client != but, task.c.state.in_(OPEN_STATES)
    )
    done = (
        sa.select(task.c.kind, task.c.body, task_event.c.seq)
        .join(task, task.c.seq == task_event.c.task_seq)
        .where(
            task_event.c.seq > min(since.values(), default=0),
            task_event.c.event.in_([event.value for event in DONE]),
            payments,
        )
    )
    sums: dict[AccountNumber, Cny] = {}
    for kind, body, seq in (*connection.execute(under_way), *connection.execute(done)):
        order = stored_body(Kind(kind), body)
        assert isinstance(order, Order)
        account = order.payer
        if account in since and (seq is None or seq > since[account]):
            sums[account] = sums.get(account, ZERO) + order.amount
    return sums


def _view(row: Any) -> dict[str, Any]:  # noqa: ANN401
    view: dict[str, Any] = {
        "task_id": row.task_id,
        "client": row.client,
        "bank": row.bank,
        "kind": row.kind,
        "priority": row.priority,
        "state": row.state,
        "submitted_at": row.submitted_at,
        "expires_at": row.expires_at,
        "updated_at": row.updated_at,
        "offers": row.offers,
        "result": None if row.result is None else orjson.loads(row.result),
        "bank_code": row.bank_code,
        "bank_message": row.bank_message,
        "acknowledged": row.delivery == ACKNOWLEDGED,
    }
    if row.archived is not None:
        view["archived"] = archive_name(row.archived)
    names = ["client_ref", "sent_at"]
    if row.state in OPEN_STATES:
        # What persons closed may bear it still, by an earlier release.
        names.append("inquire_at")
    for name in names:
        if (value := getattr(row, name)) is not None:
            view[name] = value
    if row.bank_ref:
        view["bank_ref"] = row.bank_ref
    return view


def view(connection: sa.Connection, task_id: str) -> dict[str, Any] | None:
    """Return one task as ``task.get`` shows it, None when there is none."""
    row = connection.execute(sa.select(task).where(task.c.task_id == task_id)).first()
    return None if row is None else _view(row)


def archive_of(connection: sa.Connection, task_id: str) -> str | None:
    """Return the year of the archive that has the rest of a task, None when the store has it."""
    query = sa.select(task.c.archived).where(task.c.task_id == task_id)
    found: str | None = connection.execute(query).scalar()
    return found


def page(
    connection: sa.Connection,
    *,
    client: str | None,
    state: str | None,
    bank: str | None,
    limit: int,
    before: int | None,
    kind: str | None = None,
    find: str = "",
) -> tuple[list[dict[str, Any]], int | None]:
    """Return tasks newest first, and the ``before`` of the next page, None at the end.

    A page has fewer than ``limit`` tasks where so many would not fit one line.

    Args:
        connection: a reader's.
        client: only this one's.
        state: only those in it.
        bank: only this one's.
        limit: how many at most.
        before: only those admitted before this place.
        kind: only those of it.
        find: the beginning of an id, or a whole reference; what is found has no next page.
    """
    others = [
        column == value
        for column, value in ((task.c.client, client), (task.c.kind, kind))
        if value is not None
    ]
    if before is not None:
        others.append(task.c.seq < before)
    places = _places(connection, state, bank, others, limit, find)
    query = sa.select(task).order_by(task.c.seq.desc()).limit(limit + 1)
    query = query.where(*others) if places is None else query.where(task.c.seq.in_(places))
    shown: list[dict[str, Any]] = []
    size, last = 0, 0
    for row in connection.execute(query):
        size += VIEW_BYTES + len(row.result or b"") + len(row.bank_message.encode())
        if shown and (len(shown) == limit or size > PAGE_BYTES_MAX):
            return shown, None if find else last
        shown.append(_view(row))
        last = row.seq
    return shown, None


def _places(
    connection: sa.Connection,
    state: str | None,
    bank: str | None,
    others: Sequence[sa.ColumnElement[bool]],
    limit: int,
    find: str,
) -> list[int] | None:
    """Return the places of the tasks of a page, None for whatever is newest.

    The index is of bank and state: each pair of them is asked by itself for its newest, so that a
    rare state among many tasks is found as quickly as a frequent one.
    """
    if find:
        wanted = [*others]
        wanted += [task.c.state == state] if state is not None else []
        wanted += [task.c.bank == bank] if bank is not None else []
        found = sa.select(task.c.seq).where(_begins(connection, find), *wanted)
        named = sa.select(task.c.seq).where(task.c.client_ref == find, *wanted)
        by_id = connection.scalars(found.order_by(task.c.task_id).limit(limit)).all()
        return [*by_id, *connection.scalars(named.limit(limit))]
    if state is None and bank is None:
        return None
    banks = [bank] if bank is not None else [row[0] for row in connection.execute(_BANKS)]
    states = [state] if state is not None else [one.value for one in State]
    places: list[int] = []
    for one_bank, one_state in itertools.product(banks, states):
        newest = sa.select(task.c.seq).where(
            task.c.bank == one_bank, task.c.state == one_state, *others
        )
        places += connection.scalars(newest.order_by(task.c.seq.desc()).limit(limit + 1))
    return sorted(places, reverse=True)[: limit + 1]


def _begins(connection: sa.Connection, text: str) -> sa.ColumnElement[bool]:
    """Return the condition that an id begins so, in the form whose index the database has."""
    if connection.dialect.name != "sqlite":
        return task.c.task_id.startswith(text, autoescape=True)
    return sa.and_(task.c.task_id >= text, task.c.task_id < text + "\U0010ffff")


def why(connection: sa.Connection, task_id: str) -> list[dict[str, Any]]:
    """Return the causal chain of a task, oldest first."""
    seq = sa.select(task.c.seq).where(task.c.task_id == task_id).scalar_subquery()
    return [
        {
            "at": row.at,
            "event": row.event,
            "state": row.state,
            "cause": row.cause,
            "configuration": row.configuration,
            **({"digest": row.digest} if row.digest else {}),
            **({"detail": row.detail} if row.detail else {}),
        }
        for row in connection.execute(
            sa.select(task_event).where(task_event.c.task_seq == seq).order_by(task_event.c.seq)
        )
    ]


def chains(connection: sa.Connection, places: Sequence[int]) -> dict[int, list[Step]]:
    """Return the beginnings of the causal chains of these tasks, oldest first."""
    columns = (task_event.c.at, task_event.c.event, task_event.c.state)
    query = (
        sa.select(*columns)
        .where(task_event.c.task_seq == sa.bindparam("place"))
        .order_by(task_event.c.seq)
        .limit(CHAIN_STEPS_MAX)
    )
    return {
        place: [Step(*row) for row in connection.execute(query, {"place": place})]
        for place in places
    }


def counts(connection: sa.Connection) -> dict[str, dict[str, int]]:
    """Return how many tasks stand in each state, by bank."""
    rows = connection.execute(
        sa.select(task.c.bank, task.c.state, sa.func.count()).group_by(task.c.bank, task.c.state)
    )
    found: dict[str, dict[str, int]] = {}
    for bank, state, number in rows:
        found.setdefault(bank, {})[state] = number
    return found


def drained(connection: sa.Connection) -> set[BankName]:
    """Return the banks whose lane an operator stopped."""
    rows = connection.execute(sa.select(lane.c.bank).where(lane.c.drained == 1))
    return {BankName(row[0]) for row in rows}


def set_drained(connection: sa.Connection, bank: str, *, value: bool) -> None:
    """Stop or start a bank's lane, also over restarts."""
    connection.execute(sa.delete(lane).where(lane.c.bank == bank))
    connection.execute(sa.insert(lane).values(bank=bank, drained=int(value)))


@attrs.frozen
class Proposal:
    """One person's proposal to close an unknown."""

    outcome: State
    evidence: str
    by: str


def proposal(connection: sa.Connection, seq: int) -> Proposal | None:
    """Return the open proposal of a task."""
    row = connection.execute(sa.select(resolution).where(resolution.c.task_seq == seq)).first()
    return None if row is None else Proposal(State(row.outcome), row.evidence, row.proposed_by)


def propose(connection: sa.Connection, seq: int, given: Proposal, at: dt.datetime) -> None:
    """Store a proposal in place of an earlier one."""
    connection.execute(sa.delete(resolution).where(resolution.c.task_seq == seq))
    connection.execute(
        sa.insert(resolution).values(
            task_seq=seq,
            outcome=given.outcome.value,
            evidence=chain.kept_text(given.evidence),
            proposed_by=given.by,
            proposed_at=to_text(at),
        )
    )


def held_since(connection: sa.Connection) -> dt.datetime | None:
    """Return when the copy was made that is the store now, None when nobody must look at that."""
    query = sa.select(sa.func.min(restored.c.taken_at)).where(restored.c.released_at.is_(None))
    found = connection.execute(query).scalar()
    return None if found is None else from_text(found)


def release(
    connection: sa.Connection, who: str, evidence: str, at: dt.datetime, configuration: str
) -> None:
    """Note that a person has looked, and payments may be sent again.

    What was proposed for those that are held is forgotten: it told of an earlier sending, and would
    close the next one.
    """
    who, evidence = chain.kept_text(who), chain.kept_text(evidence)
    proposed = (
        sa.select(task.c.seq, task.c.state)
        .join(resolution, resolution.c.task_seq == task.c.seq)
        .where(task.c.state.in_([state.value for state in BEFORE_SENDING]))
        .order_by(task.c.seq)
    )
    for seq, state in connection.execute(proposed).all():
        connection.execute(sa.delete(resolution).where(resolution.c.task_seq == seq))
        told = "payments were released: what was proposed for it as held is forgotten"
        note(connection, seq, State(state), "unproposed", told, at, configuration)
    connection.execute(
        sa.update(restored)
        .where(restored.c.released_at.is_(None))
        .values(released_at=to_text(at), released_by=who, evidence=evidence)
    )
    cause = chain.released_told(who, evidence)
    chain.note(connection, chain.RELEASED, cause, at, configuration=configuration)


def encoded(kind: Kind, body: Body) -> dict[str, Any]:
    """Return the columns that hold a body."""
    data = body_bytes(kind, body)
    return {"body": data, "body_digest": digest(data)}


# -- what the evidence engine searches ------------------------------------------------------------

_PAYMENT_COLUMNS: Final = (
    "task_seq",
    "bank",
    "payer",
    "payee",
    "amount_fen",
    "sent_at",
    "waited_s",
)
_ROW_COLUMNS: Final = (
    "task_seq",
    "place",
    "payer",
    "payee",
    "amount_fen",
    "sent_at",
    "client_ref",
)
_ROW_AGAIN: Final = "ON CONFLICT (task_seq, place) DO UPDATE SET sent_at = excluded.sent_at"
_AGAIN: Final = (
    "ON CONFLICT (task_seq) DO UPDATE SET sent_at = excluded.sent_at, waited_s = excluded.waited_s"
)


def _note_payments(connection: sa.Connection, changes: Sequence[Change]) -> None:
    """Write what the evidence engine must know of these changes, no two of one payment."""
    _put_payments(connection, [(one.seq, one.sent, 0.0) for one in changes if one.sent])
    for change in changes:
        if change.row_refs:
            _note_row_refs(connection, change.seq, change.row_refs)
    for watched, watched_s in ((True, NOT_LOOKED_AT), (False, None)):
        seqs = [one.seq for one in changes if one.watched is watched]
        for at in range(0, len(seqs), IDS_PER_QUERY_MAX):
            mine = payment.c.task_seq.in_(seqs[at : at + IDS_PER_QUERY_MAX])
            connection.execute(sa.update(payment).where(mine).values(watched_s=watched_s))


def _put_payments(connection: sa.Connection, payments: Sequence[tuple[int, Sent, float]]) -> None:
    values = [
        (seq, sent.bank, sent.payer, sent.payee or "", sent.amount.fen, text_of(sent.at), waited_s)
        for seq, sent, waited_s in payments
    ]
    _insert_rows(connection, "payment", _PAYMENT_COLUMNS, values, _AGAIN)
    rows = [
        (seq, row.place, sent.payer, row.payee, row.amount.fen, text_of(sent.at), row.client_ref)
        for seq, sent, _ in payments
        for row in sent.rows
    ]
    _insert_rows(connection, "payment_row", _ROW_COLUMNS, rows, _ROW_AGAIN)


def _note_row_refs(connection: sa.Connection, seq: int, refs: Mapping[int, str]) -> None:
    of_row = (payment_row.c.task_seq == seq, payment_row.c.place == sa.bindparam("at"))
    update = sa.update(payment_row).where(*of_row).values(bank_ref=sa.bindparam("told"))
    connection.execute(update, [{"at": place, "told": ref} for place, ref in refs.items()])


def keep_waited(connection: sa.Connection, seq: int, sent: Sent, waited_s: float) -> None:
    """Keep for how long a payment is unknown, so that a restart need not begin anew."""
    _put_payments(connection, [(seq, attrs.evolve(sent, rows=()), waited_s)])


def waited(connection: sa.Connection, seqs: Sequence[int]) -> dict[int, float]:
    """Return for how long these payments were unknown while a daemon lived."""
    found: dict[int, float] = {}
    for at in range(0, len(seqs), IDS_PER_QUERY_MAX):
        query = sa.select(payment.c.task_seq, payment.c.waited_s)
        chunk = seqs[at : at + IDS_PER_QUERY_MAX]
        for row in connection.execute(query.where(payment.c.task_seq.in_(chunk))):
            found[row[0]] = row[1]
    return found


def of_reference(connection: sa.Connection, bank: str, reference: str) -> Task | None:
    """Return the task that was sent to a bank under our reference, its own or a row's."""
    named = task.c.client_ref == reference
    if (refs := batch_refs(reference)) is not None:
        named = task.c.client_ref.between(*refs)
    found = connection.execute(sa.select(task).where(named, task.c.bank == bank).limit(2)).all()
    # Of two nobody knows which it is.
    return _task(found[0]) if len(found) == 1 else None


_SEARCHED: Final = (
    payment.c.task_seq,
    task.c.task_id,
    task.c.client_ref,
    task.c.bank_ref,
    payment.c.payer,
    payment.c.payee,
    payment.c.amount_fen,
    payment.c.sent_at,
)
_ROW_SEARCHED: Final = (
    payment_row.c.task_seq,
    task.c.task_id,
    payment_row.c.client_ref,
    payment_row.c.bank_ref,
    payment_row.c.payer,
    payment_row.c.payee,
    payment_row.c.amount_fen,
    payment_row.c.sent_at,
    payment_row.c.place,
)


def _watched(row: Any) -> Watched:  # noqa: ANN401
    return Watched(
        row.task_seq,
        TaskId(row.task_id),
        Payment(
            client_ref=ClientRef(row.client_ref),
            payer=AccountNumber(row.payer),
            payee=AccountNumber(row.payee),
            amount=Cny(row.amount_fen),
            sent_at=from_text(row.sent_at),
            bank_ref=row.bank_ref,
        ),
        getattr(row, "place", None),
    )


def rivals(connection: sa.Connection, one: Payment) -> list[Payment]:
    """Return the payments that one line without a reference could be as well as this one.

    Of the same amount, between the same two accounts in either direction, sent about that time;
    this one is among them.
    """
    reach = dt.timedelta(days=DAYS_AFTER_MAX + 2)
    found: list[Payment] = []
    for table, columns in ((payment, _SEARCHED), (payment_row, _ROW_SEARCHED)):
        query = (
            sa.select(*columns)
            .join(task, task.c.seq == table.c.task_seq)
            .where(
                sa.or_(
                    sa.and_(table.c.payer == one.payer, table.c.payee == one.payee),
                    sa.and_(table.c.payer == one.payee, table.c.payee == one.payer),
                ),
                table.c.sent_at.between(text_of(one.sent_at - reach), text_of(one.sent_at + reach)),
                table.c.amount_fen == one.amount.fen,
            )
        )
        found += [_watched(row).payment for row in connection.execute(query)]
    return found


def is_blind(connection: sa.Connection, about: dt.datetime) -> bool:
    """Say whether payments sent about a moment may be unknown here: a copy was put back since.

    What was sent between the copy and its coming back is not in it, released or not.
    """
    reach = dt.timedelta(days=DAYS_AFTER_MAX + 2)
    until = sa.func.coalesce(restored.c.restored_at, restored.c.released_at)
    query = sa.select(restored.c.seq).where(
        restored.c.taken_at <= text_of(about + reach),
        sa.or_(until.is_(None), until >= text_of(about - reach)),
    )
    return connection.execute(query.limit(1)).first() is not None


def watched_payers(connection: sa.Connection, bank: str) -> list[AccountNumber]:
    """Return the accounts with successes that are watched."""
    query = (
        sa.select(payment.c.payer)
        .where(payment.c.bank == bank, payment.c.watched_s.is_not(None))
        .distinct()
        .order_by(payment.c.payer)
    )
    return [AccountNumber(row[0]) for row in connection.execute(query)]


def watched_since(connection: sa.Connection, bank: str, payer: str) -> dt.datetime | None:
    """Return when the oldest success that is watched was sent, None when none is."""
    query = sa.select(sa.func.min(payment.c.sent_at)).where(*_watched_of(bank, payer))
    found = connection.execute(query).scalar_one()
    return None if found is None else from_text(found)


def watched_alike(
    connection: sa.Connection, bank: str, payer: str, amounts: Sequence[Cny]
) -> list[Watched]:
    """Return the successes of an account, rows of batches too, that have one of these amounts."""
    found: list[Watched] = []
    for at in range(0, len(amounts), IDS_PER_QUERY_MAX):
        chunk = [amount.fen for amount in amounts[at : at + IDS_PER_QUERY_MAX]]
        watched = _watched_of(bank, payer)
        single = (
            sa.select(*_SEARCHED)
            .join(task, task.c.seq == payment.c.task_seq)
            # A batch's own sum is on no line.
            .where(*watched, payment.c.payee != "", payment.c.amount_fen.in_(chunk))
            .order_by(payment.c.task_seq)
        )
        of_batches = (
            sa.select(*_ROW_SEARCHED)
            .join(task, task.c.seq == payment_row.c.task_seq)
            .join(payment, payment.c.task_seq == payment_row.c.task_seq)
            .where(*watched, payment_row.c.amount_fen.in_(chunk))
            .order_by(payment_row.c.task_seq, payment_row.c.place)
        )
        for query in (single, of_batches):
            found += [_watched(row) for row in connection.execute(query)]
    return found


def watched_after(
    connection: sa.Connection, bank: str, payer: str, seq: int, limit: int
) -> list[Watched]:
    """Return the next successes of an account that are watched, in the order of admission."""
    query = (
        sa.select(*_SEARCHED)
        .join(task, task.c.seq == payment.c.task_seq)
        .where(*_watched_of(bank, payer), payment.c.task_seq > seq)
        .order_by(payment.c.task_seq)
        .limit(limit)
    )
    return [_watched(row) for row in connection.execute(query)]


def _watched_of(bank: str, payer: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        payment.c.bank == bank,
        payment.c.payer == payer,
        payment.c.watched_s.is_not(None),
    )


def note_look(
    connection: sa.Connection,
    bank: str,
    payer: str,
    passed_s: float,
    span_s: float,
    missed: Collection[int] | None = frozenset(),
) -> int:
    """Note that an account was looked at; return how many of its successes are watched on.

    Args:
        connection: the writer's.
        bank: whose.
        payer: the account.
        passed_s: time lived through since the last look.
        span_s: a success is watched for so long.
        missed: places of those of which this look learned nothing, None where that may be any: they
            are watched for as long again, since what their last look did not tell is not known.
    """
    mine = _watched_of(bank, payer)
    grown = sa.case((payment.c.watched_s < 0, 0.0), else_=payment.c.watched_s + passed_s)
    connection.execute(sa.update(payment).where(*mine).values(watched_s=grown))
    late = sa.select(payment.c.task_seq, payment.c.watched_s).where(
        *mine, payment.c.watched_s >= span_s
    )
    over = [
        row[0]
        for row in connection.execute(late)
        if row[1] >= 2 * span_s or (missed is not None and row[0] not in missed)
    ]
    for at in range(0, len(over), IDS_PER_QUERY_MAX):
        some = payment.c.task_seq.in_(over[at : at + IDS_PER_QUERY_MAX])
        connection.execute(sa.update(payment).where(*mine, some).values(watched_s=None))
    count = sa.select(sa.func.count()).select_from(payment).where(*mine)
    return int(connection.execute(count).scalar_one())


def ends_untold(
    connection: sa.Connection,
    bank: str,
    payer: str,
    passed_s: float,
    span_s: float,
    missed: Collection[int] | None,
) -> int:
    """Return of how many successes :func:`note_look` will end the watch though they were missed."""
    over = sa.select(payment.c.task_seq).where(
        *_watched_of(bank, payer),
        payment.c.watched_s >= 0,
        payment.c.watched_s + passed_s >= 2 * span_s,
    )
    return sum(missed is None or row[0] in missed for row in connection.execute(over))


def result_of(connection: sa.Connection, task_id: str) -> dict[str, Any]:
    """Return the result that a task has, empty for none."""
    query = sa.select(task.c.result).where(task.c.task_id == task_id)
    found = connection.execute(query).scalar_one()
    result: dict[str, Any] = {} if found is None else orjson.loads(found)
    return result


def is_open_at_bank(connection: sa.Connection, seq: int) -> bool:
    """Say whether only evidence can close a task, as it stands on disk."""
    found = connection.execute(sa.select(task.c.state).where(task.c.seq == seq)).scalar_one()
    return State(found) in OPEN_AT_BANK


@attrs.frozen
class Kept:
    """Exact bytes as they were kept."""

    seq: int
    task_seq: int | None
    bank: BankName
    """Empty for a task's own."""
    wire: Bytes
    at: str


def kept_of(connection: sa.Connection, seq: int) -> list[Kept]:
    """Return a task's bytes, in the order they were kept."""
    query = sa.select(message).where(message.c.task_seq == seq).order_by(message.c.seq)
    return [_kept(row) for row in connection.execute(query)]


def unused_answers(connection: sa.Connection, seqs: Sequence[int]) -> list[Kept]:
    """Return the answers of these tasks that were kept without a step of theirs, in order."""
    found: list[Kept] = []
    for at in range(0, len(seqs), IDS_PER_QUERY_MAX):
        mine = message.c.task_seq.in_(seqs[at : at + IDS_PER_QUERY_MAX])
        query = sa.select(message).where(mine, message.c.bank != "").order_by(message.c.seq)
        found += map(_kept, connection.execute(query))
    return found


def _kept(row: Any) -> Kept:  # noqa: ANN401
    wire = Bytes(row.direction == "sent", row.correlation, row.bytes)
    return Kept(row.seq, row.task_seq, BankName(row.bank), wire, row.at)


# -- what a replay reads --------------------------------------------------------------------------


def _with_bytes(since: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (message.c.task_seq.is_not(None), message.c.at >= since)


def count_with_bytes(connection: sa.Connection, since: str) -> int:
    """Return how many tasks have bytes that were kept since a moment, empty for ever."""
    count = sa.func.count(message.c.task_seq.distinct())
    return int(connection.execute(sa.select(count).where(*_with_bytes(since))).scalar_one())


def with_bytes(connection: sa.Connection, after: int, since: str, limit: int) -> list[int]:
    """Return the places of the next such tasks behind the place ``after``, in order."""
    query = (
        sa.select(message.c.task_seq)
        .where(*_with_bytes(since), message.c.task_seq > after)
        .distinct()
        .order_by(message.c.task_seq)
        .limit(limit)
    )
    return [row[0] for row in connection.execute(query)]


def at_places(connection: sa.Connection, places: Sequence[int]) -> list[Task]:
    """Return these tasks with their bodies, in order."""
    query = sa.select(task).where(task.c.seq.in_(places)).order_by(task.c.seq)
    return [_task(row) for row in connection.execute(query)]


def archived_of(connection: sa.Connection, places: Sequence[int]) -> set[int]:
    """Return which of these tasks are in an archive."""
    query = sa.select(task.c.seq).where(task.c.seq.in_(places), task.c.archived.is_not(None))
    return {row[0] for row in connection.execute(query)}


def ended(connection: sa.Connection, places: Sequence[int]) -> dict[int, Ended]:
    """Return what the rows of these tasks say of their end."""
    columns = (task.c.bank_code, task.c.bank_message, task.c.bank_ref, task.c.result)
    query = sa.select(task.c.seq, *columns).where(task.c.seq.in_(places))
    return {row[0]: Ended(*row[1:]) for row in connection.execute(query)}


def recorded(connection: sa.Connection, places: Sequence[int]) -> dict[int, list[Recorded]]:
    """Return the messages of these tasks in the order they were kept, with what was noted then."""
    noted: dict[tuple[int, str], deque[list[Any]]] = {}
    of_places = (task_event.c.task_seq.in_(places), task_event.c.digest != "")
    # In the order of the events alone the whole table would be read.
    query = (
        sa.select(task_event).where(*of_places).order_by(task_event.c.task_seq, task_event.c.seq)
    )
    for event in connection.execute(query):
        steps = noted.setdefault((event.task_seq, event.digest), deque())
        # The steps of one moment are kept with one message.
        if steps and (steps[-1][0].at, steps[-1][0].cause) == (event.at, event.cause):
            steps[-1].append(event)
        else:
            steps.append([event])
    found: dict[int, list[Recorded]] = {}
    of_tasks = sa.select(message).where(message.c.task_seq.in_(places))
    for row in connection.execute(of_tasks.order_by(message.c.task_seq, message.c.seq)):
        # What was kept without a step of its task bears the bank's name.
        steps = deque() if row.bank else noted.get((row.task_seq, row.digest), deque())
        one = _recorded(row, steps.popleft() if steps else [])
        found.setdefault(row.task_seq, []).append(one)
    return found


def unmatched(
    connection: sa.Connection, after: int, since: str, limit: int
) -> list[tuple[int, BankName, Recorded]]:
    """Return the next answers that matched nothing, with their places and banks, in order."""
    query = (
        sa.select(message)
        .where(message.c.task_seq.is_(None), message.c.seq > after, message.c.at >= since)
        .order_by(message.c.seq)
        .limit(limit)
    )
    return [(row.seq, BankName(row.bank), _recorded(row, [])) for row in connection.execute(query)]


def _recorded(row: Any, events: Sequence[Any]) -> Recorded:  # noqa: ANN401
    return Recorded(
        at=row.at,
        sent=row.direction == "sent",
        correlation=row.correlation,
        data=row.bytes,
        events=tuple(event.event for event in events),
        state=events[-1].state if events else "",
        cause=events[-1].cause if events else "",
        taken_for=events[-1].detail if events else "",
        configuration=events[-1].configuration if events else "",
    )
