"""What every page has at hand: who asks, in which language, the daemon's methods, the templates."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

import attrs
import jinja2
import msgspec
import structlog
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from fep.console import shown
from fep.console.checker import Checker, Verify
from fep.console.drafts import Drafts
from fep.console.live import Live
from fep.console.throttle import Throttle
from fep.console.words import CATALOGUE, LANGUAGES, preferred, translated
from fep.control.commands import (
    METHODS,
    Caller,
    ProtocolRefusal,
    Role,
    Services,
    not_permitted,
    perform,
)
from fep.domain.errors import FepError
from fep.domain.ids import ClientName
from fep.users.service import Person

log = structlog.get_logger()

TEMPLATES: Final = Path(__file__).parent / "templates"
FORM_FIELDS_MAX: Final = 40
COOKIE, COOKIE_SECURE = "fep", "__Host-fep"
LANGUAGE_COOKIE, THEME_COOKIE, NOTE_COOKIE = "fep_lang", "fep_theme", "fep_note"
YEAR_SECONDS: Final = 31_536_000
NOTE_CHARS_MAX: Final = 600
THEMES: Final = ("auto", "light", "dark")
TOKEN_CHARS_MAX: Final = 128
STATUSES: Final = {"NOT_PERMITTED": 403, "NOT_FOUND": 404, "STORE_AWAY": 503, "STORE_FULL": 507}
"""Of refusals; others are 409: the state of things does not allow it."""

VIEWER: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
OPERATOR: Final = frozenset({Role.OPERATOR, Role.ADMIN})
ADMIN: Final = frozenset({Role.ADMIN})


class Desk:
    """One console: shared by all its pages."""

    def __init__(self, services: Services, verify: Verify, *, secure: bool) -> None:
        self.services = services
        self.navigation: list[Any] = []
        """Pages with a place in it; the application puts them in."""
        self.secure = secure
        self.cookie = COOKIE_SECURE if secure else COOKIE
        self.throttle = Throttle()
        self.checker = Checker(verify)
        self.drafts = Drafts()
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.templates.filters.update(shown.FILTERS)
        self.live = Live(services, self.fragment)
        self.pictures: tuple[float, Any] | None = None
        """What was read for the pictures, and when."""
        self.balances: tuple[float, Any] | None = None

    def fragment(self, template: str, language: str, values: dict[str, Any]) -> str:
        """Return a piece of a page in a language."""
        t = partial(translated, language)
        return self.templates.get_template(template).render(values, t=t, lang=language)

    def set_cookie(
        self, response: Response, name: str, value: str, age_s: int | None = None
    ) -> None:
        """Have the browser keep something; without an age until it is closed."""
        response.set_cookie(
            name, value, max_age=age_s, httponly=True, samesite="strict", secure=self.secure
        )


@attrs.define(eq=False)
class Visit:
    """One request of somebody who is logged in (or, on the way there, is not)."""

    desk: Desk
    request: Request
    token: str
    """The cookie; empty where there is none."""
    person: Person | None
    language: str

    # -- what the daemon says ------------------------------------------------------------------

    @property
    def caller(self) -> Caller:
        """Who asks, as the methods know it."""
        assert self.person is not None
        person = self.person
        return Caller(ClientName(person.name), Role(person.role), person.session, self.origin)

    @property
    def origin(self) -> str:
        """From where, for the record."""
        return f"console {peer(self.request)}"

    async def ask(self, method: str, /, **params: object) -> Any:  # noqa: ANN401
        """Call a method of the control protocol as this person; what is None stays out.

        Raises:
            FepError: it was refused.
            msgspec.ValidationError: the parameters are not what the method takes.
        """
        row, caller = METHODS[method], self.caller
        if caller.role not in row.roles:
            log.warning("authz.denied", user=caller.name, role=caller.role.value, what=method)
            raise ProtocolRefusal("NOT_PERMITTED", not_permitted(caller.role, method))
        sent = {name: value for name, value in params.items() if value is not None}
        return await perform(self.desk.services, caller, method, msgspec.convert(sent, row.params))

    async def form(self) -> FormData:
        """Return the fields of a form."""
        return await self.request.form(max_files=0, max_fields=FORM_FIELDS_MAX)

    def may(self, method: str) -> bool:
        """Say whether this person may call a method."""
        return self.person is not None and Role(self.person.role) in METHODS[method].roles

    # -- answers -------------------------------------------------------------------------------

    def t(self, text: str, **values: object) -> str:
        """Return words in this person's language."""
        return translated(self.language, text, **values)

    def page(self, template: str, http_status: int = 200, **values: object) -> HTMLResponse:
        """Return a page."""
        cookies = self.request.cookies
        theme = cookies.get(THEME_COOKIE, "auto")
        note = _note_of(cookies.get(NOTE_COOKIE, ""))
        if note is not None and note[0] not in CATALOGUE:
            note = None  # not one of ours
        html = self.desk.templates.get_template(template).render(
            values,
            t=self.t,
            lang=self.language,
            theme=theme if theme in THEMES else "auto",
            themes=THEMES,
            languages=LANGUAGES,
            person=self.person,
            may=self.may,
            csrf=csrf_of(self.token),
            path=self.request.url.path,
            navigation=self.desk.navigation,
            here=_here(self.request),
            note=None if note is None else self.t(note[0], **note[1]),
            alarms_active=len(self.desk.services.alarms.active()),
            version=self.desk.services.version,
        )
        response = HTMLResponse(html, http_status)
        if note is not None:
            response.delete_cookie(NOTE_COOKIE)
        return response

    def piece(self, template: str, **values: object) -> HTMLResponse:
        """Return a piece of a page, for htmx."""
        more = {"csrf": csrf_of(self.token), "may": self.may, "person": self.person}
        return HTMLResponse(self.desk.fragment(template, self.language, {**values, **more}))

    def done(self, where: str, text: str, **values: str) -> Response:
        """Lead to a page that says what was done."""
        response = RedirectResponse(where, 303)
        told = urlencode({"": text, **values}, quote_via=quote)[:NOTE_CHARS_MAX]
        self.desk.set_cookie(response, NOTE_COOKIE, told, 60)
        return response

    def refused(self, error: FepError) -> Response:
        """Say why something was not done."""
        return self.failed(STATUSES.get(error.code, 409), error.code, str(error))

    def failed(self, status: int, code: str, message: str) -> Response:
        """Return an error: a page for a person, a line for htmx, which shows it in a corner."""
        if is_htmx(self.request):
            return PlainTextResponse(f"{self.t(code)}: {message}", status)
        return self.page("error.html", status, code=code, message=message)


