"""Stores with tasks in them, written by the engine's own statements: fast, and of any age."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import sqlalchemy as sa
import trio

from fep.domain.clock import to_text
from fep.domain.ids import BankName, ClientName, TaskId, client_ref
from fep.domain.order import Kind, Order, parse_body
from fep.store.database import Store
from fep.tasks import store as rows
from fep.tasks.state import FINAL, Event, State, step
from fep.tasks.task import Task

ENTERPRISE = "E0001"
CONFIGURATION = "0123456789ab"
BANK = BankName("pingan")
OLD = dt.datetime(2025, 3, 1, 2, 0, tzinfo=dt.UTC)

BODIES: dict[Kind, Any] = {
    Kind.BALANCE: {"account": "99000000000101"},
    Kind.TRANSFER: {
        "payer": {"account": "99000000000101"},
        "payee": {"account": "99000000000102", "name": "云阶示例贸易有限公司", "bank_code": "307584007998"},
        "amount": "12.50",
        "currency": "CNY",
    },
    Kind.BATCH_TRANSFER: {
        "payer": {"account": "99000000000101"},
        "rows": [
            {"payee": {"account": "99000000000102", "name": "云阶示例贸易有限公司"}, "amount": "12.50"},
            {"payee": {"account": "99000000000103", "name": "云阶示例贸易有限公司"}, "amount": "1.00"},
        ],
    },
}  # fmt: skip

PATHS: dict[State, Sequence[tuple[Event, ...]]] = {
    State.QUEUED: [],
    State.OFFERED: [(Event.OFFERED,)],
    State.FETCHED: [(Event.OFFERED,), (Event.BODY_TAKEN,)],
    State.SENDING: [(Event.BODY_TAKEN, Event.SEND_BEGUN)],
    State.UNKNOWN: [(Event.BODY_TAKEN, Event.SEND_BEGUN), (Event.OUTCOME_LOST,)],
    State.SUCCEEDED: [(Event.OFFERED,), (Event.BODY_TAKEN,), (Event.SEND_BEGUN,), (Event.BANK_DONE,)],
    State.REJECTED: [(Event.BODY_TAKEN, Event.SEND_BEGUN), (Event.BANK_REFUSED,)],
    State.RETURNED: [
        (Event.BODY_TAKEN, Event.SEND_BEGUN),
        (Event.OUTCOME_LOST,),
        (Event.PROVED_DONE, Event.PROVED_RETURNED),
    ],
    State.CANCELLED: [(Event.CANCELLED,)],
    State.EXPIRED: [(Event.OFFERED,), (Event.OFFER_LAPSED,), (Event.EXPIRED,)],
    State.FAILED: [(Event.BODY_REFUSED,)],
}  # fmt: skip
"""What happens to a task that comes to an end, each change on its own."""


@attrs.frozen
class Made:
    """One task to make."""

    name: str
    state: State
    kind: Kind = Kind.TRANSFER
    at: dt.datetime = OLD
    acknowledged: bool = True
    watched: bool = False
    client: str = "erp-1"


def work_of(tasks: Sequence[Made]) -> Callable[[sa.Connection], None]:
    """Return the work that writes these tasks, each with its whole story."""

    def work(connection: sa.Connection) -> None:
        for one in tasks:
            _make(connection, one)

    return work


def _make(connection: sa.Connection, one: Made) -> None:
    seq = rows.last_seq(connection) + 1
    body = parse_body(one.kind, BODIES[one.kind])
    task = Task(
        seq,
        TaskId(one.name),
        ClientName(one.client),
        BANK,
        one.kind,
        5,
        State.QUEUED,
        one.at,
        one.at + dt.timedelta(days=1),
    )
    rows.insert(connection, [rows.NewTask(task, None)], CONFIGURATION)
    before, at, offers = State.QUEUED, one.at, 0
    path = PATHS[one.state]
    for number, events in enumerate(path):
        at += dt.timedelta(milliseconds=250)
        after = before
        for event in events:
            after = step(after, event)
        columns: dict[str, Any] = {}
        offers += Event.OFFERED in events
        if Event.OFFERED in events:
            columns["offers"] = offers
        if Event.BODY_TAKEN in events:
            columns |= rows.encoded(one.kind, body)
        cause, wire, sent = f"{events[-1].value} in a test", None, None
        if Event.SEND_BEGUN in events and isinstance(body, Order):
            reference = client_ref(ENTERPRISE, task.task_id)
            cause = f"sent as 4004 under {reference}"
            wire = rows.Bytes(sent=True, correlation=one.name, data=f"{one.name} out".encode())
            columns |= {"client_ref": reference, "sent_at": to_text(at)}
            sent = rows.sent_of(BANK, body, at, reference)
        if after in FINAL:
            columns["delivery"] = rows.OWED
            if after in (State.SUCCEEDED, State.RETURNED):
                columns |= {"result": orjson.dumps({"amount": "12.50"}), "bank_code": "000000"}
                if isinstance(body, Order):
                    data = f"{one.name} in".encode()
                    wire = rows.Bytes(sent=False, correlation=one.name, data=data)
        watched = True if one.watched and number == len(path) - 1 else None
        change = rows.Change(seq, before, after, events, cause, at, columns, wire, sent, watched)
        rows.apply(connection, [change], CONFIGURATION)
        before = after
    if before in FINAL and one.acknowledged:
        [told] = rows.deliveries(connection, [one.name])
        rows.acknowledge(connection, [(one.name, before.value, told.at)])


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    """Run a store on a file."""
    store = Store.at(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


def make(path: Path, *groups: Sequence[Made]) -> Path:
    """Make a store of these tasks, a commit each group."""

    async def fill() -> None:
        async with opened(path) as store:
            for group in groups:
                await store.write(work_of(group))

    trio.run(fill)
    return path


EVERY = [
    *(Made(f"PAY-{state.value}", state) for state in State if state is not State.ACCEPTED),
    *(
        Made(f"ASK-{state.value}", state, Kind.BALANCE)
        for state in (State.QUEUED, State.SUCCEEDED, State.REJECTED)
    ),
    Made("PAY-owed", State.SUCCEEDED, acknowledged=False),
    Made("PAY-watched", State.SUCCEEDED, watched=True),
    Made("PAY-new", State.SUCCEEDED, at=OLD + dt.timedelta(days=300)),
    Made("BATCH-unknown", State.UNKNOWN, Kind.BATCH_TRANSFER),
    Made("BATCH-succeeded", State.SUCCEEDED, Kind.BATCH_TRANSFER),
    Made("ASK-year", State.SUCCEEDED, Kind.BALANCE, dt.datetime(2024, 12, 31, 17, tzinfo=dt.UTC)),
]
"""A task in each state and more; ``ASK-year`` ended in 2025 by Shanghai's clock."""
