"""The banks: connections, what is under way, trying them, stopping and starting them."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page


async def _values(visit: Visit) -> dict[str, Any]:
    status = await visit.ask("status")
    links = {one["bank"]: one for one in (await visit.ask("link.list"))["links"]}
    banks = [
        {"name": name, "link": links.get(name), **queue}
        for name, queue in sorted(status["queue"]["banks"].items())
    ]
    return {"banks": banks}


@need()
async def show(visit: Visit) -> Response:
    """Show all banks; for htmx the table alone."""
    values = await _values(visit)
    if "live" in visit.request.query_params:
        return visit.piece("banks_table.html", **values)
    return visit.page("banks.html", **values, tried=None)


@need(roles=OPERATOR)
async def drain(visit: Visit) -> Response:
    """Send nothing more to a bank."""
    bank = visit.request.path_params["bank"]
    await visit.ask("link.drain", bank=bank)
    return visit.done("/banks", "{bank}: paused; nothing more is sent", bank=bank)


@need(roles=OPERATOR)
async def resume(visit: Visit) -> Response:
    """Send to a bank again."""
    bank = visit.request.path_params["bank"]
    await visit.ask("link.resume", bank=bank)
    return visit.done("/banks", "{bank}: resumed", bank=bank)


@need(roles=OPERATOR)
async def test(visit: Visit) -> Response:
    """Try whether a bank can be reached."""
    tried = await visit.ask("link.test", bank=visit.request.path_params["bank"])
    return visit.page("banks.html", **await _values(visit), tried=tried)


PAGE: Final = Page(
    routes=(
        ("/banks", show, GET),
        ("/banks/{bank}/drain", drain, POST),
        ("/banks/{bank}/resume", resume, POST),
        ("/banks/{bank}/test", test, POST),
    ),
    path="/banks",
    title="Banks",
    key="b",
)
