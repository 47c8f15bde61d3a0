"""What people did, and the proof that nobody changed the record."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from starlette.responses import Response

from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page
from fep.store.audit import Doer

PAGE_ACTS: Final = 100


@need()
async def show(visit: Visit) -> Response:
    """Show a page of the record."""
    query = visit.request.query_params
    who, cursor = query.get("who", "").strip(), query.get("cursor")
    found = await visit.ask("audit.list", who=who, limit=PAGE_ACTS, cursor=cursor)
    following = None
    if "cursor" in found:
        following = "/audit?" + urlencode({"who": who, "cursor": found["cursor"]})
    return visit.page(
        "audit.html",
        acts=found["acts"],
        following=following,
        first=f"/audit?{urlencode({'who': who})}" if cursor else None,
        who=who,
        checker=visit.desk.checker,
    )


@need()
async def check(visit: Visit) -> Response:
    """Show how the look at the store stands, for htmx."""
    return visit.piece("check.html", checker=visit.desk.checker)


@need(roles=OPERATOR)
async def verify(visit: Visit) -> Response:
    """Look at the whole store: the chain, and all that must hold."""
    caller, checker = visit.caller, visit.desk.checker
    doer = Doer(caller.name, caller.role.value, caller.origin)

    async def want() -> None:
        checker.want()

    await visit.desk.services.audit.recorded(doer, "store.verify", {}, want)
    return visit.done("/audit", "The whole store is being looked at")


PAGE: Final = Page(
    routes=(
        ("/audit", show, GET),
        ("/audit/check", check, GET),
        ("/audit/verify", verify, POST),
    ),
    path="/audit",
    title="Audit",
    key="u",
)
