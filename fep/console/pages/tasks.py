"""The tasks: looked for, exported, seen whole, and closed by two persons."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import trio
from starlette.responses import Response

from fep.console import store
from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page, text_of
from fep.console.shown import listed
from fep.console.streaming import Stream
from fep.domain.clock import to_shanghai
from fep.domain.order import Kind
from fep.store.audit import Doer
from fep.tasks.state import BEFORE_SENDING, OPEN_AT_BANK, State

PAGE_TASKS: Final = 50
EXPORT_PAGE_TASKS: Final = 500
EXPORT_TASKS_MAX: Final = 100_000
EXPORTS_AT_ONCE: Final = 1
FILTERS: Final = ("state", "bank", "kind", "find")
COLUMNS: Final = (
    "task_id", "client", "bank", "kind", "state", "payer", "payee", "amount", "submitted_at",
    "sent_at", "updated_at", "client_ref", "bank_ref", "bank_code", "bank_message",
)  # fmt: skip
_exports: Final = trio.CapacityLimiter(EXPORTS_AT_ONCE)


def _wanted(visit: Visit) -> dict[str, str]:
    """Return what is looked for, without what was left empty."""
    query = visit.request.query_params
    return {name: text for name in FILTERS if (text := query.get(name, "").strip())}


async def _with_money(visit: Visit, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = [one["task_id"] for one in tasks]
    read = partial(store.bodies, ids=ids)
    bodies = await visit.desk.services.tasks.store.read(read) if ids else {}
    return [one | {"money": _money(bodies.get(one["task_id"], {}))} for one in tasks]


def _money(params: dict[str, Any]) -> dict[str, str]:
    """Return from whom to whom and how much, as far as a task's body tells it."""
    payer, payee = params.get("payer") or {}, params.get("payee") or {}
    return {
        "payer": str(payer.get("account") or params.get("account") or ""),
        "payee": str(payee.get("account") or ""),
        "payee_name": str(payee.get("name") or ""),
        "amount": str(params.get("amount") or ""),
    }


@need()
async def show(visit: Visit) -> Response:
    """Show a page of tasks; for htmx its rows alone."""
    wanted = _wanted(visit)
    cursor = visit.request.query_params.get("cursor")
    found = await visit.ask("task.list", limit=PAGE_TASKS, cursor=cursor, **wanted)
    following = None
    if "cursor" in found:
        following = "/tasks?" + urlencode({**wanted, "cursor": found["cursor"]})
    values: dict[str, Any] = {
        "tasks": await _with_money(visit, found["tasks"]),
        "following": following,
        "first": f"/tasks?{urlencode(wanted)}" if cursor else None,
        "export": "/tasks.csv?" + urlencode(wanted),
        "wanted": wanted,
    }
    if "rows" in visit.request.query_params:
        return visit.piece("tasks_table.html", **values)
    services = visit.desk.services
    return visit.page(
        "tasks.html",
        **values,
        states=[state.value for state in State],
        kinds=[kind.value for kind in Kind],
        banks=sorted(services.tasks.status()["banks"]),
    )


@need()
async def export(visit: Visit) -> Response:
    """Return the tasks that are looked for as CSV, page by page."""
    wanted = _wanted(visit)
    now = to_shanghai(visit.desk.services.clock.now())
    caller = visit.caller
    # Refused before the first byte, if at all.
    first = await visit.ask("task.list", limit=EXPORT_PAGE_TASKS, **wanted)
    doer = Doer(caller.name, caller.role.value, caller.origin)
    await visit.desk.services.audit.recorded(doer, "tasks.export", wanted, trio.lowlevel.checkpoint)
    name = f"tasks-{now:%Y%m%d-%H%M%S}.csv"
    return Stream(
        _lines(visit, wanted, first),
        "text/csv",
        {"content-disposition": f'attachment; filename="{name}"'},
    )


async def _lines(
    visit: Visit, wanted: dict[str, str], first: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    # With its mark a spreadsheet takes it for UTF-8.
    yield "\ufeff".encode() + _row(COLUMNS)
    found, count = first, 0
    await _exports.acquire_on_behalf_of(visit)
    try:
        while True:
            tasks = await _with_money(visit, found["tasks"])
            yield b"".join(
                _row([str((one | one["money"]).get(name, "")) for name in COLUMNS]) for one in tasks
            )
            count += len(tasks)
            if "cursor" not in found or count >= EXPORT_TASKS_MAX:
                return
            found = await visit.ask(
                "task.list", limit=EXPORT_PAGE_TASKS, cursor=found["cursor"], **wanted
            )
    finally:
        _exports.release_on_behalf_of(visit)


def _row(cells: tuple[str, ...] | list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return buffer.getvalue().encode("utf-8", "replace")


def _harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell


@need()
async def show_one(visit: Visit) -> Response:
    """Show one task whole, with all that happened to it."""
    task_id = visit.request.path_params["task_id"]
    found = await visit.ask("task.why", task_id=task_id)
    database = visit.desk.services.tasks.store
    proposal, bodies = await database.read(
        lambda c: (store.proposal(c, task_id), store.bodies(c, [task_id]))
    )
    state = State(found["task"]["state"])
    params = bodies.get(task_id, {})
    assert visit.person is not None
    return visit.page(
        "task.html",
        task=found["task"],
        events=found["events"],
        omitted=found.get("omitted", 0),
        waits_for=found.get("waits_for", ""),
        listed=listed(found["task"]["result"]),
        params=_flat(params),
        money=_money(params),
        proposal=proposal if state in OPEN_AT_BANK or state in BEFORE_SENDING else None,
        can_resolve=state in OPEN_AT_BANK or (state in BEFORE_SENDING and bool(proposal)),
        can_cancel=state in BEFORE_SENDING,
    )


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return the members of a body and of what is in it, each with its path."""
    found: list[tuple[str, str]] = []
    for name, one in value.items():
        if isinstance(one, dict):
            found += _flat(one, f"{before}{name}.")
        elif one not in (None, ""):
            found.append((f"{before}{name}", str(one)))
    return found


@need(roles=OPERATOR)
async def resolve(visit: Visit) -> Response:
    """Propose how a payment ended."""
    task_id, form = visit.request.path_params["task_id"], await visit.form()
    await visit.ask(
        "task.resolve",
        task_id=task_id,
        outcome=text_of(form, "outcome"),
        evidence=text_of(form, "evidence"),
    )
    return visit.done(f"/tasks/{task_id}", "Proposed; another person must confirm it")


@need(roles=OPERATOR)
async def confirm(visit: Visit) -> Response:
    """Confirm what another person proposed."""
    task_id, form = visit.request.path_params["task_id"], await visit.form()
    found = await visit.ask("task.confirm", task_id=task_id, outcome=text_of(form, "outcome"))
    return visit.done(f"/tasks/{task_id}", "Confirmed: the task is {state}", state=found["state"])


@need(roles=OPERATOR)
async def cancel(visit: Visit) -> Response:
    """Cancel a task of which nothing has left."""
    task_id = visit.request.path_params["task_id"]
    await visit.ask("task.cancel", task_id=task_id)
    return visit.done(f"/tasks/{task_id}", "Cancelled; nothing was sent")


PAGE: Final = Page(
    routes=(
        ("/tasks", show, GET),
        ("/tasks.csv", export, GET),
        ("/tasks/{task_id}", show_one, GET),
        ("/tasks/{task_id}/resolve", resolve, POST),
        ("/tasks/{task_id}/confirm", confirm, POST),
        ("/tasks/{task_id}/cancel", cancel, POST),
    ),
    path="/tasks",
    title="Tasks",
    key="t",
)
