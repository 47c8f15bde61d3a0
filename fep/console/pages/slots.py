"""The key slots: states, certificates, and the PIN of one that waits for it."""

from __future__ import annotations

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page
from fep.console.shown import days_left

SOON_DAYS: Final = 30
"""A certificate that ends within so many days is shown as a fault."""


async def _slots(visit: Visit) -> list[dict[str, Any]]:
    now = visit.desk.services.clock.now()
    slots = (await visit.ask("slot.list"))["slots"]
    return [one | {"days": days_left(one["not_after"], now)} for one in slots]


@need()
async def show(visit: Visit) -> Response:
    """Show all slots; for htmx the table alone."""
    values: dict[str, Any] = {"slots": await _slots(visit), "soon": SOON_DAYS}
    if "live" in visit.request.query_params:
        return visit.piece("slots_table.html", **values)
    return visit.page("slots.html", **values)


@need(roles=OPERATOR)
async def ask_pin(visit: Visit) -> Response:
    """Show the form for a slot's PIN."""
    name = visit.request.path_params["slot"]
    slot = next((one for one in await _slots(visit) if one["name"] == name), None)
    if slot is None:
        raise HTTPException(404)
    return visit.page("unlock.html", slot=slot)


@need(roles=OPERATOR)
async def unlock(visit: Visit) -> Response:
    """Give a slot its PIN."""
    pin = (await visit.form()).get("pin")
    name = visit.request.path_params["slot"]
    slot = await visit.ask("slot.unlock", slot=name, pin=pin if isinstance(pin, str) else "")
    return visit.done("/slots", "{slot} is {state}", slot=name, state=slot["state"])


PAGE: Final = Page(
    routes=(
        ("/slots", show, GET),
        ("/slots/{slot}/unlock", ask_pin, GET),
        ("/slots/{slot}/unlock", unlock, POST),
    ),
    path="/slots",
    title="Key slots",
    key="s",
)
