"""The web application: routes, limits, static files. Each page has a module in ``pages``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from fep.console.desk import Desk, to_login, visit_of
from fep.console.limits import BodyLimit, Headers
from fep.console.pages import PAGES

log = structlog.get_logger()

STATIC: Final = Path(__file__).parent / "static"
STATIC_KEPT: Final = "public, max-age=86400"


class _Static(StaticFiles):
    """Our own files; the address of each bears the release, so that browsers may keep them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return one file."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = STATIC_KEPT
        return response


def make_app(desk: Desk) -> Starlette:
    """Return the application over a desk."""
    routes = [
        Mount("/static", _Static(directory=STATIC), name="static"),
        *(Route(*one[:2], methods=list(one[2])) for page in PAGES for one in page.routes),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Headers, secure=desk.secure), Middleware(BodyLimit)],
        exception_handlers={HTTPException: _http_error, Exception: _defect},
    )
    desk.navigation = [page for page in PAGES if page.key]
    app.state.desk = desk
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in {408, 413}:
        # The rest of the body is not read: the connection ends with this.
        return PlainTextResponse(str(error.status_code), error.status_code, {"connection": "close"})
    visit = await visit_of(request)
    if visit.person is None:
        return to_login(visit)
    return visit.failed(error.status_code, "NOT_FOUND", request.url.path)


async def _defect(request: Request, _error: Exception) -> Response:
    # Called while the error is handled, which the checker can't see.
    log.exception("console.request_failed", path=request.url.path)  # noqa: LOG004
    return PlainTextResponse("500", 500)
