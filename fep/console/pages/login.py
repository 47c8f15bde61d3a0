"""Log-in, log-out, and what a browser keeps: language and colours."""

from __future__ import annotations

from typing import Final

import structlog
import trio
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fep.console.desk import (
    LANGUAGE_COOKIE,
    THEME_COOKIE,
    THEMES,
    YEAR_SECONDS,
    Visit,
    answered,
    is_own_form,
    local_path,
    need,
    new_token,
    peer,
    visit_of,
)
from fep.console.pages.page import GET, POST, Page, text_of
from fep.console.words import LANGUAGES
from fep.domain.ids import NAME_CHARS_MAX
from fep.users.passwords import PASSWORD_CHARS_MAX

log = structlog.get_logger()

WRONG: Final = "User, password or one-time code is not right"


async def show(request: Request) -> Response:
    """Show the form."""
    visit = await visit_of(request)
    if visit.person is not None:
        return RedirectResponse("/", 303)
    return _form(visit, local_path(request.query_params.get("next", "/")))


async def log_in(request: Request) -> Response:
    """Take the form."""
    return await answered(_log_in, await visit_of(request))


async def _log_in(visit: Visit) -> Response:
    form = await visit.form()
    after = local_path(text_of(form, "next"))
    if not await is_own_form(visit):
        return _form(visit, after, 403, "The form is too old; try again")
    # One character more than is allowed stays wrong.
    name = text_of(form, "user", NAME_CHARS_MAX + 1)
    given = form.get("password")
    password = given[: PASSWORD_CHARS_MAX + 1] if isinstance(given, str) else ""
    throttle, from_where = visit.desk.throttle, peer(visit.request)
    wait = throttle.wait(name, from_where, trio.current_time())
    if wait:
        log.warning("login.throttled", user=name, origin=visit.origin, wait_seconds=round(wait))
        response = _form(visit, after, 429, "Too many attempts; wait a minute")
        response.headers["retry-after"] = str(int(wait) + 1)
        return response
    # Counted before it is known: many at once must not all slip through.
    throttle.failed(name, from_where, trio.current_time())
    users = visit.desk.services.users
    token = await users.log_in(name, password, text_of(form, "code", 16), visit.origin)
    if token is None:
        return _form(visit, after, 401, WRONG)
    throttle.succeeded(name, from_where)
    if visit.person is not None:
        await users.log_out(visit.person, visit.origin)
    response = RedirectResponse(after, 303)
    visit.desk.set_cookie(response, visit.desk.cookie, token)
    return response


def _form(visit: Visit, after: str, status: int = 200, fault: str = "") -> Response:
    fresh = ""
    if not visit.token:
        visit.token = fresh = new_token()
    response = visit.page("login.html", status, after=after, fault=fault and visit.t(fault))
    if fresh:
        visit.desk.set_cookie(response, visit.desk.cookie, fresh)
    return response


@need()
async def log_out(visit: Visit) -> Response:
    """End the session."""
    assert visit.person is not None
    await visit.desk.services.users.log_out(visit.person, visit.origin)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(
        visit.desk.cookie, secure=visit.desk.secure, httponly=True, samesite="strict"
    )
    return response


async def keep(request: Request) -> Response:
    """Keep the language or the colours in the browser; they change nothing else."""
    visit = await visit_of(request)
    form = await visit.form()
    response = RedirectResponse(local_path(text_of(form, "next")), 303)
    if not await is_own_form(visit):
        return response
    for name, cookie, known in (
        ("lang", LANGUAGE_COOKIE, tuple(LANGUAGES)),
        ("theme", THEME_COOKIE, THEMES),
    ):
        if (value := text_of(form, name)) in known:
            visit.desk.set_cookie(response, cookie, value, YEAR_SECONDS)
    return response


PAGE: Final = Page(
    routes=(
        ("/login", show, GET),
        ("/login", log_in, POST),
        ("/logout", log_out, POST),
        ("/keep", keep, POST),
    )
)
