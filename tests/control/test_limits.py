"""What the daemon sends fits a line of 1 MiB, however much there is to say."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from fep.domain.money import Cny
from fep.domain.order import Direction, Statement, StatementEntry, result_value
from fep.store.files import STORE_FILE
from fep.tasks.lane import STATEMENT_ENTRIES_MAX, _fitting
from fep.tasks.service import CHAIN_FIRST_MAX, CHAIN_LAST_MAX, REASON_CHARS_MAX
from fep.wire import jsonrpc
from tests.control.conftest import Start
from tests.control.rig import Rig

TASK = {"bank": "pingan", "kind": "statement"}


async def ended(rig: Rig, *results: dict[str, Any]) -> None:
    """Store tasks T0, T1, … that are at their end with these results."""
    finance = await rig.finance()
    for number in range(len(results)):
        await finance.result("task.submit", {"task_id": f"T{number}", **TASK})
    await finance.aclose()
    _change(
        rig,
        "UPDATE task SET state='succeeded', delivery=1, result=? WHERE task_id=?",
        [(orjson.dumps(one), f"T{number}") for number, one in enumerate(results)],
    )


def _change(rig: Rig, sql: str, rows: list[tuple[Any, ...]]) -> None:
    path: Path = rig.daemon.config.state_dir / STORE_FILE
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(sql, rows)


def filled(size: int) -> dict[str, Any]:
    return {"entries": ["x" * size], "complete": True}


async def test_a_page_of_tasks_is_shorter_where_so_many_do_not_fit_a_line(start: Start) -> None:
    async with start() as rig:
        await ended(rig, filled(500_000), filled(500_000), filled(100), filled(900_000))
        finance = await rig.finance()
        pages, params = [], {"limit": 500}
        while True:
            page = await finance.result("task.list", params)
            pages.append([task["task_id"] for task in page["tasks"]])
            if "cursor" not in page:
                break
            params["cursor"] = page["cursor"]
        assert pages == [["T3"], ["T2", "T1"], ["T0"]]


async def test_an_answer_that_fits_no_line_is_refused(start: Start) -> None:
    async with start() as rig:
        await ended(rig, filled(jsonrpc.LINE_BYTES_MAX))
        finance = await rig.finance()
        answer = await finance.ask("task.get", {"task_id": "T0"})
        assert answer["error"]["code"] == jsonrpc.INTERNAL_ERROR
        assert await finance.result("task.list", {"state": "queued"}) == {"tasks": []}


async def test_a_result_that_fits_no_line_is_told_without_it(start: Start) -> None:
    """It must not end the client's connection over and over."""
    async with start() as rig:
        await ended(rig, filled(jsonrpc.LINE_BYTES_MAX), filled(100))
    async with start() as rig:
        finance = await rig.finance()
        told = [await finance.take("task.result") for _ in range(2)]
        results = {one["params"]["task_id"]: one["params"]["result"] for one in told}
        assert results == {"T0": None, "T1": filled(100)}
        assert [one["task_id"] for one in rig.logs.named("session.result_too_long")] == ["T0"]


async def test_a_long_causal_chain_leaves_out_its_middle(start: Start) -> None:
    async with start() as rig:
        await ended(rig, filled(1))
        (seq,) = rig.stored("SELECT seq FROM task")[0]
        many = CHAIN_FIRST_MAX + CHAIN_LAST_MAX
        columns = "(task_seq, at, event, state, cause, configuration)"
        insert = f"INSERT INTO task_event {columns} VALUES (?, '', 'inquired', 'unknown', ?, '')"
        finance = await rig.finance()
        _change(rig, insert, [(seq, str(number)) for number in range(1, many)])
        whole = await finance.result("task.why", {"task_id": "T0"})
        assert len(whole["events"]) == many
        assert "omitted" not in whole
        _change(rig, insert, [(seq, str(number)) for number in range(many, many + 7)])
        cut = await finance.result("task.why", {"task_id": "T0"})
        assert cut["omitted"] == 7
        causes = [one["cause"] for one in cut["events"]]
        assert causes[0] == "task.submit of client erp-1"
        assert causes[1:CHAIN_FIRST_MAX] == [str(n) for n in range(1, CHAIN_FIRST_MAX)]
        assert causes[CHAIN_FIRST_MAX:] == [
            str(n) for n in range(many + 7 - CHAIN_LAST_MAX, many + 7)
        ]


