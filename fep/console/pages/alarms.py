"""The alarms in force and those that are over."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page, text_of

SHOWN_MAX: Final = 200


@need()
async def show(visit: Visit) -> Response:
    """Show the alarms; for htmx the table alone."""
    every = visit.request.query_params.get("all") == "1"
    found = await visit.ask("alarm.list", all=every, limit=SHOWN_MAX)
    values = {"alarms": found["alarms"], "every": every}
    if "live" in visit.request.query_params:
        return visit.piece("alarms_table.html", **values)
    return visit.page("alarms.html", **values)


@need(roles=OPERATOR)
async def acknowledge(visit: Visit) -> Response:
    """Say that this person acts on an alarm."""
    alarm_id = text_of(await visit.form(), "alarm_id")
    alarm = await visit.ask("alarm.acknowledge", alarm_id=alarm_id)
    return visit.done("/alarms", "Acknowledged: {subject}", subject=alarm["subject"])


PAGE: Final = Page(
    routes=(("/alarms", show, GET), ("/alarms/acknowledge", acknowledge, POST)),
    path="/alarms",
    title="Alarms",
    key="a",
)