Handler = Callable[[Visit], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


async def visit_of(request: Request, *, seen: bool = True) -> Visit:
    """Return who asks and how to answer."""
    desk: Desk = request.app.state.desk
    token = request.cookies.get(desk.cookie, "")
    token = token if 0 < len(token) <= TOKEN_CHARS_MAX else ""
    person = await desk.services.users.person(token, seen=seen) if token else None
    language = preferred(
        request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", "")
    )
    return Visit(desk, request, token, person, language)


def need(*, roles: frozenset[Role] = VIEWER) -> Callable[[Handler], Endpoint]:
    """Let only people of these roles come to a page, and only their own forms."""

    def wrap(handler: Handler) -> Endpoint:
        @wraps(handler)
        async def endpoint(request: Request) -> Response:
            refreshes = is_htmx(request) and "live" in request.query_params
            visit = await visit_of(request, seen=not refreshes)
            if visit.person is None:
                return to_login(visit)
            if Role(visit.person.role) not in roles:
                person = visit.person
                log.warning(
                    "authz.denied", user=person.name, role=person.role, what=request.url.path
                )
                needed = ", ".join(sorted(roles))
                return visit.failed(403, "NOT_PERMITTED", f"{request.url.path}: {needed}")
            if request.method not in {"GET", "HEAD"} and not await is_own_form(visit):
                return visit.failed(403, "NOT_PERMITTED", visit.t("The form is too old; try again"))
            return await answered(handler, visit)

        return endpoint

    return wrap


async def answered(handler: Handler, visit: Visit) -> Response:
    """Return the handler's answer, or the refusal it met."""
    try:
        return await handler(visit)
    except FepError as error:
        return visit.refused(error)
    except msgspec.ValidationError as error:
        return visit.failed(422, "BAD_REQUEST", str(error))


def to_login(visit: Visit) -> Response:
    """Lead to the log-in; htmx must not swap that page into a cell."""
    request = visit.request
    if is_htmx(request) or "text/event-stream" in request.headers.get("accept", ""):
        return PlainTextResponse(visit.t("Log in"), 401, {"hx-redirect": "/login"})
    if request.method not in {"GET", "HEAD"}:
        return RedirectResponse("/login", 303)
    return RedirectResponse(f"/login?next={quote(_here(request))}", 303)


async def is_own_form(visit: Visit) -> bool:
    """Say whether a request that changes something comes from a page of ours."""
    request = visit.request
    headers = request.headers
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return _foreign(visit, "site")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return _foreign(visit, "origin")
    given = headers.get("x-csrf")
    if given is None:
        field = (await visit.form()).get("csrf")
        given = field if isinstance(field, str) else ""
    right = csrf_of(visit.token)
    if visit.token and hmac.compare_digest(given.encode("utf-8", "replace"), right.encode()):
        return True
    return _foreign(visit, "token")


def _foreign(visit: Visit, what: str) -> bool:
    log.warning("form.refused", path=visit.request.url.path, origin=visit.origin, what=what)
    return False


def csrf_of(token: str) -> str:
    """Return what forms bear: it comes from the cookie, and does not lead back to it."""
    return hashlib.sha256(f"csrf:{token}".encode("utf-8", "replace")).hexdigest()


def new_token() -> str:
    """Return a cookie for somebody who is not logged in, so that the log-in has its form's mark."""
    return secrets.token_urlsafe(32)


def peer(request: Request) -> str:
    """Return the address at the other end."""
    return "unknown" if request.client is None else request.client.host


def is_htmx(request: Request) -> bool:
    """Say whether htmx asks, and not the browser for a person."""
    return request.headers.get("hx-request") == "true"


def local_path(text: str) -> str:
    """Return a path of this console, the first page for anything else."""
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and "\\" not in text
    if plain and text.startswith("/") and not text.startswith("//") and not parts.netloc:
        return text
    return "/"


def _here(request: Request) -> str:
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


def _note_of(text: str) -> tuple[str, dict[str, str]] | None:
    """Return what was done, as ``done`` wrote it."""
    parts = [part.partition("=") for part in text.split("&")]
    if not text or parts[0][0]:
        return None
    values = {unquote(name): unquote(value) for name, _, value in parts[1:]}
    return unquote(parts[0][2]), values


__all__ = ["ADMIN", "OPERATOR", "VIEWER", "Desk", "HTTPException", "Visit", "need"]