def entry(number: int, purpose: str) -> StatementEntry:
    at = dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC)
    return StatementEntry(f"R{number}", at, Direction.CREDIT, Cny(100), purpose=purpose)


@pytest.mark.parametrize(
    ("many", "purpose"), [(3000, "归集"), (1500, "\n" * 400), (1, "货款" * 10)]
)
def test_a_statement_fits_a_line_and_says_whether_it_is_all(many: int, purpose: str) -> None:
    entries = [entry(number, purpose) for number in range(many)]
    statement = _fitting(Statement, entries, more=False)
    line = jsonrpc.request(1, "task.result", {"result": result_value(statement)})
    assert len(line) <= jsonrpc.LINE_BYTES_MAX
    kept = len(statement.entries)
    assert statement.entries == tuple(entries[:kept])
    assert kept in (many, STATEMENT_ENTRIES_MAX) or len(line) > 800_000
    assert result_value(statement)["complete"] is (kept == many)
    assert _fitting(Statement, [], more=True) == Statement((), cursor="more")


async def test_what_a_client_wrote_is_not_echoed_at_any_length(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        finance = await rig.finance()
        long = "\0" * 150_000
        for params in ({"task_id": long}, {long: 1}):
            answer = await finance.ask("task.get", params)
            assert len(answer["error"]["message"]) <= jsonrpc.MESSAGE_CHARS_MAX + 1
        await finance.result("task.submit", {"task_id": "T0", **TASK})
        await finance.answer(
            await finance.take("task.fetch"), {"kind": "statement", "params": {long: 1}}
        )
        told = await finance.take("task.result")
        assert told["params"]["state"] == "failed"
        assert len(told["params"]["bank_message"]) <= REASON_CHARS_MAX


@pytest.mark.parametrize(
    "answer",
    [
        b'{"kind":["statement"],"params":{}}',
        b'{"kind":' + b"[" * 900 + b"]" * 900 + b',"params":{}}',
        b'{"kind":"statement","params":{"account":1e999}}',
        b'{"kind":"statement","params":' + b"[" * 900 + b"]" * 900 + b"}",
        b"1e999",
        b"[]",
        b"null",
    ],
    ids=lambda answer: answer[:40].decode(),
)
async def test_an_answer_that_is_no_body_fails_its_task_alone(start: Start, answer: bytes) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        finance = await rig.finance()
        await finance.result("task.submit", {"task_id": "T0", **TASK})
        fetch = await finance.take("task.fetch")
        line = b'{"jsonrpc":"2.0","id":%d,"result":%b}\n' % (fetch["id"], answer)
        await finance.send_bytes(line)
        told = await finance.take("task.result")
        assert (told["params"]["state"], told["params"]["bank_code"]) == ("failed", "BAD_BODY")


async def test_two_answers_for_one_task_in_one_packet_are_one(start: Start) -> None:
    """It was asked for on two connections' worth of ids, and both are answered at once."""
    async with start(bank=True) as rig:
        await rig.ready()
        finance = await rig.finance()
        await finance.result("task.submit", {"task_id": "T0", "bank": "pingan", "kind": "balance"})
        fetch = await finance.take("task.fetch")
        rig.daemon.tasks._box(rig.daemon.tasks._open[fetch["params"]["task_id"]].client).ask(
            fetch["params"]["task_id"], 2
        )
        again = await finance.take("task.fetch")
        await finance.send(
            *({"id": one["id"], "result": rig.balance()} for one in (fetch, again)),
        )
        told = await finance.take("task.result")
        assert told["params"]["state"] == "succeeded"


async def test_nobody_takes_the_mail_of_the_daemons_own_parts(start: Start) -> None:
    async with start() as rig:
        wire = await rig.unix()
        answer = await wire.ask("session.open", {"client": "fep:pooling"})
        assert answer["error"]["data"] == {"code": "NOT_PERMITTED"}
