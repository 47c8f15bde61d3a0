"""The overview: everything at a glance, kept up to date by the daemon."""

from __future__ import annotations

from typing import Final

import trio
from starlette.responses import PlainTextResponse, Response

from fep.console import pictures, store
from fep.console.desk import Visit, need
from fep.console.live import VIEWERS_MAX
from fep.console.pages.page import GET, Page
from fep.console.streaming import Stream
from fep.domain.clock import to_shanghai

PICTURE_SECONDS: Final = 15.0
"""Pictures that are read from the store are so old at most."""


@need()
async def overview(visit: Visit) -> Response:
    """Show the whole daemon."""
    live = visit.desk.live
    return visit.page("overview.html", samples=live.samples(), **await live.values())


@need()
async def follow(visit: Visit) -> Response:
    """Push the changing part of the overview for as long as the browser looks on."""
    live, users, token = visit.desk.live, visit.desk.services.users, visit.token
    if live.viewers >= VIEWERS_MAX:
        return PlainTextResponse("", 503, {"retry-after": "30"})

    async def still_in() -> bool:
        return await users.person(token, seen=False) is not None

    return Stream(
        live.stream(visit.language, still_in), "text/event-stream", {"x-accel-buffering": "no"}
    )


@need()
async def show_pictures(visit: Visit) -> Response:
    """Return the pictures that are drawn from the store: how long banks take, and today's money."""
    services = visit.desk.services
    midnight = to_shanghai(services.clock.now()).replace(hour=0, minute=0, second=0, microsecond=0)
    kept = visit.desk.pictures
    if kept is None or trio.current_time() - kept[0] > PICTURE_SECONDS:
        found = await services.tasks.store.read(
            lambda c: (store.latencies(c), store.flows(c, midnight))
        )
        visit.desk.pictures = kept = (trio.current_time(), found)
    latencies, flows = kept[1]
    names = {str(number): account.name for number, account in services.tasks.accounts.items()}
    return visit.piece(
        "pictures.html",
        latencies=pictures.bars(latencies),
        flows=pictures.flows(flows, names, visit.t("Others")),
    )


PAGE: Final = Page(
    routes=(
        ("/", overview, GET),
        ("/live", follow, GET),
        ("/pictures", show_pictures, GET),
    ),
    path="/",
    title="Overview",
    key="o",
)
