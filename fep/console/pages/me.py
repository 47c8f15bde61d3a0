"""One's own log-in: password and one-time codes."""

from __future__ import annotations

import io
from typing import Final

import segno
from starlette.responses import Response

from fep.console.desk import Visit, need
from fep.console.pages.page import GET, POST, Page, text_of
from fep.users.passwords import new_totp_secret, totp_address

QR_SCALE: Final = 5


@need()
async def show(visit: Visit) -> Response:
    """Show the forms, with a fresh secret where none is in use."""
    assert visit.person is not None
    secret = "" if visit.person.has_totp else new_totp_secret()
    return visit.page("me.html", secret=secret, picture=_picture(visit, secret))


def _picture(visit: Visit, secret: str) -> str:
    """Return the picture that an authenticator reads, as SVG."""
    if not secret:
        return ""
    assert visit.person is not None
    address = totp_address(secret, visit.person.name, visit.desk.services.machine_name)
    buffer = io.BytesIO()
    # Drawn with attributes alone: our policy lets no style stand in a page.
    segno.make_qr(address).save(
        buffer, kind="svg", scale=QR_SCALE, border=3, xmldecl=False, svgns=True, light="white"
    )
    return buffer.getvalue().decode()


@need()
async def password(visit: Visit) -> Response:
    """Change one's password; other sessions end."""
    form = await visit.form()
    if form.get("new_password") != form.get("again"):
        return visit.failed(422, "BAD_REQUEST", visit.t("The two new passwords are not the same"))
    await visit.ask(
        "user.own_password",
        old_password=form.get("old_password"),
        new_password=form.get("new_password"),
    )
    return visit.done("/me", "Your password is changed")


@need()
async def totp(visit: Visit) -> Response:
    """Begin or end one-time codes."""
    form = await visit.form()
    secret = text_of(form, "secret")
    await visit.ask(
        "user.own_totp",
        password=form.get("password"),
        totp_secret=secret,
        totp_token=text_of(form, "code"),
    )
    told = "One-time codes are asked for from now on" if secret else "No more one-time codes"
    return visit.done("/me", told)


PAGE: Final = Page(
    routes=(("/me", show, GET), ("/me/password", password, POST), ("/me/totp", totp, POST))
)
