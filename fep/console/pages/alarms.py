"""The alarms in force, those that are over, and the channels by which they are sent."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from fep.console.desk import OPERATOR, Visit, need
from fep.console.pages.page import GET, POST, Page, text_of

SHOWN_MAX: Final = 200


async def _channels(visit: Visit) -> Any:  # noqa: ANN401
    return (await visit.ask("alarm.channels"))["channels"]


@need()
async def show(visit: Visit) -> Response:
    """Show the alarms, and where they are sent; for htmx one of the tables."""
    query = visit.request.query_params
    if "live" in query and "channels" in query:
        return visit.piece("channels_table.html", channels=await _channels(visit))
    every = query.get("all") == "1"
    found = await visit.ask("alarm.list", all=every, limit=SHOWN_MAX)
    values = {"alarms": found["alarms"], "every": every}
    if "live" in query:
        return visit.piece("alarms_table.html", **values)
    return visit.page("alarms.html", **values, channels=await _channels(visit), tried=None)


@need(roles=OPERATOR)
async def test(visit: Visit) -> Response:
    """Send a test message by a channel."""
    tried = await visit.ask("alarm.test", channel=visit.request.path_params["channel"])
    found = await visit.ask("alarm.list", all=False, limit=SHOWN_MAX)
    values = {"alarms": found["alarms"], "every": False, "tried": tried}
    return visit.page("alarms.html", **values, channels=await _channels(visit))


@need(roles=OPERATOR)
async def acknowledge(visit: Visit) -> Response:
    """Say that this person acts on an alarm."""
    alarm_id = text_of(await visit.form(), "alarm_id")
    alarm = await visit.ask("alarm.acknowledge", alarm_id=alarm_id)
    return visit.done("/alarms", "Acknowledged: {subject}", subject=alarm["subject"])


PAGE: Final = Page(
    routes=(
        ("/alarms", show, GET),
        ("/alarms/acknowledge", acknowledge, POST),
        ("/alarms/channels/{channel}/test", test, POST),
    ),
    path="/alarms",
    title="Alarms",
    key="a",
)
